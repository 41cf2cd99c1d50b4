//! Answers to the plant by MQTT 5: the handle that lines hold, its options, what it counts.
//!
//! One [`Mqtt`] a process serves all lines over one connection. The thread "respond-mqtt" owns the client and a small tokio
//! runtime ([`link`](super::link)); lines hand answers to it through a bounded tokio channel, whose `try_send` wakes that
//! thread at once. What the receiver must do is written in docs/5-integrate.md; the reasons are in docs/design/respond.md.
//!
//! Invariants, each with the test (tests/respond.rs) that holds it:
//! 1. `answer` never waits, for the broker or for anything else: `a_full_queue_is_counted_and_nobody_waits`.
//! 2. An answer is sent once or counted as dropped, and is never sent again on a later connection, so no old pass turns up as
//!    a new one: `the_broker_is_killed_and_returns`, `a_broker_that_hangs_delivers_no_stale_pass`.
//! 3. Every answer is in exactly one of the counters: [`MqttStatus::adds_up`], asserted by each test.
//! 4. The will says `dead` unless [`Mqtt::stop`] said `stopped` before: `a_killed_process_is_seen_as_dead`, `a_clean_stop_says_so`.
//! 5. No password is printed or logged: `passwords_are_not_shown` and `a_wrong_password_is_said_clearly`.

use super::link::{self, Handed};
use super::{Answer, MqttOptions, Respond};
use crate::error::{Context, Error, Kind, Result};
use crate::event::Verdict;
use crate::observe::LineStatus;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// How long an answer is good for on a line without a deadline. A pass: from the trigger; anything else, which is never
/// dangerous: from the moment it was handed over.
pub const EXPIRES: Duration = Duration::from_secs(2);
/// Heartbeats that may be missing before the receiver takes linesight for dead: part of the contract.
pub const HEARTBEATS_MISSED: u32 = 3;

/// A line that answers.
#[derive(Debug)]
pub(super) struct Line {
    pub status: Arc<LineStatus>,
    /// Number of the part that comes next.
    pub next_part: AtomicU64,
    pub verdict_topic: Arc<str>,
    /// How long after its trigger a pass is good for.
    pass_expires: Duration,
}

/// Why an answer was not sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dropped {
    Full,
    Away,
    Expired,
    Line,
    Stopped,
}

const REASONS: [&str; 5] = ["full", "away", "expired", "line", "stopped"];

/// What the thread alone counts.
#[derive(Debug)]
pub(super) struct Counts {
    pub sent: u64,
    pub acked: u64,
    pub unheard: u64,
    pub refused: u64,
    pub lost: u64,
    pub connects: u64,
    /// Message and hint; None while connected.
    pub error: Option<(String, Option<String>)>,
    pub last_error: Option<String>,
    to_socket: Histogram<u64>,
    to_ack: Histogram<u64>,
}

/// What handle and thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub connected: AtomicBool,
    pub stopping: AtomicBool,
    offered: AtomicU64,
    dropped: [AtomicU64; REASONS.len()],
    /// Written when lines come and go, read for each answer.
    lines: RwLock<BTreeMap<String, Arc<Line>>>,
    counts: Mutex<Counts>,
    changed: Condvar,
}

const LONGEST_US: u64 = 60_000_000;

fn microseconds(time: Duration) -> u64 {
    (time.as_micros() as u64).clamp(1, LONGEST_US)
}

impl Shared {
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn drop_answer(&self, why: Dropped) {
        self.dropped[why as usize].fetch_add(1, Relaxed);
    }

    pub fn lines(&self) -> BTreeMap<String, Arc<Line>> {
        self.lines.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn handed_to_socket(&self, captured: Instant) {
        let mut counts = self.counts();
        counts.sent += 1;
        counts.to_socket.saturating_record(microseconds(captured.elapsed()));
    }

    pub fn acknowledged(&self, captured: Instant, heard: bool) {
        let mut counts = self.counts();
        counts.acked += 1;
        counts.unheard += u64::from(!heard);
        counts.to_ack.saturating_record(microseconds(captured.elapsed()));
    }

    pub fn connection_stands(&self) {
        let mut counts = self.counts();
        counts.connects += 1;
        counts.error = None;
        drop(counts);
        self.connected.store(true, Relaxed);
        self.changed.notify_all();
    }

    /// Returns whether this is news: the connection stood until now, or the reason is another one.
    pub fn connection_is_away(&self, error: &Error) -> bool {
        let stood = self.connected.swap(false, Relaxed);
        let mut counts = self.counts();
        let said = (error.to_string(), error.hint_text().map(str::to_owned));
        let news = stood || counts.error.as_ref() != Some(&said);
        counts.last_error = Some(said.0.clone());
        counts.error = Some(said);
        drop(counts);
        self.changed.notify_all();
        news
    }
}

/// Quantiles of a time, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub count: u64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl From<&Histogram<u64>> for Times {
    fn from(h: &Histogram<u64>) -> Times {
        let at = |q| if h.is_empty() { 0.0 } else { h.value_at_quantile(q) as f64 / 1e3 };
        Times { count: h.len(), p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1.0) }
    }
}

/// Counters since the process started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MqttStatus {
    /// Without a login.
    pub broker: String,
    pub connected: bool,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last one, also when it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Times that the connection was made again.
    pub reconnects: u64,
    /// Answers that lines wanted to give.
    pub offered: u64,
    /// Not sent, by reason: `full` (queue), `away` (no connection), `expired` (too old to be sent), `line` (not announced by
    /// [`Mqtt::watch`]), `stopped`.
    pub dropped: BTreeMap<String, u64>,
    /// Written to the connection.
    pub sent: u64,
    /// Those of `sent` that the broker has.
    pub acked: u64,
    /// Those of `acked` that no client was subscribed to.
    pub unheard: u64,
    /// Those of `sent` that the broker did not take.
    pub refused: u64,
    /// Those of `sent` whose acknowledgement was outstanding when the connection ended: delivered or not.
    pub lost: u64,
    /// From trigger to the moment the message was written to the connection.
    pub to_socket: Times,
    /// From trigger to the broker's acknowledgement.
    pub to_ack: Times,
}

impl MqttStatus {
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Whether no answer is missing; holds when nothing waits (after [`Mqtt::stop`]).
    pub fn adds_up(&self) -> bool {
        self.offered == self.sent + self.dropped_in_all() && self.sent == self.acked + self.refused + self.lost
    }
}

/// The output. Dropping it without [`Mqtt::stop`] makes the broker publish the will.
#[derive(Debug)]
pub struct Mqtt {
    shared: Arc<Shared>,
    broker: String,
    prefix: String,
    answers: mpsc::Sender<Handed>,
    /// The end of the patience. Closed: end at once.
    stop: Mutex<Option<mpsc::Sender<Instant>>>,
    thread: Mutex<Option<JoinHandle<bool>>>,
}

impl Mqtt {
    /// Starts connecting and returns; goes on trying for ever. An error is one of the options. [`Mqtt::wait`] tells how the
    /// broker takes it.
    pub fn connect(options: MqttOptions) -> Result<Mqtt> {
        let plan = options.plan()?;
        let histogram = || {
            Histogram::new_with_bounds(1, LONGEST_US, 3).failed(|| "a histogram of the answers' times cannot be made")
        };
        let counts = Counts {
            sent: 0,
            acked: 0,
            unheard: 0,
            refused: 0,
            lost: 0,
            connects: 0,
            error: Some((format!("no connection to the broker \"{}\" yet", plan.shown), None)),
            last_error: None,
            to_socket: histogram()?,
            to_ack: histogram()?,
        };
        let shared = Arc::new(Shared {
            connected: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            offered: AtomicU64::new(0),
            dropped: Default::default(),
            lines: RwLock::default(),
            counts: Mutex::new(counts),
            changed: Condvar::new(),
        });
        let (answers, answers_rx) = mpsc::channel(plan.options.queue);
        let (stop, stop_rx) = mpsc::channel(1);
        let (broker, prefix) = (plan.shown.clone(), plan.prefix.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // names are looked up on a thread of their own
            .max_blocking_threads(1)
            .thread_name("respond-dns")
            .build()
            .failed(|| "the runtime of the MQTT client cannot be started")?;
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("respond-mqtt".into())
            .spawn(move || {
                let clean = runtime.block_on(link::run(plan, for_thread, answers_rx, stop_rx));
                // a name that is being looked up must not hold the end up
                runtime.shutdown_background();
                clean
            })
            .failed(|| "thread \"respond-mqtt\" cannot be started")?;
        let (stop, thread) = (Mutex::new(Some(stop)), Mutex::new(Some(thread)));
        Ok(Mqtt { shared, broker, prefix, answers, stop, thread })
    }

    /// Announces a line, or changes what is known of it. `next_part` is the number that its next part will have; `deadline` is
    /// the line's, from trigger to verdict: no pass is sent after it, nor after [`EXPIRES`].
    pub fn watch(&self, status: Arc<LineStatus>, next_part: u64, deadline: Option<Duration>) -> Result<()> {
        let name = status.name.clone();
        if name.is_empty() || name.len() > 200 || name.contains(['/', '+', '#']) || name.chars().any(char::is_control) {
            return Err(Error::usage(format!("line name \"{}\" cannot be part of an MQTT topic", name.escape_debug()))
                .hint("1 to 200 bytes without / + and #"));
        }
        let line = Line {
            status,
            next_part: AtomicU64::new(next_part),
            verdict_topic: format!("{}/{name}/verdict", self.prefix).into(),
            pass_expires: deadline.map_or(EXPIRES, |d| d.min(EXPIRES)),
        };
        self.shared.lines.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(line));
        Ok(())
    }

    /// Takes a line away: its state becomes `stopped`, its answers are dropped.
    pub fn forget(&self, line: &str) {
        self.shared.lines.write().unwrap_or_else(PoisonError::into_inner).remove(line);
    }

    /// Waits until the connection stands, or says why it does not after `patience`. The attempts go on in either case.
    pub fn wait(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut counts = self.shared.counts();
        loop {
            let Some((said, hint)) = counts.error.clone() else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let error = Error::new(Kind::Missing, said);
                return Err(match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                });
            }
            counts = self.shared.changed.wait_timeout(counts, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What happened until now.
    pub fn status(&self) -> MqttStatus {
        let offered = self.shared.offered.load(Relaxed);
        let dropped =
            REASONS.iter().zip(&self.shared.dropped).map(|(r, n)| ((*r).to_owned(), n.load(Relaxed))).collect();
        let counts = self.shared.counts();
        MqttStatus {
            broker: self.broker.clone(),
            connected: self.shared.connected.load(Relaxed),
            error: counts.error.as_ref().map(|e| e.0.clone()),
            last_error: counts.last_error.clone(),
            reconnects: counts.connects.saturating_sub(1),
            offered,
            dropped,
            sent: counts.sent,
            acked: counts.acked,
            unheard: counts.unheard,
            refused: counts.refused,
            lost: counts.lost,
            to_socket: (&counts.to_socket).into(),
            to_ack: (&counts.to_ack).into(),
        }
    }

    /// Takes no more answers, sends those that wait, says `stopped` and disconnects; ends after `patience` at the latest. True
    /// when the broker has acknowledged all of it; otherwise the broker says `dead`. The second call does nothing.
    pub fn stop(&self, patience: Duration) -> bool {
        self.shared.stopping.store(true, Relaxed);
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // the channel has room for the one message there is
            let _ = stop.try_send(Instant::now() + patience);
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.is_some_and(|t| t.join().unwrap_or(false))
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // a panic there was printed when it happened
            let _ = thread.join();
        }
    }
}

impl Respond for Mqtt {
    fn answer(&self, answer: &Answer) -> bool {
        let shared = &self.shared;
        shared.offered.fetch_add(1, Relaxed);
        let refuse = |why| {
            shared.drop_answer(why);
            false
        };
        if shared.stopping.load(Relaxed) {
            return refuse(Dropped::Stopped);
        }
        let line = shared.lines.read().unwrap_or_else(PoisonError::into_inner).get(&answer.line).cloned();
        let Some(line) = line else { return refuse(Dropped::Line) };
        line.next_part.fetch_max(answer.part.saturating_add(1), Relaxed);
        if !shared.connected.load(Relaxed) {
            return refuse(Dropped::Away);
        }
        let expires = match answer.verdict {
            Verdict::Pass => answer.captured + line.pass_expires,
            _ => Instant::now() + EXPIRES,
        };
        let handed = Handed {
            topic: line.verdict_topic.clone(),
            payload: link::payload(answer),
            part: answer.part,
            captured: answer.captured,
            expires,
        };
        match self.answers.try_send(handed) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => refuse(Dropped::Full),
            Err(TrySendError::Closed(_)) => refuse(Dropped::Stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_must_fit_into_a_topic() {
        let mqtt = Mqtt::connect(MqttOptions::new("mqtt://127.0.0.1:1", "hall-3")).unwrap();
        for name in ["", "a/b", "+", "a#"] {
            let error = mqtt.watch(Arc::new(LineStatus::new(name, "s")), 0, None).unwrap_err();
            assert_eq!(error.to_string(), format!("line name \"{name}\" cannot be part of an MQTT topic"));
        }
        mqtt.watch(Arc::new(LineStatus::new("washers 3", "s")), 0, None).unwrap();
    }
}
