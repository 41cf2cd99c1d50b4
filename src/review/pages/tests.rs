use jiff::Timestamp;
use maud::Markup;
use uuid::Uuid;

use super::insight::{InsightPage, Question};
use super::item::{Found, Item};
use super::lines::{History, lines_page};
use super::queue::Queue;
use super::view::View;
use crate::event::{LineReport, Verdict};
use crate::review::accounts::{Role, Who};
use crate::review::reports::{Calibration, LineNow};
use crate::review::store::stats::{
    Agreement, Bin, Confusion, Insight, Outcome, Pair, Places, Rate, Scope, Share, TypeCount, WhatIf,
};
use crate::review::store::{Anomaly, Count, Decision, Filter, Page, Review};

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>";

fn anomaly(text: &str, id: u128) -> Anomaly {
    let id = Uuid::from_u128(id);
    let event = serde_json::json!({
        "schema": 1, "id": id, "site": text, "line": text, "camera": text,
        "part": 1, "frame": 2, "captured_at": "2030-01-02T03:04:05.123456789Z", "score": 2.0, "confidence": 0.99,
        "threshold": 0.0, "verdict": "reject", "reasons": [text], "lot": text, "serial": text,
        "regions": [{"x": 1, "y": 2, "w": 4_000_000_000_u32, "h": 4, "score": 3.0}],
        "model": {"name": text, "version": text, "sha256": text}, "device": text, "precision": text,
        "image": {"width": 8, "height": 6}, "part_box": {"x": 1, "y": 1, "w": 2, "h": 2}
    });
    let raw = event.to_string();
    let event = serde_json::from_value(event).unwrap();
    let review = Some(review(text, id));
    Anomaly { event, raw, received_at: Timestamp::UNIX_EPOCH, has_normal: true, review }
}

fn review(text: &str, anomaly: Uuid) -> Review {
    Review {
        seq: 1,
        anomaly,
        at: Timestamp::UNIX_EPOCH,
        reviewer: text.into(),
        decision: Some(Decision::Defect),
        defect_type: Some(text.into()),
        comment: Some(text.into()),
    }
}

fn line(text: &str) -> LineNow {
    let check = serde_json::json!({"value": 1.0, "usual": 0.5, "alert": true, "says": text});
    let report: LineReport = serde_json::from_value(serde_json::json!({
        "schema": 1, "site": text, "line": text, "run": Uuid::nil(), "seq": 1, "at": "2030-01-02T03:04:05Z", "state": "stalled",
        "reason": text, "last_frame_age_s": 0.1, "fps": 30.0,
        "counters": {"frames": 1, "parts": 4, "passed": 1, "rejected": 1, "unsure": 1, "missed": 1, "late": 1,
            "dropped": {text: 3}, "reconnects": 2},
        "spool": {"waiting": 3, "set_aside": 1}, "health": {text: check}, "drift": {text: check},
        "model": {"name": text, "version": text, "sha256": text}, "threshold": 1.0
    }))
    .unwrap();
    LineNow { report, received_at: Timestamp::UNIX_EPOCH, recent: [1, 1, 1, 1] }
}

fn pages(text: &str) -> String {
    let who = Who { name: text.into(), role: Role::Admin };
    let now = Timestamp::UNIX_EPOCH;
    let text_of = || Some(text.to_owned());
    let filter = Filter {
        line: text_of(),
        verdict: Some(Verdict::Reject),
        model: text_of(),
        lot: text_of(),
        serial: text_of(),
        defect_type: text_of(),
        ..Filter::default()
    };
    let view = View::of(filter);
    let count = |line: &str| Count { line: line.into(), verdict: "reject".into(), review: None, count: 1 };
    let counts = [count("a"), count(text)];
    let types = [text.to_owned()];
    let queue = |items: Vec<Anomaly>| -> Markup {
        let page = Page { items, older: None, newer: None, revision: 1 };
        Queue { view: &view, page: &page, counts: &counts, types: &types, who: &who, now }.page()
    };
    let found = Found {
        anomaly: anomaly(text, 1),
        newer: None,
        older: Some(Uuid::nil()),
        next: Some(Uuid::nil()),
        reviews: vec![review(text, Uuid::from_u128(1))],
        near: vec![anomaly(text, 2)],
        types: types.to_vec(),
        calibration: Some(Calibration { threshold: 1.0, scores: vec![0.5, 0.75] }),
    };
    let item = Item { view: &view, found: &found, who: &who, now }.page();
    let history = History::from([(text.to_owned(), vec![[1, 1, 0, 0]; 4])]);
    let lines = lines_page(&who, &[line(text)], &history, now);
    let insight = insight_page(text, &who);
    [queue(vec![anomaly(text, 1)]), queue(vec![]), item, lines, insight].map(Markup::into_string).concat()
}

fn insight_page(text: &str, who: &Who) -> Markup {
    let names = [text.to_owned()];
    let mut rejects = Places::new();
    rejects.add(0.5, 0.5);
    let pair = Pair { a: text.into(), b: text.into(), both: 2, same: 1, kappa: None };
    let insight = Insight {
        revision: 1,
        bucket_minutes: 1,
        rates: vec![Rate { at: Timestamp::UNIX_EPOCH, pass: 3, reject: 1, unsure: 0, missed: 0 }],
        anomalies: 1,
        unreviewed: 0,
        confusion: vec![Confusion { verdict: "reject".into(), defect: 1, false_alarm: 0, unclear: 0, unreviewed: 0 }],
        defect_types: vec![TypeCount { defect_type: Some(text.into()), count: 1, cumulated: 1.0 }],
        defects: rejects.clone(),
        rejects,
        precision: Share::new(1, 1),
        agreement: Agreement { anomalies: 2, pairs: vec![pair] },
    };
    let outcome = Outcome {
        threshold: 1.0,
        rejects: 1,
        false_rejects: 0,
        passes_rejected: 0,
        escapes: 0,
        caught: 1,
        unreviewed: 0,
        bytes: 1000,
    };
    let bin = Bin { low: 0.0, high: 2.0, pass: 3, reject: 1, defect: 1, false_alarm: 0, unclear: 0, unreviewed: 0 };
    let what_if = WhatIf {
        revision: 1,
        line: text.into(),
        model: text.into(),
        since: None,
        until: None,
        cut: false,
        parts: 4,
        unsure: 0,
        missed: 0,
        unmatched: 0,
        mean_bytes: 1000.0,
        bins: vec![bin],
        current: outcome,
        proposed: None,
    };
    let scope = Scope { line: Some(text.into()), model: Some(text.into()), since: None, until: None };
    let question = Question { scope, threshold: None };
    let page = InsightPage {
        question: &question,
        lines: &names,
        models: &names,
        types: &names,
        insight: &insight,
        what_if: Some(&what_if),
        who,
        now: Timestamp::UNIX_EPOCH,
    };
    page.page()
}

#[test]
fn hostile_text_stays_text() {
    let plain = pages("plain");
    let hostile = pages(HOSTILE);
    assert!(hostile.contains("&lt;script&gt;alert(1)"));
    for tag in ["<script", "<img", "<a "] {
        assert_eq!(hostile.matches(tag).count(), plain.matches(tag).count(), "{tag}");
    }
    assert_eq!(hostile.matches('<').count(), plain.matches('<').count());
}

#[test]
fn nothing_is_inline() {
    let pages = pages("plain");
    for inline in [" style=", "<style", " onclick=", " onload=", "javascript:", "https://"] {
        assert!(!pages.contains(inline), "{inline}");
    }
    assert_eq!(pages.matches("<script").count(), pages.matches("<script defer src=\"/assets/").count());
}

#[test]
fn viewers_get_no_way_to_judge() {
    let who = Who { name: "ann".into(), role: Role::Viewer };
    let view = View::of(Filter::default());
    let page = Page { items: vec![anomaly("plain", 1)], older: None, newer: None, revision: 1 };
    let queue = Queue { view: &view, page: &page, counts: &[], types: &[], who: &who, now: Timestamp::UNIX_EPOCH };
    let page = queue.page().into_string();
    assert!(!page.contains("method=\"post\"") && !page.contains("data-judge"));
}
