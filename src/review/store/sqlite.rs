//! Where anomalies are kept: one SQLite database (`review.db`) for the facts, plain files for the pictures. Line reports are
//! in the same database, in tables of their own ([`reports`](crate::review::reports)).
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

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params, params_from_iter};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::schema::migrate;
use super::{
    Anomaly, Count, Cursor, Decision, Filter, Inserted, Key, NewAnomaly, NewReview, Object, ObjectName, Page, Review,
    Reviewed, Sort, Store, Walk, nanoseconds, place,
};
use crate::error::{Context, Error, Result};
use crate::event::{Event, LineReport};
use crate::lock::FileLock;
use crate::review::reports::{self, Calibration, Keep, LineNow};

const DATABASE: &str = "review.db";
const BUSY: Duration = Duration::from_secs(5);
/// How far apart two places on a part may be to be the same, in part sizes.
const NEAR: f64 = 0.08;

/// SQLite and files in one directory.
#[derive(Debug)]
pub struct SqliteStore {
    dir: PathBuf,
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
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
        let (place_x, place_y) = place(&new.event).unzip();
        let bytes = new.raw.len() + new.objects.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        tx.execute(
            "INSERT INTO anomalies (id, captured_at, received_at, line, verdict, event, part, score, confidence, model, lot,
                serial, place_x, place_y, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                id.to_string(),
                captured_ns,
                nanoseconds(Timestamp::now())?,
                new.event.line,
                new.event.verdict.as_str(),
                new.raw,
                i64::try_from(new.event.part).unwrap_or(i64::MAX),
                f64::from(new.event.score),
                f64::from(new.event.confidence),
                format!("{}@{}", new.event.model.name, new.event.model.version),
                new.event.lot,
                new.event.serial,
                place_x,
                place_y,
                i64::try_from(bytes).failed(cannot)?,
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
        let sql = format!("SELECT {COLUMNS} WHERE a.id = ?");
        let reader = lock(&self.reader);
        let row = reader.query_row(&sql, [id.to_string()], Stored::read).optional().failed(cannot)?;
        row.map(Stored::parse).transpose()
    }

    fn list(&self, filter: &Filter, sort: Sort, start: Option<Cursor>, limit: usize) -> Result<Page> {
        let limit = limit.max(1);
        if start.is_some_and(|cursor| cursor.from.sort() != sort) {
            return Err(Error::usage("the cursor is of a list in another order"));
        }
        let walk = start.map_or(Walk::Older, |c| c.walk);
        let (beyond, order) = if walk == Walk::Older { ("<", "DESC") } else { (">", "ASC") };
        let key = if sort == Sort::Time { "captured_at" } else { "confidence" };

        let (mut conditions, mut values) = conditions(filter)?;
        if let Some(cursor) = &start {
            conditions.push(format!("(a.{key}, a.id) {beyond} (?, ?)"));
            values.push(match cursor.from.key {
                Key::Time(ns) => ns.into(),
                Key::Confidence(confidence) => f64::from(confidence).into(),
            });
            values.push(cursor.from.id.to_string().into());
        }
        // one more tells whether the walk goes on
        values.push((i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1).into());
        let sql = format!(
            "SELECT {COLUMNS} WHERE {} ORDER BY a.{key} {order}, a.id {order} LIMIT ?",
            conditions.join(" AND ")
        );

        let cannot = || "cannot list anomalies";
        let reader = lock(&self.reader);
        // one transaction, so that the revision is that of the items
        let tx = reader.unchecked_transaction().failed(cannot)?;
        let revision = tx.query_row(REVISION, [], |row| row.get(0)).failed(cannot)?;
        let mut statement = tx.prepare(&sql).failed(cannot)?;
        let rows = statement.query_map(params_from_iter(values), Stored::read).failed(cannot)?;
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
            item.map(|a| Ok(Cursor { walk, from: a.position(sort)? })).transpose()
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
                "SELECT line, verdict, review, COUNT(*) FROM anomalies GROUP BY line, verdict, review
                 ORDER BY line, verdict, review",
            )
            .failed(cannot)?;
        let rows = statement
            .query_map([], |row| {
                let count: i64 = row.get(3)?;
                let review = Decision::from_word(&row.get::<_, String>(2)?);
                Ok(Count { line: row.get(0)?, verdict: row.get(1)?, review, count: count.unsigned_abs() })
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

    fn review(&self, id: Uuid, new: &NewReview) -> Result<Option<Review>> {
        let cannot = || format!("cannot record the review of anomaly {id}");
        let mut writer = lock(&self.writer);
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        if !exists(&tx, id).failed(cannot)? {
            return Ok(None);
        }
        let at = Timestamp::now();
        tx.execute(
            "INSERT INTO reviews (anomaly, at, reviewer, decision, defect_type, comment) VALUES (?, ?, ?, ?, ?, ?)",
            params![
                id.to_string(),
                nanoseconds(at)?,
                new.reviewer,
                new.decision.as_str(),
                new.defect_type,
                new.comment
            ],
        )
        .failed(cannot)?;
        let review = Review {
            seq: tx.last_insert_rowid(),
            anomaly: id,
            at,
            reviewer: new.reviewer.clone(),
            decision: Some(new.decision),
            defect_type: new.defect_type.clone(),
            comment: new.comment.clone(),
        };
        hold(&tx, id, Some(&review)).failed(cannot)?;
        tx.commit().failed(cannot)?;
        Ok(Some(review))
    }

    fn take_back(&self, id: Uuid, reviewer: &str) -> Result<Option<Review>> {
        let cannot = || format!("cannot take back the review of anomaly {id}");
        let mut writer = lock(&self.writer);
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        let standing = |below: i64| {
            let sql = format!(
                "SELECT {REVIEW} FROM reviews r WHERE anomaly = ? AND seq < ? AND decision > ''
                 AND NOT EXISTS (SELECT 1 FROM reviews t WHERE t.anomaly = r.anomaly AND t.took_back = r.seq)
                 ORDER BY seq DESC LIMIT 1"
            );
            let found = tx.query_row(&sql, params![id.to_string(), below], StoredReview::read).optional();
            found.failed(cannot)?.map(StoredReview::parse).transpose()
        };
        let Some(last) = standing(i64::MAX)?.filter(|last| last.reviewer == reviewer) else { return Ok(None) };
        let at = Timestamp::now();
        tx.execute(
            "INSERT INTO reviews (anomaly, at, reviewer, decision, took_back) VALUES (?, ?, ?, '', ?)",
            params![id.to_string(), nanoseconds(at)?, reviewer, last.seq],
        )
        .failed(cannot)?;
        let seq = tx.last_insert_rowid();
        hold(&tx, id, standing(last.seq)?.as_ref()).failed(cannot)?;
        tx.commit().failed(cannot)?;
        let reviewer = reviewer.to_owned();
        Ok(Some(Review { seq, anomaly: id, at, reviewer, decision: None, defect_type: None, comment: None }))
    }

    fn reviews(&self, id: Uuid) -> Result<Vec<Review>> {
        let cannot = || format!("cannot read the reviews of anomaly {id}");
        let reader = lock(&self.reader);
        let sql = format!("SELECT {REVIEW} FROM reviews WHERE anomaly = ? ORDER BY seq");
        let mut statement = reader.prepare_cached(&sql).failed(cannot)?;
        let rows = statement.query_map([id.to_string()], StoredReview::read).failed(cannot)?;
        rows.map(|row| row.failed(cannot)?.parse()).collect()
    }

    fn near(&self, id: Uuid, limit: usize) -> Result<Vec<Anomaly>> {
        let cannot = || format!("cannot find what is near anomaly {id}");
        let reader = lock(&self.reader);
        let sql = format!(
            "SELECT {COLUMNS} JOIN anomalies me ON me.id = ?1
             WHERE a.line = me.line AND a.model = me.model AND a.id <> me.id AND a.place_x IS NOT NULL
               AND abs(a.place_x - me.place_x) <= {NEAR} AND abs(a.place_y - me.place_y) <= {NEAR}
             ORDER BY abs(a.captured_at - me.captured_at) LIMIT ?2"
        );
        let mut statement = reader.prepare_cached(&sql).failed(cannot)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![id.to_string(), limit], Stored::read).failed(cannot)?;
        rows.map(|row| row.failed(cannot)?.parse()).collect()
    }

    fn defect_types(&self) -> Result<Vec<String>> {
        let cannot = || "cannot read the defect types";
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached("SELECT name FROM defect_types ORDER BY position").failed(cannot)?;
        let names = statement.query_map([], |row| row.get(0)).failed(cannot)?;
        names.collect::<Result<_, _>>().failed(cannot)
    }

    fn set_defect_types(&self, names: &[String]) -> Result<()> {
        let cannot = || "cannot record the defect types";
        let mut writer = lock(&self.writer);
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        tx.execute("DELETE FROM defect_types", []).failed(cannot)?;
        for (position, name) in (1_i64..).zip(names) {
            tx.execute("INSERT INTO defect_types (position, name) VALUES (?, ?)", params![position, name])
                .failed(cannot)?;
        }
        tx.commit().failed(cannot)
    }

    fn insert_report(&self, report: &LineReport) -> Result<Inserted> {
        reports::insert(&mut lock(&self.writer), report, Timestamp::now(), Keep::default())
    }

    fn lines(&self) -> Result<Vec<LineNow>> {
        reports::lines(&lock(&self.reader), Timestamp::now())
    }

    fn history(&self, minutes: i64, steps: usize) -> Result<BTreeMap<String, Vec<[u64; 4]>>> {
        reports::history(&lock(&self.reader), Timestamp::now(), minutes, steps)
    }

    fn calibration(&self, line: &str, model_sha256: &str) -> Result<Option<Calibration>> {
        reports::calibration(&lock(&self.reader), line, model_sha256)
    }
}

const COLUMNS: &str = "a.id, a.event, a.received_at,
    EXISTS (SELECT 1 FROM objects o WHERE o.anomaly = a.id AND o.name = 'normal.jpg'),
    r.seq, r.anomaly, r.at, r.reviewer, r.decision, r.defect_type, r.comment
    FROM anomalies a LEFT JOIN reviews r ON r.seq = a.review_seq";
const REVIEW: &str = "seq, anomaly, at, reviewer, decision, defect_type, comment";
/// Grows with whatever changes a list.
const REVISION: &str =
    "SELECT (SELECT COALESCE(MAX(rowid), 0) FROM anomalies) + (SELECT COALESCE(MAX(seq), 0) FROM reviews)";

/// A row as the database has it.
struct Stored {
    id: String,
    raw: String,
    received_ns: i64,
    has_normal: bool,
    review: Option<StoredReview>,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
        let review = row.get::<_, Option<i64>>(4)?.map(|_| StoredReview::read_at(row, 4)).transpose()?;
        let (id, raw, received_ns, has_normal) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        Ok(Stored { id, raw, received_ns, has_normal, review })
    }
    fn parse(self) -> Result<Anomaly> {
        let cannot = || format!("cannot understand the stored event of anomaly {}", self.id);
        let event: Event = serde_json::from_str(&self.raw).failed(cannot)?;
        let received_at = Timestamp::from_nanosecond(self.received_ns.into()).failed(cannot)?;
        let review = self.review.map(StoredReview::parse).transpose()?;
        Ok(Anomaly { event, received_at, has_normal: self.has_normal, raw: self.raw, review })
    }
}

/// A review as the database has it, in the order of [`REVIEW`].
struct StoredReview {
    seq: i64,
    anomaly: String,
    at: i64,
    reviewer: String,
    decision: String,
    defect_type: Option<String>,
    comment: Option<String>,
}

impl StoredReview {
    fn read(row: &Row<'_>) -> rusqlite::Result<StoredReview> {
        Self::read_at(row, 0)
    }
    fn read_at(row: &Row<'_>, from: usize) -> rusqlite::Result<StoredReview> {
        Ok(StoredReview {
            seq: row.get(from)?,
            anomaly: row.get(from + 1)?,
            at: row.get(from + 2)?,
            reviewer: row.get(from + 3)?,
            decision: row.get(from + 4)?,
            defect_type: row.get(from + 5)?,
            comment: row.get(from + 6)?,
        })
    }
    fn parse(self) -> Result<Review> {
        let cannot = || format!("cannot understand the stored review {}", self.seq);
        Ok(Review {
            seq: self.seq,
            anomaly: Uuid::try_parse(&self.anomaly).failed(cannot)?,
            at: Timestamp::from_nanosecond(self.at.into()).failed(cannot)?,
            reviewer: self.reviewer,
            decision: Decision::from_word(&self.decision),
            defect_type: self.defect_type,
            comment: self.comment,
        })
    }
}

/// The conditions of a filter on `anomalies a`, and their values in the same order.
fn conditions(filter: &Filter) -> Result<(Vec<String>, Vec<Value>)> {
    let mut conditions = vec!["TRUE".to_string()];
    let mut values: Vec<Value> = Vec::new();
    let mut add = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            conditions.push(condition.into());
            values.push(value);
        }
    };
    let text = |text: &Option<String>| text.clone().map(Value::from);
    add("a.line = ?", text(&filter.line));
    add("a.verdict = ?", filter.verdict.map(|v| v.as_str().to_owned().into()));
    match filter.reviewed {
        Some(Reviewed::No) => add("a.review = ?", Some(String::new().into())),
        Some(Reviewed::Yes) => add("a.review > ?", Some(String::new().into())),
        Some(Reviewed::As(decision)) => add("a.review = ?", Some(decision.as_str().to_owned().into())),
        None => {}
    }
    add("a.captured_at >= ?", filter.since.map(nanoseconds).transpose()?.map(Value::from));
    add("a.captured_at < ?", filter.until.map(nanoseconds).transpose()?.map(Value::from));
    add("a.confidence >= ?", filter.confidence_min.map(|c| f64::from(c).into()));
    add("a.confidence <= ?", filter.confidence_max.map(|c| f64::from(c).into()));
    add("a.model = ?", text(&filter.model));
    add("a.lot = ?", text(&filter.lot));
    add("a.serial = ?", text(&filter.serial));
    add("a.defect_type = ?", text(&filter.defect_type));
    Ok((conditions, values))
}

/// Makes a review the one that holds.
fn hold(db: &Connection, id: Uuid, review: Option<&Review>) -> rusqlite::Result<()> {
    let decision = review.and_then(|r| r.decision);
    db.execute(
        "UPDATE anomalies SET review = ?, review_seq = ?, defect_type = ? WHERE id = ?",
        params![
            decision.map_or("", Decision::as_str),
            review.map(|r| r.seq),
            review.and_then(|r| r.defect_type.as_ref()),
            id.to_string()
        ],
    )?;
    Ok(())
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

fn exists(db: &Connection, id: Uuid) -> rusqlite::Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM anomalies WHERE id = ?)", [id.to_string()], |row| row.get(0))
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
#[path = "tests.rs"]
mod tests;
