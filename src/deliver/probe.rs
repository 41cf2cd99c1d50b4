//! A look at endpoint and spool from outside, for `linesight doctor`: nothing is sent, nothing is changed, and it works while
//! linesight runs (tests `tests/doctor.rs`).

use super::target::{Client, Looked};
use super::uploader::runtime;
use super::{Limits, Target, schema};
use crate::error::{Error, Result};
use crate::lock::is_taken;
use jiff::Timestamp;
use rusqlite::OpenFlags;
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Time for the whole question.
const PATIENCE: Duration = Duration::from_secs(10);
/// Faults of a database that are quoted.
const FAULTS: usize = 3;

/// What a target answered.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Without what may be secret in it.
    pub place: String,
    /// None: a bucket or folder, which can be used.
    pub status: Option<u16>,
    /// Seconds that this machine's clock is ahead of the endpoint's, to half a second; none without a Date.
    pub ahead_s: Option<f64>,
    /// Of its certificate, over TLS.
    pub certificate_ends: Option<Timestamp>,
}

/// Looks at a target. An error says why there was no answer.
pub fn ask(target: &Target) -> Result<Answered> {
    let limits = Limits { request: PATIENCE, ..Limits::default() };
    let client = Client::new(target, &limits)?;
    let place = client.shown();
    let runtime = runtime()?;
    let before = Timestamp::now();
    let looked = runtime.block_on(client.look());
    let looked = looked.map_err(|why| Error::missing(format!("no answer from \"{place}\"")).because(why))?;
    let Looked::Answered(answered) = looked else {
        return Ok(Answered { place, status: None, ahead_s: None, certificate_ends: None });
    };
    let middle = before + Timestamp::now().duration_since(before) / 2;
    let date = answered.headers.get("date").and_then(|d| d.to_str().ok());
    let date = date.and_then(|d| jiff::fmt::rfc2822::parse(d).ok()).map(|d| d.timestamp());
    // the date's own second has begun half a second ago on average
    let ahead_s = date.map(|d| middle.duration_since(d).as_secs_f64() - 0.5);
    let ends = answered.certificate.and_then(|der| {
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
    });
    Ok(Answered { place, status: Some(answered.status.as_u16()), ahead_s, certificate_ends: ends })
}

/// How a spool is.
#[derive(Debug, Clone)]
pub struct Spool {
    /// A linesight has it open.
    pub in_use: bool,
    /// What SQLite finds wrong with the file; the first few.
    pub faults: Vec<String>,
    pub waiting: u64,
    /// No target would take them: they need a person.
    pub dead: u64,
    /// When the oldest one that waits was spooled.
    pub oldest: Option<Timestamp>,
    /// Of the database with its log.
    pub bytes: u64,
    /// Journals of lines.
    pub journals: Vec<PathBuf>,
}

/// Looks at a database that exists.
pub fn spool(path: &Path) -> Result<Spool> {
    let connection = schema::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    schema::recognise(&connection, path, schema::MIGRATIONS.len())?;
    let cannot = |e: rusqlite::Error| Error::failed(format!("cannot read \"{}\"", path.display())).because(e);
    let check = || -> rusqlite::Result<Vec<String>> {
        let mut statement = connection.prepare(&format!("PRAGMA quick_check({FAULTS})"))?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    // a file may be too damaged to be checked
    let mut faults = check().unwrap_or_else(|e| vec![e.to_string()]);
    faults.retain(|f| f != "ok");
    let counts = "SELECT count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'dead'),
                  min(CASE state WHEN 'waiting' THEN spooled_at END) FROM spool";
    let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<(i64, i64, Option<i64>)> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    };
    let (waiting, dead, oldest) = match connection.query_row(counts, [], read) {
        Ok(found) => found,
        Err(_) if !faults.is_empty() => (0, 0, None),
        Err(e) => return Err(cannot(e)),
    };
    let size = |p: &Path| std::fs::metadata(p).map_or(0, |m| m.len());
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    Ok(Spool {
        in_use: is_taken(&beside(".lock")),
        faults,
        waiting: waiting.cast_unsigned(),
        dead: dead.cast_unsigned(),
        oldest: oldest.and_then(|ns| Timestamp::from_nanosecond(ns.into()).ok()),
        bytes: size(path) + size(&beside("-wal")),
        journals: journals(path),
    })
}

fn journals(database: &Path) -> Vec<PathBuf> {
    let folder = database.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = database.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ours = |p: &PathBuf| {
        let file = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.starts_with(&format!("{name}.")) && file.ends_with(".journal")
    };
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).filter(ours).collect();
    found.sort();
    found
}
