//! The layout of MVTec AD, so that `linesight evaluate` and `linesight teach` take back what people decided: `test/good/` (false
//! alarms), `test/<defect type>/`, `ground_truth/<defect type>/<id>_mask.png`, and `manifest.csv`, which says what each picture
//! was.
//!
//! A picture shows the judged part, cut out of its frame: `evaluate` takes a picture for one part, and where parts cross a large
//! frame the frame is not that. Every cut of a line has the same size and nothing is scaled, so that parts compare: the largest
//! judged box of the export with [`MARGIN`] around it. Where that is the whole frame, the picture is the frame as it was received.
//!
//! Thread: that of the caller; blocks.
//!
//! Invariants:
//! 1. A path is made of an id and of letters, digits, `-` and `_`; two defect types never share a folder. Tests:
//!    `folders_are_safe_and_distinct`, and `hostile_names_are_inert` in tests/review_export.rs.
//! 2. A mask has the size of its picture and marks something. Test: `evaluate_and_teach_take_it_back` in tests/review_export.rs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use image::ImageEncoder;

use super::csv::inert;
use super::zip::{Spool, Zip};
use super::{Export, Item, Survey, shape};
use crate::error::{Context, Result};
use crate::event::{Event, ImageSize, Rect};
use crate::review::store::{Decision, ObjectName};
use crate::review::thumbs;

/// Room around the largest judged box, in its longer sides.
const MARGIN: f64 = 0.15;
/// Quality of the cut pictures, 1..100.
const QUALITY: u8 = 95;
/// The folder of good parts.
const GOOD: &str = "good";

/// The archive as it grows.
pub struct Mvtec<W: Write> {
    zip: Zip<W>,
    /// Folder for each label.
    folders: BTreeMap<String, String>,
    /// Size of the cuts of each line.
    cuts: BTreeMap<String, (u32, u32)>,
    manifest: csv::Writer<Spool>,
}

fn cannot() -> &'static str {
    "cannot write the MVTec AD export"
}

impl<W: Write> Mvtec<W> {
    /// An empty one. With `whole` the pictures are the frames.
    pub fn new(mut zip: Zip<W>, survey: &Survey, whole: bool) -> Result<Mvtec<W>> {
        let mut manifest =
            csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(zip.spool().failed(cannot)?);
        let columns = [
            "file",
            "mask",
            "id",
            "line",
            "part",
            "captured_at",
            "verdict",
            "score",
            "decision",
            "defect_type",
            "x",
            "y",
            "w",
            "h",
            "model",
        ];
        manifest.write_record(columns).failed(cannot)?;
        zip.add_folder(&format!("test/{GOOD}")).failed(cannot)?;
        let cuts = if whole {
            BTreeMap::new()
        } else {
            survey.parts.iter().map(|(line, &part)| (line.clone(), cut_size(part))).collect()
        };
        Ok(Mvtec { zip, folders: folders(&survey.labels()), cuts, manifest })
    }

    fn cut(&self, e: &Event) -> Rect {
        match self.cuts.get(&e.line) {
            Some(&size) => cut(e.image, shape::judged(e), size),
            None => Rect { x: 0, y: 0, w: e.image.width, h: e.image.height },
        }
    }
}

/// A folder for each label: safe, and none twice.
fn folders(labels: &[String]) -> BTreeMap<String, String> {
    let mut taken = vec![GOOD.to_owned()];
    let mut folders = BTreeMap::new();
    for label in labels {
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '_' };
        let base: String = label.chars().take(60).map(safe).collect();
        let mut folder = base.clone();
        let mut n = 1;
        while taken.contains(&folder) {
            n += 1;
            folder = format!("{base}-{n}");
        }
        taken.push(folder.clone());
        folders.insert(label.clone(), folder);
    }
    folders
}

fn cut_size((w, h): (u32, u32)) -> (u32, u32) {
    let margin = (f64::from(w.max(h)) * MARGIN).ceil() as u32;
    let side = |length: u32| length.saturating_add(2 * margin).next_multiple_of(2);
    (side(w), side(h))
}

/// A cut of that size with the part in its middle, as far as the picture goes.
fn cut(image: ImageSize, part: Rect, (w, h): (u32, u32)) -> Rect {
    let (w, h) = (w.min(image.width), h.min(image.height));
    let place =
        |start: u32, length: u32, cut: u32, all: u32| (start + length / 2).saturating_sub(cut / 2).min(all - cut);
    Rect { x: place(part.x, part.w, w, image.width), y: place(part.y, part.h, h, image.height), w, h }
}

/// The mask of a cut: 255 where it is defective. Nothing when nothing of it lies in the cut.
fn mask(marks: &[shape::Mark], cut: Rect) -> io::Result<Option<Vec<u8>>> {
    let mut pixels = vec![0u8; cut.w as usize * cut.h as usize];
    for &(x, y, length) in marks.iter().flat_map(|m| &m.runs) {
        let Some(column) = x.checked_sub(cut.x).filter(|&column| column < cut.w) else { continue };
        for row in y.max(cut.y)..(y + length).min(cut.y + cut.h) {
            pixels[(row - cut.y) as usize * cut.w as usize + column as usize] = 255;
        }
    }
    if pixels.iter().all(|&p| p == 0) {
        return Ok(None);
    }
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(&pixels, cut.w, cut.h, image::ExtendedColorType::L8)
        .map_err(io::Error::other)?;
    Ok(Some(png))
}

/// The cut as JPEG; the frame itself where that is all of it. `None` when it cannot be decoded.
fn picture(frame: Vec<u8>, image: ImageSize, cut: Rect) -> Option<Vec<u8>> {
    if (cut.w, cut.h) == (image.width, image.height) {
        return Some(frame);
    }
    let decoded = thumbs::decode(&frame).ok()?.into_rgb8();
    let part = image::imageops::crop_imm(&decoded, cut.x, cut.y, cut.w, cut.h).to_image();
    let mut out = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, QUALITY)
        .write_image(&part, cut.w, cut.h, image::ExtendedColorType::Rgb8)
        .ok()?;
    Some(out)
}

impl<W: Write + Send> Export for Mvtec<W> {
    fn item(&mut self, item: &Item<'_>) -> Result<()> {
        let e = &item.anomaly.event;
        let defective = item.decision() == Some(Decision::Defect);
        let label = item.label_of(|label| self.folders.contains_key(label));
        let folder = if defective { self.folders.get(&label).map_or(super::DEFECT, String::as_str) } else { GOOD };
        let cut = self.cut(e);
        let file = format!("test/{folder}/{}.jpg", e.id);
        if item.pictures {
            let Some(frame) = item.store.object(e.id, ObjectName::Frame)? else { return Ok(()) }; // removed meanwhile
            let Some(picture) = picture(frame.bytes, e.image, cut) else {
                tracing::warn!(anomaly = %e.id, "its frame cannot be decoded and is left out of the export");
                return Ok(());
            };
            self.zip.add(&file, &picture).failed(cannot)?;
        }
        let mut mask_file = String::new();
        if defective && let Some(mask) = mask(&shape::marks(e, item.heat()?.as_ref()), cut).failed(cannot)? {
            mask_file = format!("ground_truth/{folder}/{}_mask.png", e.id);
            self.zip.add(&mask_file, &mask).failed(cannot)?;
        }
        let review = item.anomaly.review.as_ref();
        let row = [
            file,
            mask_file,
            e.id.to_string(),
            inert(&e.line),
            e.part.to_string(),
            e.captured_at.to_string(),
            e.verdict.as_str().into(),
            e.score.to_string(),
            item.decision().map_or("", Decision::as_str).into(),
            inert(review.and_then(|r| r.defect_type.as_deref()).unwrap_or_default()),
            cut.x.to_string(),
            cut.y.to_string(),
            cut.w.to_string(),
            cut.h.to_string(),
            inert(&format!("{}@{}", e.model.name, e.model.version)),
        ];
        self.manifest.write_record(row).failed(cannot)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Mvtec { mut zip, manifest, .. } = *self;
        let manifest = manifest.into_inner().map_err(|e| io::Error::other(e.to_string())).failed(cannot)?;
        zip.add_spool("manifest.csv", manifest).failed(cannot)?;
        zip.finish().map(drop).failed(cannot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folders_are_safe_and_distinct() {
        let labels = ["defect", "a/b", "a_b", "good", "Good", "../..", "..", "", "con\n", "ä"].map(String::from);
        let folders = folders(&labels);
        let mut all: Vec<&str> = folders.values().map(String::as_str).collect();
        assert!(all.iter().all(|f| f.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))), "{all:?}");
        assert!(!all.contains(&GOOD) && folders["defect"] == "defect");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), labels.len());
    }

    proptest! {
        #[test]
        fn cuts_stay_inside(
            (width, height) in (1..3000_u32, 1..3000_u32),
            (x, y, w, h) in any::<(u32, u32, u32, u32)>(),
            size in (1..4000_u32, 1..4000_u32),
        ) {
            let image = ImageSize { width, height };
            let part = shape::inside(image, x % width, y % height, w, h).unwrap_or(Rect { x: 0, y: 0, w: 1, h: 1 });
            let c = cut(image, part, size);
            prop_assert!(c.w == size.0.min(width) && c.h == size.1.min(height));
            prop_assert!(c.x + c.w <= width && c.y + c.h <= height);
        }
    }

    #[test]
    fn a_cut_holds_its_part_in_the_middle() {
        let image = ImageSize { width: 1280, height: 720 };
        let size = cut_size((200, 190));
        assert_eq!(size, (260, 250));
        assert_eq!(cut(image, Rect { x: 500, y: 300, w: 180, h: 190 }, size), Rect { x: 460, y: 270, w: 260, h: 250 });
        assert_eq!(cut(image, Rect { x: 0, y: 700, w: 20, h: 20 }, size), Rect { x: 0, y: 470, w: 260, h: 250 });
    }
}
