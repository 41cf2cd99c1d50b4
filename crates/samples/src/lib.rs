//! Draws what the project is tried and measured with, from a seed, so that anybody can make it again. Nothing is written
//! here: `examples/` has the programs that do.
//!
//! [`sample`] the recordings in `assets/` · [`sets`] data sets in the layout of MVTec AD · beside them what both draw with:
//! `noise` random numbers, `shapes` distances, `tone` gamma.
//!
//! A crate of its own, so that a test build can optimise it, and tests and programs share it.

mod noise;
pub mod sample;
pub mod sets;
mod shapes;
mod tone;
