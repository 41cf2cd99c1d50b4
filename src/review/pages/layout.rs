//! What all pages share: the static files, the frame around a page, and pages that say why there is none.
//!
//! Thread: none; pure functions and values that are made once.
//!
//! Invariants:
//! 1. Nothing is loaded from elsewhere and nothing is inline, so that the strict Content-Security-Policy holds. Tests:
//!    `nothing_is_inline` in pages/tests.rs, and every page in tests/ui.
//! 2. A static file may be cached for ever: its URL changes with its content. Test: `urls_follow_the_content`.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::hex::sha256;
use crate::review::accounts::{LOCAL, Role, Who};
use crate::review::api;
use crate::review::problem::Problem;

const ICON: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#0f766e"/><circle cx="16" cy="16" r="8" fill="none" stroke="#fff" stroke-width="2.5"/><circle cx="18.5" cy="13.5" r="3" fill="#fbbf24"/></svg>"##;

/// A static file.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
    sha256: String,
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let asset = |name: &'static str, text: &'static str| {
        let content_type = match name.rsplit_once('.') {
            Some((_, "css")) => "text/css; charset=utf-8",
            Some((_, "js")) => "text/javascript; charset=utf-8",
            _ => "image/svg+xml",
        };
        let sha256 = sha256(text);
        Asset { name, content_type, text, sha256 }
    };
    macro_rules! files {
        ($($name:literal),*) => {
            vec![asset("icon.svg", ICON), $(asset($name, include_str!(concat!("../../../assets/review/", $name)))),*]
        };
    }
    files!(
        "style.css",
        "pages.css",
        "common.js",
        "judge.js",
        "queue.js",
        "item.js",
        "zoom.js",
        "lines.js",
        "insight.js"
    )
});

/// Path of a static file.
fn asset_url(name: &str) -> String {
    let version = ASSETS.iter().find(|a| a.name == name).and_then(|a| a.sha256.get(..12)).unwrap_or("");
    format!("/assets/{name}?v={version}")
}

pub(super) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|a| a.name == name) {
        Some(a) => api::immutable(&headers, &a.sha256, a.content_type, a.text),
        None => unknown().await,
    }
}

/// The page for addresses that lead nowhere.
pub async fn unknown() -> Response {
    refusal(&Problem::not_found("there is no such page"))
}

/// A page that says why there is none.
pub(in crate::review) fn refusal(problem: &Problem) -> Response {
    let status = problem.status();
    let title = status.canonical_reason().unwrap_or("Error");
    let body = html! {
        main .empty {
            h1 { (title) }
            p { (problem.detail()) }
            p { a .button href="/" { "To the queue" } }
        }
    };
    (status, Html(Frame::new(title).around(body).into_string())).into_response()
}

/// Which of the pages in the header one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::review) enum Here {
    Queue,
    Lines,
    Insights,
    Exports,
    Account,
    Admin,
    Elsewhere,
}

/// A key and what it does.
pub(super) type Key = (&'static str, &'static str);

/// What stands around a page.
pub(in crate::review) struct Frame<'a> {
    title: &'a str,
    here: Here,
    who: Option<&'a Who>,
    scripts: &'a [&'a str],
    head: Markup,
    keys: &'a [Key],
}

impl<'a> Frame<'a> {
    /// A plain page with the title.
    pub fn new(title: &'a str) -> Frame<'a> {
        Frame { title, here: Here::Elsewhere, who: None, scripts: &[], head: html! {}, keys: &[] }
    }
    /// Which of the pages in the header it is.
    pub fn here(self, here: Here) -> Self {
        Frame { here, ..self }
    }
    /// Who looks at it.
    pub fn who(self, who: &'a Who) -> Self {
        Frame { who: Some(who), ..self }
    }
    /// The scripts of this page, in their order, after the common one.
    pub fn scripts(self, scripts: &'a [&'a str]) -> Self {
        Frame { scripts, ..self }
    }
    /// More in its head.
    pub fn head(self, head: Markup) -> Self {
        Frame { head, ..self }
    }
    /// The keys of this page, for the help.
    pub fn keys(self, keys: &'a [Key]) -> Self {
        Frame { keys, ..self }
    }

    /// The page.
    pub fn around(self, body: Markup) -> Markup {
        let tab = |page: Here, text: &str, to: &str| {
            html! { a href=(to) aria-current=[(page == self.here).then_some("page")] { (text) } }
        };
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · linesight" }
                    link rel="icon" href=(asset_url("icon.svg"));
                    link rel="stylesheet" href=(asset_url("style.css"));
                    link rel="stylesheet" href=(asset_url("pages.css"));
                    script defer src=(asset_url("common.js")) {}
                    @for name in self.scripts { script defer src=(asset_url(name)) {} }
                    (self.head)
                }
                body {
                    a .skip href="#content" { "Skip to the content" }
                    header .top {
                        a .brand href="/" aria-label="linesight review" {
                            img src=(asset_url("icon.svg")) alt="" width="28" height="28"; span { "linesight" }
                        }
                        nav .tabs aria-label="Pages" {
                            (tab(Here::Queue, "Queue", "/"))
                            (tab(Here::Lines, "Lines", "/lines"))
                            (tab(Here::Insights, "Insights", "/insights"))
                            (tab(Here::Exports, "Exports", "/exports"))
                        }
                        div .tools {
                            span #live .live hidden role="status" { "live" }
                            @if !self.keys.is_empty() {
                                button #help .plain type="button" hidden title="Keys of this page (?)" aria-label="Keys of this page" { "?" }
                            }
                            (account(self.who, self.here))
                        }
                    }
                    div #content tabindex="-1" { (body) }
                    div #notes .notes role="status" aria-live="polite" {}
                    @if !self.keys.is_empty() { (help(self.keys)) }
                }
            }
        }
    }
}

/// Who looks, and the pages about accounts where there are any.
fn account(who: Option<&Who>, here: Here) -> Markup {
    let current = |page: Here| (page == here).then_some("page");
    html! {
        @if let Some(who) = who.filter(|who| who.name != LOCAL) {
            nav .who aria-label="Account" {
                @if who.role == Role::Admin { a href="/admin" aria-current=[current(Here::Admin)] { "Admin" } }
                a href="/account" title=(format!("{}, {}", who.name, who.role.as_str())) aria-current=[current(Here::Account)] {
                    (who.name)
                }
            }
        }
    }
}

fn help(keys: &[Key]) -> Markup {
    html! {
        dialog #keys .keys aria-labelledby="keys-title" {
            form method="dialog" {
                h2 #keys-title { "Keys" }
                button .plain aria-label="Close" { "✕" }
            }
            dl {
                @for (key, what) in keys {
                    div { dt { @for k in key.split(' ') { kbd { (k) } " " } } dd { (what) } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_follow_the_content() {
        let urls: Vec<_> = ASSETS.iter().map(|a| asset_url(a.name)).collect();
        for (url, asset) in urls.iter().zip(ASSETS.iter()) {
            assert_eq!(*url, format!("/assets/{}?v={}", asset.name, &asset.sha256[..12]));
        }
    }

    #[test]
    fn everything_comes_from_this_server() {
        for asset in ASSETS.iter().filter(|a| a.name != "icon.svg") {
            for elsewhere in ["https://", "http://", "//cdn", "@import", "eval("] {
                assert!(!asset.text.contains(elsewhere), "{} has {elsewhere}", asset.name);
            }
        }
    }

    #[test]
    fn the_header_knows_who_looks() {
        let page = |name: &str, role| {
            let who = Who { name: name.into(), role, ..Who::local() };
            Frame::new("x").who(&who).around(html! {}).into_string()
        };
        assert!(!page(LOCAL, Role::Admin).contains("/account"));
        assert!(page("ann", Role::Admin).contains("href=\"/admin\""));
        let reviewer = page("<b>", Role::Reviewer);
        assert!(reviewer.contains("/account") && !reviewer.contains("/admin") && reviewer.contains("&lt;b&gt;"));
    }
}
