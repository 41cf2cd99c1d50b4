//! Pieces that several pages show: badges, ages, scores, decisions, lines of values over time.
//!
//! Thread: none; pure functions.

use jiff::Timestamp;
use maud::{Markup, html};

use crate::event::{Event, Verdict};
use crate::review::show;
use crate::review::store::{Decision, Review};

/// Length of the score's bar, in thresholds.
const BAR: f64 = 4.0;

/// What a person reads for a decision.
pub(super) fn decision_word(decision: Decision) -> &'static str {
    match decision {
        Decision::Defect => "Defect",
        Decision::FalseAlarm => "False alarm",
        Decision::Unclear => "Unclear",
    }
}

/// The key of a decision on every page.
pub(super) fn decision_key(decision: Decision) -> &'static str {
    match decision {
        Decision::Defect => "D",
        Decision::FalseAlarm => "F",
        Decision::Unclear => "U",
    }
}

/// The decision that holds, as a badge; the scripts make the same.
pub(super) fn decision_badge(review: &Review) -> Markup {
    html! {
        @if let Some(decision) = review.decision {
            span .decision .(decision.as_str()) title=(format!("{} by {}", decision_word(decision), review.reviewer)) {
                (review.defect_type.as_deref().unwrap_or_else(|| decision_word(decision)))
            }
        }
    }
}

pub(super) fn badge(verdict: Verdict) -> Markup {
    html! { span .badge .(verdict.as_str()) { (verdict.as_str()) } }
}

pub(super) fn age(now: Timestamp, at: Timestamp) -> Markup {
    html! { time datetime=(at) title=(show::time(at)) data-age { (show::age(now, at)) } }
}

pub(super) fn heat_controls() -> Markup {
    html! {
        div .heat-controls {
            label .switch title="Show or hide the heatmap (key H)" {
                input #heat type="checkbox" checked autocomplete="off";
                span { "Heatmap" }
            }
            label .slider hidden title="Opacity of the heatmap (keys [ and ])" {
                input #opacity type="range" min="0" max="100" value="80" autocomplete="off" aria-label="Opacity of the heatmap";
            }
        }
    }
}

/// Score against threshold, as numbers and as a bar with a mark. The bar ends at [`BAR`] thresholds, so that the bars of
/// different parts compare.
pub(super) fn score(event: &Event) -> Markup {
    html! {
        div .score {
            p {
                "Score " b { (show::number(event.score)) }
                span { "threshold " (show::number(event.threshold)) }
            }
            (score_bar(event))
        }
    }
}

pub(super) fn score_bar(event: &Event) -> Markup {
    let (score, threshold) = (f64::from(event.score), f64::from(event.threshold));
    let full = if threshold > 0.0 { BAR * threshold } else { score.max(f64::MIN_POSITIVE) };
    let at = |value: f64| format!("{:.1}", (value / full * 100.0).clamp(0.0, 100.0));
    html! {
        svg .bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
            rect .track width="100" height="8" {}
            rect .value .(event.verdict.as_str()) width=(at(score)) height="8" {}
            rect .mark x=(at(threshold)) width="0.8" height="8" {}
        }
    }
}

/// Values over time as a filled line; a gap where there is none. `top` is the value at the upper edge.
pub(super) fn sparkline(values: &[Option<f64>], top: f64, label: &str) -> Markup {
    let (w, h) = (100.0, 24.0);
    let step = w / values.len().saturating_sub(1).max(1) as f64;
    let y = |v: f64| h - 1.0 - (v / top.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0) * (h - 2.0);
    let (mut line, mut area) = (String::new(), String::new());
    let mut from = 0;
    for run in values.chunk_by(|a, b| a.is_some() == b.is_some()) {
        let start = from;
        from += run.len();
        let points: Vec<f64> = run.iter().flatten().copied().map(y).collect();
        let Some(last) = points.last() else { continue };
        let x = |i: usize| (start + i) as f64 * step;
        let path: Vec<String> = points.iter().enumerate().map(|(i, y)| format!("{:.1} {y:.1}", x(i))).collect();
        let path = path.join("L");
        // one alone is a dot
        let dot = if points.len() == 1 { format!("L{:.1} {last:.1}", x(0) + 0.1) } else { String::new() };
        line.push_str(&format!("M{path}{dot}"));
        area.push_str(&format!("M{path}L{:.1} {h}L{:.1} {h}Z", x(points.len() - 1), x(0)));
    }
    html! {
        svg .spark viewBox=(format!("0 0 {w} {h}")) preserveAspectRatio="none" role="img" aria-label=(label) {
            path .area d=(area) {}
            path .stroke d=(line) {}
        }
    }
}

/// Seconds in words.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => "< 0.1 s".into(),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

/// A number with its thousands apart.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// `part` of `whole` in percent, or a dash.
pub(super) fn share_of(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { format!("{:.2} %", 100.0 * part as f64 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let table = [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (1_234_567, "1\u{202f}234\u{202f}567")];
        for (n, wanted) in table {
            assert_eq!(grouped(n), wanted);
        }
    }

    #[test]
    fn a_sparkline_has_gaps_where_there_is_no_value() {
        let svg = sparkline(&[Some(0.0), Some(1.0), None, Some(0.5)], 1.0, "rate").into_string();
        let wanted = "d=\"M0.0 23.0L33.3 1.0M100.0 12.0L100.1 12.0\"";
        assert!(svg.contains(wanted), "{svg}");
        assert!(sparkline(&[], 0.0, "none").into_string().contains("d=\"\""));
    }
}
