//! Synthetic defects, made from the good parts themselves: what the automatic choice of a method is judged by.
//!
//! Six kinds, after CutPaste and its scar (Li et al. 2021), the noise-masked texture of DRAEM (Zavrtanik et al. 2021), blobs
//! and strokes of another brightness, the blended patch of NSA (Schlüter et al. 2022) and a local smear or bulge. They are
//! placed where the parts have contrast, and only on what is judged. They serve to compare detectors, not to set a
//! threshold: real defects have other sizes.

use crate::error::{Context, Result};
use crate::prepare::shrink::Size;
use opencv::core::{BORDER_REFLECT_101, Mat};
use opencv::imgproc;
use opencv::prelude::*;
use std::f32::consts::{PI, TAU};

/// The kinds of synthetic defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    CutPaste,
    Scar,
    Texture,
    Blob,
    Blend,
    Local,
}

impl Defect {
    pub const ALL: [Defect; 6] =
        [Defect::CutPaste, Defect::Scar, Defect::Texture, Defect::Blob, Defect::Blend, Defect::Local];
}

/// An RGB picture.
#[derive(Clone, Copy)]
pub struct Picture<'a> {
    pub size: Size,
    pub rgb: &'a [u8],
}

impl Picture<'_> {
    /// The nearest pixel's colour; places outside are those of the edge.
    fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let clamp = |v: f32, n: u32| (v.round().max(0.0) as usize).min(n as usize - 1);
        let i = (clamp(y, self.size.height) * self.size.width as usize + clamp(x, self.size.width)) * 3;
        [0, 1, 2].map(|c| f32::from(self.rgb[i + c]))
    }
}

/// Where defects are placed: cells of a grid over the picture, with their cumulative weight.
pub struct Places {
    grid: Size,
    cumulative: Vec<f32>,
}

/// Cells along each side.
const CELLS: u32 = 32;
/// Contrast that every judged cell has at least, as a share of the mean.
const CALM: f32 = 0.15;

impl Places {
    /// Weights from the contrast of some good parts; `judged` says for x and y in 0..1 whether the place is judged.
    pub fn new(good: &[Picture<'_>], judged: &dyn Fn(f32, f32) -> bool) -> Places {
        let grid = Size { width: CELLS, height: CELLS };
        let mut contrast = vec![0f32; grid.area()];
        for picture in good {
            let (w, h) = (picture.size.width as usize, picture.size.height as usize);
            for (i, c) in contrast.iter_mut().enumerate() {
                let (cx, cy) = (i % CELLS as usize, i / CELLS as usize);
                let n = CELLS as usize;
                let (mut sum, mut squares, mut count) = (0f32, 0f32, 0f32);
                for y in cy * h / n..((cy + 1) * h / n).max(cy * h / n + 1) {
                    for x in cx * w / n..((cx + 1) * w / n).max(cx * w / n + 1) {
                        let v = f32::from(picture.rgb[(y * w + x) * 3 + 1]);
                        (sum, squares, count) = (sum + v, squares + v * v, count + 1.0);
                    }
                }
                *c += (squares / count - (sum / count).powi(2)).max(0.0).sqrt();
            }
        }
        let floor = CALM * contrast.iter().sum::<f32>() / contrast.len() as f32 + 1e-3;
        let mut total = 0.0;
        let cumulative = contrast
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let centre = |v: u32| (v as f32 + 0.5) / CELLS as f32;
                if judged(centre(i as u32 % CELLS), centre(i as u32 / CELLS)) {
                    total += c + floor;
                }
                total
            })
            .collect();
        Places { grid, cumulative }
    }

    /// A place, x and y in 0..1.
    fn draw(&self, rng: &mut fastrand::Rng) -> (f32, f32) {
        let total = self.cumulative.last().copied().unwrap_or_default();
        let at = rng.f32() * total;
        let i = self.cumulative.partition_point(|&c| c <= at).min(self.grid.area() - 1) as u32;
        let (x, y) = (i % self.grid.width, i / self.grid.width);
        ((x as f32 + rng.f32()) / CELLS as f32, (y as f32 + rng.f32()) / CELLS as f32)
    }
}

/// A square patch with a mask, both `side` x `side`.
struct Patch {
    side: usize,
    rgb: Vec<[f32; 3]>,
    mask: Vec<f32>,
}

impl Patch {
    fn new(side: usize) -> Patch {
        Patch { side, rgb: vec![[0.0; 3]; side * side], mask: vec![0.0; side * side] }
    }

    /// Calls `f` with the pixel's coordinates relative to the centre, -1..1.
    fn each(&mut self, mut f: impl FnMut(f32, f32, &mut [f32; 3], &mut f32)) {
        let (n, half) = (self.side, self.side as f32 / 2.0);
        for i in 0..n * n {
            let (u, v) = (((i % n) as f32 + 0.5) / half - 1.0, ((i / n) as f32 + 0.5) / half - 1.0);
            f(u, v, &mut self.rgb[i], &mut self.mask[i]);
        }
    }

    fn soften(&mut self, sigma: f32) -> Result<()> {
        self.mask = blur(&self.mask, self.side, sigma)?;
        Ok(())
    }

    /// Lays the patch over a copy of `on`, its centre at (x, y) pixels.
    fn paste(&self, on: Picture<'_>, x: f32, y: f32) -> Vec<u8> {
        let mut out = on.rgb.to_vec();
        let half = self.side as f32 / 2.0;
        let (left, top) = ((x - half).round() as i64, (y - half).round() as i64);
        for i in 0..self.side * self.side {
            let (px, py) = (left + (i % self.side) as i64, top + (i / self.side) as i64);
            if px < 0 || py < 0 || px >= i64::from(on.size.width) || py >= i64::from(on.size.height) {
                continue;
            }
            let at = (py as usize * on.size.width as usize + px as usize) * 3;
            for c in 0..3 {
                let v = f32::from(on.rgb[at + c]);
                out[at + c] = (v + (self.rgb[i][c] - v) * self.mask[i]).round().clamp(0.0, 255.0) as u8;
            }
        }
        out
    }
}

fn blur(values: &[f32], side: usize, sigma: f32) -> Result<Vec<f32>> {
    let n = side as i32;
    let from = Mat::new_rows_cols_with_data(n, n, values).failed(|| "synthetic defect: patch")?;
    let mut to = Mat::default();
    let (any, sigma) = (opencv::core::Size::new(0, 0), f64::from(sigma.max(0.3)));
    imgproc::gaussian_blur(&from, &mut to, any, sigma, sigma, BORDER_REFLECT_101)
        .failed(|| "synthetic defect: patch cannot be smoothed")?;
    Ok(to.data_typed::<f32>().failed(|| "synthetic defect: patch")?.to_vec())
}

fn uniform(rng: &mut fastrand::Rng, from: f32, to: f32) -> f32 {
    from + (to - from) * rng.f32()
}

/// Standard normal, by Box and Muller.
fn normal(rng: &mut fastrand::Rng) -> f32 {
    (-2.0 * rng.f32().max(1e-9).ln()).sqrt() * (TAU * rng.f32()).cos()
}

/// One defect on the good picture `on`; `others` are good pictures of the same size.
pub fn make(
    defect: Defect,
    on: Picture<'_>,
    others: &[Picture<'_>],
    places: &Places,
    rng: &mut fastrand::Rng,
) -> Result<Vec<u8>> {
    // sizes are shares of this
    let scale = (on.size.area() as f32).sqrt();
    let (w, h) = (on.size.width as f32, on.size.height as f32);
    let (x, y) = places.draw(rng);
    let (x, y) = (x * w, y * h);
    let other = if others.is_empty() { on } else { others[rng.usize(..others.len())] };
    let (least, most) = match defect {
        Defect::Texture => (0.06, 0.16),
        Defect::Blob => (0.03, 0.12),
        Defect::Blend => (0.05, 0.14),
        _ => (0.05, 0.12),
    };
    let side = (uniform(rng, least, most) * scale) as usize + 6;
    let patch = match defect {
        Defect::CutPaste => {
            let (area, ratio) = (uniform(rng, 0.002, 0.015) * scale * scale, uniform(rng, -1.1, 1.1).exp());
            let (ph, pw) = ((area * ratio).sqrt().max(4.0), (area / ratio).sqrt().max(4.0));
            cut(on, rng, pw, ph, 0.0, 0.15)
        }
        Defect::Scar => {
            let (length, width) = (uniform(rng, 0.04, 0.12) * scale, (uniform(rng, 0.006, 0.02) * scale).max(2.0));
            let angle = PI * rng.f32();
            cut(on, rng, length, width, angle, 0.25)
        }
        Defect::Texture => texture(other, rng, side)?,
        Defect::Blob => blob(on, rng, x, y, side)?,
        Defect::Blend => blend(on, other, places, rng, (x, y), side)?,
        Defect::Local => local(on, rng, x, y, side)?,
    };
    Ok(patch.paste(on, x, y))
}

/// A rectangle cut from anywhere in the picture, turned, with another gain and offset.
fn cut(on: Picture<'_>, rng: &mut fastrand::Rng, width: f32, height: f32, angle: f32, change: f32) -> Patch {
    let (w, h) = (on.size.width as f32, on.size.height as f32);
    let (width, height) = (width.min(w - 2.0), height.min(h - 2.0));
    let (x, y) = (uniform(rng, width / 2.0, w - width / 2.0), uniform(rng, height / 2.0, h - height / 2.0));
    let (gain, offset) = (uniform(rng, 1.0 - change, 1.0 + change), uniform(rng, -12.0, 12.0));
    let (sin, cos) = angle.sin_cos();
    let mut patch = Patch::new(width.hypot(height).ceil() as usize + 2);
    let half = patch.side as f32 / 2.0;
    patch.each(|u, v, rgb, mask| {
        let (dx, dy) = (u * half, v * half);
        let (a, b) = (cos * dx + sin * dy, cos * dy - sin * dx);
        if a.abs() <= width / 2.0 && b.abs() <= height / 2.0 {
            *rgb = on.at(x + a, y + b).map(|c| c * gain + offset);
            *mask = 1.0;
        }
    });
    patch
}

/// Another part's texture, its contrast and brightness changed, through a mask of thresholded smooth noise.
fn texture(other: Picture<'_>, rng: &mut fastrand::Rng, side: usize) -> Result<Patch> {
    let noise: Vec<f32> = (0..side * side).map(|_| normal(rng)).collect();
    let noise = blur(&noise, side, (side as f32 * uniform(rng, 0.06, 0.14)).max(1.5))?;
    let mean = noise.iter().sum::<f32>() / noise.len() as f32;
    let deviation = (noise.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / noise.len() as f32).sqrt().max(1e-6);
    let (x, y) = (rng.f32() * other.size.width as f32, rng.f32() * other.size.height as f32);
    let turn = rng.u8(..8);
    let (gain, offset, opacity) = (uniform(rng, 0.8, 2.0), uniform(rng, -50.0, 50.0), uniform(rng, 0.4, 1.0));
    let mut patch = Patch::new(side);
    let half = side as f32 / 2.0;
    let mut i = 0;
    patch.each(|u, v, rgb, mask| {
        let (a, b) = if turn & 1 == 0 { (u, v) } else { (v, u) };
        let flip = |v: f32, bit: u8| if turn & bit == 0 { v } else { -v };
        *rgb = other.at(x + half * flip(a, 2), y + half * flip(b, 4));
        *mask = f32::from(u8::from((noise[i] - mean) / deviation > 0.6 && u * u + v * v < 1.0));
        i += 1;
    });
    let n = patch.rgb.len() as f32;
    let mean = [0, 1, 2].map(|c| patch.rgb.iter().map(|p| p[c]).sum::<f32>() / n);
    for p in &mut patch.rgb {
        *p = [0, 1, 2].map(|c| ((p[c] - mean[c]) * gain + mean[c] + offset).clamp(0.0, 255.0));
    }
    patch.soften(0.8)?;
    patch.mask.iter_mut().for_each(|m| *m *= opacity);
    Ok(patch)
}

/// An ellipse or a stroke, lighter or darker than what is there.
fn blob(on: Picture<'_>, rng: &mut fastrand::Rng, x: f32, y: f32, side: usize) -> Result<Patch> {
    let half = side as f32 / 2.0;
    let change = uniform(rng, 15.0, 60.0) * if rng.bool() { 1.0 } else { -1.0 };
    let kind = rng.u8(..3);
    let (a, b, angle) = (uniform(rng, 0.24, 0.6), uniform(rng, 0.24, 0.6), PI * rng.f32());
    let mut points = Vec::new();
    if kind > 0 {
        let mut direction = TAU * rng.f32();
        points.push((-0.8 * direction.cos(), -0.8 * direction.sin()));
        for k in 0..5 {
            // a bent stroke or a straight one
            direction += if kind == 1 { 0.25 * normal(rng) } else { 0.0 };
            let (px, py) = points[k];
            points.push((px + 0.32 * direction.cos(), py + 0.32 * direction.sin()));
        }
    }
    let width = f32::from(rng.u8(1..4)) / 2.0 / half;
    let mut patch = Patch::new(side);
    let (sin, cos) = angle.sin_cos();
    patch.each(|u, v, rgb, mask| {
        *rgb = on.at(x + u * half, y + v * half).map(|c| c + change);
        let inside = if kind == 0 {
            ((cos * u + sin * v) / a).powi(2) + ((cos * v - sin * u) / b).powi(2) < 1.0
        } else {
            points.windows(2).any(|p| to_segment((u, v), p[0], p[1]) < width)
        };
        *mask = f32::from(u8::from(inside));
    });
    patch.soften(uniform(rng, 0.5, 1.5))?;
    Ok(patch)
}

fn to_segment((x, y): (f32, f32), (ax, ay): (f32, f32), (bx, by): (f32, f32)) -> f32 {
    let (dx, dy) = (bx - ax, by - ay);
    let t = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy).max(1e-9)).clamp(0.0, 1.0);
    (x - ax - t * dx).hypot(y - ay - t * dy)
}

/// Another place of another part, its coarse brightness replaced by that of the place it is laid on.
fn blend(
    on: Picture<'_>,
    other: Picture<'_>,
    places: &Places,
    rng: &mut fastrand::Rng,
    (x, y): (f32, f32),
    side: usize,
) -> Result<Patch> {
    let half = side as f32 / 2.0;
    let (sx, sy) = places.draw(rng);
    let (sx, sy) = (sx * other.size.width as f32, sy * other.size.height as f32);
    let (a, b, angle) = (uniform(rng, 0.5, 0.9), uniform(rng, 0.5, 0.9), PI * rng.f32());
    let (sin, cos) = angle.sin_cos();
    let mut patch = Patch::new(side);
    let mut place = Vec::with_capacity(side * side);
    patch.each(|u, v, rgb, mask| {
        *rgb = other.at(sx + u * half, sy + v * half);
        place.push(on.at(x + u * half, y + v * half));
        let inside = ((cos * u + sin * v) / a).powi(2) + ((cos * v - sin * u) / b).powi(2) < 1.0;
        *mask = f32::from(u8::from(inside));
    });
    for c in 0..3 {
        let channel = |from: &[[f32; 3]]| from.iter().map(|p| p[c]).collect::<Vec<f32>>();
        let theirs = blur(&channel(&patch.rgb), side, side as f32 / 3.0)?;
        let ours = blur(&channel(&place), side, side as f32 / 3.0)?;
        for ((p, t), o) in patch.rgb.iter_mut().zip(&theirs).zip(&ours) {
            p[c] = (p[c] - t + o).clamp(0.0, 255.0);
        }
    }
    patch.soften(side as f32 * 0.05)?;
    Ok(patch)
}

/// The place itself, bulged to one side or smeared.
fn local(on: Picture<'_>, rng: &mut fastrand::Rng, x: f32, y: f32, side: usize) -> Result<Patch> {
    let half = side as f32 / 2.0;
    let mut patch = Patch::new(side);
    if rng.bool() {
        let (angle, distance) = (TAU * rng.f32(), uniform(rng, 0.12, 0.3) * side as f32);
        patch.each(|u, v, rgb, mask| {
            let k = distance * (-3.0 * (u * u + v * v)).exp();
            *rgb = on.at(x + u * half - k * angle.cos(), y + v * half - k * angle.sin());
            *mask = 1.0;
        });
        return Ok(patch);
    }
    patch.each(|u, v, rgb, mask| {
        *rgb = on.at(x + u * half, y + v * half);
        *mask = f32::from(u8::from(u * u + v * v < 0.8));
    });
    for c in 0..3 {
        let channel: Vec<f32> = patch.rgb.iter().map(|p| p[c]).collect();
        let smeared = blur(&channel, side, side as f32 * 0.15)?;
        patch.rgb.iter_mut().zip(smeared).for_each(|(p, s)| p[c] = s);
    }
    patch.soften(1.0)?;
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 160, height: 120 };

    fn stripes(phase: usize) -> Vec<u8> {
        (0..SIZE.area())
            .flat_map(|i| {
                let (x, y) = (i % 160, i / 160);
                [if (x / 8 + y / 6 + phase).is_multiple_of(2) { 180 } else { 70 }; 3]
            })
            .collect()
    }

    /// Each kind changes some of the picture and not most of it, at what is judged, and the same seed gives the same.
    #[test]
    fn each_kind_changes_a_small_judged_place() {
        let (a, b) = (stripes(0), stripes(1));
        let (on, other) = (Picture { size: SIZE, rgb: &a }, Picture { size: SIZE, rgb: &b });
        let places = Places::new(&[on, other], &|x, _| x > 0.5);
        for kind in Defect::ALL {
            let mut changed = 0;
            for seed in 0..20 {
                let make = || make(kind, on, &[other], &places, &mut fastrand::Rng::with_seed(seed)).unwrap();
                let picture = make();
                assert_eq!(picture, make());
                let spots: Vec<usize> = (0..SIZE.area()).filter(|i| picture[3 * i] != a[3 * i]).collect();
                assert!(spots.len() < SIZE.area() / 12, "{kind:?}: {} pixels", spots.len());
                // centres lie in the right half; the patches themselves are at most a quarter of the width to its left
                assert!(spots.iter().all(|i| i % 160 > 60), "{kind:?}");
                changed += usize::from(spots.len() > 5);
            }
            assert!(changed >= 15, "{kind:?}: only {changed} of 20 show");
        }
    }
}
