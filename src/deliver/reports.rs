//! Line reports: stored with the ledger rows they tell of, sent oldest first by a thread of their own ("deliver-report"), so
//! that they never hold up anomalies nor are held up by them.
//!
//! Invariants, each with the test that holds it (tests/ledger.rs):
//! 1. A report and the place up to which its line is reported are committed together: each row is in one report, in order:
//!    `reports_tell_each_row_once`.
//! 2. A report leaves only after a 2xx, or when it cannot be kept; that is counted: `reports_are_bounded`.
//! 3. An endpoint without reports (404, 405, 501) gets its anomalies: `a_plain_sink_gets_no_reports`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::chain::{Hash, nanos, timestamp, whole};
use super::database::{Chains, Database, Reader, Sql};
use super::target::{Answer, Review};
use super::uploader::{delay, later, random};
use super::writer::{Settle, SettleReport};
use super::{Limits, Shared, add};
use crate::event::{LineReport, ReportRow, Verdict};
use crate::hex::hex;

/// Ledger rows in one report; the rest is in the next.
const ROWS_MOST: usize = 5000;
/// Reports that go in one step when there are too many.
const STEP: i64 = 100;

/// How much waits at most; what is beyond goes, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportsKept {
    pub days: u32,
    pub reports: u64,
    pub bytes: u64,
}

impl Default for ReportsKept {
    fn default() -> Self {
        ReportsKept { days: 7, reports: 60_000, bytes: 256 << 20 }
    }
}

/// What came of an attempt.
#[derive(Debug, Clone)]
pub(super) enum ReportOutcome {
    Taken,
    Failed {
        error: String,
        next_try: Timestamp,
        aside: bool,
    },
    /// The endpoint knows no reports.
    Dropped,
}

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// The next number of each line's report in this run.
    seq: HashMap<String, u64>,
    /// Model of the latest report of each line whose calibration was stored.
    calibrated: HashMap<String, String>,
    /// Reports that wait and their bytes.
    pub waiting: u64,
    bytes: u64,
}

impl Book {
    pub fn open(database: &Database) -> Sql<Book> {
        let sql = "SELECT count(*), coalesce(sum(length(report)), 0) FROM reports";
        let (waiting, bytes) = database.connection.query_row(sql, [], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
        })?;
        Ok(Book { waiting, bytes, ..Book::default() })
    }

    /// Numbers, fills and stores a report; returns how many older ones had to go.
    pub fn store(
        &mut self,
        database: &mut Database,
        run: Uuid,
        mut report: LineReport,
        kept: &ReportsKept,
    ) -> Sql<u64> {
        let line = report.line.clone();
        let seq = self.seq.get(&line).copied().unwrap_or(0);
        (report.run, report.seq) = (run, seq);
        let model = report.model.sha256.clone();
        if self.calibrated.get(&line) == Some(&model) {
            report.calibration = None;
        }
        let mut chains = Chains::begin(&mut database.connection, &database.tails)?;
        let from = chains.tail(&line).reported;
        let told = rows_from(&chains.transaction, &line, from)?;
        report.rows = told.rows;
        report.chain = told.hash.map(|hash| hex(&hash));
        chains.tail(&line).reported = told.next;
        let json = serde_json::to_string(&report).unwrap_or_default();
        chains
            .transaction
            .prepare_cached("INSERT INTO reports (line, run, seq, report, stored_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![line, run.to_string(), whole(seq), json, nanos(report.at)])?;
        let (mut waiting, mut bytes) = (self.waiting + 1, self.bytes + json.len() as u64);
        let (gone, gone_bytes) = shed(&chains.transaction, kept, waiting, bytes)?;
        (waiting, bytes) = (waiting.saturating_sub(gone), bytes.saturating_sub(gone_bytes));
        database.tails = chains.commit()?;
        (self.waiting, self.bytes) = (waiting, bytes);
        self.seq.insert(line.clone(), seq + 1);
        match gone {
            0 if report.calibration.is_some() => drop(self.calibrated.insert(line, model)),
            0 => {}
            // it may have been in one of them
            _ => self.calibrated.clear(),
        }
        Ok(gone)
    }

    /// Records what came of an attempt.
    pub fn settle(&mut self, database: &mut Database, id: i64, outcome: &ReportOutcome) -> Sql<()> {
        let connection = &database.connection;
        match outcome {
            ReportOutcome::Failed { error, next_try, aside } => {
                let sql = "UPDATE reports SET attempts = attempts + 1, last_error = ?2, next_try = ?3, state = ?4 WHERE id = ?1";
                let state = if *aside { "aside" } else { "waiting" };
                connection.prepare_cached(sql)?.execute(params![id, error, nanos(*next_try), state])?;
            }
            ReportOutcome::Taken | ReportOutcome::Dropped => {
                let sql = "DELETE FROM reports WHERE id = ?1 RETURNING length(report)";
                let bytes: Option<i64> =
                    connection.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?;
                if let Some(bytes) = bytes {
                    self.waiting = self.waiting.saturating_sub(1);
                    self.bytes = self.bytes.saturating_sub(bytes.cast_unsigned());
                }
            }
        }
        if matches!(outcome, ReportOutcome::Dropped) {
            self.calibrated.clear();
        }
        Ok(())
    }
}

struct Told {
    rows: Vec<ReportRow>,
    /// Of the last of them.
    hash: Option<Hash>,
    /// Where the next report begins.
    next: i64,
}

fn rows_from(connection: &Connection, line: &str, from: i64) -> Sql<Told> {
    let sql = "SELECT chain, part, captured_at, score, verdict, hash FROM ledger
               WHERE line = ?1 AND chain >= ?2 ORDER BY chain LIMIT ?3";
    let mut read = connection.prepare_cached(sql)?;
    let mut rows = read.query(params![line, from, ROWS_MOST as i64])?;
    let mut told = Told { rows: Vec::new(), hash: None, next: from };
    while let Some(row) = rows.next()? {
        told.next = row.get::<_, i64>(0)? + 1;
        // a damaged value: `ledger verify` names the row, and the report goes on after it
        let verdict = match row.get_ref(4)?.as_str().unwrap_or_default() {
            "pass" => Verdict::Pass,
            "reject" => Verdict::Reject,
            "unsure" => Verdict::Unsure,
            "missed" => Verdict::Missed,
            // no part
            _ => continue,
        };
        // JSON has no word for what is not finite
        let score = row.get::<_, Option<f64>>(3).unwrap_or(None).map_or(f32::MAX, |score| score as f32);
        let score = if score.is_finite() { score } else { f32::MAX.copysign(score) };
        let (Ok(part), Ok(at), Ok(hash)) = (row.get::<_, i64>(1), row.get(2), row.get(5)) else { continue };
        told.rows.push(ReportRow { part: part.cast_unsigned(), at: timestamp(at), score, verdict });
        told.hash = Some(hash);
    }
    Ok(told)
}

/// Removes what is too old or too much: reports and their bytes.
fn shed(connection: &Connection, kept: &ReportsKept, waiting: u64, bytes: u64) -> Sql<(u64, u64)> {
    let cut = Timestamp::now().checked_sub(SignedDuration::from_hours(24 * i64::from(kept.days)));
    let cut = cut.map_or(i64::MIN, nanos);
    let mut read =
        connection.prepare_cached("SELECT id, stored_at, length(report) FROM reports ORDER BY id LIMIT ?1")?;
    let mut rows = read.query([STEP])?;
    let (mut gone, mut gone_bytes, mut last) = (0, 0, None);
    while let Some(row) = rows.next()? {
        let (old, size) = (row.get::<_, i64>(1)? < cut, row.get::<_, i64>(2)?.cast_unsigned());
        let many = waiting - gone > kept.reports || bytes.saturating_sub(gone_bytes) > kept.bytes;
        if !(old || many) || gone + 1 >= waiting {
            break;
        }
        (gone, gone_bytes, last) = (gone + 1, gone_bytes + size, Some(row.get::<_, i64>(0)?));
    }
    if let Some(last) = last {
        connection.prepare_cached("DELETE FROM reports WHERE id <= ?1")?.execute([last])?;
    }
    Ok((gone, gone_bytes))
}

/// A report as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub id: i64,
    pub line: String,
    /// `<run>-<line>-<seq>`.
    pub key: String,
    pub report: String,
    pub aside: bool,
}

impl Reader {
    /// The oldest report that is not set aside or, when there is none, one set aside that is due.
    pub fn report(&self, now: Timestamp, most: Duration) -> Sql<Option<Stored>> {
        let read = |condition: &str, from: i64, far: i64| {
            let sql = format!(
                "SELECT id, line, run || '-' || line || '-' || seq, report, state FROM reports WHERE {condition}
                 ORDER BY id LIMIT 1"
            );
            let stored = |row: &rusqlite::Row<'_>| {
                let aside = row.get_ref(4)?.as_str()? == "aside";
                Ok(Stored { id: row.get(0)?, line: row.get(1)?, key: row.get(2)?, report: row.get(3)?, aside })
            };
            self.connection.prepare_cached(&sql)?.query_row([from, far], stored).optional()
        };
        let now = nanos(now);
        let far = now.saturating_add(i64::try_from(most.as_nanos()).unwrap_or(i64::MAX));
        match read("state = 'waiting' AND ?1 <= ?2", 0, 0)? {
            Some(stored) => Ok(Some(stored)),
            // further off than it can be: the clock was set back
            None => read("state = 'aside' AND (next_try <= ?1 OR next_try > ?2)", now, far),
        }
    }
}

/// The thread "deliver-report".
pub(super) struct Reporter {
    pub client: Review,
    pub reader: Reader,
    pub outcomes: Sender<Settle>,
    pub wake: Receiver<()>,
    pub shared: Arc<Shared>,
    pub limits: Limits,
    /// Failures in a row.
    pub failures: u32,
    /// It was said that the endpoint knows no reports.
    pub said: bool,
}

impl Reporter {
    pub fn run(mut self, runtime: &Runtime) {
        let most = self.limits.retry_slowest.max(self.limits.retry_after_most);
        while !self.shared.stopping() {
            match self.reader.report(Timestamp::now(), most) {
                Ok(Some(stored)) => match self.attempt(runtime, &stored) {
                    None => return,
                    Some(pause) => self.wait(pause),
                },
                Ok(None) => {
                    let _ = self.wake.recv_timeout(self.limits.retry_slowest);
                }
                Err(e) => {
                    warn!(error = %e, "cannot read the line reports");
                    self.wait(self.limits.retry_slowest);
                }
            }
        }
    }

    /// New reports do not end a pause; a stop does.
    fn wait(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.shared.stopping() {
                return;
            }
            let _ = self.wake.recv_timeout(left);
        }
    }

    /// Sends once and has the outcome committed; the pause before the next one, none when it is time to stop.
    fn attempt(&mut self, runtime: &Runtime, stored: &Stored) -> Option<Duration> {
        let answer = runtime.block_on(self.client.send_report(&stored.line, &stored.key, &stored.report));
        debug!(key = stored.key, ?answer, "report sent");
        let mut pause = Duration::ZERO;
        let (outcome, bytes) = match answer {
            Answer::Taken { bytes } => {
                (self.failures, self.said) = (0, false);
                (ReportOutcome::Taken, bytes)
            }
            Answer::Unknown { why } => {
                if !self.said {
                    info!(endpoint = self.client.shown(), why, "the endpoint takes no line reports; they are dropped");
                }
                (self.failures, self.said) = (0, true);
                (ReportOutcome::Dropped, 0)
            }
            Answer::Never { why } => {
                self.failures = self.failures.saturating_add(1);
                pause = self.pause();
                (ReportOutcome::Failed { error: why, next_try: later(self.limits.retry_slowest), aside: true }, 0)
            }
            Answer::Refused { why, after } => {
                self.failures = self.failures.saturating_add(1);
                pause = self.pause();
                let wait = after.unwrap_or_default().max(self.limits.retry_slowest);
                (ReportOutcome::Failed { error: why, next_try: later(wait), aside: true }, 0)
            }
            Answer::Failed { why, after, .. } => {
                self.failures = self.failures.saturating_add(1);
                pause = self.pause().max(after.unwrap_or_default());
                let wait = if stored.aside { pause.max(self.limits.retry_slowest) } else { pause };
                (ReportOutcome::Failed { error: why, next_try: later(wait), aside: stored.aside }, 0)
            }
        };
        loop {
            let (done, answer) = oneshot::channel();
            let settle = SettleReport { id: stored.id, outcome: outcome.clone(), bytes, done };
            self.outcomes.send(Settle::Report(settle)).ok()?;
            match answer.blocking_recv() {
                Ok(true) => return Some(pause),
                Ok(false) if !self.shared.stopping() => self.wait(self.limits.write_again),
                _ => return None,
            }
        }
    }

    fn pause(&self) -> Duration {
        delay(&self.limits, self.failures, random())
    }
}

/// Counts what came of an attempt.
pub(super) fn count(shared: &Shared, book: &Book, outcome: &ReportOutcome, bytes: u64) {
    shared.reports_waiting.store(book.waiting, Relaxed);
    match outcome {
        ReportOutcome::Taken => {
            add(&shared.reports_delivered, 1);
            add(&shared.report_bytes, bytes);
        }
        ReportOutcome::Dropped => add(&shared.reports_dropped, 1),
        ReportOutcome::Failed { .. } => {}
    }
}
