//! Teaching: methods, their automatic choice, budgets, few parts, several good looks, thresholds that a person sets.

#![allow(clippy::unwrap_used)]

mod support;

use image::{Rgb, RgbImage};
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::*;

/// Side of the rendered parts.
const SIDE: u32 = 224;

/// How a part looks.
#[derive(Clone, Copy)]
struct Look {
    colour: [f32; 3],
    /// Share of full light.
    light: f32,
}

const GREY: Look = Look { colour: [150.0, 150.0, 155.0], light: 1.0 };

/// A plate with four holes and a slot, with grain, seen under light that flickers a little.
fn plate(rng: &mut fastrand::Rng, look: Look) -> RgbImage {
    let (dx, dy) = (2.0 * rng.f32() - 1.0, 2.0 * rng.f32() - 1.0);
    let light = look.light * (0.96 + 0.08 * rng.f32());
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let (x, y) = (x as f32 + dx, y as f32 + dy);
        let hole = [(60.0, 60.0), (164.0, 60.0), (60.0, 164.0), (164.0, 164.0)]
            .iter()
            .map(|(cx, cy)| (x - cx).hypot(y - cy) - 16.0)
            .fold(f32::INFINITY, f32::min);
        let slot = ((x - 112.0).abs() - 36.0).max((y - 112.0).abs() - 7.0);
        let depth = (hole.min(slot) + 1.0).clamp(0.0, 2.0) / 2.0;
        let grain = 6.0 * (rng.f32() - 0.5);
        Rgb(look.colour.map(|c| ((c * (0.25 + 0.75 * depth) + grain) * light).clamp(0.0, 255.0) as u8))
    })
}

/// A dark scratch of two pixels' width.
fn scratch(picture: &mut RgbImage, rng: &mut fastrand::Rng) {
    let (x, y) = (40.0 + 100.0 * rng.f32(), 90.0 + 12.0 * rng.f32());
    for i in 0..60 {
        let (px, py) = (x + 0.5 * i as f32, y + 0.35 * i as f32);
        for (ox, oy) in [(0, 0), (1, 0), (0, 1)] {
            let pixel = picture.get_pixel_mut(px as u32 + ox, py as u32 + oy);
            pixel.0 = pixel.0.map(|v| (f32::from(v) * 0.45) as u8);
        }
    }
}

/// A folder of `good` pictures of these looks in turn, and one of as many with a scratch.
fn set(name: &str, n: usize, looks: &[Look]) -> (PathBuf, PathBuf) {
    let home = shared(name);
    let (good, bad) = (home.join("good"), home.join("bad"));
    for folder in [&good, &bad] {
        std::fs::create_dir_all(folder).unwrap();
    }
    // other names are other parts
    let mut rng = fastrand::Rng::with_seed(name.bytes().map(u64::from).sum());
    for i in 0..n {
        plate(&mut rng, looks[i % looks.len()]).save(good.join(format!("{i:02}.png"))).unwrap();
    }
    for i in 0..looks.len() * 4 {
        let mut picture = plate(&mut rng, looks[i % looks.len()]);
        scratch(&mut picture, &mut rng);
        picture.save(bad.join(format!("{i:02}.png"))).unwrap();
    }
    (good, bad)
}

/// Teaches with these further arguments.
fn teach(good: &Path, out: &Path, more: &[&str]) -> Run {
    let fixed =
        ["teach", "--variant", "fast", "--json", "--good", good.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let budget = more.contains(&"--budget-ms");
    linesight(fixed.into_iter().filter(|a| !(budget && ["--variant", "fast"].contains(a))).chain(more.iter().copied()))
}

/// How many pictures of a folder a model passes, and how many there are.
fn passed(model: &Path, folder: &Path) -> (u64, u64) {
    let run = linesight(["inspect", "--json", "--model", model.to_str().unwrap(), folder.to_str().unwrap()]).json();
    let parts = run["parts"].as_u64().unwrap();
    (parts - run["anomalies"].as_u64().unwrap(), parts)
}

/// Every family can be forced, finds the scratches with what the package holds, and passes good parts it has not seen.
#[test]
fn each_method_finds_scratches() {
    let place = folder();
    let (good, bad) = set("methods", 20, &[GREY]);
    let (unseen, _) = set("methods-unseen", 12, &[GREY]);
    for method in ["ppca", "patchcore", "mean-z"] {
        let out = place.path().join(method);
        let report = teach(&good, &out, &["--method", method]).json();
        assert_eq!(report["method"], method);
        assert_eq!(report["differing"], false);
        assert!(report.get("candidates").is_none(), "{report}");
        let (wrong, parts) = passed(&out, &bad);
        assert_eq!((wrong, parts), (0, 4), "{method}");
        let (right, parts) = passed(&out, &unseen);
        assert!(right + 1 >= parts, "{method}: {right} of {parts} good parts pass");
        linesight(["model", "check", out.to_str().unwrap()]).succeeds();
    }
}

/// `auto` tries all methods at all sizes on synthetic defects, says what each found and costs, and why one was taken; a
/// budget allows what fits and no more; the same seed chooses the same.
#[test]
fn auto_shows_its_table_and_keeps_to_the_budget() {
    let place = folder();
    let (good, bad) = set("auto", 16, &[GREY]);
    let out = place.path().join("auto");
    let report = teach(&good, &out, &[]).json();
    let rows = report["candidates"].as_array().unwrap();
    assert_eq!(rows.len(), 5, "three methods at the variant's size, the usual one at larger sizes: {report}");
    let chosen = |r: &&Value| r["method"] == report["method"] && r["input"] == report["input"];
    let best = rows.iter().find(chosen).unwrap();
    assert_eq!(best["allowed"], true);
    assert!(best["found_mean"].as_f64().unwrap() > 0.5 && best["ms"].as_f64().unwrap() > 0.0, "{best}");
    assert!(report["why"].as_str().unwrap().contains("synthetic defects"), "{report}");
    assert_eq!(report["input"]["width"], 224, "--variant fast caps the input");
    assert_eq!(passed(&out, &bad).0, 0);
    let again = teach(&good, &place.path().join("again"), &[]).json();
    assert_eq!((&again["method"], &again["threshold"]), (&report["method"], &report["threshold"]));

    let generous = teach(&good, &place.path().join("generous"), &["--budget-ms", "100000"]).json();
    let rows = generous["candidates"].as_array().unwrap();
    assert!(rows.len() == 9 && rows.iter().all(|r| r["allowed"] == true), "three methods at three sizes: {generous}");
    let run = teach(&good, &place.path().join("none"), &["--budget-ms", "0.001"]);
    run.fails(2, &["no method fits the budget", "the fastest takes"], "raise --budget-ms");
    let run = teach(&good, &place.path().join("none"), &["--budget-ms", "-1"]);
    run.fails(2, &["budget", "-1"], "milliseconds");
    assert!(!place.path().join("none").exists());
}

/// Few parts are taught with a warning that says what that means; one part only is refused.
#[test]
fn few_parts_are_taught_with_a_warning() {
    let place = folder();
    let (good, bad) = set("few", 6, &[GREY]);
    let out = place.path().join("few");
    let report = teach(&good, &out, &[]).json();
    assert_eq!(report["parts"], 6);
    let warnings = report["warnings"].as_array().unwrap();
    assert!(warnings[0].as_str().unwrap().starts_with("only 6 good parts"), "{warnings:?}");
    assert!(report["why"].as_str().unwrap().contains("too few to choose from"), "{report}");
    assert_eq!(passed(&out, &bad).0, 0);
    let one = place.path().join("one");
    std::fs::create_dir(&one).unwrap();
    std::fs::copy(good.join("00.png"), one.join("00.png")).unwrap();
    let run = teach(&one, &place.path().join("refused"), &[]);
    run.fails(1, &["1 good parts were found, at least 5 are needed"], "30 to 50 good parts");
}

/// One model knows several good looks: two colours of the product, each under two lights. A scratch on any of them is found.
#[test]
fn one_model_holds_several_good_looks() {
    let place = folder();
    let red = [170.0, 90.0, 80.0];
    let looks = [GREY, Look { colour: red, light: 1.0 }, Look { light: 0.7, ..GREY }, Look { colour: red, light: 0.7 }];
    let (good, bad) = set("looks", 40, &looks);
    let (unseen, _) = set("looks-unseen", 24, &looks);
    let out = place.path().join("looks");
    let report = teach(&good, &out, &["--method", "ppca"]).json();
    assert_eq!(report["parts"], 40, "no look is left out: {report}");
    let (wrong, parts) = passed(&out, &bad);
    assert_eq!((wrong, parts), (0, 16));
    let (right, parts) = passed(&out, &unseen);
    assert!(right + 1 >= parts, "{right} of {parts} good parts pass");
}

/// A person may set the threshold without teaching again; who and why stay in the package, and verdicts follow.
#[test]
fn a_threshold_is_set_with_who_and_why() {
    let place = folder();
    let (good, bad) = set("set", 12, &[GREY]);
    let out = place.path().join("set");
    teach(&good, &out, &["--method", "ppca"]).json();
    let dir = out.to_str().unwrap();
    let set = |more: &[&str]| linesight(["model", "set-threshold", dir].into_iter().chain(more.iter().copied()));
    let done = set(&["1000", "--by", "an engineer", "--why", "trial: nothing may stop", "--json"]).json();
    assert_eq!((&done["threshold"], &done["version"]), (&Value::from(1000.0), &Value::from("2")));
    assert!(done["expected_false_reject_rate"].as_f64().unwrap() < 1e-6);
    assert_eq!(passed(&out, &bad).0, 4);
    let shown = linesight(["model", "show", dir, "--json"]).json();
    let change = &shown["threshold_changes"][0];
    assert_eq!((&change["by"], &change["to"]), (&Value::from("an engineer"), &Value::from(1000.0)));
    set(&["5", "--by", "an engineer", "--why", ""]).fails(2, &["nothing says why the threshold changes"], "--why");
    set(&["-5", "--by", "a", "--why", "b"]).fails(2, &["threshold \"-5\" is not a positive number"], "is 1000.000 now");
    assert_eq!(linesight(["model", "show", dir, "--json"]).json()["version"], "2", "refused changes change nothing");
}

/// Calibrating with parts that were not taught makes the guarantee a split's; taught parts are refused.
#[test]
fn untaught_parts_give_a_guarantee() {
    let place = folder();
    let (good, _) = set("split", 12, &[GREY]);
    let (unseen, _) = set("split-unseen", 20, &[GREY]);
    let out = place.path().join("split");
    let taught = teach(&good, &out, &["--method", "ppca"]).json();
    assert_eq!(taught["basis"]["kind"], "cross-validated");
    let dir = out.to_str().unwrap();
    linesight(["model", "calibrate", dir, "--good", unseen.to_str().unwrap()]).succeeds();
    let shown = linesight(["model", "show", dir, "--json"]).json();
    assert_eq!(shown["basis"]["kind"], "split");
    let guaranteed = shown["guaranteed_false_reject_rate"].as_f64().unwrap();
    assert!((1.0 / 21.0..0.2).contains(&guaranteed), "{guaranteed}");
    let run = linesight(["model", "calibrate", dir, "--good", good.to_str().unwrap()]);
    assert!(run.code == Some(2) || run.code == Some(0), "{run:#?}");
}
