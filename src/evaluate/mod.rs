//! Evaluate: how well a model tells good parts from defective ones, on parts whose truth is known.
//!
//! Every image goes the way of an inspection, [`line::run`]; only what is done with the verdicts differs. A data set in MVTec
//! AD layout ([`dataset`]) gives image and pixel metrics, a recording with a truth file image metrics. Definitions are in
//! [`metrics`] and [`pixels`] and, with their sources, in docs/design/evaluate.md; [`report`] makes one HTML file of it all.
//!
//! Invariants:
//! 1. Scores and verdicts are those of `inspect` (test `tests/evaluate.rs::scores_are_those_of_inspect`).
//! 2. Memory is bounded by [`MAPS_WAITING`] small maps and the bins of [`pixels`], however many images there are.

pub mod dataset;
pub mod gallery;
pub mod metrics;
pub mod pixels;
mod plot;
pub mod report;

use crate::capture::Source;
use crate::detect::Backbone;
use crate::error::{Error, Result};
use crate::event::Verdict;
use crate::judge::place::PlacedMap;
use crate::judge::truth::{Counts, Truth};
use crate::line::{self, Judged, Latency, Line, Stages, Totals};
use crate::model::Model;
use crate::prepare::shrink::Size;
use dataset::{Dataset, Sample};
use gallery::{Candidate, Gallery};
use metrics::Ranking;
use pixels::{Mask, PRO_LIMIT, PixelRanking};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Maps that wait to be counted into the pixel metrics; counting while the line runs would disturb its times.
const MAPS_WAITING: usize = 256;

/// Parts with known truth.
pub enum Data {
    /// A folder in MVTec AD layout.
    Images(Dataset),
    /// A recording, and which parts in it are defective.
    Recording { source: Source, truth: Truth },
}

/// The outcome of an evaluation; `evaluate --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// `name@version`.
    pub model: String,
    pub data: String,
    pub device: String,
    pub precision: String,
    pub threshold: f32,
    /// Images, or parts of a recording, that have a score and a truth.
    pub images: usize,
    pub good: usize,
    pub defective: usize,
    pub image_auroc: f64,
    pub average_precision: f64,
    pub best_f1: f64,
    pub best_f1_threshold: f32,
    pub at_threshold: AtThreshold,
    /// `null` without masks.
    pub pixel_auroc: Option<f64>,
    /// Up to a false-positive rate of [`PRO_LIMIT`]; `null` without masks.
    pub aupro: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels: Option<PixelBasis>,
    /// Wall seconds that teaching the model took; `null` where the package does not say.
    pub teach_s: Option<f64>,
    /// Wall time of reading, decoding and judging, for each image or frame.
    pub ms_per_image: f64,
    pub latency_ms: Latency,
    pub stages_ms: Stages,
    /// In the order of the data set's folders, or of the labels' first appearance in the truth.
    pub per_defect: Vec<PerDefect>,
    pub notes: Vec<String>,
    pub scores: Vec<Scored>,
}

/// Verdicts as an inspection gives them: reject, unsure and missed are positive.
#[derive(Debug, Clone, Serialize)]
pub struct AtThreshold {
    #[serde(flatten)]
    pub counts: Counts,
    /// Exact 95 % intervals of recall and false-positive rate.
    pub recall_95: [f64; 2],
    pub fpr_95: [f64; 2],
    /// Positive for another reason than the score.
    pub unsure: usize,
}

/// What the pixel metrics are based on.
#[derive(Debug, Clone, Serialize)]
pub struct PixelBasis {
    pub images: usize,
    pub regions: u64,
    /// The most by which binning can have changed the pixel AUROC.
    pub auroc_error: f64,
}

/// One kind of defect against all good parts.
#[derive(Debug, Clone, Serialize)]
pub struct PerDefect {
    pub label: String,
    pub images: usize,
    pub auroc: f64,
    /// Share that is not passed at the threshold.
    pub recall: f64,
    pub missed: usize,
    pub lowest_score: f32,
}

/// One image or part.
#[derive(Debug, Clone, Serialize)]
pub struct Scored {
    /// Relative to the data set; of a recording, its name.
    pub file: String,
    /// Number of the part in a recording, as `inspect` counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<u64>,
    pub label: String,
    pub defective: bool,
    pub score: f32,
    pub verdict: Verdict,
}

/// How to evaluate.
pub struct Options<'a> {
    pub model: &'a Model,
    /// Make pictures of the worst errors.
    pub gallery: bool,
    /// Set to give up.
    pub stop: &'a AtomicBool,
}

/// Evaluates on an armed network. `progress` is called with a stage's name, what is done and what there is to do.
pub fn evaluate(
    options: &Options<'_>,
    backbone: &mut Backbone,
    data: &Data,
    progress: &dyn Fn(&str, u64, Option<u64>),
) -> Result<(Evaluation, Gallery)> {
    match data {
        Data::Images(set) => images(options, backbone, set, progress),
        Data::Recording { source, truth } => recording(options, backbone, source, truth, progress),
    }
}

fn run(
    options: &Options<'_>,
    backbone: &mut Backbone,
    source: &Source,
    on_judged: impl FnMut(Judged) -> Result<()>,
    progress: &dyn Fn(&str, u64, Option<u64>),
) -> Result<Totals> {
    let line = Line {
        name: "evaluate",
        site: "local",
        source,
        realtime: false,
        model: options.model,
        deliver: None,
        stop: options.stop,
        service: None,
    };
    let totals = line::run(&line, backbone, on_judged, |done, of| progress("judge", done, of))?;
    if options.stop.load(Relaxed) {
        return Err(Error::failed("the evaluation was stopped before all parts were judged")
            .hint("a part of the data says nothing about the whole; run it again"));
    }
    Ok(totals)
}

/// A map that is still to be counted.
struct Waiting {
    sample: usize,
    map: PlacedMap,
    size: Size,
}

/// Counts maps against masks, in batches.
struct Counting<'a> {
    set: &'a Dataset,
    waiting: Vec<Waiting>,
    ranking: PixelRanking,
    images: usize,
    /// Time spent, which is not the line's.
    spent: Duration,
}

impl Counting<'_> {
    fn push(&mut self, sample: usize, judged: &Judged) -> Result<()> {
        let of = &self.set.samples[sample];
        // what has no mask and is not good has no truth for its pixels
        if of.label != 0 && of.mask.is_none() {
            return Ok(());
        }
        let size = Size { width: judged.frame.width(), height: judged.frame.height() };
        self.waiting.push(Waiting { sample, map: judged.placed_map(), size });
        if self.waiting.len() >= MAPS_WAITING { self.count(&|_, _, _| ()) } else { Ok(()) }
    }

    fn count(&mut self, progress: &dyn Fn(&str, u64, Option<u64>)) -> Result<()> {
        let start = Instant::now();
        let of = self.waiting.len() as u64;
        for (i, w) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            let mask = mask_of(self.set, w.sample, w.size)?;
            self.ranking.add(&w.map.in_frame(w.size), mask.as_ref())?;
            self.images += 1;
            progress("pixels", i as u64 + 1, Some(of));
        }
        self.spent += start.elapsed();
        Ok(())
    }
}

/// The mask of a sample whose image has `size`.
fn mask_of(set: &Dataset, sample: usize, size: Size) -> Result<Option<Mask>> {
    let sample = &set.samples[sample];
    let Some(path) = &sample.mask else { return Ok(None) };
    let mask = dataset::read_mask(path)?;
    dataset::fits(path, &mask, &sample.path, size)?;
    Ok(Some(mask))
}

fn images(
    options: &Options<'_>,
    backbone: &mut Backbone,
    set: &Dataset,
    progress: &dyn Fn(&str, u64, Option<u64>),
) -> Result<(Evaluation, Gallery)> {
    let files = set.samples.iter().map(|s| s.path.clone()).collect();
    let source = Source::Folder { path: set.dir.join("test"), files };
    let mut scores = Vec::with_capacity(set.samples.len());
    let mut gallery = Gallery::default();
    let mut counting = set.has_masks().then(|| Counting {
        set,
        waiting: Vec::new(),
        ranking: PixelRanking::new(),
        images: 0,
        spent: Duration::ZERO,
    });
    let on_judged = |judged: Judged| {
        let index = scores.len();
        // one frame a file, in the order that was given: else a score would get another image's truth
        let named = |s: &&Sample| s.path.file_name().unwrap_or_default().to_string_lossy() == judged.inspection.source;
        let sample = set.samples.get(index).filter(named);
        let sample = sample.ok_or_else(|| {
            Error::failed(format!("image \"{}\" gave more than one frame", judged.inspection.source))
                .hint("evaluate takes still images; leave animated ones out")
        })?;
        let scored = Scored {
            file: set.name(sample),
            part: None,
            frame: None,
            label: set.labels[sample.label].clone(),
            defective: sample.label != 0,
            score: judged.inspection.score,
            verdict: judged.inspection.verdict,
        };
        if options.gallery {
            let size = Size { width: judged.frame.width(), height: judged.frame.height() };
            let candidate = Candidate { index, scored: &scored, judged: &judged };
            gallery
                .offer(&candidate, || Ok(mask_of(set, index, size)?.map_or_else(Vec::new, |m| m.boxes().to_vec())))?;
        }
        scores.push(scored);
        counting.as_mut().map_or(Ok(()), |c| c.push(index, &judged))
    };
    let totals = run(options, backbone, &source, on_judged, progress)?;
    if scores.len() != set.samples.len() {
        return Err(Error::failed(format!("{} of {} images were judged", scores.len(), set.samples.len()))
            .hint("an image without a picture in it is among them; `linesight inspect` on the folders finds it"));
    }
    let mut spent = Duration::ZERO;
    let mut pixels = None;
    if let Some(mut counting) = counting {
        spent = counting.spent;
        counting.count(progress)?;
        pixels = Some((counting.ranking, counting.images));
    }
    let at = Counts::new(
        count(&scores, true, true),
        count(&scores, false, true),
        count(&scores, true, false),
        count(&scores, false, false),
    );
    let mut notes = set.notes.clone();
    if pixels.is_none() {
        notes.insert(0, "no pixel metrics: there is no mask in ground_truth/<defect>/<image>_mask.png".into());
    }
    let mut e = summary(options.model, set.dir.display().to_string(), &totals, scores, at, notes)?;
    e.ms_per_image = (totals.seconds - spent.as_secs_f64()).max(0.0) * 1e3 / totals.frames.max(1) as f64;
    if let Some((ranking, images)) = pixels {
        (e.pixel_auroc, e.aupro) = (ranking.auroc(), ranking.aupro(PRO_LIMIT));
        let auroc_error = ranking.auroc_error().unwrap_or_default();
        e.pixels = Some(PixelBasis { images, regions: ranking.regions(), auroc_error });
    }
    Ok((e, gallery))
}

/// Images of a kind that were rejected, or passed.
fn count(scores: &[Scored], defective: bool, positive: bool) -> u64 {
    scores.iter().filter(|s| s.defective == defective && s.verdict.is_anomaly() == positive).count() as u64
}

/// Refuses a truth that nothing can be compared with.
pub fn check_truth(truth: &Truth, name: &str) -> Result<()> {
    let defective = truth.parts.iter().filter(|p| p.defective).count();
    let problem = match (truth.parts.len(), defective) {
        (1, _) => "names one part only",
        (_, 0) => "names no defective part",
        (n, d) if n == d => "names no good part",
        _ => return Ok(()),
    };
    Err(Error::usage(format!("truth file \"{name}\" {problem}"))
        .hint("at least one good and one defective part are needed, and a few dozen to say anything"))
}

fn recording(
    options: &Options<'_>,
    backbone: &mut Backbone,
    source: &Source,
    truth: &Truth,
    progress: &dyn Fn(&str, u64, Option<u64>),
) -> Result<(Evaluation, Gallery)> {
    struct Part {
        frame: u64,
        part: u64,
        score: f32,
        verdict: Verdict,
    }
    let mut judged_parts: Vec<Part> = Vec::new();
    let mut gallery = Gallery::default();
    let scored = |p: &Part, i: usize| Scored {
        file: source.name(),
        part: Some(p.part),
        frame: Some(p.frame),
        label: truth.parts[i].label.clone(),
        defective: truth.parts[i].defective,
        score: p.score,
        verdict: p.verdict,
    };
    let on_judged = |judged: Judged| {
        let i = &judged.inspection;
        let part = Part { frame: i.frame, part: i.part, score: i.score, verdict: i.verdict };
        // the final assignment is known at the end only; the part that this one is nearest to is right but for duplicates
        if options.gallery
            && let Some(at) = truth.nearest(i.frame)
        {
            let scored = scored(&part, at);
            let candidate = Candidate { index: judged_parts.len(), scored: &scored, judged: &judged };
            gallery.offer(&candidate, || Ok(Vec::new()))?;
        }
        judged_parts.push(part);
        Ok(())
    };
    let totals = run(options, backbone, source, on_judged, progress)?;
    let comparison = truth.compare(&totals.verdicts);
    let assignment = truth.assign(&judged_parts.iter().map(|p| p.frame).collect::<Vec<_>>());
    gallery.retain(|index| assignment.judged.contains(&Some(index)));
    let scores: Vec<Scored> =
        assignment.judged.iter().enumerate().filter_map(|(i, j)| Some(scored(&judged_parts[(*j)?], i))).collect();
    for (kind, defective) in [("defective", true), ("good", false)] {
        if !scores.iter().any(|s| s.defective == defective) {
            return Err(Error::failed(format!(
                "none of the {kind} parts that the truth names was judged in \"{}\"",
                source.name()
            ))
            .hint("check that the truth belongs to this recording and the model to its parts"));
        }
    }
    let mut notes = vec!["no pixel metrics: a recording's truth does not mark pixels".to_owned()];
    if comparison.unmatched > 0 {
        notes.push(format!(
            "{} parts of the truth were not judged: they count at the threshold, and not where a score is needed",
            comparison.unmatched
        ));
    }
    if comparison.extra > 0 {
        notes.push(format!(
            "{} judged parts belong to no part of the truth: they count as false positives at the threshold",
            comparison.extra
        ));
    }
    if totals.decode_warnings > 0 {
        notes.push(format!("the decoder complained {} times: pictures may be damaged", totals.decode_warnings));
    }
    let e = summary(options.model, source.name(), &totals, scores, comparison.counts, notes)?;
    Ok((e, gallery))
}

/// What both kinds of data have in common.
fn summary(
    model: &Model,
    data: String,
    totals: &Totals,
    scores: Vec<Scored>,
    counts: Counts,
    mut notes: Vec<String>,
) -> Result<Evaluation> {
    let ranking = rank(&scores)?;
    let (best_f1, best_f1_threshold) = ranking.best_f1();
    let unsure = scores.iter().filter(|s| s.verdict == Verdict::Unsure).count();
    if unsure > 0 {
        notes.push(format!("{unsure} parts were judged unsure: they count as positive, whatever their score"));
    }
    Ok(Evaluation {
        model: format!("{}@{}", model.name, model.version),
        data,
        device: totals.device.clone(),
        precision: totals.precision.clone(),
        threshold: model.threshold(),
        images: scores.len(),
        good: ranking.good as usize,
        defective: ranking.defective as usize,
        image_auroc: ranking.auroc(),
        average_precision: ranking.average_precision(),
        best_f1,
        best_f1_threshold,
        at_threshold: AtThreshold {
            counts,
            recall_95: metrics::interval_95(counts.tp, counts.tp + counts.r#fn),
            fpr_95: metrics::interval_95(counts.fp, counts.fp + counts.tn),
            unsure,
        },
        pixel_auroc: None,
        aupro: None,
        pixels: None,
        teach_s: (model.teach_s > 0.0).then_some(model.teach_s),
        ms_per_image: totals.seconds * 1e3 / totals.frames.max(1) as f64,
        latency_ms: totals.latency_ms,
        stages_ms: totals.stages_ms,
        per_defect: per_defect(&scores),
        notes,
        scores,
    })
}

fn rank(scores: &[Scored]) -> Result<Ranking> {
    Ranking::new(scores.iter().map(|s| (s.score, s.defective)))
        .ok_or_else(|| Error::failed("no good or no defective part has a score"))
}

fn per_defect(scores: &[Scored]) -> Vec<PerDefect> {
    let mut labels: Vec<&str> = Vec::new();
    for s in scores.iter().filter(|s| s.defective) {
        if !labels.contains(&s.label.as_str()) {
            labels.push(&s.label);
        }
    }
    let of = |label: &str| {
        let own: Vec<&Scored> = scores.iter().filter(|s| s.defective && s.label == label).collect();
        let against = scores.iter().filter(|s| !s.defective || s.label == label).map(|s| (s.score, s.defective));
        let missed = own.iter().filter(|s| !s.verdict.is_anomaly()).count();
        Some(PerDefect {
            label: label.to_owned(),
            images: own.len(),
            auroc: Ranking::new(against)?.auroc(),
            recall: 1.0 - missed as f64 / own.len() as f64,
            missed,
            lowest_score: own.iter().map(|s| s.score).fold(f32::INFINITY, f32::min),
        })
    };
    labels.into_iter().filter_map(of).collect()
}
