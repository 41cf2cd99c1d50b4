//! Devices and precisions: what was asked for runs, or the program says why not; events and summaries say what really ran.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use support::*;

/// What `doctor` says about devices: "CPU: name (capabilities)".
static DEVICES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let report: Value = serde_json::from_str(&linesight(["doctor", "--json"]).out).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let devices = findings.iter().filter(|f| f["check"] == "device" && f["state"] == "ok");
    devices.map(|f| f["detail"].as_str().unwrap().to_owned()).collect()
});

fn has_device(name: &str) -> bool {
    DEVICES.iter().any(|d| d.starts_with(name))
}

fn inspect(device: &str, more: &[&str]) -> Run {
    let clip = clip("sample-run", 200);
    let arguments =
        ["inspect", "--json", "--model", washer().to_str().unwrap(), clip.to_str().unwrap(), "--device", device];
    linesight(arguments.iter().chain(more))
}

/// CPU and AUTO run, in any spelling, and the summary names the device that ran, not the one that was asked for.
#[test]
fn cpu_and_auto_run() {
    for device in ["CPU", "cpu", "AUTO", "AUTO:CPU", "MULTI:CPU", "HETERO:CPU"] {
        let summary = inspect(device, &[]).json();
        assert_eq!((&summary["device"], &summary["precision"]), (&"CPU".into(), &"int8".into()), "{device}");
        assert!(summary["parts"].as_u64().unwrap() >= 5 && summary["anomalies"] == 1, "{device}: {summary}");
    }
}

/// A list after AUTO is a preference: without a GPU the next one runs, and the summary and the event say which.
#[test]
fn auto_with_a_list_takes_what_is_there() {
    if has_device("GPU") {
        println!("skipped: this machine has a GPU");
        return;
    }
    let (folder, endpoint) = (folder(), sink());
    let spool = folder.path().join("spool.db");
    let run = inspect("AUTO:GPU,CPU", &["--review", &endpoint.url(), "--spool", spool.to_str().unwrap()]);
    assert_eq!(run.json()["device"], "CPU");
    let events = events(&endpoint);
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["device"], &events[0]["precision"]), (&"CPU".into(), &"int8".into()));
}

/// A list after MULTI or HETERO, and a single name, ask for all that is named: without a GPU they are refused in one
/// paragraph, unless another device was allowed, and then what ran is said.
#[test]
fn a_named_device_that_is_missing_is_refused() {
    if has_device("GPU") {
        println!("skipped: this machine has a GPU");
        return;
    }
    for device in ["MULTI:GPU,CPU", "HETERO:GPU,CPU", "GPU", "GPU.1"] {
        let one = if device == "GPU.1" { "GPU.1" } else { "GPU" };
        let cause = format!("device \"{device}\" was asked for and this machine has no {one}");
        inspect(device, &[]).fails(3, &[&cause], "choose among CPU with --device, or pass --allow-fallback");
        assert_eq!(inspect(device, &["--allow-fallback"]).json()["device"], "CPU", "{device}");
    }
}

/// Teaching asks for devices as inspecting does, and keeps what really ran in the package.
#[test]
fn teaching_says_what_ran() {
    let folder = folder();
    let out = folder.path().join("model");
    if !has_device("GPU") {
        teach("GPU", &out, &[]).fails(3, &["this machine has no GPU"], "--allow-fallback");
        assert!(!out.exists());
    }
    let report = teach("AUTO:GPU,CPU", &out, &["--allow-fallback"]).json();
    let text = std::fs::read_to_string(out.join("model.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    assert_eq!(report["device"].as_str(), manifest["device"].as_str());
    if !has_device("GPU") {
        assert_eq!(report["device"], "CPU");
    }
}

/// Teaches the stills, without the choice of a method.
fn teach(device: &str, out: &Path, more: &[&str]) -> Run {
    let (good, out) = (good_stills().to_str().unwrap(), out.to_str().unwrap());
    let base = ["teach", "--json", "--device", device, "--method", "ppca", "--good", good, "--out", out];
    linesight(base.iter().chain(more))
}

/// Teaches the stills on the CPU, and gives the report and the package.
fn taught(folder: &Path, name: &str, more: &[&str]) -> (Value, PathBuf) {
    let out = folder.join(name);
    (teach("CPU", &out, more).json(), out)
}

fn inspect_stills(model: &Path) -> Run {
    linesight([Path::new("inspect"), Path::new("--json"), Path::new("--model"), model, good_stills()])
}

fn has_bf16() -> bool {
    let has = DEVICES.iter().any(|d| d.starts_with("CPU") && d.contains("BF16"));
    if !has {
        println!("skipped: the CPU computes no bf16");
    }
    has
}

/// Another precision, where the CPU has it, is really another arithmetic, not far from f32; inspecting keeps to it.
fn differs_little_from_f32(report: &Value, model: &Path, precision: &str) {
    let folder = folder();
    assert_eq!((&report["precision"], &report["device"]), (&precision.into(), &"CPU".into()));
    let summary = inspect_stills(model).json();
    assert_eq!((&summary["precision"], &summary["device"]), (&precision.into(), &"CPU".into()));
    assert_eq!((&summary["parts"], &summary["anomalies"]), (&GOOD_STILLS.into(), &0.into()));
    let (plain, _) = taught(folder.path(), "plain", &["--precision", "f32"]);
    let (other, plain) = (report["threshold"].as_f64().unwrap(), plain["threshold"].as_f64().unwrap());
    assert!(other != plain && (other / plain - 1.0).abs() < 0.1, "{other} and {plain}");
}

/// bf16, where the CPU computes it: teaching and inspecting keep to it, and both say so.
#[test]
fn bf16_where_the_cpu_has_it() {
    if has_bf16() {
        let folder = folder();
        let (report, out) = taught(folder.path(), "model", &["--precision", "bf16"]);
        differs_little_from_f32(&report, &out, "bf16");
    }
}

/// int8 is what teaching takes by itself on any CPU.
#[test]
fn int8_is_what_a_cpu_is_taught_in() {
    let folder = folder();
    let (report, out) = taught(folder.path(), "model", &[]);
    differs_little_from_f32(&report, &out, "int8");
}

/// A package whose precision was changed by hand is refused, and the message names the precision: int8 is another network,
/// bf16 gives other scores.
#[test]
fn a_changed_precision_is_refused() {
    let folder = folder();
    let (_, plain) = taught(folder.path(), "plain", &["--precision", "f32"]);
    let (_, default) = taught(folder.path(), "default", &[]);
    let says = |model: &Path, from: &str, to: &str| {
        let manifest = model.join("model.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        let (from, to) = (format!("precision = \"{from}\""), format!("precision = \"{to}\""));
        assert!(text.contains(&from), "{text}");
        std::fs::write(&manifest, text.replacen(&from, &to, 1)).unwrap();
    };
    says(&plain, "f32", "int8");
    inspect_stills(&plain).fails(
        1,
        &["was taught in f32 and its model.toml says precision \"int8\""],
        "linesight model calibrate --precision",
    );
    says(&default, "int8", "f32");
    inspect_stills(&default).fails(1, &["was taught in int8 and its model.toml says precision \"f32\""], "\"int8\"");
    if has_bf16() {
        says(&plain, "int8", "bf16");
        let run = inspect_stills(&plain);
        run.fails(1, &["gives reference picture", "here in bf16 and"], "not the one it was taught in");
    }
}

/// `model calibrate` takes a package to another precision and back, and it runs there.
#[test]
fn calibrating_changes_the_precision() {
    let folder = folder();
    let (_, model) = taught(folder.path(), "model", &["--precision", "f32"]);
    for precision in ["int8", "f32"] {
        let base =
            ["model", "calibrate", "--json", "--precision", precision, "--good", good_stills().to_str().unwrap()];
        let done = linesight(base.iter().copied().chain(["--", model.to_str().unwrap()])).json();
        assert_eq!((&done["precision"], &done["fitted_anew"]), (&precision.into(), &true.into()));
        assert_eq!(inspect_stills(&model).json()["precision"], precision);
    }
}

/// A model that was calibrated on another device is not run with scores that mean something else.
#[test]
fn a_model_of_another_device_is_refused() {
    let folder = folder();
    let model = folder.path().join("model");
    copy(washer(), &model);
    let manifest = model.join("model.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("device = \"CPU\"", "device = \"NPU\"", 1)).unwrap();
    let run = linesight([
        Path::new("inspect"),
        Path::new("--model"),
        &model,
        &clip("sample-run", 200),
        Path::new("--device"),
        Path::new("CPU"),
    ]);
    run.fails(2, &["was calibrated on NPU and would run on CPU"], "linesight model calibrate");
}

/// A package whose reference pictures score otherwise here than where it was taught is refused before it judges anything.
#[test]
fn the_parity_check_refuses_other_scores() {
    let folder = folder();
    let model = folder.path().join("model");
    copy(washer(), &model);
    let manifest = model.join("model.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let line = text.lines().find(|l| l.starts_with("score = ")).unwrap();
    let score: f64 = line["score = ".len()..].parse().unwrap();
    std::fs::write(&manifest, text.replacen(line, &format!("score = {}", score + 2.0), 1)).unwrap();
    let run = linesight([Path::new("inspect"), Path::new("--model"), &model, &clip("sample-run", 200)]);
    run.fails(1, &["gives reference picture 0 the score"], "this machine computes differently");
}
