//! The numbers of the Insights page.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::tagged;
use super::query::{given, number_schema, text, time, time_schema};
use crate::review::accounts::{Role, Who};
use crate::review::problem::Problem;
use crate::review::store::stats::{Insight, Scope, WhatIf};

/// The routes of statistics.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(insight)).routes(routes!(what_if))
}

/// As typed; empty means not given.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StatsQuery {
    /// Name of the line.
    #[param(max_length = 200)]
    pub line: Option<String>,
    /// `name@version`.
    #[param(max_length = 200)]
    pub model: Option<String>,
    /// Captured then or later.
    #[param(schema_with = time_schema)]
    pub since: Option<String>,
    /// Captured before.
    #[param(schema_with = time_schema)]
    pub until: Option<String>,
}

impl StatsQuery {
    /// Checks every value that was given.
    pub fn check(self) -> Result<Scope, Problem> {
        Ok(Scope {
            line: text("line", self.line)?,
            model: text("model", self.model)?,
            since: time("since", self.since)?,
            until: time("until", self.until)?,
        })
    }
}

/// As typed; empty means not given.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhatIfQuery {
    /// Name of the line.
    #[param(required, min_length = 1, max_length = 200)]
    pub line: Option<String>,
    /// `name@version`; the one that was heard of last where none is given.
    #[param(max_length = 200)]
    pub model: Option<String>,
    /// The threshold that is proposed.
    #[param(schema_with = number_schema)]
    pub threshold: Option<String>,
}

/// What the lines decided and what people said about it
#[utoipa::path(
    get,
    path = "/api/v1/stats",
    tag = "statistics",
    params(StatsQuery),
    responses(
        (status = 200, description = "The numbers", body = Insight, headers(("etag" = String))),
        (status = 304, description = "The client has them"),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn insight(
    State(app): State<App>,
    who: Who,
    headers: HeaderMap,
    query: Result<Query<StatsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let scope = query.map_err(|e| Problem::bad_request(e.body_text()))?.0.check()?;
    let insight = app.compute(move |store| store.insight(&scope)).await?;
    tagged(&headers, &insight, None)
}

/// What another threshold would have done
#[utoipa::path(
    get,
    path = "/api/v1/stats/what-if",
    tag = "statistics",
    params(WhatIfQuery),
    responses(
        (status = 200, description = "Scores and outcomes", body = WhatIf, headers(("etag" = String))),
        (status = 304, description = "The client has them"),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of the line or model", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn what_if(
    State(app): State<App>,
    who: Who,
    headers: HeaderMap,
    query: Result<Query<WhatIfQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Viewer)?;
    let WhatIfQuery { line, model, threshold } = query.map_err(|e| Problem::bad_request(e.body_text()))?.0;
    let line = text("line", line)?.ok_or_else(|| Problem::bad_request("line is missing"))?;
    let model = text("model", model)?;
    let threshold = given(threshold).map(|text| {
        let number = text.parse::<f64>().ok().filter(|t| t.is_finite() && *t >= 0.0);
        number.ok_or_else(|| {
            Problem::bad_request(format!("threshold is {text:?}, it must be a number that is not negative"))
        })
    });
    let threshold = threshold.transpose()?;
    let none = Problem::not_found(format!("nothing is known of line {line:?} with that model"));
    let found = app.compute(move |store| store.what_if(&line, model.as_deref(), threshold)).await?;
    tagged(&headers, &found.ok_or(none)?, None)
}
