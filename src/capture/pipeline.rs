//! One running GStreamer pipeline: template in, mapped buffers out, messages of the bus turned into errors.

use crate::error::{Context, Error, Kind, Result};
use crate::frame::PixelFormat;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const FILE: &str = include_str!("../../pipelines/file.launch");
const IMAGE: &str = include_str!("../../pipelines/image.launch");
const WHOLE_IMAGE: &str = include_str!("../../pipelines/whole-image.launch");
const URI: &str = include_str!("../../pipelines/uri.launch");

/// How often a waiting pull looks at the bus.
const BUS_INTERVAL: gst::ClockTime = gst::ClockTime::from_mseconds(100);
/// A recording may lack this much of its declared length (rounding, edit lists) before it counts as cut off.
const LENGTH_TOLERANCE: gst::ClockTime = gst::ClockTime::from_mseconds(250);

pub(super) struct Pipeline {
    pipeline: gst::Pipeline,
    sink: gst_app::AppSink,
    bus: gst::Bus,
    /// What messages call the source.
    name: String,
    file_name: Option<Arc<str>>,
    is_recording: bool,
    info: Option<(gst::Caps, gst_video::VideoInfo)>,
    duration: Option<gst::ClockTime>,
    last_end: Option<gst::ClockTime>,
    /// Encoded pictures that reached the decoder.
    encoded: Arc<AtomicU64>,
    decoded: u64,
    /// Time within the recording for which no frame came.
    missing: gst::ClockTime,
    first_missing: Option<gst::ClockTime>,
    warnings: u64,
}

impl Pipeline {
    pub(super) fn file(path: &Path, realtime: bool) -> Result<Self> {
        let location = path_text(path)?;
        let template = if needs_all(path) { WHOLE_IMAGE } else { FILE };
        Self::start(template, "{location}", location, path.display().to_string(), None, realtime, true)
    }

    pub(super) fn image(path: &Path, realtime: bool) -> Result<Self> {
        let name = path.file_name().map(|n| Arc::from(n.to_string_lossy().as_ref()));
        let template = if needs_all(path) { WHOLE_IMAGE } else { IMAGE };
        Self::start(template, "{location}", path_text(path)?, path.display().to_string(), name, realtime, false)
    }

    pub(super) fn uri(uri: &str, realtime: bool) -> Result<Self> {
        let name = super::Source::Uri(uri.to_owned()).name();
        Self::start(URI, "{uri}", uri, name, None, realtime, false)
    }

    fn start(
        template: &str,
        key: &str,
        value: &str,
        name: String,
        file_name: Option<Arc<str>>,
        realtime: bool,
        is_recording: bool,
    ) -> Result<Self> {
        let text: String = template.lines().filter(|l| !l.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
        let text = text.replace(key, &quote(value));
        let pipeline = gst::parse::launch(&text)
            .map_err(|e| {
                Error::new(Kind::Missing, format!("no pipeline can be made for \"{name}\"")).because(e).hint(
                    "a GStreamer element is missing: install gstreamer1.0-plugins-base, -good and -libav (`make setup` does)",
                )
            })?
            .downcast::<gst::Pipeline>()
            .map_err(|_| Error::failed(format!("the template for \"{name}\" is not a pipeline")))?;
        let sink = pipeline
            .by_name("frames")
            .and_then(|e| e.downcast::<gst_app::AppSink>().ok())
            .ok_or_else(|| Error::failed("the pipeline template has no appsink named \"frames\""))?;
        sink.set_caps(Some(
            &gst::Caps::builder("video/x-raw").field("format", gst::List::new(PixelFormat::GST_NAMES)).build(),
        ));
        sink.set_sync(realtime);
        let bus = pipeline.bus().ok_or_else(|| Error::failed("the pipeline has no bus"))?;
        let mut this = Pipeline {
            pipeline,
            sink,
            bus,
            name,
            file_name,
            is_recording,
            info: None,
            duration: None,
            last_end: None,
            encoded: Arc::default(),
            decoded: 0,
            missing: gst::ClockTime::ZERO,
            first_missing: None,
            warnings: 0,
        };
        this.count_encoded();
        if this.pipeline.set_state(gst::State::Playing).is_err() {
            this.check_bus()?;
            return Err(Error::failed(format!("the pipeline for \"{}\" does not start", this.name)));
        }
        Ok(this)
    }

    pub(super) fn file_name(&self) -> Option<Arc<str>> {
        self.file_name.clone()
    }

    /// Next decoded buffer with its format, or `None` at the end of the stream or when `halted`.
    pub(super) fn pull(&mut self, halted: &impl Fn() -> bool) -> Result<Option<(gst::Buffer, gst_video::VideoInfo)>> {
        loop {
            if let Some(sample) = self.sink.try_pull_sample(BUS_INTERVAL) {
                let Some(caps) = sample.caps_owned() else {
                    return Err(Error::failed(format!("a frame of \"{}\" has no format", self.name)));
                };
                let info = match &self.info {
                    Some((known, info)) if *known == caps => info.clone(),
                    _ => {
                        let info = gst_video::VideoInfo::from_caps(&caps)
                            .failed(|| format!("the format of \"{}\" cannot be read: {caps}", self.name))?;
                        self.info = Some((caps, info.clone()));
                        self.duration = self.pipeline.query_duration::<gst::ClockTime>();
                        info
                    }
                };
                let Some(buffer) = sample.buffer_owned() else { continue };
                self.decoded += 1;
                if let Some(pts) = buffer.pts() {
                    if let Some(last) = self.last_end
                        && let Some(gap) = pts.checked_sub(last).filter(|gap| *gap > frame_time(&info) / 2)
                    {
                        self.missing += gap;
                        self.first_missing.get_or_insert(last);
                    }
                    let end = pts + buffer.duration().unwrap_or(gst::ClockTime::ZERO);
                    self.last_end = self.last_end.max(Some(end));
                }
                return Ok(Some((buffer, info)));
            }
            self.check_bus()?;
            if self.sink.is_eos() || halted() {
                return Ok(None);
            }
        }
    }

    /// Checks at the end of the stream that it was all there; returns how often the decoder complained.
    pub(super) fn finish(&mut self) -> Result<u64> {
        self.check_bus()?;
        if self.info.is_none() {
            return Err(self.no_video());
        }
        if self.is_recording
            && let (Some(duration), Some(end)) = (self.duration, self.last_end)
            && end + LENGTH_TOLERANCE < duration
        {
            return Err(Error::failed(format!(
                "recording \"{}\" ends early: {:.2} s of {:.2} s could be decoded",
                self.name,
                end.mseconds() as f64 / 1e3,
                duration.mseconds() as f64 / 1e3
            ))
            .hint("the file is cut off or damaged; copy it again, or cut it cleanly with another tool"));
        }
        // a gap alone may be the camera's, frames that were decoded and not shown alone the codec's
        let lost = self.encoded.load(Relaxed).saturating_sub(self.decoded);
        if self.is_recording
            && let Some(at) = self.first_missing
            && lost > 0
        {
            let text = format!(
                "{lost} frames of recording \"{}\" could not be decoded, the first at {:.2} s",
                self.name,
                at.mseconds() as f64 / 1e3
            );
            if self.missing > LENGTH_TOLERANCE {
                return Err(Error::failed(text)
                    .hint("the file is damaged: copy it again; what is before and after the damage was inspected"));
            }
            self.warnings += lost;
            tracing::warn!("{text}");
        }
        Ok(self.warnings)
    }

    /// Frames that the container declares, once the first frame was seen.
    pub(super) fn expected_frames(&self) -> Option<u64> {
        let (_, info) = self.info.as_ref()?;
        let fps = info.fps();
        let (n, d) = (fps.numer() as f64, fps.denom() as f64);
        (n > 0.0 && d > 0.0)
            .then(|| self.duration.map(|t| (t.nseconds() as f64 * 1e-9 * n / d).round() as u64))
            .flatten()
    }

    /// Counts what goes into video decoders, which come when the streams are known.
    fn count_encoded(&self) {
        let Some(decode) = self.pipeline.by_name("decode").and_then(|e| e.downcast::<gst::Bin>().ok()) else { return };
        let encoded = self.encoded.clone();
        decode.connect_deep_element_added(move |_, _, element| {
            let is_decoder = element
                .factory()
                .and_then(|f| {
                    f.metadata("klass").map(|k| k.contains("Decoder") && (k.contains("Video") || k.contains("Image")))
                })
                .unwrap_or(false);
            if let Some(pad) = element.static_pad("sink").filter(|_| is_decoder) {
                let encoded = encoded.clone();
                pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
                    encoded.fetch_add(1, Relaxed);
                    gst::PadProbeReturn::Ok
                });
            }
        });
    }

    fn check_bus(&mut self) -> Result<()> {
        while let Some(message) = self.bus.pop_filtered(&[gst::MessageType::Error, gst::MessageType::Warning]) {
            match message.view() {
                gst::MessageView::Error(e) => {
                    let element = e.src().map(|s| s.name().to_string()).unwrap_or_default();
                    if self.info.is_none() && self.has_only_audio() {
                        return Err(self.no_video());
                    }
                    // the first line says where in GStreamer's source it happened
                    let detail = e.debug().and_then(|d| d.lines().skip(1).last().map(|l| l.trim().to_owned()));
                    let error = Error::failed(format!(
                        "\"{}\" cannot be decoded: element \"{element}\" says: {}{}",
                        self.name,
                        e.error(),
                        detail.filter(|d| !d.is_empty()).map(|d| format!(" ({d})")).unwrap_or_default()
                    ));
                    return Err(error.hint("check that the file plays with `gst-launch-1.0 playbin uri=file:///...`, that it is complete, and that its codec's plugin is installed (`linesight doctor`)"));
                }
                gst::MessageView::Warning(w) => {
                    self.warnings += 1;
                    // the first complaint tells the story, the count is in the summary
                    if self.warnings == 1 {
                        let element = w.src().map(|s| s.name().to_string()).unwrap_or_default();
                        tracing::warn!(source = %self.name, element, "decoder complains: {}", w.error());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn no_video(&self) -> Error {
        Error::failed(format!("\"{}\" has no video stream", self.name))
            .hint("give a recording or an image; a file with sound only cannot be inspected")
    }

    /// Whether the decoder found streams and none of them is video.
    fn has_only_audio(&self) -> bool {
        let Some(decode) = self.pipeline.by_name("decode").and_then(|e| e.downcast::<gst::Bin>().ok()) else {
            return false;
        };
        let mut streams = Vec::new();
        for element in decode.iterate_recurse().into_iter().flatten() {
            for pad in element.src_pads() {
                if let Some(caps) = pad.current_caps()
                    && let Some(s) = caps.structure(0)
                {
                    streams.push(s.name().to_string());
                }
            }
        }
        streams.iter().any(|s| s.starts_with("audio/"))
            && !streams.iter().any(|s| s.starts_with("video/x-raw"))
            && !streams.iter().any(|s| s.starts_with("video/x-h") || s.starts_with("image/"))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // stopping cannot be refused in a way that a caller could act on
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// Whether this is an image of a kind whose decoder must be given the whole file.
fn needs_all(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    ["bmp", "tif", "tiff"].iter().any(|e| ending == *e)
}

/// How long one frame is shown; endless where the rate is not known or varies.
fn frame_time(info: &gst_video::VideoInfo) -> gst::ClockTime {
    let (n, d) = (info.fps().numer() as u64, info.fps().denom() as u64);
    (1_000_000_000 * d).checked_div(n).map_or(gst::ClockTime::MAX, gst::ClockTime::from_nseconds)
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::usage(format!("path \"{}\" is not valid UTF-8", path.display())).hint("rename the file or its folder")
    })
}

/// Quotes a value for gst_parse_launch.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}
