//! linesight: real-time smart-camera inspection.

pub mod error;
pub mod event;
pub mod review;
