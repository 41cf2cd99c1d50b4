//! How values look on the pages: numbers, ages, crops, JSON.
//!
//! Thread: none; pure functions.
//!
//! Invariants:
//! 1. Whatever an event says, a crop lies inside the picture and is not empty. Test: `crops_stay_inside`.
//! 2. Indenting changes nothing but white space outside strings. Test: `indenting_keeps_every_token`.

use jiff::Timestamp;

use crate::event::{ImageSize, Rect};

/// A part of a picture, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crop {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Crop {
    /// As the attribute `viewBox`.
    pub fn view_box(&self) -> String {
        format!("{:.1} {:.1} {:.1} {:.1}", self.x, self.y, self.w, self.h)
    }
}

/// The part with a margin (in part sizes), in the given aspect where the picture allows it, else the whole picture.
pub fn crop(image: ImageSize, part: Option<Rect>, aspect: f64, margin: f64) -> Crop {
    let (width, height) = (f64::from(image.width.max(1)), f64::from(image.height.max(1)));
    let whole = Crop { x: 0.0, y: 0.0, w: width, h: height };
    let Some(part) = part else { return whole };
    let (x, y) = (f64::from(part.x).min(width), f64::from(part.y).min(height));
    let (w, h) = (f64::from(part.w).min(width - x), f64::from(part.h).min(height - y));
    if w < 1.0 || h < 1.0 {
        return whole;
    }
    let margin = margin * w.max(h);
    let (mut cw, mut ch) = (w + 2.0 * margin, h + 2.0 * margin);
    if cw / ch < aspect {
        cw = ch * aspect;
    } else {
        ch = cw / aspect;
    }
    let (cw, ch) = (cw.min(width), ch.min(height));
    let place = |start: f64, size: f64, wanted: f64, all: f64| (start + (size - wanted) / 2.0).clamp(0.0, all - wanted);
    Crop { x: place(x, w, cw, width), y: place(y, h, ch, height), w: cw, h: ch }
}

/// A score: three to four digits that matter.
pub fn number(value: f32) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if !(1e-3..1e6).contains(&v) => format!("{value:.2e}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A confidence; never rounded up to certainty.
pub fn percent(value: f32) -> String {
    if value > 0.9999 { "> 99.99 %".into() } else { format!("{:.2} %", f64::from(value) * 100.0) }
}

/// How long ago, in words.
pub fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    match seconds {
        ..5 => "just now".into(),
        5..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        86_400..172_800 => "1 day ago".into(),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A time in full, UTC.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.3f UTC").to_string()
}

/// The time of day, UTC; with the date when that is another day's.
pub fn time_of_day(at: Timestamp, now: Timestamp) -> String {
    let day = |t: Timestamp| t.as_second().div_euclid(86_400);
    at.strftime(if day(at) == day(now) { "%H:%M:%S UTC" } else { "%Y-%m-%d %H:%M:%S UTC" }).to_string()
}

/// JSON with one member a line. Takes valid JSON; order, numbers and unknown members stay as they are.
pub fn indent(json: &str) -> String {
    fn line(out: &mut String, depth: usize) {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    }
    let mut out = String::with_capacity(json.len() * 3 / 2);
    let mut depth = 0usize;
    let mut chars = json.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push(c);
                while let Some(c) = chars.next() {
                    out.push(c);
                    match c {
                        '\\' => out.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                out.push(c);
                if let Some(close) = chars.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn crops_stay_inside(width: u32, height: u32, x: u32, y: u32, w: u32, h: u32, boxed: bool) {
            let image = ImageSize { width, height };
            let c = crop(image, boxed.then_some(Rect { x, y, w, h }), 4.0 / 3.0, 0.1);
            let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
            prop_assert!(c.x >= 0.0 && c.y >= 0.0 && c.w >= 1.0 && c.h >= 1.0, "{c:?}");
            prop_assert!(c.x + c.w <= width + 1e-3 && c.y + c.h <= height + 1e-3, "{c:?}");
        }
    }

    #[test]
    fn a_crop_holds_the_part_in_the_wanted_aspect() {
        let image = ImageSize { width: 1000, height: 800 };
        let c = crop(image, Some(Rect { x: 400, y: 300, w: 100, h: 100 }), 4.0 / 3.0, 0.1);
        assert!((c.w / c.h - 4.0 / 3.0).abs() < 1e-9);
        assert!(c.x < 400.0 && c.x + c.w > 500.0 && c.y < 300.0 && c.y + c.h > 400.0);
    }

    #[test]
    fn numbers() {
        let table = [(0.0, "0"), (12.3456, "12.35"), (1234.56, "1234.6"), (0.01234, "0.0123"), (1e-5, "1.00e-5")];
        for (value, wanted) in table {
            assert_eq!(number(value), wanted);
        }
        let table = [(0.5, "50.00 %"), (0.9999, "99.99 %"), (0.99999, "> 99.99 %"), (1.0, "> 99.99 %")];
        for (value, wanted) in table {
            assert_eq!(percent(value), wanted);
        }
    }

    #[test]
    fn ages() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let table = [
            (-60, "just now"),
            (4, "just now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7200, "2 h ago"),
            (86_400, "1 day ago"),
            (864_000, "10 days ago"),
        ];
        for (seconds, wanted) in table {
            assert_eq!(age(now, Timestamp::from_second(1_000_000 - seconds).unwrap()), wanted);
        }
    }

    #[test]
    fn indenting_keeps_every_token() {
        let json = r#"{"b":1.10,"a":[ ],"s":"x\",{:[\\","n":{ "deep":[1,18446744073709551616]}, "e": {}}"#;
        let wanted = "{\n  \"b\": 1.10,\n  \"a\": [],\n  \"s\": \"x\\\",{:[\\\\\",\n  \"n\": {\n    \"deep\": [\n      1,\n      \
                      18446744073709551616\n    ]\n  },\n  \"e\": {}\n}";
        assert_eq!(indent(json), wanted);
        assert_eq!(indent(&indent(json)), wanted);
    }
}
