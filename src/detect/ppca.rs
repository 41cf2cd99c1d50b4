//! Position-wise low-rank Gaussian: for parts that show the same place at the same grid cell.
//!
//! At each position a Gaussian of low rank, that is PaDiM (Defard 2020) with the covariance of probabilistic PCA (Tipping &
//! Bishop 1999). With z = features - mean, B the leading directions scaled by sqrt(w), lambda the noise floor:
//! `d² = (|z|² - |Bᵀz|²) / lambda`.
//!
//! What a picture costs here is reading B from memory, so its numbers are kept in 8 bits, those of the first [`LEAD`]
//! directions in 16. An error of a direction is multiplied by how far the parts differ along the others, which is far along
//! the first ones: what a direction's error shares with the first [`MIXED`] is known from teaching and taken off again. A
//! picture's differences from the mean are made numbers of 16 bits, each position in a scale of its own, so that the products
//! are of integers and exact; mean and features stay f32. Features in less make scores constant.
//!
//! Invariants:
//! 1. Distances differ from those with B in f32 by less than two thousandths where parts differ along some directions more than
//!    along others, and by less than a hundredth if ever they differ alike along all (tests `the_distance_follows_the_formula`,
//!    `teach::gaussian::tests::held_out_distances_equal_those_of_a_refit`). Scores of real parts move by .0005 at most.
//! 2. All processors give the same distances (test `every_kernel_gives_the_same`).
//! 3. A feature that is no number makes a distance that is none, not a small one (test `what_is_no_number_stays_none`).

use crate::error::{Error, Result};
use crate::prepare::shrink::Size;
use linesight_kernels::fetch::{LINE, fetch};
use linesight_kernels::round::ROUND;
use std::hint::black_box;

/// Directions kept at each position; fewer taught parts leave the rest zero.
pub const RANK: usize = 16;
/// Directions in 16 bits.
const LEAD: usize = 4;
/// Directions that the errors of all are corrected along.
pub const MIXED: usize = 8;
/// Channels whose numbers lie together.
pub const BLOCK: usize = 8;
/// Numbers of a block: pairs of channels for each direction, then the lower halves of the first directions.
pub const BLOCK_STEPS: usize = BLOCK * (RANK + LEAD);
/// So many channels a position has at most, so that no sum of products leaves 32 bits.
const MOST_CHANNELS: usize = 512;
/// The largest step of 8 bits, of a lower half in one upper step, and of 16 bits.
const STEPS: f32 = 127.0;
const LOWER_STEPS: f32 = 254.0;
const FINE_STEPS: f32 = 32_767.0;

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

/// Eigenvectors times sqrt(e / (e + lambda)).
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// `[position][channel / BLOCK][BLOCK_STEPS]`, in units of the scale: `[pair of channels][RANK][2]`, then
    /// `[pair of channels][LEAD][2]` in units of 1 / [`LOWER_STEPS`] of it.
    pub steps: Vec<i8>,
    /// `[position][RANK]`
    pub scale: Vec<f32>,
    /// `[position][MIXED][RANK]`: what a projection lacks of the one on another direction, in units of the mix's scale.
    pub mix: Vec<i16>,
    /// `[position]`
    pub mix_scale: Vec<f32>,
}

impl Basis {
    /// From `values`, `[position][channel][RANK]`; `channels` is a multiple of [`BLOCK`].
    pub fn quantised(values: &[f32], channels: usize) -> Self {
        let positions = values.len() / (channels * RANK).max(1);
        let mut basis = Basis {
            steps: Vec::with_capacity(positions * channels / BLOCK * BLOCK_STEPS),
            scale: Vec::with_capacity(positions * RANK),
            mix: Vec::with_capacity(positions * MIXED * RANK),
            mix_scale: Vec::with_capacity(positions),
        };
        for position in values.chunks_exact(channels * RANK) {
            basis.push(position.as_chunks::<RANK>().0);
        }
        basis
    }

    /// Adds a position's `[channel][RANK]`.
    fn push(&mut self, rows: &[[f32; RANK]]) {
        let mut highest = [0f32; RANK];
        for row in rows {
            highest.iter_mut().zip(row).for_each(|(h, v)| *h = h.max(v.abs()));
        }
        // a direction of zeros has scale 0
        let scale = highest.map(|h| h / STEPS);
        let inverse = scale.map(|s| if s > 0.0 { s.recip() } else { 0.0 });
        let upper = |row: &[f32; RANK], k: usize| (row[k] * inverse[k]).round();
        let lower = |row: &[f32; RANK], k: usize| ((row[k] * inverse[k] - upper(row, k)) * LOWER_STEPS).round();
        for block in rows.as_chunks::<BLOCK>().0 {
            for pair in block.as_chunks::<2>().0 {
                self.steps.extend((0..RANK).flat_map(|k| pair.iter().map(move |row| upper(row, k) as i8)));
            }
            for pair in block.as_chunks::<2>().0 {
                self.steps.extend((0..LEAD).flat_map(|k| pair.iter().map(move |row| lower(row, k) as i8)));
            }
        }
        self.scale.extend(scale);
        // how much of each direction's error lies along the first ones
        let mut mix = [[0f32; RANK]; MIXED];
        let mut lengths = [0f32; MIXED];
        for row in rows {
            let error: [f32; RANK] = std::array::from_fn(|k| {
                let lower = if k < LEAD { lower(row, k) / LOWER_STEPS } else { 0.0 };
                row[k] - (upper(row, k) + lower) * scale[k]
            });
            for ((mix, length), v) in mix.iter_mut().zip(&mut lengths).zip(row) {
                mix.iter_mut().zip(&error).for_each(|(m, e)| *m += v * e);
                *length += v * v;
            }
        }
        for (mix, length) in mix.iter_mut().zip(lengths) {
            mix.iter_mut().for_each(|m| *m = if length > 0.0 { *m / length } else { 0.0 });
        }
        let unit = mix.as_flattened().iter().fold(0f32, |a, m| a.max(m.abs())) / FINE_STEPS;
        let inverse = if unit > 0.0 { unit.recip() } else { 0.0 };
        self.mix.extend(mix.as_flattened().iter().map(|m| (m * inverse).round() as i16));
        self.mix_scale.push(unit);
    }
}

impl Ppca {
    /// Checks sizes and that every number is finite.
    pub fn validate(&self) -> Result<()> {
        let n = self.grid.area();
        if !self.channels.is_multiple_of(BLOCK) || self.channels > MOST_CHANNELS {
            return Err(Error::failed(format!(
                "Gaussians of {} channels: multiples of {BLOCK} up to {MOST_CHANNELS} are known",
                self.channels
            )));
        }
        let Basis { steps, scale, mix, mix_scale } = &self.basis;
        for (name, found, wanted) in
            [("steps", steps.len(), n * self.channels / BLOCK * BLOCK_STEPS), ("mix", mix.len(), n * MIXED * RANK)]
        {
            if found != wanted {
                return Err(sized(name, found, wanted));
            }
        }
        for (name, values, wanted) in [
            ("mean", &self.mean, n * self.channels),
            ("scale", scale, n * RANK),
            ("mix_scale", mix_scale, n),
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
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = x86::kernels().next() {
            // SAFETY: the processor has what the function is compiled for; that is all it asks for.
            return unsafe { kernel(self, features, out) };
        }
        distances(self, features, out, add_pairs);
    }
}

fn sized(name: &str, found: usize, wanted: usize) -> Error {
    Error::failed(format!("tensor \"{name}\" has {found} values, {wanted} are wanted"))
}

/// A sum for each direction.
type Sums = [i32; RANK];
/// Two numbers for each direction, or each of four pairs of channels for each of four directions.
type Pairs<T> = [T; 2 * RANK];

/// Adds the products of two pairs to the sum of each direction.
fn add_pairs(sums: Sums, a: Pairs<i16>, b: &Pairs<i8>) -> Sums {
    let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
    std::array::from_fn(|k| sums[k] + product(2 * k) + product(2 * k + 1))
}

/// By hand: compilers do not see that adding products of pairs is one instruction, or two.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Pairs, Ppca, Sums};
    use std::arch::x86_64::{
        __m128i, __m256i, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_dpwssd_avx_epi32, _mm256_madd_epi16,
        _mm512_cvtepi8_epi16, _mm512_dpwssd_epi32,
    };

    pub type Kernel = unsafe fn(&Ppca, &[f32], &mut [f32]);

    /// Those that this processor has what they are compiled for, the fastest first.
    pub fn kernels() -> impl Iterator<Item = Kernel> {
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        [
            (fma && avx512 && is_x86_feature_detected!("avx512vnni"), avx512_vnni as Kernel),
            (fma && is_x86_feature_detected!("avxvnni"), avx_vnni),
            (fma, avx2),
        ]
        .into_iter()
        .filter_map(|(has, kernel)| has.then_some(kernel))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
    fn avx512_vnni(model: &Ppca, features: &[f32], out: &mut [f32]) {
        super::distances(model, features, out, |sums: Sums, a: Pairs<i16>, b: &Pairs<i8>| {
            bytemuck::cast(_mm512_dpwssd_epi32(
                bytemuck::cast(sums),
                bytemuck::cast(a),
                _mm512_cvtepi8_epi16(bytemuck::cast(*b)),
            ))
        });
    }

    #[target_feature(enable = "avxvnni,avx2,fma")]
    fn avx_vnni(model: &Ppca, features: &[f32], out: &mut [f32]) {
        let add = |sums, a, b| _mm256_dpwssd_avx_epi32(sums, a, _mm256_cvtepi8_epi16(b));
        super::distances(model, features, out, |sums, a, b| halves(sums, a, b, add));
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2(model: &Ppca, features: &[f32], out: &mut [f32]) {
        let add = |sums, a, b| _mm256_add_epi32(sums, _mm256_madd_epi16(a, _mm256_cvtepi8_epi16(b)));
        super::distances(model, features, out, |sums, a, b| halves(sums, a, b, add));
    }

    /// In vectors of 256 bits.
    #[inline(always)]
    fn halves(sums: Sums, a: Pairs<i16>, b: &Pairs<i8>, add: impl Fn(__m256i, __m256i, __m128i) -> __m256i) -> Sums {
        let (sums, a): ([__m256i; 2], [__m256i; 2]) = (bytemuck::cast(sums), bytemuck::cast(a));
        let b: [__m128i; 2] = bytemuck::cast(*b);
        bytemuck::cast([add(sums[0], a[0], b[0]), add(sums[1], a[1], b[1])])
    }
}

/// Distance of each position's features from normal. `add` is [`add_pairs`] as the processor has it.
#[inline(always)]
fn distances(model: &Ppca, features: &[f32], out: &mut [f32], add: impl Fn(Sums, Pairs<i16>, &Pairs<i8>) -> Sums) {
    let c = model.channels;
    let bytes = c / BLOCK * BLOCK_STEPS;
    let Basis { steps, scale, mix, mix_scale } = &model.basis;
    let cells = features
        .chunks_exact(c)
        .zip(model.mean.chunks_exact(c))
        .zip(steps.chunks_exact(bytes).enumerate())
        .zip(scale.as_chunks::<RANK>().0)
        .zip(mix.as_chunks::<{ MIXED * RANK }>().0.iter().zip(mix_scale))
        .zip(&model.inverse_noise);
    let mut differences = [[0f32; BLOCK]; MOST_CHANNELS / BLOCK];
    let mut fine = [[0i16; BLOCK]; MOST_CHANNELS / BLOCK];
    let (differences, fine) = (&mut differences[..c / BLOCK], &mut fine[..c / BLOCK]);
    for (d, (((((f, mean), (n, blocks)), scale), (mix, mix_scale)), inverse_noise)) in out.iter_mut().zip(cells) {
        let mut largest = [0f32; BLOCK];
        for ((z, f), m) in differences.iter_mut().zip(f.as_chunks::<BLOCK>().0).zip(mean.as_chunks::<BLOCK>().0) {
            for i in 0..BLOCK {
                z[i] = f[i] - m[i];
                largest[i] = greater(z[i].abs(), largest[i]);
            }
        }
        let largest = greater(fold(largest, greater), f32::MIN_POSITIVE * FINE_STEPS);
        let inverse = FINE_STEPS / largest;
        let mut norm = [0f32; BLOCK];
        for (q, z) in fine.iter_mut().zip(differences.iter()) {
            for i in 0..BLOCK {
                let rounded = z[i] * inverse + ROUND;
                q[i] = rounded.to_bits() as i16;
                // of what was rounded: what its projections explain is taken off
                let z = rounded - ROUND;
                norm[i] += z * z;
            }
        }
        let (mut upper, mut lower) = ([[0; RANK]; 2], [0; RANK]);
        for (b, (q, block)) in fine.iter().zip(blocks.as_chunks::<BLOCK_STEPS>().0).enumerate() {
            // a position ahead: processors foresee nothing beyond a page
            let ahead = (n + 1) * bytes + b * BLOCK_STEPS;
            (0..BLOCK_STEPS).step_by(LINE).for_each(|line| fetch(steps, ahead + line));
            let q: [u32; BLOCK / 2] = bytemuck::cast(*q);
            let (pairs, _) = block.as_chunks::<{ 2 * RANK }>();
            for (p, q) in q.iter().enumerate() {
                upper[p % 2] = add(upper[p % 2], bytemuck::cast([*q; RANK]), &pairs[p]);
            }
            let [p, q, r, s] = q;
            lower = add(lower, bytemuck::cast([p, p, p, p, q, q, q, q, r, r, r, r, s, s, s, s]), &pairs[BLOCK / 2]);
        }
        let mut finer = [0; RANK];
        for (k, finer) in finer[..LEAD].iter_mut().enumerate() {
            *finer = (lower[k] + lower[k + 4]) + (lower[k + 8] + lower[k + 12]);
        }
        let mut projections = [0f32; RANK];
        for k in 0..RANK {
            let sum = (upper[0][k] + upper[1][k]) as f32;
            projections[k] = (sum + finer[k] as f32 * LOWER_STEPS.recip()) * scale[k];
        }
        let mut lacking = [0f32; RANK];
        for (p, mix) in projections.iter().zip(mix.as_chunks::<RANK>().0) {
            lacking.iter_mut().zip(mix).for_each(|(l, m)| *l += p * f32::from(*m));
        }
        let mut squares = [0f32; RANK];
        for ((square, p), lacking) in squares.iter_mut().zip(projections).zip(lacking) {
            let p = p + mix_scale * lacking;
            *square = p * p;
        }
        // by way of memory: otherwise compilers see what is folded with what, and work in vectors of two from the start
        let (squares, norm) = (black_box(squares), black_box(norm));
        let explained: [f32; RANK / 2] = std::array::from_fn(|k| squares[k] + squares[k + 8]);
        let rest = fold(norm, |a, b| a + b) - fold(explained, |a, b| a + b);
        // not `max`, which makes a number of none
        let rest = if rest < 0.0 { 0.0 } else { rest };
        *d = (rest * inverse_noise).sqrt() * (largest / FINE_STEPS);
    }
}

/// The greater of two; the second where one is none.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Halves with halves, so that nothing waits for all that was before.
#[inline(always)]
fn fold(v: [f32; 8], of: impl Fn(f32, f32) -> f32) -> f32 {
    let [a, b, c, d] = std::array::from_fn(|i| of(v[i], v[i + 4]));
    of(of(a, c), of(b, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaussians whose parts differ along orthogonal directions by `amplitudes` and beyond them by noise of one, features of
    /// such parts, and the distances that f64 gives.
    fn parts(grid: Size, channels: usize, amplitudes: [f32; RANK]) -> (Ppca, Vec<f32>, Vec<f64>) {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut normal = || (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0;
        let n = grid.area();
        let (mut basis, mut mean, mut features) = (Vec::new(), Vec::new(), Vec::new());
        let mut exact = Vec::new();
        for _ in 0..n {
            let mut directions: Vec<Vec<f32>> = Vec::new();
            while directions.len() < RANK {
                let mut v: Vec<f32> = (0..channels).map(|_| normal()).collect();
                for d in &directions {
                    let dot: f32 = d.iter().zip(&v).map(|(a, b)| a * b).sum();
                    v.iter_mut().zip(d).for_each(|(v, d)| *v -= dot * d);
                }
                let length = v.iter().map(|v| v * v).sum::<f32>().sqrt();
                directions.push(v.into_iter().map(|v| v / length).collect());
            }
            let weights = amplitudes.map(|a| (a * a / (a * a + 1.0)).sqrt());
            let at = basis.len();
            basis.extend((0..channels * RANK).map(|i| directions[i % RANK][i / RANK] * weights[i % RANK]));
            let centre: Vec<f32> = (0..channels).map(|_| 3.0 * normal()).collect();
            let mut part: Vec<f32> = centre.iter().map(|c| c + normal()).collect();
            for (d, a) in directions.iter().zip(amplitudes) {
                let a = a * normal();
                part.iter_mut().zip(d).for_each(|(p, d)| *p += a * d);
            }
            let z: Vec<f64> = part.iter().zip(&centre).map(|(p, c)| f64::from(*p) - f64::from(*c)).collect();
            let explained = (0..RANK).map(|k| {
                let y: f64 = z.iter().enumerate().map(|(i, z)| z * f64::from(basis[at + i * RANK + k])).sum();
                y * y
            });
            exact.push((2.0 * (z.iter().map(|z| z * z).sum::<f64>() - explained.sum::<f64>())).sqrt());
            mean.extend(centre);
            features.extend(part);
        }
        let basis = Basis::quantised(&basis, channels);
        let model = Ppca { grid, channels, mean, basis, inverse_noise: vec![2.0; n] };
        model.validate().unwrap();
        (model, features, exact)
    }

    /// Parts differ along the directions as far as the noise floor lets them, which is .3 of the mean variance of a feature
    /// (`teach::gaussian`): ever less, along one alone, or alike along all.
    #[test]
    fn the_distance_follows_the_formula() {
        let cases: [([f32; RANK], f64); 3] = [
            (std::array::from_fn(|k| (1.0 + k as f32).powi(-2)), 2e-3),
            (std::array::from_fn(|k| f32::from(u8::from(k == 0))), 2e-3),
            ([1.0; RANK], 1e-2),
        ];
        for (shares, tolerance) in cases {
            for channels in [64, 152, MOST_CHANNELS] {
                let unit = channels as f32 / 0.3 / shares.iter().sum::<f32>();
                let amplitudes = shares.map(|s| (s * unit).sqrt());
                let (model, features, exact) = parts(Size { width: 5, height: 4 }, channels, amplitudes);
                let mut got = vec![0.0; exact.len()];
                model.distances(&features, &mut got);
                for (got, exact) in got.iter().zip(&exact) {
                    let error = (f64::from(*got) / exact - 1.0).abs();
                    assert!(error < tolerance, "{channels} channels, {:?}: {got} {exact}", &amplitudes[..3]);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_kernel_gives_the_same() {
        let (model, features, exact) = parts(Size { width: 6, height: 5 }, 152, [10.0; RANK]);
        let mut plain = vec![0.0; exact.len()];
        distances(&model, &features, &mut plain, add_pairs);
        for (i, kernel) in x86::kernels().enumerate() {
            let mut by_hand = vec![0.0; exact.len()];
            // SAFETY: the processor has what it is compiled for
            unsafe { kernel(&model, &features, &mut by_hand) };
            assert_eq!(by_hand, plain, "kernel {i}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let (model, features, exact) = parts(Size { width: 2, height: 1 }, 24, [1.0; RANK]);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 23] {
                let mut features = features.clone();
                features[at] = wrong;
                let mut got = vec![0.0; exact.len()];
                model.distances(&features, &mut got);
                assert!(!got[0].is_finite() && got[1].is_finite(), "{wrong} {got:?}");
            }
        }
    }

    #[test]
    fn a_part_like_the_mean_is_at_no_distance() {
        let (model, _, exact) = parts(Size { width: 2, height: 1 }, 24, [1.0; RANK]);
        let mut got = vec![1.0; exact.len()];
        model.distances(&model.mean.clone(), &mut got);
        assert_eq!(got, [0.0; 2]);
    }
}
