//! The built-in networks are the ones their weights make, and OpenVINO computes them here as elsewhere.

#![allow(clippy::unwrap_used)]

mod support;

use linesight::detect::backbone::{Backbone, Options};
use linesight::detect::{Device, Precision};
use linesight::prepare::shrink::Size;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use support::*;

/// The Python with models/requirements.txt, if there is one.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("LINESIGHT_MODELS_PYTHON").map(PathBuf::from);
    named.or_else(|| Some(root().join(".venv/bin/python"))).filter(|p| p.is_file())
}

/// models/make_backbones.py finds the stored networks to be what the published weights make.
#[test]
fn the_stored_networks_are_what_their_weights_make() {
    let Some(python) = python() else {
        println!(
            "skipped: neither LINESIGHT_MODELS_PYTHON nor .venv/bin/python is there; `make test` makes the latter"
        );
        return;
    };
    let check = Command::new(python).current_dir(root()).args(["models/make_backbones.py", "check"]).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(
        check.status.success() && text.trim_end().ends_with("all good"),
        "{text}{}",
        String::from_utf8_lossy(&check.stderr)
    );
}

/// The picture "edges" of models/make_backbones.py: coloured edges with a dark disc.
fn edges(width: usize, height: usize) -> Vec<u8> {
    let (cx, cy, r) = (width as f64 * 0.3, height as f64 * 0.6, height as f64 * 0.2);
    let pixel = |x: usize, y: usize| {
        let (dx, dy) = (x as f64 - cx, y as f64 - cy);
        match (x / 13 + y / 29).is_multiple_of(2) {
            _ if dx * dx + dy * dy < r * r => [12, 14, 9],
            true => [200, 90, 40],
            false => [60, 160, 220],
        }
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect()
}

/// The features of a picture that needs no file have the means, channel by channel, that plain numpy in f64 computed from
/// the published weights (tests/data/README.md says how), and are the same twice.
#[test]
fn features_have_the_committed_means() {
    let text = std::fs::read(root().join("tests/data/backbone-means.json")).unwrap();
    let wanted: BTreeMap<String, Vec<f64>> = serde_json::from_slice(&text).unwrap();
    assert_eq!(wanted.len(), 2);
    for (id, means) in wanted {
        let mut backbone = Backbone::compile(&Options {
            backbone: id.clone(),
            input: Size { width: 256, height: 256 },
            device: "CPU".parse::<Device>().unwrap(),
            precision: Precision::F32,
            allow_fallback: false,
            throughput: false,
        })
        .unwrap();
        assert_eq!((backbone.grid(), backbone.channels()), (Size { width: 32, height: 32 }, means.len()), "{id}");
        let mut features = |_| {
            let mut request = backbone.request().unwrap();
            request.input().unwrap().copy_from_slice(&edges(256, 256));
            request.start().unwrap();
            request.wait().unwrap().to_vec()
        };
        let [first, second] = [0, 1].map(&mut features);
        assert!(first == second, "{id}: the same twice");
        assert_eq!(first.len(), 32 * 32 * means.len());
        let largest = means.iter().fold(0f64, |a, b| a.max(b.abs()));
        for (channel, wanted) in means.iter().enumerate() {
            let mean = first.iter().skip(channel).step_by(means.len()).map(|v| f64::from(*v)).sum::<f64>() / 1024.0;
            // weights are stored in 16 bits
            assert!((mean - wanted).abs() < 4e-3 * largest, "{id} channel {channel}: {mean} of {wanted}");
        }
    }
}
