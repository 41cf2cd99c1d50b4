//! The anomaly map at the frame's resolution, for comparison with pixel-precise truth and for pictures of the map.

use crate::detect::AnomalyMap;
use crate::prepare::placement::Placement;
use crate::prepare::shrink::{Crop, Size};
use std::sync::Arc;

/// An anomaly map and where it lies in its frame. [`PlacedMap::in_frame`] alone knows how the two belong together.
#[derive(Debug, Clone)]
pub struct PlacedMap {
    map: Arc<AnomalyMap>,
    placement: Placement,
}

impl PlacedMap {
    /// `placement` is what was judged, in frame pixels; it may reach beyond the frame.
    pub fn new(map: Arc<AnomalyMap>, placement: impl Into<Placement>) -> Self {
        PlacedMap { map, placement: placement.into() }
    }

    /// The map's values, in the unit of the score, at each pixel of a frame of `size`, row by row: bilinear inside what was
    /// judged (pixel centres on pixel centres), 0 outside.
    pub fn in_frame(&self, size: Size) -> Vec<f32> {
        match self.placement.crop() {
            Some(crop) => self.upright(crop, size),
            None => self.turned(size),
        }
    }

    /// Rows and columns of the frame are those of the map.
    fn upright(&self, crop: Crop, size: Size) -> Vec<f32> {
        let mut out = vec![0.0; size.area()];
        let columns = taps(crop.x, crop.width, size.width, self.map.size.width);
        for (y, row) in taps(crop.y, crop.height, size.height, self.map.size.height) {
            let line = &mut out[y * size.width as usize..][..size.width as usize];
            for &(x, column) in &columns {
                line[x] = self.between(column, row);
            }
        }
        out
    }

    fn turned(&self, size: Size) -> Vec<f32> {
        let mut out = vec![0.0; size.area()];
        let bounds = self.placement.bounds();
        let range = |origin: i32, length: u32, limit: u32| {
            let end = (i64::from(origin) + i64::from(length)).clamp(0, i64::from(limit));
            origin.max(0) as usize..end as usize
        };
        for y in range(bounds.y, bounds.height, size.height) {
            for x in range(bounds.x, bounds.width, size.width) {
                let (u, v) = self.placement.to_unit(x as f64 + 0.5, y as f64 + 0.5);
                if (0.0..1.0).contains(&u) && (0.0..1.0).contains(&v) {
                    let (column, row) = (Tap::at(u, self.map.size.width), Tap::at(v, self.map.size.height));
                    out[y * size.width as usize + x] = self.between(column, row);
                }
            }
        }
        out
    }

    fn between(&self, column: Tap, row: Tap) -> f32 {
        let width = self.map.size.width as usize;
        let (above, below) = (&self.map.values[row.first * width..], &self.map.values[row.second * width..]);
        let top = above[column.first] + (above[column.second] - above[column.first]) * column.share;
        let bottom = below[column.first] + (below[column.second] - below[column.first]) * column.share;
        top + (bottom - top) * row.share
    }
}

/// Two neighbouring map indices and the share of the second.
#[derive(Debug, Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    share: f32,
}

impl Tap {
    /// Where a place from 0 to 1 along the map falls between its `n` pixels.
    fn at(place: f64, n: u32) -> Tap {
        let u = (place * f64::from(n) - 0.5).clamp(0.0, f64::from(n - 1));
        let first = u as usize;
        Tap { first, second: (first + 1).min(n as usize - 1), share: (u - first as f64) as f32 }
    }
}

/// For each frame pixel of one axis that lies inside the crop, where it falls in the map.
fn taps(origin: i32, length: u32, frame: u32, map: u32) -> Vec<(usize, Tap)> {
    let end = (i64::from(origin) + i64::from(length)).clamp(0, i64::from(frame));
    (i64::from(origin.max(0))..end)
        .map(|at| (at as usize, Tap::at(((at - i64::from(origin)) as f64 + 0.5) / f64::from(length.max(1)), map)))
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

    /// A part that lies at a right angle has the map of an upright one, turned.
    #[test]
    fn a_turned_map_lies_as_the_part_does() {
        let map =
            Arc::new(AnomalyMap { size: Size { width: 4, height: 2 }, values: (0..8).map(|v| v as f32).collect() });
        let upright = PlacedMap::new(map.clone(), Crop { x: 2, y: 4, width: 8, height: 4 });
        let turned = Placement::turned([6.0, 6.0], std::f64::consts::FRAC_PI_2, 8.0, 4.0);
        let (a, b) = (
            upright.in_frame(Size { width: 12, height: 12 }),
            PlacedMap::new(map, turned).in_frame(Size { width: 12, height: 12 }),
        );
        for y in 0..12 {
            for x in 0..12 {
                // x of the map runs down, y of the map runs left
                let wanted = a[x * 12 + y];
                assert!((b[y * 12 + (11 - x)] - wanted).abs() < 1e-4, "{x} {y}: {} {wanted}", b[y * 12 + (11 - x)]);
            }
        }
    }
}
