//! The admin's pages: accounts, API tokens, defect types, and the audit. Plain forms, without JavaScript.
//!
//! Thread: handlers run on the server's thread; what blocks goes through [`Desk`] and [`App::run`].
//!
//! Invariants:
//! 1. Nobody but an admin gets anything of this. Test: `roles_and_routes` in tests/review_accounts.rs.
//! 2. A token is shown once, in the answer to the request that made it. Test: `tokens_and_scopes` in
//!    tests/review_accounts.rs.

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde::Deserialize;

use super::pages::{Sent, answer, field, form, last_login, message, page_for, see};
use super::store::{Account, ApiToken, Entry, Outcome};
use super::{Desk, Note, Role, Scope, Who, api, secret};
use crate::review::api::App;
use crate::review::api::reviews::{MAX_DEFECT_TYPE, MAX_DEFECT_TYPES};
use crate::review::pages::Here;
use crate::review::problem::Problem;
use crate::review::show;

/// Bytes of a form.
const MAX_FORM: usize = 64 << 10;
/// Days that a token may hold, at most.
pub const MOST_DAYS: u32 = 3650;

/// The routes of these pages.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/admin", get(overview))
        .route("/admin/audit", get(audit))
        .route("/admin/account/add", post(add))
        .route("/admin/account/role", post(set_role))
        .route("/admin/account/password", post(set_password))
        .route("/admin/account/remove", post(remove))
        .route("/admin/token/add", post(add_token))
        .route("/admin/token/revoke", post(revoke))
        .route("/admin/defect-types", post(defect_types))
        .layer(DefaultBodyLimit::max(MAX_FORM))
}

async fn overview(who: Who, State(app): State<App>, Extension(desk): Extension<Desk>) -> Response {
    answer(show_overview(&who, &app, &desk, html! {}).await)
}

async fn show_overview(who: &Who, app: &App, desk: &Desk, told: Markup) -> Result<Response, Problem> {
    who.must(Role::Admin)?;
    let (accounts, tokens) = desk.run(|a| Ok((a.accounts()?, a.tokens()?))).await?;
    let types = app.run(|store| store.defect_types()).await?;
    let now = Timestamp::now();
    let body = html! {
        (told)
        h2 { "Accounts" }
        @if accounts.is_empty() {
            p { "There are none: whoever reaches this server may do everything. The first must be an admin; from then on "
                "everything needs a login or a token." }
        } @else { (account_table(&accounts, now)) }
        h3 { "New account" }
        form .form method="post" action="/admin/account/add" {
            (field("name", "Name", "text", "off", ""))
            (select("role", "Role", &words(Role::ALL.map(Role::as_str)), if accounts.is_empty() { "admin" } else { "reviewer" }))
            (field("password", "Password", "password", "new-password", ""))
            p { button .button type="submit" { "Add" } }
        }
        h2 { "API tokens" }
        p { "For programs: lines deliver with scope upload, reports and scripts look with read, admin may everything." }
        @if !tokens.is_empty() { (token_table(&tokens, now)) }
        h3 { "New token" }
        form .form method="post" action="/admin/token/add" {
            p {
                label for="token-name" { "Name, such as the line's" }
                input #token-name name="name" type="text" autocomplete="off" required;
            }
            (select("scope", "Scope", &words(Scope::ALL.map(Scope::as_str)), "upload"))
            p {
                label for="days" { "Days it holds; empty: until it is revoked" }
                input #days name="days" type="number" min="1" max=(MOST_DAYS) inputmode="numeric";
            }
            p { button .button type="submit" { "Make" } }
        }
        h2 { "Defect types" }
        form .form method="post" action="/admin/defect-types" {
            p {
                label for="names" { "One a line; the first nine have the keys 1 to 9" }
                textarea #names name="names" rows=(types.len().clamp(4, 20)) { (types.join("\n")) }
            }
            p { button .button type="submit" { "Save" } }
        }
        h2 { "Audit" }
        p { a .button href="/admin/audit" { "What was done, by whom" } }
    };
    Ok(page_for(who, Here::Admin, "Administration", body))
}

fn words<const N: usize>(words: [&'static str; N]) -> Vec<&'static str> {
    words.to_vec()
}

fn select(id: &str, label: &str, words: &[&str], chosen: &str) -> Markup {
    html! {
        p {
            label for=(id) { (label) }
            select #(id) name=(id) {
                @for word in words { option value=(word) selected[*word == chosen] { (word) } }
            }
        }
    }
}

fn account_table(accounts: &[Account], now: Timestamp) -> Markup {
    let hidden = |name: &str| html! { input type="hidden" name="name" value=(name); };
    html! {
        table .table {
            thead { tr { th scope="col" { "Name" } th scope="col" { "Role" } th scope="col" { "Last login" }
                th scope="col" { "New password" } th scope="col" { "Remove" } } }
            tbody {
                @for a in accounts {
                    tr {
                        th scope="row" { (a.name) }
                        td {
                            form method="post" action="/admin/account/role" {
                                (hidden(&a.name))
                                select name="role" aria-label={ "Role of " (a.name) } {
                                    @for r in Role::ALL { option value=(r.as_str()) selected[r == a.role] { (r.as_str()) } }
                                }
                                button .button type="submit" { "Set" }
                            }
                        }
                        td { (last_login(a, now)) }
                        td {
                            form method="post" action="/admin/account/password" {
                                (hidden(&a.name))
                                input name="password" type="password" autocomplete="new-password" required
                                    aria-label={ "New password of " (a.name) };
                                button .button type="submit" { "Set" }
                            }
                        }
                        td {
                            form method="post" action="/admin/account/remove" {
                                (hidden(&a.name))
                                button .button type="submit" aria-label={ "Remove " (a.name) } { "Remove" }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn token_table(tokens: &[ApiToken], now: Timestamp) -> Markup {
    let state = |t: &ApiToken| match (t.revoked_at, t.expires_at) {
        (Some(at), _) => format!("revoked {}", show::age(now, at)),
        (None, Some(at)) if at <= now => format!("expired {}", show::age(now, at)),
        (None, Some(at)) => format!("until {}", show::time(at)),
        (None, None) => "until revoked".into(),
    };
    html! {
        table .table {
            thead { tr { th scope="col" { "Name" } th scope="col" { "Scope" } th scope="col" { "Made by" }
                th scope="col" { "Holds" } th scope="col" { "Last used" } th scope="col" { "Revoke" } } }
            tbody {
                @for t in tokens {
                    tr {
                        th scope="row" { (t.name) } td { (t.scope.as_str()) } td { (t.created_by) } td { (state(t)) }
                        td { (t.used_at.map_or_else(|| "never".into(), |at| show::age(now, at))) }
                        td {
                            @if t.holds(now) {
                                form method="post" action="/admin/token/revoke" {
                                    input type="hidden" name="name" value=(t.name);
                                    button .button type="submit" aria-label={ "Revoke " (t.name) } { "Revoke" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a form could not do, as an answer.
pub(super) fn refused(outcome: Outcome, name: &str) -> Result<(), Problem> {
    let conflict = |detail: String| Err(Problem::new(StatusCode::CONFLICT, detail));
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Unknown => Err(Problem::not_found(format!("there is no \"{name}\""))),
        Outcome::Taken => conflict(format!("the name \"{name}\" is in use, or was")),
        Outcome::LastAdmin => conflict("without this admin nobody could manage accounts".into()),
        Outcome::Full => conflict(format!("there are {} already", super::sqlite::MOST)),
    }
}

fn unprocessable(e: crate::error::Error) -> Problem {
    Problem::unprocessable(e.to_string())
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct NewAccount {
    name: String,
    role: Role,
    password: String,
}

async fn add(who: Who, Extension(desk): Extension<Desk>, sent: Sent<NewAccount>) -> Response {
    let added = async {
        who.must(Role::Admin)?;
        let NewAccount { name, role, password } = form(sent)?;
        let name = name.trim().to_owned();
        secret::check_name(&name).and_then(|()| secret::check_password(&name, &password)).map_err(unprocessable)?;
        let password = desk.hash(password).await?;
        let (by, new) = (who.actor(), name.clone());
        refused(desk.run(move |a| a.add(&by, &new, role, &password)).await?, &name)?;
        Ok((Note::taken(), see("/admin")).into_response())
    };
    answer(added.await)
}

#[derive(Deserialize)]
struct NewRole {
    name: String,
    role: Role,
}

async fn set_role(who: Who, Extension(desk): Extension<Desk>, sent: Sent<NewRole>) -> Response {
    let set = async {
        who.must(Role::Admin)?;
        let NewRole { name, role } = form(sent)?;
        let (by, whose) = (who.actor(), name.clone());
        refused(desk.run(move |a| a.set_role(&by, &whose, role)).await?, &name)?;
        Ok((Note::taken(), see("/admin")).into_response())
    };
    answer(set.await)
}

#[derive(Deserialize)]
struct NewPassword {
    name: String,
    password: String,
}

async fn set_password(who: Who, Extension(desk): Extension<Desk>, sent: Sent<NewPassword>) -> Response {
    let set = async {
        who.must(Role::Admin)?;
        let NewPassword { name, password } = form(sent)?;
        secret::check_password(&name, &password).map_err(unprocessable)?;
        let password = desk.hash(password).await?;
        let (by, whose) = (who.actor(), name.clone());
        refused(desk.run(move |a| a.set_password(&by, &whose, &password, None)).await?, &name)?;
        Ok((Note::taken(), see("/admin")).into_response())
    };
    answer(set.await)
}

async fn remove(who: Who, Extension(desk): Extension<Desk>, sent: Sent<Named>) -> Response {
    let removed = async {
        who.must(Role::Admin)?;
        let Named { name } = form(sent)?;
        let (by, whose) = (who.actor(), name.clone());
        refused(desk.run(move |a| a.remove(&by, &whose)).await?, &name)?;
        Ok((Note::taken(), see("/admin")).into_response())
    };
    answer(removed.await)
}

#[derive(Deserialize)]
struct NewToken {
    name: String,
    scope: Scope,
    #[serde(default)]
    days: String,
}

/// When a token that is made now ends.
pub fn ends(days: Option<u32>) -> crate::error::Result<Option<Timestamp>> {
    let Some(days) = days else { return Ok(None) };
    if days == 0 || days > MOST_DAYS {
        return Err(crate::error::Error::usage(format!("a token may hold between 1 and {MOST_DAYS} days")));
    }
    let after = SignedDuration::from_hours(24 * i64::from(days));
    Ok(Some(Timestamp::now().checked_add(after).unwrap_or(Timestamp::MAX)))
}

async fn add_token(
    who: Who,
    State(app): State<App>,
    Extension(desk): Extension<Desk>,
    sent: Sent<NewToken>,
) -> Response {
    let added = async {
        who.must(Role::Admin)?;
        let NewToken { name, scope, days } = form(sent)?;
        let name = name.trim().to_owned();
        secret::check_name(&name).map_err(unprocessable)?;
        let days = match days.trim() {
            "" => None,
            days => Some(days.parse().map_err(|_| Problem::unprocessable(format!("{days:?} is no number of days")))?),
        };
        let until = ends(days).map_err(unprocessable)?;
        let token = format!("{}{}", secret::TOKEN_PREFIX, secret::token().map_err(|e| Problem::internal(&e))?);
        let (by, new, kept) = (who.actor(), name.clone(), secret::digest(&token));
        refused(desk.run(move |a| a.add_token(&by, &new, scope, &kept, until)).await?, &name)?;
        let told = html! {
            (message("The token is made. Copy it now: it is not shown again."))
            p { label for="token" { "Token " (name) ", " (scope.as_str()) } }
            p { input #token .token type="text" readonly value=(token); }
        };
        let page = show_overview(&who, &app, &desk, told).await?;
        Ok((StatusCode::CREATED, Note::taken(), page).into_response())
    };
    answer(added.await)
}

async fn revoke(who: Who, Extension(desk): Extension<Desk>, sent: Sent<Named>) -> Response {
    let revoked = async {
        who.must(Role::Admin)?;
        let Named { name } = form(sent)?;
        let (by, which) = (who.actor(), name.clone());
        refused(desk.run(move |a| a.revoke_token(&by, &which)).await?, &name)?;
        Ok((Note::taken(), see("/admin")).into_response())
    };
    answer(revoked.await)
}

#[derive(Deserialize)]
struct DefectTypes {
    names: String,
}

async fn defect_types(who: Who, State(app): State<App>, sent: Sent<DefectTypes>) -> Response {
    let set = async {
        who.must(Role::Admin)?;
        let mut names: Vec<String> = Vec::new();
        for name in form(sent)?.names.lines().map(str::trim).filter(|name| !name.is_empty()) {
            if name.chars().count() > MAX_DEFECT_TYPE {
                return Err(Problem::unprocessable(format!("a defect type has at most {MAX_DEFECT_TYPE} characters")));
            }
            if !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        if names.len() > MAX_DEFECT_TYPES {
            return Err(Problem::unprocessable(format!("a site has at most {MAX_DEFECT_TYPES} defect types")));
        }
        let note = Note::new("defect types", "", names.join(", "));
        app.run(move |store| store.set_defect_types(&names)).await?;
        Ok((note, see("/admin")).into_response())
    };
    answer(set.await)
}

async fn audit(
    who: Who,
    Extension(desk): Extension<Desk>,
    query: Result<Query<api::AuditQuery>, QueryRejection>,
) -> Response {
    let listed = async {
        who.must(Role::Admin)?;
        let Query(query) = query.map_err(|e| Problem::bad_request(e.body_text()))?;
        let (entries, next) = api::page_of(&desk, &query).await?;
        let body = html! {
            @if entries.is_empty() { p { "Nothing yet." } } @else { (audit_table(&entries)) }
            nav .pager aria-label="Newer and older" {
                @if query.before.is_some() { a .button href="/admin/audit" { "⇤ Newest" } }
                @if let Some(next) = next { a .button rel="next" href={ "/admin/audit?before=" (next) } { "Older →" } }
            }
        };
        Ok(page_for(&who, Here::Admin, "Audit", body))
    };
    answer(listed.await)
}

fn audit_table(entries: &[Entry]) -> Markup {
    html! {
        table .table {
            thead { tr { th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "How" } th scope="col" { "From" }
                th scope="col" { "What" } th scope="col" { "To what" } th scope="col" { "Detail" } } }
            tbody {
                @for e in entries {
                    tr {
                        td { (show::time(e.at)) } td { (e.who) } td { (e.via) } td { (e.from) }
                        td { (e.action) } td { (e.target) } td { (e.detail) }
                    }
                }
            }
        }
    }
}
