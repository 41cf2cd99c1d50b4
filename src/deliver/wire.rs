//! One attempt over HTTP: the request, and what the answer means. Used by the uploader's thread.
//!
//! Invariants, each with the test that holds it:
//! 1. Only a 2xx acknowledges; a redirect is not followed: `each_status_has_its_meaning`.
//! 2. `Retry-After` is understood in both forms and capped: `retry_after_in_both_forms`.
//! 3. The token never is in a message or a log line: `secrets_are_not_shown`.
//! 4. No answer, however long or slow, holds the uploader beyond `Limits::request`: `slow_server_is_cut_off`
//!    (tests/delivery.rs); at most [`ANSWER_MOST`] bytes of it are read: `endless_answer_is_cut_off` (tests/delivery.rs).

use std::error::Error as _;
use std::io::Read;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::blocking::multipart::{Form, Part};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use url::Url;

use super::database::Spooled;
use super::{Endpoint, Limits};
use crate::error::{Context, Error, Result};

/// Most bytes of an answer that are read.
const ANSWER_MOST: u64 = 64 << 10;
/// Most characters of an answer that are quoted.
const QUOTED: usize = 200;
/// Where anomalies are posted below a base URL.
const PATH: &str = "api/v1/anomalies";

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// Acknowledged; the bytes of the request's body.
    Taken { bytes: u64 },
    /// The endpoint would refuse this one again, until a person changes something.
    Refused { why: String, after: Option<Duration> },
    /// The endpoint has nothing at this place; of reports only.
    Unknown { why: String },
    /// May well succeed later.
    Failed { why: String, after: Option<Duration>, connected: bool },
}

/// An endpoint, ready to post to.
pub(super) struct Client {
    client: reqwest::blocking::Client,
    url: Url,
    /// What the paths are added to; none when the URL names a place of its own.
    base: Option<Url>,
    token: Option<String>,
    request: Duration,
    retry_after_most: Duration,
}

impl Client {
    pub fn new(endpoint: &Endpoint, limits: &Limits) -> Result<Client> {
        let url = target(&endpoint.url)?;
        let base = endpoint.url.path().ends_with('/').then(|| endpoint.url.clone());
        let mut headers = HeaderMap::new();
        if let Some(token) = &endpoint.token {
            if !url.username().is_empty() || url.password().is_some() {
                return Err(Error::usage(format!("the endpoint \"{}\" has a password and a token", shown(&url)))
                    .hint("leave one of them out"));
            }
            let mut value =
                HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty()).ok_or_else(
                    || Error::usage("the endpoint's token is empty or has characters that no header may have"),
                )?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut client = reqwest::blocking::Client::builder()
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(limits.connect)
            .timeout(None)
            .user_agent(concat!("linesight/", env!("CARGO_PKG_VERSION")));
        if url.scheme() == "http" {
            // a machine without any certificates can still do this
            client = client.tls_certs_only([]);
        }
        if is_loopback(&url) {
            // a proxy of the plant's network cannot reach this machine's own endpoint
            client = client.no_proxy();
        }
        let client = client.build().map_err(|e| {
            Error::failed("cannot prepare the HTTP client").because(e).hint("install the package ca-certificates")
        })?;
        let token = endpoint.token.clone();
        Ok(Client { client, url, base, token, request: limits.request, retry_after_most: limits.retry_after_most })
    }

    /// The endpoint, for a log line.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }

    /// Sends one anomaly once.
    pub fn send(&self, item: &Spooled, now: Timestamp) -> Answer {
        let (kind, body) = match body(item, now) {
            Ok(made) => made,
            Err(e) => return Answer::Refused { why: e.to_string(), after: None },
        };
        let bytes = body.len() as u64;
        let request = self
            .client
            .post(self.url.clone())
            .timeout(self.request)
            .header("Idempotency-Key", item.id.to_string())
            .header(CONTENT_TYPE, kind)
            .body(body);
        match request.send() {
            Ok(response) => self.judge(response, bytes),
            Err(e) => self.unanswered(e),
        }
    }

    /// Whether the endpoint can have line reports: one with a path of its own is a plain sink of anomalies.
    pub fn takes_reports(&self) -> bool {
        self.base.is_some()
    }

    /// Sends one line report once.
    pub fn send_report(&self, line: &str, key: &str, report: &str) -> Answer {
        let target = self.base.clone().and_then(|mut url| {
            url.set_fragment(None);
            url.path_segments_mut().ok()?.pop_if_empty().extend(["api", "v1", "lines", line, "report"]);
            Some(url)
        });
        // a key goes into a header
        let key = HeaderValue::from_str(key).or_else(|_| HeaderValue::from_str(&escaped(key)));
        let (Some(url), Ok(key)) = (target, key) else {
            return Answer::Unknown { why: "the endpoint has a path of its own".into() };
        };
        let request = self
            .client
            .post(url)
            .timeout(self.request)
            .header("Idempotency-Key", key)
            .header(CONTENT_TYPE, "application/json")
            .body(report.to_owned());
        match request.send() {
            Ok(response) => match response.status().as_u16() {
                status @ (404 | 405 | 501) => Answer::Unknown { why: format!("{status}") },
                _ => self.judge(response, report.len() as u64),
            },
            Err(e) => self.unanswered(e),
        }
    }

    fn unanswered(&self, e: reqwest::Error) -> Answer {
        let connected = !e.is_connect();
        Answer::Failed { why: self.tidy(&chain(e.without_url())), after: None, connected }
    }

    fn judge(&self, response: reqwest::blocking::Response, bytes: u64) -> Answer {
        let status = response.status();
        let after = retry_after(response.headers(), Timestamp::now()).map(|after| after.min(self.retry_after_most));
        let mut said = Vec::new();
        // read to the end where it is short, so that the connection can serve again; the status has said it all
        let _ = response.take(ANSWER_MOST).read_to_end(&mut said);
        let why = || {
            let said = self.tidy(&String::from_utf8_lossy(&said));
            let reason = status.canonical_reason().unwrap_or("");
            format!("{} {reason}{}{said}", status.as_u16(), if said.is_empty() { "" } else { ": " })
        };
        match meaning(status) {
            Meaning::Taken => Answer::Taken { bytes },
            Meaning::Refused => Answer::Refused { why: why(), after },
            Meaning::Later => Answer::Failed { why: why(), after, connected: true },
        }
    }

    /// Somebody else's text as one short line without our token.
    fn tidy(&self, text: &str) -> String {
        let text = match self.token.as_deref() {
            Some(token) => text.replace(token, "***"),
            None => text.to_owned(),
        };
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
        text.trim().to_owned()
    }
}

/// With everything but ASCII letters and digits written as in a URL.
fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[derive(Debug, PartialEq)]
enum Meaning {
    Taken,
    Refused,
    Later,
}

fn meaning(status: StatusCode) -> Meaning {
    match status.as_u16() {
        200..=299 => Meaning::Taken,
        408 | 409 | 425 | 429 => Meaning::Later,
        400..=499 => Meaning::Refused,
        _ => Meaning::Later,
    }
}

/// The multipart body, and its content type.
fn body(item: &Spooled, now: Timestamp) -> Result<(String, Vec<u8>)> {
    let mut event: serde_json::Value =
        serde_json::from_str(&item.event).failed(|| format!("the spooled event \"{}\" cannot be read", item.id))?;
    event["spooled_s"] = now.duration_since(item.spooled_at).as_secs_f64().max(0.0).into();
    let part = |bytes: Vec<u8>, name: &'static str, kind: &str| -> Result<Part> {
        Part::bytes(bytes).file_name(name).mime_str(kind).failed(|| "cannot build the request")
    };
    let pictures = &item.pictures;
    let json = Part::text(event.to_string()).mime_str("application/json").failed(|| "cannot build the request")?;
    let mut form = Form::new()
        .part("event", json)
        .part("frame", part(pictures.frame_jpeg.clone(), "frame.jpg", "image/jpeg")?)
        .part("heatmap", part(pictures.heatmap_png.clone(), "heatmap.png", "image/png")?);
    if let Some(normal) = &pictures.normal_jpeg {
        form = form.part("normal", part(normal.clone(), "normal.jpg", "image/jpeg")?);
    }
    let kind = format!("multipart/form-data; boundary={}", form.boundary());
    let mut body = Vec::new();
    form.into_reader().read_to_end(&mut body).failed(|| "cannot build the request")?;
    Ok((kind, body))
}

/// Where to post; see [`Endpoint::url`].
fn target(url: &Url) -> Result<Url> {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(Error::usage(format!("the endpoint \"{}\" is not an http or https URL", shown(url))));
    }
    let mut url = url.clone();
    url.set_fragment(None);
    if url.path().ends_with('/') {
        let path = format!("{}{PATH}", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

/// A URL without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn chain(e: reqwest::Error) -> String {
    let mut text = e.to_string();
    let mut below = e.source();
    while let Some(e) = below {
        text = format!("{text}: {e}");
        below = e.source();
    }
    text
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(a)) => a.is_loopback(),
        Some(url::Host::Ipv6(a)) => a.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::tests::sample;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

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
    fn the_path_is_added_to_a_base() {
        for (given, posted) in [
            ("http://h:8080", "http://h:8080/api/v1/anomalies"),
            ("http://h/", "http://h/api/v1/anomalies"),
            ("https://h/plant/", "https://h/plant/api/v1/anomalies"),
            ("https://h/hook?key=1", "https://h/hook?key=1"),
            ("https://h/api/v1/anomalies", "https://h/api/v1/anomalies"),
        ] {
            assert_eq!(target(&url(given)).unwrap().as_str(), posted);
        }
        let e = target(&url("ftp://user:pw@h/x")).unwrap_err();
        assert_eq!(e.to_string(), "the endpoint \"ftp://h/x\" is not an http or https URL");
    }

    #[test]
    fn each_status_has_its_meaning() {
        for (meant, statuses) in [
            (Meaning::Taken, vec![200, 201, 202, 204, 299]),
            (Meaning::Refused, vec![400, 401, 403, 404, 405, 410, 413, 415, 422]),
            (Meaning::Later, vec![300, 301, 302, 307, 308, 408, 409, 425, 429, 500, 502, 503, 504, 599]),
        ] {
            for status in statuses {
                assert_eq!(meaning(StatusCode::from_u16(status).unwrap()), meant, "{status}");
            }
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Thu, 01 Jan 2026 00:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(read("Wed, 31 Dec 2025 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let endpoint = Endpoint { url: url("http://127.0.0.1:9/hook?key=geheim"), token: Some("s3cret".into()) };
        let client = Client::new(&endpoint, &Limits::default()).unwrap();
        assert_eq!(client.tidy("bad token s3cret\nhere"), "bad token *** here");
        assert_eq!(client.shown(), "http://127.0.0.1:9/hook");
        let (_, item) = sample(0);
        let Answer::Failed { why, connected, .. } = client.send(&item, Timestamp::now()) else { panic!("taken") };
        assert!(!connected && !why.contains("geheim") && !why.contains("s3cret"), "{why}");
        let both = Endpoint { url: url("http://me:geheim@h/"), token: Some("s3cret".into()) };
        for (endpoint, said) in [
            (both, "the endpoint \"http://h/api/v1/anomalies\" has a password and a token"),
            (
                Endpoint { token: Some("a\nb".into()), ..endpoint },
                "the endpoint's token is empty or has characters that no header may have",
            ),
        ] {
            assert_eq!(Client::new(&endpoint, &Limits::default()).err().unwrap().to_string(), said);
        }
    }

    #[test]
    fn the_event_is_sent_with_its_time_in_the_spool() {
        let (event, mut item) = sample(7);
        let (kind, bytes) = body(&item, item.spooled_at + Duration::from_millis(1500)).unwrap();
        assert!(kind.starts_with("multipart/form-data; boundary="));
        let text = String::from_utf8_lossy(&bytes);
        let json = text.lines().find(|line| line.starts_with('{')).unwrap();
        let sent: crate::event::Event = serde_json::from_str(json).unwrap();
        assert_eq!(sent, crate::event::Event { spooled_s: 1.5, ..event });
        item.event = "{".into();
        assert!(body(&item, Timestamp::now()).is_err());
    }
}
