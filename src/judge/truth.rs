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

/// Verdicts against the truth; a ratio without anything to divide by is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Counts {
    pub tp: u64,
    pub fp: u64,
    pub r#fn: u64,
    pub tn: u64,
    /// tp / (tp + fp)
    pub precision: f64,
    /// tp / (tp + fn)
    pub recall: f64,
    /// 2 tp / (2 tp + fp + fn)
    pub f1: f64,
    /// fp / (fp + tn)
    pub fpr: f64,
}

impl Counts {
    pub fn new(tp: u64, fp: u64, r#fn: u64, tn: u64) -> Counts {
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        Counts {
            tp,
            fp,
            r#fn,
            tn,
            precision: ratio(tp, tp + fp),
            recall: ratio(tp, tp + r#fn),
            f1: ratio(2 * tp, 2 * tp + fp + r#fn),
            fpr: ratio(fp, fp + tn),
        }
    }
}

/// Which judged part belongs to which part of the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// For each part of the truth, the index of the judged part that belongs to it.
    pub judged: Vec<Option<usize>>,
    /// Judged parts that belong to no part of the truth.
    pub extra: u64,
}

/// Outcome of a comparison; reject, unsure and missed are positive.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    #[serde(flatten)]
    pub counts: Counts,
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

    /// The usual distance of two parts, in frames.
    fn pitch(&self) -> u64 {
        let mut centres: Vec<u64> = self.parts.iter().map(|p| p.centre).collect();
        centres.sort_unstable();
        let mut gaps: Vec<u64> = centres.windows(2).map(|w| w[1] - w[0]).collect();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).copied().unwrap_or(u64::MAX)
    }

    /// The part of the truth whose centre is nearest to `frame`, within half the part pitch.
    pub fn nearest(&self, frame: u64) -> Option<usize> {
        self.nearest_within(frame, self.pitch()).map(|(_, i)| i)
    }

    fn nearest_within(&self, frame: u64, pitch: u64) -> Option<(u64, usize)> {
        let distances = self.parts.iter().enumerate().map(|(i, p)| (p.centre.abs_diff(frame), i));
        distances.min().filter(|(distance, _)| distance.saturating_mul(2) <= pitch)
    }

    /// A judged part belongs to the truth part whose centre frame is nearest, within half the part pitch, and to one only:
    /// of several, the nearest. `frames` are the frames of the judged parts.
    pub fn assign(&self, frames: &[u64]) -> Assignment {
        let pitch = self.pitch();
        let mut best: Vec<Option<(u64, usize)>> = vec![None; self.parts.len()];
        let mut extra = 0;
        for (index, &frame) in frames.iter().enumerate() {
            match self.nearest_within(frame, pitch) {
                Some((distance, i)) if best[i].is_none_or(|(d, _)| distance < d) => {
                    extra += u64::from(best[i].is_some());
                    best[i] = Some((distance, index));
                }
                _ => extra += 1,
            }
        }
        Assignment { judged: best.into_iter().map(|b| b.map(|(_, index)| index)).collect(), extra }
    }

    /// Compares verdicts, each with its frame, with the truth.
    pub fn compare(&self, judged: &[(u64, Verdict)]) -> Comparison {
        let assignment = self.assign(&judged.iter().map(|(frame, _)| *frame).collect::<Vec<_>>());
        let mut c = Comparison { extra: assignment.extra, ..Comparison::default() };
        let (mut tp, mut fp, mut r#fn, mut tn) = (0, assignment.extra, 0, 0);
        for (p, index) in self.parts.iter().zip(&assignment.judged) {
            match (index.map(|i| judged[i].1), p.defective) {
                (None, defective) => {
                    c.unmatched += 1;
                    *(if defective { &mut r#fn } else { &mut fp }) += 1;
                }
                (Some(v), true) if v.is_anomaly() => tp += 1,
                (Some(_), true) => {
                    r#fn += 1;
                    c.escapes.push(format!("{} ({})", p.part, p.label));
                }
                (Some(v), false) if v.is_anomaly() => {
                    fp += 1;
                    c.false_rejects.push(p.part);
                }
                (Some(_), false) => tn += 1,
            }
        }
        c.counts = Counts::new(tp, fp, r#fn, tn);
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
        assert_eq!((c.counts.tp, c.counts.fp, c.counts.r#fn, c.counts.tn), (1, 3, 2, 1));
        assert_eq!((c.extra, c.unmatched), (2, 1));
        assert_eq!(c.escapes, ["3 (scratch)"]);
        assert_eq!(c.false_rejects, [2]);
    }
}
