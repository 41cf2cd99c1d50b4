//! Tiles of natural stone: all of one format, no two alike.
//!
//! Own coordinates: pixels from the tile's middle. Colour comes from clouds and veins of noise that is itself bent by
//! noise (domain warping); pits and specks belong to the stone.

use super::marks::{Line, Point, Pose, Spot, fractal};
use super::render::{Item, Rgb, Studio, Texel};
use super::set::Kind;
use crate::noise::{Rng, step, value};
use std::f32::consts::TAU;

pub const KIND: Kind = Kind {
    name: "stone",
    width: 512,
    height: 512,
    extension: "jpg",
    studio: Studio { lamp: [225.0, 48.0], power: [0.6, 0.7], gradient: 0.16, noise: 2.2, blur: 0.7, grey: false },
    defects: &["crack", "hole", "chip", "discolouration"],
    part: |seed, defect| Box::new(Stone::new(seed, defect)),
};

/// Half its side, radius of its corners, thickness.
const HALF: f32 = 222.0;
const CORNER: f32 = 7.0;
const THICK: f32 = 18.0;
const PALE: Rgb = [0.50, 0.43, 0.34];
const DARK: Rgb = [0.27, 0.205, 0.145];
const VEIN: Rgb = [0.15, 0.10, 0.07];

enum Defect {
    Crack {
        line: Line,
        branch: Line,
        dark: f32,
    },
    Hole {
        spot: Spot,
        depth: f32,
    },
    /// Broken off at the edge: `spot` lies across it.
    Chip {
        spot: Spot,
        depth: f32,
    },
    Colour {
        spot: Spot,
        tint: Rgb,
    },
}

struct Stone {
    pose: Pose,
    seed: u64,
    /// Direction of the bedding, how much longer clouds are along it.
    bed: (Point, f32),
    tone: f32,
    warm: f32,
    /// How strong the veins, the clouds and the pits are.
    mix: [f32; 3],
    edge: f32,
    defect: Option<Defect>,
}

impl Stone {
    fn new(seed: u64, defect: Option<(&str, u64)>) -> Self {
        let mut rng = Rng::new(seed, 0x5704e);
        let centre = [256.0 + 4.0 * rng.signed(), 256.0 + 4.0 * rng.signed()];
        let (s, c) = (0.5 * rng.signed()).sin_cos();
        Stone {
            pose: Pose::new(centre, 0.012 * rng.signed(), 1.0 + 0.004 * rng.signed()),
            seed,
            bed: ([s, c], rng.between(1.6, 3.4)),
            tone: 1.0 + 0.12 * rng.signed(),
            warm: 0.05 * rng.signed(),
            mix: [rng.between(0.2, 0.8), rng.between(0.5, 1.0), rng.between(0.25, 0.85)],
            edge: rng.between(0.6, 1.6),
            defect: defect.and_then(|(label, seed)| Defect::new(label, &mut Rng::new(seed, 0xdefe))),
        }
    }

    fn inside(&self, p: Point) -> f32 {
        let rough = self.edge * value(self.seed ^ 51, p[0] / 9.0, p[1] / 9.0, 0);
        let q = p.map(|v| v.abs() - HALF + CORNER);
        let out = (q[0].max(0.0).powi(2) + q[1].max(0.0).powi(2)).sqrt();
        CORNER - out - q[0].max(q[1]).min(0.0) + rough
    }

    /// Colour and height of the stone's face.
    fn face(&self, p: Point) -> Texel {
        let seed = self.seed;
        let ([s, c], stretch) = self.bed;
        let bed = [(p[0] * c + p[1] * s) / stretch, p[1] * c - p[0] * s];
        let bend = [
            fractal(seed ^ 1, [bed[0] / 70.0, bed[1] / 70.0], 2, 0.5),
            fractal(seed ^ 2, [bed[0] / 70.0, bed[1] / 70.0], 2, 0.5),
        ];
        let q = [bed[0] + 26.0 * bend[0], bed[1] + 26.0 * bend[1]];
        let cloud = fractal(seed ^ 3, [q[0] / 46.0, q[1] / 46.0], 4, 0.55);
        // a vein is where noise crosses zero
        let ridge = fractal(seed ^ 4, [q[0] / 80.0, q[1] / 80.0], 3, 0.5).abs();
        let vein = (-(ridge / 0.035).powi(2)).exp() * step(-0.5, 0.5, value(seed ^ 5, q[0] / 60.0, q[1] / 60.0, 0));
        let grain = value(seed ^ 6, p[0] / 1.6, p[1] / 1.6, 0);
        let crystal = value(seed ^ 7, p[0] / 4.0, p[1] / 4.0, 0);
        // pits follow the bedding
        let pit = step(0.72, 0.95, value(seed ^ 8, bed[0] / 4.2, bed[1] / 5.2, 0))
            * step(0.0, 0.6, value(seed ^ 9, bed[0] / 40.0, bed[1] / 24.0, 0));
        let pit = pit * self.mix[2];
        let share = (0.5 + 0.55 * self.mix[1] * cloud).clamp(0.0, 1.0);
        let tone = self.tone * (1.0 + 0.07 * grain + 0.05 * crystal) * (1.0 - 0.45 * pit);
        let mut albedo = [0.0; 3];
        for (i, a) in albedo.iter_mut().enumerate() {
            let ground = DARK[i] + (PALE[i] - DARK[i]) * share;
            *a = (ground + (VEIN[i] - ground) * 0.75 * self.mix[0] * vein) * tone;
        }
        albedo[0] *= 1.0 + self.warm;
        albedo[2] *= 1.0 - self.warm;
        let height = THICK + 0.5 * cloud + 0.22 * grain + 0.3 * crystal - 1.6 * pit - 0.3 * vein * self.mix[0];
        Texel { height, albedo, gloss: 0.045, rough: 0.35, cover: 1.0 }
    }

    fn table(&self, x: f32, y: f32) -> Texel {
        let level = 0.05 * (1.0 + 0.2 * fractal(self.seed ^ 61, [x / 7.0, y / 7.0], 2, 0.6));
        Texel { height: 0.0, albedo: [level, level, 1.06 * level], gloss: 0.01, rough: 0.6, cover: 0.0 }
    }
}

impl Item for Stone {
    fn texel(&self, x: f32, y: f32) -> Texel {
        let ground = self.table(x, y);
        let own = self.pose.own(x, y);
        let mut edge = self.inside(own);
        if edge < -2.0 {
            return ground;
        }
        let mut face = self.face(own);
        face.height -= 2.0 * step(3.5, 0.0, edge);
        let seed = self.seed;
        match &self.defect {
            Some(Defect::Crack { line, branch, dark }) => {
                let jag = 1.2 * value(seed ^ 71, own[0] / 4.0, own[1] / 4.0, 0);
                let at = [own[0] + jag, own[1] - jag];
                let open = line.gap(at).max(0.8 * branch.gap(at));
                face.height -= 3.5 * open;
                face.tint([1.0 - dark * open; 3]);
            }
            Some(Defect::Hole { spot, depth }) => {
                let t = spot.at(own);
                let open = step(1.1, 0.8, t);
                face.height -= depth * open * (1.0 + 0.2 * value(seed ^ 72, own[0] / 3.0, own[1] / 3.0, 0));
                face.tint([1.0 - 0.3 * open; 3]);
            }
            Some(Defect::Chip { spot, depth }) => {
                let t = spot.at(own);
                let open = step(1.05, 0.9, t);
                let fresh = value(seed ^ 73, own[0] / 5.0, own[1] / 5.0, 0);
                face.height -= open * depth * (0.7 + 0.5 * (1.0 - t).max(0.0) + 0.3 * fresh);
                face.tint([1.0 + 0.16 * open, 1.0 + 0.18 * open, 1.0 + 0.24 * open]);
                edge -= 0.35 * spot.radius() * step(1.0, 0.5, t) * step(8.0, 2.0, edge);
            }
            Some(Defect::Colour { spot, tint }) => {
                let t = spot.at(own);
                let body = step(1.3, 0.6, t);
                face.tint(tint.map(|c| 1.0 + (c - 1.0) * body));
            }
            None => {}
        }
        ground.under(&face, step(-0.7, 0.7, edge))
    }
}

impl Defect {
    fn new(label: &str, rng: &mut Rng) -> Option<Self> {
        let inner = HALF - 26.0;
        let place = [inner * rng.signed(), inner * rng.signed()];
        Some(match label {
            "crack" => {
                let (angle, length) = (rng.unit() * TAU, rng.between(60.0, 200.0));
                let width = rng.between(0.9, 2.1);
                // from the edge inwards, or somewhere in the middle
                let (from, angle) = if rng.unit() < 0.5 {
                    let a = (angle / (TAU / 4.0)).floor() * TAU / 4.0;
                    let (s, c) = a.sin_cos();
                    let along = 0.8 * HALF * rng.signed();
                    ([-HALF * c - along * s, -HALF * s + along * c], a + 0.5 * rng.signed())
                } else {
                    (place.map(|v| 0.6 * v), angle)
                };
                let line = Line::crack(rng, from, angle, length, width);
                let fork = [from[0] + 0.45 * length * angle.cos(), from[1] + 0.45 * length * angle.sin()];
                let lean = if rng.unit() < 0.5 { 0.8 } else { -0.8 };
                let branch = Line::crack(rng, fork, angle + lean, 0.35 * length, 0.7 * width);
                Defect::Crack { line, branch, dark: rng.between(0.5, 0.85) }
            }
            "hole" => {
                let size = rng.between(11.0, 26.0);
                Defect::Hole { spot: Spot::new(rng, place, size, 0.25), depth: rng.between(4.0, 9.0) }
            }
            "chip" => {
                let size = rng.between(18.0, 48.0);
                let side = if rng.unit() < 0.5 { -1.0 } else { 1.0 };
                let along = HALF * 0.97 * rng.signed();
                let at = if rng.unit() < 0.5 { [side * (HALF - 2.0), along] } else { [along, side * (HALF - 2.0)] };
                Defect::Chip { spot: Spot::new(rng, at, size, 0.28), depth: rng.between(3.0, 9.0) }
            }
            "discolouration" => {
                let size = rng.between(40.0, 110.0);
                // rust, moss, soot, lime
                let tints = [[1.08, 0.84, 0.64], [0.82, 0.93, 0.72], [0.70, 0.71, 0.73], [1.14, 1.19, 1.27]];
                let strong = rng.between(0.9, 1.4);
                let tint = tints[(rng.unit() * 4.0) as usize].map(|c| 1.0 + (c - 1.0) * strong);
                Defect::Colour { spot: Spot::new(rng, place.map(|v| 0.9 * v), size, 0.35), tint }
            }
            _ => return None,
        })
    }
}
