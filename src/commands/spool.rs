//! `linesight spool`: look at the anomalies that wait for delivery, send them again, take them away as files, give them up.
//! Works while linesight runs.

use super::{print_json, print_text};
use crate::config::Config;
use crate::deliver::dead_letters::{Changed, DeadLetters, Delivery, Letter, Which};
use crate::error::{Context, Error, Result};
use crate::observe::audit::{self, Fate};
use crate::staging::Staging;
use clap::Subcommand;
use jiff::Timestamp;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The file that makes a folder known as one that an export may replace.
const MARKER: &str = "spool.json";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print what waits, oldest first.
    List {
        #[command(flatten)]
        database: Database,
        /// Only what a target refused for good: it waits for a person.
        #[arg(long)]
        dead: bool,
        /// Only what this target still has to get.
        #[arg(long)]
        target: Option<String>,
        /// Only this line.
        #[arg(long)]
        line: Option<String>,
        /// Print the list as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print one anomaly: its event, and how it does with each target.
    Show {
        #[command(flatten)]
        database: Database,
        /// Id, or as much of its beginning as no other has.
        id: String,
        /// Folder to write event and pictures to.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Send again what was refused.
    Retry {
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        chosen: Chosen,
        /// Only to this target.
        #[arg(long)]
        target: Option<String>,
        /// Print what changed as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write events and pictures to a folder, one folder for each anomaly. They stay in the spool.
    Export {
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        chosen: Chosen,
        /// Only those that are dead.
        #[arg(long, conflicts_with_all = ["ids", "all"])]
        dead: bool,
        /// Folder to write; an older export is replaced.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Give up anomalies: they are removed and never delivered. The ledger says so.
    Purge {
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        chosen: Chosen,
        /// Those that are dead.
        #[arg(long, conflicts_with_all = ["ids", "all"])]
        dead: bool,
        /// Only for this target; they stay for the others.
        #[arg(long)]
        target: Option<String>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Print what changed as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Database {
    /// Database that keeps ledger and spool [default: linesight/spool.db in the user's state folder].
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    spool: Option<PathBuf>,
    /// The line.toml of the lines: names the database and the audit log.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Database {
    fn path(&self) -> Result<PathBuf> {
        match &self.config {
            Some(file) => Config::load(file)?.database.map_or_else(super::inspect::default_spool, Ok),
            None => self.spool.clone().map_or_else(super::inspect::default_spool, Ok),
        }
    }

    /// Writes what was decided to the audit log: the one that is configured, or the one beside the database if there is one.
    fn note(&self, changed: &Changed, fate: Fate, target: Option<&String>) -> Result<()> {
        let database = self.path()?;
        let options = match &self.config {
            Some(file) => Config::load(file)?.audit_log(&database),
            None => Some(audit::Options::new(audit::Options::beside(&database))).filter(|o| o.file.exists()),
        };
        let Some(options) = options.filter(|_| !changed.which.is_empty()) else { return Ok(()) };
        let entry = |(event, line, part): &(Uuid, String, u64)| audit::Entry::Anomaly {
            event: *event,
            line: line.clone(),
            part: *part,
            fate,
            target: target.cloned(),
            why: None,
        };
        audit::note(&options, &audit::user(), changed.which.iter().map(entry).collect())
    }
}

#[derive(clap::Args)]
struct Chosen {
    /// Ids, or as much of their beginnings as no other has.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All of them.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

impl Chosen {
    fn of(&self, letters: &DeadLetters, dead: bool, target: Option<&String>) -> Result<Vec<Letter>> {
        let which = Which { dead, target: target.cloned(), line: None };
        match (self.ids.is_empty(), self.all || dead) {
            (false, _) => letters.find(&self.ids, &which),
            (true, true) => letters.list(&which),
            (true, false) => Err(Error::usage("no anomaly is named")
                .hint("give ids (`linesight spool list` shows them) or --all; export and purge take --dead as well")),
        }
    }
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    match a.action {
        Action::List { database, dead, target, line, json } => {
            let letters = DeadLetters::open(&database.path()?)?.list(&Which { dead, target, line })?;
            if json {
                print_json(&letters)?
            } else {
                print_text(&table(&letters, Timestamp::now()))?
            }
            Ok(0)
        }
        Action::Show { database, id, out, json } => show(&database.path()?, id, out.as_deref(), json),
        Action::Retry { database, chosen, target, json } => {
            let mut letters = DeadLetters::open_writing(&database.path()?)?;
            let some = chosen.of(&letters, false, target.as_ref())?;
            let changed = letters.retry(&some, target.as_deref())?;
            database.note(&changed, Fate::Retried, target.as_ref())?;
            let text = match changed.anomalies {
                0 => "nothing to do: none of them was refused".to_owned(),
                n => format!("{n} anomalies are sent again ({} deliveries)", changed.deliveries),
            };
            said(&changed, &text, json)
        }
        Action::Export { database, chosen, dead, out } => {
            let letters = DeadLetters::open(&database.path()?)?;
            let some = chosen.of(&letters, dead, None)?;
            export(&letters, &some, &out)?;
            print_text(&format!("{} anomalies written to \"{}\"", some.len(), out.display()))?;
            Ok(0)
        }
        Action::Purge { database, chosen, dead, target, yes, json } => {
            let mut letters = DeadLetters::open_writing(&database.path()?)?;
            let some = chosen.of(&letters, dead, target.as_ref())?;
            if !yes && !some.is_empty() && !agreed(&some, target.as_deref())? {
                print_text("nothing was changed")?;
                return Ok(0);
            }
            let changed = letters.purge(&some, target.as_deref())?;
            database.note(&changed, Fate::Purged, target.as_ref())?;
            let text = format!(
                "{} anomalies given up ({} deliveries), {} of them left the spool",
                changed.anomalies, changed.deliveries, changed.removed
            );
            said(&changed, &text, json)
        }
    }
}

fn said(changed: &Changed, text: &str, json: bool) -> Result<u8> {
    if json {
        print_json(changed)?
    } else {
        print_text(text)?
    }
    Ok(0)
}

/// Asks on the terminal; without one it is an error not to have said --yes.
fn agreed(letters: &[Letter], target: Option<&str>) -> Result<bool> {
    let what = match target {
        Some(target) => format!("{} anomalies will never be delivered to \"{target}\"", letters.len()),
        None => format!("{} anomalies will be removed and never delivered", letters.len()),
    };
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage(what).hint("--yes does it without asking; nothing was changed"));
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{what}. Go on? [y/N] ").and_then(|()| stderr.flush()).failed(|| "cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).failed(|| "cannot read the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn show(path: &Path, id: String, out: Option<&Path>, json: bool) -> Result<u8> {
    let letters = DeadLetters::open(path)?;
    let Some(letter) = letters.find(&[id], &Which::default())?.pop() else { return Ok(1) };
    let (event, _) = letters.content(&letter)?;
    if let Some(out) = out {
        let staging = Staging::new(out, "event.json")?;
        files(&letters, &letter, &staging, "")?;
        staging.publish()?;
    }
    let event = serde_json::from_str::<serde_json::Value>(&event).unwrap_or(serde_json::Value::String(event));
    if json {
        let mut value = serde_json::to_value(&letter).failed(|| "the anomaly cannot be written as JSON")?;
        value["event"] = event;
        print_json(&value)?;
        return Ok(0);
    }
    let mut text = table(std::slice::from_ref(&letter), Timestamp::now());
    text += &format!("\n{}", serde_json::to_string_pretty(&event).unwrap_or_default());
    if let Some(out) = out {
        text += &format!("\nwritten to \"{}\"", out.display());
    }
    print_text(&text)?;
    Ok(0)
}

fn export(letters: &DeadLetters, some: &[Letter], out: &Path) -> Result<()> {
    let staging = Staging::new(out, MARKER)?;
    for letter in some {
        files(letters, letter, &staging, &format!("{}/", letter.id))?;
    }
    let list = serde_json::to_vec_pretty(some).failed(|| "the list cannot be written as JSON")?;
    staging.write(MARKER, &list)?;
    staging.publish()
}

fn files(letters: &DeadLetters, letter: &Letter, staging: &Staging, under: &str) -> Result<()> {
    let (event, pictures) = letters.content(letter)?;
    staging.write(&format!("{under}event.json"), event.as_bytes())?;
    let normal = pictures.normal_jpeg.as_deref().unwrap_or_default();
    for (name, bytes) in
        [("frame.jpg", &pictures.frame_jpeg[..]), ("heatmap.png", &pictures.heatmap_png), ("normal.jpg", normal)]
    {
        if !bytes.is_empty() {
            staging.write(&format!("{under}{name}"), bytes)?;
        }
    }
    Ok(())
}

fn age(from: Timestamp, now: Timestamp) -> String {
    let s = now.duration_since(from).as_secs().max(0);
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

fn table(letters: &[Letter], now: Timestamp) -> String {
    let mut text = format!(
        "{:<36} {:<12} {:>9} {:>5} {:<7} {:>9} {:>7} {:>8}  {}",
        "id", "line", "part", "age", "verdict", "score", "conf", "size", "targets"
    );
    let number = |n: Option<f32>, digits: usize| n.map_or("-".to_owned(), |n| format!("{n:.digits$}"));
    for letter in letters {
        let to = letter.targets.iter().map(|delivery| to(delivery, now)).collect::<Vec<_>>().join("; ");
        text += &format!(
            "\n{:<36} {:<12} {:>9} {:>5} {:<7} {:>9} {:>7} {:>5} kB  {}{to}",
            letter.id,
            letter.line,
            letter.part,
            age(letter.spooled_at, now),
            letter.verdict.as_deref().unwrap_or("-"),
            number(letter.score, 3),
            number(letter.confidence, 4),
            letter.bytes / 1000,
            if letter.stripped { "without pictures; " } else { "" },
        );
    }
    text
}

fn to(delivery: &Delivery, now: Timestamp) -> String {
    let mut text = format!("{} {}", delivery.target, delivery.state);
    if delivery.attempts > 0 {
        text += &format!(" after {} attempts", delivery.attempts);
    }
    if let Some(error) = &delivery.last_error {
        text += &format!(" ({error})");
    }
    if let Some(at) = delivery.next_try {
        text += &format!(", again in {}", age(now, at));
    }
    text
}
