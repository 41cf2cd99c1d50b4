//! Enlarging and smoothing along one axis as one matrix, edges included; a plane is smoothed by one product for each axis.

/// Rows of a product that are made together: each number that is read of the right matrix serves all of them.
const ROWS: usize = 4;
/// Columns that are made together.
const LANES: usize = 32;

/// Index of the pixel that stands for `i` beyond the ends of `n` pixels: reflection without repeating the edge pixel.
pub fn reflect(i: i64, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let n = n as i64;
    let i = i.rem_euclid(2 * (n - 1));
    (if i < n { i } else { 2 * (n - 1) - i }) as usize
}

/// The matrix, `[to][from]`, that enlarges `from` values to `to` (bilinear, pixel centres aligned, edges continued) and smooths
/// them by a Gaussian of `sigma` of the new pixels (cut at 4 sigma, summing to 1, reflected at the edges; 0 for none).
pub fn operator(from: usize, to: usize, sigma: f32) -> Vec<Vec<f64>> {
    let mut enlarged = vec![vec![0.0; from]; to];
    for (i, row) in enlarged.iter_mut().enumerate() {
        let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let (first, share) = (at as usize, at.fract());
        row[first] += 1.0 - share;
        row[(first + 1).min(from - 1)] += share;
    }
    if sigma <= 0.0 {
        return enlarged;
    }
    let reach = ((8.0 * f64::from(sigma) + 1.0).round() as i64 | 1) / 2;
    let weight = |k: i64| (-0.5 * (k as f64 / f64::from(sigma)).powi(2)).exp();
    let sum: f64 = (-reach..=reach).map(weight).sum();
    (0..to as i64)
        .map(|i| {
            let mut row = vec![0.0; from];
            for k in -reach..=reach {
                let source = &enlarged[reflect(i + k, to)];
                row.iter_mut().zip(source).for_each(|(r, s)| *r += weight(k) / sum * s);
            }
            row
        })
        .collect()
}

/// The product of two matrices: `left` is `[out rows][inner]`, `right` is `[inner][width]`, `out` is `[out rows][width]`.
///
/// Products are added in order and never fused with their sums, so that all processors give the same bits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
pub fn product(left: &[f32], right: &[f32], width: usize, out: &mut [f32]) {
    let inner = right.len() / width;
    if width < LANES {
        for (left, out) in left.chunks_exact(inner).zip(out.chunks_exact_mut(width)) {
            out.fill(0.0);
            for (weight, row) in left.iter().zip(right.chunks_exact(width)) {
                out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
            }
        }
        return;
    }
    for (left, out) in left.chunks(ROWS * inner).zip(out.chunks_mut(ROWS * width)) {
        // the last one begins where a whole one still fits: what two have in common is made twice
        (0..width).step_by(LANES).for_each(|x| tile(left, right, width, x.min(width - LANES), out));
    }
}

/// [`LANES`] columns from `x` on of at most [`ROWS`] rows.
#[inline(always)]
fn tile(left: &[f32], right: &[f32], width: usize, x: usize, out: &mut [f32]) {
    let (inner, rows) = (right.len() / width, out.len() / width);
    let mut sums = [[0f32; LANES]; ROWS];
    for (k, row) in right.chunks_exact(width).enumerate() {
        let Some(row) = row[x..].first_chunk::<LANES>() else { break };
        for (r, sums) in sums.iter_mut().enumerate() {
            // rows that are not there repeat the last one
            let weight = left[r.min(rows - 1) * inner + k];
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += weight * v);
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(width)) {
        out[x..x + LANES].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_product_is_sums_of_products(
            rows in 1usize..12, inner in 1usize..40, width in 1usize..100, seed in any::<u64>()
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.f32() - 0.5).collect() };
            let (left, right) = (numbers(rows * inner), numbers(inner * width));
            let mut out = vec![f32::NAN; rows * width];
            product(&left, &right, width, &mut out);
            for (i, got) in out.iter().enumerate() {
                let (y, x) = (i / width, i % width);
                let sum = (0..inner).fold(0.0, |sum, k| sum + left[y * inner + k] * right[k * width + x]);
                prop_assert_eq!(*got, sum);
            }
        }

        /// A light level stays what it is: weights sum to 1, at the edges too.
        #[test]
        fn rows_of_an_operator_sum_to_one(from in 1usize..30, scale in 1usize..9, sigma in 0f32..9.0) {
            for row in operator(from, from * scale, sigma) {
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            }
        }
    }
}
