//! The rendered data sets are what docs/design/sets.md says: layout, truth that fits the pictures, the same from the same
//! seed, and not so easy that comparing pictures with their mean would do.

// helpers outside #[test] functions count as no test for clippy.toml
#![allow(clippy::unwrap_used)]

use linesight_samples::sets::{Counts, KINDS, Kind};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// One image of each folder of each kind, encoded, decoded and made again: right names and sizes, a mask that is not empty,
/// not most of the picture and on the part, another picture for another seed.
#[test]
fn each_kind_has_the_layout_and_a_truth_that_lies_on_the_part() {
    KINDS.par_iter().for_each(|kind| {
        let counts = Counts { teach: 1, good: 1, defective: kind.defects.len() };
        let files: BTreeMap<String, Vec<u8>> =
            kind.images(counts).iter().flat_map(|image| kind.files(5, image).unwrap()).collect();
        let image = |folder: &str| format!("{folder}/000.{}", kind.extension);
        let mut wanted = BTreeSet::from([image("train/good"), image("test/good")]);
        for label in kind.defects {
            wanted.insert(image(&format!("test/{label}")));
            wanted.insert(format!("ground_truth/{label}/000_mask.png"));
        }
        assert_eq!(files.keys().cloned().collect::<BTreeSet<_>>(), wanted);
        for name in &wanted {
            let read = image::load_from_memory(&files[name]).unwrap();
            assert_eq!((read.width() as usize, read.height() as usize), (kind.width, kind.height), "{name}");
            let grey = kind.studio.grey || name.ends_with("mask.png");
            assert_eq!(read.color().has_color(), !grey, "{name}");
        }
        for image in kind.images(counts) {
            let made = kind.make(5, &image);
            let Some(label) = image.label else { continue };
            if label == kind.defects[0] {
                assert!(made.pixels == kind.make(5, &image).pixels, "the same seed gives the same picture");
            }
            let name = format!("{} {label}", kind.name);
            let mask = made.mask.unwrap();
            let file = &files[&format!("ground_truth/{label}/000_mask.png")];
            assert_eq!(image::load_from_memory(file).unwrap().into_luma8().into_raw(), mask, "{name}");
            let marked = mask.iter().filter(|m| **m > 0).count();
            assert!((60..kind.width * kind.height / 6).contains(&marked), "{name}: {marked} pixels");
            assert!(mask.iter().all(|m| [0, 255].contains(m)), "{name}");
            // good and defective differ plainly nowhere else on the part, and nothing beside it is marked
            let (shot, good) = kind.shoot(5, &image);
            let (bad, _) = kind.spoil(5, &image, label, &shot, &good);
            let differs = |i: usize| (0..3).any(|k| (good.levels[k][i] - bad.levels[k][i]).abs() > 13.0);
            let on = |i: usize| good.part[i] || bad.part[i];
            let (w, h) = (kind.width, kind.height);
            let near = |i: usize| {
                let (x, y) = (i % w, i / w);
                (y.saturating_sub(3)..(y + 4).min(h))
                    .any(|y| (x.saturating_sub(3)..(x + 4).min(w)).any(|x| on(y * w + x)))
            };
            assert_eq!((0..mask.len()).filter(|&i| on(i) && differs(i) && mask[i] == 0).count(), 0, "{name}");
            assert_eq!((0..mask.len()).filter(|&i| mask[i] > 0 && !near(i)).count(), 0, "{name}");
            let plain = (0..mask.len()).filter(|&i| mask[i] > 0 && differs(i)).count();
            assert!(plain >= 24, "{name}: {plain} pixels");
        }
        let first = &kind.images(counts)[0];
        assert!(kind.make(5, first).pixels != kind.make(6, first).pixels, "another seed gives other parts");
    });
}

/// Mean grey picture of 4 by 4 pixels, brought to mean 1.
fn small(kind: &Kind, pixels: &[u8]) -> Vec<f32> {
    let channels = pixels.len() / (kind.width * kind.height);
    let (w, h) = (kind.width / 4, kind.height / 4);
    let mut out = vec![0.0f32; w * h];
    for y in 0..4 * h {
        for x in 0..4 * w {
            let at = (y * kind.width + x) * channels;
            let sum: u32 = pixels[at..at + channels].iter().map(|p| u32::from(*p)).sum();
            out[y / 4 * w + x / 4] += sum as f32;
        }
    }
    let mean = out.iter().sum::<f32>() / out.len() as f32;
    out.iter_mut().for_each(|v| *v /= mean);
    out
}

/// Probability that a defective part scores higher than a good one.
fn auroc(good: &[f32], bad: &[f32]) -> f32 {
    let above = |b: &f32| {
        good.iter()
            .map(|g| {
                if b > g {
                    1.0
                } else if b == g {
                    0.5
                } else {
                    0.0
                }
            })
            .sum::<f32>()
    };
    bad.iter().map(above).sum::<f32>() / (good.len() * bad.len()) as f32
}

/// Sets on which subtracting the mean picture is enough would prove nothing.
#[test]
fn the_greatest_difference_to_the_mean_picture_is_no_good_detector() {
    let counts = Counts { teach: 12, good: 12, defective: 10 };
    for kind in KINDS {
        let images = kind.images(counts);
        let looks: Vec<Vec<f32>> = images.par_iter().map(|i| small(kind, &kind.make(3, i).pixels)).collect();
        let (teach, test) = looks.split_at(counts.teach);
        let mean: Vec<f32> =
            (0..teach[0].len()).map(|i| teach.iter().map(|t| t[i]).sum::<f32>() / teach.len() as f32).collect();
        let score = |look: &Vec<f32>| look.iter().zip(&mean).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let scores: Vec<f32> = test.iter().map(score).collect();
        let (good, bad) = scores.split_at(counts.good);
        let area = auroc(good, bad);
        println!("{}: AUROC {area:.3}", kind.name);
        assert!(area < 0.95, "{}: {area:.3}", kind.name);
    }
}
