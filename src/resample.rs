//! The triangle kernel: a separable resampling filter as wide as the pixels it makes (bilinear with anti-aliasing), on
//! planes of bytes. Vertical first, so that each row is read where it lies; then horizontal, eight rows side by side in the
//! lanes of a vector, so that neither pass gathers.
//!
//! Own code, because what the ecosystem has makes its coefficients anew for each plane (a thousand small allocations a frame)
//! and costs more minutes to compile than all the rest of this crate.
//!
//! Invariants:
//! 1. A result is within one level of the kernel's exact value (test `is_the_triangle_kernel`).
//! 2. Once the sizes are known nothing is allocated.

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

/// Rows that are made together: 16 bits of each are one vector of 128 bits.
const ROWS: usize = 8;
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
    /// `taps` weights a pixel made, of 65536 together. Each stands there as a vector: of a scalar that is spread in a loop
    /// compilers do not see that a multiplication in 16 bits will do.
    weights: Vec<[u16; ROWS]>,
}

/// Resamples planes; keeps its scratch memory and its last kernels.
#[derive(Default)]
pub struct Resampler {
    kernels: Vec<Kernel>,
    next: usize,
    /// Those of the row that is made, each spread over a vector.
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
        let Some((&left, &last)) = kx.first.first().zip(kx.first.last()) else { return };
        let (left, end) = (left as usize, last as usize + kx.taps);
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
            interleave(&self.rows, bytemuck::cast_slice_mut(&mut self.lanes));
            horizontal(&self.lanes, source.channels, kx, &mut self.small);
            for (r, to) in group.chunks_exact_mut(line).enumerate() {
                pick(bytemuck::cast_slice(&self.small), r, to);
            }
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
    fn make(&mut self, axis: Axis) {
        let scale = axis.length / axis.n as f64;
        let reach = scale.max(1.0);
        self.axis = axis;
        self.taps = ((2.0 * reach).ceil() as usize).min(axis.limit);
        self.first.clear();
        self.weights.clear();
        self.weights.resize(self.taps * axis.n, [0; ROWS]);
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
                *weight = [(upto - given).min(65535) as u16; ROWS];
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

/// From [`ROWS`] rows, one after the other, to columns of [`ROWS`] values; each column is two of `columns`.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn interleave(rows: &[u16], columns: &mut [u64]) {
    let (columns, _) = columns.as_chunks_mut::<2>();
    let n = columns.len();
    for (half, rows) in rows.chunks_exact(4 * n).enumerate() {
        let (a, rows) = rows.split_at(n);
        let (b, rows) = rows.split_at(n);
        let (c, d) = rows.split_at(n);
        for ((((to, &a), &b), &c), &d) in columns.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            to[half] = u64::from(a) | (u64::from(b) << 16) | (u64::from(c) << 32) | (u64::from(d) << 48);
        }
    }
}

/// Columns of the pixels that `kernel` makes, from columns that begin with the first that it needs.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn horizontal(columns: &[[u16; ROWS]], channels: usize, kernel: &Kernel, out: &mut [[u16; ROWS]]) {
    match channels {
        1 => horizontal_of::<1>(columns, kernel, out),
        2 => horizontal_of::<2>(columns, kernel, out),
        3 => horizontal_of::<3>(columns, kernel, out),
        _ => horizontal_of::<4>(columns, kernel, out),
    }
}

#[inline(always)]
fn horizontal_of<const N: usize>(columns: &[[u16; ROWS]], kernel: &Kernel, out: &mut [[u16; ROWS]]) {
    let (columns, _) = columns.as_chunks::<N>();
    let (out, _) = out.as_chunks_mut::<N>();
    let (bias, left) = (bias(kernel.taps), kernel.first.first().map_or(0, |&f| f as usize));
    for ((to, &first), weights) in out.iter_mut().zip(&kernel.first).zip(kernel.weights.chunks_exact(kernel.taps)) {
        let from = &columns[first as usize - left..];
        let mut sums = [[bias; ROWS]; N];
        for (k, weight) in weights.iter().enumerate() {
            // a way out of the loop keeps compilers from gathering several taps for one vector
            let Some(pixel) = from.get(k) else { break };
            for (sums, column) in sums.iter_mut().zip(pixel) {
                for ((sum, &value), &weight) in sums.iter_mut().zip(column).zip(weight) {
                    *sum = sum.saturating_add(weigh(value, weight));
                }
            }
        }
        *to = sums;
    }
}

/// Row `r` of columns, each two of `columns`, as bytes.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn pick(columns: &[u64], r: usize, out: &mut [u8]) {
    let (half, shift) = (r / 4, 16 * (r % 4));
    for (to, column) in out.iter_mut().zip(columns.as_chunks::<2>().0) {
        let value = (column[half] >> shift) as u16;
        // the nearest level; no sum is higher than 255 levels and the bias
        *to = (value.saturating_add(128) >> 8) as u8;
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
