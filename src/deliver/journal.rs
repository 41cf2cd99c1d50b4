//! The journal of a line: each verdict, written before it is answered. A preallocated file of fixed-size slots beside the
//! database; one `pwrite` for each verdict on the line's own thread, into the page cache, without a sync. It survives the
//! process, not the machine; what of it the database lacks is brought over at the next start.
//!
//! Owned by the line's thread (which puts entries) and the writer (which opens it, and says up to where the database has
//! them, so that slots are free again).
//!
//! Invariants, each with the test that holds it:
//! 1. What [`Journal::put`] has returned is found by the next [`Journal::open`]; a torn or damaged entry never is:
//!    `torn_entries_stay_dead`.
//! 2. A full disk does not stop it; it takes no more when all its slots hold entries that the database lacks:
//!    `it_refuses_when_it_is_full`.
//! 3. No file, whatever is in it, makes it panic: `any_file_is_survived`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;
use uuid::Uuid;

use crate::error::{Context, Error, Result};
use crate::event::{Event, LedgerRow, Verdict};
use crate::hex::hex;

/// Bytes of a slot. A good part takes one, an anomaly a few.
pub(super) const SLOT: usize = 512;
/// Slots of a journal: 4 MiB, over two minutes of 60 parts a second that the database could not take.
pub(super) const SLOTS: u32 = 8192;
/// The most slots of one entry; an event that needs more goes without its regions.
const ENTRY_SLOTS: usize = 32;
/// Opens the file, and each entry. The control byte cannot be in JSON, so no entry's text looks like an entry.
const MAGIC: [u8; 4] = [0x1e, b'L', b'S', b'J'];
/// Magic, length of the JSON, sequence number, the file's nonce, CRC of all these and the JSON.
const HEAD: usize = 4 + 4 + 8 + 8 + 4;

/// A verdict as it was put.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Entry {
    #[serde(skip)]
    pub seq: u64,
    pub run: Uuid,
    pub at: Timestamp,
    #[serde(deserialize_with = "RowFields::deserialize")]
    pub row: LedgerRow,
    pub event: Option<Event>,
}

#[derive(Serialize)]
struct EntryRef<'a> {
    run: Uuid,
    at: Timestamp,
    #[serde(serialize_with = "row_ref")]
    row: &'a LedgerRow,
    event: Option<&'a Event>,
}

/// [`LedgerRow`], with numbers that need not be finite.
#[derive(Serialize, Deserialize)]
#[serde(remote = "LedgerRow")]
struct RowFields {
    line: String,
    part: u64,
    frame: u64,
    captured_at: Timestamp,
    verdict: Verdict,
    #[serde(deserialize_with = "number")]
    score: f32,
    #[serde(deserialize_with = "number")]
    confidence: f32,
    #[serde(deserialize_with = "number")]
    latency_ms: f32,
    model: String,
    event: Option<Uuid>,
    frames: u32,
    reasons: Vec<String>,
    late_ms: Option<f32>,
    lot: Option<String>,
    serial: Option<String>,
}

fn row_ref<S: serde::Serializer>(row: &&LedgerRow, to: S) -> std::result::Result<S::Ok, S::Error> {
    RowFields::serialize(row, to)
}

/// JSON has no word for NaN and writes null.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<f32, D::Error> {
    Option::<f32>::deserialize(from).map(|n| n.unwrap_or(f32::NAN))
}

/// What was in a journal's file.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// None: there was no file, or its head cannot be read.
    pub nonce: Option<u64>,
    /// Those with the nonce that was asked for, in the order they were put. Old ones, which the database has, are among them.
    pub entries: Vec<Entry>,
}

/// Slots that hold one entry.
#[derive(Debug, Clone, Copy)]
struct Span {
    seq: u64,
    start: u32,
    count: u32,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// Entries that the database may lack, oldest first; they never overlap.
    used: VecDeque<Span>,
    seq: u64,
    /// The number after the highest one put.
    next: u64,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Journal {
    pub line: String,
    file: File,
    path: PathBuf,
    slots: u32,
    nonce: u64,
    inner: Mutex<Inner>,
    /// The database has taken more.
    room: Condvar,
    /// The database has every entry up to this one.
    committed: AtomicU64,
    /// Part numbers from here on are not reserved yet.
    reserved: AtomicU64,
}

impl Journal {
    /// Where a line's journal is: beside the database, with as much of the line's name as a file name can have.
    pub fn path(database: &Path, line: &str) -> PathBuf {
        let plain: String = line.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
        let sum = Sha256::digest(line.as_bytes());
        let mut name = database.as_os_str().to_owned();
        name.push(format!(".{plain}-{}.journal", hex(&sum[..4])));
        PathBuf::from(name)
    }

    /// Reads what is there of the journal with this nonce.
    pub fn read(path: &Path, nonce: Option<u64>) -> Result<Found> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::default()),
            Err(e) => return Err(Error::failed(format!("cannot read \"{}\"", path.display())).because(e)),
        };
        Ok(scan(&bytes, nonce))
    }

    /// Opens the file that [`Journal::read`] has found to have this nonce, or makes a new one.
    pub fn open(path: &Path, line: &str, nonce: Option<u64>, slots: u32) -> Result<Journal> {
        let doing = || format!("cannot prepare the journal \"{}\"", path.display());
        let nonce = match nonce {
            Some(nonce) => nonce,
            None => make(path, slots).failed(doing)?,
        };
        let file = OpenOptions::new().write(true).open(path).failed(doing)?;
        let length = file.metadata().failed(doing)?.len();
        // the first slot is the file's head
        let slots = u32::try_from(length / SLOT as u64).unwrap_or(u32::MAX).saturating_sub(1);
        if slots == 0 {
            return Err(Error::failed(doing()).because("it has no room for an entry"));
        }
        let inner = Inner { used: VecDeque::new(), seq: 0, next: 0, buffer: Vec::with_capacity(4 * SLOT) };
        Ok(Journal {
            line: line.to_owned(),
            file,
            path: path.into(),
            slots,
            nonce,
            inner: Mutex::new(inner),
            room: Condvar::new(),
            committed: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
        })
    }

    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Entries get numbers after `seq`, parts from `next` on.
    pub fn arm(&self, seq: u64, next: u64, reserved: u64) {
        let mut inner = self.lock();
        (inner.seq, inner.next) = (seq, next);
        inner.used.clear();
        self.committed.store(seq, Release);
        self.reserved.store(reserved, Release);
    }

    /// The database has every entry up to `seq`, and has reserved part numbers below `reserved`.
    pub fn committed(&self, seq: u64, reserved: u64) {
        self.committed.fetch_max(seq, Release);
        self.reserved.fetch_max(reserved, Release);
        self.room.notify_all();
    }

    /// Held while an entry is put and handed to the writer, so that both have them in the same order.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number after the highest one put.
    pub fn next(&self) -> u64 {
        self.lock().next
    }

    /// Writes an entry; returns its number, or none while all slots hold entries that the database lacks.
    pub fn put(
        &self,
        inner: &mut Inner,
        run: Uuid,
        at: Timestamp,
        row: &LedgerRow,
        event: Option<&Event>,
    ) -> Result<Option<u64>> {
        let reserved = self.reserved.load(Acquire);
        if row.part >= reserved {
            return Err(Error::failed(format!("part number {} of line \"{}\" is not reserved", row.part, row.line))
                .hint(format!("numbers go up one by one; those below {reserved} can be used now")));
        }
        let seq = inner.seq + 1;
        fill(&mut inner.buffer, seq, self.nonce, &EntryRef { run, at, row, event });
        if inner.buffer.len() > ENTRY_SLOTS * SLOT {
            // without what a person can do without; the database gets all of it unless the process dies now
            let short = event.map(|event| Event { regions: Vec::new(), reasons: Vec::new(), ..event.clone() });
            let row = LedgerRow { reasons: vec!["more was said than the journal can hold".into()], ..row.clone() };
            fill(&mut inner.buffer, seq, self.nonce, &EntryRef { run, at, row: &row, event: short.as_ref() });
        }
        let count = inner.buffer.len().div_ceil(SLOT) as u32;
        if count as usize > ENTRY_SLOTS {
            return Err(Error::failed(format!(
                "part {} of line \"{}\" is too long for the journal",
                row.part, row.line
            ))
            .hint("names of sites, cameras, lots and serials need to be shorter"));
        }
        let Some(start) = self.free(inner, count) else { return Ok(None) };
        // the first slot is the file's head
        let at = (u64::from(start) + 1) * SLOT as u64;
        self.file
            .write_all_at(&inner.buffer, at)
            .failed(|| format!("cannot write the journal \"{}\"", self.path.display()))?;
        inner.used.push_back(Span { seq, start, count });
        inner.seq = seq;
        inner.next = inner.next.max(row.part + 1);
        Ok(Some(seq))
    }

    /// Waits until the database may have taken more.
    pub fn wait<'a>(&self, inner: MutexGuard<'a, Inner>, most: Duration) -> MutexGuard<'a, Inner> {
        self.room.wait_timeout(inner, most).unwrap_or_else(PoisonError::into_inner).0
    }

    pub fn full(&self) -> Error {
        Error::failed(format!("the journal \"{}\" is full", self.path.display()))
            .hint("the database has taken nothing for too long: free space on its disk or mend it")
    }

    /// Where `count` slots in a row are free. When nothing waits it is the beginning again: the same few pages are written
    /// over and over, and the disk sees little of it.
    fn free(&self, inner: &mut Inner, count: u32) -> Option<u32> {
        let committed = self.committed.load(Acquire);
        while inner.used.front().is_some_and(|span| span.seq <= committed) {
            inner.used.pop_front();
        }
        let (Some(first), Some(last)) = (inner.used.front(), inner.used.back()) else {
            return (count <= self.slots).then_some(0);
        };
        let end = last.start + last.count;
        if last.start >= first.start {
            match end + count <= self.slots {
                true => Some(end),
                false => (count <= first.start).then_some(0),
            }
        } else {
            (end + count <= first.start).then_some(end)
        }
    }
}

fn fill(buffer: &mut Vec<u8>, seq: u64, nonce: u64, entry: &EntryRef<'_>) {
    buffer.clear();
    buffer.resize(HEAD, 0);
    // writing to memory; all keys are strings
    let _ = serde_json::to_writer(&mut *buffer, entry);
    seal(buffer, seq, nonce);
}

/// Writes the head of an entry over its first bytes.
fn seal(buffer: &mut [u8], seq: u64, nonce: u64) {
    let length = (buffer.len() - HEAD) as u32;
    buffer[..4].copy_from_slice(&MAGIC);
    buffer[4..8].copy_from_slice(&length.to_le_bytes());
    buffer[8..16].copy_from_slice(&seq.to_le_bytes());
    buffer[16..24].copy_from_slice(&nonce.to_le_bytes());
    let crc = check(buffer);
    buffer[24..HEAD].copy_from_slice(&crc.to_le_bytes());
}

fn check(bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..24]);
    crc.update(&bytes[HEAD..]);
    crc.finalize()
}

/// Number, nonce and JSON of the entry that begins here, when it is whole.
fn unseal(bytes: &[u8]) -> Option<(u64, u64, &[u8])> {
    let head = bytes.get(..HEAD).filter(|head| head[..4] == MAGIC)?;
    let word = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default();
    let long = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
    let length = word(4) as usize;
    let whole = bytes.get(..HEAD.checked_add(length)?).filter(|whole| whole.len() <= ENTRY_SLOTS * SLOT)?;
    (check(whole) == word(24)).then(|| (long(8), long(16), &whole[HEAD..]))
}

fn scan(bytes: &[u8], nonce: Option<u64>) -> Found {
    let mut entries: Vec<Entry> = self::entries(bytes)
        .filter_map(|(seq, of, json)| {
            let entry: Entry = serde_json::from_slice(json).ok().filter(|_| Some(of) == nonce)?;
            Some(Entry { seq, ..entry })
        })
        .collect();
    entries.sort_unstable_by_key(|entry| entry.seq);
    entries.dedup_by_key(|entry| entry.seq);
    Found { nonce: unseal(bytes).map(|(_, nonce, _)| nonce), entries }
}

/// What is whole after the head: number, nonce and JSON.
fn entries(bytes: &[u8]) -> impl Iterator<Item = (u64, u64, &[u8])> {
    (SLOT..bytes.len()).step_by(SLOT).filter_map(|at| unseal(&bytes[at..]))
}

/// A new file with all its room taken on the disk, under its name once it is whole. What was there is set aside when it
/// holds entries.
fn make(path: &Path, slots: u32) -> std::io::Result<u64> {
    // the half of random bits
    let nonce = Uuid::now_v7().as_u64_pair().1;
    let aside = path.with_extension("journal-old");
    if std::fs::read(path).is_ok_and(|bytes| entries(&bytes).next().is_some()) {
        warn!(journal = %path.display(), aside = %aside.display(), "a journal that is damaged or of another database is set aside");
        std::fs::rename(path, aside)?;
    }
    let fresh = path.with_extension("journal-new");
    let mut file = File::create(&fresh)?;
    let mut head = vec![0; HEAD];
    seal(&mut head, 0, nonce);
    head.resize(SLOT, 0);
    file.write_all(&head)?;
    // written and not only promised: there must be room on a full disk
    let empty = [0; 64 * SLOT];
    let mut left = slots as usize * SLOT;
    while left > 0 {
        let piece = left.min(empty.len());
        file.write_all(&empty[..piece])?;
        left -= piece;
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(nonce)
}

/// Changes with each start of the machine.
pub(super) fn boot() -> String {
    // unreadable: every unclean stop counts as one of the machine
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map_or_else(|_| Uuid::now_v7().to_string(), |id| id.trim().to_owned())
}
