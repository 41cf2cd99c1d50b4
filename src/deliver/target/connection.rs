//! The HTTP client of an [`Endpoint`]: whom it trusts, who it is, which way it goes; and what it means when TLS fails.
//!
//! Certificates are always checked; nothing turns that off. `ca_file` takes the place of the system's authorities: who names
//! the plant's own means that one, and no public one besides.
//!
//! Invariants, each with the test that holds it:
//! 1. Wrong authority, name or time and a missing client certificate are refused, and the remedy is said:
//!    `tls_is_checked_and_says_what_to_do` (tests/targets.rs).
//! 2. Renewed certificates are used without a restart: `renewed_certificates_are_used` (tests/targets.rs).
//! 3. This machine's own addresses are reached without a proxy unless one is configured: `only_this_machine_goes_without_a_proxy`
//!    (here), `a_proxy_is_used_when_it_is_named` (tests/targets.rs).

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Proxy};
use rustls::{AlertDescription, CertificateError};
use url::Url;

use super::super::Endpoint;
use super::secret::Watched;
use super::shown;
use crate::error::{Context, Error, Result};

/// A client, made anew when one of its files changes.
pub(super) struct Connection {
    endpoint: Endpoint,
    connect: Duration,
    client: Watched<Client>,
}

impl Connection {
    pub fn new(endpoint: &Endpoint, connect: Duration) -> Result<Connection> {
        let client = Watched::new(&files(endpoint), || client(endpoint, connect))?;
        Ok(Connection { endpoint: endpoint.clone(), connect, client })
    }

    pub fn client(&self) -> Client {
        self.client.get(&files(&self.endpoint), |_| client(&self.endpoint, self.connect))
    }
}

fn files(endpoint: &Endpoint) -> Vec<&Path> {
    [&endpoint.ca_file, &endpoint.cert_file, &endpoint.key_file]
        .into_iter()
        .filter_map(|file| file.as_deref())
        .collect()
}

fn client(endpoint: &Endpoint, connect: Duration) -> Result<Client> {
    let url = &endpoint.url;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(Error::usage(format!("the endpoint \"{}\" is not an http or https URL", shown(url))));
    }
    let plain = url.scheme() == "http";
    if plain && !files(endpoint).is_empty() {
        return Err(Error::usage(format!(
            "the endpoint \"{}\" is not encrypted and a certificate is given",
            shown(url)
        ))
        .hint("use https, or leave ca_file, cert_file and key_file out"));
    }
    let mut client = Client::builder()
        .redirect(Policy::none())
        // `doctor` looks at the certificate
        .tls_info(true)
        .connect_timeout(connect)
        .user_agent(concat!("linesight/", env!("CARGO_PKG_VERSION")));
    match &endpoint.ca_file {
        Some(file) => client = client.tls_certs_only(authorities(file)?),
        // a machine without any certificates can still do this
        None if plain => client = client.tls_certs_only([]),
        None => {}
    }
    match (&endpoint.cert_file, &endpoint.key_file) {
        (None, None) => {}
        (Some(cert), Some(key)) => client = client.identity(identity(cert, key)?),
        (Some(_), None) => {
            return Err(Error::usage("a cert_file is given and no key_file").hint("give both, or none"));
        }
        (None, Some(_)) => {
            return Err(Error::usage("a key_file is given and no cert_file").hint("give both, or none"));
        }
    }
    match &endpoint.proxy {
        Some(proxy) => client = client.proxy(through(proxy)?),
        // a proxy of the plant's network cannot reach this machine's own endpoint
        None if is_loopback(url) => client = client.no_proxy(),
        None => {}
    }
    client.build().map_err(|e| {
        let hint = match files(endpoint)[..] {
            [] => "install the package ca-certificates, or name a ca_file".to_owned(),
            _ => "ca_file, cert_file and key_file are PEM; cert_file and key_file belong together".to_owned(),
        };
        Error::usage("cannot prepare the HTTP client").because(e).hint(hint)
    })
}

/// The certificates of a `ca_file`.
pub(in super::super) fn authorities(file: &Path) -> Result<Vec<Certificate>> {
    let pem = read(file, "ca_file")?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::usage(format!("ca_file \"{}\" holds no certificate in PEM", file.display()))
            .hint("name the certificate of the authority that signed the endpoint's")),
    }
}

/// The client's own certificate with its key.
pub(in super::super) fn identity(cert: &Path, key: &Path) -> Result<Identity> {
    let mut pem = read(cert, "cert_file")?;
    pem.push(b'\n');
    pem.extend(read(key, "key_file")?);
    // what is wrong is not repeated: it may be a piece of the key
    Identity::from_pem(&pem).map_err(|_| {
        Error::usage(format!(
            "cert_file \"{}\" and key_file \"{}\" hold no certificate with an unencrypted key in PEM",
            cert.display(),
            key.display()
        ))
        .hint("give the client's certificate chain and its key")
    })
}

fn read(file: &Path, what: &str) -> Result<Vec<u8>> {
    std::fs::read(file)
        .usage(|| format!("{what} \"{}\" cannot be read", file.display()))
        .map_err(|e| e.hint("name a PEM file that this user can read"))
}

/// For everything, this machine's own addresses included.
pub(in super::super) fn through(proxy: &Url) -> Result<Proxy> {
    let wrong = || {
        Error::usage(format!("the proxy \"{}\" is not an http or https URL", shown(proxy)))
            .hint("for example \"http://proxy.plant.example:3128\"")
    };
    if !matches!(proxy.scheme(), "http" | "https") || proxy.host().is_none() {
        return Err(wrong());
    }
    Proxy::all(proxy.clone()).map_err(|_| wrong())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(a)) => a.is_loopback(),
        Some(url::Host::Ipv6(a)) => a.is_loopback(),
        None => false,
    }
}

/// Why a request failed, with what to do where TLS did; and whether the endpoint was reached at all.
pub(super) fn explain(e: reqwest::Error) -> (String, bool) {
    let e = e.without_url();
    let mut connected = !e.is_connect();
    let mut text = e.to_string();
    let mut remedy = None;
    let mut below = e.source();
    while let Some(e) = below {
        let said = e.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        if let Some(tls) = tls_error(e) {
            connected = false;
            remedy = remedy.or(remedy_for(tls));
        }
        below = e.source();
    }
    match remedy {
        Some(remedy) => (format!("{remedy} ({text})"), connected),
        None => (text, connected),
    }
}

/// An I/O error's `source` leaves out what it wraps, and it may wrap another one.
fn tls_error<'a>(e: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    match e.downcast_ref::<io::Error>() {
        Some(e) => e.get_ref().and_then(|e| tls_error(e)),
        None => e.downcast_ref(),
    }
}

fn remedy_for(e: &rustls::Error) -> Option<&'static str> {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, Revoked, UnknownIssuer,
    };
    Some(match e {
        rustls::Error::InvalidCertificate(why) => match why {
            // the latter: another authority of the same name
            UnknownIssuer | BadSignature => {
                "the endpoint's certificate comes from an issuer that is not trusted here: name the issuer's certificate with ca_file"
            }
            NotValidForName | NotValidForNameContext { .. } => {
                "the endpoint's certificate is for another name: use the name that it is for, or have one made for this address"
            }
            Expired | ExpiredContext { .. } => {
                "the endpoint's certificate has expired: have it renewed, or set this machine's clock if that is wrong"
            }
            NotValidYet | NotValidYetContext { .. } => {
                "the endpoint's certificate is not valid yet: set this machine's clock, or the endpoint's"
            }
            Revoked => "the endpoint's certificate was revoked: have a new one made",
            _ => "the endpoint's certificate cannot be used: have one made for a server, by the authority in ca_file",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => {
            "the endpoint refuses this client's certificate or wants one: name a valid one with cert_file and key_file"
        }
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the endpoint does not know the name in the address: use the name that its certificate is for"
        }
        rustls::Error::InvalidMessage(_) => "no TLS is spoken there: use http, or the port where https is",
        rustls::Error::PeerIncompatible(_) | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the endpoint speaks no TLS 1.2 or 1.3: bring it up to date"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_goes_without_a_proxy() {
        for (text, wanted) in [
            ("http://127.0.0.1:8080", true),
            ("http://localhost/", true),
            ("http://[::1]:80/", true),
            ("https://review.plant.example/", false),
            ("http://192.168.1.4/", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(text).unwrap()), wanted, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let junk = folder.path().join("junk");
        std::fs::write(&junk, "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n").unwrap();
        let https = Endpoint::new("https://h/".parse().unwrap());
        let none = folder.path().join("none");
        let with = |change: fn(&mut Endpoint, &Path), file: &Path| {
            let mut endpoint = https.clone();
            change(&mut endpoint, file);
            client(&endpoint, Duration::from_secs(1)).unwrap_err().to_string()
        };
        for (said, wanted) in [
            (with(|e, f| e.ca_file = Some(f.into()), &none), "cannot be read"),
            (with(|e, f| e.ca_file = Some(f.into()), &junk), "holds no certificate in PEM"),
            (with(|e, f| e.cert_file = Some(f.into()), &junk), "no key_file"),
            (with(|e, f| e.key_file = Some(f.into()), &junk), "no cert_file"),
            (with(|e, f| (e.cert_file, e.key_file) = (Some(f.into()), Some(f.into())), &junk), "hold no certificate"),
            (with(|e, _| e.proxy = "socks5://u:s3cret@p".parse().ok(), &junk), "\"socks5://p\" is not an http"),
            (
                with(|e, f| (e.url, e.ca_file) = ("http://h/".parse().unwrap(), Some(f.into())), &junk),
                "is not encrypted and a certificate is given",
            ),
        ] {
            assert!(said.contains(wanted) && !said.contains("s3cret"), "{said}");
        }
    }
}
