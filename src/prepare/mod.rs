//! Prepare: from a mapped frame to the network's input. ROI, part locating and tracking, registration, photometric matching,
//! shrinking and colour conversion. One [`Preparer`] belongs to the thread that submits inferences.

pub mod learn;
pub mod light;
pub mod locate;
pub mod placement;
pub mod register;
pub mod rigid;
pub mod segment;
pub mod shrink;
mod template;
pub mod track;

use crate::error::{Error, Result};
use crate::frame::Frame;
use light::Light;
use linesight_kernels::contrast::Contrast;
use placement::Placement;
use register::{Reference, Registrar};
use rigid::{Doubt, Matcher, Rigid};
use serde::{Deserialize, Serialize};
use shrink::{Crop, Shrinker, Size};

/// How crops are brought to the pose of the taught parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    None,
    /// Phase correlation and a second crop by whole source pixels.
    Shift,
    /// The part is found on its background and cut out upright, wherever and at whatever angle it lies.
    Rigid,
}

impl Registration {
    /// The word used on the command line and in packages.
    pub fn as_str(self) -> &'static str {
        match self {
            Registration::None => "none",
            Registration::Shift => "shift",
            Registration::Rigid => "rigid",
        }
    }
}

/// Everything between crop and network input, as kept in the model package.
#[derive(Debug, Clone, PartialEq)]
pub struct Preparation {
    pub input: Size,
    pub registration: Registration,
    pub light: Light,
    /// Largest shift that registration may apply, as a fraction of the crop's size.
    pub max_shift: f32,
    /// With [`Registration::Rigid`]: what was learned about the pose of parts.
    pub rigid: Option<Rigid>,
    pub reference: Reference,
}

/// Where the prepared picture was really taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Pose {
    /// Where the input was taken, after registration.
    pub placement: Placement,
    /// Why the pose is not to be trusted, if it is not.
    pub doubt: Option<Doubt>,
}

/// Shifts of up to so many pixels of the input are not measured again: what the window cuts of them moves what is found by less
/// than a tenth of a source pixel.
const MEASURED_AT_ONCE: f64 = 8.0;

/// Makes network inputs; keeps its scratch memory between frames.
pub struct Preparer {
    shrinker: Shrinker,
    registrar: Option<Registrar>,
    contrast: Contrast,
    matcher: Option<Matcher>,
    luma: Vec<u8>,
}

impl Preparer {
    pub fn new(preparation: &Preparation) -> Result<Self> {
        let registrar = match preparation.registration {
            Registration::None | Registration::Rigid => None,
            Registration::Shift => Some(Registrar::new(&preparation.reference)?),
        };
        let matcher = match (preparation.registration, &preparation.rigid) {
            (Registration::Rigid, Some(rigid)) => Some(Matcher::new(rigid, &preparation.reference)?),
            (Registration::Rigid, None) => return Err(Error::failed("registration \"rigid\" has no taught pose")),
            _ => None,
        };
        Ok(Preparer {
            shrinker: Shrinker::new(),
            registrar,
            matcher,
            contrast: Contrast::default(),
            luma: vec![0; preparation.input.area()],
        })
    }

    pub fn shrinker(&mut self) -> &mut Shrinker {
        &mut self.shrinker
    }

    /// Fills `out` (`3 * input.area()` bytes, RGB) with the part at `crop`.
    pub fn prepare(&mut self, p: &Preparation, frame: &Frame, crop: Crop, out: &mut [u8]) -> Result<Pose> {
        let pose = match self.matcher.as_mut() {
            Some(matcher) => {
                let found = matcher.cut_out(&mut self.shrinker, frame, crop, out)?;
                tracing::trace!(frame = frame.seq, ?found, "registered");
                Pose { placement: found.placement, doubt: found.doubt }
            }
            None => {
                let (crop, doubt, seen) = self.register(p, frame, crop)?;
                // what was shrunk to be measured is half of the work
                let luma = seen.then_some(self.luma.as_slice());
                self.shrinker.rgb_with(frame, crop, p.input, luma, out)?;
                Pose { placement: crop.into(), doubt }
            }
        };
        p.light.apply(out, p.input, &p.reference, &mut self.contrast);
        Ok(pose)
    }

    /// Shift registration: the crop moved by whole pixels, and whether `luma` is its luma.
    fn register(&mut self, p: &Preparation, frame: &Frame, start: Crop) -> Result<(Crop, Option<Doubt>, bool)> {
        let mut crop = start;
        let Some(registrar) = self.registrar.as_mut() else { return Ok((crop, None, false)) };
        let limit_x = f64::from(p.max_shift) * f64::from(start.width);
        let limit_y = f64::from(p.max_shift) * f64::from(start.height);
        // the second round measures what the first one's whole-pixel step and the changed edges left over of a large shift
        for _ in 0..2 {
            self.shrinker.luma(frame, crop, p.input, &mut self.luma)?;
            let shift = registrar.measure(&self.luma)?;
            let dx = (shift.dx * f64::from(start.width) / f64::from(p.input.width)).round();
            let dy = (shift.dy * f64::from(start.height) / f64::from(p.input.height)).round();
            tracing::trace!(frame = frame.seq, ?shift, "registered");
            let moved = crop.shifted(dx as i32, dy as i32);
            if f64::from((moved.x - start.x).abs()) > limit_x || f64::from((moved.y - start.y).abs()) > limit_y {
                // a correlation peak this far away is more likely wrong than right: the located pose is kept
                let doubt = Doubt { reason: "pose outside what was taught".into(), scorable: true };
                return Ok((crop, Some(doubt), true));
            }
            if moved == crop {
                return Ok((crop, None, true));
            }
            crop = moved;
            if shift.dx.abs().max(shift.dy.abs()) <= MEASURED_AT_ONCE {
                break;
            }
        }
        Ok((crop, None, false))
    }
}

/// The region of interest of a line: `X,Y,W,H` in source pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roi {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// Smallest side of a ROI: below it there is nothing to inspect.
pub const MIN_ROI: u32 = 32;

impl std::str::FromStr for Roi {
    type Err = String;
    fn from_str(s: &str) -> std::result::Result<Self, String> {
        let numbers: Vec<u32> =
            s.split(',').map(|n| n.trim().parse()).collect::<std::result::Result<_, _>>().map_err(|_| wanted(s))?;
        let [x, y, width, height] = numbers[..] else { return Err(wanted(s)) };
        if width < MIN_ROI || height < MIN_ROI {
            return Err(format!("ROI \"{s}\" is {width}x{height} pixels, at least {MIN_ROI}x{MIN_ROI} are needed"));
        }
        Ok(Roi { x, y, width, height })
    }
}

fn wanted(s: &str) -> String {
    format!("ROI \"{s}\" is not X,Y,W,H in whole pixels of the source, for example 320,0,640,720")
}

impl Roi {
    /// The ROI inside a frame of this size; the whole frame when `roi` is `None`.
    pub fn in_frame(roi: Option<Roi>, width: u32, height: u32) -> Result<Crop> {
        let Some(r) = roi else { return Ok(Crop { x: 0, y: 0, width, height }) };
        let fits = |at: u32, length: u32, limit: u32| at.checked_add(length).is_some_and(|end| end <= limit);
        if !fits(r.x, r.width, width) || !fits(r.y, r.height, height) {
            return Err(Error::usage(format!(
                "ROI {},{},{},{} lies outside the {width}x{height} frame",
                r.x, r.y, r.width, r.height
            ))
            .hint(format!("give X,Y,W,H with X + W <= {width} and Y + H <= {height}")));
        }
        Ok(Crop { x: r.x as i32, y: r.y as i32, width: r.width, height: r.height })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roi_errors_say_what_is_wanted() {
        for (text, error) in [
            ("1,2,3", "ROI \"1,2,3\" is not X,Y,W,H in whole pixels of the source, for example 320,0,640,720"),
            (
                "a,0,100,100",
                "ROI \"a,0,100,100\" is not X,Y,W,H in whole pixels of the source, for example 320,0,640,720",
            ),
            ("5,5,1,1", "ROI \"5,5,1,1\" is 1x1 pixels, at least 32x32 are needed"),
        ] {
            assert_eq!(text.parse::<Roi>().unwrap_err(), error);
        }
        let roi: Roi = "1200,0,100,100".parse().unwrap();
        let e = Roi::in_frame(Some(roi), 1280, 720).unwrap_err();
        assert_eq!(e.to_string(), "ROI 1200,0,100,100 lies outside the 1280x720 frame");
        let huge = Roi { x: u32::MAX, y: 0, width: 64, height: 64 };
        assert!(Roi::in_frame(Some(huge), 1280, 720).is_err());
    }
}
