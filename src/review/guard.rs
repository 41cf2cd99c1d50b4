//! Keeps web pages of strangers away from a server that listens on loopback and has no accounts: a page that rebinds its
//! name to 127.0.0.1 still sends its own Host, and a page that posts here sends its own Origin.
//!
//! Thread: pure functions, run by the server's thread for each request before anything else.
//!
//! Invariants:
//! 1. Only a request whose Host is a loopback name or address, or the address listened on (any port, because a tunnel
//!    may change it), goes through; so does the authority of an absolute URI. Test: `hosts`.
//! 2. A request with an Origin goes through only when that is `http://` and the Host of the same request. Test:
//!    `origins`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::accounts::Who;
use super::problem::Problem;
use super::upload;

/// Who may talk to a server that listens on one address.
#[derive(Debug, Clone)]
pub struct Guard {
    listen: IpAddr,
}

impl Guard {
    /// The guard of a server that listens on `listen`.
    pub fn new(listen: SocketAddr) -> Guard {
        Guard { listen: listen.ip() }
    }

    /// Refuses requests that come from a stranger's web page.
    pub fn check(&self, uri: Option<&Authority>, headers: &HeaderMap) -> Result<(), Problem> {
        let refused = |detail: &str| {
            Err(Problem::new(StatusCode::FORBIDDEN, detail)
                .hint("open the review pages as http://127.0.0.1 or http://localhost"))
        };
        let mut hosts = headers.get_all(HOST).iter();
        let (host, more) = (hosts.next(), hosts.next());
        let Some(host) = host.and_then(|h| h.to_str().ok()).and_then(authority) else {
            return refused("the request has no valid Host header");
        };
        if more.is_some() {
            return refused("the request has more than one Host header");
        }
        if !self.is_ours(&host) || !uri.is_none_or(|uri| self.is_ours(uri)) {
            return refused("the request is addressed to a host that is not this server");
        }
        for origin in headers.get_all(ORIGIN) {
            let origin = origin.to_str().ok().and_then(|o| o.strip_prefix("http://")).and_then(authority);
            if !origin.is_some_and(|origin| same(&origin, &host)) {
                return refused("the request was made by a web page of another site");
            }
        }
        Ok(())
    }

    fn is_ours(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let ip = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).parse::<IpAddr>();
        match ip {
            Ok(ip) => ip.to_canonical().is_loopback() || ip == self.listen,
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// Middleware around [`Guard::check`].
pub async fn guard(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    match guard.check(request.uri().authority(), request.headers()) {
        Ok(()) => {
            request.extensions_mut().insert(Who::local());
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

fn same(a: &Authority, b: &Authority) -> bool {
    a.host().eq_ignore_ascii_case(b.host()) && a.port_u16().unwrap_or(80) == b.port_u16().unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn passes(headers: &[(&'static str, &'static str)], uri: Option<&str>) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let uri = uri.map(|u| u.parse().unwrap());
        Guard::new("127.0.0.1:8080".parse().unwrap()).check(uri.as_ref(), &map).is_ok()
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
        let host = |h| HeaderMap::from_iter([(HOST, HeaderValue::from_static(h))]);
        assert!(guard.check(None, &host("10.0.0.5:8080")).is_ok());
        assert!(guard.check(None, &host("10.0.0.6:8080")).is_err());
    }
}
