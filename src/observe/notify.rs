//! What the service manager is told (sd_notify): ready, a line of status, and a sign of life for its watchdog. Without
//! `NOTIFY_SOCKET` in the environment it is told nothing.
//!
//! Belongs to the main loop, which hands in what it knows; so a main loop that hangs is silent, too.
//!
//! Invariants (tests/service.rs):
//! 1. `READY=1` comes when every line takes frames or has failed, not before (`ready_comes_after_the_lines`).
//! 2. `WATCHDOG=1` comes only while no thread of a line hangs (`a_hung_line_thread_stops_the_petting`).

use super::pulse::HUNG_AFTER;
use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// The service manager, as far as it listens.
pub struct Notify {
    /// How often the watchdog wants a sign of life, if it does.
    watchdog: Option<Duration>,
    petted: Option<Instant>,
    ready: bool,
    status: String,
    /// Which thread hangs, as it was said.
    hung: Option<String>,
    failed: bool,
}

/// What the main loop knows.
pub struct Life {
    /// Every line has come so far that it takes frames, or has failed.
    pub started: bool,
    /// A thread that hangs.
    pub hung: Option<String>,
    /// One line for people.
    pub summary: String,
}

impl Notify {
    pub fn from_environment() -> Self {
        let watchdog = sd_notify::watchdog_enabled().filter(|w| !w.is_zero());
        Notify { watchdog, petted: None, ready: false, status: String::new(), hung: None, failed: false }
    }

    /// The silence that a thread is granted: half of what the service manager grants the process, so that a hung thread
    /// is known before the process would be taken for dead.
    pub fn limit(&self) -> Duration {
        self.watchdog.map_or(HUNG_AFTER, |w| (w / 2).min(HUNG_AFTER))
    }

    fn tell(&mut self, state: &[NotifyState<'_>]) {
        if let Err(e) = sd_notify::notify(state)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!("the service manager cannot be told how linesight is: {e}");
        }
    }

    /// To be called about once a second, and at least twice in the watchdog's time.
    pub fn tick(&mut self, life: Life) {
        if life.started && !self.ready {
            self.ready = true;
            self.tell(&[NotifyState::Ready]);
        }
        if life.summary != self.status {
            self.tell(&[NotifyState::Status(&life.summary)]);
            self.status = life.summary;
        }
        if life.hung.is_none() {
            self.hung = None;
            let due = |every: Duration| self.petted.is_none_or(|at| at.elapsed() >= every / 4);
            if self.watchdog.is_some_and(due) {
                self.petted = Some(Instant::now());
                self.tell(&[NotifyState::Watchdog]);
            }
        } else if self.hung.is_none() {
            self.hung = life.hung;
            let what = self.hung.as_deref().unwrap_or_default();
            match self.watchdog {
                Some(_) => tracing::error!("{what}; the service manager's watchdog is left to restart linesight"),
                None => tracing::error!("{what}; restart linesight"),
            }
        }
    }

    /// The configuration is read again.
    pub fn reloading(&mut self) {
        if !self.ready {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    pub fn reloaded(&mut self) {
        if self.ready {
            self.tell(&[NotifyState::Ready]);
        }
    }

    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what was judged is written and sent")]);
    }

    /// How often [`Notify::tick`] is to be called.
    pub fn every(&self, usual: Duration) -> Duration {
        self.watchdog.map_or(usual, |w| usual.min(w / 4))
    }
}
