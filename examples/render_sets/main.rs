//! Renders data sets for measuring how well detectors find defects, in the layout of MVTec AD (see docs/design/sets.md):
//!
//!     cargo run --release --example render_sets -- --out DIR

use clap::Parser;
use linesight::error::{Context, Result};
use linesight::staging::Staging;
use linesight_samples::sets::{Counts, KINDS, Kind};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Render data sets in the layout of MVTec AD
#[derive(Parser)]
struct Options {
    /// Which sets [default: all]
    #[arg(value_name = "KIND", value_parser = KINDS.map(|k| k.name))]
    kinds: Vec<String>,
    /// A folder for each set is made in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Another seed gives other parts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Images in train/good
    #[arg(long, default_value_t = 60)]
    teach: usize,
    /// Images in test/good
    #[arg(long, default_value_t = 60)]
    good: usize,
    /// Images in test with a defect, over all its kinds
    #[arg(long, default_value_t = 60)]
    defective: usize,
}

fn main() -> ExitCode {
    match Options::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.kind().exit_code())
        }
    }
}

impl Options {
    fn run(&self) -> Result<()> {
        let counts = Counts { teach: self.teach, good: self.good, defective: self.defective };
        std::fs::create_dir_all(&self.out).failed(|| format!("cannot make \"{}\"", self.out.display()))?;
        for kind in KINDS {
            if !self.kinds.is_empty() && !self.kinds.iter().any(|k| k == kind.name) {
                continue;
            }
            let start = Instant::now();
            let images = write(kind, self.seed, counts, &self.out.join(kind.name))?;
            println!("{}: {images} images in {:.1} s", kind.name, start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

/// Makes a set and writes it to the folder `out`, in place of an older set there; refuses a folder with other things.
fn write(kind: &Kind, seed: u64, counts: Counts, out: &Path) -> Result<usize> {
    let images = kind.images(counts);
    let marker = images.first().map(|image| kind.file(image)).unwrap_or_default();
    let staging = Staging::new(out, &marker)?;
    images.par_iter().try_for_each(|image| {
        let files = kind.files(seed, image).failed(|| format!("cannot encode \"{}\"", kind.file(image)))?;
        files.iter().try_for_each(|(name, bytes)| staging.write(name, bytes))
    })?;
    staging.publish()?;
    Ok(images.len())
}
