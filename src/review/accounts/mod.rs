//! Who asks, and what they may do: local accounts, their sessions, API tokens, and the record of what was done with them.
//!
//! [`store`] and [`sqlite`] keep, [`secret`] makes and checks what must not be known, [`throttle`] slows guessing, [`desk`] is
//! what handlers use, [`gate`] lets requests in, [`stay`] ends streams, [`pages`], [`admin`] and [`api`] are what people see.
//!
//! Thread: handlers run on the server's thread; whatever reads the database or hashes goes through [`desk::Desk`].
//!
//! Invariants:
//! 1. Each role includes those before it. Test: `roles_are_ordered`.

pub mod admin;
pub mod api;
pub mod desk;
pub mod gate;
pub mod pages;
pub mod secret;
pub mod sqlite;
pub mod stay;
pub mod store;
pub mod throttle;

use std::net::IpAddr;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};

use super::api::App;
use super::problem::Problem;
pub use desk::Desk;
pub use gate::Note;
pub use sqlite::SqliteAccounts;
pub use stay::Stay;
pub use store::{Accounts, Actor, TABLES};

/// Name of who asks where there are no accounts.
pub const LOCAL: &str = "local";

/// The routes of accounts: pages and API.
pub fn routes() -> Router<App> {
    pages::routes().merge(admin::routes()).merge(api::routes())
}

/// What an account may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Viewer,
    /// Judge anomalies.
    Reviewer,
    /// Manage accounts, tokens and what is kept.
    Admin,
}

impl Role {
    /// All, from least to most.
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Reviewer, Role::Admin];

    /// The word used in JSON, the database and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Reviewer => "reviewer",
            Role::Admin => "admin",
        }
    }
    /// The inverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Role> {
        Self::ALL.into_iter().find(|r| r.as_str() == word)
    }
}

/// What an API token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Deliver anomalies and line reports, nothing else.
    Upload,
    /// Look, as a viewer does.
    Read,
    /// Whatever an admin may.
    Admin,
}

impl Scope {
    /// All.
    pub const ALL: [Scope; 3] = [Scope::Upload, Scope::Read, Scope::Admin];

    /// The word used in JSON, the database and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Upload => "upload",
            Scope::Read => "read",
            Scope::Admin => "admin",
        }
    }
    /// The inverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Scope> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }
}

/// How it is known who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Nobody has an account, and the server listens on loopback only.
    Local,
    /// A cookie, with the session's number.
    Session(i64),
    /// An API token.
    Token(Scope),
}

impl Via {
    /// The word in the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Via::Local => "local",
            Via::Session(_) => "session",
            Via::Token(_) => "token",
        }
    }
}

/// Who asks. The gate puts it into every request that it lets through; handlers take it as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Account, token, or [`LOCAL`].
    pub name: String,
    pub role: Role,
    pub via: Via,
    /// Where the request came from; unknown only in tests of handlers.
    pub from: Option<IpAddr>,
}

impl Who {
    /// Whoever reaches a server without accounts, which listens on loopback only.
    pub fn local() -> Who {
        Who { name: LOCAL.into(), role: Role::Admin, via: Via::Local, from: None }
    }
    /// Refuses who may less.
    pub fn must(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let detail = format!("this needs the role {}, \"{}\" has {}", role.as_str(), self.name, self.role.as_str());
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }
    /// For the audit.
    pub fn actor(&self) -> Actor {
        let from = self.from.map(|ip| ip.to_string()).unwrap_or_default();
        Actor { who: self.name.clone(), via: self.via.as_str().into(), from }
    }
}

impl<S: Sync> FromRequestParts<S> for Who {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Who, Problem> {
        let who = parts.extensions.get::<Who>().cloned();
        who.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "the request says not who makes it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered() {
        assert!(Role::ALL.is_sorted());
        for (has, needs) in Role::ALL.iter().flat_map(|has| Role::ALL.map(|needs| (*has, needs))) {
            let who = Who { role: has, ..Who::local() };
            assert_eq!(who.must(needs).is_ok(), has as u8 >= needs as u8, "{has:?} {needs:?}");
        }
        assert!(Role::ALL.iter().all(|r| Role::from_word(r.as_str()) == Some(*r)));
        assert!(Scope::ALL.iter().all(|s| Scope::from_word(s.as_str()) == Some(*s)));
    }
}
