//! Capture: a GStreamer pipeline from one of the documented templates in `pipelines/`, ending in an appsink that hands out
//! frames in the decoder's or camera's own format.
//!
//! A [`Capture`] belongs to the thread that pulls from it. Invariants:
//! 1. Nothing is lost between decoder and caller: the appsink never drops (`drop=false`); when the caller is slow the
//!    pipeline waits (tests `tests/capture.rs::every_frame_of_a_recording_arrives_in_order`,
//!    `tests/sources.rs::every_frame_of_a_camera_arrives_in_order` and `..._of_a_stream_...`).
//! 2. A recording ends with `Ok(None)` only when its end was really reached; a decode error, a missing video stream and a
//!    recording that ends early are errors that name the file and the element (test `tests/bad_input.rs`).
//! 3. What a camera or stream lost before it came here is in [`Capture::lost_at_source`]; what it does not tell cannot be.
//! 4. No message holds credentials (test `tests/sources.rs::credentials_are_said_nowhere`).

pub(crate) mod aravis;
mod genicam;
mod loss;
mod memory;
mod options;
mod packets;
mod pipeline;
mod source;
mod supervise;
mod template;
mod watch;

pub use options::{CameraOptions, CameraTrigger, DEFAULT_LATENCY_MS, Decode, GENICAM_FORMATS, Protocol, V4L2_FORMATS};
pub use source::Source;
pub use supervise::{Supervised, Watchdog};
pub use template::hardware_decoders;

use crate::error::{Error, Result};
use crate::frame::Frame;
use pipeline::{Camera, Pipeline, Pulled, Reads};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use watch::{Told, Watcher};

/// How often a wait for a frame looks at what else there is.
const TICK: Duration = Duration::from_millis(100);

/// How a source is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions<'a> {
    /// Recordings come at their own rate instead of as fast as they decode. Cameras have no other.
    pub realtime: bool,
    /// Settings of a camera or stream.
    pub camera: &'a CameraOptions,
    /// Frames of a live source that may wait in its pipeline, at least 1. Frames that the caller holds are not counted.
    pub live_queue: u32,
}

impl OpenOptions<'_> {
    /// Frames that may wait when nothing else is said.
    pub const LIVE_QUEUE: u32 = 4;
}

/// Frames of one [`Source`], pulled one by one.
pub struct Capture {
    source: Source,
    realtime: bool,
    camera: CameraOptions,
    live_queue: u32,
    /// Hardware decoders are left out.
    software: bool,
    /// Image folders: files still to be opened, last first.
    files: Vec<PathBuf>,
    watcher: Option<Watcher>,
    current: Option<Pipeline>,
    next_seq: u64,
    bytes_in: u64,
    warnings: u64,
    /// Lost in pipelines that are closed.
    lost: u64,
}

/// How a wait for a frame ended.
enum Step {
    Frame(Arc<Frame>),
    /// Nothing came yet.
    Waiting,
    Ended,
}

/// An error of opening, and whether trying again may help.
struct OpenError {
    error: Error,
    may_pass: bool,
}

impl From<Error> for OpenError {
    /// A wrong option or text stays wrong.
    fn from(error: Error) -> Self {
        OpenError { may_pass: error.kind() != crate::error::Kind::Usage, error }
    }
}

/// Does what opening any source of this kind takes: starts GStreamer and loads its plugins. Opening the source does it, too, if
/// nobody did; done before, beside other work, it takes no time of its own.
pub fn get_ready(source: &Source) -> Result<()> {
    gstreamer::init()
        .map_err(|e| Error::missing("GStreamer cannot be initialised").because(e).hint("run `make setup`"))?;
    template::prefer_hardware();
    template::load_elements(source);
    Ok(())
}

/// Width and height of a recording's frames, by a look at the first one; none for what is no recording, has no frame, or can be
/// read only once.
pub fn size_of_recording(source: &Source) -> Result<Option<(u32, u32)>> {
    match source {
        Source::File(path) if path.is_file() && !source::is_image(path) => {
            Ok(Capture::open(source, false)?.next_frame()?.map(|frame| (frame.width(), frame.height())))
        }
        _ => Ok(None),
    }
}

impl Capture {
    /// Opens `source`. With `realtime` frames arrive at the recording's own rate, else as fast as they decode.
    pub fn open(source: &Source, realtime: bool) -> Result<Self> {
        let camera = CameraOptions::default();
        Self::open_with(source, &OpenOptions { realtime, camera: &camera, live_queue: OpenOptions::LIVE_QUEUE })
    }

    /// Opens `source` with settings.
    pub fn open_with(source: &Source, options: &OpenOptions) -> Result<Self> {
        Self::try_open(source, options, None, false).map_err(|e| e.error)
    }

    /// Opens `source`; `told` are the files of a watched folder that were taken before.
    fn try_open(source: &Source, options: &OpenOptions, told: Option<Told>, software: bool) -> Result<Self, OpenError> {
        options.camera.check(source)?;
        get_ready(source)?;
        let mut capture = Capture {
            source: source.clone(),
            realtime: options.realtime,
            camera: options.camera.clone(),
            live_queue: options.live_queue.max(1),
            software: software || template::wants_software(options.camera),
            files: Vec::new(),
            watcher: None,
            current: None,
            next_seq: 0,
            bytes_in: 0,
            warnings: 0,
            lost: 0,
        };
        match source {
            Source::Folder { files, .. } => capture.files = files.iter().rev().cloned().collect(),
            Source::Watch(folder) => {
                let existing = options.camera.existing.unwrap_or(false);
                capture.watcher = Some(Watcher::new(folder, existing, told)?);
            }
            Source::File(path) => {
                capture.bytes_in = source::file_size(path)?;
                capture.start()?;
            }
            Source::Uri(_) | Source::Rtsp(_) | Source::V4l2(_) | Source::Genicam(_) | Source::Pipeline(_) => {
                capture.start()?;
            }
        }
        Ok(capture)
    }

    /// Opens the one pipeline of a source that has one.
    fn start(&mut self) -> Result<(), OpenError> {
        // an element that is not there does not come by waiting
        let lasting = |error| OpenError { error, may_pass: false };
        let text = match &self.source {
            Source::File(path) => template::file(path, self.software)?,
            Source::Genicam(name) => {
                aravis::is_installed().map_err(lasting)?;
                let camera = genicam::open(name, &self.camera)?;
                let text = template::genicam(&self.source, camera.is_bayer(), self.live_queue);
                let mut pipeline =
                    Pipeline::build(text, Reads::Camera(Camera::Genicam), None, false).map_err(lasting)?;
                pipeline.play_from(camera)?;
                self.current = Some(pipeline);
                return Ok(());
            }
            source => template::stream(source, &self.camera, self.live_queue, self.software)?,
        };
        let reads = match &self.source {
            Source::File(_) => Reads::Recording,
            Source::Rtsp(_) => Reads::Camera(Camera::Rtp),
            Source::V4l2(_) => Reads::Camera(Camera::V4l2),
            Source::Pipeline(_) => Reads::Camera(Camera::Unknown),
            _ => Reads::Other,
        };
        let sync = self.realtime && !self.source.is_live();
        let mut pipeline = Pipeline::build(text, reads, None, sync).map_err(lasting)?;
        match pipeline.play() {
            Ok(()) => self.current = Some(pipeline),
            Err(e) => self.fall_back(pipeline, e)?,
        }
        Ok(())
    }

    /// Opens the source once more without hardware decoders, if one of them is why it failed.
    fn fall_back(&mut self, failed: Pipeline, error: Error) -> Result<(), OpenError> {
        let Some(decoder) = failed.hardware_that_failed().filter(|_| !self.software) else { return Err(error.into()) };
        drop(failed);
        tracing::warn!(source = %self.source.name(), "hardware decoder \"{decoder}\" does not start, decoding in software: {error}");
        self.software = true;
        self.start()
    }

    /// The next frame, or `None` at the end of the source. Waits for a live source.
    pub fn next_frame(&mut self) -> Result<Option<Arc<Frame>>> {
        self.next_frame_unless(|| false)
    }

    /// As [`Capture::next_frame`]; also gives `None` soon after `halted` has become true, whatever the source does.
    pub fn next_frame_unless(&mut self, halted: impl Fn() -> bool) -> Result<Option<Arc<Frame>>> {
        loop {
            if halted() {
                return Ok(None);
            }
            match self.step(TICK)? {
                Step::Frame(frame) => return Ok(Some(frame)),
                Step::Waiting => {}
                Step::Ended => return Ok(None),
            }
        }
    }

    /// Waits for a frame, about as long as `wait`.
    fn step(&mut self, wait: Duration) -> Result<Step> {
        let Some(pipeline) = self.current.as_mut() else { return self.next_file(wait) };
        match pipeline.pull(wait) {
            Ok(Pulled::Frame(buffer, info)) => {
                let source_seq = pipeline.source_seq(&buffer);
                let mut frame = Frame::map(buffer, &info, self.next_seq, pipeline.file_name())?;
                frame.source_seq = source_seq;
                self.next_seq += 1;
                Ok(Step::Frame(Arc::new(frame)))
            }
            Ok(Pulled::Nothing) => Ok(Step::Waiting),
            Ok(Pulled::End) => {
                let ended = pipeline.finish();
                self.close(ended)
            }
            Err(e) if self.watcher.is_some() => self.close(Err(e)),
            Err(e) => {
                let Some(pipeline) = self.current.take() else { return Err(e) };
                self.lost += pipeline.lost();
                self.fall_back(pipeline, e).map_err(|e| e.error)?;
                Ok(Step::Waiting)
            }
        }
    }

    /// Puts away a pipeline that has come to its end.
    fn close(&mut self, ended: Result<u64>) -> Result<Step> {
        self.lost += self.current.take().map_or(0, |p| p.lost());
        match ended {
            Ok(warnings) => self.warnings += warnings,
            // one damaged file must not stop those after it
            Err(e) if self.watcher.is_some() => {
                self.lost += 1;
                tracing::warn!("a file of the watched folder is left out: {e}");
            }
            Err(e) => return Err(e),
        }
        let more = !self.files.is_empty() || self.watcher.is_some();
        Ok(if more { Step::Waiting } else { Step::Ended })
    }

    /// Opens the next image of a folder.
    fn next_file(&mut self, wait: Duration) -> Result<Step> {
        let path = match &mut self.watcher {
            Some(watcher) => match watcher.next(wait)? {
                Some(path) => path,
                None => return Ok(Step::Waiting),
            },
            None => match self.files.pop() {
                Some(path) => path,
                None => return Ok(Step::Ended),
            },
        };
        let watched = self.watcher.is_some();
        let name = path.file_name().map(|n| Arc::from(n.to_string_lossy().as_ref()));
        let open = || -> Result<(u64, Pipeline)> {
            let size = source::file_size(&path)?;
            let mut pipeline = Pipeline::build(template::image(&path, watched)?, Reads::Other, name, self.realtime)?;
            pipeline.play()?;
            Ok((size, pipeline))
        };
        match open() {
            Ok((size, pipeline)) => {
                self.bytes_in += size;
                self.current = Some(pipeline);
                Ok(Step::Waiting)
            }
            Err(e) => self.close(Err(e)),
        }
    }

    /// Frames handed out so far.
    pub fn frames(&self) -> u64 {
        self.next_seq
    }
    /// Encoded bytes of the files opened so far; 0 for a URI or camera, whose size is not known.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }
    /// Decoder complaints that did not end the stream (a damaged frame was concealed, for example).
    pub fn warnings(&self) -> u64 {
        self.warnings
    }
    /// Frames that the source made and that did not come: gaps in the camera's numbers (genicam, v4l2), times without a
    /// picture after lost packets (rtsp), files that could not be read (watch). 0 for sources that do not tell.
    pub fn lost_at_source(&self) -> u64 {
        self.lost + self.current.as_ref().map_or(0, Pipeline::lost)
    }
    /// Frames a second as the stream declares them.
    fn declared_rate(&self) -> Option<f64> {
        self.current.as_ref().and_then(Pipeline::declared_rate)
    }
    /// How many frames the source will give, where that is known before reading it.
    pub fn expected_frames(&self) -> Option<u64> {
        match &self.source {
            Source::Folder { files, .. } => Some(files.len() as u64),
            Source::File(_) | Source::Uri(_) => self.current.as_ref().and_then(Pipeline::expected_frames),
            Source::Watch(_) | Source::Rtsp(_) | Source::V4l2(_) | Source::Genicam(_) | Source::Pipeline(_) => None,
        }
    }
}
