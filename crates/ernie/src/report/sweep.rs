//! Figures over a setting: a column for what was measured inside the column of what it is set against, if anything.

use super::{
    Sweep, SweepPoint,
    html::escape,
    plot::{Scale, both, line, short, text},
};
use std::fmt::Write;

/// The figure, with its numbers as a table for those who cannot see it.
pub(super) fn figure(sweep: &Sweep) -> String {
    let finite = |p: &&SweepPoint| p.measured.is_finite() && p.limit.is_none_or(f64::is_finite);
    let points: Vec<SweepPoint> = sweep.points.iter().filter(finite).cloned().collect();
    let mut label = format!("{} {}:", sweep.sentence, sweep.unit);
    for p in &points {
        let beside = p.limit.map_or_else(String::new, |limit| format!(" beside {}", figure_of(limit)));
        let _ = write!(label, " {}{beside} at {} {};", figure_of(p.measured), p.at, sweep.axis);
    }
    let [ours, other] = sweep.names.each_ref().map(|name| escape(name));
    let mut out = String::from("<figure>\n");
    if points.iter().any(|p| p.limit.is_some()) {
        let _ = writeln!(
            out,
            "<p class=\"legend\" aria-hidden=\"true\"><span class=\"swatch ours\"></span>{ours}<span class=\"swatch other\"></span>{other}</p>"
        );
    }
    out += &both(
        &label,
        |width| if width < 500.0 { 230.0 } else { 280.0 },
        |width, height| draw(&points, sweep, width, height),
    );
    let _ = write!(
        out,
        "<details><summary>The same as a table</summary>\n<table>\n<thead><tr><th scope=\"col\">{}</th><th scope=\"col\">{ours}, {}</th><th scope=\"col\">{other}</th><th scope=\"col\">{}</th></tr></thead>\n<tbody>\n",
        escape(&sweep.axis),
        escape(&sweep.unit),
        escape(&sweep.compared)
    );
    for p in &points {
        let (measured, limit) = (figure_of(p.measured), p.limit.map_or_else(|| "–".to_owned(), figure_of));
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{measured}</td><td>{limit}</td><td>{}</td></tr>",
            escape(&p.at),
            share(p).unwrap_or_else(|| "–".to_owned())
        );
    }
    out + "</tbody>\n</table>\n</details>\n</figure>\n"
}

fn share(p: &SweepPoint) -> Option<String> {
    let share = 100.0 * p.measured / p.limit?;
    share.is_finite().then(|| format!("{share:.0} %"))
}

fn figure_of(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn draw(points: &[SweepPoint], sweep: &Sweep, width: f64, height: f64) -> String {
    let (left, top, bottom) = (40.0, 20.0, 60.0);
    let highest = points.iter().map(|p| p.measured.max(p.limit.unwrap_or(0.0))).fold(0.0, f64::max);
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
        if let Some(limit) = p.limit {
            out += &column("other limit", limit, 0.78);
        }
        out += &column("ours", p.measured, 0.5);
        out += &text("value", "middle", middle, y.at(p.measured) - 5.0, &figure_of(p.measured));
        out += &text("tick", "middle", middle, height - bottom + 17.0, &p.at);
        if let Some(share) = share(p) {
            out += &text("tick", "middle", middle, height - bottom + 33.0, &share);
        }
    }
    out += &line("axis", (left, height - bottom), (width, height - bottom));
    let Sweep { axis, unit, compared, .. } = sweep;
    let caption = match points.iter().any(|p| p.limit.is_some()) {
        true => format!("{axis}; {unit}, share {compared}"),
        false => format!("{axis}; {unit}"),
    };
    out += &text("tick", "middle", (left + width) / 2.0, height - 3.0, &caption);
    out
}
