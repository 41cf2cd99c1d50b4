//! What handlers use of accounts: it moves blocking work off the server's thread, bounds how much memory hashing takes, and
//! slows guessing.
//!
//! Thread: methods run on the server's thread and await what blocks.
//!
//! Invariants:
//! 1. No more than [`HASHES`] passwords are hashed at once, and no more than [`WAITING`] wait for it. Test:
//!    `guessing_is_slowed` in tests/review_accounts.rs.
//! 2. An unknown account is answered as a wrong password is, after as much work. Test: `unknown_names_are_slowed_alike` in
//!    tests/review_accounts.rs.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::secret;
use super::store::{Accounts, Actor, Outcome};
use super::throttle::Throttle;
use crate::error::{Error, Result};
use crate::review::problem::Problem;

/// Passwords hashed at once.
pub const HASHES: usize = 2;
/// Logins that wait for a hash, with those that are hashed.
pub const WAITING: usize = 32;
/// Senders whose upload rate is remembered, before those that paused are forgotten.
const SENDERS: usize = 4096;

/// Accounts, for handlers.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    accounts: Arc<dyn Accounts>,
    /// Nothing is open to who is not known.
    wanted: bool,
    throttle: Mutex<Throttle>,
    hashing: Semaphore,
    waiting: Semaphore,
    /// A hash that no password has, for accounts that are not there.
    nobody: String,
    uploads: DefaultKeyedRateLimiter<String>,
}

/// Too much, too fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooMany {
    /// When it may be tried again.
    pub after: Duration,
    pub detail: String,
}

impl TooMany {
    /// Whole seconds, at least one.
    pub fn seconds(&self) -> u64 {
        (self.after.as_millis().div_ceil(1000) as u64).max(1)
    }
    /// The header that says so.
    pub fn header(&self) -> [(axum::http::HeaderName, HeaderValue); 1] {
        [(RETRY_AFTER, HeaderValue::from(self.seconds()))]
    }
}

impl IntoResponse for TooMany {
    fn into_response(self) -> Response {
        let header = self.header();
        (header, Problem::new(StatusCode::TOO_MANY_REQUESTS, self.detail)).into_response()
    }
}

/// Why nobody was let in.
#[derive(Debug)]
pub enum Refused {
    /// Name or password is wrong; which, is not said.
    Wrong,
    TooMany(TooMany),
    Problem(Problem),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Refused {
        Refused::Problem(problem)
    }
}

impl Desk {
    /// A desk on a storage; `wanted`: also while there is no account, nothing is open. Hashes once: takes a moment.
    pub fn new(accounts: Arc<dyn Accounts>, wanted: bool, upload_rate: NonZeroU32, burst: NonZeroU32) -> Result<Desk> {
        let nobody = secret::hash(&secret::token()?)?;
        Ok(Desk(Arc::new(Inner {
            accounts,
            wanted,
            throttle: Mutex::default(),
            hashing: Semaphore::new(HASHES),
            waiting: Semaphore::new(WAITING),
            nobody,
            uploads: RateLimiter::keyed(Quota::per_second(upload_rate).allow_burst(burst)),
        })))
    }

    /// Whether nothing is open while there is no account.
    pub fn wanted(&self) -> bool {
        self.0.wanted
    }

    /// Runs something that blocks, off the server's thread.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Accounts) -> Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let accounts = self.0.accounts.clone();
        blocking(move || work(&*accounts)).await
    }

    /// Hashes a password for keeping.
    pub async fn hash(&self, password: String) -> Result<String, Problem> {
        self.in_turn(move || secret::hash(&password)).await
    }

    /// Whether somebody has this password; slows who guesses. What it costs does not tell whether there is such an account.
    pub async fn verify(&self, name: &str, password: String, from: IpAddr) -> Result<String, Refused> {
        let begun = self.throttle(|t| t.begin(name, from, Instant::now()));
        if let Err(after) = begun {
            let detail = "too many wrong passwords: wait before the next attempt".to_owned();
            return Err(Refused::TooMany(TooMany { after, detail }));
        }
        let asked = name.to_owned();
        // longer ones than there are need no lookup, and their hash is nobody's
        let known = self.run(move |a| if asked.len() > 1000 { Ok(None) } else { a.password(&asked) }).await?;
        let (written, kept) = match known {
            Some((written, kept)) => (Some(written), kept),
            None => (None, self.0.nobody.clone()),
        };
        let right = self.in_turn(move || Ok(secret::verify(&password, &kept))).await?;
        match written.filter(|_| right) {
            Some(written) => {
                self.throttle(|t| t.succeeded(name, from));
                Ok(written)
            }
            None => Err(Refused::Wrong),
        }
    }

    /// Checks a password and opens a session; the cookie's value.
    pub async fn login(&self, name: &str, password: String, from: IpAddr, agent: &str) -> Result<String, Refused> {
        let actor = |who: &str, via: &str| Actor { who: who.into(), via: via.into(), from: from.to_string() };
        match self.verify(name, password, from).await {
            Ok(written) => Ok(self.open(actor(&written, "password"), agent).await?),
            Err(refused) => {
                if let Refused::Wrong = refused {
                    let (by, name) = (actor("", ""), name.to_owned());
                    self.run(move |a| a.record(&by, "login failed", &name, "")).await?;
                }
                Err(refused)
            }
        }
    }

    /// Opens a session; the cookie's value.
    pub async fn open(&self, by: Actor, agent: &str) -> Result<String, Problem> {
        let agent = agent.to_owned();
        self.run(move |a| {
            let token = secret::token()?;
            match a.open_session(&by, &secret::digest(&token), &agent, Timestamp::now())? {
                Outcome::Done => Ok(token),
                _ => Err(Error::failed(format!("the account \"{}\" is gone", by.who))),
            }
        })
        .await
    }

    /// Whether this sender may upload now.
    pub fn may_upload(&self, sender: &str) -> Result<(), TooMany> {
        if self.0.uploads.len() > SENDERS {
            self.0.uploads.retain_recent();
        }
        self.0.uploads.check_key(&sender.to_owned()).map_err(|until| TooMany {
            after: until.wait_time_from(DefaultClock::default().now()),
            detail: "this sender uploads faster than the server is set to take (--max-upload-rate)".into(),
        })
    }

    fn throttle<T>(&self, work: impl FnOnce(&mut Throttle) -> T) -> T {
        work(&mut self.0.throttle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let busy = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many logins at once: try again");
        let _place = self.0.waiting.try_acquire().map_err(|_| busy())?;
        let _turn = self.0.hashing.acquire().await.map_err(|_| busy())?;
        blocking(work).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(cause)) => Err(Problem::internal(&cause)),
        Err(panic) => Err(Problem::internal(&Error::failed("a review request panicked").because(panic))),
    }
}
