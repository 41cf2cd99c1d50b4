//! Takes connections and serves HTTP on them, encrypted or not; no client can take what others need.
//!
//! Thread: one task of the server's runtime for each connection.
//!
//! Invariants:
//! 1. No more than [`Limits::connections`] at once (others wait to be accepted), and no more than
//!    [`Limits::per_address`] of one address, except a trusted proxy's. Test: `one_address_cannot_take_all_connections` in
//!    tests/review_abuse.rs.
//! 2. A handshake and a request's head come within [`Limits::head_time`], or the connection is closed; so is one that is kept
//!    open and idle for that long. Test: `slow_heads_are_cut` in tests/review_abuse.rs.
//! 3. A head has at most [`MAX_HEAD`] bytes and [`MAX_HEADERS`] lines. Test: `hostile_requests` in tests/review_abuse.rs.
//! 4. When it is told to stop it returns within [`GRACE`]. Test: `a_stalled_upload_does_not_hold_up_the_stop` in
//!    tests/review_server.rs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

use super::GRACE;
use super::accounts::throttle::neighbourhood;
use super::peer::{Peer, Proxies};
use super::tls::{LOOK, Tls};
use crate::error::Result;

/// Bytes of a request's head.
pub const MAX_HEAD: usize = 32 << 10;
/// Header lines of a request.
pub const MAX_HEADERS: usize = 100;
/// How long to wait after a connection could not be accepted (too many open files).
const PAUSE: Duration = Duration::from_millis(200);

/// What one client may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Of those, from one address.
    pub per_address: usize,
    /// For a TLS handshake, for a request's head, and for doing nothing between requests.
    pub head_time: Duration,
    /// Uploads a second of one sender, in the long run.
    pub upload_rate: NonZeroU32,
    /// Uploads of one sender at once, after a pause.
    pub upload_burst: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Limits {
        let number = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Limits {
            connections: 1024,
            per_address: 256,
            head_time: Duration::from_secs(30),
            upload_rate: number(100),
            upload_burst: number(400),
        }
    }
}

/// Serves until it is told to stop.
pub fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    proxies: Proxies,
    limits: Limits,
    stopped: watch::Receiver<bool>,
) -> Result<impl Future<Output = ()>> {
    let acceptor = tls.as_ref().map(Tls::acceptor).transpose()?;
    let places = Arc::new(Places { proxies, most: limits.per_address, taken: Mutex::default() });
    Ok(async move {
        if let Some(tls) = tls {
            tokio::spawn(keep_reading(tls));
        }
        let graceful = GracefulShutdown::new();
        {
            let mut stopped = stopped;
            tokio::select! {
                () = accept(listener, acceptor, router, places, limits, &graceful) => {}
                // an error means that the server was dropped, which asks for the same
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        }
        let _ = timeout(GRACE, graceful.shutdown()).await; // who is not done by then is cut off
    })
}

/// Reads the certificate again when it changes.
async fn keep_reading(mut tls: Tls) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        let looked = tokio::task::spawn_blocking(move || {
            tls.look();
            tls
        });
        match looked.await {
            Ok(back) => tls = back,
            Err(_) => return, // the runtime stops
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    places: Arc<Places>,
    limits: Limits,
    graceful: &GracefulShutdown,
) {
    let all = Arc::new(Semaphore::new(limits.connections));
    loop {
        let Ok(permit) = all.clone().acquire_owned().await else { return };
        let (stream, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::debug!(error = %e, "a connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(addr.ip()) else { continue };
        let _ = stream.set_nodelay(true); // slower without, nothing more
        let (acceptor, router, watcher) = (acceptor.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _held = (permit, place);
            let peer = Peer { addr, tls: acceptor.is_some() };
            match acceptor {
                None => converse(stream, peer, router, limits, watcher).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = timeout(limits.head_time, handshake(acceptor, stream)).await {
                        converse(stream, peer, router, limits, watcher).await;
                    }
                }
            }
        });
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    acceptor.accept(stream).await
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    limits: Limits,
    watcher: Watcher,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let mut router = router.clone();
        async move {
            let answer: std::result::Result<Response, Infallible> = router.call(request).await;
            answer
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time);
    http.max_header_size(MAX_HEAD).max_headers(MAX_HEADERS).half_close(true);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    if let Err(e) = watcher.watch(connection).await {
        tracing::debug!(error = %e, from = %peer.addr, "a connection ended early");
    }
}

/// How many connections each address has.
struct Places {
    proxies: Proxies,
    most: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; given back when dropped.
struct Place(Option<(Arc<Places>, IpAddr)>);

impl Places {
    /// A place for a connection from there, if there is one.
    fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        if self.proxies.trusts(from) {
            return Some(Place(None));
        }
        let from = neighbourhood(from);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(from).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place(Some((self.clone(), from))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((places, from)) = &self.0 else { return };
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(from) {
            *count -= 1;
            if *count == 0 {
                taken.remove(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let proxies = Proxies(vec!["10.0.0.2/32".parse().unwrap()]);
        let places = Arc::new(Places { proxies, most: 2, taken: Mutex::default() });
        let (a, b, proxy): (IpAddr, IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let held = (places.take(a), places.take(a));
        assert!(held.0.is_some() && held.1.is_some() && places.take(a).is_none());
        assert!(places.take(b).is_some());
        let many: Vec<_> = (0..10).map(|_| places.take(proxy)).collect();
        assert!(many.iter().all(Option::is_some), "a proxy stands for many");
        drop(held);
        assert!(places.take(a).is_some());
        drop(many);
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
