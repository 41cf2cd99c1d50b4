//! Letters and digits drawn with straight strokes, as engraving machines and dot printers do.

use super::marks::Point;
use crate::noise::step;
use crate::shapes::to_segment;

/// One line of text; its origin is the upper left corner.
pub struct Text<'a> {
    text: &'a str,
    height: f32,
}

/// Width of a letter and from one to the next, in heights.
const WIDE: f32 = 0.6;
const ADVANCE: f32 = 0.86;

impl<'a> Text<'a> {
    /// Letters `height` pixels high.
    pub fn new(text: &'a str, height: f32) -> Self {
        Text { text, height }
    }

    /// How much of the pixel at `p` lies on a stroke of this half width.
    pub fn ink(&self, p: Point, half: f32) -> f32 {
        let (x, y) = (p[0] / self.height, p[1] / self.height);
        if x < 0.0 || !(-0.3..=1.3).contains(&y) {
            return 0.0;
        }
        let cell = (x / ADVANCE) as usize;
        let Some(letter) = self.text.as_bytes().get(cell) else { return 0.0 };
        let x = x - cell as f32 * ADVANCE - 0.5 * (ADVANCE - WIDE);
        let mut near = f32::INFINITY;
        for stroke in strokes(*letter) {
            for pair in stroke.as_bytes().windows(2) {
                near = near.min(to_segment([x, y], node(pair[0]), node(pair[1])).0);
            }
        }
        step(half + 0.6, half - 0.6, near * self.height)
    }
}

/// Nodes of a letter: three columns a, b, c and five rows from the top.
///
/// ```text
/// a b c
/// d e f
/// g h i
/// j k l
/// m n o
/// ```
fn node(name: u8) -> Point {
    let i = name.saturating_sub(b'a');
    [WIDE * 0.5 * f32::from(i % 3), 0.25 * f32::from(i / 3)]
}

/// Strokes as runs of nodes.
fn strokes(letter: u8) -> &'static [&'static str] {
    match letter {
        b'0' => &["bdjnlfb"],
        b'1' => &["dbn", "mo"],
        b'2' => &["dbfimo"],
        b'3' => &["abfhlnm"],
        b'4' => &["bjl", "io"],
        b'5' => &["cagilnm"],
        b'6' => &["cbdjnlhg"],
        b'7' => &["ack", "kn"],
        b'8' => &["bdhlnjhfb"],
        b'9' => &["ihdbflnm"],
        b'A' => &["mbo", "jl"],
        b'B' => &["amnlhfba", "gh"],
        b'E' => &["camo", "gh"],
        b'G' => &["fbdjnlih"],
        b'K' => &["am", "cgo"],
        b'L' => &["amo"],
        b'N' => &["maoc"],
        b'R' => &["mabfhg", "ho"],
        b'S' => &["fbdhlnj"],
        b'T' => &["ac", "bn"],
        b'X' => &["ao", "cm"],
        b'-' => &["gi"],
        _ => &[],
    }
}
