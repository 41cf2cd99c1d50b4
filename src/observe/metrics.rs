//! The numbers of a running process as OpenMetrics text, made when they are asked for.
//!
//! Owned by the thread that serves them; lines, spool and responders are only read.
//!
//! Invariants:
//! 1. A figure has one name, one type and one help text, and what a line is called cannot break the text
//!    (tests `every_figure_is_there_and_parses` and `names_of_lines_are_escaped` in tests/observe.rs).
//! 2. Counters and gauges that others add are grouped by name; of two kinds under one name the first counts
//!    (test `others_are_grouped_by_name`).
//!
//! Names follow the conventions of Prometheus: base units (seconds, bytes), `_total` for counters.

use super::Sources;
use super::process::Process;
use super::status::{LATENCY_BUCKETS_MS, Snapshot};
use crate::error::{Context, Result};
use crate::event::LineState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// What the text is, for the Content-Type header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn metric(self) -> MetricType {
        match self {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        }
    }
}

/// A number that another module adds to the metrics, for example an output to the plant.
pub struct Extra {
    /// Without `_total`, which counters get: `linesight_mqtt_published`.
    pub name: &'static str,
    /// Without a full stop.
    pub help: &'static str,
    pub kind: Kind,
    pub labels: Vec<(String, String)>,
    /// Called whenever somebody asks; must not wait.
    pub read: Box<dyn Fn() -> f64 + Send + Sync>,
}

/// All metrics as text.
pub(super) fn render(sources: &Arc<Sources>) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Reading(sources.clone())));
    let mut out = String::with_capacity(16 << 10);
    text::encode(&mut out, &registry).failed(|| "the metrics cannot be written")?;
    Ok(out)
}

struct Reading(Arc<Sources>);

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

/// Writes one family after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'s>(&'s mut self, name: &'s str, help: &str, kind: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    /// A family with a value for each set of labels; nothing at all without values.
    fn values<L: EncodeLabelSet>(&mut self, kind: Kind, name: &str, help: &str, values: &[(L, f64)]) -> fmt::Result {
        if values.is_empty() {
            return Ok(());
        }
        let mut family = self.family(name, help, kind.metric())?;
        for (labels, value) in values {
            let mut one = family.encode_family(labels)?;
            match kind {
                Kind::Counter => one.encode_counter::<NoLabelSet, _, f64>(value, None)?,
                Kind::Gauge => one.encode_gauge(value)?,
            }
        }
        Ok(())
    }

    fn one(&mut self, kind: Kind, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut family = self.family(name, help, kind.metric())?;
        match kind {
            Kind::Counter => family.encode_counter::<NoLabelSet, _, f64>(&value, None),
            Kind::Gauge => family.encode_gauge(&value),
        }
    }
}

impl Collector for Reading {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.values(
            Kind::Gauge,
            "linesight_build_info",
            "Always 1: which linesight this is",
            &[([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        )?;
        lines(&mut out, &self.0.lines.snapshots())?;
        if let Some(deliver) = &self.0.deliver {
            spool(&mut out, &deliver())?;
        }
        others(&mut out, &self.0.extra)?;
        process(&mut out, &Process::read(self.0.started))
    }
}

fn lines(out: &mut Out<'_>, lines: &[Snapshot]) -> fmt::Result {
    use Kind::{Counter, Gauge};
    let each = |value: &dyn Fn(&Snapshot) -> f64| -> Vec<_> {
        lines.iter().map(|s| ([("line", s.line.as_str())], value(s))).collect()
    };
    out.values(Counter, "linesight_frames", "Frames taken from the source", &each(&|s| s.counters.frames as f64))?;
    let verdicts: Vec<_> = lines
        .iter()
        .flat_map(|s| {
            let c = &s.counters;
            [("pass", c.passed), ("reject", c.rejected), ("unsure", c.unsure), ("missed", c.missed)]
                .map(|(verdict, n)| ([("line", s.line.as_str()), ("verdict", verdict)], n as f64))
        })
        .collect();
    out.values(Counter, "linesight_parts", "Parts that got a number, by verdict", &verdicts)?;
    out.values(
        Counter,
        "linesight_late_parts",
        "Parts whose verdict came after the deadline, among the missed",
        &each(&|s| s.counters.late as f64),
    )?;
    let dropped: Vec<_> = lines
        .iter()
        .flat_map(|s| {
            let of = |(reason, n): (&'_ String, &u64)| (reason.clone(), *n as f64);
            s.counters.dropped.iter().map(of).map(|(reason, n)| ([("line", s.line.clone()), ("reason", reason)], n))
        })
        .collect();
    out.values(Counter, "linesight_dropped_frames", "Frames that were not inspected, by reason", &dropped)?;
    out.values(
        Counter,
        "linesight_source_reconnects",
        "Times that the source was opened again",
        &each(&|s| s.counters.reconnects as f64),
    )?;
    let states: Vec<_> = lines
        .iter()
        .flat_map(|s| {
            LineState::ALL.map(|state| {
                ([("line", s.line.as_str()), ("state", state.as_str())], f64::from(u8::from(s.state == state)))
            })
        })
        .collect();
    out.values(Gauge, "linesight_line_state", "1 for the state that the line is in", &states)?;
    out.values(
        Gauge,
        "linesight_line_state_age_seconds",
        "How long the line is in its state",
        &each(&|s| s.state_age_s),
    )?;
    out.values(
        Gauge,
        "linesight_line_hung",
        "1 while a thread of the line gives no sign of life",
        &each(&|s| f64::from(u8::from(s.hung.is_some()))),
    )?;
    let ages: Vec<_> = lines.iter().filter_map(|s| Some(([("line", s.line.as_str())], s.last_frame_age_s?))).collect();
    out.values(Gauge, "linesight_last_frame_age_seconds", "Age of the last frame, once there was one", &ages)?;
    out.values(Gauge, "linesight_frame_rate", "Frames a second over the last seconds", &each(&|s| s.fps))?;
    let thresholds: Vec<_> =
        lines.iter().filter_map(|s| Some(([("line", s.line.as_str())], f64::from(s.threshold?)))).collect();
    out.values(Gauge, "linesight_threshold", "Score above which a part is rejected", &thresholds)?;
    let models: Vec<_> = lines
        .iter()
        .filter_map(|s| {
            let m = s.model.as_ref()?;
            Some(([("line", s.line.as_str()), ("model", m.name.as_str()), ("version", m.version.as_str())], 1.0))
        })
        .collect();
    out.values(Gauge, "linesight_model_info", "Always 1: the model that judges the line", &models)?;
    latency(out, lines)?;
    for (name, what, pick) in [
        ("health", "the camera's health", (|s| &s.health) as fn(&Snapshot) -> &_),
        ("drift", "the scores' drift", |s| &s.drift),
    ] {
        let each = |value: &dyn Fn(&crate::event::Check) -> f64| -> Vec<_> {
            lines
                .iter()
                .flat_map(|s| {
                    let checks: &std::collections::BTreeMap<String, crate::event::Check> = pick(s);
                    checks
                        .iter()
                        .map(|(check, c)| ([("line", s.line.clone()), ("check", check.clone())], value(c)))
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        let family = |suffix: &str| format!("linesight_{name}{suffix}");
        out.values(Gauge, &family(""), &format!("A check of {what}, in its own unit"), &each(&|c| c.value))?;
        out.values(
            Gauge,
            &family("_usual"),
            &format!("What a check of {what} gave when the model was taught, or its limit"),
            &each(&|c| c.usual),
        )?;
        out.values(
            Gauge,
            &family("_alert"),
            &format!("1 while a check of {what} is an alert"),
            &each(&|c| f64::from(u8::from(c.alert))),
        )?;
    }
    Ok(())
}

fn latency(out: &mut Out<'_>, lines: &[Snapshot]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    let bounds = LATENCY_BUCKETS_MS.iter().map(|ms| ms / 1e3).chain([f64::INFINITY]);
    let mut family =
        out.family("linesight_verdict_latency_seconds", "From trigger to verdict", MetricType::Histogram)?;
    for s in lines {
        let buckets: Vec<(f64, u64)> = bounds.clone().zip(s.latency.iter().copied()).collect();
        let count = buckets.iter().map(|b| b.1).sum();
        let labels = [("line", s.line.as_str())];
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(s.latency_sum_ms / 1e3, count, &buckets, None)?;
    }
    Ok(())
}

fn spool(out: &mut Out<'_>, d: &crate::deliver::Status) -> fmt::Result {
    use Kind::{Counter, Gauge};
    let ill = |text: &Option<String>| u64::from(text.is_some());
    for (kind, name, help, value) in [
        (Gauge, "linesight_spool_waiting", "Anomalies in the spool", d.waiting),
        (Gauge, "linesight_spool_set_aside", "Anomalies in the spool that the endpoint refuses", d.set_aside),
        (Gauge, "linesight_spool_dead", "Anomalies in the spool that no target would take", d.dead),
        (Gauge, "linesight_spool_bytes", "Events and pictures in the spool", d.spool_bytes),
        (Counter, "linesight_anomalies_dropped", "Anomalies that made room for others, undelivered", d.dropped),
        (Counter, "linesight_pictures_dropped", "Anomalies whose pictures made room for others", d.pictures_dropped),
        (Gauge, "linesight_reports_waiting", "Line reports that wait for the endpoint", d.reports_waiting),
        (Counter, "linesight_reports_delivered", "Line reports that the endpoint acknowledged", d.reports_delivered),
        (Counter, "linesight_reports_dropped", "Line reports that were given up", d.reports_dropped),
        (Counter, "linesight_ledger_rows", "Ledger rows committed", d.recorded),
        (Counter, "linesight_ledger_conflicts", "Rows left out because the ledger had that part", d.ledger_conflicts),
        (Counter, "linesight_anomalies_spooled", "Anomalies committed to the spool", d.spooled),
        (Counter, "linesight_anomalies_delivered", "Anomalies that the endpoint acknowledged", d.delivered),
        (Counter, "linesight_anomalies_salvaged", "Anomalies brought over from a damaged spool", d.salvaged),
        (Counter, "linesight_anomalies_lost", "Anomalies lost with a damaged spool", d.lost),
        (Counter, "linesight_upload_attempts", "Requests made to the endpoint", d.attempts),
        (Counter, "linesight_uploaded_bytes", "Body bytes that the endpoint acknowledged", d.bytes_uploaded),
        (Counter, "linesight_spool_waits", "Times that a line waited for the spool", d.channel_waits),
        (Counter, "linesight_picture_failures", "Anomalies that left with placeholder pictures", d.picture_failures),
        (Gauge, "linesight_upload_failing", "1 while the last upload has failed", ill(&d.last_error)),
        (Gauge, "linesight_spool_write_failing", "1 while nothing can be written to the spool", ill(&d.write_error)),
    ] {
        out.one(kind, name, help, value as f64)?;
    }
    targets(out, &d.targets)
}

/// A value of a target.
type OfTarget = fn(&crate::deliver::TargetStatus) -> u64;

fn targets(out: &mut Out<'_>, targets: &[crate::deliver::TargetStatus]) -> fmt::Result {
    use Kind::{Counter, Gauge};
    let figures: [(Kind, &str, &str, OfTarget); 7] = [
        (Gauge, "linesight_target_waiting", "Anomalies that the target still has to get", |t| t.depth.waiting),
        (Gauge, "linesight_target_set_aside", "Those of them that it refuses as it is now", |t| t.depth.set_aside),
        (Gauge, "linesight_target_dead", "Anomalies that it refused for good", |t| t.depth.dead),
        (Counter, "linesight_target_delivered", "Anomalies that it acknowledged", |t| t.delivered),
        (Counter, "linesight_target_attempts", "Requests made to it", |t| t.attempts),
        (Counter, "linesight_target_bytes", "Bytes of anomalies that it acknowledged", |t| t.bytes),
        (Gauge, "linesight_target_failing", "1 while the last request to it has failed", |t| {
            u64::from(t.last_error.is_some())
        }),
    ];
    for (kind, name, help, value) in figures {
        let values: Vec<_> = targets.iter().map(|t| ([("target", t.name.as_str())], value(t) as f64)).collect();
        out.values(kind, name, help, &values)?;
    }
    Ok(())
}

fn others(out: &mut Out<'_>, extra: &[Extra]) -> fmt::Result {
    let mut seen: Vec<&str> = Vec::new();
    for first in extra {
        if seen.contains(&first.name) {
            continue;
        }
        seen.push(first.name);
        let values: Vec<_> = extra
            .iter()
            .filter(|e| e.name == first.name && e.kind == first.kind)
            .map(|e| (e.labels.clone(), (e.read)()))
            .collect();
        out.values(first.kind, first.name, first.help, &values)?;
    }
    Ok(())
}

fn process(out: &mut Out<'_>, p: &Process) -> fmt::Result {
    use Kind::{Counter, Gauge};
    for (kind, name, help, value) in [
        (Counter, "process_cpu_seconds", "Processor time of the whole process", Some(p.cpu_s)),
        (Gauge, "process_resident_memory_bytes", "Resident memory", p.resident),
        (Gauge, "process_virtual_memory_bytes", "Virtual memory", p.virtual_memory),
        (Gauge, "process_threads", "Threads", p.threads),
        (Gauge, "process_open_fds", "Open file descriptors", p.open_fds),
        (Gauge, "process_max_fds", "File descriptors that the process may open", p.max_fds),
        (Gauge, "process_start_time_seconds", "Start of the process, seconds since 1970", Some(p.started_s)),
    ] {
        if let Some(value) = value {
            out.one(kind, name, help, value)?;
        }
    }
    Ok(())
}
