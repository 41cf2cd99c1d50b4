//! `linesight spool`: what a person sees of the spool and decides about it, beside a running linesight and without one.

#![allow(clippy::unwrap_used)]

#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/records.rs"]
mod records;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bad_server::{Act, Server};
use linesight::deliver::ledger::Ledger;
use linesight::deliver::{Config, Deliver, Endpoint, Limits, Pictures, Record, Target};
use linesight::event::{Event, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);

fn bad(part: u64) -> (String, Record) {
    let pictures = Pictures { frame_jpeg: vec![7; 3000], heatmap_png: vec![8; 90], normal_jpeg: Some(vec![9; 50]) };
    records::anomaly("east", part, Verdict::Reject, pictures)
}

struct Bench {
    folder: TempDir,
    database: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("spool.db");
        Bench { folder, database }
    }

    fn open(&self, targets: &[(&str, &str)]) -> Deliver {
        let target = |(name, url): &(&str, &str)| Target {
            name: (*name).into(),
            ..Target::review(Endpoint::new(url.parse().unwrap()))
        };
        let limits = Limits {
            retry_first: Duration::from_millis(4),
            retry_slowest: Duration::from_millis(60),
            reserve: 0,
            ..Limits::default()
        };
        let targets = targets.iter().map(target).collect();
        Deliver::open_with(
            Config { database: self.database.clone(), run: Uuid::now_v7(), targets, audit: None },
            limits,
        )
        .unwrap()
    }

    fn run(&self, arguments: &[&str]) -> (String, String, i32) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linesight"));
        command.arg("spool").args(arguments).arg("--spool").arg(&self.database);
        let out = command.stdin(Stdio::null()).env("NO_COLOR", "1").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out.stdout), text(out.stderr), out.status.code().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (out, err, code) = self.run(arguments);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// Counts of the ledger: delivered, waiting, dead, purged.
    fn counts(&self) -> (u64, u64, u64, u64) {
        let r = Ledger::open(&self.database).unwrap().reconcile("east").unwrap();
        assert_eq!(r.wrong, [""; 0]);
        (r.delivered, r.waiting, r.dead, r.purged)
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Three anomalies that the endpoint has refused for what they are.
fn refused(bench: &Bench) -> Vec<String> {
    let server = Server::start(|_| Act::Answer(422, "", "no such site"));
    let deliver = bench.open(&[("review", &server.url())]);
    deliver.resume("east").unwrap();
    let ids = (0..3).map(|part| {
        let (id, record) = bad(part);
        deliver.record(record).unwrap();
        id
    });
    let ids = ids.collect();
    until("the refusal", || deliver.status().dead == 3);
    ids
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn looking_changes_nothing() {
    let bench = Bench::new();
    let ids = refused(&bench);
    let before = bytes(&bench.database);
    let list = bench.json(&["list", "--json"]);
    let list = list.as_array().unwrap();
    assert_eq!(list.iter().map(|letter| letter["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    let one = &list[1];
    assert_eq!((&one["line"], &one["part"], &one["state"]), (&json!("east"), &json!(1), &json!("dead")));
    let target = &one["targets"][0];
    assert_eq!(
        (&target["target"], &target["state"], &target["attempts"]),
        (&json!("review"), &json!("dead"), &json!(1))
    );
    assert!(target["last_error"].as_str().unwrap().contains("422"), "{target}");
    for (arguments, wanted) in [
        (&["list", "--json", "--dead"][..], 3),
        (&["list", "--json", "--line", "west"], 0),
        (&["list", "--json", "--target", "backup"], 0),
    ] {
        assert_eq!(bench.json(arguments).as_array().unwrap().len(), wanted, "{arguments:?}");
    }
    let (out, _, _) = bench.run(&["list"]);
    assert!(out.contains("review dead after 1 attempts (") && out.lines().count() == 4, "{out}");
    // by the beginning of its id, when only one begins so
    let out = bench.folder.path().join("one");
    let shown = bench.json(&["show", &ids[2], "--json", "--out", out.to_str().unwrap()]);
    assert_eq!((&shown["event"]["id"], &shown["event"]["part"]), (&json!(ids[2]), &json!(2)));
    assert_eq!((bytes(&out.join("frame.jpg")), bytes(&out.join("normal.jpg"))), (vec![7; 3000], vec![9; 50]));
    let (_, err, code) = bench.run(&["show", "0"]);
    assert!(code == 2 && err.contains("\"0\" is the beginning of 3 ids") && err.contains("hint: "), "{err}");
    let (_, err, code) = bench.run(&["show", "ffff"]);
    assert!(code == 2 && err.contains("the spool has no anomaly \"ffff\""), "{err}");
    // all, as files
    let out = bench.folder.path().join("all");
    for _ in 0..2 {
        let (text, err, code) = bench.run(&["export", "--dead", "--out", out.to_str().unwrap()]);
        assert!(code == 0 && text.contains("3 anomalies written"), "{err}");
    }
    for id in &ids {
        let event: Event = serde_json::from_slice(&bytes(&out.join(id).join("event.json"))).unwrap();
        assert_eq!(event.id.to_string(), *id);
        assert_eq!(bytes(&out.join(id).join("heatmap.png")), [8; 90]);
    }
    let (_, err, code) = bench.run(&["export", "--out", out.to_str().unwrap()]);
    assert!(code == 2 && err.contains("no anomaly is named"), "{err}");
    assert_eq!(bytes(&bench.database), before);
}

#[test]
fn retried_by_hand() {
    let bench = Bench::new();
    let ids = refused(&bench);
    assert_eq!(bench.counts(), (0, 0, 3, 0));
    assert_eq!(bench.json(&["retry", &ids[0], "--json"])["anomalies"], 1);
    assert_eq!(bench.counts(), (0, 1, 2, 0));
    assert_eq!(bench.json(&["retry", "--all", "--json"])["anomalies"], 2);
    let (out, _, code) = bench.run(&["retry", "--all"]);
    assert!(code == 0 && out.contains("nothing to do"), "{out}");
    let server = Server::start(|_| Act::Take);
    assert_eq!(bench.open(&[("review", &server.url())]).drain(LONG).unwrap().delivered, 3);
    assert_eq!(server.seen().order, ids);
    assert_eq!(bench.counts(), (3, 0, 0, 0));
}

#[test]
fn given_up_by_hand() {
    let bench = Bench::new();
    let ids = refused(&bench);
    let (_, err, code) = bench.run(&["purge", &ids[0]]);
    assert!(code == 2 && err.contains("1 anomalies will be removed") && err.contains("--yes"), "{err}");
    assert_eq!(bench.counts(), (0, 0, 3, 0));
    let (_, err, code) = bench.run(&["purge", &ids[0], "--target", "backup", "--yes"]);
    assert!(code == 2 && err.contains("does not wait for the target \"backup\""), "{err}");
    let (out, _, _) = bench.run(&["purge", &ids[0], "--yes"]);
    assert!(out.contains("1 anomalies given up (1 deliveries), 1 of them left the spool"), "{out}");
    assert_eq!(bench.counts(), (0, 0, 2, 1));
    let done = bench.json(&["purge", "--dead", "--yes", "--json"]);
    assert_eq!((&done["anomalies"], &done["removed"]), (&json!(2), &json!(2)));
    assert_eq!(bench.counts(), (0, 0, 0, 3));
    // of two targets one is given up: what the other has got is delivered, what it has not waits for it
    let (here, away) = (Server::start(|_| Act::Take), Server::start(|_| Act::Answer(503, "", "")));
    let deliver = bench.open(&[("review", &here.url()), ("backup", &away.url())]);
    let next = deliver.resume("east").unwrap().next_part;
    deliver.record(bad(next).1).unwrap();
    until("one delivery", || here.seen().kept.len() == 1 && deliver.status().targets[0].depth.waiting == 0);
    drop(deliver);
    assert_eq!(bench.counts(), (0, 1, 0, 3));
    let done = bench.json(&["purge", "--all", "--target", "backup", "--yes", "--json"]);
    assert_eq!((&done["deliveries"], &done["removed"]), (&json!(1), &json!(1)));
    assert_eq!(bench.counts(), (0, 0, 0, 4));
}

#[test]
fn a_running_linesight_notices() {
    let bench = Bench::new();
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = mended.clone();
    let server = Server::start(move |_| if is_mended.load(Relaxed) { Act::Take } else { Act::Answer(422, "", "no") });
    let deliver = bench.open(&[("review", &server.url())]);
    deliver.resume("east").unwrap();
    let ids: Vec<String> = (0..4)
        .map(|part| {
            let (id, record) = bad(part);
            deliver.record(record).unwrap();
            id
        })
        .collect();
    until("the refusal", || deliver.status().dead == 4);
    mended.store(true, Relaxed);
    bench.json(&["purge", &ids[3], "--yes", "--json"]);
    bench.json(&["retry", "--all", "--json"]);
    until("the delivery", || deliver.status().delivered == 3);
    assert_eq!(server.seen().order, ids[..3]);
    until("the count", || (deliver.status().waiting, deliver.status().dead) == (0, 0));
    assert_eq!(bench.counts(), (3, 0, 0, 1));
}

#[test]
fn other_files_are_named() {
    let bench = Bench::new();
    let (_, err, code) = bench.run(&["list"]);
    assert!(code == 3 && err.contains("there is no database"), "{err}");
    std::fs::write(&bench.database, "a letter to my aunt ".repeat(100)).unwrap();
    let before = bytes(&bench.database);
    for command in [&["list"][..], &["retry", "--all"], &["purge", "--all", "--yes"]] {
        let (_, err, code) = bench.run(command);
        assert!(code == 1 && err.contains("is not a database") && err.contains("hint: "), "{err}");
    }
    assert_eq!(bytes(&bench.database), before);
}
