//! line.toml: what `linesight run` runs. Typed form ([`raw`]) in, checked form out; stages see only the checked form.
//!
//! Invariants:
//! 1. Whatever the file holds, it is read or refused with an error that names file, line, key and remedy; never a panic
//!    (tests `tests/config.rs`, among them a property test over arbitrary text).
//! 2. The annotated example assets/line.toml is the default (test `tests/config.rs::the_example_equals_the_defaults`).
//! 3. Nothing is opened but files: no camera, no network, no device (test `tests/config.rs::check_opens_nothing`).

mod changes;
mod place;
pub mod raw;
mod targets;

use crate::capture::{CameraOptions, Source, Watchdog};
use crate::deliver::{Bounds, REVIEW, Retention, Target};
use crate::detect::{Device, Hint};
use crate::error::{Context, Error, Result};
use crate::hex::sha256;
use crate::judge::debounce::Debounce;
use crate::line::Overload;
use crate::model::Trigger;
use crate::observe::audit;
use crate::prepare::Roi;
use crate::respond::MqttOptions;
use place::{Step, Text, steps};
use raw::{Raw, RawLine};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest deadline: beyond a minute nobody waits.
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 1..=60_000;
const QUEUE: std::ops::RangeInclusive<u32> = 1..=64;
const REQUESTS: std::ops::RangeInclusive<u32> = 1..=64;
const DEBOUNCE: std::ops::RangeInclusive<u32> = 1..=16;
const AUDIT_MB: std::ops::RangeInclusive<u32> = 1..=4096;
const AUDIT_KEEP: std::ops::RangeInclusive<u32> = 1..=1000;
/// Longer names make no good topics and column heads.
const NAME_BYTES: usize = 64;

/// What is run, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub file: PathBuf,
    /// Of the file's text, in hexadecimal digits.
    pub sha256: String,
    pub site: String,
    /// None: the user's state folder.
    pub database: Option<PathBuf>,
    pub retention: Retention,
    /// How much the spool holds.
    pub bounds: Bounds,
    /// Where anomalies go.
    pub targets: Vec<Target>,
    /// None: off.
    pub observe: Option<SocketAddr>,
    /// None: off.
    pub audit: Option<AuditConfig>,
    pub mqtt: Option<MqttOptions>,
    pub lines: Vec<LineConfig>,
    /// Every key as it may be shown.
    keys: changes::Keys,
}

/// The audit log, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// None: beside the database.
    pub file: Option<PathBuf>,
    pub max_bytes: u64,
    pub keep: u32,
}

/// One line, checked. Two that are equal need no restart.
#[derive(Debug, Clone, PartialEq)]
pub struct LineConfig {
    pub name: String,
    pub source: Source,
    pub camera: CameraOptions,
    pub watchdog: Watchdog,
    pub model: PathBuf,
    pub device: Device,
    pub allow_fallback: bool,
    pub roi: Option<Roi>,
    pub mask: Option<PathBuf>,
    pub trigger: Option<Trigger>,
    pub hint: Hint,
    pub overload: Overload,
    pub queue: usize,
    pub deadline: Option<Duration>,
    pub requests: Option<usize>,
    pub debounce: Debounce,
    pub realtime: bool,
    pub repeat: bool,
    pub live_picture: bool,
    pub lot: Option<String>,
    pub serial: Option<String>,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(file)
            .usage(|| format!("configuration \"{}\" cannot be read", file.display()))
            .map_err(|e| e.hint("--config names a line.toml; assets/line.toml is an example with every key"))?;
        Self::parse(&text, file)
    }

    /// Checks the text of a file; relative paths are relative to the file's folder.
    pub fn parse(text: &str, file: &Path) -> Result<Config> {
        let at = Text { file, text };
        let reader = toml::Deserializer::parse(text).map_err(|e| at.syntax(&e, &[]))?;
        let raw: Raw = serde_path_to_error::deserialize(reader).map_err(|e| at.syntax(e.inner(), &steps(e.path())))?;
        Checker { at, folder: file.parent().unwrap_or(Path::new("")).to_owned() }.check(raw)
    }
}

impl Config {
    /// The target that [review] names.
    pub fn review(&self) -> Option<&Target> {
        self.targets.iter().find(|target| target.name == REVIEW)
    }

    fn others(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|target| target.name != REVIEW)
    }

    /// Which keys are other in `other`, with their values; secrets are left out.
    pub fn changes(&self, other: &Config) -> Vec<audit::Change> {
        changes::between(&self.keys, &other.keys)
    }

    /// Takes the lines of another configuration, as a reload does; the rest takes effect at the next start.
    pub fn take_lines(&mut self, other: Config) {
        self.keys.retain(|(line, _), _| line.is_none());
        self.keys.extend(other.keys.into_iter().filter(|((line, _), _)| line.is_some()));
        (self.lines, self.file, self.sha256) = (other.lines, other.file, other.sha256);
    }

    /// Where the audit log is, if there is one. `database` is used when the configuration names none.
    pub fn audit_log(&self, database: &Path) -> Option<audit::Options> {
        let audit = self.audit.as_ref()?;
        let database = self.database.as_deref().unwrap_or(database);
        let file = audit.file.clone().unwrap_or_else(|| audit::Options::beside(database));
        Some(audit::Options { file, max_bytes: audit.max_bytes, keep: audit.keep })
    }

    /// Names of what the lines share that is other in `other`: it takes a restart.
    pub fn shared_changes(&self, other: &Config) -> Vec<&'static str> {
        [
            ("site", self.site != other.site),
            (
                "spool",
                self.database != other.database || self.retention != other.retention || self.bounds != other.bounds,
            ),
            ("review", self.review() != other.review()),
            ("target", !self.others().eq(other.others())),
            ("observe", self.observe != other.observe),
            ("audit", self.audit != other.audit),
            ("mqtt", self.mqtt != other.mqtt),
        ]
        .into_iter()
        .filter_map(|(name, changed)| changed.then_some(name))
        .collect()
    }
}

/// The JSON Schema of line.toml, for editors.
pub fn schema() -> Result<String> {
    serde_json::to_string_pretty(&schemars::schema_for!(Raw)).failed(|| "the schema cannot be written as JSON")
}

struct Checker<'a> {
    at: Text<'a>,
    folder: PathBuf,
}

fn key(name: &str) -> Vec<Step> {
    name.split('.').map(|k| Step::Key(k.to_owned())).collect()
}

impl Checker<'_> {
    fn path(&self, path: &Path) -> PathBuf {
        if path.is_absolute() { path.to_owned() } else { self.folder.join(path) }
    }

    fn wrong(&self, path: &[Step], message: &str, hint: impl Into<String>) -> Error {
        self.at.error(path, message, hint)
    }

    /// An error of a checker elsewhere, with the place where its value stands.
    fn at(&self, path: &[Step], e: Error, hint: &str) -> Error {
        let remedy = e.hint_text().unwrap_or(hint).to_owned();
        self.at.error(path, &e.to_string(), remedy)
    }

    fn check(&self, raw: Raw) -> Result<Config> {
        self.name(&key("site"), &raw.site)?;
        let targets = self.targets(&raw)?;
        let mqtt = raw.mqtt.as_ref().map(|m| self.mqtt(m, &raw.site)).transpose()?;
        let observe = match raw.observe.listen.as_str() {
            "off" => None,
            text => Some(text.parse::<SocketAddr>().map_err(|_| {
                self.wrong(
                    &key("observe.listen"),
                    &format!("\"{text}\" is no address"),
                    "give ADDRESS:PORT, for example \"127.0.0.1:9464\", or \"off\"",
                )
            })?),
        };
        let s = &raw.spool;
        for (name, wrong, hint) in [
            ("retention_days", s.retention_days == Some(0), "give 1 or more, or leave the key out to keep every row"),
            ("retention_rows", s.retention_rows == Some(0), "give 1 or more, or leave the key out to keep every row"),
            ("retention_mb", s.retention_mb == Some(0), "give 1 or more, or leave the key out to keep every row"),
            ("max_mb", s.max_mb == 0, "give 1 or more megabytes"),
            ("max_items", s.max_items == 0, "give 1 or more"),
            ("max_days", s.max_days == Some(0), "give 1 or more, or leave the key out"),
        ] {
            if wrong {
                return Err(self.wrong(&key(&format!("spool.{name}")), "0 would keep nothing", hint));
            }
        }
        if raw.line.is_empty() {
            return Err(self.wrong(&[], "no line is configured", "add a [[line]] with name, source and model"));
        }
        let mut names = BTreeMap::new();
        let mut lines = Vec::new();
        for (i, line) in raw.line.iter().enumerate() {
            if let Some(other) = names.insert(line.name.clone(), i) {
                let at = [Step::Key("line".into()), Step::Index(i), Step::Key("name".into())];
                let message = format!("\"{}\" is the name of line[{other}] too", line.name);
                return Err(self.wrong(
                    &at,
                    &message,
                    "each line needs a name of its own: its parts are numbered under it",
                ));
            }
            lines.push(self.line(i, line)?);
        }
        let audit = self.audit(&raw.audit)?;
        Ok(Config {
            file: self.at.file.to_owned(),
            sha256: sha256(self.at.text),
            keys: changes::keys(self.at.text),
            site: raw.site,
            database: raw.spool.database.as_deref().map(|p| self.path(p)),
            retention: Retention {
                days: raw.spool.retention_days,
                rows: raw.spool.retention_rows,
                bytes: raw.spool.retention_mb.map(|mb| mb.saturating_mul(1_000_000)),
            },
            bounds: Bounds {
                bytes: Some(raw.spool.max_mb.saturating_mul(1_000_000)),
                items: Some(raw.spool.max_items),
                days: raw.spool.max_days,
                when_full: Some(raw.spool.when_full),
            },
            targets,
            observe,
            audit,
            mqtt,
            lines,
        })
    }

    fn name(&self, at: &[Step], name: &str) -> Result<()> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // names of dots alone mean folders in URLs
        let named = name.chars().any(|c| c != '.');
        if named && name.len() <= NAME_BYTES && name.chars().all(fits) {
            return Ok(());
        }
        let message = format!("\"{}\" is no name", name.escape_debug());
        Err(self.wrong(at, &message, format!("1 to {NAME_BYTES} letters (a-z), digits, '-', '_' and '.'")))
    }

    fn audit(&self, raw: &raw::RawAudit) -> Result<Option<AuditConfig>> {
        for (name, value, range) in [("max_mb", raw.max_mb, AUDIT_MB), ("keep", raw.keep, AUDIT_KEEP)] {
            if !range.contains(&value) {
                let hint = format!("accepted: {} to {}", range.start(), range.end());
                return Err(self.wrong(&key(&format!("audit.{name}")), &format!("{value} is out of range"), hint));
            }
        }
        if raw.file.as_deref() == Some(Path::new("off")) {
            return Ok(None);
        }
        let file = raw.file.as_deref().map(|p| self.path(p));
        if let Some(folder) = file.as_ref().filter(|f| f.file_name().is_none() || f.is_dir()) {
            let message = format!("\"{}\" is a folder", folder.display());
            return Err(self.wrong(
                &key("audit.file"),
                &message,
                "name a file, for example \"audit.jsonl\", or \"off\"",
            ));
        }
        Ok(Some(AuditConfig { file, max_bytes: u64::from(raw.max_mb) << 20, keep: raw.keep }))
    }

    fn mqtt(&self, raw: &raw::RawMqtt, site: &str) -> Result<MqttOptions> {
        let path = |p: &Option<PathBuf>| p.as_deref().map(|p| self.path(p));
        let options = MqttOptions {
            client_id: raw.client_id.clone(),
            username: raw.username.clone(),
            password_file: path(&raw.password_file),
            ca_file: path(&raw.ca_file),
            cert_file: path(&raw.cert_file),
            key_file: path(&raw.key_file),
            prefix: raw.prefix.clone(),
            heartbeat_ms: raw.heartbeat_ms,
            ..MqttOptions::new(&raw.url, site)
        };
        options.check().map_err(|e| self.at(&key("mqtt"), e, "docs/5-integrate.md says what each key takes"))?;
        Ok(options)
    }

    fn line(&self, i: usize, raw: &RawLine) -> Result<LineConfig> {
        let at = |name: &str| -> Vec<Step> {
            [Step::Key("line".into()), Step::Index(i)].into_iter().chain(key(name)).collect()
        };
        self.name(&at("name"), &raw.name)?;
        let source = self.source(&at("source"), &raw.source)?;
        let mut camera = raw.camera.clone();
        camera.credentials_file = camera.credentials_file.as_deref().map(|p| self.path(p));
        camera
            .check(&source)
            .map_err(|e| self.at(&at("camera"), e, "docs/3-run.md lists what each kind of source takes"))?;
        let range = |name: &str, value: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&value) {
                return Ok(value);
            }
            let hint = format!("accepted: {} to {}", range.start(), range.end());
            Err(self.wrong(&at(name), &format!("{value} is out of range"), hint))
        };
        let wide = |r: std::ops::RangeInclusive<u32>| u64::from(*r.start())..=u64::from(*r.end());
        let queue = range("queue", raw.queue.into(), wide(QUEUE))? as usize;
        let requests =
            raw.requests.map(|r| range("requests", r.into(), wide(REQUESTS))).transpose()?.map(|r| r as usize);
        let deadline =
            raw.deadline_ms.map(|ms| range("deadline_ms", ms, DEADLINE_MS)).transpose()?.map(Duration::from_millis);
        let of = range("debounce.of", raw.debounce.of.into(), wide(DEBOUNCE))? as u32;
        let reject = range("debounce.reject", raw.debounce.reject.into(), 1..=of.into())? as u32;
        let debounce = Debounce::new(reject, of).map_err(|e| self.at(&at("debounce"), e, "reject is 1 to of"))?;
        let device = raw
            .device
            .parse::<Device>()
            .map_err(|e| self.wrong(&at("device"), &e, "for example AUTO, CPU, GPU or NPU"))?;
        let roi = raw
            .roi
            .as_deref()
            .map(|t| t.parse::<Roi>().map_err(|e| self.wrong(&at("roi"), &e, "X,Y,W,H in whole pixels of the source")))
            .transpose()?;
        let model = self.path(&raw.model);
        if !model.join(crate::model::MANIFEST).is_file() {
            let message = format!("\"{}\" is no model package", model.display());
            return Err(self.wrong(&at("model"), &message, "name a folder that `linesight teach --out` has made"));
        }
        let mask = raw.mask.as_deref().map(|m| self.path(m));
        if let Some(mask) = mask.as_ref().filter(|m| !m.is_file()) {
            let message = format!("mask \"{}\" cannot be read", mask.display());
            return Err(self.wrong(&at("mask"), &message, "name a PNG file, black where nothing is judged"));
        }
        let live = source.is_live();
        let overload = raw.overload.unwrap_or(if live { Overload::Newest } else { Overload::Block });
        if raw.repeat && live {
            return Err(self.wrong(&at("repeat"), "this source has no end", "repeat goes with recordings and folders"));
        }
        Ok(LineConfig {
            name: raw.name.clone(),
            source,
            camera,
            watchdog: self.watchdog(&at, &raw.watchdog)?,
            model,
            device,
            allow_fallback: raw.allow_fallback,
            roi,
            mask,
            trigger: raw.trigger,
            hint: raw.hint.unwrap_or(Hint::for_source(live || raw.realtime)),
            overload,
            queue,
            deadline,
            requests,
            debounce,
            realtime: raw.realtime,
            repeat: raw.repeat,
            live_picture: raw.live_picture,
            lot: raw.lot.clone(),
            serial: raw.serial.clone(),
        })
    }

    /// A path is relative to the file; anything else is taken as it stands.
    fn source(&self, at: &[Step], text: &str) -> Result<Source> {
        let resolved = match text.split_once(':') {
            Some(("watch", folder)) => format!("watch:{}", self.path(Path::new(folder)).display()),
            Some((scheme, _))
                if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) =>
            {
                text.to_owned()
            }
            _ if text.is_empty() => String::new(),
            _ => self.path(Path::new(text)).display().to_string(),
        };
        Source::parse(&resolved).map_err(|e| self.at(at, e, "docs/3-run.md lists the sources"))
    }

    fn watchdog(&self, at: &dyn Fn(&str) -> Vec<Step>, raw: &raw::RawWatchdog) -> Result<Watchdog> {
        let checks = [
            ("stall_periods", (2.0..=10_000.0).contains(&raw.stall_periods), "2 to 10000"),
            ("stall_min_ms", (50..=600_000).contains(&raw.stall_min_ms), "50 to 600000"),
            ("stall_max_ms", (raw.stall_min_ms..=3_600_000).contains(&raw.stall_max_ms), "stall_min_ms to 3600000"),
            ("backoff_max_ms", (100..=600_000).contains(&raw.backoff_max_ms), "100 to 600000"),
        ];
        for (name, fits, accepted) in checks {
            if !fits {
                let hint = format!("accepted: {accepted}");
                return Err(self.wrong(&at(&format!("watchdog.{name}")), "out of range", hint));
            }
        }
        Ok(Watchdog {
            stall_periods: raw.stall_periods,
            stall_min: Duration::from_millis(raw.stall_min_ms),
            stall_max: Duration::from_millis(raw.stall_max_ms),
            backoff_max: Duration::from_millis(raw.backoff_max_ms),
            ..Watchdog::default()
        })
    }
}
