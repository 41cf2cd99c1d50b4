//! What lists, filters, counts and insights cost in a store of a million anomalies. `cargo bench --bench review_store`; the rows
//! are generated and written straight into the database (`LINESIGHT_BENCH_ROWS` of them), pictures are left out because no list
//! reads them. `LINESIGHT_BENCH_ONLY=insight` asks only the questions whose name contains that. Prints a table of milliseconds; of
//! statistics, which are kept for who asks again, the greatest is the first answer, and the median what moving the slider costs.
//! Fails when a list, a filter or a count is slower than [`LIMIT_MS`] at its p99.

// a benchmark that cannot be set up has nothing to measure
#![allow(clippy::expect_used)]

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use hdrhistogram::Histogram;
use jiff::{SignedDuration, Timestamp};
use linesight::event::Verdict;
use linesight::review::store::sqlite::SqliteStore;
use linesight::review::store::stats::Scope;
use linesight::review::store::{Anomaly, Cursor, Decision, Filter, Reviewed, Sort, Store, Walk};
use rusqlite::{Connection, params};
use uuid::Uuid;

const ROWS: u64 = 1_000_000;
/// What a list, a filter and a count may take at the 99th percentile.
const LIMIT_MS: f64 = 50.0;
/// Times that each question is asked.
const TIMES: usize = 200;
/// Anomalies in a page.
const PAGE: usize = 50;
const DAY_NS: i64 = 86_400_000_000_000;
/// 2030-01-01.
const FIRST_NS: i64 = 1_893_456_000_000_000_000;
/// Over how long they were captured.
const DAYS: i64 = 365;
const LINES: usize = 12;
const MODELS: usize = 10;
const TYPES: [&str; 8] = ["scratch", "dent", "stain", "crack", "burr", "missing washer", "colour", "thread"];

fn main() -> ExitCode {
    // cargo test runs benchmarks to see that they work
    let rows = std::env::var("LINESIGHT_BENCH_ROWS").ok().and_then(|n| n.parse().ok());
    let rows = rows.unwrap_or(if std::env::args().any(|a| a == "--bench") { ROWS } else { 2000 });
    let dir = tempfile::tempdir().expect("a folder");
    drop(SqliteStore::open(dir.path()).expect("a store"));
    let begun = Instant::now();
    generate(dir.path(), rows);
    let size = std::fs::metadata(dir.path().join("review.db")).expect("a database").len();
    println!(
        "{rows} anomalies, {} parts generated in {:.0?}, database {} MB\n",
        rows,
        begun.elapsed(),
        size / 1_000_000
    );
    let store = SqliteStore::open(dir.path()).expect("the store again");
    let slow = measure(&store);
    for name in &slow {
        eprintln!("{name}: p99 above {LIMIT_MS} ms");
    }
    if slow.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Rows as uploads and reviews would leave them.
fn generate(dir: &Path, rows: u64) {
    let mut db = Connection::open(dir.join("review.db")).expect("the database");
    db.pragma_update(None, "synchronous", "OFF").expect("fast");
    db.pragma_update(None, "cache_size", -400_000).expect("much");
    let tx = db.transaction().expect("begun");
    let mut rng = fastrand::Rng::with_seed(7);
    // each line has had its models one after the other, as in life: old models have old anomalies only
    for line in 0..LINES {
        for model in 0..MODELS {
            tx.execute(
                "INSERT INTO origins (id, line, model, threshold, heard_at) VALUES (?, ?, ?, 1.0, ?)",
                params![
                    (line * MODELS + model) as i64 + 1,
                    format!("line-{line}"),
                    format!("washer@{model}"),
                    model as i64
                ],
            )
            .expect("origin");
        }
    }
    tx.execute("INSERT INTO runs (id, line, run, parts, at) VALUES (1, 'line-0', 'r', ?, 1)", [rows as i64])
        .expect("run");
    {
        let mut tally = tx
            .prepare(
                "INSERT INTO tallies (origin, verdict, review, defect_type, count, bytes) VALUES (?, ?, ?, ?, 1, 90000)
                 ON CONFLICT DO UPDATE SET count = count + 1, bytes = bytes + 90000 RETURNING id",
            )
            .expect("SQL");
        let mut anomaly = tx
            .prepare(
                "INSERT INTO anomalies (n, id, captured_at, received_at, origin, tally, part, score, confidence, lot, serial,
                    place_x, place_y, spot, bytes, review_seq, reviewers)
                 VALUES (?, ?, ?, ?3, ?, ?, ?1, ?, ?, ?, ?, ?, ?, ?, 90000, ?, ?)",
            )
            .expect("SQL");
        let mut event = tx.prepare("INSERT INTO events (n, event) VALUES (?, ?)").expect("SQL");
        let mut review = tx
            .prepare(
                "INSERT INTO reviews (seq, anomaly, at, reviewer, decision, defect_type) VALUES (?, ?, ?, ?, ?, ?)",
            )
            .expect("SQL");
        let mut part = tx
            .prepare("INSERT INTO parts (run, part, at, score, verdict, origin) VALUES (1, ?, ?, ?, ?, ?)")
            .expect("SQL");
        let mut seq = 0_i64;
        for n in 0..rows {
            let at = FIRST_NS + (n as i64) * (DAYS * DAY_NS / rows.max(1) as i64) + rng.i64(0..1_000_000_000);
            let line = rng.usize(0..LINES);
            let model = (n as usize * MODELS / rows as usize).min(MODELS - 1);
            let origin = (line * MODELS + model) as i64 + 1;
            let verdict = match rng.u32(0..1000) {
                0..850 => "reject",
                850..999 => "unsure",
                _ => "missed",
            };
            // what is old has mostly been looked at
            let looked = rng.f64() < if n < rows * 9 / 10 { 0.9 } else { 0.2 };
            let (decision, kind) = match (looked, rng.u32(0..100)) {
                (false, _) => ("", ""),
                (true, 0..70) => ("defect", TYPES[(rng.f64().powi(3) * TYPES.len() as f64) as usize]),
                (true, 70..98) => ("false-alarm", ""),
                (true, _) => ("unclear", ""),
            };
            let id = uuid(at, &mut rng);
            let tally: i64 = tally.query_row(params![origin, verdict, decision, kind], |r| r.get(0)).expect("tally");
            let confidence = f64::from(1.0 - (rng.f32() * 0.2).powi(2));
            let score = 1.0 + 6.0 * rng.f64().powi(3);
            let (x, y) =
                if rng.bool() { (rng.f64(), rng.f64()) } else { (0.3 + 0.02 * rng.f64(), 0.7 + 0.02 * rng.f64()) };
            let spot = (y * 12.0) as i64 * 12 + (x * 12.0) as i64;
            let mut reviewers = 0;
            if looked {
                reviewers = if rng.u32(0..50) == 0 { 2 } else { 1 };
                for who in 0..reviewers {
                    seq += 1;
                    let who = format!("reviewer-{}", (n as usize + who) % 4);
                    let kind = Some(kind).filter(|k| !k.is_empty());
                    review.execute(params![seq, id.to_string(), at, who, decision, kind]).expect("review");
                }
            }
            let n = n as i64 + 1;
            anomaly
                .execute(params![
                    n,
                    id.to_string(),
                    at,
                    origin,
                    tally,
                    score,
                    confidence,
                    format!("lot-{}", n / 400),
                    format!("SN{:08}", n),
                    x,
                    y,
                    spot,
                    looked.then_some(seq),
                    reviewers as i64
                ])
                .expect("anomaly");
            event.execute(params![n, json(id, line, model, at, n, score, confidence, verdict)]).expect("event");
            part.execute(params![n, at, score, verdict, MODELS as i64]).expect("part");
        }
        let mut minute = tx.prepare("INSERT INTO minutes VALUES (?, ?, 'washer@9', 110, 5, 1, 0)").expect("SQL");
        for line in 0..LINES {
            for m in 0..30 * 24 * 60 {
                minute.execute(params![format!("line-{line}"), FIRST_NS / 60_000_000_000 + m]).expect("minute");
            }
        }
    }
    tx.execute(
        "INSERT INTO hours SELECT line, minute / 60, model, SUM(pass), SUM(reject), SUM(unsure), SUM(missed) FROM minutes GROUP BY 1, 2, 3",
        [],
    )
    .expect("hours");
    tx.execute("UPDATE revision SET n = ?", [rows as i64]).expect("revision");
    tx.commit().expect("committed");
}

fn uuid(at_ns: i64, rng: &mut fastrand::Rng) -> Uuid {
    let ms = (at_ns / 1_000_000) as u128;
    let random = rng.u128(..) & ((1 << 80) - 1);
    Uuid::from_u128(ms << 80 | random & !(0xf << 76) & !(0x3 << 62) | 7 << 76 | 2 << 62)
}

#[expect(clippy::too_many_arguments, reason = "they are the columns of a row")]
fn json(id: Uuid, line: usize, model: usize, at: i64, part: i64, score: f64, confidence: f64, verdict: &str) -> String {
    let at = Timestamp::from_nanosecond(at.into()).expect("a time");
    serde_json::json!({
        "schema": 1, "id": id, "site": "plant", "line": format!("line-{line}"), "camera": "rtsp://10.0.0.7/stream",
        "part": part, "frame": part * 9, "captured_at": at, "spooled_s": 0.4, "score": score, "confidence": confidence,
        "threshold": 1.0, "verdict": verdict, "reasons": ["score 2.1 above threshold 1.0"],
        "regions": [
            {"x": 410, "y": 220, "w": 40, "h": 18, "score": score, "area_px": 400.0, "share": 0.7},
            {"x": 110, "y": 120, "w": 10, "h": 8, "score": score * 0.7, "area_px": 60.0, "share": 0.3}
        ],
        "model": {"name": "washer", "version": model.to_string(), "sha256": "ab".repeat(32)}, "device": "CPU",
        "precision": "int8", "lot": format!("lot-{}", part / 400), "serial": format!("SN{part:08}"),
        "image": {"width": 1280, "height": 720}, "part_box": {"x": 200, "y": 100, "w": 500, "h": 500}
    })
    .to_string()
}

/// A question: its name, whether it has to be within [`LIMIT_MS`], and how it is asked.
type Question<'a> = (String, bool, Box<dyn Fn(&mut fastrand::Rng) + 'a>);

/// Asks everything; gives what was too slow.
fn measure(store: &SqliteStore) -> Vec<String> {
    let time = |day: i64| Timestamp::from_nanosecond((FIRST_NS + day * DAY_NS).into()).expect("a time");
    let all = Filter::default;
    let filters: Vec<(&str, Filter)> = vec![
        ("no filter", all()),
        ("line", Filter { line: Some("line-3".into()), ..all() }),
        ("line that is not there", Filter { line: Some("line-99".into()), ..all() }),
        ("verdict reject", Filter { verdict: Some(Verdict::Reject), ..all() }),
        ("verdict missed (0.1 %)", Filter { verdict: Some(Verdict::Missed), ..all() }),
        ("not reviewed", Filter { reviewed: Some(Reviewed::No), ..all() }),
        ("reviewed", Filter { reviewed: Some(Reviewed::Yes), ..all() }),
        ("defects", Filter { reviewed: Some(Reviewed::As(Decision::Defect)), ..all() }),
        ("unclear", Filter { reviewed: Some(Reviewed::As(Decision::Unclear)), ..all() }),
        ("defect type", Filter { defect_type: Some("thread".into()), ..all() }),
        ("model (oldest)", Filter { model: Some("washer@0".into()), ..all() }),
        ("lot", Filter { lot: Some("lot-1200".into()), ..all() }),
        ("serial", Filter { serial: Some("SN00500000".into()), ..all() }),
        ("serial that is not there", Filter { serial: Some("none".into()), ..all() }),
        (
            "an hour",
            Filter {
                since: Some(time(100)),
                until: time(100).checked_add(SignedDuration::from_hours(1)).ok(),
                ..all()
            },
        ),
        ("a week", Filter { since: Some(time(100)), until: Some(time(107)), ..all() }),
        ("since half a year", Filter { since: Some(time(180)), ..all() }),
        ("before the first", Filter { until: Some(time(0)), ..all() }),
        ("confidence from 0.99", Filter { confidence_min: Some(0.99), ..all() }),
        ("confidence from 0.9999999", Filter { confidence_min: Some(0.999_999_9), ..all() }),
        ("confidence to 0.9", Filter { confidence_max: Some(0.9), ..all() }),
        ("confidence 0.97 to 0.9701", Filter { confidence_min: Some(0.97), confidence_max: Some(0.9701), ..all() }),
        (
            "line, verdict, not reviewed",
            Filter {
                line: Some("line-3".into()),
                verdict: Some(Verdict::Reject),
                reviewed: Some(Reviewed::No),
                ..all()
            },
        ),
        (
            "line, missed, defect",
            Filter {
                line: Some("line-3".into()),
                verdict: Some(Verdict::Missed),
                reviewed: Some(Reviewed::As(Decision::Defect)),
                ..all()
            },
        ),
        (
            "line, week, confidence",
            Filter {
                line: Some("line-3".into()),
                since: Some(time(100)),
                until: Some(time(107)),
                confidence_min: Some(0.99),
                ..all()
            },
        ),
        (
            "not reviewed, hour",
            Filter {
                reviewed: Some(Reviewed::No),
                since: Some(time(360)),
                until: time(360).checked_add(SignedDuration::from_hours(1)).ok(),
                ..all()
            },
        ),
        (
            "model and week when it was not used",
            Filter { model: Some("washer@0".into()), since: Some(time(300)), until: Some(time(307)), ..all() },
        ),
        (
            "defect, rare confidence",
            Filter { reviewed: Some(Reviewed::As(Decision::Defect)), confidence_max: Some(0.9601), ..all() },
        ),
        (
            "lot, defect",
            Filter { lot: Some("lot-1200".into()), reviewed: Some(Reviewed::As(Decision::Defect)), ..all() },
        ),
    ];
    let scopes = [
        ("insight: all", Scope::default()),
        ("insight: a line", Scope { line: Some("line-3".into()), ..Scope::default() }),
        ("insight: a line, 30 days", Scope { line: Some("line-3".into()), since: Some(time(335)), ..Scope::default() }),
    ];
    let mut questions: Vec<Question> = Vec::new();
    for (name, filter) in &filters {
        for (order, sort) in [("time", Sort::Time), ("confidence", Sort::Confidence)] {
            let first = move |_: &mut fastrand::Rng| {
                store.list(filter, sort, None, PAGE).expect("a page");
            };
            questions.push((format!("{name} | {order} | first page"), true, Box::new(first)));
            let deep = move |rng: &mut fastrand::Rng| {
                // from a random anomaly on, towards both ends
                let Some(from) = pick(store, rng) else { return };
                let position = from.position(sort).expect("a place");
                let walk = if rng.bool() { Walk::Older } else { Walk::Newer };
                let cursor = Cursor { walk, from: position };
                let begun = Instant::now();
                store.list(filter, sort, Some(cursor), PAGE).expect("a page");
                DEEP.set(Some(begun.elapsed().as_nanos() as u64));
            };
            questions.push((format!("{name} | {order} | deep"), true, Box::new(deep)));
        }
    }
    questions.push(("counts of the chips".into(), true, Box::new(|_| drop(store.counts().expect("counts")))));
    questions.push(("models".into(), true, Box::new(|_| drop(store.models().expect("models")))));
    questions.push(("revision".into(), true, Box::new(|_| assert!(store.revision().expect("revision") > 0))));
    questions.push((
        "one anomaly and what is near".into(),
        true,
        Box::new(|rng| {
            if let Some(one) = pick(store, rng) {
                let begun = Instant::now();
                store.near(one.event.id, 12).expect("near");
                DEEP.set(Some(begun.elapsed().as_nanos() as u64));
            }
        }),
    ));
    for (name, scope) in &scopes {
        questions.push(((*name).into(), false, Box::new(move |_| drop(store.insight(scope).expect("insight")))));
    }
    questions.push((
        "what if: a line, the slider moves".into(),
        false,
        Box::new(|rng| {
            drop(store.what_if("line-0", None, Some(7.0 * rng.f64())).expect("what if"));
        }),
    ));
    if let Ok(only) = std::env::var("LINESIGHT_BENCH_ONLY") {
        questions.retain(|(name, ..)| name.contains(&only));
    }

    println!("{:<58} {:>9} {:>9} {:>9}", "question, ms", "p50", "p99", "max");
    let mut slow = Vec::new();
    for (name, limited, ask) in &questions {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut times = Histogram::<u64>::new(3).expect("a histogram");
        for _ in 0..if *limited { TIMES } else { TIMES / 20 } {
            DEEP.set(None);
            let begun = Instant::now();
            ask(&mut rng);
            times.record(DEEP.get().unwrap_or(begun.elapsed().as_nanos() as u64)).expect("recorded");
        }
        let ms = |ns: u64| ns as f64 / 1e6;
        let p99 = ms(times.value_at_quantile(0.99));
        println!("{name:<58} {:>9.2} {p99:>9.2} {:>9.2}", ms(times.value_at_quantile(0.5)), ms(times.max()));
        if *limited && p99 > LIMIT_MS {
            slow.push(name.clone());
        }
    }
    slow
}

thread_local! {
    /// Time of the part of a question that counts.
    static DEEP: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Some anomaly, found by a random capture time.
fn pick(store: &SqliteStore, rng: &mut fastrand::Rng) -> Option<Anomaly> {
    let at = Timestamp::from_nanosecond((FIRST_NS + rng.i64(0..DAYS * DAY_NS)).into()).expect("a time");
    let filter = Filter { until: Some(at), ..Filter::default() };
    store.list(&filter, Sort::Time, None, 1).expect("one").items.pop()
}
