//! Computes a [`WhatIf`]: the stored scores of a line and model, with what people said about them, against a threshold. What was
//! read is a [`Replay`], which answers any threshold at once and is kept for the next one (see [`remember`](super::remember)).
//!
//! Thread: every call blocks; the connection is a reader of the store, inside a transaction.
//!
//! A part of a report and an anomaly are the same when line, model and part number are and the report's time is within
//! [`SAME_NS`] of the capture: both are the same instant of the same ledger row, but numbers begin anew with each run.
//!
//! Invariants:
//! 1. Every part counts once, whether it came in a report, as an anomaly, or both. Test: `what_if_counts_every_part_once`.
//! 2. Sums over bins are exact at the current threshold, and outcomes at any. Test: `what_if_equals_a_naive_replay`.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::stats::{BINS, Bin, Outcome, WhatIf};
use super::{Decision, query};
use crate::error::{Context, Result};
use crate::event::Verdict;

/// Parts that are looked at, the newest ones.
const MOST_PARTS: u64 = 1_000_000;
/// How far a report's time of a part may be from the capture of its anomaly.
const SAME_NS: u64 = 1_000_000_000;
/// From this ratio of the greatest to the least score on, bins are of equal width in the logarithm.
const LOG_FROM: f64 = 20.0;

/// The parts of a line and model, ready for any threshold.
#[derive(Debug)]
pub(super) struct Replay {
    /// Without a proposed threshold.
    known: WhatIf,
    scores: Scores,
}

impl Replay {
    /// With what `threshold` would have done.
    pub fn answer(&self, threshold: Option<f64>) -> WhatIf {
        let proposed = threshold.map(|threshold| self.scores.outcome(threshold, self.known.mean_bytes));
        WhatIf { proposed, ..self.known.clone() }
    }
}

/// One part, whichever way it came.
struct Part {
    at: i64,
    score: f64,
    verdict: Verdict,
    review: Option<Decision>,
    /// Of its anomaly.
    bytes: Option<u64>,
}

/// An anomaly that has not found its part yet.
struct Loose {
    at: i64,
    score: f64,
    verdict: Verdict,
    review: Option<Decision>,
    bytes: u64,
    found: bool,
}

/// See [`Store::what_if`](super::Store::what_if).
pub(super) fn replay(db: &Connection, line: &str, model: Option<&str>) -> Result<Option<Replay>> {
    let cannot = || format!("cannot replay the scores of line \"{line}\"");
    let origin = db
        .prepare_cached(
            "SELECT id, model, threshold FROM origins WHERE line = ?1 AND (?2 IS NULL OR model = ?2)
             ORDER BY heard_at DESC, id DESC LIMIT 1",
        )
        .failed(cannot)?
        .query_row(params![line, model], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?, r.get::<_, f64>(2)?)))
        .optional()
        .failed(cannot)?;
    let Some((origin, model, current)) = origin else { return Ok(None) };
    let mut anomalies = anomalies(db, origin).failed(cannot)?;
    let mut scores = Scores::default();
    let cut = reported(db, line, origin, &mut anomalies, &mut scores).failed(cannot)?;
    // where parts were left out, so are the anomalies of their time
    let since = scores.span.filter(|_| cut).map_or(i64::MIN, |(first, _)| first);
    let mut unmatched = 0;
    for Loose { at, score, verdict, review, bytes, .. } in
        anomalies.into_values().flatten().filter(|a| !a.found && a.at >= since)
    {
        unmatched += 1;
        scores.add(Part { at, score, verdict, review, bytes: Some(bytes) });
    }
    scores.sort();
    let (count, bytes): (i64, i64) = db
        .prepare_cached("SELECT COALESCE(SUM(count), 0), COALESCE(SUM(bytes), 0) FROM tallies WHERE origin = ?")
        .failed(cannot)?
        .query_row([origin], |r| Ok((r.get(0)?, r.get(1)?)))
        .failed(cannot)?;
    let mean_bytes = if count > 0 { bytes as f64 / count as f64 } else { 0.0 };
    let time = |at: Option<i64>| at.map(|at| Timestamp::from_nanosecond(at.into()).failed(cannot)).transpose();
    let known = WhatIf {
        revision: query::revision(db)?,
        line: line.to_owned(),
        model,
        since: time(scores.span.map(|s| s.0))?,
        until: time(scores.span.map(|s| s.1))?,
        cut,
        parts: (scores.passes.len() + scores.rejects.len()) as u64,
        unsure: scores.unsure,
        missed: scores.missed,
        unmatched,
        mean_bytes,
        bins: scores.bins(current),
        current: scores.outcome(current, mean_bytes),
        proposed: None,
    };
    Ok(Some(Replay { known, scores }))
}

fn verdict(word: &str) -> Verdict {
    let all = [Verdict::Pass, Verdict::Reject, Verdict::Unsure];
    all.into_iter().find(|v| v.as_str() == word).unwrap_or(Verdict::Missed)
}

/// Adds the parts of the line reports, the newest run first, and with them the anomalies that they are; whether some were left
/// out.
fn reported(
    db: &Connection,
    line: &str,
    origin: i64,
    anomalies: &mut HashMap<i64, Vec<Loose>>,
    scores: &mut Scores,
) -> rusqlite::Result<bool> {
    let mut runs = db.prepare_cached("SELECT id FROM runs WHERE line = ? AND parts > 0 ORDER BY at DESC, id DESC")?;
    let mut of_run = db.prepare_cached(
        "SELECT part, at, score, verdict FROM parts WHERE run = ? AND origin = ? ORDER BY part DESC LIMIT ?",
    )?;
    let mut runs = runs.query([line])?;
    let mut left = MOST_PARTS;
    while let Some(run) = runs.next()? {
        let most = i64::try_from(left).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = of_run.query([run.get::<_, i64>(0)?, origin, most])?;
        while let Some(row) = rows.next()? {
            if left == 0 {
                return Ok(true);
            }
            left -= 1;
            let (number, at): (i64, i64) = (row.get(0)?, row.get(1)?);
            let (score, verdict) = (row.get(2)?, verdict(row.get_ref(3)?.as_str()?));
            let same = anomalies.get_mut(&number).and_then(|of_number| {
                let near = |a: &&mut Loose| !a.found && a.at.abs_diff(at) <= SAME_NS;
                of_number.iter_mut().filter(near).min_by_key(|a| a.at.abs_diff(at))
            });
            let (mut review, mut bytes) = (None, None);
            if let Some(anomaly) = same {
                anomaly.found = true;
                (review, bytes) = (anomaly.review, Some(anomaly.bytes));
            }
            scores.add(Part { at, score, verdict, review, bytes });
        }
    }
    Ok(false)
}

/// The anomalies, by part number.
fn anomalies(db: &Connection, origin: i64) -> rusqlite::Result<HashMap<i64, Vec<Loose>>> {
    let mut tallies: HashMap<i64, (Verdict, Option<Decision>)> = HashMap::new();
    let mut statement = db.prepare_cached("SELECT id, verdict, review FROM tallies WHERE origin = ?")?;
    let mut rows = statement.query([origin])?;
    while let Some(row) = rows.next()? {
        let review = Decision::from_word(row.get_ref(2)?.as_str()?);
        tallies.insert(row.get(0)?, (verdict(row.get_ref(1)?.as_str()?), review));
    }
    let mut statement = db.prepare_cached(
        "SELECT part, captured_at, score, tally, bytes FROM anomalies INDEXED BY anomalies_by_part WHERE origin = ?",
    )?;
    let mut rows = statement.query([origin])?;
    let mut found: HashMap<i64, Vec<Loose>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let Some((verdict, review)) = tallies.get(&row.get(3)?).copied() else { continue };
        found.entry(row.get(0)?).or_default().push(Loose {
            at: row.get(1)?,
            score: row.get(2)?,
            verdict,
            review,
            bytes: row.get::<_, i64>(4)?.unsigned_abs(),
            found: false,
        });
    }
    Ok(found)
}

/// Scores of parts that a threshold decides on, in lists that rise once they are sorted; so what is above a threshold is found by
/// halving. What leaves at any threshold is summed up.
#[derive(Debug, Default)]
struct Scores {
    passes: Vec<f64>,
    rejects: Vec<f64>,
    /// Rejects that nobody has reviewed.
    open: Vec<f64>,
    /// Of both verdicts, by decision in the order of [`Decision::ALL`].
    reviewed: [Vec<f64>; Decision::ALL.len()],
    /// Parts that came as anomalies, with their bytes; once sorted, with the bytes of all that are not below.
    sent: Vec<(f64, u64)>,
    unsure: u64,
    missed: u64,
    /// Bytes of what leaves at any threshold, as far as it was sent, and how many parts were not.
    always_bytes: u64,
    always_unsent: u64,
    /// Times of the first part and the last.
    span: Option<(i64, i64)>,
}

/// How many of a rising list are above a threshold.
fn above(scores: &[f64], threshold: f64) -> u64 {
    (scores.len() - scores.partition_point(|s| *s <= threshold)) as u64
}

impl Scores {
    fn add(&mut self, part: Part) {
        let (first, last) = self.span.unwrap_or((part.at, part.at));
        self.span = Some((first.min(part.at), last.max(part.at)));
        let list = match part.verdict {
            Verdict::Pass => &mut self.passes,
            Verdict::Reject => &mut self.rejects,
            Verdict::Unsure | Verdict::Missed => {
                // it leaves whatever its score is
                *if part.verdict == Verdict::Unsure { &mut self.unsure } else { &mut self.missed } += 1;
                match part.bytes {
                    Some(bytes) => self.always_bytes += bytes,
                    None => self.always_unsent += 1,
                }
                return;
            }
        };
        list.push(part.score);
        match part.review.and_then(|said| Decision::ALL.iter().position(|d| *d == said)) {
            Some(said) => self.reviewed[said].push(part.score),
            None if part.verdict == Verdict::Reject => self.open.push(part.score),
            None => {}
        }
        if let Some(bytes) = part.bytes {
            self.sent.push((part.score, bytes));
        }
    }

    fn sort(&mut self) {
        let lists = [&mut self.passes, &mut self.rejects, &mut self.open].into_iter().chain(&mut self.reviewed);
        for list in lists {
            list.sort_unstable_by(f64::total_cmp);
        }
        self.sent.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut sum = 0;
        for (_, bytes) in self.sent.iter_mut().rev() {
            sum += *bytes;
            *bytes = sum;
        }
    }

    fn outcome(&self, threshold: f64, mean_bytes: f64) -> Outcome {
        let [defects, false_alarms, unclear] = &self.reviewed;
        let passes_rejected = above(&self.passes, threshold);
        let rejects = passes_rejected + above(&self.rejects, threshold);
        let caught = above(defects, threshold);
        let false_rejects = above(false_alarms, threshold);
        let first_sent = self.sent.partition_point(|(score, _)| *score <= threshold);
        let sent_bytes = self.sent.get(first_sent).map_or(0, |(_, bytes)| *bytes);
        let unsent = rejects - (self.sent.len() - first_sent) as u64 + self.always_unsent;
        Outcome {
            threshold,
            rejects,
            false_rejects,
            passes_rejected,
            escapes: defects.len() as u64 - caught,
            caught,
            unreviewed: rejects - caught - false_rejects - above(unclear, threshold),
            bytes: self.always_bytes + sent_bytes + (unsent as f64 * mean_bytes) as u64,
        }
    }

    fn bins(&self, current: f64) -> Vec<Bin> {
        let edges = self.edges(current);
        let lists = [&self.passes, &self.rejects, &self.open].into_iter().chain(&self.reviewed);
        let mut bins: Vec<Bin> = edges
            .windows(2)
            .map(|pair| Bin {
                low: pair[0],
                high: pair[1],
                pass: 0,
                reject: 0,
                defect: 0,
                false_alarm: 0,
                unclear: 0,
                unreviewed: 0,
            })
            .collect();
        for (which, list) in lists.enumerate() {
            let mut below = 0; // what the bins before have
            for bin in &mut bins {
                let to_here = list.partition_point(|s| *s <= bin.high);
                let count = (to_here - below) as u64;
                below = to_here;
                match which {
                    0 => bin.pass = count,
                    1 => bin.reject = count,
                    2 => bin.unreviewed = count,
                    3 => bin.defect = count,
                    4 => bin.false_alarm = count,
                    _ => bin.unclear = count,
                }
            }
        }
        bins
    }

    /// Edges of at most [`BINS`] bins that hold all scores, one of them the current threshold. Rising.
    fn edges(&self, current: f64) -> Vec<f64> {
        let decided = [&self.passes, &self.rejects];
        let least = decided.iter().filter_map(|list| list.first().copied()).fold(f64::INFINITY, f64::min);
        let most = decided.iter().filter_map(|list| list.last().copied()).fold(f64::NEG_INFINITY, f64::max);
        if least > most {
            return Vec::new();
        }
        let positive = decided.iter().filter_map(|list| list.get(list.partition_point(|s| *s <= 0.0)).copied());
        let least_positive = positive.fold(f64::INFINITY, f64::min);
        let (low, high) = (least.min(current), most.max(current));
        // a score of zero is in the first bin, however wide the others are
        let start = if current > 0.0 { least_positive.min(current) } else { low };
        let log = start > 0.0 && high / start > LOG_FROM;
        let to = |value: f64| if log { value.ln() } else { value };
        let from = |value: f64| if log { value.exp() } else { value };
        let from_low = if log { start } else { low };
        let (a, t, b) = (to(from_low), to(current), to(high));
        let spread = b - a;
        let below = if spread > 0.0 { ((t - a) / spread * BINS as f64).round() as usize } else { 0 };
        // the first bin has its low edge as well: where that is the threshold, a bin of its own keeps what is not above it
        let below = below.clamp(1, BINS - usize::from(high > current));
        let mut edges: Vec<f64> = (0..below).map(|i| from(a + (t - a) * i as f64 / below as f64)).collect();
        if let Some(first) = edges.first_mut() {
            *first = low; // exactly, whatever rounding does
        }
        edges.push(current);
        let above = if high > current { BINS - below } else { 0 };
        edges.extend((1..=above).map(|i| from(t + (b - t) * i as f64 / above as f64)));
        if above > 0
            && let Some(last) = edges.last_mut()
        {
            *last = high;
        }
        edges
    }
}
