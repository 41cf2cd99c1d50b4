//! One file for each command. Each has its arguments (clap) and a `run` that returns the exit code.

mod bench;
mod cameras;
mod demo;
mod doctor;
mod evaluate;
mod inspect;
mod ledger;
mod model;
mod review;
mod run;
mod spool;
mod status;
mod teach;
mod terminal;

use crate::error::{Context, Result};
use clap::Subcommand;
use serde::Serialize;
use std::io::Write;

#[derive(Subcommand)]
pub enum Command {
    /// Teach, inspect and review the bundled sample recording.
    Demo(demo::Arguments),
    /// Learn a model from good parts.
    Teach(teach::Arguments),
    /// Measure a model on parts whose truth is known.
    Evaluate(evaluate::Arguments),
    /// Inspect a recording, an image or a folder of images with a model.
    Inspect(inspect::Arguments),
    /// Run lines around the clock, as a line.toml says.
    Run(run::Arguments),
    /// Serve the review endpoint and its pages.
    Review(review::Arguments),
    /// Ask a running linesight how its lines are.
    Status(status::Arguments),
    /// Measure what a model costs on this machine.
    Bench(bench::Arguments),
    /// List the cameras that are attached, with the source lines to paste.
    Cameras(cameras::Arguments),
    /// Check what this machine has and say what is missing.
    Doctor(doctor::Arguments),
    /// List, export and check the ledger: a row for each part.
    Ledger(ledger::Arguments),
    /// Look at the anomalies that wait, send them again, export them, give them up.
    Spool(spool::Arguments),
    /// Look at a model package, check it, calibrate it for another device.
    Model(model::Arguments),
}

/// Runs a command; the result is the process's exit code.
pub fn run(command: Command) -> Result<u8> {
    match command {
        Command::Demo(a) => demo::run(a),
        Command::Teach(a) => teach::run(a),
        Command::Evaluate(a) => evaluate::run(a),
        Command::Inspect(a) => inspect::run(a),
        Command::Run(a) => run::run(a),
        Command::Review(a) => review::run(a),
        Command::Status(a) => status::run(a),
        Command::Bench(a) => bench::run(a),
        Command::Cameras(a) => cameras::run(a),
        Command::Doctor(a) => doctor::run(a),
        Command::Ledger(a) => ledger::run(a),
        Command::Spool(a) => spool::run(a),
        Command::Model(a) => model::run(a),
    }
}

/// Prints one JSON document to stdout.
fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).failed(|| "the result cannot be written as JSON")?;
    print_text(&text)
}

/// Prints to stdout. A reader that has read enough (`| head`) is no failure of the work that was done.
fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.failed(|| "cannot write to stdout"),
    }
}
