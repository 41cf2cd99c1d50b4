//! What a person can see of a running line: its state and counters, the camera's health, drift of the scores, metrics.
//!
//! The threads of a line write into its [`LineStatus`]; everything else only reads it.

mod status;

pub use status::{LATENCY_BUCKETS_MS, LineStatus, Snapshot};
