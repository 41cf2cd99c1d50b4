//! The thread "deliver-writer": takes records in order, encodes pictures, commits. It owns the writing connection; outcomes
//! of the uploader reach it through a channel of their own, so that deliveries free space even while records cannot be
//! written.
//!
//! Invariants, each with the test that holds it:
//! 1. Rows are committed in the order they were recorded, so an anomaly never is on the disk without every row before it:
//!    `an_anomaly_commits_with_every_row_before_it`.
//! 2. A row waits at most `Limits::batch` for its commit: `good_rows_are_committed_without_being_asked`.
//! 3. Pictures that cannot be encoded, or whose encoder panics, do not stop the event: `an_anomaly_without_pictures_leaves`.
//! 4. `Limits::reserve` is left free on the disk, because recording a delivery takes room before it makes room:
//!    `spool_that_filled_its_disk_drains` (tests/delivery.rs).
//! 5. A batch that cannot be written is kept and tried again; meanwhile only records with an entry in a journal are added,
//!    and beyond [`HELD_BYTES`] without their pictures: `full_disk_refuses_and_recovers` (tests/delivery.rs),
//!    `a_full_disk_does_not_stop_a_line` (tests/ledger.rs).
//! 6. A line is marked as cleanly stopped only when all of it is committed: `a_clean_stop_leaves_no_window` (tests/ledger.rs).

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::database::{Database, Ready, ReadyAnomaly};
use super::fates::Fates;
use super::journal::Journal;
use super::reports::{self, Book, ReportOutcome};
use super::resume::Resumed;
use super::spool::{Depth, End, Outcome, Settled, Shed};
use super::{Anomaly, Limits, Pictures, Place, Record, Shared, TargetState, add, picture};
use crate::event::LineReport;

/// Rows that close a batch.
const BATCH_ROWS: usize = 512;
/// Bytes of pictures that close a batch.
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of pictures of one write after a failed one.
const PIECE_BYTES: usize = 1 << 20;
/// How long a batch with an anomaly stays open for what is already waiting.
const ANOMALY_BATCH: Duration = Duration::from_millis(20);
/// Bytes of pictures that are held while nothing can be written.
const HELD_BYTES: usize = 64 << 20;
/// Time between two steps of a retention that has more to do.
const NEXT_STEP: Duration = Duration::from_millis(500);
/// How often it is looked whether another process (`linesight spool`) has changed the database, and whether anomalies are
/// too old.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// How often room is looked for in one write, twice as much each time.
const MAKE_ROOM: u32 = 4;
/// How often a writer that cannot write looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

/// A record as it was taken.
pub(super) struct Taken {
    pub record: Record,
    pub at: Timestamp,
    /// Free again when the pictures are encoded.
    pub place: Option<Place>,
    /// Its entry in the line's journal.
    pub entry: Option<(Arc<Journal>, u64)>,
}

/// A line's journal and how it goes on.
pub(super) type Started = crate::error::Result<(Arc<Journal>, Resumed)>;

pub(super) enum Message {
    Record(Box<Taken>),
    /// Answered when all before it is committed.
    Flush(Sender<()>),
    Resume {
        line: String,
        done: Sender<Started>,
    },
    Report(Box<LineReport>),
}

/// What the uploading threads report; answered with whether it is committed.
pub(super) enum Settle {
    Anomaly(SettleAnomaly),
    Report(SettleReport),
}

pub(super) struct SettleReport {
    pub id: i64,
    pub outcome: ReportOutcome,
    pub bytes: u64,
    pub done: oneshot::Sender<bool>,
}

pub(super) struct SettleAnomaly {
    pub target: Arc<TargetState>,
    pub seq: i64,
    pub id: Uuid,
    pub outcome: Outcome,
    pub bytes: u64,
    pub done: oneshot::Sender<bool>,
}

pub(super) struct Writer {
    pub database: Database,
    pub run: Uuid,
    pub fates: Fates,
    pub records: Receiver<Message>,
    pub outcomes: Receiver<Settle>,
    pub wake_reporter: Sender<()>,
    pub progress: Sender<()>,
    pub shared: Arc<Shared>,
    pub limits: Limits,
    pub book: Book,
    pub depth: Depth,
    /// [`Database::version`] at the last look, and when that was.
    pub version: i64,
    pub looked: Instant,
    /// Started in this process.
    pub lines: BTreeSet<String>,
    /// When retention looks again.
    pub retain_at: Option<Instant>,
    /// It was said that a waiting anomaly is in the way of retention.
    pub held: bool,
}

#[derive(Default)]
struct Batch {
    ready: Vec<Ready>,
    /// Of their pictures.
    bytes: usize,
    flushes: Vec<Sender<()>>,
    reports: Vec<LineReport>,
    /// When it must be committed.
    due: Option<Instant>,
    failed: bool,
}

impl Writer {
    pub fn run(mut self) {
        let mut batch = Batch::default();
        let mut outcomes = self.outcomes.clone();
        loop {
            let wait = match batch.due.into_iter().chain(self.retain_at).min() {
                _ if batch.failed && self.shared.stopping() => Duration::ZERO,
                Some(due) if batch.failed => due.saturating_duration_since(Instant::now()).min(LOOK),
                Some(due) => due.saturating_duration_since(Instant::now()),
                None => LOOK_AROUND,
            }
            .min(LOOK_AROUND);
            select! {
                recv(self.records) -> message => match message {
                    Ok(message) => self.take(message, &mut batch),
                    Err(_) => return self.end(batch),
                },
                recv(outcomes) -> settle => match settle {
                    Ok(settle) => self.settle(settle),
                    Err(_) => outcomes = never(),
                },
                default(wait) => {}
            }
            if batch.failed && self.shared.stopping() {
                return self.end(batch);
            }
            if batch.due.is_some_and(|due| due <= Instant::now()) {
                self.commit(&mut batch);
            }
            if self.looked.elapsed() >= LOOK_AROUND {
                self.look_around();
            }
            if !batch.failed && self.retain_at.is_some_and(|at| at <= Instant::now()) {
                self.retain();
            }
        }
    }

    fn take(&mut self, message: Message, batch: &mut Batch) {
        let now = Instant::now();
        let due = match message {
            Message::Flush(done) => {
                batch.flushes.push(done);
                now
            }
            Message::Resume { line, done } => {
                let started = self.database.resume(&line, self.run, self.limits.journal_slots);
                if let Ok((_, resumed)) = &started {
                    self.started(&line, resumed);
                }
                let _ = done.try_send(started);
                return;
            }
            Message::Report(report) => {
                batch.reports.push(*report);
                now
            }
            Message::Record(taken) => {
                let urgent = taken.record.anomaly.is_some();
                let full = batch.failed && batch.bytes > HELD_BYTES;
                let ready = self.prepare(*taken, full);
                batch.bytes += ready.anomaly.as_ref().map_or(0, |anomaly| anomaly.pictures.bytes());
                batch.ready.push(ready);
                let full = batch.ready.len() >= BATCH_ROWS || batch.bytes >= BATCH_BYTES;
                match urgent {
                    _ if full => now,
                    true if self.records.is_empty() => now,
                    true => now + ANOMALY_BATCH,
                    false => now + self.limits.batch,
                }
            }
        };
        // what failed is tried again at its own pace
        if !batch.failed {
            batch.due = Some(batch.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    fn started(&mut self, line: &str, resumed: &Resumed) {
        self.lines.insert(line.to_owned());
        let Some(interrupted) = &resumed.interrupted else { return };
        let shared = &self.shared;
        add(&shared.recorded, interrupted.recovered);
        add(&shared.spooled, interrupted.placeholders);
        add(&shared.picture_failures, interrupted.placeholders);
        self.fates.recovered(&self.database, line, interrupted.placeholders);
        self.count_again();
        self.make_room(0);
        self.shared.wake_all();
    }

    /// Counts what is in the spool; nothing else changes these numbers at the same time.
    fn count_again(&mut self) {
        match self.database.depth() {
            Ok(depth) => {
                self.depth = depth;
                self.shared.show(&self.depth);
            }
            Err(e) => debug!(error = %e, "the spool was not counted"),
        }
    }

    fn look_around(&mut self) {
        self.looked = Instant::now();
        if let Ok(version) = self.database.version()
            && version != self.version
        {
            self.version = version;
            self.count_again();
            self.shared.wake_all();
        }
        if self.limits.bounds.days.is_some() {
            self.make_room(0);
        }
    }

    /// Lets anomalies or their pictures go until the spool is within its bounds and `room` more bytes of it are free; whether
    /// any did.
    fn make_room(&mut self, room: u64) -> bool {
        let flying = self.shared.flying();
        let shed = match self.database.shed(&self.limits.bounds, &self.depth, room, &flying) {
            Ok(shed) => shed,
            Err(e) => {
                debug!(error = %e, "the spool could not be made smaller");
                return false;
            }
        };
        if shed == Shed::default() {
            return false;
        }
        self.fates.shed(&shed);
        self.count_again();
        add(&self.shared.dropped, shed.dropped.len() as u64);
        add(&self.shared.pictures_dropped, shed.stripped.len() as u64);
        for (what, gone) in [("anomaly", &shed.dropped), ("picture", &shed.stripped)] {
            for (id, line, part) in gone {
                warn!(%id, line, part, what, "the spool is full: dropped before it was delivered");
            }
        }
        true
    }

    /// Encodes the pictures; `full`: there is no room for them.
    fn prepare(&self, taken: Taken, full: bool) -> Ready {
        let Taken { record: Record { row, anomaly }, at, place, entry } = taken;
        let anomaly = anomaly.map(|Anomaly { mut event, pictures }| {
            let encode = || catch_unwind(AssertUnwindSafe(pictures)).unwrap_or_else(|_| Err(picture::panicked()));
            let encoded: crate::error::Result<Pictures> = if full { Err(picture::no_room()) } else { encode() };
            let pictures = encoded.and_then(picture::checked).unwrap_or_else(|e| {
                add(&self.shared.picture_failures, 1);
                event.reasons.push(format!("picture could not be encoded: {e}"));
                picture::placeholder(&mut event)
            });
            let json = serde_json::to_string(&event).unwrap_or_default();
            ReadyAnomaly { id: event.id, event: json, pictures, spooled_at: at }
        });
        drop(place);
        Ready { row, anomaly, entry }
    }

    /// Adds rows, unless that would leave too little room for deliveries to be recorded. Where the disk is full, old anomalies
    /// make room for new ones as the policy says.
    fn write(&mut self, ready: &[Ready]) -> Result<(), String> {
        let reserve = self.limits.reserve;
        let pictures: usize = ready.iter().filter_map(|r| r.anomaly.as_ref()).map(|a| a.pictures.bytes()).sum();
        // they take their room twice for a while: in the log and in the file
        let needed = reserve.saturating_add(2 * pictures as u64);
        let mut room = self.database.room().map_err(|e| e.to_string())?;
        if room < needed && reserve > 0 {
            // the log may be what takes the room
            self.database.checkpoint().map_err(|e| e.to_string())?;
            room = self.database.room().map_err(|e| e.to_string())?;
        }
        for step in 0..MAKE_ROOM {
            let lacking = needed.saturating_sub(room);
            // nothing goes where that would not be enough
            if lacking == 0 || reserve == 0 || self.depth.bytes / 2 < lacking || !self.make_room(lacking << step) {
                break;
            }
            self.database.checkpoint().map_err(|e| e.to_string())?;
            room = self.database.room().map_err(|e| e.to_string())?;
        }
        if room < needed && reserve > 0 {
            return Err(format!("{} MB are free on the disk, {} MB are kept in reserve", room >> 20, reserve >> 20));
        }
        let added = self.database.commit(self.run, ready).map_err(|e| e.to_string())?;
        let shared = &self.shared;
        add(&shared.recorded, added.rows);
        add(&shared.spooled, added.spooled);
        add(&shared.ledger_conflicts, added.conflicts);
        if added.conflicts > 0 {
            warn!(rows = added.conflicts, "the ledger already has these parts of this run; the first rows stay");
        }
        self.fates.spooled(&self.database, ready, added.spooled);
        if added.spooled > 0 {
            self.depth.waiting += added.spooled;
            self.depth.bytes += added.bytes;
            for target in self.database.targets() {
                self.depth.targets.entry(target.clone()).or_default().waiting += added.spooled;
            }
            self.shared.show(&self.depth);
            self.make_room(0);
            self.shared.wake_all();
        }
        Ok(())
    }

    /// Writes a batch in one piece; what has gathered while nothing could be written in small ones, so that a write that does
    /// not fit after all takes little of the room that deliveries need.
    fn write_pieces(&mut self, batch: &mut Batch) -> Result<(), String> {
        let most = if batch.failed { PIECE_BYTES } else { usize::MAX };
        loop {
            let mut bytes = 0;
            let size = |ready: &Ready| ready.anomaly.as_ref().map_or(0, |anomaly| anomaly.pictures.bytes());
            let fits = |ready: &&Ready| {
                bytes += size(ready);
                bytes <= most
            };
            let piece = batch.ready.iter().take(BATCH_ROWS).take_while(fits).count().max(1).min(batch.ready.len());
            self.write(&batch.ready[..piece])?;
            batch.ready.drain(..piece);
            if batch.ready.is_empty() {
                return Ok(());
            }
        }
    }

    /// Writes the batch at once or, where that fails, anomaly by anomaly: there may be room for some.
    fn commit(&mut self, batch: &mut Batch) {
        let mut result = self.write_pieces(batch);
        while result.is_err() && batch.ready.len() > 1 {
            let first = batch.ready.iter().position(|ready| ready.anomaly.is_some());
            let piece = first.map_or(batch.ready.len(), |first| first + 1);
            match self.write(&batch.ready[..piece]) {
                Ok(()) => drop(batch.ready.drain(..piece)),
                Err(_) => break,
            }
            if batch.ready.is_empty() {
                result = Ok(());
            }
        }
        match result {
            Ok(()) => {
                if batch.failed {
                    Shared::set(&self.shared.write_error, None);
                    info!("writing works again; what was kept is committed");
                }
                self.store_reports(std::mem::take(&mut batch.reports));
                for done in batch.flushes.drain(..) {
                    let _ = done.try_send(());
                }
                *batch = Batch::default();
            }
            Err(e) => {
                if !batch.failed {
                    let database = self.shared.database.display();
                    error!(%database, error = e, "cannot write; records are refused until it works");
                }
                Shared::set(&self.shared.write_error, Some(e));
                // there will be newer ones
                add(&self.shared.reports_dropped, batch.reports.drain(..).len() as u64);
                batch.failed = true;
                batch.bytes = batch.ready.iter().filter_map(|r| r.anomaly.as_ref()).map(|a| a.pictures.bytes()).sum();
                batch.due = Some(Instant::now() + self.limits.write_again);
            }
        }
    }

    fn store_reports(&mut self, reports: Vec<LineReport>) {
        for report in reports {
            match self.book.store(&mut self.database, self.run, report, &self.limits.reports) {
                Ok(gone) => add(&self.shared.reports_dropped, gone),
                Err(e) => {
                    add(&self.shared.reports_dropped, 1);
                    debug!(error = %e, "a line report was not stored");
                }
            }
            self.shared.reports_waiting.store(self.book.waiting, Relaxed);
            let _ = self.wake_reporter.try_send(());
        }
    }

    /// One step of retention, and when the next one is due.
    fn retain(&mut self) {
        let done = self.database.retain(self.run, &self.limits.retention, Timestamp::now());
        let next = match &done {
            Ok(removed) => {
                add(&self.shared.retained_away, removed.rows);
                if removed.held > 0 && !self.held {
                    warn!(
                        lines = removed.held,
                        "the ledger cannot shrink: an old anomaly still waits for its delivery"
                    );
                }
                self.held = removed.held > 0;
                if removed.more && removed.rows > 0 { NEXT_STEP } else { self.limits.retain_every }
            }
            Err(e) => {
                debug!(error = %e, "old ledger rows were not removed");
                self.limits.retain_every
            }
        };
        self.retain_at = Some(Instant::now() + next);
    }

    fn settle(&mut self, settle: Settle) {
        let SettleAnomaly { target, seq, id, outcome, bytes, done } = match settle {
            Settle::Anomaly(settle) => settle,
            Settle::Report(SettleReport { id, outcome, bytes, done }) => {
                let result = self.book.settle(&mut self.database, id, &outcome);
                if result.is_ok() {
                    reports::count(&self.shared, &self.book, &outcome, bytes);
                    let _ = self.progress.try_send(());
                }
                let _ = done.send(result.is_ok());
                return;
            }
        };
        let result = self.database.settle(&target.name, seq, id, &outcome);
        match &result {
            Ok(Settled { end: None, .. }) => {
                // a person gave it up meanwhile, or it was retried by hand: the numbers are taken anew at the next look
                if let Outcome::Delivered { .. } = outcome {
                    target.delivered(bytes);
                    add(&self.shared.bytes_uploaded, bytes);
                }
            }
            Ok(settled) => self.count(&target, settled, &outcome, bytes),
            Err(e) => debug!(error = %e, "an outcome was not written"),
        }
        if result.is_ok() {
            self.fates.settled(&self.database, &target.name, id, &outcome);
        }
        let delivered = matches!(&result, Ok(settled) if settled.end == Some(End::Delivered));
        let _ = done.send(result.is_ok());
        if delivered && let Err(e) = self.database.shrink() {
            debug!(error = %e, "free pages were not given back");
        }
    }

    fn count(&mut self, target: &TargetState, settled: &Settled, outcome: &Outcome, bytes: u64) {
        let of = self.depth.targets.entry(target.name.clone()).or_default();
        of.set_aside -= u64::from(settled.was_aside).min(of.set_aside);
        match outcome {
            Outcome::Failed { aside, .. } => of.set_aside += u64::from(*aside),
            Outcome::Dead { .. } => (of.waiting, of.dead) = (of.waiting.saturating_sub(1), of.dead + 1),
            Outcome::Delivered { .. } => {
                of.waiting = of.waiting.saturating_sub(1);
                target.delivered(bytes);
                add(&self.shared.bytes_uploaded, bytes);
            }
        }
        let depth = &mut self.depth;
        match settled.end {
            Some(End::Delivered) => {
                depth.waiting = depth.waiting.saturating_sub(1);
                depth.bytes = depth.bytes.saturating_sub(settled.freed);
                add(&self.shared.delivered, 1);
            }
            Some(End::Dead) => {
                (depth.waiting, depth.dead) = (depth.waiting.saturating_sub(1), depth.dead + 1);
                add(&self.shared.died, 1);
            }
            Some(End::Stays) | None => {}
        }
        self.shared.show(&self.depth);
        // a failure is none: a drain must lose its patience
        if !matches!(outcome, Outcome::Failed { .. }) {
            let _ = self.progress.try_send(());
        }
    }

    /// Takes and commits all that is left, failed batch included.
    fn end(mut self, mut batch: Batch) {
        let left: Vec<Message> = self.records.try_iter().collect();
        for message in left {
            self.take(message, &mut batch);
        }
        if !batch.ready.is_empty() || !batch.flushes.is_empty() || !batch.reports.is_empty() {
            self.commit(&mut batch);
        }
        if !batch.failed
            && !self.lines.is_empty()
            && let Err(e) = self.database.stop_cleanly(self.lines.iter().map(String::as_str))
        {
            error!(error = %e, "the clean stop could not be noted; the next start says that it was interrupted");
        }
        if batch.failed {
            let anomalies = batch.ready.iter().filter(|ready| ready.anomaly.is_some()).count();
            let kept = batch.ready.iter().filter(|ready| ready.entry.is_some()).count();
            error!(
                rows = batch.ready.len(),
                anomalies, kept, "stopped without having written these; the journals keep some"
            );
        }
    }
}
