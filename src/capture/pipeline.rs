//! One running GStreamer pipeline: text in, mapped buffers out, messages of the bus turned into errors.

use super::genicam::{self, Feed};
use super::loss::{Holes, Numbers, Packets};
use super::memory;
use super::source::without;
use super::template::Text;
use crate::error::{Context, Error, Kind, Result};
use crate::frame::PixelFormat;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often a waiting pull looks at the bus.
const BUS_INTERVAL: Duration = Duration::from_millis(100);
/// A recording may lack this much of its declared length (rounding, edit lists) before it counts as cut off.
const LENGTH_TOLERANCE: gst::ClockTime = gst::ClockTime::from_mseconds(250);

/// A file is given up when nothing has worked on it at so many looks, one after the other, and no picture has come.
const IDLE_LOOKS: u32 = 3;

/// What a buffer without a number of its own has as offset.
const NO_OFFSET: u64 = u64::MAX;

/// What a pipeline reads; decides what counts as its end and how its errors read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Something with a declared length.
    Recording,
    /// One picture, or a stream that may end.
    Other,
    /// A camera.
    Camera(Camera),
}

/// Kinds of cameras, by where they tell what was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Camera {
    /// In the sequence numbers of RTP packets.
    Rtp,
    /// In the offsets of the buffers that the element "source" gives.
    V4l2,
    /// In the offsets of the buffers that arrive.
    Genicam,
    /// Nowhere that is known.
    Unknown,
}

/// How a wait for a frame ended.
pub(super) enum Pulled {
    Frame(gst::Buffer, gst_video::VideoInfo),
    Nothing,
    End,
}

pub(super) struct Pipeline {
    pipeline: gst::Pipeline,
    sink: gst_app::AppSink,
    bus: gst::Bus,
    /// What messages call the source.
    name: String,
    /// What no message may hold.
    secrets: Vec<String>,
    file_name: Option<Arc<str>>,
    reads: Reads,
    info: Option<(gst::Caps, gst_video::VideoInfo)>,
    duration: Option<gst::ClockTime>,
    last_end: Option<gst::ClockTime>,
    /// Looks, one after the other, at which nothing worked on a file.
    idle: u32,
    /// Encoded pictures that reached the decoder.
    encoded: Arc<AtomicU64>,
    /// The decoder that uses other hardware than the CPU, if there is one.
    hardware: Arc<Mutex<Option<String>>>,
    decoded: u64,
    /// Time within the recording for which no frame came.
    missing: gst::ClockTime,
    first_missing: Option<gst::ClockTime>,
    warnings: u64,
    /// Frames that the source made and that did not come.
    lost: Lost,
    feed: Option<Feed>,
    /// Frames a second that the camera was set to, where that is known before the first one.
    rate: Option<f64>,
}

enum Lost {
    Unknown,
    /// Counted by a probe.
    Probe(Arc<AtomicU64>),
    Numbers(Numbers, u64),
    Holes(Holes, u64),
}

impl Pipeline {
    /// Makes the pipeline; nothing is opened yet. An error will not go away by itself.
    pub(super) fn build(text: Text, reads: Reads, file_name: Option<Arc<str>>, sync: bool) -> Result<Self> {
        let paced = sync || matches!(reads, Reads::Camera(_));
        let Text { launch, name, secrets, properties, is_users, queue } = text;
        let pipeline = gst::parse::launch(&launch)
            .map_err(|e| {
                let words = without(e.message().to_owned(), &secrets);
                match is_users {
                    true => Error::usage(format!("\"{name}\" is no pipeline: {words}")).hint(
                        "try the text with `gst-launch-1.0 TEXT ! videoconvert ! fakesink`; its open end must give raw video",
                    ),
                    false => Error::new(Kind::Missing, format!("no pipeline can be made for \"{name}\": {words}")).hint(
                        "a GStreamer element is missing: install gstreamer1.0-plugins-base, -good, -bad and -libav (`make setup` does)",
                    ),
                }
            })?
            .downcast::<gst::Pipeline>()
            .map_err(|_| Error::usage(format!("\"{name}\" is not a pipeline")).hint("give elements joined by \"!\""))?;
        for (element, property, value) in properties {
            if let Some(element) = pipeline.by_name(element) {
                element.set_property(property, value);
            }
        }
        let sink = pipeline.by_name("frames").and_then(|e| e.downcast::<gst_app::AppSink>().ok()).ok_or_else(|| {
            Error::usage(format!("\"{name}\" has an element \"frames\" that is no appsink"))
                .hint("give that name to an appsink, or to nothing: linesight adds its own end")
        })?;
        sink.set_caps(Some(
            &gst::Caps::builder("video/x-raw").field("format", gst::List::new(PixelFormat::GST_NAMES)).build(),
        ));
        memory::offer(sink.upcast_ref(), !is_users);
        sink.set_sync(sync);
        if is_users {
            // nothing drops unseen, and nothing grows
            sink.set_drop(false);
            if sink.max_buffers() == 0 {
                sink.set_max_buffers(queue);
            }
        }
        let bus = pipeline.bus().ok_or_else(|| Error::failed("the pipeline has no bus"))?;
        let mut this = Pipeline {
            pipeline,
            sink,
            bus,
            name,
            secrets,
            file_name,
            reads,
            info: None,
            duration: None,
            last_end: None,
            idle: 0,
            encoded: Arc::default(),
            hardware: Arc::default(),
            decoded: 0,
            missing: gst::ClockTime::ZERO,
            first_missing: None,
            warnings: 0,
            lost: Lost::Unknown,
            feed: None,
            rate: None,
        };
        this.watch_decoder(decoder_threads(paced));
        this.count_lost();
        Ok(this)
    }

    /// Opens the source.
    pub(super) fn play(&mut self) -> Result<()> {
        if self.pipeline.set_state(gst::State::Playing).is_err() {
            self.check_bus()?;
            return Err(Error::failed(format!("the pipeline for \"{}\" does not start", self.name)));
        }
        Ok(())
    }

    /// Opens the source, which is a camera that linesight drives itself.
    pub(super) fn play_from(&mut self, camera: genicam::Ready) -> Result<()> {
        let to = self.pipeline.by_name("camera").and_then(|e| e.downcast::<gst_app::AppSrc>().ok());
        let to = to.ok_or_else(|| Error::failed("the pipeline template has no appsrc named \"camera\""))?;
        self.rate = camera.rate();
        self.feed = Some(Feed::start(camera, to, &self.name)?);
        self.play()
    }

    pub(super) fn file_name(&self) -> Option<Arc<str>> {
        self.file_name.clone()
    }

    /// The next decoded buffer with its format, waited for as long as `wait`.
    pub(super) fn pull(&mut self, wait: Duration) -> Result<Pulled> {
        let wait = gst::ClockTime::from_nseconds(wait.min(BUS_INTERVAL).as_nanos() as u64);
        if let Some(sample) = self.sink.try_pull_sample(wait) {
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
            let Some(buffer) = sample.buffer_owned() else { return Ok(Pulled::Nothing) };
            self.decoded += 1;
            match &mut self.lost {
                Lost::Numbers(numbers, lost) if buffer.offset() != NO_OFFSET => {
                    *lost += numbers.see(buffer.offset());
                }
                Lost::Holes(holes, lost) => {
                    if let Some(pts) = buffer.pts() {
                        *lost += holes.see(pts.into());
                    }
                }
                Lost::Numbers(..) | Lost::Unknown | Lost::Probe(_) => {}
            }
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
            return Ok(Pulled::Frame(buffer, info));
        }
        self.check_bus()?;
        if self.sink.is_eos() {
            return Ok(Pulled::End);
        }
        let is_file = self.reads == Reads::Recording || self.file_name.is_some();
        self.idle = if is_file && self.info.is_none() && !self.is_at_work() { self.idle + 1 } else { 0 };
        if self.idle >= IDLE_LOOKS {
            return Err(Error::failed(format!(
                "\"{}\" cannot be decoded: no picture came, and no element says why; it may be incomplete",
                self.name
            ))
            .hint("check that the file is complete and plays; copy it again from where it was made"));
        }
        Ok(Pulled::Nothing)
    }

    /// Whether any thread of the pipeline still works or waits for data. When an element gives up, its thread pauses and it
    /// complains; decodebin of GStreamer 1.22 keeps the complaint to itself if it comes while the element is being linked, which
    /// happens with one in ten recordings that end within their header.
    fn is_at_work(&self) -> bool {
        let mut elements = self.pipeline.iterate_recurse().into_iter().flatten();
        elements.any(|e| e.pads().iter().any(|pad| pad.task_state() == gst::TaskState::Started))
    }

    /// Frames that the source made and that did not come.
    pub(super) fn lost(&self) -> u64 {
        match &self.lost {
            Lost::Unknown => 0,
            Lost::Probe(lost) => lost.load(Relaxed),
            Lost::Numbers(_, lost) | Lost::Holes(_, lost) => *lost,
        }
    }

    /// The source's own number of a frame, where it has one.
    pub(super) fn source_seq(&self, buffer: &gst::Buffer) -> Option<u64> {
        let numbered = matches!(self.reads, Reads::Camera(c) if c != Camera::Rtp);
        Some(buffer.offset()).filter(|n| numbered && *n != NO_OFFSET)
    }

    /// Frames a second as the stream declares them.
    pub(super) fn declared_rate(&self) -> Option<f64> {
        let Some((_, info)) = &self.info else { return self.rate };
        let fps = info.fps();
        let rate = f64::from(fps.numer()) / f64::from(fps.denom());
        Some(rate).filter(|r| r.is_finite() && *r > 0.0)
    }

    /// The decoder that uses other hardware than the CPU, if there is one and it has given nothing yet.
    pub(super) fn hardware_that_failed(&self) -> Option<String> {
        let name = self.hardware.lock().unwrap_or_else(PoisonError::into_inner).clone();
        name.filter(|_| self.decoded == 0)
    }

    /// Checks at the end of the stream that it was all there; returns how often the decoder complained.
    pub(super) fn finish(&mut self) -> Result<u64> {
        self.check_bus()?;
        if let Reads::Camera(_) = self.reads {
            return Ok(self.warnings);
        }
        if self.info.is_none() {
            return Err(self.no_video());
        }
        let is_recording = self.reads == Reads::Recording;
        if is_recording
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
        if is_recording
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

    /// Counts what goes into video decoders, learns which they are and gives them `threads`; they come when the streams are
    /// known.
    fn watch_decoder(&self, threads: i32) {
        let encoded = self.encoded.clone();
        let hardware = self.hardware.clone();
        self.pipeline.connect_deep_element_added(move |_, _, element| {
            let class = element.factory().and_then(|f| f.metadata("klass").map(str::to_owned)).unwrap_or_default();
            if !class.contains("Decoder") || !(class.contains("Video") || class.contains("Image")) {
                return;
            }
            if element.find_property("max-threads").is_some_and(|p| p.value_type() == i32::static_type()) {
                element.set_property("max-threads", threads);
            }
            if class.contains("Hardware") {
                let name = element.factory().map(|f| f.name().to_string());
                *hardware.lock().unwrap_or_else(PoisonError::into_inner) = name;
            }
            if let Some(pad) = element.static_pad("sink") {
                let encoded = encoded.clone();
                pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
                    encoded.fetch_add(1, Relaxed);
                    gst::PadProbeReturn::Ok
                });
            }
        });
    }

    /// Looks where this kind of source tells what was lost.
    fn count_lost(&mut self) {
        let Reads::Camera(camera) = self.reads else { return };
        self.lost = match camera {
            Camera::Unknown => Lost::Unknown,
            Camera::Genicam => Lost::Numbers(Numbers::default(), 0),
            Camera::V4l2 => {
                let lost = Arc::new(AtomicU64::new(0));
                if let Some(pad) = self.pipeline.by_name("source").and_then(|e| e.static_pad("src")) {
                    let (lost, numbers) = (lost.clone(), Mutex::new(Numbers::default()));
                    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
                        if let Some(b) = info.buffer()
                            && b.offset() != NO_OFFSET
                        {
                            let missing = numbers.lock().unwrap_or_else(PoisonError::into_inner).see(b.offset());
                            lost.fetch_add(missing, Relaxed);
                        }
                        gst::PadProbeReturn::Ok
                    });
                }
                Lost::Probe(lost)
            }
            Camera::Rtp => {
                let packets = Arc::new(Packets::default());
                let seen = packets.clone();
                self.pipeline.connect_deep_element_added(move |_, _, element| prepare_rtp(element, &seen));
                // sound and camera events are not even asked for
                if let Some(source) = self.pipeline.by_name("source") {
                    source.connect("select-stream", false, |values| {
                        let caps = values.get(2).and_then(|v| v.get::<gst::Caps>().ok());
                        let media = caps.and_then(|c| c.structure(0).and_then(|s| s.get::<String>("media").ok()));
                        Some(media.is_none_or(|m| m == "video").to_value())
                    });
                }
                Lost::Holes(Holes::new(packets), 0)
            }
        };
    }

    fn check_bus(&mut self) -> Result<()> {
        if let Some(error) = self.feed.as_ref().and_then(Feed::error) {
            return Err(error);
        }
        while let Some(message) = self.bus.pop_filtered(&[gst::MessageType::Error, gst::MessageType::Warning]) {
            match message.view() {
                gst::MessageView::Error(e) => {
                    let element = e.src().map(|s| s.name().to_string()).unwrap_or_default();
                    if self.info.is_none() && self.reads != Reads::Camera(Camera::Rtp) && self.has_only_audio() {
                        return Err(self.no_video());
                    }
                    // the first line says where in GStreamer's source it happened
                    let detail = e.debug().and_then(|d| d.lines().skip(1).last().map(|l| l.trim().to_owned()));
                    let says = format!(
                        "element \"{element}\" says: {}{}",
                        e.error(),
                        detail.filter(|d| !d.is_empty()).map(|d| format!(" ({d})")).unwrap_or_default()
                    );
                    let says = without(says, &self.secrets);
                    return Err(match self.reads {
                        Reads::Camera(camera) => self.camera_error(camera, &e.error(), &says),
                        Reads::Recording | Reads::Other => {
                            Error::failed(format!("\"{}\" cannot be decoded: {says}", self.name)).hint("check that the file plays with `gst-launch-1.0 playbin uri=file:///...`, that it is complete, and that its codec's plugin is installed (`linesight doctor`)")
                        }
                    });
                }
                gst::MessageView::Warning(w) => {
                    self.warnings += 1;
                    // the first complaint tells the story, the count is in the summary
                    if self.warnings == 1 {
                        let element = w.src().map(|s| s.name().to_string()).unwrap_or_default();
                        let words = without(w.error().to_string(), &self.secrets);
                        tracing::warn!(source = %self.name, element, "decoder complains: {words}");
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn camera_error(&self, camera: Camera, error: &gst::glib::Error, says: &str) -> Error {
        let resource = error.kind::<gst::ResourceError>();
        let text = format!("source \"{}\" failed: {says}", self.name);
        let refused = resource == Some(gst::ResourceError::NotAuthorized)
            || ["Unauthorized", "401", "Forbidden"].iter().any(|w| says.contains(w));
        match camera {
            // waiting does not help: the user must act
            Camera::Rtp if refused => Error::usage(text)
                .hint("set the camera's user and password with credentials_file or credentials_env"),
            Camera::Rtp => Error::missing(text).hint(
                "check the camera's power, address and path (`gst-launch-1.0 rtspsrc location=... ! fakesink`), and the firewall; some cameras need protocol = \"udp\"",
            ),
            Camera::V4l2 => Error::missing(text).hint(
                "check that the device is plugged in, may be read (group video), is used by no other program and has this format, size and rate: `linesight cameras` lists them",
            ),
            Camera::Genicam | Camera::Unknown => {
                Error::failed(text).hint("try the pipeline with `gst-launch-1.0`; `linesight doctor` tells what is missing")
            }
        }
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
        // the camera first, so that nobody pushes into a pipeline that is being stopped; its thread ends meanwhile
        if let Some(feed) = &self.feed {
            feed.stop();
        }
        // stopping cannot be refused in a way that a caller could act on
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// Has depayloaders tell what was lost and keep damaged pictures to themselves.
fn prepare_rtp(element: &gst::Element, packets: &Arc<Packets>) {
    let Some(factory) = element.factory() else { return };
    if element.has_property("output-corrupt") {
        element.set_property("output-corrupt", false);
    }
    if !factory.metadata("klass").is_some_and(|k| k.contains("Depayloader")) {
        return;
    }
    for property in ["wait-for-keyframe", "request-keyframe"] {
        if element.has_property(property) {
            element.set_property(property, true);
        }
    }
    let Some(pad) = element.static_pad("sink") else { return };
    let seen = packets.clone();
    let see = move |buffer: &gst::BufferRef| {
        let mut header = [0; 4];
        if buffer.copy_to_slice(0, &mut header).is_ok()
            && let Some(time) = buffer.pts()
        {
            seen.see(&header, time.into());
        }
    };
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, move |_, info| {
        match &info.data {
            Some(gst::PadProbeData::Buffer(b)) => see(b),
            Some(gst::PadProbeData::BufferList(list)) => list.iter().for_each(&see),
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
    let Some(pad) = element.static_pad("src") else { return };
    let packets = packets.clone();
    let is_whole = move |buffer: &gst::BufferRef| {
        let builds = buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        buffer.pts().is_none_or(|time| packets.is_whole(time.into(), builds))
    };
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, move |_, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Buffer(b)) if !is_whole(b) => return gst::PadProbeReturn::Drop,
            Some(gst::PadProbeData::BufferList(list)) => {
                list.make_mut().foreach_mut(|b, _| std::ops::ControlFlow::Continue(is_whole(&b).then_some(b)));
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Threads of a software decoder. What comes at a pace is decoded by one: more would take cores from the network, cost a fifth
/// more for themselves and hold each frame back by as many frames as there are threads. What is read as fast as possible is
/// decoded by what the network leaves.
fn decoder_threads(paced: bool) -> i32 {
    /// More do not help: the network is then the slower stage.
    const MOST: usize = 4;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if paced { 1 } else { (cores - 1).clamp(1, MOST) as i32 }
}

/// How long one frame is shown; endless where the rate is not known or varies.
fn frame_time(info: &gst_video::VideoInfo) -> gst::ClockTime {
    let (n, d) = (info.fps().numer() as u64, info.fps().denom() as u64);
    (1_000_000_000 * d).checked_div(n).map_or(gst::ClockTime::MAX, gst::ClockTime::from_nseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements that neither work nor end nor complain.
    #[test]
    fn a_file_that_gives_nothing_is_not_waited_for_forever() {
        gst::init().unwrap();
        let text = Text {
            launch: "identity ! appsink name=frames".into(),
            name: "silent.mp4".into(),
            secrets: Vec::new(),
            properties: Vec::new(),
            is_users: false,
            queue: 1,
        };
        let mut pipeline = Pipeline::build(text, Reads::Recording, None, false).unwrap();
        pipeline.play().unwrap();
        let mut waited = 0;
        let error = loop {
            match pipeline.pull(Duration::from_millis(20)) {
                Ok(Pulled::Nothing) => waited += 1,
                Ok(_) => panic!("it gave something"),
                Err(e) => break e,
            }
        };
        assert!(waited > 1, "given up at once");
        assert!(error.to_string().starts_with("\"silent.mp4\" cannot be decoded: no picture came"), "{error}");
    }
}
