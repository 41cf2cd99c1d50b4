//! Checking the ledger: that no row was removed, put in, changed or moved (`verify`), and that every part and every anomaly
//! is accounted for (`reconcile`). Reads only.
//!
//! The chain proves itself to who keeps a hash of it elsewhere (each line report carries one): with that hash nothing up to
//! it can have been changed. Without one, somebody who can write the file could compute the whole chain anew.
//!
//! Invariants, each with the test that holds it (tests/ledger.rs):
//! 1. The first row that is wrong is named, with what is wrong about it: `verify_finds_what_was_done`.
//! 2. A window of an unclean stop explains missing numbers, nothing else does: `killed_under_load_it_reconciles`,
//!    `verify_finds_what_was_done`.
//! 3. Both equations hold after any sequence of records, outages and kills: `killed_under_load_it_reconciles`.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::chain::{CHECKPOINT, Checkpoint, Hash, INTERRUPTED, Interrupted, SALVAGED, Salvaged, unhex};
use super::database::Sql;
use super::ledger::Ledger;
use crate::error::Result;
use crate::hex::hex;

/// What `verify` found on one line.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Verified {
    pub line: String,
    /// Rows in the chain that are parts.
    pub rows: u64,
    /// Places of the first and last row in the chain.
    pub first: Option<i64>,
    pub last: Option<i64>,
    /// Lowest and highest part number of those that go on over runs.
    pub parts: Option<(u64, u64)>,
    /// Ranges of part numbers (both ends included) without a row, inside interrupted windows.
    pub gaps: Vec<(u64, u64)>,
    pub interrupted: Vec<Interrupted>,
    /// What was lost with damaged files.
    pub salvaged: Vec<Salvaged>,
    /// Steps of retention in the chain.
    pub checkpoints: u64,
    /// Rows that are older than the chain: not verified.
    pub unchained: u64,
    /// Hash of the last row, hex: to be kept elsewhere.
    pub hash: Option<String>,
    /// What is wrong; none: the line verifies.
    pub wrong: Option<String>,
}

/// The two equations for one line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    pub line: String,
    /// Numbers handed out, less those in interrupted windows that have no row and those lost with a damaged file.
    pub triggered: u64,
    /// Those in interrupted windows that have no row.
    pub interrupted: u64,
    /// Those whose row was lost with a damaged file, or may have been.
    pub lost_rows: u64,
    pub passed: u64,
    pub rejected: u64,
    pub unsure: u64,
    pub missed: u64,
    /// Those of `missed` that had a picture.
    pub missed_with_picture: u64,
    pub spooled: u64,
    pub delivered: u64,
    pub waiting: u64,
    pub dead: u64,
    pub dropped: u64,
    pub purged: u64,
    /// Lost with a damaged file.
    pub lost: u64,
    /// The equations that do not hold; empty: the line reconciles.
    pub wrong: Vec<String>,
}

/// Part numbers that have a row, as ranges.
#[derive(Debug, Default)]
pub(super) struct Numbers(BTreeMap<i64, i64>);

impl Numbers {
    /// False: it is there already.
    pub fn add(&mut self, n: i64) -> bool {
        let before = self.0.range(..=n).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= n) {
            return false;
        }
        let start = match before {
            Some((first, last)) if last + 1 == n => first,
            _ => n,
        };
        let end = self.0.remove(&(n + 1)).unwrap_or(n);
        self.0.insert(start, end);
        true
    }

    pub fn ends(&self) -> Option<(i64, i64)> {
        Some((*self.0.first_key_value()?.0, *self.0.last_key_value()?.1))
    }

    /// How many are below `end`.
    fn below(&self, end: i64) -> i64 {
        self.0.range(..end).map(|(first, last)| end.min(last + 1) - first).sum()
    }

    /// Ranges without a row, from `next` up to (not including) `end`.
    pub fn gaps(&self, mut next: i64, end: i64) -> Vec<(i64, i64)> {
        let mut gaps = Vec::new();
        for (first, last) in &self.0 {
            if *first > next {
                gaps.push((next, first - 1));
            }
            next = next.max(last + 1);
        }
        if next < end {
            gaps.push((next, end - 1));
        }
        gaps
    }
}

/// Cuts ranges at windows: those inside, and the first number that is in none.
pub(super) fn explain(gaps: &[(i64, i64)], windows: &[(u64, u64)]) -> (Vec<(u64, u64)>, Option<i64>) {
    let mut inside = Vec::new();
    for &(first, last) in gaps {
        let mut at = first;
        while at <= last {
            let n = at.cast_unsigned();
            let Some(window) = windows.iter().filter(|w| w.0 <= n && n < w.1).max_by_key(|w| w.1) else {
                return (inside, Some(at));
            };
            let end = last.min(window.1.cast_signed() - 1);
            inside.push((n, end.cast_unsigned()));
            at = end + 1;
        }
    }
    (inside, None)
}

/// How many numbers of `gaps` are in a window (first number, and the one after the last).
fn covered(gaps: &[(i64, i64)], windows: &[(u64, u64)]) -> u64 {
    let all: u64 = gaps.iter().map(|(first, last)| (last - first + 1).cast_unsigned()).sum();
    all - outside(gaps, windows).iter().map(|(first, end)| end - first).sum::<u64>()
}

/// What of `gaps` is in no window, as first number and the one after the last.
pub(super) fn outside(gaps: &[(i64, i64)], windows: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted = windows.to_vec();
    sorted.sort_unstable();
    let mut out = Vec::new();
    for &(first, last) in gaps {
        let (mut next, end) = (first.cast_unsigned(), last.cast_unsigned() + 1);
        for &(from, to) in sorted.iter().filter(|(from, to)| from < to) {
            if from > next && next < end {
                out.push((next, from.min(end)));
            }
            next = next.max(to);
        }
        if next < end {
            out.push((next, end));
        }
    }
    out
}

/// Windows of unclean stops.
pub(super) fn windows(interrupted: &[Interrupted]) -> Vec<(u64, u64)> {
    interrupted.iter().map(|window| (window.first, window.end)).collect()
}

/// Numbers of a run, or of all runs over which they go on, that lost their rows with damaged files.
pub(super) fn lost_windows(salvaged: &[Salvaged], run: Option<&str>) -> Vec<(u64, u64)> {
    let missing = salvaged.iter().flat_map(|salvaged| &salvaged.missing);
    missing.filter(|missing| missing.run.as_deref() == run).map(|missing| (missing.first, missing.end)).collect()
}

/// A line's row in `lines`.
struct Head {
    chain: i64,
    hash: Vec<u8>,
    unchained: i64,
    next_part: i64,
    numbered: bool,
}

impl Ledger {
    fn head(&self, line: &str) -> Sql<Option<Head>> {
        let sql = "SELECT chain, hash, unchained, next_part, clean IS NOT NULL FROM lines WHERE line = ?1";
        let head = |row: &rusqlite::Row<'_>| {
            Ok(Head {
                chain: row.get(0)?,
                hash: row.get(1)?,
                unchained: row.get(2)?,
                next_part: row.get(3)?,
                numbered: row.get(4)?,
            })
        };
        self.connection.prepare_cached(sql)?.query_row([line], head).optional()
    }

    fn count(&self, sql: &str, line: &str) -> Result<u64> {
        let count = || self.connection.prepare_cached(sql)?.query_row([line], |row| row.get::<_, i64>(0));
        Ok(count().map_err(|e| self.unreadable(e))?.cast_unsigned())
    }

    /// Checks one line. `known`: a hash of its chain that was kept elsewhere, hex.
    pub fn verify(&self, line: &str, known: Option<&str>) -> Result<Verified> {
        let mut v = Verified { line: line.to_owned(), ..Verified::default() };
        let head = self.head(line).map_err(|e| self.unreadable(e))?;
        v.unchained = self.count("SELECT count(*) FROM ledger WHERE line = ?1 AND chain IS NULL", line)?;
        let mut walk = Walk { anchor: self.anchors(line)?, known: known.map(str::to_lowercase), ..Walk::default() };
        walk.holes = self.holes(line).map_err(|e| self.unreadable(e))?;
        walk.seen = walk.known.as_ref().is_some_and(|known| walk.anchor.values().any(|c| c.hash == *known));
        self.chain(line, |place, row| {
            let step = row.map_err(|e| format!("row {place} cannot be read: {e}")).and_then(|(row, hash)| {
                v.first.get_or_insert(place);
                v.last = Some(place);
                walk.step(&mut v, row, hash)
            });
            v.wrong = step.err();
            v.wrong.is_none()
        })?;
        v.hash = walk.last.as_ref().map(|hash| hex(hash));
        if v.wrong.is_none() {
            v.wrong = walk.end(&mut v, head.as_ref());
        }
        Ok(v)
    }

    /// What salvaged rows say of the chain's holes.
    fn holes(&self, line: &str) -> Sql<BTreeMap<i64, (i64, Option<String>)>> {
        let mut read = self.connection.prepare_cached("SELECT detail FROM ledger WHERE line = ?1 AND verdict = ?2")?;
        let mut rows = read.query([line, SALVAGED])?;
        let mut holes = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let detail: Option<String> = row.get(0)?;
            // one that cannot be read is found out when the chain comes to it
            let salvaged = detail.and_then(|json| serde_json::from_str::<Salvaged>(&json).ok()).unwrap_or_default();
            holes.extend(salvaged.holes.into_iter().map(|hole| (hole.first, (hole.last, hole.next))));
        }
        Ok(holes)
    }

    /// What the checkpoints say, by the place of the last row that was removed.
    fn anchors(&self, line: &str) -> Result<BTreeMap<i64, Checkpoint>> {
        let read = || -> Sql<BTreeMap<i64, Checkpoint>> {
            let sql = "SELECT detail FROM ledger WHERE line = ?1 AND verdict = ?2";
            let mut read = self.connection.prepare_cached(sql)?;
            let details = read.query_map(params![line, CHECKPOINT], |row| row.get::<_, Option<String>>(0))?;
            let mut anchors = BTreeMap::new();
            for detail in details {
                let checkpoint = detail?.and_then(|json| serde_json::from_str::<Checkpoint>(&json).ok());
                anchors.extend(checkpoint.map(|c| (c.index, c)));
            }
            Ok(anchors)
        };
        read().map_err(|e| self.unreadable(e))
    }

    /// Checks that everything on one line is accounted for.
    pub fn reconcile(&self, line: &str) -> Result<Reconciled> {
        let mut r = Reconciled { line: line.to_owned(), ..Reconciled::default() };
        let (interrupted, salvaged) = self.count_rows(line, &mut r).map_err(|e| self.unreadable(e))?;
        r.waiting = self.count("SELECT count(*) FROM spool WHERE line = ?1 AND state != 'dead'", line)?;
        let mut handed = 0;
        let head = self.head(line).map_err(|e| self.unreadable(e))?.filter(|head| head.numbered);
        let mut runs = self.numbers(line).map_err(|e| self.unreadable(e))?;
        let numbers = runs.remove(&None).unwrap_or_default();
        let start = first_number(&self.anchors(line)?);
        let end = head.map_or(0, |head| head.next_part).max(numbers.ends().map_or(0, |(_, last)| last + 1));
        let gaps = numbers.gaps(start, end);
        let mut known = windows(&interrupted);
        r.interrupted = covered(&gaps, &known);
        known.extend(lost_windows(&salvaged, None));
        r.lost_rows = covered(&gaps, &known) - r.interrupted;
        handed += ((end - start).max(0) + numbers.below(start)).cast_unsigned();
        for (run, numbers) in &runs {
            let Some((first, last)) = numbers.ends() else { continue };
            handed += (last - first + 1).cast_unsigned();
            r.lost_rows += covered(&numbers.gaps(first, last), &lost_windows(&salvaged, run.as_deref()));
        }
        r.triggered = handed.saturating_sub(r.interrupted + r.lost_rows);
        let parts = r.passed + r.rejected + r.unsure + r.missed;
        if r.triggered != parts {
            r.wrong.push(format!(
                "triggered {} is not passed {} + rejected {} + unsure {} + missed {} = {parts}",
                r.triggered, r.passed, r.rejected, r.unsure, r.missed
            ));
        }
        let left = r.rejected + r.unsure + r.missed_with_picture;
        if left != r.spooled {
            r.wrong.push(format!(
                "rejected {} + unsure {} + missed with a picture {} = {left} is not spooled {}",
                r.rejected, r.unsure, r.missed_with_picture, r.spooled
            ));
        }
        let gone = r.delivered + r.waiting + r.dead + r.dropped + r.purged + r.lost;
        if r.spooled != gone {
            r.wrong.push(format!(
                "spooled {} is not delivered {} + waiting {} + dead {} + dropped {} + purged {} + lost {} = {gone}",
                r.spooled, r.delivered, r.waiting, r.dead, r.dropped, r.purged, r.lost
            ));
        }
        Ok(r)
    }

    /// Counts the rows of a line; returns what its rows that are no parts explain.
    fn count_rows(&self, line: &str, r: &mut Reconciled) -> Sql<(Vec<Interrupted>, Vec<Salvaged>)> {
        let sql = "SELECT verdict, fate, count(*), count(event), count(delivered_at),
                   CASE WHEN verdict IN ('interrupted', 'salvaged') THEN detail END FROM ledger WHERE line = ?1 GROUP BY 1, 2, 6";
        let (mut windows, mut salvaged) = (Vec::new(), Vec::new());
        let mut read = self.connection.prepare_cached(sql)?;
        let mut rows = read.query([line])?;
        while let Some(row) = rows.next()? {
            let number = |at: usize| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let (verdict, fate): (String, Option<String>) = (row.get(0)?, row.get(1)?);
            let (count, events, delivered) = (number(2)?, number(3)?, number(4)?);
            match verdict.as_str() {
                "pass" => r.passed += count,
                "reject" => r.rejected += count,
                "unsure" => r.unsure += count,
                "missed" => (r.missed, r.missed_with_picture) = (r.missed + count, r.missed_with_picture + events),
                INTERRUPTED => {
                    let detail: Option<String> = row.get(5)?;
                    windows.extend(detail.and_then(|json| serde_json::from_str(&json).ok()));
                }
                SALVAGED => {
                    let detail: Option<String> = row.get(5)?;
                    salvaged.extend(detail.and_then(|json| serde_json::from_str(&json).ok()));
                }
                _ => {}
            }
            r.spooled += events;
            r.delivered += delivered;
            match fate.as_deref() {
                Some("dead") => r.dead += count,
                Some("dropped") => r.dropped += count,
                Some("purged") => r.purged += count,
                Some("lost") => r.lost += count,
                _ => {}
            }
        }
        Ok((windows, salvaged))
    }

    /// Part numbers that have a row: those that go on over runs (none), and of each other run.
    fn numbers(&self, line: &str) -> Sql<BTreeMap<Option<String>, Numbers>> {
        let sql = "SELECT CASE continued WHEN 1 THEN NULL ELSE run END, part FROM ledger WHERE line = ?1 AND part >= 0";
        let mut read = self.connection.prepare_cached(sql)?;
        let mut rows = read.query([line])?;
        let mut runs = BTreeMap::<Option<String>, Numbers>::new();
        while let Some(row) = rows.next()? {
            runs.entry(row.get(0)?).or_default().add(row.get(1)?);
        }
        Ok(runs)
    }
}

/// The chain on its way from row to row.
#[derive(Default)]
struct Walk {
    anchor: BTreeMap<i64, Checkpoint>,
    /// What rows after it say of the chain's holes: the last place, and hash of the row after it alone, by the first place.
    holes: BTreeMap<i64, (i64, Option<String>)>,
    known: Option<String>,
    /// The known hash was met.
    seen: bool,
    place: Option<i64>,
    last: Option<Hash>,
    numbers: Numbers,
    runs: BTreeMap<String, Numbers>,
}

impl Walk {
    fn step(&mut self, v: &mut Verified, row: super::chain::Stored, hash: Hash) -> std::result::Result<(), String> {
        let place = row.chain;
        let expected = self.place.map_or(0, |last| last + 1);
        let alone = || Some(hex(&row.hash(&Hash::default())));
        let hole = self.holes.get(&expected).filter(|(last, _)| *last == place - 1);
        let salvaged = (row.verdict == SALVAGED)
            .then(|| serde_json::from_str::<Salvaged>(row.detail.as_deref().unwrap_or_default()).ok())
            .flatten();
        let mut unchecked = false;
        let before = match (self.place, self.last) {
            _ if hole.is_some_and(|(_, next)| next.is_some() && *next == alone()) => {
                unchecked = true;
                Hash::default()
            }
            // it says itself what it goes on from
            _ if hole.is_some_and(|(_, next)| next.is_none()) && salvaged.is_some() => {
                salvaged.as_ref().and_then(|salvaged| unhex(salvaged.before.as_deref()?)).unwrap_or_default()
            }
            (Some(last), Some(hash)) if place == last + 1 => hash,
            (Some(last), Some(_)) if place > last + 1 => {
                return Err(format!("rows {} to {} are missing", last + 1, place - 1));
            }
            (None, None) if place == 0 => Hash::default(),
            (None, None) => match self.anchor.get(&(place - 1)) {
                // the hash is of this length, or the row's own does not fit
                Some(checkpoint) => unhex(&checkpoint.hash).unwrap_or_default(),
                None => return Err(format!("rows 0 to {} are missing, and no checkpoint says so", place - 1)),
            },
            _ => return Err(format!("row {place} has no place in the chain")),
        };
        let what = if row.is_part() { format!("part {}", row.part) } else { row.verdict.clone() };
        if !unchecked && row.hash(&before) != hash {
            return Err(format!(
                "row {place} ({what}) does not fit its hash and the row before: it or that one was changed, moved or put in"
            ));
        }
        (self.place, self.last) = (Some(place), Some(hash));
        self.seen |= self.known.as_ref().is_some_and(|known| *known == hex(&hash));
        let detail = row.detail.as_deref().unwrap_or_default();
        match row.verdict.as_str() {
            INTERRUPTED => {
                let window =
                    serde_json::from_str(detail).map_err(|e| format!("row {place} ({what}) cannot be read: {e}"))?;
                v.interrupted.push(window);
            }
            CHECKPOINT => v.checkpoints += 1,
            SALVAGED => {
                let salvaged = salvaged.ok_or_else(|| format!("row {place} ({what}) cannot be read"))?;
                v.salvaged.push(salvaged);
            }
            _ => {
                v.rows += 1;
                let numbers = match row.continued {
                    true => &mut self.numbers,
                    false => self.runs.entry(row.run).or_default(),
                };
                if !numbers.add(row.part) {
                    return Err(format!("row {place}: part {} is there twice", row.part));
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the chain as a whole.
    fn end(self, v: &mut Verified, head: Option<&Head>) -> Option<String> {
        let (next, hash) = (self.place.map_or(0, |place| place + 1), self.last.unwrap_or_default());
        let Some(head) = head else {
            return Some(
                "the table of lines does not know this line: its rows were put in, or the line was taken out".into(),
            );
        };
        if head.chain != next {
            return Some(match head.chain > next {
                true => format!("rows {next} to {} at the end are missing", head.chain - 1),
                false => format!("rows {} to {} at the end were put in", head.chain, next - 1),
            });
        }
        if head.hash != hash {
            return Some(format!("row {} at the end is not the one that was written last", next - 1));
        }
        if v.unchained != head.unchained.cast_unsigned() {
            return Some(format!(
                "{} rows are outside the chain, {} were there when it began or are left of them: rows were put in or removed",
                v.unchained, head.unchained
            ));
        }
        let ends = self.numbers.ends();
        v.parts = ends.map(|(first, last)| (first.cast_unsigned(), last.cast_unsigned()));
        let end = head.next_part.max(ends.map_or(0, |(_, last)| last + 1));
        let gaps = self.numbers.gaps(first_number(&self.anchor), end);
        let mut known = windows(&v.interrupted);
        known.extend(lost_windows(&v.salvaged, None));
        let (inside, outside) = explain(&gaps, &known);
        v.gaps = inside;
        if let Some(part) = outside {
            return Some(format!("part {part} has no row, and no interrupted row says why"));
        }
        for (run, numbers) in &self.runs {
            let (first, last) = numbers.ends().unwrap_or_default();
            if let (_, Some(part)) = explain(&numbers.gaps(first, last), &lost_windows(&v.salvaged, Some(run))) {
                return Some(format!("part {part} of run {run} has no row"));
            }
        }
        match self.known {
            Some(known) if !self.seen => Some(format!(
                "the hash {known} is not in the chain: rows up to it were removed or changed{}",
                if v.checkpoints > 0 { ", or retention removed them" } else { "" }
            )),
            _ => None,
        }
    }
}

/// The lowest part number that must have a row: the one after those that retention removed.
fn first_number(anchors: &BTreeMap<i64, Checkpoint>) -> i64 {
    anchors.values().map(|checkpoint| checkpoint.next).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_gaps() {
        let mut numbers = Numbers::default();
        for n in [3, 5, 4, 9, 1] {
            assert!(numbers.add(n), "{n}");
        }
        assert!(!numbers.add(4) && !numbers.add(9) && !numbers.add(1));
        assert_eq!(numbers.ends(), Some((1, 9)));
        assert_eq!(numbers.gaps(0, 12), [(0, 0), (2, 2), (6, 8), (10, 11)]);
        assert_eq!(numbers.gaps(5, 10), [(6, 8)]);
        assert_eq!((numbers.below(0), numbers.below(5), numbers.below(99)), (0, 3, 5));
        assert_eq!(Numbers::default().gaps(0, 4), [(0, 3)]);
        let gaps = [(2, 2), (6, 8)];
        assert_eq!(explain(&gaps, &[(2, 3), (5, 8)]), (vec![(2, 2), (6, 7)], Some(8)));
        assert_eq!(explain(&gaps, &[(0, 9)]), (vec![(2, 2), (6, 8)], None));
        assert_eq!(covered(&gaps, &[(5, 8), (2, 3), (6, 7), (20, 30)]), 3);
        assert_eq!(outside(&gaps, &[(7, 8), (0, 1)]), [(2, 3), (6, 7), (8, 9)]);
    }
}
