//! Respond: verdicts go out to the plant the moment they fall.
//!
//! Invariants:
//! 1. Handing an answer over never waits: it goes onto a bounded queue; when that is full the answer is counted as not sent
//!    and the receiver, which takes silence for a reject, is right.

use crate::event::Verdict;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// The answer for one part. Everything but `pass` means: take it off the belt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub line: String,
    pub part: u64,
    pub verdict: Verdict,
    /// When the part was triggered.
    pub captured_at: Timestamp,
    pub score: f32,
    pub confidence: f32,
    /// From trigger to verdict.
    pub latency_ms: f32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// `name@version`.
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The trigger on this machine's monotonic clock: what latency is measured from.
    #[serde(skip, default = "Instant::now")]
    pub captured: Instant,
}

/// An output to the plant.
pub trait Respond: Send + Sync {
    /// Hands the answer over; returns at once. False when it was not taken: the receiver sees silence, which is a reject.
    fn answer(&self, answer: &Answer) -> bool;
}
