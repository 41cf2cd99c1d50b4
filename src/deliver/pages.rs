//! Reads the rows of a damaged SQLite file page by page, without its header, its schema and the inner pages of its trees: what
//! [`super::salvage`] saves from it. SQLite itself gives up a whole tree where one inner page is broken.
//!
//! Nothing here is believed: sizes, counts and page numbers are checked against the file, chains of pages end where the row
//! does, and a row that does not fit its own sizes to the byte is no row.
//!
//! Invariants, each with the test that holds it (here):
//! 1. Every row of a whole file is found, whatever its size, in the file or in its log: `a_whole_file_gives_every_row`.
//! 2. No bytes make it panic or run on: `any_bytes_are_survived`.
//! 3. A log that SQLite would cut short without a word is seen to be damaged; one that ends in a torn write is not:
//!    `a_damaged_log_is_told_from_a_torn_one`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::types::Value;

/// Of every database of ours: SQLite's default, which nothing changes.
pub(super) const PAGE: usize = 4096;
/// Head of a log, and of each of its frames.
const WAL_HEAD: u64 = 32;
const FRAME_HEAD: usize = 24;
const FRAME: u64 = (FRAME_HEAD + PAGE) as u64;
/// The page of the byte that SQLite locks, which holds nothing.
const PENDING: u32 = (0x4000_0000 / PAGE) as u32 + 1;
/// Pages from one page of the pointer map to the next.
const MAP: u32 = (PAGE / 5) as u32 + 1;
/// The largest row that is read: three pictures and an event.
const LARGEST: usize = 256 << 20;

/// A row as it lies in a leaf (or, of an index, in an inner page).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// None: of an index, or of a table without row ids.
    pub rowid: Option<i64>,
    pub values: Vec<Value>,
}

/// What was seen in the log beside a database.
#[derive(Debug, Default)]
pub(super) struct Wal {
    /// The latest content of each page: where it is in the log.
    at: HashMap<u32, u64>,
    /// SQLite would leave out what was committed.
    pub damaged: bool,
    /// Frames whose checksum is wrong.
    pub bad: u64,
    /// Pages that the database has after the log.
    pages: u32,
}

/// A database file with its log.
pub(super) struct Pages {
    file: Option<File>,
    log: Option<File>,
    wal: Wal,
    count: u32,
    /// Bytes of both: no row is larger.
    bytes: u64,
    free: HashSet<u32>,
    mapped: bool,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn short(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes).into()
}

/// SQLite's sum over words, going on from `sum`.
fn checksum(little: bool, bytes: &[u8], mut sum: (u32, u32)) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let of = |at: usize| {
            let n = word(pair, at);
            if little { n.swap_bytes() } else { n }
        };
        sum.0 = sum.0.wrapping_add(of(0)).wrapping_add(sum.1);
        sum.1 = sum.1.wrapping_add(of(4)).wrapping_add(sum.0);
    }
    sum
}

impl Wal {
    /// Reads the heads and sums of all frames. Each frame is summed up from what the one before says its own sum is, so that a
    /// bad one does not hide those after it.
    pub fn read(log: &File) -> io::Result<Wal> {
        let length = log.metadata()?.len();
        let mut wal = Wal::default();
        if length < WAL_HEAD + FRAME {
            return Ok(wal);
        }
        let mut head = [0; WAL_HEAD as usize];
        log.read_exact_at(&mut head, 0)?;
        let magic = word(&head, 0);
        let whole = magic & !1 == 0x377f_0682
            && word(&head, 8) == PAGE as u32
            && [true, false]
                .iter()
                .any(|little| checksum(*little, &head[..24], (0, 0)) == (word(&head, 24), word(&head, 28)));
        let mut frame = vec![0; FRAME as usize];
        let count = (length - WAL_HEAD) / FRAME;
        let salt_of = |head: &[u8], at: usize| (word(head, at), word(head, at + 4));
        let mut salt = salt_of(&head, 16);
        if !whole {
            // what two frames in a row agree on
            let mut before = None;
            for n in 0..count.min(8) {
                log.read_exact_at(&mut frame[..FRAME_HEAD], WAL_HEAD + n * FRAME)?;
                let this = salt_of(&frame, 8);
                if before == Some(this) || count == 1 {
                    salt = this;
                    break;
                }
                before = Some(this);
            }
        }
        // of a damaged head either order of bytes may be right; all machines that this runs on have the one
        let little = if whole { magic & 1 == 0 } else { true };
        let mut before = (word(&head, 24), word(&head, 28));
        let mut seen = Vec::new();
        let mut last_commit = None;
        let mut odd = 0;
        for n in 0..count {
            let at = WAL_HEAD + n * FRAME;
            log.read_exact_at(&mut frame, at)?;
            let (page, size) = (word(&frame, 0), word(&frame, 4));
            let said = (word(&frame, 16), word(&frame, 20));
            let sum = checksum(little, &frame[FRAME_HEAD..], checksum(little, &frame[..8], before));
            let same = salt_of(&frame, 8) == salt;
            let good = same && sum == said && page > 0;
            before = said;
            if !same {
                // those of an older log follow; one or two may be damaged ones of this
                odd += 1;
                if odd > 2 {
                    break;
                }
            } else {
                odd = 0;
            }
            seen.push((n, page, size, at, good, same));
            if good && size > 0 {
                last_commit = Some(n);
            }
        }
        let first_bad = seen.iter().find(|frame| !frame.4).map(|frame| frame.0);
        let hidden = matches!((first_bad, last_commit), (Some(bad), Some(commit)) if commit > bad);
        wal.damaged = (!whole && seen.iter().any(|frame| frame.4)) || hidden;
        let end = last_commit.map_or(0, |n| n + 1);
        for (_, page, size, at, good, _) in seen.iter().filter(|frame| frame.0 < end) {
            if *good {
                wal.at.insert(*page, *at);
                if *size > 0 {
                    wal.pages = *size;
                }
            } else {
                wal.bad += 1;
                // better than nothing: it is newer than what the file has, and rows are checked one by one
                if *page > 0 {
                    wal.at.insert(*page, *at);
                }
            }
        }
        Ok(wal)
    }
}

impl Pages {
    /// `log`: the write-ahead log, when there is one.
    pub fn open(database: &Path, log: &Path) -> io::Result<Pages> {
        let open = |path: &Path| match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        let (file, log) = (open(database)?, open(log)?);
        let wal = log.as_ref().map(Wal::read).transpose()?.unwrap_or_default();
        let size = |file: &Option<File>| file.as_ref().map_or(Ok(0), |file| file.metadata().map(|data| data.len()));
        let (own, logged) = (size(&file)?, size(&log)?);
        let most = u64::from(wal.pages).min((own + logged) / PAGE as u64 + 1);
        let count = u32::try_from(own.div_ceil(PAGE as u64).max(most)).unwrap_or(u32::MAX);
        let mut pages = Pages { file, log, wal, count, bytes: own + logged, free: HashSet::new(), mapped: false };
        pages.mapped = pages.is_mapped();
        pages.find_free();
        Ok(pages)
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// A page's content; what is behind the end of the file is zero.
    fn read(&self, page: u32) -> Option<Vec<u8>> {
        if page == 0 || page > self.count {
            return None;
        }
        let mut bytes = vec![0; PAGE];
        if let (Some(at), Some(log)) = (self.wal.at.get(&page), &self.log) {
            log.read_exact_at(&mut bytes, at + FRAME_HEAD as u64).ok()?;
            return Some(bytes);
        }
        let file = self.file.as_ref()?;
        let (mut done, start) = (0, u64::from(page - 1) * PAGE as u64);
        while done < PAGE {
            match file.read_at(&mut bytes[done..], start + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(_) => return None,
            }
        }
        (done > 0).then_some(bytes)
    }

    /// Whether the second page is one of a pointer map, as our files have them: old ones may not.
    fn is_mapped(&self) -> bool {
        let Some(map) = self.read(2) else { return false };
        let known = (self.count.saturating_sub(2) as usize).min(PAGE / 5).min(64);
        let plausible = (0..known).filter(|i| self.entry(&map, 5 * i).is_some()).count();
        known > 0 && plausible * 4 >= known * 3
    }

    fn entry(&self, map: &[u8], at: usize) -> Option<(u8, u32)> {
        let (kind, parent) = (*map.get(at)?, word(map, at + 1));
        let fits = match kind {
            1 | 2 => parent == 0,
            3..=5 => parent > 0 && parent <= self.count,
            _ => false,
        };
        fits.then_some((kind, parent))
    }

    fn map_of(page: u32) -> u32 {
        let map = (page - 2) / MAP * MAP + 2;
        if map == PENDING { map + 1 } else { map }
    }

    /// What the pointer map says of a page, where it says something that can be: its kind and its parent.
    fn mapped(&self, page: u32) -> Option<(u8, u32)> {
        if !self.mapped || page < 3 {
            return None;
        }
        let map = Self::map_of(page);
        if page <= map {
            return None;
        }
        self.entry(&self.read(map)?, 5 * (page - map - 1) as usize)
    }

    /// Pages that hold nothing any more, as far as the file says so.
    fn find_free(&mut self) {
        let Some(first) = self.read(1) else { return };
        let mut trunk = word(&first, 32);
        let mut left = word(&first, 36).min(self.count);
        while left > 0 && trunk > 1 && trunk <= self.count && !self.free.contains(&trunk) {
            let Some(page) = self.read(trunk) else { break };
            let leaves = word(&page, 4) as usize;
            if leaves > PAGE / 4 - 2 {
                break;
            }
            self.free.insert(trunk);
            self.free.extend((0..leaves).map(|i| word(&page, 8 + 4 * i)).filter(|n| *n > 1 && *n <= self.count));
            left = left.saturating_sub(1 + leaves as u32);
            trunk = word(&page, 0);
        }
    }

    /// Hands over each row of each page that holds rows; returns how many cells could not be read.
    pub fn rows<E>(&self, mut take: impl FnMut(Row) -> Result<(), E>) -> Result<u64, E> {
        let mut bad = 0;
        for page in 1..=self.count {
            if page == PENDING || (self.mapped && page > 1 && Self::map_of(page) == page) {
                continue;
            }
            let kind = self.mapped(page).map(|(kind, _)| kind);
            // the list and the map can both be damaged; a page with rows that one of them calls used is looked at
            let free = match kind {
                Some(kind) => kind == 2,
                None => self.free.contains(&page),
            };
            if free || matches!(kind, Some(3 | 4)) {
                continue;
            }
            let Some(bytes) = self.read(page) else {
                bad += 1;
                continue;
            };
            let start = if page == 1 { 100 } else { 0 };
            let (inner, table) = match bytes[start] {
                0x0d => (false, true),
                0x0a => (false, false),
                0x02 => (true, false),
                _ => {
                    // an inner page of a table has no rows, a used page has one of these kinds
                    bad += u64::from(bytes[start] != 0x05 && kind == Some(5));
                    continue;
                }
            };
            let cells = short(&bytes, start + 3);
            let pointers = start + if inner { 12 } else { 8 };
            for i in 0..cells.min((PAGE - pointers) / 2) {
                let at = short(&bytes, pointers + 2 * i);
                match self.cell(&bytes, page, at, inner, table) {
                    Some(row) => take(row)?,
                    None => bad += 1,
                }
            }
        }
        Ok(bad)
    }

    fn cell(&self, page: &[u8], number: u32, mut at: usize, inner: bool, table: bool) -> Option<Row> {
        if inner {
            at += 4;
        }
        let size = usize::try_from(varint(page, &mut at)?).ok()?;
        if size > LARGEST || size as u64 > self.bytes {
            return None;
        }
        let rowid = if table { Some(varint(page, &mut at)?) } else { None };
        let most = if table { PAGE - 35 } else { (PAGE - 12) * 64 / 255 - 23 };
        if size <= most {
            return Some(Row { rowid, values: record(page.get(at..at + size)?)? });
        }
        let least = (PAGE - 12) * 32 / 255 - 23;
        let local = least + (size - least) % (PAGE - 4);
        let local = if local <= most { local } else { least };
        let mut payload = Vec::with_capacity(size);
        payload.extend_from_slice(page.get(at..at + local)?);
        let mut next = word(page.get(at + local..at + local + 4)?, 0);
        let mut before = (3, number);
        while payload.len() < size {
            // a page that belongs elsewhere would put somebody else's bytes into a picture
            if self.mapped(next).is_some_and(|mapped| mapped != before) {
                return None;
            }
            let bytes = self.read(next)?;
            payload.extend_from_slice(&bytes[4..4 + (size - payload.len()).min(PAGE - 4)]);
            before = (4, next);
            next = word(&bytes, 0);
        }
        Some(Row { rowid, values: record(&payload)? })
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut n = 0_u64;
    for i in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if i == 8 {
            return Some((n << 8 | u64::from(byte)).cast_signed());
        }
        n = n << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(n.cast_signed());
        }
    }
    None
}

/// The values of a record that fits its own sizes.
fn record(bytes: &[u8]) -> Option<Vec<Value>> {
    let mut at = 0;
    let head = usize::try_from(varint(bytes, &mut at)?).ok()?;
    if head < at || head > bytes.len() {
        return None;
    }
    let (mut body, mut values) = (head, Vec::new());
    while at < head {
        let kind = varint(bytes, &mut at)?;
        let size = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind as usize,
            5 => 6,
            6 | 7 => 8,
            12.. => usize::try_from((kind - 12) / 2).ok()?,
            _ => return None,
        };
        let value = bytes.get(body..body.checked_add(size)?)?;
        body += size;
        values.push(match kind {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            1..=6 => {
                let start = if value[0] & 0x80 == 0 { 0 } else { -1 };
                Value::Integer(value.iter().fold(start, |n: i64, byte| n << 8 | i64::from(*byte)))
            }
            7 => Value::Real(f64::from_be_bytes(value.try_into().ok()?)),
            _ if kind % 2 == 0 => Value::Blob(value.to_vec()),
            _ => Value::Text(String::from_utf8_lossy(value).into_owned()),
        });
    }
    (at == head && body == bytes.len()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use std::path::PathBuf;

    /// A database with rows of every size, its log beside it: copied while it is open.
    fn file(folder: &Path, rows: i64) -> (PathBuf, PathBuf) {
        let path = folder.join("own.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE t (n INTEGER PRIMARY KEY, a TEXT, b BLOB, c REAL); CREATE TABLE k (a TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID",
        )
        .unwrap();
        for n in 0..rows {
            let size = usize::try_from(n * n * 37 % 60_000).unwrap();
            let values = rusqlite::params![n, format!("text {n}"), vec![n as u8; size], n as f64 / 2.0];
            db.execute("INSERT INTO t VALUES (?1, ?2, ?3, ?4)", values).unwrap();
            db.execute("INSERT INTO k VALUES (?1, ?2)", rusqlite::params![format!("key {n} {}", "x".repeat(300)), -n])
                .unwrap();
            if n == rows / 2 {
                db.execute_batch("PRAGMA wal_checkpoint").unwrap();
            }
        }
        let (copy, log) = (folder.join("copy.db"), folder.join("copy.db-wal"));
        std::fs::copy(&path, &copy).unwrap();
        std::fs::copy(folder.join("own.db-wal"), &log).unwrap();
        (copy, log)
    }

    fn all(path: &Path, log: &Path) -> (Vec<Row>, u64) {
        let mut rows = Vec::new();
        let bad = Pages::open(path, log).unwrap().rows(|row| {
            rows.push(row);
            Ok::<_, ()>(())
        });
        (rows, bad.unwrap())
    }

    #[test]
    fn a_whole_file_gives_every_row() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = file(folder.path(), 200);
        let (rows, bad) = all(&path, &log);
        assert_eq!(bad, 0);
        for n in 0..200_i64 {
            let size = usize::try_from(n * n * 37 % 60_000).unwrap();
            let half = if n % 2 == 0 { Value::Integer(n / 2) } else { Value::Real(n as f64 / 2.0) };
            let wanted = vec![Value::Null, Value::Text(format!("text {n}")), Value::Blob(vec![n as u8; size]), half];
            assert_eq!(rows.iter().filter(|row| row.rowid == Some(n) && row.values == wanted).count(), 1, "{n}");
            let key = [Value::Text(format!("key {n} {}", "x".repeat(300))), Value::Integer(-n)];
            assert_eq!(rows.iter().filter(|row| row.values == key).count(), 1, "{n}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = file(folder.path(), 60);
        let (whole, logged) = (std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap());
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..150 {
            for (file, bytes) in [(&path, &whole), (&log, &logged)] {
                let mut bytes = bytes.clone();
                for _ in 0..1 << (round % 12) {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
                bytes.truncate(random.usize(bytes.len() / 2..=bytes.len()));
                std::fs::write(file, bytes).unwrap();
            }
            let (rows, _) = all(&path, &log);
            assert!(rows.len() < 10_000);
        }
    }

    #[test]
    fn a_damaged_log_is_told_from_a_torn_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, log) = file(folder.path(), 40);
        let bytes = std::fs::read(&log).unwrap();
        let look = |bytes: &[u8]| {
            std::fs::write(&log, bytes).unwrap();
            Wal::read(&File::open(&log).unwrap()).unwrap()
        };
        let whole = look(&bytes);
        assert!(!whole.damaged && whole.bad == 0 && !whole.at.is_empty());
        // cut within a frame, and one whose content never came
        assert!(!look(&bytes[..bytes.len() - 1000]).damaged);
        let mut torn = bytes.clone();
        let end = torn.len();
        torn[end - 2000..].fill(0);
        assert!(!look(&torn).damaged);
        assert!(!look(&[]).damaged && !look(&[0; 9000]).damaged);
        // a bit in the middle, and in the head
        for at in [WAL_HEAD as usize + 3 * FRAME as usize + 500, 9, 17, 26] {
            let mut hit = bytes.clone();
            hit[at] ^= 4;
            let wal = look(&hit);
            assert!(wal.damaged, "{at}");
            assert_eq!(wal.at.len(), whole.at.len(), "{at}");
        }
        drop(path);
    }
}
