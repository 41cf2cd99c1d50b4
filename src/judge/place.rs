//! The anomaly map at the frame's resolution, for comparison with pixel-precise truth and for pictures of the map.

use crate::detect::AnomalyMap;
use crate::prepare::shrink::{Crop, Size};
use std::sync::Arc;

/// An anomaly map and where it lies in its frame. [`PlacedMap::in_frame`] alone knows how the two belong together.
#[derive(Debug, Clone)]
pub struct PlacedMap {
    map: Arc<AnomalyMap>,
    crop: Crop,
}

impl PlacedMap {
    /// `crop` is what was judged, in frame pixels; it may reach beyond the frame.
    pub fn new(map: Arc<AnomalyMap>, crop: Crop) -> Self {
        PlacedMap { map, crop }
    }

    /// The map's values, in the unit of the score, at each pixel of a frame of `size`, row by row: bilinear inside what was
    /// judged (pixel centres on pixel centres), 0 outside.
    pub fn in_frame(&self, size: Size) -> Vec<f32> {
        let (map, crop) = (&*self.map, self.crop);
        let mut out = vec![0.0; size.area()];
        let columns = taps(crop.x, crop.width, size.width, map.size.width);
        let width = map.size.width as usize;
        for (y, row) in taps(crop.y, crop.height, size.height, map.size.height) {
            let above = &map.values[row.first * width..][..width];
            let below = &map.values[row.second * width..][..width];
            let line = &mut out[y * size.width as usize..][..size.width as usize];
            for &(x, column) in &columns {
                let top = above[column.first] + (above[column.second] - above[column.first]) * column.share;
                let bottom = below[column.first] + (below[column.second] - below[column.first]) * column.share;
                line[x] = top + (bottom - top) * row.share;
            }
        }
        out
    }
}

/// Two neighbouring map indices and the share of the second.
#[derive(Debug, Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    share: f32,
}

/// For each frame pixel of one axis that lies inside the crop, where it falls in the map.
fn taps(origin: i32, length: u32, frame: u32, map: u32) -> Vec<(usize, Tap)> {
    let scale = f64::from(map) / f64::from(length.max(1));
    let end = (i64::from(origin) + i64::from(length)).clamp(0, i64::from(frame));
    (i64::from(origin.max(0))..end)
        .map(|at| {
            let u = (((at - i64::from(origin)) as f64 + 0.5) * scale - 0.5).clamp(0.0, f64::from(map - 1));
            let first = u as usize;
            (at as usize, Tap { first, second: (first + 1).min(map as usize - 1), share: (u - first as f64) as f32 })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn placed(width: u32, height: u32, values: Vec<f32>, crop: Crop) -> PlacedMap {
        PlacedMap::new(Arc::new(AnomalyMap { size: Size { width, height }, values }), crop)
    }

    #[test]
    fn the_map_is_enlarged_where_it_lies_and_nothing_is_known_outside() {
        let p = placed(2, 1, vec![1.0, 3.0], Crop { x: 1, y: 1, width: 4, height: 2 });
        let wanted = [
            [0.0; 6],
            [0.0, 1.0, 1.5, 2.5, 3.0, 0.0], // centres at -0.25, 0.25, 0.75, 1.25 of the map
            [0.0, 1.0, 1.5, 2.5, 3.0, 0.0],
            [0.0; 6],
        ];
        assert_eq!(p.in_frame(Size { width: 6, height: 4 }), wanted.concat());
    }

    proptest! {
        /// Whatever the crop, nothing panics and no value is invented.
        #[test]
        fn any_crop_can_be_placed(
            x in -40i32..60, y in -40i32..60, width in 1u32..80, height in 1u32..80,
            values in proptest::collection::vec(1.0f32..9.0, 12),
        ) {
            let p = placed(4, 3, values.clone(), Crop { x, y, width, height });
            let out = p.in_frame(Size { width: 50, height: 30 });
            let highest = values.iter().copied().fold(0.0, f32::max);
            prop_assert!(out.iter().all(|&v| v == 0.0 || (1.0 - 1e-5..=highest + 1e-5).contains(&v)));
            let inside = |at: i32, origin: i32, length: u32| at >= origin && at < origin + length as i32;
            for (i, &v) in out.iter().enumerate() {
                prop_assert_eq!(v > 0.0, inside(i as i32 % 50, x, width) && inside(i as i32 / 50, y, height));
            }
        }
    }
}
