//! Webhooks: an anomaly as one JSON document to any URL.
//!
//! Invariants, each with the test that holds it:
//! 1. Neither the URL's path and query nor a header's value is shown: `secrets_are_not_shown`.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use url::Url;

use super::super::Limits;
use super::super::options;
use super::super::spool::Spooled;
use super::http::{Answered, Http};
use super::pace::Cap;
use super::{Answer, KEY, event_at};
use crate::error::{Context, Error, Result};

/// Headers that the request has of itself.
const OWN: [&str; 8] =
    ["authorization", "connection", "content-length", "content-type", "host", KEY, "transfer-encoding", "user-agent"];

pub(in super::super) struct Webhook {
    http: Http,
    url: Url,
    pictures: bool,
}

impl Webhook {
    pub fn new(options: &options::Webhook, cap: Arc<Cap>, limits: &Limits) -> Result<Webhook> {
        let mut url = options.endpoint.url.clone();
        url.set_fragment(None);
        let mut http = Http::new(&options.endpoint, url.clone(), cap, limits)?;
        for (name, value) in &options.headers {
            http = http.header(header(name)?, value)?;
        }
        Ok(Webhook { http, url, pictures: options.pictures })
    }

    /// The host alone: many services put their secret into the path.
    pub fn shown(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// As [`Http::look`].
    pub async fn look(&self) -> Result<Answered, String> {
        self.http.look().await
    }

    /// Sends one anomaly once.
    pub async fn send(&self, item: &Spooled, now: Timestamp) -> Answer {
        let body = match body(item, now, self.pictures) {
            Ok(body) => body,
            Err(e) => return Answer::Never { why: e.to_string() },
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::from_str(&item.id.to_string()) {
            headers.insert(KEY, id);
        }
        self.http.post(self.url.clone(), headers, body).await.1
    }
}

/// The name of a header that may be added.
pub(in super::super) fn header(name: &str) -> Result<HeaderName> {
    let lower = name.to_ascii_lowercase();
    if OWN.contains(&lower.as_str()) {
        return Err(Error::usage(format!("the header \"{name}\" is set by linesight"))
            .hint("leave it out; a bearer token goes into token_file"));
    }
    HeaderName::from_bytes(lower.as_bytes())
        .usage(|| format!("\"{}\" is no name of a header", name.escape_debug()))
        .map_err(|e| e.hint("for example \"X-Api-Key\""))
}

/// The event, with the pictures in a field of their own.
fn body(item: &Spooled, now: Timestamp, pictures: bool) -> Result<Vec<u8>> {
    let mut event = event_at(item, now)?;
    if pictures {
        let text = |bytes: &[u8]| Value::from(BASE64_STANDARD.encode(bytes));
        let mut all = json!({
            "frame_jpeg": text(&item.pictures.frame_jpeg),
            "heatmap_png": text(&item.pictures.heatmap_png),
        });
        if let Some(normal) = &item.pictures.normal_jpeg {
            all["normal_jpeg"] = text(normal);
        }
        event["pictures"] = all;
    }
    serde_json::to_vec(&event).failed(|| "cannot build the request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::tests::sample;
    use crate::deliver::uploader::runtime;
    use crate::deliver::{Endpoint, Token};

    #[test]
    fn secrets_are_not_shown() {
        let options = options::Webhook {
            endpoint: Endpoint::new("http://127.0.0.1:9/geheim?key=geheim".parse().unwrap()),
            pictures: false,
            headers: vec![("X-Api-Key".into(), Token::Text("s3cret".into()))],
        };
        let webhook = Webhook::new(&options, Cap::new(None), &Limits::default()).unwrap();
        assert_eq!(webhook.shown(), "http://127.0.0.1:9");
        assert_eq!(webhook.http.tidy("no s3cret"), "no ***");
        let answer = runtime().unwrap().block_on(webhook.send(&sample(0).1, Timestamp::now()));
        for text in [format!("{options:?}"), format!("{answer:?}")] {
            assert!(!text.contains("geheim") && !text.contains("s3cret"), "{text}");
        }
        for name in ["Authorization", "a b", "Idempotency-Key", ""] {
            assert!(header(name).is_err(), "{name}");
        }
    }
}
