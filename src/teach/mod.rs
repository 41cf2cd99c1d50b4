//! Teach: good parts in, a calibrated model out. No defects are needed.
//!
//! Recording or images -> parts (whole frames, or located and followed over the belt) -> reference picture and registration
//! -> features -> normality model, 5-fold held-out scores -> threshold for the wanted false-reject rate.

pub mod fit;
mod parts;
mod pose;
mod reference;

use crate::capture::Source;
use crate::detect::backbone::{self, Backbone, Options as BackboneOptions};
use crate::detect::head::{Normality, map_size};
use crate::detect::{Device, Head, Precision};
use crate::error::{Context, Error, Result};
use crate::judge::Calibration;
use crate::judge::calibration::{MIN_PARTS, too_few};
use crate::model::{BackboneId, Model, Trigger};
use crate::prepare::shrink::{Crop, Size};
use crate::prepare::{Preparation, Preparer, Registration, Roi};
use fit::Features;
use jiff::Timestamp;
use parts::Part;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

/// Folds of the held-out calibration.
const FOLDS: usize = 5;
/// A held-out score this many robust deviations above the median marks a part that is not like the others ...
const OUTLIER_DEVIATIONS: f32 = 10.0;
/// ... if it is also this many times the median.
const OUTLIER_RATIO: f32 = 1.6;
/// Cut from each side of a located part, as a fraction of its size: registration leaves up to two pixels, which would let
/// a sliver of belt in.
const PRESENCE_INSET: f32 = 14.0 / 420.0;
/// Largest shift that registration may apply, as a fraction of the crop's size.
const MAX_SHIFT: f32 = 24.0 / 420.0;
/// Parts given to calibrate whose mean score is this many deviations below the held-out mean were taught.
const TAUGHT_DEVIATIONS: f64 = 1.5;
/// The method as reports name it.
const METHOD: &str = "position-wise low-rank Gaussian (ppca)";
/// Taught parts kept in the package for the parity check.
const REFERENCE_PARTS: usize = 4;

/// How registration is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationChoice {
    /// `rigid` if one part lies clear on a plain background and is turned or moved from picture to picture; else `shift` if
    /// that brings the good parts measurably closer to each other; else `none`.
    Auto,
    /// Parts are taken as they lie.
    None,
    /// Parts are moved to where they were taught.
    Shift,
    /// Parts are found on a plain background and turned upright.
    Rigid,
}

/// Family of the normality model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    Auto,
    /// Position-wise low-rank Gaussian.
    Ppca,
}

/// How much is spent on a part: the network's input has about this many pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// 224 x 224 pixels.
    Fast,
    /// 256 x 256 pixels.
    Balanced,
    /// 320 x 320 pixels.
    Accurate,
}

impl Variant {
    fn side(self) -> f64 {
        match self {
            Variant::Fast => 224.0,
            Variant::Balanced => 256.0,
            Variant::Accurate => 320.0,
        }
    }
}

/// What to teach.
#[derive(Debug, Clone)]
pub struct Options {
    pub good: Vec<Source>,
    pub name: String,
    pub trigger: Trigger,
    pub roi: Option<Roi>,
    /// A PNG over the part (or over the ROI when each frame is a part): black is not judged.
    pub mask: Option<PathBuf>,
    /// Millimetres of the part that a source pixel shows.
    pub mm_per_pixel: Option<f32>,
    pub registration: RegistrationChoice,
    pub method: Method,
    /// Start of every pseudo-random choice.
    pub seed: u64,
    pub variant: Variant,
    pub precision: Precision,
    pub device: Device,
    pub allow_fallback: bool,
    pub false_reject_rate: f64,
}

/// What teaching found; `teach --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub name: String,
    pub parts: usize,
    /// Parts that are wildly different from the others and were left out.
    pub left_out: Vec<String>,
    pub trigger: Trigger,
    pub method: String,
    pub registration: Registration,
    /// Why this registration.
    pub registration_why: String,
    /// Mean absolute difference from the median picture before and after registration, grey levels.
    pub spread_before: f32,
    pub spread_after: f32,
    pub input: Size,
    pub backbone: String,
    pub device: String,
    pub precision: Precision,
    pub threshold: f32,
    pub held_out_mean: f64,
    pub held_out_deviation: f64,
    pub held_out_max: f32,
    pub expected_false_reject_rate: f64,
    pub guaranteed_false_reject_rate: f64,
    pub parts_for_guarantee: u64,
    pub stages_s: StageSeconds,
    pub teach_s: f64,
}

/// Wall seconds of the stages of teaching.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StageSeconds {
    pub collect: f64,
    pub reference: f64,
    pub features: f64,
    pub fit: f64,
}

/// Called with a stage's name, what is done and what there is to do, where known.
pub type Progress<'a> = &'a dyn Fn(&str, u64, Option<u64>);

/// Teaches a model.
pub fn teach(options: &Options, progress: Progress<'_>) -> Result<(Model, Report)> {
    let start = Instant::now();
    let mut stages = StageSeconds::default();
    let mut lap = Instant::now();
    let mut next = |stage: &mut f64| {
        *stage = lap.elapsed().as_secs_f64();
        lap = Instant::now();
    };
    // a missing runtime should not be found out after minutes of decoding
    crate::detect::runtime::load()?;

    let collected = parts::collect(&options.good, options.trigger, options.roi, None, progress)?;
    let (locator, mut parts) = (collected.locator, collected.parts);
    check_count(&parts)?;
    let inset = if options.trigger == Trigger::Presence { PRESENCE_INSET } else { 0.0 };
    for part in &mut parts {
        part.crop = part.crop.inset(inset);
    }
    next(&mut stages.collect);

    progress("reference", 0, None);
    let Prepared { preparation, learned, why, spread, left_out: mut not_posed } = prepare(&mut parts, options)?;
    let input = preparation.input;
    next(&mut stages.reference);

    let mut backbone = Backbone::compile(&BackboneOptions {
        backbone: backbone::DEFAULT_BACKBONE.into(),
        input,
        device: options.device.clone(),
        precision: options.precision,
        allow_fallback: options.allow_fallback,
        throughput: true,
    })?;
    let map = map_size(backbone.grid());
    let mask = match (options.mask.as_deref(), &learned) {
        (Some(path), Some(l)) => {
            Some(load_mask(path, [l.rigid.strip[2].round() as u32, l.rigid.strip[3].round() as u32], map)?)
        }
        (Some(path), None) => Some(load_mask(path, [parts[0].crop.width, parts[0].crop.height], map)?),
        (None, Some(l)) => Some(l.mask(map)?),
        (None, None) => None,
    };
    let features = extract(&mut backbone, &preparation, &parts, progress)?;
    next(&mut stages.features);

    progress("fit", 0, None);
    let Fitted { normality, calibration, left_out: strange } =
        fit_model(features, &mut parts, mask.as_deref(), options.false_reject_rate, options.seed)?;
    not_posed.extend(strange);
    next(&mut stages.fit);

    let mut model = Model {
        name: options.name.clone(),
        version: "1".into(),
        created: Timestamp::now(),
        method: "ppca".into(),
        seed: options.seed,
        precision: options.precision,
        device: backbone.device().to_owned(),
        backbone: BackboneId {
            id: backbone::DEFAULT_BACKBONE.into(),
            sha256: backbone::checksum(backbone::DEFAULT_BACKBONE)?,
        },
        trigger: options.trigger,
        roi: options.roi,
        locator,
        inset,
        preparation,
        normality,
        calibration,
        mask,
        mm_per_pixel: options.mm_per_pixel,
        reference: Vec::new(),
        sha256: String::new(),
    };
    model.reference = reference_parts(&model, &mut backbone, &parts)?;
    let c = &model.calibration;
    let report = Report {
        name: model.name.clone(),
        parts: c.scores.len(),
        left_out: not_posed,
        trigger: options.trigger,
        method: METHOD.into(),
        registration: model.preparation.registration,
        registration_why: why,
        spread_before: spread[0],
        spread_after: spread[1],
        input,
        backbone: model.backbone.id.clone(),
        device: model.device.clone(),
        precision: options.precision,
        threshold: c.threshold,
        held_out_mean: c.mean,
        held_out_deviation: c.deviation,
        held_out_max: c.scores.last().copied().unwrap_or_default(),
        expected_false_reject_rate: c.expected_false_reject_rate,
        guaranteed_false_reject_rate: c.guaranteed_false_reject_rate,
        parts_for_guarantee: c.parts_for_guarantee,
        stages_s: stages,
        teach_s: start.elapsed().as_secs_f64(),
    };
    Ok((model, report))
}

/// How parts are brought to the network's input, and how that was decided.
struct Prepared {
    preparation: Preparation,
    learned: Option<Box<pose::Learned>>,
    why: String,
    /// Spread of the good parts before and after registration.
    spread: [f32; 2],
    /// Parts without a pose; they are no longer in `parts`.
    left_out: Vec<String>,
}

fn prepare(parts: &mut Vec<Part>, options: &Options) -> Result<Prepared> {
    let mut left_out = Vec::new();
    let chosen = pose::choose(parts, options.trigger, options.registration, options.variant, MAX_SHIFT)?;
    let (built, learned, why) = match chosen {
        pose::Choice::Rigid(learned) => {
            for (index, reason) in learned.left_out.iter().rev() {
                left_out.insert(0, pose::leave_out(&parts.remove(*index), reason));
            }
            check_count(parts)?;
            let why = learned.why.clone();
            (None, Some(learned), why)
        }
        pose::Choice::Not(not_rigid) => {
            let input = input_size(parts, options.variant);
            let built = reference::build(parts, input, options.registration, MAX_SHIFT)?;
            let why = match not_rigid.as_str() {
                "" => built.why.clone(),
                not => format!("{}; not rigid: {not}", built.why),
            };
            (Some(built), None, why)
        }
    };
    let (reference, rigid, registration, spread) = match (built, &learned) {
        (Some(b), _) => (b.picture, None, b.registration, [b.spread_before, b.spread_after]),
        (None, Some(l)) => {
            (l.reference.clone(), Some(l.rigid.clone()), Registration::Rigid, [l.spread_before, l.spread_after])
        }
        (None, None) => return Err(Error::failed("no registration was chosen; this is a bug in linesight")),
    };
    let preparation =
        Preparation { input: reference.size, registration, match_light: true, max_shift: MAX_SHIFT, rigid, reference };
    Ok(Prepared { preparation, learned, why, spread, left_out })
}

/// What is fitted to features.
struct Fitted {
    normality: Normality,
    calibration: Calibration,
    /// Labels of the parts that are wildly different; they are no longer in `parts`.
    left_out: Vec<String>,
}

/// Held-out calibration first, without parts that are wildly different, then the fit on all that remain.
fn fit_model(
    mut features: Features,
    parts: &mut Vec<Part>,
    mask: Option<&[u8]>,
    rate: f64,
    seed: u64,
) -> Result<Fitted> {
    let mut scores = held_out_scores(&features, mask, parts, seed)?;
    let strange = wildly_different(&scores, parts);
    let mut left_out = Vec::new();
    if !strange.is_empty() {
        let middle = median(&gate_scores(&scores, parts));
        for (part, score) in parts.iter().zip(&scores).filter(|(p, _)| p.at_gate && strange.contains(&p.group)) {
            tracing::warn!(
                "good part {} is wildly different from the others (score {score:.1}, median {middle:.1}): it is left out",
                part.label
            );
            left_out.push(part.label.clone());
        }
        let mut keep = parts.iter().map(|p| !strange.contains(&p.group));
        features.parts.retain(|_| keep.next().unwrap_or(true));
        parts.retain(|p| !strange.contains(&p.group));
        check_count(parts)?;
        scores = held_out_scores(&features, mask, parts, seed)?;
    }
    let scores = gate_scores(&scores, parts);
    let n = scores.len();
    let method = format!(
        "{} contiguous folds of {n} good parts, refitted without the fold; Student t prediction tail",
        FOLDS.min(n)
    );
    let calibration = Calibration::new(scores, rate, method)?;
    let normality = fit::fit(&features, &(0..parts.len()).collect::<Vec<_>>(), seed);
    normality.validate()?;
    Ok(Fitted { normality, calibration, left_out })
}

fn check_count(parts: &[Part]) -> Result<()> {
    let n = parts.iter().filter(|p| p.at_gate).count();
    if n < MIN_PARTS { Err(too_few(n)) } else { Ok(()) }
}

/// What [`calibrate`] did.
#[derive(Debug, Clone, Serialize)]
pub struct Recalibrated {
    pub name: String,
    pub version: String,
    pub parts: usize,
    pub left_out: Vec<String>,
    pub device: String,
    pub precision: Precision,
    /// True when device or precision changed, so that the normality model was fitted anew.
    pub fitted_anew: bool,
    pub threshold_before: f32,
    pub threshold: f32,
}

/// Calibrates a model for a device and precision with good parts. On the device and precision that it was taught with, the
/// threshold is set from the parts' scores, so they should not be the taught ones. On others features differ, and the
/// normality model is fitted anew from these parts; locating, registration, mask and reference picture stay.
pub fn calibrate(
    model: &mut Model,
    good: &[Source],
    device: &Device,
    precision: Precision,
    allow_fallback: bool,
    rate: f64,
    progress: Progress<'_>,
) -> Result<Recalibrated> {
    let mut backbone = Backbone::compile(&BackboneOptions {
        backbone: model.backbone.id.clone(),
        input: model.preparation.input,
        device: device.clone(),
        precision,
        allow_fallback,
        throughput: true,
    })?;
    let mut parts = parts::collect(good, model.trigger, model.roi, model.locator.as_ref(), progress)?.parts;
    check_count(&parts)?;
    for part in &mut parts {
        part.crop = model.crop_of(part.crop);
    }
    let fitted_anew = backbone.device() != model.device || precision != model.precision;
    if !fitted_anew {
        // the views beside the gate serve the fit only
        parts.retain(|p| p.at_gate);
    }
    let (mut parts, mut left_out) = pose::without_doubt(&model.preparation, parts)?;
    check_count(&parts)?;
    let features = extract(&mut backbone, &model.preparation, &parts, progress)?;
    progress("fit", 0, None);
    let threshold_before = model.threshold();
    if fitted_anew {
        let fitted = fit_model(features, &mut parts, model.mask.as_deref(), rate, model.seed)?;
        (model.normality, model.calibration) = (fitted.normality, fitted.calibration);
        left_out.extend(fitted.left_out);
        (model.device, model.precision) = (backbone.device().to_owned(), precision);
    } else {
        let mut head = Head::new(features.grid);
        let scores = features
            .parts
            .iter()
            .map(|f| head.map(&model.normality, f, model.mask.as_deref()).map(|m| m.max()))
            .collect::<Result<Vec<f32>>>()?;
        let method = format!("scores of {} good parts given to calibrate; Student t prediction tail", scores.len());
        let calibration = Calibration::new(scores, rate, method)?;
        let before = &model.calibration;
        // parts that a model was fitted on score far below parts that it has not seen: a threshold from them would
        // reject everything
        if calibration.mean < before.mean - TAUGHT_DEVIATIONS * before.deviation {
            return Err(Error::usage(format!(
                "the good parts given to calibrate score {:.2} on average, parts that were not taught scored {:.2}",
                calibration.mean, before.mean
            ))
            .hint("these look like the parts that the model was taught with; give parts that it has not seen, or teach again"));
        }
        model.calibration = calibration;
    }
    model.reference = reference_parts(model, &mut backbone, &parts)?;
    model.version =
        model.version.parse::<u64>().map_or_else(|_| format!("{}+1", model.version), |v| (v + 1).to_string());
    model.created = Timestamp::now();
    Ok(Recalibrated {
        name: model.name.clone(),
        version: model.version.clone(),
        parts: model.calibration.scores.len(),
        left_out,
        device: model.device.clone(),
        precision,
        fitted_anew,
        threshold_before,
        threshold: model.threshold(),
    })
}

/// Input of about the variant's area with the parts' aspect, in multiples of the network's deepest stride.
fn input_size(parts: &[Part], variant: Variant) -> Size {
    let median = |f: &dyn Fn(&Crop) -> u32| {
        let mut v: Vec<u32> = parts.iter().map(|p| f(&p.crop)).collect();
        v.sort_unstable();
        f64::from(v[v.len() / 2].max(1))
    };
    size_for(median(&|c| c.width) / median(&|c| c.height), variant)
}

/// Input of about the variant's area with this aspect.
fn size_for(aspect: f64, variant: Variant) -> Size {
    let aspect = aspect.clamp(0.125, 8.0);
    let m = f64::from(backbone::INPUT_MULTIPLE);
    let side = |length: f64| ((length / m).round().max(2.0) * m) as u32;
    Size { width: side(variant.side() * aspect.sqrt()), height: side(variant.side() / aspect.sqrt()) }
}

/// Runs the network over all parts, several in flight.
fn extract(backbone: &mut Backbone, p: &Preparation, parts: &[Part], progress: Progress<'_>) -> Result<Features> {
    let mut preparer = Preparer::new(p)?;
    let mut free = (0..backbone.pool_size()).map(|_| backbone.request()).collect::<Result<Vec<_>>>()?;
    let mut running = VecDeque::new();
    let mut out = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let mut request = match free.pop() {
            Some(r) => r,
            None => {
                let mut r: backbone::Request =
                    running.pop_front().ok_or_else(|| Error::failed("the device offers no inference request"))?;
                out.push(r.wait()?.to_vec());
                r
            }
        };
        preparer.prepare(p, &part.frame, part.crop, request.input()?)?;
        request.start()?;
        running.push_back(request);
        progress("features", i as u64 + 1, Some(parts.len() as u64));
    }
    for mut r in running {
        out.push(r.wait()?.to_vec());
    }
    Ok(Features { grid: backbone.grid(), channels: backbone.channels(), parts: out })
}

/// Held-out scores in the order of the parts.
fn held_out_scores(features: &Features, mask: Option<&[u8]>, parts: &[Part], seed: u64) -> Result<Vec<f32>> {
    let groups: Vec<usize> = parts.iter().map(|p| p.group).collect();
    let distances = fit::held_out(features, &fit::folds(&groups, FOLDS), seed);
    let mut head = Head::new(features.grid);
    distances.iter().map(|d| head.smooth(d, mask).map(|m| m.max())).collect()
}

fn gate_scores(scores: &[f32], parts: &[Part]) -> Vec<f32> {
    scores.iter().zip(parts).filter(|(_, p)| p.at_gate).map(|(s, _)| *s).collect()
}

/// Groups whose held-out score is far from all others'.
fn wildly_different(scores: &[f32], parts: &[Part]) -> Vec<usize> {
    let at_gate = gate_scores(scores, parts);
    let middle = median(&at_gate);
    let spread = 1.4826 * median(&at_gate.iter().map(|s| (s - middle).abs()).collect::<Vec<_>>());
    let limit = (middle + OUTLIER_DEVIATIONS * spread).max(OUTLIER_RATIO * middle);
    scores.iter().zip(parts).filter(|(s, p)| p.at_gate && **s > limit).map(|(_, p)| p.group).collect()
}

fn median(values: &[f32]) -> f32 {
    let mut v = values.to_vec();
    v.sort_by(f32::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or_default()
}

/// A few taught parts with the scores that the finished model gives them.
fn reference_parts(model: &Model, backbone: &mut Backbone, parts: &[Part]) -> Result<Vec<(Vec<u8>, f32)>> {
    let kept: Vec<&Part> = parts.iter().filter(|p| p.at_gate).collect();
    let mut preparer = Preparer::new(&model.preparation)?;
    let mut request = backbone.request()?;
    let mut head = Head::new(model.normality.grid);
    let step = (kept.len() / REFERENCE_PARTS).max(1);
    kept.iter()
        .step_by(step)
        .take(REFERENCE_PARTS)
        .map(|part| {
            let pixels = request.input()?;
            preparer.prepare(&model.preparation, &part.frame, part.crop, pixels)?;
            let pixels = pixels.to_vec();
            request.start()?;
            let map = head.map(&model.normality, request.wait()?, model.mask.as_deref())?;
            Ok((pixels, map.max()))
        })
        .collect()
}

/// The user's mask at the map's size; `judged` is the width and height of what is judged, in source pixels.
fn load_mask(path: &std::path::Path, judged: [u32; 2], size: Size) -> Result<Vec<u8>> {
    let name = path.display();
    let bytes = std::fs::read(path)
        .usage(|| format!("mask \"{name}\" cannot be read"))
        .map_err(|e| e.hint("--mask names a PNG: white where parts are judged, black where they are not"))?;
    let image = image::load_from_memory(&bytes)
        .usage(|| format!("mask \"{name}\" is not a picture"))
        .map_err(|e| e.hint("give a PNG: white where parts are judged, black where they are not"))?;
    let [width, height] = judged;
    let (have, want) = (f64::from(image.width()) / f64::from(image.height()), f64::from(width) / f64::from(height));
    if (have / want - 1.0).abs() > 0.05 {
        return Err(Error::usage(format!(
            "mask \"{name}\" is {}x{}, the judged area is {width}x{height}",
            image.width(),
            image.height()
        ))
        .hint(format!(
            "the mask must have the shape of the judged area: {width}x{height}, or {}x{} as in a package",
            size.width, size.height
        )));
    }
    let mask = image
        .resize_exact(size.width, size.height, image::imageops::FilterType::Triangle)
        .into_luma8()
        .into_raw()
        .into_iter()
        .map(|v| if v >= 128 { 255 } else { 0 })
        .collect::<Vec<u8>>();
    if mask.iter().all(|&v| v == 0) {
        return Err(Error::usage(format!("mask \"{name}\" is black everywhere: nothing would be judged"))
            .hint("white marks what is judged"));
    }
    Ok(mask)
}
