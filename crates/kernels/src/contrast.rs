//! Local contrast normalisation (Jarrett et al. 2009): each place of a picture gets the same mean and contrast over its
//! surroundings.
//!
//! Statistics are made on coarse pixels, as they change slowly, and so do a pixel's gain and offset: they are enlarged row by
//! row as they are needed, and no plane of the picture's size is written.
//!
//! Invariants:
//! 1. The picture is that of OpenCV's `GaussianBlur` and `resize` on f32 (test `equals_blur_and_resize` in
//!    `src/prepare/light.rs`).
//! 2. Once the size is known nothing is allocated.

use crate::round::ROUND;
use crate::smooth::{operator, product};

/// Width of the surroundings (sigma) as a share of the picture's side.
const SURROUNDINGS: f64 = 0.125;
/// Sides of a coarse pixel.
pub const COARSE: usize = 4;
/// Contrast that is taken for none, grey levels: calm places are not blown up to noise.
const FLAT: f32 = 4.0;
/// What local statistics are brought to.
const MEAN: f32 = 127.0;
const DEVIATION: f32 = 40.0;
/// Where the middles of a coarse pixel's pixels lie between those of the coarse pixels around it.
const SHARES: [f32; COARSE] = [0.625, 0.875, 0.125, 0.375];
/// Pixels whose lumas are summed side by side.
const LANES: usize = 16;

/// Normalises pictures; keeps its scratch memory and what it knows of the last size.
#[derive(Default)]
pub struct Contrast {
    /// Of the picture, in coarse pixels.
    width: usize,
    height: usize,
    /// What smooths a column: `[height][height]`; and a row: `[width][width]`, transposed.
    down: Vec<f32>,
    across: Vec<f32>,
    /// Of luma and of its square, over coarse pixels, then over the surroundings; then what gain and offset are there.
    means: Vec<f32>,
    squares: Vec<f32>,
    smooth: Vec<f32>,
    scratch: Vec<f32>,
    gain: Wide,
    offset: Wide,
}

/// The two rows of a coarse plane that a row of pixels lies between, enlarged to a value for each of a row's bytes.
#[derive(Default)]
struct Wide {
    above: Vec<f32>,
    below: Vec<f32>,
    /// From the one to the other.
    step: Vec<f32>,
    /// A coarse row with its ends repeated, and its values for each pixel.
    padded: Vec<f32>,
    pixels: Vec<f32>,
}

impl Contrast {
    /// Brings each place of an RGB picture of `width` pixels a row (sides that are multiples of [`COARSE`]) to the same mean and
    /// contrast over its surroundings. Colours keep their distance from grey.
    pub fn normalise(&mut self, rgb: &mut [u8], width: usize) {
        self.fit(width / COARSE, rgb.len() / (3 * width) / COARSE);
        let Contrast { width, down, across, means, squares, smooth, scratch, gain, offset, .. } = self;
        let mut blur = |from: &[f32], to: &mut [f32]| {
            product(down, from, *width, scratch);
            product(scratch, across, *width, to);
        };
        sums(rgb, *width, means, squares);
        blur(means, smooth);
        // squares of the distance from the local mean, not from the mean of the surroundings: a light that falls off is no
        // contrast
        for ((square, own), local) in squares.iter_mut().zip(&mut *means).zip(&*smooth) {
            *square += local * local - 2.0 * local * *own;
            *own = *local;
        }
        blur(squares, smooth);
        // what is done to a pixel is one gain and one offset, which change as slowly as the surroundings do
        for (mean, square) in means.iter_mut().zip(&mut *smooth) {
            let gain = DEVIATION / (square.max(0.0).sqrt() + FLAT);
            (*square, *mean) = (gain, MEAN - *mean * gain);
        }
        change(rgb, *width, smooth, means, gain, offset);
    }

    /// Makes the matrices and the memory for pictures of `width` x `height` coarse pixels.
    fn fit(&mut self, width: usize, height: usize) {
        if (self.width, self.height) == (width, height) {
            return;
        }
        (self.width, self.height) = (width, height);
        let sigma = (SURROUNDINGS * ((width * height) as f64).sqrt()) as f32;
        self.down = operator(height, height, sigma).into_iter().flatten().map(|w| w as f32).collect();
        let across = operator(width, width, sigma);
        self.across = (0..width * width).map(|i| across[i % width][i / width] as f32).collect();
        for plane in [&mut self.means, &mut self.squares, &mut self.smooth, &mut self.scratch] {
            plane.resize(width * height, 0.0);
        }
        for wide in [&mut self.gain, &mut self.offset] {
            wide.padded.resize(width + 2, 0.0);
            wide.pixels.resize(width * COARSE, 0.0);
            wide.above.resize(width * COARSE * 3, 0.0);
            wide.below.resize(width * COARSE * 3, 0.0);
            wide.step.resize(width * COARSE * 3, 0.0);
        }
    }
}

impl Wide {
    /// The next coarse row is below.
    #[inline(always)]
    fn advance(&mut self, row: &[f32]) {
        let n = row.len();
        std::mem::swap(&mut self.above, &mut self.below);
        self.padded[1..=n].copy_from_slice(row);
        (self.padded[0], self.padded[n + 1]) = (row[0], row[n - 1]);
        let (pixels, _) = self.pixels.as_chunks_mut::<COARSE>();
        let beside = self.padded.iter().zip(&self.padded[1..]).zip(&self.padded[2..]);
        for (pixels, ((before, own), after)) in pixels.iter_mut().zip(beside) {
            let [far, near, ..] = SHARES;
            *pixels = [
                before + far * (own - before),
                before + near * (own - before),
                own + (1.0 - near) * (after - own),
                own + (1.0 - far) * (after - own),
            ];
        }
        self.below.as_chunks_mut::<3>().0.iter_mut().zip(&self.pixels).for_each(|(bytes, v)| *bytes = [*v; 3]);
        self.step.iter_mut().zip(&self.above).zip(&self.below).for_each(|((s, a), b)| *s = b - a);
    }

    /// What each byte has between the two rows.
    #[inline(always)]
    fn at(&self, share: f32) -> impl Iterator<Item = f32> {
        self.above.iter().zip(&self.step).map(move |(above, step)| above + share * step)
    }
}

/// Means of luma and of its square over each coarse pixel, of which there are `width` in a row.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn sums(rgb: &[u8], width: usize, means: &mut [f32], squares: &mut [f32]) {
    let line = 3 * width * COARSE;
    let planes = means.chunks_exact_mut(width).zip(squares.chunks_exact_mut(width));
    for (rows, (means, squares)) in rgb.chunks_exact(COARSE * line).zip(planes) {
        let whole = width / (LANES / COARSE) * (LANES / COARSE);
        (0..whole).step_by(LANES / COARSE).for_each(|x| sum::<LANES>(rows, line, x, means, squares));
        (whole..width).for_each(|x| sum::<COARSE>(rows, line, x, means, squares));
    }
}

/// `N` pixels beside each other, from the coarse pixel `x` on, of the rows of one row of coarse pixels.
#[inline(always)]
fn sum<const N: usize>(rows: &[u8], line: usize, x: usize, means: &mut [f32], squares: &mut [f32]) {
    let (mut luma, mut square) = ([0f32; N], [0f32; N]);
    for row in rows.chunks_exact(line) {
        let (pixels, _) = row[3 * COARSE * x..].as_chunks::<3>();
        let Some(pixels) = pixels.first_chunk::<N>() else { break };
        for ((p, luma), square) in pixels.iter().zip(&mut luma).zip(&mut square) {
            let value = 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]);
            *luma += value;
            *square += value * value;
        }
    }
    let share = 1.0 / (COARSE * COARSE) as f32;
    for (sums, to) in [(luma, means), (square, squares)] {
        for (to, sums) in to[x..].iter_mut().zip(sums.as_chunks::<COARSE>().0) {
            *to = share * sums.iter().sum::<f32>();
        }
    }
}

/// Gives each pixel its gain and offset, of which there are `width` coarse ones in a row.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn change(rgb: &mut [u8], width: usize, gains: &[f32], offsets: &[f32], gain: &mut Wide, offset: &mut Wide) {
    let mut coarse = gains.chunks_exact(width).zip(offsets.chunks_exact(width));
    let (Some(first), Some(last)) = (coarse.clone().next(), coarse.clone().next_back()) else { return };
    gain.advance(first.0);
    offset.advance(first.1);
    for (y, row) in rgb.chunks_exact_mut(3 * width * COARSE).enumerate() {
        // at the first pixel whose middle is below that of a coarse one, and at the very first
        if y == 0 || y % COARSE == COARSE / 2 {
            let (next_gain, next_offset) = coarse.next().unwrap_or(last);
            gain.advance(next_gain);
            offset.advance(next_offset);
        }
        let changes = gain.at(SHARES[y % COARSE]).zip(offset.at(SHARES[y % COARSE]));
        row.iter_mut().zip(changes).for_each(|(c, (gain, offset))| *c = level(f32::from(*c) * gain + offset));
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
    fn levels_are_rounded_and_bounded() {
        for (value, wanted) in [(-1e9, 0), (-0.4, 0), (0.49, 0), (0.51, 1), (127.4, 127), (254.6, 255), (1e9, 255)] {
            assert_eq!(level(value), wanted, "{value}");
        }
    }
}
