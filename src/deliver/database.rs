//! The SQLite file: opening, schema and every statement. The writer thread owns the [`Database`], the uploader a [`Reader`].
//!
//! Invariants, each with the test that holds it:
//! 1. A batch is committed whole or not at all: `the_spool_behaves_like_its_model` (spool_model.rs), which reopens at
//!    random; and it is synchronised to the disk when `commit` returns (WAL, FULL): `commits_are_synchronised`.
//! 2. A file that is not ours, or newer than this program, is refused and not changed: `other_files_are_left_alone`,
//!    `a_newer_schema_is_refused`.
//! 3. The ledger has one row for (line, run, part); the first one stays: `the_first_row_of_a_part_stays`.
//! 4. A delivered anomaly leaves the spool with its pictures, and its ledger row says when: the model test of 1.
//! 5. A score that is not a number is kept as NULL and never fails a batch: `not_a_number_is_stored`.
//! 6. The schema changes step by step, each step whole or not at all: `an_older_schema_is_brought_up_to_date_once`.
//! 7. The file gives room back after an outage: `a_large_file_shrinks_when_it_is_emptied`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::Pictures;
use crate::error::{Context, Error, Result};
use crate::event::LedgerRow;

/// Marks the file as ours ("LSGT").
const APPLICATION: i32 = 0x4c53_4754;
/// Schema changes in order; `user_version` counts those that were made. Add at the end, never change one.
const MIGRATIONS: &[&str] = &["
    -- times are nanoseconds since 1970 UTC; ids are hyphenated UUIDs
    CREATE TABLE ledger (
        line TEXT NOT NULL, run TEXT NOT NULL, part INTEGER NOT NULL, frame INTEGER NOT NULL,
        captured_at INTEGER NOT NULL, verdict TEXT NOT NULL, score REAL, confidence REAL, latency_ms REAL,
        model TEXT NOT NULL, event TEXT, delivered_at INTEGER,
        PRIMARY KEY (line, run, part)
    ) WITHOUT ROWID;
    -- state: waiting, or aside (refused by the endpoint: tried at the slowest pace, after the others)
    CREATE TABLE spool (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, line TEXT NOT NULL, run TEXT NOT NULL, part INTEGER NOT NULL,
        event TEXT NOT NULL, spooled_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        next_try INTEGER NOT NULL DEFAULT 0, last_error TEXT, state TEXT NOT NULL DEFAULT 'waiting'
    );
    CREATE INDEX spool_order ON spool (state, seq);
    -- apart from spool, so that counting an attempt does not rewrite them
    CREATE TABLE pictures (seq INTEGER PRIMARY KEY, frame BLOB NOT NULL, heatmap BLOB NOT NULL, normal BLOB);
"];
/// Free pages above which the file gives some back after a delivery.
const FREE_PAGES: i64 = 4096;
/// How many it gives back at a time.
const PAGES_BACK: u32 = 512;

type Sql<T> = rusqlite::Result<T>;

/// A part that is ready to be committed.
pub(super) struct Ready {
    pub row: LedgerRow,
    pub anomaly: Option<ReadyAnomaly>,
}

/// An anomaly with its event as JSON and its pictures encoded.
pub(super) struct ReadyAnomaly {
    pub id: Uuid,
    pub event: String,
    pub pictures: Pictures,
    pub spooled_at: Timestamp,
}

/// What a commit added.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    pub rows: u64,
    pub conflicts: u64,
    pub spooled: u64,
}

/// What came of an attempt.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Delivered { at: Timestamp },
    Failed { error: String, next_try: Timestamp, aside: bool },
}

pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
}

fn nanos(t: Timestamp) -> i64 {
    i64::try_from(t.as_nanosecond()).unwrap_or(i64::MAX)
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Database {
    /// Opens or makes the database and brings its schema up to date. What was set aside by an earlier run is due at once.
    pub fn open(path: &Path, pages: Option<u32>) -> Result<Self> {
        Self::open_with(path, pages, MIGRATIONS)
    }

    fn open_with(path: &Path, pages: Option<u32>, migrations: &[&str]) -> Result<Self> {
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        let version = recognise(&connection, path, migrations.len())?;
        let prepare = |connection: &mut Connection| -> Sql<String> {
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
            if let Some(pages) = pages {
                connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            }
            for (done, script) in migrations.iter().enumerate().skip(version) {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(script)?;
                transaction.pragma_update(None, "application_id", APPLICATION)?;
                transaction.pragma_update(None, "user_version", done as i64 + 1)?;
                transaction.commit()?;
            }
            connection.execute("UPDATE spool SET next_try = 0 WHERE state = 'aside'", [])?;
            Ok(mode)
        };
        let mode = prepare(&mut connection).failed(|| format!("cannot prepare \"{}\"", path.display()))?;
        if mode != "wal" {
            return Err(Error::failed(format!("\"{}\" cannot have a write-ahead log", path.display()))
                .hint("put the database on a local file system"));
        }
        Ok(Database { connection, path: path.into() })
    }

    /// Adds rows and anomalies in one transaction.
    pub fn commit(&mut self, run: Uuid, batch: &[Ready]) -> Sql<Added> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let run = run.to_string();
        let mut added = Added::default();
        for ready in batch {
            match add_row(&transaction, &run, ready)? {
                0 => added.conflicts += 1,
                _ => added.rows += 1,
            }
            if let Some(anomaly) = &ready.anomaly {
                added.spooled += add_anomaly(&transaction, &run, &ready.row, anomaly)?;
            }
        }
        transaction.commit()?;
        Ok(added)
    }

    /// Records what came of an attempt; false when the spool has no such anomaly.
    pub fn settle(&mut self, id: Uuid, outcome: &Outcome) -> Sql<bool> {
        let id = id.to_string();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let changed = match outcome {
            Outcome::Failed { error, next_try, aside } => transaction
                .prepare_cached(
                    "UPDATE spool SET attempts = attempts + 1, last_error = ?2, next_try = ?3, state = ?4 WHERE id = ?1",
                )?
                .execute(params![id, error, nanos(*next_try), if *aside { "aside" } else { "waiting" }])?,
            Outcome::Delivered { at } => {
                transaction
                    .prepare_cached(
                        "UPDATE ledger SET delivered_at = ?2 WHERE (line, run, part) IN
                         (SELECT line, run, part FROM spool WHERE id = ?1)",
                    )?
                    .execute(params![id, nanos(*at)])?;
                transaction
                    .prepare_cached("DELETE FROM pictures WHERE seq = (SELECT seq FROM spool WHERE id = ?1)")?
                    .execute([&id])?;
                transaction.prepare_cached("DELETE FROM spool WHERE id = ?1")?.execute([&id])?
            }
        };
        transaction.commit()?;
        Ok(changed > 0)
    }

    /// Gives some free pages back to the file system when there are many.
    pub fn shrink(&mut self) -> Sql<()> {
        let free: i64 = self.connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
        if free > FREE_PAGES {
            // gives back one page a step
            let mut vacuum = self.connection.prepare_cached(&format!("PRAGMA incremental_vacuum({PAGES_BACK})"))?;
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {}
        }
        Ok(())
    }

    /// Bytes that the database can still take: free pages of its own, and what the file system has left.
    pub fn room(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.path).failed(|| "cannot ask the file system for its free space")?;
        let pages = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
        let own: i64 =
            self.connection.query_row(pages, [], |row| row.get(0)).failed(|| "cannot count the free pages")?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(own as u64))
    }

    /// How many anomalies are in the spool, and how many of them are set aside.
    pub fn depth(&self) -> Sql<(u64, u64)> {
        let sql = "SELECT count(*), count(*) FILTER (WHERE state = 'aside') FROM spool";
        self.connection.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))
    }
}

fn add_row(transaction: &Transaction<'_>, run: &str, ready: &Ready) -> Sql<usize> {
    let row = &ready.row;
    let event = ready.anomaly.as_ref().map(|anomaly| anomaly.id).or(row.event);
    transaction
        .prepare_cached(
            "INSERT INTO ledger (line, run, part, frame, captured_at, verdict, score, confidence, latency_ms, model, event)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            row.line,
            run,
            whole(row.part),
            whole(row.frame),
            nanos(row.captured_at),
            row.verdict.as_str(),
            row.score,
            row.confidence,
            row.latency_ms,
            row.model,
            event.map(|id| id.to_string()),
        ])
}

fn add_anomaly(transaction: &Transaction<'_>, run: &str, row: &LedgerRow, anomaly: &ReadyAnomaly) -> Sql<u64> {
    let added = transaction
        .prepare_cached(
            "INSERT INTO spool (id, line, run, part, event, spooled_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            anomaly.id.to_string(),
            row.line,
            run,
            whole(row.part),
            anomaly.event,
            nanos(anomaly.spooled_at)
        ])?;
    if added == 0 {
        return Ok(0);
    }
    let Pictures { frame_jpeg, heatmap_png, normal_jpeg } = &anomaly.pictures;
    transaction
        .prepare_cached("INSERT INTO pictures (seq, frame, heatmap, normal) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![transaction.last_insert_rowid(), frame_jpeg, heatmap_png, normal_jpeg])?;
    Ok(1)
}

/// An anomaly in the spool, as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spooled {
    pub id: Uuid,
    pub event: String,
    pub spooled_at: Timestamp,
    pub aside: bool,
    pub attempts: u32,
    pub pictures: Pictures,
}

/// Reads the spool; WAL lets it read while the writer writes.
pub(super) struct Reader {
    connection: Connection,
}

const SPOOLED: &str =
    "SELECT id, event, spooled_at, state, attempts, frame, heatmap, normal FROM spool JOIN pictures USING (seq)";

impl Reader {
    /// A connection of its own to a database that [`Database::open`] has prepared.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Reader { connection: connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)? })
    }

    /// The oldest anomaly that is not set aside, after `skip` older ones.
    pub fn oldest(&self, skip: u32) -> Sql<Option<Spooled>> {
        let sql = format!("{SPOOLED} WHERE state = 'waiting' ORDER BY seq LIMIT 1 OFFSET ?1");
        self.connection.prepare_cached(&sql)?.query_row([skip], spooled).optional()
    }

    /// The oldest anomaly set aside that is due. One that is further off than `most` is due too: the clock was set back.
    pub fn oldest_aside(&self, now: Timestamp, most: Duration) -> Sql<Option<Spooled>> {
        let sql = format!("{SPOOLED} WHERE state = 'aside' AND (next_try <= ?1 OR next_try > ?2) ORDER BY seq LIMIT 1");
        let far = nanos(now).saturating_add(i64::try_from(most.as_nanos()).unwrap_or(i64::MAX));
        self.connection.prepare_cached(&sql)?.query_row([nanos(now), far], spooled).optional()
    }

    /// When the next anomaly set aside is due.
    pub fn next_aside(&self) -> Sql<Option<Timestamp>> {
        let next: Option<i64> =
            self.connection.query_row("SELECT min(next_try) FROM spool WHERE state = 'aside'", [], |row| row.get(0))?;
        Ok(next.map(timestamp))
    }
}

fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn spooled(row: &rusqlite::Row<'_>) -> Sql<Spooled> {
    let id: String = row.get(0)?;
    let id = Uuid::parse_str(&id)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))?;
    Ok(Spooled {
        id,
        event: row.get(1)?,
        spooled_at: timestamp(row.get(2)?),
        aside: row.get_ref(3)?.as_str()? == "aside",
        attempts: row.get(4)?,
        pictures: Pictures { frame_jpeg: row.get(5)?, heatmap_png: row.get(6)?, normal_jpeg: row.get(7)? },
    })
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let open = || -> Sql<Connection> {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok(connection)
    };
    open().failed(|| format!("cannot open \"{}\"", path.display()))
}

/// The schema version of a file that is new or ours; anything else is an error. Changes nothing.
fn recognise(connection: &Connection, path: &Path, known: usize) -> Result<usize> {
    let name = path.display();
    let look = || -> Sql<(usize, i32, i64)> {
        let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
        let application = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((usize::try_from(version).unwrap_or(usize::MAX), application, tables))
    };
    let leave = "move it away or name another file; it was not changed";
    match look() {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            Err(Error::failed(format!("\"{name}\" is not a database")).hint(leave))
        }
        Err(e) => Err(Error::failed(format!("cannot read \"{name}\"")).because(e)),
        Ok((0, _, 0)) => Ok(0),
        Ok((_, application, _)) if application != APPLICATION => {
            Err(Error::failed(format!("\"{name}\" is a database of another program")).hint(leave))
        }
        Ok((version, ..)) if version > known => Err(Error::failed(format!(
            "\"{name}\" was written by a newer linesight (schema {version}, this one knows {known})"
        ))
        .hint("use that linesight, or name another file; it was not changed")),
        Ok((version, ..)) => Ok(version),
    }
}

/// Where the tests of this folder find a fresh file.
#[cfg(test)]
pub(super) fn fresh() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    (folder, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_synchronised() {
        let (_folder, path) = fresh();
        let database = Database::open(&path, None).unwrap();
        let ask = |pragma: &str| {
            database.connection.pragma_query_value(None, pragma, |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
        };
        assert_eq!(ask("journal_mode"), rusqlite::types::Value::Text("wal".into()));
        assert_eq!(ask("synchronous"), rusqlite::types::Value::Integer(2));
        assert_eq!(ask("auto_vacuum"), rusqlite::types::Value::Integer(2));
    }

    #[test]
    fn an_older_schema_is_brought_up_to_date_once() {
        let (_folder, path) = fresh();
        drop(Database::open(&path, None).unwrap());
        let more = [MIGRATIONS[0], "ALTER TABLE ledger ADD COLUMN lot TEXT"];
        for _ in 0..2 {
            let database = Database::open_with(&path, None, &more).unwrap();
            database.connection.query_row("SELECT count(lot) FROM ledger", [], |_| Ok(())).unwrap();
        }
        // a step that fails leaves everything as it was
        let broken = [more[0], more[1], "CREATE TABLE a (b); CREATE TABLE a (b)"];
        assert!(Database::open_with(&path, None, &broken).is_err());
        drop(Database::open_with(&path, None, &more).unwrap());
    }

    #[test]
    fn a_large_file_shrinks_when_it_is_emptied() {
        let (_folder, path) = fresh();
        let mut database = Database::open(&path, None).unwrap();
        let batch: Vec<Ready> = (0..60)
            .map(|n| {
                let (event, spooled) = super::super::tests::sample(n);
                let pictures = Pictures { frame_jpeg: vec![7; 1 << 20], ..spooled.pictures };
                let anomaly =
                    ReadyAnomaly { id: event.id, event: spooled.event, pictures, spooled_at: spooled.spooled_at };
                Ready { row: super::super::tests::row(n), anomaly: Some(anomaly) }
            })
            .collect();
        let pages = |database: &Database| -> i64 {
            database.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap()
        };
        database.commit(Uuid::now_v7(), &batch).unwrap();
        let full = pages(&database);
        for ready in &batch {
            let id = ready.anomaly.as_ref().unwrap().id;
            assert!(database.settle(id, &Outcome::Delivered { at: Timestamp::now() }).unwrap());
            database.shrink().unwrap();
        }
        let left = pages(&database);
        assert!(full > 15_000 && left < FREE_PAGES + 100, "{full} pages, then {left}");
    }
}
