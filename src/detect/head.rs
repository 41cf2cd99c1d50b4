//! The normality head: distance of each grid cell's features from what teaching learned, as an anomaly map and a score.
//!
//! Model: at each position a low-rank Gaussian, that is PaDiM (Defard 2020) with the covariance of probabilistic PCA (Tipping
//! & Bishop 1999). With z = features - mean, B the leading directions scaled by sqrt(w), lambda the noise floor:
//! `d² = (|z|² - |Bᵀz|²) / lambda`. The map is d, enlarged four times and smoothed; the score is its maximum.
//! Always f32: quantising the head makes scores constant.

use crate::error::{Context, Error, Result};
use crate::prepare::shrink::Size;
use opencv::core::{CV_32F, Mat};
use opencv::imgproc;
use opencv::prelude::*;

/// Directions kept at each position; fewer taught parts leave the rest zero.
pub const RANK: usize = 16;
/// Map pixels for each grid cell.
pub const MAP_SCALE: u32 = 4;
/// Smoothing of the map, in map pixels.
const SIGMA: f64 = 1.5;

/// What teaching learned: `positions = grid.area()`, `channels` features each.
#[derive(Debug, Clone, PartialEq)]
pub struct Normality {
    pub grid: Size,
    pub channels: usize,
    /// `[position][channel]`
    pub mean: Vec<f32>,
    /// `[position][channel][RANK]`: eigenvectors times sqrt(e / (e + lambda)).
    pub basis: Vec<f32>,
    /// `[position]`: 1 / lambda.
    pub inverse_noise: Vec<f32>,
}

impl Normality {
    /// Checks sizes and that every number is finite.
    pub fn validate(&self) -> Result<()> {
        let n = self.grid.area();
        for (name, values, wanted) in [
            ("mean", &self.mean, n * self.channels),
            ("basis", &self.basis, n * self.channels * RANK),
            ("inverse_noise", &self.inverse_noise, n),
        ] {
            if values.len() != wanted {
                return Err(Error::failed(format!(
                    "tensor \"{name}\" has {} values, {wanted} are wanted",
                    values.len()
                )));
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::failed(format!("tensor \"{name}\" holds {} at index {i}", values[i])));
            }
        }
        Ok(())
    }
}

/// The map of one inspection, in the unit of the score.
#[derive(Debug, Clone, PartialEq)]
pub struct AnomalyMap {
    pub size: Size,
    pub values: Vec<f32>,
}

impl AnomalyMap {
    /// The score of the inspection: the map's maximum.
    pub fn max(&self) -> f32 {
        self.values.iter().copied().fold(0.0, f32::max)
    }
}

/// Scores features; belongs to one thread and keeps its scratch memory.
pub struct Head {
    grid: Size,
    distances: Vec<f32>,
    enlarged: Mat,
    smoothed: Mat,
}

impl Head {
    pub fn new(grid: Size) -> Self {
        Head { grid, distances: vec![0.0; grid.area()], enlarged: Mat::default(), smoothed: Mat::default() }
    }

    /// The map for one part's features `[position][channel]`. `mask`, of the map's size, keeps the pixels that are not 0.
    pub fn map(&mut self, normality: &Normality, features: &[f32], mask: Option<&[u8]>) -> Result<AnomalyMap> {
        if features.len() != normality.mean.len() {
            return Err(Error::failed(format!(
                "the network gave {} features, the model holds {}",
                features.len(),
                normality.mean.len()
            )));
        }
        distances(normality, features, &mut self.distances);
        let grid = std::mem::take(&mut self.distances);
        let map = self.smooth(&grid, mask);
        self.distances = grid;
        map
    }

    /// Enlarges and smooths a grid of distances.
    pub fn smooth(&mut self, grid: &[f32], mask: Option<&[u8]>) -> Result<AnomalyMap> {
        let size = map_size(self.grid);
        let from = Mat::new_rows_cols_with_data(self.grid.height as i32, self.grid.width as i32, grid)
            .failed(|| "anomaly map size")?;
        imgproc::resize(
            &from,
            &mut self.enlarged,
            opencv::core::Size::new(size.width as i32, size.height as i32),
            0.0,
            0.0,
            imgproc::INTER_LINEAR,
        )
        .failed(|| "anomaly map cannot be enlarged")?;
        imgproc::gaussian_blur(
            &self.enlarged,
            &mut self.smoothed,
            opencv::core::Size::new(0, 0),
            SIGMA,
            SIGMA,
            opencv::core::BORDER_REFLECT_101,
        )
        .failed(|| "anomaly map cannot be smoothed")?;
        debug_assert_eq!(self.smoothed.typ(), CV_32F);
        let mut values = self.smoothed.data_typed::<f32>().failed(|| "anomaly map")?.to_vec();
        if let Some(mask) = mask {
            values.iter_mut().zip(mask).for_each(|(v, &m)| *v *= f32::from(u8::from(m != 0)));
        }
        Ok(AnomalyMap { size, values })
    }
}

/// Size of the map for a feature grid.
pub fn map_size(grid: Size) -> Size {
    Size { width: grid.width * MAP_SCALE, height: grid.height * MAP_SCALE }
}

/// Distance of each position's features from normal.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn distances(normality: &Normality, features: &[f32], out: &mut [f32]) {
    let c = normality.channels;
    let cells = features
        .chunks_exact(c)
        .zip(normality.mean.chunks_exact(c))
        .zip(normality.basis.chunks_exact(c * RANK))
        .zip(&normality.inverse_noise);
    for (d, (((f, mean), basis), inverse_noise)) in out.iter_mut().zip(cells) {
        let mut projection = [0f32; RANK];
        let mut norm = [0f32; RANK];
        for ((f8, m8), b8) in f.chunks_exact(8).zip(mean.chunks_exact(8)).zip(basis.chunks_exact(8 * RANK)) {
            for i in 0..8 {
                let z = f8[i] - m8[i];
                norm[i] += z * z;
                for (p, b) in projection.iter_mut().zip(&b8[i * RANK..(i + 1) * RANK]) {
                    *p += z * b;
                }
            }
        }
        let explained: f32 = projection.iter().map(|p| p * p).sum();
        let total: f32 = norm.iter().sum();
        *d = ((total - explained).max(0.0) * inverse_noise).sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_follows_the_formula() {
        let (grid, channels) = (Size { width: 3, height: 2 }, 16);
        let n = grid.area();
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let normality = Normality {
            grid,
            channels,
            mean: (0..n * channels).map(|_| random()).collect(),
            basis: (0..n * channels * RANK).map(|_| 0.1 * random()).collect(),
            inverse_noise: (0..n).map(|_| 1.0 + random()).collect(),
        };
        let features: Vec<f32> = (0..n * channels).map(|_| random()).collect();
        let mut got = vec![0.0; n];
        distances(&normality, &features, &mut got);
        for p in 0..n {
            let z: Vec<f32> =
                (0..channels).map(|c| features[p * channels + c] - normality.mean[p * channels + c]).collect();
            let mut d2: f32 = z.iter().map(|z| z * z).sum();
            for k in 0..RANK {
                let y: f32 = (0..channels).map(|c| z[c] * normality.basis[(p * channels + c) * RANK + k]).sum();
                d2 -= y * y;
            }
            let wanted = (d2 * normality.inverse_noise[p]).sqrt();
            assert!((got[p] - wanted).abs() < 1e-4, "{p}: {} {wanted}", got[p]);
        }
    }

    #[test]
    fn the_map_is_zero_outside_the_mask() {
        let grid = Size { width: 4, height: 4 };
        let mut head = Head::new(grid);
        let size = map_size(grid);
        let mask: Vec<u8> = (0..size.area()).map(|i| u8::from(i % size.width as usize >= 8)).collect();
        let map = head.smooth(&[1.0; 16], Some(&mask)).unwrap();
        assert_eq!(map.values[0], 0.0);
        assert!((map.max() - 1.0).abs() < 1e-5);
    }
}
