//! Judge: from scores to verdicts.

pub mod calibration;
pub mod debounce;
pub mod drift;
pub mod place;
pub mod regions;
pub mod truth;

pub use calibration::Calibration;
pub use debounce::Debounce;
pub use drift::Drift;
