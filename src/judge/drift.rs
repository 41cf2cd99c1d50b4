//! Drift: do the parts that pass still score as the good parts did that the model was calibrated on?
//!
//! Two looks at the scores of passed parts, both against the held-out good scores of `calibration.json`:
//! - `ewma`: their exponentially weighted mean (Roberts 1959), in held-out deviations from the held-out mean. Its limit carries
//!   that this mean and deviation were themselves estimated from few parts. Finds a slow, lasting shift.
//! - `ks`: the largest difference between the distribution of the last [`WINDOW`] passed parts and that of the held-out ones
//!   (two-sample Kolmogorov-Smirnov). Finds a change of shape that leaves the mean alone, such as two kinds of parts.
//!
//! A passed part is censored: it has no score above the threshold. The held-out scores are cut at the same threshold, so that
//! like is compared with like. What drift drives above the threshold is not seen here but in the reject rate.
//!
//! The assumption is parts that are independent of each other. Where neighbours are alike (one mould after another), alarms
//! come sooner than [`EWMA_LIMIT`] and [`KS_ALPHA`] promise.
//!
//! The line's judging thread owns it; [`Drift::push`] for each passed part, [`Drift::assess`] about once a second.
//!
//! Invariants, each with the test that holds it:
//! 1. Parts from the calibration's own distribution alarm about once in 10,000 parts, and a shift of one deviation is found
//!    within 200 parts: `false_alarms_are_rare_and_a_shift_is_found` (its output has the figures).
//! 2. p-values are those of the exact distribution: `p_values_are_those_of_the_tables`.
//! 3. A score above the threshold changes nothing, nor does one that is not a number: `what_cannot_have_passed_is_left_out`.
//! 4. When the camera's health alerts too, the camera is named and not the product: `the_camera_is_told_from_the_product`.

use crate::event::Check;
use crate::judge::Calibration;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use std::collections::{BTreeMap, VecDeque};

/// Passed parts whose distribution is looked at.
pub const WINDOW: usize = 200;
/// Weight of the newest part in the mean: about the last 66 parts count.
const LAMBDA: f64 = 0.03;
/// The mean's limit, in its own deviations where the calibration were perfect. Chosen with [`LAMBDA`] by simulation: about one
/// alarm in 10,000 independent parts.
const EWMA_LIMIT: f64 = 3.3;
/// p-value at which the distribution counts as another one.
const KS_ALPHA: f64 = 1e-4;
/// Fewest held-out scores below the threshold that say anything.
const MIN_CALIBRATION: usize = 5;
/// Fewest passed parts that are assessed.
const MIN_PARTS: usize = 30;
/// One part counts at most this many deviations.
const MOST_DEVIATIONS: f64 = 4.0;
/// Steps up to which p-values are counted exactly (held-out scores times [`WINDOW`]).
const EXACT_STEPS: usize = 400_000;

/// Compares the scores of passed parts with the calibration.
#[derive(Debug, Clone)]
pub struct Drift {
    /// Held-out good scores at or below the threshold, ascending.
    held_out: Vec<f32>,
    threshold: f32,
    mean: f64,
    deviation: f64,
    /// [`EWMA_LIMIT`] with the uncertainty of the deviation.
    limit: f64,
    ewma: f64,
    /// Passed parts since the start.
    parts: u64,
    window: VecDeque<f32>,
    /// The distance that is an alarm for a window of so many parts.
    critical: Option<(usize, f64)>,
}

impl Drift {
    /// From a model's calibration; make a new one when the model or its threshold changes.
    pub fn new(calibration: &Calibration) -> Drift {
        let threshold = calibration.threshold;
        let mut held_out: Vec<f32> = calibration.scores.iter().copied().filter(|s| *s <= threshold).collect();
        held_out.sort_by(f32::total_cmp);
        let n = held_out.len() as f64;
        let mean = held_out.iter().map(|s| f64::from(*s)).sum::<f64>() / n.max(1.0);
        let squares: f64 = held_out.iter().map(|s| (f64::from(*s) - mean).powi(2)).sum();
        // the floor is that of the calibration: identical parts have no deviation
        let deviation = (squares / (n - 1.0).max(1.0)).sqrt().max(1e-3 * mean.abs()).max(1e-6);
        // as many deviations of a t distribution as have the tail of EWMA_LIMIT of a normal one
        let limit = match (Normal::new(0.0, 1.0), StudentsT::new(0.0, 1.0, n - 1.0)) {
            (Ok(normal), Ok(t)) if held_out.len() >= MIN_CALIBRATION => -t.inverse_cdf(normal.cdf(-EWMA_LIMIT)),
            _ => f64::INFINITY,
        };
        let window = VecDeque::with_capacity(WINDOW);
        Drift { held_out, threshold, mean, deviation, limit, ewma: 0.0, parts: 0, window, critical: None }
    }

    /// A part has passed with this score. Costs the same for each part.
    pub fn push(&mut self, score: f32) {
        // the first is not a number, the second cannot have passed
        if score.is_nan() || score > self.threshold {
            return;
        }
        let z = ((f64::from(score) - self.mean) / self.deviation).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS);
        self.ewma += LAMBDA * (z - self.ewma);
        self.parts += 1;
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(score);
    }

    /// How it stands: `ewma` (deviations; `usual` is the limit) and `ks` (distance 0..1; `usual` is what is an alarm). Empty
    /// until there are enough parts on both sides. `health` is what the camera's checks say now.
    pub fn assess(&mut self, health: &BTreeMap<String, Check>) -> BTreeMap<String, Check> {
        let mut checks = BTreeMap::new();
        if self.held_out.len() < MIN_CALIBRATION || self.window.len() < MIN_PARTS {
            return checks;
        }
        let limit = self.ewma_limit();
        let shifted = self.ewma.abs() > limit;
        let side = if self.ewma > 0.0 { "above" } else { "below" };
        let says = shifted.then(|| {
            let by = self.ewma.abs();
            format!("{}: passed parts score {by:.1} deviations {side} the taught ones", cause(health))
        });
        checks.insert("ewma".to_owned(), Check { value: self.ewma, usual: limit, alert: shifted, says });

        let (distance, p) = self.kolmogorov_smirnov();
        let critical = self.critical_distance();
        let other = distance >= critical;
        let says = other.then(|| {
            let n = self.window.len();
            format!(
                "{}: the scores of the last {n} passed parts are spread otherwise than the taught ones (p {p:.0e})",
                cause(health)
            )
        });
        checks.insert("ks".to_owned(), Check { value: distance, usual: critical, alert: other, says });
        checks
    }

    fn ewma_limit(&self) -> f64 {
        let n = self.held_out.len() as f64;
        let spread = LAMBDA / (2.0 - LAMBDA) * (1.0 - (1.0 - LAMBDA).powf(2.0 * self.parts as f64));
        self.limit * (spread + 1.0 / n).sqrt()
    }

    /// Distance and p-value.
    fn kolmogorov_smirnov(&self) -> (f64, f64) {
        let mut window: Vec<f32> = self.window.iter().copied().collect();
        window.sort_by(f32::total_cmp);
        let distance = distance(&self.held_out, &window);
        (distance, p_value(distance, self.held_out.len(), window.len()))
    }

    /// The smallest distance with a p-value of at most [`KS_ALPHA`].
    fn critical_distance(&mut self) -> f64 {
        let (n, m) = (self.held_out.len(), self.window.len());
        if let Some((for_m, distance)) = self.critical
            && for_m == m
        {
            return distance;
        }
        let (mut low, mut high) = (0.0, 1.0);
        // to less than the steps that the distance has
        for _ in 0..20 {
            let middle = (low + high) / 2.0;
            if p_value(middle, n, m) <= KS_ALPHA { high = middle } else { low = middle }
        }
        // with few held-out scores even total separation proves nothing
        let distance = if p_value(1.0, n, m) <= KS_ALPHA { high } else { f64::INFINITY };
        self.critical = Some((m, distance));
        distance
    }
}

/// What an operator should look at.
fn cause(health: &BTreeMap<String, Check>) -> String {
    let alerts: Vec<&str> = health.iter().filter(|c| c.1.alert).map(|c| c.0.as_str()).collect();
    match alerts[..] {
        [] => "good parts have changed, teach again".to_owned(),
        _ => format!("the camera changed ({})", alerts.join(", ")),
    }
}

/// The largest difference between the two empirical distributions; both ascending and not empty.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let (mut i, mut j, mut largest) = (0, 0, 0.0f64);
    while i < a.len() && j < b.len() {
        let at = a[i].min(b[j]);
        i += a[i..].partition_point(|x| *x <= at);
        j += b[j..].partition_point(|x| *x <= at);
        largest = largest.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    largest
}

/// The probability that two samples of `n` and `m` from one continuous distribution are at least `distance` apart. Counted
/// over all orders that they can have (Hodges 1958) where that is cheap, otherwise Smirnov's limit with Stephens' correction.
/// Ties make it too large: an alarm is late, not false.
fn p_value(distance: f64, n: usize, m: usize) -> f64 {
    let (nf, mf) = (n as f64, m as f64);
    if n * m > EXACT_STEPS {
        let e = (nf * mf / (nf + mf)).sqrt();
        let x = (e + 0.12 + 0.11 / e) * distance;
        if x < 0.2 {
            return 1.0;
        }
        let series: f64 = (1..=100)
            .map(f64::from)
            .map(|k| {
                let sign = if k % 2.0 == 1.0 { 1.0 } else { -1.0 };
                sign * (-2.0 * k * k * x * x).exp()
            })
            .sum();
        return (2.0 * series).clamp(0.0, 1.0);
    }
    // a distance is a multiple of 1 / (n m); half a step keeps rounding out of the comparison
    let reached = (distance * nf * mf - 1e-7).ceil() - 0.5;
    // share[j]: of the orders of i of the one and j of the other, those that stay closer all the way
    let apart = |i: usize, j: usize| (i as f64 * mf - j as f64 * nf).abs() > reached;
    let mut share: Vec<f64> = Vec::with_capacity(m + 1);
    for j in 0..=m {
        let before = share.last().copied().unwrap_or(1.0);
        share.push(if apart(0, j) { 0.0 } else { before });
    }
    for i in 1..=n {
        if apart(i, 0) {
            share[0] = 0.0;
        }
        for j in 1..=m {
            // the last of i + j is one of the i or one of the j
            let (fi, fj) = (i as f64, j as f64);
            share[j] = if apart(i, j) { 0.0 } else { (fi * share[j] + fj * share[j - 1]) / (fi + fj) };
        }
    }
    (1.0 - share[m]).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::calibration::Basis;

    /// Normal by Box and Muller, from a fixed seed.
    struct Parts {
        random: fastrand::Rng,
        skewed: bool,
    }

    /// Deviation of the skewed scores: log-normal with this spread.
    const SPREAD: f64 = 0.35;

    impl Parts {
        fn score(&mut self, shift: f64) -> f32 {
            let (u, v) = (1.0 - self.random.f64(), self.random.f64());
            let z = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            let s2 = SPREAD * SPREAD;
            let score = match self.skewed {
                false => 10.0 + z + shift,
                true => 5.0 * (SPREAD * z).exp() + shift * 5.0 * ((s2.exp() - 1.0) * s2.exp()).sqrt(),
            };
            score as f32
        }
        fn calibration(&mut self, n: usize) -> Calibration {
            let scores = (0..n).map(|_| self.score(0.0).max(0.0)).collect();
            Calibration::new(scores, 0.005, Basis::Split, "test".into()).unwrap()
        }
    }

    fn fixed(n: usize) -> (Parts, Calibration) {
        let mut parts = Parts { random: fastrand::Rng::with_seed(7), skewed: false };
        let calibration = parts.calibration(n);
        (parts, calibration)
    }

    #[test]
    fn p_values_are_those_of_the_tables() {
        // exact: two samples of 3, wholly apart: 2 of the 20 orders
        assert!((p_value(1.0, 3, 3) - 0.1).abs() < 1e-12);
        // 1 and 4 apart by 3/4 at least: the single one stands first, second, fourth or last of five
        assert!((p_value(0.75, 1, 4) - 0.8).abs() < 1e-12);
        assert!((p_value(1.0, 5, 4) - 2.0 / 126.0).abs() < 1e-12);
        assert_eq!(p_value(0.0, 7, 9), 1.0);
        // the limit meets the exact value at the seam
        let exact = p_value(0.08, 1000, 400);
        let limit = p_value(0.08, 1000, 401);
        assert!((exact / limit - 1.0).abs() < 0.1, "{exact} {limit}");
        // Smirnov's 1 % point is 1.628
        let e = (2000.0f64 * 1000.0 / 3000.0).sqrt();
        assert!((p_value(1.628 / (e + 0.12 + 0.11 / e), 2000, 1000) - 0.01).abs() < 1e-4);
    }

    #[test]
    fn distances_by_hand() {
        assert_eq!(distance(&[1.0, 2.0], &[3.0, 4.0]), 1.0);
        assert_eq!(distance(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 4.0]), 0.0);
        assert_eq!(distance(&[1.0, 1.0, 5.0, 5.0], &[1.0, 5.0, 5.0, 5.0]), 0.25);
    }

    #[test]
    fn the_camera_is_told_from_the_product() {
        let (mut parts, calibration) = fixed(50);
        let mut drift = Drift::new(&calibration);
        assert!(drift.assess(&BTreeMap::new()).is_empty(), "nothing is known yet");
        for _ in 0..400 {
            drift.push(parts.score(0.0));
        }
        let checks = drift.assess(&BTreeMap::new());
        assert!(checks.values().all(|c| !c.alert && c.says.is_none() && c.value.abs() < c.usual), "{checks:?}");
        for _ in 0..400 {
            drift.push(parts.score(-1.5));
        }
        let product = drift.assess(&BTreeMap::new());
        let says = |checks: &BTreeMap<String, Check>, key: &str| checks[key].says.clone().unwrap();
        assert!(
            says(&product, "ewma").starts_with("good parts have changed, teach again: passed parts score 1."),
            "{product:?}"
        );
        assert!(says(&product, "ewma").ends_with("deviations below the taught ones"));
        assert!(says(&product, "ks").starts_with("good parts have changed, teach again: "), "{product:?}");
        let check = |alert| Check { alert, ..Check::default() };
        let health = [("focus", true), ("dirt", false), ("shift", true)].map(|(k, a)| (k.to_owned(), check(a)));
        let camera = drift.assess(&BTreeMap::from(health));
        assert!(says(&camera, "ewma").starts_with("the camera changed (focus, shift): "), "{camera:?}");
    }

    /// Scores that fall into two kinds around the same mean.
    #[test]
    fn a_change_of_shape_is_found() {
        let (_, calibration) = fixed(100);
        let mut drift = Drift::new(&calibration);
        for i in 0..300 {
            drift.push(if i % 2 == 0 { 8.8 } else { 11.2 });
        }
        let checks = drift.assess(&BTreeMap::new());
        assert!(checks["ks"].alert && !checks["ewma"].alert, "{checks:?}");
    }

    #[test]
    fn what_cannot_have_passed_is_left_out() {
        let (mut parts, calibration) = fixed(50);
        let mut drift = Drift::new(&calibration);
        for _ in 0..300 {
            drift.push(parts.score(0.0));
        }
        let before = drift.assess(&BTreeMap::new());
        for score in [calibration.threshold + 0.01, f32::NAN, f32::INFINITY] {
            drift.push(score);
        }
        assert_eq!(drift.assess(&BTreeMap::new()), before);
        // held-out scores above a threshold that a person lowered are not compared with either
        let mut strict = calibration.clone();
        strict.set_threshold(calibration.mean as f32, "a person", "a scratch passed").unwrap();
        let mut drift = Drift::new(&strict);
        for _ in 0..2000 {
            drift.push(parts.score(0.0));
        }
        assert!(drift.assess(&BTreeMap::new()).values().all(|c| !c.alert));
        // and where hardly any are left nothing is claimed
        strict.set_threshold(0.1, "a person", "everything must go").unwrap();
        let mut drift = Drift::new(&strict);
        (0..2000).for_each(|_| drift.push(0.05));
        assert!(drift.assess(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn identical_parts_and_few_of_them() {
        let calibration = Calibration::new(vec![2.0; 5], 0.005, Basis::Split, "test".into()).unwrap();
        let mut drift = Drift::new(&calibration);
        (0..500).for_each(|_| drift.push(2.0));
        let checks = drift.assess(&BTreeMap::new());
        assert!(checks.values().all(|c| !c.alert), "{checks:?}");
        assert_eq!((checks["ewma"].value, checks["ks"].value), (0.0, 0.0));
    }

    #[test]
    fn false_alarms_are_rare_and_a_shift_is_found() {
        let full = std::env::var("LINESIGHT_FAULT").is_ok_and(|v| v == "full");
        let runs = if full { 300 } else { 30 };
        const PARTS: usize = 3000;
        for skewed in [false, true] {
            for n in [30, 50, 100] {
                let mut parts = Parts { random: fastrand::Rng::with_seed(1959), skewed };
                // a line of 10 parts a second, assessed once a second
                let alarms = |drift: &mut Drift| -> Vec<String> {
                    drift.assess(&BTreeMap::new()).into_iter().filter(|c| c.1.alert).map(|c| c.0).collect()
                };
                let (mut onsets, mut found, mut took) = (BTreeMap::<String, usize>::new(), 0, Vec::new());
                for _ in 0..runs {
                    let calibration = parts.calibration(n);
                    let mut drift = Drift::new(&calibration);
                    let mut before = Vec::new();
                    for part in 1..=PARTS {
                        drift.push(parts.score(0.0));
                        if part % 10 == 0 {
                            let now = alarms(&mut drift);
                            for name in now.iter().filter(|a| !before.contains(*a)) {
                                *onsets.entry(name.clone()).or_default() += 1;
                            }
                            before = now;
                        }
                    }
                    let when = (1..=200).find(|part| {
                        drift.push(parts.score(1.0));
                        part % 10 == 0 && !alarms(&mut drift).is_empty()
                    });
                    found += usize::from(when.is_some());
                    took.extend(when);
                }
                took.sort_unstable();
                let median = took[took.len() / 2];
                let per = |name: &str| *onsets.get(name).unwrap_or(&0) as f64 / (runs * PARTS) as f64 * 1e4;
                println!(
                    "{} scores, {n} held out: alarms in 10,000 parts: ewma {:.2}, ks {:.2}; a shift of 1 deviation is found within \
                     200 parts in {found} of {runs} runs, median {median} parts",
                    if skewed { "log-normal" } else { "normal" },
                    per("ewma"),
                    per("ks")
                );
                assert!(per("ewma") < 3.0 && per("ks") < 1.0, "{onsets:?}");
                assert!(found * 100 >= runs * if n < 50 { 70 } else { 90 }, "{found} of {runs}");
            }
        }
    }
}
