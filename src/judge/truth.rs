//! Compares verdicts with the truth of a recording.

use crate::error::{Context, Error, Result};
use crate::event::Verdict;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A recording's truth file: which part is at the middle of the picture at which frame, and whether it is defective.
#[derive(Debug, Clone, Deserialize)]
pub struct Truth {
    pub parts: Vec<TruthPart>,
}

/// One part of the truth; other fields of the file are not needed here.
#[derive(Debug, Clone, Deserialize)]
pub struct TruthPart {
    pub part: u64,
    pub label: String,
    pub defective: bool,
    /// Frame at which the part is nearest to the middle of the picture.
    pub centre: u64,
}

/// Counts of a comparison; reject, unsure and missed are positive.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    pub tp: u64,
    pub fp: u64,
    pub r#fn: u64,
    pub tn: u64,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    pub fpr: f64,
    /// Judged parts that belong to no part of the truth (counted in fp).
    pub extra: u64,
    /// Parts of the truth that were not judged (counted in fn if defective, else in fp).
    pub unmatched: u64,
    /// Labels of the defective parts that passed, with the part's number.
    pub escapes: Vec<String>,
    /// Numbers of the good parts that were not passed.
    pub false_rejects: Vec<u64>,
}

impl Truth {
    pub fn load(path: &Path) -> Result<Truth> {
        let text = std::fs::read_to_string(path)
            .usage(|| format!("truth file \"{}\" cannot be read", path.display()))
            .map_err(|e| e.hint("give the recording's truth file with --truth, or leave --truth out"))?;
        let truth: Truth = serde_json::from_str(&text)
            .usage(|| format!("truth file \"{}\" is not understood", path.display()))
            .map_err(|e| e.hint("it needs parts[{part, label, defective, centre}], see assets/README.md"))?;
        if truth.parts.is_empty() {
            return Err(Error::usage(format!("truth file \"{}\" holds no parts", path.display()))
                .hint("it needs parts[{part, label, defective, centre}], see assets/README.md"));
        }
        Ok(truth)
    }

    /// A judged part belongs to the truth part whose centre frame is nearest, within half the part pitch, and to one only.
    pub fn compare(&self, judged: &[(u64, Verdict)]) -> Comparison {
        let mut centres: Vec<u64> = self.parts.iter().map(|p| p.centre).collect();
        centres.sort_unstable();
        let mut gaps: Vec<u64> = centres.windows(2).map(|w| w[1] - w[0]).collect();
        gaps.sort_unstable();
        let pitch = gaps.get(gaps.len() / 2).copied().unwrap_or(u64::MAX);
        let mut verdicts: Vec<Option<(u64, Verdict)>> = vec![None; self.parts.len()];
        let mut c = Comparison::default();
        for &(frame, verdict) in judged {
            let nearest = self
                .parts
                .iter()
                .enumerate()
                .map(|(i, p)| (p.centre.abs_diff(frame), i))
                .min()
                .filter(|(distance, _)| distance.saturating_mul(2) <= pitch);
            match nearest {
                Some((distance, i)) if verdicts[i].is_none_or(|(d, _)| distance < d) => {
                    c.extra += u64::from(verdicts[i].is_some());
                    verdicts[i] = Some((distance, verdict));
                }
                _ => c.extra += 1,
            }
        }
        c.fp += c.extra;
        for (p, v) in self.parts.iter().zip(&verdicts) {
            match (v, p.defective) {
                (None, defective) => {
                    c.unmatched += 1;
                    *(if defective { &mut c.r#fn } else { &mut c.fp }) += 1;
                }
                (Some((_, v)), true) if v.is_anomaly() => c.tp += 1,
                (Some(_), true) => {
                    c.r#fn += 1;
                    c.escapes.push(format!("{} ({})", p.part, p.label));
                }
                (Some((_, v)), false) if v.is_anomaly() => {
                    c.fp += 1;
                    c.false_rejects.push(p.part);
                }
                (Some(_), false) => c.tn += 1,
            }
        }
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        c.precision = ratio(c.tp, c.tp + c.fp);
        c.recall = ratio(c.tp, c.tp + c.r#fn);
        c.f1 = ratio(2 * c.tp, 2 * c.tp + c.fp + c.r#fn);
        c.fpr = ratio(c.fp, c.fp + c.tn);
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(defective: &[bool]) -> Truth {
        let part = |(i, &defective): (usize, &bool)| TruthPart {
            part: i as u64,
            label: if defective { "scratch" } else { "good" }.into(),
            defective,
            centre: 30 + 28 * i as u64,
        };
        Truth { parts: defective.iter().enumerate().map(part).collect() }
    }

    #[test]
    fn each_part_counts_once_however_often_it_was_judged() {
        let t = truth(&[false, true, false, true, true]);
        let c = t.compare(&[
            (31, Verdict::Pass),
            (58, Verdict::Reject),
            (60, Verdict::Reject), // second verdict on part 1
            (86, Verdict::Unsure), // a good part
            (114, Verdict::Pass),  // an escape
            (500, Verdict::Pass),  // belongs to nothing
        ]);
        // part 4 was never judged
        assert_eq!((c.tp, c.fp, c.r#fn, c.tn), (1, 3, 2, 1));
        assert_eq!((c.extra, c.unmatched), (2, 1));
        assert_eq!(c.escapes, ["3 (scratch)"]);
        assert_eq!(c.false_rejects, [2]);
    }
}
