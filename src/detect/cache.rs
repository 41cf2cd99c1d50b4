//! Compiled networks kept on disk, so that only the first start of a network compiles it.
//!
//! OpenVINO writes and reads its cache in place. So that a killed process leaves no half a network and two processes do not write
//! one file, a network is compiled into a folder of its own, which is published by one rename and only read from then on.
//! Without a place to write there is no cache, and nothing else changes.
//!
//! Invariants:
//! 1. What is published is whole (test `a_network_is_there_wholly_or_not_at_all`).
//! 2. At most [`KEPT`] networks are kept (test `the_oldest_goes`).

use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Networks that are kept; one takes about 10 MB.
const KEPT: usize = 16;

/// Where one network is read from or compiled into.
pub(super) enum Cache {
    Known(PathBuf),
    New { staging: TempDir, target: PathBuf },
}

impl Cache {
    /// For the network that `key` (hexadecimal digits) stands for; none where nothing can be kept.
    pub fn open(key: &str) -> Option<Cache> {
        Self::open_in(&folder()?, key)
    }

    fn open_in(folder: &Path, key: &str) -> Option<Cache> {
        let target = folder.join(key);
        if target.is_dir() {
            return Some(Cache::Known(target));
        }
        let staging =
            fs::create_dir_all(folder).and_then(|()| tempfile::Builder::new().prefix(".new-").tempdir_in(folder));
        match staging {
            Ok(staging) => Some(Cache::New { staging, target }),
            Err(e) => {
                tracing::info!("compiled networks are not kept in \"{}\": {e}", folder.display());
                None
            }
        }
    }

    /// The folder that OpenVINO is given.
    pub fn path(&self) -> &Path {
        match self {
            Cache::Known(path) => path,
            Cache::New { staging, .. } => staging.path(),
        }
    }

    /// The network is compiled: from now on it is there for others.
    pub fn publish(self) {
        let Cache::New { staging, target } = self else { return };
        // another process may have been first: then this one's goes with its staging folder
        if let Err(e) = fs::rename(staging.path(), &target) {
            tracing::debug!("a compiled network is not kept in \"{}\": {e}", target.display());
            return;
        }
        if let Some(folder) = target.parent() {
            remove_oldest(folder);
        }
    }
}

/// Removes what is beyond [`KEPT`], by age, and what killed processes left.
fn remove_oldest(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut aged: Vec<_> =
        entries.flatten().filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
    aged.sort();
    let beyond = aged.len().saturating_sub(KEPT);
    for (_, path) in aged.into_iter().take(beyond) {
        if let Err(e) = fs::remove_dir_all(&path) {
            tracing::debug!("\"{}\" cannot be removed: {e}", path.display());
        }
    }
}

/// Of the user's cache folder, as the XDG base directory specification has it.
fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("linesight/networks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_there_wholly_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let killed = Cache::open_in(folder.path(), "aa").unwrap();
        fs::write(killed.path().join("half.blob"), "x").unwrap();
        // published by another process meanwhile
        let first = Cache::open_in(folder.path(), "aa").unwrap();
        fs::write(first.path().join("whole.blob"), "xx").unwrap();
        first.publish();
        killed.publish();
        let Some(Cache::Known(path)) = Cache::open_in(folder.path(), "aa") else { panic!("it was published") };
        assert!(path.join("whole.blob").is_file() && !path.join("half.blob").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..KEPT + 3 {
            let cache = Cache::open_in(folder.path(), &format!("{i:02x}")).unwrap();
            let path = cache.path().to_owned();
            fs::write(path.join("blob"), "x").unwrap();
            let age = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(i as u64);
            fs::File::open(&path).unwrap().set_modified(age).unwrap();
            cache.publish();
        }
        assert!(!folder.path().join("02").exists() && folder.path().join("03").exists());
    }

    #[test]
    fn without_a_place_there_is_no_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Cache::open_in(&file.path().join("below"), "aa").is_none());
    }
}
