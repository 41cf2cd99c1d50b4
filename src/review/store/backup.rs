//! A copy of a store that is in use.
//!
//! Thread: every call blocks. It reads through a connection of its own and takes no lock of the store, so that the server, in
//! this process or another, goes on.
//!
//! The copy is a state of the store at one instant: `VACUUM INTO` copies the database inside one read transaction, then the
//! pictures of its rows are linked, or copied where the copy is on another file system. Pictures never change under their name,
//! so a link is as good as a copy. What was removed between the two is removed from the copy as well.
//!
//! Invariants:
//! 1. A copy that has `review.db` is complete: the database gets that name last. Test:
//!    `a_backup_that_was_interrupted_goes_on`.
//! 2. Nothing that is there is overwritten. Test: `a_backup_never_overwrites`.
//! 3. The copy opens as a store and each of its rows has its pictures. Test: `a_backup_while_serving_is_whole`.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;
use uuid::Uuid;

use super::schema::MIGRATIONS;
use super::sqlite::{BUSY, DATABASE, object_dir, sync_dir};
use crate::error::{Context, Error, Result};

/// Name of the database until all else is there.
const UNFINISHED: &str = "review.db.unfinished";

/// What a backup has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BackupDone {
    /// Anomalies in the copy.
    pub anomalies: u64,
    /// Pictures that are the same file in both.
    pub linked: u64,
    /// Pictures that were copied.
    pub copied: u64,
    /// Pictures that an interrupted backup had left.
    pub there: u64,
    /// Anomalies that were removed while the copy was made.
    pub removed: u64,
    /// Of the database and the pictures.
    pub bytes: u64,
}

/// Copies the store in `data` into the folder `to`, which is made; while a server uses the store, too. A backup that was
/// interrupted goes on when it is given the same folder.
pub fn backup(data: &Path, to: &Path) -> Result<BackupDone> {
    let cannot = || format!("cannot back up \"{}\" into \"{}\"", data.display(), to.display());
    let hint = "give a folder that is not there yet, or one of a backup that was interrupted";
    if to.join(DATABASE).try_exists().usage(cannot)? {
        return Err(Error::usage(format!("\"{}\" already has a store", to.display())).hint(hint));
    }
    let begun = to.join(UNFINISHED);
    let foreign = || -> std::io::Result<bool> {
        match fs::read_dir(to) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
            Ok(mut entries) => Ok(!begun.try_exists()? && entries.next().is_some()),
        }
    };
    if foreign().usage(cannot)? {
        return Err(Error::usage(format!("\"{}\" is not empty", to.display())).hint(hint));
    }
    let source = open(data)?;
    fs::create_dir_all(to.join("objects")).usage(cannot)?;
    match fs::remove_file(&begun) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::failed(cannot()).because(e)),
        _ => {}
    }
    // the name before the content: from here on the folder is ours
    File::create_new(&begun).failed(cannot)?;
    sync_dir(to)?;
    let name = begun.to_str().ok_or_else(|| Error::usage(cannot()).hint("give a folder whose name is UTF-8"))?;
    source.execute("VACUUM INTO ?", [name]).failed(cannot)?;
    drop(source);

    let mut copy = Connection::open_with_flags(&begun, OpenFlags::SQLITE_OPEN_READ_WRITE).failed(cannot)?;
    let mut done = pictures(&mut copy, data, to)?;
    done.anomalies =
        copy.query_row("SELECT COUNT(*) FROM anomalies", [], |r| r.get::<_, i64>(0)).failed(cannot)?.unsigned_abs();
    copy.close().map_err(|(_, e)| Error::failed(cannot()).because(e))?;
    let file = File::open(&begun).failed(cannot)?;
    file.sync_all().failed(cannot)?;
    done.bytes += file.metadata().failed(cannot)?.len();
    fs::rename(&begun, to.join(DATABASE)).failed(cannot)?;
    sync_dir(to)?;
    Ok(done)
}

/// The database of a store, for reading; it must have today's tables.
fn open(data: &Path) -> Result<Connection> {
    let cannot = || format!("cannot read the store in \"{}\"", data.display());
    let path = data.join(DATABASE);
    let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .usage(cannot)
        .map_err(|e| e.hint("give --data the folder that the review server was started with"))?;
    db.busy_timeout(BUSY).failed(cannot)?;
    let version: i64 = db.pragma_query_value(None, "user_version", |r| r.get(0)).failed(cannot)?;
    if usize::try_from(version).ok() != Some(MIGRATIONS.len()) {
        let known = MIGRATIONS.len();
        return Err(Error::usage(format!(
            "the store in \"{}\" has schema {version}, this version of linesight backs up {known}",
            data.display()
        ))
        .hint("use the linesight that the server runs, or start the server once so that it updates the store"));
    }
    Ok(db)
}

/// Brings the pictures of all rows of the copy.
fn pictures(copy: &mut Connection, data: &Path, to: &Path) -> Result<BackupDone> {
    let cannot = || format!("cannot copy the pictures into \"{}\"", to.display());
    let mut done = BackupDone::default();
    let mut gone: Vec<(i64, String)> = Vec::new();
    {
        let mut statement = copy
            .prepare(
                "SELECT a.n, a.id, o.name, o.size, o.sha256 FROM anomalies a JOIN objects o USING (n) ORDER BY a.n",
            )
            .failed(cannot)?;
        let mut rows = statement.query([]).failed(cannot)?;
        let mut dirty = None;
        while let Some(row) = rows.next().failed(cannot)? {
            let (n, id): (i64, String) = (row.get(0).failed(cannot)?, row.get(1).failed(cannot)?);
            let (name, size): (String, i64) = (row.get(2).failed(cannot)?, row.get(3).failed(cannot)?);
            let sha256: String = row.get(4).failed(cannot)?;
            if gone.last().is_some_and(|(last, _)| *last == n) {
                continue;
            }
            let dir = object_dir(Uuid::try_parse(&id).failed(cannot)?);
            let (from, target) = (data.join(&dir).join(&name), to.join(&dir).join(&name));
            if dirty.as_ref() != Some(&dir) {
                if let Some(last) = dirty.replace(dir.clone()) {
                    settle(to, &last)?;
                }
                fs::create_dir_all(to.join(&dir)).failed(cannot)?;
            }
            match bring(&from, &target, size.unsigned_abs(), &sha256)? {
                Brought::Linked => done.linked += 1,
                Brought::Copied => done.copied += 1,
                Brought::WasThere => done.there += 1,
                Brought::Gone => {
                    gone.push((n, id));
                    continue;
                }
            }
            done.bytes += size.unsigned_abs();
        }
        if let Some(last) = dirty {
            settle(to, &last)?;
        }
    }
    done.removed = gone.len() as u64;
    forget(copy, &gone).failed(cannot)?;
    for (_, id) in &gone {
        let dir = to.join(object_dir(Uuid::try_parse(id).failed(cannot)?));
        fs::remove_dir_all(dir).failed(cannot)?;
    }
    sync_dir(&to.join("objects"))?;
    Ok(done)
}

/// Syncs the names in a folder of pictures, and its own.
fn settle(to: &Path, dir: &Path) -> Result<()> {
    sync_dir(&to.join(dir))?;
    dir.parent().map_or(Ok(()), |shelf| sync_dir(&to.join(shelf)))
}

enum Brought {
    Linked,
    Copied,
    WasThere,
    /// It was removed since the database was copied.
    Gone,
}

fn bring(from: &Path, target: &Path, size: u64, sha256: &str) -> Result<Brought> {
    let cannot = || format!("cannot copy \"{}\"", from.display());
    match fs::metadata(target) {
        // it got its name when it was whole
        Ok(found) if found.len() == size => return Ok(Brought::WasThere),
        Ok(_) => return Err(Error::failed(format!("\"{}\" is in the way", target.display()))),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::failed(cannot()).because(e)),
    }
    match fs::hard_link(from, target) {
        Ok(()) => return Ok(Brought::Linked),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Brought::Gone),
        Err(_) => {} // another file system, or one without links
    }
    let mut source = match File::open(from) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Brought::Gone),
        source => source.failed(cannot)?,
    };
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes).failed(cannot)?;
    if crate::hex::sha256(&bytes) != sha256 {
        return Err(Error::failed(format!("\"{}\" is not what was stored: its SHA-256 differs", from.display()))
            .hint("the disk has changed it: bring it back from an older backup"));
    }
    let dir = target.parent().unwrap_or(target);
    let mut file = tempfile::NamedTempFile::new_in(dir).failed(cannot)?;
    file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).failed(cannot)?;
    file.persist_noclobber(target).failed(cannot)?;
    Ok(Brought::Copied)
}

/// Removes rows whose pictures are no more.
fn forget(db: &mut Connection, gone: &[(i64, String)]) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    for (n, id) in gone {
        tx.execute(
            "UPDATE tallies SET count = count - 1, bytes = bytes - (SELECT bytes FROM anomalies WHERE n = ?1)
             WHERE id = (SELECT tally FROM anomalies WHERE n = ?1)",
            [n],
        )?;
        tx.execute("DELETE FROM reviews WHERE anomaly = ?", params![id])?;
        for table in ["objects", "events", "anomalies"] {
            tx.execute(&format!("DELETE FROM {table} WHERE n = ?"), [n])?;
        }
    }
    tx.execute("DELETE FROM trash", [])?;
    tx.commit()
}
