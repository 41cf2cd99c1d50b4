//! `linesight evaluate`

use super::terminal::{Progress, stop_flag};
use super::{print_json, print_text};
use crate::capture::Source;
use crate::detect::{Device, Hint};
use crate::error::{Error, Result};
use crate::evaluate::dataset::Dataset;
use crate::evaluate::{self, Data, Evaluation, Options, report};
use crate::judge::truth::Truth;
use crate::line;
use crate::model::Model;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// Model package made by `linesight teach`.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A folder with test/good, test/<defect> and ground_truth/<defect>/<image>_mask.png, or a recording.
    #[arg(long, value_name = "DIR|VIDEO")]
    data: PathBuf,
    /// Truth file of the recording.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Write a report as one HTML file.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list.
    #[arg(long, default_value_t = Device::default())]
    device: Device,
    /// Accept another device than the one named.
    #[arg(long)]
    allow_fallback: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let stop = stop_flag()?;
    // everything that can be refused is refused before anything is scored
    if let Some(path) = &a.report {
        report::check_destination(path)?;
    }
    let data = data(&a.data, a.truth.as_deref())?;
    let model = Model::load(&a.model)?;
    let mut backbone = line::arm(&model, &a.device, a.allow_fallback, Hint::Throughput)?;
    let options = Options { model: &model, gallery: a.report.is_some(), stop: &stop };
    let progress = Progress::new();
    let outcome =
        evaluate::evaluate(&options, &mut backbone, &data, &|stage, done, of| progress.report(stage, done, of));
    progress.finish();
    let (evaluation, gallery) = outcome?;
    if let Some(path) = &a.report {
        report::write(path, &evaluation, &gallery, &model)?;
    }
    if a.json {
        print_json(&evaluation)?
    } else {
        print_text(&text(&evaluation, a.report.as_deref()))?
    }
    Ok(0)
}

fn data(path: &Path, truth: Option<&Path>) -> Result<Data> {
    let source = match path.is_dir() {
        false => Some(Source::parse(&path.to_string_lossy())?),
        true => None,
    };
    match (source, truth) {
        (None, None) => Ok(Data::Images(Dataset::open(path)?)),
        (None, Some(_)) => Err(Error::usage(format!("--truth was given and \"{}\" is a folder", path.display()))
            .hint("a folder's truth is in its layout; --truth belongs to a recording")),
        (Some(_), None) => Err(Error::usage(format!("recording \"{}\" has no truth", path.display()))
            .hint("give its truth file with --truth, or a folder with test/good and test/<defect>")),
        (Some(source), Some(file)) => {
            let truth = Truth::load(file)?;
            evaluate::check_truth(&truth, &file.display().to_string())?;
            Ok(Data::Recording { source, truth })
        }
    }
}

fn text(e: &Evaluation, report: Option<&Path>) -> String {
    let c = &e.at_threshold.counts;
    let mut lines = vec![
        format!(
            "{}: {} good, {} defective; {:.1} ms each on {} in {}",
            e.data, e.good, e.defective, e.ms_per_image, e.device, e.precision
        ),
        format!(
            "  image AUROC {:.4}, average precision {:.4}, best F1 {:.4} (at {:.2})",
            e.image_auroc, e.average_precision, e.best_f1, e.best_f1_threshold
        ),
        format!(
            "  at the threshold {:.2}: F1 {:.4}, precision {:.4}, recall {:.4} ({} of {}), false-positive rate {:.4} ({} of {})",
            e.threshold,
            c.f1,
            c.precision,
            c.recall,
            c.tp,
            c.tp + c.r#fn,
            c.fpr,
            c.fp,
            c.fp + c.tn
        ),
    ];
    if let (Some(auroc), Some(aupro), Some(basis)) = (e.pixel_auroc, e.aupro, &e.pixels) {
        lines.push(format!(
            "  pixel AUROC {auroc:.4}, AUPRO (0.3) {aupro:.4}, {} regions in {} images",
            basis.regions, basis.images
        ));
    }
    let width = e.per_defect.iter().map(|d| d.label.chars().count()).max().unwrap_or(0);
    for d in &e.per_defect {
        lines.push(format!(
            "  {:width$}  AUROC {:.4}, recall {:.4} ({} of {})",
            d.label,
            d.auroc,
            d.recall,
            d.images - d.missed,
            d.images
        ));
    }
    lines.extend(e.notes.iter().map(|n| format!("  note: {n}")));
    if let Some(path) = report {
        lines.push(format!("  report: {}", path.display()));
    }
    lines.join("\n")
}
