//! What `linesight spool` does: looking at what waits in the spool, and the decisions of a person about it (send it again,
//! take it away as files, give it up). Works on the database beside a running linesight, whose writer looks once a second
//! whether somebody else has changed it, and when none runs.
//!
//! Invariants, each with the test that holds it (tests/spool.rs):
//! 1. Looking and exporting change nothing: `looking_changes_nothing`.
//! 2. Each decision is one transaction, and the ledger reconciles after it: `retried_by_hand`, `given_up_by_hand`.
//! 3. A running linesight goes on with what was decided, without a restart: `a_running_linesight_notices`.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::Serialize;
use uuid::Uuid;

use super::Pictures;
use super::chain::timestamp;
use super::database::Sql;
use super::schema::{MIGRATIONS, connect, recognise};
use super::spool::{remove, set_fate};
use crate::error::{Error, Result};
use crate::event::Event;

/// How an anomaly does with one target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Delivery {
    pub target: String,
    /// `waiting`, `aside` (the endpoint refuses for now), `dead` (not tried again until a person says so).
    pub state: String,
    pub attempts: i64,
    pub last_error: Option<String>,
    /// Of those set aside; none: as soon as its turn comes.
    pub next_try: Option<Timestamp>,
}

/// An anomaly in the spool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Letter {
    pub id: String,
    pub line: String,
    pub part: i64,
    pub spooled_at: Timestamp,
    /// `waiting`, or `dead`: no target would take it.
    pub state: String,
    /// None: the event cannot be read.
    pub score: Option<f32>,
    pub confidence: Option<f32>,
    pub verdict: Option<String>,
    /// Of event and pictures.
    pub bytes: i64,
    /// Its pictures made room for others, or were lost.
    pub stripped: bool,
    pub targets: Vec<Delivery>,
    #[serde(skip)]
    seq: i64,
}

/// Which anomalies; what is none lets everything through.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// That some target will not get without a person.
    pub dead: bool,
    pub target: Option<String>,
    pub line: Option<String>,
}

/// What a decision changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub anomalies: u64,
    pub deliveries: u64,
    /// Those that left the spool with it.
    pub removed: u64,
    /// Id, line and part of each.
    #[serde(skip)]
    pub which: Vec<(Uuid, String, u64)>,
}

/// The spool of a database.
pub struct DeadLetters {
    connection: Connection,
    name: String,
}

impl DeadLetters {
    /// For looking.
    pub fn open(path: &Path) -> Result<DeadLetters> {
        Self::with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// For deciding.
    pub fn open_writing(path: &Path) -> Result<DeadLetters> {
        Self::with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    fn with(path: &Path, flags: OpenFlags) -> Result<DeadLetters> {
        let name = path.display().to_string();
        if !path.is_file() {
            return Err(Error::missing(format!("there is no database \"{name}\""))
                .hint("--spool names the file that `run` and `inspect --review` write"));
        }
        let connection = connect(path, flags)?;
        let version = recognise(&connection, path, MIGRATIONS.len())?;
        if version < MIGRATIONS.len() {
            return Err(Error::failed(format!(
                "\"{name}\" was written by an older linesight (schema {version}, this one reads {})",
                MIGRATIONS.len()
            ))
            .hint("`run` or `inspect --review` with it once: that brings it up to date"));
        }
        let letters = DeadLetters { connection, name };
        letters.say(letters.connection.pragma_update(None, "synchronous", "FULL"))?;
        Ok(letters)
    }

    fn say<T>(&self, result: Sql<T>) -> Result<T> {
        result.map_err(|e| {
            let code = e.sqlite_error_code();
            let error = Error::failed(format!("cannot work on \"{}\"", self.name)).because(e);
            match code {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    error.hint("the file is damaged: the next start of `run` salvages what can be read")
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    error.hint("another process is writing to it: try again")
                }
                Some(ErrorCode::ReadOnly) => error.hint("run this as the user that linesight runs as"),
                _ => error,
            }
        })
    }

    /// Anomalies, oldest first.
    pub fn list(&self, which: &Which) -> Result<Vec<Letter>> {
        self.say(list(&self.connection, which))
    }

    /// Those with these ids, which may be cut short as long as each means one anomaly.
    pub fn find(&self, ids: &[String], which: &Which) -> Result<Vec<Letter>> {
        let all = self.list(&Which::default())?;
        let mut found = Vec::<Letter>::new();
        for id in ids {
            let wanted = id.to_lowercase();
            let hits: Vec<&Letter> = all.iter().filter(|letter| letter.id.starts_with(&wanted)).collect();
            let letter = match hits[..] {
                _ if wanted.is_empty() => None,
                [one] => Some(one),
                [] => None,
                _ => {
                    let some: Vec<&str> = hits.iter().take(3).map(|letter| letter.id.as_str()).collect();
                    return Err(Error::usage(format!("\"{id}\" is the beginning of {} ids", hits.len()))
                        .hint(format!("give more of it: {}", some.join(", "))));
                }
            };
            let Some(letter) = letter else {
                return Err(Error::usage(format!("the spool has no anomaly \"{id}\""))
                    .hint("`linesight spool list` shows what is there; what was delivered has left it"));
            };
            let owed = which.target.as_ref().is_none_or(|name| letter.targets.iter().any(|t| t.target == *name));
            if !owed {
                let name = which.target.as_deref().unwrap_or_default();
                return Err(Error::usage(format!("anomaly \"{id}\" does not wait for the target \"{name}\""))
                    .hint("`linesight spool show` lists the targets that still have to get it"));
            }
            if !found.iter().any(|other| other.seq == letter.seq) {
                found.push(letter.clone());
            }
        }
        Ok(found)
    }

    /// The event as it is stored, and the pictures.
    pub fn content(&self, letter: &Letter) -> Result<(String, Pictures)> {
        let sql = "SELECT CAST(event AS BLOB), frame, heatmap, normal FROM spool LEFT JOIN pictures USING (seq) WHERE spool.seq = ?1 AND id = ?2";
        let read = |row: &rusqlite::Row<'_>| {
            let event: Vec<u8> = row.get(0)?;
            let bytes = |at: usize| -> Sql<Option<Vec<u8>>> {
                Ok(row.get::<_, Option<Vec<u8>>>(at)?.filter(|bytes| !bytes.is_empty()))
            };
            let pictures = Pictures {
                frame_jpeg: bytes(1)?.unwrap_or_default(),
                heatmap_png: bytes(2)?.unwrap_or_default(),
                normal_jpeg: bytes(3)?,
            };
            Ok((String::from_utf8_lossy(&event).into_owned(), pictures))
        };
        let found = self.connection.query_row(sql, params![letter.seq, letter.id], read).optional();
        self.say(found)?.ok_or_else(|| {
            Error::failed(format!("anomaly \"{}\" has left the spool meanwhile", letter.id))
                .hint("it was delivered or made room for others: `linesight ledger list` says which")
        })
    }

    /// Has dead ones and those set aside sent again at once: of one target, or of all.
    pub fn retry(&mut self, letters: &[Letter], target: Option<&str>) -> Result<Changed> {
        self.each(letters, |transaction, letter, changed| {
            let sql = "UPDATE delivery SET state = 'waiting', next_try = 0 WHERE seq = ?1 AND state != 'waiting'
                       AND (?2 IS NULL OR target = ?2)";
            let count = transaction.prepare_cached(sql)?.execute(params![letter.seq, target])?;
            if count > 0 {
                transaction
                    .prepare_cached("UPDATE spool SET state = 'waiting' WHERE seq = ?1")?
                    .execute([letter.seq])?;
                set_fate(transaction, letter.seq, None)?;
            }
            changed.deliveries += count as u64;
            Ok(count > 0)
        })
    }

    /// Gives up what one target, or all, still have to get. What no target has to get any more leaves the spool.
    pub fn purge(&mut self, letters: &[Letter], target: Option<&str>) -> Result<Changed> {
        self.each(letters, |transaction, letter, changed| {
            let sql = "DELETE FROM delivery WHERE seq = ?1 AND (?2 IS NULL OR target = ?2)";
            let count = transaction.prepare_cached(sql)?.execute(params![letter.seq, target])?;
            changed.deliveries += count as u64;
            let (left, dead): (i64, i64) = transaction
                .prepare_cached("SELECT count(*), count(*) FILTER (WHERE state = 'dead') FROM delivery WHERE seq = ?1")?
                .query_row([letter.seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if left == 0 {
                set_fate(transaction, letter.seq, Some("purged"))?;
                remove(transaction, letter.seq)?;
                changed.removed += 1;
            } else if count > 0 && left == dead {
                // those that are left will not take it either
                transaction.prepare_cached("UPDATE spool SET state = 'dead' WHERE seq = ?1")?.execute([letter.seq])?;
                set_fate(transaction, letter.seq, Some("dead"))?;
            }
            Ok(count > 0 || left == 0)
        })
    }

    fn each(
        &mut self,
        letters: &[Letter],
        mut change: impl FnMut(&Connection, &Letter, &mut Changed) -> Sql<bool>,
    ) -> Result<Changed> {
        let connection = &mut self.connection;
        let mut decide = || -> Sql<Changed> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut changed = Changed::default();
            for letter in letters {
                // it may have been delivered since it was looked at
                let there: bool = transaction
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM spool WHERE seq = ?1 AND id = ?2)")?
                    .query_row(params![letter.seq, letter.id], |row| row.get(0))?;
                if there && change(&transaction, letter, &mut changed)? {
                    changed.anomalies += 1;
                    // what has no id that is one was never told of either
                    let part = letter.part.max(0).cast_unsigned();
                    changed.which.extend(Uuid::parse_str(&letter.id).map(|id| (id, letter.line.clone(), part)));
                }
            }
            transaction.commit()?;
            Ok(changed)
        };
        let decided = decide();
        self.say(decided)
    }
}

fn list(connection: &Connection, which: &Which) -> Sql<Vec<Letter>> {
    let mut targets = BTreeMap::<i64, Vec<Delivery>>::new();
    let sql = "SELECT seq, target, state, attempts, last_error, next_try FROM delivery ORDER BY seq, target";
    let mut read = connection.prepare(sql)?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let state: String = row.get(2)?;
        let next_try = Some(row.get::<_, i64>(5)?).filter(|at| state == "aside" && *at > 0).map(timestamp);
        let delivery =
            Delivery { target: row.get(1)?, state, attempts: row.get(3)?, last_error: row.get(4)?, next_try };
        targets.entry(row.get(0)?).or_default().push(delivery);
    }
    let sql =
        "SELECT seq, id, line, part, spooled_at, state, CAST(event AS BLOB), bytes, stripped FROM spool ORDER BY seq";
    let mut read = connection.prepare(sql)?;
    let mut rows = read.query([])?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        let seq = row.get(0)?;
        let event = serde_json::from_slice::<Event>(row.get_ref(6)?.as_blob()?).ok();
        let letter = Letter {
            id: row.get(1)?,
            line: row.get(2)?,
            part: row.get(3)?,
            spooled_at: timestamp(row.get(4)?),
            state: row.get(5)?,
            score: event.as_ref().map(|event| event.score),
            confidence: event.as_ref().map(|event| event.confidence),
            verdict: event.as_ref().map(|event| event.verdict.as_str().to_owned()),
            bytes: row.get(7)?,
            stripped: row.get(8)?,
            targets: targets.remove(&seq).unwrap_or_default(),
            seq,
        };
        let of = |delivery: &Delivery| {
            which.target.as_ref().is_none_or(|name| *name == delivery.target)
                && (!which.dead || delivery.state == "dead")
        };
        let asked = !which.dead && which.target.is_none() || letter.targets.iter().any(of);
        if asked && which.line.as_ref().is_none_or(|line| *line == letter.line) {
            letters.push(letter);
        }
    }
    Ok(letters)
}
