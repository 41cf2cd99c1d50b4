//! linesight: real-time smart-camera inspection.

pub mod capture;
pub mod commands;
pub mod deliver;
pub mod detect;
pub mod error;
pub mod event;
pub mod frame;
pub mod judge;
pub mod line;
pub mod model;
pub mod picture;
pub mod prepare;
pub mod review;
pub mod staging;
pub mod teach;
