//! The review server's API over real HTTP: its description, ETags, ranges, compression, refusals, statistics.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use image::{ImageFormat, RgbImage, RgbaImage};
use linesight::review::{Config, Server, api};
use reqwest::Method;
use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use uuid::Uuid;

const DESCRIPTION: &str = "docs/api/openapi.yaml";

fn start(dir: &Path) -> Server {
    Server::start(Config::new(dir, "127.0.0.1:0".parse().unwrap())).unwrap()
}

fn client() -> Client {
    Client::builder().timeout(Duration::from_secs(30)).build().unwrap()
}

fn upload(client: &Client, url: &str, id: Uuid, part: u64) {
    let event = json!({
        "schema": 1, "id": id, "site": "plant", "line": "east", "camera": "file:run.mp4", "part": part, "frame": 90,
        "captured_at": format!("2030-01-02T03:04:{:02}Z", part % 60), "score": 3.5, "confidence": 0.9995,
        "threshold": 1.25, "verdict": "reject", "reasons": ["score above threshold"],
        "regions": [{"x": 1, "y": 2, "w": 3, "h": 4, "score": 3.5}],
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32",
        "image": {"width": 32, "height": 24}
    });
    let picture = |png: bool| {
        let mut bytes = Cursor::new(Vec::new());
        if png {
            RgbaImage::new(16, 12).write_to(&mut bytes, ImageFormat::Png).unwrap();
        } else {
            RgbImage::new(32, 24).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        }
        bytes.into_inner()
    };
    let part = |bytes: Vec<u8>, mime| Part::bytes(bytes).mime_str(mime).unwrap();
    let form = Form::new()
        .part("event", part(event.to_string().into_bytes(), "application/json"))
        .part("frame", part(picture(false), "image/jpeg"))
        .part("heatmap", part(picture(true), "image/png"));
    let sent = client.post(format!("{url}/api/v1/anomalies")).header("idempotency-key", id.to_string()).multipart(form);
    assert_eq!(sent.send().unwrap().status(), 201);
}

fn problem(answer: Response, status: u16) -> String {
    assert_eq!(answer.status().as_u16(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().unwrap();
    assert_eq!(problem["status"], status);
    problem["detail"].as_str().unwrap().to_owned()
}

#[test]
fn the_committed_description_is_this_one() {
    let ours = api::description().to_yaml().unwrap();
    if std::env::var_os("LINESIGHT_UPDATE").is_some() {
        std::fs::write(DESCRIPTION, &ours).unwrap();
    }
    let committed = std::fs::read_to_string(DESCRIPTION).unwrap_or_default();
    assert!(
        ours == committed,
        "{DESCRIPTION} is not what the server serves: renew it with LINESIGHT_UPDATE=1 cargo test --test review_api \
         the_committed_description_is_this_one, and look at what changed"
    );
}

#[test]
fn the_description_is_served_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let served: Value = client.get(server.url() + "/api/v1/openapi.json").send().unwrap().json().unwrap();
    assert_eq!(served, serde_json::to_value(api::description()).unwrap());
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"));
    let page = client.get(server.url() + "/api/v1/docs").send().unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let page = page.text().unwrap();
    for (path, item) in served["paths"].as_object().unwrap() {
        assert!(page.contains(path), "{path} is not on the page");
        for method in item.as_object().unwrap().keys() {
            assert!(page.contains(&format!("<b>{}</b> <code>{path}</code>", method.to_uppercase())), "{method} {path}");
        }
    }
    assert!(!page.contains("<script>") && !page.contains("style=\""), "nothing inline");
    // whatever is described is there
    for (path, item) in served["paths"].as_object().unwrap() {
        let path = path.replace("{id}", &Uuid::nil().to_string()).replace("{file}", "frame.jpg").replace("{line}", "x");
        let path = path.replace("{format}", "csv");
        for method in item.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = client.request(method.clone(), server.url() + &path).send().unwrap();
            assert_ne!(answer.status(), 405, "{method} {path}");
            if answer.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream") {
                continue; // it has no end
            }
            assert!(!answer.text().unwrap().contains("there is no such resource"), "{method} {path}");
        }
    }
}

#[test]
fn lists_and_items_have_etags() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let id = Uuid::now_v7();
    upload(&client, &server.url(), id, 1);
    let list = format!("{}/api/v1/anomalies", server.url());
    let paths = [
        list.clone(),
        format!("{list}/{id}"),
        format!("{list}/{id}/reviews"),
        format!("{}/api/v1/stats", server.url()),
        format!("{}/api/v1/stats/what-if?line=east", server.url()),
    ];
    let tag = |path: &String| client.get(path).send().unwrap().headers()["etag"].to_str().unwrap().to_owned();
    let before: Vec<String> = paths.iter().map(tag).collect();
    for (path, etag) in paths.iter().zip(&before) {
        let again = client.get(path).header("if-none-match", etag).send().unwrap();
        assert_eq!(again.status(), 304, "{path}");
        assert_eq!(again.headers()["etag"], etag.as_str());
        assert_eq!(again.bytes().unwrap().len(), 0);
    }
    let review = client.post(format!("{list}/{id}/reviews")).json(&json!({"decision": "defect"})).send().unwrap();
    assert_eq!(review.status(), 201);
    for (path, etag) in paths.iter().zip(&before) {
        let again = client.get(path).header("if-none-match", etag).send().unwrap();
        assert_eq!(again.status(), 200, "{path} has changed");
    }
}

#[test]
fn pictures_come_in_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let id = Uuid::now_v7();
    upload(&client, &server.url(), id, 1);
    let url = format!("{}/api/v1/anomalies/{id}/frame.jpg", server.url());
    let whole = client.get(&url).send().unwrap();
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    let whole = whole.bytes().unwrap();
    let part = client.get(&url).header("range", "bytes=2-9").send().unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 2-9/{}", whole.len()));
    assert_eq!(part.bytes().unwrap(), whole.slice(2..10));
    let beyond = client.get(&url).header("range", "bytes=999999-").send().unwrap();
    assert_eq!(beyond.headers()["content-range"], format!("bytes */{}", whole.len()));
    assert_eq!(problem(beyond, 416), format!("the picture has {} bytes", whole.len()));
}

#[test]
fn text_is_compressed_and_pictures_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let id = Uuid::now_v7();
    upload(&client, &server.url(), id, 1);
    (2..6).for_each(|part| upload(&client, &server.url(), Uuid::now_v7(), part));
    let encoding = |path: &str| {
        let answer = client.get(server.url() + path).header("accept-encoding", "gzip").send().unwrap();
        answer.headers().get("content-encoding").map(|v| v.to_str().unwrap().to_owned())
    };
    assert_eq!(encoding("/api/v1/anomalies").as_deref(), Some("gzip"));
    assert_eq!(encoding("/api/v1/openapi.json").as_deref(), Some("gzip"));
    assert_eq!(encoding(&format!("/api/v1/anomalies/{id}/frame.jpg")), None);
    assert_eq!(encoding("/healthz"), None, "too small to be worth it");
}

#[test]
fn hostile_paths_get_problems() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let url = server.url();
    let get = |path: &str| client.get(format!("{url}{path}")).send().unwrap();
    for path in ["/api/v1/anomalies/%ff", "/api/v1/anomalies/..%2f..%2fetc", "/api/v1/anomalies/%ff/frame.jpg"] {
        problem(get(path), 400);
    }
    problem(get("/api/v1/anomalies?line=a&line=b"), 400);
    problem(get("/api/v1/stats?since=yesterday"), 400);
    assert_eq!(problem(get("/api/v1/stats/what-if"), 400), "line is missing");
    problem(get("/api/v1/stats/what-if?line=x&threshold=inf"), 400);
    problem(get("/api/v1/stats/what-if?line=x"), 404);
    problem(get("/api/v2"), 404);
    let wrong = client.delete(format!("{url}/api/v1/anomalies")).send().unwrap();
    let allow = wrong.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    problem(wrong, 405);
    let reviews = format!("{url}/api/v1/anomalies/{}/reviews", Uuid::now_v7());
    let send =
        |body: &'static str, kind: &str| client.post(&reviews).header("content-type", kind).body(body).send().unwrap();
    problem(send("{}", "text/plain"), 415);
    problem(send("{", "application/json"), 400);
    problem(send("{}", "application/json"), 422);
    problem(send("{\"decision\":\"defect\"}", "application/json"), 404);
    let huge = format!("{{\"decision\":\"defect\",\"comment\":\"{}\"}}", "x".repeat(100_000));
    problem(client.post(&reviews).header("content-type", "application/json").body(huge).send().unwrap(), 413);
}

#[test]
fn statistics_follow_from_what_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::now_v7()).collect();
    for (n, id) in ids.iter().enumerate() {
        upload(&client, &server.url(), *id, n as u64);
    }
    for (id, decision) in ids.iter().zip(["defect", "defect", "false-alarm"]) {
        let url = format!("{}/api/v1/anomalies/{id}/reviews", server.url());
        client.post(url).json(&json!({"decision": decision})).send().unwrap().error_for_status().unwrap();
    }
    let get = |path: &str| -> Value {
        client.get(server.url() + path).send().unwrap().error_for_status().unwrap().json().unwrap()
    };
    let all = get("/api/v1/stats?line=east&model=m@1&since=2030-01-01T00:00:00Z&until=");
    assert_eq!((&all["anomalies"], &all["unreviewed"]), (&json!(4), &json!(1)));
    assert_eq!((&all["precision"]["hits"], &all["precision"]["of"]), (&json!(2), &json!(3)));
    assert_eq!(get("/api/v1/stats?line=west")["anomalies"], 0);
    let what_if = get("/api/v1/stats/what-if?line=east&threshold=4");
    assert_eq!((&what_if["current"]["rejects"], &what_if["proposed"]["rejects"]), (&json!(4), &json!(0)));
    assert_eq!(what_if["proposed"]["escapes"], 2);
    assert_eq!(what_if["current"]["threshold"], 1.25);
}
