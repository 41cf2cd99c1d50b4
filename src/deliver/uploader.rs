//! The thread "deliver-<target>", one for each target: takes anomalies from the spool, sends a few at a time, and reports what
//! came of each to the writer, which commits it.
//!
//! Invariants, each with the test that holds it (tests/delivery.rs where not said otherwise):
//! 1. An anomaly leaves the spool only after a 2xx: `each_fault_in_turn_delivers_once`.
//! 2. They start in the order that is configured; one that the endpoint refuses does not hold up the others:
//!    `refused_item_does_not_block`.
//! 3. An anomaly that fails again and again while others would succeed is set aside: `failing_item_is_found_out`.
//! 4. Failures are followed by pauses that double, up to `Limits::retry_slowest`; `Retry-After` prolongs them; until one
//!    succeeds, one request goes at a time: `pauses_double_up_to_the_slowest` (here), `retry_after_is_respected`.
//! 5. Nothing is given up: what was refused is delivered once a person has mended the endpoint, what was refused for what it
//!    is waits for a person: `mended_endpoint_gets_all`, `refused_item_does_not_block`.
//! 6. At most one warning in [`WARN_EVERY`]: `warnings_are_rare` (here).
//! 7. What is being sent is in `Shared::flying`, so that the writer does not remove it:
//!    `the_spool_behaves_like_its_model` (spool_model.rs).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::database::Reader;
use super::spool::{Damage, Order, Outcome, Spooled};
use super::target::{Answer, Client};
use super::writer::{Settle, SettleAnomaly};
use super::{Limits, PICTURE_LOST, Shared, TargetState, add};
use crate::error::{Context, Result};

/// Failures of the first anomaly after which the next one is tried in between, to learn whose fault it is.
const SUSPECT: u32 = 5;
/// Refusals in a row that cost no pause.
const FREE_REFUSALS: u32 = 3;
/// The longest pause before a fresh anomaly when those before it were refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Time before the next look when what was found has gone meanwhile.
const GONE: Duration = Duration::from_millis(100);
/// Why an anomaly is dead whose event is not as it was written.
const DAMAGED: &str = "the event was damaged on the disk; it is not sent as it is";
/// How long an uploader with nothing to do sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_secs(3600);

/// How many go at a time, and in which order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub order: Order,
    pub parallel: usize,
}

pub(super) struct Uploader {
    client: Arc<Client>,
    pace: Pace,
    reader: Reader,
    outcomes: Sender<Settle>,
    wake: Arc<Notify>,
    shared: Arc<Shared>,
    target: Arc<TargetState>,
    limits: Limits,
    /// On their way to this target.
    flying: HashSet<i64>,
    /// Nothing is sent before this.
    pause: Option<Instant>,
    /// Nothing that was set aside is sent before this.
    aside_pause: Option<Instant>,
    /// Failures in a row of any kind but refusals, and refusals in a row.
    failures: u32,
    refusals: u32,
    /// The first anomaly while it keeps failing.
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
    #[expect(clippy::too_many_arguments, reason = "each is another thing that the thread owns or shares")]
    pub fn new(
        client: Client,
        pace: Pace,
        reader: Reader,
        outcomes: Sender<Settle>,
        wake: Arc<Notify>,
        shared: Arc<Shared>,
        target: Arc<TargetState>,
        limits: Limits,
    ) -> Self {
        Uploader {
            client: Arc::new(client),
            pace,
            reader,
            outcomes,
            wake,
            shared,
            target,
            limits,
            flying: HashSet::new(),
            pause: None,
            aside_pause: None,
            failures: 0,
            refusals: 0,
            suspect: None,
            warnings: Warnings::default(),
        }
    }

    /// Until it is time to stop and what is on its way has come to an end.
    pub fn run(mut self, runtime: &Runtime) {
        runtime.block_on(async {
            let mut sent = JoinSet::new();
            loop {
                let wait = match self.shared.stopping() {
                    true if sent.is_empty() => return,
                    true => IDLE,
                    false => self.fill(&mut sent),
                };
                tokio::select! {
                    Some(done) = sent.join_next() => match done {
                        Ok((item, answer)) => {
                            if !self.answered(item, answer).await {
                                return;
                            }
                        }
                        // it is in the spool still, and in `flying` until the next start
                        Err(e) => self.failed(&format!("sending ended in a panic: {e}")),
                    },
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
    }

    /// Starts what may start now; how long until there may be more.
    fn fill(&mut self, sent: &mut JoinSet<(Box<Spooled>, Answer)>) -> Duration {
        // one by one until the endpoint works again
        let most = if self.failures + self.refusals > 0 { 1 } else { self.pace.parallel };
        while sent.len() < most {
            match self.next() {
                Ok(Step::Send(item)) => {
                    self.target.attempt();
                    let client = self.client.clone();
                    if item.damage == Some(Damage::Pictures) {
                        add(&self.shared.picture_failures, 1);
                        warn!(target = self.target.name, id = %item.id, "{PICTURE_LOST}: a plain one is sent");
                    }
                    sent.spawn(async move {
                        let answer = match item.damage {
                            Some(Damage::Event) => Answer::Never { why: DAMAGED.to_owned() },
                            _ => client.send(&item, Timestamp::now()).await,
                        };
                        (item, answer)
                    });
                }
                Ok(Step::Wait(time)) => return time,
                Err(e) => {
                    self.failed(&format!("cannot read the spool: {e}"));
                    self.failures = self.failures.saturating_add(1);
                    self.pause = Some(Instant::now() + self.delay(self.failures));
                }
            }
        }
        IDLE
    }

    fn next(&mut self) -> rusqlite::Result<Step> {
        let now = Instant::now();
        if let Some(left) = self.pause.and_then(|until| until.checked_duration_since(now)) {
            return Ok(Step::Wait(left));
        }
        // between two attempts of a suspect one of the item behind it
        let skip = match &self.suspect {
            Some(s) if s.failures >= SUSPECT && s.failures % 2 == 0 && !s.others_pass => 1,
            _ => 0,
        };
        let name = &self.target.name;
        let found = self.reader.first(name, self.pace.order, self.flying.len() + 2)?;
        let free: Vec<i64> = found.into_iter().filter(|seq| !self.flying.contains(seq)).collect();
        for seq in free.iter().skip(skip).chain(&free) {
            if let Some(item) = self.take(*seq)? {
                return Ok(Step::Send(item));
            }
        }
        if !free.is_empty() {
            // they went while they were looked at
            return Ok(Step::Wait(GONE));
        }
        if let Some(left) = self.aside_pause.and_then(|until| until.checked_duration_since(now)) {
            return Ok(Step::Wait(left));
        }
        let wall = Timestamp::now();
        let far = self.limits.retry_slowest.max(self.limits.retry_after_most);
        let name = &self.target.name;
        let aside = self.reader.first_aside(name, wall, far, self.flying.len() + 1)?;
        if let Some(seq) = aside.into_iter().find(|seq| !self.flying.contains(seq))
            && let Some(item) = self.take(seq)?
        {
            return Ok(Step::Send(item));
        }
        let next = self.reader.next_aside(&self.target.name)?;
        Ok(Step::Wait(match next {
            _ if !self.flying.is_empty() => IDLE,
            None => IDLE,
            Some(due) => Duration::try_from(due.duration_since(wall)).unwrap_or_default().max(Duration::from_millis(1)),
        }))
    }

    /// Reads an anomaly after it was marked as being sent: from then on the writer leaves it alone.
    fn take(&mut self, seq: i64) -> rusqlite::Result<Option<Box<Spooled>>> {
        self.shared.fly(seq);
        let item = self.reader.item(&self.target.name, seq);
        match &item {
            Ok(Some(_)) => drop(self.flying.insert(seq)),
            Ok(None) | Err(_) => self.shared.land(seq),
        }
        Ok(item?.map(Box::new))
    }

    /// Has what came of an attempt committed; false when it is time to stop.
    async fn answered(&mut self, item: Box<Spooled>, answer: Answer) -> bool {
        debug!(target = self.target.name, id = %item.id, attempt = item.attempts + 1, ?answer, "sent");
        let (outcome, bytes) = match answer {
            Answer::Taken { bytes } => {
                self.taken(&item);
                (Outcome::Delivered { at: Timestamp::now() }, bytes)
            }
            Answer::Never { why } => {
                self.dead(&item, &why);
                (Outcome::Dead { error: why }, 0)
            }
            Answer::Refused { why, after } => {
                let wait = after.unwrap_or_default().max(self.limits.retry_slowest);
                self.refused(&item, &why);
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
                let now = Instant::now();
                // those that were on their way together fail together: that is one failure
                if self.pause.is_none_or(|until| until <= now) {
                    self.failures = self.failures.saturating_add(1);
                }
                let wait = self.delay(self.failures).max(after.unwrap_or_default());
                let until = now + wait;
                self.pause = Some(self.pause.map_or(until, |pause| pause.max(until)));
                let aside = item.aside || self.suspected(&item, connected);
                let next_try = later(if aside { wait.max(self.limits.retry_slowest) } else { wait });
                (Outcome::Failed { error: why, next_try, aside }, 0)
            }
        };
        let goes_on = self.settle(&item, outcome, bytes).await;
        self.flying.remove(&item.seq);
        self.shared.land(item.seq);
        goes_on
    }

    fn taken(&mut self, item: &Spooled) {
        if self.failures + self.refusals > 0 {
            info!(target = self.target.name, endpoint = self.client.shown(), "anomalies are delivered again");
        }
        (self.failures, self.refusals) = (0, 0);
        (self.pause, self.aside_pause) = (None, None);
        match &mut self.suspect {
            Some(s) if s.id == item.id => self.suspect = None,
            Some(s) => s.others_pass = true,
            None => {}
        }
    }

    /// The endpoint is there, and this one is not for it.
    fn dead(&mut self, item: &Spooled, why: &str) {
        Shared::set(&self.target.last_error, Some(why.to_owned()));
        warn!(
            target = self.target.name,
            id = %item.id,
            why,
            "the endpoint will not take this anomaly; `linesight spool list --dead` shows it, `spool retry` sends it again"
        );
        self.failures = 0;
        if self.suspect.as_ref().is_some_and(|s| s.id == item.id) {
            self.suspect = None;
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

    /// Counts a failure against the first item; true when it is the item and not the endpoint. An endpoint that cannot be
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
        Shared::set(&self.target.last_error, Some(why.to_owned()));
        if let Some(unsaid) = self.warnings.due(Instant::now()) {
            let waiting = self.target.depth().waiting;
            let (target, endpoint) = (&self.target.name, self.client.shown());
            warn!(target, endpoint, why, waiting, unsaid, "an anomaly was not delivered; it is kept and tried again");
        }
    }

    /// Until the outcome is committed: an acknowledged anomaly that stayed in the spool would be sent again.
    async fn settle(&self, item: &Spooled, outcome: Outcome, bytes: u64) -> bool {
        loop {
            let (done, answer) = oneshot::channel();
            let settle = SettleAnomaly {
                target: self.target.clone(),
                seq: item.seq,
                id: item.id,
                outcome: outcome.clone(),
                bytes,
                done,
            };
            if self.outcomes.send(Settle::Anomaly(settle)).is_err() {
                return false;
            }
            match answer.await {
                Err(_) => return false,
                Ok(true) => return true,
                Ok(false) if self.shared.stopping() => return false,
                Ok(false) => tokio::time::sleep(self.limits.write_again).await,
            }
        }
    }

    fn delay(&self, failures: u32) -> Duration {
        delay(&self.limits, failures, random())
    }
}

/// For one thread that sends.
pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().failed(|| "no runtime for uploads")
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
