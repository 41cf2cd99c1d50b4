//! Tests of what is removed, of backups and of older databases.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;

use super::decided_tests::{assert_tallies, open, open_fast, said, with_region};
use super::sqlite::tests::{anomaly, event, ids, nth};
use super::stats::Scope;
use super::*;

fn age(store: &SqliteStore, n: u128, days: i64) {
    let ns = nanoseconds(Timestamp::now().checked_sub(SignedDuration::from_hours(24 * days)).unwrap()).unwrap();
    let sql = "UPDATE anomalies SET captured_at = ?1, received_at = ?1 WHERE id = ?2";
    assert_eq!(store.writer().execute(sql, rusqlite::params![ns, nth(n).to_string()]).unwrap(), 1);
}

fn there(store: &SqliteStore) -> Vec<u128> {
    let page = store.list(&Filter::default(), Sort::Time, None, 200).unwrap();
    let mut numbers: Vec<u128> = ids(&page).iter().map(|id| id.as_u128() - nth(0).as_u128()).collect();
    numbers.sort_unstable();
    numbers
}

fn folder(dir: &Path, n: u128) -> std::path::PathBuf {
    let id = nth(n).to_string();
    dir.join("objects").join(&id[34..]).join(&id)
}

#[test]
fn retention_removes_what_the_rule_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_fast(dir.path());
    let decisions = [Some(Decision::Defect), Some(Decision::FalseAlarm), Some(Decision::Unclear), None];
    for n in 0..12_u128 {
        store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, n as i64))).unwrap();
        if let Some(what) = decisions[n as usize % 4] {
            store.review(nth(n), &said("ann", what, None)).unwrap();
        }
        age(&store, n, [1, 20, 40][n as usize / 4]);
    }
    let now = Timestamp::now();
    assert_eq!(store.retain(&Retention::default(), now).unwrap(), Removed::default());
    let revision = store.revision().unwrap();
    let rule = Retention { defect_days: Some(30), false_alarm_days: Some(10), ..Retention::default() };
    let removed = store.retain(&rule, now).unwrap();
    assert_eq!(removed.anomalies, BTreeMap::from([("defect", 1), ("false-alarm", 2)]));
    assert_eq!(there(&store), [0, 1, 2, 3, 4, 6, 7, 10, 11]);
    assert!(store.revision().unwrap() > revision);
    assert!(!removed.more);
    for gone in [5, 8, 9] {
        assert!(!folder(dir.path(), gone).exists());
        assert_eq!(store.object(nth(gone), ObjectName::Frame).unwrap(), None);
        assert!(store.reviews(nth(gone)).unwrap().is_empty());
    }
    assert!(folder(dir.path(), 0).join("frame.jpg").exists());
    assert_tallies(&store);
    // more than one step
    for n in 100..100 + retain::STEP as u128 + 5 {
        store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, n as i64))).unwrap();
    }
    let rule = Retention { unreviewed_days: Some(1), ..Retention::default() };
    let later = now.checked_add(SignedDuration::from_hours(48)).unwrap();
    let first = store.retain(&rule, later).unwrap();
    assert_eq!((first.count(), first.more), (retain::STEP as u64, true));
    let second = store.retain(&rule, later).unwrap();
    assert_eq!((second.count(), second.more), (8, false));
    assert_eq!(there(&store), [0, 1, 2, 4, 6, 10]);
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
}

#[test]
fn size_takes_the_least_worth_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_fast(dir.path());
    // a megabyte holds two of them
    for n in 0..8_u128 {
        let mut new = anomaly(event(nth(n), "a", Verdict::Reject, n as i64));
        new.objects = vec![(ObjectName::Frame, vec![0; 380_000])];
        store.insert(&new).unwrap();
    }
    for (n, what) in
        [(1, Decision::Defect), (3, Decision::FalseAlarm), (5, Decision::Unclear), (7, Decision::FalseAlarm)]
    {
        store.review(nth(n), &said("ann", what, None)).unwrap();
    }
    let keep =
        |mb| store.retain(&Retention { max_mb: Some(mb), ..Retention::default() }, Timestamp::now()).unwrap().count();
    assert_eq!((keep(4), there(&store).len()), (0, 8), "all together are 3.05 MB");
    assert_eq!((keep(3), there(&store)), (1, vec![0, 1, 2, 4, 5, 6, 7]));
    assert_eq!((keep(2), there(&store)), (2, vec![0, 1, 2, 4, 6]));
    assert_eq!((keep(1), there(&store)), (3, vec![4, 6]), "then the defect, then the oldest that nobody has seen");
    assert_tallies(&store);
}

#[test]
fn what_is_removed_can_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let new = anomaly(event(nth(1), "a", Verdict::Reject, 5));
    store.insert(&new).unwrap();
    age(&store, 1, 9);
    let rule = Retention { unreviewed_days: Some(3), ..Retention::default() };
    assert_eq!(store.retain(&rule, Timestamp::now()).unwrap().count(), 1);
    assert_eq!(store.insert(&new).unwrap(), Inserted::New);
    assert_eq!(store.retain(&rule, Timestamp::from_nanosecond(5).unwrap()).unwrap().count(), 0);
    assert_eq!(store.object(nth(1), ObjectName::Frame).unwrap().unwrap().bytes, [1, 2, 3]);
}

#[test]
fn a_crash_between_rows_and_files_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 1..3 {
        store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, 5))).unwrap();
    }
    // what the first transaction of a removal leaves
    {
        let db = store.writer();
        db.execute("INSERT INTO trash (id) VALUES (?)", [nth(1).to_string()]).unwrap();
        for table in ["objects", "events", "anomalies"] {
            let n = "(SELECT n FROM anomalies WHERE id = ?)";
            db.execute(&format!("DELETE FROM {table} WHERE n = {n}"), [nth(1).to_string()]).unwrap();
        }
    }
    drop(store);
    assert!(folder(dir.path(), 1).exists());
    let store = open(dir.path());
    assert!(!folder(dir.path(), 1).exists());
    assert_eq!(there(&store), [2]);
    drop(store);
    assert!(folder(dir.path(), 2).exists(), "it is done once");
}

fn assert_whole(dir: &Path) -> Vec<Uuid> {
    let store = open(dir);
    let mut found = Vec::new();
    let mut start = None;
    loop {
        let page = store.list(&Filter::default(), Sort::Time, start, 100).unwrap();
        for a in &page.items {
            for name in [ObjectName::Frame, ObjectName::Heatmap] {
                let object = store.object(a.event.id, name).unwrap().unwrap();
                assert_eq!(crate::hex::sha256(&object.bytes), object.sha256);
            }
            found.push(a.event.id);
        }
        match page.older {
            Some(older) => start = Some(older),
            None => break,
        }
    }
    assert_tallies(&store);
    found
}

#[test]
fn a_backup_while_serving_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("data"), dir.path().join("copy"));
    let store = open(&data);
    for n in 0..30 {
        store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, n as i64))).unwrap();
    }
    store.review(nth(3), &said("ann", Decision::Defect, Some("dent"))).unwrap();
    for n in 0..5 {
        age(&store, n, 10);
    }
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|s| {
        for thread in 1..=2_u128 {
            let (store, stop) = (&store, &stop);
            s.spawn(move || {
                for n in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    store
                        .insert(&anomaly(event(nth(thread * 100_000 + n), "b", Verdict::Reject, 1000 + n as i64)))
                        .unwrap();
                }
            });
        }
        s.spawn(|| {
            let rule = Retention { unreviewed_days: Some(3), ..Retention::default() };
            store.retain(&rule, Timestamp::now()).unwrap()
        });
        let done = backup::backup(&data, &to);
        stop.store(true, Ordering::Relaxed);
        done.unwrap()
    });
    let found = assert_whole(&to);
    assert_eq!(found.len() as u64, done.anomalies);
    for n in (0..30).filter(|n| *n == 3 || *n >= 5) {
        assert!(found.contains(&nth(n)), "{n} was there before the backup began");
    }
    let copy = open(&to);
    assert_eq!(copy.get(nth(3)).unwrap().unwrap().review.unwrap().defect_type.as_deref(), Some("dent"));
    assert_eq!(copy.reviews(nth(3)).unwrap().len(), 1);
    assert_eq!(copy.insert(&anomaly(event(nth(9_999_999), "a", Verdict::Reject, 1))).unwrap(), Inserted::New);
    assert_eq!(store.get(nth(9_999_999)).unwrap(), None, "two stores");
}

#[test]
fn a_backup_that_was_interrupted_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("data"), dir.path().join("copy"));
    let store = open(&data);
    for n in 0..4 {
        store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, n as i64))).unwrap();
    }
    // in the middle of it the disk of the source fails
    std::fs::rename(folder(&data, 2), dir.path().join("away")).unwrap();
    std::fs::create_dir(folder(&data, 2)).unwrap();
    std::fs::create_dir(folder(&data, 2).join("frame.jpg")).unwrap();
    let error = backup::backup(&data, &to).unwrap_err().to_string();
    assert!(error.starts_with("cannot copy \""), "{error}");
    assert!(!to.join(sqlite::DATABASE).exists(), "it does not look finished");
    std::fs::remove_dir_all(folder(&data, 2)).unwrap();
    std::fs::rename(dir.path().join("away"), folder(&data, 2)).unwrap();
    store.insert(&anomaly(event(nth(9), "a", Verdict::Reject, 9))).unwrap();
    let done = backup::backup(&data, &to).unwrap();
    assert_eq!((done.anomalies, done.there, done.linked + done.copied), (5, 4, 6));
    assert_eq!(assert_whole(&to).len(), 5);
}

#[test]
fn a_backup_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("data"), dir.path().join("copy"));
    let error = backup::backup(&data, &to).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the store in"), "{error}");
    assert!(!to.exists(), "nothing was made");
    drop(open(&data));
    backup::backup(&data, &to).unwrap();
    let error = backup::backup(&data, &to).unwrap_err();
    assert_eq!(error.to_string(), format!("\"{}\" already has a store", to.display()));
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("letter.txt"), "x").unwrap();
    let error = backup::backup(&data, &other).unwrap_err();
    assert_eq!(error.to_string(), format!("\"{}\" is not empty", other.display()));
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    let error = backup::backup(&data, &data).unwrap_err();
    assert_eq!(error.to_string(), format!("\"{}\" already has a store", data.display()));
}

#[test]
fn an_old_database_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join(sqlite::DATABASE)).unwrap();
    for step in &schema::MIGRATIONS[..2] {
        db.execute_batch(step).unwrap();
    }
    db.pragma_update(None, "user_version", 2).unwrap();
    db.pragma_update(None, "foreign_keys", true).unwrap();
    let new = with_region(nth(1), "a", 5, 10, 80);
    let without = anomaly(event(nth(2), "a", Verdict::Unsure, 6));
    for new in [&new, &without] {
        let id = new.event.id.to_string();
        db.execute(
            "INSERT INTO anomalies VALUES (?, ?, 7, 'a', ?, ?)",
            rusqlite::params![id, nanoseconds(new.event.captured_at).unwrap(), new.event.verdict.as_str(), new.raw],
        )
        .unwrap();
        db.execute("INSERT INTO objects VALUES (?, 'frame.jpg', 3, 'ab')", [&id]).unwrap();
    }
    db.execute("INSERT INTO minutes VALUES ('a', 1, 2, 3, 4, 5)", []).unwrap();
    drop(db);
    let store = open(dir.path());
    assert_eq!(store.get(nth(1)).unwrap().unwrap().raw, new.raw);
    assert_eq!(there(&store), [1, 2]);
    assert_tallies(&store);
    let bytes: i64 = store.writer().query_row("SELECT SUM(bytes) FROM tallies", [], |r| r.get(0)).unwrap();
    assert_eq!(bytes as usize, new.raw.len() + without.raw.len() + 6);
    // the same as if it had come today
    store.insert(&with_region(nth(3), "a", 8, 10, 80)).unwrap();
    let near: Vec<Uuid> = store.near(nth(3), 5).unwrap().iter().map(|a| a.event.id).collect();
    assert_eq!(near, [nth(1)]);
    let sql = "SELECT origin, part, score, confidence, lot, serial, place_x, place_y, spot FROM anomalies WHERE id = ?";
    let row = |n: u128| -> Vec<rusqlite::types::Value> {
        let db = store.writer();
        db.query_row(sql, [nth(n).to_string()], |r| (0..9).map(|i| r.get(i)).collect()).unwrap()
    };
    assert_eq!(row(1), row(3));
    let insight = store.insight(&Scope { line: Some("a".into()), ..Scope::default() }).unwrap();
    assert_eq!((insight.rates[0].pass, insight.rates[0].missed), (2, 5));
}
