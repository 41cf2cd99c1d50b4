//! The review server under load, as a process of its own: fifty uploads a second while four people page through the queue, open
//! anomalies and judge them. Prints what each of them waited for, and checks that whatever was acknowledged is there.
//!
//! Short here; a minute with `LINESIGHT_FAULT=full`, where an optimised build must also keep its promise of latency:
//! `LINESIGHT_FAULT=full cargo test --release --test review_load -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Cursor};
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use reqwest::blocking::Client;
use reqwest::blocking::multipart::{Form, Part};
use serde_json::{Value, json};
use support::{folder, program};
use uuid::Uuid;

/// Uploads a second.
const RATE: u32 = 50;
/// Connections that upload: as many lines.
const LINES: u32 = 8;
const REVIEWERS: usize = 4;
/// Between two things that a person does.
const THINKING: Duration = Duration::from_millis(150);
/// What pages may take, of a hundred the slowest but one.
const PROMISED: Duration = Duration::from_millis(200);

fn bytes(image: impl Into<image::DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// Frame, heatmap and normal picture, about as large as those of a camera of 1280x720.
fn pictures(seed: u32) -> [Vec<u8>; 3] {
    let noise = |x: u32, y: u32| {
        let mut v = (x * 0x9E37 + y * 0x85EB + seed * 0xC2B2).wrapping_mul(0x27D4_EB2F);
        v ^= v >> 15;
        (v % 26) as u8
    };
    let shade =
        |x: u32, y: u32| Rgb([(x / 8 % 200) as u8 + noise(x, y), (y / 4 % 200) as u8 + noise(y, x), 90 + seed as u8]);
    let frame = RgbImage::from_fn(1280, 720, shade);
    let heat = RgbaImage::from_fn(320, 180, |x, y| {
        let d = (x as i32 - 160).pow(2) + (y as i32 - 90).pow(2);
        Rgba([255, 200, 0, (190 - d.min(190)) as u8])
    });
    let normal = RgbImage::from_fn(256, 256, shade);
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 75).encode_image(&frame).unwrap();
    [jpeg, bytes(heat, ImageFormat::Png), bytes(normal, ImageFormat::Jpeg)]
}

fn form(id: Uuid, line: u32, part: u32, pictures: &[Vec<u8>; 3]) -> Form {
    let event = json!({
        "schema": 1, "id": id, "site": "plant", "line": format!("line-{line}"), "camera": "v4l2:/dev/video0", "part": part,
        "frame": part * 3, "captured_at": jiff::Timestamp::now(), "score": 3.5, "confidence": 0.9 + f64::from(part % 100) / 1000.0,
        "threshold": 1.25, "verdict": "reject", "reasons": ["score above threshold"],
        "regions": [{"x": 600, "y": 320, "w": 80, "h": 80, "score": 3.5}],
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "int8",
        "image": {"width": 1280, "height": 720}, "part_box": {"x": 480, "y": 200, "w": 320, "h": 320}
    });
    let part = |bytes: &[u8], mime| Part::bytes(bytes.to_vec()).mime_str(mime).unwrap();
    Form::new()
        .part("event", part(event.to_string().as_bytes(), "application/json"))
        .part("frame", part(&pictures[0], "image/jpeg"))
        .part("heatmap", part(&pictures[1], "image/png"))
        .part("normal", part(&pictures[2], "image/jpeg"))
}

/// The real program, killed when the test ends.
struct Program {
    child: Child,
    url: String,
}

impl Program {
    fn start(dir: &std::path::Path) -> Program {
        let mut command = program();
        command.args(["review", "--listen", "127.0.0.1:0", "--data"]).arg(dir).stderr(std::process::Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("http://"))).unwrap().unwrap();
        let url = line.split_whitespace().find(|w| w.starts_with("http://")).unwrap().trim_end_matches('/').to_owned();
        Program { child, url }
    }
    /// Resident memory in MB: now, and at most so far.
    fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let of = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
        };
        (of("VmRSS"), of("VmHWM"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Times by what was waited for.
#[derive(Default)]
struct Waited(Mutex<BTreeMap<&'static str, Vec<Duration>>>);

impl Waited {
    fn add(&self, what: &'static str, time: Duration) {
        self.0.lock().unwrap().entry(what).or_default().push(time);
    }
    /// p50, p99 and the longest.
    fn figures(&self) -> BTreeMap<&'static str, (usize, [Duration; 3])> {
        let mut all = self.0.lock().unwrap();
        let figures = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
            (times.len(), [at(0.5), at(0.99), at(1.0)])
        };
        all.iter_mut().map(|(what, times)| (*what, figures(times))).collect()
    }
}

fn client() -> Client {
    Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

#[test]
fn fifty_uploads_a_second_while_people_review() {
    let full = std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full");
    let time = Duration::from_secs(if full { 60 } else { 5 });
    let dir = folder();
    let server = Program::start(&dir.path().join("data"));
    let kinds: Vec<[Vec<u8>; 3]> = (0..4).map(pictures).collect();
    let size: usize = kinds[0].iter().map(Vec::len).sum();
    let waited = Waited::default();
    let acknowledged: Mutex<BTreeMap<Uuid, usize>> = Mutex::default();
    let (next, reviews, stop) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    let uploads = RATE * time.as_secs() as u32;
    let start = Instant::now();

    std::thread::scope(|scope| {
        let lines: Vec<_> = (0..LINES)
            .map(|line| {
                let (server, kinds, waited, acknowledged, next) = (&server, &kinds, &waited, &acknowledged, &next);
                scope.spawn(move || {
                    let client = client();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= uploads {
                            return;
                        }
                        // by the clock, not after the answer before: one that is slow does not make the others rarer
                        let due = start + Duration::from_secs(1) * n / RATE;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        let (id, kind) = (Uuid::now_v7(), n as usize % kinds.len());
                        let post = client.post(format!("{}/api/v1/anomalies", server.url));
                        let answer = post
                            .header("idempotency-key", id.to_string())
                            .multipart(form(id, line, n, &kinds[kind]))
                            .send();
                        assert_eq!(answer.unwrap().status(), 201);
                        waited.add("upload", due.elapsed());
                        acknowledged.lock().unwrap().insert(id, kind);
                    }
                })
            })
            .collect();
        for reviewer in 0..REVIEWERS {
            let (server, waited, reviews, stop) = (&server, &waited, &reviews, &stop);
            scope.spawn(move || {
                let client = client();
                let get = |what: &'static str, path: &str| {
                    let begun = Instant::now();
                    let answer = client.get(format!("{}{path}", server.url)).send().unwrap();
                    assert_eq!(answer.status(), 200, "{path}");
                    let body = answer.bytes().unwrap();
                    waited.add(what, begun.elapsed());
                    std::thread::sleep(THINKING);
                    body
                };
                let mut cursor = String::new();
                while !stop.load(Ordering::Relaxed) {
                    get("queue page", &format!("/?reviewed=no&cursor={cursor}"));
                    let list = get("list", &format!("/api/v1/anomalies?reviewed=no&limit=24&cursor={cursor}"));
                    let list: Value = serde_json::from_slice(&list).unwrap();
                    let items = list["items"].as_array().unwrap();
                    cursor = list["next"].as_str().unwrap_or_default().to_owned();
                    let Some(item) = items.get(reviewer * 5 % items.len().max(1)) else { continue };
                    let id = item["id"].as_str().unwrap();
                    get("item page", &format!("/anomalies/{id}"));
                    get("card", &format!("/api/v1/anomalies/{id}/card.jpg"));
                    get("frame", &format!("/api/v1/anomalies/{id}/frame.jpg"));
                    let begun = Instant::now();
                    let decision = if reviewer % 2 == 0 { "defect" } else { "false-alarm" };
                    let post = client.post(format!("{}/api/v1/anomalies/{id}/reviews", server.url));
                    let answer = post.json(&json!({ "decision": decision })).send().unwrap();
                    assert_eq!(answer.status(), 201);
                    waited.add("review", begun.elapsed());
                    reviews.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(THINKING);
                }
            });
        }
        let done = lines.into_iter().map(|line| line.join()).collect::<Vec<_>>();
        stop.store(true, Ordering::Relaxed);
        assert!(done.iter().all(Result::is_ok), "every upload was acknowledged");
    });
    let (took, (rss, most)) = (start.elapsed(), server.memory());

    // what was acknowledged is in the list, and its pictures are what was sent
    let acknowledged = acknowledged.into_inner().unwrap();
    let (client, mut there, mut cursor) = (client(), BTreeSet::new(), String::new());
    loop {
        let page = client.get(format!("{}/api/v1/anomalies?limit=200&cursor={cursor}", server.url)).send().unwrap();
        let page: Value = page.json().unwrap();
        there.extend(
            page["items"].as_array().unwrap().iter().map(|i| Uuid::try_parse(i["id"].as_str().unwrap()).unwrap()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    let lost = acknowledged.keys().filter(|id| !there.contains(id)).count();
    let wrong = AtomicU32::new(0);
    let todo = Mutex::new(acknowledged.iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some((id, kind)) = todo.lock().unwrap().next() else { return };
                    for (name, wanted) in ["frame.jpg", "heatmap.png", "normal.jpg"].iter().zip(&kinds[*kind]) {
                        let answer = client.get(format!("{}/api/v1/anomalies/{id}/{name}", server.url)).send().unwrap();
                        if answer.bytes().unwrap() != wanted.as_slice() {
                            wrong.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner();

    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!(
        "{build}: {uploads} uploads of {} KB in {took:.1?} ({:.1}/s), {} reviews, lost {lost}, wrong pictures {wrong}, \
         memory of the server {rss} MB (at most {most} MB)",
        size >> 10,
        f64::from(uploads) / took.as_secs_f64(),
        reviews.into_inner(),
    );
    let figures = waited.figures();
    for (what, (count, [p50, p99, longest])) in &figures {
        println!("  {what:<10} {count:>5} times, p50 {p50:>9.1?}, p99 {p99:>9.1?}, longest {longest:>9.1?}");
    }
    assert_eq!((acknowledged.len(), lost, wrong), (uploads as usize, 0, 0));
    assert!(figures.contains_key("item page") && figures.contains_key("review"), "people worked meanwhile");
    if full && !cfg!(debug_assertions) {
        for what in ["queue page", "item page", "list"] {
            assert!(figures[what].1[1] < PROMISED, "{what} p99 {:?}", figures[what].1[1]);
        }
        assert!(took < time + Duration::from_secs(2), "the rate was kept: {took:?}");
    }
}
