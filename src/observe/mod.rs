//! What a person can see of a running line: its state and counters, the camera's health, drift of the scores, metrics.
//!
//! The threads of a line write into its [`LineStatus`]; everything else only reads it.

pub mod audit;
pub mod health;
mod metrics;
pub mod notify;
mod process;
pub mod pulse;
mod server;
mod status;

pub use metrics::{Extra, Kind};
pub use server::{LISTEN, Lines, Report, Server, Sources};
pub use status::{LATENCY_BUCKETS_MS, LineStatus, Snapshot};
