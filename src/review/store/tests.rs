//! Tests of the store.

use super::*;
use crate::error::Kind;
use crate::event::{EVENT_SCHEMA, Event, ImageSize, ModelId, Verdict};

pub(in crate::review::store) fn event(id: Uuid, line: &str, verdict: Verdict, captured_ns: i64) -> Event {
    Event {
        schema: EVENT_SCHEMA,
        id,
        site: "plant".into(),
        line: line.into(),
        camera: "file:run.mp4".into(),
        part: 3,
        frame: 40,
        captured_at: Timestamp::from_nanosecond(captured_ns.into()).unwrap(),
        spooled_s: 0.0,
        score: 2.5,
        confidence: 0.999,
        threshold: 1.0,
        verdict,
        reasons: vec![],
        regions: vec![],
        model: ModelId { name: "m".into(), version: "1".into(), sha256: "00".into() },
        device: "CPU".into(),
        precision: "f32".into(),
        lot: None,
        serial: None,
        image: ImageSize { width: 4, height: 4 },
        part_box: None,
    }
}

pub(in crate::review::store) fn anomaly(event: Event) -> NewAnomaly {
    let raw = serde_json::to_string(&event).unwrap();
    NewAnomaly { event, raw, objects: vec![(ObjectName::Frame, vec![1, 2, 3]), (ObjectName::Heatmap, vec![4; 5000])] }
}

pub(in crate::review::store) fn nth(n: u128) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + n)
}

pub(in crate::review::store) fn ids(page: &Page) -> Vec<Uuid> {
    page.items.iter().map(|a| a.event.id).collect()
}

/// Stores one that was captured and received then.
pub(in crate::review) fn received(store: &SqliteStore, n: u128, at: Timestamp) {
    let ns = nanoseconds(at).unwrap();
    store.insert(&anomaly(event(nth(n), "a", Verdict::Reject, ns))).unwrap();
    store
        .writer()
        .execute("UPDATE anomalies SET received_at = ? WHERE id = ?", params![ns, nth(n).to_string()])
        .unwrap();
}

#[test]
fn second_insert_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let first = anomaly(event(nth(1), "a", Verdict::Reject, 5));
    assert_eq!(store.insert(&first).unwrap(), Inserted::New);
    let before = store.get(nth(1)).unwrap().unwrap();
    let mut second = anomaly(event(nth(1), "b", Verdict::Unsure, 6));
    second.objects = vec![(ObjectName::Frame, vec![9]), (ObjectName::Normal, vec![9])];
    assert_eq!(store.insert(&second).unwrap(), Inserted::Existing);
    assert_eq!(store.get(nth(1)).unwrap().unwrap(), before);
    assert_eq!(store.object(nth(1), ObjectName::Frame).unwrap().unwrap().bytes, [1, 2, 3]);
    assert_eq!(store.object(nth(1), ObjectName::Normal).unwrap(), None);
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn inserting_the_same_from_many_threads_makes_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let new = anomaly(event(nth(1), "a", Verdict::Reject, 5));
    let outcomes: Vec<Inserted> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..6).map(|_| s.spawn(|| store.insert(&new).unwrap())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|o| **o == Inserted::New).count(), 1);
    assert_eq!(store.object(nth(1), ObjectName::Heatmap).unwrap().unwrap().bytes, vec![4; 5000]);
}

#[test]
fn event_is_kept_verbatim() {
    let dir = tempfile::tempdir().unwrap();
    let mut new = anomaly(event(nth(1), "a", Verdict::Reject, 5));
    new.raw = new.raw.replacen('{', "{ \"from_the_future\": [1.10, 18446744073709551616],\n", 1);
    SqliteStore::open(dir.path()).unwrap().insert(&new).unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(store.get(nth(1)).unwrap().unwrap().raw, new.raw);
}

#[test]
fn files_lie_where_the_layout_says_with_their_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    store.insert(&anomaly(event(nth(1), "a", Verdict::Reject, 5))).unwrap();
    let id = nth(1).to_string();
    let path = dir.path().join("objects").join(&id[34..]).join(&id).join("frame.jpg");
    assert_eq!(fs::read(path).unwrap(), [1, 2, 3]);
    let object = store.object(nth(1), ObjectName::Frame).unwrap().unwrap();
    assert_eq!(object.sha256, "039058c6f2c0cb492c533b0a4d14ef77cc0f78abccced5287d84a1a2011cfb81");
}

#[test]
fn no_row_when_files_cannot_be_published() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let shelf = dir.path().join("objects").join(&nth(1).to_string()[34..]);
    fs::write(&shelf, "in the way").unwrap();
    let new = anomaly(event(nth(1), "a", Verdict::Reject, 5));
    let error = store.insert(&new).unwrap_err().to_string();
    assert!(error.starts_with("cannot publish the pictures of anomaly"), "{error}");
    assert_eq!(store.get(nth(1)).unwrap(), None);
    assert!(store.list(&Filter::default(), Sort::Time, None, 10).unwrap().items.is_empty());
    fs::remove_file(&shelf).unwrap();
    assert_eq!(store.insert(&new).unwrap(), Inserted::New, "a retry succeeds once the cause is gone");
}

#[test]
fn files_without_a_row_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let id = nth(1).to_string();
    // what a crash between publishing and committing leaves, and one in the middle of an upload
    let orphan = dir.path().join("objects").join(&id[34..]).join(&id);
    fs::create_dir_all(&orphan).unwrap();
    fs::write(orphan.join("frame.jpg"), "old").unwrap();
    fs::write(orphan.join("normal.jpg"), "old").unwrap();
    fs::create_dir_all(dir.path().join("staging/upload-1")).unwrap();
    fs::write(dir.path().join("staging/upload-1/frame.jpg"), "ha").unwrap();

    let store = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    assert_eq!(store.get(nth(1)).unwrap(), None);
    assert_eq!(store.insert(&anomaly(event(nth(1), "a", Verdict::Reject, 5))).unwrap(), Inserted::New);
    assert_eq!(store.object(nth(1), ObjectName::Frame).unwrap().unwrap().bytes, [1, 2, 3]);
    assert!(!orphan.join("normal.jpg").exists());
}

#[test]
fn pages_meet_every_item_once_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    // three share each capture time, so that the id has to decide; the first times are before 1970
    for n in 0..20 {
        store.insert(&anomaly(event(nth(n as u128), "a", Verdict::Reject, (n / 3 - 2) * 1_000_000_000))).unwrap();
    }
    for limit in [1, 2, 3, 7, 20, 50] {
        let mut page = store.list(&Filter::default(), Sort::Time, None, limit).unwrap();
        assert_eq!(page.newer, None);
        let mut down = ids(&page);
        let mut arrivals = 0;
        while let Some(cursor) = page.older {
            // new ones arrive while the reader walks
            let id = Uuid::now_v7();
            store.insert(&anomaly(event(id, "a", Verdict::Reject, 1_000_000_000_000))).unwrap();
            arrivals += 1;
            page =
                store.list(&Filter::default(), Sort::Time, Some(cursor.to_string().parse().unwrap()), limit).unwrap();
            down.extend(ids(&page));
        }
        let mut expected: Vec<Uuid> = (0..20).rev().map(nth).collect();
        assert_eq!(down[down.len() - 20..], expected);

        let mut up = ids(&page);
        up.reverse();
        while let Some(cursor) = page.newer {
            page =
                store.list(&Filter::default(), Sort::Time, Some(cursor.to_string().parse().unwrap()), limit).unwrap();
            up.extend(ids(&page).into_iter().rev());
        }
        expected.reverse();
        assert_eq!(up[..20], expected);
        assert!(up.len() >= 20 + arrivals, "what arrived is met on the way back");
        assert!(up.iter().enumerate().all(|(i, id)| !up[..i].contains(id)), "nothing is met twice");
    }
}

#[test]
fn filters_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let rows = [("a", Verdict::Reject), ("a", Verdict::Unsure), ("b", Verdict::Reject), ("a", Verdict::Reject)];
    for (n, (line, verdict)) in rows.into_iter().enumerate() {
        store.insert(&anomaly(event(nth(n as u128), line, verdict, n as i64))).unwrap();
    }
    let list = |line: Option<&str>, verdict| {
        let filter = Filter { line: line.map(str::to_string), verdict, ..Filter::default() };
        ids(&store.list(&filter, Sort::Time, None, 10).unwrap())
    };
    assert_eq!(list(Some("a"), None), [nth(3), nth(1), nth(0)]);
    assert_eq!(list(Some("a"), Some(Verdict::Reject)), [nth(3), nth(0)]);
    assert_eq!(list(None, Some(Verdict::Unsure)), [nth(1)]);
    assert!(list(Some("' OR 1 --"), None).is_empty());
    let counts = store.counts().unwrap();
    let counts: Vec<_> = counts.iter().map(|c| (c.line.as_str(), c.verdict.as_str(), c.count)).collect();
    assert_eq!(counts, [("a", "reject", 2), ("a", "unsure", 1), ("b", "reject", 1)]);
}

#[test]
fn revision_grows_with_arrivals_that_were_captured_earlier() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let revision = || store.list(&Filter::default(), Sort::Time, None, 1).unwrap().revision;
    assert_eq!(revision(), 0);
    store.insert(&anomaly(event(nth(2), "a", Verdict::Reject, 50))).unwrap();
    let first = revision();
    store.insert(&anomaly(event(nth(1), "a", Verdict::Reject, 5))).unwrap();
    assert!(revision() > first);
}

#[test]
fn bad_cursors_are_refused() {
    for text in
        ["", "o", "x5_", "o5", "o5_zz", "oo_01930000-0000-7000-8000-000000000000", "é5_x", "o99999999999999999999_x"]
    {
        let error = text.parse::<Cursor>().unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text:?}");
    }
}

#[test]
fn a_second_store_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = SqliteStore::open(dir.path()).unwrap();
    let error = SqliteStore::open(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("another review server already uses \"{}\"", dir.path().display()));
    drop(first);
    SqliteStore::open(dir.path()).unwrap();
}

#[test]
fn unusable_directories_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = SqliteStore::open(&file).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().starts_with(&format!("cannot keep anomalies in \"{}\": ", file.display())), "{error}");
    assert_eq!(error.hint_text(), Some("give --data a directory that this user can write to"));

    let garbage = dir.path().join("garbage");
    fs::create_dir(&garbage).unwrap();
    fs::write(garbage.join(DATABASE), [7; 4096]).unwrap();
    let error = SqliteStore::open(&garbage).unwrap_err().to_string();
    assert!(error.contains("cannot open the database") && error.contains("not a database"), "{error}");
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(dir.path()).unwrap());
    let db = Connection::open(dir.path().join(DATABASE)).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = SqliteStore::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(
        error.to_string(),
        format!("the database in \"{}\" has schema 99, this version of linesight knows 5", dir.path().display())
    );
}
