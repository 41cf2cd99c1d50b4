//! Twill that fills the picture: no two pictures show the same piece.
//!
//! Own coordinates are counted in threads: warp threads run along y at whole x, weft threads along x at whole y. In a
//! 2/2 twill the warp lies on top where `(column + row) % 4 < 2`.

use super::marks::{Line, Point, Pose, Spot, fractal};
use super::render::{Item, Rgb, Studio, Texel};
use super::set::Kind;
use crate::noise::{Rng, step, value};
use std::f32::consts::{PI, TAU};

pub const KIND: Kind = Kind {
    name: "fabric",
    width: 512,
    height: 512,
    extension: "jpg",
    studio: Studio { lamp: [215.0, 42.0], power: [0.75, 0.55], gradient: 0.2, noise: 2.4, blur: 0.7, grey: false },
    defects: &["cut", "hole", "fold", "stain", "misweave"],
    part: |seed, defect| Box::new(Fabric::new(seed, defect)),
};

/// Pixels from one thread to the next.
const THREAD: f32 = 7.6;
const WARP: Rgb = [0.075, 0.10, 0.155];
const WEFT: Rgb = [0.22, 0.225, 0.225];

enum Defect {
    /// The cloth opens; what lies under it is dark.
    Cut {
        line: Line,
    },
    Hole {
        spot: Spot,
    },
    /// A ridge along a line: where it passes, which way it looks, its half width and height.
    Fold {
        at: Point,
        normal: Point,
        half: f32,
        height: f32,
        reach: f32,
    },
    Stain {
        spot: Spot,
        colour: Rgb,
    },
    /// One thread, a warp thread or a weft thread, goes wrong for some crossings.
    Weave {
        warp: bool,
        thread: i64,
        from: f32,
        to: f32,
        how: Wrong,
    },
}

enum Wrong {
    /// It lies over all others.
    Float,
    /// It is not there.
    Missing,
    /// It is another yarn: thicker by this and of another colour.
    Slub(f32, Rgb),
}

struct Fabric {
    pose: Pose,
    seed: u64,
    tone: f32,
    warm: f32,
    defect: Option<Defect>,
}

impl Fabric {
    fn new(seed: u64, defect: Option<(&str, u64)>) -> Self {
        let mut rng = Rng::new(seed, 0xfab);
        let angle = 4.0f32.to_radians() * rng.signed();
        let scale = THREAD * (1.0 + 0.03 * rng.signed());
        let centre = [-3000.0 * rng.unit() - 600.0, -3000.0 * rng.unit() - 600.0];
        let pose = Pose::new(centre, angle, scale);
        Fabric {
            pose,
            seed,
            tone: 1.0 + 0.06 * rng.signed(),
            warm: 0.02 * rng.signed(),
            defect: defect.and_then(|(label, seed)| Defect::new(label, &mut Rng::new(seed, 0xdefe), &pose)),
        }
    }

    /// Height (threads), colour and yarn of the topmost thread at `p`; nothing where no thread is.
    fn weave(&self, p: Point) -> Option<(f32, Rgb)> {
        let column = p[0].floor();
        let row = p[1].floor();
        let warp = self.thread(true, column as i64, p[0] - column - 0.5, p[1], p);
        let weft = self.thread(false, row as i64, p[1] - row - 0.5, p[0], p);
        // a thread arches over the two it crosses and dives under the next two
        let lift = |along: f32| 0.22 * (0.5 * PI * along).sin();
        let lifted = |t: Option<(f32, Rgb, f32)>, lift: f32| t.map(|(h, c, up)| (h + lift.max(0.35 * up), c));
        let (warp, weft) = (lifted(warp, lift(p[1] + column)), lifted(weft, -lift(p[0] + row)));
        match (warp, weft) {
            (Some(a), Some(b)) => Some(if a.0 > b.0 { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    /// Height and colour of one thread at `aside` (-.5 to .5) from its middle, and whether it is pulled up.
    fn thread(&self, warp: bool, index: i64, aside: f32, along: f32, p: Point) -> Option<(f32, Rgb, f32)> {
        let key = self.seed ^ if warp { 0x3a } else { 0x5b };
        let own = |k: u64| value(key ^ k, index as f32 + 0.5, 0.5, 0);
        // yarn is spun: thickness and tone vary along it
        let uneven = value(key ^ 9, along * 0.16, index as f32 * 1.7, 0);
        let mut half = 0.47 * (1.0 + 0.05 * own(1) + 0.07 * uneven);
        let mut colour = if warp { WARP } else { WEFT };
        let mut up = 0.0;
        if let Some(Defect::Weave { warp: w, thread, from, to, how }) = &self.defect
            && *w == warp
            && *thread == index
            && (*from..*to).contains(&along)
        {
            match how {
                Wrong::Float => up = 1.0,
                Wrong::Missing => return None,
                Wrong::Slub(thicker, other) => {
                    let ends = ((along - from).min(to - along) * 0.7).clamp(0.0, 1.0);
                    half *= 1.0 + thicker * ends;
                    colour = std::array::from_fn(|i| colour[i] + (other[i] - colour[i]) * ends);
                }
            }
        }
        let t = aside / half;
        if t.abs() >= 1.0 {
            return None;
        }
        // fibres are twisted round the yarn
        let twist = (TAU * (along * 1.6 + aside * 1.1)).sin();
        let fibre = value(key ^ 3, p[0] * 3.1, p[1] * 3.1, 0);
        let tone = self.tone * (1.0 + 0.11 * own(2) + 0.13 * uneven + 0.05 * twist + 0.14 * fibre);
        let height = 0.5 * (1.0 - t * t).sqrt() + 0.02 * twist;
        Some((
            height,
            [colour[0] * tone * (1.0 + self.warm), colour[1] * tone, colour[2] * tone * (1.0 - self.warm)],
            up,
        ))
    }
}

impl Item for Fabric {
    fn texel(&self, x: f32, y: f32) -> Texel {
        let at = [x, y];
        let (mut x, mut y) = (x, y);
        let mut ridge = 0.0;
        if let Some(Defect::Fold { at: c, normal, half, height, reach }) = &self.defect {
            let (dx, dy) = (x - c[0], y - c[1]);
            let along = dx * -normal[1] + dy * normal[0];
            let ends = step(*reach, 0.6 * reach, along.abs());
            let d = dx * normal[0] + dy * normal[1] + 5.0 * value(self.seed ^ 31, along / 60.0, 0.5, 0);
            let bell = (-(d / half).powi(2)).exp() * ends;
            ridge = height * bell;
            // cloth that goes up is seen from aside: the weave is drawn together
            let pull = 0.55 * height * (d / half) * bell;
            (x, y) = (x + pull * normal[0], y + pull * normal[1]);
        }
        // cloth never lies quite straight
        let sway = |k: u64| 5.0 * value(self.seed ^ k, at[0] / 210.0, at[1] / 210.0, 0);
        let p = self.pose.own(x + sway(21), y + sway(22));
        let below = Texel { height: -4.0, albedo: [0.115, 0.11, 0.105], gloss: 0.0, rough: 0.6, cover: 1.0 };
        let wave = 1.5 * fractal(self.seed ^ 23, [at[0] / 150.0, at[1] / 150.0], 2, 0.5);
        let (mut height, mut albedo) = match self.weave(p) {
            Some((h, colour)) => (h * 6.0, colour),
            None => (-1.0, WARP.map(|c| c * 0.5)),
        };
        // small knots and lint are in every cloth
        let nep = step(0.88, 1.0, value(self.seed ^ 24, p[0] * 0.45, p[1] * 0.45, 0));
        height += ridge + wave + 1.2 * nep;
        let lint = step(0.92, 1.0, value(self.seed ^ 25, p[0] * 0.6, p[1] * 0.6, 0));
        albedo = albedo.map(|a| (a + (0.24 - a) * 0.4 * nep) * (1.0 - 0.6 * lint));
        let mut gap = 0.0;
        match &self.defect {
            Some(Defect::Cut { line }) => {
                let fray = 1.2 * value(self.seed ^ 41, at[0] / 2.2, at[1] / 2.2, 0);
                gap = line.gap([at[0] + fray, at[1] - fray]);
                height += 1.4 * line.near(at).map_or(0.0, |(d, _)| (-(d / (line.width + 3.0)).powi(2)).exp());
            }
            Some(Defect::Hole { spot }) => {
                let t = spot.at(at) + 0.16 * value(self.seed ^ 42, p[0] * 2.0, p[1] * 2.0, 0);
                gap = 0.9 * step(1.1, 0.9, t);
                height += 1.2 * (-(2.5 * (t - 1.1)).powi(2)).exp();
            }
            Some(Defect::Stain { spot, colour }) => {
                let t = spot.at(at);
                let body = step(1.2, 0.7, t) * (0.7 + 0.3 * step(0.3, 0.95, t));
                albedo.iter_mut().zip(colour).for_each(|(a, c)| *a *= 1.0 - c * body);
            }
            _ => {}
        }
        Texel { height, albedo, gloss: 0.03, rough: 0.5, cover: 1.0 }.under(&below, gap)
    }
}

impl Defect {
    fn new(label: &str, rng: &mut Rng, pose: &Pose) -> Option<Self> {
        let centre = [rng.between(50.0, 462.0), rng.between(50.0, 462.0)];
        Some(match label {
            "cut" => {
                let (angle, length, width) = (rng.unit() * PI, rng.between(20.0, 64.0), rng.between(0.9, 2.2));
                Defect::Cut { line: Line::scratch(rng, centre, angle, length, width) }
            }
            "hole" => {
                let size = rng.between(7.0, 17.0);
                Defect::Hole { spot: Spot::new(rng, centre, size, 0.2) }
            }
            "fold" => {
                let (s, c) = (rng.unit() * PI).sin_cos();
                let half = rng.between(7.0, 16.0);
                Defect::Fold {
                    at: centre,
                    normal: [s, c],
                    half,
                    height: half * rng.between(0.6, 1.1),
                    reach: rng.between(80.0, 260.0),
                }
            }
            "stain" => {
                let (size, ragged, deep) = (rng.between(14.0, 52.0), rng.between(0.15, 0.45), rng.between(0.3, 0.6));
                let colour = [[0.55, 0.8, 1.0], [1.0, 0.95, 0.85], [0.9, 0.9, 0.9]][(rng.unit() * 3.0) as usize];
                Defect::Stain { spot: Spot::new(rng, centre, size, ragged), colour: colour.map(|c| c * deep) }
            }
            "misweave" => {
                let warp = rng.unit() < 0.5;
                let own = pose.own(centre[0], centre[1]);
                let (across, along) = if warp { (own[0], own[1]) } else { (own[1], own[0]) };
                let length = rng.between(9.0, 26.0);
                let how = match (rng.unit() * 3.0) as usize {
                    0 => Wrong::Float,
                    1 => Wrong::Missing,
                    _ => Wrong::Slub(rng.between(0.35, 0.8), [0.17, 0.15, 0.15]),
                };
                let thread = across.floor() as i64;
                Defect::Weave { warp, thread, from: along - length / 2.0, to: along + length / 2.0, how }
            }
            _ => return None,
        })
    }
}
