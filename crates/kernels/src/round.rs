//! Rounding that compilers make vectors of; a cast that saturates takes several times as long.

/// Added to a number below 2^22, it leaves the number, rounded, in the lowest bits; taken off again, as a float. 1.5 x 2^23, from
/// where on floats are whole numbers.
pub const ROUND: f32 = 12_582_912.0;
