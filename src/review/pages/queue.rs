//! The queue: cards of what is to be reviewed, and of what was.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`].

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use maud::{Markup, html};

use super::layout::{Frame, Here, Key, refusal};
use super::parts::{age, badge, decision_badge, decision_key, decision_word, grouped, heat_controls, score_bar};
use super::view::View;
use crate::event::Verdict;
use crate::review::accounts::{Role, Who};
use crate::review::api::App;
use crate::review::api::query::{ListQuery, Listing, VERDICTS};
use crate::review::problem::Problem;
use crate::review::show;
use crate::review::store::{Anomaly, Count, Decision, Filter, Page, Reviewed, Sort};
use crate::review::thumbs::{self, Thumb};

/// Cards on a page of the list.
const CARDS: usize = 20;
/// Lines that are shown as chips; more are chosen in the form.
const LINE_CHIPS: usize = 10;
/// Width and height of the picture on a card.
const CARD: (u32, u32) = (320, 240);

const KEYS: &[Key] = &[
    ("J →", "next card"),
    ("K ←", "card before"),
    ("↓ ↑", "card below, above"),
    ("Enter", "open the card"),
    ("D", "defect"),
    ("F", "false alarm"),
    ("U", "unclear"),
    ("1 … 9", "defect of that type"),
    ("Z", "take the last decision back"),
    ("H", "heatmap on and off"),
    ("[ ]", "heatmap weaker, stronger"),
    ("N", "show what is new"),
    ("/", "filters"),
    ("?", "this help"),
];

pub(super) async fn page(
    State(app): State<App>,
    who: Who,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Response {
    let page = async {
        let view = View::read(query)?;
        let Listing { filter, sort, start, limit } = view.0.clone();
        let found = app.run(move |store| {
            let page = store.list(&filter, sort, start, limit.unwrap_or(CARDS))?;
            Ok((page, store.counts()?, store.defect_types()?))
        });
        let (page, counts, types) = found.await?;
        let queue =
            Queue { view: &view, page: &page, counts: &counts, types: &types, who: &who, now: Timestamp::now() };
        Ok::<_, Problem>(queue.page())
    };
    match page.await {
        Ok(page) => Html(page.into_string()).into_response(),
        Err(problem) => refusal(&problem),
    }
}

/// What the page is made of.
pub(super) struct Queue<'a> {
    pub view: &'a View,
    pub page: &'a Page,
    pub counts: &'a [Count],
    pub types: &'a [String],
    pub who: &'a Who,
    pub now: Timestamp,
}

impl Queue<'_> {
    pub fn page(&self) -> Markup {
        let Page { items, older, newer, revision } = self.page;
        let first = self.view.0.start.is_none();
        let older = older.map(|cursor| self.view.from(cursor).link("/"));
        let body = html! {
            main #list .queue data-revision=(revision) data-first=[first.then_some("")] data-view=(self.view.first().link("/"))
                data-types=(serde_json::json!(self.types)) data-judge=[(self.who.role >= Role::Reviewer).then_some("")] {
                h1 .unseen { "Anomalies" }
                div .head { (self.tabs()) (heat_controls()) (self.sorts()) }
                (self.filters())
                a #news .news hidden href=(self.view.first().link("/")) { "New anomalies: show them" }
                @if items.is_empty() {
                    (self.nothing())
                } @else {
                    div #cards .cards { @for anomaly in items { (self.card(anomaly)) } }
                }
                nav .pager aria-label="More of the list" {
                    @if !first { a .button href=(self.view.first().link("/")) { "⇤ First" } }
                    @if let Some(newer) = newer { a .button rel="prev" href=(self.view.from(*newer).link("/")) { "← Before" } }
                    @if let Some(older) = older { a #more .button rel="next" href=(older) { "More →" } }
                }
            }
        };
        let frame = Frame::new("Queue").here(Here::Queue).who(self.who).keys(KEYS).scripts(&["judge.js", "queue.js"]);
        frame.around(body)
    }

    fn count(&self, line: Option<&str>, verdict: Option<Verdict>, reviewed: Option<Reviewed>) -> u64 {
        let fits = |c: &&Count| {
            line.is_none_or(|l| l == c.line)
                && verdict.is_none_or(|v| v.as_str() == c.verdict)
                && match reviewed {
                    None => true,
                    Some(Reviewed::No) => c.review.is_none(),
                    Some(Reviewed::Yes) => c.review.is_some(),
                    Some(Reviewed::As(decision)) => c.review == Some(decision),
                }
        };
        self.counts.iter().filter(fits).map(|c| c.count).sum()
    }

    /// How many fit the filter, where the counts of the store can tell.
    fn counted(&self, filter: &Filter) -> Option<u64> {
        let told = Filter {
            line: filter.line.clone(),
            verdict: filter.verdict,
            reviewed: filter.reviewed,
            ..Filter::default()
        };
        (told == *filter).then(|| self.count(filter.line.as_deref(), filter.verdict, filter.reviewed))
    }

    /// A link to another filter, with what it would show.
    fn choice(&self, class: &str, text: &str, to: &View) -> Markup {
        let here = to.0.filter == self.view.0.filter;
        html! {
            a class=(class) href=(to.link("/")) aria-current=[here.then_some("true")] {
                (text) @if let Some(count) = self.counted(&to.0.filter) { " " small { (grouped(count)) } }
            }
        }
    }

    fn tabs(&self) -> Markup {
        let reviewed = self.view.0.filter.reviewed;
        let to = |reviewed| {
            self.view.with(|f| {
                f.reviewed = reviewed;
                f.defect_type = None
            })
        };
        html! {
            nav .states aria-label="Reviewed or not" {
                (self.choice("state-tab", "To review", &to(Some(Reviewed::No))))
                (self.choice("state-tab", "Reviewed", &to(Some(Reviewed::Yes))))
                @if !matches!(reviewed, None | Some(Reviewed::No)) {
                    @for decision in Decision::ALL {
                        (self.choice("state-tab sub", decision_word(decision), &to(Some(Reviewed::As(decision)))))
                    }
                }
                (self.choice("state-tab", "All", &to(None)))
            }
        }
    }

    fn sorts(&self) -> Markup {
        let sort = |text: &str, sort: Sort| {
            let here = self.view.0.sort == sort;
            let to = View(Listing { sort, ..self.view.first().0 });
            html! { a .chip href=(to.link("/")) aria-current=[here.then_some("true")] { (text) } }
        };
        html! { nav .sorts aria-label="Order" { (sort("Newest", Sort::Time)) (sort("Most unusual", Sort::Confidence)) } }
    }

    fn filters(&self) -> Markup {
        let filter = &self.view.0.filter;
        let mut lines: Vec<&str> = self.counts.iter().map(|c| c.line.as_str()).collect();
        lines.dedup(); // sorted by line
        html! {
            div .filters {
                nav .chips aria-label="Verdict" {
                    (self.choice("chip", "All verdicts", &self.view.with(|f| f.verdict = None)))
                    @for verdict in VERDICTS {
                        (self.choice(&format!("chip {}", verdict.as_str()), verdict.as_str(), &self.view.with(|f| f.verdict = Some(verdict))))
                    }
                }
                @if lines.len() > 1 && lines.len() <= LINE_CHIPS {
                    nav .chips aria-label="Line" {
                        (self.choice("chip", "All lines", &self.view.with(|f| f.line = None)))
                        @for line in &lines {
                            (self.choice("chip", line, &self.view.with(|f| f.line = Some((*line).to_owned()))))
                        }
                    }
                }
                (self.active())
                details #filters .more {
                    summary .chip { "More filters" }
                    (self.form(filter, &lines))
                }
            }
        }
    }

    /// What else limits the list, each with a way to undo it.
    fn active(&self) -> Markup {
        let f = &self.view.0.filter;
        let mut active: Vec<(String, View)> = Vec::new();
        let mut add = |text: String, clear: fn(&mut Filter)| active.push((text, self.view.with(clear)));
        let percent = |share: f32| format!("{} %", f64::from(share) * 100.0);
        if let Some(since) = f.since {
            add(format!("since {}", since.strftime("%Y-%m-%d %H:%M UTC")), |f| f.since = None);
        }
        if let Some(until) = f.until {
            add(format!("until {}", until.strftime("%Y-%m-%d %H:%M UTC")), |f| f.until = None);
        }
        if let Some(min) = f.confidence_min {
            add(format!("confidence from {}", percent(min)), |f| f.confidence_min = None);
        }
        if let Some(max) = f.confidence_max {
            add(format!("confidence to {}", percent(max)), |f| f.confidence_max = None);
        }
        if let Some(model) = &f.model {
            add(format!("model {model}"), |f| f.model = None);
        }
        if let Some(lot) = &f.lot {
            add(format!("lot {lot}"), |f| f.lot = None);
        }
        if let Some(serial) = &f.serial {
            add(format!("serial {serial}"), |f| f.serial = None);
        }
        if let Some(kind) = &f.defect_type {
            add(format!("type {kind}"), |f| f.defect_type = None);
        }
        html! {
            @if !active.is_empty() {
                ul .chips .active {
                    @for (text, without) in &active {
                        li { a .chip href=(without.link("/")) aria-label=(format!("Without {text}")) { (text) span aria-hidden="true" { "✕" } } }
                    }
                }
            }
        }
    }

    fn form(&self, f: &Filter, lines: &[&str]) -> Markup {
        let text = |label: &str, name: &str, value: Option<&str>, hint: &str| {
            html! { label { span { (label) } input name=(name) value=[value] placeholder=(hint) maxlength="200" autocomplete="off"; } }
        };
        let choose = |label: &str, name: &str, any: &str, values: &[(&str, &str)], now: Option<&str>| {
            html! {
                label { span { (label) } select name=(name) {
                    option value="" { (any) }
                    @for (value, shown) in values { option value=(value) selected[now == Some(*value)] { (shown) } }
                } }
            }
        };
        let decisions = Decision::ALL.map(|d| (d.as_str(), decision_word(d)));
        let reviewed: Vec<_> = [("yes", "Reviewed")].into_iter().chain(decisions).chain([("all", "All")]).collect();
        let reviewed_now = match f.reviewed {
            None => Some("all"),
            Some(Reviewed::No) => None,
            Some(Reviewed::Yes) => Some("yes"),
            Some(Reviewed::As(decision)) => Some(decision.as_str()),
        };
        let share = |s: Option<f32>| s.map(|s| s.to_string());
        let time = |t: Option<Timestamp>| t.map(|t| t.to_string());
        let lines: Vec<_> = lines.iter().map(|l| (*l, *l)).collect();
        let types: Vec<_> = self.types.iter().map(|t| (t.as_str(), t.as_str())).collect();
        let verdicts = VERDICTS.map(|v| (v.as_str(), v.as_str()));
        let ago = |text: &str, hours: i64| {
            let since = Timestamp::from_second(self.now.as_second() - hours * 3600).unwrap_or(self.now);
            html! { a .chip href=(self.view.with(|f| { f.since = Some(since); f.until = None }).link("/")) { (text) } }
        };
        html! {
            form .filter-form method="get" action="/" {
                div .fields {
                    (choose("Reviewed", "reviewed", "To review", &reviewed, reviewed_now))
                    (choose("Line", "line", "All", &lines, f.line.as_deref()))
                    (choose("Verdict", "verdict", "All", &verdicts, f.verdict.map(Verdict::as_str)))
                    @if !types.is_empty() { (choose("Defect type", "defect_type", "All", &types, f.defect_type.as_deref())) }
                    (text("Confidence from", "confidence_min", share(f.confidence_min).as_deref(), "0"))
                    (text("Confidence to", "confidence_max", share(f.confidence_max).as_deref(), "1"))
                    (text("Captured from", "since", time(f.since).as_deref(), "2030-01-31T06:00:00Z"))
                    (text("Captured before", "until", time(f.until).as_deref(), "2030-01-31T14:00:00Z"))
                    (text("Model", "model", f.model.as_deref(), "name@version"))
                    (text("Lot", "lot", f.lot.as_deref(), ""))
                    (text("Serial", "serial", f.serial.as_deref(), ""))
                    (choose("Order", "sort", "Newest", &[("confidence", "Most unusual")], (self.view.0.sort == Sort::Confidence).then_some("confidence")))
                }
                div .buttons {
                    button .button .primary { "Apply" }
                    a .button href="/" { "Clear" }
                    span .quick { "Captured in the last" (ago("hour", 1)) (ago("8 h", 8)) (ago("24 h", 24)) (ago("7 days", 168)) }
                }
            }
        }
    }

    fn nothing(&self) -> Markup {
        let all = self.count(None, None, None);
        html! {
            div .empty {
                @if all == 0 {
                    h2 { "No anomalies yet" }
                    p { "Lines deliver what they reject here, and it appears without reloading. Good parts never leave the machine." }
                } @else if self.view.0.filter.reviewed == Some(Reviewed::No) && !self.view.is_narrow() {
                    h2 { "All reviewed" }
                    p { "Nothing waits. What comes next appears here by itself." }
                    p .buttons {
                        a .button href=(self.view.with(|f| f.reviewed = Some(Reviewed::Yes)).link("/")) { "See the " (grouped(all)) " reviewed" }
                        a .button href="/insights" { "Insights" }
                    }
                } @else {
                    h2 { "Nothing fits" }
                    p { "No anomaly fits what is chosen above." }
                    p .buttons {
                        a .button href=(View::of(Filter { reviewed: self.view.0.filter.reviewed, ..Filter::default() }).link("/")) { "Without filters" }
                    }
                }
            }
        }
    }

    pub fn card(&self, anomaly: &Anomaly) -> Markup {
        let event = &anomaly.event;
        let id = event.id;
        let to = self.view.first().link(&format!("/anomalies/{id}"));
        let picture = |class: &str, thumb| {
            html! { img .(class) src=(thumbs::url(id, thumb)) alt="" width=(CARD.0) height=(CARD.1) loading="lazy" decoding="async"; }
        };
        let decision = anomaly.review.as_ref().and_then(|r| r.decision);
        html! {
            article .card .(event.verdict.as_str()) id=(format!("a-{id}")) data-id=(id) data-decision=[decision.map(Decision::as_str)] {
                a .picture href=(to) {
                    (picture("crop", Thumb::Card))
                    (picture("heat", Thumb::CardHeat))
                    (badge(event.verdict))
                    span .unseen { " part " (event.part) " on " (event.line) " " }
                    span .verdicts-given { @if let Some(review) = &anomaly.review { (decision_badge(review)) } }
                }
                div .facts {
                    h2 { span .part { "Part " (grouped(event.part)) } span .line { (event.line) } }
                    (score_bar(event))
                    p .measures {
                        span title=(format!("Score {}, threshold {}", show::number(event.score), show::number(event.threshold))) {
                            b { (show::number(event.score)) } " / " (show::number(event.threshold))
                        }
                        span title="Confidence" { (show::percent(event.confidence)) }
                    }
                    @if !event.reasons.is_empty() { ul .reasons { @for reason in event.reasons.iter().take(2) { li { (reason) } } } }
                    p .when { (age(self.now, event.captured_at)) @if let Some(serial) = &event.serial { " · " (serial) } }
                }
                @if self.who.role >= Role::Reviewer { (self.judge(anomaly)) }
            }
        }
    }

    /// The three decisions; plain forms, so that they work without scripts.
    fn judge(&self, anomaly: &Anomaly) -> Markup {
        let action = self.view.link(&format!("/anomalies/{}/review", anomaly.event.id));
        html! {
            form .judge method="post" action=(action) {
                input type="hidden" name="back" value="list";
                @for decision in Decision::ALL {
                    button .(decision.as_str()) name="decision" value=(decision.as_str()) {
                        (decision_word(decision)) " " kbd aria-hidden="true" { (decision_key(decision)) }
                    }
                }
            }
        }
    }
}
