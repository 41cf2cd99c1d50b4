//! What is kept of accounts, and the trait that a storage of them must have.
//!
//! Invariants:
//! 1. No secret is kept: passwords as argon2id, what sessions, tokens and links present as SHA-256. Test:
//!    `no_secret_is_in_the_database` in tests/review_accounts.rs.
//! 2. A change and its line in the audit are kept together or not at all; no line is changed or deleted. Tests:
//!    `every_change_is_in_the_audit`, `the_audit_only_grows` in sqlite.rs.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Role, Scope};
use crate::error::Result;

/// The tables, as one step of the store's migrations.
pub const TABLES: &str = "
    CREATE TABLE accounts (
        key        TEXT PRIMARY KEY NOT NULL, -- the name in lower case
        name       TEXT NOT NULL,
        role       TEXT NOT NULL,
        password   TEXT NOT NULL,             -- argon2id, PHC string
        created_at INTEGER NOT NULL,          -- nanoseconds since 1970, UTC
        login_at   INTEGER
    ) STRICT;
    CREATE TABLE sessions (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        token      TEXT NOT NULL UNIQUE,      -- SHA-256 of what the cookie has
        account    TEXT NOT NULL REFERENCES accounts (key) ON DELETE CASCADE,
        created_at INTEGER NOT NULL,
        seen_at    INTEGER NOT NULL,
        origin     TEXT NOT NULL,
        agent      TEXT NOT NULL
    ) STRICT;
    CREATE INDEX sessions_by_account ON sessions (account, id);
    CREATE TABLE tokens (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        name       TEXT NOT NULL UNIQUE,
        token      TEXT NOT NULL UNIQUE,      -- SHA-256 of what is presented
        scope      TEXT NOT NULL,
        created_by TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        used_at    INTEGER,
        revoked_at INTEGER
    ) STRICT;
    CREATE TABLE welcome (                    -- the link to the first account
        token TEXT PRIMARY KEY NOT NULL       -- SHA-256 of its key
    ) STRICT;
    CREATE TABLE audit (
        seq    INTEGER PRIMARY KEY AUTOINCREMENT,
        at     INTEGER NOT NULL,
        who    TEXT NOT NULL,
        via    TEXT NOT NULL,
        origin TEXT NOT NULL,
        action TEXT NOT NULL,
        target TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END;
    CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END;
";

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    pub name: String,
    pub role: Role,
    pub created_at: Timestamp,
    pub login_at: Option<Timestamp>,
}

/// Where somebody is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: i64,
    pub created_at: Timestamp,
    pub seen_at: Timestamp,
    /// Address it was opened from.
    pub from: String,
    /// What the browser calls itself.
    pub agent: String,
}

/// An API token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiToken {
    pub name: String,
    pub scope: Scope,
    pub created_by: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl ApiToken {
    /// Whether it opens anything.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// Who does something, for the audit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor {
    pub who: String,
    /// `local`, `session`, `token`, `command line`, `link`, `server`, or nothing for who is not known yet.
    pub via: String,
    /// Address.
    pub from: String,
}

impl Actor {
    /// What removes anomalies that need not be kept.
    pub fn retention() -> Actor {
        Actor { who: "retention".into(), via: "server".into(), from: String::new() }
    }
    /// Whoever runs the program on the server's machine.
    pub fn command_line() -> Actor {
        Actor { who: "command line".into(), via: "command line".into(), from: String::new() }
    }
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Entry {
    /// Rises.
    pub seq: i64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub who: String,
    pub via: String,
    pub from: String,
    /// One word or two: `login`, `account add`, `review`.
    pub action: String,
    /// What it was done to.
    pub target: String,
    pub detail: String,
}

/// What a request presents, as SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    None,
    Session(String),
    Token(String),
}

/// Whom a credential belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Account { name: String, role: Role, session: i64 },
    Token { name: String, scope: Scope },
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Whether there is any account.
    pub accounts: bool,
    pub holder: Option<Holder>,
}

/// How a change went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is no such account, token or session.
    Unknown,
    /// The name is in use.
    Taken,
    /// Without it nobody could manage accounts.
    LastAdmin,
    /// Accounts or sessions are as many as there may be.
    Full,
}

/// Keeps accounts, sessions, tokens and the audit. Every call blocks; what it changed is on disk when it returns.
pub trait Accounts: Send + Sync + 'static {
    /// Whether there is any account.
    fn any(&self) -> Result<bool>;
    /// All accounts, by name.
    fn accounts(&self) -> Result<Vec<Account>>;
    /// The name as it is written, and the password's hash.
    fn password(&self, name: &str) -> Result<Option<(String, String)>>;
    /// Adds an account; the first must be an admin.
    fn add(&self, by: &Actor, name: &str, role: Role, password: &str) -> Result<Outcome>;
    /// Changes what an account may do.
    fn set_role(&self, by: &Actor, name: &str, role: Role) -> Result<Outcome>;
    /// Changes a password and ends the account's sessions, but for `keep`.
    fn set_password(&self, by: &Actor, name: &str, password: &str, keep: Option<i64>) -> Result<Outcome>;
    /// Removes an account and ends its sessions.
    fn remove(&self, by: &Actor, name: &str) -> Result<Outcome>;

    /// Makes this the only key to the first account.
    fn offer(&self, key: &str) -> Result<()>;
    /// Whether the key is the one to the first account.
    fn offered(&self, key: &str) -> Result<bool>;
    /// Makes the first account and uses up the key; `Unknown` when the key is not the one.
    fn first(&self, by: &Actor, key: &str, name: &str, password: &str) -> Result<Outcome>;

    /// Opens a session of an account that is there.
    fn open_session(&self, by: &Actor, token: &str, agent: &str, now: Timestamp) -> Result<Outcome>;
    /// Who presents this. Notes that it was used, at most once a minute.
    fn who(&self, credential: &Credential, now: Timestamp) -> Result<Known>;
    /// The account's sessions that have not expired, newest first.
    fn sessions(&self, name: &str, now: Timestamp) -> Result<Vec<Session>>;
    /// Ends one.
    fn close_session(&self, by: &Actor, name: &str, id: i64) -> Result<Outcome>;

    /// Adds a token.
    fn add_token(
        &self,
        by: &Actor,
        name: &str,
        scope: Scope,
        token: &str,
        expires_at: Option<Timestamp>,
    ) -> Result<Outcome>;
    /// All tokens, newest first.
    fn tokens(&self) -> Result<Vec<ApiToken>>;
    /// Revokes a token for good.
    fn revoke_token(&self, by: &Actor, name: &str) -> Result<Outcome>;

    /// Adds a line to the audit.
    fn record(&self, by: &Actor, action: &str, target: &str, detail: &str) -> Result<()>;
    /// Newest first, those before `before`.
    fn audit(&self, before: Option<i64>, limit: usize) -> Result<Vec<Entry>>;
}
