//! Reading the ledger: rows by filter, newest first, and all of them for an export. Needs no [`super::Deliver`]: a read-only
//! connection works while linesight runs.
//!
//! Invariants, each with the test that holds it (tests/ledger.rs):
//! 1. Nothing is written: `reading_changes_nothing`.
//! 2. A damaged file gives an error that says so: `damaged_files_are_named`.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params_from_iter};
use serde::Serialize;

use super::chain::{Hash, Stored, nanos, timestamp};
use super::database::Sql;
use super::schema::{MIGRATIONS, connect, recognise};
use crate::error::{Error, Result};
use crate::hex::hex;

/// The columns that [`stored`] reads, in its order, and those that come later.
pub(super) const COLUMNS: &str =
    "line, chain, run, part, frame, captured_at, verdict, score, confidence, latency_ms, model, event,
    frames, reasons, late_ms, lot, serial, continued, detail, hash, delivered_at, fate";

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerEntry {
    pub line: String,
    /// Place in the line's chain; none for rows that are older than the chain.
    pub chain: Option<i64>,
    pub run: String,
    /// None for rows that are no parts.
    pub part: Option<i64>,
    pub frame: i64,
    /// When the part was triggered.
    pub captured_at: Timestamp,
    /// `pass`, `reject`, `unsure`, `missed`; `interrupted` and `checkpoint` are no parts.
    pub verdict: String,
    /// None: it was not a number.
    pub score: Option<f64>,
    pub confidence: Option<f64>,
    pub latency_ms: Option<f64>,
    pub model: String,
    /// Id of the anomaly.
    pub event: Option<String>,
    pub frames: i64,
    pub reasons: Vec<String>,
    pub late_ms: Option<f64>,
    pub lot: Option<String>,
    pub serial: Option<String>,
    /// What an interrupted row or a checkpoint says.
    pub detail: Option<serde_json::Value>,
    pub delivered_at: Option<Timestamp>,
    /// How the anomaly left the spool other than by delivery.
    pub fate: Option<String>,
    /// Part numbers go on over the runs of this line.
    pub continued: bool,
    /// Hex.
    pub hash: Option<String>,
}

/// The heads of a CSV export, in the order of [`LedgerEntry::fields`].
pub const FIELDS: [&str; 22] = [
    "line",
    "chain",
    "run",
    "part",
    "frame",
    "captured_at",
    "verdict",
    "score",
    "confidence",
    "latency_ms",
    "model",
    "event",
    "frames",
    "reasons",
    "late_ms",
    "lot",
    "serial",
    "detail",
    "delivered_at",
    "fate",
    "continued",
    "hash",
];

impl LedgerEntry {
    /// As CSV fields; empty for what is not there, reasons separated by `; `.
    pub fn fields(&self) -> Vec<String> {
        fn text<T: ToString>(value: &Option<T>) -> String {
            value.as_ref().map(T::to_string).unwrap_or_default()
        }
        let mut fields = vec![self.line.clone(), text(&self.chain), self.run.clone(), text(&self.part)];
        fields.extend([self.frame.to_string(), self.captured_at.to_string(), self.verdict.clone()]);
        fields.extend([&self.score, &self.confidence, &self.latency_ms].map(text));
        fields.extend([self.model.clone(), text(&self.event), self.frames.to_string(), self.reasons.join("; ")]);
        fields.extend([text(&self.late_ms), text(&self.lot), text(&self.serial), text(&self.detail)]);
        fields.extend([text(&self.delivered_at), text(&self.fate), self.continued.to_string(), text(&self.hash)]);
        fields
    }
}

/// Which rows; all that is none lets everything through.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub line: Option<String>,
    pub verdict: Option<String>,
    /// Triggered at or after.
    pub since: Option<Timestamp>,
    /// Triggered before.
    pub until: Option<Timestamp>,
    pub lot: Option<String>,
    pub serial: Option<String>,
}

/// The ledger of a database, read-only.
pub struct Ledger {
    pub(super) connection: Connection,
    name: String,
}

impl Ledger {
    pub fn open(path: &Path) -> Result<Ledger> {
        let name = path.display().to_string();
        if !path.is_file() {
            return Err(Error::missing(format!("there is no database \"{name}\""))
                .hint("--spool names the file that `run` and `inspect --review` write"));
        }
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let version = recognise(&connection, path, MIGRATIONS.len())?;
        if version < MIGRATIONS.len() {
            return Err(Error::failed(format!(
                "\"{name}\" was written by an older linesight (schema {version}, this one reads {})",
                MIGRATIONS.len()
            ))
            .hint("`run` or `inspect --review` with it once: that brings it up to date"));
        }
        // one state of the database for all that is asked
        let ledger = Ledger { connection, name };
        ledger.connection.execute_batch("BEGIN").map_err(|e| ledger.unreadable(e))?;
        Ok(ledger)
    }

    pub(super) fn unreadable(&self, e: rusqlite::Error) -> Error {
        let damaged = matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            || super::spool::unreadable(&e);
        let error = Error::failed(format!("cannot read \"{}\"", self.name)).because(e);
        match damaged {
            true => error.hint("the file is damaged: copy it away, and take rows from the last export or backup"),
            false => error,
        }
    }

    /// Names of all lines, sorted.
    pub fn lines(&self) -> Result<Vec<String>> {
        let read = || -> Sql<Vec<String>> {
            // of the table that knows lines, and of rows that a hand has put in; one step for each line
            let sql = "WITH RECURSIVE names (line) AS (SELECT min(line) FROM ledger UNION ALL
                       SELECT (SELECT min(line) FROM ledger WHERE ledger.line > names.line) FROM names
                       WHERE names.line IS NOT NULL)
                       SELECT line FROM names WHERE line IS NOT NULL UNION SELECT line FROM lines ORDER BY 1";
            self.connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
        };
        read().map_err(|e| self.unreadable(e))
    }

    /// The newest rows that pass, newest first.
    pub fn newest(&self, filter: &Filter, limit: usize) -> Result<Vec<LedgerEntry>> {
        let mut found = Vec::new();
        let lines = self.lines_of(filter)?;
        for line in &lines {
            self.each(line, filter, true, limit, |entry| {
                found.push(entry);
                Ok(())
            })?;
        }
        // within a line the chain says what is newer; between lines the clock
        if lines.len() > 1 {
            found.sort_by_key(|entry: &LedgerEntry| std::cmp::Reverse(entry.captured_at));
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Every row that passes, line by line, oldest first.
    pub fn oldest(&self, filter: &Filter, mut take: impl FnMut(LedgerEntry) -> Result<()>) -> Result<()> {
        for line in self.lines_of(filter)? {
            self.each(&line, filter, false, usize::MAX, &mut take)?;
        }
        Ok(())
    }

    fn lines_of(&self, filter: &Filter) -> Result<Vec<String>> {
        let lines = self.lines()?;
        match &filter.line {
            None => Ok(lines),
            Some(line) if lines.contains(line) => Ok(vec![line.clone()]),
            Some(line) => {
                let known: Vec<String> = lines.iter().map(|line| format!("\"{line}\"")).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(Error::usage(format!("the ledger has no line \"{line}\"")).hint(format!("its lines: {known}")))
            }
        }
    }

    fn each(
        &self,
        line: &str,
        filter: &Filter,
        newest: bool,
        limit: usize,
        mut take: impl FnMut(LedgerEntry) -> Result<()>,
    ) -> Result<()> {
        let mut sql = format!("SELECT {COLUMNS} FROM ledger WHERE line = ?");
        let mut values = vec![Value::from(line.to_owned())];
        for (condition, value) in [
            ("verdict = ?", filter.verdict.clone().map(Value::from)),
            ("captured_at >= ?", filter.since.map(|t| Value::from(nanos(t)))),
            ("captured_at < ?", filter.until.map(|t| Value::from(nanos(t)))),
            ("lot = ?", filter.lot.clone().map(Value::from)),
            ("serial = ?", filter.serial.clone().map(Value::from)),
        ] {
            if let Some(value) = value {
                sql += &format!(" AND {condition}");
                values.push(value);
            }
        }
        // NULL, which is older than the chain, is smallest
        let order = if newest { "DESC" } else { "ASC" };
        sql += &format!(" ORDER BY chain {order}, run {order}, part {order} LIMIT ?");
        values.push(Value::from(i64::try_from(limit).unwrap_or(i64::MAX)));
        let mut read = self.connection.prepare(&sql).map_err(|e| self.unreadable(e))?;
        let mut rows = read.query(params_from_iter(values)).map_err(|e| self.unreadable(e))?;
        while let Some(row) = rows.next().map_err(|e| self.unreadable(e))? {
            take(entry(row).map_err(|e| self.unreadable(e))?)?;
        }
        Ok(())
    }

    /// The rows of a line's chain in order, each with its hash; one that cannot be read is an error of its own.
    pub(super) fn chain(&self, line: &str, mut take: impl FnMut(i64, Sql<(Stored, Hash)>) -> bool) -> Result<()> {
        let sql = format!("SELECT {COLUMNS} FROM ledger WHERE line = ?1 AND chain IS NOT NULL ORDER BY chain");
        let mut read = self.connection.prepare(&sql).map_err(|e| self.unreadable(e))?;
        let mut rows = read.query([line]).map_err(|e| self.unreadable(e))?;
        while let Some(row) = rows.next().map_err(|e| self.unreadable(e))? {
            let place = row.get(1).unwrap_or(-1);
            if !take(place, stored(row).and_then(|stored| Ok((stored, row.get(19)?)))) {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn stored(row: &Row<'_>) -> Sql<Stored> {
    Ok(Stored {
        line: row.get(0)?,
        chain: row.get::<_, Option<i64>>(1)?.unwrap_or(-1),
        run: row.get(2)?,
        part: row.get(3)?,
        frame: row.get(4)?,
        captured_at: row.get(5)?,
        verdict: row.get(6)?,
        score: row.get(7)?,
        confidence: row.get(8)?,
        latency_ms: row.get(9)?,
        model: row.get(10)?,
        event: row.get(11)?,
        frames: row.get(12)?,
        reasons: row.get(13)?,
        late_ms: row.get(14)?,
        lot: row.get(15)?,
        serial: row.get(16)?,
        continued: row.get(17)?,
        detail: row.get(18)?,
    })
}

fn entry(row: &Row<'_>) -> Sql<LedgerEntry> {
    let stored = stored(row)?;
    Ok(LedgerEntry {
        line: stored.line,
        chain: row.get(1)?,
        run: stored.run,
        part: (stored.part >= 0).then_some(stored.part),
        frame: stored.frame,
        captured_at: timestamp(stored.captured_at),
        verdict: stored.verdict,
        score: stored.score,
        confidence: stored.confidence,
        latency_ms: stored.latency_ms,
        model: stored.model,
        event: stored.event,
        frames: stored.frames,
        reasons: stored.reasons.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        late_ms: stored.late_ms,
        lot: stored.lot,
        serial: stored.serial,
        detail: stored.detail.and_then(|json| serde_json::from_str(&json).ok()),
        delivered_at: row.get::<_, Option<i64>>(20)?.map(timestamp),
        fate: row.get(21)?,
        continued: stored.continued,
        hash: row.get::<_, Option<Vec<u8>>>(19)?.map(|hash| hex(&hash)),
    })
}
