//! `linesight status`

use super::{print_json, print_text};
use crate::error::{Context, Error, Result};
use crate::event::{Check, LineState};
use crate::observe::{LATENCY_BUCKETS_MS, LISTEN, Report, Snapshot};
use std::time::Duration;
use url::Url;

/// A process that answers at all answers in much less.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the running linesight serves its metrics.
    #[arg(long, value_name = "URL", default_value_t = default_url())]
    at: Url,
    /// Print the answer as one JSON document.
    #[arg(long)]
    json: bool,
}

fn default_url() -> Url {
    // a socket address is always a valid authority
    Url::parse(&format!("http://{LISTEN}")).unwrap_or_else(|_| unreachable!("{LISTEN} is an address"))
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let report = ask(&a.at)?;
    if a.json {
        print_json(&report)?;
    } else {
        print_text(&table(&report))?;
    }
    Ok(0)
}

/// What the process at `at` says of itself.
fn ask(at: &Url) -> Result<Report> {
    if !matches!(at.scheme(), "http" | "https") {
        return Err(
            Error::usage(format!("\"{at}\" is no http address")).hint(format!("give --at like http://{LISTEN}"))
        );
    }
    let url = at.join("/status").usage(|| format!("\"{at}\" is no address of a server"))?;
    let missing = |e: Error| {
        e.hint(
            "start a line with `linesight run`, or name where it serves metrics with --at (key metrics of line.toml)",
        )
    };
    // a proxy of the environment is for other machines
    let client = reqwest::blocking::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .build()
        .failed(|| "cannot prepare the HTTP client")?;
    let answer = client
        .get(url)
        .send()
        .and_then(reqwest::blocking::Response::error_for_status)
        .map_err(|e| missing(Error::missing(format!("no linesight answers at \"{at}\"")).because(root(&e))))?;
    answer.json().map_err(|e| {
        missing(Error::missing(format!("what answers at \"{at}\" is no linesight of this version")).because(root(&e)))
    })
}

/// The innermost cause: what lies around it says the same in more words.
fn root(e: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

const HEADINGS: [&str; 14] = [
    "LINE",
    "STATE",
    "FOR",
    "FPS",
    "LAST FRAME",
    "PARTS",
    "PASS",
    "REJECT",
    "UNSURE",
    "MISSED",
    "LATE",
    "DROPPED",
    "P99",
    "MODEL",
];

fn table(report: &Report) -> String {
    let rows: Vec<[String; 14]> = report.lines.iter().map(row).collect();
    let headings = HEADINGS.map(str::to_owned);
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|i| rows.iter().chain([&headings]).map(|r| r[i].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    if rows.is_empty() {
        out += "no line runs\n";
    } else {
        for cells in [&headings].into_iter().chain(&rows) {
            let line: Vec<String> = cells
                .iter()
                .zip(&widths)
                .enumerate()
                // words to the left, numbers to the right
                .map(
                    |(i, (cell, &w))| {
                        if matches!(i, 0 | 1 | 13) { format!("{cell:<w$}") } else { format!("{cell:>w$}") }
                    },
                )
                .collect();
            out += line.join("  ").trim_end();
            out.push('\n');
        }
    }
    for s in &report.lines {
        if let Some(hung) = &s.hung {
            out += &format!("{}: {hung}\n", plain(&s.line));
        }
        if let Some(reason) = &s.reason {
            out += &format!("{}: {}: {}\n", plain(&s.line), s.state.as_str(), plain(reason));
        }
        for (kind, checks) in [("camera", &s.health), ("scores", &s.drift)] {
            for (name, check) in checks.iter().filter(|(_, c)| c.alert) {
                out += &format!("{}: {kind}, {name}: {}\n", plain(&s.line), plain(&says(check)));
            }
        }
    }
    let number = |key: &str| report.deliver.as_ref().and_then(|d| d.get(key)?.as_u64());
    if let (Some(waiting), Some(delivered)) = (number("waiting"), number("delivered")) {
        out += &format!(
            "spool: {waiting} waiting, {} refused by the endpoint, {delivered} delivered\n",
            number("set_aside").unwrap_or(0)
        );
    }
    for key in ["last_error", "write_error"] {
        if let Some(text) = report.deliver.as_ref().and_then(|d| d.get(key)?.as_str()) {
            out += &format!("spool: {}\n", plain(text));
        }
    }
    out +=
        &format!("running since {}, version {}", report.started_at.strftime("%Y-%m-%d %H:%M:%S UTC"), report.version);
    out
}

fn row(s: &Snapshot) -> [String; 14] {
    let c = &s.counters;
    let fps =
        if matches!(s.state, LineState::Stopped | LineState::Failed) { "-".into() } else { format!("{:.1}", s.fps) };
    [
        plain(&s.line),
        s.state.as_str().to_owned(),
        duration(s.state_age_s),
        fps,
        s.last_frame_age_s.map_or("-".into(), duration),
        c.parts.to_string(),
        c.passed.to_string(),
        c.rejected.to_string(),
        c.unsure.to_string(),
        c.missed.to_string(),
        c.late.to_string(),
        c.dropped.values().sum::<u64>().to_string(),
        quantile(&s.latency, 0.99),
        s.model.as_ref().map_or("-".into(), |m| plain(&format!("{}@{}", m.name, m.version))),
    ]
}

fn says(check: &Check) -> String {
    check.says.clone().unwrap_or_else(|| format!("{:.3}, usual {:.3}", check.value, check.usual))
}

/// Text from elsewhere without what would move a terminal's cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

/// An estimate from the histogram: where in its bucket the quantile lies if the bucket is evenly filled.
fn quantile(buckets: &[u64], q: f64) -> String {
    let all: u64 = buckets.iter().sum();
    if all == 0 {
        return "-".into();
    }
    let wanted = q * all as f64;
    let (mut below, mut lower) = (0u64, 0.0);
    for (&n, &upper) in buckets.iter().zip(&LATENCY_BUCKETS_MS) {
        if n > 0 && (below + n) as f64 >= wanted {
            let ms = lower + (upper - lower) * (wanted - below as f64) / n as f64;
            return if ms < 10.0 { format!("~{ms:.1}ms") } else { format!("~{ms:.0}ms") };
        }
        (below, lower) = (below + n, upper);
    }
    format!(">{lower:.0}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_estimated_inside_their_bucket() {
        let mut buckets = vec![0; LATENCY_BUCKETS_MS.len() + 1];
        assert_eq!(quantile(&buckets, 0.99), "-");
        buckets[2] = 100; // 2 to 5 ms
        assert_eq!(quantile(&buckets, 0.5), "~3.5ms");
        buckets[7] = 100; // 50 to 100 ms
        assert_eq!(quantile(&buckets, 0.99), "~99ms");
        buckets[12] = 1000;
        assert_eq!(quantile(&buckets, 0.99), ">5000ms");
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a?[2Jb?");
    }
}
