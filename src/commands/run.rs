//! `linesight run`

use super::inspect::{PATIENCE, default_spool};
use super::terminal::stop_flag;
use super::{print_json, print_text};
use crate::config::{self, Config};
use crate::deliver::TargetStatus;
use crate::error::{Context, Error, Result};
use crate::observe::notify::Notify;
use crate::plant::{self, Plant, Summary};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// How often stop, reload and the end are looked for.
const LOOK: Duration = Duration::from_millis(50);
/// How often the file's time is looked at, and reports are sent if due.
const TICK: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Arguments {
    /// The lines: line.toml. A change of the file, or SIGHUP, reloads the lines that changed.
    #[arg(long, value_name = "FILE", required_unless_present = "schema")]
    config: Option<PathBuf>,
    /// Check the file, the models and the secrets it names, open nothing else, and end.
    #[arg(long)]
    check: bool,
    /// Print the JSON Schema of line.toml, for editors, and end.
    #[arg(long, conflicts_with_all = ["check", "config"])]
    schema: bool,
    /// Print what the lines did as JSON at the end.
    #[arg(long)]
    json: bool,
}

/// What `run --json` prints at the end.
#[derive(Serialize)]
struct Report {
    lines: Vec<Summary>,
    delivered: u64,
    waiting: u64,
    /// Refused for good in this run: they wait for a person.
    dead: u64,
    bytes_uploaded: u64,
    /// Each target, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<TargetStatus>,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    if a.schema {
        print_text(&config::schema()?)?;
        return Ok(0);
    }
    let file = a.config.unwrap_or_default();
    let config = Config::load(&file)?;
    if a.check {
        return check(&file, &config);
    }
    let mut notify = Notify::from_environment();
    let stop = stop_flag()?;
    let hangup = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, hangup.clone()).failed(|| "no handler for SIGHUP")?;
    let database = default_spool()?;
    let mut plant = Plant::start(config, &database)?;
    let at = plant.url().map(|url| format!("metrics and status: {url} ")).unwrap_or_default();
    if a.json {
        tracing::info!("{at}");
    } else {
        print_text(&format!("{at}(Ctrl-C stops)"))?;
    }
    let mut seen = modified(&file);
    let mut ticked = Instant::now();
    let every = notify.every(TICK);
    while !stop.load(Relaxed) && !plant.is_over() {
        std::thread::sleep(LOOK);
        let asked = hangup.swap(false, Relaxed);
        if ticked.elapsed() < every && !asked {
            continue;
        }
        ticked = Instant::now();
        plant.tick();
        notify.tick(plant.life(notify.limit()));
        let now = modified(&file);
        if asked || now != seen {
            seen = now;
            notify.reloading();
            reload(&mut plant, &file, if asked { "SIGHUP" } else { "reload by file" });
            notify.reloaded();
        }
    }
    // recordings may all have ended before the first look
    notify.tick(plant.life(notify.limit()));
    notify.stopping();
    // a recording that ended has time for its uploads, a person who stops the process has not
    let patience = if stop.load(Relaxed) { Duration::ZERO } else { PATIENCE };
    let (lines, drained) = plant.stop(patience)?;
    let failed: Vec<String> = lines.iter().filter(|l| !l.is_good()).map(|l| format!("\"{}\"", l.status.line)).collect();
    let report = Report {
        lines,
        delivered: drained.delivered,
        waiting: drained.waiting,
        dead: drained.dead,
        targets: drained.targets,
        bytes_uploaded: drained.bytes_uploaded,
    };
    if a.json {
        print_json(&report)?;
    } else {
        print_text(&text(&report))?;
    }
    if failed.is_empty() {
        return Ok(0);
    }
    Err(Error::failed(format!("lines that failed: {}", failed.join(", ")))
        .hint("the log says why each did; `linesight run --check` checks the configuration"))
}

/// A file that cannot be read keeps the lines as they are.
fn reload(plant: &mut Plant, file: &Path, who: &str) {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(e) => {
            plant.refused(file, &e, who);
            return complain(&e);
        }
    };
    match plant.reload(config, who) {
        Ok(keys) if keys.is_empty() => tracing::info!("configuration reloaded"),
        Ok(keys) => {
            tracing::warn!("configuration reloaded, but these take effect at the next start: {}", keys.join(", "));
        }
        Err(e) => complain(&e),
    }
}

fn complain(e: &Error) {
    let hint = e.hint_text().map(|h| format!(" ({h})")).unwrap_or_default();
    tracing::error!("configuration not reloaded, the lines go on as they were: {e}{hint}");
}

fn check(file: &Path, config: &Config) -> Result<u8> {
    for line in &config.lines {
        plant::check(line)?;
    }
    let names: Vec<&str> = config.lines.iter().map(|l| l.name.as_str()).collect();
    print_text(&format!("\"{}\" is good: {} lines ({})", file.display(), names.len(), names.join(", ")))?;
    Ok(0)
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|m| m.modified()).ok()
}

fn text(report: &Report) -> String {
    let mut out: Vec<String> = report
        .lines
        .iter()
        .map(|l| {
            let c = &l.status.counters;
            let dropped: u64 = c.dropped.values().sum();
            format!(
                "{}: {} frames, {} parts: {} passed, {} rejected, {} unsure, {} missed; {dropped} frames dropped, {} reconnects",
                l.status.line, c.frames, c.parts, c.passed, c.rejected, c.unsure, c.missed, c.reconnects
            )
        })
        .collect();
    out.push(format!("uploaded {} anomalies, {} wait in the spool", report.delivered, report.waiting));
    for t in &report.targets {
        out.push(format!(
            "  {}: {} delivered, {} waiting, {} dead",
            t.name, t.delivered, t.depth.waiting, t.depth.dead
        ));
    }
    if report.dead > 0 {
        out.push(format!("{} were refused for good: `linesight spool list --dead` shows them", report.dead));
    }
    out.join("\n")
}
