//! The pages people look at: the list of anomalies and one anomaly in full.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`].
//!
//! Invariants:
//! 1. Text from an event is escaped. Test: `hostile_text_stays_text`.
//! 2. Nothing inline: no script, no style, so that the strict Content-Security-Policy holds; places inside pictures are
//!    SVG attributes. Test: `nothing_is_inline`.
//! 3. Everything can be read without JavaScript; it adds only the slider, keys and the refresh of the list. By eye.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::{Event, Rect, Region, Verdict};
use crate::review::api::query::{ListQuery, Listing, listing};
use crate::review::api::{self, ANOMALIES, App};
use crate::review::problem::Problem;
use crate::review::show;
use crate::review::store::{Anomaly, Count, Cursor, Filter, ObjectName, Page, Walk};

const STYLE: &str = include_str!("../../../assets/review/style.css");
const SCRIPT: &str = include_str!("../../../assets/review/review.js");
const ICON: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#0f766e"/><circle cx="16" cy="16" r="8" fill="none" stroke="#fff" stroke-width="2.5"/><circle cx="18.5" cy="13.5" r="3" fill="#fbbf24"/></svg>"##;

/// Title of the list.
const LIST: &str = "Anomalies";
/// Cards on a page of the list.
const CARDS: usize = 24;
/// Width by height of the picture on a card; style.css has the same.
const CARD_ASPECT: f64 = 4.0 / 3.0;
/// Room around the part on a card, in part sizes.
const CARD_MARGIN: f64 = 0.08;
/// Length of the score's bar, in thresholds.
const BAR: f64 = 4.0;
/// The verdicts that the list can be filtered by.
const VERDICTS: [Verdict; 3] = [Verdict::Reject, Verdict::Unsure, Verdict::Missed];

/// A static file, with a checksum in its URL so that it may be cached for ever.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
    sha256: String,
}

static ASSETS: LazyLock<[Asset; 3]> = LazyLock::new(|| {
    let asset = |name, content_type, text: &'static str| {
        let sha256 = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect();
        Asset { name, content_type, text, sha256 }
    };
    [
        asset("style.css", "text/css; charset=utf-8", STYLE),
        asset("review.js", "text/javascript; charset=utf-8", SCRIPT),
        asset("icon.svg", "image/svg+xml", ICON),
    ]
});

fn asset_url(name: &str) -> String {
    let version = ASSETS.iter().find(|a| a.name == name).and_then(|a| a.sha256.get(..12)).unwrap_or("");
    format!("/assets/{name}?v={version}")
}

/// The routes of the pages and their static files.
pub fn routes() -> Router<App> {
    Router::new().route("/", get(list)).route("/anomalies/{id}", get(detail)).route("/assets/{name}", get(asset))
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|a| a.name == name) {
        Some(a) => api::immutable(&headers, &a.sha256, a.content_type, a.text),
        None => unknown().await,
    }
}

/// The page for addresses that lead nowhere.
pub async fn unknown() -> Response {
    refusal(&Problem::not_found("there is no such page"))
}

/// A page that says why there is none.
pub(in crate::review) fn refusal(problem: &Problem) -> Response {
    let status = problem.status();
    let title = status.canonical_reason().unwrap_or("Error");
    let body = html! {
        main .empty {
            h1 { (title) }
            p { (problem.detail()) }
            p { a .button href="/" { "To the list" } }
        }
    };
    (status, Html(layout(title, None, body).into_string())).into_response()
}

/// Which of the pages in the header one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::review) enum Here {
    Anomalies,
    Lines,
    Elsewhere,
}

fn layout(title: &str, tools: Option<Markup>, body: Markup) -> Markup {
    let here = if title == LIST { Here::Anomalies } else { Here::Elsewhere };
    layout_with(title, here, html! {}, tools, body)
}

/// A page with more in its head.
pub(in crate::review) fn layout_with(
    title: &str,
    here: Here,
    head: Markup,
    tools: Option<Markup>,
    body: Markup,
) -> Markup {
    let tab = |page: Here, text: &str, to: &str| {
        html! { a href=(to) aria-current=[(page == here).then_some("page")] { (text) } }
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · linesight" }
                link rel="icon" href=(asset_url("icon.svg"));
                link rel="stylesheet" href=(asset_url("style.css"));
                script defer src=(asset_url("review.js")) {}
                (head)
            }
            body {
                header .top {
                    a .brand href="/" { img src=(asset_url("icon.svg")) alt="" width="28" height="28"; span { "linesight" } small { "review" } }
                    nav .tabs aria-label="Pages of the server" {
                        (tab(Here::Anomalies, LIST, "/"))
                        (tab(Here::Lines, "Lines", "/lines"))
                    }
                    @if let Some(tools) = tools { div .tools { (tools) } }
                }
                (body)
            }
        }
    }
}

/// The list of a line's anomalies.
pub(in crate::review) fn line_link(line: &str) -> String {
    link("/", &Filter { line: Some(line.to_owned()), ..Filter::default() }, None)
}

/// A path with the filter and cursor as its query.
fn link(path: &str, filter: &Filter, start: Option<Cursor>) -> String {
    Listing { filter: filter.clone(), start, ..Listing::default() }.link(path)
}

async fn list(State(app): State<App>, query: Result<Query<ListQuery>, QueryRejection>) -> Response {
    let page = async {
        let Listing { filter, sort, start, limit } = listing(query)?;
        let wanted = filter.clone();
        let (page, counts) = app
            .run(move |store| Ok((store.list(&wanted, sort, start, limit.unwrap_or(CARDS))?, store.counts()?)))
            .await?;
        Ok::<_, Problem>(list_page(&filter, start.is_none(), &page, &counts, Timestamp::now()))
    };
    match page.await {
        Ok(page) => Html(page.into_string()).into_response(),
        Err(problem) => refusal(&problem),
    }
}

fn heat_switch() -> Markup {
    html! {
        label .switch title="Show or hide the heatmap (key H)" {
            input #heat type="checkbox" checked autocomplete="off";
            span { "Heatmap" }
        }
    }
}

fn list_page(filter: &Filter, newest: bool, page: &Page, counts: &[Count], now: Timestamp) -> Markup {
    let all: u64 = counts.iter().map(|c| c.count).sum();
    let poll = link(ANOMALIES, filter, None);
    let live = html! { span #live .live hidden { "live" } };
    let body = html! {
        main #list data-revision=(page.revision) data-newest=[newest.then_some("")] data-poll=(poll) {
            (filters(filter, counts))
            a #news .news hidden href=(link("/", filter, None)) { "New anomalies: show the newest" }
            @if page.items.is_empty() {
                (nothing(all))
            } @else {
                div .cards { @for anomaly in &page.items { (card(filter, anomaly, now)) } }
            }
            nav .pager aria-label="Pages" {
                @if !newest { a .button href=(link("/", filter, None)) { "⇤ Newest" } }
                @if let Some(newer) = page.newer { a .button rel="prev" href=(link("/", filter, Some(newer))) { "← Newer" } }
                @if let Some(older) = page.older { a .button rel="next" href=(link("/", filter, Some(older))) { "Older →" } }
            }
        }
    };
    layout(LIST, Some(html! { (live) (heat_switch()) }), body)
}

fn nothing(all: u64) -> Markup {
    html! {
        div .empty {
            @if all == 0 {
                h1 { "No anomalies yet" }
                p { "Lines deliver what they reject here. Good parts never leave the machine." }
            } @else {
                h1 { "Nothing here" }
                p { "No anomaly fits what is chosen above." }
                p { a .button href="/" { "Show all" } }
            }
        }
    }
}

/// Chips that choose a line and a verdict, each with the count it would show.
fn filters(filter: &Filter, counts: &[Count]) -> Markup {
    let count = |line: Option<&str>, verdict: Option<Verdict>| -> u64 {
        let fits = |c: &&Count| line.is_none_or(|l| l == c.line) && verdict.is_none_or(|v| v.as_str() == c.verdict);
        counts.iter().filter(fits).map(|c| c.count).sum()
    };
    let mut lines: Vec<&str> = counts.iter().map(|c| c.line.as_str()).chain(filter.line.as_deref()).collect();
    lines.sort_unstable();
    lines.dedup();
    let chip = |text: &str, kind: &str, to: Filter| {
        let here = to == *filter;
        html! {
            a .chip .(kind) href=(link("/", &to, None)) aria-current=[here.then_some("true")] {
                (text) " " small { (count(to.line.as_deref(), to.verdict)) }
            }
        }
    };
    html! {
        nav .filters aria-label="Filters" {
            div .chips {
                span { "Verdict" }
                (chip("All", "all", Filter { verdict: None, ..filter.clone() }))
                @for verdict in VERDICTS {
                    (chip(verdict.as_str(), verdict.as_str(), Filter { verdict: Some(verdict), ..filter.clone() }))
                }
            }
            @if !lines.is_empty() {
                div .chips {
                    span { "Line" }
                    (chip("All", "all", Filter { line: None, ..filter.clone() }))
                    @for line in lines {
                        (chip(line, "line", Filter { line: Some(line.to_string()), ..filter.clone() }))
                    }
                }
            }
        }
    }
}

fn card(filter: &Filter, anomaly: &Anomaly, now: Timestamp) -> Markup {
    let event = &anomaly.event;
    let id = event.id;
    let crop = show::crop(event.image, event.part_box, CARD_ASPECT, CARD_MARGIN);
    let label = format!("{} on {}, part {}", event.verdict.as_str(), event.line, event.part);
    html! {
        article .card .(event.verdict.as_str()) data-id=(id) {
            a .picture href=(link(&format!("/anomalies/{id}"), filter, None)) {
                (cropped(event, crop, &label))
                (badge(event.verdict))
            }
            div .facts {
                h2 { a href=(link(&format!("/anomalies/{id}"), filter, None)) { "Part " (event.part) } span { (event.line) } }
                (score(event))
                p .confidence { "Confidence " b { (show::percent(event.confidence)) } }
                @if !event.reasons.is_empty() { ul .reasons { @for reason in event.reasons.iter().take(3) { li { (reason) } } } }
                p .when { (age(now, event.captured_at)) @if let Some(serial) = &event.serial { " · " (serial) } }
            }
        }
    }
}

/// A part of the frame with the heatmap on it. An SVG, because its geometry is attributes and needs no inline style.
fn cropped(event: &Event, crop: show::Crop, label: &str) -> Markup {
    let (width, height) = (event.image.width, event.image.height);
    let layer = |class: &str, name| {
        html! {
            image class=(class) href=(api::picture_url(event.id, name)) width=(width) height=(height)
                preserveAspectRatio="none" {}
        }
    };
    html! {
        svg viewBox=(crop.view_box()) preserveAspectRatio="xMidYMid meet" role="img" aria-label=(label) {
            (layer("frame", ObjectName::Frame))
            (layer("heat", ObjectName::Heatmap))
        }
    }
}

fn badge(verdict: Verdict) -> Markup {
    html! { span .badge .(verdict.as_str()) { (verdict.as_str()) } }
}

fn age(now: Timestamp, at: Timestamp) -> Markup {
    html! { time datetime=(at) title=(show::time(at)) data-age { (show::age(now, at)) } }
}

/// Score against threshold, as numbers and as a bar with a mark. The bar ends at [`BAR`] thresholds, so that the bars of
/// different parts compare.
fn score(event: &Event) -> Markup {
    let (score, threshold) = (f64::from(event.score), f64::from(event.threshold));
    let full = if threshold > 0.0 { BAR * threshold } else { score.max(f64::MIN_POSITIVE) };
    let at = |value: f64| format!("{:.1}", (value / full * 100.0).clamp(0.0, 100.0));
    html! {
        div .score {
            p {
                "Score " b { (show::number(event.score)) }
                span { "threshold " (show::number(event.threshold)) }
            }
            svg .bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                rect .track width="100" height="8" {}
                rect .value width=(at(score)) height="8" {}
                rect .mark x=(at(threshold)) width="0.8" height="8" {}
            }
        }
    }
}

async fn detail(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Response {
    let page = async {
        let id = Uuid::try_parse(&id).map_err(|_| Problem::not_found("there is no such anomaly"))?;
        let Listing { filter, sort, .. } = listing(query)?;
        let wanted = filter.clone();
        let found = app.run(move |store| {
            let Some(anomaly) = store.get(id)? else { return Ok(None) };
            let from = anomaly.position(sort)?;
            let beside = |walk| {
                let page = store.list(&wanted, sort, Some(Cursor { walk, from }), 1)?;
                Ok(page.items.first().map(|a| a.event.id))
            };
            Ok(Some((beside(Walk::Newer)?, beside(Walk::Older)?, anomaly)))
        });
        let found = found.await?.ok_or_else(|| Problem::not_found("there is no such anomaly"))?;
        let (newer, older, anomaly) = found;
        Ok::<_, Problem>(detail_page(&filter, &anomaly, newer, older, Timestamp::now()))
    };
    match page.await {
        Ok(page) => Html(page.into_string()).into_response(),
        Err(problem) => refusal(&problem),
    }
}

fn detail_page(filter: &Filter, anomaly: &Anomaly, newer: Option<Uuid>, older: Option<Uuid>, now: Timestamp) -> Markup {
    let event = &anomaly.event;
    let to = |id: Uuid| link(&format!("/anomalies/{id}"), filter, None);
    let step = |text: &str, key: &str, id: Option<Uuid>| {
        html! {
            @match id {
                Some(id) => a .button #(key) rel=(key) href=(to(id)) { (text) },
                None => span .button aria-disabled="true" { (text) },
            }
        }
    };
    let body = html! {
        main .detail {
            nav .pager aria-label="Anomalies" {
                a .button href=(link("/", filter, None)) { "☰ List" }
                span .gap {}
                (step("← Newer", "prev", newer))
                (step("Older →", "next", older))
            }
            div .title { (badge(event.verdict)) h1 { "Part " (event.part) span { (event.line) } } p { (age(now, event.captured_at)) } }
            @if !event.reasons.is_empty() { ul .reasons { @for reason in &event.reasons { li { (reason) } } } }
            div .columns {
                div .pictures {
                    (stage(event))
                    (pair(anomaly))
                }
                section .side aria-label="Facts" {
                    (score(event))
                    (facts(anomaly))
                    (regions(event))
                }
            }
            details .raw { summary { "Event as it was received" } pre { code { (show::indent(&anomaly.raw)) } } }
        }
    };
    layout(&format!("Part {} on {}", event.part, event.line), None, body)
}

/// The frame with heatmap and boxes on it, and what switches them.
fn stage(event: &Event) -> Markup {
    let (width, height) = (event.image.width, event.image.height);
    let frame = api::picture_url(event.id, ObjectName::Frame);
    html! {
        figure .stage {
            div .switches {
                (heat_switch())
                label .slider hidden { span { "Opacity" } input #opacity type="range" min="0" max="100" value="80" autocomplete="off"; }
                label .switch { input #boxes type="checkbox" checked autocomplete="off"; span { "Boxes" } }
                a .open href=(frame) target="_blank" rel="noopener" { "Open frame" }
            }
            div .layers {
                img src=(frame) alt="Frame" width=(width) height=(height);
                img #heatmap .heat src=(api::picture_url(event.id, ObjectName::Heatmap)) alt="" width=(width) height=(height);
                svg .boxes viewBox=(format!("0 0 {width} {height}")) preserveAspectRatio="none" aria-hidden="true" {
                    @if let Some(part) = event.part_box { (outline("part", part)) }
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

/// The part as it is beside the part as it should be.
fn pair(anomaly: &Anomaly) -> Markup {
    let event = &anomaly.event;
    html! {
        @if event.part_box.is_some() || anomaly.has_normal {
            div .pair {
                @if let Some(part) = event.part_box {
                    @let crop = show::crop(event.image, Some(part), f64::from(part.w.max(1)) / f64::from(part.h.max(1)), 0.0);
                    figure {
                        (cropped(event, crop, "The part as it was seen"))
                        figcaption { "The part as it was seen" }
                    }
                }
                @if anomaly.has_normal {
                    figure {
                        img src=(api::picture_url(event.id, ObjectName::Normal)) alt="The place as it should look";
                        figcaption { "The place as it should look" }
                    }
                }
            }
        }
    }
}

fn facts(anomaly: &Anomaly) -> Markup {
    let event = &anomaly.event;
    let fact = |name: &str, value: &dyn std::fmt::Display| html! { div { dt { (name) } dd { (value.to_string()) } } };
    html! {
        dl .list {
            (fact("Verdict", &event.verdict.as_str()))
            (fact("Score", &show::number(event.score)))
            (fact("Threshold", &show::number(event.threshold)))
            (fact("Confidence", &show::percent(event.confidence)))
            (fact("Site", &event.site))
            (fact("Line", &event.line))
            (fact("Camera", &event.camera))
            (fact("Part", &event.part))
            (fact("Frame", &event.frame))
            @if let Some(lot) = &event.lot { (fact("Lot", lot)) }
            @if let Some(serial) = &event.serial { (fact("Serial", serial)) }
            div { dt { "Captured" } dd { time datetime=(event.captured_at) { (show::time(event.captured_at)) } } }
            div { dt { "Received" } dd { time datetime=(anomaly.received_at) { (show::time(anomaly.received_at)) } } }
            @if event.spooled_s >= 1.0 { (fact("Waited in the spool", &format!("{:.0} s", event.spooled_s))) }
            (fact("Model", &format!("{} {}", event.model.name, event.model.version)))
            div { dt { "Checksum" } dd .mono title=(event.model.sha256) { (event.model.sha256.chars().take(12).collect::<String>()) } }
            (fact("Device", &event.device))
            (fact("Precision", &event.precision))
            (fact("Picture", &format!("{} × {}", event.image.width, event.image.height)))
            div { dt { "Event" } dd .mono { (event.id) } }
        }
    }
}

fn regions(event: &Event) -> Markup {
    if event.regions.is_empty() {
        return PreEscaped(String::new());
    }
    html! {
        table .regions {
            thead { tr { th { "Region" } th { "Place" } th { "Size" } th { "Peak" } } }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>";

    fn anomaly(text: &str) -> Anomaly {
        let event = serde_json::json!({
            "schema": 1, "id": "01930000-0000-7000-8000-000000000001", "site": text, "line": text, "camera": text,
            "part": 1, "frame": 2, "captured_at": "2030-01-02T03:04:05.123456789Z", "score": 2.0, "confidence": 0.99,
            "threshold": 0.0, "verdict": "reject", "reasons": [text], "lot": text, "serial": text,
            "regions": [{"x": 1, "y": 2, "w": 4_000_000_000_u32, "h": 4, "score": 3.0}],
            "model": {"name": text, "version": text, "sha256": text}, "device": text, "precision": text,
            "image": {"width": 8, "height": 6}, "part_box": {"x": 1, "y": 1, "w": 2, "h": 2}
        });
        let raw = event.to_string();
        let event = serde_json::from_value(event).unwrap();
        Anomaly { event, raw, received_at: Timestamp::UNIX_EPOCH, has_normal: true, review: None }
    }

    fn pages(text: &str) -> String {
        let anomaly = anomaly(text);
        let filter = Filter { line: Some(text.to_string()), verdict: Some(Verdict::Reject), ..Filter::default() };
        let counts = [Count { line: text.to_string(), verdict: "reject".into(), review: None, count: 1 }];
        let detail = detail_page(&filter, &anomaly, None, Some(Uuid::nil()), Timestamp::UNIX_EPOCH);
        let page = Page { items: vec![anomaly], older: None, newer: None, revision: 1 };
        let list = list_page(&filter, true, &page, &counts, Timestamp::UNIX_EPOCH);
        let empty = Page { items: vec![], ..page };
        let empty = list_page(&filter, true, &empty, &counts, Timestamp::UNIX_EPOCH);
        list.into_string() + &detail.into_string() + &empty.into_string()
    }

    #[test]
    fn hostile_text_stays_text() {
        let plain = pages("plain");
        let hostile = pages(HOSTILE);
        assert!(hostile.contains("&lt;script&gt;alert(1)"));
        for tag in ["<script", "<img", "<a "] {
            assert_eq!(hostile.matches(tag).count(), plain.matches(tag).count(), "{tag}");
        }
        assert_eq!(hostile.matches('<').count(), plain.matches('<').count());
    }

    #[test]
    fn nothing_is_inline() {
        let pages = pages("plain");
        for inline in [" style=", "<style", " onclick=", " onload=", "javascript:"] {
            assert!(!pages.contains(inline), "{inline}");
        }
        assert_eq!(pages.matches("<script").count(), pages.matches("<script defer src=\"/assets/review.js?v=").count());
        for text in [STYLE, SCRIPT, &pages] {
            assert!(!text.contains("https://") && !text.contains("//cdn"), "everything comes from this server");
        }
    }

    #[test]
    fn links_carry_the_filter() {
        let filter = Filter { line: Some("a&b=c d".into()), verdict: Some(Verdict::Missed), ..Filter::default() };
        assert_eq!(link("/", &filter, None), "/?line=a%26b%3Dc+d&verdict=missed");
        assert_eq!(link("/", &Filter::default(), None), "/");
    }
}
