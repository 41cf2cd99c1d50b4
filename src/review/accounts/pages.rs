//! The pages of one's own account: login, the first account, password and sessions. Plain forms, without JavaScript.
//!
//! Thread: handlers run on the server's thread; what blocks goes through [`Desk`].
//!
//! Invariants:
//! 1. After a login one gets to a path of this server and nowhere else. Test: `next_stays_here`.
//! 2. What was typed is shown as text. Test: `markup_in_forms_is_text` in tests/review_accounts.rs.

use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Form, Query};
use axum::http::header::{LOCATION, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;

use super::desk::{Refused, TooMany};
use super::gate::cookie;
use super::store::{Account, Actor, Outcome, Session};
use super::{Desk, Note, Role, Via, Who, secret};
use crate::review::api::App;
use crate::review::pages::{self, Frame, Here};
use crate::review::peer::Came;
use crate::review::problem::Problem;
use crate::review::show;

/// Bytes of a form.
const MAX_FORM: usize = 64 << 10;

/// The routes of these pages.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/login", get(login_page).post(login))
        .route("/logout", post(logout))
        .route("/welcome", get(welcome_page).post(welcome))
        .route("/account", get(account))
        .route("/account/password", post(password))
        .route("/account/session", post(end_session))
        .layer(DefaultBodyLimit::max(MAX_FORM))
}

/// A form as it came, or what is wrong with it.
pub(super) type Sent<T> = Result<Form<T>, FormRejection>;

pub(super) fn form<T>(sent: Sent<T>) -> Result<T, Problem> {
    sent.map(|Form(form)| form).map_err(|e| Problem::new(e.status(), e.body_text()))
}

/// A page, or the page that says why there is none.
pub(super) fn answer(page: Result<Response, Problem>) -> Response {
    page.unwrap_or_else(|problem| pages::refusal(&problem))
}

/// A page for who may not be known yet.
fn page(title: &str, body: Markup) -> Response {
    let body = html! { main .narrow { h1 { (title) } (body) } };
    Html(Frame::new(title).around(body).into_string()).into_response()
}

/// A page for who is known.
pub(super) fn page_for(who: &Who, here: Here, title: &str, body: Markup) -> Response {
    let body = html! { main .narrow { h1 { (title) } (body) } };
    Html(Frame::new(title).here(here).who(who).around(body).into_string()).into_response()
}

/// To another page, so that loading it anew sends nothing again.
pub(super) fn see(path: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, path.to_owned())]).into_response()
}

/// What came of the last form.
pub(super) fn message(text: &str) -> Markup {
    html! { p .message role="alert" { (text) } }
}

pub(super) fn field(id: &str, label: &str, kind: &str, complete: &str, value: &str) -> Markup {
    html! {
        p {
            label for=(id) { (label) }
            input #(id) name=(id) type=(kind) autocomplete=(complete) value=[(!value.is_empty()).then_some(value)] required;
        }
    }
}

/// Both fields of a new password.
fn new_password() -> Markup {
    let note = format!("{} characters or more", secret::PASSWORD.0);
    html! {
        (field("password", "New password", "password", "new-password", ""))
        p .note { (note) }
        (field("again", "The same again", "password", "new-password", ""))
    }
}

fn agent(headers: &HeaderMap) -> String {
    headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned()
}

/// A path of this server, whatever was asked for.
fn next(wanted: Option<&str>) -> &str {
    match wanted {
        Some(path)
            if path.starts_with('/')
                && !path.starts_with("//")
                && !path.contains('\\')
                && path.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            path
        }
        _ => "/",
    }
}

#[derive(Debug, Default, Deserialize)]
struct LoginQuery {
    next: Option<String>,
}

async fn login_page(
    who: Option<Extension<Who>>,
    Extension(desk): Extension<Desk>,
    query: Result<Query<LoginQuery>, QueryRejection>,
) -> Response {
    let wanted = query.ok().and_then(|Query(query)| query.next);
    if who.is_some() {
        return see(next(wanted.as_deref()));
    }
    match desk.run(|a| a.any()).await {
        Ok(true) => login_form(None, "", next(wanted.as_deref())),
        Ok(false) => see("/welcome"),
        Err(problem) => pages::refusal(&problem),
    }
}

fn login_form(wrong: Option<&str>, name: &str, next: &str) -> Response {
    page(
        "Log in",
        html! {
            @if let Some(wrong) = wrong { (message(wrong)) }
            form .form method="post" action="/login" {
                (field("name", "Name", "text", "username", name))
                (field("password", "Password", "password", "current-password", ""))
                input type="hidden" name="next" value=(next);
                p { button .button type="submit" { "Log in" } }
            }
        },
    )
}

#[derive(Deserialize)]
struct LoginForm {
    name: String,
    password: String,
    #[serde(default)]
    next: Option<String>,
}

async fn login(
    Extension(desk): Extension<Desk>,
    Extension(came): Extension<Came>,
    headers: HeaderMap,
    sent: Sent<LoginForm>,
) -> Response {
    let LoginForm { name, password, next: wanted } = match form(sent) {
        Ok(form) => form,
        Err(problem) => return pages::refusal(&problem),
    };
    let to = next(wanted.as_deref());
    match desk.login(name.trim(), password, came.from, &agent(&headers)).await {
        Ok(token) => (cookie(Some(&token), came.secure), Note::taken(), see(to)).into_response(),
        Err(Refused::Wrong) => {
            (StatusCode::UNAUTHORIZED, login_form(Some("Name or password is wrong."), &name, to)).into_response()
        }
        Err(Refused::TooMany(many)) => {
            (StatusCode::TOO_MANY_REQUESTS, many.header(), login_form(Some(&wait(&many)), &name, to)).into_response()
        }
        Err(Refused::Problem(problem)) => pages::refusal(&problem),
    }
}

fn wait(many: &TooMany) -> String {
    format!("Too many wrong passwords. Try again in {} s.", many.seconds())
}

async fn logout(who: Who, Extension(desk): Extension<Desk>, Extension(came): Extension<Came>) -> Response {
    let ended = match who.via {
        Via::Session(id) => desk.run(move |a| a.close_session(&who.actor(), &who.name, id)).await.map(|_| ()),
        Via::Local | Via::Token(_) => Ok(()),
    };
    match ended {
        Ok(()) => (cookie(None, came.secure), Note::taken(), see("/login")).into_response(),
        Err(problem) => pages::refusal(&problem),
    }
}

#[derive(Debug, Default, Deserialize)]
struct WelcomeQuery {
    key: Option<String>,
}

async fn welcome_page(
    Extension(desk): Extension<Desk>,
    query: Result<Query<WelcomeQuery>, QueryRejection>,
) -> Response {
    let key = query.ok().and_then(|Query(query)| query.key);
    let given = key.clone();
    let known = desk.run(move |a| Ok((a.any()?, given.map_or(Ok(false), |key| a.offered(&secret::digest(&key)))?)));
    match (known.await, key) {
        (Ok((_, true)), Some(key)) => welcome_form(None, "", &key),
        (Ok((true, _)), _) => see("/login"),
        (Ok((false, _)), key) => (
            StatusCode::UNAUTHORIZED,
            page(
                "Welcome",
                html! {
                    @if key.is_some() { (message("This link is not the one that the server printed last.")) }
                    p { "This server has no accounts yet." }
                    p {
                        "Open the link that it printed when it started, or run on its machine: "
                        code { "linesight review user add NAME --data DIR" }
                    }
                },
            ),
        )
            .into_response(),
        (Err(problem), _) => pages::refusal(&problem),
    }
}

fn welcome_form(wrong: Option<&str>, name: &str, key: &str) -> Response {
    page(
        "Welcome",
        html! {
            p { "Make the first account. It is an admin's and can make the others." }
            @if let Some(wrong) = wrong { (message(wrong)) }
            form .form method="post" action="/welcome" {
                (field("name", "Name", "text", "username", name))
                (new_password())
                input type="hidden" name="key" value=(key);
                p { button .button type="submit" { "Make the account" } }
            }
        },
    )
}

#[derive(Deserialize)]
struct WelcomeForm {
    key: String,
    name: String,
    password: String,
    again: String,
}

async fn welcome(
    Extension(desk): Extension<Desk>,
    Extension(came): Extension<Came>,
    headers: HeaderMap,
    sent: Sent<WelcomeForm>,
) -> Response {
    let made = async {
        let WelcomeForm { key, name, password, again } = form(sent)?;
        let name = name.trim().to_owned();
        let hashed = secret::digest(&key);
        let asked = hashed.clone();
        let gone =
            || Problem::new(StatusCode::FORBIDDEN, "this link has been used, or the server printed another since");
        if !desk.run(move |a| a.offered(&asked)).await? {
            return Err(gone());
        }
        if let Err(wrong) = fit(&name, &password, &again) {
            let form = welcome_form(Some(&wrong), &name, &key);
            return Ok((StatusCode::UNPROCESSABLE_ENTITY, form).into_response());
        }
        let password = desk.hash(password).await?;
        let by = Actor { who: name.clone(), via: "link".into(), from: came.from.to_string() };
        let owner = by.clone();
        match desk.run(move |a| a.first(&by, &hashed, &name, &password)).await? {
            Outcome::Done => {
                let token = desk.open(owner, &agent(&headers)).await?;
                Ok((cookie(Some(&token), came.secure), Note::taken(), see("/admin")).into_response())
            }
            _ => Err(gone()),
        }
    };
    answer(made.await)
}

/// What is wrong with a new account's name and password.
fn fit(name: &str, password: &str, again: &str) -> Result<(), String> {
    secret::check_name(name).and_then(|()| secret::check_password(name, password)).map_err(|e| e.to_string())?;
    if password == again { Ok(()) } else { Err("the two passwords differ".into()) }
}

async fn account(who: Who, Extension(desk): Extension<Desk>) -> Response {
    account_page(&who, &desk, None).await
}

async fn account_page(who: &Who, desk: &Desk, told: Option<&str>) -> Response {
    let name = who.name.clone();
    let now = Timestamp::now();
    let sessions = match who.via {
        Via::Session(_) => desk.run(move |a| a.sessions(&name, now)).await,
        Via::Local | Via::Token(_) => Ok(Vec::new()),
    };
    let sessions = match sessions {
        Ok(sessions) => sessions,
        Err(problem) => return pages::refusal(&problem),
    };
    let body = html! {
        @if let Some(told) = told { (message(told)) }
        @match who.via {
            Via::Local => p {
                "This server has no accounts: whoever reaches it may do everything. "
                a href="/admin" { "Make one" } " to change that."
            },
            Via::Token(scope) => p { "You are here with an API token of the scope " (scope.as_str()) "." },
            Via::Session(mine) => {
                p { "You are " strong { (who.name) } ", " (who.role.as_str()) "." }
                form .form method="post" action="/logout" { p { button .button type="submit" { "Log out" } } }
                h2 { "Password" }
                form .form method="post" action="/account/password" {
                    input type="hidden" name="username" autocomplete="username" value=(who.name);
                    (field("current", "Password now", "password", "current-password", ""))
                    (new_password())
                    p { button .button type="submit" { "Change it, end my other sessions" } }
                }
                h2 { "Sessions" }
                (session_table(&sessions, mine, now))
            }
        }
        @if who.role == Role::Admin { p { a .button href="/admin" { "Accounts and tokens" } } }
    };
    page_for(who, Here::Account, "Account", body)
}

fn session_table(sessions: &[Session], mine: i64, now: Timestamp) -> Markup {
    html! {
        table .table {
            thead { tr { th scope="col" { "From" } th scope="col" { "Browser" } th scope="col" { "Logged in" }
                th scope="col" { "Last seen" } th scope="col" { "End" } } }
            tbody {
                @for s in sessions {
                    tr {
                        td { (s.from) } td { (s.agent) } td { (show::time(s.created_at)) } td { (show::age(now, s.seen_at)) }
                        td {
                            @if s.id == mine { "this one" } @else {
                                form method="post" action="/account/session" {
                                    input type="hidden" name="id" value=(s.id);
                                    button .button type="submit" { "End" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct PasswordForm {
    current: String,
    password: String,
    again: String,
}

async fn password(
    who: Who,
    Extension(desk): Extension<Desk>,
    Extension(came): Extension<Came>,
    sent: Sent<PasswordForm>,
) -> Response {
    let changed = async {
        let PasswordForm { current, password, again } = form(sent)?;
        let Via::Session(mine) = who.via else {
            return Err(Problem::new(StatusCode::FORBIDDEN, "only who is logged in has a password"));
        };
        let (status, told) = if let Err(wrong) = fit(&who.name, &password, &again) {
            (StatusCode::UNPROCESSABLE_ENTITY, wrong)
        } else {
            match desk.verify(&who.name, current, came.from).await {
                Err(Refused::Wrong) => (StatusCode::FORBIDDEN, "Your password is another.".to_owned()),
                Err(Refused::TooMany(many)) => (StatusCode::TOO_MANY_REQUESTS, wait(&many)),
                Err(Refused::Problem(problem)) => return Err(problem),
                Ok(_) => {
                    let password = desk.hash(password).await?;
                    let by = who.clone();
                    desk.run(move |a| a.set_password(&by.actor(), &by.name, &password, Some(mine))).await?;
                    (StatusCode::OK, "Your password is changed and your other sessions are ended.".to_owned())
                }
            }
        };
        Ok((status, Note::taken(), account_page(&who, &desk, Some(&told)).await).into_response())
    };
    answer(changed.await)
}

#[derive(Deserialize)]
struct SessionForm {
    id: i64,
}

async fn end_session(who: Who, Extension(desk): Extension<Desk>, sent: Sent<SessionForm>) -> Response {
    let ended = async {
        let SessionForm { id } = form(sent)?;
        if !matches!(who.via, Via::Session(_)) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "only who is logged in has sessions"));
        }
        match desk.run(move |a| a.close_session(&who.actor(), &who.name, id)).await? {
            Outcome::Done => Ok((Note::taken(), see("/account")).into_response()),
            _ => Err(Problem::not_found("you have no such session")),
        }
    };
    answer(ended.await)
}

/// A row's cell with what is known of a login.
pub(super) fn last_login(account: &Account, now: Timestamp) -> String {
    account.login_at.map_or_else(|| "never".into(), |at| show::age(now, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_stays_here() {
        let table = [
            (Some("/"), "/"),
            (Some("/anomalies/1?line=a&x=%2F"), "/anomalies/1?line=a&x=%2F"),
            (Some("//evil.example"), "/"),
            (Some("/\\evil.example"), "/"),
            (Some("https://evil.example"), "/"),
            (Some("javascript:alert(1)"), "/"),
            (Some("/a\r\nSet-Cookie: x"), "/"),
            (Some("/a\t/b"), "/"),
            (Some(""), "/"),
            (None, "/"),
        ];
        for (wanted, found) in table {
            assert_eq!(next(wanted), found, "{wanted:?}");
        }
    }
}
