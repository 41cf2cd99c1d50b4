//! A GigE Vision or USB3 Vision camera: sets it up, and carries its pictures into the pipeline's appsrc.
//!
//! The camera belongs to the thread `capture-genicam` from the moment it streams. Invariants:
//! 1. Pictures are not copied, and their memory is not written to again while anybody holds them (test
//!    `tests/sources.rs::frames_outlive_their_camera`).
//! 2. A picture that the camera made and that did not arrive leaves a gap in [`Sequence`]; numbers that wrap leave none
//!    (test `numbers_that_wrap_leave_no_gap`).
//! 3. Nothing times out while a triggered camera waits for its trigger (test `tests/sources.rs::a_triggered_camera_may_rest`).

use super::aravis::{Camera, Picture, Stream};
use super::options::{CameraOptions, CameraTrigger, GENICAM_FORMATS};
use super::packets::Before;
use crate::error::{Context, Error, Result};
use gstreamer as gst;
use gstreamer::glib;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The camera's own buffers: as many as fit into this many bytes ...
const BUFFER_BYTES: usize = 512 << 20;
/// ... but at least and at most so many. Those that hold frames of ours are not there for the camera.
const BUFFERS: std::ops::RangeInclusive<usize> = 16..=48;
/// How often a waiting thread looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);
/// Between the stream's socket being bound ([`super::packets`]) and starting the camera: its filter is set meanwhile, and we keep
/// quiet. What still goes wrong (other traffic) is ended by the watch on the first frame.
const SETTLE: Duration = Duration::from_millis(50);
/// Frame numbers of GigE Vision 1 have 16 bits and leave out 0.
const WRAP: u64 = 0xffff;

/// A camera that is set up and does not stream yet.
pub(super) struct Ready {
    camera: Camera,
    stream: Stream,
    caps: gst::Caps,
    layout: Layout,
    /// Between two software triggers.
    trigger: Option<Duration>,
}

/// How rows of the camera, which have no padding, are handed to GStreamer, which wants multiples of four bytes.
#[derive(Clone, Copy)]
enum Layout {
    /// As GStreamer wants them.
    Same,
    /// Said in the buffer's meta. Format, and bytes in a row.
    Meta(gst_video::VideoFormat, i32),
    /// Copied, because the element after it does not read the meta. Bytes in a row.
    Copy(usize),
}

/// How long a camera on the network may take to say that it is there, and how often it is asked.
const THERE: Duration = Duration::from_millis(100);
const ASKED: u32 = 10;
/// Cameras that have said so.
static KNOWN: Mutex<BTreeSet<Ipv4Addr>> = Mutex::new(BTreeSet::new());

/// Whether a GigE Vision camera at an address answers the discovery command (GigE Vision 2.0, 14.3), which every one must. To
/// open one that does not can take aravis three seconds of repeated questions, in which it may well come back unnoticed. One that
/// never has answered is opened all the same: what it lacks is for aravis to say.
fn look_first(name: &str) -> Result<()> {
    let Ok(address) = name.parse::<Ipv4Addr>() else { return Ok(()) };
    let answers = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(THERE))?;
        // key, flag "answer", command DISCOVERY, no payload, number 1
        socket.send_to(&[0x42, 0x01, 0x00, 0x02, 0x00, 0x00, 0x00, 0x01], (address, 3956))?;
        let mut answer = [0; 1024];
        let (n, from) = socket.recv_from(&mut answer)?;
        Ok(from.ip() == address && n >= 8 && answer[2..4] == [0x00, 0x03])
    };
    let there = (0..ASKED).any(|_| {
        let asked = Instant::now();
        let there = answers().unwrap_or(false);
        if !there {
            // a port that is closed says so at once
            std::thread::sleep(THERE.saturating_sub(asked.elapsed()));
        }
        there
    });
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if there {
        known.insert(address);
    } else if known.contains(&address) {
        return Err(Error::missing(format!("camera \"{name}\" does not answer"))
            .hint("check its power and cable; linesight goes on as soon as it is back"));
    }
    Ok(())
}

/// Opens the camera and sets it up; opened pictures wait for [`Feed::start`].
pub(super) fn open(name: &str, options: &CameraOptions) -> Result<Ready> {
    look_first(name)?;
    let camera = Camera::open(name)?;
    let refused = |what: &str, e: glib::Error| {
        Error::failed(format!("camera \"{name}\" does not take {what}")).because(e).hint(
            "give a value that the camera has (`linesight cameras` lists sizes, formats and rates); another program may be in control of it",
        )
    };
    let lacks = |what: &str| {
        Error::usage(format!("camera \"{name}\" has no {what} that could be set"))
            .hint(format!("leave out {what} and set it at the camera"))
    };
    // a camera that another program left streaming refuses the rest
    let _ = camera.stop();
    // triggers stay set in the camera: without this it would wait for those of the last program
    let cleared = camera.clear_triggers();
    if let Some(format) = &options.format {
        let has = camera.formats().map_err(|e| refused("questions about its formats", e))?;
        let names = GENICAM_FORMATS.iter().find(|(n, _)| n == format).map(|f| f.1).unwrap_or_default();
        let name_there = names.iter().find(|n| has.iter().any(|h| h == *n)).ok_or_else(|| {
            Error::usage(format!("camera \"{name}\" has no format \"{format}\""))
                .hint(format!("it calls those that it has: {}", has.join(", ")))
        })?;
        camera.set_format(name_there).map_err(|e| refused(&format!("format \"{format}\""), e))?;
    }
    if options.width.is_some() || options.height.is_some() {
        let [x, y, w, h] = camera.region().map_err(|e| refused("questions about its size", e))?;
        let wanted = [options.width.map_or(w, |w| w as i32), options.height.map_or(h, |h| h as i32)];
        let (most_w, most_h) = camera.largest().map_err(|e| refused("questions about its size", e))?;
        if wanted[0] as u32 > most_w || wanted[1] as u32 > most_h {
            return Err(Error::usage(format!("camera \"{name}\" has no {} x {} pixels", wanted[0], wanted[1]))
                .hint(format!("its largest picture is {most_w} x {most_h}")));
        }
        // a place from which the new size would reach beyond the edge is moved
        let place = |at: i32, size: i32, most: u32| at.min(most as i32 - size).max(0);
        let region = [place(x, wanted[0], most_w), place(y, wanted[1], most_h), wanted[0], wanted[1]];
        camera.set_region(region).map_err(|e| refused(&format!("{} x {} pixels", wanted[0], wanted[1]), e))?;
    }
    let trigger = options.trigger.unwrap_or(CameraTrigger::Off);
    if let Some(fps) = options.fps.filter(|_| trigger != CameraTrigger::Software) {
        match camera.rates() {
            None => return Err(lacks("fps")),
            Some((least, most)) if !(least..=most).contains(&fps) => {
                return Err(Error::usage(format!("camera \"{name}\" does not make {fps} frames a second"))
                    .hint(format!("it makes {least} to {most} with this exposure")));
            }
            Some(_) => camera.set_rate(fps).map_err(|e| refused(&format!("{fps} frames a second"), e))?,
        }
    }
    if let Some(us) = options.exposure_us
        && !camera.set_exposure(us).map_err(|e| refused(&format!("exposure_us {us}"), e))?
    {
        return Err(lacks("exposure_us"));
    }
    if let Some(gain) = options.gain
        && !camera.set_gain(gain).map_err(|e| refused(&format!("gain {gain}"), e))?
    {
        return Err(lacks("gain"));
    }
    match (camera.is_gige(), options.packet_size) {
        (true, Some(bytes)) => {
            camera.set_packet_size(bytes).map_err(|e| refused(&format!("packet_size {bytes}"), e))?;
        }
        (false, Some(_)) => {
            return Err(Error::usage(format!("camera \"{name}\" has no packets: it is not on the network"))
                .hint("leave out packet_size"));
        }
        // cameras without it keep the size that they have
        (true, None) => match camera.negotiate_packet_size() {
            Ok(bytes) => tracing::debug!(camera = name, bytes, "packet size negotiated"),
            Err(e) => tracing::debug!(camera = name, "packet size not negotiated: {e}"),
        },
        (false, None) => {}
    }
    let _ = camera.set_continuous();
    match trigger {
        // a camera without triggers has none to clear; one that keeps its own would deliver nothing
        CameraTrigger::Off => drop(cleared),
        CameraTrigger::Software => {
            camera.set_trigger("Software").map_err(|e| refused("a software trigger", e))?;
        }
        CameraTrigger::Hardware => {
            let line = options.trigger_source.as_deref().unwrap_or("Line0");
            camera.set_trigger(line).map_err(|e| refused(&format!("trigger_source \"{line}\""), e))?;
        }
    }

    let [_, _, w, h] = camera.region().map_err(|e| refused("questions about its size", e))?;
    let format = camera.format().map_err(|e| refused("questions about its format", e))?;
    let caps = camera.caps().map_err(|e| refused("questions about its format", e))?;
    let mut caps: gst::Caps = caps.and_then(|c| c.parse().ok()).ok_or_else(|| {
        Error::usage(format!("camera \"{name}\" sends \"{format}\", which GStreamer does not know"))
            .hint(format!("set format to one of: {}", GENICAM_FORMATS.map(|f| f.0).join(", ")))
    })?;
    let rate = match trigger {
        CameraTrigger::Off => camera.rate().and_then(gst::Fraction::approximate_f64),
        CameraTrigger::Software | CameraTrigger::Hardware => None,
    };
    {
        let caps = caps.make_mut();
        caps.set("width", w);
        caps.set("height", h);
        caps.set("framerate", rate.unwrap_or(gst::Fraction::new(0, 1)));
    }
    let layout = match gst_video::VideoInfo::from_caps(&caps) {
        // GStreamer's bayer2rgb reads beyond the end of such pictures and crashes
        _ if is_bayer(&caps) && (w % 2 != 0 || h % 2 != 0) => {
            return Err(Error::usage(format!("camera \"{name}\" sends Bayer pictures of {w} x {h} pixels"))
                .hint("set width and height to even numbers"));
        }
        // a Bayer mosaic is no video format to GStreamer: one byte a pixel
        _ if is_bayer(&caps) => match w % 4 {
            0 => Layout::Same,
            _ => Layout::Copy(w as usize),
        },
        Ok(info) if info.n_components() > 0 => match info.comp_pstride(0) * w {
            row if row % 4 == 0 => Layout::Same,
            row => Layout::Meta(info.format(), row),
        },
        _ => {
            return Err(Error::usage(format!("camera \"{name}\" sends \"{format}\", which linesight does not read"))
                .hint(format!("set format to one of: {}", GENICAM_FORMATS.map(|f| f.0).join(", "))));
        }
    };
    let payload = camera.payload().map_err(|e| refused("questions about its pictures", e))?;
    let buffers = (BUFFER_BYTES / payload.max(1)).clamp(*BUFFERS.start(), *BUFFERS.end());
    let before = camera.is_gige().then(Before::now);
    let stream = camera.stream(buffers, payload).map_err(|e| {
        Error::failed(format!("camera \"{name}\" opens no stream"))
            .because(e)
            .hint("another program may have the camera")
    })?;
    if before.is_some_and(|before| !before.wait()) {
        tracing::debug!(camera = name, "the stream's socket is not ready");
    }
    let trigger =
        options.fps.filter(|_| trigger == CameraTrigger::Software).map(|fps| Duration::from_secs_f64(1.0 / fps));
    Ok(Ready { camera, stream, caps, layout, trigger })
}

impl Ready {
    /// Frames a second, where it runs freely and says so.
    pub(super) fn rate(&self) -> Option<f64> {
        let rate = self.caps.structure(0)?.get::<gst::Fraction>("framerate").ok()?;
        Some(f64::from(rate.numer()) / f64::from(rate.denom())).filter(|r| *r > 0.0)
    }

    /// Whether its pictures are Bayer mosaics.
    pub(super) fn is_bayer(&self) -> bool {
        is_bayer(&self.caps)
    }
}

fn is_bayer(caps: &gst::Caps) -> bool {
    caps.structure(0).is_some_and(|s| s.name() == "video/x-bayer")
}

/// The thread that carries pictures from the camera into the pipeline.
pub(super) struct Feed {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The camera said that it is gone.
    lost: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Feed {
    /// Starts the camera. `to` belongs to a pipeline that is about to play.
    pub(super) fn start(ready: Ready, to: gst_app::AppSrc, name: &str) -> Result<Feed> {
        let shared = Arc::new(Shared::default());
        to.set_caps(Some(&ready.caps));
        let lost = Arc::downgrade(&shared);
        let watch = ready.camera.on_lost(move || {
            if let Some(shared) = lost.upgrade() {
                shared.lost.store(true, Relaxed);
            }
        });
        let (name, mine) = (name.to_owned(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("capture-genicam".into())
            .spawn(move || {
                // dropped last
                let _watch = watch;
                let Ready { camera, stream, layout, trigger, .. } = ready;
                if let Err(e) = carry(&camera, &stream, layout, trigger, &to, &mine, &name) {
                    *mine.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    // wakes up whoever waits at the other end; it looks for the error then
                    let _ = to.end_of_stream();
                }
                if !mine.lost.load(Relaxed) {
                    // one that does not answer has stopped in its own way
                    let _ = camera.stop();
                }
            })
            .failed(|| "no thread can be started for the camera")?;
        Ok(Feed { shared, thread: Some(thread) })
    }

    /// Why it ended, if it has.
    pub(super) fn error(&self) -> Option<Error> {
        self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks the thread to end.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Relaxed);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // it does not panic; if it did, the camera is closed all the same
            let _ = thread.join();
        }
    }
}

fn carry(
    camera: &Camera,
    stream: &Stream,
    layout: Layout,
    trigger: Option<Duration>,
    to: &gst_app::AppSrc,
    shared: &Shared,
    name: &str,
) -> Result<()> {
    std::thread::sleep(SETTLE);
    camera.start().map_err(|e| {
        Error::failed(format!("camera \"{name}\" does not start"))
            .because(e)
            .hint("another program may be in control of it")
    })?;
    let mut sequence = Sequence::default();
    let mut first_time = None;
    let mut next_trigger = Instant::now();
    while !shared.stop.load(Relaxed) {
        if shared.lost.load(Relaxed) {
            return Err(Error::failed(format!("camera \"{name}\" does not answer any more"))
                .hint("check its power and cable; linesight goes on as soon as it is back"));
        }
        let mut wait = TICK;
        if let Some(period) = trigger {
            let now = Instant::now();
            if now >= next_trigger {
                camera.trigger().map_err(|e| {
                    Error::failed(format!("camera \"{name}\" does not take its software trigger")).because(e)
                })?;
                // triggers that were due meanwhile are left out
                next_trigger = (next_trigger + period).max(now);
            }
            wait = wait.min(next_trigger.saturating_duration_since(now)).max(Duration::from_millis(1));
        }
        let Some(picture) = stream.next(wait) else { continue };
        if !picture.whole {
            // shows as a gap in the numbers
            tracing::debug!(camera = name, id = picture.id, "a picture arrived in part");
            continue;
        }
        let number = sequence.see(picture.id);
        let time = picture.time_ns.saturating_sub(*first_time.get_or_insert(picture.time_ns));
        let mut buffer = wrap(picture, layout);
        if let Some(b) = buffer.get_mut() {
            b.set_pts(gst::ClockTime::from_nseconds(time));
            b.set_offset(number);
            b.set_offset_end(number + 1);
        }
        match to.push_buffer(buffer) {
            Ok(_) => {}
            // the pipeline is being stopped
            Err(gst::FlowError::Flushing | gst::FlowError::Eos) => return Ok(()),
            Err(e) => return Err(Error::failed(format!("pictures of camera \"{name}\" are not taken: {e}"))),
        }
    }
    Ok(())
}

fn wrap(picture: Picture, layout: Layout) -> gst::Buffer {
    let (width, height) = (picture.width, picture.height);
    match layout {
        Layout::Same => gst::Buffer::from_slice(picture.buffer),
        Layout::Meta(format, row) => {
            let mut buffer = gst::Buffer::from_slice(picture.buffer);
            if let Some(b) = buffer.get_mut() {
                let flags = gst_video::VideoFrameFlags::empty();
                let (w, h) = (width as u32, height as u32);
                // without it the picture is refused further on, with an error that names its size
                let _ = gst_video::VideoMeta::add_full(b, flags, format, w, h, &[0], &[row]);
            }
            buffer
        }
        Layout::Copy(row) => {
            let stride = row.next_multiple_of(4);
            let mut bytes = vec![0; stride * height];
            for (to, from) in bytes.chunks_mut(stride).zip(picture.buffer.as_ref().chunks(row)) {
                to[..from.len()].copy_from_slice(from);
            }
            gst::Buffer::from_mut_slice(bytes)
        }
    }
}

/// Makes numbers without wrap of the camera's.
#[derive(Default)]
struct Sequence {
    last: Option<(u64, u64)>,
}

impl Sequence {
    /// The number of a frame, counted from the first one seen; a gap is as large as the camera's.
    fn see(&mut self, id: u64) -> u64 {
        let number = match self.last {
            None => 0,
            // a camera that does not number has no gaps
            Some((last, number)) if id == last => number + 1,
            Some((last, number)) if id > last => number + (id - last),
            Some((last, number)) if last <= WRAP => number + (WRAP - last) + id.max(1),
            // it has begun anew
            Some((_, number)) => number + 1,
        };
        self.last = Some((id, number));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_wrap_leave_no_gap() {
        let mut s = Sequence::default();
        let seen: Vec<u64> = [65533, 65534, 65535, 1, 2, 5].map(|id| s.see(id)).to_vec();
        assert_eq!(seen, [0, 1, 2, 3, 4, 7]);
        let mut s = Sequence::default();
        assert_eq!([65534, 2].map(|id| s.see(id)), [0, 3]);
        let mut s = Sequence::default();
        assert_eq!([0, 0, 0].map(|id| s.see(id)), [0, 1, 2]);
        let mut s = Sequence::default();
        assert_eq!([70_000, 70_001, 1].map(|id| s.see(id)), [0, 1, 2]);
    }
}
