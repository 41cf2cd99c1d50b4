//! The whole pipeline over triggers, frame sizes, precisions and numbers of lines: `cargo bench --bench end_to_end`.
//!
//! Makes its own recordings from the bundled sample (x264; kept in target/bench/footage), teaches a model for each case and
//! has the built program measure it with `linesight bench`, each in a process of its own, so that memory and threads are
//! those of a real run. `LINESIGHT_BENCH_DATA` names a folder with a recording `*-teach.mp4` of good parts to use instead.
//! Prints tables; the raw results are in target/bench/end_to_end.json.
//!
//! After `--`: `--quick` (a minute: one case, two rounds), `--scaling` (also cores, inputs, frame sizes and banks, drawn as
//! curves in target/bench/scaling.svg), `--rounds N`, `--frames N`.

// a benchmark that cannot be set up has nothing to measure
#![allow(clippy::expect_used)]

mod curves;
mod footage;
mod report;
mod scaling;

use footage::{Footage, Size};
use report::Report;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// What is asked for.
pub struct Plan {
    quick: bool,
    scaling: bool,
    rounds: u32,
    frames: usize,
    out: PathBuf,
}

impl Plan {
    /// None when nothing is to be measured, which is how `cargo test` runs benchmarks.
    fn read(arguments: &[String]) -> Option<Plan> {
        let has = |flag: &str| arguments.iter().any(|a| a == flag);
        let value = |flag: &str| {
            let at = arguments.iter().position(|a| a == flag)?;
            Some(arguments.get(at + 1).and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("{flag} wants a number")))
        };
        let quick = has("--quick");
        has("--bench").then(|| Plan {
            quick,
            scaling: has("--scaling"),
            rounds: value("--rounds").unwrap_or(if quick { 2 } else { 5 }),
            frames: value("--frames").unwrap_or(if quick { 300 } else { 600 }) as usize,
            out: Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench"),
        })
    }
}

/// One model on one recording.
#[derive(Clone, Copy, PartialEq)]
pub struct Case {
    pub size: Size,
    pub trigger: &'static str,
    pub registration: &'static str,
    pub precision: &'static str,
    pub variant: &'static str,
    pub method: &'static str,
}

impl Case {
    pub const BASE: Case = Case {
        size: Size::HD,
        trigger: "frame",
        registration: "none",
        precision: "int8",
        variant: "balanced",
        method: "ppca",
    };

    fn name(&self) -> String {
        let Case { size, trigger, registration, precision, variant, method } = self;
        format!("{}-{trigger}-{registration}-{precision}-{variant}-{method}", size.name())
    }
}

/// How a case is measured.
#[derive(Clone, Copy, Default)]
pub struct Way<'a> {
    pub lines: &'a [usize],
    pub realtime: bool,
    /// Cores that the program gets, from the first; none: all.
    pub cores: Option<usize>,
    pub rounds: u32,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(plan) = Plan::read(&arguments) else {
        println!("nothing measured: run `cargo bench --bench end_to_end`");
        return ExitCode::SUCCESS;
    };
    let started = Instant::now();
    let footage = Footage::new(&plan);
    let mut report = Report::new(&arguments[1..]);
    let runs: Vec<Case> = match plan.quick {
        true => vec![Case::BASE],
        false => matrix(),
    };
    for case in runs {
        let lines: &[usize] = if !plan.quick && case == Case::BASE { &[2, 4] } else { &[] };
        // the other precisions are there to be compared, not to be met
        let rounds = if case.precision == Case::BASE.precision { plan.rounds } else { plan.rounds.min(3) };
        match bench(&plan, &footage, &case, &Way { lines, rounds, ..Way::default() }) {
            Ok(outcome) => report.whole(&case, outcome),
            Err(why) => eprintln!("{}: left out: {why}", case.name()),
        }
    }
    if !plan.quick {
        // paced rounds take as long as the recording
        let rounds = plan.rounds.min(2);
        for way in [
            Way { realtime: true, cores: Some(1), rounds, lines: &[] },
            Way { realtime: true, cores: None, rounds, lines: &[2, 4] },
        ] {
            match bench(&plan, &footage, &Case::BASE, &way) {
                Ok(outcome) => report.paced(&Case::BASE, &way, outcome),
                Err(why) => eprintln!("real time: left out: {why}"),
            }
        }
    }
    if plan.scaling {
        scaling::run(&plan, &footage, &mut report);
    }
    let file = plan.out.join("end_to_end.json");
    report.save(&file);
    println!("{}", report.text());
    println!("{:.0} s; raw results in {}", started.elapsed().as_secs_f64(), file.display());
    ExitCode::SUCCESS
}

/// Triggers, frame sizes and precisions; and registration, where it costs most.
fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [Size::HD, Size::FULL_HD] {
        for (trigger, registration) in [("frame", "none"), ("presence", "shift")] {
            for precision in ["int8", "bf16", "f32"] {
                cases.push(Case { size, trigger, registration, precision, ..Case::BASE });
            }
        }
        cases.push(Case { size, registration: "shift", ..Case::BASE });
    }
    cases
}

/// Teaches the case's model and measures it.
pub fn bench(plan: &Plan, footage: &Footage, case: &Case, way: &Way<'_>) -> Result<Value, String> {
    let model = plan.out.join("models").join(case.name());
    std::fs::create_dir_all(plan.out.join("models")).map_err(|e| e.to_string())?;
    let _ = std::fs::remove_dir_all(&model);
    let program = env!("CARGO_BIN_EXE_linesight");
    let mut teach = Command::new(program);
    teach
        .arg("teach")
        .args(["--trigger", case.trigger, "--registration", case.registration, "--precision", case.precision])
        .args(["--variant", case.variant, "--method", case.method, "--good"])
        .arg(footage.teach(case.size))
        .arg("--out")
        .arg(&model);
    run(&mut teach)?;
    let mut command = match way.cores {
        None => Command::new(program),
        Some(n) => {
            let mut pinned = Command::new("taskset");
            pinned.arg("--cpu-list").arg(format!("0-{}", n - 1)).arg(program);
            pinned
        }
    };
    command.args(["bench", "--json", "--rounds", &way.rounds.to_string(), "--model"]).arg(&model);
    if !way.lines.is_empty() {
        command.args(["--lines", &way.lines.iter().map(usize::to_string).collect::<Vec<_>>().join(",")]);
    }
    if way.realtime {
        command.arg("--realtime");
    }
    let text = run(command.arg(footage.run(case.size)))?;
    eprintln!("{}", case.name());
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

/// What a program printed.
fn run(command: &mut Command) -> Result<String, String> {
    let done = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    match done.status.success() {
        true => String::from_utf8(done.stdout).map_err(|e| e.to_string()),
        false => Err(said.lines().filter(|l| l.starts_with("error:")).collect::<Vec<_>>().join("; ")),
    }
}
