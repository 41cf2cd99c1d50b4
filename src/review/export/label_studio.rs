//! Label Studio: `tasks.json` to import, `label-config.xml` for the project, and `images/<id>.jpg`.
//!
//! A task for each anomaly, whatever was decided. What the model saw is its prediction (rectangles, in percent), what people
//! decided is its annotation: the choice `decision`, and for a defect the rectangles with its type.
//!
//! Thread: that of the caller; blocks.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::cvat::xml;
use super::zip::{Spool, Zip};
use super::{Export, Item, Survey, shape};
use crate::error::{Context, Result};
use crate::event::Event;
use crate::review::store::Decision;

/// Where Label Studio serves files of its own machine from; the archive is unpacked there, in a folder `linesight`.
const PLACE: &str = "/data/local-files/?d=linesight/images";

/// The archive as it grows.
pub struct LabelStudio<W: Write> {
    zip: Zip<W>,
    labels: Vec<String>,
    tasks: Spool,
    first: bool,
}

fn cannot() -> &'static str {
    "cannot write the Label Studio export"
}

impl<W: Write> LabelStudio<W> {
    /// An empty one.
    pub fn new(zip: Zip<W>, survey: &Survey) -> Result<LabelStudio<W>> {
        let mut tasks = zip.spool().failed(cannot)?;
        tasks.write_all(b"[").failed(cannot)?;
        Ok(LabelStudio { zip, labels: survey.labels(), tasks, first: true })
    }
}

fn rectangles(e: &Event, label: &str, prefix: &str) -> Vec<Value> {
    let percent = |v: u32, all: u32| f64::from(v) * 100.0 / f64::from(all.max(1));
    let (width, height) = (e.image.width, e.image.height);
    let rectangle = |(n, (b, score)): (usize, (crate::event::Rect, Option<f32>))| {
        json!({
            "id": format!("{prefix}{n}"), "from_name": "regions", "to_name": "image", "type": "rectanglelabels",
            "original_width": width, "original_height": height, "image_rotation": 0, "score": score,
            "value": {
                "x": percent(b.x, width), "y": percent(b.y, height), "width": percent(b.w, width),
                "height": percent(b.h, height), "rotation": 0, "rectanglelabels": [label],
            },
        })
    };
    shape::boxes(e).into_iter().enumerate().map(rectangle).collect()
}

impl<W: Write + Send> Export for LabelStudio<W> {
    fn item(&mut self, item: &Item<'_>) -> Result<()> {
        let e = &item.anomaly.event;
        if !item.add_frame(&mut self.zip, &format!("images/{}.jpg", e.id))? {
            return Ok(());
        }
        let predicted = if e.regions.is_empty() { Vec::new() } else { rectangles(e, super::DEFECT, "p") };
        let mut annotations = Vec::new();
        if let Some((review, decision)) = item.anomaly.review.as_ref().and_then(|r| Some((r, r.decision?))) {
            let mut result = vec![json!({
                "id": "d", "from_name": "decision", "to_name": "image", "type": "choices",
                "value": { "choices": [decision.as_str()] },
            })];
            if decision == Decision::Defect {
                result.extend(rectangles(e, &item.label(&self.labels), "a"));
            }
            if let Some(comment) = &review.comment {
                result.push(json!({
                    "id": "c", "from_name": "comment", "to_name": "image", "type": "textarea", "value": { "text": [comment] },
                }));
            }
            annotations.push(json!({
                "result": result, "was_cancelled": false, "ground_truth": false, "created_at": review.at,
            }));
        }
        let task = json!({
            "data": {
                "image": format!("{PLACE}/{}.jpg", e.id), "anomaly": e.id, "line": e.line, "part": e.part,
                "captured_at": e.captured_at, "verdict": e.verdict, "score": e.score, "confidence": e.confidence,
                "reviewer": item.anomaly.review.as_ref().map(|r| r.reviewer.as_str()),
            },
            "predictions": [{
                "model_version": format!("{}@{}", e.model.name, e.model.version), "score": e.confidence, "result": predicted,
            }],
            "annotations": annotations,
        });
        let mut write = || -> io::Result<()> {
            self.tasks.write_all(if self.first { b"\n" } else { b",\n" })?;
            self.first = false;
            Ok(serde_json::to_writer(&mut self.tasks, &task)?)
        };
        write().failed(cannot)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let LabelStudio { mut zip, labels, mut tasks, .. } = *self;
        let mut config = String::from("<View>\n  <Image name=\"image\" value=\"$image\" zoom=\"true\"/>\n");
        config.push_str("  <RectangleLabels name=\"regions\" toName=\"image\">\n");
        for label in &labels {
            config.push_str(&format!("    <Label value=\"{}\"/>\n", xml(label)));
        }
        config.push_str("  </RectangleLabels>\n  <Choices name=\"decision\" toName=\"image\" choice=\"single\">\n");
        for decision in Decision::ALL {
            config.push_str(&format!("    <Choice value=\"{}\"/>\n", decision.as_str()));
        }
        config
            .push_str("  </Choices>\n  <TextArea name=\"comment\" toName=\"image\" maxSubmissions=\"1\"/>\n</View>\n");
        let all = || -> io::Result<()> {
            tasks.write_all(b"]\n")?;
            zip.add_spool("tasks.json", tasks)?;
            zip.add("label-config.xml", config.as_bytes())?;
            zip.finish().map(drop)
        };
        all().failed(cannot)
    }
}
