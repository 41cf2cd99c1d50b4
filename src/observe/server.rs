//! The window onto a running process: metrics, status and probes over HTTP.
//!
//! Threads: `observe` runs a tokio runtime of its own; handlers only copy what the lines wrote and never wait.
//!
//! Invariants:
//! 1. When [`Server::start`] returns, connections are accepted; when [`Server::stop`] returns, they are not, whatever
//!    clients do (tests `starts_answers_and_stops` and `a_silent_client_does_not_hold_up_the_stop` in tests/observe.rs).
//! 2. Lines may come and go while it runs (test `lines_come_and_go` in tests/observe.rs).
//! 3. Nothing that a client sends changes anything: every route is GET (test `nothing_can_be_changed` in tests/observe.rs).

use super::metrics::{self, Extra};
use super::status::{LineStatus, Snapshot};
use crate::deliver;
use crate::error::{Context, Error, Result};
use crate::event::LineState;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// Where metrics and status are served when nothing else is said: loopback.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
/// How long an answer that has begun may go on after a stop.
const GRACE: Duration = Duration::from_secs(1);

/// The lines of this process, shared: a reload adds, replaces and removes while others read.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<RwLock<Vec<Arc<LineStatus>>>>);

impl Lines {
    /// Adds a line, in the place of one that has its name.
    pub fn set(&self, line: Arc<LineStatus>) {
        let mut lines = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match lines.iter_mut().find(|l| l.name == line.name) {
            Some(known) => *known = line,
            None => lines.push(line),
        }
    }

    /// Takes a line out; metrics and status do not have it any more.
    pub fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|l| l.name != name);
    }

    /// All lines, in the order in which they came.
    pub fn all(&self) -> Vec<Arc<LineStatus>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A copy of each line's status.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.all().iter().map(|l| l.snapshot()).collect()
    }
}

/// Where the server reads from.
pub struct Sources {
    pub lines: Lines,
    /// Ledger and spool, when there are any. Must not wait.
    pub deliver: Option<Box<dyn Fn() -> deliver::Status + Send + Sync>>,
    /// Numbers of other modules.
    pub extra: Vec<Extra>,
    /// Start of the process.
    pub started: Timestamp,
}

impl Sources {
    /// Lines alone, of a process that starts now.
    pub fn new(lines: Lines) -> Sources {
        Sources { lines, deliver: None, extra: Vec::new(), started: Timestamp::now() }
    }
}

/// The answer of `GET /status`; what `linesight status --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub started_at: Timestamp,
    pub lines: Vec<Snapshot>,
    /// The spool; none without one. The fields of [`deliver::Status`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver: Option<serde_json::Value>,
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on `listen` (port 0 picks a free one). There are no accounts and nothing secret in it, but names of lines and
    /// sources are: listen on loopback unless the network is trusted.
    pub fn start(listen: SocketAddr, sources: Sources) -> Result<Server> {
        let cannot = || "cannot start the metrics server";
        let listener = bind(listen)?;
        let addr = listener.local_addr().failed(cannot)?;
        listener.set_nonblocking(true).failed(cannot)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().failed(cannot)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).failed(cannot)?
        };
        let (stop, stopped) = watch::channel(false);
        let router = router(Arc::new(sources));
        let thread = std::thread::Builder::new()
            .name("observe".into())
            .spawn(move || {
                runtime.block_on(serve_until(listener, router, stopped));
                runtime.shutdown_background();
            })
            .failed(cannot)?;
        Ok(Server { addr, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Finishes what has begun, takes nothing new, and returns.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics server panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).map_err(|e| {
        let hint = match e.kind() {
            ErrorKind::AddrInUse => {
                "another program listens there, perhaps another linesight: stop it or give metrics another port"
            }
            ErrorKind::PermissionDenied => "ports below 1024 need privileges: give metrics a higher one",
            _ => "give metrics an address of this machine, for example 127.0.0.1:9464",
        };
        Error::missing(format!("cannot serve metrics on \"{listen}\"")).because(e).hint(hint)
    })
}

async fn serve_until(listener: tokio::net::TcpListener, router: Router, stopped: watch::Receiver<bool>) {
    let asked = |mut stopped: watch::Receiver<bool>| async move {
        // an error means that the server was dropped, which asks for the same
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let serve = axum::serve(listener, router).with_graceful_shutdown(asked(stopped.clone()));
    let overdue = async {
        asked(stopped).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        _ = async { serve.await } => {}
        () = overdue => {}
    }
}

fn router(sources: Arc<Sources>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /metrics, /status, /healthz and /readyz\n") })
        .with_state(sources)
}

async fn metrics(State(sources): State<Arc<Sources>>) -> Response {
    match metrics::render(&sources) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(e) => {
            tracing::error!(error = %e, "metrics cannot be made");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn status(State(sources): State<Arc<Sources>>) -> Response {
    let deliver = sources.deliver.as_ref().and_then(|status| serde_json::to_value(status()).ok());
    Json(Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: sources.started,
        lines: sources.lines.snapshots(),
        deliver,
    })
    .into_response()
}

/// Alive: the process, and every thread of its lines.
async fn health(State(sources): State<Arc<Sources>>) -> Response {
    let hung = |s: Snapshot| Some(format!("line \"{}\": {}\n", s.line, s.hung?));
    let hung: String = sources.lines.snapshots().into_iter().filter_map(hung).collect();
    match hung.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, hung).into_response(),
    }
}

/// Ready: every line inspects, or has ended as it should.
async fn ready(State(sources): State<Arc<Sources>>) -> Response {
    let lines = sources.lines.snapshots();
    let waiting: Vec<_> = lines
        .iter()
        .filter(|s| !matches!(s.state, LineState::Live | LineState::Stopped))
        .map(|s| serde_json::json!({ "line": s.line, "state": s.state, "reason": s.reason }))
        .collect();
    let code = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(serde_json::json!({ "ready": waiting.is_empty(), "lines": waiting }))).into_response()
}
