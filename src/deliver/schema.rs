//! The SQLite file's schema, and opening it. Changes nothing in a file that is not ours.
//!
//! Invariants, each with the test that holds it:
//! 1. The schema changes step by step, each step whole or not at all: `an_older_schema_is_brought_up_to_date_once`.
//! 2. A ledger from before the chain is brought over and keeps its rows, outside the chain: `an_old_file_is_brought_over`
//!    (tests/ledger.rs).

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::database::Sql;
use crate::error::{Context, Error, Result};

/// Marks the file as ours ("LSGT").
pub(super) const APPLICATION: i32 = 0x4c53_4754;
/// Schema changes in order; `user_version` counts those that were made. Add at the end, never change one.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    -- times are nanoseconds since 1970 UTC; ids are hyphenated UUIDs
    CREATE TABLE ledger (
        line TEXT NOT NULL, run TEXT NOT NULL, part INTEGER NOT NULL, frame INTEGER NOT NULL,
        captured_at INTEGER NOT NULL, verdict TEXT NOT NULL, score REAL, confidence REAL, latency_ms REAL,
        model TEXT NOT NULL, event TEXT, delivered_at INTEGER,
        PRIMARY KEY (line, run, part)
    ) WITHOUT ROWID;
    -- state: waiting, or aside (refused by the endpoint: tried at the slowest pace, after the others)
    CREATE TABLE spool (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, line TEXT NOT NULL, run TEXT NOT NULL, part INTEGER NOT NULL,
        event TEXT NOT NULL, spooled_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        next_try INTEGER NOT NULL DEFAULT 0, last_error TEXT, state TEXT NOT NULL DEFAULT 'waiting'
    );
    CREATE INDEX spool_order ON spool (state, seq);
    -- apart from spool, so that counting an attempt does not rewrite them
    CREATE TABLE pictures (seq INTEGER PRIMARY KEY, frame BLOB NOT NULL, heatmap BLOB NOT NULL, normal BLOB);
",
    "
    ALTER TABLE ledger ADD COLUMN frames INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE ledger ADD COLUMN reasons TEXT;
    ALTER TABLE ledger ADD COLUMN late_ms REAL;
    ALTER TABLE ledger ADD COLUMN lot TEXT;
    ALTER TABLE ledger ADD COLUMN serial TEXT;
    -- place in the line's chain and hash of the row; NULL for rows that are older than the chain
    ALTER TABLE ledger ADD COLUMN chain INTEGER;
    ALTER TABLE ledger ADD COLUMN hash BLOB;
    -- 1: part numbers of this line go on over its runs
    ALTER TABLE ledger ADD COLUMN continued INTEGER NOT NULL DEFAULT 0;
    -- of rows that are no parts ('interrupted', 'checkpoint'), whose part is -1 - chain
    ALTER TABLE ledger ADD COLUMN detail TEXT;
    -- how the anomaly left the spool other than by delivery: 'dead', 'dropped', 'purged'
    ALTER TABLE ledger ADD COLUMN fate TEXT;
    CREATE UNIQUE INDEX ledger_chain ON ledger (line, chain);
    CREATE UNIQUE INDEX ledger_number ON ledger (line, part) WHERE continued = 1;
    CREATE TABLE lines (
        line TEXT PRIMARY KEY,
        -- the next place in the chain, and the hash of the last row
        chain INTEGER NOT NULL DEFAULT 0, hash BLOB NOT NULL,
        -- rows that are older than the chain
        unchained INTEGER NOT NULL DEFAULT 0,
        -- numbers: the next one, the first that is not reserved, the next one when this run began
        next_part INTEGER NOT NULL DEFAULT 0, reserved INTEGER NOT NULL DEFAULT 0, first_part INTEGER NOT NULL DEFAULT 0,
        -- the journal's nonce (as a signed number) and the last of its entries that is here
        journal INTEGER, journal_seq INTEGER NOT NULL DEFAULT 0,
        -- of the latest start; clean: 0 while it runs, 1 after it stopped, NULL: never numbered
        boot TEXT, clean INTEGER,
        last_at INTEGER, reported INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    INSERT INTO lines (line, hash, unchained) SELECT line, zeroblob(32), count(*) FROM ledger GROUP BY line;
    -- state as in spool
    CREATE TABLE reports (
        id INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL, run TEXT NOT NULL, seq INTEGER NOT NULL,
        report TEXT NOT NULL, stored_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        next_try INTEGER NOT NULL DEFAULT 0, last_error TEXT, state TEXT NOT NULL DEFAULT 'waiting'
    );
    CREATE INDEX reports_order ON reports (state, id);
",
    "
    -- state: waiting; dead when no target that still has to get it ever will without a person
    DROP INDEX spool_order;
    -- of event and pictures
    ALTER TABLE spool ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE spool ADD COLUMN confidence REAL NOT NULL DEFAULT 1;
    -- 1: its pictures made room for others, plain ones stand in for them
    ALTER TABLE spool ADD COLUMN stripped INTEGER NOT NULL DEFAULT 0;
    UPDATE spool SET bytes = length(CAST(event AS BLOB)) + coalesce((SELECT length(frame) + length(heatmap) +
        coalesce(length(normal), 0) FROM pictures WHERE pictures.seq = spool.seq), 0);
    CREATE INDEX spool_with_pictures ON spool (seq) WHERE stripped = 0;
    CREATE INDEX spool_confidence ON spool (confidence, seq);
    -- what each target still has to get. state: waiting, aside (the endpoint refuses: tried at the slowest pace, after the
    -- others), dead (this anomaly is refused: not tried again until a person says so)
    CREATE TABLE delivery (
        target TEXT NOT NULL, seq INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
        attempts INTEGER NOT NULL DEFAULT 0, next_try INTEGER NOT NULL DEFAULT 0, last_error TEXT,
        PRIMARY KEY (target, seq)
    ) WITHOUT ROWID;
    CREATE INDEX delivery_order ON delivery (target, state, seq);
    CREATE INDEX delivery_item ON delivery (seq);
    INSERT INTO delivery SELECT 'review', seq, state, attempts, next_try, last_error FROM spool;
    ALTER TABLE spool DROP COLUMN attempts;
    ALTER TABLE spool DROP COLUMN next_try;
    ALTER TABLE spool DROP COLUMN last_error;
    UPDATE spool SET state = 'waiting';
    -- CRC-32 of an anomaly's event, and of its pictures: a bit that flips on the disk is seen before it is sent
    CREATE TABLE sums (seq INTEGER PRIMARY KEY, event INTEGER NOT NULL, pictures INTEGER NOT NULL);
    -- 1: its pictures made room for others before they were delivered
    ALTER TABLE ledger ADD COLUMN stripped INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX ledger_event ON ledger (event) WHERE event IS NOT NULL;
",
];

pub(super) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let open = || -> Sql<Connection> {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok(connection)
    };
    open().failed(|| format!("cannot open \"{}\"", path.display()))
}

/// The schema version of a file that is new or ours; anything else is an error. Changes nothing.
pub(super) fn recognise(connection: &Connection, path: &Path, known: usize) -> Result<usize> {
    let name = path.display();
    let look = || -> Sql<(usize, i32, i64)> {
        let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
        let application = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((usize::try_from(version).unwrap_or(usize::MAX), application, tables))
    };
    let leave = "move it away or name another file; it was not changed";
    match look() {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            Err(Error::failed(format!("\"{name}\" is not a database")).hint(leave))
        }
        Err(e) => Err(Error::failed(format!("cannot read \"{name}\"")).because(e)),
        Ok((0, _, 0)) => Ok(0),
        Ok((_, application, _)) if application != APPLICATION => {
            Err(Error::failed(format!("\"{name}\" is a database of another program")).hint(leave))
        }
        Ok((version, ..)) if version > known => Err(Error::failed(format!(
            "\"{name}\" was written by a newer linesight (schema {version}, this one knows {known})"
        ))
        .hint("use that linesight, or name another file; it was not changed")),
        Ok((version, ..)) => Ok(version),
    }
}
