//! Accounts in `review.db`, on connections of their own.
//!
//! Thread: every call blocks. One connection writes and one reads, each behind its own lock; no call holds both. The command
//! line may change the same database while the server runs: nothing is remembered between calls.
//!
//! Invariants:
//! 1. Once there is an account there is an admin: the first is one, the last cannot go or become less. Test:
//!    `the_last_admin_stays`.
//! 2. A session or a token that expired, was ended or revoked opens nothing. Test: `expiry`.
//! 3. The key to the first account works once, and only while there is none. Test: `the_first_key_works_once`.
//! 4. A change and its line in the audit commit together. Tests: `every_change_is_in_the_audit`, `the_audit_only_grows`.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::store::{Account, Accounts, Actor, ApiToken, Credential, Entry, Holder, Known, Outcome, Session};
use super::{Role, Scope};
use crate::error::{Context, Error, Result};
use crate::review::store::{SqliteStore, nanoseconds};

const DATABASE: &str = "review.db";
const BUSY: Duration = Duration::from_secs(5);
/// A session of which nothing is heard for this long ends.
pub const IDLE: SignedDuration = SignedDuration::from_hours(12);
/// A session ends this long after the login.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Use of a session or a token is noted this often.
const NOTED: SignedDuration = SignedDuration::from_secs(60);
/// Sessions of an account; one more ends the oldest.
pub const SESSIONS: usize = 20;
/// Accounts, and tokens, revoked ones included.
pub const MOST: i64 = 1000;
/// Characters of a text in the audit.
const MAX_TEXT: usize = 500;

/// Accounts in SQLite.
#[derive(Debug)]
pub struct SqliteAccounts {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

impl SqliteAccounts {
    /// Opens the accounts of the store in `dir`, which has been opened before.
    pub fn open(dir: &Path) -> Result<SqliteAccounts> {
        Ok(SqliteAccounts { writer: Mutex::new(connect(dir)?), reader: Mutex::new(connect(dir)?) })
    }

    /// The same for a command: makes or migrates the store unless a server is using it, which has done so.
    pub fn open_beside(dir: &Path) -> Result<SqliteAccounts> {
        match SqliteStore::open(dir) {
            Ok(store) => drop(store),
            Err(_) if dir.join(DATABASE).is_file() => {
                let accounts = Self::open(dir)?;
                // a server of an older version may hold the folder
                return accounts.any().map(|_| accounts).map_err(|e| {
                    Error::usage(format!("the store in \"{}\" has no accounts yet", dir.display()))
                        .because(e)
                        .hint("stop the review server that uses it, run this command, and start the server anew")
                });
            }
            Err(e) => return Err(e),
        }
        Self::open(dir)
    }

    /// Runs a change and its line in the audit in one transaction; without an entry nothing is committed.
    fn change<T>(
        &self,
        by: &Actor,
        what: &str,
        work: impl FnOnce(&Transaction<'_>) -> Result<(T, Option<Done>)>,
    ) -> Result<T> {
        let cannot = || format!("cannot {what}");
        let mut writer = lock(&self.writer);
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        let (value, done) = work(&tx)?;
        if let Some(Done { action, target, detail }) = done {
            note(&tx, by, action, &target, &detail).failed(cannot)?;
            tx.commit().failed(cannot)?;
        }
        Ok(value)
    }
}

/// What goes into the audit.
struct Done {
    action: &'static str,
    target: String,
    detail: String,
}

impl Done {
    fn of(action: &'static str, target: &str, detail: impl Into<String>) -> (Outcome, Option<Done>) {
        (Outcome::Done, Some(Done { action, target: target.to_owned(), detail: detail.into() }))
    }
}

fn connect(dir: &Path) -> Result<Connection> {
    let path = dir.join(DATABASE);
    let cannot = || format!("cannot open the database \"{}\"", path.display());
    let db = Connection::open(&path).failed(cannot)?;
    db.busy_timeout(BUSY).failed(cannot)?;
    db.pragma_update(None, "synchronous", "FULL").failed(cannot)?;
    db.pragma_update(None, "foreign_keys", true).failed(cannot)?;
    Ok(db)
}

/// A poisoned lock is taken all the same: a transaction that was not committed has been rolled back.
fn lock(db: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    db.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accounts are known by their name in lower case.
fn key(name: &str) -> String {
    name.to_lowercase()
}

fn note(db: &Connection, by: &Actor, action: &str, target: &str, detail: &str) -> rusqlite::Result<()> {
    let short = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
    let at = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    db.execute(
        "INSERT INTO audit (at, who, via, origin, action, target, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![at, short(&by.who), by.via, by.from, action, short(target), short(detail)],
    )?;
    Ok(())
}

fn any(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM accounts)", [], |row| row.get(0))
}

/// Whether another account is an admin.
fn another_admin(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM accounts WHERE role = 'admin' AND key <> ?)";
    db.query_row(sql, [key(name)], |row| row.get(0))
}

fn role_of(db: &Connection, name: &str) -> rusqlite::Result<Option<Role>> {
    db.query_row("SELECT role FROM accounts WHERE key = ?", [key(name)], |row| role(row, 0)).optional()
}

fn time(row: &Row<'_>, at: usize) -> rusqlite::Result<Timestamp> {
    let ns: i64 = row.get(at)?;
    Timestamp::from_nanosecond(ns.into()).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, ns))
}

fn time_or_none(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(at)?.map(|_| time(row, at)).transpose()
}

fn unknown_word(at: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(at, "an unknown word".into(), rusqlite::types::Type::Text)
}

fn role(row: &Row<'_>, at: usize) -> rusqlite::Result<Role> {
    Role::from_word(&row.get::<_, String>(at)?).ok_or_else(|| unknown_word(at))
}

fn scope(row: &Row<'_>, at: usize) -> rusqlite::Result<Scope> {
    Scope::from_word(&row.get::<_, String>(at)?).ok_or_else(|| unknown_word(at))
}

fn insert_account(db: &Connection, name: &str, role: Role, password: &str) -> Result<Outcome> {
    let cannot = || format!("cannot add the account \"{name}\"");
    let now = nanoseconds(Timestamp::now())?;
    let count: i64 = db.query_row("SELECT COUNT(*) FROM accounts", [], |row| row.get(0)).failed(cannot)?;
    if count >= MOST {
        return Ok(Outcome::Full);
    }
    let added = db
        .execute(
            "INSERT INTO accounts (key, name, role, password, created_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            params![key(name), name, role.as_str(), password, now],
        )
        .failed(cannot)?;
    Ok(if added == 1 { Outcome::Done } else { Outcome::Taken })
}

fn session_ends(created_at: Timestamp, seen_at: Timestamp) -> Timestamp {
    let at = |from: Timestamp, after: SignedDuration| from.checked_add(after).unwrap_or(Timestamp::MAX);
    at(created_at, LONGEST).min(at(seen_at, IDLE))
}

impl Accounts for SqliteAccounts {
    fn any(&self) -> Result<bool> {
        any(&lock(&self.reader)).failed(|| "cannot read the accounts")
    }

    fn accounts(&self) -> Result<Vec<Account>> {
        let cannot = || "cannot read the accounts";
        let db = lock(&self.reader);
        let mut rows =
            db.prepare("SELECT name, role, created_at, login_at FROM accounts ORDER BY key").failed(cannot)?;
        let read = |row: &Row<'_>| {
            Ok(Account {
                name: row.get(0)?,
                role: role(row, 1)?,
                created_at: time(row, 2)?,
                login_at: time_or_none(row, 3)?,
            })
        };
        rows.query_map([], read).and_then(Iterator::collect).failed(cannot)
    }

    fn password(&self, name: &str) -> Result<Option<(String, String)>> {
        lock(&self.reader)
            .query_row("SELECT name, password FROM accounts WHERE key = ?", [key(name)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .failed(|| "cannot read the accounts")
    }

    fn add(&self, by: &Actor, name: &str, role: Role, password: &str) -> Result<Outcome> {
        self.change(by, "add an account", |db| {
            if role != Role::Admin && !any(db).failed(|| "cannot read the accounts")? {
                return Ok((Outcome::LastAdmin, None));
            }
            Ok(match insert_account(db, name, role, password)? {
                Outcome::Done => Done::of("account add", name, role.as_str()),
                other => (other, None),
            })
        })
    }

    fn set_role(&self, by: &Actor, name: &str, role: Role) -> Result<Outcome> {
        let cannot = || format!("cannot change the role of \"{name}\"");
        self.change(by, "change a role", |db| {
            let Some(had) = role_of(db, name).failed(cannot)? else { return Ok((Outcome::Unknown, None)) };
            if had == Role::Admin && role != Role::Admin && !another_admin(db, name).failed(cannot)? {
                return Ok((Outcome::LastAdmin, None));
            }
            db.execute("UPDATE accounts SET role = ? WHERE key = ?", params![role.as_str(), key(name)])
                .failed(cannot)?;
            Ok(Done::of("account role", name, format!("{} to {}", had.as_str(), role.as_str())))
        })
    }

    fn set_password(&self, by: &Actor, name: &str, password: &str, keep: Option<i64>) -> Result<Outcome> {
        let cannot = || format!("cannot change the password of \"{name}\"");
        self.change(by, "change a password", |db| {
            let changed = db
                .execute("UPDATE accounts SET password = ? WHERE key = ?", params![password, key(name)])
                .failed(cannot)?;
            if changed == 0 {
                return Ok((Outcome::Unknown, None));
            }
            let ended = db
                .execute("DELETE FROM sessions WHERE account = ? AND id IS NOT ?", params![key(name), keep])
                .failed(cannot)?;
            Ok(Done::of("account password", name, format!("{ended} other sessions ended")))
        })
    }

    fn remove(&self, by: &Actor, name: &str) -> Result<Outcome> {
        let cannot = || format!("cannot remove \"{name}\"");
        self.change(by, "remove an account", |db| {
            match role_of(db, name).failed(cannot)? {
                None => return Ok((Outcome::Unknown, None)),
                Some(Role::Admin) if !another_admin(db, name).failed(cannot)? => {
                    return Ok((Outcome::LastAdmin, None));
                }
                Some(_) => {}
            }
            db.execute("DELETE FROM accounts WHERE key = ?", [key(name)]).failed(cannot)?;
            Ok(Done::of("account remove", name, ""))
        })
    }

    fn offer(&self, key: &str) -> Result<()> {
        let cannot = || "cannot keep the key to the first account";
        let mut writer = lock(&self.writer);
        let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate).failed(cannot)?;
        tx.execute("DELETE FROM welcome", []).failed(cannot)?;
        tx.execute("INSERT INTO welcome (token) VALUES (?)", [key]).failed(cannot)?;
        tx.commit().failed(cannot)
    }

    fn offered(&self, key: &str) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM welcome WHERE token = ?) AND NOT EXISTS (SELECT 1 FROM accounts)";
        lock(&self.reader).query_row(sql, [key], |row| row.get(0)).failed(|| "cannot read the key to the first account")
    }

    fn first(&self, by: &Actor, key: &str, name: &str, password: &str) -> Result<Outcome> {
        let cannot = || "cannot add the first account";
        self.change(by, "add the first account", |db| {
            let used = db.execute("DELETE FROM welcome WHERE token = ?", [key]).failed(cannot)?;
            if used == 0 || any(db).failed(cannot)? {
                return Ok((Outcome::Unknown, None));
            }
            Ok(match insert_account(db, name, Role::Admin, password)? {
                Outcome::Done => Done::of("account add", name, "admin, the first"),
                other => (other, None),
            })
        })
    }

    fn open_session(&self, by: &Actor, token: &str, agent: &str, now: Timestamp) -> Result<Outcome> {
        let cannot = || format!("cannot open a session of \"{}\"", by.who);
        let at = nanoseconds(now)?;
        let (idle, longest) = (IDLE.as_nanos(), LONGEST.as_nanos());
        self.change(by, "open a session", |db| {
            let known = db.execute("UPDATE accounts SET login_at = ? WHERE key = ?", params![at, key(&by.who)]);
            if known.failed(cannot)? == 0 {
                return Ok((Outcome::Unknown, None)); // removed meanwhile
            }
            let since = |ns: i128| i64::try_from(i128::from(at) - ns).unwrap_or(0);
            db.execute(
                "DELETE FROM sessions WHERE seen_at < ? OR created_at < ?",
                params![since(idle), since(longest)],
            )
            .failed(cannot)?;
            db.execute(
                "INSERT INTO sessions (token, account, created_at, seen_at, origin, agent) VALUES (?, ?, ?, ?, ?, ?)",
                params![token, key(&by.who), at, at, by.from, agent.chars().take(200).collect::<String>()],
            )
            .failed(cannot)?;
            db.execute(
                "DELETE FROM sessions WHERE account = ?1 AND id NOT IN
                    (SELECT id FROM sessions WHERE account = ?1 ORDER BY id DESC LIMIT ?2)",
                params![key(&by.who), i64::try_from(SESSIONS).unwrap_or(i64::MAX)],
            )
            .failed(cannot)?;
            Ok(Done::of("login", &by.who, ""))
        })
    }

    fn who(&self, credential: &Credential, now: Timestamp) -> Result<Known> {
        let cannot = || "cannot read who asks";
        let at = nanoseconds(now)?;
        let stale = |seen: Timestamp| now.duration_since(seen) >= NOTED;
        let db = lock(&self.reader);
        let accounts = any(&db).failed(cannot)?;
        let (holder, touch) = match credential {
            Credential::None => (None, None),
            Credential::Session(token) => {
                let found = db
                    .query_row(
                        "SELECT s.id, a.name, a.role, s.created_at, s.seen_at FROM sessions s
                         JOIN accounts a ON a.key = s.account WHERE s.token = ?",
                        [token],
                        |row| Ok((row.get(0)?, row.get(1)?, role(row, 2)?, time(row, 3)?, time(row, 4)?)),
                    )
                    .optional()
                    .failed(cannot)?;
                match found {
                    Some((session, name, role, created_at, seen_at)) if now < session_ends(created_at, seen_at) => {
                        let touch = stale(seen_at).then_some(("UPDATE sessions SET seen_at = ? WHERE id = ?", session));
                        (Some(Holder::Account { name, role, session }), touch)
                    }
                    _ => (None, None),
                }
            }
            Credential::Token(token) => {
                let sql = format!("SELECT {TOKEN}, id FROM tokens WHERE token = ?");
                let found = db.query_row(&sql, [token], |row| Ok((read_token(row)?, row.get(7)?))).optional();
                match found.failed(cannot)? {
                    Some((kept, id)) if kept.holds(now) => {
                        let touch = kept.used_at.is_none_or(stale);
                        let touch = touch.then_some(("UPDATE tokens SET used_at = ? WHERE id = ?", id));
                        (Some(Holder::Token { name: kept.name, scope: kept.scope }), touch)
                    }
                    _ => (None, None),
                }
            }
        };
        drop(db);
        if let Some((sql, id)) = touch {
            lock(&self.writer).execute(sql, params![at, id]).failed(cannot)?;
        }
        Ok(Known { accounts, holder })
    }

    fn sessions(&self, name: &str, now: Timestamp) -> Result<Vec<Session>> {
        let cannot = || format!("cannot read the sessions of \"{name}\"");
        let db = lock(&self.reader);
        let mut rows = db
            .prepare("SELECT id, created_at, seen_at, origin, agent FROM sessions WHERE account = ? ORDER BY id DESC")
            .failed(cannot)?;
        let read = |row: &Row<'_>| {
            let (created_at, seen_at) = (time(row, 1)?, time(row, 2)?);
            Ok(Session { id: row.get(0)?, created_at, seen_at, from: row.get(3)?, agent: row.get(4)? })
        };
        let sessions: Vec<Session> = rows.query_map([key(name)], read).and_then(Iterator::collect).failed(cannot)?;
        Ok(sessions.into_iter().filter(|s| now < session_ends(s.created_at, s.seen_at)).collect())
    }

    fn close_session(&self, by: &Actor, name: &str, id: i64) -> Result<Outcome> {
        self.change(by, "end a session", |db| {
            let ended = db.execute("DELETE FROM sessions WHERE id = ? AND account = ?", params![id, key(name)]);
            Ok(match ended.failed(|| format!("cannot end session {id}"))? {
                0 => (Outcome::Unknown, None),
                _ => Done::of("logout", name, ""),
            })
        })
    }

    fn add_token(
        &self,
        by: &Actor,
        name: &str,
        scope: Scope,
        token: &str,
        expires_at: Option<Timestamp>,
    ) -> Result<Outcome> {
        let cannot = || format!("cannot add the token \"{name}\"");
        let (now, ends) = (nanoseconds(Timestamp::now())?, expires_at.map(nanoseconds).transpose()?);
        self.change(by, "add a token", |db| {
            let count: i64 = db.query_row("SELECT COUNT(*) FROM tokens", [], |row| row.get(0)).failed(cannot)?;
            if count >= MOST {
                return Ok((Outcome::Full, None));
            }
            let added = db
                .execute(
                    "INSERT INTO tokens (name, token, scope, created_by, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)
                     ON CONFLICT DO NOTHING",
                    params![name, token, scope.as_str(), by.who, now, ends],
                )
                .failed(cannot)?;
            if added == 0 {
                return Ok((Outcome::Taken, None));
            }
            let until = expires_at.map(|at| format!(", until {at:.0}")).unwrap_or_default();
            Ok(Done::of("token add", name, format!("{}{until}", scope.as_str())))
        })
    }

    fn tokens(&self) -> Result<Vec<ApiToken>> {
        let cannot = || "cannot read the tokens";
        let db = lock(&self.reader);
        let mut rows = db.prepare(&format!("SELECT {TOKEN} FROM tokens ORDER BY id DESC")).failed(cannot)?;
        rows.query_map([], read_token).and_then(Iterator::collect).failed(cannot)
    }

    fn revoke_token(&self, by: &Actor, name: &str) -> Result<Outcome> {
        let now = nanoseconds(Timestamp::now())?;
        self.change(by, "revoke a token", |db| {
            let sql = "UPDATE tokens SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL";
            let revoked = db.execute(sql, params![now, name]);
            Ok(match revoked.failed(|| format!("cannot revoke the token \"{name}\""))? {
                0 => (Outcome::Unknown, None),
                _ => Done::of("token revoke", name, ""),
            })
        })
    }

    fn record(&self, by: &Actor, action: &str, target: &str, detail: &str) -> Result<()> {
        note(&lock(&self.writer), by, action, target, detail).failed(|| "cannot write the audit")
    }

    fn audit(&self, before: Option<i64>, limit: usize) -> Result<Vec<Entry>> {
        let cannot = || "cannot read the audit";
        let db = lock(&self.reader);
        let mut rows = db
            .prepare(
                "SELECT seq, at, who, via, origin, action, target, detail FROM audit
                 WHERE seq < ? ORDER BY seq DESC LIMIT ?",
            )
            .failed(cannot)?;
        let read = |row: &Row<'_>| {
            Ok(Entry {
                seq: row.get(0)?,
                at: time(row, 1)?,
                who: row.get(2)?,
                via: row.get(3)?,
                from: row.get(4)?,
                action: row.get(5)?,
                target: row.get(6)?,
                detail: row.get(7)?,
            })
        };
        let page = params![before.unwrap_or(i64::MAX), i64::try_from(limit).unwrap_or(i64::MAX)];
        rows.query_map(page, read).and_then(Iterator::collect).failed(cannot)
    }
}

const TOKEN: &str = "name, scope, created_by, created_at, expires_at, used_at, revoked_at";

fn read_token(row: &Row<'_>) -> rusqlite::Result<ApiToken> {
    Ok(ApiToken {
        name: row.get(0)?,
        scope: scope(row, 1)?,
        created_by: row.get(2)?,
        created_at: time(row, 3)?,
        expires_at: time_or_none(row, 4)?,
        used_at: time_or_none(row, 5)?,
        revoked_at: time_or_none(row, 6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> (tempfile::TempDir, SqliteAccounts) {
        let dir = tempfile::tempdir().unwrap();
        let accounts = SqliteAccounts::open_beside(dir.path()).unwrap();
        (dir, accounts)
    }

    fn by(who: &str) -> Actor {
        Actor { who: who.into(), via: "session".into(), from: "10.0.0.7".into() }
    }

    fn after(now: Timestamp, after: SignedDuration) -> Timestamp {
        now.checked_add(after).unwrap()
    }

    #[test]
    fn the_last_admin_stays() {
        let (_dir, a) = accounts();
        let me = by("x");
        assert_eq!(a.add(&me, "eve", Role::Viewer, "h").unwrap(), Outcome::LastAdmin, "the first must be an admin");
        assert_eq!(a.add(&me, "Ann", Role::Admin, "h").unwrap(), Outcome::Done);
        assert_eq!(a.add(&me, "aNN", Role::Viewer, "h").unwrap(), Outcome::Taken);
        assert_eq!(a.set_role(&me, "ann", Role::Reviewer).unwrap(), Outcome::LastAdmin);
        assert_eq!(a.remove(&me, "ann").unwrap(), Outcome::LastAdmin);
        assert_eq!(a.remove(&me, "nobody").unwrap(), Outcome::Unknown);
        assert_eq!(a.add(&me, "bob", Role::Admin, "h").unwrap(), Outcome::Done);
        assert_eq!(a.set_role(&me, "ann", Role::Viewer).unwrap(), Outcome::Done);
        assert_eq!(a.remove(&me, "bob").unwrap(), Outcome::LastAdmin);
        assert_eq!(a.remove(&me, "Ann").unwrap(), Outcome::Done);
        assert_eq!(a.accounts().unwrap().len(), 1);
    }

    #[test]
    fn expiry() {
        let (_dir, a) = accounts();
        let now = Timestamp::now();
        a.add(&by("x"), "ann", Role::Admin, "h").unwrap();
        let known = |token: &str, at| a.who(&Credential::Session(token.into()), at).unwrap().holder.is_some();
        assert_eq!(a.open_session(&by("nobody"), "t", "", now).unwrap(), Outcome::Unknown);
        a.open_session(&by("ann"), "s1", "", now).unwrap();
        assert!(known("s1", now) && !known("s2", now));
        assert!(!known("s1", after(now, IDLE)), "idle");
        // seen every ten hours, it goes on for seven days
        let mut at = now;
        while at < after(now, LONGEST) {
            assert!(known("s1", at), "{at}");
            at = after(at, SignedDuration::from_hours(10));
        }
        assert!(!known("s1", after(now, LONGEST)), "too old");
        assert_eq!(a.sessions("ann", at).unwrap(), []);

        let token = |token: &str, at| a.who(&Credential::Token(token.into()), at).unwrap().holder.is_some();
        let hour = after(now, SignedDuration::from_hours(1));
        a.add_token(&by("ann"), "one", Scope::Upload, "t1", Some(hour)).unwrap();
        a.add_token(&by("ann"), "two", Scope::Read, "t2", None).unwrap();
        assert_eq!(a.add_token(&by("ann"), "two", Scope::Read, "t3", None).unwrap(), Outcome::Taken);
        assert!(token("t1", now) && !token("t1", hour) && token("t2", hour));
        assert_eq!(a.revoke_token(&by("ann"), "two").unwrap(), Outcome::Done);
        assert_eq!(a.revoke_token(&by("ann"), "two").unwrap(), Outcome::Unknown);
        assert!(!token("t2", now));
        assert_eq!(a.tokens().unwrap().iter().map(|t| t.used_at).collect::<Vec<_>>(), [Some(hour), Some(now)]);

        for n in 0..30 {
            a.open_session(&by("ann"), &format!("many{n}"), "", now).unwrap();
        }
        assert!(!known("many9", now) && known("many10", now), "the oldest end");
        a.set_password(&by("ann"), "ann", "other", None).unwrap();
        assert!(!known("many29", now));
    }

    #[test]
    fn the_first_key_works_once() {
        let (_dir, a) = accounts();
        a.offer("old").unwrap();
        a.offer("key").unwrap();
        assert!(a.offered("key").unwrap() && !a.offered("old").unwrap());
        assert_eq!(a.first(&by("link"), "old", "ann", "h").unwrap(), Outcome::Unknown);
        assert_eq!(a.first(&by("link"), "key", "ann", "h").unwrap(), Outcome::Done);
        assert_eq!(a.first(&by("link"), "key", "bob", "h").unwrap(), Outcome::Unknown);
        a.offer("late").unwrap();
        assert!(!a.offered("late").unwrap(), "there is an account");
        assert_eq!(a.first(&by("link"), "late", "bob", "h").unwrap(), Outcome::Unknown);
    }

    #[test]
    fn every_change_is_in_the_audit() {
        let (_dir, a) = accounts();
        let now = Timestamp::now();
        a.add(&by("x"), "ann", Role::Admin, "h").unwrap();
        a.add(&by("x"), "ann", Role::Admin, "h").unwrap(); // taken: nothing done
        a.add(&by("ann"), "eve", Role::Viewer, "h").unwrap();
        a.open_session(&by("eve"), "s", "", now).unwrap();
        a.set_role(&by("ann"), "eve", Role::Reviewer).unwrap();
        a.set_password(&by("eve"), "eve", "h2", None).unwrap();
        a.remove(&by("ann"), "eve").unwrap();
        a.add_token(&by("ann"), "cam", Scope::Upload, "t", None).unwrap();
        a.revoke_token(&by("ann"), "cam").unwrap();
        a.record(&by("ann"), "review", "an anomaly", "defect").unwrap();
        let told = |e: Entry| format!("{} {} {}: {} ({})", e.who, e.action, e.target, e.detail, e.from);
        let found: Vec<String> = a.audit(None, 100).unwrap().into_iter().rev().map(told).collect();
        let wanted = [
            "x account add ann: admin (10.0.0.7)",
            "ann account add eve: viewer (10.0.0.7)",
            "eve login eve:  (10.0.0.7)",
            "ann account role eve: viewer to reviewer (10.0.0.7)",
            "eve account password eve: 1 other sessions ended (10.0.0.7)",
            "ann account remove eve:  (10.0.0.7)",
            "ann token add cam: upload (10.0.0.7)",
            "ann token revoke cam:  (10.0.0.7)",
            "ann review an anomaly: defect (10.0.0.7)",
        ];
        assert_eq!(found, wanted);
        let page = a.audit(Some(a.audit(None, 3).unwrap()[2].seq), 2).unwrap();
        assert_eq!(page.iter().map(|e| e.action.as_str()).collect::<Vec<_>>(), ["account remove", "account password"]);
    }

    #[test]
    fn the_audit_only_grows() {
        let (dir, a) = accounts();
        a.record(&by("ann"), "review", "x", "y").unwrap();
        let db = Connection::open(dir.path().join(DATABASE)).unwrap();
        for sql in ["DELETE FROM audit", "UPDATE audit SET who = 'eve'"] {
            assert!(db.execute(sql, []).unwrap_err().to_string().contains("the audit only grows"), "{sql}");
        }
    }

    #[test]
    fn a_command_works_beside_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let _server = SqliteStore::open(dir.path()).unwrap();
        let beside = SqliteAccounts::open_beside(dir.path()).unwrap();
        assert_eq!(beside.add(&Actor::command_line(), "ann", Role::Admin, "h").unwrap(), Outcome::Done);
        assert!(SqliteAccounts::open(dir.path()).unwrap().any().unwrap());
    }
}
