//! Inner loops: over all pixels of all frames, all vectors of a bank, all positions of a part. A crate of their own, so that a
//! test build can optimise them, which it does not with the rest: there they were two thirds of what a line costs, and half of
//! teaching.

pub mod contrast;
pub mod eigen;
pub mod fetch;
pub mod k_center;
pub mod nearest;
pub mod resample;
pub mod round;
pub mod smooth;
