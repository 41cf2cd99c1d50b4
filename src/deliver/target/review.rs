//! The review endpoint: anomalies as multipart requests, line reports as JSON.
//!
//! Invariants, each with the test that holds it:
//! 1. The token never is in a message or a log line: `secrets_are_not_shown`.

use std::io::Read;
use std::sync::Arc;

use jiff::Timestamp;
use reqwest::blocking::multipart::{Form, Part};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use url::Url;

use super::super::spool::Spooled;
use super::super::{Endpoint, Limits};
use super::http::{Answered, Http};
use super::pace::Cap;
use super::{Answer, KEY, event_at};
use crate::error::{Context, Result};

/// Where anomalies are posted below a base URL.
const PATH: &str = "api/v1/anomalies";

/// A review endpoint, ready to post to.
pub(in super::super) struct Review {
    http: Http,
    url: Url,
    /// What the paths are added to; none when the URL names a place of its own.
    base: Option<Url>,
}

impl Review {
    pub fn new(endpoint: &Endpoint, cap: Arc<Cap>, limits: &Limits) -> Result<Review> {
        let url = target(&endpoint.url);
        let base = endpoint.url.path().ends_with('/').then(|| endpoint.url.clone());
        Ok(Review { http: Http::new(endpoint, url.clone(), cap, limits)?, url, base })
    }

    /// The endpoint, for a log line.
    pub fn shown(&self) -> String {
        self.http.shown()
    }

    /// As [`Http::look`].
    pub async fn look(&self) -> Result<Answered, String> {
        self.http.look().await
    }

    /// Sends one anomaly once.
    pub async fn send(&self, item: &Spooled, now: Timestamp) -> Answer {
        let (kind, body) = match body(item, now) {
            Ok(made) => made,
            Err(e) => return Answer::Never { why: e.to_string() },
        };
        let mut headers = HeaderMap::new();
        // both are made of what a header may have
        for (name, value) in [(KEY, item.id.to_string()), (CONTENT_TYPE.as_str(), kind)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        self.http.post(self.url.clone(), headers, body).await.1
    }

    /// Whether the endpoint can have line reports: one with a path of its own is a plain sink of anomalies.
    pub fn takes_reports(&self) -> bool {
        self.base.is_some()
    }

    /// Sends one line report once.
    pub async fn send_report(&self, line: &str, key: &str, report: &str) -> Answer {
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
        let mut headers = HeaderMap::new();
        headers.insert(KEY, key);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.http.post(url, headers, report.as_bytes().to_vec()).await {
            (Some(status @ (404 | 405 | 501)), _) => Answer::Unknown { why: status.to_string() },
            // the next report may be another
            (_, Answer::Never { why }) => Answer::Refused { why, after: None },
            (_, answer) => answer,
        }
    }
}

/// With everything but ASCII letters and digits written as in a URL.
fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The multipart body, and its content type.
fn body(item: &Spooled, now: Timestamp) -> Result<(String, Vec<u8>)> {
    let event = event_at(item, now)?;
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

/// Where to post; see [`super::super::Kind::Review`].
fn target(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_fragment(None);
    if url.path().ends_with('/') {
        let path = format!("{}{PATH}", url.path());
        url.set_path(&path);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::Token;
    use crate::deliver::tests::sample;
    use crate::deliver::uploader::runtime;
    use std::time::Duration;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
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
            assert_eq!(target(&url(given)).as_str(), posted);
        }
        let e =
            Review::new(&Endpoint::new(url("ftp://user:pw@h/x")), Cap::new(None), &Limits::default()).err().unwrap();
        assert_eq!(e.to_string(), "the endpoint \"ftp://h/x\" is not an http or https URL");
    }

    #[test]
    fn secrets_are_not_shown() {
        let token = |text: &str| Some(Token::Text(text.into()));
        let endpoint = Endpoint { token: token("s3cret"), ..Endpoint::new(url("http://127.0.0.1:9/hook?key=geheim")) };
        let client = Review::new(&endpoint, Cap::new(None), &Limits::default()).unwrap();
        assert_eq!(client.http.tidy("bad token s3cret\nhere"), "bad token *** here");
        assert_eq!(client.shown(), "http://127.0.0.1:9/hook");
        let (_, item) = sample(0);
        let Answer::Failed { why, connected, .. } = runtime().unwrap().block_on(client.send(&item, Timestamp::now()))
        else {
            panic!("taken")
        };
        assert!(!connected && !why.contains("geheim") && !why.contains("s3cret"), "{why}");
        let both = Endpoint { token: token("s3cret"), ..Endpoint::new(url("http://me:geheim@h/")) };
        for (endpoint, said) in [
            (both, "the endpoint \"http://h/api/v1/anomalies\" has a password and a token"),
            (
                Endpoint { token: token("a\nb"), ..endpoint },
                "the endpoint's token is empty or has characters that no header may have",
            ),
        ] {
            assert_eq!(Review::new(&endpoint, Cap::new(None), &Limits::default()).err().unwrap().to_string(), said);
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
