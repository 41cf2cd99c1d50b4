//! The thread "prepare": locates the parts of each frame, cuts them out, starts their inferences, and tells in frame order of
//! the parts that never got one.
//!
//! Invariants:
//! 1. What leaves is in frame order: a frame that was given up stands where it would have stood (test
//!    `tests/run.rs::newest_stays_within_its_bound`).
//! 2. A part whose deadline has passed gets no inference: it would only make the next one late, too (test
//!    `tests/run.rs::what_is_too_late_is_missed`).
//! 3. With [`Overload::Newest`] located parts wait for the detector, not frames: every frame is looked at for parts, and when
//!    too many parts wait the oldest is given up as `missed` (test `tests/run.rs::newest_stays_within_its_bound`).

use super::feed::{Skipped, SkippedList};
use super::measure::Recorder;
use super::{Counters, Line, Overload};
use crate::capture::{Capture, Source};
use crate::detect::backbone::Request;
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::model::{Model, Trigger};
use crate::observe::pulse::{self, BEAT};
use crate::prepare::locate::Finder;
use crate::prepare::placement::Placement;
use crate::prepare::rigid::Doubt;
use crate::prepare::shrink::Crop;
use crate::prepare::track::{Crossing, Tracker};
use crate::prepare::{Preparer, Roi};
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, select};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A located part whose width or height differs from the taught by more than this is not judged by its score alone.
const SIZE_TOLERANCE: f32 = 0.2;

/// Which part a frame shows, and which of its looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Same for all looks at a part; says nothing about its number.
    pub part: u64,
    /// From 0.
    pub index: u32,
}

impl Look {
    /// Where `of` frames, one after the other, show one part.
    pub fn of_frame(frame: u64, of: u32) -> Look {
        let of = u64::from(of.max(1));
        Look { part: frame / of, index: (frame % of) as u32 }
    }
}

/// Why a part got no inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Newer ones came before the detector was free.
    Overload,
    /// The deadline had passed before an inference could start.
    Deadline,
}

/// What prepare hands to judge.
pub(super) enum Item {
    Flight(Box<InFlight>),
    /// Each frame is a part, and these frames were given up.
    Skipped(Skipped),
    /// A part that got no inference.
    Uninspected {
        frame: Arc<Frame>,
        look: Look,
        crop: Crop,
        roi: Crop,
        why: Why,
    },
    /// A part left before all looks at it that were wanted.
    Gone(u64),
}

/// A part on its way from prepare to judge.
pub(super) struct InFlight {
    pub request: Request,
    pub frame: Arc<Frame>,
    pub look: Look,
    pub placement: Placement,
    pub roi: Crop,
    pub reasons: Vec<String>,
    /// False when the score says nothing about the part: there is none, or only a piece of it.
    pub scorable: bool,
    /// When its inference was started.
    pub started: Instant,
}

/// Locates the parts of a frame and says which are to be inspected now.
struct Gate {
    belt: Option<(Finder, Tracker)>,
}

impl Gate {
    /// `looks`: frames in which each part is wanted.
    fn new(model: &Model, looks: u32) -> Result<Self> {
        let belt = match (model.trigger, &model.locator) {
            (Trigger::Presence, Some(locator)) => Some((Finder::new(locator)?, Tracker::with_looks(locator, looks))),
            _ => None,
        };
        Ok(Gate { belt })
    }

    fn parts(&mut self, preparer: &mut Preparer, frame: &Frame, roi: Crop) -> Result<Vec<Crossing>> {
        let Some((finder, tracker)) = &mut self.belt else {
            return Ok(vec![Crossing { crop: roi, located: true, relative_size: [1.0, 1.0], track: 0, look: 0 }]);
        };
        let taught = finder.locator().roi;
        if taught != roi {
            return Err(Error::failed(format!(
                "frames are {}x{}, the model was taught with parts located in {}x{}",
                roi.width, roi.height, taught.width, taught.height
            ))
            .hint("record at the resolution that was taught, or teach again"));
        }
        let found = finder.find(preparer.shrinker(), frame, &tracker.expected(frame.seq))?;
        let crossings = tracker.observe(frame.seq, &found);
        tracing::trace!(frame = frame.seq, ?found, ?crossings, "located");
        Ok(crossings)
    }

    /// Parts that left since the last call before all looks at them.
    fn gone(&mut self) -> Vec<u64> {
        self.belt.as_mut().map_or_else(Vec::new, |(_, tracker)| tracker.take_gone())
    }

    fn lost(&self) -> u64 {
        self.belt.as_ref().map_or(0, |(_, tracker)| tracker.lost())
    }
}

/// Decodes and prepares a whole source without the network: what `bench` measures.
pub fn prepare_only(model: &Model, source: &Source) -> Result<()> {
    let mut capture = Capture::open(source, false)?;
    let mut preparer = Preparer::new(&model.preparation)?;
    let mut gate = Gate::new(model, 1)?;
    let mut input = vec![0; model.preparation.input.area() * 3];
    while let Some(frame) = capture.next_frame()? {
        let roi = Roi::in_frame(model.roi, frame.width(), frame.height())?;
        for crossing in gate.parts(&mut preparer, &frame, roi)? {
            preparer.prepare(&model.preparation, &frame, model.crop_of(crossing.crop), &mut input)?;
        }
    }
    Ok(())
}

/// What the thread works with.
pub(super) struct Stage<'a> {
    pub line: &'a Line<'a>,
    pub frames: &'a Receiver<Arc<Frame>>,
    pub free: &'a Receiver<Request>,
    pub items: Sender<Item>,
    pub skipped: &'a SkippedList,
}

/// What stands in line for a request.
enum Waiting {
    Part {
        frame: Arc<Frame>,
        crossing: Crossing,
        look: Look,
        roi: Crop,
    },
    /// Needs none, and keeps its place.
    Word(Item),
}

impl Stage<'_> {
    pub fn run(self, counters: &Counters, timing: &Recorder) -> Result<()> {
        let model = self.line.model;
        let mut preparer = Preparer::new(&model.preparation)?;
        let looks = self.line.service.map_or(1, |s| s.debounce.of());
        let mut gate = Gate::new(model, looks)?;
        // parts that may wait for a request before the oldest is given up; none: frames wait in the channel, where each frame
        // is a part, or the source does
        let located = self.line.service.filter(|_| model.trigger == Trigger::Presence);
        let most = located.filter(|s| s.overload == Overload::Newest).map(|s| s.queue.saturating_sub(1));
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        let mut parts = 0;
        // a request that nobody has used yet
        let mut spare = None;
        let mut spent = Duration::ZERO;
        'stage: loop {
            // what can go on goes on
            while let Some(first) = waiting.pop_front() {
                let (frame, crossing, look, roi) = match first {
                    Waiting::Word(item) => match self.send(item) {
                        true => continue,
                        false => return Ok(()),
                    },
                    Waiting::Part { frame, crossing, look, roi } => (frame, crossing, look, roi),
                };
                parts -= 1;
                let request = match (spare.take(), most) {
                    (Some(request), _) => Some(request),
                    // waiting for a free request is the detector's time, not ours
                    (None, None) => match self.recv(self.free) {
                        Some(request) => Some(request),
                        None => return Ok(()),
                    },
                    (None, Some(_)) => self.free.try_recv().ok(),
                };
                let crop = crossing.crop;
                let late = self.line.service.and_then(|s| s.deadline).is_some_and(|d| frame.captured.elapsed() > d);
                let item = match request {
                    request if late => {
                        spare = request;
                        Item::Uninspected { frame, look, crop, roi, why: Why::Deadline }
                    }
                    Some(request) => {
                        let lap = Instant::now();
                        let flight = self.start(&mut preparer, request, frame, &crossing, look, roi)?;
                        spent += flight.started - lap;
                        Item::Flight(Box::new(flight))
                    }
                    None if most.is_some_and(|most| parts >= most) => {
                        Item::Uninspected { frame, look, crop, roi, why: Why::Overload }
                    }
                    None => {
                        waiting.push_front(Waiting::Part { frame, crossing, look, roi });
                        parts += 1;
                        break;
                    }
                };
                if !self.send(item) {
                    return Ok(());
                }
            }
            if spent > Duration::ZERO {
                timing.record(std::mem::take(&mut spent));
            }
            let frame = if waiting.is_empty() {
                match self.recv(self.frames) {
                    Some(frame) => frame,
                    None => break,
                }
            } else {
                loop {
                    self.beat();
                    select! {
                        recv(self.free) -> request => match request {
                            Ok(request) => { spare = Some(request); continue 'stage }
                            Err(_) => return Ok(()),
                        },
                        recv(self.frames) -> frame => match frame {
                            Ok(frame) => break frame,
                            // the source has ended: what waits is worth waiting for
                            Err(_) => match self.recv(self.free) {
                                Some(request) => { spare = Some(request); continue 'stage }
                                None => return Ok(()),
                            },
                        },
                        default(BEAT) => {}
                    }
                }
            };
            let lap = Instant::now();
            waiting.extend(self.skipped(frame.seq).map(Waiting::Word));
            let roi = Roi::in_frame(model.roi, frame.width(), frame.height())?;
            if let Some(service) = self.line.service {
                service.health.frame(&frame, roi);
                if let Some(live) = &service.live_picture {
                    live.frame(&frame, roi);
                }
            }
            let crossings = gate.parts(&mut preparer, &frame, roi)?;
            counters.lost.store(gate.lost(), Relaxed);
            spent += lap.elapsed();
            for crossing in crossings {
                let look = match model.trigger {
                    Trigger::Frame => Look::of_frame(frame.seq, looks),
                    Trigger::Presence => Look { part: crossing.track, index: crossing.look },
                };
                parts += 1;
                waiting.push_back(Waiting::Part { frame: frame.clone(), crossing, look, roi });
            }
            waiting.extend(gate.gone().into_iter().map(|part| Waiting::Word(Item::Gone(part))));
        }
        for item in self.skipped(u64::MAX) {
            if !self.send(item) {
                break;
            }
        }
        Ok(())
    }

    fn beat(&self) {
        if let Some(service) = self.line.service {
            service.status.pulse.beat(pulse::Stage::Prepare);
        }
    }

    /// Waits for room; false when nobody takes items any more.
    fn send(&self, mut item: Item) -> bool {
        loop {
            self.beat();
            match self.items.send_timeout(item, BEAT) {
                Ok(()) => return true,
                Err(SendTimeoutError::Disconnected(_)) => return false,
                Err(SendTimeoutError::Timeout(back)) => item = back,
            }
        }
    }

    /// Waits for what comes next; none when nothing comes any more.
    fn recv<T>(&self, from: &Receiver<T>) -> Option<T> {
        loop {
            self.beat();
            match from.recv_timeout(BEAT) {
                Ok(next) => return Some(next),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Cuts a part out and starts its inference.
    fn start(
        &self,
        preparer: &mut Preparer,
        mut request: Request,
        frame: Arc<Frame>,
        crossing: &Crossing,
        look: Look,
        roi: Crop,
    ) -> Result<InFlight> {
        let model = self.line.model;
        let crop = model.crop_of(crossing.crop);
        let pose = preparer.prepare(&model.preparation, &frame, crop, request.input()?)?;
        let mut reasons = Vec::new();
        if !crossing.located {
            reasons.push("not located at the gate".into());
        }
        if crossing.relative_size.iter().any(|r| (r - 1.0).abs() > SIZE_TOLERANCE) {
            let [w, h] = crossing.relative_size.map(|r| (r * 100.0).round());
            reasons.push(format!("size {w} % x {h} % of the taught part"));
        }
        let scorable = pose.doubt.as_ref().is_none_or(|d| d.scorable);
        if let Some(service) = self.line.service.filter(|_| scorable && crossing.located) {
            service.health.part(&frame, roi, crop, &pose.placement);
        }
        reasons.extend(pose.doubt.map(|Doubt { reason, .. }| reason));
        // before: a network that takes this very core runs while it is started
        let (placement, started) = (pose.placement, Instant::now());
        request.start()?;
        Ok(InFlight { request, frame, look, placement, roi, reasons, scorable, started })
    }

    /// The frames before `seq` that were given up, where each of them was a part.
    fn skipped(&self, seq: u64) -> impl Iterator<Item = Item> {
        let parts = self.line.model.trigger == Trigger::Frame;
        self.skipped.before(seq).into_iter().filter(move |_| parts).map(Item::Skipped)
    }
}
