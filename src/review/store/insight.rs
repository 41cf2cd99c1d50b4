//! Computes an [`Insight`]: one pass over an index that has all it needs, and the minutes of the line reports.
//!
//! Thread: every call blocks; the connection is a reader of the store, inside a transaction.
//!
//! Invariants:
//! 1. The numbers are what counting by hand gives. Tests: `insight_counts_what_was_decided`, `insight_equals_a_naive_count`.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::reviews::STANDS;
use super::stats::{Agreement, Confusion, Insight, Pair, Places, Rate, Scope, Share, TypeCount, kappa};
use super::{Decision, nanoseconds, query};
use crate::error::{Context, Result};
use crate::event::Verdict;

const MINUTE_NS: i64 = 60_000_000_000;
/// Entries of a rate over time, at most.
const BUCKETS: i64 = 200;
const HOUR: i64 = 60;
/// What a bucket may be, in minutes: a minute, five, a quarter of an hour, hours, days, a week, four.
const STEPS: [i64; 9] = [1, 5, 15, 60, 240, 1440, 4320, 10_080, 40_320];
/// Anomalies judged by several people that agreement is taken from, the newest ones.
const MOST_AGREEMENT: i64 = 20_000;
const DECISIONS: usize = Decision::ALL.len();

/// See [`Store::insight`](super::Store::insight).
pub(super) fn insight(db: &Connection, scope: &Scope) -> Result<Insight> {
    let cannot = || "cannot compute the insights";
    let since = scope.since.map(nanoseconds).transpose()?.unwrap_or(i64::MIN);
    let until = scope.until.map(nanoseconds).transpose()?.unwrap_or(i64::MAX);
    let (bucket_minutes, rates) = rates(db, scope, since, until)?;
    let (mut rejects, mut defects) = (Places::new(), Places::new());
    let mut tallies = tallies(db, scope).failed(cannot)?;
    let always = scope.since.is_none() && scope.until.is_none();
    let mut origins: Vec<i64> = tallies.values().map(|t| t.origin).collect();
    origins.sort_unstable();
    origins.dedup();
    for origin in origins {
        let mut statement = db
            .prepare_cached(
                "SELECT tally, place_x, place_y FROM anomalies INDEXED BY anomalies_by_spot
                 WHERE origin = ? AND captured_at >= ? AND captured_at < ?",
            )
            .failed(cannot)?;
        let mut rows = statement.query([origin, since, until]).failed(cannot)?;
        while let Some(row) = rows.next().failed(cannot)? {
            let Some(tally) = tallies.get_mut(&row.get(0).failed(cannot)?) else { continue };
            if !always {
                tally.found += 1;
            }
            let (x, y): (Option<f64>, Option<f64>) = (row.get(1).failed(cannot)?, row.get(2).failed(cannot)?);
            if let (Some(x), Some(y)) = (x, y) {
                if tally.is_reject {
                    rejects.add(x, y);
                }
                if tally.review == Some(Decision::Defect) {
                    defects.add(x, y);
                }
            }
        }
    }
    if always {
        tallies.values_mut().for_each(|tally| tally.found = tally.count);
    }
    let mut confusion: Vec<Confusion> =
        [Verdict::Reject, Verdict::Unsure, Verdict::Missed].map(|v| Confusion::none(v.as_str())).into();
    let mut types: BTreeMap<Option<&str>, u64> = BTreeMap::new();
    for tally in tallies.values() {
        let count = tally.found;
        if let Some(row) = confusion.iter_mut().find(|row| row.verdict == tally.verdict) {
            match tally.review {
                Some(Decision::Defect) => row.defect += count,
                Some(Decision::FalseAlarm) => row.false_alarm += count,
                Some(Decision::Unclear) => row.unclear += count,
                None => row.unreviewed += count,
            }
        }
        if tally.review == Some(Decision::Defect) && count > 0 {
            *types.entry(tally.defect_type.as_deref()).or_default() += count;
        }
    }
    let rejected = confusion.first().map_or((0, 0), |reject| (reject.defect, reject.defect + reject.false_alarm));
    Ok(Insight {
        revision: query::revision(db)?,
        bucket_minutes,
        rates,
        anomalies: tallies.values().map(|t| t.found).sum(),
        unreviewed: confusion.iter().map(|row| row.unreviewed).sum(),
        confusion,
        defect_types: pareto(types),
        rejects,
        defects,
        precision: Share::new(rejected.0, rejected.1),
        agreement: agreement(db, scope, since, until).failed(cannot)?,
    })
}

impl Confusion {
    fn none(verdict: &str) -> Confusion {
        Confusion { verdict: verdict.into(), defect: 0, false_alarm: 0, unclear: 0, unreviewed: 0 }
    }
}

/// The most frequent first.
fn pareto(types: BTreeMap<Option<&str>, u64>) -> Vec<TypeCount> {
    let all = types.values().sum::<u64>().max(1) as f64;
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut sum = 0;
    let counted = types.into_iter().map(|(defect_type, count)| {
        sum += count;
        TypeCount { defect_type: defect_type.map(str::to_owned), count, cumulated: sum as f64 / all }
    });
    counted.collect()
}

struct Tally {
    origin: i64,
    verdict: String,
    review: Option<Decision>,
    defect_type: Option<String>,
    is_reject: bool,
    count: u64,
    /// How many of it the scope has.
    found: u64,
}

/// Condition on line and model of a table, with parameters numbered from `first` on, and their values.
fn limited(scope: &Scope, table: &str, first: usize) -> (String, Vec<Value>) {
    let mut sql = String::new();
    let mut values = Vec::new();
    for (name, value) in [("line", &scope.line), ("model", &scope.model)] {
        if let Some(value) = value {
            sql += &format!(" AND {table}.{name} = ?{}", first + values.len());
            values.push(value.clone().into());
        }
    }
    (sql, values)
}

fn tallies(db: &Connection, scope: &Scope) -> rusqlite::Result<HashMap<i64, Tally>> {
    let (condition, values) = limited(scope, "o", 1);
    let mut statement = db.prepare_cached(&format!(
        "SELECT t.id, t.origin, t.verdict, t.review, t.defect_type, t.count FROM tallies t JOIN origins o ON o.id = t.origin
         WHERE t.count > 0{condition}"
    ))?;
    let rows = statement.query_map(params_from_iter(values), |r| {
        let defect_type = Some(r.get::<_, String>(4)?).filter(|name| !name.is_empty());
        let review = Decision::from_word(&r.get::<_, String>(3)?);
        let verdict: String = r.get(2)?;
        let is_reject = verdict == Verdict::Reject.as_str();
        let count = r.get::<_, i64>(5)?.unsigned_abs();
        Ok((r.get(0)?, Tally { origin: r.get(1)?, verdict, review, defect_type, is_reject, count, found: 0 }))
    })?;
    rows.collect()
}

/// Parts over time, in buckets that are neither too many nor too wide. Those of an hour and more are summed from hours, but for
/// the minutes before the first whole hour and after the last.
fn rates(db: &Connection, scope: &Scope, since: i64, until: i64) -> Result<(i64, Vec<Rate>)> {
    let cannot = || "cannot read the rates";
    let first = since.div_euclid(MINUTE_NS);
    let last = until.saturating_sub(1).div_euclid(MINUTE_NS);
    let (condition, values) = limited(scope, "minutes", 3);
    let range = [Value::from(first), Value::from(last)];
    // one of them at a time is found by an index
    let end = |which: &str| {
        db.prepare_cached(&format!(
            "SELECT {which}(minute) FROM minutes WHERE minute >= ?1 AND minute <= ?2{condition}"
        ))
        .failed(cannot)?
        .query_row(params_from_iter(range.iter().chain(&values)), |r| r.get::<_, Option<i64>>(0))
        .failed(cannot)
    };
    let (Some(first), Some(last)) = (end("MIN")?, end("MAX")?) else { return Ok((STEPS[0], Vec::new())) };
    let fits = |step: &i64| (last - first) / step < BUCKETS;
    let step = STEPS.into_iter().find(fits).unwrap_or(STEPS[STEPS.len() - 1]);
    let (from_hour, to_hour) = match step >= HOUR {
        true => (first.div_euclid(HOUR) + i64::from(first.rem_euclid(HOUR) > 0), (last + 1).div_euclid(HOUR)),
        false => (i64::MAX / HOUR, i64::MAX / HOUR), // all by minutes
    };
    let of = |table: &str, time: &str, range: &str| {
        let condition = limited(scope, table, 6).0;
        format!("SELECT {time} AS at, pass, reject, unsure, missed FROM {table} WHERE {range}{condition}")
    };
    let mut statement = db
        .prepare_cached(&format!(
            "SELECT at / ?1 AS bucket, SUM(pass), SUM(reject), SUM(unsure), SUM(missed) FROM
             ({} UNION ALL {} UNION ALL {}) GROUP BY bucket ORDER BY bucket",
            of("minutes", "minute", "minute >= ?2 AND minute <= ?3 AND minute < ?4 * 60"),
            of("hours", "hour * 60", "hour >= ?4 AND hour < ?5"),
            of("minutes", "minute", "minute >= ?5 * 60 AND minute <= ?3"),
        ))
        .failed(cannot)?;
    let values = [step, first, last, from_hour, to_hour].map(Value::from).into_iter().chain(values);
    let mut rows = statement.query(params_from_iter(values)).failed(cannot)?;
    let mut rates = Vec::new();
    while let Some(row) = rows.next().failed(cannot)? {
        let count = |at| Ok::<_, crate::error::Error>(row.get::<_, i64>(at).failed(cannot)?.unsigned_abs());
        let minute = row.get::<_, i64>(0).failed(cannot)? * step;
        rates.push(Rate {
            at: Timestamp::from_second(minute * 60).failed(cannot)?,
            pass: count(1)?,
            reject: count(2)?,
            unsure: count(3)?,
            missed: count(4)?,
        });
    }
    Ok((step, rates))
}

/// What pairs of reviewers said about the same anomalies, each one's latest decision.
fn agreement(db: &Connection, scope: &Scope, since: i64, until: i64) -> rusqlite::Result<Agreement> {
    let (condition, values) = limited(scope, "o", 3);
    let mut statement = db.prepare_cached(&format!(
        "SELECT a.id FROM anomalies a INDEXED BY anomalies_judged_by_many JOIN origins o ON o.id = a.origin
         WHERE a.reviewers > 1 AND a.captured_at >= ?1 AND a.captured_at < ?2{condition}
         ORDER BY a.captured_at DESC LIMIT {MOST_AGREEMENT}"
    ))?;
    let range = [Value::from(since), Value::from(until)];
    let mut ids = statement.query(params_from_iter(range.into_iter().chain(values)))?;
    let mut said = db.prepare_cached(&format!(
        "SELECT r.reviewer, r.decision FROM reviews r WHERE r.anomaly = ? AND {STANDS} ORDER BY r.seq"
    ))?;
    let mut anomalies = 0;
    let mut tables: BTreeMap<(String, String), [[u64; DECISIONS]; DECISIONS]> = BTreeMap::new();
    while let Some(row) = ids.next()? {
        anomalies += 1;
        let mut latest: BTreeMap<String, usize> = BTreeMap::new();
        let mut rows = said.query([row.get::<_, String>(0)?])?;
        while let Some(row) = rows.next()? {
            let word: String = row.get(1)?;
            if let Some(decision) = Decision::ALL.iter().position(|d| d.as_str() == word) {
                latest.insert(row.get(0)?, decision);
            }
        }
        let latest: Vec<_> = latest.into_iter().collect();
        for (i, (a, by_a)) in latest.iter().enumerate() {
            for (b, by_b) in latest.iter().skip(i + 1) {
                tables.entry((a.clone(), b.clone())).or_default()[*by_a][*by_b] += 1;
            }
        }
    }
    let mut pairs: Vec<Pair> = tables
        .into_iter()
        .map(|((a, b), table)| Pair {
            a,
            b,
            both: table.iter().flatten().sum(),
            same: (0..DECISIONS).map(|i| table[i][i]).sum(),
            kappa: kappa(&table),
        })
        .collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse(pair.both));
    Ok(Agreement { anomalies, pairs })
}
