//! `linesight inspect`: one source, from beginning to end.

use super::terminal::{Progress, stop_flag};
use super::{print_json, print_text};
use crate::capture::{self, Source};
use crate::deliver::{Config, Deliver, Drained, Endpoint, Target, Token};
use crate::detect::{Backbone, Device, Hint, runtime};
use crate::error::{Context, Error, Result};
use crate::judge::truth::{Comparison, Truth};
use crate::line::{self, Judged, Latency, Line, Stages, Totals};
use crate::model::Model;
use crate::prepare::shrink::Size;
use crate::staging::{self, Staging};
use crossbeam_channel::{Sender, bounded};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use url::Url;
use uuid::Uuid;

/// The file that holds a line for each inspection; it also marks an output folder as ours.
const RESULTS: &str = "results.jsonl";
/// Anomalies whose pictures wait to be written with --out.
const PICTURES_WAITING: usize = 16;
/// How long the end waits for an endpoint that takes nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Arguments {
    /// Model package made by `linesight teach`.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A recording, an image, a folder of images or a URI.
    source: String,
    /// AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list.
    #[arg(long, default_value_t = Device::default())]
    device: Device,
    /// Accept another device than the one named.
    #[arg(long)]
    allow_fallback: bool,
    /// Folder for results.jsonl and, for anomalies, frame and heatmap.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Review endpoint that gets the anomalies, for example http://127.0.0.1:8080.
    #[arg(long, value_name = "URL")]
    review: Option<Url>,
    /// File with the endpoint's bearer token.
    #[arg(long, value_name = "FILE", requires = "review")]
    token_file: Option<PathBuf>,
    /// PEM certificates of the authorities that the endpoint's may come from, instead of the system's.
    #[arg(long, value_name = "FILE", requires = "review")]
    ca_file: Option<PathBuf>,
    /// Database that keeps ledger and spool [default: linesight/spool.db in the user's state folder].
    #[arg(long, value_name = "FILE")]
    spool: Option<PathBuf>,
    /// Name of the line in events and ledger.
    #[arg(long, default_value = "inspect")]
    line: String,
    /// Name of the site in events.
    #[arg(long, default_value = "local")]
    site: String,
    /// Truth file of the recording: adds precision, recall, F1 and false-positive rate.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Run at the recording's own rate instead of as fast as possible.
    #[arg(long)]
    realtime: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// What `inspect --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub source: String,
    pub model: String,
    pub device: String,
    pub precision: String,
    pub frames: u64,
    pub parts: u64,
    pub anomalies: u64,
    pub dropped: u64,
    pub lost: u64,
    pub decode_warnings: u64,
    pub seconds: f64,
    pub fps: f64,
    pub latency_ms: Latency,
    pub stages_ms: Stages,
    pub bytes_raw: u64,
    pub bytes_in: u64,
    pub bytes_uploaded: u64,
    pub bandwidth_saved: f64,
    pub bandwidth_saved_encoded: f64,
    /// Anomalies that the endpoint has acknowledged, those of earlier runs included.
    pub delivered: u64,
    /// Anomalies that wait in the spool.
    pub waiting: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truth: Option<Comparison>,
}

impl Summary {
    pub(super) fn new(source: &Source, model: &Model, t: &Totals, drained: Option<&Drained>) -> Summary {
        let uploaded = drained.map_or(0, |d| d.bytes_uploaded);
        let saved = |of: u64| if of == 0 { 0.0 } else { 1.0 - uploaded as f64 / of as f64 };
        Summary {
            source: source.name(),
            model: format!("{}@{}", model.name, model.version),
            device: t.device.clone(),
            precision: t.precision.clone(),
            frames: t.frames,
            parts: t.parts,
            anomalies: t.anomalies,
            dropped: t.dropped,
            lost: t.lost,
            decode_warnings: t.decode_warnings,
            seconds: t.seconds,
            fps: if t.seconds > 0.0 { t.frames as f64 / t.seconds } else { 0.0 },
            latency_ms: t.latency_ms,
            stages_ms: t.stages_ms,
            bytes_raw: t.bytes_raw,
            bytes_in: t.bytes_in,
            bytes_uploaded: uploaded,
            bandwidth_saved: saved(t.bytes_raw),
            bandwidth_saved_encoded: saved(t.bytes_in),
            delivered: drained.map_or(0, |d| d.delivered),
            waiting: drained.map_or(0, |d| d.waiting),
            truth: None,
        }
    }

    pub(super) fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "{}: {} frames, {} parts, {} anomalies in {:.1} s ({:.0} fps) on {} in {}",
                self.source,
                self.frames,
                self.parts,
                self.anomalies,
                self.seconds,
                self.fps,
                self.device,
                self.precision
            ),
            format!(
                "  capture to verdict ms: p50 {:.1}, p95 {:.1}, p99 {:.1}, max {:.1}",
                self.latency_ms.p50, self.latency_ms.p95, self.latency_ms.p99, self.latency_ms.max
            ),
        ];
        if self.delivered > 0 {
            let mut text = format!(
                "  uploaded {} anomalies, {:.2} MB; saved {:.2} % of the raw frames",
                self.delivered,
                self.bytes_uploaded as f64 / 1e6,
                self.bandwidth_saved * 100.0
            );
            if self.bytes_in > 0 {
                text += &format!(", {:.1} % of the encoded recording", self.bandwidth_saved_encoded * 100.0);
            }
            lines.push(text);
        }
        if self.lost > 0 || self.decode_warnings > 0 || self.dropped > 0 {
            lines.push(format!(
                "  dropped frames {}, parts lost before the gate {}, decoder warnings {}",
                self.dropped, self.lost, self.decode_warnings
            ));
        }
        if let Some(truth) = &self.truth {
            let t = &truth.counts;
            lines.push(format!(
                "  against the truth: {} of {} defective parts found, {} false rejects of {} good parts; precision {:.3}, recall {:.3}, F1 {:.3}",
                t.tp, t.tp + t.r#fn, t.fp, t.fp + t.tn, t.precision, t.recall, t.f1
            ));
            if !truth.escapes.is_empty() {
                lines.push(format!("  escapes: {}", truth.escapes.join(", ")));
            }
        }
        lines.join("\n")
    }
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let stop = stop_flag()?;
    let truth = a.truth.as_deref().map(Truth::load).transpose()?;
    let source = Source::parse(&a.source)?;
    if let Some(out) = &a.out {
        staging::check_destination(out, RESULTS)?;
    }
    let (model, mut backbone) = armed(&a, &source)?;
    let deliver = match &a.review {
        Some(url) => {
            let database = a.spool.clone().map_or_else(default_spool, Ok)?;
            let token = a.token_file.clone().map(Token::File);
            let targets =
                vec![Target::review(Endpoint { token, ca_file: a.ca_file.clone(), ..Endpoint::new(url.clone()) })];
            Some(Deliver::open(Config { database, run: Uuid::now_v7(), targets, audit: None })?)
        }
        None => None,
    };
    let progress = Progress::new();
    let outcome = inspect(
        &Line {
            name: &a.line,
            site: &a.site,
            source: &source,
            realtime: a.realtime,
            model: &model,
            deliver: deliver.as_ref(),
            stop: &stop,
            service: None,
        },
        &mut backbone,
        a.out.as_deref(),
        &progress,
    );
    progress.finish();
    // anomalies that were judged before an error are delivered all the same
    let drained = deliver.map(|d| d.drain(PATIENCE)).transpose();
    let totals = outcome?;
    let drained = drained?;
    let mut summary = Summary::new(&source, &model, &totals, drained.as_ref());
    summary.truth = truth.map(|t| t.compare(&totals.verdicts));
    if a.json {
        print_json(&summary)?
    } else {
        print_text(&summary.text())?
    }
    match drained {
        Some(Drained { waiting, last_error, .. }) if waiting > 0 => Err(Error::missing(format!(
            "{waiting} anomalies could not be delivered to the review endpoint: {}",
            last_error.unwrap_or_else(|| "no answer in time".into())
        ))
        .hint("they are safe in the spool and are sent by the next run with --review and the same --spool")),
        Some(Drained { dead, last_error, .. }) if dead > 0 => Err(Error::missing(format!(
            "{dead} anomalies were refused by the review endpoint: {}",
            last_error.unwrap_or_else(|| "it will not take them".into())
        ))
        .hint("they wait for a person: `linesight spool list --dead` shows them, `linesight spool retry` sends them again")),
        _ => Ok(0),
    }
}

/// Loads the package and compiles its network while GStreamer starts: neither needs the other, and they are most of the time until
/// the first frame. OpenVINO starts while the package is read. What is wrong with those two is said where they are used.
fn armed(a: &Arguments, source: &Source) -> Result<(Model, Backbone)> {
    std::thread::scope(|scope| {
        scope.spawn(|| capture::get_ready(source).is_ok());
        scope.spawn(|| runtime::core().is_ok());
        let model = Model::load(&a.model)?;
        let hint = Hint::for_source(a.realtime || source.is_live());
        let frames = || Ok(capture::size_of_recording(source)?.map(|(width, height)| Size { width, height }));
        let backbone = line::arm_beside_decoder(&model, &a.device, a.allow_fallback, hint, frames)?;
        Ok((model, backbone))
    })
}

/// Runs the line; with `out`, results and pictures appear there when all went well.
pub(super) fn inspect(
    line: &Line<'_>,
    backbone: &mut Backbone,
    out: Option<&Path>,
    progress: &Progress,
) -> Result<Totals> {
    let report = |done, of| progress.report("inspect", done, of);
    let Some(out) = out else { return line::run(line, backbone, |_| Ok(()), report) };
    let staging = Staging::new(out, RESULTS)?;
    let results = staging.path().join(RESULTS);
    let mut file = std::io::BufWriter::new(std::fs::File::create(&results).map_err(|e| staging.unwritable(e))?);
    let (tx, rx) = bounded::<Judged>(PICTURES_WAITING);
    let failed = AtomicBool::new(false);
    let totals = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for judged in rx {
                if let Err(e) = write_pictures(&staging, &judged) {
                    failed.store(true, std::sync::atomic::Ordering::Relaxed);
                    return Err(e);
                }
            }
            Ok(())
        });
        let totals = line::run(line, backbone, |judged| write_result(&mut file, &staging, &tx, judged), report);
        drop(tx);
        let written = writer
            .join()
            .unwrap_or_else(|_| Err(Error::failed("writing pictures panicked; this is a bug in linesight")));
        // a closed picture channel is only the consequence of what the writer says
        if failed.load(std::sync::atomic::Ordering::Relaxed) {
            written.and(totals)
        } else {
            totals.and_then(|t| written.map(|()| t))
        }
    })?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(|e| staging.unwritable(e))?;
    staging.publish()?;
    Ok(totals)
}

fn write_result(file: &mut impl Write, staging: &Staging, pictures: &Sender<Judged>, judged: Judged) -> Result<()> {
    let text = serde_json::to_string(&judged.inspection).failed(|| "an inspection cannot be written as JSON")?;
    writeln!(file, "{text}").map_err(|e| staging.unwritable(e))?;
    if judged.inspection.verdict.is_anomaly() && pictures.send(judged).is_err() {
        return Err(Error::failed("pictures can no longer be written"));
    }
    Ok(())
}

fn write_pictures(staging: &Staging, judged: &Judged) -> Result<()> {
    let pictures = judged.pictures()?;
    let part = judged.inspection.part;
    staging.write(&format!("part-{part:05}-frame.jpg"), &pictures.frame_jpeg)?;
    staging.write(&format!("part-{part:05}-heatmap.png"), &pictures.heatmap_png)
}

/// The user's state folder, as the XDG base directory specification has it.
pub(super) fn default_spool() -> Result<PathBuf> {
    let absolute = |v: &str| std::env::var_os(v).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|h| h.join(".local/state")))
        .ok_or_else(|| Error::usage("there is no home folder for the spool").hint("name a file with --spool"))?;
    Ok(state.join("linesight/spool.db"))
}
