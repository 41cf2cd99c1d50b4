//! What throughput depends on, one thing varied at a time.

use crate::curves::{self, Curve, Panel};
use crate::footage::{Footage, Size};
use crate::report::{Report, number};
use crate::{Case, Plan, Way, bench};
use linesight::detect::Head;
use linesight::detect::head::{Detector, Family, Member, Term, View};
use linesight::detect::patchcore::Bank;
use linesight::prepare::shrink;
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;

/// Vectors in a memory bank.
const BANKS: [usize; 4] = [500, 1000, 2000, 4000];

pub fn run(plan: &Plan, footage: &Footage, report: &mut Report) {
    let several = Way { lines: &[2, 4], rounds: plan.rounds, ..Way::default() };
    let cores: Vec<Way<'_>> = (1..=std::thread::available_parallelism().map_or(1, usize::from))
        .filter(|n| n.is_power_of_two())
        .map(|n| Way { cores: Some(n), ..several })
        .collect();
    let (mut rows, mut speed) = (Vec::new(), Vec::new());
    for way in &cores {
        let Some(o) = measured(plan, footage, report, &Case::BASE, way) else { continue };
        let cores = way.cores.unwrap_or_default();
        for l in o["lines"].as_array().into_iter().flatten() {
            let (lines, fps) = (&l["lines"], number(l, "end_to_end_fps"));
            rows.push(format!("| {cores} | {lines} | {fps:.0} | {:.2} |", number(l, "end_to_end_cpu_ms")));
            add(&mut speed, if *lines == 1 { "1 line".into() } else { format!("{lines} lines") }, (cores as f64, fps));
        }
    }
    report.more.push(("| cores | lines | frames/s, all lines | CPU ms a frame |".into(), rows));

    let one = Way { rounds: plan.rounds, ..Way::default() };
    let inputs = ["fast", "balanced", "accurate"].map(|variant| Case { variant, ..Case::BASE });
    let sizes = [Size::SMALL, Size::HD, Size::FULL_HD].map(|size| Case { size, ..Case::BASE });
    let mut rows = Vec::new();
    let (mut by_input, mut by_size) = (Vec::new(), Vec::new());
    for (cases, by_pixels, curves) in [(inputs, false, &mut by_input), (sizes, true, &mut by_size)] {
        for case in &cases {
            let Some(o) = measured(plan, footage, report, case, &one) else { continue };
            let parts = [
                ("decode", "decode"),
                ("prepare", "prepare"),
                ("infer", "network"),
                ("head", "head"),
                ("end_to_end", "whole pipeline"),
                ("overhead", "overhead"),
            ]
            .map(|(key, name)| (name, number(&o, &format!("{key}_cpu_ms"))));
            let (width, height) = (number(&o["input"], "width"), number(&o["input"], "height"));
            let at = if by_pixels { case.size.megapixels() } else { width * height / 1e3 };
            // five can be told apart; the last is a sum of others
            parts[..5].iter().for_each(|&(name, ms)| add(curves, name.into(), (at, ms)));
            let ms = parts.map(|(_, ms)| format!("{ms:.2}")).join(" | ");
            let fps = number(&o, "end_to_end_fps");
            rows.push(format!("| {} | {} ({width}x{height}) | {ms} | {fps:.0} |", case.size.name(), case.variant));
        }
    }
    let head = "| frames | input | decode | prepare | network | head | whole | overhead | frames/s |";
    report.more.push((head.into(), rows));

    let banks = BANKS.map(|n| (n as f64, bank_ms(n)));
    let rows = banks.map(|(n, ms)| format!("| {n} | {ms:.2} | {:.1} |", n * CHANNELS as f64 * 4.0 / 1e6)).to_vec();
    report.more.push(("| vectors of the bank | head, CPU ms a part at 256x256 | MB |".into(), rows));

    let ms = "CPU ms a frame";
    let panels = [
        Panel { title: "Cores and lines", x: "cores", y: "frames a second, all lines", curves: speed },
        Panel { title: "Size of the frames", x: "megapixels", y: ms, curves: by_size },
        Panel { title: "Input of the network", x: "thousand pixels", y: ms, curves: by_input },
        Panel {
            title: "Memory bank, 1024 cells",
            x: "vectors",
            y: "CPU ms a part",
            curves: vec![("head".into(), banks.to_vec())],
        },
    ];
    let file = plan.out.join("scaling.svg");
    match curves::draw(&panels, &file) {
        Ok(()) => println!("curves in {}", file.display()),
        Err(why) => eprintln!("{}: not drawn: {why}", file.display()),
    }
}

/// Adds a point to the curve of that name.
fn add(curves: &mut Vec<Curve>, name: String, point: (f64, f64)) {
    match curves.iter_mut().find(|(known, _)| *known == name) {
        Some((_, points)) => points.push(point),
        None => curves.push((name, vec![point])),
    }
}

fn measured(
    plan: &Plan,
    footage: &Footage,
    report: &mut Report,
    case: &Case,
    way: &Way<'_>,
) -> Option<serde_json::Value> {
    match bench(plan, footage, case, way) {
        Ok(outcome) => {
            report.keep("scaling", case, Some(way), &outcome);
            Some(outcome)
        }
        Err(why) => {
            eprintln!("{}: left out: {why}", case.name());
            None
        }
    }
}

const CHANNELS: usize = 152;

/// CPU milliseconds of this thread for scoring a picture by a bank of `vectors`; the middle of several tries.
fn bank_ms(vectors: usize) -> f64 {
    let grid = shrink::Size { width: 32, height: 32 };
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761)) >> 8 & 0xffff) as f32 / 65_536.0 - 0.5;
    let bank =
        Bank::new(CHANNELS, (0..vectors * CHANNELS).map(value).collect(), vec![0.0; CHANNELS], 3).expect("a bank");
    let terms = vec![Term { top: 0.0, weight: 1.0 }];
    let member = Member { view: View::PLAIN, family: Family::Patchcore(bank), usual: None, sigma: 1.5, terms };
    let detector = Detector { grid, channels: CHANNELS, members: vec![member] };
    let features: Vec<f32> = (0..grid.area() * CHANNELS).map(|i| value(i + 17)).collect();
    let mut head = Head::new();
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let cpu = || {
                let t = clock_gettime(ClockId::ThreadCPUTime);
                t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
            };
            let from = cpu();
            for _ in 0..10 {
                black_box(head.score(&detector, &features, None).expect("scored").score);
            }
            (cpu() - from) / 10.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
