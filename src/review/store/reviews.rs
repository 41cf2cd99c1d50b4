//! People's decisions in the database.
//!
//! Thread: every call blocks; the connection is that of the store.
//!
//! Invariants:
//! 1. Reviews are only added; the decision that holds is the last one that was not taken back. Tests:
//!    `a_review_holds_until_the_next_or_until_it_is_taken_back`, `what_holds_follows_from_the_history`.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use uuid::Uuid;

use super::sqlite::{changed, exists, tally};
use super::{Decision, NewReview, Review, nanoseconds};
use crate::error::{Context, Result};

/// Columns of [`StoredReview`].
const REVIEW: &str = "seq, anomaly, at, reviewer, decision, defect_type, comment";
/// Condition on `reviews r`: it was not taken back, nor is it a taking back.
pub(super) const STANDS: &str =
    "r.decision > '' AND NOT EXISTS (SELECT 1 FROM reviews t WHERE t.anomaly = r.anomaly AND t.took_back = r.seq)";

/// See [`Store::review`](super::Store::review).
pub(super) fn review(db: &mut Connection, id: Uuid, new: &NewReview, at: Timestamp) -> Result<Option<Review>> {
    let cannot = || format!("cannot record the review of anomaly {id}");
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
    if !exists(&tx, id).failed(cannot)? {
        return Ok(None);
    }
    tx.execute(
        "INSERT INTO reviews (anomaly, at, reviewer, decision, defect_type, comment) VALUES (?, ?, ?, ?, ?, ?)",
        params![id.to_string(), nanoseconds(at)?, new.reviewer, new.decision.as_str(), new.defect_type, new.comment],
    )
    .failed(cannot)?;
    let review = Review {
        seq: tx.last_insert_rowid(),
        anomaly: id,
        at,
        reviewer: new.reviewer.clone(),
        decision: Some(new.decision),
        defect_type: new.defect_type.clone(),
        comment: new.comment.clone(),
    };
    hold(&tx, id, Some(&review)).failed(cannot)?;
    tx.commit().failed(cannot)?;
    Ok(Some(review))
}

/// See [`Store::take_back`](super::Store::take_back).
pub(super) fn take_back(db: &mut Connection, id: Uuid, reviewer: &str, at: Timestamp) -> Result<Option<Review>> {
    let cannot = || format!("cannot take back the review of anomaly {id}");
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
    let standing = |below: i64| {
        let sql = format!(
            "SELECT {REVIEW} FROM reviews r WHERE anomaly = ? AND seq < ? AND {STANDS} ORDER BY seq DESC LIMIT 1"
        );
        let found = tx.query_row(&sql, params![id.to_string(), below], StoredReview::read).optional();
        found.failed(cannot)?.map(StoredReview::parse).transpose()
    };
    let Some(last) = standing(i64::MAX)?.filter(|last| last.reviewer == reviewer) else { return Ok(None) };
    tx.execute(
        "INSERT INTO reviews (anomaly, at, reviewer, decision, took_back) VALUES (?, ?, ?, '', ?)",
        params![id.to_string(), nanoseconds(at)?, reviewer, last.seq],
    )
    .failed(cannot)?;
    let seq = tx.last_insert_rowid();
    hold(&tx, id, standing(last.seq)?.as_ref()).failed(cannot)?;
    tx.commit().failed(cannot)?;
    let reviewer = reviewer.to_owned();
    Ok(Some(Review { seq, anomaly: id, at, reviewer, decision: None, defect_type: None, comment: None }))
}

/// Makes a review the one that holds.
fn hold(db: &Connection, id: Uuid, review: Option<&Review>) -> rusqlite::Result<()> {
    let id = id.to_string();
    let (n, bytes, origin, verdict): (i64, i64, i64, String) = db
        .prepare_cached(
            "SELECT a.n, a.bytes, t.origin, t.verdict FROM anomalies a JOIN tallies t ON t.id = a.tally WHERE a.id = ?",
        )?
        .query_row([&id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?;
    db.prepare_cached(
        "UPDATE tallies SET count = count - 1, bytes = bytes - ?2
         WHERE id = (SELECT tally FROM anomalies WHERE n = ?1)",
    )?
    .execute([n, bytes])?;
    let decision = review.and_then(|r| r.decision).map_or("", Decision::as_str);
    let defect_type = review.and_then(|r| r.defect_type.as_deref()).unwrap_or("");
    let tally = tally(db, origin, &verdict, decision, defect_type, 1, bytes)?;
    let reviewers: i64 = db
        .prepare_cached(&format!("SELECT COUNT(DISTINCT reviewer) FROM reviews r WHERE anomaly = ? AND {STANDS}"))?
        .query_row([&id], |r| r.get(0))?;
    db.prepare_cached("UPDATE anomalies SET tally = ?, review_seq = ?, reviewers = ? WHERE n = ?")?
        .execute(params![tally, review.map(|r| r.seq), reviewers, n])?;
    changed(db)?;
    Ok(())
}

/// See [`Store::reviews`](super::Store::reviews).
pub(super) fn reviews(db: &Connection, id: Uuid) -> Result<Vec<Review>> {
    let cannot = || format!("cannot read the reviews of anomaly {id}");
    let sql = format!("SELECT {REVIEW} FROM reviews WHERE anomaly = ? ORDER BY seq");
    let mut statement = db.prepare_cached(&sql).failed(cannot)?;
    let rows = statement.query_map([id.to_string()], StoredReview::read).failed(cannot)?;
    rows.map(|row| row.failed(cannot)?.parse()).collect()
}

/// See [`Store::defect_types`](super::Store::defect_types).
pub(super) fn defect_types(db: &Connection) -> Result<Vec<String>> {
    let cannot = || "cannot read the defect types";
    let mut statement = db.prepare_cached("SELECT name FROM defect_types ORDER BY position").failed(cannot)?;
    let names = statement.query_map([], |row| row.get(0)).failed(cannot)?;
    names.collect::<Result<_, _>>().failed(cannot)
}

/// See [`Store::set_defect_types`](super::Store::set_defect_types).
pub(super) fn set_defect_types(db: &mut Connection, names: &[String]) -> Result<()> {
    let cannot = || "cannot record the defect types";
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
    tx.execute("DELETE FROM defect_types", []).failed(cannot)?;
    for (position, name) in (1_i64..).zip(names) {
        tx.execute("INSERT INTO defect_types (position, name) VALUES (?, ?)", params![position, name])
            .failed(cannot)?;
    }
    tx.commit().failed(cannot)
}

/// A review as the database has it.
pub(super) struct StoredReview {
    seq: i64,
    anomaly: String,
    at: i64,
    reviewer: String,
    decision: String,
    defect_type: Option<String>,
    comment: Option<String>,
}

impl StoredReview {
    fn read(row: &Row<'_>) -> rusqlite::Result<StoredReview> {
        Self::read_at(row, 0)
    }
    /// From columns in the order seq, anomaly, at, reviewer, decision, defect_type, comment.
    pub(super) fn read_at(row: &Row<'_>, from: usize) -> rusqlite::Result<StoredReview> {
        Ok(StoredReview {
            seq: row.get(from)?,
            anomaly: row.get(from + 1)?,
            at: row.get(from + 2)?,
            reviewer: row.get(from + 3)?,
            decision: row.get(from + 4)?,
            defect_type: row.get(from + 5)?,
            comment: row.get(from + 6)?,
        })
    }
    pub(super) fn parse(self) -> Result<Review> {
        let cannot = || format!("cannot understand the stored review {}", self.seq);
        Ok(Review {
            seq: self.seq,
            anomaly: Uuid::try_parse(&self.anomaly).failed(cannot)?,
            at: Timestamp::from_nanosecond(self.at.into()).failed(cannot)?,
            reviewer: self.reviewer,
            decision: Decision::from_word(&self.decision),
            defect_type: self.defect_type,
            comment: self.comment,
        })
    }
}
