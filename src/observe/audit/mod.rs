//! The audit log: an append-only file of JSON lines that says who did what to this plant and what became of each anomaly.
//!
//! Threads: "audit" owns the file; everybody else holds an [`Audit`] and never waits: [`Audit::say`] puts the entry on a
//! channel, and what does not fit is counted. Commands of other processes append through [`note`].
//!
//! Invariants, each with the test that holds it (tests/audit.rs unless another file is named):
//! 1. Whatever is in the file is whole lines; a line that a kill tore is ended at the next start, which is said
//!    (`a_torn_line_is_ended_and_said`, `killed_at_any_moment_lines_are_whole`).
//! 2. Numbers go on without gaps over files, restarts and processes, but for entries that were lost, and those are counted,
//!    in the metrics and in the log itself (`numbers_go_on_over_files_and_processes`, `a_full_disk_loses_only_what_it_says`).
//! 3. `say` never waits (`nobody_waits_for_a_log_that_hangs`).
//! 4. At most `keep` full files are kept, none much larger than `max_bytes` (`full_files_move_on`).
//!
//! What was written survives the end of the process at once and the end of the machine after [`SYNC_EVERY`].

mod entry;
mod file;

use super::metrics::{Extra, Kind};
use crate::error::{Context, Error, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
pub use entry::{Change, Entry, Fate, Line};
use file::Appender;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Megabytes of a full file, and how many of them are kept, where the configuration does not say otherwise.
pub const MAX_MB: u32 = 64;
pub const KEEP: u32 = 10;
/// Entries that may wait for the disk.
const WAITING: usize = 4096;
/// Most entries of one write.
const BATCH: usize = 256;
/// How often what was written is made to survive the end of the machine.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How often a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Losses are said this often.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long the end waits for a disk that hangs.
const LAST: Duration = Duration::from_secs(5);

/// Where the log is and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub file: PathBuf,
    /// A file that would become larger moves on to `FILE.1`.
    pub max_bytes: u64,
    /// How many full files are kept.
    pub keep: u32,
}

impl Options {
    /// A log of the usual size.
    pub fn new(file: PathBuf) -> Options {
        Options { file, max_bytes: u64::from(MAX_MB) << 20, keep: KEEP }
    }

    /// The log of a database when the configuration names none.
    pub fn beside(database: &Path) -> PathBuf {
        let stem = database.file_stem().unwrap_or_default().to_string_lossy();
        database.with_file_name(format!("{stem}.audit.jsonl"))
    }

    fn cannot(&self, e: std::io::Error) -> Error {
        let message = format!("audit log \"{}\" cannot be written", self.file.display());
        let error = match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::TimedOut => Error::failed(message),
            _ => Error::usage(message),
        };
        error.because(e).hint(
            "let [audit] in line.toml name a file in a folder that this user may write to, or \"off\"; free space if the disk is full",
        )
    }
}

/// An entry on its way to the file.
#[derive(Debug, Clone)]
struct Said {
    at: Timestamp,
    who: Arc<str>,
    entry: Entry,
}

impl Said {
    fn now(who: &str, entry: Entry) -> Self {
        Said { at: Timestamp::now(), who: who.into(), entry }
    }
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
    bytes: AtomicU64,
    failing: AtomicBool,
}

/// What the log did since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Entries written.
    pub written: u64,
    /// Entries that could not be written and will not be.
    pub lost: u64,
    pub bytes: u64,
    /// Nothing can be written at the moment.
    pub failing: bool,
}

/// The handle of everybody who has something to say. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    entries: Sender<Said>,
    counts: Arc<Counts>,
    who: Arc<str>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("who", &self.who).finish()
    }
}

impl Audit {
    /// Writes an entry soon. Never waits: what cannot be taken is counted, and said in the log.
    pub fn say(&self, entry: Entry) {
        let said = Said { at: Timestamp::now(), who: self.who.clone(), entry };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.entries.try_send(said) {
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }

    /// A handle for what somebody else makes this process do.
    pub fn by(&self, who: &str) -> Audit {
        Audit { who: who.into(), ..self.clone() }
    }

    pub fn status(&self) -> Status {
        let c = &self.counts;
        Status {
            written: c.written.load(Relaxed),
            lost: c.lost.load(Relaxed),
            bytes: c.bytes.load(Relaxed),
            failing: c.failing.load(Relaxed),
        }
    }

    /// Its figures, for the metrics.
    pub fn metrics(&self) -> Vec<Extra> {
        let one = |name, help, kind, read: fn(Status) -> f64| {
            let audit = self.clone();
            Extra { name, help, kind, labels: Vec::new(), read: Box::new(move || read(audit.status())) }
        };
        vec![
            one("linesight_audit_entries", "Entries written to the audit log", Kind::Counter, |s| s.written as f64),
            one("linesight_audit_entries_lost", "Entries that the audit log could not take", Kind::Counter, |s| {
                s.lost as f64
            }),
            one("linesight_audit_bytes", "Bytes written to the audit log", Kind::Counter, |s| s.bytes as f64),
            one("linesight_audit_write_failing", "1 while the audit log cannot be written", Kind::Gauge, |s| {
                f64::from(u8::from(s.failing))
            }),
        ]
    }
}

/// The log of this process; who opens it closes it, after everybody else has said their last.
pub struct AuditLog {
    audit: Audit,
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl AuditLog {
    /// Opens or makes the file, ends a torn line, and starts the thread. A full disk is no reason to refuse.
    pub fn open(options: Options) -> Result<AuditLog> {
        let mut appender = Appender::new(options.clone());
        match appender.open() {
            Err(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
            other => other.map_err(|e| options.cannot(e))?,
        }
        let (entries, entries_in) = bounded(WAITING);
        let (stop, stop_in) = bounded(1);
        let (ended_out, ended) = bounded::<()>(1);
        let counts = Arc::new(Counts::default());
        let audit = Audit { entries, counts: counts.clone(), who: user().into() };
        let writer = Writer {
            appender,
            options,
            entries: entries_in,
            stop: stop_in,
            counts,
            waiting: VecDeque::new(),
            said_lost: 0,
            warned_lost: 0,
            warned_at: None,
            synced: Instant::now(),
            dirty: false,
        };
        let run = move || {
            writer.run();
            drop(ended_out);
        };
        let thread = std::thread::Builder::new().name("audit".into()).spawn(run);
        let thread = thread.failed(|| "no thread for the audit log")?;
        Ok(AuditLog { audit, stop: Some(stop), ended, thread: Some(thread) })
    }

    /// The handle of the user that runs the process.
    pub fn handle(&self) -> Audit {
        self.audit.clone()
    }

    /// Writes what was said and ends. What a disk that hangs does not take in time is counted and said.
    pub fn close(mut self) -> Status {
        self.shut_down();
        self.audit.status()
    }

    fn shut_down(&mut self) {
        let Some(stop) = self.stop.take() else { return };
        drop(stop);
        if self.ended.recv_timeout(LAST) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the audit log's disk does not answer; the last entries may be missing");
            return;
        }
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the audit log's thread panicked; this is a bug in linesight");
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Appends entries from a process that does not run the lines, for example a command that changes something.
pub fn note(options: &Options, who: &str, entries: Vec<Entry>) -> Result<()> {
    let said: Vec<Said> = entries.into_iter().map(|entry| Said::now(who, entry)).collect();
    let mut appender = Appender::new(options.clone());
    appender.append(&said).and_then(|_| appender.sync()).map_err(|e| options.cannot(e))
}

/// Whether the log could be written; makes nothing.
pub fn check(options: &Options) -> Result<()> {
    Appender::new(options.clone()).check().map_err(|e| options.cannot(e))
}

/// The user that runs this process, and who became it by sudo.
pub fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let name = std::fs::read_to_string("/etc/passwd").ok().and_then(|text| {
        let named = |l: &str| {
            let mut fields = l.split(':');
            let name = fields.next()?.to_owned();
            (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
        };
        text.lines().find_map(named)
    });
    let name = name.unwrap_or_else(|| format!("uid {uid}"));
    match std::env::var("SUDO_USER") {
        Ok(by) if !by.is_empty() && by != name => format!("{name} (sudo by {by})"),
        _ => name,
    }
}

struct Writer {
    appender: Appender,
    options: Options,
    entries: Receiver<Said>,
    /// Disconnected: write what was said, and end.
    stop: Receiver<()>,
    counts: Arc<Counts>,
    /// Taken and not written yet.
    waiting: VecDeque<Said>,
    /// Losses that stand in the file, and those that were warned of.
    said_lost: u64,
    warned_lost: u64,
    warned_at: Option<Instant>,
    synced: Instant,
    dirty: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let failing = self.counts.failing.load(Relaxed);
            let mut ending = false;
            if failing {
                // the channel fills up meanwhile
                ending = self.stop.recv_timeout(AGAIN) != Err(RecvTimeoutError::Timeout);
            } else {
                let wait = if self.dirty { SYNC_EVERY.saturating_sub(self.synced.elapsed()) } else { SAY_EVERY };
                crossbeam_channel::select! {
                    recv(self.entries) -> said => self.waiting.extend(said),
                    recv(self.stop) -> _ => ending = true,
                    default(wait) => {}
                }
            }
            loop {
                let room = BATCH.saturating_sub(self.waiting.len());
                self.waiting.extend(self.entries.try_iter().take(room));
                if self.waiting.is_empty() && !self.has_losses() || !self.write() || self.entries.is_empty() {
                    break;
                }
            }
            self.warn_of_losses(ending);
            if self.dirty && (ending || self.synced.elapsed() >= SYNC_EVERY) {
                self.sync();
            }
            if ending {
                return self.end();
            }
        }
    }

    fn has_losses(&self) -> bool {
        self.counts.lost.load(Relaxed) > self.said_lost
    }

    /// Whether what waits is written now.
    fn write(&mut self) -> bool {
        let lost = self.counts.lost.load(Relaxed);
        if lost > self.said_lost {
            self.waiting.push_back(Said::now(file::ITSELF, Entry::EntriesLost { entries: lost - self.said_lost }));
        }
        let entries = self.waiting.make_contiguous();
        match self.appender.append(entries) {
            Ok(done) => {
                let file = self.options.file.display();
                if let Some(bytes) = done.torn {
                    tracing::warn!("the last line of audit log \"{file}\" had no end ({bytes} bytes): it was ended");
                }
                if let Some(removed) = done.removed {
                    tracing::info!("audit log: the oldest file gave way: what was \"{}\" is gone", removed.display());
                }
                if self.counts.failing.swap(false, Relaxed) {
                    tracing::warn!("audit log \"{file}\" can be written again");
                }
                self.counts.written.fetch_add(self.waiting.len() as u64, Relaxed);
                self.counts.bytes.fetch_add(done.bytes, Relaxed);
                self.waiting.clear();
                self.said_lost = lost;
                self.dirty = true;
                true
            }
            Err(e) => {
                if lost > self.said_lost {
                    self.waiting.pop_back();
                }
                if !self.counts.failing.swap(true, Relaxed) {
                    let e = self.options.cannot(e);
                    let hint = e.hint_text().unwrap_or_default();
                    tracing::error!("{e} ({hint}); {WAITING} entries are kept until it can");
                }
                false
            }
        }
    }

    fn warn_of_losses(&mut self, ending: bool) {
        let lost = self.counts.lost.load(Relaxed);
        let due = self.warned_at.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if lost > self.warned_lost && (due || ending) {
            let file = self.options.file.display();
            tracing::error!("{} entries are missing in audit log \"{file}\"", lost - self.warned_lost);
            (self.warned_lost, self.warned_at) = (lost, Some(Instant::now()));
        }
    }

    fn sync(&mut self) {
        if let Err(e) = self.appender.sync() {
            tracing::warn!("audit log \"{}\" may not survive a power cut: {e}", self.options.file.display());
        }
        (self.dirty, self.synced) = (false, Instant::now());
    }

    fn end(mut self) {
        let left = (self.waiting.len() + self.entries.len()) as u64;
        if left > 0 {
            self.counts.lost.fetch_add(left, Relaxed);
            self.warn_of_losses(true);
        }
    }
}
