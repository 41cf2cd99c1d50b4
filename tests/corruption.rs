//! Databases whose files are damaged in any way: no start is refused, what can be read arrives, and what is lost is said.

#![allow(clippy::unwrap_used)]

#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/records.rs"]
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bad_server::{Act, Server};
use linesight::deliver::audit::{Reconciled, Verified};
use linesight::deliver::ledger::Ledger;
use linesight::deliver::{
    Config, Deliver, Endpoint, Limits, PICTURE_LOST, Pictures, Record, STOPPED_BEFORE_PICTURE, SalvageReport, Target,
    quarantines,
};
use linesight::event::{Event, Verdict};
use records::{anomaly, plain};
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(30);
const LINES: [&str; 2] = ["east", "west"];

/// Corruptions: few, or all that were asked for.
fn rounds() -> u64 {
    if std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full") { 1000 } else { 30 }
}

fn bad(line: &str, part: u64) -> (String, Record) {
    let size = if part.is_multiple_of(4) { 300 } else { 9000 };
    let pictures = Pictures { frame_jpeg: vec![part as u8 | 1; size], heatmap_png: vec![2; 90], normal_jpeg: None };
    anomaly(line, part, Verdict::Reject, pictures)
}

fn limits() -> Limits {
    Limits {
        retry_first: Duration::from_millis(4),
        retry_slowest: Duration::from_millis(40),
        write_again: Duration::from_millis(20),
        batch: Duration::from_millis(5),
        reserve: 0,
        journal_slots: 64,
        ..Limits::default()
    }
}

fn open(database: &Path, url: Option<&str>) -> linesight::error::Result<Deliver> {
    let targets = url.map(|url| Target::review(Endpoint::new(url.parse().unwrap()))).into_iter().collect();
    Deliver::open_with(Config { database: database.into(), run: Uuid::now_v7(), targets, audit: None }, limits())
}

/// Anomalies of a line by their part.
type Ids = BTreeMap<(String, u64), String>;

/// A database as it is before it is damaged: what was recorded on each line, what waits and what is dead.
struct Before {
    folder: TempDir,
    waiting: Ids,
    dead: Ids,
    delivered: Ids,
    /// The number after the last one of each line.
    next: u64,
}

/// `killed`: as after a kill, with its log beside it; else stopped cleanly.
fn before(killed: bool) -> Before {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("spool.db");
    let (mut waiting, mut dead, mut delivered) = (Ids::new(), Ids::new(), Ids::new());
    let record = |deliver: &Deliver, parts: std::ops::Range<u64>| {
        let mut ids = Ids::new();
        for part in parts {
            for line in LINES {
                if part.is_multiple_of(5) {
                    let (id, record) = bad(line, part);
                    ids.insert((line.into(), part), id);
                    deliver.record(record).unwrap();
                } else {
                    deliver.record(plain(line, part, Verdict::Pass)).unwrap();
                }
            }
        }
        deliver.flush().unwrap();
        ids
    };
    let resume = |deliver: &Deliver| LINES.map(|line| deliver.resume(line).unwrap().next_part);
    {
        // some that were delivered
        let server = Server::start(|_| Act::Take);
        let deliver = open(&database, Some(&server.url())).unwrap();
        resume(&deliver);
        delivered.extend(record(&deliver, 0..120));
        assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
    }
    {
        // some that are refused for what they are
        let server = Server::start(|_| Act::Answer(422, "", "no"));
        let deliver = open(&database, Some(&server.url())).unwrap();
        resume(&deliver);
        dead.extend(record(&deliver, 120..150));
        let until = Instant::now() + LONG;
        while deliver.status().dead < dead.len() as u64 {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(deliver);
    }
    let deliver = open(&database, None).unwrap();
    resume(&deliver);
    waiting.extend(record(&deliver, 150..400));
    let copy = tempfile::tempdir().unwrap();
    if killed {
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    drop(deliver);
    Before { folder: if killed { copy } else { folder }, waiting, dead, delivered, next: 400 }
}

/// xorshift: the same damage for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }
}

/// Damages one of the files; says how.
fn damage(database: &Path, seed: u64) -> String {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    chance.below(2);
    let log = PathBuf::from(format!("{}-wal", database.display()));
    let logged = log.exists() && chance.below(3) > 0;
    let file = if logged { &log } else { database };
    let mut bytes = std::fs::read(file).unwrap();
    let length = bytes.len() as u64;
    let name = if logged { "log" } else { "file" };
    let what = match chance.below(6) {
        0 | 1 => {
            let count = 1 + chance.below(8);
            let places: Vec<u64> = (0..count).map(|_| chance.below(length)).collect();
            for at in &places {
                bytes[*at as usize] ^= 1 << chance.below(8);
            }
            format!("bits flipped at {places:?}")
        }
        2 => {
            let (at, size) = (chance.below(length), 1 + chance.below(200));
            for byte in bytes.iter_mut().skip(at as usize).take(size as usize) {
                *byte = chance.below(256) as u8;
            }
            format!("{size} bytes overwritten at {at}")
        }
        3 => {
            let count = 1 + chance.below(3);
            let pages: Vec<u64> = (0..count).map(|_| chance.below(length / 4096)).collect();
            for page in &pages {
                bytes[*page as usize * 4096..(*page as usize + 1) * 4096].fill(0);
            }
            format!("pages {pages:?} zeroed")
        }
        4 => {
            let left = chance.below(length);
            bytes.truncate(left as usize);
            format!("cut to {left} of {length} bytes")
        }
        // the head, where one bit does most
        _ => {
            let at = chance.below(if logged { 80 } else { 100 });
            bytes[at as usize] ^= 1 << chance.below(8);
            format!("a bit of the head flipped at {at}")
        }
    };
    std::fs::write(file, bytes).unwrap();
    format!("seed {seed}, {name}: {what}")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn reports(database: &Path) -> Vec<SalvageReport> {
    let read = |path: PathBuf| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    quarantines(database).into_iter().map(read).collect()
}

fn parts(database: &Path, line: &str, next: u64) -> BTreeSet<u64> {
    let db = Connection::open(database).unwrap();
    let mut read = db.prepare("SELECT part FROM ledger WHERE line = ?1 AND part BETWEEN 0 AND ?2").unwrap();
    let found = read.query_map([line, &(next - 1).to_string()], |row| row.get::<_, i64>(0)).unwrap();
    found.filter_map(Result::ok).map(|part| part as u64).collect()
}

fn ids(database: &Path, sql: &str) -> BTreeSet<String> {
    let db = Connection::open(database).unwrap();
    db.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().filter_map(Result::ok).collect()
}

#[derive(Default)]
struct Sum {
    salvaged: u64,
    arrived: usize,
    lost: usize,
    dead: usize,
    rows_lost: usize,
    plain: usize,
    slowest: Duration,
}

fn round(before: &Before, seed: u64, sum: &mut Sum) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("spool.db");
    copy(before.folder.path(), folder.path());
    let what = damage(&database, seed);
    let start = Instant::now();
    let server = Server::start(|_| Act::Take);
    let deliver = open(&database, Some(&server.url())).unwrap_or_else(|e| panic!("{what}: refused: {e}"));
    let mut fresh = BTreeSet::new();
    for line in LINES {
        let next = deliver.resume(line).unwrap_or_else(|e| panic!("{what}: {line} does not resume: {e}")).next_part;
        assert!(next >= before.next, "{what}: {line} uses {next} again");
        for part in next..next + 10 {
            if part == next + 5 {
                let (id, record) = bad(line, part);
                fresh.insert(id);
                deliver.record(record).unwrap_or_else(|e| panic!("{what}: {e}"));
            } else {
                deliver.record(plain(line, part, Verdict::Pass)).unwrap();
            }
        }
    }
    deliver.flush().unwrap_or_else(|e| panic!("{what}: {e}"));
    let status = deliver.status();
    let drained = deliver.drain(Duration::from_secs(5)).unwrap_or_else(|e| panic!("{what}: {e}"));
    if drained.waiting > 0 {
        let db = Connection::open(&database).unwrap();
        let mut read = db.prepare("SELECT target, delivery.state, spool.state, delivery.seq, id, last_error FROM spool LEFT JOIN delivery USING (seq)").unwrap();
        let rows = read.query_map([], |row| {
            (0..6).map(|at| row.get::<_, rusqlite::types::Value>(at)).collect::<rusqlite::Result<Vec<_>>>()
        });
        let left: Vec<_> =
            rows.unwrap().filter_map(Result::ok).filter(|row| row[1] != "dead".to_owned().into()).collect();
        panic!("{what}: {drained:?} {left:?}");
    }
    sum.slowest = sum.slowest.max(start.elapsed());
    let seen = server.seen();
    let requests = seen.requests.len();
    let arrived: BTreeSet<String> = seen.kept.keys().cloned().collect();
    // what arrived is what was recorded, or says that its pictures are not
    for ((line, part), id) in before.waiting.iter().filter(|(_, id)| arrived.contains(*id)) {
        let fields = seen.kept[id].fields();
        let event: Event = serde_json::from_slice(&fields["event"].1).unwrap();
        assert_eq!((&event.line, event.part, event.score), (line, *part, 2.5), "{what}: {id}");
        let plain = event.reasons.iter().any(|r| [PICTURE_LOST, STOPPED_BEFORE_PICTURE].contains(&r.as_str()));
        let whole = fields["frame"].1.iter().all(|byte| *byte == *part as u8 | 1)
            && fields["heatmap"].1.iter().all(|byte| *byte == 2);
        assert!(plain || whole, "{what}: the pictures of {id} arrived with other bits");
        sum.plain += usize::from(plain);
    }
    drop(seen);
    let all = before.waiting.len() + before.dead.len() + before.delivered.len() + fresh.len();
    assert!(requests <= all, "{what}: {requests} requests for {all} anomalies");
    assert!(fresh.is_subset(&arrived), "{what}: a new anomaly was lost");
    let reports = reports(&database);
    assert!(reports.len() <= 1, "{what}");
    let report = reports.into_iter().next().unwrap_or_default();
    sum.salvaged += u64::from(report.pages > 0);
    assert_eq!(report.failed, None, "{what}");
    assert_eq!(
        (status.salvaged, status.lost),
        (report.anomalies.recovered, (report.lost.len() + report.unknown.len()) as u64)
    );
    let lost: BTreeSet<String> = report.lost.iter().filter_map(|hurt| hurt.id.clone()).collect();
    let unknown: BTreeSet<String> = report.unknown.iter().filter_map(|hurt| hurt.id.clone()).collect();
    let dead = ids(&database, "SELECT id FROM spool WHERE state = 'dead'");
    // every part of before has a row or is said to have lost it, and only one of both
    let mut without = BTreeSet::new();
    for line in LINES {
        let there = parts(&database, line, before.next);
        let said = report.lines.iter().filter(|l| l.line == line).flat_map(|l| &l.lost_parts);
        let mut said: BTreeSet<u64> =
            said.flat_map(|(first, last)| *first..=*last).filter(|n| *n < before.next).collect();
        // a log that is cut off cannot be told from a torn one: what its transactions had is in an interrupted window
        let verified = Ledger::open(&database).unwrap().verify(line, None);
        let verified = verified.unwrap_or_else(|e| Verified { wrong: Some(e.to_string()), ..Verified::default() });
        said.extend(verified.gaps.iter().flat_map(|(first, last)| *first..=*last).filter(|n| *n < before.next));
        let both: Vec<&u64> = there.intersection(&said).collect();
        assert!(both.is_empty(), "{what}: {line} {both:?} are there and lost");
        let neither: Vec<u64> = (0..before.next).filter(|n| !there.contains(n) && !said.contains(n)).collect();
        // a part whose number was hit has another one: the chain says so
        assert!(
            neither.is_empty() || verified.wrong.is_some(),
            "{what}: {line} {neither:?} are neither there nor lost"
        );
        sum.rows_lost += said.len();
        without.extend(said.into_iter().map(|part| (line.to_owned(), part)));
    }
    // every anomaly of before arrived, is dead, or is said to be lost
    let touched = report.pages == 0;
    for (of, may_be_dead) in [(&before.waiting, false), (&before.dead, true)] {
        for (key, id) in of {
            let mut ends = vec![arrived.contains(id), dead.contains(id)];
            ends.push(lost.contains(id) || unknown.contains(id) || (without.contains(key) && !ends[0] && !ends[1]));
            let count = ends.iter().filter(|end| **end).count();
            assert_eq!(count, 1, "{what}: {id} {key:?} {ends:?} (of those that wait: {})", !may_be_dead);
            sum.arrived += usize::from(ends[0]);
            sum.dead += usize::from(ends[1]);
            sum.lost += usize::from(ends[2]);
        }
    }
    // nothing is said to be lost that was delivered
    for id in before.delivered.values() {
        assert!(!lost.contains(id), "{what}: {id} was delivered and is called lost");
    }
    // and the ledger accounts for everything, or names what does not fit
    let ledger = Ledger::open(&database).unwrap();
    for line in LINES {
        let verified: linesight::error::Result<Verified> = ledger.verify(line, None);
        let reconciled: linesight::error::Result<Reconciled> = ledger.reconcile(line);
        if touched {
            // a changed value: either it is named, or the error says that the file is damaged
            for e in [verified.err(), reconciled.err()].into_iter().flatten() {
                assert!(e.hint_text().is_some_and(|hint| hint.contains("damaged")), "{what}: {e}");
            }
        } else {
            assert_eq!(verified.unwrap().wrong, None, "{what}");
            let reconciled = reconciled.unwrap();
            assert_eq!(reconciled.wrong, [""; 0], "{what}: {reconciled:?}");
        }
    }
}

/// Each round damages a copy of a database with anomalies that wait, are dead or were delivered, and starts on it.
#[test]
fn nothing_is_lost_unsaid() {
    let (clean, killed) = (before(false), before(true));
    let mut sum = Sum::default();
    let from = std::env::var("LINESIGHT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = from.map_or(0..rounds(), |seed: u64| seed..seed + 1);
    let mut failed = Vec::new();
    for seed in seeds.clone() {
        let on = if seed % 2 == 0 { &clean } else { &killed };
        // each that fails is shown with its seed: LINESIGHT_SEED repeats it
        let run = std::panic::AssertUnwindSafe(|| round(on, seed, &mut sum));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(seed);
        }
    }
    println!(
        "{} corruptions, {} salvages: {} anomalies arrived, {} of them with plain pictures, {} dead, {} reported lost; {} parts' rows reported lost; slowest {:?}",
        seeds.end - seeds.start,
        sum.salvaged,
        sum.arrived,
        sum.plain,
        sum.dead,
        sum.lost,
        sum.rows_lost,
        sum.slowest
    );
    assert!(failed.is_empty(), "seeds {failed:?}");
}

#[test]
fn a_whole_file_is_left_alone() {
    for killed in [false, true] {
        let before = before(killed);
        let database = before.folder.path().join("spool.db");
        let server = Server::start(|_| Act::Take);
        let deliver = open(&database, Some(&server.url())).unwrap();
        for line in LINES {
            assert!(deliver.resume(line).unwrap().next_part >= before.next);
        }
        assert_eq!(deliver.drain(LONG).unwrap().waiting, 0);
        assert!(quarantines(&database).is_empty());
        let seen = server.seen();
        let arrived: BTreeSet<&String> = seen.kept.keys().collect();
        assert_eq!(arrived, before.waiting.values().collect());
        let ledger = Ledger::open(&database).unwrap();
        for line in LINES {
            assert_eq!(ledger.verify(line, None).unwrap().wrong, None);
            let reconciled = ledger.reconcile(line).unwrap();
            assert_eq!((reconciled.wrong, reconciled.dead), (vec![], before.dead.len() as u64 / 2));
        }
    }
}

/// A start that died on its way: before the new database was finished, and between the steps of putting it in its place.
#[test]
fn a_salvage_that_is_cut_off_is_finished() {
    let before = before(false);
    let source = before.folder.path().join("spool.db");
    let mut bytes = std::fs::read(&source).unwrap();
    let middle = bytes.len() / 8192 * 4096;
    bytes[middle..middle + 4096].fill(0);
    std::fs::write(&source, &bytes).unwrap();
    for step in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        copy(before.folder.path(), folder.path());
        let database = folder.path().join("spool.db");
        if step == 0 {
            std::fs::write(folder.path().join("spool.db.salvage-new"), "half of it").unwrap();
        } else {
            // done once, and taken back to where it may have been cut off
            drop(open(&database, None).unwrap());
            let quarantine = PathBuf::from(quarantines(&database)[0].to_str().unwrap().replace(".report.json", ""));
            let name = quarantine.to_str().unwrap();
            std::fs::rename(&database, name.replace(".corrupt-", ".salvaged-")).unwrap();
            if step == 1 {
                std::fs::rename(&quarantine, &database).unwrap();
            }
        }
        let deliver = open(&database, None).unwrap();
        for line in LINES {
            assert!(deliver.resume(line).unwrap().next_part >= before.next);
        }
        let report = reports(&database).pop().unwrap();
        let lost = report.lost.len() + report.unknown.len();
        assert!(deliver.status().waiting as usize + lost >= before.waiting.len(), "step {step}: {report:?}");
        drop(deliver);
        let left: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("salvage"))
            .collect();
        assert!(left.is_empty(), "step {step}: {left:?}");
        let kept = std::fs::read(reports_path(&database)).unwrap();
        assert_eq!(kept, bytes, "step {step}: the damaged file is kept as it was");
    }
}

fn reports_path(database: &Path) -> PathBuf {
    PathBuf::from(quarantines(database)[0].to_str().unwrap().replace(".report.json", ""))
}
