//! Output folders that are there wholly or not at all: written beside their destination, synced, renamed.

use crate::error::{Error, Result};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder under construction; removed when dropped unpublished.
pub struct Staging {
    dir: tempfile::TempDir,
    destination: PathBuf,
}

/// Refuses a destination that holds something else than an older output of the same kind, which is known by its file `marker`.
pub fn check_destination(dir: &Path, marker: &str) -> Result<()> {
    let parent = parent_of(dir);
    if parent.exists() && !parent.is_dir() {
        return Err(Error::usage(format!(
            "output folder \"{}\" cannot be made: \"{}\" is not a folder",
            dir.display(),
            parent.display()
        ))
        .hint("name another folder with --out"));
    }
    if !parent.is_dir() {
        return Err(Error::usage(format!("output folder \"{}\" has no parent folder", dir.display()))
            .hint(format!("make \"{}\" first", parent.display())));
    }
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_some() && !dir.join(marker).is_file() {
                return Err(Error::usage(format!(
                    "output folder \"{}\" is not empty and holds no {marker}",
                    dir.display()
                ))
                .hint("name a new folder; nothing was changed"));
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(unwritable(dir).because(e)),
    }
    // the cheapest proof that the parent can be written to is to write there
    tempfile::tempdir_in(parent).map(drop).map_err(|e| unwritable(dir).because(e))
}

fn unwritable(dir: &Path) -> Error {
    Error::failed(format!("output folder \"{}\" cannot be written", dir.display()))
        .hint("check its parent folder's permissions and free space, or name another folder with --out")
}

fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

impl Staging {
    pub fn new(destination: &Path, marker: &str) -> Result<Self> {
        check_destination(destination, marker)?;
        let dir = tempfile::Builder::new()
            .prefix(".linesight-")
            .suffix(".partial")
            .tempdir_in(parent_of(destination))
            .map_err(|e| unwritable(destination).because(e))?;
        Ok(Staging { dir, destination: destination.to_owned() })
    }

    /// The folder while it is being written.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The error for a file that could not be written.
    pub fn unwritable(&self, e: std::io::Error) -> Error {
        unwritable(&self.destination).because(e)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.path().join(name);
        let write = || -> std::io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = fs::File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|e| self.unwritable(e))
    }

    /// Puts the folder in its place; an older output is moved away first and removed after.
    pub fn publish(self) -> Result<()> {
        let staged = self.dir.keep();
        let place = || -> std::io::Result<()> {
            fs::set_permissions(&staged, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            fs::File::open(&staged)?.sync_all()?;
            if self.destination.exists() {
                let old = staged.with_extension("old");
                fs::rename(&self.destination, &old)?;
                if let Err(e) = fs::rename(&staged, &self.destination) {
                    // the older output must not vanish because the newer one cannot be placed
                    fs::rename(&old, &self.destination)?;
                    return Err(e);
                }
                fs::remove_dir_all(&old)?;
            } else {
                fs::rename(&staged, &self.destination)?;
            }
            fs::File::open(parent_of(&self.destination))?.sync_all()
        };
        place().map_err(|e| {
            // what cannot be removed now was never published; the error below is what matters
            let _ = fs::remove_dir_all(&staged);
            unwritable(&self.destination).because(e)
        })
    }
}
