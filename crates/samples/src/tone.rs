//! From linear light to what a camera writes.

/// Display gamma with a soft shoulder instead of a hard clip.
pub fn gamma(v: f32) -> f32 {
    let v = if v > 0.7 { 0.7 + 0.3 * (1.0 - (-(v - 0.7) / 0.3).exp()) } else { v };
    255.0 * v.max(0.0).powf(1.0 / 2.2)
}
