//! One row an anomaly, every field, as RFC 4180 has it. What a spreadsheet would take for a formula is made text.
//!
//! Thread: that of the caller; blocks.
//!
//! Invariants:
//! 1. No cell begins with what starts a formula. Test: `no_cell_is_a_formula`, and `hostile_names_are_inert` in
//!    tests/review_export.rs.

use std::io::Write;

use super::{Export, Item};
use crate::error::{Context, Result};
use crate::review::store::Decision;

const COLUMNS: [&str; 38] = [
    "id",
    "received_at",
    "captured_at",
    "site",
    "line",
    "camera",
    "part",
    "frame",
    "verdict",
    "score",
    "threshold",
    "confidence",
    "reasons",
    "decision",
    "defect_type",
    "comment",
    "reviewer",
    "reviewed_at",
    "lot",
    "serial",
    "model_name",
    "model_version",
    "model_sha256",
    "device",
    "precision",
    "spooled_s",
    "image_width",
    "image_height",
    "part_x",
    "part_y",
    "part_w",
    "part_h",
    "regions",
    "regions_json",
    "has_normal",
    "frame_url",
    "heatmap_url",
    "event",
];

/// Rows onto a wire.
pub struct Csv<W: Write>(csv::Writer<W>);

impl<W: Write> Csv<W> {
    /// Writes the names of the columns.
    pub fn new(out: W) -> Result<Csv<W>> {
        let mut csv = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(out);
        csv.write_record(COLUMNS).failed(cannot)?;
        Ok(Csv(csv))
    }
}

fn cannot() -> &'static str {
    "cannot write the table"
}

impl<W: Write + Send> Export for Csv<W> {
    fn item(&mut self, item: &Item<'_>) -> Result<()> {
        let (a, e) = (item.anomaly, &item.anomaly.event);
        let review = a.review.as_ref();
        let text = |t: Option<&str>| inert(t.unwrap_or_default());
        let part = |value: fn(&crate::event::Rect) -> u32| {
            e.part_box.as_ref().map(value).map_or(String::new(), |v| v.to_string())
        };
        let picture = |name| crate::review::api::picture_url(e.id, name);
        let row: [String; COLUMNS.len()] = [
            e.id.to_string(),
            a.received_at.to_string(),
            e.captured_at.to_string(),
            inert(&e.site),
            inert(&e.line),
            inert(&e.camera),
            e.part.to_string(),
            e.frame.to_string(),
            e.verdict.as_str().into(),
            e.score.to_string(),
            // a threshold below 0 stays a number
            e.threshold.to_string(),
            e.confidence.to_string(),
            inert(&e.reasons.join("; ")),
            review.and_then(|r| r.decision).map_or("", Decision::as_str).into(),
            text(review.and_then(|r| r.defect_type.as_deref())),
            text(review.and_then(|r| r.comment.as_deref())),
            text(review.map(|r| r.reviewer.as_str())),
            review.map(|r| r.at.to_string()).unwrap_or_default(),
            text(e.lot.as_deref()),
            text(e.serial.as_deref()),
            inert(&e.model.name),
            inert(&e.model.version),
            inert(&e.model.sha256),
            inert(&e.device),
            inert(&e.precision),
            e.spooled_s.to_string(),
            e.image.width.to_string(),
            e.image.height.to_string(),
            part(|p| p.x),
            part(|p| p.y),
            part(|p| p.w),
            part(|p| p.h),
            e.regions.len().to_string(),
            serde_json::to_string(&e.regions).failed(cannot)?,
            a.has_normal.to_string(),
            picture(crate::review::store::ObjectName::Frame),
            picture(crate::review::store::ObjectName::Heatmap),
            inert(&a.raw),
        ];
        self.0.write_record(&row).failed(cannot)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.0.flush().failed(cannot)
    }
}

/// Text that no spreadsheet takes for a formula: an apostrophe goes before what would start one (OWASP's advice).
pub fn inert(text: &str) -> String {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠') => format!("'{text}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        let table = [
            ("=cmd()|' /C calc'!A0", "'=cmd()|' /C calc'!A0"),
            ("@SUM(1)", "'@SUM(1)"),
            ("-1", "'-1"),
            ("\t=1", "'\t=1"),
            ("scratch = deep", "scratch = deep"),
            ("", ""),
        ];
        for (given, wanted) in table {
            assert_eq!(inert(given), wanted);
        }
    }
}
