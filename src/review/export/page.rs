//! The page of exports: what there is to download, in which format, and how much of it.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`].

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};

use super::{EXPORTS, Format, reviewed};
use crate::review::accounts::{Role, Who};
use crate::review::api::App;
use crate::review::api::query::{FilterQuery, Listing};
use crate::review::pages::{Frame, Here, refusal};
use crate::review::problem::Problem;
use crate::review::store::{Count, Decision, Filter, Reviewed};

impl Format {
    fn title(self) -> &'static str {
        match self {
            Format::Coco => "COCO",
            Format::LabelStudio => "Label Studio",
            Format::Cvat => "CVAT for images 1.1",
            Format::Mvtec => "MVTec AD folder",
            Format::Csv => "CSV",
        }
    }
    fn about(self) -> &'static str {
        match self {
            Format::Coco => "Boxes and masks of defects; false alarms as pictures without annotations.",
            Format::LabelStudio => "Tasks with the model's regions as predictions and decisions as annotations.",
            Format::Cvat => "Boxes of defects, decisions as tags.",
            Format::Mvtec => "Cut parts in folders, with masks: for linesight evaluate and linesight teach.",
            Format::Csv => "One row an anomaly with every field, without pictures.",
        }
    }
}

pub(super) async fn page(
    State(app): State<App>,
    who: Who,
    query: Result<Query<FilterQuery>, QueryRejection>,
) -> Response {
    let page = async {
        who.must(Role::Viewer)?;
        let Query(query) = query.map_err(|e| Problem::bad_request(e.body_text()))?;
        let Listing { filter, sort, .. } = query.check()?;
        let counts = app.run(|store| store.counts()).await?;
        Ok::<_, Problem>(show(&who, &Listing { filter: reviewed(filter), sort, ..Listing::default() }, &counts))
    };
    match page.await {
        Ok(page) => Html(page.into_string()).into_response(),
        Err(problem) => refusal(&problem),
    }
}

fn show(who: &Who, listing: &Listing, counts: &[Count]) -> Markup {
    let filter = &listing.filter;
    let to = |path: &str, filter: Filter| Listing { filter, ..listing.clone() }.link(path);
    let mut lines: Vec<&str> = counts.iter().map(|c| c.line.as_str()).chain(filter.line.as_deref()).collect();
    lines.sort_unstable();
    lines.dedup();
    let count = |filter: &Filter, only: Option<Decision>| -> u64 {
        let fits = |c: &&Count| {
            filter.line.as_ref().is_none_or(|l| *l == c.line)
                && filter.verdict.is_none_or(|v| v.as_str() == c.verdict)
                && only.is_none_or(|d| c.review == Some(d))
                && match filter.reviewed {
                    Some(Reviewed::Yes) => c.review.is_some(),
                    Some(Reviewed::No) => c.review.is_none(),
                    Some(Reviewed::As(decision)) => c.review == Some(decision),
                    None => true,
                }
        };
        counts.iter().filter(fits).map(|c| c.count).sum()
    };
    let chip = |text: &str, filter_to: Filter| {
        let here = filter_to == *filter;
        html! {
            a .chip href=(to("/exports", filter_to.clone())) aria-current=[here.then_some("true")] {
                (text) " " small { (count(&filter_to, None)) }
            }
        }
    };
    // of what the counts do not know, only the download does
    let narrowed = Filter { line: None, verdict: None, reviewed: None, ..filter.clone() } != Filter::default();
    let with = |reviewed: Reviewed| Filter { reviewed: Some(reviewed), ..filter.clone() };
    let body = html! {
        main .exports {
            h1 { "Exports" }
            nav .filters aria-label="What to export" {
                div .chips {
                    span { "Decision" }
                    (chip("All reviewed", with(Reviewed::Yes)))
                    @for decision in Decision::ALL { (chip(decision.as_str(), with(Reviewed::As(decision)))) }
                }
                @if !lines.is_empty() {
                    div .chips {
                        span { "Line" }
                        (chip("All", Filter { line: None, ..filter.clone() }))
                        @for line in lines { (chip(line, Filter { line: Some(line.to_owned()), ..filter.clone() })) }
                    }
                }
            }
            @if narrowed { p .note { "The filter of the list applies as well; the counts here do not have it." } }
            ul .formats {
                @for format in Format::ALL {
                    @let takes = Decision::ALL.into_iter().filter(|d| format.takes(Some(*d))).map(|d| count(filter, Some(d))).sum::<u64>();
                    @let open = if format.takes(None) && filter.reviewed == Some(Reviewed::No) { count(filter, None) } else { 0 };
                    li .format {
                        h2 { (format.title()) }
                        p { (format.about()) }
                        p .count { b { (takes + open) } " items" }
                        a .button href=(to(&format!("{EXPORTS}/{}", format.as_str()), filter.clone())) download { "Download " (format.title()) }
                    }
                }
            }
        }
    };
    Frame::new("Exports").here(Here::Exports).who(who).around(body)
}
