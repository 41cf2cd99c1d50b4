//! A line's live picture: small JPEGs to the review server, only while somebody there looks at it.
//!
//! Nothing can reach a camera PC from outside, so the line asks: a request that the server holds for [`HOLD`] says as soon as
//! somebody wants to look and how often; then pictures are sent at that rate until the answer to one is that nobody looks any
//! more. It is a help for people, no record: what cannot be sent is left out.
//!
//! Thread `live-picture`, one a line, which stands behind the lines' for a core: asks, shrinks, encodes and sends. Invariants:
//! 1. While nobody looks, a frame costs one relaxed load. By eye: [`LivePicture::frame`].
//! 2. Never waits and never holds more than one frame besides the one at work. Test: `frames_are_taken_at_the_rate`.
//! 3. Ends at once when dropped, whatever the server does. Test: `tests/live_picture.rs::a_silent_server_does_not_hold_it`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use url::Url;

use super::target::{Cap, Http};
use super::uploader::{delay, random, runtime};
use super::{Endpoint, Limits};
use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::picture;
use crate::prepare::shrink::{Crop, Size};
use crate::priority;

/// Pictures are at most this wide.
pub const WIDTH: u32 = 640;
/// No more pictures a second than this, whatever the server wants.
pub const MOST_FPS: f64 = 5.0;
/// How long the server may hold a question; less than [`Limits::request`].
const HOLD: Duration = Duration::from_secs(15);
/// The shortest time between two questions.
const AGAIN: Duration = Duration::from_secs(1);
/// Before a server that does not know the question is asked again.
const UNKNOWN: Duration = Duration::from_secs(300);
/// How long a frame may take to come before the server is asked whether anybody still looks.
const NO_FRAME: Duration = Duration::from_secs(5);

/// A frame for the picture, and what of it the line looks at.
type Look = (Arc<Frame>, Crop);

/// The line's end of its live picture; ends its thread when dropped.
#[derive(Debug)]
pub struct LivePicture {
    gate: Arc<Gate>,
    looks: mpsc::Sender<Look>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// When the next frame is wanted.
#[derive(Debug)]
struct Gate {
    since: Instant,
    /// Microseconds between two pictures; 0 while nobody looks.
    every: AtomicU64,
    /// Microseconds since `since`.
    next: AtomicU64,
}

impl Gate {
    fn new() -> Gate {
        Gate { since: Instant::now(), every: AtomicU64::new(0), next: AtomicU64::new(0) }
    }
    /// Opens it for so many frames a second, or closes it.
    fn set(&self, fps: Option<f64>) {
        let every = fps.map_or(0, |fps| (1e6 / fps.clamp(0.1, MOST_FPS)) as u64);
        self.every.store(every, Relaxed);
    }
    fn due(&self) -> bool {
        let every = self.every.load(Relaxed);
        if every == 0 {
            return false;
        }
        let now = self.since.elapsed().as_micros() as u64;
        let next = self.next.load(Relaxed);
        now >= next && self.next.compare_exchange(next, now + every, Relaxed, Relaxed).is_ok()
    }
}

impl LivePicture {
    /// Starts asking. `None` for an endpoint that is not a review server but a plain sink of anomalies.
    pub fn start(endpoint: &Endpoint, line: &str) -> Result<Option<LivePicture>> {
        Self::start_with(endpoint, line, Limits::default())
    }

    /// As [`LivePicture::start`], with other times.
    pub fn start_with(endpoint: &Endpoint, line: &str, limits: Limits) -> Result<Option<LivePicture>> {
        let base = Some(endpoint.url.clone()).filter(|url| url.path().ends_with('/'));
        let Some(url) = base.and_then(|base| picture_url(base, line)) else { return Ok(None) };
        let http = Http::new(endpoint, url.clone(), Cap::new(None), &limits)?;
        let runtime = runtime()?;
        let gate = Arc::new(Gate::new());
        let (looks, taken) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let asker = Asker { http, url, line: line.to_owned(), limits, gate: gate.clone(), taken };
        let thread = super::thread("live-picture", move || {
            priority::behind_the_lines();
            runtime.block_on(async {
                tokio::select! {
                    () = asker.run() => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Some(LivePicture { gate, looks, stop: Some(stop), thread: Some(thread) }))
    }

    /// Call for every frame. Never waits.
    pub fn frame(&self, frame: &Arc<Frame>, roi: Crop) {
        if self.gate.due() {
            let _ = self.looks.try_send((frame.clone(), roi)); // the one before is still at work: this one is left out
        }
    }
}

impl Drop for LivePicture {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // it has ended by itself
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the live picture's thread panicked");
        }
    }
}

/// What the server wants.
#[derive(Debug, Deserialize)]
struct Wanted {
    /// Pictures a second.
    fps: f64,
}

/// What the server said.
enum Said {
    Wanted(f64),
    Nobody,
    /// It has no such place.
    Unknown,
    Failed(String),
}

struct Asker {
    http: Http,
    url: Url,
    line: String,
    limits: Limits,
    gate: Arc<Gate>,
    taken: mpsc::Receiver<Look>,
}

impl Asker {
    async fn run(mut self) {
        let mut failures = 0;
        let mut question = self.url.clone();
        question.query_pairs_mut().append_pair("hold", &HOLD.as_secs().to_string());
        loop {
            let asked = Instant::now();
            let said = self.ask(Method::GET, question.clone(), Bytes::new()).await;
            let failed = match said {
                Said::Wanted(fps) => self.send(fps).await.err(),
                Said::Nobody => None,
                Said::Unknown => {
                    tokio::time::sleep(UNKNOWN).await;
                    None
                }
                Said::Failed(why) => Some(why),
            };
            let Some(why) = failed else {
                failures = 0;
                // a server that holds nothing is not asked in a circle
                tokio::time::sleep(AGAIN.saturating_sub(asked.elapsed())).await;
                continue;
            };
            failures += 1;
            tracing::debug!(line = self.line, "no live picture: {why}");
            tokio::time::sleep(delay(&self.limits, failures, random())).await;
        }
    }

    /// Sends pictures until nobody looks.
    async fn send(&mut self, fps: f64) -> std::result::Result<(), String> {
        tracing::debug!(line = self.line, fps, "somebody looks at the live picture");
        self.gate.set(Some(fps));
        let outcome = self.send_all().await;
        self.gate.set(None);
        // a frame that came meanwhile is not kept for later
        let _ = self.taken.try_recv();
        outcome
    }

    async fn send_all(&mut self) -> std::result::Result<(), String> {
        loop {
            let look = match tokio::time::timeout(NO_FRAME, self.taken.recv()).await {
                Ok(Some(look)) => look,
                // no frames come, or the line has gone: the server is asked anew
                Ok(None) | Err(_) => return Ok(()),
            };
            let jpeg = encode(&look).map_err(|e| e.to_string())?;
            drop(look);
            match self.ask(Method::PUT, self.url.clone(), jpeg.into()).await {
                Said::Wanted(fps) => self.gate.set(Some(fps)),
                Said::Nobody | Said::Unknown => return Ok(()),
                Said::Failed(why) => return Err(why),
            }
        }
    }

    async fn ask(&self, method: Method, url: Url, body: Bytes) -> Said {
        let mut headers = HeaderMap::new();
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/jpeg"));
        }
        match self.http.exchange(method, url, headers, body).await {
            Ok(answered) => match answered.status {
                StatusCode::OK => match serde_json::from_slice::<Wanted>(&answered.said) {
                    Ok(Wanted { fps }) if fps.is_finite() && fps > 0.0 => Said::Wanted(fps),
                    _ => Said::Unknown,
                },
                StatusCode::NO_CONTENT => Said::Nobody,
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Said::Unknown,
                status => Said::Failed(status.to_string()),
            },
            Err(answer) => Said::Failed(answer.why()),
        }
    }
}

/// Where a line's live picture goes below a base URL.
fn picture_url(mut base: Url, line: &str) -> Option<Url> {
    base.set_fragment(None);
    base.set_query(None);
    base.path_segments_mut().ok()?.pop_if_empty().extend(["api", "v1", "lines", line, "picture"]);
    Some(base)
}

/// What the line looks at as JPEG, at most [`WIDTH`] wide.
fn encode((frame, roi): &Look) -> Result<Vec<u8>> {
    if roi.width < 2 || roi.height < 2 {
        return Err(Error::failed("the region of interest is too small for a picture"));
    }
    let scale = (f64::from(WIDTH) / f64::from(roi.width)).min(1.0);
    let side = |length: u32| ((f64::from(length) * scale) as u32 & !1).max(2);
    picture::scaled_jpeg(frame, *roi, Size { width: side(roi.width), height: side(roi.height) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_at_the_rate() {
        let gate = Gate::new();
        assert!(!gate.due(), "nobody looks");
        gate.set(Some(1000.0));
        assert!(gate.due());
        assert!(!gate.due(), "not before 1 / MOST_FPS");
        gate.next.store(0, Relaxed);
        assert!(gate.due());
        gate.set(None);
        gate.next.store(0, Relaxed);
        assert!(!gate.due());
    }

    #[test]
    fn the_place_is_below_the_base() {
        let url = |base: &str| picture_url(base.parse().unwrap(), "a/b c").unwrap().to_string();
        assert_eq!(url("http://h/"), "http://h/api/v1/lines/a%2Fb%20c/picture");
        assert_eq!(url("https://h/plant/?x=1#y"), "https://h/plant/api/v1/lines/a%2Fb%20c/picture");
    }
}
