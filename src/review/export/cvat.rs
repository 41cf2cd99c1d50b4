//! CVAT for images 1.1: `annotations.xml` and `images/<id>.jpg`.
//!
//! An image for each anomaly; what was decided is its tag, and each region of a defect a box with the defect type as its label.
//!
//! Thread: that of the caller; blocks.
//!
//! Invariants:
//! 1. Whatever the text, the document is well-formed. Tests: `text_cannot_leave_its_place`, and `hostile_names_are_inert` in
//!    tests/review_export.rs.

use std::io::{self, Write};

use super::zip::{Spool, Zip};
use super::{Export, Item, Survey, shape};
use crate::error::{Context, Result};
use crate::review::store::Decision;

/// The archive as it grows.
pub struct Cvat<W: Write> {
    zip: Zip<W>,
    labels: Vec<String>,
    images: Spool,
    count: u64,
}

fn cannot() -> &'static str {
    "cannot write the CVAT export"
}

impl<W: Write> Cvat<W> {
    /// An empty one.
    pub fn new(zip: Zip<W>, survey: &Survey) -> Result<Cvat<W>> {
        let images = zip.spool().failed(cannot)?;
        Ok(Cvat { zip, labels: survey.labels(), images, count: 0 })
    }

    fn write(&mut self, item: &Item<'_>) -> io::Result<()> {
        let e = &item.anomaly.event;
        let out = &mut self.images;
        let (width, height) = (e.image.width, e.image.height);
        writeln!(out, "  <image id=\"{}\" name=\"{}.jpg\" width=\"{width}\" height=\"{height}\">", self.count, e.id)?;
        self.count += 1;
        if item.decision() == Some(Decision::Defect) {
            let label = xml(&item.label(&self.labels));
            for (b, score) in shape::boxes(e) {
                let (right, bottom) = (b.x + b.w, b.y + b.h);
                writeln!(
                    out,
                    "    <box label=\"{label}\" source=\"auto\" occluded=\"0\" xtl=\"{}.00\" ytl=\"{}.00\" xbr=\"{right}.00\" \
                     ybr=\"{bottom}.00\" z_order=\"0\">",
                    b.x, b.y
                )?;
                if let Some(score) = score {
                    writeln!(out, "      <attribute name=\"score\">{score}</attribute>")?;
                }
                writeln!(out, "    </box>")?;
            }
        }
        if let Some(decision) = item.decision() {
            writeln!(out, "    <tag label=\"decision\" source=\"manual\">")?;
            let line = e.line.as_str();
            let comment = item.anomaly.review.as_ref().and_then(|r| r.comment.as_deref()).unwrap_or_default();
            for (name, value) in [("decision", decision.as_str()), ("line", line), ("comment", comment)] {
                writeln!(out, "      <attribute name=\"{name}\">{}</attribute>", xml(value))?;
            }
            writeln!(out, "    </tag>")?;
        }
        writeln!(out, "  </image>")
    }
}

impl<W: Write + Send> Export for Cvat<W> {
    fn item(&mut self, item: &Item<'_>) -> Result<()> {
        if item.add_frame(&mut self.zip, &format!("images/{}.jpg", item.anomaly.event.id))? {
            self.write(item).failed(cannot)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Cvat { mut zip, labels, images, count } = *self;
        let all = || -> io::Result<()> {
            let mut whole = zip.spool()?;
            writeln!(whole, "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<annotations>\n  <version>1.1</version>")?;
            writeln!(whole, "  <meta>\n    <task>\n      <name>linesight</name>\n      <size>{count}</size>")?;
            writeln!(whole, "      <mode>annotation</mode>\n      <overlap>0</overlap>\n      <labels>")?;
            let attribute = |name: &str, kind: &str, values: &str| {
                format!(
                    "          <attribute><name>{name}</name><mutable>False</mutable><input_type>{kind}</input_type>\
                     <default_value></default_value><values>{values}</values></attribute>\n"
                )
            };
            let score = attribute("score", "text", "");
            let words = Decision::ALL.map(Decision::as_str).join("\n");
            let tag = [
                attribute("decision", "select", &words),
                attribute("line", "text", ""),
                attribute("comment", "text", ""),
            ];
            let labels = labels.iter().map(|name| (xml(name), score.clone()));
            for (name, attributes) in labels.chain([("decision".into(), tag.concat())]) {
                write!(
                    whole,
                    "        <label><name>{name}</name><attributes>\n{attributes}        </attributes></label>\n"
                )?;
            }
            writeln!(whole, "      </labels>\n    </task>\n  </meta>")?;
            io::copy(&mut images.read()?, &mut whole)?;
            writeln!(whole, "</annotations>")?;
            zip.add_spool("annotations.xml", whole)?;
            zip.finish().map(drop)
        };
        all().failed(cannot)
    }
}

/// Text as XML has it, in an element or an attribute; characters that XML 1.0 cannot have are replaced.
pub fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(c))),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(
            xml("\"/><script a='b'>&\u{0}\n]]>"),
            "&quot;/&gt;&lt;script a=&apos;b&apos;&gt;&amp;\u{fffd}&#10;]]&gt;"
        );
    }
}
