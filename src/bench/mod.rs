//! What a model costs on this machine, from one interleaved run.
//!
//! Each round runs decoding alone, decoding with preparation, the network alone, the head alone and whole lines, one after
//! the other, so that a change of the machine's speed meets all of them; medians over the rounds are told. CPU time is that
//! of the whole process (user and system), so it counts every thread.
//!
//! Invariants:
//! 1. The network alone runs with the requests that a single line has, compiled with the same hint ([`line::infer_only`]).
//! 2. Several lines share one compiled network and have a model and requests of their own each, as in `linesight run`.
//! 3. At the source's own rate a line is served as a live one is: newest frames win, and what gives way is counted.
//! 4. What is told fits together: overhead = end to end - decode - infer = prepare + head + rest (test `tests/bench.rs`).

mod allocations;
mod lines;
mod machine;
mod outcome;

pub use allocations::{Allocations, Counting};
pub use machine::Machine;
pub use outcome::{Lines, Outcome, Spread, Spreads};

use crate::capture::{Capture, Source};
use crate::detect::{Backbone, Device, Head, Hint};
use crate::error::{Error, Result};
use crate::line::{self, Latency, Network};
use crate::model::Model;
use crate::prepare::shrink::Size;
use lines::{Play, Setup, Whole};
use machine::{forget_peak_rss, peak_rss_mb, process_cpu};
use outcome::spread;
use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Single inferences at the source's rate in a round, at most: ten seconds at 30 a second.
const PACED: u64 = 300;

/// What is measured.
pub struct Options<'a> {
    pub model: &'a Path,
    pub source: &'a Source,
    pub device: &'a Device,
    /// Numbers of lines besides one.
    pub lines: &'a [usize],
    pub rounds: u32,
    /// Whole lines at the source's own rate, with a network compiled for latency.
    pub realtime: bool,
}

/// Milliseconds a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cost {
    cpu_ms: f64,
    wall_ms: f64,
}

fn measure<T>(frames: u64, work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let (cpu, wall) = (process_cpu(), Instant::now());
    let done = work()?;
    let ms = |d: Duration| d.as_secs_f64() * 1e3 / frames as f64;
    Ok((Cost { cpu_ms: ms(process_cpu().saturating_sub(cpu)), wall_ms: ms(wall.elapsed()) }, done))
}

/// What a source holds.
struct Footage {
    frames: u64,
    /// The first frame's.
    size: Size,
    /// Frames a second, by the frames' own times.
    fps: Option<f64>,
}

fn decode_only(source: &Source) -> Result<Footage> {
    let mut capture = Capture::open(source, false)?;
    let (mut frames, mut size, mut first, mut last) = (0, Size::default(), None, None);
    while let Some(frame) = capture.next_frame()? {
        if frames == 0 {
            (size, first) = (Size { width: frame.width(), height: frame.height() }, frame.pts_ns);
        }
        (frames, last) = (frames + 1, frame.pts_ns);
    }
    let took = first.zip(last).map(|(first, last)| last.saturating_sub(first)).filter(|t| *t > 0);
    Ok(Footage { frames, size, fps: took.map(|t| (frames - 1) as f64 * 1e9 / t as f64) })
}

/// Features of real pictures, to be scored.
fn features(backbone: &mut Backbone, inputs: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
    let mut request = backbone.request()?;
    let mut of = |pixels: &[u8]| {
        request.input()?.copy_from_slice(pixels);
        request.start()?;
        request.wait().map(<[f32]>::to_vec)
    };
    inputs.iter().map(|pixels| of(pixels)).collect()
}

/// Scores `count` pictures by their features, taken in turn.
fn head_only(model: &Model, features: &[Vec<f32>], count: u64) -> Result<()> {
    let mut head = Head::new();
    for (features, _) in features.iter().cycle().zip(0..count) {
        black_box(head.score(&model.detector, features, model.mask.as_deref())?.score);
    }
    Ok(())
}

/// All that the rounds gave.
struct Rounds {
    decode: Vec<Cost>,
    prepare: Vec<Cost>,
    infer: Vec<Cost>,
    head: Vec<Cost>,
    /// Single inferences at the source's rate.
    alone: Vec<Latency>,
    /// For each number of lines.
    whole: Vec<Vec<Whole>>,
}

/// Measures. `progress` is told what is done of how much.
///
/// # Errors
/// The model or the source cannot be used, the source is live, or `stop` was set.
pub fn run(options: &Options<'_>, stop: &AtomicBool, progress: &dyn Fn(u64, u64)) -> Result<Outcome> {
    let started = Instant::now();
    let source = options.source;
    if source.is_live() || matches!(source, Source::Uri(_)) {
        return Err(Error::usage(
            "bench needs a recording or a folder: a live source gives its frames at its own rate",
        )
        .hint("record a minute of it; what a line that runs takes is in `linesight status` and its metrics"));
    }
    let footage = decode_only(source)?;
    if options.realtime && footage.fps.is_none() {
        return Err(Error::usage(format!("\"{}\" has no rate of its own", source.name()))
            .hint("leave --realtime out, or give a recording"));
    }
    let model = Model::load(options.model)?;
    // several lines have several decoders
    let alone = options.lines.iter().all(|&lines| lines == 1);
    let size = (alone && footage.fps.is_some()).then_some(footage.size);
    let hint = Hint::for_source(options.realtime);
    let backbone = line::arm_beside_decoder(&model, options.device, false, hint, || Ok(size))?;
    let mut setup = Setup { play: Play { source, realtime: options.realtime, stop }, models: vec![model], backbone };
    let numbers: Vec<usize> = [1].iter().chain(options.lines).copied().collect::<BTreeSet<_>>().into_iter().collect();

    // fills caches, tells how many parts there are, and what memory lines take while nothing else does
    let mut memory = Vec::new();
    let mut warm = None;
    for &n in &numbers {
        setup.load_up_to(n, options.model)?;
        let ran = setup.whole(n, |_, _| {})?;
        memory.push(peak_rss_mb());
        forget_peak_rss();
        warm.get_or_insert(ran);
    }
    let Some(warm) = warm.filter(|w| w.frames > 0 && w.parts > 0) else {
        return Err(match stop.load(Relaxed) {
            true => Error::failed("interrupted"),
            false => Error::failed(format!("\"{}\" has no part to inspect", source.name())),
        });
    };
    let (frames, parts) = (footage.frames, warm.parts);
    let inputs: Vec<Vec<u8>> = setup.models[0].reference.iter().map(|(pixels, _)| pixels.clone()).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let features = features(&mut setup.backbone, &inputs)?;
    let requests = Network::share(&mut setup.backbone, 1)?.requests();

    let mut rounds =
        Rounds { decode: vec![], prepare: vec![], infer: vec![], head: vec![], alone: vec![], whole: vec![] };
    rounds.whole.resize_with(numbers.len(), Vec::new);
    for round in 0..options.rounds {
        progress(u64::from(round), u64::from(options.rounds));
        rounds.decode.push(measure(frames, || decode_only(source))?.0);
        rounds.prepare.push(measure(frames, || line::prepare_only(&setup.models[0], source))?.0);
        let network = Network::share(&mut setup.backbone, 1)?;
        rounds.infer.push(measure(frames, || line::infer_only(network, &inputs, parts))?.0);
        rounds.head.push(measure(frames, || head_only(&setup.models[0], &features, parts))?.0);
        if let Some(fps) = footage.fps.filter(|_| options.realtime) {
            let network = Network::share(&mut setup.backbone, 1)?;
            let period = Duration::from_secs_f64(1.0 / fps);
            rounds.alone.push(line::infer_paced(network, &inputs, parts.min(PACED), period)?);
        }
        for (&n, whole) in numbers.iter().zip(&mut rounds.whole) {
            whole.push(setup.whole(n, |_, _| {})?);
            if stop.load(Relaxed) {
                return Err(Error::failed("interrupted"));
            }
        }
    }
    let allocations = setup.allocations(footage.size.area() / 2)?;
    let mut outcome = Outcome::of(&setup, &rounds, &numbers, &memory);
    outcome.rounds = options.rounds;
    (outcome.frames, outcome.parts, outcome.source_fps, outcome.requests) = (frames, parts, footage.fps, requests);
    outcome.allocations_per_frame = allocations;
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// The middle of the CPU times and of the wall times.
fn median(costs: &[Cost]) -> Cost {
    let middle = |of: fn(&Cost) -> f64| spread(costs.iter().map(of)).median;
    Cost { cpu_ms: middle(|c| c.cpu_ms), wall_ms: middle(|c| c.wall_ms) }
}
