//! Delivery over real sockets to endpoints that misbehave, out of processes that are killed, and onto disks that are full.

#![allow(clippy::unwrap_used)]

#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/spool.rs"]
mod spool;

use disk::Disk;
use spool::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bad_server::{Act, Server};
use linesight::deliver::{Deliver, Limits, Pictures};
use linesight::event::Event;
use uuid::Uuid;

/// Every other request meets a fault.
#[test]
fn each_fault_in_turn_delivers_once() {
    let faults = [
        Act::Reset,
        Act::CutShort,
        Act::Answer(500, "", "oh"),
        Act::Answer(503, "Retry-After: 0\r\n", ""),
        Act::HalfHead,
        Act::LoseAnswer,
        Act::Answer(302, "Location: /elsewhere\r\n", ""),
        Act::Answer(307, "Location: /elsewhere\r\n", ""),
        Act::Answer(429, "Retry-After: 0\r\n", "slow down"),
        Act::Answer(408, "", ""),
    ];
    let count = faults.len() as u64;
    let mut acts = faults.into_iter().flat_map(|fault| [fault, Act::Take]).chain([Act::HalfBody]);
    let server = Server::start(move |_| acts.next().unwrap_or(Act::Take));
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), quick());
    let ids = record(&deliver, 0..count + 3);
    let status = |deliver: &Deliver| deliver.status();
    until("delivery", || status(&deliver).delivered == count + 3);
    let status = deliver.status();
    let drained = deliver.drain(LONG).unwrap();

    let seen = server.seen();
    assert_eq!(seen.order, ids, "in order, each once");
    assert_eq!((seen.repeats, seen.requests.len() as u64), (1, 2 * count + 3));
    assert_eq!((status.attempts, status.waiting, status.set_aside), (2 * count + 3, 0, 0));
    assert_eq!((drained.delivered, drained.waiting, drained.last_error), (count + 3, 0, None));
    assert_eq!(drained.bytes_uploaded, seen.acknowledged);
    for (n, id) in ids.iter().enumerate() {
        let (request, part) = (&seen.kept[id], 3 * n as u64 + 2);
        assert_eq!(request.line, "POST /api/v1/anomalies HTTP/1.1");
        assert_eq!(request.headers["authorization"], "Bearer t0ken");
        let fields = request.fields();
        let event: Event = serde_json::from_slice(&fields["event"].1).unwrap();
        assert_eq!((event.id.to_string(), event.part, &*event.reasons[0]), (id.clone(), part, "größer"));
        assert!(event.spooled_s > 0.0 && event.spooled_s < 30.0);
        let Pictures { frame_jpeg, heatmap_png, normal_jpeg } = pictures(part, 5000);
        let kind = |name: &str| fields[name].0.as_str();
        assert_eq!([kind("event"), kind("frame"), kind("heatmap")], ["application/json", "image/jpeg", "image/png"]);
        assert!(fields["frame"].1 == frame_jpeg && fields["heatmap"].1 == heatmap_png);
        assert!(fields.get("normal").map(|f| &f.1) == normal_jpeg.as_ref());
    }
    assert_eq!(bench.count("SELECT count(*) FROM spool") + bench.count("SELECT count(*) FROM pictures"), 0);
    assert_eq!(bench.count("SELECT count(*) FROM ledger"), 3 * (count as i64 + 3));
    assert_eq!(bench.count("SELECT count(*) FROM ledger WHERE delivered_at IS NOT NULL"), count as i64 + 3);
}

#[test]
fn refused_connection_keeps_everything() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bench = Bench::new();
    let url = format!("http://{address}");
    let deliver = bench.open(Some(&url), quick());
    let ids = record(&deliver, 0..5);
    until("the attempts", || deliver.status().attempts > 8);
    let (start, patience) = (Instant::now(), Duration::from_millis(200));
    let drained = deliver.drain(patience).unwrap();
    assert!(start.elapsed() >= patience && start.elapsed() < LONG);
    assert_eq!((drained.delivered, drained.waiting), (0, 5));
    let said = drained.last_error.unwrap();
    assert!(said.contains("refused"), "{said}");

    let server = Server::start_at(address, |_| Act::Take);
    // a new run, without anomalies of its own, sends those of the earlier one; oldest first
    let drained = bench.open(Some(&url), quick()).drain(LONG).unwrap();
    assert_eq!((drained.delivered, drained.waiting, drained.last_error), (5, 0, None));
    assert_eq!(server.seen().order, ids);
}

#[test]
fn long_outage_then_all_arrive_in_order() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bench = Bench::new();
    let deliver = bench.open(Some(&format!("http://{address}")), quick());
    let ids = record(&deliver, 0..40);
    until("the attempts", || deliver.status().attempts > 12);
    let server = Server::start_at(address, |_| Act::Take);
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    assert_eq!(server.seen().order, ids);
    assert_eq!(server.seen().repeats, 0);
}

#[test]
fn retry_after_is_respected() {
    let mut acts = vec![Act::Take, Act::Answer(429, "Retry-After: 1\r\n", "")];
    let server = Server::start(move |_| acts.pop().unwrap_or(Act::Take));
    let deliver = Bench::new();
    let deliver = deliver.open(Some(&server.url()), quick());
    record(&deliver, 0..2);
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    let seen = server.seen();
    assert!(seen.requests[1].0 - seen.requests[0].0 >= Duration::from_secs(1));
    assert_eq!(seen.requests.len(), 3);
    assert!(seen.requests[2].0 - seen.requests[1].0 < Duration::from_secs(1));
}

#[test]
fn absurd_retry_after_is_capped() {
    let mut acts = vec![Act::Take, Act::Answer(503, "Retry-After: 999999\r\n", "")];
    let server = Server::start(move |_| acts.pop().unwrap_or(Act::Take));
    let bench = Bench::new();
    let limits = Limits { retry_after_most: Duration::from_millis(100), ..quick() };
    let deliver = bench.open(Some(&server.url()), limits);
    record(&deliver, 0..1);
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
}

#[test]
fn slow_server_is_cut_off() {
    let mut acts = vec![Act::Silent, Act::Silent];
    let server = Server::start(move |_| acts.pop().unwrap_or(Act::Take));
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), Limits { request: Duration::from_millis(200), ..quick() });
    let ids = record(&deliver, 0..2);
    until("the time-out", || deliver.status().last_error.is_some_and(|why| why.contains("timed out")));
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    assert_eq!(server.seen().order, ids);
}

#[test]
fn endless_answer_is_cut_off() {
    let mut acts = vec![Act::Endless];
    let server = Server::start(move |_| acts.pop().unwrap_or(Act::Take));
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), quick());
    record(&deliver, 0..1);
    let start = Instant::now();
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    // not by the request's time-out
    assert!(start.elapsed() < Limits::default().request);
}

#[test]
fn stop_does_not_wait_for_a_silent_server() {
    let server = Server::start(|_| Act::Silent);
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), quick());
    record(&deliver, 0..1);
    until("the request", || deliver.status().attempts == 1);
    let start = Instant::now();
    assert_eq!(deliver.drain(Duration::from_millis(10)).unwrap().waiting, 1);
    assert!(start.elapsed() < Limits::default().request);
}

#[test]
fn refused_item_does_not_block() {
    let first = Arc::new(std::sync::Mutex::new(String::new()));
    let refused = first.clone();
    let server = Server::start(move |request| {
        let mut first = refused.lock().unwrap();
        if first.is_empty() {
            *first = request.id.clone();
        }
        if request.id == *first { Act::Answer(422, "", "no such\r\nline") } else { Act::Take }
    });
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), quick());
    let ids = record(&deliver, 0..10);
    until("delivery", || deliver.status().delivered == 9);
    // it waits for a person, and is not tried again
    until("the refusal", || deliver.status().dead == 1);
    let status = deliver.status();
    assert_eq!((status.attempts, status.waiting, status.set_aside), (10, 0, 0));
    let said = status.last_error.unwrap();
    assert_eq!(said, "422 Unprocessable Entity: no such  line");
    let drained = deliver.drain(LONG).unwrap();
    assert_eq!((drained.delivered, drained.waiting), (9, 0));
    assert_eq!(*first.lock().unwrap(), ids[0]);
    assert_eq!(server.seen().order, ids[1..]);
    assert_eq!(bench.count("SELECT count(*) FROM spool JOIN delivery USING (seq) WHERE delivery.state = 'dead'"), 1);
    assert_eq!(bench.count("SELECT count(*) FROM ledger WHERE fate = 'dead'"), 1);
}

#[test]
fn failing_item_is_found_out() {
    let (mended, first) = (Arc::new(AtomicBool::new(false)), std::sync::OnceLock::<String>::new());
    let works = mended.clone();
    let server = Server::start(move |request| {
        let poison = first.get_or_init(|| request.id.clone());
        if request.id == *poison && !works.load(Relaxed) { Act::Answer(500, "", "crash") } else { Act::Take }
    });
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), quick());
    let ids = record(&deliver, 0..10);
    until("delivery", || deliver.status().delivered == 9);
    assert_eq!(server.seen().order, ids[1..]);
    mended.store(true, Relaxed);
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    assert_eq!(server.seen().order[9], ids[0]);
}

#[test]
fn mended_endpoint_gets_all() {
    let mended = Arc::new(AtomicBool::new(false));
    let works = mended.clone();
    let mut refusals = [401, 403, 404, 405, 407].into_iter().cycle();
    let server = Server::start(move |_| match works.load(Relaxed) {
        true => Act::Take,
        false => Act::Answer(refusals.next().unwrap(), "", ""),
    });
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), quick());
    let ids = record(&deliver, 0..10);
    until("the refusals", || deliver.status().set_aside == 10 && deliver.status().attempts > 14);
    mended.store(true, Relaxed);
    let drained = deliver.drain(LONG).unwrap();
    assert_eq!((drained.delivered, drained.waiting, drained.last_error), (10, 0, None));
    assert_eq!(server.seen().kept.keys().collect::<BTreeSet<_>>(), ids.iter().collect());
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn plain_sink_gets_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/plain_sink.py");
    let sink = Command::new("python3").arg(script).arg(folder.path()).stdout(Stdio::piped()).spawn();
    let mut sink = Killed(sink.unwrap_or_else(|e| panic!("this test needs python3: {e}")));
    let mut port = String::new();
    BufReader::new(sink.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let bench = Bench::new();
    let deliver = bench.open(Some(&format!("http://127.0.0.1:{}/any/hook", port.trim())), quick());
    let ids = record(&deliver, 0..20);
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);

    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let id = name.split('.').next().unwrap().to_owned();
        assert!(found.insert(id, entry.path()).is_none(), "{name} came twice");
    }
    assert_eq!(found.keys().collect::<BTreeSet<_>>(), ids.iter().collect());
    for (n, id) in ids.iter().enumerate() {
        let read = |field: &str| std::fs::read(found[id].join(field));
        let event: Event = serde_json::from_slice(&read("event").unwrap()).unwrap();
        let part = 3 * n as u64 + 2;
        assert_eq!((event.id.to_string(), event.part), (id.clone(), part));
        let expected = pictures(part, 5000);
        assert!(read("frame").unwrap() == expected.frame_jpeg && read("heatmap").unwrap() == expected.heatmap_png);
        assert!(read("normal").ok() == expected.normal_jpeg);
    }
}

const CHILD: &str = "LINESIGHT_TEST_CHILD";

/// Not a test of its own: what `killed_at_any_moment_nothing_committed_is_lost` runs and kills.
#[test]
fn child_that_is_killed() {
    let Some(arguments) = std::env::var(CHILD).ok() else { return };
    let (url, database) = arguments.split_once(' ').unwrap();
    let deliver = open(Path::new(database), Some(url), quick());
    let mut out = std::io::stdout();
    for n in 0.. {
        for part in 4 * n..4 * n + 3 {
            deliver.record(good(part)).unwrap();
        }
        let (id, anomaly) = bad(4 * n + 3, 20_000);
        deliver.record(anomaly).unwrap();
        deliver.flush().unwrap();
        writeln!(out, "\nflushed {id}").unwrap();
    }
}

#[test]
fn killed_at_any_moment_nothing_committed_is_lost() {
    let mut calls = 0u64;
    // now and then an answer is lost, so that an anomaly is with both sides when the process dies
    let server = Server::start(move |_| {
        calls += 1;
        if calls.is_multiple_of(5) { Act::LoseAnswer } else { Act::Take }
    });
    let bench = Bench::new();
    let mut flushed = BTreeSet::new();
    const ROUNDS: u64 = 40;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD, format!("{} {}", server.url(), bench.database.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let chance = Uuid::now_v7().as_u64_pair().1;
        for _ in 0..chance % 12 {
            flushed.extend(lines.by_ref().find_map(|line| line.strip_prefix("flushed ").map(str::to_owned)));
        }
        let moment = Instant::now() + Duration::from_micros(chance / 12 % 8000);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "round {round}: it ended by itself");
        flushed.extend(lines.filter_map(|line| line.strip_prefix("flushed ").map(str::to_owned)));
    }
    let left = bench.open(None, quick()).status().waiting;
    let drained = bench.open(Some(&server.url()), quick()).drain(LONG).unwrap();
    assert_eq!((drained.delivered, drained.waiting), (left, 0));

    let seen = server.seen();
    let delivered: BTreeSet<String> = seen.kept.keys().cloned().collect();
    println!(
        "{ROUNDS} kills, {} flushed, {} delivered, {left} of them after the last kill, {} repeats",
        flushed.len(),
        delivered.len(),
        seen.repeats
    );
    assert!(!flushed.is_empty() && flushed.is_subset(&delivered), "lost: {:?}", flushed.difference(&delivered));
    assert_eq!(seen.order.len(), delivered.len());
    // the ledger has each part up to the last one, in every run, and knows what was delivered
    assert_eq!(
        bench.count("SELECT count(*) FROM (SELECT 1 FROM ledger GROUP BY run HAVING count(*) != max(part) + 1)"),
        0
    );
    let events = bench.count("SELECT count(*) FROM ledger WHERE event IS NOT NULL AND delivered_at IS NOT NULL");
    assert_eq!(events, delivered.len() as i64);
    assert_eq!(bench.count("SELECT count(*) FROM ledger WHERE (event IS NULL) != (delivered_at IS NULL)"), 0);
    assert_eq!(bench.count("SELECT integrity_check = 'ok' FROM pragma_integrity_check"), 1);
}

/// Records until it is refused; the ids that were taken.
fn fill(deliver: &Deliver, from: u64) -> (Vec<String>, String) {
    let mut ids = Vec::new();
    for part in from..from + 10_000 {
        let (id, anomaly) = bad(part, 100_000);
        if let Err(e) = deliver.record(anomaly) {
            assert!(deliver.flush().is_err() && deliver.record(good(part)).is_err());
            assert!(deliver.status().write_error.is_some() && e.hint_text().is_some());
            return (ids, e.to_string());
        }
        ids.push(id);
    }
    panic!("it never was full");
}

/// Records one more as soon as it is taken.
fn take_again(deliver: &Deliver) -> String {
    let mut taken = None;
    until("room", || {
        let (id, anomaly) = bad(20_000, 1000);
        taken = deliver.record(anomaly).is_ok().then_some(id);
        taken.is_some()
    });
    taken.unwrap()
}

/// All arrived, each once. A probe of the second one that met the endpoint's return may have overtaken the first.
fn all_arrived(server: &Server, mut ids: Vec<String>) {
    let mut order = server.seen().order.clone();
    order.sort_unstable();
    ids.sort_unstable();
    assert_eq!(order, ids);
}

/// The endpoint takes nothing until `works`.
fn switched() -> (Server, Arc<AtomicBool>) {
    let works = Arc::new(AtomicBool::new(false));
    let on = works.clone();
    (Server::start(move |_| if on.load(Relaxed) { Act::Take } else { Act::Answer(503, "", "") }), works)
}

/// The database is full, the endpoint comes back, deliveries make room: everything that was taken arrives.
#[test]
fn full_database_drains_and_takes_again() {
    let (server, works) = switched();
    let bench = Bench::new();
    let deliver = bench.open(Some(&server.url()), Limits { pages: Some(700), ..quick() });
    let (mut ids, e) = fill(&deliver, 0);
    assert_eq!(e, format!("cannot write \"{}\": database or disk is full", bench.database.display()));
    works.store(true, Relaxed);
    ids.push(take_again(&deliver));
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    all_arrived(&server, ids);
}

/// Something else fills the disk; a person makes room.
#[test]
fn full_disk_refuses_and_recovers() {
    let Some(disk) = Disk::new("48m") else { return };
    let (database, ballast) = (disk.0.path().join("spool.db"), disk.0.path().join("ballast"));
    std::fs::write(&ballast, vec![0; 32 << 20]).unwrap();
    let deliver = open(&database, None, quick());
    let (mut ids, e) = fill(&deliver, 0);
    assert!(e.contains("database or disk is full") || e.contains("disk I/O error"), "{e}");
    std::fs::remove_file(&ballast).unwrap();
    ids.push(take_again(&deliver));
    drop(deliver);
    let server = Server::start(|_| Act::Take);
    assert_eq!(open(&database, Some(&server.url()), quick()).drain(LONG).unwrap().waiting, 0);
    assert_eq!(server.seen().order, ids);
}

/// The spool itself fills its disk; when the endpoint comes back it drains, because a reserve was left.
#[test]
fn spool_that_filled_its_disk_drains() {
    let Some(disk) = Disk::new("32m") else { return };
    let (server, works) = switched();
    let database = disk.0.path().join("spool.db");
    let deliver = open(&database, Some(&server.url()), Limits { reserve: 12 << 20, ..quick() });
    let (mut ids, e) = fill(&deliver, 0);
    assert!(e.contains("are kept in reserve"), "{e}");
    works.store(true, Relaxed);
    // the file gives pages back to the disk as it empties
    ids.push(take_again(&deliver));
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    all_arrived(&server, ids);
}
