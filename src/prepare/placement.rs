//! Where the network's input was taken in the source: an affine map, so that a part that lies at any angle is judged upright
//! and its regions, heatmap and box still land where it lies.
//!
//! Invariants:
//! 1. A placement made from a crop maps as the crop does, and says so ([`Placement::crop`])
//!    (test `crops_are_placements`).
//! 2. [`Placement::to_unit`] undoes [`Placement::to_source`] (test `the_inverse_undoes`).

use super::shrink::Crop;

/// Maps the unit square (the network's input, its left edge 0 and its right edge 1) to source pixels, whose edges lie at
/// whole numbers: `x = a[0] u + a[1] v + a[2]`, `y = a[3] u + a[4] v + a[5]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    a: [f64; 6],
}

impl From<Crop> for Placement {
    fn from(c: Crop) -> Self {
        Placement { a: [f64::from(c.width), 0.0, f64::from(c.x), 0.0, f64::from(c.height), f64::from(c.y)] }
    }
}

impl Placement {
    /// A rectangle of `width` x `height` source pixels around `centre`, turned by `angle` radians (positive turns x towards y).
    pub fn turned(centre: [f64; 2], angle: f64, width: f64, height: f64) -> Self {
        let (s, c) = angle.sin_cos();
        let (ux, uy) = (c * width, s * width);
        let (vx, vy) = (-s * height, c * height);
        Placement { a: [ux, vx, centre[0] - (ux + vx) / 2.0, uy, vy, centre[1] - (uy + vy) / 2.0] }
    }

    /// Source pixels of a place in the input, both coordinates 0..1 inside it.
    pub fn to_source(&self, u: f64, v: f64) -> (f64, f64) {
        let a = &self.a;
        (a[0] * u + a[1] * v + a[2], a[3] * u + a[4] * v + a[5])
    }

    /// Place in the input of a source pixel; outside 0..1 where the input does not show it.
    pub fn to_unit(&self, x: f64, y: f64) -> (f64, f64) {
        let a = &self.a;
        let (dx, dy) = (x - a[2], y - a[5]);
        let d = self.determinant();
        ((a[4] * dx - a[1] * dy) / d, (a[0] * dy - a[3] * dx) / d)
    }

    fn determinant(&self) -> f64 {
        let d = self.a[0] * self.a[4] - self.a[1] * self.a[3];
        if d == 0.0 { f64::MIN_POSITIVE } else { d }
    }

    /// Source pixels that the input covers.
    pub fn area(&self) -> f64 {
        self.determinant().abs()
    }

    /// Width and height of the input in source pixels, along its own axes.
    pub fn extent(&self) -> (f64, f64) {
        (self.a[0].hypot(self.a[3]), self.a[1].hypot(self.a[4]))
    }

    /// The crop, if the input was not turned.
    pub fn crop(&self) -> Option<Crop> {
        let [w, 0.0, x, 0.0, h, y] = self.a else { return None };
        let whole = |v: f64| v.fract() == 0.0 && v.abs() < f64::from(i32::MAX);
        let fits = [w, h, x, y].into_iter().all(whole) && w > 0.0 && h > 0.0;
        fits.then_some(Crop { x: x as i32, y: y as i32, width: w as u32, height: h as u32 })
    }

    /// Smallest crop of whole pixels that holds the part of the input from (`u0`, `v0`) to (`u1`, `v1`).
    pub fn bounds_of(&self, u0: f64, v0: f64, u1: f64, v1: f64) -> Crop {
        let corners = [(u0, v0), (u1, v0), (u0, v1), (u1, v1)].map(|(u, v)| self.to_source(u, v));
        let range = |f: &dyn Fn(&(f64, f64)) -> f64| {
            let (lo, hi) =
                corners.iter().map(f).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            // a hair, so that rounding errors of a turn do not add a pixel
            ((lo + 1e-6).floor(), (hi - 1e-6).ceil())
        };
        let ((x0, x1), (y0, y1)) = (range(&|c| c.0), range(&|c| c.1));
        Crop { x: x0 as i32, y: y0 as i32, width: (x1 - x0).max(0.0) as u32, height: (y1 - y0).max(0.0) as u32 }
    }

    /// Smallest crop that holds the whole input.
    pub fn bounds(&self) -> Crop {
        self.crop().unwrap_or_else(|| self.bounds_of(0.0, 0.0, 1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_are_placements() {
        let crop = Crop { x: -7, y: 40, width: 300, height: 200 };
        let p = Placement::from(crop);
        assert_eq!(p.crop(), Some(crop));
        assert_eq!(p.bounds(), crop);
        assert_eq!(p.to_source(0.5, 1.0), (143.0, 240.0));
        assert_eq!(p.area(), 60_000.0);
    }

    #[test]
    fn the_inverse_undoes() {
        for degrees in (0..360).step_by(17) {
            let p = Placement::turned([500.0, 300.0], f64::from(degrees).to_radians(), 200.0, 50.0);
            let (x, y) = p.to_source(0.25, 0.9);
            let (u, v) = p.to_unit(x, y);
            assert!((u - 0.25).abs() + (v - 0.9).abs() < 1e-9, "{degrees}");
            assert!((p.area() - 10_000.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_turned_input_has_the_box_of_its_corners() {
        let p = Placement::turned([100.0, 100.0], std::f64::consts::FRAC_PI_2, 60.0, 20.0);
        assert_eq!(p.crop(), None);
        assert_eq!(p.bounds(), Crop { x: 90, y: 70, width: 20, height: 60 });
        // the input's left end is the source's upper end
        let (x, y) = p.to_source(0.0, 0.5);
        assert!((x - 100.0).abs() < 1e-9 && (y - 70.0).abs() < 1e-9);
    }
}
