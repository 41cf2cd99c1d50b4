//! What a salvage says it did: the file beside the damaged database, and what the log and the status are made of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What became of the rows of a table.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub recovered: u64,
    pub lost: u64,
}

/// An anomaly that is not whole any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hurt {
    pub id: Option<String>,
    pub line: String,
    pub part: i64,
    pub why: String,
}

/// A line after the salvage.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineSalvage {
    pub line: String,
    /// Rows of parts that were brought over, those made again from anomalies and the journal included.
    pub rows: u64,
    /// Places of the chain (both included) whose rows are lost.
    pub lost_rows: Vec<(i64, i64)>,
    /// Part numbers (both included) that have lost their row, or may have.
    pub lost_parts: Vec<(u64, u64)>,
    pub next_part: u64,
}

/// What was saved of a damaged database, and what was not.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub database: String,
    /// Where the damaged file is now.
    pub quarantine: String,
    pub at: Timestamp,
    /// What was found to be wrong.
    pub why: String,
    /// Why no more than the lines' numbers was brought over, when that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    pub pages: u32,
    /// Pages and rows that could not be read.
    pub unreadable: u64,
    pub ledger: Kept,
    pub anomalies: Kept,
    pub pictures: Kept,
    pub reports: Kept,
    /// They were in the spool, and are not in the new one.
    pub lost: Vec<Hurt>,
    /// Row and anomaly are lost: it is not known whether they were delivered.
    pub unknown: Vec<Hurt>,
    /// In the new spool with plain pictures.
    pub without_pictures: Vec<Hurt>,
    /// In the new spool as dead: what is left of the event cannot be sent.
    pub dead: Vec<Hurt>,
    pub lines: Vec<LineSalvage>,
}
