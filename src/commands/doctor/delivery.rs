//! What `doctor` looks at of delivery: endpoint, clocks, spool, audit log, broker. Nothing is sent and nothing is changed.

use super::{Finding, State, disk, finding};
use crate::commands::inspect::default_spool;
use crate::config::Config;
use crate::deliver::{Kind, Target, probe};
use crate::error::{Error, Result};
use crate::observe::audit;
use crate::{plant, respond};
use jiff::Timestamp;
use std::path::Path;

/// Clocks that differ by more make captured_at and ages misleading, seconds.
const SKEW_S: f64 = 2.0;
/// Certificates that end sooner are worth a word, days.
const CERTIFICATE_DAYS: i64 = 21;
/// Anomalies that wait for longer are worth a word, seconds.
const OLD_S: f64 = 3600.0;

/// Everything that a line.toml names.
pub(super) fn configured(file: &Path) -> Vec<Finding> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(e) => return vec![bad("configuration", &e)],
    };
    let detail = format!("\"{}\" is good: {} lines", file.display(), config.lines.len());
    let mut out = vec![finding("configuration", State::Ok, detail, None)];
    for line in &config.lines {
        let what = format!("line \"{}\"", line.name);
        out.push(match plant::check(line) {
            Ok(()) => finding("model", State::Ok, format!("{what}: \"{}\" suits it", line.model.display()), None),
            Err(e) => {
                bad("model", &Error::new(e.kind(), what).because(e.to_string()).hint(e.hint_text().unwrap_or("")))
            }
        });
    }
    match default_spool().or_else(|e| config.database.clone().ok_or(e)) {
        Ok(default) => {
            let database = config.database.as_deref().unwrap_or(&default);
            let folder = database.ancestors().skip(1).find(|f| f.is_dir()).unwrap_or(Path::new("."));
            out.push(disk(folder));
            out.push(spool(database));
            out.push(audit_log(config.audit_log(&default).as_ref()));
        }
        Err(e) => out.push(bad("spool", &e)),
    }
    config.targets.iter().for_each(|target| out.extend(endpoint(target)));
    if config.targets.is_empty() {
        let detail = "none is configured: anomalies stay in the spool";
        out.push(finding("endpoint", State::Note, detail, Some("name one in [review]")));
    }
    if let Some(mqtt) = &config.mqtt {
        out.push(match respond::probe(mqtt) {
            Ok(broker) => finding("broker", State::Ok, format!("{broker} takes connections with this login"), None),
            Err(e) => bad("broker", &e),
        });
    }
    out
}

fn bad(check: &str, e: &Error) -> Finding {
    finding(check, State::Bad, e.to_string(), e.hint_text().filter(|h| !h.is_empty()))
}

/// Whether it answers, takes the token, and what its certificate and its clock say.
pub(super) fn endpoint(target: &Target) -> Vec<Finding> {
    let answered = match probe::ask(target) {
        Ok(answered) => answered,
        // a file that is named and cannot be used has a hint of its own
        Err(e) if e.hint_text().is_some() => return vec![bad("endpoint", &e)],
        Err(e) => {
            let text = e.to_string();
            let remedy = match () {
                () if text.contains("certificate") || text.contains("UnknownIssuer") => {
                    "the endpoint's certificate is not accepted: is it of this name, not expired, from an authority that this \
                     machine trusts (/usr/local/share/ca-certificates, then update-ca-certificates), and is this machine's clock right?"
                }
                () => {
                    "check the address, that `linesight review` or your endpoint runs, the proxy and the firewall between"
                }
            };
            return vec![finding("endpoint", State::Bad, text, Some(remedy))];
        }
    };
    let place = format!("{}: {}", target.name, answered.place);
    let token = match &target.kind {
        Kind::Review(endpoint) => endpoint.token.is_some(),
        Kind::Webhook(webhook) => webhook.endpoint.token.is_some(),
        Kind::Bucket(_) | Kind::Folder(_) => true,
    };
    let Some(status) = answered.status else {
        return vec![finding("endpoint", State::Ok, format!("{place} can be used"), None)];
    };
    let with = if token { "with the token" } else { "without a token" };
    let says = format!("{place} answers {status} {with}");
    let mut out = vec![match status {
        401 | 403 | 407 => finding(
            "endpoint",
            State::Bad,
            says,
            Some("the token is missing, wrong or has expired: put the right one into token_file"),
        ),
        404 => {
            finding("endpoint", State::Note, says, Some("there may be nothing at this path: is the address complete?"))
        }
        300..=399 => {
            finding("endpoint", State::Bad, says, Some("redirects are not followed: give the address it leads to"))
        }
        500.. => finding("endpoint", State::Note, says, Some("it is there and has trouble of its own")),
        // many do not know GET at the place where anomalies are posted, and say so
        _ => finding("endpoint", State::Ok, says, None),
    }];
    if let Some(ends) = answered.certificate_ends {
        let days = (ends.as_second() - Timestamp::now().as_second()).div_euclid(86_400);
        let detail = format!("good for {days} days, until {}", ends.strftime("%Y-%m-%d"));
        out.push(match days {
            ..CERTIFICATE_DAYS => finding("certificate", State::Note, detail, Some("have it renewed in time")),
            _ => finding("certificate", State::Ok, detail, None),
        });
    }
    if let Some(ahead) = answered.ahead_s {
        let (far, way) = (ahead.abs(), if ahead > 0.0 { "ahead of" } else { "behind" });
        out.push(match far > SKEW_S {
            true => finding(
                "clock skew",
                State::Note,
                format!("this machine is {far:.0} s {way} the endpoint"),
                Some("keep both clocks by NTP, for example with systemd-timesyncd: times of anomalies are this machine's"),
            ),
            false => finding("clock skew", State::Ok, format!("below {SKEW_S} s"), None),
        });
    }
    out
}

fn spool(database: &Path) -> Finding {
    if !database.exists() {
        let detail = format!("\"{}\" is made at the first run", database.display());
        return finding("spool", State::Ok, detail, None);
    }
    match probe::spool(database) {
        Ok(spool) => spool_finding(database, &spool),
        Err(e) => bad("spool", &e),
    }
}

fn spool_finding(database: &Path, spool: &probe::Spool) -> Finding {
    let oldest = spool.oldest.map(|at| Timestamp::now().duration_since(at).as_secs_f64());
    let age = oldest.map(|s| format!(", the oldest for {}", duration(s))).unwrap_or_default();
    let detail = format!(
        "\"{}\": {} anomalies wait{age}, {} that no target would take; {:.1} MB, {} journals, {}",
        database.display(),
        spool.waiting,
        spool.dead,
        spool.bytes as f64 / 1e6,
        spool.journals.len(),
        if spool.in_use { "in use by a linesight" } else { "not in use" },
    );
    if !spool.faults.is_empty() {
        let detail = format!("{detail}; the file is damaged: {}", spool.faults.join(", "));
        return finding(
            "spool",
            State::Bad,
            detail,
            Some("keep a copy of it and of FILE-wal before anything else; check the disk"),
        );
    }
    let remedy = match () {
        () if spool.dead > 0 => "those need a person: linesight's log and the audit log say why they were refused",
        () if oldest.is_some_and(|s| s > OLD_S) && spool.in_use => "delivery stands still: see the endpoint below",
        () if spool.waiting > 0 && !spool.in_use => "they are sent when linesight runs",
        () => return finding("spool", State::Ok, detail, None),
    };
    finding("spool", State::Note, detail, Some(remedy))
}

fn duration(s: f64) -> String {
    match s {
        ..120.0 => format!("{s:.0} s"),
        ..7200.0 => format!("{:.0} min", s / 60.0),
        ..172_800.0 => format!("{:.0} h", s / 3600.0),
        _ => format!("{:.0} days", s / 86_400.0),
    }
}

fn audit_log(options: Option<&audit::Options>) -> Finding {
    let Some(options) = options else {
        return finding("audit log", State::Note, "off", Some("[audit] in line.toml turns it on"));
    };
    let check = || -> Result<Finding> {
        audit::check(options)?;
        Ok(finding("audit log", State::Ok, format!("\"{}\" can be written", options.file.display()), None))
    };
    check().unwrap_or_else(|e| bad("audit log", &e))
}
