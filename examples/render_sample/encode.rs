//! H.264 in an MP4 file, through GStreamer.

use gstreamer::{self as gst, prelude::*};
use gstreamer_app as gst_app;
use linesight::error::{Context, Error, Result};
use linesight_samples::sample::{FPS, Frame, HEIGHT, WIDTH};
use std::path::{Path, PathBuf};

/// A file that frames can be appended to.
pub struct Encoder {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    frames: usize,
    path: PathBuf,
}

impl Encoder {
    /// Starts to write `path`; `quality` is x264's constant rate factor (lower is better and bigger). One thread and no
    /// B-frames, so that the same frames give the same file, and players start at once.
    pub fn create(path: &Path, quality: u32) -> Result<Self> {
        gst::init().missing(|| "cannot start GStreamer")?;
        let location = path.to_str().ok_or_else(|| Error::usage(format!("path is not text: {path:?}")))?;
        let description = "appsrc name=frames \
             ! x264enc name=encoder pass=qual threads=1 bframes=0 key-int-max=120 speed-preset=medium \
             ! video/x-h264,profile=high ! h264parse ! mp4mux faststart=true ! filesink name=file";
        let pipeline = gst::parse::launch(description)
            .missing(|| "cannot build the encoder")?
            .downcast::<gst::Pipeline>()
            .map_err(|_| Error::failed("the encoder is not a pipeline"))?;
        let element =
            |name: &str| pipeline.by_name(name).ok_or_else(|| Error::failed(format!("no element \"{name}\"")));
        element("file")?.set_property("location", location);
        element("encoder")?.set_property("quantizer", quality);
        let source = element("frames")?
            .downcast::<gst_app::AppSrc>()
            .map_err(|_| Error::failed("\"frames\" is not an appsrc"))?;
        let caps = gst::Caps::builder("video/x-raw")
            .field("format", "I420")
            .field("width", WIDTH as i32)
            .field("height", HEIGHT as i32)
            .field("framerate", gst::Fraction::new(FPS as i32, 1))
            .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
            .field("interlace-mode", "progressive")
            .field("colorimetry", "bt709")
            .build();
        source.set_caps(Some(&caps));
        source.set_format(gst::Format::Time);
        source.set_block(true);
        source.set_max_bytes((WIDTH * HEIGHT * 3 / 2 * 24) as u64);
        pipeline.set_state(gst::State::Playing).failed(|| format!("cannot write \"{location}\""))?;
        Ok(Encoder { pipeline, source, frames: 0, path: path.to_path_buf() })
    }

    /// Appends one frame; waits when the encoder is behind.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let mut buffer = gst::Buffer::from_mut_slice([&frame.y[..], &frame.u, &frame.v].concat());
        let at = |n: usize| gst::ClockTime::SECOND.mul_div_floor(n as u64, FPS as u64);
        let (start, end) = (at(self.frames), at(self.frames + 1));
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(start);
            buffer.set_duration(end.zip(start).map(|(end, start)| end - start));
        }
        self.frames += 1;
        self.source.push_buffer(buffer).map(|_| ()).failed(|| format!("cannot encode frame {}", self.frames - 1))
    }

    /// Writes what is still inside and closes the file.
    pub fn finish(self) -> Result<()> {
        self.source.end_of_stream().failed(|| "cannot end the recording")?;
        let bus = self.pipeline.bus().ok_or_else(|| Error::failed("the encoder has no bus"))?;
        let message = bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Eos, gst::MessageType::Error]);
        let stopped = self.pipeline.set_state(gst::State::Null).failed(|| "cannot stop the encoder");
        if let Some(gst::MessageView::Error(e)) = message.as_ref().map(|m| m.view()) {
            return Err(Error::failed("cannot write the recording").because(e.error()));
        }
        stopped?;
        let name = || format!("cannot write \"{}\"", self.path.display());
        let mut file = std::fs::read(&self.path).failed(name)?;
        forget_when(&mut file);
        std::fs::write(&self.path, file).failed(name)
    }
}

/// Sets the times of creation and change in an MP4 file to zero: nothing else in it would differ from one day to the next.
fn forget_when(boxes: &mut [u8]) {
    let mut rest = boxes;
    while let Some(&[a, b, c, d]) = rest.first_chunk() {
        let length = (u32::from_be_bytes([a, b, c, d]) as usize).clamp(8, rest.len().max(8));
        let Some((this, next)) = rest.split_at_mut_checked(length) else { return };
        match &this[4..8] {
            b"moov" | b"trak" | b"mdia" => forget_when(&mut this[8..]),
            // version and flags, then both times of 32 bits each
            b"mvhd" | b"tkhd" | b"mdhd" if this.len() >= 20 && this[8] == 0 => this[12..20].fill(0),
            _ => {}
        }
        rest = next;
    }
}
