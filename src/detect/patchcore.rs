//! Memory bank of normal patches: for parts in any pose, and textures, where a place of the part has no fixed grid cell.
//!
//! PatchCore (Roth et al. 2022): the distance of a cell's features to the nearest of the bank's vectors, which teaching chose
//! by greedy k-center. The search is exact: `|x - b|² = |x|² + |b|² - 2 x·b` with one blocked matrix product a picture.
//! The published re-weighting of the score is left out: it gave nothing on any set that was tried.

use crate::error::{Error, Result};
use nalgebra::DMatrix;

/// The taught vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    pub channels: usize,
    /// `[vector][channel]`, less [`Bank::centre`].
    vectors: Vec<f32>,
    /// Mean of the taught patches: taken off both sides, so that the products' rounding is that of differences.
    pub centre: Vec<f32>,
    /// `vectors` as a matrix with a row for each vector, for the product.
    rows: DMatrix<f32>,
    /// Half the squared length of each vector.
    half_norms: Vec<f32>,
}

impl Bank {
    /// `vectors`: `[vector][channel]`, with `centre` already taken off.
    pub fn new(channels: usize, vectors: Vec<f32>, centre: Vec<f32>) -> Result<Self> {
        if channels == 0 || centre.len() != channels || vectors.is_empty() || !vectors.len().is_multiple_of(channels) {
            return Err(Error::failed(format!(
                "a bank of {} values and a centre of {} do not make vectors of {channels} features",
                vectors.len(),
                centre.len()
            )));
        }
        if let Some(v) = vectors.iter().chain(&centre).find(|v| !v.is_finite()) {
            return Err(Error::failed(format!("the bank holds {v}")));
        }
        let rows = DMatrix::from_row_slice(vectors.len() / channels, channels, &vectors);
        let half_norms = vectors.chunks_exact(channels).map(|v| 0.5 * v.iter().map(|x| x * x).sum::<f32>()).collect();
        Ok(Bank { channels, vectors, centre, rows, half_norms })
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.half_norms.len()
    }

    pub fn is_empty(&self) -> bool {
        self.half_norms.is_empty()
    }

    /// `[vector][channel]`, less the centre.
    pub fn vectors(&self) -> &[f32] {
        &self.vectors
    }
}

/// Cells that are searched at once: their products stay in the second-level cache.
const BLOCK: usize = 64;

/// Scratch memory of a search.
#[derive(Default)]
pub struct Search {
    products: DMatrix<f32>,
    cells: DMatrix<f32>,
}

impl Search {
    /// Distance of each cell's features `[cell][channel]` to the nearest vector, into `out` (one value a cell).
    pub fn distances(&mut self, bank: &Bank, features: &[f32], out: &mut [f32]) {
        let c = bank.channels;
        for (features, out) in features.chunks(BLOCK * c).zip(out.chunks_mut(BLOCK)) {
            let n = out.len();
            if self.cells.shape() != (c, n) {
                self.cells = DMatrix::zeros(c, n);
            }
            if self.products.shape() != (bank.len(), n) {
                self.products = DMatrix::zeros(bank.len(), n);
            }
            for (cell, f) in self.cells.as_mut_slice().chunks_exact_mut(c).zip(features.chunks_exact(c)) {
                for ((z, f), m) in cell.iter_mut().zip(f).zip(&bank.centre) {
                    *z = f - m;
                }
            }
            self.products.gemm(1.0, &bank.rows, &self.cells, 0.0);
            for ((d, cell), products) in out
                .iter_mut()
                .zip(self.cells.as_slice().chunks_exact(c))
                .zip(self.products.as_slice().chunks_exact(bank.len()))
            {
                let own: f32 = cell.iter().map(|x| x * x).sum();
                let squared = own + 2.0 * least(&bank.half_norms, products);
                // not `max`, which makes a number of none
                *d = if squared < 0.0 { 0.0 } else { squared.sqrt() };
            }
        }
    }
}

/// Smallest `half_norm - product`.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn least(half_norms: &[f32], products: &[f32]) -> f32 {
    let mut best = [f32::INFINITY; 16];
    let (h, p) = (half_norms.chunks_exact(16), products.chunks_exact(16));
    let rest = h.remainder().iter().zip(p.remainder()).map(|(h, p)| h - p).fold(f32::INFINITY, f32::min);
    for (h, p) in h.zip(p) {
        for i in 0..16 {
            let d = h[i] - p[i];
            best[i] = if d < best[i] { d } else { best[i] };
        }
    }
    best.into_iter().fold(rest, f32::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The blocked search gives what comparing each cell with each vector gives.
        #[test]
        fn the_nearest_is_found(n in 1usize..40, cells in 1usize..150, c in 1usize..20, seed in any::<u64>()) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut random = |n: usize| (0..n).map(|_| rng.f32() * 4.0 - 2.0).collect::<Vec<f32>>();
            let (vectors, centre, features) = (random(n * c), random(c), random(cells * c));
            let bank = Bank::new(c, vectors.clone(), centre.clone()).unwrap();
            let mut got = vec![0.0; cells];
            Search::default().distances(&bank, &features, &mut got);
            for (f, got) in features.chunks(c).zip(got) {
                let wanted = vectors
                    .chunks(c)
                    .map(|v| v.iter().zip(&centre).zip(f).map(|((v, m), f)| (f - m - v).powi(2)).sum::<f32>().sqrt())
                    .fold(f32::INFINITY, f32::min);
                prop_assert!((got - wanted).abs() < 2e-3, "{got} {wanted}");
            }
        }
    }

    #[test]
    fn banks_that_make_no_sense_are_refused() {
        assert!(Bank::new(3, vec![0.0; 4], vec![0.0; 3]).is_err());
        assert!(Bank::new(3, vec![], vec![0.0; 3]).is_err());
        let e = Bank::new(2, vec![0.0, f32::NAN], vec![0.0; 2]).unwrap_err();
        assert_eq!(e.to_string(), "the bank holds NaN");
    }
}
