//! The promise for whole lines: an anomaly that was judged reaches the endpoint once, however often the process is killed, the
//! endpoint is away or the disk is full; or the ledger says which one did not.

#![allow(clippy::unwrap_used)]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/plant.rs"]
mod plant;
mod support;

use disk::Disk;
use linesight::deliver::PICTURE_DROPPED;
use linesight::event::Event;
use plant::{Plant, footprint, line};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use support::bad_server::{Act, Server};
use support::*;

/// Whether the full counts are wanted (`make fault`).
fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

fn sample() -> String {
    asset("sample-run.mp4").display().to_string()
}

/// Pictures that a model of washers finds wrong, each of them.
fn all_wrong(fps: u32) -> String {
    format!(
        "pipeline:videotestsrc is-live=true pattern=smpte ! video/x-raw,format=I420,width=320,height=240,framerate={fps}/1"
    )
}

fn review(url: &str) -> String {
    format!("[review]\nurl = \"{url}\"")
}

/// What `deliver` says in the status, by name.
fn deliver(plant: &Plant, what: &str) -> u64 {
    plant.status().and_then(|s| s["deliver"][what].as_u64()).unwrap_or(0)
}

/// A server that keeps events and no pictures.
fn light(server: Server) -> Server {
    server.seen().light = true;
    server
}

fn events(server: &Server) -> BTreeMap<String, Event> {
    let seen = server.seen();
    let anomalies = seen.kept.iter().filter(|(_, request)| request.line.contains("/anomalies"));
    anomalies.map(|(id, request)| (id.clone(), serde_json::from_slice(&request.body).unwrap())).collect()
}

fn recorded(plant: &Plant) -> BTreeSet<String> {
    let db = rusqlite::Connection::open(plant.database()).unwrap();
    let mut read = db.prepare("SELECT event FROM ledger WHERE event IS NOT NULL").unwrap();
    read.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// A last run, which ends by itself and sends what is left: a process that is told to stop leaves it to the next one.
#[track_caller]
fn send_the_rest(plant: &mut Plant, url: &str) {
    plant.write(&review(url), &line("a", &sample(), washer(), "realtime = false"));
    plant.start();
    let (report, code) = plant.end();
    assert_eq!((code, report["waiting"].as_u64()), (Some(0), Some(0)), "{report:#}\n{}", plant.log());
}

/// The whole process is killed at random moments, in its start, its work and its deliveries, and some answers of the endpoint
/// are lost: the anomalies in the ledger are those at the endpoint, each once.
#[test]
fn killed_at_random_every_anomaly_arrives_once() {
    let kills = if full() { 300 } else { 5 };
    let mut calls = 0u64;
    let server = light(Server::start(move |_| {
        calls += 1;
        if calls.is_multiple_of(7) { Act::LoseAnswer } else { Act::Take }
    }));
    let looped = line("a", &sample(), washer(), "realtime = false\nrepeat = true");
    let mut plant = Plant::new(&review(&server.url()), &looped);
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..kills {
        plant.start();
        // a busy machine is long in its start: half of the kills are at work in any case
        if random.bool() {
            plant.until("parts", |p| p.counter("a", "parts") > 0);
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..1500)));
        plant.kill();
    }
    send_the_rest(&mut plant, &server.url());
    let recorded = recorded(&plant);
    let seen = server.seen();
    // line reports are there, too
    let order: Vec<&String> = seen.order.iter().filter(|id| seen.kept[*id].line.contains("/anomalies")).collect();
    let windows = plant.count("SELECT count(*) FROM ledger WHERE verdict = 'interrupted'");
    let parts = plant.count("SELECT count(*) FROM ledger WHERE part >= 0");
    eprintln!(
        "{kills} kills: {parts} parts, {} anomalies in the ledger, {} at the endpoint, {} repeats on the wire, {windows} interrupted windows",
        recorded.len(),
        order.len(),
        seen.repeats
    );
    let arrived: BTreeSet<String> = order.iter().map(|id| (*id).clone()).collect();
    assert_eq!(arrived.len(), order.len(), "some came twice");
    assert!(!recorded.is_empty() && arrived == recorded, "{:?}", arrived.symmetric_difference(&recorded));
    drop(seen);
    assert_eq!(plant.count("SELECT count(*) FROM ledger WHERE event IS NOT NULL AND delivered_at IS NULL"), 0);
    plant.reconciles();
}

/// The endpoint comes and goes while every part is wrong: verdicts take as long without it, memory does not grow, and
/// everything arrives.
#[test]
fn an_absent_endpoint_costs_no_verdict_time() {
    let (rounds, parts) = if full() { (6, 900) } else { (1, 60) };
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut plant = Plant::new(&review(&format!("http://{address}")), &line("a", &all_wrong(30), still_model(), ""));
    plant.start();
    plant.until("parts", |p| p.counter("a", "parts") > 10);
    let mut spans = [Vec::new(), Vec::new()];
    let mut memory = Vec::new();
    let mut books = Vec::new();
    for round in 0..2 * rounds {
        let server = (round % 2 == 1).then(|| light(Server::start_at(address, |_| Act::Take)));
        let from = plant.counter("a", "parts");
        // longer than anything is waited for elsewhere
        for step in 1..=3 {
            plant.until("parts", |p| p.counter("a", "parts") >= from + step * parts / 3);
        }
        spans[round % 2].push(from..from + parts);
        if let Some(server) = server {
            plant.until("delivery", |p| deliver(p, "waiting") < 10);
            memory.push(footprint(plant.pid()).0 / 1024);
            books.push(server.book());
        }
    }
    let server = light(Server::start_at(address, |_| Act::Take));
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    send_the_rest(&mut plant, &server.url());
    let rejected = plant.count("SELECT count(*) FROM ledger WHERE event IS NOT NULL");
    let p99 = |spans: &[std::ops::Range<u64>]| {
        let inside: Vec<String> = spans.iter().map(|s| format!("part BETWEEN {} AND {}", s.start, s.end - 1)).collect();
        let db = rusqlite::Connection::open(plant.database()).unwrap();
        let sql = format!("SELECT latency_ms FROM ledger WHERE {} ORDER BY 1", inside.join(" OR "));
        let times: Vec<f64> =
            db.prepare(&sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let (away, there) = (p99(&spans[0]), p99(&spans[1]));
    eprintln!(
        "verdict latency ms, p50 and p99: {there:.1?} with the endpoint, {away:.1?} without; p99 ratio {:.2}; {rejected} anomalies; RSS MB {memory:?}",
        away.1 / there.1
    );
    books.push(server.book());
    let ids: BTreeSet<String> = books.iter().flat_map(|book| book.lock().unwrap().order.clone()).collect();
    assert!(ids.is_superset(&recorded(&plant)), "some did not arrive");
    // a busy machine misses some
    assert!(4 * rejected as u64 >= 3 * 2 * rounds as u64 * parts);
    plant.reconciles();
}

/// The disk fills while every part is wrong and the endpoint is away: verdicts go on, the oldest pictures make room, exactly
/// those are said to have, and everything else arrives when the endpoint is back, without a restart.
#[test]
fn a_full_disk_costs_pictures_and_says_which() {
    let Some(disk) = Disk::new("96m") else { return };
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut plant = Plant::new(&review(&format!("http://{address}")), &line("a", &all_wrong(20), still_model(), ""));
    plant.move_database(&disk.0.path().join("spool.db"));
    plant.start();
    plant.until("anomalies", |p| deliver(p, "spool_bytes") > 5_000_000);
    let ballast = disk.0.path().join("ballast");
    let free = rustix::fs::statvfs(disk.0.path()).unwrap();
    let free = free.f_bavail * free.f_frsize;
    // just above what is kept in reserve for deliveries
    std::fs::write(&ballast, vec![1; (free - (34 << 20)) as usize]).unwrap();
    plant.until("pictures to go", |p| deliver(p, "pictures_dropped") > 20);
    let parts = plant.counter("a", "parts");
    plant.until("more parts", |p| p.counter("a", "parts") > parts + 60);
    // new anomalies are written while the disk is full
    let spooled = deliver(&plant, "spooled");
    plant.until("more anomalies", |p| deliver(p, "spooled") > spooled + 60);
    // a busy machine may judge fewer than come; what was judged is recorded with its verdict
    assert_eq!(plant.count("SELECT count(*) FROM ledger WHERE reasons LIKE '%could not be recorded%'"), 0);
    std::fs::remove_file(&ballast).unwrap();
    let dropped = deliver(&plant, "pictures_dropped");
    let parts = plant.counter("a", "parts");
    plant.until("more parts", |p| p.counter("a", "parts") > parts + 60);
    assert!(deliver(&plant, "pictures_dropped") <= dropped + 5, "it does not recover");
    let server = light(Server::start_at(address, |_| Act::Take));
    plant.until("delivery", |p| deliver(p, "waiting") < 10);
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    send_the_rest(&mut plant, &server.url());
    let stripped = plant.count("SELECT count(*) FROM ledger WHERE stripped = 1");
    let events = events(&server);
    let plain = |e: &&Event| e.reasons.iter().any(|reason| reason == PICTURE_DROPPED);
    eprintln!("{} anomalies arrived, {stripped} of them without their pictures", events.len());
    assert_eq!(events.values().filter(plain).count() as i64, stripped);
    assert!(stripped > 20);
    assert_eq!(events.into_keys().collect::<BTreeSet<_>>(), recorded(&plant));
    let said = plant.log().matches("dropped before it was delivered").count() as i64;
    assert_eq!(said, stripped, "each is in the log");
    plant.reconciles();
}

/// Not run by itself (`make soak`): for as many minutes as `LINESIGHT_SOAK` says a line works while the endpoint comes and goes
/// and the process is stopped and killed now and then. At the end everything is where it belongs, and nothing has grown.
#[test]
fn soak() {
    let Some(minutes) = std::env::var("LINESIGHT_SOAK").ok().and_then(|text| text.parse::<f64>().ok()) else { return };
    let until = std::time::Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let mut plant = Plant::new(&review(&url), &line("a", &sample(), washer(), "repeat = true"));
    let mut random = fastrand::Rng::with_seed(11);
    let (mut books, mut server) = (Vec::new(), None::<Server>);
    let (mut starts, mut kills, mut memory) = (0, 0, Vec::new());
    plant.start();
    while std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_secs(random.u64(1..30)));
        if let Some(server) = server.take() {
            books.push(server.book());
        } else {
            server = Some(light(Server::start_at(address, |_| Act::Take)));
        }
        memory.push(footprint(plant.pid()).0 / 1024);
        match random.u8(0..20) {
            0 => {
                let (report, code) = plant.stop();
                assert_eq!(code, Some(0), "{report:#}");
                plant.start();
                starts += 1;
            }
            1 | 2 => {
                plant.kill();
                plant.start();
                kills += 1;
            }
            _ => {}
        }
        plant.until("live", |p| p.line("a").is_some_and(|l| l["state"] == "live"));
    }
    let last = server.unwrap_or_else(|| light(Server::start_at(address, |_| Act::Take)));
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    send_the_rest(&mut plant, &url);
    books.push(last.book());
    let mut arrived: Vec<String> = Vec::new();
    for book in &books {
        let book = book.lock().unwrap();
        arrived.extend(book.order.iter().filter(|id| book.kept[*id].line.contains("/anomalies")).cloned());
    }
    let set: BTreeSet<String> = arrived.iter().cloned().collect();
    let parts = plant.count("SELECT count(*) FROM ledger WHERE part >= 0");
    eprintln!(
        "{minutes} minutes, {} stops, {kills} kills, {} turns of the endpoint: {parts} parts, {} anomalies, RSS MB {memory:?}",
        starts,
        books.len(),
        set.len()
    );
    assert_eq!(set, recorded(&plant));
    plant.reconciles();
}

/// Not run by itself (`make soak`): as long as `LINESIGHT_SOAK` says, 60 parts a second pass, of which one in twenty is
/// defective, and each of those reaches the endpoint; memory, descriptors and threads do not grow.
#[test]
fn a_line_at_60_fps_grows_nothing() {
    const FPS: u64 = 60;
    const PICTURES: u64 = 20;
    /// What a process takes; `at` in minutes.
    struct Sample {
        at: f64,
        mb: f64,
        descriptors: usize,
        threads: usize,
    }
    let Some(minutes) = std::env::var("LINESIGHT_SOAK").ok().and_then(|text| text.parse::<f64>().ok()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut good: Vec<_> = std::fs::read_dir(good_stills()).unwrap().map(|entry| entry.unwrap().path()).collect();
    good.sort();
    for i in 0..PICTURES {
        let mut picture = image::open(&good[i as usize % good.len()]).unwrap().into_rgb8();
        if i + 1 == PICTURES {
            let (x, y) = (picture.width() / 2, picture.height() / 2);
            (0..48 * 48).for_each(|p| picture.put_pixel(x - 90 + p % 48, y - 24 + p / 48, image::Rgb([250, 20, 20])));
        }
        picture.save(folder.path().join(format!("{i:02}.png"))).unwrap();
    }
    let source = format!(
        "pipeline:multifilesrc location={}/%02d.png stop-index={} loop=true caps=\"image/png,framerate={FPS}/1\" ! pngdec ! identity sync=true",
        folder.path().display(),
        PICTURES - 1
    );
    let server = light(Server::start(|_| Act::Take));
    let mut plant = Plant::new(&review(&server.url()), &line("a", &source, still_model(), "hint = \"throughput\""));
    plant.start();
    // what grows once, at the start, is not counted
    plant.until("parts", |p| p.counter("a", "parts") > 20 * FPS);
    let started = std::time::Instant::now();
    let mut samples = Vec::new();
    while started.elapsed().as_secs_f64() < minutes * 60.0 {
        let (kb, descriptors, threads) = footprint(plant.pid());
        let at = started.elapsed().as_secs_f64() / 60.0;
        samples.push(Sample { at, mb: kb as f64 / 1024.0, descriptors, threads });
        std::thread::sleep(Duration::from_secs(2));
    }
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    plant.write(&review(&server.url()), &line("b", &sample(), washer(), "realtime = false"));
    plant.start();
    let (report, code) = plant.end();
    assert_eq!((code, report["waiting"].as_u64()), (Some(0), Some(0)), "{report:#}\n{}", plant.log());
    let n = samples.len() as f64;
    let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / n;
    let (at, mb) = (mean(&|s| s.at), mean(&|s| s.mb));
    let slope = mean(&|s| (s.at - at) * (s.mb - mb)) / mean(&|s| (s.at - at).powi(2)).max(f64::MIN_POSITIVE);
    let range =
        |of: &dyn Fn(&Sample) -> usize| (samples.iter().map(of).min().unwrap(), samples.iter().map(of).max().unwrap());
    let (descriptors, threads) = (range(&|s| s.descriptors), range(&|s| s.threads));
    let count = |what: &str| plant.count(&format!("SELECT count(*) FROM ledger WHERE line = 'a' AND {what}"));
    let (parts, rejects, missed) = (count("part >= 0"), count("verdict = 'reject'"), count("verdict = 'missed'"));
    eprintln!(
        "{minutes} minutes: {parts} parts ({:.1} a second), {rejects} rejected, {missed} missed; RSS {mb:.0} MB, slope {slope:.3} MB a minute; descriptors {descriptors:?}, threads {threads:?}",
        parts as f64 / (started.elapsed().as_secs_f64() + 20.0)
    );
    assert_eq!(events(&server).into_keys().collect::<BTreeSet<_>>(), recorded(&plant));
    assert!(rejects as u64 >= parts as u64 / PICTURES / 2, "{rejects} of {parts}");
    // connections come and go
    assert!(descriptors.1 - descriptors.0 <= 4 && threads.1 - threads.0 <= 1, "{descriptors:?} {threads:?}");
    assert!(slope < 1.0, "memory grows by {slope:.2} MB a minute");
    plant.reconciles();
}
