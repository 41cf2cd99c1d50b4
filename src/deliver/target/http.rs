//! HTTP for targets: a client made from an [`Endpoint`], one request, and what the answer means.
//!
//! Invariants, each with the test that holds it:
//! 1. Only a 2xx acknowledges; a redirect is not followed: `each_status_has_its_meaning`.
//! 2. `Retry-After` is understood in both forms and capped: `retry_after_in_both_forms`.
//! 3. No secret is in a message or a log line: `secrets_are_not_shown` ([`super::review`], [`super::webhook`]).
//! 4. No answer, however long or slow, holds the uploader beyond `Limits::request` and the time its bytes take:
//!    `slow_server_is_cut_off` (tests/delivery.rs); at most [`ANSWER_MOST`] bytes of it are read: `endless_answer_is_cut_off`
//!    (tests/delivery.rs).
//! 5. A token that is renewed is used from the next request on: `a_renewed_token_is_used` (tests/targets.rs).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Body, Method, StatusCode};
use url::Url;

use super::super::{Endpoint, Limits, Token};
use super::connection::{Connection, explain};
use super::pace::{Cap, Paced, Progress};
use super::secret::{Secret, usable};
use super::{Answer, shown};
use crate::error::{Error, Result};

/// Most bytes of an answer that are read.
const ANSWER_MOST: usize = 64 << 10;
/// Most characters of an answer that are quoted.
const QUOTED: usize = 200;

/// An endpoint, ready to send to.
pub(in super::super) struct Http {
    connection: Connection,
    url: Url,
    token: Option<Secret>,
    /// Sent with each request.
    headers: Vec<(HeaderName, Secret)>,
    cap: Arc<Cap>,
    request: Duration,
    retry_after_most: Duration,
}

/// What an endpoint answered.
pub(in super::super) struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The beginning of the body.
    pub said: Vec<u8>,
    /// The endpoint's certificate (DER), over TLS.
    pub certificate: Option<Vec<u8>>,
}

impl Http {
    /// `url`: where to send, for messages and for what depends on the host.
    pub fn new(endpoint: &Endpoint, url: Url, cap: Arc<Cap>, limits: &Limits) -> Result<Http> {
        let endpoint = Endpoint { url: url.clone(), ..endpoint.clone() };
        let connection = Connection::new(&endpoint, limits.connect)?;
        let token = endpoint.token.as_ref().map(secret).transpose()?;
        if token.is_some() && (!url.username().is_empty() || url.password().is_some()) {
            return Err(Error::usage(format!("the endpoint \"{}\" has a password and a token", shown(&url)))
                .hint("leave one of them out"));
        }
        let (request, retry_after_most) = (limits.request, limits.retry_after_most);
        Ok(Http { connection, url, token, headers: Vec::new(), cap, request, retry_after_most })
    }

    /// With a header of its own in each request.
    pub fn header(mut self, name: HeaderName, value: &Token) -> Result<Http> {
        self.headers.push((name, secret(value)?));
        Ok(self)
    }

    /// Where is sent, for a log line.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }

    /// Posts once. The status, where one was answered, and what it means.
    pub async fn post(&self, url: Url, headers: HeaderMap, body: Vec<u8>) -> (Option<u16>, Answer) {
        let bytes = body.len() as u64;
        match self.exchange(Method::POST, url, headers, body.into()).await {
            Ok(answered) => (Some(answered.status.as_u16()), self.judge(&answered, bytes)),
            Err(answer) => (None, answer),
        }
    }

    /// Sends a request and reads what is answered; without an answer, why.
    pub async fn exchange(
        &self,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answered, Answer> {
        let bearer = self.token.as_ref().map(|token| (AUTHORIZATION, format!("Bearer {}", token.get())));
        let own = self.headers.iter().map(|(name, value)| (name.clone(), value.get()));
        for (name, value) in own.chain(bearer) {
            // both were found usable when they were read
            if let Ok(mut value) = HeaderValue::from_str(&value) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        let progress = Progress::new(self.request, body.len());
        let body = Body::wrap(Paced::new(body, self.cap.clone(), progress.clone()));
        let request = self.connection.client().request(method, url).headers(headers).body(body);
        let mut response = match progress.guard(request.send()).await {
            Some(Ok(response)) => response,
            Some(Err(e)) => {
                let (why, connected) = explain(e);
                return Err(Answer::Failed { why: self.tidy(&why), after: None, connected });
            }
            None => {
                let why = format!("timed out: nothing moved for {:.0} s", progress.allowance().as_secs_f64());
                return Err(Answer::Failed { why, after: None, connected: true });
            }
        };
        let mut said = Vec::new();
        // read to the end where it is short, so that the connection can serve again; the status has said it all
        let rest = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                said.extend_from_slice(&chunk);
                if said.len() > ANSWER_MOST {
                    break;
                }
            }
        };
        let _ = progress.guard(rest).await;
        let tls = response.extensions().get::<reqwest::tls::TlsInfo>();
        let certificate = tls.and_then(|tls| tls.peer_certificate()).map(<[u8]>::to_vec);
        Ok(Answered { status: response.status(), headers: response.headers().clone(), said, certificate })
    }

    /// Asks for the place where is posted, which changes nothing there; what went wrong as one line.
    pub async fn look(&self) -> Result<Answered, String> {
        let asked = self.exchange(Method::GET, self.url.clone(), HeaderMap::new(), Bytes::new()).await;
        asked.map_err(Answer::why)
    }

    /// What an answer to an anomaly of so many bytes means.
    pub fn judge(&self, answered: &Answered, bytes: u64) -> Answer {
        let status = answered.status;
        let after = self.after(answered);
        let why = || {
            let said = self.tidy(&String::from_utf8_lossy(&answered.said));
            let reason = status.canonical_reason().unwrap_or("");
            format!("{} {reason}{}{said}", status.as_u16(), if said.is_empty() { "" } else { ": " })
        };
        match meaning(status) {
            Meaning::Taken => Answer::Taken { bytes },
            Meaning::Refused => Answer::Refused { why: why(), after },
            Meaning::Never => Answer::Never { why: why() },
            Meaning::Later => Answer::Failed { why: why(), after, connected: true },
        }
    }

    /// How long the endpoint asks to wait.
    pub fn after(&self, answered: &Answered) -> Option<Duration> {
        retry_after(&answered.headers, Timestamp::now()).map(|after| after.min(self.retry_after_most))
    }

    /// Somebody else's text as one short line without our secrets.
    pub fn tidy(&self, text: &str) -> String {
        let secrets = self.token.iter().chain(self.headers.iter().map(|(_, value)| value));
        let text = secrets.fold(text.to_owned(), |text, secret| secret.hide(&text));
        let text = match self.url.password() {
            Some(password) if !password.is_empty() => text.replace(password, "***"),
            _ => text,
        };
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
        text.trim().to_owned()
    }
}

fn secret(token: &Token) -> Result<Secret> {
    let secret = Secret::new(token)?;
    usable(secret.get())?;
    Ok(secret)
}

#[derive(Debug, PartialEq)]
enum Meaning {
    Taken,
    /// The endpoint, for now.
    Refused,
    /// This request, for good.
    Never,
    Later,
}

fn meaning(status: StatusCode) -> Meaning {
    match status.as_u16() {
        200..=299 => Meaning::Taken,
        408 | 409 | 425 | 429 => Meaning::Later,
        // what the content is blamed for
        400 | 411..=415 | 417 | 422 | 431 | 451 => Meaning::Never,
        400..=499 => Meaning::Refused,
        _ => Meaning::Later,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_meaning() {
        for (meant, statuses) in [
            (Meaning::Taken, vec![200, 201, 202, 204, 299]),
            (Meaning::Refused, vec![401, 403, 404, 405, 407, 410, 426]),
            (Meaning::Never, vec![400, 411, 413, 414, 415, 422, 431]),
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
}
