//! From a surface to what a camera makes of it.
//!
//! A kind of part says for each pixel how high it is, what colour and how shiny ([`Texel`]); everything else is the same
//! for all kinds: slopes from the heights, one lamp under a bright hall, cast shadows, corners that get less light, lens,
//! sensor. A defect changes the surface, never the picture, so that it meets the same light as the rest of the part.

use crate::noise::Rng;
use crate::tone::gamma;

/// Linear light or reflectance: red, green, blue.
pub type Rgb = [f32; 3];

/// What the light meets at one pixel.
#[derive(Clone, Copy)]
pub struct Texel {
    /// Height over the table in pixels.
    pub height: f32,
    /// Share of light that is scattered, 0 to 1.
    pub albedo: Rgb,
    /// Strength of the mirror-like part, 0 to 1.
    pub gloss: f32,
    /// Width of the mirror-like part: .1 polished, .6 satin.
    pub rough: f32,
    /// How much of the pixel is part, 0 to 1; the rest is what it lies on.
    pub cover: f32,
}

impl Texel {
    /// This surface with `share` (0 to 1) of another one over it.
    pub fn under(mut self, over: &Texel, share: f32) -> Texel {
        let mix = |a: &mut f32, b: f32| *a += (b - *a) * share;
        mix(&mut self.height, over.height);
        mix(&mut self.gloss, over.gloss);
        mix(&mut self.rough, over.rough);
        mix(&mut self.cover, over.cover);
        self.albedo.iter_mut().zip(over.albedo).for_each(|(a, b)| mix(a, b));
        self
    }

    /// Multiplies the scattered light, each colour by its own factor.
    pub fn tint(&mut self, factor: Rgb) {
        self.albedo.iter_mut().zip(factor).for_each(|(a, f)| *a *= f);
    }
}

/// Something to take a picture of.
pub trait Item {
    /// The surface at a pixel.
    fn texel(&self, x: f32, y: f32) -> Texel;
}

/// Light and camera of a kind, before an image's own variation.
#[derive(Clone, Copy)]
pub struct Studio {
    /// Where the lamp stands, degrees clockwise from the right, and how high above the table, degrees.
    pub lamp: [f32; 2],
    /// Light of the lamp and of the hall.
    pub power: [f32; 2],
    /// How much darker the side away from the lamp is.
    pub gradient: f32,
    /// Standard deviation of the sensor's noise in the middle of the range, of 255 levels.
    pub noise: f32,
    /// Standard deviation of the defocus in pixels.
    pub blur: f32,
    /// Levels are equal in the three colours.
    pub grey: bool,
}

/// Light and camera at the moment of one picture.
pub struct Shot {
    width: usize,
    height: usize,
    grey: bool,
    /// Unit vector to the lamp.
    lamp: [f32; 3],
    power: [f32; 2],
    /// Colour of the light with its flicker.
    gain: Rgb,
    gradient: [f32; 2],
    blur: f32,
    noise: f32,
    grain: u64,
}

/// A picture before the sensor's noise: levels of 0 to 255 for each colour, and which pixels show the part.
pub struct Exposure {
    pub levels: [Vec<f32>; 3],
    pub part: Vec<bool>,
}

impl Shot {
    /// The light flickers by up to a tenth, the white balance drifts, lamp and focus move a little.
    pub fn new(studio: &Studio, width: usize, height: usize, rng: &mut Rng, grain: u64) -> Self {
        let azimuth = (studio.lamp[0] + 3.0 * rng.signed()).to_radians();
        let elevation = (studio.lamp[1] + 1.5 * rng.signed()).to_radians();
        let (flicker, warm) = (1.0 + 0.1 * rng.signed(), 0.012 * rng.signed());
        let gradient = studio.gradient * (1.0 + 0.3 * rng.signed());
        let drift = azimuth + 0.3 * rng.signed();
        Shot {
            width,
            height,
            grey: studio.grey,
            lamp: [azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()],
            power: studio.power,
            gain: [flicker * (1.0 + warm), flicker, flicker * (1.0 - warm)],
            gradient: [gradient * drift.cos(), gradient * drift.sin()],
            blur: studio.blur * (1.0 + 0.2 * rng.signed()),
            noise: studio.noise * (1.0 + 0.15 * rng.signed()),
            grain,
        }
    }

    /// Light through the lens.
    pub fn expose(&self, item: &dyn Item) -> Exposure {
        let (w, h) = (self.width, self.height);
        let texels: Vec<Texel> = (0..w * h).map(|i| item.texel((i % w) as f32 + 0.5, (i / w) as f32 + 0.5)).collect();
        let heights: Vec<f32> = texels.iter().map(|t| t.height).collect();
        let mut around = heights.clone();
        for _ in 0..2 {
            mean_filter(&mut around, w, h, 6);
        }
        let mut light = [0, 1, 2].map(|_| vec![0.0f32; w * h]);
        for (i, texel) in texels.iter().enumerate() {
            let colour = self.shade(texel, &heights, around[i], i % w, i / w);
            for (plane, c) in light.iter_mut().zip(colour) {
                plane[i] = c;
            }
        }
        if self.grey {
            let [red, green, blue] = &mut light;
            for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
                let v = 0.3 * *r + 0.59 * *g + 0.11 * *b;
                (*r, *g, *b) = (v, v, v);
            }
        }
        let table: Vec<f32> = (0..=4096).map(|i| gamma(i as f32 / 2048.0)).collect();
        let levels = light.map(|mut plane| {
            defocus(&mut plane, w, h, self.blur);
            plane.iter_mut().for_each(|v| *v = table[((*v * 2048.0) as usize).min(4096)]);
            plane
        });
        Exposure { levels, part: texels.iter().map(|t| t.cover > 0.3).collect() }
    }

    fn shade(&self, texel: &Texel, heights: &[f32], around: f32, x: usize, y: usize) -> Rgb {
        let (w, h) = (self.width, self.height);
        let at = |x: usize, y: usize| heights[y * w + x];
        let here = texel.height;
        // one-sided at the picture's edge
        let sx = (at((x + 1).min(w - 1), y) - at(x.saturating_sub(1), y)) * 0.5;
        let sy = (at(x, (y + 1).min(h - 1)) - at(x, y.saturating_sub(1))) * 0.5;
        let (sx, sy) = (sx.clamp(-3.0, 3.0), sy.clamp(-3.0, 3.0));
        let up = 1.0 / (1.0 + sx * sx + sy * sy).sqrt();
        let [lx, ly, lz] = self.lamp;
        let facing = (up * (lz - sx * lx - sy * ly)).max(0.0);
        // towards the lamp: what stands higher than the ray takes light away
        let climb = lz / (lx * lx + ly * ly).sqrt().max(0.05);
        let flat = 1.0 / (lx * lx + ly * ly).sqrt().max(0.05);
        let mut shade = 0.0f32;
        let mut far = 1.5;
        while far < 60.0 {
            let (px, py) = (x as f32 + lx * flat * far, y as f32 + ly * flat * far);
            if px < 0.0 || py < 0.0 || px >= w as f32 || py >= h as f32 {
                break;
            }
            shade = shade.max((at(px as usize, py as usize) - here - climb * far) / (0.4 * far + 1.0));
            far *= 1.45;
        }
        let lit = 1.0 - 0.9 * shade.clamp(0.0, 1.0);
        let open = 1.0 / (1.0 + 0.09 * (around - here).max(0.0));
        // half way between lamp and camera
        let n = 1.0 / (2.0 + 2.0 * lz).sqrt();
        let cos = (up * ((1.0 + lz) * n - sx * lx * n - sy * ly * n)).max(0.05);
        let tan2 = 1.0 / (cos * cos) - 1.0;
        let mirror = (-tan2 / (texel.rough * texel.rough)).exp() * (0.25 / texel.rough).min(3.0);
        let hall = 0.35 + 0.4 * up * up + 0.25 * (-sx * lx - sy * ly).clamp(-1.0, 1.0) * up;
        let [lamp, dome] = self.power;
        let scatter = dome * open * (0.4 + 0.6 * up) + lamp * facing * lit;
        let shine = texel.gloss * (dome * open * hall + lamp * lit * mirror * f32::from(facing > 0.0));
        let (dx, dy) = (x as f32 / w as f32 - 0.5, y as f32 / h as f32 - 0.5);
        let lens = (1.0 - 0.22 * (dx * dx + dy * dy)) * (1.0 + self.gradient[0] * dx + self.gradient[1] * dy);
        let mut out = texel.albedo.map(|a| (a * scatter + shine) * lens);
        out.iter_mut().zip(self.gain).for_each(|(o, g)| *o *= g);
        out
    }

    /// Adds the sensor's noise and rounds: three bytes a pixel, or one when the camera is grey.
    pub fn develop(&self, exposure: &Exposure) -> Vec<u8> {
        let mut rng = Rng::new(self.grain, 0x6e01);
        let [r, g, b] = &exposure.levels;
        let mut out = Vec::with_capacity(r.len() * if self.grey { 1 } else { 3 });
        for i in 0..r.len() {
            // shot noise grows with the light, before the gamma that takes it back
            let size = self.noise * (0.6 + 0.4 * (g[i] / 128.0).min(1.6));
            let common = rng.bell();
            let level = |v: f32, n: f32| (v + size * n + 0.5).clamp(0.0, 255.0) as u8;
            if self.grey {
                out.push(level(g[i], common));
            } else {
                let own = [rng.bell(), rng.bell(), rng.bell()];
                out.extend([r, g, b].iter().zip(own).map(|(p, own)| level(p[i], 0.75 * common + 0.6 * own)));
            }
        }
        out
    }
}

/// Running mean over `2 * reach + 1` pixels along rows and columns; edges count more often.
fn mean_filter(plane: &mut [f32], w: usize, h: usize, reach: usize) {
    let share = 1.0 / (2 * reach + 1) as f32;
    let mut line = vec![0.0; w.max(h)];
    let mut run = |start: usize, stride: usize, n: usize, plane: &mut [f32]| {
        let at = |i: isize| start + stride * i.clamp(0, n as isize - 1) as usize;
        let far = reach as isize;
        let mut sum: f32 = (-far..=far).map(|i| plane[at(i)]).sum();
        for (i, out) in line[..n].iter_mut().enumerate() {
            *out = sum * share;
            sum += plane[at(i as isize + far + 1)] - plane[at(i as isize - far)];
        }
        (0..n).for_each(|i| plane[start + stride * i] = line[i]);
    };
    (0..h).for_each(|y| run(y * w, 1, w, plane));
    (0..w).for_each(|x| run(x, w, h, plane));
}

/// Gaussian of `sigma` pixels in five taps.
fn defocus(plane: &mut [f32], w: usize, h: usize, sigma: f32) {
    let k = [0.0, 1.0, 2.0f32].map(|d| (-d * d / (2.0 * sigma * sigma)).exp());
    let k = k.map(|v| v / (k[0] + 2.0 * k[1] + 2.0 * k[2]));
    let mut wide = vec![0.0; plane.len()];
    for (row, out) in plane.chunks_exact(w).zip(wide.chunks_exact_mut(w)) {
        for (x, v) in out.iter_mut().enumerate() {
            let at = |d: isize| row[x.saturating_add_signed(d).min(w - 1)];
            *v = k[0] * at(0) + k[1] * (at(-1) + at(1)) + k[2] * (at(-2) + at(2));
        }
    }
    for y in 0..h {
        let line = |d: isize| {
            let y = y.saturating_add_signed(d).min(h - 1);
            &wide[y * w..(y + 1) * w]
        };
        let (a, b, c, d, e) = (line(-2), line(-1), line(0), line(1), line(2));
        for (x, v) in plane[y * w..(y + 1) * w].iter_mut().enumerate() {
            *v = k[0] * c[x] + k[1] * (b[x] + d[x]) + k[2] * (a[x] + e[x]);
        }
    }
}
