//! Detect: OpenVINO runs the backbone asynchronously; the head turns features into an anomaly map and a score.

pub mod backbone;
mod cache;
mod enlarge;
pub mod head;
pub mod patchcore;
pub mod ppca;
pub mod runtime;

pub use backbone::{Backbone, Device, Hint, Precision, Request};
pub use head::{AnomalyMap, Detector, Head};
