//! What `linesight bench --json` prints; documented in docs/6-operate.md.

use super::lines::{Setup, Whole, highest};
use super::{Allocations, Cost, Machine, Rounds, median};
use crate::line::{Latency, Stages};
use crate::prepare::shrink::Size;
use serde::Serialize;

/// A figure of several rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub max: f64,
    #[serde(skip)]
    pub median: f64,
}

pub(super) fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values[..] {
        [] => Spread::default(),
        [min, .., max] => Spread { min, max, median: values[values.len() / 2] },
        [one] => Spread { min: one, max: one, median: one },
    }
}

/// The lowest and highest of the rounds, CPU milliseconds a frame.
#[derive(Debug, Clone, Serialize)]
pub struct Spreads {
    pub decode: Spread,
    pub prepare: Spread,
    pub infer: Spread,
    pub head: Spread,
    pub end_to_end: Spread,
    /// Each round's own whole less its own parts.
    pub overhead: Spread,
}

/// Whole lines in one process.
#[derive(Debug, Clone, Serialize)]
pub struct Lines {
    pub lines: usize,
    /// Inferences on their way at once, for each line.
    pub requests: usize,
    /// CPU milliseconds a frame of one line.
    pub end_to_end_cpu_ms: f64,
    pub spread: Spread,
    /// Of all lines together, by wall time.
    pub end_to_end_fps: f64,
    /// Quantiles: medians over the rounds, of each the line with the highest; max is that of all rounds.
    pub latency_ms: Latency,
    pub stages_ms: Stages,
    /// Of all rounds.
    pub dropped: u64,
    pub missed: u64,
    /// With the source's own rate: how much later than at that rate frames left the decoder.
    pub behind_ms: Option<Latency>,
    /// Peak resident memory while these lines ran for the first time; that of one line counts from the program's start.
    pub rss_mb: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub source: String,
    pub model: String,
    pub method: &'static str,
    pub trigger: &'static str,
    pub registration: &'static str,
    pub device: String,
    pub precision: String,
    pub input: Size,
    pub frames: u64,
    pub parts: u64,
    pub source_fps: Option<f64>,
    pub rounds: u32,
    /// Whole lines ran at the source's own rate.
    pub realtime: bool,
    /// Inferences on their way at once, in the network alone and in one line.
    pub requests: usize,
    /// CPU milliseconds a frame.
    pub decode_cpu_ms: f64,
    pub prepare_cpu_ms: f64,
    /// The network alone; a frame without a part costs none.
    pub infer_cpu_ms: f64,
    pub head_cpu_ms: f64,
    pub end_to_end_cpu_ms: f64,
    pub overhead_cpu_ms: f64,
    /// Of the overhead what is neither preparation nor head.
    pub rest_cpu_ms: f64,
    pub efficiency: f64,
    pub spread: Spreads,
    /// Frames a second, by wall time.
    pub decode_fps: f64,
    pub prepare_fps: f64,
    pub infer_fps: f64,
    pub head_fps: f64,
    pub end_to_end_fps: f64,
    pub latency_ms: Latency,
    pub stages_ms: Stages,
    /// With the source's own rate: single inferences at that rate, nothing else running.
    pub infer_alone_ms: Option<Latency>,
    /// Rust's allocations of one line that runs steadily.
    pub allocations_per_frame: Option<Allocations>,
    /// Peak resident memory of this process with one line.
    pub rss_mb: f64,
    pub lines: Vec<Lines>,
    pub machine: Machine,
    pub seconds: f64,
}

/// Medians of the quantiles, the highest of the maxima.
fn middle(of: &[Latency]) -> Latency {
    let median = |q: fn(&Latency) -> f64| spread(of.iter().map(q)).median;
    Latency {
        p50: median(|l| l.p50),
        p95: median(|l| l.p95),
        p99: median(|l| l.p99),
        max: highest(of.iter().copied()).max,
    }
}

impl Lines {
    fn of(lines: usize, rounds: &[Whole], rss_mb: f64) -> Lines {
        let middle_of = |of: fn(&Whole) -> Latency| middle(&rounds.iter().map(of).collect::<Vec<_>>());
        let costs: Vec<Cost> = rounds.iter().map(|w| w.cost).collect();
        let behind: Vec<Latency> = rounds.iter().filter_map(|w| w.behind_ms).collect();
        let cost = median(&costs);
        Lines {
            lines,
            requests: rounds.first().map_or(0, |w| w.requests),
            end_to_end_cpu_ms: cost.cpu_ms,
            spread: spread(costs.iter().map(|c| c.cpu_ms)),
            end_to_end_fps: 1e3 / cost.wall_ms,
            latency_ms: middle_of(|w| w.latency_ms),
            stages_ms: Stages {
                decode: middle_of(|w| w.stages_ms.decode),
                prepare: middle_of(|w| w.stages_ms.prepare),
                infer: middle_of(|w| w.stages_ms.infer),
                judge: middle_of(|w| w.stages_ms.judge),
                deliver: middle_of(|w| w.stages_ms.deliver),
            },
            dropped: rounds.iter().map(|w| w.dropped).sum(),
            missed: rounds.iter().map(|w| w.missed).sum(),
            behind_ms: (!behind.is_empty()).then(|| middle(&behind)),
            rss_mb,
        }
    }
}

impl Outcome {
    /// What the rounds gave; counts are left to the caller.
    pub(super) fn of(setup: &Setup<'_>, rounds: &Rounds, numbers: &[usize], memory: &[f64]) -> Outcome {
        let model = &setup.models[0];
        let [decode, prepare, infer, head] =
            [&rounds.decode, &rounds.prepare, &rounds.infer, &rounds.head].map(|c| median(c));
        let lines: Vec<Lines> =
            numbers.iter().zip(&rounds.whole).zip(memory).map(|((&n, whole), &rss)| Lines::of(n, whole, rss)).collect();
        let one = lines[0].clone();
        let overhead = one.end_to_end_cpu_ms - decode.cpu_ms - infer.cpu_ms;
        let preparing = prepare.cpu_ms - decode.cpu_ms;
        let cpu = |of: &[Cost]| spread(of.iter().map(|c| c.cpu_ms));
        let parts = rounds.decode.iter().zip(&rounds.infer).zip(&rounds.whole[0]);
        Outcome {
            source: setup.play.source.name(),
            model: format!("{}@{}", model.name, model.version),
            method: model.method.as_str(),
            trigger: model.trigger.as_str(),
            registration: model.preparation.registration.as_str(),
            device: setup.backbone.device().to_owned(),
            precision: setup.backbone.precision().as_str().to_owned(),
            input: model.preparation.input,
            frames: 0,
            parts: 0,
            source_fps: None,
            rounds: 0,
            realtime: setup.play.realtime,
            requests: one.requests,
            decode_cpu_ms: decode.cpu_ms,
            prepare_cpu_ms: preparing,
            infer_cpu_ms: infer.cpu_ms,
            head_cpu_ms: head.cpu_ms,
            end_to_end_cpu_ms: one.end_to_end_cpu_ms,
            overhead_cpu_ms: overhead,
            rest_cpu_ms: overhead - preparing - head.cpu_ms,
            efficiency: (decode.cpu_ms + infer.cpu_ms) / one.end_to_end_cpu_ms,
            spread: Spreads {
                decode: cpu(&rounds.decode),
                prepare: spread(rounds.prepare.iter().zip(&rounds.decode).map(|(p, d)| p.cpu_ms - d.cpu_ms)),
                infer: cpu(&rounds.infer),
                head: cpu(&rounds.head),
                end_to_end: one.spread,
                overhead: spread(parts.map(|((d, i), w)| w.cost.cpu_ms - d.cpu_ms - i.cpu_ms)),
            },
            decode_fps: 1e3 / decode.wall_ms,
            prepare_fps: 1e3 / prepare.wall_ms,
            infer_fps: 1e3 / infer.wall_ms,
            head_fps: 1e3 / head.wall_ms,
            end_to_end_fps: one.end_to_end_fps,
            latency_ms: one.latency_ms,
            stages_ms: one.stages_ms,
            infer_alone_ms: (!rounds.alone.is_empty()).then(|| middle(&rounds.alone)),
            allocations_per_frame: None,
            rss_mb: one.rss_mb,
            lines,
            machine: Machine::read(),
            seconds: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_of_few_and_many() {
        assert_eq!(spread([].into_iter()), Spread::default());
        assert_eq!(spread([2.0].into_iter()), Spread { min: 2.0, max: 2.0, median: 2.0 });
        assert_eq!(spread([3.0, 1.0, 2.0].into_iter()), Spread { min: 1.0, max: 3.0, median: 2.0 });
    }
}
