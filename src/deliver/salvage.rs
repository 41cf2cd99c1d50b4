//! A damaged database stops no line: before it is opened it is looked at, and when something is wrong with it, all that can
//! be read is brought over into a new one ([`super::mend`]). The damaged file is moved aside, with its log, and never
//! deleted; beside it lies a report of what was lost.
//!
//! Called by the thread that opens the database, which holds its lock. The new database is built and synchronised under
//! another name first; a process that dies on the way leaves the damaged file where it was, or a finished new one that the
//! next start puts in its place.
//!
//! Invariants, each with the test that holds it (tests/corruption.rs where not said otherwise):
//! 1. No damage to a file of ours refuses a start or panics: `nothing_is_lost_unsaid`.
//! 2. A file of another program, or a newer one of ours, is refused and not changed: `other_files_are_left_alone`,
//!    `a_newer_schema_is_refused` (tests.rs).
//! 3. A whole file is opened as it is: `a_whole_file_is_left_alone`.
//! 4. A start that is cut off while it salvages loses nothing: `a_salvage_that_is_cut_off_is_finished`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tracing::{debug, error, warn};
use uuid::Uuid;

use super::database::Sql;
use super::journal::Journal;
use super::mend::{Mend, Report, stamp};
use super::pages::{PAGE, Pages, Wal};
use super::schema::{APPLICATION, connect};
use crate::error::{Context, Error, Result};
use crate::event::Event;

/// How long a database that was stopped cleanly is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long one that was not: a line that waits judges nothing.
const LOOK_CLOSELY: Duration = Duration::from_secs(30);
/// What only files of ours have in them.
const OURS: [&[u8]; 3] = [b"CREATE TABLE ledger (", b"CREATE TABLE spool (", b"CREATE TABLE delivery ("];

/// The path with something added to its name.
fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    PathBuf::from(name)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Files beside a database whose names go on with `more`, sorted.
fn siblings(path: &Path, more: &str) -> Vec<PathBuf> {
    let mut start = path.file_name().map_or_else(OsString::new, OsString::from);
    start.push(more);
    let start = start.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir(folder(path)) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)))
        .collect();
    found.sort();
    found
}

/// Damaged databases that were set aside, for `linesight doctor`.
pub fn quarantines(database: &Path) -> Vec<PathBuf> {
    let ends = |path: &PathBuf, end: &str| path.to_string_lossy().ends_with(end);
    siblings(database, ".corrupt-").into_iter().filter(|path| ends(path, ".report.json")).collect()
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}

/// Whether it was ours, as far as anything tells.
fn ours(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(100).read_to_end(&mut head));
    if read.is_ok() && head.get(68..72) == Some(&APPLICATION.to_be_bytes()) {
        return true;
    }
    has_journal(path) || [path.to_owned(), beside(path, "-wal")].iter().any(|file| mentions(file).unwrap_or(false))
}

/// Journals of lines beside the database.
pub(super) fn journals(path: &Path) -> Vec<PathBuf> {
    let mut files = siblings(path, ".");
    files.retain(|file| file.extension().is_some_and(|extension| extension == "journal"));
    files
}

fn has_journal(path: &Path) -> bool {
    journals(path).iter().any(|file| Journal::read(file, None).is_ok_and(|found| found.nonce.is_some()))
}

fn mentions(path: &Path) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let longest = OURS.iter().map(|word| word.len()).max().unwrap_or(1);
    let (mut buffer, mut kept) = (vec![0; 1 << 20], 0);
    loop {
        let n = file.read(&mut buffer[kept..])?;
        if n == 0 {
            return Ok(false);
        }
        let all = &buffer[..kept + n];
        if OURS.iter().any(|word| all.windows(word.len()).any(|window| window == *word)) {
            return Ok(true);
        }
        let rest = all.len().min(longest - 1);
        let from = all.len() - rest;
        buffer.copy_within(from..from + rest, 0);
        kept = rest;
    }
}

/// What is wrong with the file at `path`, if something is and it is ours. Changes nothing. An error: it is not ours, newer, or
/// cannot be opened for another reason.
pub(super) fn look(path: &Path, migrations: &[&str]) -> Result<Option<String>> {
    let log = beside(path, "-wal");
    if length(path) == 0 {
        let logged = length(&log) > 0 && mentions(&log).unwrap_or(false);
        let lost = path.exists() && has_journal(path);
        return Ok((logged || lost).then(|| "the file is empty".to_owned()));
    }
    let wal = File::open(&log).ok().map(|file| Wal::read(&file)).transpose();
    let wal = wal.failed(|| format!("cannot read \"{}\"", log.display()))?;
    if wal.is_some_and(|wal| wal.damaged) && ours(path) {
        return Ok(Some("its write-ahead log is damaged".into()));
    }
    if !head_is_sound(path) && ours(path) {
        return Ok(Some("its head is damaged".into()));
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let known = migrations.len();
    let version = match super::schema::recognise(&connection, path, known) {
        Ok(0) => return Ok(None),
        Ok(version) => version,
        Err(e) => {
            return match unrecognised(&connection, path, migrations) {
                Some(why) => Ok(Some(why)),
                None => Err(e),
            };
        }
    };
    let found = || -> Sql<Option<String>> {
        if shape(&connection)? != expected(&migrations[..version])? {
            return Ok(Some(format!("its tables are not those of schema {version}")));
        }
        let clean = length(&log) == 0
            && (version < 2
                || connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM lines WHERE clean = 0)", [], |row| {
                    row.get::<_, bool>(0)
                })?);
        match sound(&connection, if clean { LOOK } else { LOOK_CLOSELY })? {
            Some(wrong) => Ok(Some(wrong)),
            None if version < known => Ok(None),
            None => sense(&connection),
        }
    };
    Ok(found().unwrap_or_else(|e| {
        if is_damage(&e) {
            return Some(e.to_string());
        }
        // another process has it, the disk is full: opening it says what is the matter
        debug!(error = %e, "the database was not looked at");
        None
    }))
}

/// Whether the content of the file is to blame, or the disk cannot give it back.
fn is_damage(e: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ};
    match e.sqlite_error() {
        Some(e) => {
            matches!(e.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
                || [SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ].contains(&e.extended_code)
        }
        None => super::spool::unreadable(e),
    }
}

/// Whether the head says what the heads of all our files say: SQLite takes some other values for a file that nobody may write.
fn head_is_sound(path: &Path) -> bool {
    let mut head = Vec::new();
    if File::open(path).and_then(|file| file.take(100).read_to_end(&mut head)).is_err() || head.len() < 100 {
        return false;
    }
    let version = |at: usize| matches!(head[at], 1 | 2);
    head.starts_with(b"SQLite format 3\0")
        && head[16..18] == (PAGE as u16).to_be_bytes()
        && version(18)
        && version(19)
        && head[20..24] == [0, 64, 32, 32]
        // 0: all but the head is in the log still
        && matches!(head[44..48], [0, 0, 0, 0 | 4])
        && matches!(head[56..60], [0, 0, 0, 0 | 1])
}

/// Why a file that does not look like ours is ours and damaged.
fn unrecognised(connection: &Connection, path: &Path, migrations: &[&str]) -> Option<String> {
    let read: Sql<i64> = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0));
    match read {
        Err(e) => match e.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) if ours(path) => Some(e.to_string()),
            Some(ErrorCode::Unknown) | None if ours(path) => Some(e.to_string()),
            _ => None,
        },
        // a whole schema of ours under a head that says something else
        Ok(_) => {
            let shape = shape(connection).ok()?;
            let ours = (2..=migrations.len()).any(|n| expected(&migrations[..n]).is_ok_and(|known| known == shape));
            ours.then(|| "its head is not that of a database of ours".into())
        }
    }
}

/// Tables with their columns, and indexes.
fn shape(connection: &Connection) -> Sql<BTreeSet<String>> {
    let sql = "SELECT s.type || ' ' || s.name || coalesce(' ' || c.name, '') FROM sqlite_schema s
               LEFT JOIN pragma_table_info(s.name) c ON s.type = 'table' WHERE s.name NOT LIKE 'sqlite_%'";
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}

fn expected(migrations: &[&str]) -> Sql<BTreeSet<String>> {
    let connection = Connection::open_in_memory()?;
    for script in migrations {
        connection.execute_batch(script)?;
    }
    shape(&connection)
}

/// SQLite's own check of trees and indexes, for as long as it may take.
fn sound(connection: &Connection, most: Duration) -> Sql<Option<String>> {
    let stop = connection.get_interrupt_handle();
    let (done, ended) = crossbeam_channel::bounded::<()>(0);
    let found = std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(most) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                stop.interrupt();
            }
        });
        let found = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        drop(done);
        found
    });
    match found {
        Ok(text) if text == "ok" => Ok(None),
        Ok(text) => Ok(Some(text.split_whitespace().collect::<Vec<_>>().join(" "))),
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            warn!(seconds = most.as_secs(), "the database is large: it was not checked as a whole");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Whether what is in the tables can be worked with.
fn sense(connection: &Connection) -> Sql<Option<String>> {
    for (sql, wrong) in [
        ("SELECT 1 FROM spool WHERE seq NOT IN (SELECT seq FROM pictures)", "an anomaly has no pictures"),
        ("SELECT 1 FROM pictures WHERE seq NOT IN (SELECT seq FROM spool)", "pictures have no anomaly"),
        ("SELECT 1 FROM spool WHERE seq NOT IN (SELECT seq FROM delivery)", "an anomaly has no target"),
        ("SELECT 1 FROM delivery WHERE seq NOT IN (SELECT seq FROM spool)", "a target has no anomaly"),
        ("SELECT 1 FROM delivery WHERE state NOT IN ('waiting', 'aside', 'dead')", "a delivery has no known state"),
        ("SELECT 1 FROM spool WHERE state NOT IN ('waiting', 'dead')", "an anomaly has no known state"),
        (
            "SELECT 1 FROM spool WHERE state = 'waiting' AND seq NOT IN (SELECT seq FROM delivery WHERE state != 'dead')",
            "an anomaly waits for nobody",
        ),
        (
            "SELECT 1 FROM delivery WHERE typeof(target) != 'text' OR typeof(attempts) != 'integer' OR attempts < 0
             OR attempts > 4294967295 OR typeof(next_try) != 'integer' OR typeof(last_error) NOT IN ('null', 'text')",
            "a delivery has values of a wrong type",
        ),
        (
            "SELECT 1 FROM pictures WHERE typeof(frame) != 'blob' OR typeof(heatmap) != 'blob'
             OR typeof(normal) NOT IN ('blob', 'null')",
            "a picture has a wrong type",
        ),
        (
            "SELECT 1 FROM reports WHERE typeof(line) != 'text' OR typeof(run) != 'text' OR typeof(report) != 'text'
             OR typeof(seq) != 'integer' OR typeof(stored_at) != 'integer' OR typeof(next_try) != 'integer'
             OR state NOT IN ('waiting', 'aside') OR typeof(attempts) != 'integer'",
            "a line report has values of a wrong type",
        ),
        (
            "SELECT 1 FROM lines WHERE typeof(line) != 'text' OR typeof(chain) != 'integer' OR typeof(hash) != 'blob'
             OR length(hash) != 32 OR typeof(unchained) != 'integer' OR typeof(next_part) != 'integer'
             OR typeof(reserved) != 'integer' OR typeof(first_part) != 'integer' OR typeof(journal_seq) != 'integer'
             OR typeof(journal) NOT IN ('integer', 'null') OR typeof(boot) NOT IN ('text', 'null')
             OR (clean IS NOT NULL AND clean NOT IN (0, 1)) OR typeof(last_at) NOT IN ('integer', 'null')
             OR typeof(reported) != 'integer' OR next_part < 0 OR reserved < 0 OR first_part < 0 OR journal_seq < 0",
            "a line has values of a wrong type",
        ),
        (
            "SELECT 1 FROM lines WHERE next_part < (SELECT max(part) + 1 FROM ledger
             WHERE ledger.line = lines.line AND continued = 1) AND clean IS NOT NULL",
            "a line's next number is in use",
        ),
        (
            "SELECT 1 FROM lines WHERE chain < (SELECT max(chain) + 1 FROM ledger WHERE ledger.line = lines.line)",
            "a line's chain ends behind its end",
        ),
        (
            "SELECT 1 FROM lines WHERE next_part > reserved + 4294967296 OR reserved > next_part + 4294967296",
            "a line's numbers are not to be believed",
        ),
    ] {
        let mut read = connection.prepare(sql)?;
        if read.exists([])? {
            return Ok(Some(wrong.into()));
        }
    }
    let mut read = connection.prepare(
        "SELECT id, event, typeof(line) = 'text' AND typeof(run) = 'text' AND typeof(part) = 'integer' AND part >= 0
         AND typeof(spooled_at) = 'integer' AND typeof(bytes) = 'integer' AND bytes >= 0
         AND typeof(confidence) IN ('real', 'integer') AND stripped IN (0, 1) FROM spool WHERE state != 'dead'",
    )?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let told = row.get_ref(1)?.as_str().ok().and_then(|json| serde_json::from_str::<Event>(json).ok());
        let id = row.get_ref(0)?.as_str().ok().and_then(|id| Uuid::parse_str(id).ok());
        if id.is_none() || told.map(|event| event.id) != id || !row.get::<_, bool>(2)? {
            return Ok(Some("an anomaly cannot be read".into()));
        }
    }
    Ok(None)
}

/// Puts a new database that a start before this one has finished in its place.
pub(super) fn finish(path: &Path) -> Result<()> {
    let start = beside(path, ".salvaged-").to_string_lossy().into_owned();
    for done in siblings(path, ".salvaged-") {
        let Some(stamp) = done.to_string_lossy().strip_prefix(&start).map(str::to_owned) else { continue };
        publish(path, &done, &beside(path, &format!(".corrupt-{stamp}")))
            .failed(|| format!("cannot put \"{}\" in the place of the damaged database", done.display()))?;
    }
    Ok(())
}

/// Moves the damaged files aside and the new one in their place.
fn publish(path: &Path, done: &Path, quarantine: &Path) -> std::io::Result<()> {
    for more in ["", "-wal", "-shm"] {
        let (from, to) = (beside(path, more), beside(quarantine, more));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to)?;
        }
    }
    fs::rename(done, path)?;
    File::open(folder(path))?.sync_all()
}

/// Makes a new database out of what can be read of the damaged one at `path`.
pub(super) fn salvage(path: &Path, why: &str, targets: &[String], slots: u32, migrations: &[&str]) -> Result<Report> {
    let at = Timestamp::now();
    let doing = || format!("cannot salvage \"{}\"", path.display());
    // two in one second need two names
    let stamp = (0..)
        .map(|n| if n == 0 { stamp(at) } else { format!("{}-{n}", stamp(at)) })
        .find(|stamp| siblings(path, &format!(".corrupt-{stamp}")).is_empty())
        .unwrap_or_default();
    let quarantine = beside(path, &format!(".corrupt-{stamp}"));
    let fresh = beside(path, ".salvage-new");
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let pages = Pages::open(path, &beside(path, "-wal")).failed(doing)?;
    let build = |everything: bool, failed: Option<String>| -> Sql<Report> {
        for more in ["", "-journal", "-wal", "-shm"] {
            let _ = fs::remove_file(beside(&fresh, more));
        }
        let mut new = Connection::open(&fresh)?;
        // nobody but this thread has it, and a crash throws it away
        new.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF")?;
        for (done, script) in migrations.iter().enumerate() {
            let transaction = new.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(script)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", done as i64 + 1)?;
            transaction.commit()?;
        }
        let mut mend = Mend::new(path, &pages, targets, slots, everything);
        mend.report = Report {
            database: path.display().to_string(),
            quarantine: name(&quarantine),
            at,
            why: why.to_owned(),
            failed,
            ..mend.report
        };
        mend.build(&mut new)
    };
    let report = build(true, None).or_else(|e| {
        // no room for a second copy, for example: a line needs its numbers, and the quarantine has the rest
        error!(database = %path.display(), error = %e, "only the numbers of the lines could be brought over");
        build(false, Some(e.to_string()))
    });
    let report = report.failed(doing)?;
    let placed = || -> std::io::Result<()> {
        let json = serde_json::to_vec_pretty(&report).unwrap_or_default();
        let told = beside(&quarantine, ".report.json");
        fs::write(&told, json)?;
        File::open(&told)?.sync_all()?;
        File::open(&fresh)?.sync_all()?;
        let done = beside(path, &format!(".salvaged-{stamp}"));
        fs::rename(&fresh, &done)?;
        File::open(folder(path))?.sync_all()?;
        publish(path, &done, &quarantine)
    };
    placed()
        .map_err(|e| Error::failed(doing()).because(e).hint("free space on its disk, and let its folder be written"))?;
    error!(
        database = %path.display(),
        quarantine = %quarantine.display(),
        why,
        rows = report.ledger.recovered,
        rows_lost = report.ledger.lost,
        anomalies = report.anomalies.recovered,
        anomalies_lost = report.lost.len() + report.unknown.len(),
        pictures_lost = report.without_pictures.len(),
        "the database was damaged: what could be read is in a new one, the old one is kept with a report beside it"
    );
    for hurt in report.lost.iter().chain(&report.unknown).take(20) {
        error!(id = hurt.id, line = hurt.line, part = hurt.part, why = hurt.why, "an anomaly was lost");
    }
    Ok(report)
}
