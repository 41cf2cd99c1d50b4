//! The pages people look at: the queue, one anomaly in full, the lines, and what follows from all that was decided.
//!
//! Thread: handlers run on the server's thread; reading the store goes through [`App::run`](super::api::App::run).
//!
//! `queue`, `item`, `lines` and `insight` are a page each; `view` is the listing that a page shows and links to, `forms` takes
//! decisions without scripts, `live` tells open pages what changes, `layout` is around every page, `parts` and `histogram` are in
//! several. The scripts and the style are in assets/review.
//!
//! Invariants:
//! 1. Text from an event is escaped. Test: `hostile_text_stays_text`.
//! 2. Nothing inline: no script, no style, so that the strict Content-Security-Policy holds; places inside pictures are
//!    SVG attributes. Tests: `nothing_is_inline`, and every page in tests/ui.
//! 3. Everything can be read and judged without scripts; they add keys, zoom, and what appears by itself. Test:
//!    `decisions_can_be_made_without_scripts` in tests/review_pages.rs.

mod forms;
mod histogram;
mod insight;
mod item;
mod layout;
mod lines;
mod live;
mod parts;
mod queue;
#[cfg(test)]
mod tests;
mod view;

use axum::Router;
use axum::routing::{get, post};

use super::api::App;
pub use layout::unknown;
pub(in crate::review) use layout::{Frame, Here, refusal};

/// The routes of the pages and their static files.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/", get(queue::page))
        .route("/anomalies/{id}", get(item::page))
        .route("/anomalies/{id}/review", post(forms::review))
        .route("/anomalies/{id}/undo", post(forms::undo))
        .route("/lines", get(lines::page))
        .route("/insights", get(insight::page))
        .route("/insights/defect-types", post(forms::defect_types))
        .route(live::LIVE, get(live::events))
        .route("/assets/{name}", get(layout::asset))
}
