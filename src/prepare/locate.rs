//! Locates parts on a belt, at low resolution, without ever needing an empty frame.
//!
//! How that is learned is in [`super::learn`]. The belt is almost never empty and its texture moves, so neither an empty frame nor a temporal median gives the
//! background. Parts leave some strip of the picture uncovered (above and below, or left and right of their path): there
//! the picture changes little over time. From that strip the belt's level is learned as a smooth surface (light falls off
//! towards the edges) that is extended under the parts; what differs from it by more than the belt's own texture is part.
//! The strip also tells the flicker of each frame.
//!
//! Invariants:
//! 1. The learned [`Locator`] is plain data and lives in the model package; [`Finder`] holds the scratch memory of a thread.
//! 2. Boxes are in source pixels of the whole frame.

use crate::error::{Context, Result};
use crate::frame::{Frame, PixelFormat};
use crate::prepare::shrink::{Crop, Shrinker, Size, crop_f64};
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
/// How far a followed part may lie from where it should be, as a share of its size.
const PLACE_MARGIN: f32 = 0.06;
/// Pieces are joined while their union is no larger than this many parts.
const JOIN: f32 = 1.12;

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
    pub(super) planes: Vec<Vec<u8>>,
}

/// Shrinks a frame's ROI to the locating resolution.
pub fn shrink(shrinker: &mut Shrinker, frame: &Frame, roi: Crop, size: Size, into: &mut Small) -> Result<()> {
    let n = channels(frame.format());
    into.planes.resize_with(n, Vec::new);
    into.planes.iter_mut().for_each(|p| p.resize(size.area(), 0));
    let luma = crop_f64(roi, 1.0, 1.0);
    let (sx, sy) = frame.format().chroma_scale();
    let chroma = crop_f64(roi, sx, sy);
    match frame.format() {
        PixelFormat::Gray8 => shrinker.plane(&frame.plane(0), luma, size, &mut into.planes[0]),
        PixelFormat::I420 | PixelFormat::Y42b | PixelFormat::Y444 => {
            shrinker.plane(&frame.plane(0), luma, size, &mut into.planes[0])?;
            shrinker.plane(&frame.plane(1), chroma, size, &mut into.planes[1])?;
            shrinker.plane(&frame.plane(2), chroma, size, &mut into.planes[2])
        }
        PixelFormat::Nv12 => {
            shrinker.plane(&frame.plane(0), luma, size, &mut into.planes[0])?;
            let mut both = vec![0; size.area() * 2];
            shrinker.plane(&frame.plane(1), chroma, size, &mut both)?;
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

    pub(super) fn with_size(locator: &Locator, sized: bool) -> Result<Self> {
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

    /// All parts in the frame, whole or cut by the ROI's edge. `expected` are the places where followed parts should be:
    /// pieces that lie in one of them belong together.
    pub fn find(&mut self, shrinker: &mut Shrinker, frame: &Frame, expected: &[Crop]) -> Result<Vec<Found>> {
        let mut small = std::mem::take(&mut self.small);
        let done = shrink(shrinker, frame, self.locator.roi, self.locator.size, &mut small);
        let found = done.and_then(|()| self.find_in(&small, expected));
        self.small = small;
        found
    }

    pub(super) fn find_in(&mut self, small: &Small, expected: &[Crop]) -> Result<Vec<Found>> {
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
            found = self.join_fragments(found, expected);
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

    /// Joins pieces of one part (a dark groove can cut it in two, a part as dark as the belt shows only its edges): those
    /// that lie where a followed part should be, then the nearest ones, while the union is no larger than a part can be.
    fn join_fragments(&self, found: Vec<Found>, expected: &[Crop]) -> Vec<Found> {
        let part = self.locator.part;
        let mut pieces = found;
        let mut joined: Vec<Found> = Vec::new();
        for place in expected {
            let (mx, my) = (part.width * PLACE_MARGIN, part.height * PLACE_MARGIN);
            let inside = |f: &Found| {
                f.x >= place.x as f32 - mx
                    && f.y >= place.y as f32 - my
                    && f.x + f.width <= (place.x + place.width as i32) as f32 + mx
                    && f.y + f.height <= (place.y + place.height as i32) as f32 + my
            };
            let (here, elsewhere): (Vec<Found>, Vec<Found>) = pieces.into_iter().partition(inside);
            pieces = elsewhere;
            joined.extend(here.into_iter().reduce(|a, b| a.union(&b)));
        }
        joined.append(&mut pieces);
        let gap = |a: &Found, b: &Found| {
            let x = (a.x.max(b.x) - (a.x + a.width).min(b.x + b.width)).max(0.0);
            let y = (a.y.max(b.y) - (a.y + a.height).min(b.y + b.height)).max(0.0);
            x.max(y)
        };
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

pub(super) fn render(s: &Surface, size: Size) -> Vec<f32> {
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

pub(super) fn unit(x: u32, y: u32, size: Size) -> (f32, f32) {
    ((x as f32 + 0.5) / size.width as f32 * 2.0 - 1.0, (y as f32 + 0.5) / size.height as f32 * 2.0 - 1.0)
}

pub(super) fn strip_pixels(strips: &[[u32; 4]], size: Size) -> Vec<u32> {
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
pub(super) fn gain(plane: &[u8], level: &[f32], pixels: &[u32]) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(x: f32, width: f32, cut_left: bool) -> Found {
        Found { x, y: 150.0, width, height: 400.0, area: width * 400.0, cut: [cut_left, false, false, false] }
    }

    /// A part as dark as the belt: only its edges differ, and the next part that enters is nearer to one of them than the
    /// other edge.
    #[test]
    fn pieces_where_a_part_should_be_are_joined_first() {
        let locator = Locator {
            roi: Crop { x: 0, y: 0, width: 1280, height: 720 },
            size: Size { width: 320, height: 180 },
            belt: vec![Surface { coefficients: [60.0, 0.0, 0.0, 0.0, 0.0, 0.0], deviation: 2.0 }],
            strips: Vec::new(),
            part: PartSize { width: 400.0, height: 400.0 },
            velocity: [24.0, 0.0],
        };
        let finder = Finder::new(&locator).unwrap();
        let pieces = || vec![piece(0.0, 20.0, true), piece(270.0, 30.0, false), piece(650.0, 20.0, false)];
        let place = Crop { x: 268, y: 152, width: 400, height: 400 };
        let joined = finder.join_fragments(pieces(), &[place]);
        assert!(joined.iter().any(|f| f.x == 270.0 && f.width == 400.0), "{joined:?}");
        assert!(joined.iter().any(|f| f.x == 0.0 && f.width == 20.0), "{joined:?}");
        // without that knowledge the nearest pieces are taken for one part
        assert!(finder.join_fragments(pieces(), &[]).iter().any(|f| f.x == 0.0 && f.width == 300.0));
    }
}
