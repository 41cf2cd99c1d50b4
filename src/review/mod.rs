//! The review server: receives anomalies, keeps them and shows them to the people who judge them.
//!
//! Threads: `review` runs the server's own tokio runtime (one thread, so that an embedded server takes little from the
//! inspection beside it); calls that block run in its pool, threads named `review-io`.
//!
//! [`listen`] takes connections and [`tls`] encrypts them; [`guard`] keeps strangers' web pages out, [`peer`] knows where a
//! request came from and [`accounts`] who asks; [`store`] and [`reports`] keep, [`live`] tells open pages what changed,
//! [`upload`] checks what comes in, [`api`], [`lines`] and [`pages`] answer, [`thumbs`] makes pictures small, [`export`] hands
//! reviewed anomalies to other tools, [`problem`] is how the API says no, `show` how values look.
//!
//! Invariants:
//! 1. Without accounts the server answers whoever reaches it only on loopback; on any other address it shows the way to the
//!    first account and nothing else. Tests: `without_accounts_only_loopback_is_open`, and `the_first_account` in
//!    tests/review_accounts.rs.
//! 2. When [`Server::start`] returns, connections are accepted. Test: `starts_answers_and_stops`.
//! 3. Stopping takes no longer than [`GRACE`] twice, whatever clients do. Test:
//!    `a_stalled_upload_does_not_hold_up_the_stop` in tests/review_server.rs.
//! 4. Every answer carries the headers in [`HEADERS`]. Test: `starts_answers_and_stops`.

pub mod accounts;
pub mod api;
pub mod export;
pub mod guard;
pub mod lines;
pub mod listen;
pub mod live;
pub mod live_picture;
pub mod pages;
pub mod peer;
pub mod problem;
pub mod reports;
mod show;
pub mod store;
pub mod thumbs;
pub mod tls;
pub mod upload;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use ipnet::IpNet;
use tokio::sync::watch;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate, SizeAbove};
use url::Url;

use crate::error::{Context, Error, Result};
use accounts::{Accounts, Actor, Desk, SqliteAccounts, secret};
use api::App;
use export::Exports;
use guard::Guard;
use listen::Limits;
use live::{Change, Live};
use peer::Proxies;
use store::retain::Keeper;
use store::{Removed, Retention, SqliteStore, Store};
use thumbs::Thumbs;
use tls::{Tls, TlsFiles};

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
    // with "no-referrer" browsers would send forms with "Origin: null", which the guard refuses
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
    /// Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Speak TLS.
    pub tls: Option<TlsFiles>,
    /// Proxies whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Under which addresses browsers know this server, besides its own.
    pub public_urls: Vec<Url>,
    /// Nothing is open without an account, on loopback too.
    pub accounts: bool,
    /// What one client may take.
    pub limits: Limits,
    /// How long anomalies are kept.
    pub retention: Retention,
}

impl Config {
    /// A server on this address, with no more than that said.
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Config {
        Config {
            data_dir: data_dir.into(),
            listen,
            tls: None,
            trusted_proxies: Vec::new(),
            public_urls: Vec::new(),
            accounts: false,
            limits: Limits::default(),
            retention: Retention::default(),
        }
    }

    /// Whether nothing is open without an account: whoever says that others reach it wants accounts.
    fn wants_accounts(&self) -> bool {
        self.accounts
            || !self.listen.ip().to_canonical().is_loopback()
            || self.tls.is_some()
            || !self.trusted_proxies.is_empty()
            || !self.public_urls.is_empty()
    }
}

/// A running review server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    url: String,
    welcome: Option<String>,
    live: Live,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// Removes what need not be kept.
    _keeper: Option<Keeper>,
}

impl Server {
    /// Starts a server on a SQLite store. When it returns, the server answers.
    pub fn start(config: Config) -> Result<Server> {
        let tls = config.tls.clone().map(Tls::open).transpose()?;
        let listener = bind(config.listen)?;
        let store = SqliteStore::open(&config.data_dir)?;
        let accounts = SqliteAccounts::open(&config.data_dir)?;
        Self::serve(&config, listener, tls, Arc::new(store), accounts)
    }

    fn serve(
        config: &Config,
        listener: TcpListener,
        tls: Option<Tls>,
        store: Arc<dyn Store>,
        accounts: SqliteAccounts,
    ) -> Result<Server> {
        let accounts = Arc::new(accounts);
        let keeper = match config.retention.keeps_all() {
            true => None,
            false => Some(Keeper::start(store.clone(), config.retention, audited(accounts.clone()))?),
        };
        // what is made from the store and needs the disk
        let made = thumbs::routes(Thumbs::new(&config.data_dir)).merge(export::routes(Exports::new(&config.data_dir)));
        let cannot = || "cannot start the review server";
        let addr = listener.local_addr().failed(cannot)?;
        listener.set_nonblocking(true).failed(cannot)?;
        let wanted = config.wants_accounts();
        let url = match config.public_urls.first() {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None => format!("{}://{addr}", if tls.is_some() { "https" } else { "http" }),
        };
        let welcome = match wanted && !accounts.any()? {
            true => Some(offer(&*accounts, &url)?),
            false => None,
        };
        if wanted && tls.is_none() && config.trusted_proxies.is_empty() && !addr.ip().to_canonical().is_loopback() {
            tracing::warn!("passwords and tokens travel unencrypted: give --tls-cert and --tls-key, or use a proxy");
        }
        let Limits { upload_rate, upload_burst, .. } = config.limits;
        let desk = Desk::new(accounts, wanted, upload_rate, upload_burst)?;
        let proxies = Proxies(config.trusted_proxies.clone());
        let mut guard = Guard::new(addr);
        if wanted {
            let hosts = config.public_urls.iter().filter_map(|url| url.host_str().map(str::to_owned));
            guard = guard.with_accounts(hosts.collect(), proxies.clone());
        }
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
        let router = router(app, made, desk, guard);
        let serve = listen::serve(listener, tls, router, proxies, config.limits, stopped)?;
        let thread = std::thread::Builder::new()
            .name("review".into())
            .spawn(move || {
                runtime.block_on(serve);
                runtime.shutdown_timeout(GRACE);
            })
            .failed(cannot)?;
        Ok(Server { addr, url, welcome, live, stop, thread: Some(thread), _keeper: keeper })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to open in a browser.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The link to the first account, where one is wanted and there is none.
    pub fn welcome(&self) -> Option<&str> {
        self.welcome.as_deref()
    }

    /// Answers what has begun, takes nothing new, and returns.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.stop.send_replace(true);
        self.live.tell(Change::Stop); // streams would never end by themselves
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

/// Puts what retention removed into the audit.
fn audited(accounts: Arc<dyn Accounts>) -> impl Fn(&Removed) {
    move |removed| {
        let target = format!("{} anomalies", removed.count());
        if let Err(error) = accounts.record(&Actor::retention(), "remove", &target, &removed.said()) {
            tracing::error!(%error, "a removal is not in the audit");
        }
    }
}

/// A new key to the first account; the one before it no longer holds.
fn offer(accounts: &dyn Accounts, url: &str) -> Result<String> {
    let key = secret::token()?;
    accounts.offer(&secret::digest(&key))?;
    Ok(format!("{url}/welcome?key={key}"))
}

/// Opens the accounts of a data folder, for commands beside a server.
pub fn open_accounts(data_dir: &Path) -> Result<SqliteAccounts> {
    SqliteAccounts::open_beside(data_dir)
}

/// Binds the address, or says why not.
fn bind(listen: SocketAddr) -> Result<TcpListener> {
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

fn router(app: App, made: Router<App>, desk: Desk, guard: Guard) -> Router {
    Router::new()
        .merge(api::routes())
        .merge(made)
        .merge(live_picture::routes())
        .merge(pages::routes())
        .merge(accounts::routes())
        .fallback(pages::unknown)
        .method_not_allowed_fallback(api::wrong_method)
        .with_state(app)
        .layer(CompressionLayer::new().compress_when(worth_compressing()))
        .layer(Extension(desk.clone()))
        .layer(middleware::from_fn_with_state(desk, accounts::gate::gate))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::guard))
        .layer(middleware::from_fn(add_headers))
}

/// Text that is not tiny; pictures are compressed as they are, and a stream must come as it is told.
fn worth_compressing() -> impl Predicate {
    DefaultPredicate::new()
        .and(SizeAbove::new(1024))
        .and(NotForContentType::const_new("application/zip"))
        // a live picture: it would wait in the compressor
        .and(NotForContentType::const_new("multipart/x-mixed-replace"))
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
    fn without_accounts_only_loopback_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let open = config(dir.path(), "127.0.0.1:0");
        assert!(!open.wants_accounts() && !config(dir.path(), "[::1]:0").wants_accounts());
        for listen in ["0.0.0.0:0", "[::]:0", "192.168.1.7:8080", "[::ffff:10.0.0.1]:0"] {
            assert!(config(dir.path(), listen).wants_accounts(), "{listen}");
        }
        let behind = |change: fn(&mut Config)| {
            let mut config = open.clone();
            change(&mut config);
            config.wants_accounts()
        };
        assert!(behind(|c| c.accounts = true));
        assert!(behind(|c| c.trusted_proxies = vec!["10.0.0.1/32".parse().unwrap()]));
        assert!(behind(|c| c.public_urls = vec!["https://plant.example".parse().unwrap()]));
        assert!(behind(|c| c.tls = Some(TlsFiles { cert: "c".into(), key: "k".into() })));
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
        let audit = || -> serde_json::Value {
            let audit = reqwest::blocking::get(server.url() + "/api/v1/audit").unwrap();
            audit.json::<serde_json::Value>().unwrap()["items"][0].clone()
        };
        while audit()["action"] != "remove" {
            assert!(std::time::Instant::now() < deadline, "the removal is not in the audit");
        }
        let said = ["who", "via", "target", "detail"].map(|name| audit()[name].clone());
        assert_eq!(said, ["retention", "server", "1 anomalies", "1 unreviewed; 0.0 MB"]);
    }

    #[test]
    fn a_server_can_start_again_on_what_another_left() {
        let dir = tempfile::tempdir().unwrap();
        drop(Server::start(config(dir.path(), "127.0.0.1:0")).unwrap());
        drop(Server::start(config(dir.path(), "127.0.0.1:0")).unwrap());
    }
}
