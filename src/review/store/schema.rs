//! The tables of `review.db`, and how a database of an older version gets them.

use rusqlite::Connection;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::review::{accounts, reports};

/// One step per schema version: `MIGRATIONS[n]` brings a database from `user_version` n to n + 1. Append only.
pub(super) const MIGRATIONS: &[&str] = &[ANOMALIES, reports::TABLES, REVIEWS, accounts::TABLES];

const ANOMALIES: &str = "
    CREATE TABLE anomalies (
        id          TEXT PRIMARY KEY NOT NULL,
        captured_at INTEGER NOT NULL, -- nanoseconds since 1970, UTC
        received_at INTEGER NOT NULL,
        line        TEXT NOT NULL,
        verdict     TEXT NOT NULL,
        event       TEXT NOT NULL     -- as posted
    ) STRICT;
    CREATE INDEX anomalies_by_time ON anomalies (captured_at, id);
    CREATE INDEX anomalies_by_line ON anomalies (line, captured_at, id);
    CREATE INDEX anomalies_by_verdict ON anomalies (verdict, captured_at, id);
    CREATE INDEX anomalies_by_line_verdict ON anomalies (line, verdict, captured_at, id);
    CREATE TABLE objects (
        anomaly TEXT NOT NULL REFERENCES anomalies (id),
        name    TEXT NOT NULL,
        size    INTEGER NOT NULL,
        sha256  TEXT NOT NULL,
        PRIMARY KEY (anomaly, name)
    ) STRICT, WITHOUT ROWID;
";

/// People's decisions, and what lists are filtered and sorted by.
const REVIEWS: &str = "
    ALTER TABLE anomalies ADD COLUMN part INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE anomalies ADD COLUMN score REAL NOT NULL DEFAULT 0;
    ALTER TABLE anomalies ADD COLUMN confidence REAL NOT NULL DEFAULT 0;
    ALTER TABLE anomalies ADD COLUMN model TEXT NOT NULL DEFAULT '';   -- name@version
    ALTER TABLE anomalies ADD COLUMN lot TEXT;
    ALTER TABLE anomalies ADD COLUMN serial TEXT;
    ALTER TABLE anomalies ADD COLUMN place_x REAL;   -- of the strongest region in the judged box, 0..1
    ALTER TABLE anomalies ADD COLUMN place_y REAL;
    ALTER TABLE anomalies ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0; -- event and pictures
    -- the review that holds; '' and NULL while there is none
    ALTER TABLE anomalies ADD COLUMN review TEXT NOT NULL DEFAULT '';
    ALTER TABLE anomalies ADD COLUMN review_seq INTEGER;
    ALTER TABLE anomalies ADD COLUMN defect_type TEXT;
    UPDATE anomalies SET
        part = event ->> '$.part', score = event ->> '$.score', confidence = event ->> '$.confidence',
        model = (event ->> '$.model.name') || '@' || (event ->> '$.model.version'),
        lot = event ->> '$.lot', serial = event ->> '$.serial',
        bytes = length(event) + (SELECT COALESCE(SUM(size), 0) FROM objects o WHERE o.anomaly = anomalies.id);
    CREATE TABLE reviews (         -- append only
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        anomaly     TEXT NOT NULL,
        at          INTEGER NOT NULL,
        reviewer    TEXT NOT NULL,
        decision    TEXT NOT NULL, -- '': the one that held was taken back
        defect_type TEXT,
        comment     TEXT,
        took_back   INTEGER        -- the review that was taken back
    ) STRICT;
    CREATE INDEX reviews_by_anomaly ON reviews (anomaly, seq);
    CREATE TABLE defect_types (
        position INTEGER PRIMARY KEY,
        name     TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE INDEX anomalies_by_confidence ON anomalies (confidence, id);
    CREATE INDEX anomalies_by_review ON anomalies (review, captured_at, id);
    CREATE INDEX anomalies_by_serial ON anomalies (serial, captured_at, id) WHERE serial IS NOT NULL;
    CREATE INDEX anomalies_by_lot ON anomalies (lot, captured_at, id) WHERE lot IS NOT NULL;
";

/// Brings a database up to date, each step in a transaction of its own.
pub(super) fn migrate(db: &Connection, dir: &Path) -> Result<()> {
    let cannot = || format!("cannot bring the database in \"{}\" up to date", dir.display());
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).failed(cannot)?;
    let Some(steps) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        let known = MIGRATIONS.len();
        return Err(Error::usage(format!(
            "the database in \"{}\" has schema {found}, this version of linesight knows {known}",
            dir.display()
        ))
        .hint("it was written by a newer linesight: update this one, or give another directory with --data"));
    };
    for (version, step) in (found + 1..).zip(steps) {
        db.execute_batch(&format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {version}; COMMIT;"))
            .failed(cannot)?;
    }
    Ok(())
}
