//! The numbers behind the Insights page: what was decided, how well, and what another threshold would have done.
//!
//! Thread: none; plain values. The store computes them: `Store::insight` and
//! `Store::what_if`.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Decision;

/// Cells along each side of a [`Places`] grid.
pub const GRID: usize = 32;
/// Bins of a what-if histogram.
pub const BINS: usize = 200;

/// What a statistic is about; `None` means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    pub line: Option<String>,
    /// `name@version`.
    pub model: Option<String>,
    /// Captured then or later.
    pub since: Option<Timestamp>,
    /// Captured before.
    pub until: Option<Timestamp>,
}

/// What the lines decided and what people said about it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Insight {
    /// Grows with every change of the store.
    pub revision: i64,
    /// Minutes that each entry of `rates` covers.
    pub bucket_minutes: i64,
    /// Parts over time, from the line reports, oldest first; times at which no part was reported are left out.
    pub rates: Vec<Rate>,
    /// Anomalies that match.
    pub anomalies: u64,
    /// Those of them that nobody has reviewed.
    pub unreviewed: u64,
    /// Anomalies with a decision that holds, by the line's verdict: the confusion of verdict against decision.
    pub confusion: Vec<Confusion>,
    /// Reviewed defects by type, the most frequent first.
    pub defect_types: Vec<TypeCount>,
    /// Where on the part the strongest region of each rejected anomaly lies.
    pub rejects: Places,
    /// The same for anomalies that were reviewed as defects.
    pub defects: Places,
    /// Share of rejects that were right, as reviewed: defects among defects and false alarms with the verdict `reject`.
    pub precision: Option<Share>,
    /// How far reviewers agree with one another.
    pub agreement: Agreement,
}

/// Parts of one stretch of time, by verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Rate {
    /// Where the stretch begins.
    pub at: Timestamp,
    pub pass: u64,
    pub reject: u64,
    pub unsure: u64,
    pub missed: u64,
}

/// A verdict and what people said about the anomalies that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Confusion {
    /// `reject`, `unsure` or `missed`.
    pub verdict: String,
    pub defect: u64,
    pub false_alarm: u64,
    pub unclear: u64,
    pub unreviewed: u64,
}

/// How many defects have a type.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TypeCount {
    /// `None`: a defect without a type.
    pub defect_type: Option<String>,
    pub count: u64,
    /// Of this type and of all that are more frequent, as a share of all defects.
    pub cumulated: f64,
}

/// Counts on a grid that covers the part (the judged box, or the picture where there is none).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Places {
    /// Cells along each side.
    pub side: usize,
    /// `side` rows of `side` cells, the top left first.
    pub cells: Vec<u64>,
    /// Sum of the cells; anomalies without a region have no place.
    pub total: u64,
}

/// A share with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Share {
    pub hits: u64,
    pub of: u64,
    /// hits / of.
    pub value: f64,
    /// Wilson's score interval at 95 % (Wilson 1927, JASA 22).
    pub low: f64,
    pub high: f64,
}

/// Agreement of reviewers on the anomalies that two or more of them have judged; each one's latest decision counts.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Agreement {
    /// Anomalies that two or more reviewers judged.
    pub anomalies: u64,
    /// Pairs of reviewers, the ones with most anomalies in common first.
    pub pairs: Vec<Pair>,
}

/// Two reviewers.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Pair {
    pub a: String,
    pub b: String,
    /// Anomalies that both judged.
    pub both: u64,
    /// On which they said the same.
    pub same: u64,
    /// Cohen's kappa (Cohen 1960, Educ. Psychol. Meas. 20): agreement beyond chance, 1 is full. `None` where chance alone
    /// would agree always.
    pub kappa: Option<f64>,
}

/// What another threshold would have done to the parts of a line and model.
///
/// The parts are those of the line reports (passes among them) and the anomalies. An anomaly is the part of the same line and
/// number captured within a second of it; one whose part was not reported (yet) counts by its own score. Only `pass` and
/// `reject` follow from the score; `unsure` and `missed` parts leave at any threshold.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct WhatIf {
    /// Grows with every change of the store.
    pub revision: i64,
    pub line: String,
    /// `name@version`: scores of different models cannot be compared.
    pub model: String,
    /// The captures that were looked at: only the newest ones where there are very many.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Whether older parts were left out.
    pub cut: bool,
    /// Parts with a score that a threshold decides on: pass and reject.
    pub parts: u64,
    /// Parts that leave at any threshold.
    pub unsure: u64,
    pub missed: u64,
    /// Anomalies whose part was not reported (yet).
    pub unmatched: u64,
    /// Bytes that an anomaly of this line and model takes, on average.
    pub mean_bytes: f64,
    /// From the lowest to the highest score. The current threshold is always an edge between two bins, so that sums over bins
    /// are exact there; elsewhere ask with `threshold`.
    pub bins: Vec<Bin>,
    /// What the threshold that holds now does to all of them, also to those that were judged by another one.
    pub current: Outcome,
    /// What the asked threshold would have decided; `None` where none was asked for.
    pub proposed: Option<Outcome>,
}

/// Parts with a score above `low` and at most `high` (the first bin has its `low` as well, and may be of no width). It lies above
/// the current threshold when its `high` does.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Bin {
    pub low: f64,
    pub high: f64,
    /// Parts by what was decided.
    pub pass: u64,
    pub reject: u64,
    /// Of these, by review; a part that passed has none.
    pub defect: u64,
    pub false_alarm: u64,
    pub unclear: u64,
    /// Rejects without a review.
    pub unreviewed: u64,
}

/// What a threshold does.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Outcome {
    pub threshold: f64,
    /// Parts above the threshold.
    pub rejects: u64,
    /// Rejects that people called false alarms.
    pub false_rejects: u64,
    /// Parts that passed and would be rejected.
    pub passes_rejected: u64,
    /// Known defects at or below the threshold: they would not be seen.
    pub escapes: u64,
    /// Known defects above the threshold.
    pub caught: u64,
    /// Rejects that nobody has reviewed; parts that passed count among them.
    pub unreviewed: u64,
    /// Bytes to the review server: rejects as they were, parts that passed at the mean, and what leaves at any threshold.
    pub bytes: u64,
}

impl Share {
    /// `hits` of `of`; nothing of nothing has no share.
    pub fn new(hits: u64, of: u64) -> Option<Share> {
        const Z: f64 = 1.959_963_984_540_054; // 97.5 % quantile of the normal distribution
        if of == 0 {
            return None;
        }
        let (n, value) = (of as f64, hits as f64 / of as f64);
        let scale = 1.0 + Z * Z / n;
        let centre = (value + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (value * (1.0 - value) / n + Z * Z / (4.0 * n * n)).sqrt();
        Some(Share { hits, of, value, low: (centre - half).max(0.0), high: (centre + half).min(1.0) })
    }
}

impl Places {
    /// No counts yet.
    pub fn new() -> Places {
        Places { side: GRID, cells: vec![0; GRID * GRID], total: 0 }
    }
    /// Counts one at a place, 0..1 each.
    pub fn add(&mut self, x: f64, y: f64) {
        let cell = |at: f64| ((at * GRID as f64) as usize).min(GRID - 1);
        if let Some(count) = self.cells.get_mut(cell(y) * GRID + cell(x)) {
            *count += 1;
            self.total += 1;
        }
    }
}

impl Default for Places {
    fn default() -> Places {
        Places::new()
    }
}

/// Cohen's kappa of two reviewers from how often they said what: `table[a][b]`, by [`Decision::ALL`].
pub fn kappa(table: &[[u64; Decision::ALL.len()]; Decision::ALL.len()]) -> Option<f64> {
    let total = table.iter().flatten().sum::<u64>() as f64;
    let (mut same, mut chance) = (0.0, 0.0);
    for (i, row) in table.iter().enumerate() {
        same += row.get(i).copied().unwrap_or(0) as f64 / total;
        let (a, b) = (row.iter().sum::<u64>() as f64, table.iter().map(|r| r[i]).sum::<u64>() as f64);
        chance += a * b / (total * total);
    }
    (total > 0.0 && chance < 1.0 - 1e-12).then(|| (same - chance) / (1.0 - chance))
}
