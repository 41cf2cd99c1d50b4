//! How to reach the broker: the options as they are configured, and what is made of them.
//!
//! Invariants:
//! 1. What cannot work is refused before anything is started, with one error: `bad_options_get_one_clear_error`.
//! 2. No password is in an error or in what `Debug` prints: `passwords_are_not_shown`.

use crate::error::{Context, Error, Result};
use rumqttc::tokio_rustls::rustls::pki_types::pem::PemObject;
use rumqttc::tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rumqttc::tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=60_000;
const QUEUE: std::ops::RangeInclusive<usize> = 1..=65_536;

/// How to reach the broker. Nothing in here is secret: passwords and keys are named by their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttOptions {
    /// `mqtt://host[:1883]` or `mqtts://host[:8883]`, without a login.
    pub url: String,
    /// The site's name; empty: the host's name.
    pub site: String,
    /// Unique at the broker: of two clients with the same id each throws the other out. None: `linesight-<site>`.
    pub client_id: Option<String>,
    pub username: Option<String>,
    /// Read anew for each connection.
    pub password_file: Option<PathBuf>,
    /// PEM certificates that the broker's certificate may come from (mqtts). None: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate chain and key that identify this client (mqtts).
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Topics begin with it. None: `linesight/<site>`.
    pub prefix: Option<String>,
    /// 50 to 60000.
    pub heartbeat_ms: u64,
    /// Answers that may wait for the broker's acknowledgements, 1 to 65536.
    pub queue: usize,
}

impl MqttOptions {
    /// Everything else at its default.
    pub fn new(url: &str, site: &str) -> Self {
        MqttOptions {
            url: url.to_owned(),
            site: site.to_owned(),
            client_id: None,
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: None,
            heartbeat_ms: 500,
            queue: 256,
        }
    }

    /// Checks all that can be checked without the broker; reads the files.
    pub fn check(&self) -> Result<()> {
        self.plan().map(drop)
    }

    pub(super) fn plan(&self) -> Result<Plan> {
        let (host, port, tls) = address(&self.url)?;
        let site = match self.site.as_str() {
            "" => fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            site => site.to_owned(),
        };
        let prefix = self.prefix.clone().unwrap_or_else(|| format!("linesight/{site}"));
        check_prefix(&prefix)?;
        let client_id = self.client_id.clone().unwrap_or_else(|| format!("linesight-{site}"));
        if client_id.is_empty() || client_id.len() > 256 || client_id.chars().any(char::is_control) {
            return Err(Error::usage(format!(
                "MQTT client id \"{}\" is not 1 to 256 printable bytes",
                client_id.escape_debug()
            ))
            .hint("an id names one client at the broker, such as linesight-hall-3"));
        }
        if !HEARTBEAT_MS.contains(&self.heartbeat_ms) {
            return Err(Error::usage(format!("heartbeat of \"{}\" ms is out of range", self.heartbeat_ms))
                .hint(format!("{} to {} ms", HEARTBEAT_MS.start(), HEARTBEAT_MS.end())));
        }
        if !QUEUE.contains(&self.queue) {
            return Err(Error::usage(format!("a queue of \"{}\" answers is out of range", self.queue)).hint(format!(
                "{} to {} answers",
                QUEUE.start(),
                QUEUE.end()
            )));
        }
        if self.password_file.is_some() && self.username.is_none() {
            return Err(Error::usage("an MQTT password is given and no user name").hint("give the user name too"));
        }
        let shown = format!("{}://{host}:{port}", if tls { "mqtts" } else { "mqtt" });
        let mut this = Plan { options: self.clone(), shown, host, port, client_id, prefix, tls: None };
        this.password()?;
        let files = [("ca file", &self.ca_file), ("cert file", &self.cert_file), ("key file", &self.key_file)];
        if tls {
            this.tls = Some(this.tls_config()?);
        } else if let Some((what, Some(path))) = files.into_iter().find(|f| f.1.is_some()) {
            return Err(Error::usage(format!(
                "\"{}\" is not encrypted and a {what} is given: \"{}\"",
                this.shown,
                path.display()
            ))
            .hint("write mqtts:// for an encrypted connection"));
        }
        Ok(this)
    }
}

/// Checked options.
#[derive(Clone)]
pub(super) struct Plan {
    pub options: MqttOptions,
    /// The URL, for people.
    pub shown: String,
    pub host: String,
    pub port: u16,
    pub client_id: String,
    pub prefix: String,
    pub tls: Option<Arc<ClientConfig>>,
}

impl Plan {
    /// The password as it is in its file now.
    pub fn password(&self) -> Result<Option<String>> {
        let Some(path) = &self.options.password_file else { return Ok(None) };
        let text = String::from_utf8(read(path, "MQTT password file")?)
            .map_err(|_| Error::usage(format!("MQTT password file \"{}\" is not UTF-8", path.display())))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(Error::usage(format!("MQTT password file \"{}\" is empty", path.display()))
                .hint("it holds the password and nothing else"));
        }
        Ok(Some(password.to_owned()))
    }

    /// Certificates as they are in their files now.
    pub fn tls_config(&self) -> Result<Arc<ClientConfig>> {
        let o = &self.options;
        let mut roots = RootCertStore::empty();
        match &o.ca_file {
            Some(path) => {
                for certificate in certificates(path, "ca file")? {
                    roots
                        .add(certificate)
                        .usage(|| format!("ca file \"{}\" holds a certificate that cannot be used", path.display()))?;
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        if roots.is_empty() {
            return Err(Error::usage("this system trusts no certificates").hint("name the broker's ca file"));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .failed(|| "TLS cannot be set up")?
            .with_root_certificates(roots);
        let config = match (&o.cert_file, &o.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert, "cert file")?;
                let secret = PrivateKeyDer::from_pem_slice(&read(key, "key file")?).map_err(|_| {
                    Error::usage(format!("key file \"{}\" holds no private key in PEM", key.display()))
                        .hint("PKCS#8, PKCS#1 or SEC1, not encrypted")
                })?;
                builder.with_client_auth_cert(chain, secret).usage(|| {
                    format!("key file \"{}\" and cert file \"{}\" do not fit together", key.display(), cert.display())
                })?
            }
            (Some(_), None) => {
                return Err(Error::usage("a cert file is given and no key file").hint("give both, or none"));
            }
            (None, Some(_)) => {
                return Err(Error::usage("a key file is given and no cert file").hint("give both, or none"));
            }
        };
        Ok(Arc::new(config))
    }

    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.options.heartbeat_ms)
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    fs::read(path).usage(|| format!("{what} \"{}\" cannot be read", path.display()))
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path, what)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::usage(format!("{what} \"{}\" holds no certificate in PEM", path.display()))),
    }
}

/// Host, port and whether it is encrypted. A login in the URL is refused and not repeated.
fn address(url: &str) -> Result<(String, u16, bool)> {
    let shown = match (url.rsplit_once('@'), url.split_once("://")) {
        (Some((_, after)), Some((scheme, _))) => format!("{scheme}://***@{after}"),
        (Some((_, after)), None) => format!("***@{after}"),
        (None, _) => url.to_owned(),
    };
    let bad = |what: &str| {
        Error::usage(format!("MQTT url \"{shown}\" {what}")).hint("mqtt://host, mqtt://host:1883 or mqtts://host:8883")
    };
    if url.contains('@') {
        return Err(bad("carries a login").hint("user name and password file are keys of their own"));
    }
    let parsed = Url::parse(url).map_err(|e| bad(&format!("is not a URL: {e}")))?;
    let tls = match parsed.scheme() {
        "mqtt" => false,
        "mqtts" => true,
        _ => return Err(bad("is neither mqtt nor mqtts")),
    };
    let host = parsed.host_str().filter(|h| !h.is_empty()).ok_or_else(|| bad("names no host"))?;
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(bad("has more than a host and a port"));
    }
    if tls && host.starts_with('[') {
        return Err(
            bad("has an IPv6 address, which a certificate is not checked against here").hint("give a host name")
        );
    }
    let port = parsed.port().unwrap_or(if tls { 8883 } else { 1883 });
    if port == 0 {
        return Err(bad("has port 0"));
    }
    Ok((host.to_owned(), port, tls))
}

fn check_prefix(prefix: &str) -> Result<()> {
    let levels = prefix.split('/').all(|level| !level.is_empty());
    let letters =
        !prefix.contains(['+', '#', '\0']) && !prefix.starts_with('$') && !prefix.chars().any(char::is_control);
    if levels && letters && prefix.len() <= 200 {
        return Ok(());
    }
    Err(Error::usage(format!("MQTT topic prefix \"{}\" cannot begin a topic", prefix.escape_debug()))
        .hint("names with / between them, without + and #, not beginning with $, at most 200 bytes: linesight/hall-3"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn options(url: &str) -> MqttOptions {
        MqttOptions::new(url, "hall-3")
    }

    #[test]
    fn defaults_come_from_the_site() {
        let plan = options("mqtt://broker").plan().unwrap();
        assert_eq!((plan.shown.as_str(), plan.port), ("mqtt://broker:1883", 1883));
        assert_eq!((plan.client_id.as_str(), plan.prefix.as_str()), ("linesight-hall-3", "linesight/hall-3"));
        assert_eq!(plan.heartbeat(), Duration::from_millis(500));
        assert!(!MqttOptions::new("mqtt://broker", "").plan().unwrap().client_id.ends_with('-'));
        assert_eq!(options("mqtt://[::1]:2000/").plan().unwrap().shown, "mqtt://[::1]:2000");
    }

    #[test]
    fn bad_options_get_one_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let (empty, junk) = (file("empty", "\n"), file("junk", "no pem"));
        let with = |change: &dyn Fn(&mut MqttOptions)| {
            let mut o = options("mqtt://b");
            change(&mut o);
            o
        };
        let cases = [
            (options("b:1883"), "MQTT url \"b:1883\" is neither mqtt nor mqtts"),
            (options("b"), "MQTT url \"b\" is not a URL: relative URL without a base"),
            (options("http://b"), "MQTT url \"http://b\" is neither mqtt nor mqtts"),
            (options("mqtt://"), "MQTT url \"mqtt://\" names no host"),
            (options("mqtt://b:x"), "MQTT url \"mqtt://b:x\" is not a URL: invalid port number"),
            (options("mqtt://b:0"), "MQTT url \"mqtt://b:0\" has port 0"),
            (options("mqtt://b/topic"), "MQTT url \"mqtt://b/topic\" has more than a host and a port"),
            (options("mqtt://u:pw@b"), "MQTT url \"mqtt://***@b\" carries a login"),
            (
                options("mqtts://[::1]"),
                "MQTT url \"mqtts://[::1]\" has an IPv6 address, which a certificate is not checked against here",
            ),
            (with(&|o| o.prefix = Some("a/#".into())), "MQTT topic prefix \"a/#\" cannot begin a topic"),
            (with(&|o| o.prefix = Some("/a".into())), "MQTT topic prefix \"/a\" cannot begin a topic"),
            (with(&|o| o.client_id = Some(String::new())), "MQTT client id \"\" is not 1 to 256 printable bytes"),
            (with(&|o| o.heartbeat_ms = 10), "heartbeat of \"10\" ms is out of range"),
            (with(&|o| o.queue = 0), "a queue of \"0\" answers is out of range"),
            (with(&|o| o.password_file = empty.clone()), "an MQTT password is given and no user name"),
        ];
        for (options, wanted) in cases {
            let error = options.check().unwrap_err();
            assert_eq!(error.to_string(), wanted);
            assert!(error.hint_text().is_some() && error.kind() == Kind::Usage, "{wanted}");
        }
        let files = [
            (with(&|o| (o.username, o.password_file) = (Some("u".into()), empty.clone())), "is empty"),
            (
                with(&|o| (o.username, o.password_file) = (Some("u".into()), Some("/nowhere/pw".into()))),
                "cannot be read",
            ),
            (with(&|o| o.ca_file = junk.clone()), "is not encrypted and a ca file is given"),
            (with(&|o| (o.url, o.ca_file) = ("mqtts://b".into(), junk.clone())), "holds no certificate in PEM"),
            (
                with(&|o| (o.url, o.cert_file) = ("mqtts://b".into(), junk.clone())),
                "a cert file is given and no key file",
            ),
        ];
        for (options, wanted) in files {
            let error = options.check().unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for url in ["mqtt://user:s3cret@b", "mqtt://user:s3cret@b:port", "s3cret@", "mqtt://a:s3@cret@b"] {
            let error = options(url).check().unwrap_err();
            let all = format!("{error} {error:?} {:?}", error.hint_text());
            assert!(!all.contains("s3cret") && !all.contains("cret"), "{all}");
        }
    }
}
