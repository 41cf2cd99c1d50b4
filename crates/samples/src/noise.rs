//! Random numbers and smooth noise that give the same values everywhere: everything in the recordings hangs on them.

/// SplitMix64: small, and good enough to lay out parts and shake pixels.
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for each pair of seed and purpose.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Rng(seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.next();
        rng
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
    /// Even in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
    /// Even in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        2.0 * self.unit() - 1.0
    }
    /// Even in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }
    /// Close to normal, mean 0, deviation 1, never beyond 3.5: a sensor has no wilder pixel either.
    pub fn bell(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.unit()).sum();
        (sum - 2.0) * 3.0f32.sqrt()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn lattice(seed: u64, x: i64, y: i64) -> f32 {
    let h = mix(seed ^ (x as u64).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (y as u64).wrapping_mul(0xa076_1d64_78bd_642f));
    (h >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Smooth noise in [-1, 1] with one random value at each whole coordinate. `period` wraps x (0: never).
pub fn value(seed: u64, x: f32, y: f32, period: i64) -> f32 {
    let (fx, fy) = (x.floor(), y.floor());
    let (tx, ty) = (x - fx, y - fy);
    let (sx, sy) = (tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty));
    let (ix, iy) = (fx as i64, fy as i64);
    let wrap = |i: i64| if period > 0 { i.rem_euclid(period) } else { i };
    let at = |dx, dy| lattice(seed, wrap(ix + dx), iy + dy);
    let top = at(0, 0) + (at(1, 0) - at(0, 0)) * sx;
    let bottom = at(0, 1) + (at(1, 1) - at(0, 1)) * sx;
    top + (bottom - top) * sy
}

/// 0 at `low` and beyond, 1 at `high` and beyond, smooth between; it falls when `low` is the greater.
pub fn step(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}
