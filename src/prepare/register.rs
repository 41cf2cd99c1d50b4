//! Registration by shift: what makes a position-wise detector see the same place at the same grid cell.
//!
//! Shift: phase correlation (Kuglin & Hines 1975) of the crop's luma at the model's size against the median teach picture;
//! the ROI is then cropped again by whole source pixels, so that nothing is interpolated.

use crate::error::{Context, Result};
use crate::prepare::shrink::Size;
use opencv::core::{CV_32F, Mat, Point2d, no_array};
use opencv::imgproc;
use opencv::prelude::*;

/// The median teach picture, against which crops are registered and matched.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub size: Size,
    /// Luma, `size.area()` bytes.
    pub luma: Vec<u8>,
    /// The median RGB picture, `3 * size.area()` bytes: what the place should look like, for people.
    pub rgb: Vec<u8>,
    /// Mean over all pixels and channels of the median RGB picture, 0..255.
    pub mean: f32,
    /// Standard deviation over the same.
    pub deviation: f32,
}

/// Finds the shift between a crop and the reference. Belongs to one thread.
pub struct Registrar {
    window: Mat,
    reference: Mat,
    current: Mat,
    size: Size,
}

/// A measured displacement, in pixels of the small picture.
#[derive(Debug, Clone, Copy)]
pub struct Shift {
    pub dx: f64,
    pub dy: f64,
    /// Peak of the correlation, 0..1; small when the pictures have little in common.
    pub response: f64,
}

impl Registrar {
    pub fn new(reference: &Reference) -> Result<Self> {
        let size = reference.size;
        let mut window = Mat::default();
        imgproc::create_hanning_window(
            &mut window,
            opencv::core::Size::new(size.width as i32, size.height as i32),
            CV_32F,
        )
        .failed(|| "registration: no window")?;
        let mut this = Registrar { window, reference: Mat::default(), current: Mat::default(), size };
        this.load(&reference.luma)?;
        std::mem::swap(&mut this.reference, &mut this.current);
        Ok(this)
    }

    /// How far the content of `luma` lies from where the reference has it: positive `dx` means further right.
    pub fn measure(&mut self, luma: &[u8]) -> Result<Shift> {
        self.load(luma)?;
        let mut response = 0.0;
        // phase_correlate multiplies its inputs by the window in place, which would wear the reference away from call to
        // call: both are windowed here, once
        let Point2d { x, y } =
            imgproc::phase_correlate(&self.reference, &self.current, &no_array(), Some(&mut response))
                .failed(|| "registration: phase correlation")?;
        Ok(Shift { dx: x, dy: y, response })
    }

    /// Centres and windows a picture into `current`.
    fn load(&mut self, luma: &[u8]) -> Result<()> {
        let mean = luma.iter().map(|&v| u64::from(v)).sum::<u64>() as f64 / luma.len().max(1) as f64;
        let from = Mat::new_rows_cols_with_data(self.size.height as i32, self.size.width as i32, luma)
            .failed(|| "registration: picture size")?;
        from.convert_to(&mut self.current, CV_32F, 1.0, -mean).failed(|| "registration: conversion")?;
        let window = self.window.data_typed::<f32>().failed(|| "registration: window")?;
        let pixels = self.current.data_typed_mut::<f32>().failed(|| "registration: picture")?;
        pixels.iter_mut().zip(window).for_each(|(p, w)| *p *= w);
        Ok(())
    }
}

/// Mean and standard deviation over all bytes of a picture.
pub fn statistics(pixels: &[u8]) -> (f32, f32) {
    let (mut sum, mut squares) = (0u64, 0u64);
    for block in pixels.chunks(4096) {
        let (mut s, mut q) = (0u32, 0u32);
        for &v in block {
            s += u32::from(v);
            q += u32::from(v) * u32::from(v);
        }
        sum += u64::from(s);
        squares += u64::from(q);
    }
    let n = pixels.len().max(1) as f64;
    let mean = sum as f64 / n;
    (mean as f32, (squares as f64 / n - mean * mean).max(0.0).sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(size: Size, dx: i32, dy: i32) -> Vec<u8> {
        let mut luma = vec![40; size.area()];
        for (x, y, w, h) in [(30, 20, 25, 9), (60, 50, 12, 30), (20, 70, 40, 6)] {
            for yy in y + dy..y + dy + h {
                for xx in x + dx..x + dx + w {
                    luma[(yy * size.width as i32 + xx) as usize] = 200;
                }
            }
        }
        luma
    }

    #[test]
    fn the_sign_of_a_shift_is_the_direction_the_part_moved() {
        let size = Size { width: 112, height: 112 };
        let reference = Reference { size, luma: picture(size, 0, 0), rgb: Vec::new(), mean: 0.0, deviation: 1.0 };
        let mut r = Registrar::new(&reference).unwrap();
        let s = r.measure(&picture(size, 5, -3)).unwrap();
        assert!((s.dx - 5.0).abs() < 0.3 && (s.dy + 3.0).abs() < 0.3, "{s:?}");
        assert!(s.response > 0.3, "{s:?}");
    }

    /// Found by a falling response: OpenCV's phaseCorrelate multiplies its inputs by the window in place.
    #[test]
    fn measuring_again_gives_the_same() {
        let size = Size { width: 128, height: 128 };
        let reference = Reference { size, luma: picture(size, 0, 0), rgb: Vec::new(), mean: 0.0, deviation: 1.0 };
        let mut r = Registrar::new(&reference).unwrap();
        let first = r.measure(&picture(size, 5, -3)).unwrap();
        for _ in 0..50 {
            let again = r.measure(&picture(size, 5, -3)).unwrap();
            assert!(
                (again.dx - first.dx).abs() + (again.response - first.response).abs() < 1e-9,
                "{first:?} {again:?}"
            );
        }
    }
}
