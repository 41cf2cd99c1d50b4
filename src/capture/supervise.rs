//! Keeps a live source alive: opens it again when it fails, ends or stalls, for ever.
//!
//! A [`Supervised`] belongs to the thread that pulls from it; only teardowns run elsewhere, on threads `capture-teardown`.
//! Invariants:
//! 1. A live source never ends and never fails for good: the caller gets frames or waits (tests
//!    `tests/sources.rs::a_camera_that_returns_is_live_again` and `a_stream_that_returns_is_live_again`).
//! 2. Numbers of frames go on across reconnects without gaps; what the source lost is counted under "source" (the same).
//! 3. A teardown that hangs delays the next attempt by at most [`TEARDOWN_WAIT`], and at most [`TEARDOWNS`] of them are
//!    under way at a time (test `a_teardown_that_hangs_is_left_behind`).
//! 4. Nothing grows with the number of reconnects: descriptors, threads, memory (the tests of 1).
//! 5. A watch on the frames is kept only where frames come by themselves: triggered cameras and watched folders may rest as
//!    long as they like.

use super::loss::Period;
use super::watch::Told;
use super::{CameraOptions, Capture, OpenError, OpenOptions, Source, Step, TICK};
use crate::error::{Context, Error, Result};
use crate::event::LineState;
use crate::frame::Frame;
use crate::observe::LineStatus;
use crate::observe::pulse::{OPENING, Stage};
use crossbeam_channel::{Receiver, bounded};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the next attempt waits for a teardown.
const TEARDOWN_WAIT: Duration = Duration::from_millis(500);
/// Teardowns that may be under way at a time.
const TEARDOWNS: usize = 4;
/// Factor from one pause to the next.
const BACKOFF_FACTOR: f64 = 1.6;
/// The shortest time that the first frame is waited for, while it is not known how long the source takes for it.
const FIRST_FRAME: Duration = Duration::from_secs(1);
/// How many times longer than ever before, or than a frame period, the first frame may take.
const FIRST_FRAME_FACTOR: f64 = 2.0;
/// A line that fails for the same reason says so again after this time.
const REMINDER: Duration = Duration::from_secs(60);

/// When a source counts as stalled, and how it is opened again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watchdog {
    /// Frame periods without a frame after which a source is stalled. The period is the longer of the declared one and the
    /// median of the last 31.
    pub stall_periods: f64,
    /// A source is never stalled sooner than this.
    pub stall_min: Duration,
    /// A source is always stalled later than this; also how long frames may take to come while the period is not known.
    pub stall_max: Duration,
    /// How long the first frame may take after opening. A stream shows nothing before its first whole picture. A camera whose
    /// rate is known before is first waited for as long as in the middle of its stream, one that has been live a few times as
    /// long as it took then; and longer each time that it is opened in vain.
    pub first_frame: Duration,
    /// Pause before the first attempt to open again; each pause is 1.6 times as long as the one before, and up to 20 % longer or
    /// shorter by chance.
    pub backoff_first: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Pause after an error that does not go away by itself (a pipeline that cannot be made, refused credentials).
    pub backoff_failed: Duration,
}

impl Default for Watchdog {
    fn default() -> Self {
        Watchdog {
            stall_periods: 30.0,
            stall_min: Duration::from_millis(500),
            stall_max: Duration::from_secs(10),
            first_frame: Duration::from_secs(15),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            backoff_failed: Duration::from_secs(15),
        }
    }
}

/// A [`Capture`] that comes back. Recordings and folders pass through as they are: their end is the end.
pub struct Supervised {
    source: Source,
    realtime: bool,
    camera: CameraOptions,
    live_queue: u32,
    status: Arc<LineStatus>,
    watchdog: Watchdog,
    current: Option<Connection>,
    next_seq: u64,
    /// Attempts since the last frame.
    attempts: u32,
    /// Those of them that opened the source and got no frame.
    blind: u32,
    /// The longest that a first frame has taken after opening.
    first_frame_took: Option<Duration>,
    next_attempt: Instant,
    /// A frame came at some time.
    was_live: bool,
    /// What was last said about why there is no source, and when.
    said: Option<(String, Instant)>,
    told: Option<Told>,
    /// A hardware decoder did not start.
    software: bool,
    teardowns: Vec<Receiver<()>>,
    slow_teardowns: u64,
    /// Of connections that are closed.
    closed: Sums,
    reconnects: u64,
}

/// An open source.
struct Connection {
    capture: Capture,
    opened: Instant,
    last_frame: Option<Instant>,
    period: Period,
    lost: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    bytes_in: u64,
    warnings: u64,
    lost: u64,
}

impl Supervised {
    /// Nothing is opened before the first call of [`Supervised::next_frame_unless`]; options that the source does not know are
    /// refused here. `status` is told of frames, states and losses.
    pub fn new(source: &Source, options: &OpenOptions, status: Arc<LineStatus>, watchdog: Watchdog) -> Result<Self> {
        options.camera.check(source)?;
        Ok(Supervised {
            source: source.clone(),
            realtime: options.realtime,
            camera: options.camera.clone(),
            live_queue: options.live_queue,
            status,
            watchdog,
            current: None,
            next_seq: 0,
            attempts: 0,
            blind: 0,
            first_frame_took: None,
            next_attempt: Instant::now(),
            was_live: false,
            said: None,
            told: None,
            software: false,
            teardowns: Vec::new(),
            slow_teardowns: 0,
            closed: Sums::default(),
            reconnects: 0,
        })
    }

    /// The next frame. `None` soon after `halted` has become true, and at the end of a recording; a live source gives neither
    /// an end nor an error.
    pub fn next_frame_unless(&mut self, halted: impl Fn() -> bool) -> Result<Option<Arc<Frame>>> {
        loop {
            if halted() {
                return Ok(None);
            }
            let Some(connection) = &mut self.current else {
                self.wait_and_open(&halted)?;
                continue;
            };
            let step = connection.capture.step(TICK);
            let lost = connection.capture.lost_at_source();
            let newly_lost = lost - std::mem::replace(&mut connection.lost, lost);
            if newly_lost > 0 {
                self.status.dropped("source", newly_lost);
            }
            match step {
                Ok(Step::Frame(frame)) => return Ok(Some(self.arrived(frame))),
                Ok(Step::Waiting) => {
                    if let Some(reason) = self.stalled() {
                        self.lose(LineState::Stalled, reason, None);
                    }
                }
                Ok(Step::Ended) if !self.source.is_live() => return Ok(None),
                Ok(Step::Ended) => {
                    self.lose(LineState::Reconnecting, "the source ended".into(), Some(true));
                }
                Err(e) if !self.source.is_live() => return Err(e),
                Err(e) => {
                    let e = OpenError::from(e);
                    let state = if e.may_pass { LineState::Reconnecting } else { LineState::Failed };
                    self.lose(state, sentence(&e.error), Some(e.may_pass));
                }
            }
        }
    }

    /// A frame came.
    fn arrived(&mut self, mut frame: Arc<Frame>) -> Arc<Frame> {
        let now = Instant::now();
        if let Some(c) = &mut self.current {
            match c.last_frame.replace(now) {
                Some(last) => c.period.add(now - last),
                None => self.first_frame_took = self.first_frame_took.max(Some(now - c.opened)),
            }
            self.software |= c.capture.software;
        }
        if self.attempts > 0 || self.said.is_some() {
            if self.was_live {
                self.status.reconnected();
                self.reconnects += 1;
            }
            if let Some((reason, since)) = self.said.take() {
                let away = since.elapsed().as_secs_f64();
                tracing::warn!(line = %self.status.name, away_s = away, "the source is live again; it was away: {reason}");
            }
            self.attempts = 0;
        }
        self.blind = 0;
        self.was_live = true;
        self.status.frame();
        // nobody else has it yet
        if let Some(frame) = Arc::get_mut(&mut frame) {
            frame.seq = self.next_seq;
        }
        self.next_seq += 1;
        frame
    }

    /// Why the source counts as stalled, if it does.
    fn stalled(&self) -> Option<String> {
        let c = self.current.as_ref()?;
        if !self.source.is_live() || self.camera.is_triggered() || matches!(self.source, Source::Watch(_)) {
            return None;
        }
        let declared = c.capture.declared_rate().map(|r| Duration::from_secs_f64(1.0 / r));
        let Some(last) = c.last_frame else {
            // a camera whose rate is known is soon asked again; each time it gets longer, for it may be slow to start
            let patience = backoff_factor(self.blind);
            let limit = declared.map_or(self.watchdog.first_frame, |period| {
                let limit = match self.first_frame_took {
                    Some(took) => took.max(period).mul_f64(FIRST_FRAME_FACTOR).max(self.watchdog.stall_min),
                    None => period.mul_f64(self.watchdog.stall_periods).max(self.watchdog.stall_min).max(FIRST_FRAME),
                };
                limit.mul_f64(patience).min(self.watchdog.first_frame)
            });
            let waited = c.opened.elapsed();
            return (waited > limit).then(|| format!("no frame came within {:.1} s of opening", waited.as_secs_f64()));
        };
        let limit = match c.period.usual().max(declared) {
            Some(period) => {
                period.mul_f64(self.watchdog.stall_periods).max(self.watchdog.stall_min).min(self.watchdog.stall_max)
            }
            None => self.watchdog.stall_max,
        };
        let silent = last.elapsed();
        (silent > limit).then(|| format!("no frame for {:.1} s", silent.as_secs_f64()))
    }

    /// Waits until it is time, and opens the source.
    fn wait_and_open(&mut self, halted: &impl Fn() -> bool) -> Result<()> {
        while Instant::now() < self.next_attempt {
            if halted() {
                return Ok(());
            }
            let left = self.next_attempt.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        self.teardowns.retain(|done| done.try_recv() == Err(crossbeam_channel::TryRecvError::Empty));
        if self.teardowns.len() >= TEARDOWNS {
            // old ones hang; more of them would grow without bound
            self.next_attempt = Instant::now() + self.watchdog.backoff_max;
            return Ok(());
        }
        let options = OpenOptions { realtime: self.realtime, camera: &self.camera, live_queue: self.live_queue };
        self.status.pulse.beat_for(Stage::Capture, OPENING);
        match Capture::try_open(&self.source, &options, self.told.clone(), self.software) {
            Ok(capture) => {
                let opened = Instant::now();
                self.current =
                    Some(Connection { capture, opened, last_frame: None, period: Period::default(), lost: 0 });
                Ok(())
            }
            Err(e) if !self.source.is_live() => Err(e.error),
            Err(e) => {
                let state = if e.may_pass { LineState::Reconnecting } else { LineState::Failed };
                self.lose(state, sentence(&e.error), Some(e.may_pass));
                Ok(())
            }
        }
    }

    /// Gives up the connection, if there is one, says why once, and sets the time of the next attempt.
    fn lose(&mut self, state: LineState, reason: String, may_pass: Option<bool>) {
        let (reminder, known) = match &self.said {
            Some((_, since)) => (since.elapsed() > REMINDER, true),
            None => (false, false),
        };
        if !known || reminder {
            tracing::warn!(line = %self.status.name, source = %self.status.source, "the source is away: {reason}");
        } else {
            tracing::debug!(line = %self.status.name, "the source is still away: {reason}");
        }
        match &mut self.said {
            // the first reason tells the story, and the time is since when
            Some((_, since)) if reminder => *since = Instant::now(),
            Some(_) => {}
            None => self.said = Some((reason.clone(), Instant::now())),
        }
        self.status.set_state(state, Some(reason));
        if let Some(connection) = self.current.take() {
            self.blind += u32::from(connection.last_frame.is_none());
            self.tear_down(connection);
        }
        let pause = match may_pass {
            Some(false) => self.watchdog.backoff_failed,
            _ => self.pause(),
        };
        self.attempts = self.attempts.saturating_add(1);
        self.next_attempt = Instant::now() + pause;
    }

    /// Before the next attempt, after so many.
    fn pause(&self) -> Duration {
        let pause = self.watchdog.backoff_first.as_secs_f64() * backoff_factor(self.attempts);
        let pause = pause.min(self.watchdog.backoff_max.as_secs_f64());
        Duration::from_secs_f64(pause * (0.8 + 0.4 * fastrand::f64()))
    }

    /// Closes a connection on a thread of its own, and waits a little for it.
    fn tear_down(&mut self, connection: Connection) {
        let mut capture = connection.capture;
        self.closed.bytes_in += capture.bytes_in();
        self.closed.warnings += capture.warnings();
        self.closed.lost += capture.lost_at_source();
        if let Some(watcher) = capture.watcher.take() {
            self.told = Some(watcher.into_told());
        }
        let Some(done) = elsewhere(move || drop(capture)) else { return };
        if done.recv_timeout(TEARDOWN_WAIT) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            self.slow_teardowns += 1;
            tracing::debug!(line = %self.status.name, "closing the source takes long, it goes on in the background");
            self.teardowns.push(done);
        }
    }

    /// What is told of frames, states and losses.
    pub fn status(&self) -> &Arc<LineStatus> {
        &self.status
    }
    /// Frames handed out so far, over all connections.
    pub fn frames(&self) -> u64 {
        self.next_seq
    }
    /// As [`Capture::bytes_in`], over all connections.
    pub fn bytes_in(&self) -> u64 {
        self.closed.bytes_in + self.current.as_ref().map_or(0, |c| c.capture.bytes_in())
    }
    /// As [`Capture::warnings`], over all connections.
    pub fn warnings(&self) -> u64 {
        self.closed.warnings + self.current.as_ref().map_or(0, |c| c.capture.warnings())
    }
    /// As [`Capture::lost_at_source`], over all connections.
    pub fn lost_at_source(&self) -> u64 {
        self.closed.lost + self.current.as_ref().map_or(0, |c| c.capture.lost_at_source())
    }
    /// As [`Capture::expected_frames`].
    pub fn expected_frames(&self) -> Option<u64> {
        self.current.as_ref().and_then(|c| c.capture.expected_frames())
    }
    /// How often the source came back.
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }
    /// Teardowns that took longer than the half second that is waited for them.
    pub fn slow_teardowns(&self) -> u64 {
        self.slow_teardowns
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Some(connection) = self.current.take() {
            self.tear_down(connection);
        }
    }
}

/// How much longer than the first the pause after so many attempts is, without a cap.
fn backoff_factor(attempts: u32) -> f64 {
    BACKOFF_FACTOR.powi(attempts.min(40) as i32)
}

/// Runs `work` on a thread of its own; the receiver is disconnected when it is done. None when it was done here.
fn elsewhere(work: impl FnOnce() + Send + 'static) -> Option<Receiver<()>> {
    let (held, done) = bounded::<()>(1);
    let spawned = std::thread::Builder::new().name("capture-teardown".into()).spawn(move || {
        work();
        drop(held);
    });
    match spawned.failed(|| "no thread can be started") {
        Ok(_) => Some(done),
        Err(e) => {
            // the closure was dropped with what it holds: closed, only not in the background
            tracing::warn!("{e}");
            None
        }
    }
}

/// An error in one line, with what to do.
fn sentence(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervised(source: &str, watchdog: Watchdog) -> (Supervised, Arc<LineStatus>) {
        let source = Source::parse(source).unwrap();
        let status = Arc::new(LineStatus::new("a", &source.name()));
        let camera = CameraOptions::default();
        let options = OpenOptions { realtime: false, camera: &camera, live_queue: 4 };
        (Supervised::new(&source, &options, status.clone(), watchdog).unwrap(), status)
    }

    #[test]
    fn pauses_grow_to_their_cap() {
        let (mut s, _) = supervised("pipeline:videotestsrc", Watchdog::default());
        let within = |s: &Supervised, ms: f64| {
            let pause = s.pause().as_secs_f64() * 1e3;
            assert!((ms * 0.8..=ms * 1.2).contains(&pause), "{pause} ms, {ms} wanted");
        };
        within(&s, 100.0);
        s.attempts = 1;
        within(&s, 160.0);
        for attempts in [5, 6, 1000, u32::MAX] {
            s.attempts = attempts;
            within(&s, 1000.0);
        }
    }

    #[test]
    fn a_teardown_that_hangs_is_left_behind() {
        let (mut s, _) = supervised("pipeline:videotestsrc num-buffers=1", Watchdog::default());
        let mut held = Vec::new();
        for _ in 0..TEARDOWNS {
            let (release, hangs) = bounded::<()>(1);
            held.push(release);
            s.teardowns.push(elsewhere(move || hangs.recv().unwrap_or_default()).unwrap());
        }
        s.wait_and_open(&|| false).unwrap();
        assert!(s.current.is_none(), "opened while {TEARDOWNS} teardowns hang");
        held.pop();
        let deadline = Instant::now() + Duration::from_secs(20);
        while s.current.is_none() {
            assert!(Instant::now() < deadline);
            s.wait_and_open(&|| false).unwrap();
        }
        assert_eq!(s.teardowns.len(), TEARDOWNS - 1);
    }

    #[test]
    fn a_source_that_ends_goes_on() {
        let quick = Watchdog { backoff_first: Duration::from_millis(1), ..Watchdog::default() };
        let (mut s, status) = supervised("pipeline:videotestsrc num-buffers=3 ! video/x-raw,width=32,height=32", quick);
        for n in 0..10 {
            let frame = s.next_frame_unless(|| false).unwrap().unwrap();
            assert_eq!(frame.seq, n);
            assert_eq!(frame.source_seq, Some(n % 3));
        }
        let shown = status.snapshot();
        assert_eq!((shown.counters.frames, shown.counters.reconnects, s.reconnects()), (10, 3, 3));
        assert_eq!(shown.state, LineState::Live);
        assert!(s.next_frame_unless(|| true).unwrap().is_none());
    }

    #[test]
    fn a_stalled_source_is_opened_again() {
        let quick = Watchdog {
            stall_periods: 3.0,
            stall_min: Duration::from_millis(50),
            stall_max: Duration::from_millis(100),
            first_frame: Duration::from_millis(100),
            backoff_first: Duration::from_millis(1),
            ..Watchdog::default()
        };
        // one that gives nothing at all
        let (mut s, status) = supervised("pipeline:appsrc is-live=true ! video/x-raw,width=32,height=32", quick);
        let seen = std::cell::RefCell::new(Vec::new());
        let halted = || {
            let state = status.state();
            let mut seen = seen.borrow_mut();
            if seen.last() != Some(&state) {
                seen.push(state);
            }
            state == LineState::Stalled
        };
        assert!(s.next_frame_unless(halted).unwrap().is_none());
        assert_eq!(*seen.borrow(), [LineState::Starting, LineState::Stalled]);
        assert!(status.snapshot().reason.unwrap().contains("no frame came within"), "{:?}", status.snapshot());
    }

    #[test]
    fn a_source_that_cannot_be_made_has_failed() {
        let quick = Watchdog { backoff_failed: Duration::from_millis(1), ..Watchdog::default() };
        let (mut s, status) = supervised("pipeline:nosuchelement ! queue", quick);
        assert!(s.next_frame_unless(|| status.state() == LineState::Failed).unwrap().is_none());
        let reason = status.snapshot().reason.unwrap();
        assert!(reason.contains("nosuchelement"), "{reason}");
    }
}
