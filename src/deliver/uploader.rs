//! The thread "deliver-upload": takes the oldest anomaly from the spool, sends it, reports what came of it to the writer and
//! waits for the commit before it takes the next.
//!
//! Invariants, each with the test that holds it (tests/delivery.rs where not said otherwise):
//! 1. An anomaly leaves the spool only after a 2xx: `each_fault_in_turn_delivers_once`.
//! 2. Oldest first; an anomaly that the endpoint refuses is set aside and does not hold up the others:
//!    `refused_item_does_not_block`.
//! 3. An anomaly that fails again and again while others would succeed is set aside too: `failing_item_is_found_out`.
//! 4. Failures are followed by pauses that double, up to `Limits::retry_slowest`; `Retry-After` prolongs them:
//!    `pauses_double_up_to_the_slowest` (here), `retry_after_is_respected`.
//! 5. Nothing is given up: what was refused is delivered once a person has mended the endpoint: `mended_endpoint_gets_all`.
//! 6. At most one warning in [`WARN_EVERY`]: `warnings_are_rare` (here).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::database::{Outcome, Reader, Spooled};
use super::wire::{Answer, Client};
use super::writer::{Settle, SettleAnomaly};
use super::{Limits, Shared, add};

/// Failures of the oldest anomaly after which the next one is tried in between, to learn whose fault it is.
const SUSPECT: u32 = 5;
/// Refusals in a row that cost no pause.
const FREE_REFUSALS: u32 = 3;
/// The longest pause before a fresh anomaly when those before it were refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Uploader {
    client: Client,
    reader: Reader,
    outcomes: Sender<Settle>,
    wake: Receiver<()>,
    shared: Arc<Shared>,
    limits: Limits,
    /// Nothing is sent before this.
    pause: Option<Instant>,
    /// Nothing that was set aside is sent before this.
    aside_pause: Option<Instant>,
    /// Failures in a row of any kind but refusals, and refusals in a row.
    failures: u32,
    refusals: u32,
    /// The oldest anomaly while it keeps failing.
    suspect: Option<Suspect>,
    warnings: Warnings,
}

/// At most one in [`WARN_EVERY`].
#[derive(Default)]
struct Warnings {
    last: Option<Instant>,
    unsaid: u64,
}

impl Warnings {
    /// Whether to warn now, and how many were left unsaid since the last one.
    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < WARN_EVERY) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

struct Suspect {
    id: Uuid,
    failures: u32,
    /// Another one got through meanwhile.
    others_pass: bool,
}

enum Step {
    Send(Box<Spooled>),
    Wait(Duration),
}

impl Uploader {
    pub fn new(
        client: Client,
        reader: Reader,
        outcomes: Sender<Settle>,
        wake: Receiver<()>,
        shared: Arc<Shared>,
        limits: Limits,
    ) -> Self {
        Uploader {
            client,
            reader,
            outcomes,
            wake,
            shared,
            limits,
            pause: None,
            aside_pause: None,
            failures: 0,
            refusals: 0,
            suspect: None,
            warnings: Warnings::default(),
        }
    }

    pub fn run(mut self) {
        while !self.shared.stopping() {
            match self.next() {
                Ok(Step::Send(item)) => {
                    if !self.attempt(&item) {
                        return;
                    }
                }
                Ok(Step::Wait(time)) => {
                    let _ = self.wake.recv_timeout(time);
                }
                Err(e) => {
                    self.failed(&format!("cannot read the spool: {e}"));
                    self.failures = self.failures.saturating_add(1);
                    self.pause = Some(Instant::now() + self.delay(self.failures));
                }
            }
        }
    }

    fn next(&self) -> rusqlite::Result<Step> {
        let now = Instant::now();
        if let Some(left) = self.pause.and_then(|until| until.checked_duration_since(now)) {
            return Ok(Step::Wait(left));
        }
        // between two attempts of a suspect one of the item behind it
        let skip = match &self.suspect {
            Some(s) if s.failures >= SUSPECT && s.failures % 2 == 0 && !s.others_pass => 1,
            _ => 0,
        };
        if skip > 0
            && let Some(item) = self.reader.oldest(skip)?
        {
            return Ok(Step::Send(Box::new(item)));
        }
        if let Some(item) = self.reader.oldest(0)? {
            return Ok(Step::Send(Box::new(item)));
        }
        if let Some(left) = self.aside_pause.and_then(|until| until.checked_duration_since(now)) {
            return Ok(Step::Wait(left));
        }
        let wall = Timestamp::now();
        let most = self.limits.retry_slowest.max(self.limits.retry_after_most);
        if let Some(item) = self.reader.oldest_aside(wall, most)? {
            return Ok(Step::Send(Box::new(item)));
        }
        let next = self.reader.next_aside()?;
        Ok(Step::Wait(match next {
            None => Duration::from_secs(3600),
            Some(due) => Duration::try_from(due.duration_since(wall)).unwrap_or_default().max(Duration::from_millis(1)),
        }))
    }

    /// Sends once and has the outcome committed; false when it is time to stop.
    fn attempt(&mut self, item: &Spooled) -> bool {
        add(&self.shared.attempts, 1);
        let answer = self.client.send(item, Timestamp::now());
        debug!(id = %item.id, attempt = item.attempts + 1, ?answer, "sent");
        let (outcome, bytes) = match answer {
            Answer::Taken { bytes } => {
                self.taken(item);
                (Outcome::Delivered { at: Timestamp::now() }, bytes)
            }
            Answer::Refused { why, after } => {
                let wait = after.unwrap_or_default().max(self.limits.retry_slowest);
                self.refused(item, &why);
                (Outcome::Failed { error: why, next_try: later(wait), aside: true }, 0)
            }
            // only reports are answered so
            Answer::Unknown { why } => {
                (Outcome::Failed { error: why, next_try: later(self.limits.retry_slowest), aside: true }, 0)
            }
            // says nothing about the fresh ones, which are tried for themselves
            Answer::Failed { why, after: None, .. } if item.aside => {
                self.failed(&why);
                self.refusals = self.refusals.saturating_add(1);
                self.aside_pause = Some(Instant::now() + self.delay(self.refusals));
                (Outcome::Failed { error: why, next_try: later(self.limits.retry_slowest), aside: true }, 0)
            }
            Answer::Failed { why, after, connected } => {
                self.failed(&why);
                self.failures = self.failures.saturating_add(1);
                let wait = self.delay(self.failures).max(after.unwrap_or_default());
                self.pause = Some(Instant::now() + wait);
                let aside = item.aside || self.suspected(item, connected);
                let next_try = later(if aside { wait.max(self.limits.retry_slowest) } else { wait });
                (Outcome::Failed { error: why, next_try, aside }, 0)
            }
        };
        self.settle(item, outcome, bytes)
    }

    fn taken(&mut self, item: &Spooled) {
        if self.failures + self.refusals > 0 {
            info!(endpoint = self.client.shown(), "anomalies are delivered again");
        }
        (self.failures, self.refusals) = (0, 0);
        (self.pause, self.aside_pause) = (None, None);
        match &mut self.suspect {
            Some(s) if s.id == item.id => self.suspect = None,
            Some(s) => s.others_pass = true,
            None => {}
        }
    }

    fn refused(&mut self, item: &Spooled, why: &str) {
        self.failed(why);
        self.refusals = self.refusals.saturating_add(1);
        // it is there and answers
        self.failures = 0;
        if self.refusals > FREE_REFUSALS {
            let wait = self.delay(self.refusals - FREE_REFUSALS);
            self.pause = Some(Instant::now() + wait.min(REFUSED_PAUSE));
            self.aside_pause = Some(Instant::now() + wait);
        }
        if self.suspect.as_ref().is_some_and(|s| s.id == item.id) {
            self.suspect = None;
        }
    }

    /// Counts a failure against the oldest item; true when it is the item and not the endpoint. An endpoint that cannot be
    /// reached says nothing about the item.
    fn suspected(&mut self, item: &Spooled, connected: bool) -> bool {
        if !connected || item.aside {
            return false;
        }
        match &mut self.suspect {
            Some(s) if s.id == item.id && s.others_pass => {
                self.suspect = None;
                return true;
            }
            // a probe failed as well: the endpoint's fault, as far as is known
            Some(s) => s.failures = s.failures.saturating_add(1),
            None => self.suspect = Some(Suspect { id: item.id, failures: 1, others_pass: false }),
        }
        false
    }

    /// Remembers why, and says so at most once a minute.
    fn failed(&mut self, why: &str) {
        Shared::set(&self.shared.last_error, Some(why.to_owned()));
        if let Some(unsaid) = self.warnings.due(Instant::now()) {
            let waiting = self.shared.waiting.load(std::sync::atomic::Ordering::Relaxed);
            let endpoint = self.client.shown();
            warn!(endpoint, why, waiting, unsaid, "an anomaly was not delivered; it is kept and tried again");
        }
    }

    /// Until the outcome is committed: an acknowledged anomaly that stayed in the spool would be sent again.
    fn settle(&self, item: &Spooled, outcome: Outcome, bytes: u64) -> bool {
        let (id, was_aside) = (item.id, item.aside);
        loop {
            let (done, answer) = bounded(1);
            let settle = SettleAnomaly { id, outcome: outcome.clone(), was_aside, bytes, done };
            if self.outcomes.send(Settle::Anomaly(settle)).is_err() {
                return false;
            }
            match answer.recv() {
                Err(_) => return false,
                Ok(true) => return true,
                Ok(false) if self.shared.stopping() => return false,
                Ok(false) => {
                    let _ = self.wake.recv_timeout(self.limits.write_again);
                }
            }
        }
    }

    fn delay(&self, failures: u32) -> Duration {
        delay(&self.limits, failures, random())
    }
}

/// The pause after so many failures: doubling, and up to a half shorter by chance so that lines do not march in step.
pub(super) fn delay(limits: &Limits, failures: u32, chance: f64) -> Duration {
    let doubled = limits.retry_first.saturating_mul(1 << failures.saturating_sub(1).min(20));
    doubled.min(limits.retry_slowest).mul_f64(1.0 - 0.5 * chance)
}

/// 0..1, from the standard library's hash seeds.
pub(super) fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

pub(super) fn later(wait: Duration) -> Timestamp {
    let now = Timestamp::now();
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_slowest() {
        let limits = Limits::default();
        let at = |failures, chance| delay(&limits, failures, chance).as_millis();
        assert_eq!(
            [1, 2, 3, 7, 8, 9, 40, u32::MAX].map(|n| at(n, 0.0)),
            [200, 400, 800, 12_800, 25_600, 30_000, 30_000, 30_000]
        );
        assert_eq!([1, 9].map(|n| at(n, 1.0)), [100, 15_000]);
        assert!((0..100).map(|_| random()).all(|r| (0.0..=1.0).contains(&r)));
    }

    #[test]
    fn warnings_are_rare() {
        let (mut warnings, start) = (Warnings::default(), Instant::now());
        assert_eq!(warnings.due(start), Some(0));
        assert_eq!((1..60).filter_map(|s| warnings.due(start + Duration::from_secs(s))).count(), 0);
        assert_eq!(warnings.due(start + WARN_EVERY), Some(59));
        assert_eq!(warnings.due(start + 2 * WARN_EVERY), Some(0));
    }
}
