//! Capture: a GStreamer pipeline from one of the documented templates in `pipelines/`, ending in an appsink that hands out
//! frames in the decoder's own format.
//!
//! A [`Capture`] belongs to the thread that pulls from it. Invariants:
//! 1. Nothing is lost between decoder and caller: the appsink never drops (`drop=false`); when the caller is slow the
//!    pipeline waits (test `tests/capture.rs::every_frame_of_a_recording_arrives_in_order`).
//! 2. A source ends with `Ok(None)` only when its end was really reached; a decode error, a missing video stream and a
//!    recording that ends early are errors that name the file and the element (test `tests/bad_input.rs`).

mod pipeline;
mod source;

pub use source::Source;

use crate::error::{Error, Result};
use crate::frame::Frame;
use pipeline::Pipeline;
use std::path::PathBuf;
use std::sync::Arc;

/// Frames of one [`Source`], pulled one by one.
pub struct Capture {
    source: Source,
    realtime: bool,
    /// Image folders: files still to be opened, last first.
    files: Vec<PathBuf>,
    current: Option<Pipeline>,
    next_seq: u64,
    bytes_in: u64,
    warnings: u64,
}

impl Capture {
    /// Opens `source`. With `realtime` frames arrive at the recording's own rate, else as fast as they decode.
    pub fn open(source: &Source, realtime: bool) -> Result<Self> {
        gstreamer::init()
            .map_err(|e| Error::missing("GStreamer cannot be initialised").because(e).hint("run `make setup`"))?;
        let mut capture = Capture {
            source: source.clone(),
            realtime,
            files: Vec::new(),
            current: None,
            next_seq: 0,
            bytes_in: 0,
            warnings: 0,
        };
        match source {
            Source::Folder { files, .. } => capture.files = files.iter().rev().cloned().collect(),
            Source::File(path) => {
                capture.bytes_in = source::file_size(path)?;
                capture.current = Some(Pipeline::file(path, realtime)?);
            }
            Source::Uri(uri) => capture.current = Some(Pipeline::uri(uri, realtime)?),
        }
        Ok(capture)
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
            if self.current.is_none() {
                let Some(path) = self.files.pop() else { return Ok(None) };
                self.bytes_in += source::file_size(&path)?;
                self.current = Some(Pipeline::image(&path, self.realtime)?);
            }
            let Some(pipeline) = self.current.as_mut() else { continue };
            if let Some((buffer, info)) = pipeline.pull(&halted)? {
                let frame = Frame::map(buffer, &info, self.next_seq, pipeline.file_name())?;
                self.next_seq += 1;
                return Ok(Some(Arc::new(frame)));
            }
            if halted() {
                return Ok(None);
            }
            self.warnings += pipeline.finish()?;
            self.current = None;
            if self.files.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Frames handed out so far.
    pub fn frames(&self) -> u64 {
        self.next_seq
    }
    /// Encoded bytes of the files opened so far; 0 for a URI, whose size is not known.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }
    /// Decoder complaints that did not end the stream (a damaged frame was concealed, for example).
    pub fn warnings(&self) -> u64 {
        self.warnings
    }
    /// How many frames the source will give, where that is known before reading it.
    pub fn expected_frames(&self) -> Option<u64> {
        match &self.source {
            Source::Folder { files, .. } => Some(files.len() as u64),
            Source::File(_) | Source::Uri(_) => self.current.as_ref().and_then(Pipeline::expected_frames),
        }
    }
}
