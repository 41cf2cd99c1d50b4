//! Debounce: one verdict for a part that is seen in several frames, by n-of-m.
//!
//! A part is a reject when `n` of its frames are. It is a pass when so many of its `of` frames pass that `n` rejects cannot be
//! reached, whatever the other frames would say. A frame that could not be judged (unsure, missed), and one that never came
//! because the part was gone, counts neither way: where they leave neither conclusion, the part is unsure.
//!
//! Pure logic; the line's judging thread owns a [`Part`] for each part in view.
//!
//! Invariants, each with the test that holds it:
//! 1. The verdict does not depend on the order of the frames: `the_order_does_not_matter`.
//! 2. The verdict that is given early is the one that all frames would give: `an_early_verdict_is_the_full_one`.
//! 3. A further rejected frame never makes a pass of a reject, nor does one in place of a pass: `more_rejects_never_pass`.
//! 4. 1 of 1 is the frame itself: `one_of_one_is_the_frame`.

use crate::error::{Error, Result};
use crate::event::Verdict;

/// Most frames of a part that are asked for.
const MOST: u32 = 100;

/// How many rejected frames make a rejected part, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Debounce {
    n: u32,
    of: u32,
}

impl Default for Debounce {
    /// 1 of 1.
    fn default() -> Self {
        Debounce { n: 1, of: 1 }
    }
}

/// What one frame of a part was found to be. `shown` is what the caller wants back of the frame that represents the part.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen<T> {
    pub score: f32,
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub shown: T,
}

/// What a part is.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision<T> {
    pub verdict: Verdict,
    /// Those of the frames that made the verdict, each once, and how many frames made it where that is not plain.
    pub reasons: Vec<String>,
    /// Of the frame that represents the part: of a pass the highest score among its passing frames, otherwise the highest
    /// among the rejected frames, and if there is none the highest of all.
    pub score: f32,
    pub shown: T,
    /// Frames that the decision was made from.
    pub frames: u32,
}

impl Debounce {
    /// `n` rejected frames of `of` reject the part; 1 <= n <= of <= 100.
    pub fn new(n: u32, of: u32) -> Result<Self> {
        if n >= 1 && n <= of && of <= MOST {
            return Ok(Debounce { n, of });
        }
        Err(Error::usage(format!("debounce \"{n} of {of}\" is out of range"))
            .hint(format!("n is at least 1 and at most the number of frames, which is at most {MOST}: 2 of 3")))
    }

    pub fn n(self) -> u32 {
        self.n
    }

    pub fn of(self) -> u32 {
        self.of
    }

    /// A part that comes into view.
    pub fn part<T>(self) -> Part<T> {
        Part { rule: self, rejects: 0, passes: 0, others: 0, best: [None, None, None] }
    }

    /// Passing frames after which `n` rejected ones cannot be reached.
    fn passes_needed(self) -> u32 {
        self.of - self.n + 1
    }
}

/// A part in view. It keeps at most one frame of each kind.
#[derive(Debug, Clone)]
pub struct Part<T> {
    rule: Debounce,
    rejects: u32,
    passes: u32,
    others: u32,
    /// The frame with the highest score among the rejected, the passing and the others, with the reasons of all of them.
    best: [Option<Seen<T>>; 3],
}

const REJECTS: usize = 0;
const PASSES: usize = 1;
const OTHERS: usize = 2;

impl<T> Part<T> {
    pub fn frames(&self) -> u32 {
        self.rejects + self.passes + self.others
    }

    /// The part is seen in a frame. Some: it is decided, and further frames of it need not be inspected; feed no more.
    pub fn frame(&mut self, mut seen: Seen<T>) -> Option<Decision<T>> {
        let kind = match seen.verdict {
            Verdict::Reject => REJECTS,
            Verdict::Pass => PASSES,
            Verdict::Unsure | Verdict::Missed => OTHERS,
        };
        *[&mut self.rejects, &mut self.passes, &mut self.others][kind] += 1;
        if let Some(before) = self.best[kind].take() {
            let (mut kept, other) =
                if seen.score.total_cmp(&before.score).is_gt() { (seen, before) } else { (before, seen) };
            for reason in other.reasons {
                if !kept.reasons.contains(&reason) {
                    kept.reasons.push(reason);
                }
            }
            seen = kept;
        }
        self.best[kind] = Some(seen);

        let left = self.rule.of.saturating_sub(self.frames());
        let possible = self.rejects + left >= self.rule.n || self.passes + left >= self.rule.passes_needed();
        match self.verdict() {
            Verdict::Unsure if left > 0 && possible => None,
            verdict => self.decide(verdict),
        }
    }

    /// The part is out of view. None: it was not seen in any frame, or is decided already.
    pub fn gone(mut self) -> Option<Decision<T>> {
        let verdict = self.verdict();
        self.decide(verdict)
    }

    fn verdict(&self) -> Verdict {
        if self.rejects >= self.rule.n {
            Verdict::Reject
        } else if self.passes >= self.rule.passes_needed() {
            Verdict::Pass
        } else {
            Verdict::Unsure
        }
    }

    fn decide(&mut self, verdict: Verdict) -> Option<Decision<T>> {
        let frames = self.frames();
        let Debounce { n, of } = self.rule;
        let [reject, pass, other] = std::mem::take(&mut self.best);
        let other_reasons = other.as_ref().map(|o| o.reasons.clone()).unwrap_or_default();
        // the one frame that there is says it all
        let alone = of == 1;
        let (shown, reasons) = match verdict {
            Verdict::Pass => (pass?, Vec::new()),
            Verdict::Reject => {
                let mut shown = reject?;
                let mut reasons = std::mem::take(&mut shown.reasons);
                if !alone {
                    reasons.push(format!("{} of {frames} frames rejected", self.rejects));
                }
                (shown, reasons)
            }
            Verdict::Unsure | Verdict::Missed => {
                let mut reasons = other_reasons;
                if !alone {
                    let (r, p) = (self.rejects, self.passes);
                    reasons.push(format!(
                        "undecided after {frames} of {of} frames: {r} rejected ({n} reject), {p} passed"
                    ));
                }
                let shown = match (reject, pass, other) {
                    (Some(reject), ..) => reject,
                    (None, Some(a), Some(b)) => {
                        if a.score.total_cmp(&b.score).is_gt() {
                            a
                        } else {
                            b
                        }
                    }
                    (None, a, b) => a.or(b)?,
                };
                (shown, reasons)
            }
        };
        Some(Decision { verdict, reasons, score: shown.score, shown: shown.shown, frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(i: usize, score: f32, verdict: Verdict) -> Seen<usize> {
        let reasons = if verdict == Verdict::Pass { vec![] } else { vec![format!("{} frame", verdict.as_str())] };
        Seen { score, verdict, reasons, shown: i }
    }

    /// Feeds frames until the part is decided, or gone.
    fn decide(rule: Debounce, frames: &[(f32, Verdict)]) -> Option<Decision<usize>> {
        let mut part = rule.part();
        for (i, (score, verdict)) in frames.iter().take(rule.of as usize).enumerate() {
            if let Some(decision) = part.frame(seen(i, *score, *verdict)) {
                return Some(decision);
            }
        }
        part.gone()
    }

    /// The rule as it is written: on all frames at once.
    fn full(rule: Debounce, frames: &[(f32, Verdict)]) -> Option<Verdict> {
        let frames = &frames[..frames.len().min(rule.of as usize)];
        let count = |v| frames.iter().filter(|f| f.1 == v).count() as u32;
        match frames.len() {
            0 => None,
            _ if count(Verdict::Reject) >= rule.n => Some(Verdict::Reject),
            _ if count(Verdict::Pass) > rule.of - rule.n => Some(Verdict::Pass),
            _ => Some(Verdict::Unsure),
        }
    }

    #[test]
    fn two_of_three() {
        use Verdict::{Pass, Reject, Unsure};
        let rule = Debounce::new(2, 3).unwrap();
        let case = |frames: &[(f32, Verdict)]| {
            let d = decide(rule, frames).unwrap();
            (d.verdict, d.frames, d.score, d.shown)
        };
        assert_eq!(case(&[(5.0, Reject), (9.0, Reject), (1.0, Pass)]), (Reject, 2, 9.0, 1), "as early as can be");
        assert_eq!(case(&[(5.0, Reject), (2.0, Pass), (1.0, Pass)]), (Pass, 3, 2.0, 1), "one flicker is no reject");
        assert_eq!(case(&[(1.0, Pass), (2.0, Pass)]), (Pass, 2, 2.0, 1));
        assert_eq!(
            case(&[(5.0, Reject), (7.0, Unsure), (6.0, Reject)]),
            (Reject, 3, 6.0, 2),
            "unsure is never shown for a reject"
        );
        assert_eq!(case(&[(5.0, Reject), (7.0, Unsure), (1.0, Pass)]), (Unsure, 3, 5.0, 0));
        assert_eq!(case(&[(7.0, Unsure), (8.0, Unsure)]), (Unsure, 2, 8.0, 1), "one frame cannot decide any more");
        assert_eq!(case(&[(1.0, Pass)]), (Unsure, 1, 1.0, 0), "gone too early");
        assert_eq!(decide(rule, &[]), None);
        let reject = decide(rule, &[(5.0, Reject), (9.0, Reject)]).unwrap();
        assert_eq!(reject.reasons, ["reject frame", "2 of 2 frames rejected"]);
        let unsure = decide(rule, &[(1.0, Pass), (7.0, Unsure)]).unwrap();
        assert_eq!(unsure.reasons, ["unsure frame", "undecided after 2 of 3 frames: 0 rejected (2 reject), 1 passed"]);
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        for (n, of) in [(0, 3), (4, 3), (0, 0), (1, 101)] {
            let error = Debounce::new(n, of).unwrap_err();
            assert_eq!(error.to_string(), format!("debounce \"{n} of {of}\" is out of range"));
        }
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![Just(Verdict::Pass), Just(Verdict::Reject), Just(Verdict::Unsure), Just(Verdict::Missed)]
    }

    fn rule() -> impl Strategy<Value = Debounce> {
        (1u32..8).prop_flat_map(|of| (1..=of).prop_map(move |n| Debounce { n, of }))
    }

    fn frames() -> impl Strategy<Value = Vec<(f32, Verdict)>> {
        proptest::collection::vec((0.0f32..9.0, verdict()), 0..10)
    }

    proptest! {
        #[test]
        fn an_early_verdict_is_the_full_one(rule in rule(), frames in frames()) {
            let decision = decide(rule, &frames);
            prop_assert_eq!(decision.as_ref().map(|d| d.verdict), full(rule, &frames));
            if let Some(d) = decision {
                prop_assert!(d.frames >= 1 && d.frames as usize <= frames.len().min(rule.of as usize));
                prop_assert_eq!(d.score, frames[d.shown].0);
                if matches!(d.verdict, Verdict::Pass | Verdict::Reject) {
                    prop_assert_eq!(frames[d.shown].1, d.verdict);
                }
            }
        }

        #[test]
        fn the_order_does_not_matter(rule in rule(), frames in frames(), turn in 0usize..10, swap in any::<bool>()) {
            // the frames that come first are those that are inspected
            let mut frames = frames;
            frames.truncate(rule.of as usize);
            let before = decide(rule, &frames).map(|d| d.verdict);
            if !frames.is_empty() {
                let by = turn % frames.len();
                frames.rotate_left(by);
            }
            if swap {
                frames.reverse();
            }
            prop_assert_eq!(decide(rule, &frames).map(|d| d.verdict), before);
        }

        #[test]
        fn more_rejects_never_pass(rule in rule(), frames in frames(), at in 0usize..10, score in 0.0f32..9.0) {
            let before = decide(rule, &frames).map(|d| d.verdict);
            let mut more = frames.clone();
            match more.get_mut(at) {
                Some(frame) => frame.1 = Verdict::Reject,
                None => more.push((score, Verdict::Reject)),
            }
            let after = decide(rule, &more).map(|d| d.verdict);
            if before == Some(Verdict::Reject) {
                prop_assert_eq!(after, Some(Verdict::Reject));
            }
            if after == Some(Verdict::Pass) {
                prop_assert_eq!(before, Some(Verdict::Pass));
            }
        }

        #[test]
        fn one_of_one_is_the_frame(score in 0.0f32..9.0, verdict in verdict()) {
            let d = Debounce::default().part().frame(seen(0, score, verdict)).unwrap();
            let wanted = if verdict == Verdict::Missed { Verdict::Unsure } else { verdict };
            prop_assert_eq!((d.verdict, d.score, d.frames), (wanted, score, 1));
            prop_assert_eq!(d.reasons, seen(0, score, verdict).reasons);
        }
    }
}
