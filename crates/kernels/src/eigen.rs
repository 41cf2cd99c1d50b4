//! Leading eigenpairs of symmetric matrices.

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Up to this size all eigenvectors are computed; beyond, the leading ones by subspace iteration.
const FULL: usize = 64;
/// Extra directions and rounds of the subspace iteration.
const EXTRA: usize = 4;
const ROUNDS: usize = 4;

/// Eigenvalues and their vectors of length one, the largest first.
pub type Pairs = (Vec<f64>, Vec<DVector<f64>>);

/// The `rank` leading eigenpairs of a symmetric matrix that has no eigenvalue below 0; what rounding makes of a 0 is 0. `seed`
/// makes those of large matrices repeatable.
pub fn leading(matrix: &DMatrix<f64>, rank: usize, seed: u64) -> Pairs {
    if matrix.nrows() <= FULL { all(matrix, rank) } else { subspace(matrix, rank, seed) }
}

/// The leading ones of all.
fn all(matrix: &DMatrix<f64>, rank: usize) -> Pairs {
    let eigen = SymmetricEigen::new(matrix.clone());
    let mut order: Vec<usize> = (0..matrix.nrows()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    order.truncate(rank);
    (
        order.iter().map(|&i| eigen.eigenvalues[i].max(0.0)).collect(),
        order.iter().map(|&i| eigen.eigenvectors.column(i).into_owned()).collect(),
    )
}

/// Block power iteration with Rayleigh-Ritz at the end (Halko, Martinsson & Tropp 2011).
fn subspace(k: &DMatrix<f64>, rank: usize, seed: u64) -> Pairs {
    let m = k.nrows();
    let mut state = seed;
    let mut q = DMatrix::from_fn(m, (rank + EXTRA).min(m), |_, _| {
        // SplitMix64: the seed makes teaching repeatable
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    });
    for _ in 0..=ROUNDS {
        q = (k * q).qr().q();
    }
    let small = q.transpose() * (k * &q);
    let (values, vectors) = all(&((&small + small.transpose()) * 0.5), rank);
    (values, vectors.into_iter().map(|v| &q * v).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of pairs of 90 vectors that lie mostly along one direction.
    #[test]
    fn subspace_iteration_finds_the_leading_directions() {
        let mut rng = fastrand::Rng::with_seed(7);
        let shape: Vec<f64> = (0..24).map(|_| rng.f64() - 0.5).collect();
        let x = DMatrix::from_columns(&std::array::from_fn::<_, 90, _>(|_| {
            let a = rng.f64() - 0.5;
            DVector::from_iterator(24, shape.iter().map(|s| a * s + 0.1 * (rng.f64() - 0.5)))
        }));
        let matrix = x.transpose() * &x;
        let (values, vectors) = leading(&matrix, 16, 0);
        let (wanted, _) = all(&matrix, 16);
        assert_eq!((values.len(), vectors.len()), (16, 16));
        assert!((values[0] / wanted[0] - 1.0).abs() < 1e-6, "{values:?} instead of {wanted:?}");
        let residual = (&matrix * &vectors[0] - values[0] * &vectors[0]).norm();
        assert!(residual < 1e-3 * values[0], "{residual} beside {}", values[0]);
    }
}
