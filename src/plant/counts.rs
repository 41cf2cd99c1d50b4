//! Parts a minute, for the audit log.

use crate::event::LineCounters;
use crate::observe::audit::{Audit, Entry};
use crate::observe::{LineStatus, Snapshot};
use std::time::{Duration, Instant};

/// How often parts are said.
const EVERY: Duration = Duration::from_secs(60);

/// What was said of a line's parts so far.
pub(super) struct Counted {
    said: LineCounters,
    at: Instant,
}

impl Counted {
    pub fn new() -> Self {
        Counted { said: LineCounters::default(), at: Instant::now() }
    }

    pub fn say_if_due(&mut self, status: &LineStatus, audit: &Audit) {
        if self.at.elapsed() >= EVERY {
            self.say(&status.snapshot(), audit);
        }
    }

    /// Says what was judged since the last time; a minute without parts says nothing.
    pub fn say(&mut self, now: &Snapshot, audit: &Audit) {
        let seconds = (self.at.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.at = Instant::now();
        let (c, said) = (&now.counters, &self.said);
        if c.parts == said.parts {
            return;
        }
        audit.say(Entry::Parts {
            line: now.line.clone(),
            seconds,
            passed: c.passed - said.passed,
            rejected: c.rejected - said.rejected,
            unsure: c.unsure - said.unsure,
            missed: c.missed - said.missed,
        });
        self.said = c.clone();
    }
}
