//! Registration of parts that lie anywhere at any angle on a plain background: find the part, try the poses that it may have,
//! keep the one in which it looks most like the taught part, and cut it out upright.
//!
//! 1. [`super::segment`] finds the part: outline, centroid, principal axis.
//! 2. Poses: both directions of the principal axis for elongated parts; for others the best angles of the circular
//!    correlation between the part's and the reference's rings around the centroid.
//! 3. Each pose is refined against the reference by Gauss-Newton on shift and turn (inverse compositional: Baker & Matthews
//!    2004) at low resolution, and rated by normalised correlation. The best is taken.
//! 4. The part is cut out by one bilinear warp at the scale of the network's input.
//!
//! Invariants:
//! 1. Whatever is in the picture, a pose comes out; when it is not to be trusted, it says why ([`Doubt`])
//!    (tests in `rigid_tests.rs` and `tests/rigid.rs`).
//! 2. Full-resolution pixels are read by the shrinker only: once to find the part, once to cut it out.
//!
//! Belongs to the thread that prepares.

use super::placement::Placement;
use super::register::Reference;
use super::segment::{Blob, Segmenter};
use super::shrink::{Crop, Shrinker, Size};
use crate::error::{Context, Error, Result};
use crate::frame::Frame;
use nalgebra::{Matrix3, Vector3};
use opencv::core::{CV_8UC3, Mat, Scalar};
use opencv::imgproc;
use opencv::prelude::*;
use serde::{Deserialize, Serialize};

/// Pixels of the picture in which poses are compared, about.
const TEMPLATE_AREA: f64 = 6000.0;
/// Smoothing of that picture and of the template, in its pixels: widens what the refinement can mend.
const TEMPLATE_SIGMA: f64 = 1.0;
/// Refinement of every pose, before they are rated ...
const FIRST_ROUNDS: usize = 4;
/// ... and of the best two.
const MORE_ROUNDS: usize = 10;
/// Largest difference, in standard deviations of the picture, that pulls at the pose: a defect shall not.
const CLIP: f32 = 2.0;
/// A pose may be refined by this much: radians, and a share of the strip's diagonal.
const MAX_TURN: f64 = 0.15;
const MAX_MOVE: f64 = 0.08;
/// Angles and rings of the circular correlation.
const ANGLES: usize = 256;
const RINGS: usize = 24;
/// Angles that are tried, and how far they are apart at least, in steps of the correlation.
const CANDIDATES: usize = 8;
const APART: usize = 5;
/// Another thing of this share of the part's area is a second part, not dirt.
pub const SECOND: f64 = 0.25;
/// Contrast below this share of the taught one: what was found is no part.
const FAINT: f32 = 0.4;
/// Things of less than this share of the taught area are dirt on an empty background.
const DIRT: f64 = 0.1;

/// What decides a part's angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turn {
    /// The part is elongated: its principal axis, in either direction.
    Axis,
    /// Circular correlation with the reference around the centroid.
    Polar,
    /// The part does not turn, or looks the same at every angle.
    Fixed,
}

/// What teaching learned about the pose of parts. Lengths and areas in source pixels, angles in radians.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rigid {
    pub turn: Turn,
    /// The angle of parts that do not turn.
    pub angle: f64,
    /// Where the network's input lies around an upright part's centroid: left, top, width, height.
    pub strip: [f64; 4],
    /// Area inside the outline of good parts.
    pub area: f64,
    /// Largest deviation from `area` that is not doubted, as a share of it.
    pub area_tolerance: f64,
    /// Mean difference of good parts from the background, grey levels.
    pub contrast: f32,
    /// Least correlation with the reference that is not doubted, -1..1.
    pub min_likeness: f32,
}

impl Rigid {
    /// Checks that every number can be worked with.
    pub fn validate(&self) -> Result<()> {
        let [left, top, width, height] = self.strip;
        let numbers =
            [left, top, self.angle, self.area_tolerance, f64::from(self.contrast), f64::from(self.min_likeness)];
        let positive = [width, height, self.area];
        if numbers.iter().all(|v| v.is_finite()) && positive.iter().all(|v| v.is_finite() && *v >= 1.0) {
            return Ok(());
        }
        Err(Error::failed("[preprocessing.rigid] holds a number that is no length, area or angle"))
    }

    /// Where the strip of a part lies whose strip has its centre at `middle`.
    fn place(&self, pose: Guess) -> Placement {
        Placement::turned(pose.middle, pose.angle, self.strip[2], self.strip[3])
    }

    /// The strip's centre for a part with its centroid at `centre`.
    fn guess(&self, centre: [f64; 2], angle: f64) -> Guess {
        let [left, top, width, height] = self.strip;
        let (x, y) = turn(angle, left + width / 2.0, top + height / 2.0);
        Guess { middle: [centre[0] + x, centre[1] + y], angle }
    }
}

/// Why a pose is not to be trusted.
#[derive(Debug, Clone, PartialEq)]
pub struct Doubt {
    /// For the operator.
    pub reason: String,
    /// Whether a score from this pose says something about the part. Where it does not (there is no part, or only a piece of
    /// it), the verdict is `unsure` whatever the score.
    pub scorable: bool,
}

/// The pose of one part.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub placement: Placement,
    /// Turn of the part against the reference, radians.
    pub angle: f64,
    /// Centroid as the pose has it, source pixels.
    pub centre: [f64; 2],
    /// Normalised correlation with the reference, -1..1.
    pub likeness: f32,
    pub doubt: Option<Doubt>,
}

/// Where the strip's centre lies and how it is turned.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Guess {
    middle: [f64; 2],
    angle: f64,
}

/// A pose after refinement, with its correlation.
#[derive(Debug, Clone, Copy)]
struct Rated {
    guess: Guess,
    likeness: f32,
}

/// Finds poses and cuts parts out; keeps its scratch memory between frames.
pub struct Matcher {
    rigid: Rigid,
    input: Size,
    segmenter: Segmenter,
    template: Template,
    region: Region,
    sampled: Vec<f32>,
    warped: Mat,
}

impl Matcher {
    /// `reference` is the picture of the upright part, of the network's input size.
    pub fn new(rigid: &Rigid, reference: &Reference) -> Result<Self> {
        rigid.validate()?;
        Ok(Matcher {
            rigid: rigid.clone(),
            input: reference.size,
            segmenter: Segmenter::new()?,
            template: Template::new(rigid, reference)?,
            region: Region::default(),
            sampled: Vec::new(),
            warped: Mat::default(),
        })
    }

    /// Finds the part in `roi` and writes it upright into `out` (RGB of the network's input size).
    pub fn cut_out(&mut self, shrinker: &mut Shrinker, frame: &Frame, roi: Crop, out: &mut [u8]) -> Result<Located> {
        let blob = self.segmenter.find(shrinker, frame, roi)?;
        let located = self.locate(shrinker, frame, roi, blob.as_ref())?;
        self.warp(&located.placement, out)?;
        Ok(located)
    }

    /// Writes the part with its centroid at `centre`, turned by `angle`, upright into `out`.
    pub fn cut_at(
        &mut self,
        shrinker: &mut Shrinker,
        frame: &Frame,
        centre: [f64; 2],
        angle: f64,
        out: &mut [u8],
    ) -> Result<()> {
        let guess = self.rigid.guess(centre, angle);
        self.read(shrinker, frame, &[guess])?;
        self.warp(&self.rigid.place(guess), out)
    }

    /// The pose of a part that was found before.
    pub fn locate(
        &mut self,
        shrinker: &mut Shrinker,
        frame: &Frame,
        roi: Crop,
        blob: Option<&Blob>,
    ) -> Result<Located> {
        let nothing = blob.is_none_or(|b| b.area < DIRT * self.rigid.area || b.contrast < FAINT * self.rigid.contrast);
        let Some(blob) = blob.filter(|_| !nothing) else {
            let middle =
                [f64::from(roi.x) + f64::from(roi.width) / 2.0, f64::from(roi.y) + f64::from(roi.height) / 2.0];
            let guess = Guess { middle, angle: 0.0 };
            self.read(shrinker, frame, &[guess])?;
            return Ok(self.located(
                Rated { guess, likeness: 0.0 },
                Some(Doubt { reason: "no part found".into(), scorable: false }),
            ));
        };
        let best = self.best(shrinker, frame, blob)?;
        let ratio = blob.area / self.rigid.area;
        let doubt = |reason: String, scorable| Some(Doubt { reason, scorable });
        let doubt = if blob.second > SECOND {
            doubt("more than one part in the picture".into(), false)
        } else if blob.cut {
            doubt("part is cut by the picture's edge".into(), false)
        } else if (ratio - 1.0).abs() > self.rigid.area_tolerance {
            doubt(format!("area {:.0} % of the taught part", ratio * 100.0), true)
        } else if best.likeness < self.rigid.min_likeness {
            doubt("does not look like the taught part in any pose".into(), true)
        } else {
            None
        };
        Ok(self.located(best, doubt))
    }

    fn located(&self, best: Rated, doubt: Option<Doubt>) -> Located {
        let [left, top, width, height] = self.rigid.strip;
        let (x, y) = turn(best.guess.angle, left + width / 2.0, top + height / 2.0);
        Located {
            placement: self.rigid.place(best.guess),
            angle: best.guess.angle,
            centre: [best.guess.middle[0] - x, best.guess.middle[1] - y],
            likeness: best.likeness,
            doubt,
        }
    }

    fn best(&mut self, shrinker: &mut Shrinker, frame: &Frame, blob: &Blob) -> Result<Rated> {
        let direct: Vec<Guess> = match self.rigid.turn {
            Turn::Axis => {
                [blob.axis, blob.axis + std::f64::consts::PI].map(|a| self.rigid.guess(blob.centre, a)).into()
            }
            Turn::Fixed => vec![self.rigid.guess(blob.centre, self.rigid.angle)],
            Turn::Polar => Vec::new(),
        };
        let mut best: Option<Rated> = None;
        if !direct.is_empty() {
            self.read(shrinker, frame, &direct)?;
            best = self.rate(&direct);
        }
        // also where a defect turned the principal axis away
        let satisfied = best.is_some_and(|b| b.likeness >= self.rigid.min_likeness || self.rigid.turn == Turn::Fixed);
        if !satisfied {
            let around: Vec<Guess> =
                (0..8).map(|i| self.rigid.guess(blob.centre, f64::from(i) * std::f64::consts::FRAC_PI_4)).collect();
            self.read(shrinker, frame, &around)?;
            let angles = self.template.angles(&self.region, blob.centre);
            let guesses: Vec<Guess> = angles.iter().map(|a| self.rigid.guess(blob.centre, *a)).collect();
            best = self.rate(&guesses).into_iter().chain(best).max_by(|a, b| a.likeness.total_cmp(&b.likeness));
        }
        Ok(best.unwrap_or(Rated { guess: self.rigid.guess(blob.centre, 0.0), likeness: 0.0 }))
    }

    /// Refines all guesses a little, the best two fully, and returns the best.
    fn rate(&mut self, guesses: &[Guess]) -> Option<Rated> {
        let mut rated: Vec<(Guess, Rated)> = guesses
            .iter()
            .map(|g| (*g, self.template.refine(&self.region, *g, *g, FIRST_ROUNDS, &mut self.sampled)))
            .collect();
        rated.sort_by(|a, b| b.1.likeness.total_cmp(&a.1.likeness));
        rated.truncate(2);
        rated
            .iter()
            .map(|(start, r)| self.template.refine(&self.region, *start, r.guess, MORE_ROUNDS, &mut self.sampled))
            .max_by(|a, b| a.likeness.total_cmp(&b.likeness))
    }

    /// Reads what the strips at these poses show, with a margin, at the scale of the network's input.
    fn read(&mut self, shrinker: &mut Shrinker, frame: &Frame, guesses: &[Guess]) -> Result<()> {
        let [_, _, width, height] = self.rigid.strip;
        let margin = (MAX_MOVE * width.hypot(height)).ceil() as i32;
        let (mut x0, mut y0, mut x1, mut y1) = (i32::MAX, i32::MAX, i32::MIN, i32::MIN);
        for guess in guesses {
            let b = self.rigid.place(*guess).bounds();
            (x0, y0) = (x0.min(b.x), y0.min(b.y));
            (x1, y1) = (x1.max(b.x + b.width as i32), y1.max(b.y + b.height as i32));
        }
        let (fw, fh) = (frame.width() as i32, frame.height() as i32);
        let (x0, y0) = ((x0 - margin).clamp(0, fw - 1), (y0 - margin).clamp(0, fh - 1));
        let (x1, y1) = ((x1 + margin).clamp(x0 + 1, fw), (y1 + margin).clamp(y0 + 1, fh));
        let crop = Crop { x: x0, y: y0, width: (x1 - x0) as u32, height: (y1 - y0) as u32 };
        let scale = (f64::from(self.input.width) / width).min(1.0);
        self.region.read(shrinker, frame, crop, scale, self.template.pixel)
    }

    /// Writes the strip upright into `out`, from the region that was read last.
    fn warp(&mut self, placement: &Placement, out: &mut [u8]) -> Result<()> {
        let (iw, ih) = (f64::from(self.input.width), f64::from(self.input.height));
        let r = &self.region;
        let (sx, sy) = r.scale(r.size);
        // pixel centres lie at whole numbers here: input pixel -> place in the input -> source -> region pixel
        let at = |i: f64, j: f64| {
            let (x, y) = placement.to_source((i + 0.5) / iw, (j + 0.5) / ih);
            ((x - f64::from(r.crop.x)) * sx - 0.5, (y - f64::from(r.crop.y)) * sy - 0.5)
        };
        let (o, x, y) = (at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0));
        let m = Mat::from_slice_2d(&[[x.0 - o.0, y.0 - o.0, o.0], [x.1 - o.1, y.1 - o.1, o.1]])
            .failed(|| "cutting out: matrix")?;
        let from =
            Mat::new_rows_cols_with_bytes::<opencv::core::Vec3b>(r.size.height as i32, r.size.width as i32, &r.rgb)
                .failed(|| "cutting out: region size")?;
        imgproc::warp_affine(
            &from,
            &mut self.warped,
            &m,
            opencv::core::Size::new(self.input.width as i32, self.input.height as i32),
            imgproc::INTER_LINEAR | imgproc::WARP_INVERSE_MAP,
            opencv::core::BORDER_REPLICATE,
            Scalar::default(),
        )
        .failed(|| "cutting out: warp")?;
        debug_assert_eq!(self.warped.typ(), CV_8UC3);
        let bytes = self.warped.data_bytes().failed(|| "cutting out: pixels")?;
        if bytes.len() != out.len() {
            return Err(Error::failed(format!("cutting out: {} bytes for {}", bytes.len(), out.len())));
        }
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// (x, y) turned by `angle`.
fn turn(angle: f64, x: f64, y: f64) -> (f64, f64) {
    let (s, c) = angle.sin_cos();
    (c * x - s * y, s * x + c * y)
}

/// A part of the frame at the scale of the network's input, and its luma at the template's.
#[derive(Default)]
struct Region {
    crop: Crop,
    size: Size,
    rgb: Vec<u8>,
    luma: Vec<u8>,
    coarse: Picture,
    blurred: Mat,
    shrunk: Mat,
}

/// A small grey picture.
#[derive(Default)]
struct Picture {
    size: Size,
    values: Vec<f32>,
}

impl Region {
    /// `scale`: pixels of the region for each source pixel; `pixel`: source pixels for each pixel of the template.
    fn read(&mut self, shrinker: &mut Shrinker, frame: &Frame, crop: Crop, scale: f64, pixel: f64) -> Result<()> {
        let even = |length: u32| ((f64::from(length) * scale / 2.0).round().max(1.0) * 2.0) as u32;
        self.crop = crop;
        self.size = Size { width: even(crop.width), height: even(crop.height) };
        self.rgb.resize(self.size.area() * 3, 0);
        shrinker.rgb(frame, crop, self.size, &mut self.rgb)?;
        luma_of(&self.rgb, &mut self.luma);
        let length = |l: u32| ((f64::from(l) / pixel).round().max(2.0)) as u32;
        let size = Size { width: length(crop.width), height: length(crop.height) };
        self.coarse.load(&self.luma, self.size, size, &mut self.shrunk, &mut self.blurred)
    }

    /// Pixels of a picture of this size for each source pixel.
    fn scale(&self, size: Size) -> (f64, f64) {
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
struct Template {
    size: Size,
    /// Source pixels for each of its pixels.
    pixel: f64,
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
    fn new(rigid: &Rigid, reference: &Reference) -> Result<Self> {
        let [left, top, width, height] = rigid.strip;
        let from = reference.size;
        let scale = (TEMPLATE_AREA / from.area() as f64).sqrt().min(1.0);
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
        let mut this =
            Template { size, pixel, strip: rigid.strip, values, steepest, inverse, rings: Vec::new(), radius };
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
    fn angles(&self, region: &Region, centre: [f64; 2]) -> Vec<f64> {
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

    /// What the strip shows at this pose, without mean and at unit variance.
    fn sample(&self, region: &Region, guess: Guess, out: &mut Vec<f32>) {
        let (w, h) = (self.size.width as usize, self.size.height as usize);
        let (sx, sy) = region.scale(region.coarse.size);
        let p = Placement::turned(guess.middle, guess.angle, self.strip[2], self.strip[3]);
        let at = |i: f64, j: f64| {
            let (x, y) = p.to_source((i + 0.5) / w as f64, (j + 0.5) / h as f64);
            (((x - f64::from(region.crop.x)) * sx - 0.5) as f32, ((y - f64::from(region.crop.y)) * sy - 0.5) as f32)
        };
        out.clear();
        for j in 0..h {
            let (a, b) = (at(0.0, j as f64), at(1.0, j as f64));
            let (dx, dy) = (b.0 - a.0, b.1 - a.1);
            out.extend((0..w).map(|i| region.coarse.at(a.0 + i as f32 * dx, a.1 + i as f32 * dy)));
        }
        normalise(out);
    }

    /// Gauss-Newton from `guess`; `start` is the pose from which it may move only so far.
    fn refine(&self, region: &Region, start: Guess, guess: Guess, rounds: usize, scratch: &mut Vec<f32>) -> Rated {
        let diagonal = f64::from(self.size.width).hypot(f64::from(self.size.height));
        let mut now = guess;
        let mut best = Rated { guess, likeness: f32::NEG_INFINITY };
        for round in 0..=rounds {
            self.sample(region, now, scratch);
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
                let e = (i - t).clamp(-CLIP, CLIP);
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

#[cfg(test)]
#[path = "rigid_tests.rs"]
mod tests;
