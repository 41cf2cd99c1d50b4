//! Tests of what people decide, of lists under filters, and of the numbers that follow.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use proptest::prelude::*;

use super::sqlite::tests::{anomaly, event, ids, nth};
use super::stats::{Scope, Share, kappa};
use super::*;
use crate::event::{ModelId, Region};

pub(super) fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir).unwrap()
}

/// For tests that store much: without waiting for the disk.
pub(super) fn open_fast(dir: &Path) -> SqliteStore {
    let store = open(dir);
    store.writer().pragma_update(None, "synchronous", "OFF").unwrap();
    store
}

pub(super) fn said(reviewer: &str, decision: Decision, defect_type: Option<&str>) -> NewReview {
    NewReview { reviewer: reviewer.into(), decision, defect_type: defect_type.map(str::to_owned), comment: None }
}

fn decision(store: &SqliteStore, n: u128) -> Option<Decision> {
    store.get(nth(n)).unwrap().unwrap().review.and_then(|r| r.decision)
}

/// What counting the rows gives, against what is kept.
pub(super) fn assert_tallies(store: &SqliteStore) {
    let db = store.writer();
    let wrong: i64 = db
        .query_row(
            "SELECT COUNT(*) FROM (SELECT t.id FROM tallies t LEFT JOIN anomalies a ON a.tally = t.id
             LEFT JOIN reviews r ON r.seq = a.review_seq
             GROUP BY t.id HAVING t.count <> COUNT(a.n) OR t.bytes <> COALESCE(SUM(a.bytes), 0)
             OR SUM(a.n IS NOT NULL AND COALESCE(r.decision, '') <> t.review) > 0
             OR SUM(a.n IS NOT NULL AND COALESCE(r.defect_type, '') <> t.defect_type) > 0
             OR SUM(a.origin <> t.origin) > 0)",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(wrong, 0, "tallies differ from what they count");
}

#[test]
fn a_review_holds_until_the_next_or_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.insert(&anomaly(event(nth(1), "a", Verdict::Reject, 5))).unwrap();
    assert_eq!(store.review(nth(2), &said("ann", Decision::Defect, None)).unwrap(), None, "there is no such anomaly");
    assert_eq!(store.take_back(nth(1), "ann").unwrap(), None, "nothing to take back");
    let first = store.review(nth(1), &said("ann", Decision::Defect, Some("scratch"))).unwrap().unwrap();
    let second = store.review(nth(1), &said("bob", Decision::FalseAlarm, None)).unwrap().unwrap();
    assert_eq!(decision(&store, 1), Some(Decision::FalseAlarm));
    assert_eq!(store.take_back(nth(1), "ann").unwrap(), None, "the one that holds is not hers");
    let undone = store.take_back(nth(1), "bob").unwrap().unwrap();
    assert_eq!((undone.decision, undone.reviewer.as_str()), (None, "bob"));
    assert_eq!(store.get(nth(1)).unwrap().unwrap().review.unwrap(), first);
    assert_eq!(store.take_back(nth(1), "bob").unwrap(), None);
    store.take_back(nth(1), "ann").unwrap().unwrap();
    assert_eq!(store.get(nth(1)).unwrap().unwrap().review, None);
    let seqs: Vec<i64> = store.reviews(nth(1)).unwrap().iter().map(|r| r.seq).collect();
    assert_eq!(seqs.len(), 4, "nothing is forgotten");
    assert_eq!(seqs[..2], [first.seq, second.seq]);
    assert_tallies(&store);
}

#[test]
fn a_restart_keeps_what_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.insert(&anomaly(event(nth(1), "a", Verdict::Reject, 5))).unwrap();
    store.set_defect_types(&["scratch".into(), "dent".into()]).unwrap();
    store.review(nth(1), &said("ann", Decision::Defect, Some("dent"))).unwrap();
    let before = store.get(nth(1)).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.get(nth(1)).unwrap(), before);
    assert_eq!(store.defect_types().unwrap(), ["scratch", "dent"]);
    store.set_defect_types(&["dent".into()]).unwrap();
    assert_eq!(store.defect_types().unwrap(), ["dent"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Against a model: a stack of reviews for each anomaly.
    #[test]
    fn what_holds_follows_from_the_history(
        steps in prop::collection::vec((0..3_u128, 0..2_usize, prop::option::of(0..3_usize)), 1..30),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = open_fast(dir.path());
        for n in 0..3 {
            store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, n as i64))).unwrap();
        }
        let mut model: BTreeMap<u128, Vec<(&str, Decision)>> = BTreeMap::new();
        for (n, who, what) in steps {
            let who = ["ann", "bob"][who];
            let stack = model.entry(n).or_default();
            match what {
                Some(what) => {
                    let what = Decision::ALL[what];
                    let kind = (what == Decision::Defect).then_some("dent");
                    store.review(nth(n), &said(who, what, kind)).unwrap().unwrap();
                    stack.push((who, what));
                }
                None => {
                    let mine = stack.last().is_some_and(|(last, _)| *last == who);
                    prop_assert_eq!(store.take_back(nth(n), who).unwrap().is_some(), mine);
                    if mine {
                        stack.pop();
                    }
                }
            }
            prop_assert_eq!(decision(&store, n), stack.last().map(|(_, what)| *what));
        }
        assert_tallies(&store);
        let unreviewed = model.values().filter(|s| s.is_empty()).count() + 3 - model.len();
        let filter = Filter { reviewed: Some(Reviewed::No), ..Filter::default() };
        prop_assert_eq!(store.list(&filter, Sort::Time, None, 10).unwrap().items.len(), unreviewed);
        let insight = store.insight(&Scope::default()).unwrap();
        prop_assert_eq!(insight.unreviewed as usize, unreviewed);
        let several = |s: &&Vec<(&str, Decision)>| s.iter().any(|r| r.0 != s[0].0);
        prop_assert_eq!(insight.agreement.anomalies as usize, model.values().filter(several).count());
    }
}

/// What an anomaly of the property tests has.
#[derive(Debug, Clone)]
struct Kind {
    line: usize,
    verdict: usize,
    time: i64,
    confidence: u8,
    model: usize,
    lot: Option<usize>,
    serial: Option<usize>,
    review: Option<(usize, usize)>,
}

const LINES: [&str; 3] = ["a", "b", "c' OR 1 --"];
const TYPES: [&str; 2] = ["dent", "scratch"];
const VERDICTS: [Verdict; 3] = [Verdict::Reject, Verdict::Unsure, Verdict::Missed];

fn kind() -> impl Strategy<Value = Kind> {
    let some = |n: usize| prop::option::of(0..n);
    (
        0..3_usize,
        0..3_usize,
        -5_i64..5,
        0_u8..6,
        0..2_usize,
        some(2),
        some(3),
        prop::option::of((0..3_usize, 0..2_usize)),
    )
        .prop_map(|(line, verdict, time, confidence, model, lot, serial, review)| Kind {
            line,
            verdict,
            time,
            confidence,
            model,
            lot,
            serial,
            review,
        })
}

fn store_kinds(store: &SqliteStore, kinds: &[Kind]) -> Vec<Anomaly> {
    for (n, k) in (0_u128..).zip(kinds) {
        let mut e = event(nth(n), LINES[k.line], VERDICTS[k.verdict], k.time);
        e.confidence = f32::from(k.confidence) / 5.0;
        e.model = ModelId { name: "m".into(), version: k.model.to_string(), sha256: "00".into() };
        e.lot = k.lot.map(|n| format!("lot {n}"));
        e.serial = k.serial.map(|n| format!("s{n}"));
        let mut new = anomaly(e);
        new.objects.clear(); // pictures are not what this is about
        store.insert(&new).unwrap();
        if let Some((what, kind)) = k.review {
            let what = Decision::ALL[what];
            let kind = (what == Decision::Defect).then_some(TYPES[kind]);
            store.review(nth(n), &said("ann", what, kind)).unwrap();
        }
    }
    (0..kinds.len() as u128).map(|n| store.get(nth(n)).unwrap().unwrap()).collect()
}

fn filter() -> impl Strategy<Value = Filter> {
    let some = |n: usize| prop::option::of(0..n);
    let times = (prop::option::of(-6_i64..6), prop::option::of(-6_i64..6));
    let shares = (prop::option::of(0_u8..6), prop::option::of(0_u8..6));
    (some(4), some(3), some(5), times, shares, (some(3), some(3), some(4), some(3))).prop_map(
        |(line, verdict, reviewed, times, shares, (model, lot, serial, kind))| {
            let time = |t: Option<i64>| t.map(|t| Timestamp::from_nanosecond(t.into()).unwrap());
            Filter {
                line: line.map(|n| LINES.get(n).copied().unwrap_or("nowhere").to_owned()),
                verdict: verdict.map(|n| VERDICTS[n]),
                reviewed: reviewed.map(|n| match n {
                    0 => Reviewed::No,
                    1 => Reviewed::Yes,
                    n => Reviewed::As(Decision::ALL[n - 2]),
                }),
                since: time(times.0),
                until: time(times.1),
                confidence_min: shares.0.map(|c| f32::from(c) / 5.0),
                confidence_max: shares.1.map(|c| f32::from(c) / 5.0),
                model: model.map(|n| format!("m@{n}")),
                lot: lot.map(|n| format!("lot {n}")),
                serial: serial.map(|n| format!("s{n}")),
                defect_type: kind.map(|n| TYPES.get(n).copied().unwrap_or("rust").to_owned()),
            }
        },
    )
}

/// Straight from the words of [`Filter`].
fn matches(f: &Filter, a: &Anomaly) -> bool {
    let (e, review) = (&a.event, a.review.as_ref());
    f.line.as_ref().is_none_or(|l| *l == e.line)
        && f.verdict.is_none_or(|v| v == e.verdict)
        && f.reviewed.is_none_or(|r| match r {
            Reviewed::No => review.is_none(),
            Reviewed::Yes => review.is_some(),
            Reviewed::As(d) => review.and_then(|r| r.decision) == Some(d),
        })
        && f.since.is_none_or(|t| e.captured_at >= t)
        && f.until.is_none_or(|t| e.captured_at < t)
        && f.confidence_min.is_none_or(|c| e.confidence >= c)
        && f.confidence_max.is_none_or(|c| e.confidence <= c)
        && f.model.as_ref().is_none_or(|m| *m == format!("{}@{}", e.model.name, e.model.version))
        && f.lot.as_ref().is_none_or(|l| e.lot.as_ref() == Some(l))
        && f.serial.as_ref().is_none_or(|s| e.serial.as_ref() == Some(s))
        && f.defect_type.as_ref().is_none_or(|t| review.and_then(|r| r.defect_type.as_ref()) == Some(t))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn pages_equal_a_naive_filter(
        kinds in prop::collection::vec(kind(), 0..60),
        filters in prop::collection::vec(filter(), 12),
        limit in 1..20_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_fast(dir.path());
        let all = store_kinds(&store, &kinds);
        // each filter by another way through the indices
        for (n, filter) in filters.iter().enumerate() {
            store.limits = query::Limits { few: [1, 10, 10_000][n % 3], ranges: [2000, 2][n % 2] };
            for sort in [Sort::Time, Sort::Confidence] {
                let mut wanted: Vec<&Anomaly> = all.iter().filter(|a| matches(filter, a)).collect();
                wanted.sort_by(|a, b| {
                    let keys = match sort {
                        Sort::Time => b.event.captured_at.cmp(&a.event.captured_at),
                        Sort::Confidence => b.event.confidence.total_cmp(&a.event.confidence),
                    };
                    keys.then(b.event.id.cmp(&a.event.id))
                });
                let wanted: Vec<Uuid> = wanted.iter().map(|a| a.event.id).collect();
                let mut page = store.list(filter, sort, None, limit).unwrap();
                let mut down = ids(&page);
                while let Some(cursor) = page.older {
                    page = store.list(filter, sort, Some(cursor), limit).unwrap();
                    down.extend(ids(&page));
                }
                prop_assert_eq!(&down, &wanted, "{:?} {:?}", filter, sort);
                let mut up: Vec<Uuid> = ids(&page).into_iter().rev().collect();
                while let Some(cursor) = page.newer {
                    page = store.list(filter, sort, Some(cursor), limit).unwrap();
                    up.extend(ids(&page).into_iter().rev());
                }
                up.reverse();
                prop_assert_eq!(&up, &wanted, "{:?} {:?} upwards", filter, sort);
            }
        }
        let counts: u64 = store.counts().unwrap().iter().map(|c| c.count).sum();
        prop_assert_eq!(counts as usize, all.len());
        assert_tallies(&store);
    }

    #[test]
    fn insight_equals_a_naive_count(kinds in prop::collection::vec(kind(), 0..50), scope in (0..4_usize, 0..3_usize, prop::option::of(-5_i64..5))) {
        let dir = tempfile::tempdir().unwrap();
        let store = open_fast(dir.path());
        let all = store_kinds(&store, &kinds);
        let scope = Scope {
            line: LINES.get(scope.0).map(|l| (*l).to_owned()),
            model: (scope.1 < 2).then(|| format!("m@{}", scope.1)),
            since: scope.2.map(|ns| Timestamp::from_nanosecond(ns.into()).unwrap()),
            until: None,
        };
        let filter = Filter { line: scope.line.clone(), model: scope.model.clone(), since: scope.since, ..Filter::default() };
        let counted: Vec<&Anomaly> = all.iter().filter(|a| matches(&filter, a)).collect();
        let insight = store.insight(&scope).unwrap();
        prop_assert_eq!(insight.anomalies as usize, counted.len());
        let how_many = |v: Verdict, d: Option<Decision>| {
            let fits = |a: &&&Anomaly| a.event.verdict == v && a.review.as_ref().and_then(|r| r.decision) == d;
            counted.iter().filter(fits).count() as u64
        };
        for (row, verdict) in insight.confusion.iter().zip(VERDICTS) {
            let wanted = [Some(Decision::Defect), Some(Decision::FalseAlarm), Some(Decision::Unclear), None]
                .map(|d| how_many(verdict, d));
            prop_assert_eq!([row.defect, row.false_alarm, row.unclear, row.unreviewed], wanted);
        }
        let defects: u64 = insight.defect_types.iter().map(|t| t.count).sum();
        prop_assert_eq!(defects, VERDICTS.iter().map(|v| how_many(*v, Some(Decision::Defect))).sum::<u64>());
        prop_assert!(insight.defect_types.windows(2).all(|w| w[0].count >= w[1].count));
        prop_assert!(insight.defect_types.last().is_none_or(|t| (t.cumulated - 1.0).abs() < 1e-9));
        let hits = (how_many(Verdict::Reject, Some(Decision::Defect)), how_many(Verdict::Reject, Some(Decision::FalseAlarm)));
        prop_assert_eq!(insight.precision.map(|p| (p.hits, p.of)), (hits.0 + hits.1 > 0).then_some((hits.0, hits.0 + hits.1)));
    }
}

pub(super) fn with_region(id: Uuid, line: &str, ns: i64, x: u32, y: u32) -> NewAnomaly {
    let mut e = event(id, line, Verdict::Reject, ns);
    e.image = crate::event::ImageSize { width: 100, height: 100 };
    e.regions = vec![Region { x, y, w: 2, h: 2, score: 2.0, area_px: 4.0, share: 1.0, area_mm2: None }];
    anomaly(e)
}

#[test]
fn near_finds_the_same_place_of_the_same_line() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // across the edges of cells, and at the edge of the part
    let places = [(49, 49), (50, 43), (56, 55), (49, 70), (98, 0), (92, 3)];
    for (n, (x, y)) in places.into_iter().enumerate() {
        store.insert(&with_region(nth(n as u128), "a", n as i64 * 10, x, y)).unwrap();
    }
    store.insert(&with_region(nth(10), "b", 1, 49, 49)).unwrap();
    store.insert(&anomaly(event(nth(11), "a", Verdict::Reject, 2))).unwrap();
    let near = |n, limit| -> Vec<Uuid> { store.near(nth(n), limit).unwrap().iter().map(|a| a.event.id).collect() };
    assert_eq!(near(0, 10), [nth(1), nth(2)], "the nearest in time first");
    assert_eq!(near(2, 1), [nth(0)], "50, 43 is too far from 56, 55");
    assert_eq!(near(4, 10), [nth(5)]);
    assert!(near(11, 10).is_empty(), "it has no place");
    assert!(near(99, 10).is_empty(), "it is not there");
}

#[test]
fn insight_counts_what_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..6 {
        store.insert(&with_region(nth(n), "a", n as i64, 10, 80)).unwrap();
    }
    for n in 0..3 {
        store.review(nth(n), &said("ann", Decision::Defect, Some("dent"))).unwrap();
        store.review(nth(n), &said("bob", Decision::Defect, Some("scratch"))).unwrap();
    }
    store.review(nth(3), &said("ann", Decision::FalseAlarm, None)).unwrap();
    store.review(nth(3), &said("bob", Decision::Defect, None)).unwrap();
    store.review(nth(3), &said("bob", Decision::FalseAlarm, None)).unwrap();
    store.review(nth(4), &said("ann", Decision::FalseAlarm, None)).unwrap();
    let insight = store.insight(&Scope::default()).unwrap();
    assert_eq!((insight.anomalies, insight.unreviewed), (6, 1));
    let types: Vec<_> = insight.defect_types.iter().map(|t| (t.defect_type.as_deref(), t.count)).collect();
    assert_eq!(types, [(Some("scratch"), 3)]);
    let cell = 25 * 32 + 3; // 81 % down and 11 % across
    assert_eq!((insight.rejects.total, insight.rejects.cells[cell]), (6, 6));
    assert_eq!((insight.defects.total, insight.defects.cells[cell]), (3, 3));
    let precision = insight.precision.unwrap();
    assert_eq!((precision.hits, precision.of), (3, 5));
    let pair = &insight.agreement.pairs[0];
    assert_eq!((pair.a.as_str(), pair.b.as_str(), pair.both, pair.same), ("ann", "bob", 4, 4));
    assert_eq!(pair.kappa, Some(1.0), "bob's latest word on the fourth is a false alarm");
}

#[test]
fn intervals_and_kappa_are_those_of_the_books() {
    // Newcombe 1998, Statistics in Medicine 17, table I: method 3 (Wilson) for 81/263, 15/148, 0/20, 1/29
    for (hits, of, low, high) in
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
    {
        let share = Share::new(hits, of).unwrap();
        assert!((share.low - low).abs() < 1e-4 && (share.high - high).abs() < 1e-4, "{share:?}");
    }
    assert_eq!(Share::new(0, 0), None);
    // 20 both yes, 15 both no, 5 and 10 apart: 0.7 observed, 0.5 by chance
    assert!((kappa(&[[20, 5, 0], [10, 15, 0], [0, 0, 0]]).unwrap() - 0.4).abs() < 1e-12);
    assert_eq!(kappa(&[[7, 0, 0], [0, 0, 0], [0, 0, 0]]), None, "always the same word");
    assert_eq!(kappa(&[[0; 3]; 3]), None);
}

fn report(line: &str, seq: u64, rows: &[(u64, i64, f32, Verdict)]) -> LineReport {
    let time = |ns: i64| Timestamp::from_nanosecond(ns.into()).unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|(part, at, score, verdict)| serde_json::json!({"part": part, "at": time(*at), "score": score, "verdict": verdict}))
        .collect();
    serde_json::from_value(serde_json::json!({
        "schema": 1, "site": "s", "line": line, "run": Uuid::from_u128(7), "seq": seq, "at": Timestamp::now(),
        "state": "live", "last_frame_age_s": 0.1, "fps": 30.0,
        "counters": {"frames": seq, "parts": 0, "passed": 0, "rejected": 0, "unsure": 0, "missed": 0, "late": 0,
            "dropped": {}, "reconnects": 0},
        "spool": {"waiting": 0, "set_aside": 0}, "health": {}, "drift": {},
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "threshold": 1.0, "rows": rows
    }))
    .unwrap()
}

const S: i64 = 1_000_000_000;

/// A second of today: older parts would be removed at once.
fn today(second: i64) -> i64 {
    nanoseconds(Timestamp::now()).unwrap() / (3600 * S) * (3600 * S) - 7200 * S + second * S
}

#[test]
fn rates_over_weeks_are_those_of_the_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let minute = |n: i64| today(0) - 30 * 86_400 * S + n * 60 * S;
    // parts before the first whole hour, in whole hours, and after the last one
    let minutes = [7, 59, 60, 100, 5000, 5001, 20_000, 40_000, 40_079, 40_080, 40_085];
    let rows: Vec<_> = (0..).zip(minutes).map(|(n, m)| (n, minute(m), 0.5, Verdict::Pass)).collect();
    store.insert_report(&report("a", 0, &rows)).unwrap();
    store.insert_report(&report("b", 0, &rows[4..6])).unwrap();
    let asked = |line: Option<&str>, from: i64, to: i64| {
        let time = |n| Some(Timestamp::from_nanosecond(minute(n).into()).unwrap());
        store
            .insight(&Scope { line: line.map(Into::into), since: time(from), until: time(to), ..Scope::default() })
            .unwrap()
    };
    for (from, to) in [(0, 50_000), (8, 40_085), (60, 40_080), (100, 20_001), (101, 40_081)] {
        let within = |rows: &[i64]| rows.iter().filter(|m| (from..to).contains(*m)).count() as u64;
        for (line, parts) in [(Some("a"), within(&minutes)), (None, within(&minutes) + within(&minutes[4..6]))] {
            let insight = asked(line, from, to);
            assert!(insight.bucket_minutes >= 60);
            assert_eq!(insight.rates.iter().map(|r| r.pass).sum::<u64>(), parts, "{line:?} {from} {to}");
            let width = insight.bucket_minutes * 60;
            assert!(insight.rates.iter().all(|r| r.at.as_second() % width == 0));
        }
    }
    assert_eq!(asked(Some("a"), 5000, 5002).bucket_minutes, 1, "a short time, by minutes");
}

#[test]
fn what_if_counts_every_part_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.what_if("a", None, None).unwrap(), None, "nothing is known of the line");
    let part = |n: u128, part, ns| {
        let mut e = event(nth(n), "a", Verdict::Reject, ns);
        e.part = part;
        store.insert(&anomaly(e)).unwrap();
    };
    part(1, 10, today(100)); // in the report
    part(2, 10, today(500)); // the same number in another run
    part(3, 11, today(101)); // its report comes later
    store
        .insert_report(&report("a", 0, &[(9, today(99), 0.5, Verdict::Pass), (10, today(100), 2.5, Verdict::Reject)]))
        .unwrap();
    let found = store.what_if("a", None, None).unwrap().unwrap();
    assert_eq!((found.parts, found.unmatched, found.model.as_str()), (4, 2, "m@1"));
    store
        .insert_report(&report(
            "a",
            1,
            &[(11, today(101), 2.5, Verdict::Reject), (12, today(102), 9.0, Verdict::Unsure)],
        ))
        .unwrap();
    let found = store.what_if("a", Some("m@1"), Some(3.0)).unwrap().unwrap();
    assert_eq!((found.parts, found.unmatched, found.unsure), (4, 1, 1));
    assert_eq!(found.since, Some(Timestamp::from_nanosecond(today(99).into()).unwrap()));
    assert_eq!(found.current.rejects, 3);
    assert_eq!(found.proposed.unwrap().rejects, 0, "what is unsure leaves at any threshold and is not a reject");
    assert_eq!(store.what_if("a", Some("m@2"), None).unwrap(), None);
    assert_eq!(store.what_if("b", None, None).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_if_equals_a_naive_replay(
        scores in prop::collection::vec((prop_oneof![Just(0.0_f32), Just(1.0), 0.0..8.0_f32, 0.001..2000.0_f32], prop::option::of(0..3_usize)), 0..50),
        asked in 0.0..10.0_f64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = open_fast(dir.path());
        let rows: Vec<(u64, i64, f32, Verdict)> = (0..)
            .zip(&scores)
            .map(|(n, (score, _))| (n, today(n as i64), *score, if *score > 1.0 { Verdict::Reject } else { Verdict::Pass }))
            .collect();
        store.insert_report(&report("a", 0, &rows)).unwrap();
        for ((part, at, score, verdict), (_, review)) in rows.iter().zip(&scores) {
            if *verdict == Verdict::Reject {
                let id = nth(u128::from(*part));
                let mut e = event(id, "a", Verdict::Reject, *at);
                (e.part, e.score) = (*part, *score);
                let mut new = anomaly(e);
                new.objects.clear();
                store.insert(&new).unwrap();
                if let Some(what) = review {
                    store.review(id, &said("ann", Decision::ALL[*what], None)).unwrap();
                }
            }
        }
        let found = store.what_if("a", None, Some(asked)).unwrap().unwrap();
        prop_assert_eq!(found.parts as usize, scores.len());
        prop_assert_eq!(found.unmatched, 0);
        let known = |above: bool, t: f64, what: Option<usize>| {
            let fits = |(score, review): &&(f32, Option<usize>)| (f64::from(*score) > t) == above && review.filter(|_| *score > 1.0) == what;
            scores.iter().filter(fits).count() as u64
        };
        for (outcome, t) in [(&found.current, 1.0), (found.proposed.as_ref().unwrap(), asked)] {
            prop_assert_eq!(outcome.rejects as usize, scores.iter().filter(|s| f64::from(s.0) > t).count());
            prop_assert_eq!(outcome.passes_rejected as usize, scores.iter().filter(|s| s.0 <= 1.0 && f64::from(s.0) > t).count());
            prop_assert_eq!(outcome.caught, known(true, t, Some(0)));
            prop_assert_eq!(outcome.escapes, known(false, t, Some(0)));
            prop_assert_eq!(outcome.false_rejects, known(true, t, Some(1)));
            prop_assert_eq!(outcome.unreviewed, known(true, t, None));
        }
        prop_assert!(found.bins.len() <= stats::BINS);
        let sum = |pick: fn(&stats::Bin) -> u64| found.bins.iter().map(pick).sum::<u64>();
        prop_assert_eq!(sum(|b| b.pass + b.reject) as usize, scores.len(), "every score is in a bin");
        prop_assert_eq!(sum(|b| b.reject), sum(|b| b.defect + b.false_alarm + b.unclear + b.unreviewed));
        let above: u64 = found.bins.iter().filter(|b| b.high > 1.0).map(|b| b.pass + b.reject).sum();
        prop_assert_eq!(above, found.current.rejects, "exact at the current threshold");
        prop_assert!(found.bins.windows(2).all(|w| w[0].high == w[1].low && w[0].low <= w[0].high));
    }
}
