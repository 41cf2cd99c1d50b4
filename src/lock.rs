//! One process per database or folder: an advisory lock on a file beside it.
//!
//! Invariants:
//! 1. Whoever lets go has let go at once. A lock belongs to the open file, and a child process that is being started has a
//!    copy of that until its program runs; so dropping unlocks and does not leave it to the closing. Test:
//!    `a_copy_of_the_file_does_not_hold_it`.
//! 2. The system lets go of it when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a taken lock is asked for again: as long as an observer ([`is_taken`]) or a dying process may hold it.
const PATIENCE: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(10);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks the file at `path`, made when it is not there; `None` when another process keeps it.
    pub fn take(path: &Path) -> io::Result<Option<FileLock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(FileLock(file))),
                Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => std::thread::sleep(AGAIN),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // closing the file releases it too, only perhaps later
        let _ = self.0.unlock();
    }
}

/// Whether a process holds the lock; taken for no longer than the question.
pub fn is_taken(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).open(path) else { return false };
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            false
        }
        Err(e) => matches!(e, TryLockError::WouldBlock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        assert!(!is_taken(&path));
        let held = FileLock::take(&path).unwrap().unwrap();
        assert!(is_taken(&path));
        assert!(FileLock::take(&path).unwrap().is_none());
        drop(held);
        assert!(!is_taken(&path));
        assert!(FileLock::take(&path).unwrap().is_some());
    }

    #[test]
    fn a_copy_of_the_file_does_not_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let held = FileLock::take(&path).unwrap().unwrap();
        // what a child process has between its fork and its exec
        let copy = held.0.try_clone().unwrap();
        drop(held);
        assert!(!is_taken(&path));
        drop(copy);
    }
}
