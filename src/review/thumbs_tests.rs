//! Tests of the small pictures.

use image::{Rgb, RgbImage, Rgba, RgbaImage};

use super::*;
use crate::event::{Event, ImageSize, Rect};
use crate::review::store::{NewAnomaly, SqliteStore};

const ID: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_00ab);
const PART: Rect = Rect { x: 800, y: 400, w: 200, h: 160 };

fn event(image: ImageSize, part_box: Option<Rect>) -> Event {
    serde_json::from_value(serde_json::json!({
        "schema": 1, "id": ID, "site": "s", "line": "a", "camera": "c", "part": 1, "frame": 2,
        "captured_at": "2030-01-02T03:04:05Z", "score": 2.0, "confidence": 0.99, "threshold": 1.0, "verdict": "reject",
        "model": {"name": "m", "version": "1", "sha256": "ab"}, "device": "CPU", "precision": "f32",
        "image": image, "part_box": part_box,
    }))
    .unwrap()
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A grey frame whose part is red, under a heatmap of a quarter of its size whose part is not clear.
fn pictures() -> Vec<(ObjectName, Vec<u8>)> {
    let inside = |x: u32, y: u32, p: Rect| x >= p.x && x < p.x + p.w && y >= p.y && y < p.y + p.h;
    let frame =
        RgbImage::from_fn(1920, 1080, |x, y| if inside(x, y, PART) { Rgb([220, 20, 20]) } else { Rgb([90, 90, 90]) });
    let heat = RgbaImage::from_fn(480, 270, |x, y| {
        if inside(x * 4, y * 4, PART) { Rgba([255, (x % 200) as u8, 0, 190]) } else { Rgba([255, 229, 0, 0]) }
    });
    vec![(ObjectName::Frame, encoded(frame, ImageFormat::Jpeg)), (ObjectName::Heatmap, encoded(heat, ImageFormat::Png))]
}

struct Bench {
    app: App,
    thumbs: Arc<Thumbs>,
    dir: tempfile::TempDir,
}

fn bench(event: Event, objects: Vec<(ObjectName, Vec<u8>)>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).unwrap();
    store.insert(&NewAnomaly { raw: serde_json::to_string(&event).unwrap(), event, objects }).unwrap();
    let app = App::new(Arc::new(store));
    let thumbs = Arc::new(Thumbs::new(dir.path()));
    thumbs.written.store(0, Ordering::Relaxed);
    Bench { app, thumbs, dir }
}

fn usual() -> Bench {
    bench(event(ImageSize { width: 1920, height: 1080 }, Some(PART)), pictures())
}

impl Bench {
    async fn get(&self, thumb: Thumb) -> Result<Vec<u8>, Problem> {
        self.thumbs.clone().get(&self.app, ID, thumb).await
    }
    /// Bytes that were written: what is made is written.
    fn written(&self) -> usize {
        self.thumbs.written.load(Ordering::Relaxed) as usize
    }
}

#[tokio::test]
async fn a_card_shows_the_part_and_its_heatmap_the_same_place() {
    let bench = usual();
    let card = bench.get(Thumb::Card).await.unwrap();
    assert_eq!(image::guess_format(&card).unwrap(), ImageFormat::Jpeg);
    let card = image::load_from_memory(&card).unwrap().into_rgb8();
    let heat = bench.get(Thumb::CardHeat).await.unwrap();
    assert!(heat.len() < 4096, "{} bytes", heat.len());
    let heat = image::load_from_memory(&heat).unwrap().into_rgba8();
    // the crop is the part and 8 % of its longer side around it, widened to 4:3
    let ratio = |w: u32, h: u32| f64::from(w) / f64::from(h);
    assert!((ratio(card.width(), card.height()) - CARD_ASPECT).abs() < 0.02, "{:?}", card.dimensions());
    assert!((ratio(heat.width(), heat.height()) - CARD_ASPECT).abs() < 0.05, "{:?}", heat.dimensions());
    let place = show::crop(ImageSize { width: 1920, height: 1080 }, Some(PART), CARD_ASPECT, CARD_MARGIN);
    let red = |x: u32, y: u32| card.get_pixel(x, y).0[0] > 160;
    let hot = |x: u32, y: u32| heat.get_pixel(x, y).0[3] > 95;
    let edges = |size: (u32, u32), is: &dyn Fn(u32, u32) -> bool| {
        let (w, h) = size;
        let row: Vec<u32> = (0..w).filter(|&x| is(x, h / 2)).collect();
        let column: Vec<u32> = (0..h).filter(|&y| is(w / 2, y)).collect();
        [row[0], row[row.len() - 1] + 1, column[0], column[column.len() - 1] + 1]
            .map(f64::from)
            .into_iter()
            .zip([w, w, h, h])
            .map(|(at, all)| at / f64::from(all))
            .collect::<Vec<_>>()
    };
    let wanted = [
        (f64::from(PART.x) - place.x) / place.w,
        (f64::from(PART.x + PART.w) - place.x) / place.w,
        (f64::from(PART.y) - place.y) / place.h,
        (f64::from(PART.y + PART.h) - place.y) / place.h,
    ];
    for found in [edges(card.dimensions(), &red), edges(heat.dimensions(), &hot)] {
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 0.02, "{found} instead of {wanted}");
        }
    }
}

#[tokio::test]
async fn sizes() {
    let bench = usual();
    let size = |bytes: Vec<u8>| {
        let image = image::load_from_memory(&bytes).unwrap();
        (image.width(), image.height(), bytes.len())
    };
    let (w, h, bytes) = size(bench.get(Thumb::Preview).await.unwrap());
    assert_eq!((w, h), (1280, 720));
    assert!(bytes < 200_000);
    let (w, h, bytes) = size(bench.get(Thumb::PreviewHeat).await.unwrap());
    assert_eq!((w, h), (480, 270));
    assert!(bytes < 8192, "{bytes}");
    // a large part in a small frame is not enlarged
    let small = ImageSize { width: 100, height: 60 };
    let frame = encoded(RgbImage::new(100, 60), ImageFormat::Jpeg);
    let heat = encoded(RgbaImage::new(1, 1), ImageFormat::Png);
    let bench = bench_of(small, None, frame, heat);
    for thumb in [Thumb::Card, Thumb::Preview] {
        let (w, h, _) = size(bench.get(thumb).await.unwrap());
        assert_eq!((w, h), (100, 60));
    }
    assert_eq!(size(bench.get(Thumb::CardHeat).await.unwrap()).0, 1);
}

fn bench_of(image: ImageSize, part: Option<Rect>, frame: Vec<u8>, heat: Vec<u8>) -> Bench {
    bench(event(image, part), vec![(ObjectName::Frame, frame), (ObjectName::Heatmap, heat)])
}

#[tokio::test]
async fn a_bomb_is_refused() {
    // few bytes that say they are 16,000 pixels wide and high
    let mut bomb = encoded(RgbaImage::new(8, 8), ImageFormat::Png);
    bomb[16..20].copy_from_slice(&16_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&16_000u32.to_be_bytes());
    let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
    bomb[29..33].copy_from_slice(&sum);
    let frame = encoded(RgbImage::new(64, 64), ImageFormat::Jpeg);
    let mut broken = frame.clone();
    broken.truncate(60);
    let size = ImageSize { width: 64, height: 64 };
    let bench = bench_of(size, None, broken, bomb);
    for thumb in Thumb::ALL {
        let problem = bench.get(thumb).await.unwrap_err();
        assert_eq!(problem.status(), StatusCode::UNPROCESSABLE_ENTITY, "{thumb:?}: {}", problem.detail());
        assert!(problem.detail().contains("cannot be decoded"), "{}", problem.detail());
    }
}

#[tokio::test]
async fn what_is_missing_says_so() {
    let bench = bench(event(ImageSize { width: 4, height: 4 }, None), vec![]);
    let problem = bench.get(Thumb::Card).await.unwrap_err();
    assert_eq!(
        (problem.status(), problem.detail()),
        (StatusCode::NOT_FOUND, &*format!("anomaly {ID} has no frame.jpg"))
    );
    let other = bench.thumbs.clone().get(&bench.app, Uuid::nil(), Thumb::Card).await.unwrap_err();
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_was_made_is_not_made_again() {
    let bench = usual();
    let first = bench.get(Thumb::Card).await.unwrap();
    assert_eq!(bench.get(Thumb::Card).await.unwrap(), first);
    assert_eq!(bench.written(), first.len());
    // one that a power cut left incomplete is
    let file = bench.dir.path().join("thumbs/ab").join(ID.to_string()).join("card.jpg");
    fs::write(&file, &first[..first.len() / 2]).unwrap();
    assert_eq!(bench.get(Thumb::Card).await.unwrap(), first);
    assert_eq!(bench.written(), 2 * first.len());
    assert_eq!(fs::read(file).unwrap(), first);
}

#[tokio::test]
async fn who_asks_at_the_same_time_gets_what_is_made_once() {
    let bench = usual();
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let (thumbs, app) = (bench.thumbs.clone(), bench.app.clone());
            tokio::spawn(async move { thumbs.get(&app, ID, Thumb::Preview).await })
        })
        .collect();
    for one in asking {
        let got = one.await.unwrap().unwrap();
        assert_eq!(bench.written(), got.len(), "made once");
    }
    assert!(bench.thumbs.making().is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn what_is_gone_is_not_shown() {
    let bench = usual();
    bench.get(Thumb::Card).await.unwrap();
    let database = rusqlite::Connection::open(bench.dir.path().join("review.db")).unwrap();
    database.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM anomalies").unwrap();
    assert_eq!(bench.get(Thumb::Card).await.unwrap_err().status(), StatusCode::NOT_FOUND);
    assert!(!bench.dir.path().join("thumbs/ab").join(ID.to_string()).exists());
}

#[test]
fn what_was_made_first_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let thumbs = Thumbs::with_limit(dir.path().join("thumbs"), 16_000);
    let id = |n: u128| Uuid::from_u128(ID.as_u128() + n * 7);
    for n in 0..40 {
        thumbs.keep(id(n), Thumb::Card, &[7; 1000]).unwrap();
        let file = thumbs.folder(id(n)).join("card.jpg");
        if let Ok(file) = fs::File::options().write(true).open(file) {
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + n as u64)).unwrap();
        }
        let there: Vec<u128> = (0..=n).filter(|&n| thumbs.folder(id(n)).exists()).collect();
        assert!(there.len() <= 17, "{} after {n}", there.len());
        assert!(there.windows(2).all(|w| w[1] == w[0] + 1), "the oldest go: {there:?}");
    }
    assert!(thumbs.folder(id(39)).join("card.jpg").exists());
}
