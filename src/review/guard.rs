//! Keeps web pages of strangers away: a page that rebinds its name to this server's address still sends its own Host, and a
//! page that posts here sends its own Origin.
//!
//! Thread: pure functions, run by the server's thread for each request before anything else.
//!
//! Invariants:
//! 1. Only a request whose Host is a loopback name or address, the address listened on, or a public host that was given (any
//!    port, because a tunnel may change it), goes through; so does the authority of an absolute URI. Where accounts are
//!    wanted, any IP address goes through too: a name can be rebound, an address cannot. Tests: `hosts`, `public_hosts`.
//! 2. A request with an Origin goes through only when that is the scheme and Host of the same request. Test: `origins`.
//! 3. A request that changes something goes through only when Sec-Fetch-Site, if there is one, says that it comes from this
//!    server's own pages or from no page. Test: `fetch_metadata`. Both rules are those of Go's `net/http`
//!    CrossOriginProtection and of OWASP's CSRF cheat sheet ("Fetch Metadata headers", "verifying origin"); forms thus need
//!    no token of their own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::ORIGIN;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::peer::{Came, Peer, Proxies};
use super::problem::Problem;
use super::upload;

/// Header with which browsers say where a request comes from.
pub const FETCH_SITE: &str = "sec-fetch-site";

/// Who may talk to a server that listens on one address.
#[derive(Debug, Clone)]
pub struct Guard {
    listen: IpAddr,
    public: Vec<String>,
    proxies: Proxies,
    /// Who asks is known by something that a stranger's page does not have.
    accounts: bool,
}

impl Guard {
    /// The guard of a server that listens on `listen` and is open to whoever reaches it.
    pub fn new(listen: SocketAddr) -> Guard {
        Guard { listen: listen.ip(), public: Vec::new(), proxies: Proxies::default(), accounts: false }
    }

    /// The guard of one that wants accounts, is known under these hosts too, and stands behind these proxies.
    pub fn with_accounts(self, public: Vec<String>, proxies: Proxies) -> Guard {
        Guard { public, proxies, accounts: true, ..self }
    }

    /// Refuses requests that come from a stranger's web page.
    pub fn check(
        &self,
        peer: Peer,
        method: &Method,
        uri: Option<&Authority>,
        headers: &HeaderMap,
    ) -> Result<Came, Problem> {
        let refused = |detail: &str| {
            let hint = if self.accounts {
                "open the review pages by the address that the server printed, or give the one in use with --public-url"
            } else {
                "open the review pages as http://127.0.0.1 or http://localhost"
            };
            Err(Problem::new(StatusCode::FORBIDDEN, detail).hint(hint))
        };
        let came = match self.proxies.came(peer, headers) {
            Ok(came) => came,
            Err(wrong) => return refused(wrong),
        };
        if !self.is_ours(&came.host) || !uri.is_none_or(|uri| self.is_ours(uri)) {
            return refused("the request is addressed to a host that is not this server");
        }
        for origin in headers.get_all(ORIGIN) {
            let (scheme, port) = if came.secure { ("https://", 443) } else { ("http://", 80) };
            let origin = origin.to_str().ok().and_then(|o| o.strip_prefix(scheme)).and_then(authority);
            if !origin.is_some_and(|origin| same(&origin, &came.host, port)) {
                return refused("the request was made by a web page of another site");
            }
        }
        let own = |site: &[u8]| matches!(site, b"same-origin" | b"none");
        if !method.is_safe() && !headers.get_all(FETCH_SITE).iter().all(|site| own(site.as_bytes())) {
            return refused("the request was made by a web page of another site");
        }
        Ok(came)
    }

    fn is_ours(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let ip = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).parse::<IpAddr>();
        match ip {
            Ok(ip) => self.accounts || ip.to_canonical().is_loopback() || ip == self.listen,
            Err(_) => {
                host.eq_ignore_ascii_case("localhost") || self.public.iter().any(|p| p.eq_ignore_ascii_case(host))
            }
        }
    }
}

/// Middleware around [`Guard::check`].
pub async fn guard(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let checked = match request.extensions().get::<Peer>() {
        Some(peer) => guard.check(*peer, request.method(), request.uri().authority(), request.headers()),
        None => Err(Problem::new(StatusCode::FORBIDDEN, "it is not known where the request came from")),
    };
    match checked {
        Ok(came) => {
            request.extensions_mut().insert(came);
            next.run(request).await
        }
        Err(problem) => {
            upload::read_over(request).await;
            problem.into_response()
        }
    }
}

fn authority(text: &str) -> Option<Authority> {
    text.parse().ok()
}

fn same(a: &Authority, b: &Authority, port: u16) -> bool {
    a.host().eq_ignore_ascii_case(b.host()) && a.port_u16().unwrap_or(port) == b.port_u16().unwrap_or(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn peer(addr: &str) -> Peer {
        Peer { addr: addr.parse().unwrap(), tls: false }
    }

    fn passes(headers: &[(&'static str, &'static str)], uri: Option<&str>) -> bool {
        let uri = uri.map(|u| u.parse().unwrap());
        let guard = Guard::new("127.0.0.1:8080".parse().unwrap());
        guard.check(peer("127.0.0.1:9"), &Method::GET, uri.as_ref(), &map(headers)).is_ok()
    }

    #[test]
    fn hosts() {
        let table = [
            ("127.0.0.1:8080", true),
            ("127.0.0.1", true),
            ("127.0.0.1:9", true),
            ("127.8.8.8:8080", true),
            ("localhost", true),
            ("LocalHost:8080", true),
            ("[::1]:8080", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:8080", true),
            ("", false),
            ("evil.example", false),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:8080", false),
            ("evil.example@127.0.0.1", false),
            ("127.0.0.1:8080@evil.example", false),
            ("localhost@evil.example", false),
            ("0.0.0.0:8080", false),
            ("192.168.1.7:8080", false),
            ("[::]:8080", false),
            ("2130706433", false),
            ("127.1", false),
            ("localhost/evil", false),
        ];
        for (host, wanted) in table {
            assert_eq!(passes(&[("host", host)], None), wanted, "Host: {host}");
        }
        assert!(!passes(&[], None), "no Host");
        assert!(!passes(&[("host", "localhost"), ("host", "evil.example")], None), "two Hosts");
        assert!(passes(&[("host", "localhost")], Some("127.0.0.1:8080")));
        assert!(!passes(&[("host", "localhost")], Some("evil.example")), "absolute URI of somebody else");
    }

    #[test]
    fn origins() {
        let table = [
            ("127.0.0.1:8080", "http://127.0.0.1:8080", true),
            ("localhost:8080", "http://LOCALHOST:8080", true),
            ("localhost", "http://localhost:80", true),
            ("[::1]:8080", "http://[::1]:8080", true),
            ("localhost:8080", "http://127.0.0.1:8080", false),
            ("localhost:8080", "http://localhost:3000", false),
            ("localhost:8080", "https://localhost:8080", false),
            ("localhost:8080", "http://evil.example", false),
            ("localhost:8080", "http://evil.example:8080", false),
            ("localhost:8080", "null", false),
            ("localhost:8080", "", false),
            ("localhost:8080", "file://", false),
        ];
        for (host, origin, wanted) in table {
            assert_eq!(passes(&[("host", host), ("origin", origin)], None), wanted, "Host: {host} Origin: {origin}");
        }
        let two = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://evil.example")];
        assert!(!passes(&two, None));
    }

    #[test]
    fn the_address_listened_on_is_ours() {
        let guard = Guard::new("10.0.0.5:8080".parse().unwrap());
        let check = |h| guard.check(peer("10.0.0.9:9"), &Method::GET, None, &map(&[("host", h)]));
        assert!(check("10.0.0.5:8080").is_ok());
        assert!(check("10.0.0.6:8080").is_err());
    }

    #[test]
    fn public_hosts() {
        let proxies = Proxies(vec!["10.0.0.2/32".parse().unwrap()]);
        let guard = Guard::new("0.0.0.0:8080".parse().unwrap()).with_accounts(vec!["plant.example".into()], proxies);
        let check = |from, headers: &[_]| guard.check(peer(from), &Method::POST, None, &map(headers)).is_ok();
        for (host, wanted) in
            [("plant.example", true), ("Plant.Example:8443", true), ("192.168.1.7", true), ("evil.example", false)]
        {
            assert_eq!(check("10.0.0.9:9", &[("host", host)]), wanted, "{host}");
        }
        let forwarded = [
            ("host", "inside"),
            ("x-forwarded-host", "plant.example"),
            ("x-forwarded-proto", "https"),
            ("origin", "https://plant.example"),
        ];
        assert!(check("10.0.0.2:9", &forwarded));
        assert!(!check("10.0.0.9:9", &forwarded), "not a trusted proxy");
        let plain = [("host", "plant.example"), ("x-forwarded-proto", "https"), ("origin", "http://plant.example")];
        assert!(!check("10.0.0.2:9", &plain), "another scheme is another origin");
    }

    #[test]
    fn fetch_metadata() {
        let guard = Guard::new("127.0.0.1:8080".parse().unwrap());
        let table = [
            (Method::POST, Some("same-origin"), true),
            (Method::POST, Some("none"), true),
            (Method::POST, None, true),
            (Method::POST, Some("same-site"), false),
            (Method::POST, Some("cross-site"), false),
            (Method::PUT, Some("cross-site"), false),
            (Method::DELETE, Some(""), false),
            (Method::GET, Some("cross-site"), true),
        ];
        for (method, site, wanted) in table {
            let headers: Vec<_> = [("host", "localhost")].into_iter().chain(site.map(|s| (FETCH_SITE, s))).collect();
            let found = guard.check(peer("127.0.0.1:9"), &method, None, &map(&headers)).is_ok();
            assert_eq!(found, wanted, "{method} {site:?}");
        }
    }
}
