//! Tests of the handle and the writer; those with a network are in tests/delivery.rs.

use std::sync::mpsc::sync_channel;

use rusqlite::Connection;

use super::database::fresh;
use super::spool::Spooled;
use super::*;
use crate::event::{EVENT_SCHEMA, ImageSize, ModelId, Rect, Region, Verdict};

pub(super) fn pictures() -> Pictures {
    Pictures { frame_jpeg: vec![0xff; 3000], heatmap_png: vec![0x89; 500], normal_jpeg: None }
}

/// An event of part `n`, as recorded and as it lies in the spool.
pub(super) fn sample(n: u64) -> (Event, Spooled) {
    let event = Event {
        schema: EVENT_SCHEMA,
        id: Uuid::now_v7(),
        site: "site".into(),
        line: "line".into(),
        camera: "file:a.mp4".into(),
        part: n,
        frame: 10 * n,
        captured_at: Timestamp::now(),
        spooled_s: 0.0,
        score: 3.25,
        confidence: 0.999,
        threshold: 1.5,
        verdict: Verdict::Reject,
        reasons: vec!["score above threshold".into()],
        regions: vec![Region { x: 1, y: 2, w: 3, h: 4, score: 3.25, area_px: 9.0, share: 1.0, area_mm2: Some(0.5) }],
        model: ModelId { name: "m".into(), version: "1".into(), sha256: "00".into() },
        device: "CPU".into(),
        precision: "int8".into(),
        lot: None,
        serial: Some("é\"\n".into()),
        image: ImageSize { width: 64, height: 48 },
        part_box: Some(Rect { x: 0, y: 0, w: 64, h: 48 }),
    };
    let spooled = Spooled {
        seq: 0,
        id: event.id,
        event: serde_json::to_string(&event).unwrap(),
        spooled_at: Timestamp::now(),
        aside: false,
        attempts: 0,
        pictures: pictures(),
        damage: None,
    };
    (event, spooled)
}

pub(super) fn row(n: u64) -> LedgerRow {
    LedgerRow {
        line: "line".into(),
        part: n,
        frame: 10 * n,
        captured_at: Timestamp::now(),
        verdict: Verdict::Pass,
        score: 0.5,
        confidence: 0.2,
        latency_ms: 12.0,
        model: "m@1".into(),
        event: None,
        frames: 1,
        reasons: Vec::new(),
        late_ms: None,
        lot: None,
        serial: None,
    }
}

fn good(n: u64) -> Record {
    Record { row: row(n), anomaly: None }
}

fn bad(n: u64, encode: impl FnOnce() -> Result<Pictures> + Send + 'static) -> Record {
    let row = LedgerRow { verdict: Verdict::Reject, ..row(n) };
    Record { row, anomaly: Some(Anomaly { event: sample(n).0, pictures: Box::new(encode) }) }
}

fn open(database: &Path, limits: Limits) -> Deliver {
    let config = Config { database: database.into(), run: Uuid::now_v7(), targets: Vec::new(), audit: None };
    Deliver::open_with(config, limits).unwrap()
}

fn count(path: &Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The oldest anomaly that waits, after so many older ones.
fn first(reader: &database::Reader, skip: usize) -> Spooled {
    let seq = reader.first(REVIEW, Order::OldestFirst, skip + 1).unwrap()[skip];
    reader.item(REVIEW, seq).unwrap().unwrap()
}

/// Polls until the condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} took too long");
        std::thread::yield_now();
    }
}

#[test]
fn debug_of_an_endpoint_hides_secrets() {
    let url = "http://me:geheim@h/x?key=geheim".parse().unwrap();
    let text = format!("{:?}", Endpoint { token: Some(Token::Text("s3cret".into())), ..Endpoint::new(url) });
    assert_eq!(text, "Endpoint { url: \"http://h/x\", token: Some(\"***\"), .. }");
}

#[test]
fn two_owners_are_refused() {
    let (_folder, path) = fresh();
    let first = open(&path, Limits::default());
    let config = Config { database: path.clone(), run: Uuid::now_v7(), targets: Vec::new(), audit: None };
    let e = Deliver::open(config.clone()).err().unwrap();
    assert_eq!(e.to_string(), format!("\"{}\" is in use", path.display()));
    assert_eq!(e.kind(), crate::error::Kind::Failed);
    assert!(e.hint_text().unwrap().contains("another linesight"));
    drop(first);
    Deliver::open(config).unwrap();
}

#[test]
fn a_folder_that_is_missing_is_made() {
    let (folder, _) = fresh();
    let path = folder.path().join("a/b/spool.db");
    open(&path, Limits::default()).drain(Duration::ZERO).unwrap();
    assert!(path.exists());
}

#[test]
fn good_rows_are_committed_without_being_asked() {
    let (_folder, path) = fresh();
    let deliver = open(&path, Limits::default());
    let start = Instant::now();
    deliver.record(good(0)).unwrap();
    until("the commit", || deliver.status().recorded == 1);
    // the batch waits for its time, and not much longer
    assert!(start.elapsed() >= Limits::default().batch);
    assert_eq!(count(&path, "SELECT count(*) FROM ledger"), 1);
}

#[test]
fn an_anomaly_commits_with_every_row_before_it() {
    let (_folder, path) = fresh();
    // only the anomaly makes it commit
    let limits = Limits { batch: Duration::from_secs(3600), ..Limits::default() };
    let deliver = open(&path, limits);
    for n in 0..100 {
        deliver.record(good(n)).unwrap();
    }
    assert_eq!(count(&path, "SELECT count(*) FROM ledger"), 0);
    deliver.record(bad(100, || Ok(pictures()))).unwrap();
    until("the commit", || count(&path, "SELECT count(*) FROM spool") == 1);
    assert_eq!(count(&path, "SELECT count(*) FROM ledger"), 101);
    assert_eq!(count(&path, "SELECT count(*) FROM ledger JOIN spool ON ledger.event = spool.id"), 1);
    deliver.record(good(101)).unwrap();
    let drained = deliver.drain(Duration::from_secs(3600)).unwrap();
    assert_eq!((drained.delivered, drained.waiting, drained.dead, drained.last_error), (0, 1, 0, None));
    assert_eq!(count(&path, "SELECT count(*) FROM ledger"), 102);
}

#[test]
fn dropping_commits_what_was_recorded() {
    let (_folder, path) = fresh();
    let deliver = open(&path, Limits { batch: Duration::from_secs(3600), ..Limits::default() });
    (0..2000).for_each(|n| deliver.record(good(n)).unwrap());
    drop(deliver);
    assert_eq!(count(&path, "SELECT count(*) FROM ledger"), 2000);
}

#[test]
fn an_anomaly_without_pictures_leaves() {
    let (_folder, path) = fresh();
    let deliver = open(&path, Limits::default());
    let failing = || Err(Error::failed("no encoder"));
    deliver.record(bad(0, failing)).unwrap();
    deliver.record(bad(1, || panic!("a test of a panic"))).unwrap();
    deliver.record(bad(2, || Ok(Pictures { frame_jpeg: vec![], ..pictures() }))).unwrap();
    deliver.flush().unwrap();
    assert_eq!(deliver.status().picture_failures, 3);
    let reader = database::Reader::open(&path).unwrap();
    for (skip, reason) in
        ["no encoder", "the encoder panicked", "the frame picture has 0 bytes"].into_iter().enumerate()
    {
        let spooled = first(&reader, skip);
        let event: Event = serde_json::from_str(&spooled.event).unwrap();
        assert_eq!(event.reasons.last().unwrap(), &format!("picture could not be encoded: {reason}"));
        let picture = image::load_from_memory(&spooled.pictures.frame_jpeg).unwrap();
        assert_eq!((picture.width(), picture.height()), (event.image.width, event.image.height));
    }
}

#[test]
fn not_a_number_is_stored() {
    let (_folder, path) = fresh();
    let deliver = open(&path, Limits::default());
    let mut record = bad(0, || Ok(pictures()));
    record.row.score = f32::NAN;
    let event = &mut record.anomaly.as_mut().unwrap().event;
    (event.score, event.confidence, event.regions[0].score) = (f32::NAN, f32::INFINITY, f32::NAN);
    deliver.record(record).unwrap();
    deliver.flush().unwrap();
    assert_eq!(count(&path, "SELECT count(*) FROM ledger WHERE score IS NULL"), 1);
    let spooled = first(&database::Reader::open(&path).unwrap(), 0);
    let event: Event = serde_json::from_str(&spooled.event).unwrap();
    assert_eq!((event.score, event.regions[0].score), (f32::MAX, f32::MAX));
    assert!(event.reasons.contains(&"a score was NaN".to_owned()), "{:?}", event.reasons);
}

#[test]
fn the_first_row_of_a_part_stays() {
    let (_folder, path) = fresh();
    let deliver = open(&path, Limits::default());
    deliver.record(good(7)).unwrap();
    deliver.record(bad(7, || Ok(pictures()))).unwrap();
    deliver.flush().unwrap();
    let status = deliver.status();
    // the anomaly is kept all the same
    assert_eq!((status.recorded, status.ledger_conflicts, status.waiting), (1, 1, 1));
    drop(deliver);
    // another run of the same recording
    let deliver = open(&path, Limits::default());
    deliver.record(good(7)).unwrap();
    deliver.flush().unwrap();
    assert_eq!(count(&path, "SELECT count(*) FROM ledger"), 2);
}

#[test]
fn full_channel_waits_and_counts() {
    let (_folder, path) = fresh();
    let deliver = open(&path, Limits::default());
    let (go, gate) = sync_channel::<()>(0);
    deliver.record(bad(0, move || gate.recv().map(|()| pictures()).map_err(|e| Error::failed(e.to_string())))).unwrap();
    std::thread::scope(|scope| {
        let deliver = &deliver;
        // the first one occupies the writer and its place; the last one must wait for it
        let last = ANOMALIES_WAITING as u64;
        scope.spawn(move || (1..=last).for_each(|n| deliver.record(bad(n, || Ok(pictures()))).unwrap()));
        until("the wait", || deliver.status().channel_waits == 1);
        go.send(()).unwrap();
    });
    deliver.flush().unwrap();
    assert_eq!(deliver.status().spooled, ANOMALIES_WAITING as u64 + 1);
}

#[test]
fn other_files_are_left_alone() {
    let (folder, path) = fresh();
    let refused = |path: &Path| {
        let config = Config { database: path.into(), run: Uuid::now_v7(), targets: Vec::new(), audit: None };
        let before = std::fs::read(path).unwrap();
        let e = Deliver::open(config).err().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), before);
        assert!(e.hint_text().unwrap().contains("it was not changed"));
        e.to_string()
    };
    std::fs::write(
        &path,
        "a letter to my aunt, which is long enough to look like a header of a hundred bytes".repeat(9),
    )
    .unwrap();
    assert_eq!(refused(&path), format!("\"{}\" is not a database", path.display()));
    let theirs = folder.path().join("theirs.db");
    Connection::open(&theirs).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert_eq!(refused(&theirs), format!("\"{}\" is a database of another program", theirs.display()));
}

#[test]
fn a_newer_schema_is_refused() {
    let (_folder, path) = fresh();
    open(&path, Limits::default()).drain(Duration::ZERO).unwrap();
    let newer = "ALTER TABLE ledger ADD COLUMN more TEXT; PRAGMA user_version = 7";
    Connection::open(&path).unwrap().execute_batch(newer).unwrap();
    let config = Config { database: path.clone(), run: Uuid::now_v7(), targets: Vec::new(), audit: None };
    let e = Deliver::open(config).err().unwrap().to_string();
    assert_eq!(e, format!("\"{}\" was written by a newer linesight (schema 7, this one knows 3)", path.display()));
}
