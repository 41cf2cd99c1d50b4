//! Writes a ZIP archive onto a wire: every entry stored as it is (pictures do not shrink), each with its length and checksum
//! in front of it, so that nothing has to be gone back to. The crates that write archives keep the directory of all entries in
//! memory; an export has hundreds of thousands, so here it waits in a file without a name.
//!
//! Thread: that of the caller; blocks.
//!
//! Invariants:
//! 1. What is written is a ZIP archive (APPNOTE 6.3.3, with its 64-bit records where they are needed) that others read. Tests:
//!    `others_read_it`, `many_entries_need_the_large_directory`, and each export in tests/review_export.rs.
//! 2. Memory does not grow with the number of entries. Test: `twenty_thousand_items_stream` in tests/review_export.rs.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

/// Names are UTF-8.
const UTF8: u16 = 1 << 11;
/// 1980-01-01, the first day that the format knows: the archive tells nobody when it was made.
const DAY: u16 = 0x21;
/// Version that knows the 64-bit records.
const LARGE: u16 = 45;
/// Version that knows folders.
const PLAIN: u16 = 20;

/// Something that is written first and becomes an entry when it is whole. On disk, without a name.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
    crc: Hasher,
    len: u64,
}

impl Spool {
    /// An empty one in a folder.
    pub fn new(dir: &Path) -> io::Result<Spool> {
        Ok(Spool { file: BufWriter::new(tempfile::tempfile_in(dir)?), crc: Hasher::new(), len: 0 })
    }
    /// All of it, from the start.
    pub fn read(self) -> io::Result<impl Read> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(BufReader::new(file))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An archive that is being written.
#[derive(Debug)]
pub struct Zip<W: Write> {
    out: W,
    at: u64,
    directory: Spool,
    entries: u64,
    dir: PathBuf,
}

impl<W: Write> Zip<W> {
    /// An empty archive; what has to wait, waits in `dir`.
    pub fn new(out: W, dir: &Path) -> io::Result<Zip<W>> {
        Ok(Zip { out, at: 0, directory: Spool::new(dir)?, entries: 0, dir: dir.to_path_buf() })
    }

    /// Something that becomes an entry later.
    pub fn spool(&self) -> io::Result<Spool> {
        Spool::new(&self.dir)
    }

    /// A file. The name is relative, with `/` between folders.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, crc32fast::hash(bytes), bytes.len() as u64)?;
        self.put(bytes)
    }

    /// A folder; needed only for one that is empty.
    pub fn add_folder(&mut self, name: &str) -> io::Result<()> {
        self.header(&format!("{name}/"), 0, 0)
    }

    /// A file that was spooled.
    pub fn add_spool(&mut self, name: &str, spool: Spool) -> io::Result<()> {
        self.header(name, spool.crc.clone().finalize(), spool.len)?;
        self.at += io::copy(&mut spool.read()?, &mut self.out)?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn header(&mut self, name: &str, crc: u32, len: u64) -> io::Result<()> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, format!("entry {name:?} of the archive {what}"));
        let size = u32::try_from(len).ok().filter(|&size| size < u32::MAX).ok_or_else(|| wrong("is too large"))?;
        let name_len = u16::try_from(name.len()).map_err(|_| wrong("has too long a name"))?;
        let start = self.at;
        let large = start >= u64::from(u32::MAX);
        let mut local = Vec::with_capacity(30 + name.len());
        local.extend(0x0403_4b50_u32.to_le_bytes());
        local.extend([PLAIN, UTF8, 0, 0, DAY].into_iter().flat_map(u16::to_le_bytes));
        local.extend([crc, size, size].into_iter().flat_map(u32::to_le_bytes));
        local.extend([name_len, 0].into_iter().flat_map(u16::to_le_bytes));
        local.extend(name.as_bytes());
        self.put(&local)?;

        let (mode, dos) = if name.ends_with('/') { (0o40_755_u32, 0x10) } else { (0o100_644, 0) };
        let mut entry = Vec::with_capacity(58 + name.len());
        entry.extend(0x0201_4b50_u32.to_le_bytes());
        let needs = if large { LARGE } else { PLAIN };
        entry.extend([3 << 8 | LARGE, needs, UTF8, 0, 0, DAY].into_iter().flat_map(u16::to_le_bytes));
        entry.extend([crc, size, size].into_iter().flat_map(u32::to_le_bytes));
        entry.extend([name_len, if large { 12 } else { 0 }, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        entry.extend((mode << 16 | dos).to_le_bytes());
        entry.extend((if large { u32::MAX } else { start as u32 }).to_le_bytes());
        entry.extend(name.as_bytes());
        if large {
            entry.extend([1_u16, 8].into_iter().flat_map(u16::to_le_bytes));
            entry.extend(start.to_le_bytes());
        }
        self.directory.write_all(&entry)?;
        self.entries += 1;
        Ok(())
    }

    /// Writes the directory; gives back what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        let (start, entries) = (self.at, self.entries);
        let size = io::copy(&mut self.directory.read()?, &mut self.out)?;
        let end = start + size;
        let mut tail = Vec::with_capacity(98);
        if entries >= u64::from(u16::MAX) || end >= u64::from(u32::MAX) {
            tail.extend(0x0606_4b50_u32.to_le_bytes());
            tail.extend(44_u64.to_le_bytes());
            tail.extend([3 << 8 | LARGE, LARGE].into_iter().flat_map(u16::to_le_bytes));
            tail.extend([0_u32, 0].into_iter().flat_map(u32::to_le_bytes));
            tail.extend([entries, entries, size, start].into_iter().flat_map(u64::to_le_bytes));
            tail.extend(0x0706_4b50_u32.to_le_bytes());
            tail.extend(0_u32.to_le_bytes());
            tail.extend(end.to_le_bytes());
            tail.extend(1_u32.to_le_bytes());
        }
        let short = u16::try_from(entries).unwrap_or(u16::MAX);
        let long = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        tail.extend(0x0605_4b50_u32.to_le_bytes());
        tail.extend([0, 0, short, short].into_iter().flat_map(u16::to_le_bytes));
        tail.extend([long(size), long(start)].into_iter().flat_map(u32::to_le_bytes));
        tail.extend(0_u16.to_le_bytes());
        self.out.write_all(&tail)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(fill: impl FnOnce(&mut Zip<Vec<u8>>)) -> zip::ZipArchive<io::Cursor<Vec<u8>>> {
        let dir = tempfile::tempdir().unwrap();
        let mut zip = Zip::new(Vec::new(), dir.path()).unwrap();
        fill(&mut zip);
        zip::ZipArchive::new(io::Cursor::new(zip.finish().unwrap())).unwrap()
    }

    fn content(archive: &mut zip::ZipArchive<io::Cursor<Vec<u8>>>, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap(); // the checksum is checked at the end
        bytes
    }

    #[test]
    fn others_read_it() {
        let mut found = archive(|zip| {
            zip.add("a/b.txt", b"one").unwrap();
            zip.add_folder("empty").unwrap();
            zip.add("Prüfung.csv", b"").unwrap();
            let mut spool = zip.spool().unwrap();
            for n in 0..10_000 {
                writeln!(spool, "{n}").unwrap();
            }
            zip.add_spool("numbers", spool).unwrap();
        });
        assert_eq!(found.len(), 4);
        assert_eq!(content(&mut found, "a/b.txt"), b"one");
        assert_eq!(content(&mut found, "Prüfung.csv"), b"");
        assert!(found.by_name("empty/").unwrap().is_dir());
        let numbers = String::from_utf8(content(&mut found, "numbers")).unwrap();
        assert_eq!(numbers.lines().map(|l| l.parse::<u32>().unwrap()).sum::<u32>(), 49_995_000);
        assert_eq!(archive(|_| ()).len(), 0);
    }

    #[test]
    fn many_entries_need_the_large_directory() {
        let mut found = archive(|zip| {
            for n in 0..70_000_u32 {
                zip.add(&n.to_string(), &n.to_le_bytes()).unwrap();
            }
        });
        assert_eq!(found.len(), 70_000);
        assert_eq!(content(&mut found, "69999"), 69_999_u32.to_le_bytes());
    }

    #[test]
    fn beyond_four_gigabytes_offsets_are_long() {
        // what lies in front is not written: the offsets only say that it were there
        let dir = tempfile::tempdir().unwrap();
        let mut zip = Zip::new(Vec::new(), dir.path()).unwrap();
        zip.at = 5 << 30;
        zip.add("late", b"x").unwrap();
        let bytes = zip.finish().unwrap();
        let entry = bytes.windows(4).position(|w| w == 0x0201_4b50_u32.to_le_bytes()).unwrap();
        let at = |from: usize, n: usize| bytes[entry + from..entry + from + n].to_vec();
        assert_eq!(at(42, 4), [0xff; 4], "the short offset points to the long one");
        assert_eq!(at(46 + 4, 4), [1, 0, 8, 0]);
        assert_eq!(at(46 + 8, 8), (5_u64 << 30).to_le_bytes());
        let end = bytes.windows(4).position(|w| w == 0x0606_4b50_u32.to_le_bytes()).unwrap();
        assert_eq!(bytes[end + 48..end + 56], ((5_u64 << 30) + 30 + 4 + 1).to_le_bytes());
    }
}
