//! Judge: from scores to verdicts.

pub mod calibration;
pub mod regions;
pub mod truth;

pub use calibration::Calibration;
