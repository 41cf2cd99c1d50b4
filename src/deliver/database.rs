//! The SQLite file as the writer thread has it ([`Database`]) and the uploaders ([`Reader`]): rows with their anomalies. The
//! schema is in [`super::schema`]; the spool's statements are in [`super::spool`], statements of starts are in [`super::resume`], of retention in [`super::retain`], of
//! line reports in [`super::reports`].
//!
//! Invariants, each with the test that holds it:
//! 1. A batch is committed whole or not at all: `the_spool_behaves_like_its_model` (spool_model.rs), which reopens at
//!    random; and it is synchronised to the disk when `commit` returns (WAL, FULL): `commits_are_synchronised`.
//! 2. A file that is not ours, or newer than this program, is refused and not changed: `other_files_are_left_alone`,
//!    `a_newer_schema_is_refused`.
//! 3. The ledger has one row for (line, run, part), and one for (line, part) where numbers go on over runs; the first one
//!    stays: `the_first_row_of_a_part_stays`, `no_number_twice` (tests/ledger.rs).
//! 4. A delivered anomaly leaves the spool with its pictures, and its ledger row says when: the model test of 1.
//! 5. A score that is not a number is kept as NULL and never fails a batch: `not_a_number_is_stored`.
//! 6. Each row carries the hash of the row before it: `verify_accepts_what_was_written` (tests/ledger.rs), the model test.
//! 7. The file gives room back after an outage: `a_large_file_shrinks_when_it_is_emptied`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::Pictures;
use super::chain::{Hash, Stored, whole};
use super::journal::Journal;
use super::mend::Report;
use super::salvage;
use super::schema::{APPLICATION, MIGRATIONS, connect, recognise};
use super::spool::{NOBODY, add_anomaly};
use crate::error::{Context, Error, Result};
use crate::event::LedgerRow;

/// Free pages above which the file gives some back after a delivery.
const FREE_PAGES: i64 = 4096;
/// How many it gives back at a time.
const PAGES_BACK: u32 = 512;
/// Part numbers that are reserved beyond the slots of a journal: for parts that are on their way and not put yet.
const NUMBERS_AHEAD: u64 = 1024;

pub(super) type Sql<T> = rusqlite::Result<T>;

/// A part that is ready to be committed.
pub(super) struct Ready {
    pub row: LedgerRow,
    pub anomaly: Option<ReadyAnomaly>,
    /// Its entry in the line's journal; the line's part numbers go on over runs.
    pub entry: Option<(Arc<Journal>, u64)>,
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
    /// Of what was spooled.
    pub bytes: u64,
}

/// The end of a line's chain and of its numbers: its row in `lines`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tail {
    /// The next place in the chain.
    pub chain: i64,
    /// Of the last row.
    pub hash: Hash,
    /// Rows that are older than the chain.
    pub unchained: i64,
    pub next_part: u64,
    /// Part numbers from here on may not be used yet: after the loss of the journal numbers go on here.
    pub reserved: u64,
    /// What `next_part` was when the run began.
    pub first_part: u64,
    pub journal: Option<u64>,
    pub journal_seq: u64,
    pub boot: Option<String>,
    /// None: its numbers never went on over runs.
    pub clean: Option<bool>,
    /// Trigger time of the last row, or the time of the start.
    pub last_at: Option<i64>,
    /// Rows before this place in the chain are in a line report.
    pub reported: i64,
}

/// Part numbers that may be in use before the database knows of them.
pub(super) fn ahead(slots: u32) -> u64 {
    u64::from(slots) + NUMBERS_AHEAD
}

pub(super) struct Database {
    pub(super) connection: Connection,
    path: PathBuf,
    /// That every new anomaly has to get to.
    targets: Vec<String>,
    /// As committed.
    pub(super) tails: HashMap<String, Tail>,
}

impl Database {
    /// Opens or makes the database and brings its schema up to date. What was set aside by an earlier run is due at once.
    /// `targets`: those of new anomalies; with none they wait for [`NOBODY`].
    /// A damaged one of ours is salvaged first.
    #[cfg(test)]
    pub fn open(path: &Path, pages: Option<u32>, targets: &[String]) -> Result<Self> {
        Self::open_salvaged(path, pages, targets, super::journal::SLOTS).map(|(database, _)| database)
    }

    /// [`Database::open`], and what was salvaged.
    pub fn open_salvaged(
        path: &Path,
        pages: Option<u32>,
        targets: &[String],
        slots: u32,
    ) -> Result<(Self, Option<Report>)> {
        salvage::finish(path)?;
        let mut report = match salvage::look(path, MIGRATIONS)? {
            Some(why) => Some(salvage::salvage(path, &why, targets, slots, MIGRATIONS)?),
            None => None,
        };
        let mut database = match Self::open_with(path, pages, MIGRATIONS) {
            // what the look has not seen
            Err(e) if report.is_none() && damaged(&e) => {
                report = Some(salvage::salvage(path, &e.to_string(), targets, slots, MIGRATIONS)?);
                Self::open_with(path, pages, MIGRATIONS)?
            }
            other => other?,
        };
        if !targets.is_empty() {
            database.targets = targets.to_vec();
        }
        Ok((database, report))
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
            connection.execute("UPDATE delivery SET next_try = 0 WHERE state = 'aside'", [])?;
            connection.execute("UPDATE reports SET next_try = 0 WHERE state = 'aside'", [])?;
            Ok(mode)
        };
        let mode = prepare(&mut connection).failed(|| format!("cannot prepare \"{}\"", path.display()))?;
        if mode != "wal" {
            return Err(Error::failed(format!("\"{}\" cannot have a write-ahead log", path.display()))
                .hint("put the database on a local file system"));
        }
        let tails = load_tails(&connection).failed(|| format!("cannot read \"{}\"", path.display()))?;
        Ok(Database { connection, path: path.into(), targets: vec![NOBODY.into()], tails })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    /// Brings the log into the file and gives its room back, as far as no reader is in the way.
    pub fn checkpoint(&self) -> Sql<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    /// Other than before when another process has written.
    pub fn version(&self) -> Sql<i64> {
        self.connection.pragma_query_value(None, "data_version", |row| row.get(0))
    }

    /// Adds rows and anomalies in one transaction.
    pub fn commit(&mut self, run: Uuid, batch: &[Ready]) -> Sql<Added> {
        let mut chains = Chains::begin(&mut self.connection, &self.tails)?;
        let run = run.to_string();
        let mut added = Added::default();
        for ready in batch {
            let event = ready.anomaly.as_ref().map(|anomaly| anomaly.id).or(ready.row.event);
            match chains.add_part(&run, &ready.row, event, ready.entry.is_some())? {
                false => added.conflicts += 1,
                true => added.rows += 1,
            }
            if let Some((journal, seq)) = &ready.entry {
                let tail = chains.tail(&ready.row.line);
                tail.journal_seq = tail.journal_seq.max(*seq);
                tail.next_part = tail.next_part.max(ready.row.part + 1);
                tail.reserved = tail.reserved.max(tail.next_part + ahead(journal.slots()));
            }
            if let Some(anomaly) = &ready.anomaly
                && let Some(bytes) = add_anomaly(&chains.transaction, &run, &ready.row, anomaly, &self.targets)?
            {
                (added.spooled, added.bytes) = (added.spooled + 1, added.bytes + bytes);
            }
        }
        self.tails = chains.commit()?;
        for (journal, seq) in batch.iter().filter_map(|ready| ready.entry.as_ref()) {
            journal.committed(*seq, self.tails.get(&journal.line).map_or(0, |tail| tail.reserved));
        }
        Ok(added)
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
}

/// Whether the file's content is to blame.
fn damaged(e: &Error) -> bool {
    let sql = std::error::Error::source(e).and_then(|e| e.downcast_ref::<rusqlite::Error>());
    sql.is_some_and(|e| {
        matches!(
            e.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::Unknown | ErrorCode::ConstraintViolation)
        ) || matches!(e, rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..))
    })
}

/// A transaction that adds rows to chains. Its tails are the database's once it is committed.
pub(super) struct Chains<'a> {
    pub transaction: Transaction<'a>,
    tails: HashMap<String, Tail>,
    touched: HashSet<String>,
}

impl<'a> Chains<'a> {
    pub fn begin(connection: &'a mut Connection, tails: &HashMap<String, Tail>) -> Sql<Self> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        Ok(Chains { transaction, tails: tails.clone(), touched: HashSet::new() })
    }

    /// To be changed and written.
    pub fn tail(&mut self, line: &str) -> &mut Tail {
        if !self.touched.contains(line) {
            self.touched.insert(line.to_owned());
        }
        self.tails.entry(line.to_owned()).or_default()
    }

    /// As it stands.
    pub fn peek(&self, line: &str) -> Option<&Tail> {
        self.tails.get(line)
    }

    /// False: the ledger has that part.
    pub fn add_part(&mut self, run: &str, row: &LedgerRow, event: Option<Uuid>, continued: bool) -> Sql<bool> {
        let stored = Stored::part(row, event, run, self.tail(&row.line).chain, continued);
        self.add(&stored)
    }

    /// Adds a row that was made for the end of its line's chain.
    pub fn add(&mut self, stored: &Stored) -> Sql<bool> {
        let tail = self.tail(&stored.line);
        let hash = stored.hash(&tail.hash);
        let added = insert(&self.transaction, stored, &hash)?;
        if added {
            let tail = self.tail(&stored.line);
            (tail.chain, tail.hash) = (stored.chain + 1, hash);
            if stored.is_part() {
                tail.last_at = Some(stored.captured_at);
            }
        }
        Ok(added)
    }

    /// Returns the new tails.
    pub fn commit(self) -> Sql<HashMap<String, Tail>> {
        for line in &self.touched {
            let Some(tail) = self.tails.get(line) else { continue };
            write_tail(&self.transaction, line, tail)?;
        }
        self.transaction.commit()?;
        Ok(self.tails)
    }
}

fn insert(transaction: &Transaction<'_>, row: &Stored, hash: &Hash) -> Sql<bool> {
    let added = transaction
        .prepare_cached(
            "INSERT INTO ledger (line, run, part, frame, captured_at, verdict, score, confidence, latency_ms, model,
             event, frames, reasons, late_ms, lot, serial, chain, hash, continued, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)
             ON CONFLICT (line, run, part) DO NOTHING ON CONFLICT (line, part) WHERE continued = 1 DO NOTHING",
        )?
        .execute(params![
            row.line,
            row.run,
            row.part,
            row.frame,
            row.captured_at,
            row.verdict,
            row.score,
            row.confidence,
            row.latency_ms,
            row.model,
            row.event,
            row.frames,
            row.reasons,
            row.late_ms,
            row.lot,
            row.serial,
            row.chain,
            hash,
            row.continued,
            row.detail,
        ])?;
    Ok(added > 0)
}

fn write_tail(transaction: &Transaction<'_>, line: &str, tail: &Tail) -> Sql<()> {
    let sql =
        "INSERT INTO lines (line, chain, hash, unchained, next_part, reserved, first_part, journal, journal_seq, boot,
               clean, last_at, reported) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
               ON CONFLICT DO UPDATE SET chain = ?2, hash = ?3, unchained = ?4, next_part = ?5, reserved = ?6,
               first_part = ?7, journal = ?8, journal_seq = ?9, boot = ?10, clean = ?11, last_at = ?12, reported = ?13";
    transaction.prepare_cached(sql)?.execute(params![
        line,
        tail.chain,
        tail.hash,
        tail.unchained,
        whole(tail.next_part),
        whole(tail.reserved),
        whole(tail.first_part),
        tail.journal.map(u64::cast_signed),
        whole(tail.journal_seq),
        tail.boot,
        tail.clean,
        tail.last_at,
        tail.reported,
    ])?;
    Ok(())
}

fn load_tails(connection: &Connection) -> Sql<HashMap<String, Tail>> {
    let sql = "SELECT line, chain, hash, unchained, next_part, reserved, first_part, journal, journal_seq, boot, clean,
               last_at, reported, (SELECT max(chain) FROM ledger WHERE ledger.line = lines.line) FROM lines";
    let mut read = connection.prepare(sql)?;
    let number = |row: &rusqlite::Row<'_>, at: usize| row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0));
    let tails = read.query_map([], |row| {
        let tail = Tail {
            // a place that is taken, against what this table says, must not stop the line; `ledger verify` sees it
            chain: row.get::<_, i64>(1)?.max(row.get::<_, Option<i64>>(13)?.map_or(0, |last| last + 1)),
            hash: row.get(2)?,
            unchained: row.get(3)?,
            next_part: number(row, 4)?,
            reserved: number(row, 5)?,
            first_part: number(row, 6)?,
            journal: row.get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
            journal_seq: number(row, 8)?,
            boot: row.get(9)?,
            clean: row.get(10)?,
            last_at: row.get(11)?,
            reported: row.get(12)?,
        };
        Ok((row.get(0)?, tail))
    })?;
    tails.collect()
}

/// Reads the spool; WAL lets it read while the writer writes.
pub(super) struct Reader {
    pub(super) connection: Connection,
}

impl Reader {
    /// A connection of its own to a database that [`Database::open`] has prepared.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Reader { connection: connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)? })
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
    use super::super::spool::{End, Outcome};
    use super::*;

    #[test]
    fn commits_are_synchronised() {
        let (_folder, path) = fresh();
        let database = Database::open(&path, None, &[]).unwrap();
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
        drop(Database::open(&path, None, &[]).unwrap());
        let more = [MIGRATIONS, &["ALTER TABLE ledger ADD COLUMN more TEXT"]].concat();
        for _ in 0..2 {
            let database = Database::open_with(&path, None, &more).unwrap();
            database.connection.query_row("SELECT count(more) FROM ledger", [], |_| Ok(())).unwrap();
        }
        // a step that fails leaves everything as it was
        let broken = [&more[..], &["CREATE TABLE a (b); CREATE TABLE a (b)"]].concat();
        assert!(Database::open_with(&path, None, &broken).is_err());
        drop(Database::open_with(&path, None, &more).unwrap());
    }

    #[test]
    fn a_large_file_shrinks_when_it_is_emptied() {
        let (_folder, path) = fresh();
        let mut database = Database::open(&path, None, &[]).unwrap();
        let batch: Vec<Ready> = (0..60)
            .map(|n| {
                let (event, spooled) = super::super::tests::sample(n);
                let pictures = Pictures { frame_jpeg: vec![7; 1 << 20], ..spooled.pictures };
                let anomaly =
                    ReadyAnomaly { id: event.id, event: spooled.event, pictures, spooled_at: spooled.spooled_at };
                Ready { row: super::super::tests::row(n), anomaly: Some(anomaly), entry: None }
            })
            .collect();
        let pages = |database: &Database| -> i64 {
            database.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap()
        };
        database.commit(Uuid::now_v7(), &batch).unwrap();
        let full = pages(&database);
        for ready in &batch {
            let id = ready.anomaly.as_ref().unwrap().id;
            let seq = database
                .connection
                .query_row("SELECT seq FROM spool WHERE id = ?1", [id.to_string()], |row| row.get(0));
            let outcome = Outcome::Delivered { at: Timestamp::now() };
            let settled = database.settle(NOBODY, seq.unwrap(), id, &outcome).unwrap();
            assert_eq!(settled.end, Some(End::Delivered));
            database.shrink().unwrap();
        }
        let left = pages(&database);
        assert!(full > 15_000 && left < FREE_PAGES + 100, "{full} pages, then {left}");
    }
}
