//! Computes a [`WhatIf`]: the stored scores of a line and model, with what people said about them, against a threshold.
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
const MOST_PARTS: usize = 1_000_000;
/// How far a report's time of a part may be from the capture of its anomaly.
const SAME_NS: u64 = 1_000_000_000;
/// From this ratio of the greatest to the least score on, bins are of equal width in the logarithm.
const LOG_FROM: f64 = 20.0;

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
pub(super) fn what_if(
    db: &Connection,
    line: &str,
    model: Option<&str>,
    threshold: Option<f64>,
) -> Result<Option<WhatIf>> {
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
    let mut parts = Vec::new();
    let cut = reported(db, line, origin, &mut parts).failed(cannot)?;
    let since = if cut { parts.iter().map(|p| p.at).min() } else { None };
    let mut anomalies = anomalies(db, origin, since.unwrap_or(i64::MIN)).failed(cannot)?;
    let parts: Vec<Part> = parts.into_iter().map(|part| part.with(&mut anomalies)).collect();
    let (parts, unmatched) = add_unmatched(parts, anomalies);
    let (count, bytes): (i64, i64) = db
        .prepare_cached("SELECT COALESCE(SUM(count), 0), COALESCE(SUM(bytes), 0) FROM tallies WHERE origin = ?")
        .failed(cannot)?
        .query_row([origin], |r| Ok((r.get(0)?, r.get(1)?)))
        .failed(cannot)?;
    let mean_bytes = if count > 0 { bytes as f64 / count as f64 } else { 0.0 };

    let times = || parts.iter().map(|p| p.at);
    let time = |at: Option<i64>| at.map(|at| Timestamp::from_nanosecond(at.into()).failed(cannot)).transpose();
    let always = |verdict| parts.iter().filter(|p| p.verdict == verdict).count() as u64;
    let decided: Vec<&Part> = parts.iter().filter(|p| p.is_decided_by_score()).collect();
    Ok(Some(WhatIf {
        revision: query::revision(db)?,
        line: line.to_owned(),
        model,
        since: time(times().min())?,
        until: time(times().max())?,
        cut,
        parts: decided.len() as u64,
        unsure: always(Verdict::Unsure),
        missed: always(Verdict::Missed),
        unmatched,
        mean_bytes,
        bins: bins(&decided, current),
        current: outcome(&parts, current, mean_bytes),
        proposed: threshold.map(|threshold| outcome(&parts, threshold, mean_bytes)),
    }))
}

/// A part as a report had it.
struct Reported {
    part: i64,
    at: i64,
    score: f64,
    verdict: Verdict,
}

impl Reported {
    /// With what people said about its anomaly, which is thereby found.
    fn with(self, anomalies: &mut HashMap<i64, Vec<Loose>>) -> Part {
        let Reported { part, at, score, verdict } = self;
        let same = anomalies.get_mut(&part).and_then(|of_number| {
            let near = |a: &&mut Loose| !a.found && a.at.abs_diff(at) <= SAME_NS;
            of_number.iter_mut().filter(near).min_by_key(|a| a.at.abs_diff(at))
        });
        let Some(anomaly) = same else { return Part { at, score, verdict, review: None, bytes: None } };
        anomaly.found = true;
        Part { at, score, verdict, review: anomaly.review, bytes: Some(anomaly.bytes) }
    }
}

impl Part {
    /// Unsure and missed parts leave whatever their score is.
    fn is_decided_by_score(&self) -> bool {
        matches!(self.verdict, Verdict::Pass | Verdict::Reject)
    }
}

fn verdict(word: &str) -> Verdict {
    let all = [Verdict::Pass, Verdict::Reject, Verdict::Unsure];
    all.into_iter().find(|v| v.as_str() == word).unwrap_or(Verdict::Missed)
}

/// The parts of the line reports, the newest run first; whether some were left out.
fn reported(db: &Connection, line: &str, origin: i64, parts: &mut Vec<Reported>) -> rusqlite::Result<bool> {
    let mut runs = db.prepare_cached("SELECT id FROM runs WHERE line = ? AND parts > 0 ORDER BY at DESC, id DESC")?;
    let mut of_run = db.prepare_cached(
        "SELECT part, at, score, verdict FROM parts WHERE run = ? AND origin = ? ORDER BY part DESC LIMIT ?",
    )?;
    let mut runs = runs.query([line])?;
    while let Some(run) = runs.next()? {
        let left = MOST_PARTS - parts.len();
        let most = i64::try_from(left).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = of_run.query([run.get::<_, i64>(0)?, origin, most])?;
        while let Some(row) = rows.next()? {
            if parts.len() == MOST_PARTS {
                return Ok(true);
            }
            parts.push(Reported {
                part: row.get(0)?,
                at: row.get(1)?,
                score: row.get(2)?,
                verdict: verdict(row.get_ref(3)?.as_str()?),
            });
        }
    }
    Ok(false)
}

/// The anomalies, by part number.
fn anomalies(db: &Connection, origin: i64, since: i64) -> rusqlite::Result<HashMap<i64, Vec<Loose>>> {
    let mut tallies: HashMap<i64, (Verdict, Option<Decision>)> = HashMap::new();
    let mut statement = db.prepare_cached("SELECT id, verdict, review FROM tallies WHERE origin = ?")?;
    let mut rows = statement.query([origin])?;
    while let Some(row) = rows.next()? {
        let review = Decision::from_word(row.get_ref(2)?.as_str()?);
        tallies.insert(row.get(0)?, (verdict(row.get_ref(1)?.as_str()?), review));
    }
    let mut statement = db.prepare_cached(
        "SELECT part, captured_at, score, tally, bytes FROM anomalies INDEXED BY anomalies_by_part
         WHERE origin = ? AND captured_at >= ?",
    )?;
    let mut rows = statement.query([origin, since])?;
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

/// Adds the anomalies that no report has (yet); gives how many they are.
fn add_unmatched(mut parts: Vec<Part>, anomalies: HashMap<i64, Vec<Loose>>) -> (Vec<Part>, u64) {
    let before = parts.len();
    let loose = anomalies.into_values().flatten().filter(|a| !a.found);
    parts.extend(loose.map(|a| Part {
        at: a.at,
        score: a.score,
        verdict: a.verdict,
        review: a.review,
        bytes: Some(a.bytes),
    }));
    let unmatched = parts.len() - before;
    (parts, unmatched as u64)
}

fn outcome(parts: &[Part], threshold: f64, mean_bytes: f64) -> Outcome {
    let mut out = Outcome {
        threshold,
        rejects: 0,
        false_rejects: 0,
        passes_rejected: 0,
        escapes: 0,
        caught: 0,
        unreviewed: 0,
        bytes: 0,
    };
    let mut bytes = 0.0;
    for part in parts {
        let size = part.bytes.map_or(mean_bytes, |bytes| bytes as f64);
        if !part.is_decided_by_score() {
            bytes += size;
            continue;
        }
        let above = part.score > threshold;
        if above {
            out.rejects += 1;
            bytes += size;
        }
        match part.review {
            Some(Decision::Defect) if above => out.caught += 1,
            Some(Decision::Defect) => out.escapes += 1,
            Some(Decision::FalseAlarm) if above => out.false_rejects += 1,
            None if above => out.unreviewed += 1,
            _ => {}
        }
        if above && part.verdict == Verdict::Pass {
            out.passes_rejected += 1;
        }
    }
    out.bytes = bytes as u64;
    out
}

fn bins(parts: &[&Part], current: f64) -> Vec<Bin> {
    let edges = edges(parts.iter().map(|p| p.score), current);
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
    for part in parts {
        let at = bins.partition_point(|bin| bin.high < part.score);
        let Some(bin) = bins.get_mut(at) else { continue };
        match part.verdict {
            Verdict::Pass => bin.pass += 1,
            _ => bin.reject += 1,
        }
        match part.review {
            Some(Decision::Defect) => bin.defect += 1,
            Some(Decision::FalseAlarm) => bin.false_alarm += 1,
            Some(Decision::Unclear) => bin.unclear += 1,
            None if part.verdict == Verdict::Reject => bin.unreviewed += 1,
            None => {}
        }
    }
    bins
}

/// Edges of at most [`BINS`] bins that hold all scores, one of them the current threshold. Rising.
fn edges(scores: impl Iterator<Item = f64> + Clone, current: f64) -> Vec<f64> {
    let least = scores.clone().fold(f64::INFINITY, f64::min);
    let most = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    if least > most {
        return Vec::new();
    }
    let least_positive = scores.filter(|s| *s > 0.0).fold(f64::INFINITY, f64::min);
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
