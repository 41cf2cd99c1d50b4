//! The ledger over kills, lost machines, full disks, endpoints that misbehave and hands that change it.

#![allow(clippy::unwrap_used)]

#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/records.rs"]
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bad_server::{Act, Server};
use linesight::deliver::audit::{Reconciled, Verified};
use linesight::deliver::ledger::{Filter, Ledger, LedgerEntry};
use linesight::deliver::{
    Config, Deliver, Endpoint, Limits, Pictures, Record, ReportsKept, Retention, STOPPED_BEFORE_PICTURE, Target,
};
use linesight::event::{Event, LineReport, LineState, SpoolDepth, Verdict};
use records::{anomaly, plain};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);

/// Kills of a test: few, or all that were asked for.
fn kills() -> usize {
    if std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full") { 20 } else { 5 }
}

fn good(line: &str, part: u64) -> Record {
    plain(line, part, Verdict::Pass)
}

/// An anomaly with pictures of so many bytes.
fn bad(line: &str, part: u64, verdict: Verdict, size: usize) -> (String, Record) {
    let pictures = Pictures { frame_jpeg: vec![1; size], heatmap_png: vec![2; 9], normal_jpeg: None };
    anomaly(line, part, verdict, pictures)
}

fn report(line: &str, calibration: Option<Vec<f32>>) -> LineReport {
    serde_json::from_value(json!({
        "schema": 1, "site": "s", "line": line, "run": Uuid::nil(), "seq": 0, "at": jiff::Timestamp::now(),
        "state": LineState::Live, "last_frame_age_s": 0.1, "fps": 30.0, "counters": {
            "frames": 0, "parts": 0, "passed": 0, "rejected": 0, "unsure": 0, "missed": 0, "late": 0, "dropped": {},
            "reconnects": 0},
        "spool": SpoolDepth::default(), "health": {}, "drift": {},
        "model": {"name": "m", "version": "1", "sha256": "00"}, "threshold": 1.0, "calibration": calibration,
    }))
    .unwrap()
}

/// Pauses that tests can wait for.
fn quick() -> Limits {
    Limits {
        retry_first: Duration::from_millis(4),
        retry_slowest: Duration::from_millis(60),
        write_again: Duration::from_millis(20),
        reserve: 0,
        journal_slots: 1024,
        ..Limits::default()
    }
}

struct Bench {
    _folder: TempDir,
    database: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("spool.db");
        Bench { _folder: folder, database }
    }

    fn open(&self, url: Option<&str>, limits: Limits) -> Deliver {
        open(&self.database, url, limits)
    }

    fn sql(&self) -> Connection {
        Connection::open(&self.database).unwrap()
    }

    fn count(&self, sql: &str) -> i64 {
        self.sql().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.database).unwrap()
    }

    fn verify(&self, line: &str) -> Verified {
        self.ledger().verify(line, None).unwrap()
    }

    fn reconcile(&self, line: &str) -> Reconciled {
        self.ledger().reconcile(line).unwrap()
    }

    fn rows(&self) -> Vec<LedgerEntry> {
        let mut rows = Vec::new();
        self.ledger()
            .oldest(&Filter::default(), |row| {
                rows.push(row);
                Ok(())
            })
            .unwrap();
        rows
    }

    /// The files as they are now, as after the death of the process. Nothing is being written meanwhile.
    fn as_if_killed(&self) -> Bench {
        let copy = Bench::new();
        for entry in std::fs::read_dir(self.database.parent().unwrap()).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), copy.database.with_file_name(entry.file_name())).unwrap();
        }
        copy
    }
}

fn open(database: &Path, url: Option<&str>, limits: Limits) -> Deliver {
    let targets = url.map(|url| Target::review(Endpoint::new(url.parse().unwrap()))).into_iter().collect();
    Deliver::open_with(Config { database: database.into(), run: Uuid::now_v7(), targets, audit: None }, limits).unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The command's output and exit code.
fn linesight(database: &Path, arguments: &[&str]) -> (String, String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linesight"));
    command.arg("ledger").args(arguments).arg("--spool").arg(database).env_remove("LINESIGHT_LOG");
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(out.stdout), text(out.stderr), out.status.code().unwrap())
}

#[test]
fn a_clean_stop_leaves_no_window() {
    let bench = Bench::new();
    for round in 0..3 {
        let deliver = bench.open(None, quick());
        let resumed = deliver.resume("a").unwrap();
        assert_eq!((resumed.next_part, resumed.interrupted), (10 * round, None));
        for part in 10 * round..10 * round + 10 {
            deliver.record(good("a", part)).unwrap();
        }
        // a line that is loaded anew goes on
        assert_eq!(deliver.resume("a").unwrap().next_part, 10 * round + 10);
        // lines have their own numbers
        assert_eq!(deliver.resume("b").unwrap().next_part, 0);
        deliver.drain(Duration::ZERO).unwrap();
    }
    let verified = bench.verify("a");
    assert_eq!((verified.wrong, verified.rows, verified.parts), (None, 30, Some((0, 29))));
    assert_eq!((verified.interrupted, verified.gaps), (vec![], vec![]));
    assert_eq!(bench.verify("b").wrong, None);
    let reconciled = bench.reconcile("a");
    assert_eq!((reconciled.triggered, reconciled.passed, &*reconciled.wrong), (30, 30, &[][..]));
}

#[test]
fn no_number_twice() {
    let bench = Bench::new();
    let deliver = bench.open(None, quick());
    deliver.resume("a").unwrap();
    deliver.record(good("a", 0)).unwrap();
    drop(deliver);
    let deliver = bench.open(None, quick());
    deliver.resume("a").unwrap();
    deliver.record(plain("a", 0, Verdict::Missed)).unwrap();
    deliver.flush().unwrap();
    assert_eq!(deliver.status().ledger_conflicts, 1);
    assert_eq!(bench.count("SELECT count(*) FROM ledger WHERE verdict = 'pass'"), 1);
    assert_eq!(bench.verify("a").wrong, None);
    let e = deliver.record(good("a", 1 << 40)).unwrap_err();
    assert!(e.to_string().contains("is not reserved"), "{e}");
}

#[test]
fn verify_accepts_what_was_written() {
    let bench = Bench::new();
    let deliver = bench.open(None, quick());
    deliver.resume("größe \"1\"").unwrap();
    let odd = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, 1e-45, f32::MAX, 0.1, 3.0, -1.5];
    for (part, score) in odd.into_iter().enumerate() {
        let mut record = good("größe \"1\"", part as u64);
        let row = &mut record.row;
        (row.score, row.confidence, row.late_ms) = (score, score, Some(score));
        row.reasons = vec!["a;b".into(), "\"ü\"\n".into()];
        (row.lot, row.serial) = (Some("L,1".into()), (part % 2 == 0).then(|| "S\r\n".into()));
        deliver.record(record).unwrap();
    }
    // before and after the database has it, and by who only reads while it is written
    deliver.flush().unwrap();
    let verified = bench.verify("größe \"1\"");
    assert_eq!((verified.wrong, verified.rows), (None, odd.len() as u64));
    let killed = bench.as_if_killed();
    drop(killed.open(None, quick()));
    assert_eq!(killed.verify("größe \"1\"").wrong, None);
}

/// A line with twenty parts, four of them anomalies that wait.
fn twenty(bench: &Bench) {
    let deliver = bench.open(None, quick());
    deliver.resume("a").unwrap();
    for part in 0..20 {
        deliver.record(if part % 5 == 4 { bad("a", part, Verdict::Reject, 10).1 } else { good("a", part) }).unwrap();
    }
    deliver.drain(Duration::ZERO).unwrap();
    drop(bench.open(None, quick()));
}

#[test]
fn verify_finds_what_was_done() {
    let hide = "UPDATE lines SET chain = 19, next_part = 19, hash = (SELECT hash FROM ledger WHERE chain = 18)";
    for (done, found) in [
        ("UPDATE ledger SET score = 0.1 WHERE chain = 5", "row 5 (part 5) does not fit its hash"),
        ("UPDATE ledger SET verdict = 'pass' WHERE part = 9", "row 9 (part 9) does not fit its hash"),
        ("UPDATE ledger SET score = 'abc' WHERE part = 9", "row 9 cannot be read"),
        ("UPDATE ledger SET hash = NULL WHERE part = 9", "row 9 cannot be read"),
        ("DELETE FROM ledger WHERE chain = 7", "rows 7 to 7 are missing"),
        (
            "DELETE FROM ledger WHERE chain = 7; UPDATE ledger SET chain = chain - 1 WHERE chain > 7",
            "row 7 (part 8) does not fit its hash",
        ),
        ("DELETE FROM ledger WHERE chain < 3", "rows 0 to 2 are missing, and no checkpoint says so"),
        ("DELETE FROM ledger WHERE chain > 17", "rows 18 to 19 at the end are missing"),
        (
            "UPDATE ledger SET chain = -5 WHERE chain = 5; UPDATE ledger SET chain = 5 WHERE chain = 6;
             UPDATE ledger SET chain = 6 WHERE chain = -5",
            "row 5 (part 6) does not fit its hash",
        ),
        (
            "INSERT INTO ledger (line, run, part, frame, captured_at, verdict, model) VALUES ('a', 'x', 99, 0, 0, 'pass', 'm')",
            "1 rows are outside the chain",
        ),
        (
            "INSERT INTO ledger (line, run, part, frame, captured_at, verdict, model, chain, hash)
             VALUES ('a', 'x', 99, 0, 0, 'pass', 'm', 20, zeroblob(32))",
            "row 20 (part 99) does not fit its hash",
        ),
        ("DELETE FROM lines", "the table of lines does not know this line"),
        ("DELETE FROM ledger", "rows 0 to 19 at the end are missing"),
        ("UPDATE lines SET next_part = 25", "part 20 has no row, and no interrupted row says why"),
    ] {
        let bench = Bench::new();
        twenty(&bench);
        assert_eq!(bench.verify("a").wrong, None);
        bench.sql().execute_batch(done).unwrap();
        let wrong = bench.verify("a").wrong.unwrap_or_else(|| panic!("not found: {done}"));
        assert!(wrong.contains(found), "{done}\n{wrong}");
        let (out, _, code) = linesight(&bench.database, &["verify"]);
        assert!(code == 1 && out.contains("WRONG") && out.contains(found), "{out}");
    }
    // rows cut off at the end, and all traces of them: only a hash that was kept elsewhere tells
    let bench = Bench::new();
    twenty(&bench);
    let hash = bench.verify("a").hash.unwrap();
    assert_eq!(bench.ledger().verify("a", Some(&hash)).unwrap().wrong, None);
    bench.sql().execute_batch(&format!("DELETE FROM ledger WHERE chain = 19; {hide}")).unwrap();
    assert_eq!(bench.verify("a").wrong, None);
    let wrong = bench.ledger().verify("a", Some(&hash)).unwrap().wrong.unwrap();
    assert!(wrong.contains("is not in the chain"), "{wrong}");
    let (out, _, code) = linesight(&bench.database, &["verify", "--chain", &format!("a={hash}")]);
    assert!(code == 1 && out.contains("is not in the chain"), "{out}");
    // a part that was delivered is the same row; one that vanished from the spool does not reconcile
    assert!(bench.sql().execute("UPDATE ledger SET delivered_at = 1 WHERE part = 4", []).unwrap() == 1);
    assert_eq!(bench.verify("a").wrong, None);
    assert_eq!(bench.reconcile("a").wrong.len(), 1);
}

/// The schema before the chain, as it was released.
const OLD: &str = "
    CREATE TABLE ledger (
        line TEXT NOT NULL, run TEXT NOT NULL, part INTEGER NOT NULL, frame INTEGER NOT NULL,
        captured_at INTEGER NOT NULL, verdict TEXT NOT NULL, score REAL, confidence REAL, latency_ms REAL,
        model TEXT NOT NULL, event TEXT, delivered_at INTEGER,
        PRIMARY KEY (line, run, part)
    ) WITHOUT ROWID;
    CREATE TABLE spool (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, line TEXT NOT NULL, run TEXT NOT NULL, part INTEGER NOT NULL,
        event TEXT NOT NULL, spooled_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        next_try INTEGER NOT NULL DEFAULT 0, last_error TEXT, state TEXT NOT NULL DEFAULT 'waiting'
    );
    CREATE INDEX spool_order ON spool (state, seq);
    CREATE TABLE pictures (seq INTEGER PRIMARY KEY, frame BLOB NOT NULL, heatmap BLOB NOT NULL, normal BLOB);
    PRAGMA application_id = 0x4c534754; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;
    INSERT INTO ledger SELECT 'a', 'old', value, value, value, 'pass', 0.5, 0.5, 1.0, 'm@1', NULL, NULL
        FROM generate_series(0, 6);
    INSERT INTO ledger VALUES ('a', 'old', 7, 7, 7, 'reject', 2.5, 0.5, 1.0, 'm@1', 'e1', 99),
        ('a', 'old', 8, 8, 8, 'reject', 2.5, 0.5, 1.0, 'm@1', '0197f0a0-0000-7000-8000-000000000000', NULL);
    INSERT INTO spool (id, line, run, part, event, spooled_at)
        VALUES ('0197f0a0-0000-7000-8000-000000000000', 'a', 'old', 8, '{}', 8);
    INSERT INTO pictures VALUES (1, x'01', x'02', NULL);
";

#[test]
fn an_old_file_is_brought_over() {
    let bench = Bench::new();
    let old = OLD.replace("FROM generate_series(0, 6)", "FROM json_each('[0,1,2,3,4,5,6]')");
    bench.sql().execute_batch(&old).unwrap();
    let (_, err, code) = linesight(&bench.database, &["verify"]);
    assert!(code == 1 && err.contains("was written by an older linesight (schema 1, this one reads 3)"), "{err}");
    let server = Server::start(|_| Act::Take);
    let deliver = bench.open(Some(&server.url()), quick());
    assert_eq!(deliver.resume("a").unwrap().next_part, 0);
    for part in 0..5 {
        deliver.record(good("a", part)).unwrap();
    }
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    assert_eq!(server.seen().order, ["0197f0a0-0000-7000-8000-000000000000"]);
    let verified = bench.verify("a");
    assert_eq!((verified.wrong, verified.rows, verified.unchained), (None, 5, 9));
    let reconciled = bench.reconcile("a");
    assert_eq!((reconciled.wrong, reconciled.triggered, reconciled.delivered), (vec![], 14, 2));
    let (out, _, code) = linesight(&bench.database, &["verify"]);
    assert!(code == 0 && out.contains("9 rows are older than the chain and cannot be verified"), "{out}");
    // and they are removed first
    let retention = Retention { days: Some(1), ..Retention::default() };
    let deliver = bench.open(None, Limits { retention, retain_every: Duration::from_millis(5), ..quick() });
    until("retention", || deliver.status().retained_away == 9);
    drop(deliver);
    let verified = bench.verify("a");
    assert_eq!((verified.wrong, verified.rows, verified.unchained), (None, 5, 0));
}

#[test]
fn retention_keeps_the_chain() {
    let server = Server::start(|_| Act::Take);
    let bench = Bench::new();
    let retention = Retention { rows: Some(100), ..Retention::default() };
    let limits =
        Limits { retention, retain_every: Duration::from_millis(5), batch: Duration::from_millis(5), ..quick() };
    let deliver = bench.open(Some(&server.url()), limits.clone());
    deliver.resume("a").unwrap();
    let first = bench.verify("a").hash;
    for part in 0..3000 {
        deliver.record(if part % 50 == 0 { bad("a", part, Verdict::Unsure, 10).1 } else { good("a", part) }).unwrap();
        if part % 300 == 0 {
            deliver.flush().unwrap();
            assert_eq!(bench.verify("a").wrong, None);
            assert_eq!(bench.reconcile("a").wrong, [""; 0]);
        }
    }
    deliver.flush().unwrap();
    until("retention", || bench.count("SELECT count(*) FROM ledger") <= 110);
    assert!(bench.count("SELECT count(*) FROM ledger WHERE part >= 0") >= 90);
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    assert_eq!(first, None);
    // numbers go on, over an unclean stop too
    let killed = {
        let deliver = bench.open(None, limits);
        assert_eq!(deliver.resume("a").unwrap().next_part, 3000);
        bench.as_if_killed()
    };
    for bench in [&bench, &killed] {
        let deliver = bench.open(None, quick());
        assert_eq!(deliver.resume("a").unwrap().next_part, 3000);
        deliver.record(good("a", 3000)).unwrap();
        drop(deliver);
        let verified = bench.verify("a");
        assert_eq!((verified.wrong, verified.gaps.len()), (None, 0));
        assert!(verified.checkpoints > 0 && verified.first > Some(0));
        assert_eq!(bench.reconcile("a").wrong, [""; 0]);
    }
    // without its checkpoints the head is missing
    bench.sql().execute("DELETE FROM ledger WHERE verdict = 'checkpoint'", []).unwrap();
    assert!(bench.verify("a").wrong.unwrap().contains("no checkpoint says so"));
}

#[test]
fn what_waits_is_not_removed() {
    let bench = Bench::new();
    let retention = Retention { rows: Some(0), ..Retention::default() };
    let deliver = bench.open(None, Limits { retention, retain_every: Duration::from_millis(1), ..quick() });
    deliver.resume("a").unwrap();
    for part in 0..10 {
        deliver.record(if part == 4 { bad("a", part, Verdict::Reject, 10).1 } else { good("a", part) }).unwrap();
    }
    until("retention", || bench.count("SELECT count(*) FROM ledger WHERE part >= 0") == 6);
    deliver.flush().unwrap();
    drop(deliver);
    assert_eq!(bench.count("SELECT min(part) FROM ledger WHERE part >= 0"), 4);
    assert_eq!((bench.verify("a").wrong, bench.reconcile("a").wrong), (None, vec![]));
}

#[test]
fn what_was_recorded_survives_the_process() {
    let bench = Bench::new();
    // the writer never commits by itself
    let deliver = bench.open(None, Limits { batch: Duration::from_secs(3600), ..quick() });
    deliver.resume("a").unwrap();
    let (held, hold) = std::sync::mpsc::sync_channel::<()>(0);
    let (id, mut first) = bad("a", 0, Verdict::Reject, 10);
    // the writer hangs in an encoder
    first.anomaly.as_mut().unwrap().pictures = Box::new(move || {
        let _ = hold.recv();
        Ok(Pictures { frame_jpeg: vec![1], heatmap_png: vec![1], normal_jpeg: None })
    });
    deliver.record(first).unwrap();
    for part in [1, 2, 4, 7] {
        deliver.record(good("a", part)).unwrap();
    }
    deliver.record(plain("a", 6, Verdict::Missed)).unwrap();
    let mut nan = good("a", 8);
    nan.row.score = f32::NAN;
    deliver.record(nan).unwrap();

    let killed = bench.as_if_killed();
    let deliver_again = killed.open(None, quick());
    let resumed = deliver_again.resume("a").unwrap();
    let interrupted = resumed.interrupted.unwrap();
    assert_eq!(resumed.next_part, 9);
    assert_eq!((interrupted.first, interrupted.end, interrupted.machine), (3, 6, false));
    assert_eq!((interrupted.recovered, interrupted.placeholders), (7, 1));
    assert_eq!(deliver_again.status().waiting, 1);
    drop(deliver_again);
    let verified = killed.verify("a");
    assert_eq!((verified.wrong, verified.gaps), (None, vec![(3, 3), (5, 5)]));
    assert_eq!(verified.interrupted, [interrupted]);
    let r = killed.reconcile("a");
    assert_eq!((r.wrong, r.triggered, r.interrupted, r.missed_with_picture), (vec![], 7, 2, 0));
    // it leaves with plain pictures and says why
    let server = Server::start(|_| Act::Take);
    assert_eq!(killed.open(Some(&server.url()), quick()).drain(LONG).unwrap().delivered, 1);
    let seen = server.seen();
    let fields = seen.kept[&id].fields();
    let event: Event = serde_json::from_slice(&fields["event"].1).unwrap();
    assert_eq!(event.reasons, ["größer", STOPPED_BEFORE_PICTURE]);
    assert_eq!(event.regions.len(), 1);
    // a picture of the stated size
    assert!(fields["frame"].1.starts_with(&[0xff, 0xd8]) && fields["heatmap"].1.starts_with(b"\x89PNG"));
    // what has been brought over is not brought over again
    let again = killed.open(None, quick());
    assert_eq!(again.resume("a").unwrap().interrupted, None);
    drop(held);
}

#[test]
fn the_machine_goes_down() {
    let bench = Bench::new();
    let deliver = bench.open(None, Limits { batch: Duration::from_secs(3600), ..quick() });
    deliver.resume("a").unwrap();
    for part in 0..5 {
        deliver.record(good("a", part)).unwrap();
    }
    deliver.flush().unwrap();
    for part in 5..12 {
        deliver.record(good("a", part)).unwrap();
    }
    // the journal is whole, partly torn, of an older state, cut, gone
    type Damage = (&'static str, fn(&Path), u64);
    let damage: [Damage; 5] = [
        ("whole", |_| (), 7),
        (
            "torn",
            |path| {
                let mut bytes = std::fs::read(path).unwrap();
                bytes[512..512 * 3 + 40].fill(0);
                std::fs::write(path, bytes).unwrap();
            },
            4,
        ),
        (
            "head",
            |path| {
                let mut bytes = std::fs::read(path).unwrap();
                bytes[..512].fill(0);
                std::fs::write(path, bytes).unwrap();
            },
            7,
        ),
        (
            "cut",
            |path| {
                std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(512 * 4).unwrap();
            },
            3,
        ),
        ("gone", |path| std::fs::remove_file(path).unwrap(), 0),
    ];
    for (what, damage, recovered) in damage {
        let dead = bench.as_if_killed();
        dead.sql().execute("UPDATE lines SET boot = 'another'", []).unwrap();
        let journal = std::fs::read_dir(dead.database.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "journal"))
            .unwrap();
        damage(&journal);
        let mut next = 0;
        for round in 0..2 {
            let deliver = dead.open(None, quick());
            let resumed = deliver.resume("a").unwrap();
            if round == 0 {
                let window = resumed.interrupted.unwrap();
                assert!(window.machine, "{what}");
                assert_eq!(window.recovered, recovered, "{what}");
                assert!(window.first <= 12 && window.end == resumed.next_part && resumed.next_part >= 12, "{what}");
            } else {
                assert_eq!((resumed.next_part, resumed.interrupted), (next, None), "{what}");
            }
            for part in resumed.next_part..resumed.next_part + 3 {
                deliver.record(good("a", part)).unwrap();
            }
            next = resumed.next_part + 3;
            drop(deliver);
            assert_eq!((dead.verify("a").wrong, dead.reconcile("a").wrong), (None, vec![]), "{what}");
        }
    }
}

const CHILD: &str = "LINESIGHT_TEST_LEDGER_CHILD";

/// Not a test of its own: what `killed_under_load_it_reconciles` runs and kills. Two lines; parts end out of order by a few;
/// each is said to be answered after `record` has returned.
#[test]
fn child_that_is_killed() {
    let Some(arguments) = std::env::var(CHILD).ok() else { return };
    let (url, database) = arguments.split_once(' ').unwrap();
    let deliver = open(Path::new(database), Some(url), quick());
    let deliver = &deliver;
    std::thread::scope(|scope| {
        for line in ["a", "b"] {
            scope.spawn(move || {
                let first = deliver.resume(line).unwrap().next_part;
                for n in 0.. {
                    // 0 1 2 3 end as 1 0 3 2
                    let part = first + (n ^ 1);
                    let (id, record) = match part % 8 {
                        3 => bad(line, part, Verdict::Reject, 20_000),
                        5 => bad(line, part, Verdict::Missed, 1000),
                        6 => (String::new(), plain(line, part, Verdict::Missed)),
                        7 => bad(line, part, Verdict::Unsure, 5000),
                        _ => (String::new(), good(line, part)),
                    };
                    deliver.record(record).unwrap();
                    if part.is_multiple_of(16) {
                        deliver.report(report(line, None));
                    }
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "\nanswered {line} {part} {id}").unwrap();
                }
            });
        }
    });
}

#[test]
fn killed_under_load_it_reconciles() {
    let mut calls = 0u64;
    let server = Server::start(move |_| {
        calls += 1;
        if calls.is_multiple_of(7) { Act::LoseAnswer } else { Act::Take }
    });
    let bench = Bench::new();
    let mut answered = BTreeMap::<(String, u64), String>::new();
    for round in 0..kills() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD, format!("{} {}", server.url(), bench.database.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let chance = Uuid::now_v7().as_u64_pair().1;
        let mut left = 20 + chance % 800;
        let mut killed = false;
        for line in lines {
            let mut words = line.strip_prefix("answered ").unwrap_or_default().split(' ');
            let (Some(line), Some(part), Some(id)) = (words.next(), words.next(), words.next()) else { continue };
            let before = answered.insert((line.into(), part.parse().unwrap()), id.into());
            assert_eq!(before, None, "part {part} of line {line} was answered twice");
            left = left.saturating_sub(1);
            if left == 0 && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        assert!(!child.wait().unwrap().success() && killed, "round {round}: it ended by itself");
    }
    let deliver = bench.open(Some(&server.url()), quick());
    for line in ["a", "b"] {
        assert!(deliver.resume(line).unwrap().interrupted.is_some());
    }
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);

    let rows: BTreeMap<(String, u64), LedgerEntry> =
        bench.rows().into_iter().filter_map(|row| Some(((row.line.clone(), row.part? as u64), row))).collect();
    let seen = server.seen();
    let (mut missing, mut plain) = (0, 0);
    for (part, id) in &answered {
        let row = rows.get(part).unwrap_or_else(|| panic!("{part:?} was answered and is not in the ledger"));
        assert_eq!(row.event.as_deref().unwrap_or_default(), id);
        if !id.is_empty() {
            let event: Event = serde_json::from_slice(&seen.kept[id].fields()["event"].1).unwrap();
            plain += usize::from(event.reasons.contains(&STOPPED_BEFORE_PICTURE.to_owned()));
        }
    }
    for line in ["a", "b"] {
        let verified = bench.verify(line);
        assert_eq!(verified.wrong, None);
        // fewer when it died before the line had started
        assert!((1..=kills()).contains(&verified.interrupted.len()));
        missing += verified.gaps.iter().map(|(first, last)| last - first + 1).sum::<u64>();
        let reconciled = bench.reconcile(line);
        assert_eq!(reconciled.wrong, [""; 0]);
        assert_eq!(reconciled.waiting, 0);
        // reports told each row once and in order
        let told = told(&seen, line);
        let parts: BTreeSet<u64> = told.iter().copied().collect();
        assert_eq!(parts.len(), told.len());
        assert!(told.iter().all(|part| rows.contains_key(&(line.to_owned(), *part))));
    }
    println!(
        "{} kills, {} parts answered, {missing} numbers in interrupted windows, {plain} anomalies with plain pictures",
        kills(),
        answered.len()
    );
    let (out, _, code) = linesight(&bench.database, &["reconcile"]);
    assert!(code == 0 && out.contains("a: OK") && out.contains("b: OK"), "{out}");
}

/// Parts that the reports of a line told, in the order they were taken.
fn told(seen: &bad_server::Seen, line: &str) -> Vec<u64> {
    reports(seen, line)
        .iter()
        .flat_map(|r| r["rows"].as_array().unwrap().iter().map(|row| row["part"].as_u64().unwrap()))
        .collect()
}

fn reports(seen: &bad_server::Seen, line: &str) -> Vec<Value> {
    let path = format!("POST /api/v1/lines/{line}/report HTTP/1.1");
    let taken = seen.order.iter().map(|id| &seen.kept[id]).filter(|request| request.line == path);
    taken.map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
}

#[test]
fn reports_tell_each_row_once() {
    let mut calls = 0u64;
    let server = Server::start(move |_| {
        calls += 1;
        match calls % 4 {
            1 => Act::Answer(503, "Retry-After: 0\r\n", ""),
            2 => Act::LoseAnswer,
            _ => Act::Take,
        }
    });
    let bench = Bench::new();
    let mut runs = Vec::new();
    for round in 0..3 {
        let deliver = bench.open(Some(&server.url()), quick());
        let first = deliver.resume("a b").unwrap().next_part;
        for part in first..first + 30 {
            deliver
                .record(if part % 7 == 0 { bad("a b", part, Verdict::Reject, 10).1 } else { good("a b", part) })
                .unwrap();
            if part % 10 == 9 {
                deliver.report(report("a b", Some(vec![0.5, 1.0])));
            }
        }
        assert_eq!(first, 30 * round);
        assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
        runs.push(Ledger::open(&bench.database).unwrap());
    }
    assert_eq!(bench.count("SELECT count(*) FROM reports"), 0);
    let seen = server.seen();
    assert_eq!(told(&seen, "a%20b"), (0..90).collect::<Vec<_>>());
    let reports = reports(&seen, "a%20b");
    assert_eq!(reports.iter().map(|r| r["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    let calibrated: Vec<bool> = reports.iter().map(|r| r.get("calibration").is_some()).collect();
    assert_eq!(calibrated, [true, false, false, true, false, false, true, false, false]);
    for report in &reports {
        let parsed: LineReport = serde_json::from_value(report.clone()).unwrap();
        assert_ne!(parsed.run, Uuid::nil());
        // a hash that was sent away proves what was before it
        assert_eq!(bench.ledger().verify("a b", parsed.chain.as_deref()).unwrap().wrong, None);
    }
    let key = seen.order.iter().find(|id| id.contains("-a b-")).unwrap();
    assert_eq!(*key, format!("{}-a b-0", reports[0]["run"].as_str().unwrap()));
    assert_eq!(seen.kept[key].headers["content-type"], "application/json");
}

#[test]
fn reports_and_anomalies_do_not_wait_for_each_other() {
    for silent in ["/report", "/anomalies"] {
        let mut server =
            Server::start(move |request| if request.line.contains(silent) { Act::Silent } else { Act::Take });
        let bench = Bench::new();
        let deliver = bench.open(Some(&server.url()), quick());
        deliver.resume("a").unwrap();
        deliver.record(bad("a", 0, Verdict::Reject, 10).1).unwrap();
        deliver.report(report("a", None));
        until("the others", || {
            let status = deliver.status();
            if silent == "/report" { status.delivered == 1 } else { status.reports_delivered == 1 }
        });
        deliver.drain(Duration::ZERO).unwrap();
        // and what waits is sent by the next process
        let works = Server::start(|_| Act::Take);
        bench.open(Some(&works.url()), quick()).drain(LONG).unwrap();
        assert_eq!(works.seen().order.len(), 1);
        server = works;
        drop(server);
    }
}

#[test]
fn reports_are_bounded() {
    let works = Arc::new(AtomicBool::new(false));
    let on = works.clone();
    let server = Server::start(move |_| if on.load(Relaxed) { Act::Take } else { Act::Answer(503, "", "") });
    let bench = Bench::new();
    let limits = Limits { reports: ReportsKept { reports: 5, ..ReportsKept::default() }, ..quick() };
    let deliver = bench.open(Some(&server.url()), limits);
    deliver.resume("a").unwrap();
    for part in 0..20 {
        deliver.record(good("a", part)).unwrap();
        deliver.report(report("a", Some(vec![1.0])));
        deliver.flush().unwrap();
    }
    let status = deliver.status();
    assert_eq!((status.reports_waiting, status.reports_dropped), (5, 15));
    works.store(true, Relaxed);
    deliver.drain(LONG).unwrap();
    let reports = reports(&server.seen(), "a");
    // the newest are left; one that was dropped took the calibration along, so it came again
    let seqs: Vec<u64> = reports.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    // before them at most one that was on its way when it was dropped
    assert!(seqs.ends_with(&[15, 16, 17, 18, 19]) && seqs.len() <= 6, "{seqs:?}");
    assert!(reports.iter().any(|r| r.get("calibration").is_some()));
}

#[test]
fn a_plain_sink_gets_no_reports() {
    for status in [404, 405, 501] {
        let server = Server::start(move |request| match request.line.contains("/report") {
            true => Act::Answer(status, "", "what?"),
            false => Act::Take,
        });
        let bench = Bench::new();
        let deliver = bench.open(Some(&server.url()), quick());
        deliver.resume("a").unwrap();
        for part in 0..3 {
            deliver.record(bad("a", part, Verdict::Reject, 10).1).unwrap();
            deliver.report(report("a", None));
        }
        until("the reports", || deliver.status().reports_dropped == 3);
        assert_eq!(deliver.drain(LONG).unwrap().delivered, 3);
    }
    // one with a path of its own is not even asked
    let server = Server::start(|_| Act::Take);
    let bench = Bench::new();
    let deliver = bench.open(Some(&format!("{}/hook", server.url())), quick());
    deliver.resume("a").unwrap();
    deliver.report(report("a", None));
    deliver.record(bad("a", 0, Verdict::Reject, 10).1).unwrap();
    assert_eq!(deliver.status().reports_dropped, 0);
    assert_eq!(deliver.drain(LONG).unwrap().delivered, 1);
    assert_eq!(server.seen().requests.len(), 1);
}

/// A journal that is smaller than what comes at once makes the line wait, and refuses nothing while the disk takes it.
#[test]
fn a_burst_waits_for_room() {
    let bench = Bench::new();
    let deliver = bench.open(None, Limits { journal_slots: 20, ..quick() });
    deliver.resume("a").unwrap();
    for part in 0..500 {
        deliver.record(if part % 9 == 0 { bad("a", part, Verdict::Reject, 10).1 } else { good("a", part) }).unwrap();
    }
    assert!(deliver.status().channel_waits > 0);
    deliver.drain(Duration::ZERO).unwrap();
    assert_eq!((bench.verify("a").wrong, bench.verify("a").rows), (None, 500));
}

/// The database takes nothing, the line goes on until its journal is full; then the endpoint comes back and all is told.
#[test]
fn a_full_disk_does_not_stop_a_line() {
    let works = Arc::new(AtomicBool::new(false));
    let on = works.clone();
    let server = Server::start(move |_| if on.load(Relaxed) { Act::Take } else { Act::Answer(503, "", "") });
    let bench = Bench::new();
    let limits = Limits { pages: Some(700), journal_slots: 300, ..quick() };
    let deliver = bench.open(Some(&server.url()), limits);
    deliver.resume("a").unwrap();
    let (mut part, mut taken_when_full) = (0, 0);
    let e = loop {
        let record = if part % 2 == 0 { bad("a", part, Verdict::Reject, 50_000).1 } else { good("a", part) };
        // so that the writer has said how it stands before the next one comes
        let failing = deliver.flush().is_err();
        match deliver.record(record) {
            Ok(()) => taken_when_full += u64::from(failing),
            Err(e) => break e,
        }
        part += 1;
        assert!(part < 10_000, "it never was full");
    };
    assert!(e.to_string().contains("database or disk is full") && e.to_string().contains(".journal\" is full"), "{e}");
    assert!(taken_when_full > 50, "{taken_when_full}");
    // killed like this, nothing is lost
    let killed = bench.as_if_killed();
    let again = killed.open(None, quick());
    let resumed = again.resume("a").unwrap();
    assert_eq!(resumed.next_part, part);
    drop(again);
    let verified = killed.verify("a");
    assert_eq!((verified.wrong, verified.rows, verified.gaps), (None, part, vec![]));
    assert_eq!(killed.reconcile("a").wrong, [""; 0]);
    // and alive, it goes on when there is room
    works.store(true, Relaxed);
    until("room", || deliver.record(good("a", part)).is_ok());
    assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    let verified = bench.verify("a");
    assert_eq!((verified.wrong, verified.rows), (None, part + 1));
    let r = bench.reconcile("a");
    assert_eq!((r.wrong, r.delivered), (vec![], part.div_ceil(2)));
    // in order
    let order: Vec<u64> = bench.rows().iter().filter_map(|row| row.part).map(i64::cast_unsigned).collect();
    assert_eq!(order, (0..=part).collect::<Vec<_>>());
}

#[test]
fn the_command_lists_and_exports() {
    let bench = Bench::new();
    let deliver = bench.open(None, quick());
    deliver.resume("a").unwrap();
    deliver.resume("b").unwrap();
    for part in 0..6 {
        let mut record = good("a", part);
        record.row.captured_at = format!("2026-01-0{}T00:00:00Z", part + 1).parse().unwrap();
        record.row.lot = Some(format!("lot \"{}\",\n", part % 2));
        record.row.serial = Some(format!("S{part}"));
        record.row.reasons = vec!["late".into(), "a, b".into()];
        record.row.late_ms = Some(2.5);
        deliver.record(record).unwrap();
    }
    let (id, record) = bad("b", 0, Verdict::Reject, 10);
    deliver.record(record).unwrap();
    deliver.flush().unwrap();
    // all this while it runs
    let parts = |arguments: &[&str]| -> Vec<i64> {
        let (out, err, code) = linesight(&bench.database, &[&["list", "--json"], arguments].concat());
        assert_eq!(code, 0, "{err}");
        let rows: Value = serde_json::from_str(&out).unwrap();
        rows.as_array().unwrap().iter().map(|row| row["part"].as_i64().unwrap()).collect()
    };
    assert_eq!(parts(&["--line", "a"]), [5, 4, 3, 2, 1, 0]);
    assert_eq!(parts(&["--line", "a", "--limit", "2"]), [5, 4]);
    assert_eq!(parts(&["--limit", "3"]), [0, 5, 4]);
    assert_eq!(parts(&["--verdict", "reject"]), [0]);
    assert_eq!(parts(&["--since", "2026-01-03T00:00:00Z", "--until", "2026-01-05T00:00:00Z"]), [3, 2]);
    assert_eq!(parts(&["--lot", "lot \"1\",\n"]), [5, 3, 1]);
    assert_eq!(parts(&["--serial", "S4"]), [4]);
    let (out, _, _) = linesight(&bench.database, &["list"]);
    assert!(
        out.lines().nth(1).unwrap().contains("reject") && out.contains("waiting") && out.contains("serial S5"),
        "{out}"
    );

    let (out, _, code) = linesight(&bench.database, &["export"]);
    assert!(code == 0 && out.contains("\r\n"));
    let mut csv = csv::Reader::from_reader(out.as_bytes());
    let heads = csv.headers().unwrap().clone();
    assert_eq!(heads.len(), 22);
    let rows: Vec<BTreeMap<String, String>> = csv.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 7);
    assert_eq!((&*rows[3]["part"], &*rows[3]["lot"], &*rows[3]["reasons"]), ("3", "lot \"1\",\n", "late; a, b"));
    assert_eq!((&*rows[3]["captured_at"], &*rows[3]["late_ms"]), ("2026-01-04T00:00:00Z", "2.5"));
    assert_eq!((&*rows[6]["event"], &*rows[6]["verdict"], &*rows[6]["delivered_at"]), (&*id, "reject", ""));
    let file = bench.database.with_file_name("out.csv");
    assert_eq!(linesight(&bench.database, &["export", "--out", file.to_str().unwrap()]).2, 0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), out);

    for (arguments, said) in [
        (&["list", "--line", "c"][..], "error: the ledger has no line \"c\"\nhint: its lines: \"a\", \"b\"\n"),
        (&["verify", "--line", "c"], "error: the ledger has no line \"c\"\nhint: its lines: \"a\", \"b\"\n"),
        (&["list", "--since", "yesterday"], "a time is written as 2026-01-31"),
        (
            &["list", "--verdict", "good"],
            "[possible values: pass, reject, unsure, missed, interrupted, checkpoint, salvaged]",
        ),
        (&["verify", "--chain", "a=1"], "the form is LINE=HASH"),
    ] {
        let (_, err, code) = linesight(&bench.database, arguments);
        assert!(code == 2 && err.contains(said), "{err}");
    }
}

#[test]
fn reading_changes_nothing() {
    let bench = Bench::new();
    twenty(&bench);
    let before = std::fs::read(&bench.database).unwrap();
    for arguments in [&["list"][..], &["export"], &["verify"], &["reconcile"]] {
        let (_, err, code) = linesight(&bench.database, arguments);
        assert_eq!((code, &*err), (0, ""));
    }
    assert!(std::fs::read(&bench.database).unwrap() == before);
}

#[test]
fn damaged_files_are_named() {
    let bench = Bench::new();
    let name = bench.database.display().to_string();
    let (_, err, code) = linesight(&bench.database, &["list"]);
    assert!(code == 3 && err.contains(&format!("there is no database \"{name}\"")), "{err}");
    std::fs::write(&bench.database, "a letter to my aunt ".repeat(100)).unwrap();
    let (_, err, code) = linesight(&bench.database, &["list"]);
    assert!(code == 1 && err.contains(&format!("\"{name}\" is not a database")), "{err}");
    std::fs::remove_file(&bench.database).unwrap();
    twenty(&bench);
    let whole = std::fs::read(&bench.database).unwrap();
    let mut named = 0;
    for at in (4096..whole.len()).step_by(4096) {
        let mut bytes = whole.clone();
        bytes[at..at + 4096].fill(0xa5);
        std::fs::write(&bench.database, bytes).unwrap();
        for command in ["list", "export", "verify", "reconcile"] {
            // a page that is not read does not matter
            let (out, err, code) = linesight(&bench.database, &[command]);
            assert!(code == 0 || code == 1, "{err}");
            if err.contains("error: ") {
                assert!(err.contains(&name) && err.contains("malformed") && err.contains("hint: "), "{err}");
                named += 1;
            } else {
                assert!(code == 0 || out.contains("WRONG"), "{out}");
            }
        }
    }
    assert!(named > 4, "{named}");
}

/// What `record` costs the verdict's thread, and a row the disk. Printed, never asserted. The writer hangs meanwhile, so that
/// its own work is not what is measured.
#[test]
fn cost_of_a_row() {
    let bench = Bench::new();
    let (mut goods, mut bads) = (Vec::new(), Vec::new());
    let mut part = 0;
    for _ in 0..5 {
        let deliver = bench.open(None, quick());
        deliver.resume("a").unwrap();
        let (go, gate) = std::sync::mpsc::sync_channel::<()>(0);
        let (_, mut first) = bad("a", part, Verdict::Reject, 10);
        first.anomaly.as_mut().unwrap().pictures = Box::new(move || {
            let _ = gate.recv();
            Ok(Pictures { frame_jpeg: vec![1], heatmap_png: vec![1], normal_jpeg: None })
        });
        deliver.record(first).unwrap();
        part += 1;
        for n in 0..900 {
            // it has places for so many anomalies
            let record = if n % 60 == 0 { bad("a", part, Verdict::Reject, 10).1 } else { good("a", part) };
            let times = if record.anomaly.is_some() { &mut bads } else { &mut goods };
            let start = Instant::now();
            deliver.record(record).unwrap();
            times.push(start.elapsed());
            part += 1;
        }
        drop(go);
        deliver.drain(Duration::ZERO).unwrap();
    }
    for (what, times) in [("a good part", &mut goods), ("an anomaly", &mut bads)] {
        times.sort_unstable();
        let at = |share: f64| times[(times.len() as f64 * share) as usize].as_nanos() as f64 / 1e3;
        println!("record() of {what}: p50 {:.1} us, p95 {:.1} us, p99 {:.1} us", at(0.5), at(0.95), at(0.99));
    }
    bench
        .sql()
        .execute_batch("DELETE FROM spool; DELETE FROM pictures; PRAGMA wal_checkpoint(TRUNCATE); VACUUM;")
        .unwrap();
    println!("a row takes {} bytes", std::fs::metadata(&bench.database).unwrap().len() / part);
}
