//! Lines over training steps: one quantity, one line a run.

use super::{
    curve::{finite, path, running_mean, thin},
    html::escape,
    plot::{Scale, both, line, short, text},
};
use std::fmt::Write;

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Whose it is.
    pub(crate) name: String,
    /// Step and value.
    pub(crate) points: Vec<(u64, f64)>,
}

/// Up to two lines over the same steps.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    /// The heading: `Learning rate`.
    pub(crate) heading: String,
    /// What is drawn, a sentence.
    pub(crate) sentence: String,
    /// Whether each line is drawn as its running mean.
    pub(crate) smooth: bool,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

/// The classes of the lines, in their order.
const CLASSES: [&str; 2] = ["ours", "second"];

/// The figure; nothing where there are no points.
pub(super) fn figure(plot: &Lines) -> String {
    let drawn = plot.lines.iter().zip(CLASSES).map(|(line, class)| {
        let points = finite(&line.points);
        (line, class, if plot.smooth { running_mean(&points) } else { points })
    });
    let drawn: Vec<_> = drawn.filter(|(_, _, points)| !points.is_empty()).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let label = drawn.iter().fold(format!("{}.", plot.heading), |mut out, (line, _, points)| {
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            let _ = write!(
                out,
                " {}: {} at step {}, {} at step {}.",
                line.name,
                figures(first.1),
                first.0,
                figures(last.1),
                last.0
            );
        }
        out
    });
    let mut out = String::from("<figure>\n");
    if drawn.len() > 1 {
        out.push_str("<p class=\"legend\" aria-hidden=\"true\">");
        for (line, class, _) in &drawn {
            let _ = write!(out, "<span class=\"key {class}\"></span>{}", escape(&line.name));
        }
        out.push_str("</p>\n");
    }
    let curves: Vec<(&str, Vec<(u64, f64)>)> = drawn.iter().map(|(_, class, points)| (*class, thin(points))).collect();
    out.push_str(&both(
        &label,
        |width| if width < 500.0 { 170.0 } else { 200.0 },
        |width, height| draw(&curves, width, height),
    ));
    out.push_str("</figure>\n");
    out
}

fn draw(curves: &[(&str, Vec<(u64, f64)>)], width: f64, height: f64) -> String {
    let (left, right, top, bottom) = (46.0, 56.0, 12.0, 34.0);
    let all = || curves.iter().flat_map(|(_, points)| points);
    let last = all().map(|point| point.0).max().unwrap_or(1);
    let (low, high) =
        all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| (low.min(point.1), high.max(point.1)));
    let margin = ((high - low) * 0.06).max(high.abs() * 1e-3);
    let x = Scale::new((0.0, last as f64), (left, width - right));
    let y = Scale::new((low - margin, high + margin), (height - bottom, top));
    let mut out = String::new();
    for tick in y.ticks(4) {
        out += &line("grid", (left, y.at(tick)), (width - right, y.at(tick)));
        out += &text("tick", "end", left - 7.0, y.at(tick) + 4.0, &figures(tick));
    }
    for tick in x.ticks(if width < 500.0 { 4 } else { 8 }) {
        out += &text("tick", "middle", x.at(tick), height - bottom + 18.0, &short(tick));
    }
    out += &text("tick", "end", width, height - bottom + 18.0, "step");
    out += &line("axis", (left, height - bottom), (width - right, height - bottom));
    let mut ends: Vec<(f64, &str, f64)> = Vec::new();
    for (class, points) in curves {
        out += &path(class, points, x, y);
        ends.extend(points.last().map(|point| (y.at(point.1) + 4.0, *class, point.1)));
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let [a, b] = &mut ends[..]
        && b.0 - a.0 < 15.0
    {
        let push = (15.0 - (b.0 - a.0)) / 2.0;
        (a.0, b.0) = (a.0 - push, b.0 + push);
    }
    for (at, class, value) in ends {
        out += &text(&format!("end {class}"), "start", width - right + 8.0, at, &figures(value));
    }
    out
}

/// Three figures, whatever the size.
fn figures(value: f64) -> String {
    let size = value.abs();
    match value {
        _ if value == 0.0 => "0".into(),
        _ if !(1e-3..1e6).contains(&size) => format!("{value:.1e}"),
        _ if size >= 1000.0 => short(value.round()),
        _ if size >= 1.0 => short(value),
        _ => {
            let text = format!("{value:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_at_any_size() {
        for (value, says) in
            [(0.0, "0"), (2e-5, "2.0e-5"), (0.0125, "0.0125"), (2.71, "2.71"), (8123.4, "8123"), (12_000.0, "12k")]
        {
            assert_eq!(figures(value), says);
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing_and_two_lines_have_a_legend() {
        let line = |name: &str, points: Vec<(u64, f64)>| Line { name: name.into(), points };
        let plot = |lines| Lines { heading: "Loss".into(), sentence: String::new(), smooth: false, lines };
        assert_eq!(figure(&plot(vec![line("a", vec![]), line("b", vec![(1, f64::NAN)])])), "");
        let page = figure(&plot(vec![line("a<b", vec![(1, 2.0), (2, 1.0)]), line("b", vec![(1, 3.0)])]));
        assert!(page.contains("a&lt;b") && page.contains("second") && page.matches("<svg").count() == 2);
    }
}
