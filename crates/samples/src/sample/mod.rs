//! The project's own sample recordings: washers on a belt (see `assets/README.md`).
//!
//! `washer` the part and its light · `defects` what can be wrong with it · `scene` belt, lens, sensor, and which part comes
//! when · `truth` the file beside a recording.

mod defects;
mod scene;
mod truth;
mod washer;

pub use scene::{DEFECTS, FPS, Frame, HEIGHT, Recording, SEED, WIDTH, run_belt};
pub use truth::{Part, Truth};
