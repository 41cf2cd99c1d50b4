//! COCO: `annotations/instances_default.json` and `images/default/<id>.jpg`, as pycocotools, CVAT and datumaro read it.
//!
//! An image for each part that was judged a defect or a false alarm; a false alarm has no annotation. Each region of a defect is
//! one: its box, and as segmentation (uncompressed run lengths) what the heatmap marks in it. Its category is the defect type, or
//! `defect` where none was given. Members that COCO does not have are in `linesight`.
//!
//! Thread: that of the caller; blocks.

use std::io::{self, Write};

use serde_json::json;

use super::zip::{Spool, Zip};
use super::{Export, Item, Survey, shape};
use crate::error::{Context, Result};
use crate::review::store::Decision;

/// The archive as it grows: pictures go out, what is said about them waits for its end.
pub struct Coco<W: Write> {
    zip: Zip<W>,
    categories: Vec<String>,
    images: (u64, Spool),
    annotations: (u64, Spool),
}

fn cannot() -> &'static str {
    "cannot write the COCO export"
}

impl<W: Write> Coco<W> {
    /// An empty one.
    pub fn new(zip: Zip<W>, survey: &Survey) -> Result<Coco<W>> {
        let (images, annotations) = (zip.spool().failed(cannot)?, zip.spool().failed(cannot)?);
        Ok(Coco { zip, categories: survey.labels(), images: (0, images), annotations: (0, annotations) })
    }
}

/// One more element of an array.
fn element((count, spool): &mut (u64, Spool), value: impl FnOnce(u64) -> serde_json::Value) -> io::Result<u64> {
    spool.write_all(if *count == 0 { b"\n" } else { b",\n" })?;
    *count += 1;
    serde_json::to_writer(&mut *spool, &value(*count))?;
    Ok(*count)
}

impl<W: Write + Send> Export for Coco<W> {
    fn item(&mut self, item: &Item<'_>) -> Result<()> {
        let (e, decision) = (&item.anomaly.event, item.decision());
        let file = format!("{}.jpg", e.id);
        if !item.add_frame(&mut self.zip, &format!("images/default/{file}"))? {
            return Ok(()); // removed meanwhile
        }
        let image = element(&mut self.images, |id| {
            json!({
                "id": id, "file_name": file, "width": e.image.width, "height": e.image.height,
                "date_captured": e.captured_at, "license": 0,
                "linesight": {
                    "id": e.id, "decision": decision.map(Decision::as_str), "tags": [decision.map(Decision::as_str)],
                    "line": e.line, "part": e.part, "score": e.score, "confidence": e.confidence,
                    "comment": item.anomaly.review.as_ref().and_then(|r| r.comment.as_deref()),
                    "model": format!("{}@{}", e.model.name, e.model.version),
                },
            })
        })
        .failed(cannot)?;
        if decision != Some(Decision::Defect) {
            return Ok(());
        }
        let label = item.label(&self.categories);
        let category = self.categories.iter().position(|c| *c == label).unwrap_or(0) + 1;
        for mark in shape::marks(e, item.heat()?.as_ref()) {
            let b = mark.bounds;
            element(&mut self.annotations, |id| {
                let mut annotation = json!({
                    "id": id, "image_id": image, "category_id": category, "bbox": [b.x, b.y, b.w, b.h],
                    "area": mark.area(), "iscrowd": 0,
                    "segmentation": { "size": [e.image.height, e.image.width], "counts": mark.rle(e.image) },
                });
                // datumaro refuses a score that is null
                if let Some(score) = mark.score.filter(|score| score.is_finite()) {
                    annotation["score"] = json!(score);
                }
                annotation
            })
            .failed(cannot)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Coco { mut zip, categories, images, annotations } = *self;
        let all = || -> io::Result<()> {
            let mut whole = zip.spool()?;
            let info = json!({ "description": "linesight: reviewed anomalies", "version": env!("CARGO_PKG_VERSION") });
            let categories: Vec<_> = categories
                .iter()
                .zip(1..)
                .map(|(name, id)| json!({ "id": id, "name": name, "supercategory": "defect" }))
                .collect();
            write!(whole, "{{\"info\":{info},\"licenses\":[],\"categories\":{},\"images\":[", json!(categories))?;
            io::copy(&mut images.1.read()?, &mut whole)?;
            whole.write_all(b"],\"annotations\":[")?;
            io::copy(&mut annotations.1.read()?, &mut whole)?;
            whole.write_all(b"]}\n")?;
            zip.add_spool("annotations/instances_default.json", whole)?;
            zip.finish().map(drop)
        };
        all().failed(cannot)
    }
}
