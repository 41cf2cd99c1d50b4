//! The automatic choice of method and input size, by cross-validation on the user's own good parts against synthetic defects.
//!
//! Every candidate is fitted on two thirds of the parts and scores the last third, good as it is and with six kinds of
//! synthetic defect (see [`super::synth`]). What counts is how many of those it tells from the held-out good parts. The
//! pictures are made at the largest size once and shrunk for the others, so that every size sees the same defects.

use super::Progress;
use super::features::{self, Features, folds};
use super::recipe::{MemberRecipe, Recipe, distances, judged_cells, moments, term_values, usual};
use super::synth::{Defect, Picture, Places, make};
use crate::detect::backbone::{self, Backbone, Options as BackboneOptions};
use crate::detect::head::{Family, Head, View, map_size};
use crate::error::{Error, Result};
use crate::frame::Plane;
use crate::model::Method;
use crate::prepare::light::Light;
use crate::prepare::register::Reference;
use crate::prepare::shrink::{Shrinker, Size};
use linesight_kernels::contrast::Contrast;
use rayon::prelude::*;
use serde::Serialize;
use std::time::Instant;

/// Folds of the choice.
const FOLDS: usize = 3;
/// Most parts that the choice looks at; the calibration uses all.
pub const MAX_PARTS: usize = 60;
/// Synthetic defects count as found above this quantile of the held-out good scores.
const FOUND_ABOVE: f64 = 0.95;
/// AUROC by which another method than the usual one, or a smaller input, must be better to be preferred ...
const WORTHWHILE: f64 = 0.02;
/// ... and as a share of what is missing to 1.
const WORTHWHILE_SHARE: f64 = 0.15;
/// Pictures whose features are held at once.
const BATCH: usize = 24;
/// Pictures that are timed for a candidate's cost.
const TIMED: usize = 12;

/// A row of the table that the choice prints.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    pub method: Method,
    /// Uses the form for parts that each differ.
    pub differing: bool,
    pub input: Size,
    /// Share of each kind of synthetic defect that scores above 95 % of held-out good parts, in the order of
    /// [`Defect::ALL`].
    pub found: [f64; 6],
    /// Mean of `found`.
    pub found_mean: f64,
    /// Area under the ROC curve for each kind.
    pub auroc_by_kind: [f64; 6],
    /// Mean of `auroc_by_kind`.
    pub auroc: f64,
    /// Network and head on one core of this machine, milliseconds a picture.
    pub ms: f64,
    /// False when the variant or budget does not allow it.
    pub allowed: bool,
}

/// What may be chosen.
pub struct Limits {
    /// Inputs up to this many pixels.
    pub area: Option<usize>,
    /// Network and head in this many milliseconds.
    pub ms: Option<f64>,
}

/// What the choice is made from: good parts at the largest size, before light is matched.
pub struct Pictures {
    pub size: Size,
    pub rgb: Vec<Vec<u8>>,
    /// Which physical part each shows, ascending.
    pub groups: Vec<usize>,
}

/// Everything that is the same for all candidates.
pub struct Setting<'a> {
    pub pictures: &'a Pictures,
    /// Input sizes, ascending, each with what is tried there.
    pub sizes: &'a [(Size, Vec<Recipe>)],
    /// Reference for light matching: mean and deviation count.
    pub reference: &'a Reference,
    /// The judged area's mask at a map size.
    pub mask: &'a (dyn Fn(Size) -> Option<Vec<u8>> + Sync),
    pub backbone: BackboneOptions,
    pub seed: u64,
}

/// Scores of one member on all pictures: `[picture][term]`, good parts first, then the defects kind by kind.
struct MemberScores {
    recipe: MemberRecipe,
    light: Light,
    values: Vec<Vec<f32>>,
    ms: f64,
}

/// Tries the recipes of every size. Rows in the order of sizes and recipes.
pub fn compare(setting: &Setting<'_>, limits: &Limits, progress: Progress<'_>) -> Result<Vec<Candidate>> {
    let defects = synthesise(setting)?;
    let folds = folds(&setting.pictures.groups, FOLDS);
    let mut rows = Vec::new();
    for (step, (size, recipes)) in setting.sizes.iter().enumerate() {
        let size = *size;
        progress("choice", step as u64, Some(setting.sizes.len() as u64));
        let mut backbone = Backbone::compile(&BackboneOptions { input: size, ..setting.backbone.clone() })?;
        let mut members: Vec<MemberScores> = Vec::new();
        for light in [Light::Match, Light::Local] {
            let mut wanted: Vec<MemberRecipe> = Vec::new();
            for m in recipes.iter().filter(|r| r.light == light).flat_map(|r| &r.members) {
                if !wanted.contains(m) {
                    wanted.push(*m);
                }
            }
            if !wanted.is_empty() {
                members.extend(score_members(setting, &mut backbone, light, &wanted, &defects, &folds)?);
            }
        }
        let network = time_network(&mut backbone)?;
        for recipe in recipes {
            let of = |m: &MemberRecipe| members.iter().find(|s| s.light == recipe.light && s.recipe == *m);
            let parts: Vec<&MemberScores> = recipe.members.iter().filter_map(of).collect();
            rows.push(candidate(recipe, size, &parts, setting.pictures.rgb.len(), network, limits));
        }
    }
    Ok(rows)
}

/// The row to take. Synthetic defects are not real ones, so what is known of the methods comes first: for parts that are alike
/// the position-wise Gaussian is best, for parts that differ the mean of both families, and another method is taken only where
/// it is clearly better here. The largest input that is allowed is taken, unless a smaller one is clearly better: small real
/// defects need pixels more than the synthetic ones do.
pub fn pick(rows: &[Candidate], differing: bool) -> Result<&Candidate> {
    let allowed = || rows.iter().filter(|r| r.allowed);
    let largest = allowed().map(|r| r.input.area()).max().unwrap_or_default();
    // where synthetic defects are hardly told from good parts, they hardly tell the methods from each other
    let clearly = |r: &Candidate| WORTHWHILE.max(WORTHWHILE_SHARE * (1.0 - r.auroc));
    let worth = |r: &Candidate| {
        let unusual = if is_usual(r.method, r.differing, differing) { 0.0 } else { clearly(r) };
        let smaller = if r.input.area() == largest { 0.0 } else { clearly(r) };
        r.auroc - unusual - smaller
    };
    allowed().max_by(|a, b| worth(a).total_cmp(&worth(b))).ok_or_else(|| {
        let fastest = rows.iter().map(|r| r.ms).fold(f64::INFINITY, f64::min);
        Error::usage(format!("no method fits the budget: the fastest takes {fastest:.1} ms on this machine"))
            .hint("raise --budget-ms")
    })
}

/// Whether a method in one of its forms is the usual one for parts that differ or that do not.
pub fn is_usual(method: Method, form: bool, differing: bool) -> bool {
    form == differing && method == if differing { Method::MeanZ } else { Method::Ppca }
}

/// Six defects on each good picture, `[kind][picture]`.
fn synthesise(setting: &Setting<'_>) -> Result<Vec<Vec<Vec<u8>>>> {
    let size = setting.pictures.size;
    let pictures: Vec<Picture<'_>> = setting.pictures.rgb.iter().map(|rgb| Picture { size, rgb }).collect();
    let map = map_size(backbone::grid_of(size));
    let mask = (setting.mask)(map);
    let judged = |x: f32, y: f32| {
        mask.as_ref().is_none_or(|m| {
            let at = |v: f32, n: u32| ((v * n as f32) as usize).min(n as usize - 1);
            m[at(y, map.height) * map.width as usize + at(x, map.width)] != 0
        })
    };
    let places = Places::new(&pictures[..pictures.len().min(20)], &judged);
    Defect::ALL
        .iter()
        .enumerate()
        .map(|(k, &kind)| {
            pictures
                .par_iter()
                .enumerate()
                .map(|(i, &on)| {
                    let mut rng = fastrand::Rng::with_seed(setting.seed ^ (k as u64 * 7919 + i as u64 + 1) << 16);
                    let others = rng.choose_multiple(pictures.iter().copied(), 3);
                    make(kind, on, &others, &places, &mut rng)
                })
                .collect()
        })
        .collect()
}

fn score_members(
    setting: &Setting<'_>,
    backbone: &mut Backbone,
    light: Light,
    members: &[MemberRecipe],
    defects: &[Vec<Vec<u8>>],
    folds: &[Vec<usize>],
) -> Result<Vec<MemberScores>> {
    let (input, from) = (backbone.input(), setting.pictures.size);
    let (mut shrinker, mut contrast) = (Shrinker::new(), Contrast::default());
    let mut extract = |backbone: &mut Backbone, pictures: &[&Vec<u8>]| -> Result<Features> {
        let fill = |i: usize, out: &mut [u8]| {
            let (width, height) = (from.width as usize, from.height as usize);
            let plane = Plane { data: pictures[i], stride: width * 3, width, height, channels: 3 };
            shrinker.plane(&plane, [0.0, 0.0, width as f64, height as f64], input, out)?;
            light.apply(out, input, setting.reference, &mut contrast);
            Ok(())
        };
        features::run(backbone, pictures.len(), fill, &|_, _, _| {})
    };
    let good = extract(backbone, &setting.pictures.rgb.iter().collect::<Vec<_>>())?;
    let map = map_size(good.grid);
    let mask = (setting.mask)(map);
    struct Fitted {
        view: View,
        grid: Size,
        folds: Vec<Family>,
        distances: Vec<Vec<f32>>,
    }
    let fold_of = |i: usize| folds.iter().position(|f| f.contains(&i)).unwrap_or_default();
    let mut fitted = Vec::new();
    for m in members {
        let view = m.view(&good);
        let viewed = good.viewed(view);
        let judged = judged_cells(mask.as_deref(), map, viewed.grid);
        let families: Vec<Family> = folds
            .par_iter()
            .map(|fold| {
                let training: Vec<usize> = (0..viewed.parts.len()).filter(|i| !fold.contains(i)).collect();
                m.fit(&viewed, &training, judged.as_deref(), setting.seed)
            })
            .collect::<Result<_>>()?;
        let distances = (0..viewed.parts.len())
            .into_par_iter()
            .map(|i| distances(&families[fold_of(i)], viewed.grid, &viewed.parts[i]))
            .collect();
        fitted.push(Fitted { view, grid: viewed.grid, folds: families, distances });
    }
    let n = good.parts.len();
    drop(good);
    let all: Vec<(usize, &Vec<u8>)> = defects.iter().flat_map(|kind| kind.iter().enumerate()).collect();
    for batch in all.chunks(BATCH) {
        let f = extract(backbone, &batch.iter().map(|(_, p)| *p).collect::<Vec<_>>())?;
        for m in &mut fitted {
            let found: Vec<Vec<f32>> = batch
                .par_iter()
                .zip(&f.parts)
                .map(|((i, _), features)| {
                    let mut scratch = Vec::new();
                    let viewed = m.view.of(features, f.grid, f.channels, &mut scratch);
                    distances(&m.folds[fold_of(*i)], m.grid, viewed)
                })
                .collect();
            m.distances.extend(found);
        }
    }
    members
        .iter()
        .zip(fitted)
        .map(|(recipe, f)| {
            let normal = usual(&f.distances[..n].iter().collect::<Vec<_>>(), f.grid, n, recipe.usual)?;
            let values = f
                .distances
                .par_iter()
                .map_init(Head::new, |head, d| term_values(head, recipe, d, &normal, f.grid, map, mask.as_deref()))
                .collect();
            let zeros = vec![0f32; f.grid.area() * backbone.channels()];
            let lap = Instant::now();
            let mut head = Head::new();
            for _ in 0..TIMED {
                let d = distances(&f.folds[0], f.grid, &zeros);
                term_values(&mut head, recipe, &d, &normal, f.grid, map, mask.as_deref());
            }
            let ms = lap.elapsed().as_secs_f64() * 1e3 / TIMED as f64;
            Ok(MemberScores { recipe: *recipe, light, values, ms })
        })
        .collect()
}

/// Milliseconds that one core spends on one inference.
fn time_network(backbone: &mut Backbone) -> Result<f64> {
    let mut request = backbone.request()?;
    let lap = Instant::now();
    for _ in 0..TIMED {
        request.start()?;
        request.wait()?;
    }
    Ok(lap.elapsed().as_secs_f64() * 1e3 / TIMED as f64)
}

/// Judges one candidate by its members' scores: mean of the terms' z-scores.
fn candidate(
    recipe: &Recipe,
    input: Size,
    members: &[&MemberScores],
    good: usize,
    network: f64,
    limits: &Limits,
) -> Candidate {
    let count = members.first().map_or(0, |m| m.values.len());
    let mut scores = vec![0f32; count];
    for m in members {
        for t in 0..m.recipe.tops.len() {
            let (mean, deviation) = moments(m.values[..good].iter().map(|v| v[t]));
            let scale = 1.0 / deviation;
            scores.iter_mut().zip(&m.values).for_each(|(s, v)| *s += (v[t] - mean) * scale);
        }
    }
    let (held_out, defective) = scores.split_at(good);
    let mut sorted = held_out.to_vec();
    sorted.sort_by(f32::total_cmp);
    let limit = sorted[((sorted.len() - 1) as f64 * FOUND_ABOVE).round() as usize];
    let mut found = [0.0; 6];
    let mut auroc_by_kind = [0.0; 6];
    for (k, kind) in defective.chunks_exact(good).enumerate() {
        found[k] = kind.iter().filter(|s| **s > limit).count() as f64 / good as f64;
        let above: usize = kind.iter().map(|s| sorted.partition_point(|g| g < s)).sum();
        auroc_by_kind[k] = above as f64 / (good * good) as f64;
    }
    let ms = network + members.iter().map(|m| m.ms).sum::<f64>();
    let allowed = limits.area.is_none_or(|a| input.area() <= a) && limits.ms.is_none_or(|b| ms <= b);
    let found_mean = found.iter().sum::<f64>() / found.len() as f64;
    let auroc = auroc_by_kind.iter().sum::<f64>() / auroc_by_kind.len() as f64;
    Candidate {
        method: recipe.method,
        differing: recipe.differing,
        input,
        found,
        found_mean,
        auroc_by_kind,
        auroc,
        ms,
        allowed,
    }
}
