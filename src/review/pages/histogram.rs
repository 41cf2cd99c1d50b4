//! A score against those of the good parts that its model was calibrated with.
//!
//! Thread: none; pure functions.
//!
//! Invariants:
//! 1. Each score is counted in one bar, those beyond the axis in the last. Test: `every_score_is_counted_once`.

use maud::{Markup, html};

use crate::event::Event;
use crate::review::reports::Calibration;
use crate::review::show;

/// Bars.
const BARS: usize = 48;
/// Longest axis, in thresholds: a part far out must not press the good ones into one bar.
const AXIS: f64 = 4.0;

/// Counts of finite scores between 0 and `end`.
pub(super) fn bars(scores: impl Iterator<Item = f64>, end: f64) -> [u64; BARS] {
    let mut bars = [0; BARS];
    for score in scores.filter(|s| s.is_finite()) {
        let at = (score / end * BARS as f64).clamp(0.0, (BARS - 1) as f64);
        bars[at as usize] += 1;
    }
    bars
}

/// The histogram with the threshold and this part in it.
pub(super) fn against(calibration: &Calibration, event: &Event) -> Markup {
    let (score, threshold) = (f64::from(event.score), f64::from(event.threshold));
    let largest = calibration.scores.last().copied().map_or(0.0, f64::from);
    let all = score.max(largest).max(threshold * 1.25) * 1.04;
    let end = if threshold > 0.0 { all.min(AXIS * threshold) } else { all };
    let end = if end.is_finite() && end > 0.0 { end } else { 1.0 };
    let bars = bars(calibration.scores.iter().map(|s| f64::from(*s)), end);
    let most = bars.iter().copied().max().unwrap_or(0).max(1) as f64;
    let x = |value: f64| format!("{:.2}", (value / end * 100.0).clamp(0.4, 99.6));
    let beyond = score > end;
    let label = format!(
        "Scores of {} good parts, the threshold {} and this part's score {}",
        calibration.scores.len(),
        show::number(event.threshold),
        show::number(event.score)
    );
    html! {
        figure .histogram {
            svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label=(label) {
                @for (i, n) in bars.iter().enumerate().filter(|(_, n)| **n > 0) {
                    // a single part must be seen beside thousands
                    @let h = (36.0 * *n as f64 / most).max(1.2);
                    rect .good x=(format!("{:.2}", i as f64 * 100.0 / BARS as f64 + 0.15)) y=(format!("{:.2}", 40.0 - h))
                        width=(format!("{:.2}", 100.0 / BARS as f64 - 0.3)) height=(format!("{h:.2}")) {}
                }
                line .threshold x1=(x(threshold)) x2=(x(threshold)) y1="0" y2="40" {}
                line .this .(event.verdict.as_str()) x1=(x(score)) x2=(x(score)) y1="0" y2="40" {}
            }
            figcaption {
                span .good { (calibration.scores.len()) " good parts" }
                span .threshold { "threshold " (show::number(event.threshold)) }
                span .this .(event.verdict.as_str()) { "this part" @if beyond { " (beyond)" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_score_is_counted_once(scores in prop::collection::vec(0.0f64..1e6, 0..200), end in 1e-6f64..1e6) {
            let n = scores.len() as u64;
            prop_assert_eq!(bars(scores.into_iter(), end).iter().sum::<u64>(), n);
        }
    }
}
