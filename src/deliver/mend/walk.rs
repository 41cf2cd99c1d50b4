//! A line's chain as it was found: how far its hashes hold, where it has holes, and which part numbers are missing.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::super::audit::{Numbers, lost_windows, outside, windows};
use super::super::chain::{
    CHECKPOINT, Checkpoint, Hash, Hole, INTERRUPTED, Interrupted, Missing, SALVAGED, Salvaged, Stored, unhex, whole,
};
use super::super::database::{Chains, Sql, Tail};
use super::super::ledger::{COLUMNS, stored};
use super::item::Again;
use crate::hex::hex;

/// A line's chain as it was brought over.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Of parts.
    pub rows: u64,
    pub holes: Vec<Hole>,
    /// The first place of a hole that nothing follows.
    pub hole: Option<i64>,
    /// The place after the last row that was read, and the hash of the last one.
    pub next: i64,
    pub hash: Option<Hash>,
    /// What the salvaged row goes on from after a hole.
    pub before: Option<Hash>,
}

impl Pass {
    pub fn walk(new: &Connection, line: &str, tail: Option<&Tail>) -> Sql<Pass> {
        let mut read = new.prepare_cached(
            "SELECT chain, rowid FROM found WHERE line = ?1 AND chain >= 0 ORDER BY chain, delivered_at IS NULL, fate IS NULL",
        )?;
        let places: Vec<(i64, i64)> =
            read.query_map([line], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Sql<_>>()?;
        let known = notes(new, line)?;
        let mut pass = Pass::default();
        let mut before = Some(Hash::default());
        let mut at = 0;
        while at < places.len() {
            let place = places[at].0;
            let after = at + places[at..].iter().take_while(|(other, _)| *other == place).count();
            let next: Vec<(Stored, Hash)> = match places.get(after) {
                Some((other, _)) if *other == place + 1 => {
                    let group = places[after..].iter().take_while(|(other, _)| *other == place + 1);
                    group.filter_map(|(_, rowid)| fetch(new, *rowid).transpose()).collect::<Sql<_>>()?
                }
                _ => Vec::new(),
            };
            if place > pass.next && pass.hole.is_none() {
                match known.anchors.get(&(place - 1)) {
                    Some(hash) => {
                        // what was before is of pages that retention has freed
                        new.prepare_cached("DELETE FROM ledger WHERE line = ?1 AND chain IS NOT NULL")?
                            .execute([line])?;
                        (pass.rows, before) = (0, Some(*hash));
                        pass.holes.clear();
                    }
                    None => (pass.hole, before) = (Some(pass.next), None),
                }
            }
            let follows = |hash: &Hash| next.iter().any(|(row, own)| row.hash(hash) == *own);
            let mut chosen = None;
            for (_, rowid) in &places[at..after] {
                let Some((row, own)) = fetch(new, *rowid)? else { continue };
                let hash = match before {
                    Some(before) => {
                        let made = row.hash(&before);
                        // the next one or the end of the chain may say that only the hash was hit
                        let end = next.is_empty() && tail.is_some_and(|t| t.chain == place + 1 && t.hash == made);
                        (made == own || follows(&made) || end).then_some(made)
                    }
                    None => (next.is_empty() || follows(&own) || chosen.is_none()).then_some(own),
                };
                if let Some(hash) = hash {
                    let sure = before.is_some() || follows(&own);
                    chosen = Some((*rowid, row, hash));
                    if sure {
                        break;
                    }
                }
            }
            let mut added = false;
            if let Some((rowid, row, hash)) = &chosen {
                let sql = "INSERT OR IGNORE INTO ledger SELECT * FROM found WHERE rowid = ?1";
                added = new.prepare_cached(sql)?.execute([rowid])? > 0;
                if added {
                    new.prepare_cached("UPDATE ledger SET hash = ?3 WHERE line = ?1 AND chain = ?2 AND hash != ?3")?
                        .execute(params![line, place, hash])?;
                    let alone = hex(&row.hash(&Hash::default()));
                    if let Some(first) = pass.hole.take() {
                        let hole = Hole { first, last: place - 1, next: Some(alone) };
                        // an earlier salvage may have said so
                        if !known.holes.contains(&hole) {
                            pass.holes.push(hole);
                        }
                    }
                    pass.rows += u64::from(row.is_part());
                    (pass.hash, before) = (Some(*hash), Some(*hash));
                }
            }
            if !added {
                pass.hole.get_or_insert(place);
                before = None;
            }
            pass.next = place + 1;
            at = after;
        }
        Ok(pass)
    }
}

pub(super) fn fetch(new: &Connection, rowid: i64) -> Sql<Option<(Stored, Hash)>> {
    let sql = format!("SELECT {COLUMNS} FROM found WHERE rowid = ?1");
    let row = |row: &rusqlite::Row<'_>| Ok((stored(row)?, row.get(19)?));
    // a row whose values have other types than a row of the ledger is none
    Ok(new.prepare_cached(&sql)?.query_row([rowid], row).ok())
}

/// What rows that are no parts say of the chain before them.
#[derive(Default)]
pub(super) struct Notes {
    pub anchors: BTreeMap<i64, Hash>,
    pub holes: Vec<Hole>,
}

pub(super) fn notes(new: &Connection, line: &str) -> Sql<Notes> {
    let mut notes = Notes::default();
    let sql = "SELECT verdict, detail FROM found WHERE line = ?1 AND verdict IN (?2, ?3)";
    let mut read = new.prepare_cached(sql)?;
    let mut rows = read.query([line, CHECKPOINT, SALVAGED])?;
    while let Some(row) = rows.next()? {
        let (verdict, detail): (String, Option<String>) = (row.get(0)?, row.get(1)?);
        let detail = detail.unwrap_or_default();
        if verdict == CHECKPOINT
            && let Ok(checkpoint) = serde_json::from_str::<Checkpoint>(&detail)
            && let Some(hash) = unhex(&checkpoint.hash)
        {
            notes.anchors.insert(checkpoint.index, hash);
        } else if let Ok(salvaged) = serde_json::from_str::<Salvaged>(&detail) {
            notes.holes.extend(salvaged.holes);
        }
    }
    Ok(notes)
}

/// Part numbers that have no row, will have none from `again`, and that no row explains yet.
pub(super) fn missing(chains: &Chains<'_>, line: &str, again: &[Again], continued: bool) -> Sql<Vec<Missing>> {
    let (mut interrupted, mut salvaged, mut start) = (Vec::<Interrupted>::new(), Vec::<Salvaged>::new(), 0);
    let sql = "SELECT verdict, detail FROM ledger WHERE line = ?1 AND part < 0";
    let mut read = chains.transaction.prepare_cached(sql)?;
    let mut rows = read.query([line])?;
    while let Some(row) = rows.next()? {
        let (verdict, detail): (String, Option<String>) = (row.get(0)?, row.get(1)?);
        let detail = detail.unwrap_or_default();
        match verdict.as_str() {
            INTERRUPTED => interrupted.extend(serde_json::from_str::<Interrupted>(&detail).ok()),
            SALVAGED => salvaged.extend(serde_json::from_str::<Salvaged>(&detail).ok()),
            _ => start = start.max(serde_json::from_str::<Checkpoint>(&detail).map_or(0, |checkpoint| checkpoint.next)),
        }
    }
    let sql = "SELECT CASE continued WHEN 1 THEN NULL ELSE run END, part FROM ledger WHERE line = ?1 AND part >= 0";
    let mut read = chains.transaction.prepare_cached(sql)?;
    let mut rows = read.query([line])?;
    let mut runs = BTreeMap::<Option<String>, Numbers>::new();
    while let Some(row) = rows.next()? {
        runs.entry(row.get(0)?).or_default().add(row.get(1)?);
    }
    for again in again {
        let run = (!continued).then(|| again.run.clone());
        runs.entry(run).or_default().add(whole(again.row.part));
    }
    let mut missing = Vec::new();
    if continued {
        let next = chains.peek(line).map_or(0, |tail| tail.next_part);
        let numbers = runs.remove(&None).unwrap_or_default();
        let mut known = windows(&interrupted);
        known.extend(lost_windows(&salvaged, None));
        for (first, end) in outside(&numbers.gaps(start, whole(next)), &known) {
            missing.push(Missing { run: None, first, end });
        }
    }
    for (run, numbers) in runs {
        let Some((first, last)) = numbers.ends().filter(|_| run.is_some()) else { continue };
        let known = lost_windows(&salvaged, run.as_deref());
        for (first, end) in outside(&numbers.gaps(first, last), &known) {
            missing.push(Missing { run: run.clone(), first, end });
        }
    }
    Ok(missing)
}
