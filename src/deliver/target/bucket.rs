//! Buckets that speak S3: signed by the crate `object_store`, sent by [`Http`], so that certificates, proxy, cap and time-outs
//! are those of every target, and there is one TLS in the program.
//!
//! `object_store` tries each request once: the spool is what tries again.
//!
//! Invariants, each with the test that holds it (tests/targets.rs):
//! 1. Keys depend on the event alone and `event.json` comes last, so each anomaly is there once and, where its `event.json`
//!    is, whole: `a_bucket_gets_each_once`.
//! 2. Credentials come from a file or the environment, are read again when the file changes, and are never shown:
//!    `renewed_credentials_are_used`.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use http_body_util::BodyExt;
use jiff::Timestamp;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::client::{
    ClientOptions, CredentialProvider, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpService,
};
use object_store::path::Path as Key;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutOptions, PutPayload, RetryConfig};
use reqwest::header::HOST;

use super::super::options::{self, Credentials};
use super::super::spool::Spooled;
use super::super::{Endpoint, Limits};
use super::http::Http;
use super::layout::lay;
use super::pace::Cap;
use super::secret::Watched;
use super::{Answer, shown};
use crate::error::{Context, Error, Result};

pub(in super::super) struct Bucket {
    store: AmazonS3,
    prefix: Vec<String>,
    shown: String,
}

impl Bucket {
    pub fn new(options: &options::Bucket, cap: Arc<Cap>, limits: &Limits) -> Result<Bucket> {
        let mut endpoint = Endpoint { token: None, ..options.endpoint.clone() };
        if !options.path_style {
            let host = endpoint.url.host_str().unwrap_or_default();
            let named = format!("{}.{host}", options.bucket);
            endpoint
                .url
                .set_host(Some(&named))
                .usage(|| format!("\"{named}\" is no host"))
                .map_err(|e| e.hint("set path_style = true, or use another bucket name"))?;
        }
        let url = endpoint.url.clone();
        let shown = match options.path_style {
            true => format!("{}/{}", shown(&url).trim_end_matches('/'), options.bucket),
            false => shown(&url),
        };
        let credentials = Arc::new(Keys::new(&options.credentials)?);
        let http = Http::new(&endpoint, url.clone(), cap, limits)?;
        let wire = Wire(Arc::new(Inner { http, credentials: credentials.clone() }));
        let store = AmazonS3Builder::new()
            .with_endpoint(url.as_str().trim_end_matches('/'))
            .with_bucket_name(&options.bucket)
            .with_region(&options.region)
            .with_virtual_hosted_style_request(!options.path_style)
            .with_allow_http(true)
            .with_credentials(credentials)
            .with_http_connector(wire)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
            .usage(|| format!("the bucket \"{shown}\" cannot be used"))
            .map_err(|e| e.hint("docs/5-integrate.md says what url, bucket and region are"))?;
        let prefix = options.prefix.split('/').filter(|step| !step.is_empty()).map(str::to_owned).collect();
        Ok(Bucket { store, prefix, shown })
    }

    pub fn shown(&self) -> String {
        self.shown.clone()
    }

    /// Asks for an object that is not there: says whether the bucket answers and takes the credentials.
    pub async fn look(&self) -> Result<(), String> {
        let key: Key = self.prefix.iter().map(String::as_str).chain(["linesight-doctor"]).collect();
        match self.store.head(&key).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Puts one anomaly.
    pub async fn send(&self, item: &Spooled, now: Timestamp) -> Answer {
        let laid = match lay(item, now) {
            Ok(laid) => laid,
            Err(e) => return Answer::Never { why: e.to_string() },
        };
        let bytes = laid.bytes();
        for file in laid.files {
            let steps = self.prefix.iter().chain(&laid.folder).map(String::as_str).chain([file.name]);
            let key = match Key::parse(steps.collect::<Vec<_>>().join("/")) {
                Ok(key) => key,
                Err(e) => return Answer::Never { why: format!("the anomaly has no key: {e}") },
            };
            let slot = Slot::default();
            let mut extensions = http::Extensions::new();
            extensions.insert(slot.clone());
            let attributes = Attributes::from_iter([(Attribute::ContentType, file.kind)]);
            let with = PutOptions { attributes, extensions, ..PutOptions::default() };
            let put = self.store.put_opts(&key, PutPayload::from_bytes(file.content), with).await;
            let said = slot.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (said, put) {
                // a 2xx, whatever else `object_store` would like to see in the answer
                (Some(Answer::Taken { .. }), _) => {}
                (Some(answer), _) => return answer,
                (None, Err(e)) => return Answer::Failed { why: e.to_string(), after: None, connected: false },
                (None, Ok(_)) => {
                    let why = "the object was not sent; this is a bug in linesight".to_owned();
                    return Answer::Failed { why, after: None, connected: false };
                }
            }
        }
        Answer::Taken { bytes }
    }
}

/// What the wire made of one request, for [`Bucket::send`]: `object_store` says less.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Answer>>>);

/// Sends what `object_store` has signed.
#[derive(Clone)]
struct Wire(Arc<Inner>);

struct Inner {
    http: Http,
    credentials: Arc<Keys>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpConnector for Wire {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let Inner { http, credentials } = &*self.0;
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let url = parts.uri.to_string().parse().map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        // made from the URL again, as it was signed
        parts.headers.remove(HOST);
        let bytes = body.len() as u64;
        let (answer, response) = match http.exchange(parts.method, url, parts.headers, body).await {
            Ok(answered) => {
                let said = credentials.hide(&String::from_utf8_lossy(&answered.said));
                let answer = meaning(http.judge(&answered, bytes), &said, |text| http.tidy(text));
                let mut response = http::Response::new(answered.said.into());
                *response.status_mut() = answered.status;
                *response.headers_mut() = answered.headers;
                (answer, Ok(response))
            }
            Err(answer) => {
                let e = HttpError::new_boxed(HttpErrorKind::Unknown, "it was not answered".into());
                (answer, Err(e))
            }
        };
        if let Some(slot) = parts.extensions.get::<Slot>() {
            *slot.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        }
        response
    }
}

/// S3 blames the content for nothing that linesight sends: every refusal is the bucket's, until a person mends it.
fn meaning(answer: Answer, said: &str, tidy: impl Fn(&str) -> String) -> Answer {
    let element = |name: &str| {
        let (_, rest) = said.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
    };
    let code = element("Code").unwrap_or_default();
    let better = |why: String| {
        let status = why.split(": ").next().unwrap_or_default();
        match (code, element("Message").unwrap_or_default()) {
            ("", _) => why,
            (code, message) => tidy(&format!("{status}: {code}: {message}{}", remedy(code))),
        }
    };
    match answer {
        Answer::Never { why } | Answer::Failed { why, .. } if code == "RequestTimeout" => {
            Answer::Failed { why: better(why), after: None, connected: true }
        }
        Answer::Never { why } => Answer::Refused { why: better(why), after: None },
        Answer::Refused { why, after } => Answer::Refused { why: better(why), after },
        Answer::Failed { why, after, connected } => Answer::Failed { why: better(why), after, connected },
        answer => answer,
    }
}

fn remedy(code: &str) -> &'static str {
    match code {
        "NoSuchBucket" => " (make the bucket, or name another)",
        "AccessDenied" => " (allow s3:PutObject)",
        "SignatureDoesNotMatch" | "InvalidAccessKeyId" | "ExpiredToken" | "InvalidToken" => {
            " (put valid keys into the credentials)"
        }
        "RequestTimeTooSkewed" => " (set this machine's clock)",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => " (set region and url to the bucket's)",
        _ => "",
    }
}

/// Where keys come from, and the last ones.
struct Keys {
    from: Credentials,
    keys: Watched<Arc<AwsCredential>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.from.fmt(f)
    }
}

impl Keys {
    fn new(from: &Credentials) -> Result<Keys> {
        let keys = Watched::new(&files(from), || read(from))?;
        Ok(Keys { from: from.clone(), keys })
    }

    fn hide(&self, text: &str) -> String {
        let keys = self.keys.last();
        let secrets = [Some(&keys.secret_key), keys.token.as_ref()];
        secrets.into_iter().flatten().filter(|s| !s.is_empty()).fold(text.to_owned(), |text, s| text.replace(s, "***"))
    }
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.keys.get(&files(&self.from), |_| read(&self.from)))
    }
}

fn files(from: &Credentials) -> Vec<&Path> {
    match from {
        Credentials::File { path, .. } => vec![path],
        Credentials::Environment => Vec::new(),
    }
}

/// Reads the keys; no value of them is in an error.
pub(in super::super) fn read(from: &Credentials) -> Result<Arc<AwsCredential>> {
    let (id, secret, token) = match from {
        Credentials::Environment => {
            let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY"), get("AWS_SESSION_TOKEN"))
        }
        Credentials::File { path, profile } => {
            let text = std::fs::read_to_string(path)
                .usage(|| format!("credentials_file \"{}\" cannot be read", path.display()))
                .map_err(|e| e.hint("name a file as the AWS tools have it, which this user can read"))?;
            let get = |name: &str| entry(&text, profile, name);
            (get("aws_access_key_id"), get("aws_secret_access_key"), get("aws_session_token"))
        }
    };
    let (Some(key_id), Some(secret_key)) = (id, secret) else {
        return Err(match from {
            Credentials::Environment => Error::usage("the environment holds no keys of a bucket")
                .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a credentials_file"),
            Credentials::File { path, profile } => {
                Error::usage(format!("credentials_file \"{}\" has no keys in [{profile}]", path.display()))
                    .hint("write [default], and below it aws_access_key_id = ... and aws_secret_access_key = ...")
            }
        });
    };
    Ok(Arc::new(AwsCredential { key_id, secret_key, token }))
}

/// A value of a section in the AWS tools' format.
fn entry(text: &str, section: &str, name: &str) -> Option<String> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = head.trim() == section;
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == name
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_their_section() {
        let text =
            "# mine\n[other]\naws_access_key_id = x\n[ default ]\naws_access_key_id=A\n aws_secret_access_key = s=3\n";
        assert_eq!(entry(text, "default", "aws_access_key_id").as_deref(), Some("A"));
        assert_eq!(entry(text, "default", "aws_secret_access_key").as_deref(), Some("s=3"));
        assert_eq!(entry(text, "default", "aws_session_token"), None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "[default]\naws_secret_access_key = s3cret\n").unwrap();
        let from = Credentials::File { path, profile: "default".into() };
        let e = read(&from).unwrap_err();
        assert!(e.to_string().contains("has no keys in [default]") && !e.to_string().contains("s3cret"), "{e}");
    }

    #[test]
    fn no_refusal_is_for_ever() {
        let said = "<Error><Code>ExpiredToken</Code><Message>gone</Message></Error>";
        let answer = meaning(Answer::Never { why: "400 Bad Request: <Er".into() }, said, str::to_owned);
        let why = "400 Bad Request: ExpiredToken: gone (put valid keys into the credentials)".to_owned();
        assert_eq!(answer, Answer::Refused { why, after: None });
        let said = "<Code>RequestTimeout</Code><Message>slow</Message>";
        let answer = meaning(Answer::Never { why: "400 Bad Request".into() }, said, str::to_owned);
        assert!(matches!(answer, Answer::Failed { .. }), "{answer:?}");
    }
}
