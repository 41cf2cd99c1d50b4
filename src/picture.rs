//! Pictures that leave the machine: the ROI as JPEG at full resolution, the anomaly map as a transparent PNG over it.
//! Made only for anomalies, off the verdict path.

use crate::detect::AnomalyMap;
use crate::error::{Context, Result};
use crate::frame::Frame;
use crate::prepare::register::Reference;
use crate::prepare::shrink::{Crop, Shrinker, Size};
use image::ImageEncoder;

/// Quality of the frame's JPEG, 1..100.
const JPEG_QUALITY: u8 = 85;
/// Heatmap pixels are this many frame pixels wide and high.
const HEATMAP_SCALE: u32 = 4;

/// The size of a ROI's picture: even, as chroma needs it.
pub fn frame_size(roi: Crop) -> Size {
    Size { width: roi.width & !1, height: roi.height & !1 }
}

/// The ROI as JPEG.
pub fn frame_jpeg(frame: &Frame, roi: Crop) -> Result<Vec<u8>> {
    let size = frame_size(roi);
    scaled_jpeg(frame, Crop { width: size.width, height: size.height, ..roi }, size)
}

/// A part of the frame as JPEG of `size`, which is even.
pub fn scaled_jpeg(frame: &Frame, crop: Crop, size: Size) -> Result<Vec<u8>> {
    let mut rgb = vec![0; size.area() * 3];
    Shrinker::new().rgb(frame, crop, size, &mut rgb)?;
    jpeg(&rgb, size, image::ExtendedColorType::Rgb8).failed(|| format!("frame {} cannot be encoded as JPEG", frame.seq))
}

fn jpeg(pixels: &[u8], size: Size, colour: image::ExtendedColorType) -> image::ImageResult<Vec<u8>> {
    let mut out = Vec::with_capacity(pixels.len() / 8);
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY).write_image(
        pixels,
        size.width,
        size.height,
        colour,
    )?;
    Ok(out)
}

/// What the inspected place should look like: the reference picture's luma as JPEG.
pub fn normal_jpeg(reference: &Reference) -> Result<Vec<u8>> {
    jpeg(&reference.luma, reference.size, image::ExtendedColorType::L8)
        .failed(|| "the reference picture cannot be encoded as JPEG")
}

/// The map as RGBA over the whole ROI: transparent where the part is normal, yellow at the threshold, red beyond it.
pub fn heatmap_png(map: &AnomalyMap, crop: Crop, roi: Crop, threshold: f32) -> Result<Vec<u8>> {
    let size = Size { width: roi.width.div_ceil(HEATMAP_SCALE), height: roi.height.div_ceil(HEATMAP_SCALE) };
    heat_png(size, threshold, |column, row| {
        // centre of this pixel in the frame, then in the map
        let x = (column * HEATMAP_SCALE + HEATMAP_SCALE / 2) as i32 + roi.x - crop.x;
        let y = (row * HEATMAP_SCALE + HEATMAP_SCALE / 2) as i32 + roi.y - crop.y;
        if x < 0 || y < 0 || x >= crop.width as i32 || y >= crop.height as i32 {
            return None;
        }
        let at = |v: i32, from: u32, to: u32| (v as u64 * u64::from(to) / u64::from(from)) as usize;
        let (mx, my) = (at(x, crop.width, map.size.width), at(y, crop.height, map.size.height));
        Some(map.values[my * map.size.width as usize + mx])
    })
}

/// Map values as RGBA: `value` gives that of a column and row, `None` where nothing was judged.
pub fn heat_png(size: Size, threshold: f32, value: impl Fn(u32, u32) -> Option<f32>) -> Result<Vec<u8>> {
    let mut pixels = vec![0u8; size.area() * 4];
    for (i, pixel) in pixels.chunks_exact_mut(4).enumerate() {
        if let Some(value) = value(i as u32 % size.width, i as u32 / size.width) {
            pixel.copy_from_slice(&colour(value / threshold.max(f32::MIN_POSITIVE)));
        }
    }
    let mut out = Vec::new();
    image::codecs::png::PngEncoder::new(&mut out)
        .write_image(&pixels, size.width, size.height, image::ExtendedColorType::Rgba8)
        .failed(|| "the heatmap cannot be encoded as PNG")?;
    Ok(out)
}

/// Colour of a map value relative to the threshold.
fn colour(relative: f32) -> [u8; 4] {
    let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0) as u8;
    // yellow (1) to red (2 and more), fading out below the threshold: what is normal stays clear
    [255, byte(2.0 - relative.max(1.0)) / 10 * 9, 0, byte((relative - 0.75) * 1.6).min(190)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heatmap_covers_the_roi_and_is_clear_outside_the_part() {
        let map = AnomalyMap { size: Size { width: 2, height: 1 }, values: vec![0.0, 30.0] };
        let roi = Crop { x: 100, y: 0, width: 400, height: 200 };
        let crop = Crop { x: 200, y: 40, width: 80, height: 80 };
        let png = heatmap_png(&map, crop, roi, 10.0).unwrap();
        let image = image::load_from_memory(&png).unwrap().into_rgba8();
        assert_eq!(image.dimensions(), (100, 50));
        assert_eq!(image.get_pixel(5, 5).0[3], 0);
        assert_eq!(image.get_pixel(28, 15).0[3], 0, "left half of the part is normal");
        assert_eq!(image.get_pixel(42, 15).0, [255, 0, 0, 190], "right half is far above the threshold");
    }
}
