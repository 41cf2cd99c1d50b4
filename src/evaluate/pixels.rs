//! Pixel metrics: how well the anomaly map tells defect pixels from normal ones.
//!
//! Memory does not grow with the number or the size of the images: every map value is counted in one of [`BINS`] bins, which
//! are made of the leading bits of the value's f32 representation, so a bin is at most 1/2048 of its value wide. Within a
//! bin values count as ties. What that can do to the AUROC is known after counting ([`PixelRanking::auroc_error`]).
//!
//! Invariants:
//! 1. The values are those of scikit-learn and of an exact AUPRO in Python within 1e-3, and exact where no two different
//!    values share a bin (tests `values_are_those_of_the_reference`, `binning_is_as_exact_as_it_says`).

use crate::error::{Context, Error, Result};
use crate::prepare::shrink::Size;
use opencv::core::Mat;
use opencv::imgproc;
use opencv::prelude::*;

/// AUPRO is taken up to this false-positive rate.
pub const PRO_LIMIT: f64 = 0.3;
/// Bits of the mantissa that tell bins apart.
const MANTISSA_BITS: u32 = 11;
const SHIFT: u32 = 23 - MANTISSA_BITS;
/// Without the sign: values are not negative.
const BINS: usize = 1 << (8 + MANTISSA_BITS);

/// The true regions of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    pub size: Size,
    /// For each pixel 0, or the number of its region from 1.
    labels: Vec<i32>,
    /// Pixels of each region.
    areas: Vec<u32>,
    /// `[left, top, right, bottom)` of each region.
    boxes: Vec<[u32; 4]>,
}

impl Mask {
    /// Regions are the connected components of the pixels that are not 0, with 8 neighbours (as MVTec AD's own evaluation).
    pub fn new(pixels: &[u8], size: Size) -> Result<Mask> {
        let binary: Vec<u8> = pixels.iter().map(|&v| u8::from(v > 0)).collect();
        let (width, height) = (size.width as i32, size.height as i32);
        let mat = Mat::new_rows_cols_with_data(height, width, &binary).failed(|| "mask: size")?;
        let mut labels = Mat::default();
        let n = imgproc::connected_components(&mat, &mut labels, 8, opencv::core::CV_32S)
            .failed(|| "mask: connected components")?;
        let labels = labels.data_typed::<i32>().failed(|| "mask: labels")?.to_vec();
        let mut areas = vec![0; n.max(1) as usize - 1];
        let mut boxes = vec![[u32::MAX, u32::MAX, 0, 0]; areas.len()];
        for (i, &label) in labels.iter().enumerate() {
            if label > 0 {
                let (x, y) = (i as u32 % size.width, i as u32 / size.width);
                let b = &mut boxes[label as usize - 1];
                *b = [b[0].min(x), b[1].min(y), b[2].max(x + 1), b[3].max(y + 1)];
                areas[label as usize - 1] += 1;
            }
        }
        Ok(Mask { size, labels, areas, boxes })
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.areas.len()
    }

    /// `[left, top, right, bottom)` of each region, in pixels.
    pub fn boxes(&self) -> &[[u32; 4]] {
        &self.boxes
    }
}

/// What is counted for one bin.
#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    normal: u64,
    defect: u64,
    /// Sum over defect pixels of 1 / the area of their region.
    overlap: f64,
}

/// Counts of map values over any number of images.
pub struct PixelRanking {
    bins: Vec<Bin>,
    normal: u64,
    defect: u64,
    regions: u64,
}

impl Default for PixelRanking {
    fn default() -> Self {
        Self::new()
    }
}

fn bin(value: f32) -> usize {
    // max() takes a NaN to 0 as well
    (value.max(0.0).to_bits() >> SHIFT) as usize
}

impl PixelRanking {
    pub fn new() -> Self {
        PixelRanking { bins: vec![Bin::default(); BINS], normal: 0, defect: 0, regions: 0 }
    }

    /// Counts one image: the map at the image's resolution, row by row, and its true regions, `None` for a good part.
    pub fn add(&mut self, map: &[f32], mask: Option<&Mask>) -> Result<()> {
        let Some(mask) = mask else {
            for &v in map {
                self.bins[bin(v)].normal += 1;
            }
            self.normal += map.len() as u64;
            return Ok(());
        };
        if mask.labels.len() != map.len() {
            return Err(Error::failed(format!("a mask has {} pixels, its map {}", mask.labels.len(), map.len())));
        }
        let shares: Vec<f64> = mask.areas.iter().map(|&a| 1.0 / f64::from(a)).collect();
        let mut defect = 0;
        for (&v, &label) in map.iter().zip(&mask.labels) {
            let b = &mut self.bins[bin(v)];
            if label > 0 {
                b.defect += 1;
                b.overlap += shares[label as usize - 1];
                defect += 1;
            } else {
                b.normal += 1;
            }
        }
        self.defect += defect;
        self.normal += map.len() as u64 - defect;
        self.regions += mask.regions() as u64;
        Ok(())
    }

    /// Images of at least one defect region and one normal pixel have been counted.
    fn comparable(&self) -> bool {
        self.normal > 0 && self.regions > 0
    }

    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// Pixel AUROC, 0..1: the same measure as for images, over all counted pixels (Bergmann et al. 2021).
    pub fn auroc(&self) -> Option<f64> {
        let mut above = 0;
        let mut area = 0.0;
        for b in self.bins.iter().rev() {
            area += b.normal as f64 * (above as f64 + b.defect as f64 / 2.0);
            above += b.defect;
        }
        self.comparable().then(|| area / (self.normal as f64 * self.defect as f64))
    }

    /// The most by which [`PixelRanking::auroc`] can differ from the AUROC of the exact values: every pair of different
    /// values in one bin, which counts half, might count 0 or 1.
    pub fn auroc_error(&self) -> Option<f64> {
        let ties: f64 = self.bins.iter().map(|b| b.normal as f64 * b.defect as f64).sum();
        self.comparable().then(|| ties / 2.0 / (self.normal as f64 * self.defect as f64))
    }

    /// AUPRO, 0..1: area under the per-region-overlap curve up to the false-positive rate `limit`, divided by `limit`
    /// (Bergmann et al. 2020, "Uninformed Students", section 4; 2021, "The MVTec Anomaly Detection Dataset", section 6).
    /// The overlap at a threshold is the mean, over all true regions of all images, of the share of the region's pixels that
    /// reach it, so that small defects count as much as large ones; the false-positive rate is over all normal pixels of all
    /// images. The curve is linear between thresholds.
    pub fn aupro(&self, limit: f64) -> Option<f64> {
        if !self.comparable() {
            return None;
        }
        let (mut area, mut fpr, mut pro) = (0.0, 0.0, 0.0);
        let (mut normal, mut overlap) = (0, 0.0);
        for b in self.bins.iter().rev().filter(|b| b.normal + b.defect > 0) {
            normal += b.normal;
            overlap += b.overlap;
            let next = (normal as f64 / self.normal as f64, overlap / self.regions as f64);
            if next.0 >= limit {
                let share = (limit - fpr) / (next.0 - fpr);
                let at_limit = pro + (next.1 - pro) * share;
                area += (limit - fpr) * (pro + at_limit) / 2.0;
                break;
            }
            area += (next.0 - fpr) * (pro + next.1) / 2.0;
            (fpr, pro) = next;
        }
        Some(area / limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Reference {
        pixels: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        name: String,
        images: Vec<Picture>,
        regions: u64,
        auroc: f64,
        aupro: f64,
    }
    #[derive(Deserialize)]
    struct Picture {
        /// Rows; "#" is defect.
        mask: Vec<String>,
        scores: Vec<Vec<f32>>,
    }

    fn mask(rows: &[String]) -> Mask {
        let size = Size { width: rows[0].len() as u32, height: rows.len() as u32 };
        Mask::new(&rows.concat().bytes().map(|b| u8::from(b == b'#') * 255).collect::<Vec<_>>(), size).unwrap()
    }

    #[test]
    fn values_are_those_of_the_reference() {
        let text = include_str!("../../tests/data/metrics-reference.json");
        let reference: Reference = serde_json::from_str(text).unwrap();
        assert!(reference.pixels.len() >= 3);
        for c in reference.pixels {
            let mut r = PixelRanking::new();
            for p in &c.images {
                let m = mask(&p.mask);
                r.add(&p.scores.concat(), (m.regions() > 0).then_some(&m)).unwrap();
            }
            assert_eq!(r.regions(), c.regions, "{}", c.name);
            let (auroc, aupro) = (r.auroc().unwrap(), r.aupro(PRO_LIMIT).unwrap());
            assert!((auroc - c.auroc).abs() < 1e-9, "{}: {auroc} {}", c.name, c.auroc);
            assert!((aupro - c.aupro).abs() < 1e-9, "{}: {aupro} {}", c.name, c.aupro);
        }
    }

    #[test]
    fn pixels_that_touch_at_a_corner_are_one_region() {
        let m = mask(&["#..#".into(), ".#..".into(), "...#".into()]);
        assert_eq!(m.regions(), 3);
        assert!(m.boxes().contains(&[0, 0, 2, 2]));
    }

    #[test]
    fn a_perfect_map_has_both_metrics_at_one_and_an_empty_count_has_none() {
        let mut r = PixelRanking::new();
        assert_eq!((r.auroc(), r.aupro(PRO_LIMIT), r.auroc_error()), (None, None, None));
        let m = mask(&["##..".into(), "....".into()]);
        r.add(&[9.0, 8.0, 1.0, 1.0, 1.0, 0.0, 2.0, 1.0], Some(&m)).unwrap();
        r.add(&[0.5; 8], None).unwrap();
        assert_eq!((r.auroc(), r.aupro(PRO_LIMIT)), (Some(1.0), Some(1.0)));
        assert!(r.add(&[1.0; 3], Some(&m)).is_err());
    }

    /// AUPRO from its definition: every distinct value is a threshold, every region is measured at each.
    fn brute_aupro(images: &[(Vec<f32>, Mask)], limit: f64) -> f64 {
        let mut thresholds: Vec<f32> = images.iter().flat_map(|(s, _)| s.iter().copied()).collect();
        thresholds.sort_by(|a, b| b.total_cmp(a));
        thresholds.dedup();
        let mut curve = vec![(0.0, 0.0)];
        for t in thresholds {
            let (mut fp, mut normal, mut overlaps) = (0.0, 0.0, Vec::new());
            for (scores, m) in images {
                for (s, label) in scores.iter().zip(&m.labels) {
                    if *label == 0 {
                        normal += 1.0;
                        fp += f64::from(u8::from(*s >= t));
                    }
                }
                for region in 1..=m.regions() as i32 {
                    let of: Vec<f32> = scores.iter().zip(&m.labels).filter(|p| *p.1 == region).map(|p| *p.0).collect();
                    overlaps.push(of.iter().filter(|s| **s >= t).count() as f64 / of.len() as f64);
                }
            }
            curve.push((fp / normal, overlaps.iter().sum::<f64>() / overlaps.len() as f64));
        }
        let mut area = 0.0;
        for w in curve.windows(2) {
            let ((x0, y0), (mut x1, mut y1)) = (w[0], w[1]);
            if x0 >= limit || x1 == x0 {
                continue;
            }
            if x1 > limit {
                y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0);
                x1 = limit;
            }
            area += (x1 - x0) * (y0 + y1) / 2.0;
        }
        area / limit
    }

    /// Images of 9 x 7 with at least one region and one normal pixel; `levels` distinct values.
    fn images(levels: u16) -> impl Strategy<Value = Vec<(Vec<f32>, Mask)>> {
        let image = (proptest::collection::vec(0..levels, 63), proptest::collection::vec(0u8..4, 63));
        proptest::collection::vec(image, 1..4).prop_map(|images| {
            let size = Size { width: 9, height: 7 };
            let mut out: Vec<(Vec<f32>, Mask)> = Vec::new();
            for (scores, mut pixels) in images {
                (pixels[0], pixels[62]) = (1, 0);
                let pixels: Vec<u8> = pixels.iter().map(|&p| u8::from(p == 1)).collect();
                out.push((scores.iter().map(|&s| f32::from(s) / 16.0).collect(), Mask::new(&pixels, size).unwrap()));
            }
            out
        })
    }

    fn count(images: &[(Vec<f32>, Mask)]) -> PixelRanking {
        let mut r = PixelRanking::new();
        for (scores, m) in images {
            r.add(scores, Some(m)).unwrap();
        }
        r
    }

    fn exact_auroc(images: &[(Vec<f32>, Mask)]) -> f64 {
        let pixels = images.iter().flat_map(|(s, m)| s.iter().zip(&m.labels).map(|(s, l)| (*s, *l > 0)));
        crate::evaluate::metrics::Ranking::new(pixels).unwrap().auroc()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn aupro_is_what_its_definition_says(images in images(40), limit in 0.05f64..1.0) {
            let aupro = count(&images).aupro(limit).unwrap();
            prop_assert!((aupro - brute_aupro(&images, limit)).abs() < 1e-9);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&aupro));
        }

        /// 4096 levels up to 256: values above 128 share bins with their neighbours.
        #[test]
        fn binning_is_as_exact_as_it_says(images in images(4096)) {
            let r = count(&images);
            let difference = (r.auroc().unwrap() - exact_auroc(&images)).abs();
            prop_assert!(difference <= r.auroc_error().unwrap() + 1e-12, "{difference}");
            prop_assert!(difference < 1e-3);
        }
    }
}
