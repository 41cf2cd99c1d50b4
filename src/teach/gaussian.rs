//! Fits the position-wise Gaussian and scores held-out parts, position by position, on all cores.
//!
//! Everything but the final basis is computed from each position's Gram matrix of the taught parts, which is made once and
//! serves all folds: leaving parts out is choosing rows and columns and centring again. Noise floor and shrinkage are those
//! of `docs/design/detector.md`: `lambda = 0.3 (0.9 v + 0.1 mean v)` with v the position's mean variance per feature.

use super::features::Features;
use crate::detect::ppca::{Basis, Ppca, RANK};
use linesight_kernels::eigen;
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

/// Noise floor as a share of the variance.
const NOISE_SHARE: f64 = 0.3;
/// How much of the noise floor is the position's own; the rest is the mean over positions.
const OWN_SHARE: f64 = 0.9;

/// The taught parts at one position, `[part][channel]`, centred on all of them, and their products.
fn gram(features: &Features, position: usize) -> (DMatrix<f32>, DMatrix<f64>) {
    let mut x = at(features, position);
    // centred on all parts first: f32 products of the raw features would lose the small differences
    let mean = x.column_mean();
    for mut column in x.column_iter_mut() {
        column -= &mean;
    }
    let gram = products(&x);
    (x, gram)
}

/// Products of all pairs of columns.
fn products(x: &DMatrix<f32>) -> DMatrix<f64> {
    // through an explicit transpose: the blocked product is several times as fast as one dot product after the other
    (x.transpose() * x).map(f64::from)
}

/// The taught parts at one position, a column for each.
fn at(features: &Features, position: usize) -> DMatrix<f32> {
    let c = features.channels;
    // nalgebra is column-major: one column a part makes the copy contiguous
    DMatrix::from_fn(c, features.parts.len(), |i, p| features.parts[p][position * c + i])
}

/// Leading eigenpairs of a centred Gram matrix divided by n - 1, and its trace.
struct Spectrum {
    values: Vec<f64>,
    vectors: Vec<DVector<f64>>,
    trace: f64,
}

/// Centres the chosen rows and columns on their own mean.
fn centred(gram: &DMatrix<f64>, chosen: &[usize]) -> (DMatrix<f64>, Vec<f64>, f64) {
    let m = chosen.len();
    let k = DMatrix::from_fn(m, m, |i, j| gram[(chosen[i], chosen[j])]);
    let means: Vec<f64> = (0..m).map(|i| k.column(i).sum() / m as f64).collect();
    let mean = means.iter().sum::<f64>() / m as f64;
    (DMatrix::from_fn(m, m, |i, j| k[(i, j)] - means[i] - means[j] + mean), means, mean)
}

fn spectrum(centred: &DMatrix<f64>, seed: u64) -> Spectrum {
    let m = centred.nrows();
    let rank = RANK.min(m.saturating_sub(1));
    let scale = (m - 1) as f64;
    let (values, vectors) = eigen::leading(centred, rank, seed);
    Spectrum { values: values.iter().map(|e| e / scale).collect(), vectors, trace: centred.trace() / scale }
}

/// Noise floors from the variances of all positions.
fn noise(variances: &[f64]) -> Vec<f64> {
    let mean = variances.iter().sum::<f64>() / variances.len().max(1) as f64;
    // identical parts have no variance anywhere: the floor keeps distances finite
    variances.iter().map(|v| (NOISE_SHARE * (OWN_SHARE * v + (1.0 - OWN_SHARE) * mean)).max(1e-9)).collect()
}

/// Fits the model on the parts `chosen`.
pub fn fit(features: &Features, chosen: &[usize], seed: u64) -> Ppca {
    let (n, c) = (features.grid.area(), features.channels);
    struct Fitted {
        mean: Vec<f32>,
        directions: Vec<(f64, Vec<f32>)>,
        variance: f64,
    }
    let fitted: Vec<Fitted> = (0..n)
        .into_par_iter()
        .map(|position| {
            let x = at(features, position).select_columns(chosen);
            let mean = x.column_mean();
            let mut t = x;
            for mut column in t.column_iter_mut() {
                column -= &mean;
            }
            let s = spectrum(&products(&t), seed);
            let scale = (chosen.len() - 1) as f64;
            let directions = s
                .values
                .iter()
                .zip(&s.vectors)
                .map(|(&e, u)| {
                    let v = &t * u.map(|a| (a / (e.max(1e-9) * scale).sqrt()) as f32);
                    (e, v.as_slice().to_vec())
                })
                .collect();
            Fitted { mean: mean.as_slice().to_vec(), directions, variance: s.trace / c as f64 }
        })
        .collect();
    let lambda = noise(&fitted.iter().map(|f| f.variance).collect::<Vec<_>>());
    let mut basis = vec![0.0; n * c * RANK];
    for ((f, l), basis) in fitted.iter().zip(&lambda).zip(basis.chunks_exact_mut(c * RANK)) {
        for (k, (e, direction)) in f.directions.iter().enumerate() {
            let weight = (e / (e + l)).sqrt() as f32;
            for (i, v) in direction.iter().enumerate() {
                basis[i * RANK + k] = v * weight;
            }
        }
    }
    Ppca {
        grid: features.grid,
        channels: c,
        mean: fitted.iter().flat_map(|f| f.mean.iter().copied()).collect(),
        basis: Basis::quantised(&basis, c),
        inverse_noise: lambda.iter().map(|l| (1.0 / l) as f32).collect(),
    }
}

/// Distances of each part at each position, from models that were fitted without the part's fold.
pub fn held_out(features: &Features, folds: &[Vec<usize>], seed: u64) -> Vec<Vec<f32>> {
    let n = features.grid.area();
    let parts = features.parts.len();
    let training: Vec<Vec<usize>> = folds
        .iter()
        .map(|fold| folds.iter().filter(|f| !std::ptr::eq(*f, fold)).flatten().copied().collect())
        .collect();
    /// A held-out part at one position: its distance before the noise floor is known.
    struct Term {
        norm: f64,
        projections: [f64; RANK],
    }
    struct Position {
        /// By fold: variance and eigenvalues.
        folds: Vec<(f64, Vec<f64>)>,
        terms: Vec<Option<Term>>,
    }
    let positions: Vec<Position> = (0..n)
        .into_par_iter()
        .map(|position| {
            let (_, gram) = gram(features, position);
            let mut terms: Vec<Option<Term>> = (0..parts).map(|_| None).collect();
            let mut spectra = Vec::with_capacity(folds.len());
            for (fold, train) in folds.iter().zip(&training) {
                let (k, means, mean) = centred(&gram, train);
                let s = spectrum(&k, seed);
                let scale = (train.len() - 1) as f64;
                for &j in fold {
                    let to_train: Vec<f64> = train.iter().map(|&i| gram[(j, i)]).collect();
                    let own = to_train.iter().sum::<f64>() / train.len() as f64;
                    let inner = DVector::from_fn(train.len(), |i, _| to_train[i] - own - means[i] + mean);
                    let norm = gram[(j, j)] - 2.0 * own + mean;
                    let mut projections = [0.0; RANK];
                    for (p, (e, u)) in projections.iter_mut().zip(s.values.iter().zip(&s.vectors)) {
                        *p = u.dot(&inner).powi(2) / (e.max(1e-9) * scale);
                    }
                    terms[j] = Some(Term { norm, projections });
                }
                spectra.push((s.trace / features.channels as f64, s.values));
            }
            Position { folds: spectra, terms }
        })
        .collect();
    let mut out = vec![vec![0f32; n]; parts];
    for (f, fold) in folds.iter().enumerate() {
        let lambda = noise(&positions.iter().map(|p| p.folds[f].0).collect::<Vec<_>>());
        for (i, (position, l)) in positions.iter().zip(&lambda).enumerate() {
            for &j in fold {
                let Some(term) = &position.terms[j] else { continue };
                let explained: f64 =
                    position.folds[f].1.iter().zip(term.projections).map(|(e, y2)| e / (e + l) * y2).sum();
                out[j][i] = ((term.norm - explained).max(0.0) / l).sqrt() as f32;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::features::folds;
    use super::*;
    use crate::prepare::shrink::Size;

    fn features(parts: usize) -> Features {
        let (grid, channels) = (Size { width: 2, height: 2 }, 24);
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let shape: Vec<f32> = (0..grid.area() * channels).map(|_| random()).collect();
        let parts = (0..parts)
            .map(|_| {
                let a = random();
                shape.iter().map(|s| 5.0 + a * s + 0.1 * random()).collect()
            })
            .collect();
        Features { grid, channels, parts }
    }

    /// The shortcut through Gram matrices gives what fitting on the other folds and scoring gives.
    #[test]
    fn held_out_distances_equal_those_of_a_refit() {
        for n in [12, 90] {
            let f = features(n);
            let folds = folds(&(0..n).collect::<Vec<_>>(), 5);
            let fast = held_out(&f, &folds, 0);
            for fold in &folds {
                let train: Vec<usize> = (0..n).filter(|i| !fold.contains(i)).collect();
                let model = fit(&f, &train, 0);
                model.validate().unwrap();
                for &j in fold {
                    let mut slow = vec![0.0; f.grid.area()];
                    model.distances(&f.parts[j], &mut slow);
                    for (a, b) in slow.iter().zip(&fast[j]) {
                        assert!((a - b).abs() < 2e-3 * b.max(1.0), "{n} parts: {a} {b}");
                    }
                }
            }
        }
    }
}
