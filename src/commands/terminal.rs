//! Progress on a terminal, nothing when piped; Ctrl-C and SIGTERM.

use crate::error::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(800);

/// One bar on stderr that changes its label from stage to stage. indicatif draws nothing when stderr is no terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    stage: RefCell<String>,
    started: std::time::Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        Progress { bar, stage: RefCell::new(String::new()), started: std::time::Instant::now() }
    }

    pub(super) fn report(&self, stage: &str, done: u64, of: Option<u64>) {
        if self.bar.is_hidden() && self.started.elapsed() > PATIENCE {
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        if *self.stage.borrow() != stage {
            *self.stage.borrow_mut() = stage.to_owned();
            let template = if of.is_some() {
                "{msg:>10} {bar:32} {pos}/{len} {per_sec} {eta}"
            } else {
                "{msg:>10} {spinner} {pos}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_message(stage.to_owned());
        }
        if let Some(of) = of {
            self.bar.set_length(of.max(done));
        }
        self.bar.set_position(done);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Waits until `stop` is set.
pub(super) fn wait_for(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A flag that the first Ctrl-C or SIGTERM sets; the second ends the process at once.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // registered first, so that it sees the flag as the first signal left it
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())
            .failed(|| "no handler for Ctrl-C")?;
        signal_hook::flag::register(signal, flag.clone()).failed(|| "no handler for Ctrl-C")?;
    }
    Ok(flag)
}
