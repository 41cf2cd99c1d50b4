//! Exports of reviewed anomalies over real HTTP, read back by readers that are not ours; what people decided goes back into
//! `evaluate` and `teach`. The formats' own readers are asked in tests/ui/exports.py.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy.toml allows them inside test functions, not in their helpers"
)]

#[path = "support/alone.rs"]
mod alone;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use alone::alone;
use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use linesight::capture::{Capture, Source};
use linesight::event::Event;
use linesight::prepare::shrink::{Crop, Shrinker, Size};
use linesight::review::store::{Decision, NewAnomaly, NewReview, ObjectName, SqliteStore, Store};
use linesight::review::{Config, Server};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use support::{asset, folder, linesight, results, washer};
use uuid::Uuid;
use zip::ZipArchive;

const DEADLINE: Duration = Duration::from_secs(120);
/// Text that would do harm where it is not inert.
const HOSTILE: [&str; 6] =
    ["../../etc/passwd", "=cmd()|' /C calc'!A0", "<script>alert(1)</script>", "a\r\nb\"c\",d", "good", "]]>&amp;\u{1}"];

fn start(dir: &Path) -> Server {
    Server::start(Config::new(dir, "127.0.0.1:0".parse().unwrap())).unwrap()
}

fn client() -> Client {
    Client::builder().timeout(DEADLINE).build().unwrap()
}

fn bytes(image: impl Into<image::DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn id(n: u32) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 + u128::from(n))
}

/// Anomaly n: a frame of 160x120 with the part at (40, 30, 64, 48), two regions, and a heatmap of half the size that is
/// above the threshold in a quarter of the first region.
fn anomaly(n: u32, line: &str, text: &str) -> NewAnomaly {
    let value = json!({
        "schema": 1, "id": id(n), "site": "plant", "line": line, "camera": text, "part": n, "frame": n * 3,
        "captured_at": format!("2030-01-02T03:{:02}:{:02}Z", n / 60 % 60, n % 60), "score": 3.5, "confidence": 0.9995,
        "threshold": 1.25, "verdict": "reject", "reasons": [text],
        "regions": [
            {"x": 50, "y": 40, "w": 20, "h": 16, "score": 3.5, "area_px": 80.0, "share": 0.8},
            {"x": 90, "y": 60, "w": 8, "h": 6, "score": 2.0, "area_px": 20.0, "share": 0.2}
        ],
        "model": {"name": text, "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32", "lot": text,
        "serial": text, "image": {"width": 160, "height": 120}, "part_box": {"x": 40, "y": 30, "w": 64, "h": 48}
    });
    let frame = RgbImage::from_fn(160, 120, |x, y| {
        let inside = (40..104).contains(&x) && (30..78).contains(&y);
        if inside { Rgb([200, (n % 200) as u8, 40]) } else { Rgb([90, 90, 90]) }
    });
    let heat = RgbaImage::from_fn(80, 60, |x, y| {
        let above = (25..30).contains(&x) && (20..24).contains(&y);
        Rgba([255, 0, 0, if above { 190 } else { 60 }])
    });
    let event: Event = serde_json::from_value(value.clone()).unwrap();
    let objects = vec![
        (ObjectName::Frame, bytes(frame, ImageFormat::Jpeg)),
        (ObjectName::Heatmap, bytes(heat, ImageFormat::Png)),
    ];
    NewAnomaly { event, raw: value.to_string(), objects }
}

fn review(decision: Decision, defect_type: Option<&str>, comment: Option<&str>) -> NewReview {
    NewReview {
        reviewer: "ada".into(),
        decision,
        defect_type: defect_type.map(str::to_owned),
        comment: comment.map(str::to_owned),
    }
}

/// 3 defects (two scratches, one without a type), 2 false alarms, 1 unclear, 1 not reviewed.
fn known(dir: &Path) {
    let store = SqliteStore::open(dir).unwrap();
    let reviews = [
        Some(review(Decision::Defect, Some("scratch"), Some("deep"))),
        Some(review(Decision::Defect, Some("scratch"), None)),
        Some(review(Decision::Defect, None, None)),
        Some(review(Decision::FalseAlarm, None, None)),
        Some(review(Decision::FalseAlarm, None, Some("dust"))),
        Some(review(Decision::Unclear, None, None)),
        None,
    ];
    for (n, review) in (0..).zip(reviews) {
        store.insert(&anomaly(n, "east", "usual")).unwrap();
        if let Some(review) = review {
            store.review(id(n), &review).unwrap().unwrap();
        }
    }
}

fn ask(server: &Server, path: &str) -> Response {
    client().get(format!("{}/api/v1/exports/{path}", server.url())).send().unwrap()
}

/// The export, and how many items it was said to have.
fn export(server: &Server, path: &str) -> (Vec<u8>, u64) {
    let answer = ask(server, path).error_for_status().unwrap();
    let count = answer.headers()["x-total-count"].to_str().unwrap().parse().unwrap();
    (answer.bytes().unwrap().to_vec(), count)
}

fn open(archive: Vec<u8>) -> BTreeMap<String, Vec<u8>> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut files = BTreeMap::new();
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).unwrap();
        let name = file.enclosed_name().expect("a path inside the archive").to_str().unwrap().to_owned();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        let name = if file.is_dir() { format!("{}/", name.trim_end_matches('/')) } else { name };
        assert!(files.insert(name, content).is_none(), "no name twice");
    }
    files
}

fn frame(server: &Server, n: u32) -> Vec<u8> {
    let url = format!("{}/api/v1/anomalies/{}/frame.jpg", server.url(), id(n));
    client().get(url).send().unwrap().error_for_status().unwrap().bytes().unwrap().to_vec()
}

#[test]
fn coco_holds_what_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    known(dir.path());
    let server = start(dir.path());
    let (archive, count) = export(&server, "coco");
    let files = open(archive);
    assert_eq!((count, files.len()), (5, 6));
    for n in 0..5 {
        assert!(files[&format!("images/default/{}.jpg", id(n))] == frame(&server, n), "byte for byte");
    }
    let coco: Value = serde_json::from_slice(&files["annotations/instances_default.json"]).unwrap();
    assert_eq!(
        coco["categories"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["defect", "scratch"]
    );
    let images = coco["images"].as_array().unwrap();
    let by_id: BTreeMap<i64, &Value> = images.iter().map(|i| (i["id"].as_i64().unwrap(), i)).collect();
    assert_eq!(by_id.len(), 5);
    let annotations = coco["annotations"].as_array().unwrap();
    assert_eq!(annotations.len(), 6, "two regions a defect");
    let mut categories = Vec::new();
    for a in annotations {
        let image = by_id[&a["image_id"].as_i64().unwrap()];
        assert_eq!(image["linesight"]["decision"], "defect");
        assert_eq!((&image["width"], &image["height"]), (&json!(160), &json!(120)));
        let counts: Vec<u64> =
            a["segmentation"]["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).collect();
        assert_eq!(a["segmentation"]["size"], json!([120, 160]));
        assert_eq!(counts.iter().sum::<u64>(), 160 * 120);
        let marked: u64 = counts.iter().skip(1).step_by(2).sum();
        assert_eq!(marked, a["area"].as_u64().unwrap());
        match a["bbox"].to_string().as_str() {
            // what the heatmap has above the threshold: 5 x 4 of its pixels
            "[50,40,20,16]" => assert_eq!((marked, counts[0]), (80, 50 * 120 + 40)),
            // the heatmap has nothing there: the box
            "[90,60,8,6]" => assert_eq!(marked, 48),
            other => panic!("{other}"),
        }
        categories.push(a["category_id"].as_i64().unwrap());
    }
    categories.sort_unstable();
    assert_eq!(categories, [1, 1, 2, 2, 2, 2]);
    let tags = |n: u32| {
        images.iter().find(|i| i["file_name"] == format!("{}.jpg", id(n))).unwrap()["linesight"]["tags"].clone()
    };
    assert_eq!((tags(0), tags(3)), (json!(["defect"]), json!(["false-alarm"])));
}

#[test]
fn label_studio_holds_what_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    known(dir.path());
    let server = start(dir.path());
    let (archive, count) = export(&server, "label-studio");
    let files = open(archive);
    assert_eq!((count, files.len()), (6, 8));
    let tasks: Vec<Value> = serde_json::from_slice(&files["tasks.json"]).unwrap();
    assert_eq!(tasks.len(), 6);
    let task = |n: u32| tasks.iter().find(|t| t["data"]["anomaly"] == id(n).to_string()).unwrap();
    let choice = |n: u32| task(n)["annotations"][0]["result"][0]["value"]["choices"][0].as_str().unwrap();
    assert_eq!((choice(0), choice(4), choice(5)), ("defect", "false-alarm", "unclear"));
    let drawn = &task(1)["annotations"][0]["result"][1];
    assert_eq!(drawn["value"]["rectanglelabels"], json!(["scratch"]));
    assert_eq!(
        (&drawn["value"]["x"], &drawn["value"]["height"]),
        (&json!(50.0 * 100.0 / 160.0), &json!(16.0 * 100.0 / 120.0))
    );
    for t in &tasks {
        assert_eq!(t["predictions"][0]["result"].as_array().unwrap().len(), 2);
        let image = t["data"]["image"].as_str().unwrap().rsplit('/').next().unwrap();
        assert!(files.contains_key(&format!("images/{image}")));
    }
    let config = String::from_utf8(files["label-config.xml"].clone()).unwrap();
    let config = roxmltree::Document::parse(&config).unwrap();
    let labels: Vec<_> =
        config.descendants().filter(|n| n.has_tag_name("Label")).map(|n| n.attribute("value").unwrap()).collect();
    assert_eq!(labels, ["defect", "scratch"]);
}

#[test]
fn cvat_holds_what_was_decided() {
    let dir = tempfile::tempdir().unwrap();
    known(dir.path());
    let server = start(dir.path());
    let files = open(export(&server, "cvat").0);
    assert_eq!(files.len(), 7);
    let text = String::from_utf8(files["annotations.xml"].clone()).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    let images: Vec<_> = document.descendants().filter(|n| n.has_tag_name("image")).collect();
    assert_eq!(images.len(), 6);
    let ids: BTreeSet<_> = images.iter().map(|i| i.attribute("id").unwrap()).collect();
    assert_eq!(ids.len(), 6);
    let boxes: Vec<_> = document.descendants().filter(|n| n.has_tag_name("box")).collect();
    let labels: Vec<_> = boxes.iter().map(|b| b.attribute("label").unwrap()).collect();
    assert_eq!(labels.iter().filter(|l| **l == "scratch").count(), 4);
    assert_eq!(labels.iter().filter(|l| **l == "defect").count(), 2);
    assert!(boxes.iter().any(|b| (b.attribute("xtl"), b.attribute("ybr")) == (Some("50.00"), Some("56.00"))));
    let decisions: Vec<_> = document
        .descendants()
        .filter(|n| n.has_tag_name("attribute") && n.attribute("name") == Some("decision"))
        .map(|n| n.text().unwrap())
        .collect();
    assert_eq!(decisions.iter().filter(|d| **d == "false-alarm").count(), 2);
    let declared: BTreeSet<_> = document
        .descendants()
        .filter(|n| n.has_tag_name("label"))
        .flat_map(|n| n.children().find(|c| c.has_tag_name("name")).and_then(|n| n.text()))
        .collect();
    assert!(labels.iter().all(|l| declared.contains(l)) && declared.contains("decision"));
}

#[test]
fn mvtec_cuts_parts_and_masks_alike() {
    let dir = tempfile::tempdir().unwrap();
    known(dir.path());
    let server = start(dir.path());
    let (archive, count) = export(&server, "mvtec");
    let files = open(archive);
    assert_eq!(count, 5);
    let manifest = rows(&files["manifest.csv"]);
    assert_eq!(manifest.len(), 5);
    for row in &manifest {
        let picture = image::load_from_memory(&files[&row["file"]]).unwrap().into_rgb8();
        // the part of 64x48 with 10 pixels around it
        assert_eq!(picture.dimensions(), (84, 68));
        assert_eq!((row["x"].as_str(), row["y"].as_str()), ("30", "20"));
        assert!(
            picture.get_pixel(42, 34).0[0] > 150 && picture.get_pixel(4, 4).0[0] < 120,
            "the part is in the middle"
        );
        let folder = match (row["decision"].as_str(), row["defect_type"].as_str()) {
            ("false-alarm", _) => "good",
            (_, "") => "defect",
            (_, name) => name,
        };
        assert_eq!(row["file"], format!("test/{folder}/{}.jpg", row["id"]));
        if folder == "good" {
            assert_eq!(row["mask"], "");
            continue;
        }
        assert_eq!(row["mask"], format!("ground_truth/{folder}/{}_mask.png", row["id"]));
        let mask = image::load_from_memory(&files[&row["mask"]]).unwrap().into_luma8();
        assert_eq!(mask.dimensions(), picture.dimensions());
        let marked = |x: u32, y: u32| mask.get_pixel(x - 30, y - 20).0[0] == 255;
        assert!(
            marked(50, 40) && marked(59, 47) && !marked(60, 40) && !marked(50, 48) && marked(90, 60) && marked(97, 65)
        );
        assert_eq!(mask.pixels().filter(|p| p.0[0] > 0).count(), 80 + 48);
    }
    let whole = open(export(&server, "mvtec?cut=frame").0);
    assert!(whole[&format!("test/scratch/{}.jpg", id(0))] == frame(&server, 0));
}

fn rows(csv: &[u8]) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(csv);
    reader.deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn csv_has_every_field_and_obeys_the_filter() {
    let dir = tempfile::tempdir().unwrap();
    known(dir.path());
    let server = start(dir.path());
    let (text, count) = export(&server, "csv");
    assert!(text.windows(2).any(|w| w == b"\r\n"));
    let found = rows(&text);
    assert_eq!((count, found.len()), (6, 6));
    // the newest first, as the list has it
    assert_eq!(found.iter().map(|r| r["part"].as_str()).collect::<Vec<_>>(), ["5", "4", "3", "2", "1", "0"]);
    let last = &found[5];
    for (column, wanted) in [
        ("decision", "defect"),
        ("defect_type", "scratch"),
        ("comment", "deep"),
        ("reviewer", "ada"),
        ("part_w", "64"),
        ("regions", "2"),
        ("score", "3.5"),
        ("captured_at", "2030-01-02T03:00:00Z"),
    ] {
        assert_eq!(last[column], wanted, "{column}");
    }
    assert_eq!(
        serde_json::from_str::<Value>(&last["event"]).unwrap(),
        json!(serde_json::from_str::<Value>(&anomaly(0, "east", "usual").raw).unwrap())
    );
    for (query, wanted) in [
        ("reviewed=no", 1),
        ("reviewed=unclear", 1),
        ("defect_type=scratch", 2),
        ("line=west", 0),
        ("since=2030-01-02T03:00:04Z", 2),
    ] {
        let (text, count) = export(&server, &format!("csv?{query}"));
        assert_eq!((rows(&text).len(), count), (wanted, wanted as u64), "{query}");
    }
    assert_eq!(ask(&server, "csv?confidence_min=7").status(), 400);
    assert_eq!(ask(&server, "yolo").status(), 404);
}

#[test]
fn a_plan_says_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    known(dir.path());
    let server = start(dir.path());
    let plan: Value = ask(&server, "coco/plan").error_for_status().unwrap().json().unwrap();
    let size = plan["bytes_about"].as_u64().unwrap();
    assert_eq!(
        plan,
        json!({
            "format": "coco", "items": 5, "defects": 3, "false_alarms": 2, "unclear": 1, "not_reviewed": 0, "left_out": 1,
            "labels": ["defect", "scratch"], "bytes_about": size
        })
    );
    let frames: usize = (0..5).map(|n| frame(&server, n).len()).sum();
    assert!((size as f64 / frames as f64 - 1.0).abs() < 0.05);
    let page =
        client().get(format!("{}/exports", server.url())).send().unwrap().error_for_status().unwrap().text().unwrap();
    for format in ["coco", "label-studio", "cvat", "mvtec", "csv"] {
        assert!(page.contains(&format!("href=\"/api/v1/exports/{format}?reviewed=yes\"")), "{page}");
    }
}

#[test]
fn an_empty_export_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let coco: Value =
        serde_json::from_slice(&open(export(&server, "coco").0)["annotations/instances_default.json"]).unwrap();
    assert_eq!((&coco["images"], &coco["annotations"]), (&json!([]), &json!([])));
    assert_eq!(
        serde_json::from_slice::<Value>(&open(export(&server, "label-studio").0)["tasks.json"]).unwrap(),
        json!([])
    );
    let xml = String::from_utf8(open(export(&server, "cvat").0)["annotations.xml"].clone()).unwrap();
    assert!(roxmltree::Document::parse(&xml).unwrap().root_element().has_tag_name("annotations"));
    let mvtec = open(export(&server, "mvtec").0);
    assert_eq!(mvtec.keys().collect::<Vec<_>>(), ["manifest.csv", "test/good/"]);
    assert_eq!(rows(&export(&server, "csv").0).len(), 0);
}

#[test]
fn hostile_names_are_inert() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    for (n, text) in (0..).zip(HOSTILE) {
        store.insert(&anomaly(n, text, text)).unwrap();
        store.review(id(n), &review(Decision::Defect, Some(text), Some(text))).unwrap();
    }
    drop(store);
    let server = start(dir.path());
    for format in ["coco", "label-studio", "cvat", "mvtec"] {
        let files = open(export(&server, format).0); // asserts that every path stays inside
        for name in files.keys() {
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) && !name.contains(".."),
                "{name}"
            );
        }
        match format {
            "coco" => {
                let coco: Value = serde_json::from_slice(&files["annotations/instances_default.json"]).unwrap();
                let names: BTreeSet<_> =
                    coco["categories"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
                assert!(HOSTILE.iter().all(|h| names.contains(h)), "kept as they are: {names:?}");
            }
            "label-studio" => {
                let config = String::from_utf8(files["label-config.xml"].clone()).unwrap();
                let labels = roxmltree::Document::parse(&config)
                    .unwrap()
                    .descendants()
                    .filter(|n| n.has_tag_name("Label"))
                    .count();
                assert_eq!(labels, 1 + HOSTILE.len());
            }
            "cvat" => {
                let text = String::from_utf8(files["annotations.xml"].clone()).unwrap();
                let document = roxmltree::Document::parse(&text).unwrap();
                assert!(!document.descendants().any(|n| n.has_tag_name("script")));
                let labels: BTreeSet<_> = document
                    .descendants()
                    .filter(|n| n.has_tag_name("box"))
                    .map(|n| n.attribute("label").unwrap())
                    .collect();
                assert!(HOSTILE[..5].iter().all(|h| labels.contains(h)), "{labels:?}");
            }
            _ => {
                let manifest = rows(&files["manifest.csv"]);
                let folders: BTreeSet<_> =
                    manifest.iter().map(|r| r["file"].split('/').nth(1).unwrap().to_owned()).collect();
                assert_eq!(folders.len(), HOSTILE.len(), "none shared: {folders:?}");
                assert!(!folders.contains("good"), "a defect is never good: {folders:?}");
                let types: BTreeSet<_> = manifest.iter().map(|r| r["defect_type"].trim_start_matches('\'')).collect();
                assert!(HOSTILE.iter().all(|h| types.contains(h)), "the manifest leads back: {types:?}");
            }
        }
    }
    let text = export(&server, "csv").0;
    assert_eq!(rows(&text).len(), HOSTILE.len());
    for row in rows(&text) {
        assert!(row.values().all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t', '\r'])), "{row:?}");
    }
    let page = client().get(format!("{}/exports", server.url())).send().unwrap().text().unwrap();
    assert!(!page.contains("<script>alert"));
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// All captured at the same time, so that the list goes by their ids. The rows are put into the database beside the store: 20,000 synced uploads would take longer than all other tests.
#[test]
fn twenty_thousand_items_stream() {
    alone("twenty_thousand_items_stream", twenty_thousand_items);
}

fn twenty_thousand_items() {
    const ITEMS: u32 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    let first = anomaly(0, "east", "usual");
    store.insert(&first).unwrap();
    store.review(id(0), &review(Decision::Defect, None, None)).unwrap();
    drop(store);
    let mut db = rusqlite::Connection::open(dir.path().join("review.db")).unwrap();
    let tx = db.transaction().unwrap();
    let columns: Vec<String> = tx
        .prepare("SELECT name FROM pragma_table_info('anomalies')")
        .unwrap()
        .query_map([], |r| r.get(0))
        .unwrap()
        .map(|c| c.unwrap())
        .collect();
    let values = columns.iter().map(|c| match c.as_str() {
        "n" => "NULL".to_owned(),
        "id" => "?1".to_owned(),
        other => other.to_owned(),
    });
    let sql = format!(
        "INSERT INTO anomalies ({}) SELECT {} FROM anomalies WHERE id = ?2",
        columns.join(", "),
        values.collect::<Vec<_>>().join(", ")
    );
    let objects = dir.path().join("objects");
    let shelf = |id: Uuid| objects.join(&id.to_string()[34..]).join(id.to_string());
    for n in 1..ITEMS {
        let (new, old) = (id(n).to_string(), id(0).to_string());
        tx.prepare_cached(&sql).unwrap().execute([&new, &old]).unwrap();
        let row = tx.last_insert_rowid();
        let event = "INSERT INTO events SELECT ?1, replace(e.event, ?2, ?3) FROM events e JOIN anomalies a USING (n) WHERE a.id = ?2";
        tx.prepare_cached(event).unwrap().execute(rusqlite::params![row, old, new]).unwrap();
        let copy =
            "INSERT INTO objects SELECT ?1, name, size, sha256 FROM objects JOIN anomalies a USING (n) WHERE a.id = ?2";
        tx.prepare_cached(copy).unwrap().execute(rusqlite::params![row, old]).unwrap();
        std::fs::create_dir_all(shelf(id(n))).unwrap();
        for name in ["frame.jpg", "heatmap.png"] {
            std::fs::hard_link(shelf(id(0)).join(name), shelf(id(n)).join(name)).unwrap();
        }
    }
    tx.execute("UPDATE tallies SET count = ?1, bytes = bytes * ?1 WHERE count > 0", [ITEMS]).unwrap();
    tx.commit().unwrap();
    drop(db);
    let server = start(dir.path());
    for format in ["csv", "coco"] {
        let mut answer = ask(&server, format).error_for_status().unwrap();
        assert_eq!(answer.headers()["x-total-count"], ITEMS.to_string());
        // the answer has begun: what is there from now on is that of the stream
        let (before, start) = (rss(), Instant::now());
        let (mut most, mut all, mut chunk) = (before, 0_u64, vec![0; 256 << 10]);
        loop {
            let n = answer.read(&mut chunk).unwrap();
            if n == 0 {
                break;
            }
            all += n as u64;
            most = most.max(rss());
        }
        let grown = (most - before) >> 20;
        println!("{format}: {ITEMS} items, {} MB in {:.1?}, memory grew by {grown} MB", all >> 20, start.elapsed());
        assert!(all > 20 << 20, "{all}");
        assert!(grown < 24, "memory grew by {grown} MB for {} MB", all >> 20);
    }

    // a download that is given up ends the work: its place is free again, although nobody reads the rest
    for _ in 0..8 {
        let begun = Instant::now();
        let mut answer = loop {
            let answer = ask(&server, "coco");
            if answer.status() == 200 {
                break answer;
            }
            assert_eq!(answer.status(), 503);
            assert!(begun.elapsed() < DEADLINE, "the places of exports that were given up are free again");
            std::thread::sleep(Duration::from_millis(100));
        };
        answer.read_exact(&mut [0; 1000]).unwrap();
        drop(answer);
    }
}

/// The real program finds the defects of the sample, people decide, and what they decided is what `evaluate` and `teach` get.
#[test]
fn evaluate_and_teach_take_it_back() {
    let dir = folder();
    let server = start(&dir.path().join("data"));
    let (out, recording) = (dir.path().join("out"), asset("sample-run.mp4"));
    let run = ["inspect", "--model", washer().to_str().unwrap(), recording.to_str().unwrap(), "--line", "east"];
    let more = ["--review", &server.url(), "--out", out.to_str().unwrap(), "--json"];
    let summary = linesight(run.iter().copied().chain(more)).json();
    let rejected = results(&out).iter().filter(|r| r["verdict"] != "pass").count();
    assert!(rejected >= 6, "{summary:#}");

    let truth = support::truth("sample-run");
    let list: Value =
        client().get(format!("{}/api/v1/anomalies?limit=200", server.url())).send().unwrap().json().unwrap();
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), rejected);
    // good parts are false alarms, and two of the others are called so, that there are enough good pictures
    let mut decided: BTreeMap<String, usize> = BTreeMap::new();
    for (n, item) in items.iter().enumerate() {
        let part = item["event"]["part"].as_u64().unwrap();
        let label = truth.parts.iter().find(|p| p.part == part).unwrap().label.to_lowercase();
        let label = if n < 2 { "good".to_owned() } else { label };
        let body = match label.as_str() {
            "good" => json!({"decision": "false-alarm"}),
            _ => json!({"decision": "defect", "defect_type": label}),
        };
        *decided.entry(label).or_default() += 1;
        let url = format!("{}/api/v1/anomalies/{}/reviews", server.url(), item["id"].as_str().unwrap());
        let answer =
            client().post(url).header("content-type", "application/json").body(body.to_string()).send().unwrap();
        assert_eq!(answer.status(), 201);
    }
    let data = dir.path().join("mvtec");
    ZipArchive::new(Cursor::new(export(&server, "mvtec?line=east").0)).unwrap().extract(&data).unwrap();

    // a model of single parts, taught from pictures that are cut as the export cuts
    let cut =
        image::image_dimensions(std::fs::read_dir(data.join("test/good")).unwrap().next().unwrap().unwrap().path())
            .unwrap();
    let good = dir.path().join("good");
    std::fs::create_dir(&good).unwrap();
    let mut capture =
        Capture::open(&Source::parse(asset("sample-teach.mp4").to_str().unwrap()).unwrap(), false).unwrap();
    for (i, part) in support::truth("sample-teach").parts[..support::GOOD_STILLS].iter().enumerate() {
        let frame = loop {
            let frame = capture.next_frame().unwrap().unwrap();
            if frame.seq == part.centre {
                break frame;
            }
        };
        let y = (part.y + part.size / 2).saturating_sub(cut.1 / 2).min(frame.height() - cut.1);
        let crop = Crop { x: (frame.width() - cut.0) as i32 / 2, y: y as i32, width: cut.0, height: cut.1 };
        let size = Size { width: cut.0, height: cut.1 };
        let mut rgb = vec![0; size.area() * 3];
        Shrinker::new().rgb(&frame, crop, size, &mut rgb).unwrap();
        RgbImage::from_raw(cut.0, cut.1, rgb).unwrap().save(good.join(format!("{i:02}.png"))).unwrap();
    }
    let model = dir.path().join("model");
    linesight(["teach", "--good", good.to_str().unwrap(), "--method", "ppca", "--out", model.to_str().unwrap()])
        .succeeds();
    let report =
        linesight(["evaluate", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--json"]).json();
    println!("{report:#}");
    let good_ones = decided["good"];
    assert_eq!(report["good"].as_u64(), Some(good_ones as u64));
    assert_eq!(report["images"].as_u64(), Some(rejected as u64));
    let kinds: BTreeMap<String, usize> = report["per_defect"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| (k["label"].as_str().unwrap().to_owned(), k["images"].as_u64().unwrap() as usize))
        .chain([("good".to_owned(), good_ones)])
        .collect();
    assert_eq!(kinds, decided);
    assert!(report["pixel_auroc"].as_f64().unwrap() > 0.8, "the masks lie where the defects are");
    assert!(
        report["at_threshold"]["recall"].as_f64().unwrap() > 0.7,
        "what was found in the recording is found in the pictures"
    );

    // and teach takes the good parts, with what it was taught before
    let again = dir.path().join("again");
    let both = ["--good", good.to_str().unwrap(), data.join("test/good").to_str().unwrap()].map(str::to_owned);
    let run = linesight(
        ["teach".to_owned(), "--method".into(), "ppca".into(), "--out".into(), again.to_str().unwrap().into()]
            .into_iter()
            .chain(both),
    );
    run.succeeds();
}
