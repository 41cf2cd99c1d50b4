//! `linesight bench`: what a model costs on this machine, in CPU time a frame, from one interleaved run ([`crate::bench`]).

use super::terminal::{Progress, stop_flag};
use super::{print_json, print_text};
use crate::bench::{self, Lines, Options, Outcome, Spread};
use crate::capture::Source;
use crate::detect::Device;
use crate::error::Result;
use crate::line::Latency;
use std::fmt::Write;
use std::path::PathBuf;

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
    /// Also that many lines in one process, for example 2,4.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    lines: Vec<usize>,
    /// Whole lines at the recording's own rate, as live ones: the network for latency, newest frames first.
    #[arg(long)]
    realtime: bool,
    /// Interleaved rounds; medians are reported.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let stop = stop_flag()?;
    let source = Source::parse(&a.source)?;
    let progress = Progress::new();
    let options = Options {
        model: &a.model,
        source: &source,
        device: &a.device,
        lines: &a.lines,
        rounds: a.rounds,
        realtime: a.realtime,
    };
    let outcome = bench::run(&options, &stop, &|done, of| progress.report("bench", done, Some(of)));
    progress.finish();
    let outcome = outcome?;
    if a.json {
        print_json(&outcome)?
    } else {
        print_text(text(&outcome).trim_end())?
    }
    Ok(0)
}

fn text(o: &Outcome) -> String {
    let mut t = String::new();
    // writing to a String cannot fail
    let _ = table(&mut t, o);
    t
}

fn table(t: &mut String, o: &Outcome) -> std::fmt::Result {
    let m = &o.machine;
    writeln!(t, "{}: {} frames, {} parts; {} rounds", o.source, o.frames, o.parts, o.rounds)?;
    writeln!(
        t,
        "{}, {}, trigger {}, registration {}, input {}x{}, {} on {}, {} requests",
        o.model, o.method, o.trigger, o.registration, o.input.width, o.input.height, o.precision, o.device, o.requests
    )?;
    writeln!(
        t,
        "{}, {} cores{}",
        m.cpu,
        m.cores,
        if m.debug_build { "; a debug build: figures say nothing" } else { "" }
    )?;
    writeln!(t, "                CPU ms a frame    (min to max)      fps")?;
    let mut row = |name: &str, ms: f64, s: &Spread, fps: Option<f64>| {
        let fps = fps.map_or(String::new(), |f| format!("{f:>9.0}"));
        writeln!(t, "  {name:<14} {ms:>13.3}   {:>6.3} to {:>6.3}{fps}", s.min, s.max)
    };
    let s = &o.spread;
    row("decode", o.decode_cpu_ms, &s.decode, Some(o.decode_fps))?;
    row("prepare", o.prepare_cpu_ms, &s.prepare, None)?;
    row("network", o.infer_cpu_ms, &s.infer, Some(o.infer_fps))?;
    row("head", o.head_cpu_ms, &s.head, Some(o.head_fps))?;
    row("whole", o.end_to_end_cpu_ms, &s.end_to_end, Some(o.end_to_end_fps))?;
    row("overhead", o.overhead_cpu_ms, &s.overhead, None)?;
    writeln!(
        t,
        "  overhead = whole - decode - network; {:.3} of it is neither prepare nor head; efficiency {:.0} %",
        o.rest_cpu_ms,
        o.efficiency * 100.0
    )?;
    match o.allocations_per_frame {
        Some(a) => writeln!(
            t,
            "  allocations a frame: {:.2} of frame size, {:.1} small, {:.1} kB in all",
            a.frame_sized,
            a.small,
            a.bytes / 1e3
        )?,
        None => writeln!(t, "  allocations a frame: too few frames to say")?,
    }
    if let Some(alone) = &o.infer_alone_ms {
        writeln!(t, "  single inferences, nothing else running, ms: {}", quantiles(alone))?;
    }
    for l in &o.lines {
        lines(t, l, o.realtime)?;
    }
    Ok(())
}

fn lines(t: &mut String, l: &Lines, realtime: bool) -> std::fmt::Result {
    let s = if l.lines == 1 { "" } else { "s" };
    writeln!(
        t,
        "{} line{s}: {:.3} CPU ms a frame, {:.0} fps, {:.0} MB, {} dropped, {} missed",
        l.lines, l.end_to_end_cpu_ms, l.end_to_end_fps, l.rss_mb, l.dropped, l.missed
    )?;
    let stages = &l.stages_ms;
    for (name, of) in [
        ("capture to verdict", &l.latency_ms),
        ("decode", &stages.decode),
        ("prepare", &stages.prepare),
        ("network", &stages.infer),
        ("judge", &stages.judge),
        ("deliver", &stages.deliver),
    ] {
        writeln!(t, "  {name:<20} ms: {}", quantiles(of))?;
    }
    if let (true, Some(behind)) = (realtime, &l.behind_ms) {
        writeln!(t, "  {:<20} ms: {}", "behind the source", quantiles(behind))?;
    }
    Ok(())
}

fn quantiles(l: &Latency) -> String {
    format!("p50 {:>7.2}  p95 {:>7.2}  p99 {:>7.2}  max {:>7.2}", l.p50, l.p95, l.p99, l.max)
}
