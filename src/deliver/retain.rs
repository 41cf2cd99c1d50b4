//! Retention: the oldest rows of the ledger go, in small steps, and a checkpoint row in the chain says up to where. Called
//! on the writer's thread between its commits.
//!
//! Invariants, each with the test that holds it (tests/ledger.rs):
//! 1. The chain verifies after each step: `retention_keeps_the_chain`.
//! 2. A row whose anomaly waits in the spool stays, and all after it: `what_waits_is_not_removed`.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::chain::{CHECKPOINT, Checkpoint, Hash, Stored, nanos, whole};
use super::database::{Chains, Database, Sql};
use crate::hex::hex;

/// Rows that go in one step.
const STEP: i64 = 1000;
/// Bytes that a row takes in the file, indexes included, on average: `cost_of_a_row` (tests/ledger.rs) prints it.
const ROW_BYTES: u64 = 400;

/// What is kept of the ledger. The oldest rows that are beyond any of these go; none: all is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Rows older than this many days go.
    pub days: Option<u32>,
    /// The newest rows of each line that stay.
    pub rows: Option<u64>,
    /// Bytes that the rows of all lines may take together, estimated at 400 for each; lines share them evenly.
    pub bytes: Option<u64>,
}

impl Retention {
    /// Whether anything ever goes.
    pub fn is_limited(&self) -> bool {
        *self != Retention::default()
    }

    /// Most rows of a line.
    fn most(&self, lines: usize) -> Option<i64> {
        let share = self.bytes.map(|bytes| bytes / ROW_BYTES / lines.max(1) as u64);
        self.rows.into_iter().chain(share).min().map(whole)
    }
}

/// What a step did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    pub rows: u64,
    /// A line has more to remove.
    pub more: bool,
    /// Lines where a waiting anomaly stands in the way.
    pub held: u64,
}

impl Database {
    /// One step for each line.
    pub fn retain(&mut self, run: Uuid, retention: &Retention, now: Timestamp) -> Sql<Removed> {
        let mut removed = Removed::default();
        let lines: Vec<String> = self.tails.keys().cloned().collect();
        let most = retention.most(lines.len());
        let cut =
            retention.days.and_then(|days| now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).ok());
        for line in &lines {
            let unchained = self.retain_unchained(line, cut, most)?;
            removed.rows += unchained;
            removed.more |= unchained == STEP as u64;
            let Some((first, last)) = self.beyond(line, cut, most)? else { continue };
            let free = first_waiting(&self.connection, line, first, last)?;
            removed.held += u64::from(free == Some(first));
            let end = free.unwrap_or(last + 1);
            if end <= first || only_notes(&self.connection, line, first, end)? {
                continue;
            }
            removed.rows += self.remove(run, line, first, end, now)?;
            removed.more |= last - first + 1 == STEP;
        }
        Ok(removed)
    }

    /// First and last place of a step's rows, when there are any to remove.
    fn beyond(&self, line: &str, cut: Option<Timestamp>, most: Option<i64>) -> Sql<Option<(i64, i64)>> {
        let Some(tail) = self.tails.get(line) else { return Ok(None) };
        let sql = "SELECT chain, captured_at FROM ledger WHERE line = ?1 AND chain >= 0 ORDER BY chain LIMIT ?2";
        let mut read = self.connection.prepare_cached(sql)?;
        let mut rows = read.query(params![line, STEP])?;
        let mut beyond = None;
        while let Some(row) = rows.next()? {
            let (place, at): (i64, i64) = (row.get(0)?, row.get(1)?);
            let (first, _) = *beyond.get_or_insert((place, place - 1));
            let old = cut.is_some_and(|cut| at < nanos(cut));
            // a tenth more than wanted, so that each part does not bring a checkpoint of its own
            let many = most.is_some_and(|most| tail.chain - first > most + most / 10 && tail.chain - place > most);
            if !(old || many) {
                break;
            }
            beyond = Some((first, place));
        }
        Ok(beyond.filter(|(first, last)| last >= first))
    }

    fn remove(&mut self, run: Uuid, line: &str, first: i64, end: i64, now: Timestamp) -> Sql<u64> {
        let mut chains = Chains::begin(&mut self.connection, &self.tails)?;
        let last: Option<Hash> = chains
            .transaction
            .prepare_cached("SELECT hash FROM ledger WHERE line = ?1 AND chain = ?2")?
            .query_row(params![line, end - 1], |row| row.get(0))
            .optional()?;
        let next: i64 = chains
            .transaction
            .prepare_cached(
                "SELECT coalesce(max(part) + 1, 0) FROM ledger WHERE line = ?1 AND chain >= ?2 AND chain < ?3 AND continued = 1",
            )?
            .query_row(params![line, first, end], |row| row.get(0))?;
        let gone = chains
            .transaction
            .prepare_cached("DELETE FROM ledger WHERE line = ?1 AND chain >= ?2 AND chain < ?3")?
            .execute(params![line, first, end])?;
        let hash = hex(&last.unwrap_or_default());
        let checkpoint = Checkpoint { index: end - 1, hash, rows: whole(gone as u64), next, at: now };
        let place = chains.tail(line).chain;
        chains.add(&Stored::note(line, &run.to_string(), place, now, CHECKPOINT, &checkpoint))?;
        self.tails = chains.commit()?;
        Ok(gone as u64)
    }

    /// Rows that are older than the chain go first.
    fn retain_unchained(&mut self, line: &str, cut: Option<Timestamp>, most: Option<i64>) -> Sql<u64> {
        let Some(tail) = self.tails.get(line).filter(|tail| tail.unchained > 0) else { return Ok(0) };
        let sql = "SELECT coalesce(min(chain), 0) FROM ledger WHERE line = ?1 AND chain >= 0";
        let first: i64 = self.connection.prepare_cached(sql)?.query_row([line], |row| row.get(0))?;
        let over = most.map_or(0, |most| (tail.unchained + tail.chain - first - most).clamp(0, STEP));
        let mut chains = Chains::begin(&mut self.connection, &self.tails)?;
        let gone = chains
            .transaction
            .prepare_cached(
                "DELETE FROM ledger WHERE (line, run, part) IN (
                     SELECT line, run, part FROM (SELECT line, run, part, event, captured_at FROM ledger
                         WHERE line = ?1 AND chain IS NULL ORDER BY run, part LIMIT iif(?3 > 0, ?3, ?4))
                     WHERE (captured_at < ?2 OR ?3 > 0) AND (event IS NULL OR event NOT IN (SELECT id FROM spool)))",
            )?
            .execute(params![line, cut.map_or(i64::MIN, nanos), over, STEP])?;
        if gone == 0 {
            return Ok(0);
        }
        chains.tail(line).unchained -= whole(gone as u64);
        self.tails = chains.commit()?;
        Ok(gone as u64)
    }
}

/// Place of the first row whose anomaly is still in the spool.
fn first_waiting(connection: &Connection, line: &str, first: i64, last: i64) -> Sql<Option<i64>> {
    let sql = "SELECT min(chain) FROM ledger WHERE line = ?1 AND chain BETWEEN ?2 AND ?3
               AND event IN (SELECT id FROM spool)";
    connection.prepare_cached(sql)?.query_row(params![line, first, last], |row| row.get(0))
}

/// No part is among them: a checkpoint that only removes checkpoints is not worth a checkpoint.
fn only_notes(connection: &Connection, line: &str, first: i64, end: i64) -> Sql<bool> {
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM ledger WHERE line = ?1 AND chain >= ?2 AND chain < ?3 AND part >= 0)";
    connection.prepare_cached(sql)?.query_row(params![line, first, end], |row| row.get(0))
}
