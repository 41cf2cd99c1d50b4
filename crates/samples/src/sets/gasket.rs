//! Fibre gaskets that lie at any angle on a light table: a round outline with lobes, bolt holes, a toothed bore, one
//! locating hole, a printed mark.
//!
//! Own coordinates: pixels from the middle of the bore; hole 0 is at angle 0.

use super::marks::{Line, Point, Pose, Spot, fractal};
use super::render::{Item, Rgb, Studio, Texel};
use super::set::Kind;
use super::text::Text;
use crate::noise::{Rng, step, value};
use std::f32::consts::TAU;

pub const KIND: Kind = Kind {
    name: "gasket",
    width: 576,
    height: 512,
    extension: "jpg",
    studio: Studio { lamp: [300.0, 50.0], power: [0.5, 0.8], gradient: 0.14, noise: 2.2, blur: 0.75, grey: false },
    defects: &["missing_hole", "tear", "flash", "scratch", "contamination"],
    part: |seed, defect| Box::new(Gasket::new(seed, defect)),
};

const OUTER: f32 = 186.0;
const LOBE: f32 = 11.0;
const BORE: f32 = 82.0;
const TOOTH: f32 = 7.0;
const TEETH: f32 = 24.0;
const HOLES: usize = 8;
/// Radius of the circle of holes, of a hole, of the locating hole.
const CIRCLE: f32 = 152.0;
const HOLE: f32 = 14.0;
const PIN: f32 = 8.0;
const PIN_ANGLE: f32 = 0.30 * TAU;
/// Radius of the pressed bead.
const BEAD: f32 = 112.0;
const THICK: f32 = 7.0;
const PRINT: &str = "GX-40 B7";
/// Radius of the print's base line and height of its letters.
const PRINT_AT: f32 = 123.0;
const LETTER: f32 = 13.0;
/// Where it begins, radians: it fits between two holes.
const PRINT_FROM: f32 = 2.42;

enum Defect {
    /// A hole that is not there, or is punched only in part: what is left of its radius.
    Hole {
        index: usize,
        left: f32,
    },
    Tear {
        line: Line,
    },
    Flash {
        spot: Spot,
    },
    Scratch {
        line: Line,
        pale: f32,
        depth: f32,
    },
    Dirt {
        spot: Spot,
        colour: Rgb,
        height: f32,
        gloss: f32,
    },
}

struct Gasket {
    pose: Pose,
    seed: u64,
    /// Differences of this part: outline, bore, thickness of tone, place and strength of the print.
    off: [f32; 2],
    tone: f32,
    print: [f32; 3],
    /// How far each hole is off its place.
    holes: Vec<(Point, f32)>,
    table: f32,
    defect: Option<Defect>,
}

impl Gasket {
    fn new(seed: u64, defect: Option<(&str, u64)>) -> Self {
        let mut rng = Rng::new(seed, 0x6a5c);
        let angle = rng.unit() * TAU;
        let centre = [288.0 + 26.0 * rng.signed(), 256.0 + 26.0 * rng.signed()];
        let scale = 1.0 + 0.004 * rng.signed();
        let holes = (0..HOLES).map(|i| {
            let (s, c) = (TAU * i as f32 / HOLES as f32).sin_cos();
            ([CIRCLE * c + 0.9 * rng.signed(), CIRCLE * s + 0.9 * rng.signed()], HOLE * (1.0 + 0.025 * rng.signed()))
        });
        let holes = holes.collect();
        Gasket {
            pose: Pose::new(centre, angle, scale),
            seed,
            off: [1.1 * rng.signed(), 0.9 * rng.signed()],
            tone: 1.0 + 0.1 * rng.signed(),
            print: [0.014 * rng.signed(), 1.8 * rng.signed(), rng.between(0.6, 1.0)],
            holes,
            table: 1.0 + 0.05 * rng.signed(),
            defect: defect.and_then(|(label, seed)| Defect::new(label, &mut Rng::new(seed, 0xdefe))),
        }
    }

    /// How far inside the material `p` is: positive inside, pixels.
    fn inside(&self, p: Point, r: f32, angle: f32) -> f32 {
        // stamped edges are not quite smooth
        let rough = 0.5 * value(self.seed ^ 51, angle * 60.0, r * 0.02, 0);
        let outline = OUTER + self.off[0] + rough + LOBE * (angle * HOLES as f32).cos();
        let tooth = (angle * TEETH).cos() * 3.2;
        let bore = BORE + self.off[1] + rough + TOOTH * tooth.clamp(-1.0, 1.0);
        let mut edge = (outline - r).min(r - bore);
        if let Some(Defect::Flash { spot }) = &self.defect {
            let reach = (1.0 - spot.at(p)) * spot.radius();
            edge = edge.max(reach);
        }
        for (i, (c, radius)) in self.holes.iter().enumerate() {
            let radius = match &self.defect {
                Some(Defect::Hole { index, left }) if *index == i => radius * left,
                _ => *radius,
            };
            if radius > 0.0 {
                let d = ((p[0] - c[0]).powi(2) + (p[1] - c[1]).powi(2)).sqrt();
                edge = edge.min(d - radius);
            }
        }
        let (s, c) = PIN_ANGLE.sin_cos();
        let d = ((p[0] - 158.0 * c).powi(2) + (p[1] - 158.0 * s).powi(2)).sqrt();
        edge.min(d - PIN)
    }

    fn table(&self, x: f32, y: f32) -> Texel {
        let uneven = 1.0 + 0.05 * fractal(self.seed ^ 61, [x / 160.0, y / 160.0], 2, 0.5);
        let fine = 1.0 + 0.035 * value(self.seed ^ 62, x / 2.0, y / 2.0, 0);
        let level = 0.46 * self.table * uneven * fine;
        Texel { height: 0.0, albedo: [level, level, 0.98 * level], gloss: 0.02, rough: 0.6, cover: 0.0 }
    }
}

impl Item for Gasket {
    fn texel(&self, x: f32, y: f32) -> Texel {
        let ground = self.table(x, y);
        let own = self.pose.own(x, y);
        let r = (own[0] * own[0] + own[1] * own[1]).sqrt();
        if !(BORE - 40.0..OUTER + 40.0).contains(&r) {
            return ground;
        }
        let angle = own[1].atan2(own[0]);
        let edge = self.inside(own, r, angle);
        let mut texel = ground;
        if edge > -2.0 {
            let seed = self.seed;
            let cloud = fractal(seed ^ 1, [own[0] / 30.0, own[1] / 30.0], 3, 0.6);
            let fibre = value(seed ^ 2, own[0] / 1.6, own[1] / 4.5, 0) + value(seed ^ 3, own[0] / 4.5, own[1] / 1.6, 0);
            let fleck = step(0.72, 0.95, value(seed ^ 4, own[0] / 2.6, own[1] / 2.6, 0));
            let tone = self.tone * (1.0 + 0.10 * cloud + 0.12 * fibre + 0.7 * fleck);
            let bead = (-((r - BEAD) / 5.5).powi(2)).exp();
            let round = 1.6 * step(4.0, 0.0, edge);
            let mut material = Texel {
                height: THICK - round + 2.2 * bead + 0.16 * fibre,
                albedo: [0.062 * tone, 0.088 * tone, 0.074 * tone],
                gloss: 0.035,
                rough: 0.42,
                cover: 1.0,
            };
            self.print(angle, r, &mut material);
            let mut cut = 0.0;
            match &self.defect {
                Some(Defect::Scratch { line, pale, depth }) => {
                    let bite = line.depth(own);
                    material.tint([1.0 + pale * bite; 3]);
                    material.height -= depth * bite;
                }
                Some(Defect::Tear { line }) => {
                    let fray = 0.9 * value(seed ^ 71, own[0] / 3.0, own[1] / 3.0, 0);
                    cut = line.gap([own[0] + fray, own[1] - fray]);
                    let lip = line.near(own).map_or(0.0, |(d, _)| (-(d / (line.width + 2.0)).powi(2)).exp());
                    material.tint([1.0 + 0.35 * lip; 3]);
                    material.height += 1.0 * lip;
                }
                _ => {}
            }
            texel = texel.under(&material, step(-0.7, 0.7, edge) * (1.0 - cut));
        }
        if let Some(Defect::Dirt { spot, colour, height, gloss }) = &self.defect {
            let t = spot.at(own);
            let body = step(1.12, 0.88, t);
            if body > 0.0 {
                let base = texel.height + height * (1.0 - t * t).max(0.0).sqrt();
                let dirt = Texel { height: base, albedo: *colour, gloss: *gloss, rough: 0.3, cover: 1.0 };
                texel = texel.under(&dirt, 0.85 * body);
            }
        }
        texel
    }
}

impl Gasket {
    /// Ink between two holes, along a circle.
    fn print(&self, angle: f32, r: f32, material: &mut Texel) {
        let up = r - PRINT_AT - self.print[1];
        if !(-3.0..=LETTER + 3.0).contains(&up) {
            return;
        }
        let turned = (angle + self.print[0] - PRINT_FROM).rem_euclid(TAU);
        let ink = Text::new(PRINT, LETTER).ink([turned * (PRINT_AT + 0.5 * LETTER), LETTER - up], 1.15);
        let worn = 0.75 + 0.25 * value(self.seed ^ 81, angle * 90.0, r / 2.0, 0);
        let share = ink * self.print[2] * worn;
        material.albedo.iter_mut().for_each(|a| *a += (0.42 - *a) * share);
    }
}

impl Defect {
    fn new(label: &str, rng: &mut Rng) -> Option<Self> {
        let angle = rng.unit() * TAU;
        let polar = |r: f32, a: f32| [r * a.cos(), r * a.sin()];
        // anywhere on the material between the holes and the bore
        let place = polar(rng.between(BORE + 16.0, OUTER - 18.0), angle);
        Some(match label {
            "missing_hole" => {
                let left = if rng.unit() < 0.5 { 0.0 } else { rng.between(0.45, 0.8) };
                Defect::Hole { index: (rng.unit() * HOLES as f32) as usize, left }
            }
            "tear" => {
                let (length, width) = (rng.between(16.0, 48.0), rng.between(0.9, 2.4));
                let outer = rng.unit() < 0.6;
                let lean = 0.5 * rng.signed();
                let line = match outer {
                    true => {
                        let start = OUTER + LOBE * (angle * HOLES as f32).cos() + 3.0;
                        Line::crack(rng, polar(start, angle), angle + TAU / 2.0 + lean, length, width)
                    }
                    false => Line::crack(rng, polar(BORE - TOOTH - 2.0, angle), angle + lean, length, width),
                };
                Defect::Tear { line }
            }
            "flash" => {
                let size = rng.between(9.0, 26.0);
                let at = if rng.unit() < 0.5 {
                    OUTER + LOBE * (angle * HOLES as f32).cos()
                } else {
                    BORE + TOOTH * ((angle * TEETH).cos() * 3.2).clamp(-1.0, 1.0)
                };
                Defect::Flash { spot: Spot::new(rng, polar(at, angle), size, 0.22) }
            }
            "scratch" => {
                let (slant, length, width) = (rng.unit() * TAU, rng.between(22.0, 70.0), rng.between(0.8, 1.7));
                let line = Line::scratch(rng, place, slant, length, width);
                Defect::Scratch { line, pale: rng.between(0.4, 1.6), depth: rng.between(0.6, 1.6) }
            }
            "contamination" => {
                let (size, ragged) = (rng.between(6.0, 20.0), rng.between(0.2, 0.45));
                let spot = Spot::new(rng, place, size, ragged);
                match (rng.unit() * 3.0) as usize {
                    // grease, swarf, a crumb
                    0 => Defect::Dirt { spot, colour: [0.022, 0.02, 0.016], height: 0.6, gloss: 0.2 },
                    1 => Defect::Dirt { spot, colour: [0.2, 0.2, 0.2], height: 2.0, gloss: 0.4 },
                    _ => Defect::Dirt { spot, colour: [0.16, 0.10, 0.05], height: 3.0, gloss: 0.02 },
                }
            }
            _ => return None,
        })
    }
}
