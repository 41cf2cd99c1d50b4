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
//! 5. A batch that cannot be written is kept and tried again; meanwhile nothing more is taken:
//!    `full_disk_refuses_and_recovers` (tests/delivery.rs).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};
use jiff::Timestamp;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::database::{Database, Outcome, Ready, ReadyAnomaly};
use super::{Anomaly, Limits, Place, Record, Shared, add, picture};

/// Rows that close a batch.
const BATCH_ROWS: usize = 512;
/// Bytes of pictures that close a batch.
const BATCH_BYTES: usize = 8 << 20;
/// How long a batch with an anomaly stays open for what is already waiting.
const ANOMALY_BATCH: Duration = Duration::from_millis(20);
/// How often a writer that cannot write looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

/// A record as it was taken.
pub(super) struct Taken {
    pub record: Record,
    pub at: Timestamp,
    /// Free again when the pictures are encoded.
    pub place: Option<Place>,
}

pub(super) enum Message {
    Record(Box<Taken>),
    /// Answered when all before it is committed.
    Flush(Sender<()>),
}

/// What the uploader reports; answered with whether it is committed.
pub(super) struct Settle {
    pub id: Uuid,
    pub outcome: Outcome,
    /// The item was set aside before.
    pub was_aside: bool,
    pub bytes: u64,
    pub done: Sender<bool>,
}

pub(super) struct Writer {
    pub database: Database,
    pub run: Uuid,
    pub records: Receiver<Message>,
    pub outcomes: Receiver<Settle>,
    pub wake: Sender<()>,
    pub progress: Sender<()>,
    pub shared: Arc<Shared>,
    pub limits: Limits,
}

#[derive(Default)]
struct Batch {
    ready: Vec<Ready>,
    /// Of their pictures.
    bytes: usize,
    flushes: Vec<Sender<()>>,
    /// When it must be committed.
    due: Option<Instant>,
    failed: bool,
}

impl Writer {
    pub fn run(mut self) {
        let mut batch = Batch::default();
        let none = never();
        let mut outcomes = self.outcomes.clone();
        loop {
            // a failed batch is not added to
            let records = if batch.failed { &none } else { &self.records };
            let wait = match batch.due {
                _ if batch.failed && self.shared.stopping() => Duration::ZERO,
                Some(due) if batch.failed => due.saturating_duration_since(Instant::now()).min(LOOK),
                Some(due) => due.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            select! {
                recv(records) -> message => match message {
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
        }
    }

    fn take(&self, message: Message, batch: &mut Batch) {
        let now = Instant::now();
        let due = match message {
            Message::Flush(done) => {
                batch.flushes.push(done);
                now
            }
            Message::Record(taken) => {
                let urgent = taken.record.anomaly.is_some();
                let ready = self.prepare(*taken);
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
        batch.due = Some(batch.due.map_or(due, |earlier| earlier.min(due)));
    }

    fn prepare(&self, taken: Taken) -> Ready {
        let Taken { record: Record { row, anomaly }, at, place } = taken;
        let anomaly = anomaly.map(|Anomaly { mut event, pictures }| {
            let encoded = catch_unwind(AssertUnwindSafe(pictures)).unwrap_or_else(|_| Err(picture::panicked()));
            let pictures = encoded.and_then(picture::checked).unwrap_or_else(|e| {
                add(&self.shared.picture_failures, 1);
                event.reasons.push(format!("picture could not be encoded: {e}"));
                picture::placeholder(&mut event)
            });
            // JSON has no word for these; a receiver would refuse the event for ever
            for number in [&mut event.score, &mut event.confidence, &mut event.threshold] {
                if !number.is_finite() {
                    event.reasons.push(format!("a score was {number}"));
                    *number = if *number == f32::NEG_INFINITY { f32::MIN } else { f32::MAX };
                }
            }
            event.regions.iter_mut().filter(|r| !r.score.is_finite()).for_each(|r| r.score = f32::MAX);
            let json = serde_json::to_string(&event).unwrap_or_default();
            ReadyAnomaly { id: event.id, event: json, pictures, spooled_at: at }
        });
        drop(place);
        Ready { row, anomaly }
    }

    /// Adds rows, unless that would leave too little room for deliveries to be recorded.
    fn write(&mut self, ready: &[Ready]) -> Result<(), String> {
        let (reserve, room) = (self.limits.reserve, self.database.room().map_err(|e| e.to_string())?);
        if room < reserve {
            return Err(format!("{} MB are free on the disk, {} MB are kept in reserve", room >> 20, reserve >> 20));
        }
        let added = self.database.commit(self.run, ready).map_err(|e| e.to_string())?;
        let shared = &self.shared;
        add(&shared.recorded, added.rows);
        add(&shared.spooled, added.spooled);
        add(&shared.waiting, added.spooled);
        add(&shared.ledger_conflicts, added.conflicts);
        if added.conflicts > 0 {
            warn!(rows = added.conflicts, "the ledger already has these parts of this run; the first rows stay");
        }
        if added.spooled > 0 {
            let _ = self.wake.try_send(());
        }
        Ok(())
    }

    /// Writes the batch at once or, where that fails, anomaly by anomaly: there may be room for some.
    fn commit(&mut self, batch: &mut Batch) {
        let mut result = self.write(&batch.ready);
        if result.is_ok() {
            batch.ready.clear();
        }
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
                batch.failed = true;
                batch.due = Some(Instant::now() + self.limits.write_again);
            }
        }
    }

    fn settle(&mut self, settle: Settle) {
        let Settle { id, outcome, was_aside, bytes, done } = settle;
        let result = self.database.settle(id, &outcome);
        let shared = &self.shared;
        match (&result, &outcome) {
            (Ok(true), Outcome::Delivered { .. }) => {
                add(&shared.delivered, 1);
                add(&shared.bytes_uploaded, bytes);
                if was_aside {
                    shared.set_aside.fetch_sub(1, Relaxed);
                }
                if shared.waiting.fetch_sub(1, Relaxed) == 1 {
                    Shared::set(&shared.last_error, None);
                }
                let _ = self.progress.try_send(());
            }
            (Ok(true), Outcome::Failed { aside, .. }) if *aside != was_aside => {
                let _ = match aside {
                    true => shared.set_aside.fetch_add(1, Relaxed),
                    false => shared.set_aside.fetch_sub(1, Relaxed),
                };
            }
            (Ok(_), _) => {}
            (Err(e), _) => debug!(error = %e, "an outcome was not written"),
        }
        let delivered = result.is_ok() && matches!(outcome, Outcome::Delivered { .. });
        let _ = done.try_send(result.is_ok());
        if delivered && let Err(e) = self.database.shrink() {
            debug!(error = %e, "free pages were not given back");
        }
    }

    /// Takes and commits all that is left, failed batch included.
    fn end(mut self, mut batch: Batch) {
        let left: Vec<Message> = self.records.try_iter().collect();
        for message in left {
            self.take(message, &mut batch);
        }
        if !batch.ready.is_empty() || !batch.flushes.is_empty() {
            self.commit(&mut batch);
        }
        if batch.failed {
            let anomalies = batch.ready.iter().filter(|ready| ready.anomaly.is_some()).count();
            error!(rows = batch.ready.len(), anomalies, "stopped without having written these");
        }
    }
}
