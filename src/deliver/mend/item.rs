//! An anomaly as it was found, with what targets still have to get of it, and rows that are made again from one.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::super::chain::{nanos, whole};
use super::super::database::Sql;
use super::{ROW_LOST, int, text};
use crate::event::{Event, LedgerRow};

/// What a target still has to get, as it was found.
#[derive(Debug, Default, Clone)]
pub(super) struct Debt {
    pub dead: bool,
    pub attempts: i64,
    pub error: Option<String>,
}

/// A row that is made again.
pub(super) struct Again {
    pub run: String,
    pub row: LedgerRow,
    /// An anomaly that the spool lacks.
    pub event: Option<Event>,
}

pub(super) fn row_of(event: &Event) -> LedgerRow {
    LedgerRow {
        line: event.line.clone(),
        part: event.part,
        frame: event.frame,
        captured_at: event.captured_at,
        verdict: event.verdict,
        score: event.score,
        confidence: event.confidence,
        latency_ms: f32::NAN,
        model: format!("{}@{}", event.model.name, event.model.version),
        event: Some(event.id),
        frames: 1,
        reasons: event.reasons.iter().cloned().chain([ROW_LOST.to_owned()]).collect(),
        late_ms: None,
        lot: event.lot.clone(),
        serial: event.serial.clone(),
    }
}

/// An anomaly as it was found.
pub(super) struct Item {
    pub seq: i64,
    pub id: String,
    pub line: String,
    pub run: String,
    pub part: i64,
    pub json: String,
    pub spooled_at: i64,
    /// Or why it cannot be sent.
    pub event: Result<Event, String>,
}

impl Item {
    /// None: the ledger says that it was delivered, or nothing says what it is. `verified`: whether the event is as it was
    /// written, where that is known; one that is, is right where others say something else.
    pub fn of(new: &Connection, v: &[Value], verified: Option<bool>) -> Sql<Option<Item>> {
        let json = text(&v[5]).unwrap_or_default().to_owned();
        let mut event = serde_json::from_str::<Event>(&json);
        let changed = verified == Some(false);
        let verified = verified == Some(true);
        let column = text(&v[1]).and_then(|text| Uuid::parse_str(text).ok());
        let told = event.as_ref().ok().map(|event| event.id);
        let in_ledger = |id: Uuid| -> Sql<Option<(bool, String, String, i64)>> {
            new.prepare_cached("SELECT delivered_at IS NOT NULL OR coalesce(fate, '') IN ('dropped', 'purged'), line, run, part FROM ledger WHERE event = ?1")?
                .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
                .optional()
        };
        // either may be damaged: the ledger, whose rows are checked, knows which
        let (mut id, mut row) = (told.or(column), None);
        for one in [told, column].into_iter().flatten() {
            if let Some(found) = in_ledger(one)? {
                (id, row) = (Some(one), Some(found));
                break;
            }
        }
        let (Some(id), Some(seq)) = (id, int(&v[0])) else { return Ok(None) };
        if row.as_ref().is_some_and(|(done, ..)| *done) {
            return Ok(None);
        }
        if let (Ok(event), Some((_, line, _, part)), false) = (&mut event, &row, verified) {
            (event.id, event.line, event.part) = (id, line.clone(), part.cast_unsigned());
        }
        let of_event = event.as_ref().ok().map(|event| (event.line.clone(), whole(event.part)));
        let line = text(&v[2]).unwrap_or_default().to_owned();
        let run = text(&v[3]).unwrap_or_default().to_owned();
        let (line, run, part) = match (row, of_event) {
            (Some((_, _, run, _)), Some((line, part))) if verified => (line, run, part),
            (Some((_, line, run, part)), _) => (line, run, part),
            (None, Some((line, part))) => (line, run, part),
            (None, None) => (line, run, int(&v[4]).unwrap_or(0)),
        };
        let at = event.as_ref().map_or(0, |event| nanos(event.captured_at));
        let spooled_at = int(&v[6]).filter(|n| *n > 0).unwrap_or(at);
        let event = match event {
            Ok(_) if changed => Err("its bits are not those that were written".to_owned()),
            other => other.map_err(|e| e.to_string()),
        };
        Ok(Some(Item { seq, id: id.to_string(), line, run, part, json, spooled_at, event }))
    }
}
