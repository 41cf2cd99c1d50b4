//! Charts as inline SVG: what ROC, PR and QQ plots and histograms have in common. Colours and line widths are classes of
//! the report's style sheet, so that light and dark follow the reader's setting.

use maud::{Markup, PreEscaped, html};
use std::fmt::Write;

/// The drawing in its own units; text is sized for it.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 316.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;

/// Values to positions 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    pub fn linear(low: f64, high: f64) -> Scale {
        Scale { low, high: if high > low { high } else { low + 1.0 }, log: false }
    }

    /// For scores, all above 0: logarithmic where the highest is many times the lowest.
    pub fn for_scores(low: f64, high: f64) -> Scale {
        let low = low.max(1e-6);
        if high / low < 6.0 {
            let room = 0.03 * (high - low).max(1e-6);
            return Scale::linear((low - room).max(0.0), high + room);
        }
        Scale { low: low / 1.05, high: high * 1.05, log: true }
    }

    pub fn is_log(self) -> bool {
        self.log
    }

    pub fn at(self, value: f64) -> f64 {
        let share = match self.log {
            true => (value.max(1e-12) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values inside, about five.
    pub fn ticks(self) -> Vec<f64> {
        if self.log {
            let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let few = (self.high / self.low).log10() > 2.5;
            let steps: &[f64] = if few { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all = powers.flat_map(|p| steps.iter().map(move |s| s * 10f64.powi(p)));
            return all.filter(|v| (self.low..=self.high).contains(v)).collect();
        }
        let raw = (self.high - self.low) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|s| s * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
        let (first, last) = ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// A tick's text: no more digits than it needs.
pub fn tick_text(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What is drawn in a chart, first to last.
pub enum Layer {
    Line {
        class: &'static str,
        points: Vec<(f64, f64)>,
    },
    /// A line that keeps its value until the next point.
    Steps {
        class: &'static str,
        points: Vec<(f64, f64)>,
    },
    /// Between two lines with the same x.
    Band {
        class: &'static str,
        points: Vec<(f64, f64, f64)>,
    },
    /// Dots with what they say when pointed at.
    Dots {
        class: &'static str,
        radius: f64,
        points: Vec<(f64, f64, String)>,
    },
}

/// A chart with two axes.
pub struct Chart<'a> {
    /// Read out instead of the picture.
    pub title: &'a str,
    pub x: (&'a str, Scale),
    pub y: (&'a str, Scale),
    pub layers: Vec<Layer>,
}

impl Chart<'_> {
    pub fn svg(&self) -> Markup {
        let right = WIDTH - RIGHT;
        let bottom = HEIGHT - BOTTOM;
        html! {
            svg .chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.title) {
                @for t in self.x.1.ticks() {
                    @let x = self.place(t, 0.0).0;
                    path .grid d=(format!("M{x:.1} {TOP}V{bottom}")) {}
                    text .tick x=(format!("{x:.1}")) y=(bottom + 16.0) text-anchor="middle" { (tick_text(t)) }
                }
                @for t in self.y.1.ticks() {
                    @let y = self.place(0.0, t).1;
                    path .grid d=(format!("M{LEFT} {y:.1}H{right}")) {}
                    text .tick x=(LEFT - 7.0) y=(format!("{:.1}", y + 4.0)) text-anchor="end" { (tick_text(t)) }
                }
                text .axis x=((LEFT + right) / 2.0) y=(HEIGHT - 8.0) text-anchor="middle" { (self.x.0) }
                text .axis transform=(format!("translate(12 {}) rotate(-90)", (TOP + bottom) / 2.0)) text-anchor="middle" { (self.y.0) }
                @for layer in &self.layers { (self.layer(layer)) }
            }
        }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (LEFT + self.x.1.at(x) * (WIDTH - RIGHT - LEFT), HEIGHT - BOTTOM - self.y.1.at(y) * (HEIGHT - BOTTOM - TOP))
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>, steps: bool) -> String {
        let mut d = String::new();
        for (i, (x, y)) in points.enumerate() {
            let (x, y) = self.place(x, y);
            // writing to a String cannot fail
            let _ = match (i, steps) {
                (0, _) => write!(d, "M{x:.1} {y:.1}"),
                (_, true) => write!(d, "V{y:.1}H{x:.1}"),
                (_, false) => write!(d, "L{x:.1} {y:.1}"),
            };
        }
        d
    }

    fn layer(&self, layer: &Layer) -> Markup {
        match layer {
            Layer::Line { class, points } => {
                html! { path .line .(class) d=(self.path(points.iter().copied(), false)) {} }
            }
            Layer::Steps { class, points } => {
                html! { path .line .(class) d=(self.path(points.iter().copied(), true)) {} }
            }
            Layer::Band { class, points } => {
                let there = points.iter().map(|p| (p.0, p.1));
                let back = points.iter().rev().map(|p| (p.0, p.2));
                html! { path .(class) d=(format!("{}Z", self.path(there.chain(back), false))) {} }
            }
            Layer::Dots { class, radius, points } => html! {
                @for (x, y, text) in points {
                    @let (x, y) = self.place(*x, *y);
                    circle .(class) cx=(format!("{x:.1}")) cy=(format!("{y:.1}")) r=(radius) { title { (text) } }
                }
            },
        }
    }
}

/// Bars of a histogram, stretched to the place they get: as wide as it is, `HIST` units high.
const HIST: f64 = 40.0;

/// A histogram of `values` in `bins` bins of `scale`; the fullest bin has the full height.
pub fn histogram(values: &[f32], scale: Scale, bins: usize) -> Markup {
    let mut counts = vec![0u32; bins];
    for v in values {
        counts[((scale.at(f64::from(*v)) * bins as f64) as usize).min(bins - 1)] += 1;
    }
    let highest = f64::from(counts.iter().copied().max().unwrap_or(0).max(1));
    let mut d = String::new();
    for (i, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        // a single part must be seen
        let height = (f64::from(n) / highest * HIST).max(2.5);
        let _ = write!(d, "M{:.2} {HIST}v-{height:.2}h0.86V{HIST}z", i as f64 + 0.07);
    }
    let view = format!("0 0 {bins} {HIST}");
    html! { svg viewBox=(view) preserveAspectRatio="none" aria-hidden="true" { path d=(PreEscaped(d)) {} } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            Scale::linear(0.0, 1.0).ticks().iter().map(|t| tick_text(*t)).collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        let wide = Scale::for_scores(9.0, 180.0);
        assert!(wide.is_log());
        assert_eq!(wide.ticks(), [10.0, 20.0, 50.0, 100.0]);
        let narrow = Scale::for_scores(9.0, 20.0);
        assert!(!narrow.is_log() && narrow.ticks().iter().all(|t| (8.0..21.0).contains(t)));
        assert_eq!((wide.at(0.0), wide.at(1e9)), (0.0, 1.0));
        // one value only: still a scale
        assert!(Scale::for_scores(5.0, 5.0).at(5.0).is_finite());
    }
}
