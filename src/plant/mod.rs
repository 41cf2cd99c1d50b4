//! Plant: all lines of one process, with what they share: database, networks, answers, metrics.
//!
//! Threads: each line has its own ("line-<name>", [`serve`]) and its stages; the caller of [`Plant::tick`] sends the line
//! reports. Invariants:
//! 1. A line that fails, stalls or is reloaded does not touch the others (tests `tests/run.rs::a_broken_line_does_not_touch_the_others`,
//!    `a_changed_file_reloads_one_line`).
//! 2. Every part that a line judged is in the audit log's counts, unless the process is killed: then up to a minute of them is
//!    missing (test `tests/audit.rs::a_run_is_written_down`).
//! 3. A stop drains: what was judged is recorded and in the spool before the process ends
//!    (test `tests/run.rs::terminated_under_load_everything_judged_is_kept`).

mod counts;
mod networks;
mod outputs;
mod serve;

use crate::config::{Config, LineConfig};
use crate::deliver::{self, Deliver, Drained, Endpoint};
use crate::error::{Context, Error, Result};
use crate::event::{EVENT_SCHEMA, LineReport, LineState, REPORT_EVERY_S, SpoolDepth};
use crate::line::Totals;
use crate::model::Model;
use crate::observe::audit::{Audit, AuditLog, Entry};
use crate::observe::notify::Life;
use crate::observe::{self, LineStatus, Snapshot};
use crate::respond::Mqtt;
use counts::Counted;
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
/// Who does what the program does by itself, in the audit log.
const ITSELF: &str = "itself";

/// What the lines share.
struct Shared {
    site: String,
    run: Uuid,
    deliver: Arc<Deliver>,
    networks: Networks,
    mqtt: Option<Arc<Mqtt>>,
    /// The review server that [review] names.
    review: Option<Endpoint>,
    /// How many lines share the device.
    lines: AtomicUsize,
    /// Sorted held-out scores of each line's model.
    calibrations: Mutex<BTreeMap<String, Vec<f32>>>,
    /// The threshold of each line's model, over reloads.
    thresholds: Mutex<BTreeMap<String, f32>>,
    /// For what the program does by itself.
    audit: Option<Audit>,
}

impl Shared {
    fn set_calibration(&self, line: &str, model: &Model) {
        let scores = model.calibration.scores.clone();
        self.calibrations.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned(), scores);
    }

    /// A line has loaded its model: a threshold that is not the one it had is said.
    fn loaded(&self, line: &str, model: &Model) {
        let to = model.threshold();
        let before = self.thresholds.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned(), to);
        if let (Some(audit), Some(from)) = (&self.audit, before.filter(|from| *from != to)) {
            audit.say(Entry::ThresholdChanged {
                line: Some(line.to_owned()),
                model: model.name.clone(),
                version: model.version.clone(),
                from,
                to,
                why: None,
            });
        }
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
    counted: Counted,
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
    /// None: off. Of the user that runs the process.
    audit: Option<Audit>,
    log: Option<AuditLog>,
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
        let log = config.audit_log(database).map(AuditLog::open).transpose()?;
        let audit = log.as_ref().map(AuditLog::handle);
        let database = config.database.clone().unwrap_or_else(|| database.to_owned());
        let limits =
            deliver::Limits { retention: config.retention, bounds: config.bounds, ..deliver::Limits::default() };
        let deliver_config = deliver::Config {
            database: database.clone(),
            run,
            targets: config.targets.clone(),
            audit: audit.as_ref().map(|a| a.by(ITSELF)),
        };
        let deliver = Arc::new(Deliver::open_with(deliver_config, limits)?);
        if let Some(audit) = &audit {
            audit.say(Entry::ProcessStarted {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                run,
                config: config.file.clone(),
                config_sha256: config.sha256.clone(),
                database,
            });
        }
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
                if let Some(audit) = &audit {
                    sources.extra.extend(audit.metrics());
                }
                observe::Server::start(listen, sources)
            })
            .transpose()?;
        let shared = Arc::new(Shared {
            site: config.site.clone(),
            run,
            deliver,
            networks: Networks::default(),
            review: config.review().and_then(|target| match &target.kind {
                deliver::Kind::Review(endpoint) => Some(endpoint.clone()),
                _ => None,
            }),
            mqtt,
            lines: AtomicUsize::new(config.lines.len()),
            calibrations: Mutex::default(),
            thresholds: Mutex::default(),
            audit: audit.as_ref().map(|a| a.by(ITSELF)),
        });
        let mut plant = Plant {
            config,
            shared,
            statuses,
            server,
            lines: BTreeMap::new(),
            ended: Vec::new(),
            reported: Instant::now(),
            audit,
            log,
        };
        for line in plant.config.lines.clone() {
            plant.start_line(line, plant.audit.clone())?;
        }
        Ok(plant)
    }

    /// Where metrics and status are.
    pub fn url(&self) -> Option<String> {
        self.server.as_ref().map(observe::Server::url)
    }

    fn start_line(&mut self, config: LineConfig, audit: Option<Audit>) -> Result<()> {
        let status = Arc::new(LineStatus::new(&config.name, &config.source.name()));
        self.statuses.set(status.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let served =
            Served { shared: self.shared.clone(), config: config.clone(), stop: stop.clone(), status: status.clone() };
        if let Some(audit) = audit {
            audit.say(Entry::LineStarted { line: config.name.clone(), source: config.source.name() });
        }
        let thread = std::thread::Builder::new()
            .name(format!("line-{}", config.name))
            .spawn(move || served.serve())
            .failed(|| format!("no thread for line \"{}\"", config.name))?;
        let counted = Counted::new();
        self.lines.insert(config.name.clone(), Running { config, stop, status, thread, counted });
        Ok(())
    }

    /// Stops a line and keeps what it did. Its last report says that it stopped.
    fn end_line(&mut self, name: &str, audit: Option<&Audit>) {
        let Some(mut running) = self.lines.remove(name) else { return };
        running.stop.store(true, Relaxed);
        let outcome = running.thread.join().unwrap_or_else(|_| Outcome {
            totals: None,
            error: Some(Error::failed("the line's thread panicked; this is a bug in linesight")),
        });
        self.report(&running.status);
        let status = running.status.snapshot();
        if let (Some(itself), Some(audit)) = (&self.shared.audit, audit) {
            running.counted.say(&status, itself);
            let (frames, parts) = (status.counters.frames, status.counters.parts);
            audit.say(Entry::LineStopped { line: name.to_owned(), frames, parts });
        }
        let error = outcome.error.map(|e| e.to_string());
        self.ended.push(Summary { status, totals: outcome.totals, error });
    }

    /// To be called about once a second: sends the reports that are due and says what was judged.
    pub fn tick(&mut self) {
        if let Some(audit) = &self.shared.audit {
            for running in self.lines.values_mut() {
                running.counted.say_if_due(&running.status, audit);
            }
        }
        if self.reported.elapsed() >= Duration::from_secs(REPORT_EVERY_S) {
            self.reported = Instant::now();
            for running in self.lines.values() {
                self.report(&running.status);
            }
        }
    }

    /// How its lines are, for the service manager. A thread that has been silent for longer than `limit` hangs.
    pub fn life(&self, limit: Duration) -> Life {
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut started, mut hung) = (true, None);
        for (name, running) in &self.lines {
            let status = &running.status;
            let state = status.state();
            *states.entry(state.as_str()).or_default() += 1;
            started &= status.has_started();
            // one that ends as it should says so before
            let gone = running.thread.is_finished() && !matches!(state, LineState::Stopped | LineState::Failed);
            let why = status.pulse.hung(limit).or_else(|| gone.then(|| "its thread has ended".to_owned()));
            hung = hung.or_else(|| Some(format!("line \"{name}\": {}", why?)));
        }
        let states: Vec<String> = states.into_iter().map(|(state, n)| format!("{n} {state}")).collect();
        let waiting = self.shared.deliver.status().waiting;
        let spool = if waiting > 0 { format!("; {waiting} anomalies wait in the spool") } else { String::new() };
        let summary = match &hung {
            Some(hung) => hung.clone(),
            None => format!("{} lines: {}{spool}", self.lines.len(), states.join(", ")),
        };
        Life { started, hung, summary }
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
    /// What the lines share needs a restart; returns the names of such keys that changed. `who` is for the audit log.
    pub fn reload(&mut self, config: Config, who: &str) -> Result<Vec<&'static str>> {
        let need_restart = self.config.shared_changes(&config);
        let audit = self.audit.as_ref().map(|a| a.by(who));
        if let Some(audit) = &audit {
            audit.say(Entry::ConfigChanged {
                config: config.file.clone(),
                config_sha256: config.sha256.clone(),
                changes: self.config.changes(&config),
                at_next_start: need_restart.iter().map(|&s| s.to_owned()).collect(),
            });
        }
        let gone: Vec<String> = self
            .lines
            .iter()
            .filter(|(_, running)| !config.lines.contains(&running.config))
            .map(|(name, _)| name.clone())
            .collect();
        self.shared.lines.store(config.lines.len(), Relaxed);
        for name in &gone {
            tracing::info!(line = name, "line is stopped: its configuration changed");
            self.end_line(name, audit.as_ref());
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
                self.start_line(line.clone(), audit.clone())?;
            }
        }
        self.config.take_lines(config);
        Ok(need_restart)
    }

    /// A configuration that was refused, for the audit log.
    pub fn refused(&self, file: &Path, error: &Error, who: &str) {
        if let Some(audit) = &self.audit {
            audit.by(who).say(Entry::ConfigRefused { config: file.to_owned(), error: error.to_string() });
        }
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
            self.end_line(&name, self.audit.clone().as_ref());
        }
        if let Some(mqtt) = &self.shared.mqtt {
            mqtt.stop(LAST_ANSWERS);
        }
        if let Some(server) = self.server.take() {
            server.stop();
        }
        let Plant { shared, ended, config, audit, log, .. } = self;
        let run = shared.run;
        let shared = Arc::into_inner(shared).ok_or_else(|| Error::failed("a line still holds the database"))?;
        let deliver = Arc::into_inner(shared.deliver)
            .ok_or_else(|| Error::failed("the status server still holds the database"))?;
        let drained = deliver.drain(patience)?;
        if let (Some(audit), Some(log)) = (audit, log) {
            audit.say(Entry::ProcessStopped {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                run,
                config: config.file,
                config_sha256: config.sha256,
                waiting: drained.waiting,
            });
            log.close();
        }
        Ok((ended, drained))
    }
}

/// Whether a line ended well.
impl Summary {
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.status.state == LineState::Stopped
    }
}
