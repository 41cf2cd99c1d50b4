//! Collects the good parts: whole frames, or parts that are located and followed over the belt.

use super::{Options, Progress};
use crate::capture::{Capture, Source};
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::model::Trigger;
use crate::prepare::Roi;
use crate::prepare::locate::{Finder, Learner, Locator};
use crate::prepare::shrink::{Crop, Shrinker};
use crate::prepare::track::Tracker;
use std::sync::Arc;

/// Most parts that are taught: more cost memory and time and improve little. Longer sources are sampled evenly.
const MAX_PARTS: u64 = 200;
/// Kept around a part, as a fraction of its size, so that registration can move the crop over real content.
const MARGIN: f32 = 0.08;

/// One good part.
pub(super) struct Part {
    pub frame: Arc<Frame>,
    /// Where the part lies in `frame`.
    pub crop: Crop,
    /// How a person finds it: file, or frame number and time.
    pub label: String,
}

pub(super) struct Collected {
    pub locator: Option<Locator>,
    pub parts: Vec<Part>,
}

pub(super) fn collect(options: &Options, progress: Progress<'_>) -> Result<Collected> {
    match options.trigger {
        Trigger::Frame => Ok(Collected { locator: None, parts: frames(options, progress)? }),
        Trigger::Presence => presence(options, progress),
    }
}

fn label(frame: &Frame, source: &Source) -> String {
    match (&frame.file, frame.pts_ns) {
        (Some(file), _) => format!("\"{file}\""),
        (None, Some(t)) => format!("at frame {} ({:.2} s) of \"{}\"", frame.seq, t as f64 * 1e-9, source.name()),
        (None, None) => format!("at frame {} of \"{}\"", frame.seq, source.name()),
    }
}

/// Each frame is a part.
fn frames(options: &Options, progress: Progress<'_>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let share = MAX_PARTS / options.good.len().max(1) as u64;
    for source in &options.good {
        let mut capture = Capture::open(source, false)?;
        // a source of unknown length is sampled by thinning what was kept whenever that grows too long
        let mut step = 1;
        let mut kept: Vec<Part> = Vec::new();
        while let Some(frame) = capture.next_frame()? {
            if frame.seq == 0 {
                step = capture.expected_frames().unwrap_or(0).div_ceil(share.max(1)).max(1);
            }
            progress("frames", capture.frames(), capture.expected_frames());
            if frame.seq % step != 0 {
                continue;
            }
            let crop = Roi::in_frame(options.roi, frame.width(), frame.height())?;
            kept.push(Part { crop, label: label(&frame, source), frame });
            if kept.len() as u64 > 2 * share {
                let mut i = 0;
                kept.retain(|_| {
                    i += 1;
                    i % 2 == 1
                });
                step *= 2;
            }
        }
        parts.append(&mut kept);
    }
    Ok(parts)
}

/// Parts on a belt: the first recording tells where parts are, then all are followed from their beginning.
fn presence(options: &Options, progress: Progress<'_>) -> Result<Collected> {
    let mut shrinker = Shrinker::new();
    let mut learner = None;
    let Some(first) = options.good.first() else { return Err(Error::usage("no --good source was given")) };
    if matches!(first, Source::Folder { .. }) {
        return Err(Error::usage("trigger \"presence\" needs a recording, a folder of images was given")
            .hint("for pictures of single parts use --trigger frame"));
    }
    let mut capture = Capture::open(first, false)?;
    while let Some(frame) = capture.next_frame()? {
        if learner.is_none() {
            learner = Some(Learner::new(Roi::in_frame(options.roi, frame.width(), frame.height())?));
        }
        progress("locator", capture.frames(), capture.expected_frames());
        let Some(l) = learner.as_mut() else { continue };
        if !l.observe(&mut shrinker, &frame)? {
            break;
        }
    }
    drop(capture);
    let locator = learner.ok_or_else(|| Error::failed(format!("\"{}\" has no frames", first.name())))?.learn()?;
    let mut parts = Vec::new();
    for source in &options.good {
        let mut capture = Capture::open(source, false)?;
        let mut finder = Finder::new(&locator)?;
        let mut tracker = Tracker::new(&locator);
        while let Some(frame) = capture.next_frame()? {
            progress("parts", capture.frames(), capture.expected_frames());
            let found = finder.find(&mut shrinker, &frame)?;
            for crossing in tracker.observe(frame.seq, &found) {
                if !crossing.located {
                    tracing::warn!("a part {} could not be located and is not taught", label(&frame, source));
                    continue;
                }
                if parts.len() as u64 == MAX_PARTS {
                    tracing::info!("{MAX_PARTS} parts are enough: the rest of \"{}\" is not used", source.name());
                    return Ok(Collected { locator: Some(locator), parts });
                }
                parts.push(cut_out(&frame, crossing.crop, label(&frame, source))?);
            }
        }
    }
    Ok(Collected { locator: Some(locator), parts })
}

/// Copies a part with its surroundings, so that the frame can go.
fn cut_out(frame: &Arc<Frame>, crop: Crop, label: String) -> Result<Part> {
    let (mx, my) = ((crop.width as f32 * MARGIN) as i32, (crop.height as f32 * MARGIN) as i32);
    let (x, y) = ((crop.x - mx).max(0) as u32, (crop.y - my).max(0) as u32);
    let right = (crop.x + crop.width as i32 + mx).clamp(0, frame.width() as i32) as u32;
    let bottom = (crop.y + crop.height as i32 + my).clamp(0, frame.height() as i32) as u32;
    let (copy, x, y) =
        frame.copy_region(x, y, right.saturating_sub(x & !1).max(2), bottom.saturating_sub(y & !1).max(2))?;
    Ok(Part { frame: Arc::new(copy), crop: crop.shifted(-(x as i32), -(y as i32)), label })
}
