//! The loss curve: training by step, with the held-out points on it.

use super::{
    html::escape,
    plot::{Scale, both, line, short, text},
};
use std::fmt::Write;

/// At most this many points are drawn of a long run; more than pixels is waste.
const MOST_POINTS: usize = 380;

/// The figure, with a table of the held-out points for those who cannot see it.
pub(super) fn figure(train: &[(u64, f64)], held_out: &[(u64, f64)]) -> String {
    let train: Vec<_> = finite(train);
    let held_out: Vec<_> = finite(held_out);
    let Some(&(last_step, _)) = train.last() else {
        return String::new();
    };
    let smooth = running_mean(&train);
    let label = label(&smooth, &held_out);
    let mut out = String::from("<figure>\n");
    out.push_str(
        "<p class=\"legend\" aria-hidden=\"true\"><span class=\"key ours\"></span>training<span class=\"key held\"></span>held out</p>\n",
    );
    out.push_str(&both(
        &label,
        |width| if width < 500.0 { 240.0 } else { 320.0 },
        |width, height| draw(&train, &smooth, &held_out, last_step, width, height),
    ));
    if !held_out.is_empty() {
        out.push_str("<details><summary>Held-out points as a table</summary>\n<table>\n<thead><tr><th scope=\"col\">step</th><th scope=\"col\">held-out loss</th></tr></thead>\n<tbody>\n");
        for (step, loss) in &held_out {
            let _ = writeln!(out, "<tr><th scope=\"row\">{step}</th><td>{loss:.3}</td></tr>");
        }
        out.push_str("</tbody>\n</table>\n</details>\n");
    }
    out.push_str("</figure>\n");
    out
}

/// The points that can be drawn.
pub(super) fn finite(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    points.iter().copied().filter(|(_, v)| v.is_finite()).collect()
}

/// What a screen reader says.
fn label(smooth: &[(u64, f64)], held_out: &[(u64, f64)]) -> String {
    let mut out = String::from("Loss by training step.");
    if let (Some(first), Some(last)) = (smooth.first(), smooth.last()) {
        let _ = write!(
            out,
            " Training loss falls from {:.2} at step {} to {:.2} at step {}.",
            first.1, first.0, last.1, last.0
        );
    }
    if let (Some(first), Some(last)) = (held_out.first(), held_out.last()) {
        let _ = write!(
            out,
            " Held-out loss goes from {:.2} at step {} to {:.2} at step {}.",
            first.1, first.0, last.1, last.0
        );
    }
    out
}

/// An exponential running mean that forgets over about a hundredth of the run.
pub(super) fn running_mean(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 120.0).max(2.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(step, value)| {
            sum = keep * sum + value;
            weight = keep * weight + 1.0;
            (step, sum / weight)
        })
        .collect()
}

/// Few enough points to draw; each is the mean of its neighbours.
pub(super) fn thin(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    points
        .chunks(group)
        .map(|c| {
            let mean = c.iter().map(|p| p.1).sum::<f64>() / c.len() as f64;
            (c[c.len() - 1].0, mean)
        })
        .collect()
}

fn draw(
    train: &[(u64, f64)],
    smooth: &[(u64, f64)],
    held_out: &[(u64, f64)],
    last_step: u64,
    width: f64,
    height: f64,
) -> String {
    let (left, right, top, bottom) = (34.0, 46.0, 12.0, 34.0);
    let values = || train.iter().chain(held_out).map(|p| p.1);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.06).max(0.02);
    let x = Scale::new((0.0, last_step as f64), (left, width - right));
    let y = Scale::new((low - margin, high + margin), (height - bottom, top));

    let mut out = String::new();
    for tick in y.ticks(if width < 500.0 { 5 } else { 6 }) {
        out += &line("grid", (left, y.at(tick)), (width - right, y.at(tick)));
        out += &text("tick", "end", left - 7.0, y.at(tick) + 4.0, &short(tick));
    }
    let ticks = x.ticks(if width < 500.0 { 4 } else { 8 });
    for tick in &ticks {
        out += &text("tick", "middle", x.at(*tick), height - bottom + 18.0, &short(*tick));
    }
    out += &text("tick", "end", width, height - bottom + 18.0, "step");
    out += &line("axis", (left, height - bottom), (width - right, height - bottom));
    out += &path("raw", &thin(train), x, y);
    out += &path("ours", &thin(smooth), x, y);
    out += &path("held", held_out, x, y);
    for (step, loss) in held_out {
        let _ = writeln!(
            out,
            "<circle class=\"held\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}</title></circle>",
            x.at(*step as f64),
            y.at(*loss),
            escape(&format!("step {step}: held-out loss {loss:.3}"))
        );
    }
    out += &end_labels(smooth, held_out, y, width, right);
    out
}

/// The last value of each line, beside it; pushed apart where they would touch.
fn end_labels(smooth: &[(u64, f64)], held_out: &[(u64, f64)], y: Scale, width: f64, right: f64) -> String {
    const APART: f64 = 15.0;
    let mut labels: Vec<(f64, &str, f64)> = Vec::new();
    if let Some(p) = smooth.last() {
        labels.push((y.at(p.1) + 4.0, "end ours", p.1));
    }
    if let Some(p) = held_out.last() {
        labels.push((y.at(p.1) + 4.0, "end held", p.1));
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let [a, b] = &mut labels[..]
        && b.0 - a.0 < APART
    {
        let push = (APART - (b.0 - a.0)) / 2.0;
        a.0 -= push;
        b.0 += push;
    }
    labels
        .iter()
        .map(|(at, class, value)| text(class, "start", width - right + 8.0, *at, &format!("{value:.2}")))
        .collect()
}

/// A line through points, of a class.
pub(super) fn path(class: &str, points: &[(u64, f64)], x: Scale, y: Scale) -> String {
    let mut d = String::new();
    for (i, (step, value)) in points.iter().enumerate() {
        let _ = write!(d, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x.at(*step as f64), y.at(*value));
    }
    format!("<path class=\"{class}\" d=\"{d}\"/>\n")
}
