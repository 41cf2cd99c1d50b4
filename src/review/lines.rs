//! Lines: their reports come in as JSON, their states go out as JSON and as a page.
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

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::extract::{Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::api::App;
use super::live::Change;
use super::problem::Problem;
use super::reports::LineNow;
use super::store::{Inserted, nanoseconds};
use super::{pages, show, upload};
use crate::error::Kind;
use crate::event::{Check, EVENT_SCHEMA, LineReport, LineState, Verdict};

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

/// The routes under /api/v1/lines, and the page.
pub fn routes() -> Router<App> {
    Router::new().route(LINES, get(list)).route("/api/v1/lines/{line}/report", post(receive)).route("/lines", get(page))
}

async fn receive(State(app): State<App>, Path(line): Path<String>, request: Request) -> Result<Response, Problem> {
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
    Ok((status, Json(serde_json::json!({ "run": run, "seq": seq }))).into_response())
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

/// A line as the API gives it.
#[derive(Serialize)]
struct LineJson {
    line: String,
    /// Nothing was heard of it for [`SILENT_S`].
    silent: bool,
    /// Seconds since the last report was made.
    age_s: f64,
    received_at: Timestamp,
    /// Parts of the last hour, by verdict.
    last_hour: BTreeMap<&'static str, u64>,
    report: LineReport,
}

const VERDICTS: [Verdict; 4] = [Verdict::Pass, Verdict::Reject, Verdict::Unsure, Verdict::Missed];

impl LineNow {
    /// When the report was made; when it came, where its clock is ahead of ours.
    fn last_word(&self) -> Timestamp {
        self.report.at.min(self.received_at)
    }
    fn age_s(&self, now: Timestamp) -> f64 {
        now.duration_since(self.last_word()).as_secs_f64().max(0.0)
    }
    fn is_silent(&self, now: Timestamp) -> bool {
        // a line that was stopped has nothing more to say
        self.report.state != LineState::Stopped && self.age_s(now) > SILENT_S
    }
}

async fn list(State(app): State<App>) -> Result<Response, Problem> {
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
    Ok(Json(serde_json::json!({ "items": items })).into_response())
}

async fn page(State(app): State<App>) -> Response {
    match app.run(|store| store.lines()).await {
        Ok(lines) => Html(lines_page(&lines, Timestamp::now()).into_string()).into_response(),
        Err(problem) => pages::refusal(&problem),
    }
}

/// The word on a line's badge.
fn state(line: &LineNow, now: Timestamp) -> &'static str {
    if line.is_silent(now) { "silent" } else { line.report.state.as_str() }
}

fn alerts(report: &LineReport) -> impl Iterator<Item = (&str, &String, &Check)> {
    let health = report.health.iter().map(|(name, c)| ("camera", name, c));
    health.chain(report.drift.iter().map(|(name, c)| ("scores", name, c))).filter(|(_, _, c)| c.alert)
}

fn lines_page(lines: &[LineNow], now: Timestamp) -> Markup {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        *states.entry(state(line, now)).or_default() += 1;
    }
    let order = LineState::ALL.iter().map(|s| s.as_str()).chain(["silent"]);
    let body = html! {
        main #lines {
            div .summary {
                h1 { "Lines" }
                @for name in order {
                    @if let Some(n) = states.get(name) { span .state .(name) { (n) " " (name) } }
                }
                @let alarmed = lines.iter().filter(|l| alerts(&l.report).next().is_some()).count();
                @if alarmed > 0 { span .state .alarmed { (alarmed) " with alerts" } }
            }
            @if lines.is_empty() {
                div .empty {
                    h2 { "No line has reported yet" }
                    p { "Lines that run with a review endpoint report here every ten seconds." }
                }
            } @else {
                div .lines { @for line in lines { (card(line, now)) } }
            }
        }
    };
    // without JavaScript the browser loads the page again by itself
    let refresh = html! { noscript { meta http-equiv="refresh" content="10"; } };
    pages::layout_with("Lines", pages::Here::Lines, refresh, Some(html! { span #live .live hidden { "live" } }), body)
}

fn card(line: &LineNow, now: Timestamp) -> Markup {
    let (r, c) = (&line.report, &line.report.counters);
    let (state, silent) = (state(line, now), line.is_silent(now));
    let counts = [c.passed, c.rejected, c.unsure, c.missed];
    html! {
        article .line .(state) {
            header {
                div { h2 { (r.line) } span { (r.site) } }
                span .state .(state) { (state) }
            }
            @if silent {
                @let since = line.last_word();
                p .why {
                    "No word since " (show::time_of_day(since, now)) " ("
                    time datetime=(since) title=(show::time(since)) data-age { (show::age(now, since)) }
                    "). Its last report: " (r.state.as_str()) "."
                }
            }
            @if let Some(reason) = &r.reason { p .why { (reason) } }
            dl .figures {
                (figure("Last frame", &last_frame(line, now, silent)))
                (figure("Frames/s", &if silent { "–".to_owned() } else { format!("{:.1}", r.fps) }))
                (figure("Parts", &grouped(c.parts)))
                (figure("Not passed", &rate(counts)))
                (figure("Last hour", &rate(line.recent)))
                (figure("In spool", &if r.spool.set_aside > 0 {
                    format!("{} ({} refused)", r.spool.waiting, r.spool.set_aside)
                } else {
                    r.spool.waiting.to_string()
                }))
            }
            (share(counts))
            @if alerts(r).next().is_some() {
                ul .alerts {
                    @for (kind, name, check) in alerts(r) {
                        li { b { (name) } span { (kind) } (check.says.clone().unwrap_or_else(|| format!("{:.3}, usual {:.3}", check.value, check.usual))) }
                    }
                }
            }
            p .small {
                @if !c.dropped.is_empty() {
                    "Frames dropped: "
                    @for (i, (reason, n)) in c.dropped.iter().enumerate() { @if i > 0 { ", " } (grouped(*n)) " " (reason) }
                    " · "
                }
                @if c.late > 0 { (grouped(c.late)) " late · " }
                @if c.reconnects > 0 { (grouped(c.reconnects)) " reconnects · " }
                (r.model.name) " " (r.model.version) ", threshold " (show::number(r.threshold))
            }
            p .links { a href=(pages::line_link(&r.line)) { "Anomalies of this line" } }
        }
    }
}

fn figure(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn last_frame(line: &LineNow, now: Timestamp, silent: bool) -> String {
    let Some(age) = line.report.last_frame_age_s else { return "none yet".into() };
    let age = if silent || line.report.state != LineState::Live { age + line.age_s(now) } else { age };
    duration(age)
}

/// Seconds in words.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => "< 0.1 s".into(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// What did not pass, in percent of all.
fn rate([pass, reject, unsure, missed]: [u64; 4]) -> String {
    let (bad, all) = ((reject + unsure + missed) as f64, (pass + reject + unsure + missed) as f64);
    if all == 0.0 { "–".into() } else { format!("{:.2} %", 100.0 * bad / all) }
}

/// A number with its thousands apart.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// The verdicts as one bar, and in words.
fn share(counts: [u64; 4]) -> Markup {
    let all = counts.iter().sum::<u64>().max(1) as f64;
    let mut at = 0.0;
    let bars: Vec<(&str, f64, f64)> = VERDICTS
        .iter()
        .zip(counts)
        .map(|(v, n)| {
            let (start, width) = (at, n as f64 / all * 100.0);
            at += width;
            (v.as_str(), start, width)
        })
        .collect();
    html! {
        svg .verdicts viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
            rect .track width="100" height="8" {}
            @for (name, start, width) in bars { rect .(name) x=(format!("{start:.2}")) width=(format!("{width:.2}")) height="8" {} }
        }
        ul .verdicts { @for (v, n) in VERDICTS.iter().zip(counts) { li .(v.as_str()) { b { (grouped(n)) } " " (v.as_str()) } } }
    }
}
