//! Position-wise low-rank Gaussian: for parts that show the same place at the same grid cell.
//!
//! At each position a Gaussian of low rank, that is PaDiM (Defard 2020) with the covariance of probabilistic PCA (Tipping &
//! Bishop 1999). With z = features - mean, B the leading directions scaled by sqrt(w), lambda the noise floor:
//! `d² = (|z|² - |Bᵀz|²) / lambda`. Always f32: quantising it makes scores constant.

use crate::error::{Error, Result};
use crate::prepare::shrink::Size;

/// Directions kept at each position; fewer taught parts leave the rest zero.
pub const RANK: usize = 16;

/// What teaching learned: `positions = grid.area()`, `channels` features each.
#[derive(Debug, Clone, PartialEq)]
pub struct Ppca {
    pub grid: Size,
    pub channels: usize,
    /// `[position][channel]`
    pub mean: Vec<f32>,
    /// `[position][channel][RANK]`: eigenvectors times sqrt(e / (e + lambda)).
    pub basis: Vec<f32>,
    /// `[position]`: 1 / lambda.
    pub inverse_noise: Vec<f32>,
}

impl Ppca {
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

    /// Distance of each position's features `[position][channel]` from normal, into `out` (`grid.area()` values).
    pub fn distances(&self, features: &[f32], out: &mut [f32]) {
        distances(self, features, out);
    }
}

/// Distance of each position's features from normal.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn distances(model: &Ppca, features: &[f32], out: &mut [f32]) {
    let c = model.channels;
    let cells = features
        .chunks_exact(c)
        .zip(model.mean.chunks_exact(c))
        .zip(model.basis.chunks_exact(c * RANK))
        .zip(&model.inverse_noise);
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
        let model = Ppca {
            grid,
            channels,
            mean: (0..n * channels).map(|_| random()).collect(),
            basis: (0..n * channels * RANK).map(|_| 0.1 * random()).collect(),
            inverse_noise: (0..n).map(|_| 1.0 + random()).collect(),
        };
        let features: Vec<f32> = (0..n * channels).map(|_| random()).collect();
        let mut got = vec![0.0; n];
        distances(&model, &features, &mut got);
        for p in 0..n {
            let z: Vec<f32> =
                (0..channels).map(|c| features[p * channels + c] - model.mean[p * channels + c]).collect();
            let mut d2: f32 = z.iter().map(|z| z * z).sum();
            for k in 0..RANK {
                let y: f32 = (0..channels).map(|c| z[c] * model.basis[(p * channels + c) * RANK + k]).sum();
                d2 -= y * y;
            }
            let wanted = (d2 * model.inverse_noise[p]).sqrt();
            assert!((got[p] - wanted).abs() < 1e-4, "{p}: {} {wanted}", got[p]);
        }
    }
}
