//! line.toml: what `linesight run` runs. Typed form ([`raw`]) in, checked form out; stages see only the checked form.
//!
//! Invariants:
//! 1. Whatever the file holds, it is read or refused with an error that names file, line, key and remedy; never a panic
//!    (tests `tests/config.rs`, among them a property test over arbitrary text).
//! 2. The annotated example assets/line.toml is the default (test `tests/config.rs::the_example_equals_the_defaults`).
//! 3. Nothing is opened but files: no camera, no network, no device (test `tests/config.rs::check_opens_nothing`).

mod place;
pub mod raw;

use crate::capture::{CameraOptions, Source, Watchdog};
use crate::deliver::{Endpoint, Retention};
use crate::detect::Device;
use crate::error::{Context, Error, Result};
use crate::judge::debounce::Debounce;
use crate::line::Overload;
use crate::model::Trigger;
use crate::prepare::Roi;
use crate::respond::MqttOptions;
use place::{Step, Text, steps};
use raw::{Raw, RawLine};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// Longest deadline: beyond a minute nobody waits.
const DEADLINE_MS: std::ops::RangeInclusive<u64> = 1..=60_000;
const QUEUE: std::ops::RangeInclusive<u32> = 1..=64;
const REQUESTS: std::ops::RangeInclusive<u32> = 1..=64;
const DEBOUNCE: std::ops::RangeInclusive<u32> = 1..=16;
/// Longer names make no good topics and column heads.
const NAME_BYTES: usize = 64;

/// What is run, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub site: String,
    /// None: the user's state folder.
    pub database: Option<PathBuf>,
    pub retention: Retention,
    pub review: Option<Endpoint>,
    /// None: off.
    pub observe: Option<SocketAddr>,
    pub mqtt: Option<MqttOptions>,
    pub lines: Vec<LineConfig>,
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
    pub overload: Overload,
    pub queue: usize,
    pub deadline: Option<Duration>,
    pub requests: Option<usize>,
    pub debounce: Debounce,
    pub realtime: bool,
    pub repeat: bool,
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
    /// Names of what the lines share that is other in `other`: it takes a restart.
    pub fn shared_changes(&self, other: &Config) -> Vec<&'static str> {
        let endpoint = |c: &Config| c.review.as_ref().map(|e| (e.url.clone(), e.token.clone()));
        [
            ("site", self.site != other.site),
            ("spool", self.database != other.database || self.retention != other.retention),
            ("review", endpoint(self) != endpoint(other)),
            ("observe", self.observe != other.observe),
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
        let review = raw.review.as_ref().map(|r| self.review(r)).transpose()?;
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
        for (name, wrong) in [
            ("retention_days", raw.spool.retention_days == Some(0)),
            ("retention_rows", raw.spool.retention_rows == Some(0)),
        ] {
            if wrong {
                let hint = "give 1 or more, or leave the key out to keep every row";
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
        Ok(Config {
            site: raw.site,
            database: raw.spool.database.as_deref().map(|p| self.path(p)),
            retention: Retention { days: raw.spool.retention_days, rows: raw.spool.retention_rows, bytes: None },
            review,
            observe,
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

    fn review(&self, raw: &raw::RawReview) -> Result<Endpoint> {
        let at = key("review.url");
        let url = Url::parse(&raw.url)
            .ok()
            .filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host())
            .ok_or_else(|| {
                let message = format!("\"{}\" is no http or https address", raw.url.escape_debug());
                self.wrong(&at, &message, "for example \"http://127.0.0.1:8080\"")
            })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong(
                &at,
                "the address holds a login",
                "put the token into a file and name it with token_file",
            ));
        }
        let token = raw
            .token_file
            .as_deref()
            .map(|p| crate::deliver::read_token(&self.path(p)))
            .transpose()
            .map_err(|e| self.at(&key("review.token_file"), e, "name a file that holds the token"))?;
        Ok(Endpoint { url, token })
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
        let overload = raw.overload.unwrap_or(if source.is_live() { Overload::Newest } else { Overload::Block });
        if raw.repeat && source.is_live() {
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
            overload,
            queue,
            deadline,
            requests,
            debounce,
            realtime: raw.realtime,
            repeat: raw.repeat,
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
