//! Follows parts over the belt and says when each crosses the gate: once, never twice, none skipped.
//!
//! The gate is the line through the middle of the ROI across the movement. Belongs to the thread that prepares.
//! Invariants:
//! 1. A track crosses once: after that it is followed only until it leaves, and two tracks never follow one part (tests
//!    `a_part_is_judged_once`, `a_piece_that_was_followed_beside_its_part_gives_no_second_verdict`,
//!    `parts_side_by_side_are_each_judged`).
//! 2. A part that was seen before the gate and cannot be located at it, or vanishes for good, is still reported, as not
//!    located (tests `a_part_that_vanishes_before_the_gate_is_still_reported`, `a_part_taken_off_the_belt_is_reported`).
//! 3. A part that is first seen past the gate was another run's: it is not reported (test `parts_past_the_gate_at_the_start`).

use crate::prepare::locate::{Found, Locator, PartSize};
use crate::prepare::shrink::Crop;

/// Frames that a part may stay unseen before it is given up, when it is not about to cross.
const PATIENCE: u64 = 12;
/// How far from its predicted place a part is still the same, as a share of its size.
const REACH: f32 = 0.35;
/// Sightings before the gate that make a track a part, not a ghost.
const MIN_SIGHTINGS: u32 = 2;

/// A part at the gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// A box of the taught size around the part's centre, source pixels.
    pub crop: Crop,
    /// False when the part was not seen in this frame and its place is predicted.
    pub located: bool,
    /// The located box's width and height over the taught ones; 1.0 is as taught.
    pub relative_size: [f32; 2],
    /// Same for all looks at a part.
    pub track: u64,
    /// 0 at the gate, then 1, 2, ... in the frames after it.
    pub look: u32,
}

/// Sightings that make a track a part that must not go without a verdict, even when it vanishes.
const PART_SIGHTINGS: u32 = 5;

#[derive(Debug)]
struct Track {
    /// Position of the centre along and across the movement at `seen`.
    along: f32,
    across: f32,
    speed: f32,
    seen: u64,
    sightings: u32,
    crossed: bool,
    id: u64,
    /// Looks that were reported; as many as wanted when nothing more is to come.
    looks: u32,
}

/// The parts in view.
pub struct Tracker {
    roi: Crop,
    part: PartSize,
    /// 0: the parts move along x, 1: along y.
    axis: usize,
    direction: f32,
    speed: f32,
    gate: f32,
    tracks: Vec<Track>,
    lost: u64,
    /// Looks that are wanted at each part.
    looks: u32,
    next_id: u64,
    gone: Vec<u64>,
}

impl Tracker {
    pub fn new(locator: &Locator) -> Self {
        Self::with_looks(locator, 1)
    }

    /// Each part is reported at the gate and in the frames after it, `looks` times in all, as long as it is whole in view.
    pub fn with_looks(locator: &Locator, looks: u32) -> Self {
        let axis = usize::from(locator.velocity[1].abs() > locator.velocity[0].abs());
        let v = locator.velocity[axis];
        let roi = locator.roi;
        let gate =
            if axis == 0 { roi.x as f32 + roi.width as f32 / 2.0 } else { roi.y as f32 + roi.height as f32 / 2.0 };
        let (part, direction) = (locator.part, v.signum());
        let (tracks, gone) = (Vec::new(), Vec::new());
        Tracker { roi, part, axis, direction, speed: v, gate, tracks, lost: 0, looks: looks.max(1), next_id: 0, gone }
    }

    /// Parts that were seen and vanished before they reached the gate.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Parts that left, or were not seen any more, before all looks at them; each once.
    pub fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }

    /// Where the parts that are followed should be in frame `seq`: boxes of the taught size.
    pub fn expected(&self, seq: u64) -> Vec<Crop> {
        self.tracks
            .iter()
            .filter(|t| t.sightings >= MIN_SIGHTINGS)
            .map(|t| self.crop(t.along + t.speed * (seq - t.seen) as f32, t.across))
            .collect()
    }

    /// Takes the parts located in frame `seq`; returns those that have just crossed the gate.
    pub fn observe(&mut self, seq: u64, found: &[Found]) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        let length = if self.axis == 0 { self.part.width } else { self.part.height };
        let breadth = if self.axis == 0 { self.part.height } else { self.part.width };
        let seen: Vec<(f32, f32)> = found.iter().map(|f| self.centre(f)).collect();
        // nearest pairs first, so that neighbours cannot take each other's place
        let mut pairs = Vec::new();
        for (t, track) in self.tracks.iter().enumerate() {
            let predicted = track.along + track.speed * (seq - track.seen) as f32;
            for (i, &(along, across)) in seen.iter().enumerate() {
                let (da, dc) = ((along - predicted).abs(), (across - track.across).abs());
                if da < REACH * length && dc < REACH * breadth {
                    pairs.push((da + dc, t, i));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut track_of, mut found_of) = (vec![None; found.len()], vec![None; self.tracks.len()]);
        for (_, t, i) in pairs {
            if track_of[i].is_none() && found_of[t].is_none() {
                (track_of[i], found_of[t]) = (Some(t), Some(i));
            }
        }
        for (t, i) in found_of.iter().enumerate() {
            let before = self.tracks[t].along;
            let (along, across) = match *i {
                Some(i) => seen[i],
                None => (before + self.tracks[t].speed * (seq - self.tracks[t].seen) as f32, self.tracks[t].across),
            };
            let at_gate = self.direction * (along - self.gate) >= 0.0;
            if at_gate && !self.tracks[t].crossed && self.tracks[t].sightings + u32::from(i.is_some()) >= MIN_SIGHTINGS
            {
                self.tracks[t].crossed = true;
                self.tracks[t].looks = 1;
                crossings.push(self.crossing(along, across, i.map(|i| &found[i]), (self.tracks[t].id, 0)));
            } else if (1..self.looks).contains(&self.tracks[t].looks) {
                let (id, look) = (self.tracks[t].id, self.tracks[t].looks);
                match i.map(|i| &found[i]).filter(|f| f.is_whole()) {
                    Some(found) => {
                        self.tracks[t].looks += 1;
                        crossings.push(self.crossing(along, across, Some(found), (id, look)));
                    }
                    None => {
                        self.tracks[t].looks = self.looks;
                        self.gone.push(id);
                    }
                }
            }
            let track = &mut self.tracks[t];
            if let Some(i) = *i {
                let frames = (seq - track.seen).max(1) as f32;
                if found[i].is_whole() {
                    track.speed += 0.3 * ((along - track.along) / frames - track.speed);
                }
                (track.along, track.across, track.seen) = (along, across, seq);
                track.sightings += 1;
            }
        }
        for (i, &(along, across)) in seen.iter().enumerate() {
            if track_of[i].is_none() {
                // first seen past the gate: it crossed before we looked
                let crossed = self.direction * (along - self.gate) >= 0.0;
                let id = self.next_id();
                let (speed, looks) = (self.speed, 0);
                self.tracks.push(Track { along, across, speed, seen: seq, sightings: 1, crossed, id, looks });
            }
        }
        self.drop_doubles(seq, length, breadth);
        let gone: Vec<(f32, f32)> = self
            .tracks
            .iter()
            .filter(|t| seq - t.seen > PATIENCE && !t.crossed && t.sightings >= PART_SIGHTINGS)
            .map(|t| (t.along, t.across))
            .collect();
        self.tracks.retain(|t| seq - t.seen <= PATIENCE);
        for (along, across) in gone {
            tracing::warn!(frame = seq, "a part vanished before it reached the gate");
            self.lost += 1;
            let id = self.next_id();
            crossings.push(self.crossing(along, across, None, (id, 0)));
            if self.looks > 1 {
                self.gone.push(id);
            }
        }
        crossings
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Centre along and across the movement. Of a part cut by the edge of the picture the visible end and the taught
    /// length tell the centre.
    fn centre(&self, f: &Found) -> (f32, f32) {
        let (low, high, length, cut_low, cut_high) = if self.axis == 0 {
            (f.x, f.x + f.width, self.part.width, f.cut[0], f.cut[2])
        } else {
            (f.y, f.y + f.height, self.part.height, f.cut[1], f.cut[3])
        };
        let along = match (cut_low, cut_high) {
            (true, false) => high - length / 2.0,
            (false, true) => low + length / 2.0,
            _ => (low + high) / 2.0,
        };
        let (x, y) = f.centre();
        (along, if self.axis == 0 { y } else { x })
    }

    /// Two parts cannot be in one place: of tracks that coincide the one seen less often was made of a piece.
    fn drop_doubles(&mut self, seq: u64, length: f32, breadth: f32) {
        let places: Vec<(f32, f32, u32)> =
            self.tracks.iter().map(|t| (t.along + t.speed * (seq - t.seen) as f32, t.across, t.sightings)).collect();
        let mut i = 0;
        let (looks, gone) = (self.looks, &mut self.gone);
        self.tracks.retain(|track| {
            let (along, across, sightings) = places[i];
            let double = places.iter().enumerate().any(|(j, other)| {
                j != i
                    && (other.0 - along).abs() < REACH * length
                    && (other.1 - across).abs() < REACH * breadth
                    && (other.2, i) > (sightings, j)
            });
            i += 1;
            if double && (1..looks).contains(&track.looks) {
                gone.push(track.id);
            }
            !double
        });
    }

    /// A box of the taught size around a centre.
    fn crop(&self, along: f32, across: f32) -> Crop {
        let (cx, cy) = if self.axis == 0 { (along, across) } else { (across, along) };
        let (w, h) = (self.part.width.round().max(2.0), self.part.height.round().max(2.0));
        Crop { x: (cx - w / 2.0).round() as i32, y: (cy - h / 2.0).round() as i32, width: w as u32, height: h as u32 }
    }

    fn crossing(&self, along: f32, across: f32, found: Option<&Found>, (track, look): (u64, u32)) -> Crossing {
        let mut crop = self.crop(along, across);
        // a predicted place can lie outside the picture; the crop must not
        crop.x = crop
            .x
            .clamp(self.roi.x - crop.width as i32 / 2, self.roi.x + self.roi.width as i32 - crop.width as i32 / 2);
        crop.y = crop
            .y
            .clamp(self.roi.y - crop.height as i32 / 2, self.roi.y + self.roi.height as i32 - crop.height as i32 / 2);
        let relative_size =
            found.map_or([1.0, 1.0], |f| [f.width / self.part.width.max(1.0), f.height / self.part.height.max(1.0)]);
        Crossing { crop, located: found.is_some(), relative_size, track, look }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::shrink::Size;

    fn locator(velocity: [f32; 2]) -> Locator {
        Locator {
            roi: Crop { x: 0, y: 0, width: 1280, height: 720 },
            size: Size { width: 320, height: 180 },
            belt: Vec::new(),
            strips: Vec::new(),
            part: PartSize { width: 400.0, height: 400.0 },
            velocity,
        }
    }

    /// What a finder would see of a part whose left edge is at `x`.
    fn part(x: f32) -> Option<Found> {
        let (left, right) = (x.max(0.0), (x + 400.0).min(1280.0));
        (right - left > 8.0).then_some(Found {
            x: left,
            y: 150.0,
            width: right - left,
            height: 400.0,
            area: 1.0,
            cut: [x < 0.0, false, x + 400.0 > 1280.0, false],
        })
    }

    #[test]
    fn a_part_is_judged_once() {
        let mut tracker = Tracker::new(&locator([24.0, 0.0]));
        let mut crossings = Vec::new();
        for seq in 0..300u64 {
            let found: Vec<Found> = (0..6).filter_map(|k| part(24.0 * seq as f32 - 420.0 - 680.0 * k as f32)).collect();
            crossings.extend(tracker.observe(seq, &found).into_iter().map(|c| (seq, c)));
        }
        assert_eq!(crossings.len(), 6);
        for (_, c) in &crossings {
            assert!(c.located);
            let centre = c.crop.x + 200;
            assert!((640..664).contains(&centre), "{centre}");
        }
    }

    #[test]
    fn a_belt_that_stops_and_runs_back_gives_no_second_verdict() {
        let mut tracker = Tracker::new(&locator([20.0, 0.0]));
        let way = (0..60)
            .map(|i| -380.0 + 20.0 * i as f32)
            .chain((0..40).map(|i| 800.0 - 20.0 * i as f32))
            .chain((0..60).map(|i| 20.0 * i as f32));
        let n: usize = way.enumerate().map(|(seq, x)| tracker.observe(seq as u64, part(x).as_slice()).len()).sum();
        assert_eq!(n, 1);
    }

    #[test]
    fn a_part_that_vanishes_before_the_gate_is_still_reported() {
        let mut tracker = Tracker::new(&locator([24.0, 0.0]));
        let mut crossings = Vec::new();
        for seq in 0..80u64 {
            let x = 24.0 * seq as f32 - 420.0;
            let hidden = (330.0..700.0).contains(&x);
            crossings.extend(tracker.observe(seq, part(x).filter(|_| !hidden).as_slice()));
        }
        assert_eq!(crossings.len(), 1);
        assert!(!crossings[0].located);
    }

    #[test]
    fn a_part_taken_off_the_belt_is_reported() {
        let mut tracker = Tracker::new(&locator([24.0, 0.0]));
        let mut crossings = Vec::new();
        for seq in 0..60u64 {
            let x = -350.0 + 4.0 * seq.min(20) as f32;
            crossings.extend(tracker.observe(seq, part(x).filter(|_| seq < 20).as_slice()));
        }
        assert_eq!((crossings.len(), tracker.lost()), (1, 1));
        assert!(!crossings[0].located);
    }

    #[test]
    fn a_piece_that_was_followed_beside_its_part_gives_no_second_verdict() {
        let mut tracker = Tracker::new(&locator([24.0, 0.0]));
        let mut n = 0;
        for seq in 0..60u64 {
            let x = 24.0 * seq as f32 - 420.0;
            let mut found: Vec<Found> = part(x).into_iter().collect();
            // for some frames the part appears as two
            if (12..18).contains(&seq) {
                found.push(Found { x: x + 250.0, width: 130.0, ..found[0] });
            }
            n += tracker.observe(seq, &found).len();
        }
        assert_eq!((n, tracker.lost()), (1, 0));
    }

    #[test]
    fn parts_side_by_side_are_each_judged() {
        let mut lanes = locator([24.0, 0.0]);
        lanes.part = PartSize { width: 400.0, height: 300.0 };
        let mut tracker = Tracker::new(&lanes);
        let mut n = 0;
        for seq in 0..60u64 {
            let found: Vec<Found> = part(24.0 * seq as f32 - 420.0)
                .into_iter()
                .flat_map(|f| [30.0, 390.0].map(|y| Found { y, height: 300.0, ..f }))
                .collect();
            n += tracker.observe(seq, &found).len();
        }
        assert_eq!(n, 2);
    }

    #[test]
    fn parts_past_the_gate_at_the_start() {
        let mut tracker = Tracker::new(&locator([-24.0, 0.0]));
        let n: usize = (0..60).map(|s| tracker.observe(s, part(300.0 - 24.0 * s as f32).as_slice()).len()).sum();
        assert_eq!(n, 0);
    }
}
