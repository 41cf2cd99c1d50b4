//! From a verdict to the review endpoint: the ledger (one row a part) and the spool (anomalies that wait for delivery) in
//! one SQLite database, and the uploader that empties the spool.
//!
//! Threads: "deliver-writer" ([`writer`]) owns the only connection that writes; "deliver-upload" ([`uploader`]) reads the
//! spool through a connection of its own and reports each outcome to the writer. [`Deliver`] is the handle of the line's
//! thread: it puts records on a bounded channel. When that is full the caller waits, and the wait is counted. A third thread,
//! "deliver-report" ([`reports`]), sends line reports.
//!
//! Lines that were started with [`Deliver::resume`] have part numbers that go on over runs, and a [`journal`]: a record is in
//! it when [`Deliver::record`] returns. Others (`inspect`) count from 0 in each run and have none. What the ledger says is
//! read by [`ledger`] and checked by [`audit`], which need no handle.
//!
//! Invariants, each with the test that holds it:
//! 1. What was committed survives a SIGKILL at any moment and is delivered later under the same id:
//!    `killed_at_any_moment_nothing_committed_is_lost` (tests/delivery.rs).
//! 2. A failed write refuses new records with its cause, keeps those it took, and goes on when the disk has room again:
//!    `full_disk_refuses_and_recovers` (tests/delivery.rs). Records of a line with a journal are taken until that is full:
//!    `a_full_disk_does_not_stop_a_line` (tests/ledger.rs).
//! 3. One process at a time has the database: `two_owners_are_refused`.
//! 4. `drain` returns when the spool is empty, or when nothing was delivered for its patience:
//!    `refused_connection_keeps_everything` (tests/delivery.rs).
//! 5. Entry in the journal and hand-over to the writer happen under one lock, so both have a line's records in one order.
//!    Lock order: `starting`, `journals`, one journal's.

pub mod audit;
mod chain;
mod database;
pub mod dead_letters;
mod fates;
mod journal;
#[cfg(test)]
mod journal_tests;
pub mod ledger;
pub mod live_picture;
mod mend;
mod options;
mod pages;
mod picture;
pub mod probe;
mod reports;
mod resume;
mod retain;
mod salvage;
mod schema;
mod shared;
mod spool;
#[cfg(test)]
mod spool_model;
mod target;
#[cfg(test)]
mod tests;
mod uploader;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, TrySendError, bounded};
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::warn;
use uuid::Uuid;

use crate::error::{Context, Error, Result};
use crate::event::{Event, LedgerRow, LineReport};
use crate::lock::FileLock;

pub use chain::{Hole, Interrupted, Missing, Salvaged};
use database::Database;
use fates::Fates;
use journal::Journal;
pub use mend::{Hurt, Kept, LineSalvage, PICTURE_LOST, Report as SalvageReport};
pub use options::{
    Bounds, Bucket, Config, Credentials, Drained, Endpoint, Folder, Kind, Limits, Status, Target, TargetStatus, Token,
    Webhook, WhenFull,
};
pub use reports::ReportsKept;
use reports::{Book, Reporter};
pub use resume::{Resumed, STOPPED_BEFORE_PICTURE};
pub use retain::Retention;
pub use salvage::quarantines;
use shared::{Shared, TargetState, add};
pub use spool::{Order, TargetDepth};
use target::Client;
use uploader::{Pace, Uploader};
use writer::{Message, Taken, Writer};

/// The target that line reports go to, and for which anomalies wait when there is none.
pub const REVIEW: &str = "review";
/// The reason of an anomaly whose pictures made room for others.
pub const PICTURE_DROPPED: &str = "the picture was dropped: the spool was full";
/// Records that may wait for the writer.
const RECORDS_WAITING: usize = 1024;
/// Anomalies that may wait for the writer: each holds its frame.
const ANOMALIES_WAITING: usize = 16;
/// How often a caller that waits looks whether the writer has failed.
const LOOK: Duration = Duration::from_millis(50);
/// How long a stop waits for a request that is on its way; what is cut off is sent again by the next process.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The pictures that leave with an anomaly, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pictures {
    /// The inspected frame.
    pub frame_jpeg: Vec<u8>,
    /// The anomaly map over the whole frame picture.
    pub heatmap_png: Vec<u8>,
    /// What the place should look like.
    pub normal_jpeg: Option<Vec<u8>>,
}

impl Pictures {
    /// In the place of those that are gone with an event that cannot be sent.
    fn none() -> Pictures {
        Pictures { frame_jpeg: Vec::new(), heatmap_png: Vec::new(), normal_jpeg: None }
    }

    fn bytes(&self) -> usize {
        self.frame_jpeg.len() + self.heatmap_png.len() + self.normal_jpeg.as_ref().map_or(0, Vec::len)
    }
}

/// One anomaly. `pictures` is called once, on the writer thread: encoding is off the verdict path.
pub struct Anomaly {
    pub event: Event,
    pub pictures: Box<dyn FnOnce() -> Result<Pictures> + Send>,
}

/// One part: its ledger row and, when it leaves the machine, its anomaly.
pub struct Record {
    pub row: LedgerRow,
    pub anomaly: Option<Anomaly>,
}

/// One of the places for anomalies on their way to the writer; free again when it drops.
struct Place(Receiver<()>);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// The handle: ledger, spool and uploader of one database. Dropping it commits what was recorded and stops the threads.
pub struct Deliver {
    shared: Arc<Shared>,
    /// None once it stops; the writer ends when all that was sent is committed.
    records: Option<Sender<Message>>,
    places: (Sender<()>, Receiver<()>),
    /// A delivery was committed.
    progress: Receiver<()>,
    writer: Option<JoinHandle<()>>,
    wake_reporter: Sender<()>,
    /// Uploading threads, and channels that close when they have ended.
    uploaders: Vec<(JoinHandle<()>, Receiver<()>)>,
    uploads: bool,
    /// Of the configured targets.
    targets: Vec<Arc<TargetState>>,
    /// The endpoint can have line reports.
    reports: bool,
    run: Uuid,
    /// Held while a line is started: one at a time.
    starting: Mutex<()>,
    /// Of the lines that were resumed. Never held while something is waited for.
    journals: RwLock<HashMap<String, Arc<Journal>>>,
    /// Last, so that the next owner comes after the writer has ended.
    _lock: FileLock,
}

impl Deliver {
    /// Makes or opens the database, starts the writer and, with an endpoint, the uploader.
    pub fn open(config: Config) -> Result<Deliver> {
        Self::open_with(config, Limits::default())
    }

    /// [`Deliver::open`] with other times than the program's.
    pub fn open_with(config: Config, limits: Limits) -> Result<Deliver> {
        let clients = config.targets.iter().map(|target| Client::new(target, &limits)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = config.targets.iter().map(|target| target.name.clone()).collect();
        if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(Error::usage(format!("two targets are named \"{}\"", twice.1))
                .hint("give each a name of its own: its progress is kept under it"));
        }
        let path = config.database;
        let lock = lock(&path)?;
        let (database, salvaged) = Database::open_salvaged(&path, limits.pages, &names, limits.journal_slots)?;
        let unreadable = || format!("cannot read \"{}\"", path.display());
        let depth = database.depth().failed(unreadable)?;
        let book = Book::open(&database).failed(unreadable)?;
        let targets: Vec<Arc<TargetState>> = names.iter().map(|name| TargetState::new(name)).collect();
        let wake: Vec<Arc<Notify>> = targets.iter().map(|_| Arc::default()).collect();
        let shared = Arc::new(Shared {
            database: path.clone(),
            targets: RwLock::new(targets.clone()),
            wake: wake.clone(),
            ..Shared::default()
        });
        shared.show(&depth);
        if let Some(report) = &salvaged {
            add(&shared.salvaged, report.anomalies.recovered);
            add(&shared.lost, (report.lost.len() + report.unknown.len()) as u64);
            add(&shared.picture_failures, report.without_pictures.len() as u64);
        }
        shared.reports_waiting.store(book.waiting, Relaxed);
        if !names.is_empty() {
            for (name, of) in depth.targets.iter().filter(|(name, _)| !names.contains(name)) {
                warn!(
                    target = name,
                    waiting = of.waiting + of.dead,
                    "anomalies wait for a target that is not configured: configure it again, or give them up with `linesight spool purge --target`"
                );
            }
        }

        let (records, records_in) = bounded(RECORDS_WAITING);
        // each request waits for its outcome to be committed, so that this is never full
        let requests: usize = config.targets.iter().map(|target| target.parallel.max(1)).sum();
        let (outcomes, outcomes_in) = bounded(requests + 1);
        let (wake_reporter, wake_reporter_in) = bounded(1);
        let (progress_out, progress) = bounded(1);
        let review = config.targets.iter().zip(&clients).find(|(target, _)| target.name == REVIEW);
        let reporter = review.map(|(target, client)| client.reporter(target, &limits)).transpose()?.flatten();
        let reports = reporter.is_some();
        let reporter = reporter
            .map(|client| {
                Ok::<_, Error>(Reporter {
                    client,
                    reader: database::Reader::open(&path)?,
                    outcomes: outcomes.clone(),
                    wake: wake_reporter_in,
                    shared: shared.clone(),
                    limits: limits.clone(),
                    failures: 0,
                    said: false,
                })
            })
            .transpose()?;

        let version = database.version().failed(unreadable)?;
        let writer = Writer {
            database,
            run: config.run,
            fates: Fates(config.audit),
            records: records_in,
            outcomes: outcomes_in,
            wake_reporter: wake_reporter.clone(),
            progress: progress_out,
            shared: shared.clone(),
            limits: limits.clone(),
            book,
            depth,
            version,
            looked: Instant::now(),
            lines: BTreeSet::new(),
            retain_at: limits.retention.is_limited().then(Instant::now),
            held: false,
        };
        let writer = thread("deliver-writer", move || writer.run())?;
        let mut deliver = Deliver {
            shared,
            records: Some(records),
            places: bounded(ANOMALIES_WAITING),
            progress,
            writer: Some(writer),
            wake_reporter,
            uploaders: Vec::new(),
            uploads: !names.is_empty(),
            targets,
            reports,
            run: config.run,
            starting: Mutex::default(),
            journals: RwLock::default(),
            _lock: lock,
        };
        for (at, (client, target)) in clients.into_iter().zip(&config.targets).enumerate() {
            let pace = Pace { order: target.order, parallel: target.parallel.max(1) };
            let (state, wake) = (deliver.targets[at].clone(), wake[at].clone());
            let (reader, runtime) = (database::Reader::open(&path)?, uploader::runtime()?);
            let (outcomes, shared) = (outcomes.clone(), deliver.shared.clone());
            let uploader = Uploader::new(client, pace, reader, outcomes, wake, shared, state, limits.clone());
            deliver.start(&format!("deliver-{}", target.name), move || uploader.run(&runtime))?;
        }
        if let Some(reporter) = reporter {
            let runtime = uploader::runtime()?;
            deliver.start("deliver-report", move || reporter.run(&runtime))?;
        }
        Ok(deliver)
    }

    fn start(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let (ended, ended_in) = bounded::<()>(1);
        let run = move || {
            run();
            drop(ended);
        };
        self.uploaders.push((thread(name, run)?, ended_in));
        Ok(())
    }

    /// Starts a line whose part numbers go on over runs: brings over what an unclean stop left in its journal, and says which
    /// number comes next. To be called before the line's first [`Deliver::record`]; waits for the disk. For a line that is
    /// running already it only says the next number (one more than the highest recorded).
    pub fn resume(&self, line: &str) -> Result<Resumed> {
        let _one = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(journal) = self.journal(line) {
            return Ok(Resumed { next_part: journal.next(), interrupted: None });
        }
        let (done, answer) = bounded(1);
        self.send_message(Message::Resume { line: line.to_owned(), done }, true)?;
        let (journal, resumed) = answer.recv().map_err(|_| self.shared.stopped())??;
        self.journals.write().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned(), journal);
        Ok(resumed)
    }

    fn journal(&self, line: &str) -> Option<Arc<Journal>> {
        self.journals.read().unwrap_or_else(PoisonError::into_inner).get(line).cloned()
    }

    /// Hands a part over; it is committed soon after, an anomaly together with every row before it. Waits only while the
    /// channel or the journal is full and the writer makes room. When it returns Ok, a part of a line that was resumed is in the line's journal: it is safe against the
    /// end of this process, and may be answered. An error means that this record was not taken (the cause is in it): nothing
    /// can be written, and the journal is full or there is none.
    pub fn record(&self, mut record: Record) -> Result<()> {
        let at = Timestamp::now();
        if let Some(anomaly) = &mut record.anomaly {
            finite(&mut anomaly.event);
        }
        let Some(journal) = self.journal(&record.row.line) else { return self.hand_over(record, at, None) };
        let mut inner = journal.lock();
        let mut waited = false;
        let seq = loop {
            let event = record.anomaly.as_ref().map(|anomaly| &anomaly.event);
            if let Some(seq) = journal.put(&mut inner, self.run, at, &record.row, event)? {
                break seq;
            }
            // a writer that cannot write does not make room; one that is only slow does
            self.shared.check().map_err(|cause| journal.full().because(cause))?;
            if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(self.shared.stopped());
            }
            if !std::mem::replace(&mut waited, true) {
                add(&self.shared.channel_waits, 1);
            }
            inner = journal.wait(inner, LOOK);
        };
        self.hand_over(record, at, Some((journal.clone(), seq)))
    }

    fn hand_over(&self, record: Record, at: Timestamp, entry: Option<(Arc<Journal>, u64)>) -> Result<()> {
        let kept = entry.is_some();
        let place = match record.anomaly {
            None => None,
            Some(_) => {
                self.send(&self.places.0, (), kept)?;
                Some(Place(self.places.1.clone()))
            }
        };
        self.send_message(Message::Record(Box::new(Taken { record, at, place, entry })), kept)
    }

    /// Stores a line report and has it sent. `run`, `seq`, `rows` and `chain` are filled in here; `calibration` may be passed
    /// each time: it is sent once for each model, run and line. Without an endpoint, or with one that has a path of its own,
    /// nothing happens. While the database cannot be written reports are dropped and counted; never waits for the disk.
    pub fn report(&self, report: LineReport) {
        let sent = match &self.records {
            Some(records) if self.reports => records.try_send(Message::Report(Box::new(report))).is_ok(),
            _ => !self.reports,
        };
        if !sent {
            add(&self.shared.reports_dropped, 1);
        }
    }

    /// Returns when all that was recorded so far is on the disk.
    pub fn flush(&self) -> Result<()> {
        let (done, answer) = bounded(1);
        self.send_message(Message::Flush(done), false)?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => self.shared.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.shared.stopped()),
            }
        }
    }

    /// Counters and the state of the spool.
    pub fn status(&self) -> Status {
        let s = &self.shared;
        let known = s.targets.read().unwrap_or_else(PoisonError::into_inner).clone();
        let targets: Vec<TargetStatus> = known.iter().map(|target| target.status()).collect();
        let sum = |of: fn(&TargetStatus) -> u64| targets.iter().map(of).sum();
        Status {
            recorded: s.recorded.load(Relaxed),
            spooled: s.spooled.load(Relaxed),
            delivered: s.delivered.load(Relaxed),
            waiting: s.waiting.load(Relaxed),
            set_aside: sum(|target| target.depth.set_aside),
            dead: s.dead.load(Relaxed),
            dropped: s.dropped.load(Relaxed),
            pictures_dropped: s.pictures_dropped.load(Relaxed),
            salvaged: s.salvaged.load(Relaxed),
            lost: s.lost.load(Relaxed),
            spool_bytes: s.spool_bytes.load(Relaxed),
            attempts: sum(|target| target.attempts),
            bytes_uploaded: s.bytes_uploaded.load(Relaxed),
            last_error: targets.iter().find_map(|target| target.last_error.clone()),
            channel_waits: s.channel_waits.load(Relaxed),
            picture_failures: s.picture_failures.load(Relaxed),
            ledger_conflicts: s.ledger_conflicts.load(Relaxed),
            reports_waiting: s.reports_waiting.load(Relaxed),
            reports_delivered: s.reports_delivered.load(Relaxed),
            reports_dropped: s.reports_dropped.load(Relaxed),
            report_bytes: s.report_bytes.load(Relaxed),
            retained_away: s.retained_away.load(Relaxed),
            write_error: Shared::get(&s.write_error),
            targets,
        }
    }

    /// Commits everything, waits until spool and line reports are delivered or nothing was for `patience`, and stops the
    /// threads; lines that were resumed are marked as cleanly stopped.
    /// What still waits stays on the disk, for the next run. Without an endpoint it does not wait.
    pub fn drain(mut self, patience: Duration) -> Result<Drained> {
        let mut since = Instant::now();
        let mut progress = |most: Duration| {
            let left = patience.saturating_sub(since.elapsed());
            match self.progress.recv_timeout(left.min(most)) {
                Ok(()) => since = Instant::now(),
                Err(_) if left.is_zero() => return false,
                Err(_) => {}
            }
            true
        };
        // on a full disk deliveries may make room
        while let Err(e) = self.flush() {
            if !self.uploads || !progress(LOOK) {
                return Err(e);
            }
        }
        let owed = || self.targets.iter().map(|target| target.depth().waiting).sum::<u64>();
        let left = || owed() + self.shared.reports_waiting.load(Relaxed) * u64::from(self.reports);
        while self.uploads && left() > 0 && progress(patience) {}
        self.stop();
        let Status { delivered, waiting, bytes_uploaded, last_error, mut targets, .. } = self.status();
        if targets.len() < 2 {
            targets.clear();
        }
        let dead = self.shared.died.load(Relaxed);
        Ok(Drained { delivered, waiting, dead, bytes_uploaded, last_error, targets })
    }

    fn send_message(&self, message: Message, kept: bool) -> Result<()> {
        match &self.records {
            Some(records) => self.send(records, message, kept),
            None => Err(self.shared.stopped()),
        }
    }

    /// `kept`: it is in a journal, and taken although nothing can be written.
    fn send<T>(&self, channel: &Sender<T>, value: T, kept: bool) -> Result<()> {
        if !kept {
            self.shared.check()?;
        }
        let mut value = match channel.try_send(value) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(value)) => value,
            Err(TrySendError::Disconnected(_)) => return Err(self.shared.stopped()),
        };
        add(&self.shared.channel_waits, 1);
        loop {
            match channel.send_timeout(value, LOOK) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(back)) => value = back,
                Err(SendTimeoutError::Disconnected(_)) => return Err(self.shared.stopped()),
            }
            if !kept {
                self.shared.check()?;
            }
            if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(self.shared.stopped());
            }
        }
    }

    /// Uploader first, so that its last outcome is committed; then the writer, which commits what was recorded.
    fn stop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        self.shared.wake_all();
        let _ = self.wake_reporter.try_send(());
        let until = Instant::now() + STOP_PATIENCE;
        for (thread, ended) in self.uploaders.drain(..) {
            if ended.recv_deadline(until) == Err(RecvTimeoutError::Disconnected) {
                let _ = thread.join();
            }
        }
        self.records = None;
        if let Some(thread) = self.writer.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Deliver {
    fn drop(&mut self) {
        self.stop();
    }
}

/// JSON has no word for what is not finite; a receiver would refuse the event for ever.
fn finite(event: &mut Event) {
    for number in [&mut event.score, &mut event.confidence, &mut event.threshold] {
        if !number.is_finite() {
            event.reasons.push(format!("a score was {number}"));
            *number = if *number == f32::NEG_INFINITY { f32::MIN } else { f32::MAX };
        }
    }
    event.regions.iter_mut().filter(|r| !r.score.is_finite()).for_each(|r| r.score = f32::MAX);
}

/// The token in a file, without the white space around it.
pub fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .usage(|| format!("token file \"{}\" cannot be read", path.display()))
        .map_err(|e| e.hint("name a file that holds the endpoint's token and nothing else"))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Error::usage(format!("token file \"{}\" is empty", path.display()))
            .hint("name a file that holds the endpoint's token and nothing else"));
    }
    Ok(token.to_owned())
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run).failed(|| format!("cannot start the thread \"{name}\""))
}

/// Locks `<database>.lock`, making its folder.
fn lock(database: &Path) -> Result<FileLock> {
    if let Some(folder) = database.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).failed(|| format!("cannot make the folder \"{}\"", folder.display()))?;
    }
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    FileLock::take(&path).failed(|| format!("cannot lock \"{}\"", path.display()))?.ok_or_else(|| {
        Error::failed(format!("\"{}\" is in use", database.display()))
            .hint("another linesight has it open: stop that one, or give this one a database of its own")
    })
}
