//! What can be wrong with a washer: each defect changes the surface, never the picture, so that it meets the same light
//! as the rest of the part.

use super::washer::{BORE, RADIUS, Surface};
use crate::noise::{Rng, step, value};
use crate::shapes::to_segment;
use std::f32::consts::TAU;

/// Kinds of defect; [`Kind::label`] is the word in the truth file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Scratch,
    Dent,
    Stain,
    MissingHole,
}

impl Kind {
    /// The word in the truth file.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Scratch => "scratch",
            Kind::Dent => "dent",
            Kind::Stain => "stain",
            Kind::MissingHole => "missing-hole",
        }
    }
}

/// A defect and where it is in the part's own coordinates.
pub struct Defect {
    pub kind: Kind,
    /// Which hole was not drilled ([`Kind::MissingHole`] only).
    pub hole: usize,
    centre: [f32; 2],
    size: f32,
    scratch: Option<Scratch>,
    seed: u64,
}

/// A scratch is drawn with this many straight strokes.
const STROKES: usize = 6;

/// A bent line in the surface: a ridge on one side, a groove on the other.
pub struct Scratch {
    points: [[f32; 2]; STROKES + 1],
    width: f32,
    depth: f32,
}

impl Scratch {
    /// So faint and thin that it is part of the finish.
    pub fn hairline(rng: &mut Rng) -> Self {
        let (r, a) = (rng.between(BORE + 15.0, RADIUS - 15.0), rng.unit() * TAU);
        let (angle, length) = (rng.unit() * TAU, rng.between(20.0, 60.0));
        let (depth, bend) = (rng.between(0.03, 0.07), rng.signed() * 3.0);
        Self::line([r * a.cos(), r * a.sin()], angle, length, 0.9, depth, bend)
    }

    fn line(centre: [f32; 2], angle: f32, length: f32, width: f32, depth: f32, bend: f32) -> Self {
        let (s, c) = angle.sin_cos();
        let points = std::array::from_fn(|i| {
            let t = i as f32 / STROKES as f32;
            let (along, aside) = (length * (t - 0.5), 4.0 * bend * t * (1.0 - t));
            [centre[0] + along * c - aside * s, centre[1] + along * s + aside * c]
        });
        Scratch { points, width, depth }
    }

    /// Tilts and brightens the surface under the line.
    pub fn mark(&self, own: [f32; 2], surface: &mut Surface) {
        let reach = 3.0 * self.width;
        let (low, high) = self.points.iter().fold(([f32::MAX; 2], [f32::MIN; 2]), |(l, h), p| {
            ([l[0].min(p[0]), l[1].min(p[1])], [h[0].max(p[0]), h[1].max(p[1])])
        });
        if (0..2).any(|i| own[i] < low[i] - reach || own[i] > high[i] + reach) {
            return;
        }
        let mut best = (f32::INFINITY, 0.0, 0.0, [0.0; 2]);
        for (i, pair) in self.points.windows(2).enumerate() {
            let (d, signed, t) = to_segment(own, pair[0], pair[1]);
            if d < best.0 {
                let (vx, vy) = (pair[1][0] - pair[0][0], pair[1][1] - pair[0][1]);
                let n = (vx * vx + vy * vy).sqrt();
                best = (d, signed, (i as f32 + t) / STROKES as f32, [-vy / n, vx / n]);
            }
        }
        let (d, signed, t, normal) = best;
        if d > reach {
            return;
        }
        // a tool bites slowly and leaves slowly
        let bite = (t.min(1.0 - t) * 5.0).clamp(0.15, 1.0) * self.depth;
        let bell = (-(d / self.width).powi(2)).exp();
        let side = -(signed / self.width) * bell * 1.6 * bite;
        for (s, n) in surface.slope.iter_mut().zip(normal) {
            *s += side * n;
        }
        surface.albedo = surface.albedo.map(|a| a * (1.0 + 0.9 * bite * bell));
        surface.rough = surface.rough.map(|r| r + 0.25 * bite * bell);
    }
}

impl Defect {
    /// A defect of `kind` at `angle` degrees and `radius` (for a missing hole the angle picks the hole). `size` is its
    /// length or diameter in pixels.
    pub fn new(kind: Kind, angle: f32, radius: f32, size: f32, seed: u64) -> Self {
        let a = angle.to_radians();
        let centre = [radius * a.cos(), radius * a.sin()];
        let mut rng = Rng::new(seed, 0xdefec7);
        let scratch = (kind == Kind::Scratch).then(|| {
            // across the grooves or slanting, never along them, where it would pass for one
            let slant = a + rng.between(0.25, 0.9) * if rng.unit() < 0.5 { -1.0 } else { 1.0 };
            Scratch::line(centre, slant, size, 1.4, 0.64, rng.signed() * 4.0)
        });
        Defect { kind, hole: (angle / 90.0) as usize % 4, centre, size, scratch, seed }
    }

    /// Changes the surface under the defect; `turn` is sine and cosine of the part's rotation.
    pub fn mark(&self, own: [f32; 2], turn: [f32; 2], surface: &mut Surface) {
        let (dx, dy) = (own[0] - self.centre[0], own[1] - self.centre[1]);
        let d = (dx * dx + dy * dy).sqrt();
        match self.kind {
            Kind::MissingHole => {}
            Kind::Scratch => {
                if let Some(scratch) = &self.scratch {
                    scratch.mark(own, surface);
                }
            }
            Kind::Dent => {
                let half = self.size / 2.0;
                // no two knocks are round
                let t = d / half * (1.0 + 0.14 * value(self.seed, own[0] / 14.0, own[1] / 14.0, 0));
                if t < 1.6 && d > 0.01 {
                    // a bowl with a raised rim: steepest half way out, the other way beyond the edge
                    let bowl = 2.2 * t * (-(t * 1.5).powi(2)).exp();
                    let steep = 0.52 * (bowl - 0.35 * step(0.75, 1.05, t) * step(1.6, 1.1, t));
                    let out = [dx / d, dy / d];
                    surface.slope[0] += steep * (out[0] * turn[1] - out[1] * turn[0]);
                    surface.slope[1] += steep * (out[1] * turn[1] + out[0] * turn[0]);
                    let flat = step(1.1, 0.7, t);
                    surface.rough = [surface.rough[0] + (0.3 - surface.rough[0]) * flat * 0.6, surface.rough[1]];
                    surface.albedo = surface.albedo.map(|a| a * (1.0 - 0.12 * flat));
                }
            }
            Kind::Stain => {
                let half = self.size / 2.0;
                if d < 1.7 * half {
                    let (sx, sy) = (0.8 * own[0] + 0.6 * own[1], 0.8 * own[1] - 0.6 * own[0]);
                    let wobble = 0.3 * value(self.seed, sx / 12.0, sy / 12.0, 0)
                        + 0.14 * value(self.seed ^ 7, own[0] / 5.0, own[1] / 5.0, 0);
                    let t = d / half + wobble;
                    // dried oil: darkest at its rim
                    let body = step(1.08, 0.78, t) * (0.75 + 0.25 * step(0.4, 0.88, t));
                    let tint = [0.32, 0.40, 0.50];
                    for (a, k) in surface.albedo.iter_mut().zip(tint) {
                        *a *= 1.0 - k * body;
                    }
                    surface.gloss *= 1.0 - 0.45 * body;
                }
            }
        }
    }
}
