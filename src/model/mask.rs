//! A mask that a person gives: a picture of what is judged, white where it is.

use crate::error::{Context, Error, Result};
use crate::prepare::shrink::Size;
use std::path::Path;

/// The user's mask; `judged` is the width and height of what is judged, in source pixels, `map` the size of masks in packages.
pub(crate) fn load(path: &Path, [width, height]: [u32; 2], map: Size) -> Result<image::GrayImage> {
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
pub(crate) fn shrunk(mask: &image::GrayImage, size: Size) -> Result<Vec<u8>> {
    let small = image::imageops::resize(mask, size.width, size.height, image::imageops::FilterType::Triangle);
    let out: Vec<u8> = small.into_raw().into_iter().map(|v| if v >= 128 { 255 } else { 0 }).collect();
    if out.iter().all(|&v| v == 0) {
        return Err(Error::usage("the mask leaves nothing at the anomaly map's size: nothing would be judged")
            .hint("white marks what is judged; white areas must be several pixels wide"));
    }
    Ok(out)
}
