//! The reference picture (median of the good parts) and the choice of registration.

use super::RegistrationChoice;
use super::parts::Part;
use crate::error::Result;
use crate::prepare::light::Light;
use crate::prepare::register::{Reference, statistics};
use crate::prepare::shrink::{Crop, Shrinker, Size};
use crate::prepare::{Preparation, Preparer, Registration};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Registration must bring parts this much closer to their median to be worth its time.
const WORTHWHILE: f32 = 0.95;

/// More good parts than this share that would be moved too far: what is measured is not their shift.
const MOST_ASTRAY: f32 = 0.05;
/// Parts that the median is taken over; of more, as many are taken evenly. More make it no sharper.
const MOST: usize = 32;

/// RGB and luma of one part.
pub(super) type Picture = (Vec<u8>, Vec<u8>);

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
    let (registration, why) = match choice {
        RegistrationChoice::Auto => decide(&parts, size, max_shift)?,
        RegistrationChoice::None => (Registration::None, "as wanted".to_owned()),
        RegistrationChoice::Shift | RegistrationChoice::Rigid => (Registration::Shift, "as wanted".to_owned()),
    };
    let (plain, _) = pictures(&parts, size, None)?;
    let median = median_picture(&plain, size);
    let spread_before = spread_of(&plain, &median);
    let (pictures, picture) = match registration {
        Registration::Shift => registered(&parts, median, max_shift)?,
        Registration::None | Registration::Rigid => (plain, median),
    };
    let (spread_after, likeness) = (spread_of(&pictures, &picture), likeness(&pictures, &picture));
    Ok(Built { picture, registration, why, spread_before, spread_after, likeness })
}

/// Whether moving brings parts closer to a median that was made of others. A part's own trace in the median would draw it to
/// where it is, and parts that each differ would seem to register well.
fn decide(parts: &[&Part], size: Size, max_shift: f32) -> Result<(Registration, String)> {
    let half = |first: usize| parts.iter().skip(first).step_by(2).copied().collect::<Vec<&Part>>();
    let (seen, unseen) = (half(0), half(1));
    let median = median_picture(&pictures(&seen, size, None)?.0, size);
    let before = spread_of(&pictures(&unseen, size, None)?.0, &median);
    let (_, reference) = registered(&seen, median, max_shift)?;
    let (moved, astray) = pictures(&unseen, size, Some(&shifting(reference.clone(), max_shift)))?;
    let after = spread_of(&moved, &reference);
    let mut why = format!("moving good parts changes their spread from {before:.2} to {after:.2} grey levels");
    if astray > 0 {
        why += &format!(", {astray} of {} would be moved further than is allowed", unseen.len());
    }
    let shift = after <= WORTHWHILE * before && astray as f32 <= MOST_ASTRAY * unseen.len() as f32;
    Ok((if shift { Registration::Shift } else { Registration::None }, why))
}

/// Parts registered to their plain median first, then to the sharper median of the registered parts.
fn registered(parts: &[&Part], median: Reference, max_shift: f32) -> Result<(Vec<Picture>, Reference)> {
    let size = median.size;
    let (first, _) = pictures(parts, size, Some(&shifting(median, max_shift)))?;
    let (second, _) = pictures(parts, size, Some(&shifting(median_picture(&first, size), max_shift)))?;
    let reference = median_picture(&second, size);
    Ok((second, reference))
}

fn shifting(reference: Reference, max_shift: f32) -> Preparation {
    Preparation {
        input: reference.size,
        registration: Registration::Shift,
        light: Light::None,
        max_shift,
        rigid: None,
        reference,
    }
}

/// RGB and luma of each part, and how many parts' poses are doubted.
fn pictures(parts: &[&Part], size: Size, p: Option<&Preparation>) -> Result<(Vec<Picture>, usize)> {
    let doubted = AtomicUsize::new(0);
    let pictures = parts
        .par_iter()
        .map_init(
            || (p.map(Preparer::new), Shrinker::new()),
            |(preparer, shrinker), part| {
                let mut rgb = vec![0; size.area() * 3];
                let mut prepared = |preparer: &mut Preparer, p: &Preparation| -> Result<Crop> {
                    let pose = preparer.prepare(p, &part.frame, part.crop, &mut rgb)?;
                    doubted.fetch_add(usize::from(pose.doubt.is_some()), Relaxed);
                    Ok(pose.placement.bounds())
                };
                let crop = match (p, preparer) {
                    (Some(p), Some(Ok(preparer))) => prepared(preparer, p)?,
                    (Some(p), _) => prepared(&mut Preparer::new(p)?, p)?,
                    (None, _) => {
                        shrinker.rgb(&part.frame, part.crop, size, &mut rgb)?;
                        part.crop
                    }
                };
                let mut luma = vec![0; size.area()];
                shrinker.luma(&part.frame, crop, size, &mut luma)?;
                Ok((rgb, luma))
            },
        )
        .collect::<Result<_>>()?;
    Ok((pictures, doubted.into_inner()))
}

/// The median of RGB and luma pictures.
pub(super) fn median_picture(pictures: &[Picture], size: Size) -> Reference {
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
pub(super) fn spread_of(pictures: &[Picture], reference: &Reference) -> f32 {
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
fn likeness(pictures: &[Picture], reference: &Reference) -> f32 {
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
