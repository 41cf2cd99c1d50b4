//! Parts that lie anywhere at any angle: teaching finds that out, defects are found where they are, and what is no part is
//! never passed.

// helpers outside #[test] functions count as no test for clippy.toml
#![allow(clippy::unwrap_used)]

mod support;

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use support::{folder, linesight, shared};

const WIDTH: u32 = 480;
const HEIGHT: u32 = 400;
const TEACH: u32 = 30;
const JUDGED: u32 = 16;

/// Where a part lies, and what is wrong with it.
#[derive(Clone, Copy)]
struct Lying {
    x: f64,
    y: f64,
    degrees: f64,
    defect: Option<Defect>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Defect {
    /// A dark spot at this place of the upright part.
    Spot(f64, f64),
    /// Three threads are worn off, around this place along the part.
    Worn(f64),
}

impl Defect {
    /// Its middle on the upright part.
    fn place(self) -> (f64, f64) {
        match self {
            Defect::Spot(x, y) => (x, y),
            Defect::Worn(x) => (x, 0.0),
        }
    }
}

const DEFECTS: [Defect; 4] =
    [Defect::Spot(-90.0, 8.0), Defect::Spot(-30.0, -2.0), Defect::Worn(50.0), Defect::Spot(80.0, 4.0)];

/// A small repeatable generator, 0..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// The colour of a bolt at a place of the upright part: head on the left, threads on the right.
fn bolt(x: f64, y: f64, defect: Option<Defect>) -> Option<[f64; 3]> {
    let head = (-105.0..-75.0).contains(&x) && y.abs() < 27.0;
    let shank = (-75.0..105.0).contains(&x) && y.abs() < 13.0;
    if !head && !shank {
        return None;
    }
    let v = match defect {
        Some(Defect::Spot(sx, sy)) if (x - sx).hypot(y - sy) < 6.0 => 30.0,
        Some(Defect::Worn(wx)) if (x - wx).abs() < 14.0 => 150.0,
        _ if head => 115.0 + 30.0 * f64::from(u8::from(y.abs() < 12.0)),
        _ if x > 10.0 && (x + 0.2 * y).rem_euclid(9.0) < 4.0 => 90.0,
        _ => 150.0 + 25.0 * f64::from(u8::from((-9.0..-1.0).contains(&y))),
    };
    Some([v, v * 0.97, v * 0.9])
}

/// A picture of parts on light grey, with falling light, another exposure each and noise.
fn picture(parts: &[Lying], seed: u64) -> RgbImage {
    let mut random = Random(seed.wrapping_mul(7919) + 17);
    let gain = 0.94 + 0.12 * random.next();
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let mut sum = [0.0; 3];
        for s in 0..9 {
            let (px, py) =
                (f64::from(x) + (f64::from(s % 3) + 0.5) / 3.0, f64::from(y) + (f64::from(s / 3) + 0.5) / 3.0);
            let colour = parts.iter().find_map(|p| {
                let (sin, cos) = p.degrees.to_radians().sin_cos();
                let (dx, dy) = (px - p.x, py - p.y);
                bolt(cos * dx + sin * dy, cos * dy - sin * dx, p.defect)
            });
            sum.iter_mut().zip(colour.unwrap_or([205.0, 207.0, 210.0])).for_each(|(s, c)| *s += c / 9.0);
        }
        let light = gain * (1.0 - 0.1 * f64::from(x) / f64::from(WIDTH));
        Rgb(sum.map(|v| (v * light + 5.0 * (random.next() + random.next() - 1.0)).clamp(0.0, 255.0) as u8))
    })
}

/// A pose that keeps the part in the picture.
fn anywhere(i: u32, defect: Option<Defect>) -> Lying {
    let mut random = Random(u64::from(i) * 31 + 5);
    random.next();
    Lying { x: 130.0 + 220.0 * random.next(), y: 125.0 + 150.0 * random.next(), degrees: 360.0 * random.next(), defect }
}

fn good(i: u32) -> Lying {
    anywhere(1000 + i, None)
}

fn defective(i: u32) -> Lying {
    anywhere(2000 + i, Some(DEFECTS[i as usize % DEFECTS.len()]))
}

/// Pictures and the model that was taught from them, once for all tests.
struct Taught {
    teach: PathBuf,
    judged: PathBuf,
    odd: PathBuf,
    model: PathBuf,
    report: Value,
}

impl Taught {
    /// What was chosen, so that it is not chosen again.
    fn method(&self) -> &str {
        self.report["method"].as_str().unwrap()
    }
}

static TAUGHT: LazyLock<Taught> = LazyLock::new(|| {
    let (teach, judged, odd, model) = (shared("teach"), shared("judged"), shared("odd"), shared("bolt"));
    for dir in [&teach, &judged, &odd] {
        std::fs::create_dir_all(dir).unwrap();
    }
    for i in 0..TEACH {
        picture(&[anywhere(i, None)], u64::from(i)).save(teach.join(format!("{i:03}.png"))).unwrap();
    }
    for i in 0..JUDGED {
        picture(&[good(i)], u64::from(1000 + i)).save(judged.join(format!("good-{i:02}.png"))).unwrap();
        picture(&[defective(i)], u64::from(2000 + i)).save(judged.join(format!("bad-{i:02}.png"))).unwrap();
    }
    let at = |x, y, degrees| Lying { x, y, degrees, defect: None };
    for (name, parts) in [
        ("cut", vec![at(50.0, 200.0, 10.0)]),
        ("empty", vec![]),
        ("two", vec![at(150.0, 130.0, 20.0), at(320.0, 260.0, 130.0)]),
    ] {
        picture(&parts, 5000).save(odd.join(format!("{name}.png"))).unwrap();
    }
    let report = teach_with(&teach, &model, &["--mm-per-pixel", "0.2"]);
    Taught { teach, judged, odd, model, report }
});

fn teach_with(good: &Path, out: &Path, more: &[&str]) -> Value {
    let mut arguments =
        vec!["teach", "--good", good.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json", "--device", "CPU"];
    arguments.extend(more);
    linesight(arguments).json()
}

/// The lines of results.jsonl, by file name.
fn results(model: &Path, source: &Path) -> Vec<Value> {
    let place = folder();
    let out = place.path().join("out");
    let arguments = ["inspect", "--model", model.to_str().unwrap(), source.to_str().unwrap(), "--out"];
    linesight(arguments.into_iter().chain([out.to_str().unwrap(), "--device", "CPU"])).succeeds();
    let text = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn split(results: &[Value]) -> (Vec<&Value>, Vec<&Value>) {
    results.iter().partition(|r| r["source"].as_str().unwrap().starts_with("good"))
}

fn auroc(good: &[&Value], bad: &[&Value]) -> f64 {
    let score = |v: &&Value| v["score"].as_f64().unwrap();
    let pairs = good.iter().flat_map(|g| bad.iter().map(move |b| (score(g), score(b))));
    pairs.map(|(g, b)| if b > g { 1.0 } else { 0.0 }).sum::<f64>() / (good.len() * bad.len()) as f64
}

#[test]
fn parts_at_any_angle_are_registered_and_judged() {
    let t = &*TAUGHT;
    assert_eq!(t.report["registration"], "rigid", "{}", t.report);
    let why = t.report["registration_why"].as_str().unwrap();
    for word in ["area stable within", "elongation", "angles spread over"] {
        assert!(why.contains(word), "{why}");
    }
    // a strip, not a square
    let (w, h) = (t.report["input"]["width"].as_f64().unwrap(), t.report["input"]["height"].as_f64().unwrap());
    assert!(w / h > 2.5, "{w} x {h}");
    let all = results(&t.model, &t.judged);
    let (good, bad) = split(&all);
    let auroc = auroc(&good, &bad);
    let (rejected, missed): (Vec<_>, Vec<_>) = (
        good.iter().filter(|r| r["verdict"] != "pass").collect(),
        bad.iter().filter(|r| r["verdict"] != "reject").collect(),
    );
    println!("AUROC {auroc:.4}, {} good not passed, {} defective not rejected", rejected.len(), missed.len());
    assert!(auroc >= 0.98, "{auroc}");
    assert!(rejected.len() <= 1 && missed.len() <= 1, "{rejected:#?} {missed:#?}");
}

#[test]
fn regions_lie_on_the_defect_in_the_pictures_pixels() {
    let t = &*TAUGHT;
    let all = results(&t.model, &t.judged);
    let (_, bad) = split(&all);
    for r in bad.iter().filter(|r| r["verdict"] == "reject") {
        let name = r["source"].as_str().unwrap();
        let lying = defective(name[4..6].parse().unwrap());
        let (px, py) = lying.defect.unwrap().place();
        let (s, c) = lying.degrees.to_radians().sin_cos();
        let (x, y) = (lying.x + c * px - s * py, lying.y + s * px + c * py);
        let region = &r["regions"][0];
        let number = |k: &str| region[k].as_f64().unwrap();
        let outside = |at: f64, from: f64, length: f64| (from - at).max(at - from - length).max(0.0);
        let away = outside(x, number("x"), number("w")).hypot(outside(y, number("y"), number("h")));
        assert!(away < 6.0, "{name}: the defect at {x:.0},{y:.0} is {away:.0} px from {region}");
        assert!(number("area_px") > 20.0 && number("area_px") <= number("w") * number("h") + 1.0, "{region}");
        assert!((number("area_mm2") / number("area_px") - 0.04).abs() < 1e-4, "{region}");
        let shares: f64 = r["regions"].as_array().unwrap().iter().map(|r| r["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-3, "{shares}");
        // the box holds the part and stays in the picture
        let b = |k: &str| r["box"][k].as_f64().unwrap();
        assert!(b("x") < lying.x && lying.x < b("x") + b("w") && b("x") + b("w") <= f64::from(WIDTH), "{r}");
    }
}

/// No silent pass: no part, two parts and a part that is cut are for a person.
#[test]
fn what_cannot_be_located_is_unsure_and_says_why() {
    let t = &*TAUGHT;
    let found = results(&t.model, &t.odd);
    let reasons: Vec<(&str, &str, &str)> = found
        .iter()
        .map(|r| {
            let text = |v: &'static str| r[v].as_str().unwrap();
            (text("source"), text("verdict"), r["reasons"][0].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        reasons,
        [
            ("cut.png", "unsure", "part is cut by the picture's edge"),
            ("empty.png", "unsure", "no part found"),
            ("two.png", "unsure", "more than one part in the picture"),
        ]
    );
}

/// What the registration is worth: the same pictures without it.
#[test]
fn without_registration_the_defects_are_not_told_from_good_parts() {
    let t = &*TAUGHT;
    let place = folder();
    let model = place.path().join("none");
    teach_with(&t.teach, &model, &["--registration", "none", "--method", t.method()]);
    let all = results(&model, &t.judged);
    let (good, bad) = split(&all);
    let auroc = auroc(&good, &bad);
    println!("AUROC without registration {auroc:.3}");
    assert!(auroc < 0.9, "{auroc}");
}

/// The learned mask is a picture in the package; a person paints over it and teaches again.
#[test]
fn the_learned_mask_can_be_seen_and_edited() {
    let t = &*TAUGHT;
    let mask = image::open(t.model.join("mask.png")).unwrap().into_luma8();
    let overview = image::open(t.model.join("overview.png")).unwrap();
    let input = |k: &str| t.report["input"][k].as_u64().unwrap() as u32;
    assert_eq!((mask.width() * input("height")), mask.height() * input("width"), "the strip's shape");
    assert!(overview.width() >= input("width"));
    let (w, h) = mask.dimensions();
    let white = mask.pixels().filter(|p| p.0[0] > 0).count() as f64 / f64::from(w * h);
    assert!((0.3..0.9).contains(&white), "{white}");
    assert!(mask.get_pixel(w / 2, h / 2).0[0] > 0 && mask.get_pixel(w / 2, 0).0[0] == 0, "the shank, not beside it");

    // the threaded half is not judged any more, whichever end of the strip it is on
    let place = folder();
    let threads_right = {
        let r = image::open(t.model.join("normal.png")).unwrap().into_luma8();
        let dark =
            |from: u32| (from..from + r.width() / 4).filter(|&x| r.get_pixel(x, r.height() / 4).0[0] < 170).count();
        dark(0) > dark(r.width() * 3 / 4)
    };
    let edited = GrayImage::from_fn(w, h, |x, y| {
        let judged = (x < w / 2) == threads_right;
        if judged { *mask.get_pixel(x, y) } else { Luma([0]) }
    });
    let (png, model) = (place.path().join("edited.png"), place.path().join("half"));
    edited.save(&png).unwrap();
    teach_with(&t.teach, &model, &["--mask", png.to_str().unwrap(), "--method", t.method()]);
    let all = results(&model, &t.judged);
    for r in &all {
        let name = r["source"].as_str().unwrap();
        if let Some(i) = name.strip_prefix("bad-") {
            let (x, _) = defective(i[..2].parse().unwrap()).defect.unwrap().place();
            // features see some way around them: what lies near the middle may be seen from the judged half
            if x.abs() > 70.0 {
                assert_eq!(r["verdict"], if x > 0.0 { "pass" } else { "reject" }, "{name}: {r}");
            }
        }
    }
    // a mask of another shape is refused, and told which shape is wanted
    let square = place.path().join("square.png");
    GrayImage::from_pixel(64, 64, Luma([255])).save(&square).unwrap();
    let out = place.path().join("not-made");
    let good = t.teach.to_str().unwrap();
    let arguments = ["teach", "--good", good, "--out", out.to_str().unwrap(), "--mask", square.to_str().unwrap()];
    linesight(arguments).fails(2, &["is 64x64, the judged area is"], &format!("{w}x{h} as in a package"));
}

#[test]
fn what_rigid_registration_cannot_do_is_said() {
    let t = &*TAUGHT;
    let place = folder();
    let out = place.path().join("not-made");
    let (good, odd, out) = (t.teach.to_str().unwrap(), t.odd.to_str().unwrap(), out.to_str().unwrap());
    let teach = |good: &str, more: &[&str]| linesight(["teach", "--good", good, "--out", out].iter().chain(more));
    teach(good, &["--mm-per-pixel", "0"]).fails(2, &["\"0\" millimetres per pixel is no scale"], "positive number");
    teach(good, &["--mm-per-pixel", "inf"]).fails(2, &["millimetres per pixel is no scale"], "positive number");
    let sample = support::asset("sample-teach.mp4");
    teach(sample.to_str().unwrap(), &["--registration", "rigid", "--trigger", "presence"]).fails(
        2,
        &["registration \"rigid\" goes with trigger \"frame\""],
        "--registration auto",
    );
    let mixed = place.path().join("mixed");
    std::fs::create_dir(&mixed).unwrap();
    for i in 0..6 {
        let from = ["cut.png", "empty.png", "two.png"][i % 3];
        std::fs::copy(Path::new(odd).join(from), mixed.join(format!("{i}.png"))).unwrap();
    }
    teach(mixed.to_str().unwrap(), &["--registration", "rigid"]).fails(
        2,
        &["registration \"rigid\" is not possible", "in 0 of 6 pictures"],
        "plain background",
    );
}
