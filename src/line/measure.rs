//! Times of the stages, in HDR histograms.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Quantiles of a time, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

/// All stages: decode and prepare for each frame, the others for each part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stages {
    /// Waiting for the pipeline's next frame.
    pub decode: Latency,
    /// Locating, registration, shrinking, colour conversion.
    pub prepare: Latency,
    /// From the start of the inference until its result is taken.
    pub infer: Latency,
    /// Head, map, verdict, regions.
    pub judge: Latency,
    /// Handing the verdict to ledger and spool.
    pub deliver: Latency,
}

/// Collects durations; up to a minute at 0.1 % resolution.
pub(super) struct Recorder(Mutex<Option<Histogram<u64>>>);

const LONGEST_US: u64 = 60_000_000;

impl Recorder {
    pub(super) fn new() -> Self {
        // the bounds are constants that the histogram accepts
        Recorder(Mutex::new(Histogram::new_with_bounds(1, LONGEST_US, 3).ok()))
    }

    pub(super) fn record(&self, time: Duration) {
        if let Some(h) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            h.saturating_record((time.as_micros() as u64).clamp(1, LONGEST_US));
        }
    }

    fn quantile(&self, q: f64) -> f64 {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.as_ref().filter(|h| !h.is_empty()).map_or(0.0, |h| h.value_at_quantile(q) as f64 / 1e3)
    }

    pub(super) fn latency(&self) -> Latency {
        Latency { p50: self.quantile(0.5), p95: self.quantile(0.95), p99: self.quantile(0.99), max: self.quantile(1.0) }
    }
}
