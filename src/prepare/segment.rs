//! Finds the one part that lies on a plain background, at low resolution: what differs from the surface that fits the
//! picture's border.
//!
//! The border of the picture shows background (a part that covers it is cut, and refused). A smooth surface through it, each
//! colour by itself, follows light that falls off; pixels that differ from it by more than Otsu's threshold (Otsu 1979) are
//! part, whether darker, brighter or of another colour. Holes in the part count as part.
//!
//! Invariants:
//! 1. Full-resolution pixels are read only by the shrink.
//! 2. Everything of a [`Blob`] is in source pixels of the whole frame.

use super::shrink::{Crop, Shrinker, Size};
use crate::error::{Context, Result};
use crate::frame::Frame;
use nalgebra::{SMatrix, SVector};
use opencv::core::{Mat, Point, Vector};
use opencv::imgproc;
use opencv::prelude::*;

/// Longer side of the picture in which the part is found.
const SIDE: u32 = 256;
/// The border that shows background, as a share of the shorter side.
const BORDER: f64 = 0.03;
/// Pixels of the border this many robust deviations from the surface do not count for it.
const TRIM: f32 = 3.0;
/// Share of Otsu's threshold above which a pixel is part: Otsu halves the contrast of the strongest tone, and parts have
/// weaker ones.
const OTSU_SHARE: f64 = 0.7;
/// ... but at least this many deviations of the background, and this many grey levels.
const SIGMAS: f64 = 6.0;
const MIN_LEVELS: f64 = 8.0;
/// Closes gaps of this many low-resolution pixels.
const CLOSE: i32 = 5;
/// Outlines shorter than this many low-resolution pixels are dirt.
const MIN_OUTLINE: usize = 12;

/// What was found in one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Blob {
    /// Area inside the outer outline, source pixels.
    pub area: f64,
    /// Centroid.
    pub centre: [f64; 2],
    /// Direction of the longest extent, radians, -pi/2..=pi/2.
    pub axis: f64,
    /// Standard deviation along the axis over that across it, >= 1.
    pub elongation: f64,
    /// Area of the next largest thing over that of the largest, 0..1.
    pub second: f64,
    /// It touches the edge of the picture.
    pub cut: bool,
    /// Mean difference from the background inside, in grey levels.
    pub contrast: f32,
    /// Deviation of the background around its surface, in grey levels.
    pub background: f32,
    /// Outer outline.
    pub outline: Vec<[f64; 2]>,
}

/// Finds parts; belongs to one thread and keeps its scratch memory.
pub struct Segmenter {
    rgb: Vec<u8>,
    difference: Vec<u8>,
    smooth: Mat,
    above: Mat,
    closed: Mat,
    kernel: Mat,
}

type Six = SVector<f64, 6>;

impl Segmenter {
    pub fn new() -> Result<Self> {
        let kernel =
            imgproc::get_structuring_element_def(imgproc::MORPH_ELLIPSE, opencv::core::Size::new(CLOSE, CLOSE))
                .failed(|| "locating: no kernel")?;
        Ok(Segmenter {
            rgb: Vec::new(),
            difference: Vec::new(),
            smooth: Mat::default(),
            above: Mat::default(),
            closed: Mat::default(),
            kernel,
        })
    }

    /// The largest thing on the background of `roi`, or `None` when there is none.
    pub fn find(&mut self, shrinker: &mut Shrinker, frame: &Frame, roi: Crop) -> Result<Option<Blob>> {
        let scale = f64::from(SIDE) / f64::from(roi.width.max(roi.height)).max(f64::from(SIDE));
        let even = |length: u32| ((f64::from(length) * scale / 2.0).round().max(8.0) * 2.0) as u32;
        let size = Size { width: even(roi.width), height: even(roi.height) };
        self.rgb.resize(size.area() * 3, 0);
        self.difference.resize(size.area(), 0);
        shrinker.rgb(frame, roi, size, &mut self.rgb)?;
        let background = self.subtract_background(size);
        self.outline(size, background, roi)
    }

    /// Fills `difference`: the largest difference of any colour from its surface. Returns the background's deviation.
    fn subtract_background(&mut self, size: Size) -> f64 {
        let (w, h) = (size.width as usize, size.height as usize);
        let ring = ((w.min(h) as f64 * BORDER).round() as usize).max(2);
        let at = |i: usize, n: usize| (i as f64 + 0.5) / n as f64 * 2.0 - 1.0;
        let terms = |x: f64, y: f64| Six::from([1.0, x, y, x * x, y * y, x * y]);
        let mut border = Vec::new();
        for y in 0..h {
            let edge_row = y < ring || y + ring >= h;
            // every second pixel: neighbours say the same
            for x in ((y & 1)..w).step_by(2) {
                if edge_row || x < ring || x + ring >= w {
                    border.push((x, y, terms(at(x, w), at(y, h))));
                }
            }
        }
        let mut deviation = 0f64;
        let mut surfaces = [Six::zeros(); 3];
        let mut residuals = vec![0f32; border.len()];
        for (channel, surface) in surfaces.iter_mut().enumerate() {
            let value = |x: usize, y: usize| f64::from(self.rgb[(y * w + x) * 3 + channel]);
            let (mut limit, mut own) = (f32::INFINITY, 0.0);
            for _ in 0..3 {
                let mut normal = SMatrix::<f64, 6, 6>::identity() * 1e-6;
                let mut right = Six::zeros();
                for ((x, y, t), r) in border.iter().zip(&residuals) {
                    if *r <= limit {
                        normal += t * t.transpose();
                        right += t * value(*x, *y);
                    }
                }
                *surface = normal.cholesky().map(|c| c.solve(&right)).unwrap_or_default();
                for ((x, y, t), r) in border.iter().zip(&mut residuals) {
                    *r = (value(*x, *y) - surface.dot(t)).abs() as f32;
                }
                let mut sorted = residuals.clone();
                let middle = sorted.len() / 2;
                let spread = 1.4826 * *sorted.select_nth_unstable_by(middle, f32::total_cmp).1;
                limit = TRIM * spread + 1.0;
                own = f64::from(spread);
            }
            deviation = deviation.max(own);
        }
        let x_terms: Vec<f64> = (0..w).map(|x| at(x, w)).collect();
        for (y, (line, out)) in self.rgb.chunks_exact(w * 3).zip(self.difference.chunks_exact_mut(w)).enumerate() {
            let v = at(y, h);
            // along a row the surface is a parabola in x
            let row =
                surfaces.map(|s| ((s[0] + s[2] * v + s[4] * v * v) as f32, (s[1] + s[5] * v) as f32, s[3] as f32));
            for ((pixel, d), x) in line.chunks_exact(3).zip(out).zip(&x_terms) {
                let x = *x as f32;
                let mut largest = 0f32;
                for (p, (a, b, c)) in pixel.iter().zip(row) {
                    largest = largest.max((f32::from(*p) - (a + x * (b + x * c))).abs());
                }
                *d = largest as u8;
            }
        }
        deviation
    }

    fn outline(&mut self, size: Size, background: f64, roi: Crop) -> Result<Option<Blob>> {
        let (w, h) = (size.width as i32, size.height as i32);
        let from = Mat::new_rows_cols_with_data(h, w, &self.difference).failed(|| "locating: picture size")?;
        imgproc::gaussian_blur_def(&from, &mut self.smooth, opencv::core::Size::new(3, 3), 0.8)
            .failed(|| "locating: blur")?;
        let otsu = imgproc::threshold(
            &self.smooth,
            &mut self.above,
            0.0,
            255.0,
            imgproc::THRESH_BINARY | imgproc::THRESH_OTSU,
        )
        .failed(|| "locating: threshold")?;
        let threshold = (OTSU_SHARE * otsu).max(SIGMAS * background).max(MIN_LEVELS);
        imgproc::threshold(&self.smooth, &mut self.above, threshold, 255.0, imgproc::THRESH_BINARY)
            .failed(|| "locating: threshold")?;
        imgproc::morphology_ex_def(&self.above, &mut self.closed, imgproc::MORPH_CLOSE, &self.kernel)
            .failed(|| "locating: closing")?;
        let mut outlines: Vector<Vector<Point>> = Vector::new();
        imgproc::find_contours_def(&self.closed, &mut outlines, imgproc::RETR_EXTERNAL, imgproc::CHAIN_APPROX_NONE)
            .failed(|| "locating: outlines")?;
        let mut found: Vec<(Moments, usize)> = outlines
            .iter()
            .enumerate()
            .filter(|(_, o)| o.len() >= MIN_OUTLINE)
            .map(|(i, o)| (Moments::of(o.as_slice()), i))
            .collect();
        found.sort_by(|a, b| b.0.area.total_cmp(&a.0.area));
        let Some(&(m, index)) = found.first() else { return Ok(None) };
        if m.area < 1.0 {
            return Ok(None);
        }
        let outline = outlines.get(index).failed(|| "locating: outlines")?;
        let points = outline.as_slice();
        let cut = points.iter().any(|p| p.x <= 0 || p.y <= 0 || p.x >= w - 1 || p.y >= h - 1);
        let smooth = self.smooth.data_typed::<u8>().failed(|| "locating: picture")?;
        let (sx, sy) = (f64::from(roi.width) / f64::from(w), f64::from(roi.height) / f64::from(h));
        let source = |x: f64, y: f64| [(x + 0.5) * sx + f64::from(roi.x), (y + 0.5) * sy + f64::from(roi.y)];
        let axis = 0.5 * (2.0 * m.xy * sx * sy).atan2(m.xx * sx * sx - m.yy * sy * sy);
        let (a, b, c) = (m.xx * sx * sx, m.xy * sx * sy, m.yy * sy * sy);
        let root = ((a - c) / 2.0).hypot(b);
        let (large, small) = ((a + c) / 2.0 + root, ((a + c) / 2.0 - root).max(1e-6));
        // the contrast of the part's own pixels, not of what fills its holes
        let (mut sum, mut n) = (0u64, 0u64);
        let (x0, x1) = points.iter().fold((w, 0), |(l, r), p| (l.min(p.x), r.max(p.x)));
        let (y0, y1) = points.iter().fold((h, 0), |(l, r), p| (l.min(p.y), r.max(p.y)));
        for y in y0..=y1 {
            for &v in &smooth[(y * w + x0) as usize..=(y * w + x1) as usize] {
                if f64::from(v) > threshold {
                    sum += u64::from(v);
                    n += 1;
                }
            }
        }
        Ok(Some(Blob {
            // Pick's theorem: the polygon runs through the centres of the outermost pixels
            area: (m.area + points.len() as f64 / 2.0 + 1.0) * sx * sy,
            centre: source(m.x, m.y),
            axis,
            elongation: (large / small).sqrt(),
            second: found.get(1).map_or(0.0, |(s, _)| s.area / m.area),
            cut,
            contrast: sum as f32 / n.max(1) as f32,
            background: background as f32,
            outline: points.iter().map(|p| source(f64::from(p.x), f64::from(p.y))).collect(),
        }))
    }
}

/// Area, centroid and central second moments (divided by the area) of a polygon, by Green's theorem.
#[derive(Debug, Clone, Copy)]
struct Moments {
    area: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Moments {
    fn of(points: &[Point]) -> Self {
        let Some(origin) = points.first() else {
            return Moments { area: 0.0, x: 0.0, y: 0.0, xx: 0.0, xy: 0.0, yy: 0.0 };
        };
        let (mut a, mut mx, mut my, mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        for (i, p) in points.iter().enumerate() {
            let q = points[(i + 1) % points.len()];
            // relative to the first point, where the sums stay small
            let (x0, y0) = (f64::from(p.x - origin.x), f64::from(p.y - origin.y));
            let (x1, y1) = (f64::from(q.x - origin.x), f64::from(q.y - origin.y));
            let cross = x0 * y1 - x1 * y0;
            a += cross;
            mx += cross * (x0 + x1);
            my += cross * (y0 + y1);
            xx += cross * (x0 * x0 + x0 * x1 + x1 * x1);
            yy += cross * (y0 * y0 + y0 * y1 + y1 * y1);
            xy += cross * (x0 * (2.0 * y0 + y1) + x1 * (y0 + 2.0 * y1));
        }
        let area = a / 2.0;
        if area.abs() < 0.5 {
            return Moments { area: 0.0, x: 0.0, y: 0.0, xx: 0.0, xy: 0.0, yy: 0.0 };
        }
        let (x, y) = (mx / (6.0 * area), my / (6.0 * area));
        Moments {
            area: area.abs(),
            x: x + f64::from(origin.x),
            y: y + f64::from(origin.y),
            xx: xx / (12.0 * area) - x * x,
            xy: xy / (24.0 * area) - x * y,
            yy: yy / (12.0 * area) - y * y,
        }
    }
}
