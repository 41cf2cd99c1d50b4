//! The spool's part of the database: anomalies that some target still has to get, and how much of them is kept.
//!
//! An anomaly is one row in `spool` with its pictures, and one row in `delivery` for each target that still has to get it.
//! When the last of those goes, the anomaly is delivered and leaves the spool. Where all that are left are dead, so is the
//! anomaly: it stays until a person retries or purges it.
//!
//! Invariants, each with the test that holds it:
//! 1. An anomaly leaves the spool when every target has it, when the bounds say so, or when a person purges it; its ledger
//!    row says which: `the_spool_behaves_like_its_model` (spool_model.rs).
//! 2. Bounds hold after each commit, except for what is being sent at that moment: `the_spool_stays_within_its_bounds`
//!    (tests/outage.rs).
//! 3. What is being sent is never removed: its fate would be unknown (the model test of 1).
//! 4. A bit that flipped on the disk is seen before it is sent: `nothing_is_lost_unsaid` (tests/corruption.rs).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::chain::{nanos, timestamp, whole};
use super::database::{Database, Reader, ReadyAnomaly, Sql};
use super::options::{Bounds, WhenFull};
use super::{Pictures, picture};
use crate::event::{Event, LedgerRow};

/// Anomalies that go in one step of a search for room.
const STEP: i64 = 64;
/// Where anomalies wait when no target is configured.
pub(super) const NOBODY: &str = super::REVIEW;

/// What came of an attempt.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Delivered {
        at: Timestamp,
    },
    /// `aside`: tried at the slowest pace from now on.
    Failed {
        error: String,
        next_try: Timestamp,
        aside: bool,
    },
    /// It would be refused again.
    Dead {
        error: String,
    },
}

/// What became of an anomaly after one of its deliveries changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Others still have to get it, or it is to be tried again.
    Stays,
    /// Every target has it.
    Delivered,
    /// No target is left that would take it.
    Dead,
}

/// What an outcome changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    /// None: the spool has no such anomaly that waits for that target.
    pub end: Option<End>,
    /// The target refused it before.
    pub was_aside: bool,
    /// Bytes that the spool has less.
    pub freed: u64,
}

/// How many anomalies a target still has to get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TargetDepth {
    /// Those set aside included.
    pub waiting: u64,
    /// Of those waiting, refused by the endpoint as it is now: tried at the slowest pace.
    pub set_aside: u64,
    /// Refused for what they are: not tried again until a person says so.
    pub dead: u64,
}

/// What the spool holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Depth {
    pub waiting: u64,
    pub dead: u64,
    pub bytes: u64,
    pub targets: BTreeMap<String, TargetDepth>,
}

/// Anomalies that had to make room.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Shed {
    /// Gone: id, line and part.
    pub dropped: Vec<(Uuid, String, u64)>,
    /// Without their pictures from now on.
    pub stripped: Vec<(Uuid, String, u64)>,
}

/// Adds an anomaly that all of `targets` have to get: its bytes, none when it is there already.
pub(super) fn add_anomaly(
    transaction: &Transaction<'_>,
    run: &str,
    row: &LedgerRow,
    anomaly: &ReadyAnomaly,
    targets: &[String],
) -> Sql<Option<u64>> {
    let Pictures { frame_jpeg, heatmap_png, normal_jpeg } = &anomaly.pictures;
    let bytes = anomaly.event.len() + anomaly.pictures.bytes();
    let added = transaction
        .prepare_cached(
            "INSERT INTO spool (id, line, run, part, event, spooled_at, bytes, confidence)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            anomaly.id.to_string(),
            row.line,
            run,
            whole(row.part),
            anomaly.event,
            nanos(anomaly.spooled_at),
            whole(bytes as u64),
            // not a number would sort below all others and be NULL, which the column refuses
            if row.confidence.is_finite() { f64::from(row.confidence) } else { 1.0 },
        ])?;
    if added == 0 {
        return Ok(None);
    }
    let seq = transaction.last_insert_rowid();
    transaction
        .prepare_cached("INSERT INTO pictures (seq, frame, heatmap, normal) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![seq, frame_jpeg, heatmap_png, normal_jpeg])?;
    write_sums(transaction, seq, &anomaly.event, &anomaly.pictures)?;
    let mut owe = transaction.prepare_cached("INSERT INTO delivery (target, seq) VALUES (?1, ?2)")?;
    for target in targets {
        owe.execute(params![target, seq])?;
    }
    Ok(Some(bytes as u64))
}

impl Database {
    /// Records what came of an attempt.
    pub fn settle(&mut self, target: &str, seq: i64, id: Uuid, outcome: &Outcome) -> Sql<Settled> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before: Option<String> = transaction
            .prepare_cached("SELECT state FROM delivery WHERE target = ?1 AND seq = ?2")?
            .query_row(params![target, seq], |row| row.get(0))
            .optional()?;
        let mut settled = Settled { end: None, was_aside: before.as_deref() == Some("aside"), freed: 0 };
        match (&before, outcome) {
            // a person purged it while it was on its way: it did arrive
            (None, Outcome::Delivered { at }) => {
                let sql = "UPDATE ledger SET delivered_at = ?2, fate = NULL WHERE event = ?1 AND fate = 'purged'";
                transaction.prepare_cached(sql)?.execute(params![id.to_string(), nanos(*at)])?;
            }
            (None, _) => {}
            (Some(_), Outcome::Failed { error, next_try, aside }) => {
                let sql = "UPDATE delivery SET attempts = attempts + 1, last_error = ?3, next_try = ?4, state = ?5
                           WHERE target = ?1 AND seq = ?2";
                let state = if *aside { "aside" } else { "waiting" };
                transaction.prepare_cached(sql)?.execute(params![target, seq, error, nanos(*next_try), state])?;
            }
            (Some(_), Outcome::Dead { error }) => {
                let sql = "UPDATE delivery SET attempts = attempts + 1, last_error = ?3, state = 'dead'
                           WHERE target = ?1 AND seq = ?2";
                transaction.prepare_cached(sql)?.execute(params![target, seq, error])?;
            }
            (Some(_), Outcome::Delivered { .. }) => {
                let sql = "DELETE FROM delivery WHERE target = ?1 AND seq = ?2";
                transaction.prepare_cached(sql)?.execute(params![target, seq])?;
            }
        }
        if before.is_some() {
            (settled.end, settled.freed) = close(&transaction, seq, outcome)?;
        }
        transaction.commit()?;
        Ok(settled)
    }

    /// How many anomalies are in the spool, and what each target still has to get.
    pub fn depth(&self) -> Sql<Depth> {
        depth(&self.connection)
    }

    /// Removes pictures or anomalies, as the policy says, until the spool is within its bounds and `room` more bytes of it
    /// are free. What is in `flying` stays.
    pub fn shed(&mut self, bounds: &Bounds, depth: &Depth, room: u64, flying: &HashSet<i64>) -> Sql<Shed> {
        let mut shed = Shed::default();
        let Some(when_full) = bounds.when_full else { return Ok(shed) };
        let cut = bounds
            .days
            .and_then(|days| Timestamp::now().checked_sub(SignedDuration::from_hours(24 * i64::from(days))).ok());
        let old = match cut {
            None => false,
            Some(cut) => {
                let sql = "SELECT spooled_at < ?1 FROM spool ORDER BY seq LIMIT 1";
                let first: Option<bool> =
                    self.connection.prepare_cached(sql)?.query_row([nanos(cut)], |row| row.get(0)).optional()?;
                first.unwrap_or(false)
            }
        };
        let items = depth.waiting + depth.dead;
        let mut spare_bytes = match bounds.bytes {
            Some(most) => depth.bytes.saturating_sub(most).max(room),
            None => room,
        };
        let mut spare_items = bounds.items.map_or(0, |most| items.saturating_sub(most));
        if spare_bytes == 0 && spare_items == 0 && !old {
            return Ok(shed);
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(cut) = cut.filter(|_| old) {
            // what is too old goes whole, whatever the policy: nobody would look at it
            let sql = "SELECT seq, bytes FROM spool WHERE spooled_at < ?1 ORDER BY seq LIMIT ?2";
            for (seq, bytes) in pick(&transaction, sql, nanos(cut), flying)? {
                drop_anomaly(&transaction, seq, &mut shed)?;
                spare_bytes = spare_bytes.saturating_sub(bytes);
                spare_items = spare_items.saturating_sub(1);
            }
        }
        if spare_bytes > 0 && when_full == WhenFull::KeepEventDropPicture {
            let sql = "SELECT seq, bytes FROM spool WHERE stripped = 0 AND ?1 = 0 ORDER BY seq LIMIT ?2";
            while spare_bytes > 0 {
                let picked = pick(&transaction, sql, 0, flying)?;
                if picked.is_empty() {
                    break;
                }
                for (seq, _) in picked {
                    if spare_bytes == 0 {
                        break;
                    }
                    spare_bytes = spare_bytes.saturating_sub(strip(&transaction, seq, &mut shed)?);
                }
            }
        }
        let order = match when_full {
            WhenFull::DropLowestConfidence => "confidence, seq",
            WhenFull::DropOldest | WhenFull::KeepEventDropPicture => "seq",
        };
        let sql = format!("SELECT seq, bytes FROM spool WHERE ?1 = 0 ORDER BY {order} LIMIT ?2");
        while spare_bytes > 0 || spare_items > 0 {
            let picked = pick(&transaction, &sql, 0, flying)?;
            if picked.is_empty() {
                break;
            }
            for (seq, bytes) in picked {
                if spare_bytes == 0 && spare_items == 0 {
                    break;
                }
                drop_anomaly(&transaction, seq, &mut shed)?;
                spare_bytes = spare_bytes.saturating_sub(bytes);
                spare_items = spare_items.saturating_sub(1);
            }
        }
        transaction.commit()?;
        Ok(shed)
    }
}

/// Whether an anomaly is done, after one of its deliveries changed, and the bytes that it took.
fn close(transaction: &Transaction<'_>, seq: i64, outcome: &Outcome) -> Sql<(Option<End>, u64)> {
    let (left, dead): (i64, i64) = transaction
        .prepare_cached("SELECT count(*), count(*) FILTER (WHERE state = 'dead') FROM delivery WHERE seq = ?1")?
        .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if let (0, Outcome::Delivered { at }) = (left, outcome) {
        let sql = "UPDATE ledger SET delivered_at = ?2, fate = NULL WHERE (line, run, part) IN
                   (SELECT line, run, part FROM spool WHERE seq = ?1)";
        transaction.prepare_cached(sql)?.execute(params![seq, nanos(*at)])?;
        let sql = "SELECT bytes FROM spool WHERE seq = ?1";
        let bytes: Option<i64> = transaction.prepare_cached(sql)?.query_row([seq], |row| row.get(0)).optional()?;
        remove(transaction, seq)?;
        return Ok((Some(End::Delivered), bytes.map_or(0, i64::cast_unsigned)));
    }
    if left > dead {
        return Ok((Some(End::Stays), 0));
    }
    transaction.prepare_cached("UPDATE spool SET state = 'dead' WHERE seq = ?1")?.execute([seq])?;
    set_fate(transaction, seq, Some("dead"))?;
    Ok((Some(End::Dead), 0))
}

/// What became of an anomaly other than its delivery, in its ledger row.
pub(super) fn set_fate(connection: &Connection, seq: i64, fate: Option<&str>) -> Sql<()> {
    let sql =
        "UPDATE ledger SET fate = ?2 WHERE (line, run, part) IN (SELECT line, run, part FROM spool WHERE seq = ?1)";
    connection.prepare_cached(sql)?.execute(params![seq, fate])?;
    Ok(())
}

/// Removes an anomaly with its pictures and what targets still had to get of it.
pub(super) fn remove(connection: &Connection, seq: i64) -> Sql<()> {
    for table in ["pictures", "sums", "delivery", "spool"] {
        connection.prepare_cached(&format!("DELETE FROM {table} WHERE seq = ?1"))?.execute([seq])?;
    }
    Ok(())
}

/// CRC-32 of an event.
pub(super) fn event_sum(json: &str) -> i64 {
    crc32fast::hash(json.as_bytes()).into()
}

/// CRC-32 of pictures with their lengths.
pub(super) fn picture_sum(pictures: &Pictures) -> i64 {
    let mut sum = crc32fast::Hasher::new();
    for picture in [Some(&pictures.frame_jpeg), Some(&pictures.heatmap_png), pictures.normal_jpeg.as_ref()] {
        let bytes = picture.map_or(&[][..], |picture| &picture[..]);
        sum.update(&(bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
    }
    sum.finalize().into()
}

pub(super) fn write_sums(connection: &Connection, seq: i64, json: &str, pictures: &Pictures) -> Sql<()> {
    let sql = "INSERT OR REPLACE INTO sums (seq, event, pictures) VALUES (?1, ?2, ?3)";
    connection.prepare_cached(sql)?.execute([seq, event_sum(json), picture_sum(pictures)])?;
    Ok(())
}

fn pick(transaction: &Transaction<'_>, sql: &str, with: i64, flying: &HashSet<i64>) -> Sql<Vec<(i64, u64)>> {
    // what flies is in the way of no search: there is never more of it than can fly at a time
    let most = STEP + whole(flying.len() as u64);
    let mut read = transaction.prepare_cached(sql)?;
    let found = read.query_map([with, most], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
    let found: Vec<(i64, u64)> = found.collect::<Sql<_>>()?;
    Ok(found.into_iter().filter(|(seq, _)| !flying.contains(seq)).collect())
}

fn name(transaction: &Transaction<'_>, seq: i64) -> Sql<(Uuid, String, u64)> {
    transaction
        .prepare_cached("SELECT id, line, part FROM spool WHERE seq = ?1")?
        .query_row([seq], |row| Ok((uuid(row.get(0)?)?, row.get(1)?, row.get::<_, i64>(2)?.cast_unsigned())))
}

fn drop_anomaly(transaction: &Transaction<'_>, seq: i64, shed: &mut Shed) -> Sql<()> {
    shed.dropped.push(name(transaction, seq)?);
    set_fate(transaction, seq, Some("dropped"))?;
    remove(transaction, seq)
}

/// Puts plain pictures in the place of an anomaly's own; how many bytes that frees.
fn strip(transaction: &Transaction<'_>, seq: i64, shed: &mut Shed) -> Sql<u64> {
    let (json, before): (String, i64) = transaction
        .prepare_cached("SELECT event, bytes FROM spool WHERE seq = ?1")?
        .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    shed.stripped.push(name(transaction, seq)?);
    let mut pictures = Pictures::none();
    let json = match serde_json::from_str::<Event>(&json) {
        Ok(mut event) => {
            event.reasons.push(super::PICTURE_DROPPED.to_owned());
            pictures = picture::placeholder(&mut event);
            serde_json::to_string(&event).unwrap_or(json)
        }
        // it cannot be sent as it is either; what is there of it stays for a person to see
        Err(_) => json,
    };
    let bytes = whole((json.len() + pictures.bytes()) as u64);
    transaction
        .prepare_cached("UPDATE spool SET event = ?2, bytes = ?3, stripped = 1 WHERE seq = ?1")?
        .execute(params![seq, json, bytes])?;
    write_sums(transaction, seq, &json, &pictures)?;
    let Pictures { frame_jpeg, heatmap_png, normal_jpeg } = pictures;
    transaction
        .prepare_cached("UPDATE pictures SET frame = ?2, heatmap = ?3, normal = ?4 WHERE seq = ?1")?
        .execute(params![seq, frame_jpeg, heatmap_png, normal_jpeg])?;
    let sql =
        "UPDATE ledger SET stripped = 1 WHERE (line, run, part) IN (SELECT line, run, part FROM spool WHERE seq = ?1)";
    transaction.prepare_cached(sql)?.execute([seq])?;
    Ok(before.saturating_sub(bytes).max(0).cast_unsigned())
}

pub(super) fn depth(connection: &Connection) -> Sql<Depth> {
    let mut depth = connection.query_row(
        "SELECT count(*) FILTER (WHERE state != 'dead'), count(*) FILTER (WHERE state = 'dead'), coalesce(sum(bytes), 0)
         FROM spool",
        [],
        |row| {
            let number = |at: usize| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok(Depth { waiting: number(0)?, dead: number(1)?, bytes: number(2)?, targets: BTreeMap::new() })
        },
    )?;
    let mut read = connection.prepare("SELECT target, state, count(*) FROM delivery GROUP BY 1, 2")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let target = depth.targets.entry(row.get(0)?).or_default();
        let count = row.get::<_, i64>(2)?.cast_unsigned();
        match row.get_ref(1)?.as_str()? {
            "dead" => target.dead += count,
            "aside" => (target.waiting, target.set_aside) = (target.waiting + count, target.set_aside + count),
            _ => target.waiting += count,
        }
    }
    Ok(depth)
}

/// An anomaly in the spool, as it is sent to one target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spooled {
    pub seq: i64,
    pub id: Uuid,
    pub event: String,
    pub spooled_at: Timestamp,
    pub aside: bool,
    pub attempts: u32,
    pub pictures: Pictures,
    /// Bits have flipped on the disk.
    pub damage: Option<Damage>,
}

/// What of an anomaly is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// It must not be sent.
    Event,
    /// Plain ones stand in.
    Pictures,
}

impl Spooled {
    /// Compares with what was written, where that is known.
    fn check(&mut self, event: Option<i64>, pictures: Option<i64>) {
        if event.is_some_and(|sum| sum != event_sum(&self.event)) {
            self.damage = Some(Damage::Event);
        } else if pictures.is_some_and(|sum| sum != picture_sum(&self.pictures)) {
            self.damage = Some(Damage::Pictures);
            if let Ok(mut event) = serde_json::from_str::<Event>(&self.event) {
                event.reasons.push(super::PICTURE_LOST.to_owned());
                self.pictures = picture::placeholder(&mut event);
                self.event = serde_json::to_string(&event).unwrap_or_else(|_| std::mem::take(&mut self.event));
            }
        }
    }
}

/// Which anomaly goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

impl Reader {
    /// The first few anomalies that are not set aside, in order.
    pub fn first(&self, target: &str, order: Order, most: usize) -> Sql<Vec<i64>> {
        let sql = match order {
            Order::OldestFirst => {
                "SELECT seq FROM delivery WHERE target = ?1 AND state = 'waiting' ORDER BY seq LIMIT ?2"
            }
            Order::NewestFirst => {
                "SELECT seq FROM delivery WHERE target = ?1 AND state = 'waiting' ORDER BY seq DESC LIMIT ?2"
            }
        };
        let mut read = self.connection.prepare_cached(sql)?;
        read.query_map(params![target, whole(most as u64)], |row| row.get(0))?.collect()
    }

    /// The oldest anomalies set aside that are due. One that is further off than `far` is due too: the clock was set back.
    pub fn first_aside(&self, target: &str, now: Timestamp, far: Duration, most: usize) -> Sql<Vec<i64>> {
        let sql = "SELECT seq FROM delivery WHERE target = ?1 AND state = 'aside' AND (next_try <= ?2 OR next_try > ?3)
                   ORDER BY seq LIMIT ?4";
        let far = nanos(now).saturating_add(i64::try_from(far.as_nanos()).unwrap_or(i64::MAX));
        let mut read = self.connection.prepare_cached(sql)?;
        read.query_map(params![target, nanos(now), far, whole(most as u64)], |row| row.get(0))?.collect()
    }

    /// When the next anomaly set aside is due.
    pub fn next_aside(&self, target: &str) -> Sql<Option<Timestamp>> {
        let sql = "SELECT min(next_try) FROM delivery WHERE target = ?1 AND state = 'aside'";
        let next: Option<i64> = self.connection.prepare_cached(sql)?.query_row([target], |row| row.get(0))?;
        Ok(next.map(timestamp))
    }

    /// One anomaly, when the target still has to get it.
    pub fn item(&self, target: &str, seq: i64) -> Sql<Option<Spooled>> {
        let sql = "SELECT id, spool.event, spooled_at, delivery.state, attempts, frame, heatmap, normal,
                   sums.event, sums.pictures
                   FROM delivery LEFT JOIN spool USING (seq) LEFT JOIN pictures USING (seq) LEFT JOIN sums USING (seq)
                   WHERE target = ?1 AND delivery.seq = ?2";
        let read = |row: &rusqlite::Row<'_>| {
            let mut item = Spooled {
                seq,
                id: uuid(row.get(0)?)?,
                event: row.get(1)?,
                spooled_at: timestamp(row.get(2)?),
                aside: row.get_ref(3)?.as_str()? == "aside",
                attempts: row.get(4)?,
                pictures: Pictures { frame_jpeg: row.get(5)?, heatmap_png: row.get(6)?, normal_jpeg: row.get(7)? },
                damage: None,
            };
            item.check(row.get(8)?, row.get(9)?);
            Ok(item)
        };
        match self.connection.prepare_cached(sql)?.query_row(params![target, seq], read).optional() {
            // bits have flipped since the start: nobody would take it, and it must not be in the way of others
            Err(e) if unreadable(&e) => {
                let pictures = Pictures::none();
                let (id, event, spooled_at) = (Uuid::nil(), format!("damaged: {e}"), Timestamp::UNIX_EPOCH);
                let damage = Some(Damage::Event);
                Ok(Some(Spooled { seq, id, event, spooled_at, aside: false, attempts: 0, pictures, damage }))
            }
            other => other,
        }
    }
}

/// A value that is not what it should be, in a file that can be read.
pub(super) fn unreadable(e: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    matches!(e, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..))
}

fn uuid(text: String) -> Sql<Uuid> {
    Uuid::parse_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}
