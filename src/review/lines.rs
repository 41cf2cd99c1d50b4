//! Lines: their reports come in as JSON, their states go out as JSON.
//!
//! Thread: handlers run on the server's thread; store calls go through [`App::run`].
//!
//! Invariants:
//! 1. 201 is answered only after the report is on disk; a repeat gets 200 and changes nothing. Test: `first_201_then_200` in
//!    tests/review_reports.rs.
//! 2. What is kept makes sense: finite numbers, names and lists of a bounded length. Tests: `reports_are_checked` and
//!    `hostile_reports_are_refused` in tests/review_reports.rs.
//! 3. A line of which nothing was heard for [`SILENT_S`] seconds is shown as silent, whatever its last report said. Test:
//!    `a_silent_line_is_not_shown_as_live`.
//! 4. A refused body is read to its end, within limits, so that the sender gets the answer. Test:
//!    `hostile_reports_are_refused` in tests/review_reports.rs.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;

use axum::body::{Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::accounts::{Role, Who};
use super::api::App;
use super::api::answer::Segments;
use super::live::Change;
use super::problem::Problem;
use super::reports::LineNow;
use super::store::{Inserted, nanoseconds};
use super::upload;
use crate::error::Kind;
use crate::event::{EVENT_SCHEMA, LineReport, LineState, Verdict};

/// Path of the collection.
pub const LINES: &str = "/api/v1/lines";
/// Bytes of a report.
pub const MAX_REPORT: usize = 2 << 20;
/// Parts in a report.
pub const MAX_ROWS: usize = 20_000;
/// Scores of a calibration.
pub const MAX_SCORES: usize = 100_000;
/// Checks in `health` and in `drift`, and reasons in `dropped`.
pub const MAX_ENTRIES: usize = 64;
/// Characters of a text in a report.
const MAX_TEXT: usize = 1000;
/// Characters of an idempotency key.
const MAX_KEY: usize = 200;
/// Seconds without a report after which a line is silent: three of its reports are missing.
pub const SILENT_S: f64 = 35.0;

/// The routes under /api/v1/lines.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(receive))
}

/// What was reported.
#[derive(Serialize, ToSchema)]
struct Told {
    run: uuid::Uuid,
    seq: u64,
}

/// Deliver a line's report
///
/// Durable and idempotent by line, run and seq: the answer comes when it is on disk, and a repeat changes nothing.
#[utoipa::path(
    post,
    path = "/api/v1/lines/{line}/report",
    tag = "lines",
    params(
        ("line" = String, Path, description = "The line's name, as the report has it", min_length = 1, max_length = 200),
        ("idempotency-key" = String, Header, description = "The same for each repeat", min_length = 1, max_length = 200),
    ),
    request_body = LineReport,
    responses(
        (status = 200, description = "It was there before", body = Told),
        (status = 201, description = "It is new and on disk", body = Told),
        (status = 400, description = "It cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "It took too long", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "More than this server takes", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another media type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It is not a report of this line", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn receive(
    State(app): State<App>,
    Segments(line): Segments<String>,
    request: Request,
) -> Result<Response, Problem> {
    if let Err(problem) = preconditions(request.headers()) {
        upload::read_over(request).await;
        return Err(problem);
    }
    let slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the report took too long");
    let received = async {
        let turn = app.turn().await?;
        Ok::<_, Problem>((turn, read(request).await?))
    };
    let (turn, bytes) = timeout(upload::UPLOAD_TIME, received).await.map_err(slow)??;
    let inserted = app
        .run(move |store| {
            let _turn = turn; // until the memory is free again
            let report = match check(&bytes, &line) {
                Ok(report) => report,
                Err(problem) => return Ok(Err(problem)),
            };
            drop(bytes);
            match store.insert_report(&report) {
                Err(e) if e.kind() == Kind::Usage => Ok(Err(Problem::unprocessable(e.to_string()))),
                other => other.map(|inserted| Ok((inserted, report.run, report.seq, report.line))),
            }
        })
        .await?;
    let (inserted, run, seq, line) = inserted?;
    if inserted == Inserted::New {
        app.live.tell(Change::Line { line });
    }
    let status = if inserted == Inserted::New { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Told { run, seq })).into_response())
}

/// What can be refused before the body is read.
fn preconditions(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let media = text(CONTENT_TYPE.as_str()).unwrap_or("").to_ascii_lowercase();
    if media.split(';').next().map(str::trim) != Some("application/json") {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the request must be application/json"));
    }
    let length: Option<u64> = text(CONTENT_LENGTH.as_str()).and_then(|l| l.parse().ok());
    if length.is_some_and(|length| length > MAX_REPORT as u64) {
        return Err(Problem::too_large("the report", MAX_REPORT));
    }
    // a repeat is known by line, run and number, which are in the body; the header says that the sender knows it may repeat
    let mut keys = headers.get_all("idempotency-key").iter();
    match (keys.next().map(|k| k.to_str()), keys.next()) {
        (Some(Ok(key)), None) if !key.trim().is_empty() && key.len() <= MAX_KEY => Ok(()),
        (None, _) => {
            Err(Problem::bad_request("header Idempotency-Key is missing, it must be the same for each repeat"))
        }
        _ => Err(Problem::bad_request(format!("header Idempotency-Key must be 1 to {MAX_KEY} characters, once"))),
    }
}

/// The body; more than [`MAX_REPORT`] is read over and refused.
async fn read(request: Request) -> Result<Vec<u8>, Problem> {
    let mut body = pin!(request.into_body());
    let mut bytes = Vec::new();
    let mut over = 0;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|e| Problem::bad_request(format!("the report cannot be read: {e}")))?;
        let data = frame.into_data().unwrap_or_else(|_| Bytes::new());
        if over == 0 && bytes.len() + data.len() <= MAX_REPORT {
            bytes.extend_from_slice(&data);
            continue;
        }
        bytes = Vec::new();
        over += data.len();
        if over > upload::MAX_BODY {
            break; // enough patience: a reset is what it gets
        }
    }
    if over > 0 { Err(Problem::too_large("the report", MAX_REPORT)) } else { Ok(bytes) }
}

/// Parses a report and checks all of it.
fn check(bytes: &[u8], line: &str) -> Result<LineReport, Problem> {
    #[derive(Deserialize)]
    struct Schema {
        schema: Option<u64>,
    }
    let bad = |e: serde_json::Error| Problem::bad_request(format!("the body is not a line report: {e}"));
    // before the rest: a newer one may have fields that mean something else
    if let Ok(Schema { schema: Some(schema) }) = serde_json::from_slice(bytes)
        && schema != u64::from(EVENT_SCHEMA)
    {
        let detail = format!("the report has schema {schema}, this server understands {EVENT_SCHEMA}");
        return Err(Problem::unprocessable(detail).hint("update the older of the two"));
    }
    let report: LineReport = serde_json::from_slice(bytes).map_err(bad)?;
    if report.line != line {
        let detail = format!("the report is of line {:?} and was sent to line {line:?}", report.line);
        return Err(Problem::unprocessable(detail));
    }
    let length = line.chars().count();
    if length == 0 || length > upload::MAX_LINE {
        let detail = format!("the report's line must have between 1 and {} characters", upload::MAX_LINE);
        return Err(Problem::unprocessable(detail));
    }
    sizes(&report)?;
    numbers(&report)?;
    let times = report.rows.iter().map(|r| r.at).chain([report.at]);
    for at in times {
        nanoseconds(at).map_err(|e| Problem::bad_request(e.to_string()))?;
    }
    Ok(report)
}

fn sizes(r: &LineReport) -> Result<(), Problem> {
    let lists = [
        ("rows", r.rows.len(), MAX_ROWS),
        ("calibration", r.calibration.as_ref().map_or(0, Vec::len), MAX_SCORES),
        ("health", r.health.len(), MAX_ENTRIES),
        ("drift", r.drift.len(), MAX_ENTRIES),
        ("counters.dropped", r.counters.dropped.len(), MAX_ENTRIES),
    ];
    for (name, found, most) in lists {
        if found > most {
            let detail = format!("the report's {name} has {found} entries, this server takes {most}");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
    }
    let checks = r.health.iter().chain(&r.drift);
    let texts = checks
        .flat_map(|(name, c)| [Some(name), c.says.as_ref()])
        .chain(r.counters.dropped.keys().map(Some))
        .chain([Some(&r.site), r.reason.as_ref(), r.chain.as_ref()])
        .chain([Some(&r.model.name), Some(&r.model.version), Some(&r.model.sha256)])
        .flatten();
    match texts.map(|t| t.chars().count()).max() {
        Some(longest) if longest > MAX_TEXT => Err(Problem::unprocessable(format!(
            "a text of the report has {longest} characters, this server takes {MAX_TEXT}"
        ))),
        _ => Ok(()),
    }
}

/// JSON has no infinity, but numbers that become one.
fn numbers(r: &LineReport) -> Result<(), Problem> {
    let checks = r.health.values().chain(r.drift.values()).flat_map(|c| [c.value, c.usual]);
    let scores = r.rows.iter().map(|row| row.score).chain(r.calibration.iter().flatten().copied());
    let all = checks.chain(scores.map(f64::from)).chain([r.fps, f64::from(r.threshold)]).chain(r.last_frame_age_s);
    for value in all {
        if !value.is_finite() {
            return Err(Problem::bad_request(format!("a number of the report is {value}, all must be finite")));
        }
    }
    let parts = r.rows.iter().map(|row| row.part).chain([r.seq]);
    if parts.max().is_some_and(|n| i64::try_from(n).is_err()) {
        return Err(Problem::bad_request("a number of the report is out of range"));
    }
    Ok(())
}

/// Every line that has reported.
#[derive(Serialize, ToSchema)]
struct Lines {
    items: Vec<LineJson>,
}

/// A line as the API gives it.
#[derive(Serialize, ToSchema)]
#[schema(as = Line)]
struct LineJson {
    line: String,
    /// Nothing was heard of it for [`SILENT_S`].
    silent: bool,
    /// Seconds since the last report was made.
    age_s: f64,
    received_at: Timestamp,
    /// Parts of the last hour, by verdict.
    #[schema(value_type = BTreeMap<String, u64>)]
    last_hour: BTreeMap<&'static str, u64>,
    report: LineReport,
}

/// The order in which parts are counted.
pub(super) const VERDICTS: [Verdict; 4] = [Verdict::Pass, Verdict::Reject, Verdict::Unsure, Verdict::Missed];

impl LineNow {
    /// When the report was made; when it came, where its clock is ahead of ours.
    pub fn last_word(&self) -> Timestamp {
        self.report.at.min(self.received_at)
    }
    /// Seconds since then.
    pub fn age_s(&self, now: Timestamp) -> f64 {
        now.duration_since(self.last_word()).as_secs_f64().max(0.0)
    }
    /// Nothing was heard of it for [`SILENT_S`].
    pub fn is_silent(&self, now: Timestamp) -> bool {
        // a line that was stopped has nothing more to say
        self.report.state != LineState::Stopped && self.age_s(now) > SILENT_S
    }
}

/// Every line with its last report
#[utoipa::path(
    get,
    path = "/api/v1/lines",
    tag = "lines",
    responses((status = 200, description = "By name", body = Lines))
)]
async fn list(State(app): State<App>, who: Who) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let lines = app.run(|store| store.lines()).await?;
    let now = Timestamp::now();
    let items: Vec<LineJson> = lines
        .into_iter()
        .map(|l| LineJson {
            silent: l.is_silent(now),
            age_s: l.age_s(now),
            received_at: l.received_at,
            last_hour: VERDICTS.iter().map(|v| v.as_str()).zip(l.recent).collect(),
            line: l.report.line.clone(),
            report: l.report,
        })
        .collect();
    Ok(Json(Lines { items }).into_response())
}
