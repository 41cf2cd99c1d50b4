//! Targets of every kind against real servers, disks and links: TLS, tokens, proxies, bandwidth, webhooks, buckets, folders,
//! and several of them at once.

#![allow(clippy::unwrap_used)]

#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/front.rs"]
mod front;

use bad_server::{Act, Server};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bucket::Store;
use disk::Disk;
use front::{Authority, Front, Valid};
use linesight::deliver::{
    Anomaly, Bucket, Config, Credentials, Deliver, Endpoint, Folder, Kind, Limits, Order, Pictures, Record, Status,
    Target, Token, Webhook,
};
use linesight::event::{Event, LedgerRow, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);
/// Bytes of each picture.
const SIZE: usize = 5000;

fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

/// Pictures that nobody looks at, different for each part.
fn pictures(part: u64) -> Pictures {
    let fill = |salt: u64| (0..SIZE as u64).map(|i| (i * 31 + part * 7 + salt) as u8).collect::<Vec<u8>>();
    Pictures { frame_jpeg: fill(1), heatmap_png: fill(2), normal_jpeg: part.is_multiple_of(2).then(|| fill(3)) }
}

fn anomaly(part: u64) -> (String, Record) {
    let id = Uuid::now_v7();
    let row: LedgerRow = serde_json::from_value(json!({
        "line": "line", "part": part, "frame": part, "captured_at": "2026-02-03T04:05:06Z", "verdict": "reject",
        "score": 2.5, "confidence": 0.99, "latency_ms": 9.0, "model": "m@1",
    }))
    .unwrap();
    let event: Event = serde_json::from_value(json!({
        "schema": 1, "id": id, "site": "s", "line": "line", "camera": "c", "part": part, "frame": part,
        "captured_at": "2026-02-03T04:05:06Z", "score": 2.5, "confidence": 0.99, "threshold": 1.0, "verdict": "reject",
        "reasons": ["größer"], "regions": [], "model": {"name": "m", "version": "1", "sha256": "00"}, "device": "CPU",
        "precision": "f32", "image": {"width": 64, "height": 48},
    }))
    .unwrap();
    assert_eq!(row.verdict, Verdict::Reject);
    (id.to_string(), Record { row, anomaly: Some(Anomaly { event, pictures: Box::new(move || Ok(pictures(part))) }) })
}

/// Records anomalies; their ids, each with its part.
fn record(deliver: &Deliver, parts: std::ops::Range<u64>) -> BTreeMap<String, u64> {
    parts
        .map(|part| {
            let (id, record) = anomaly(part);
            deliver.record(record).unwrap();
            (id, part)
        })
        .collect()
}

fn quick() -> Limits {
    Limits {
        retry_first: Duration::from_millis(4),
        retry_slowest: Duration::from_millis(60),
        write_again: Duration::from_millis(20),
        reserve: 0,
        ..Limits::default()
    }
}

struct Bench(TempDir);

impl Bench {
    fn new() -> Bench {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn open(&self, targets: Vec<Target>) -> Deliver {
        self.open_with(targets, quick())
    }

    fn open_with(&self, targets: Vec<Target>, limits: Limits) -> Deliver {
        open(&self.path("spool.db"), targets, limits)
    }
}

fn open(database: &Path, targets: Vec<Target>, limits: Limits) -> Deliver {
    Deliver::open_with(Config { database: database.into(), run: Uuid::now_v7(), targets, audit: None }, limits).unwrap()
}

fn target(name: &str, kind: Kind) -> Target {
    Target { name: name.into(), kind, order: Order::default(), parallel: 2, bytes_per_s: None }
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(url.parse().unwrap())
}

fn webhook(url: &str) -> Kind {
    Kind::Webhook(Webhook { endpoint: endpoint(url), pictures: true, headers: Vec::new() })
}

fn folder(path: &Path) -> Kind {
    Kind::Folder(Folder { path: path.into(), mounted: false })
}

fn credentials(secret: &str) -> String {
    format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {secret}\n", bucket::KEY_ID)
}

fn s3(address: std::net::SocketAddr, credentials: &Path) -> Kind {
    Kind::Bucket(Bucket {
        endpoint: endpoint(&format!("http://{address}")),
        bucket: bucket::BUCKET.into(),
        prefix: "plant/a".into(),
        region: "us-east-1".into(),
        path_style: true,
        credentials: Credentials::File { path: credentials.into(), profile: "default".into() },
    })
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for an error of the only target that has all these pieces.
fn until_error(deliver: &Deliver, pieces: &[&str]) {
    let mut last = Status::default();
    let deadline = Instant::now() + LONG;
    while !last.last_error.as_ref().is_some_and(|why| pieces.iter().all(|piece| why.contains(piece))) {
        assert!(Instant::now() < deadline, "{pieces:?} is wanted: {last:?}");
        std::thread::sleep(Duration::from_millis(1));
        last = deliver.status();
    }
}

fn drained(deliver: Deliver, count: u64) {
    let drained = deliver.drain(LONG).unwrap();
    assert_eq!((drained.delivered, drained.waiting, drained.last_error), (count, 0, None));
}

/// All of them, each once.
fn arrived(server: &Server, ids: &BTreeMap<String, u64>) {
    let seen = server.seen();
    assert_eq!((seen.kept.keys().collect::<Vec<_>>(), seen.repeats), (ids.keys().collect(), 0));
}

/// The anomalies that lie in a folder, or in a bucket: the part of each by its id. Where there is an event.json, all is there.
fn laid(root: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let day = root.join("line/2026/02/03");
    for entry in std::fs::read_dir(day).into_iter().flatten() {
        let entry = entry.unwrap();
        let Ok(event) = std::fs::read(entry.path().join("event.json")) else { continue };
        let event: Event = serde_json::from_slice(&event).unwrap();
        let read = |name: &str| std::fs::read(entry.path().join(name)).ok();
        let expected = pictures(event.part);
        assert!(read("frame.jpg").as_ref() == Some(&expected.frame_jpeg), "part {}", event.part);
        assert!(read("heatmap.png").as_ref() == Some(&expected.heatmap_png), "part {}", event.part);
        assert!(read("normal.jpg") == expected.normal_jpeg, "part {}", event.part);
        let id = entry.file_name().into_string().unwrap();
        assert_eq!(event.id.to_string(), id);
        found.insert(id, event.part);
    }
    found
}

/// Each fault of TLS is refused with a remedy; nothing is lost, and all arrives once it is mended.
#[test]
fn tls_is_checked_and_says_what_to_do() {
    let (ours, other) = (Authority::new(), Authority::new());
    let name = ["localhost"];
    let good = ours.server(&name, Valid::Now, None);
    for (wrong, said) in [
        (other.server(&name, Valid::Now, None), "name the issuer's certificate with ca_file"),
        (ours.server(&["review.plant.example"], Valid::Now, None), "the endpoint's certificate is for another name"),
        (ours.server(&name, Valid::Past, None), "the endpoint's certificate has expired"),
        (ours.server(&name, Valid::Future, None), "the endpoint's certificate is not valid yet"),
    ] {
        let bench = Bench::new();
        let server = Server::start(|_| Act::Take);
        let front = Front::start(server.address);
        front.encrypt(wrong);
        let url = format!("https://localhost:{}", front.address.port());
        let with = Endpoint { ca_file: Some(ours.write(&bench.path("ca.pem"))), ..endpoint(&url) };
        let deliver = bench.open(vec![Target::review(with)]);
        let ids = record(&deliver, 0..3);
        until_error(&deliver, &[said]);
        assert_eq!((deliver.status().delivered, server.seen().requests.len()), (0, 0), "{said}");
        front.encrypt(good.clone());
        drained(deliver, 3);
        arrived(&server, &ids);
    }
}

/// Without a ca_file the system's authorities count, and ours is none of them.
#[test]
fn an_unknown_authority_is_mended_by_its_file() {
    let ours = Authority::new();
    let bench = Bench::new();
    let server = Server::start(|_| Act::Take);
    let front = Front::start(server.address);
    front.encrypt(ours.server(&["localhost"], Valid::Now, None));
    let url = format!("https://localhost:{}", front.address.port());
    let deliver = bench.open(vec![Target::review(endpoint(&url))]);
    let ids = record(&deliver, 0..3);
    until_error(&deliver, &["not trusted here", "ca_file"]);
    drop(deliver);
    let with = Endpoint { ca_file: Some(ours.write(&bench.path("ca.pem"))), ..endpoint(&url) };
    drained(bench.open(vec![Target::review(with)]), 3);
    arrived(&server, &ids);
}

/// An http server at an https address.
#[test]
fn no_tls_says_so() {
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    // ends with the process
    std::thread::spawn(move || {
        for stream in plain.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let bench = Bench::new();
    let deliver = bench.open(vec![Target::review(endpoint(&format!("https://{address}")))]);
    record(&deliver, 0..1);
    until_error(&deliver, &["no TLS is spoken there: use http"]);
    assert_eq!(deliver.status().delivered, 0);
}

/// Without a client certificate nothing is taken; one that the endpoint does not know is replaced while linesight runs.
#[test]
fn renewed_certificates_are_used() {
    let (ours, other) = (Authority::new(), Authority::new());
    let bench = Bench::new();
    let server = Server::start(|_| Act::Take);
    let front = Front::start(server.address);
    front.encrypt(ours.server(&["localhost"], Valid::Now, Some(&ours)));
    let url = format!("https://localhost:{}", front.address.port());
    let (cert, key) = (bench.path("client.pem"), bench.path("client.key"));
    let with = Endpoint { ca_file: Some(ours.write(&bench.path("ca.pem"))), ..endpoint(&url) };

    let deliver = bench.open(vec![Target::review(with.clone())]);
    let ids = record(&deliver, 0..3);
    until_error(&deliver, &["refuses this client's certificate or wants one", "cert_file and key_file"]);
    drop(deliver);

    other.client(&cert, &key);
    let with = Endpoint { cert_file: Some(cert.clone()), key_file: Some(key.clone()), ..with };
    let deliver = bench.open(vec![Target::review(with)]);
    until_error(&deliver, &["refuses this client's certificate or wants one"]);
    // half written: the last one is used on
    std::fs::write(&cert, "-----BEGIN").unwrap();
    let attempts = deliver.status().attempts;
    until("more attempts", || deliver.status().attempts > attempts + 2);
    assert_eq!((deliver.status().delivered, server.seen().requests.len()), (0, 0));
    ours.client(&cert, &key);
    drained(deliver, 3);
    arrived(&server, &ids);
}

/// A wrong token is refused, one that is away for a moment is no failure, a renewed one is used without a restart.
#[test]
fn a_renewed_token_is_used() {
    let server = Server::start(|request| match request.headers.get("authorization").map(String::as_str) {
        Some("Bearer n3w") => Act::Take,
        _ => Act::Answer(401, "", "who is old and wr0ng?"),
    });
    let bench = Bench::new();
    let file = bench.write("token", "wr0ng\n");
    let with = Endpoint { token: Some(Token::File(file.clone())), ..endpoint(&server.url()) };
    let deliver = bench.open(vec![Target::review(with)]);
    let mut ids = record(&deliver, 0..3);
    until_error(&deliver, &["401 Unauthorized: who is old and ***?"]);
    std::fs::write(&file, "n3w\n").unwrap();
    until("delivery", || deliver.status().delivered == 3);
    std::fs::remove_file(&file).unwrap();
    let more = record(&deliver, 3..6);
    until("delivery with the last token", || deliver.status().delivered == 6);
    ids.extend(more);
    drained(deliver, 6);
    arrived(&server, &ids);
}

/// A proxy that is named is used for every address; for https it is a tunnel, and the endpoint's certificate is checked.
#[test]
fn a_proxy_is_used_when_it_is_named() {
    // what gets a whole URL is a proxy
    let proxy = Server::start(|_| Act::Take);
    for url in ["http://review.plant.invalid/hook", "http://127.0.0.1:1/hook"] {
        let bench = Bench::new();
        let with = Endpoint { proxy: Some(proxy.url().parse().unwrap()), ..endpoint(url) };
        let deliver = bench.open(vec![Target::review(with)]);
        let ids = record(&deliver, 0..2);
        drained(deliver, 2);
        for id in ids.keys() {
            assert_eq!(proxy.seen().kept[id].line, format!("POST {url} HTTP/1.1"));
        }
    }

    let ours = Authority::new();
    let server = Server::start(|_| Act::Take);
    let front = Front::start(server.address);
    front.encrypt(ours.server(&["review.plant.invalid"], Valid::Now, None));
    let tunnel = Front::tunnel(front.address);
    let bench = Bench::new();
    let with = Endpoint {
        ca_file: Some(ours.write(&bench.path("ca.pem"))),
        proxy: format!("http://{}", tunnel.address).parse().ok(),
        ..endpoint("https://review.plant.invalid/")
    };
    let deliver = bench.open(vec![Target::review(with)]);
    let ids = record(&deliver, 0..2);
    drained(deliver, 2);
    arrived(&server, &ids);
    assert!(tunnel.connections() > 0);
}

/// Requests share the cap, none is given up for being slow by it, and the server sees how long each body is.
#[test]
fn the_cap_holds_over_parallel_requests() {
    const RATE: u64 = 40_000;
    let server = Server::start(|_| Act::Take);
    let front = Front::start(server.address);
    let bench = Bench::new();
    let mut target = Target::review(endpoint(&format!("http://{}", front.address)));
    (target.parallel, target.bytes_per_s) = (3, Some(RATE));
    // a whole request takes longer than this
    let limits = Limits { request: Duration::from_millis(100), ..quick() };
    let start = Instant::now();
    let deliver = bench.open_with(vec![target], limits);
    let ids = record(&deliver, 0..6);
    until("delivery", || deliver.status().delivered == 6);
    assert_eq!(deliver.status().attempts, 6);
    drained(deliver, 6);
    arrived(&server, &ids);
    let came = front.came();
    let most = |time: Instant| (time - start).as_secs_f64() * RATE as f64 + 48_000.0;
    for (time, bytes) in &came {
        assert!((*bytes as f64) <= most(*time), "{bytes} bytes after {:?}", *time - start);
    }
    let (end, bytes) = came.last().unwrap();
    println!("{bytes} bytes in {:?}, capped at {RATE} bytes a second", *end - start);
    assert!(*bytes > 70_000);
}

#[test]
fn a_webhook_gets_json() {
    let mut faults = vec![Act::Take, Act::Answer(500, "", ""), Act::Reset];
    let server = Server::start(move |_| faults.pop().unwrap_or(Act::Take));
    let bench = Bench::new();
    let key = bench.write("key", "first\n");
    let kind = |pictures| {
        Kind::Webhook(Webhook {
            endpoint: Endpoint {
                token: Some(Token::Text("t0ken".into())),
                ..endpoint(&format!("{}/any/hook?a=b", server.url()))
            },
            pictures,
            headers: vec![("X-Plant".into(), Token::Text("a".into())), ("X-Api-Key".into(), Token::File(key.clone()))],
        })
    };
    let deliver = bench.open(vec![target("hook", kind(true))]);
    let ids = record(&deliver, 0..3);
    until("delivery", || deliver.status().delivered == 3);
    std::fs::write(&key, "second\n").unwrap();
    drained(deliver, 3);
    arrived(&server, &ids);
    for (id, part) in &ids {
        let seen = server.seen();
        let request = &seen.kept[id];
        assert_eq!((request.line.as_str(), &request.id), ("POST /any/hook?a=b HTTP/1.1", id));
        let header = |name: &str| request.headers[name].as_str();
        assert_eq!(
            [header("content-type"), header("x-plant"), header("x-api-key")],
            ["application/json", "a", "first"]
        );
        assert_eq!(header("authorization"), "Bearer t0ken");
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let event: Event = serde_json::from_value(body.clone()).unwrap();
        assert_eq!((event.id.to_string(), event.part, &*event.reasons[0]), (id.clone(), *part, "größer"));
        assert!(event.spooled_s > 0.0);
        let picture = |name: &str| body["pictures"][name].as_str().map(|text| BASE64_STANDARD.decode(text).unwrap());
        let expected = pictures(*part);
        assert!(picture("frame_jpeg") == Some(expected.frame_jpeg));
        assert!(picture("heatmap_png") == Some(expected.heatmap_png));
        assert!(picture("normal_jpeg") == expected.normal_jpeg);
    }
    let deliver = bench.open(vec![target("hook", kind(false))]);
    let (id, _) = record(&deliver, 3..4).pop_first().unwrap();
    drained(deliver, 1);
    let seen = server.seen();
    assert_eq!(seen.kept[&id].headers["x-api-key"], "second");
    let body: Value = serde_json::from_slice(&seen.kept[&id].body).unwrap();
    assert!(body.get("pictures").is_none() && body["part"] == 3);
}

/// The link to the bucket is cut again and again: what is there is whole, at last all is there once, and no link stays behind.
#[test]
fn a_bucket_gets_each_once() {
    let bench = Bench::new();
    let store = Store::start(&bench.path("store"));
    let root = store.objects().join("plant/a");
    let front = Front::start(store.address);
    let keys = bench.write("keys", &credentials(bucket::SECRET));
    let deliver = bench.open(vec![target("archive", s3(front.address, &keys))]);
    // some objects of an anomaly arrive, then the link is cut
    front.cut(9_000);
    let ids = record(&deliver, 0..20);
    until("cuts", || {
        laid(&root);
        front.connections() > 30
    });
    assert_eq!(deliver.status().dead, 0);
    front.cut(0);
    until("delivery", || {
        laid(&root);
        deliver.status().delivered == 20
    });
    drained(deliver, 20);
    assert_eq!(laid(&root), ids);
    // what was sent again was written over
    let day = root.join("line/2026/02/03");
    assert_eq!(std::fs::read_dir(&day).unwrap().count(), 20);
}

#[test]
fn renewed_credentials_are_used() {
    let bench = Bench::new();
    let store = Store::start(&bench.path("store"));
    let keys = bench.write("keys", &credentials("wr0ng"));
    let deliver = bench.open(vec![target("archive", s3(store.address, &keys))]);
    let ids = record(&deliver, 0..3);
    until_error(&deliver, &["SignatureDoesNotMatch", "put valid keys"]);
    let said = deliver.status().last_error.unwrap();
    assert!(!said.contains("wr0ng"), "{said}");
    std::fs::write(&keys, credentials(bucket::SECRET)).unwrap();
    drained(deliver, 3);
    assert_eq!(laid(&store.objects().join("plant/a")), ids);
}

const CHILD: &str = "LINESIGHT_TEST_CHILD";

/// Not a test of its own: what `a_folder_never_shows_half_an_anomaly` runs and kills.
#[test]
fn child_that_writes_a_folder() {
    let Some(home) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let deliver = open(&home.join("spool.db"), vec![target("share", folder(&home.join("share")))], quick());
    let mut out = std::io::stdout();
    for part in 0.. {
        let (id, record) = anomaly(part);
        deliver.record(record).unwrap();
        deliver.flush().unwrap();
        writeln!(out, "\nflushed {id} {part}").unwrap();
    }
}

#[test]
fn a_folder_never_shows_half_an_anomaly() {
    let bench = Bench::new();
    let share = bench.path("share");
    std::fs::create_dir(&share).unwrap();
    let mut flushed = BTreeMap::new();
    let rounds = if full() { 100 } else { 25 };
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_a_folder", "--nocapture"])
            .env(CHILD, bench.0.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let parse = |line: String| {
            let (id, part) = line.strip_prefix("flushed ")?.split_once(' ')?;
            Some((id.to_owned(), part.parse::<u64>().ok()?))
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let chance = Uuid::now_v7().as_u64_pair().1;
        for _ in 0..chance % 8 {
            flushed.extend(lines.by_ref().find_map(parse));
            laid(&share);
        }
        std::thread::sleep(Duration::from_micros(chance / 8 % 5000));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "round {round}: it ended by itself");
        flushed.extend(lines.filter_map(parse));
        laid(&share);
    }
    let before = laid(&share).len();
    assert_eq!(bench.open(vec![target("share", folder(&share))]).drain(LONG).unwrap().waiting, 0);
    let there = laid(&share);
    println!("{rounds} kills, {} flushed, {before} there after the last, {} at last", flushed.len(), there.len());
    assert!(!flushed.is_empty() && flushed.iter().all(|(id, part)| there.get(id) == Some(part)), "lost");
    let day = share.join("line/2026/02/03");
    let mut names = std::fs::read_dir(&day).unwrap().flat_map(|id| std::fs::read_dir(id.unwrap().path()).unwrap());
    assert!(names.all(|name| !name.unwrap().file_name().to_string_lossy().ends_with(".part")));
}

#[test]
fn a_folder_that_is_away_keeps_everything() {
    let bench = Bench::new();
    let share = bench.path("share");
    let deliver = bench.open(vec![target("share", folder(&share))]);
    let ids = record(&deliver, 0..3);
    until_error(&deliver, &["is not there: mount it or make it"]);
    assert!(!share.exists());
    std::fs::create_dir(&share).unwrap();
    drained(deliver, 3);
    assert_eq!(laid(&share), ids);

    // the place is there, and nothing is mounted
    let bench = Bench::new();
    let share = bench.path("share");
    std::fs::create_dir(&share).unwrap();
    if std::fs::metadata(&share).unwrap().dev() != std::fs::metadata("/").unwrap().dev() {
        return eprintln!("skipped: temporary files are on a disk of their own");
    }
    let deliver = bench.open(vec![target("share", Kind::Folder(Folder { path: share.clone(), mounted: true }))]);
    let ids = record(&deliver, 0..3);
    until_error(&deliver, &["nothing is mounted"]);
    assert_eq!(std::fs::read_dir(&share).unwrap().count(), 0);
    drop(deliver);
    let Some(disk) = Disk::new("8m") else { return };
    let kind = Kind::Folder(Folder { path: disk.0.path().into(), mounted: true });
    drained(bench.open(vec![target("share", kind)]), 3);
    assert_eq!(laid(disk.0.path()), ids);
}

#[test]
fn a_full_folder_recovers() {
    let Some(disk) = Disk::new("1m") else { return };
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 900 << 10]).unwrap();
    let bench = Bench::new();
    let deliver = bench.open(vec![target("share", folder(disk.0.path()))]);
    let ids = record(&deliver, 0..20);
    until_error(&deliver, &["free space there"]);
    assert!(laid(disk.0.path()).len() < 20);
    std::fs::remove_file(&ballast).unwrap();
    drained(deliver, 20);
    assert_eq!(laid(disk.0.path()), ids);
}

/// One of each kind: those that work get all while one is away and one is refused; those get all when they are back.
#[test]
fn a_dead_target_never_holds_back_the_others() {
    let bench = Bench::new();
    let (review, works) = (Server::start(|_| Act::Take), std::sync::Arc::new(AtomicBool::new(false)));
    let on = works.clone();
    let refuses = Server::start(move |_| if on.load(Relaxed) { Act::Take } else { Act::Answer(403, "", "") });
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = Store::start(&bench.path("store"));
    let keys = bench.write("keys", &credentials(bucket::SECRET));
    let share = bench.path("share");
    std::fs::create_dir(&share).unwrap();
    let targets = vec![
        Target::review(endpoint(&review.url())),
        target("away", webhook(&format!("http://{away}/hook"))),
        target("archive", s3(store.address, &keys)),
        Target { order: Order::NewestFirst, ..target("share", folder(&share)) },
        target("refuses", webhook(&format!("{}/hook", refuses.url()))),
    ];
    let deliver = bench.open(targets.clone());
    let ids = record(&deliver, 0..20);
    let of = |status: &Status, name: &str| status.targets.iter().find(|t| t.name == name).unwrap().clone();
    for name in ["review", "archive", "share"] {
        until(name, || of(&deliver.status(), name).delivered == 20);
    }
    let status = deliver.status();
    assert_eq!(
        (of(&status, "away").depth.waiting, of(&status, "refuses").depth.waiting, status.delivered),
        (20, 20, 0)
    );
    // each keeps its progress over a restart
    drop(deliver);
    let deliver = bench.open(targets);
    let server = Server::start_at(away, |_| Act::Take);
    works.store(true, Relaxed);
    drained(deliver, 20);
    for server in [&review, &server, &refuses] {
        arrived(server, &ids);
    }
    assert_eq!((laid(&share), laid(&store.objects().join("plant/a"))), (ids.clone(), ids));
}
