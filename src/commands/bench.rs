//! `linesight bench`: what a model costs on this machine, in CPU time a frame, from one interleaved run.
//!
//! Each round runs decoding alone, decoding with preparation, the network alone and the whole pipeline, one after the other,
//! so that a change of the machine's speed meets all of them; medians over the rounds are printed. CPU time is that of the
//! whole process (user and system), so it counts every thread.

use super::terminal::{Progress, stop_flag};
use super::{print_json, print_text};
use crate::capture::{Capture, Source};
use crate::detect::{Backbone, Device, Hint};
use crate::error::{Error, Result};
use crate::line::{self, Latency, Line, Stages, Totals};
use crate::model::Model;
use serde::Serialize;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Arguments {
    /// Model package made by `linesight teach`.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A recording or a folder of images.
    source: String,
    /// AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list.
    #[arg(long, default_value_t = Device::default())]
    device: Device,
    /// Interleaved rounds; medians are reported.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    cpu_ms: f64,
    wall_ms: f64,
}

#[derive(Serialize)]
struct Outcome {
    source: String,
    model: String,
    device: String,
    precision: String,
    input: crate::prepare::shrink::Size,
    frames: u64,
    parts: u64,
    rounds: u32,
    /// CPU milliseconds a frame.
    decode_cpu_ms: f64,
    prepare_cpu_ms: f64,
    /// The network alone; a frame without a part costs none.
    infer_cpu_ms: f64,
    end_to_end_cpu_ms: f64,
    overhead_cpu_ms: f64,
    efficiency: f64,
    /// Frames a second, by wall time.
    decode_fps: f64,
    infer_fps: f64,
    end_to_end_fps: f64,
    latency_ms: Latency,
    stages_ms: Stages,
    /// Peak resident memory of this process.
    rss_mb: f64,
    seconds: f64,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let stop = stop_flag()?;
    let started = Instant::now();
    let source = Source::parse(&a.source)?;
    if source.is_live() || matches!(source, Source::Uri(_)) {
        return Err(Error::usage(
            "bench needs a recording or a folder: a live source gives its frames at its own rate",
        ));
    }
    let model = Model::load(&a.model)?;
    let mut backbone = line::arm(&model, &a.device, false, Hint::Throughput)?;
    let line = Line {
        name: "bench",
        site: "bench",
        source: &source,
        realtime: false,
        model: &model,
        deliver: None,
        stop: &stop,
        service: None,
    };
    let progress = Progress::new();
    // fills caches and tells how many frames and parts there are
    let warm = line::run(&line, &mut backbone, |_| Ok(()), |_, _| {})?;
    if warm.frames == 0 || warm.parts == 0 {
        return Err(Error::failed(format!("\"{}\" has no part to inspect", source.name())));
    }
    let (frames, parts) = (warm.frames, warm.parts);
    let (mut decode, mut prepare, mut infer, mut whole) = (vec![], vec![], vec![], vec![]);
    let mut last: Option<Totals> = None;
    for round in 0..a.rounds {
        if stop.load(Relaxed) {
            return Err(Error::failed("interrupted"));
        }
        progress.report("bench", u64::from(round), Some(u64::from(a.rounds)));
        decode.push(measure(frames, || decode_only(&source))?);
        prepare.push(measure(frames, || line::prepare_only(&model, &source))?);
        infer.push(measure(frames, || infer_only(&mut backbone, &model, parts))?);
        whole.push(measure(frames, || {
            last = Some(line::run(&line, &mut backbone, |_| Ok(()), |_, _| {})?);
            Ok(())
        })?);
    }
    progress.finish();
    let (decode, prepare, infer, whole) = (median(decode), median(prepare), median(infer), median(whole));
    let totals = last.ok_or_else(|| Error::failed("no round was run"))?;
    let outcome = Outcome {
        source: source.name(),
        model: format!("{}@{}", model.name, model.version),
        device: totals.device,
        precision: totals.precision,
        input: model.preparation.input,
        frames,
        parts,
        rounds: a.rounds,
        decode_cpu_ms: decode.cpu_ms,
        prepare_cpu_ms: prepare.cpu_ms - decode.cpu_ms,
        infer_cpu_ms: infer.cpu_ms,
        end_to_end_cpu_ms: whole.cpu_ms,
        overhead_cpu_ms: whole.cpu_ms - decode.cpu_ms - infer.cpu_ms,
        efficiency: (decode.cpu_ms + infer.cpu_ms) / whole.cpu_ms,
        decode_fps: 1e3 / decode.wall_ms,
        infer_fps: 1e3 / infer.wall_ms,
        end_to_end_fps: 1e3 / whole.wall_ms,
        latency_ms: totals.latency_ms,
        stages_ms: totals.stages_ms,
        rss_mb: peak_rss_mb(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if a.json {
        print_json(&outcome)?
    } else {
        print_text(&text(&outcome))?
    }
    Ok(0)
}

fn text(o: &Outcome) -> String {
    format!(
        "{}: {} frames, {} parts, input {}x{}, {} on {}, {} rounds\n\
         \x20                CPU ms a frame    fps\n\
         \x20 decode         {:>14.3} {:>6.0}\n\
         \x20 prepare        {:>14.3}\n\
         \x20 network        {:>14.3} {:>6.0}\n\
         \x20 whole pipeline {:>14.3} {:>6.0}\n\
         \x20 overhead       {:>14.3}   (whole - decode - network; efficiency {:.0} %)\n\
         \x20 capture to verdict ms: p50 {:.1}, p99 {:.1}; peak memory {:.0} MB",
        o.source,
        o.frames,
        o.parts,
        o.input.width,
        o.input.height,
        o.precision,
        o.device,
        o.rounds,
        o.decode_cpu_ms,
        o.decode_fps,
        o.prepare_cpu_ms,
        o.infer_cpu_ms,
        o.infer_fps,
        o.end_to_end_cpu_ms,
        o.end_to_end_fps,
        o.overhead_cpu_ms,
        o.efficiency * 100.0,
        o.latency_ms.p50,
        o.latency_ms.p99,
        o.rss_mb
    )
}

fn measure(frames: u64, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (cpu, wall) = (process_cpu(), Instant::now());
    work()?;
    let ms = |d: Duration| d.as_secs_f64() * 1e3 / frames as f64;
    Ok(Cost { cpu_ms: ms(process_cpu().saturating_sub(cpu)), wall_ms: ms(wall.elapsed()) })
}

fn median(mut costs: Vec<Cost>) -> Cost {
    let middle = costs.len() / 2;
    costs.sort_by(|a, b| a.wall_ms.total_cmp(&b.wall_ms));
    let wall_ms = costs[middle].wall_ms;
    costs.sort_by(|a, b| a.cpu_ms.total_cmp(&b.cpu_ms));
    Cost { cpu_ms: costs[middle].cpu_ms, wall_ms }
}

fn decode_only(source: &Source) -> Result<()> {
    let mut capture = Capture::open(source, false)?;
    while capture.next_frame()?.is_some() {}
    Ok(())
}

fn infer_only(backbone: &mut Backbone, model: &Model, parts: u64) -> Result<()> {
    let mut running = VecDeque::new();
    for _ in 0..backbone.pool_size() {
        let mut request = backbone.request()?;
        if let Some((pixels, _)) = model.reference.first() {
            request.input()?.copy_from_slice(pixels);
        }
        running.push_back((request, false));
    }
    for _ in 0..parts {
        let Some((mut request, busy)) = running.pop_front() else { break };
        if busy {
            request.wait()?;
        }
        request.start()?;
        running.push_back((request, true));
    }
    for (mut request, busy) in running {
        if busy {
            request.wait()?;
        }
    }
    Ok(())
}

/// User and system time of all threads.
fn process_cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec as u32)
}

/// Peak resident memory from the kernel's account of this process.
fn peak_rss_mb() -> f64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            s.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok())
        })
        .map_or(0.0, |kb| kb / 1024.0)
}
