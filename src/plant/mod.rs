//! Plant: all lines of one process, with what they share: database, networks, answers, metrics.
//!
//! Threads: each line has its own ("line-<name>", [`serve`]) and its stages; the caller of [`Plant::tick`] sends the line
//! reports. Invariants:
//! 1. A line that fails, stalls or is reloaded does not touch the others (tests `tests/run.rs::a_broken_line_does_not_touch_the_others`,
//!    `a_changed_file_reloads_one_line`).
//! 2. A stop drains: what was judged is recorded and in the spool before the process ends
//!    (test `tests/run.rs::terminated_under_load_everything_judged_is_kept`).

mod networks;
mod outputs;
mod serve;

use crate::config::{Config, LineConfig};
use crate::deliver::{self, Deliver, Drained};
use crate::error::{Context, Error, Result};
use crate::event::{EVENT_SCHEMA, LineReport, LineState, REPORT_EVERY_S, SpoolDepth};
use crate::line::Totals;
use crate::model::Model;
use crate::observe::{self, LineStatus, Snapshot};
use crate::respond::Mqtt;
use networks::Networks;
use serde::Serialize;
pub use serve::check;
use serve::{Outcome, Served};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long the lines wait for the broker before they start without it.
const FIRST_CONNECTION: Duration = Duration::from_secs(2);
/// How long answers may take to leave at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What the lines share.
struct Shared {
    site: String,
    run: Uuid,
    deliver: Arc<Deliver>,
    networks: Networks,
    mqtt: Option<Arc<Mqtt>>,
    /// How many lines share the device.
    lines: AtomicUsize,
    /// Sorted held-out scores of each line's model.
    calibrations: Mutex<BTreeMap<String, Vec<f32>>>,
}

impl Shared {
    fn set_calibration(&self, line: &str, model: &Model) {
        let scores = model.calibration.scores.clone();
        self.calibrations.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned(), scores);
    }

    fn calibration(&self, line: &str) -> Option<Vec<f32>> {
        self.calibrations.lock().unwrap_or_else(PoisonError::into_inner).get(line).cloned()
    }
}

/// A line at work.
struct Running {
    config: LineConfig,
    stop: Arc<AtomicBool>,
    status: Arc<LineStatus>,
    thread: JoinHandle<Outcome>,
}

/// What a line did; one element of `run --json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub status: Snapshot,
    /// Times and bytes of a line that ended by itself or was stopped; none for one that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// All lines of a process.
pub struct Plant {
    config: Config,
    shared: Arc<Shared>,
    statuses: observe::Lines,
    server: Option<observe::Server>,
    lines: BTreeMap<String, Running>,
    /// Of lines that have ended.
    ended: Vec<Summary>,
    reported: Instant,
}

impl Plant {
    /// Opens the database, the outputs and the status server, and starts every line. `database` is used when the configuration
    /// names none.
    pub fn start(config: Config, database: &Path) -> Result<Plant> {
        let run = Uuid::now_v7();
        let mqtt = config.mqtt.clone().map(Mqtt::connect).transpose()?.map(Arc::new);
        // so that the first answers are not lost; lines work without a broker, and the plant takes silence for a reject
        if let Some(Err(e)) = mqtt.as_ref().map(|m| m.wait(FIRST_CONNECTION)) {
            tracing::warn!("no answers leave until the broker is there: {e}");
        }
        let database = config.database.clone().unwrap_or_else(|| database.to_owned());
        let limits = deliver::Limits { retention: config.retention, ..deliver::Limits::default() };
        let deliver_config = deliver::Config { database, run, endpoint: config.review.clone() };
        let deliver = Arc::new(Deliver::open_with(deliver_config, limits)?);
        let statuses = observe::Lines::default();
        let server = config
            .observe
            .map(|listen| {
                let deliver = deliver.clone();
                let mut sources = observe::Sources::new(statuses.clone());
                sources.deliver = Some(Box::new(move || deliver.status()));
                if let Some(mqtt) = &mqtt {
                    sources.extra = outputs::mqtt_metrics(mqtt);
                }
                observe::Server::start(listen, sources)
            })
            .transpose()?;
        let shared = Arc::new(Shared {
            site: config.site.clone(),
            run,
            deliver,
            networks: Networks::default(),
            mqtt,
            lines: AtomicUsize::new(config.lines.len()),
            calibrations: Mutex::default(),
        });
        let mut plant = Plant {
            config,
            shared,
            statuses,
            server,
            lines: BTreeMap::new(),
            ended: Vec::new(),
            reported: Instant::now(),
        };
        for line in plant.config.lines.clone() {
            plant.start_line(line)?;
        }
        Ok(plant)
    }

    /// Where metrics and status are.
    pub fn url(&self) -> Option<String> {
        self.server.as_ref().map(observe::Server::url)
    }

    fn start_line(&mut self, config: LineConfig) -> Result<()> {
        let status = Arc::new(LineStatus::new(&config.name, &config.source.name()));
        self.statuses.set(status.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let served =
            Served { shared: self.shared.clone(), config: config.clone(), stop: stop.clone(), status: status.clone() };
        let thread = std::thread::Builder::new()
            .name(format!("line-{}", config.name))
            .spawn(move || served.serve())
            .failed(|| format!("no thread for line \"{}\"", config.name))?;
        self.lines.insert(config.name.clone(), Running { config, stop, status, thread });
        Ok(())
    }

    /// Stops a line and keeps what it did. Its last report says that it stopped.
    fn end_line(&mut self, name: &str) {
        let Some(running) = self.lines.remove(name) else { return };
        running.stop.store(true, Relaxed);
        let outcome = running.thread.join().unwrap_or_else(|_| Outcome {
            totals: None,
            error: Some(Error::failed("the line's thread panicked; this is a bug in linesight")),
        });
        self.report(&running.status);
        let error = outcome.error.map(|e| e.to_string());
        self.ended.push(Summary { status: running.status.snapshot(), totals: outcome.totals, error });
    }

    /// To be called about once a second: sends the reports that are due.
    pub fn tick(&mut self) {
        if self.reported.elapsed() >= Duration::from_secs(REPORT_EVERY_S) {
            self.reported = Instant::now();
            for running in self.lines.values() {
                self.report(&running.status);
            }
        }
    }

    /// Whether every line has ended by itself: all sources were recordings.
    pub fn is_over(&self) -> bool {
        self.lines.values().all(|l| l.thread.is_finished())
    }

    fn report(&self, status: &LineStatus) {
        let s = status.snapshot();
        // a line that could not even load its model has nothing to report but its state
        let Some(model) = s.model else { return };
        let spool = self.shared.deliver.status();
        self.shared.deliver.report(LineReport {
            schema: EVENT_SCHEMA,
            site: self.shared.site.clone(),
            calibration: self.shared.calibration(&s.line),
            line: s.line,
            run: self.shared.run,
            seq: 0,
            at: s.at,
            state: s.state,
            reason: s.reason,
            last_frame_age_s: s.last_frame_age_s,
            fps: s.fps,
            counters: s.counters,
            spool: SpoolDepth { waiting: spool.waiting, set_aside: spool.set_aside },
            health: s.health,
            drift: s.drift,
            model,
            threshold: s.threshold.unwrap_or_default(),
            rows: Vec::new(),
            chain: None,
        });
    }

    /// Goes over to another configuration: lines that changed are stopped and started, new ones started, the others untouched.
    /// What the lines share needs a restart; returns the names of such keys that changed.
    pub fn reload(&mut self, config: Config) -> Result<Vec<&'static str>> {
        let need_restart = self.config.shared_changes(&config);
        let gone: Vec<String> = self
            .lines
            .iter()
            .filter(|(_, running)| !config.lines.contains(&running.config))
            .map(|(name, _)| name.clone())
            .collect();
        self.shared.lines.store(config.lines.len(), Relaxed);
        for name in &gone {
            tracing::info!(line = name, "line is stopped: its configuration changed");
            self.end_line(name);
            if !config.lines.iter().any(|l| l.name == *name) {
                self.statuses.remove(name);
                if let Some(mqtt) = &self.shared.mqtt {
                    mqtt.forget(name);
                }
            }
        }
        for line in &config.lines {
            if !self.lines.contains_key(&line.name) {
                tracing::info!(line = line.name, "line is started");
                self.start_line(line.clone())?;
            }
        }
        self.config.lines = config.lines;
        Ok(need_restart)
    }

    /// Stops every line, lets the last answers leave, commits what was judged, and waits up to `patience` without progress for
    /// uploads; what still waits is sent by the next run.
    pub fn stop(mut self, patience: Duration) -> Result<(Vec<Summary>, Drained)> {
        // all at once, so that the last line does not go on for as long as the others take
        for running in self.lines.values() {
            running.stop.store(true, Relaxed);
        }
        let names: Vec<String> = self.lines.keys().cloned().collect();
        for name in names {
            self.end_line(&name);
        }
        if let Some(mqtt) = &self.shared.mqtt {
            mqtt.stop(LAST_ANSWERS);
        }
        if let Some(server) = self.server.take() {
            server.stop();
        }
        let Plant { shared, ended, .. } = self;
        let shared = Arc::into_inner(shared).ok_or_else(|| Error::failed("a line still holds the database"))?;
        let deliver = Arc::into_inner(shared.deliver)
            .ok_or_else(|| Error::failed("the status server still holds the database"))?;
        Ok((ended, deliver.drain(patience)?))
    }
}

/// Whether a line ended well.
impl Summary {
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.status.state == LineState::Stopped
    }
}
