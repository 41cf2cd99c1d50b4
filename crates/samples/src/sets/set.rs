//! A set: which images there are, how one is made from the seed.
//!
//! Every image depends on the set's seed, its folder and its number alone, so that images can be made in any order and a
//! test can make one again. A defective image is the picture of a good part with a defect added: what differs between the
//! two is its truth.

use super::render::{Exposure, Item, Shot, Studio};
use super::{bolt, fabric, gasket, plate, stone};
use crate::noise::Rng;
use image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
use image::{ExtendedColorType, ImageEncoder, ImageResult};

/// A difference below this many levels (of 255) is no change that anybody could see.
const SEEN: f32 = 4.0;
/// A defect has at least this many pixels that differ by [`PLAIN`] levels; else another one is drawn.
const PIXELS: usize = 24;
const PLAIN: f32 = 13.0;
/// The mask is wider than the change by this many pixels.
const MARGIN: usize = 1;
/// Quality of JPEG files: what inspection cameras archive with.
const QUALITY: u8 = 92;

/// All kinds, in the order in which they are made.
pub const KINDS: [&Kind; 5] = [&bolt::KIND, &fabric::KIND, &gasket::KIND, &plate::KIND, &stone::KIND];

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
    pub part: fn(u64, Option<Wrong>) -> Box<dyn Item>,
}

/// One image that is to be made.
pub struct Image {
    /// Folder in the set, as "train/good".
    folder: String,
    number: usize,
    pub label: Option<&'static str>,
}

impl Image {
    /// Everything in the picture hangs on this number.
    fn seed(&self, seed: u64) -> u64 {
        let stream = self.folder.bytes().fold(17u64, |h, b| h.wrapping_mul(131).wrapping_add(b.into()));
        seed.wrapping_mul(0x1_0001) ^ (stream << 16) ^ self.number as u64
    }
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
        let (shot, good) = self.shoot(seed, image);
        match image.label {
            None => Made { pixels: shot.develop(&good), mask: None },
            Some(label) => {
                let (bad, mask) = self.spoil(seed, image, label, &shot, &good);
                Made { pixels: shot.develop(&bad), mask: Some(mask) }
            }
        }
    }

    /// The good part of an image in its light.
    pub fn shoot(&self, seed: u64, image: &Image) -> (Shot, Exposure) {
        let seed = image.seed(seed);
        let shot = Shot::new(&self.studio, self.width, self.height, &mut Rng::new(seed, 0x5107), seed);
        let good = shot.expose(&*(self.part)(seed, None));
        (shot, good)
    }

    /// The same part with a defect that can be seen, and the mask of what it changes.
    pub fn spoil(&self, seed: u64, image: &Image, label: &str, shot: &Shot, good: &Exposure) -> (Exposure, Vec<u8>) {
        let seed = image.seed(seed);
        let mut attempt = seed;
        loop {
            let bad = shot.expose(&*(self.part)(seed, Some((label, attempt))));
            let (mask, plain) = self.difference(good, &bad);
            if plain >= PIXELS {
                return (bad, mask);
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

    /// The name in the set of an image's file.
    pub fn file(&self, image: &Image) -> String {
        format!("{}/{:03}.{}", image.folder, image.number, self.extension)
    }

    /// The files of an image of the set of `seed`, by their names in the set: the picture, and the mask of a defective one.
    ///
    /// # Errors
    /// A picture cannot be encoded.
    pub fn files(&self, seed: u64, image: &Image) -> ImageResult<Vec<(String, Vec<u8>)>> {
        let made = self.make(seed, image);
        let mut files = vec![(self.file(image), self.encode(&made.pixels, self.studio.grey, self.extension)?)];
        if let (Some(label), Some(mask)) = (image.label, &made.mask) {
            let name = format!("ground_truth/{label}/{:03}_mask.png", image.number);
            files.push((name, self.encode(mask, true, "png")?));
        }
        Ok(files)
    }

    fn encode(&self, pixels: &[u8], grey: bool, extension: &str) -> ImageResult<Vec<u8>> {
        let colour = if grey { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let (w, h) = (self.width as u32, self.height as u32);
        let mut file = Vec::new();
        match extension {
            "jpg" => JpegEncoder::new_with_quality(&mut file, QUALITY).write_image(pixels, w, h, colour),
            _ => PngEncoder::new(&mut file).write_image(pixels, w, h, colour),
        }?;
        Ok(file)
    }
}

/// A mask grown by `by` pixels to all sides.
fn grown(mask: &[bool], w: usize, h: usize, by: usize) -> Vec<bool> {
    let near = |x: usize, limit: usize| x.saturating_sub(by)..(x + by + 1).min(limit);
    (0..w * h).map(|i| near(i / w, h).any(|y| mask[y * w..][near(i % w, w)].contains(&true))).collect()
}
