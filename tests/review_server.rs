//! The review server over real HTTP: what it promises to uploaders and to browsers.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use linesight::review::{Config, Server, upload};
use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{Client, Response};
use reqwest::header::{HeaderMap, HeaderValue};
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

fn encode(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// One upload; the shade makes its pictures differ from others.
#[derive(Clone)]
struct Upload {
    event: Value,
    frame: Vec<u8>,
    heatmap: Vec<u8>,
    normal: Option<Vec<u8>>,
}

impl Upload {
    fn new(id: Uuid, captured_at: &str) -> Upload {
        let shade = id.as_bytes()[15];
        let jpeg = |c| encode(RgbImage::from_pixel(32, 24, Rgb([c, shade, 90])).into(), ImageFormat::Jpeg);
        Upload {
            event: json!({
                "schema": 1, "id": id, "site": "plant", "line": "line-1", "camera": "file:run.mp4", "part": 7,
                "frame": 90, "captured_at": captured_at, "spooled_s": 0.25, "score": 3.5, "confidence": 0.9995,
                "threshold": 1.25, "verdict": "reject", "reasons": ["score above threshold"],
                "regions": [{"x": 1, "y": 2, "w": 3, "h": 4, "score": 3.5}],
                "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32",
                "image": {"width": 32, "height": 24}, "part_box": {"x": 4, "y": 4, "w": 16, "h": 16},
                "a_field_from_the_future": {"z": 1, "a": 2}
            }),
            frame: jpeg(200),
            heatmap: encode(RgbaImage::from_pixel(16, 12, Rgba([255, 0, shade, 90])).into(), ImageFormat::Png),
            normal: Some(jpeg(10)),
        }
    }

    fn id(&self) -> String {
        self.event["id"].as_str().unwrap().to_string()
    }

    fn form(&self) -> Form {
        let part = |bytes: &[u8], mime| Part::bytes(bytes.to_vec()).mime_str(mime).unwrap();
        let mut form = Form::new()
            .part("event", part(self.event.to_string().as_bytes(), "application/json"))
            .part("frame", part(&self.frame, "image/jpeg").file_name("../../frame.jpg"))
            .part("heatmap", part(&self.heatmap, "image/png"));
        if let Some(normal) = &self.normal {
            form = form.part("normal", part(normal, "image/jpeg"));
        }
        form
    }

    fn send(&self, client: &Client, url: &str) -> reqwest::Result<Response> {
        let url = format!("{url}/api/v1/anomalies");
        client.post(url).header("idempotency-key", self.id()).multipart(self.form()).send()
    }
}

fn status_and_detail(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().unwrap();
    assert_eq!(problem["status"], status);
    (status, problem["detail"].as_str().unwrap().to_string())
}

fn list(client: &Client, url: &str, query: &str) -> Value {
    client.get(format!("{url}/api/v1/anomalies{query}")).send().unwrap().error_for_status().unwrap().json().unwrap()
}

fn assert_same(client: &Client, url: &str, upload: &Upload) {
    let path = format!("{url}/api/v1/anomalies/{}", upload.id());
    let item: Value = client.get(&path).send().unwrap().error_for_status().unwrap().json().unwrap();
    assert_eq!(item["event"], upload.event);
    let pictures = [
        ("frame.jpg", "image/jpeg", Some(&upload.frame)),
        ("heatmap.png", "image/png", Some(&upload.heatmap)),
        ("normal.jpg", "image/jpeg", upload.normal.as_ref()),
    ];
    for (name, kind, wanted) in pictures {
        let answer = client.get(format!("{path}/{name}")).send().unwrap();
        let Some(wanted) = wanted else {
            assert_eq!(answer.status(), 404);
            continue;
        };
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], kind);
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        assert!(answer.headers()["cache-control"].to_str().unwrap().contains("immutable"));
        let etag = answer.headers()["etag"].clone();
        assert!(answer.bytes().unwrap() == wanted.as_slice(), "{name} comes back byte-exact");
        let again = client.get(format!("{path}/{name}")).header("if-none-match", etag).send().unwrap();
        assert_eq!(again.status(), 304);
    }
}

#[test]
fn first_201_then_200_and_content_comes_back_byte_exact() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let first = Upload::new(Uuid::now_v7(), "2030-01-02T03:04:05.123456789Z");
    let answer = first.send(&client, &server.url()).unwrap();
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers()["location"], format!("/api/v1/anomalies/{}", first.id()));
    assert_same(&client, &server.url(), &first);

    let mut repeat = first.clone();
    repeat.event["spooled_s"] = json!(99.5);
    repeat.frame = encode(RgbImage::new(32, 24).into(), ImageFormat::Jpeg);
    repeat.normal = None;
    assert_eq!(repeat.send(&client, &server.url()).unwrap().status(), 200);
    assert_same(&client, &server.url(), &first);
    assert_eq!(list(&client, &server.url(), "")["items"].as_array().unwrap().len(), 1);

    let without = Upload { normal: None, ..Upload::new(Uuid::now_v7(), "2030-01-02T03:04:06Z") };
    assert_eq!(without.send(&client, &server.url()).unwrap().status(), 201);
    assert_same(&client, &server.url(), &without);

    // a restart keeps it all
    server.stop();
    let server = start(dir.path());
    assert_same(&client, &server.url(), &first);
    assert_same(&client, &server.url(), &without);
    assert_eq!(first.send(&client, &server.url()).unwrap().status(), 200);
}

#[test]
fn strangers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let mut upload = Upload::new(Uuid::now_v7(), "2030-01-02T03:04:05Z");
    upload.frame.resize(8 << 20, 0); // so long that the sender is still writing when it is refused
    let post = |headers: &[(&'static str, &str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let url = format!("{}/api/v1/anomalies", server.url());
        let request = client.post(url).header("idempotency-key", upload.id());
        request.headers(map).multipart(upload.form()).send().unwrap().status().as_u16()
    };
    assert_eq!(post(&[("host", "evil.example")]), 403);
    assert_eq!(post(&[("origin", "http://evil.example")]), 403);
    assert_eq!(post(&[("origin", "null")]), 403);
    let other_port = format!("http://127.0.0.1:{}", server.local_addr().port() ^ 1);
    assert_eq!(post(&[("origin", &other_port)]), 403);
    for path in ["/", "/healthz", "/api/v1/anomalies", "/nowhere"] {
        let answer = client.get(server.url() + path).header("host", "evil.example:8080").send().unwrap();
        assert_eq!(answer.status(), 403, "{path}");
    }
    assert_eq!(list(&client, &server.url(), "")["items"], json!([]), "nothing was kept");
    assert_eq!(post(&[("origin", &server.url())]), 201);
    let tunnel = client.get(server.url()).header("host", "localhost:9999").send().unwrap();
    assert_eq!(tunnel.status(), 200);
}

#[test]
fn broken_uploads_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let good = Upload::new(Uuid::now_v7(), "2030-01-02T03:04:05Z");
    let url = format!("{}/api/v1/anomalies", server.url());
    let post = || client.post(&url).header("idempotency-key", good.id());
    let raw = |body: &str| {
        let request = post().header("content-type", "multipart/form-data; boundary=B").body(body.to_string());
        status_and_detail(request.send().unwrap())
    };

    let truncated = "--B\r\nContent-Disposition: form-data; name=\"event\"\r\nContent-Type: application/json\r\n\r\n{}";
    for corrupt in ["", "garbage", "--B\r\n", truncated] {
        let (status, detail) = raw(corrupt);
        assert_eq!(status, 400, "{corrupt:?}: {detail}");
    }
    assert_eq!(raw("--B--\r\n"), (400, "field \"event\" is missing".into()));
    let no_type = "--B\r\nContent-Disposition: form-data; name=\"event\"\r\n\r\n{}\r\n--B--\r\n";
    assert_eq!(raw(no_type).0, 415);

    let twice = good.form().part("frame", Part::bytes(good.frame.clone()).mime_str("image/jpeg").unwrap());
    let answer = post().multipart(twice).send().unwrap();
    assert_eq!(status_and_detail(answer), (400, "field \"frame\" comes twice".into()));

    let swapped = Upload { frame: good.heatmap.clone(), ..good.clone() };
    let answer = swapped.send(&client, &server.url()).unwrap();
    assert_eq!(status_and_detail(answer), (422, "field \"frame\" is not a JPEG picture".into()));

    let answer = client.post(&url).multipart(good.form()).send().unwrap();
    let wanted = "header Idempotency-Key is missing, it must be the event's id";
    assert_eq!(status_and_detail(answer), (400, wanted.into()));
    let other = Uuid::now_v7().to_string();
    let answer = client.post(&url).header("idempotency-key", &other).multipart(good.form()).send().unwrap();
    let (status, detail) = status_and_detail(answer);
    assert_eq!(status, 422, "{detail}");
    let answer = post().json(&good.event).send().unwrap();
    assert_eq!(status_and_detail(answer), (415, "the request must be multipart/form-data".into()));

    let unknown = good.form().part("later", Part::bytes(vec![1; 100_000]));
    assert_eq!(list(&client, &server.url(), "")["items"], json!([]), "nothing was kept");
    assert_eq!(post().multipart(unknown).send().unwrap().status(), 201, "unknown fields are passed over");
}

#[test]
fn too_large() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let good = Upload::new(Uuid::now_v7(), "2030-01-02T03:04:05Z");
    let with = |bytes: usize| {
        let mut upload = good.clone();
        upload.frame.resize(bytes, 0);
        status_and_detail(upload.send(&client, &server.url()).unwrap())
    };
    let limit = upload::MAX_PICTURE;
    assert_eq!(with(limit + 1), (413, format!("field \"frame\" is larger than {limit} bytes")));
    let limit = upload::MAX_BODY;
    assert_eq!(with(limit + 1), (413, format!("the request is larger than {limit} bytes")));

    let mut wordy = good.clone();
    wordy.event["reasons"] = json!(["x".repeat(upload::MAX_EVENT)]);
    let answer = wordy.send(&client, &server.url()).unwrap();
    let limit = upload::MAX_EVENT;
    assert_eq!(status_and_detail(answer), (413, format!("field \"event\" is larger than {limit} bytes")));

    assert_eq!(list(&client, &server.url(), "")["items"], json!([]), "nothing was kept");
    assert_eq!(good.send(&client, &server.url()).unwrap().status(), 201);
}

/// Sends a request line as it is (clients would tidy the path) and gives the status.
fn raw_get(server: &Server, path: &str) -> u16 {
    let mut stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn bad_ids_and_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (start(dir.path()), client());
    let upload = Upload::new(Uuid::now_v7(), "2030-01-02T03:04:05Z");
    assert_eq!(upload.send(&client, &server.url()).unwrap().status(), 201);
    let id = upload.id();
    let table = [
        (format!("/api/v1/anomalies/{id}/frame.jpg"), 200),
        (format!("/api/v1/anomalies/{}", Uuid::nil()), 404),
        (format!("/api/v1/anomalies/{}/frame.jpg", Uuid::nil()), 404),
        ("/api/v1/anomalies/x".into(), 400),
        ("/api/v1/anomalies/..".into(), 400),
        ("/api/v1/anomalies/..%2f..%2freview.db".into(), 400),
        ("/api/v1/anomalies/%00".into(), 400),
        ("/api/v1/anomalies/%ff".into(), 400),
        ("/api/v1/anomalies/../../review.db".into(), 404),
        (format!("/api/v1/anomalies/{id}/..%2f..%2f..%2freview.db"), 404),
        (format!("/api/v1/anomalies/{id}/../frame.jpg"), 404),
        (format!("/api/v1/anomalies/{id}/review.db"), 404),
        (format!("/api/v1/anomalies/{id}/FRAME.JPG"), 404),
        ("/api/v1/nothing".into(), 404),
        ("/api/v1/anomalies?limit=0".into(), 400),
        ("/api/v1/anomalies?cursor=zz".into(), 400),
        ("/api/v1/anomalies?verdict=pass".into(), 400),
        ("/api/v1/anomalies?verdict=reject&verdict=unsure".into(), 400),
        (format!("/anomalies/{id}"), 200),
        ("/anomalies/x".into(), 404),
        (format!("/anomalies/{}", Uuid::nil()), 404),
        ("/?cursor=zz".into(), 400),
        ("/assets/../Cargo.toml".into(), 404),
        ("/assets/style.css".into(), 200),
    ];
    for (path, wanted) in table {
        assert_eq!(raw_get(&server, &path), wanted, "{path}");
    }
    let answer = client.delete(format!("{}/api/v1/anomalies/{id}", server.url())).send().unwrap();
    assert_eq!(status_and_detail(answer), (405, "this resource does not have that method".into()));
    let health: Value = client.get(server.url() + "/healthz").send().unwrap().json().unwrap();
    assert_eq!(health["status"], "ok");
}

#[test]
fn a_cursor_walks_over_every_item_once_while_new_ones_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let (server, url, client) = {
        let server = start(dir.path());
        let url = server.url();
        (server, url, client())
    };
    // two share each capture time
    let mut wanted: Vec<String> = Vec::new();
    for n in 0..14 {
        let mut upload = Upload::new(Uuid::now_v7(), &format!("2030-01-02T03:04:{:02}Z", n / 2));
        upload.event["line"] = json!(if n % 2 == 0 { "even" } else { "odd" });
        assert_eq!(upload.send(&client, &url).unwrap().status(), 201);
        wanted.push(upload.id());
    }
    wanted.reverse();

    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let upload = Upload::new(Uuid::now_v7(), "2031-01-01T00:00:00Z");
                assert_eq!(upload.send(&client, &url).unwrap().status(), 201);
            }
        });
        let mut seen: Vec<String> = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = list(&client, &url, &format!("?limit=3&cursor={cursor}"));
            seen.extend(page["items"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_string()));
            match page["next"].as_str() {
                Some(next) => cursor = next.to_string(),
                None => break,
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(seen[seen.len() - wanted.len()..], wanted);
    });

    let odd = list(&client, &url, "?line=odd");
    assert_eq!(odd["items"].as_array().unwrap().len(), 7);
    assert_eq!(list(&client, &url, "?line=odd&verdict=missed")["items"], json!([]));
    server.stop();
}

#[test]
fn a_stalled_upload_does_not_hold_up_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let idle = TcpStream::connect(server.local_addr()).unwrap();
    let mut stalled = TcpStream::connect(server.local_addr()).unwrap();
    let id = Uuid::now_v7();
    write!(
        stalled,
        "POST /api/v1/anomalies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\nIdempotency-Key: {id}\r\n\
         Content-Type: multipart/form-data; boundary=B\r\nExpect: 100-continue\r\n\r\n"
    )
    .unwrap();
    // the server has begun to read the body when it says so
    let mut answer = [0; 12];
    stalled.set_read_timeout(Some(DEADLINE)).unwrap();
    stalled.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < 2 * linesight::review::GRACE + Duration::from_secs(2), "{:?}", begun.elapsed());
    drop((idle, stalled));
    start(dir.path()).stop();
}

/// Not a test: the process that `acknowledged_anomalies_survive_kill_9` kills.
#[test]
#[ignore = "runs only as a child of another test"]
fn child_server() {
    let Some(dir) = std::env::var_os("LINESIGHT_TEST_DATA") else { return };
    let server = start(Path::new(&dir));
    println!("\nlistening {}", server.url());
    // until the parent kills this process, or is gone
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn acknowledged_anomalies_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let client = client();
    let mut acknowledged: Vec<Upload> = Vec::new();
    for round in 0..4_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_server", "--ignored", "--nocapture"])
            .env("LINESIGHT_TEST_DATA", dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.map_while(Result::ok).find_map(|l| l.strip_prefix("listening ").map(str::to_string)).unwrap();
        // three senders until the server dies under them; it dies when some uploads have been acknowledged
        let (sent, answers) = crossbeam_channel::bounded(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                let (sent, url, client) = (sent.clone(), url.clone(), client.clone());
                s.spawn(move || {
                    loop {
                        let upload = Upload::new(Uuid::now_v7(), "2030-01-02T03:04:05Z");
                        match upload.send(&client, &url) {
                            Ok(answer) if answer.status() == 201 => {
                                if sent.send(upload).is_err() {
                                    return;
                                }
                            }
                            _ => return,
                        }
                    }
                });
            }
            drop(sent);
            let mut left = 5 + 3 * round;
            for upload in answers.iter() {
                acknowledged.push(upload);
                left = left.saturating_sub(1);
                if left == 0 {
                    child.kill().unwrap(); // SIGKILL
                }
            }
        });
        child.wait().unwrap();
    }

    let server = start(dir.path());
    for upload in &acknowledged {
        assert_same(&client, &server.url(), upload);
    }
    // every row has its files, also those of uploads that were not acknowledged
    let mut cursor = String::new();
    let mut rows = 0;
    loop {
        let page = list(&client, &server.url(), &format!("?cursor={cursor}"));
        for item in page["items"].as_array().unwrap() {
            rows += 1;
            for picture in ["frame", "heatmap", "normal"] {
                let answer = client.get(server.url() + item["images"][picture].as_str().unwrap()).send().unwrap();
                assert_eq!(answer.status(), 200);
                let bytes = answer.bytes().unwrap();
                image::load_from_memory(&bytes).unwrap();
            }
        }
        match page["next"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => break,
        }
    }
    assert!(rows >= acknowledged.len());
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
}
