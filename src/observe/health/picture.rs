//! Measures of a picture: sharpness, clipped pixels, local contrast. Plain functions over bytes.

/// Luma of an RGB picture.
pub(super) fn luma(rgb: &[u8]) -> Vec<f32> {
    let (pixels, _) = rgb.as_chunks::<3>();
    pixels.iter().map(|p| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2])).collect()
}

/// Variance of the Laplacian (Pech-Pacheco et al. 2000) over the variance of the picture itself, so that neither the light
/// nor the exposure counts for focus. 0 for a picture without any contrast.
pub(super) fn sharpness(luma: &[f32], width: usize) -> f64 {
    let height = luma.len() / width.max(1);
    if width < 3 || height < 3 {
        return 0.0;
    }
    let (mut n, mut sum, mut squares) = (0u32, 0f64, 0f64);
    for y in 1..height - 1 {
        let row = |dy: usize| &luma[(y + dy - 1) * width..][..width];
        let (above, here, below) = (row(0), row(1), row(2));
        for x in 1..width - 1 {
            let l = f64::from(above[x] + below[x] + here[x - 1] + here[x + 1] - 4.0 * here[x]);
            (n, sum, squares) = (n + 1, sum + l, squares + l * l);
        }
    }
    let n = f64::from(n);
    let laplacian = squares / n - (sum / n) * (sum / n);
    let count = luma.len() as f64;
    let mean = luma.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let own = luma.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
    if own < 1e-3 { 0.0 } else { laplacian / own }
}

/// Shares of pixels that are black and that are white beyond what the camera can tell apart.
pub(super) fn clipped(rgb: &[u8]) -> (f64, f64) {
    let (pixels, _) = rgb.as_chunks::<3>();
    let (mut dark, mut bright) = (0u32, 0u32);
    for p in pixels {
        dark += u32::from(p.iter().all(|&v| v <= 2));
        bright += u32::from(p.iter().any(|&v| v >= 253));
    }
    let n = pixels.len().max(1) as f64;
    (f64::from(dark) / n, f64::from(bright) / n)
}

/// How much lighter or darker each place is than its surroundings (a square of `2 * reach + 1`), as a share of them: light
/// and exposure cancel out.
pub(super) fn contrast(luma: &[u8], width: usize, reach: usize, out: &mut Vec<f32>) {
    /// Keeps noise in the dark from looking like contrast, grey levels.
    const DARK: f32 = 12.0;
    let height = luma.len() / width.max(1);
    // sums over all that is above and left
    let pitch = width + 1;
    let mut sums = vec![0u32; pitch * (height + 1)];
    for y in 0..height {
        let mut row = 0;
        for x in 0..width {
            row += u32::from(luma[y * width + x]);
            sums[(y + 1) * pitch + x + 1] = sums[y * pitch + x + 1] + row;
        }
    }
    let mean = |x: usize, y: usize, reach: usize| {
        let (x0, x1) = (x.saturating_sub(reach), (x + reach + 1).min(width));
        let (y0, y1) = (y.saturating_sub(reach), (y + reach + 1).min(height));
        let sum = sums[y1 * pitch + x1] + sums[y0 * pitch + x0] - sums[y0 * pitch + x1] - sums[y1 * pitch + x0];
        sum as f32 / ((x1 - x0) * (y1 - y0)) as f32
    };
    out.clear();
    out.extend((0..width * height).map(|i| {
        let (x, y) = (i % width, i / width);
        // the place itself is a mean of 3 x 3: a single pixel is noise
        let around = mean(x, y, reach);
        (mean(x, y, 1) - around) / (around + DARK)
    }));
}

/// The middle value; 0 of nothing.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharpness_falls_with_blur_and_not_with_light() {
        let mut rng = fastrand::Rng::with_seed(5);
        let noise: Vec<f32> = (0..64 * 64).map(|_| rng.f32() * 100.0).collect();
        let dim: Vec<f32> = noise.iter().map(|v| 0.5 * v + 20.0).collect();
        let smooth: Vec<f32> = (0..noise.len())
            .map(|i| noise[i.saturating_sub(1)..(i + 2).min(noise.len())].iter().sum::<f32>() / 3.0)
            .collect();
        let sharp = sharpness(&noise, 64);
        assert!((sharpness(&dim, 64) / sharp - 1.0).abs() < 1e-3);
        assert!(sharpness(&smooth, 64) < 0.9 * sharp, "{} {sharp}", sharpness(&smooth, 64));
        assert_eq!(sharpness(&[9.0; 64 * 64], 64), 0.0);
        assert_eq!(sharpness(&[], 0), 0.0);
    }

    #[test]
    fn clipped_pixels_are_counted() {
        assert_eq!(clipped(&[0, 0, 0, 255, 9, 9, 100, 100, 100, 0, 1, 30]), (0.25, 0.25));
    }

    #[test]
    fn contrast_is_a_share_of_the_surroundings() {
        let (mut luma, mut out) = (vec![100u8; 40 * 30], Vec::new());
        for y in 10..15 {
            luma[y * 40 + 20..][..5].fill(60);
        }
        contrast(&luma, 40, 8, &mut out);
        assert!(out[12 * 40 + 22] < -0.25, "{}", out[12 * 40 + 22]);
        assert!(out[2 * 40 + 2].abs() < 1e-3);
        let before = out.clone();
        let double: Vec<u8> = luma.iter().map(|v| v * 2).collect();
        contrast(&double, 40, 8, &mut out);
        assert!(before.iter().zip(&out).all(|(a, b)| (a - b).abs() < 0.05));
    }

    #[test]
    fn medians() {
        assert_eq!((median([]), median([3.0, 1.0, 2.0]), median([1.0, 3.0])), (0.0, 2.0, 2.0));
    }
}
