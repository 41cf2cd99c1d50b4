//! linesight: real-time smart-camera inspection.

pub mod deliver;
pub mod error;
pub mod event;
