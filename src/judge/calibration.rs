//! From held-out scores of good parts to a threshold for a wanted false-reject rate, and from a score to a confidence.

use crate::error::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Held-out scores of good parts and what was concluded from them; `calibration.json` of a model package.
///
/// *Expected*: the tail beyond the largest held-out score is Student's t prediction for one more observation: mean and
/// deviation are themselves estimated from few parts, and the t distribution with the factor `sqrt(1 + 1/n)` carries that
/// uncertainty. Its tail beyond the threshold is the rate called "expected".
///
/// *Guaranteed*: what holds for parts from the same process without any assumption about the tail, see [`Basis`]. With `m` of
/// `n` held-out scores above the threshold it is never below 1 / (n + 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Held-out scores of the good parts, ascending.
    pub scores: Vec<f32>,
    pub mean: f64,
    pub deviation: f64,
    /// The false-reject rate that was asked for.
    pub wanted_false_reject_rate: f64,
    /// What the fitted tail expects at `threshold`.
    pub expected_false_reject_rate: f64,
    /// What is guaranteed at `threshold`.
    pub guaranteed_false_reject_rate: f64,
    /// What the guarantee leans on.
    pub basis: Basis,
    /// How many good parts that were not taught a guarantee of the wanted rate would need, none of them above the threshold.
    pub parts_for_guarantee: u64,
    pub threshold: f32,
    /// How the scores were got.
    pub method: String,
    /// Thresholds that a person set, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// How good parts were held out, and what that guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Basis {
    /// Scores by models that were fitted without the part's fold. CV+ (Barber, Candès, Ramdas & Tibshirani 2021, theorem 4)
    /// bounds the rate by `2 (m + 1) / (n + 1) + min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1))`. It holds for the fold
    /// models; the model that runs is fitted on all parts, more than any of them.
    CrossValidated { folds: u64 },
    /// Scores of parts that were not taught, by the model that runs: split conformal prediction (Papadopoulos et al. 2002),
    /// `(m + 1) / (n + 1)`.
    Split,
}

impl Basis {
    /// The rate that `above` of `parts` held-out scores over the threshold guarantee, at most 1.
    pub fn guaranteed(self, above: usize, parts: usize) -> f64 {
        let (m, n) = (above as f64, parts as f64);
        let order = (m + 1.0) / (n + 1.0);
        match self {
            Basis::Split => order.min(1.0),
            Basis::CrossValidated { folds } => {
                let k = folds as f64;
                let excess = (2.0 * (1.0 - 1.0 / k) / (n / k + 1.0)).min((1.0 - k / n) / (k + 1.0)).max(0.0);
                (2.0 * order + excess).min(1.0)
            }
        }
    }

    /// For people.
    pub fn as_text(self) -> &'static str {
        match self {
            Basis::CrossValidated { .. } => "by cross-validation (CV+)",
            Basis::Split => "by parts that were not taught (split conformal)",
        }
    }
}

/// A threshold that a person set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub at: Timestamp,
    pub by: String,
    pub why: String,
    pub from: f32,
    pub to: f32,
}

/// Fewest good parts that can be taught.
pub const MIN_PARTS: usize = 5;

impl Calibration {
    /// Sets the threshold so that `rate` (0..0.5) of good parts is expected above it.
    pub fn new(mut scores: Vec<f32>, rate: f64, basis: Basis, method: String) -> Result<Self> {
        if scores.len() < MIN_PARTS {
            return Err(too_few(scores.len()));
        }
        check_rate(rate)?;
        scores.sort_by(f32::total_cmp);
        let n = scores.len() as f64;
        let mean = scores.iter().map(|&s| f64::from(s)).sum::<f64>() / n;
        let variance = scores.iter().map(|&s| (f64::from(s) - mean).powi(2)).sum::<f64>() / (n - 1.0);
        // identical parts would put the threshold on the score itself
        let deviation = variance.sqrt().max(1e-3 * mean.abs()).max(1e-6);
        let mut this = Calibration {
            scores,
            mean,
            deviation,
            wanted_false_reject_rate: rate,
            expected_false_reject_rate: rate,
            guaranteed_false_reject_rate: 1.0,
            basis,
            parts_for_guarantee: (1.0 / rate).ceil() as u64 - 1,
            threshold: 0.0,
            method,
            changes: Vec::new(),
        };
        this.put_threshold((mean + this.tail()?.inverse_cdf(1.0 - rate) * this.scale()) as f32);
        this.expected_false_reject_rate = rate;
        Ok(this)
    }

    /// Sets the threshold, on a person's word; the rates are those of the new one. The change is recorded.
    pub fn set_threshold(&mut self, threshold: f32, by: &str, why: &str) -> Result<()> {
        if !(threshold.is_finite() && threshold > 0.0) {
            return Err(Error::usage(format!("threshold \"{threshold}\" is not a positive number")).hint(format!(
                "the threshold is {:.3} now; held-out good parts score {:.3} to {:.3}",
                self.threshold,
                self.scores.first().copied().unwrap_or_default(),
                self.scores.last().copied().unwrap_or_default()
            )));
        }
        for (what, text) in [("who changes the threshold", by), ("why the threshold changes", why)] {
            if text.trim().is_empty() {
                return Err(Error::usage(format!("nothing says {what}"))
                    .hint("give --by NAME and --why TEXT: they are kept in the package"));
            }
        }
        let change = Change {
            at: Timestamp::now(),
            by: by.trim().into(),
            why: why.trim().into(),
            from: self.threshold,
            to: threshold,
        };
        self.put_threshold(threshold);
        self.changes.push(change);
        Ok(())
    }

    fn put_threshold(&mut self, threshold: f32) {
        let above = self.scores.len() - self.scores.partition_point(|&s| s <= threshold);
        self.threshold = threshold;
        self.expected_false_reject_rate = self.fitted_p_value(threshold).unwrap_or(1.0);
        self.guaranteed_false_reject_rate = self.basis.guaranteed(above, self.scores.len());
    }

    /// Checks what was read from a file.
    pub fn validate(&self) -> Result<()> {
        let finite = self.scores.iter().all(|s| s.is_finite() && *s >= 0.0)
            && [self.mean, self.deviation, f64::from(self.threshold)].iter().all(|v| v.is_finite());
        if self.scores.len() < MIN_PARTS || !finite || self.deviation <= 0.0 {
            return Err(Error::failed("calibration holds too few scores or numbers that are not finite"));
        }
        Ok(())
    }

    fn tail(&self) -> Result<StudentsT> {
        StudentsT::new(0.0, 1.0, self.scores.len() as f64 - 1.0)
            .map_err(|e| Error::failed("the tail of the scores cannot be fitted").because(e))
    }

    /// p-value of `score` under the fitted tail alone, 0..1: the share of good parts that it expects above the score.
    /// Where the tail describes good parts, the p-values of good parts are uniform, which a QQ plot shows.
    pub fn fitted_p_value(&self, score: f32) -> Result<f64> {
        Ok(self.tail()?.sf((f64::from(score) - self.mean) / self.scale()))
    }

    fn scale(&self) -> f64 {
        self.deviation * (1.0 + 1.0 / self.scores.len() as f64).sqrt()
    }

    /// 1 - p-value of `score` among good parts, 0..1 and never falling with the score: counted inside the held-out
    /// sample, the fitted tail beyond it.
    pub fn confidence(&self, score: f32) -> f32 {
        let n = self.scores.len();
        let below = self.scores.partition_point(|&s| s < score);
        let counted = (n - below + 1) as f64 / (n + 1) as f64;
        if below < n {
            return (1.0 - counted) as f32;
        }
        let fitted = self.fitted_p_value(score).unwrap_or(counted);
        (1.0 - fitted.min(counted)) as f32
    }
}

/// Refuses a false-reject rate that no threshold can have.
pub fn check_rate(rate: f64) -> Result<()> {
    if rate > 0.0 && rate < 0.5 {
        return Ok(());
    }
    Err(Error::usage(format!("false-reject rate \"{rate}\" is not between 0 and 0.5"))
        .hint("0.005 lets 5 of 1000 good parts be rejected"))
}

/// The error for a teach set that is too small.
pub fn too_few(parts: usize) -> Error {
    Error::failed(format!("{parts} good parts were found, at least {MIN_PARTS} are needed"))
        .hint("30 to 50 good parts make a good model; give a longer recording or more images with --good")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_threshold_is_a_t_prediction_bound() {
        // 30 scores with mean 10 and deviation 1: t(0.995; 29) = 2.7564
        let raw: Vec<f64> = (0..30).map(|i| f64::from(i) - 14.5).collect();
        let sd = (raw.iter().map(|x| x * x).sum::<f64>() / 29.0).sqrt();
        let scores = raw.iter().map(|x| (10.0 + x / sd) as f32).collect();
        let c = Calibration::new(scores, 0.005, Basis::Split, "test".into()).unwrap();
        assert!((f64::from(c.threshold) - (10.0 + 2.7564 * (31.0f64 / 30.0).sqrt())).abs() < 1e-3, "{}", c.threshold);
        assert!((c.confidence(c.threshold) - 0.995).abs() < 1e-4);
        assert_eq!(c.parts_for_guarantee, 199);
        assert_eq!(c.guaranteed_false_reject_rate, 1.0 / 31.0);
    }

    /// What is guaranteed is counted, never below 1 / (n + 1), and follows a threshold that a person sets.
    #[test]
    fn a_set_threshold_has_its_own_rates_and_is_recorded() {
        let scores: Vec<f32> = (0..49).map(|i| 10.0 + 0.1 * i as f32).collect();
        let mut c = Calibration::new(scores, 0.005, Basis::Split, "test".into()).unwrap();
        let before = c.threshold;
        c.set_threshold(14.0, "a person", " a scratch passed ").unwrap();
        // 14.1 to 14.8 lie above
        assert_eq!(c.guaranteed_false_reject_rate, 9.0 / 50.0);
        assert!((0.1..0.2).contains(&c.expected_false_reject_rate), "{}", c.expected_false_reject_rate);
        let [change] = &c.changes[..] else { panic!("{:?}", c.changes) };
        assert_eq!((change.from, change.to, change.why.as_str()), (before, 14.0, "a scratch passed"));
        for (threshold, by, why) in [(f32::NAN, "a", "b"), (0.0, "a", "b"), (12.0, " ", "b"), (12.0, "a", "")] {
            assert!(c.set_threshold(threshold, by, why).is_err());
        }
        assert_eq!(c.threshold, 14.0);
    }

    #[test]
    fn cross_validation_guarantees_what_cv_plus_says() {
        // n = 50, K = 5, none above: 2/51 + min(2 (4/5) / 11, (9/10) / 6)
        let cv = Basis::CrossValidated { folds: 5 }.guaranteed(0, 50);
        assert!((cv - (2.0 / 51.0 + 1.6 / 11.0)).abs() < 1e-12, "{cv}");
        assert_eq!(Basis::CrossValidated { folds: 2 }.guaranteed(20, 20), 1.0);
        assert_eq!(Basis::Split.guaranteed(0, 199), 0.005);
    }

    proptest! {
        #[test]
        fn confidence_never_falls_with_the_score(
            scores in proptest::collection::vec(0.1f32..50.0, 5..60),
            mut probes in proptest::collection::vec(0.0f32..200.0, 2..20),
        ) {
            let c = Calibration::new(scores, 0.005, Basis::Split, "test".into()).unwrap();
            probes.sort_by(f32::total_cmp);
            let confidences: Vec<f32> = probes.iter().map(|&s| c.confidence(s)).collect();
            prop_assert!(confidences.windows(2).all(|w| w[0] <= w[1]));
            prop_assert!(confidences.iter().all(|p| (0.0..=1.0).contains(p)));
        }
    }
}
