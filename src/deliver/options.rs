//! What [`super::Deliver`] is told and what it tells: endpoint, limits, counters. Plain data, owned by nobody.
//!
//! Invariants:
//! 1. No secret is printed: `debug_of_an_endpoint_hides_secrets` (tests.rs).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use uuid::Uuid;

use super::spool::{Order, TargetDepth};
use super::{REVIEW, ReportsKept, Retention, journal, target};
use crate::observe::audit::Audit;

/// The bearer token of an endpoint.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    Text(String),
    /// Read again when the file changes, so that a token can be renewed without a restart.
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Text(_) => f.write_str("***"),
            Token::File(file) => file.fmt(f),
        }
    }
}

/// How an HTTP endpoint is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub url: Url,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Token>,
    /// PEM certificates of the authorities that the endpoint's may come from, instead of the system's; the system's when none.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain and key of this client (mTLS); both or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The proxy for it, whatever the address is. None: the one named in the environment, but never one for this machine's own
    /// addresses.
    pub proxy: Option<Url>,
}

impl Endpoint {
    /// Without a token and with the system's certificates and proxies.
    pub fn new(url: Url) -> Endpoint {
        Endpoint { url, token: None, ca_file: None, cert_file: None, key_file: None, proxy: None }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("Endpoint")
            .field("url", &target::shown(&self.url))
            .field("token", &token)
            .finish_non_exhaustive()
    }
}

/// What kind of place a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The review endpoint of docs/5-integrate.md. A URL without a path, or with one that ends in `/`, is a base: anomalies
    /// are posted to `api/v1/anomalies` below it. Any other path is used as it stands (`http://host/hook`).
    Review(Endpoint),
    /// Any URL that takes JSON.
    Webhook(Webhook),
    /// A bucket that speaks S3.
    Bucket(Bucket),
    /// A folder.
    Folder(Folder),
}

/// A URL that gets each anomaly as one JSON document.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Used as it stands.
    pub endpoint: Endpoint,
    /// Send the pictures too, in base64.
    pub pictures: bool,
    /// Headers of each request, besides those that linesight sets.
    pub headers: Vec<(String, Token)>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // the path of a webhook's URL often is a secret
        f.debug_struct("Webhook")
            .field("host", &self.endpoint.url.host_str())
            .field("pictures", &self.pictures)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// A bucket, and where in it anomalies go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The service, without the bucket; its token is not used.
    pub endpoint: Endpoint,
    pub bucket: String,
    /// Keys begin with it; may be empty.
    pub prefix: String,
    pub region: String,
    /// The bucket is the first step of the path, not the first part of the host.
    pub path_style: bool,
    pub credentials: Credentials,
}

/// Where the keys of a bucket come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if set, `AWS_SESSION_TOKEN`.
    Environment,
    /// A file as the AWS tools have it, read again when it changes.
    File { path: PathBuf, profile: String },
}

/// A folder that anomalies are written into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Has to be there.
    pub path: PathBuf,
    /// Something has to be mounted there: with nothing mounted, nothing is written.
    pub mounted: bool,
}

/// Where anomalies go, each with its own progress in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Unique; what waits in the spool waits under this name.
    pub name: String,
    pub kind: Kind,
    pub order: Order,
    /// Requests at a time, at least 1.
    pub parallel: usize,
    /// Most bytes a second on average; none: as many as the link takes.
    pub bytes_per_s: Option<u64>,
}

impl Target {
    /// The review endpoint, one request at a time, oldest first.
    pub fn review(endpoint: Endpoint) -> Target {
        let kind = Kind::Review(endpoint);
        Target { name: REVIEW.into(), kind, order: Order::default(), parallel: 1, bytes_per_s: None }
    }
}

/// What gives way when the spool is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The oldest anomalies lose their pictures; when that is not enough, the oldest go.
    #[default]
    KeepEventDropPicture,
    /// The oldest anomalies go.
    DropOldest,
    /// Those with the lowest confidence go, oldest first.
    DropLowestConfidence,
}

/// How much the spool holds at most; none: as much as the disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Of events and pictures.
    pub bytes: Option<u64>,
    pub items: Option<u64>,
    /// Older ones go, whatever `when_full` says.
    pub days: Option<u32>,
    /// What gives way when more would wait, or when the disk is full. None: nothing; records are refused while it is full.
    pub when_full: Option<WhenFull>,
}

/// What [`Deliver::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The SQLite file; made, with its folder, when it is not there. `<database>.lock` beside it is locked meanwhile.
    pub database: PathBuf,
    /// The run of this process: a recording that is inspected twice is two runs.
    pub run: Uuid,
    /// Anomalies go to each of them; with none they wait in the spool for [`REVIEW`]. Line reports go to the one of that name.
    pub targets: Vec<Target>,
    /// Is told what becomes of each anomaly.
    pub audit: Option<Audit>,
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
    /// How much the spool holds.
    pub bounds: Bounds,
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
            bounds: Bounds::default(),
            retention: Retention::default(),
            retain_every: Duration::from_secs(60),
            reports: ReportsKept::default(),
        }
    }
}

/// How a target does.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TargetStatus {
    pub name: String,
    /// What it still has to get.
    #[serde(flatten)]
    pub depth: TargetDepth,
    /// Anomalies that it acknowledged.
    pub delivered: u64,
    /// Requests made.
    pub attempts: u64,
    /// Bytes of anomalies that it acknowledged.
    pub bytes: u64,
    /// Why the latest failed attempt failed; none once nothing waits for it.
    pub last_error: Option<String>,
}

/// Counters since the database was opened; what the spool holds is as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Ledger rows committed.
    pub recorded: u64,
    /// Anomalies committed to the spool.
    pub spooled: u64,
    /// Anomalies that every target has, those of earlier runs included.
    pub delivered: u64,
    /// Anomalies in the spool that some target still has to get.
    pub waiting: u64,
    /// Deliveries that the endpoint refuses as it is now; they are tried at the slowest pace.
    pub set_aside: u64,
    /// Anomalies in the spool that no target would take: they wait for a person.
    pub dead: u64,
    /// Anomalies that made room for others, undelivered.
    pub dropped: u64,
    /// Anomalies whose pictures made room for others.
    pub pictures_dropped: u64,
    /// Anomalies brought over from a damaged database at the start.
    pub salvaged: u64,
    /// Anomalies lost with a damaged database: the report beside it names them.
    pub lost: u64,
    /// Bytes of events and pictures in the spool.
    pub spool_bytes: u64,
    /// Requests made.
    pub attempts: u64,
    /// Bytes of anomalies acknowledged, over all targets.
    pub bytes_uploaded: u64,
    /// Why the latest failed attempt failed; none once nothing waits.
    pub last_error: Option<String>,
    /// Each of the configured targets, and those no longer configured for which anomalies wait.
    pub targets: Vec<TargetStatus>,
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
    /// Anomalies that became dead since the database was opened: they wait for a person.
    pub dead: u64,
    pub bytes_uploaded: u64,
    pub last_error: Option<String>,
    /// Each target, where there are several.
    pub targets: Vec<TargetStatus>,
}
