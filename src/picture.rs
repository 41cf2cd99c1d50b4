//! Pictures that leave the machine: the ROI as JPEG at full resolution, the anomaly map as a transparent PNG over it.
//! Made only for anomalies, off the verdict path.

use crate::detect::AnomalyMap;
use crate::error::{Context, Result};
use crate::frame::{Colorimetry, Frame, PixelFormat, Plane};
use crate::prepare::placement::Placement;
use crate::prepare::register::Reference;
use crate::prepare::shrink::{Crop, Shrinker, Size};
use image::ImageEncoder;
use jpeg_encoder::EncodingError;

/// Quality of the frame's JPEG, 1..100.
const JPEG_QUALITY: u8 = 85;
/// Longer side of a package's overview picture, about.
const OVERVIEW_SIDE: u32 = 768;
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

/// A part of the frame as JPEG of `size`, which is even. Luma and chroma that are wanted in their own size are encoded as they
/// are, without a picture in RGB between.
pub fn scaled_jpeg(frame: &Frame, crop: Crop, size: Size) -> Result<Vec<u8>> {
    let encoded = match Planes::of(frame, crop, size) {
        Some(planes) => encode(|encoder| encoder.encode_image(planes)),
        None => {
            let mut rgb = vec![0; size.area() * 3];
            Shrinker::new().rgb(frame, crop, size, &mut rgb)?;
            jpeg(&rgb, size)
        }
    };
    encoded.failed(|| format!("frame {} cannot be encoded as JPEG", frame.seq))
}

/// An RGB picture as JPEG.
fn jpeg(rgb: &[u8], size: Size) -> std::result::Result<Vec<u8>, EncodingError> {
    // longer sides are refused there
    let side = |n: u32| u16::try_from(n).unwrap_or(0);
    encode(|encoder| encoder.encode(rgb, side(size.width), side(size.height), jpeg_encoder::ColorType::Rgb))
}

fn encode(
    work: impl FnOnce(jpeg_encoder::Encoder<&mut Vec<u8>>) -> std::result::Result<(), EncodingError>,
) -> std::result::Result<Vec<u8>, EncodingError> {
    let mut out = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut out, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    work(encoder)?;
    Ok(out)
}

/// A region of a planar YUV frame as the encoder takes it, row by row.
struct Planes<'a> {
    luma: Plane<'a>,
    chroma: [Plane<'a>; 2],
    /// Of the chroma planes: halved across, halved down.
    halved: [bool; 2],
    region: Crop,
    levels: Levels,
}

impl<'a> Planes<'a> {
    /// None where the frame has no such planes, or the region is to be scaled or reaches beyond the frame.
    fn of(frame: &'a Frame, region: Crop, size: Size) -> Option<Self> {
        let planar = matches!(frame.format(), PixelFormat::I420 | PixelFormat::Y42b | PixelFormat::Y444);
        let inside = region.x >= 0
            && region.y >= 0
            && region.x as u32 + region.width <= frame.width()
            && region.y as u32 + region.height <= frame.height();
        let fits = (region.width, region.height) == (size.width, size.height)
            && u16::try_from(size.width.max(size.height)).is_ok();
        if !(planar && inside && fits) {
            return None;
        }
        let (sx, sy) = frame.format().chroma_scale();
        Some(Planes {
            luma: frame.plane(0),
            chroma: [frame.plane(1), frame.plane(2)],
            halved: [sx < 1.0, sy < 1.0],
            region,
            levels: Levels::of(frame.colorimetry()),
        })
    }
}

impl<'a> jpeg_encoder::ImageBuffer for Planes<'a> {
    fn get_jpeg_color_type(&self) -> jpeg_encoder::JpegColorType {
        jpeg_encoder::JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        self.region.width as u16
    }

    fn height(&self) -> u16 {
        self.region.height as u16
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let (x, y) = (self.region.x as usize, self.region.y as usize + usize::from(y));
        let n = self.region.width as usize;
        let [across, down] = self.halved;
        let row = y >> usize::from(down);
        let luma = &self.luma.data[y * self.luma.stride + x..][..n];
        let line = |plane: &Plane<'a>| &plane.data[row * plane.stride..][..plane.width];
        let chroma = self.chroma.each_ref().map(line);
        let [out_y, out_cb, out_cr, _] = buffers;
        let start = out_y.len();
        out_y.extend_from_slice(luma);
        for (out, chroma) in [&mut *out_cb, &mut *out_cr].into_iter().zip(chroma) {
            match across {
                true => out.extend((x..x + n).map(|x| chroma[x / 2])),
                false => out.extend_from_slice(&chroma[x..x + n]),
            }
        }
        self.levels.convert(&mut out_y[start..], &mut out_cb[start..], &mut out_cr[start..]);
    }
}

/// From a stream's luma and chroma to those of a JPEG, which are of full range and BT.601 (JFIF, ITU-T T.871).
#[derive(Debug, Clone, Copy)]
struct Levels {
    /// None where they are that already.
    change: Option<Change>,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    black: f32,
    /// Rows give luma, Cb and Cr; columns take those of the stream, from black and from grey.
    matrix: [[f32; 3]; 3],
}

impl Levels {
    fn of(from: Colorimetry) -> Self {
        if from.full_range && !from.bt709 {
            return Levels { change: None };
        }
        let (kr, kb) = if from.bt709 { (0.2126, 0.0722) } else { (0.299, 0.114) };
        let (black, luma, chroma) =
            if from.full_range { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
        let column = |unit: [f64; 3]| {
            let [y, cb, cr] = [unit[0] * luma, unit[1] * chroma, unit[2] * chroma];
            let (r, b) = (y + 2.0 * (1.0 - kr) * cr, y + 2.0 * (1.0 - kb) * cb);
            let g = (y - kr * r - kb * b) / (1.0 - kr - kb);
            let y = 0.299 * r + 0.587 * g + 0.114 * b;
            [y, (b - y) / 1.772, (r - y) / 1.402].map(|v| v as f32)
        };
        let columns = [column([1.0, 0.0, 0.0]), column([0.0, 1.0, 0.0]), column([0.0, 0.0, 1.0])];
        let row = |i: usize| columns.map(|c| c[i]);
        Levels { change: Some(Change { black, matrix: [row(0), row(1), row(2)] }) }
    }

    fn convert(self, luma: &mut [u8], cb: &mut [u8], cr: &mut [u8]) {
        if let Some(change) = self.change {
            convert(change, luma, cb, cr);
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma", "aarch64+neon"))]
fn convert(change: Change, luma: &mut [u8], cb: &mut [u8], cr: &mut [u8]) {
    let Change { black, matrix: [to_y, to_cb, to_cr] } = change;
    for ((y, u), v) in luma.iter_mut().zip(cb).zip(cr) {
        let (a, b, c) = (f32::from(*y) - black, f32::from(*u) - 128.0, f32::from(*v) - 128.0);
        let sum = |m: [f32; 3], grey: f32| ((m[0] * a + m[1] * b + m[2] * c + grey + 0.5) as i32).clamp(0, 255) as u8;
        (*y, *u, *v) = (sum(to_y, 0.0), sum(to_cb, 128.0), sum(to_cr, 128.0));
    }
}

/// What the inspected place should look like: the median good part as JPEG. A part that lies at an angle is shown as it
/// lies, so that the picture compares with the frame.
pub fn normal_jpeg(reference: &Reference, placement: &Placement) -> Result<Vec<u8>> {
    let size = reference.size;
    let encoded = if placement.crop().is_some() {
        jpeg(&reference.rgb, size)
    } else {
        let (turned, size) = as_it_lies(reference, placement);
        jpeg(&turned, size)
    };
    encoded.failed(|| "the reference picture cannot be encoded as JPEG")
}

/// The reference in the pose of a part, over the box of that part. Beyond the reference its edge continues.
fn as_it_lies(reference: &Reference, placement: &Placement) -> (Vec<u8>, Size) {
    let bounds = placement.bounds();
    // not finer than the reference is
    let step = (placement.extent().0 / f64::from(reference.size.width)).max(1.0);
    let length = |l: u32| ((f64::from(l) / step).ceil() as u32).max(1);
    let size = Size { width: length(bounds.width), height: length(bounds.height) };
    let (w, h) = (reference.size.width as usize, reference.size.height as usize);
    let mut out = vec![0u8; size.area() * 3];
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (i, j) = (i as u32 % size.width, i as u32 / size.width);
        let at = |v: u32, origin: i32| (f64::from(v) + 0.5) * step + f64::from(origin);
        let (u, v) = placement.to_unit(at(i, bounds.x), at(j, bounds.y));
        let x = (u * w as f64 - 0.5).clamp(0.0, (w - 1) as f64);
        let y = (v * h as f64 - 0.5).clamp(0.0, (h - 1) as f64);
        let (xi, yi) = ((x as usize).min(w.saturating_sub(2)), (y as usize).min(h.saturating_sub(2)));
        let (fx, fy) = (x - xi as f64, y - yi as f64);
        for (c, p) in pixel.iter_mut().enumerate() {
            let at = |x: usize, y: usize| f64::from(reference.rgb[(y.min(h - 1) * w + x.min(w - 1)) * 3 + c]);
            let top = at(xi, yi) + fx * (at(xi + 1, yi) - at(xi, yi));
            let below = at(xi, yi + 1) + fx * (at(xi + 1, yi + 1) - at(xi, yi + 1));
            *p = (top + fy * (below - top)).round() as u8;
        }
    }
    (out, size)
}

/// The median good part with the outline of what is judged, as RGB: what a person looks at before trusting a mask.
/// `mask` has the size `mask_size`; the picture is enlarged to be looked at.
pub fn overview(reference: &Reference, mask: Option<&[u8]>, mask_size: Size) -> (Vec<u8>, Size) {
    let longer = reference.size.width.max(reference.size.height).max(1);
    let scale = (OVERVIEW_SIDE / longer).max(1);
    let size = Size { width: reference.size.width * scale, height: reference.size.height * scale };
    let judged = |x: u32, y: u32| {
        let at = |v: u32, from: u32, to: u32| (u64::from(v) * u64::from(to) / u64::from(from)) as usize;
        let (mx, my) = (at(x, size.width, mask_size.width), at(y, size.height, mask_size.height));
        mask.is_none_or(|m| m.get(my * mask_size.width as usize + mx).is_none_or(|&v| v != 0))
    };
    let mut out = vec![0u8; size.area() * 3];
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (x, y) = (i as u32 % size.width, i as u32 / size.width);
        let from = ((y / scale) * reference.size.width + x / scale) as usize * 3;
        let inside = judged(x, y);
        let edge = [(2, 0), (0, 2)].iter().any(|&(dx, dy)| {
            judged((x + dx).min(size.width - 1), (y + dy).min(size.height - 1)) != inside
                || judged(x.saturating_sub(dx), y.saturating_sub(dy)) != inside
        });
        for (c, p) in pixel.iter_mut().enumerate() {
            let v = reference.rgb[from + c];
            // what is not judged is dimmed
            *p = if inside { v } else { (f32::from(v) * 0.6) as u8 };
        }
        if edge {
            pixel.copy_from_slice(&[255, 40, 40]);
        }
    }
    (out, size)
}

/// Size of the heatmap of a ROI.
pub fn heatmap_size(roi: Crop) -> Size {
    Size { width: roi.width.div_ceil(HEATMAP_SCALE), height: roi.height.div_ceil(HEATMAP_SCALE) }
}

/// The map as RGBA over the whole ROI: transparent where the part is normal, yellow at the threshold, red beyond it.
pub fn heatmap_png(map: &AnomalyMap, placement: &Placement, roi: Crop, threshold: f32) -> Result<Vec<u8>> {
    heat_png(heatmap_size(roi), threshold, |column, row| {
        // centre of this pixel in the frame, then in the map
        let at = |i: u32, origin: i32| f64::from((i * HEATMAP_SCALE + HEATMAP_SCALE / 2) as i32 + origin);
        let (u, v) = placement.to_unit(at(column, roi.x), at(row, roi.y));
        if !(0.0..1.0).contains(&u) || !(0.0..1.0).contains(&v) {
            return None;
        }
        let cell = |v: f64, n: u32| ((v * f64::from(n)) as usize).min(n as usize - 1);
        let (mx, my) = (cell(u, map.size.width), cell(v, map.size.height));
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
        let png = heatmap_png(&map, &crop.into(), roi, 10.0).unwrap();
        let image = image::load_from_memory(&png).unwrap().into_rgba8();
        assert_eq!(image.dimensions(), (100, 50));
        assert_eq!(image.get_pixel(5, 5).0[3], 0);
        assert_eq!(image.get_pixel(28, 15).0[3], 0, "left half of the part is normal");
        assert_eq!(image.get_pixel(42, 15).0, [255, 0, 0, 190], "right half is far above the threshold");
    }
    /// A frame of each colorimetry looks the same as JPEG as it does by way of RGB.
    #[test]
    fn planes_are_encoded_as_they_look_in_rgb() {
        use gstreamer_video as gst_video;
        gstreamer::init().unwrap();
        for colorimetry in ["bt709", "bt601", "1:4:0:0", "1:3:0:0"] {
            let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, 64, 48)
                .colorimetry(&colorimetry.parse().unwrap())
                .build()
                .unwrap();
            let mut bytes = vec![0u8; info.size()];
            for (plane, (low, high)) in [(40, 210), (90, 170), (80, 180)].into_iter().enumerate() {
                let (w, h) = if plane == 0 { (64, 48) } else { (32, 24) };
                let (offset, stride) = (info.offset()[plane], info.stride()[plane] as usize);
                for (x, y) in (0..w * h).map(|i| (i % w, i / w)) {
                    bytes[offset + y * stride + x] = (low + (high - low) * (x + plane * y) / (w + plane * h)) as u8;
                }
            }
            let frame = Frame::map(gstreamer::Buffer::from_mut_slice(bytes), &info, 0, None).unwrap();
            let crop = Crop { x: 8, y: 4, width: 40, height: 32 };
            let size = frame_size(crop);
            let mut rgb = vec![0; size.area() * 3];
            Shrinker::new().rgb(&frame, crop, size, &mut rgb).unwrap();
            let decoded = image::load_from_memory(&frame_jpeg(&frame, crop).unwrap()).unwrap().into_rgb8();
            let difference: u32 = decoded.iter().zip(&rgb).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
            let mean = f64::from(difference) / rgb.len() as f64;
            assert!(mean < 2.0, "{colorimetry}: {mean}");
        }
    }

    /// A turned part: right in the map is down in the frame; the normal picture is turned the same way.
    #[test]
    fn pictures_of_a_turned_part_lie_as_it_lies() {
        let map = AnomalyMap { size: Size { width: 2, height: 1 }, values: vec![0.0, 30.0] };
        let roi = Crop { x: 0, y: 0, width: 400, height: 400 };
        let p = Placement::turned([200.0, 200.0], std::f64::consts::FRAC_PI_2, 200.0, 100.0);
        let image = image::load_from_memory(&heatmap_png(&map, &p, roi, 10.0).unwrap()).unwrap().into_rgba8();
        assert_eq!(image.get_pixel(50, 35).0[3], 0);
        assert_eq!(image.get_pixel(50, 65).0, [255, 0, 0, 190]);
        let size = Size { width: 20, height: 10 };
        let rgb: Vec<u8> = (0..200).flat_map(|i| if i % 20 < 10 { [0u8, 0, 0] } else { [250, 250, 250] }).collect();
        let reference = Reference { size, luma: Vec::new(), rgb, mean: 0.0, deviation: 1.0 };
        let (turned, size) = as_it_lies(&reference, &p);
        assert_eq!((size.width, size.height), (10, 20));
        assert!(turned[(2 * 10 + 5) * 3] < 10 && turned[(17 * 10 + 5) * 3] > 240);
    }

    #[test]
    fn the_overview_shows_where_the_mask_ends() {
        let size = Size { width: 32, height: 32 };
        let reference = Reference { size, luma: vec![], rgb: vec![100; 32 * 32 * 3], mean: 0.0, deviation: 1.0 };
        let mask: Vec<u8> = (0..64).map(|i| if i % 8 < 4 { 255 } else { 0 }).collect();
        let (picture, size) = overview(&reference, Some(&mask), Size { width: 8, height: 8 });
        assert_eq!((size.width, size.height), (768, 768));
        let at = |x: usize| &picture[(300 * 768 + x) * 3..][..3];
        assert_eq!((at(100), at(384), at(600)), (&[100u8, 100, 100][..], &[255, 40, 40][..], &[60, 60, 60][..]));
    }
}
