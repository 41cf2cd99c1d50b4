//! Shrinks planes to the model's input first and converts colour after: full-resolution pixels are read once and never
//! converted. Belongs to the thread that prepares; keeps its scratch memory between frames.
//!
//! Invariants:
//! 1. A crop that reaches beyond the frame is filled by reflection at the model's size, with the scale of the rest
//!    (test `crops_beyond_the_edge_are_reflected_without_a_change_of_scale`).
//! 2. Luma of [`Shrinker::luma`] is the luma that [`Shrinker::rgb`] converts for the same crop.

use crate::error::{Context, Error, Result};
use crate::frame::{Frame, PixelFormat, Plane};
use linesight_kernels::resample::{Axis, Resampler, Source};
use linesight_kernels::smooth::reflect;
use serde::{Deserialize, Serialize};

/// Width and height of a network input or of any small picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    pub fn area(self) -> usize {
        self.width as usize * self.height as usize
    }
}

/// A rectangle in source pixels; it may reach beyond the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Crop {
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
}

impl Crop {
    pub fn shifted(self, dx: i32, dy: i32) -> Crop {
        Crop { x: self.x + dx, y: self.y + dy, ..self }
    }
    /// Smaller by `fraction` of its size on each side.
    pub fn inset(self, fraction: f32) -> Crop {
        let dx = (self.width as f32 * fraction).round() as i32;
        let dy = (self.height as f32 * fraction).round() as i32;
        Crop {
            x: self.x + dx,
            y: self.y + dy,
            width: (self.width as i32 - 2 * dx).max(1) as u32,
            height: (self.height as i32 - 2 * dy).max(1) as u32,
        }
    }
}

/// The kernel that is recorded in a model package; teach and run use the same.
pub const KERNEL: &str = "triangle";

/// Resizes crops of frames; see the module's documentation.
#[derive(Default)]
pub struct Shrinker {
    resampler: Resampler,
    inner: Vec<u8>,
    yuv: Vec<u8>,
}

impl Shrinker {
    pub fn new() -> Self {
        Self::default()
    }

    /// The crop's luma at `size`, into `out` (`size.area()` bytes). RGB frames give (2R + 5G + B) / 8.
    pub fn luma(&mut self, frame: &Frame, crop: Crop, size: Size, out: &mut [u8]) -> Result<()> {
        if frame.format().is_yuv() || frame.format() == PixelFormat::Gray8 {
            return self.plane(&frame.plane(0), crop_f64(crop, 1.0, 1.0), size, out);
        }
        let mut rgb = std::mem::take(&mut self.yuv);
        rgb.resize(size.area() * 3, 0);
        let done = self.plane(&frame.plane(0), crop_f64(crop, 1.0, 1.0), size, &mut rgb);
        let (r, b) = if frame.format() == PixelFormat::Bgr { (2, 0) } else { (0, 2) };
        for (y, p) in out.iter_mut().zip(rgb.chunks_exact(3)) {
            *y = ((2 * u32::from(p[r]) + 5 * u32::from(p[1]) + u32::from(p[b])) / 8) as u8;
        }
        self.yuv = rgb;
        done
    }

    /// The crop as interleaved RGB at `size` (even width and height), into `out` (`3 * size.area()` bytes).
    pub fn rgb(&mut self, frame: &Frame, crop: Crop, size: Size, out: &mut [u8]) -> Result<()> {
        self.rgb_with(frame, crop, size, None, out)
    }

    /// As [`Shrinker::rgb`], with what [`Shrinker::luma`] gave for the same frame, crop and size, if that was asked for.
    pub fn rgb_with(
        &mut self,
        frame: &Frame,
        crop: Crop,
        size: Size,
        luma: Option<&[u8]>,
        out: &mut [u8],
    ) -> Result<()> {
        let full = crop_f64(crop, 1.0, 1.0);
        match frame.format() {
            PixelFormat::Rgb => self.plane(&frame.plane(0), full, size, out),
            PixelFormat::Bgr => {
                self.plane(&frame.plane(0), full, size, out)?;
                out.chunks_exact_mut(3).for_each(|p| p.swap(0, 2));
                Ok(())
            }
            PixelFormat::Gray8 => {
                let mut gray = std::mem::take(&mut self.yuv);
                gray.resize(size.area(), 0);
                let done = match luma {
                    Some(luma) => {
                        gray.copy_from_slice(luma);
                        Ok(())
                    }
                    None => self.plane(&frame.plane(0), full, size, &mut gray),
                };
                for (p, &g) in out.chunks_exact_mut(3).zip(&gray) {
                    p.fill(g);
                }
                self.yuv = gray;
                done
            }
            PixelFormat::I420 | PixelFormat::Nv12 | PixelFormat::Y42b | PixelFormat::Y444 => {
                let mut yuv = std::mem::take(&mut self.yuv);
                let done = self.yuv_to_rgb(frame, crop, size, luma, &mut yuv, out);
                self.yuv = yuv;
                done
            }
        }
    }

    /// Shrinks the planes to 4:2:0 at the model's size and converts there.
    fn yuv_to_rgb(
        &mut self,
        frame: &Frame,
        crop: Crop,
        size: Size,
        luma: Option<&[u8]>,
        yuv: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Result<()> {
        let half = Size { width: size.width / 2, height: size.height / 2 };
        let (n, q) = (size.area(), half.area());
        yuv.resize(n + 2 * q, 0);
        let (y, uv) = yuv.split_at_mut(n);
        let y = match luma {
            Some(luma) => luma,
            None => {
                self.plane(&frame.plane(0), crop_f64(crop, 1.0, 1.0), size, y)?;
                y
            }
        };
        let c = frame.colorimetry();
        let range = if c.full_range { yuv::YuvRange::Full } else { yuv::YuvRange::Limited };
        let matrix = if c.bt709 { yuv::YuvStandardMatrix::Bt709 } else { yuv::YuvStandardMatrix::Bt601 };
        let (sx, sy) = frame.format().chroma_scale();
        let chroma = crop_f64(crop, sx, sy);
        let converted = if frame.format() == PixelFormat::Nv12 {
            self.plane(&frame.plane(1), chroma, half, uv)?;
            let image = yuv::YuvBiPlanarImage {
                y_plane: y,
                y_stride: size.width,
                uv_plane: uv,
                uv_stride: size.width,
                width: size.width,
                height: size.height,
            };
            yuv::yuv_nv12_to_rgb(&image, out, size.width * 3, range, matrix, yuv::YuvConversionMode::Balanced)
        } else {
            let (u, v) = uv.split_at_mut(q);
            self.plane(&frame.plane(1), chroma, half, u)?;
            self.plane(&frame.plane(2), chroma, half, v)?;
            let image = yuv::YuvPlanarImage {
                y_plane: y,
                y_stride: size.width,
                u_plane: u,
                u_stride: half.width,
                v_plane: v,
                v_stride: half.width,
                width: size.width,
                height: size.height,
            };
            yuv::yuv420_to_rgb(&image, out, size.width * 3, range, matrix)
        };
        converted.failed(|| format!("colours of frame {} cannot be converted", frame.seq))
    }

    /// One plane's crop (x, y, width, height in the plane's own pixels) at `size`.
    pub fn plane(&mut self, plane: &Plane<'_>, crop: [f64; 4], size: Size, out: &mut [u8]) -> Result<()> {
        let [x, y, w, h] = crop;
        let (ow, oh) = (size.width as usize, size.height as usize);
        let (cols, x, w) = inside(x, w, ow, plane.width).ok_or_else(|| outside(crop, plane))?;
        let (rows, y, h) = inside(y, h, oh, plane.height).ok_or_else(|| outside(crop, plane))?;
        if cols.len() == ow && rows.len() == oh {
            return self.resize(plane, [x, y, w, h], size, out);
        }
        let part = Size { width: cols.len() as u32, height: rows.len() as u32 };
        let mut inner = std::mem::take(&mut self.inner);
        inner.resize(part.area() * plane.channels, 0);
        self.resize(plane, [x, y, w, h], part, &mut inner)?;
        let (n, pitch) = (plane.channels, part.width as usize * plane.channels);
        for (oy, line) in out.chunks_exact_mut(ow * n).enumerate() {
            let from = &inner[reflect(oy as i64 - rows.start as i64, rows.len()) * pitch..][..pitch];
            line[cols.start * n..cols.end * n].copy_from_slice(from);
            for ox in (0..cols.start).chain(cols.end..ow) {
                let at = reflect(ox as i64 - cols.start as i64, cols.len()) * n;
                line[ox * n..(ox + 1) * n].copy_from_slice(&from[at..at + n]);
            }
        }
        self.inner = inner;
        Ok(())
    }

    fn resize(&mut self, plane: &Plane<'_>, crop: [f64; 4], size: Size, out: &mut [u8]) -> Result<()> {
        let row = plane.width * plane.channels;
        if plane.stride < row || plane.data.len() < plane.stride * (plane.height - 1) + row {
            return Err(Error::failed("a plane does not have the size it declares"));
        }
        let [x, y, w, h] = crop;
        let source = Source { data: plane.data, stride: plane.stride, channels: plane.channels };
        let across = Axis { start: x, length: w, limit: plane.width, n: size.width as usize };
        let down = Axis { start: y, length: h, limit: plane.height, n: size.height as usize };
        self.resampler.resample(source, across, down, out);
        Ok(())
    }
}

/// A crop in the pixels of a plane of another scale: x, y, width, height.
pub(super) fn crop_f64(c: Crop, sx: f64, sy: f64) -> [f64; 4] {
    [f64::from(c.x) * sx, f64::from(c.y) * sy, f64::from(c.width) * sx, f64::from(c.height) * sy]
}

fn outside(crop: [f64; 4], plane: &Plane<'_>) -> Error {
    Error::failed(format!(
        "crop {:.0},{:.0} {:.0}x{:.0} lies outside the {}x{} plane",
        crop[0], crop[1], crop[2], crop[3], plane.width, plane.height
    ))
}

/// Which of `n` output pixels are wholly covered by the plane, and the source interval that gives them.
fn inside(at: f64, length: f64, n: usize, limit: usize) -> Option<(std::ops::Range<usize>, f64, f64)> {
    const SLACK: f64 = 1e-6;
    let scale = length / n as f64;
    let first = ((-at) / scale - SLACK).ceil().max(0.0) as usize;
    let last = (((limit as f64 - at) / scale + SLACK).floor().max(0.0) as usize).min(n);
    if first >= last {
        return None;
    }
    let start = (at + first as f64 * scale).max(0.0);
    let length = ((last - first) as f64 * scale).min(limit as f64 - start);
    Some((first..last, start, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize, stride: usize) -> Vec<u8> {
        let mut data = vec![255; stride * height];
        for y in 0..height {
            for x in 0..width {
                data[y * stride + x] = (2 * x) as u8;
            }
        }
        data
    }

    #[test]
    fn crops_beyond_the_edge_are_reflected_without_a_change_of_scale() {
        let data = ramp(100, 40, 100);
        let plane = Plane { data: &data, stride: 100, width: 100, height: 40, channels: 1 };
        let size = Size { width: 16, height: 16 };
        let (mut whole, mut beyond) = (vec![0; 256], vec![0; 256]);
        Shrinker::new().plane(&plane, [0.0, 0.0, 32.0, 32.0], size, &mut whole).unwrap();
        Shrinker::new().plane(&plane, [-4.0, 0.0, 32.0, 32.0], size, &mut beyond).unwrap();
        // away from the edge, where the kernel is cut, the ramp continues at the same scale: output x shows input x - 2
        for x in 4..16 {
            assert!(beyond[x].abs_diff(whole[x - 2]) <= 1, "{x}: {:?} {:?}", &beyond[..16], &whole[..16]);
        }
        assert_eq!(beyond[0], beyond[4]);
        assert_eq!(beyond[1], beyond[3]);
    }

    #[test]
    fn row_padding_is_not_seen() {
        let (tight, padded) = (ramp(99, 32, 99), ramp(99, 32, 112));
        let size = Size { width: 32, height: 16 };
        let (mut a, mut b) = (vec![0; 512], vec![0; 512]);
        let crop = [0.0, 0.0, 99.0, 32.0];
        let plane = |data, stride| Plane { data, stride, width: 99, height: 32, channels: 1 };
        Shrinker::new().plane(&plane(&tight, 99), crop, size, &mut a).unwrap();
        Shrinker::new().plane(&plane(&padded, 112), crop, size, &mut b).unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn a_crop_outside_the_frame_is_an_error() {
        let data = ramp(100, 40, 100);
        let plane = Plane { data: &data, stride: 100, width: 100, height: 40, channels: 1 };
        let e = Shrinker::new().plane(&plane, [200.0, 0.0, 32.0, 32.0], Size { width: 16, height: 16 }, &mut [0; 256]);
        assert!(e.unwrap_err().to_string().contains("lies outside the 100x40 plane"));
    }
}
