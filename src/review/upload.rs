//! Reads and checks one multipart upload: from the wire to a [`NewAnomaly`] that may be kept.
//!
//! Thread: reading is async on the server's thread; [`check`] blocks (image headers) and runs in `spawn_blocking`.
//!
//! Invariants:
//! 1. No field takes more memory than its limit, and the whole no more than [`MAX_BODY`]. Test: `too_large` in
//!    tests/review_server.rs.
//! 2. What is kept is what it says it is: a JPEG or PNG whose header agrees with the event. Tests:
//!    `pictures_are_checked`, `events_are_checked`.
//! 3. Nothing that is kept costs much to decode or to show: pixels, scans, texts and lists are bounded. Tests:
//!    `pictures_are_checked`, `texts_and_lists_are_bounded`.
//! 4. A refused upload is read to its end, so that the sender gets the answer and not a reset connection. Tests:
//!    `too_large`, `strangers_are_refused` in tests/review_server.rs.

use std::future::poll_fn;
use std::io::Cursor;
use std::pin::pin;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{Multipart, Request};
use axum::http::StatusCode;
use axum::http::header::EXPECT;
use image::ImageFormat;
use serde::Deserialize;
use tokio::time::timeout;
use uuid::Uuid;

use super::problem::Problem;
use super::store::{NewAnomaly, ObjectName, nanoseconds};
use crate::event::{EVENT_SCHEMA, Event, Verdict};

/// Bytes of a whole request.
pub const MAX_BODY: usize = 32 << 20;
/// Bytes of the field `event`.
pub const MAX_EVENT: usize = 1 << 20;
/// Bytes of each picture.
pub const MAX_PICTURE: usize = 20 << 20;
/// Pixels along each side of a picture.
pub const MAX_SIDE: u32 = 16_384;
/// Pixels of a picture: what decoding it may take of memory (three bytes each) is known before it is decoded.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Scans of a progressive JPEG; encoders make about ten. Each costs a pass over all pixels when the picture is decoded.
pub const MAX_SCANS: usize = 100;
/// How long one upload may take.
pub const UPLOAD_TIME: Duration = Duration::from_secs(60);
/// Bytes of a refused request that are read over, at most.
const READ_OVER: usize = 4 * MAX_BODY;
/// Characters in the name of a line.
pub const MAX_LINE: usize = 200;
/// Characters of any other text in an event.
pub const MAX_TEXT: usize = 1000;
/// Reasons of an event.
pub const MAX_REASONS: usize = 64;
/// Regions of an event.
pub const MAX_REGIONS: usize = 10_000;

/// The fields as they came.
#[derive(Debug, Default)]
pub struct Fields {
    event: Option<Vec<u8>>,
    frame: Option<Vec<u8>>,
    heatmap: Option<Vec<u8>>,
    normal: Option<Vec<u8>>,
}

/// Reads all fields; unknown ones are passed over.
pub async fn read(mut multipart: Multipart) -> Result<Fields, Problem> {
    let mut fields = Fields::default();
    let mut refused = None;
    loop {
        let field = multipart.next_field().await;
        let Some(field) = field.map_err(|e| refused.clone().unwrap_or_else(|| unreadable(&e)))? else { break };
        let (slot, name, media, limit) = match field.name() {
            Some("event") => (&mut fields.event, "event", "application/json", MAX_EVENT),
            Some("frame") => (&mut fields.frame, "frame", "image/jpeg", MAX_PICTURE),
            Some("heatmap") => (&mut fields.heatmap, "heatmap", "image/png", MAX_PICTURE),
            Some("normal") => (&mut fields.normal, "normal", "image/jpeg", MAX_PICTURE),
            _ => continue, // the next call reads over it
        };
        if refused.is_some() {
            continue;
        }
        let found = field.content_type().unwrap_or("").to_ascii_lowercase();
        if found.split(';').next().map(str::trim) != Some(media) {
            let detail = format!("field \"{name}\" has the content type {found:?}, it must be {media:?}");
            refused = Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
            continue;
        }
        if slot.is_some() {
            refused = Some(Problem::bad_request(format!("field \"{name}\" comes twice")));
            continue;
        }
        match collect(field, limit).await.map_err(|e| unreadable(&e))? {
            Some(bytes) => *slot = Some(bytes),
            None => refused = Some(Problem::too_large(&format!("field \"{name}\""), limit)),
        }
    }
    refused.map_or(Ok(fields), Err)
}

/// The field's bytes, or `None` when they are more than `limit` (then it is read to its end all the same).
async fn collect(mut field: Field<'_>, limit: usize) -> Result<Option<Vec<u8>>, MultipartError> {
    let mut bytes = Some(Vec::new());
    while let Some(chunk) = field.chunk().await? {
        bytes = bytes.filter(|b: &Vec<u8>| b.len() + chunk.len() <= limit);
        if let Some(bytes) = &mut bytes {
            bytes.extend_from_slice(&chunk);
        }
    }
    Ok(bytes)
}

fn unreadable(e: &MultipartError) -> Problem {
    if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::too_large("the request", MAX_BODY);
    }
    Problem::bad_request(format!("the multipart body cannot be read: {}", e.body_text()))
}

/// Checks the fields against each other and the idempotency key. Blocks.
pub fn check(fields: Fields, key: Uuid) -> Result<NewAnomaly, Problem> {
    let (event, raw) = event(required(fields.event, "event")?)?;
    if event.id != key {
        let detail = format!("header Idempotency-Key is \"{key}\" and the event's id is \"{}\"", event.id);
        return Err(Problem::unprocessable(detail));
    }
    let frame = required(fields.frame, "frame")?;
    let heatmap = required(fields.heatmap, "heatmap")?;
    let (width, height) = size("frame", &frame, ImageFormat::Jpeg)?;
    if (width, height) != (event.image.width, event.image.height) {
        let said = format!("{}x{}", event.image.width, event.image.height);
        let detail = format!("field \"frame\" is {width}x{height} pixels and the event says {said}");
        return Err(Problem::unprocessable(detail));
    }
    size("heatmap", &heatmap, ImageFormat::Png)?;
    let mut objects = vec![(ObjectName::Frame, frame), (ObjectName::Heatmap, heatmap)];
    if let Some(normal) = fields.normal {
        size("normal", &normal, ImageFormat::Jpeg)?;
        objects.push((ObjectName::Normal, normal));
    }
    Ok(NewAnomaly { event, raw, objects })
}

fn required(field: Option<Vec<u8>>, name: &str) -> Result<Vec<u8>, Problem> {
    field.ok_or_else(|| Problem::bad_request(format!("field \"{name}\" is missing")))
}

fn event(bytes: Vec<u8>) -> Result<(Event, String), Problem> {
    let not_json = |e: &dyn std::fmt::Display| Problem::bad_request(format!("field \"event\" is not JSON: {e}"));
    let raw = String::from_utf8(bytes).map_err(|e| not_json(&e))?;
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let value: serde_json::Value = serde_json::from_str(&raw).map_err(|e| not_json(&e))?;
    let not_ours = |e: serde_json::Error| Problem::unprocessable(format!("field \"event\" is not an event: {e}"));
    let Schema { schema } = Schema::deserialize(&value).map_err(not_ours)?;
    if schema != EVENT_SCHEMA {
        let detail = format!("the event has schema {schema}, this server understands {EVENT_SCHEMA}");
        return Err(Problem::unprocessable(detail).hint("update the older of the two"));
    }
    let event: Event = serde_json::from_str(&raw).map_err(not_ours)?;
    let wrong = |what: String| Err(Problem::unprocessable(what));
    if !(event.score.is_finite() && event.score >= 0.0) {
        return wrong(format!("the event's score is {}, it must be finite and not negative", event.score));
    }
    if !event.threshold.is_finite() {
        return wrong(format!("the event's threshold is {}, it must be finite", event.threshold));
    }
    if !(0.0..=1.0).contains(&event.confidence) {
        return wrong(format!("the event's confidence is {}, it must be between 0 and 1", event.confidence));
    }
    if event.verdict == Verdict::Pass {
        return wrong("the event's verdict is \"pass\", that is no anomaly".into());
    }
    if event.line.is_empty() || event.line.chars().count() > MAX_LINE {
        return wrong(format!("the event's line must have between 1 and {MAX_LINE} characters"));
    }
    let texts = [
        ("site", Some(&event.site)),
        ("camera", Some(&event.camera)),
        ("model.name", Some(&event.model.name)),
        ("model.version", Some(&event.model.version)),
        ("model.sha256", Some(&event.model.sha256)),
        ("device", Some(&event.device)),
        ("precision", Some(&event.precision)),
        ("lot", event.lot.as_ref()),
        ("serial", event.serial.as_ref()),
    ];
    let reasons = event.reasons.iter().map(|reason| ("reasons", Some(reason)));
    for (name, text) in texts.into_iter().chain(reasons) {
        if text.is_some_and(|text| text.chars().count() > MAX_TEXT) {
            return wrong(format!("the event's {name} has more than {MAX_TEXT} characters"));
        }
    }
    for (name, found, most) in
        [("reasons", event.reasons.len(), MAX_REASONS), ("regions", event.regions.len(), MAX_REGIONS)]
    {
        if found > most {
            return wrong(format!("the event has {found} {name}, this server takes {most}"));
        }
    }
    for (name, number) in [("part", event.part), ("frame", event.frame)] {
        if i64::try_from(number).is_err() {
            return wrong(format!("the event's {name} is {number}, this server counts to {}", i64::MAX));
        }
    }
    nanoseconds(event.captured_at).map_err(|e| Problem::unprocessable(e.to_string()))?;
    Ok((event, raw))
}

/// Width and height from the header of a picture that is what it should be.
fn size(name: &str, bytes: &[u8], wanted: ImageFormat) -> Result<(u32, u32), Problem> {
    let wrong = |what: &str| Problem::unprocessable(format!("field \"{name}\" {what}"));
    if image::guess_format(bytes).ok() != Some(wanted) {
        return Err(wrong(if wanted == ImageFormat::Png { "is not a PNG picture" } else { "is not a JPEG picture" }));
    }
    let (width, height) = image::ImageReader::with_format(Cursor::new(bytes), wanted)
        .into_dimensions()
        .map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    if width.min(height) == 0 || width.max(height) > MAX_SIDE {
        return Err(wrong(&format!("is {width}x{height} pixels, each side may have between 1 and {MAX_SIDE}")));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(wrong(&format!("is {width}x{height} pixels, which is more than {MAX_PIXELS} together")));
    }
    // inside a scan 0xff is followed by 0 or a restart marker, so that each of these begins one (or is in a small preview)
    if wanted == ImageFormat::Jpeg && bytes.windows(2).filter(|two| *two == [0xff, 0xda]).count() > MAX_SCANS {
        return Err(wrong(&format!("has more than {MAX_SCANS} scans")));
    }
    Ok((width, height))
}

/// Reads the body of a request that is about to be refused and throws it away, within limits: a sender that is still
/// writing would see a reset connection instead of the answer.
pub async fn read_over(request: Request) {
    // who waits for 100 Continue has not begun to send, and need not
    if request.headers().contains_key(EXPECT) {
        return;
    }
    let drain = async {
        let mut body = pin!(request.into_body());
        let mut left = READ_OVER;
        while let Some(Ok(frame)) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(UPLOAD_TIME, drain).await; // too slow or too much: then it is a reset
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, RgbImage, RgbaImage};

    fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = match format {
            ImageFormat::Png => DynamicImage::from(RgbaImage::new(width, height)),
            _ => DynamicImage::from(RgbImage::new(width, height)),
        };
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn json() -> serde_json::Value {
        serde_json::json!({
            "schema": 1, "id": "01930000-0000-7000-8000-000000000001", "site": "s", "line": "a", "camera": "c",
            "part": 1, "frame": 2, "captured_at": "2030-01-02T03:04:05.123456789Z", "score": 2.0, "confidence": 0.99,
            "threshold": 1.0, "verdict": "reject", "model": {"name": "m", "version": "1", "sha256": "ab"},
            "device": "CPU", "precision": "f32", "image": {"width": 8, "height": 6}
        })
    }

    fn fields(event: &serde_json::Value) -> Fields {
        Fields {
            event: Some(event.to_string().into_bytes()),
            frame: Some(picture(8, 6, ImageFormat::Jpeg)),
            heatmap: Some(picture(4, 3, ImageFormat::Png)),
            normal: None,
        }
    }

    fn refusal(fields: Fields) -> (u16, String) {
        let problem = check(fields, Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001)).unwrap_err();
        (problem.status().as_u16(), problem.detail().to_string())
    }

    #[test]
    fn a_good_upload_keeps_its_text() {
        let mut event = json();
        event["unknown"] = 7.into();
        let good = check(fields(&event), Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001)).unwrap();
        assert_eq!(good.raw, event.to_string());
        assert_eq!(good.objects.len(), 2);
    }

    #[test]
    fn events_are_checked() {
        let id = "01930000-0000-7000-8000-000000000001";
        let other = "01930000-0000-7000-8000-000000000002";
        let table: [(&str, serde_json::Value, String); 11] = [
            ("schema", 2.into(), "the event has schema 2, this server understands 1".into()),
            ("schema", "1".into(), "field \"event\" is not an event: invalid type: string \"1\", expected u32".into()),
            ("score", (-0.5).into(), "the event's score is -0.5, it must be finite and not negative".into()),
            ("score", 1e300.into(), "field \"event\" is not an event: number out of range".into()),
            ("threshold", 1e300.into(), "field \"event\" is not an event: number out of range".into()),
            ("confidence", 1.5.into(), "the event's confidence is 1.5, it must be between 0 and 1".into()),
            ("verdict", "pass".into(), "the event's verdict is \"pass\", that is no anomaly".into()),
            ("line", "".into(), "the event's line must have between 1 and 200 characters".into()),
            ("captured_at", "9000-01-01T00:00:00Z".into(), "time \"9000-01-01T00:00:00Z\" is out of range".into()),
            ("id", other.into(), format!("header Idempotency-Key is \"{id}\" and the event's id is \"{other}\"")),
            (
                "image",
                serde_json::json!({"width": 9, "height": 6}),
                "field \"frame\" is 8x6 pixels and the event says 9x6".into(),
            ),
        ];
        for (key, value, detail) in table {
            let mut event = json();
            event[key] = value;
            let (status, found) = refusal(fields(&event));
            assert_eq!(status, 422, "{key}: {found}");
            assert!(found.starts_with(&detail), "{key}: {found}");
        }
        let mut event = json();
        event.as_object_mut().unwrap().remove("model");
        assert_eq!(refusal(fields(&event)).0, 422);
        for garbage in [&b"{"[..], b"", b"\xff", b"[] []"] {
            let found = refusal(Fields { event: Some(garbage.to_vec()), ..fields(&json()) });
            assert_eq!(found.0, 400, "{found:?}");
        }
    }

    #[test]
    fn pictures_are_checked() {
        let good = || fields(&json());
        let missing = refusal(Fields { frame: None, ..good() });
        assert_eq!(missing, (400, "field \"frame\" is missing".into()));
        let missing = refusal(Fields { heatmap: None, ..good() });
        assert_eq!(missing, (400, "field \"heatmap\" is missing".into()));
        let swapped = refusal(Fields { frame: good().heatmap, ..good() });
        assert_eq!(swapped, (422, "field \"frame\" is not a JPEG picture".into()));
        let swapped = refusal(Fields { heatmap: good().frame, ..good() });
        assert_eq!(swapped, (422, "field \"heatmap\" is not a PNG picture".into()));
        let swapped = refusal(Fields { normal: good().heatmap, ..good() });
        assert_eq!(swapped, (422, "field \"normal\" is not a JPEG picture".into()));
        let page = refusal(Fields { frame: Some(b"<html><script>".to_vec()), ..good() });
        assert_eq!(page, (422, "field \"frame\" is not a JPEG picture".into()));
        let only_magic = refusal(Fields { frame: Some(vec![0xff, 0xd8, 0xff, 0xe0]), ..good() });
        assert!(only_magic.1.starts_with("field \"frame\" cannot be read: "), "{only_magic:?}");
        // a PNG header that claims 2^31 - 1 pixels a side
        let mut huge = good().heatmap.unwrap();
        huge[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        let huge = refusal(Fields { heatmap: Some(huge), ..good() });
        assert_eq!(huge.0, 422, "{huge:?}");
        // each side may be so long, not both
        let mut bomb = good().heatmap.unwrap();
        bomb[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
        let bomb = refusal(Fields { heatmap: Some(with_checksum(bomb)), ..good() });
        let wanted = "field \"heatmap\" is 16384x16384 pixels, which is more than 100000000 together";
        assert_eq!(bomb, (422, wanted.into()));
        let mut scans = good().frame.unwrap();
        scans.extend([0xff, 0xda].repeat(MAX_SCANS));
        let scans = refusal(Fields { frame: Some(scans), ..good() });
        assert_eq!(scans, (422, "field \"frame\" has more than 100 scans".into()));
    }

    /// A PNG with the checksum of its header right again.
    fn with_checksum(mut png: Vec<u8>) -> Vec<u8> {
        let sum = crc32fast::hash(&png[12..29]);
        png[29..33].copy_from_slice(&sum.to_be_bytes());
        png
    }

    #[test]
    fn texts_and_lists_are_bounded() {
        let long = "x".repeat(MAX_TEXT + 1);
        let region = serde_json::json!({"x": 1, "y": 2, "w": 3, "h": 4, "score": 1.0});
        let table: [(&str, serde_json::Value, &str); 9] = [
            ("site", long.clone().into(), "the event's site has more than 1000 characters"),
            ("camera", long.clone().into(), "the event's camera has more than 1000 characters"),
            ("device", long.clone().into(), "the event's device has more than 1000 characters"),
            ("serial", long.clone().into(), "the event's serial has more than 1000 characters"),
            ("reasons", serde_json::json!([long]), "the event's reasons has more than 1000 characters"),
            ("reasons", serde_json::json!(vec!["x"; 65]), "the event has 65 reasons, this server takes 64"),
            (
                "regions",
                serde_json::json!(vec![region; MAX_REGIONS + 1]),
                "the event has 10001 regions, this server takes 10000",
            ),
            ("part", u64::MAX.into(), "the event's part is 18446744073709551615, this server counts to"),
            ("frame", (1u64 << 63).into(), "the event's frame is 9223372036854775808, this server counts to"),
        ];
        for (key, value, detail) in table {
            let mut event = json();
            event[key] = value;
            let (status, found) = refusal(fields(&event));
            assert_eq!(status, 422, "{key}");
            assert!(found.starts_with(detail), "{key}: {found}");
        }
    }
}
