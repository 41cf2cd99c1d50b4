//! How fast a target is sent to, and when a request that no longer moves is given up.
//!
//! Invariants, each with the test that holds it:
//! 1. Whatever asks, and however many at a time, no more than the cap and two chunks pass in any time: `no_more_than_the_cap`.
//! 2. A request is given up when nothing of it moved for its allowance; waiting for the cap is not standing still:
//!    `waiting_for_the_cap_is_no_standstill`.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// Most bytes that go at once.
const CHUNK: usize = 16 << 10;
/// Chunks of a thin link are smaller: a quarter of a second's, at least this.
const CHUNK_LEAST: usize = 512;
/// What was handed to the system is on its way at least at this rate, bytes a second: so long may the last of it take.
const SLOWEST: u64 = 8_000;

/// The bandwidth cap of one target: a token bucket that all its requests take from.
pub(in super::super) struct Cap {
    per_s: Option<f64>,
    /// When all that was taken so far has been paid for.
    paid: Mutex<Instant>,
}

impl Cap {
    pub fn new(bytes_per_s: Option<u64>) -> Arc<Cap> {
        let per_s = bytes_per_s.map(|rate| rate.max(1) as f64);
        Arc::new(Cap { per_s, paid: Mutex::new(Instant::now()) })
    }

    /// How many bytes to take at a time.
    fn chunk(&self) -> usize {
        self.per_s.map_or(CHUNK, |rate| ((rate / 4.0) as usize).clamp(CHUNK_LEAST, CHUNK))
    }

    /// Takes tokens; when they may be used. Who gives up before then does not give them back.
    fn take(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        let Some(rate) = self.per_s else { return now };
        let time = |bytes: usize| Duration::from_secs_f64(bytes as f64 / rate);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        // one chunk may be saved up
        let saved = now.checked_sub(time(self.chunk())).unwrap_or(now);
        let start = saved.max(*paid);
        *paid = start + time(bytes);
        start
    }

    /// Returns when so many bytes may go.
    pub async fn acquire(&self, bytes: usize) {
        let mut left = bytes;
        while left > 0 && self.per_s.is_some() {
            let some = left.min(self.chunk());
            sleep_until(self.take(some)).await;
            left -= some;
        }
    }
}

/// When something of a request last moved.
pub(super) struct Progress {
    last: Mutex<Instant>,
    allowance: Duration,
}

impl Progress {
    /// Of a request with so many bytes; `request`: the time for an answer.
    pub fn new(request: Duration, bytes: usize) -> Arc<Progress> {
        let allowance = request + Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
        Arc::new(Progress { last: Mutex::new(Instant::now()), allowance })
    }

    fn moved(&self, at: Instant) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    pub fn allowance(&self) -> Duration {
        self.allowance
    }

    fn due(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) + self.allowance
    }

    /// None when nothing moved for the allowance.
    pub async fn guard<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let due = self.due();
            tokio::select! {
                done = &mut future => return Some(done),
                () = sleep_until(due) => if self.due() <= Instant::now() {
                    return None;
                }
            }
        }
    }
}

/// A body that leaves as the cap allows. Its length is known, so the request says it.
pub(super) struct Paced {
    left: Bytes,
    cap: Arc<Cap>,
    progress: Arc<Progress>,
    /// Of the chunk whose tokens were taken.
    wait: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Paced {
    pub fn new(body: Bytes, cap: Arc<Cap>, progress: Arc<Progress>) -> Paced {
        Paced { left: body, cap, progress, wait: None }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let (size, sleep) = this.wait.get_or_insert_with(|| {
            let size = this.left.len().min(this.cap.chunk());
            let start = this.cap.take(size);
            this.progress.moved(start.max(Instant::now()));
            (size, Box::pin(sleep_until(start)))
        });
        ready!(sleep.as_mut().poll(cx));
        let chunk = this.left.split_to(*size);
        this.wait = None;
        this.progress.moved(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Tokens are granted at computed times, so nothing is waited for.
    #[test]
    fn no_more_than_the_cap() {
        for rate in [1_000, 100_000, 10_000_000] {
            let cap = Cap::new(Some(rate));
            let begin = Instant::now();
            let mut sent = 0;
            let mut last = begin;
            for n in 0..500 {
                let size = [cap.chunk(), 1, 700][n % 3].min(cap.chunk());
                let at = cap.take(size);
                assert!(at >= last || n == 0);
                last = at;
                let most = at.saturating_duration_since(begin).as_secs_f64() * rate as f64 + 2.0 * cap.chunk() as f64;
                sent += size;
                assert!(sent as f64 <= most + 1.0, "{sent} of {most} at {rate}");
            }
            // and not much less
            let all = last.saturating_duration_since(begin).as_secs_f64() * rate as f64;
            assert!(all <= sent as f64);
        }
        let none = Cap::new(None);
        assert!((0..100).all(|_| none.take(1 << 30) <= Instant::now()));
    }

    #[test]
    fn waiting_for_the_cap_is_no_standstill() {
        let runtime = crate::deliver::uploader::runtime().unwrap();
        runtime.block_on(async {
            let cap = Cap::new(Some(4 * CHUNK_LEAST as u64));
            // a quarter of a second a chunk, and an allowance below that
            let progress =
                Arc::new(Progress { last: Mutex::new(Instant::now()), allowance: Duration::from_millis(50) });
            let mut body = Paced::new(vec![1; 4 * CHUNK_LEAST].into(), cap, progress.clone());
            assert_eq!(body.size_hint().exact(), Some(4 * CHUNK_LEAST as u64));
            let all = progress.guard(async {
                let mut got = 0;
                while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                    got += frame.into_data().unwrap().len();
                }
                got
            });
            assert_eq!(all.await, Some(4 * CHUNK_LEAST));
            assert_eq!(progress.guard(std::future::pending::<()>()).await, None);
        });
    }
}
