//! `linesight doctor`: what this machine has, what is missing and what to do about it.

mod delivery;

use super::{print_json, print_text};
use crate::deliver::{Endpoint, Target};
use crate::detect::runtime;
use crate::error::{Context, Result};
use gstreamer as gst;
use openvino::{DeviceType, PropertyKey};
use serde::Serialize;
use std::path::PathBuf;
use url::Url;

/// Free space below which the spool is in danger.
const LOW_DISK: u64 = 1 << 30;

#[derive(clap::Args)]
pub struct Arguments {
    /// A line.toml: what it names is checked, too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Review endpoint to check.
    #[arg(long, value_name = "URL")]
    review: Option<Url>,
    /// Folder whose disk is checked.
    #[arg(long, default_value = ".", value_name = "DIR")]
    data: PathBuf,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Works, with something to know.
    Note,
    /// Does not work until it is mended.
    Bad,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    state: State,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

fn finding(check: &str, state: State, detail: impl Into<String>, remedy: Option<&str>) -> Finding {
    Finding { check: check.into(), state, detail: detail.into(), remedy: remedy.map(str::to_owned) }
}

pub(super) fn run(a: Arguments) -> Result<u8> {
    let mut findings = gstreamer();
    findings.extend(openvino());
    findings.push(disk(&a.data));
    findings.extend(quarantines(&a.data));
    findings.push(clock());
    if let Some(file) = &a.config {
        findings.extend(delivery::configured(file));
    }
    if let Some(url) = &a.review {
        findings.extend(delivery::endpoint(&Target::review(Endpoint::new(url.clone()))));
    }
    let ok = findings.iter().all(|f| f.state != State::Bad);
    let report = Report { ok, findings };
    if a.json {
        print_json(&report)?;
    } else {
        for f in &report.findings {
            let mark = match f.state {
                State::Ok => "ok  ",
                State::Note => "note",
                State::Bad => "BAD ",
            };
            print_text(&format!("{mark}  {}: {}", f.check, f.detail))?;
            if let Some(remedy) = &f.remedy {
                print_text(&format!("      {remedy}"))?;
            }
        }
    }
    Ok(if report.ok { 0 } else { 3 })
}

fn gstreamer() -> Vec<Finding> {
    if let Err(e) = gst::init() {
        return vec![finding("gstreamer", State::Bad, e.to_string(), Some("run `make setup`"))];
    }
    let mut out = vec![finding("gstreamer", State::Ok, gst::version_string().to_string(), None)];
    let needed = [
        ("decodebin", State::Bad, "gstreamer1.0-plugins-base"),
        ("videoconvert", State::Bad, "gstreamer1.0-plugins-base"),
        ("appsink", State::Bad, "gstreamer1.0-plugins-base"),
        ("qtdemux", State::Bad, "gstreamer1.0-plugins-good"),
        ("matroskademux", State::Note, "gstreamer1.0-plugins-good"),
        ("jpegdec", State::Bad, "gstreamer1.0-plugins-good"),
        ("pngdec", State::Bad, "gstreamer1.0-plugins-good"),
        // BMP and TIFF
        ("gdkpixbufdec", State::Note, "gstreamer1.0-plugins-good"),
        ("h264parse", State::Note, "gstreamer1.0-plugins-bad"),
        ("avdec_h264", State::Bad, "gstreamer1.0-libav"),
        ("avdec_h265", State::Note, "gstreamer1.0-libav"),
        // cameras
        ("rtspsrc", State::Note, "gstreamer1.0-plugins-good"),
        ("rtph264depay", State::Note, "gstreamer1.0-plugins-good"),
        ("v4l2src", State::Note, "gstreamer1.0-plugins-good"),
        ("bayer2rgb", State::Note, "gstreamer1.0-plugins-bad"),
    ];
    for (name, state, package) in needed {
        if gst::ElementFactory::find(name).is_none() {
            let remedy = format!("install {package}");
            out.push(finding("gstreamer element", state, format!("\"{name}\" is missing"), Some(&remedy)));
        }
    }
    let all = out.len() == 1;
    out.push(match crate::capture::aravis::is_installed() {
        Ok(()) => finding("genicam", State::Ok, "libaravis is there", None),
        Err(e) => finding("genicam", State::Note, e.to_string(), e.hint_text()),
    });
    out.push(hardware_decoders());
    if all {
        out.push(finding(
            "gstreamer elements",
            State::Ok,
            format!("all {} that are used are there", needed.len()),
            None,
        ));
    }
    out
}

/// Video decoders that use the graphics unit.
fn hardware_decoders() -> Finding {
    let names = crate::capture::hardware_decoders();
    match names.is_empty() {
        true => finding(
            "hardware decoding",
            State::Note,
            "no decoder of a graphics unit; video is decoded by the CPU",
            None,
        ),
        false => finding("hardware decoding", State::Ok, names.join(", "), None),
    }
}

fn openvino() -> Vec<Finding> {
    let describe = || -> Result<Vec<Finding>> {
        let path = runtime::load()?;
        let core = runtime::core()?;
        let mut out = vec![finding(
            "openvino",
            State::Ok,
            format!("{} from {}", openvino::version().build_number, path.display()),
            None,
        )];
        let devices = core.available_devices().failed(|| "OpenVINO does not list its devices")?;
        for d in &devices {
            let property = |k: PropertyKey| core.get_property(d, &k).unwrap_or_default();
            out.push(finding(
                "device",
                State::Ok,
                format!(
                    "{}: {} ({})",
                    d.as_ref(),
                    property(PropertyKey::DeviceFullName).trim(),
                    runtime::capabilities(&core, d)
                ),
                None,
            ));
        }
        if devices.contains(&DeviceType::CPU) {
            out.push(arithmetic(&runtime::capabilities(&core, &DeviceType::CPU)));
        }
        for (name, remedy) in [
            ("GPU", "for an Intel GPU install its compute runtime (intel-opencl-icd)"),
            ("NPU", "for an Intel NPU install its driver (intel-driver-compiler-npu, intel-level-zero-npu)"),
        ] {
            if !devices.iter().any(|d| d.as_ref().starts_with(name)) {
                out.push(finding("device", State::Note, format!("no {name}"), Some(remedy)));
            }
        }
        if !devices.contains(&DeviceType::CPU) {
            out.push(finding(
                "device",
                State::Bad,
                "no CPU device",
                Some("run `make setup` to fetch a complete runtime"),
            ));
        }
        Ok(out)
    };
    describe().unwrap_or_else(|e| vec![finding("openvino", State::Bad, e.to_string(), e.hint_text())])
}

/// What the CPU has for the precisions that cost less than f32.
fn arithmetic(capabilities: &str) -> Finding {
    let bf16 = match capabilities.split_whitespace().any(|c| c == "BF16") {
        true => "BF16, for --precision bf16",
        false => "no BF16: --precision bf16 is refused",
    };
    match has_vnni() {
        true => finding("cpu arithmetic", State::Ok, format!("VNNI, for --precision int8; {bf16}"), None),
        false => finding(
            "cpu arithmetic",
            State::Note,
            format!("no VNNI: int8 costs two thirds of f32 instead of half; {bf16}"),
            Some("int8 computes the same on any CPU: models can be taught and run on machines with and without VNNI"),
        ),
    }
}

/// Whether the CPU has 8-bit dot products.
fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

fn disk(dir: &std::path::Path) -> Finding {
    match rustix::fs::statvfs(dir) {
        Ok(s) => {
            let free = s.f_bavail * s.f_frsize;
            let detail = format!("{:.1} GB free at \"{}\"", free as f64 / 1e9, dir.display());
            if free < LOW_DISK {
                finding(
                    "disk",
                    State::Bad,
                    detail,
                    Some("free some space: anomalies wait on this disk while the endpoint is away"),
                )
            } else {
                finding("disk", State::Ok, detail, None)
            }
        }
        Err(e) => finding(
            "disk",
            State::Bad,
            format!("\"{}\": {e}", dir.display()),
            Some("name an existing folder with --data"),
        ),
    }
}

/// Damaged databases that were set aside, in the folder or in the user's.
fn quarantines(dir: &std::path::Path) -> Vec<Finding> {
    let mut databases: Vec<PathBuf> = super::inspect::default_spool().into_iter().collect();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    databases.extend(entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "db")));
    let found = databases.iter().flat_map(|path| crate::deliver::quarantines(path));
    found
        .map(|report| {
            let detail = format!("a damaged one was set aside: \"{}\"", report.display());
            let remedy = "look after the disk, read that report (`lost` names what is gone), then remove the files that begin so";
            finding("spool", State::Note, detail, Some(remedy))
        })
        .collect()
}

fn clock() -> Finding {
    let now = jiff::Timestamp::now();
    // no build of this program is older than its first release
    if now.as_second() < 1_767_225_600 {
        return finding(
            "clock",
            State::Bad,
            format!("it says {now}"),
            Some("set the clock, for example with systemd-timesyncd"),
        );
    }
    finding("clock", State::Ok, now.to_string(), None)
}
