//! A folder: of this machine, or one that is mounted.
//!
//! Each file is written under a temporary name, made durable and renamed; `event.json` last. The calls block, so they run on
//! a thread of the runtime's own; a mount that hangs holds this target alone.
//!
//! Invariants, each with the test that holds it (tests/targets.rs):
//! 1. A reader never sees half a file, nor `event.json` before the pictures, wherever the process is killed:
//!    `a_folder_never_shows_half_an_anomaly`.
//! 2. The folder itself is never made: what was to be mounted there would be hidden: `a_folder_that_is_away_keeps_everything`.
//! 3. A full disk is an outage like any other: `a_full_folder_recovers`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::super::options;
use super::super::spool::Spooled;
use super::Answer;
use super::layout::{Laid, lay};
use super::pace::Cap;

pub(in super::super) struct Folder {
    options: options::Folder,
    cap: Arc<Cap>,
}

impl Folder {
    pub fn new(options: &options::Folder, cap: Arc<Cap>) -> Folder {
        Folder { options: options.clone(), cap }
    }

    pub fn shown(&self) -> String {
        self.options.path.display().to_string()
    }

    /// Whether it is there and may be written.
    pub fn look(&self) -> Result<(), String> {
        let path = &self.options.path;
        let there = path.is_dir();
        let access = rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
        match (there, access) {
            (false, _) => Err("it is not there".to_owned()),
            (true, Err(e)) => Err(format!("it cannot be written: {e}")),
            (true, Ok(())) => Ok(()),
        }
    }

    /// Writes one anomaly.
    pub async fn send(&self, item: &Spooled, now: Timestamp) -> Answer {
        let laid = match lay(item, now) {
            Ok(laid) => laid,
            Err(e) => return Answer::Never { why: e.to_string() },
        };
        let bytes = laid.bytes();
        self.cap.acquire(bytes as usize).await;
        let options = self.options.clone();
        let written = tokio::task::spawn_blocking(move || write(&options, &laid)).await;
        match written {
            Ok(Ok(())) => Answer::Taken { bytes },
            // says nothing about this anomaly: the next one would fail alike
            Ok(Err(why)) => Answer::Failed { why, after: None, connected: false },
            Err(e) => Answer::Failed { why: format!("writing ended in a panic: {e}"), after: None, connected: true },
        }
    }
}

fn write(options: &options::Folder, laid: &Laid) -> Result<(), String> {
    let root = &options.path;
    there(options)?;
    let mut folder = root.clone();
    for step in &laid.folder {
        let above = folder.clone();
        folder.push(step);
        match fs::create_dir(&folder) {
            Ok(()) => sync(&above)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(said("folder", &folder, &e)),
        }
    }
    for file in &laid.files {
        let temporary = folder.join(format!(".{}.part", file.name));
        let name = folder.join(file.name);
        let put = || -> io::Result<()> {
            let mut out = File::create(&temporary)?;
            out.write_all(&file.content)?;
            out.sync_all()?;
            fs::rename(&temporary, &name)
        };
        if let Err(e) = put() {
            // makes room again; one that stays is written over by the next attempt
            let _ = fs::remove_file(&temporary);
            return Err(said("file", &name, &e));
        }
        // each name is durable before the next, so event.json is never there alone after a power cut
        sync(&folder)?;
    }
    Ok(())
}

/// Whether the folder is there, and is what was to be mounted.
fn there(options: &options::Folder) -> Result<(), String> {
    let root = &options.path;
    let data = fs::metadata(root).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            format!("the folder \"{}\" is not there: mount it or make it; linesight does not", root.display())
        }
        _ => said("folder", root, &e),
    })?;
    if !data.is_dir() {
        return Err(format!("\"{}\" is not a folder", root.display()));
    }
    let system = fs::metadata("/").map_err(|e| said("folder", Path::new("/"), &e))?;
    if options.mounted && data.dev() == system.dev() {
        return Err(format!("nothing is mounted at \"{}\": mount it, or set mounted = false", root.display()));
    }
    Ok(())
}

fn sync(folder: &PathBuf) -> Result<(), String> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // some network file systems cannot make a folder durable by itself
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        done => done.map_err(|e| said("folder", folder, &e)),
    }
}

fn said(what: &str, path: &Path, e: &io::Error) -> String {
    let remedy = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": free space there",
        io::ErrorKind::PermissionDenied => ": let this user write there",
        io::ErrorKind::ReadOnlyFilesystem => ": mount it writable",
        _ => "",
    };
    format!("the {what} \"{}\" cannot be written{remedy}: {e}", path.display())
}
