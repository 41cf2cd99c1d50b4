//! Decisions without scripts: plain forms that do what the API does, and lead on.
//!
//! Thread: handlers run on the server's thread; store calls go through [`App::run`].

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Form, Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use uuid::Uuid;

use super::item::next_to_review;
use super::layout::refusal;
use super::view::View;
use crate::review::accounts::{Role, Who};
use crate::review::api::App;
use crate::review::api::query::ListQuery;
use crate::review::api::reviews::{ReviewBody, checked_types};
use crate::review::live::Change;
use crate::review::problem::Problem;
use crate::review::store::Decision;

/// A decision as a form sends it: a defect type alone is a defect of that type.
#[derive(Debug, Deserialize)]
pub(super) struct Sent {
    decision: Option<Decision>,
    defect_type: Option<String>,
    comment: Option<String>,
    /// `list`: back to the list that it came from.
    back: Option<String>,
}

pub(super) async fn review(
    State(app): State<App>,
    who: Who,
    Path(id): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
    sent: Result<Form<Sent>, FormRejection>,
) -> Response {
    let done = async {
        who.must(Role::Reviewer)?;
        let id = Uuid::try_parse(&id).map_err(|_| Problem::not_found("there is no such anomaly"))?;
        let view = View::read(query)?;
        let Form(sent) = sent.map_err(|e| Problem::new(e.status(), e.body_text()))?;
        let decision = match (sent.decision, &sent.defect_type) {
            (Some(decision), _) => decision,
            (None, Some(_)) => Decision::Defect,
            (None, None) => return Err(Problem::unprocessable("the form says no decision")),
        };
        let new = ReviewBody { decision, defect_type: sent.defect_type, comment: sent.comment }.check(who.name)?;
        let first = view.first();
        let found = app.run(move |store| {
            let Some(anomaly) = store.get(id)? else { return Ok(None) };
            store.review(id, &new)?;
            Ok(Some(next_to_review(store, &first, &anomaly)?))
        });
        let next = found.await?.ok_or_else(|| Problem::not_found("there is no such anomaly"))?;
        app.live.tell(Change::Review { id });
        Ok(match (sent.back.as_deref(), next) {
            (Some("list"), _) => view.link("/"),
            (_, Some(next)) => view.first().link(&format!("/anomalies/{next}")),
            (_, None) => view.first().link("/"),
        })
    };
    lead(done.await)
}

pub(super) async fn undo(
    State(app): State<App>,
    who: Who,
    Path(id): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Response {
    let done = async {
        who.must(Role::Reviewer)?;
        let id = Uuid::try_parse(&id).map_err(|_| Problem::not_found("there is no such anomaly"))?;
        let view = View::read(query)?;
        let taken = app.run(move |store| store.take_back(id, &who.name)).await?;
        if taken.is_some() {
            app.live.tell(Change::Review { id });
        }
        Ok(view.first().link(&format!("/anomalies/{id}")))
    };
    lead(done.await)
}

/// The site's own list, one name a line.
#[derive(Debug, Deserialize)]
pub(super) struct Types {
    names: String,
}

pub(super) async fn defect_types(
    State(app): State<App>,
    who: Who,
    sent: Result<Form<Types>, FormRejection>,
) -> Response {
    let done = async {
        who.must(Role::Admin)?;
        let Form(Types { names }) = sent.map_err(|e| Problem::new(e.status(), e.body_text()))?;
        let lines = names.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
        let names = checked_types(lines.collect())?;
        app.run(move |store| store.set_defect_types(&names)).await?;
        Ok("/insights#types".to_owned())
    };
    lead(done.await)
}

fn lead(to: Result<String, Problem>) -> Response {
    match to {
        Ok(to) => Redirect::to(&to).into_response(),
        Err(problem) => refusal(&problem),
    }
}
