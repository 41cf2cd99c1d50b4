//! What single stages cost: shrinking, registration, head, heatmap. `cargo bench` (or `make bench`); the whole pipeline is
//! measured by `linesight bench`.

// a benchmark that cannot be set up has nothing to measure
#![allow(clippy::expect_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use gstreamer_video as gst_video;
use linesight::detect::head::{Detector, Family, Head, Member, Term, View};
use linesight::detect::patchcore::Bank;
use linesight::detect::ppca::{Basis, Ppca, RANK};
use linesight::frame::Frame;
use linesight::prepare::light::{Local, match_light};
use linesight::prepare::register::{Reference, Registrar};
use linesight::prepare::shrink::{Crop, Shrinker, Size};
use std::hint::black_box;

const INPUT: Size = Size { width: 256, height: 256 };

/// A 4:2:0 frame with texture in all planes.
fn frame(width: u32, height: u32) -> Frame {
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::I420, width, height).build().expect("I420");
    let bytes: Vec<u8> = (0..info.size()).map(|i| ((i * 7) ^ (i >> 9)) as u8).collect();
    Frame::map(gstreamer::Buffer::from_mut_slice(bytes), &info, 0, None).expect("mapped")
}

fn prepare(c: &mut Criterion) {
    gstreamer::init().expect("GStreamer");
    let mut shrinker = Shrinker::new();
    let mut rgb = vec![0; INPUT.area() * 3];
    for (name, width, height) in [("720p", 1280, 720), ("1080p", 1920, 1080)] {
        let frame = frame(width, height);
        let whole = Crop { x: 0, y: 0, width, height };
        c.bench_function(&format!("shrink to RGB 256x256, whole {name}"), |b| {
            b.iter(|| shrinker.rgb(&frame, whole, INPUT, black_box(&mut rgb)).expect("shrunk"));
        });
    }
    let frame = frame(1280, 720);
    let part = Crop { x: 430, y: 150, width: 420, height: 420 };
    c.bench_function("shrink to RGB 256x256, 420x420 part", |b| {
        b.iter(|| shrinker.rgb(&frame, part, INPUT, black_box(&mut rgb)).expect("shrunk"));
    });
    let mut luma = vec![0; INPUT.area()];
    shrinker.luma(&frame, part, INPUT, &mut luma).expect("shrunk");
    let reference = Reference { size: INPUT, luma: luma.clone(), rgb: Vec::new(), mean: 120.0, deviation: 40.0 };
    let mut registrar = Registrar::new(&reference).expect("registrar");
    c.bench_function("register 256x256 by phase correlation", |b| {
        b.iter(|| registrar.measure(black_box(&luma)).expect("measured"));
    });
    c.bench_function("match light 256x256", |b| b.iter(|| match_light(black_box(&mut rgb), &reference)));
    let mut local = Local::default();
    c.bench_function("local contrast 256x256", |b| {
        b.iter(|| local.apply(black_box(&mut rgb), INPUT).expect("normalised"));
    });
}

fn head(c: &mut Criterion) {
    let (grid, channels) = (Size { width: 32, height: 32 }, 152);
    let value = |i: usize| ((i * 2_654_435_761) >> 8 & 0xffff) as f32 / 65_536.0 - 0.5;
    let n = grid.area();
    let ppca = Ppca {
        grid,
        channels,
        mean: (0..n * channels).map(value).collect(),
        basis: Basis::quantised(&(0..n * channels * RANK).map(|i| 0.1 * value(i)).collect::<Vec<_>>(), channels),
        inverse_noise: vec![1.0; n],
    };
    let bank = Bank::new(channels, (0..1000 * channels).map(value).collect(), vec![0.0; channels]).expect("bank");
    let features: Vec<f32> = (0..n * channels).map(|i| value(i + 17)).collect();
    let mut head = Head::new();
    for (name, family) in [("ppca", Family::Ppca(ppca)), ("patchcore", Family::Patchcore(bank))] {
        let terms = vec![Term { top: 0.0, weight: 1.0 }];
        let member = Member { view: View::PLAIN, family, usual: None, sigma: 1.5, terms };
        let detector = Detector { grid, channels, members: vec![member] };
        c.bench_function(&format!("head 256x256, {name}: distances, map, score"), |b| {
            b.iter(|| head.score(&detector, black_box(&features), None).expect("scored").score);
        });
    }
}

criterion_group!(stages, prepare, head);
criterion_main!(stages);
