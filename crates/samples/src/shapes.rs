//! Distances from shapes, for drawing without jagged edges.

/// Distance of `p` from the segment `a` to `b` (signed: positive on its left) and how far along it, 0 to 1.
pub fn to_segment(p: [f32; 2], a: [f32; 2], b: [f32; 2]) -> (f32, f32, f32) {
    let (vx, vy, wx, wy) = (b[0] - a[0], b[1] - a[1], p[0] - a[0], p[1] - a[1]);
    let t = ((wx * vx + wy * vy) / (vx * vx + vy * vy)).clamp(0.0, 1.0);
    let (ex, ey) = (wx - t * vx, wy - t * vy);
    let d = (ex * ex + ey * ey).sqrt();
    (d, if vx * wy - vy * wx >= 0.0 { d } else { -d }, t)
}
