//! Starts and stops of a line whose part numbers go on over runs. Called on the writer's thread.
//!
//! A run marks its line as running when it starts and as cleanly stopped when all is committed. A start that finds the mark
//! of a running line brings over what the journal has and the database lacks, and writes an interrupted row. After the loss
//! of the process numbers go on after the highest one in the journal: one that is not there was never answered. After the
//! loss of the machine the journal may not be whole: numbers go on after those that were reserved.
//!
//! Invariants, each with the test that holds it (tests/ledger.rs):
//! 1. No part number is used twice, and gaps lie only inside interrupted rows: `killed_under_load_it_reconciles`,
//!    `the_machine_goes_down`.
//! 2. Every part whose `record` returned is in the ledger at the next start, and every anomaly among them is in the spool or
//!    delivered: `killed_under_load_it_reconciles`.
//! 3. A start that is itself cut off changes nothing or all: one transaction; the journal is not touched by it.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use tracing::{info, warn};
use uuid::Uuid;

use super::chain::{INTERRUPTED, Interrupted, Stored, timestamp, whole};
use super::database::{Chains, Database, ReadyAnomaly, Sql, Tail, ahead};
use super::journal::{Entry, Found, Journal};
use super::spool::add_anomaly;
use super::{Pictures, picture};
use crate::error::{Context, Result};
use crate::event::Event;

/// The reason of an anomaly that was recovered from the journal.
pub const STOPPED_BEFORE_PICTURE: &str = "linesight was stopped before the picture was kept";

/// How a line goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// The number of the line's next part. Numbers go up one by one from here.
    pub next_part: u64,
    /// Set when the line was not stopped cleanly the last time.
    pub interrupted: Option<Interrupted>,
}

impl Database {
    /// Starts a line: see the module's text. Its rows and anomalies that are brought over are committed when it returns.
    pub fn resume(&mut self, line: &str, run: Uuid, slots: u32) -> Result<(Arc<Journal>, Resumed)> {
        let path = Journal::path(self.path(), line);
        let tail = self.tails.get(line).cloned().unwrap_or_default();
        let found = Journal::read(&path, tail.journal)?;
        let ours = found.nonce.is_some() && found.nonce == tail.journal;
        let journal = Journal::open(&path, line, if ours { found.nonce } else { None }, slots)?;
        let boot = super::journal::boot();
        let machine = tail.boot.as_deref() != Some(&boot) || !ours;
        let seq = found.entries.last().map_or(0, |entry| entry.seq).max(tail.journal_seq);
        let targets = self.targets().to_vec();
        let start =
            Start { line, run, boot, machine, journal: journal.nonce(), slots: journal.slots(), targets: &targets };
        let name = self.path().display().to_string();
        let started = start.write(&mut self.connection, &self.tails, &tail, found, seq);
        let (tails, resumed) = started.failed(|| format!("cannot write \"{name}\""))?;
        self.tails = tails;
        if let Some(i) = &resumed.interrupted {
            let missing = i.end - i.first;
            warn!(
                line,
                missing,
                recovered = i.recovered,
                placeholders = i.placeholders,
                "the line was not stopped cleanly"
            );
        }
        let reserved = self.tails.get(line).map_or(0, |tail| tail.reserved);
        journal.arm(seq, resumed.next_part, reserved);
        info!(line, next_part = resumed.next_part, "part numbers go on");
        Ok((Arc::new(journal), resumed))
    }

    /// Marks lines as stopped with everything committed.
    pub fn stop_cleanly<'a>(&mut self, lines: impl Iterator<Item = &'a str>) -> Sql<()> {
        let mut chains = Chains::begin(&mut self.connection, &self.tails)?;
        for line in lines {
            chains.tail(line).clean = Some(true);
        }
        self.tails = chains.commit()?;
        Ok(())
    }
}

struct Start<'a> {
    line: &'a str,
    run: Uuid,
    boot: String,
    machine: bool,
    journal: u64,
    slots: u32,
    targets: &'a [String],
}

impl Start<'_> {
    fn write(
        self,
        connection: &mut rusqlite::Connection,
        tails: &HashMap<String, Tail>,
        before: &Tail,
        found: Found,
        seq: u64,
    ) -> Sql<(HashMap<String, Tail>, Resumed)> {
        let now = Timestamp::now();
        let mut chains = Chains::begin(connection, tails)?;
        let mut next_part = before.next_part;
        let (mut recovered, mut placeholders) = (0, 0);
        let mut plain = Plain::default();
        for entry in found.entries.into_iter().filter(|entry| entry.seq > before.journal_seq) {
            next_part = next_part.max(entry.row.part + 1);
            let (added, spooled) = bring_over(&mut chains, entry, &mut plain, self.targets)?;
            recovered += u64::from(added);
            placeholders += u64::from(spooled);
        }
        // what is not marked as clean, or was in spite of the mark not written
        let unclean = before.clean == Some(false) || recovered > 0;
        let mut interrupted = None;
        if unclean {
            if self.machine {
                next_part = next_part.max(before.reserved);
            }
            let (first, end) = missing(&chains, self.line, before.first_part, next_part, self.slots)?;
            let from = before.last_at.map_or(now, timestamp);
            let machine = self.machine;
            let window = Interrupted { first, end, from, to: now, recovered, placeholders, machine };
            let place = chains.tail(self.line).chain;
            let run = self.run.to_string();
            chains.add(&Stored::note(self.line, &run, place, now, INTERRUPTED, &window))?;
            interrupted = Some(window);
        }
        let tail = chains.tail(self.line);
        (tail.next_part, tail.first_part) = (next_part, next_part);
        tail.reserved = tail.reserved.max(next_part + ahead(self.slots));
        (tail.journal, tail.journal_seq) = (Some(self.journal), seq);
        (tail.boot, tail.clean) = (Some(self.boot), Some(false));
        tail.last_at.get_or_insert(super::chain::nanos(now));
        Ok((chains.commit()?, Resumed { next_part, interrupted }))
    }
}

/// Adds what the journal has: whether there is a new row, and a new anomaly.
fn bring_over(chains: &mut Chains<'_>, entry: Entry, plain: &mut Plain, targets: &[String]) -> Sql<(bool, bool)> {
    let Entry { run, at, row, event, .. } = entry;
    let run = run.to_string();
    let added = chains.add_part(&run, &row, event.as_ref().map(|event| event.id).or(row.event), true)?;
    let (true, Some(mut event)) = (added, event) else { return Ok((added, false)) };
    event.reasons.push(STOPPED_BEFORE_PICTURE.to_owned());
    let pictures = plain.of(&mut event);
    let json = serde_json::to_string(&event).unwrap_or_default();
    let anomaly = ReadyAnomaly { id: event.id, event: json, pictures, spooled_at: at };
    Ok((true, add_anomaly(&chains.transaction, &run, &row, &anomaly, targets)?.is_some()))
}

/// Plain pictures of the size that was made last.
#[derive(Default)]
struct Plain(Option<(crate::event::ImageSize, Pictures)>);

impl Plain {
    fn of(&mut self, event: &mut Event) -> Pictures {
        match &self.0 {
            Some((size, pictures)) if *size == event.image => pictures.clone(),
            _ => {
                let pictures = picture::placeholder(event);
                self.0 = Some((event.image, pictures.clone()));
                pictures
            }
        }
    }
}

/// The first number below `end` that has no row and the one after the last, of the run that began with `first`.
fn missing(chains: &Chains<'_>, line: &str, first: u64, end: u64, slots: u32) -> Sql<(u64, u64)> {
    // parts end out of order by less than this
    let from = first.max(end.saturating_sub(2 * ahead(slots)));
    let sql = "SELECT part FROM ledger WHERE line = ?1 AND continued = 1 AND part >= ?2 AND part < ?3 ORDER BY part";
    let mut read = chains.transaction.prepare_cached(sql)?;
    let mut rows = read.query(rusqlite::params![line, whole(from), whole(end)])?;
    let (mut expected, mut found) = (from, None::<(u64, u64)>);
    while let Some(row) = rows.next()? {
        let part = u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0);
        if part > expected {
            found = Some((found.map_or(expected, |(first, _)| first), part));
        }
        expected = part + 1;
    }
    if expected < end {
        found = Some((found.map_or(expected, |(first, _)| first), end));
    }
    Ok(found.unwrap_or((end, end)))
}
