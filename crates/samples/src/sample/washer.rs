//! One machined steel washer: turned face with four drilled holes and a grade mark, chamfered edges, a bore.
//!
//! The surface is a slope field with an albedo; light falls on it in [`Lamps::shade`]. Turning marks are fine circular
//! grooves, so the face reflects like brushed metal: along the two rays that point at a lamp (Ward's anisotropic model),
//! wherever the part lies and however it is turned. Lengths are pixels at the height of the face.

use super::defects::{Defect, Kind, Scratch};
use crate::noise::{Rng, step, value};
use crate::shapes::to_segment;
use std::f32::consts::{FRAC_PI_2, TAU};

/// Outer radius; the box in the truth file is twice this.
pub const RADIUS: f32 = 170.0;
/// Radius of the bore.
pub const BORE: f32 = 62.0;
const OUTER_CHAMFER: f32 = 8.0;
const BORE_CHAMFER: f32 = 6.0;
const THICKNESS: f32 = 26.0;
/// Radius of the circle on which the small holes and the mark lie.
pub const PITCH_CIRCLE: f32 = 117.0;
const HOLE: f32 = 11.5;
const COUNTERSINK: f32 = 4.0;
/// Grooves are tabulated this many times per pixel of radius.
const GROOVES_PER_PX: f32 = 2.0;
/// Height of the camera above the belt; also gives the view into the bore.
const CAMERA: [f32; 3] = [640.0, 360.0, 2100.0];

/// Linear light, red, green, blue.
pub type Rgb = [f32; 3];

/// A lamp: where it is and how strong it is in each colour.
pub struct Lamp {
    at: [f32; 3],
    colour: Rgb,
}

/// The lamps over the belt. They never move; only parts do.
pub struct Lamps(Vec<Lamp>);

/// What the light meets at one point.
#[derive(Clone, Copy)]
pub struct Surface {
    /// dz/dx and dz/dy.
    pub slope: [f32; 2],
    /// Share of scattered light.
    pub albedo: Rgb,
    /// Strength of the mirror-like part; 1 is bare turned steel.
    pub gloss: f32,
    /// Roughness along the grooves and across them.
    pub rough: [f32; 2],
}

impl Default for Lamps {
    fn default() -> Self {
        Lamps(vec![
            Lamp { at: [260.0, -560.0, 980.0], colour: [1.0, 0.985, 0.95] },
            Lamp { at: [1560.0, 420.0, 900.0], colour: [0.46, 0.49, 0.52] },
        ])
    }
}

impl Lamps {
    /// Light towards the camera from `surface` at `p`; `radial` is the unit vector across the grooves.
    pub fn shade(&self, p: [f32; 2], radial: [f32; 2], surface: &Surface) -> Rgb {
        let s = surface.slope;
        let along = [-radial[1], radial[0]];
        let (s_along, s_across) = (s[0] * along[0] + s[1] * along[1], s[0] * radial[0] + s[1] * radial[1]);
        let up = 1.0 / (1.0 + s[0] * s[0] + s[1] * s[1]).sqrt();
        let view = unit([CAMERA[0] - p[0], CAMERA[1] - p[1], CAMERA[2]]);
        // the hall: brighter above the far side of the belt, and mirrored twice as far as the surface tilts
        let hall = (0.075 + 0.5 * (0.5 * s[0] - s[1]).clamp(-0.1, 0.25)).max(0.02) * surface.gloss;
        let mut out = surface.albedo.map(|a| a * 0.13 * (0.55 + 0.45 * up) + hall);
        for lamp in &self.0 {
            let light = unit([lamp.at[0] - p[0], lamp.at[1] - p[1], lamp.at[2]]);
            let facing = up * (light[2] - s[0] * light[0] - s[1] * light[1]);
            if facing <= 0.0 {
                continue;
            }
            let h = unit([light[0] + view[0], light[1] + view[1], light[2] + view[2]]);
            let h_along = (h[0] * along[0] + h[1] * along[1] + s_along * h[2]) / (1.0 + s_along * s_along).sqrt();
            let h_across = (h[0] * radial[0] + h[1] * radial[1] + s_across * h[2]) / (1.0 + s_across * s_across).sqrt();
            let h_up = (up * (h[2] - s[0] * h[0] - s[1] * h[1])).max(0.05);
            let lobe = (h_along / surface.rough[0]).powi(2) + (h_across / surface.rough[1]).powi(2);
            let mirror = 1.15 * surface.gloss * (-lobe / (h_up * h_up)).exp();
            for (o, (colour, albedo)) in out.iter_mut().zip(lamp.colour.iter().zip(surface.albedo)) {
                *o += colour * facing.min(1.0) * (albedo * 0.15 + mirror);
            }
        }
        out
    }
}

fn unit(v: [f32; 3]) -> [f32; 3] {
    let n = 1.0 / (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt();
    v.map(|a| a * n)
}

/// How one washer differs from the next.
pub struct Washer {
    /// Rotation of holes and mark, radians.
    turn: f32,
    /// The part does not lie quite flat.
    tilt: [f32; 2],
    gain: f32,
    rough: f32,
    grooves: Vec<f32>,
    seed: u64,
    /// Faint handling marks that every part has.
    hairlines: Vec<Scratch>,
    defect: Option<Defect>,
}

impl Washer {
    /// The washer number `index` of a recording.
    pub fn new(seed: u64, index: u64, defect: Option<Defect>) -> Self {
        let mut rng = Rng::new(seed, 0x1000 + index);
        let turn = rng.signed() * 2.8f32.to_radians();
        let tilt = [rng.signed() * 0.06, rng.signed() * 0.06];
        let gain = 1.0 + 0.08 * rng.signed();
        let rough = 1.0 + 0.2 * rng.signed();
        let grooves = grooves(&mut rng);
        let hairlines = (0..5).map(|_| Scratch::hairline(&mut rng)).collect();
        Washer { turn, tilt, gain, rough, grooves, seed: seed ^ (index << 20), hairlines, defect }
    }

    /// Colour and coverage of the part at offset (`dx`, `dy`) from its centre, which is at `centre` in the picture.
    /// Without coverage the belt is seen (beside the part or through the bore).
    pub fn look(&self, lamps: &Lamps, centre: [f32; 2], dx: f32, dy: f32) -> (Rgb, f32) {
        let r = (dx * dx + dy * dy).sqrt();
        if r > RADIUS + 1.0 {
            return ([0.0; 3], 0.0);
        }
        let p = [centre[0] + dx, centre[1] + dy];
        if r < BORE - 1.0 {
            return self.bore_wall(centre, p, dx, dy);
        }
        let radial = [dx / r, dy / r];
        let outer = step(RADIUS + 0.7, RADIUS - 0.7, r);
        let inner = step(BORE - 0.7, BORE + 0.7, r);
        (self.face(lamps, p, radial, [dx, dy], r), outer * inner)
    }

    /// The camera looks into the bore at an angle: part of its wall is seen, dark, lit from the other side.
    fn bore_wall(&self, centre: [f32; 2], p: [f32; 2], dx: f32, dy: f32) -> (Rgb, f32) {
        let k = THICKNESS / CAMERA[2];
        let bottom = [centre[0] + (CAMERA[0] - centre[0]) * k, centre[1] + (CAMERA[1] - centre[1]) * k];
        let (bx, by) = (p[0] - bottom[0], p[1] - bottom[1]);
        let d = (bx * bx + by * by).sqrt();
        let covered = step(-0.7, 0.7, d - BORE * (1.0 - k));
        let lit = 0.05 + 0.09 * ((dx * 0.4 + dy) / BORE).max(0.0);
        ([lit, lit, lit * 1.02], covered)
    }

    fn face(&self, lamps: &Lamps, p: [f32; 2], radial: [f32; 2], offset: [f32; 2], r: f32) -> Rgb {
        let (sin, cos) = self.turn.sin_cos();
        let own = [offset[0] * cos + offset[1] * sin, offset[1] * cos - offset[0] * sin];
        let angle = own[1].atan2(own[0]);
        let groove = self.groove(r);
        // streaks along the grooves, and a film of cutting oil that never dries evenly
        let streak = value(self.seed, (angle / TAU + 0.5) * 32.0, r * 0.7, 32);
        let film = value(self.seed ^ 1, own[0] / 70.0, own[1] / 70.0, 0);
        let tone = self.gain * (1.0 + 0.12 * film + 0.5 * groove + 0.035 * streak);
        let mut surface = Surface {
            slope: [self.tilt[0] + groove * radial[0], self.tilt[1] + groove * radial[1]],
            albedo: [0.93 * tone, 0.95 * tone, 0.97 * tone],
            gloss: self.gain * (1.0 + 0.2 * film + 0.1 * streak),
            rough: [0.15 * self.rough, 0.4],
        };
        let edge = step(RADIUS - OUTER_CHAMFER - 1.6, RADIUS - OUTER_CHAMFER + 1.6, r);
        let lip = step(BORE + BORE_CHAMFER + 1.6, BORE + BORE_CHAMFER - 1.6, r);
        if edge + lip > 0.0 {
            let steep = 0.8 * (lip - edge);
            surface.slope = [surface.slope[0] + steep * radial[0], surface.slope[1] + steep * radial[1]];
            surface.rough = [surface.rough[0] + 0.16 * (edge + lip), surface.rough[1] - 0.05 * (edge + lip)];
            surface.gloss *= 1.0 + 0.2 * (edge + lip);
        }
        for hairline in &self.hairlines {
            hairline.mark(own, &mut surface);
        }
        self.engrave(own, r, angle, &mut surface);
        let mut depth = 0.0;
        for hole in 0..4 {
            if self.defect.as_ref().is_some_and(|d| d.kind == Kind::MissingHole && d.hole == hole) {
                continue;
            }
            depth = f32::max(depth, drill(own, hole, radial, [sin, cos], &mut surface));
        }
        if let Some(defect) = &self.defect {
            defect.mark(own, [sin, cos], &mut surface);
        }
        let lit = lamps.shade(p, radial, &surface);
        let dark = 0.022 + 0.02 * value(self.seed ^ 2, own[0] * 0.3, own[1] * 0.3, 0).abs();
        lit.map(|v| v + (dark - v) * depth)
    }

    fn groove(&self, r: f32) -> f32 {
        let at = (r * GROOVES_PER_PX).max(0.0);
        let i = (at as usize).min(self.grooves.len() - 2);
        let t = at - i as f32;
        self.grooves[i] + (self.grooves[i + 1] - self.grooves[i]) * t.min(1.0)
    }

    fn engrave(&self, own: [f32; 2], r: f32, angle: f32, surface: &mut Surface) {
        let up = PITCH_CIRCLE - r;
        if up.abs() > 14.0 || own[1] < 0.0 {
            return;
        }
        let right = (FRAC_PI_2 - angle) * PITCH_CIRCLE;
        let depth = step(1.9, 0.7, mark_distance(right, up));
        surface.albedo = surface.albedo.map(|a| a * (1.0 - 0.72 * depth));
        surface.gloss *= 1.0 - 0.85 * depth;
    }
}

/// Feed marks of the tool: a regular pitch with an irregular hand, as slopes across the grooves.
fn grooves(rng: &mut Rng) -> Vec<f32> {
    let n = ((RADIUS + 6.0) * GROOVES_PER_PX) as usize;
    let (pitch, phase) = (rng.between(5.2, 6.0), rng.unit());
    let raw: Vec<f32> = (0..n + 8).map(|_| rng.bell()).collect();
    let coarse: Vec<f32> = (0..n / 16 + 3).map(|_| rng.bell()).collect();
    (0..n)
        .map(|i| {
            let fine: f32 = raw[i..i + 7].iter().sum::<f32>() / 7.0f32.sqrt();
            let (j, t) = (i / 16, (i % 16) as f32 / 16.0);
            let wave = coarse[j] + (coarse[j + 1] - coarse[j]) * t;
            let tool = (TAU * (i as f32 / GROOVES_PER_PX / pitch + phase)).sin();
            0.028 * fine + 0.016 * wave + 0.018 * tool
        })
        .collect()
}

/// Centre of a small hole in the part's own coordinates.
pub fn hole_centre(hole: usize) -> [f32; 2] {
    let angle = TAU * (hole as f32 + 0.5) / 4.0;
    [PITCH_CIRCLE * angle.cos(), PITCH_CIRCLE * angle.sin()]
}

/// Cuts one hole: its countersink tilts the surface, its depth (returned, 0 to 1) is dark.
fn drill(own: [f32; 2], hole: usize, radial: [f32; 2], turn: [f32; 2], surface: &mut Surface) -> f32 {
    let c = hole_centre(hole);
    let (dx, dy) = (own[0] - c[0], own[1] - c[1]);
    let d = (dx * dx + dy * dy).sqrt().max(0.01);
    if d > HOLE + COUNTERSINK + 2.0 {
        return 0.0;
    }
    let sink = step(HOLE + COUNTERSINK + 0.8, HOLE + COUNTERSINK - 0.8, d);
    let (ux, uy) = (dx / d, dy / d);
    let out = [ux * turn[1] - uy * turn[0], uy * turn[1] + ux * turn[0]];
    // the countersink is cut round the hole, not round the part: leave the part's groove slope behind
    let groove = surface.slope[0] * radial[0] + surface.slope[1] * radial[1];
    for ((s, o), a) in surface.slope.iter_mut().zip(out).zip(radial) {
        *s += sink * (0.75 * o - groove * a);
    }
    let rough = surface.rough;
    surface.rough = [rough[0] + (0.33 - rough[0]) * sink, rough[1] + (0.33 - rough[1]) * sink];
    step(HOLE + 0.8, HOLE - 0.8, d)
}

/// Strokes of the mark "A2-70" in cells of 1 by 1, y up.
const GLYPHS: [&[&[[f32; 2]]]; 5] = [
    &[&[[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]], &[[0.2, 0.38], [0.8, 0.38]]],
    &[&[[0.0, 0.78], [0.2, 1.0], [0.8, 1.0], [1.0, 0.78], [0.95, 0.58], [0.0, 0.0], [1.0, 0.0]]],
    &[&[[0.15, 0.46], [0.85, 0.46]]],
    &[&[[0.0, 1.0], [1.0, 1.0], [0.35, 0.0]]],
    &[&[[0.3, 0.0], [0.7, 0.0], [1.0, 0.3], [1.0, 0.7], [0.7, 1.0], [0.3, 1.0], [0.0, 0.7], [0.0, 0.3], [0.3, 0.0]]],
];
const GLYPH: [f32; 2] = [11.0, 17.0];
const ADVANCE: f32 = 17.0;

fn mark_distance(right: f32, up: f32) -> f32 {
    let from_left = right + ADVANCE * GLYPHS.len() as f32 / 2.0;
    let cell = (from_left / ADVANCE).floor();
    let Some(glyph) = usize::try_from(cell as i64).ok().and_then(|i| GLYPHS.get(i)) else {
        return f32::INFINITY;
    };
    let p = [from_left - cell * ADVANCE - (ADVANCE - GLYPH[0]) / 2.0, up + GLYPH[1] / 2.0];
    let mut best = f32::INFINITY;
    for stroke in *glyph {
        for pair in stroke.windows(2) {
            let scaled = |q: [f32; 2]| [q[0] * GLYPH[0], q[1] * GLYPH[1]];
            best = best.min(to_segment(p, scaled(pair[0]), scaled(pair[1])).0);
        }
    }
    best
}
