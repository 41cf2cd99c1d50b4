//! What defects are drawn with: lines that bite into a surface and spots that no compass drew.

use crate::noise::{Rng, step, value};
use crate::shapes::to_segment;

/// A point or a direction in a part's own pixels.
pub type Point = [f32; 2];

/// A drawn line: a scratch, a cut, a crack.
pub struct Line {
    points: Vec<Point>,
    /// Half its width in the middle, pixels.
    pub width: f32,
    low: Point,
    high: Point,
}

impl Line {
    /// A slightly bent line of `length` round `centre` at `angle` radians.
    pub fn scratch(rng: &mut Rng, centre: Point, angle: f32, length: f32, width: f32) -> Self {
        let bend = length * 0.12 * rng.signed();
        let (s, c) = angle.sin_cos();
        let points = (0..=6).map(|i| {
            let t = i as f32 / 6.0;
            let (along, aside) = (length * (t - 0.5), 4.0 * bend * t * (1.0 - t));
            [centre[0] + along * c - aside * s, centre[1] + along * s + aside * c]
        });
        Self::through(points.collect(), width)
    }

    /// A line that starts at `from` and changes its mind every few pixels.
    pub fn crack(rng: &mut Rng, from: Point, angle: f32, length: f32, width: f32) -> Self {
        let stroke = 7.0f32.min(length / 4.0);
        let mut points = vec![from];
        let mut at = from;
        let mut heading = angle;
        for _ in 0..(length / stroke) as usize {
            heading += 0.45 * rng.signed() + 0.25 * (angle - heading);
            at = [at[0] + stroke * heading.cos(), at[1] + stroke * heading.sin()];
            points.push(at);
        }
        Self::through(points, width)
    }

    /// A line through these points.
    pub fn through(points: Vec<Point>, width: f32) -> Self {
        let reach = 4.0 * width + 3.0;
        let fold = |start: f32, pick: fn(f32, f32) -> f32, i: usize| points.iter().map(|p| p[i]).fold(start, pick);
        let low = [0, 1].map(|i| fold(f32::MAX, f32::min, i) - reach);
        let high = [0, 1].map(|i| fold(f32::MIN, f32::max, i) + reach);
        Line { points, width, low, high }
    }

    /// Signed distance from the line and how far along it, 0 to 1; nothing where it is far away.
    pub fn near(&self, p: Point) -> Option<(f32, f32)> {
        if (0..2).any(|i| p[i] < self.low[i] || p[i] > self.high[i]) {
            return None;
        }
        let strokes = (self.points.len() - 1) as f32;
        self.points
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let (d, signed, t) = to_segment(p, pair[0], pair[1]);
                (d, signed, (i as f32 + t) / strokes)
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, signed, t)| (signed, t))
    }

    /// How deep the line is at `p`, 0 to 1: it starts and ends slowly.
    pub fn depth(&self, p: Point) -> f32 {
        self.near(p).map_or(0.0, |(d, t)| {
            let bite = (t.min(1.0 - t) * 6.0).clamp(0.25, 1.0);
            (-(d / self.width).powi(2)).exp() * bite
        })
    }

    /// Like [`Line::depth`] with hard sides, widest where it starts.
    pub fn gap(&self, p: Point) -> f32 {
        self.near(p).map_or(0.0, |(d, t)| {
            let half = self.width * (1.0 - 0.75 * t);
            step(half + 0.7, half - 0.5, d.abs())
        })
    }
}

/// A spot with an uneven outline.
pub struct Spot {
    pub centre: Point,
    /// Half its length and half its width.
    half: Point,
    turn: Point,
    ragged: f32,
    seed: u64,
}

impl Spot {
    /// `size` is the mean diameter; `ragged` 0 is an ellipse, .5 a splash.
    pub fn new(rng: &mut Rng, centre: Point, size: f32, ragged: f32) -> Self {
        let stretch = rng.between(0.75, 1.33);
        let (s, c) = (rng.unit() * std::f32::consts::PI).sin_cos();
        let seed = (rng.unit() * 1e6) as u64;
        Spot { centre, half: [0.5 * size * stretch, 0.5 * size / stretch], turn: [s, c], ragged, seed }
    }

    /// 0 in the middle, 1 at the edge, more outside.
    pub fn at(&self, p: Point) -> f32 {
        let (dx, dy) = (p[0] - self.centre[0], p[1] - self.centre[1]);
        let reach = 2.2 * self.half[0].max(self.half[1]) + 2.0;
        if dx.abs() > reach || dy.abs() > reach {
            return 9.0;
        }
        let [s, c] = self.turn;
        let (a, b) = ((dx * c + dy * s) / self.half[0], (dy * c - dx * s) / self.half[1]);
        let grain = 0.5 * self.half[0].min(self.half[1]).max(2.0);
        let wobble = value(self.seed, dx / grain, dy / grain, 0)
            + 0.5 * value(self.seed ^ 5, dx * 2.3 / grain, dy * 2.3 / grain, 0);
        (a * a + b * b).sqrt() + self.ragged * wobble
    }

    /// 1 inside, 0 outside, with an edge that is `soft` (share of the radius) wide.
    pub fn inside(&self, p: Point, soft: f32) -> f32 {
        step(1.0 + soft, 1.0 - soft, self.at(p))
    }

    /// About its radius in pixels.
    pub fn radius(&self) -> f32 {
        0.5 * (self.half[0] + self.half[1])
    }
}

/// Smooth noise of several sizes in about [-1, 1]: each of `octaves` is twice as fine and `fall` times as strong.
pub fn fractal(seed: u64, p: Point, octaves: u32, fall: f32) -> f32 {
    let (mut sum, mut size, mut whole) = (0.0, 1.0, 0.0);
    let [mut x, mut y] = p;
    for i in 0..octaves {
        sum += size * value(seed.wrapping_add(u64::from(i) * 7919), x, y, 0);
        whole += size;
        // turned a little, so that the lattices do not line up
        (x, y) = (1.9 * x + 0.62 * y, 1.9 * y - 0.62 * x);
        size *= fall;
    }
    sum / whole * 1.4
}

/// Where a part lies: picture to its own coordinates.
#[derive(Clone, Copy)]
pub struct Pose {
    centre: Point,
    turn: Point,
    scale: f32,
}

impl Pose {
    /// `angle` in radians; `scale` above 1 makes the part larger.
    pub fn new(centre: Point, angle: f32, scale: f32) -> Self {
        let (s, c) = angle.sin_cos();
        Pose { centre, turn: [s, c], scale }
    }

    /// The part's own coordinates of a pixel.
    pub fn own(&self, x: f32, y: f32) -> Point {
        let (dx, dy) = ((x - self.centre[0]) / self.scale, (y - self.centre[1]) / self.scale);
        let [s, c] = self.turn;
        [dx * c + dy * s, dy * c - dx * s]
    }
}
