//! Where a request came from: the connection's other end, or whom a trusted proxy speaks for.
//!
//! Thread: pure functions, run by the server's thread for each request.
//!
//! Invariants:
//! 1. `X-Forwarded-*` counts only when the connection comes from a trusted proxy, and what a client wrote into
//!    `X-Forwarded-For` before the first trusted proxy does not count. Test: `forwarded`.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use ipnet::IpNet;

/// A connection, put into each of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub addr: SocketAddr,
    /// This server speaks TLS on it.
    pub tls: bool,
}

/// A request, as the client made it; the guard puts it into each that it lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Came {
    pub from: IpAddr,
    /// The client speaks TLS, to this server or to a trusted proxy.
    pub secure: bool,
    /// The host it asks for.
    pub host: Authority,
}

/// Which addresses are trusted proxies.
#[derive(Debug, Clone, Default)]
pub struct Proxies(pub Vec<IpNet>);

impl Proxies {
    /// Whether what it forwards is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// How the client made the request; or what is wrong with its Host.
    pub fn came(&self, peer: Peer, headers: &HeaderMap) -> Result<Came, &'static str> {
        let mut hosts = headers.get_all(HOST).iter();
        let (host, more) = (hosts.next(), hosts.next());
        let Some(host) = host.and_then(|h| h.to_str().ok()).and_then(|h| h.parse::<Authority>().ok()) else {
            return Err("the request has no valid Host header");
        };
        if more.is_some() {
            return Err("the request has more than one Host header");
        }
        let direct = Came { from: peer.addr.ip().to_canonical(), secure: peer.tls, host };
        if !self.trusts(peer.addr.ip()) {
            return Ok(direct);
        }
        // the nearest proxy's word is the last
        let last = |name: &str| listed(headers, name).pop();
        let mut from = direct.from;
        for hop in listed(headers, "x-forwarded-for").into_iter().rev() {
            let Some(address) = address(&hop) else { break };
            from = address;
            if !self.trusts(address) {
                break;
            }
        }
        let secure = match last("x-forwarded-proto") {
            Some(proto) => proto.eq_ignore_ascii_case("https"),
            None => direct.secure,
        };
        let host = match last("x-forwarded-host") {
            Some(host) => host.parse().map_err(|_| "the request has no valid X-Forwarded-Host header")?,
            None => direct.host,
        };
        Ok(Came { from, secure, host })
    }
}

/// The entries of a list header, over all its lines.
fn listed(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|entry| entry.trim().to_owned()).filter(|e| !e.is_empty()).collect()
}

/// An address with or without port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let ip = text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()));
    ip.or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded() {
        let proxies = Proxies(vec!["10.0.0.0/24".parse().unwrap(), "127.0.0.1/32".parse().unwrap()]);
        // from, X-Forwarded-For, -Proto, -Host; address, secure, host
        let table = [
            ("192.0.2.1:1", "1.2.3.4", "https", "evil.example", "192.0.2.1", false, "inside"),
            ("10.0.0.2:1", "", "", "", "10.0.0.2", false, "inside"),
            ("10.0.0.2:1", "1.2.3.4", "https", "plant.example", "1.2.3.4", true, "plant.example"),
            ("10.0.0.2:1", "9.9.9.9, 1.2.3.4", "https", "", "1.2.3.4", true, "inside"),
            ("10.0.0.2:1", "9.9.9.9, 1.2.3.4, 10.0.0.7", "http, https", "a, b", "1.2.3.4", true, "b"),
            ("10.0.0.2:1", "10.0.0.9, 10.0.0.7", "HTTPS", "", "10.0.0.9", true, "inside"),
            ("10.0.0.2:1", "1.2.3.4, nonsense", "https,http", "", "10.0.0.2", false, "inside"),
            ("10.0.0.2:1", "[2001:db8::1]:99", "", "", "2001:db8::1", false, "inside"),
            ("[::ffff:127.0.0.1]:1", "::ffff:1.2.3.4", "", "", "1.2.3.4", false, "inside"),
        ];
        for (peer, for_, proto, host, from, secure, wanted) in table {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "inside".parse().unwrap());
            for (name, value) in [("x-forwarded-for", for_), ("x-forwarded-proto", proto), ("x-forwarded-host", host)] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let came = proxies.came(Peer { addr: peer.parse().unwrap(), tls: false }, &headers).unwrap();
            assert_eq!((came.from.to_string().as_str(), came.secure), (from, secure), "{peer} {for_} {proto}");
            assert_eq!(came.host.as_str(), wanted, "{peer} {host}");
        }
    }
}
