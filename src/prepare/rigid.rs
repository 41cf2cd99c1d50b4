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
pub(crate) use super::template::luma_of;
use super::template::{COARSE_AREA, Effort, FINE_AREA, Guess, MAX_MOVE, Rated, Region, Template, turn};
use crate::error::{Context, Error, Result};
use crate::frame::Frame;
use opencv::core::{CV_8UC3, Mat, Scalar};
use opencv::imgproc;
use opencv::prelude::*;
use serde::{Deserialize, Serialize};

/// Refinement of every pose, before they are rated ...
const FIRST: Effort = Effort { rounds: 4, robust: false };
/// ... of the best two ...
const MORE: Effort = Effort { rounds: 10, robust: true };
/// ... and, in the finer picture, of the one that is taken.
const LAST: Effort = Effort { rounds: 4, robust: true };
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

/// Finds poses and cuts parts out; keeps its scratch memory between frames.
pub struct Matcher {
    rigid: Rigid,
    input: Size,
    segmenter: Segmenter,
    template: Template,
    fine: Template,
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
            template: Template::new(rigid.strip, reference, COARSE_AREA)?,
            fine: Template::new(rigid.strip, reference, FINE_AREA)?,
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
        let Some(best) = best else {
            return Ok(Rated { guess: self.rigid.guess(blob.centre, 0.0), likeness: 0.0 });
        };
        let (region, guess) = (&self.region, best.guess);
        let last = self.fine.refine(region, &region.fine, guess, guess, LAST, &mut self.sampled);
        // poses are rated in the coarse picture
        Ok(Rated { guess: last.guess, ..best })
    }

    /// Refines all guesses a little, the best two fully, and returns the best.
    fn rate(&mut self, guesses: &[Guess]) -> Option<Rated> {
        let mut rated: Vec<(Guess, Rated)> = guesses
            .iter()
            .map(|g| (*g, self.template.refine(&self.region, &self.region.coarse, *g, *g, FIRST, &mut self.sampled)))
            .collect();
        rated.sort_by(|a, b| b.1.likeness.total_cmp(&a.1.likeness));
        rated.truncate(2);
        rated
            .iter()
            .map(|(start, r)| {
                self.template.refine(&self.region, &self.region.coarse, *start, r.guess, MORE, &mut self.sampled)
            })
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
        self.region.read(shrinker, frame, crop, scale, [self.template.pixel, self.fine.pixel])
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

#[cfg(test)]
#[path = "rigid_tests.rs"]
mod tests;
