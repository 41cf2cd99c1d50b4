//! What is kept how long: anomalies are removed by age, by decision, and when all together take too much.
//!
//! Threads: [`step`] blocks and may run on any; [`Keeper`] is a thread `review-keep` that takes steps while there is something
//! to remove and looks again every [`EVERY`].
//!
//! Invariants:
//! 1. A row is gone before its files are: rows and a note of what is to be removed commit together, then the files are moved
//!    into `staging/` under the writer's lock, so that the same anomaly can be stored again at once. What a crash leaves is
//!    finished at the next start. Tests: `what_is_removed_can_come_again`, `a_crash_between_rows_and_files_is_finished`.
//! 2. A step removes no more than [`STEP`] anomalies. Test: `retention_removes_what_the_rule_says`.
//! 3. Anomalies that nobody has reviewed go for size only after all reviewed ones. Test: `size_takes_the_least_worth_first`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::sqlite::{SqliteStore, changed, sync_dir};
use super::{Decision, Store, nanoseconds};
use crate::error::{Context, Error, Result};

/// Anomalies that one step removes, at most.
pub const STEP: usize = 200;
/// How often the rule is looked at again.
pub const EVERY: Duration = Duration::from_secs(60);
/// Between two steps, so that uploads and pages have their turn.
const PAUSE: Duration = Duration::from_millis(50);
const DAY_NS: i64 = 86_400_000_000_000;

/// How long anomalies are kept; what is not given is kept for ever. Days count from when the server received them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Remove anomalies that were reviewed as defects after so many days.
    #[arg(long = "keep-defects", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub defect_days: Option<u32>,
    /// Remove false alarms after so many days.
    #[arg(long = "keep-false-alarms", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub false_alarm_days: Option<u32>,
    /// Remove anomalies that were reviewed as unclear after so many days.
    #[arg(long = "keep-unclear", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub unclear_days: Option<u32>,
    /// Remove anomalies that nobody has reviewed after so many days.
    #[arg(long = "keep-unreviewed", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub unreviewed_days: Option<u32>,
    /// Remove the oldest when events and pictures take more than so many megabytes: first false alarms, then unclear ones,
    /// then defects, and only then what nobody has reviewed.
    #[arg(long = "keep-mb", value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_mb: Option<u64>,
}

/// In which order things go when they take too much.
const LEAST_WORTH_FIRST: [Option<Decision>; 4] =
    [Some(Decision::FalseAlarm), Some(Decision::Unclear), Some(Decision::Defect), None];

impl Retention {
    /// Whether everything is kept.
    pub fn keeps_all(&self) -> bool {
        *self == Retention::default()
    }

    fn days(&self, review: Option<Decision>) -> Option<u32> {
        match review {
            Some(Decision::Defect) => self.defect_days,
            Some(Decision::FalseAlarm) => self.false_alarm_days,
            Some(Decision::Unclear) => self.unclear_days,
            None => self.unreviewed_days,
        }
    }
}

/// What was removed, for the log and the audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Anomalies by decision: `defect`, `false-alarm`, `unclear`, `unreviewed`.
    pub anomalies: BTreeMap<&'static str, u64>,
    /// Of their events and pictures.
    pub bytes: u64,
    /// There is more to remove.
    pub more: bool,
}

impl Removed {
    /// In words.
    pub fn said(&self) -> String {
        let by_decision: Vec<String> = self.anomalies.iter().map(|(decision, n)| format!("{n} {decision}")).collect();
        format!("{}; {:.1} MB", by_decision.join(", "), self.bytes as f64 / 1e6)
    }

    /// How many in all.
    pub fn count(&self) -> u64 {
        self.anomalies.values().sum()
    }
}

struct Gone {
    n: i64,
    id: String,
    tally: i64,
    bytes: i64,
    review: Option<Decision>,
}

/// Removes at most [`STEP`] anomalies that need not be kept.
pub(super) fn step(store: &SqliteStore, rule: &Retention, now: Timestamp) -> Result<Removed> {
    if rule.keeps_all() {
        return Ok(Removed::default());
    }
    let cannot = || "cannot remove old anomalies";
    let now = nanoseconds(now)?;
    let moved;
    let mut removed = Removed::default();
    {
        let mut db = store.writer();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        let gone = choose(&tx, rule, now).failed(cannot)?;
        if gone.is_empty() {
            return Ok(removed);
        }
        for item in &gone {
            delete(&tx, item).failed(cannot)?;
            *removed.anomalies.entry(item.review.map_or("unreviewed", Decision::as_str)).or_default() += 1;
            removed.bytes += item.bytes.unsigned_abs();
        }
        tx.execute("DELETE FROM tallies WHERE count = 0", []).failed(cannot)?;
        changed(&tx).failed(cannot)?;
        tx.commit().failed(cannot)?;
        removed.more = gone.len() == STEP;
        moved = clear(store, &db)?;
    }
    discard(moved)?;
    Ok(removed)
}

/// The oldest of what need not be kept.
fn choose(db: &Connection, rule: &Retention, now: i64) -> rusqlite::Result<Vec<Gone>> {
    let mut gone = Vec::new();
    for review in LEAST_WORTH_FIRST {
        let Some(days) = rule.days(review) else { continue };
        let before = now.saturating_sub(i64::from(days).saturating_mul(DAY_NS));
        take(db, review, Some(before), STEP - gone.len(), &mut gone)?;
    }
    let Some(most) = rule.max_mb else { return Ok(gone) };
    let most = i64::try_from(most).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let total: i64 = db.query_row("SELECT COALESCE(SUM(bytes), 0) FROM tallies", [], |r| r.get(0))?;
    let mut over = total - most - gone.iter().map(|g| g.bytes).sum::<i64>();
    for review in LEAST_WORTH_FIRST {
        if over <= 0 || gone.len() >= STEP {
            break;
        }
        let mut oldest = Vec::new();
        take(db, review, None, STEP, &mut oldest)?;
        for item in oldest {
            if over <= 0 || gone.len() >= STEP {
                break;
            }
            if gone.iter().all(|g: &Gone| g.n != item.n) {
                over -= item.bytes;
                gone.push(item);
            }
        }
    }
    Ok(gone)
}

/// Adds the oldest with a decision, received before a time.
fn take(
    db: &Connection,
    review: Option<Decision>,
    before: Option<i64>,
    most: usize,
    gone: &mut Vec<Gone>,
) -> rusqlite::Result<()> {
    let mut tallies = db.prepare_cached("SELECT id FROM tallies WHERE review = ? AND count > 0")?;
    let mut of_tally = db.prepare_cached(
        "SELECT n, id, tally, bytes, captured_at, received_at FROM anomalies INDEXED BY anomalies_by_tally_time
         WHERE tally = ?1 AND captured_at < ?2 AND received_at < ?2 ORDER BY captured_at LIMIT ?3",
    )?;
    // what was captured before it was received is old by both; a capture clock that is ahead is found by size alone
    let before = before.unwrap_or(i64::MAX);
    let most_rows = i64::try_from(most).unwrap_or(i64::MAX);
    let mut found: Vec<(i64, Gone)> = Vec::new();
    let mut rows = tallies.query([review.map_or("", Decision::as_str)])?;
    while let Some(row) = rows.next()? {
        let mut rows = of_tally.query([row.get(0)?, before, most_rows])?;
        while let Some(row) = rows.next()? {
            let item = Gone { n: row.get(0)?, id: row.get(1)?, tally: row.get(2)?, bytes: row.get(3)?, review };
            found.push((row.get(4)?, item));
        }
    }
    found.sort_by_key(|(at, item)| (*at, item.n));
    gone.extend(found.into_iter().take(most).map(|(_, item)| item));
    Ok(())
}

fn delete(db: &Connection, item: &Gone) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO trash (id) VALUES (?)")?.execute([&item.id])?;
    db.prepare_cached("DELETE FROM reviews WHERE anomaly = ?")?.execute([&item.id])?;
    for sql in
        ["DELETE FROM objects WHERE n = ?", "DELETE FROM events WHERE n = ?", "DELETE FROM anomalies WHERE n = ?"]
    {
        db.prepare_cached(sql)?.execute([item.n])?;
    }
    db.prepare_cached("UPDATE tallies SET count = count - 1, bytes = bytes - ? WHERE id = ?")?
        .execute(params![item.bytes, item.tally])?;
    Ok(())
}

/// Moves the pictures of what is gone out of the way. The writer's lock is held, so that nobody stores the same meanwhile.
fn clear(store: &SqliteStore, db: &Connection) -> Result<Vec<std::path::PathBuf>> {
    let cannot = || "cannot remove the pictures of old anomalies";
    let ids: Vec<String> = {
        let mut statement = db.prepare_cached("SELECT id FROM trash").failed(cannot)?;
        let ids = statement.query_map([], |r| r.get(0)).failed(cannot)?;
        ids.collect::<Result<_, _>>().failed(cannot)?
    };
    let staging = store.dir().join("staging");
    let mut moved = Vec::with_capacity(ids.len());
    for id in &ids {
        let Ok(uuid) = Uuid::try_parse(id) else { continue };
        let to = staging.join(format!("gone-{id}"));
        match fs::rename(store.object_dir(uuid), &to) {
            Ok(()) => moved.push(to),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::failed(cannot()).because(e)),
        }
    }
    if !ids.is_empty() {
        sync_dir(&staging)?;
        db.execute("DELETE FROM trash", []).failed(cannot)?;
    }
    Ok(moved)
}

fn discard(moved: Vec<std::path::PathBuf>) -> Result<()> {
    for dir in moved {
        fs::remove_dir_all(&dir).failed(|| format!("cannot remove \"{}\"", dir.display()))?;
    }
    Ok(())
}

/// Finishes what a crash interrupted.
pub(super) fn finish(store: &SqliteStore) -> Result<()> {
    let moved = clear(store, &store.writer())?;
    discard(moved)
}

/// Applies a rule in the background until dropped.
#[derive(Debug)]
pub struct Keeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread; `told` hears of each step that removed something.
    pub fn start(store: Arc<dyn Store>, rule: Retention, told: impl Fn(&Removed) + Send + 'static) -> Result<Keeper> {
        let (stop, stopped) = bounded::<()>(0);
        let work = move || {
            let mut pause = PAUSE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                match store.retain(&rule, Timestamp::now()) {
                    Ok(removed) => {
                        if removed.count() > 0 {
                            told(&removed);
                            let Removed { anomalies, bytes, .. } = &removed;
                            tracing::info!(?anomalies, bytes, "old anomalies removed");
                        }
                        pause = if removed.more { PAUSE } else { EVERY };
                    }
                    Err(error) => {
                        tracing::error!(%error, "retention failed");
                        pause = EVERY;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("review-keep".into())
            .spawn(work)
            .failed(|| "cannot start the retention")?;
        Ok(Keeper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop = None; // wakes the thread
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the retention panicked");
        }
    }
}
