//! Where on a picture an anomaly is, as exports say it: the reported boxes, and inside them what the heatmap marks.
//!
//! Thread: none; pure functions, called from `spawn_blocking`.
//!
//! Invariants:
//! 1. A box lies inside its picture and is not empty, whatever an event says. Test: `boxes_stay_inside`.
//! 2. What is marked is what was above the threshold. Test: `the_heatmap_marks_what_is_above_the_threshold`.
//! 3. The work for one anomaly is bounded, whatever an event says. Test: `hostile_regions_take_no_time`.

use crate::event::{Event, ImageSize, Rect};
use crate::review::thumbs;

/// How opaque the heatmap is at the threshold (see `picture::heat_png`).
const THRESHOLD: u8 = 102;
/// Regions of one anomaly that are exported, the strongest first.
const REGIONS: usize = 100;
/// Pixels of one anomaly that are looked at one by one; beyond it a region is its box.
const LOOKED_AT: u64 = 50_000_000;

/// The heatmap's opacity; it covers the whole picture.
#[derive(Debug)]
pub struct Heat {
    width: u32,
    height: u32,
    alpha: Vec<u8>,
}

impl Heat {
    /// Reads a heatmap; `None` when it cannot be decoded.
    pub fn read(png: &[u8]) -> Option<Heat> {
        let image = thumbs::decode(png).ok()?.into_rgba8();
        Some(Heat { width: image.width(), height: image.height(), alpha: image.pixels().map(|p| p.0[3]).collect() })
    }

    fn is_above(&self, image: ImageSize, x: u32, y: u32) -> bool {
        let at = |v: u32, from: u32, to: u32| u64::from(v) * u64::from(to) / u64::from(from.max(1));
        let index = at(y, image.height, self.height) * u64::from(self.width) + at(x, image.width, self.width);
        self.alpha.get(index as usize).is_some_and(|&a| a >= THRESHOLD)
    }
}

/// One marked place.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    pub bounds: Rect,
    /// Of the region; `None` where there was none.
    pub score: Option<f32>,
    /// Marked pixels, column by column from the left: x, first y, length.
    pub runs: Vec<(u32, u32, u32)>,
}

impl Mark {
    /// Marked pixels.
    pub fn area(&self) -> u64 {
        self.runs.iter().map(|(_, _, length)| u64::from(*length)).sum()
    }

    /// As run lengths of not marked and marked pixels in turn, column by column, over the whole picture (COCO's uncompressed RLE).
    pub fn rle(&self, image: ImageSize) -> Vec<u64> {
        let height = u64::from(image.height);
        let mut counts = Vec::with_capacity(2 * self.runs.len() + 1);
        let mut end = 0;
        for &(x, y, length) in &self.runs {
            let start = u64::from(x) * height + u64::from(y);
            match counts.last_mut() {
                Some(last) if start == end => *last += u64::from(length),
                _ => counts.extend([start - end, u64::from(length)]),
            }
            end = start + u64::from(length);
        }
        counts.push(u64::from(image.width) * height - end);
        counts
    }
}

/// A box cut to its picture; `None` when nothing is left.
pub fn inside(image: ImageSize, x: u32, y: u32, w: u32, h: u32) -> Option<Rect> {
    let (w, h) = (w.min(image.width.saturating_sub(x)), h.min(image.height.saturating_sub(y)));
    (w > 0 && h > 0).then_some(Rect { x, y, w, h })
}

/// The judged box, or the whole picture where there is none.
pub fn judged(event: &Event) -> Rect {
    let whole = Rect { x: 0, y: 0, w: event.image.width.max(1), h: event.image.height.max(1) };
    event.part_box.and_then(|p| inside(event.image, p.x, p.y, p.w, p.h)).unwrap_or(whole)
}

/// The boxes of the regions with their scores, the strongest first; the judged box where there are none.
pub fn boxes(event: &Event) -> Vec<(Rect, Option<f32>)> {
    let mut regions: Vec<_> = event.regions.iter().collect();
    regions.sort_by(|a, b| b.score.total_cmp(&a.score));
    let boxes = regions.into_iter().filter_map(|r| Some((inside(event.image, r.x, r.y, r.w, r.h)?, Some(r.score))));
    let boxes: Vec<_> = boxes.take(REGIONS).collect();
    if boxes.is_empty() { vec![(judged(event), None)] } else { boxes }
}

/// What is marked: in each region's box the pixels that the heatmap shows above the threshold; the whole box where it shows none,
/// or where there is no region or heatmap to go by.
pub fn marks(event: &Event, heat: Option<&Heat>) -> Vec<Mark> {
    let mut looked_at = 0;
    let mark = |(bounds, score): (Rect, Option<f32>)| {
        looked_at += u64::from(bounds.w) * u64::from(bounds.h);
        let runs =
            heat.filter(|_| score.is_some() && looked_at <= LOOKED_AT).map(|heat| runs(heat, event.image, bounds));
        let filled = || (bounds.x..bounds.x + bounds.w).map(|x| (x, bounds.y, bounds.h)).collect();
        Mark { bounds, score, runs: runs.filter(|runs| !runs.is_empty()).unwrap_or_else(filled) }
    };
    boxes(event).into_iter().map(mark).collect()
}

fn runs(heat: &Heat, image: ImageSize, bounds: Rect) -> Vec<(u32, u32, u32)> {
    let mut runs = Vec::new();
    for x in bounds.x..bounds.x + bounds.w {
        let mut from = None;
        for y in bounds.y..=bounds.y + bounds.h {
            let marked = y < bounds.y + bounds.h && heat.is_above(image, x, y);
            match (marked, from) {
                (true, None) => from = Some(y),
                (false, Some(start)) => {
                    runs.push((x, start, y - start));
                    from = None;
                }
                _ => {}
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Region;
    use crate::picture;
    use crate::prepare::shrink::Size;

    fn region(x: u32, y: u32, w: u32, h: u32, score: f32) -> Region {
        Region { x, y, w, h, score, area_px: 0.0, share: 0.0, area_mm2: None }
    }

    fn event(width: u32, height: u32, regions: Vec<Region>, part_box: Option<Rect>) -> Event {
        serde_json::from_value(serde_json::json!({
            "schema": 1, "id": uuid::Uuid::nil(), "site": "s", "line": "a", "camera": "c", "part": 1, "frame": 2,
            "captured_at": "2030-01-02T03:04:05Z", "score": 2.0, "confidence": 0.99, "threshold": 1.0,
            "verdict": "reject", "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU",
            "precision": "f32", "image": {"width": width, "height": height}, "regions": regions, "part_box": part_box,
        }))
        .unwrap()
    }

    #[test]
    fn boxes_stay_inside() {
        let regions = vec![
            region(90, 50, 100, 100, 1.0),
            region(100, 0, 5, 5, 9.0),
            region(u32::MAX, u32::MAX, u32::MAX, u32::MAX, 7.0),
            region(3, 4, 0, 7, 5.0),
            region(0, 0, u32::MAX, 1, 2.0),
        ];
        let event = event(100, 60, regions, None);
        let wanted = [Rect { x: 0, y: 0, w: 100, h: 1 }, Rect { x: 90, y: 50, w: 10, h: 10 }];
        assert_eq!(boxes(&event).iter().map(|b| b.0).collect::<Vec<_>>(), wanted);
        let part = Some(Rect { x: 10, y: 10, w: 20, h: 500 });
        let none = self::event(100, 60, vec![], part);
        assert_eq!(boxes(&none), [(Rect { x: 10, y: 10, w: 20, h: 50 }, None)]);
        let nowhere = self::event(100, 60, vec![], Some(Rect { x: 100, y: 60, w: 1, h: 1 }));
        assert_eq!(judged(&nowhere), Rect { x: 0, y: 0, w: 100, h: 60 });
    }

    #[test]
    fn the_heatmap_marks_what_is_above_the_threshold() {
        // above in columns 4 and 5 of the lower half, at the threshold in column 6, just below it in column 7
        let values = |x: u32, y: u32| match (x, y >= 3) {
            (4 | 5, true) => 12.0,
            (6, true) => 10.0,
            (7, true) => 9.9,
            _ => 0.0,
        };
        let png = picture::heat_png(Size { width: 10, height: 6 }, 10.0, |x, y| Some(values(x, y))).unwrap();
        let heat = Heat::read(&png).unwrap();
        let event = event(20, 12, vec![region(6, 2, 12, 8, 12.0)], None);
        let marks = marks(&event, Some(&heat));
        // two pixels of the picture for one of the heatmap; the box ends at y 10
        let wanted: Vec<_> = (8..14).map(|x| (x, 6, 4)).collect();
        assert_eq!(marks[0].runs, wanted);
        assert_eq!(marks[0].area(), 24);
        let rle = marks[0].rle(event.image);
        assert_eq!(rle.iter().sum::<u64>(), 240);
        assert_eq!(rle[..3], [8 * 12 + 6, 4, 8]);
    }

    #[test]
    fn without_a_heatmap_a_region_is_its_box() {
        let event = event(20, 12, vec![region(6, 2, 3, 10, 12.0)], None);
        let mark = &marks(&event, None)[0];
        assert_eq!(mark.runs, [(6, 2, 10), (7, 2, 10), (8, 2, 10)]);
        assert_eq!(mark.rle(event.image), [74, 10, 2, 10, 2, 10, 20 * 12 - 108]);
        let touching = Mark { bounds: mark.bounds, score: None, runs: vec![(0, 0, 12), (1, 0, 3)] };
        assert_eq!(touching.rle(event.image), [0, 15, 225]);
    }

    #[test]
    fn hostile_regions_take_no_time() {
        let regions = (0..10_000).map(|n| region(0, 0, 16_384, 16_384, n as f32)).collect();
        let event = event(16_384, 16_384, regions, None);
        let heat = Heat { width: 4, height: 4, alpha: vec![255; 16] };
        let start = std::time::Instant::now();
        assert_eq!(marks(&event, Some(&heat)).len(), REGIONS);
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }
}
