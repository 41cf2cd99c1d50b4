//! Targets: the places where anomalies go. One file for each kind; what those over HTTP share is in [`http`]
//! (a request and what its answer means), [`connection`] (TLS, proxy), [`secret`] (tokens), [`pace`] (bandwidth, time-outs);
//! how an anomaly lies in a bucket or folder is in [`layout`].
//!
//! A target is used by one thread, which has several requests on their way at a time ([`super::uploader`]).

mod bucket;
mod connection;
mod folder;
mod http;
mod layout;
mod pace;
mod review;
mod secret;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use url::Url;

use super::spool::Spooled;
use super::{Endpoint, Kind, Limits, Target, read_token};
use crate::error::{Context, Error, Result};

pub(super) use http::Http;
pub(super) use pace::Cap;
pub(super) use review::Review;

/// The header that says which requests are the same.
const KEY: &str = "idempotency-key";

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// Acknowledged; the bytes of it that were sent.
    Taken { bytes: u64 },
    /// The endpoint takes nothing as it is (token, address): until a person changes something.
    Refused { why: String, after: Option<Duration> },
    /// The endpoint would never take this one.
    Never { why: String },
    /// The endpoint has nothing at this place; of reports only.
    Unknown { why: String },
    /// May well succeed later.
    Failed { why: String, after: Option<Duration>, connected: bool },
}

impl Answer {
    /// What went wrong, in one line.
    pub fn why(self) -> String {
        match self {
            Answer::Taken { .. } => String::new(),
            Answer::Refused { why, .. }
            | Answer::Never { why }
            | Answer::Unknown { why }
            | Answer::Failed { why, .. } => why,
        }
    }
}

/// What a look at a target found.
pub(super) enum Looked {
    /// An HTTP answer to a GET.
    Answered(http::Answered),
    /// It can be read, and by its rights be written.
    Usable,
}

/// A target, ready to be sent to.
pub(super) struct Client {
    place: Place,
    cap: Arc<Cap>,
}

enum Place {
    Review(Review),
    Webhook(webhook::Webhook),
    Bucket(Box<bucket::Bucket>),
    Folder(folder::Folder),
}

impl Client {
    pub fn new(target: &Target, limits: &Limits) -> Result<Client> {
        let cap = Cap::new(target.bytes_per_s);
        let shared = cap.clone();
        let place = match &target.kind {
            Kind::Review(endpoint) => Place::Review(Review::new(endpoint, shared, limits)?),
            Kind::Webhook(webhook) => Place::Webhook(webhook::Webhook::new(webhook, shared, limits)?),
            Kind::Bucket(bucket) => Place::Bucket(Box::new(bucket::Bucket::new(bucket, shared, limits)?)),
            Kind::Folder(folder) => Place::Folder(folder::Folder::new(folder, shared)),
        };
        Ok(Client { place, cap })
    }

    /// The place, for a log line: without secrets.
    pub fn shown(&self) -> String {
        match &self.place {
            Place::Review(review) => review.shown(),
            Place::Webhook(webhook) => webhook.shown(),
            Place::Bucket(bucket) => bucket.shown(),
            Place::Folder(folder) => folder.shown(),
        }
    }

    /// Looks whether the place is there, without leaving anything in it; what went wrong as one line.
    pub async fn look(&self) -> Result<Looked, String> {
        match &self.place {
            Place::Review(review) => review.look().await.map(Looked::Answered),
            Place::Webhook(webhook) => webhook.look().await.map(Looked::Answered),
            Place::Bucket(bucket) => bucket.look().await.map(|()| Looked::Usable),
            Place::Folder(folder) => folder.look().map(|()| Looked::Usable),
        }
    }

    /// Sends one anomaly once.
    pub async fn send(&self, item: &Spooled, now: Timestamp) -> Answer {
        match &self.place {
            Place::Review(review) => review.send(item, now).await,
            Place::Webhook(webhook) => webhook.send(item, now).await,
            Place::Bucket(bucket) => bucket.send(item, now).await,
            Place::Folder(folder) => folder.send(item, now).await,
        }
    }

    /// For the line reports to the same place, which are sent by a thread of their own under the same cap; none where the
    /// place takes none.
    pub fn reporter(&self, target: &Target, limits: &Limits) -> Result<Option<Review>> {
        match &target.kind {
            Kind::Review(endpoint) => {
                Ok(Some(Review::new(endpoint, self.cap.clone(), limits)?).filter(Review::takes_reports))
            }
            Kind::Webhook(_) | Kind::Bucket(_) | Kind::Folder(_) => Ok(None),
        }
    }
}

impl Target {
    /// Whether its files can be read and its values used: the key of line.toml that is wrong, and why. Opens nothing but files.
    pub fn check(&self) -> Result<(), (String, Error)> {
        let wrong = |key: &str| {
            let key = key.to_owned();
            move |e: Error| (key, e)
        };
        let endpoint = |endpoint: &Endpoint| {
            if let Some(super::Token::File(file)) = &endpoint.token {
                read_token(file).and_then(secret::usable).map_err(wrong("token_file"))?;
            }
            if let Some(file) = &endpoint.ca_file {
                connection::authorities(file).map_err(wrong("ca_file"))?;
            }
            if let (Some(cert), Some(key)) = (&endpoint.cert_file, &endpoint.key_file) {
                connection::identity(cert, key).map_err(wrong("cert_file"))?;
            }
            endpoint.proxy.as_ref().map(connection::through).transpose().map_err(wrong("proxy"))?;
            Ok(())
        };
        match &self.kind {
            Kind::Review(review) => endpoint(review)?,
            Kind::Webhook(webhook) => {
                endpoint(&webhook.endpoint)?;
                for (name, value) in &webhook.headers {
                    let key = match value {
                        super::Token::Text(_) => "headers",
                        super::Token::File(_) => "header_files",
                    };
                    webhook::header(name).map_err(wrong(key))?;
                    secret::Secret::new(value).and_then(|value| secret::usable(value.get())).map_err(wrong(key))?;
                }
            }
            Kind::Bucket(bucket) => {
                endpoint(&bucket.endpoint)?;
                bucket::read(&bucket.credentials).map_err(wrong("credentials_file"))?;
            }
            // it may be mounted later
            Kind::Folder(_) => return Ok(()),
        }
        // what concerns several keys; the place of the target itself is all that can be said
        Client::new(self, &Limits::default()).map(drop).map_err(wrong(""))
    }
}

/// The event as it is sent now.
fn event_at(item: &Spooled, now: Timestamp) -> Result<serde_json::Value> {
    let mut event: serde_json::Value =
        serde_json::from_str(&item.event).failed(|| format!("the spooled event \"{}\" cannot be read", item.id))?;
    event["spooled_s"] = now.duration_since(item.spooled_at).as_secs_f64().max(0.0).into();
    Ok(event)
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
