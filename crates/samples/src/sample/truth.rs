//! The truth file beside a recording.

use serde::{Deserialize, Serialize};

/// What a recording shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    pub video: String,
    pub width: usize,
    pub height: usize,
    pub fps: usize,
    pub frames: usize,
    pub belt_speed_px: usize,
    pub parts: Vec<Part>,
}

/// One part: first frame that shows any of it, frame at which it is nearest to the middle, last frame that shows any of
/// it, upper edge and side of its box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub part: usize,
    pub label: String,
    pub defective: bool,
    pub enter: usize,
    pub centre: usize,
    pub leave: usize,
    pub y: usize,
    pub size: usize,
}
