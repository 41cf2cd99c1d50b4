//! The review pages over real HTTP, without scripts, and the stream of changes. What a browser does with them is in tests/ui.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use std::io::{BufRead, BufReader, Cursor};
use std::path::Path;
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use linesight::review::live::STREAMS;
use linesight::review::{Config, GRACE, Server};
use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{Client, Response};
use reqwest::header::LOCATION;
use serde_json::{Value, json};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(60);

fn start(dir: &Path) -> Server {
    Server::start(Config::new(dir, "127.0.0.1:0".parse().unwrap())).unwrap()
}

fn client() -> Client {
    Client::builder().timeout(DEADLINE).redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + n)
}

/// Anomaly n of a line, captured n seconds after a minute began.
fn upload(client: &Client, url: &str, n: u128, line: &str) {
    let event = json!({
        "schema": 1, "id": id(n), "site": "plant", "line": line, "camera": "c", "part": n, "frame": n,
        "captured_at": format!("2030-01-02T03:04:{n:02}Z"), "score": 3.5, "confidence": 0.9, "threshold": 1.25,
        "verdict": "reject", "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32",
        "image": {"width": 32, "height": 24}, "part_box": {"x": 4, "y": 4, "w": 16, "h": 16}
    });
    let encode = |image: DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let part = |bytes: Vec<u8>, mime| Part::bytes(bytes).mime_str(mime).unwrap();
    let form = Form::new()
        .part("event", part(event.to_string().into_bytes(), "application/json"))
        .part("frame", part(encode(RgbImage::new(32, 24).into(), ImageFormat::Jpeg), "image/jpeg"))
        .part("heatmap", part(encode(RgbaImage::new(8, 6).into(), ImageFormat::Png), "image/png"));
    let post = client.post(format!("{url}/api/v1/anomalies")).header("idempotency-key", id(n).to_string());
    assert_eq!(post.multipart(form).send().unwrap().status(), 201);
}

fn post(client: &Client, url: &str, path: &str, form: &[(&str, &str)]) -> Response {
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(form);
    let post = client.post(format!("{url}{path}")).header("content-type", "application/x-www-form-urlencoded");
    post.body(body.finish()).send().unwrap()
}

fn leads_to(answer: &Response) -> String {
    assert_eq!(answer.status(), 303);
    answer.headers()[LOCATION].to_str().unwrap().to_owned()
}

fn review(client: &Client, url: &str, n: u128) -> Value {
    let path = format!("{url}/api/v1/anomalies/{}", id(n));
    client.get(path).send().unwrap().json::<Value>().unwrap()["review"].clone()
}

#[test]
fn decisions_can_be_made_without_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let (client, url) = (client(), server.url());
    upload(&client, &url, 1, "a");
    let path = format!("/anomalies/{}", id(1));
    let types = "scratch\r\n\r\n dent \r\n";
    let answer = post(&client, &url, "/insights/defect-types", &[("names", types)]);
    assert_eq!(leads_to(&answer), "/insights#types");
    let page = client.get(format!("{url}{path}")).send().unwrap().text().unwrap();
    assert!(page.contains(&format!("action=\"{path}/review\"")), "{page}");
    assert!(page.contains("value=\"dent\""), "{page}");

    let answer = post(&client, &url, &format!("{path}/review"), &[("defect_type", "dent"), ("comment", "at the edge")]);
    assert_eq!(leads_to(&answer), "/", "none is left");
    let held = review(&client, &url, 1);
    let said = ["decision", "defect_type", "comment", "reviewer"].map(|name| held[name].clone());
    assert_eq!(said, ["defect", "dent", "at the edge", "local"].map(|text| json!(text)));
    assert_eq!(leads_to(&post(&client, &url, &format!("{path}/undo"), &[])), path);
    assert_eq!(review(&client, &url, 1), Value::Null);

    for (form, status) in
        [(&[][..], 422), (&[("decision", "fine")], 422), (&[("decision", "unclear"), ("defect_type", "dent")], 422)]
    {
        let answer = post(&client, &url, &format!("{path}/review"), form);
        assert_eq!(answer.status(), status, "{form:?}");
        assert!(answer.text().unwrap().contains("To the queue"), "a page, not a problem document");
    }
    assert_eq!(post(&client, &url, &format!("/anomalies/{}/review", id(9)), &[("decision", "defect")]).status(), 404);
    assert_eq!(post(&client, &url, "/insights/defect-types", &[("names", "a\na")]).status(), 422);
    assert_eq!(review(&client, &url, 1), Value::Null, "nothing of it was taken");
}

#[test]
fn a_decision_leads_to_the_next_to_be_reviewed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let (client, url) = (client(), server.url());
    for n in 1..=4 {
        upload(&client, &url, n, if n == 2 { "b" } else { "a" });
    }
    let decide = |n: u128, query: &str| {
        let path = format!("/anomalies/{}/review{query}", id(n));
        leads_to(&post(&client, &url, &path, &[("decision", "defect")]))
    };
    let item = |n: u128, query: &str| format!("/anomalies/{}{query}", id(n));
    // of line a there are 4, 3 and 1, the newest first; where the end is reached it goes on from the start
    assert_eq!(decide(3, "?line=a"), item(1, "?line=a"));
    assert_eq!(decide(1, "?line=a"), item(4, "?line=a"));
    assert_eq!(decide(4, "?line=a"), "/?line=a", "no other of the line is left");
    assert_eq!(decide(1, ""), item(2, ""), "deciding again leads on, too");
    // who looks through what was reviewed stays there
    assert_eq!(decide(4, "?reviewed=yes"), item(3, "?reviewed=yes"));
}

/// Opens the stream, and reads until it says that it listens.
fn listen(url: &str) -> BufReader<Response> {
    let answer = client().get(format!("{url}/api/v1/live")).send().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut lines = BufReader::new(answer);
    assert_eq!(event(&mut lines).unwrap().0, "hello");
    lines
}

/// The next event: its name and data. `None` at the end.
fn event(lines: &mut BufReader<Response>) -> Option<(String, Value)> {
    let (mut name, mut data) = (String::new(), Value::Null);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some(("event", text)) => name = text.into(),
            Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
            None if !name.is_empty() => return Some((name, data)),
            _ => {}
        }
    }
}

#[test]
fn open_pages_are_told_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let (client, url) = (client(), server.url());
    let mut lines = listen(&url);
    upload(&client, &url, 1, "<b>");
    assert_eq!(event(&mut lines), Some(("anomaly".into(), json!({"id": id(1), "line": "<b>"}))));
    post(&client, &url, &format!("/anomalies/{}/review", id(1)), &[("decision", "defect")]);
    assert_eq!(event(&mut lines), Some(("review".into(), json!({"id": id(1)}))));
    post(&client, &url, &format!("/anomalies/{}/undo", id(1)), &[]);
    assert_eq!(event(&mut lines), Some(("review".into(), json!({"id": id(1)}))));
}

#[test]
fn streams_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let url = server.url();
    let mut streams: Vec<_> = (0..STREAMS).map(|_| listen(&url)).collect();
    let full = client().get(format!("{url}/api/v1/live")).send().unwrap();
    assert_eq!(full.status(), 503);
    assert_eq!(full.headers()["retry-after"], "60");
    streams.pop();
    // the server notices that one went when it writes to it
    let began = Instant::now();
    while client().get(format!("{url}/api/v1/live")).send().unwrap().status() != 200 {
        assert!(began.elapsed() < DEADLINE, "a place that was given back is not given out");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_stream_ends_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let mut lines = listen(&server.url());
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < GRACE, "the stop did not wait for the stream");
    assert_eq!(event(&mut lines), None);
}
