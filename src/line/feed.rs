//! The thread "capture": pulls frames and sends them on, and does what the line's policy says when the detector is slower.
//!
//! Invariants:
//! 1. With [`Overload::Block`] nothing is dropped: the source waits (test `tests/run.rs::block_on_a_recording_loses_nothing`).
//! 2. With [`Overload::Newest`] at most [`Feed::queue`] frames wait, the oldest goes first, and every frame that goes leaves a
//!    [`Skipped`] behind (tests `newest_keeps_the_newest_and_tells_of_the_others`, `tests/run.rs::newest_stays_within_its_bound`).

use super::measure::Recorder;
use super::{Counters, Line, Overload, Service};
use crate::capture::{Capture, OpenOptions, Supervised};
use crate::error::Result;
use crate::frame::Frame;
use crate::observe::LineStatus;
use crate::observe::pulse::{BEAT, Stage};
use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Skipped frames that are kept one by one; beyond, the last of them counts for all.
const SKIPPED_KEPT: usize = 4096;

/// Frames that were taken from the source and given up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Skipped {
    /// The first of them.
    pub seq: u64,
    pub captured: Instant,
    pub captured_at: Timestamp,
    /// How many; more than 1 only when far too many were given up at once.
    pub count: u64,
}

/// Frames that were given up, for the stage that numbers parts. Locked once for each of them, never for others.
#[derive(Default)]
pub(super) struct SkippedList(Mutex<VecDeque<Skipped>>);

impl SkippedList {
    fn push(&self, frame: &Frame) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = list.len() >= SKIPPED_KEPT;
        match list.back_mut() {
            Some(last) if full => last.count += 1,
            _ => list.push_back(Skipped {
                seq: frame.seq,
                captured: frame.captured,
                captured_at: frame.captured_at,
                count: 1,
            }),
        }
    }

    /// Those before frame `seq`, in order.
    pub fn before(&self, seq: u64) -> Vec<Skipped> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if list.front().is_none_or(|s| s.seq >= seq) {
            return Vec::new();
        }
        let n = list.iter().take_while(|s| s.seq < seq).count();
        list.drain(..n).collect()
    }
}

/// Where the capture thread puts frames.
pub(super) struct Feed<'a> {
    pub frames: Sender<Arc<Frame>>,
    /// The other end, to take the oldest frame back.
    pub waiting: Receiver<Arc<Frame>>,
    pub overload: Overload,
    pub skipped: &'a SkippedList,
    pub status: Option<&'a LineStatus>,
}

impl Feed<'_> {
    /// Hands a frame over; false when nobody takes frames any more.
    pub fn offer(&self, frame: Arc<Frame>) -> bool {
        let mut frame = frame;
        if self.overload == Overload::Block {
            loop {
                match self.frames.send_timeout(frame, BEAT) {
                    Ok(()) => return true,
                    Err(SendTimeoutError::Disconnected(_)) => return false,
                    Err(SendTimeoutError::Timeout(back)) => frame = back,
                }
                // who waits for a later stage is alive; that one has a pulse of its own
                if let Some(status) = self.status {
                    status.pulse.beat(Stage::Capture);
                }
            }
        }
        loop {
            match self.frames.try_send(frame) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => frame = back,
            }
            // the detector may have taken it meanwhile: then there is room
            if let Ok(oldest) = self.waiting.try_recv() {
                self.skipped.push(&oldest);
                if let Some(status) = self.status {
                    status.dropped("overload", 1);
                }
            }
        }
    }
}

/// Where frames come from.
pub(super) enum Frames<'a> {
    /// An inspection's source: its first error ends the line.
    Inspected(Box<Capture>),
    /// A line's source: comes back when it is lost, starts over where that is wanted.
    Served { supervised: Box<Supervised>, line: &'a Line<'a>, service: &'a Service, before: u64 },
}

impl<'a> Frames<'a> {
    /// Opens the line's source; a camera is opened with the first frame that is asked for.
    pub fn open(line: &'a Line<'a>) -> Result<Self> {
        Ok(match line.service {
            None => Frames::Inspected(Box::new(Capture::open(line.source, line.realtime)?)),
            Some(service) => {
                Frames::Served { supervised: Box::new(Self::supervised(line, service)?), line, service, before: 0 }
            }
        })
    }

    fn supervised(line: &Line<'_>, service: &Service) -> Result<Supervised> {
        let live_queue = OpenOptions::LIVE_QUEUE;
        let options = OpenOptions { realtime: line.realtime, camera: &service.camera, live_queue };
        Supervised::new(line.source, &options, service.status.clone(), service.watchdog)
    }

    fn next(&mut self, halted: &impl Fn() -> bool) -> Result<Option<Arc<Frame>>> {
        match self {
            Frames::Inspected(capture) => capture.next_frame_unless(halted),
            Frames::Served { supervised, line, service, before } => loop {
                if let Some(mut frame) = supervised.next_frame_unless(halted)? {
                    // nobody else has it yet
                    if let Some(frame) = Arc::get_mut(&mut frame) {
                        frame.seq += *before;
                    }
                    return Ok(Some(frame));
                }
                if halted() || !service.repeat || supervised.frames() == 0 {
                    return Ok(None);
                }
                *before += supervised.frames();
                **supervised = Self::supervised(line, service)?;
            },
        }
    }

    fn bytes_in(&self) -> u64 {
        match self {
            Frames::Inspected(capture) => capture.bytes_in(),
            Frames::Served { supervised, .. } => supervised.bytes_in(),
        }
    }

    fn warnings(&self) -> u64 {
        match self {
            Frames::Inspected(capture) => capture.warnings(),
            Frames::Served { supervised, .. } => supervised.warnings(),
        }
    }

    fn expected(&self) -> u64 {
        match self {
            Frames::Inspected(capture) => capture.expected_frames(),
            Frames::Served { supervised, .. } => supervised.expected_frames(),
        }
        .unwrap_or(0)
    }
}

/// Pulls until the source ends or `halted`.
pub(super) fn capture_frames(
    source: &mut Frames<'_>,
    feed: &Feed<'_>,
    counters: &Counters,
    decode: &Recorder,
    halted: impl Fn() -> bool,
) -> Result<()> {
    while !halted() {
        let lap = Instant::now();
        let Some(frame) = source.next(&halted)? else { break };
        decode.record(lap.elapsed());
        if frame.seq == 0 {
            counters.expected.store(source.expected(), Relaxed);
        }
        counters.frames.fetch_add(1, Relaxed);
        counters.bytes_raw.fetch_add(frame.byte_size() as u64, Relaxed);
        counters.bytes_in.store(source.bytes_in(), Relaxed);
        if !feed.offer(frame) {
            break;
        }
    }
    counters.warnings.store(source.warnings(), Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use gstreamer_video as gst_video;

    fn frame(seq: u64) -> Arc<Frame> {
        gstreamer::init().unwrap();
        let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Gray8, 4, 4).build().unwrap();
        let buffer = gstreamer::Buffer::from_slice(vec![0u8; info.size()]);
        Arc::new(Frame::map(buffer, &info, seq, None).unwrap())
    }

    #[test]
    fn newest_keeps_the_newest_and_tells_of_the_others() {
        let (frames, waiting) = bounded(2);
        let (skipped, status) = (SkippedList::default(), LineStatus::new("a", "b"));
        let feed = Feed {
            frames,
            waiting: waiting.clone(),
            overload: Overload::Newest,
            skipped: &skipped,
            status: Some(&status),
        };
        for seq in 0..7 {
            assert!(feed.offer(frame(seq)));
        }
        assert_eq!(waiting.try_iter().map(|f| f.seq).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(skipped.before(3).iter().map(|s| s.seq).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(skipped.before(9).iter().map(|s| s.seq).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(status.snapshot().counters.dropped["overload"], 5);
    }

    #[test]
    fn far_too_many_skipped_frames_are_still_all_counted() {
        let skipped = SkippedList::default();
        let n = SKIPPED_KEPT as u64 + 10;
        let frame = frame(0);
        for _ in 0..n {
            skipped.push(&frame);
        }
        assert_eq!(skipped.before(1).iter().map(|s| s.count).sum::<u64>(), n);
    }
}
