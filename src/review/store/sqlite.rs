//! Where anomalies are kept: one SQLite database (`review.db`) for the facts, plain files for the pictures. Line reports are
//! in the same database, in tables of their own ([`reports`](crate::review::reports)).
//!
//! Thread: every call blocks, so the HTTP side calls a store only inside `spawn_blocking`. One connection for writes behind a
//! lock, and as many for reads as there are readers at a time; reads never wait for writes (WAL), nor writes for reads.
//!
//! Layout of the data directory: `review.db`, `lock`, `staging/` (uploads being written and what is being removed, emptied on
//! opening) and `objects/<last two hex digits of id>/<id>/{frame.jpg,heatmap.png,normal.jpg}`.
//!
//! Invariants:
//! 1. A row exists only when its files are on disk: files are written and synced in `staging/`, renamed into place, the
//!    folders synced, then the row commits with `synchronous = FULL`. Tests: `no_row_when_files_cannot_be_published`,
//!    `files_without_a_row_are_replaced` and, over a kill -9, `acknowledged_anomalies_survive_kill_9`.
//! 2. Inserting is idempotent by event id; the first upload wins. Test: `second_insert_changes_nothing`.
//! 3. The event is kept as it was posted, unknown fields included. Test: `event_is_kept_verbatim`.
//! 4. Walking the pages from newest to oldest meets each anomaly that was there at the start once. Tests:
//!    `pages_meet_every_item_once_in_both_directions`, `pages_equal_a_naive_filter`.
//! 5. One process per data directory. Test: `a_second_store_on_the_same_directory_is_refused`.
//! 6. Tallies are what counting would give. Test: `tallies_stay_true`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

use super::remember::Remembered;
use super::retain::{self, Removed, Retention};
use super::schema::migrate;
use super::stats::{Insight, Scope, WhatIf};
use super::what_if::{self, Replay};
use super::{
    Anomaly, Count, Cursor, Filter, Inserted, NewAnomaly, NewReview, Object, ObjectName, Page, Review, Sort, Store,
    insight, nanoseconds, place, query, reviews,
};
use crate::error::{Context, Error, Result};
use crate::event::LineReport;
use crate::hex::sha256;
use crate::lock::FileLock;
use crate::review::reports::{self, Calibration, Keep, LineNow};

pub(super) const DATABASE: &str = "review.db";
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// Connections for reads that are kept open.
const READERS: usize = 8;
/// KiB of pages that each connection keeps.
const CACHE_KIB: i64 = 16 * 1024;
/// Statements that each connection keeps prepared.
const STATEMENTS: usize = 64;
/// Statistics that are kept for who asks again, and the scores of so many lines for the what-if.
const INSIGHTS: usize = 32;
const REPLAYS: usize = 4;
/// Cells along each side of the part by which places are found again.
pub(super) const SPOTS: i64 = 12;

/// SQLite and files in one directory.
#[derive(Debug)]
pub struct SqliteStore {
    dir: PathBuf,
    writer: Mutex<Connection>,
    /// Connections for reads that nobody uses at the moment.
    idle: Mutex<Vec<Connection>>,
    pub(super) limits: query::Limits,
    /// Grows after each change of what statistics are made of.
    version: AtomicU64,
    insights: Remembered<Scope, Insight>,
    /// By line and model. A million parts take 8 MB.
    replays: Remembered<(String, Option<String>), Option<Replay>>,
    /// Holds the lock of the directory until the store goes.
    _lock: FileLock,
}

impl SqliteStore {
    /// Opens the store in `dir`, making or migrating what is there.
    pub fn open(dir: &Path) -> Result<SqliteStore> {
        let cannot = || format!("cannot keep anomalies in \"{}\"", dir.display());
        let hint = "give --data a directory that this user can write to";
        let objects = dir.join("objects");
        fs::create_dir_all(&objects).usage(cannot).map_err(|e| e.hint(hint))?;
        let lock = FileLock::take(&dir.join("lock")).usage(cannot).map_err(|e| e.hint(hint))?.ok_or_else(|| {
            Error::usage(format!("another review server already uses \"{}\"", dir.display()))
                .hint("stop it, or give this one another directory with --data")
        })?;
        let staging = dir.join("staging");
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::usage(cannot()).because(e).hint(hint)),
            _ => {}
        }
        fs::create_dir(&staging).usage(cannot).map_err(|e| e.hint(hint))?;

        let writer = connect(dir)?;
        migrate(&writer, dir)?;
        sync_dir(&objects).and_then(|()| sync_dir(dir))?;
        let store = SqliteStore {
            dir: dir.to_path_buf(),
            writer: Mutex::new(writer),
            idle: Mutex::default(),
            limits: query::Limits::default(),
            version: AtomicU64::new(0),
            insights: Remembered::new(INSIGHTS),
            replays: Remembered::new(REPLAYS),
            _lock: lock,
        };
        retain::finish(&store)?; // what a crash left of a removal
        Ok(store)
    }

    /// The folder of the store.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The only connection that writes.
    pub(super) fn writer(&self) -> MutexGuard<'_, Connection> {
        lock(&self.writer)
    }

    /// Statistics that were made before are of another state.
    fn note_change(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Reads one state of the database, whatever is written meanwhile.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let cannot = || "cannot read the database";
        let idle = lock(&self.idle).pop();
        let db = idle.map_or_else(|| connect(&self.dir), Ok)?;
        let done = {
            let tx = db.unchecked_transaction().failed(cannot)?;
            let done = work(&tx)?;
            tx.commit().failed(cannot)?;
            done
        };
        let mut idle = lock(&self.idle);
        if idle.len() < READERS {
            idle.push(db);
        }
        Ok(done)
    }

    /// Where the pictures of an anomaly are.
    pub(super) fn object_dir(&self, id: Uuid) -> PathBuf {
        self.dir.join(object_dir(id))
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
        if self.read(|db| exists(db, id).failed(cannot))? {
            return Ok(Inserted::Existing);
        }
        let staged = self.stage(new)?;
        let sums: Vec<_> = new.objects.iter().map(|(n, b)| (n.file_name(), b.len(), sha256(b))).collect();

        let mut writer = self.writer();
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        if exists(&tx, id).failed(cannot)? {
            return Ok(Inserted::Existing);
        }
        self.publish(staged, id)?;
        let n = record(&tx, new, captured_ns, nanoseconds(Timestamp::now())?).failed(cannot)?;
        for (name, size, sha256) in sums {
            let size = i64::try_from(size).failed(cannot)?;
            tx.execute(
                "INSERT INTO objects (n, name, size, sha256) VALUES (?, ?, ?, ?)",
                params![n, name, size, sha256],
            )
            .failed(cannot)?;
        }
        tx.commit().failed(cannot)?;
        self.note_change();
        Ok(Inserted::New)
    }

    fn get(&self, id: Uuid) -> Result<Option<Anomaly>> {
        self.read(|db| query::get(db, id))
    }

    fn list(&self, filter: &Filter, sort: Sort, start: Option<Cursor>, limit: usize) -> Result<Page> {
        self.read(|db| query::list(db, filter, sort, start, limit.max(1), self.limits))
    }

    fn revision(&self) -> Result<i64> {
        self.read(query::revision)
    }

    fn counts(&self) -> Result<Vec<Count>> {
        self.read(query::counts)
    }

    fn models(&self) -> Result<Vec<String>> {
        self.read(query::models)
    }

    fn object(&self, id: Uuid, name: ObjectName) -> Result<Option<Object>> {
        let cannot = || format!("cannot read {} of anomaly {id}", name.file_name());
        let sum = || self.read(|db| query::checksum(db, id, name));
        let Some(sha256) = sum()? else { return Ok(None) };
        match fs::read(self.object_dir(id).join(name.file_name())) {
            Ok(bytes) => Ok(Some(Object { bytes, sha256 })),
            // it was removed in between
            Err(e) if e.kind() == ErrorKind::NotFound && sum()?.is_none() => Ok(None),
            Err(e) => Err(Error::failed(cannot()).because(e)),
        }
    }

    fn review(&self, id: Uuid, new: &NewReview) -> Result<Option<Review>> {
        let done = reviews::review(&mut self.writer(), id, new, Timestamp::now());
        self.note_change();
        done
    }

    fn take_back(&self, id: Uuid, reviewer: &str) -> Result<Option<Review>> {
        let done = reviews::take_back(&mut self.writer(), id, reviewer, Timestamp::now());
        self.note_change();
        done
    }

    fn reviews(&self, id: Uuid) -> Result<Vec<Review>> {
        self.read(|db| reviews::reviews(db, id))
    }

    fn near(&self, id: Uuid, limit: usize) -> Result<Vec<Anomaly>> {
        self.read(|db| query::near(db, id, limit))
    }

    fn defect_types(&self) -> Result<Vec<String>> {
        self.read(reviews::defect_types)
    }

    fn set_defect_types(&self, names: &[String]) -> Result<()> {
        reviews::set_defect_types(&mut self.writer(), names)
    }

    fn insight(&self, scope: &Scope) -> Result<Insight> {
        let compute = || self.read(|db| insight::insight(db, scope));
        Ok(Insight::clone(&*self.insights.get(scope.clone(), self.version(), compute)?))
    }

    fn what_if(&self, line: &str, model: Option<&str>, threshold: Option<f64>) -> Result<Option<WhatIf>> {
        let compute = || self.read(|db| what_if::replay(db, line, model));
        let replay = self.replays.get((line.to_owned(), model.map(str::to_owned)), self.version(), compute)?;
        Ok(replay.as_ref().as_ref().map(|replay| replay.answer(threshold)))
    }

    fn retain(&self, rule: &Retention, now: Timestamp) -> Result<Removed> {
        let removed = retain::step(self, rule, now)?;
        if removed.count() > 0 {
            self.note_change();
        }
        Ok(removed)
    }

    fn insert_report(&self, report: &LineReport) -> Result<Inserted> {
        let done = reports::insert(&mut self.writer(), report, Timestamp::now(), Keep::default());
        self.note_change();
        done
    }

    fn lines(&self) -> Result<Vec<LineNow>> {
        self.read(|db| reports::lines(db, Timestamp::now()))
    }

    fn history(&self, minutes: i64, steps: usize) -> Result<BTreeMap<String, Vec<[u64; 4]>>> {
        self.read(|db| reports::history(db, Timestamp::now(), minutes, steps))
    }

    fn calibration(&self, line: &str, model_sha256: &str) -> Result<Option<Calibration>> {
        self.read(|db| reports::calibration(db, line, model_sha256))
    }
}

/// Makes the rows of an anomaly, but for its pictures; gives its number.
fn record(db: &Connection, new: &NewAnomaly, captured_ns: i64, now: i64) -> rusqlite::Result<i64> {
    let event = &new.event;
    let bytes = new.raw.len() + new.objects.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let model = format!("{}@{}", event.model.name, event.model.version);
    let origin = origin(db, &event.line, &model, event.threshold, now)?;
    let tally = tally(db, origin, event.verdict.as_str(), "", "", 1, bytes)?;
    let place = place(event);
    db.prepare_cached(
        "INSERT INTO anomalies (id, captured_at, received_at, origin, tally, part, score, confidence, lot, serial, place_x,
            place_y, spot, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        event.id.to_string(),
        captured_ns,
        now,
        origin,
        tally,
        i64::try_from(event.part).unwrap_or(i64::MAX),
        f64::from(event.score),
        f64::from(event.confidence.max(0.0)), // no negative zero: order is that of the bits
        event.lot,
        event.serial,
        place.map(|p| p.0),
        place.map(|p| p.1),
        place.map(spot),
        bytes,
    ])?;
    let n = db.last_insert_rowid();
    db.prepare_cached("INSERT INTO events (n, event) VALUES (?, ?)")?.execute(params![n, new.raw])?;
    changed(db)?;
    Ok(n)
}

/// Notes a change of the lists.
pub(super) fn changed(db: &Connection) -> rusqlite::Result<usize> {
    db.prepare_cached("UPDATE revision SET n = n + 1")?.execute([])
}

/// Number of a line with a model, which is made when it is new; notes the threshold that it has now.
pub(in crate::review) fn origin(
    db: &Connection,
    line: &str,
    model: &str,
    threshold: f32,
    now: i64,
) -> rusqlite::Result<i64> {
    db.prepare_cached(
        "INSERT INTO origins (line, model, threshold, heard_at) VALUES (?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET threshold = excluded.threshold, heard_at = MAX(heard_at, excluded.heard_at)
         RETURNING id",
    )?
    .query_row(params![line, model, f64::from(threshold), now], |row| row.get(0))
}

/// Adds to a tally, which is made when it is new; gives its number.
pub(super) fn tally(
    db: &Connection,
    origin: i64,
    verdict: &str,
    review: &str,
    defect_type: &str,
    count: i64,
    bytes: i64,
) -> rusqlite::Result<i64> {
    db.prepare_cached(
        "INSERT INTO tallies (origin, verdict, review, defect_type, count, bytes) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET count = count + excluded.count, bytes = bytes + excluded.bytes RETURNING id",
    )?
    .query_row(params![origin, verdict, review, defect_type, count, bytes], |row| row.get(0))
}

/// Coarse cell of a place.
pub(super) fn spot((x, y): (f64, f64)) -> i64 {
    let cell = |at: f64| ((at * SPOTS as f64) as i64).clamp(0, SPOTS - 1);
    cell(y) * SPOTS + cell(x)
}

/// Folder of an anomaly's pictures in the folder of a store.
pub(super) fn object_dir(id: Uuid) -> PathBuf {
    let id = id.to_string();
    // the first digits of a UUIDv7 are its time and would put everything into one folder; the last are random
    Path::new("objects").join(id.get(34..).unwrap_or("00")).join(&id)
}

pub(super) fn connect(dir: &Path) -> Result<Connection> {
    let path = dir.join(DATABASE);
    let cannot = || format!("cannot open the database \"{}\"", path.display());
    let db = Connection::open(&path).failed(cannot)?;
    db.busy_timeout(BUSY).failed(cannot)?;
    db.pragma_update(None, "journal_mode", "WAL").failed(cannot)?;
    db.pragma_update(None, "synchronous", "FULL").failed(cannot)?;
    db.pragma_update(None, "foreign_keys", true).failed(cannot)?;
    db.pragma_update(None, "cache_size", -CACHE_KIB).failed(cannot)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

pub(super) fn exists(db: &Connection, id: Uuid) -> rusqlite::Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM anomalies WHERE id = ?)", [id.to_string()], |row| row.get(0))
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).failed(|| format!("cannot sync the folder \"{}\"", dir.display()))
}

/// A poisoned lock is taken all the same: a transaction that was not committed has been rolled back.
fn lock<T>(db: &Mutex<T>) -> MutexGuard<'_, T> {
    db.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "tests.rs"]
pub(in crate::review) mod tests;
