//! The last stage, on the thread that called [`super::run`]: waits for inferences in order, scores, judges, records, answers.
//!
//! Invariants:
//! 1. A part is recorded before it is answered, so that nothing was answered that the ledger does not know (test
//!    `tests/run.rs::killed_under_load_the_ledger_knows_every_answer`). The exception is a part whose deadline passes while its
//!    inference runs: that is answered as `missed` at once and recorded when its score is known.
//! 2. What cannot be recorded does not pass: it is answered as `missed`, and recorded as that when it can be; verdicts go on
//!    (test `tests/run.rs::a_full_disk_stops_no_verdicts`).

use super::feed::Skipped;
use super::measure::Recorder;
use super::parts::{InFlight, Item, Look, Why};
use super::{Inspection, Judged, Latency, Line, Network, Stages, Totals};
use crate::deliver::{Anomaly, Pictures, Record};
use crate::detect::Head;
use crate::detect::backbone::Request;
use crate::detect::head::Scored;
use crate::error::Result;
use crate::event::{EVENT_SCHEMA, Event, ImageSize, LedgerRow, Rect, Region, Verdict};
use crate::frame::Frame;
use crate::judge::debounce::{Decision, Part, Seen};
use crate::judge::regions::regions;
use crate::model;
use crate::picture;
use crate::prepare::register::Reference;
use crate::prepare::shrink::Crop;
use crate::respond::Answer;
use crossbeam_channel::Sender;
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Where a rejected part's map nowhere reaches the threshold, regions are cut at this share of its maximum.
const REGION_SHARE: f32 = 0.8;
/// Rows that are kept while nothing can be recorded: half an hour at 30 parts a second.
const PUT_OFF: usize = 54_000;
/// Recording that fails for long is said this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

/// Why a part has no inspection that gave way to a newer one.
const GIVEN_UP: &str = "the detector was too slow: given up for newer ones";

/// When and in which frame a part was triggered.
#[derive(Clone, Copy)]
struct Trigger {
    frame: u64,
    captured: Instant,
    captured_at: Timestamp,
}

impl Trigger {
    fn of(frame: &Frame) -> Self {
        Trigger { frame: frame.seq, captured: frame.captured, captured_at: frame.captured_at }
    }
}

/// A part of which more frames are wanted.
struct Pending {
    /// Its first frame.
    trigger: Trigger,
    /// None once it is decided.
    part: Option<Part<Option<Judged>>>,
}

pub(super) struct Judge<'a> {
    line: &'a Line<'a>,
    head: Head,
    reference: Arc<Reference>,
    device: String,
    model: String,
    next_part: u64,
    pub totals: Totals,
    latency: Recorder,
    infer: Recorder,
    judge: Recorder,
    deliver: Recorder,
    /// Parts that are seen in several frames and not all of them yet.
    pending: BTreeMap<u64, Pending>,
    /// Rows that could not be recorded, oldest first.
    put_off: VecDeque<LedgerRow>,
    /// When recording failed last, so that it is said once a second.
    complained: Option<Instant>,
}

impl<'a> Judge<'a> {
    pub fn new(line: &'a Line<'a>, network: &Network) -> Self {
        Judge {
            line,
            reference: Arc::new(line.model.preparation.reference.clone()),
            head: Head::new(),
            device: network.device.clone(),
            model: format!("{}@{}", line.model.name, line.model.version),
            next_part: line.service.map_or(0, |s| s.next_part.load(Relaxed)),
            totals: Totals {
                frames: 0,
                parts: 0,
                anomalies: 0,
                missed: 0,
                dropped: 0,
                lost: 0,
                decode_warnings: 0,
                seconds: 0.0,
                bytes_raw: 0,
                bytes_in: 0,
                device: network.device.clone(),
                precision: network.precision.as_str().to_owned(),
                latency_ms: Latency::default(),
                stages_ms: Stages::default(),
                verdicts: Vec::new(),
            },
            latency: Recorder::new(),
            infer: Recorder::new(),
            judge: Recorder::new(),
            deliver: Recorder::new(),
            pending: BTreeMap::new(),
            put_off: VecDeque::new(),
            complained: None,
        }
    }

    pub fn take(
        &mut self,
        item: Item,
        free: &Sender<Request>,
        on_judged: &mut impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let frames = self.line.service.map_or(1, |s| s.debounce.of());
        match item {
            Item::Flight(flight) if frames == 1 => {
                let trigger = Trigger::of(&flight.frame);
                let (judged, answered) = self.inspect(*flight, Some(trigger), free)?;
                self.conclude(judged, trigger, 1, answered, on_judged)
            }
            Item::Flight(flight) => {
                let (trigger, look) = (Trigger::of(&flight.frame), flight.look);
                let (judged, _) = self.inspect(*flight, None, free)?;
                let i = &judged.inspection;
                let seen = Seen { score: i.score, verdict: i.verdict, reasons: i.reasons.clone(), shown: Some(judged) };
                self.seen(look, trigger, seen, on_judged)
            }
            Item::Skipped(s) if frames == 1 => self.skipped(s),
            Item::Skipped(s) => {
                for n in 0..s.count {
                    let trigger = Trigger { frame: s.seq + n, captured: s.captured, captured_at: s.captured_at };
                    let look = self.next_look(trigger.frame);
                    self.seen(look, trigger, uninspected_frame(GIVEN_UP), on_judged)?;
                }
                Ok(())
            }
            Item::Uninspected { frame, crop, roi, why, .. } if frames == 1 => self.uninspected(&frame, crop, roi, why),
            Item::Uninspected { frame, look, why, .. } => {
                let reason = self.reason(why);
                self.seen(look, Trigger::of(&frame), uninspected_frame(&reason), on_judged)
            }
            Item::Gone(part) => self.gone(part, on_judged),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        self.line.service.and_then(|s| s.deadline)
    }

    fn dropped(&self, reason: &str) {
        if let Some(service) = self.line.service {
            service.status.dropped(reason, 1);
        }
    }

    /// Scores a frame. With a `trigger` the part is answered as missed when its deadline passes before its score is known:
    /// true.
    fn inspect(
        &mut self,
        mut flight: InFlight,
        trigger: Option<Trigger>,
        free: &Sender<Request>,
    ) -> Result<(Judged, bool)> {
        let model = self.line.model;
        let mut answered = false;
        if let (Some(deadline), Some(trigger)) = (self.deadline(), trigger)
            && !flight.request.wait_for(deadline.saturating_sub(trigger.captured.elapsed()))?
        {
            let reasons = [too_late(deadline)];
            self.answer(trigger, Verdict::Missed, [0.0, 0.0], &reasons, trigger.captured.elapsed());
            answered = true;
        }
        let features = flight.request.wait()?;
        self.infer.record(flight.started.elapsed());
        let lap = Instant::now();
        let Scored { score, map } = self.head.score(&model.detector, features, model.mask.as_deref())?;
        // prepare holds the other end until it has ended; then nobody needs the request
        let _ = free.send(flight.request);
        let (frame, threshold) = (flight.frame, model.threshold());
        let anomalous = score > threshold && flight.scorable;
        let verdict = if anomalous {
            Verdict::Reject
        } else if flight.reasons.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Unsure
        };
        let mut reasons = flight.reasons;
        if anomalous {
            reasons.insert(0, "score above threshold".into());
        }
        let size = (frame.width(), frame.height());
        let level = match verdict {
            Verdict::Reject => {
                let highest = map.max();
                if highest <= threshold { REGION_SHARE * highest } else { threshold }
            }
            _ => threshold,
        };
        let found = match verdict {
            Verdict::Reject => regions(&map, level, &flight.placement, size, model.mm_per_pixel)?,
            _ => Vec::new(),
        };
        let inspection = Inspection {
            source: frame.file.as_deref().map_or_else(|| self.line.source.name(), str::to_owned),
            frame: frame.seq,
            part: self.next_part,
            pts_ns: frame.pts_ns,
            score,
            confidence: model.calibration.confidence(score),
            verdict,
            reasons,
            regions: found,
            part_box: clipped(flight.placement.bounds(), size),
        };
        self.judge.record(lap.elapsed());
        let judged = Judged {
            inspection,
            map: Arc::new(map),
            placement: flight.placement,
            roi: flight.roi,
            threshold,
            level,
            frame,
            reference: self.reference.clone(),
        };
        Ok((judged, answered))
    }

    /// The verdict on a part stands; `frames` of it were inspected.
    fn conclude(
        &mut self,
        mut judged: Judged,
        trigger: Trigger,
        frames: u32,
        answered: bool,
        on_judged: &mut impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let lap = Instant::now();
        let latency = trigger.captured.elapsed();
        let deadline = self.deadline();
        let late = deadline.and_then(|d| latency.checked_sub(d)).filter(|l| answered || !l.is_zero());
        let i = &mut judged.inspection;
        i.part = self.next_part;
        if let (Some(_), Some(deadline)) = (late, deadline) {
            i.verdict = Verdict::Missed;
            i.reasons.insert(0, too_late(deadline));
        }
        self.settle(&judged, trigger, frames, latency, late, answered)?;
        on_judged(judged)?;
        self.deliver.record(lap.elapsed());
        Ok(())
    }

    /// A part that is seen in several frames was seen in one of them.
    fn seen(
        &mut self,
        look: Look,
        trigger: Trigger,
        seen: Seen<Option<Judged>>,
        on_judged: &mut impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let Some(rule) = self.line.service.map(|s| s.debounce) else { return Ok(()) };
        let pending = self.pending.entry(look.part).or_insert_with(|| Pending { trigger, part: Some(rule.part()) });
        let (decision, first) = (pending.part.as_mut().and_then(|p| p.frame(seen)), pending.trigger);
        if decision.is_some() {
            pending.part = None;
        }
        if look.index + 1 >= rule.of() {
            self.pending.remove(&look.part);
        }
        decision.map_or(Ok(()), |d| self.decided(d, first, on_judged))
    }

    /// A part left before it was seen in as many frames as were wanted.
    fn gone(&mut self, part: u64, on_judged: &mut impl FnMut(Judged) -> Result<()>) -> Result<()> {
        let Some(Pending { trigger, part: Some(part) }) = self.pending.remove(&part) else { return Ok(()) };
        part.gone().map_or(Ok(()), |d| self.decided(d, trigger, on_judged))
    }

    fn decided(
        &mut self,
        decision: Decision<Option<Judged>>,
        trigger: Trigger,
        on_judged: &mut impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let Decision { verdict, reasons, shown, frames, .. } = decision;
        match shown {
            Some(mut judged) => {
                (judged.inspection.verdict, judged.inspection.reasons) = (verdict, reasons);
                self.conclude(judged, trigger, frames, false, on_judged)
            }
            // not one of its frames was inspected
            None => self.missed(trigger, &reasons.join("; "), None),
        }
    }

    /// Where each frame is a look at a part, the look that a frame is which was given up.
    fn next_look(&self, frame: u64) -> Look {
        Look::of_frame(frame, self.line.service.map_or(1, |s| s.debounce.of()))
    }

    /// What is undecided when the source ends.
    pub fn finish_parts(&mut self, on_judged: &mut impl FnMut(Judged) -> Result<()>) -> Result<()> {
        let left: Vec<u64> = self.pending.keys().copied().collect();
        left.into_iter().try_for_each(|part| self.gone(part, on_judged))?;
        if !self.catch_up() {
            tracing::error!(line = self.line.name, "{} parts were never recorded", self.put_off.len());
        }
        Ok(())
    }

    /// A part that was inspected: recorded, answered, counted.
    fn settle(
        &mut self,
        judged: &Judged,
        trigger: Trigger,
        frames: u32,
        latency: Duration,
        late: Option<Duration>,
        answered: bool,
    ) -> Result<()> {
        let i = &judged.inspection;
        let id = i.verdict.is_anomaly().then(Uuid::now_v7);
        let row = LedgerRow {
            score: i.score,
            confidence: i.confidence,
            late_ms: late.map(|l| l.as_secs_f32() * 1e3),
            frames,
            ..self.row(trigger, i.verdict, i.reasons.clone(), latency, id)
        };
        let anomaly = id.filter(|_| self.line.deliver.is_some()).map(|id| {
            // the event's coordinates are those of its picture, which shows the ROI
            let shift = |x: u32, origin: i32| x.saturating_sub(origin.max(0) as u32);
            let (b, roi) = (i.part_box, judged.roi);
            let event = Event {
                score: i.score,
                confidence: i.confidence,
                reasons: i.reasons.clone(),
                regions: i
                    .regions
                    .iter()
                    .map(|r| Region { x: shift(r.x, roi.x), y: shift(r.y, roi.y), ..r.clone() })
                    .collect(),
                part_box: Some(Rect { x: shift(b.x, roi.x), y: shift(b.y, roi.y), w: b.w, h: b.h }),
                ..self.event(id, trigger, i.verdict, roi)
            };
            let pictures = judged.clone();
            Anomaly { event, pictures: Box::new(move || pictures.pictures()) }
        });
        let verdict = if self.record(Record { row, anomaly })? { i.verdict } else { Verdict::Missed };
        if !answered {
            self.answer(trigger, verdict, [i.score, i.confidence], &i.reasons, latency);
        }
        self.count(trigger.frame, verdict, latency, late.is_some());
        Ok(())
    }

    /// Frames that were given up, each of which was a part: nothing is left but their number.
    fn skipped(&mut self, skipped: Skipped) -> Result<()> {
        for n in 0..skipped.count {
            let Skipped { seq, captured, captured_at, .. } = skipped;
            self.missed(Trigger { frame: seq + n, captured, captured_at }, GIVEN_UP, None)?;
        }
        Ok(())
    }

    /// A part that got no inference. Its picture is kept but where each frame is a part: encoding so many would only make
    /// things worse.
    fn uninspected(&mut self, frame: &Arc<Frame>, crop: Crop, roi: Crop, why: Why) -> Result<()> {
        let reason = self.reason(why);
        let keep = why == Why::Deadline || self.line.model.trigger == model::Trigger::Presence;
        self.missed(Trigger::of(frame), &reason, keep.then(|| (frame.clone(), crop, roi)))
    }

    /// Counts a frame without inference and says why.
    fn reason(&self, why: Why) -> String {
        match why {
            Why::Deadline => {
                self.dropped("deadline");
                too_late(self.deadline().unwrap_or_default())
            }
            Why::Overload => {
                self.dropped("overload");
                GIVEN_UP.to_owned()
            }
        }
    }

    /// A part without inspection.
    fn missed(&mut self, trigger: Trigger, why: &str, picture: Option<(Arc<Frame>, Crop, Crop)>) -> Result<()> {
        let (verdict, reasons) = (Verdict::Missed, vec![why.to_owned()]);
        let latency = trigger.captured.elapsed();
        let late = self.deadline().and_then(|d| latency.checked_sub(d));
        let id = picture.as_ref().map(|_| Uuid::now_v7());
        let row = LedgerRow {
            late_ms: late.map(|l| l.as_secs_f32() * 1e3),
            ..self.row(trigger, verdict, reasons.clone(), latency, id)
        };
        let anomaly = picture.zip(id).filter(|_| self.line.deliver.is_some()).map(|((frame, crop, roi), id)| {
            let part = clipped(crop, (frame.width(), frame.height()));
            let shift = |x: u32, origin: i32| x.saturating_sub(origin.max(0) as u32);
            let part_box = Some(Rect { x: shift(part.x, roi.x), y: shift(part.y, roi.y), w: part.w, h: part.h });
            let event = Event { reasons: reasons.clone(), part_box, ..self.event(id, trigger, verdict, roi) };
            let reference = self.reference.clone();
            let pictures = move || uninspected(&frame, crop, roi, &reference);
            Anomaly { event, pictures: Box::new(pictures) }
        });
        self.record(Record { row, anomaly })?;
        self.answer(trigger, verdict, [0.0, 0.0], &reasons, latency);
        self.count(trigger.frame, verdict, latency, late.is_some());
        Ok(())
    }

    /// What all rows of the part that is next have; scores and times are those of a part that was not inspected.
    fn row(
        &self,
        trigger: Trigger,
        verdict: Verdict,
        reasons: Vec<String>,
        latency: Duration,
        event: Option<Uuid>,
    ) -> LedgerRow {
        let service = self.line.service;
        LedgerRow {
            line: self.line.name.to_owned(),
            part: self.next_part,
            frame: trigger.frame,
            captured_at: trigger.captured_at,
            verdict,
            score: 0.0,
            confidence: 0.0,
            latency_ms: latency.as_secs_f32() * 1e3,
            model: self.model.clone(),
            event,
            frames: 0,
            reasons,
            late_ms: None,
            lot: service.and_then(|s| s.lot.clone()),
            serial: service.and_then(|s| s.serial.clone()),
        }
    }

    fn event(&self, id: Uuid, trigger: Trigger, verdict: Verdict, roi: Crop) -> Event {
        let (model, service, size) = (self.line.model, self.line.service, picture::frame_size(roi));
        Event {
            schema: EVENT_SCHEMA,
            id,
            site: self.line.site.to_owned(),
            line: self.line.name.to_owned(),
            camera: self.line.source.name(),
            part: self.next_part,
            frame: trigger.frame,
            captured_at: trigger.captured_at,
            spooled_s: 0.0,
            score: 0.0,
            confidence: 0.0,
            threshold: model.threshold(),
            verdict,
            reasons: Vec::new(),
            regions: Vec::new(),
            model: model.id(),
            device: self.device.clone(),
            precision: model.precision.as_str().to_owned(),
            lot: service.and_then(|s| s.lot.clone()),
            serial: service.and_then(|s| s.serial.clone()),
            image: ImageSize { width: size.width, height: size.height },
            part_box: None,
        }
    }

    /// Hands the record over; false when it cannot be recorded now. An inspection ends with the error; a line that serves a
    /// plant goes on judging, and the part becomes `missed`: what nobody can prove to have passed has not passed.
    fn record(&mut self, record: Record) -> Result<bool> {
        let Some(deliver) = self.line.deliver else { return Ok(true) };
        if !self.catch_up() {
            self.put_off(record.row);
            return Ok(false);
        }
        // what a refused record becomes; a copy only of a line that serves a plant, and of words
        let spare = self.line.service.map(|_| record.row.clone());
        let Err(e) = deliver.record(record) else { return Ok(true) };
        let Some(row) = spare else { return Err(e) };
        if self.complained.is_none_or(|t| t.elapsed() > COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::error!(
                line = self.line.name,
                part = self.next_part,
                "part is not recorded yet and becomes missed: {e}"
            );
        }
        self.put_off(row);
        Ok(false)
    }

    /// Keeps the row of a part that could not be recorded, as missed, without its picture.
    fn put_off(&mut self, mut row: LedgerRow) {
        self.dropped("record");
        if self.put_off.len() >= PUT_OFF {
            return;
        }
        row.reasons.insert(0, format!("{} could not be recorded in time", row.verdict.as_str()));
        (row.verdict, row.event) = (Verdict::Missed, None);
        self.put_off.push_back(row);
    }

    /// Records what was put off; false when that still does not work.
    pub fn catch_up(&mut self) -> bool {
        while let Some(row) = self.put_off.front() {
            let record = Record { row: row.clone(), anomaly: None };
            if self.line.deliver.is_some_and(|d| d.record(record).is_err()) {
                return false;
            }
            self.put_off.pop_front();
        }
        true
    }

    fn answer(&self, trigger: Trigger, verdict: Verdict, score: [f32; 2], reasons: &[String], latency: Duration) {
        let Some(service) = self.line.service.filter(|s| !s.respond.is_empty()) else { return };
        let answer = Answer {
            line: self.line.name.to_owned(),
            part: self.next_part,
            verdict,
            captured_at: trigger.captured_at,
            score: score[0],
            confidence: score[1],
            latency_ms: latency.as_secs_f32() * 1e3,
            reasons: reasons.to_vec(),
            model: self.model.clone(),
            lot: service.lot.clone(),
            serial: service.serial.clone(),
            captured: trigger.captured,
        };
        for output in &service.respond {
            // what was not taken is counted there
            output.answer(&answer);
        }
    }

    fn count(&mut self, frame: u64, verdict: Verdict, latency: Duration, late: bool) {
        self.next_part += 1;
        if let Some(service) = self.line.service {
            service.next_part.store(self.next_part, Relaxed);
        }
        self.latency.record(latency);
        self.totals.parts += 1;
        self.totals.anomalies += u64::from(verdict.is_anomaly());
        self.totals.missed += u64::from(verdict == Verdict::Missed);
        match self.line.service {
            Some(service) => service.status.verdict(verdict, latency, late),
            // a line that runs for months keeps none of this
            None => self.totals.verdicts.push((frame, verdict)),
        }
    }

    pub fn finish(mut self, decode: &Recorder, prepare: &Recorder) -> Totals {
        self.totals.latency_ms = self.latency.latency();
        self.totals.stages_ms = Stages {
            decode: decode.latency(),
            prepare: prepare.latency(),
            infer: self.infer.latency(),
            judge: self.judge.latency(),
            deliver: self.deliver.latency(),
        };
        self.totals
    }
}

/// The pictures of a part that nobody inspected: nothing is hot.
fn uninspected(frame: &Frame, part: Crop, roi: Crop, reference: &Reference) -> Result<Pictures> {
    Ok(Pictures {
        frame_jpeg: picture::frame_jpeg(frame, roi)?,
        heatmap_png: picture::heat_png(picture::heatmap_size(roi), 1.0, |_, _| None)?,
        normal_jpeg: Some(picture::normal_jpeg(reference, &part.into())?),
    })
}

/// A frame of a part that was not inspected.
fn uninspected_frame(reason: &str) -> Seen<Option<Judged>> {
    Seen { score: 0.0, verdict: Verdict::Missed, reasons: vec![reason.to_owned()], shown: None }
}

fn too_late(deadline: Duration) -> String {
    format!("verdict later than the deadline of {} ms", deadline.as_millis())
}

/// The part of a crop that lies in the frame.
fn clipped(crop: Crop, (width, height): (u32, u32)) -> Rect {
    let (x, y) = (crop.x.clamp(0, width as i32) as u32, crop.y.clamp(0, height as i32) as u32);
    let right = (crop.x + crop.width as i32).clamp(0, width as i32) as u32;
    let bottom = (crop.y + crop.height as i32).clamp(0, height as i32) as u32;
    Rect { x, y, w: right - x, h: bottom - y }
}
