//! `linesight evaluate`: a rendered data set with masks, the sample recording with its truth, the report, bad input.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

mod support;

use image::{GrayImage, Luma, Rgb, RgbImage};
use linesight::capture::Source;
use linesight::detect::{Device, Hint};
use linesight::evaluate::dataset::{Dataset, read_mask};
use linesight::evaluate::metrics::Ranking;
use linesight::line::{self, Line};
use linesight::model::Model;
use linesight::prepare::shrink::Size;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use support::{Run, asset, copy, folder, holds_only, linesight, names, results, shared, washer};

const WIDTH: u32 = 192;
const HEIGHT: u32 = 160;
/// A file name that would be a tag if it were not escaped.
const HOSTILE: &str = "a&<b>\"'";

/// A plate with eight holes; light, place and noise differ from part to part. `defect` is painted over it.
fn plate(seed: u32, defect: Option<&GrayImage>) -> RgbImage {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % 1000
    };
    let (dx, dy, light) = (random() % 3, random() % 3, random() % 9);
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let (px, py) = ((x + dx) % 48, (y + dy) % 80);
        let hole = (px as i32 - 24).pow(2) + (py as i32 - 40).pow(2) < 200;
        let base = if hole { 60 } else { 150 + (x + y) / 8 } + light + random() % 7;
        let painted = defect.is_some_and(|d| d.get_pixel(x, y).0[0] > 0);
        let v = if painted { 255 - base / 2 } else { base } as u8;
        Rgb([v, v, v.saturating_sub(20)])
    })
}

/// A disc, or a scratch and a disc: one or two regions.
fn defect(kind: &str, i: u32) -> GrayImage {
    let (cx, cy) = (40 + 37 * i as i32 % 110, 30 + 53 * i as i32 % 100);
    GrayImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let (x, y) = (x as i32, y as i32);
        let disc = (x - cx).pow(2) + (y - cy).pow(2) < 70;
        let scratch = kind == "scratch" && (x - 20 - y).abs() < 3 && (90..140).contains(&y);
        Luma([u8::from(disc || scratch) * 255])
    })
}

/// train/good, test/good, test/{spot,scratch} with masks; the same for each run of this binary.
fn plates() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = shared("plates");
        let make = |path: &str| {
            let path = dir.join(path);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        for i in 0..12 {
            plate(i + 1, None).save(make("train/good").join(format!("{i:03}.png"))).unwrap();
        }
        for i in 0..6 {
            plate(i + 100, None).save(make("test/good").join(format!("{i:03}.png"))).unwrap();
        }
        for kind in ["scratch", "spot"] {
            for i in 0..3 {
                let mask = defect(kind, i);
                let name = if kind == "spot" && i == 0 { HOSTILE.to_owned() } else { format!("{i:03}") };
                plate(i + 200, Some(&mask)).save(make(&format!("test/{kind}")).join(format!("{name}.png"))).unwrap();
                mask.save(make(&format!("ground_truth/{kind}")).join(format!("{name}_mask.png"))).unwrap();
            }
        }
        dir
    })
}

fn plate_model() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let out = shared("plate-model");
        let good = plates().join("train/good");
        linesight(["teach".as_ref(), "--good".as_ref(), good.as_os_str(), "--out".as_ref(), out.as_os_str()])
            .succeeds();
        out
    })
}

fn evaluate(model: &Path, data: &Path, more: &[&str]) -> Run {
    let first = ["evaluate", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap()];
    linesight(first.iter().chain(more))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// AUROC by its definition, from the scores that were printed.
fn pairs(scores: &[Value], wanted: impl Fn(&Value) -> bool) -> f64 {
    let of = |kind: bool| scores.iter().filter(move |s| s["defective"] == kind).map(|s| (number(&s["score"]), s));
    let (mut won, mut all) = (0.0, 0.0);
    for (d, _) in of(true).filter(|(_, s)| wanted(s)) {
        for (g, _) in of(false) {
            won += if d > g {
                1.0
            } else if d == g {
                0.5
            } else {
                0.0
            };
            all += 1.0;
        }
    }
    won / all
}

/// Every promised field is there, and the figures follow from the scores that are printed with them.
#[test]
fn figures_of_a_data_set() {
    let e = evaluate(plate_model(), plates(), &["--json"]).json();
    assert_eq!((e["images"].as_u64(), e["good"].as_u64(), e["defective"].as_u64()), (Some(12), Some(6), Some(6)));
    let scores = e["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 12);
    assert!((number(&e["image_auroc"]) - pairs(scores, |_| true)).abs() < 1e-9);
    assert!(number(&e["image_auroc"]) > 0.95, "{e:#}");
    assert!(number(&e["best_f1"]) >= number(&e["at_threshold"]["f1"]));
    let positive = |defective: bool| {
        scores.iter().filter(|s| s["defective"] == defective && s["verdict"] != "pass").count() as u64
    };
    let at = &e["at_threshold"];
    assert_eq!((at["tp"].as_u64(), at["fp"].as_u64()), (Some(positive(true)), Some(positive(false))));
    assert!((number(&at["recall"]) - positive(true) as f64 / 6.0).abs() < 1e-12);
    assert!((number(&at["fpr"]) - positive(false) as f64 / 6.0).abs() < 1e-12);
    assert!(number(&at["precision"]) > 0.5);
    let kinds = e["per_defect"].as_array().unwrap();
    assert_eq!(kinds.iter().map(|k| k["label"].as_str().unwrap()).collect::<Vec<_>>(), ["scratch", "spot"]);
    for kind in kinds {
        assert_eq!(kind["images"], 3);
        assert!((number(&kind["auroc"]) - pairs(scores, |s| s["label"] == kind["label"])).abs() < 1e-9);
        assert!((0.0..=1.0).contains(&number(&kind["recall"])));
    }
    assert!(number(&e["pixel_auroc"]) > 0.9 && number(&e["aupro"]) > 0.6, "{e:#}");
    assert_eq!((e["pixels"]["images"].as_u64(), e["pixels"]["regions"].as_u64()), (Some(12), Some(9)));
    assert!(number(&e["teach_s"]) > 0.0 && number(&e["ms_per_image"]) > 0.0);
    for name in ["model", "data", "device", "precision", "threshold", "average_precision", "latency_ms", "stages_ms"] {
        assert!(!e[name].is_null(), "{name}");
    }
    assert_eq!(e["notes"].as_array().unwrap().len(), usize::from(at["unsure"] != 0), "{e:#}");
    assert!(scores.iter().any(|s| s["file"] == format!("test/spot/{HOSTILE}.png")));
}

/// The pixel AUROC that is counted in bins is that of all pixels, sorted exactly.
#[test]
fn pixel_auroc_is_that_of_all_pixels() {
    let e = evaluate(plate_model(), plates(), &["--json"]).json();
    let (set, model) = (Dataset::open(plates()).unwrap(), Model::load(plate_model()).unwrap());
    let mut backbone = line::arm(&model, &Device::default(), false, Hint::Throughput).unwrap();
    let files = set.samples.iter().map(|s| s.path.clone()).collect();
    let source = Source::Folder { path: set.dir.clone(), files };
    let stop = AtomicBool::new(false);
    let line = Line {
        name: "test",
        site: "local",
        source: &source,
        realtime: false,
        model: &model,
        deliver: None,
        stop: &stop,
        service: None,
    };
    let mut pixels = Vec::new();
    let mut samples = set.samples.iter();
    let on_judged = |judged: line::Judged| {
        let map = judged.placed_map().in_frame(Size { width: WIDTH, height: HEIGHT });
        let mask = samples.next().unwrap().mask.as_ref().map(|m| image::open(m).unwrap().into_luma8().into_raw());
        pixels.extend(map.iter().enumerate().map(|(i, v)| (*v, mask.as_ref().is_some_and(|m| m[i] > 0))));
        Ok(())
    };
    line::run(&line, &mut backbone, on_judged, |_, _| ()).unwrap();
    assert_eq!(pixels.len(), 12 * (WIDTH * HEIGHT) as usize);
    let difference = (Ranking::new(pixels).unwrap().auroc() - number(&e["pixel_auroc"])).abs();
    assert!(difference <= number(&e["pixels"]["auroc_error"]) + 1e-9 && difference < 1e-3, "{difference}");
}

#[test]
fn scores_are_those_of_inspect() {
    let dir = folder();
    let e = evaluate(plate_model(), plates(), &["--json"]).json();
    let out = dir.path().join("out");
    let source = plates().join("test/scratch");
    let model = plate_model().to_str().unwrap();
    linesight(["inspect", "--model", model, source.to_str().unwrap(), "--out", out.to_str().unwrap()]).succeeds();
    let inspected = results(&out);
    let evaluated: Vec<&Value> = e["scores"].as_array().unwrap().iter().filter(|s| s["label"] == "scratch").collect();
    assert_eq!(inspected.len(), evaluated.len());
    for (a, b) in inspected.iter().zip(evaluated) {
        assert!(b["file"].as_str().unwrap().ends_with(a["source"].as_str().unwrap()));
        assert_eq!((&a["score"], &a["verdict"]), (&b["score"], &b["verdict"]));
    }
}

/// Without masks there are no pixel metrics, with some only what they cover counts, and a note says so.
#[test]
fn masks_are_optional() {
    let dir = folder();
    copy(plates(), dir.path());
    std::fs::remove_file(dir.path().join("ground_truth/scratch/001_mask.png")).unwrap();
    std::fs::remove_dir_all(dir.path().join("ground_truth/spot")).unwrap();
    let e = evaluate(plate_model(), dir.path(), &["--json"]).json();
    assert_eq!((e["pixels"]["images"].as_u64(), e["pixels"]["regions"].as_u64()), (Some(8), Some(4)));
    let notes = e["notes"].to_string();
    assert!(notes.contains("scratch: 1 of 3 images have no mask") && notes.contains("spot: no masks"), "{notes}");

    std::fs::remove_dir_all(dir.path().join("ground_truth")).unwrap();
    let e = evaluate(plate_model(), dir.path(), &["--json"]).json();
    assert!(e["pixel_auroc"].is_null() && e["aupro"].is_null() && e["pixels"].is_null());
    assert!(e["notes"][0].as_str().unwrap().starts_with("no pixel metrics: there is no mask"), "{e:#}");
    let text = evaluate(plate_model(), dir.path(), &[]).succeeds().out.clone();
    assert!(
        text.contains("image AUROC") && text.contains("note: no pixel metrics") && !text.contains("AUPRO"),
        "{text}"
    );
}

/// The report needs nothing but itself, has what was promised, and names stay text.
#[test]
fn the_report_is_self_contained() {
    let dir = folder();
    let report = dir.path().join("report.html");
    // good parts among the defective ones and the reverse: there are misses and false rejects to show
    let data = dir.path().join("data");
    copy(plates(), &data);
    std::fs::rename(data.join("test/scratch/000.png"), data.join("test/good/bad.png")).unwrap();
    std::fs::copy(data.join("train/good/000.png"), data.join("test/scratch/000.png")).unwrap();
    std::fs::copy(data.join("train/good/001.png"), data.join(format!("test/spot/{HOSTILE}.png"))).unwrap();
    let run = evaluate(plate_model(), &data, &["--report", report.to_str().unwrap()]);
    assert!(run.succeeds().out.contains("report: "), "{run:#?}");
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.starts_with("<!DOCTYPE html>"));
    for outside in ["http:", "https:", "<script", "<link", "@import", "url(", "src="] {
        assert!(!text.contains(outside), "{outside}");
    }
    for href in text.split("href=\"").skip(1) {
        assert!(href.starts_with("data:image/") || href.starts_with("#part-"), "{}", &href[..40]);
    }
    for section in
        ["ROC", "average precision", "QQ plot", "Worst misses", "Worst false rejects", "By defect", "Time", "Model"]
    {
        assert!(text.contains(section), "{section}");
    }
    // a picture and a heatmap each: two misses and a false reject at least
    assert!(text.matches("data:image/jpeg;base64,").count() >= 3);
    assert_eq!(text.matches("data:image/jpeg").count(), text.matches("data:image/png").count());
    assert!(text.contains("a&amp;&lt;b&gt;&quot;'") && !text.contains("a&<b>"), "names are escaped");
    assert!(text.contains("test/good/bad.png"), "the false reject is shown");
    // an older report is replaced, and nothing else appears
    evaluate(plate_model(), &data, &["--report", report.to_str().unwrap()]).succeeds();
    holds_only(dir.path(), &["data", "report.html"]);
}

/// The sample recording: what evaluate counts at the threshold is what inspect counts, and scores separate.
#[test]
fn figures_of_a_recording() {
    let dir = folder();
    let report = dir.path().join("report.html");
    let truth = asset("sample-run.truth.json");
    let truth = truth.to_str().unwrap();
    let more = ["--truth", truth, "--json", "--report", report.to_str().unwrap()];
    let e = evaluate(washer(), &asset("sample-run.mp4"), &more).json();
    let recording = asset("sample-run.mp4");
    let inspect =
        ["inspect", "--model", washer().to_str().unwrap(), recording.to_str().unwrap(), "--truth", truth, "--json"];
    let inspected = linesight(inspect).json();
    for count in ["tp", "fp", "fn", "tn", "precision", "recall", "f1", "fpr"] {
        assert_eq!(e["at_threshold"][count], inspected["truth"][count], "{count}");
    }
    assert_eq!((e["images"].as_u64(), e["defective"].as_u64()), (Some(60), Some(12)));
    assert!(number(&e["image_auroc"]) > 0.99, "{e:#}");
    assert!(e["pixel_auroc"].is_null() && e["notes"].to_string().contains("does not mark pixels"));
    assert!((number(&e["image_auroc"]) - pairs(e["scores"].as_array().unwrap(), |_| true)).abs() < 1e-9);
    assert!(e["scores"][7]["part"] == 7 && e["scores"][7]["frame"].as_u64().unwrap() > 100);
    assert!(std::fs::read_to_string(report).unwrap().contains("QQ plot"));
}

/// What is wrong with the data is said before anything is scored, and nothing is left behind.
#[test]
fn bad_data_sets() {
    let spoil = |name: &str, change: &dyn Fn(&Path)| {
        let dir = folder();
        let data = dir.path().join(name);
        copy(plates(), &data);
        change(&data);
        (dir, data)
    };
    let png =
        |path: PathBuf, width, height, value| GrayImage::from_pixel(width, height, Luma([value])).save(path).unwrap();
    let gone = |path: PathBuf| std::fs::remove_dir_all(path).unwrap();
    type Case<'a> = (&'a dyn Fn(&Path), i32, &'a [&'a str], &'a str);
    let cases: [Case; 9] = [
        (&|d| gone(d.join("test")), 2, &["has no folder \"test\""], "test/good"),
        (&|d| gone(d.join("test/good")), 2, &["has no good images: no folder test/good"], "test/good"),
        (
            &|d| {
                gone(d.join("test/good"));
                std::fs::create_dir(d.join("test/good")).unwrap();
            },
            1,
            &["test/good\" holds no images"],
            "png",
        ),
        (
            &|d| {
                gone(d.join("test/spot"));
                gone(d.join("test/scratch"));
            },
            2,
            &["has no defective images"],
            "test/<defect>",
        ),
        (
            &|d| {
                gone(d.join("test"));
                std::fs::create_dir_all(d.join("test/good")).unwrap();
                plate(1, None).save(d.join("test/good/a.png")).unwrap();
            },
            2,
            &["holds one part only"],
            "at least one good and one defective",
        ),
        (
            &|d| png(d.join("ground_truth/spot/002_mask.png"), 96, 80, 255),
            2,
            &["002_mask.png\" is 96x80", "002.png\" is 192x160"],
            "the size of its image",
        ),
        (
            &|d| png(d.join("ground_truth/spot/002_mask.png"), WIDTH, HEIGHT, 0),
            2,
            &["002_mask.png\" marks no defect"],
            "test/good",
        ),
        (
            &|d| std::fs::write(d.join("ground_truth/spot/002_mask.png"), "no picture").unwrap(),
            2,
            &["002_mask.png\" cannot be read"],
            "0 is normal",
        ),
        (&|d| std::fs::write(d.join("test/spot/002.png"), "no picture").unwrap(), 1, &["002.png"], ""),
    ];
    for (change, code, causes, remedy) in cases {
        let (dir, data) = spoil("data", change);
        let report = dir.path().join("report.html");
        evaluate(plate_model(), &data, &["--report", report.to_str().unwrap()]).fails(code, causes, remedy);
        holds_only(dir.path(), &["data"]);
    }
    // a mask that fits again
    assert_eq!(read_mask(&plates().join("ground_truth/scratch/000_mask.png")).unwrap().regions(), 2);
}

#[test]
fn bad_truths() {
    let dir = folder();
    let recording = asset("sample-run.mp4");
    let truth = |name: &str, parts: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{{\"parts\": [{parts}]}}")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let part = |n: u64, defective: bool, centre: u64| {
        format!("{{\"part\": {n}, \"label\": \"x\", \"defective\": {defective}, \"centre\": {centre}}}")
    };
    let good = truth("good.json", &[part(0, false, 40), part(1, false, 67)].join(","));
    let bad = truth("bad.json", &[part(0, true, 40), part(1, true, 67)].join(","));
    let one = truth("one.json", &part(0, true, 40));
    let other = truth("other.json", &[part(0, false, 900_000), part(1, true, 900_027)].join(","));
    let sample = asset("sample-run.truth.json");
    let sample = sample.to_str().unwrap();
    let some = "at least one good and one defective";
    let model = plate_model();
    evaluate(model, &recording, &["--truth", &good]).fails(2, &["good.json\" names no defective part"], some);
    evaluate(model, &recording, &["--truth", &bad]).fails(2, &["bad.json\" names no good part"], some);
    evaluate(model, &recording, &["--truth", &one]).fails(2, &["one.json\" names one part only"], some);
    evaluate(model, &recording, &["--truth", "/no/such"]).fails(2, &["truth file \"/no/such\""], "--truth");
    evaluate(model, &recording, &[]).fails(2, &["sample-run.mp4\" has no truth"], "--truth");
    evaluate(model, plates(), &["--truth", sample]).fails(2, &["--truth was given", "is a folder"], "recording");
    evaluate(washer(), &recording, &["--truth", &other]).fails(
        1,
        &["none of the defective parts that the truth names was judged"],
        "belongs to this recording",
    );
    evaluate(washer(), plates(), &[]).fails(
        2,
        &["follows parts over a belt", "is a folder of images"],
        "--trigger frame",
    );
    assert_eq!(names(dir.path()).len(), 4);
}

#[test]
fn bad_reports() {
    let dir = folder();
    let (notes, deep) = (dir.path().join("notes.txt"), dir.path().join("no/report.html"));
    std::fs::write(&notes, "mine").unwrap();
    let report = |path: &Path| evaluate(plate_model(), plates(), &["--report", path.to_str().unwrap()]);
    report(&notes).fails(2, &["notes.txt\" is there and is no report"], "another file");
    report(&deep).fails(2, &["has no parent folder"], "make");
    report(dir.path()).fails(2, &["is a folder"], "name a file");
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
    holds_only(dir.path(), &["notes.txt"]);
}
