//! The `linesight` command: reads arguments, starts logging, runs one command, turns its error into text and an exit code.

use clap::{Parser, ValueEnum};
use linesight::bench::Counting;
use linesight::commands::{self, Command};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Counts nothing unless `bench` asks.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Real-time smart-camera inspection: learns from good parts, judges every part, delivers anomalies for review.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    /// More log lines: -v what is done, -vv everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::try_parse().unwrap_or_else(|e| refuse(&e));
    start_logging(arguments.verbose, arguments.log_format);
    match commands::run(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            if arguments.log_format == LogFormat::Json {
                tracing::error!(hint = e.hint_text(), "{e}");
            } else {
                let mut stderr = std::io::stderr().lock();
                // with stderr gone there is nobody left to tell
                let _ = writeln!(stderr, "error: {e}");
                if let Some(hint) = e.hint_text() {
                    let _ = writeln!(stderr, "hint: {hint}");
                }
            }
            ExitCode::from(e.kind().exit_code())
        }
    }
}

/// Prints what clap says (help and version too) and exits; its errors read like all others.
fn refuse(e: &clap::Error) -> ! {
    if !e.use_stderr() {
        e.exit();
    }
    let text =
        e.to_string().replace("\n\nFor more information, try '--help'.", "\nhint: `--help` says what is accepted");
    // with stderr gone there is nobody left to tell
    let _ = write!(std::io::stderr().lock(), "{text}");
    std::process::exit(e.exit_code())
}

fn start_logging(verbose: u8, format: LogFormat) {
    let default = match verbose {
        0 => "linesight=warn",
        1 => "linesight=info",
        _ => "linesight=debug",
    };
    let filter = EnvFilter::try_from_env("LINESIGHT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
