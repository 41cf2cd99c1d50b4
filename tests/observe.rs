//! What a person can see of a running line: the camera's health on real pictures with known faults, metrics, status, probes.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it inside test functions, not in their helpers")]

mod support;

use gstreamer_video as gst_video;
use image::RgbImage;
use linesight::capture::{Capture, Source};
use linesight::deliver;
use linesight::event::{Check, LineState, ModelId, Verdict};
use linesight::frame::Frame;
use linesight::model::Model;
use linesight::observe::health::{DIRT_LOOKS, Health, HealthWatch, IN_A_ROW, LEARN};
use linesight::observe::{Extra, Kind, LineStatus, Lines, Report, Server, Sources};
use linesight::prepare::locate::Finder;
use linesight::prepare::placement::Placement;
use linesight::prepare::shrink::{Crop, Shrinker, Size};
use linesight::prepare::track::Tracker;
use linesight::prepare::{Preparer, Registration};
use opencv::core::{BORDER_REFLECT_101, Mat, Vec3b};
use opencv::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use support::{LONG, asset, linesight, nobody, still_model, stills, truth, washer};

/// A part as the line hands it over: the frame, and where the part was expected.
#[derive(Clone)]
struct Seen {
    picture: Arc<RgbImage>,
    crop: Crop,
}

/// What can be wrong with a camera.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Blur(f64),
    Gain(f32),
    /// Contrast as of a camera that is set too hard: the mean stays.
    Hard(f32),
    Shift(i32, i32),
    /// A soft dark disc: its middle and radius.
    Spot(i32, i32, i32),
    Frozen,
}

impl Fault {
    /// The checks that must name it, and no others.
    fn checks(self) -> &'static [&'static str] {
        match self {
            Fault::None => &[],
            Fault::Blur(_) => &["focus"],
            // so much light that the metal's highlights have no detail left
            Fault::Gain(gain) if gain > 1.0 => &["exposure", "lamp"],
            Fault::Gain(_) => &["lamp"],
            Fault::Hard(_) => &["exposure"],
            Fault::Shift(..) => &["shift"],
            Fault::Spot(..) => &["dirt"],
            Fault::Frozen => &["frozen"],
        }
    }

    fn apply(self, from: &RgbImage) -> RgbImage {
        let mut picture = from.clone();
        let (w, h) = (from.width() as i32, from.height() as i32);
        match self {
            Fault::None | Fault::Frozen => {}
            Fault::Blur(sigma) => {
                let m = Mat::new_rows_cols_with_bytes::<Vec3b>(h, w, from).unwrap();
                let mut out = Mat::default();
                let any = opencv::core::Size::new(0, 0);
                opencv::imgproc::gaussian_blur(&m, &mut out, any, sigma, sigma, BORDER_REFLECT_101).unwrap();
                picture.copy_from_slice(out.data_bytes().unwrap());
            }
            Fault::Gain(gain) => picture.iter_mut().for_each(|v| *v = (f32::from(*v) * gain).round() as u8),
            Fault::Hard(gain) => {
                // around the level in the middle of the picture, where the part is
                let (x0, y0) = (w / 2 - 150, h / 2 - 150);
                let middle = (y0..y0 + 300).flat_map(|y| (x0..x0 + 300).map(move |x| (x, y)));
                let (sum, n) = middle.fold((0u64, 0u64), |(s, n), (x, y)| {
                    (s + u64::from(from.get_pixel(x as u32, y as u32).0[1]), n + 1)
                });
                let mean = sum as f32 / n as f32;
                picture.iter_mut().for_each(|v| *v = ((f32::from(*v) - mean) * gain + mean).round() as u8);
            }
            Fault::Shift(dx, dy) => {
                for (x, y, p) in picture.enumerate_pixels_mut() {
                    let (fx, fy) = ((x as i32 - dx).clamp(0, w - 1), (y as i32 - dy).clamp(0, h - 1));
                    *p = *from.get_pixel(fx as u32, fy as u32);
                }
            }
            Fault::Spot(cx, cy, radius) => {
                for (x, y, p) in picture.enumerate_pixels_mut() {
                    let d = f64::from(x as i32 - cx).hypot(f64::from(y as i32 - cy)) / f64::from(radius);
                    let dark = 1.0 - 0.5 * (1.0 - d * d).max(0.0);
                    p.0.iter_mut().for_each(|v| *v = (f64::from(*v) * dark) as u8);
                }
            }
        }
        picture
    }
}

fn frame_of(picture: &RgbImage) -> Arc<Frame> {
    let (w, h) = picture.dimensions();
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, w, h).build().unwrap();
    assert_eq!(info.stride()[0] as u32, w * 3, "widths here need no padding");
    let buffer = gstreamer::Buffer::from_slice(picture.as_raw().clone());
    Arc::new(Frame::map(buffer, &info, 0, None).unwrap())
}

/// The parts of the sample's run at the gate, each located by the model's own locator.
fn belt() -> &'static (Model, Vec<Seen>) {
    static SEEN: OnceLock<(Model, Vec<Seen>)> = OnceLock::new();
    SEEN.get_or_init(|| {
        let model = Model::load(washer()).unwrap();
        let truth = truth("sample-run");
        let locator = model.locator.as_ref().unwrap();
        let (mut finder, mut tracker) = (Finder::new(locator).unwrap(), Tracker::new(locator));
        let mut shrinker = Shrinker::new();
        let source = Source::parse(asset("sample-run.mp4").to_str().unwrap()).unwrap();
        let mut capture = Capture::open(&source, false).unwrap();
        let mut seen = Vec::new();
        while let Some(frame) = capture.next_frame().unwrap() {
            // around the gate only: locating in every frame takes its time in a test build
            if !truth.parts.iter().any(|p| p.centre.abs_diff(frame.seq) <= 6) {
                continue;
            }
            let found = finder.find(&mut shrinker, &frame, &tracker.expected(frame.seq)).unwrap();
            for crossing in tracker.observe(frame.seq, &found) {
                let size = Size { width: frame.width(), height: frame.height() };
                let mut rgb = vec![0; size.area() * 3];
                let all = Crop { x: 0, y: 0, width: size.width, height: size.height };
                shrinker.rgb(&frame, all, size, &mut rgb).unwrap();
                let picture = Arc::new(RgbImage::from_raw(size.width, size.height, rgb).unwrap());
                seen.push(Seen { picture, crop: model.crop_of(crossing.crop) });
            }
        }
        assert_eq!(seen.len(), truth.parts.len());
        (model, seen)
    })
}

/// Pictures of single parts of the run, under a model of such pictures.
fn fixed() -> &'static (Model, Vec<Seen>) {
    static SEEN: OnceLock<(Model, Vec<Seen>)> = OnceLock::new();
    SEEN.get_or_init(|| {
        let model = Model::load(still_model()).unwrap();
        let part = |picture: RgbImage| {
            let crop = Crop { x: 0, y: 0, width: picture.width(), height: picture.height() };
            Seen { picture: Arc::new(picture), crop }
        };
        (model, stills("sample-run", 40).into_iter().map(part).collect())
    })
}

/// A camera that is watched.
struct Camera<'a> {
    model: &'a Model,
    preparer: Preparer,
    health: Health,
    input: Vec<u8>,
}

impl<'a> Camera<'a> {
    fn new(model: &'a Model) -> Self {
        Camera {
            model,
            preparer: Preparer::new(&model.preparation).unwrap(),
            health: Health::new(model).unwrap(),
            input: vec![0; model.preparation.input.area() * 3],
        }
    }

    /// One part under a fault.
    fn look(&mut self, seen: &Seen, fault: Fault) {
        let frame = frame_of(&fault.apply(&seen.picture));
        let roi = Crop { x: 0, y: 0, width: frame.width(), height: frame.height() };
        let crop = match fault {
            // on a belt the part is found where it is
            Fault::Shift(dx, dy) if self.model.locator.is_some() => seen.crop.shifted(dx, dy),
            _ => seen.crop,
        };
        let pose = self.preparer.prepare(&self.model.preparation, &frame, crop, &mut self.input).unwrap();
        self.health.frame(&frame, roi).unwrap();
        self.health.part(&frame, roi, crop, &pose.placement).unwrap();
    }

    fn alerts(&self) -> BTreeSet<String> {
        self.health.checks().into_iter().filter(|(_, c)| c.alert).map(|(name, _)| name).collect()
    }
}

fn figures(checks: &BTreeMap<String, Check>) -> String {
    checks.iter().map(|(n, c)| format!(" {n} {:.3}{}", c.value, if c.alert { "!" } else { "" })).collect()
}

/// Healthy looks until everything is learned, then the fault for as long as dirt needs; checks what alerts.
fn each_fault(model: &Model, parts: &[Seen], faults: &[Fault]) {
    for &fault in faults {
        let mut camera = Camera::new(model);
        let mut parts = parts.iter().cycle();
        for seen in parts.by_ref().take(LEARN.max(DIRT_LOOKS)) {
            camera.look(seen, Fault::None);
            assert_eq!(camera.alerts(), BTreeSet::new(), "before {fault:?}: {:?}", camera.health.checks());
        }
        let still = parts.clone().next().unwrap();
        let mut raised = BTreeSet::new();
        for seen in parts.take(DIRT_LOOKS + 5) {
            camera.look(if fault == Fault::Frozen { still } else { seen }, fault);
            raised.extend(camera.alerts());
        }
        let checks = camera.health.checks();
        eprintln!("{:22}{}", format!("{fault:?}"), figures(&checks));
        for check in checks.values().filter_map(|c| c.says.as_ref()) {
            eprintln!("{:22}   \"{check}\"", "");
        }
        assert_eq!(raised, fault.checks().iter().map(|c| c.to_string()).collect(), "{fault:?}: {checks:#?}");
        for (name, check) in &checks {
            assert_eq!(check.alert, fault.checks().contains(&name.as_str()), "{fault:?}: {name}");
            assert_eq!(check.alert, check.says.is_some(), "an alert says what to do: {fault:?}: {name}: {check:?}");
        }
    }
}

#[test]
fn each_fault_of_a_belt_camera_raises_its_own_check() {
    let (model, parts) = belt();
    let faults = [
        Fault::None,
        Fault::Blur(2.0),
        Fault::Gain(0.6),
        Fault::Gain(1.35),
        Fault::Hard(1.7),
        Fault::Shift(0, 15),
        Fault::Spot(500, 400, 28),
        Fault::Frozen,
    ];
    each_fault(model, parts, &faults);
}

#[test]
fn each_fault_of_a_fixed_camera_raises_its_own_check() {
    let (model, parts) = fixed();
    assert_ne!(model.preparation.registration, Registration::Rigid);
    let faults = [
        Fault::None,
        Fault::Blur(2.0),
        Fault::Gain(0.6),
        Fault::Gain(1.35),
        Fault::Hard(1.7),
        Fault::Shift(15, 0),
        Fault::Spot(140, 260, 24),
        Fault::Frozen,
    ];
    each_fault(model, parts, &faults);
}

#[test]
fn one_look_is_no_alert() {
    let (model, parts) = fixed();
    let mut camera = Camera::new(model);
    let mut parts = parts.iter().cycle();
    for _ in 0..4 {
        for seen in parts.by_ref().take(6) {
            camera.look(seen, Fault::None);
        }
        for seen in parts.by_ref().take(1) {
            camera.look(seen, Fault::Gain(0.4));
        }
    }
    assert_eq!(camera.alerts(), BTreeSet::new());
    assert_eq!(camera.health.turned(), []);
    for seen in parts.take(IN_A_ROW as usize - 1) {
        camera.look(seen, Fault::Gain(0.4));
        assert_eq!(camera.alerts(), BTreeSet::new(), "several looks are needed");
    }
}

#[test]
fn an_alert_goes_when_the_cause_has_gone() {
    let (model, parts) = fixed();
    let mut camera = Camera::new(model);
    let mut parts = parts.iter().cycle();
    for (fault, wanted) in
        [(Fault::Gain(0.6), Some("lamp")), (Fault::None, None), (Fault::Frozen, Some("frozen")), (Fault::None, None)]
    {
        let still = parts.clone().next().unwrap();
        for seen in parts.by_ref().take(10) {
            camera.look(if fault == Fault::Frozen { still } else { seen }, fault);
        }
        assert_eq!(camera.alerts(), wanted.map(str::to_owned).into_iter().collect(), "{fault:?}");
    }
    let turned: Vec<_> = camera.health.turned().into_iter().map(|(name, says)| (name, says.is_some())).collect();
    assert_eq!(turned, [("lamp", true), ("lamp", false), ("frozen", true), ("frozen", false)]);
}

/// What a look costs; printed, not judged.
#[test]
fn the_cost_of_a_look() {
    let (model, parts) = belt();
    let mut health = Health::new(model).unwrap();
    let (mut frames, mut looks, n) = (Duration::ZERO, Duration::ZERO, 20);
    for seen in &parts[..n] {
        let frame = frame_of(&seen.picture);
        let roi = Crop { x: 0, y: 0, width: frame.width(), height: frame.height() };
        let lap = Instant::now();
        health.frame(&frame, roi).unwrap();
        frames += lap.elapsed();
        let lap = Instant::now();
        health.part(&frame, roi, seen.crop, &seen.crop.into()).unwrap();
        looks += lap.elapsed();
    }
    let ms = |d: Duration| d.as_secs_f64() * 1e3 / n as f64;
    eprintln!("a look at a 1280x720 RGB frame {:.2} ms, at a part of it {:.2} ms", ms(frames), ms(looks));
}

/// A part that lies at an angle is looked at upright, and is as sharp as the taught ones.
#[test]
fn parts_at_an_angle_are_looked_at() {
    let (model, parts) = fixed();
    let mut health = Health::new(model).unwrap();
    for seen in parts.iter().take(8) {
        let frame = frame_of(&seen.picture);
        let (side, middle) = (f64::from(seen.crop.width), f64::from(seen.crop.width) / 2.0);
        // the washer is round: turned, it looks nearly the same
        let turned = Placement::turned([middle, middle], 0.3, side, side);
        health.part(&frame, seen.crop, seen.crop, &turned).unwrap();
    }
    let checks = health.checks();
    eprintln!("at an angle{}", figures(&checks));
    assert!((0.75..1.25).contains(&checks["lamp"].value), "{checks:?}");
    assert!(checks["focus"].value > 0.7, "{checks:?}");
}

/// The whole way: frames and parts of a line, through the watch's own thread, into the line's status.
#[test]
fn the_watch_writes_into_the_status() {
    let (model, parts) = fixed();
    let status = Arc::new(LineStatus::new("a", "cam"));
    let watch = HealthWatch::start_every(model, status.clone(), Duration::ZERO).unwrap();
    let look_until = |what: &str, fault: Fault, holds: &dyn Fn(&Check) -> bool| {
        let seen: Vec<_> = parts.iter().take(10).map(|s| (frame_of(&fault.apply(&s.picture)), s.crop)).collect();
        let deadline = Instant::now() + LONG;
        for (frame, crop) in seen.iter().cycle() {
            watch.frame(frame, *crop);
            watch.part(frame, *crop, *crop, &(*crop).into());
            if status.snapshot().health.get("lamp").is_some_and(holds) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} took too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    look_until("a healthy look", Fault::None, &|c| !c.alert);
    look_until("the lamp's alert", Fault::Gain(0.6), &|c| c.alert);
    drop(watch);
}

fn model_id(name: &str) -> ModelId {
    ModelId { name: name.into(), version: "3".into(), sha256: "ab".into() }
}

/// Two lines with something in every figure.
fn lines() -> Lines {
    let lines = Lines::default();
    let a = Arc::new(LineStatus::new("east", "rtsp://cam/1"));
    a.set_model(model_id("washer"), 4.25);
    for (verdict, ms, late) in [
        (Verdict::Pass, 4, false),
        (Verdict::Pass, 6, false),
        (Verdict::Reject, 30, false),
        (Verdict::Unsure, 70, false),
        (Verdict::Missed, 9000, true),
    ] {
        a.frame();
        a.verdict(verdict, Duration::from_millis(ms), late);
    }
    a.dropped("overload", 7);
    a.dropped("source", 2);
    let check = |value: f64, alert: bool| Check {
        value,
        usual: 1.0,
        alert,
        says: alert.then(|| "parts are 31 % darker than when taught".to_owned()),
    };
    a.set_health([("lamp".to_owned(), check(0.69, true)), ("focus".to_owned(), check(0.98, false))].into());
    a.set_drift([("ewma".to_owned(), check(0.2, false))].into());
    lines.set(a);
    let b = Arc::new(LineStatus::new("west", "v4l2:/dev/video0"));
    b.reconnected();
    b.set_state(LineState::Reconnecting, Some("the camera is not there".into()));
    lines.set(b);
    lines
}

fn spool() -> deliver::Status {
    deliver::Status {
        recorded: 12,
        delivered: 5,
        waiting: 3,
        set_aside: 1,
        attempts: 9,
        bytes_uploaded: 1000,
        dead: 2,
        dropped: 6,
        spool_bytes: 4096,
        targets: vec![deliver::TargetStatus { name: "hall \"3\"".into(), delivered: 5, ..Default::default() }],
        ..Default::default()
    }
}

fn serve(lines: Lines) -> Server {
    let mut sources = Sources::new(lines);
    sources.deliver = Some(Box::new(spool));
    let sent = |to: &str, n: f64| Extra {
        name: "linesight_mqtt_published",
        help: "Answers that the broker acknowledged",
        kind: Kind::Counter,
        labels: vec![("broker".into(), to.into())],
        read: Box::new(move || n),
    };
    sources.extra = vec![sent("one", 4.0), sent("two", 6.0)];
    Server::start("127.0.0.1:0".parse().unwrap(), sources).unwrap()
}

fn get(server: &Server, path: &str) -> (u16, String, String) {
    let client = reqwest::blocking::Client::builder().timeout(LONG).build().unwrap();
    let answer = client.get(server.url() + path).send().unwrap();
    let kind = answer.headers().get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), kind, answer.text().unwrap())
}

/// Every sample line of a text: name with labels, and value.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| l.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

#[test]
fn every_figure_is_there_and_parses() {
    let server = serve(lines());
    let (code, kind, text) = get(&server, "/metrics");
    assert_eq!(code, 200);
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let parsed = openmetrics_parser::openmetrics::parse_openmetrics(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    assert!(parsed.families.len() > 30, "{}", parsed.families.len());
    let found = samples(&text);
    for (name, value) in [
        ("linesight_build_info{version=\"0.1.0\"}", 1.0),
        ("linesight_frames_total{line=\"east\"}", 5.0),
        ("linesight_parts_total{line=\"east\",verdict=\"pass\"}", 2.0),
        ("linesight_parts_total{line=\"east\",verdict=\"reject\"}", 1.0),
        ("linesight_parts_total{line=\"east\",verdict=\"unsure\"}", 1.0),
        ("linesight_parts_total{line=\"east\",verdict=\"missed\"}", 1.0),
        ("linesight_parts_total{line=\"west\",verdict=\"pass\"}", 0.0),
        ("linesight_late_parts_total{line=\"east\"}", 1.0),
        ("linesight_dropped_frames_total{line=\"east\",reason=\"overload\"}", 7.0),
        ("linesight_dropped_frames_total{line=\"east\",reason=\"source\"}", 2.0),
        ("linesight_source_reconnects_total{line=\"west\"}", 1.0),
        ("linesight_line_state{line=\"east\",state=\"live\"}", 1.0),
        ("linesight_line_state{line=\"east\",state=\"failed\"}", 0.0),
        ("linesight_line_state{line=\"west\",state=\"reconnecting\"}", 1.0),
        ("linesight_threshold{line=\"east\"}", 4.25),
        ("linesight_model_info{line=\"east\",model=\"washer\",version=\"3\"}", 1.0),
        ("linesight_verdict_latency_seconds_bucket{le=\"0.005\",line=\"east\"}", 1.0),
        ("linesight_verdict_latency_seconds_bucket{le=\"0.01\",line=\"east\"}", 2.0),
        ("linesight_verdict_latency_seconds_bucket{le=\"+Inf\",line=\"east\"}", 5.0),
        ("linesight_verdict_latency_seconds_count{line=\"east\"}", 5.0),
        ("linesight_verdict_latency_seconds_sum{line=\"east\"}", 9.11),
        ("linesight_health{line=\"east\",check=\"lamp\"}", 0.69),
        ("linesight_health_usual{line=\"east\",check=\"lamp\"}", 1.0),
        ("linesight_health_alert{line=\"east\",check=\"lamp\"}", 1.0),
        ("linesight_health_alert{line=\"east\",check=\"focus\"}", 0.0),
        ("linesight_drift{line=\"east\",check=\"ewma\"}", 0.2),
        ("linesight_spool_waiting", 3.0),
        ("linesight_spool_set_aside", 1.0),
        ("linesight_spool_dead", 2.0),
        ("linesight_spool_bytes", 4096.0),
        ("linesight_anomalies_dropped_total", 6.0),
        ("linesight_target_delivered_total{target=\"hall \\\"3\\\"\"}", 5.0),
        ("linesight_line_hung{line=\"east\"}", 0.0),
        ("linesight_ledger_rows_total", 12.0),
        ("linesight_anomalies_delivered_total", 5.0),
        ("linesight_upload_attempts_total", 9.0),
        ("linesight_uploaded_bytes_total", 1000.0),
        ("linesight_mqtt_published_total{broker=\"one\"}", 4.0),
        ("linesight_mqtt_published_total{broker=\"two\"}", 6.0),
    ] {
        let got = found.get(name).copied();
        assert!(got.is_some_and(|v| (v - value).abs() < 1e-6), "{name}: {got:?}, {value} is wanted\n{text}");
    }
    assert!(!text.contains("linesight_last_frame_age_seconds{line=\"west\"}"), "there was no frame");
    for name in [
        "linesight_last_frame_age_seconds{line=\"east\"}",
        "linesight_frame_rate{line=\"east\"}",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_threads",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
    ] {
        assert!(found.contains_key(name), "{name}\n{text}");
    }
}

#[test]
fn names_of_lines_are_escaped() {
    let hostile = "a\"} 1\nevil_total 9\n# EOF\\";
    let lines = Lines::default();
    let line = Arc::new(LineStatus::new(hostile, "x"));
    line.dropped("a\"b\n", 1);
    line.set_health([("c\\\n\"".to_owned(), Check { value: f64::NAN, usual: 1.0, alert: true, says: None })].into());
    lines.set(line);
    let server = serve(lines);
    let (_, _, text) = get(&server, "/metrics");
    let parsed = openmetrics_parser::openmetrics::parse_openmetrics(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    assert!(!parsed.families.contains_key("evil"));
    assert_eq!(text.matches("# EOF\n").count(), 1, "{text}");
    let (_, _, json) = get(&server, "/status");
    let report: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(report.lines[0].line, hostile);
    assert!(report.lines[0].health.is_empty(), "what is no number is left out");
}

#[test]
fn others_are_grouped_by_name() {
    let mut sources = Sources::new(Lines::default());
    let one = |kind, label: &str| Extra {
        name: "x_things",
        help: "Things",
        kind,
        labels: vec![("of".into(), label.into())],
        read: Box::new(|| 1.0),
    };
    sources.extra = vec![one(Kind::Gauge, "a"), one(Kind::Gauge, "b"), one(Kind::Counter, "c")];
    let server = Server::start("127.0.0.1:0".parse().unwrap(), sources).unwrap();
    let (_, _, text) = get(&server, "/metrics");
    assert_eq!(text.matches("# TYPE x_things ").count(), 1, "{text}");
    assert_eq!(text.matches("\nx_things{").count(), 2, "{text}");
}

#[test]
fn starts_answers_and_stops() {
    let server = serve(lines());
    let (addr, url) = (server.local_addr(), server.url());
    assert!(addr.ip().is_loopback() && url.starts_with("http://127.0.0.1:"));
    assert_eq!(get(&server, "/healthz").0, 200);
    let (code, _, text) = get(&server, "/readyz");
    assert_eq!(code, 503);
    let ready: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(ready["lines"][0]["line"], "west");
    assert_eq!(ready["lines"][0]["reason"], "the camera is not there");
    assert_eq!(ready["lines"].as_array().unwrap().len(), 1);
    let (code, kind, text) = get(&server, "/status");
    assert_eq!((code, kind.as_str()), (200, "application/json"));
    let report: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(report.lines.len(), 2);
    assert_eq!(report.deliver.unwrap()["waiting"], 3);
    assert_eq!(get(&server, "/nowhere").0, 404);

    let error = Server::start(addr, Sources::new(Lines::default())).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot serve metrics on \"{addr}\": ")), "{error}");
    assert!(error.hint_text().unwrap().starts_with("another program listens there"));
    server.stop();
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn lines_come_and_go() {
    let lines = lines();
    let server = serve(lines.clone());
    assert_eq!(get(&server, "/readyz").0, 503);
    lines.remove("west");
    assert_eq!(get(&server, "/readyz").0, 200, "what is left is live");
    assert!(!get(&server, "/metrics").2.contains("west"));
    let again = Arc::new(LineStatus::new("east", "other"));
    again.set_state(LineState::Stopped, None);
    lines.set(again);
    assert_eq!(get(&server, "/readyz").0, 200, "a line that was stopped is no fault");
    let report: Report = serde_json::from_str(&get(&server, "/status").2).unwrap();
    assert_eq!(
        report.lines.iter().map(|l| (l.line.as_str(), l.source.as_str())).collect::<Vec<_>>(),
        [("east", "other")]
    );
}

#[test]
fn nothing_can_be_changed() {
    let server = serve(lines());
    let client = reqwest::blocking::Client::new();
    for path in ["/metrics", "/status", "/healthz", "/readyz"] {
        assert_eq!(client.post(server.url() + path).body("x").send().unwrap().status(), 405, "{path}");
    }
}

#[test]
fn a_silent_client_does_not_hold_up_the_stop() {
    let server = serve(lines());
    let mut half = TcpStream::connect(server.local_addr()).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < LONG / 2, "the stop waits for nobody");
    half.set_read_timeout(Some(LONG)).unwrap();
    let _ = half.read(&mut [0; 64]); // cut off, or told so
}

#[test]
fn status_prints_a_table() {
    let server = serve(lines());
    let url = server.url();
    let run = linesight(["status", "--at", &url]);
    run.succeeds();
    let mut lines = run.out.lines();
    let headings: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(headings[..5], ["LINE", "STATE", "FOR", "FPS", "LAST"]);
    let east: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((east[0], east[1]), ("east", "live"));
    // parts, pass, reject, unsure, missed, late, dropped, p99, model
    assert_eq!(east[5..], ["5", "2", "1", "1", "1", "1", "9", ">5000ms", "washer@3"]);
    let west: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((west[0], west[1]), ("west", "reconnecting"));
    for line in [
        "east: camera, lamp: parts are 31 % darker than when taught",
        "west: reconnecting: the camera is not there",
        "spool: 3 waiting, 1 refused by the endpoint, 5 delivered",
    ] {
        assert!(run.out.lines().any(|l| l == line), "{line}: {}", run.out);
    }
    let json = linesight(["status", "--at", &url, "--json"]).json();
    assert_eq!(json["lines"][0]["counters"]["parts"], 5);
    assert_eq!(json["deliver"]["waiting"], 3);
}

#[test]
fn status_says_when_nobody_is_there() {
    let at = format!("http://{}", nobody());
    linesight(["status", "--at", &at]).fails(3, &["no linesight answers at", &at], "--at");
    linesight(["status", "--at", "ftp://x"]).fails(2, &["\"ftp://x/\" is no http address"], "--at");
    let other = support::sink();
    let at = other.url();
    linesight(["status", "--at", &at]).fails(3, &[&at], "--at");
}
