//! The state and counters of one line. Written by the line's own threads, read by metrics, `status` and the line report.
//!
//! Invariants:
//! 1. Writing never waits for a reader: counters are atomics, and the locks are held for a copy of a few words, once for each
//!    part or change of state, never for each pixel.
//! 2. `parts` of a snapshot is the sum of the four verdicts (test `a_snapshot_adds_up`).

use super::pulse::{HUNG_AFTER, Pulse};
use crate::event::{Check, LineCounters, LineState, ModelId, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the latency histogram, milliseconds from trigger to verdict.
pub const LATENCY_BUCKETS_MS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 20.0, 33.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0];
/// Frames over which the rate is measured: a rate for each second of about this many.
const RATE_WINDOW: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Now {
    state: LineState,
    reason: Option<String>,
    since: Instant,
    last_frame: Option<Instant>,
    /// Start of the rate's window, frames in it, and the rate of the one before.
    window: (Instant, u64),
    fps: f64,
    dropped: BTreeMap<String, u64>,
    health: BTreeMap<String, Check>,
    drift: BTreeMap<String, Check>,
    model: Option<(ModelId, f32)>,
}

/// One line as it is now.
#[derive(Debug)]
pub struct LineStatus {
    pub name: String,
    /// As configured, without credentials.
    pub source: String,
    now: Mutex<Now>,
    frames: AtomicU64,
    /// In the order pass, reject, unsure, missed.
    verdicts: [AtomicU64; 4],
    late: AtomicU64,
    reconnects: AtomicU64,
    /// Counts for each bucket, and above the last.
    latency: [AtomicU64; LATENCY_BUCKETS_MS.len() + 1],
    latency_sum_us: AtomicU64,
    /// Whether its threads are alive.
    pub pulse: Pulse,
    /// Its first attempt has come to frames or to an error.
    started: AtomicBool,
}

/// A copy of a line's status at one moment; what `linesight status --json` prints for each line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub line: String,
    pub source: String,
    pub at: Timestamp,
    pub state: LineState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds in this state.
    pub state_age_s: f64,
    /// Which of its threads hangs, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung: Option<String>,
    /// None before the first frame.
    pub last_frame_age_s: Option<f64>,
    pub fps: f64,
    pub counters: LineCounters,
    pub health: BTreeMap<String, Check>,
    pub drift: BTreeMap<String, Check>,
    pub model: Option<ModelId>,
    pub threshold: Option<f32>,
    /// Parts for each of [`LATENCY_BUCKETS_MS`] (not cumulative) and above the last.
    pub latency: Vec<u64>,
    pub latency_sum_ms: f64,
}

impl LineStatus {
    pub fn new(name: &str, source: &str) -> Self {
        let now = Instant::now();
        LineStatus {
            name: name.to_owned(),
            source: source.to_owned(),
            now: Mutex::new(Now {
                state: LineState::Starting,
                reason: None,
                since: now,
                last_frame: None,
                window: (now, 0),
                fps: 0.0,
                dropped: BTreeMap::new(),
                health: BTreeMap::new(),
                drift: BTreeMap::new(),
                model: None,
            }),
            frames: AtomicU64::new(0),
            verdicts: Default::default(),
            late: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            latency: Default::default(),
            latency_sum_us: AtomicU64::new(0),
            pulse: Pulse::default(),
            started: AtomicBool::new(false),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state; returns what it was. The same state again keeps its age.
    pub fn set_state(&self, state: LineState, reason: Option<String>) -> LineState {
        let mut now = self.now();
        let before = now.state;
        if before != state {
            now.since = Instant::now();
        }
        (now.state, now.reason) = (state, reason);
        before
    }

    pub fn state(&self) -> LineState {
        self.now().state
    }

    /// The line's first attempt has come so far that it takes frames, or has failed.
    pub fn set_started(&self) {
        self.started.store(true, Relaxed);
    }

    /// As [`LineStatus::set_started`] has it.
    pub fn has_started(&self) -> bool {
        self.started.load(Relaxed)
    }

    /// A frame was taken from the source: the line is live.
    pub fn frame(&self) {
        self.frames.fetch_add(1, Relaxed);
        let at = Instant::now();
        let mut now = self.now();
        now.last_frame = Some(at);
        now.window.1 += 1;
        let spent = at - now.window.0;
        if spent >= RATE_WINDOW {
            now.fps = now.window.1 as f64 / spent.as_secs_f64();
            now.window = (at, 0);
        }
        if now.state != LineState::Live {
            (now.state, now.reason, now.since) = (LineState::Live, None, at);
        }
    }

    /// Frames that were not inspected.
    pub fn dropped(&self, reason: &str, frames: u64) {
        let mut now = self.now();
        match now.dropped.get_mut(reason) {
            Some(n) => *n += frames,
            None => drop(now.dropped.insert(reason.to_owned(), frames)),
        }
    }

    /// The source was opened again.
    pub fn reconnected(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }

    /// A part has its verdict, `latency` after its trigger.
    pub fn verdict(&self, verdict: Verdict, latency: Duration, late: bool) {
        let i = match verdict {
            Verdict::Pass => 0,
            Verdict::Reject => 1,
            Verdict::Unsure => 2,
            Verdict::Missed => 3,
        };
        self.verdicts[i].fetch_add(1, Relaxed);
        self.late.fetch_add(u64::from(late), Relaxed);
        let ms = latency.as_secs_f64() * 1e3;
        let bucket = LATENCY_BUCKETS_MS.iter().position(|b| ms <= *b).unwrap_or(LATENCY_BUCKETS_MS.len());
        self.latency[bucket].fetch_add(1, Relaxed);
        self.latency_sum_us.fetch_add(latency.as_micros() as u64, Relaxed);
    }

    pub fn set_model(&self, model: ModelId, threshold: f32) {
        self.now().model = Some((model, threshold));
    }

    /// What the camera's checks say now.
    pub fn health(&self) -> BTreeMap<String, Check> {
        self.now().health.clone()
    }

    /// Checks whose figures are no numbers are left out: JSON has no word for them.
    pub fn set_health(&self, health: BTreeMap<String, Check>) {
        self.now().health = finite(health);
    }

    /// As [`LineStatus::set_health`].
    pub fn set_drift(&self, drift: BTreeMap<String, Check>) {
        self.now().drift = finite(drift);
    }

    pub fn snapshot(&self) -> Snapshot {
        let [passed, rejected, unsure, missed] = [0, 1, 2, 3].map(|i| self.verdicts[i].load(Relaxed));
        let now = self.now().clone();
        let spent = now.window.0.elapsed();
        // a source that has stopped has no rate
        let fps = if spent > 2 * RATE_WINDOW { now.window.1 as f64 / spent.as_secs_f64() } else { now.fps };
        Snapshot {
            line: self.name.clone(),
            source: self.source.clone(),
            at: Timestamp::now(),
            state: now.state,
            reason: now.reason,
            state_age_s: now.since.elapsed().as_secs_f64(),
            hung: self.pulse.hung(HUNG_AFTER),
            last_frame_age_s: now.last_frame.map(|t| t.elapsed().as_secs_f64()),
            fps,
            counters: LineCounters {
                frames: self.frames.load(Relaxed),
                parts: passed + rejected + unsure + missed,
                passed,
                rejected,
                unsure,
                missed,
                late: self.late.load(Relaxed),
                dropped: now.dropped,
                reconnects: self.reconnects.load(Relaxed),
            },
            health: now.health,
            drift: now.drift,
            threshold: now.model.as_ref().map(|m| m.1),
            model: now.model.map(|m| m.0),
            latency: self.latency.iter().map(|n| n.load(Relaxed)).collect(),
            latency_sum_ms: self.latency_sum_us.load(Relaxed) as f64 / 1e3,
        }
    }
}

fn finite(mut checks: BTreeMap<String, Check>) -> BTreeMap<String, Check> {
    checks.retain(|_, c| c.value.is_finite() && c.usual.is_finite());
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_adds_up() {
        let status = LineStatus::new("a", "cam");
        assert_eq!(status.snapshot().state, LineState::Starting);
        status.frame();
        status.frame();
        status.verdict(Verdict::Pass, Duration::from_millis(4), false);
        status.verdict(Verdict::Missed, Duration::from_secs(9), true);
        status.dropped("overload", 3);
        let s = status.snapshot();
        assert_eq!(s.state, LineState::Live);
        assert_eq!((s.counters.frames, s.counters.parts, s.counters.passed, s.counters.missed), (2, 2, 1, 1));
        assert_eq!(s.counters.late, 1);
        assert_eq!(s.counters.dropped["overload"], 3);
        assert_eq!((s.latency[2], s.latency[LATENCY_BUCKETS_MS.len()]), (1, 1));
        assert_eq!(s.latency.iter().sum::<u64>(), s.counters.parts);
    }
}
