//! The audit log's files: whole lines are appended, a full file is moved on, a torn line is ended.
//!
//! Belongs to one thread of one process; other processes may append to the same log (commands that change things), so each
//! append holds a lock on the file and looks whether it is still the one of that name.

use super::entry::{Entry, Line};
use super::{Options, Said};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The end of a file in which its last number is looked for; far longer than a line.
const TAIL: u64 = 256 << 10;
/// How long another process may hold the lock: it writes a line under it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);
/// The program's own entries.
pub(super) const ITSELF: &str = "itself";

/// Appends to `options.file`.
pub(super) struct Appender {
    options: Options,
    open: Option<Opened>,
}

struct Opened {
    file: File,
    /// As this process left it; another one may have written since.
    size: u64,
    /// Of the last line.
    seq: u64,
}

/// What an append did besides.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Appended {
    pub bytes: u64,
    pub torn: Option<u64>,
    pub removed: Option<PathBuf>,
}

/// Releases the lock whatever happens.
struct Locked<'a>(&'a File);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // closing the file releases it all the same
        let _ = self.0.unlock();
    }
}

/// `audit.jsonl.3` for `audit.jsonl`.
pub(super) fn rotated(file: &Path, n: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

impl Appender {
    pub fn new(options: Options) -> Self {
        Appender { options, open: None }
    }

    /// Opens the file if it is not open or is not the one of that name any more, and makes it if there is none.
    fn file(&mut self) -> Result<Opened> {
        if let Some(open) = self.open.take()
            && same(&open.file, &self.options.file)
        {
            return Ok(open);
        }
        if let Some(folder) = self.options.file.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        let new = !self.options.file.exists();
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(&self.options.file)?;
        if new && rustix::process::geteuid().is_root() {
            // a command that an administrator runs must not make a file that the service's user cannot write
            let folder = self.options.file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let owner = std::fs::metadata(folder)?;
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(Opened { file, size: u64::MAX, seq: 0 })
    }

    /// Opens the file; makes it if there is none.
    pub fn open(&mut self) -> Result<()> {
        let open = self.file()?;
        self.open = Some(open);
        Ok(())
    }

    /// Whether the file could be opened; makes nothing.
    pub fn check(&self) -> Result<()> {
        let file = &self.options.file;
        match OpenOptions::new().read(true).append(true).open(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other.map(drop),
        }
        let here = Path::new(".");
        let folders = file.ancestors().skip(1).map(|f| if f.as_os_str().is_empty() { here } else { f });
        let folder = folders.into_iter().find(|f| f.exists()).unwrap_or(here);
        if !folder.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        Ok(rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)?)
    }

    /// Writes all of them, as whole lines, or none.
    pub fn append(&mut self, entries: &[Said]) -> Result<Appended> {
        let started = Instant::now();
        loop {
            let mut open = self.file()?;
            match open.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) if started.elapsed() > LOCK_PATIENCE => {
                    return Err(Error::new(ErrorKind::TimedOut, "another process holds its lock"));
                }
                Err(TryLockError::WouldBlock) => {
                    self.open = Some(open);
                    std::thread::sleep(LOOK);
                    continue;
                }
            }
            // moved on by another process while this one waited
            if !same(&open.file, &self.options.file) {
                continue;
            }
            let done = self.append_locked(&mut open, entries)?;
            if let Some(done) = done {
                self.open = Some(open);
                return Ok(done);
            }
        }
    }

    /// None: the file was full and has moved on.
    fn append_locked(&mut self, open: &mut Opened, entries: &[Said]) -> Result<Option<Appended>> {
        let _locked = Locked(&open.file);
        let size = open.file.metadata()?.len();
        let mut done = Appended::default();
        let mut text = Vec::new();
        let mut seq = open.seq;
        if size != open.size {
            let tail = Tail::read(&open.file, size)?;
            seq = match tail.seq {
                Some(seq) => seq,
                None => last_before(&self.options),
            };
            if tail.torn > 0 {
                done.torn = Some(tail.torn);
                text.push(b'\n');
                seq += 1;
                push(&mut text, &Said::now(ITSELF, Entry::TornLine { bytes: tail.torn }), seq)?;
            }
            if size == 0 && rotated(&self.options.file, 1).exists() {
                let removed = rotated(&self.options.file, self.options.keep + 1);
                // gone only now that its successors are in their places
                let gone =
                    std::fs::remove_file(&removed).is_ok().then(|| rotated(&self.options.file, self.options.keep));
                seq += 1;
                push(&mut text, &Said::now(ITSELF, Entry::Rotated { removed: gone.clone() }), seq)?;
                done.removed = gone;
            }
        }
        for said in entries {
            seq += 1;
            push(&mut text, said, seq)?;
        }
        if size > 0 && size + text.len() as u64 > self.options.max_bytes {
            self.rotate(&open.file)?;
            return Ok(None);
        }
        if let Err(e) = (&open.file).write_all(&text) {
            // what was written of it is taken back, so that lines stay whole; where that fails, too, the next append ends it
            let _ = open.file.set_len(size);
            return Err(e);
        }
        (open.size, open.seq) = (size + text.len() as u64, seq);
        done.bytes = text.len() as u64;
        Ok(Some(done))
    }

    /// Every file gets the next number. From the oldest on: a stop in between leaves a gap and loses none.
    fn rotate(&self, full: &File) -> Result<()> {
        full.sync_data()?;
        let file = &self.options.file;
        for n in (1..=self.options.keep).rev() {
            match std::fs::rename(rotated(file, n), rotated(file, n + 1)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::rename(file, rotated(file, 1))?;
        let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }

    /// To the disk itself.
    pub fn sync(&self) -> Result<()> {
        self.open.as_ref().map_or(Ok(()), |open| open.file.sync_data())
    }
}

fn push(text: &mut Vec<u8>, said: &Said, seq: u64) -> Result<()> {
    let line = Line { at: said.at, seq, who: said.who.to_string(), entry: said.entry.clone() };
    serde_json::to_writer(&mut *text, &line).map_err(Error::other)?;
    text.push(b'\n');
    Ok(())
}

/// Whether `file` is the one that has this name.
fn same(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The number that the newest file before this one ends with.
fn last_before(options: &Options) -> u64 {
    let last = |n: u32| {
        let file = File::open(rotated(&options.file, n)).ok()?;
        let size = file.metadata().ok()?.len();
        Tail::read(&file, size).ok()?.seq
    };
    (1..=options.keep + 1).find_map(last).unwrap_or(0)
}

struct Tail {
    /// Of the last line that can be read.
    seq: Option<u64>,
    /// Bytes after the last line's end.
    torn: u64,
}

impl Tail {
    fn read(file: &File, size: u64) -> Result<Tail> {
        let from = size.saturating_sub(TAIL);
        let mut text = vec![0; (size - from) as usize];
        file.read_exact_at(&mut text, from)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        #[derive(serde::Deserialize)]
        struct Seq {
            seq: u64,
        }
        let lines = text[..whole].split(|b| *b == b'\n').rev();
        let seq = lines.filter_map(|l| serde_json::from_slice::<Seq>(l).ok()).map(|l| l.seq).next();
        Ok(Tail { seq, torn: (text.len() - whole) as u64 })
    }
}
