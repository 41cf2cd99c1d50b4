//! Builds a new database out of the rows that [`super::pages`] finds in a damaged one. Called by [`super::salvage`], before
//! any thread is started.
//!
//! What is kept is what can be shown to be right, or does no harm when it is not: a ledger row that fits its hash (or follows
//! a hole, which the salvaged row says), an anomaly whatever of it is left. What is lost is found out from what is left of
//! the other tables and of the indexes, and listed.
//!
//! Invariants, each with the test that holds it (tests/corruption.rs):
//! 1. No part number is used twice, whatever is lost: `nothing_is_lost_unsaid`.
//! 2. Each anomaly that waited is brought over or listed as lost: the same.
//! 3. The chain of the new ledger verifies, and says where it has holes: the same.

mod item;
mod report;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};
use uuid::Uuid;

use super::Pictures;
use super::chain::{CHECKPOINT, Hash, Hole, INTERRUPTED, SALVAGED, Salvaged, Stored, nanos, timestamp, whole};
use super::database::{Chains, Sql, Tail, ahead};
use super::journal::{self, Journal};
use super::pages::{Pages, Row};
use super::picture;
use super::spool::{NOBODY, event_sum, picture_sum, write_sums};
use crate::event::Event;
use crate::hex::hex;
use item::{Again, Debt, Item, row_of};
pub use report::{Hurt, Kept, LineSalvage, Report};
use walk::{Pass, missing};

/// The reason of an anomaly whose pictures were lost.
pub const PICTURE_LOST: &str = "the picture was lost: the database was damaged";
/// The reason of a row that was made again from its anomaly.
const ROW_LOST: &str = "the row was lost with a damaged database and made again from the anomaly";
/// Numbers and places further on than this from all that is known are damaged ones.
const FAR: i64 = 1 << 32;

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(n) => Some(*n),
        _ => None,
    }
}

fn is_uuid(value: &Value) -> bool {
    text(value).is_some_and(|text| Uuid::parse_str(text).is_ok())
}

/// How far a line has come, as anything tells.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// The place after the last.
    places: i64,
    /// The number after the highest, of those that go on over runs.
    parts: i64,
    continued: bool,
}

pub(super) struct Mend<'a> {
    pub old: &'a Path,
    pub pages: &'a Pages,
    pub targets: &'a [String],
    pub slots: u32,
    /// Ledger and anomalies too; else only the lines' numbers.
    pub everything: bool,
    pub report: Report,
    known: BTreeMap<String, Known>,
    tails: HashMap<String, Tail>,
    states: BTreeMap<(String, i64), Debt>,
    owed: BTreeMap<i64, BTreeSet<String>>,
    /// Sums of events and pictures as they were written.
    sums: BTreeMap<i64, (i64, i64)>,
}

impl<'a> Mend<'a> {
    pub fn new(old: &'a Path, pages: &'a Pages, targets: &'a [String], slots: u32, everything: bool) -> Self {
        Mend {
            old,
            pages,
            targets,
            slots,
            everything,
            report: Report { pages: pages.count(), ..Report::default() },
            known: BTreeMap::new(),
            tails: HashMap::new(),
            states: BTreeMap::new(),
            owed: BTreeMap::new(),
            sums: BTreeMap::new(),
        }
    }

    /// Fills a database that has our schema and no rows.
    pub fn build(mut self, new: &mut Connection) -> Sql<Report> {
        new.execute_batch(
            "CREATE TEMP TABLE found AS SELECT * FROM ledger WHERE 0;
             CREATE TEMP TABLE items (seq INTEGER, id TEXT, line TEXT, run TEXT, part INTEGER, event TEXT, spooled_at INTEGER);
             CREATE TEMP TABLE events (event TEXT PRIMARY KEY, line TEXT, part INTEGER) WITHOUT ROWID;
             BEGIN",
        )?;
        let pages = self.pages;
        let mut unfit = 0;
        let bad = pages.rows(|row| {
            if !self.take(new, row)? {
                unfit += 1;
            }
            Ok::<_, rusqlite::Error>(())
        })?;
        self.report.unreadable = bad + unfit + pages.wal().bad;
        // lines that nothing else tells of any more
        for file in super::salvage::journals(self.old) {
            let nonce = Journal::read(&file, None).ok().and_then(|found| found.nonce);
            for entry in Journal::read(&file, nonce).unwrap_or_default().entries {
                self.know(&entry.row.line).continued = true;
            }
        }
        new.execute_batch("CREATE INDEX temp.found_order ON found (line, chain)")?;
        let mut passes = self.ledger(new)?;
        self.spool(new)?;
        new.execute_batch("COMMIT")?;
        self.lines(new, &mut passes)?;
        self.count(new)?;
        new.execute_batch("DROP TABLE found; DROP TABLE items; DROP TABLE events")?;
        Ok(self.report)
    }

    fn know(&mut self, line: &str) -> &mut Known {
        if !self.known.contains_key(line) {
            self.known.insert(line.to_owned(), Known::default());
        }
        self.known.entry(line.to_owned()).or_default()
    }

    /// Puts a row where it belongs; false: it looks like one of ours and its values do not fit.
    fn take(&mut self, new: &Connection, row: Row) -> Sql<bool> {
        let v = &row.values;
        match (row.rowid, v.len()) {
            (None, 12 | 22 | 23) => return self.take_ledger(new, row.values),
            (None, 13) if text(&v[0]).is_some() => return Ok(self.take_line(v)),
            (None, 6) => {
                let (Some(target), Some(seq)) = (text(&v[0]), int(&v[1])) else { return Ok(false) };
                let debt = Debt {
                    dead: text(&v[2]) == Some("dead"),
                    attempts: int(&v[3]).filter(|n| (0..=i64::from(u32::MAX)).contains(n)).unwrap_or(0),
                    error: text(&v[5]).map(str::to_owned),
                };
                self.owed.entry(seq).or_default().insert(target.to_owned());
                self.states.insert((target.to_owned(), seq), debt);
            }
            // indexes: (event, line, run, part), (line, place, run, part), (target, state, seq), (line, part, run)
            (None, 4) if is_uuid(&v[0]) && is_uuid(&v[2]) => {
                let (Some(line), Some(part)) = (text(&v[1]), int(&v[3])) else { return Ok(false) };
                let sql = "INSERT OR IGNORE INTO events VALUES (?1, ?2, ?3)";
                new.prepare_cached(sql)?.execute(params![text(&v[0]), line, part])?;
            }
            (None, 4) if is_uuid(&v[2]) => {
                if let (Some(line), Some(place)) = (text(&v[0]), int(&v[1])) {
                    let known = self.know(line);
                    known.places = known.places.max(place.saturating_add(1));
                }
            }
            (None, 3) if is_uuid(&v[2]) => {
                if let (Some(line), Some(part)) = (text(&v[0]), int(&v[1])) {
                    let known = self.know(line);
                    (known.parts, known.continued) = (known.parts.max(part.saturating_add(1)), true);
                }
            }
            (None, 3) => {
                if let (Some(target), Some(state), Some(seq)) = (text(&v[0]), text(&v[1]), int(&v[2])) {
                    self.owed.entry(seq).or_default().insert(target.to_owned());
                    self.states
                        .entry((target.to_owned(), seq))
                        .or_insert_with(|| Debt { dead: state == "dead", ..Debt::default() });
                }
            }
            (Some(seq), 3) => {
                if let (Some(event), Some(pictures)) = (int(&v[1]), int(&v[2])) {
                    self.sums.insert(seq, (event, pictures));
                }
            }
            (Some(_), 4) if self.everything => {
                let (Value::Blob(_), Value::Blob(_)) = (&v[1], &v[2]) else {
                    return Ok(!matches!(v[1], Value::Blob(_)));
                };
                let normal = if matches!(v[3], Value::Blob(_)) { &v[3] } else { &Value::Null };
                new.prepare_cached(
                    "INSERT OR IGNORE INTO pictures (seq, frame, heatmap, normal) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![row.rowid, v[1], v[2], normal])?;
            }
            (Some(seq), 11) if self.everything && text(&v[5]).is_some() => {
                let sql = "INSERT INTO items (seq, id, line, run, part, event, spooled_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                new.prepare_cached(sql)?.execute(params![seq, v[1], v[2], v[3], v[4], v[5], v[6]])?;
            }
            (Some(_), 11) => return Ok(!self.everything),
            (Some(id), 10) if self.everything => {
                let fits = text(&v[4]).is_some_and(|json| serde_json::from_str::<serde_json::Value>(json).is_ok())
                    && text(&v[1]).is_some()
                    && is_uuid(&v[2])
                    && int(&v[3]).is_some()
                    && int(&v[5]).is_some();
                if !fits {
                    self.report.reports.lost += 1;
                    return Ok(false);
                }
                let sql = "INSERT OR IGNORE INTO reports (id, line, run, seq, report, stored_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                new.prepare_cached(sql)?.execute(params![id, v[1], v[2], v[3], v[4], v[5]])?;
            }
            _ => {}
        }
        Ok(true)
    }

    fn take_ledger(&mut self, new: &Connection, mut v: Vec<Value>) -> Sql<bool> {
        let defaults = [(12, 1), (19, 0), (22, 0)];
        for at in v.len()..23 {
            let default = defaults.iter().find(|(column, _)| *column == at);
            v.push(default.map_or(Value::Null, |(_, n)| Value::Integer(*n)));
        }
        let optional = |at: usize, fits: bool| matches!(v[at], Value::Null) || fits;
        let number = |at: usize| optional(at, matches!(v[at], Value::Integer(_) | Value::Real(_)));
        let words = ["pass", "reject", "unsure", "missed", INTERRUPTED, CHECKPOINT, SALVAGED];
        let fits = text(&v[5]).is_some_and(|verdict| words.contains(&verdict))
            && [0, 1, 9].iter().all(|at| text(&v[*at]).is_some())
            && [2, 3, 4, 12, 19].iter().all(|at| int(&v[*at]).is_some())
            && [6, 7, 8, 14].iter().all(|at| number(*at))
            && optional(10, is_uuid(&v[10]))
            && [13, 15, 16, 20].iter().all(|at| optional(*at, text(&v[*at]).is_some()))
            && optional(17, int(&v[17]).is_some())
            && optional(18, matches!(&v[18], Value::Blob(hash) if hash.len() == 32));
        if !fits {
            return Ok(false);
        }
        let (line, part, place) = (text(&v[0]).unwrap_or_default().to_owned(), int(&v[2]).unwrap_or(0), int(&v[17]));
        if place.is_none() && v[18] != Value::Null {
            return Ok(false);
        }
        let continued = v[19] == Value::Integer(1);
        let known = self.know(&line);
        known.places = known.places.max(place.map_or(0, |place| place.saturating_add(1)));
        if continued {
            (known.parts, known.continued) = (known.parts.max(part.saturating_add(1)), true);
        }
        if !self.everything {
            return Ok(true);
        }
        // what is not in the hash has to make sense by itself
        if int(&v[11]).is_none_or(|at| at <= 0) {
            v[11] = Value::Null;
        }
        if !text(&v[21]).is_some_and(|fate| ["dead", "dropped", "purged", "lost"].contains(&fate)) {
            v[21] = Value::Null;
        }
        v[22] = Value::Integer(i64::from(v[22] == Value::Integer(1)));
        let marks = vec!["?"; 23].join(", ");
        new.prepare_cached(&format!("INSERT INTO found VALUES ({marks})"))?.execute(params_from_iter(v))?;
        Ok(true)
    }

    fn take_line(&mut self, v: &[Value]) -> bool {
        let count = |at: usize| int(&v[at]).and_then(|n| u64::try_from(n).ok());
        let hash = match &v[2] {
            Value::Blob(hash) => Hash::try_from(&hash[..]).ok(),
            _ => None,
        };
        let (Some(line), Some(chain), Some(hash), Some(next_part), Some(reserved), Some(first_part)) =
            (text(&v[0]), int(&v[1]).filter(|n| *n >= 0), hash, count(4), count(5), count(6))
        else {
            return false;
        };
        let tail = Tail {
            chain,
            hash,
            unchained: 0,
            next_part,
            reserved,
            first_part,
            journal: int(&v[7]).map(i64::cast_unsigned),
            journal_seq: count(8).unwrap_or(0),
            boot: text(&v[9]).map(str::to_owned),
            clean: int(&v[10]).map(|n| n == 1),
            last_at: int(&v[11]),
            reported: int(&v[12]).unwrap_or(0),
        };
        self.know(line);
        // of two states of a page the later one
        if self.tails.get(line).is_none_or(|other| (other.chain, other.next_part) < (chain, next_part)) {
            self.tails.insert(line.to_owned(), tail);
        }
        true
    }

    /// Brings over the rows of all chains, and those that are older.
    fn ledger(&mut self, new: &Connection) -> Sql<BTreeMap<String, Pass>> {
        let sql = "INSERT OR IGNORE INTO ledger SELECT * FROM found WHERE chain IS NULL ORDER BY delivered_at IS NULL";
        new.execute(sql, [])?;
        let lines: Vec<String> = self.known.keys().cloned().collect();
        let mut passes = BTreeMap::new();
        for line in lines {
            let tail = self.tails.get(&line).cloned();
            passes.insert(line.clone(), Pass::walk(new, &line, tail.as_ref())?);
        }
        // names of lines that only damaged rows know are no lines
        passes.retain(|line, pass| {
            pass.rows > 0 || self.tails.contains_key(line) || Journal::path(self.old, line).is_file()
        });
        Ok(passes)
    }

    /// Brings over anomalies.
    fn spool(&mut self, new: &Connection) -> Sql<()> {
        let seqs: Vec<i64> = new
            .prepare("SELECT rowid FROM items ORDER BY seq")?
            .query_map([], |row| row.get(0))?
            .collect::<Sql<_>>()?;
        let mut counts = BTreeMap::<String, u64>::new();
        for name in self.owed.values().flatten() {
            *counts.entry(name.clone()).or_default() += 1;
        }
        // a name that a single delivery has, and the configuration has not, is a damaged one: nobody would ever take it
        let mut all: BTreeSet<String> = self.targets.iter().cloned().collect();
        all.extend(counts.into_iter().filter(|(_, n)| *n > 1).map(|(name, _)| name));
        if !all.is_empty() {
            self.owed.values_mut().for_each(|names| names.retain(|name| all.contains(name)));
        }
        let mut read = new.prepare("SELECT seq, id, line, run, part, event, spooled_at FROM items WHERE rowid = ?1")?;
        for rowid in seqs {
            let v: Vec<Value> =
                read.query_row([rowid], |row| (0..7).map(|at| row.get(at)).collect::<Sql<Vec<Value>>>())?;
            let json = text(&v[5]).unwrap_or_default();
            let sum = event_sum(json);
            let written = int(&v[0]).and_then(|seq| self.sums.get(&seq));
            let verified = written.map(|(event, _)| *event == sum);
            let Some(item) = Item::of(new, &v, verified)? else { continue };
            self.put(new, item, &all)?;
        }
        new.execute_batch(
            "DELETE FROM pictures WHERE seq NOT IN (SELECT seq FROM spool);
             UPDATE ledger SET fate = NULL WHERE fate = 'dead';
             UPDATE ledger SET fate = iif(event IN (SELECT id FROM spool WHERE state = 'dead'), 'dead', NULL)
                WHERE event IN (SELECT id FROM spool);
             UPDATE ledger SET stripped = 1 WHERE event IN (SELECT id FROM spool WHERE stripped = 1)",
        )
    }

    fn put(&mut self, new: &Connection, item: Item, all: &BTreeSet<String>) -> Sql<()> {
        let Item { seq, id, line, run, part, mut json, spooled_at, event } = item;
        let hurt = |why: &str| Hurt { id: Some(id.clone()), line: line.clone(), part, why: why.to_owned() };
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Pictures { frame_jpeg: row.get(0)?, heatmap_png: row.get(1)?, normal_jpeg: row.get(2)? })
        };
        let found = new
            .prepare_cached("SELECT frame, heatmap, normal FROM pictures WHERE seq = ?1")?
            .query_row([seq], read)
            .optional()?;
        // pictures with other bits than were written are none
        let written = self.sums.get(&seq).map(|(_, pictures)| *pictures);
        let found = found.filter(|found| written.is_none_or(|sum| sum == picture_sum(found)));
        if found.is_none() {
            new.prepare_cached("DELETE FROM pictures WHERE seq = ?1")?.execute([seq])?;
        }
        let lost = found.is_none();
        let mut pictures = found.unwrap_or_else(Pictures::none);
        let (mut confidence, mut dead, mut plain) = (1.0, None, lost);
        match event {
            Ok(mut event) => {
                confidence = if event.confidence.is_finite() { f64::from(event.confidence) } else { 1.0 };
                plain |= event.reasons.iter().any(|reason| reason == super::PICTURE_DROPPED);
                if lost {
                    self.report.without_pictures.push(hurt(PICTURE_LOST));
                    event.reasons.push(PICTURE_LOST.to_owned());
                    pictures = picture::placeholder(&mut event);
                }
                json = serde_json::to_string(&event).unwrap_or(json);
            }
            Err(e) => {
                let why = format!("the event is damaged and cannot be sent: {e}");
                self.report.dead.push(hurt(&why));
                dead = Some(why);
            }
        }
        if lost {
            let Pictures { frame_jpeg, heatmap_png, .. } = &pictures;
            new.prepare_cached("INSERT INTO pictures (seq, frame, heatmap, normal) VALUES (?1, ?2, ?3, NULL)")?
                .execute(params![seq, frame_jpeg, heatmap_png])?;
        }
        let bytes = whole((pictures.bytes() + json.len()) as u64);
        let added = new
            .prepare_cached(
                "INSERT OR IGNORE INTO spool (seq, id, line, run, part, event, spooled_at, bytes, confidence, stripped)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![seq, id, line, run, part, json, spooled_at, bytes, confidence, plain])?;
        if added == 0 {
            // two states of one page: the first one is there
            self.report.without_pictures.retain(|hurt| hurt.id.as_ref() != Some(&id));
            return Ok(());
        }
        write_sums(new, seq, &json, &pictures)?;
        let owed = self.owed.get(&seq).filter(|owed| !owed.is_empty()).unwrap_or(all);
        let fallback = BTreeSet::from([NOBODY.to_owned()]);
        let owed = if owed.is_empty() { &fallback } else { owed };
        let mut waiting = false;
        for target in owed {
            let debt = self.states.get(&(target.clone(), seq)).cloned().unwrap_or_default();
            let state = if debt.dead || dead.is_some() { "dead" } else { "waiting" };
            waiting |= state == "waiting";
            let known = debt.error.or(debt.dead.then(|| "refused before the database was damaged".to_owned()));
            new.prepare_cached(
                "INSERT OR IGNORE INTO delivery (target, seq, state, attempts, last_error) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![target, seq, state, debt.attempts, dead.clone().or(known)])?;
        }
        if !waiting {
            new.prepare_cached("UPDATE spool SET state = 'dead' WHERE seq = ?1")?.execute([seq])?;
        }
        Ok(())
    }

    /// Ends of the lines, what is in their journals, and the rows that say what was lost.
    fn lines(&mut self, new: &mut Connection, passes: &mut BTreeMap<String, Pass>) -> Sql<()> {
        let now = Timestamp::now();
        let quarantine = self.report.quarantine.clone();
        let run = Uuid::now_v7().to_string();
        let mut tails = HashMap::new();
        let mut again: HashMap<String, Vec<Again>> = HashMap::new();
        for (line, pass) in passes.iter_mut() {
            let known = self.known.get(line).copied().unwrap_or_default();
            let (tail, rows) = self.tail(new, line, pass, known)?;
            tails.insert(line.clone(), tail);
            again.insert(line.clone(), rows);
        }
        // rows of anomalies whose row was lost
        let mut read = new.prepare(
            "SELECT run, event FROM spool WHERE NOT EXISTS (SELECT 1 FROM ledger WHERE ledger.event = spool.id)",
        )?;
        let mut rows = read.query([])?;
        while let Some(row) = rows.next()? {
            let (run, json): (String, String) = (row.get(0)?, row.get(1)?);
            let Ok(event) = serde_json::from_str::<Event>(&json) else { continue };
            let of = again.entry(event.line.clone()).or_default();
            if !of.iter().any(|other| other.row.part == event.part && other.run == run) {
                of.push(Again { run, row: row_of(&event), event: None });
            }
            tails.entry(event.line.clone()).or_default();
        }
        drop(rows);
        drop(read);
        let mut chains = Chains::begin(new, &tails)?;
        let names: BTreeSet<String> = tails.keys().cloned().collect();
        for line in &names {
            let pass = passes.entry(line.clone()).or_default();
            let rows = again.remove(line).unwrap_or_default();
            let continued = chains.tail(line).clean.is_some();
            let missing = missing(&chains, line, &rows, continued)?;
            let lost = "SELECT count(*) FROM ledger WHERE line = ?1 AND event IS NOT NULL AND delivered_at IS NULL
                        AND fate IS NULL AND event NOT IN (SELECT id FROM spool)";
            let lost: i64 = chains.transaction.prepare_cached(lost)?.query_row([line], |row| row.get(0))?;
            let note = Salvaged {
                quarantine: quarantine.clone(),
                at: now,
                rows: pass.rows,
                holes: pass.holes.clone(),
                before: pass.before.map(|hash| hex(&hash)),
                missing: missing.clone(),
                lost: lost.cast_unsigned(),
            };
            let place = chains.tail(line).chain;
            chains.add(&Stored::note(line, &run, place, now, SALVAGED, &note))?;
            let mut made = 0;
            for Again { run, row, event } in rows {
                let id = event.as_ref().map(|event| event.id).or(row.event);
                if !chains.add_part(&run, &row, id, continued)? {
                    continue;
                }
                made += 1;
                let Some(mut event) = event else { continue };
                // of the journal: its pictures were in the spool, if anywhere
                event.reasons.push(PICTURE_LOST.to_owned());
                let pictures = picture::placeholder(&mut event);
                let anomaly = super::database::ReadyAnomaly {
                    id: event.id,
                    event: serde_json::to_string(&event).unwrap_or_default(),
                    pictures,
                    spooled_at: event.captured_at,
                };
                let nobody = [NOBODY.to_owned()];
                let targets = if self.targets.is_empty() { &nobody[..] } else { self.targets };
                if super::spool::add_anomaly(&chains.transaction, &run, &row, &anomaly, targets)?.is_some() {
                    let hurt = Hurt {
                        id: Some(event.id.to_string()),
                        line: line.clone(),
                        part: whole(row.part),
                        why: PICTURE_LOST.into(),
                    };
                    self.report.without_pictures.push(hurt);
                }
            }
            self.report.lines.push(LineSalvage {
                line: line.clone(),
                rows: pass.rows + made,
                lost_rows: pass.holes.iter().map(|hole| (hole.first, hole.last)).collect(),
                lost_parts: missing.iter().map(|missing| (missing.first, missing.end - 1)).collect(),
                next_part: chains.tail(line).next_part,
            });
        }
        chains.commit()?;
        Ok(())
    }

    /// The end of a line, and what its journal has that the ledger lacks.
    fn tail(&self, new: &Connection, line: &str, pass: &mut Pass, known: Known) -> Sql<(Tail, Vec<Again>)> {
        let unchained = "SELECT count(*) FROM ledger WHERE line = ?1 AND chain IS NULL";
        let unchained: i64 = new.query_row(unchained, [line], |row| row.get(0))?;
        let highest = "SELECT coalesce(max(part) + 1, 0) FROM ledger WHERE line = ?1 AND continued = 1";
        let highest: i64 = new.query_row(highest, [line], |row| row.get(0))?;
        let file = Journal::path(self.old, line);
        // whatever its number: the table that knows it may be damaged
        let nonce = Journal::read(&file, None).ok().and_then(|found| found.nonce);
        let found = Journal::read(&file, nonce).unwrap_or_default();
        let in_journal = found.entries.iter().map(|entry| entry.row.part + 1).max().unwrap_or(0);
        let sure = highest.max(whole(in_journal));
        // an index that was hit may name any number
        let read = if (sure..=sure.saturating_add(FAR)).contains(&known.parts) { known.parts } else { sure };
        let was = self.tails.get(line);
        let numbered = was.map_or(known.continued || nonce.is_some(), |tail| tail.clean.is_some());
        let plausible = |n: u64| whole(n) <= read.saturating_add(FAR);
        let mut tail = Tail { unchained, ..was.cloned().unwrap_or_default() };
        let trusted = was.is_some_and(|tail| plausible(tail.next_part) && plausible(tail.reserved));
        tail.next_part = if trusted { tail.next_part } else { 0 }.max(read.cast_unsigned());
        if !trusted && numbered {
            // parts may have been judged that nothing tells of any more
            tail.next_part += ahead(self.slots);
        }
        tail.reserved = if trusted { tail.reserved } else { 0 }.max(tail.next_part);
        tail.first_part = tail.first_part.min(tail.next_part);
        if numbered {
            tail.clean = if trusted { tail.clean.or(Some(false)) } else { Some(false) };
        }
        // what the journal has is looked at here; the next start has only to go on with it
        let last = found.entries.iter().map(|entry| entry.seq).max();
        if let (Some(nonce), true) = (nonce, numbered) {
            tail.journal = Some(nonce);
            tail.journal_seq = tail.journal_seq.min(1 << 60).max(last.unwrap_or(0));
        }
        let far = |place: i64| place > pass.next.saturating_add(FAR);
        let mut end = pass.next;
        if !far(known.places) {
            end = end.max(known.places);
        }
        let fits = was.filter(|tail| !far(tail.chain) && tail.chain >= end && Some(tail.hash) != pass.hash);
        if let Some(tail) = fits {
            end = end.max(tail.chain);
        }
        if end > pass.next || pass.hole.is_some() {
            pass.holes.push(Hole { first: pass.hole.unwrap_or(pass.next), last: end - 1, next: None });
            pass.before = Some(fits.map_or(Hash::default(), |tail| tail.hash));
        }
        tail.chain = end;
        tail.hash = pass.before.or(pass.hash).unwrap_or_default();
        tail.reported = tail.reported.clamp(0, end);
        let mut again = Vec::new();
        for entry in found.entries.into_iter().filter(|_| numbered && self.everything) {
            let there = "SELECT EXISTS (SELECT 1 FROM ledger WHERE line = ?1 AND part = ?2 AND continued = 1)";
            let there: bool =
                new.prepare_cached(there)?.query_row(params![line, whole(entry.row.part)], |row| row.get(0))?;
            if !there && entry.row.line == line {
                let journal::Entry { run, row, event, .. } = entry;
                let there = match &event {
                    Some(event) => new
                        .prepare_cached("SELECT EXISTS (SELECT 1 FROM spool WHERE id = ?1)")?
                        .query_row([event.id.to_string()], |row| row.get(0))?,
                    None => false,
                };
                let event = event.filter(|_| !there);
                again.push(Again { run: run.to_string(), row, event });
            }
        }
        Ok((tail, again))
    }

    /// What is lost, and how much is there.
    fn count(&mut self, new: &Connection) -> Sql<()> {
        let one = |sql: &str| new.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned);
        let hurt = |sql: &str, why: &str| -> Sql<Vec<Hurt>> {
            let mut read = new.prepare(sql)?;
            let rows = read.query_map([], |row| {
                Ok(Hurt { id: row.get(0)?, line: row.get(1)?, part: row.get(2)?, why: why.to_owned() })
            })?;
            rows.collect()
        };
        // of rows that were made again, too
        new.execute_batch(
            "UPDATE ledger SET fate = 'dead' WHERE fate IS NULL AND event IN (SELECT id FROM spool WHERE state = 'dead');
             UPDATE ledger SET stripped = 1 WHERE event IN (SELECT id FROM spool WHERE stripped = 1)",
        )?;
        self.report.lost = hurt(
            "SELECT event, line, part FROM ledger WHERE event IS NOT NULL AND delivered_at IS NULL AND fate IS NULL
             AND event NOT IN (SELECT id FROM spool) ORDER BY line, part",
            "its row says that it was not delivered, and it is not in the spool",
        )?;
        new.execute(
            "UPDATE ledger SET fate = 'lost' WHERE event IS NOT NULL AND delivered_at IS NULL AND fate IS NULL
             AND event NOT IN (SELECT id FROM spool)",
            [],
        )?;
        self.report.unknown = hurt(
            "SELECT event, line, part FROM events WHERE event NOT IN (SELECT id FROM spool)
             AND event NOT IN (SELECT event FROM ledger WHERE event IS NOT NULL) ORDER BY line, part",
            "its row is lost and it is not in the spool: it may have been delivered",
        )?;
        let holes: i64 = self.report.lines.iter().flat_map(|line| &line.lost_rows).map(|(a, b)| b - a + 1).sum();
        self.report.ledger =
            Kept { recovered: one("SELECT count(*) FROM ledger WHERE part >= 0")?, lost: holes.cast_unsigned() };
        self.report.anomalies =
            Kept { recovered: one("SELECT count(*) FROM spool")?, lost: self.report.lost.len() as u64 };
        let without = self.report.without_pictures.len() as u64;
        self.report.pictures = Kept {
            recovered: self.report.anomalies.recovered - without.min(self.report.anomalies.recovered),
            lost: without,
        };
        self.report.reports.recovered = one("SELECT count(*) FROM reports")?;
        Ok(())
    }
}

/// The time of a report's name: 20300102T030405Z.
pub(super) fn stamp(at: Timestamp) -> String {
    let text = timestamp(nanos(at)).to_string();
    text.split('.').next().unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric()).collect::<String>() + "Z"
}
