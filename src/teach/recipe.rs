//! Recipes: what can be fitted, from features to a detector with its held-out scores.
//!
//! A recipe is a method with everything that belongs to it: light, how its members see the features, how their maps become a
//! score. There are two kinds: for parts that look alike after registration, and for parts that each differ.

use super::coreset;
use super::features::Features;
use super::gaussian;
use crate::detect::head::{Detector, Family, Head, Member, Term, View, channel_statistics, highest, map_size};
use crate::error::{Context, Result};
use crate::model::Method;
use crate::prepare::light::Light;
use crate::prepare::shrink::Size;
use linesight_kernels::nearest::Search;
use opencv::core::{BORDER_REFLECT_101, Mat};
use opencv::imgproc;
use opencv::prelude::*;
use rayon::prelude::*;

/// Share of the spread of all features that is added to a picture's own when features are standardised.
const STANDARD_FLOOR: f32 = 0.1;
/// Smoothing of the held-out mean map, in cells.
const USUAL_SIGMA: f64 = 1.0;
/// A cell's usual distance is at least this share of the mean: where nothing was ever seen, nothing is divided by zero.
const USUAL_FLOOR: f32 = 0.05;

/// Family of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ppca,
    Patchcore,
}

/// How a member is fitted and scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemberRecipe {
    pub kind: Kind,
    /// 1 or 2: cells of the network's grid that become one.
    pub cell: u32,
    pub standardise: bool,
    /// Divide the distances by the held-out mean map. Of so many parts half of the map's shape is believed, of n parts
    /// n / (n + this), and the rest is its mean: few parts make a map that is itself noise.
    pub usual: f32,
    /// Smoothing, map pixels.
    pub sigma: f32,
    /// Shares of the map whose means are scored; 0 is the maximum.
    pub tops: &'static [f32],
}

/// A method in one form.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub method: Method,
    /// For parts that each differ.
    pub differing: bool,
    pub light: Light,
    pub members: Vec<MemberRecipe>,
}

/// What all members do: distances over what is usual at the cell (a busy place must not outshout a calm one), lightly
/// smoothed. docs/design/detector.md has what the alternatives gave.
const PPCA: MemberRecipe =
    MemberRecipe { kind: Kind::Ppca, cell: 1, standardise: false, usual: 70.0, sigma: 1.5, tops: &[0.0] };
/// Patches of 16 input pixels: what is as good as finer ones at a quarter of the cost, on parts that look alike.
const COARSE: MemberRecipe =
    MemberRecipe { kind: Kind::Patchcore, cell: 2, standardise: true, usual: 0.0, sigma: 1.5, tops: &[0.01] };
/// Parts that differ want fine patches for small defects and a broad mean of coarse ones for large ones.
const FINE: MemberRecipe = MemberRecipe { cell: 1, ..COARSE };
const BROAD: MemberRecipe = MemberRecipe { tops: &[0.05], ..COARSE };

impl Recipe {
    /// The recipe of a method (not [`Method::Auto`]) for parts that are alike or that each differ.
    pub fn of(method: Method, differing: bool) -> Recipe {
        let patchcore: &[MemberRecipe] = if differing { &[FINE, BROAD] } else { &[COARSE] };
        let members = match method {
            Method::Ppca => vec![PPCA],
            Method::Patchcore => patchcore.to_vec(),
            Method::MeanZ | Method::Auto => [&[PPCA], patchcore].concat(),
        };
        let light = if differing { Light::Local } else { Light::Match };
        Recipe { method, differing, light, members }
    }
}

impl MemberRecipe {
    /// The view, with what standardising needs from the taught features.
    pub fn view(&self, features: &Features) -> View {
        let standardise = self.standardise.then(|| {
            let spread: f32 = features
                .parts
                .par_iter()
                .map(|f| {
                    let (_, deviation) = channel_statistics(f, features.channels);
                    deviation.iter().map(|d| d * d).sum::<f32>() / deviation.len() as f32
                })
                .sum();
            STANDARD_FLOOR * (spread / features.parts.len().max(1) as f32).sqrt()
        });
        View { cell: self.cell, standardise }
    }

    /// Fits on the parts `chosen` of features that are already viewed.
    pub fn fit(&self, viewed: &Features, chosen: &[usize], judged: Option<&[bool]>, seed: u64) -> Result<Family> {
        Ok(match self.kind {
            Kind::Ppca => Family::Ppca(gaussian::fit(viewed, chosen, seed)),
            Kind::Patchcore => Family::Patchcore(coreset::bank(viewed, chosen, judged, seed)?),
        })
    }

    /// Distances of each part at each cell, by models that were fitted without the part's fold.
    fn held_out(
        &self,
        viewed: &Features,
        folds: &[Vec<usize>],
        judged: Option<&[bool]>,
        seed: u64,
    ) -> Result<Vec<Vec<f32>>> {
        if self.kind == Kind::Ppca {
            return Ok(gaussian::held_out(viewed, folds, seed));
        }
        let mut out = vec![Vec::new(); viewed.parts.len()];
        let scored: Vec<Vec<(usize, Vec<f32>)>> = folds
            .par_iter()
            .map(|fold| {
                let training: Vec<usize> = (0..viewed.parts.len()).filter(|i| !fold.contains(i)).collect();
                let family = self.fit(viewed, &training, judged, seed)?;
                Ok(fold.iter().map(|&j| (j, distances(&family, viewed.grid, &viewed.parts[j]))).collect())
            })
            .collect::<Result<_>>()?;
        for (j, d) in scored.into_iter().flatten() {
            out[j] = d;
        }
        Ok(out)
    }
}

/// Distances of one viewed picture at each cell.
pub fn distances(family: &Family, grid: Size, viewed: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; grid.area()];
    match family {
        Family::Ppca(p) => p.distances(viewed, &mut out),
        Family::Patchcore(bank) => bank.distances(&mut Search::default(), viewed, &mut out),
    }
    out
}

/// Cells of a view's grid that have a judged map pixel.
pub fn judged_cells(mask: Option<&[u8]>, map: Size, grid: Size) -> Option<Vec<bool>> {
    let mask = mask?;
    let (sx, sy) = ((map.width / grid.width) as usize, (map.height / grid.height) as usize);
    let judged = |x: usize, y: usize| {
        (0..sy).any(|dy| mask[(y * sy + dy) * map.width as usize + x * sx..][..sx].iter().any(|&m| m != 0))
    };
    Some((0..grid.area()).map(|i| judged(i % grid.width as usize, i / grid.width as usize)).collect())
}

/// What is usual at each cell: the mean of held-out distances of so many parts, smoothed, see [`MemberRecipe::usual`].
pub fn usual(distances: &[&Vec<f32>], grid: Size, parts: usize, half: f32) -> Result<Vec<f32>> {
    let mut mean = vec![0f32; grid.area()];
    for d in distances {
        mean.iter_mut().zip(d.iter()).for_each(|(m, d)| *m += d / distances.len() as f32);
    }
    let from = Mat::new_rows_cols_with_data(grid.height as i32, grid.width as i32, &mean).failed(|| "usual map")?;
    let mut smooth = Mat::default();
    let any = opencv::core::Size::new(0, 0);
    imgproc::gaussian_blur(&from, &mut smooth, any, USUAL_SIGMA, USUAL_SIGMA, BORDER_REFLECT_101)
        .failed(|| "usual map cannot be smoothed")?;
    let values = smooth.data_typed::<f32>().failed(|| "usual map")?;
    let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
    let floor = (USUAL_FLOOR * mean).max(f32::MIN_POSITIVE);
    let believed = parts as f32 / (parts as f32 + half);
    Ok(values.iter().map(|v| (believed * v + (1.0 - believed) * mean).max(floor)).collect())
}

/// What each term of a member makes of a picture's distances, before weights: `[term]`.
pub fn term_values(
    head: &mut Head,
    member: &MemberRecipe,
    distances: &[f32],
    usual: &[f32],
    grid: Size,
    map: Size,
    mask: Option<&[u8]>,
) -> Vec<f32> {
    let relative: Vec<f32> = distances.iter().zip(usual).map(|(d, u)| d / u).collect();
    let map = head.smooth(&relative, grid, map, member.sigma, mask);
    let mut scratch = Vec::new();
    member.tops.iter().map(|&t| highest(&map.values, t, &mut scratch)).collect()
}

/// Mean and standard deviation; the latter is never 0, also of parts that are all the same.
pub fn moments(values: impl Iterator<Item = f32> + Clone) -> (f32, f32) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().map(f64::from).sum::<f64>() / n;
    let variance = values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let (mean, deviation) = (mean as f32, variance.sqrt() as f32);
    (mean, deviation.max(1e-3 * mean).max(1e-6))
}

/// A fitted detector with its held-out scores.
pub struct Fitted {
    pub detector: Detector,
    /// In the order of the parts.
    pub scores: Vec<f32>,
}

/// Held-out scores of all parts in `folds`, and the detector fitted on all of them. `counted` says which parts' scores set the
/// weights of several terms.
pub fn fit(
    features: &Features,
    recipe: &Recipe,
    folds: &[Vec<usize>],
    counted: &[bool],
    mask: Option<&[u8]>,
    seed: u64,
) -> Result<Fitted> {
    let map = map_size(features.grid);
    let all: Vec<usize> = (0..features.parts.len()).collect();
    let mut scores = vec![0f32; all.len()];
    let mut members = Vec::new();
    let parts = counted.iter().filter(|c| **c).count();
    let terms: usize = recipe.members.iter().map(|m| m.tops.len()).sum();
    for m in &recipe.members {
        let view = m.view(features);
        let viewed = features.viewed(view);
        let judged = judged_cells(mask, map, viewed.grid);
        let held_out = m.held_out(&viewed, folds, judged.as_deref(), seed)?;
        let normal = usual(&held_out.iter().collect::<Vec<_>>(), viewed.grid, parts, m.usual)?;
        let values: Vec<Vec<f32>> = held_out
            .par_iter()
            .map_init(Head::new, |head, d| term_values(head, m, d, &normal, viewed.grid, map, mask))
            .collect();
        let weighted = (0..m.tops.len())
            .map(|t| {
                let counts = values.iter().zip(counted).filter(|(_, c)| **c).map(|(v, _)| v[t]);
                let (_, deviation) = moments(counts);
                let weight = if terms > 1 { 1.0 / (terms as f32 * deviation) } else { 1.0 };
                scores.iter_mut().zip(&values).for_each(|(s, v)| *s += weight * v[t]);
                Term { top: m.tops[t], weight }
            })
            .collect();
        members.push(Member {
            view,
            family: m.fit(&viewed, &all, judged.as_deref(), seed)?,
            usual: Some(normal),
            sigma: m.sigma,
            terms: weighted,
        });
    }
    let detector = Detector { grid: features.grid, channels: features.channels, members };
    detector.validate()?;
    Ok(Fitted { detector, scores })
}
