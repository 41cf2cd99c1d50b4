//! Tells open pages what changes, as server-sent events: `anomaly`, `review` and `line`, each with what it is about, and
//! `behind` to a page that was too slow, which then loads anew.
//!
//! Thread: the server's; nothing blocks.
//!
//! Invariants:
//! 1. At most [`STREAMS`](crate::review::live::STREAMS) pages listen; one more gets 503 and asks from time to time instead.
//!    Test: `streams_are_limited` in tests/review_pages.rs.
//! 2. A stream ends when the server stops, and with the session that opened it. Tests: `a_stream_ends_with_the_server` in
//!    tests/review_pages.rs, `a_stream_ends_with_its_session` in tests/review_accounts.rs.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use crate::review::accounts::{Role, Stay, Who};
use crate::review::api::App;
use crate::review::live::Change;
use crate::review::problem::Problem;

/// Path of the stream.
pub(super) const LIVE: &str = "/api/v1/live";
/// A line is written this often, so that whoever went without saying so is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a page asks again when the stream breaks.
const RETRY: Duration = Duration::from_secs(1);

/// Hear what changes
///
/// Server-sent events: `anomaly`, `review` and `line` say what changed, `behind` that some were missed.
#[utoipa::path(
    get,
    path = "/api/v1/live",
    tag = "live",
    responses(
        (status = 200, description = "The stream, without an end", body = String, content_type = "text/event-stream"),
        (status = 503, description = "Too many listen", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(in crate::review) async fn events(State(app): State<App>, who: Who, Extension(stay): Extension<Stay>) -> Response {
    if let Err(problem) = who.must(Role::Viewer) {
        return problem.into_response();
    }
    let Some(listener) = app.live.listen() else {
        let full = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many pages listen for changes")
            .hint("this page asks from time to time instead; close some that nobody looks at");
        return ([(RETRY_AFTER, "60")], full).into_response();
    };
    let hello = Event::default().event("hello").retry(RETRY).data("{}");
    let changes = stream::unfold((listener, Some(hello)), |(mut listener, hello)| async move {
        if let Some(hello) = hello {
            return Some((Ok::<_, Infallible>(hello), (listener, None)));
        }
        let event = match listener.next().await {
            Ok(change) => told(&change)?,
            Err(RecvError::Lagged(_)) => Event::default().event("behind").data("{}"),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), (listener, None)))
    });
    Sse::new(stay.of(changes)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// A change in words; `None` ends the stream.
fn told(change: &Change) -> Option<Event> {
    let (name, data) = match change {
        Change::Anomaly { id, line } => ("anomaly", serde_json::json!({ "id": id, "line": line })),
        Change::Review { id } => ("review", serde_json::json!({ "id": id })),
        Change::Line { line } => ("line", serde_json::json!({ "line": line })),
        Change::Stop => return None,
    };
    Some(Event::default().event(name).data(data.to_string()))
}
