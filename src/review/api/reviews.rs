//! People's decisions on anomalies.

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use uuid::Uuid;

use super::{ANOMALIES, App, parse_id};
use crate::review::accounts::{Role, Who};
use crate::review::live::Change;
use crate::review::problem::Problem;
use crate::review::store::{Decision, NewReview};

/// Characters of a comment.
pub const MAX_COMMENT: usize = 2000;
/// Characters of a defect type.
pub const MAX_DEFECT_TYPE: usize = 60;
/// Defect types of a site.
pub const MAX_DEFECT_TYPES: usize = 50;

/// The routes of reviews.
pub fn routes() -> Router<App> {
    Router::new()
        .route(&format!("{ANOMALIES}/{{id}}/reviews"), get(history).post(review))
        .route(&format!("{ANOMALIES}/{{id}}/reviews/undo"), post(undo))
        .route("/api/v1/defect-types", get(defect_types).put(set_defect_types))
}

/// A decision as it is posted.
#[derive(Debug, Deserialize)]
pub(in crate::review) struct ReviewBody {
    pub decision: Decision,
    #[serde(default)]
    pub defect_type: Option<String>,
    #[serde(default)]
    pub comment: Option<String>,
}

impl ReviewBody {
    /// Checks it; the API and the forms of the pages take the same.
    pub fn check(self, reviewer: String) -> Result<NewReview, Problem> {
        let ReviewBody { decision, defect_type, comment } = self;
        let text = |name: &str, text: Option<String>, most: usize| {
            let text = text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
            match text {
                Some(text) if text.chars().count() > most => {
                    Err(Problem::unprocessable(format!("{name} has more than {most} characters")))
                }
                text => Ok(text),
            }
        };
        let defect_type = text("defect_type", defect_type, MAX_DEFECT_TYPE)?;
        if defect_type.is_some() && decision != Decision::Defect {
            return Err(Problem::unprocessable("only a decision \"defect\" has a defect_type"));
        }
        Ok(NewReview { reviewer, decision, defect_type, comment: text("comment", comment, MAX_COMMENT)? })
    }
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Problem> {
    body.map(|Json(body)| body).map_err(|e| Problem::new(e.status(), e.body_text()))
}

fn no_anomaly(id: Uuid) -> Problem {
    Problem::not_found(format!("there is no anomaly {id}"))
}

async fn review(
    State(app): State<App>,
    who: Who,
    Path(id): Path<String>,
    sent: Result<Json<ReviewBody>, JsonRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Reviewer)?;
    let id = parse_id(&id)?;
    let new = body(sent)?.check(who.name)?;
    let done = app.run(move |store| store.review(id, &new)).await?.ok_or_else(|| no_anomaly(id))?;
    app.live.tell(Change::Review { id });
    Ok((StatusCode::CREATED, Json(done)).into_response())
}

async fn undo(State(app): State<App>, who: Who, Path(id): Path<String>) -> Result<Response, Problem> {
    who.must(Role::Reviewer)?;
    let id = parse_id(&id)?;
    let (done, there) = app.run(move |store| Ok((store.take_back(id, &who.name)?, store.get(id)?.is_some()))).await?;
    match done {
        Some(done) => {
            app.live.tell(Change::Review { id });
            Ok((StatusCode::CREATED, Json(done)).into_response())
        }
        None if there => {
            Err(Problem::new(StatusCode::CONFLICT, "the review that holds is not yours, or there is none"))
        }
        None => Err(no_anomaly(id)),
    }
}

async fn history(State(app): State<App>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let (reviews, there) = app.run(move |store| Ok((store.reviews(id)?, store.get(id)?.is_some()))).await?;
    if !there {
        return Err(no_anomaly(id));
    }
    Ok(Json(serde_json::json!({ "items": reviews })).into_response())
}

async fn defect_types(State(app): State<App>) -> Result<Response, Problem> {
    let names = app.run(|store| store.defect_types()).await?;
    Ok(Json(serde_json::json!({ "items": names })).into_response())
}

#[derive(Debug, Deserialize)]
struct DefectTypesBody {
    items: Vec<String>,
}

/// Checks a site's own list; the API and the form of the pages take the same.
pub(in crate::review) fn checked_types(names: Vec<String>) -> Result<Vec<String>, Problem> {
    let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
    if names.len() > MAX_DEFECT_TYPES {
        return Err(Problem::unprocessable(format!("a site has at most {MAX_DEFECT_TYPES} defect types")));
    }
    if names.iter().any(|name| name.is_empty() || name.chars().count() > MAX_DEFECT_TYPE) {
        return Err(Problem::unprocessable(format!(
            "a defect type must have between 1 and {MAX_DEFECT_TYPE} characters"
        )));
    }
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(Problem::unprocessable(format!("defect type {:?} is given twice", twice.1)));
    }
    Ok(names)
}

async fn set_defect_types(
    State(app): State<App>,
    who: Who,
    sent: Result<Json<DefectTypesBody>, JsonRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Admin)?;
    let names = checked_types(body(sent)?.items)?;
    let kept = names.clone();
    app.run(move |store| store.set_defect_types(&kept)).await?;
    Ok(Json(serde_json::json!({ "items": names })).into_response())
}
