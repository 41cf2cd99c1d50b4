//! What [`super::Deliver`] is told and what it tells: endpoint, limits, counters. Plain data, owned by nobody.
//!
//! Invariants:
//! 1. No secret is printed: `debug_of_an_endpoint_hides_secrets` (tests.rs).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use uuid::Uuid;

use super::{ReportsKept, Retention, journal, wire};

/// Where anomalies go.
#[derive(Clone)]
pub struct Endpoint {
    /// `http` or `https`. A URL without a path, or with one that ends in `/`, is a base: anomalies are posted to
    /// `api/v1/anomalies` below it. Any other path is used as it stands (`http://host/hook`). Proxies named in
    /// the environment are used, but never for this machine's own addresses.
    pub url: Url,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<String>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("Endpoint").field("url", &wire::shown(&self.url)).field("token", &token).finish()
    }
}

/// What [`Deliver::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The SQLite file; made, with its folder, when it is not there. `<database>.lock` beside it is locked meanwhile.
    pub database: PathBuf,
    /// The run of this process: a recording that is inspected twice is two runs.
    pub run: Uuid,
    /// None: anomalies stay in the spool.
    pub endpoint: Option<Endpoint>,
}

/// The times that govern delivery. Tests shrink them; the program uses the default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A ledger row is committed at most this long after it was recorded.
    pub batch: Duration,
    /// The pause after the first failure; it doubles with each further one, with jitter.
    pub retry_first: Duration,
    /// The longest pause, and the pace for anomalies that the endpoint refuses.
    pub retry_slowest: Duration,
    /// The longest that a `Retry-After` is obeyed.
    pub retry_after_most: Duration,
    /// Time for a connection to stand.
    pub connect: Duration,
    /// Time for a whole request with its response.
    pub request: Duration,
    /// How often a failed write is tried again.
    pub write_again: Duration,
    /// Bytes left free on the disk and in the file: with less, records are refused, so that there is room to record deliveries.
    pub reserve: u64,
    /// Most pages of 4096 bytes that the database may have; None: as many as the disk holds.
    pub pages: Option<u32>,
    /// Slots of 512 bytes of a line's journal: so many good parts, or a third as many anomalies, can be recorded while the
    /// database takes nothing.
    pub journal_slots: u32,
    /// What is kept of the ledger.
    pub retention: Retention,
    /// How often it is looked whether old rows have to go.
    pub retain_every: Duration,
    /// How many line reports wait at most.
    pub reports: ReportsKept,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            batch: Duration::from_millis(200),
            retry_first: Duration::from_millis(200),
            retry_slowest: Duration::from_secs(30),
            retry_after_most: Duration::from_secs(300),
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            write_again: Duration::from_secs(1),
            reserve: 32 << 20,
            pages: None,
            journal_slots: journal::SLOTS,
            retention: Retention::default(),
            retain_every: Duration::from_secs(60),
            reports: ReportsKept::default(),
        }
    }
}

/// Counters since the database was opened, except `waiting` and `set_aside`, which are what the spool holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Ledger rows committed.
    pub recorded: u64,
    /// Anomalies committed to the spool.
    pub spooled: u64,
    /// Anomalies acknowledged with a 2xx, those of earlier runs included.
    pub delivered: u64,
    /// Anomalies in the spool.
    pub waiting: u64,
    /// Those of `waiting` that the endpoint refuses; they are tried at the slowest pace.
    pub set_aside: u64,
    /// Requests made.
    pub attempts: u64,
    /// HTTP body bytes acknowledged with a 2xx.
    pub bytes_uploaded: u64,
    /// Why the latest failed attempt failed; none once the spool is empty.
    pub last_error: Option<String>,
    /// Times a caller waited because a channel was full.
    pub channel_waits: u64,
    /// Anomalies that left with placeholder pictures.
    pub picture_failures: u64,
    /// Rows left out because the ledger already had that part of the run.
    pub ledger_conflicts: u64,
    /// Line reports in the database.
    pub reports_waiting: u64,
    /// Line reports acknowledged with a 2xx.
    pub reports_delivered: u64,
    /// Line reports given up: too old, too many, the endpoint knows none, or the disk was full.
    pub reports_dropped: u64,
    /// HTTP body bytes of reports acknowledged with a 2xx; not among `bytes_uploaded`.
    pub report_bytes: u64,
    /// Ledger rows that retention removed.
    pub retained_away: u64,
    /// Why nothing can be written at the moment.
    pub write_error: Option<String>,
}

/// What [`Deliver::drain`] achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    pub delivered: u64,
    pub waiting: u64,
    pub bytes_uploaded: u64,
    pub last_error: Option<String>,
}
