//! `linesight teach`

use super::terminal::Progress;
use super::{print_json, print_text};
use crate::capture::Source;
use crate::detect::{Device, Precision};
use crate::error::Result;
use crate::judge::calibration::check_rate;
use crate::model::{self, Trigger, check_scale};
use crate::prepare::Roi;
use crate::teach::{self, Method, Options, RegistrationChoice, Report, Variant};
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
    /// Family of the normality model; auto chooses the best for these parts, of which there is one so far.
    #[arg(long, value_enum, default_value_t = Method::Auto)]
    method: Method,
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
    /// Arithmetic of the network; a model runs at the precision it was taught with.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
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
        seed: a.seed,
        variant: a.variant,
        precision: a.precision,
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
            "  input {}x{}, {} on {} in {}",
            r.input.width,
            r.input.height,
            r.method,
            r.device,
            r.precision.as_str()
        ),
        format!("  registration {}: {}", r.registration.as_str(), r.registration_why),
        format!(
            "  held-out scores of good parts {:.2} ± {:.2}, highest {:.2}; threshold {:.2}",
            r.held_out_mean, r.held_out_deviation, r.held_out_max, r.threshold
        ),
        format!(
            "  false rejects: {:.2} % expected; {:.1} % is the least that {} parts can guarantee ({} would guarantee the wanted rate)",
            r.expected_false_reject_rate * 100.0,
            r.guaranteed_false_reject_rate * 100.0,
            r.parts,
            r.parts_for_guarantee
        ),
    ];
    for part in &r.left_out {
        lines.push(format!("  left out, wildly different from the others: {part}"));
    }
    lines.join("\n")
}
