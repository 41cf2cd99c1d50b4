//! What was lost before it reached us, and how fast frames come.
//!
//! Owned by the thread that pulls; only [`Packets`] is written to by GStreamer's. Invariants:
//! 1. A number that is missing is counted once; a source that starts anew is no loss (tests below).
//! 2. A picture that lacks packets, or builds on one that does, is held back (test `pictures_that_lack_packets_are_held_back`).
//! 3. Frames of a stream count as lost only when packets of it were lost: a camera that varies its rate loses nothing (test
//!    `a_hole_without_lost_packets_is_no_loss`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Intervals that the usual one is taken from.
const INTERVALS: usize = 31;
/// Intervals before there is a usual one.
const ENOUGH: usize = 5;

/// The usual time from one frame to the next: the median of the last ones.
#[derive(Debug, Default, Clone)]
pub(super) struct Period {
    ring: Vec<Duration>,
    next: usize,
}

impl Period {
    pub(super) fn add(&mut self, interval: Duration) {
        if self.ring.len() < INTERVALS {
            self.ring.push(interval);
        } else {
            self.ring[self.next] = interval;
        }
        self.next = (self.next + 1) % INTERVALS;
    }

    /// None before enough was seen.
    pub(super) fn usual(&self) -> Option<Duration> {
        let mut sorted = self.ring.clone();
        sorted.sort_unstable();
        (sorted.len() >= ENOUGH).then(|| sorted[sorted.len() / 2])
    }
}

/// Gaps in the numbers that a camera gives its frames.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    last: Option<u64>,
}

impl Numbers {
    /// How many numbers are missing before this one.
    pub(super) fn see(&mut self, number: u64) -> u64 {
        let missing = self.last.map_or(0, |last| number.saturating_sub(last + 1));
        self.last = Some(number);
        missing
    }
}

/// RTP packets that did not arrive, seen where they enter the depayloader, and the pictures that they belonged to, held back where
/// they leave it: a decoder would make something up for what is missing.
#[derive(Debug, Default)]
pub(super) struct Packets {
    state: Mutex<Flow>,
}

#[derive(Debug, Default)]
struct Flow {
    /// Number, time of its picture and whether it is the last one of that, of the last packet.
    last: Option<(u16, Duration, bool)>,
    /// Times of pictures that lack packets.
    damaged: VecDeque<Duration>,
    /// Times of the pictures before and after each gap, until the hole is seen.
    gaps: VecDeque<(Duration, Duration)>,
    /// Pictures that build on a damaged one are held back.
    waiting: bool,
}

/// Gaps and damaged pictures that are remembered; more are never under way.
const REMEMBERED: usize = 64;

impl Packets {
    fn state(&self) -> MutexGuard<'_, Flow> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet with its header and the time of its picture.
    pub(super) fn see(&self, header: &[u8], time: Duration) {
        let [_, kind, high, low, ..] = *header else { return };
        let (number, is_last) = (u16::from_be_bytes([high, low]), kind & 0x80 != 0);
        let mut flow = self.state();
        let Some((last, before, was_last)) = flow.last else {
            flow.last = Some((number, time, is_last));
            return;
        };
        let step = number.wrapping_sub(last);
        // more than half the range is a step back: repeated, or out of order
        if step == 0 || step >= 0x8000 {
            return;
        }
        flow.last = Some((number, time, is_last));
        if step == 1 {
            return;
        }
        if !was_last {
            flow.damaged.push_back(before);
        }
        // its first packets may be among the missing ones
        flow.damaged.push_back(time);
        flow.gaps.push_back((before, time));
        let (damaged, gaps) = (flow.damaged.len(), flow.gaps.len());
        flow.damaged.drain(..damaged.saturating_sub(REMEMBERED));
        flow.gaps.drain(..gaps.saturating_sub(REMEMBERED));
    }

    /// Whether a picture that leaves the depayloader is whole, as are those that it builds on.
    pub(super) fn is_whole(&self, time: Duration, builds_on_others: bool) -> bool {
        let mut flow = self.state();
        if flow.damaged.contains(&time) {
            flow.waiting = true;
        } else if !builds_on_others {
            flow.waiting = false;
        }
        !flow.waiting
    }

    /// Whether packets are missing between the pictures of these two times.
    fn is_gap(&self, from: Duration, to: Duration) -> bool {
        let mut flow = self.state();
        let found = flow.gaps.iter().any(|(before, after)| *after > from && *before < to);
        flow.gaps.retain(|(_, after)| *after > to);
        found
    }
}

/// Frames of a stream that are missing because packets are.
#[derive(Debug, Default)]
pub(super) struct Holes {
    packets: Arc<Packets>,
    last: Option<Duration>,
    period: Period,
}

impl Holes {
    pub(super) fn new(packets: Arc<Packets>) -> Self {
        Holes { packets, ..Default::default() }
    }

    /// A frame with this time; returns how many are missing before it.
    pub(super) fn see(&mut self, time: Duration) -> u64 {
        let Some(last) = self.last.replace(time) else { return 0 };
        let Some(step) = time.checked_sub(last) else { return 0 };
        let is_gap = self.packets.is_gap(last, time);
        let period = self.period.usual().filter(|p| !p.is_zero());
        match period.filter(|p| is_gap && step > *p + *p / 2) {
            Some(p) => (step.as_secs_f64() / p.as_secs_f64()).round() as u64 - 1,
            None => {
                // without a gap the camera made it so
                if !is_gap {
                    self.period.add(step);
                }
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn missing_numbers_are_counted_once() {
        let mut n = Numbers::default();
        let missing: Vec<u64> = [5, 6, 9, 10, 3, 4].map(|i| n.see(i)).to_vec();
        assert_eq!(missing, [0, 0, 2, 0, 0, 0]);
    }

    /// Packets of pictures: number, time in periods, last of its picture.
    fn packets(list: &[(u16, u32, bool)]) -> Packets {
        let packets = Packets::default();
        for (number, time, is_last) in list {
            let [high, low] = number.to_be_bytes();
            packets.see(&[0x80, 96 | u8::from(*is_last) << 7, high, low], *time * 33 * MS);
        }
        packets
    }

    #[test]
    fn pictures_that_lack_packets_are_held_back() {
        let key = |p: &Packets, n: u32| p.is_whole(n * 33 * MS, false);
        let delta = |p: &Packets, n: u32| p.is_whole(n * 33 * MS, true);
        // all there, over the wrap, one out of order
        let p = packets(&[(65534, 0, false), (65535, 0, true), (0, 1, false), (65535, 0, true), (1, 1, true)]);
        assert!(key(&p, 0) && delta(&p, 1));
        // the end of 1 and the start of 2 are missing; 3 builds on them, 4 does not
        let p = packets(&[(1, 0, true), (2, 1, false), (5, 2, true), (6, 3, true), (7, 4, true)]);
        assert!(key(&p, 0) && !delta(&p, 1) && !delta(&p, 2) && !delta(&p, 3) && key(&p, 4) && delta(&p, 5));
        // a whole picture that lacks a packet is none
        let p = packets(&[(1, 0, true), (2, 1, false), (4, 1, true), (5, 2, true)]);
        assert!(key(&p, 0) && !key(&p, 1) && !delta(&p, 2));
    }

    #[test]
    fn a_hole_without_lost_packets_is_no_loss() {
        // packets run ahead of the frames that are made of them: both gaps are known before the first hole is seen
        let mut list: Vec<(u16, u32, bool)> = (0..10).map(|n| (n, u32::from(n), true)).collect();
        list.extend([(10, 20, true), (12, 24, true), (13, 25, true), (20, 30, true)]);
        let mut holes = Holes::new(Arc::new(packets(&list)));
        let mut lost = Vec::new();
        for time in (0..10).chain([20, 24, 25, 30]) {
            lost.push(holes.see(time * 33 * MS));
        }
        assert_eq!(lost[..10], [0; 10]);
        assert_eq!(lost[10..], [0, 3, 0, 4]);
    }

    #[test]
    fn the_usual_period_is_the_median() {
        let mut p = Period::default();
        for ms in [30, 31, 900, 33, 32] {
            assert!(p.usual().is_none());
            p.add(ms * MS);
        }
        assert_eq!(p.usual(), Some(32 * MS));
        for _ in 0..40 {
            p.add(100 * MS);
        }
        assert_eq!(p.usual(), Some(100 * MS));
    }
}
