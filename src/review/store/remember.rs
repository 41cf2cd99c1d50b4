//! Answers that take long to compute, kept for who asks the same again: a slider that moves asks many times a second.
//!
//! Threads: any; nothing is locked while an answer is computed.
//!
//! Invariants:
//! 1. An answer is given again while nothing has changed. What took [`LONG`] or more is given again after changes too, until it is
//!    [`PATIENCE`] times as old as it took: however fast a line reports, computing takes a bounded share of the time. Tests:
//!    `what_is_quick_is_never_old`, `what_takes_long_is_kept_for_a_while`.
//! 2. No more than `room` answers are kept, the ones that were asked for last. Test: `what_was_not_asked_for_goes`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;

/// What is computed faster is never given out when it is old.
const LONG: Duration = Duration::from_millis(100);
/// How old an answer may get, in times of what it took.
const PATIENCE: u32 = 20;

/// The answers to questions `Q`.
#[derive(Debug)]
pub(super) struct Remembered<Q, A> {
    /// The one that was asked for last is last.
    answers: Mutex<Vec<Answer<Q, A>>>,
    room: usize,
}

#[derive(Debug)]
struct Answer<Q, A> {
    question: Q,
    answer: Arc<A>,
    /// Of the data.
    version: u64,
    made: Instant,
    took: Duration,
}

impl<Q: PartialEq, A> Remembered<Q, A> {
    pub fn new(room: usize) -> Remembered<Q, A> {
        Remembered { answers: Mutex::default(), room }
    }

    /// The answer that is kept, or one that `compute` makes now. `version` is that of the data before.
    pub fn get(&self, question: Q, version: u64, compute: impl FnOnce() -> Result<A>) -> Result<Arc<A>> {
        self.get_at(question, version, Instant::now, compute)
    }

    fn get_at(
        &self,
        question: Q,
        version: u64,
        now: impl Fn() -> Instant,
        compute: impl FnOnce() -> Result<A>,
    ) -> Result<Arc<A>> {
        let begun = now();
        {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = answers.iter().position(|a| a.question == question) {
                let found = answers.remove(at);
                let age = begun.saturating_duration_since(found.made);
                if found.version == version || (found.took >= LONG && age < found.took * PATIENCE) {
                    let answer = found.answer.clone();
                    answers.push(found);
                    return Ok(answer);
                }
            }
        }
        let answer = Arc::new(compute()?);
        let made = now();
        let took = made.saturating_duration_since(begun);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|a| a.question != question); // somebody else may have been as quick
        answers.push(Answer { question, answer: answer.clone(), version, made, took });
        let surplus = answers.len().saturating_sub(self.room);
        answers.drain(..surplus);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Clocked {
        kept: Remembered<u8, f64>,
        start: Instant,
    }

    impl Clocked {
        fn new(room: usize) -> Clocked {
            Clocked { kept: Remembered::new(room), start: Instant::now() }
        }
        /// Asks at second `at`; the answer is that second, and takes `takes` to compute.
        fn ask(&self, question: u8, version: u64, at: f64, takes: f64) -> f64 {
            let clock = Cell::new(at);
            let now = || self.start + Duration::from_secs_f64(clock.get());
            let compute = || {
                clock.set(at + takes);
                Ok(at)
            };
            *self.kept.get_at(question, version, now, compute).unwrap()
        }
    }

    #[test]
    fn what_is_quick_is_never_old() {
        let clocked = Clocked::new(4);
        assert_eq!(clocked.ask(0, 1, 0.0, 0.01), 0.0);
        assert_eq!(clocked.ask(0, 1, 500.0, 0.01), 0.0, "nothing has changed");
        assert_eq!(clocked.ask(0, 2, 500.1, 0.01), 500.1);
        assert_eq!(clocked.ask(1, 2, 500.2, 0.01), 500.2, "another question");
    }

    #[test]
    fn what_takes_long_is_kept_for_a_while() {
        let clocked = Clocked::new(4);
        assert_eq!(clocked.ask(0, 1, 0.0, 2.0), 0.0);
        assert_eq!(clocked.ask(0, 2, 41.5, 2.0), 0.0, "39.5 s old");
        assert_eq!(clocked.ask(0, 3, 42.5, 2.0), 42.5);
    }

    #[test]
    fn what_was_not_asked_for_goes() {
        let clocked = Clocked::new(2);
        for (question, at) in [(0, 0.0), (1, 1.0), (0, 2.0), (2, 3.0)] {
            clocked.ask(question, 1, at, 0.01);
        }
        assert_eq!(clocked.ask(0, 1, 4.0, 0.01), 0.0);
        assert_eq!(clocked.ask(1, 1, 5.0, 0.01), 5.0);
    }
}
