//! Health of a camera: focus, exposure, lamp, shift, dirt, frozen picture. Looked at about once a second, beside the
//! verdict path: the line hands over a shared frame and goes on.
//!
//! Threads: "health" owns a [`Health`] and the only copy of its memory; the line's threads call [`HealthWatch::frame`] and
//! [`HealthWatch::part`], which read a clock and at most put a frame on a channel of one place, frames and parts on one each:
//! a part comes just after its frame, and would always find a common place taken. A look that finds its place taken is
//! skipped and counted. The thread stands behind the lines' for a core: a look begins at the moment in which a frame's
//! verdict is made, and on a machine without a free core it would be one frame in thirty that waits for it.
//!
//! Parts are looked at whatever their verdict: a camera out of focus rejects every part, and a check that saw only good
//! parts would be blind just then. A defect is one part; every figure is the median of several.
//!
//! Invariants:
//! 1. What is wrong with the optics raises the check that names it and no other, and nothing is raised on a recording that
//!    is as it was taught (tests `each_fault_of_a_belt_camera_raises_its_own_check` and
//!    `each_fault_of_a_fixed_camera_raises_its_own_check` in tests/observe.rs).
//! 2. An alert needs [`IN_A_ROW`] looks and goes after as many good ones (tests `one_look_is_no_alert` and
//!    `an_alert_goes_when_the_cause_has_gone` in tests/observe.rs).
//! 3. Handing over never waits (test `a_busy_worker_skips_looks`).
//!
//! What each check measures, and why so, is in docs/design/observe.md.

mod checks;
mod picture;

pub use checks::{DIRT_LOOKS, Health, IN_A_ROW, LEARN};

use super::status::LineStatus;
use crate::error::{Context, Result};
use crate::frame::Frame;
use crate::model::Model;
use crate::prepare::placement::Placement;
use crate::prepare::shrink::Crop;
use crate::priority;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between looks, for frames and for parts each.
pub const EVERY: Duration = Duration::from_secs(1);

enum Look {
    Frame { frame: Arc<Frame>, roi: Crop },
    Part { frame: Arc<Frame>, roi: Crop, crop: Crop, placement: Placement },
}

/// The two ends of the channels for looks.
#[derive(Debug)]
struct Ends<T> {
    frames: T,
    parts: T,
}

impl Ends<Receiver<Look>> {
    /// The next look; none when the line has ended and all were taken.
    fn next(&self) -> Option<Look> {
        let look = select! {
            recv(self.frames) -> look => look.or_else(|_| self.parts.recv()),
            recv(self.parts) -> look => look.or_else(|_| self.frames.recv()),
        };
        look.ok()
    }
}

/// When a look was last handed over, as milliseconds since the watch started.
#[derive(Debug)]
struct Pace(AtomicU64);

impl Pace {
    fn due(&self, now: u64, every: u64) -> bool {
        let last = self.0.load(Relaxed);
        now >= last && self.0.compare_exchange(last, now + every, Relaxed, Relaxed).is_ok()
    }
}

/// The line's end of its camera's health; ends its thread when dropped.
#[derive(Debug)]
pub struct HealthWatch {
    looks: Option<Ends<Sender<Look>>>,
    thread: Option<JoinHandle<()>>,
    since: Instant,
    every: u64,
    frames: Pace,
    parts: Pace,
    skipped: AtomicU64,
}

impl HealthWatch {
    /// Watches a line that is judged by `model`; results go to [`LineStatus::set_health`].
    pub fn start(model: &Model, status: Arc<LineStatus>) -> Result<HealthWatch> {
        Self::start_every(model, status, EVERY)
    }

    /// As [`HealthWatch::start`], at another pace.
    pub fn start_every(model: &Model, status: Arc<LineStatus>, every: Duration) -> Result<HealthWatch> {
        let health = Health::new(model)?;
        Self::spawn(every, move |looks| watch(health, looks, &status))
    }

    fn spawn(every: Duration, work: impl FnOnce(&Ends<Receiver<Look>>) + Send + 'static) -> Result<HealthWatch> {
        let ((frames, from_frames), (parts, from_parts)) = (bounded(1), bounded(1));
        let looks = Ends { frames: from_frames, parts: from_parts };
        let thread = std::thread::Builder::new()
            .name("health".into())
            .spawn(move || {
                priority::behind_the_lines();
                work(&looks);
            })
            .failed(|| "no thread for camera health")?;
        Ok(HealthWatch {
            looks: Some(Ends { frames, parts }),
            thread: Some(thread),
            since: Instant::now(),
            every: every.as_millis() as u64,
            frames: Pace(AtomicU64::new(0)),
            parts: Pace(AtomicU64::new(0)),
            skipped: AtomicU64::new(0),
        })
    }

    /// Call for every frame; looks at one a second. Never waits.
    pub fn frame(&self, frame: &Arc<Frame>, roi: Crop) {
        if self.due(&self.frames) {
            self.hand_over(Look::Frame { frame: frame.clone(), roi });
        }
    }

    /// Call for every part that was located, before it is judged; looks at one a second. `crop` is where the part was
    /// expected, `placement` where registration found it. Never waits.
    pub fn part(&self, frame: &Arc<Frame>, roi: Crop, crop: Crop, placement: &Placement) {
        if self.due(&self.parts) {
            self.hand_over(Look::Part { frame: frame.clone(), roi, crop, placement: *placement });
        }
    }

    /// Looks that were due and found the last one still at work.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    fn due(&self, pace: &Pace) -> bool {
        pace.due(self.since.elapsed().as_millis() as u64, self.every)
    }

    fn hand_over(&self, look: Look) {
        let Some(looks) = &self.looks else { return };
        let place = match look {
            Look::Frame { .. } => &looks.frames,
            Look::Part { .. } => &looks.parts,
        };
        if let Err(TrySendError::Full(_)) = place.try_send(look) {
            self.skipped.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for HealthWatch {
    fn drop(&mut self) {
        drop(self.looks.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watch over a camera's health panicked");
        }
    }
}

fn watch(mut health: Health, looks: &Ends<Receiver<Look>>, status: &LineStatus) {
    let mut failing = false;
    while let Some(look) = looks.next() {
        let done = match look {
            Look::Frame { frame, roi } => health.frame(&frame, roi),
            Look::Part { frame, roi, crop, placement } => health.part(&frame, roi, crop, &placement),
        };
        match done {
            Ok(()) => {
                failing = false;
                for (check, says) in health.turned() {
                    match says {
                        Some(says) => tracing::warn!(line = status.name, check, "{says}"),
                        None => tracing::info!(line = status.name, check, "the camera is well again"),
                    }
                }
                status.set_health(health.checks());
            }
            // said once, not every second
            Err(e) if !failing => {
                failing = true;
                tracing::warn!(line = status.name, error = %e, "the camera's health cannot be looked at");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Arc<Frame> {
        gstreamer::init().unwrap();
        let info = gstreamer_video::VideoInfo::builder(gstreamer_video::VideoFormat::Gray8, 8, 8).build().unwrap();
        Arc::new(Frame::map(gstreamer::Buffer::from_slice(vec![7u8; info.size()]), &info, 0, None).unwrap())
    }

    #[test]
    fn a_busy_worker_skips_looks() {
        let (go, wait) = bounded::<()>(0);
        let (count, counted) = bounded(8);
        let watch = HealthWatch::spawn(Duration::ZERO, move |looks| {
            let _ = wait.recv();
            let _ = count.send(std::iter::from_fn(|| looks.next()).count());
        })
        .unwrap();
        let (frame, roi) = (frame(), Crop { x: 0, y: 0, width: 8, height: 8 });
        for _ in 0..5 {
            watch.frame(&frame, roi);
            watch.part(&frame, roi, roi, &roi.into());
        }
        assert_eq!(watch.skipped(), 8, "a frame and a part wait, the others are skipped");
        go.send(()).unwrap();
        drop(watch);
        assert_eq!(counted.recv().unwrap(), 2);
    }

    #[test]
    fn looks_keep_their_pace() {
        let pace = Pace(AtomicU64::new(0));
        let due: Vec<u64> = (0..5000).step_by(33).filter(|now| pace.due(*now, 1000)).collect();
        assert_eq!(due, [0, 1023, 2046, 3069, 4092]);
    }
}
