//! The words that leave the machine: an anomaly event and a ledger row, as JSON. Shared by deliver (which sends them) and
//! review (which receives them); neither knows the other.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Version of [`Event`]'s layout; receivers ignore unknown fields, so it changes only when a field changes its meaning.
pub const EVENT_SCHEMA: u32 = 1;

/// The judgement on one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The score is at or below the threshold.
    Pass,
    /// The score is above the threshold.
    Reject,
    /// The part could not be inspected properly (not located, outside what was taught): a person must look.
    Unsure,
    /// The part was there and no verdict was reached in time; counts as a reject.
    Missed,
}

impl Verdict {
    /// The word used in JSON, the database and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Reject => "reject",
            Verdict::Unsure => "unsure",
            Verdict::Missed => "missed",
        }
    }
    /// Whether the part leaves the machine as an anomaly.
    pub fn is_anomaly(self) -> bool {
        self != Verdict::Pass
    }
}

/// A connected area of the anomaly map above the threshold. Pixels of the source frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Region {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
    /// Highest map value inside, in the unit of the score.
    pub score: f32,
    /// Source pixels above the threshold, for parts that lie at an angle not those of the box.
    #[serde(default)]
    pub area_px: f32,
    /// Share of what all regions together have above the threshold, 0..1.
    #[serde(default)]
    pub share: f32,
    /// Square millimetres above the threshold, where the model knows the scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub area_mm2: Option<f32>,
}

/// Pixels of the source frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rect {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
}

/// Which model package gave the verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelId {
    pub name: String,
    pub version: String,
    /// Hex SHA-256 of the package's model.toml, which carries the checksums of all other files.
    pub sha256: String,
}

/// Width and height of the `frame` picture that comes with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSize {
    pub width: u32,
    pub height: u32,
}

/// One anomaly, as posted to `POST /api/v1/anomalies` in the multipart field `event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// [`EVENT_SCHEMA`].
    pub schema: u32,
    /// UUIDv7; also the idempotency key.
    pub id: Uuid,
    pub site: String,
    pub line: String,
    /// What the frame came from: the source as configured, without credentials.
    pub camera: String,
    /// Part number on this line, without gaps; 0 is the first part of a recording.
    pub part: u64,
    /// Sequence number of the inspected frame.
    pub frame: u64,
    pub captured_at: Timestamp,
    /// Seconds between the verdict and this upload attempt; filled in by the uploader.
    #[serde(default)]
    pub spooled_s: f64,
    /// Raw distance from normal, >= 0, unit-less.
    pub score: f32,
    /// 1 - p-value of the score among good parts, 0..1.
    pub confidence: f32,
    pub threshold: f32,
    pub verdict: Verdict,
    #[serde(default)]
    pub reasons: Vec<String>,
    #[serde(default)]
    pub regions: Vec<Region>,
    pub model: ModelId,
    /// The device that really ran the network, as the runtime reports it.
    pub device: String,
    /// f32 | bf16 | int8.
    pub precision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    pub image: ImageSize,
    /// Where the inspected part lies in the `frame` picture. The heatmap picture covers the whole `frame` picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_box: Option<Rect>,
}

/// One part in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LedgerRow {
    pub line: String,
    /// Part number, without gaps per line and run.
    pub part: u64,
    pub frame: u64,
    pub captured_at: Timestamp,
    pub verdict: Verdict,
    pub score: f32,
    pub confidence: f32,
    /// Capture to verdict.
    pub latency_ms: f32,
    /// `name@version` of the model.
    pub model: String,
    /// The anomaly's event id, when the part leaves the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Uuid>,
    /// Frames of the part that were inspected; 0 for a part that was missed.
    #[serde(default)]
    pub frames: u32,
    /// Why the verdict is what it is, where the score alone does not say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// How late the verdict came, milliseconds after the deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_ms: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// What a line is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LineState {
    /// Opened, no frame yet.
    Starting,
    /// Frames arrive.
    Live,
    /// The source is open and no frame has come for too long.
    Stalled,
    /// The source is gone; it is opened again and again.
    Reconnecting,
    /// Something that opening again cannot mend: the line needs a person.
    Failed,
    /// Ended: a recording is over, or the line was stopped.
    Stopped,
}

impl LineState {
    /// Every state, in the order of severity.
    pub const ALL: [LineState; 6] = [
        LineState::Live,
        LineState::Starting,
        LineState::Stopped,
        LineState::Stalled,
        LineState::Reconnecting,
        LineState::Failed,
    ];

    /// The word used in JSON, metrics and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            LineState::Starting => "starting",
            LineState::Live => "live",
            LineState::Stalled => "stalled",
            LineState::Reconnecting => "reconnecting",
            LineState::Failed => "failed",
            LineState::Stopped => "stopped",
        }
    }
}

/// Parts and frames of a line since the process started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LineCounters {
    /// Frames taken from the source.
    pub frames: u64,
    /// Parts that got a number: the sum of the four verdicts.
    pub parts: u64,
    pub passed: u64,
    pub rejected: u64,
    pub unsure: u64,
    pub missed: u64,
    /// Parts whose verdict came after the deadline; they are among the missed.
    pub late: u64,
    /// Frames that were not inspected, by reason: `overload`, `deadline`, `source` (known to have been lost before they
    /// reached this machine).
    pub dropped: std::collections::BTreeMap<String, u64>,
    /// Times that the source was opened again.
    pub reconnects: u64,
}

/// One number of the camera's health, measured about once a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// In the check's own unit.
    pub value: f64,
    /// What it was when the model was taught, or the limit, in the same unit.
    pub usual: f64,
    pub alert: bool,
    /// For the operator, when it is an alert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
}

/// What one part was, in a line report: no pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReportRow {
    pub part: u64,
    pub at: Timestamp,
    pub score: f32,
    pub verdict: Verdict,
}

/// Anomalies in the spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpoolDepth {
    pub waiting: u64,
    /// Those of `waiting` that the endpoint refuses.
    pub set_aside: u64,
}

/// A line's report, posted to `POST /api/v1/lines/{line}/report` every [`REPORT_EVERY_S`] seconds; durable and idempotent by
/// (`line`, `run`, `seq`) as anomalies are by their id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LineReport {
    /// [`EVENT_SCHEMA`].
    pub schema: u32,
    pub site: String,
    pub line: String,
    /// The process that made it.
    pub run: Uuid,
    /// Number of the report in its run, from 0 without gaps.
    pub seq: u64,
    pub at: Timestamp,
    pub state: LineState,
    /// Why the state is what it is, when it is not live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub last_frame_age_s: Option<f64>,
    pub fps: f64,
    pub counters: LineCounters,
    pub spool: SpoolDepth,
    /// `focus`, `exposure`, `lamp`, `shift`, `dirt`, `frozen`.
    pub health: std::collections::BTreeMap<String, Check>,
    /// `ewma`, `ks`.
    pub drift: std::collections::BTreeMap<String, Check>,
    pub model: ModelId,
    pub threshold: f32,
    /// The model's sorted held-out good scores: once for each model, run and line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Vec<f32>>,
    /// Ledger rows since the report before; filled in when it is stored.
    #[serde(default)]
    pub rows: Vec<ReportRow>,
    /// Hash of the last of those rows in the ledger's chain, hex: who keeps it can prove that nothing before was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
}

/// Seconds between the reports of a line.
pub const REPORT_EVERY_S: u64 = 10;
