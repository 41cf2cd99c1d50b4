//! Bolts that lie at any angle on a dark mat: hexagon head with a flange, shank, thread, chamfered tip.
//!
//! Own coordinates: the axis is x, the head's face is at `-HALF`, the tip at `HALF`; lengths in pixels.

use super::marks::{Line, Point, Pose, Spot, fractal};
use super::render::{Item, Studio, Texel};
use super::set::Kind;
use crate::noise::{Rng, step, value};
use std::f32::consts::{PI, TAU};

pub const KIND: Kind = Kind {
    name: "bolt",
    width: 640,
    height: 512,
    extension: "jpg",
    studio: Studio { lamp: [235.0, 58.0], power: [0.62, 0.72], gradient: 0.16, noise: 2.2, blur: 0.75, grey: false },
    defects: &["bent_tip", "scratch", "thread", "nick", "stain"],
    part: |seed, defect| Box::new(Bolt::new(seed, defect)),
};

const HALF: f32 = 172.0;
/// Axial places: end of the head, end of the flange, start of the thread, start of the chamfer.
const HEAD: f32 = -HALF + 46.0;
const FLANGE: f32 = HEAD + 9.0;
const THREAD: f32 = 8.0;
const CHAMFER: f32 = HALF - 12.0;
/// Radii of the hexagon's corners, the flange and the shank; depth and pitch of the thread.
const CORNER: f32 = 42.0;
const COLLAR: f32 = 47.0;
const SHANK: f32 = 22.0;
const DEPTH: f32 = 4.6;
const PITCH: f32 = 11.5;
/// Height of the axis over the mat.
const AXIS: f32 = 30.0;

enum Defect {
    /// From there on the axis is a parabola with this bend at the tip.
    Bent {
        from: f32,
        by: f32,
    },
    Scratch {
        line: Line,
        depth: f32,
        bare: f32,
    },
    /// The thread is squashed there; what is left of its depth.
    Thread {
        spot: Spot,
        left: f32,
    },
    Nick {
        spot: Spot,
        depth: f32,
    },
    Stain {
        spot: Spot,
        colour: [f32; 3],
    },
}

struct Bolt {
    pose: Pose,
    seed: u64,
    /// Where the thread starts, in turns.
    start: f32,
    /// How far the parts' dimensions are off: length, thickness.
    off: [f32; 2],
    /// Tone and warmth of the zinc.
    tone: [f32; 2],
    mat: f32,
    defect: Option<Defect>,
}

impl Bolt {
    fn new(seed: u64, defect: Option<(&str, u64)>) -> Self {
        let mut rng = Rng::new(seed, 0xb017);
        let angle = rng.unit() * TAU;
        // nearer to the edge the less it reaches there
        let reach = [HALF * angle.cos().abs() + 50.0, HALF * angle.sin().abs() + 50.0];
        let room = [(320.0 - reach[0] - 14.0).min(80.0), (256.0 - reach[1] - 10.0).min(70.0)].map(|r| r.max(0.0));
        let centre = [320.0 + room[0] * rng.signed(), 256.0 + room[1] * rng.signed()];
        Bolt {
            pose: Pose::new(centre, angle, 1.0 + 0.008 * rng.signed()),
            seed,
            start: rng.unit(),
            off: [1.0 + 0.006 * rng.signed(), 1.0 + 0.012 * rng.signed()],
            tone: [1.0 + 0.1 * rng.signed(), 0.03 * rng.signed()],
            mat: 1.0 + 0.12 * rng.signed(),
            defect: defect.and_then(|(label, seed)| Defect::new(label, &mut Rng::new(seed, 0xdefe))),
        }
    }

    /// Radius of the silhouette and height over the axis at `own`; a negative first value is outside.
    fn body(&self, [u, v]: Point) -> (f32, f32) {
        let over = |r: f32| (r - v.abs(), (r * r - v * v).max(0.0).sqrt());
        let thick = self.off[1];
        if u < FLANGE {
            let end = (u + HALF).min(FLANGE - u);
            if u < HEAD {
                // lies on a flat: one face looks up, two fall away at 60 degrees; the face's corners are turned off
                let turned = 5.0 * step(7.0, 0.0, u + HALF);
                let (across, flat) = (v.abs(), CORNER * 0.866);
                let side = (flat - (across - 0.5 * CORNER).max(0.0) * 1.732).max(0.0);
                return ((CORNER - turned - across).min(end), (side - turned).max(0.0));
            }
            let (edge, z) = over(COLLAR - 1.5 * step(3.0, 0.0, u - HEAD));
            return (edge.min(end), z);
        }
        let mut r = SHANK * thick;
        if u > THREAD - 6.0 {
            let mut depth = DEPTH * step(THREAD - 6.0, THREAD + 12.0, u);
            if let Some(Defect::Thread { spot, left }) = &self.defect {
                depth *= 1.0 - (1.0 - left) * spot.inside([u, v], 0.35);
            }
            let turn = (v / (SHANK + 1.0)).clamp(-1.0, 1.0).asin() / TAU;
            let phase = (u / PITCH + turn + self.start).fract();
            // flanks with a rounded crest and root
            let profile = 1.0 - (2.0 * (phase - 0.5).abs() - 0.08).clamp(0.0, 0.84) / 0.84;
            r += 1.6 - depth * profile;
            if let Some(Defect::Thread { spot, .. }) = &self.defect {
                r -= 1.5 * spot.inside([u, v], 0.35);
            }
        }
        r -= 8.0 * ((u - CHAMFER) / (HALF - CHAMFER)).clamp(0.0, 1.0);
        // the fillet under the flange
        r += 5.0 * step(FLANGE + 7.0, FLANGE, u);
        let (edge, z) = over(r);
        (edge.min(HALF - u), z)
    }

    fn mat(&self, x: f32, y: f32) -> Texel {
        let uneven = 1.0 + 0.12 * fractal(self.seed ^ 11, [x / 130.0, y / 130.0], 2, 0.5);
        let fine = 1.0 + 0.2 * value(self.seed ^ 12, x / 1.7, y / 1.7, 0);
        let level = 0.03 * self.mat * uneven * fine;
        let bump = 0.35 * value(self.seed ^ 13, x / 3.0, y / 3.0, 0);
        Texel { height: bump, albedo: [0.85 * level, 0.98 * level, 1.12 * level], gloss: 0.01, rough: 0.6, cover: 0.0 }
    }

    fn metal(&self, own: Point, z: f32) -> Texel {
        let [u, v] = own;
        let seed = self.seed;
        // turned: rings round the axis; the head is forged: spots
        let round = step(FLANGE - 2.0, FLANGE + 2.0, u);
        let rings = value(seed ^ 1, u * 0.9, v * 0.04, 0) * round;
        let grain = value(seed ^ 2, u / 2.2, v / 2.2, 0);
        let film = fractal(seed ^ 3, [u / 42.0, v / 30.0], 3, 0.55);
        let tone = self.tone[0] * (1.0 + 0.16 * film + 0.07 * rings + 0.06 * grain);
        let warm = self.tone[1] + 0.05 * film;
        let height = z + 0.18 * grain * (1.0 - 0.6 * round) + 0.12 * rings;
        Texel {
            height: AXIS + height,
            albedo: [0.17 * tone * (1.0 + warm), 0.17 * tone, 0.167 * tone * (1.0 - warm)],
            gloss: 0.42 * tone,
            rough: 0.27 + 0.05 * film,
            cover: 1.0,
        }
    }
}

impl Item for Bolt {
    fn texel(&self, x: f32, y: f32) -> Texel {
        let ground = self.mat(x, y);
        let mut own = self.pose.own(x, y);
        own[0] /= self.off[0];
        if let Some(Defect::Bent { from, by }) = &self.defect {
            let t = ((own[0] - from) / (HALF - from)).max(0.0);
            own[1] -= by * t * t;
        }
        if own[0].abs() > HALF + 3.0 || own[1].abs() > COLLAR + 3.0 {
            return ground;
        }
        let (mut edge, mut z) = self.body(own);
        if edge < -2.0 {
            return ground;
        }
        if let Some(Defect::Nick { spot, depth }) = &self.defect {
            let cut = spot.inside(own, 0.4);
            z -= depth * cut;
            // the silhouette loses what is cut through
            if edge < 5.0 {
                edge -= 5.0 * cut;
            }
        }
        let mut metal = self.metal(own, z);
        match &self.defect {
            Some(Defect::Scratch { line, depth, bare }) => {
                let bite = line.depth(own);
                let side = line.near(own).map_or(0.0, |(d, _)| d / line.width);
                metal.height -= depth * bite * (1.0 - 0.5 * side * side);
                metal.tint([1.0 + bare * bite; 3]);
                metal.gloss *= 1.0 + bare * bite;
            }
            Some(Defect::Stain { spot, colour }) => {
                let t = spot.at(own);
                let body = step(1.15, 0.75, t) * (0.75 + 0.25 * step(0.3, 0.9, t));
                metal.tint(colour.map(|c| 1.0 - c * body));
                metal.gloss *= 1.0 - 0.6 * colour[1] * body;
            }
            Some(Defect::Nick { spot, .. }) => {
                let cut = spot.inside(own, 0.4);
                metal.tint([1.0 + 0.35 * cut; 3]);
                metal.height += 0.5 * cut * value(self.seed ^ 21, own[0] / 2.0, own[1] / 2.0, 0);
            }
            _ => {}
        }
        ground.under(&metal, step(-0.7, 0.7, edge))
    }
}

impl Defect {
    fn new(label: &str, rng: &mut Rng) -> Option<Self> {
        Some(match label {
            "bent_tip" => {
                let side = if rng.unit() < 0.5 { -1.0 } else { 1.0 };
                Defect::Bent { from: HALF - rng.between(45.0, 110.0), by: side * rng.between(3.5, 12.0) }
            }
            "scratch" => {
                let centre = [rng.between(FLANGE + 12.0, THREAD - 8.0), 13.0 * rng.signed()];
                let (angle, length) = (rng.between(0.0, PI), rng.between(14.0, 48.0));
                let width = rng.between(0.8, 1.6);
                let line = Line::scratch(rng, centre, angle, length, width);
                Defect::Scratch { line, depth: rng.between(0.7, 1.8), bare: rng.between(0.0, 0.7) }
            }
            "thread" => {
                let centre = [rng.between(THREAD + 18.0, CHAMFER - 12.0), SHANK * 0.95 * rng.signed()];
                let size = rng.between(11.0, 30.0);
                Defect::Thread { spot: Spot::new(rng, centre, size, 0.15), left: rng.between(0.0, 0.3) }
            }
            "nick" => {
                let along = rng.between(-HALF + 5.0, HEAD - 4.0);
                let side = if rng.unit() < 0.5 { -1.0 } else { 1.0 };
                // at the corners, where knocks land: the outline's or the upper face's
                let across = side * if rng.unit() < 0.5 { CORNER - 1.0 } else { 0.5 * CORNER };
                let size = rng.between(7.0, 16.0);
                Defect::Nick { spot: Spot::new(rng, [along, across], size, 0.2), depth: rng.between(2.0, 4.5) }
            }
            "stain" => {
                let centre = [rng.between(-HALF + 14.0, CHAMFER - 6.0), 15.0 * rng.signed()];
                let (size, ragged) = (rng.between(7.0, 24.0), rng.between(0.15, 0.4));
                let deep = rng.between(0.35, 0.75);
                let colour = if rng.unit() < 0.5 { [0.5, 0.8, 1.0] } else { [1.0, 0.95, 0.85] };
                Defect::Stain { spot: Spot::new(rng, centre, size, ragged), colour: colour.map(|c| c * deep) }
            }
            _ => return None,
        })
    }
}
