//! A watched folder: tells each new image once, when it is complete.
//!
//! Belongs to the thread that pulls from the capture; the kernel (inotify) keeps what happens meanwhile. Invariants:
//! 1. A file is told when its writer has closed it or moved it here, never half-written (test
//!    `tests/sources.rs::a_file_is_taken_once_and_whole`).
//! 2. A file is told once: it is known by name, inode, size and time of its last change. One that is written anew under an old
//!    name is a new part (test `a_file_is_told_once_and_again_when_it_changes`).
//! 3. Nothing is forgotten when the kernel's queue overflows or the watch is made anew: the folder is listed again, and
//!    what was not told is told when it has been at rest for [`REST`] (test `what_came_while_nobody_watched_is_told`).
//! 4. What is remembered is bounded by what is in the folder (test `a_file_that_is_gone_is_forgotten`).
//!
//! Writers on another machine (NFS, SMB) are not seen by inotify. On such file systems the folder is listed every
//! [`LISTING`] as well, and a file counts as complete when it has been at rest.

use super::source::{is_image, natural_key};
use crate::error::{Context, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a file must not change before it is complete, where nobody tells.
const REST: Duration = Duration::from_secs(2);
/// How often the folder is listed where nobody tells.
const LISTING: Duration = Duration::from_secs(1);
/// File systems whose writers may be elsewhere: NFS, SMB, CIFS, SMB 2, FUSE, 9P, Ceph.
const REMOTE: [u64; 7] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400];

/// What a file was when it was told: inode, bytes, last change in nanoseconds.
type Identity = (u64, u64, i128);

/// The files that were told, or were there at the start.
pub(super) type Told = HashMap<OsString, Identity>;

pub(super) struct Watcher {
    folder: PathBuf,
    inotify: OwnedFd,
    told: Told,
    /// Complete, and not yet handed out.
    ready: VecDeque<OsString>,
    /// Seen in a listing, with what they were and since when.
    resting: HashMap<OsString, (Identity, Instant)>,
    is_remote: bool,
    listed: Instant,
    must_list: bool,
}

impl Watcher {
    /// Begins to watch. `told` are those that an earlier watcher knew: then whatever else is there is told too. Without it, what
    /// is there counts as told unless `existing`.
    pub(super) fn new(folder: &Path, existing: bool, told: Option<Told>) -> Result<Self> {
        let name = folder.display().to_string();
        let cannot = |e: rustix::io::Errno| {
            Error::failed(format!("folder \"{name}\" cannot be watched")).because(e).hint(match e {
                rustix::io::Errno::NOSPC | rustix::io::Errno::MFILE => {
                    "the system's limit is reached: raise fs.inotify.max_user_watches and max_user_instances with sysctl"
                }
                _ => "check that the folder is there and may be read",
            })
        };
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(cannot)?;
        let wanted = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, folder, wanted).map_err(cannot)?;
        let kind = rustix::fs::statfs(folder).map_err(cannot)?.f_type as u64;
        let mut watcher = Watcher {
            folder: folder.to_owned(),
            inotify,
            told: Told::new(),
            ready: VecDeque::new(),
            resting: HashMap::new(),
            is_remote: REMOTE.contains(&(kind & 0xffff_ffff)),
            listed: Instant::now(),
            must_list: false,
        };
        // the watch is there already: what comes while the folder is listed is told by it
        match (told, existing) {
            (Some(told), _) => {
                watcher.told = told;
                watcher.list()?;
            }
            (None, true) => watcher.list()?,
            (None, false) => watcher.told = watcher.files()?.into_iter().collect(),
        }
        Ok(watcher)
    }

    /// What was told so far, for the watcher that takes over.
    pub(super) fn into_told(self) -> Told {
        self.told
    }

    /// The next complete file, waited for as long as `wait`.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Option<PathBuf>> {
        let deadline = Instant::now() + wait;
        loop {
            while let Some(name) = self.ready.pop_front() {
                let path = self.folder.join(&name);
                // one that is gone again cannot be looked at
                let Some(identity) = identity(&path) else { continue };
                if self.told.insert(name, identity) != Some(identity) {
                    return Ok(Some(path));
                }
            }
            if self.must_list || (self.is_remote || !self.resting.is_empty()) && self.listed.elapsed() >= LISTING {
                self.list()?;
            }
            self.ready_after_rest();
            if !self.ready.is_empty() {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.read_events(left.min(Duration::from_millis(100)))?;
        }
    }

    /// Waits for events and takes those that are there.
    fn read_events(&mut self, wait: Duration) -> Result<()> {
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(e).failed(|| format!("folder \"{}\" cannot be watched", self.folder.display())),
        }
        let mut space = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
                Err(e) => return Err(e).failed(|| format!("folder \"{}\" cannot be watched", self.folder.display())),
            };
            let what = event.events();
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                tracing::warn!(folder = %self.folder.display(), "so much happens in the watched folder that it is listed anew");
                self.must_list = true;
            }
            let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
            if what.intersects(gone) {
                return Err(Error::failed(format!("the watched folder \"{}\" is gone", self.folder.display()))
                    .hint("make it again: files that are in it then are taken"));
            }
            let Some(name) = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()).to_owned()) else { continue };
            if !is_wanted(&name) || what.contains(ReadFlags::ISDIR) {
                continue;
            }
            if what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
                self.told.remove(&name);
                self.resting.remove(&name);
            } else {
                self.resting.remove(&name);
                self.ready.push_back(name);
            }
        }
    }

    /// Images in the folder, in the order of their names. Empty files are being made.
    fn files(&self) -> Result<Vec<(OsString, Identity)>> {
        let what = || format!("folder \"{}\" cannot be listed", self.folder.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).failed(what)? {
            let name = entry.failed(what)?.file_name();
            if is_wanted(&name)
                && let Some(identity) = identity(&self.folder.join(&name))
            {
                files.push((name, identity));
            }
        }
        files.sort_by_cached_key(|(name, _)| natural_key(&name.to_string_lossy()));
        Ok(files)
    }

    /// Lets what is in the folder and was not told begin to rest.
    fn list(&mut self) -> Result<()> {
        let now = Instant::now();
        let files = self.files()?;
        let mut before = std::mem::take(&mut self.resting);
        for (name, identity) in &files {
            if self.told.get(name) == Some(identity) {
                continue;
            }
            let since = before.remove(name).filter(|(was, _)| was == identity).map_or(now, |(_, since)| since);
            self.resting.insert(name.clone(), (*identity, since));
        }
        let there: std::collections::HashSet<&OsString> = files.iter().map(|(name, _)| name).collect();
        self.told.retain(|name, _| there.contains(name));
        (self.listed, self.must_list) = (now, false);
        Ok(())
    }

    fn ready_after_rest(&mut self) {
        let mut done: Vec<OsString> = self
            .resting
            .iter()
            .filter(|(_, (_, since))| since.elapsed() >= REST)
            .map(|(name, _)| name.clone())
            .collect();
        done.sort_by_cached_key(|name| natural_key(&name.to_string_lossy()));
        for name in done {
            if let Some((was, _)) = self.resting.remove(&name) {
                // it may have changed since the last listing
                match identity(&self.folder.join(&name)) {
                    Some(is) if is == was => self.ready.push_back(name),
                    Some(is) => drop(self.resting.insert(name, (is, Instant::now()))),
                    None => {}
                }
            }
        }
    }
}

/// By its name, whether a file is an image that is not being made under a hidden name.
fn is_wanted(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b".") && is_image(Path::new(name))
}

/// None for what is no file, is empty or is not there.
fn identity(path: &Path) -> Option<Identity> {
    let meta = std::fs::metadata(path).ok().filter(|m| m.is_file() && m.len() > 0)?;
    Some((meta.ino(), meta.len(), i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(20);

    fn named(path: Option<PathBuf>) -> Option<String> {
        path.map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
    }

    #[test]
    fn a_file_is_told_once_and_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("old.png"), "old").unwrap();
        let mut watcher = Watcher::new(dir.path(), false, None).unwrap();
        assert_eq!(watcher.next(SOON).unwrap(), None);
        let mut half = std::fs::File::create(at("a.png")).unwrap();
        half.write_all(b"half").unwrap();
        half.sync_all().unwrap();
        std::fs::write(at("note.txt"), "no image").unwrap();
        std::fs::write(at(".hidden.png"), "not yet").unwrap();
        assert_eq!(watcher.next(SOON).unwrap(), None);
        half.write_all(b" and whole").unwrap();
        drop(half);
        assert_eq!(named(watcher.next(LONG).unwrap()).as_deref(), Some("a.png"));
        // closed by a writer that wrote nothing
        drop(std::fs::File::options().append(true).open(at("a.png")).unwrap());
        assert_eq!(watcher.next(SOON).unwrap(), None);
        std::fs::rename(at(".hidden.png"), at("b.png")).unwrap();
        assert_eq!(named(watcher.next(LONG).unwrap()).as_deref(), Some("b.png"));
        std::fs::write(at("a.png"), "another").unwrap();
        assert_eq!(named(watcher.next(LONG).unwrap()).as_deref(), Some("a.png"));
        assert_eq!(watcher.next(SOON).unwrap(), None);
    }

    #[test]
    fn what_came_while_nobody_watched_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("img1.png"), "1").unwrap();
        let told = Watcher::new(dir.path(), false, None).unwrap().into_told();
        std::fs::write(dir.path().join("img10.png"), "10").unwrap();
        std::fs::write(dir.path().join("img9.png"), "9").unwrap();
        let mut watcher = Watcher::new(dir.path(), false, Some(told)).unwrap();
        assert_eq!(named(watcher.next(LONG).unwrap()).as_deref(), Some("img9.png"));
        assert_eq!(named(watcher.next(LONG).unwrap()).as_deref(), Some("img10.png"));
        assert_eq!(watcher.next(SOON).unwrap(), None);
        let mut all = Watcher::new(dir.path(), true, None).unwrap();
        assert_eq!(named(all.next(LONG).unwrap()).as_deref(), Some("img1.png"));
    }

    #[test]
    fn a_file_that_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path(), false, None).unwrap();
        for i in 0..50 {
            let path = dir.path().join(format!("{i}.png"));
            std::fs::write(&path, "x").unwrap();
            assert_eq!(watcher.next(LONG).unwrap(), Some(path.clone()));
            std::fs::remove_file(path).unwrap();
        }
        assert_eq!(watcher.next(SOON).unwrap(), None);
        assert!(watcher.told.is_empty());
        std::fs::remove_dir(dir.path()).unwrap();
        let e = watcher.next(LONG).unwrap_err();
        assert!(e.to_string().ends_with("is gone"), "{e}");
    }
}
