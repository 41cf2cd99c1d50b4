//! How an anomaly lies in a bucket or a folder: `<line>/<yyyy>/<mm>/<dd>/<event id>/` with its pictures and `event.json`.
//!
//! Invariants, each with the test that holds it:
//! 1. `event.json` is written last: where it is, the anomaly is whole: `a_folder_never_shows_half_an_anomaly` and
//!    `a_bucket_gets_each_once` (tests/targets.rs).
//! 2. The place depends on the event alone, so a repeat writes over what is there: `the_place_is_the_same_each_time`.
//! 3. No name leads out of the folder: `names_stay_inside`.

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::super::spool::Spooled;
use super::event_at;
use crate::error::{Context, Result};

/// The file that says that the anomaly is whole.
pub(super) const EVENT: &str = "event.json";

/// One anomaly, ready to be laid down.
pub(super) struct Laid {
    /// The way to it.
    pub folder: Vec<String>,
    /// In the order in which they have to be written.
    pub files: Vec<File>,
}

pub(super) struct File {
    pub name: &'static str,
    pub kind: &'static str,
    pub content: Bytes,
}

impl Laid {
    /// Of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.content.len() as u64).sum()
    }
}

/// Where an anomaly goes and what of it.
pub(super) fn lay(item: &Spooled, now: Timestamp) -> Result<Laid> {
    let event = event_at(item, now)?;
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let day = text("captured_at")
        .parse::<Timestamp>()
        .failed(|| format!("the spooled event \"{}\" says no time", item.id))?;
    let day = day.to_zoned(TimeZone::UTC);
    let folder = vec![
        safe(&text("line")),
        format!("{:04}", day.year()),
        format!("{:02}", day.month()),
        format!("{:02}", day.day()),
        item.id.to_string(),
    ];
    let pictures = &item.pictures;
    let file = |name, kind, content: Vec<u8>| File { name, kind, content: content.into() };
    let mut files = vec![
        file("frame.jpg", "image/jpeg", pictures.frame_jpeg.clone()),
        file("heatmap.png", "image/png", pictures.heatmap_png.clone()),
    ];
    files.extend(pictures.normal_jpeg.clone().map(|normal| file("normal.jpg", "image/jpeg", normal)));
    files.push(file(EVENT, "application/json", event.to_string().into_bytes()));
    Ok(Laid { folder, files })
}

/// A name as one step of a path: what is not a letter, a digit or one of `-_.` as %XX.
fn safe(name: &str) -> String {
    let dots = !name.is_empty() && name.chars().all(|c| c == '.');
    let step: String = name
        .bytes()
        .map(|b| match b {
            b'.' if dots => "%2E".into(),
            b if b.is_ascii_alphanumeric() || b"-_.".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect();
    if step.is_empty() { "%".into() } else { step }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::tests::sample;
    use std::time::Duration;

    #[test]
    fn the_place_is_the_same_each_time() {
        let (mut event, mut item) = sample(3);
        event.captured_at = "2026-02-01T23:59:59.9Z".parse().unwrap();
        item.event = serde_json::to_string(&event).unwrap();
        item.pictures.normal_jpeg = Some(vec![7; 9]);
        let laid = lay(&item, item.spooled_at).unwrap();
        assert_eq!(laid.folder, ["line", "2026", "02", "01", &event.id.to_string()]);
        let names = |laid: &Laid| laid.files.iter().map(|file| file.name).collect::<Vec<_>>();
        assert_eq!(names(&laid), ["frame.jpg", "heatmap.png", "normal.jpg", EVENT]);
        let later = lay(&item, item.spooled_at + Duration::from_secs(100_000)).unwrap();
        assert_eq!((later.folder, names(&laid)), (laid.folder.clone(), names(&laid)));
        assert!(laid.bytes() > 3509);
        item.event = "{\"line\":\"a\"}".into();
        assert!(lay(&item, Timestamp::now()).is_err());
    }

    #[test]
    fn names_stay_inside() {
        for (name, step) in [
            ("a-b_c.D1", "a-b_c.D1"),
            ("..", "%2E%2E"),
            (".", "%2E"),
            ("../x", "..%2Fx"),
            ("", "%"),
            ("ä %", "%C3%A4%20%25"),
        ] {
            assert_eq!(safe(name), step);
        }
    }
}
