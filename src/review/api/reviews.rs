//! People's decisions on anomalies.

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Array, ArrayBuilder, ObjectBuilder, Type};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::answer::{Segments, tagged};
use super::{App, parse_id};
use crate::review::accounts::{Role, Who};
use crate::review::live::Change;
use crate::review::problem::Problem;
use crate::review::store::{Decision, NewReview, Review};

/// Characters of a comment.
pub const MAX_COMMENT: usize = 2000;
/// Characters of a defect type.
pub const MAX_DEFECT_TYPE: usize = 60;
/// Defect types of a site.
pub const MAX_DEFECT_TYPES: usize = 50;

/// Bytes of a body: the longest comment fits in, however it is escaped.
const MAX_BODY: usize = 64 << 10;

/// The routes of reviews.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(history, review))
        .routes(routes!(undo))
        .routes(routes!(defect_types, set_defect_types))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// A decision as it is posted.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::review) struct ReviewBody {
    pub decision: Decision,
    /// Only with the decision `defect`.
    #[serde(default)]
    #[schema(max_length = 60)]
    pub defect_type: Option<String>,
    #[serde(default)]
    #[schema(max_length = 2000)]
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

/// Review an anomaly
#[utoipa::path(
    post,
    path = "/api/v1/anomalies/{id}/reviews",
    tag = "reviews",
    params(("id" = Uuid, Path, description = "The event's id")),
    request_body = ReviewBody,
    responses(
        (status = 201, description = "The review that holds now", body = Review),
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not with this role", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such anomaly", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "More than this server takes", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another media type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The body makes no sense", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn review(
    State(app): State<App>,
    who: Who,
    Segments(id): Segments<String>,
    sent: Result<Json<ReviewBody>, JsonRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Reviewer)?;
    let id = parse_id(&id)?;
    let new = body(sent)?.check(who.name)?;
    let done = app.run(move |store| store.review(id, &new)).await?.ok_or_else(|| no_anomaly(id))?;
    app.live.tell(Change::Review { id });
    Ok((StatusCode::CREATED, Json(done)).into_response())
}

/// Take back the own review that holds
#[utoipa::path(
    post,
    path = "/api/v1/anomalies/{id}/reviews/undo",
    tag = "reviews",
    params(("id" = Uuid, Path, description = "The event's id")),
    responses(
        (status = 201, description = "It was taken back", body = Review),
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not with this role", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such anomaly", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The review that holds is not yours, or there is none", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn undo(State(app): State<App>, who: Who, Segments(id): Segments<String>) -> Result<Response, Problem> {
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

/// Everything that was said about an anomaly.
#[derive(Serialize, ToSchema)]
struct History {
    /// The first first.
    items: Vec<Review>,
}

/// All reviews of an anomaly
#[utoipa::path(
    get,
    path = "/api/v1/anomalies/{id}/reviews",
    tag = "reviews",
    params(("id" = Uuid, Path, description = "The event's id")),
    responses(
        (status = 200, description = "The first first", body = History, headers(("etag" = String))),
        (status = 304, description = "The client has them"),
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such anomaly", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn history(
    State(app): State<App>,
    who: Who,
    headers: HeaderMap,
    Segments(id): Segments<String>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let id = parse_id(&id)?;
    let (items, there) = app.run(move |store| Ok((store.reviews(id)?, store.get(id)?.is_some()))).await?;
    if !there {
        return Err(no_anomaly(id));
    }
    tagged(&headers, &History { items }, None)
}

/// The site's own names of defects
#[utoipa::path(
    get,
    path = "/api/v1/defect-types",
    tag = "reviews",
    responses(
        (status = 200, description = "In the order of their keys", body = DefectTypesBody, headers(("etag" = String))),
        (status = 304, description = "The client has them"),
    )
)]
async fn defect_types(State(app): State<App>, who: Who, headers: HeaderMap) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let items = app.run(|store| store.defect_types()).await?;
    tagged(&headers, &DefectTypesBody { items }, None)
}

fn names_schema() -> Array {
    let name = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(MAX_DEFECT_TYPE))
        .pattern(Some(r"\S"));
    ArrayBuilder::new().items(name).max_items(Some(MAX_DEFECT_TYPES)).unique_items(true).build()
}

/// Names of defects.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = DefectTypes)]
struct DefectTypesBody {
    /// In the order of their keys, each once.
    #[schema(schema_with = names_schema)]
    items: Vec<String>,
}

/// What is cut off at the ends: white space, and what JSON Schema's `\\s` takes for it.
fn blank(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Checks a site's own list; the API and the form of the pages take the same.
pub(in crate::review) fn checked_types(names: Vec<String>) -> Result<Vec<String>, Problem> {
    let names: Vec<String> = names.iter().map(|name| name.trim_matches(blank).to_owned()).collect();
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

/// Set the site's own names of defects
#[utoipa::path(
    put,
    path = "/api/v1/defect-types",
    tag = "reviews",
    request_body = DefectTypesBody,
    responses(
        (status = 200, description = "They hold now; what was reviewed keeps its name", body = DefectTypesBody),
        (status = 400, description = "The body cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not with this role", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "More than this server takes", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another media type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The body makes no sense", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn set_defect_types(
    State(app): State<App>,
    who: Who,
    sent: Result<Json<DefectTypesBody>, JsonRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Admin)?;
    let names = checked_types(body(sent)?.items)?;
    let kept = names.clone();
    app.run(move |store| store.set_defect_types(&kept)).await?;
    Ok(Json(DefectTypesBody { items: names }).into_response())
}
