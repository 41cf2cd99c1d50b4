//! Renders the project's own sample recordings (see assets/README.md):
//!
//!     cargo run --release --example render_sample -- --out assets
//!
//! `encode` makes the video.

mod encode;

use clap::Parser;
use linesight::error::{Context, Error, Result};
use linesight_samples::sample::{Frame, HEIGHT, Recording, SEED, Truth, WIDTH};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Frames rendered side by side before they go to the encoder in order.
const BATCH: usize = 16;

/// Render the sample recordings
#[derive(Parser)]
struct Options {
    /// Folder for the recordings and their truth files
    #[arg(long, default_value = "assets")]
    out: PathBuf,
    /// Another seed gives other parts
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// Constant rate factor of the encoder; lower is better and bigger
    #[arg(long, default_value_t = 26)]
    quality: u32,
    /// Only this recording
    #[arg(long, value_parser = ["teach", "run"])]
    only: Option<String>,
    /// Write the frame at which each part is centred as a PNG instead of the video
    #[arg(long)]
    stills: bool,
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
        for (name, make) in [("teach", Recording::teach as fn(u64) -> Recording), ("run", Recording::run)] {
            if self.only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            let recording = make(self.seed);
            let name = format!("sample-{name}");
            if self.stills {
                stills(&recording, &self.out, &name)?;
            } else {
                self.record(&recording, &name)?;
            }
        }
        Ok(())
    }

    fn record(&self, recording: &Recording, name: &str) -> Result<()> {
        let video = format!("{name}.mp4");
        let mut encoder = encode::Encoder::create(&self.out.join(&video), self.quality)?;
        for first in (0..recording.frames()).step_by(BATCH) {
            let batch = first..(first + BATCH).min(recording.frames());
            let frames: Vec<Frame> = batch.into_par_iter().map(|n| recording.render(n)).collect();
            frames.iter().try_for_each(|frame| encoder.push(frame))?;
        }
        encoder.finish()?;
        let path = self.out.join(format!("{name}.truth.json"));
        let text = indented(&recording.truth(&video))?;
        std::fs::write(&path, text).failed(|| format!("cannot write \"{}\"", path.display()))?;
        println!("{video}: {} frames", recording.frames());
        Ok(())
    }
}

/// JSON with one space of indentation, as in the other truth files.
fn indented(truth: &Truth) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let style = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, style);
    serde::Serialize::serialize(truth, &mut writer).failed(|| "cannot write the truth file")?;
    text.push(b'\n');
    Ok(text)
}

fn stills(recording: &Recording, out: &Path, name: &str) -> Result<()> {
    recording.truth(name).parts.par_iter().try_for_each(|part| {
        let frame = recording.render(part.centre);
        let path = out.join(format!("{name}-{:02}-{}.png", part.part, part.label));
        let at = |x: u32, y: u32| image::Rgb(rgb(&frame, x as usize, y as usize));
        image::RgbImage::from_fn(WIDTH as u32, HEIGHT as u32, at)
            .save(&path)
            .map_err(|e| Error::failed(format!("cannot write \"{}\"", path.display())).because(e))
    })
}

fn rgb(frame: &Frame, x: usize, y: usize) -> [u8; 3] {
    let c = y / 2 * (WIDTH / 2) + x / 2;
    let l = (f32::from(frame.y[y * WIDTH + x]) - 16.0) * (255.0 / 219.0);
    let (u, v) = ((f32::from(frame.u[c]) - 128.0) * (255.0 / 224.0), (f32::from(frame.v[c]) - 128.0) * (255.0 / 224.0));
    [l + 1.5748 * v, l - 0.1873 * u - 0.4681 * v, l + 1.8556 * u].map(|c| c.round().clamp(0.0, 255.0) as u8)
}
