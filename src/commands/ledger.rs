//! `linesight ledger`: list, export, verify and reconcile what happened to every part. Reads only, and works while linesight
//! runs.

use super::{print_json, print_text};
use crate::deliver::audit::{Reconciled, Verified};
use crate::deliver::ledger::{FIELDS, Filter, Ledger, LedgerEntry};
use crate::error::{Context, Error, Result};
use clap::Subcommand;
use jiff::{Timestamp, civil, tz::TimeZone};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print rows, newest first.
    List {
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        filter: Filters,
        /// Most rows that are printed.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Print the rows as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write all rows as CSV (RFC 4180), line by line, oldest first.
    Export {
        #[command(flatten)]
        database: Database,
        #[command(flatten)]
        filter: Filters,
        /// File to write instead of standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check that no row was removed, put in, changed or moved; exit code 1 when one was.
    Verify {
        #[command(flatten)]
        database: Database,
        /// Only this line.
        #[arg(long)]
        line: Option<String>,
        /// A hash of a line's chain that was kept elsewhere (line reports carry one): it must be in the chain.
        #[arg(long, value_name = "LINE=HASH", value_parser = chain)]
        chain: Vec<(String, String)>,
        /// Print what was found as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check that every part and every anomaly is accounted for; exit code 1 when one is not.
    Reconcile {
        #[command(flatten)]
        database: Database,
        /// Only this line.
        #[arg(long)]
        line: Option<String>,
        /// Print the counts as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Database {
    /// Database that keeps ledger and spool [default: linesight/spool.db in the user's state folder].
    #[arg(long, value_name = "FILE")]
    spool: Option<PathBuf>,
}

impl Database {
    fn open(&self) -> Result<Ledger> {
        Ledger::open(&self.spool.clone().map_or_else(super::inspect::default_spool, Ok)?)
    }
}

#[derive(clap::Args)]
struct Filters {
    /// Only this line.
    #[arg(long)]
    line: Option<String>,
    /// Only this verdict.
    #[arg(long, value_parser = ["pass", "reject", "unsure", "missed", "interrupted", "checkpoint", "salvaged"])]
    verdict: Option<String>,
    /// Triggered at this time or later: 2026-01-31, 2026-01-31T08:00 (local time) or with an offset or Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Triggered before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Only this lot.
    #[arg(long)]
    lot: Option<String>,
    /// Only this serial number.
    #[arg(long)]
    serial: Option<String>,
}

impl From<Filters> for Filter {
    fn from(f: Filters) -> Filter {
        Filter { line: f.line, verdict: f.verdict, since: f.since, until: f.until, lot: f.lot, serial: f.serial }
    }
}

fn time(text: &str) -> std::result::Result<Timestamp, String> {
    let local = |text: &str| text.parse::<civil::DateTime>()?.to_zoned(TimeZone::system()).map(|t| t.timestamp());
    text.parse::<Timestamp>().or_else(|_| local(text)).map_err(|_: jiff::Error| {
        "a time is written as 2026-01-31, 2026-01-31T08:00 or 2026-01-31T08:00:00Z".to_owned()
    })
}

fn chain(text: &str) -> std::result::Result<(String, String), String> {
    match text.rsplit_once('=') {
        Some((line, hash)) if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok((line.to_owned(), hash.to_lowercase()))
        }
        _ => Err("the form is LINE=HASH, with the 64 hexadecimal digits of a line report's `chain`".into()),
    }
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    match a.action {
        Action::List { database, filter, limit, json } => {
            let rows = database.open()?.newest(&filter.into(), limit)?;
            if json {
                print_json(&rows)?
            } else {
                print_text(&table(&rows))?
            }
            Ok(0)
        }
        Action::Export { database, filter, out } => export(&database.open()?, &filter.into(), out),
        Action::Verify { database, line, chain, json } => {
            let ledger = database.open()?;
            let known: BTreeMap<String, String> = chain.into_iter().collect();
            let lines = chosen(&ledger, line, known.keys())?;
            let found = lines
                .iter()
                .map(|line| ledger.verify(line, known.get(line).map(String::as_str)))
                .collect::<Result<Vec<Verified>>>()?;
            if json {
                print_json(&found)?;
            } else {
                print_text(&found.iter().map(verified).collect::<Vec<_>>().join("\n"))?;
            }
            Ok(u8::from(found.iter().any(|v| v.wrong.is_some())))
        }
        Action::Reconcile { database, line, json } => {
            let ledger = database.open()?;
            let found = chosen(&ledger, line, [].iter())?
                .iter()
                .map(|line| ledger.reconcile(line))
                .collect::<Result<Vec<Reconciled>>>()?;
            if json {
                print_json(&found)?;
            } else {
                print_text(&found.iter().map(reconciled).collect::<Vec<_>>().join("\n"))?;
            }
            Ok(u8::from(found.iter().any(|r| !r.wrong.is_empty())))
        }
    }
}

/// The line that was named, or all; lines that are named elsewhere must be there.
fn chosen<'a>(ledger: &Ledger, line: Option<String>, named: impl Iterator<Item = &'a String>) -> Result<Vec<String>> {
    let lines = ledger.lines()?;
    let all = line.is_none();
    let known = || lines.iter().map(|line| format!("\"{line}\"")).collect::<Vec<_>>().join(", ");
    let mut wanted: Vec<String> = line.into_iter().collect();
    wanted.extend(named.filter(|name| !wanted.contains(name)).cloned().collect::<Vec<_>>());
    for name in &wanted {
        if !lines.contains(name) {
            return Err(Error::usage(format!("the ledger has no line \"{name}\"")).hint(match lines.len() {
                0 => "it has no lines yet".to_owned(),
                _ => format!("its lines: {}", known()),
            }));
        }
    }
    Ok(if all { lines } else { wanted })
}

fn export(ledger: &Ledger, filter: &Filter, out: Option<PathBuf>) -> Result<u8> {
    let name = out.as_ref().map_or("standard output".to_owned(), |path| format!("\"{}\"", path.display()));
    let unwritable = || format!("cannot write {name}");
    let to: Box<dyn Write> = match &out {
        Some(path) => Box::new(std::fs::File::create(path).failed(unwritable)?),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut csv = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(to);
    let mut write = || -> Result<()> {
        csv.write_record(FIELDS).failed(unwritable)?;
        ledger.oldest(filter, |row| csv.write_record(row.fields()).failed(unwritable))?;
        csv.flush().failed(unwritable)
    };
    match write() {
        Err(e) if out.is_none() && closed(&e) => Ok(0),
        other => other.map(|()| 0),
    }
}

/// A reader that has read enough (`| head`) is no failure.
fn closed(e: &Error) -> bool {
    let mut below: Option<&dyn std::error::Error> = std::error::Error::source(e);
    while let Some(cause) = below {
        let io = cause.downcast_ref::<std::io::Error>();
        let csv = cause.downcast_ref::<csv::Error>().and_then(|e| match e.kind() {
            csv::ErrorKind::Io(e) => Some(e),
            _ => None,
        });
        if io.or(csv).is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        below = cause.source();
    }
    false
}

fn table(rows: &[LedgerEntry]) -> String {
    let mut text = format!(
        "{:<30} {:<12} {:>9} {:<11} {:>9} {:>7} {:>9}  {}",
        "time", "line", "part", "verdict", "score", "conf", "ms", "notes"
    );
    let number = |n: Option<f64>, digits: usize| n.map_or("-".to_owned(), |n| format!("{n:.digits$}"));
    for row in rows {
        let mut notes = row.reasons.clone();
        notes.extend(row.late_ms.map(|ms| format!("{ms:.0} ms late")));
        notes.extend(row.lot.as_ref().map(|lot| format!("lot {lot}")));
        notes.extend(row.serial.as_ref().map(|serial| format!("serial {serial}")));
        notes.extend(row.detail.as_ref().map(ToString::to_string));
        if row.event.is_some() {
            notes.push(match (&row.delivered_at, &row.fate) {
                (Some(_), _) => "delivered".to_owned(),
                (None, Some(fate)) => fate.clone(),
                (None, None) => "waiting".to_owned(),
            });
        }
        text += &format!(
            "\n{:<30} {:<12} {:>9} {:<11} {:>9} {:>7} {:>9}  {}",
            row.captured_at.to_string(),
            row.line,
            row.part.map_or("-".to_owned(), |part| part.to_string()),
            row.verdict,
            number(row.score, 3),
            number(row.confidence, 4),
            number(row.latency_ms, 1),
            notes.join("; ")
        );
    }
    text
}

fn verified(v: &Verified) -> String {
    let mut text =
        format!("{}: {}", v.line, v.wrong.as_ref().map_or("OK".to_owned(), |wrong| format!("WRONG: {wrong}")));
    if let (Some(first), Some(last)) = (v.first, v.last) {
        text += &format!("\n  rows {first} to {last} of the chain, {} of them parts", v.rows);
    }
    if let Some((first, last)) = v.parts {
        text += &format!("\n  part numbers {first} to {last}");
    }
    for window in &v.interrupted {
        text += &match window.first == window.end {
            true => format!("\n  interrupted {} to {}: no number is missing", window.from, window.to),
            false => format!(
                "\n  interrupted {} to {}: numbers {} to {} may be missing",
                window.from,
                window.to,
                window.first,
                window.end - 1
            ),
        };
        text += &format!(", {} rows recovered", window.recovered);
    }
    for salvaged in &v.salvaged {
        text += &format!(
            "\n  the database was damaged at {}, and rows were salvaged from \"{}\": {} rows of parts, {} anomalies lost",
            salvaged.at, salvaged.quarantine, salvaged.rows, salvaged.lost
        );
        for hole in &salvaged.holes {
            text += &format!("\n    rows {} to {} of the chain are lost", hole.first, hole.last);
        }
    }
    for (first, last) in &v.gaps {
        text += &format!("\n  no row for parts {first} to {last}, as a row that is no part explains");
    }
    if v.checkpoints > 0 {
        text += &format!("\n  {} checkpoints of retention", v.checkpoints);
    }
    if v.unchained > 0 {
        text += &format!("\n  {} rows are older than the chain and cannot be verified", v.unchained);
    }
    if let Some(hash) = &v.hash {
        text += &format!("\n  hash of the last row read: {hash}");
    }
    text
}

fn reconciled(r: &Reconciled) -> String {
    let mut text = format!(
        "{}: {}\n  triggered {} = passed {} + rejected {} + unsure {} + missed {}   (interrupted: {}, lost: {})\n  \
         rejected {} + unsure {} + missed with a picture {} = spooled {}\n  \
         spooled {} = delivered {} + waiting {} + dead {} + dropped {} + purged {} + lost {}",
        r.line,
        if r.wrong.is_empty() { "OK" } else { "WRONG" },
        r.triggered,
        r.passed,
        r.rejected,
        r.unsure,
        r.missed,
        r.interrupted,
        r.lost_rows,
        r.rejected,
        r.unsure,
        r.missed_with_picture,
        r.spooled,
        r.spooled,
        r.delivered,
        r.waiting,
        r.dead,
        r.dropped,
        r.purged,
        r.lost
    );
    for wrong in &r.wrong {
        text += &format!("\n  {wrong}");
    }
    text
}
