//! A recording: which parts come when, and what the camera sees in each frame.
//!
//! Light is computed linearly: belt and shadows, parts over them, then lens (vignetting, slight defocus, a little motion
//! blur), then sensor (gamma, noise, 8 bits). Every frame depends on the seed and its number alone, so frames can be
//! rendered in any order, and a test can render one again.

use super::defects::{Defect, Kind};
use super::truth::{self, Truth};
use super::washer::{BORE, Lamps, RADIUS, Rgb, Washer};
use crate::noise::{Rng, step, value};
use crate::tone::gamma;
use std::f32::consts::TAU;

/// Size of the picture.
pub const WIDTH: usize = 1280;
/// Size of the picture.
pub const HEIGHT: usize = 720;
/// Frames a second.
pub const FPS: usize = 30;
/// The seed of the committed recordings.
pub const SEED: u64 = 7;
/// Mean belt speed in pixels a frame; the drive hunts a little around it.
const SPEED: f32 = 21.0;
/// The belt comes round again after this many pixels (a multiple of its weave).
const BELT: usize = 4095;
const WEAVE: f32 = 9.0;
/// Where the shadow falls, away from the stronger lamp, and how soft it is.
const SHADOW: [f32; 3] = [6.0, 11.0, 13.0];
/// Sensor noise, of 255 levels, in darkness and what a fully lit pixel adds to its square.
const NOISE: [f32; 2] = [0.8, 1.3];
/// Side of the noise tile; each frame starts somewhere else in it.
const GRAIN: usize = 509;

/// Which part, what is wrong with it, and there: angle (degrees), radius, size.
pub type Wrong = (usize, Kind, f32, f32, f32);

/// The defective parts of the run recording.
pub const DEFECTS: [Wrong; 12] = [
    (4, Kind::Stain, 5.0, 112.0, 44.0),
    (9, Kind::Scratch, 182.0, 108.0, 50.0),
    (13, Kind::MissingHole, 45.0, 0.0, 0.0),
    (17, Kind::Dent, 268.0, 116.0, 30.0),
    (22, Kind::Scratch, 12.0, 124.0, 44.0),
    (28, Kind::Dent, 168.0, 98.0, 26.0),
    (31, Kind::Stain, 250.0, 124.0, 42.0),
    (37, Kind::MissingHole, 225.0, 0.0, 0.0),
    (42, Kind::Dent, 350.0, 134.0, 32.0),
    (46, Kind::Stain, 200.0, 92.0, 38.0),
    (51, Kind::Scratch, 292.0, 112.0, 50.0),
    (56, Kind::MissingHole, 135.0, 0.0, 0.0),
];

/// Both recordings of one seed show other parts and another stretch of belt.
fn teach_belt(seed: u64) -> u64 {
    seed.wrapping_mul(2)
}

/// See [`teach_belt`].
pub fn run_belt(seed: u64) -> u64 {
    seed.wrapping_mul(2).wrapping_add(1)
}

struct Part {
    /// Centre in the picture at frame 0.
    start: f32,
    y: f32,
    label: &'static str,
    washer: Washer,
}

/// One frame as planes (I420, BT.709, limited range).
pub struct Frame {
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
}

/// A recording that can be rendered.
pub struct Recording {
    parts: Vec<Part>,
    frames: usize,
    seed: u64,
    lamps: Lamps,
    belt: Vec<f32>,
    lens: Vec<f32>,
    grain: Vec<f32>,
    gamma: Vec<f32>,
}

impl Recording {
    /// Good parts only.
    pub fn teach(seed: u64) -> Self {
        Self::new(teach_belt(seed), 40, &[])
    }

    /// Good parts and the twelve of [`DEFECTS`].
    pub fn run(seed: u64) -> Self {
        Self::new(run_belt(seed), 60, &DEFECTS)
    }

    /// The first `count` parts that come down the belt of `seed`; defects change nothing else.
    pub fn new(seed: u64, count: usize, defects: &[Wrong]) -> Self {
        let mut rng = Rng::new(seed, 1);
        let mut start = -RADIUS - 40.0;
        let parts: Vec<Part> = (0..count)
            .map(|index| {
                let here = start;
                let u = rng.unit();
                start -= 560.0 + 200.0 * u * u;
                let found = defects.iter().find(|d| d.0 == index);
                let defect = found.map(|&(i, kind, angle, radius, size)| {
                    Defect::new(kind, angle, radius, size, seed.wrapping_mul(1000) + i as u64)
                });
                Part {
                    start: here,
                    y: HEIGHT as f32 / 2.0 + 6.0 * rng.signed(),
                    label: found.map_or("good", |d| d.1.label()),
                    washer: Washer::new(seed, index as u64, defect),
                }
            })
            .collect();
        let last = parts.last().map_or(0.0, |p| p.start);
        let frames = (0..).find(|&f| last + travel(f) - RADIUS > WIDTH as f32 + 4.0 * SPEED).unwrap_or(0);
        let mut noise = Rng::new(seed, 2);
        Recording {
            parts,
            frames,
            seed,
            lamps: Lamps::default(),
            belt: belt(seed),
            lens: lens(),
            grain: (0..GRAIN * GRAIN).map(|_| noise.bell()).collect(),
            gamma: (0..=4096).map(|i| gamma(i as f32 / 4096.0 * 1.25)).collect(),
        }
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// What is where, for whoever has to judge a detector. `video` is the file's name.
    pub fn truth(&self, video: &str) -> Truth {
        let middle = WIDTH as f32 / 2.0;
        let parts = self.parts.iter().enumerate().map(|(index, part)| {
            let x = |f: usize| part.start + travel(f);
            let frame = |wanted: &dyn Fn(f32) -> bool| (0..self.frames).find(|&f| wanted(x(f))).unwrap_or(self.frames);
            let after = frame(&|x| x >= middle);
            let centre = if after > 0 && middle - x(after - 1) < x(after) - middle { after - 1 } else { after };
            truth::Part {
                part: index,
                label: part.label.to_string(),
                defective: part.label != "good",
                enter: frame(&|x| x + RADIUS > 0.0),
                centre,
                leave: frame(&|x| x - RADIUS >= WIDTH as f32) - 1,
                y: (part.y - RADIUS).round() as usize,
                size: (2.0 * RADIUS) as usize,
            }
        });
        Truth {
            video: video.to_string(),
            width: WIDTH,
            height: HEIGHT,
            fps: FPS,
            frames: self.frames,
            belt_speed_px: SPEED as usize,
            parts: parts.collect(),
        }
    }

    /// What the camera sees at frame `number`.
    pub fn render(&self, number: usize) -> Frame {
        let reach = RADIUS + 60.0;
        let parts = self.parts.iter().map(|p| (p, [p.start + travel(number), p.y]));
        let here: Vec<_> = parts.filter(|(_, c)| c[0] > -reach && c[0] < WIDTH as f32 + reach).collect();
        let mut light = self.under(number, &here);
        for (part, centre) in &here {
            let (left, right) = span(centre[0], RADIUS + 2.0, WIDTH);
            let (top, bottom) = span(centre[1], RADIUS + 2.0, HEIGHT);
            for y in top..bottom {
                for x in left..right {
                    let (dx, dy) = (x as f32 - centre[0], y as f32 - centre[1]);
                    let (colour, covered) = part.washer.look(&self.lamps, *centre, dx, dy);
                    if covered > 0.0 {
                        for (plane, c) in light.iter_mut().zip(colour) {
                            let pixel = &mut plane[y * WIDTH + x];
                            *pixel += (c - *pixel) * covered;
                        }
                    }
                }
            }
        }
        self.expose(number, light)
    }

    /// The belt with the parts' shadows on it.
    fn under(&self, number: usize, here: &[(&Part, [f32; 2])]) -> [Vec<f32>; 3] {
        let from = -travel(number).rem_euclid(BELT as f32) + BELT as f32;
        let (whole, t) = (from.floor() as usize, from.fract());
        // cubic weights: linear ones would make the belt sharper and softer as it moves
        let w = [
            t * (-0.5 + t * (1.0 - 0.5 * t)),
            1.0 + t * t * (-2.5 + 1.5 * t),
            t * (0.5 + t * (2.0 - 1.5 * t)),
            t * t * (-0.5 + 0.5 * t),
        ];
        let mut level = vec![0.0; WIDTH * HEIGHT];
        for (y, row) in level.chunks_exact_mut(WIDTH).enumerate() {
            let belt = &self.belt[y * BELT..(y + 1) * BELT];
            for (x, out) in row.iter_mut().enumerate() {
                let at = whole + x + BELT - 1;
                *out = w.iter().enumerate().map(|(k, w)| w * belt[(at + k) % BELT]).sum();
            }
        }
        for (_, centre) in here {
            let (left, right) = span(centre[0], RADIUS + 50.0, WIDTH);
            let (top, bottom) = span(centre[1], RADIUS + 50.0, HEIGHT);
            for y in top..bottom {
                for x in left..right {
                    level[y * WIDTH + x] *= shadow(x as f32 - centre[0], y as f32 - centre[1]);
                }
            }
        }
        let tint: Rgb = [0.95, 1.0, 1.04];
        tint.map(|k| level.iter().map(|v| v * k).collect())
    }

    /// Lens and sensor.
    fn expose(&self, number: usize, mut light: [Vec<f32>; 3]) -> Frame {
        let flicker = flicker(number);
        for plane in &mut light {
            for (v, lens) in plane.iter_mut().zip(&self.lens) {
                *v *= lens * flicker;
            }
            blur(plane);
        }
        let mut rng = Rng::new(self.seed, 0x10_0000 + number as u64);
        let (gx, gy) = ((rng.unit() * GRAIN as f32) as usize, (rng.unit() * GRAIN as f32) as usize);
        let level = |v: f32| self.gamma[((v * (4096.0 / 1.25)) as usize).min(4096)];
        let mut rgb = light.map(|plane| plane.into_iter().map(level).collect::<Vec<f32>>());
        for y in 0..HEIGHT {
            for x in 0..WIDTH {
                let i = y * WIDTH + x;
                let at = |k: usize| self.grain[(y + gy + 131 * k) % GRAIN * GRAIN + (x + gx + 57 * k) % GRAIN];
                let size = (NOISE[0] * NOISE[0] + NOISE[1] * NOISE[1] * rgb[1][i] / 255.0).sqrt();
                let common = at(0);
                for (k, plane) in rgb.iter_mut().enumerate() {
                    plane[i] = (plane[i] + size * (0.8 * common + 0.4 * at(k + 1))).clamp(0.0, 255.0);
                }
            }
        }
        let luma = |r: f32, g: f32, b: f32| 0.2126 * r + 0.7152 * g + 0.0722 * b;
        let y = (0..WIDTH * HEIGHT)
            .map(|i| (16.5 + luma(rgb[0][i], rgb[1][i], rgb[2][i]) * (219.0 / 255.0)) as u8)
            .collect();
        let (mut u, mut v) = (Vec::with_capacity(WIDTH * HEIGHT / 4), Vec::with_capacity(WIDTH * HEIGHT / 4));
        for cy in 0..HEIGHT / 2 {
            for cx in 0..WIDTH / 2 {
                let i = 2 * cy * WIDTH + 2 * cx;
                let [r, g, b] = [0, 1, 2].map(|k| {
                    let plane = &rgb[k];
                    (plane[i] + plane[i + 1] + plane[i + WIDTH] + plane[i + WIDTH + 1]) / 4.0
                });
                let l = luma(r, g, b);
                u.push((128.5 + (b - l) / 1.8556 * (224.0 / 255.0)) as u8);
                v.push((128.5 + (r - l) / 1.5748 * (224.0 / 255.0)) as u8);
            }
        }
        Frame { y, u, v }
    }
}

/// How far the belt has come by a frame.
fn travel(frame: usize) -> f32 {
    let f = frame as f64;
    let hunt = 18.0 * (f * 0.019).sin() + 5.0 * (f * 0.071 + 1.0).sin();
    (f * f64::from(SPEED) + hunt) as f32
}

/// Old lamps: slow, irregular, a few percent.
fn flicker(frame: usize) -> f32 {
    let t = frame as f32 / FPS as f32;
    1.0 + 0.035 * (TAU * t / 5.3).sin() + 0.02 * (TAU * t / 1.7 + 0.8).sin() + 0.025 * value(99, t * 0.4, 0.5, 0)
}

/// First and one past the last pixel within `reach` of `centre`.
fn span(centre: f32, reach: f32, limit: usize) -> (usize, usize) {
    ((centre - reach).max(0.0) as usize, ((centre + reach).max(0.0) as usize + 1).min(limit))
}

/// What is left of the light on the belt at an offset from a part's centre.
fn shadow(dx: f32, dy: f32) -> f32 {
    let d = (dx * dx + dy * dy).sqrt();
    let (sx, sy) = (dx - SHADOW[0], dy - SHADOW[1]);
    let cast = (sx * sx + sy * sy).sqrt();
    let blocked = step(RADIUS + SHADOW[2], RADIUS - SHADOW[2], cast) * step(BORE - SHADOW[2], BORE + SHADOW[2], cast);
    let near = if d > RADIUS { (RADIUS - d) / 9.0 } else { (d - BORE).min(0.0) / 16.0 };
    (1.0 - 0.62 * blocked) * (1.0 - 0.55 * near.exp())
}

/// Rubber with a pressed weave, dirt, wear along the run and some lint.
fn belt(seed: u64) -> Vec<f32> {
    let k = TAU / WEAVE;
    let mut belt = Vec::with_capacity(BELT * HEIGHT);
    for y in 0..HEIGHT {
        for x in 0..BELT {
            let (fx, fy) = (x as f32, y as f32);
            let weave = ((fx + fy) * k).sin() * ((fx - fy) * k).sin();
            let worn = value(seed, fx / 65.0, fy / 50.0, 63);
            let grain = value(seed ^ 1, fx / 3.0, fy / 3.0, 1365);
            let coarse = value(seed ^ 2, fx / 13.0, fy / 13.0, 315);
            let streak = value(seed ^ 3, fx / 455.0, fy / 2.5, 9);
            let speck = step(0.93, 1.0, value(seed ^ 4, fx / 5.0, fy / 5.0, 819));
            let level =
                1.0 + 0.3 * weave * (1.0 + 0.6 * worn) + 0.2 * worn + 0.2 * grain + 0.12 * coarse + 0.1 * streak;
            belt.push((0.03 * level + 0.035 * speck).max(0.004));
        }
    }
    belt
}

/// Vignetting, and a lamp that is nearer to the upper left.
fn lens() -> Vec<f32> {
    let mut lens = Vec::with_capacity(WIDTH * HEIGHT);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let (dx, dy) = (x as f32 / WIDTH as f32 - 0.5, (y as f32 - 360.0) / WIDTH as f32);
            let r2 = 4.0 * (dx * dx + dy * dy);
            lens.push((1.0 - 0.26 * r2) * (1.0 - 0.1 * dx - 0.12 * dy));
        }
    }
    lens
}

/// Defocus, wider along the belt's run for the motion while the shutter is open.
fn blur(plane: &mut [f32]) {
    const ACROSS: [f32; 3] = [0.42, 0.25, 0.04];
    const DOWN: [f32; 3] = [0.5, 0.22, 0.03];
    let mut wide = vec![0.0; plane.len()];
    for (row, out) in plane.chunks_exact(WIDTH).zip(wide.chunks_exact_mut(WIDTH)) {
        for (x, v) in out.iter_mut().enumerate() {
            let at = |d: isize| row[x.saturating_add_signed(d).min(WIDTH - 1)];
            *v = ACROSS[0] * at(0) + ACROSS[1] * (at(-1) + at(1)) + ACROSS[2] * (at(-2) + at(2));
        }
    }
    for y in 0..HEIGHT {
        let line = |d: isize| {
            let y = y.saturating_add_signed(d).min(HEIGHT - 1);
            &wide[y * WIDTH..(y + 1) * WIDTH]
        };
        let (a, b, c, d, e) = (line(-2), line(-1), line(0), line(1), line(2));
        for (x, v) in plane[y * WIDTH..(y + 1) * WIDTH].iter_mut().enumerate() {
            *v = DOWN[0] * c[x] + DOWN[1] * (b[x] + d[x]) + DOWN[2] * (a[x] + e[x]);
        }
    }
}
