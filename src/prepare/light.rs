//! Photometric matching: what a part's light and exposure do to its picture is taken out before the network sees it.

use super::register::{Reference, statistics};
use crate::error::{Context, Result};
use crate::prepare::shrink::Size;
use linesight_kernels::round::ROUND;
use opencv::core::{BORDER_REFLECT_101, CV_32F, Mat};
use opencv::imgproc;
use opencv::prelude::*;
use serde::{Deserialize, Serialize};

/// What is done to each picture's light.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Light {
    /// Nothing.
    None,
    /// The picture gets the reference's mean and standard deviation.
    Match,
    /// Each place gets the same mean and contrast over its surroundings (local contrast normalisation, Jarrett et al. 2009):
    /// for parts that each differ, under lights that differ.
    Local,
}

/// Width of the surroundings (sigma) as a share of the picture's side.
const SURROUNDINGS: f64 = 0.125;
/// Local statistics are made on means of this many pixels squared: they change slowly.
const COARSE: u32 = 4;
/// Contrast that is taken for none, grey levels: calm places are not blown up to noise.
const FLAT: f32 = 4.0;
/// The most that contrast is raised to match the reference's. With it all sums of 65536ths fit 32 bits.
const MOST_GAIN: f32 = 64.0;
/// What local statistics are brought to.
const MEAN: f32 = 127.0;
const DEVIATION: f32 = 40.0;

impl Light {
    /// Does it to an RGB picture of `size`; `local` is scratch memory.
    pub fn apply(self, rgb: &mut [u8], size: Size, reference: &Reference, local: &mut Local) -> Result<()> {
        match self {
            Light::None => Ok(()),
            Light::Match => {
                match_light(rgb, reference);
                Ok(())
            }
            Light::Local => local.apply(rgb, size),
        }
    }
}

/// Gives `rgb` the reference's mean and standard deviation.
pub fn match_light(rgb: &mut [u8], reference: &Reference) {
    let (mean, deviation) = statistics(rgb);
    let gain = reference.deviation / (deviation + 1e-3);
    move_levels(rgb, mean, gain, reference.mean);
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn move_levels(rgb: &mut [u8], from: f32, gain: f32, to: f32) {
    // in 65536ths, because casts from f32 to u8 are slow; more gain would only turn a blank picture into noise
    let gain = gain.clamp(0.0, MOST_GAIN);
    let offset = ((to - from * gain + 0.5) * 65536.0) as i32;
    let gain = (gain * 65536.0) as i32;
    for v in rgb {
        *v = ((i32::from(*v) * gain + offset) >> 16).clamp(0, 255) as u8;
    }
}

/// Local contrast normalisation; keeps its scratch memory between pictures.
#[derive(Default)]
pub struct Local {
    /// Sums of luma and of its square over coarse pixels, then their means over the surroundings.
    means: Mat,
    squares: Mat,
    smooth: Mat,
    gain: Mat,
    offset: Mat,
}

impl Local {
    /// Brings each place of an RGB picture (sides that are multiples of 4) to the same mean and contrast over its
    /// surroundings. Colours keep their distance from grey.
    pub fn apply(&mut self, rgb: &mut [u8], size: Size) -> Result<()> {
        let (w, h) = ((size.width / COARSE) as i32, (size.height / COARSE) as i32);
        let zero = opencv::core::Scalar::all(0.0);
        for m in [&mut self.means, &mut self.squares] {
            *m = Mat::new_rows_cols_with_default(h, w, CV_32F, zero).failed(|| "light: picture size")?;
        }
        let pixels = |m: &'static str| move || format!("light: {m}");
        sums(
            rgb,
            size.width as usize,
            self.means.data_typed_mut().failed(pixels("mean"))?,
            self.squares.data_typed_mut().failed(pixels("contrast"))?,
        );
        let sigma = SURROUNDINGS * (size.area() as f64).sqrt() / f64::from(COARSE);
        let any = opencv::core::Size::new(0, 0);
        let blur = |from: &Mat, to: &mut Mat| {
            imgproc::gaussian_blur(from, to, any, sigma, sigma, BORDER_REFLECT_101).failed(pixels("surroundings"))
        };
        blur(&self.means, &mut self.smooth)?;
        // squares of the distance from the local mean, not from the mean of the surroundings: a light that falls off is no
        // contrast
        let (own, local) = (self.means.data_typed::<f32>(), self.smooth.data_typed::<f32>());
        let (own, local) = (own.failed(pixels("mean"))?, local.failed(pixels("mean"))?);
        let squares = self.squares.data_typed_mut::<f32>().failed(pixels("contrast"))?;
        for ((square, own), local) in squares.iter_mut().zip(own).zip(local) {
            *square += local * local - 2.0 * local * own;
        }
        std::mem::swap(&mut self.means, &mut self.smooth);
        blur(&self.squares, &mut self.smooth)?;
        std::mem::swap(&mut self.squares, &mut self.smooth);
        // what is done to a pixel is one gain and one offset, which change as slowly as the surroundings do
        let means = self.means.data_typed_mut::<f32>().failed(pixels("mean"))?;
        let squares = self.squares.data_typed_mut::<f32>().failed(pixels("contrast"))?;
        for (mean, square) in means.iter_mut().zip(squares) {
            let gain = DEVIATION / (square.max(0.0).sqrt() + FLAT);
            (*square, *mean) = (gain, MEAN - *mean * gain);
        }
        let full = opencv::core::Size::new(size.width as i32, size.height as i32);
        for (from, to) in [(&self.squares, &mut self.gain), (&self.means, &mut self.offset)] {
            imgproc::resize(from, to, full, 0.0, 0.0, imgproc::INTER_LINEAR).failed(pixels("enlarging"))?;
        }
        let gain = self.gain.data_typed::<f32>().failed(pixels("gain"))?;
        let offset = self.offset.data_typed::<f32>().failed(pixels("offset"))?;
        change(rgb, gain, offset);
        Ok(())
    }
}

/// Means of luma and of its square over each coarse pixel.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn sums(rgb: &[u8], width: usize, means: &mut [f32], squares: &mut [f32]) {
    let coarse = COARSE as usize;
    let share = 1.0 / (coarse * coarse) as f32;
    let (pixels, _) = rgb.as_chunks::<3>();
    for (y, row) in pixels.chunks_exact(width).enumerate() {
        let at = y / coarse * (width / coarse);
        for (x, block) in row.chunks_exact(coarse).enumerate() {
            let (mut sum, mut square) = (0.0, 0.0);
            for p in block {
                let luma = 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]);
                sum += luma;
                square += luma * luma;
            }
            means[at + x] += share * sum;
            squares[at + x] += share * square;
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn change(rgb: &mut [u8], gain: &[f32], offset: &[f32]) {
    let (pixels, _) = rgb.as_chunks_mut::<3>();
    for ((p, g), o) in pixels.iter_mut().zip(gain).zip(offset) {
        for c in p {
            *c = level(f32::from(*c) * g + o);
        }
    }
}

/// The nearest level, 0 to 255.
#[inline(always)]
fn level(value: f32) -> u8 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    (value + ROUND).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn light_is_matched_to_the_reference() {
        let size = Size { width: 16, height: 16 };
        let reference = Reference { size, luma: vec![0; 256], rgb: Vec::new(), mean: 120.0, deviation: 30.0 };
        let mut pixels: Vec<u8> = (0..768u32).map(|i| 60 + (i * 37 % 50) as u8).collect();
        match_light(&mut pixels, &reference);
        let (mean, deviation) = statistics(&pixels);
        assert!((mean - 120.0).abs() < 0.6 && (deviation - 30.0).abs() < 0.6, "{mean} {deviation}");
    }

    #[test]
    fn levels_are_rounded_and_bounded() {
        for (value, wanted) in [(-1e9, 0), (-0.4, 0), (0.49, 0), (0.51, 1), (127.4, 127), (254.6, 255), (1e9, 255)] {
            assert_eq!(level(value), wanted, "{value}");
        }
    }

    /// The same texture under a light that falls off across the picture looks nearly the same as under an even one.
    #[test]
    fn a_gradient_of_light_is_taken_out() {
        let size = Size { width: 128, height: 128 };
        let mut rng = fastrand::Rng::with_seed(3);
        let texture: Vec<f32> = (0..size.area()).map(|_| rng.f32() - 0.5).collect();
        let lit = |light: &dyn Fn(usize) -> f32, taken_out| {
            let mut rgb: Vec<u8> =
                texture.iter().enumerate().flat_map(|(i, t)| [((1.0 + 0.5 * t) * light(i % 128)) as u8; 3]).collect();
            if taken_out {
                Local::default().apply(&mut rgb, size).unwrap();
            }
            rgb
        };
        let pair = |taken_out| (lit(&|_| 120.0, taken_out), lit(&|x| 60.0 + x as f32, taken_out));
        let difference = |(a, b): &(Vec<u8>, Vec<u8>)| {
            a.iter().zip(b).map(|(a, b)| (f32::from(*a) - f32::from(*b)).abs()).sum::<f32>() / a.len() as f32
        };
        let (before, after) = (difference(&pair(false)), difference(&pair(true)));
        assert!(before > 25.0 && after < 6.0, "{before} {after}");
        let (even, _) = pair(true);
        let (mean, deviation) = statistics(&even);
        assert!((mean - 127.0).abs() < 3.0 && (25.0..45.0).contains(&deviation), "{mean} {deviation}");
    }
}
