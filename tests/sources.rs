//! Live sources: every frame of a camera or stream arrives and is counted, and a source that goes away comes back by itself.
//!
//! With LINESIGHT_FAULT=full the same tests run as long as a factory would: 60 seconds of frames, 50 kills.

#![allow(clippy::unwrap_used)]

#[path = "support/alone.rs"]
mod alone;
#[path = "support/camera.rs"]
mod camera;
#[path = "support/rtsp.rs"]
mod rtsp;
mod support;

use alone::alone;
use camera::{FakeCamera, ramp};
use linesight::capture::{CameraOptions, Capture, Decode, OpenOptions, Source, Supervised, Watchdog};
use linesight::error::{Error, Kind};
use linesight::event::LineState;
use linesight::frame::{Frame, PixelFormat};
use linesight::observe::LineStatus;
use rtsp::{FPS, RtspServer, number};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::*;

fn is_full() -> bool {
    std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full")
}

/// Not a test of its own: the RTSP server of the others.
#[test]
fn child_that_serves_rtsp() {
    rtsp::serve_if_child();
}

fn options(text: &str) -> CameraOptions {
    toml::from_str(text).unwrap()
}

fn try_open(source: &str, camera: &CameraOptions) -> Result<Capture, Error> {
    Capture::open_with(&Source::parse(source)?, &OpenOptions { realtime: false, camera, live_queue: 4 })
}

fn open(source: &str, camera: &str) -> Capture {
    try_open(source, &options(camera)).unwrap()
}

fn supervise(source: &str, camera: &str) -> (Supervised, Arc<LineStatus>) {
    supervise_with(source, camera, Watchdog::default())
}

fn supervise_with(source: &str, camera: &str, watchdog: Watchdog) -> (Supervised, Arc<LineStatus>) {
    let source = Source::parse(source).unwrap();
    let status = Arc::new(LineStatus::new("test", &source.name()));
    let camera = options(camera);
    let options = OpenOptions { realtime: false, camera: &camera, live_queue: 4 };
    (Supervised::new(&source, &options, status.clone(), watchdog).unwrap(), status)
}

/// The next frame of a source that must give one.
#[track_caller]
fn next(capture: &mut Capture) -> Arc<Frame> {
    let deadline = Instant::now() + LONG;
    capture.next_frame_unless(|| Instant::now() > deadline).unwrap().unwrap_or_else(|| panic!("no frame came"))
}

#[track_caller]
fn next_of(supervised: &mut Supervised) -> Arc<Frame> {
    let deadline = Instant::now() + LONG;
    let frame = supervised.next_frame_unless(|| Instant::now() > deadline).unwrap();
    frame.unwrap_or_else(|| panic!("no frame came: {:?}", supervised.status().snapshot()))
}

/// The error with which a source ends.
#[track_caller]
fn failure(source: &str, camera: &str) -> Error {
    let deadline = Instant::now() + LONG;
    match try_open(source, &options(camera)) {
        Err(e) => e,
        Ok(mut capture) => capture.next_frame_unless(|| Instant::now() > deadline).map(drop).unwrap_err(),
    }
}

/// Pulls frames for so many seconds as the line would, holding the last eight; returns how many came.
fn every_frame(what: &str, seconds: u64, mut capture: Capture, number: impl Fn(&Frame) -> u64, modulo: u64) {
    let mut held: VecDeque<Arc<Frame>> = VecDeque::new();
    let first = number(&next(&mut capture));
    let frames = seconds * 30;
    let started = Instant::now();
    let mut last_pts = None;
    for n in 1..=frames {
        let frame = next(&mut capture);
        assert_eq!(frame.seq, n);
        assert_eq!(number(&frame), (first + n) % modulo, "{what}: frame {n} is not the next one");
        assert!(frame.pts_ns > last_pts, "{what}: {:?} after {last_pts:?}", frame.pts_ns);
        last_pts = frame.pts_ns;
        held.push_back(frame);
        if held.len() > 8 {
            held.pop_front();
        }
    }
    let took = started.elapsed().as_secs_f64();
    eprintln!(
        "{what}: {frames} frames in {took:.1} s, first was number {first}, 0 missing, lost at source {}",
        capture.lost_at_source()
    );
    assert_eq!(capture.lost_at_source(), 0);
}

fn seconds() -> u64 {
    if is_full() { 60 } else { 5 }
}

/// All that another test may have changed in the camera.
const MONO: &str = "format = \"mono8\"\nwidth = 640\nheight = 480\nfps = 30\nexposure_us = 10000\ngain = 0";

#[test]
fn every_frame_of_a_camera_arrives_in_order() {
    let _camera = FakeCamera::start("every");
    let capture = open(FakeCamera::SOURCE, MONO);
    every_frame("GenICam", seconds(), capture, ramp, 255);
}

#[test]
fn every_frame_of_a_stream_arrives_in_order() {
    let server = RtspServer::start();
    for protocol in ["tcp", "udp"] {
        let capture = open(&server.source(), &format!("protocol = \"{protocol}\""));
        every_frame(&format!("RTSP over {protocol}"), seconds(), capture, number, 1 << 16);
    }
}

#[test]
fn what_a_stream_loses_is_counted_and_never_shown_damaged() {
    let server = RtspServer::with("", 150);
    let mut capture = open(&server.source(), "protocol = \"udp\"\nlatency_ms = 100");
    let first = number(&next(&mut capture));
    let mut last = first;
    let mut missing = 0;
    for _ in 0..seconds() * 30 {
        let n = number(&next(&mut capture));
        assert!(n > last, "{n} after {last}: a frame shows an earlier picture");
        missing += n - last - 1;
        last = n;
    }
    let counted = capture.lost_at_source();
    eprintln!("lossy RTSP: of frames {first} to {last} {missing} are missing, {counted} counted as lost");
    assert!(missing > 0);
    assert_eq!(counted, missing);
}

#[test]
fn a_camera_gives_what_it_is_asked_for() {
    let _camera = FakeCamera::start("modes");
    // 5 % 4 is not 0: rows as the camera sends them are not as GStreamer wants them
    for (format, width, wanted) in
        [("mono8", 640, PixelFormat::Gray8), ("mono8", 333, PixelFormat::Gray8), ("rgb8", 322, PixelFormat::Rgb)]
    {
        // the fake camera's ramp is as steep as exposure and gain make it
        let light = if format == "mono8" { "exposure_us = 10000\ngain = 0" } else { "exposure_us = 5000\ngain = 3" };
        let text = format!("format = \"{format}\"\nwidth = {width}\nheight = 100\nfps = 20\n{light}");
        let mut capture = open(FakeCamera::SOURCE, &text);
        let frame = next(&mut capture);
        assert_eq!((frame.format(), frame.width(), frame.height()), (wanted, width, 100));
        if wanted == PixelFormat::Gray8 {
            ramp(&frame);
        }
        let first = frame.source_seq.unwrap();
        assert_eq!(next(&mut capture).source_seq, Some(first + 1));
    }
    for width in [320, 322] {
        let mut capture = open(FakeCamera::SOURCE, &format!("format = \"bayer-rg8\"\nwidth = {width}\nheight = 64"));
        let frame = next(&mut capture);
        assert_eq!((frame.width(), frame.height()), (width, 64));
    }
    for (text, what) in [
        ("width = 60000", "60000 x"),
        ("fps = 5000", "5000 frames"),
        ("format = \"yuv422\"", "has no format \"yuv422\""),
    ] {
        let e = failure(FakeCamera::SOURCE, text);
        assert!(e.kind() == Kind::Usage && e.to_string().contains(what) && e.hint_text().is_some(), "{e}");
    }
}

#[test]
fn frames_outlive_their_camera() {
    let mut camera = FakeCamera::start("outlive");
    let mut capture = open(FakeCamera::SOURCE, MONO);
    let held: Vec<_> = (0..6).map(|_| next(&mut capture)).collect();
    let numbers: Vec<u64> = held.iter().map(|f| ramp(f)).collect();
    // more than the camera has buffers
    for _ in 0..80 {
        next(&mut capture);
    }
    assert_eq!(numbers, held.iter().map(|f| ramp(f)).collect::<Vec<_>>());
    drop(capture);
    camera.kill();
    assert_eq!(numbers, held.iter().map(|f| ramp(f)).collect::<Vec<_>>());
    drop(held);
}

#[test]
fn a_triggered_camera_may_rest() {
    let _camera = FakeCamera::start("trigger");
    let text = format!("{MONO}\ntrigger = \"hardware\"\ntrigger_source = \"Line0\"");
    let quick = Watchdog { first_frame: Duration::from_millis(200), ..Watchdog::default() };
    let (mut supervised, status) = supervise_with(FakeCamera::SOURCE, &text, quick);
    let until = Instant::now() + Duration::from_secs(3);
    assert!(supervised.next_frame_unless(|| Instant::now() > until).unwrap().is_none(), "nobody triggered");
    assert_eq!((status.state(), status.snapshot().reason), (LineState::Starting, None));
    drop(supervised);

    let mut capture = open(FakeCamera::SOURCE, &format!("{MONO}\ntrigger = \"software\"").replace("30", "10"));
    next(&mut capture);
    let started = Instant::now();
    for _ in 0..10 {
        next(&mut capture);
    }
    eprintln!("10 software triggers at 10 fps took {:.2} s", started.elapsed().as_secs_f64());
    assert!(started.elapsed() > Duration::from_millis(500), "it runs freely");
    drop(capture);
    // the next one is not left waiting for triggers
    next(&mut open(FakeCamera::SOURCE, MONO));
}

/// What this process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: usize,
    rss_kb: u64,
}

impl Held {
    fn now() -> Held {
        let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        Held {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            rss_kb: rss.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

trait Returns: Send {
    fn kill(&mut self);
    fn come_back(&mut self) -> Instant;
}

impl Returns for FakeCamera {
    fn kill(&mut self) {
        FakeCamera::kill(self);
    }
    fn come_back(&mut self) -> Instant {
        FakeCamera::come_back(self)
    }
}

impl Returns for RtspServer {
    fn kill(&mut self) {
        RtspServer::kill(self);
    }
    fn come_back(&mut self) -> Instant {
        RtspServer::come_back(self)
    }
}

/// Kills a source and returns it, again and again: live soon after each return, numbers go on, nothing grows.
fn kill_and_return(what: &str, source: &str, camera: &str, mut device: impl Returns) {
    let cycles = if is_full() { 50 } else { 3 };
    if std::env::var_os("LINESIGHT_LOG").is_some() {
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).try_init();
    }
    let (mut supervised, status) = supervise(source, camera);
    let mut seq = 0;
    let mut pull = |supervised: &mut Supervised| {
        let frame = next_of(supervised);
        assert_eq!(frame.seq, seq, "numbers go on");
        seq += 1;
        frame
    };
    let (mut away, mut gaps) = (Vec::new(), Vec::new());
    let mut held = Vec::new();
    for cycle in 0..cycles {
        for _ in 0..15 {
            pull(&mut supervised);
        }
        // a frame of the old connection is still looked at while the new one is made
        let kept = pull(&mut supervised);
        held.push(Held::now());
        let before = supervised.reconnects();
        device.kill();
        // not in step with the pauses
        let gap = Duration::from_millis(100 + cycle * 397 % 2300);
        let (returned, _kept) = std::thread::scope(|scope| {
            let device = &mut device;
            let returns = scope.spawn(move || {
                std::thread::sleep(gap);
                device.come_back()
            });
            while supervised.reconnects() == before {
                pull(&mut supervised);
            }
            (returns.join().unwrap(), kept)
        });
        gaps.push(gap.as_secs_f64());
        away.push(Instant::now().saturating_duration_since(returned).as_secs_f64());
        assert_eq!(status.state(), LineState::Live);
    }
    // what a connection needs is there after the first ones
    let (first, last) = (held[1], held[held.len() - 1]);
    let later = &held[held.len() / 2..];
    let slope = (last.rss_kb as f64 - later[0].rss_kb as f64) / (later.len() - 1).max(1) as f64;
    let memory: Vec<u64> = held.iter().step_by(5).map(|h| h.rss_kb / 1024).collect();
    let late: Vec<(f64, f64)> = away.iter().copied().zip(gaps).filter(|(away, _)| *away > 2.0).collect();
    away.sort_by(f64::total_cmp);
    eprintln!(
        "{what}: {cycles} kills, live again after p50 {:.2} s, max {:.2} s; held {first:?} -> {last:?}, {slope:.1} kB a cycle in the second half, MB every fifth cycle {memory:?}; \
         {} slow teardowns; lost {}; later than 2 s (and away for): {late:.2?}",
        away[away.len() / 2],
        away[away.len() - 1],
        supervised.slow_teardowns(),
        supervised.lost_at_source()
    );
    assert!(away[away.len() - 1] < 10.0, "{away:?}");
    assert_eq!(status.snapshot().counters.reconnects, cycles);
    // a teardown may be under way at either moment
    assert!(last.descriptors <= first.descriptors + 12, "{held:?}");
    assert!(last.threads <= first.threads + 8, "{held:?}");
}

#[test]
fn a_camera_that_returns_is_live_again() {
    alone("a_camera_that_returns_is_live_again", || {
        kill_and_return("GenICam", FakeCamera::SOURCE, MONO, FakeCamera::start("returns"));
    });
}

#[test]
fn a_stream_that_returns_is_live_again() {
    alone("a_stream_that_returns_is_live_again", || {
        for protocol in ["tcp", "udp"] {
            let server = RtspServer::start();
            let source = server.source();
            kill_and_return(&format!("RTSP over {protocol}"), &source, &format!("protocol = \"{protocol}\""), server);
        }
    });
}

#[test]
fn a_stream_that_falls_silent_is_stalled() {
    let server = RtspServer::start();
    let (mut supervised, status) = supervise(&server.source(), "");
    for _ in 0..FPS {
        next_of(&mut supervised);
    }
    server.freeze();
    let deadline = Instant::now() + LONG;
    // frames that are on their way still come
    while supervised
        .next_frame_unless(|| status.state() == LineState::Stalled || Instant::now() > deadline)
        .unwrap()
        .is_some()
    {}
    let reason = status.snapshot().reason.unwrap();
    assert!(reason.starts_with("no frame for "), "{reason}");
    server.thaw();
    while status.snapshot().counters.reconnects == 0 {
        next_of(&mut supervised);
    }
    assert_eq!(status.state(), LineState::Live);
}

#[test]
fn a_file_is_taken_once_and_whole() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let png = |value: u8| {
        let mut bytes = Vec::new();
        let picture = image::RgbImage::from_fn(200, 150, |x, y| image::Rgb([value, (x * 7 + y * 3) as u8, y as u8]));
        picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        bytes
    };
    std::fs::write(at("before.png"), png(1)).unwrap();
    let (mut supervised, status) = supervise(&format!("watch:{}", dir.path().display()), "");
    // opened by the first call
    assert!(supervised.next_frame_unless(|| supervised_is_open(&status)).unwrap().is_none());
    let files = if is_full() { 60 } else { 6 };
    let writer = {
        let folder = dir.path().to_owned();
        let contents: Vec<_> = (0..files).map(|i| png(10 + i)).collect();
        std::thread::spawn(move || {
            for (i, bytes) in contents.iter().enumerate() {
                let name = folder.join(format!("part-{i}.png"));
                // one in three comes under another name, as careful writers do
                let written = if i % 3 == 2 { folder.join(format!("part-{i}.png.part")) } else { name.clone() };
                let mut file = std::fs::File::create(&written).unwrap();
                for piece in bytes.chunks(bytes.len() / 5) {
                    file.write_all(piece).unwrap();
                    file.sync_all().unwrap();
                    std::thread::sleep(Duration::from_millis(20));
                }
                drop(file);
                if written != name {
                    std::fs::rename(written, name).unwrap();
                }
                if i == 1 {
                    std::fs::write(folder.join("broken.png"), &bytes[..bytes.len() / 2]).unwrap();
                }
            }
        })
    };
    for i in 0..files {
        let frame = next_of(&mut supervised);
        assert_eq!(frame.file.as_deref(), Some(format!("part-{i}.png").as_str()));
        let plane = frame.plane(0);
        assert_eq!((frame.format(), frame.width(), frame.height()), (PixelFormat::Rgb, 200, 150));
        let last = &plane.data[149 * plane.stride + 199 * 3..][..3];
        assert_eq!(last, [10 + i, (199 * 7 + 149 * 3) as u8, 149], "the last pixel is there");
    }
    writer.join().unwrap();
    let until = Instant::now() + Duration::from_millis(300);
    assert!(supervised.next_frame_unless(|| Instant::now() > until).unwrap().is_none(), "each once");
    // the damaged one stopped nothing and is counted
    assert_eq!(supervised.lost_at_source(), 1);
    assert_eq!(status.snapshot().counters.dropped["source"], 1);
    assert!(at("part-0.png").exists() && at("before.png").exists());
}

/// A watched folder shows no state of its own before its first file: the second look is after the opening.
fn supervised_is_open(_: &LineStatus) -> bool {
    thread_local!(static LOOKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    LOOKS.set(LOOKS.get() + 1);
    LOOKS.get() > 3
}

#[test]
fn a_missing_device_is_named() {
    let e = failure("v4l2:/dev/video97", "");
    assert_eq!(e.kind(), Kind::Missing, "{e}");
    assert!(e.to_string().contains("v4l2:/dev/video97") && e.to_string().contains("/dev/video97"), "{e}");
    assert!(e.hint_text().unwrap().contains("linesight cameras"));
    let e = failure("genicam:no-such-camera", "");
    assert_eq!(e.kind(), Kind::Missing, "{e}");
    assert!(e.to_string().contains("no-such-camera") && e.hint_text().unwrap().contains("cameras"), "{e}");
    let e = failure(&format!("rtsp://{}/x", nobody()), "");
    assert!(e.to_string().contains("rtsp://127.0.0.1") && e.hint_text().is_some(), "{e}");
}

#[test]
fn a_pipeline_of_the_users_own_works_or_says_why() {
    let text = "pipeline:videotestsrc num-buffers=7 ! video/x-raw,format=GRAY8,width=64,height=48";
    for text in [text.to_owned(), format!("{text} ! queue ! appsink name=frames max-buffers=2 drop=true")] {
        let mut capture = open(&text, "");
        let mut n = 0;
        while let Some(frame) = capture.next_frame().unwrap() {
            assert_eq!((frame.format(), frame.width(), frame.source_seq), (PixelFormat::Gray8, 64, Some(n)));
            n += 1;
        }
        assert_eq!(n, 7);
    }
    for (text, what) in [
        ("pipeline:videotestsrc ! nosuchelement", "no element \"nosuchelement\""),
        ("pipeline:videotestsrc nosuch=1", "no property \"nosuch\""),
        ("pipeline:videotestsrc !", "syntax error"),
        ("pipeline:audiotestsrc ! audio/x-raw", "could not link"),
    ] {
        let e = failure(text, "");
        assert!(e.kind() == Kind::Usage && e.hint_text().is_some(), "{e}");
        assert!(e.to_string().contains(what), "\"{what}\" is wanted: {e}");
    }
    let e = failure("pipeline:filesrc location=/no/such ! decodebin", "");
    assert!(e.to_string().contains("/no/such"), "{e}");
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn keep(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || log.clone()).finish(),
        )
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

#[test]
fn credentials_are_said_nowhere() {
    const SECRET: &str = "geh:e1m@nis";
    let log = Log::default();
    let _kept = log.keep();
    let server = RtspServer::with(&format!("viewer:{SECRET}"), 0);
    let dir = folder();
    let file = dir.path().join("credentials");
    let with_file = |text: &str| {
        std::fs::write(&file, text).unwrap();
        format!("credentials_file = \"{}\"", file.display())
    };
    let mut said = Vec::new();

    let right = with_file(&format!("viewer:{SECRET}\n"));
    number(&next(&mut open(&server.source(), &right)));
    let in_address = server.source().replace("rtsp://", "rtsp://viewer:geh%3Ae1m%40nis@");
    number(&next(&mut open(&in_address, "")));
    let source = Source::parse(&in_address).unwrap();
    said.push(format!("{source:?} {} {:?}", source.name(), options(&right)));

    // refused, with and without; the wrong one is no less secret
    let e = failure(&server.source(), "");
    assert!(e.kind() == Kind::Usage && e.hint_text().unwrap().contains("credentials_file"), "{e}");
    let wrong = in_address.replace("viewer", "somebody");
    said.push(format!("{:?}", failure(&wrong, "")));
    said.push(format!("{:?}", failure(&server.source(), &with_file(&format!("somebody:{SECRET}")))));
    said.push(format!("{:?}", failure(&server.source(), &with_file(SECRET).replace(':', ""))));
    let unreachable = format!("rtsp://viewer:geh%3Ae1m%40nis@{}/x", nobody());
    said.push(format!("{:?}", failure(&unreachable, "")));
    let broken = format!("pipeline:rtspsrc location={in_address} user-pw={SECRET} nosuch=1");
    said.push(format!("{:?}", failure(&broken, "")));

    // a supervised one waits long before it bothers the camera again
    let (mut supervised, status) = supervise(&wrong, "");
    let failed = || status.state() == LineState::Failed;
    assert!(supervised.next_frame_unless(failed).unwrap().is_none());
    said.push(format!("{:?}", status.snapshot()));
    said.push(log.text());
    assert!(log.text().contains("the source is away"), "{}", log.text());
    for text in said {
        for secret in [SECRET, "geh%3Ae1m%40nis", "geh", "e1m"] {
            assert!(!text.contains(secret), "\"{secret}\" is in: {text}");
        }
    }
}

#[test]
fn a_hardware_decoder_that_fails_gives_way_to_software() {
    let log = Log::default();
    let _kept = log.keep();
    let dir = folder();
    let file = dir.path().join("vp8.webm");
    let pictures = (0..10).map(|i| (i, vec![(i * 20) as u8; 64 * 64 * 3 / 2]));
    let tail = format!("vp8enc ! webmmux ! filesink location=\"{}\"", file.display());
    encode("format=I420,width=64,height=64,framerate=30/1", &tail, 30, pictures);
    failing::register();
    let source = file.to_str().unwrap();
    let count = |camera: &str| {
        let mut capture = open(source, camera);
        std::iter::from_fn(|| capture.next_frame().unwrap()).count()
    };
    assert_eq!(count(""), 10);
    let said: Vec<String> = log.text().lines().filter(|l| l.contains("hardware decoder")).map(str::to_owned).collect();
    assert!(said.len() == 1 && said[0].contains("decoding in software"), "{said:?}");
    assert_eq!(count("decode = \"software\""), 10);
    assert_eq!(log.text().matches("hardware decoder").count(), 1);
    assert_eq!(options("decode = \"software\"").decode, Some(Decode::Software));
}

/// A VP8 decoder that says that it uses hardware, and fails. No other test has VP8.
mod failing {
    use gstreamer::{self as gst, glib, prelude::*, subclass::prelude::*};

    #[derive(Default)]
    pub struct Element;

    #[glib::object_subclass]
    impl ObjectSubclass for Element {
        const NAME: &'static str = "LinesightFailingDecoder";
        type Type = Failing;
        type ParentType = gst::Element;
    }

    glib::wrapper! {
        pub struct Failing(ObjectSubclass<Element>) @extends gst::Element, gst::Object;
    }

    impl ObjectImpl for Element {
        fn constructed(&self) {
            self.parent_constructed();
            let templates = Element::pad_templates();
            let sink = gst::Pad::builder_from_template(&templates[0])
                .chain_function(|_, parent, _| {
                    if let Some(element) = parent.and_then(|p| p.downcast_ref::<gst::Element>()) {
                        gst::element_error!(element, gst::LibraryError::Init, ("no device"));
                    }
                    Err(gst::FlowError::Error)
                })
                .build();
            self.obj().add_pad(&sink).unwrap();
            self.obj().add_pad(&gst::Pad::from_template(&templates[1])).unwrap();
        }
    }
    impl GstObjectImpl for Element {}
    impl ElementImpl for Element {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static ONE: std::sync::OnceLock<gst::subclass::ElementMetadata> = std::sync::OnceLock::new();
            Some(ONE.get_or_init(|| {
                gst::subclass::ElementMetadata::new("failing", "Codec/Decoder/Video/Hardware", "fails", "tests")
            }))
        }
        fn pad_templates() -> &'static [gst::PadTemplate] {
            static BOTH: std::sync::OnceLock<Vec<gst::PadTemplate>> = std::sync::OnceLock::new();
            BOTH.get_or_init(|| {
                let template = |name, direction, caps: &str| {
                    let caps: gst::Caps = caps.parse().unwrap();
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).unwrap()
                };
                vec![
                    template("sink", gst::PadDirection::Sink, "video/x-vp8"),
                    template("src", gst::PadDirection::Src, "video/x-raw,format=I420"),
                ]
            })
        }
    }

    pub fn register() {
        let rank = gst::Rank::PRIMARY + 1000;
        gst::Element::register(None, "linesightfailingdec", rank, Failing::static_type()).unwrap();
    }
}

#[test]
fn cameras_are_listed_with_the_line_to_paste() {
    let mut camera = FakeCamera::start("listed");
    let list = || linesight(["cameras", "--json"]).json();
    let found = list()["cameras"].as_array().unwrap().iter().find(|c| c["serial"] == "listed").cloned();
    let found = found.expect("the camera is listed");
    assert_eq!(found["source"], FakeCamera::SOURCE);
    assert!(found["modes"].to_string().contains("format = \\\"mono8\\\""), "{found}");
    let text = linesight(["cameras"]);
    assert!(text.succeeds().out.contains("source = \"genicam:127.0.0.1\""), "{text:?}");
    // the line is what can be used
    let by_kind: BTreeMap<_, _> = [("genicam", found["source"].as_str().unwrap())].into();
    next(&mut open(by_kind["genicam"], ""));
    camera.kill();
    let none = linesight(["cameras"]);
    assert!(!none.succeeds().out.contains("listed"), "{none:?}");
    if list()["cameras"].as_array().unwrap().is_empty() {
        assert!(none.out.starts_with("no camera found"), "{none:?}");
    }
}
