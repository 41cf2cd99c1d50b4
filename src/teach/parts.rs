//! Collects the good parts: whole frames, or parts that are located and followed over the belt.

use super::Progress;
use crate::capture::{Capture, Source};
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::model::Trigger;
use crate::prepare::Roi;
use crate::prepare::learn::Learner;
use crate::prepare::locate::{Finder, Found, Locator};
use crate::prepare::shrink::{Crop, Shrinker};
use crate::prepare::track::Tracker;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most parts that are taught: more cost memory and time and improve little. Longer sources are sampled evenly.
const MAX_PARTS: u64 = 200;
/// Views of each located part that are taught beside the one at the gate: the frames just before it, which show the same
/// part with other noise, light and sub-pixel position.
const EXTRA_VIEWS: usize = 4;
/// Enough views: beyond, only the one at the gate is taken.
const MAX_VIEWS: usize = 300;
/// Kept around a part, as a fraction of its size, so that registration can move the crop over real content.
const MARGIN: f32 = 0.08;

/// One good part.
pub(super) struct Part {
    pub frame: Arc<Frame>,
    /// Where the part lies in `frame`.
    pub crop: Crop,
    /// How a person finds it: file, or frame number and time.
    pub label: String,
    /// Which physical part it is; views of one part stay in one fold of the calibration.
    pub group: usize,
    /// The view that an inspection would use: its held-out score counts in the calibration.
    pub at_gate: bool,
}

pub(super) struct Collected {
    pub locator: Option<Locator>,
    pub parts: Vec<Part>,
}

/// All good parts of the sources. With trigger presence the locator is learned from the first one, unless it is `known`.
pub(super) fn collect(
    good: &[Source],
    trigger: Trigger,
    roi: Option<Roi>,
    known: Option<&Locator>,
    progress: Progress<'_>,
) -> Result<Collected> {
    if trigger == Trigger::Frame {
        return Ok(Collected { locator: None, parts: frames(good, roi, progress)? });
    }
    if let Some(folder) = good.iter().find(|s| matches!(s, Source::Folder { .. })) {
        return Err(Error::usage(format!(
            "trigger \"presence\" needs recordings, \"{}\" is a folder of images",
            folder.name()
        ))
        .hint("for pictures of single parts use --trigger frame"));
    }
    let locator = match (known, good.first()) {
        (Some(locator), _) => locator.clone(),
        (None, Some(first)) => learn_locator(first, roi, progress)?,
        (None, None) => return Err(Error::usage("no --good source was given")),
    };
    let parts = presence(good, &locator, progress)?;
    Ok(Collected { locator: Some(locator), parts })
}

fn label(frame: &Frame, source: &Source) -> String {
    match (&frame.file, frame.pts_ns) {
        (Some(file), _) => format!("\"{file}\""),
        (None, Some(t)) => format!("at frame {} ({:.2} s) of \"{}\"", frame.seq, t as f64 * 1e-9, source.name()),
        (None, None) => format!("at frame {} of \"{}\"", frame.seq, source.name()),
    }
}

/// Each frame is a part.
fn frames(good: &[Source], roi: Option<Roi>, progress: Progress<'_>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let share = MAX_PARTS / good.len().max(1) as u64;
    for source in good {
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
            let crop = Roi::in_frame(roi, frame.width(), frame.height())?;
            kept.push(Part { crop, label: label(&frame, source), frame, group: 0, at_gate: true });
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
    for (i, part) in parts.iter_mut().enumerate() {
        part.group = i;
    }
    Ok(parts)
}

/// Learns where parts are and how they move from the first part of a recording.
fn learn_locator(first: &Source, roi: Option<Roi>, progress: Progress<'_>) -> Result<Locator> {
    let mut shrinker = Shrinker::new();
    let mut learner = None;
    let mut capture = Capture::open(first, false)?;
    while let Some(frame) = capture.next_frame()? {
        if learner.is_none() {
            learner = Some(Learner::new(Roi::in_frame(roi, frame.width(), frame.height())?));
        }
        progress("locator", capture.frames(), capture.expected_frames());
        let Some(l) = learner.as_mut() else { continue };
        if !l.observe(&mut shrinker, &frame)? {
            break;
        }
    }
    let name = first.name();
    let learner = learner.ok_or_else(|| Error::failed(format!("\"{name}\" has no frames")))?;
    learner.learn().map_err(|e| {
        let hint = e.hint_text().unwrap_or_default().to_owned();
        Error::new(e.kind(), format!("parts cannot be located in \"{name}\"")).because(e).hint(hint)
    })
}

/// Parts on a belt: each recording is followed from its beginning.
fn presence(good: &[Source], locator: &Locator, progress: Progress<'_>) -> Result<Vec<Part>> {
    let mut shrinker = Shrinker::new();
    let mut parts = Vec::new();
    let mut groups = 0;
    for source in good {
        let mut capture = Capture::open(source, false)?;
        let mut finder = Finder::new(locator)?;
        let mut tracker = Tracker::new(locator);
        let mut earlier: VecDeque<(Arc<Frame>, Vec<Found>)> = VecDeque::new();
        while let Some(frame) = capture.next_frame()? {
            progress("parts", capture.frames(), capture.expected_frames());
            let found = finder.find(&mut shrinker, &frame, &tracker.expected(frame.seq))?;
            for crossing in tracker.observe(frame.seq, &found) {
                if !crossing.located {
                    tracing::warn!("a part {} could not be located and is not taught", label(&frame, source));
                    continue;
                }
                if groups as u64 == MAX_PARTS {
                    tracing::info!("{MAX_PARTS} parts are enough: the rest of \"{}\" is not used", source.name());
                    return Ok(parts);
                }
                let name = label(&frame, source);
                parts.push(cut_out(&frame, crossing.crop, name.clone(), groups, true)?);
                for (frame, found) in &earlier {
                    if parts.len() >= MAX_VIEWS {
                        break;
                    }
                    let back = (parts[parts.len() - 1].frame.seq.saturating_sub(frame.seq)) as f32;
                    if let Some(crop) = view_before(locator, crossing.crop, back, found) {
                        parts.push(cut_out(frame, crop, name.clone(), groups, false)?);
                    }
                }
                groups += 1;
            }
            earlier.push_back((frame, found));
            if earlier.len() > EXTRA_VIEWS {
                earlier.pop_front();
            }
        }
    }
    Ok(parts)
}

/// Where the part that is at `gate` now was located `back` frames ago.
fn view_before(locator: &Locator, gate: Crop, back: f32, found: &[Found]) -> Option<Crop> {
    let centre = |c: f32, v: f32| c - v * back;
    let (x, y) = (
        centre(gate.x as f32 + gate.width as f32 / 2.0, locator.velocity[0]),
        centre(gate.y as f32 + gate.height as f32 / 2.0, locator.velocity[1]),
    );
    let near = found.iter().find(|f| {
        let (cx, cy) = f.centre();
        f.is_whole() && (cx - x).abs() < 0.1 * locator.part.width && (cy - y).abs() < 0.1 * locator.part.height
    })?;
    let (cx, cy) = near.centre();
    Some(Crop {
        x: (cx - gate.width as f32 / 2.0).round() as i32,
        y: (cy - gate.height as f32 / 2.0).round() as i32,
        ..gate
    })
}

/// Copies a part with its surroundings, so that the frame can go.
fn cut_out(frame: &Arc<Frame>, crop: Crop, label: String, group: usize, at_gate: bool) -> Result<Part> {
    let (mx, my) = ((crop.width as f32 * MARGIN) as i32, (crop.height as f32 * MARGIN) as i32);
    let (x, y) = ((crop.x - mx).max(0) as u32, (crop.y - my).max(0) as u32);
    let right = (crop.x + crop.width as i32 + mx).clamp(0, frame.width() as i32) as u32;
    let bottom = (crop.y + crop.height as i32 + my).clamp(0, frame.height() as i32) as u32;
    let (copy, x, y) =
        frame.copy_region(x, y, right.saturating_sub(x & !1).max(2), bottom.saturating_sub(y & !1).max(2))?;
    Ok(Part { frame: Arc::new(copy), crop: crop.shifted(-(x as i32), -(y as i32)), label, group, at_gate })
}
