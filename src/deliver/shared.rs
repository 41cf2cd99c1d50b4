//! What the threads of delivery tell each other: counters, what the spool holds, what is being sent, who is to be woken.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::Notify;

use super::TargetStatus;
use super::spool::{Depth, TargetDepth};
use crate::error::{Error, Result};

/// A target's numbers, for the status.
#[derive(Default)]
pub(super) struct TargetState {
    pub name: String,
    pub depth: Mutex<TargetDepth>,
    pub delivered: AtomicU64,
    pub attempts: AtomicU64,
    pub bytes: AtomicU64,
    pub last_error: Mutex<Option<String>>,
}

impl TargetState {
    pub fn new(name: &str) -> Arc<TargetState> {
        Arc::new(TargetState { name: name.to_owned(), ..TargetState::default() })
    }

    pub fn attempt(&self) {
        add(&self.attempts, 1);
    }

    pub fn delivered(&self, bytes: u64) {
        add(&self.delivered, 1);
        add(&self.bytes, bytes);
    }

    pub fn depth(&self) -> TargetDepth {
        *self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn show(&self, depth: TargetDepth) {
        if depth == TargetDepth::default() {
            Shared::set(&self.last_error, None);
        }
        *self.depth.lock().unwrap_or_else(PoisonError::into_inner) = depth;
    }

    pub fn status(&self) -> TargetStatus {
        TargetStatus {
            name: self.name.clone(),
            depth: self.depth(),
            delivered: self.delivered.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            last_error: Shared::get(&self.last_error),
        }
    }
}

/// What the threads tell each other; no two of the locks are ever held together.
#[derive(Default)]
pub(super) struct Shared {
    pub recorded: AtomicU64,
    pub spooled: AtomicU64,
    pub delivered: AtomicU64,
    pub waiting: AtomicU64,
    pub dead: AtomicU64,
    /// Since the database was opened.
    pub died: AtomicU64,
    pub dropped: AtomicU64,
    pub pictures_dropped: AtomicU64,
    pub salvaged: AtomicU64,
    pub lost: AtomicU64,
    pub spool_bytes: AtomicU64,
    pub bytes_uploaded: AtomicU64,
    pub channel_waits: AtomicU64,
    pub picture_failures: AtomicU64,
    pub ledger_conflicts: AtomicU64,
    pub reports_waiting: AtomicU64,
    pub reports_delivered: AtomicU64,
    pub reports_dropped: AtomicU64,
    pub report_bytes: AtomicU64,
    pub retained_away: AtomicU64,
    pub stopping: AtomicBool,
    /// Configured ones first; then those no longer configured for which anomalies wait.
    pub targets: RwLock<Vec<Arc<TargetState>>>,
    /// Wakes the uploaders of the configured ones.
    pub wake: Vec<Arc<Notify>>,
    /// Anomalies that are being sent, and to how many targets.
    pub flying: Mutex<HashMap<i64, u32>>,
    pub write_error: Mutex<Option<String>>,
    /// For messages.
    pub database: PathBuf,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Shared {
    pub fn stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Shows what the spool holds.
    pub fn show(&self, depth: &Depth) {
        self.waiting.store(depth.waiting, Relaxed);
        self.dead.store(depth.dead, Relaxed);
        self.spool_bytes.store(depth.bytes, Relaxed);
        let known = self.targets.read().unwrap_or_else(PoisonError::into_inner).clone();
        for target in &known {
            target.show(depth.targets.get(&target.name).copied().unwrap_or_default());
        }
        for (name, depth) in &depth.targets {
            if !known.iter().any(|target| target.name == *name) {
                let target = TargetState::new(name);
                target.show(*depth);
                self.targets.write().unwrap_or_else(PoisonError::into_inner).push(target);
            }
        }
    }

    pub fn wake_all(&self) {
        self.wake.iter().for_each(|wake| wake.notify_one());
    }

    /// Notes that an anomaly is being sent.
    pub fn fly(&self, seq: i64) {
        *self.flying.lock().unwrap_or_else(PoisonError::into_inner).entry(seq).or_default() += 1;
    }

    /// The end of one [`Shared::fly`].
    pub fn land(&self, seq: i64) {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = flying.get_mut(&seq) {
            *count -= 1;
            if *count == 0 {
                flying.remove(&seq);
            }
        }
    }

    pub fn flying(&self) -> HashSet<i64> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    pub fn set(slot: &Mutex<Option<String>>, text: Option<String>) {
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub fn get(slot: &Mutex<Option<String>>) -> Option<String> {
        slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error of a writer that cannot write, if it cannot.
    pub fn check(&self) -> Result<()> {
        match Self::get(&self.write_error) {
            None => Ok(()),
            Some(cause) => Err(Error::failed(format!("cannot write \"{}\"", self.database.display()))
                .because(cause)
                .hint("free space on that disk or mend it; nothing that was accepted is given up while this runs")),
        }
    }

    pub fn stopped(&self) -> Error {
        Error::failed(format!("the writer of \"{}\" has stopped", self.database.display()))
    }
}
