//! Photometric matching: what a part's light and exposure do to its picture is taken out before the network sees it.

use super::register::{Reference, statistics};
use crate::prepare::shrink::Size;
use linesight_kernels::contrast::Contrast;
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

/// The most that contrast is raised to match the reference's. With it all sums of 65536ths fit 32 bits.
const MOST_GAIN: f32 = 64.0;
impl Light {
    /// Does it to an RGB picture of `size`; `contrast` is scratch memory.
    pub fn apply(self, rgb: &mut [u8], size: Size, reference: &Reference, contrast: &mut Contrast) {
        match self {
            Light::None => {}
            Light::Match => match_light(rgb, reference),
            Light::Local => contrast.normalise(rgb, size.width as usize),
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

#[cfg(test)]
mod tests {
    use super::*;
    use opencv::boxed_ref::BoxedRef;
    use opencv::core::{BORDER_REFLECT_101, Mat};
    use opencv::imgproc;
    use opencv::prelude::*;
    use proptest::prelude::*;

    #[test]
    fn light_is_matched_to_the_reference() {
        let size = Size { width: 16, height: 16 };
        let reference = Reference { size, luma: vec![0; 256], rgb: Vec::new(), mean: 120.0, deviation: 30.0 };
        let mut pixels: Vec<u8> = (0..768u32).map(|i| 60 + (i * 37 % 50) as u8).collect();
        match_light(&mut pixels, &reference);
        let (mean, deviation) = statistics(&pixels);
        assert!((mean - 120.0).abs() < 0.6 && (deviation - 30.0).abs() < 0.6, "{mean} {deviation}");
    }

    /// What OpenCV makes of a plane of that size.
    fn by_opencv(
        values: &[f32],
        size: Size,
        step: impl Fn(&BoxedRef<'_, Mat>, &mut Mat) -> opencv::Result<()>,
    ) -> Vec<f32> {
        let from = Mat::new_rows_cols_with_data(size.height as i32, size.width as i32, values).unwrap();
        let mut to = Mat::default();
        step(&from, &mut to).unwrap();
        to.data_typed::<f32>().unwrap().to_vec()
    }

    /// Local contrast with every plane of the picture's size.
    fn contrast_by_opencv(rgb: &mut [u8], size: Size) {
        let small = Size { width: size.width / 4, height: size.height / 4 };
        let sides = |size: Size| opencv::core::Size::new(size.width as i32, size.height as i32);
        let resized = |values: &[f32], from: Size, to: Size, how| {
            by_opencv(values, from, |a, b| imgproc::resize(a, b, sides(to), 0.0, 0.0, how))
        };
        let sigma = 0.125 * (small.area() as f64).sqrt();
        let any = opencv::core::Size::default();
        let blur = |values: &[f32]| {
            by_opencv(values, small, |a, b| imgproc::gaussian_blur(a, b, any, sigma, sigma, BORDER_REFLECT_101))
        };
        let luma = |p: &[u8; 3]| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]);
        let lumas: Vec<f32> = rgb.as_chunks().0.iter().map(luma).collect();
        let squares: Vec<f32> = lumas.iter().map(|l| l * l).collect();
        let squares = resized(&squares, size, small, imgproc::INTER_AREA);
        let own = resized(&lumas, size, small, imgproc::INTER_AREA);
        let mean = blur(&own);
        let distance = |((s, m), o): ((&f32, &f32), &f32)| s + m * m - 2.0 * m * o;
        let variance = blur(&squares.iter().zip(&mean).zip(&own).map(distance).collect::<Vec<_>>());
        let gain: Vec<f32> = variance.iter().map(|v| 40.0 / (v.max(0.0).sqrt() + 4.0)).collect();
        let offset: Vec<f32> = mean.iter().zip(&gain).map(|(m, g)| 127.0 - m * g).collect();
        let enlarged = |values: &[f32]| resized(values, small, size, imgproc::INTER_LINEAR);
        let (gain, offset) = (enlarged(&gain), enlarged(&offset));
        for ((p, g), o) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(gain).zip(offset) {
            p.iter_mut().for_each(|c| *c = (f32::from(*c) * g + o).round() as u8);
        }
    }

    proptest! {
        /// Two bytes in a hundred thousand are just between two levels; of a small picture of few levels more can be.
        #[test]
        fn equals_blur_and_resize(width in 2u32..60, height in 2u32..60, seed in any::<u64>()) {
            let size = Size { width: 4 * width, height: 4 * height };
            let mut rng = fastrand::Rng::with_seed(seed);
            // patches, so that some surroundings have more contrast than others
            let patches: Vec<[u8; 3]> = (0..64).map(|_| [rng.u8(..), rng.u8(..), rng.u8(..)]).collect();
            let at = |i: usize| patches[i / size.width as usize / 32 % 8 * 8 + i % size.width as usize / 32 % 8];
            let noise = |c: u8| i32::from(c) + rng.i32(-9..9);
            let picture: Vec<u8> = (0..size.area()).flat_map(at).map(noise).map(|v| v.clamp(0, 255) as u8).collect();
            let (mut got, mut wanted) = (picture.clone(), picture);
            Contrast::default().normalise(&mut got, size.width as usize);
            contrast_by_opencv(&mut wanted, size);
            prop_assert!(got.iter().zip(&wanted).all(|(a, b)| a.abs_diff(*b) <= 1));
            let other = got.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            prop_assert!(other <= 10 + got.len() / 1000, "{other} of {}", got.len());
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
                Contrast::default().normalise(&mut rgb, size.width as usize);
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
