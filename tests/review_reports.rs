//! Line reports over real HTTP: what the review server takes, what it refuses, what it shows.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use linesight::review::{Config, Server, lines};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use uuid::Uuid;

/// Nothing here may take longer.
const DEADLINE: Duration = Duration::from_secs(30);

fn start(dir: &Path) -> Server {
    Server::start(Config::new(dir, "127.0.0.1:0".parse().unwrap())).unwrap()
}

fn client() -> Client {
    Client::builder().timeout(DEADLINE).build().unwrap()
}

fn report(line: &str, run: Uuid, seq: u64, at: Timestamp) -> Value {
    let rows: Vec<Value> = ["pass", "reject", "unsure", "missed"]
        .iter()
        .zip(4 * seq..)
        .map(|(verdict, part)| json!({"part": part, "at": at, "score": 0.5, "verdict": verdict}))
        .collect();
    json!({
        "schema": 1, "site": "plant", "line": line, "run": run, "seq": seq, "at": at, "state": "live",
        "last_frame_age_s": 0.02, "fps": 29.9,
        "counters": {"frames": 900, "parts": 40, "passed": 36, "rejected": 2, "unsure": 1, "missed": 1, "late": 1,
            "dropped": {"overload": 12}, "reconnects": 2},
        "spool": {"waiting": 3, "set_aside": 1},
        "health": {"lamp": {"value": 0.69, "usual": 1.0, "alert": true, "says": "parts are 31 % darker than when taught"}},
        "drift": {"ks": {"value": 0.1, "usual": 0.2, "alert": false}},
        "model": {"name": "washer", "version": "3", "sha256": "ab"}, "threshold": 4.25, "calibration": [0.1, 0.2, 0.9],
        "rows": rows, "chain": "00ff", "a_field_from_the_future": [1]
    })
}

fn post(url: &str, line: &str, body: impl Into<reqwest::blocking::Body>) -> Response {
    let mut to = url::Url::parse(url).unwrap();
    to.path_segments_mut().unwrap().extend(["api", "v1", "lines", line, "report"]);
    let request = client().post(to).header("content-type", "application/json").header("idempotency-key", "any");
    request.body(body).send().unwrap()
}

fn send(url: &str, report: &Value) -> u16 {
    post(url, report["line"].as_str().unwrap(), report.to_string()).status().as_u16()
}

fn refusal(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().unwrap();
    assert_eq!(problem["status"], status);
    (status, problem["detail"].as_str().unwrap().to_string())
}

fn items(url: &str) -> Vec<Value> {
    let answer: Value =
        client().get(format!("{url}/api/v1/lines")).send().unwrap().error_for_status().unwrap().json().unwrap();
    answer["items"].as_array().unwrap().clone()
}

fn page(url: &str) -> String {
    client().get(format!("{url}/lines")).send().unwrap().error_for_status().unwrap().text().unwrap()
}

#[test]
fn first_201_then_200() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    assert_eq!(items(&server.url()), Vec::<Value>::new());
    assert!(page(&server.url()).contains("No line has reported yet"));
    let (run, now) = (Uuid::now_v7(), Timestamp::now());
    let (first, second) = (report("east", run, 0, now), report("east", run, 1, now));
    assert_eq!(send(&server.url(), &second), 201, "reports may overtake each other");
    assert_eq!(send(&server.url(), &first), 201);
    let before = items(&server.url());
    let mut repeat = second.clone();
    repeat["fps"] = json!(1.0);
    assert_eq!(send(&server.url(), &repeat), 200);
    assert_eq!(send(&server.url(), &first), 200);
    let strip = |items: Vec<Value>| -> Vec<Value> {
        items
            .into_iter()
            .map(|mut i| {
                i["age_s"] = json!(0);
                i
            })
            .collect()
    };
    assert_eq!(strip(items(&server.url())), strip(before), "a repeat changes nothing");
    let item = &items(&server.url())[0];
    assert_eq!((&item["line"], &item["silent"], &item["report"]["seq"]), (&json!("east"), &json!(false), &json!(1)));
    assert_eq!(item["report"]["rows"], json!([]));
    assert!(item["report"].get("calibration").is_none());
    assert_eq!(item["last_hour"], json!({"pass": 2, "reject": 2, "unsure": 2, "missed": 2}));
    drop(server);

    // everything is on disk, and what was counted once is not counted again by the next server
    let server = start(dir.path());
    assert_eq!(send(&server.url(), &first), 200);
    assert_eq!(strip(items(&server.url()))[0]["report"]["seq"], 1);
    let db = rusqlite::Connection::open(dir.path().join("review.db")).unwrap();
    let count = |sql: &str| db.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT COUNT(*) FROM parts"), 8);
    assert_eq!(count("SELECT COUNT(*) FROM parts WHERE verdict = 'missed' AND score = 0.5"), 2);
    assert_eq!(count("SELECT json_array_length(scores) FROM calibrations WHERE model = 'ab'"), 3);
}

#[test]
fn reports_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let url = server.url();
    let good = report("a", Uuid::now_v7(), 0, Timestamp::now());
    let with = |pointer: &str, value: Value| {
        let mut r = good.clone();
        *r.pointer_mut(pointer).unwrap() = value;
        r.to_string()
    };
    let not_one = "the body is not a line report: ";
    let table = [
        (with("/line", json!("b")), 422, "the report is of line \"b\" and was sent to line \"a\""),
        (with("/schema", json!(2)), 422, "the report has schema 2, this server understands 1"),
        (with("/schema", json!("1")), 400, not_one),
        (with("/rows/0/score", Value::Null), 400, not_one),
        (with("/rows/0/score", json!(1e300)), 400, not_one),
        (with("/rows/0/score", json!("0.5")), 400, not_one),
        (with("/rows/0/score", json!(0.5)).replace("0.5", "1e999"), 400, not_one),
        (with("/rows/0/verdict", json!("maybe")), 400, not_one),
        (with("/rows/0/part", json!(-1)), 400, not_one),
        (with("/rows/0/part", json!(u64::MAX)), 400, "a number of the report is out of range"),
        (with("/rows/0/at", json!("9000-01-01T00:00:00Z")), 400, "time \"9000-01-01T00:00:00Z\" is out of range"),
        (with("/seq", json!(-1)), 400, not_one),
        (with("/run", json!("../x")), 400, not_one),
        (with("/state", json!("asleep")), 400, not_one),
        (with("/fps", Value::Null), 400, not_one),
        (with("/health/lamp/value", Value::Null), 400, not_one),
        (
            with("/site", json!("x".repeat(1001))),
            422,
            "a text of the report has 1001 characters, this server takes 1000",
        ),
        ("{".into(), 400, not_one),
        (String::new(), 400, not_one),
        ("[]".into(), 400, not_one),
        (format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), 400, not_one),
    ];
    for (body, status, detail) in table {
        let (got, found) = refusal(post(&url, "a", body.clone()));
        let start: String = body.chars().take(200).collect();
        assert_eq!(got, status, "{found}: {start}");
        assert!(found.starts_with(detail), "{found}: {start}");
    }
    let long = "é".repeat(201);
    let (status, detail) = refusal(post(&url, &long, with("/line", json!(long))));
    assert_eq!((status, detail.as_str()), (422, "the report's line must have between 1 and 200 characters"));
    assert_eq!(items(&url), Vec::<Value>::new(), "nothing of it was kept");
    assert_eq!(send(&url, &good), 201);
}

#[test]
fn hostile_reports_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let url = server.url();
    let good = report("a", Uuid::now_v7(), 0, Timestamp::now());
    let to = format!("{url}/api/v1/lines/a/report");
    let client = client();
    let request = || client.post(&to).body(good.to_string());
    let json = |r: reqwest::blocking::RequestBuilder| r.header("content-type", "application/json");

    assert_eq!(refusal(request().header("idempotency-key", "k").send().unwrap()).0, 415);
    assert_eq!(refusal(json(request()).send().unwrap()).0, 400, "a key is wanted");
    assert_eq!(refusal(json(request()).header("idempotency-key", "").send().unwrap()).0, 400);
    let keyed = |r| json(r).header("idempotency-key", "k");
    let stranger = keyed(request()).header("origin", "http://evil.example").send().unwrap();
    assert_eq!(refusal(stranger).0, 403);
    let stranger = keyed(request()).header("host", "evil.example").send().unwrap();
    assert_eq!(refusal(stranger).0, 403);
    assert_eq!(client.get(&to).send().unwrap().status(), 405);

    // too large, with its length and without
    let large = vec![b' '; lines::MAX_REPORT + 1];
    let (status, detail) = refusal(keyed(client.post(&to)).body(large.clone()).send().unwrap());
    assert_eq!((status, detail.as_str()), (413, "the report is larger than 2097152 bytes"));
    let chunked = reqwest::blocking::Body::new(std::io::Cursor::new(large));
    assert_eq!(refusal(keyed(client.post(&to)).body(chunked).send().unwrap()).0, 413);

    // lists that would fit the body
    let mut rows = good.clone();
    let row = json!({"part": 0, "at": "2030-01-01T00:00:00Z", "score": 0, "verdict": "pass"});
    rows["rows"] = vec![row; lines::MAX_ROWS + 1].into();
    let (status, detail) = refusal(post(&url, "a", rows.to_string()));
    assert_eq!((status, detail.as_str()), (413, "the report's rows has 20001 entries, this server takes 20000"));
    let mut scores = good.clone();
    scores["calibration"] = vec![0; lines::MAX_SCORES + 1].into();
    assert_eq!(refusal(post(&url, "a", scores.to_string())).0, 413);
    let mut checks = good.clone();
    let check = json!({"value": 0, "usual": 0, "alert": true});
    checks["health"] =
        (0..=lines::MAX_ENTRIES).map(|i| (format!("c{i}"), check.clone())).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(refusal(post(&url, "a", checks.to_string())).0, 413);
    assert_eq!(items(&url), Vec::<Value>::new());

    // as many rows as are taken
    rows["rows"].as_array_mut().unwrap().pop();
    assert_eq!(send(&url, &rows), 201);
}

#[test]
fn hostile_names_stay_text() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let url = server.url();
    let hostile = "<script>alert(1)</script>\"'>/../<img src=x onerror=alert(1)>%2e?#";
    let plain = "plain";
    let of = |name: &str| {
        let mut r = report(name, Uuid::now_v7(), 0, Timestamp::now());
        for pointer in ["/site", "/model/name", "/model/version", "/health/lamp/says"] {
            *r.pointer_mut(pointer).unwrap() = json!(name);
        }
        r["reason"] = json!(name);
        r["counters"]["dropped"] = json!({ name: 3 });
        r["health"][name] = json!({"value": 1.0, "usual": 2.0, "alert": true});
        r
    };
    assert_eq!(send(&url, &of(plain)), 201);
    let before = page(&url);
    assert_eq!(send(&url, &of(hostile)), 201);
    let after = page(&url);
    assert!(after.contains("&lt;script&gt;alert(1)"), "{after}");
    let article = |text: &str, n: usize| {
        let whole = text.split("<article").nth(n).unwrap().split("</article>").next().unwrap();
        whole.matches('<').count()
    };
    // '<' sorts before 'p'
    assert_eq!(article(&after, 1), article(&before, 1), "no tag more than a plain name makes");
    for inline in [" style=", "<style", " onclick=", " onload=", "javascript:"] {
        assert!(!after.contains(inline), "{inline}");
    }
    assert_eq!(after.matches("<script").count(), before.matches("<script").count());
    assert_eq!(items(&url)[0]["line"], hostile);
}

#[test]
fn a_silent_line_is_not_shown_as_live() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let url = server.url();
    let now = Timestamp::now();
    let ago = |s: i64| now.checked_sub(SignedDuration::from_secs(s)).unwrap();
    let mut stopped = report("stopped", Uuid::now_v7(), 0, ago(4000));
    stopped["state"] = json!("stopped");
    for r in [report("fresh", Uuid::now_v7(), 0, ago(5)), report("gone", Uuid::now_v7(), 0, ago(4000)), stopped] {
        assert_eq!(send(&url, &r), 201);
    }
    // a clock that is ahead is not believed for ever, but makes no line silent
    assert_eq!(send(&url, &report("ahead", Uuid::now_v7(), 0, ago(-4000))), 201);
    let silent: Vec<(Value, Value)> =
        items(&url).into_iter().map(|i| (i["line"].clone(), i["silent"].clone())).collect();
    let wanted = [("ahead", false), ("fresh", false), ("gone", true), ("stopped", false)];
    assert_eq!(silent, wanted.map(|(l, s)| (json!(l), json!(s))));
    let page = page(&url);
    let articles: Vec<&str> = page.split("<article").collect();
    assert!(articles[3].contains("No word since") && articles[3].contains("silent"), "{}", articles[3]);
    assert_eq!(page.matches("No word since").count(), 1);
    assert!(articles[3].contains("1 h ago"), "{}", articles[3]);
    assert!(page.contains("parts are 31 % darker than when taught"));
    let list = client().get(&url).send().unwrap().text().unwrap();
    assert!(list.contains("href=\"/lines\""), "the list leads to the lines");
}

/// A database of the version before has no tables for reports: it gets them, and keeps what it had.
#[test]
fn an_older_database_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let db = rusqlite::Connection::open(dir.path().join("review.db")).unwrap();
    // as the first version made it
    db.execute_batch(
        "CREATE TABLE anomalies (id TEXT PRIMARY KEY NOT NULL, captured_at INTEGER NOT NULL, received_at INTEGER NOT NULL,
            line TEXT NOT NULL, verdict TEXT NOT NULL, event TEXT NOT NULL) STRICT;
         CREATE INDEX anomalies_by_time ON anomalies (captured_at, id);
         CREATE INDEX anomalies_by_line ON anomalies (line, captured_at, id);
         CREATE INDEX anomalies_by_verdict ON anomalies (verdict, captured_at, id);
         CREATE INDEX anomalies_by_line_verdict ON anomalies (line, verdict, captured_at, id);
         CREATE TABLE objects (anomaly TEXT NOT NULL REFERENCES anomalies (id), name TEXT NOT NULL, size INTEGER NOT NULL,
            sha256 TEXT NOT NULL, PRIMARY KEY (anomaly, name)) STRICT, WITHOUT ROWID;
         INSERT INTO anomalies VALUES ('x', 1, 1, 'a', 'reject', '{}');
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(db);
    let server = start(dir.path());
    assert_eq!(send(&server.url(), &report("a", Uuid::now_v7(), 0, Timestamp::now())), 201);
    let db = rusqlite::Connection::open(dir.path().join("review.db")).unwrap();
    assert_eq!(db.query_row("SELECT COUNT(*) FROM anomalies", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
}
