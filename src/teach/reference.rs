//! The reference picture (median of the good parts) and the choice of registration.

use super::RegistrationChoice;
use super::parts::Part;
use crate::error::Result;
use crate::prepare::light::Light;
use crate::prepare::register::{Reference, statistics};
use crate::prepare::shrink::{Shrinker, Size};
use crate::prepare::{Preparation, Preparer, Registration};
use rayon::prelude::*;

/// Registration must bring parts this much closer to their median to be worth its time.
const WORTHWHILE: f32 = 0.95;

/// Parts that the median is taken over; of more, as many are taken evenly. More make it no sharper.
const MOST: usize = 32;

pub(super) struct Built {
    pub picture: Reference,
    pub registration: Registration,
    /// Why it is that one, for the report.
    pub why: String,
    pub spread_before: f32,
    pub spread_after: f32,
    /// How alike the parts are: median correlation of their luma with the reference's, -1..1.
    pub likeness: f32,
}

pub(super) fn build(all: &[Part], size: Size, choice: RegistrationChoice, max_shift: f32) -> Result<Built> {
    let parts: Vec<&Part> = all.iter().step_by(all.len().div_ceil(MOST)).collect();
    let parts = parts.as_slice();
    let plain = pictures(parts, size, None)?;
    let picture = median_picture(&plain, size);
    let spread_before = spread_of(&plain, &picture);
    if choice == RegistrationChoice::None {
        let likeness = likeness(&plain, &picture);
        return Ok(Built {
            picture,
            registration: Registration::None,
            why: "as wanted".to_owned(),
            spread_before,
            spread_after: spread_before,
            likeness,
        });
    }
    // registered to the plain median first, then to the sharper median of the registered parts
    let mut shifted = picture.clone();
    let mut spread_after = spread_before;
    let mut alike = 0.0;
    for _ in 0..2 {
        let p = Preparation {
            input: size,
            registration: Registration::Shift,
            light: Light::None,
            max_shift,
            rigid: None,
            reference: shifted,
        };
        let registered = pictures(parts, size, Some(&p))?;
        shifted = median_picture(&registered, size);
        spread_after = spread_of(&registered, &shifted);
        alike = likeness(&registered, &shifted);
    }
    let registration = match choice {
        RegistrationChoice::Auto if spread_after > WORTHWHILE * spread_before => Registration::None,
        _ => Registration::Shift,
    };
    let (picture, likeness) = match registration {
        Registration::Shift => (shifted, alike),
        Registration::None | Registration::Rigid => {
            let likeness = likeness(&plain, &picture);
            (picture, likeness)
        }
    };
    let why = match choice {
        RegistrationChoice::Auto => {
            format!("moving good parts changes their spread from {spread_before:.2} to {spread_after:.2} grey levels")
        }
        _ => "as wanted".to_owned(),
    };
    Ok(Built { picture, registration, why, spread_before, spread_after, likeness })
}

/// RGB and luma of each part.
fn pictures(parts: &[&Part], size: Size, p: Option<&Preparation>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    parts
        .par_iter()
        .map_init(
            || (p.map(Preparer::new), Shrinker::new()),
            |(preparer, shrinker), part| {
                let mut rgb = vec![0; size.area() * 3];
                let crop = match (p, preparer) {
                    (Some(p), Some(Ok(preparer))) => preparer.prepare(p, &part.frame, part.crop, &mut rgb)?.placement,
                    (Some(p), _) => Preparer::new(p)?.prepare(p, &part.frame, part.crop, &mut rgb)?.placement,
                    (None, _) => {
                        shrinker.rgb(&part.frame, part.crop, size, &mut rgb)?;
                        part.crop.into()
                    }
                };
                let crop = crop.bounds();
                let mut luma = vec![0; size.area()];
                shrinker.luma(&part.frame, crop, size, &mut luma)?;
                Ok((rgb, luma))
            },
        )
        .collect()
}

/// The median of RGB and luma pictures.
pub(super) fn median_picture(pictures: &[(Vec<u8>, Vec<u8>)], size: Size) -> Reference {
    let median = |n: usize, get: &(dyn Fn(usize, usize) -> u8 + Sync)| -> Vec<u8> {
        (0..n)
            .into_par_iter()
            .map_init(
                || vec![0u8; pictures.len()],
                |column, i| {
                    for (k, c) in column.iter_mut().enumerate() {
                        *c = get(k, i);
                    }
                    let middle = column.len() / 2;
                    *column.select_nth_unstable(middle).1
                },
            )
            .collect()
    };
    let rgb = median(size.area() * 3, &|k, i| pictures[k].0[i]);
    let luma = median(size.area(), &|k, i| pictures[k].1[i]);
    let (mean, deviation) = statistics(&rgb);
    Reference { size, luma, rgb, mean, deviation }
}

/// Mean absolute difference between the parts' luma and the reference's, after each part's light is matched.
pub(super) fn spread_of(pictures: &[(Vec<u8>, Vec<u8>)], reference: &Reference) -> f32 {
    let (rm, rd) = statistics(&reference.luma);
    let total: f64 = pictures
        .par_iter()
        .map(|(_, luma)| {
            let (m, d) = statistics(luma);
            let gain = rd / (d + 1e-3);
            let sum: f64 = luma
                .iter()
                .zip(&reference.luma)
                .map(|(&v, &r)| f64::from(((f32::from(v) - m) * gain + rm - f32::from(r)).abs()))
                .sum();
            sum / luma.len() as f64
        })
        .sum();
    (total / pictures.len().max(1) as f64) as f32
}

/// Median correlation of the parts' luma with the reference's.
fn likeness(pictures: &[(Vec<u8>, Vec<u8>)], reference: &Reference) -> f32 {
    let (rm, rd) = statistics(&reference.luma);
    let mut all: Vec<f32> = pictures
        .par_iter()
        .map(|(_, luma)| {
            let (m, d) = statistics(luma);
            let sum: f64 = luma
                .iter()
                .zip(&reference.luma)
                .map(|(&v, &r)| f64::from((f32::from(v) - m) * (f32::from(r) - rm)))
                .sum();
            (sum / luma.len() as f64) as f32 / (d * rd).max(1e-3)
        })
        .collect();
    all.sort_by(f32::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}
