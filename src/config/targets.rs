//! [review] and [[target]]: where anomalies go.
//!
//! Invariants:
//! 1. A key that a kind of target does not know is refused, not overlooked (tests `tests/config.rs`).
//! 2. No secret stands in line.toml, nor in an error about it: addresses with a login are refused.

use super::place::Step;
use super::raw::{Raw, RawKind, RawReview, RawTarget};
use super::{Checker, key};
use crate::deliver::{Bucket, Credentials, Endpoint, Folder, Kind, Order, REVIEW, Target, Token, Webhook};
use crate::error::Result;
use std::path::PathBuf;
use url::Url;

const PARALLEL: std::ops::RangeInclusive<u32> = 1..=16;
/// A thinner link would take minutes for one picture.
const KBIT_S_LEAST: u64 = 8;
const REGION: &str = "us-east-1";
const PROFILE: &str = "default";

/// Keys of an HTTP endpoint, wherever they stand.
struct Http<'a> {
    url: &'a str,
    token_file: &'a Option<PathBuf>,
    ca_file: &'a Option<PathBuf>,
    cert_file: &'a Option<PathBuf>,
    key_file: &'a Option<PathBuf>,
    proxy: &'a Option<String>,
}

type At<'a> = &'a dyn Fn(&str) -> Vec<Step>;

impl Checker<'_> {
    pub(super) fn targets(&self, raw: &Raw) -> Result<Vec<Target>> {
        let review = raw.review.as_ref().map(|r| self.review(r)).transpose()?;
        let mut targets: Vec<Target> = review.into_iter().collect();
        for (i, raw) in raw.target.iter().enumerate() {
            let at = |name: &str| -> Vec<Step> {
                let key = Some(name).filter(|name| !name.is_empty()).map(key);
                [Step::Key("target".into()), Step::Index(i)].into_iter().chain(key.into_iter().flatten()).collect()
            };
            self.name(&at("name"), &raw.name)?;
            if targets.iter().any(|other| other.name == raw.name) {
                let of = if raw.name == REVIEW { "that of [review]" } else { "that of another target" };
                let message = format!("the name \"{}\" is {of} too", raw.name);
                return Err(self.wrong(
                    &at("name"),
                    &message,
                    "each needs a name of its own: what waits for it is kept under it",
                ));
            }
            let target = self.target(&at, raw)?;
            self.usable(&at, &target)?;
            targets.push(target);
        }
        Ok(targets)
    }

    fn review(&self, raw: &RawReview) -> Result<Target> {
        let at =
            |name: &str| key(if name.is_empty() { REVIEW.to_owned() } else { format!("{REVIEW}.{name}") }.as_str());
        let RawReview { url, token_file, ca_file, cert_file, key_file, proxy, parallel, order, max_kbit_s } = raw;
        let http = Http { url, token_file, ca_file, cert_file, key_file, proxy };
        let kind = Kind::Review(self.endpoint(&at, &http)?);
        let target = self.paced(&at, REVIEW, kind, *parallel, *order, *max_kbit_s)?;
        self.usable(&at, &target)?;
        Ok(target)
    }

    fn target(&self, at: At<'_>, raw: &RawTarget) -> Result<Target> {
        let http = ["url", "ca_file", "cert_file", "key_file", "proxy"];
        let own: (&str, &[&str]) = match raw.kind {
            RawKind::Review => (REVIEW, &["token_file"]),
            RawKind::Webhook => ("webhook", &["token_file", "pictures", "headers", "header_files"]),
            RawKind::S3 => ("s3", &["bucket", "prefix", "region", "path_style", "credentials_file", "profile"]),
            RawKind::Folder => ("folder", &["path", "mounted"]),
        };
        let given = [
            ("url", raw.url.is_some()),
            ("token_file", raw.token_file.is_some()),
            ("ca_file", raw.ca_file.is_some()),
            ("cert_file", raw.cert_file.is_some()),
            ("key_file", raw.key_file.is_some()),
            ("proxy", raw.proxy.is_some()),
            ("pictures", raw.pictures.is_some()),
            ("headers", !raw.headers.is_empty()),
            ("header_files", !raw.header_files.is_empty()),
            ("bucket", raw.bucket.is_some()),
            ("prefix", raw.prefix.is_some()),
            ("region", raw.region.is_some()),
            ("path_style", raw.path_style.is_some()),
            ("credentials_file", raw.credentials_file.is_some()),
            ("profile", raw.profile.is_some()),
            ("path", raw.path.is_some()),
            ("mounted", raw.mounted.is_some()),
        ];
        let (kind, own) = own;
        let known: Vec<&str> = http.iter().filter(|_| raw.kind != RawKind::Folder).chain(own).copied().collect();
        if let Some((name, _)) = given.iter().find(|(name, given)| *given && !known.contains(name)) {
            let message = format!("a target of kind \"{kind}\" has no such key");
            let hint = format!("accepted here: name, kind, parallel, order, max_kbit_s, {}", known.join(", "));
            return Err(self.wrong(&at(name), &message, hint));
        }
        let missing =
            |name: &str, example: &str| self.wrong(&at(name), "this key is missing", format!("add {name} = {example}"));
        let endpoint = |url: &str| {
            let RawTarget { token_file, ca_file, cert_file, key_file, proxy, .. } = raw;
            self.endpoint(at, &Http { url, token_file, ca_file, cert_file, key_file, proxy })
        };
        let kind = match raw.kind {
            RawKind::Review => {
                let url = raw.url.as_deref().ok_or_else(|| missing("url", "\"https://review.plant.example\""))?;
                Kind::Review(endpoint(url)?)
            }
            RawKind::Webhook => {
                let url = raw.url.as_deref().ok_or_else(|| missing("url", "\"https://host.example/hook\""))?;
                let texts = raw.headers.iter().map(|(name, value)| (name.clone(), Token::Text(value.clone())));
                let files = raw.header_files.iter().map(|(name, file)| (name.clone(), Token::File(self.path(file))));
                let headers: Vec<(String, Token)> = texts.chain(files).collect();
                if let Some((i, (name, _))) = headers
                    .iter()
                    .enumerate()
                    .find(|(i, (name, _))| headers[..*i].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)))
                {
                    let place = if i < raw.headers.len() { "headers" } else { "header_files" };
                    let message = format!("the header \"{name}\" is given twice");
                    return Err(self.wrong(&at(place), &message, "name each header once"));
                }
                Kind::Webhook(Webhook { endpoint: endpoint(url)?, pictures: raw.pictures.unwrap_or(true), headers })
            }
            RawKind::S3 => Kind::Bucket(self.bucket(at, raw, &missing, &endpoint)?),
            RawKind::Folder => {
                let path = raw.path.as_deref().ok_or_else(|| missing("path", "\"/mnt/anomalies\""))?;
                Kind::Folder(Folder { path: self.path(path), mounted: raw.mounted.unwrap_or(false) })
            }
        };
        self.paced(at, &raw.name, kind, raw.parallel, raw.order, raw.max_kbit_s)
    }

    fn bucket(
        &self,
        at: At<'_>,
        raw: &RawTarget,
        missing: &dyn Fn(&str, &str) -> crate::error::Error,
        endpoint: &dyn Fn(&str) -> Result<Endpoint>,
    ) -> Result<Bucket> {
        let fits = |text: &str, more: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let bucket = raw.bucket.clone().ok_or_else(|| missing("bucket", "\"anomalies\""))?;
        let region = raw.region.clone().unwrap_or_else(|| REGION.into());
        for (name, value, more) in [("bucket", &bucket, "-_."), ("region", &region, "-_")] {
            if !fits(value, more) {
                let message = format!("\"{}\" is no {name}", value.escape_debug());
                return Err(self.wrong(&at(name), &message, "letters, digits and '-', as the service shows it"));
            }
        }
        let prefix = raw.prefix.clone().unwrap_or_default();
        let step = |step: &str| fits(step, "-_.=") && step.chars().any(|c| c != '.');
        if !prefix.trim_matches('/').split('/').all(step) && !prefix.trim_matches('/').is_empty() {
            let message = format!("\"{}\" cannot begin a key", prefix.escape_debug());
            return Err(self.wrong(
                &at("prefix"),
                &message,
                "steps of letters, digits, '-', '_', '.' and '=', with '/' between",
            ));
        }
        if raw.profile.is_some() && raw.credentials_file.is_none() {
            return Err(self.wrong(&at("profile"), "there is no credentials_file", "name one, or leave profile out"));
        }
        let url = raw.url.clone().unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let endpoint = endpoint(&url)?;
        if endpoint.url.query().is_some() || endpoint.url.path() != "/" {
            let hint =
                "give the service alone, for example \"https://s3.plant.example\"; the bucket is a key of its own";
            return Err(self.wrong(&at("url"), "the address has a path", hint));
        }
        let credentials = match &raw.credentials_file {
            Some(file) => Credentials::File {
                path: self.path(file),
                profile: raw.profile.clone().unwrap_or_else(|| PROFILE.into()),
            },
            None => Credentials::Environment,
        };
        Ok(Bucket { endpoint, bucket, prefix, region, path_style: raw.path_style.unwrap_or(true), credentials })
    }

    fn endpoint(&self, at: At<'_>, raw: &Http<'_>) -> Result<Endpoint> {
        let parse = |name: &str, text: &str, example: &str, login: &str| {
            let url = Url::parse(text).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
            let url = url.ok_or_else(|| {
                // what cannot be read may hold a login all the same
                let text = if text.contains('@') { "it".into() } else { format!("\"{}\"", text.escape_debug()) };
                self.wrong(&at(name), &format!("{text} is no http or https address"), format!("for example {example}"))
            })?;
            match url.username().is_empty() && url.password().is_none() {
                true => Ok(url),
                false => Err(self.wrong(&at(name), "the address holds a login", login)),
            }
        };
        let login = "put the token into a file and name it with token_file";
        let url = parse("url", raw.url, "\"http://127.0.0.1:8080\"", login)?;
        let login = "leave proxy out and set HTTPS_PROXY in the service's environment instead";
        let proxy = raw.proxy.as_deref();
        let proxy = proxy.map(|text| parse("proxy", text, "\"http://proxy.plant.example:3128\"", login)).transpose()?;
        let path = |file: &Option<PathBuf>| file.as_deref().map(|file| self.path(file));
        let (ca_file, cert_file, key_file) = (path(raw.ca_file), path(raw.cert_file), path(raw.key_file));
        for (one, there, other, has) in [
            ("cert_file", cert_file.is_some(), "key_file", key_file.is_some()),
            ("key_file", key_file.is_some(), "cert_file", cert_file.is_some()),
        ] {
            if there && !has {
                return Err(self.wrong(&at(one), &format!("there is no {other}"), "give both, or none"));
            }
        }
        for (name, there) in
            [("ca_file", ca_file.is_some()), ("cert_file", cert_file.is_some()), ("key_file", key_file.is_some())]
        {
            if there && url.scheme() == "http" {
                return Err(self.wrong(&at(name), "the address is not encrypted", "use https, or leave this key out"));
            }
        }
        Ok(Endpoint { token: path(raw.token_file).map(Token::File), ca_file, cert_file, key_file, proxy, url })
    }

    fn paced(
        &self,
        at: At<'_>,
        name: &str,
        kind: Kind,
        parallel: u32,
        order: Order,
        kbit_s: Option<u64>,
    ) -> Result<Target> {
        if !PARALLEL.contains(&parallel) {
            let hint = format!("accepted: {} to {}", PARALLEL.start(), PARALLEL.end());
            return Err(self.wrong(&at("parallel"), &format!("{parallel} is out of range"), hint));
        }
        if let Some(rate) = kbit_s.filter(|rate| *rate < KBIT_S_LEAST) {
            let hint = format!("accepted: {KBIT_S_LEAST} or more; leave the key out for no limit");
            return Err(self.wrong(&at("max_kbit_s"), &format!("{rate} is out of range"), hint));
        }
        let bytes_per_s = kbit_s.map(|rate| rate.saturating_mul(1000) / 8);
        Ok(Target { name: name.into(), kind, order, parallel: parallel as usize, bytes_per_s })
    }

    /// Files are read again later; a wrong one is better found now.
    fn usable(&self, at: At<'_>, target: &Target) -> Result<()> {
        target.check().map_err(|(key, e)| self.at(&at(&key), e, "docs/5-integrate.md says what each key takes"))
    }
}
