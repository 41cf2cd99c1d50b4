//! Hostile requests to the review server, over TCP as they are: each gets a clear answer, nothing is kept, nobody waits.
//!
//! docs/design/review-abuse.md lists what was sent and what it got; `LINESIGHT_UPDATE=1` writes it anew.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use std::io::{Cursor, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use linesight::review::accounts::{Accounts, Actor, Role, Scope, SqliteAccounts, gate, secret};
use linesight::review::listen::Limits;
use linesight::review::{Config, Server};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
/// What a good client may wait while others attack, on a machine that does other things too.
const PROMPT: Duration = Duration::from_secs(2);
const ID: &str = "01930000-0000-7000-8000-000000000001";
const OTHER: &str = "01930000-0000-7000-8000-000000000002";
const LIST: &str = "docs/design/review-abuse.md";

fn start(dir: &Path, limits: Limits) -> Server {
    Server::start(Config { limits, ..Config::new(dir, ([127, 0, 0, 1], 0).into()) }).unwrap()
}

/// Sends bytes and reads what comes until the server closes; the status (0: none) and the whole answer.
fn send(to: SocketAddr, bytes: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let sent = stream.write_all(bytes);
    if sent.is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // a reset after the answer is no less an answer
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|a| a.get(..3)).and_then(|s| s.parse().ok());
    (status.unwrap_or(0), answer)
}

/// The sentence in an answer: a problem's detail, or what a page says.
fn detail(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if let Ok(problem) = serde_json::from_str::<Value>(body) {
        return match &problem["detail"] {
            Value::String(detail) => detail.clone(),
            _ => format!("{} items", problem["items"].as_array().map_or(0, Vec::len)),
        };
    }
    if answer.starts_with("HTTP/1.1 200") {
        return "a page".into();
    }
    let sentence = body.split_once("<p>").and_then(|(_, rest)| rest.split_once("</p>"));
    sentence.map_or_else(String::new, |(sentence, _)| sentence.split('<').next().unwrap().to_owned())
}

fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n").into_bytes();
    for header in headers {
        bytes.extend(format!("{header}\r\n").bytes());
    }
    if !body.is_empty() {
        bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

fn get(path: &str) -> Vec<u8> {
    request("GET", path, &[], b"")
}

fn with(path: &str, headers: &[&str]) -> Vec<u8> {
    request("GET", path, headers, b"")
}

fn put_json(method: &str, path: &str, body: &str) -> Vec<u8> {
    request(method, path, &["Content-Type: application/json"], body.as_bytes())
}

fn picture(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = match format {
        ImageFormat::Png => DynamicImage::from(RgbaImage::new(8, 6)),
        _ => DynamicImage::from(RgbImage::new(8, 6)),
    };
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG whose header says that it is so large, with the checksum that goes with it.
fn bomb(side: u32) -> Vec<u8> {
    let mut png = picture(ImageFormat::Png);
    png[16..20].copy_from_slice(&side.to_be_bytes());
    png[20..24].copy_from_slice(&side.to_be_bytes());
    let sum = crc32fast::hash(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

/// A JPEG whose header says that it is so large.
fn wide(side: u16) -> Vec<u8> {
    let mut jpeg = picture(ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
    jpeg
}

fn event() -> Value {
    json!({
        "schema": 1, "id": ID, "site": "plant", "line": "east", "camera": "c", "part": 1, "frame": 2,
        "captured_at": "2030-01-02T03:04:05Z", "score": 3.5, "confidence": 0.9, "threshold": 1.25, "verdict": "reject",
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32",
        "image": {"width": 8, "height": 6}
    })
}

fn of(id: &str) -> Value {
    let mut event = event();
    event["id"] = id.into();
    event
}

/// One field of a multipart body: name, content type, bytes.
type Field<'a> = (&'a str, &'a str, Vec<u8>);

fn multipart(fields: &[Field<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, kind, bytes) in fields {
        let head = format!(
            "--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"../../{name}\"\r\nContent-Type: {kind}\r\n\r\n"
        );
        body.extend(head.bytes());
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--B--\r\n");
    body
}

fn good(event: &str) -> [Field<'static>; 3] {
    [
        ("event", "application/json", event.as_bytes().to_vec()),
        ("frame", "image/jpeg", picture(ImageFormat::Jpeg)),
        ("heatmap", "image/png", picture(ImageFormat::Png)),
    ]
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=B";

fn upload(key: &str, fields: &[Field<'_>]) -> Vec<u8> {
    request("POST", "/api/v1/anomalies", &[FORM, &format!("Idempotency-Key: {key}")], &multipart(fields))
}

/// An upload of a new anomaly with one field of its event changed.
fn changed(key: &str, value: Value) -> Vec<u8> {
    let mut event = of(OTHER);
    event[key] = value;
    upload(OTHER, &good(&event.to_string()))
}

/// An upload of a new anomaly whose event is this text.
fn told(event: &str) -> Vec<u8> {
    upload(OTHER, &good(event))
}

/// An upload of a new anomaly with one of its fields replaced.
fn replaced(name: &'static str, kind: &'static str, bytes: Vec<u8>) -> Vec<u8> {
    let text = of(OTHER).to_string();
    let fields: Vec<Field<'_>> =
        good(&text).into_iter().map(|f| if f.0 == name { (name, kind, bytes.clone()) } else { f }).collect();
    upload(OTHER, &fields)
}

fn report(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut report = json!({
        "schema": 1, "site": "plant", "line": "east", "run": ID, "seq": 1, "at": "2030-01-02T03:04:05Z", "state": "live",
        "fps": 1.0, "counters": {"frames": 0, "parts": 0, "passed": 0, "rejected": 0, "unsure": 0, "missed": 0, "late": 0,
                     "dropped": {}, "reconnects": 0},
        "spool": {"waiting": 0, "set_aside": 0}, "health": {}, "drift": {},
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "threshold": 1.25, "rows": []
    });
    change(&mut report);
    let headers = ["Content-Type: application/json", "Idempotency-Key: 1"];
    request("POST", "/api/v1/lines/east/report", &headers, report.to_string().as_bytes())
}

/// What is sent, in words; the bytes; the status it must get.
type Case = (&'static str, Vec<u8>, u16);

fn paths_and_queries() -> Vec<Case> {
    let item = format!("/api/v1/anomalies/{ID}");
    let sql = "%27%20OR%201%3D1%3B%20DROP%20TABLE%20anomalies%3B--";
    let query = |parameter: &str| get(&format!("/api/v1/anomalies?{parameter}={sql}"));
    vec![
        ("path /../../etc/passwd", get("/../../etc/passwd"), 404),
        ("path /assets/../review.db", get("/assets/../review.db"), 404),
        ("path /assets/..%2f..%2freview.db", get("/assets/..%2f..%2freview.db"), 404),
        ("id ..%2f..%2fetc%2fpasswd", get("/api/v1/anomalies/..%2f..%2fetc%2fpasswd"), 400),
        ("id that is a null byte", get("/api/v1/anomalies/%00"), 400),
        ("id that is not UTF-8", get("/api/v1/anomalies/%ff%fe"), 400),
        ("id with SQL", get(&format!("/api/v1/anomalies/{sql}")), 400),
        ("id with markup, as a page", get("/anomalies/%3Cscript%3Ealert(1)%3C%2Fscript%3E"), 404),
        ("picture ..%2f..%2f..%2freview.db", get(&format!("{item}/..%2f..%2f..%2freview.db")), 404),
        ("picture frame.jpg%00.png", get(&format!("{item}/frame.jpg%00.png")), 404),
        ("SQL in line", query("line"), 200),
        ("SQL in model", query("model"), 200),
        ("SQL in lot", query("lot"), 200),
        ("SQL in serial", query("serial"), 200),
        ("SQL in defect_type", query("defect_type"), 200),
        ("SQL in verdict", query("verdict"), 400),
        ("SQL in since", query("since"), 400),
        ("SQL in confidence_min", query("confidence_min"), 400),
        ("SQL in sort", query("sort"), 400),
        ("SQL in cursor", query("cursor"), 400),
        ("limit 0", get("/api/v1/anomalies?limit=0"), 400),
        ("limit -1", get("/api/v1/anomalies?limit=-1"), 400),
        ("limit 99999999999999999999", get("/api/v1/anomalies?limit=99999999999999999999"), 400),
        ("limit twice", get("/api/v1/anomalies?limit=1&limit=2"), 400),
        ("SQL in the audit's before", get(&format!("/api/v1/audit?before={sql}")), 400),
    ]
}

fn heads() -> Vec<Case> {
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let raw = |text: &str| text.as_bytes().to_vec();
    let host = |host: &str| raw(&format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n"));
    vec![
        ("no Host", host(""), 403),
        ("Host of somebody else (DNS rebinding)", host("Host: evil.example\r\n"), 403),
        ("two Hosts", host("Host: localhost\r\nHost: evil.example\r\n"), 403),
        ("Host with a user", host("Host: localhost@evil.example\r\n"), 403),
        ("absolute URI of somebody else", get("http://evil.example/"), 403),
        ("X-Forwarded-Host, from no proxy", with("/", &["X-Forwarded-Host: evil.example"]), 200),
        ("Origin of another site", with("/api/v1/anomalies", &["Origin: http://evil.example"]), 403),
        ("Origin null", request("POST", "/login", &["Origin: null"], b"x"), 403),
        (
            "cross-site request that changes something",
            request("PUT", "/api/v1/defect-types", &["Sec-Fetch-Site: cross-site"], b"{}"),
            403,
        ),
        ("200 header lines", with("/", &many), 431),
        ("a header line of 100 kB", with("/", &[&format!("X-A: {}", "a".repeat(100_000))]), 431),
        ("a path of 100 kB", get(&format!("/{}", "a".repeat(100_000))), 431),
        ("a null byte in a header", with("/", &["X-A: a\0b"]), 400),
        ("a space before the colon", with("/", &["X-A : b"]), 400),
        ("HTTP/9.9", raw("GET / HTTP/9.9\r\nHost: localhost\r\n\r\n"), 400),
        ("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), 400),
        ("nonsense", raw("\u{1}\u{2}\u{3}\r\n\r\n"), 400),
        ("method TRACE", request("TRACE", "/", &[], b""), 405),
        ("method DELETE on the list", request("DELETE", "/api/v1/anomalies", &[], b""), 405),
        ("a method of its own", request("PURGE", "/lines", &[], b""), 405),
        ("Content-Length -1", with("/login", &["Content-Length: -1"]), 400),
        ("two Content-Lengths", with("/login", &["Content-Length: 1", "Content-Length: 2"]), 400),
        (
            "chunks of a size that is none",
            raw("POST /login HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
            400,
        ),
    ]
}

fn uploads() -> Vec<Case> {
    let post = |headers: &[&str], body: &[u8]| request("POST", "/api/v1/anomalies", headers, body);
    let key = format!("Idempotency-Key: {OTHER}");
    let text = of(OTHER).to_string();
    let body = multipart(&good(&text));
    let [e, f, h] = good(&text);
    let long = "x".repeat(1001);
    vec![
        ("no Idempotency-Key", post(&[FORM], &body), 400),
        ("two Idempotency-Keys", post(&[FORM, &key, &key], &body), 400),
        ("Idempotency-Key ../../etc/passwd", post(&[FORM, "Idempotency-Key: ../../etc/passwd"], &body), 400),
        ("the key of another event", upload(ID, &good(&text)), 422),
        ("JSON instead of multipart", post(&["Content-Type: application/json", &key], b"{}"), 415),
        ("multipart without boundary", post(&["Content-Type: multipart/form-data", &key], &body), 415),
        ("multipart that ends in the middle", post(&[FORM, &key], &body[..body.len() / 2]), 400),
        ("a body that is no multipart", post(&[FORM, &key], b"garbage"), 400),
        ("no fields", upload(OTHER, &[]), 400),
        ("no event", upload(OTHER, &[f.clone(), h.clone()]), 400),
        ("no frame", upload(OTHER, &[e.clone(), h.clone()]), 400),
        ("the frame twice", upload(OTHER, &[e.clone(), f.clone(), f.clone(), h]), 400),
        ("33 MB", post(&[FORM, &key], &vec![b'a'; 33 << 20]), 413),
        ("a frame of 21 MB", replaced("frame", "image/jpeg", vec![0xff; 21 << 20]), 413),
        ("an event of 2 MB", told(&"x".repeat(2 << 20)), 413),
        ("an event that is not JSON", told("{"), 400),
        ("an event that is not UTF-8", replaced("event", "application/json", vec![0xff, 0xfe]), 400),
        ("JSON 100,000 deep", told(&"[".repeat(100_000)), 400),
        ("an event with the line twice", told(&text.replacen('{', "{\"line\":\"west\",", 1)), 422),
        ("a number beyond all ranges (1e999)", told(&text.replace("3.5", "1e999")), 400),
        ("score NaN", told(&text.replace("3.5", "NaN")), 400),
        ("score -1", changed("score", (-1).into()), 422),
        ("score 1e300", changed("score", 1e300.into()), 422),
        ("confidence 2", changed("confidence", 2.into()), 422),
        ("part 2^64", told(&text.replace("\"part\":1", "\"part\":18446744073709551616")), 422),
        ("part 2^63", changed("part", (1u64 << 63).into()), 422),
        ("part -1", changed("part", (-1).into()), 422),
        ("verdict pass", changed("verdict", "pass".into()), 422),
        ("schema 2", changed("schema", 2.into()), 422),
        ("a time beyond all ranges", changed("captured_at", "9999-01-01T00:00:00Z".into()), 422),
        ("an empty line", changed("line", "".into()), 422),
        ("a line of 1001 characters", changed("line", long.clone().into()), 422),
        ("a site of 1001 characters", changed("site", long.clone().into()), 422),
        ("a serial of 1001 characters", changed("serial", long.clone().into()), 422),
        ("a reason of 1001 characters", changed("reasons", json!([long])), 422),
        ("65 reasons", changed("reasons", json!(vec!["x"; 65])), 422),
        (
            "10,001 regions",
            changed("regions", json!(vec![json!({"x": 0, "y": 0, "w": 1, "h": 1, "score": 1}); 10_001])),
            422,
        ),
        ("a frame of another size than stated", changed("image", json!({"width": 9, "height": 6})), 422),
        ("a frame that is a page", replaced("frame", "image/jpeg", b"<html><script>".to_vec()), 422),
        ("a frame that is an SVG", replaced("frame", "image/jpeg", b"<svg onload='alert(1)'/>".to_vec()), 422),
        ("a frame that is a PNG", replaced("frame", "image/jpeg", picture(ImageFormat::Png)), 422),
        ("a frame said to be text/html", replaced("frame", "text/html", picture(ImageFormat::Jpeg)), 415),
        ("a frame that is two bytes", replaced("frame", "image/jpeg", vec![0xff, 0xd8]), 422),
        ("a frame of 65,535 pixels a side", replaced("frame", "image/jpeg", wide(65_535)), 422),
        ("a frame of 16,000 pixels a side", replaced("frame", "image/jpeg", wide(16_000)), 422),
        (
            "a frame of 1000 scans",
            replaced("frame", "image/jpeg", [picture(ImageFormat::Jpeg), [0xff, 0xda].repeat(1000)].concat()),
            422,
        ),
        ("a heatmap of 2^31 - 1 pixels a side", replaced("heatmap", "image/png", bomb(0x7fff_ffff)), 422),
        ("a heatmap of 16,384 pixels a side", replaced("heatmap", "image/png", bomb(16_384)), 422),
        ("a heatmap that is a ZIP", replaced("heatmap", "image/png", b"PK\x03\x04".to_vec()), 422),
        ("what is there already", upload(ID, &good(&event().to_string())), 200),
        (
            "the same key with another event and pictures",
            upload(ID, &good(&of(ID).to_string().replace("east", "west"))),
            200,
        ),
    ]
}

fn others() -> Vec<Case> {
    let reviews = format!("/api/v1/anomalies/{ID}/reviews");
    let judged = |body: Value| put_json("POST", &reviews, &body.to_string());
    let types = |items: Value| put_json("PUT", "/api/v1/defect-types", &json!({ "items": items }).to_string());
    let post_form = |path: &str, body: &[u8]| {
        let headers = ["Content-Type: application/x-www-form-urlencoded", "Origin: http://localhost"];
        request("POST", path, &headers, body)
    };
    vec![
        ("a decision that there is not", judged(json!({"decision": "'; DROP TABLE reviews;--"})), 422),
        ("a decision that is a number", judged(json!({"decision": 7})), 400),
        ("a comment of 2001 characters", judged(json!({"decision": "defect", "comment": "x".repeat(2001)})), 422),
        ("a defect type of 61 characters", judged(json!({"decision": "defect", "defect_type": "x".repeat(61)})), 422),
        ("a defect type of a false alarm", judged(json!({"decision": "false_alarm", "defect_type": "dent"})), 422),
        ("a review that is 10,000 deep", put_json("POST", &reviews, &"[".repeat(10_000)), 400),
        ("a review as a form", request("POST", &reviews, &["Content-Type: text/plain"], b"decision=defect"), 415),
        ("a review of 40 MB", put_json("POST", &reviews, &"x".repeat(40 << 20)), 413),
        (
            "a review of what is not there",
            put_json("POST", &format!("/api/v1/anomalies/{OTHER}/reviews"), "{\"decision\":\"defect\"}"),
            404,
        ),
        ("an undo of what nobody did", request("POST", &format!("{reviews}/undo"), &[], b""), 409),
        ("51 defect types", types(json!((0..51).map(|n| n.to_string()).collect::<Vec<_>>())), 422),
        ("a defect type twice", types(json!(["dent", "dent"])), 422),
        ("a defect type without letters", types(json!([""])), 422),
        ("a report of another line", report(|r| r["line"] = "west".into()), 422),
        ("a report of another schema", report(|r| r["schema"] = 2.into()), 422),
        ("a report with a threshold of 1e300", report(|r| r["threshold"] = 1e300.into()), 400),
        ("a report of 3 MB", report(|r| r["site"] = "x".repeat(3 << 20).into()), 413),
        ("a report with a site of 1001 characters", report(|r| r["site"] = "x".repeat(1001).into()), 422),
        ("a report with number 2^63", report(|r| r["seq"] = (1u64 << 63).into()), 400),
        ("a login of 100 kB", post_form("/login", &vec![b'a'; 100_000]), 413),
        (
            "a login as JSON",
            request("POST", "/login", &["Content-Type: application/json", "Origin: http://localhost"], b"{}"),
            415,
        ),
        ("a login without a password", post_form("/login", b"name=admin"), 422),
        ("a login on a server without accounts", post_form("/login", b"name=admin&password=admin"), 401),
        (
            "a login without Origin",
            request("POST", "/login", &["Content-Type: application/x-www-form-urlencoded"], b"name=a&password=b"),
            403,
        ),
        (
            "a guessed link to the first account",
            post_form("/welcome", b"key=guess&name=eve&password=0123456789ab&again=0123456789ab"),
            403,
        ),
    ]
}

/// What is kept, so that it can be seen to have stayed so.
fn kept(dir: &Path, to: SocketAddr) -> (Vec<String>, usize, usize) {
    let paths =
        ["/api/v1/anomalies", "/api/v1/lines", "/api/v1/defect-types", &format!("/api/v1/anomalies/{ID}/reviews")];
    let said = paths.map(|path| send(to, &get(path)).1.split_once("\r\n\r\n").unwrap().1.to_owned()).to_vec();
    let files = |folder: &str| {
        fn count(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
            entries.map(|p| if p.is_dir() { 1 + count(&p) } else { 1 }).sum()
        }
        count(&dir.join(folder))
    };
    (said, files("objects"), files("staging"))
}

#[test]
fn hostile_requests() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Limits::default());
    let to = server.local_addr();
    assert_eq!(send(to, &upload(ID, &good(&event().to_string()))).0, 201);
    let before = kept(dir.path(), to);
    assert_eq!((before.1, before.2), (4, 0), "a shelf, a folder, two pictures; nothing is being written");

    let cases: Vec<Case> = [paths_and_queries(), heads(), uploads(), others()].concat();
    assert!(cases.len() >= 60);
    let done = AtomicBool::new(false);
    let mut list = String::new();
    let mut wrong = Vec::new();
    let slowest = std::thread::scope(|s| {
        let good_client = s.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                assert_eq!(send(to, &get("/api/v1/anomalies")).0, 200);
                slowest = slowest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            slowest
        });
        for (what, bytes, wanted) in &cases {
            let (status, answer) = send(to, bytes);
            let mut said = detail(&answer).replace('|', "\\|").replace('\n', " ");
            if said.chars().count() > 110 {
                said = said.chars().take(110).collect::<String>() + " ...";
            }
            list += &format!("| {what} | {status} | {said} |\n");
            if status != *wanted {
                wrong.push(format!("{what}: {status} instead of {wanted}: {said}"));
            }
        }
        done.store(true, Ordering::Relaxed);
        good_client.join().unwrap()
    });
    println!("{list}\n{} requests; meanwhile a good client waited {slowest:?} at most", cases.len());
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(kept(dir.path(), to), before, "nothing was kept or changed");
    assert!(slowest < PROMPT, "{slowest:?}");

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = format!(
        "# Hostile requests to the review server\n\n\
         What a server without accounts on loopback answers. tests/review_abuse.rs sends all of it over TCP, checks each\n\
         status, and that afterwards nothing was kept and meanwhile a good client was answered. This page is written by\n\
         `LINESIGHT_UPDATE=1 cargo test --test review_abuse`.\n\n\
         | sent | status | detail |\n|---|---|---|\n{list}"
    );
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("review-abuse.md"), &page).unwrap();
    if std::env::var_os("LINESIGHT_UPDATE").is_some() {
        std::fs::write(root.join(LIST), &page).unwrap();
    }
    let found = std::fs::read_to_string(root.join(LIST)).unwrap_or_default();
    assert!(found == page, "{LIST} is old: run this test with LINESIGHT_UPDATE=1");
}

#[test]
fn markup_is_text_on_every_page() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Limits::default());
    let to = server.local_addr();
    let evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>";
    let mut hostile = event();
    for key in ["site", "line", "camera", "device", "precision", "lot", "serial"] {
        hostile[key] = evil.into();
    }
    hostile["reasons"] = json!([evil]);
    hostile["model"] = json!({"name": evil, "version": evil, "sha256": evil});
    hostile["unknown"] = json!({ evil: evil });
    assert_eq!(send(to, &upload(ID, &good(&hostile.to_string()))).0, 201);
    let review = json!({"decision": "defect", "defect_type": evil, "comment": evil}).to_string();
    assert_eq!(send(to, &put_json("POST", &format!("/api/v1/anomalies/{ID}/reviews"), &review)).0, 201);
    let types = json!({ "items": [evil] }).to_string();
    assert_eq!(send(to, &put_json("PUT", "/api/v1/defect-types", &types)).0, 200);
    let encoded: String = url::form_urlencoded::byte_serialize(evil.as_bytes()).collect();
    let pages = ["/", "/lines", "/admin", "/admin/audit", "/account", "/nowhere", &format!("/anomalies/{ID}")];
    let asked = pages.iter().map(|p| (*p).to_owned()).chain([format!("/?line={encoded}"), format!("/{encoded}")]);
    for path in asked {
        let (status, answer) = send(to, &get(&path));
        assert!(status == 200 || status == 404, "{path}: {status}");
        assert!(!answer.contains("<script>alert") && !answer.contains("<img src=x"), "{path}: {answer}");
        assert!(answer.contains("content-security-policy: default-src 'none'"), "{path}");
    }
}

#[test]
fn slow_heads_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Limits { head_time: Duration::from_secs(1), ..Limits::default() });
    let to = server.local_addr();
    let mut slow: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(to).unwrap()).collect();
    let began = Instant::now();
    let mut open = slow.len();
    while open > 0 {
        assert!(began.elapsed() < DEADLINE, "{open} are still open");
        for stream in &mut slow {
            let _ = stream.write_all(b"G"); // a byte now and then
        }
        let asked = Instant::now();
        assert_eq!(send(to, &get("/healthz")).0, 200);
        assert!(asked.elapsed() < PROMPT);
        std::thread::sleep(Duration::from_millis(100));
        slow.retain_mut(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut byte = [0];
            matches!(stream.read(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
        });
        open = slow.len();
    }
    assert!(began.elapsed() >= Duration::from_millis(900), "not before their time");
}

#[test]
fn slow_bodies_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Limits::default());
    let mut slow = TcpStream::connect(server.local_addr()).unwrap();
    write!(
        slow,
        "PUT /api/v1/defect-types HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    .unwrap();
    let began = Instant::now();
    slow.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answer = [0; 12];
    let read = loop {
        assert!(began.elapsed() < 2 * gate::BODY_TIME, "it may go on for ever");
        let _ = slow.write_all(b" ");
        match slow.read(&mut answer) {
            Ok(read) => break read,
            Err(_) => continue,
        }
    };
    assert!(began.elapsed() >= gate::BODY_TIME - Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(read == 0 || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
}

#[test]
fn one_address_cannot_take_all_connections() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Limits { per_address: 10, ..Limits::default() });
    let to = server.local_addr();
    // each has been answered once, so that it is known to have its place
    let hold = || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let read = stream.read(&mut [0; 1000]).unwrap_or(0);
        (stream, read > 0)
    };
    let held: Vec<_> = (0..10).map(|_| hold()).collect();
    assert!(held.iter().all(|(_, answered)| *answered));
    assert!(!hold().1, "one more is closed");
    drop(held);
    let began = Instant::now();
    while !hold().1 {
        assert!(began.elapsed() < DEADLINE, "places are not given back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_sender_cannot_upload_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let number = |n| NonZeroU32::new(n).unwrap();
    let server = start(dir.path(), Limits { upload_rate: number(1), upload_burst: number(5), ..Limits::default() });
    let accounts = SqliteAccounts::open(dir.path()).unwrap();
    let by = Actor::command_line();
    accounts.add(&by, "ann", Role::Admin, "nobody's").unwrap();
    let bearer = ["fast", "good"].map(|name| {
        accounts.add_token(&by, name, Scope::Upload, &secret::digest(name), None).unwrap();
        format!("Authorization: Bearer {name}")
    });
    let to = server.local_addr();
    let post = |n: u128, bearer: &str| {
        let id = uuid::Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + n).to_string();
        let headers = [FORM, &format!("Idempotency-Key: {id}"), bearer];
        send(to, &request("POST", "/api/v1/anomalies", &headers, &multipart(&good(&of(&id).to_string()))))
    };
    let began = Instant::now();
    let answers: Vec<_> = (0..20).map(|n| post(n, &bearer[0])).collect();
    let taken = answers.iter().filter(|(status, _)| *status == 201).count();
    assert!((5..=5 + 1 + began.elapsed().as_secs() as usize).contains(&taken), "{taken} of 20");
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 201).collect();
    assert!(
        refused.iter().all(|(status, answer)| *status == 429 && answer.contains("retry-after: 1\r\n")),
        "{refused:?}"
    );
    assert_eq!(post(100, &bearer[1]).0, 201, "another sender has a rate of its own");
}
