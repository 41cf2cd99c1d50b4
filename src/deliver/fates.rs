//! What the audit log is told of anomalies, by the writer thread once a change is committed (test
//! `tests/audit.rs::each_anomaly_has_its_fate`). Only what the log is told is looked up here: without a log nothing is.

use super::database::{Database, Ready, Sql};
use super::spool::{Outcome, Shed};
use crate::observe::audit::{Audit, Entry, Fate};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

/// The audit log, if there is one.
pub(super) struct Fates(pub Option<Audit>);

/// Id, line and part.
type Named = (Uuid, String, u64);

impl Fates {
    fn say(&self, (event, line, part): Named, fate: Fate, target: Option<&str>, why: Option<&str>) {
        if let Some(audit) = &self.0 {
            let (target, why) = (target.map(str::to_owned), why.map(str::to_owned));
            audit.say(Entry::Anomaly { event, line, part, fate, target, why });
        }
    }

    /// A commit added `spooled` of these; fewer than there are where some were known before.
    pub fn spooled(&self, database: &Database, ready: &[Ready], spooled: u64) {
        if self.0.is_none() || spooled == 0 {
            return;
        }
        let all: Vec<_> = ready.iter().filter_map(|r| Some((r.anomaly.as_ref()?.id, &r.row))).collect();
        let some = all.len() as u64 != spooled;
        for (id, row) in all {
            // one that is known stays under the number of its first row
            if !some || database.part_of(id).is_ok_and(|p| p == Some((row.line.clone(), row.part))) {
                self.say((id, row.line.clone(), row.part), Fate::Spooled, None, None);
            }
        }
    }

    /// Anomalies that a start has brought over from a line's journal.
    pub fn recovered(&self, database: &Database, line: &str, anomalies: u64) {
        if self.0.is_none() || anomalies == 0 {
            return;
        }
        match database.newest_anomalies(line, anomalies) {
            Ok(found) => {
                let why = "brought over from the journal after a stop that was not clean";
                found.into_iter().for_each(|named| self.say(named, Fate::Spooled, None, Some(why)));
            }
            Err(e) => tracing::warn!("{anomalies} anomalies of line \"{line}\" are not in the audit log: {e}"),
        }
    }

    /// One target has it, or would never take it.
    pub fn settled(&self, database: &Database, target: &str, id: Uuid, outcome: &Outcome) {
        let (fate, why) = match outcome {
            Outcome::Delivered { .. } => (Fate::Delivered, None),
            Outcome::Dead { error } => (Fate::Dead, Some(error.as_str())),
            Outcome::Failed { .. } => return,
        };
        if self.0.is_none() {
            return;
        }
        // retention may have removed the row of one that waited for long
        let (line, part) = database.part_of(id).ok().flatten().unwrap_or_default();
        self.say((id, line, part), fate, Some(target), why);
    }

    pub fn shed(&self, shed: &Shed) {
        let why = Some("to keep the spool within its bounds and the disk from filling");
        shed.dropped.iter().for_each(|named| self.say(named.clone(), Fate::Dropped, None, why));
        shed.stripped.iter().for_each(|named| self.say(named.clone(), Fate::PictureDropped, None, why));
    }
}

impl Database {
    /// Line and part of an anomaly.
    fn part_of(&self, id: Uuid) -> Sql<Option<(String, u64)>> {
        let sql = "SELECT line, part FROM ledger WHERE event = ?1";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()));
        self.connection.prepare_cached(sql)?.query_row([id.to_string()], read).optional()
    }

    /// The newest anomalies of a line, oldest first.
    fn newest_anomalies(&self, line: &str, n: u64) -> Sql<Vec<Named>> {
        let sql = "SELECT event, part FROM ledger WHERE line = ?1 AND event IS NOT NULL ORDER BY part DESC LIMIT ?2";
        let mut read = self.connection.prepare_cached(sql)?;
        let rows = read.query_map(params![line, n.cast_signed()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.cast_unsigned()))
        })?;
        let mut found = rows.collect::<Sql<Vec<_>>>()?;
        found.reverse();
        let named = |(id, part): (String, u64)| Some((Uuid::parse_str(&id).ok()?, line.to_owned(), part));
        Ok(found.into_iter().filter_map(named).collect())
    }
}
