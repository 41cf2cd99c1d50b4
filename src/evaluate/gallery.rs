//! The worst errors of an evaluation, with pictures that are made while the frames are there.

use crate::error::Result;
use crate::evaluate::Scored;
use crate::event::Rect;
use crate::line::Judged;
use crate::picture;
use crate::prepare::shrink::{Crop, Size};

/// Most errors of each kind.
pub const WORST: usize = 6;
/// Longest side of a picture.
const LONGEST: u32 = 480;
/// The map's colours begin at three quarters of this share of the part's own highest value, so that also a part that
/// passed shows where it looked unusual.
const COLOUR_FROM: f32 = 0.6;

/// A defective part that passed, or a good one that did not.
pub struct Exhibit {
    /// Index of the judged part.
    pub index: usize,
    pub scored: Scored,
    pub reasons: Vec<String>,
    /// Where the part was judged, frame pixels; the pictures show this.
    pub part_box: Rect,
    pub picture_jpeg: Vec<u8>,
    /// Transparent, to be laid over the picture.
    pub heat_png: Vec<u8>,
    /// `[left, top, right, bottom)` of the true defect regions, frame pixels.
    pub regions: Vec<[u32; 4]>,
}

/// A judged part that might be among the worst.
pub struct Candidate<'a> {
    pub index: usize,
    pub scored: &'a Scored,
    pub judged: &'a Judged,
}

/// The worst errors: misses with the lowest scores, false rejects with the highest, worst first.
#[derive(Default)]
pub struct Gallery {
    pub misses: Vec<Exhibit>,
    pub false_rejects: Vec<Exhibit>,
}

impl Gallery {
    /// Takes a part if it is an error and among the worst so far; `regions` is asked only then.
    pub fn offer(&mut self, c: &Candidate<'_>, regions: impl FnOnce() -> Result<Vec<[u32; 4]>>) -> Result<()> {
        let (list, sign) = match (c.scored.defective, c.scored.verdict.is_anomaly()) {
            (true, false) => (&mut self.misses, 1.0),
            (false, true) => (&mut self.false_rejects, -1.0),
            _ => return Ok(()),
        };
        let key = sign * c.scored.score;
        let at = list.partition_point(|e| sign * e.scored.score <= key);
        if at >= WORST {
            return Ok(());
        }
        list.insert(at, exhibit(c, regions()?)?);
        list.truncate(WORST);
        Ok(())
    }

    /// Keeps the parts whose index is wanted.
    pub fn retain(&mut self, wanted: impl Fn(usize) -> bool) {
        self.misses.retain(|e| wanted(e.index));
        self.false_rejects.retain(|e| wanted(e.index));
    }
}

fn exhibit(c: &Candidate<'_>, regions: Vec<[u32; 4]>) -> Result<Exhibit> {
    let (frame, inspection) = (&c.judged.frame, &c.judged.inspection);
    let b = inspection.part_box;
    // a part can lie beyond the frame's edge almost wholly
    let part_box = if b.w < 2 || b.h < 2 { Rect { x: 0, y: 0, w: frame.width(), h: frame.height() } } else { b };
    let crop = Crop { x: part_box.x as i32, y: part_box.y as i32, width: part_box.w, height: part_box.h };
    let scale = (f64::from(LONGEST) / f64::from(part_box.w.max(part_box.h))).min(1.0);
    let side = |length: u32| (((f64::from(length) * scale) as u32) & !1).max(2);
    let size = Size { width: side(part_box.w), height: side(part_box.h) };
    let frame_size = Size { width: frame.width(), height: frame.height() };
    let values = c.judged.placed_map().in_frame(frame_size);
    let at = |x: u32, y: u32| {
        let fx = part_box.x + (x * part_box.w + part_box.w / 2) / size.width;
        let fy = part_box.y + (y * part_box.h + part_box.h / 2) / size.height;
        values
            [fy.min(frame_size.height - 1) as usize * frame_size.width as usize + fx.min(frame_size.width - 1) as usize]
    };
    Ok(Exhibit {
        index: c.index,
        scored: c.scored.clone(),
        reasons: inspection.reasons.clone(),
        part_box,
        picture_jpeg: picture::scaled_jpeg(frame, crop, size)?,
        heat_png: picture::heat_png(size, COLOUR_FROM * inspection.score, |x, y| Some(at(x, y)))?,
        regions,
    })
}
