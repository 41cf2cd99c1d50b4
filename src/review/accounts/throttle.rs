//! Slows guessing of passwords: who fails waits, twice as long after each failure.
//!
//! Thread: the server's; a plain value behind a lock that is never held while waiting.
//!
//! Invariants:
//! 1. An attempt counts before it is judged, so that many at once are no way around. Test: `attempts_at_once_count`.
//! 2. It holds no more than [`MOST`] names and addresses, and forgets one after [`FORGET`]. Test: `memory_is_bounded`.
//! 3. A name that no account has is slowed like one that exists. Test: `unknown_names_are_slowed_alike` in
//!    tests/review_accounts.rs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Names and addresses that are remembered.
pub const MOST: usize = 10_000;
/// After this long without a failure, all is forgotten.
pub const FORGET: Duration = Duration::from_secs(3600);
/// Failures that cost nothing: of one account, of one address (behind which may be a whole plant).
pub const FREE: (u32, u32) = (5, 20);
/// The longest wait. One who fails on purpose can keep the owner of an account out no longer than this at a time.
pub const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Account(String),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// Failures of late.
#[derive(Debug, Default)]
pub struct Throttle {
    failures: HashMap<Key, Failures>,
}

/// The addresses that one customer of a provider has are one: a /64 of IPv6.
pub fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

fn keys(name: &str, from: IpAddr) -> [(Key, u32); 2] {
    // what somebody types may be long; the first characters are enough to tell accounts apart
    let name = name.chars().take(super::secret::MAX_NAME + 1).collect::<String>().to_lowercase();
    [(Key::Account(name), FREE.0), (Key::Address(neighbourhood(from)), FREE.1)]
}

fn wait(count: u32, free: u32) -> Duration {
    let over = count.saturating_sub(free);
    if over == 0 { Duration::ZERO } else { Duration::from_secs(1 << (over - 1).min(20)).min(LONGEST) }
}

impl Throttle {
    /// Begins an attempt, which counts as failed until [`Self::succeeded`]; or says how long to wait first.
    pub fn begin(&mut self, name: &str, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let keys = keys(name, from);
        let waits = keys.iter().filter_map(|(key, free)| {
            let known = self.failures.get(key).filter(|f| now.duration_since(f.last) < FORGET)?;
            (known.last + wait(known.count, *free)).checked_duration_since(now).filter(|left| !left.is_zero())
        });
        if let Some(longest) = waits.max() {
            return Err(longest);
        }
        for (key, _) in keys {
            self.make_room(&key, now);
            let failures = self.failures.entry(key).or_insert(Failures { count: 0, last: now });
            if now.duration_since(failures.last) >= FORGET {
                failures.count = 0;
            }
            *failures = Failures { count: failures.count.saturating_add(1), last: now };
        }
        Ok(())
    }

    /// The attempt was right: the account's failures are forgotten, the address keeps those of other attempts.
    pub fn succeeded(&mut self, name: &str, from: IpAddr) {
        let [(account, _), (address, _)] = keys(name, from);
        self.failures.remove(&account);
        if let Some(failures) = self.failures.get_mut(&address) {
            failures.count = failures.count.saturating_sub(1);
        }
    }

    fn make_room(&mut self, key: &Key, now: Instant) {
        if self.failures.len() < MOST || self.failures.contains_key(key) {
            return;
        }
        self.failures.retain(|_, f| now.duration_since(f.last) < FORGET);
        if self.failures.len() >= MOST
            && let Some(oldest) = self.failures.iter().min_by_key(|(_, f)| f.last).map(|(key, _)| key.clone())
        {
            self.failures.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let (mut throttle, mut now) = (Throttle::default(), Instant::now());
        let mut waits = Vec::new();
        for n in 0..16 {
            if let Err(wait) = throttle.begin("eve", ip(n), now) {
                waits.push(wait.as_secs());
                now += wait;
                throttle.begin("Eve", ip(n), now).unwrap();
            }
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300], "the 6th failure and each after it is waited for");
        assert!(throttle.begin("eve", ip(99), now).is_err(), "other addresses wait too");
        assert!(throttle.begin("bob", ip(99), now).is_ok(), "other accounts do not");
        assert!(throttle.begin("eve", ip(99), now + FORGET).is_ok());
    }

    #[test]
    fn an_address_that_tries_many_names_waits() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let tried = (0..100).filter(|n| throttle.begin(&format!("name{n}"), ip(1), now).is_ok()).count();
        assert_eq!(tried, FREE.1 as usize + 1);
        let v6 = |n: u128| IpAddr::V6((0x2001_0db8_u128 << 96 | n).into());
        let tried = (0..100).filter(|n| throttle.begin(&format!("other{n}"), v6(*n), now).is_ok()).count();
        assert_eq!(tried, FREE.1 as usize + 1, "one /64 is one address");
    }

    #[test]
    fn attempts_at_once_count() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let begun = (0..50).filter(|n| throttle.begin("eve", ip(*n), now).is_ok()).count();
        assert_eq!(begun, FREE.0 as usize + 1);
        throttle.succeeded("EVE", ip(0));
        assert!(throttle.begin("eve", ip(0), now).is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..12_000 {
            throttle.begin(&format!("n{n}"), ip(n), now + Duration::from_millis(n.into())).unwrap();
        }
        assert!(throttle.failures.len() <= MOST);
        let long = "x".repeat(1 << 20);
        throttle.begin(&long, ip(0), now).unwrap();
        let longest = throttle.failures.keys().map(|k| if let Key::Account(n) = k { n.len() } else { 0 }).max();
        assert!(longest.unwrap() < 100);
    }
}
