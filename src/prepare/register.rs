//! Registration by shift: what makes a position-wise detector see the same place at the same grid cell.
//!
//! Shift: phase correlation (Kuglin & Hines 1975) of the crop's luma against the median teach picture, both halved; the ROI is
//! then cropped again by whole source pixels, so that nothing is interpolated. The reference's transform is made once.
//!
//! The peak of a phase correlation is a sinc between its pixels: neither a centroid nor a parabola finds its place (off by half a
//! source pixel and more on boards of 640 pixels). Smoothed by a Gaussian, which the spectrum is multiplied by, the peak is a
//! Gaussian itself, and the parabola through the logarithms of three pixels finds its place exactly; high frequencies,
//! whose phases are noise, count less, too. Measured on the same boards: off by .03 of a source pixel.

use crate::error::{Context, Result};
use crate::prepare::shrink::Size;
use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftPlanner};
use std::sync::Arc;

/// Pixels of the input, along each axis, that one pixel of what is correlated stands for. The peak is found to a hundredth of
/// a pixel, so nothing is lost, and the transforms cost a quarter of those of the whole input and stay in the cache.
const STEP: usize = 2;
/// Deviation of the Gaussian that the correlation is smoothed by, pixels of what is correlated.
const SIGMA: f64 = 1.5;
/// The peak's share of the correlation is looked for so many pixels on each side of the highest.
const PEAK_REACH: i64 = 3;

/// The median teach picture, against which crops are registered and matched.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub size: Size,
    /// Luma, `size.area()` bytes.
    pub luma: Vec<u8>,
    /// The median RGB picture, `3 * size.area()` bytes: what the place should look like, for people.
    pub rgb: Vec<u8>,
    /// Mean over all pixels and channels of the median RGB picture, 0..255.
    pub mean: f32,
    /// Standard deviation over the same.
    pub deviation: f32,
}

/// Finds the shift between a crop and the reference. Belongs to one thread.
pub struct Registrar {
    /// Of the pictures that are given.
    width: usize,
    /// Across and down.
    windows: [Vec<f32>; 2],
    transform: Transform,
    /// The reference's spectrum, conjugate.
    reference: Vec<Complex32>,
    /// The spectrum of the Gaussian that smooths.
    smoothing: Vec<f32>,
    spectrum: Vec<Complex32>,
    picture: Vec<f32>,
}

/// A measured displacement, in pixels of the picture that was given.
#[derive(Debug, Clone, Copy)]
pub struct Shift {
    pub dx: f64,
    pub dy: f64,
    /// The peak's share of the correlation, 0..1; small when the pictures have little in common.
    pub response: f64,
}

impl Registrar {
    pub fn new(reference: &Reference) -> Result<Self> {
        let size = reference.size;
        let (w, h) = (size.width as usize / STEP, size.height as usize / STEP);
        let mut this = Registrar {
            width: size.width as usize,
            windows: [window(w), window(h)],
            transform: Transform::new(w, h),
            reference: Vec::new(),
            smoothing: smoothing(w, h),
            spectrum: Vec::new(),
            picture: Vec::new(),
        };
        this.load(&reference.luma)?;
        this.reference = this.spectrum.iter().map(Complex32::conj).collect();
        Ok(this)
    }

    /// How far the content of `luma` lies from where the reference has it: positive `dx` means further right.
    pub fn measure(&mut self, luma: &[u8]) -> Result<Shift> {
        self.load(luma)?;
        for ((s, r), smoothing) in self.spectrum.iter_mut().zip(&self.reference).zip(&self.smoothing) {
            let cross = *s * r;
            *s = cross * (smoothing / cross.norm().max(f32::MIN_POSITIVE));
        }
        self.transform.inverse(&mut self.spectrum, &mut self.picture)?;
        let (w, h) = (self.transform.width, self.transform.height);
        let highest = self.picture.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        let (px, py) = ((highest % w) as i64, (highest / w) as i64);
        let at = |x: i64, y: i64| {
            let (x, y) = ((px + x).rem_euclid(w as i64) as usize, (py + y).rem_euclid(h as i64) as usize);
            f64::from(self.picture[y * w + x])
        };
        let reach = -PEAK_REACH..=PEAK_REACH;
        let sum: f64 = reach.clone().flat_map(|y| reach.clone().map(move |x| (x, y))).map(|(x, y)| at(x, y)).sum();
        // the second half of the correlation is shifts to the left and up
        let signed = |p: i64, n: usize| (if 2 * p >= n as i64 { p - n as i64 } else { p }) as f64;
        let dx = signed(px, w) + summit(at(-1, 0), at(0, 0), at(1, 0));
        let dy = signed(py, h) + summit(at(0, -1), at(0, 0), at(0, 1));
        Ok(Shift { dx: dx * STEP as f64, dy: dy * STEP as f64, response: sum / (w * h) as f64 })
    }

    /// The spectrum of a picture, centred and windowed.
    fn load(&mut self, luma: &[u8]) -> Result<()> {
        let w = self.transform.width;
        self.picture.clear();
        for rows in luma.chunks_exact(STEP * self.width).take(self.transform.height) {
            let (upper, lower) = rows.split_at(self.width);
            let pairs = upper.as_chunks::<STEP>().0.iter().zip(lower.as_chunks::<STEP>().0);
            self.picture.extend(pairs.map(|(a, b)| f32::from(a.iter().chain(b).map(|&v| u16::from(v)).sum::<u16>())));
        }
        let mean = self.picture.iter().sum::<f32>() / self.picture.len().max(1) as f32;
        for (line, down) in self.picture.chunks_exact_mut(w).zip(&self.windows[1]) {
            line.iter_mut().zip(&self.windows[0]).for_each(|(p, across)| *p = (*p - mean) * across * down);
        }
        self.transform.forward(&mut self.picture, &mut self.spectrum)
    }
}

/// Where a Gaussian has its summit that is `before`, `here` and `after` at three pixels, of which the middle one is the highest;
/// pixels from there.
fn summit(before: f64, here: f64, after: f64) -> f64 {
    // pictures without structure have no peak
    if before <= 0.0 || after <= 0.0 {
        return 0.0;
    }
    let (before, here, after) = (before.ln(), here.ln(), after.ln());
    let curve = before - 2.0 * here + after;
    if curve < 0.0 { (0.5 * (before - after) / curve).clamp(-0.5, 0.5) } else { 0.0 }
}

/// The spectrum, `[column][row]`, of a Gaussian of deviation [`SIGMA`].
fn smoothing(width: usize, height: usize) -> Vec<f32> {
    let frequency = |i: usize, n: usize| i.min(n - i) as f64 / n as f64;
    let weight = |f: f64| (-2.0 * (std::f64::consts::PI * SIGMA * f).powi(2)).exp();
    (0..=width / 2)
        .flat_map(|x| (0..height).map(move |y| (x, y)))
        .map(|(x, y)| (weight(frequency(x, width)) * weight(frequency(y, height))) as f32)
        .collect()
}

/// The root of a Hann window of `n` values: what is near the edge still counts, and what leaves there makes no jump.
fn window(n: usize) -> Vec<f32> {
    let step = std::f64::consts::TAU / (n.max(2) - 1) as f64;
    (0..n).map(|i| (0.5 * (1.0 - (i as f64 * step).cos())).sqrt() as f32).collect()
}

/// Fourier transforms of pictures of one size. Spectra are `[column][row]`, not scaled.
struct Transform {
    width: usize,
    height: usize,
    across: Arc<dyn RealToComplex<f32>>,
    back: Arc<dyn ComplexToReal<f32>>,
    down: Arc<dyn Fft<f32>>,
    up: Arc<dyn Fft<f32>>,
    lines: Vec<Complex32>,
    scratch: Vec<Complex32>,
}

impl Transform {
    fn new(width: usize, height: usize) -> Self {
        let (mut real, mut complex) = (RealFftPlanner::new(), FftPlanner::new());
        let (across, back) = (real.plan_fft_forward(width), real.plan_fft_inverse(width));
        let (down, up) = (complex.plan_fft_forward(height), complex.plan_fft_inverse(height));
        let scratch = [
            across.get_scratch_len(),
            back.get_scratch_len(),
            down.get_inplace_scratch_len(),
            up.get_inplace_scratch_len(),
        ];
        let scratch = scratch.into_iter().max().unwrap_or(0);
        let lines = vec![Complex32::default(); (width / 2 + 1) * height];
        Transform { width, height, across, back, down, up, lines, scratch: vec![Complex32::default(); scratch] }
    }

    /// `picture` is used up.
    fn forward(&mut self, picture: &mut [f32], spectrum: &mut Vec<Complex32>) -> Result<()> {
        let columns = self.width / 2 + 1;
        for (line, to) in picture.chunks_exact_mut(self.width).zip(self.lines.chunks_exact_mut(columns)) {
            self.across
                .process_with_scratch(line, to, &mut self.scratch[..self.across.get_scratch_len()])
                .failed(|| "registration: transform")?;
        }
        spectrum.resize(self.lines.len(), Complex32::default());
        transpose(&self.lines, columns, spectrum);
        self.down.process_with_scratch(spectrum, &mut self.scratch);
        Ok(())
    }

    /// `spectrum` is used up.
    fn inverse(&mut self, spectrum: &mut [Complex32], picture: &mut Vec<f32>) -> Result<()> {
        let columns = self.width / 2 + 1;
        self.up.process_with_scratch(spectrum, &mut self.scratch);
        transpose(spectrum, self.height, &mut self.lines);
        picture.resize(self.width * self.height, 0.0);
        for (line, to) in self.lines.chunks_exact_mut(columns).zip(picture.chunks_exact_mut(self.width)) {
            // a real picture's first and last column are real but for rounding
            line[0].im = 0.0;
            if self.width.is_multiple_of(2) {
                line[columns - 1].im = 0.0;
            }
            self.back
                .process_with_scratch(line, to, &mut self.scratch[..self.back.get_scratch_len()])
                .failed(|| "registration: inverse transform")?;
        }
        Ok(())
    }
}

/// `[row][column]` with `columns` columns to `[column][row]`.
fn transpose(from: &[Complex32], columns: usize, to: &mut [Complex32]) {
    /// Values of a block stay in the first-level cache.
    const BLOCK: usize = 16;
    let rows = from.len() / columns;
    for y0 in (0..rows).step_by(BLOCK) {
        for x0 in (0..columns).step_by(BLOCK) {
            for x in x0..(x0 + BLOCK).min(columns) {
                for y in y0..(y0 + BLOCK).min(rows) {
                    to[x * rows + y] = from[y * columns + x];
                }
            }
        }
    }
}

/// Mean and standard deviation over all bytes of a picture.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub fn statistics(pixels: &[u8]) -> (f32, f32) {
    let (mut sum, mut squares) = (0u64, 0u64);
    for block in pixels.chunks(4096) {
        let (mut s, mut q) = (0u32, 0u32);
        for &v in block {
            s += u32::from(v);
            q += u32::from(v) * u32::from(v);
        }
        sum += u64::from(s);
        squares += u64::from(q);
    }
    let n = pixels.len().max(1) as f64;
    let mean = sum as f64 / n;
    (mean as f32, (squares as f64 / n - mean * mean).max(0.0).sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(size: Size, dx: i32, dy: i32) -> Vec<u8> {
        let mut luma = vec![40; size.area()];
        for (x, y, w, h) in [(30, 20, 25, 9), (60, 50, 12, 30), (20, 70, 40, 6)] {
            for yy in y + dy..y + dy + h {
                for xx in x + dx..x + dx + w {
                    luma[(yy * size.width as i32 + xx) as usize] = 200;
                }
            }
        }
        luma
    }

    #[test]
    fn the_sign_of_a_shift_is_the_direction_the_part_moved() {
        let size = Size { width: 112, height: 112 };
        let reference = Reference { size, luma: picture(size, 0, 0), rgb: Vec::new(), mean: 0.0, deviation: 1.0 };
        let mut r = Registrar::new(&reference).unwrap();
        let s = r.measure(&picture(size, 5, -3)).unwrap();
        assert!((s.dx - 5.0).abs() < 0.3 && (s.dy + 3.0).abs() < 0.3, "{s:?}");
        assert!(s.response > 0.3, "{s:?}");
    }

    /// Small shifts are found to a twentieth of a pixel; of large ones the window cuts a part, which the second measurement
    /// after the crop has moved makes good.
    #[test]
    fn shifts_are_found_to_a_fraction_of_a_pixel() {
        let size = Size { width: 336, height: 192 };
        let blob = |cx: f64, cy: f64| -> Vec<u8> {
            let at = |i: u32| (f64::from(i % size.width), f64::from(i / size.width));
            let blobs = [(0.0, 0.0, 9.0), (61.0, 20.0, 5.0), (-40.0, 33.0, 7.0), (15.0, -50.0, 4.0)];
            let light = |i| {
                let (x, y) = at(i);
                let each = blobs.map(|(bx, by, r)| (-((x - cx - bx).powi(2) + (y - cy - by).powi(2)) / (r * r)).exp());
                (30.0 + 180.0 * each.iter().sum::<f64>()).min(255.0) as u8
            };
            (0..size.width * size.height).map(light).collect()
        };
        let reference = Reference { size, luma: blob(168.0, 96.0), rgb: Vec::new(), mean: 0.0, deviation: 1.0 };
        let mut r = Registrar::new(&reference).unwrap();
        for (dx, dy) in [(0.0, 0.0), (1.0, 0.0), (3.5, -2.25), (-11.0, 7.5), (0.5, 0.5)] {
            let s = r.measure(&blob(168.0 + dx, 96.0 + dy)).unwrap();
            let most = 0.05 + 0.02 * f64::hypot(dx, dy);
            assert!((s.dx - dx).abs() < most && (s.dy - dy).abs() < most, "{dx} {dy}: {s:?}");
        }
    }

    /// Found by a picture of one colour among good parts.
    #[test]
    fn a_picture_without_structure_lies_somewhere_in_itself() {
        let size = Size { width: 128, height: 128 };
        let reference = Reference { size, luma: picture(size, 0, 0), rgb: Vec::new(), mean: 0.0, deviation: 1.0 };
        let mut r = Registrar::new(&reference).unwrap();
        for level in [0u8, 119, 255] {
            let s = r.measure(&vec![level; size.area()]).unwrap();
            assert!(s.dx.abs() <= 66.0 && s.dy.abs() <= 66.0, "{level}: {s:?}");
        }
    }

    #[test]
    fn measuring_again_gives_the_same() {
        let size = Size { width: 128, height: 128 };
        let reference = Reference { size, luma: picture(size, 0, 0), rgb: Vec::new(), mean: 0.0, deviation: 1.0 };
        let mut r = Registrar::new(&reference).unwrap();
        let first = r.measure(&picture(size, 5, -3)).unwrap();
        for _ in 0..50 {
            let again = r.measure(&picture(size, 5, -3)).unwrap();
            assert!(
                (again.dx - first.dx).abs() + (again.response - first.response).abs() < 1e-9,
                "{first:?} {again:?}"
            );
        }
    }
}
