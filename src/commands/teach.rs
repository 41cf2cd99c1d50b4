//! `linesight teach`

use super::terminal::Progress;
use super::{print_json, print_text};
use crate::capture::Source;
use crate::detect::{Device, Precision};
use crate::error::{Error, Result};
use crate::judge::calibration::check_rate;
use crate::model::{self, Method, Trigger, check_scale};
use crate::prepare::Roi;
use crate::teach::{self, Candidate, Options, RegistrationChoice, Report, Variant};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Arguments {
    /// Good parts: a recording, a folder of images, an image or a URI; may be repeated.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    good: Vec<String>,
    /// Folder of the model package to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the model [default: the folder's].
    #[arg(long)]
    name: Option<String>,
    /// What makes a frame a part.
    #[arg(long, value_enum, default_value_t = Trigger::Frame)]
    trigger: Trigger,
    /// How crops are brought to the taught pose.
    #[arg(long, value_enum, default_value_t = RegistrationChoice::Auto)]
    registration: RegistrationChoice,
    /// Size of the network's input: time against detail.
    #[arg(long, value_enum, default_value_t = Variant::Balanced)]
    variant: Variant,
    /// Family of the normality model; auto chooses it and the input's size by cross-validation with synthetic defects.
    #[arg(long, value_enum, default_value_t = Method::Auto)]
    method: Method,
    /// Milliseconds that network and head may take for a picture on one core: chooses the best method and size within it.
    #[arg(long, value_name = "MS", conflicts_with = "variant", allow_negative_numbers = true)]
    budget_ms: Option<f64>,
    /// Start of every pseudo-random choice: the same seed and parts give the same model.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Region of interest in source pixels.
    #[arg(long, value_name = "X,Y,W,H")]
    roi: Option<Roi>,
    /// PNG over the judged area: white is judged, black is not.
    #[arg(long, value_name = "PNG")]
    mask: Option<PathBuf>,
    /// Millimetres of the part that a pixel of the source shows: anomalies then have areas in mm².
    #[arg(long, value_name = "MM")]
    mm_per_pixel: Option<f32>,
    /// Arithmetic of the network; a model runs at the precision it was taught with [default: int8 on a CPU and an NPU,
    /// else f32].
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// AUTO, CPU, GPU, GPU.n, NPU, or AUTO:, MULTI:, HETERO: with a list.
    #[arg(long, default_value_t = Device::default())]
    device: Device,
    /// Accept another device than the one named.
    #[arg(long)]
    allow_fallback: bool,
    /// Share of good parts that may be rejected.
    #[arg(long, default_value_t = 0.005)]
    false_reject_rate: f64,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    // everything that can be refused is refused before the recording is decoded
    model::check_destination(&a.out)?;
    check_rate(a.false_reject_rate)?;
    if let Some(ms) = a.budget_ms.filter(|ms| !(ms.is_finite() && *ms > 0.0)) {
        return Err(
            Error::usage(format!("budget \"{ms}\" is not a time")).hint("give milliseconds above 0 to --budget-ms")
        );
    }
    check_scale(a.mm_per_pixel)?;
    let options = Options {
        good: a.good.iter().map(|s| Source::parse(s)).collect::<Result<_>>()?,
        name: a.name.unwrap_or_else(|| model::name_from(&a.out)),
        trigger: a.trigger,
        roi: a.roi,
        mask: a.mask,
        mm_per_pixel: a.mm_per_pixel,
        registration: a.registration,
        method: a.method,
        budget_ms: a.budget_ms,
        seed: a.seed,
        variant: a.variant,
        precision: a.precision.map_or_else(|| Precision::default_for(&a.device), Ok)?,
        device: a.device,
        allow_fallback: a.allow_fallback,
        false_reject_rate: a.false_reject_rate,
    };
    let progress = Progress::new();
    let taught = teach::teach(&options, &|stage, done, of| progress.report(stage, done, of));
    progress.finish();
    let (mut model, report) = taught?;
    model.save(&a.out)?;
    if a.json {
        print_json(&report)?
    } else {
        print_text(&text(&report, &a.out.display().to_string()))?
    }
    Ok(0)
}

pub(super) fn text(r: &Report, out: &str) -> String {
    let mut lines = vec![
        format!("model \"{}\" taught from {} good parts in {:.1} s -> {out}", r.name, r.parts, r.teach_s),
        format!(
            "  {}{} at input {}x{}, on {} in {}",
            r.method.as_str(),
            if r.differing { " for parts that differ" } else { "" },
            r.input.width,
            r.input.height,
            r.device,
            r.precision.as_str()
        ),
        format!("  why: {}", r.why),
        format!("  registration {}: {}", r.registration.as_str(), r.registration_why),
        format!(
            "  held-out scores of good parts {:.2} ± {:.2}, highest {:.2}; threshold {:.2}",
            r.held_out_mean, r.held_out_deviation, r.held_out_max, r.threshold
        ),
        format!(
            "  false rejects: {:.2} % expected by the fitted tail; {:.1} % guaranteed {}; {} parts that were not taught could guarantee the wanted rate",
            r.expected_false_reject_rate * 100.0,
            r.guaranteed_false_reject_rate * 100.0,
            r.basis.as_text(),
            r.parts_for_guarantee
        ),
    ];
    if !r.candidates.is_empty() {
        lines.push(table(&r.candidates, r));
    }
    lines.extend(r.warnings.iter().map(|w| format!("  warning: {w}")));
    for part in &r.left_out {
        lines.push(format!("  left out, wildly different from the others: {part}"));
    }
    lines.join("\n")
}

/// What was tried, a line a candidate; the chosen one has a star.
fn table(candidates: &[Candidate], r: &Report) -> String {
    let mut text = String::from(
        "    method                     input    ms   found  AUROC   of synthetic defects on held-out parts",
    );
    for c in candidates {
        let chosen = c.method == r.method && c.differing == r.differing && c.input == r.input;
        text += &format!(
            "\n  {} {:<26} {:>3}x{:<3} {:>5.1}  {:>5.1} %  {:.3}{}",
            if chosen { "*" } else { " " },
            format!("{}{}", c.method.as_str(), if c.differing { " (parts differ)" } else { "" }),
            c.input.width,
            c.input.height,
            c.ms,
            c.found_mean * 100.0,
            c.auroc,
            if c.allowed { "" } else { "   not allowed by variant or budget" }
        );
    }
    text
}
