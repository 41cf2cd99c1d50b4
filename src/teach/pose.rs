//! Learns where parts lie and how they are turned, decides whether that is worth following, and learns the area that is part.
//!
//! The good parts are found on their background, one of them is the first reference, and all are registered to it and then
//! to their median, three times over, while the strip that holds them is fitted to their outlines. The area that is part
//! follows from the registered outlines.

use super::parts::Part;
use super::reference::{self, median_picture, spread_of};
use super::{MAX_SHIFT, Options, RegistrationChoice, aspect_of, check_count, size_for};
use crate::error::{Context, Error, Result};
use crate::judge::calibration::MIN_PARTS;
use crate::model::Trigger;
use crate::prepare::light::Light;
use crate::prepare::register::Reference;
use crate::prepare::rigid::{Located, Matcher, Rigid, Turn, luma_of};
use crate::prepare::segment::{Blob, Segmenter};
use crate::prepare::shrink::{Crop, Shrinker, Size};
use crate::prepare::{Preparation, Preparer, Registration};
use opencv::core::{Mat, Point, Scalar, Vector};
use opencv::imgproc;
use opencv::prelude::*;
use rayon::prelude::*;

/// Times that all parts are registered to their median.
const ROUNDS: usize = 3;
/// Elongated: the principal axis tells the angle.
const ELONGATED: f64 = 1.25;
/// Room around the parts' outlines, as a share of the strip's side (of the square of the same area).
const MARGIN: f64 = 0.05;
/// The learned mask is larger than the part by this share of the same side: scratches at the rim, small misplacements.
const DILATE: f64 = 0.03;
/// A place is part when this share of the good parts covers it.
const COVERED: f32 = 0.2;
/// Tolerances of area, and how many robust deviations they are at least.
const AREA_TOLERANCE: f64 = 0.25;
const AREA_DEVIATIONS: f64 = 6.0;
/// Likeness below the median by so many robust deviations and more is doubted.
const LIKENESS_DEVIATIONS: f32 = 8.0;
const LIKENESS_MARGIN: f32 = 0.05;
/// What `auto` wants: share of parts that stand clear of the background, robust deviation of their area, share of the
/// picture that they cover, median likeness.
const CLEAR: f64 = 0.95;
const STABLE_AREA: f64 = 0.05;
const COVERS: std::ops::RangeInclusive<f64> = 0.002..=0.8;
const ALIKE: f32 = 0.6;
/// Angles that spread over less than this many degrees are those of parts in a fixture.
const TURNED: f64 = 4.0;
/// A turn tells something when leaving it out makes the median difference from the reference larger by this factor.
const TELLING: f32 = 1.5;

/// What was learned.
pub(super) struct Learned {
    pub rigid: Rigid,
    pub reference: Reference,
    pub spread_before: f32,
    pub spread_after: f32,
    /// How often each pixel of the reference was inside a part's outline, 0..1.
    coverage: Vec<f32>,
    /// Why registration is rigid, for the report.
    pub why: String,
    /// Poses of the parts that are taught, in their order.
    found: Vec<Found>,
    /// Parts that cannot be taught: index and reason, ascending.
    pub left_out: Vec<(usize, String)>,
}

/// Rigid registration, or why not.
enum Choice {
    Rigid(Box<Learned>),
    /// For the report; empty when nobody asked.
    Not(String),
}

/// How parts are brought to the network's input, and how that was decided.
pub(super) struct Posed {
    /// Light is matched; a recipe may want it otherwise.
    pub preparation: Preparation,
    pub learned: Option<Box<Learned>>,
    pub why: String,
    /// Spread of the good parts before and after registration.
    pub spread: [f32; 2],
    /// How alike the parts are: median correlation of their luma with the reference's, -1..1.
    pub likeness: f32,
    /// Parts without a pose; they are no longer among the parts.
    pub left_out: Vec<String>,
}

impl Posed {
    /// Decides on registration and makes the reference picture, for an input of about the area of a square of this side.
    pub(super) fn find(parts: &mut Vec<Part>, options: &Options, side: f64) -> Result<Posed> {
        let mut left_out = Vec::new();
        match choose(parts, options.trigger, options.registration, side, MAX_SHIFT)? {
            Choice::Rigid(learned) => {
                for (index, reason) in learned.left_out.iter().rev() {
                    left_out.insert(0, leave_out(&parts.remove(*index), reason));
                }
                check_count(parts)?;
                Ok(Posed::rigid(learned, left_out))
            }
            Choice::Not(why_not) => {
                let built = reference::build(parts, size_for(aspect_of(parts), side), options.registration, MAX_SHIFT)?;
                let why = match why_not.as_str() {
                    "" => built.why.clone(),
                    not => format!("{}; not rigid: {not}", built.why),
                };
                Ok(Posed::unturned(built, why, left_out))
            }
        }
    }

    /// The same decision for an input of another size.
    pub(super) fn at(self, parts: &[Part], side: f64) -> Result<Posed> {
        if let Some(learned) = self.learned {
            return Ok(Posed::rigid(Box::new(learned.at(parts, side)?), self.left_out));
        }
        let fixed = match self.preparation.registration {
            Registration::Shift => RegistrationChoice::Shift,
            Registration::None | Registration::Rigid => RegistrationChoice::None,
        };
        let built = reference::build(parts, size_for(aspect_of(parts), side), fixed, MAX_SHIFT)?;
        Ok(Posed::unturned(built, self.why, self.left_out))
    }

    /// The input that [`Posed::at`] would make.
    pub(super) fn size_at(&self, parts: &[Part], side: f64) -> Size {
        match &self.learned {
            Some(learned) => fit_strip(&mut learned.rigid.clone(), &learned.found, side),
            None => size_for(aspect_of(parts), side),
        }
    }

    fn rigid(learned: Box<Learned>, left_out: Vec<String>) -> Posed {
        let preparation = Preparation {
            input: learned.reference.size,
            registration: Registration::Rigid,
            light: Light::Match,
            max_shift: MAX_SHIFT,
            rigid: Some(learned.rigid.clone()),
            reference: learned.reference.clone(),
        };
        let likeness = robust_f32(learned.found.iter().map(|p| p.likeness)).0;
        let spread = [learned.spread_before, learned.spread_after];
        Posed { preparation, why: learned.why.clone(), spread, likeness, learned: Some(learned), left_out }
    }

    fn unturned(built: reference::Built, why: String, left_out: Vec<String>) -> Posed {
        let preparation = Preparation {
            input: built.picture.size,
            registration: built.registration,
            light: Light::Match,
            max_shift: MAX_SHIFT,
            rigid: None,
            reference: built.picture,
        };
        let spread = [built.spread_before, built.spread_after];
        Posed { preparation, learned: None, why, spread, likeness: built.likeness, left_out }
    }
}

/// Decides on rigid registration.
fn choose(parts: &[Part], trigger: Trigger, choice: RegistrationChoice, side: f64, max_shift: f32) -> Result<Choice> {
    match (choice, trigger) {
        (RegistrationChoice::None | RegistrationChoice::Shift, _) => return Ok(Choice::Not(String::new())),
        (RegistrationChoice::Auto, Trigger::Presence) => return Ok(Choice::Not(String::new())),
        (RegistrationChoice::Rigid, Trigger::Presence) => {
            return Err(Error::usage("registration \"rigid\" goes with trigger \"frame\": with trigger \"presence\" parts are located on the belt")
                .hint("use --registration auto or shift, or --trigger frame for pictures of single parts"));
        }
        (RegistrationChoice::Auto | RegistrationChoice::Rigid, Trigger::Frame) => {}
    }
    let wanted = choice == RegistrationChoice::Rigid;
    match learn(parts, side, max_shift, wanted)? {
        Ok(learned) => Ok(Choice::Rigid(Box::new(learned))),
        Err(why) if wanted => Err(Error::usage(format!("registration \"rigid\" is not possible: {why}"))
            .hint("rigid registration needs one part in each picture, clear of the edges, on a plain background; give --roi, or use --registration shift")),
        Err(why) => Ok(Choice::Not(why)),
    }
}

/// One part that was found, with its pose.
struct Found {
    index: usize,
    blob: Blob,
    centre: [f64; 2],
    angle: f64,
    likeness: f32,
}

/// The inner error says why rigid registration does not suit these parts. `wanted`: the user asked for it, so that only what
/// makes it impossible counts.
fn learn(parts: &[Part], side: f64, max_shift: f32, wanted: bool) -> Result<std::result::Result<Learned, String>> {
    let found = find(parts)?;
    let mut left_out = Vec::new();
    let mut posed = Vec::new();
    for (index, blob) in found.into_iter().enumerate() {
        match blob {
            None => left_out.push((index, "no part found".to_owned())),
            Some(b) if b.cut => left_out.push((index, "part is cut by the picture's edge".to_owned())),
            Some(b) if b.second > crate::prepare::rigid::SECOND => {
                left_out.push((index, "more than one part in the picture".to_owned()));
            }
            Some(blob) => {
                let (centre, angle) = (blob.centre, blob.axis);
                posed.push(Found { index, blob, centre, angle, likeness: 0.0 });
            }
        }
    }
    let total = parts.len();
    let clear = |n: usize| -> std::result::Result<(), String> {
        let enough = if wanted { n >= MIN_PARTS && 2 * n >= total } else { n as f64 >= CLEAR * total as f64 };
        if enough {
            Ok(())
        } else {
            Err(format!("the part stands clear of a plain background in {n} of {total} pictures"))
        }
    };
    if let Err(why) = clear(posed.len()) {
        return Ok(Err(why));
    }
    let (area, deviation) = robust(posed.iter().map(|p| p.blob.area));
    let relative = deviation / area.max(1.0);
    let area_tolerance = AREA_TOLERANCE.max(AREA_DEVIATIONS * relative);
    posed.retain(|p| {
        let ratio = p.blob.area / area;
        let usual = (ratio - 1.0).abs() <= area_tolerance;
        if !usual {
            left_out.push((p.index, format!("area {:.0} % of the others", ratio * 100.0)));
        }
        usual
    });
    if let Err(why) = clear(posed.len()) {
        return Ok(Err(why));
    }
    let roi = parts[posed[0].index].crop;
    let share = area / (f64::from(roi.width) * f64::from(roi.height));
    if !wanted && relative > STABLE_AREA {
        return Ok(Err(format!("the area of parts varies by {:.0} %", relative * 100.0)));
    }
    if !wanted && !COVERS.contains(&share) {
        return Ok(Err(format!("the part covers {:.1} % of the picture", share * 100.0)));
    }
    let elongation = robust(posed.iter().map(|p| p.blob.elongation)).0;
    let turn = if elongation >= ELONGATED { Turn::Axis } else { Turn::Polar };

    // the first reference: the part of the most usual area
    let first = posed
        .iter()
        .enumerate()
        .min_by(|a, b| (a.1.blob.area - area).abs().total_cmp(&(b.1.blob.area - area).abs()))
        .map_or(0, |(i, _)| i);
    let angle = match turn {
        Turn::Axis => posed[first].blob.axis,
        _ => tightest(&posed[first].blob.outline),
    };
    posed[first].angle = angle;
    let contrast = robust(posed.iter().map(|p| f64::from(p.blob.contrast))).0 as f32;
    let mut rigid = Rigid { turn, angle, strip: [0.0; 4], area, area_tolerance, contrast, min_likeness: -1.0 };
    let input = fit_strip(&mut rigid, &posed[first..=first], side);
    let (pictures, size) = (cut(parts, &posed[first..=first], &rigid, input)?, input);
    let mut reference = median_picture(&pictures, size);
    for _ in 0..ROUNDS {
        register(parts, &mut posed, &rigid, &reference)?;
        let input = fit_strip(&mut rigid, &posed, side);
        reference = median_picture(&cut(parts, &posed, &rigid, input)?, input);
    }
    register(parts, &mut posed, &rigid, &reference)?;

    let mut turns = angle_spread(posed.iter().map(|p| p.angle));
    if turn == Turn::Polar {
        // does the angle tell anything? a plain disc looks the same at each
        let fixed = Rigid { turn: Turn::Fixed, ..rigid.clone() };
        let before: Vec<Located> = locate(parts, &posed, &fixed, &reference)?;
        let without = robust_f32(before.iter().map(|l| l.likeness)).0;
        let with = robust_f32(posed.iter().map(|p| p.likeness)).0;
        if 1.0 - without < TELLING * (1.0 - with) {
            (rigid, turns) = (fixed, 0.0);
            for (p, l) in posed.iter_mut().zip(before) {
                (p.centre, p.angle, p.likeness) = (l.centre, l.angle, l.likeness);
            }
            reference = median_picture(&cut(parts, &posed, &rigid, reference.size)?, reference.size);
            register(parts, &mut posed, &rigid, &reference)?;
        }
    }
    let (likeness, deviation) = robust_f32(posed.iter().map(|p| p.likeness));
    let mut sorted: Vec<f32> = posed.iter().map(|p| p.likeness).collect();
    sorted.sort_by(f32::total_cmp);
    rigid.min_likeness =
        (likeness - LIKENESS_DEVIATIONS * deviation.max(0.003)).min(sorted[sorted.len() / 50]) - LIKENESS_MARGIN;
    if !wanted && likeness < ALIKE {
        return Ok(Err(format!("good parts do not look alike in any pose (correlation {likeness:.2})")));
    }
    let moves = travel(&posed, roi);
    if !wanted && turns < TURNED && moves <= f64::from(max_shift) {
        return Ok(Err(format!(
            "parts lie alike: angles within {turns:.0} degrees, places within {:.1} % of the picture",
            moves * 100.0
        )));
    }
    let why = format!(
        "area stable within {:.1} %, elongation {elongation:.1}, {}, places within {:.0} % of the picture",
        relative * 100.0,
        match rigid.turn {
            Turn::Fixed => "looks the same at every angle".to_owned(),
            _ => format!("angles spread over {turns:.0} degrees"),
        },
        moves * 100.0
    );
    let coverage = coverage(&posed, &rigid, reference.size)?;
    let spread_after = spread_of(&cut(parts, &posed, &rigid, reference.size)?, &reference);
    let spread_before = {
        let still: Vec<Found> = posed
            .iter()
            .map(|p| Found {
                index: p.index,
                blob: p.blob.clone(),
                centre: p.blob.centre,
                angle: rigid.angle,
                likeness: 0.0,
            })
            .collect();
        let pictures = cut(parts, &still, &rigid, reference.size)?;
        spread_of(&pictures, &median_picture(&pictures, reference.size))
    };
    left_out.sort_by_key(|(index, _)| *index);
    let mut found = posed;
    // the others go: from here on a part's index is its place among those that stay
    found.iter_mut().enumerate().for_each(|(i, p)| p.index = i);
    Ok(Ok(Learned { rigid, reference, spread_before, spread_after, coverage, why, found, left_out }))
}

impl Learned {
    /// The same poses for an input of another size. `parts` are those that stayed.
    fn at(self, parts: &[Part], side: f64) -> Result<Learned> {
        let mut rigid = self.rigid.clone();
        let size = fit_strip(&mut rigid, &self.found, side);
        let reference = median_picture(&cut(parts, &self.found, &rigid, size)?, size);
        let coverage = coverage(&self.found, &rigid, size)?;
        Ok(Learned { rigid, reference, coverage, ..self })
    }

    /// What is judged, at the map's size: where parts are, and a little more. 255 inside, 0 outside.
    pub fn mask(&self, map: Size) -> Result<Vec<u8>> {
        let size = self.reference.size;
        let (w, h) = (size.width as i32, size.height as i32);
        let inside: Vec<u8> = self.coverage.iter().map(|&c| if c >= COVERED { 255 } else { 0 }).collect();
        let from = Mat::new_rows_cols_with_data(h, w, &inside).failed(|| "mask size")?;
        let radius = ((DILATE * (size.area() as f64).sqrt()).round() as i32).max(1);
        let kernel = imgproc::get_structuring_element_def(
            imgproc::MORPH_ELLIPSE,
            opencv::core::Size::new(2 * radius + 1, 2 * radius + 1),
        )
        .failed(|| "mask: kernel")?;
        let (mut wide, mut small) = (Mat::default(), Mat::default());
        imgproc::dilate_def(&from, &mut wide, &kernel).failed(|| "mask: dilating")?;
        imgproc::resize(
            &wide,
            &mut small,
            opencv::core::Size::new(map.width as i32, map.height as i32),
            0.0,
            0.0,
            imgproc::INTER_AREA,
        )
        .failed(|| "mask: size")?;
        let bytes = small.data_typed::<u8>().failed(|| "mask")?;
        Ok(bytes.iter().map(|&v| if v > 20 { 255 } else { 0 }).collect())
    }
}

/// Parts whose pose a model doubts must not calibrate it; only rigid registration loses parts.
pub(super) fn without_doubt(p: &Preparation, parts: Vec<Part>) -> Result<(Vec<Part>, Vec<String>)> {
    if p.registration != Registration::Rigid {
        return Ok((parts, Vec::new()));
    }
    let mut preparer = Preparer::new(p)?;
    let mut input = vec![0; p.input.area() * 3];
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    for part in parts {
        match preparer.prepare(p, &part.frame, part.crop, &mut input)?.doubt {
            None => kept.push(part),
            Some(doubt) => left_out.push(leave_out(&part, &doubt.reason)),
        }
    }
    Ok((kept, left_out))
}

/// Says that a part is not taught, and returns how reports name it.
pub(super) fn leave_out(part: &Part, reason: &str) -> String {
    tracing::warn!("good part {} is left out: {reason}", part.label);
    format!("{} ({reason})", part.label)
}

fn find(parts: &[Part]) -> Result<Vec<Option<Blob>>> {
    parts
        .par_iter()
        .map_init(
            || (Segmenter::new(), Shrinker::new()),
            |(segmenter, shrinker), part| match segmenter {
                Ok(s) => s.find(shrinker, &part.frame, part.crop),
                Err(_) => Segmenter::new()?.find(shrinker, &part.frame, part.crop),
            },
        )
        .collect()
}

/// Median and robust standard deviation.
fn robust(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut v: Vec<f64> = values.collect();
    let middle = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v.get(v.len() / 2).copied().unwrap_or_default()
    };
    let m = middle(&mut v);
    let mut d: Vec<f64> = v.iter().map(|x| (x - m).abs()).collect();
    (m, 1.4826 * middle(&mut d))
}

fn robust_f32(values: impl Iterator<Item = f32>) -> (f32, f32) {
    let (m, d) = robust(values.map(f64::from));
    (m as f32, d as f32)
}

/// The turn at which the upright box around an outline is smallest, radians in 0..pi/2.
fn tightest(outline: &[[f64; 2]]) -> f64 {
    let area = |degrees: &u32| {
        let e = extent(outline, [0.0; 2], f64::from(*degrees).to_radians());
        (e[2] - e[0]) * (e[3] - e[1])
    };
    let best = (0..90).min_by(|a, b| area(a).total_cmp(&area(b))).unwrap_or(0);
    f64::from(best).to_radians()
}

/// Left, top, right, bottom of an outline around `centre`, turned back by `angle`.
fn extent(outline: &[[f64; 2]], centre: [f64; 2], angle: f64) -> [f64; 4] {
    let (s, c) = angle.sin_cos();
    outline.iter().fold([f64::MAX, f64::MAX, f64::MIN, f64::MIN], |e, p| {
        let (dx, dy) = (p[0] - centre[0], p[1] - centre[1]);
        let (x, y) = (c * dx + s * dy, c * dy - s * dx);
        [e[0].min(x), e[1].min(y), e[2].max(x), e[3].max(y)]
    })
}

/// Fits the strip to the outlines of nearly all parts, with room around, and returns the network's input for it. The strip
/// has exactly the input's aspect, so that nothing is distorted.
fn fit_strip(rigid: &mut Rigid, posed: &[Found], area_side: f64) -> Size {
    let extents: Vec<[f64; 4]> = posed.iter().map(|p| extent(&p.blob.outline, p.centre, p.angle)).collect();
    let side = |i: usize, share: f64| {
        let mut v: Vec<f64> = extents.iter().map(|e| e[i]).collect();
        v.sort_by(f64::total_cmp);
        v[((v.len() - 1) as f64 * share).round() as usize]
    };
    let (left, top, right, bottom) = (side(0, 0.03), side(1, 0.03), side(2, 0.97), side(3, 0.97));
    let margin = MARGIN * ((right - left) * (bottom - top)).abs().sqrt() + 1.0;
    let (w, h) = (right - left + 2.0 * margin, bottom - top + 2.0 * margin);
    let input = size_for(w / h, area_side);
    let pixel = (w / f64::from(input.width)).max(h / f64::from(input.height));
    let (width, height) = (pixel * f64::from(input.width), pixel * f64::from(input.height));
    rigid.strip = [(left + right - width) / 2.0, (top + bottom - height) / 2.0, width, height];
    input
}

/// Poses of all parts against a reference.
fn locate(parts: &[Part], posed: &[Found], rigid: &Rigid, reference: &Reference) -> Result<Vec<Located>> {
    posed
        .par_iter()
        .map_init(
            || (Matcher::new(rigid, reference), Shrinker::new()),
            |(matcher, shrinker), p| {
                let part = &parts[p.index];
                match matcher {
                    Ok(m) => m.locate(shrinker, &part.frame, part.crop, Some(&p.blob)),
                    Err(_) => Matcher::new(rigid, reference)?.locate(shrinker, &part.frame, part.crop, Some(&p.blob)),
                }
            },
        )
        .collect()
}

fn register(parts: &[Part], posed: &mut [Found], rigid: &Rigid, reference: &Reference) -> Result<()> {
    let located = locate(parts, posed, rigid, reference)?;
    for (p, l) in posed.iter_mut().zip(located) {
        (p.centre, p.angle, p.likeness) = (l.centre, l.angle, l.likeness);
    }
    Ok(())
}

/// RGB and luma of each part, upright.
fn cut(parts: &[Part], posed: &[Found], rigid: &Rigid, size: Size) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let blank =
        Reference { size, luma: vec![0; size.area()], rgb: vec![0; size.area() * 3], mean: 0.0, deviation: 0.0 };
    posed
        .par_iter()
        .map_init(
            || (Matcher::new(rigid, &blank), Shrinker::new()),
            |(matcher, shrinker), p| {
                let mut rgb = vec![0; size.area() * 3];
                let frame = &parts[p.index].frame;
                match matcher {
                    Ok(m) => m.cut_at(shrinker, frame, p.centre, p.angle, &mut rgb)?,
                    Err(_) => Matcher::new(rigid, &blank)?.cut_at(shrinker, frame, p.centre, p.angle, &mut rgb)?,
                }
                let mut luma = Vec::new();
                luma_of(&rgb, &mut luma);
                Ok((rgb, luma))
            },
        )
        .collect()
}

/// Degrees of the smallest arc that holds 95 % of the angles.
fn angle_spread(angles: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = angles.map(|a| a.rem_euclid(std::f64::consts::TAU).to_degrees()).collect();
    v.sort_by(f64::total_cmp);
    let n = v.len();
    let held = ((n as f64 * 0.95).ceil() as usize).clamp(1, n.max(1));
    (0..n)
        .map(|i| {
            let end = i + held - 1;
            if end < n { v[end] - v[i] } else { v[end - n] + 360.0 - v[i] }
        })
        .fold(360.0, f64::min)
}

/// How far parts lie from their usual place, as a share of the picture; nine in ten lie nearer.
fn travel(posed: &[Found], roi: Crop) -> f64 {
    let spread = |axis: usize, length: u32| {
        let middle = robust(posed.iter().map(|p| p.centre[axis])).0;
        let mut away: Vec<f64> = posed.iter().map(|p| (p.centre[axis] - middle).abs() / f64::from(length)).collect();
        away.sort_by(f64::total_cmp);
        away[(away.len() - 1) * 9 / 10]
    };
    spread(0, roi.width).max(spread(1, roi.height))
}

/// Share of the parts that cover each pixel of the reference.
fn coverage(posed: &[Found], rigid: &Rigid, size: Size) -> Result<Vec<f32>> {
    let mut sum = vec![0f32; size.area()];
    let [left, top, width, height] = rigid.strip;
    for p in posed {
        let mut filled = Mat::new_rows_cols_with_default(
            size.height as i32,
            size.width as i32,
            opencv::core::CV_8UC1,
            Scalar::all(0.0),
        )
        .failed(|| "mask size")?;
        let (s, c) = p.angle.sin_cos();
        let outline: Vector<Point> = p
            .blob
            .outline
            .iter()
            .map(|o| {
                let (dx, dy) = (o[0] - p.centre[0], o[1] - p.centre[1]);
                let (x, y) = (c * dx + s * dy - left, c * dy - s * dx - top);
                let pixel = |v: f64, length: f64, n: u32| (v / length * f64::from(n) - 0.5).round() as i32;
                Point::new(pixel(x, width, size.width), pixel(y, height, size.height))
            })
            .collect();
        let outlines: Vector<Vector<Point>> = Vector::from_iter([outline]);
        imgproc::fill_poly_def(&mut filled, &outlines, Scalar::all(255.0)).failed(|| "mask: outline")?;
        let bytes = filled.data_typed::<u8>().failed(|| "mask")?;
        sum.iter_mut().zip(bytes).for_each(|(s, &v)| *s += f32::from(v != 0));
    }
    let n = posed.len().max(1) as f32;
    sum.iter_mut().for_each(|s| *s /= n);
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_angles_does_not_mind_the_full_turn() {
        let spread = |degrees: &[f64]| angle_spread(degrees.iter().map(|d| d.to_radians()));
        assert!((spread(&[358.0, 359.0, 0.0, 1.0, 2.0]) - 4.0).abs() < 1e-6);
        let around: Vec<f64> = (0..36).map(|i| f64::from(i) * 10.0).collect();
        assert!(spread(&around) > 300.0);
        // one part in forty that lies the wrong way round does not make a spread
        let mut fixture = vec![0.0; 40];
        fixture[7] = 180.0;
        assert!(spread(&fixture) < 1e-6);
    }

    #[test]
    fn the_tightest_box_of_a_square_is_along_its_sides() {
        let (s, c) = 30f64.to_radians().sin_cos();
        let outline: Vec<[f64; 2]> = (0..400)
            .map(|i| {
                let t = f64::from(i % 100) - 50.0;
                let (x, y) = [(t, -50.0), (50.0, t), (-t, 50.0), (-50.0, -t)][i as usize / 100];
                [c * x - s * y, s * x + c * y]
            })
            .collect();
        assert!((tightest(&outline).to_degrees() - 30.0).abs() < 1.01);
    }
}
