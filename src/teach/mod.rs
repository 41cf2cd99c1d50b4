//! Teach: good parts in, a calibrated model out. No defects are needed.
//!
//! Recording or images -> parts (whole frames, or located and followed over the belt) -> reference picture and registration
//! -> choice of method and input size -> features -> detector, 5-fold held-out scores -> threshold for the wanted
//! false-reject rate.

mod calibrate;
mod choose;
mod coreset;
mod features;
mod gaussian;
mod mask;
mod parts;
mod pose;
mod recipe;
mod reference;
mod select;
mod synth;

pub use calibrate::{Recalibrated, calibrate};
pub use choose::Candidate;
pub use coreset::bank as memory_bank;
pub use features::Features;

use crate::capture::Source;
use crate::detect::backbone::{self, Backbone, Options as BackboneOptions};
use crate::detect::head::map_size;
use crate::detect::{Device, Hint, Precision};
use crate::error::Result;
use crate::judge::calibration::{Basis, MIN_PARTS, too_few};
use crate::model::{BackboneId, Method, Model, Trigger};
use crate::prepare::shrink::{Crop, Size};
use crate::prepare::{Registration, Roi};
use calibrate::Fitted;
use features::extract;
use jiff::Timestamp;
use parts::Part;
use pose::Posed;
use select::Chosen;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Instant;

/// Cut from each side of a located part, as a fraction of its size: registration leaves up to two pixels, which would let
/// a sliver of belt in.
const PRESENCE_INSET: f32 = 14.0 / 420.0;
/// Largest shift that registration may apply, as a fraction of the crop's size.
const MAX_SHIFT: f32 = 24.0 / 420.0;

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
    let sides = select::candidate_sides(&parts, options);
    let largest = sides.last().copied().unwrap_or(options.variant.side());
    let mut posed = Posed::find(&mut parts, options, largest)?;
    let judged = mask::Judged::new(options, &posed, &parts)?;
    next(&mut stages.reference);

    let compiled = BackboneOptions {
        backbone: backbone::DEFAULT_BACKBONE.into(),
        input: posed.preparation.input,
        device: options.device.clone(),
        precision: options.precision,
        allow_fallback: options.allow_fallback,
        hint: Hint::Throughput,
        streams: None,
    };
    let Chosen { recipe, side, why, candidates } =
        select::choose(options, &parts, &sides, &posed, &judged, &compiled, progress)?;
    if side != largest {
        posed = posed.at(&parts, side)?;
    }
    posed.preparation.light = recipe.light;
    next(&mut stages.choice);

    let input = posed.preparation.input;
    let mut backbone = Backbone::compile(&BackboneOptions { input, ..compiled })?;
    let mask = judged.at(map_size(backbone.grid()), &posed)?;
    let features = extract(&mut backbone, &posed.preparation, &parts, progress)?;
    next(&mut stages.features);

    progress("fit", 0, None);
    let Fitted { detector, calibration, left_out: strange } =
        calibrate::fit_model(features, &recipe, &mut parts, mask.as_deref(), options.false_reject_rate, options.seed)?;
    posed.left_out.extend(strange);
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
        preparation: posed.preparation,
        detector,
        calibration,
        mask,
        mm_per_pixel: options.mm_per_pixel,
        reference: Vec::new(),
        sha256: String::new(),
    };
    model.reference = calibrate::reference_parts(&model, &mut backbone, &parts)?;
    model.teach_s = start.elapsed().as_secs_f64();
    let warnings = calibrate::warnings(&model.calibration);
    let c = &model.calibration;
    let report = Report {
        name: model.name.clone(),
        parts: c.scores.len(),
        left_out: posed.left_out,
        trigger: options.trigger,
        method: recipe.method,
        differing: recipe.differing,
        why,
        warnings,
        candidates,
        likeness: posed.likeness,
        registration: model.preparation.registration,
        registration_why: posed.why,
        spread_before: posed.spread[0],
        spread_after: posed.spread[1],
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

fn check_count(parts: &[Part]) -> Result<()> {
    let n = parts.iter().filter(|p| p.at_gate).count();
    if n < MIN_PARTS { Err(too_few(n)) } else { Ok(()) }
}

/// Aspect of the parts as they were found, width over height.
fn aspect_of(parts: &[Part]) -> f64 {
    let median = |f: &dyn Fn(&Crop) -> u32| {
        let mut v: Vec<u32> = parts.iter().map(|p| f(&p.crop)).collect();
        v.sort_unstable();
        f64::from(v[v.len() / 2].max(1))
    };
    median(&|c| c.width) / median(&|c| c.height)
}

/// Input of about the area of a square of this side, with this aspect, in multiples of the network's deepest stride.
fn size_for(aspect: f64, area_side: f64) -> Size {
    let aspect = aspect.clamp(0.125, 8.0);
    let m = f64::from(backbone::INPUT_MULTIPLE);
    let side = |length: f64| ((length / m).round().max(2.0) * m) as u32;
    Size { width: side(area_side * aspect.sqrt()), height: side(area_side / aspect.sqrt()) }
}
