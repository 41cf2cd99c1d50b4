//! Lets requests in: who asks is found out here, and whether that one may do such a thing at all; handlers ask for more with
//! [`Who::must`]. What changed something goes into the audit.
//!
//! Thread: middleware on the server's thread, after the guard; the database is read through [`Desk::run`].
//!
//! Invariants:
//! 1. Without accounts a server that listens on loopback is open; any other shows only the way to the first account. With
//!    accounts nothing but [`Need::Open`] is answered to who is not known. Test: `roles_and_routes` in
//!    tests/review_accounts.rs.
//! 2. A route that is not named in [`need`] is not open, and changes nothing for a viewer. Test: `needs`.
//! 3. A request that changes something and is known by its cookie must say that it comes from this server's pages. Test:
//!    `strangers_pages_cannot_act` in tests/review_accounts.rs.
//! 4. A body, other than an upload's, which has a time of its own, comes within [`BODY_TIME`]. Test: `slow_bodies_are_cut`
//!    in tests/review_abuse.rs.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, LOCATION, ORIGIN, SET_COOKIE, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use jiff::Timestamp;
use tokio::time::{Sleep, sleep};

use super::store::{Credential, Holder, Known};
use super::{Desk, Role, Scope, Stay, Via, Who, secret};
use crate::review::api::ANOMALIES;
use crate::review::guard::FETCH_SITE;
use crate::review::peer::Came;
use crate::review::problem::Problem;
use crate::review::upload;

/// How long a body may take.
pub const BODY_TIME: Duration = Duration::from_secs(30);

/// What a request needs before a handler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Open,
    /// To be known, by whatever.
    Known,
    /// To look.
    Read,
    /// To judge; handlers may need more.
    Write,
    /// To deliver.
    Upload,
}

/// What a request needs; whatever is not named here is not open.
pub fn need(method: &Method, path: &str) -> Need {
    let safe = method.is_safe();
    let of_line = |what: &str| {
        let line = path.strip_prefix("/api/v1/lines/").and_then(|rest| rest.strip_suffix(what));
        line.is_some_and(|line| !line.is_empty() && !line.contains('/'))
    };
    match path {
        "/login" | "/welcome" => Need::Open,
        "/healthz" if safe => Need::Open,
        _ if safe && path.starts_with("/assets/") => Need::Open,
        // a line asks whether somebody looks, and sends pictures
        _ if of_line("/picture") => Need::Upload,
        _ if safe => Need::Read,
        "/logout" | "/account/password" | "/account/session" => Need::Known,
        _ if method == Method::POST && (path == ANOMALIES || of_line("/report")) => Need::Upload,
        _ => Need::Write,
    }
}

pub(super) fn may(who: &Who, need: Need) -> bool {
    match (need, who.via) {
        (Need::Open | Need::Known, _) => true,
        (Need::Upload, Via::Token(scope)) => scope != Scope::Read,
        (Need::Upload, _) => who.role == Role::Admin,
        (_, Via::Token(Scope::Upload)) => false,
        (Need::Read, _) => true,
        (Need::Write, _) => who.role >= Role::Reviewer,
    }
}

/// What a handler did, for the audit: put it into the response as an extension. One that changes something and leaves none
/// is recorded by its method and path.
#[derive(Debug, Clone)]
pub struct Note(Option<(&'static str, String, String)>);

impl Note {
    /// What was done, to what, in short.
    pub fn new(action: &'static str, target: impl ToString, detail: impl Into<String>) -> Extension<Note> {
        Extension(Note(Some((action, target.to_string(), detail.into().trim().to_owned()))))
    }
    /// It is in the audit already, or need not be.
    pub fn taken() -> Extension<Note> {
        Extension(Note(None))
    }
}

/// Middleware.
pub async fn gate(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let (mut parts, mut body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let Some(came) = parts.extensions.get::<Came>().cloned() else {
        return Problem::new(StatusCode::FORBIDDEN, "it is not known where the request came from").into_response();
    };
    let need = need(&method, &path);
    if !method.is_safe() && need != Need::Upload {
        body = Body::new(Timed { body, left: Box::pin(sleep(BODY_TIME)) });
    }
    let who = match find(&desk, &parts, &came, need).await {
        Ok(who) => who,
        Err(refusal) => {
            upload::read_over(Request::from_parts(parts, body)).await;
            return refusal;
        }
    };
    if let Some(who) = &who {
        let credential = credential(&parts.headers, came.secure);
        parts.extensions.insert(Stay { desk: desk.clone(), credential, who: who.clone() });
        parts.extensions.insert(who.clone());
    }
    let response = next.run(Request::from_parts(parts, body)).await;
    let done = response.status().is_success() || response.status().is_redirection();
    match who {
        Some(who) if done && !method.is_safe() && need != Need::Upload => {
            let note = response.extensions().get::<Note>().cloned();
            let (action, target, detail) = match note {
                Some(Note(Some(note))) => note,
                Some(Note(None)) => return response,
                None => ("request", path, method.to_string()),
            };
            // the thing is done: what cannot be recorded is in the log, where `run` says why
            let _ = desk.run(move |a| a.record(&who.actor(), action, &target, &detail)).await;
            response
        }
        _ => response,
    }
}

/// Who asks, or the answer to who may not. `None` where nobody needs to be known.
async fn find(desk: &Desk, request: &Parts, came: &Came, need: Need) -> Result<Option<Who>, Response> {
    let path = request.uri.path();
    if need == Need::Open && path != "/login" && path != "/welcome" {
        return Ok(None);
    }
    let headers = &request.headers;
    let credential = credential(headers, came.secure);
    let asked = credential.clone();
    let found = desk.run(move |a| a.who(&asked, Timestamp::now())).await.map_err(IntoResponse::into_response)?;
    let who = known(found, desk, Some(came.from));
    let forbidden = |detail: String| Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    let by_cookie = who.as_ref().is_some_and(|who| matches!(who.via, Via::Session(_)));
    if !request.method.is_safe()
        && (by_cookie || need == Need::Open)
        && !headers.contains_key(ORIGIN)
        && !headers.contains_key(FETCH_SITE)
    {
        return Err(forbidden("the request does not say that it comes from a page of this server (Origin)".into()));
    }
    let Some(who) = who else {
        if need == Need::Open {
            return Ok(None);
        }
        return Err(unknown(request, known_accounts(desk).await, &credential));
    };
    if !may(&who, need) {
        let what = match need {
            Need::Upload => "upload",
            Need::Write => "change anything",
            _ => "look",
        };
        let has = match who.via {
            Via::Token(scope) => format!("scope {}", scope.as_str()),
            _ => format!("role {}", who.role.as_str()),
        };
        return Err(forbidden(format!("\"{}\" has the {has}, which may not {what} here", who.name)));
    }
    if need == Need::Upload {
        let sender = if who.via == Via::Local { came.from.to_string() } else { who.name.clone() };
        desk.may_upload(&sender).map_err(IntoResponse::into_response)?;
    }
    Ok(Some(who))
}

/// Who that is; `None` for a stranger.
pub(super) fn known(found: Known, desk: &Desk, from: Option<IpAddr>) -> Option<Who> {
    match found {
        Known { accounts: false, .. } if !desk.wanted() => Some(Who { from, ..Who::local() }),
        Known { holder: Some(Holder::Account { name, role, session }), .. } => {
            Some(Who { name, role, via: Via::Session(session), from })
        }
        Known { holder: Some(Holder::Token { name, scope }), .. } => {
            let role = if scope == Scope::Admin { Role::Admin } else { Role::Viewer };
            Some(Who { name: format!("token {name}"), role, via: Via::Token(scope), from })
        }
        Known { holder: None, .. } => None,
    }
}

async fn known_accounts(desk: &Desk) -> bool {
    desk.run(|a| a.any()).await.unwrap_or(true)
}

/// The answer to who is not known: a page for people, 401 for programs.
fn unknown(request: &Parts, accounts: bool, credential: &Credential) -> Response {
    let path = request.uri.path();
    let page = request.method.is_safe() && !path.starts_with("/api/") && path != "/api";
    if page && !matches!(credential, Credential::Token(_)) {
        let to = if accounts { login_path(request) } else { "/welcome".to_owned() };
        let Ok(to) = HeaderValue::from_str(&to) else { return StatusCode::BAD_REQUEST.into_response() };
        return (StatusCode::SEE_OTHER, [(LOCATION, to)]).into_response();
    }
    let (detail, challenge) = match credential {
        _ if !accounts => ("this server has no accounts yet", "Bearer realm=\"linesight\""),
        Credential::Token(_) => (
            "the token is not known, has expired or was revoked",
            "Bearer realm=\"linesight\", error=\"invalid_token\"",
        ),
        Credential::Session(_) => ("the session has ended: log in again", "Bearer realm=\"linesight\""),
        Credential::None => ("this needs a login or an API token", "Bearer realm=\"linesight\""),
    };
    let problem = Problem::new(StatusCode::UNAUTHORIZED, detail).hint(if accounts {
        "send \"Authorization: Bearer TOKEN\", or log in at /login; an admin makes tokens at /admin"
    } else {
        "open the link that the server printed at its start, or run: linesight review user add"
    });
    ([(WWW_AUTHENTICATE, challenge)], problem).into_response()
}

fn login_path(request: &Parts) -> String {
    let wanted = request.uri.path_and_query().map_or("/", |p| p.as_str());
    if wanted == "/" {
        return "/login".into();
    }
    let next: String = url::form_urlencoded::byte_serialize(wanted.as_bytes()).collect();
    format!("/login?next={next}")
}

/// What the request presents; a token goes before a cookie.
fn credential(headers: &HeaderMap, secure: bool) -> Credential {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let value = value.to_str().unwrap_or("");
        let token = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        return Credential::Token(secret::digest(token.map_or("", |(_, token)| token.trim())));
    }
    let cookies = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let ours = cookies.filter_map(|c| c.trim().split_once('=')).find(|(name, _)| *name == cookie_name(secure));
    ours.map_or(Credential::None, |(_, value)| Credential::Session(secret::digest(value)))
}

/// Browsers take a cookie with the prefix only over TLS, for this host alone and all its paths.
fn cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-linesight" } else { "linesight" }
}

/// The header that sets the session's cookie, or clears it.
pub fn cookie(token: Option<&str>, secure: bool) -> [(axum::http::HeaderName, String); 1] {
    let (value, age) = match token {
        Some(token) => (token, super::sqlite::LONGEST.as_secs()),
        None => ("", 0),
    };
    let name = cookie_name(secure);
    let only_tls = if secure { "; Secure" } else { "" };
    [(SET_COOKIE, format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{only_tls}"))]
}

/// A body that must come in time.
struct Timed {
    body: Body,
    left: Pin<Box<Sleep>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // first, so that one that comes byte by byte is cut too
        if self.left.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new("the body took too long"))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs() {
        let table = [
            (Method::GET, "/healthz", Need::Open),
            (Method::POST, "/healthz", Need::Write),
            (Method::GET, "/assets/style.css", Need::Open),
            (Method::PUT, "/assets/style.css", Need::Write),
            (Method::POST, "/login", Need::Open),
            (Method::GET, "/login/", Need::Read),
            (Method::GET, "/", Need::Read),
            (Method::GET, "/api/v1/anything/new", Need::Read),
            (Method::DELETE, "/api/v1/anything/new", Need::Write),
            (Method::POST, "/api/v1/anomalies", Need::Upload),
            (Method::PUT, "/api/v1/anomalies", Need::Write),
            (Method::POST, "/api/v1/anomalies/", Need::Write),
            (Method::POST, "/api/v1/anomalies/x/reviews", Need::Write),
            (Method::POST, "/api/v1/lines/east/report", Need::Upload),
            (Method::POST, "/api/v1/lines//report", Need::Write),
            (Method::POST, "/api/v1/lines/a/b/report", Need::Write),
            (Method::GET, "/api/v1/lines/east/picture", Need::Upload),
            (Method::PUT, "/api/v1/lines/east/picture", Need::Upload),
            (Method::GET, "/api/v1/lines/east/live.mjpeg", Need::Read),
            (Method::POST, "/logout", Need::Known),
            (Method::from_bytes(b"PURGE").unwrap(), "/", Need::Write),
        ];
        for (method, path, wanted) in table {
            assert_eq!(need(&method, path), wanted, "{method} {path}");
        }
    }

    #[test]
    fn what_is_presented() {
        let of = |name: &'static str, value: &'static str, secure| {
            credential(
                &HeaderMap::from_iter([(axum::http::HeaderName::from_static(name), HeaderValue::from_static(value))]),
                secure,
            )
        };
        let (token, session) = (Credential::Token(secret::digest("abc")), Credential::Session(secret::digest("abc")));
        assert_eq!(of("authorization", "Bearer abc", true), token);
        assert_eq!(of("authorization", "bearer  abc", true), token);
        assert_eq!(of("authorization", "Basic abc", true), Credential::Token(secret::digest("")));
        assert_eq!(of("cookie", "a=b; linesight=abc", false), session);
        assert_eq!(of("cookie", "a=b; __Host-linesight=abc", true), session);
        assert_eq!(of("cookie", "linesight=abc", true), Credential::None, "one that was set without TLS");
        assert_eq!(of("cookie", "linesightx=abc", false), Credential::None);
    }

    #[test]
    fn cookies() {
        let [(_, set)] = cookie(Some("abc"), true);
        assert_eq!(set, "__Host-linesight=abc; Path=/; Max-Age=604800; HttpOnly; SameSite=Strict; Secure");
        let [(_, clear)] = cookie(None, false);
        assert_eq!(clear, "linesight=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    }
}
