//! Position-wise low-rank Gaussian: for parts that show the same place at the same grid cell.
//!
//! At each position a Gaussian of low rank, that is PaDiM (Defard 2020) with the covariance of probabilistic PCA (Tipping &
//! Bishop 1999). With z = features - mean, B the leading directions scaled by sqrt(w), lambda the noise floor:
//! `d² = (|z|² - |Bᵀz|²) / lambda`.
//!
//! What a picture costs here is reading B from memory, so its numbers are kept in 16 bits with a scale for each position and
//! direction. Features, mean and all arithmetic stay f32: quantising those makes scores constant.
//!
//! Invariants:
//! 1. Distances differ from those with B in f32 by less than a thousandth; with 8 bits instead of 16 it was half a percent
//!    where parts differ along one direction only (tests `the_distance_follows_the_formula`,
//!    `teach::gaussian::tests::held_out_distances_equal_those_of_a_refit`).

use crate::error::{Error, Result};
use crate::prepare::shrink::Size;

/// Directions kept at each position; fewer taught parts leave the rest zero.
pub const RANK: usize = 16;
/// The largest number of a direction is this one.
const STEPS: f32 = 32_767.0;

/// What teaching learned: `positions = grid.area()`, `channels` features each.
#[derive(Debug, Clone, PartialEq)]
pub struct Ppca {
    pub grid: Size,
    pub channels: usize,
    /// `[position][channel]`
    pub mean: Vec<f32>,
    pub basis: Basis,
    /// `[position]`: 1 / lambda.
    pub inverse_noise: Vec<f32>,
}

/// Eigenvectors times sqrt(e / (e + lambda)), in 16 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// `[position][channel][RANK]`, in units of the scale.
    pub steps: Vec<i16>,
    /// `[position][RANK]`
    pub scale: Vec<f32>,
}

impl Basis {
    /// From `values`, `[position][channel][RANK]`.
    pub fn quantised(values: &[f32], channels: usize) -> Self {
        let mut steps = Vec::with_capacity(values.len());
        let mut scale = Vec::with_capacity(values.len() / channels.max(1));
        for position in values.chunks_exact(channels * RANK) {
            let mut highest = [0f32; RANK];
            for row in position.chunks_exact(RANK) {
                highest.iter_mut().zip(row).for_each(|(h, v)| *h = h.max(v.abs()));
            }
            // a direction of zeros has scale 0
            let inverse = highest.map(|h| if h > 0.0 { STEPS / h } else { 0.0 });
            steps.extend(
                position
                    .chunks_exact(RANK)
                    .flat_map(|row| row.iter().zip(&inverse))
                    .map(|(v, i)| (v * i).round() as i16),
            );
            scale.extend(highest.map(|h| h / STEPS));
        }
        Basis { steps, scale }
    }
}

impl Ppca {
    /// Checks sizes and that every number is finite.
    pub fn validate(&self) -> Result<()> {
        let n = self.grid.area();
        let steps = self.basis.steps.len();
        if steps != n * self.channels * RANK {
            return Err(sized("basis", steps, n * self.channels * RANK));
        }
        for (name, values, wanted) in [
            ("mean", &self.mean, n * self.channels),
            ("basis_scale", &self.basis.scale, n * RANK),
            ("inverse_noise", &self.inverse_noise, n),
        ] {
            if values.len() != wanted {
                return Err(sized(name, values.len(), wanted));
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

fn sized(name: &str, found: usize, wanted: usize) -> Error {
    Error::failed(format!("tensor \"{name}\" has {found} values, {wanted} are wanted"))
}

/// Independent sums that a position's projections are gathered in: one alone would wait for each addition.
const SUMS: usize = 4;

/// Distance of each position's features from normal.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma", "aarch64+neon"))]
fn distances(model: &Ppca, features: &[f32], out: &mut [f32]) {
    let c = model.channels;
    let cells = features
        .chunks_exact(c)
        .zip(model.mean.chunks_exact(c))
        .zip(model.basis.steps.chunks_exact(c * RANK))
        .zip(model.basis.scale.chunks_exact(RANK))
        .zip(&model.inverse_noise);
    for (d, ((((f, mean), basis), scale), inverse_noise)) in out.iter_mut().zip(cells) {
        let mut sums = [[0f32; RANK]; SUMS];
        let mut norm = [0f32; 8];
        for ((f8, m8), b8) in f.chunks_exact(8).zip(mean.chunks_exact(8)).zip(basis.chunks_exact(8 * RANK)) {
            let mut z = [0f32; 8];
            for i in 0..8 {
                z[i] = f8[i] - m8[i];
                norm[i] += z[i] * z[i];
            }
            for i in 0..8 {
                for (s, b) in sums[i % SUMS].iter_mut().zip(&b8[i * RANK..(i + 1) * RANK]) {
                    *s += z[i] * f32::from(*b);
                }
            }
        }
        let mut explained = 0.0;
        for (k, scale) in scale.iter().enumerate() {
            let projection = sums.iter().map(|s| s[k]).sum::<f32>() * scale;
            explained += projection * projection;
        }
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
        let basis: Vec<f32> = (0..n * channels * RANK).map(|_| 0.1 * random()).collect();
        let model = Ppca {
            grid,
            channels,
            mean: (0..n * channels).map(|_| random()).collect(),
            basis: Basis::quantised(&basis, channels),
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
                let y: f32 = (0..channels).map(|c| z[c] * basis[(p * channels + c) * RANK + k]).sum();
                d2 -= y * y;
            }
            let wanted = (d2 * model.inverse_noise[p]).sqrt();
            assert!((got[p] / wanted - 1.0).abs() < 1e-3, "{p}: {} {wanted}", got[p]);
        }
    }
}
