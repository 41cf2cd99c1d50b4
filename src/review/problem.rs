//! What the API answers when it does not do what was asked: RFC 9457 problem details.
//!
//! Thread: none; plain values.
//!
//! Invariants:
//! 1. What went wrong inside is logged here, once, and never sent. Test: `causes_stay_inside`.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Error;

/// An answer other than success, sent as application/problem+json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    #[serde(skip)]
    #[schema(ignore)]
    code: StatusCode,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Problem {
    /// A problem with a sentence about what is wrong.
    pub fn new(code: StatusCode, detail: impl Into<String>) -> Problem {
        let title = code.canonical_reason().unwrap_or("Error");
        Problem { code, title, status: code.as_u16(), detail: detail.into(), hint: None }
    }
    /// 400: it cannot be read.
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }
    /// 422: it can be read and makes no sense.
    pub fn unprocessable(detail: impl Into<String>) -> Problem {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }
    /// 413: more than this server takes.
    pub fn too_large(what: &str, limit: usize) -> Problem {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{what} is larger than {limit} bytes"))
    }
    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Self::new(StatusCode::NOT_FOUND, detail)
    }
    /// 500: logs the cause and answers without it.
    pub fn internal(cause: &Error) -> Problem {
        tracing::error!(error = %cause, "review request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the review server could not do it; its log says why")
    }
    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.code
    }
    /// The sentence about what is wrong.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let kind = HeaderValue::from_static("application/problem+json");
        (self.code, [(CONTENT_TYPE, kind)], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stay_inside() {
        let problem = Problem::internal(&Error::failed("cannot open \"/secret/place\""));
        assert!(!serde_json::to_string(&problem).unwrap().contains("secret"));
    }

    #[test]
    fn problems_have_the_members_of_rfc_9457() {
        let json = serde_json::to_value(Problem::not_found("no such thing").hint("look elsewhere")).unwrap();
        let wanted = serde_json::json!({
            "title": "Not Found", "status": 404, "detail": "no such thing", "hint": "look elsewhere"
        });
        assert_eq!(json, wanted);
    }
}
