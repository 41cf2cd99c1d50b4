//! Regions of an anomaly: connected areas of the map above the threshold, as boxes in source pixels.

use crate::detect::AnomalyMap;
use crate::error::{Context, Result};
use crate::event::Region;
use crate::prepare::shrink::Crop;
use opencv::core::Mat;
use opencv::imgproc;
use opencv::prelude::*;

/// Most regions in one event; the strongest are kept.
const MAX_REGIONS: usize = 32;

/// Areas of `map` above `threshold`, strongest first. `crop` is where the map lies in the frame, `frame` the frame's size:
/// boxes are clipped to it.
pub fn regions(map: &AnomalyMap, threshold: f32, crop: Crop, frame: (u32, u32)) -> Result<Vec<Region>> {
    let (w, h) = (map.size.width as i32, map.size.height as i32);
    let above: Vec<u8> = map.values.iter().map(|&v| u8::from(v > threshold)).collect();
    let mask = Mat::new_rows_cols_with_data(h, w, &above).failed(|| "regions: map size")?;
    let mut labels = Mat::default();
    let n =
        imgproc::connected_components(&mask, &mut labels, 8, opencv::core::CV_32S).failed(|| "regions: components")?;
    let labels = labels.data_typed::<i32>().failed(|| "regions: labels")?;
    let mut boxes = vec![(i32::MAX, i32::MAX, -1, -1, 0f32); n.max(1) as usize];
    for (i, (&label, &v)) in labels.iter().zip(&map.values).enumerate() {
        if label > 0 {
            let (x, y) = (i as i32 % w, i as i32 / w);
            let b = &mut boxes[label as usize];
            *b = (b.0.min(x), b.1.min(y), b.2.max(x), b.3.max(y), b.4.max(v));
        }
    }
    let (sx, sy) = (crop.width as f32 / w as f32, crop.height as f32 / h as f32);
    let source = |at: i32, scale: f32, origin: i32, limit: u32| {
        ((at as f32 * scale).round() as i32 + origin).clamp(0, limit as i32) as u32
    };
    let mut out: Vec<Region> = boxes
        .into_iter()
        .skip(1)
        .filter(|b| b.2 >= 0)
        .map(|(x0, y0, x1, y1, score)| {
            let (x, y) = (source(x0, sx, crop.x, frame.0), source(y0, sy, crop.y, frame.1));
            let (right, bottom) = (source(x1 + 1, sx, crop.x, frame.0), source(y1 + 1, sy, crop.y, frame.1));
            Region { x, y, w: right - x, h: bottom - y, score }
        })
        .collect();
    out.sort_by(|a, b| b.score.total_cmp(&a.score));
    out.truncate(MAX_REGIONS);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::shrink::Size;

    #[test]
    fn boxes_are_in_source_pixels_strongest_first() {
        let size = Size { width: 8, height: 8 };
        let mut values = vec![0.0; 64];
        values[9] = 5.0; // x 1, y 1
        values[10] = 4.0;
        values[6 * 8 + 6] = 9.0;
        let map = AnomalyMap { size, values };
        let crop = Crop { x: 100, y: -10, width: 80, height: 80 };
        let r = regions(&map, 3.0, crop, (1280, 720)).unwrap();
        assert_eq!(r.len(), 2);
        assert_eq!(r[0], Region { x: 160, y: 50, w: 10, h: 10, score: 9.0 });
        assert_eq!(r[1], Region { x: 110, y: 0, w: 20, h: 10, score: 5.0 });
    }
}
