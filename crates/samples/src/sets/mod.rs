//! Data sets for measuring how well detectors find defects, in the layout of MVTec AD (see `docs/design/sets.md`).
//!
//! `set` which images there are and their truth · `render` light, lens, sensor · `marks` lines, spots, poses · `text` letters ·
//! one module for each kind of part.

mod bolt;
mod fabric;
mod gasket;
mod marks;
mod plate;
mod render;
mod set;
mod stone;
mod text;

pub use set::{Counts, Image, KINDS, Kind, Made};
