//! Whole lines: one, or several in one process that share the compiled network.

use super::allocations::{Allocations, Session};
use super::{Cost, measure};
use crate::capture::{CameraOptions, Source, Watchdog};
use crate::detect::Backbone;
use crate::error::{Error, Result};
use crate::judge::debounce::Debounce;
use crate::line::{self, FRAMES_WAITING, Judged, Latency, Line, Network, Overload, Service, Stages, Totals};
use crate::model::Model;
use crate::observe::LineStatus;
use crate::observe::health::HealthWatch;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

/// Frames that go by before allocations are counted: until then buffers find their size.
const WARM_UP: u64 = 10;

/// What lines are made of.
pub(super) struct Setup<'a> {
    pub play: Play<'a>,
    /// One for each line, as in `linesight run`.
    pub models: Vec<Model>,
    pub backbone: Backbone,
}

/// What lines read, and how.
#[derive(Clone, Copy)]
pub(super) struct Play<'a> {
    pub source: &'a Source,
    pub realtime: bool,
    pub stop: &'a AtomicBool,
}

/// What became of whole lines.
#[derive(Debug, Clone)]
pub(super) struct Whole {
    /// For each frame of each line.
    pub cost: Cost,
    /// Of all lines.
    pub frames: u64,
    pub parts: u64,
    pub dropped: u64,
    pub missed: u64,
    pub requests: usize,
    /// Each figure of the line that has the highest.
    pub latency_ms: Latency,
    pub stages_ms: Stages,
    /// How much later than at the source's own rate frames left the decoder; at the source's rate only.
    pub behind_ms: Option<Latency>,
}

/// One line's run.
struct Ran {
    totals: Totals,
    dropped: u64,
    behind: Vec<f64>,
}

impl Setup<'_> {
    /// Loads the package once for each of `n` lines.
    pub fn load_up_to(&mut self, n: usize, package: &Path) -> Result<()> {
        while self.models.len() < n {
            self.models.push(Model::load(package)?);
        }
        Ok(())
    }

    /// Runs `n` lines from beginning to end.
    pub fn whole(&mut self, n: usize, progress: impl Fn(u64, Option<u64>) + Sync) -> Result<Whole> {
        let networks = (0..n).map(|_| Network::share(&mut self.backbone, n)).collect::<Result<Vec<_>>>()?;
        let requests = networks.first().map_or(0, Network::requests);
        let (play, progress) = (self.play, &progress);
        let (cost, ran) = measure(1, || {
            std::thread::scope(|scope| {
                let lines: Vec<_> = networks
                    .into_iter()
                    .zip(&self.models)
                    .map(|(network, model)| scope.spawn(move || play.one(model, network, progress)))
                    .collect();
                lines
                    .into_iter()
                    .map(|l| {
                        l.join().unwrap_or_else(|_| Err(Error::failed("a line panicked; this is a bug in linesight")))
                    })
                    .collect::<Result<Vec<Ran>>>()
            })
        })?;
        let sum = |of: fn(&Ran) -> u64| ran.iter().map(of).sum::<u64>();
        let frames = sum(|r| r.totals.frames);
        let each = 1.0 / frames.max(1) as f64;
        let behind: Vec<f64> = ran.iter().flat_map(|r| r.behind.iter().copied()).collect();
        Ok(Whole {
            cost: Cost { cpu_ms: cost.cpu_ms * each, wall_ms: cost.wall_ms * each },
            frames,
            parts: sum(|r| r.totals.parts),
            dropped: sum(|r| r.dropped),
            missed: sum(|r| r.totals.missed),
            requests,
            latency_ms: highest(ran.iter().map(|r| r.totals.latency_ms)),
            stages_ms: Stages {
                decode: highest(ran.iter().map(|r| r.totals.stages_ms.decode)),
                prepare: highest(ran.iter().map(|r| r.totals.stages_ms.prepare)),
                infer: highest(ran.iter().map(|r| r.totals.stages_ms.infer)),
                judge: highest(ran.iter().map(|r| r.totals.stages_ms.judge)),
                deliver: highest(ran.iter().map(|r| r.totals.stages_ms.deliver)),
            },
            behind_ms: self.play.realtime.then(|| quantiles(behind)),
        })
    }

    /// What one line allocates for each frame once it runs steadily; none when this program's allocator does not count.
    pub fn allocations(&mut self, frame_sized: usize) -> Result<Option<Allocations>> {
        let network = Network::share(&mut self.backbone, 1)?;
        let counted: RefCell<Option<(Session, u64)>> = RefCell::new(None);
        let last = RefCell::new(None);
        let count = |frames: u64, _: Option<u64>| {
            let mut counted = counted.borrow_mut();
            match &*counted {
                Some((session, from)) if frames > *from => {
                    *last.borrow_mut() = Some(session.per_frame(frames - from));
                }
                Some(_) => {}
                None if frames >= WARM_UP => *counted = Session::start(frame_sized).map(|s| (s, frames)),
                None => {}
            }
        };
        let Some(model) = self.models.first() else { return Ok(None) };
        self.play.one(model, network, count)?;
        Ok(last.into_inner())
    }
}

impl Play<'_> {
    /// Runs one line.
    fn one(self, model: &Model, network: Network, progress: impl Fn(u64, Option<u64>)) -> Result<Ran> {
        let service = if self.realtime { Some(served(model, self.source)?) } else { None };
        let line = Line {
            name: "bench",
            site: "bench",
            source: self.source,
            realtime: self.realtime,
            model,
            deliver: None,
            stop: self.stop,
            service: service.as_ref(),
        };
        // when each frame came, and when it should have: both milliseconds from anywhere
        let mut came: Vec<f64> = Vec::with_capacity(if self.realtime { 1 << 16 } else { 0 });
        let started = Instant::now();
        let look = |judged: Judged| {
            if let (true, Some(pts)) = (self.realtime, judged.frame.pts_ns) {
                let at = judged.frame.captured.saturating_duration_since(started);
                came.push(at.as_secs_f64() * 1e3 - pts as f64 / 1e6);
            }
            Ok(())
        };
        let totals = line::run_on(&line, network, look, progress)?;
        let counted = service.map_or(0, |s| s.status.snapshot().counters.dropped.values().sum());
        let soonest = came.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Ran { dropped: totals.dropped + counted, totals, behind: came.into_iter().map(|c| c - soonest).collect() })
    }
}

/// What a line has that serves a plant, but for the plant.
fn served(model: &Model, source: &Source) -> Result<Service> {
    let status = Arc::new(LineStatus::new("bench", &source.name()));
    Ok(Service {
        camera: CameraOptions::default(),
        watchdog: Watchdog::default(),
        overload: Overload::Newest,
        queue: FRAMES_WAITING,
        deadline: None,
        debounce: Debounce::default(),
        next_part: AtomicU64::new(0),
        respond: Vec::new(),
        health: HealthWatch::start(model, status.clone())?,
        status,
        lot: None,
        serial: None,
        repeat: false,
        live_picture: None,
    })
}

/// The highest of each quantile.
pub(super) fn highest(of: impl Iterator<Item = Latency>) -> Latency {
    of.fold(Latency::default(), |a, b| Latency {
        p50: a.p50.max(b.p50),
        p95: a.p95.max(b.p95),
        p99: a.p99.max(b.p99),
        max: a.max.max(b.max),
    })
}

fn quantiles(mut of: Vec<f64>) -> Latency {
    of.sort_by(f64::total_cmp);
    let at = |q: f64| of.get((q * of.len() as f64).ceil() as usize).or(of.last()).copied().unwrap_or(0.0);
    Latency { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: of.last().copied().unwrap_or(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_the_highest_of_them() {
        let q = quantiles((0..1000).rev().map(f64::from).collect());
        assert_eq!(q, Latency { p50: 500.0, p95: 950.0, p99: 990.0, max: 999.0 });
        assert_eq!(quantiles(Vec::new()), Latency::default());
        let other = Latency { p50: 600.0, p95: 1.0, p99: 1.0, max: 1.0 };
        assert_eq!(highest([q, other].into_iter()), Latency { p50: 600.0, ..q });
    }
}
