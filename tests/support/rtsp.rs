//! A real RTSP server (gst-rtsp-server) in a process of its own, so that it can be killed and returned on the same port. The
//! test binary runs itself for it: it must have a test `child_that_serves_rtsp` that calls [`serve_if_child`].
//!
//! Each client gets a stream of its own: H.264, [`FPS`], a whole picture twice a second. Each frame carries its number, from 0,
//! as 16 black or white blocks, and once more inverted below.

// each test binary uses a part of it
#![allow(dead_code)]

use gstreamer::{self as gst, prelude::*};
use gstreamer_rtsp_server as server;
use gstreamer_rtsp_server::prelude::*;
use linesight::frame::Frame;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub const FPS: u64 = 30;
pub const WIDTH: usize = 320;
pub const HEIGHT: usize = 240;
/// Side of a block.
const BLOCK: usize = 16;
const CHILD: &str = "LINESIGHT_TEST_RTSP";

pub struct RtspServer {
    pub port: u16,
    /// `user:password`, or empty.
    credentials: String,
    /// Of so many RTP packets one is lost; 0 for none.
    lossy: u64,
    child: Option<Child>,
}

impl RtspServer {
    pub fn start() -> RtspServer {
        Self::with("", 0)
    }

    pub fn with(credentials: &str, lossy: u64) -> RtspServer {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = RtspServer { port, credentials: credentials.into(), lossy, child: None };
        server.come_back();
        server
    }

    pub fn source(&self) -> String {
        format!("rtsp://127.0.0.1:{}/stream", self.port)
    }

    /// As when its power fails.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again; the moment from which it takes connections.
    pub fn come_back(&mut self) -> Instant {
        assert!(self.child.is_none());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_serves_rtsp", "--nocapture"])
            .env(CHILD, format!("{} {} {}", self.port, self.lossy, self.credentials))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the RTSP server does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        Instant::now()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = self.child.as_ref().unwrap().id();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id as i32).unwrap(), signal).unwrap();
    }

    /// It keeps its connections and sends nothing.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }
}

impl Drop for RtspServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Serves for ever when this process was started by [`RtspServer`]; else does nothing.
pub fn serve_if_child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let [port, lossy, credentials] = arguments.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{arguments}") };
    // not left behind when the test dies: its end of the pipe closes then
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    gst::init().unwrap();
    let lossy: u64 = lossy.parse().unwrap();
    let server = server::RTSPServer::new();
    server.set_address("127.0.0.1");
    server.set_service(port);
    let factory = server::RTSPMediaFactory::new();
    factory.set_launch(&format!(
        "( videotestsrc name=camera is-live=true pattern=ball ! \
         video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={FPS}/1 ! \
         x264enc tune=zerolatency speed-preset=ultrafast key-int-max={} bitrate=1500 ! rtph264pay name=pay0 pt=96 )",
        FPS / 2
    ));
    factory.connect_media_configure(move |_, media| {
        let bin = media.element().downcast::<gst::Bin>().unwrap();
        let pad = bin.by_name("camera").unwrap().static_pad("src").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, |_, info| {
            if let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data {
                let number = buffer.offset();
                stamp(buffer.make_mut().map_writable().unwrap().as_mut_slice(), number);
            }
            gst::PadProbeReturn::Ok
        });
        if lossy > 0 {
            let pad = bin.by_name("pay0").unwrap().static_pad("src").unwrap();
            let sent = AtomicU64::new(0);
            let lost = move || (sent.fetch_add(1, Relaxed) + 1).is_multiple_of(lossy);
            pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST, move |_, info| {
                match &mut info.data {
                    Some(gst::PadProbeData::Buffer(_)) if lost() => return gst::PadProbeReturn::Drop,
                    Some(gst::PadProbeData::BufferList(list)) => {
                        list.make_mut()
                            .foreach_mut(|buffer, _| std::ops::ControlFlow::Continue((!lost()).then_some(buffer)));
                    }
                    _ => {}
                }
                gst::PadProbeReturn::Ok
            });
        }
    });
    if let Some((user, password)) = credentials.split_once(':') {
        let auth = server::RTSPAuth::new();
        let role = "viewer";
        let token = server::RTSPToken::builder().field(server::RTSP_TOKEN_MEDIA_FACTORY_ROLE, role).build();
        auth.add_basic(&server::RTSPAuth::make_basic(user, password), &token);
        server.set_auth(Some(&auth));
        factory.add_role_from_structure(
            &gst::Structure::builder(role)
                .field(server::RTSP_PERM_MEDIA_FACTORY_ACCESS, true)
                .field(server::RTSP_PERM_MEDIA_FACTORY_CONSTRUCT, true)
                .build(),
        );
    }
    server.mount_points().unwrap().add_factory("/stream", factory);
    let main = gst::glib::MainLoop::new(None, false);
    let _held = server.attach(None).unwrap();
    main.run();
}

fn stamp(luma: &mut [u8], number: u64) {
    for bit in 0..16 {
        let white = number >> bit & 1 == 1;
        for y in 0..2 * BLOCK {
            let value = if white == (y < BLOCK) { 235 } else { 16 };
            let at = y * WIDTH + bit * BLOCK;
            luma[at..at + BLOCK].fill(value);
        }
    }
}

/// The number that a frame carries; panics when it is not whole.
pub fn number(frame: &Frame) -> u64 {
    let plane = frame.plane(0);
    assert_eq!((plane.width, plane.height), (WIDTH, HEIGHT));
    let mean = |bit: usize, row: usize| {
        let inner = BLOCK / 4..BLOCK - BLOCK / 4;
        let sum: u32 = inner
            .clone()
            .flat_map(|y| inner.clone().map(move |x| (x, y)))
            .map(|(x, y)| u32::from(plane.data[(row * BLOCK + y) * plane.stride + bit * BLOCK + x]))
            .sum();
        sum / (BLOCK * BLOCK / 4) as u32
    };
    (0..16).fold(0, |number, bit| {
        let (first, inverse) = (mean(bit, 0), mean(bit, 1));
        assert!(first.abs_diff(inverse) > 80, "frame {} is not whole: {first} and {inverse} at bit {bit}", frame.seq);
        number | u64::from(first > inverse) << bit
    })
}
