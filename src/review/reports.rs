//! Where line reports are kept: the latest of each line, its parts (without pictures), and the scores that its models were
//! calibrated with.
//!
//! Thread: every call blocks; the connection is that of the store, which holds its lock meanwhile.
//!
//! Invariants:
//! 1. A report is taken once, by line, run and number, in whatever order reports come; a repeat changes nothing. Tests:
//!    `a_report_counts_once_in_any_order`, and over HTTP `first_201_then_200` in tests/review_reports.rs.
//! 2. The report that is shown is never older than one that was shown before, but for a clock that was wrong. Test:
//!    `the_newest_report_is_shown`.
//! 3. No more than [`Keep::parts`] parts, nor older ones than [`Keep::age`], and each report deletes a bounded number. Test:
//!    `old_parts_go_in_steps`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::store::sqlite::origin;
use super::store::{Inserted, nanoseconds};
use crate::error::{Context, Error, Kind, Result};
use crate::event::{LineReport, Verdict};

/// The tables, as one step of the store's migrations.
pub(in crate::review) const TABLES: &str = "
    CREATE TABLE lines (           -- the newest report of each line
        line        TEXT PRIMARY KEY NOT NULL,
        run         TEXT NOT NULL,
        seq         INTEGER NOT NULL,
        at          INTEGER NOT NULL, -- nanoseconds since 1970, UTC
        received_at INTEGER NOT NULL,
        report      TEXT NOT NULL     -- without rows and calibration
    ) STRICT;
    CREATE TABLE runs (
        id    INTEGER PRIMARY KEY,
        line  TEXT NOT NULL,
        run   TEXT NOT NULL,
        parts INTEGER NOT NULL,       -- rows in parts
        at    INTEGER NOT NULL,       -- newest report
        UNIQUE (line, run)
    ) STRICT;
    CREATE TABLE reports (         -- numbers that came, as ranges without gaps
        run   INTEGER NOT NULL REFERENCES runs (id),
        first INTEGER NOT NULL,
        last  INTEGER NOT NULL,
        PRIMARY KEY (run, first)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE parts (
        run     INTEGER NOT NULL REFERENCES runs (id),
        part    INTEGER NOT NULL,
        at      INTEGER NOT NULL,
        score   REAL NOT NULL,
        verdict TEXT NOT NULL,
        PRIMARY KEY (run, part)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX parts_by_time ON parts (at);
    CREATE TABLE minutes (         -- parts of each line and minute, so that rates cost nothing
        line   TEXT NOT NULL,
        minute INTEGER NOT NULL,   -- minutes since 1970, UTC
        pass   INTEGER NOT NULL,
        reject INTEGER NOT NULL,
        unsure INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        PRIMARY KEY (line, minute)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX minutes_by_time ON minutes (minute);
    CREATE TABLE calibrations (    -- sorted scores of held-out good parts
        line      TEXT NOT NULL,
        model     TEXT NOT NULL,   -- SHA-256 of the package
        threshold REAL NOT NULL,
        scores    TEXT NOT NULL,   -- JSON
        PRIMARY KEY (line, model)
    ) STRICT, WITHOUT ROWID;
";

/// Lines that one server takes reports of: a name that somebody makes up with each report must not fill the disk.
pub const MOST_LINES: i64 = 1000;
/// A report that claims to be made this long after it came has a wrong clock.
const WRONG_CLOCK_NS: i64 = 60_000_000_000;
const MINUTE_NS: i64 = 60_000_000_000;
/// In minutes.
const HOUR: i64 = 60;
/// Minutes over which the recent rates are taken.
pub const RECENT_MIN: i64 = 60;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Parts of all lines together.
    pub parts: i64,
    /// Nanoseconds.
    pub age: i64,
    /// Rows that one report may delete, and as many again as it brings.
    pub step: i64,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { parts: 10_000_000, age: 400 * 86_400 * 1_000_000_000, step: 1000 }
    }
}

/// A line as it was last heard of.
#[derive(Debug, Clone, PartialEq)]
pub struct LineNow {
    /// Without rows and calibration.
    pub report: LineReport,
    pub received_at: Timestamp,
    /// Parts of the last [`RECENT_MIN`] minutes: pass, reject, unsure, missed.
    pub recent: [u64; 4],
}

/// Keeps a report; when it returns, the report is on disk.
pub(in crate::review) fn insert(
    db: &mut Connection,
    report: &LineReport,
    now: Timestamp,
    keep: Keep,
) -> Result<Inserted> {
    let cannot = || format!("cannot record report {} of line \"{}\"", report.seq, report.line);
    let (at, now) = (nanoseconds(report.at)?, nanoseconds(now)?);
    let seq = i64::try_from(report.seq).usage(|| format!("report number {} is out of range", report.seq))?;
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
    let run = run_of(&tx, report, at)
        .map_err(|e| if e.kind() == Kind::Usage { e } else { Error::failed(cannot()).because(e) })?;
    if !note(&tx, run, seq).failed(cannot)? {
        return Ok(Inserted::Existing);
    }
    show(&tx, report, seq, at, now).failed(cannot)?;
    let model = format!("{}@{}", report.model.name, report.model.version);
    let origin = origin(&tx, &report.line, &model, report.threshold, now).failed(cannot)?;
    let added = parts(&tx, run, origin, &model, report).failed(cannot)?;
    tx.execute("UPDATE runs SET parts = parts + ?, at = MAX(at, ?) WHERE id = ?", params![added, at, run])
        .failed(cannot)?;
    if let Some(scores) = &report.calibration {
        let scores = serde_json::to_string(scores).failed(cannot)?;
        tx.execute(
            "INSERT OR IGNORE INTO calibrations (line, model, threshold, scores) VALUES (?, ?, ?, ?)",
            params![report.line, report.model.sha256, f64::from(report.threshold), scores],
        )
        .failed(cannot)?;
    }
    prune(&tx, now, added, keep).failed(cannot)?;
    tx.commit().failed(cannot)?;
    Ok(Inserted::New)
}

/// Number of the run, which is made when it is new.
fn run_of(db: &Connection, report: &LineReport, at: i64) -> Result<i64> {
    let cannot = || "cannot read the runs";
    let name = report.run.to_string();
    let known = db
        .query_row("SELECT id FROM runs WHERE line = ? AND run = ?", params![report.line, name], |r| r.get(0))
        .optional()
        .failed(cannot)?;
    if let Some(id) = known {
        return Ok(id);
    }
    let (is_new, lines): (bool, i64) = db
        .query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM lines WHERE line = ?), (SELECT COUNT(*) FROM lines)",
            [&report.line],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .failed(cannot)?;
    if is_new && lines >= MOST_LINES {
        return Err(Error::usage(format!("this server already has reports of {lines} lines")));
    }
    db.execute("INSERT INTO runs (line, run, parts, at) VALUES (?, ?, 0, ?)", params![report.line, name, at])
        .failed(cannot)?;
    Ok(db.last_insert_rowid())
}

/// Notes a number; false when it was there.
fn note(db: &Connection, run: i64, seq: i64) -> rusqlite::Result<bool> {
    let range =
        |sql: &str| db.query_row(sql, [run, seq], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))).optional();
    let before = range("SELECT first, last FROM reports WHERE run = ? AND first <= ? ORDER BY first DESC LIMIT 1")?;
    if before.is_some_and(|(_, last)| last >= seq) {
        return Ok(false);
    }
    let after = range("SELECT first, last FROM reports WHERE run = ? AND first > ? ORDER BY first LIMIT 1")?;
    let first = before.filter(|b| b.1 == seq - 1).map_or(seq, |b| b.0);
    let next = after.filter(|a| a.0 == seq + 1);
    if let Some((gone, _)) = next {
        db.execute("DELETE FROM reports WHERE run = ? AND first = ?", [run, gone])?;
    }
    db.execute(
        "INSERT OR REPLACE INTO reports (run, first, last) VALUES (?, ?, ?)",
        [run, first, next.map_or(seq, |a| a.1)],
    )?;
    Ok(true)
}

/// Makes it the line's report, unless a newer one is.
fn show(db: &Connection, report: &LineReport, seq: i64, at: i64, now: i64) -> rusqlite::Result<()> {
    let run = report.run.to_string();
    let shown = db
        .query_row("SELECT run, seq, at, received_at FROM lines WHERE line = ?", [&report.line], |r| {
            Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?, r.get::<_, i64>(3)?))
        })
        .optional()?;
    let newer = shown.is_none_or(|(shown_run, shown_seq, shown_at, received)| {
        if shown_run == run { seq > shown_seq } else { at >= shown_at || shown_at > received + WRONG_CLOCK_NS }
    });
    if !newer {
        return Ok(());
    }
    let slim = LineReport { rows: Vec::new(), calibration: None, ..report.clone() };
    let json = serde_json::to_string(&slim).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    db.execute(
        "INSERT OR REPLACE INTO lines (line, run, seq, at, received_at, report) VALUES (?, ?, ?, ?, ?, ?)",
        params![report.line, run, seq, at, now, json],
    )?;
    Ok(())
}

/// Keeps the parts that are new; returns how many were.
fn parts(db: &Connection, run: i64, origin: i64, model: &str, report: &LineReport) -> rusqlite::Result<i64> {
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO parts (run, part, at, score, verdict, origin) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    let mut minutes: BTreeMap<i64, [i64; 4]> = BTreeMap::new();
    let mut added = 0;
    for row in &report.rows {
        let (Ok(at), Ok(part)) = (nanoseconds(row.at), i64::try_from(row.part)) else {
            continue; // the API has refused such rows
        };
        let new = insert.execute(params![run, part, at, f64::from(row.score), row.verdict.as_str(), origin])?;
        if new == 1 {
            added += 1;
            minutes.entry(at.div_euclid(MINUTE_NS)).or_default()[place(row.verdict)] += 1;
        }
    }
    let mut hours: BTreeMap<i64, [i64; 4]> = BTreeMap::new();
    for (minute, counts) in &minutes {
        let hour = hours.entry(minute.div_euclid(HOUR)).or_default();
        hour.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
    }
    for (table, time, sums) in [("minutes", "minute", minutes), ("hours", "hour", hours)] {
        let mut count = db.prepare_cached(&format!(
            "INSERT INTO {table} (line, {time}, model, pass, reject, unsure, missed) VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET pass = pass + excluded.pass, reject = reject + excluded.reject,
             unsure = unsure + excluded.unsure, missed = missed + excluded.missed"
        ))?;
        for (at, [pass, reject, unsure, missed]) in sums {
            count.execute(params![report.line, at, model, pass, reject, unsure, missed])?;
        }
    }
    Ok(added)
}

fn place(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Reject => 1,
        Verdict::Unsure => 2,
        Verdict::Missed => 3,
    }
}

/// Deletes a step of what is too much or too old, oldest first.
fn prune(db: &Connection, now: i64, added: i64, keep: Keep) -> rusqlite::Result<()> {
    let step = keep.step + added;
    let oldest = now.saturating_sub(keep.age);
    let total: i64 = db.query_row("SELECT COALESCE(SUM(parts), 0) FROM runs", [], |r| r.get(0))?;
    let over = (total - keep.parts).clamp(0, step);
    let mut gone: BTreeMap<i64, i64> = BTreeMap::new();
    {
        // the oldest ones are counted out; beyond them only what is too old
        let mut delete = db.prepare_cached(
            "DELETE FROM parts WHERE (run, part) IN (
                SELECT run, part FROM (SELECT run, part, at, ROW_NUMBER() OVER (ORDER BY at) AS n FROM
                    (SELECT run, part, at FROM parts ORDER BY at LIMIT ?1))
                WHERE n <= ?2 OR at < ?3)
             RETURNING run",
        )?;
        let mut runs = delete.query([step, over, oldest])?;
        while let Some(row) = runs.next()? {
            *gone.entry(row.get(0)?).or_default() += 1;
        }
    }
    for (run, n) in gone {
        db.execute("UPDATE runs SET parts = parts - ? WHERE id = ?", [n, run])?;
    }
    // an hour stays as long as any of its minutes
    let minute = oldest.div_euclid(MINUTE_NS);
    for (table, time, before) in [("minutes", "minute", minute), ("hours", "hour", minute.div_euclid(HOUR))] {
        db.execute(
            &format!(
                "DELETE FROM {table} WHERE (line, {time}) IN
                 (SELECT line, {time} FROM {table} WHERE {time} < ? ORDER BY {time} LIMIT ?)"
            ),
            [before, step],
        )?;
    }
    // a run without parts is needed only while its reports may still be repeated
    let old: Option<i64> =
        db.query_row("SELECT id FROM runs WHERE parts = 0 AND at < ? LIMIT 1", [oldest], |r| r.get(0)).optional()?;
    if let Some(run) = old {
        db.execute("DELETE FROM reports WHERE run = ?", [run])?;
        db.execute("DELETE FROM runs WHERE id = ?", [run])?;
    }
    Ok(())
}

/// Every line that has ever reported, by name.
pub(in crate::review) fn lines(db: &Connection, now: Timestamp) -> Result<Vec<LineNow>> {
    let cannot = || "cannot list the lines";
    let since = nanoseconds(now)?.div_euclid(MINUTE_NS) - RECENT_MIN;
    let mut statement = db
        .prepare_cached(
            "SELECT l.report, l.received_at, COALESCE(SUM(m.pass), 0), COALESCE(SUM(m.reject), 0),
                COALESCE(SUM(m.unsure), 0), COALESCE(SUM(m.missed), 0)
             FROM lines l LEFT JOIN minutes m ON m.line = l.line AND m.minute > ?
             GROUP BY l.line ORDER BY l.line",
        )
        .failed(cannot)?;
    let mut rows = statement.query([since]).failed(cannot)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().failed(cannot)? {
        let (report, received_at): (String, i64) = (row.get(0).failed(cannot)?, row.get(1).failed(cannot)?);
        let mut recent = [0; 4];
        for (i, n) in recent.iter_mut().enumerate() {
            *n = row.get::<_, i64>(2 + i).failed(cannot)?.unsigned_abs();
        }
        found.push(LineNow {
            report: serde_json::from_str(&report).failed(cannot)?,
            received_at: Timestamp::from_nanosecond(received_at.into()).failed(cannot)?,
            recent,
        });
    }
    Ok(found)
}

/// Scores that a model was calibrated with on a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// At the time of its first report.
    pub threshold: f32,
    /// Of held-out good parts, sorted.
    pub scores: Vec<f32>,
}

/// What a line has told of a model, by the checksum of its package.
pub(in crate::review) fn calibration(db: &Connection, line: &str, sha256: &str) -> Result<Option<Calibration>> {
    let cannot = || format!("cannot read the calibration of line \"{line}\"");
    let found = db
        .prepare_cached("SELECT threshold, scores FROM calibrations WHERE line = ? AND model = ?")
        .failed(cannot)?
        .query_row([line, sha256], |r| Ok((r.get::<_, f64>(0)?, r.get::<_, String>(1)?)))
        .optional()
        .failed(cannot)?;
    let Some((threshold, scores)) = found else { return Ok(None) };
    let mut scores: Vec<f32> = serde_json::from_str(&scores).failed(cannot)?;
    scores.sort_by(f32::total_cmp); // whatever the sender did
    Ok(Some(Calibration { threshold: threshold as f32, scores }))
}

/// Parts of each line by verdict (pass, reject, unsure, missed) in `steps` steps of `minutes`, the last one ending now.
pub(in crate::review) fn history(
    db: &Connection,
    now: Timestamp,
    minutes: i64,
    steps: usize,
) -> Result<BTreeMap<String, Vec<[u64; 4]>>> {
    let cannot = || "cannot read the history of the lines";
    let minutes = minutes.max(1);
    let span = minutes * i64::try_from(steps).unwrap_or(i64::MAX / MINUTE_NS);
    let from = nanoseconds(now)?.div_euclid(MINUTE_NS) + 1 - span;
    let mut statement = db
        .prepare_cached(
            "SELECT line, (minute - ?1) / ?2, SUM(pass), SUM(reject), SUM(unsure), SUM(missed) FROM minutes
             WHERE minute >= ?1 AND minute < ?1 + ?3 GROUP BY 1, 2",
        )
        .failed(cannot)?;
    let mut rows = statement.query([from, minutes, span]).failed(cannot)?;
    let mut found: BTreeMap<String, Vec<[u64; 4]>> = BTreeMap::new();
    while let Some(row) = rows.next().failed(cannot)? {
        let (line, step): (String, i64) = (row.get(0).failed(cannot)?, row.get(1).failed(cannot)?);
        let series = found.entry(line).or_insert_with(|| vec![[0; 4]; steps]);
        let Some(counts) = usize::try_from(step).ok().and_then(|step| series.get_mut(step)) else { continue };
        for (i, n) in counts.iter_mut().enumerate() {
            *n = row.get::<_, i64>(2 + i).failed(cannot)?.unsigned_abs();
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn database() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        crate::review::store::schema::migrate(&db, std::path::Path::new(":memory:")).unwrap();
        db
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(2_000_000_000 + seconds).unwrap()
    }

    fn report(run: u128, seq: u64, at: i64, parts: std::ops::Range<u64>) -> LineReport {
        let rows: Vec<_> = parts
            .map(|part| serde_json::json!({"part": part, "at": time(at), "score": 0.5, "verdict": "pass"}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "schema": 1, "site": "s", "line": "a", "run": Uuid::from_u128(run), "seq": seq, "at": time(at),
            "state": "live", "last_frame_age_s": 0.1, "fps": 30.0,
            "counters": {"frames": seq, "parts": 0, "passed": 0, "rejected": 0, "unsure": 0, "missed": 0, "late": 0,
                "dropped": {}, "reconnects": 0},
            "spool": {"waiting": 0, "set_aside": 0}, "health": {}, "drift": {},
            "model": {"name": "m", "version": "1", "sha256": "ab"}, "threshold": 1.0, "rows": rows
        }))
        .unwrap()
    }

    fn count(db: &Connection, sql: &str) -> i64 {
        db.query_row(sql, [], |r| r.get(0)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_report_counts_once_in_any_order(order in prop::collection::vec(0u64..12, 1..40)) {
            let mut db = database();
            let mut seen = std::collections::BTreeSet::new();
            for seq in order {
                let wanted = if seen.insert(seq) { Inserted::New } else { Inserted::Existing };
                // each report carries two parts of its own and one of the report before
                let r = report(1, seq, seq as i64, 2 * seq..2 * seq + 3);
                prop_assert_eq!(insert(&mut db, &r, time(100), Keep::default()).unwrap(), wanted);
            }
            let ranges = seen.iter().filter(|s| !seen.contains(&(*s + 1))).count() as i64;
            prop_assert_eq!(count(&db, "SELECT COUNT(*) FROM reports"), ranges);
            let parts: std::collections::BTreeSet<u64> = seen.iter().flat_map(|s| 2 * s..2 * s + 3).collect();
            prop_assert_eq!(count(&db, "SELECT COUNT(*) FROM parts"), parts.len() as i64);
            prop_assert_eq!(count(&db, "SELECT SUM(parts) FROM runs"), parts.len() as i64);
            for table in ["minutes", "hours"] {
                prop_assert_eq!(count(&db, &format!("SELECT SUM(pass) FROM {table}")), parts.len() as i64);
            }
            let shown = &lines(&db, time(100)).unwrap()[0];
            prop_assert_eq!(Some(&shown.report.seq), seen.last());
            prop_assert_eq!(shown.recent, [parts.len() as u64, 0, 0, 0]);
        }
    }

    #[test]
    fn the_newest_report_is_shown() {
        let mut db = database();
        let mut shown = |run, seq, at, now| {
            insert(&mut db, &report(run, seq, at, 0..0), time(now), Keep::default()).unwrap();
            let line = lines(&db, time(now)).unwrap().remove(0);
            (line.report.run.as_u128(), line.report.seq)
        };
        assert_eq!(shown(1, 5, 50, 50), (1, 5));
        assert_eq!(shown(1, 4, 40, 51), (1, 5), "an older one of the run");
        assert_eq!(shown(2, 0, 60, 60), (2, 0), "a new run");
        assert_eq!(shown(1, 6, 55, 61), (2, 0), "the old run's last one comes late");
        assert_eq!(shown(2, 1, 10_000, 70), (2, 1), "a clock an hour ahead");
        assert_eq!(shown(3, 0, 80, 80), (3, 0), "set right");
    }

    #[test]
    fn the_history_ends_now() {
        let mut db = database();
        insert(&mut db, &report(1, 0, 0, 0..3), time(0), Keep::default()).unwrap();
        insert(&mut db, &report(1, 1, 600, 3..5), time(600), Keep::default()).unwrap();
        // steps of five minutes: the first report is in the first one, ten minutes later comes the last
        let series = &history(&db, time(600), 5, 3).unwrap()["a"];
        assert_eq!(*series, [[3, 0, 0, 0], [0; 4], [2, 0, 0, 0]]);
        assert!(history(&db, time(7200), 5, 3).unwrap().is_empty());
    }

    #[test]
    fn a_calibration_is_kept_for_line_and_model() {
        let mut db = database();
        let with = LineReport { calibration: Some(vec![0.5, 0.25]), ..report(1, 0, 0, 0..0) };
        insert(&mut db, &with, time(0), Keep::default()).unwrap();
        let found = calibration(&db, "a", "ab").unwrap();
        assert_eq!(found, Some(Calibration { threshold: 1.0, scores: vec![0.25, 0.5] }));
        assert_eq!(calibration(&db, "a", "cd").unwrap(), None);
        assert_eq!(calibration(&db, "b", "ab").unwrap(), None);
    }

    #[test]
    fn old_parts_go_in_steps() {
        let mut db = database();
        let keep = Keep { parts: 50, age: 1000 * 1_000_000_000, step: 10 };
        let mut parts = Vec::new();
        for seq in 0..20 {
            insert(&mut db, &report(1, seq, seq as i64, 10 * seq..10 * seq + 10), time(seq as i64), keep).unwrap();
            parts.push(count(&db, "SELECT COUNT(*) FROM parts"));
        }
        assert_eq!(parts[..7], [10, 20, 30, 40, 50, 50, 50]);
        assert_eq!(count(&db, "SELECT MIN(part) FROM parts"), 150, "the oldest went");
        assert_eq!(count(&db, "SELECT SUM(parts) FROM runs"), 50);
        // a thousand seconds later all of them are too old: ten go with each report
        for (seq, left) in [(20, 40), (21, 30), (22, 20), (23, 10), (24, 0)] {
            insert(&mut db, &report(2, seq, 2000, 0..0), time(2000), keep).unwrap();
            assert_eq!(count(&db, "SELECT COUNT(*) FROM parts"), left);
        }
        insert(&mut db, &report(2, 25, 2000, 0..0), time(2000), keep).unwrap();
        assert_eq!(count(&db, "SELECT COUNT(*) FROM runs"), 1, "a run that is over is forgotten");
        assert_eq!(count(&db, "SELECT COUNT(*) FROM minutes"), 0);
    }

    #[test]
    fn too_many_lines_are_refused() {
        let mut db = database();
        let named = |n: i64| LineReport { line: format!("line {n}"), ..report(1, 0, 0, 0..0) };
        for n in 0..MOST_LINES {
            insert(&mut db, &named(n), time(0), Keep::default()).unwrap();
        }
        let error = insert(&mut db, &named(MOST_LINES), time(0), Keep::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(error.to_string(), "this server already has reports of 1000 lines");
        insert(&mut db, &LineReport { seq: 1, ..named(7) }, time(0), Keep::default()).unwrap();
    }
}
