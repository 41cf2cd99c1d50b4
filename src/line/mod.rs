//! One line at work: capture -> prepare -> detect -> judge -> respond / deliver, a thread for each stage.
//!
//! Threads: "capture" ([`feed`]) pulls frames and sends them on; "prepare" ([`parts`]) locates, crops and starts inferences;
//! the caller of [`run`] waits for them in frame order, scores and judges ([`verdicts`]); the spool's own threads deliver.
//! Channels between them are bounded; what happens when a stage is slower is the line's [`Overload`] policy.
//!
//! Invariants:
//! 1. Verdicts leave in frame order and part numbers have no gaps (tests `tests/inspect.rs`, `tests/run.rs`).
//! 2. Full-resolution pixels are converted or copied for anomalies only; good parts are never encoded, stored or sent
//!    (test `tests/inspect.rs::good_parts_leave_nothing`).
//! 3. An error in any stage ends the others and is returned once; what was judged before it stays judged.

mod alone;
mod feed;
mod measure;
mod parts;
mod verdicts;

pub use alone::{infer_only, infer_paced};
pub use measure::{Latency, Stages};

use crate::capture::{CameraOptions, Source, Watchdog};
use crate::deliver::live_picture::LivePicture;
use crate::deliver::{Deliver, Pictures};
use crate::detect::backbone::{Backbone, Options as BackboneOptions, Request, streams_beside};
use crate::detect::{AnomalyMap, Device, Head, Hint, Precision};
use crate::error::{Error, Result};
use crate::event::{Rect, Region, Verdict};
use crate::frame::Frame;
use crate::judge::debounce::Debounce;
use crate::judge::place::PlacedMap;
use crate::model::{Model, Trigger};
use crate::observe::LineStatus;
use crate::observe::health::HealthWatch;
use crate::observe::pulse::{self, Pulse};
use crate::picture;
use crate::prepare::placement::Placement;
use crate::prepare::register::Reference;
use crate::prepare::shrink::{Crop, Size};
use crate::respond::Respond;
use crossbeam_channel::{RecvTimeoutError, bounded};
use feed::{Feed, Frames, SkippedList, capture_frames};
use measure::Recorder;
use parts::{Item, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use verdicts::Judge;

pub use parts::prepare_only;

/// Frames that wait between capture and prepare, unless the line says otherwise.
pub const FRAMES_WAITING: usize = 4;
/// The parity check accepts scores that differ by this share of the threshold.
const PARITY_TOLERANCE: f32 = 0.02;

/// What happens to frames when the detector is slower than the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overload {
    /// The oldest waiting frame gives way to the newest and is counted; where each frame is a part, the part is `missed`.
    Newest,
    /// The source waits: nothing is lost, a live source may lose frames before they reach this machine.
    Block,
}

/// What a line does for a plant, beyond inspecting a recording.
pub struct Service {
    pub camera: CameraOptions,
    pub watchdog: Watchdog,
    pub overload: Overload,
    /// Frames that may wait between capture and prepare: how far behind a live source the line can be.
    pub queue: usize,
    /// From trigger to verdict; what comes later is `missed`.
    pub deadline: Option<Duration>,
    pub debounce: Debounce,
    /// The number that the next part gets.
    pub next_part: AtomicU64,
    pub respond: Vec<Arc<dyn Respond>>,
    pub status: Arc<LineStatus>,
    pub lot: Option<String>,
    pub serial: Option<String>,
    /// Start a recording over when it ends.
    pub repeat: bool,
    /// Looks at the camera once a second, on a thread of its own.
    pub health: HealthWatch,
    /// Shows the line to who looks at it in the review pages.
    pub live_picture: Option<LivePicture>,
}

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
    /// None: an inspection, which waits for nobody and answers nobody.
    pub service: Option<&'a Service>,
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
    /// Those of the anomalies that were not inspected in time.
    pub missed: u64,
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

/// A line's share of a compiled network.
pub struct Network {
    requests: Vec<Request>,
    /// The device that really runs it.
    device: String,
    precision: Precision,
}

impl Network {
    /// As many requests as the device wants in flight, and one to fill meanwhile; at most `most`.
    pub fn of(backbone: &mut Backbone, most: usize) -> Result<Network> {
        let n = (backbone.pool_size() + 1).min(most.max(1));
        let requests = (0..n).map(|_| backbone.request()).collect::<Result<_>>()?;
        Ok(Network { requests, device: backbone.device().to_owned(), precision: backbone.precision() })
    }

    /// The share of one of `lines` lines: what the device wants in flight, shared out over them, at least two so that one is
    /// filled while the other runs.
    pub fn share(backbone: &mut Backbone, lines: usize) -> Result<Network> {
        let share = (backbone.pool_size() / lines.max(1) + 1).max(2);
        Network::of(backbone, share)
    }

    /// Inferences that may be on their way at once.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// The device that really runs it.
    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// What the model's network is compiled for.
pub fn network_of(model: &Model, device: &Device, allow_fallback: bool, hint: Hint) -> BackboneOptions {
    BackboneOptions {
        backbone: model.backbone.id.clone(),
        input: model.preparation.input,
        device: device.clone(),
        precision: model.precision,
        allow_fallback,
        hint,
        streams: None,
    }
}

/// Compiles the model's network for the device that runs it, and checks that it gives the scores it gave when it was taught.
pub fn arm(model: &Model, device: &Device, allow_fallback: bool, hint: Hint) -> Result<Backbone> {
    compiled(model, &network_of(model, device, allow_fallback, hint))
}

/// As [`arm`]; where the other cores are enough for the network, one is left to the decoder of a recording that is read as fast
/// as possible. `frames` is asked for the size of its frames where that matters; none where nothing is decoded beside.
pub fn arm_beside_decoder(
    model: &Model,
    device: &Device,
    allow_fallback: bool,
    hint: Hint,
    frames: impl FnOnce() -> Result<Option<Size>>,
) -> Result<Backbone> {
    let mut options = network_of(model, device, allow_fallback, hint);
    if hint == Hint::Throughput
        && device.may_be_cpu()
        && let Some(frames) = frames()?
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        options.streams = Some(streams_beside(frames, options.input, options.precision, cores));
    }
    compiled(model, &options)
}

fn compiled(model: &Model, options: &BackboneOptions) -> Result<Backbone> {
    let mut backbone = Backbone::compile(options)?;
    check_parity(model, &mut backbone)?;
    Ok(backbone)
}

/// Checks that a compiled network gives the scores that it gave when the model was taught.
pub fn check_parity(model: &Model, backbone: &mut Backbone) -> Result<()> {
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
    Ok(())
}

/// A thread of a line that serves is alive.
fn beat(pulse: Option<&Pulse>, stage: pulse::Stage) {
    if let Some(pulse) = pulse {
        pulse.beat(stage);
    }
}

/// Runs the line on an armed network until its source ends or `stop` is set. `on_judged` is called for every part that was
/// inspected, in order, on the verdict path; `progress` with frames done and expected.
pub fn run(
    line: &Line<'_>,
    backbone: &mut Backbone,
    on_judged: impl FnMut(Judged) -> Result<()>,
    progress: impl Fn(u64, Option<u64>),
) -> Result<Totals> {
    let network = Network::of(backbone, usize::MAX)?;
    run_on(line, network, on_judged, progress)
}

/// [`run`] on a share of a network that others use, too.
pub fn run_on(
    line: &Line<'_>,
    network: Network,
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
    let mut source = Frames::open(line)?;
    let mut judge = Judge::new(line, &network);
    let pool = network.requests.len();
    let (free_tx, free_rx) = bounded::<Request>(pool);
    for request in network.requests {
        // the channel holds the whole pool, so this cannot wait
        let _ = free_tx.send(request);
    }
    // where parts are located the parts wait, not the frames; two, so that a source that gives two at once loses none
    let waiting = match line.service {
        Some(s) if s.overload == Overload::Newest && line.model.trigger == Trigger::Presence => 2.min(s.queue.max(1)),
        Some(s) => s.queue.max(1),
        None => FRAMES_WAITING,
    };
    let (frame_tx, frame_rx) = bounded::<Arc<Frame>>(waiting);
    // parts without an inference come on top of those with one
    let (item_tx, item_rx) = bounded::<Item>(pool + waiting + 8);
    let counters = Counters::default();
    let skipped = SkippedList::default();
    let abort = AtomicBool::new(false);
    let (decode, prepare) = (Recorder::new(), Recorder::new());

    let pulse = line.service.map(|s| &s.status.pulse);
    let taken = frame_rx.clone();
    let outcome = std::thread::scope(|scope| -> Result<()> {
        let capturing = std::thread::Builder::new()
            .name("capture".into())
            .spawn_scoped(scope, || {
                let _alive = pulse.map(|p| p.begin(pulse::Stage::Capture));
                let feed = Feed {
                    frames: frame_tx,
                    waiting: frame_rx.clone(),
                    overload: line.service.map_or(Overload::Block, |s| s.overload),
                    skipped: &skipped,
                    status: line.service.map(|s| &*s.status),
                };
                // asked whenever it waits
                let halted = || {
                    beat(pulse, pulse::Stage::Capture);
                    line.stop.load(Relaxed) || abort.load(Relaxed)
                };
                capture_frames(&mut source, &feed, &counters, &decode, halted)
            })
            .map_err(|e| Error::failed("no thread for capture").because(e))?;
        let preparing = std::thread::Builder::new()
            .name("prepare".into())
            .spawn_scoped(scope, || {
                let _alive = pulse.map(|p| p.begin(pulse::Stage::Prepare));
                let stage = Stage { line, frames: &taken, free: &free_rx, items: item_tx, skipped: &skipped };
                let done = stage.run(&counters, &prepare);
                // whatever the reason, frames that are still coming have nowhere to go
                abort.store(true, Relaxed);
                while taken.try_recv().is_ok() {}
                done
            })
            .map_err(|e| Error::failed("no thread for prepare").because(e))?;
        let mut judged = Ok(());
        loop {
            beat(pulse, pulse::Stage::Line);
            let item = match item_rx.recv_timeout(pulse::BEAT) {
                Ok(item) => item,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            judged = judge.take(item, &free_tx, &mut on_judged);
            if judged.is_err() {
                break;
            }
            let expected = counters.expected.load(Relaxed);
            progress(counters.frames.load(Relaxed), (expected > 0).then_some(expected));
        }
        if judged.is_ok() {
            judged = judge.finish_parts(&mut on_judged);
        }
        abort.store(true, Relaxed);
        // lets a stage that waits for room or for a request see that nobody is there any more
        drop(item_rx);
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
    if judge.totals.parts == 0 && line.service.is_none() && !line.stop.load(Relaxed) {
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
