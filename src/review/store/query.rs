//! Reading anomalies: one, a page of a list under any filter, what is near, and counts.
//!
//! Thread: every call blocks; the connection is a reader of the store, inside a transaction.
//!
//! A list is a merge of ranges of an index, each in the order of the list already: the whole table, a lot, a serial number, or
//! one range for each tally (line, model, verdict, decision, type of defect) that the filter lets through. So a filter that
//! matches almost nothing costs as little as one that matches all. What remains, a limit on what the list is not sorted by
//! (confidence in a list by time, time in one by confidence), is probed: where few match, they are collected by the other index
//! and sorted; where many do, they are met soon enough.
//!
//! Invariants:
//! 1. A page is what filtering and sorting everything would give. Test: `pages_equal_a_naive_filter`.
//! 2. No filter makes the server walk through a million anomalies. Figures: benches/review_store.rs.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params, params_from_iter};
use uuid::Uuid;

use super::reviews::StoredReview;
use super::sqlite::SPOTS;
use super::{Anomaly, Count, Cursor, Decision, Filter, Key, ObjectName, Page, Reviewed, Sort, Walk, nanoseconds};
use crate::error::{Context, Error, Result};
use crate::event::Event;

/// How far apart two places on a part may be to be the same, in part sizes; less than a cell of [`SPOTS`].
const NEAR: f64 = 0.08;
/// What decides which way a list takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Fewer anomalies than this are collected and sorted.
    pub few: i64,
    /// So many ranges are always merged; beyond that only where walking the whole table would take longer.
    pub ranges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { few: 10_000, ranges: 512 }
    }
}

const COLUMNS: &str = "a.id, e.event, a.received_at,
    EXISTS (SELECT 1 FROM objects o WHERE o.n = a.n AND o.name = 'normal.jpg'),
    r.seq, r.anomaly, r.at, r.reviewer, r.decision, r.defect_type, r.comment
    FROM anomalies a JOIN events e ON e.n = a.n LEFT JOIN reviews r ON r.seq = a.review_seq";

/// A row as the database has it.
struct Stored {
    id: String,
    raw: String,
    received_ns: i64,
    has_normal: bool,
    review: Option<StoredReview>,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
        let review = row.get::<_, Option<i64>>(4)?.map(|_| StoredReview::read_at(row, 4)).transpose()?;
        let (id, raw, received_ns, has_normal) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        Ok(Stored { id, raw, received_ns, has_normal, review })
    }
    fn parse(self) -> Result<Anomaly> {
        let cannot = || format!("cannot understand the stored event of anomaly {}", self.id);
        let event: Event = serde_json::from_str(&self.raw).failed(cannot)?;
        let received_at = Timestamp::from_nanosecond(self.received_ns.into()).failed(cannot)?;
        let review = self.review.map(StoredReview::parse).transpose()?;
        Ok(Anomaly { event, received_at, has_normal: self.has_normal, raw: self.raw, review })
    }
}

/// See [`Store::get`](super::Store::get).
pub(super) fn get(db: &Connection, id: Uuid) -> Result<Option<Anomaly>> {
    let cannot = || format!("cannot read anomaly {id}");
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} WHERE a.id = ?")).failed(cannot)?;
    let row = statement.query_row([id.to_string()], Stored::read).optional().failed(cannot)?;
    row.map(Stored::parse).transpose()
}

/// Checksum of one picture.
pub(super) fn checksum(db: &Connection, id: Uuid, name: ObjectName) -> Result<Option<String>> {
    let cannot = || format!("cannot find {} of anomaly {id}", name.file_name());
    db.prepare_cached("SELECT sha256 FROM objects JOIN anomalies a USING (n) WHERE a.id = ? AND name = ?")
        .failed(cannot)?
        .query_row(params![id.to_string(), name.file_name()], |row| row.get(0))
        .optional()
        .failed(cannot)
}

/// See [`Page::revision`].
pub(super) fn revision(db: &Connection) -> Result<i64> {
    let mut statement = db.prepare_cached("SELECT n FROM revision").failed(|| "cannot read the revision")?;
    statement.query_row([], |row| row.get(0)).failed(|| "cannot read the revision")
}

/// See [`Store::counts`](super::Store::counts).
pub(super) fn counts(db: &Connection) -> Result<Vec<Count>> {
    let cannot = || "cannot count anomalies";
    let mut statement = db
        .prepare_cached(
            "SELECT o.line, t.verdict, t.review, SUM(t.count) FROM tallies t JOIN origins o ON o.id = t.origin
             WHERE t.count > 0 GROUP BY o.line, t.verdict, t.review ORDER BY o.line, t.verdict, t.review",
        )
        .failed(cannot)?;
    let rows = statement
        .query_map([], |row| {
            let count: i64 = row.get(3)?;
            let review = Decision::from_word(&row.get::<_, String>(2)?);
            Ok(Count { line: row.get(0)?, verdict: row.get(1)?, review, count: count.unsigned_abs() })
        })
        .failed(cannot)?;
    rows.collect::<Result<_, _>>().failed(cannot)
}

/// See [`Store::models`](super::Store::models).
pub(super) fn models(db: &Connection) -> Result<Vec<String>> {
    let cannot = || "cannot list the models";
    let mut statement = db
        .prepare_cached(
            "SELECT DISTINCT o.model FROM origins o JOIN tallies t ON t.origin = o.id AND t.count > 0 ORDER BY o.model",
        )
        .failed(cannot)?;
    let names = statement.query_map([], |row| row.get(0)).failed(cannot)?;
    names.collect::<Result<_, _>>().failed(cannot)
}

/// Place of an anomaly in a list, and its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    /// Nanoseconds, or the bits of the confidence: never negative, so that bits are in the order of the values.
    rank: i64,
    id: String,
    n: i64,
}

impl Spot {
    fn read(row: &Row<'_>, sort: Sort) -> rusqlite::Result<Spot> {
        let rank = match sort {
            Sort::Time => row.get(0)?,
            Sort::Confidence => i64::from((row.get::<_, f64>(0)? as f32).to_bits()),
        };
        Ok(Spot { rank, id: row.get(1)?, n: row.get(2)? })
    }
    fn value(&self, sort: Sort) -> Value {
        match sort {
            Sort::Time => self.rank.into(),
            Sort::Confidence => f64::from(f32::from_bits(self.rank as u32)).into(),
        }
    }
}

/// The open range of a list that is walked; as values of the database.
#[derive(Debug, Clone)]
struct Bounds {
    low: (Value, String),
    high: (Value, String),
    walk: Walk,
}

/// After every id.
const LAST: &str = "~";

/// A range of an index.
#[derive(Debug, Clone)]
enum Range {
    All,
    Lot(String),
    Serial(String),
    Tally(i64),
}

impl Range {
    /// Index, condition and value.
    fn prefix(&self) -> (&'static str, &'static str, Option<Value>) {
        match self {
            Range::All => ("anomalies_by", "TRUE", None),
            Range::Lot(lot) => ("anomalies_by_lot", "lot = ?", Some(lot.clone().into())),
            Range::Serial(serial) => ("anomalies_by_serial", "serial = ?", Some(serial.clone().into())),
            Range::Tally(tally) => ("anomalies_by_tally", "tally = ?", Some((*tally).into())),
        }
    }
}

fn column(sort: Sort) -> &'static str {
    match sort {
        Sort::Time => "captured_at",
        Sort::Confidence => "confidence",
    }
}

fn other(sort: Sort) -> Sort {
    match sort {
        Sort::Time => Sort::Confidence,
        Sort::Confidence => Sort::Time,
    }
}

fn suffix(sort: Sort) -> &'static str {
    match sort {
        Sort::Time => "_time",
        Sort::Confidence => "_confidence",
    }
}

/// What a list is limited to.
struct Plan {
    sort: Sort,
    /// Captured at, inclusive, when it is limited.
    time: Option<(i64, i64)>,
    /// Inclusive, when it is limited.
    confidence: Option<(f64, f64)>,
    ranges: Vec<Range>,
    /// Tallies of which it may be, as a JSON array, where the ranges do not say so.
    tallies: Option<String>,
    /// Where the range is of the serial number.
    lot: Option<String>,
    few: i64,
}

impl Plan {
    fn limits(&self, sort: Sort) -> Option<(Value, Value)> {
        match sort {
            Sort::Time => self.time.map(|(low, high)| (low.into(), high.into())),
            Sort::Confidence => self.confidence.map(|(low, high)| (low.into(), high.into())),
        }
    }

    /// Conditions that no range answers, and their values.
    fn rest(&self) -> (String, Vec<Value>) {
        let mut conditions = String::new();
        let mut values = Vec::new();
        let across = other(self.sort);
        if let Some((low, high)) = self.limits(across) {
            conditions += &format!(" AND {} BETWEEN ? AND ?", column(across));
            values.extend([low, high]);
        }
        if let Some(tallies) = &self.tallies {
            conditions += " AND tally IN (SELECT value FROM json_each(?))";
            values.push(tallies.clone().into());
        }
        if let Some(lot) = &self.lot {
            conditions += " AND lot = ?";
            values.push(lot.clone().into());
        }
        (conditions, values)
    }

    /// What gives the next `limit` of one range after the other, in the order of the walk.
    fn reader<'c>(&self, db: &'c Connection, bounds: &Bounds, limit: usize) -> rusqlite::Result<Option<Reader<'c>>> {
        let Some(first) = self.ranges.first() else { return Ok(None) };
        let (index, prefix, value) = first.prefix();
        let (key, order) = (column(self.sort), if bounds.walk == Walk::Older { "DESC" } else { "ASC" });
        let (rest, rest_values) = self.rest();
        let sql = format!(
            "SELECT {key}, id, n FROM anomalies INDEXED BY {index}{} WHERE {prefix} AND ({key}, id) > (?, ?)
             AND ({key}, id) < (?, ?){rest} ORDER BY {key} {order}, id {order} LIMIT ?",
            suffix(self.sort)
        );
        let mut statement = db.prepare_cached(&sql)?;
        // all but the first value, and the bound that a range has come to, stay for all ranges
        let low_at = if value.is_some() { 2 } else { 1 };
        let limit = Value::from(i64::try_from(limit).unwrap_or(i64::MAX));
        for (at, value) in (low_at + 4..).zip(rest_values.into_iter().chain([limit])) {
            statement.raw_bind_parameter(at, value)?;
        }
        let mut reader = Reader { statement, low_at, sort: self.sort };
        reader.bound(bounds)?;
        Ok(Some(reader))
    }

    /// How many of all ranges lie within the limits on one column; counts no further than `most`.
    fn probe(&self, db: &Connection, sort: Sort, most: i64) -> rusqlite::Result<i64> {
        let Some((low, high)) = self.limits(sort) else { return Ok(most) };
        let mut found = 0;
        for range in &self.ranges {
            let (index, prefix, value) = range.prefix();
            let sql = format!(
                "SELECT COUNT(*) FROM (SELECT 1 FROM anomalies INDEXED BY {index}{} WHERE {prefix}
                 AND {} BETWEEN ? AND ? LIMIT ?)",
                suffix(sort),
                column(sort)
            );
            let values = value.into_iter().chain([low.clone(), high.clone(), (most - found).into()]);
            found += db.prepare_cached(&sql)?.query_row(params_from_iter(values), |r| r.get::<_, i64>(0))?;
            if found >= most {
                break;
            }
        }
        Ok(found)
    }

    /// All of the ranges within the limits on the other column and the bounds, by the index of the other column.
    fn collect(&self, db: &Connection, bounds: &Bounds) -> rusqlite::Result<Vec<Spot>> {
        let mut all = Vec::new();
        let key = column(self.sort);
        let (rest, rest_values) = self.rest();
        for range in &self.ranges {
            let (index, prefix, value) = range.prefix();
            let sql = format!(
                "SELECT {key}, id, n FROM anomalies INDEXED BY {index}{} WHERE {prefix}{rest}
                 AND (+{key}, +id) > (?, ?) AND (+{key}, +id) < (?, ?)",
                suffix(other(self.sort))
            );
            let mut values: Vec<Value> = value.into_iter().chain(rest_values.iter().cloned()).collect();
            for (key, id) in [&bounds.low, &bounds.high] {
                values.extend([key.clone(), id.clone().into()]);
            }
            let mut statement = db.prepare_cached(&sql)?;
            for row in statement.query_map(params_from_iter(values), |row| Spot::read(row, self.sort))? {
                all.push(row?);
            }
        }
        all.sort_unstable();
        if bounds.walk == Walk::Older {
            all.reverse();
        }
        Ok(all)
    }

    /// The first `limit` of all ranges together, in the order of the walk.
    fn walk(&self, db: &Connection, bounds: Bounds, limit: usize) -> rusqlite::Result<Vec<Spot>> {
        if self.limits(other(self.sort)).is_some()
            && self.probe(db, self.sort, self.few)? >= self.few
            && self.probe(db, other(self.sort), self.few)? < self.few
        {
            let mut all = self.collect(db, &bounds)?;
            all.truncate(limit);
            return Ok(all);
        }
        let ranges = self.ranges.len().max(1);
        let chunk = if ranges == 1 { limit } else { limit / ranges + 2 };
        let Some(mut reader) = self.reader(db, &bounds, chunk)? else { return Ok(Vec::new()) };
        let mut heads = BinaryHeap::with_capacity(ranges);
        for range in &self.ranges {
            let mut queue = reader.next(range)?;
            let more = queue.len() == chunk;
            if let Some(spot) = queue.pop_front() {
                heads.push(Head { spot, walk: bounds.walk, queue, more, range });
            }
        }
        let mut met = Vec::with_capacity(limit.min(heads.len()));
        while met.len() < limit
            && let Some(mut head) = heads.pop()
        {
            if head.queue.is_empty() && head.more {
                let last = (head.spot.value(self.sort), head.spot.id.clone());
                let rest = match bounds.walk {
                    Walk::Older => Bounds { high: last, ..bounds.clone() },
                    Walk::Newer => Bounds { low: last, ..bounds.clone() },
                };
                reader.bound(&rest)?;
                head.queue = reader.next(head.range)?;
                head.more = head.queue.len() == chunk;
            }
            if let Some(next) = head.queue.pop_front() {
                met.push(std::mem::replace(&mut head.spot, next));
                heads.push(head);
            } else {
                met.push(head.spot);
            }
        }
        Ok(met)
    }
}

/// A statement that gives the next ones of a range.
struct Reader<'c> {
    statement: CachedStatement<'c>,
    /// Where the four values of the bounds begin.
    low_at: usize,
    sort: Sort,
}

impl Reader<'_> {
    fn bound(&mut self, bounds: &Bounds) -> rusqlite::Result<()> {
        for (at, (key, id)) in (self.low_at..).step_by(2).zip([&bounds.low, &bounds.high]) {
            self.statement.raw_bind_parameter(at, key)?;
            self.statement.raw_bind_parameter(at + 1, id)?;
        }
        Ok(())
    }

    fn next(&mut self, range: &Range) -> rusqlite::Result<VecDeque<Spot>> {
        if let (_, _, Some(value)) = range.prefix() {
            self.statement.raw_bind_parameter(1, value)?;
        }
        let mut found = VecDeque::new();
        let mut rows = self.statement.raw_query();
        while let Some(row) = rows.next()? {
            found.push_back(Spot::read(row, self.sort)?);
        }
        Ok(found)
    }
}

/// The next one of a range, ordered so that the heap gives the first of the walk.
struct Head<'a> {
    spot: Spot,
    walk: Walk,
    queue: VecDeque<Spot>,
    /// There may be some after the queue.
    more: bool,
    range: &'a Range,
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.walk {
            Walk::Older => self.spot.cmp(&other.spot),
            Walk::Newer => other.spot.cmp(&self.spot),
        }
    }
}
impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Head<'_> {}

/// Rows of an index that can be walked in the time that one more range takes.
const ROWS_A_RANGE: u64 = 60;

/// Whether walking the whole table meets a page of these sooner than a merge of as many ranges, when they lie anywhere in it.
fn walks(ranges: usize, matching: u64, all: u64) -> bool {
    const PAGE: u64 = 50;
    PAGE * all / matching.max(1) < ranges as u64 * ROWS_A_RANGE
}

/// Tallies and how many anomalies they have together.
struct Tallies {
    ids: Vec<i64>,
    count: u64,
}

/// The tallies that a filter lets through and that have anything; `None` when it lets all through.
fn tallies(db: &Connection, filter: &Filter) -> Result<Option<Tallies>> {
    let cannot = || "cannot list anomalies";
    let mut conditions = String::new();
    let mut values: Vec<Value> = Vec::new();
    let mut add = |condition: &str, value: Option<String>| {
        if let Some(value) = value {
            conditions += condition;
            values.push(value.into());
        }
    };
    add(" AND o.line = ?", filter.line.clone());
    add(" AND o.model = ?", filter.model.clone());
    add(" AND t.verdict = ?", filter.verdict.map(|v| v.as_str().to_owned()));
    match filter.reviewed {
        Some(Reviewed::No) => add(" AND t.review = ?", Some(String::new())),
        Some(Reviewed::Yes) => add(" AND t.review > ?", Some(String::new())),
        Some(Reviewed::As(decision)) => add(" AND t.review = ?", Some(decision.as_str().to_owned())),
        None => {}
    }
    // no type is no name: nothing has it
    add(" AND t.defect_type > '' AND t.defect_type = ?", filter.defect_type.clone());
    if values.is_empty() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT t.id, t.count FROM tallies t JOIN origins o ON o.id = t.origin WHERE t.count > 0{conditions} ORDER BY t.id"
    );
    let mut statement = db.prepare_cached(&sql).failed(cannot)?;
    let mut rows = statement.query(params_from_iter(values)).failed(cannot)?;
    let mut found = Tallies { ids: Vec::new(), count: 0 };
    while let Some(row) = rows.next().failed(cannot)? {
        found.ids.push(row.get(0).failed(cannot)?);
        found.count += row.get::<_, i64>(1).failed(cannot)?.unsigned_abs();
    }
    Ok(Some(found))
}

/// All that there are.
fn total(db: &Connection) -> Result<u64> {
    let cannot = || "cannot count anomalies";
    let mut statement = db.prepare_cached("SELECT COALESCE(SUM(count), 0) FROM tallies").failed(cannot)?;
    let total: i64 = statement.query_row([], |row| row.get(0)).failed(cannot)?;
    Ok(total.unsigned_abs())
}

fn plan(db: &Connection, filter: &Filter, sort: Sort, limits: Limits) -> Result<Plan> {
    let tallies = tallies(db, filter)?;
    let json = |ids: &[i64]| serde_json::to_string(ids).failed(|| "cannot list anomalies");
    let others = tallies.as_ref().map(|t| json(&t.ids)).transpose()?;
    let (ranges, rest) = match (&filter.serial, &filter.lot, tallies) {
        (_, _, Some(t)) if t.ids.is_empty() => (Vec::new(), None),
        (Some(serial), _, _) => (vec![Range::Serial(serial.clone())], others),
        (None, Some(lot), _) => (vec![Range::Lot(lot.clone())], others),
        (None, None, None) => (vec![Range::All], None),
        (None, None, Some(t)) if t.ids.len() > limits.ranges && walks(t.ids.len(), t.count, total(db)?) => {
            (vec![Range::All], others)
        }
        (None, None, Some(t)) => (t.ids.into_iter().map(Range::Tally).collect(), None),
    };
    let since = filter.since.map(nanoseconds).transpose()?;
    let until = filter.until.map(nanoseconds).transpose()?;
    let time = (since.is_some() || until.is_some())
        .then(|| (since.unwrap_or(i64::MIN), until.map_or(i64::MAX, |until| until.saturating_sub(1))));
    let (min, max) = (filter.confidence_min.map(f64::from), filter.confidence_max.map(f64::from));
    let confidence = (min.is_some() || max.is_some()).then(|| (min.unwrap_or(0.0), max.unwrap_or(1.0)));
    let lot = filter.serial.as_ref().and(filter.lot.clone());
    Ok(Plan { sort, time, confidence, ranges, tallies: rest, lot, few: limits.few })
}

/// See [`Store::list`](super::Store::list).
pub(super) fn list(
    db: &Connection,
    filter: &Filter,
    sort: Sort,
    start: Option<Cursor>,
    limit: usize,
    limits: Limits,
) -> Result<Page> {
    let cannot = || "cannot list anomalies";
    if start.is_some_and(|cursor| cursor.from.sort() != sort) {
        return Err(Error::usage("the cursor is of a list in another order"));
    }
    let plan = plan(db, filter, sort, limits)?;
    let walk = start.map_or(Walk::Older, |c| c.walk);
    let (low, high) = plan.limits(sort).unwrap_or_else(|| match sort {
        Sort::Time => (i64::MIN.into(), i64::MAX.into()),
        Sort::Confidence => (0.0.into(), 1.0.into()),
    });
    let mut bounds = Bounds { low: (low, String::new()), high: (high, LAST.into()), walk };
    if let Some(cursor) = start {
        let key: Value = match cursor.from.key {
            Key::Time(ns) => ns.into(),
            Key::Confidence(confidence) => f64::from(confidence).into(),
        };
        // the tighter one of cursor and limit: an index has one lower and one upper bound
        let at = (key, cursor.from.id.to_string());
        match walk {
            Walk::Older if less(&at, &bounds.high) => bounds.high = at,
            Walk::Newer if less(&bounds.low, &at) => bounds.low = at,
            _ => {}
        }
    }
    // one more tells whether the walk goes on
    let mut spots = plan.walk(db, bounds, limit.saturating_add(1)).failed(cannot)?;
    let goes_on = spots.len() > limit;
    spots.truncate(limit);
    if walk == Walk::Newer {
        spots.reverse();
    }
    let items = fetch(db, spots.iter().map(|spot| spot.n))?;
    let cursor = |walk, item: Option<&Anomaly>| -> Result<Option<Cursor>> {
        item.map(|a| Ok(Cursor { walk, from: a.position(sort)? })).transpose()
    };
    // a page that was walked to has something on the side it came from
    let has_older = if walk == Walk::Older { goes_on } else { true };
    let has_newer = if walk == Walk::Older { start.is_some() } else { goes_on };
    let older = if has_older { cursor(Walk::Older, items.last())? } else { None };
    let newer = if has_newer { cursor(Walk::Newer, items.first())? } else { None };
    Ok(Page { items, older, newer, revision: revision(db)? })
}

fn less(a: &(Value, String), b: &(Value, String)) -> bool {
    let keys = match (&a.0, &b.0) {
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Real(a), Value::Real(b)) => a.total_cmp(b),
        _ => Ordering::Equal,
    };
    keys.then_with(|| a.1.cmp(&b.1)) == Ordering::Less
}

/// The anomalies of these numbers, in their order.
fn fetch(db: &Connection, numbers: impl Iterator<Item = i64>) -> Result<Vec<Anomaly>> {
    let cannot = || "cannot read anomalies";
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} WHERE a.n = ?")).failed(cannot)?;
    numbers.map(|n| statement.query_row([n], Stored::read).failed(cannot)?.parse()).collect()
}

/// See [`Store::near`](super::Store::near).
pub(super) fn near(db: &Connection, id: Uuid, limit: usize) -> Result<Vec<Anomaly>> {
    let cannot = || format!("cannot find what is near anomaly {id}");
    let me = db
        .prepare_cached("SELECT n, origin, captured_at, place_x, place_y FROM anomalies WHERE id = ?")
        .failed(cannot)?
        .query_row([id.to_string()], |r| {
            let place = r.get::<_, Option<f64>>(3)?.zip(r.get::<_, Option<f64>>(4)?);
            Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?, place))
        })
        .optional()
        .failed(cannot)?;
    let Some((me, origin, at, Some((x, y)))) = me else { return Ok(Vec::new()) };
    let cells = |at: f64| {
        let cell = |at: f64| ((at * SPOTS as f64) as i64).clamp(0, SPOTS - 1);
        cell(at - NEAR)..=cell(at + NEAR)
    };
    let mut found: Vec<(u64, i64)> = Vec::new();
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    for cell in cells(y).flat_map(|row| cells(x).map(move |column| row * SPOTS + column)) {
        for (side, order) in [("captured_at >= ?3", "ASC"), ("captured_at < ?3", "DESC")] {
            let sql = format!(
                "SELECT captured_at, n FROM anomalies INDEXED BY anomalies_by_spot
                 WHERE origin = ?1 AND spot = ?2 AND {side} AND abs(place_x - ?4) <= {NEAR} AND abs(place_y - ?5) <= {NEAR}
                 AND n <> ?6 ORDER BY captured_at {order} LIMIT ?7"
            );
            let mut statement = db.prepare_cached(&sql).failed(cannot)?;
            let rows = statement
                .query_map(params![origin, cell, at, x, y, me, most], |r| {
                    Ok((r.get::<_, i64>(0)?.abs_diff(at), r.get::<_, i64>(1)?))
                })
                .failed(cannot)?;
            for row in rows {
                found.push(row.failed(cannot)?);
            }
        }
    }
    found.sort_unstable();
    found.truncate(limit);
    fetch(db, found.into_iter().map(|(_, n)| n))
}
