//! Mean distance of vectors from the nearest few of many others, for features against a memory bank. The search is exact:
//! `|x - b|² = |x|² + |b|² - 2 x·b` for every pair.
//!
//! Products are of integers of 16 bits, which processors do twice as many of as of floats: the bank's numbers are steps of one
//! size, each cell's are steps of its own.
//!
//! Invariants:
//! 1. A distance differs from the exact one by less than a thousandth of the vectors' lengths (test `the_nearest_are_found`).
//! 2. All processors give the same distances (test `every_kernel_gives_the_same`).
//! 3. A feature that is no number makes a distance that is none (test `what_is_no_number_stays_none`).

use crate::round::ROUND;

/// The most neighbours that a distance is the mean of.
pub const MOST_NEIGHBOURS: usize = 3;
/// Vectors whose numbers lie together.
const LANES: usize = 16;
/// Vectors come in so many groups of [`LANES`]; the last ones may be of nothing.
const GROUPS: usize = 4;
/// Cells that are searched at once: their numbers stay in the first-level cache.
const BLOCK: usize = 64;
/// No number has more steps, so that it fits 16 bits ...
const MOST_STEPS: f32 = 32_767.0;
/// ... and no vector is longer, so that no sum of products leaves 32 bits, whatever part of two vectors it is of (Cauchy
/// and Schwarz); 340 steps are left for rounding.
const MOST_LENGTH: f32 = 46_000.0;

/// Two channels of each vector of a group; what a cache line holds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(align(64))]
struct Pairs([i16; 2 * LANES]);

/// A sum for each vector of a group.
type Sums = [i32; LANES];

/// The least values of a search so far, in each lane in order.
type Least<const N: usize = LANES> = [[f32; N]; MOST_NEIGHBOURS];

/// The vectors that are searched, as the search reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Taken off both sides, so that steps are small.
    centre: Vec<f32>,
    /// How many of the nearest a distance is the mean of; never more than there are vectors.
    neighbours: usize,
    /// In steps: `[group][pair of channels]`.
    groups: Vec<Pairs>,
    /// One step.
    step: f32,
    /// Half the squared length of each vector of the groups; infinite for those of nothing.
    half_norms: Vec<f32>,
}

impl Vectors {
    /// `vectors`: `[vector][channel]` with `centre`, which has as many channels, already taken off, all finite. `neighbours`
    /// are 1 to [`MOST_NEIGHBOURS`]. None where numbers are too large to be squared.
    pub fn new(vectors: &[f32], centre: Vec<f32>, neighbours: usize) -> Option<Self> {
        let channels = centre.len();
        let step = vectors.chunks_exact(channels).map(step_of).fold(f32::MIN_POSITIVE, f32::max);
        if !step.is_finite() {
            return None;
        }
        let pairs = channels.div_ceil(2);
        let n = vectors.len() / channels;
        let groups = n.div_ceil(LANES).next_multiple_of(GROUPS);
        let mut made = Vectors {
            centre,
            neighbours: neighbours.min(n),
            groups: vec![Pairs([0; 2 * LANES]); groups * pairs],
            step,
            half_norms: vec![f32::INFINITY; groups * LANES],
        };
        let mut steps = vec![[0; 2]; pairs];
        for (i, v) in vectors.chunks_exact(channels).enumerate() {
            let length = in_steps(v, step, &mut steps);
            made.half_norms[i] = 0.5 * step * step * length;
            let group = &mut made.groups[i / LANES * pairs..][..pairs];
            for (to, from) in group.iter_mut().zip(&steps) {
                to.0[i % LANES * 2..][..2].copy_from_slice(from);
            }
        }
        Some(made)
    }

    /// Mean of the taught patches, which is taken off each cell's features.
    pub fn centre(&self) -> &[f32] {
        &self.centre
    }

    fn channels(&self) -> usize {
        self.centre.len()
    }
}

/// The smallest step that a vector can be counted in.
fn step_of(vector: &[f32]) -> f32 {
    let (mut squares, mut largest) = ([0f32; LANES], [0f32; LANES]);
    let mut add = |z: &[f32]| {
        for ((s, l), z) in squares.iter_mut().zip(&mut largest).zip(z) {
            *s += z * z;
            *l = if z.abs() > *l { z.abs() } else { *l };
        }
    };
    let (blocks, rest) = vector.as_chunks::<LANES>();
    blocks.iter().for_each(|z| add(z));
    add(rest);
    let length = squares.iter().sum::<f32>().sqrt();
    // no step is so small that there is no inverse
    let largest = largest.into_iter().fold(f32::MIN_POSITIVE * MOST_STEPS, f32::max);
    // a sum that is none stays none
    let by_length = length / MOST_LENGTH;
    if by_length < largest / MOST_STEPS { largest / MOST_STEPS } else { by_length }
}

/// Counts a vector in steps, in pairs, the last one filled up with nothing; its squared length in steps.
#[inline(always)]
fn in_steps(vector: &[f32], step: f32, steps: &mut [[i16; 2]]) -> f32 {
    let inverse = 1.0 / step;
    let mut squares = [0f32; LANES];
    let (blocks, rest) = vector.as_chunks::<LANES>();
    let flat = steps.as_flattened_mut();
    let one = |z: f32, to: &mut i16, square: &mut f32| {
        let rounded = z * inverse + ROUND;
        *to = rounded.to_bits() as i16;
        *square += (rounded - ROUND) * (rounded - ROUND);
    };
    for (z, to) in blocks.iter().zip(flat.as_chunks_mut::<LANES>().0) {
        for i in 0..LANES {
            one(z[i], &mut to[i], &mut squares[i]);
        }
    }
    for ((z, to), square) in rest.iter().zip(&mut flat[blocks.len() * LANES..]).zip(&mut squares) {
        one(*z, to, square);
    }
    squares.iter().sum()
}

/// Scratch memory of a search.
#[derive(Default)]
pub struct Search {
    /// Of one cell, less the bank's centre.
    difference: Vec<f32>,
    /// Of a block of cells: `[cell][pair of channels]`.
    steps: Vec<[i16; 2]>,
    /// Of each cell of a block: its step, and its squared length.
    sizes: Vec<(f32, f32)>,
    least: Vec<Least>,
}

impl Search {
    /// Distance of each cell's features `[cell][channel]` from the vectors nearest to it, into `out` (one value a cell).
    pub fn distances(&mut self, vectors: &Vectors, features: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = x86::kernels().next() {
            // SAFETY: the processor has what the function is compiled for; that is all it asks for.
            return unsafe { kernel(self, vectors, features, out) };
        }
        self.distances_with::<1>(vectors, features, out, add_pairs);
    }

    /// `add` is [`add_pairs`] as the processor has it, on `AT_ONCE` groups with as many sums as it has room for.
    #[inline(always)]
    fn distances_with<const AT_ONCE: usize>(
        &mut self,
        vectors: &Vectors,
        features: &[f32],
        out: &mut [f32],
        add: impl Fn(Sums, [i16; 2], &Pairs) -> Sums,
    ) {
        let c = vectors.channels();
        let pairs = c.div_ceil(2);
        self.difference.resize(c, 0.0);
        self.steps.resize(BLOCK * pairs, [0; 2]);
        // channels of another bank may have stood where nothing stands in this one
        self.steps.fill([0; 2]);
        self.sizes.resize(BLOCK, (0.0, 0.0));
        for (features, out) in features.chunks(BLOCK * c).zip(out.chunks_mut(BLOCK)) {
            let cells = features.chunks_exact(c).zip(self.steps.chunks_exact_mut(pairs)).zip(&mut self.sizes);
            for ((cell, steps), size) in cells {
                for ((z, f), m) in self.difference.iter_mut().zip(cell).zip(&vectors.centre) {
                    *z = f - m;
                }
                let step = step_of(&self.difference);
                *size = (step, in_steps(&self.difference, step, steps));
            }
            self.least.clear();
            self.least.resize(BLOCK, [[f32::INFINITY; LANES]; MOST_NEIGHBOURS]);
            let searched = out.len().next_multiple_of(CELLS);
            self.search::<AT_ONCE>(vectors, searched, &add);
            for ((d, least), &(step, length)) in out.iter_mut().zip(&self.least).zip(&self.sizes) {
                *d = mean_distance(least, step * step * length, vectors.neighbours);
            }
        }
    }

    /// Searches all vectors for the first `n` cells of the block.
    #[inline(always)]
    fn search<const AT_ONCE: usize>(
        &mut self,
        vectors: &Vectors,
        n: usize,
        add: &impl Fn(Sums, [i16; 2], &Pairs) -> Sums,
    ) {
        let pairs = vectors.channels().div_ceil(2);
        let (half_norms, _) = vectors.half_norms.as_chunks::<LANES>();
        for (groups, half_norms) in
            vectors.groups.chunks_exact(AT_ONCE * pairs).zip(half_norms.as_chunks::<AT_ONCE>().0)
        {
            let groups: [&[Pairs]; AT_ONCE] = std::array::from_fn(|g| &groups[g * pairs..][..pairs]);
            let cells = self.steps.chunks_exact(CELLS * pairs).zip(self.sizes.as_chunks::<CELLS>().0);
            let cells = cells.zip(self.least.as_chunks_mut::<CELLS>().0).take(n / CELLS);
            for ((steps, sizes), least) in cells {
                let steps: [&[[i16; 2]]; CELLS] = std::array::from_fn(|i| &steps[i * pairs..][..pairs]);
                let mut sums = [[[0; LANES]; AT_ONCE]; CELLS];
                for p in 0..pairs {
                    for (sums, steps) in sums.iter_mut().zip(&steps) {
                        for (sums, group) in sums.iter_mut().zip(&groups) {
                            *sums = add(*sums, steps[p], &group[p]);
                        }
                    }
                }
                for ((sums, least), (step, _)) in sums.iter().zip(least).zip(sizes) {
                    for (sums, half_norms) in sums.iter().zip(half_norms) {
                        let scale = step * vectors.step;
                        insert(least, std::array::from_fn(|i| half_norms[i] - scale * sums[i] as f32));
                    }
                }
            }
        }
    }
}

/// Cells that are searched side by side.
const CELLS: usize = 4;

/// Puts each value where it belongs among the least of its lane.
#[inline(always)]
fn insert<const N: usize>(least: &mut Least<N>, mut values: [f32; N]) {
    for least in least {
        for (least, value) in least.iter_mut().zip(&mut values) {
            let (low, high) = if *value < *least { (*value, *least) } else { (*least, *value) };
            (*least, *value) = (low, high);
        }
    }
}

/// Mean of the `k` least distances; `own` is the cell's squared length.
fn mean_distance(least: &Least, own: f32, k: usize) -> f32 {
    let mut nearest = [[f32::INFINITY]; MOST_NEIGHBOURS];
    least.as_flattened().iter().for_each(|&value| insert(&mut nearest, [value]));
    let sum: f32 = nearest[..k]
        .iter()
        .map(|[near]| own + 2.0 * near)
        // not `max`, which makes a number of none
        .map(|squared| if squared < 0.0 { 0.0 } else { squared.sqrt() })
        .sum();
    sum / k as f32
}

/// Adds the products of two channels to the sum of each vector.
fn add_pairs(sums: Sums, a: [i16; 2], b: &Pairs) -> Sums {
    let [p, q] = a.map(i32::from);
    std::array::from_fn(|i| sums[i] + p * i32::from(b.0[2 * i]) + q * i32::from(b.0[2 * i + 1]))
}

/// By hand: compilers do not see that each is one instruction or two.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Pairs, Search, Sums, Vectors};
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_dpwssd_avx_epi32, _mm256_madd_epi16, _mm256_set1_epi32, _mm512_dpwssd_epi32,
        _mm512_set1_epi32,
    };

    pub type Kernel = unsafe fn(&mut Search, &Vectors, &[f32], &mut [f32]);

    /// Those that this processor has what they are compiled for, the fastest first.
    pub fn kernels() -> impl Iterator<Item = Kernel> {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        [
            (avx512 && is_x86_feature_detected!("avx512vnni"), avx512_vnni as Kernel),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"), avx_vnni),
            (is_x86_feature_detected!("avx2"), avx2),
        ]
        .into_iter()
        .filter_map(|(has, kernel)| has.then_some(kernel))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn avx512_vnni(search: &mut Search, vectors: &Vectors, features: &[f32], out: &mut [f32]) {
        search.distances_with::<{ super::GROUPS }>(vectors, features, out, |sums, a, b| add_512(sums, a, b));
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn avx_vnni(search: &mut Search, vectors: &Vectors, features: &[f32], out: &mut [f32]) {
        search.distances_with::<1>(vectors, features, out, |sums, a, b| add_vnni(sums, a, b));
    }

    #[target_feature(enable = "avx2")]
    fn avx2(search: &mut Search, vectors: &Vectors, features: &[f32], out: &mut [f32]) {
        search.distances_with::<1>(vectors, features, out, |sums, a, b| add_256(sums, a, b));
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    #[inline]
    fn add_512(sums: Sums, a: [i16; 2], b: &Pairs) -> Sums {
        let a = _mm512_set1_epi32(bytemuck::cast(a));
        bytemuck::cast(_mm512_dpwssd_epi32(bytemuck::cast(sums), a, bytemuck::cast(b.0)))
    }

    #[target_feature(enable = "avx2,avxvnni")]
    #[inline]
    fn add_vnni(sums: Sums, a: [i16; 2], b: &Pairs) -> Sums {
        let a = _mm256_set1_epi32(bytemuck::cast(a));
        let (sums, b): ([__m256i; 2], [__m256i; 2]) = (bytemuck::cast(sums), bytemuck::cast(b.0));
        bytemuck::cast([_mm256_dpwssd_avx_epi32(sums[0], a, b[0]), _mm256_dpwssd_avx_epi32(sums[1], a, b[1])])
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add_256(sums: Sums, a: [i16; 2], b: &Pairs) -> Sums {
        let a = _mm256_set1_epi32(bytemuck::cast(a));
        let (sums, b): ([__m256i; 2], [__m256i; 2]) = (bytemuck::cast(sums), bytemuck::cast(b.0));
        let half = |i: usize| _mm256_add_epi32(sums[i], _mm256_madd_epi16(a, b[i]));
        bytemuck::cast([half(0), half(1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Vectors, the same as they are searched, and cells, of which some lie close to one of them.
    fn random(n: usize, cells: usize, channels: usize, neighbours: usize, seed: u64) -> (Vec<f32>, Vectors, Vec<f32>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut random = |n: usize| (0..n).map(|_| rng.f32() * 4.0 - 2.0).collect::<Vec<f32>>();
        let (vectors, centre, mut features) = (random(n * channels), random(channels), random(cells * channels));
        for (i, cell) in features.chunks_exact_mut(channels).enumerate().filter(|(i, _)| i % 3 == 0) {
            let near = &vectors[i % n * channels..];
            cell.iter_mut().zip(near).zip(&centre).for_each(|((f, v), m)| *f = v + m + 0.01 * *f);
        }
        let made = Vectors::new(&vectors, centre, neighbours).unwrap();
        (vectors, made, features)
    }

    proptest! {
        /// The search gives what comparing each cell with each vector gives.
        #[test]
        fn the_nearest_are_found(
            n in 1usize..150, cells in 1usize..150, c in 1usize..40, k in 1..=MOST_NEIGHBOURS, seed: u64
        ) {
            let (vectors, searched, features) = random(n, cells, c, k, seed);
            let mut got = vec![0.0; cells];
            Search::default().distances(&searched, &features, &mut got);
            let length = (c as f32).sqrt() * 4.0;
            for (f, got) in features.chunks(c).zip(got) {
                let mut all: Vec<f32> = vectors
                    .chunks(c)
                    .map(|v| v.iter().zip(searched.centre()).zip(f).map(|((v, m), f)| (f - m - v).powi(2)).sum::<f32>().sqrt())
                    .collect();
                all.sort_by(f32::total_cmp);
                let k = k.min(n);
                let wanted = all[..k].iter().sum::<f32>() / k as f32;
                prop_assert!((got - wanted).abs() < 1e-3 * length, "{got} {wanted}");
            }
        }

        #[test]
        fn every_kernel_gives_the_same(n in 1usize..150, cells in 1usize..150, c in 1usize..40, seed: u64) {
            let (_, vectors, features) = random(n, cells, c, 3, seed);
            let (mut plain, mut got) = (vec![0.0; cells], vec![0.0; cells]);
            // scratch memory that other vectors have used
            let (_, other, others) = random(20, 70, 50, 1, seed);
            let mut search = Search::default();
            search.distances(&other, &others, &mut [0.0; 70]);
            search.distances_with::<1>(&vectors, &features, &mut plain, add_pairs);
            search.distances(&vectors, &features, &mut got);
            prop_assert_eq!(&got, &plain);
            #[cfg(target_arch = "x86_64")]
            for (i, kernel) in x86::kernels().enumerate() {
                got.fill(0.0);
                // SAFETY: the processor has what it is compiled for
                unsafe { kernel(&mut search, &vectors, &features, &mut got) };
                prop_assert_eq!(&got, &plain, "kernel {}", i);
            }
        }
    }

    #[test]
    fn the_longest_vectors_leave_no_sum() {
        // all in one channel, and alike in all: each is the limit of one kind
        for channels in [1, 2, 3, 512] {
            let vector = vec![3.0; channels];
            let opposite: Vec<f32> = vector.iter().map(|v| -v).collect();
            let vectors = Vectors::new(&[vector, opposite.clone()].concat(), vec![0.0; channels], 2).unwrap();
            let mut got = [0.0];
            Search::default().distances(&vectors, &opposite, &mut got);
            let wanted = 3.0 * (channels as f32).sqrt();
            assert!((got[0] / wanted - 1.0).abs() < 1e-3, "{channels} channels: {got:?} instead of {wanted}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let (_, vectors, features) = random(20, 2, 24, 3, 1);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 23] {
                let mut features = features.clone();
                features[at] = wrong;
                let mut got = [0.0; 2];
                Search::default().distances(&vectors, &features, &mut got);
                assert!(!got[0].is_finite() && got[1].is_finite(), "{wrong} {got:?}");
            }
        }
    }
}
