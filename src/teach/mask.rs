//! What of a part is judged: all of it, what the user's mask leaves, or what was learned to be part.

use super::Options;
use super::parts::Part;
use super::pose::Posed;
use crate::detect::backbone::grid_of;
use crate::detect::head::map_size;
use crate::error::Result;
use crate::model::mask;
use crate::prepare::shrink::Size;

/// What is judged.
pub(super) enum Judged {
    All,
    /// The user's mask, in its own size.
    Given(image::GrayImage),
    /// What rigid registration learned to be part.
    Learned,
}

impl Judged {
    pub(super) fn new(options: &Options, posed: &Posed, parts: &[Part]) -> Result<Judged> {
        let Some(path) = options.mask.as_deref() else {
            return Ok(if posed.learned.is_some() { Judged::Learned } else { Judged::All });
        };
        let judged = match &posed.learned {
            Some(l) => [l.rigid.strip[2].round() as u32, l.rigid.strip[3].round() as u32],
            None => [parts[0].crop.width, parts[0].crop.height],
        };
        let map = map_size(grid_of(posed.size_at(parts, options.variant.side())));
        mask::load(path, judged, map).map(Judged::Given)
    }

    /// The mask at a map's size: 255 where it is judged, else 0.
    pub(super) fn at(&self, map: Size, posed: &Posed) -> Result<Option<Vec<u8>>> {
        match (self, &posed.learned) {
            (Judged::Given(mask), _) => mask::shrunk(mask, map).map(Some),
            (Judged::Learned, Some(learned)) => learned.mask(map).map(Some),
            _ => Ok(None),
        }
    }
}
