//! What the tests of behaviour share: the real program, a model that is taught once, clips and stills of the sample
//! recordings, and the text that operators see.

// each test binary uses a part of it
#![allow(dead_code, clippy::unwrap_used)]

#[path = "bad_server.rs"]
pub mod bad_server;

use bad_server::{Act, Server};
use gstreamer::{self as gst, prelude::*};
use gstreamer_app as gst_app;
use image::RgbImage;
use linesight::capture::{Capture, Source};
use linesight::frame::{Frame, PixelFormat};
use linesight::prepare::shrink::{Crop, Shrinker, Size};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;

/// Far beyond what anything here takes.
pub const LONG: Duration = Duration::from_secs(60);

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn asset(name: &str) -> PathBuf {
    root().join("assets").join(name)
}

/// A folder for one test.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A folder that the tests of this binary share, emptied once for each run of the binary.
pub fn shared(name: &str) -> PathBuf {
    static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
        let exe = std::env::current_exe().unwrap();
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(exe.file_name().unwrap());
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir_all(&home).unwrap();
        home
    });
    HOME.join(name)
}

/// What all test binaries share and none changes, made once for each build of the program: `make` makes it where it is told to.
fn common(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
        let program = std::fs::metadata(env!("CARGO_BIN_EXE_linesight")).unwrap();
        let built = program.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("common");
        let home = all.join(format!("{}-{}", built.as_nanos(), program.len()));
        if !home.exists() {
            // of a build before
            let _ = std::fs::remove_dir_all(&all);
        }
        std::fs::create_dir_all(home.join("part")).unwrap();
        home
    });
    let out = HOME.join(name);
    // one at a time, whichever binary it is in, so that a second caller finds it whole
    let turn = File::create(HOME.join(format!("{name}.lock"))).unwrap();
    turn.lock().unwrap();
    if !out.exists() {
        // of its own name, which a model takes as its name
        let part = HOME.join("part").join(name);
        // what is left of one that was interrupted
        let _ = std::fs::remove_dir_all(&part);
        make(&part);
        std::fs::rename(&part, &out).unwrap();
    }
    out
}

/// The program, with nothing of the caller's environment that changes what it says.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linesight"));
    command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("LINESIGHT_LOG").env("NO_COLOR", "1");
    // a test that forgets --spool must not touch the user's
    command.env("XDG_STATE_HOME", shared("state"));
    command
}

/// What a run of the program left.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Run {
    fn from(o: Output) -> Run {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Run { code: o.status.code(), out: text(o.stdout), err: text(o.stderr) }
    }
}

pub fn linesight<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    program().args(arguments).output().unwrap().into()
}

impl Run {
    /// It went well; what it printed to stdout is one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }

    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// It failed with this exit code, and one paragraph on stderr says why and what to do: one `error:` line with each of
    /// `causes` in it, followed by one `hint:` line with `remedy` in it, at the end. Nothing went to stdout.
    #[track_caller]
    pub fn fails(&self, code: i32, causes: &[&str], remedy: &str) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let lines: Vec<&str> = self.err.lines().collect();
        let [.., error, hint] = lines[..] else { panic!("two lines are wanted: {self:#?}") };
        assert!(error.starts_with("error: "), "{self:#?}");
        assert!(hint.starts_with("hint: ") && hint.contains(remedy), "\"{remedy}\" is wanted as a hint: {self:#?}");
        for cause in causes {
            assert!(error.contains(cause), "\"{cause}\" is wanted in the error: {self:#?}");
        }
        assert_eq!(self.err.matches("error: ").count(), 1, "said once: {self:#?}");
        assert!(!self.err.contains("panicked") && self.out.is_empty(), "{self:#?}");
    }
}

/// Names in a folder.
pub fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Asserts that nothing but `known` is in `folder`: no output and no leftover of one.
#[track_caller]
pub fn holds_only(folder: &Path, known: &[&str]) {
    assert_eq!(names(folder), known.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>());
}

/// A model of the sample's washers.
pub fn washer() -> &'static Path {
    static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
        let good = asset("sample-teach.mp4");
        common("washer", |out| teach([Path::new("--trigger"), Path::new("presence"), Path::new("--good"), &good], out))
    });
    &MODEL
}

/// A model of pictures of single parts (trigger `frame`), taught from [`good_stills`].
pub fn still_model() -> &'static Path {
    static MODEL: LazyLock<PathBuf> =
        LazyLock::new(|| common("stills-model", |out| teach([Path::new("--good"), good_stills()], out)));
    &MODEL
}

/// Teaches a model without the choice of a method, which is tested in tests/teach.rs.
fn teach<'a>(arguments: impl IntoIterator<Item = &'a Path>, out: &'a Path) {
    let rest = [Path::new("--method"), Path::new("ppca"), Path::new("--out"), out];
    linesight([Path::new("teach")].into_iter().chain(arguments).chain(rest)).succeeds();
}

/// A folder of pictures of single good parts, PNG.
pub fn good_stills() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        common("good", |out| {
            std::fs::create_dir_all(out).unwrap();
            for (i, picture) in stills("sample-teach", GOOD_STILLS).into_iter().enumerate() {
                picture.save(out.join(format!("good-{i}.png"))).unwrap();
            }
        })
    });
    &FOLDER
}

/// How many pictures [`good_stills`] has.
pub const GOOD_STILLS: usize = 14;
/// Side of a still.
pub const STILL: u32 = 400;

#[derive(Debug, Clone, serde::Deserialize)]
pub struct Truth {
    pub frames: u64,
    pub width: u32,
    pub height: u32,
    pub parts: Vec<TruthPart>,
}

#[derive(Debug, Clone, serde::Deserialize)]
pub struct TruthPart {
    pub part: u64,
    pub label: String,
    pub defective: bool,
    pub enter: u64,
    pub centre: u64,
    pub leave: u64,
    pub y: u32,
    pub size: u32,
}

pub fn truth(recording: &str) -> Truth {
    serde_json::from_slice(&std::fs::read(asset(&format!("{recording}.truth.json"))).unwrap()).unwrap()
}

/// The first `n` parts of a sample recording, each cut out of the frame in which it is centred.
pub fn stills(recording: &str, n: usize) -> Vec<RgbImage> {
    let source = Source::parse(asset(&format!("{recording}.mp4")).to_str().unwrap()).unwrap();
    let mut capture = Capture::open(&source, false).unwrap();
    let mut shrinker = Shrinker::new();
    truth(recording).parts[..n]
        .iter()
        .map(|part| {
            let frame = loop {
                let frame = capture.next_frame().unwrap().unwrap();
                if frame.seq == part.centre {
                    break frame;
                }
            };
            let y = part.y as i32 + part.size as i32 / 2 - STILL as i32 / 2;
            let crop = Crop { x: (frame.width() - STILL) as i32 / 2, y, width: STILL, height: STILL };
            let size = Size { width: STILL, height: STILL };
            let mut rgb = vec![0; size.area() * 3];
            shrinker.rgb(&frame, crop, size, &mut rgb).unwrap();
            RgbImage::from_raw(STILL, STILL, rgb).unwrap()
        })
        .collect()
}

/// The first `frames` frames of a sample recording as a recording of its own.
pub fn clip(recording: &str, frames: u64) -> PathBuf {
    common(&format!("{recording}-{frames}.mp4"), |out| {
        let source = Source::parse(asset(&format!("{recording}.mp4")).to_str().unwrap()).unwrap();
        let mut capture = Capture::open(&source, false).unwrap();
        let pictures = (0..frames as usize).map(|i| (i, i420(&capture.next_frame().unwrap().unwrap())));
        let tail = "x264enc pass=quant quantizer=16 speed-preset=veryfast bframes=0 ! mp4mux faststart=true";
        let tail = format!("{tail} ! filesink location=\"{}\"", out.display());
        encode("format=I420,width=1280,height=720,framerate=30/1,colorimetry=bt709", &tail, 30, pictures);
    })
}

/// Whether GStreamer has these elements.
pub fn has(elements: &[&str]) -> bool {
    gst::init().unwrap();
    elements.iter().all(|e| gst::ElementFactory::find(e).is_some())
}

/// Runs a pipeline to its end.
pub fn play(text: &str) {
    gst::init().unwrap();
    finish(gst::parse::launch(text).unwrap().downcast().unwrap());
}

/// The planes of a frame in I420, without gaps.
fn i420(frame: &Frame) -> Vec<u8> {
    assert_eq!(frame.format(), PixelFormat::I420);
    let plane = |i| {
        let p = frame.plane(i);
        p.data.chunks(p.stride).take(p.height).flat_map(move |row| row[..p.width].to_vec()).collect::<Vec<_>>()
    };
    (0..3).flat_map(plane).collect()
}

/// Encodes raw pictures with the numbers that their frames have at `fps`: `caps` is what they are, `tail` what is made of them.
pub fn encode(caps: &str, tail: &str, fps: u64, pictures: impl IntoIterator<Item = (usize, Vec<u8>)>) {
    gst::init().unwrap();
    let text = format!("appsrc name=in format=time max-bytes=0 caps=\"video/x-raw,{caps}\" ! {tail}");
    let pipeline: gst::Pipeline = gst::parse::launch(&text).unwrap().downcast().unwrap();
    let source = pipeline.by_name("in").unwrap().downcast::<gst_app::AppSrc>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    for (i, picture) in pictures {
        let mut buffer = gst::Buffer::from_slice(picture);
        let info = buffer.get_mut().unwrap();
        info.set_pts(gst::ClockTime::SECOND * i as u64 / fps);
        info.set_duration(gst::ClockTime::SECOND / fps);
        source.push_buffer(buffer).unwrap();
        // pushing never waits, so that a pipeline that has failed cannot hang the test
        until("encoding", || source.current_level_bytes() < 16 << 20 || failed(&pipeline));
    }
    source.end_of_stream().unwrap();
    finish(pipeline);
}

/// Panics with the pipeline's error, if there is one.
fn failed(pipeline: &gst::Pipeline) -> bool {
    match pipeline.bus().unwrap().pop_filtered(&[gst::MessageType::Error]) {
        Some(error) => panic!("{error:?}"),
        None => false,
    }
}

fn finish(pipeline: gst::Pipeline) {
    pipeline.set_state(gst::State::Playing).unwrap();
    let wanted = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &wanted);
    pipeline.set_state(gst::State::Null).unwrap();
    let message = message.unwrap_or_else(|| panic!("the pipeline does not end"));
    assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
}

/// A copy of a folder, to be spoilt.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// An endpoint that takes everything.
pub fn sink() -> Server {
    Server::start(|_| Act::Take)
}

/// An address on which nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The events that an endpoint kept, in their order.
pub fn events(server: &Server) -> Vec<Value> {
    let seen = server.seen();
    seen.order.iter().map(|id| serde_json::from_slice(&seen.kept[id].fields()["event"].1).unwrap()).collect()
}

/// Ids of the anomalies in a ledger, in the order of the parts of each run.
pub fn ledger_events(database: &Path) -> Vec<String> {
    let text = "SELECT event FROM ledger WHERE event IS NOT NULL ORDER BY run, part";
    let db = rusqlite::Connection::open(database).unwrap();
    db.prepare(text).unwrap().query_map([], |row| row.get(0)).unwrap().map(|id| id.unwrap()).collect()
}

pub fn count(database: &Path, sql: &str) -> i64 {
    rusqlite::Connection::open(database).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// results.jsonl.
pub fn results(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Waits for something that happens elsewhere.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Numbers of the defective parts that are centred before `frame`.
pub fn defective(truth: &Truth, frame: u64) -> BTreeSet<u64> {
    truth.parts.iter().filter(|p| p.defective && p.centre < frame).map(|p| p.part).collect()
}
