//! line.toml as typed. [`super`] turns it into what the program works with; the JSON Schema for editors is made from here.

use crate::capture::CameraOptions;
use crate::deliver::{Order, WhenFull};
use crate::detect::Hint;
use crate::line::Overload;
use crate::model::Trigger;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Lines to run, and what they share. Relative paths are relative to this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "linesight line.toml")]
pub struct Raw {
    /// Name of the site in events, reports and MQTT topics.
    #[serde(default = "site")]
    pub site: String,
    #[serde(default)]
    pub spool: RawSpool,
    /// Where anomalies and line reports go. Without it they wait in the spool.
    pub review: Option<RawReview>,
    /// Other places where anomalies go, besides the review endpoint. Each gets each anomaly.
    #[serde(default)]
    pub target: Vec<RawTarget>,
    #[serde(default)]
    pub observe: RawObserve,
    #[serde(default)]
    pub audit: RawAudit,
    /// Answers to the plant.
    pub mqtt: Option<RawMqtt>,
    /// The lines, each with a camera or recording and a model.
    #[serde(default)]
    pub line: Vec<RawLine>,
}

fn site() -> String {
    "local".into()
}

/// Ledger and spool: one database for all lines.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSpool {
    /// The SQLite file; linesight/run.db in the user's state folder when left out.
    pub database: Option<PathBuf>,
    /// Ledger rows older than this go, days. Kept for ever when left out.
    pub retention_days: Option<u32>,
    /// The oldest ledger rows go when a line has more than this.
    pub retention_rows: Option<u64>,
    /// Megabytes that the rows of all lines may take, 400 bytes each; lines share them evenly.
    pub retention_mb: Option<u64>,
    /// Megabytes of events and pictures that wait for delivery at most.
    pub max_mb: u64,
    /// Anomalies that wait for delivery at most.
    pub max_items: u64,
    /// Anomalies that have waited longer go, days. They wait for ever when left out.
    pub max_days: Option<u32>,
    /// What goes when more would wait, or when the disk is full: the oldest anomalies' pictures, the oldest anomalies, or those
    /// with the lowest confidence. Each is in the ledger, in the metrics and in the log.
    pub when_full: WhenFull,
}

impl Default for RawSpool {
    fn default() -> Self {
        RawSpool {
            database: None,
            retention_days: None,
            retention_rows: None,
            retention_mb: None,
            max_mb: 10_000,
            max_items: 100_000,
            max_days: None,
            when_full: WhenFull::default(),
        }
    }
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawReview {
    /// http or https. A URL without a path is a base; any other path is used as it stands.
    pub url: String,
    /// A file that holds the endpoint's bearer token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// PEM certificates of the authorities that the endpoint's may come from, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain of this client.
    pub cert_file: Option<PathBuf>,
    /// PEM key of this client.
    pub key_file: Option<PathBuf>,
    /// http://host:port of a proxy; the one named in the environment when left out.
    pub proxy: Option<String>,
    /// Anomalies sent at a time, 1 to 16.
    #[serde(default = "one")]
    pub parallel: u32,
    /// Which anomaly goes first.
    #[serde(default)]
    pub order: Order,
    /// Most kilobits a second, 8 or more; as many as the link takes when left out.
    pub max_kbit_s: Option<u64>,
}

/// Kinds of other places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawKind {
    /// JSON to any URL.
    Webhook,
    /// A bucket that speaks S3.
    S3,
    /// A folder of this machine, or one that is mounted.
    Folder,
    /// A second review endpoint.
    Review,
}

/// Another place where anomalies go. Which keys there are depends on `kind`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTarget {
    /// Unique; what waits in the spool waits under this name.
    pub name: String,
    pub kind: RawKind,
    /// Anomalies sent at a time, 1 to 16.
    #[serde(default = "one")]
    pub parallel: u32,
    /// Which anomaly goes first.
    #[serde(default)]
    pub order: Order,
    /// Most kilobits a second, 8 or more; as many as the link takes when left out.
    pub max_kbit_s: Option<u64>,
    /// webhook, review: where to post. s3: the service without the bucket; that of AWS when left out.
    pub url: Option<String>,
    /// webhook, review: a file that holds the endpoint's bearer token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// PEM certificates of the authorities that the endpoint's may come from, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain of this client.
    pub cert_file: Option<PathBuf>,
    /// PEM key of this client.
    pub key_file: Option<PathBuf>,
    /// http://host:port of a proxy; the one named in the environment when left out.
    pub proxy: Option<String>,
    /// webhook: send the pictures too, in base64; true when left out.
    pub pictures: Option<bool>,
    /// webhook: more headers. What is secret belongs into `header_files`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// webhook: more headers, each with the file that holds its value; read again when it changes.
    #[serde(default)]
    pub header_files: BTreeMap<String, PathBuf>,
    /// s3: its name.
    pub bucket: Option<String>,
    /// s3: keys begin with it.
    pub prefix: Option<String>,
    /// s3: us-east-1 when left out.
    pub region: Option<String>,
    /// s3: the bucket is in the path of the URL, not in the host; true when left out.
    pub path_style: Option<bool>,
    /// s3: keys in the format of the AWS tools, read again when it changes; from the environment when left out.
    pub credentials_file: Option<PathBuf>,
    /// s3: section of `credentials_file`; default when left out.
    pub profile: Option<String>,
    /// folder: has to be there.
    pub path: Option<PathBuf>,
    /// folder: write only while something is mounted there; false when left out.
    pub mounted: Option<bool>,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawObserve {
    /// Address of metrics and status, or "off".
    pub listen: String,
}

impl Default for RawObserve {
    fn default() -> Self {
        RawObserve { listen: "127.0.0.1:9464".into() }
    }
}

/// Who did what, and what became of each anomaly: JSON lines.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAudit {
    /// The file, or "off"; beside the database as <database>.audit.jsonl when left out.
    pub file: Option<PathBuf>,
    /// A file that would become larger moves on to FILE.1, 1 to 4096.
    pub max_mb: u32,
    /// Full files that are kept, 1 to 1000.
    pub keep: u32,
}

impl Default for RawAudit {
    fn default() -> Self {
        RawAudit { file: None, max_mb: crate::observe::audit::MAX_MB, keep: crate::observe::audit::KEEP }
    }
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawMqtt {
    /// mqtt://host:1883 or mqtts://host:8883.
    pub url: String,
    /// Unique at the broker; linesight-<site> when left out.
    pub client_id: Option<String>,
    pub username: Option<String>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// PEM certificates that the broker's may come from.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain of this client.
    pub cert_file: Option<PathBuf>,
    /// PEM key of this client.
    pub key_file: Option<PathBuf>,
    /// Topics begin with it; linesight/<site> when left out.
    pub prefix: Option<String>,
    /// Milliseconds between heartbeats, 50 to 60000.
    #[serde(default = "heartbeat")]
    pub heartbeat_ms: u64,
}

fn heartbeat() -> u64 {
    500
}

/// One line.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawLine {
    /// Unique; letters, digits, '-', '_' and '.'.
    pub name: String,
    /// A recording, a folder, watch:FOLDER, rtsp://..., v4l2:/dev/video0, genicam:NAME-OR-IP, pipeline:TEXT or another URI.
    pub source: String,
    /// The model package's folder.
    pub model: PathBuf,
    /// Device of the network: AUTO, CPU, GPU, NPU, GPU.1, ...
    #[serde(default = "device")]
    pub device: String,
    /// Accept that a named device does not run and another does.
    #[serde(default)]
    pub allow_fallback: bool,
    /// X,Y,W,H in source pixels instead of the ROI that the model was taught with.
    pub roi: Option<String>,
    /// A PNG over the part: what is black there is not judged, besides what the model's own mask leaves out.
    pub mask: Option<PathBuf>,
    /// What the model was taught with; a model of the other kind is refused.
    pub trigger: Option<Trigger>,
    /// What the device is to be good at: latency for cameras and recordings at their own rate, throughput for recordings as
    /// fast as possible when left out.
    pub hint: Option<Hint>,
    /// What happens when the detector is slower than the source: newest for cameras and block for recordings when left out.
    pub overload: Option<Overload>,
    /// Frames that may wait for the detector, 1 to 64.
    #[serde(default = "queue")]
    pub queue: u32,
    /// Milliseconds from trigger to verdict; what comes later is missed. No deadline when left out.
    pub deadline_ms: Option<u64>,
    /// Most inferences that the line may have in flight; its share of what the device wants when left out.
    pub requests: Option<u32>,
    /// Play a recording at its own rate.
    #[serde(default = "yes")]
    pub realtime: bool,
    /// Start a recording over when it ends.
    #[serde(default)]
    pub repeat: bool,
    /// Show the line's picture in the review pages while somebody there looks at it: small, and at most five a second.
    #[serde(default)]
    pub live_picture: bool,
    /// Lot of the parts, for ledger and events.
    pub lot: Option<String>,
    /// Serial number, for ledger and events.
    pub serial: Option<String>,
    /// Settings of the camera or stream.
    #[serde(default)]
    pub camera: CameraOptions,
    #[serde(default)]
    pub debounce: RawDebounce,
    #[serde(default)]
    pub watchdog: RawWatchdog,
}

fn device() -> String {
    "AUTO".into()
}
fn queue() -> u32 {
    crate::line::FRAMES_WAITING as u32
}
fn yes() -> bool {
    true
}

/// A part is rejected when `reject` of the `of` frames in which it is inspected are.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawDebounce {
    /// 1 to `of`.
    pub reject: u32,
    /// 1 to 16.
    pub of: u32,
}

impl Default for RawDebounce {
    fn default() -> Self {
        RawDebounce { reject: 1, of: 1 }
    }
}

/// When a source counts as stalled, and how it is opened again.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawWatchdog {
    /// Frame periods without a frame after which a source is stalled, 2 to 10000.
    pub stall_periods: f64,
    /// Never stalled sooner, milliseconds.
    pub stall_min_ms: u64,
    /// Always stalled later, milliseconds.
    pub stall_max_ms: u64,
    /// Longest pause between attempts to open the source again, milliseconds, 100 to 600000.
    pub backoff_max_ms: u64,
}

impl Default for RawWatchdog {
    fn default() -> Self {
        let w = crate::capture::Watchdog::default();
        RawWatchdog {
            stall_periods: w.stall_periods,
            stall_min_ms: w.stall_min.as_millis() as u64,
            stall_max_ms: w.stall_max.as_millis() as u64,
            backoff_max_ms: w.backoff_max.as_millis() as u64,
        }
    }
}
