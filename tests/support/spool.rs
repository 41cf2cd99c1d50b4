//! Ledger and spool without a line: records that a test makes, and what is in the database afterwards.

// each test binary uses a part of it
#![allow(dead_code)]

#[path = "records.rs"]
mod records;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linesight::deliver::{Config, Deliver, Endpoint, Limits, Pictures, Record, Target, Token};
use linesight::event::Verdict;
use tempfile::TempDir;
use uuid::Uuid;

pub const LONG: Duration = Duration::from_secs(30);

/// Pictures that nobody looks at, different for each part.
pub fn pictures(part: u64, size: usize) -> Pictures {
    let fill = |salt: u64| (0..size as u64).map(|i| (i * 31 + part * 7 + salt) as u8).collect::<Vec<u8>>();
    let normal_jpeg = part.is_multiple_of(2).then(|| fill(3));
    Pictures { frame_jpeg: fill(1), heatmap_png: fill(2), normal_jpeg }
}

pub fn good(part: u64) -> Record {
    records::plain("line", part, Verdict::Pass)
}

pub fn bad(part: u64, size: usize) -> (String, Record) {
    records::anomaly("line", part, Verdict::Reject, pictures(part, size))
}

/// Pauses that tests can wait for.
pub fn quick() -> Limits {
    Limits {
        retry_first: Duration::from_millis(4),
        retry_slowest: Duration::from_millis(60),
        write_again: Duration::from_millis(20),
        reserve: 0,
        ..Limits::default()
    }
}

pub struct Bench {
    _folder: TempDir,
    pub database: PathBuf,
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("spool.db");
        Bench { _folder: folder, database }
    }

    pub fn open(&self, url: Option<&str>, limits: Limits) -> Deliver {
        open(&self.database, url, limits)
    }

    /// The first column of each row.
    pub fn texts(&self, sql: &str) -> Vec<String> {
        let db = rusqlite::Connection::open(&self.database).unwrap();
        let mut read = db.prepare(sql).unwrap();
        read.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    pub fn count(&self, sql: &str) -> i64 {
        rusqlite::Connection::open(&self.database).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

pub fn open(database: &Path, url: Option<&str>, limits: Limits) -> Deliver {
    let endpoint =
        |url: &str| Endpoint { token: Some(Token::Text("t0ken".into())), ..Endpoint::new(url.parse().unwrap()) };
    let targets = url.map(|url| Target::review(endpoint(url))).into_iter().collect();
    Deliver::open_with(Config { database: database.into(), run: Uuid::now_v7(), targets, audit: None }, limits).unwrap()
}

/// Records these parts, each third one good, and returns the ids of the anomalies.
pub fn record(deliver: &Deliver, parts: std::ops::Range<u64>) -> Vec<String> {
    let mut ids = Vec::new();
    for part in parts {
        deliver.record(good(3 * part)).unwrap();
        deliver.record(good(3 * part + 1)).unwrap();
        let (id, anomaly) = bad(3 * part + 2, 5000);
        deliver.record(anomaly).unwrap();
        ids.push(id);
    }
    ids
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}
