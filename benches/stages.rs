//! What single stages cost: shrinking, registration, head, map, pictures, coreset, spool. `cargo bench --bench stages`; the whole
//! pipeline is measured by `linesight bench` and `benches/end_to_end`.

// a benchmark that cannot be set up has nothing to measure
#![allow(clippy::expect_used)]

#[path = "../tests/support/records.rs"]
mod records;

use criterion::{Criterion, criterion_group, criterion_main};
use gstreamer_video as gst_video;
use linesight::deliver::{Config, Deliver, Limits, Pictures};
use linesight::detect::AnomalyMap;
use linesight::detect::head::{Detector, Family, Head, Member, Term, View, map_size};
use linesight::detect::patchcore::Bank;
use linesight::detect::ppca::{Basis, Ppca, RANK};
use linesight::event::Verdict;
use linesight::frame::Frame;
use linesight::picture;
use linesight::prepare::light::match_light;
use linesight::prepare::register::{Reference, Registrar};
use linesight::prepare::shrink::{Crop, Shrinker, Size};
use linesight::teach::{self, Features};
use linesight_kernels::contrast::Contrast;
use std::hint::black_box;
use std::time::Duration;
use uuid::Uuid;

const INPUT: Size = Size { width: 256, height: 256 };

/// The network's feature grid for [`INPUT`], and features of a cell.
const GRID: Size = Size { width: 32, height: 32 };
const CHANNELS: usize = 152;

/// Numbers that look random.
fn value(i: usize) -> f32 {
    (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65_536.0 - 0.5
}

/// A 4:2:0 frame with texture in all planes.
fn frame(width: u32, height: u32) -> Frame {
    frame_in(gst_video::VideoFormat::I420, width, height)
}

fn frame_in(format: gst_video::VideoFormat, width: u32, height: u32) -> Frame {
    let info = gst_video::VideoInfo::builder(format, width, height).build().expect("a format");
    let bytes: Vec<u8> = (0..info.size()).map(|i| ((i * 7) ^ (i >> 9)) as u8).collect();
    Frame::map(gstreamer::Buffer::from_mut_slice(bytes), &info, 0, None).expect("mapped")
}

fn prepare(c: &mut Criterion) {
    gstreamer::init().expect("GStreamer");
    let mut shrinker = Shrinker::new();
    let mut rgb = vec![0; INPUT.area() * 3];
    for (name, width, height) in [("720p", 1280, 720), ("1080p", 1920, 1080)] {
        for (format, planes) in [(gst_video::VideoFormat::I420, "I420"), (gst_video::VideoFormat::Nv12, "NV12")] {
            let frame = frame_in(format, width, height);
            let whole = Crop { x: 0, y: 0, width, height };
            c.bench_function(&format!("shrink to RGB 256x256, whole {name} {planes}"), |b| {
                b.iter(|| shrinker.rgb(&frame, whole, INPUT, black_box(&mut rgb)).expect("shrunk"));
            });
        }
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
    let mut contrast = Contrast::default();
    c.bench_function("local contrast 256x256", |b| {
        b.iter(|| contrast.normalise(black_box(&mut rgb), INPUT.width as usize));
    });
}

fn head(c: &mut Criterion) {
    let (grid, channels) = (GRID, CHANNELS);
    let n = grid.area();
    let ppca = Ppca {
        grid,
        channels,
        mean: (0..n * channels).map(value).collect(),
        basis: Basis::quantised(&(0..n * channels * RANK).map(|i| 0.1 * value(i)).collect::<Vec<_>>(), channels),
        inverse_noise: vec![1.0; n],
    };
    let bank = Bank::new(channels, (0..1000 * channels).map(value).collect(), vec![0.0; channels], 3).expect("bank");
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

/// Enlarging and smoothing the distances of one part.
fn map(c: &mut Criterion) {
    let distances: Vec<f32> = (0..GRID.area()).map(|i| 5.0 + value(i)).collect();
    let mut head = Head::new();
    c.bench_function("map 128x128: enlarge and smooth", |b| {
        b.iter(|| head.smooth(black_box(&distances), GRID, map_size(GRID), 1.5, None));
    });
}

/// The pictures of an anomaly.
fn pictures(c: &mut Criterion) {
    gstreamer::init().expect("GStreamer");
    for (name, width, height) in [("720p", 1280, 720), ("1080p", 1920, 1080)] {
        let frame = frame(width, height);
        let whole = Crop { x: 0, y: 0, width, height };
        c.bench_function(&format!("JPEG of {name}"), |b| {
            b.iter(|| picture::frame_jpeg(black_box(&frame), whole).expect("encoded"));
        });
        let size = map_size(GRID);
        let hot = |i: usize| if i % 61 < 9 { 9.0 } else { 4.0 + value(i) };
        let map = AnomalyMap { size, values: (0..size.area()).map(hot).collect() };
        c.bench_function(&format!("PNG of the heatmap over {name}"), |b| {
            b.iter(|| picture::heatmap_png(black_box(&map), &whole.into(), whole, 6.0).expect("encoded"));
        });
    }
}

/// Choosing the memory of PatchCore from the patches of 50 parts.
fn coreset(c: &mut Criterion) {
    let part = |p: usize| (0..GRID.area() * CHANNELS).map(|i| value(i * 7 + p * 1_000_003)).collect();
    let features = Features { grid: GRID, channels: CHANNELS, parts: (0..50).map(part).collect() };
    let chosen: Vec<usize> = (0..features.parts.len()).collect();
    let mut group = c.benchmark_group("teach");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function("coreset of 50 parts", |b| {
        b.iter(|| teach::memory_bank(black_box(&features), &chosen, None, 7).expect("a bank"));
    });
    group.finish();
}

/// What the writer commits: rows of good parts, an anomaly with its pictures. Includes the disk.
fn spool(c: &mut Criterion) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let config =
        Config { database: folder.path().join("spool.db"), run: Uuid::now_v7(), targets: Vec::new(), audit: None };
    let deliver = Deliver::open_with(config, Limits { reserve: 0, ..Limits::default() }).expect("a database");
    let mut part = 0;
    let mut group = c.benchmark_group("spool");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.bench_function("commit 30 good parts", |b| {
        b.iter(|| {
            for _ in 0..30 {
                deliver.record(records::plain("line", part, Verdict::Pass)).expect("recorded");
                part += 1;
            }
            deliver.flush().expect("committed");
        });
    });
    group.bench_function("commit an anomaly of 80 kB", |b| {
        b.iter(|| {
            let (frame_jpeg, heatmap_png) = (vec![7; 60_000], vec![8; 20_000]);
            let pictures = Pictures { frame_jpeg, heatmap_png, normal_jpeg: None };
            deliver.record(records::anomaly("line", part, Verdict::Reject, pictures).1).expect("recorded");
            part += 1;
            deliver.flush().expect("committed");
        });
    });
    group.finish();
}

criterion_group!(stages, prepare, head, map, pictures, coreset, spool);
criterion_main!(stages);
