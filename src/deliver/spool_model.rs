//! Spool and ledger against a model that fits on a page: random operations, the same answers, a chain that verifies.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use uuid::Uuid;

use super::database::{Database, Reader, Ready, ReadyAnomaly, fresh};
use super::ledger::Ledger;
use super::options::{Bounds, WhenFull};
use super::retain::Retention;
use super::spool::{End, Order, Outcome};
use super::tests::{pictures, row, sample};
use crate::deliver::Pictures;

const TARGETS: [&str; 2] = ["review", "archive"];

#[derive(Debug, Clone)]
enum Operation {
    Good,
    Anomaly { size: u16 },
    Commit,
    Deliver { which: usize, to: usize },
    Fail { which: usize, to: usize, aside: bool },
    Refuse { which: usize, to: usize },
    DeliverUnknown,
    Bound { items: u64, bytes: u64, policy: usize, fly: usize },
    Retain { rows: u64 },
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let to = 0..TARGETS.len();
    prop_oneof![
        4 => Just(Operation::Good),
        6 => (1u16..20_000).prop_map(|size| Operation::Anomaly { size }),
        4 => Just(Operation::Commit),
        6 => (any::<usize>(), to.clone()).prop_map(|(which, to)| Operation::Deliver { which, to }),
        3 => (any::<usize>(), to.clone(), any::<bool>()).prop_map(|(which, to, aside)| Operation::Fail { which, to, aside }),
        2 => (any::<usize>(), to).prop_map(|(which, to)| Operation::Refuse { which, to }),
        1 => Just(Operation::DeliverUnknown),
        1 => (0u64..12, 0u64..100_000, 0usize..3, any::<usize>())
            .prop_map(|(items, bytes, policy, fly)| Operation::Bound { items, bytes, policy, fly }),
        1 => (0u64..20).prop_map(|rows| Operation::Retain { rows }),
        2 => Just(Operation::Reopen),
    ]
}

/// What a target still has to get of an anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Owed {
    attempts: u32,
    aside: bool,
    dead: bool,
}

#[derive(Debug, Clone)]
struct Item {
    seq: i64,
    id: Uuid,
    part: u64,
    /// Bytes of the frame.
    size: usize,
    owed: [Option<Owed>; 2],
}

impl Item {
    fn is_dead(&self) -> bool {
        self.owed.iter().flatten().all(|owed| owed.dead)
    }
}

/// What is on the disk, and what is not yet.
#[derive(Default)]
struct Model {
    rows: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
    /// Oldest first.
    spool: Vec<Item>,
    open_rows: Vec<u64>,
    open_spool: Vec<Item>,
}

fn check(model: &Model, database: &Database, reader: &Reader, path: &std::path::Path) {
    let depth = database.depth().unwrap();
    let dead = model.spool.iter().filter(|item| item.is_dead()).count() as u64;
    assert_eq!((depth.waiting, depth.dead), (model.spool.len() as u64 - dead, dead));
    for (to, target) in TARGETS.iter().enumerate() {
        let owed: Vec<(&Item, Owed)> = model.spool.iter().filter_map(|item| Some((item, item.owed[to]?))).collect();
        let of = depth.targets.get(*target).copied().unwrap_or_default();
        let count = |is: fn(&Owed) -> bool| owed.iter().filter(|(_, owed)| is(owed)).count() as u64;
        assert_eq!((of.waiting, of.set_aside, of.dead), (count(|o| !o.dead), count(|o| o.aside), count(|o| o.dead)));
        // by way of what the uploader asks
        let mut expected: Vec<i64> =
            owed.iter().filter(|(_, o)| !o.aside && !o.dead).map(|(item, _)| item.seq).collect();
        assert_eq!(reader.first(target, Order::OldestFirst, 1000).unwrap(), expected);
        expected.reverse();
        assert_eq!(reader.first(target, Order::NewestFirst, 1000).unwrap(), expected);
        let far = Timestamp::now() + SignedDuration::from_hours(2);
        let aside: Vec<i64> = owed.iter().filter(|(_, o)| o.aside).map(|(item, _)| item.seq).collect();
        assert_eq!(reader.first_aside(target, far, std::time::Duration::ZERO, 1000).unwrap(), aside);
        for item in &model.spool {
            let found = reader.item(target, item.seq).unwrap();
            assert_eq!(found.as_ref().and_then(|s| s.damage), None);
            let shape = found.map(|s| (s.id, s.pictures.frame_jpeg.len() == item.size, s.attempts, s.aside));
            assert_eq!(shape, item.owed[to].map(|owed| (item.id, true, owed.attempts, owed.aside)));
        }
    }

    let ledger: BTreeMap<u64, (bool, bool)> = rusqlite::Connection::open(path)
        .unwrap()
        .prepare("SELECT part, delivered_at IS NOT NULL, fate IS 'dropped' FROM ledger WHERE part >= 0")
        .unwrap()
        .query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, (row.get(1)?, row.get(2)?))))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let fate = |part: &u64| (*part, (model.delivered.contains(part), model.dropped.contains(part)));
    assert_eq!(ledger, model.rows.iter().map(fate).collect());
    for orphans in ["pictures", "sums", "delivery"] {
        let orphans: i64 = rusqlite::Connection::open(path)
            .unwrap()
            .query_row(&format!("SELECT count(*) FROM {orphans} WHERE seq NOT IN (SELECT seq FROM spool)"), [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(orphans, 0);
    }
    let ledger = Ledger::open(path).unwrap();
    for line in ledger.lines().unwrap() {
        let verified = ledger.verify(&line, None).unwrap();
        assert_eq!((verified.wrong, verified.rows), (None, model.rows.len() as u64));
        // but for anomalies whose verdict says pass, which the model does not mind
        let reconciled = ledger.reconcile(&line).unwrap();
        assert_eq!(reconciled.triggered, model.rows.len() as u64);
        let r = &reconciled;
        assert_eq!(r.spooled, r.delivered + r.waiting + r.dead + r.dropped, "{r:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_spool_behaves_like_its_model(operations in proptest::collection::vec(operation(), 1..60)) {
        let (_folder, path) = fresh();
        let run = Uuid::now_v7();
        let mut database = Database::open(&path, None, &TARGETS.map(String::from)).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let mut batch = Vec::new();
        let mut model = Model::default();
        let (mut next, mut committed) = (0, 0);
        for operation in operations {
            let part = next;
            next += u64::from(matches!(operation, Operation::Good | Operation::Anomaly { .. }));
            match operation {
                Operation::Good => {
                    batch.push(Ready { row: row(part), anomaly: None, entry: None });
                    model.open_rows.push(part);
                }
                Operation::Anomaly { size } => {
                    let (event, spooled) = sample(part);
                    let size = usize::from(size);
                    let pictures = Pictures { frame_jpeg: vec![1; size], ..pictures() };
                    let at = spooled.spooled_at;
                    let anomaly = ReadyAnomaly { id: event.id, event: spooled.event, pictures, spooled_at: at };
                    batch.push(Ready { row: row(part), anomaly: Some(anomaly), entry: None });
                    model.open_rows.push(part);
                    let owed = [Some(Owed::default()); 2];
                    model.open_spool.push(Item { seq: 0, id: event.id, part, size, owed });
                }
                Operation::Commit => {
                    let added = database.commit(run, &batch).unwrap();
                    batch.clear();
                    prop_assert_eq!(added.rows, model.open_rows.len() as u64);
                    prop_assert_eq!(added.spooled, model.open_spool.len() as u64);
                    committed = next;
                    model.rows.extend(model.open_rows.drain(..));
                    for item in std::mem::take(&mut model.open_spool) {
                        let sql = "SELECT seq FROM spool WHERE id = ?1";
                        let seq = database.connection.query_row(sql, [item.id.to_string()], |row| row.get(0)).unwrap();
                        model.spool.push(Item { seq, ..item });
                    }
                }
                Operation::Deliver { which, to } if !model.spool.is_empty() => {
                    let at = which % model.spool.len();
                    let item = &mut model.spool[at];
                    let owed = item.owed[to].take();
                    let outcome = Outcome::Delivered { at: Timestamp::now() };
                    let settled = database.settle(TARGETS[to], item.seq, item.id, &outcome).unwrap();
                    let end = match owed {
                        None => None,
                        Some(_) if item.owed == [None, None] => Some(End::Delivered),
                        Some(_) if item.is_dead() => Some(End::Dead),
                        Some(_) => Some(End::Stays),
                    };
                    prop_assert_eq!(settled.end, end);
                    database.shrink().unwrap();
                    if end == Some(End::Delivered) {
                        model.delivered.insert(model.spool.remove(at).part);
                    }
                }
                Operation::Fail { which, to, aside } if !model.spool.is_empty() => {
                    let at = which % model.spool.len();
                    let item = &mut model.spool[at];
                    let next_try = Timestamp::now() + SignedDuration::from_hours(1);
                    let outcome = Outcome::Failed { error: "500".into(), next_try, aside };
                    // what is dead is not sent
                    if item.owed[to].is_some_and(|owed| !owed.dead) {
                        let settled = database.settle(TARGETS[to], item.seq, item.id, &outcome).unwrap();
                        prop_assert_eq!(settled.end, Some(End::Stays));
                        let attempts = item.owed[to].unwrap().attempts + 1;
                        item.owed[to] = Some(Owed { attempts, aside, dead: false });
                    }
                }
                Operation::Refuse { which, to } if !model.spool.is_empty() => {
                    let at = which % model.spool.len();
                    let item = &mut model.spool[at];
                    if let Some(owed) = item.owed[to] {
                        let outcome = Outcome::Dead { error: "422".into() };
                        let settled = database.settle(TARGETS[to], item.seq, item.id, &outcome).unwrap();
                        item.owed[to] = Some(Owed { attempts: owed.attempts + 1, aside: false, dead: true });
                        prop_assert_eq!(settled.end, Some(if item.is_dead() { End::Dead } else { End::Stays }));
                    }
                }
                Operation::Deliver { .. }
                | Operation::Fail { .. }
                | Operation::Refuse { .. }
                | Operation::DeliverUnknown => {
                    let outcome = Outcome::Delivered { at: Timestamp::now() };
                    prop_assert_eq!(database.settle(TARGETS[0], -1, Uuid::now_v7(), &outcome).unwrap().end, None);
                }
                // until it fits the oldest go, or lose their pictures; what is being sent stays
                Operation::Bound { items, bytes, policy, fly } => {
                    let when_full =
                        [WhenFull::KeepEventDropPicture, WhenFull::DropOldest, WhenFull::DropLowestConfidence][policy];
                    let bounds = Bounds { bytes: Some(bytes), items: Some(items), days: None, when_full: Some(when_full) };
                    let flying: HashSet<i64> =
                        model.spool.get(fly % (model.spool.len() + 1)).map(|item| item.seq).into_iter().collect();
                    let shed = database.shed(&bounds, &database.depth().unwrap(), 0, &flying).unwrap();
                    let after = database.depth().unwrap();
                    let left = after.waiting + after.dead;
                    prop_assert!(left <= items.max(flying.len() as u64), "{} items, {} allowed", left, items);
                    prop_assert!(after.bytes <= bytes || left <= flying.len() as u64, "{} bytes", after.bytes);
                    let dropped: HashSet<Uuid> = shed.dropped.iter().map(|d| d.0).collect();
                    for item in model.spool.iter().filter(|item| flying.contains(&item.seq)) {
                        prop_assert!(!dropped.contains(&item.id) && !shed.stripped.iter().any(|s| s.0 == item.id));
                    }
                    // all samples are as confident, so each policy takes the oldest first
                    let may: Vec<Uuid> =
                        model.spool.iter().filter(|i| !flying.contains(&i.seq)).map(|item| item.id).collect();
                    prop_assert!(may.iter().take(dropped.len()).all(|id| dropped.contains(id)));
                    let (gone, kept): (Vec<Item>, Vec<Item>) = model.spool.drain(..).partition(|item: &Item| dropped.contains(&item.id));
                    model.spool = kept;
                    model.dropped.extend(gone.iter().map(|item| item.part));
                    for item in &mut model.spool {
                        if shed.stripped.iter().any(|s| s.0 == item.id) {
                            let sql = "SELECT length(frame) FROM pictures WHERE seq = ?1";
                            let size: i64 =
                                database.connection.query_row(sql, [item.seq], |row| row.get(0)).unwrap();
                            item.size = size as usize;
                        }
                    }
                }
                // the oldest go, and what waits stays with all after it
                Operation::Retain { rows } => {
                    let retention = Retention { rows: Some(rows), ..Retention::default() };
                    database.retain(run, &retention, Timestamp::now()).unwrap();
                    let left: BTreeSet<u64> = rusqlite::Connection::open(&path)
                        .unwrap()
                        .prepare("SELECT part FROM ledger WHERE part >= 0")
                        .unwrap()
                        .query_map([], |row| Ok(row.get::<_, i64>(0)? as u64))
                        .unwrap()
                        .map(Result::unwrap)
                        .collect();
                    let oldest = left.first().copied().unwrap_or(u64::MAX);
                    prop_assert!(model.spool.iter().all(|item| left.contains(&item.part)));
                    prop_assert_eq!(&left, &model.rows.iter().copied().filter(|part| *part >= oldest).collect());
                    model.rows = left;
                    model.delivered.retain(|part| model.rows.contains(part));
                    model.dropped.retain(|part| model.rows.contains(part));
                }
                // what was not committed is gone, what was is not
                Operation::Reopen => {
                    drop((database, reader));
                    batch.clear();
                    next = committed;
                    (model.open_rows, model.open_spool) = Default::default();
                    database = Database::open(&path, None, &TARGETS.map(String::from)).unwrap();
                    reader = Reader::open(&path).unwrap();
                }
            }
            check(&model, &database, &reader, &path);
        }
    }
}
