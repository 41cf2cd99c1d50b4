//! Machined plates in a fixture: pockets, slots, four screws, an engraved number and a printed grid.
//!
//! Own coordinates: pixels from the plate's middle, x to the right, y down.

use super::marks::{Line, Point, Pose, Spot, fractal};
use super::render::{Item, Studio, Texel};
use super::set::Kind;
use super::text::Text;
use crate::noise::{Rng, step, value};
use std::f32::consts::TAU;

pub const KIND: Kind = Kind {
    name: "plate",
    width: 640,
    height: 512,
    extension: "png",
    studio: Studio { lamp: [240.0, 52.0], power: [0.55, 0.6], gradient: 0.18, noise: 2.0, blur: 0.7, grey: true },
    defects: &["missing_screw", "scratch", "wrong_mark", "dent", "chip"],
    part: |seed, defect| Box::new(Plate::new(seed, defect)),
};

/// Half its width and height, radius of the corners, thickness, width of the chamfer.
const HALF: Point = [268.0, 208.0];
const CORNER: f32 = 26.0;
const THICK: f32 = 16.0;
const CHAMFER: f32 = 4.0;
/// Pockets: middle, half size, radius, depth.
const POCKETS: [(Point, Point, f32, f32); 4] = [
    ([-92.0, -62.0], [98.0, 78.0], 20.0, 9.0),
    ([150.0, -96.0], [64.0, 44.0], 16.0, 6.0),
    ([60.0, 108.0], [120.0, 13.0], 12.9, 12.0),
    ([-170.0, 92.0], [40.0, 40.0], 39.9, 8.0),
];
/// The island in the first pocket.
const ISLAND: (Point, f32) = ([-92.0, -62.0], 30.0);
const SCREWS: [Point; 4] = [[-236.0, -176.0], [236.0, -176.0], [236.0, 176.0], [-236.0, 176.0]];
const SCREW: f32 = 17.0;
const NUMBER: &str = "LS-2048 R3";
const NUMBER_AT: Point = [46.0, 2.0];
const LETTER: f32 = 23.0;
const GRID_AT: Point = [190.0, 60.0];
const CELL: f32 = 6.0;
const CELLS: i64 = 9;

enum Defect {
    Screw(usize),
    Scratch {
        line: Line,
        depth: f32,
        bright: f32,
    },
    /// Another text, or its place is off.
    Mark {
        text: String,
        off: Point,
    },
    Dent {
        spot: Spot,
        depth: f32,
    },
    Chip {
        spot: Spot,
        depth: f32,
    },
}

struct Plate {
    pose: Pose,
    seed: u64,
    /// Turn of each screw's socket, how deep it sits.
    screws: [[f32; 2]; 4],
    /// Radius and middle of the cutter's arcs.
    arcs: (Point, f32),
    off: [f32; 4],
    tone: f32,
    ink: [f32; 3],
    defect: Option<Defect>,
}

/// Distance inside a rounded box, positive inside.
fn inside(p: Point, centre: Point, half: Point, radius: f32) -> f32 {
    let q = [0, 1].map(|i| (p[i] - centre[i]).abs() - half[i] + radius);
    let out = (q[0].max(0.0).powi(2) + q[1].max(0.0).powi(2)).sqrt();
    radius - out - q[0].max(q[1]).min(0.0)
}

fn distance(a: Point, b: Point) -> f32 {
    ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)).sqrt()
}

impl Plate {
    fn new(seed: u64, defect: Option<(&str, u64)>) -> Self {
        let mut rng = Rng::new(seed, 0x91a7e);
        let centre = [320.0 + 2.0 * rng.signed(), 256.0 + 2.0 * rng.signed()];
        let angle = 0.3f32.to_radians() * rng.signed();
        Plate {
            pose: Pose::new(centre, angle, 1.0 + 0.001 * rng.signed()),
            seed,
            screws: [(); 4].map(|()| [rng.unit() * TAU, 0.7 * rng.signed()]),
            arcs: ([-700.0 + 60.0 * rng.signed(), 900.0 + 60.0 * rng.signed()], rng.between(4.6, 5.4)),
            off: [(); 4].map(|()| 0.6 * rng.signed()),
            tone: 1.0 + 0.07 * rng.signed(),
            ink: [1.2 * rng.signed(), 1.2 * rng.signed(), rng.between(0.7, 1.0)],
            defect: defect.and_then(|(label, seed)| Defect::new(label, &mut Rng::new(seed, 0xdefe))),
        }
    }

    /// Height over the plate's face (0 or less in pockets) and how deep in a pocket, 0 to 1.
    fn relief(&self, p: Point) -> (f32, f32) {
        let (mut height, mut deep) = (0.0f32, 0.0f32);
        for (i, (c, half, radius, depth)) in POCKETS.iter().enumerate() {
            let off = self.off[i];
            let mut edge = inside(p, *c, half.map(|h| h + 0.6 * off), *radius);
            if i == 0 {
                edge = edge.min(distance(p, ISLAND.0) - ISLAND.1 - 0.4 * off);
            }
            // a broken edge, then the wall
            let wall = step(-1.2, 1.2, edge);
            height = height.min(-1.5 * step(-2.5, 0.0, edge) - (depth - 1.5) * wall);
            deep = deep.max(wall);
        }
        let bolt = distance(p, ISLAND.0) - 11.0;
        let hole = step(0.8, -0.8, bolt);
        (height - 1.2 * step(3.0, 0.0, bolt) - 10.0 * hole, deep.max(2.0 * hole))
    }

    /// A screw with a hexagon socket in a countersink.
    fn screw(&self, p: Point, texel: &mut Texel) {
        for (i, at) in SCREWS.iter().enumerate() {
            let d = distance(p, *at);
            if d > SCREW + 6.0 {
                continue;
            }
            let seat = step(SCREW + 4.0, SCREW + 2.5, d);
            texel.height -= 5.0 * seat;
            if matches!(&self.defect, Some(Defect::Screw(missing)) if *missing == i) {
                // the tapped hole
                let hole = step(9.4, 8.0, d);
                texel.height -= 9.0 * hole;
                texel.tint([1.0 - 0.8 * hole; 3]);
                texel.gloss *= 1.0 - 0.9 * hole;
                continue;
            }
            let [turn, deep] = self.screws[i];
            let head = step(SCREW + 0.8, SCREW - 0.8, d);
            let angle = (p[1] - at[1]).atan2(p[0] - at[0]) + turn;
            let sector = angle.rem_euclid(TAU / 6.0) - TAU / 12.0;
            let socket = step(8.6, 7.2, d * sector.cos());
            let round = 3.0 * (d / SCREW).powi(4);
            let black = value(self.seed ^ 91, p[0] / 3.0, p[1] / 3.0, 0);
            let over = Texel {
                height: texel.height + 6.5 + deep - round - 5.5 * socket,
                albedo: [0.045 * (1.0 + 0.15 * black - 0.6 * socket); 3],
                gloss: 0.13 * (1.0 - 0.7 * socket),
                rough: 0.3,
                cover: 1.0,
            };
            *texel = texel.under(&over, head);
        }
    }

    /// The engraved number and the printed grid: how much of the pixel they take.
    fn marks(&self, p: Point) -> (f32, f32) {
        let (text, off) = match &self.defect {
            Some(Defect::Mark { text, off }) => (text.as_str(), *off),
            _ => (NUMBER, [0.0; 2]),
        };
        let at = [p[0] - NUMBER_AT[0] - off[0] - 0.4 * self.off[0], p[1] - NUMBER_AT[1] - off[1] - 0.4 * self.off[1]];
        let engraved = Text::new(text, LETTER).ink(at, 1.55);
        let g = [p[0] - GRID_AT[0] - self.ink[0], p[1] - GRID_AT[1] - self.ink[1]];
        let cell = g.map(|v| (v / CELL).floor() as i64);
        let mut printed = 0.0;
        if cell.iter().all(|c| (0..CELLS).contains(c)) {
            let [x, y] = cell;
            // the same for each plate: a frame on two sides, the rest looks random
            let dark = x == 0 || y == CELLS - 1 || (x * 7 + y * 5 + x * y * 3 + (x ^ y)) % 3 == 0;
            let edge = g.map(|v| (v / CELL - (v / CELL).floor() - 0.5).abs()).into_iter().fold(0.0, f32::max);
            printed = f32::from(dark) * step(0.54, 0.42, edge);
        }
        (engraved, printed * self.ink[2])
    }

    fn table(&self, x: f32, y: f32) -> Texel {
        let level = 0.035 * (1.0 + 0.25 * fractal(self.seed ^ 61, [x / 9.0, y / 9.0], 2, 0.6));
        Texel { height: 0.0, albedo: [level; 3], gloss: 0.02, rough: 0.5, cover: 0.0 }
    }
}

impl Item for Plate {
    fn texel(&self, x: f32, y: f32) -> Texel {
        let ground = self.table(x, y);
        let own = self.pose.own(x, y);
        let mut edge = inside(own, [0.0; 2], HALF, CORNER);
        if edge < -2.0 {
            return ground;
        }
        let seed = self.seed;
        let (mut relief, deep) = self.relief(own);
        let (mut bright, mut shift) = (0.0, 0.0);
        match &self.defect {
            Some(Defect::Chip { spot, depth }) => {
                let broken = step(1.25, 0.75, spot.at(own));
                let crystal = value(seed ^ 71, own[0] / 2.5, own[1] / 2.5, 0);
                shift -= depth * broken * (1.0 + 0.35 * crystal);
                bright += 0.35 * broken * (0.5 + crystal);
                edge -= 0.3 * spot.radius() * step(1.0, 0.6, spot.at(own)) * step(9.0, 3.0, edge);
            }
            Some(Defect::Dent { spot, depth }) => {
                let t = spot.at(own);
                let bowl = (1.0 - t * t).max(0.0);
                let rim = (-(4.0 * (t - 1.12)).powi(2)).exp();
                shift += depth * (0.22 * rim - bowl);
            }
            Some(Defect::Scratch { line, depth, bright: b }) => {
                let bite = line.depth(own);
                let burr = line.near(own).map_or(0.0, |(d, _)| (d / line.width).clamp(-1.6, 1.6));
                shift += depth * bite * (0.45 * burr - 0.8);
                bright += b * bite;
            }
            _ => {}
        }
        // feed marks of the face mill, finer and rounder in pockets
        let floor = deep.min(1.0);
        let (c, pitch) = self.arcs;
        let arc = distance(own, c);
        let feed = value(seed ^ 1, arc / pitch * 2.0, 0.5, 0) + 0.6 * (TAU * arc / pitch).sin();
        let end = TAU * distance(own, [own[0].signum() * 90.0, 40.0]) / 7.0;
        let cutter = end.sin() * 0.6 + 0.6 * value(seed ^ 2, own[0] / 5.0, own[1] / 2.0, 0);
        let marks = feed * (1.0 - floor) + cutter * floor;
        let grain = value(seed ^ 3, own[0] / 1.4, own[1] / 1.4, 0);
        let film = fractal(seed ^ 4, [own[0] / 85.0, own[1] / 85.0], 2, 0.5);
        relief -= CHAMFER * step(CHAMFER, 0.0, edge);
        let (engraved, printed) = self.marks(own);
        let tone = self.tone * (1.0 + 0.05 * film + 0.045 * marks + 0.05 * grain + bright);
        let mut metal = Texel {
            height: THICK + relief + 0.11 * marks + 0.05 * grain - 0.9 * engraved + shift,
            albedo: [0.20 * tone * (1.0 - 0.3 * deep.min(2.0)); 3],
            gloss: 0.2 * tone * (1.0 - 0.25 * floor),
            rough: 0.3,
            cover: 1.0,
        };
        metal.tint([(1.0 - 0.45 * engraved) * (1.0 - 0.85 * printed); 3]);
        metal.gloss *= (1.0 - 0.6 * engraved) * (1.0 - 0.8 * printed);
        self.screw(own, &mut metal);
        ground.under(&metal, step(-0.7, 0.7, edge))
    }
}

impl Defect {
    fn new(label: &str, rng: &mut Rng) -> Option<Self> {
        // on the face or in a pocket, away from the edge
        let place = [rng.between(-HALF[0] + 24.0, HALF[0] - 24.0), rng.between(-HALF[1] + 24.0, HALF[1] - 24.0)];
        Some(match label {
            "missing_screw" => Defect::Screw((rng.unit() * 4.0) as usize),
            "scratch" => {
                let (angle, length, width) = (rng.unit() * TAU, rng.between(18.0, 44.0), rng.between(0.85, 1.4));
                let line = Line::scratch(rng, place, angle, length, width);
                Defect::Scratch { line, depth: rng.between(0.45, 1.2), bright: rng.between(-0.1, 0.4) }
            }
            "wrong_mark" => {
                if rng.unit() < 0.35 {
                    let off = [rng.between(4.0, 9.0), rng.between(3.0, 7.0)];
                    let sign = |r: f32| if r < 0.5 { -1.0 } else { 1.0 };
                    let off = off.map(|o| o * sign(rng.unit()));
                    Defect::Mark { text: NUMBER.to_string(), off }
                } else {
                    let digits: Vec<usize> =
                        NUMBER.char_indices().filter(|c| c.1.is_ascii_digit()).map(|c| c.0).collect();
                    let at = digits[(rng.unit() * digits.len() as f32) as usize];
                    let old = u32::from(NUMBER.as_bytes()[at] - b'0');
                    let new = (old + 1 + (rng.unit() * 9.0) as u32) % 10;
                    let mut text = NUMBER.to_string();
                    text.replace_range(at..=at, &new.to_string());
                    Defect::Mark { text, off: [0.0; 2] }
                }
            }
            "dent" => {
                let (size, depth) = (rng.between(10.0, 26.0), rng.between(0.12, 0.3));
                let spot = Spot::new(rng, place, size, 0.1);
                Defect::Dent { depth: depth * 0.5 * size, spot }
            }
            "chip" => {
                let size = rng.between(9.0, 24.0);
                // at the outer edge or at a pocket's
                let along = 2.0 * rng.unit() - 1.0;
                let (c, half) = match (rng.unit() * 5.0) as usize {
                    0 => (POCKETS[0].0, POCKETS[0].1.map(|h| h - 1.0)),
                    1 => (POCKETS[1].0, POCKETS[1].1.map(|h| h - 1.0)),
                    _ => ([0.0; 2], HALF.map(|h| h - 2.0)),
                };
                let side = if rng.unit() < 0.5 { -1.0 } else { 1.0 };
                let at = if rng.unit() < 0.5 {
                    [c[0] + 0.8 * along * half[0], c[1] + side * half[1]]
                } else {
                    [c[0] + side * half[0], c[1] + 0.75 * along * half[1]]
                };
                Defect::Chip { spot: Spot::new(rng, at, size, 0.25), depth: rng.between(1.5, 4.0) }
            }
            _ => return None,
        })
    }
}
