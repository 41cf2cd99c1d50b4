//! `linesight bench`: figures are there and fit together. Nothing here is timed: what they are is the machine's affair.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::sync::LazyLock;
use support::*;

/// Ninety frames, one part of which is centred every 34 or so.
const FRAMES: u64 = 90;

fn bench(model: &std::path::Path, more: &[&str]) -> Run {
    let clip = clip("sample-run", FRAMES);
    let run = program().args(["bench", "--rounds", "2", "--model"]).arg(model).arg(clip).args(more).output();
    run.unwrap().into()
}

static FULL: LazyLock<Value> = LazyLock::new(|| bench(washer(), &["--lines", "2", "--json"]).json());

#[track_caller]
fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("{key} in {v}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[track_caller]
fn quantiles_in_order(of: &Value) {
    let q: Vec<f64> = ["p50", "p95", "p99", "max"].iter().map(|k| number(of, k)).collect();
    assert!(q.is_sorted() && q[0] >= 0.0, "{of}");
}

/// Every documented key is there, with what it is documented to be.
#[test]
fn all_keys_are_there() {
    let o = &*FULL;
    for key in ["source", "model", "method", "trigger", "registration", "device", "precision"] {
        assert!(o[key].as_str().is_some_and(|s| !s.is_empty()), "{key}: {o}");
    }
    for stage in ["decode", "prepare", "infer", "head", "end_to_end"] {
        assert!(number(o, &format!("{stage}_cpu_ms")).is_finite(), "{stage}: {o}");
        assert!(number(o, &format!("{stage}_fps")) > 0.0, "{stage}: {o}");
    }
    for stage in ["decode", "prepare", "infer", "head", "end_to_end", "overhead"] {
        let s = &o["spread"][stage];
        assert!(number(s, "min") <= number(s, "max"), "{stage}: {o}");
    }
    quantiles_in_order(&o["latency_ms"]);
    for stage in ["decode", "prepare", "infer", "judge", "deliver"] {
        quantiles_in_order(&o["stages_ms"][stage]);
    }
    assert_eq!((&o["frames"], &o["rounds"]), (&FRAMES.into(), &2.into()));
    assert_eq!(number(o, "source_fps").round(), 30.0);
    assert_eq!(o["realtime"], false);
    assert!(number(o, "requests") >= 2.0 && number(o, "rss_mb") > 10.0 && number(o, "seconds") > 0.0, "{o}");
    assert!(o["input"]["width"].as_u64() > Some(0));
    let m = &o["machine"];
    assert!(m["cores"].as_u64() > Some(0) && m["openvino"].as_str().is_some_and(|v| !v.is_empty()), "{m}");
}

/// Sums are what they are documented to be, and every part costs something.
#[test]
fn the_figures_fit_together() {
    let o = &*FULL;
    let ms = |stage: &str| number(o, &format!("{stage}_cpu_ms"));
    assert!(close(ms("overhead"), ms("end_to_end") - ms("decode") - ms("infer")), "{o}");
    assert!(close(ms("rest"), ms("overhead") - ms("prepare") - ms("head")), "{o}");
    assert!(close(number(o, "efficiency"), (ms("decode") + ms("infer")) / ms("end_to_end")), "{o}");
    for stage in ["decode", "infer", "head", "end_to_end"] {
        assert!(ms(stage) > 0.0, "{stage}: {o}");
        let s = &o["spread"][stage];
        assert!((number(s, "min")..=number(s, "max")).contains(&ms(stage)), "{stage}: {o}");
    }
}

/// One line stands at the top and first among the lines; several have all their frames and lose none.
#[test]
fn one_line_and_several() {
    let o = &*FULL;
    let lines = o["lines"].as_array().unwrap();
    assert_eq!(lines.iter().map(|l| l["lines"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for key in ["end_to_end_cpu_ms", "end_to_end_fps", "latency_ms", "stages_ms", "rss_mb", "requests"] {
        assert_eq!(lines[0][key], o[key], "{key}");
    }
    for l in lines {
        assert_eq!((&l["dropped"], &l["missed"], &l["behind_ms"]), (&0.into(), &0.into(), &Value::Null), "{l}");
        assert!(number(l, "end_to_end_cpu_ms") > 0.0 && number(l, "rss_mb") > 10.0);
        quantiles_in_order(&l["latency_ms"]);
    }
}

/// A line allocates something, a little of it in each frame, and its bytes are those of its allocations.
#[test]
fn allocations_are_counted() {
    let a = &FULL["allocations_per_frame"];
    assert!(number(a, "small") > 0.0 && number(a, "frame_sized") >= 0.0, "{a}");
    let smallest = number(a, "frame_sized") * f64::from(1280 * 720 / 2);
    assert!(number(a, "bytes") >= smallest.max(number(a, "small")), "{a}");
}

/// At the source's own rate lines are live ones: what is dropped is counted, and inference alone stands beside them.
#[test]
fn at_the_sources_own_rate() {
    let o = bench(washer(), &["--realtime", "--json"]).json();
    assert_eq!(o["realtime"], true);
    quantiles_in_order(&o["infer_alone_ms"]);
    let l = &o["lines"][0];
    quantiles_in_order(&l["behind_ms"]);
    quantiles_in_order(&l["stages_ms"]["infer"]);
    assert!(l["dropped"].as_u64().is_some() && l["missed"].as_u64().is_some(), "{l}");
    // a recording cannot be played faster than it is, so much is certain on any machine
    assert!(number(l, "end_to_end_fps") < 31.0, "{l}");
}

/// What people read has the same figures.
#[test]
fn the_table_names_every_stage() {
    let run = bench(washer(), &[]);
    run.succeeds();
    for row in
        ["decode", "prepare", "network", "head", "whole", "overhead", "allocations a frame", "capture to verdict"]
    {
        assert!(run.out.lines().any(|l| l.trim_start().starts_with(row)), "\"{row}\" is missing:\n{}", run.out);
    }
    assert!(run.out.contains("1 line:") && !run.out.contains("2 lines:"), "{}", run.out);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let model = washer().to_str().unwrap();
    linesight(["bench", "--model", model, "rtsp://127.0.0.1:9/x"]).fails(
        2,
        &["bench needs a recording"],
        "record a minute",
    );
    let run = linesight(["bench", "--model", model, "--lines", "0", "x.mp4"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    let folder = good_stills().to_str().unwrap();
    linesight(["bench", "--model", still_model().to_str().unwrap(), "--realtime", folder]).fails(
        2,
        &["has no rate of its own"],
        "leave --realtime out",
    );
}
