//! Which method and input size: by the user's word, by rule where parts are too few, else by [`super::choose`].

use super::choose::{self, Candidate, Limits, Pictures, Setting};
use super::mask::Judged;
use super::parts::Part;
use super::pose::Posed;
use super::recipe::Recipe;
use super::{Options, Progress, Variant};
use crate::detect::backbone::Options as BackboneOptions;
use crate::error::Result;
use crate::model::Method;
use crate::prepare::light::Light;
use crate::prepare::shrink::{Crop, Size};
use crate::prepare::{Preparation, Preparer};
use rayon::prelude::*;

/// Parts whose median correlation with the reference is below this each differ.
const ALIKE: f32 = 0.75;
/// Between this and [`ALIKE`] both forms of the methods are tried.
const SURELY_ALIKE: f32 = 0.9;
/// Fewest parts from which a method can be chosen.
const MIN_CHOICE: usize = 12;
/// Side of the largest input, tried for parts that have the detail.
const MORE_SIDE: f64 = 384.0;

/// The method to fit, and how it was found.
pub(super) struct Chosen {
    pub recipe: Recipe,
    /// Side of the square of the input's area.
    pub side: f64,
    pub why: String,
    pub candidates: Vec<Candidate>,
}

/// Sides of the square inputs that are tried, ascending; the last is the largest.
pub(super) fn candidate_sides(parts: &[Part], options: &Options) -> Vec<f64> {
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
pub(super) fn choose(
    options: &Options,
    parts: &[Part],
    sides: &[f64],
    posed: &Posed,
    judged: &Judged,
    compiled: &BackboneOptions,
    progress: Progress<'_>,
) -> Result<Chosen> {
    let at_gate: Vec<&Part> = parts.iter().filter(|p| p.at_gate).collect();
    let differing = posed.likeness < ALIKE;
    let alike = if differing { "each differ" } else { "look alike" };
    let cap = options.variant.side();
    let measured = options.method == Method::Auto || options.budget_ms.is_some();
    if !measured || at_gate.len() < MIN_CHOICE {
        let method = match (options.method, differing) {
            (Method::Auto, false) => Method::Ppca,
            (Method::Auto, true) => Method::MeanZ,
            (forced, _) => forced,
        };
        let why = if measured {
            let budget = if options.budget_ms.is_some() { ", and the budget was not considered" } else { "" };
            format!("{} parts are too few to choose from{budget}; they {alike}", at_gate.len())
        } else {
            format!("asked for; the parts {alike}")
        };
        return Ok(Chosen { recipe: Recipe::of(method, differing), side: cap, why, candidates: Vec::new() });
    }
    // parts that are neither surely alike nor surely different are tried in both forms
    let forms: &[bool] = match posed.likeness {
        l if l < ALIKE => &[true],
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
    let largest = posed.preparation.input;
    let rgb = prepared(&Preparation { light: Light::None, ..posed.preparation.clone() }, &seen)?;
    let pictures = Pictures { size: largest, rgb, groups: seen.iter().map(|p| p.group).collect() };
    let capped = options.budget_ms.is_none() && options.variant != Variant::Accurate;
    let area = capped.then(|| posed.size_at(parts, cap).area());
    let limits = Limits { area, ms: options.budget_ms };
    // beyond the variant's size the usual method is shown for comparison; nothing there can be chosen
    let usual = |r: &Recipe| r.method == options.method || choose::is_usual(r.method, r.differing, differing);
    let tried = |size: Size| -> Vec<Recipe> {
        let all = area.is_none_or(|a| size.area() <= a);
        recipes.iter().filter(|r| all || usual(r)).cloned().collect()
    };
    let sizes: Vec<(Size, Vec<Recipe>)> =
        sides.iter().map(|&s| posed.size_at(parts, s)).map(|size| (size, tried(size))).collect();
    // a mask that leaves nothing at a small size leaves that size unmasked here; the final one is checked
    let at_size = |size: Size| judged.at(size, posed).ok().flatten();
    let setting = Setting {
        pictures: &pictures,
        sizes: &sizes,
        reference: &posed.preparation.reference,
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
    let side = sizes.iter().zip(sides).find(|((size, _), _)| *size == best.input).map_or(cap, |(_, side)| *side);
    Ok(Chosen { recipe: Recipe::of(best.method, best.differing), side, why, candidates })
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
