//! The reference at low resolution: which turns it suggests for a part, and how well and where exactly a pose fits.
//!
//! Used by [`super::rigid`], on its thread, which keeps the scratch memory.

use super::placement::Placement;
use super::register::Reference;
use super::shrink::{Crop, Shrinker, Size};
use crate::error::{Context, Result};
use crate::frame::Frame;
use nalgebra::{Matrix3, Vector3};
use opencv::core::Mat;
use opencv::imgproc;
use opencv::prelude::*;

/// Pixels of the picture in which poses are tried and rated, about.
pub(super) const COARSE_AREA: f64 = 6000.0;
/// Pixels of the picture in which the pose that was taken is refined once more.
pub(super) const FINE_AREA: f64 = 24_000.0;
/// Smoothing of that picture and of the template, in its pixels: widens what the refinement can mend.
const TEMPLATE_SIGMA: f64 = 1.0;
/// While poses are tried: largest difference, in standard deviations of the picture, that pulls at the pose.
const CLIP: f32 = 2.0;
/// At the end: a difference of so many standard deviations and more does not pull at all (Tukey's biweight), so that a
/// bent tip does not turn the part.
const BIWEIGHT: f32 = 1.5;
/// A pose may be refined by this much: radians, and a share of the strip's diagonal.
const MAX_TURN: f64 = 0.15;
pub(super) const MAX_MOVE: f64 = 0.08;
/// Angles and rings of the circular correlation.
const ANGLES: usize = 256;
const RINGS: usize = 24;
/// Angles that are tried, and how far they are apart at least, in steps of the correlation.
const CANDIDATES: usize = 8;
const APART: usize = 5;

/// Where the strip's centre lies and how it is turned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Guess {
    pub middle: [f64; 2],
    pub angle: f64,
}

/// How a pose is refined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    pub rounds: usize,
    /// What differs much does not pull at all; the start must be good.
    pub robust: bool,
}

/// A pose after refinement, with its correlation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rated {
    pub guess: Guess,
    pub likeness: f32,
}

/// (x, y) turned by `angle`.
pub(super) fn turn(angle: f64, x: f64, y: f64) -> (f64, f64) {
    let (s, c) = angle.sin_cos();
    (c * x - s * y, s * x + c * y)
}

/// A part of the frame at the scale of the network's input, and its luma at the template's.
#[derive(Default)]
pub(super) struct Region {
    pub crop: Crop,
    pub size: Size,
    pub rgb: Vec<u8>,
    luma: Vec<u8>,
    pub coarse: Picture,
    pub fine: Picture,
    blurred: Mat,
    shrunk: Mat,
}

/// A small grey picture.
#[derive(Default)]
pub(super) struct Picture {
    size: Size,
    values: Vec<f32>,
}

impl Region {
    /// `scale`: pixels of the region for each source pixel; `pixels`: source pixels for each pixel of the coarse and of the
    /// fine picture.
    pub fn read(
        &mut self,
        shrinker: &mut Shrinker,
        frame: &Frame,
        crop: Crop,
        scale: f64,
        pixels: [f64; 2],
    ) -> Result<()> {
        let even = |length: u32| ((f64::from(length) * scale / 2.0).round().max(1.0) * 2.0) as u32;
        self.crop = crop;
        self.size = Size { width: even(crop.width), height: even(crop.height) };
        self.rgb.resize(self.size.area() * 3, 0);
        shrinker.rgb(frame, crop, self.size, &mut self.rgb)?;
        luma_of(&self.rgb, &mut self.luma);
        for (picture, pixel) in [(&mut self.coarse, pixels[0]), (&mut self.fine, pixels[1])] {
            let length = |l: u32| ((f64::from(l) / pixel).round().max(2.0)) as u32;
            let size = Size { width: length(crop.width), height: length(crop.height) };
            picture.load(&self.luma, self.size, size, &mut self.shrunk, &mut self.blurred)?;
        }
        Ok(())
    }

    /// Pixels of a picture of this size for each source pixel.
    pub fn scale(&self, size: Size) -> (f64, f64) {
        (
            f64::from(size.width) / f64::from(self.crop.width.max(1)),
            f64::from(size.height) / f64::from(self.crop.height.max(1)),
        )
    }
}

/// Luma as [`Shrinker::luma`] has it for RGB.
pub(crate) fn luma_of(rgb: &[u8], luma: &mut Vec<u8>) {
    luma.clear();
    luma.extend(rgb.chunks_exact(3).map(|p| ((2 * u32::from(p[0]) + 5 * u32::from(p[1]) + u32::from(p[2])) / 8) as u8));
}

impl Picture {
    /// Shrinks and smooths `luma`.
    fn load(&mut self, luma: &[u8], from: Size, to: Size, shrunk: &mut Mat, blurred: &mut Mat) -> Result<()> {
        let source = Mat::new_rows_cols_with_data(from.height as i32, from.width as i32, luma)
            .failed(|| "registration: picture size")?;
        imgproc::resize(
            &source,
            shrunk,
            opencv::core::Size::new(to.width as i32, to.height as i32),
            0.0,
            0.0,
            imgproc::INTER_AREA,
        )
        .failed(|| "registration: shrinking")?;
        imgproc::gaussian_blur_def(shrunk, blurred, opencv::core::Size::new(0, 0), TEMPLATE_SIGMA)
            .failed(|| "registration: smoothing")?;
        let bytes = blurred.data_typed::<u8>().failed(|| "registration: picture")?;
        self.size = to;
        self.values.clear();
        self.values.extend(bytes.iter().map(|&v| f32::from(v)));
        Ok(())
    }

    /// Bilinear; beyond the edge the edge continues. Pixel centres lie at whole numbers.
    #[inline]
    fn at(&self, x: f32, y: f32) -> f32 {
        let (w, h) = (self.size.width as usize, self.size.height as usize);
        let x = x.clamp(0.0, (w - 1) as f32);
        let y = y.clamp(0.0, (h - 1) as f32);
        let (xi, yi) = ((x as usize).min(w - 2), (y as usize).min(h - 2));
        let (fx, fy) = (x - xi as f32, y - yi as f32);
        let row = yi * w + xi;
        let top = self.values[row] + fx * (self.values[row + 1] - self.values[row]);
        let below = self.values[row + w] + fx * (self.values[row + w + 1] - self.values[row + w]);
        top + fy * (below - top)
    }
}

/// The reference at low resolution with what the refinement needs.
pub(super) struct Template {
    size: Size,
    /// Source pixels for each of its pixels.
    pub pixel: f64,
    strip: [f64; 4],
    /// Zero mean, unit variance.
    values: Vec<f32>,
    /// Change of each pixel with a shift along x and y (in pixels) and with a turn about the centre (radians).
    steepest: [Vec<f32>; 3],
    inverse: Matrix3<f64>,
    /// `[ring][angle]` without each ring's mean.
    rings: Vec<f32>,
    radius: f64,
}

impl Template {
    /// `strip` is where the reference lies around the part's centroid: left, top, width, height in source pixels; `area` the
    /// template's pixels, about.
    pub fn new(strip: [f64; 4], reference: &Reference, area: f64) -> Result<Self> {
        let [left, top, width, height] = strip;
        let from = reference.size;
        let scale = (area / from.area() as f64).sqrt().min(1.0);
        let length = |l: u32| ((f64::from(l) * scale).round().max(8.0)) as u32;
        let size = Size { width: length(from.width), height: length(from.height) };
        let mut picture = Picture::default();
        picture.load(&reference.luma, from, size, &mut Mat::default(), &mut Mat::default())?;
        let pixel = width / f64::from(size.width);
        let (w, h) = (size.width as usize, size.height as usize);
        let mut values = picture.values.clone();
        normalise(&mut values);
        let mut steepest = [vec![0f32; w * h], vec![0f32; w * h], vec![0f32; w * h]];
        let mut hessian = Matrix3::<f64>::zeros();
        for y in 0..h {
            for x in 0..w {
                let v = |x: usize, y: usize| values[y.min(h - 1) * w + x.min(w - 1)];
                let gx = (v(x + 1, y) - v(x.saturating_sub(1), y)) / 2.0;
                let gy = (v(x, y + 1) - v(x, y.saturating_sub(1))) / 2.0;
                let (cx, cy) = (x as f32 + 0.5 - w as f32 / 2.0, y as f32 + 0.5 - h as f32 / 2.0);
                let s = [gx, gy, gy * cx - gx * cy];
                let s64 = Vector3::from(s.map(f64::from));
                hessian += s64 * s64.transpose();
                for (all, s) in steepest.iter_mut().zip(s) {
                    all[y * w + x] = s;
                }
            }
        }
        // a plain disc does not tell its angle: then the angle shall not run away
        let mut damped = hessian;
        for i in 0..3 {
            let unit = if i == 2 { (w * w + h * h) as f64 / 12.0 } else { 1.0 };
            damped[(i, i)] += 1e-3 * hessian[(i, i)] + 1e-3 * unit * (hessian[(0, 0)] + hessian[(1, 1)]) + 1e-9;
        }
        let inverse = damped.try_inverse().unwrap_or_else(Matrix3::zeros);
        let corner = |x: f64, y: f64| x.hypot(y);
        let radius = [(left, top), (left + width, top), (left, top + height), (left + width, top + height)]
            .into_iter()
            .map(|(x, y)| corner(x, y))
            .fold(1.0, f64::max)
            * 0.95;
        let mut this = Template { size, pixel, strip, values, steepest, inverse, rings: Vec::new(), radius };
        let at = |dx: f64, dy: f64| {
            let (x, y) = ((dx - left) / width * w as f64, (dy - top) / height * h as f64);
            picture.at(x as f32 - 0.5, y as f32 - 0.5)
        };
        this.rings = this.unroll(at);
        Ok(this)
    }

    /// `[ring][angle]` around the centroid, without each ring's mean and weighted by its length.
    fn unroll(&self, at: impl Fn(f64, f64) -> f32) -> Vec<f32> {
        let mut rings = vec![0f32; RINGS * ANGLES];
        for (k, ring) in rings.chunks_exact_mut(ANGLES).enumerate() {
            let share = (k as f64 + 1.0) / RINGS as f64;
            for (i, v) in ring.iter_mut().enumerate() {
                let (s, c) = (i as f64 / ANGLES as f64 * std::f64::consts::TAU).sin_cos();
                *v = at(c * share * self.radius, s * share * self.radius);
            }
            let mean = ring.iter().sum::<f32>() / ANGLES as f32;
            let weight = (share as f32).sqrt();
            ring.iter_mut().for_each(|v| *v = (*v - mean) * weight);
        }
        rings
    }

    /// The angles at which the part's rings look most like the reference's, best first.
    pub fn angles(&self, region: &Region, centre: [f64; 2]) -> Vec<f64> {
        let (sx, sy) = region.scale(region.coarse.size);
        let (ox, oy) = (centre[0] - f64::from(region.crop.x), centre[1] - f64::from(region.crop.y));
        let rings =
            self.unroll(|dx, dy| region.coarse.at(((ox + dx) * sx) as f32 - 0.5, ((oy + dy) * sy) as f32 - 0.5));
        let mut correlation = vec![0f32; ANGLES];
        let mut twice = vec![0f32; 2 * ANGLES];
        for (part, reference) in rings.chunks_exact(ANGLES).zip(self.rings.chunks_exact(ANGLES)) {
            twice[..ANGLES].copy_from_slice(part);
            twice[ANGLES..].copy_from_slice(part);
            for (shift, c) in correlation.iter_mut().enumerate() {
                *c += twice[shift..shift + ANGLES].iter().zip(reference).map(|(a, b)| a * b).sum::<f32>();
            }
        }
        let mut order: Vec<usize> = (0..ANGLES)
            .filter(|&i| {
                let around = |d: usize| correlation[(i + d) % ANGLES];
                correlation[i] >= around(1) && correlation[i] >= around(ANGLES - 1)
            })
            .collect();
        order.sort_by(|&a, &b| correlation[b].total_cmp(&correlation[a]));
        let mut kept: Vec<usize> = Vec::new();
        for i in order {
            let far = |&k: &usize| {
                let d = i.abs_diff(k);
                d.min(ANGLES - d) >= APART
            };
            if kept.len() < CANDIDATES && kept.iter().all(far) {
                kept.push(i);
            }
        }
        kept.into_iter().map(|i| i as f64 / ANGLES as f64 * std::f64::consts::TAU).collect()
    }

    /// What the strip shows at this pose in one of the region's pictures, without mean and at unit variance.
    fn sample(&self, region: &Region, picture: &Picture, guess: Guess, out: &mut Vec<f32>) {
        let (w, h) = (self.size.width as usize, self.size.height as usize);
        let (sx, sy) = region.scale(picture.size);
        let p = Placement::turned(guess.middle, guess.angle, self.strip[2], self.strip[3]);
        let at = |i: f64, j: f64| {
            let (x, y) = p.to_source((i + 0.5) / w as f64, (j + 0.5) / h as f64);
            (((x - f64::from(region.crop.x)) * sx - 0.5) as f32, ((y - f64::from(region.crop.y)) * sy - 0.5) as f32)
        };
        out.clear();
        for j in 0..h {
            let (a, b) = (at(0.0, j as f64), at(1.0, j as f64));
            let (dx, dy) = (b.0 - a.0, b.1 - a.1);
            out.extend((0..w).map(|i| picture.at(a.0 + i as f32 * dx, a.1 + i as f32 * dy)));
        }
        normalise(out);
    }

    /// Gauss-Newton from `from`; `start` is the pose from which it may move only so far.
    pub fn refine(
        &self,
        region: &Region,
        picture: &Picture,
        start: Guess,
        from: Guess,
        effort: Effort,
        scratch: &mut Vec<f32>,
    ) -> Rated {
        let Effort { rounds, robust } = effort;
        let diagonal = f64::from(self.size.width).hypot(f64::from(self.size.height));
        let mut now = from;
        let mut best = Rated { guess: from, likeness: f32::NEG_INFINITY };
        for round in 0..=rounds {
            self.sample(region, picture, now, scratch);
            let n = scratch.len() as f32;
            let likeness = scratch.iter().zip(&self.values).map(|(a, b)| a * b).sum::<f32>() / n;
            if likeness > best.likeness {
                best = Rated { guess: now, likeness };
            }
            if round == rounds {
                break;
            }
            let mut pull = [0f32; 3];
            let [sx, sy, st] = &self.steepest;
            for ((((i, t), x), y), a) in scratch.iter().zip(&self.values).zip(sx).zip(sy).zip(st) {
                let e = i - t;
                let e = match robust {
                    true => {
                        let u = (e / BIWEIGHT).clamp(-1.0, 1.0);
                        e * (1.0 - u * u) * (1.0 - u * u)
                    }
                    false => e.clamp(-CLIP, CLIP),
                };
                pull[0] += e * x;
                pull[1] += e * y;
                pull[2] += e * a;
            }
            let step = self.inverse * Vector3::from(pull.map(f64::from));
            let angle = now.angle - step[2];
            let (dx, dy) = turn(angle, step[0] * self.pixel, step[1] * self.pixel);
            now = Guess { middle: [now.middle[0] - dx, now.middle[1] - dy], angle };
            let moved = (now.middle[0] - start.middle[0]).hypot(now.middle[1] - start.middle[1]);
            if (angle - start.angle).abs() > MAX_TURN || moved > MAX_MOVE * diagonal * self.pixel {
                break;
            }
            if step[0].hypot(step[1]) < 0.01 && step[2].abs() * diagonal < 0.02 {
                break;
            }
        }
        best
    }
}

/// Zero mean, unit variance.
fn normalise(values: &mut [f32]) {
    let n = values.len().max(1) as f32;
    let mean = values.iter().sum::<f32>() / n;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    let scale = 1.0 / variance.sqrt().max(1e-3);
    values.iter_mut().for_each(|v| *v = (*v - mean) * scale);
}
