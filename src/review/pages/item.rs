//! One anomaly in full, with all that is needed to judge it.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`].
//!
//! Invariants:
//! 1. The next item is the next that is to be reviewed in the listing one came from, and never the item itself. Test:
//!    `a_decision_leads_to_the_next_to_be_reviewed` in tests/review_pages.rs.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use maud::{Markup, html};
use uuid::Uuid;

use super::layout::{Frame, Here, Key, refusal};
use super::parts::{age, badge, decision_badge, decision_key, decision_word, grouped, heat_controls, score};
use super::view::View;
use super::{histogram, parts};
use crate::error::Result;
use crate::event::{Event, Rect, Region};
use crate::review::accounts::{Role, Who};
use crate::review::api::query::{ListQuery, Listing};
use crate::review::api::reviews::MAX_COMMENT;
use crate::review::api::{self, App};
use crate::review::problem::Problem;
use crate::review::reports::Calibration;
use crate::review::show;
use crate::review::store::{Anomaly, Cursor, Decision, Filter, ObjectName, Review, Reviewed, Store, Walk};
use crate::review::thumbs::{self, Thumb};

/// Other anomalies of the same place that are shown.
const NEAR: usize = 8;
/// Defect types that have a key.
pub(super) const TYPE_KEYS: usize = 9;

const KEYS: &[Key] = &[
    ("D", "defect, and on to the next"),
    ("F", "false alarm, and on"),
    ("U", "unclear, and on"),
    ("1 … 9", "defect of that type, and on"),
    ("C", "comment (Ctrl+Enter leaves it)"),
    ("Z Backspace", "take the last decision back, and return to it"),
    ("← →", "newer, older without deciding"),
    ("+ -", "zoom; wheel, pinch and drag do too"),
    ("0", "whole frame"),
    ("P", "the part alone"),
    ("Shift+arrows", "move in the frame"),
    ("N", "what it should look like, in its place; Shift+N blinks"),
    ("H", "heatmap on and off"),
    ("[ ]", "heatmap weaker, stronger"),
    ("B", "boxes on and off"),
    ("L", "back to the queue"),
    ("?", "this help"),
];

/// The item that a decision leads to: the next that is to be reviewed in the listing, from its start when the end is reached.
pub(super) fn next_to_review(store: &dyn Store, view: &View, anomaly: &Anomaly) -> Result<Option<Uuid>> {
    let Listing { filter, sort, .. } = &view.0;
    // who walks through what was reviewed goes on there
    let reviewed = filter.reviewed.filter(|r| *r != Reviewed::No).unwrap_or(Reviewed::No);
    let filter = Filter { reviewed: Some(reviewed), ..filter.clone() };
    let from = Cursor { walk: Walk::Older, from: anomaly.position(*sort)? };
    let other = |start| -> Result<Option<Uuid>> {
        let page = store.list(&filter, *sort, start, 2)?;
        Ok(page.items.iter().map(|a| a.event.id).find(|id| *id != anomaly.event.id))
    };
    match other(Some(from))? {
        Some(next) => Ok(Some(next)),
        None => other(None),
    }
}

pub(super) async fn page(
    State(app): State<App>,
    who: Who,
    Path(id): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Response {
    let page = async {
        let id = Uuid::try_parse(&id).map_err(|_| Problem::not_found("there is no such anomaly"))?;
        let view = View::read(query)?;
        let listing = view.first();
        let found = app.run(move |store| Found::read(store, id, &listing));
        let found = found.await?.ok_or_else(|| Problem::not_found("there is no such anomaly"))?;
        Ok::<_, Problem>(Item { view: &view.first(), found: &found, who: &who, now: Timestamp::now() }.page())
    };
    match page.await {
        Ok(page) => Html(page.into_string()).into_response(),
        Err(problem) => refusal(&problem),
    }
}

/// What the store has for the page.
pub(super) struct Found {
    pub anomaly: Anomaly,
    pub newer: Option<Uuid>,
    pub older: Option<Uuid>,
    pub next: Option<Uuid>,
    pub reviews: Vec<Review>,
    pub near: Vec<Anomaly>,
    pub types: Vec<String>,
    pub calibration: Option<Calibration>,
}

impl Found {
    fn read(store: &dyn Store, id: Uuid, view: &View) -> Result<Option<Found>> {
        let Some(anomaly) = store.get(id)? else { return Ok(None) };
        let Listing { filter, sort, .. } = &view.0;
        let from = anomaly.position(*sort)?;
        let beside = |walk| -> Result<Option<Uuid>> {
            let page = store.list(filter, *sort, Some(Cursor { walk, from }), 1)?;
            Ok(page.items.first().map(|a| a.event.id))
        };
        Ok(Some(Found {
            newer: beside(Walk::Newer)?,
            older: beside(Walk::Older)?,
            next: next_to_review(store, view, &anomaly)?,
            reviews: store.reviews(id)?,
            near: store.near(id, NEAR)?,
            types: store.defect_types()?,
            calibration: store.calibration(&anomaly.event.line, &anomaly.event.model.sha256)?,
            anomaly,
        }))
    }
}

/// What the page is made of.
pub(super) struct Item<'a> {
    pub view: &'a View,
    pub found: &'a Found,
    pub who: &'a Who,
    pub now: Timestamp,
}

impl Item<'_> {
    fn to(&self, id: Uuid) -> String {
        self.view.link(&format!("/anomalies/{id}"))
    }

    pub fn page(&self) -> Markup {
        let Found { anomaly, newer, older, next, types, .. } = self.found;
        let event = &anomaly.event;
        let step = |text: &str, key: &str, id: Option<Uuid>| {
            html! {
                @match id {
                    Some(id) => a .button #(key) rel=(key) href=(self.to(id)) { (text) },
                    None => span .button .off { (text) },
                }
            }
        };
        let queue = self.view.link("/");
        let body = html! {
            main #item .item data-id=(event.id) data-queue=(queue) data-next=[next.map(|id| self.to(id))]
                data-types=(serde_json::json!(types)) data-judge=[(self.who.role >= Role::Reviewer).then_some("")] {
                nav .pager aria-label="Anomalies" {
                    a #queue .button href=(format!("{queue}#a-{}", event.id)) { "☰ Queue" }
                    span .gap {}
                    (step("← Newer", "prev", *newer))
                    (step("Older →", "next", *older))
                }
                div .title {
                    (badge(event.verdict))
                    h1 { "Part " (grouped(event.part)) span { (event.line) } }
                    span .verdicts-given { @if let Some(review) = &anomaly.review { (decision_badge(review)) } }
                    p { (age(self.now, event.captured_at)) }
                }
                div .board {
                    (stage(anomaly))
                    (pair(anomaly))
                    div .side {
                        (self.judge())
                        (self.how_unusual())
                    }
                    div .rest {
                        (self.near())
                        (self.facts())
                    }
                }
                details .raw { summary { "Event as it was received" } pre tabindex="0" { code { (show::indent(&anomaly.raw)) } } }
            }
        };
        let title = format!("Part {} on {}", event.part, event.line);
        let frame = Frame::new(&title).here(Here::Queue).who(self.who).keys(KEYS);
        frame.scripts(&["judge.js", "zoom.js", "item.js"]).around(body)
    }

    fn judge(&self) -> Markup {
        let Found { anomaly, types, reviews, .. } = self.found;
        let id = anomaly.event.id;
        let holds = anomaly.review.as_ref().and_then(|r| r.decision);
        let held_type = anomaly.review.as_ref().and_then(|r| r.defect_type.as_deref());
        let pressed = |is: bool| is.then_some("true");
        html! {
            section #decide .panel .decide aria-label="Decision" {
                @if self.who.role >= Role::Reviewer {
                    form #verdict .judge method="post" action=(self.view.link(&format!("/anomalies/{id}/review"))) {
                        div .choices {
                            @for decision in Decision::ALL {
                                button .(decision.as_str()) name="decision" value=(decision.as_str())
                                    aria-pressed=[pressed(holds == Some(decision))] {
                                    (decision_word(decision)) kbd aria-hidden="true" { (decision_key(decision)) }
                                }
                            }
                        }
                        @if types.is_empty() {
                            @if self.who.role >= Role::Admin {
                                p .hint { "Your own defect types, with keys 1 to 9, are set on " a href="/insights#types" { "Insights" } "." }
                            }
                        } @else {
                            div .types role="group" aria-label="Defect type" {
                                @for (n, name) in types.iter().enumerate() {
                                    button .type name="defect_type" value=(name) aria-pressed=[pressed(held_type == Some(name))] {
                                        @if n < TYPE_KEYS { kbd aria-hidden="true" { (n + 1) } }
                                        (name)
                                    }
                                }
                            }
                        }
                        label .comment { span { "Comment " kbd aria-hidden="true" { "C" } }
                            textarea #comment name="comment" rows="2" maxlength=(MAX_COMMENT) placeholder="Sent with the decision" {}
                        }
                    }
                }
                @if !reviews.is_empty() {
                    ol #history .history {
                        @for review in reviews.iter().rev() {
                            li {
                                @match review.decision {
                                    Some(_) => { (decision_badge(review)) },
                                    None => { span .decision .back { "taken back" } },
                                }
                                " " (review.reviewer) " " span .soft { (age(self.now, review.at)) }
                                @if let Some(comment) = &review.comment { p { (comment) } }
                            }
                        }
                    }
                    @if anomaly.review.as_ref().is_some_and(|r| r.reviewer == self.who.name) {
                        form #undo method="post" action=(self.view.link(&format!("/anomalies/{id}/undo"))) {
                            button .button .small { "Take back " kbd aria-hidden="true" { "Z" } }
                        }
                    }
                }
            }
        }
    }

    fn how_unusual(&self) -> Markup {
        let event = &self.found.anomaly.event;
        html! {
            section .panel aria-label="How unusual it is" {
                (score(event))
                p .measures { span { "Confidence " b { (show::percent(event.confidence)) } } }
                @if let Some(calibration) = &self.found.calibration { (histogram::against(calibration, event)) }
                @if !event.reasons.is_empty() { ul .reasons { @for reason in &event.reasons { li { (reason) } } } }
            }
        }
    }

    fn near(&self) -> Markup {
        let near = &self.found.near;
        html! {
            section .panel .near aria-labelledby="near-title" {
                h2 #near-title { "Others at the same place of the part" }
                @if near.is_empty() {
                    p .soft { "None of this line and model." }
                } @else {
                    ul {
                        @for other in near {
                            li {
                                a href=(self.to(other.event.id)) {
                                    span .picture {
                                        img src=(thumbs::url(other.event.id, Thumb::Card)) alt="" width="320" height="240" loading="lazy" decoding="async";
                                        img .heat src=(thumbs::url(other.event.id, Thumb::CardHeat)) alt="" width="320" height="240" loading="lazy" decoding="async";
                                    }
                                    span .what {
                                        b { "Part " (grouped(other.event.part)) }
                                        @if let Some(review) = &other.review { (decision_badge(review)) }
                                    }
                                    span .soft { (age(self.now, other.event.captured_at)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn facts(&self) -> Markup {
        let anomaly = &self.found.anomaly;
        let event = &anomaly.event;
        let fact =
            |name: &str, value: &dyn std::fmt::Display| html! { div { dt { (name) } dd { (value.to_string()) } } };
        // a value that leads to all that has it
        let all = |name: &str, value: &str, filter: Filter| {
            html! { div { dt { (name) } dd { a href=(View::of(filter).link("/")) { (value) } } } }
        };
        let model = format!("{}@{}", event.model.name, event.model.version);
        html! {
            section .panel .facts-panel aria-labelledby="facts-title" {
                h2 #facts-title { "Facts" }
                dl .list {
                    (fact("Site", &event.site))
                    (all("Line", &event.line, Filter { line: Some(event.line.clone()), ..Filter::default() }))
                    (fact("Camera", &event.camera))
                    (fact("Part", &event.part))
                    (fact("Frame", &event.frame))
                    @if let Some(lot) = &event.lot { (all("Lot", lot, Filter { lot: Some(lot.clone()), ..Filter::default() })) }
                    @if let Some(serial) = &event.serial { (all("Serial", serial, Filter { serial: Some(serial.clone()), ..Filter::default() })) }
                    div { dt { "Captured" } dd { time datetime=(event.captured_at) { (show::time(event.captured_at)) } } }
                    div { dt { "Received" } dd { time datetime=(anomaly.received_at) { (show::time(anomaly.received_at)) } } }
                    @if event.spooled_s >= 1.0 { (fact("In the spool", &parts::duration(event.spooled_s))) }
                    (all("Model", &model, Filter { model: Some(model.clone()), ..Filter::default() }))
                    div { dt { "Checksum" } dd .mono title=(event.model.sha256) { (event.model.sha256.chars().take(12).collect::<String>()) } }
                    (fact("Device", &event.device))
                    (fact("Precision", &event.precision))
                    (fact("Picture", &format!("{} × {}", event.image.width, event.image.height)))
                    div { dt { "Event" } dd .mono { (event.id) } }
                }
                (regions(event))
            }
        }
    }
}

/// The frame with heatmap and boxes on it, and what switches them. An SVG, because its geometry is attributes, which need no
/// inline style, and because zooming is then one attribute.
fn stage(anomaly: &Anomaly) -> Markup {
    let event = &anomaly.event;
    let (width, height) = (event.image.width.max(1), event.image.height.max(1));
    let layer = |class: &str, url: &str, Rect { x, y, w, h }: Rect| {
        html! { image .(class) href=(url) x=(x) y=(y) width=(w) height=(h) preserveAspectRatio="none" {} }
    };
    let whole = Rect { x: 0, y: 0, w: width, h: height };
    let part = event.part_box.filter(|b| b.w > 0 && b.h > 0);
    let frame = api::picture_url(event.id, ObjectName::Frame);
    html! {
        figure .stage {
            div .switches {
                (heat_controls())
                label .switch { input #boxes type="checkbox" checked autocomplete="off"; span { "Boxes" } }
                @if anomaly.has_normal && part.is_some() {
                    label .switch .scripted hidden title="Show what it should look like in its place (key N)" {
                        input #compare type="checkbox" autocomplete="off"; span { "Normal" }
                    }
                }
                span .zoom .scripted hidden role="group" aria-label="Zoom" {
                    button #zoom-out .plain type="button" aria-label="Smaller" { "−" }
                    button #zoom-fit .plain type="button" title="Whole frame (0)" { "Fit" }
                    @if part.is_some() { button #zoom-part .plain type="button" title="The part alone (P)" { "Part" } }
                    button #zoom-in .plain type="button" aria-label="Larger" { "+" }
                }
                a .open href=(frame) target="_blank" rel="noopener" { "Open frame" }
            }
            svg #stage .layers viewBox=(format!("0 0 {width} {height}")) data-width=(width) data-height=(height) data-full=(frame)
                data-part=[part.map(|b| format!("{} {} {} {}", b.x, b.y, b.w, b.h))]
                preserveAspectRatio="xMidYMid meet" role="img" aria-label=(format!("Frame {} of part {}", event.frame, event.part)) {
                (layer("frame", &thumbs::url(event.id, Thumb::Preview), whole))
                (layer("heat", &thumbs::url(event.id, Thumb::PreviewHeat), whole))
                @if let (true, Some(part)) = (anomaly.has_normal, part) {
                    (layer("normal", &api::picture_url(event.id, ObjectName::Normal), part))
                }
                g .boxes {
                    @if let Some(part) = part { (outline("part", part)) }
                    @for &Region { x, y, w, h, .. } in &event.regions { (outline("region", Rect { x, y, w, h })) }
                }
            }
        }
    }
}

/// A box with a dark edge, so that it shows on any picture.
fn outline(class: &str, Rect { x, y, w, h }: Rect) -> Markup {
    html! {
        @for class in ["edge", class] { rect class=(class) x=(x) y=(y) width=(w) height=(h) {} }
    }
}

/// The part as it is beside the part as it should be, at the same size.
fn pair(anomaly: &Anomaly) -> Markup {
    let event = &anomaly.event;
    let (width, height) = (event.image.width.max(1), event.image.height.max(1));
    let part = event.part_box.filter(|b| b.w > 0 && b.h > 0);
    html! {
        @if part.is_some() || anomaly.has_normal {
            div .pair {
                @if let Some(part) = part {
                    @let crop = show::crop(event.image, Some(part), f64::from(part.w) / f64::from(part.h), 0.0);
                    figure {
                        svg viewBox=(crop.view_box()) preserveAspectRatio="xMidYMid meet" role="img" aria-label="The part as it was seen" {
                            image .frame href=(thumbs::url(event.id, Thumb::Preview)) width=(width) height=(height) preserveAspectRatio="none" {}
                            image .heat href=(thumbs::url(event.id, Thumb::PreviewHeat)) width=(width) height=(height) preserveAspectRatio="none" {}
                        }
                        figcaption { "As it was seen" }
                    }
                }
                @if anomaly.has_normal {
                    figure {
                        @let (w, h) = part.map_or((width, height), |b| (b.w, b.h));
                        svg viewBox=(format!("0 0 {w} {h}")) preserveAspectRatio="xMidYMid meet" role="img" aria-label="The place as it should look" {
                            image href=(api::picture_url(event.id, ObjectName::Normal)) width=(w) height=(h) {}
                        }
                        figcaption { "As it should look" }
                    }
                }
            }
        }
    }
}

fn regions(event: &Event) -> Markup {
    html! {
        @if !event.regions.is_empty() {
            table .table {
                caption .unseen { "Regions" }
                thead { tr { th scope="col" { "Region" } th scope="col" { "Place" } th scope="col" { "Size" } th scope="col" { "Peak" } } }
                tbody {
                    @for (n, region) in event.regions.iter().enumerate() {
                        tr {
                            td { (n + 1) }
                            td { (region.x) ", " (region.y) }
                            td { (region.w) " × " (region.h) }
                            td { (show::number(region.score)) }
                        }
                    }
                }
            }
        }
    }
}
