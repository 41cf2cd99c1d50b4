//! What the review server keeps, and the trait that a storage must have: anomalies with their pictures, people's decisions on
//! them, and line reports. [`sqlite`] is the one that is there; PostgreSQL and an object store can stand behind the same trait.
//!
//! Thread: every call blocks, so the HTTP side calls a store only inside `spawn_blocking`.

pub mod backup;
mod insight;
mod query;
mod remember;
pub mod retain;
mod reviews;
pub mod schema;
pub mod sqlite;
pub mod stats;
mod what_if;

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::reports::{Calibration, LineNow};
use crate::error::{Context, Error, Result};
use crate::event::{Event, LineReport, Rect, Verdict};
pub use retain::{Removed, Retention};
pub use sqlite::SqliteStore;
use stats::{Insight, Scope, WhatIf};

/// One of the pictures that belong to an anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectName {
    /// What the camera saw.
    Frame,
    /// Where it is unusual; covers the whole frame.
    Heatmap,
    /// What the place should look like.
    Normal,
}

impl ObjectName {
    /// All of them.
    pub const ALL: [ObjectName; 3] = [ObjectName::Frame, ObjectName::Heatmap, ObjectName::Normal];

    /// Name of the file on disk and in the URL.
    pub fn file_name(self) -> &'static str {
        match self {
            ObjectName::Frame => "frame.jpg",
            ObjectName::Heatmap => "heatmap.png",
            ObjectName::Normal => "normal.jpg",
        }
    }
    /// Media type it is served with.
    pub fn content_type(self) -> &'static str {
        match self {
            ObjectName::Heatmap => "image/png",
            ObjectName::Frame | ObjectName::Normal => "image/jpeg",
        }
    }
    /// The name for a file name, when it is one of ours.
    pub fn from_file_name(name: &str) -> Option<ObjectName> {
        Self::ALL.into_iter().find(|o| o.file_name() == name)
    }
}

/// A checked upload, ready to be kept.
#[derive(Debug, Clone)]
pub struct NewAnomaly {
    pub event: Event,
    /// The event as it was posted.
    pub raw: String,
    /// At most one of each name.
    pub objects: Vec<(ObjectName, Vec<u8>)>,
}

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is new and now on disk.
    New,
    /// It was there before; nothing changed.
    Existing,
}

/// A stored anomaly without its pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Anomaly {
    pub event: Event,
    /// The event as it was posted.
    pub raw: String,
    pub received_at: Timestamp,
    pub has_normal: bool,
    /// The decision that holds: the last one that was not taken back.
    pub review: Option<Review>,
}

impl Anomaly {
    /// The place of this anomaly in a list of that order.
    pub fn position(&self, sort: Sort) -> Result<Position> {
        let key = match sort {
            Sort::Time => Key::Time(nanoseconds(self.event.captured_at)?),
            Sort::Confidence => Key::Confidence(self.event.confidence),
        };
        Ok(Position { key, id: self.event.id })
    }
}

/// A person's decision on an anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The part is defective: the verdict was right.
    Defect,
    /// The part is good: a false reject.
    FalseAlarm,
    /// Cannot be told from the pictures.
    Unclear,
}

impl Decision {
    /// All of them, in the order of their keys on the page.
    pub const ALL: [Decision; 3] = [Decision::Defect, Decision::FalseAlarm, Decision::Unclear];

    /// The word used in JSON, the database and URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Defect => "defect",
            Decision::FalseAlarm => "false-alarm",
            Decision::Unclear => "unclear",
        }
    }
    /// The decision for its word.
    pub fn from_word(word: &str) -> Option<Decision> {
        Self::ALL.into_iter().find(|d| d.as_str() == word)
    }
}

/// What a person said about an anomaly. Reviews are never changed: a later one takes the place of an earlier one, and taking
/// one back is an entry of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Review {
    /// Grows with each review on this server, without meaning beyond that.
    pub seq: i64,
    pub anomaly: Uuid,
    pub at: Timestamp,
    /// Account, or `local` where there are none.
    pub reviewer: String,
    /// `None`: the review before was taken back.
    pub decision: Option<Decision>,
    /// One of the site's own list at the time, for defects.
    pub defect_type: Option<String>,
    pub comment: Option<String>,
}

/// A review to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReview {
    pub reviewer: String,
    pub decision: Decision,
    pub defect_type: Option<String>,
    pub comment: Option<String>,
}

/// A picture and the checksum it was stored with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// Hex.
    pub sha256: String,
}

/// What a list is sorted by; always the greatest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Sort {
    /// Capture time, the newest first.
    #[default]
    Time,
    /// The most unusual first.
    Confidence,
}

/// What an item is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub enum Key {
    /// Nanoseconds since 1970 at which it was captured.
    Time(i64),
    /// 0..1.
    Confidence(f32),
}

/// Place in a list: by its key, then id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    pub key: Key,
    pub id: Uuid,
}

impl Position {
    /// Of which list it is a place.
    pub fn sort(&self) -> Sort {
        match self.key {
            Key::Time(_) => Sort::Time,
            Key::Confidence(_) => Sort::Confidence,
        }
    }
}

/// Which way to walk from a position. The list itself always has the greatest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    Older,
    Newer,
}

/// Where a page starts. Opaque text outside: `o` or `n`; nanoseconds, or `c` and the confidence; `_`; id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cursor {
    pub walk: Walk,
    /// Itself not part of the page.
    pub from: Position,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let walk = if self.walk == Walk::Older { 'o' } else { 'n' };
        match self.from.key {
            Key::Time(ns) => write!(f, "{walk}{ns}_{}", self.from.id),
            Key::Confidence(confidence) => write!(f, "{walk}c{confidence}_{}", self.from.id),
        }
    }
}

impl FromStr for Cursor {
    type Err = Error;
    fn from_str(text: &str) -> Result<Cursor> {
        let bad = || Error::usage(format!("cursor {text:?} is not one that this server gave out"));
        let (walk, rest) = match text.split_at_checked(1) {
            Some(("o", rest)) => (Walk::Older, rest),
            Some(("n", rest)) => (Walk::Newer, rest),
            _ => return Err(bad()),
        };
        let (key, id) = rest.split_once('_').ok_or_else(bad)?;
        let key = match key.strip_prefix('c') {
            Some(confidence) => match confidence.parse::<f32>() {
                Ok(confidence) if confidence.is_finite() => Key::Confidence(confidence),
                _ => return Err(bad()),
            },
            None => Key::Time(key.parse().map_err(|_| bad())?),
        };
        let id = Uuid::try_parse(id).map_err(|_| bad())?;
        Ok(Cursor { walk, from: Position { key, id } })
    }
}

/// Whether people have looked at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reviewed {
    /// Not yet.
    No,
    /// With whatever decision.
    Yes,
    /// With this one.
    As(Decision),
}

/// Which anomalies to list; `None` means all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    pub line: Option<String>,
    pub verdict: Option<Verdict>,
    pub reviewed: Option<Reviewed>,
    /// Captured then or later.
    pub since: Option<Timestamp>,
    /// Captured before.
    pub until: Option<Timestamp>,
    /// 0..1, inclusive.
    pub confidence_min: Option<f32>,
    /// 0..1, inclusive.
    pub confidence_max: Option<f32>,
    /// `name@version`.
    pub model: Option<String>,
    pub lot: Option<String>,
    pub serial: Option<String>,
    /// Of the decision that holds.
    pub defect_type: Option<String>,
}

/// A part of the list, the greatest first.
#[derive(Debug, Clone)]
pub struct Page {
    pub items: Vec<Anomaly>,
    /// Continues with what is older; `None` at the end.
    pub older: Option<Cursor>,
    /// Goes back to what is newer; `None` when there was nothing when the page was made.
    pub newer: Option<Cursor>,
    /// Grows with every change of the store, whatever the filter.
    pub revision: i64,
}

/// How many anomalies a line has with one verdict and one decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub line: String,
    pub verdict: String,
    /// `None`: not reviewed.
    pub review: Option<Decision>,
    pub count: u64,
}

/// What the review server needs from storage. Calls block.
pub trait Store: Send + Sync + 'static {
    /// Keeps an anomaly; when it returns, the anomaly is on disk.
    fn insert(&self, new: &NewAnomaly) -> Result<Inserted>;
    /// One anomaly.
    fn get(&self, id: Uuid) -> Result<Option<Anomaly>>;
    /// A page of at most `limit` anomalies (at least one), the greatest first. A cursor of another order is refused.
    fn list(&self, filter: &Filter, sort: Sort, start: Option<Cursor>, limit: usize) -> Result<Page>;
    /// Records a review; `None` when there is no such anomaly.
    fn review(&self, id: Uuid, new: &NewReview) -> Result<Option<Review>>;
    /// Takes back the review that holds, so that the one before it holds again; `None` when there is no such anomaly or none
    /// to take back. Only a reviewer's own.
    fn take_back(&self, id: Uuid, reviewer: &str) -> Result<Option<Review>>;
    /// All that was said about an anomaly, the first first.
    fn reviews(&self, id: Uuid) -> Result<Vec<Review>>;
    /// Other anomalies of the same line and model with their strongest region at about the same place of the part, the nearest
    /// first, at most `limit`.
    fn near(&self, id: Uuid, limit: usize) -> Result<Vec<Anomaly>>;
    /// The site's own names of defects, in the order of their keys.
    fn defect_types(&self) -> Result<Vec<String>>;
    /// Sets them; what was reviewed keeps its name.
    fn set_defect_types(&self, names: &[String]) -> Result<()>;
    /// Counts of all, by line, verdict and decision, sorted by them.
    fn counts(&self) -> Result<Vec<Count>>;
    /// The models that a list can be limited to (`name@version`), sorted.
    fn models(&self) -> Result<Vec<String>>;
    /// What [`Page::revision`] would be.
    fn revision(&self) -> Result<i64>;
    /// What was decided, how often, where and how well. What takes long may be some seconds old, as may [`Store::what_if`].
    fn insight(&self, scope: &Scope) -> Result<Insight>;
    /// What another threshold would have done to the parts of a line and model, the one that was heard of last where none is
    /// given; `None` when nothing is known of it.
    fn what_if(&self, line: &str, model: Option<&str>, threshold: Option<f64>) -> Result<Option<WhatIf>>;
    /// Removes a bounded number of anomalies that need not be kept, with their reviews.
    fn retain(&self, rule: &Retention, now: Timestamp) -> Result<Removed>;
    /// One picture of an anomaly.
    fn object(&self, id: Uuid, name: ObjectName) -> Result<Option<Object>>;
    /// Keeps a line's report; when it returns, the report is on disk. Kind usage: it is not taken.
    fn insert_report(&self, report: &LineReport) -> Result<Inserted>;
    /// Every line that has ever reported, by name.
    fn lines(&self) -> Result<Vec<LineNow>>;
    /// Parts of each line by verdict (pass, reject, unsure, missed) in `steps` steps of `minutes`, the last one ending now.
    fn history(&self, minutes: i64, steps: usize) -> Result<BTreeMap<String, Vec<[u64; 4]>>>;
    /// The scores that a model, by the checksum of its package, was calibrated with on a line.
    fn calibration(&self, line: &str, model_sha256: &str) -> Result<Option<Calibration>>;
}

/// Where the strongest region of an anomaly lies: its centre in the judged box (in the picture where there is none), 0..1.
pub fn place(event: &Event) -> Option<(f64, f64)> {
    let strongest = event.regions.iter().max_by(|a, b| a.score.total_cmp(&b.score))?;
    let whole = Rect { x: 0, y: 0, w: event.image.width, h: event.image.height };
    let part = event.part_box.filter(|part| part.w > 0 && part.h > 0).unwrap_or(whole);
    let at = |start: u32, size: u32, from: u32, all: u32| {
        ((f64::from(start) + f64::from(size) / 2.0 - f64::from(from)) / f64::from(all.max(1))).clamp(0.0, 1.0)
    };
    Some((at(strongest.x, strongest.w, part.x, part.w), at(strongest.y, strongest.h, part.y, part.h)))
}

/// Nanoseconds since 1970, when they fit the database (years 1678 to 2261).
pub fn nanoseconds(time: Timestamp) -> Result<i64> {
    i64::try_from(time.as_nanosecond()).usage(|| format!("time \"{time}\" is out of range"))
}

#[cfg(test)]
mod decided_tests;
#[cfg(test)]
mod kept_tests;
