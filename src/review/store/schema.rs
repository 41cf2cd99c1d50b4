//! The tables of `review.db`, and how a database of an older version gets them.

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::review::{accounts, reports};

/// One step per schema version: `MIGRATIONS[n]` brings a database from `user_version` n to n + 1. Append only.
pub(super) const MIGRATIONS: &[&str] = &[ANOMALIES, reports::TABLES, REVIEWS, accounts::TABLES, HOURS];

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
///
/// `anomalies` is narrow, so that many fit a page; the events themselves are beside it. What has few values (line, model,
/// verdict, decision, type of defect) is in `tallies`: a list limited to some of them is a merge of as many ranges of an index,
/// and counts are there without counting.
const REVIEWS: &str = "
    CREATE TABLE origins (         -- who judged: a line with a model
        id        INTEGER PRIMARY KEY,
        line      TEXT NOT NULL,
        model     TEXT NOT NULL,   -- name@version
        threshold REAL NOT NULL,   -- the last one heard of
        heard_at  INTEGER NOT NULL,
        UNIQUE (line, model)
    ) STRICT;
    CREATE TABLE tallies (         -- anomalies that agree in all of these
        id          INTEGER PRIMARY KEY,
        origin      INTEGER NOT NULL REFERENCES origins (id),
        verdict     TEXT NOT NULL,
        review      TEXT NOT NULL, -- decision that holds, '' while there is none
        defect_type TEXT NOT NULL, -- '' where there is none
        count       INTEGER NOT NULL,
        bytes       INTEGER NOT NULL,
        UNIQUE (origin, verdict, review, defect_type)
    ) STRICT;
    CREATE TABLE revision (n INTEGER NOT NULL) STRICT; -- grows with every change of a list
    CREATE TABLE trash (id TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID; -- rows are gone, files go next

    ALTER TABLE objects RENAME TO objects_before;
    ALTER TABLE anomalies RENAME TO anomalies_before;
    DROP INDEX anomalies_by_time;
    DROP INDEX anomalies_by_line;
    DROP INDEX anomalies_by_verdict;
    DROP INDEX anomalies_by_line_verdict;
    CREATE TABLE anomalies (
        n           INTEGER PRIMARY KEY AUTOINCREMENT,
        id          TEXT NOT NULL UNIQUE,
        captured_at INTEGER NOT NULL, -- nanoseconds since 1970, UTC
        received_at INTEGER NOT NULL,
        origin      INTEGER NOT NULL REFERENCES origins (id),
        tally       INTEGER NOT NULL REFERENCES tallies (id),
        part        INTEGER NOT NULL,
        score       REAL NOT NULL,
        confidence  REAL NOT NULL,
        lot         TEXT,
        serial      TEXT,
        place_x     REAL,             -- of the strongest region in the judged box, 0..1
        place_y     REAL,
        spot        INTEGER,          -- coarse cell of that place
        bytes       INTEGER NOT NULL, -- event and pictures
        review_seq  INTEGER,          -- the review that holds
        reviewers   INTEGER NOT NULL DEFAULT 0 -- people whose decision was not taken back
    ) STRICT;
    CREATE TABLE events (
        n     INTEGER PRIMARY KEY REFERENCES anomalies (n),
        event TEXT NOT NULL        -- as posted
    ) STRICT;
    CREATE TABLE objects (
        n      INTEGER NOT NULL REFERENCES anomalies (n),
        name   TEXT NOT NULL,
        size   INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (n, name)
    ) STRICT, WITHOUT ROWID;

    CREATE TEMP TABLE before AS
        SELECT b.rowid AS n, b.id, b.captured_at, b.received_at, b.line, b.verdict,
            COALESCE((event ->> '$.model.name') || '@' || (event ->> '$.model.version'), '') AS model,
            f32(COALESCE(event ->> '$.threshold', 0)) AS threshold,
            length(CAST(event AS BLOB)) + (SELECT COALESCE(SUM(size), 0) FROM objects_before o WHERE o.anomaly = b.id) AS bytes,
            (SELECT r.value FROM json_each(event, '$.regions') r ORDER BY r.value ->> '$.score' DESC LIMIT 1) AS region,
            CASE WHEN (event ->> '$.part_box.w') > 0 AND (event ->> '$.part_box.h') > 0 THEN event -> '$.part_box'
                ELSE json_object('x', 0, 'y', 0, 'w', event ->> '$.image.width', 'h', event ->> '$.image.height') END AS box
        FROM anomalies_before b;
    INSERT INTO origins (line, model, threshold, heard_at)
        SELECT line, model, threshold, MAX(received_at) FROM before GROUP BY line, model;
    INSERT INTO tallies (origin, verdict, review, defect_type, count, bytes)
        SELECT o.id, b.verdict, '', '', COUNT(*), SUM(b.bytes)
        FROM before b JOIN origins o USING (line, model) GROUP BY o.id, b.verdict;
    INSERT INTO anomalies (n, id, captured_at, received_at, origin, tally, part, score, confidence, lot, serial,
            place_x, place_y, bytes)
        SELECT b.n, b.id, b.captured_at, b.received_at, o.id, t.id, COALESCE(a.event ->> '$.part', 0),
            f32(COALESCE(a.event ->> '$.score', 0)),
            f32(COALESCE(a.event ->> '$.confidence', 0)), a.event ->> '$.lot', a.event ->> '$.serial',
            MIN(1.0, MAX(0.0, ((region ->> '$.x') + (region ->> '$.w') / 2.0 - (box ->> '$.x')) / MAX(1.0, box ->> '$.w'))),
            MIN(1.0, MAX(0.0, ((region ->> '$.y') + (region ->> '$.h') / 2.0 - (box ->> '$.y')) / MAX(1.0, box ->> '$.h'))),
            b.bytes
        FROM before b JOIN anomalies_before a ON a.rowid = b.n JOIN origins o USING (line, model)
        JOIN tallies t ON t.origin = o.id AND t.verdict = b.verdict ORDER BY b.n;
    UPDATE anomalies SET spot = MIN(11, CAST(place_y * 12 AS INTEGER)) * 12 + MIN(11, CAST(place_x * 12 AS INTEGER));
    INSERT INTO events (n, event) SELECT rowid, event FROM anomalies_before ORDER BY rowid;
    INSERT INTO objects (n, name, size, sha256)
        SELECT a.n, o.name, o.size, o.sha256 FROM objects_before o JOIN anomalies a ON a.id = o.anomaly;
    INSERT INTO revision (n) SELECT COUNT(*) FROM anomalies;
    DROP TABLE before;
    DROP TABLE objects_before;
    DROP TABLE anomalies_before;

    -- a list walks one of these without touching the rows; whatever else it is limited by is in the index too
    CREATE INDEX anomalies_by_time ON anomalies (captured_at, id, confidence, tally);
    CREATE INDEX anomalies_by_confidence ON anomalies (confidence, id, captured_at, tally);
    CREATE INDEX anomalies_by_tally_time ON anomalies (tally, captured_at, id, confidence);
    CREATE INDEX anomalies_by_tally_confidence ON anomalies (tally, confidence, id, captured_at);
    CREATE INDEX anomalies_by_lot_time ON anomalies (lot, captured_at, id, confidence, tally) WHERE lot IS NOT NULL;
    CREATE INDEX anomalies_by_lot_confidence ON anomalies (lot, confidence, id, captured_at, tally) WHERE lot IS NOT NULL;
    CREATE INDEX anomalies_by_serial_time ON anomalies (serial, captured_at, id, confidence, tally)
        WHERE serial IS NOT NULL;
    CREATE INDEX anomalies_by_serial_confidence ON anomalies (serial, confidence, id, captured_at, tally)
        WHERE serial IS NOT NULL;
    CREATE INDEX anomalies_by_spot ON anomalies (origin, spot, captured_at, place_x, place_y, tally);
    CREATE INDEX anomalies_by_part ON anomalies (origin, part, captured_at, score, tally, bytes);
    CREATE INDEX anomalies_judged_by_many ON anomalies (captured_at) WHERE reviewers > 1;

    CREATE TABLE reviews (         -- append only, as long as the anomaly is there
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

    -- parts are of a model too: scores of different ones cannot be compared; NULL where it was not noted
    ALTER TABLE parts ADD COLUMN origin INTEGER REFERENCES origins (id);
    ALTER TABLE minutes RENAME TO minutes_before;
    DROP INDEX minutes_by_time;
    CREATE TABLE minutes (         -- parts of each line, model and minute, so that rates cost nothing
        line   TEXT NOT NULL,
        minute INTEGER NOT NULL,   -- minutes since 1970, UTC
        model  TEXT NOT NULL,      -- name@version, '' where it was not noted
        pass   INTEGER NOT NULL,
        reject INTEGER NOT NULL,
        unsure INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        PRIMARY KEY (line, minute, model)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX minutes_by_time ON minutes (minute);
    INSERT INTO minutes SELECT line, minute, '', pass, reject, unsure, missed FROM minutes_before;
    DROP TABLE minutes_before;
";

/// Minutes of a year are millions: rates over more than some days are summed from these.
const HOURS: &str = "
    CREATE TABLE hours (
        line   TEXT NOT NULL,
        hour   INTEGER NOT NULL,   -- hours since 1970, UTC
        model  TEXT NOT NULL,      -- name@version, '' where it was not noted
        pass   INTEGER NOT NULL,
        reject INTEGER NOT NULL,
        unsure INTEGER NOT NULL,
        missed INTEGER NOT NULL,
        PRIMARY KEY (line, hour, model)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO hours SELECT line, (minute - (minute % 60 + 60) % 60) / 60 AS hour, model,
        SUM(pass), SUM(reject), SUM(unsure), SUM(missed) FROM minutes GROUP BY line, hour, model;
";

/// Brings a database up to date, each step in a transaction of its own.
pub(in crate::review) fn migrate(db: &Connection, dir: &Path) -> Result<()> {
    let cannot = || format!("cannot bring the database in \"{}\" up to date", dir.display());
    // a number as an event has it when it is read; cursors are made of those
    db.create_scalar_function("f32", 1, FunctionFlags::SQLITE_DETERMINISTIC, |context| {
        Ok(f64::from(context.get::<f64>(0)? as f32))
    })
    .failed(cannot)?;
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
