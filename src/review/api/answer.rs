//! How the API reads paths and gives what it has: ETags, 304, ranges of pictures.
//!
//! Thread: none; pure functions.
//!
//! Invariants:
//! 1. A path that cannot be read is refused with a problem like anything else. Test: `hostile_paths_get_problems` in
//!    tests/review_api.rs.
//! 2. A range is a part of exactly the picture whose ETag the client has. Test: `ranges`.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::review::problem::Problem;

/// The variable parts of a path.
#[derive(Debug)]
pub struct Segments<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segments<T>, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Segments(segments)).map_err(|e| Problem::new(e.status(), e.body_text()))
    }
}

/// Whether the client has what this ETag is of.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let plain = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    known.flat_map(|v| v.split(',')).map(str::trim).any(|v| v == "*" || plain(v) == plain(etag))
}

/// May be kept by the client that got it, and must be asked for again.
const ASK_AGAIN: &str = "private, no-cache";

/// 304 when the client has what this ETag is of: then nothing needs to be read.
pub fn unchanged(headers: &HeaderMap, etag: &str) -> Option<Response> {
    has(headers, etag).then(|| (StatusCode::NOT_MODIFIED, [(CACHE_CONTROL, ASK_AGAIN), (ETAG, etag)]).into_response())
}

/// JSON with an ETag that follows from `etag`, or from its content.
pub fn tagged(headers: &HeaderMap, value: &impl Serialize, etag: Option<String>) -> Result<Response, Problem> {
    let body =
        serde_json::to_vec(value).map_err(|e| Problem::internal(&Error::failed("an answer is not JSON").because(e)))?;
    let etag = etag.unwrap_or_else(|| {
        let sum = Sha256::digest(&body);
        let sum = sum.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        format!("W/\"{sum:016x}\"")
    });
    if let Some(answer) = unchanged(headers, &etag) {
        return Ok(answer);
    }
    let headers = [(CACHE_CONTROL, ASK_AGAIN.to_owned()), (ETAG, etag), (CONTENT_TYPE, "application/json".to_owned())];
    Ok((headers, body).into_response())
}

/// Answers with something that never changes under its URL, or with 304.
pub fn immutable(headers: &HeaderMap, sha256: &str, content_type: &'static str, bytes: impl Into<Body>) -> Response {
    let etag = format!("\"{sha256}\"");
    let fresh = has(headers, &etag);
    let caching = [(CACHE_CONTROL, "private, max-age=31536000, immutable".to_string()), (ETAG, etag)];
    if fresh {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(CONTENT_TYPE, content_type)], bytes.into()).into_response()
}

/// The same, or the range of it that was asked for. Of several ranges the whole is given, as RFC 9110 allows.
pub fn ranged(headers: &HeaderMap, sha256: &str, content_type: &'static str, bytes: Vec<u8>) -> Response {
    let bytes = Bytes::from(bytes);
    let whole = |bytes: Bytes| {
        let mut answer = immutable(headers, sha256, content_type, bytes);
        answer.headers_mut().insert(ACCEPT_RANGES, axum::http::HeaderValue::from_static("bytes"));
        answer
    };
    let same = headers.get(IF_RANGE).is_none_or(|tag| tag.as_bytes() == format!("\"{sha256}\"").as_bytes());
    let Some(wanted) = headers.get(RANGE).and_then(|r| r.to_str().ok()).filter(|_| same) else { return whole(bytes) };
    // what is no range at all is passed over
    let Ok(parsed) = http_range_header::parse_range_header(wanted) else { return whole(bytes) };
    let size = bytes.len();
    match parsed.validate(size as u64).as_deref() {
        Ok([range]) => {
            let (first, last) = (*range.start(), *range.end());
            let mut answer = whole(bytes.slice(first as usize..=last as usize));
            if answer.status() == StatusCode::OK {
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                if let Ok(value) = format!("bytes {first}-{last}/{size}").parse() {
                    answer.headers_mut().insert(CONTENT_RANGE, value);
                }
            }
            answer
        }
        Ok(_) => whole(bytes),
        Err(_) => {
            let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the picture has {size} bytes"));
            ([(CONTENT_RANGE, format!("bytes */{size}"))], problem).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in values {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn immutable_answers_304_to_who_has_it() {
        let status = |value| immutable(&headers(&[("if-none-match", value)]), "ab", "image/png", "x").status();
        assert_eq!(status("\"ab\""), StatusCode::NOT_MODIFIED);
        assert_eq!(status("\"zz\", W/\"ab\""), StatusCode::NOT_MODIFIED);
        assert_eq!(status("\"zz\""), StatusCode::OK);
    }

    #[test]
    fn ranges() {
        let ask = |values: &[(&'static str, &str)]| {
            let answer = ranged(&headers(values), "ab", "image/png", b"0123456789".to_vec());
            let range = answer.headers().get(CONTENT_RANGE).map(|v| v.to_str().unwrap().to_owned());
            (answer.status().as_u16(), range)
        };
        let some = |range: &str| Some(range.to_owned());
        type Row<'a> = (&'a [(&'static str, &'a str)], u16, Option<String>);
        let table: [Row; 10] = [
            (&[], 200, None),
            (&[("range", "bytes=2-4")], 206, some("bytes 2-4/10")),
            (&[("range", "bytes=7-")], 206, some("bytes 7-9/10")),
            (&[("range", "bytes=-3")], 206, some("bytes 7-9/10")),
            (&[("range", "bytes=0-0,2-3")], 200, None),
            (&[("range", "bytes=10-")], 416, some("bytes */10")),
            (&[("range", "lines=1-2")], 200, None),
            (&[("range", "bytes=2-4"), ("if-range", "\"ab\"")], 206, some("bytes 2-4/10")),
            (&[("range", "bytes=2-4"), ("if-range", "\"cd\"")], 200, None),
            (&[("range", "bytes=2-4"), ("if-none-match", "\"ab\"")], 304, None),
        ];
        for (given, status, range) in table {
            assert_eq!(ask(given), (status, range), "{given:?}");
        }
    }

    #[test]
    fn tags_follow_the_content() {
        let tag = |value: &str| {
            let answer = tagged(&HeaderMap::new(), &value, None).unwrap();
            answer.headers()[ETAG].to_str().unwrap().to_owned()
        };
        assert_ne!(tag("a"), tag("b"));
        let again = tagged(&headers(&[("if-none-match", &tag("a"))]), &"a", None).unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert!(unchanged(&headers(&[("if-none-match", "\"3\"")]), "W/\"3\"").is_some(), "compared weakly");
        assert!(unchanged(&headers(&[("if-none-match", "*")]), "W/\"3\"").is_some());
        assert!(unchanged(&HeaderMap::new(), "W/\"3\"").is_none());
    }
}
