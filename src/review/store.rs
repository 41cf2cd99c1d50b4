//! Where anomalies are kept: one SQLite database (`review.db`) for the facts, plain files for the pictures. Line reports are
//! in the same database, in tables of their own ([`super::reports`]).
//!
//! Thread: every call blocks, so the HTTP side calls a store only inside `spawn_blocking`. Two connections, one for writes
//! and one for reads, each behind its own lock; no call holds both.
//!
//! Layout of the data directory: `review.db`, `lock`, `staging/` (uploads being written, emptied on opening) and
//! `objects/<last two hex digits of id>/<id>/{frame.jpg,heatmap.png,normal.jpg}`.
//!
//! Invariants:
//! 1. A row exists only when its files are on disk: files are written and synced in `staging/`, renamed into place, the
//!    folders synced, then the row commits with `synchronous = FULL`. Tests: `no_row_when_files_cannot_be_published`,
//!    `files_without_a_row_are_replaced` and, over a kill -9, `acknowledged_anomalies_survive_kill_9`.
//! 2. Inserting is idempotent by event id; the first upload wins. Test: `second_insert_changes_nothing`.
//! 3. The event is kept as it was posted, unknown fields included. Test: `event_is_kept_verbatim`.
//! 4. Walking the pages from newest to oldest meets each anomaly that was there at the start once. Test:
//!    `pages_meet_every_item_once_in_both_directions`.
//! 5. One process per data directory. Test: `a_second_store_on_the_same_directory_is_refused`.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, TransactionBehavior, params};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::reports::{self, Keep, LineNow};
use crate::error::{Context, Error, Result};
use crate::event::{Event, LineReport, Verdict};

/// One step per schema version: `MIGRATIONS[n]` brings a database from `user_version` n to n + 1. Append only.
const MIGRATIONS: &[&str] = &[ANOMALIES, reports::TABLES];
const ANOMALIES: &str = "
    CREATE TABLE anomalies (
        id          TEXT PRIMARY KEY NOT NULL,
        captured_at INTEGER NOT NULL, -- nanoseconds since 1970, UTC
        received_at INTEGER NOT NULL,
        line        TEXT NOT NULL,
        verdict     TEXT NOT NULL,
        event       TEXT NOT NULL     -- as posted
    ) STRICT;
    CREATE INDEX anomalies_by_time ON anomalies (captured_at, id);
    CREATE INDEX anomalies_by_line ON anomalies (line, captured_at, id);
    CREATE INDEX anomalies_by_verdict ON anomalies (verdict, captured_at, id);
    CREATE INDEX anomalies_by_line_verdict ON anomalies (line, verdict, captured_at, id);
    CREATE TABLE objects (
        anomaly TEXT NOT NULL REFERENCES anomalies (id),
        name    TEXT NOT NULL,
        size    INTEGER NOT NULL,
        sha256  TEXT NOT NULL,
        PRIMARY KEY (anomaly, name)
    ) STRICT, WITHOUT ROWID;
";

const DATABASE: &str = "review.db";
const BUSY: Duration = Duration::from_secs(5);

/// One of the pictures that belong to an anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectName {
    /// What the camera saw.
    Frame,
    /// Where it is unusual; covers the whole frame.
    Heatmap,
    /// What the place should look like.
    Normal,
}

impl ObjectName {
    /// All of them.
    pub const ALL: [ObjectName; 3] = [ObjectName::Frame, ObjectName::Heatmap, ObjectName::Normal];

    /// Name of the file on disk and in the URL.
    pub fn file_name(self) -> &'static str {
        match self {
            ObjectName::Frame => "frame.jpg",
            ObjectName::Heatmap => "heatmap.png",
            ObjectName::Normal => "normal.jpg",
        }
    }
    /// Media type it is served with.
    pub fn content_type(self) -> &'static str {
        match self {
            ObjectName::Heatmap => "image/png",
            ObjectName::Frame | ObjectName::Normal => "image/jpeg",
        }
    }
    /// The name for a file name, when it is one of ours.
    pub fn from_file_name(name: &str) -> Option<ObjectName> {
        Self::ALL.into_iter().find(|o| o.file_name() == name)
    }
}

/// A checked upload, ready to be kept.
#[derive(Debug, Clone)]
pub struct NewAnomaly {
    pub event: Event,
    /// The event as it was posted.
    pub raw: String,
    /// At most one of each name.
    pub objects: Vec<(ObjectName, Vec<u8>)>,
}

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is new and now on disk.
    New,
    /// It was there before; nothing changed.
    Existing,
}

/// A stored anomaly without its pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Anomaly {
    pub event: Event,
    /// The event as it was posted.
    pub raw: String,
    pub received_at: Timestamp,
    pub has_normal: bool,
}

impl Anomaly {
    /// The place of this anomaly in the list.
    pub fn position(&self) -> Result<Position> {
        Ok(Position { captured_ns: nanoseconds(self.event.captured_at)?, id: self.event.id })
    }
}

/// A picture and the checksum it was stored with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// Hex.
    pub sha256: String,
}

/// Place in the list: by capture time, then id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub captured_ns: i64,
    pub id: Uuid,
}

/// Which way to walk from a position. The list itself is always newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    Older,
    Newer,
}

/// Where a page starts. Opaque text outside (`o` or `n`, nanoseconds, `_`, id).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub walk: Walk,
    /// Itself not part of the page.
    pub from: Position,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let walk = if self.walk == Walk::Older { 'o' } else { 'n' };
        write!(f, "{walk}{}_{}", self.from.captured_ns, self.from.id)
    }
}

impl FromStr for Cursor {
    type Err = Error;
    fn from_str(text: &str) -> Result<Cursor> {
        let bad = || Error::usage(format!("cursor {text:?} is not one that this server gave out"));
        let (walk, rest) = match text.split_at_checked(1) {
            Some(("o", rest)) => (Walk::Older, rest),
            Some(("n", rest)) => (Walk::Newer, rest),
            _ => return Err(bad()),
        };
        let (ns, id) = rest.split_once('_').ok_or_else(bad)?;
        let captured_ns = ns.parse().map_err(|_| bad())?;
        let id = Uuid::try_parse(id).map_err(|_| bad())?;
        Ok(Cursor { walk, from: Position { captured_ns, id } })
    }
}

/// Which anomalies to list; `None` means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub line: Option<String>,
    pub verdict: Option<Verdict>,
}

/// A part of the list, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    pub items: Vec<Anomaly>,
    /// Continues with what is older; `None` at the end.
    pub older: Option<Cursor>,
    /// Goes back to what is newer; `None` when there was nothing when the page was made.
    pub newer: Option<Cursor>,
    /// Grows with every change of the store, whatever the filter.
    pub revision: i64,
}

/// How many anomalies a line has with one verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub line: String,
    pub verdict: String,
    pub count: u64,
}

/// What the review server needs from storage. Calls block.
pub trait Store: Send + Sync + 'static {
    /// Keeps an anomaly; when it returns, the anomaly is on disk.
    fn insert(&self, new: &NewAnomaly) -> Result<Inserted>;
    /// One anomaly.
    fn get(&self, id: Uuid) -> Result<Option<Anomaly>>;
    /// A page of at most `limit` anomalies (at least one), newest first.
    fn list(&self, filter: &Filter, start: Option<Cursor>, limit: usize) -> Result<Page>;
    /// Counts by line and verdict, sorted by both.
    fn counts(&self) -> Result<Vec<Count>>;
    /// One picture of an anomaly.
    fn object(&self, id: Uuid, name: ObjectName) -> Result<Option<Object>>;
    /// Keeps a line's report; when it returns, the report is on disk. Kind usage: it is not taken.
    fn insert_report(&self, report: &LineReport) -> Result<Inserted>;
    /// Every line that has ever reported, by name.
    fn lines(&self) -> Result<Vec<LineNow>>;
}

/// SQLite and files in one directory.
#[derive(Debug)]
pub struct SqliteStore {
    dir: PathBuf,
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    /// Holds the lock of the directory until the store goes.
    _lock: File,
}

impl SqliteStore {
    /// Opens the store in `dir`, making or migrating what is there.
    pub fn open(dir: &Path) -> Result<SqliteStore> {
        let cannot = || format!("cannot keep anomalies in \"{}\"", dir.display());
        let hint = "give --data a directory that this user can write to";
        let objects = dir.join("objects");
        fs::create_dir_all(&objects).usage(cannot).map_err(|e| e.hint(hint))?;
        let lock = File::create(dir.join("lock")).usage(cannot).map_err(|e| e.hint(hint))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::usage(format!("another review server already uses \"{}\"", dir.display()))
                    .hint("stop it, or give this one another directory with --data"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::usage(cannot()).because(e)),
        }
        let staging = dir.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::usage(cannot()).because(e).hint(hint)),
            _ => {}
        }
        fs::create_dir(&staging).usage(cannot).map_err(|e| e.hint(hint))?;

        let writer = connect(dir)?;
        migrate(&writer, dir)?;
        let reader = connect(dir)?;
        sync_dir(&objects).and_then(|()| sync_dir(dir))?;
        Ok(SqliteStore { dir: dir.to_path_buf(), writer: Mutex::new(writer), reader: Mutex::new(reader), _lock: lock })
    }

    fn object_dir(&self, id: Uuid) -> PathBuf {
        let id = id.to_string();
        // the first digits of a UUIDv7 are its time and would put everything into one folder; the last are random
        self.dir.join("objects").join(id.get(34..).unwrap_or("00")).join(&id)
    }

    /// Writes the pictures where nobody looks yet, synced.
    fn stage(&self, new: &NewAnomaly) -> Result<tempfile::TempDir> {
        let cannot = || format!("cannot write the pictures of anomaly {}", new.event.id);
        let staged = tempfile::Builder::new().prefix("upload-").tempdir_in(self.dir.join("staging")).failed(cannot)?;
        for (name, bytes) in &new.objects {
            let mut file = File::create_new(staged.path().join(name.file_name())).failed(cannot)?;
            file.write_all(bytes).and_then(|()| file.sync_all()).failed(cannot)?;
        }
        sync_dir(staged.path())?;
        Ok(staged)
    }

    /// Moves staged pictures to their place, synced. What is there without a row is left from a crash and goes.
    fn publish(&self, staged: tempfile::TempDir, id: Uuid) -> Result<()> {
        let cannot = || format!("cannot publish the pictures of anomaly {id}");
        let target = self.object_dir(id);
        let shelf = target.parent().unwrap_or(&self.dir);
        if !shelf.is_dir() {
            fs::create_dir(shelf).failed(cannot)?;
            sync_dir(&self.dir.join("objects"))?;
        }
        match fs::remove_dir_all(&target) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::failed(cannot()).because(e)),
            _ => {}
        }
        fs::rename(staged.path(), &target).failed(cannot)?;
        let _ = staged.keep(); // it has moved: nothing to remove
        sync_dir(shelf)
    }
}

impl Store for SqliteStore {
    fn insert(&self, new: &NewAnomaly) -> Result<Inserted> {
        let id = new.event.id;
        let cannot = || format!("cannot record anomaly {id}");
        let captured_ns = nanoseconds(new.event.captured_at)?;
        if exists(&lock(&self.reader), id).failed(cannot)? {
            return Ok(Inserted::Existing);
        }
        let staged = self.stage(new)?;
        let sums: Vec<_> = new.objects.iter().map(|(n, b)| (n.file_name(), b.len(), hex(&Sha256::digest(b)))).collect();

        let mut writer = lock(&self.writer);
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        if exists(&tx, id).failed(cannot)? {
            return Ok(Inserted::Existing);
        }
        self.publish(staged, id)?;
        tx.execute(
            "INSERT INTO anomalies (id, captured_at, received_at, line, verdict, event) VALUES (?, ?, ?, ?, ?, ?)",
            params![
                id.to_string(),
                captured_ns,
                nanoseconds(Timestamp::now())?,
                new.event.line,
                new.event.verdict.as_str(),
                new.raw
            ],
        )
        .failed(cannot)?;
        for (name, size, sha256) in sums {
            let size = i64::try_from(size).failed(cannot)?;
            tx.execute(
                "INSERT INTO objects (anomaly, name, size, sha256) VALUES (?, ?, ?, ?)",
                params![id.to_string(), name, size, sha256],
            )
            .failed(cannot)?;
        }
        tx.commit().failed(cannot)?;
        Ok(Inserted::New)
    }

    fn get(&self, id: Uuid) -> Result<Option<Anomaly>> {
        let cannot = || format!("cannot read anomaly {id}");
        let sql = format!("SELECT {COLUMNS} FROM anomalies a WHERE id = ?");
        let reader = lock(&self.reader);
        let row = reader.query_row(&sql, [id.to_string()], Stored::read).optional().failed(cannot)?;
        row.map(Stored::parse).transpose()
    }

    fn list(&self, filter: &Filter, start: Option<Cursor>, limit: usize) -> Result<Page> {
        let limit = limit.max(1);
        let id = start.map(|c| c.from.id.to_string());
        let verdict = filter.verdict.map(Verdict::as_str);
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1; // one more tells whether the walk goes on
        let walk = start.map_or(Walk::Older, |c| c.walk);
        let (beyond, order) = if walk == Walk::Older { ("<", "DESC") } else { (">", "ASC") };

        let mut conditions = vec!["TRUE".to_string()];
        let mut values: Vec<&dyn ToSql> = Vec::new();
        if let Some(line) = &filter.line {
            conditions.push("line = ?".into());
            values.push(line);
        }
        if let Some(verdict) = &verdict {
            conditions.push("verdict = ?".into());
            values.push(verdict);
        }
        if let (Some(cursor), Some(id)) = (&start, &id) {
            conditions.push(format!("(captured_at, id) {beyond} (?, ?)"));
            values.push(&cursor.from.captured_ns);
            values.push(id);
        }
        values.push(&wanted);
        let sql = format!(
            "SELECT {COLUMNS} FROM anomalies a WHERE {} ORDER BY captured_at {order}, id {order} LIMIT ?",
            conditions.join(" AND ")
        );

        let cannot = || "cannot list anomalies";
        let reader = lock(&self.reader);
        // one transaction, so that the revision is that of the items
        let tx = reader.unchecked_transaction().failed(cannot)?;
        let revision =
            tx.query_row("SELECT COALESCE(MAX(rowid), 0) FROM anomalies", [], |row| row.get(0)).failed(cannot)?;
        let mut statement = tx.prepare(&sql).failed(cannot)?;
        let rows = statement.query_map(values.as_slice(), Stored::read).failed(cannot)?;
        let mut items = Vec::new();
        for row in rows {
            items.push(row.failed(cannot)?.parse()?);
        }
        let goes_on = items.len() > limit;
        items.truncate(limit);
        if walk == Walk::Newer {
            items.reverse();
        }
        let cursor = |walk, item: Option<&Anomaly>| -> Result<Option<Cursor>> {
            item.map(|a| Ok(Cursor { walk, from: a.position()? })).transpose()
        };
        // a page that was walked to has something on the side it came from
        let has_older = if walk == Walk::Older { goes_on } else { true };
        let has_newer = if walk == Walk::Older { start.is_some() } else { goes_on };
        let older = if has_older { cursor(Walk::Older, items.last())? } else { None };
        let newer = if has_newer { cursor(Walk::Newer, items.first())? } else { None };
        Ok(Page { items, older, newer, revision })
    }

    fn counts(&self) -> Result<Vec<Count>> {
        let cannot = || "cannot count anomalies";
        let reader = lock(&self.reader);
        let mut statement = reader
            .prepare_cached(
                "SELECT line, verdict, COUNT(*) FROM anomalies GROUP BY line, verdict ORDER BY line, verdict",
            )
            .failed(cannot)?;
        let rows = statement
            .query_map([], |row| {
                let count: i64 = row.get(2)?;
                Ok(Count { line: row.get(0)?, verdict: row.get(1)?, count: count.unsigned_abs() })
            })
            .failed(cannot)?;
        rows.collect::<Result<_, _>>().failed(cannot)
    }

    fn object(&self, id: Uuid, name: ObjectName) -> Result<Option<Object>> {
        let cannot = || format!("cannot read {} of anomaly {id}", name.file_name());
        let sha256: Option<String> = lock(&self.reader)
            .query_row(
                "SELECT sha256 FROM objects WHERE anomaly = ? AND name = ?",
                params![id.to_string(), name.file_name()],
                |row| row.get(0),
            )
            .optional()
            .failed(cannot)?;
        let Some(sha256) = sha256 else { return Ok(None) };
        let bytes = fs::read(self.object_dir(id).join(name.file_name())).failed(cannot)?;
        Ok(Some(Object { bytes, sha256 }))
    }

    fn insert_report(&self, report: &LineReport) -> Result<Inserted> {
        reports::insert(&mut lock(&self.writer), report, Timestamp::now(), Keep::default())
    }

    fn lines(&self) -> Result<Vec<LineNow>> {
        reports::lines(&lock(&self.reader), Timestamp::now())
    }
}

const COLUMNS: &str = "a.id, a.event, a.received_at,
    EXISTS (SELECT 1 FROM objects o WHERE o.anomaly = a.id AND o.name = 'normal.jpg')";

/// A row as the database has it.
struct Stored {
    id: String,
    raw: String,
    received_ns: i64,
    has_normal: bool,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
        Ok(Stored { id: row.get(0)?, raw: row.get(1)?, received_ns: row.get(2)?, has_normal: row.get(3)? })
    }
    fn parse(self) -> Result<Anomaly> {
        let cannot = || format!("cannot understand the stored event of anomaly {}", self.id);
        let event: Event = serde_json::from_str(&self.raw).failed(cannot)?;
        let received_at = Timestamp::from_nanosecond(self.received_ns.into()).failed(cannot)?;
        Ok(Anomaly { event, received_at, has_normal: self.has_normal, raw: self.raw })
    }
}

fn connect(dir: &Path) -> Result<Connection> {
    let path = dir.join(DATABASE);
    let cannot = || format!("cannot open the database \"{}\"", path.display());
    let db = Connection::open(&path).failed(cannot)?;
    db.busy_timeout(BUSY).failed(cannot)?;
    db.pragma_update(None, "journal_mode", "WAL").failed(cannot)?;
    db.pragma_update(None, "synchronous", "FULL").failed(cannot)?;
    db.pragma_update(None, "foreign_keys", true).failed(cannot)?;
    Ok(db)
}

fn migrate(db: &Connection, dir: &Path) -> Result<()> {
    let cannot = || format!("cannot bring the database in \"{}\" up to date", dir.display());
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).failed(cannot)?;
    let Some(steps) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        let known = MIGRATIONS.len();
        return Err(Error::usage(format!(
            "the database in \"{}\" has schema {found}, this version of linesight knows {known}",
            dir.display()
        ))
        .hint("it was written by a newer linesight: update this one, or give another directory with --data"));
    };
    for (version, step) in (found + 1..).zip(steps) {
        db.execute_batch(&format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {version}; COMMIT;"))
            .failed(cannot)?;
    }
    Ok(())
}

fn exists(db: &Connection, id: Uuid) -> rusqlite::Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM anomalies WHERE id = ?)", [id.to_string()], |row| row.get(0))
}

/// Nanoseconds since 1970, when they fit the database (years 1678 to 2261).
pub fn nanoseconds(time: Timestamp) -> Result<i64> {
    i64::try_from(time.as_nanosecond()).usage(|| format!("time \"{time}\" is out of range"))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).failed(|| format!("cannot sync the folder \"{}\"", dir.display()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// A poisoned lock is taken all the same: a transaction that was not committed has been rolled back.
fn lock(db: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    db.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
