//! Fitting with held-out calibration, and calibrating a model anew: for another device or precision, or for a new threshold.

use super::features::{Features, extract, folds};
use super::parts::{self, Part};
use super::recipe::{self, Recipe};
use super::{Progress, check_count, pose};
use crate::capture::Source;
use crate::detect::backbone::{self, Backbone, Options as BackboneOptions};
use crate::detect::{Detector, Device, Head, Hint, Precision};
use crate::error::{Error, Result};
use crate::judge::Calibration;
use crate::judge::calibration::Basis;
use crate::model::Model;
use crate::prepare::Preparer;
use serde::Serialize;

/// Folds of the held-out calibration.
const FOLDS: usize = 5;
/// A held-out score this many robust deviations above the median marks a part that is not like the others ...
const OUTLIER_DEVIATIONS: f32 = 10.0;
/// ... if it is also this many times the median.
const OUTLIER_RATIO: f32 = 1.6;
/// Parts given to calibrate whose mean score is this many deviations below the held-out mean were taught.
const TAUGHT_DEVIATIONS: f64 = 1.5;
/// Taught parts kept in the package for the parity check.
const REFERENCE_PARTS: usize = 4;
/// Fewer good parts than this are taught with a warning.
const FEW: usize = 15;

/// What is fitted to features.
pub(super) struct Fitted {
    pub detector: Detector,
    pub calibration: Calibration,
    /// Labels of the parts that are wildly different; they are no longer in `parts`.
    pub left_out: Vec<String>,
}

/// Held-out calibration first, without parts that are wildly different, then the fit on all that remain.
pub(super) fn fit_model(
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
pub(super) fn warnings(c: &Calibration) -> Vec<String> {
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
        hint: Hint::Throughput,
        streams: None,
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
    // what people did to the threshold stays on record
    let changes = std::mem::take(&mut model.calibration.changes);
    if fitted_anew {
        let recipe = Recipe::of(model.method, model.differing);
        let fitted = fit_model(features, &recipe, &mut parts, model.mask.as_deref(), rate, model.seed)?;
        (model.detector, model.calibration) = (fitted.detector, fitted.calibration);
        left_out.extend(fitted.left_out);
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
    model.calibration.changes = changes;
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
pub(super) fn reference_parts(model: &Model, backbone: &mut Backbone, parts: &[Part]) -> Result<Vec<(Vec<u8>, f32)>> {
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
