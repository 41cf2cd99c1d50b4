//! A GigE Vision camera on the loopback interface: Aravis' own fake camera, as a process that can be killed and returned.
//!
//! It listens on a port that the standard fixes, so there can be one at a time on a machine: [`FakeCamera::start`] waits for
//! its turn. Its picture is a ramp: the pixel at x, y of frame n has the value (x + y + n) % 255.

// each test binary uses a part of it
#![allow(dead_code)]

use linesight::frame::Frame;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

pub struct FakeCamera {
    serial: String,
    child: Option<Child>,
    _turn: File,
}

impl FakeCamera {
    /// Where it is found.
    pub const SOURCE: &str = "genicam:127.0.0.1";

    pub fn start(serial: &str) -> FakeCamera {
        let turn = File::create(std::env::temp_dir().join("linesight-fake-camera.lock")).unwrap();
        turn.lock().unwrap();
        let there = Command::new("arv-fake-gv-camera-0.8").arg("--help").stdout(Stdio::null()).status();
        assert!(there.is_ok(), "the package aravis-tools is needed (`make setup` installs it)");
        let mut camera = FakeCamera { serial: serial.into(), child: None, _turn: turn };
        camera.come_back();
        camera
    }

    /// As when its cable is pulled.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    /// Starts it again; the moment from which it can be found.
    pub fn come_back(&mut self) -> Instant {
        assert!(self.child.is_none());
        // it is killed when our end of the pipe is closed, also when that is because the test crashed
        let script = "arv-fake-gv-camera-0.8 -i 127.0.0.1 -s \"$1\" & read -r _; kill -9 $!; wait";
        let child = Command::new("sh")
            .args(["-c", script, "sh", &self.serial])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        Instant::now()
    }
}

impl Drop for FakeCamera {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The number of a mono frame of the fake camera, modulo 255; panics when the ramp has another frame's rows in it.
pub fn ramp(frame: &Frame) -> u64 {
    let plane = frame.plane(0);
    let first = u64::from(plane.data[0]);
    for (x, y) in [(1, 0), (plane.width - 1, 0), (7, plane.height / 2), (plane.width - 1, plane.height - 1)] {
        let value = u64::from(plane.data[y * plane.stride + x]);
        assert_eq!(value, (first + x as u64 + y as u64) % 255, "at {x}, {y} of frame {}", frame.seq);
    }
    first
}
