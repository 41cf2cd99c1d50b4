//! Judge: from scores to verdicts.

pub mod calibration;
pub mod place;
pub mod regions;
pub mod truth;

pub use calibration::Calibration;
