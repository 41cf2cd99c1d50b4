//! From a verdict to the review endpoint: the ledger (one row a part) and the spool (anomalies that wait for delivery) in
//! one SQLite database, and the uploader that empties the spool.
//!
//! Threads: "deliver-writer" ([`writer`]) owns the only connection that writes; "deliver-upload" ([`uploader`]) reads the
//! spool through a connection of its own and reports each outcome to the writer. [`Deliver`] is the handle of the line's
//! thread: it puts records on a bounded channel. When that is full the caller waits, and the wait is counted.
//!
//! Invariants, each with the test that holds it:
//! 1. What was committed survives a SIGKILL at any moment and is delivered later under the same id:
//!    `killed_at_any_moment_nothing_committed_is_lost` (tests/delivery.rs).
//! 2. A failed write refuses new records with its cause, keeps those it took, and goes on when the disk has room again:
//!    `full_disk_refuses_and_recovers` (tests/delivery.rs).
//! 3. One process at a time has the database: `two_owners_are_refused`.
//! 4. `drain` returns when the spool is empty, or when nothing was delivered for its patience:
//!    `refused_connection_keeps_everything` (tests/delivery.rs).
//! 5. No secret is printed: `debug_of_an_endpoint_hides_secrets`.

mod database;
mod picture;
#[cfg(test)]
mod spool_model;
#[cfg(test)]
mod tests;
mod uploader;
mod wire;
mod writer;

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, TrySendError, bounded};
use jiff::Timestamp;
use url::Url;
use uuid::Uuid;

use crate::error::{Context, Error, Result};
use crate::event::{Event, LedgerRow};

use database::Database;
use uploader::Uploader;
use writer::{Message, Taken, Writer};

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

/// Where anomalies go.
#[derive(Clone)]
pub struct Endpoint {
    /// `http` or `https`. A URL without a path, or with one that ends in `/`, is a base: anomalies are posted to
    /// `api/v1/anomalies` below it. Any other path is used as it stands (`http://host/hook`). Proxies named in
    /// the environment are used, but never for this machine's own addresses.
    pub url: Url,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<String>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("Endpoint").field("url", &wire::shown(&self.url)).field("token", &token).finish()
    }
}

/// What [`Deliver::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The SQLite file; made, with its folder, when it is not there. `<database>.lock` beside it is locked meanwhile.
    pub database: PathBuf,
    /// The run of this process: a recording that is inspected twice is two runs.
    pub run: Uuid,
    /// None: anomalies stay in the spool.
    pub endpoint: Option<Endpoint>,
}

/// The times that govern delivery. Tests shrink them; the program uses the default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A ledger row is committed at most this long after it was recorded.
    pub batch: Duration,
    /// The pause after the first failure; it doubles with each further one, with jitter.
    pub retry_first: Duration,
    /// The longest pause, and the pace for anomalies that the endpoint refuses.
    pub retry_slowest: Duration,
    /// The longest that a `Retry-After` is obeyed.
    pub retry_after_most: Duration,
    /// Time for a connection to stand.
    pub connect: Duration,
    /// Time for a whole request with its response.
    pub request: Duration,
    /// How often a failed write is tried again.
    pub write_again: Duration,
    /// Bytes left free on the disk and in the file: with less, records are refused, so that there is room to record deliveries.
    pub reserve: u64,
    /// Most pages of 4096 bytes that the database may have; None: as many as the disk holds.
    pub pages: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            batch: Duration::from_millis(200),
            retry_first: Duration::from_millis(200),
            retry_slowest: Duration::from_secs(30),
            retry_after_most: Duration::from_secs(300),
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            write_again: Duration::from_secs(1),
            reserve: 32 << 20,
            pages: None,
        }
    }
}

/// Counters since the database was opened, except `waiting` and `set_aside`, which are what the spool holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Ledger rows committed.
    pub recorded: u64,
    /// Anomalies committed to the spool.
    pub spooled: u64,
    /// Anomalies acknowledged with a 2xx, those of earlier runs included.
    pub delivered: u64,
    /// Anomalies in the spool.
    pub waiting: u64,
    /// Those of `waiting` that the endpoint refuses; they are tried at the slowest pace.
    pub set_aside: u64,
    /// Requests made.
    pub attempts: u64,
    /// HTTP body bytes acknowledged with a 2xx.
    pub bytes_uploaded: u64,
    /// Why the latest failed attempt failed; none once the spool is empty.
    pub last_error: Option<String>,
    /// Times a caller waited because a channel was full.
    pub channel_waits: u64,
    /// Anomalies that left with placeholder pictures.
    pub picture_failures: u64,
    /// Rows left out because the ledger already had that part of the run.
    pub ledger_conflicts: u64,
    /// Why nothing can be written at the moment.
    pub write_error: Option<String>,
}

/// What [`Deliver::drain`] achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    pub delivered: u64,
    pub waiting: u64,
    pub bytes_uploaded: u64,
    pub last_error: Option<String>,
}

/// What the threads tell each other; the two locks are never held together.
#[derive(Default)]
struct Shared {
    recorded: AtomicU64,
    spooled: AtomicU64,
    delivered: AtomicU64,
    waiting: AtomicU64,
    set_aside: AtomicU64,
    attempts: AtomicU64,
    bytes_uploaded: AtomicU64,
    channel_waits: AtomicU64,
    picture_failures: AtomicU64,
    ledger_conflicts: AtomicU64,
    stopping: AtomicBool,
    last_error: Mutex<Option<String>>,
    write_error: Mutex<Option<String>>,
    /// For messages.
    database: PathBuf,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    fn set(slot: &Mutex<Option<String>>, text: Option<String>) {
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn get(slot: &Mutex<Option<String>>) -> Option<String> {
        slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error of a writer that cannot write, if it cannot.
    fn check(&self) -> Result<()> {
        match Self::get(&self.write_error) {
            None => Ok(()),
            Some(cause) => Err(Error::failed(format!("cannot write \"{}\"", self.database.display()))
                .because(cause)
                .hint("free space on that disk or mend it; nothing that was accepted is given up while this runs")),
        }
    }

    fn stopped(&self) -> Error {
        Error::failed(format!("the writer of \"{}\" has stopped", self.database.display()))
    }
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
    wake: Sender<()>,
    writer: Option<JoinHandle<()>>,
    uploader: Option<(JoinHandle<()>, Receiver<()>)>,
    uploads: bool,
    /// Last, so that the next owner comes after the writer has ended.
    _lock: File,
}

impl Deliver {
    /// Makes or opens the database, starts the writer and, with an endpoint, the uploader.
    pub fn open(config: Config) -> Result<Deliver> {
        Self::open_with(config, Limits::default())
    }

    /// [`Deliver::open`] with other times than the program's.
    pub fn open_with(config: Config, limits: Limits) -> Result<Deliver> {
        let sender = config.endpoint.as_ref().map(|endpoint| wire::Client::new(endpoint, &limits)).transpose()?;
        let path = config.database;
        let lock = lock(&path)?;
        let database = Database::open(&path, limits.pages)?;
        let shared = Arc::new(Shared { database: path.clone(), ..Shared::default() });
        let (waiting, aside) = database.depth().failed(|| format!("cannot read \"{}\"", path.display()))?;
        shared.waiting.store(waiting, Relaxed);
        shared.set_aside.store(aside, Relaxed);

        let (records, records_in) = bounded(RECORDS_WAITING);
        let (outcomes, outcomes_in) = bounded(1);
        let (wake, wake_in) = bounded(1);
        let (progress_out, progress) = bounded(1);
        let reader = sender.is_some().then(|| database::Reader::open(&path)).transpose()?;

        let writer = Writer {
            database,
            run: config.run,
            records: records_in,
            outcomes: outcomes_in,
            wake: wake.clone(),
            progress: progress_out,
            shared: shared.clone(),
            limits: limits.clone(),
        };
        let writer = thread("deliver-writer", move || writer.run())?;
        let mut deliver = Deliver {
            shared,
            records: Some(records),
            places: bounded(ANOMALIES_WAITING),
            progress,
            wake,
            writer: Some(writer),
            uploader: None,
            uploads: sender.is_some(),
            _lock: lock,
        };
        if let (Some(client), Some(reader)) = (sender, reader) {
            let uploader = Uploader::new(client, reader, outcomes, wake_in, deliver.shared.clone(), limits);
            let (ended, ended_in) = bounded::<()>(1);
            let run = move || {
                uploader.run();
                drop(ended);
            };
            deliver.uploader = Some((thread("deliver-upload", run)?, ended_in));
        }
        Ok(deliver)
    }

    /// Hands a part over; it is committed soon after, an anomaly together with every row before it. Waits only while the
    /// channel is full. An error means that this record was not taken because nothing can be written (the cause is in it).
    pub fn record(&self, record: Record) -> Result<()> {
        let at = Timestamp::now();
        let place = match record.anomaly {
            None => None,
            Some(_) => {
                self.send(&self.places.0, ())?;
                Some(Place(self.places.1.clone()))
            }
        };
        self.send_record(Message::Record(Box::new(Taken { record, at, place })))
    }

    /// Returns when all that was recorded so far is on the disk.
    pub fn flush(&self) -> Result<()> {
        let (done, answer) = bounded(1);
        self.send_record(Message::Flush(done))?;
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
        Status {
            recorded: s.recorded.load(Relaxed),
            spooled: s.spooled.load(Relaxed),
            delivered: s.delivered.load(Relaxed),
            waiting: s.waiting.load(Relaxed),
            set_aside: s.set_aside.load(Relaxed),
            attempts: s.attempts.load(Relaxed),
            bytes_uploaded: s.bytes_uploaded.load(Relaxed),
            last_error: Shared::get(&s.last_error),
            channel_waits: s.channel_waits.load(Relaxed),
            picture_failures: s.picture_failures.load(Relaxed),
            ledger_conflicts: s.ledger_conflicts.load(Relaxed),
            write_error: Shared::get(&s.write_error),
        }
    }

    /// Commits everything, waits until the spool is empty or nothing was delivered for `patience`, and stops the threads.
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
        while self.uploads && self.shared.waiting.load(Relaxed) > 0 && progress(patience) {}
        self.stop();
        let Status { delivered, waiting, bytes_uploaded, last_error, .. } = self.status();
        Ok(Drained { delivered, waiting, bytes_uploaded, last_error })
    }

    fn send_record(&self, message: Message) -> Result<()> {
        match &self.records {
            Some(records) => self.send(records, message),
            None => Err(self.shared.stopped()),
        }
    }

    fn send<T>(&self, channel: &Sender<T>, value: T) -> Result<()> {
        self.shared.check()?;
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
            self.shared.check()?;
            if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(self.shared.stopped());
            }
        }
    }

    /// Uploader first, so that its last outcome is committed; then the writer, which commits what was recorded.
    fn stop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        let _ = self.wake.try_send(());
        if let Some((thread, ended)) = self.uploader.take()
            && ended.recv_timeout(STOP_PATIENCE) == Err(RecvTimeoutError::Disconnected)
        {
            let _ = thread.join();
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

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run).failed(|| format!("cannot start the thread \"{name}\""))
}

/// Locks `<database>.lock`. The system lets go of it when the process ends, however it ends.
fn lock(database: &Path) -> Result<File> {
    if let Some(folder) = database.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).failed(|| format!("cannot make the folder \"{}\"", folder.display()))?;
    }
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.failed(|| format!("cannot open \"{}\"", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::failed(format!("\"{}\" is in use", database.display()))
            .hint("another linesight has it open: stop that one, or give this one a database of its own")),
        Err(TryLockError::Error(e)) => Err(Error::failed(format!("cannot lock \"{}\"", path.display())).because(e)),
    }
}
