//! The thread "line-<name>": keeps one line at work. Loads the model, arms it, runs the line, and starts over when something
//! failed that a person may mend meanwhile; other lines notice nothing.

use super::Shared;
use crate::config::LineConfig;
use crate::deliver::live_picture::LivePicture;
use crate::error::{Error, Result};
use crate::event::{LineState, Verdict};
use crate::judge::drift::Drift;
use crate::line::{self, Judged, Line, Service, Totals};
use crate::model::{Model, Trigger};
use crate::observe::LineStatus;
use crate::observe::audit::Entry;
use crate::observe::health::HealthWatch;
use crate::observe::pulse::{LOADING, Stage};
use crate::respond::Respond;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Pauses between attempts of a line that failed: the first, and the longest; each is twice the one before.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// How often a pause looks whether the line shall stop.
const LOOK: Duration = Duration::from_millis(50);
/// How often drift is assessed.
const ASSESS_EVERY: Duration = Duration::from_secs(1);

/// What came of a line.
pub(super) struct Outcome {
    pub totals: Option<Totals>,
    /// Why it ended before its source did.
    pub error: Option<Error>,
}

/// One line with what it shares.
pub(super) struct Served {
    pub shared: Arc<Shared>,
    pub config: LineConfig,
    pub stop: Arc<AtomicBool>,
    pub status: Arc<LineStatus>,
}

impl Served {
    pub fn serve(self) -> Outcome {
        let mut pause = PAUSES[0];
        let mut next_part = None;
        let mut said = Said::default();
        let pulse = &self.status.pulse;
        let _alive = pulse.begin(Stage::Line);
        loop {
            self.status.set_state(LineState::Starting, None);
            let started = Instant::now();
            let error = match self.attempt(&mut next_part, &mut said) {
                Ok(totals) => {
                    self.status.set_state(LineState::Stopped, None);
                    return Outcome { totals: Some(totals), error: None };
                }
                Err(e) => e,
            };
            let hint = error.hint_text().map(|h| format!(" ({h})")).unwrap_or_default();
            tracing::error!(line = self.config.name, "line failed: {error}{hint}");
            self.status.set_state(LineState::Failed, Some(error.to_string()));
            self.status.set_started();
            let failure = Entry::LineFailed {
                line: self.config.name.clone(),
                error: error.to_string(),
                hint: error.hint_text().map(str::to_owned),
            };
            self.say_once(&mut said.failure, failure);
            // playing a recording again would judge its parts twice
            if !self.config.source.is_live() || self.stop.load(Relaxed) {
                return Outcome { totals: None, error: Some(error) };
            }
            if started.elapsed() > PAUSES[1] {
                pause = PAUSES[0];
            }
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if self.stop.load(Relaxed) {
                    self.status.set_state(LineState::Stopped, None);
                    return Outcome { totals: None, error: Some(error) };
                }
                pulse.beat(Stage::Line);
                std::thread::sleep(LOOK);
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// Says what is new; whether it was.
    fn say_once(&self, said: &mut Option<Entry>, entry: Entry) -> bool {
        if said.as_ref() == Some(&entry) {
            return false;
        }
        if let Some(audit) = &self.shared.audit {
            audit.say(entry.clone());
        }
        *said = Some(entry);
        true
    }

    /// Runs the line once. `next_part` is what an attempt before left.
    fn attempt(&self, next_part: &mut Option<u64>, said: &mut Said) -> Result<Totals> {
        let (c, shared) = (&self.config, &*self.shared);
        self.status.pulse.beat_for(Stage::Line, LOADING);
        let mut model = load(c)?;
        self.status.set_model(model.id(), model.threshold());
        let options = line::network_of(&model, &c.device, c.allow_fallback, c.hint);
        let held = shared.networks.get(&model, &options)?;
        // only now: the reference scores, which were just checked, are those of the package's own mask
        leave_out(&mut model, c)?;
        let network = held.share(shared.lines.load(Relaxed), c.requests)?;
        let loaded = Entry::ModelLoaded {
            line: c.name.clone(),
            name: model.name.clone(),
            version: model.version.clone(),
            sha256: model.sha256.clone(),
            threshold: model.threshold(),
            device: network.device().to_owned(),
            precision: network.precision().as_str().to_owned(),
        };
        if self.say_once(&mut said.model, loaded) {
            shared.loaded(&c.name, &model);
        }
        let first = match *next_part {
            Some(next) => next,
            None => shared.deliver.resume(&c.name)?.next_part,
        };
        let mut respond: Vec<Arc<dyn Respond>> = Vec::new();
        if let Some(mqtt) = &shared.mqtt {
            mqtt.watch(self.status.clone(), first, c.deadline)?;
            respond.push(mqtt.clone());
        }
        let service = Service {
            camera: c.camera.clone(),
            watchdog: c.watchdog,
            overload: c.overload,
            queue: c.queue,
            deadline: c.deadline,
            debounce: c.debounce,
            next_part: AtomicU64::new(first),
            respond,
            status: self.status.clone(),
            lot: c.lot.clone(),
            serial: c.serial.clone(),
            repeat: c.repeat,
            health: HealthWatch::start(&model, self.status.clone())?,
            live_picture: match &shared.review {
                Some(endpoint) if c.live_picture => LivePicture::start(endpoint, &c.name)?,
                _ => None,
            },
        };
        let line = Line {
            name: &c.name,
            site: &shared.site,
            source: &c.source,
            realtime: c.realtime,
            model: &model,
            deliver: Some(&shared.deliver),
            stop: &self.stop,
            service: Some(&service),
        };
        shared.set_calibration(&c.name, &model);
        let mut watch = Watch { drift: Drift::new(&model.calibration), status: &self.status, assessed: Instant::now() };
        said.failure = None;
        self.status.set_started();
        let outcome = line::run_on(&line, network, |judged| watch.look(&judged), |_, _| {});
        *next_part = Some(service.next_part.load(Relaxed));
        outcome
    }
}

/// What was said in the audit log last: an attempt that is like the one before says nothing.
#[derive(Default)]
struct Said {
    failure: Option<Entry>,
    model: Option<Entry>,
}

/// The model with what the line changes of it.
fn load(c: &LineConfig) -> Result<Model> {
    let mut model = Model::load(&c.model)?;
    if let Some(trigger) = c.trigger.filter(|t| *t != model.trigger) {
        return Err(Error::usage(format!(
            "line \"{}\" wants trigger \"{}\", model \"{}\" was taught with \"{}\"",
            c.name,
            trigger.as_str(),
            model.name,
            model.trigger.as_str()
        ))
        .hint("leave trigger out, or teach the model with that trigger"));
    }
    if let Some(roi) = c.roi {
        if model.trigger == Trigger::Presence {
            return Err(Error::usage(format!(
                "line \"{}\": parts of model \"{}\" are located in the ROI that was taught",
                c.name, model.name
            ))
            .hint("leave roi out, or teach again with --roi"));
        }
        model.roi = Some(roi);
    }
    Ok(model)
}

fn leave_out(model: &mut Model, c: &LineConfig) -> Result<()> {
    c.mask.as_ref().map_or(Ok(()), |mask| model.leave_out(mask))
}

/// Whether the line's model can be loaded and suits the line; opens no device.
pub fn check(c: &LineConfig) -> Result<()> {
    leave_out(&mut load(c)?, c)
}

/// What is looked at beside the verdicts.
struct Watch<'a> {
    drift: Drift,
    status: &'a LineStatus,
    assessed: Instant,
}

impl Watch<'_> {
    /// On the verdict path: hands over, computes nothing but once a second.
    fn look(&mut self, judged: &Judged) -> Result<()> {
        let i = &judged.inspection;
        if i.verdict == Verdict::Pass {
            self.drift.push(i.score);
        }
        if self.assessed.elapsed() >= ASSESS_EVERY {
            self.assessed = Instant::now();
            let health = self.status.health();
            self.status.set_drift(self.drift.assess(&health));
        }
        Ok(())
    }
}
