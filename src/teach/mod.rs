//! Teach: good parts in, a calibrated model out. No defects are needed.
//!
//! Recording or images -> parts (whole frames, or located and followed over the belt) -> reference picture and registration
//! -> choice of method and input size -> features -> detector, 5-fold held-out scores -> threshold for the wanted
//! false-reject rate.

mod choose;
mod coreset;
mod features;
mod gaussian;
mod parts;
mod recipe;
mod reference;
mod synth;

pub use choose::Candidate;

use crate::capture::Source;
use crate::detect::backbone::{self, Backbone, Options as BackboneOptions};
use crate::detect::head::map_size;
use crate::detect::{Detector, Device, Head, Precision};
use crate::error::{Context, Error, Result};
use crate::judge::Calibration;
use crate::judge::calibration::{Basis, MIN_PARTS, too_few};
use crate::model::{BackboneId, Method, Model, Trigger};
use crate::prepare::light::Light;
use crate::prepare::shrink::{Crop, Size};
use crate::prepare::{Preparation, Preparer, Registration, Roi};
use choose::{Limits, Pictures, Setting};
use features::{Features, extract, folds};
use jiff::Timestamp;
use parts::Part;
use rayon::prelude::*;
use recipe::Recipe;
use serde::{Deserialize, Serialize};
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
/// Parts whose median correlation with the reference is below this each differ.
const ALIKE: f32 = 0.75;
/// Between this and [`ALIKE`] both forms of the methods are tried.
const SURELY_ALIKE: f32 = 0.9;
/// Side of the largest input, tried for parts that have the detail.
const MORE_SIDE: f64 = 384.0;
/// Fewer good parts than this are taught with a warning.
const FEW: usize = 15;
/// Fewest parts from which a method can be chosen.
const MIN_CHOICE: usize = 12;
/// Taught parts kept in the package for the parity check.
const REFERENCE_PARTS: usize = 4;

/// How registration is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationChoice {
    /// `shift` if it brings the good parts measurably closer to each other, else `none`.
    Auto,
    None,
    Shift,
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
    pub registration: RegistrationChoice,
    pub method: Method,
    /// Milliseconds that network and head may take for a picture on one core; the best method within it is chosen whatever
    /// the variant.
    pub budget_ms: Option<f64>,
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
    pub method: Method,
    /// Uses the form for parts that each differ.
    pub differing: bool,
    /// Why this method and input.
    pub why: String,
    /// What a person should know before trusting the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The candidates that were tried, with `--method auto`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// Median correlation of the parts with the reference picture, -1..1.
    pub likeness: f32,
    pub registration: Registration,
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
    /// What the guarantee leans on.
    pub basis: Basis,
    pub parts_for_guarantee: u64,
    pub stages_s: StageSeconds,
    pub teach_s: f64,
}

/// Wall seconds of the stages of teaching.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StageSeconds {
    pub collect: f64,
    pub reference: f64,
    pub choice: f64,
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
    let sides = candidate_sides(&parts, options);
    let largest = sides.last().copied().unwrap_or(options.variant.side());
    let first = reference::build(&parts, input_size(&parts, largest), options.registration, MAX_SHIFT)?;
    let mask = options.mask.as_deref().map(|p| load_mask(p, parts[0].crop)).transpose()?;
    next(&mut stages.reference);

    let compiled = BackboneOptions {
        backbone: backbone::DEFAULT_BACKBONE.into(),
        input: input_size(&parts, largest),
        device: options.device.clone(),
        precision: options.precision,
        allow_fallback: options.allow_fallback,
        throughput: true,
    };
    let Chosen { recipe, input, why, candidates } =
        choose(options, &parts, &sides, &first, mask.as_ref(), &compiled, progress)?;
    next(&mut stages.choice);

    let built = if input == first.picture.size {
        first
    } else {
        let fixed = match first.registration {
            Registration::None => RegistrationChoice::None,
            Registration::Shift => RegistrationChoice::Shift,
        };
        reference::build(&parts, input, fixed, MAX_SHIFT)?
    };
    let preparation = Preparation {
        input,
        registration: built.registration,
        light: recipe.light,
        max_shift: MAX_SHIFT,
        reference: built.picture,
    };
    let mut backbone = Backbone::compile(&BackboneOptions { input, ..compiled })?;
    let mask = mask.map(|m| mask_at(&m, map_size(backbone.grid()))).transpose()?;
    let features = extract(&mut backbone, &preparation, &parts, progress)?;
    next(&mut stages.features);

    progress("fit", 0, None);
    let Fitted { detector, calibration, left_out } =
        fit_model(features, &recipe, &mut parts, mask.as_deref(), options.false_reject_rate, options.seed)?;
    next(&mut stages.fit);

    let mut model = Model {
        name: options.name.clone(),
        version: "1".into(),
        created: Timestamp::now(),
        method: recipe.method,
        differing: recipe.differing,
        seed: options.seed,
        teach_s: 0.0,
        precision: options.precision,
        device: backbone.device().to_owned(),
        backbone: BackboneId {
            id: backbone::DEFAULT_BACKBONE.into(),
            sha256: backbone::checksum(backbone::DEFAULT_BACKBONE, options.precision)?,
        },
        trigger: options.trigger,
        roi: options.roi,
        locator,
        inset,
        preparation,
        detector,
        calibration,
        mask,
        reference: Vec::new(),
        sha256: String::new(),
    };
    model.reference = reference_parts(&model, &mut backbone, &parts)?;
    model.teach_s = start.elapsed().as_secs_f64();
    let warnings = warnings(&model.calibration);
    let c = &model.calibration;
    let report = Report {
        name: model.name.clone(),
        parts: c.scores.len(),
        left_out,
        trigger: options.trigger,
        method: recipe.method,
        differing: recipe.differing,
        why,
        warnings,
        candidates,
        likeness: built.likeness,
        registration: model.preparation.registration,
        spread_before: built.spread_before,
        spread_after: built.spread_after,
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
        basis: c.basis,
        parts_for_guarantee: c.parts_for_guarantee,
        stages_s: stages,
        teach_s: model.teach_s,
    };
    Ok((model, report))
}

/// What is fitted to features.
struct Fitted {
    detector: Detector,
    calibration: Calibration,
    /// Labels of the parts that are wildly different; they are no longer in `parts`.
    left_out: Vec<String>,
}

/// The method to fit, and how it was found.
struct Chosen {
    recipe: Recipe,
    input: Size,
    why: String,
    candidates: Vec<Candidate>,
}

/// Sides of the square inputs that are tried, ascending; the last is the largest.
fn candidate_sides(parts: &[Part], options: &Options) -> Vec<f64> {
    if options.method != Method::Auto && options.budget_ms.is_none() {
        return vec![options.variant.side()];
    }
    let mut sides: Vec<f64> = [Variant::Fast, Variant::Balanced, Variant::Accurate].map(Variant::side).into();
    let area = |c: &Crop| f64::from(c.width) * f64::from(c.height);
    let detailed = parts.iter().all(|p| area(&p.crop).sqrt() >= MORE_SIDE);
    if detailed && (options.variant == Variant::Accurate || options.budget_ms.is_some()) {
        sides.push(MORE_SIDE);
    }
    sides
}

/// Chooses among the methods that are allowed.
fn choose(
    options: &Options,
    parts: &[Part],
    sides: &[f64],
    built: &reference::Built,
    mask: Option<&image::GrayImage>,
    compiled: &BackboneOptions,
    progress: Progress<'_>,
) -> Result<Chosen> {
    let at_gate: Vec<&Part> = parts.iter().filter(|p| p.at_gate).collect();
    let differing = built.likeness < ALIKE;
    let alike = if differing { "each differ" } else { "look alike" };
    let cap = input_size(parts, options.variant.side());
    let measured = options.method == Method::Auto || options.budget_ms.is_some();
    if !measured || at_gate.len() < MIN_CHOICE {
        let method = match (options.method, differing) {
            (Method::Auto, false) => Method::Ppca,
            (Method::Auto, true) => Method::MeanZ,
            (forced, _) => forced,
        };
        let why = if measured {
            format!("{} parts are too few to choose from; they {alike}", at_gate.len())
        } else {
            format!("asked for; the parts {alike}")
        };
        return Ok(Chosen { recipe: Recipe::of(method, differing), input: cap, why, candidates: Vec::new() });
    }
    let forms: &[bool] = match built.likeness {
        l if l < SURELY_ALIKE => &[false, true],
        _ => &[false],
    };
    let methods = match options.method {
        Method::Auto => vec![Method::Ppca, Method::Patchcore, Method::MeanZ],
        forced => vec![forced],
    };
    let recipes: Vec<Recipe> = forms.iter().flat_map(|&d| methods.iter().map(move |&m| Recipe::of(m, d))).collect();
    let step = at_gate.len().div_ceil(choose::MAX_PARTS);
    let seen: Vec<&Part> = at_gate.into_iter().step_by(step).collect();
    let preparation = Preparation {
        input: built.picture.size,
        registration: built.registration,
        light: Light::None,
        max_shift: MAX_SHIFT,
        reference: built.picture.clone(),
    };
    let rgb = prepared(&preparation, &seen)?;
    let pictures = Pictures { size: built.picture.size, rgb, groups: seen.iter().map(|p| p.group).collect() };
    let sizes: Vec<Size> = sides.iter().map(|&s| input_size(parts, s)).collect();
    let limits = Limits { area: options.budget_ms.is_none().then_some(cap.area()), ms: options.budget_ms };
    let at_size = |size: Size| mask.and_then(|m| mask_at(m, size).ok());
    let setting = Setting {
        pictures: &pictures,
        sizes: &sizes,
        recipes: &recipes,
        reference: &built.picture,
        mask: &at_size,
        backbone: compiled.clone(),
        seed: options.seed,
    };
    let candidates = choose::compare(&setting, &limits, progress)?;
    let best = choose::pick(&candidates, differing)?;
    let why = format!(
        "{} at {}x{} finds {:.0} % of synthetic defects on held-out parts",
        best.method.as_str(),
        best.input.width,
        best.input.height,
        best.found_mean * 100.0
    );
    Ok(Chosen { recipe: Recipe::of(best.method, best.differing), input: best.input, why, candidates })
}

/// Parts as the network would see them.
fn prepared(p: &Preparation, parts: &[&Part]) -> Result<Vec<Vec<u8>>> {
    parts
        .par_iter()
        .map_init(
            || Preparer::new(p),
            |preparer, part| {
                let mut rgb = vec![0; p.input.area() * 3];
                match preparer {
                    Ok(preparer) => preparer.prepare(p, &part.frame, part.crop, &mut rgb)?,
                    Err(_) => Preparer::new(p)?.prepare(p, &part.frame, part.crop, &mut rgb)?,
                };
                Ok(rgb)
            },
        )
        .collect()
}

/// Held-out calibration first, without parts that are wildly different, then the fit on all that remain.
fn fit_model(
    mut features: Features,
    recipe: &Recipe,
    parts: &mut Vec<Part>,
    mask: Option<&[u8]>,
    rate: f64,
    seed: u64,
) -> Result<Fitted> {
    let fit = |features: &Features, parts: &[Part]| {
        let groups: Vec<usize> = parts.iter().map(|p| p.group).collect();
        let counted: Vec<bool> = parts.iter().map(|p| p.at_gate).collect();
        recipe::fit(features, recipe, &folds(&groups, FOLDS), &counted, mask, seed)
    };
    let mut fitted = fit(&features, parts)?;
    let strange = wildly_different(&fitted.scores, parts);
    let mut left_out = Vec::new();
    if !strange.is_empty() {
        let middle = median(&gate_scores(&fitted.scores, parts));
        for (part, score) in parts.iter().zip(&fitted.scores).filter(|(p, _)| p.at_gate && strange.contains(&p.group)) {
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
        fitted = fit(&features, parts)?;
    }
    let scores = gate_scores(&fitted.scores, parts);
    let n = scores.len();
    let method = format!(
        "{} contiguous folds of {n} good parts, refitted without the fold; Student t prediction tail",
        FOLDS.min(n)
    );
    let basis = Basis::CrossValidated { folds: FOLDS.min(n) as u64 };
    let calibration = Calibration::new(scores, rate, basis, method)?;
    Ok(Fitted { detector: fitted.detector, calibration, left_out })
}

/// What so few parts cannot tell.
fn warnings(c: &Calibration) -> Vec<String> {
    let n = c.scores.len();
    let mut out = Vec::new();
    if n < FEW {
        out.push(format!(
            "only {n} good parts: the threshold leans on the fitted tail and what varies among good parts is hardly known; expect false rejects, and teach again with 30 or more"
        ));
    }
    let above = n - c.scores.partition_point(|&s| s <= c.threshold);
    if above as f64 / n as f64 > 5.0 * c.wanted_false_reject_rate && above > 1 {
        out.push(format!(
            "{above} of {n} held-out good parts score above the threshold: their scores have a heavier tail than the fitted one"
        ));
    }
    out
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
    let features = extract(&mut backbone, &model.preparation, &parts, progress)?;
    progress("fit", 0, None);
    let threshold_before = model.threshold();
    let mut left_out = Vec::new();
    if fitted_anew {
        let recipe = Recipe::of(model.method, model.differing);
        let fitted = fit_model(features, &recipe, &mut parts, model.mask.as_deref(), rate, model.seed)?;
        (model.detector, model.calibration, left_out) = (fitted.detector, fitted.calibration, fitted.left_out);
        (model.device, model.precision) = (backbone.device().to_owned(), precision);
        model.backbone.sha256 = backbone::checksum(&model.backbone.id, precision)?;
    } else {
        let mut head = Head::new();
        let scores = features
            .parts
            .iter()
            .map(|f| head.score(&model.detector, f, model.mask.as_deref()).map(|s| s.score))
            .collect::<Result<Vec<f32>>>()?;
        let method = format!("scores of {} good parts given to calibrate; Student t prediction tail", scores.len());
        let calibration = Calibration::new(scores, rate, Basis::Split, method)?;
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
    model.next_version();
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

/// Input of about the area of a square of this side, with the parts' aspect, in multiples of the network's deepest stride.
fn input_size(parts: &[Part], area_side: f64) -> Size {
    let median = |f: &dyn Fn(&Crop) -> u32| {
        let mut v: Vec<u32> = parts.iter().map(|p| f(&p.crop)).collect();
        v.sort_unstable();
        f64::from(v[v.len() / 2].max(1))
    };
    let aspect = (median(&|c| c.width) / median(&|c| c.height)).clamp(0.125, 8.0);
    let m = f64::from(backbone::INPUT_MULTIPLE);
    let side = |length: f64| ((length / m).round().max(2.0) * m) as u32;
    Size { width: side(area_side * aspect.sqrt()), height: side(area_side / aspect.sqrt()) }
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
    let mut head = Head::new();
    let step = (kept.len() / REFERENCE_PARTS).max(1);
    kept.iter()
        .step_by(step)
        .take(REFERENCE_PARTS)
        .map(|part| {
            let pixels = request.input()?;
            preparer.prepare(&model.preparation, &part.frame, part.crop, pixels)?;
            let pixels = pixels.to_vec();
            request.start()?;
            let scored = head.score(&model.detector, request.wait()?, model.mask.as_deref())?;
            Ok((pixels, scored.score))
        })
        .collect()
}

/// The user's mask, in the shape of the judged area `crop`.
fn load_mask(path: &std::path::Path, crop: Crop) -> Result<image::GrayImage> {
    let name = path.display();
    let bytes = std::fs::read(path)
        .usage(|| format!("mask \"{name}\" cannot be read"))
        .map_err(|e| e.hint("--mask names a PNG: white where parts are judged, black where they are not"))?;
    let image = image::load_from_memory(&bytes)
        .usage(|| format!("mask \"{name}\" is not a picture"))
        .map_err(|e| e.hint("give a PNG: white where parts are judged, black where they are not"))?;
    let (have, want) =
        (f64::from(image.width()) / f64::from(image.height()), f64::from(crop.width) / f64::from(crop.height));
    if (have / want - 1.0).abs() > 0.05 {
        return Err(Error::usage(format!(
            "mask \"{name}\" is {}x{}, the judged area is {}x{}",
            image.width(),
            image.height(),
            crop.width,
            crop.height
        ))
        .hint("the mask must have the shape of the judged area"));
    }
    let gray = image.into_luma8();
    if gray.pixels().all(|p| p.0[0] < 128) {
        return Err(Error::usage(format!("mask \"{name}\" is black everywhere: nothing would be judged"))
            .hint("white marks what is judged"));
    }
    Ok(gray)
}

/// The mask at a map's size: 255 or 0.
fn mask_at(mask: &image::GrayImage, size: Size) -> Result<Vec<u8>> {
    let small = image::imageops::resize(mask, size.width, size.height, image::imageops::FilterType::Triangle);
    let out: Vec<u8> = small.into_raw().into_iter().map(|v| if v >= 128 { 255 } else { 0 }).collect();
    if out.iter().all(|&v| v == 0) {
        return Err(Error::usage("the mask leaves nothing at the anomaly map's size: nothing would be judged")
            .hint("white marks what is judged; white areas must be several pixels wide"));
    }
    Ok(out)
}
