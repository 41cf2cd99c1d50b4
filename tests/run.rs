//! `linesight run`: lines of every kind at work, overloaded, late, broken, killed, stopped and reloaded, and what the ledger,
//! the endpoint and the receiver in the plant know afterwards.

#![allow(clippy::unwrap_used)]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/camera.rs"]
mod camera;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/plant.rs"]
mod plant;
#[path = "support/rtsp.rs"]
mod rtsp;
mod support;

use broker::{Broker, Receiver};
use camera::FakeCamera;
use disk::Disk;
use plant::{Plant, footprint, line};
use rtsp::RtspServer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::*;

/// Whether the full counts are wanted (`make fault`).
fn full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

fn sample() -> String {
    asset("sample-run.mp4").display().to_string()
}

/// Frames as they come, at a rate that the test chooses, of parts that a model of stills takes.
fn fast(fps: u32) -> String {
    format!(
        "pipeline:videotestsrc is-live=true pattern=smpte ! video/x-raw,format=I420,width=320,height=240,framerate={fps}/1"
    )
}

#[test]
fn child_that_serves_rtsp() {
    rtsp::serve_if_child();
}

/// A recording in `run` gives the parts and verdicts that it gives in `inspect`, each once, numbered from 0, and ends by itself.
#[test]
fn block_on_a_recording_loses_nothing() {
    let out = folder();
    let results_at = out.path().join("out");
    linesight([
        "inspect".as_ref(),
        "--model".as_ref(),
        washer().as_os_str(),
        asset("sample-run.mp4").as_os_str(),
        "--out".as_ref(),
        results_at.as_os_str(),
    ])
    .succeeds();
    let mut plant = Plant::new("", &line("a", &sample(), washer(), "realtime = false\nqueue = 1"));
    plant.start();
    let (report, code) = plant.end();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let wanted: Vec<(u64, u64, String)> = results(&results_at)
        .iter()
        .map(|r| (r["part"].as_u64().unwrap(), r["frame"].as_u64().unwrap(), r["verdict"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(plant.parts("a"), wanted);
    plant.reconciles();
    assert_eq!(report["lines"][0]["counters"]["dropped"], serde_json::json!({}));
    // a second run goes on with the numbers
    plant.start();
    plant.end();
    let parts = plant.parts("a");
    assert_eq!(parts.len(), 2 * wanted.len());
    assert!(parts.iter().enumerate().all(|(i, p)| p.0 == i as u64), "{parts:?}");
    plant.reconciles();
}

/// Frames come faster than they can be judged: what is judged is never older than the queue allows, every frame is a part in
/// the ledger, judged or missed, and drops are counted.
#[test]
fn newest_stays_within_its_bound() {
    let mut plant = Plant::new("", &line("a", &fast(1000), still_model(), "overload = \"newest\"\nqueue = 3"));
    plant.start();
    let wanted = if full() { 30_000 } else { 3000 };
    plant.until("frames", |p| p.counter("a", "frames") >= wanted);
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let line = &report["lines"][0];
    let c = &line["counters"];
    let (frames, parts, missed) =
        (c["frames"].as_u64().unwrap(), c["parts"].as_u64().unwrap(), c["missed"].as_u64().unwrap());
    eprintln!("{c:#}\nlatency ms {}", line["totals"]["latency_ms"]);
    assert!(missed > 0, "the detector was fast enough: {c:#}");
    assert_eq!(c["dropped"]["overload"].as_u64().unwrap(), missed, "{c:#}");
    // what was on its way when the line stopped may be given up
    assert!(frames - parts <= 8, "{frames} frames, {parts} parts");
    let rows = plant.parts("a");
    assert_eq!(rows.len() as u64, parts);
    assert!(rows.iter().enumerate().all(|(i, r)| r.0 == i as u64), "part numbers have gaps");
    let mut frames: Vec<u64> = rows.iter().map(|r| r.1).collect();
    frames.sort_unstable();
    assert!(frames.windows(2).all(|w| w[1] == w[0] + 1), "a frame is in the ledger twice or not at all");
    // a judged part may have waited behind the queue and what is in flight, not behind a backlog that grows
    let judged: i64 = plant.count("SELECT cast(max(latency_ms) AS INTEGER) FROM ledger WHERE verdict <> 'missed'");
    eprintln!("{} judged, {missed} missed; slowest verdict {judged} ms", parts - missed);
    assert!(judged < 5000, "a verdict came {judged} ms after its frame");
    plant.reconciles();
}

/// With a deadline that nothing can meet every part is missed, says how late, and its answer is no pass.
#[test]
fn what_is_too_late_is_missed() {
    let broker = Broker::start();
    let receiver = Receiver::start(broker_port(&broker), "linesight/local", "a", PERIOD, WAY);
    let shared = mqtt(&broker);
    // a part that waits for its turn is late before its inference starts
    let more = "realtime = false\nrepeat = true\ndeadline_ms = 1";
    let mut plant = Plant::new(&shared, &line("a", &sample(), washer(), more));
    plant.start();
    plant.until("parts", |p| p.counter("a", "parts") >= 20);
    plant.stop();
    let late = plant.count(
        "SELECT count(*) FROM ledger WHERE verdict = 'missed' AND late_ms > 0 AND reasons LIKE '%deadline of 1 ms%'",
    );
    let all = plant.count("SELECT count(*) FROM ledger WHERE part >= 0");
    eprintln!("{late} of {all} parts later than 1 ms");
    assert!(late > all / 2, "{late} of {all}");
    assert_eq!(plant.count("SELECT count(*) FROM ledger WHERE verdict = 'missed'"), late);
    let passes: Vec<u64> = receiver.with(|t| {
        t.answers.iter().filter(|a| a.2.as_ref().is_some_and(|v| v["verdict"] == "pass")).map(|a| a.1).collect()
    });
    let passed = plant.parts("a");
    for part in passes {
        assert_eq!(passed[part as usize].2, "pass", "part {part} was answered as pass");
    }
    plant.reconciles();
}

const PERIOD: Duration = Duration::from_millis(200);
const WAY: Duration = Duration::from_millis(700);

fn broker_port(broker: &Broker) -> u16 {
    url::Url::parse(&broker.url()).unwrap().port().unwrap()
}

fn mqtt(broker: &Broker) -> String {
    format!("[mqtt]\nurl = \"{}\"\nheartbeat_ms = 200", broker.url())
}

/// What the receiver was told: part and verdict, in the order of arrival.
fn answers(receiver: &Receiver) -> Vec<(u64, String)> {
    receiver.with(|t| {
        let told = t.answers.iter().filter_map(|a| a.2.as_ref().map(|v| (a.1, v)));
        told.map(|(part, v)| (part, v["verdict"].as_str().unwrap().to_owned())).collect()
    })
}

/// Every answer is in the ledger with the verdict that was answered, every rejected one in the spool or delivered, and no
/// number was given twice.
#[track_caller]
fn ledger_knows(plant: &Plant, answers: &[(u64, String)]) {
    let rows: BTreeMap<u64, String> = plant.parts("a").into_iter().map(|r| (r.0, r.2)).collect();
    assert_eq!(rows.len(), plant.parts("a").len(), "a part number was given twice");
    for (part, verdict) in answers {
        assert_eq!(rows.get(part), Some(verdict), "part {part} was answered as {verdict}\n{}", plant.log());
    }
    let mut seen: BTreeMap<u64, &String> = BTreeMap::new();
    for (part, verdict) in answers {
        assert!(seen.insert(*part, verdict).is_none_or(|v| v == verdict), "part {part} was answered as two things");
    }
    let lost = plant.count("SELECT count(*) FROM ledger WHERE verdict = 'reject' AND event NOT IN (SELECT id FROM spool) AND delivered_at IS NULL");
    assert_eq!(lost, 0, "rejected parts that are neither in the spool nor delivered");
}

/// SIGKILL at any moment: the next start knows every part that was answered.
#[test]
fn killed_under_load_the_ledger_knows_every_answer() {
    let broker = Broker::start();
    let receiver = Receiver::start(broker_port(&broker), "linesight/local", "a", PERIOD, WAY);
    let mut plant = Plant::new(&mqtt(&broker), &line("a", &sample(), washer(), "realtime = false\nrepeat = true"));
    let cycles = if full() { 20 } else { 3 };
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..cycles {
        let before = answers(&receiver).len();
        let more = random.usize(3..40);
        plant.start();
        plant.until("answers", |_| answers(&receiver).len() >= before + more);
        std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        plant.kill();
    }
    // what is on its way in the broker
    plant.start();
    let before = answers(&receiver).len();
    plant.until("answers", |_| answers(&receiver).len() > before);
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let told = answers(&receiver);
    ledger_knows(&plant, &told);
    plant.reconciles();
    let interrupted = plant.count("SELECT count(*) FROM ledger WHERE verdict = 'interrupted'");
    let parts = plant.parts("a").len();
    eprintln!("{cycles} kills: {} answers, {parts} parts in the ledger, {interrupted} interrupted windows", told.len());
    assert_eq!(interrupted, cycles, "{}", plant.log());
}

/// SIGTERM at any moment: what was judged is recorded, nothing is interrupted.
#[test]
fn terminated_under_load_everything_judged_is_kept() {
    let broker = Broker::start();
    let receiver = Receiver::start(broker_port(&broker), "linesight/local", "a", PERIOD, WAY);
    let mut plant = Plant::new(&mqtt(&broker), &line("a", &sample(), washer(), "realtime = false\nrepeat = true"));
    let cycles = if full() { 20 } else { 2 };
    let mut random = fastrand::Rng::with_seed(8);
    let (mut parts, mut times) = (0, Vec::new());
    for _ in 0..cycles {
        plant.start();
        let more = random.u64(3..40);
        plant.until("parts", |p| p.counter("a", "parts") >= more);
        let stopped = Instant::now();
        let (report, code) = plant.stop();
        times.push(stopped.elapsed());
        assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
        parts += report["lines"][0]["counters"]["parts"].as_u64().unwrap();
        assert_eq!(plant.parts("a").len() as u64, parts, "parts that were judged are not in the ledger");
    }
    ledger_knows(&plant, &answers(&receiver));
    plant.reconciles();
    assert_eq!(plant.count("SELECT count(*) FROM ledger WHERE verdict = 'interrupted'"), 0);
    assert_eq!(receiver.alive().as_deref(), Some("stopped"));
    times.sort();
    eprintln!(
        "{cycles} stops: {parts} parts; a stop took {:?} (median), {:?} (longest)",
        times[times.len() / 2],
        times.last()
    );
}

/// Something fills the disk while the line works: verdicts go on, into the journal and then as missed; when there is room again
/// all numbers are in the ledger.
#[test]
fn a_full_disk_stops_no_verdicts() {
    let Some(disk) = Disk::new("96m") else { return };
    let mut plant = Plant::new("", &line("a", &fast(1000), still_model(), ""));
    plant.move_database(&disk.0.path().join("spool.db"));
    plant.start();
    plant.until("parts", |p| p.counter("a", "parts") > 50);
    let ballast = disk.0.path().join("ballast");
    // the write that finds no room leaves what fits
    let _ = std::fs::write(&ballast, vec![1; 96 << 20]);
    plant.until("the journal to be full", |p| p.log().contains("is not recorded yet and becomes missed"));
    let parts = plant.counter("a", "parts");
    plant.until("more parts", |p| p.counter("a", "parts") > parts + 100);
    let put_off = plant.counter("a", "parts") - parts;
    std::fs::remove_file(&ballast).unwrap();
    plant.until("recording", |p| {
        p.count_or("SELECT count(*) FROM ledger WHERE reasons LIKE '%could not be recorded in time%'") > 0
    });
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let counted = report["lines"][0]["counters"]["parts"].as_u64().unwrap();
    let rows = plant.parts("a");
    let late = plant.count("SELECT count(*) FROM ledger WHERE reasons LIKE '%could not be recorded in time%'");
    eprintln!("{counted} parts, at least {put_off} while nothing could be recorded; {late} recorded late, as missed");
    assert_eq!(rows.len() as u64, counted);
    assert!(rows.iter().enumerate().all(|(i, r)| r.0 == i as u64), "numbers have gaps");
    plant.reconciles();
}

/// A part is a reject only when 2 of its 3 frames are; each part has one row, made of up to three frames.
#[test]
fn debounce_makes_one_verdict_of_several_frames() {
    let more = "realtime = false\n[line.debounce]\nreject = 2\nof = 3";
    let mut plant = Plant::new("", &line("a", &sample(), washer(), more));
    plant.start();
    let (report, code) = plant.end();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let parts = plant.parts("a");
    let truth = truth("sample-run");
    assert_eq!(parts.len(), truth.parts.len(), "{parts:?}");
    let defective: Vec<u64> = truth.parts.iter().filter(|p| p.defective).map(|p| p.part).collect();
    let rejected: Vec<u64> = parts.iter().filter(|p| p.2 == "reject").map(|p| p.0).collect();
    let found = defective.iter().filter(|p| rejected.contains(p)).count();
    eprintln!("{found} of {} defective parts found, {} rejected", defective.len(), rejected.len());
    assert!(found * 10 >= defective.len() * 8, "{rejected:?} of {defective:?}");
    assert!(plant.count("SELECT count(*) FROM ledger WHERE frames >= 2") > 40);
    assert_eq!(plant.count("SELECT count(*) FROM ledger WHERE frames > 3"), 0);
    plant.reconciles();
}

/// Two files, RTSP and GenICam at once, and a fifth line whose source does not exist: every ledger reconciles, and the four
/// notice nothing of the fifth. Cameras: every frame that the line took is one part.
#[test]
fn a_broken_line_does_not_touch_the_others() {
    let _camera = FakeCamera::start("linesight-run");
    let server = RtspServer::start();
    let lines = [
        line("file", &sample(), washer(), "repeat = true"),
        line("again", &sample(), washer(), "repeat = true"),
        line("rtsp", &server.source(), still_model(), ""),
        line("genicam", FakeCamera::SOURCE, still_model(), "[line.camera]\npacket_size = 9000\nfps = 20"),
        line("broken", "rtsp://127.0.0.1:9/nothing", still_model(), ""),
    ];
    let mut plant = Plant::new("", &lines.concat());
    plant.start();
    let time = Duration::from_secs(if full() { 120 } else { 8 });
    for name in ["file", "again", "rtsp", "genicam"] {
        plant.until(name, |p| p.line(name).is_some_and(|l| l["state"] == "live"));
    }
    let since = Instant::now();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    while since.elapsed() < time {
        let status = plant.status().unwrap();
        for l in status["lines"].as_array().unwrap() {
            *seen.entry(format!("{} {}", l["line"].as_str().unwrap(), l["state"].as_str().unwrap())).or_default() += 1;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let memory = footprint(plant.pid());
    let (report, _) = plant.stop();
    eprintln!("{seen:#?}\nRSS {} MB, {} descriptors, {} threads", memory.0 / 1024, memory.1, memory.2);
    for l in report["lines"].as_array().unwrap() {
        let c = &l["counters"];
        eprintln!(
            "{}: {} frames, {} parts, {} missed, dropped {}, {} reconnects, latency ms {}",
            l["line"], c["frames"], c["parts"], c["missed"], c["dropped"], c["reconnects"], l["totals"]["latency_ms"]
        );
        if l["line"] == "broken" {
            assert_eq!(c["frames"], 0);
            continue;
        }
        assert_eq!(c["reconnects"], 0, "{l:#}");
        assert!(c["frames"].as_u64().unwrap() > 20 && c["parts"].as_u64().unwrap() > 0, "{l:#}");
    }
    assert!(
        seen.keys().all(|k| !k.starts_with("broken")
            || k == "broken reconnecting"
            || k == "broken starting"
            || k == "broken failed"),
        "{seen:#?}"
    );
    for name in ["file", "again", "rtsp", "genicam"] {
        assert!(!seen.contains_key(&format!("{name} reconnecting")), "{seen:#?}");
    }
    for name in ["rtsp", "genicam"] {
        let frames: Vec<u64> = plant.parts(name).iter().map(|p| p.1).collect();
        assert!(frames.iter().enumerate().all(|(i, f)| *f == i as u64), "line {name} misses a frame: {frames:?}");
    }
    plant.reconciles();
}

/// A camera that dies again and again: the line is live again each time soon after the camera is, with no more memory,
/// descriptors or threads than before, and its part numbers go on.
#[track_caller]
fn a_line_survives(source: &str, more: &str, mut kill_and_return: impl FnMut(&dyn Fn(&str, bool)) -> Instant) {
    let mut plant = Plant::new("", &line("a", source, still_model(), more));
    plant.start();
    let live = |p: &Plant| p.line("a").is_some_and(|l| l["state"] == "live");
    plant.until("live", live);
    let cycles = if full() { 50 } else { 2 };
    let mut first = None;
    let mut back = Vec::new();
    for _ in 0..cycles {
        let since = kill_and_return(&|what, wanted| plant.until(what, |p| live(p) == wanted));
        plant.until("the return", live);
        back.push(since.elapsed());
        let frames = plant.counter("a", "frames");
        plant.until("frames", |p| p.counter("a", "frames") > frames + 10);
        first.get_or_insert(footprint(plant.pid()));
    }
    let last = footprint(plant.pid());
    back.sort();
    eprintln!(
        "{source}: {cycles} returns: live again after {:?} (median), {:?} (longest); RSS, descriptors, threads: {first:?}, then {last:?}",
        back[back.len() / 2],
        back.last().unwrap()
    );
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["lines"][0]["counters"]["reconnects"].as_u64().unwrap(), cycles);
    let first = first.unwrap();
    assert!(last.1 <= first.1 + 4 && last.2 <= first.2 + 4, "descriptors or threads grow: {first:?}, {last:?}");
    let parts = plant.parts("a");
    assert!(parts.iter().enumerate().all(|(i, p)| p.0 == i as u64));
    plant.reconciles();
}

#[test]
fn a_line_survives_its_rtsp_camera() {
    let mut server = RtspServer::start();
    a_line_survives(&server.source(), "", |until| {
        server.kill();
        until("the loss", false);
        server.come_back()
    });
}

#[test]
fn a_line_survives_its_genicam_camera() {
    let mut camera = FakeCamera::start("linesight-run");
    a_line_survives(FakeCamera::SOURCE, "[line.camera]\npacket_size = 9000\nfps = 30", |until| {
        camera.kill();
        until("the loss", false);
        camera.come_back()
    });
}

/// What the line's own mask leaves out is not judged: with all but a corner of the part left out no part is rejected.
#[test]
fn a_lines_own_mask_leaves_out() {
    let size = |key: &str| {
        let manifest: toml::Table = std::fs::read_to_string(washer().join("model.toml")).unwrap().parse().unwrap();
        manifest["input"][key].as_integer().unwrap() as u32
    };
    let (width, height) = (size("width"), size("height"));
    let folder = folder();
    let mask = folder.path().join("mask.png");
    image::GrayImage::from_fn(width, height, |x, y| {
        image::Luma([if x < width / 8 && y < height / 8 { 255 } else { 0 }])
    })
    .save(&mask)
    .unwrap();
    let verdicts = |more: &str| {
        let mut plant = Plant::new("", &line("a", &sample(), washer(), &format!("realtime = false\n{more}")));
        plant.start();
        let (report, code) = plant.end();
        assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
        (plant.parts("a").len(), plant.count("SELECT count(*) FROM ledger WHERE verdict = 'reject'"))
    };
    let parts = truth("sample-run").parts.len();
    let (all, rejected) = verdicts("");
    assert!(all == parts && rejected > 0, "{all} parts, {rejected} rejected");
    assert_eq!(verdicts(&format!("mask = \"{}\"", mask.display())), (parts, 0));
}

/// Only the line that changed is started anew; a file that is broken changes nothing; SIGHUP does the same at once.
#[test]
fn a_changed_file_reloads_one_line() {
    let lot = |lot: &str| {
        [
            line("a", &sample(), washer(), "repeat = true"),
            line("b", &sample(), washer(), &format!("repeat = true\nrealtime = false\nlot = \"{lot}\"")),
        ]
        .concat()
    };
    let mut plant = Plant::new("", &lot("one"));
    plant.start();
    plant.until("parts", |p| p.counter("b", "parts") > 0 && p.counter("a", "frames") > 0);
    let frames = plant.counter("a", "frames");
    plant.write("", "[[line]]\nname = \"a\"");
    plant.signal(rustix::process::Signal::HUP);
    plant.until("the refusal", |p| p.log().contains("configuration not reloaded"));
    plant.write("", &lot("two"));
    plant.signal(rustix::process::Signal::HUP);
    plant.until("the new lot", |p| p.count("SELECT count(*) FROM ledger WHERE lot = 'two'") > 0);
    assert!(plant.counter("a", "frames") >= frames, "line a was started anew");
    // the file alone is enough, and a line can go
    plant.write("", &line("a", &sample(), washer(), "repeat = true"));
    plant.until("line b to go", |p| p.line("b").is_none());
    assert!(plant.counter("a", "frames") > frames);
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let b = plant.parts("b");
    assert!(b.iter().enumerate().all(|(i, p)| p.0 == i as u64), "{b:?}");
    assert_eq!(plant.count("SELECT count(*) FROM ledger WHERE verdict = 'interrupted'"), 0);
    plant.reconciles();
}

/// Reports and anomalies reach the review server, which shows the line; what it got is what the ledger has.
#[test]
fn reports_and_anomalies_reach_the_review_server() {
    let data = folder();
    let config = linesight::review::Config::new(data.path(), ([127, 0, 0, 1], 0).into());
    let review = linesight::review::Server::start(config).unwrap();
    let shared = format!("[review]\nurl = \"{}\"", review.url());
    let mut plant = Plant::new(&shared, &line("belt", &sample(), washer(), "realtime = false"));
    plant.start();
    let (report, code) = plant.end();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    assert_eq!(report["waiting"], 0, "{report:#}");
    let get = |path: &str| -> Value { reqwest::blocking::get(review.url() + path).unwrap().json().unwrap() };
    let lines = get("/api/v1/lines");
    let known = &lines["items"][0];
    let counters = &report["lines"][0]["counters"];
    assert_eq!(known["report"]["line"], "belt", "{lines:#}");
    assert_eq!(known["report"]["state"], "stopped", "{lines:#}");
    assert_eq!(known["report"]["counters"]["parts"], counters["parts"], "{lines:#}");
    let db = data.path().join("review.db");
    assert_eq!(
        count(&db, "SELECT count(*) FROM parts"),
        counters["parts"].as_i64().unwrap(),
        "parts without pictures arrive, too"
    );
    let anomalies = get("/api/v1/anomalies?limit=100");
    assert_eq!(anomalies["items"].as_array().unwrap().len() as u64, counters["rejected"].as_u64().unwrap());
    plant.reconciles();
    review.stop();
}

/// Every form of a source is known to `--check`, and a good file is called good without a camera being there.
#[test]
fn check_takes_every_kind_of_source() {
    let home = folder();
    std::fs::create_dir(home.path().join("in")).unwrap();
    let sources = [
        "watch:in",
        "rtsp://10.0.0.9/a",
        "v4l2:/dev/video9",
        "genicam:Basler-1",
        "pipeline:videotestsrc",
        "http://h/a.mp4",
    ];
    let lines: String = sources.iter().enumerate().map(|(i, s)| line(&format!("l{i}"), s, still_model(), "")).collect();
    let file = home.path().join("line.toml");
    std::fs::write(&file, lines).unwrap();
    let run = linesight(["run".as_ref(), "--check".as_ref(), "--config".as_ref(), file.as_os_str()]);
    assert!(run.succeeds().out.contains("is good: 6 lines"), "{run:#?}");
}

/// A camera alone at its rate: every frame that it gave is a part with a verdict in the ledger, in order, none missed.
#[track_caller]
fn every_frame_gets_its_verdict(name: &str, source: &str, more: &str) {
    let mut plant = Plant::new("", &line(name, source, still_model(), more));
    plant.start();
    plant.until("live", |p| p.line(name).is_some_and(|l| l["state"] == "live"));
    let wanted = if full() { 1800 } else { 120 };
    let since = Instant::now();
    while plant.counter(name, "frames") < wanted {
        assert!(since.elapsed() < Duration::from_secs(200), "{:#?}\n{}", plant.status(), plant.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (seconds, memory) = (since.elapsed().as_secs_f64(), footprint(plant.pid()));
    let (report, code) = plant.stop();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    let l = &report["lines"][0];
    let c = &l["counters"];
    let frames: Vec<u64> = plant.parts(name).iter().map(|p| p.1).collect();
    eprintln!(
        "{name}: {} frames in {seconds:.1} s, {} parts, {} missed, dropped {}; capture to verdict ms {}; RSS {} MB",
        c["frames"],
        frames.len(),
        c["missed"],
        c["dropped"],
        l["totals"]["latency_ms"],
        memory.0 / 1024
    );
    assert!(frames.iter().enumerate().all(|(i, f)| *f == i as u64), "frames have gaps: {frames:?}");
    // what is on its way when the line stops is judged, too, or was never taken
    assert!(c["frames"].as_u64().unwrap() - frames.len() as u64 <= 1, "{c:#}");
    assert_eq!(c["dropped"]["source"], Value::Null, "the source lost frames: {c:#}");
    plant.reconciles();
    if full() {
        assert_eq!(
            (c["missed"].as_u64(), c["dropped"].as_object().map(serde_json::Map::len)),
            (Some(0), Some(0)),
            "{c:#}"
        );
    }
}

#[test]
fn every_frame_of_a_genicam_camera_gets_its_verdict() {
    let _camera = FakeCamera::start("linesight-run");
    every_frame_gets_its_verdict("genicam", FakeCamera::SOURCE, "[line.camera]\npacket_size = 9000\nfps = 30");
}

#[test]
fn every_frame_of_an_rtsp_camera_gets_its_verdict() {
    let server = RtspServer::start();
    every_frame_gets_its_verdict("rtsp", &server.source(), "");
}

/// 60 parts a second: every part is answered once, in order; how long from the frame's arrival to the receiver is printed.
#[test]
fn sixty_parts_a_second_are_answered() {
    let broker = Broker::start();
    let receiver = Receiver::start(broker_port(&broker), "linesight/local", "a", PERIOD, WAY);
    let mut plant = Plant::new(&mqtt(&broker), &line("a", &fast(60), still_model(), ""));
    let wanted = if full() { 3000 } else { 180 };
    // the receiver's clock and the wall's
    let (monotonic, wall) = (Instant::now(), jiff::Timestamp::now());
    plant.start();
    plant.until("answers", |_| answers(&receiver).len() >= wanted);
    let (_, code) = plant.stop();
    assert_eq!(code, Some(0), "{}", plant.log());
    let told = answers(&receiver);
    ledger_knows(&plant, &told);
    assert!(told.iter().enumerate().all(|(i, a)| a.0 == i as u64), "answers are missing or out of order");
    let mut times: Vec<f64> = receiver.with(|t| {
        t.answers
            .iter()
            .filter_map(|(at, _, answer)| {
                let captured: jiff::Timestamp = answer.as_ref()?["captured_at"].as_str()?.parse().ok()?;
                Some((*at - monotonic).as_secs_f64() - captured.duration_since(wall).as_secs_f64())
            })
            .map(|s| s * 1e3)
            .collect()
    });
    times.sort_by(f64::total_cmp);
    let q = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    eprintln!(
        "{} answers; frame to receiver ms: p50 {:.1}, p95 {:.1}, p99 {:.1}, max {:.1}",
        told.len(),
        q(0.5),
        q(0.95),
        q(0.99),
        q(1.0)
    );
    plant.reconciles();
}

/// Nobody listens at the broker's address: parts are judged and recorded all the same, and the answers that did not leave are
/// counted.
#[test]
fn a_line_works_without_a_broker() {
    let shared = format!("[mqtt]\nurl = \"mqtt://{}\"", nobody());
    let mut plant = Plant::new(&shared, &line("a", &sample(), washer(), "realtime = false"));
    plant.start();
    let (report, code) = plant.end();
    assert_eq!(code, Some(0), "{report:#}\n{}", plant.log());
    assert_eq!(report["lines"][0]["counters"]["parts"], truth("sample-run").parts.len());
    assert!(plant.log().contains("no answers leave until the broker is there"), "{}", plant.log());
    plant.reconciles();
}
