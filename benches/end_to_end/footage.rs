//! Recordings to teach from and to measure with: one recording of good parts, scaled and cut.

use crate::Plan;
use gstreamer::{self as gst, prelude::*};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Frames of the sample to teach from; the ones after them are measured.
const TAUGHT: usize = 640;

/// A frame size.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    pub const SMALL: Size = Size { width: 640, height: 360 };
    pub const HD: Size = Size { width: 1280, height: 720 };
    pub const FULL_HD: Size = Size { width: 1920, height: 1080 };

    pub fn name(self) -> String {
        format!("{}p", self.height)
    }

    pub fn megapixels(self) -> f64 {
        f64::from(self.width) * f64::from(self.height) / 1e6
    }
}

/// Where the recordings are.
pub struct Footage {
    original: PathBuf,
    /// Not the bundled sample: used as it is where it has the size.
    given: Option<Size>,
    folder: PathBuf,
    frames: usize,
}

impl Footage {
    pub fn new(plan: &Plan) -> Footage {
        gst::init().expect("GStreamer");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = plan.out.join("footage");
        std::fs::create_dir_all(&folder).expect("target/bench/footage");
        let original = match std::env::var_os("LINESIGHT_BENCH_DATA") {
            None => root.join("assets/sample-teach.mp4"),
            Some(data) => {
                let entries = std::fs::read_dir(&data).expect("LINESIGHT_BENCH_DATA is a folder");
                let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
                files.retain(|p| p.to_string_lossy().ends_with("-teach.mp4"));
                files.sort();
                files.into_iter().next().expect("LINESIGHT_BENCH_DATA holds a recording *-teach.mp4")
            }
        };
        let given = std::env::var_os("LINESIGHT_BENCH_DATA").map(|_| size_of(&original));
        Footage { original, given, folder, frames: plan.frames }
    }

    /// What to teach from.
    pub fn teach(&self, size: Size) -> PathBuf {
        match self.given {
            Some(given) if given == size => self.original.clone(),
            Some(_) => self.encoded(size, 0..usize::MAX),
            None => self.encoded(size, 0..TAUGHT),
        }
    }

    /// What to measure with: parts that were not taught; of a recording that was given, its first frames, cut without
    /// encoding them again where it has the size.
    pub fn run(&self, size: Size) -> PathBuf {
        match self.given {
            Some(given) if given == size => self.cut(),
            Some(_) => self.encoded(size, 0..self.frames),
            None => self.encoded(size, TAUGHT..TAUGHT + self.frames),
        }
    }

    fn path(&self, what: &str) -> PathBuf {
        let stem = self.original.file_stem().expect("a file").to_string_lossy();
        self.folder.join(format!("{stem}-{what}.mp4"))
    }

    /// The frames of a range, scaled.
    fn encoded(&self, size: Size, frames: Range<usize>) -> PathBuf {
        let end = if frames.end == usize::MAX { "end".to_owned() } else { frames.end.to_string() };
        let path = self.path(&format!("{}-{}-{end}", size.name(), frames.start));
        if path.exists() {
            return path;
        }
        let Size { width, height } = size;
        let pipeline = launch(&format!(
            "filesrc location=\"{}\" ! qtdemux ! h264parse ! avdec_h264 ! videoscale method=lanczos \
             ! video/x-raw,width={width},height={height} ! identity name=cut \
             ! x264enc pass=quant quantizer=20 speed-preset=veryfast bframes=0 key-int-max=60 ! h264parse \
             ! mp4mux faststart=true ! filesink location=\"{}.part\"",
            self.original.display(),
            path.display()
        ));
        let seen = AtomicUsize::new(0);
        let pad = pipeline.by_name("cut").expect("the pipeline's element").static_pad("src").expect("its pad");
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let n = seen.fetch_add(1, Relaxed);
            let Some(buffer) = info.buffer_mut().filter(|_| frames.contains(&n)) else {
                return gst::PadProbeReturn::Drop;
            };
            // the recording begins with the first frame that is kept
            let duration = buffer.duration().unwrap_or(gst::ClockTime::SECOND / 30);
            buffer.make_mut().set_pts(duration * (n - frames.start) as u64);
            gst::PadProbeReturn::Ok
        });
        play(&pipeline, &path);
        path
    }

    /// The first frames of the recording, as they are.
    fn cut(&self) -> PathBuf {
        let path = self.path(&format!("first-{}", self.frames));
        if !path.exists() {
            let pipeline = launch(&format!(
                "filesrc location=\"{}\" ! qtdemux ! h264parse ! identity eos-after={} ! mp4mux faststart=true \
                 ! filesink location=\"{}.part\"",
                self.original.display(),
                self.frames,
                path.display()
            ));
            play(&pipeline, &path);
        }
        path
    }
}

fn size_of(recording: &Path) -> Size {
    let text = recording.to_str().expect("a path that is text");
    let source = linesight::capture::Source::parse(text).expect("a recording");
    let mut capture = linesight::capture::Capture::open(&source, false).expect("opened");
    let frame = capture.next_frame().expect("decoded").expect("a frame");
    Size { width: frame.width(), height: frame.height() }
}

fn launch(text: &str) -> gst::Pipeline {
    gst::parse::launch(text).expect("x264enc, from gstreamer1.0-plugins-ugly").downcast().expect("a pipeline")
}

/// Runs it to its end; the file gets its name when it is whole.
fn play(pipeline: &gst::Pipeline, path: &Path) {
    eprintln!("making {}", path.display());
    pipeline.set_state(gst::State::Playing).expect("played");
    let bus = pipeline.bus().expect("a bus");
    let message = bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Eos, gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null).expect("stopped");
    if let Some(gst::MessageView::Error(e)) = message.as_ref().map(|m| m.view()) {
        panic!("{}: {}", path.display(), e.error());
    }
    let part = PathBuf::from(format!("{}.part", path.display()));
    std::fs::rename(part, path).expect("renamed");
}
