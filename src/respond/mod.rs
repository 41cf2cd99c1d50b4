//! Respond: verdicts go out to the plant the moment they fall.
//!
//! Invariants:
//! 1. Handing an answer over never waits: it goes onto a bounded queue; when that is full the answer is counted as not sent
//!    and the receiver, which takes silence for a reject, is right (`a_full_queue_is_counted_and_nobody_waits` in
//!    tests/respond.rs).

mod link;
mod mqtt;
mod options;
mod probe;

pub use mqtt::{EXPIRES, HEARTBEATS_MISSED, Mqtt, MqttStatus, Times};
pub use options::MqttOptions;
pub use probe::probe;

use crate::event::Verdict;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Version of the messages' layout. Receivers ignore unknown fields, and take a message of another version for a reject.
pub const SCHEMA: u32 = 1;

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
