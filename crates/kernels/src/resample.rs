//! The triangle kernel: a separable resampling filter as wide as the pixels it makes (bilinear with anti-aliasing), on
//! planes of bytes. Vertical first, so that each row is read where it lies; then horizontal, sixteen rows side by side in the
//! lanes of a vector, so that neither pass gathers.
//!
//! Own code, because what the ecosystem has makes its coefficients anew for each plane (a thousand small allocations a frame)
//! and costs more minutes to compile than all the rest of this crate.
//!
//! Invariants:
//! 1. A result is within one level of the kernel's exact value (test `is_the_triangle_kernel`).
//! 2. Once the sizes are known nothing is allocated.
//! 3. What is written for AVX2 gives the same bytes as what is not (test `every_processor_gives_the_same`).

use crate::fetch::{LINE, fetch};

/// One axis of a resampling: `n` pixels are made of the interval of `length` source pixels from `start` on, of an axis of
/// `limit` pixels. Near the ends of the interval the kernel reaches beyond it, but never beyond the axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    pub start: f64,
    pub length: f64,
    pub limit: usize,
    pub n: usize,
}

/// What is resampled: rows of `channels` interleaved bytes a pixel, `stride` bytes from row to row; the last row may end with
/// its last pixel.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub data: &'a [u8],
    pub stride: usize,
    pub channels: usize,
}

/// Rows that are made together: 16 bits of each are one vector of 256 bits.
const ROWS: usize = 16;
/// A vector of 512 bits; narrower ones take several.
const LANES: usize = 32;
/// Bytes of a row that are summed in registers: two vectors, each of which holds the first bytes of pairs and the second ones.
const BLOCK: usize = 4 * LANES;
/// Kernels are kept for the planes and axes of a frame and of its locating; the oldest goes.
const KEPT: usize = 8;

/// The weights of one axis.
struct Kernel {
    axis: Axis,
    taps: usize,
    /// For each pixel made, the first source pixel that it is made of.
    first: Vec<u32>,
    /// `taps` weights a pixel made, of 65536 together. Each stands there twice: 32 bits are spread over a vector as they are
    /// loaded, 16 are not.
    weights: Vec<[u16; 2]>,
}

/// Resamples planes; keeps its scratch memory and its last kernels.
#[derive(Default)]
pub struct Resampler {
    kernels: Vec<Kernel>,
    next: usize,
    /// Those of the row that is made, each spread over a vector: of a scalar that is spread in a loop compilers do not see
    /// that a multiplication in 16 bits will do.
    weights: Vec<[u16; LANES]>,
    rows: Vec<u16>,
    lanes: Vec<[u16; ROWS]>,
    small: Vec<[u16; ROWS]>,
}

impl Resampler {
    /// Resamples to `across.n` x `down.n` pixels in `out`. `source` has `down.limit` rows of `across.limit` pixels of 1 to 4
    /// channels.
    pub fn resample(&mut self, source: Source<'_>, across: Axis, down: Axis, out: &mut [u8]) {
        let kx = self.kernel(across, None);
        let ky = self.kernel(down, Some(kx));
        let (kx, ky) = (&self.kernels[kx], &self.kernels[ky]);
        let Some(&last) = kx.first.last() else { return };
        let (left, end) = (kx.left(), last as usize + kx.taps);
        let width = (end - left) * source.channels;
        let line = across.n * source.channels;
        self.rows.resize(ROWS * width, 0);
        self.lanes.resize(width, [0; ROWS]);
        self.small.resize(line, [0; ROWS]);
        let next = ky.first.iter().skip(1).chain(ky.first.last());
        let mut weights = ky.weights.chunks_exact(ky.taps).zip(ky.first.iter().zip(next));
        for group in out.chunks_mut(ROWS * line) {
            let made = group.len() / line;
            for (row, (weights, (&first, &next))) in self.rows.chunks_exact_mut(width).zip(weights.by_ref().take(made))
            {
                let from = first as usize * source.stride + left * source.channels;
                let ahead = (next - first) as usize;
                self.weights.clear();
                self.weights.extend(weights.iter().map(|w| [w[0]; LANES]));
                vertical(&source.data[from..], source.stride, &self.weights, bias(ky.taps), ahead, row);
            }
            interleave(&self.rows, &mut self.lanes);
            horizontal(&self.lanes, source.channels, kx, &mut self.small);
            pick(&self.small, group);
        }
    }

    /// Where the kernel of `axis` is; the one at `needed` stays.
    fn kernel(&mut self, axis: Axis, needed: Option<usize>) -> usize {
        if let Some(known) = self.kernels.iter().position(|k| k.axis == axis) {
            return known;
        }
        if self.kernels.len() < KEPT {
            self.kernels.push(Kernel { axis, taps: 0, first: Vec::new(), weights: Vec::new() });
        }
        let at = if needed == Some(self.next) { (self.next + 1) % KEPT } else { self.next };
        self.next = (at + 1) % KEPT;
        self.kernels[at].make(axis);
        at
    }
}

impl Kernel {
    /// The first source pixel that any pixel is made of.
    fn left(&self) -> usize {
        self.first.first().map_or(0, |&first| first as usize)
    }

    fn make(&mut self, axis: Axis) {
        let scale = axis.length / axis.n as f64;
        let reach = scale.max(1.0);
        self.axis = axis;
        self.taps = ((2.0 * reach).ceil() as usize).min(axis.limit);
        self.first.clear();
        self.weights.clear();
        self.weights.resize(self.taps * axis.n, [0; 2]);
        for (i, weights) in self.weights.chunks_exact_mut(self.taps).enumerate() {
            let centre = axis.start + (i as f64 + 0.5) * scale;
            // the first whose middle the kernel reaches
            let first = ((centre - reach + 0.5).max(0.0) as usize).min(axis.limit - self.taps);
            self.first.push(first as u32);
            let height = |k: usize| (1.0 - ((first + k) as f64 + 0.5 - centre).abs() / reach).max(0.0);
            let sum: f64 = (0..self.taps).map(height).sum();
            // the sum so far is what is rounded, so that all together are 65536
            let (mut exact, mut given) = (0.0, 0);
            for (k, weight) in weights.iter_mut().enumerate() {
                exact += height(k) / sum * 65536.0;
                let upto = (exact + 0.5) as u32;
                // a single weight of 65536 does not fit: one less gives the same bytes
                *weight = [(upto - given).min(65535) as u16; 2];
                given = upto;
            }
        }
    }
}

/// What products lose by being cut off, on average.
fn bias(taps: usize) -> u16 {
    u16::try_from(taps.div_ceil(2)).unwrap_or(u16::MAX)
}

#[inline(always)]
fn weigh(value: u16, weight: u16) -> u16 {
    ((u32::from(value) * u32::from(weight)) >> 16) as u16
}

/// One row, of the rows that begin at `data`, in levels of 256 steps. The next row made needs `ahead` further ones.
///
/// Bytes are taken in pairs, as numbers of 16 bits: moved up, a pair is its first byte in steps; without its lower half, its
/// second. Nothing is widened, and compilers for AVX2 and AVX-512 alike find the instructions; the plain loop over bytes took
/// half as long again with AVX-512 and ten times as long with AVX2.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn vertical(data: &[u8], stride: usize, weights: &[[u16; LANES]], bias: u16, ahead: usize, out: &mut [u16]) {
    let width = out.len();
    if width < BLOCK {
        out.fill(bias);
        for (row, weight) in data.chunks(stride).zip(weights) {
            out.iter_mut().zip(row).for_each(|(to, &v)| *to = to.saturating_add(weigh(u16::from(v) << 8, weight[0])));
        }
        return;
    }
    for (i, to) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        vertical_block(&data[i * BLOCK..], stride, weights, bias, ahead, to);
    }
    // the last one begins where a whole one still fits: what two have in common is made twice
    if let Some(to) = out.last_chunk_mut().filter(|_| !width.is_multiple_of(BLOCK)) {
        vertical_block(&data[width - BLOCK..], stride, weights, bias, ahead, to);
    }
}

/// A block of a row, of the rows that begin at `data`.
#[inline(always)]
fn vertical_block(
    data: &[u8],
    stride: usize,
    weights: &[[u16; LANES]],
    bias: u16,
    ahead: usize,
    out: &mut [u16; BLOCK],
) {
    for k in weights.len()..weights.len() + ahead {
        (0..BLOCK).step_by(LINE).for_each(|line| fetch(data, k * stride + line));
    }
    let mut first = [[bias; LANES]; BLOCK / LANES / 2];
    let mut second = first;
    for (k, weight) in weights.iter().enumerate() {
        let Some(row) = data.get(k * stride..).and_then(|d| d.first_chunk::<BLOCK>()) else { break };
        for ((bytes, first), second) in row.as_chunks::<{ 2 * LANES }>().0.iter().zip(&mut first).zip(&mut second) {
            let pairs: [u16; LANES] = bytemuck::cast(*bytes);
            for (((&pair, &weight), first), second) in pairs.iter().zip(weight).zip(first).zip(second) {
                let pair = u16::from_le(pair);
                *first = first.saturating_add(weigh(pair << 8, weight));
                *second = second.saturating_add(weigh(pair & 0xff00, weight));
            }
        }
    }
    let pairs = first.as_flattened().iter().zip(second.as_flattened());
    out.as_chunks_mut::<2>().0.iter_mut().zip(pairs).for_each(|(to, (&a, &b))| *to = [a, b]);
}

/// From [`ROWS`] rows, one after the other, to columns.
fn interleave(rows: &[u16], columns: &mut [[u16; ROWS]]) {
    #[cfg(target_arch = "x86_64")]
    if columns.len() >= x86::AT_ONCE && std::is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has what the function is made of
        return unsafe { x86::interleave(rows, columns) };
    }
    plain::interleave(rows, columns);
}

/// Columns of the pixels that `kernel` makes, from columns that begin with the first that it needs.
fn horizontal(columns: &[[u16; ROWS]], channels: usize, kernel: &Kernel, out: &mut [[u16; ROWS]]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has what the functions are made of
        return unsafe {
            match channels {
                1 => x86::horizontal::<1>(columns, kernel, out),
                2 => x86::horizontal::<2>(columns, kernel, out),
                3 => x86::horizontal::<3>(columns, kernel, out),
                _ => x86::horizontal::<4>(columns, kernel, out),
            }
        };
    }
    plain::horizontal(columns, channels, kernel, out);
}

/// From columns to rows of bytes, as many as there are.
fn pick(columns: &[[u16; ROWS]], rows: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if columns.len() >= x86::AT_ONCE && std::is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has what the function is made of
        return unsafe { x86::pick(columns, rows) };
    }
    plain::pick(columns, rows);
}

mod plain {
    use super::{Kernel, ROWS, bias, weigh};

    pub fn interleave(rows: &[u16], columns: &mut [[u16; ROWS]]) {
        for (r, row) in rows.chunks_exact(columns.len()).enumerate() {
            columns.iter_mut().zip(row).for_each(|(column, &value)| column[r] = value);
        }
    }

    pub fn horizontal(columns: &[[u16; ROWS]], channels: usize, kernel: &Kernel, out: &mut [[u16; ROWS]]) {
        let left = kernel.left();
        let made = out.chunks_exact_mut(channels).zip(&kernel.first).zip(kernel.weights.chunks_exact(kernel.taps));
        for ((to, &first), weights) in made {
            to.fill([bias(kernel.taps); ROWS]);
            let from = columns[(first as usize - left) * channels..].chunks_exact(channels);
            for (pixel, [weight, _]) in from.zip(weights) {
                for (sums, column) in to.iter_mut().zip(pixel) {
                    sums.iter_mut().zip(column).for_each(|(sum, &v)| *sum = sum.saturating_add(weigh(v, *weight)));
                }
            }
        }
    }

    pub fn pick(columns: &[[u16; ROWS]], rows: &mut [u8]) {
        for (r, row) in rows.chunks_exact_mut(columns.len()).enumerate() {
            // the nearest level; no sum is higher than 255 levels and the bias
            row.iter_mut().zip(columns).for_each(|(to, column)| *to = (column[r].saturating_add(128) >> 8) as u8);
        }
    }
}

/// By hand: compilers gather and scatter single values instead.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernel, ROWS, bias};
    use std::arch::x86_64::{
        __m256i, _mm256_adds_epu16, _mm256_mulhi_epu16, _mm256_packus_epi16, _mm256_set1_epi16, _mm256_set1_epi32,
        _mm256_srli_epi16, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi16,
        _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    };

    /// Columns that are read or made together.
    pub const AT_ONCE: usize = 16;
    const HALF: usize = ROWS / 2;

    /// The 8 x 8 values in the first halves of eight vectors, and those in the second halves, are transposed.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transposed(v: [__m256i; 8]) -> [__m256i; 8] {
        let mut w = v;
        for i in [0, 2, 4, 6] {
            w[i] = _mm256_unpacklo_epi16(v[i], v[i + 1]);
            w[i + 1] = _mm256_unpackhi_epi16(v[i], v[i + 1]);
        }
        let mut v = w;
        for i in [0, 1, 4, 5] {
            v[i] = _mm256_unpacklo_epi32(w[i], w[i + 2]);
            v[i + 2] = _mm256_unpackhi_epi32(w[i], w[i + 2]);
        }
        for (i, pair) in [(0, 0), (2, 2), (1, 4), (3, 6)] {
            w[pair] = _mm256_unpacklo_epi64(v[i], v[i + 4]);
            w[pair + 1] = _mm256_unpackhi_epi64(v[i], v[i + 4]);
        }
        w
    }

    /// Where blocks of [`AT_ONCE`] of `n` begin; the last one where a whole one still fits.
    fn blocks(n: usize) -> impl Iterator<Item = usize> {
        (0..n.div_ceil(AT_ONCE)).map(move |i| (i * AT_ONCE).min(n - AT_ONCE))
    }

    #[target_feature(enable = "avx2")]
    pub fn interleave(rows: &[u16], columns: &mut [[u16; ROWS]]) {
        let n = columns.len();
        for (half, rows) in rows.chunks_exact(HALF * n).enumerate() {
            let rows: [&[u16]; HALF] = std::array::from_fn(|r| &rows[r * n..(r + 1) * n]);
            for at in blocks(n) {
                let values =
                    rows.map(|row| bytemuck::cast(row[at..].first_chunk::<AT_ONCE>().copied().unwrap_or_default()));
                for (i, two) in transposed(values).into_iter().enumerate() {
                    let two: [[u16; HALF]; 2] = bytemuck::cast(two);
                    columns[at + i].as_chunks_mut().0[half] = two[0];
                    columns[at + i + HALF].as_chunks_mut().0[half] = two[1];
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn horizontal<const N: usize>(columns: &[[u16; ROWS]], kernel: &Kernel, out: &mut [[u16; ROWS]]) {
        let (columns, _) = columns.as_chunks::<N>();
        let (out, _) = out.as_chunks_mut::<N>();
        let (bias, left) = (_mm256_set1_epi16(bias(kernel.taps) as i16), kernel.left());
        for ((to, &first), weights) in out.iter_mut().zip(&kernel.first).zip(kernel.weights.chunks_exact(kernel.taps)) {
            let mut sums = [bias; N];
            for (&weight, pixel) in weights.iter().zip(&columns[first as usize - left..]) {
                let weight = _mm256_set1_epi32(bytemuck::cast(weight));
                for (sum, &column) in sums.iter_mut().zip(pixel) {
                    *sum = _mm256_adds_epu16(*sum, _mm256_mulhi_epu16(bytemuck::cast(column), weight));
                }
            }
            *to = sums.map(bytemuck::cast);
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn pick(columns: &[[u16; ROWS]], rows: &mut [u8]) {
        let n = columns.len();
        for at in blocks(n) {
            let levels = |i: usize| {
                // the nearest level; no sum is higher than 255 levels and the bias
                let sums = _mm256_adds_epu16(bytemuck::cast(columns[at + i]), _mm256_set1_epi16(128));
                _mm256_srli_epi16::<8>(sums)
            };
            let first = transposed(std::array::from_fn(levels));
            let second = transposed(std::array::from_fn(|i| levels(i + HALF)));
            // of two halves each: a row and the one HALF further on
            for (r, (first, second)) in first.into_iter().zip(second).enumerate() {
                let two: [[u8; AT_ONCE]; 2] = bytemuck::cast(_mm256_packus_epi16(first, second));
                for (r, row) in [r, r + HALF].into_iter().zip(two) {
                    if let Some(to) = rows.get_mut(r * n + at..).and_then(|to| to.first_chunk_mut()) {
                        *to = row;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The kernel's definition, in f64 without intermediate rounding.
    fn exact(source: Source<'_>, across: Axis, down: Axis) -> Vec<f64> {
        let weights = |axis: Axis, i: usize| -> Vec<(usize, f64)> {
            let scale = axis.length / axis.n as f64;
            let (centre, reach) = (axis.start + (i as f64 + 0.5) * scale, scale.max(1.0));
            let heights: Vec<_> = (0..axis.limit)
                .map(|x| (x, 1.0 - (x as f64 + 0.5 - centre).abs() / reach))
                .filter(|(_, height)| *height > 0.0)
                .collect();
            let sum: f64 = heights.iter().map(|(_, height)| height).sum();
            heights.into_iter().map(|(x, height)| (x, height / sum)).collect()
        };
        let columns: Vec<_> = (0..across.n).map(|i| weights(across, i)).collect();
        let mut out = Vec::new();
        for i in 0..down.n {
            let rows = weights(down, i);
            for columns in &columns {
                for c in 0..source.channels {
                    let at = |y: usize, x: usize| f64::from(source.data[y * source.stride + x * source.channels + c]);
                    let row = |y: usize| columns.iter().map(|&(x, weight)| weight * at(y, x)).sum::<f64>();
                    out.push(rows.iter().map(|&(y, weight)| weight * row(y)).sum());
                }
            }
        }
        out
    }

    prop_compose! {
        fn axis()(limit in 2..300usize, n in 1..40usize)
            (limit in Just(limit), n in Just(n), start in 0.0..(limit as f64 - 1.5), share in 0.01..1.0f64) -> Axis {
            Axis { start, length: ((limit as f64 - start) * share).max(1.0), limit, n }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn is_the_triangle_kernel(across in axis(), down in axis(), channels in 1..5usize, padding in 0..9usize, seed: u64) {
            let row = across.limit * channels;
            let stride = row + padding;
            let mut rng = fastrand::Rng::with_seed(seed);
            // extremes are where sums could run over
            let data: Vec<u8> = (0..stride * (down.limit - 1) + row)
                .map(|_| if rng.bool() { rng.u8(..) } else { 255 * rng.u8(0..2) })
                .collect();
            let source = Source { data: &data, stride, channels };
            let mut out = vec![0; across.n * down.n * channels];
            let mut resampler = Resampler::default();
            resampler.resample(source, across, down, &mut out);
            for (made, exact) in out.iter().zip(exact(source, across, down)) {
                prop_assert!((f64::from(*made) - exact).abs() < 1.0, "{made} instead of {exact}");
            }
        }

        #[cfg(target_arch = "x86_64")]
        #[test]
        fn every_processor_gives_the_same(across in axis(), channels in 1..5usize, made in 1..=ROWS, seed: u64) {
            if !std::is_x86_feature_detected!("avx2") {
                return Ok(());
            }
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut kernel = Kernel { axis: across, taps: 0, first: Vec::new(), weights: Vec::new() };
            kernel.make(across);
            let (n, line) = ((across.limit - kernel.left()) * channels, across.n * channels);
            let rows: Vec<u16> = (0..ROWS * n).map(|_| rng.u16(..=0xff00)).collect();
            let mut columns = [(); 2].map(|()| vec![[0; ROWS]; n]);
            let mut narrow = [(); 2].map(|()| vec![[0; ROWS]; line]);
            let mut bytes = [(); 2].map(|()| vec![0; made * line]);
            plain::interleave(&rows, &mut columns[0]);
            interleave(&rows, &mut columns[1]);
            prop_assert!(columns[0] == columns[1]);
            plain::horizontal(&columns[0], channels, &kernel, &mut narrow[0]);
            horizontal(&columns[0], channels, &kernel, &mut narrow[1]);
            prop_assert!(narrow[0] == narrow[1]);
            plain::pick(&narrow[0], &mut bytes[0]);
            pick(&narrow[0], &mut bytes[1]);
            prop_assert!(bytes[0] == bytes[1]);
        }

        #[test]
        fn one_level_stays_that_level(across in axis(), down in axis(), level: u8) {
            let data = vec![level; across.limit * down.limit];
            let source = Source { data: &data, stride: across.limit, channels: 1 };
            let mut out = vec![0; across.n * down.n];
            Resampler::default().resample(source, across, down, &mut out);
            prop_assert!(out.iter().all(|v| *v == level), "{level}: {out:?}");
        }
    }

    #[test]
    fn a_size_as_it_is_changes_nothing() {
        let data: Vec<u8> = (0..=255).collect();
        let axis = Axis { start: 0.0, length: 16.0, limit: 16, n: 16 };
        let mut out = vec![0; 256];
        Resampler::default().resample(Source { data: &data, stride: 16, channels: 1 }, axis, axis, &mut out);
        assert_eq!(out, data);
    }

    #[test]
    fn more_kernels_than_are_kept_still_give_the_same() {
        let data: Vec<u8> = (0..100 * 100).map(|i| (i * 7 % 251) as u8).collect();
        let source = Source { data: &data, stride: 100, channels: 1 };
        let axis = |i: usize| Axis { start: i as f64, length: 60.0, limit: 100, n: 16 };
        let mut kept = Resampler::default();
        for i in (0..30).chain(0..30) {
            let (mut a, mut b) = (vec![0; 256], vec![0; 256]);
            kept.resample(source, axis(i), axis(29 - i), &mut a);
            Resampler::default().resample(source, axis(i), axis(29 - i), &mut b);
            assert_eq!(a, b);
        }
    }
}
