//! Who asks, and what they may do.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};

use super::problem::Problem;

/// The tables, as one step of the store's migrations.
pub(super) const TABLES: &str = "";

/// Name of who asks where there are no accounts.
pub const LOCAL: &str = "local";

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
    /// The word used in JSON, the database and on screen.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Reviewer => "reviewer",
            Role::Admin => "admin",
        }
    }
}

/// Who asks. The guard puts it into every request that it lets through; handlers take it as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Account, or [`LOCAL`].
    pub name: String,
    pub role: Role,
}

impl Who {
    /// Whoever reaches a server without accounts, which listens on loopback only.
    pub fn local() -> Who {
        Who { name: LOCAL.into(), role: Role::Admin }
    }
    /// Refuses who may less.
    pub fn must(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let detail = format!("this needs the role {}, \"{}\" has {}", role.as_str(), self.name, self.role.as_str());
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }
}

impl<S: Sync> FromRequestParts<S> for Who {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Who, Problem> {
        let who = parts.extensions.get::<Who>().cloned();
        who.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "the request says not who makes it"))
    }
}
