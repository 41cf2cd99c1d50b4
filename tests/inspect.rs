//! The main job: a recording is inspected, each part is judged once, anomalies leave, good parts leave nothing.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::LazyLock;
use support::bad_server::Server;
use support::*;

/// The sample's run, inspected once with everything: results, pictures, ledger, endpoint, truth.
struct Full {
    summary: Value,
    out: PathBuf,
    spool: PathBuf,
    endpoint: Server,
    results: Vec<Value>,
    truth: Truth,
}

static FULL: LazyLock<Full> = LazyLock::new(|| {
    let (out, spool, endpoint) = (shared("full"), shared("full.db"), sink());
    let truth_file = asset("sample-run.truth.json");
    let run = program()
        .args(["inspect", "--json", "--line", "line-1", "--site", "plant", "--review", &endpoint.url(), "--model"])
        .arg(washer())
        .arg(asset("sample-run.mp4"))
        .arg("--out")
        .arg(&out)
        .arg("--spool")
        .arg(&spool)
        .arg("--truth")
        .arg(truth_file)
        .output()
        .unwrap();
    let summary = Run::from(run).json();
    Full { summary, results: results(&out), out, spool, endpoint, truth: truth("sample-run") }
});

fn anomalies() -> Vec<&'static Value> {
    FULL.results.iter().filter(|r| r["verdict"] != "pass").collect()
}

/// All 60 parts are judged once each, at least 11 of the 12 defects are found, at most one good part is rejected.
#[test]
fn the_sample_is_judged_right() {
    let (s, t) = (&FULL.summary, &FULL.summary["truth"]);
    assert_eq!((&s["parts"], &s["frames"]), (&json!(60), &json!(FULL.truth.frames)));
    assert_eq!((&t["extra"], &t["unmatched"]), (&json!(0), &json!(0)), "each part once");
    let n = |key: &str| t[key].as_u64().unwrap();
    assert!(n("tp") >= 11 && n("fp") <= 1, "{t}");
    assert_eq!((n("tp") + n("fn"), n("fp") + n("tn")), (12, 48));
    assert_eq!(s["anomalies"], json!(n("tp") + n("fp")));
    // the same count from results.jsonl, without the program's own comparison
    let wanted = defective(&FULL.truth, u64::MAX);
    let found: BTreeSet<u64> = anomalies().iter().map(|r| r["part"].as_u64().unwrap()).collect();
    assert_eq!(found.intersection(&wanted).count() as u64, n("tp"));
    let ratio = |a: u64, b: u64| a as f64 / b as f64;
    assert_eq!(t["precision"], json!(ratio(n("tp"), n("tp") + n("fp"))));
    assert_eq!(t["recall"], json!(ratio(n("tp"), 12)));
    assert_eq!(t["fpr"], json!(ratio(n("fp"), 48)));
}

/// Part numbers run from 0 to 59 without gaps, verdicts are in frame order, each at the frame where its part is centred.
#[test]
fn verdicts_are_in_order_without_gaps() {
    let parts: Vec<u64> = FULL.results.iter().map(|r| r["part"].as_u64().unwrap()).collect();
    assert_eq!(parts, (0..60).collect::<Vec<_>>());
    let frames: Vec<u64> = FULL.results.iter().map(|r| r["frame"].as_u64().unwrap()).collect();
    assert!(frames.windows(2).all(|w| w[0] < w[1]), "{frames:?}");
    for (frame, part) in frames.iter().zip(&FULL.truth.parts) {
        assert!(frame.abs_diff(part.centre) <= 2, "part {} at frame {frame}, centre {}", part.part, part.centre);
    }
}

/// `inspect --json` has every field that others rely on, with figures that fit together.
#[test]
fn the_summary_has_all_fields() {
    let s = &FULL.summary;
    for (key, inner) in [
        ("latency_ms", &["p50", "p95", "p99", "max"][..]),
        ("stages_ms", &["decode", "prepare", "infer", "judge", "deliver"]),
        ("truth", &["tp", "fp", "fn", "tn", "precision", "recall", "f1", "fpr"]),
    ] {
        for field in inner {
            assert!(!s[key][field].is_null(), "{key}.{field}: {s}");
        }
    }
    for stage in ["decode", "prepare", "infer", "judge", "deliver"] {
        let (p50, p99) = (s["stages_ms"][stage]["p50"].as_f64(), s["stages_ms"][stage]["p99"].as_f64());
        assert!(p50.unwrap() > 0.0 && p50 <= p99, "{stage}: {s}");
    }
    let quantiles: Vec<f64> =
        ["p50", "p95", "p99", "max"].iter().map(|q| s["latency_ms"][q].as_f64().unwrap()).collect();
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
    assert!(s["source"].as_str().unwrap().ends_with("sample-run.mp4"));
    assert_eq!((&s["model"], &s["device"], &s["precision"]), (&json!("washer@1"), &json!("CPU"), &json!("int8")));
    assert_eq!((&s["dropped"], &s["lost"], &s["decode_warnings"]), (&json!(0), &json!(0), &json!(0)));
    let n = |key: &str| s[key].as_f64().unwrap();
    assert_eq!(n("bytes_raw"), 1280.0 * 720.0 * 1.5 * n("frames"));
    assert_eq!(n("bytes_in"), std::fs::metadata(asset("sample-run.mp4")).unwrap().len() as f64);
    assert_eq!(n("bytes_uploaded"), FULL.endpoint.seen().acknowledged as f64);
    assert_eq!(n("bandwidth_saved"), 1.0 - n("bytes_uploaded") / n("bytes_raw"));
    assert_eq!(n("bandwidth_saved_encoded"), 1.0 - n("bytes_uploaded") / n("bytes_in"));
    assert!(n("bandwidth_saved") >= 0.99 && n("fps") > 0.0);
    assert_eq!((n("delivered"), n("waiting")), (n("anomalies"), 0.0));
}

/// Every line of results.jsonl has the fields of the contract, with values in range.
#[test]
fn each_result_has_all_fields() {
    for r in &FULL.results {
        assert!(r["source"].as_str().unwrap().ends_with("sample-run.mp4"));
        let frame = r["frame"].as_u64().unwrap();
        let pts = r["pts_ns"].as_u64().unwrap();
        assert!(pts.abs_diff(frame * 1_000_000_000 / 30) < 1_000_000, "{r}");
        let (score, confidence) = (r["score"].as_f64().unwrap(), r["confidence"].as_f64().unwrap());
        assert!(score > 0.0 && (0.0..=1.0).contains(&confidence), "{r}");
        let verdict = r["verdict"].as_str().unwrap();
        assert!(["pass", "reject", "unsure", "missed"].contains(&verdict), "{r}");
        let regions = r["regions"].as_array().unwrap();
        assert_eq!(regions.is_empty(), verdict != "reject", "{r}");
        assert_eq!(r.get("reasons").is_some(), verdict != "pass", "{r}");
        let part = &r["box"];
        let n = |v: &Value, key: &str| v[key].as_u64().unwrap();
        for region in regions {
            assert!(region["score"].as_f64().unwrap() <= score + 1e-3, "{r}");
            assert!(n(region, "w") > 0 && n(region, "h") > 0);
            assert!(n(region, "x") + n(region, "w") <= 1280 && n(region, "y") + n(region, "h") <= 720);
            assert!(
                n(region, "x") + 1 >= n(part, "x")
                    && n(region, "x") + n(region, "w") <= n(part, "x") + n(part, "w") + 1
            );
        }
        if let Some(strongest) = regions.first() {
            assert!((strongest["score"].as_f64().unwrap() - score).abs() < 1e-3, "the strongest comes first: {r}");
        }
    }
    // a higher score is never less unusual
    let mut pairs: Vec<(f64, f64)> =
        FULL.results.iter().map(|r| (r["score"].as_f64().unwrap(), r["confidence"].as_f64().unwrap())).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(pairs.windows(2).all(|w| w[0].1 <= w[1].1), "{pairs:?}");
}

/// Good parts are one ledger row each and nothing else: no picture, no spool entry, no upload.
#[test]
fn good_parts_leave_nothing() {
    let mut wanted = BTreeSet::from(["results.jsonl".to_owned()]);
    for r in anomalies() {
        let part = r["part"].as_u64().unwrap();
        wanted.extend([format!("part-{part:05}-frame.jpg"), format!("part-{part:05}-heatmap.png")]);
    }
    assert_eq!(names(&FULL.out), wanted, "pictures of anomalies only");

    let n = |sql: &str| count(&FULL.spool, sql) as usize;
    assert_eq!(n("SELECT count(*) FROM ledger"), 60);
    assert_eq!(n("SELECT count(*) FROM ledger WHERE line = 'line-1' AND model = 'washer@1'"), 60);
    assert_eq!(n("SELECT count(DISTINCT part) FROM ledger WHERE part BETWEEN 0 AND 59"), 60);
    assert_eq!(n("SELECT count(*) FROM ledger WHERE verdict = 'pass' AND event IS NULL"), 60 - anomalies().len());
    assert_eq!(n("SELECT count(*) FROM spool") + n("SELECT count(*) FROM pictures"), 0);

    let seen = FULL.endpoint.seen();
    assert_eq!((seen.requests.len(), seen.repeats), (anomalies().len(), 0), "one request for each anomaly");
    let mut of_ledger = ledger_events(&FULL.spool);
    let mut of_endpoint = seen.order.clone();
    of_ledger.sort();
    of_endpoint.sort();
    assert_eq!(of_ledger, of_endpoint);
}

/// The event says the same as results.jsonl, and everything a reviewer needs beside it.
#[test]
fn events_say_what_the_results_say() {
    let manifest = std::fs::read(washer().join("model.toml")).unwrap();
    let toml: toml::Table = std::str::from_utf8(&manifest).unwrap().parse().unwrap();
    let sha: String = <sha2::Sha256 as sha2::Digest>::digest(&manifest).iter().map(|b| format!("{b:02x}")).collect();
    let events = events(&FULL.endpoint);
    assert_eq!(events.len(), anomalies().len());
    for (e, r) in events.iter().zip(anomalies()) {
        for key in ["part", "frame", "verdict", "reasons", "regions"] {
            assert_eq!(e[key], r[key], "{key}");
        }
        for key in ["score", "confidence"] {
            assert!((e[key].as_f64().unwrap() - r[key].as_f64().unwrap()).abs() < 1e-5, "{key}: {e}");
        }
        assert_eq!(e["part_box"], r["box"]);
        let threshold = toml["threshold"].as_float().unwrap();
        assert!((e["threshold"].as_f64().unwrap() - threshold).abs() < 1e-5);
        assert_eq!((&e["schema"], &e["line"], &e["site"]), (&json!(1), &json!("line-1"), &json!("plant")));
        assert_eq!((&e["device"], &e["precision"]), (&json!("CPU"), &json!("int8")));
        assert_eq!(e["model"], json!({"name": "washer", "version": "1", "sha256": sha}));
        assert_eq!(e["image"], json!({"width": 1280, "height": 720}));
        assert!(e["camera"].as_str().unwrap().ends_with("sample-run.mp4"));
        let id: uuid::Uuid = e["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        let at: jiff::Timestamp = e["captured_at"].as_str().unwrap().parse().unwrap();
        assert!(at <= jiff::Timestamp::now());
        assert!(e["spooled_s"].as_f64().unwrap() >= 0.0);
    }
    // what was sent is what --out keeps
    let seen = FULL.endpoint.seen();
    for (id, r) in seen.order.iter().zip(anomalies()) {
        let fields = seen.kept[id].fields();
        let kept = |name: &str| {
            std::fs::read(FULL.out.join(format!("part-{:05}-{name}", r["part"].as_u64().unwrap()))).unwrap()
        };
        assert_eq!(fields["frame"], ("image/jpeg".into(), kept("frame.jpg")));
        assert_eq!(fields["heatmap"], ("image/png".into(), kept("heatmap.png")));
    }
}

/// The frame picture shows the frame at full size; the heatmap is hot inside the regions and nowhere else.
#[test]
fn the_heatmap_peaks_in_the_regions() {
    for r in anomalies() {
        let part = r["part"].as_u64().unwrap();
        let picture = |name: &str| image::open(FULL.out.join(format!("part-{part:05}-{name}"))).unwrap();
        let frame = picture("frame.jpg");
        assert_eq!((frame.width(), frame.height()), (1280, 720));
        let heat = picture("heatmap.png").into_rgba8();
        assert_eq!(heat.dimensions(), (320, 180));
        let regions: Vec<[u32; 4]> = r["regions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| ["x", "y", "w", "h"].map(|k| g[k].as_u64().unwrap() as u32))
            .collect();
        let inside = |[x, y, w, h]: [u32; 4], px: u32, py: u32| {
            // one heatmap pixel of slack
            px * 4 + 8 > x && px * 4 < x + w + 4 && py * 4 + 8 > y && py * 4 < y + h + 4
        };
        // strongest first by alpha, then by less green (yellow at the threshold, red beyond)
        let rank = |p: &image::Rgba<u8>| (p.0[3], 255 - p.0[1]);
        let (x, y, peak) = heat.enumerate_pixels().max_by_key(|(_, _, p)| rank(p)).unwrap();
        if regions.is_empty() {
            continue;
        }
        // what lies at the threshold has this much colour
        assert!(peak.0[3] >= 100, "part {part}: there is a peak");
        assert!(regions.iter().any(|g| inside(*g, x, y)), "part {part}: peak {x},{y} of {regions:?}");
        let hot = heat.enumerate_pixels().filter(|(_, _, p)| p.0[3] == 190);
        for (x, y, _) in hot {
            assert!(regions.iter().any(|g| inside(*g, x, y)), "part {part}: hot at {x},{y}, regions {regions:?}");
        }
    }
}

/// A plain HTTP server that knows nothing of linesight gets exactly the anomalies, once each; and the same recording gives
/// the same scores, to the last bit.
#[test]
fn a_second_run_is_the_same_for_any_endpoint() {
    let folder = folder();
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let mut python = std::process::Command::new("python3");
    python.arg(root().join("tests/support/plain_sink.py")).arg(&kept).stdout(std::process::Stdio::piped());
    let mut sink = Ended(python.spawn().unwrap());
    let mut port = String::new();
    BufReader::new(sink.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let out = folder.path().join("out");
    let run = program()
        .args(["inspect", "--review", &format!("http://127.0.0.1:{}/", port.trim()), "--model"])
        .arg(washer())
        .arg(asset("sample-run.mp4"))
        .arg("--out")
        .arg(&out)
        .arg("--spool")
        .arg(folder.path().join("spool.db"))
        .output()
        .unwrap();
    let run = Run::from(run);
    run.succeeds();
    // the text says the same as the JSON
    let s = &FULL.summary;
    let head = format!("{} frames, {} parts, {} anomalies in ", s["frames"], s["parts"], s["anomalies"]);
    assert!(run.out.lines().next().unwrap().contains(&head), "{}", run.out);
    assert!(run.out.contains(&format!("uploaded {} anomalies", s["anomalies"])), "{}", run.out);
    assert_eq!(run.err, "", "nothing to complain about");

    let first = std::fs::read_to_string(FULL.out.join("results.jsonl")).unwrap();
    assert_eq!(std::fs::read_to_string(out.join("results.jsonl")).unwrap(), first);

    let mut parts = BTreeMap::new();
    for request in names(&kept) {
        let folder = kept.join(&request);
        holds_only(&folder, &["event", "frame", "heatmap", "normal"]);
        let event: Value = serde_json::from_slice(&std::fs::read(folder.join("event")).unwrap()).unwrap();
        assert!(request.starts_with(event["id"].as_str().unwrap()), "the idempotency key is the id");
        assert!(parts.insert(event["part"].as_u64().unwrap(), request).is_none(), "each once");
        assert!(std::fs::read(folder.join("frame")).unwrap().starts_with(b"\xff\xd8\xff"));
        assert!(std::fs::read(folder.join("heatmap")).unwrap().starts_with(b"\x89PNG"));
    }
    let wanted: Vec<u64> = anomalies().iter().map(|r| r["part"].as_u64().unwrap()).collect();
    assert_eq!(parts.into_keys().collect::<Vec<_>>(), wanted);
}

/// A folder of images of mixed formats and sizes, each a part: names in the order people count, good ones pass, the
/// defective one does not.
#[test]
fn a_folder_of_images() {
    let folder = folder();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let run = stills("sample-run", 5);
    let good = stills("sample-teach", 3);
    let save = |name: &str, picture: image::DynamicImage| picture.save(images.join(name)).unwrap();
    save("part-2.jpg", good[0].clone().into());
    save("part-10.png", run[4].clone().into()); // the stain
    save("part-1.PNG", good[1].clone().into());
    let half = image::imageops::resize(&good[2], STILL * 3 / 4, STILL * 3 / 4, image::imageops::FilterType::Triangle);
    save("part-3.jpeg", half.into());
    save("part-4.png", image::DynamicImage::from(good[0].clone()).into_luma8().into());
    std::fs::write(images.join("notes.txt"), "not a picture").unwrap();
    let out = folder.path().join("out");
    let model = still_model();
    let summary = linesight([
        Path::new("inspect"),
        Path::new("--json"),
        Path::new("--model"),
        model,
        &images,
        Path::new("--out"),
        &out,
    ])
    .json();
    assert_eq!((&summary["frames"], &summary["parts"]), (&json!(5), &json!(5)));
    let size: u64 =
        names(&images).iter().filter(|n| !n.ends_with("txt")).map(|n| images.join(n).metadata().unwrap().len()).sum();
    assert_eq!(summary["bytes_in"], json!(size));
    let results = results(&out);
    let sources: Vec<&str> = results.iter().map(|r| r["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["part-1.PNG", "part-2.jpg", "part-3.jpeg", "part-4.png", "part-10.png"]);
    for (i, r) in results.iter().enumerate() {
        assert_eq!((&r["frame"], &r["part"]), (&json!(i), &json!(i)));
    }
    assert_eq!(results[0]["verdict"], "pass", "taught as it is: {results:#?}");
    assert_eq!(results[1]["verdict"], "pass", "JPEG of a taught picture: {results:#?}");
    assert_eq!(results[4]["verdict"], "reject", "the stain: {results:#?}");
    let part_box = &results[2]["box"];
    assert!(part_box["w"].as_u64().unwrap() <= u64::from(STILL * 3 / 4), "{part_box}");
}

/// One image is a source as well.
#[test]
fn a_single_image() {
    let image = good_stills().join("good-0.png");
    let summary =
        linesight([Path::new("inspect"), Path::new("--json"), Path::new("--model"), still_model(), &image]).json();
    assert_eq!((&summary["frames"], &summary["parts"], &summary["anomalies"]), (&json!(1), &json!(1), &json!(0)));
}

/// --realtime takes at least as long as the recording.
#[test]
fn realtime_keeps_the_recordings_pace() {
    let clip = clip("sample-run", 60);
    let summary = linesight([
        Path::new("inspect"),
        Path::new("--json"),
        Path::new("--realtime"),
        Path::new("--model"),
        washer(),
        &clip,
    ])
    .json();
    assert_eq!(summary["frames"], 60);
    // the last frame is due 59/30 s after the first
    assert!(summary["seconds"].as_f64().unwrap() >= 59.0 / 30.0, "{summary}");
}

/// A child that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn realtime(url: &str, spool: &Path, out: &Path) -> Ended {
    let mut program = program();
    program.args(["inspect", "--json", "--realtime", "--review", url, "--model"]).arg(washer());
    program.arg(asset("sample-run.mp4")).arg("--spool").arg(spool).arg("--out").arg(out);
    Ended(program.spawn().unwrap())
}

/// Ctrl-C in the middle of a run is a clean end: exit 0, the summary of what was judged, all of it in the ledger, its
/// anomalies delivered, its results kept.
#[test]
fn ctrl_c_delivers_what_was_judged() {
    let (folder, endpoint) = (folder(), sink());
    let (spool, out) = (folder.path().join("spool.db"), folder.path().join("out"));
    let mut run = realtime(&endpoint.url(), &spool, &out);
    until("the first anomaly", || !endpoint.seen().order.is_empty());
    rustix::process::kill_process(rustix::process::Pid::from_child(&run.0), rustix::process::Signal::INT).unwrap();
    let (mut text, mut err) = (String::new(), String::new());
    run.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    run.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let status = run.0.wait().unwrap();
    assert_eq!((status.code(), &*err), (Some(0), ""));
    let summary: Value = serde_json::from_str(&text).unwrap();
    let n = |key: &str| summary[key].as_u64().unwrap();
    assert!(n("frames") < 1877 && n("parts") >= 5, "in the middle: {summary}");
    assert_eq!(results(&out).len() as u64, n("parts"));
    assert_eq!(count(&spool, "SELECT count(*) FROM ledger") as u64, n("parts"));
    assert_eq!((n("delivered"), n("waiting")), (n("anomalies"), 0));
    let ids: BTreeSet<String> = endpoint.seen().order.iter().cloned().collect();
    assert_eq!(ids, ledger_events(&spool).into_iter().collect());
    holds_only(folder.path(), &["out", "spool.db", "spool.db.lock"]);
}

/// kill -9 in the middle of a run whose endpoint is down: the next run delivers every anomaly of the first ledger under the
/// id it had, once, and the two runs stay apart.
#[test]
fn kill_loses_no_anomaly() {
    let folder = folder();
    let (spool, out) = (folder.path().join("spool.db"), folder.path().join("out"));
    let address = nobody();
    let url = format!("http://{address}");
    let mut run = realtime(&url, &spool, &out);
    let spooled = || {
        spool.exists()
            && rusqlite::Connection::open(&spool)
                .and_then(|db| db.query_row("SELECT count(*) FROM spool", [], |row| row.get::<_, i64>(0)))
                .is_ok_and(|n| n > 0)
    };
    until("the first anomaly", spooled);
    run.0.kill().unwrap();
    assert_eq!(run.0.wait().unwrap().code(), None, "killed, not ended");
    assert!(!out.exists(), "no output of a run that did not end");
    let first = ledger_events(&spool);
    assert!(!first.is_empty());

    let endpoint = bad_server::Server::start_at(address, |_| bad_server::Act::Take);
    let clip = clip("sample-run", 200);
    let second = program()
        .args(["inspect", "--json", "--review", &url, "--model"])
        .arg(washer())
        .arg(&clip)
        .arg("--spool")
        .arg(&spool)
        .output()
        .unwrap();
    let summary = Run::from(second).json();
    assert_eq!(summary["waiting"], 0);
    assert_eq!(summary["delivered"], json!(first.len() as u64 + summary["anomalies"].as_u64().unwrap()));
    let seen = endpoint.seen();
    let ids: BTreeSet<String> = seen.order.iter().cloned().collect();
    assert!(first.iter().all(|id| ids.contains(id)), "{first:?} of {ids:?}");
    assert_eq!((ids, seen.repeats), (ledger_events(&spool).into_iter().collect(), 0));
    assert_eq!(count(&spool, "SELECT count(DISTINCT run) FROM ledger"), 2);
    assert_eq!(count(&spool, "SELECT count(*) FROM spool"), 0);
    let gaps = "SELECT count(*) FROM (SELECT max(part) + 1 - count(*) AS gap FROM ledger GROUP BY run) WHERE gap != 0";
    assert_eq!(count(&spool, gaps), 0, "no part is missing in either run");
}

/// An endpoint that will never take the anomalies: each is asked about once, and who started the inspection is told what waits
/// for a person, and how to send it again.
#[test]
fn what_is_refused_for_good_is_said_and_sent_again_by_hand() {
    let mended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let works = mended.clone();
    let server = Server::start(move |_| match works.load(std::sync::atomic::Ordering::Relaxed) {
        true => support::bad_server::Act::Take,
        false => support::bad_server::Act::Answer(422, "", "no such site"),
    });
    let home = folder();
    let spool = home.path().join("spool.db");
    let inspect = || -> Run {
        let mut command = program();
        command.args(["inspect", "--json", "--review", &server.url(), "--model"]).arg(washer());
        command.arg(asset("sample-run.mp4")).arg("--spool").arg(&spool).output().unwrap().into()
    };
    let run = inspect();
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(run.err.contains("were refused by the review endpoint: 422 Unprocessable Entity: no such site"), "{run:?}");
    assert!(run.err.contains("linesight spool list --dead"), "{run:?}");
    let dead = server.seen().requests.len();
    let spool_command = |arguments: &[&str]| -> Run {
        program().arg("spool").args(arguments).arg("--spool").arg(&spool).output().unwrap().into()
    };
    let listed = spool_command(&["list", "--dead", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), dead);
    mended.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(spool_command(&["retry", "--all"]).code, Some(0));
    let run = inspect();
    assert_eq!(run.code, Some(0), "{run:?}");
    // those of both runs
    assert_eq!(server.seen().order.len(), 2 * dead);
}
