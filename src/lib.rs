//! linesight: real-time smart-camera inspection. Learns from good parts, judges every part, delivers anomalies for review.
//!
//! ```text
//!  capture ──► prepare ──► detect ──► judge ──► deliver ──► review
//!  frames in   ROI,        features,  verdict,  ledger,     endpoint and pages
//!  the         locate,     anomaly    reasons,  spool,      (another process, or any
//!  decoder's   register,   map,       regions   upload      HTTP server)
//!  format      shrink      score
//!     └─────────── line: threads and channels ─────┘
//!
//!  teach = capture ──► prepare ──► features ──► fit, hold out, calibrate ──► model package
//! ```
//!
//! Dependencies point one way, in the order of the picture; [`review`] knows nothing of what stands left of it. The way of one
//! frame through the modules is in ARCHITECTURE.md, the reasons are in docs/design.
//!
//! | module | what |
//! |---|---|
//! | [`commands`] | one file for each command: arguments, output, exit code |
//! | [`config`] | line.toml: types, defaults, errors with file, line and key |
//! | [`plant`] | all lines of a process: starts, watches, reloads, stops |
//! | [`line`](mod@line) | wires one line: its threads, channels, times and verdicts |
//! | [`capture`] | GStreamer: sources, pipeline templates, frames out of the appsink |
//! | [`frame`] | one mapped buffer: planes, colorimetry, times |
//! | [`prepare`] | locating and following parts, registration, light, shrinking to the network's input |
//! | [`detect`] | OpenVINO runtime and devices, the feature network, the normality head |
//! | [`judge`] | threshold and confidence, regions, comparison with a truth |
//! | [`event`] | what leaves the machine, as JSON; all that deliver and review share |
//! | [`picture`] | the JPEG and the heatmap of an anomaly |
//! | [`respond`] | answers to the plant, the moment a verdict falls |
//! | [`deliver`] | ledger and spool in one database, uploader |
//! | [`review`] | the bundled endpoint: API, store, pages |
//! | [`teach`] | good parts in, a calibrated model out |
//! | [`evaluate`](mod@evaluate) | how well a model does on parts with known truth: metrics and the report |
//! | [`bench`] | what a model costs on this machine: stages alone, whole lines, allocations |
//! | [`model`] | the model package: manifest, checksums, files |
//! | [`observe`] | state and counters of each line, camera health, drift, metrics |
//! | `lock` | one process per database or folder |
//! | `priority` | which threads stand behind the lines' |
//! | `round` | to whole numbers, as processors do it faster when told how |
//! | `hex` | checksums as text |
//! | [`staging`] | output folders that are there wholly or not at all |
//! | [`error`] | kind, message, hint, cause; exit codes |

pub mod bench;
pub mod capture;
pub mod commands;
pub mod config;
pub mod deliver;
pub mod detect;
pub mod error;
pub mod evaluate;
pub mod event;
pub mod frame;
mod hex;
pub mod judge;
pub mod line;
mod lock;
pub mod model;
pub mod observe;
pub mod picture;
pub mod plant;
pub mod prepare;
mod priority;
pub mod respond;
pub mod review;
pub mod staging;
pub mod teach;
