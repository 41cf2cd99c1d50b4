//! Records as lines make them, without a line.

// each test binary uses a part of it
#![allow(dead_code, clippy::unwrap_used)]

use linesight::deliver::{Anomaly, Pictures, Record};
use linesight::event::{Event, LedgerRow, Verdict};
use serde_json::json;
use uuid::Uuid;

fn row(line: &str, part: u64, verdict: Verdict) -> LedgerRow {
    LedgerRow {
        line: line.into(),
        part,
        frame: 2 * part,
        captured_at: jiff::Timestamp::now(),
        verdict,
        score: 1.25,
        confidence: 0.5,
        latency_ms: 9.0,
        model: "m@1".into(),
        event: None,
        frames: 1,
        reasons: Vec::new(),
        late_ms: None,
        lot: None,
        serial: None,
    }
}

/// A part that leaves nothing but its row.
pub fn plain(line: &str, part: u64, verdict: Verdict) -> Record {
    Record { row: row(line, part, verdict), anomaly: None }
}

/// An anomaly with these pictures, and its id.
pub fn anomaly(line: &str, part: u64, verdict: Verdict, pictures: Pictures) -> (String, Record) {
    let id = Uuid::now_v7();
    let event: Event = serde_json::from_value(json!({
        "schema": 1, "id": id, "site": "s", "line": line, "camera": "c", "part": part, "frame": 2 * part,
        "captured_at": jiff::Timestamp::now(), "score": 2.5, "confidence": 0.99, "threshold": 1.0, "verdict": verdict,
        "reasons": ["größer"], "regions": [{"x": 1, "y": 2, "w": 3, "h": 4, "score": 2.5}],
        "model": {"name": "m", "version": "1", "sha256": "00"}, "device": "CPU", "precision": "f32",
        "image": {"width": 64, "height": 48},
    }))
    .unwrap();
    let row = LedgerRow { event: Some(id), ..row(line, part, verdict) };
    (id.to_string(), Record { row, anomaly: Some(Anomaly { event, pictures: Box::new(move || Ok(pictures)) }) })
}
