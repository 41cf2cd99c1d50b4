//! Learns where parts are: the belt's surface from the strips that no part covers, the parts' size and their way.
//! Used by teaching only.

use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::prepare::locate::{
    Finder, Found, Locator, PartSize, Small, Surface, gain, locating_size, render, shrink, strip_pixels, unit,
};
use crate::prepare::shrink::{Crop, Shrinker, Size};
use nalgebra::{DMatrix, DVector};

/// Grey levels that a pixel changes by when nothing but noise and light passes.
const STILL: f32 = 8.0;
/// Smallest part, as a share of the ROI, while its size is not yet known.
const MIN_AREA: f64 = 0.004;

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
            self.frames.iter().map(|small| finder.find_in(small, &[])).collect()
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
            let why = match busy_r.max(busy_c) < STILL {
                true => "nothing moves in the first frames",
                false => "no strip of bare belt can be told from the parts' way",
            };
            return Err(Error::failed(why)
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

#[cfg(test)]
mod tests {
    use super::*;
    use gstreamer_video as gst_video;
    use std::sync::Arc;

    const PART: i32 = 150;
    const PITCH: i32 = 260;

    /// A dark, woven, flickering, vignetted belt that moves, with square parts of which each has a dark groove.
    fn frame(seq: u64, upright: bool) -> Arc<Frame> {
        gstreamer::init().unwrap();
        let (w, h) = if upright { (360, 640) } else { (640, 360) };
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Gray8, w, h).build().unwrap();
        let shift = 13 * seq as i32;
        let flicker = 1.0 + 0.06 * (seq as f32 * 0.7).sin();
        let mut noise = 0x2545_F491_u32.wrapping_add(seq as u32);
        let mut pixels = vec![0u8; info.size()];
        for row in 0..h as i32 {
            for column in 0..w as i32 {
                let (x, y) = if upright { (row, column) } else { (column, row) };
                noise ^= noise << 13;
                noise ^= noise >> 17;
                noise ^= noise << 5;
                let (u, v) = (x as f32 / 320.0 - 1.0, y as f32 / 180.0 - 1.0);
                let light = flicker * (1.0 - 0.15 * (u * u + v * v));
                let weave = if ((x - shift) / 3 + y / 3) % 2 == 0 { 6.0 } else { -6.0 };
                let along = (x - shift).rem_euclid(PITCH);
                let part = along < PART && (100..100 + PART).contains(&y);
                let groove = (70..76).contains(&along);
                let level = match (part, groove) {
                    (true, false) => 150.0,
                    (true, true) => 62.0,
                    _ => 60.0 + weave,
                };
                pixels[(row * info.stride()[0] + column) as usize] =
                    (level * light + (noise >> 24) as f32 / 32.0).clamp(0.0, 255.0) as u8;
            }
        }
        let buffer = gstreamer::Buffer::from_mut_slice(pixels);
        Arc::new(Frame::map(buffer, &info, seq, None).unwrap())
    }

    /// Locates all parts that are wholly inside; `upright` turns the belt by a quarter.
    fn locates(upright: bool) {
        let (width, height) = if upright { (360, 640) } else { (640, 360) };
        let roi = Crop { x: 0, y: 0, width, height };
        let mut shrinker = Shrinker::new();
        let mut learner = Learner::new(roi);
        for seq in 0..60 {
            learner.observe(&mut shrinker, &frame(seq, upright)).unwrap();
        }
        let locator = learner.learn().unwrap();
        let along = usize::from(upright);
        let v = locator.velocity;
        assert!((v[along] - 13.0).abs() < 1.0 && v[1 - along].abs() < 0.5, "{v:?}");
        assert!((locator.part.width - PART as f32).abs() <= 6.0, "{:?}", locator.part);
        let mut finder = Finder::new(&locator).unwrap();
        for seq in 60..120 {
            let shift = 13 * seq as i32;
            let found = finder.find(&mut shrinker, &frame(seq, upright), &[]).unwrap();
            for at in (25..616 - PART).filter(|x| (x - shift).rem_euclid(PITCH) == 0) {
                let (x, y) = if upright { (100.0, at as f32) } else { (at as f32, 100.0) };
                let near = found
                    .iter()
                    .find(|f| (f.x - x).abs() <= 6.0 && (f.y - y).abs() <= 6.0)
                    .unwrap_or_else(|| panic!("frame {seq}: no part at {at}: {found:?}"));
                assert!((near.width - PART as f32).abs() <= 8.0 && near.is_whole(), "frame {seq}: {near:?}");
            }
        }
    }

    #[test]
    fn parts_are_located_on_a_belt_that_is_never_empty() {
        locates(false);
    }

    #[test]
    fn parts_that_move_downwards_are_located_too() {
        locates(true);
    }

    #[test]
    fn a_belt_that_stands_still_is_refused() {
        let roi = Crop { x: 0, y: 0, width: 640, height: 360 };
        let mut shrinker = Shrinker::new();
        let mut learner = Learner::new(roi);
        for _ in 0..20 {
            learner.observe(&mut shrinker, &frame(7, false)).unwrap();
        }
        let e = learner.learn().unwrap_err();
        assert!(e.to_string().contains("nothing moves") && e.hint_text().is_some(), "{e}");
    }
}
