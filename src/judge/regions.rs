//! Regions of an anomaly: connected areas of the map above the threshold, as boxes in source pixels.

use crate::detect::AnomalyMap;
use crate::error::{Context, Result};
use crate::event::Region;
use crate::prepare::placement::Placement;
use crate::prepare::shrink::Crop;
use opencv::core::Mat;
use opencv::imgproc;
use opencv::prelude::*;

/// Most regions in one event; the strongest are kept.
const MAX_REGIONS: usize = 32;

/// One connected area while it is gathered, in map pixels.
#[derive(Clone, Copy)]
struct Gathered {
    x0: i32,
    y0: i32,
    x1: i32,
    y1: i32,
    score: f32,
    cells: u32,
    /// Sum of what the map has above the threshold.
    mass: f64,
}

/// Areas of `map` above `threshold`, strongest first. `placement` is where the map lies in the frame, `frame` the frame's
/// size: boxes are clipped to it. With `mm_per_pixel`, areas are given in square millimetres too.
pub fn regions(
    map: &AnomalyMap,
    threshold: f32,
    placement: &Placement,
    frame: (u32, u32),
    mm_per_pixel: Option<f32>,
) -> Result<Vec<Region>> {
    let (w, h) = (map.size.width as i32, map.size.height as i32);
    let above: Vec<u8> = map.values.iter().map(|&v| u8::from(v > threshold)).collect();
    let mask = Mat::new_rows_cols_with_data(h, w, &above).failed(|| "regions: map size")?;
    let mut labels = Mat::default();
    let n =
        imgproc::connected_components(&mask, &mut labels, 8, opencv::core::CV_32S).failed(|| "regions: components")?;
    let labels = labels.data_typed::<i32>().failed(|| "regions: labels")?;
    let empty = Gathered { x0: i32::MAX, y0: i32::MAX, x1: -1, y1: -1, score: 0.0, cells: 0, mass: 0.0 };
    let mut found = vec![empty; n.max(1) as usize];
    // a turned box is that of its pixels, not of its corners in the map
    let mut turned = vec![None::<Crop>; if placement.crop().is_some() { 0 } else { found.len() }];
    for (i, (&label, &v)) in labels.iter().zip(&map.values).enumerate() {
        if label > 0 {
            let (x, y) = (i as i32 % w, i as i32 / w);
            let g = &mut found[label as usize];
            (g.x0, g.y0, g.x1, g.y1) = (g.x0.min(x), g.y0.min(y), g.x1.max(x), g.y1.max(y));
            g.score = g.score.max(v);
            g.cells += 1;
            g.mass += f64::from(v - threshold);
            if let Some(b) = turned.get_mut(label as usize) {
                let unit = |at: i32, of: i32| f64::from(at) / f64::from(of);
                let pixel = placement.bounds_of(unit(x, w), unit(y, h), unit(x + 1, w), unit(y + 1, h));
                *b = Some(b.map_or(pixel, |b| united(b, pixel)));
            }
        }
    }
    let cell = placement.area() / map.size.area() as f64;
    let total: f64 = found.iter().skip(1).map(|g| g.mass).sum();
    let (width, height) = (f64::from(w), f64::from(h));
    let limit = |at: f64, limit: u32| (at.round() as i32).clamp(0, limit as i32) as u32;
    let mut out: Vec<Region> = found
        .into_iter()
        .enumerate()
        .skip(1)
        .filter(|(_, g)| g.cells > 0)
        .map(|(i, g)| {
            let ((left, upper), (right, lower)) = match turned.get(i) {
                Some(Some(b)) => (
                    (f64::from(b.x), f64::from(b.y)),
                    (f64::from(b.x) + f64::from(b.width), f64::from(b.y) + f64::from(b.height)),
                ),
                _ => (
                    placement.to_source(f64::from(g.x0) / width, f64::from(g.y0) / height),
                    placement.to_source(f64::from(g.x1 + 1) / width, f64::from(g.y1 + 1) / height),
                ),
            };
            let (x, y) = (limit(left, frame.0), limit(upper, frame.1));
            let area = f64::from(g.cells) * cell;
            Region {
                x,
                y,
                w: limit(right, frame.0) - x,
                h: limit(lower, frame.1) - y,
                score: g.score,
                area_px: area as f32,
                share: if total > 0.0 { (g.mass / total) as f32 } else { 0.0 },
                area_mm2: mm_per_pixel.map(|mm| (area * f64::from(mm).powi(2)) as f32),
            }
        })
        .collect();
    out.sort_by(|a, b| b.score.total_cmp(&a.score));
    out.truncate(MAX_REGIONS);
    Ok(out)
}

fn united(a: Crop, b: Crop) -> Crop {
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let right = (a.x + a.width as i32).max(b.x + b.width as i32);
    let bottom = (a.y + a.height as i32).max(b.y + b.height as i32);
    Crop { x, y, width: (right - x) as u32, height: (bottom - y) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::shrink::Size;

    fn map() -> AnomalyMap {
        let mut values = vec![0.0; 64];
        values[9] = 5.0; // x 1, y 1
        values[10] = 4.0;
        values[6 * 8 + 6] = 9.0;
        AnomalyMap { size: Size { width: 8, height: 8 }, values }
    }

    #[test]
    fn boxes_are_in_source_pixels_strongest_first() {
        let crop = Crop { x: 100, y: -10, width: 80, height: 80 };
        let r = regions(&map(), 3.0, &crop.into(), (1280, 720), Some(0.5)).unwrap();
        assert_eq!(r.len(), 2);
        let box_of = |r: &Region| (r.x, r.y, r.w, r.h, r.score);
        assert_eq!(box_of(&r[0]), (160, 50, 10, 10, 9.0));
        assert_eq!(box_of(&r[1]), (110, 0, 20, 10, 5.0));
        // ten by ten pixels a cell; 6 of the 6 + 2 + 1 above the threshold
        assert_eq!((r[0].area_px, r[1].area_px), (100.0, 200.0));
        assert_eq!((r[0].area_mm2, r[1].area_mm2), (Some(25.0), Some(50.0)));
        assert!((r[0].share - 6.0 / 9.0).abs() < 1e-6 && (r[1].share - 3.0 / 9.0).abs() < 1e-6);
    }

    /// A part that lies turned by a right angle: right in the map is down in the source.
    #[test]
    fn boxes_of_turned_parts_lie_where_the_pixels_do() {
        let p = Placement::turned([200.0, 200.0], std::f64::consts::FRAC_PI_2, 80.0, 80.0);
        let r = regions(&map(), 3.0, &p, (1280, 720), None).unwrap();
        assert_eq!((r[0].x, r[0].y, r[0].w, r[0].h), (170, 220, 10, 10));
        assert_eq!((r[1].x, r[1].y, r[1].w, r[1].h), (220, 170, 10, 20));
        assert!((r[1].area_px - 200.0).abs() < 1e-3);
        let off = Placement::turned([0.0, 0.0], 0.3, 80.0, 80.0);
        for r in regions(&map(), 3.0, &off, (1280, 720), None).unwrap() {
            assert!(r.x + r.w <= 1280 && r.y + r.h <= 720, "{r:?}");
        }
    }
}
