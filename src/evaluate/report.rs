//! The report of an evaluation: one HTML file that needs nothing else, neither network nor script.
//!
//! Invariants:
//! 1. Text from outside (file names, labels, names of models) is escaped; maud does it (test `hostile_names_stay_text`).
//! 2. The file refers to nothing outside itself (test `tests/evaluate.rs::the_report_is_self_contained`).
//! 3. It appears whole or not at all, and replaces nothing but an older report (test `tests/evaluate.rs::bad_reports`).

use super::gallery::{Exhibit, Gallery};
use super::metrics::Ranking;
use super::pixels::PRO_LIMIT;
use super::plot::{Chart, Layer, Scale, histogram, tick_text};
use super::{Evaluation, Scored};
use crate::error::{Error, Result};
use crate::event::Verdict;
use crate::judge::Calibration;
use crate::model::{Model, Trigger};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use statrs::distribution::{Beta, ContinuousCDF};
use std::io::{Read, Write};
use std::path::Path;

const STYLE: &str = include_str!("../../assets/report/style.css");
/// Known to be in the first bytes of every report.
const GENERATOR: &str = "linesight evaluate";
/// Bins of a histogram.
const BINS: usize = 60;
/// The QQ plot ends here, -log10: smaller p-values lie on its edge.
const LARGEST_LOG: f64 = 6.0;

/// Refuses a report file that cannot be made, before any work is done.
pub fn check_destination(path: &Path) -> Result<()> {
    let shown = path.display();
    if path.is_dir() {
        return Err(Error::usage(format!("report \"{shown}\" is a folder")).hint("name a file with --report"));
    }
    let parent = parent(path);
    if !parent.is_dir() {
        return Err(Error::usage(format!("report \"{shown}\" has no parent folder"))
            .hint(format!("make \"{}\" first", parent.display())));
    }
    if path.exists() {
        let mut head = [0; 512];
        let read = std::fs::File::open(path).and_then(|mut f| f.read(&mut head)).unwrap_or(0);
        if !String::from_utf8_lossy(&head[..read]).contains(GENERATOR) {
            return Err(Error::usage(format!("\"{shown}\" is there and is no report of an evaluation"))
                .hint("name another file with --report; nothing was changed"));
        }
    }
    // the cheapest proof that the folder can be written to is to write there
    tempfile::tempfile_in(parent).map(drop).map_err(|e| unwritable(path, e))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn unwritable(path: &Path, e: std::io::Error) -> Error {
    Error::failed(format!("report \"{}\" cannot be written", path.display()))
        .because(e)
        .hint("check its folder's permissions and free space, or name another file with --report")
}

/// Writes the report.
pub fn write(path: &Path, e: &Evaluation, gallery: &Gallery, model: &Model) -> Result<()> {
    let text = html(e, gallery, model)?;
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".linesight-")
            .suffix(".partial")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(parent(path))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|e| unwritable(path, e))
}

/// The report as text.
pub fn html(e: &Evaluation, gallery: &Gallery, model: &Model) -> Result<String> {
    let ranking = super::rank(&e.scores)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content=(GENERATOR);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Evaluation of " (e.model) }
                // the style sheet is ours and holds nothing that ends the element
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (header(e))
                    (at_threshold(e))
                    (scores(e, &model.calibration))
                    (curves(e, &ranking, &model.calibration)?)
                    (defects(e))
                    (exhibits("Worst misses", "Defective parts that passed, lowest score first.", &gallery.misses, nearest_miss(e), e.threshold))
                    (exhibits("Worst false rejects", "Good parts that did not pass, highest score first.", &gallery.false_rejects, nearest_false_reject(e), e.threshold))
                    (timing(e))
                    (model_card(e, model))
                    (definitions(e))
                    footer { "Made by linesight " (env!("CARGO_PKG_VERSION")) " evaluate, " (jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()) "." }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// 0..1 with three digits, never rounded up to certainty.
fn ratio(value: f64) -> String {
    if value < 1.0 && value > 0.9995 { "> 0.999".into() } else { format!("{value:.3}") }
}

fn percent(value: f64) -> String {
    if value == 1.0 { "100 %".into() } else { format!("{:.1} %", value * 100.0) }
}

/// What [`Evaluation::ms_per_image`] is for.
fn per(e: &Evaluation) -> &'static str {
    if e.scores.iter().any(|s| s.part.is_some()) { "for each frame" } else { "for each image" }
}

fn score(value: f32) -> String {
    if value >= 100.0 { format!("{value:.1}") } else { format!("{value:.2}") }
}

fn header(e: &Evaluation) -> Markup {
    let c = &e.at_threshold.counts;
    let pixels = |v: Option<f64>, what: String| {
        tile(
            what.as_str(),
            &v.map_or("–".into(), ratio),
            &match &e.pixels {
                Some(p) => format!("{} regions, {} images", p.regions, p.images),
                None => "no masks".into(),
            },
        )
    };
    html! {
        header {
            h1 { "Evaluation of " (e.model) }
            p .lead { (e.data) " · " (e.good) " good and " (e.defective) " defective parts · " (e.device) ", " (e.precision) }
            div .tiles {
                (tile("Image AUROC", &ratio(e.image_auroc), &format!("average precision {}", ratio(e.average_precision))))
                (tile("F1 at threshold", &ratio(c.f1), &format!("{} at the best", ratio(e.best_f1))))
                (tile("Defects found", &percent(c.recall), &format!("{} of {}", c.tp, c.tp + c.r#fn)))
                (tile("Good rejected", &percent(c.fpr), &format!("{} of {}", c.fp, c.fp + c.tn)))
                (pixels(e.pixel_auroc, "Pixel AUROC".into()))
                (pixels(e.aupro, format!("AUPRO ({PRO_LIMIT})")))
                (tile("Time", &format!("{:.1} ms", e.ms_per_image), per(e)))
            }
            @if !e.notes.is_empty() {
                ul .card.notes { @for note in &e.notes { li { (note) } } }
            }
        }
    }
}

fn tile(name: &str, value: &str, below: &str) -> Markup {
    html! { div .card.tile { span { (name) } strong { (value) } small { (below) } } }
}

fn at_threshold(e: &Evaluation) -> Markup {
    let a = &e.at_threshold;
    let c = &a.counts;
    let interval = |i: [f64; 2]| format!("{} to {}", percent(i[0]), percent(i[1]));
    html! {
        section {
            h2 { "At the calibrated threshold " (score(e.threshold)) }
            div .split {
                div .card {
                    table .confusion {
                        thead { tr { th {} th { "judged good" } th { "judged anomalous" } } }
                        tbody {
                            tr { th { "defective" } td .wrong[c.r#fn > 0] { (c.r#fn) small { "missed" } } td { (c.tp) small { "found" } } }
                            tr { th { "good" } td { (c.tn) small { "passed" } } td .wrong[c.fp > 0] { (c.fp) small { "false rejects" } } }
                        }
                    }
                }
                div .card { table {
                    thead { tr { th { "measure" } th .n { "value" } th .n { "95 % interval" } } }
                    tbody {
                        tr { td { "recall" } td .n { (ratio(c.recall)) } td .n { (interval(a.recall_95)) } }
                        tr { td { "false-positive rate" } td .n { (ratio(c.fpr)) } td .n { (interval(a.fpr_95)) } }
                        tr { td { "precision" } td .n { (ratio(c.precision)) } td {} }
                        tr { td { "F1" } td .n { (ratio(c.f1)) } td {} }
                        tr { td { "best F1, at " (score(e.best_f1_threshold)) } td .n { (ratio(e.best_f1)) } td {} }
                        @if a.unsure > 0 { tr { td { "judged unsure" } td .n { (a.unsure) } td {} } }
                    }
                } }
            }
        }
    }
}

fn scores(e: &Evaluation, calibration: &Calibration) -> Markup {
    let of = |defective: bool, label: Option<&str>| -> Vec<f32> {
        let chosen = |s: &&Scored| s.defective == defective && label.is_none_or(|l| s.label == l);
        e.scores.iter().filter(chosen).map(|s| s.score).collect()
    };
    let mut rows = vec![("good, held out when taught".to_owned(), "", calibration.scores.clone())];
    rows.push(("good".into(), "good", of(false, None)));
    rows.extend(e.per_defect.iter().map(|d| (d.label.clone(), "bad", of(true, Some(&d.label)))));
    let all = || rows.iter().flat_map(|r| &r.2).copied().chain([e.threshold]);
    let scale = Scale::for_scores(all().fold(f32::INFINITY, f32::min).into(), all().fold(0.0, f32::max).into());
    let cut = scale.at(e.threshold.into()) * 100.0;
    let left = |at: f64| format!("left:{at:.2}%");
    let side = if cut > 70.0 {
        "left"
    } else if cut < 30.0 {
        "right"
    } else {
        ""
    };
    html! {
        section {
            h2 { "Scores" }
            div .card {
                div .hist {
                    div .ticks.top { span .over.(side) style=(left(cut)) { "threshold " (score(e.threshold)) } }
                    @for (name, class, values) in &rows {
                        div .who { (name) small { (values.len()) } }
                        div .row.(class) { (histogram(values, scale, BINS)) i .cut style=(left(cut)) {} }
                    }
                    div .ticks { @for t in scale.ticks() { span style=(left(scale.at(t) * 100.0)) { (tick_text(t)) } } }
                }
                p .soft style="margin:6px 0 0" {
                    "Raw distance from normal" @if scale.is_log() { ", logarithmic" } ". Each row has its own height."
                }
            }
        }
    }
}

fn curves(e: &Evaluation, ranking: &Ranking, calibration: &Calibration) -> Result<Markup> {
    let c = &e.at_threshold.counts;
    let (recall, precision) = (c.recall, c.precision);
    let dot = |class, x, y, text: String| Layer::Dots { class, radius: 5.5, points: vec![(x, y, text)] };
    let unit = Scale::linear(0.0, 1.0);
    let best = ranking.steps.iter().find(|s| s.threshold == e.best_f1_threshold);
    let best = best.map(|s| (s.tp as f64 / ranking.defective as f64, s.fp as f64 / ranking.good as f64, s));
    let mut roc = vec![
        Layer::Line { class: "chance", points: vec![(0.0, 0.0), (1.0, 1.0)] },
        Layer::Line { class: "curve", points: ranking.roc() },
    ];
    let mut pr = Vec::new();
    let mut points = ranking.precision_recall();
    points.insert(0, (0.0, points.first().map_or(1.0, |p| p.1)));
    pr.push(Layer::Steps { class: "curve", points });
    if let Some((r, f, s)) = best {
        let text = format!("best F1 {} at {}", ratio(e.best_f1), score(s.threshold));
        roc.push(dot("best", f, r, text.clone()));
        pr.push(dot("best", r, s.tp as f64 / (s.tp + s.fp) as f64, text));
    }
    roc.push(dot(
        "at",
        c.fpr,
        recall,
        format!("at the threshold: recall {}, false-positive rate {}", ratio(recall), ratio(c.fpr)),
    ));
    pr.push(dot(
        "at",
        recall,
        precision,
        format!("at the threshold: precision {}, recall {}", ratio(precision), ratio(recall)),
    ));
    let roc = Chart { title: "ROC curve", x: ("false-positive rate", unit), y: ("recall", unit), layers: roc };
    let pr = Chart { title: "Precision-recall curve", x: ("recall", unit), y: ("precision", unit), layers: pr };
    Ok(html! {
        section {
            h2 { "Curves" }
            div .split {
                figure .card {
                    h3 { "ROC, area " (ratio(e.image_auroc)) }
                    (roc.svg())
                    (legend(&[("at", "calibrated threshold"), ("best", "best F1"), ("chance", "chance")]))
                }
                figure .card {
                    h3 { "Precision and recall, average precision " (ratio(e.average_precision)) }
                    (pr.svg())
                    (legend(&[("at", "calibrated threshold"), ("best", "best F1")]))
                }
                figure .card {
                    h3 { "QQ plot of good parts' p-values" }
                    (qq(e, calibration)?)
                    (legend(&[("held", "held out when taught"), ("test", "good parts of this data"), ("band", "95 % of uniform p-values")]))
                }
            }
            p .soft style="margin-top:10px" {
                "The QQ plot tells whether the threshold's false-reject rate can be believed: p-values of good parts under the "
                "tail that calibration fitted should lie on the line. Dots above it score higher than the tail expects, so more "
                "good parts will be rejected than wanted; dots below it, fewer. The tail was fitted to the held-out scores "
                "themselves, so the good parts of this data are the stricter test."
            }
        }
    })
}

fn legend(items: &[(&str, &str)]) -> Markup {
    html! { ul .legend { @for (class, text) in items { li {
        svg .chart viewBox="0 0 14 14" aria-hidden="true" {
            @match *class {
                "chance" => path .line.chance d="M0 7H14" {},
                "band" => rect .band x="0" y="2" width="14" height="10" {},
                class => circle .(class) cx="7" cy="7" r="4.6" {},
            }
        }
        (text)
    } } } }
}

/// Observed against expected -log10 p-values.
fn qq(e: &Evaluation, calibration: &Calibration) -> Result<Markup> {
    let series = |mut scores: Vec<f32>| -> Result<Vec<(f64, f64, String)>> {
        scores.sort_by(|a, b| b.total_cmp(a));
        let n = scores.len() as f64;
        let point = |(i, s): (usize, &f32)| {
            let p = calibration.fitted_p_value(*s)?;
            let text = format!("score {}, p {p:.2e}", score(*s));
            Ok((-((i as f64 + 0.5) / n).log10(), (-p.max(1e-300).log10()).min(LARGEST_LOG), text))
        };
        scores.iter().enumerate().map(point).collect()
    };
    let held = series(calibration.scores.clone())?;
    let test = series(e.scores.iter().filter(|s| !s.defective).map(|s| s.score).collect())?;
    let reach = |series: &[(f64, f64, String)]| series.first().map_or(0.0, |p| p.0);
    let right = reach(&held).max(reach(&test)).max(1.0) * 1.05;
    let top = held.iter().chain(&test).map(|p| p.1).fold(right, f64::max);
    // quantiles of the i-th smallest of n uniform p-values: the largest sample's band is drawn
    let n = held.len().max(test.len());
    let band = (1..=n).filter_map(|i| {
        let beta = Beta::new(i as f64, (n - i + 1) as f64).ok()?;
        let at = |q: f64| (-beta.inverse_cdf(q).max(1e-300).log10()).min(top);
        Some((-((i as f64 - 0.5) / n as f64).log10(), at(0.025), at(0.975)))
    });
    let chart = Chart {
        title: "QQ plot of good parts' p-values",
        x: ("expected, -log10 p", Scale::linear(0.0, right)),
        y: ("observed, -log10 p", Scale::linear(0.0, top * 1.03)),
        layers: vec![
            Layer::Band { class: "band", points: band.collect() },
            Layer::Line { class: "chance", points: vec![(0.0, 0.0), (right, right)] },
            Layer::Dots { class: "held", radius: 3.0, points: held },
            Layer::Dots { class: "test", radius: 3.4, points: test },
        ],
    };
    Ok(chart.svg())
}

fn defects(e: &Evaluation) -> Markup {
    html! {
        section {
            h2 { "By defect" }
            div .card.scroll { table {
                thead { tr { th { "defect" } th .n { "parts" } th .n { "AUROC" } th .n { "lowest score" } th .n { "found" } th .share { "" } } }
                tbody { @for d in &e.per_defect { tr {
                    td .label { (d.label) }
                    td .n { (d.images) }
                    td .n { (ratio(d.auroc)) }
                    td .n { (score(d.lowest_score)) }
                    td .n { (d.images - d.missed) " (" (percent(d.recall)) ")" }
                    td .share { span .bar { i style=(format!("width:{:.1}%", d.recall * 100.0)) {} } }
                } } }
            } }
        }
    }
}

/// What came nearest to being missed, when nothing was.
fn nearest_miss(e: &Evaluation) -> Option<String> {
    let lowest = e.scores.iter().filter(|s| s.defective).min_by(|a, b| a.score.total_cmp(&b.score))?;
    Some(format!(
        "No defective part with a score was missed. The nearest: {} ({}), score {}, {:.2} times the threshold.",
        part(lowest),
        lowest.label,
        score(lowest.score),
        lowest.score / e.threshold
    ))
}

fn nearest_false_reject(e: &Evaluation) -> Option<String> {
    let highest = e.scores.iter().filter(|s| !s.defective).max_by(|a, b| a.score.total_cmp(&b.score))?;
    Some(format!(
        "No good part with a score was rejected. The nearest: {}, score {}, {:.2} times the threshold.",
        part(highest),
        score(highest.score),
        highest.score / e.threshold
    ))
}

/// How a part is called: its file, in a recording its number and frame.
fn part(s: &Scored) -> String {
    match (s.part, s.frame) {
        (Some(part), Some(frame)) => format!("part {part}, frame {frame}"),
        _ => s.file.clone(),
    }
}

fn exhibits(title: &str, what: &str, list: &[Exhibit], none: Option<String>, threshold: f32) -> Markup {
    html! {
        section {
            h2 { (title) }
            @if list.is_empty() {
                p .card.none { (none.unwrap_or_default()) }
            } @else {
                p .soft {
                    (what) " Left the part" @if list.iter().any(|x| !x.regions.is_empty()) { " with its true regions" } ", right its anomaly map, "
                    "coloured relative to the part's own highest value."
                }
                div .exhibits { @for x in list { (exhibit(x, threshold)) } }
            }
        }
    }
}

fn exhibit(x: &Exhibit, threshold: f32) -> Markup {
    let (w, h) = (f64::from(x.part_box.w), f64::from(x.part_box.h));
    let gap = w * 0.02;
    let data = |kind: &str, bytes: &[u8]| format!("data:image/{kind};base64,{}", STANDARD.encode(bytes));
    // the picture is embedded once and shown twice
    let id = format!("part-{}", x.index);
    html! {
        figure .card.exhibit {
            svg viewBox=(format!("0 0 {} {h}", 2.0 * w + gap)) role="img" aria-label=(format!("{} and its anomaly map", part(&x.scored))) {
                image id=(id) width=(w) height=(h) preserveAspectRatio="none" href=(data("jpeg", &x.picture_jpeg)) {}
                @for class in ["under", "region"] {
                    @for [left, top, right, bottom] in &x.regions {
                        rect .(class) x=(f64::from(*left) - f64::from(x.part_box.x)) y=(f64::from(*top) - f64::from(x.part_box.y))
                            width=(right - left) height=(bottom - top) {}
                    }
                }
                use href=(format!("#{id}")) x=(w + gap) {}
                image x=(w + gap) width=(w) height=(h) preserveAspectRatio="none" href=(data("png", &x.heat_png)) {}
            }
            figcaption {
                h3 { (x.scored.label) span { (score(x.scored.score)) " · " (format!("{:.2}", x.scored.score / threshold)) " × threshold" } }
                p { (part(&x.scored)) }
                @if x.scored.verdict == Verdict::Unsure { p { "unsure: " (x.reasons.join("; ")) } }
            }
        }
    }
}

fn timing(e: &Evaluation) -> Markup {
    let s = &e.stages_ms;
    let rows = [
        ("decode", "waiting for the next frame", s.decode),
        ("prepare", "locating, registration, shrinking", s.prepare),
        ("infer", "start of the inference to its result, several at once", s.infer),
        ("judge", "head, map, verdict, regions", s.judge),
    ];
    html! {
        section {
            h2 { "Time" }
            div .split {
                div .card { table {
                    thead { tr { th { "stage" } th .n { "p50 ms" } th .n { "p99 ms" } } }
                    tbody { @for (name, what, stage) in rows {
                        tr { td { (name) " " span .soft { (what) } } td .n { (format!("{:.2}", stage.p50)) } td .n { (format!("{:.2}", stage.p99)) } }
                    } }
                } }
                div .card { table { tbody {
                    tr { td { "wall time " (per(e)) } td .n { (format!("{:.2} ms", e.ms_per_image)) } }
                    tr { td { "frame to verdict, p50" } td .n { (format!("{:.1} ms", e.latency_ms.p50)) } }
                    tr { td { "frame to verdict, p95" } td .n { (format!("{:.1} ms", e.latency_ms.p95)) } }
                    tr { td { "teaching the model" } td .n { (e.teach_s.map_or("not recorded".into(), |s| format!("{s:.1} s"))) } }
                } } }
            }
            p .soft style="margin-top:10px" {
                "Run as fast as the machine could, with several parts in flight: a part waits for those before it. "
                code { "linesight inspect --realtime" } " and " code { "linesight bench" } " measure what a line sees."
            }
        }
    }
}

fn model_card(e: &Evaluation, m: &Model) -> Markup {
    let (c, p) = (&m.calibration, &m.preparation);
    let trigger = match m.trigger {
        Trigger::Frame => "each frame is a part",
        Trigger::Presence => "parts followed over a belt",
    };
    let rows: Vec<(&str, String)> = vec![
        ("name", m.name.clone()),
        ("version", m.version.clone()),
        ("taught", m.created.strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("method", m.method.as_str().to_owned()),
        ("backbone", m.backbone.id.clone()),
        ("input", format!("{} x {}", p.input.width, p.input.height)),
        ("trigger", trigger.into()),
        ("registration", format!("{:?}", p.registration).to_lowercase()),
        ("mask", if m.mask.is_some() { "yes" } else { "no" }.into()),
        ("calibrated on", format!("{}, {}", m.device, m.precision.as_str())),
        ("evaluated on", format!("{}, {}", e.device, e.precision)),
        ("good parts behind the threshold", c.scores.len().to_string()),
        (
            "held-out scores",
            format!("{:.2} ± {:.2}, highest {:.2}", c.mean, c.deviation, c.scores.last().copied().unwrap_or_default()),
        ),
        ("threshold", score(c.threshold)),
        ("false rejects expected", format!("{:.2} %", c.expected_false_reject_rate * 100.0)),
        ("false rejects guaranteed, at best", format!("{:.2} %", c.guaranteed_false_reject_rate * 100.0)),
        ("false rejects in this data", format!("{:.2} %", e.at_threshold.counts.fpr * 100.0)),
        ("seed", m.seed.to_string()),
        ("SHA-256 of model.toml", m.sha256.chars().take(16).chain(['…']).collect()),
    ];
    html! {
        section {
            h2 { "Model" }
            div .card {
                dl .model { @for (name, value) in rows { div { dt { (name) } dd { (value) } } } }
                p .soft style="margin:10px 0 0" { "Threshold: " (c.method) "." }
            }
        }
    }
}

fn definitions(e: &Evaluation) -> Markup {
    html! {
        section {
            h2 { "What the figures mean" }
            div .card { ul .defs {
                li { strong { "AUROC" } ": the probability that a defective part scores higher than a good one, ties half (Mann & Whitney 1947; Fawcett 2006). It knows no threshold." }
                li { strong { "Average precision" } ": precision at each score, weighted by the recall gained there, without interpolation (Zhu 2004; Davis & Goadrich 2006)." }
                li { strong { "Best F1" } ": the highest F1 of any threshold, chosen with the truth in hand. " strong { "At the threshold" } ": what the model really does. Reject, unsure and missed are positive. Intervals: Clopper & Pearson 1934." }
                @if let Some(p) = &e.pixels {
                    li { strong { "Pixel AUROC" } ": AUROC over all pixels of the good images and of those with a mask, at the images' own resolution; pixels outside what was judged score 0. Counted in bins, which can change it by at most " (format!("{:.0e}", p.auroc_error)) "." }
                    li { strong { "AUPRO (" (PRO_LIMIT) ")" } ": mean overlap of each true region (8-connected), against the false-positive rate of pixels, area up to " (PRO_LIMIT) ", divided by it (Bergmann et al. 2020, 2021)." }
                }
            } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_rounded_up_to_certainty() {
        assert_eq!([ratio(1.0), ratio(0.99999), ratio(0.9994), ratio(0.0)], ["1.000", "> 0.999", "0.999", "0.000"]);
    }

    #[test]
    fn hostile_names_stay_text() {
        let hostile = "<script>alert(1)</script>\"'&";
        let scored = Scored {
            file: hostile.into(),
            part: None,
            frame: None,
            label: hostile.into(),
            defective: true,
            score: 3.0,
            verdict: Verdict::Unsure,
        };
        let x = Exhibit {
            index: 0,
            scored,
            reasons: vec![hostile.into()],
            part_box: crate::event::Rect { x: 0, y: 0, w: 4, h: 4 },
            picture_jpeg: vec![1],
            heat_png: vec![2],
            regions: vec![[0, 0, 2, 2]],
        };
        let text = exhibit(&x, 2.0).into_string();
        assert!(!text.contains("<script") && text.matches("&lt;script&gt;").count() >= 3, "{text}");
    }
}
