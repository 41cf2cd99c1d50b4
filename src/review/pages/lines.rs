//! The lines: what each of them does now, and how it went in the last hours.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`].

use std::collections::BTreeMap;

use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Frame, Here, Key, refusal};
use super::parts::{age, duration, grouped, share_of, sparkline};
use super::view::View;
use crate::event::{Check, LineReport, LineState};
use crate::review::accounts::Who;
use crate::review::api::App;
use crate::review::lines::{LINES, VERDICTS};
use crate::review::reports::LineNow;
use crate::review::show;
use crate::review::store::Filter;

/// Minutes of a step of the lines over time, and steps.
const STEP: (i64, usize) = (10, 48);

const KEYS: &[Key] = &[("J K", "next line, line before"), ("Enter", "the line's anomalies"), ("?", "this help")];

/// The query of the page.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LinesQuery {
    /// The line whose live picture is shown.
    watch: Option<String>,
}

pub(super) async fn page(State(app): State<App>, who: Who, Query(query): Query<LinesQuery>) -> Response {
    match app.run(|store| Ok((store.lines()?, store.history(STEP.0, STEP.1)?))).await {
        Ok((lines, history)) => {
            let live = |line: &str| {
                app.pictures
                    .has(line)
                    .then(|| if query.watch.as_deref() == Some(line) { Live::Shown } else { Live::There })
            };
            Html(lines_page(&who, &lines, &history, &live, Timestamp::now()).into_string()).into_response()
        }
        Err(problem) => refusal(&problem),
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

/// A line's live picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    /// It can be shown.
    There,
    Shown,
}

pub(super) type History = BTreeMap<String, Vec<[u64; 4]>>;

pub(super) fn lines_page(
    who: &Who,
    lines: &[LineNow],
    history: &History,
    live: &dyn Fn(&str) -> Option<Live>,
    now: Timestamp,
) -> Markup {
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
                div .lines { @for line in lines { (card(line, history.get(&line.report.line), live(&line.report.line), now)) } }
            }
        }
    };
    // without scripts the browser loads the page again by itself
    let refresh = html! { noscript { meta http-equiv="refresh" content="10"; } };
    Frame::new("Lines").here(Here::Lines).who(who).head(refresh).keys(KEYS).scripts(&["lines.js"]).around(body)
}

fn card(line: &LineNow, history: Option<&Vec<[u64; 4]>>, live: Option<Live>, now: Timestamp) -> Markup {
    let (r, c) = (&line.report, &line.report.counters);
    let (state, silent) = (state(line, now), line.is_silent(now));
    let counts = [c.passed, c.rejected, c.unsure, c.missed];
    let anomalies = View::of(Filter { line: Some(r.line.clone()), ..Filter::default() }).with(|f| f.reviewed = None);
    html! {
        article .line .(state) data-line=(r.line) {
            header {
                div { h2 { (r.line) } span { (r.site) } }
                span .state .(state) { (state) }
            }
            @if silent {
                @let since = line.last_word();
                p .why {
                    "No word since " (show::time_of_day(since, now)) " (" (age(now, since)) "). Its last report: " (r.state.as_str()) "."
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
            @if let Some(history) = history { (trends(history)) }
            @if alerts(r).next().is_some() {
                ul .alerts {
                    @for (kind, name, check) in alerts(r) {
                        li { b { (name) } span { (kind) } (check.says.clone().unwrap_or_else(|| format!("{:.3}, usual {:.3}", check.value, check.usual))) }
                    }
                }
            }
            (checks(r))
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
            @if live == Some(Live::Shown) {
                img .live-picture data-watch=(r.line) src={ (LINES) "/" (segment(&r.line)) "/live.mjpeg" } alt={ "Live picture of line " (r.line) };
            }
            p .links {
                a href=(anomalies.link("/")) { "Anomalies of this line" }
                @match live {
                    Some(Live::There) => a href={ "/lines?watch=" (segment(&r.line)) } { "Live picture" },
                    Some(Live::Shown) => a href="/lines" { "Close the live picture" },
                    None => {}
                }
            }
        }
    }
}

/// A name as a segment of a path, or as a value of a query.
fn segment(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn figure(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// What did not pass and how many parts came, step by step.
fn trends(history: &[[u64; 4]]) -> Markup {
    let all = |c: &[u64; 4]| c.iter().sum::<u64>();
    let rates: Vec<Option<f64>> =
        history.iter().map(|c| (all(c) > 0).then(|| 100.0 * (all(c) - c[0]) as f64 / all(c) as f64)).collect();
    let parts: Vec<Option<f64>> = history.iter().map(|c| Some(all(c) as f64 / STEP.0 as f64)).collect();
    let most = |values: &[Option<f64>]| values.iter().flatten().copied().fold(0.0, f64::max);
    let (worst, busiest) = (most(&rates), most(&parts));
    let hours = STEP.0 * STEP.1 as i64 / 60;
    html! {
        div .trends {
            figure {
                figcaption { "Not passed, " (hours) " h" span { "at most " (format!("{worst:.1} %")) } }
                div .rate { (sparkline(&rates, worst, &format!("Share of parts that did not pass in the last {hours} hours, at most {worst:.1} %"))) }
            }
            figure {
                figcaption { "Parts/min" span { "at most " (format!("{busiest:.1}")) } }
                div { (sparkline(&parts, busiest, &format!("Parts a minute in the last {hours} hours, at most {busiest:.1}"))) }
            }
        }
    }
}

/// The measures of camera and scores that are as they should be.
fn checks(r: &LineReport) -> Markup {
    let quiet: Vec<_> = r.health.iter().chain(&r.drift).filter(|(_, c)| !c.alert).collect();
    html! {
        @if !quiet.is_empty() {
            ul .checks aria-label="Checks without alert" {
                @for (name, check) in quiet { li title=(format!("{:.4}, usual {:.4}", check.value, check.usual)) { (name) } }
            }
        }
    }
}

fn last_frame(line: &LineNow, now: Timestamp, silent: bool) -> String {
    let Some(age) = line.report.last_frame_age_s else { return "none yet".into() };
    let age = if silent || line.report.state != LineState::Live { age + line.age_s(now) } else { age };
    duration(age)
}

/// What did not pass, in percent of all.
fn rate(counts @ [pass, ..]: [u64; 4]) -> String {
    let all = counts.iter().sum::<u64>();
    share_of(all - pass, all)
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
