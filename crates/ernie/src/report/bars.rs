//! Bits per byte as bars from zero, ours marked.

use super::{
    Bar,
    plot::{Scale, both, text},
};
use std::fmt::Write;

const ROW: f64 = 46.0;

/// The figure.
pub(super) fn figure(bars: &[Bar]) -> String {
    let mut bars: Vec<&Bar> = bars.iter().filter(|b| b.value.is_finite()).collect();
    bars.sort_by(|a, b| a.value.total_cmp(&b.value));
    let label = bars.iter().fold(String::from("Held-out bits per byte, best first:"), |mut out, bar| {
        let _ = write!(out, " {} {:.3};", bar.name, bar.value);
        out
    });
    let plot = both(&label, |_| ROW * bars.len() as f64 + 2.0, |width, _| draw(&bars, width));
    format!("<figure>\n{plot}</figure>\n")
}

fn draw(bars: &[&Bar], width: f64) -> String {
    let longest = bars.iter().map(|b| b.value).fold(0.0, f64::max);
    let x = Scale::new((0.0, longest), (0.0, width - 54.0));
    let mut out = String::new();
    for (i, bar) in bars.iter().enumerate() {
        let top = ROW * i as f64;
        let class = if bar.ours { "bar ours" } else { "bar other" };
        let name = if bar.ours { "name ours" } else { "name" };
        out += &text(name, "start", 0.0, top + 14.0, &bar.name);
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"0\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\" rx=\"3\"/>",
            top + 21.0,
            x.at(bar.value).max(1.0)
        );
        out += &text("value", "start", x.at(bar.value) + 8.0, top + 34.0, &format!("{:.3}", bar.value));
    }
    out
}
