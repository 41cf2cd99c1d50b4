//! Metrics of ranked scores, image by image. Pure functions; each names where its definition is published.
//!
//! Invariants:
//! 1. The values are scikit-learn's (test `values_are_those_of_scikit_learn`, numbers in tests/data/metrics-reference.json).
//! 2. Only the order of the scores matters (test `only_the_order_of_scores_matters`).

use statrs::distribution::{Beta, ContinuousCDF};

/// One step of the ranking: what is positive when everything that scores at least `threshold` is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    pub threshold: f32,
    pub tp: u64,
    pub fp: u64,
}

/// Scores of good and defective parts, ranked. Equal scores form one step, so ties are never broken in anyone's favour.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// One step for each distinct score, from the highest down.
    pub steps: Vec<Step>,
    pub defective: u64,
    pub good: u64,
}

impl Ranking {
    /// Ranks `(score, defective)`; `None` unless there is at least one of each kind: nothing could be compared.
    pub fn new(scores: impl IntoIterator<Item = (f32, bool)>) -> Option<Ranking> {
        let mut sorted: Vec<(f32, bool)> = scores.into_iter().collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut steps: Vec<Step> = Vec::new();
        let (mut tp, mut fp) = (0, 0);
        for (threshold, defective) in sorted {
            *(if defective { &mut tp } else { &mut fp }) += 1;
            match steps.last_mut() {
                Some(last) if last.threshold == threshold => (last.tp, last.fp) = (tp, fp),
                _ => steps.push(Step { threshold, tp, fp }),
            }
        }
        (tp > 0 && fp > 0).then_some(Ranking { steps, defective: tp, good: fp })
    }

    /// Area under the ROC curve, 0..1: the probability that a defective part scores higher than a good one, ties counting
    /// half (Mann & Whitney 1947; Hanley & McNeil 1982; Fawcett 2006).
    pub fn auroc(&self) -> f64 {
        let (mut area, mut tp, mut fp) = (0.0, 0, 0);
        for s in &self.steps {
            area += (s.fp - fp) as f64 * (s.tp + tp) as f64 / 2.0;
            (tp, fp) = (s.tp, s.fp);
        }
        area / (self.defective as f64 * self.good as f64)
    }

    /// Average precision, 0..1: the precision at each step weighted by the recall it adds, without interpolation (Zhu 2004;
    /// Davis & Goadrich 2006 say why not to interpolate).
    pub fn average_precision(&self) -> f64 {
        let mut tp = 0;
        self.steps
            .iter()
            .map(|s| {
                let gained = (s.tp - tp) as f64;
                tp = s.tp;
                gained * s.tp as f64 / (s.tp + s.fp) as f64
            })
            .sum::<f64>()
            / self.defective as f64
    }

    /// The highest F1 (van Rijsbergen 1979) that any threshold reaches on these scores, and the highest such threshold. It
    /// is chosen with the truth in hand, so it bounds what a threshold can do and promises nothing.
    pub fn best_f1(&self) -> (f64, f32) {
        let f1 = |s: &Step| 2.0 * s.tp as f64 / (s.tp + s.fp + self.defective) as f64;
        self.steps.iter().fold((0.0, f32::INFINITY), |best, s| if f1(s) > best.0 { (f1(s), s.threshold) } else { best })
    }

    /// The ROC curve: (false-positive rate, recall) from (0, 0) to (1, 1).
    pub fn roc(&self) -> Vec<(f64, f64)> {
        let point = |s: &Step| (s.fp as f64 / self.good as f64, s.tp as f64 / self.defective as f64);
        std::iter::once((0.0, 0.0)).chain(self.steps.iter().map(point)).collect()
    }

    /// The precision-recall curve: (recall, precision), recall rising.
    pub fn precision_recall(&self) -> Vec<(f64, f64)> {
        let point = |s: &Step| (s.tp as f64 / self.defective as f64, s.tp as f64 / (s.tp + s.fp) as f64);
        self.steps.iter().map(point).collect()
    }
}

/// Exact 95 % interval of a proportion of which `hits` of `of` were seen (Clopper & Pearson 1934); 0..1 of nothing.
pub fn interval_95(hits: u64, of: u64) -> [f64; 2] {
    let quantile = |a: u64, b: u64, p: f64| Beta::new(a as f64, b as f64).map_or(f64::NAN, |beta| beta.inverse_cdf(p));
    let low = if hits == 0 { 0.0 } else { quantile(hits, of - hits + 1, 0.025) };
    let high = if hits >= of { 1.0 } else { quantile(hits + 1, of - hits, 0.975) };
    [low, high]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Reference {
        rankings: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        name: String,
        scores: Vec<f32>,
        defective: Vec<bool>,
        auroc: f64,
        average_precision: f64,
        best_f1: f64,
        best_f1_threshold: f32,
    }

    #[test]
    fn values_are_those_of_scikit_learn() {
        let text = include_str!("../../tests/data/metrics-reference.json");
        let reference: Reference = serde_json::from_str(text).unwrap();
        assert!(reference.rankings.len() >= 5);
        for c in reference.rankings {
            let r = Ranking::new(c.scores.iter().copied().zip(c.defective.iter().copied())).unwrap();
            assert!((r.auroc() - c.auroc).abs() < 1e-12, "{}: {}", c.name, r.auroc());
            assert!((r.average_precision() - c.average_precision).abs() < 1e-12, "{}", c.name);
            let (f1, threshold) = r.best_f1();
            assert!((f1 - c.best_f1).abs() < 1e-12, "{}: {f1}", c.name);
            assert_eq!(threshold, c.best_f1_threshold, "{}", c.name);
        }
    }

    #[test]
    fn intervals_are_those_of_scipy() {
        // scipy 1.17.1: binomtest(k, n).proportion_ci(0.95, "exact")
        let table = [
            ((0, 40), [0.0, 0.08809733]),
            ((3, 30), [0.02111714, 0.26528846]),
            ((30, 30), [0.88429663, 1.0]),
            ((0, 0), [0.0, 1.0]),
        ];
        for ((hits, of), wanted) in table {
            let found = interval_95(hits, of);
            assert!((0..2).all(|i| (found[i] - wanted[i]).abs() < 1e-7), "{hits} of {of}: {found:?}");
        }
    }

    #[test]
    fn one_kind_alone_cannot_be_ranked() {
        assert_eq!(Ranking::new([]), None);
        assert_eq!(Ranking::new([(1.0, true), (2.0, true)]), None);
        assert_eq!(Ranking::new([(1.0, false)]), None);
    }

    /// (score, defective) with many ties, at least one of each kind.
    fn samples() -> impl Strategy<Value = Vec<(f32, bool)>> {
        (proptest::collection::vec((0u8..30, any::<bool>()), 1..60), 0u8..30, 0u8..30).prop_map(|(some, a, b)| {
            let all = some.into_iter().chain([(a, true), (b, false)]);
            all.map(|(s, d)| (f32::from(s) / 4.0, d)).collect()
        })
    }

    proptest! {
        /// The definition itself: all pairs, ties half.
        #[test]
        fn auroc_counts_pairs(samples in samples()) {
            let of = |kind: bool| samples.iter().filter(move |s| s.1 == kind).map(|s| s.0);
            let (mut won, mut pairs) = (0.0, 0.0);
            for d in of(true) {
                for g in of(false) {
                    won += if d > g { 1.0 } else if d == g { 0.5 } else { 0.0 };
                    pairs += 1.0;
                }
            }
            let auroc = Ranking::new(samples.iter().copied()).unwrap().auroc();
            prop_assert!((auroc - won / pairs).abs() < 1e-12);
        }

        #[test]
        fn only_the_order_of_scores_matters(samples in samples(), turned in any::<prop::sample::Index>()) {
            let r = Ranking::new(samples.iter().copied()).unwrap();
            let mut other: Vec<_> = samples.iter().map(|&(s, d)| (s.exp() * 0.5 + 3.0, d)).collect();
            let by = turned.index(other.len());
            other.rotate_left(by);
            let q = Ranking::new(other).unwrap();
            prop_assert_eq!((r.auroc(), r.average_precision(), r.best_f1().0), (q.auroc(), q.average_precision(), q.best_f1().0));
            // good and defective exchanged: the same separation seen from the other side
            let exchanged = Ranking::new(samples.iter().map(|&(s, d)| (s, !d))).unwrap();
            prop_assert!((r.auroc() + exchanged.auroc() - 1.0).abs() < 1e-12);
        }

        #[test]
        fn values_stay_in_their_range(samples in samples()) {
            let r = Ranking::new(samples.iter().copied()).unwrap();
            let (f1, threshold) = r.best_f1();
            let prevalence = r.defective as f64 / (r.defective + r.good) as f64;
            prop_assert!((0.0..=1.0).contains(&r.auroc()));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&r.average_precision()) && r.average_precision() > 0.0);
            // calling everything defective is one of the thresholds
            prop_assert!(f1 <= 1.0 && f1 >= 2.0 * prevalence / (1.0 + prevalence) - 1e-12);
            prop_assert!(samples.iter().any(|s| s.0 == threshold));
            prop_assert_eq!(r.roc().last().copied(), Some((1.0, 1.0)));
        }
    }
}
