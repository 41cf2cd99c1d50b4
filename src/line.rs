//! One line at work: capture -> prepare -> detect -> judge -> deliver, a thread for each stage.
//!
//! Threads: "capture" pulls frames and sends them on; "prepare" locates, crops and starts inferences; the caller of
//! [`run`] waits for them in frame order, scores and judges; the spool's own threads deliver. Channels between them are
//! bounded; a recording waits when a stage is slower (policy `block`), so no frame is lost.
//!
//! Invariants:
//! 1. Verdicts leave in frame order and part numbers have no gaps (test `tests/inspect.rs`).
//! 2. Full-resolution pixels are converted or copied for anomalies only; good parts are never encoded, stored or sent
//!    (test `tests/inspect.rs::good_parts_leave_nothing`).
//! 3. An error in any stage ends the others and is returned once; what was judged before it stays judged.

mod measure;

pub use measure::{Latency, Stages};

use crate::capture::{Capture, Source};
use crate::deliver::{Anomaly, Deliver, Pictures, Record};
use crate::detect::backbone::{Backbone, Options as BackboneOptions, Request};
use crate::detect::head::Scored;
use crate::detect::{AnomalyMap, Device, Head};
use crate::error::{Error, Result};
use crate::event::{EVENT_SCHEMA, Event, ImageSize, LedgerRow, Rect, Region, Verdict};
use crate::frame::Frame;
use crate::judge::place::PlacedMap;
use crate::judge::regions::regions;
use crate::model::{Model, Trigger};
use crate::picture;
use crate::prepare::locate::Finder;
use crate::prepare::placement::Placement;
use crate::prepare::register::Reference;
use crate::prepare::rigid::Doubt;
use crate::prepare::shrink::Crop;
use crate::prepare::track::{Crossing, Tracker};
use crate::prepare::{Preparer, Roi};
use crossbeam_channel::{Receiver, Sender, bounded};
use measure::Recorder;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Frames that wait between capture and prepare.
const FRAMES_WAITING: usize = 4;
/// A located part whose width or height differs from the taught by more than this is not judged by its score alone.
const SIZE_TOLERANCE: f32 = 0.2;
/// The parity check accepts scores that differ by this share of the threshold.
const PARITY_TOLERANCE: f32 = 0.02;

/// Where a rejected part's map nowhere reaches the threshold, regions are cut at this share of its maximum.
const REGION_SHARE: f32 = 0.8;

/// What a line needs to know.
pub struct Line<'a> {
    pub name: &'a str,
    pub site: &'a str,
    pub source: &'a Source,
    /// Frames at the recording's own rate.
    pub realtime: bool,
    pub model: &'a Model,
    /// Where verdicts and anomalies go; `None` only counts.
    pub deliver: Option<&'a Deliver>,
    /// Set to end the line as if the source had ended.
    pub stop: &'a AtomicBool,
}

/// The detector's result for one part.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// What was inspected: the file's name for images, else the source.
    pub source: String,
    pub frame: u64,
    pub part: u64,
    pub pts_ns: Option<u64>,
    pub score: f32,
    pub confidence: f32,
    pub verdict: Verdict,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    pub regions: Vec<Region>,
    /// Where the part was inspected, source pixels.
    #[serde(rename = "box")]
    pub part_box: Rect,
}

/// An inspection with what is needed to make its pictures; clones share frame, map and picture.
#[derive(Clone)]
pub struct Judged {
    pub inspection: Inspection,
    pub frame: Arc<Frame>,
    pub map: Arc<AnomalyMap>,
    /// Where the map lies in the frame.
    pub placement: Placement,
    pub roi: Crop,
    pub threshold: f32,
    /// The map value from which on a place counts as anomalous: the threshold, or less where the score is made of more than
    /// one place and none reaches it.
    pub level: f32,
    /// The median good part.
    reference: Arc<Reference>,
}

impl Judged {
    /// The pictures of an anomaly; encodes, so not for the verdict path.
    pub fn pictures(&self) -> Result<Pictures> {
        Ok(Pictures {
            frame_jpeg: picture::frame_jpeg(&self.frame, self.roi)?,
            heatmap_png: picture::heatmap_png(&self.map, &self.placement, self.roi, self.level)?,
            normal_jpeg: Some(picture::normal_jpeg(&self.reference, &self.placement)?),
        })
    }

    /// The map with its place in the frame; keeps the small map alive, not the frame.
    pub fn placed_map(&self) -> PlacedMap {
        PlacedMap::new(self.map.clone(), self.placement)
    }
}

/// What a line did.
#[derive(Debug, Clone, Serialize)]
pub struct Totals {
    pub frames: u64,
    pub parts: u64,
    pub anomalies: u64,
    pub dropped: u64,
    /// Parts that vanished before they could be judged.
    pub lost: u64,
    /// Decoder complaints that did not end the stream.
    pub decode_warnings: u64,
    pub seconds: f64,
    /// Decoded bytes of all frames.
    pub bytes_raw: u64,
    /// Encoded bytes read.
    pub bytes_in: u64,
    /// The device that really ran the network.
    pub device: String,
    pub precision: String,
    pub latency_ms: Latency,
    pub stages_ms: Stages,
    /// Frame number and verdict of each part, for the comparison with a truth.
    #[serde(skip)]
    pub verdicts: Vec<(u64, Verdict)>,
}

/// A part on its way from prepare to judge.
struct InFlight {
    request: Request,
    frame: Arc<Frame>,
    placement: Placement,
    roi: Crop,
    reasons: Vec<String>,
    /// False when the score says nothing about the part: there is none, or only a piece of it.
    scorable: bool,
    started: Instant,
}

/// Counters that the capture and prepare threads leave behind.
#[derive(Default)]
struct Counters {
    frames: AtomicU64,
    bytes_raw: AtomicU64,
    bytes_in: AtomicU64,
    warnings: AtomicU64,
    lost: AtomicU64,
    expected: AtomicU64,
}

/// Compiles the model's network for the device that runs it, and checks that it gives the scores it gave when it was taught.
pub fn arm(model: &Model, device: &Device, allow_fallback: bool, throughput: bool) -> Result<Backbone> {
    let mut backbone = Backbone::compile(&BackboneOptions {
        backbone: model.backbone.id.clone(),
        input: model.preparation.input,
        device: device.clone(),
        precision: model.precision,
        allow_fallback,
        throughput,
    })?;
    if backbone.device() != model.device {
        return Err(Error::usage(format!(
            "model \"{}\" was calibrated on {} and would run on {}",
            model.name,
            model.device,
            backbone.device()
        ))
        .hint(format!(
            "scores differ between devices: run `linesight model calibrate` with good parts on {}, or pass --device {}",
            backbone.device(),
            model.device
        )));
    }
    let mut request = backbone.request()?;
    let mut head = Head::new();
    for (i, (pixels, wanted)) in model.reference.iter().enumerate() {
        request.input()?.copy_from_slice(pixels);
        request.start()?;
        let score = head.score(&model.detector, request.wait()?, model.mask.as_deref())?.score;
        let difference = (score - wanted).abs() / model.threshold().max(f32::MIN_POSITIVE);
        if difference.is_nan() || difference > PARITY_TOLERANCE {
            return Err(Error::failed(format!(
                "model \"{}\" gives reference picture {i} the score {score:.3} here in {} and {wanted:.3} where it was taught",
                model.name,
                model.precision.as_str()
            ))
            .hint("this machine computes differently, or the package's precision is not the one it was taught in: run `linesight model calibrate` with good parts here"));
        }
    }
    Ok(backbone)
}

/// Runs the line on an armed network until its source ends or `stop` is set. `on_judged` is called for every part, in order, on the verdict path;
/// `progress` with frames done and expected.
pub fn run(
    line: &Line<'_>,
    backbone: &mut Backbone,
    mut on_judged: impl FnMut(Judged) -> Result<()>,
    progress: impl Fn(u64, Option<u64>),
) -> Result<Totals> {
    let started = Instant::now();
    if line.model.trigger == Trigger::Presence && matches!(line.source, Source::Folder { .. }) {
        return Err(Error::usage(format!(
            "model \"{}\" follows parts over a belt, \"{}\" is a folder of images",
            line.model.name,
            line.source.name()
        ))
        .hint("give a recording, or teach a model with --trigger frame for pictures of single parts"));
    }
    let mut capture = Capture::open(line.source, line.realtime)?;
    let pool = backbone.pool_size() + 1;
    let (free_tx, free_rx) = bounded::<Request>(pool);
    for _ in 0..pool {
        // the channel holds the whole pool, so this cannot wait
        let _ = free_tx.send(backbone.request()?);
    }
    let (frame_tx, frame_rx) = bounded::<Arc<Frame>>(FRAMES_WAITING);
    let (flight_tx, flight_rx) = bounded::<InFlight>(pool);
    let counters = Counters::default();
    let abort = AtomicBool::new(false);
    let (decode, prepare) = (Recorder::new(), Recorder::new());
    let mut judge = Judge::new(line, backbone)?;

    let outcome = std::thread::scope(|scope| -> Result<()> {
        let capturing = std::thread::Builder::new()
            .name("capture".into())
            .spawn_scoped(scope, || {
                let tx = frame_tx;
                let halted = || line.stop.load(Relaxed) || abort.load(Relaxed);
                capture_frames(&mut capture, &tx, &counters, &decode, halted)
            })
            .map_err(|e| Error::failed("no thread for capture").because(e))?;
        let preparing = std::thread::Builder::new()
            .name("prepare".into())
            .spawn_scoped(scope, || {
                let tx = flight_tx;
                let done = prepare_parts(line.model, &frame_rx, &free_rx, &tx, &counters, &prepare);
                // whatever the reason, frames that are still coming have nowhere to go
                abort.store(true, Relaxed);
                while frame_rx.try_recv().is_ok() {}
                done
            })
            .map_err(|e| Error::failed("no thread for prepare").because(e))?;
        let mut judged = Ok(());
        for flight in &flight_rx {
            judged = judge.judge(flight, &free_tx, &mut on_judged);
            if judged.is_err() {
                break;
            }
            let expected = counters.expected.load(Relaxed);
            progress(counters.frames.load(Relaxed), (expected > 0).then_some(expected));
        }
        abort.store(true, Relaxed);
        // lets a stage that waits for room or for a request see that nobody is there any more
        drop(flight_rx);
        drop(free_tx);
        let joined = |r: std::thread::Result<Result<()>>| {
            r.unwrap_or_else(|_| Err(Error::failed("a stage of the line panicked; this is a bug in linesight")))
        };
        let prepared = joined(preparing.join());
        let captured = joined(capturing.join());
        // the first cause: a failed judge ends prepare, a failed prepare ends capture
        judged.and(prepared).and(captured)
    });
    outcome?;
    if judge.totals.parts == 0 && !line.stop.load(Relaxed) {
        tracing::warn!("no part was found in \"{}\": nothing was inspected", line.source.name());
    }
    judge.totals.seconds = started.elapsed().as_secs_f64();
    judge.totals.frames = counters.frames.load(Relaxed);
    judge.totals.lost = counters.lost.load(Relaxed);
    judge.totals.bytes_raw = counters.bytes_raw.load(Relaxed);
    judge.totals.bytes_in = counters.bytes_in.load(Relaxed);
    judge.totals.decode_warnings = counters.warnings.load(Relaxed);
    Ok(judge.finish(&decode, &prepare))
}

fn capture_frames(
    capture: &mut Capture,
    frames: &Sender<Arc<Frame>>,
    counters: &Counters,
    decode: &Recorder,
    halted: impl Fn() -> bool,
) -> Result<()> {
    while !halted() {
        let lap = Instant::now();
        let Some(frame) = capture.next_frame_unless(&halted)? else { break };
        decode.record(lap.elapsed());
        if frame.seq == 0 {
            counters.expected.store(capture.expected_frames().unwrap_or(0), Relaxed);
        }
        counters.frames.fetch_add(1, Relaxed);
        counters.bytes_raw.fetch_add(frame.byte_size() as u64, Relaxed);
        counters.bytes_in.store(capture.bytes_in(), Relaxed);
        if frames.send(frame).is_err() {
            break;
        }
    }
    counters.warnings.store(capture.warnings(), Relaxed);
    Ok(())
}

/// Locates the parts of a frame and says which are to be inspected now.
struct Gate {
    belt: Option<(Finder, Tracker)>,
}

impl Gate {
    fn new(model: &Model) -> Result<Self> {
        let belt = match (model.trigger, &model.locator) {
            (Trigger::Presence, Some(locator)) => Some((Finder::new(locator)?, Tracker::new(locator))),
            _ => None,
        };
        Ok(Gate { belt })
    }

    fn parts(&mut self, preparer: &mut Preparer, frame: &Frame, roi: Crop) -> Result<Vec<Crossing>> {
        let Some((finder, tracker)) = &mut self.belt else {
            return Ok(vec![Crossing { crop: roi, located: true, relative_size: [1.0, 1.0] }]);
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

    fn lost(&self) -> u64 {
        self.belt.as_ref().map_or(0, |(_, tracker)| tracker.lost())
    }
}

/// Decodes and prepares a whole source without the network: what `bench` measures.
pub fn prepare_only(model: &Model, source: &Source) -> Result<()> {
    let mut capture = Capture::open(source, false)?;
    let mut preparer = Preparer::new(&model.preparation)?;
    let mut gate = Gate::new(model)?;
    let mut input = vec![0; model.preparation.input.area() * 3];
    while let Some(frame) = capture.next_frame()? {
        let roi = Roi::in_frame(model.roi, frame.width(), frame.height())?;
        for crossing in gate.parts(&mut preparer, &frame, roi)? {
            preparer.prepare(&model.preparation, &frame, model.crop_of(crossing.crop), &mut input)?;
        }
    }
    Ok(())
}

fn prepare_parts(
    model: &Model,
    frames: &Receiver<Arc<Frame>>,
    free: &Receiver<Request>,
    flights: &Sender<InFlight>,
    counters: &Counters,
    timing: &Recorder,
) -> Result<()> {
    let mut preparer = Preparer::new(&model.preparation)?;
    let mut gate = Gate::new(model)?;
    for frame in frames {
        let lap = Instant::now();
        let roi = Roi::in_frame(model.roi, frame.width(), frame.height())?;
        let crossings = gate.parts(&mut preparer, &frame, roi)?;
        counters.lost.store(gate.lost(), Relaxed);
        let mut spent = lap.elapsed();
        for crossing in crossings {
            // waiting for a free request is the detector's time, not ours
            let Ok(mut request) = free.recv() else { return Ok(()) };
            let lap = Instant::now();
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
            reasons.extend(pose.doubt.map(|Doubt { reason, .. }| reason));
            request.start()?;
            let (frame, started) = (frame.clone(), Instant::now());
            let flight = InFlight { request, frame, placement: pose.placement, roi, reasons, scorable, started };
            spent += lap.elapsed();
            if flights.send(flight).is_err() {
                return Ok(());
            }
        }
        timing.record(spent);
    }
    Ok(())
}

/// The last stage: waits for inferences in order, scores, judges, hands over.
struct Judge<'a> {
    line: &'a Line<'a>,
    head: Head,
    reference: Arc<Reference>,
    device: String,
    totals: Totals,
    latency: Recorder,
    infer: Recorder,
    judge: Recorder,
    deliver: Recorder,
}

impl<'a> Judge<'a> {
    fn new(line: &'a Line<'a>, backbone: &Backbone) -> Result<Self> {
        Ok(Judge {
            line,
            reference: Arc::new(line.model.preparation.reference.clone()),
            head: Head::new(),
            device: backbone.device().to_owned(),
            totals: Totals {
                frames: 0,
                parts: 0,
                anomalies: 0,
                dropped: 0,
                lost: 0,
                decode_warnings: 0,
                seconds: 0.0,
                bytes_raw: 0,
                bytes_in: 0,
                device: backbone.device().to_owned(),
                precision: backbone.precision().as_str().to_owned(),
                latency_ms: Latency::default(),
                stages_ms: Stages::default(),
                verdicts: Vec::new(),
            },
            latency: Recorder::new(),
            infer: Recorder::new(),
            judge: Recorder::new(),
            deliver: Recorder::new(),
        })
    }

    fn judge(
        &mut self,
        mut flight: InFlight,
        free: &Sender<Request>,
        on_judged: &mut impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let model = self.line.model;
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
            part: self.totals.parts,
            pts_ns: frame.pts_ns,
            score,
            confidence: model.calibration.confidence(score),
            verdict,
            reasons,
            regions: found,
            part_box: clipped(flight.placement.bounds(), size),
        };
        let latency = frame.captured.elapsed();
        self.latency.record(latency);
        self.judge.record(lap.elapsed());
        self.totals.parts += 1;
        self.totals.anomalies += u64::from(verdict.is_anomaly());
        self.totals.verdicts.push((frame.seq, verdict));

        let lap = Instant::now();
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
        if let Some(deliver) = self.line.deliver {
            deliver.record(self.record(&judged, latency))?;
        }
        on_judged(judged)?;
        self.deliver.record(lap.elapsed());
        Ok(())
    }

    fn record(&self, judged: &Judged, latency: Duration) -> Record {
        let (i, frame, model) = (&judged.inspection, &judged.frame, self.line.model);
        let id = i.verdict.is_anomaly().then(Uuid::now_v7);
        let row = LedgerRow {
            line: self.line.name.to_owned(),
            part: i.part,
            frame: i.frame,
            captured_at: frame.captured_at,
            verdict: i.verdict,
            score: i.score,
            confidence: i.confidence,
            latency_ms: latency.as_secs_f32() * 1e3,
            model: format!("{}@{}", model.name, model.version),
            event: id,
            frames: 1,
            reasons: i.reasons.clone(),
            late_ms: None,
            lot: None,
            serial: None,
        };
        let Some(id) = id else { return Record { row, anomaly: None } };
        let (roi, size) = (judged.roi, picture::frame_size(judged.roi));
        // the event's coordinates are those of its picture, which shows the ROI
        let shift = |x: u32, origin: i32| x.saturating_sub(origin.max(0) as u32);
        let b = i.part_box;
        let event = Event {
            schema: EVENT_SCHEMA,
            id,
            site: self.line.site.to_owned(),
            line: self.line.name.to_owned(),
            camera: self.line.source.name(),
            part: i.part,
            frame: i.frame,
            captured_at: frame.captured_at,
            spooled_s: 0.0,
            score: i.score,
            confidence: i.confidence,
            threshold: judged.threshold,
            verdict: i.verdict,
            reasons: i.reasons.clone(),
            regions: i
                .regions
                .iter()
                .map(|r| Region { x: shift(r.x, roi.x), y: shift(r.y, roi.y), ..r.clone() })
                .collect(),
            model: model.id(),
            device: self.device.clone(),
            precision: model.precision.as_str().to_owned(),
            lot: None,
            serial: None,
            image: ImageSize { width: size.width, height: size.height },
            part_box: Some(Rect { x: shift(b.x, roi.x), y: shift(b.y, roi.y), w: b.w, h: b.h }),
        };
        let pictures = judged.clone();
        Record { row, anomaly: Some(Anomaly { event, pictures: Box::new(move || pictures.pictures()) }) }
    }

    fn finish(mut self, decode: &Recorder, prepare: &Recorder) -> Totals {
        self.totals.latency_ms = self.latency.latency();
        self.totals.stages_ms = Stages {
            decode: decode.stage(),
            prepare: prepare.stage(),
            infer: self.infer.stage(),
            judge: self.judge.stage(),
            deliver: self.deliver.stage(),
        };
        self.totals
    }
}

/// The part of a crop that lies in the frame.
fn clipped(crop: Crop, (width, height): (u32, u32)) -> Rect {
    let (x, y) = (crop.x.clamp(0, width as i32) as u32, crop.y.clamp(0, height as i32) as u32);
    let right = (crop.x + crop.width as i32).clamp(0, width as i32) as u32;
    let bottom = (crop.y + crop.height as i32).clamp(0, height as i32) as u32;
    Rect { x, y, w: right - x, h: bottom - y }
}
