//! Inner loops over all pixels of all frames. A crate of their own, so that a test build can optimise them, which it does not with
//! the rest: there they were two thirds of what a line costs.

pub mod fetch;
pub mod resample;
