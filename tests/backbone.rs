//! The built-in networks are the ones their weights make, and OpenVINO computes them here as elsewhere.

#![allow(clippy::unwrap_used)]

mod support;

use linesight::detect::backbone::{Backbone, DEFAULT_BACKBONE, Options};
use linesight::detect::{Device, Hint, Precision};
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

fn compile(id: &str, input: Size, precision: Precision) -> Backbone {
    Backbone::compile(&Options {
        backbone: id.to_owned(),
        input,
        device: "CPU".parse::<Device>().unwrap(),
        precision,
        allow_fallback: false,
        hint: Hint::Latency,
        streams: None,
    })
    .unwrap()
}

/// The quantised network sees what the other sees, tap by tap, at any size, and gives the same twice.
#[test]
fn int8_features_are_close_to_those_of_f32() {
    let (id, taps) = (DEFAULT_BACKBONE, [0..40, 40..152]);
    for input in [(256, 256), (320, 192)].map(|(width, height)| Size { width, height }) {
        let picture = edges(input.width as usize, input.height as usize);
        let features = |precision| {
            let mut backbone = compile(id, input, precision);
            let mut request = backbone.request().unwrap();
            let mut run = |_| {
                request.input().unwrap().copy_from_slice(&picture);
                request.start().unwrap();
                request.wait().unwrap().to_vec()
            };
            let [first, second] = [0, 1].map(&mut run);
            assert!(first == second, "{id}: the same twice");
            (first, backbone.channels())
        };
        let ((plain, channels), (quantised, same)) = (features(Precision::F32), features(Precision::Int8));
        assert!(plain.len() == quantised.len() && channels == same && taps.last().unwrap().end == channels);
        for tap in &taps {
            let (mut lost, mut all) = (0f64, 0f64);
            for (a, b) in plain.chunks_exact(channels).zip(quantised.chunks_exact(channels)) {
                for (a, b) in a[tap.clone()].iter().zip(&b[tap.clone()]) {
                    lost += f64::from(a - b).powi(2);
                    all += f64::from(*a).powi(2);
                }
            }
            // .006 is the most that was measured on this picture; f32 itself would be 0
            assert!(lost > 0.0 && lost / all < 0.008, "{id} {input:?} {tap:?}: {}", lost / all);
        }
    }
}

/// The features of a picture that needs no file have the means, channel by channel, that plain numpy in f64 computed from
/// the published weights (tests/data/README.md says how), and are the same twice.
#[test]
fn features_have_the_committed_means() {
    let text = std::fs::read(root().join("tests/data/backbone-means.json")).unwrap();
    let wanted: BTreeMap<String, Vec<f64>> = serde_json::from_slice(&text).unwrap();
    assert_eq!(wanted.len(), 1);
    for (id, means) in wanted {
        let mut backbone = compile(&id, Size { width: 256, height: 256 }, Precision::F32);
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
