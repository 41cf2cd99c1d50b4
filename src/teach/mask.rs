//! What of a part is judged: all of it, what the user's mask leaves, or what was learned to be part.

use super::Options;
use super::parts::Part;
use super::pose::Posed;
use crate::detect::backbone::grid_of;
use crate::detect::head::map_size;
use crate::error::{Context, Error, Result};
use crate::prepare::shrink::Size;
use std::path::Path;

/// What is judged.
pub(super) enum Judged {
    All,
    /// The user's mask, in its own size.
    Given(image::GrayImage),
    /// What rigid registration learned to be part.
    Learned,
}

impl Judged {
    pub(super) fn new(options: &Options, posed: &Posed, parts: &[Part]) -> Result<Judged> {
        let Some(path) = options.mask.as_deref() else {
            return Ok(if posed.learned.is_some() { Judged::Learned } else { Judged::All });
        };
        let judged = match &posed.learned {
            Some(l) => [l.rigid.strip[2].round() as u32, l.rigid.strip[3].round() as u32],
            None => [parts[0].crop.width, parts[0].crop.height],
        };
        let map = map_size(grid_of(posed.size_at(parts, options.variant.side())));
        load(path, judged, map).map(Judged::Given)
    }

    /// The mask at a map's size: 255 where it is judged, else 0.
    pub(super) fn at(&self, map: Size, posed: &Posed) -> Result<Option<Vec<u8>>> {
        match (self, &posed.learned) {
            (Judged::Given(mask), _) => shrunk(mask, map).map(Some),
            (Judged::Learned, Some(learned)) => learned.mask(map).map(Some),
            _ => Ok(None),
        }
    }
}

/// The user's mask; `judged` is the width and height of what is judged, in source pixels, `map` the size of masks in packages.
fn load(path: &Path, [width, height]: [u32; 2], map: Size) -> Result<image::GrayImage> {
    let name = path.display();
    let bytes = std::fs::read(path)
        .usage(|| format!("mask \"{name}\" cannot be read"))
        .map_err(|e| e.hint("--mask names a PNG: white where parts are judged, black where they are not"))?;
    let image = image::load_from_memory(&bytes)
        .usage(|| format!("mask \"{name}\" is not a picture"))
        .map_err(|e| e.hint("give a PNG: white where parts are judged, black where they are not"))?;
    let (have, want) = (f64::from(image.width()) / f64::from(image.height()), f64::from(width) / f64::from(height));
    if (have / want - 1.0).abs() > 0.05 {
        return Err(Error::usage(format!(
            "mask \"{name}\" is {}x{}, the judged area is {width}x{height}",
            image.width(),
            image.height()
        ))
        .hint(format!(
            "the mask must have the shape of the judged area: {width}x{height}, or {}x{} as in a package",
            map.width, map.height
        )));
    }
    let gray = image.into_luma8();
    if gray.pixels().all(|p| p.0[0] < 128) {
        return Err(Error::usage(format!("mask \"{name}\" is black everywhere: nothing would be judged"))
            .hint("white marks what is judged"));
    }
    Ok(gray)
}

/// The mask at a map's size: 255 or 0.
fn shrunk(mask: &image::GrayImage, size: Size) -> Result<Vec<u8>> {
    let small = image::imageops::resize(mask, size.width, size.height, image::imageops::FilterType::Triangle);
    let out: Vec<u8> = small.into_raw().into_iter().map(|v| if v >= 128 { 255 } else { 0 }).collect();
    if out.iter().all(|&v| v == 0) {
        return Err(Error::usage("the mask leaves nothing at the anomaly map's size: nothing would be judged")
            .hint("white marks what is judged; white areas must be several pixels wide"));
    }
    Ok(out)
}
