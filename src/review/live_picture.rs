//! Live pictures of lines: who looks, what the line sent last, and the stream that a browser shows.
//!
//! A line cannot be reached from here, so it asks: [`ask`] holds its question until somebody looks. Pictures are kept in memory
//! only, the last one of each line that is looked at.
//!
//! Thread: handlers run on the server's thread and never block; the lock is held for a look-up.
//!
//! Invariants:
//! 1. Nothing is asked of a line, and nothing is kept of it, while nobody looks. Test: `a_line_sends_only_while_somebody_looks`
//!    in tests/live_picture.rs.
//! 2. At most [`MOST_VIEWERS`] look at a time, a picture has at most [`MOST_BYTES`], and a line is known by a name only as long as
//!    it asks or is looked at. Tests: `too_many_viewers_are_refused`, `a_line_that_asks_no_more_is_forgotten`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::stream;
use image::{ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::accounts::{Role, Stay, Who};
use super::api::App;
use super::problem::Problem;
use super::upload::{MAX_LINE, UPLOAD_TIME};

/// Pictures a second that a line is asked for.
const FPS: f64 = 2.0;
/// Who may look at a time, at all lines together.
pub const MOST_VIEWERS: usize = 16;
/// Lines that may ask at a time.
const MOST_LINES: usize = 1000;
/// Bytes of a picture.
pub const MOST_BYTES: usize = 512 << 10;
/// Pixels along each side of a picture.
const MOST_SIDE: u32 = 1920;
/// How long a question is held at most, whatever it asks for.
const HOLD: Duration = Duration::from_secs(20);
/// How long after its last question a line is said to have a live picture.
const ASKS: Duration = Duration::from_secs(30);
/// Between the parts of the stream.
const BOUNDARY: &str = "picture";

/// The lines that ask or are looked at.
#[derive(Debug, Default)]
pub struct Pictures(Mutex<HashMap<String, Line>>);

#[derive(Debug)]
struct Line {
    viewers: usize,
    /// Somebody began to look.
    wanted: Arc<Notify>,
    last: watch::Sender<Option<Bytes>>,
    asked: Option<Instant>,
}

impl Line {
    fn new() -> Line {
        Line { viewers: 0, wanted: Arc::default(), last: watch::Sender::new(None), asked: None }
    }
    fn asks(&self) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() < ASKS)
    }
}

impl Pictures {
    fn lines(&self) -> MutexGuard<'_, HashMap<String, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the line would send pictures if somebody looked.
    pub fn has(&self, line: &str) -> bool {
        self.lines().get(line).is_some_and(Line::asks)
    }

    /// The line asks. Whether somebody looks, and what tells when somebody begins to.
    fn asked(&self, line: &str) -> Result<(bool, Arc<Notify>), Problem> {
        let mut lines = self.lines();
        lines.retain(|_, line| line.viewers > 0 || line.asks());
        if lines.len() >= MOST_LINES && !lines.contains_key(line) {
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many lines offer live pictures"));
        }
        let line = lines.entry(line.to_owned()).or_insert_with(Line::new);
        line.asked = Some(Instant::now());
        Ok((line.viewers > 0, line.wanted.clone()))
    }

    /// Shows a picture to who looks; false when nobody does.
    fn show(&self, line: &str, jpeg: Bytes) -> bool {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(line) else { return false };
        line.asked = Some(Instant::now());
        if line.viewers == 0 {
            return false;
        }
        line.last.send_replace(Some(jpeg));
        true
    }

    /// Begins to look.
    fn look(self: &Arc<Self>, name: &str) -> Result<Viewer, Problem> {
        let mut lines = self.lines();
        if lines.values().map(|line| line.viewers).sum::<usize>() >= MOST_VIEWERS {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many people look at live pictures"));
        }
        let line = lines.get_mut(name).filter(|line| line.asks() || line.viewers > 0);
        let Some(line) = line else {
            return Err(Problem::not_found("this line has no live picture")
                .hint("set live_picture = true for it in its line.toml, and see that it runs"));
        };
        line.viewers += 1;
        line.wanted.notify_waiters();
        Ok(Viewer { pictures: self.clone(), line: name.to_owned(), last: line.last.subscribe() })
    }
}

/// Somebody who looks; stops when dropped.
struct Viewer {
    pictures: Arc<Pictures>,
    line: String,
    last: watch::Receiver<Option<Bytes>>,
}

impl Drop for Viewer {
    fn drop(&mut self) {
        if let Some(line) = self.pictures.lines().get_mut(&self.line) {
            line.viewers = line.viewers.saturating_sub(1);
            if line.viewers == 0 {
                line.last.send_replace(None);
            }
        }
    }
}

/// The routes of live pictures.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/v1/lines/{line}/picture", get(ask).put(take))
        .route("/api/v1/lines/{line}/live.mjpeg", get(stream_of))
}

#[derive(Debug, Deserialize)]
pub(super) struct Question {
    /// Seconds to wait for somebody to look.
    #[serde(default)]
    hold: u64,
}

/// How many pictures are wanted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Wanted {
    /// A second.
    fps: f64,
}

fn wanted(is: bool) -> Response {
    if is { Json(Wanted { fps: FPS }).into_response() } else { StatusCode::NO_CONTENT.into_response() }
}

fn named(line: &str) -> Result<(), Problem> {
    if line.chars().count() > MAX_LINE {
        return Err(Problem::bad_request(format!("the name of a line has at most {MAX_LINE} characters")));
    }
    Ok(())
}

/// Ask whether somebody looks at a line
#[utoipa::path(
    get,
    path = "/api/v1/lines/{line}/picture",
    tag = "live",
    params(
        ("line" = String, Path, description = "The line's name", min_length = 1, max_length = 200),
        ("hold" = Option<u64>, Query, description = "Seconds to wait for somebody to look, at most 20"),
    ),
    responses(
        (status = 200, description = "Somebody does: send pictures", body = Wanted),
        (status = 204, description = "Nobody does"),
        (status = 400, description = "It cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many lines ask", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn ask(
    State(app): State<App>,
    Path(line): Path<String>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Response, Problem> {
    named(&line)?;
    let Query(question) = question.map_err(|e| Problem::bad_request(e.body_text()))?;
    let hold = Duration::from_secs(question.hold).min(HOLD);
    let (looked_at, began) = app.pictures.asked(&line)?;
    if looked_at {
        return Ok(wanted(true));
    }
    let began = began.notified();
    // who began between the two lines above has not been missed
    if app.pictures.asked(&line)?.0 || timeout(hold, began).await.is_ok() {
        return Ok(wanted(true));
    }
    Ok(wanted(app.pictures.asked(&line)?.0))
}

/// Send a line's live picture
#[utoipa::path(
    put,
    path = "/api/v1/lines/{line}/picture",
    tag = "live",
    params(("line" = String, Path, description = "The line's name", min_length = 1, max_length = 200)),
    request_body(content = Vec<u8>, content_type = "image/jpeg"),
    responses(
        (status = 200, description = "It is shown: send more", body = Wanted),
        (status = 204, description = "Nobody looks any more"),
        (status = 400, description = "It cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "It took too long", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "More than this server takes", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another media type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It is no picture of a size that is taken", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn take(
    State(app): State<App>,
    Path(line): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    named(&line)?;
    if request.headers().get(CONTENT_TYPE).is_none_or(|kind| kind != "image/jpeg") {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a live picture is an image/jpeg"));
    }
    let jpeg = timeout(UPLOAD_TIME, to_bytes(request.into_body(), MOST_BYTES))
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the live picture took too long"))?
        .map_err(|_| Problem::too_large("the live picture", MOST_BYTES))?;
    let wrong = |what: &str| Problem::unprocessable(format!("the live picture {what}"));
    let (width, height) = ImageReader::with_format(Cursor::new(&jpeg), ImageFormat::Jpeg)
        .into_dimensions()
        .map_err(|_| wrong("is no JPEG that can be read"))?;
    if width.min(height) == 0 || width.max(height) > MOST_SIDE {
        return Err(wrong(&format!("is {width}x{height} pixels, each side may have between 1 and {MOST_SIDE}")));
    }
    Ok(wanted(app.pictures.show(&line, jpeg)))
}

/// Look at a line
///
/// The pictures as they come, each in the place of the one before (`multipart/x-mixed-replace`).
#[utoipa::path(
    get,
    path = "/api/v1/lines/{line}/live.mjpeg",
    tag = "live",
    params(("line" = String, Path, description = "The line's name", min_length = 1, max_length = 200)),
    responses(
        (status = 200, description = "The stream, without an end", content_type = "multipart/x-mixed-replace", body = Vec<u8>),
        (status = 404, description = "The line has no live picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many look", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn stream_of(
    State(app): State<App>,
    who: Who,
    Extension(stay): Extension<Stay>,
    Path(line): Path<String>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let viewer = app.pictures.look(&line)?;
    let parts = stream::unfold(viewer, |mut viewer| async {
        loop {
            viewer.last.changed().await.ok()?;
            let Some(jpeg) = viewer.last.borrow_and_update().clone() else { continue };
            let head = format!("--{BOUNDARY}\r\ncontent-type: image/jpeg\r\ncontent-length: {}\r\n\r\n", jpeg.len());
            let part = Bytes::from([head.as_bytes(), &jpeg, b"\r\n"].concat());
            return Some((Ok::<_, Infallible>(part), viewer));
        }
    });
    let kind = format!("multipart/x-mixed-replace; boundary={BOUNDARY}");
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store".into())], Body::from_stream(stay.of(parts))).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_viewers_are_refused() {
        let pictures = Arc::new(Pictures::default());
        assert_eq!(pictures.look("a").err().unwrap().status(), StatusCode::NOT_FOUND);
        assert!(!pictures.asked("a").unwrap().0);
        let viewers: Vec<Viewer> = (0..MOST_VIEWERS).map(|_| pictures.look("a").ok().unwrap()).collect();
        assert_eq!(pictures.look("a").err().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(pictures.show("a", Bytes::from_static(b"x")));
        assert!(!pictures.show("b", Bytes::from_static(b"x")));
        drop(viewers);
        assert!(!pictures.show("a", Bytes::from_static(b"x")), "nobody looks any more");
        assert!(pictures.lines()["a"].last.borrow().is_none(), "nothing is kept");
    }

    #[test]
    fn a_line_that_asks_no_more_is_forgotten() {
        let pictures = Pictures::default();
        for n in 0..MOST_LINES {
            pictures.asked(&n.to_string()).unwrap();
        }
        assert!(pictures.has("7"));
        assert_eq!(pictures.asked("one more").unwrap_err().status(), StatusCode::TOO_MANY_REQUESTS);
        for line in pictures.lines().values_mut() {
            line.asked = Instant::now().checked_sub(ASKS);
        }
        assert!(!pictures.has("7"));
        pictures.asked("one more").unwrap();
        assert_eq!(pictures.lines().len(), 1);
    }
}
