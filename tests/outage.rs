//! From the spool to the endpoint through outages, hostile networks and servers that misbehave: nothing is lost, nothing
//! comes twice, nothing grows, and what the bounds of the spool take is said exactly.

#![allow(clippy::unwrap_used)]

#[path = "support/alone.rs"]
mod alone;
#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/spool.rs"]
mod spool;
#[path = "support/toxic.rs"]
mod toxic;

use alone::alone;
use bad_server::{Act, Server};
use linesight::deliver::{Bounds, Limits, PICTURE_DROPPED, WhenFull};
use linesight::event::Event;
use spool::*;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use toxic::{Proxy, Toxic};

/// Whether the full counts are wanted (`make fault`).
fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

/// Resident memory of this process, MB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Processor time of this process.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn event(server: &Server, id: &str) -> Event {
    serde_json::from_slice(&server.seen().kept[id].body).unwrap()
}

/// An endpoint that is away, then there.
fn unreachable() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Within its bounds after each commit, whatever the policy; what went is counted and in the ledger, what stayed arrives.
#[test]
fn the_spool_stays_within_its_bounds() {
    const PARTS: u64 = 60;
    for when_full in [WhenFull::KeepEventDropPicture, WhenFull::DropOldest, WhenFull::DropLowestConfidence] {
        let address = unreachable();
        let bench = Bench::new();
        let most = 300_000;
        let bounds = Bounds { bytes: Some(most), items: Some(50), days: None, when_full: Some(when_full) };
        let deliver = bench.open(Some(&format!("http://{address}")), Limits { bounds, ..quick() });
        let mut ids = Vec::new();
        for part in 0..PARTS {
            let (id, mut record) = bad(part, 6000);
            // the first of ten are the least unusual ones
            record.row.confidence = 0.9 + (part % 10) as f32 / 100.0;
            deliver.record(record).unwrap();
            deliver.flush().unwrap();
            ids.push(id);
            let status = deliver.status();
            assert!(status.spool_bytes <= most && status.waiting <= 50, "{when_full:?}: {status:?}");
        }
        let status = deliver.status();
        let stored = bench.count("SELECT sum(bytes) FROM spool") as u64;
        assert_eq!((status.spool_bytes, status.waiting), (stored, PARTS - status.dropped), "{when_full:?}");
        let stripped = bench.count("SELECT count(*) FROM spool WHERE stripped = 1") as u64;
        let dropped = bench.texts("SELECT event FROM ledger WHERE fate = 'dropped'");
        assert_eq!(dropped.len() as u64, status.dropped);
        // the oldest went, but for one that was being sent at the time
        let oldest: BTreeSet<&String> = ids.iter().take(dropped.len() + 1).collect();
        match when_full {
            WhenFull::KeepEventDropPicture => {
                // events take little: their number is what does not fit
                assert!(status.dropped == 10 && stripped > 0, "{status:?}");
                assert!(dropped.iter().all(|id| oldest.contains(id)), "{dropped:?}");
            }
            WhenFull::DropOldest => {
                assert!(status.dropped > 10 && status.pictures_dropped == 0, "{status:?}");
                assert!(dropped.iter().all(|id| oldest.contains(id)), "{dropped:?}");
            }
            WhenFull::DropLowestConfidence => {
                assert!(status.dropped > 10 && status.pictures_dropped == 0, "{status:?}");
                // all of the least confident went before any of the most confident
                let left = bench.count("SELECT count(*) FROM spool WHERE confidence < 0.905");
                let best = bench.count("SELECT count(*) FROM spool WHERE confidence > 0.985");
                assert!(left <= 1 && best == 6, "{left} {best}: {status:?}");
            }
        }
        let server = Server::start_at(address, |_| Act::Take);
        let drained = deliver.drain(LONG).unwrap();
        assert_eq!((drained.waiting, drained.delivered), (0, PARTS - status.dropped));
        let arrived = server.seen().order.clone();
        assert!(arrived.iter().all(|id| !dropped.contains(id)));
        let plain = |id: &&String| {
            let fields = server.seen().kept[*id].fields();
            let event: Event = serde_json::from_slice(&fields["event"].1).unwrap();
            let plain = event.reasons.iter().any(|reason| reason == PICTURE_DROPPED);
            // each has a picture that is one
            assert!(!plain || image::load_from_memory(&fields["frame"].1).is_ok());
            plain
        };
        assert_eq!(arrived.iter().filter(plain).count() as u64, stripped);
    }
}

/// A day's anomalies while the endpoint is away. Recording takes as long as it does with the endpoint there, memory and
/// spool do not grow beyond their bounds, and afterwards everything arrives in order, with its age.
#[test]
fn a_day_without_the_endpoint() {
    alone("a_day_without_the_endpoint", || {
        let anomalies: u64 = if full() { 20_000 } else { 600 };
        let (address, bench) = (unreachable(), Bench::new());
        // pictures of 15 kB each: for half of them there is no room
        let size = 5000;
        let most = anomalies * size as u64 * 5 / 4;
        let bounds = Bounds { bytes: Some(most), when_full: Some(WhenFull::KeepEventDropPicture), ..Bounds::default() };
        let deliver = bench.open(Some(&format!("http://{address}")), Limits { bounds, ..Limits::default() });
        let mut next = deliver.resume("line").unwrap().next_part;
        let mut part = |times: &mut Vec<f64>| {
            // nine good parts before each
            for _ in 0..9 {
                let start = Instant::now();
                deliver.record(good(next)).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1e6);
                next += 1;
            }
            let (id, record) = bad(next, size);
            let start = Instant::now();
            deliver.record(record).unwrap();
            times.push(start.elapsed().as_secs_f64() * 1e6);
            next += 1;
            // at the pace of a fast line, so that the writer is what it is there
            std::thread::sleep(Duration::from_millis(2));
            id
        };
        let p99 = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() * 99 / 100]
        };
        // the endpoint there and away by turns, before the long absence: what recording costs in one run
        let (mut there, mut away, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            let server = Server::start_at(address, |_| Act::Take);
            server.seen().light = true;
            for _ in 0..anomalies / 50 {
                part(&mut there);
            }
            until("delivery", || deliver.status().waiting == 0);
            drop(server);
            for _ in 0..anomalies / 50 {
                ids.push(part(&mut away));
            }
            // those wait, and would be sent when it is there again: they are part of the next round's
            let server = Server::start_at(address, |_| Act::Take);
            server.seen().light = true;
            until("delivery", || deliver.status().waiting == 0);
            drop(server);
        }
        let (there, away) = (p99(&mut there), p99(&mut away));
        ids.clear();

        let began = jiff::Timestamp::now();
        let (mut memory, mut times) = (vec![resident()], Vec::new());
        for n in 0..anomalies {
            ids.push(part(&mut times));
            if (n + 1).is_multiple_of(anomalies / 10) {
                deliver.flush().unwrap();
                memory.push(resident());
                let status = deliver.status();
                assert!(status.spool_bytes <= most, "{status:?}");
            }
        }
        let file = std::fs::metadata(&bench.database).unwrap().len();
        let outage = p99(&mut times);
        let status = deliver.status();
        assert_eq!((status.waiting, status.dropped, status.write_error.clone()), (anomalies, 0, None), "{status:?}");
        let server = Server::start_at(address, |_| Act::Take);
        server.seen().light = true;
        let (back, returned) = (Instant::now(), jiff::Timestamp::now());
        let drained = deliver.drain(Duration::from_secs(60)).unwrap();
        let seconds = back.elapsed().as_secs_f64();
        // MB for a thousand anomalies, from the fifth of them on: buffers are filled by then
        let slope = (memory[10] - memory[2]) / (0.8 * anomalies as f64 / 1000.0);
        eprintln!(
            "{anomalies} anomalies and {} good parts without the endpoint: record() p99 {there:.1} us with it, {away:.1} us without ({:.2}), \
             {outage:.1} us in the long absence; RSS MB {memory:.0?}, {slope:.2} MB a thousand; spool {} of {} MB, file {} MB, {} pictures dropped; \
             drained in {seconds:.1} s with {} requests",
            9 * anomalies,
            away / there,
            status.spool_bytes / 1_000_000,
            most / 1_000_000,
            file / 1_000_000,
            status.pictures_dropped,
            server.seen().requests.len(),
        );
        assert_eq!((drained.waiting, drained.last_error), (0, None));
        let order = server.seen().order.clone();
        assert!(order == ids, "all of them, each once, in order");
        let mut plain = 0;
        for (n, id) in ids.iter().enumerate() {
            let event = event(&server, id);
            let waited = jiff::Timestamp::now().duration_since(event.captured_at).as_secs_f64();
            assert!(event.captured_at >= began && event.spooled_s <= waited, "{n}: {event:?}");
            // it says that it waited until the endpoint was there, at least
            let away = returned.duration_since(event.captured_at).as_secs_f64();
            assert!(event.spooled_s > away - 0.5, "{n}: away for {away} s: {event:?}");
            plain += u64::from(event.reasons.iter().any(|reason| reason == PICTURE_DROPPED));
        }
        assert!(plain == status.pictures_dropped && plain > 0, "{plain} plain, {status:?}");
        let growth = memory[10] - memory[2];
        assert!(growth < 10.0, "memory grows: {memory:?}");
    });
}

/// Whatever a server does for a while: nothing is lost, each anomaly arrives once, and meanwhile neither the server nor the
/// processor has much to do.
#[test]
fn each_misbehaviour_is_survived_quietly() {
    alone("each_misbehaviour_is_survived_quietly", || {
        let time = Duration::from_secs(if full() { 60 } else { 6 });
        let acts = [
            ("never answers", Act::Silent),
            ("resets", Act::Reset),
            ("reads a little and closes", Act::CutShort),
            ("500", Act::Answer(500, "", "oh")),
            ("503 with Retry-After 1", Act::Answer(503, "Retry-After: 1\r\n", "")),
            ("429 with Retry-After 2", Act::Answer(429, "Retry-After: 2\r\n", "slow down")),
            ("401", Act::Answer(401, "", "who are you?")),
            ("redirects", Act::Answer(302, "Location: /elsewhere\r\n", "")),
            ("half a head", Act::HalfHead),
            ("keeps it and closes", Act::LoseAnswer),
            ("endless answer", Act::Endless),
            ("a byte at a time", Act::Trickle),
        ];
        let mended = Arc::new(AtomicBool::new(false));
        let limits =
            || Limits { request: Duration::from_secs(2), retry_slowest: Duration::from_secs(4), ..Limits::default() };
        let cases: Vec<_> = acts
            .into_iter()
            .map(|(name, act)| {
                let works = mended.clone();
                let server = Server::start(move |_| if works.load(Relaxed) { Act::Take } else { act.clone() });
                let bench = Bench::new();
                let deliver = bench.open(Some(&server.url()), limits());
                let ids = record(&deliver, 0..20);
                (name, server, bench, deliver, ids)
            })
            .collect();
        let before = processor();
        std::thread::sleep(time);
        let used = processor() - before;
        for (name, server, ..) in &cases {
            let requests = server.seen().requests.len();
            eprintln!("{name}: {requests} requests in {time:?}");
            // doubling from 0.2 s to 4 s with jitter, and what a token that is wrong costs: each item once
            let most = 12 + time.as_secs() as usize;
            assert!(
                requests >= 1 && requests <= most + 20 * usize::from(*name == "401"),
                "{name}: {requests} requests"
            );
        }
        eprintln!("processor {used:.2?} in {time:?} for {} misbehaviours at once, servers included", cases.len());
        assert!(used < time / 2, "{used:?}: something is busy");
        mended.store(true, Relaxed);
        for (name, server, bench, deliver, ids) in cases {
            let drained = deliver.drain(LONG).unwrap();
            assert_eq!((drained.waiting, drained.last_error), (0, None), "{name}");
            let seen = server.seen();
            assert_eq!(seen.order.iter().collect::<BTreeSet<_>>(), ids.iter().collect(), "{name}");
            assert_eq!(seen.order.len(), ids.len(), "{name}: each once");
            assert_eq!(bench.count("SELECT count(*) FROM ledger WHERE delivered_at IS NOT NULL") as usize, ids.len());
        }
    });
}

/// Through a network that delays, thins, cuts and swallows: everything arrives, and each once.
#[test]
fn a_hostile_network_loses_nothing() {
    let anomalies = if full() { 2000 } else { 60 };
    let server = Server::start(|_| Act::Take);
    let mut random = fastrand::Rng::with_seed(7);
    let proxy = Proxy::start(server.address, move || match random.u8(0..12) {
        0 => Toxic::Delay(Duration::from_millis(random.u64(1..40))),
        1 => Toxic::Thin { bytes: 700, pause: Duration::from_millis(1) },
        2 | 3 => Toxic::CutAfter(random.usize(0..20_000)),
        4 | 5 => Toxic::CutAnswerAfter(random.usize(0..80)),
        6 => Toxic::Swallow(random.usize(0..20_000)),
        _ => Toxic::None,
    });
    let bench = Bench::new();
    let limits = Limits { request: Duration::from_millis(500), ..quick() };
    let deliver = bench.open(Some(&proxy.url()), limits);
    let ids = record(&deliver, 0..anomalies);
    let drained = deliver.drain(LONG).unwrap();
    assert_eq!((drained.waiting, drained.last_error), (0, None));
    let seen = server.seen();
    eprintln!(
        "{anomalies} anomalies, {} connections, {} requests arrived, {} repeats",
        proxy.connections.load(Relaxed),
        seen.requests.len(),
        seen.repeats
    );
    assert_eq!(seen.order.iter().collect::<BTreeSet<_>>(), ids.iter().collect());
    assert_eq!(seen.order.len(), ids.len());
}
