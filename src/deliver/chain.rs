//! The hash chain of a line's ledger: what a row says, as bytes, and the hash that carries it and the row before. Computed on
//! the writer's thread, checked by whoever reads.
//!
//! Invariants, each with the test that holds it:
//! 1. Any change of any field but delivery changes the hash: `every_field_is_in_the_hash`.
//! 2. A row read back from the database has the hash it was written with: `verify_accepts_what_was_written` (tests/ledger.rs).
//! 3. No two different rows have the same bytes: fields carry their length: `fields_do_not_run_into_each_other`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::LedgerRow;

/// SHA-256 of a row and all before it.
pub(super) type Hash = [u8; 32];
/// Word in the place of a verdict: a window in which rows may be missing.
pub(super) const INTERRUPTED: &str = "interrupted";
/// Word in the place of a verdict: rows were removed by retention.
pub(super) const CHECKPOINT: &str = "checkpoint";
/// Word in the place of a verdict: rows before it were lost with a damaged file.
pub(super) const SALVAGED: &str = "salvaged";
/// Version of the bytes below; a change of them needs a new one, and the old one to be kept for old rows.
const LAYOUT: u8 = 1;

/// A row as it lies in the database, without its hash and without what comes later (delivery, fate).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub line: String,
    /// Place in the line's chain, from 0 without gaps.
    pub chain: i64,
    pub run: String,
    /// Part number; for rows that are no parts -1 - `chain`.
    pub part: i64,
    pub frame: i64,
    pub captured_at: i64,
    /// One of the verdicts, [`INTERRUPTED`], [`CHECKPOINT`] or [`SALVAGED`].
    pub verdict: String,
    pub score: Option<f64>,
    pub confidence: Option<f64>,
    pub latency_ms: Option<f64>,
    pub model: String,
    pub event: Option<String>,
    pub frames: i64,
    /// JSON array; none when there are no reasons.
    pub reasons: Option<String>,
    pub late_ms: Option<f64>,
    pub lot: Option<String>,
    pub serial: Option<String>,
    /// Part numbers go on over the runs of this line; else they begin at 0 with each run.
    pub continued: bool,
    /// JSON: [`Interrupted`], [`Checkpoint`] or [`Salvaged`].
    pub detail: Option<String>,
}

/// What an interrupted row says. Numbers of parts in `first..end` that have no row may have been given to parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupted {
    /// First part number that may be missing.
    pub first: u64,
    /// The number after the last one that may be missing; equal to `first`: none is.
    pub end: u64,
    /// Time of the last row that was in the ledger (of the start, when there was none).
    pub from: Timestamp,
    /// Time of the start that found it.
    pub to: Timestamp,
    /// Rows brought over from the journal.
    pub recovered: u64,
    /// Those of them whose pictures are lost: they are in the spool with plain ones.
    pub placeholders: u64,
    /// The machine went down, not just the process: the journal may not be whole.
    pub machine: bool,
}

/// What a checkpoint says: everything up to `index` was removed by retention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Place of the last removed row in the chain.
    pub index: i64,
    /// Its hash, hex.
    pub hash: String,
    /// Rows removed in this step.
    pub rows: i64,
    /// The number after the highest part that was ever removed, of those that go on over runs.
    pub next: i64,
    pub at: Timestamp,
}

/// What a salvaged row says: the database was damaged, and what of this line's rows is not here any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salvaged {
    /// Name of the file that the damaged one was moved to.
    pub quarantine: String,
    pub at: Timestamp,
    /// Rows of parts that were brought over.
    pub rows: u64,
    /// Places of the chain whose rows are lost or did not fit their hash.
    pub holes: Vec<Hole>,
    /// Hash that this row goes on from, hex, when the row before it is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Part numbers that have lost their row, or may have.
    pub missing: Vec<Missing>,
    /// Anomalies that were lost.
    pub lost: u64,
}

/// Rows of a chain that are lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// Places, both included.
    pub first: i64,
    pub last: i64,
    /// Hash over the row after it alone (zeros before it), hex: its own hash cannot be checked. None: the salvaged row itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Part numbers without a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// None: numbers that go on over runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    pub first: u64,
    /// The number after the last one.
    pub end: u64,
}

/// Nanoseconds since 1970 UTC.
pub(super) fn nanos(t: Timestamp) -> i64 {
    i64::try_from(t.as_nanosecond()).unwrap_or(i64::MAX)
}

pub(super) fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(super) fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A number as SQLite gives it back: NaN is NULL, and it knows no negative zero.
fn number(n: f32) -> Option<f64> {
    (!n.is_nan()).then_some(f64::from(n) + 0.0)
}

impl Stored {
    pub fn part(row: &LedgerRow, event: Option<Uuid>, run: &str, chain: i64, continued: bool) -> Stored {
        let reasons = &row.reasons;
        Stored {
            line: row.line.clone(),
            chain,
            run: run.to_owned(),
            part: whole(row.part),
            frame: whole(row.frame),
            captured_at: nanos(row.captured_at),
            verdict: row.verdict.as_str().to_owned(),
            score: number(row.score),
            confidence: number(row.confidence),
            latency_ms: number(row.latency_ms),
            model: row.model.clone(),
            event: event.map(|id| id.to_string()),
            frames: i64::from(row.frames),
            reasons: (!reasons.is_empty()).then(|| serde_json::to_string(reasons).unwrap_or_default()),
            late_ms: row.late_ms.and_then(number),
            lot: row.lot.clone(),
            serial: row.serial.clone(),
            continued,
            detail: None,
        }
    }

    /// A row that is no part.
    pub fn note(line: &str, run: &str, chain: i64, at: Timestamp, word: &str, detail: &impl Serialize) -> Stored {
        Stored {
            line: line.to_owned(),
            chain,
            run: run.to_owned(),
            part: -1 - chain,
            frame: 0,
            captured_at: nanos(at),
            verdict: word.to_owned(),
            score: None,
            confidence: None,
            latency_ms: None,
            model: String::new(),
            event: None,
            frames: 0,
            reasons: None,
            late_ms: None,
            lot: None,
            serial: None,
            continued: false,
            detail: serde_json::to_string(detail).ok(),
        }
    }

    pub fn is_part(&self) -> bool {
        self.part >= 0
    }

    /// The row's hash, given that of the row before (zeros for the first).
    pub fn hash(&self, before: &Hash) -> Hash {
        let mut sum = Sum(Sha256::new());
        sum.0.update(before);
        sum.0.update([LAYOUT]);
        sum.text(Some(&self.line));
        sum.text(Some(&self.run));
        for n in [self.chain, self.part, self.frame, self.captured_at, self.frames, i64::from(self.continued)] {
            sum.0.update(n.to_le_bytes());
        }
        sum.text(Some(&self.verdict));
        for n in [self.score, self.confidence, self.latency_ms, self.late_ms] {
            match n {
                None => sum.0.update([0]),
                Some(n) => {
                    sum.0.update([1]);
                    sum.0.update((n + 0.0).to_le_bytes());
                }
            }
        }
        sum.text(Some(&self.model));
        for text in [&self.event, &self.reasons, &self.lot, &self.serial, &self.detail] {
            sum.text(text.as_deref());
        }
        sum.0.finalize().into()
    }
}

struct Sum(Sha256);

impl Sum {
    fn text(&mut self, text: Option<&str>) {
        match text {
            None => self.0.update([0]),
            Some(text) => {
                self.0.update([1]);
                self.0.update((text.len() as u64).to_le_bytes());
                self.0.update(text.as_bytes());
            }
        }
    }
}

/// A hash from its hex digits.
pub(super) fn unhex(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let row = LedgerRow { lot: Some("a".into()), late_ms: Some(1.0), ..super::super::tests::row(3) };
        let mut stored = Stored::part(&row, Some(Uuid::now_v7()), "run", 9, true);
        stored.reasons = Some("[\"x\"]".into());
        stored
    }

    #[test]
    fn every_field_is_in_the_hash() {
        let (row, before) = (stored(), [7; 32]);
        let base = row.hash(&before);
        type Change = (&'static str, fn(&mut Stored));
        let changes: Vec<Change> = vec![
            ("line", |r| r.line.push('x')),
            ("chain", |r| r.chain += 1),
            ("run", |r| r.run.push('x')),
            ("part", |r| r.part += 1),
            ("frame", |r| r.frame += 1),
            ("captured_at", |r| r.captured_at += 1),
            ("verdict", |r| r.verdict = "reject".into()),
            ("score", |r| r.score = Some(0.500_000_1)),
            ("no score", |r| r.score = None),
            ("confidence", |r| r.confidence = None),
            ("latency_ms", |r| r.latency_ms = Some(0.0)),
            ("model", |r| r.model.clear()),
            ("event", |r| r.event = None),
            ("frames", |r| r.frames = 0),
            ("reasons", |r| r.reasons = None),
            ("late_ms", |r| r.late_ms = None),
            ("lot", |r| r.lot = Some(String::new())),
            ("serial", |r| r.serial = Some("a".into())),
            ("continued", |r| r.continued = false),
            ("detail", |r| r.detail = Some("{}".into())),
        ];
        for (what, change) in changes {
            let mut other = row.clone();
            change(&mut other);
            assert_ne!(other.hash(&before), base, "{what}");
        }
        assert_ne!(row.hash(&[8; 32]), base);
        assert_eq!(row.clone().hash(&before), base);
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let before = [0; 32];
        let (mut a, mut b) = (stored(), stored());
        b.event = a.event.clone();
        b.captured_at = a.captured_at;
        (a.lot, a.serial) = (Some("ab".into()), Some("c".into()));
        (b.lot, b.serial) = (Some("a".into()), Some("bc".into()));
        assert_ne!(a.hash(&before), b.hash(&before));
        (a.lot, a.serial) = (None, Some("c".into()));
        (b.lot, b.serial) = (Some("c".into()), None);
        assert_ne!(a.hash(&before), b.hash(&before));
    }

    #[test]
    fn numbers_are_as_the_database_gives_them_back() {
        assert_eq!(number(f32::NAN), None);
        assert_eq!(number(-0.0).map(f64::to_bits), Some(0));
        assert_eq!(number(f32::INFINITY), Some(f64::INFINITY));
    }
}
