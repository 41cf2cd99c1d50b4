//! Whether the threads of a line are alive. Each of them beats several times a second, whatever it waits for; one that hangs
//! in a driver, a file system or a deadlock does not, and the service manager is told by silence ([`crate::commands`], run).
//!
//! Invariants:
//! 1. A thread that has not beaten for longer than it may is named; one that rests or has ended is not (tests
//!    `silence_is_named_and_rest_is_not`, `tests/service.rs::a_hung_line_thread_stops_the_petting`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often a thread that waits beats.
pub const BEAT: Duration = Duration::from_millis(100);
/// Silence of a thread after which it counts as hung.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);
/// Silence that is granted while a model is loaded and its network compiled: a graphics unit's compiler takes minutes.
pub const LOADING: Duration = Duration::from_secs(300);
/// Silence that is granted while a source is opened.
pub const OPENING: Duration = Duration::from_secs(60);

/// Threads of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Keeps the line at work, and judges.
    Line,
    Capture,
    Prepare,
}

impl Stage {
    const ALL: [Stage; 3] = [Stage::Line, Stage::Capture, Stage::Prepare];

    fn as_str(self) -> &'static str {
        match self {
            Stage::Line => "line",
            Stage::Capture => "capture",
            Stage::Prepare => "prepare",
        }
    }
}

#[derive(Debug, Default)]
struct Heart {
    /// Milliseconds since the pulse was made, and 1; 0: no such thread at the moment.
    last: AtomicU64,
    /// Milliseconds of silence that it asked for.
    grace: AtomicU64,
}

/// The heartbeats of a line's threads.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    hearts: [Heart; 3],
}

/// Says that a thread has ended, however it does.
pub struct Alive<'a>(&'a Pulse, Stage);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.heart(self.1).last.store(0, Relaxed);
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { since: Instant::now(), hearts: Default::default() }
    }
}

impl Pulse {
    fn heart(&self, stage: Stage) -> &Heart {
        &self.hearts[stage as usize]
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.since).as_millis() as u64 + 1
    }

    /// A thread begins; it has ended when the result drops.
    pub fn begin(&self, stage: Stage) -> Alive<'_> {
        self.beat(stage);
        Alive(self, stage)
    }

    /// The thread is alive.
    pub fn beat(&self, stage: Stage) {
        let heart = self.heart(stage);
        heart.last.store(self.ms(Instant::now()), Relaxed);
        heart.grace.store(0, Relaxed);
    }

    /// The thread is alive and may be silent for so long.
    pub fn beat_for(&self, stage: Stage, silence: Duration) {
        let heart = self.heart(stage);
        heart.grace.store(silence.as_millis() as u64, Relaxed);
        heart.last.store(self.ms(Instant::now()), Relaxed);
    }

    /// The first thread that has been silent for more than `limit`, and for more than it asked for; as a person reads it.
    pub fn hung(&self, limit: Duration) -> Option<String> {
        self.hung_at(Instant::now(), limit)
    }

    fn hung_at(&self, now: Instant, limit: Duration) -> Option<String> {
        Stage::ALL.into_iter().find_map(|stage| {
            let heart = self.heart(stage);
            // read first: a beat in between makes the silence shorter
            let grace = heart.grace.load(Relaxed);
            let last = heart.last.load(Relaxed);
            let silent = self.ms(now).saturating_sub(last);
            let hung = last > 0 && silent > grace.max(limit.as_millis() as u64);
            hung.then(|| format!("its thread \"{}\" hangs: no sign of life for {} s", stage.as_str(), silent / 1000))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_named_and_rest_is_not() {
        let pulse = Pulse::default();
        let (limit, now) = (Duration::from_secs(10), Instant::now());
        let at = |s: u64| pulse.hung_at(now + Duration::from_secs(s), limit);
        assert_eq!(at(1000), None, "no thread has begun");
        let line = pulse.begin(Stage::Line);
        let capture = pulse.begin(Stage::Capture);
        assert_eq!(at(5), None);
        assert!(at(12).unwrap().contains("\"line\" hangs: no sign of life for 1"), "{:?}", at(12));
        pulse.beat_for(Stage::Line, LOADING);
        assert!(at(12).unwrap().contains("\"capture\""));
        pulse.beat_for(Stage::Capture, OPENING);
        assert_eq!(at(50), None);
        assert!(at(70).unwrap().contains("\"capture\""));
        drop(capture);
        assert_eq!(at(299), None);
        assert!(at(310).unwrap().contains("\"line\""));
        pulse.beat(Stage::Line);
        assert!(at(12).unwrap().contains("\"line\""), "what was asked for is over with the next beat");
        drop(line);
        assert_eq!(at(1000), None);
    }
}
