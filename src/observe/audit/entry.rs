//! What a line of the audit log says.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// One line: when, which, who, what. `seq` goes on over files and processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub at: Timestamp,
    pub seq: u64,
    /// The user that runs the process, what made it act ("SIGHUP", "reload by file"), or "itself" for what it does by
    /// itself.
    pub who: String,
    #[serde(flatten)]
    pub entry: Entry,
}

/// What happened. In the file: `"what":"line_failed","details":{...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", content = "details", rename_all = "snake_case")]
pub enum Entry {
    ProcessStarted {
        version: String,
        pid: u32,
        run: Uuid,
        config: PathBuf,
        config_sha256: String,
        database: PathBuf,
    },
    ProcessStopped {
        version: String,
        pid: u32,
        run: Uuid,
        config: PathBuf,
        config_sha256: String,
        /// Anomalies that the next run delivers.
        waiting: u64,
    },
    LineStarted {
        line: String,
        /// Without credentials.
        source: String,
    },
    LineStopped {
        line: String,
        frames: u64,
        parts: u64,
    },
    /// Said again only when the reason changes.
    LineFailed {
        line: String,
        error: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    ModelLoaded {
        line: String,
        name: String,
        version: String,
        sha256: String,
        threshold: f32,
        device: String,
        precision: String,
    },
    /// A person set it in a package, or a line was loaded with another one than before.
    ThresholdChanged {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<String>,
        model: String,
        version: String,
        from: f32,
        to: f32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    ConfigChanged {
        config: PathBuf,
        config_sha256: String,
        changes: Vec<Change>,
        /// Tables of which the change takes effect at the next start.
        at_next_start: Vec<String>,
    },
    /// A reload that was refused: everything goes on as it was.
    ConfigRefused {
        config: PathBuf,
        error: String,
    },
    /// Parts judged since the line's last entry of this kind.
    Parts {
        line: String,
        seconds: f64,
        passed: u64,
        rejected: u64,
        unsure: u64,
        missed: u64,
    },
    Anomaly {
        event: Uuid,
        line: String,
        part: u64,
        fate: Fate,
        /// Where it was to go, without credentials.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// This log itself: the last line had no end when it was opened, which a kill in the middle of a write leaves.
    TornLine {
        bytes: u64,
    },
    /// This log itself: entries that could not be written.
    EntriesLost {
        entries: u64,
    },
    /// This log itself: a new file was begun; `removed` was the oldest one.
    Rotated {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        removed: Option<PathBuf>,
    },
}

/// What became of an anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Spooled,
    Delivered,
    /// Will never succeed: waits for a person.
    Dead,
    /// Gave way in a full spool.
    Dropped,
    /// The event stays, its pictures gave way.
    PictureDropped,
    /// A person removed it.
    Purged,
    /// A person had it sent again.
    Retried,
}

/// A key of the configuration that changed; absent values were left out in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// None: not of a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}
