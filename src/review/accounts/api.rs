//! The audit as JSON.
//!
//! Thread: handlers run on the server's thread; what blocks goes through [`Desk`].
//!
//! Invariants:
//! 1. Walking `next` meets each line that was there at the start once. Test: `the_audit_is_paged` in
//!    tests/review_accounts.rs.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::store::Entry;
use super::{Desk, Role, Who};
use crate::review::api::App;
use crate::review::problem::Problem;

/// Lines in a page when `limit` is not given, and at most.
const LIMIT: (usize, usize) = (100, 1000);

/// The routes of the API of accounts.
pub fn routes() -> Router<App> {
    Router::new().route("/api/v1/audit", get(audit))
}

/// Which part of the audit.
#[derive(Debug, Default, Deserialize)]
pub struct AuditQuery {
    /// Lines before this one.
    pub before: Option<i64>,
    pub limit: Option<usize>,
}

/// A page of the audit.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::review) struct AuditPage {
    items: Vec<Entry>,
    /// `before` of the next page.
    next: Option<i64>,
}

/// Lines, newest first, and where the next page begins.
pub(super) async fn page_of(desk: &Desk, query: &AuditQuery) -> Result<(Vec<Entry>, Option<i64>), Problem> {
    let (before, limit) = (query.before, query.limit.unwrap_or(LIMIT.0));
    if !(1..=LIMIT.1).contains(&limit) {
        return Err(Problem::bad_request(format!("limit is {limit}, it must be between 1 and {}", LIMIT.1)));
    }
    let mut entries = desk.run(move |a| a.audit(before, limit + 1)).await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().map(|e| e.seq).filter(|_| more);
    Ok((entries, next))
}

/// Read the audit
#[utoipa::path(
    get,
    path = "/api/v1/audit",
    tag = "accounts",
    params(
        ("before" = Option<i64>, Query, description = "Lines before this one"),
        ("limit" = Option<usize>, Query, description = "Lines in a page, 100 when not given", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "What was done, newest first", body = AuditPage),
        (status = 400, description = "The query cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not with this role", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(in crate::review) async fn audit(
    who: Who,
    Extension(desk): Extension<Desk>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    who.must(Role::Admin)?;
    let Query(query) = query.map_err(|e| Problem::bad_request(e.body_text()))?;
    let (items, next) = page_of(&desk, &query).await?;
    Ok(Json(AuditPage { items, next }).into_response())
}
