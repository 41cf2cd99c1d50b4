//! What follows from all that was decided: how much is rejected and why, where on the part, how far the verdicts can be trusted,
//! and what another threshold would have done.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`].
//!
//! Invariants:
//! 1. Everything but the live slider works without scripts: the threshold is a field of a form. Test: in tests/ui.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Frame, Here, Key, refusal};
use super::parts::{grouped, share_of, sparkline};
use super::view::View;
use crate::review::accounts::{Role, Who};
use crate::review::api::App;
use crate::review::problem::Problem;
use crate::review::show;
use crate::review::store::stats::{
    Agreement, Bin, Confusion, Insight, Outcome, Places, Scope, Share, TypeCount, WhatIf,
};
use crate::review::store::{Decision, Filter, Reviewed};

/// Steps of the rate over time.
const STEPS: usize = 120;
/// Types in the Pareto chart.
const TYPES: usize = 12;
/// Characters of a text in the query.
const MAX_TEXT: usize = 200;

const KEYS: &[Key] = &[
    ("T", "to the threshold"),
    ("← →", "threshold one step down, up"),
    ("Home End", "lowest, highest"),
    ("?", "this help"),
];

/// As typed; empty means not given.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    line: Option<String>,
    model: Option<String>,
    since: Option<String>,
    until: Option<String>,
    threshold: Option<String>,
}

/// Checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Question {
    pub scope: Scope,
    pub threshold: Option<f64>,
}

impl Asked {
    fn check(self) -> Result<Question, Problem> {
        let given = |value: Option<String>| value.filter(|v| !v.is_empty());
        let text = |name: &str, value| match given(value) {
            Some(text) if text.chars().count() > MAX_TEXT => {
                Err(Problem::bad_request(format!("{name} has more than {MAX_TEXT} characters")))
            }
            value => Ok(value),
        };
        let time = |name: &str, value| -> Result<Option<Timestamp>, Problem> {
            let Some(text) = given(value) else { return Ok(None) };
            let time = text.parse::<Timestamp>().ok().filter(|t| i64::try_from(t.as_nanosecond()).is_ok());
            let wrong =
                || Problem::bad_request(format!("{name} is {text:?}, it must be a time as 2030-01-31T06:00:00Z"));
            time.map(Some).ok_or_else(wrong)
        };
        let threshold = given(self.threshold).map(|text| {
            let number = text.trim().parse::<f64>().ok().filter(|t| t.is_finite() && *t >= 0.0);
            number.ok_or_else(|| Problem::bad_request(format!("threshold is {text:?}, it must be a number from 0 on")))
        });
        let scope = Scope {
            line: text("line", self.line)?,
            model: text("model", self.model)?,
            since: time("since", self.since)?,
            until: time("until", self.until)?,
        };
        Ok(Question { scope, threshold: threshold.transpose()? })
    }
}

impl Question {
    fn link(&self, path: &str) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let Scope { line, model, since, until } = &self.scope;
        let values = [
            ("line", line.clone()),
            ("model", model.clone()),
            ("since", since.map(|t| t.to_string())),
            ("until", until.map(|t| t.to_string())),
            ("threshold", self.threshold.map(|t| t.to_string())),
        ];
        for (name, value) in values {
            if let Some(value) = value {
                query.append_pair(name, &value);
            }
        }
        let query = query.finish();
        if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
    }
}

pub(super) async fn page(State(app): State<App>, who: Who, query: Result<Query<Asked>, QueryRejection>) -> Response {
    let page = async {
        let Query(asked) = query.map_err(|e| Problem::bad_request(e.body_text()))?;
        let question = asked.check()?;
        let wanted = question.clone();
        let found = app.compute(move |store| {
            let mut lines: Vec<String> = store.lines()?.into_iter().map(|l| l.report.line).collect();
            lines.extend(store.counts()?.into_iter().map(|c| c.line));
            lines.sort_unstable();
            lines.dedup();
            let insight = store.insight(&wanted.scope)?;
            // scores of different lines cannot be compared: the what-if is of one
            let line = wanted.scope.line.clone().or_else(|| lines.first().cloned());
            let what_if = match &line {
                Some(line) => store.what_if(line, wanted.scope.model.as_deref(), wanted.threshold)?,
                None => None,
            };
            Ok((lines, store.models()?, store.defect_types()?, insight, what_if))
        });
        let (lines, models, types, insight, what_if) = found.await?;
        let now = Timestamp::now();
        let page = InsightPage {
            question: &question,
            lines: &lines,
            models: &models,
            types: &types,
            insight: &insight,
            what_if: what_if.as_ref(),
            who: &who,
            now,
        };
        Ok::<_, Problem>(page.page())
    };
    match page.await {
        Ok(page) => Html(page.into_string()).into_response(),
        Err(problem) => refusal(&problem),
    }
}

/// What the page is made of.
pub(super) struct InsightPage<'a> {
    pub question: &'a Question,
    pub lines: &'a [String],
    pub models: &'a [String],
    pub types: &'a [String],
    pub insight: &'a Insight,
    pub what_if: Option<&'a WhatIf>,
    pub who: &'a Who,
    pub now: Timestamp,
}

impl InsightPage<'_> {
    pub fn page(&self) -> Markup {
        let insight = self.insight;
        let nothing = insight.anomalies == 0 && insight.rates.is_empty();
        let body = html! {
            main #insight .insight data-line=[self.what_if.map(|w| &w.line)] data-model=[self.what_if.map(|w| &w.model)] {
                div .summary { h1 { "Insights" } }
                @if nothing && self.question.scope == Scope::default() {
                    div .empty {
                        h2 { "Nothing to learn from yet" }
                        p { "What lines report and what people decide is summed up here." }
                    }
                    (self.types())
                } @else {
                    (self.scope())
                    div .tiles {
                        (self.numbers())
                        (self.what_if_panel())
                        (rates(insight))
                        (pareto(&insight.defect_types))
                        (self.places())
                        (self.confusion(&insight.confusion))
                        (agreement(&insight.agreement))
                        (self.types())
                    }
                }
            }
        };
        let frame = Frame::new("Insights").here(Here::Insights).who(self.who).keys(KEYS);
        frame.scripts(&["insight.js"]).around(body)
    }

    fn scope(&self) -> Markup {
        let Scope { line, model, since, until } = &self.question.scope;
        let choose = |label: &str, name: &str, values: &[String], now: Option<&str>| {
            html! {
                label { span { (label) } select name=(name) {
                    option value="" { "All" }
                    @for value in values { option value=(value) selected[now == Some(value)] { (value) } }
                } }
            }
        };
        let ago = |text: &str, hours: i64| {
            let since = Timestamp::from_second(self.now.as_second() - hours * 3600).ok();
            let to = Question { scope: Scope { since, until: None, ..self.question.scope.clone() }, threshold: None };
            html! { a .chip href=(to.link("/insights")) { (text) } }
        };
        let all =
            Question { scope: Scope { since: None, until: None, ..self.question.scope.clone() }, threshold: None };
        html! {
            form .scope method="get" action="/insights" {
                (choose("Line", "line", self.lines, line.as_deref()))
                (choose("Model", "model", self.models, model.as_deref()))
                @if let Some(since) = since { input type="hidden" name="since" value=(since); }
                @if let Some(until) = until { input type="hidden" name="until" value=(until); }
                button .button { "Show" }
                span .chips {
                    (ago("8 h", 8)) (ago("24 h", 24)) (ago("7 days", 168)) (ago("30 days", 720))
                    a .chip href=(all.link("/insights")) aria-current=[(since.is_none() && until.is_none()).then_some("true")] { "All time" }
                    @if let Some(since) = since { span .soft { "since " (since.strftime("%Y-%m-%d %H:%M UTC")) } }
                }
            }
        }
    }

    fn numbers(&self) -> Markup {
        let insight = self.insight;
        let [mut parts, mut bad] = [0, 0];
        for r in &insight.rates {
            parts += r.pass + r.reject + r.unsure + r.missed;
            bad += r.reject + r.unsure + r.missed;
        }
        let waiting = View::of(self.filter(Some(Reviewed::No)));
        let number = |name: &str, value: Markup, more: Markup| {
            html! { div { dt { (name) } dd { b { (value) } span { (more) } } } }
        };
        html! {
            section .panel .numbers aria-label="Sums" {
                dl {
                    (number("Parts reported", html! { (grouped(parts)) }, html! { (share_of(bad, parts)) " not passed" }))
                    (number("Anomalies", html! { (grouped(insight.anomalies)) }, html! { a href=(waiting.link("/")) { (grouped(insight.unreviewed)) " to review" } }))
                    (number("Precision, as reviewed", html! { (insight.precision.map_or("–".into(), percent)) }, html! {
                        @match insight.precision {
                            Some(p) => { (between(&p)) ", of " (grouped(p.of)) " rejects" },
                            None => "no reviewed rejects yet",
                        }
                    }))
                }
            }
        }
    }

    fn filter(&self, reviewed: Option<Reviewed>) -> Filter {
        let Scope { line, model, since, until } = self.question.scope.clone();
        Filter { line, model, since, until, reviewed, ..Filter::default() }
    }

    fn what_if_panel(&self) -> Markup {
        let Some(what_if) = self.what_if else {
            return html! {
                section .panel .wide aria-labelledby="what-if" {
                    h2 #what-if { "Another threshold" }
                    p .soft { "Not enough is known of this line and model yet: scores of all parts come with the reports of lines that run." }
                }
            };
        };
        let current = &what_if.current;
        let proposed = what_if.proposed.as_ref().unwrap_or(current);
        let (low, high) = range(what_if);
        let step = (high - low) / 500.0;
        let decimals = if step > 0.0 { (-step.log10().floor()).clamp(0.0, 8.0) as usize } else { 2 };
        let written = format!("{:.decimals$}", proposed.threshold);
        html! {
            section .panel .wide .what-if aria-labelledby="what-if" {
                h2 #what-if { "Another threshold" span .soft { (what_if.line) " · " (what_if.model) } }
                (histogram(what_if, proposed.threshold))
                form #what-if-form method="get" action="/insights" {
                    input type="hidden" name="line" value=(what_if.line);
                    input type="hidden" name="model" value=(what_if.model);
                    label { span { "Threshold" }
                        input #threshold type="range" min=(low) max=(high) step="any" value=(proposed.threshold) data-current=(current.threshold) autocomplete="off";
                    }
                    input #threshold-number name="threshold" inputmode="decimal" aria-label="Threshold as a number" value=(written) autocomplete="off";
                    button .button { "Try" }
                    a #threshold-reset .button href=(Question { threshold: None, ..self.question.clone() }.link("/insights")) { "Reset" }
                }
                div .table-box {
                    table .table .outcomes {
                        thead { tr { td {} th .n scope="col" { "Now" } th .n scope="col" { "Proposed" } th .n scope="col" { "Difference" } } }
                        (outcomes(current, proposed))
                    }
                }
                p .hint {
                    (grouped(what_if.parts)) " parts with a score"
                    @if what_if.cut { ", the newest" }
                    @if let (Some(since), Some(until)) = (what_if.since, what_if.until) {
                        ", " (since.strftime("%Y-%m-%d %H:%M")) " to " (until.strftime("%Y-%m-%d %H:%M UTC"))
                    }
                    ". " (grouped(what_if.unsure + what_if.missed)) " unsure or missed leave at any threshold. To set it: "
                    code { "linesight model set-threshold DIR " span #set-threshold { (written) } }
                }
            }
        }
    }

    fn places(&self) -> Markup {
        html! {
            section .panel aria-labelledby="places" {
                h2 #places { "Where on the part" }
                div .grids {
                    (grid(&self.insight.rejects, "rejects", "Rejects"))
                    (grid(&self.insight.defects, "defects", "Reviewed as defects"))
                }
            }
        }
    }

    fn confusion(&self, rows: &[Confusion]) -> Markup {
        let cell = |verdict: &str, reviewed: Reviewed, n: u64| {
            let verdict = crate::review::api::query::VERDICTS.into_iter().find(|v| v.as_str() == verdict);
            let to = View::of(Filter { verdict, ..self.filter(Some(reviewed)) });
            html! { td .n { @if n > 0 { a href=(to.link("/")) { (grouped(n)) } } @else { span .soft { "0" } } } }
        };
        html! {
            section .panel aria-labelledby="confusion" {
                h2 #confusion { "Verdicts against decisions" }
                div .table-box {
                    table .table {
                        thead { tr {
                            th scope="col" { "Verdict" } th .n scope="col" { "Defect" } th .n scope="col" { "False alarm" }
                            th .n scope="col" { "Unclear" } th .n scope="col" { "To review" }
                        } }
                        tbody {
                            @for row in rows {
                                tr {
                                    th scope="row" { span .badge .(row.verdict) { (row.verdict) } }
                                    (cell(&row.verdict, Reviewed::As(Decision::Defect), row.defect))
                                    (cell(&row.verdict, Reviewed::As(Decision::FalseAlarm), row.false_alarm))
                                    (cell(&row.verdict, Reviewed::As(Decision::Unclear), row.unclear))
                                    (cell(&row.verdict, Reviewed::No, row.unreviewed))
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The site's own list, which admins set.
    fn types(&self) -> Markup {
        html! {
            section #types .panel .own-types aria-labelledby="types-title" {
                h2 #types-title { "Defect types of this site" }
                @if self.who.role >= Role::Admin {
                    form #types-form method="post" action="/insights/defect-types" {
                        label { span .soft { "One a line; the first nine have the keys 1 to 9" }
                            textarea name="names" rows=((self.types.len() + 2).clamp(4, 12)) { (self.types.join("\n")) }
                        }
                        button .button { "Save" }
                    }
                } @else if self.types.is_empty() {
                    p .soft { "None. An admin can set them." }
                } @else {
                    ol { @for name in self.types { li { (name) } } }
                }
            }
        }
    }
}

fn percent(share: Share) -> String {
    format!("{:.1} %", share.value * 100.0)
}

fn between(share: &Share) -> String {
    format!("{:.1} to {:.1} %", share.low * 100.0, share.high * 100.0)
}

fn bytes(n: u64) -> String {
    match n as f64 {
        b if b < 1e3 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

/// The scores that are there, with the threshold in the middle of things and room to reject nothing.
fn range(what_if: &WhatIf) -> (f64, f64) {
    let low = what_if.bins.first().map_or(0.0, |b| b.low).min(what_if.current.threshold);
    let high = what_if.bins.last().map_or(1.0, |b| b.high).max(what_if.current.threshold * 1.25);
    let room = if high > low { 0.01 * (high - low) } else { 1.0 };
    (low.max(0.0), high + room)
}

/// Scores by what is known of the parts, with both thresholds. Heights are logarithmic: few defects must be seen beside many
/// good parts.
fn histogram(what_if: &WhatIf, proposed: f64) -> Markup {
    let (low, high) = range(what_if);
    let x = |score: f64| ((score - low) / (high - low) * 1000.0).clamp(0.0, 1000.0);
    let all = |b: &Bin| b.pass + b.reject;
    let most = what_if.bins.iter().map(all).max().unwrap_or(0);
    let height = |n: u64| if most == 0 { 0.0 } else { 96.0 * (n as f64).ln_1p() / (most as f64).ln_1p() };
    let label = format!("Scores of {} parts between {low:.3} and {high:.3}", what_if.parts);
    html! {
        figure .scores {
            svg #scores viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label=(label) data-low=(low) data-high=(high) {
                @for bin in what_if.bins.iter().filter(|b| all(b) > 0) {
                    @let (at, width) = (x(bin.low), (x(bin.high) - x(bin.low)).max(2.0));
                    // the shares of the bar are those of the parts in it
                    @let (h, n) = (height(all(bin)), all(bin) as f64);
                    @let kinds = [("pass", bin.pass), ("unreviewed", bin.unreviewed), ("unclear", bin.unclear), ("false-alarm", bin.false_alarm), ("defect", bin.defect)];
                    @for (i, (kind, count)) in kinds.iter().enumerate().filter(|(_, (_, count))| *count > 0) {
                        @let below: u64 = kinds[..i].iter().map(|(_, c)| c).sum();
                        rect .(kind) x=(format!("{at:.1}")) width=(format!("{width:.1}"))
                            y=(format!("{:.2}", 100.0 - h * (below + count) as f64 / n)) height=(format!("{:.2}", h * *count as f64 / n)) {}
                    }
                }
                line .now x1=(format!("{:.1}", x(what_if.current.threshold))) x2=(format!("{:.1}", x(what_if.current.threshold))) y1="0" y2="100" {}
                line #proposed-line .proposed x1=(format!("{:.1}", x(proposed))) x2=(format!("{:.1}", x(proposed))) y1="0" y2="100" {}
            }
            figcaption {
                @for (kind, text) in [("pass", "passed"), ("unreviewed", "rejected, to review"), ("unclear", "unclear"), ("false-alarm", "false alarm"), ("defect", "defect")] {
                    span .(kind) { (text) }
                }
                span .now { "now " (show::number(what_if.current.threshold as f32)) }
                span .proposed { "proposed" }
            }
        }
    }
}

/// A row of the comparison; `good` is the direction that one wants.
fn outcomes(now: &Outcome, proposed: &Outcome) -> Markup {
    let counts = |figure: &str, text: &str, of: fn(&Outcome) -> u64, shown: fn(u64) -> String| {
        let (a, b) = (of(now), of(proposed));
        html! {
            tr data-row=(figure) {
                th scope="row" { (text) }
                td .n { (shown(a)) }
                td .n data-figure=(figure) { (shown(b)) }
                td .n .(if b > a { "more" } else if b < a { "less" } else { "same" }) data-difference=(figure) {
                    @if b >= a { @if b > a { "+" } (shown(b - a)) } @else { "−" (shown(a - b)) }
                }
            }
        }
    };
    html! {
        tbody #proposed {
            (counts("rejects", "Rejected", |o| o.rejects, grouped))
            (counts("false_rejects", "False rejects, as reviewed", |o| o.false_rejects, grouped))
            (counts("passes_rejected", "Passed now, rejected then", |o| o.passes_rejected, grouped))
            (counts("caught", "Known defects caught", |o| o.caught, grouped))
            (counts("escapes", "Known defects that would escape", |o| o.escapes, grouped))
            (counts("unreviewed", "Rejects nobody has reviewed", |o| o.unreviewed, grouped))
            (counts("bytes", "To the review server", |o| o.bytes, bytes))
        }
    }
}

fn rates(insight: &Insight) -> Markup {
    // at most STEPS stretches: neighbours are summed, times without reports are gaps
    let bucket = insight.bucket_minutes.max(1) * 60;
    let ends = insight.rates.first().map(|r| r.at.as_second()).zip(insight.rates.last().map(|r| r.at.as_second()));
    let Some((first, last)) = ends else {
        return html! {
            section .panel .wide aria-labelledby="rates" {
                h2 #rates { "Not passed, over time" }
                p .soft { "No parts were reported: lines that run report all of them, " code { "inspect" } " only delivers anomalies." }
            }
        };
    };
    let steps = ((last - first) / bucket + 1).clamp(1, STEPS as i64);
    let width = ((last - first) / bucket + 1 + steps - 1) / steps * bucket;
    let mut sums = vec![[0u64; 2]; steps as usize];
    for r in &insight.rates {
        let at = ((r.at.as_second() - first) / width).clamp(0, steps - 1) as usize;
        let bad = r.reject + r.unsure + r.missed;
        sums[at][0] += bad;
        sums[at][1] += bad + r.pass;
    }
    let values: Vec<Option<f64>> =
        sums.iter().map(|[bad, all]| (*all > 0).then(|| 100.0 * *bad as f64 / *all as f64)).collect();
    // one alone is a level
    let values = if values.len() == 1 { values.repeat(2) } else { values };
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let time =
        |t: i64| Timestamp::from_second(t).map(|t| t.strftime("%Y-%m-%d %H:%M UTC").to_string()).unwrap_or_default();
    html! {
        section .panel .wide .over-time aria-labelledby="rates" {
            h2 #rates { "Not passed, over time" span .soft { "at most " (format!("{most:.1} %")) } }
            div .rate { (sparkline(&values, most * 1.2, &format!("Share of parts that did not pass, at most {most:.1} %"))) }
            p .ends { span { (time(first)) } span { (time(last + bucket)) } }
        }
    }
}

fn pareto(types: &[TypeCount]) -> Markup {
    let most = types.iter().map(|t| t.count).max().unwrap_or(0).max(1) as f64;
    html! {
        section .panel .pareto aria-labelledby="pareto" {
            h2 #pareto { "Defects by type" }
            @if types.is_empty() {
                p .soft { "No defects were reviewed yet." }
            } @else {
                div .table-box {
                    table .table {
                        thead { tr { th scope="col" { "Type" } th .n scope="col" { "Count" } th scope="col" { span .unseen { "Bar" } } th .n scope="col" { "Cumulated" } } }
                        tbody {
                            @for t in types.iter().take(TYPES) {
                                tr {
                                    th scope="row" { (t.defect_type.as_deref().unwrap_or("without type")) }
                                    td .n { (grouped(t.count)) }
                                    td .bar-cell { svg .bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                                        rect .track width="100" height="8" {}
                                        rect .value .reject width=(format!("{:.1}", 100.0 * t.count as f64 / most)) height="8" {}
                                    } }
                                    td .n { (format!("{:.0} %", t.cumulated * 100.0)) }
                                }
                            }
                        }
                    }
                }
                @if types.len() > TYPES { p .soft { "and " (types.len() - TYPES) " more types" } }
            }
        }
    }
}

/// Counts on the part as squares, the fuller the more.
fn grid(places: &Places, class: &str, text: &str) -> Markup {
    let most = places.cells.iter().copied().max().unwrap_or(0).max(1) as f64;
    let side = places.side.max(1);
    let label = format!("{text}: {} places on the part", places.total);
    html! {
        figure .grid {
            svg viewBox=(format!("0 0 {side} {side}")) role="img" aria-label=(label) {
                rect .track width=(side) height=(side) {}
                @for (i, n) in places.cells.iter().enumerate().filter(|(_, n)| **n > 0) {
                    rect .(class) x=(i % side) y=(i / side) width="1" height="1" opacity=(format!("{:.2}", 0.25 + 0.75 * *n as f64 / most)) {
                        title { (n) }
                    }
                }
            }
            figcaption { (text) " (" (grouped(places.total)) ")" }
        }
    }
}

fn agreement(agreement: &Agreement) -> Markup {
    html! {
        section .panel aria-labelledby="agreement" {
            h2 #agreement { "Agreement of reviewers" }
            @if agreement.pairs.is_empty() {
                p .soft { "No anomaly was judged by two people yet." }
            } @else {
                div .table-box {
                    table .table {
                        thead { tr { th scope="col" { "Reviewers" } th .n scope="col" { "Both" } th .n scope="col" { "Same" } th .n scope="col" title="Cohen's kappa: agreement beyond chance" { "Kappa" } } }
                        tbody {
                            @for pair in &agreement.pairs {
                                tr {
                                    th scope="row" { (pair.a) ", " (pair.b) }
                                    td .n { (grouped(pair.both)) }
                                    td .n { (share_of(pair.same, pair.both)) }
                                    td .n { @match pair.kappa { Some(k) => (format!("{k:.2}")), None => "–" } }
                                }
                            }
                        }
                    }
                }
                p .hint { (grouped(agreement.anomalies)) " anomalies were judged by two or more." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_checked_and_written_again() {
        let asked = |threshold: &str, since: &str| Asked {
            line: Some("a&b".into()),
            since: Some(since.into()),
            threshold: Some(threshold.into()),
            ..Asked::default()
        };
        let question = asked("4.25", "2030-01-31T06:00:00Z").check().unwrap();
        assert_eq!(question.link("/insights"), "/insights?line=a%26b&since=2030-01-31T06%3A00%3A00Z&threshold=4.25");
        assert_eq!(asked("", "").check().unwrap().threshold, None);
        for (threshold, since) in [("x", ""), ("NaN", ""), ("-1", ""), ("inf", ""), ("1", "yesterday")] {
            assert_eq!(asked(threshold, since).check().unwrap_err().status().as_u16(), 400, "{threshold} {since}");
        }
    }
}
