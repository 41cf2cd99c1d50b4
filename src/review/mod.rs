//! The review server: receives anomalies, keeps them and shows them to the people who judge them.
//!
//! Threads: `review` runs the server's own tokio runtime (one thread, so that an embedded server takes little from the
//! inspection beside it); calls that block run in its pool, threads named `review-io`.
//!
//! [`store`] and [`reports`] keep, [`accounts`] knows who asks, [`thumbs`] makes pictures small, [`export`] hands reviewed anomalies to other tools, [`live`] tells open pages what changed, [`upload`] checks what comes in, [`api`], [`lines`] and [`pages`] answer, [`guard`] keeps
//! strangers' web pages out, [`problem`] is how the API says no, `show` how values look.
//!
//! Invariants:
//! 1. The server listens on loopback only, as long as it has no accounts. Test: `other_addresses_are_refused`.
//! 2. When [`Server::start`] returns, connections are accepted. Test: `starts_answers_and_stops`.
//! 3. Stopping takes no longer than [`GRACE`] twice, whatever clients do. Test:
//!    `a_stalled_upload_does_not_hold_up_the_stop` in tests/review_server.rs.
//! 4. Every answer carries the headers in [`HEADERS`]. Test: `starts_answers_and_stops`.

pub mod accounts;
pub mod api;
pub mod export;
pub mod guard;
pub mod lines;
pub mod live;
pub mod pages;
pub mod problem;
pub mod reports;
mod show;
pub mod store;
pub mod thumbs;
pub mod upload;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::sync::watch;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate, SizeAbove};

use crate::error::{Context, Error, Result};
use api::App;
use export::Exports;
use guard::Guard;
use live::{Change, Live};
use store::retain::Keeper;
use store::{Retention, SqliteStore, Store};
use thumbs::Thumbs;

/// How long open requests may go on after a stop, and blocking calls after that.
pub const GRACE: Duration = Duration::from_secs(3);
/// Threads for calls that block.
const IO_THREADS: usize = 16;

/// Sent with every answer, where the handler did not say otherwise.
pub const HEADERS: [(header::HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // with less, the Origin of a plain form would be `null`, which the guard refuses
    (header::REFERRER_POLICY, "same-origin"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// What a server needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where anomalies are kept; made when it is not there.
    pub data_dir: PathBuf,
    /// A loopback address; port 0 picks a free one.
    pub listen: SocketAddr,
    /// How long anomalies are kept.
    pub retention: Retention,
}

impl Config {
    /// A server on this address, with no more than that said.
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Config {
        Config { data_dir: data_dir.into(), listen, retention: Retention::default() }
    }
}

/// A running review server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// Removes what need not be kept.
    _keeper: Option<Keeper>,
}

impl Server {
    /// Starts a server on a SQLite store. When it returns, the server answers.
    pub fn start(config: Config) -> Result<Server> {
        let listener = bind(config.listen)?;
        let store = SqliteStore::open(&config.data_dir)?;
        let store: Arc<dyn Store> = Arc::new(store);
        let keeper = match config.retention.keeps_all() {
            true => None,
            false => Some(Keeper::start(store.clone(), config.retention)?),
        };
        let made = thumbs::routes(Thumbs::new(&config.data_dir)).merge(export::routes(Exports::new(&config.data_dir)));
        Self::serve(listener, store, made, keeper)
    }

    /// Serves a store; `made` are the routes of what is made from it and needs the disk.
    fn serve(
        listener: TcpListener,
        store: Arc<dyn Store>,
        made: Router<App>,
        keeper: Option<Keeper>,
    ) -> Result<Server> {
        let cannot = || "cannot start the review server";
        let addr = listener.local_addr().failed(cannot)?;
        listener.set_nonblocking(true).failed(cannot)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("review-io")
            .max_blocking_threads(IO_THREADS)
            .build()
            .failed(cannot)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).failed(cannot)?
        };
        let (stop, stopped) = watch::channel(false);
        let app = App::new(store);
        let live = app.live.clone();
        let router = router(app, made, Guard::new(addr));
        let thread = std::thread::Builder::new()
            .name("review".into())
            .spawn(move || {
                runtime.block_on(serve_until(listener, router, live, stopped));
                runtime.shutdown_timeout(GRACE);
            })
            .failed(cannot)?;
        Ok(Server { addr, stop, thread: Some(thread), _keeper: keeper })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to open in a browser.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers what has begun, takes nothing new, and returns.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the review server panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Binds the address, or says why not.
fn bind(listen: SocketAddr) -> Result<TcpListener> {
    if !listen.ip().to_canonical().is_loopback() {
        return Err(Error::usage(format!("the review server cannot listen on \"{listen}\": it has no accounts yet"))
            .hint(
                "listen on 127.0.0.1 and reach it from elsewhere through a tunnel: ssh -L 8080:127.0.0.1:8080 HOST",
            ));
    }
    TcpListener::bind(listen).map_err(|e| {
        let hint = match e.kind() {
            ErrorKind::AddrInUse => {
                "another program listens there, perhaps another review server: stop it or give another port \
                 with --listen (port 0 picks a free one)"
            }
            ErrorKind::PermissionDenied => "ports below 1024 need privileges: give a higher one with --listen",
            _ => "give another address with --listen",
        };
        Error::missing(format!("cannot listen on \"{listen}\"")).because(e).hint(hint)
    })
}

async fn serve_until(listener: tokio::net::TcpListener, router: Router, live: Live, stopped: watch::Receiver<bool>) {
    let asked = |mut stopped: watch::Receiver<bool>| async move {
        // an error means that the server was dropped, which asks for the same
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let leave = {
        let asked = asked(stopped.clone());
        async move {
            asked.await;
            live.tell(Change::Stop); // streams would never end by themselves
        }
    };
    let serve = axum::serve(listener, router).with_graceful_shutdown(leave);
    let overdue = async {
        asked(stopped).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        _ = async { serve.await } => {}
        () = overdue => {}
    }
}

fn router(app: App, made: Router<App>, guard: Guard) -> Router {
    Router::new()
        .merge(api::routes())
        .merge(made)
        .merge(pages::routes())
        .fallback(pages::unknown)
        .method_not_allowed_fallback(api::wrong_method)
        .with_state(app)
        .layer(CompressionLayer::new().compress_when(worth_compressing()))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::guard))
        .layer(middleware::from_fn(add_headers))
}

/// Text that is not tiny; pictures are compressed as they are, and a stream must come as it is told.
fn worth_compressing() -> impl Predicate {
    DefaultPredicate::new().and(SizeAbove::new(1024)).and(NotForContentType::const_new("application/zip"))
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn config(data_dir: &std::path::Path, listen: &str) -> Config {
        Config::new(data_dir, listen.parse().unwrap())
    }

    #[test]
    fn starts_answers_and_stops() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(config(dir.path(), "127.0.0.1:0")).unwrap();
        let client = reqwest::blocking::Client::new();
        for path in [
            "/healthz",
            "/",
            "/lines",
            "/api/v1/lines",
            "/api/v1/anomalies",
            "/assets/style.css",
            "/nowhere",
            "/api/v1/nowhere",
        ] {
            let answer = client.get(server.url() + path).send().unwrap();
            for (name, _) in HEADERS {
                assert!(answer.headers().contains_key(name.as_str()), "{path}: {name}");
            }
        }
        let addr = server.local_addr();
        server.stop();
        assert!(std::net::TcpStream::connect(addr).is_err());
    }

    #[test]
    fn other_addresses_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for listen in ["0.0.0.0:0", "[::]:0", "192.168.1.7:8080"] {
            let error = Server::start(config(&dir.path().join("new"), listen)).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            let wanted = format!("the review server cannot listen on \"{listen}\": it has no accounts yet");
            assert_eq!(error.to_string(), wanted);
        }
        assert!(!dir.path().join("new").exists(), "nothing was touched");
    }

    #[test]
    fn an_address_in_use_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap().to_string();
        let error = Server::start(config(dir.path(), &listen)).unwrap_err();
        assert_eq!(error.kind(), Kind::Missing);
        assert!(error.to_string().starts_with(&format!("cannot listen on \"{listen}\": ")), "{error}");
        assert!(error.hint_text().unwrap().starts_with("another program listens there"));
    }

    #[test]
    fn the_rule_is_applied_while_serving() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        let old = "2020-01-01T00:00:00Z".parse().unwrap();
        store::sqlite::tests::received(&store, 1, old);
        drop(store);
        let retention = Retention { unreviewed_days: Some(30), ..Retention::default() };
        let server = Server::start(Config { retention, ..config(dir.path(), "127.0.0.1:0") }).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let left = || -> usize {
            let list = reqwest::blocking::get(server.url() + "/api/v1/anomalies").unwrap();
            list.json::<serde_json::Value>().unwrap()["items"].as_array().unwrap().len()
        };
        while left() > 0 {
            assert!(std::time::Instant::now() < deadline, "nothing was removed");
        }
    }

    #[test]
    fn a_server_can_start_again_on_what_another_left() {
        let dir = tempfile::tempdir().unwrap();
        drop(Server::start(config(dir.path(), "127.0.0.1:0")).unwrap());
        drop(Server::start(config(dir.path(), "127.0.0.1:0")).unwrap());
    }
}
