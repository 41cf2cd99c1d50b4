//! `linesight model`: look at a package, check it on this machine, calibrate it for another device.

use super::inspect::default_spool;
use super::terminal::Progress;
use super::{print_json, print_text};
use crate::capture::Source;
use crate::config::Config;
use crate::detect::{Device, Hint, Precision};
use crate::error::Result;
use crate::judge::calibration::{Basis, Change, check_rate};
use crate::line;
use crate::model::{Model, Trigger};
use crate::observe::audit::{self, Entry};
use crate::prepare::Registration;
use crate::prepare::shrink::Size;
use crate::teach;
use clap::Subcommand;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print what a package holds.
    Show {
        /// Folder of the model package.
        dir: PathBuf,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a package's files and that it gives on this machine the scores it gave where it was taught.
    Check {
        /// Folder of the model package.
        dir: PathBuf,
        /// AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list.
        #[arg(long, default_value_t = Device::default())]
        device: Device,
        /// Accept another device than the one named.
        #[arg(long)]
        allow_fallback: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Calibrate a package with good parts, for another device or precision, or for a new threshold.
    Calibrate {
        /// Folder of the model package.
        dir: PathBuf,
        /// Good parts, from the same camera as those that were taught.
        #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
        good: Vec<String>,
        /// AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list.
        #[arg(long, default_value_t = Device::default())]
        device: Device,
        /// Arithmetic of the network [default: the package's].
        #[arg(long, value_enum)]
        precision: Option<Precision>,
        /// Accept another device than the one named.
        #[arg(long)]
        allow_fallback: bool,
        /// Share of good parts that may be rejected [default: the package's].
        #[arg(long)]
        false_reject_rate: Option<f64>,
        /// A line.toml whose audit log is told.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set the threshold without teaching again. Who and why are kept in the package.
    SetThreshold {
        /// Folder of the model package.
        dir: PathBuf,
        /// The new threshold, in the unit of the score.
        #[arg(allow_negative_numbers = true)]
        threshold: f32,
        /// Who sets it [default: the name of the user who is logged in].
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        /// Why it is set.
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// A line.toml whose audit log is told.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What set-threshold did.
#[derive(Serialize)]
struct Set {
    name: String,
    version: String,
    threshold_before: f32,
    threshold: f32,
    expected_false_reject_rate: f64,
    guaranteed_false_reject_rate: f64,
    by: String,
    why: String,
}

/// The audit log of the lines that use the model, where it was named.
struct Log(Option<audit::Options>);

impl Log {
    /// Looks whether it can be written before anything is changed.
    fn of(config: Option<&Path>) -> Result<Log> {
        let Some(file) = config else { return Ok(Log(None)) };
        let options = Config::load(file)?.audit_log(&default_spool()?);
        match &options {
            Some(options) => audit::check(options)?,
            None => tracing::warn!("\"{}\" has no audit log: the change stands in the package alone", file.display()),
        }
        Ok(Log(options))
    }

    fn threshold(&self, model: &Model, from: f32, by: &str, why: &str) -> Result<()> {
        let Some(options) = &self.0 else { return Ok(()) };
        let entry = Entry::ThresholdChanged {
            line: None,
            model: model.name.clone(),
            version: model.version.clone(),
            from,
            to: model.threshold(),
            why: Some(why.to_owned()),
        };
        let user = audit::user();
        let who = if by == user { user } else { format!("{by} (process of {user})") };
        audit::note(options, &who, vec![entry])
    }
}

#[derive(Serialize)]
struct Shown {
    name: String,
    version: String,
    sha256: String,
    created: String,
    method: String,
    trigger: Trigger,
    registration: Registration,
    input: Size,
    backbone: String,
    device: String,
    precision: Precision,
    good_parts: usize,
    threshold: f32,
    expected_false_reject_rate: f64,
    guaranteed_false_reject_rate: f64,
    basis: Basis,
    calibration: String,
    /// Thresholds that a person set.
    threshold_changes: Vec<Change>,
}

impl Shown {
    fn new(m: &Model) -> Self {
        Shown {
            name: m.name.clone(),
            version: m.version.clone(),
            sha256: m.sha256.clone(),
            created: m.created.to_string(),
            method: m.method.as_str().into(),
            trigger: m.trigger,
            registration: m.preparation.registration,
            input: m.preparation.input,
            backbone: m.backbone.id.clone(),
            device: m.device.clone(),
            precision: m.precision,
            good_parts: m.calibration.scores.len(),
            threshold: m.threshold(),
            expected_false_reject_rate: m.calibration.expected_false_reject_rate,
            guaranteed_false_reject_rate: m.calibration.guaranteed_false_reject_rate,
            basis: m.calibration.basis,
            calibration: m.calibration.method.clone(),
            threshold_changes: m.calibration.changes.clone(),
        }
    }

    fn text(&self) -> String {
        format!(
            "model \"{}\" version {} ({})\n  {}, trigger {:?}, registration {:?}, input {}x{}, backbone {}\n  {} on {}; threshold {:.3} from {} good parts: {:.2} % false rejects expected, {:.1} % guaranteed {}\n  calibration: {}{}",
            self.name,
            self.version,
            self.sha256,
            self.method,
            self.trigger,
            self.registration,
            self.input.width,
            self.input.height,
            self.backbone,
            self.precision.as_str(),
            self.device,
            self.threshold,
            self.good_parts,
            self.expected_false_reject_rate * 100.0,
            self.guaranteed_false_reject_rate * 100.0,
            self.basis.as_text(),
            self.calibration,
            self.threshold_changes
                .iter()
                .map(|c| format!("\n  threshold {:.3} -> {:.3} at {} by {}: {}", c.from, c.to, c.at, c.by, c.why))
                .collect::<String>()
        )
    }
}

#[derive(Serialize)]
struct Checked {
    ok: bool,
    device: String,
    precision: Precision,
    reference_parts: usize,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    match a.action {
        Action::Show { dir, json } => {
            let shown = Shown::new(&Model::load(&dir)?);
            if json { print_json(&shown)? } else { print_text(&shown.text())? }
        }
        Action::Check { dir, device, allow_fallback, json } => {
            let model = Model::load(&dir)?;
            let backbone = line::arm(&model, &device, allow_fallback, Hint::Latency)?;
            let checked = Checked {
                ok: true,
                device: backbone.device().to_owned(),
                precision: model.precision,
                reference_parts: model.reference.len(),
            };
            if json {
                print_json(&checked)?;
            } else {
                print_text(&format!(
                    "ok: {} reference parts score on {} in {} as they did when the model was taught",
                    checked.reference_parts,
                    checked.device,
                    checked.precision.as_str()
                ))?;
            }
        }
        Action::SetThreshold { dir, threshold, by, why, config, json } => {
            let log = Log::of(config.as_deref())?;
            let mut model = Model::load(&dir)?;
            let by = by.or_else(|| std::env::var("USER").ok()).unwrap_or_default();
            let threshold_before = model.threshold();
            model.set_threshold(threshold, &by, &why)?;
            model.save(&dir)?;
            log.threshold(&model, threshold_before, &by, &why)?;
            let c = &model.calibration;
            let set = Set {
                name: model.name.clone(),
                version: model.version.clone(),
                threshold_before,
                threshold,
                expected_false_reject_rate: c.expected_false_reject_rate,
                guaranteed_false_reject_rate: c.guaranteed_false_reject_rate,
                by,
                why,
            };
            if json {
                print_json(&set)?;
            } else {
                print_text(&format!(
                    "model \"{}\" version {}: threshold {:.3} -> {:.3}; {:.2} % false rejects expected, {:.1} % guaranteed {}",
                    set.name,
                    set.version,
                    set.threshold_before,
                    set.threshold,
                    set.expected_false_reject_rate * 100.0,
                    set.guaranteed_false_reject_rate * 100.0,
                    c.basis.as_text()
                ))?;
            }
        }
        Action::Calibrate { dir, good, device, precision, allow_fallback, false_reject_rate, config, json } => {
            let log = Log::of(config.as_deref())?;
            false_reject_rate.map_or(Ok(()), check_rate)?;
            let mut model = Model::load(&dir)?;
            let rate = false_reject_rate.unwrap_or(model.calibration.wanted_false_reject_rate);
            let precision = precision.unwrap_or(model.precision);
            let before = model.threshold();
            let done = calibrate(&mut model, &dir, &good, &device, precision, allow_fallback, rate)?;
            log.threshold(&model, before, &audit::user(), "calibrated with good parts")?;
            if json {
                print_json(&done)?;
            } else {
                print_text(&format!(
                    "model \"{}\" version {}: threshold {:.3} -> {:.3} from {} good parts, {} on {}{}",
                    done.name,
                    done.version,
                    done.threshold_before,
                    done.threshold,
                    done.parts,
                    done.precision.as_str(),
                    done.device,
                    if done.fitted_anew { "; fitted anew for this device and precision" } else { "" }
                ))?;
            }
        }
    }
    Ok(0)
}

fn calibrate(
    model: &mut Model,
    dir: &Path,
    good: &[String],
    device: &Device,
    precision: Precision,
    allow_fallback: bool,
    rate: f64,
) -> Result<teach::Recalibrated> {
    let good = good.iter().map(|s| Source::parse(s)).collect::<Result<Vec<_>>>()?;
    let progress = Progress::new();
    let report = |stage: &str, done, of| progress.report(stage, done, of);
    let done = teach::calibrate(model, &good, device, precision, allow_fallback, rate, &report);
    progress.finish();
    let done = done?;
    model.save(dir)?;
    Ok(done)
}
