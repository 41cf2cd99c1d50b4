//! Locates parts on a belt, at low resolution, without ever needing an empty frame.
//!
//! The belt is almost never empty and its texture moves, so neither an empty frame nor a temporal median gives the
//! background. Parts leave some strip of the picture uncovered (above and below, or left and right of their path): there
//! the picture changes little over time. From that strip the belt's level is learned as a smooth surface (light falls off
//! towards the edges) that is extended under the parts; what differs from it by more than the belt's own texture is part.
//! The strip also tells the flicker of each frame.
//!
//! Invariants:
//! 1. The learned [`Locator`] is plain data and lives in the model package; [`Finder`] holds the scratch memory of a thread.
//! 2. Boxes are in source pixels of the whole frame.

use crate::error::{Context, Error, Result};
use crate::frame::{Frame, PixelFormat};
use crate::prepare::shrink::{Crop, Shrinker, Size};
use nalgebra::{DMatrix, DVector};
use opencv::core::{Mat, Point};
use opencv::imgproc;
use opencv::prelude::*;
use serde::{Deserialize, Serialize};

/// Longer side of the picture in which parts are located.
const LOCATE_SIDE: u32 = 320;
/// A pixel belongs to a part when it differs from the belt by this many standard deviations of the belt's texture ...
const SIGMAS: f32 = 6.0;
/// ... and by at least this many grey levels.
const MIN_LEVELS: f32 = 7.0;
/// Pieces are joined while their union is no larger than this many parts.
const JOIN: f32 = 1.12;
/// Smallest part, as a share of the ROI, while its size is not yet known.
const MIN_AREA: f64 = 0.004;

/// A located part: its box in source pixels and what is known about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
    /// Foreground pixels, in source pixels.
    pub area: f32,
    /// The box touches the edge of the ROI: left, top, right, bottom.
    pub cut: [bool; 4],
}

impl Found {
    pub fn centre(&self) -> (f32, f32) {
        (self.x + self.width / 2.0, self.y + self.height / 2.0)
    }
    pub fn is_whole(&self) -> bool {
        !self.cut.iter().any(|&c| c)
    }
    fn union(&self, o: &Found) -> Found {
        let (x, y) = (self.x.min(o.x), self.y.min(o.y));
        let right = (self.x + self.width).max(o.x + o.width);
        let bottom = (self.y + self.height).max(o.y + o.height);
        let mut cut = self.cut;
        cut.iter_mut().zip(o.cut).for_each(|(a, b)| *a |= b);
        Found { x, y, width: right - x, height: bottom - y, area: self.area + o.area, cut }
    }
}

/// Size of the taught parts, source pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PartSize {
    pub width: f32,
    pub height: f32,
}

/// One channel of the belt: `level = c0 + c1 x + c2 y + c3 x² + c4 xy + c5 y²` with x, y in -1..1 over the ROI.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Surface {
    pub coefficients: [f32; 6],
    /// Standard deviation of the belt's texture around the surface, at the locating resolution.
    pub deviation: f32,
}

/// What teaching learned about the belt and the parts' way over it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Locator {
    pub roi: Crop,
    /// Size of the picture in which parts are located.
    pub size: Size,
    /// Luma and two colour differences; grey sources have the first only.
    pub belt: Vec<Surface>,
    /// Strips that no part covers, in cells of the locating picture: x, y, width, height.
    pub strips: Vec<[u32; 4]>,
    pub part: PartSize,
    /// Displacement of the parts from frame to frame, source pixels.
    pub velocity: [f32; 2],
}

/// A frame's ROI at the locating resolution: one plane for each channel.
pub struct Small {
    planes: Vec<Vec<u8>>,
}

/// Shrinks a frame's ROI to the locating resolution.
pub fn shrink(shrinker: &mut Shrinker, frame: &Frame, roi: Crop, size: Size, into: &mut Small) -> Result<()> {
    let n = channels(frame.format());
    into.planes.resize_with(n, Vec::new);
    into.planes.iter_mut().for_each(|p| p.resize(size.area(), 0));
    let scaled = |sx: f64, sy: f64| {
        [f64::from(roi.x) * sx, f64::from(roi.y) * sy, f64::from(roi.width) * sx, f64::from(roi.height) * sy]
    };
    match frame.format() {
        PixelFormat::Gray8 => shrinker.plane(&frame.plane(0), scaled(1.0, 1.0), size, &mut into.planes[0]),
        PixelFormat::I420 | PixelFormat::Y42b | PixelFormat::Y444 => {
            let (sx, sy) = match frame.format() {
                PixelFormat::I420 => (0.5, 0.5),
                PixelFormat::Y42b => (0.5, 1.0),
                _ => (1.0, 1.0),
            };
            shrinker.plane(&frame.plane(0), scaled(1.0, 1.0), size, &mut into.planes[0])?;
            shrinker.plane(&frame.plane(1), scaled(sx, sy), size, &mut into.planes[1])?;
            shrinker.plane(&frame.plane(2), scaled(sx, sy), size, &mut into.planes[2])
        }
        PixelFormat::Nv12 => {
            shrinker.plane(&frame.plane(0), scaled(1.0, 1.0), size, &mut into.planes[0])?;
            let mut both = vec![0; size.area() * 2];
            shrinker.plane(&frame.plane(1), scaled(0.5, 0.5), size, &mut both)?;
            for (i, uv) in both.chunks_exact(2).enumerate() {
                into.planes[1][i] = uv[0];
                into.planes[2][i] = uv[1];
            }
            Ok(())
        }
        PixelFormat::Rgb | PixelFormat::Bgr => {
            let mut rgb = vec![0; size.area() * 3];
            shrinker.rgb(frame, roi, size, &mut rgb)?;
            for (i, p) in rgb.chunks_exact(3).enumerate() {
                let (r, g, b) = (i32::from(p[0]), i32::from(p[1]), i32::from(p[2]));
                // JFIF luma and colour differences: the scale of the YUV formats
                into.planes[0][i] = ((77 * r + 150 * g + 29 * b) >> 8) as u8;
                into.planes[1][i] = (128 + ((-43 * r - 85 * g + 128 * b) >> 8)).clamp(0, 255) as u8;
                into.planes[2][i] = (128 + ((128 * r - 107 * g - 21 * b) >> 8)).clamp(0, 255) as u8;
            }
            Ok(())
        }
    }
}

impl Small {
    pub fn new() -> Self {
        Small { planes: Vec::new() }
    }
}

impl Default for Small {
    fn default() -> Self {
        Self::new()
    }
}

fn channels(format: PixelFormat) -> usize {
    if format == PixelFormat::Gray8 { 1 } else { 3 }
}

/// Size of the locating picture for a ROI: the longer side is `LOCATE_SIDE` or less, both sides even.
pub fn locating_size(roi: Crop) -> Size {
    let scale = (f64::from(LOCATE_SIDE) / f64::from(roi.width.max(roi.height))).min(1.0);
    let side = |n: u32| ((f64::from(n) * scale / 2.0).round() as u32 * 2).max(16);
    Size { width: side(roi.width), height: side(roi.height) }
}

/// Finds parts in frames with what a [`Locator`] knows.
pub struct Finder {
    locator: Locator,
    /// The belt's level under each pixel, by channel.
    levels: Vec<Vec<f32>>,
    strip: Vec<u32>,
    small: Small,
    mask: Vec<u8>,
    closing: Mat,
    sized: bool,
}

impl Finder {
    pub fn new(locator: &Locator) -> Result<Self> {
        Self::with_size(locator, true)
    }

    fn with_size(locator: &Locator, sized: bool) -> Result<Self> {
        let size = locator.size;
        let levels = locator.belt.iter().map(|s| render(s, size)).collect();
        let strip = strip_pixels(&locator.strips, size);
        // once the parts' size is known, gaps of a sixteenth of it (dark edges, engraved grooves) are closed
        let scale = size.width as f32 / locator.roi.width as f32;
        let reach = if sized { (locator.part.width.min(locator.part.height) * scale / 16.0).round() as i32 } else { 2 };
        let k = 2 * reach.clamp(1, 12) + 1;
        let closing =
            imgproc::get_structuring_element(imgproc::MORPH_RECT, opencv::core::Size::new(k, k), Point::new(-1, -1))
                .failed(|| "locate: structuring element")?;
        Ok(Finder {
            locator: locator.clone(),
            levels,
            strip,
            small: Small::new(),
            mask: vec![0; size.area()],
            closing,
            sized,
        })
    }

    pub fn locator(&self) -> &Locator {
        &self.locator
    }

    /// All parts in the frame, whole or cut by the ROI's edge.
    pub fn find(&mut self, shrinker: &mut Shrinker, frame: &Frame) -> Result<Vec<Found>> {
        let mut small = std::mem::take(&mut self.small);
        let done = shrink(shrinker, frame, self.locator.roi, self.locator.size, &mut small);
        let found = done.and_then(|()| self.find_in(&small));
        self.small = small;
        found
    }

    fn find_in(&mut self, small: &Small) -> Result<Vec<Found>> {
        self.foreground(small);
        let size = self.locator.size;
        let mask = Mat::new_rows_cols_with_data(size.height as i32, size.width as i32, &self.mask)
            .failed(|| "locate: mask size")?;
        let mut closed = Mat::default();
        let border = imgproc::morphology_default_border_value().failed(|| "locate: border")?;
        imgproc::morphology_ex(
            &mask,
            &mut closed,
            imgproc::MORPH_CLOSE,
            &self.closing,
            Point::new(-1, -1),
            1,
            opencv::core::BORDER_CONSTANT,
            // outside the picture is neither part nor belt: any other value would wear parts off at the edge
            border,
        )
        .failed(|| "locate: morphology")?;
        let (mut labels, mut stats, mut centroids) = (Mat::default(), Mat::default(), Mat::default());
        let n = imgproc::connected_components_with_stats(
            &closed,
            &mut labels,
            &mut stats,
            &mut centroids,
            8,
            opencv::core::CV_32S,
        )
        .failed(|| "locate: components")?;
        let roi = self.locator.roi;
        let (sx, sy) = (roi.width as f32 / size.width as f32, roi.height as f32 / size.height as f32);
        let mut found = Vec::new();
        for label in 1..n {
            let stat = |column: i32| -> Result<i32> {
                stats.at_2d::<i32>(label, column).copied().failed(|| "locate: statistics")
            };
            let (x, y, w, h) = (
                stat(imgproc::CC_STAT_LEFT)?,
                stat(imgproc::CC_STAT_TOP)?,
                stat(imgproc::CC_STAT_WIDTH)?,
                stat(imgproc::CC_STAT_HEIGHT)?,
            );
            let area = stat(imgproc::CC_STAT_AREA)?;
            if area < 12 {
                continue;
            }
            found.push(Found {
                x: roi.x as f32 + x as f32 * sx,
                y: roi.y as f32 + y as f32 * sy,
                width: w as f32 * sx,
                height: h as f32 * sy,
                area: area as f32 * sx * sy,
                cut: [x == 0, y == 0, x + w == size.width as i32, y + h == size.height as i32],
            });
        }
        if self.sized {
            found = self.join_fragments(found);
            found = self.split_touching(found);
        }
        Ok(found)
    }

    /// Marks what is not belt.
    fn foreground(&mut self, small: &Small) {
        let flicker = self.flicker(&small.planes[0]);
        self.mask.fill(0);
        for (c, surface) in self.locator.belt.iter().enumerate() {
            let gain = if c == 0 { flicker } else { 1.0 };
            let limit = (SIGMAS * surface.deviation).max(MIN_LEVELS);
            for ((m, &v), &level) in self.mask.iter_mut().zip(&small.planes[c]).zip(&self.levels[c]) {
                *m |= u8::from((f32::from(v) - gain * level).abs() > limit) * 255;
            }
        }
    }

    /// How much brighter the belt is in this frame than it was while teaching.
    fn flicker(&self, luma: &[u8]) -> f32 {
        gain(luma, &self.levels[0], &self.strip)
    }

    /// Joins pieces of one part (a dark groove can cut it in two), nearest pieces first, while the union is no larger than
    /// a part can be.
    fn join_fragments(&self, found: Vec<Found>) -> Vec<Found> {
        let part = self.locator.part;
        let gap = |a: &Found, b: &Found| {
            let x = (a.x.max(b.x) - (a.x + a.width).min(b.x + b.width)).max(0.0);
            let y = (a.y.max(b.y) - (a.y + a.height).min(b.y + b.height)).max(0.0);
            x.max(y)
        };
        let mut joined = found;
        loop {
            let mut nearest: Option<(f32, usize, usize)> = None;
            for i in 0..joined.len() {
                for j in i + 1..joined.len() {
                    let (u, d) = (joined[i].union(&joined[j]), gap(&joined[i], &joined[j]));
                    let fits = u.width <= part.width * JOIN && u.height <= part.height * JOIN;
                    if fits && nearest.is_none_or(|n| d < n.0) {
                        nearest = Some((d, i, j));
                    }
                }
            }
            let Some((_, i, j)) = nearest else { break };
            let other = joined.swap_remove(j);
            joined[i] = joined[i].union(&other);
        }
        // dirt and reflections: far smaller than a part, and not a part that is just entering or leaving
        joined.retain(|f| !f.is_whole() || f.width * f.height > 0.25 * part.width * part.height);
        joined
    }

    /// Parts that touch along the way appear as one long blob: cut into as many as fit.
    fn split_touching(&self, found: Vec<Found>) -> Vec<Found> {
        let part = self.locator.part;
        let mut out = Vec::with_capacity(found.len());
        for f in found {
            let along_x = self.locator.velocity[0].abs() >= self.locator.velocity[1].abs();
            let (length, one) = if along_x { (f.width, part.width) } else { (f.height, part.height) };
            let n = (length / one).round() as usize;
            if n < 2 || length < 1.6 * one {
                out.push(f);
                continue;
            }
            // a piece cut off by the edge is shorter: whole parts are counted from the uncut end
            let cut_start = f.cut[if along_x { 0 } else { 1 }];
            let cut_end = f.cut[if along_x { 2 } else { 3 }];
            let n = if cut_start || cut_end { (length / one).ceil() as usize } else { n };
            let step = if cut_start || cut_end { one } else { length / n as f32 };
            for i in 0..n {
                let (from, to) = if cut_start && !cut_end {
                    (length - (i + 1) as f32 * step, length - i as f32 * step)
                } else {
                    (i as f32 * step, (i + 1) as f32 * step)
                };
                let (from, to) = (from.max(0.0), to.min(length));
                if to - from < 2.0 {
                    continue;
                }
                let mut piece = f;
                piece.area = f.area * (to - from) / length;
                if along_x {
                    (piece.x, piece.width) = (f.x + from, to - from);
                    piece.cut[0] = f.cut[0] && from == 0.0;
                    piece.cut[2] = f.cut[2] && to == length;
                } else {
                    (piece.y, piece.height) = (f.y + from, to - from);
                    piece.cut[1] = f.cut[1] && from == 0.0;
                    piece.cut[3] = f.cut[3] && to == length;
                }
                out.push(piece);
            }
        }
        out
    }
}

fn render(s: &Surface, size: Size) -> Vec<f32> {
    let c = s.coefficients;
    let mut out = Vec::with_capacity(size.area());
    for y in 0..size.height {
        for x in 0..size.width {
            let (u, v) = unit(x, y, size);
            out.push(c[0] + c[1] * u + c[2] * v + c[3] * u * u + c[4] * u * v + c[5] * v * v);
        }
    }
    out
}

fn unit(x: u32, y: u32, size: Size) -> (f32, f32) {
    ((x as f32 + 0.5) / size.width as f32 * 2.0 - 1.0, (y as f32 + 0.5) / size.height as f32 * 2.0 - 1.0)
}

fn strip_pixels(strips: &[[u32; 4]], size: Size) -> Vec<u32> {
    let mut out = Vec::new();
    for &[x, y, w, h] in strips {
        for yy in y..(y + h).min(size.height) {
            for xx in x..(x + w).min(size.width) {
                out.push(yy * size.width + xx);
            }
        }
    }
    out
}

/// Median ratio of a plane to its level over some pixels, from a histogram of 1/256 steps.
fn gain(plane: &[u8], level: &[f32], pixels: &[u32]) -> f32 {
    let mut histogram = [0u32; 1024];
    // every third pixel is plenty for a median
    for &i in pixels.iter().step_by(3) {
        let ratio = f32::from(plane[i as usize]) / level[i as usize].max(1.0);
        histogram[((ratio * 256.0) as usize).min(1023)] += 1;
    }
    let half = histogram.iter().sum::<u32>() / 2;
    let mut seen = 0;
    for (i, &n) in histogram.iter().enumerate() {
        seen += n;
        if seen > half {
            // the place inside the step, so that the gain does not move in steps
            return (i as f32 + 1.0 - (seen - half) as f32 / n.max(1) as f32) / 256.0;
        }
    }
    1.0
}

/// Learns a [`Locator`] from the first part of a recording of good parts.
pub struct Learner {
    roi: Crop,
    size: Size,
    frames: Vec<Small>,
}

/// Frames kept for learning (at 30 fps 20 seconds): bounds memory and time.
pub const LEARN_FRAMES: usize = 600;

impl Learner {
    pub fn new(roi: Crop) -> Self {
        Learner { roi, size: locating_size(roi), frames: Vec::new() }
    }

    /// Takes one frame; false when enough were seen.
    pub fn observe(&mut self, shrinker: &mut Shrinker, frame: &Frame) -> Result<bool> {
        let mut small = Small::new();
        shrink(shrinker, frame, self.roi, self.size, &mut small)?;
        self.frames.push(small);
        Ok(self.frames.len() < LEARN_FRAMES)
    }

    /// The locator, or why there can be none.
    pub fn learn(self) -> Result<Locator> {
        if self.frames.len() < 10 {
            return Err(Error::failed(format!(
                "{} frames are too few to learn where parts are",
                self.frames.len()
            ))
            .hint("trigger \"presence\" needs a recording of a moving belt; for pictures of single parts use --trigger frame"));
        }
        let strips = self.find_strips()?;
        let pixels = strip_pixels(&strips, self.size);
        let belt = (0..self.frames[0].planes.len())
            .map(|c| self.fit_surface(c, &pixels, &strips))
            .collect::<Result<Vec<_>>>()?;
        let mut locator = Locator {
            roi: self.roi,
            size: self.size,
            belt,
            strips,
            part: PartSize { width: 0.0, height: 0.0 },
            velocity: [0.0, 0.0],
        };
        // pieces of parts are among the boxes until their size is known: first the large ones tell it, then all that are
        // whole once pieces are joined
        let see = |locator: &Locator, sized| -> Result<Vec<Vec<Found>>> {
            let mut finder = Finder::with_size(locator, sized)?;
            self.frames.iter().map(|small| finder.find_in(small)).collect()
        };
        locator.part = part_size(&see(&locator, false)?, self.roi, 0.8)?;
        let seen = see(&locator, true)?;
        locator.part = part_size(&seen, self.roi, 0.5)?;
        locator.velocity = velocity(&seen, locator.part)?;
        tracing::debug!(?locator, "locator learned");
        Ok(locator)
    }

    /// Rows or columns of the picture that no part passes: where the range of values over time is as small as anywhere.
    fn find_strips(&self) -> Result<Vec<[u32; 4]>> {
        let (w, h) = (self.size.width as usize, self.size.height as usize);
        let luma: Vec<&[u8]> = self.frames.iter().map(|f| f.planes[0].as_slice()).collect();
        // activity of a pixel: spread between the 5 % and 95 % quantiles over time
        let mut activity = vec![0f32; w * h];
        let step = (luma.len() / 200).max(1);
        let mut values = Vec::with_capacity(luma.len() / step + 1);
        for (i, a) in activity.iter_mut().enumerate() {
            values.clear();
            values.extend(luma.iter().step_by(step).map(|f| f[i]));
            values.sort_unstable();
            let at = |q: f32| f32::from(values[((values.len() - 1) as f32 * q) as usize]);
            *a = at(0.95) - at(0.05);
        }
        let median = |mut v: Vec<f32>| {
            v.sort_by(f32::total_cmp);
            v[v.len() / 2]
        };
        // a line that parts pass is active over at least the width of a part: the upper quartile sees it, noise does not
        let line = |pixels: Vec<f32>| {
            let mut v = pixels;
            v.sort_by(f32::total_cmp);
            v[v.len() * 3 / 4]
        };
        let rows: Vec<f32> = (0..h).map(|y| line(activity[y * w..(y + 1) * w].to_vec())).collect();
        let columns: Vec<f32> = (0..w).map(|x| line((0..h).map(|y| activity[y * w + x]).collect())).collect();
        let quiet = |lines: &[f32]| {
            let mut sorted = lines.to_vec();
            sorted.sort_by(f32::total_cmp);
            let calm = median(sorted[..(sorted.len() / 10).max(1)].to_vec());
            let busy = sorted[sorted.len() * 9 / 10];
            (calm, busy)
        };
        let ((calm_r, busy_r), (calm_c, busy_c)) = (quiet(&rows), quiet(&columns));
        // the direction whose lines differ more is the one across the movement
        let across_rows = busy_r / calm_r.max(1.0) >= busy_c / calm_c.max(1.0);
        let (lines, calm, busy) = if across_rows { (&rows, calm_r, busy_r) } else { (&columns, calm_c, busy_c) };
        if busy < 2.5 * calm.max(2.0) {
            return Err(Error::failed("no strip of bare belt can be told from the parts' way")
                .hint("trigger \"presence\" needs parts that move through the picture and, beside their way, a strip of belt that none covers: widen --roi, or use --trigger frame"));
        }
        let limit = calm + 0.2 * (busy - calm);
        let mut strips = Vec::new();
        let mut start = None;
        for i in 0..=lines.len() {
            match (start, i < lines.len() && lines[i] <= limit) {
                (None, true) => start = Some(i),
                (Some(s), false) => {
                    // lines next to the parts' way carry their shadow
                    let s2 = if s == 0 { 0 } else { s + 3 };
                    let e2 = if i == lines.len() { i } else { i.saturating_sub(3) };
                    if e2 > s2 + 2 {
                        strips.push(if across_rows {
                            [0, s2 as u32, w as u32, (e2 - s2) as u32]
                        } else {
                            [s2 as u32, 0, (e2 - s2) as u32, h as u32]
                        });
                    }
                    start = None;
                }
                _ => {}
            }
        }
        if strips.is_empty() {
            return Err(Error::failed("the strip of bare belt beside the parts' way is too narrow")
                .hint("widen --roi so that some belt beside the parts stays visible, or use --trigger frame"));
        }
        Ok(strips)
    }

    /// Least squares over the strips' temporal mean, once more without what does not fit (a rail, a screw).
    fn fit_surface(&self, c: usize, pixels: &[u32], strips: &[[u32; 4]]) -> Result<Surface> {
        let n = self.frames.len() as f32;
        let mut mean = vec![0f32; pixels.len()];
        for f in &self.frames {
            for (m, &i) in mean.iter_mut().zip(pixels) {
                *m += f32::from(f.planes[c][i as usize]) / n;
            }
        }
        // with belt on one side of the way only, a parabola would run off on the other: a plane is safer
        let horizontal = strips.iter().all(|s| s[2] == self.size.width);
        let (near, far) = strips.iter().fold((false, false), |(a, b), s| {
            let (at, length, limit) =
                if horizontal { (s[1], s[3], self.size.height) } else { (s[0], s[2], self.size.width) };
            (a || at < limit / 2, b || at + length > limit / 2)
        });
        let terms: &[usize] = match (near && far, horizontal) {
            (true, _) => &[0, 1, 2, 3, 4, 5],
            (false, true) => &[0, 1, 3],
            (false, false) => &[0, 2, 5],
        };
        let basis = |i: u32| {
            let (u, v) = unit(i % self.size.width, i / self.size.width, self.size);
            [1.0, u, v, u * u, u * v, v * v]
        };
        let mut keep = vec![true; pixels.len()];
        let mut coefficients = [0f32; 6];
        for _ in 0..2 {
            let used: Vec<usize> = (0..pixels.len()).filter(|&i| keep[i]).step_by(2).collect();
            let a = DMatrix::from_fn(used.len(), terms.len(), |r, t| f64::from(basis(pixels[used[r]])[terms[t]]));
            let b = DVector::from_fn(used.len(), |r, _| f64::from(mean[used[r]]));
            let x = (a.transpose() * &a)
                .cholesky()
                .ok_or_else(|| Error::failed("the belt's level cannot be fitted"))?
                .solve(&(a.transpose() * b));
            coefficients = [0f32; 6];
            for (t, v) in terms.iter().zip(x.iter()) {
                coefficients[*t] = *v as f32;
            }
            let residual: Vec<f32> = pixels
                .iter()
                .zip(&mean)
                .map(|(&i, m)| m - basis(i).iter().zip(coefficients).map(|(a, b)| a * b).sum::<f32>())
                .collect();
            let sd = (residual.iter().map(|r| r * r).sum::<f32>() / residual.len() as f32).sqrt().max(0.5);
            keep = residual.iter().map(|r| r.abs() < 3.0 * sd).collect();
        }
        let mut surface = Surface { coefficients, deviation: 0.0 };
        let level = render(&surface, self.size);
        let kept: Vec<u32> = pixels.iter().zip(&keep).filter(|(_, k)| **k).map(|(&i, _)| i).collect();
        let (mut sum, mut count) = (0f64, 0u64);
        for f in self.frames.iter().step_by((self.frames.len() / 40).max(1)) {
            let flicker = if c == 0 { gain(&f.planes[0], &level, &kept) } else { 1.0 };
            for &i in &kept {
                let d = f32::from(f.planes[c][i as usize]) - flicker * level[i as usize];
                sum += f64::from(d * d);
                count += 1;
            }
        }
        surface.deviation = (sum / count.max(1) as f64).sqrt() as f32;
        Ok(surface)
    }
}

/// Quantile of the sizes of the large boxes that are wholly inside.
fn part_size(seen: &[Vec<Found>], roi: Crop, quantile: f32) -> Result<PartSize> {
    let least = MIN_AREA * f64::from(roi.width) * f64::from(roi.height);
    let whole: Vec<&Found> =
        seen.iter().flatten().filter(|f| f.is_whole() && f64::from(f.width * f.height) > least).collect();
    let mut areas: Vec<f32> = whole.iter().map(|f| f.width * f.height).collect();
    areas.sort_by(f32::total_cmp);
    let Some(&large) = areas.get(areas.len() * 4 / 5) else {
        return Err(Error::failed("no part was seen whole in the first frames")
            .hint("trigger \"presence\" needs parts that pass through the picture with belt around them; check --roi, or use --trigger frame"));
    };
    let side = |f: &dyn Fn(&Found) -> f32| {
        let mut v: Vec<f32> = whole.iter().filter(|p| p.width * p.height > 0.5 * large).map(|p| f(p)).collect();
        v.sort_by(f32::total_cmp);
        v[((v.len() - 1) as f32 * quantile) as usize]
    };
    Ok(PartSize { width: side(&|p| p.width), height: side(&|p| p.height) })
}

/// Median displacement between consecutive frames of parts that are wholly inside.
fn velocity(seen: &[Vec<Found>], part: PartSize) -> Result<[f32; 2]> {
    let fits = |f: &&Found| {
        f.is_whole() && (f.width / part.width - 1.0).abs() < 0.3 && (f.height / part.height - 1.0).abs() < 0.3
    };
    let (mut dx, mut dy) = (Vec::new(), Vec::new());
    for pair in seen.windows(2) {
        for a in pair[0].iter().filter(fits) {
            let nearest = pair[1].iter().filter(fits).min_by(|p, q| distance(a, p).total_cmp(&distance(a, q)));
            if let Some(b) = nearest
                && distance(a, b) < 0.6 * part.width.max(part.height)
            {
                dx.push(b.centre().0 - a.centre().0);
                dy.push(b.centre().1 - a.centre().1);
            }
        }
    }
    let median = |v: &mut Vec<f32>| {
        v.sort_by(f32::total_cmp);
        v.get(v.len() / 2).copied().unwrap_or(0.0)
    };
    let v = [median(&mut dx), median(&mut dy)];
    if v[0].abs().max(v[1].abs()) < 0.5 {
        return Err(Error::failed("the parts do not move in the first frames")
            .hint("trigger \"presence\" judges a part when it crosses the middle of the picture; start the recording while the belt runs, or use --trigger frame"));
    }
    Ok(v)
}

fn distance(a: &Found, b: &Found) -> f32 {
    let ((ax, ay), (bx, by)) = (a.centre(), b.centre());
    (ax - bx).hypot(ay - by)
}
