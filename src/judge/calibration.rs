//! From held-out scores of good parts to a threshold for a wanted false-reject rate, and from a score to a confidence.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Held-out scores of good parts and what was concluded from them; `calibration.json` of a model package.
///
/// The tail beyond the largest held-out score is Student's t prediction for one more observation: mean and deviation are
/// themselves estimated from few parts, and the t distribution with the factor `sqrt(1 + 1/n)` carries that uncertainty.
/// Its quantile gives the rate called "expected". What is guaranteed without any assumption about the tail is only
/// 1 / (n + 1) for a threshold at the largest of n held-out scores (split conformal prediction).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Held-out scores of the good parts, ascending.
    pub scores: Vec<f32>,
    pub mean: f64,
    pub deviation: f64,
    /// The false-reject rate that was asked for; the fitted tail expects it at `threshold`.
    pub expected_false_reject_rate: f64,
    /// The smallest rate that so many parts can guarantee, 1 / (n + 1).
    pub guaranteed_false_reject_rate: f64,
    /// How many good parts a guarantee of the wanted rate would need.
    pub parts_for_guarantee: u64,
    pub threshold: f32,
    /// How the scores were got.
    pub method: String,
}

/// Fewest good parts that can be taught.
pub const MIN_PARTS: usize = 5;

impl Calibration {
    /// Sets the threshold so that `rate` (0..0.5) of good parts is expected above it.
    pub fn new(mut scores: Vec<f32>, rate: f64, method: String) -> Result<Self> {
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
            expected_false_reject_rate: rate,
            guaranteed_false_reject_rate: 1.0 / (n + 1.0),
            parts_for_guarantee: (1.0 / rate).ceil() as u64 - 1,
            threshold: 0.0,
            method,
        };
        this.threshold = (mean + this.tail()?.inverse_cdf(1.0 - rate) * this.scale()) as f32;
        Ok(this)
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
        let c = Calibration::new(scores, 0.005, "test".into()).unwrap();
        assert!((f64::from(c.threshold) - (10.0 + 2.7564 * (31.0f64 / 30.0).sqrt())).abs() < 1e-3, "{}", c.threshold);
        assert!((c.confidence(c.threshold) - 0.995).abs() < 1e-4);
        assert_eq!(c.parts_for_guarantee, 199);
    }

    proptest! {
        #[test]
        fn confidence_never_falls_with_the_score(
            scores in proptest::collection::vec(0.1f32..50.0, 5..60),
            mut probes in proptest::collection::vec(0.0f32..200.0, 2..20),
        ) {
            let c = Calibration::new(scores, 0.005, "test".into()).unwrap();
            probes.sort_by(f32::total_cmp);
            let confidences: Vec<f32> = probes.iter().map(|&s| c.confidence(s)).collect();
            prop_assert!(confidences.windows(2).all(|w| w[0] <= w[1]));
            prop_assert!(confidences.iter().all(|p| (0.0..=1.0).contains(p)));
        }
    }
}
