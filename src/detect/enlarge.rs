//! From a grid of distances to the anomaly map: bilinear enlarging and Gaussian smoothing as one linear operator.
//!
//! Both are separable and linear, so for each axis their product, edges included, is a matrix with a few neighbouring weights
//! in each row; the map is `Y · (distances · Xᵀ)`. That is a fraction of the work of enlarging first and smoothing the large map,
//! so no map needs to be skipped. Widths come first: what is added to neighbouring places waits for what was added before, and
//! the grid has fewer rows than the map.
//!
//! Invariants:
//! 1. The map is that of enlarging (pixel centres aligned, edges continued) and then smoothing (reflected at the edges without
//!    repeating the edge pixel, kernel cut at 4 sigma and summing to 1), as OpenCV's `resize` and `GaussianBlur` do it on f32
//!    (test `equals_resize_and_gaussian_blur`).

use crate::prepare::shrink::Size;
use linesight_kernels::smooth::operator;
use std::ops::Range;

/// Enlarges and smooths grids of one size to maps of one size; keeps its scratch memory.
pub struct Enlarger {
    grid: Size,
    size: Size,
    sigma: f32,
    /// For each row of the map, the grid's rows that it is made of, and their weights.
    rows: Vec<Band>,
    /// For each column of the grid, the map's columns that it goes into, and its weights there.
    columns: Vec<Band>,
    /// The grid's rows, of the map's width.
    wide: Vec<f32>,
}

/// The weights of a matrix row that are not 0.
#[derive(Debug, Clone, PartialEq)]
struct Band {
    range: Range<usize>,
    weights: Vec<f32>,
}

impl Enlarger {
    /// Both sides of `size` are at least those of `grid`; `sigma` in pixels of `size`, 0 for none.
    pub fn new(grid: Size, size: Size, sigma: f32) -> Self {
        let rows = operator(grid.height as usize, size.height as usize, sigma);
        let across = operator(grid.width as usize, size.width as usize, sigma);
        let columns: Vec<Vec<f64>> =
            (0..grid.width as usize).map(|x| across.iter().map(|to| to[x]).collect()).collect();
        Enlarger {
            grid,
            size,
            sigma,
            rows: rows.iter().map(|r| band(r)).collect(),
            columns: columns.iter().map(|c| band(c)).collect(),
            wide: vec![0.0; grid.height as usize * size.width as usize],
        }
    }

    /// Whether it was made for these.
    pub fn is_for(&self, grid: Size, size: Size, sigma: f32) -> bool {
        (self.grid, self.size, self.sigma) == (grid, size, sigma)
    }

    /// The map, `size.area()` values, of `grid.area()` distances.
    pub fn enlarge(&mut self, distances: &[f32]) -> Vec<f32> {
        let mut map = vec![0.0; self.size.area()];
        enlarge(&self.rows, &self.columns, distances, &mut self.wide, &mut map);
        map
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw", "x86_64+avx2+fma", "aarch64+neon"))]
fn enlarge(rows: &[Band], columns: &[Band], distances: &[f32], wide: &mut [f32], map: &mut [f32]) {
    let width = (map.len() / rows.len().max(1)).max(1);
    wide.fill(0.0);
    for (out, row) in wide.chunks_exact_mut(width).zip(distances.chunks_exact(columns.len())) {
        for (value, band) in row.iter().zip(columns) {
            out[band.range.clone()].iter_mut().zip(&band.weights).for_each(|(o, w)| *o += value * w);
        }
    }
    for (out, band) in map.chunks_exact_mut(width).zip(rows) {
        for (from, weight) in wide.chunks_exact(width).skip(band.range.start).zip(&band.weights) {
            out.iter_mut().zip(from).for_each(|(o, w)| *o += weight * w);
        }
    }
}

fn band(row: &[f64]) -> Band {
    let first = row.iter().position(|&w| w != 0.0).unwrap_or(0);
    let end = row.iter().rposition(|&w| w != 0.0).map_or(first, |last| last + 1);
    Band { range: first..end, weights: row[first..end].iter().map(|&w| w as f32).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opencv::core::{BORDER_REFLECT_101, Mat};
    use opencv::imgproc;
    use opencv::prelude::*;
    use proptest::prelude::*;

    /// Enlarging, then smoothing, by OpenCV.
    fn in_two_steps(grid: Size, size: Size, sigma: f32, distances: &[f32]) -> Vec<f32> {
        let from = Mat::new_rows_cols_with_data(grid.height as i32, grid.width as i32, distances).unwrap();
        let to = opencv::core::Size::new(size.width as i32, size.height as i32);
        let mut enlarged = Mat::default();
        imgproc::resize(&from, &mut enlarged, to, 0.0, 0.0, imgproc::INTER_LINEAR).unwrap();
        if sigma == 0.0 {
            return enlarged.data_typed().unwrap().to_vec();
        }
        let (mut smoothed, any) = (Mat::default(), opencv::core::Size::new(0, 0));
        let sigma = f64::from(sigma);
        imgproc::gaussian_blur(&enlarged, &mut smoothed, any, sigma, sigma, BORDER_REFLECT_101).unwrap();
        smoothed.data_typed().unwrap().to_vec()
    }

    proptest! {
        #[test]
        fn equals_resize_and_gaussian_blur(
            width in 2u32..40, height in 2u32..40, scale in prop::sample::select(vec![4u32, 8]),
            sigma in prop::sample::select(vec![0.0f32, 0.8, 1.5, 4.0]), seed in any::<u64>()
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let grid = Size { width, height };
            let size = Size { width: width * scale, height: height * scale };
            let distances: Vec<f32> = (0..grid.area()).map(|_| 10.0 * rng.f32()).collect();
            let got = Enlarger::new(grid, size, sigma).enlarge(&distances);
            for (a, b) in got.iter().zip(in_two_steps(grid, size, sigma, &distances)) {
                prop_assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
    }

    #[test]
    fn an_even_grid_stays_even() {
        let mut enlarger = Enlarger::new(Size { width: 3, height: 1 }, Size { width: 12, height: 4 }, 1.5);
        for _ in 0..2 {
            assert!(enlarger.enlarge(&[2.0; 3]).iter().all(|v| (v - 2.0).abs() < 1e-5));
        }
    }
}
