//! The checks themselves. Belongs to the thread "health".

use super::picture::{clipped, contrast, luma, median, sharpness};
use crate::error::Result;
use crate::event::Check;
use crate::frame::Frame;
use crate::model::{Model, Trigger};
use crate::prepare::placement::Placement;
use crate::prepare::register::{Registrar, statistics};
use crate::prepare::shrink::{Crop, Shrinker, Size};
use crate::prepare::{Preparation, Registration};
use linesight_kernels::contrast::Contrast;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::ops::RangeInclusive;

/// Figures are medians over this many looks, so that one odd part is none.
const WINDOW: usize = 5;
/// Looks in a row that begin an alert, and that end it.
pub const IN_A_ROW: u32 = 3;
/// Looks from which it is learned what is usual, where the model does not say.
pub const LEARN: usize = 30;
/// Least sharpness over the taught one.
const LEAST_FOCUS: f64 = 0.7;
/// Levels over the taught one that light matching still makes good.
const LAMP: RangeInclusive<f64> = 0.8..=1.25;
/// Share of pixels that may be clipped beyond what was when the model was taught.
const MOST_CLIPPED: f64 = 0.05;
/// Share of what registration may move a part that the picture may lie off for good.
const MOST_SHIFT: f64 = 0.35;
/// Deviations of single parts that their median may lie off, where positions are learned.
const SHIFT_SIGMAS: f64 = 2.0;
/// A correlation peak below this share of that of taught parts says nothing.
const FAINT: f64 = 0.25;
/// Looks with the same bits that make a picture frozen.
const FROZEN: u32 = 5;
/// Parts over which something must stay at its place to be dirt.
pub const DIRT_LOOKS: usize = 30;
/// Local contrast that dirt adds, at least, as a share of the surroundings' level.
const DIRT: f64 = 0.05;
/// Width of the picture in which dirt is looked for, pixels.
const SMALL: u32 = 160;
/// Half the side of the surroundings in it.
const REACH: usize = 14;
/// Pixels of it that dirt covers, at least.
const SPOT: usize = 6;

/// A figure over the last looks.
#[derive(Debug, Default)]
struct Window(VecDeque<f64>);

impl Window {
    fn push(&mut self, value: f64) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }
    fn median(&self) -> f64 {
        median(self.0.iter().copied())
    }
}

/// Alerts with hysteresis.
#[derive(Debug, Default)]
struct Alarm {
    on: bool,
    /// Looks in a row that say the opposite.
    against: u32,
}

impl Alarm {
    fn look(&mut self, bad: bool) {
        self.against = if bad == self.on { 0 } else { self.against + 1 };
        if self.against >= IN_A_ROW {
            (self.on, self.against) = (bad, 0);
        }
    }
}

/// What the model says is usual.
struct Taught {
    /// Median over the reference parts.
    sharpness: f64,
    /// Mean level of the reference picture before light matching.
    level: f64,
    /// Dark and bright share.
    clipped: (f64, f64),
    /// Peak of the correlation of reference parts with the reference picture.
    response: f64,
}

/// How the shift is measured.
enum Place {
    /// Parts may lie anywhere, or have nothing in common.
    Unknown,
    /// Parts lie where they were taught.
    Fixed(Box<Registrar>),
    /// Parts move along one axis (0: x) of the picture; their place across it is learned.
    Belt { across: usize, learned: Vec<f64>, usual: Option<(f64, f64)> },
}

/// Looks at frames and parts of one camera; see the module's documentation.
pub struct Health {
    preparation: Preparation,
    taught: Taught,
    place: Place,
    shrinker: Shrinker,
    contrast: Contrast,
    rgb: Vec<u8>,
    region: Vec<u8>,
    small: Vec<u8>,
    focus: (Window, Alarm),
    lamp: (Window, Alarm),
    dark: Window,
    bright: Window,
    exposure: Alarm,
    shift: ([Window; 2], Alarm),
    frozen: Frozen,
    dirt: Dirt,
    checks: BTreeMap<String, Check>,
    turned: Vec<(&'static str, Option<String>)>,
}

#[derive(Default)]
struct Frozen {
    last: Option<u64>,
    same: u32,
}

impl Health {
    pub fn new(model: &Model) -> Result<Health> {
        let p = &model.preparation;
        let width = p.input.width as usize;
        let parts: Vec<Vec<f32>> = model.reference.iter().map(|(rgb, _)| luma(rgb)).collect();
        let mut registrar = Registrar::new(&p.reference)?;
        let mut responses = Vec::new();
        for part in &parts {
            let bytes: Vec<u8> = part.iter().map(|v| v.round() as u8).collect();
            responses.push(registrar.measure(&bytes)?.response);
        }
        let place = match (model.trigger, &model.locator, p.registration) {
            (Trigger::Presence, Some(locator), _) => {
                let [vx, vy] = locator.velocity;
                Place::Belt { across: usize::from(vx.abs() >= vy.abs()), learned: Vec::new(), usual: None }
            }
            (_, _, Registration::Rigid) => Place::Unknown,
            _ if model.differing => Place::Unknown,
            _ => Place::Fixed(Box::new(registrar)),
        };
        Ok(Health {
            taught: Taught {
                sharpness: median(parts.iter().map(|l| sharpness(l, width))),
                level: f64::from(p.reference.mean),
                clipped: clipped(&p.reference.rgb),
                response: median(responses),
            },
            rgb: vec![0; p.input.area() * 3],
            preparation: p.clone(),
            place,
            shrinker: Shrinker::new(),
            contrast: Contrast::default(),
            region: Vec::new(),
            small: Vec::new(),
            focus: Default::default(),
            lamp: Default::default(),
            dark: Window::default(),
            bright: Window::default(),
            exposure: Alarm::default(),
            shift: Default::default(),
            frozen: Frozen::default(),
            dirt: Dirt::default(),
            checks: BTreeMap::new(),
            turned: Vec::new(),
        })
    }

    /// Every check that something is known about.
    pub fn checks(&self) -> BTreeMap<String, Check> {
        self.checks.clone()
    }

    /// Checks that became an alert (with what to do) or ceased to be one since the last call.
    pub fn turned(&mut self) -> Vec<(&'static str, Option<String>)> {
        std::mem::take(&mut self.turned)
    }

    /// Whether new pictures come at all: the noise of a sensor never repeats, so not one bit may change for a picture to be
    /// frozen.
    pub fn frame(&mut self, frame: &Frame, roi: Crop) -> Result<()> {
        let hash = bits(frame, roi);
        self.frozen.same = if self.frozen.last == Some(hash) { self.frozen.same + 1 } else { 1 };
        self.frozen.last = Some(hash);
        let (same, limit) = (self.frozen.same, FROZEN);
        let says = format!(
            "the same picture came {same} times, bit by bit: the camera or its driver hangs, switch it off and on"
        );
        self.put("frozen", f64::from(same), f64::from(limit), same >= limit, says);
        Ok(())
    }

    /// Everything that is measured on a part: `crop` is where it was expected, `placement` where it was found.
    pub fn part(&mut self, frame: &Frame, roi: Crop, crop: Crop, placement: &Placement) -> Result<()> {
        if self.frozen.same > 1 {
            // the same part again says nothing new, and would make one odd part the median
            return Ok(());
        }
        self.cut_out(frame, placement)?;
        self.light();
        self.sharp()?;
        self.moved(frame, crop, placement)?;
        self.stays(frame, roi)
    }

    /// The part at the network's scale, its light as it is: what is finer than the network sees can do no harm.
    fn cut_out(&mut self, frame: &Frame, placement: &Placement) -> Result<()> {
        let input = self.preparation.input;
        if let Some(crop) = placement.crop() {
            return self.shrinker.rgb(frame, crop, input, &mut self.rgb);
        }
        let bounds = placement.bounds();
        let scale = (input.area() as f64 / placement.area().max(1.0)).sqrt();
        let even = |length: u32| ((f64::from(length) * scale / 2.0).round().max(2.0) * 2.0) as u32;
        let size = Size { width: even(bounds.width), height: even(bounds.height) };
        self.region.resize(size.area() * 3, 0);
        self.shrinker.rgb(frame, bounds, size, &mut self.region)?;
        let (sx, sy) = (
            f64::from(size.width) / f64::from(bounds.width.max(1)),
            f64::from(size.height) / f64::from(bounds.height.max(1)),
        );
        let (iw, ih) = (f64::from(input.width), f64::from(input.height));
        let (pixels, _) = self.rgb.as_chunks_mut::<3>();
        for (i, pixel) in pixels.iter_mut().enumerate() {
            let (column, row) = (i as u32 % input.width, i as u32 / input.width);
            let (x, y) = placement.to_source((f64::from(column) + 0.5) / iw, (f64::from(row) + 0.5) / ih);
            *pixel = bilinear(
                &self.region,
                size,
                (x - f64::from(bounds.x)) * sx - 0.5,
                (y - f64::from(bounds.y)) * sy - 0.5,
            );
        }
        Ok(())
    }

    /// Lamp and exposure.
    fn light(&mut self) {
        let (level, _) = statistics(&self.rgb);
        self.lamp.0.push(f64::from(level) / self.taught.level.max(1.0));
        let value = self.lamp.0.median();
        self.lamp.1.look(!LAMP.contains(&value));
        let percent = ((value - 1.0) * 100.0).abs();
        let says = if value < 1.0 {
            format!(
                "parts are {percent:.0} % darker than when taught: look at the lamp, then for dust, at aperture and exposure"
            )
        } else {
            format!(
                "parts are {percent:.0} % brighter than when taught: look for other light, then at the lamp and the exposure"
            )
        };
        self.put("lamp", value, 1.0, self.lamp.1.on, says);

        let (dark, bright) = clipped(&self.rgb);
        self.dark.push(dark);
        self.bright.push(bright);
        let (dark, bright) = (self.dark.median(), self.bright.median());
        let usual = self.taught.clipped;
        let (too_dark, too_bright) = (dark > usual.0 + MOST_CLIPPED, bright > usual.1 + MOST_CLIPPED);
        self.exposure.look(too_dark || too_bright);
        let share = |v: f64| v * 100.0;
        let says = if bright - usual.1 >= dark - usual.0 {
            let (now, then) = (share(bright), share(usual.1));
            format!(
                "{now:.0} % of the part is white without detail (taught: {then:.0} %): shorten the exposure or lower the gain"
            )
        } else {
            let (now, then) = (share(dark), share(usual.0));
            format!(
                "{now:.0} % of the part is black without detail (taught: {then:.0} %): lengthen the exposure, look at the lamp"
            )
        };
        self.put("exposure", dark + bright, usual.0 + usual.1, self.exposure.on, says);
    }

    fn sharp(&mut self) -> Result<()> {
        let p = &self.preparation;
        p.light.apply(&mut self.rgb, p.input, &p.reference, &mut self.contrast);
        let value = sharpness(&luma(&self.rgb), p.input.width as usize) / self.taught.sharpness.max(1e-9);
        self.focus.0.push(value);
        let value = self.focus.0.median();
        self.focus.1.look(value < LEAST_FOCUS);
        let lost = (1.0 - value) * 100.0;
        let says = format!(
            "parts have {lost:.0} % less fine detail than when taught: clean the lens and its window, check focus and vibration"
        );
        self.put("focus", value, 1.0, self.focus.1.on, says);
        Ok(())
    }

    fn moved(&mut self, frame: &Frame, crop: Crop, placement: &Placement) -> Result<()> {
        let share = MOST_SHIFT * f64::from(self.preparation.max_shift);
        let (moved, limit) = match &mut self.place {
            Place::Unknown => return Ok(()),
            Place::Fixed(registrar) => {
                let input = self.preparation.input;
                self.small.resize(input.area(), 0);
                self.shrinker.luma(frame, crop, input, &mut self.small)?;
                let shift = registrar.measure(&self.small)?;
                if shift.response < FAINT * self.taught.response {
                    return Ok(());
                }
                let scale = |d: f64, of: u32, to: u32| d * f64::from(of) / f64::from(to);
                let moved = [scale(shift.dx, crop.width, input.width), scale(shift.dy, crop.height, input.height)];
                (moved, share * f64::from(crop.width.min(crop.height)))
            }
            Place::Belt { across, learned, usual } => {
                let (x, y) = placement.to_source(0.5, 0.5);
                let here = [x, y][*across];
                let side = [crop.width, crop.height][*across];
                let Some((centre, deviation)) = *usual else {
                    learned.push(here);
                    if learned.len() == LEARN {
                        let centre = median(learned.iter().copied());
                        // for a normal distribution the deviation is this much larger
                        let deviation = 1.4826 * median(learned.iter().map(|v| (v - centre).abs()));
                        *usual = Some((centre, deviation));
                    }
                    let says = learning(learned.len(), "where parts lie");
                    let limit = share * f64::from(side);
                    self.checks.insert("shift".into(), Check { value: 0.0, usual: limit, alert: false, says });
                    return Ok(());
                };
                let mut moved = [0.0; 2];
                moved[*across] = here - centre;
                (moved, (share * f64::from(side)).max(SHIFT_SIGMAS * deviation))
            }
        };
        self.shift.0.iter_mut().zip(moved).for_each(|(w, m)| w.push(m));
        let [dx, dy] = [self.shift.0[0].median(), self.shift.0[1].median()];
        let value = dx.hypot(dy);
        self.shift.1.look(value > limit);
        let direction = |d: f64, plus: &str, minus: &str| {
            (d.abs() >= 1.0).then(|| format!("{:.0} pixels {}", d.abs(), if d > 0.0 { plus } else { minus }))
        };
        let words: Vec<String> =
            [direction(dx, "to the right", "to the left"), direction(dy, "down", "up")].into_iter().flatten().collect();
        let says = format!(
            "parts lie {} of where they should: camera or fixture has moved, put it back or teach again",
            words.join(" and ")
        );
        self.put("shift", value, limit, self.shift.1.on, says);
        Ok(())
    }

    /// Dirt: what stays at its place in the picture whatever part is there.
    fn stays(&mut self, frame: &Frame, roi: Crop) -> Result<()> {
        let height = (f64::from(SMALL) * f64::from(roi.height) / f64::from(roi.width.max(1))).round().max(4.0) as u32;
        let size = Size { width: SMALL, height };
        if self.focus.1.on || self.shift.1.on || self.exposure.on {
            // everything has changed its place or its contrast: what is left from before cannot be compared
            self.dirt.begin();
            return Ok(());
        }
        self.small.resize(size.area(), 0);
        self.shrinker.luma(frame, roi, size, &mut self.small)?;
        let Some(found) = self.dirt.look(&self.small, size, roi) else {
            if self.dirt.usual.is_none() {
                let says = learning(self.dirt.looks, "what stays in the picture");
                self.checks.insert("dirt".into(), Check { value: 0.0, usual: DIRT, alert: false, says });
            }
            return Ok(());
        };
        let says = format!(
            "something {} stays at {},{} of the picture whatever part is there: clean the lens and its window",
            if found.bright { "bright" } else { "dark" },
            found.at.0,
            found.at.1
        );
        self.put("dirt", found.contrast, DIRT, found.contrast > DIRT, says);
        Ok(())
    }

    fn put(&mut self, name: &'static str, value: f64, usual: f64, alert: bool, says: String) {
        let was = self.checks.get(name).is_some_and(|c| c.alert);
        if was != alert {
            self.turned.push((name, alert.then(|| says.clone())));
        }
        self.checks.insert(name.into(), Check { value, usual, alert, says: alert.then_some(says) });
    }
}

fn learning(looks: usize, what: &str) -> Option<String> {
    (looks < LEARN).then(|| format!("learning {what}: {looks} of {LEARN} looks"))
}

/// All bits of the first plane inside the ROI.
fn bits(frame: &Frame, roi: Crop) -> u64 {
    let plane = frame.plane(0);
    let edge = |at: i32, length: u32, limit: usize| {
        let start = at.max(0) as usize;
        start.min(limit)..(start + length as usize).min(limit)
    };
    let (columns, rows) = (edge(roi.x, roi.width, plane.width), edge(roi.y, roi.height, plane.height));
    let mut hasher = DefaultHasher::new();
    for y in rows {
        let from = y * plane.stride;
        let row = from + columns.start * plane.channels..from + columns.end * plane.channels;
        hasher.write(plane.data.get(row).unwrap_or_default());
    }
    hasher.finish()
}

fn bilinear(rgb: &[u8], size: Size, x: f64, y: f64) -> [u8; 3] {
    let (w, h) = (size.width as usize, size.height as usize);
    let (x, y) = (x.clamp(0.0, w as f64 - 1.0), y.clamp(0.0, h as f64 - 1.0));
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(w - 1), (y0 + 1).min(h - 1));
    let (fx, fy) = ((x - x0 as f64) as f32, (y - y0 as f64) as f32);
    std::array::from_fn(|c| {
        let at = |x: usize, y: usize| f32::from(rgb[(y * w + x) * 3 + c]);
        let above = at(x0, y0) * (1.0 - fx) + at(x1, y0) * fx;
        let below = at(x0, y1) * (1.0 - fx) + at(x1, y1) * fx;
        (above * (1.0 - fy) + below * fy + 0.5) as u8
    })
}

/// The range of local contrast at each place of the picture over a round of looks.
#[derive(Default)]
struct Dirt {
    size: Size,
    looks: usize,
    least: Vec<f32>,
    most: Vec<f32>,
    now: Vec<f32>,
    /// Least and most of the first round.
    usual: Option<(Vec<f32>, Vec<f32>)>,
}

struct Spot {
    contrast: f64,
    bright: bool,
    /// Source pixels.
    at: (i32, i32),
}

impl Dirt {
    /// Begins a round.
    fn begin(&mut self) {
        self.looks = 0;
        self.least.clear();
        self.most.clear();
    }

    /// Takes a look; gives what is there now and was not in the first round, once a round is complete.
    fn look(&mut self, small: &[u8], size: Size, roi: Crop) -> Option<Spot> {
        if self.size != size {
            *self = Dirt { size, ..Dirt::default() };
        }
        contrast(small, size.width as usize, REACH, &mut self.now);
        if self.looks == 0 {
            self.least.clone_from(&self.now);
            self.most.clone_from(&self.now);
        }
        for ((least, most), now) in self.least.iter_mut().zip(&mut self.most).zip(&self.now) {
            *least = least.min(*now);
            *most = most.max(*now);
        }
        self.looks += 1;
        if self.looks < DIRT_LOOKS {
            return None;
        }
        let Some((least, most)) = &self.usual else {
            self.usual = Some((std::mem::take(&mut self.least), std::mem::take(&mut self.most)));
            self.begin();
            return Some(Spot { contrast: 0.0, bright: false, at: (roi.x, roi.y) });
        };
        let now = self.least.iter().zip(&self.most);
        // brighter in every look of this round than in any of the first, or darker
        let beyond = now.zip(least.iter().zip(most)).map(|((least, most), (usual_least, usual_most))| {
            (least - usual_most).max(0.0) + (most - usual_least).min(0.0)
        });
        let mut added: Vec<(f32, usize)> = beyond.zip(0..).collect();
        // a spot covers several pixels: the least of its strongest ones counts
        let k = SPOT.min(added.len()) - 1;
        let (_, &mut (least, _), _) = added.select_nth_unstable_by(k, |a, b| b.0.abs().total_cmp(&a.0.abs()));
        let &(most, at) = added[..=k].iter().max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))?;
        let width = size.width as usize;
        let place = |at: usize, start: i32, of: u32, to: u32| {
            start + ((at as f64 + 0.5) * f64::from(of) / f64::from(to)).round() as i32
        };
        self.begin();
        Some(Spot {
            contrast: f64::from(least.abs()),
            bright: most > 0.0,
            at: (place(at % width, roi.x, roi.width, size.width), place(at / width, roi.y, roi.height, size.height)),
        })
    }
}
