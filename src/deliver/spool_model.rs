//! Spool and ledger against a model that fits on a page: random operations, the same answers, a chain that verifies.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use uuid::Uuid;

use super::database::{Database, Outcome, Reader, Ready, ReadyAnomaly, fresh};
use super::ledger::Ledger;
use super::retain::Retention;
use super::tests::{pictures, row, sample};
use crate::deliver::Pictures;

#[derive(Debug, Clone)]
enum Operation {
    Good,
    Anomaly { size: u16 },
    Commit,
    Deliver { which: usize },
    Fail { which: usize, aside: bool },
    DeliverUnknown,
    Retain { rows: u64 },
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => Just(Operation::Good),
        4 => (1u16..20_000).prop_map(|size| Operation::Anomaly { size }),
        4 => Just(Operation::Commit),
        4 => any::<usize>().prop_map(|which| Operation::Deliver { which }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, aside)| Operation::Fail { which, aside }),
        1 => Just(Operation::DeliverUnknown),
        1 => (0u64..20).prop_map(|rows| Operation::Retain { rows }),
        2 => Just(Operation::Reopen),
    ]
}

/// What is on the disk, and what is not yet.
#[derive(Default)]
struct Model {
    rows: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    /// Oldest first: id, part, bytes of the frame, attempts, set aside.
    spool: Vec<(Uuid, u64, usize, u32, bool)>,
    open_rows: Vec<u64>,
    open_spool: Vec<(Uuid, u64, usize, u32, bool)>,
}

fn check(model: &Model, database: &Database, reader: &Reader, path: &std::path::Path) {
    let aside = model.spool.iter().filter(|item| item.4).count() as u64;
    assert_eq!(database.depth().unwrap(), (model.spool.len() as u64, aside));
    // every item in order, by way of what the uploader asks
    let shape = |s: super::database::Spooled| (s.id, s.pictures.frame_jpeg.len(), s.attempts, s.aside);
    let expected: Vec<_> = model.spool.iter().filter(|i| !i.4).map(|i| (i.0, i.2, i.3, i.4)).collect();
    let found: Vec<_> = (0..).map_while(|skip| reader.oldest(skip).unwrap()).map(shape).collect();
    assert_eq!(found, expected);
    let far = Timestamp::now() + SignedDuration::from_hours(2);
    let first_aside = model.spool.iter().find(|i| i.4).map(|i| (i.0, i.2, i.3, i.4));
    assert_eq!(reader.oldest_aside(far, std::time::Duration::ZERO).unwrap().map(shape), first_aside);

    let ledger: BTreeMap<u64, bool> = rusqlite::Connection::open(path)
        .unwrap()
        .prepare("SELECT part, delivered_at IS NOT NULL FROM ledger WHERE part >= 0")
        .unwrap()
        .query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let expected = model.rows.iter().map(|part| (*part, model.delivered.contains(part))).collect();
    assert_eq!(ledger, expected);
    let orphans: i64 = rusqlite::Connection::open(path)
        .unwrap()
        .query_row("SELECT count(*) FROM pictures WHERE seq NOT IN (SELECT seq FROM spool)", [], |row| row.get(0))
        .unwrap();
    assert_eq!(orphans, 0);
    let ledger = Ledger::open(path).unwrap();
    for line in ledger.lines().unwrap() {
        let verified = ledger.verify(&line, None).unwrap();
        assert_eq!((verified.wrong, verified.rows), (None, model.rows.len() as u64));
        // but for anomalies whose verdict says pass, which the model does not mind
        let reconciled = ledger.reconcile(&line).unwrap();
        assert_eq!(reconciled.triggered, model.rows.len() as u64);
        assert_eq!(reconciled.spooled, reconciled.delivered + reconciled.waiting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_spool_behaves_like_its_model(operations in proptest::collection::vec(operation(), 1..60)) {
        let (_folder, path) = fresh();
        let run = Uuid::now_v7();
        let mut database = Database::open(&path, None).unwrap();
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
                    model.open_spool.push((event.id, part, size, 0, false));
                }
                Operation::Commit => {
                    let added = database.commit(run, &batch).unwrap();
                    batch.clear();
                    prop_assert_eq!(added.rows, model.open_rows.len() as u64);
                    prop_assert_eq!(added.spooled, model.open_spool.len() as u64);
                    committed = next;
                    model.rows.extend(model.open_rows.drain(..));
                    let mut open = std::mem::take(&mut model.open_spool);
                    model.spool.append(&mut open);
                }
                Operation::Deliver { which } if !model.spool.is_empty() => {
                    let (id, part, ..) = model.spool.remove(which % model.spool.len());
                    let outcome = Outcome::Delivered { at: Timestamp::now() };
                    prop_assert!(database.settle(id, &outcome).unwrap());
                    // a repeat changes nothing
                    prop_assert!(!database.settle(id, &outcome).unwrap());
                    database.shrink().unwrap();
                    model.delivered.insert(part);
                }
                Operation::Fail { which, aside } if !model.spool.is_empty() => {
                    let which = which % model.spool.len();
                    let item = &mut model.spool[which];
                    let next_try = Timestamp::now() + SignedDuration::from_hours(1);
                    let outcome = Outcome::Failed { error: "500".into(), next_try, aside };
                    prop_assert!(database.settle(item.0, &outcome).unwrap());
                    (item.3, item.4) = (item.3 + 1, aside);
                }
                Operation::Deliver { .. } | Operation::Fail { .. } | Operation::DeliverUnknown => {
                    let outcome = Outcome::Delivered { at: Timestamp::now() };
                    prop_assert!(!database.settle(Uuid::now_v7(), &outcome).unwrap());
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
                    prop_assert!(model.spool.iter().all(|item| left.contains(&item.1)));
                    prop_assert_eq!(&left, &model.rows.iter().copied().filter(|part| *part >= oldest).collect());
                    model.rows = left;
                    model.delivered.retain(|part| model.rows.contains(part));
                }
                // what was not committed is gone, what was is not
                Operation::Reopen => {
                    drop((database, reader));
                    batch.clear();
                    next = committed;
                    (model.open_rows, model.open_spool) = Default::default();
                    database = Database::open(&path, None).unwrap();
                    reader = Reader::open(&path).unwrap();
                }
            }
            check(&model, &database, &reader, &path);
        }
    }
}
