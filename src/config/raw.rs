//! line.toml as typed. [`super`] turns it into what the program works with; the JSON Schema for editors is made from here.

use crate::capture::CameraOptions;
use crate::line::Overload;
use crate::model::Trigger;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
    #[serde(default)]
    pub observe: RawObserve,
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
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSpool {
    /// The SQLite file; linesight/run.db in the user's state folder when left out.
    pub database: Option<PathBuf>,
    /// Ledger rows older than this go, days. Kept for ever when left out.
    pub retention_days: Option<u32>,
    /// The oldest ledger rows go when a line has more than this.
    pub retention_rows: Option<u64>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawReview {
    /// http or https. A URL without a path is a base; any other path is used as it stands.
    pub url: String,
    /// A file that holds the endpoint's bearer token.
    pub token_file: Option<PathBuf>,
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
