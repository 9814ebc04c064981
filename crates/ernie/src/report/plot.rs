//! What every plot needs: a frame in two widths, scales with round ticks, SVG text.

use super::html::escape;
use std::fmt::Write;

/// Plot widths in CSS pixels: phones, then desks.
const NARROW: f64 = 342.0;
const WIDE: f64 = 760.0;

/// Draws a plot for both widths; `height` and `draw` get the width in pixels.
///
/// `label` is what a screen reader says, and must tell the result, not the looks.
pub(super) fn both(label: &str, height: impl Fn(f64) -> f64, draw: impl Fn(f64, f64) -> String) -> String {
    let mut out = String::new();
    for (class, width) in [("narrow", NARROW), ("wide", WIDE)] {
        let height = height(width);
        let _ = writeln!(
            out,
            "<svg class=\"{class}\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n<title>{}</title>\n{}</svg>",
            escape(label),
            escape(label),
            draw(width, height)
        );
    }
    out
}

/// A linear map from data to pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Maps `low..high` to the pixels `from..to`.
    pub(super) fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Scale { low, high, from, to }
    }

    /// The pixel of a value; values outside are held at the border.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// Round values inside the range, about `wanted` of them.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
        let step = round_step((self.high - self.low) / wanted.max(1) as f64);
        let first = (self.low / step).ceil();
        (0..=4 * wanted.max(1))
            .map(|i| (first + i as f64) * step)
            .take_while(|t| *t <= self.high + step * 1e-6)
            .collect()
    }
}

/// The next of 1, 2, 5 × 10ⁿ at or above `raw`.
fn round_step(raw: f64) -> f64 {
    if !(raw.is_finite() && raw > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// A number without needless zeros.
pub(super) fn short(value: f64) -> String {
    if value.abs() >= 10_000.0 {
        return format!("{}k", short(value / 1000.0));
    }
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// SVG text of a class at a point.
pub(super) fn text(class: &str, anchor: &str, x: f64, y: f64, content: &str) -> String {
    format!("<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n", escape(content))
}

/// A straight line of a class.
pub(super) fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> String {
    format!(
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::new((2.13, 8.4), (0.0, 100.0));
        assert_eq!(scale.ticks(5), vec![4.0, 6.0, 8.0]);
        let scale = Scale::new((0.0, 812.0), (0.0, 100.0));
        assert_eq!(scale.ticks(4), vec![0.0, 500.0]);
        let scale = Scale::new((0.0, 0.0), (0.0, 100.0));
        assert!(!scale.ticks(4).is_empty());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(2.0), "2");
        assert_eq!(short(2.50), "2.5");
        assert_eq!(short(-0.0), "0");
        assert_eq!(short(25_000.0), "25k");
    }
}
