//! A set: which images there are, how one is made from the seed, where it is written.
//!
//! Every image depends on the set's seed, its folder and its number alone, so that images can be made in any order and a
//! test can make one again. A defective image is the picture of a good part with a defect added: what differs between the
//! two is its truth.

use crate::noise::Rng;
use crate::render::{Exposure, Item, Shot, Studio};
use image::{ExtendedColorType, ImageEncoder, codecs};
use linesight::error::{Context, Error, Result};
use rayon::prelude::*;
use std::path::Path;

/// A difference below this many levels (of 255) is no change that anybody could see.
const SEEN: f32 = 4.0;
/// A defect has at least this many pixels that differ by [`PLAIN`] levels; else another one is drawn.
const PIXELS: usize = 24;
const PLAIN: f32 = 13.0;
/// The mask is wider than the change by this many pixels.
const MARGIN: usize = 1;
/// Quality of JPEG files: what inspection cameras archive with.
const QUALITY: u8 = 92;

/// A label and the seed of the defect's own random numbers.
pub type Wrong<'a> = (&'a str, u64);

/// One kind of part.
pub struct Kind {
    pub name: &'static str,
    pub width: usize,
    pub height: usize,
    /// Of the image files: "jpg" or "png".
    pub extension: &'static str,
    pub studio: Studio,
    /// Names of the folders in test.
    pub defects: &'static [&'static str],
    /// The part of a seed; a defect changes nothing but what it is.
    pub make: fn(u64, Option<Wrong>) -> Box<dyn Item>,
}

/// One image that is to be made.
pub struct Image {
    /// Folder in the set, as "train/good".
    folder: String,
    number: usize,
    label: Option<&'static str>,
}

/// An image as written: interleaved bytes, and for a defective one the mask (255 where it differs).
pub struct Made {
    pub pixels: Vec<u8>,
    pub mask: Option<Vec<u8>>,
}

/// How many images of each sort a set has.
#[derive(Clone, Copy)]
pub struct Counts {
    pub teach: usize,
    pub good: usize,
    /// Over all defects, as evenly as may be.
    pub defective: usize,
}

impl Kind {
    /// The images of a set.
    pub fn images(&self, counts: Counts) -> Vec<Image> {
        let folder = |folder: &str, count, label| {
            let folder = folder.to_string();
            (0..count).map(move |number| Image { folder: folder.clone(), number, label })
        };
        let kinds = self.defects.len();
        folder("train/good", counts.teach, None)
            .chain(folder("test/good", counts.good, None))
            .chain(self.defects.iter().enumerate().flat_map(|(i, label)| {
                folder(&format!("test/{label}"), (counts.defective + kinds - 1 - i) / kinds, Some(*label))
            }))
            .collect()
    }

    /// Makes one image of the set of `seed`.
    pub fn make(&self, seed: u64, image: &Image) -> Made {
        let stream = image.folder.bytes().fold(17u64, |h, b| h.wrapping_mul(131).wrapping_add(b.into()));
        let seed = seed.wrapping_mul(0x1_0001) ^ (stream << 16) ^ image.number as u64;
        let shot = Shot::new(&self.studio, self.width, self.height, &mut Rng::new(seed, 0x5107), seed);
        let good = shot.expose(&*(self.make)(seed, None));
        let Some(label) = image.label else {
            return Made { pixels: shot.develop(&good), mask: None };
        };
        let mut attempt = seed;
        loop {
            let bad = shot.expose(&*(self.make)(seed, Some((label, attempt))));
            let (mask, plain) = self.difference(&good, &bad);
            if plain >= PIXELS {
                return Made { pixels: shot.develop(&bad), mask: Some(mask) };
            }
            attempt = attempt.wrapping_add(0x9e37_79b9);
        }
    }

    /// Where two exposures of a part differ, and how many pixels do so plainly. Shadows beside the part do not count.
    fn difference(&self, a: &Exposure, b: &Exposure) -> (Vec<u8>, usize) {
        let (w, h) = (self.width, self.height);
        let part: Vec<bool> = a.part.iter().zip(&b.part).map(|(a, b)| *a || *b).collect();
        let near = grown(&part, w, h, 1);
        let levels: Vec<f32> = (0..w * h)
            .map(|i| a.levels.iter().zip(&b.levels).map(|(a, b)| (a[i] - b[i]).abs()).fold(0.0, f32::max))
            .zip(near)
            .map(|(d, near)| if near { d } else { 0.0 })
            .collect();
        let seen: Vec<bool> = levels.iter().map(|d| *d > SEEN).collect();
        let mask = grown(&seen, w, h, MARGIN).into_iter().map(|m| if m { 255 } else { 0 }).collect();
        (mask, levels.iter().filter(|d| **d > PLAIN).count())
    }

    /// Makes a set and writes it to `out`, which is made and must not hold another set's images.
    pub fn write(&self, seed: u64, counts: Counts, out: &Path) -> Result<usize> {
        let images = self.images(counts);
        for image in &images {
            let truth = image.label.map(|label| out.join("ground_truth").join(label));
            for dir in [Some(out.join(&image.folder)), truth].into_iter().flatten() {
                std::fs::create_dir_all(&dir).failed(|| format!("cannot make \"{}\"", dir.display()))?;
            }
        }
        images.par_iter().try_for_each(|image| {
            let made = self.make(seed, image);
            let path = out.join(&image.folder).join(format!("{:03}.{}", image.number, self.extension));
            self.save(&path, &made.pixels, self.studio.grey)?;
            let (Some(label), Some(mask)) = (image.label, &made.mask) else { return Ok(()) };
            let path = out.join("ground_truth").join(label).join(format!("{:03}_mask.png", image.number));
            self.save(&path, mask, true)
        })?;
        Ok(images.len())
    }

    fn save(&self, path: &Path, pixels: &[u8], grey: bool) -> Result<()> {
        let colour = if grey { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let (w, h) = (self.width as u32, self.height as u32);
        let mut file = Vec::new();
        let done = match path.extension().is_some_and(|e| e == "jpg") {
            true => codecs::jpeg::JpegEncoder::new_with_quality(&mut file, QUALITY).write_image(pixels, w, h, colour),
            false => codecs::png::PngEncoder::new(&mut file).write_image(pixels, w, h, colour),
        };
        let name = || format!("cannot write \"{}\"", path.display());
        done.map_err(|e| Error::failed(name()).because(e))?;
        std::fs::write(path, file).failed(name)
    }
}

/// A mask grown by `by` pixels to all sides.
fn grown(mask: &[bool], w: usize, h: usize, by: usize) -> Vec<bool> {
    let near = |x: usize, limit: usize| x.saturating_sub(by)..(x + by + 1).min(limit);
    (0..w * h).map(|i| near(i / w, h).any(|y| mask[y * w..][near(i % w, w)].contains(&true))).collect()
}
