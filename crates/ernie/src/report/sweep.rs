//! Speeds over a setting: a column for what was measured inside the column that the machine allows.

use super::{
    Sweep, SweepPoint,
    html::escape,
    plot::{Scale, both, line, short, text},
};
use std::fmt::Write;

/// The figure, with its numbers as a table for those who cannot see it.
pub(super) fn figure(sweep: &Sweep) -> String {
    let points: Vec<SweepPoint> =
        sweep.points.iter().copied().filter(|p| p.measured.is_finite() && p.limit.is_finite()).collect();
    let mut label = format!("{} Tokens a second:", sweep.sentence);
    for p in &points {
        let _ = write!(label, " {:.0} of {:.0} at {} {};", p.measured, p.limit, p.at, sweep.axis);
    }
    let mut out = String::from(
        "<figure>\n<p class=\"legend\" aria-hidden=\"true\"><span class=\"swatch ours\"></span>measured<span class=\"swatch other\"></span>what this machine allows</p>\n",
    );
    out += &both(
        &label,
        |width| if width < 500.0 { 230.0 } else { 280.0 },
        |width, height| draw(&points, &sweep.axis, width, height),
    );
    let _ = write!(
        out,
        "<details><summary>The same as a table</summary>\n<table>\n<thead><tr><th scope=\"col\">{}</th><th scope=\"col\">tokens/s</th><th scope=\"col\">limit</th><th scope=\"col\">share</th></tr></thead>\n<tbody>\n",
        escape(&sweep.axis)
    );
    for p in &points {
        let (measured, limit) = (figure_of(p.measured), figure_of(p.limit));
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{measured}</td><td>{limit}</td><td>{:.0} %</td></tr>",
            p.at,
            share(p)
        );
    }
    out + "</tbody>\n</table>\n</details>\n</figure>\n"
}

fn share(p: &SweepPoint) -> f64 {
    100.0 * p.measured / p.limit
}

fn figure_of(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn draw(points: &[SweepPoint], axis: &str, width: f64, height: f64) -> String {
    let (left, top, bottom) = (40.0, 20.0, 60.0);
    let highest = points.iter().map(|p| p.measured.max(p.limit)).fold(0.0, f64::max);
    let y = Scale::new((0.0, highest), (height - bottom, top));
    let mut out = String::new();
    for tick in y.ticks(4) {
        out += &line("grid", (left, y.at(tick)), (width, y.at(tick)));
        out += &text("tick", "end", left - 7.0, y.at(tick) + 4.0, &short(tick));
    }
    let room = (width - left) / points.len().max(1) as f64;
    for (index, p) in points.iter().enumerate() {
        let middle = left + room * (index as f64 + 0.5);
        let column = |class: &str, value: f64, share: f64| {
            let (w, from) = ((room * share).min(96.0 * share), y.at(value));
            format!(
                "<rect class=\"bar {class}\" x=\"{:.1}\" y=\"{from:.1}\" width=\"{w:.1}\" height=\"{:.1}\" rx=\"2\"/>\n",
                middle - w / 2.0,
                (height - bottom - from).max(1.0)
            )
        };
        out += &column("other limit", p.limit, 0.78);
        out += &column("ours", p.measured, 0.5);
        out += &text("value", "middle", middle, y.at(p.measured) - 5.0, &figure_of(p.measured));
        out += &text("tick", "middle", middle, height - bottom + 17.0, &p.at.to_string());
        out += &text("tick", "middle", middle, height - bottom + 33.0, &format!("{:.0} %", share(p)));
    }
    out += &line("axis", (left, height - bottom), (width, height - bottom));
    out += &text("tick", "middle", (left + width) / 2.0, height - 3.0, &format!("{axis}; share of the limit"));
    out
}
