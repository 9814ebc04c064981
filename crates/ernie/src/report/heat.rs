//! Expert balance as a heat map: a row a layer, a column an expert.
//!
//! A cell's strength is its share against an even one: invisible at 0, full at twice the even share
//! and above. The share itself stands in the cell where there is room.

use super::{
    LayerHistory, LayerLoad,
    html::escape,
    plot::{both, text},
};
use std::fmt::Write;

const LEFT: f64 = 58.0;
const TOP: f64 = 22.0;

/// The figure.
pub(super) fn figure(layers: &[LayerLoad]) -> String {
    let experts = layers.iter().map(|l| l.shares.len()).max().unwrap_or(0);
    if experts == 0 {
        return String::new();
    }
    let extreme =
        |pick: fn(f64, f64) -> f64, start: f64| layers.iter().flat_map(|l| &l.shares).copied().fold(start, pick);
    let label = format!(
        "Share of routing choices by layer and expert. An even share is {:.1} percent; the largest is {:.1} percent, the smallest {:.1} percent.",
        100.0 / experts as f64,
        100.0 * extreme(f64::max, 0.0),
        100.0 * extreme(f64::min, 1.0)
    );
    let plot = both(
        &label,
        |width| TOP + row_height(width) * layers.len() as f64 + 2.0,
        |width, _| draw(layers, experts, width),
    );
    format!(
        "<figure>\n{plot}<p class=\"legend\"><span class=\"ramp\" aria-hidden=\"true\"></span>from no tokens to twice the even share of {:.1} %</p>\n</figure>\n",
        100.0 / experts as f64
    )
}

/// The busiest expert's load over a run: a row a layer, a column a stretch of steps. A cell is invisible at an even load and full at three times it.
pub(super) fn history(layers: &[LayerHistory]) -> String {
    let columns = layers.iter().map(|layer| layer.stretches.len()).max().unwrap_or(0);
    let worst = layers
        .iter()
        .flat_map(|layer| &layer.stretches)
        .fold((0, 0.0), |worst, &at| if at.1 > worst.1 { at } else { worst });
    let label = format!(
        "Load of the busiest expert by layer and step, from even to {:.1} times even near step {}.",
        worst.1, worst.0
    );
    let plot = both(
        &label,
        |width| TOP + row_height(width) * layers.len() as f64 + 2.0,
        |width, _| {
            let (cell, row) = ((width - LEFT) / columns.max(1) as f64, row_height(width));
            let mut out = String::new();
            for (i, layer) in layers.iter().enumerate() {
                let y = TOP + row * i as f64;
                out += &text("tick", "start", 0.0, y + row / 2.0 + 4.0, &format!("layer {}", layer.layer));
                for (at, (step, busiest)) in
                    layer.stretches.iter().enumerate().filter(|(_, (_, busiest))| busiest.is_finite())
                {
                    let _ = writeln!(
                        out,
                        "<rect class=\"cell\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{:.3}\"><title>{}</title></rect>",
                        LEFT + cell * at as f64,
                        y + 1.0,
                        (cell - 0.5).max(0.5),
                        row - 2.0,
                        ((busiest - 1.0) / 2.0).clamp(0.0, 1.0),
                        escape(&format!(
                            "layer {}, to step {step}: busiest expert {busiest:.2} times even",
                            layer.layer
                        ))
                    );
                }
            }
            out + &text("tick", "start", LEFT, TOP - 8.0, "first step") + &text("tick", "end", width, TOP - 8.0, "last")
        },
    );
    format!(
        "<figure>\n{plot}<p class=\"legend\"><span class=\"ramp\" aria-hidden=\"true\"></span>from an even load to three times it</p>\n</figure>\n"
    )
}

fn row_height(width: f64) -> f64 {
    if width < 500.0 { 30.0 } else { 34.0 }
}

fn draw(layers: &[LayerLoad], experts: usize, width: f64) -> String {
    let cell = (width - LEFT) / experts as f64;
    let row = row_height(width);
    let every = (26.0 / cell).ceil().max(1.0) as usize;
    let mut out = String::new();
    for expert in (0..experts).step_by(every) {
        let x = LEFT + cell * (expert as f64 + 0.5);
        out += &text("tick", "middle", x, TOP - 8.0, &expert.to_string());
    }
    out += &text("tick", "start", 0.0, TOP - 8.0, "expert");
    for (i, layer) in layers.iter().enumerate() {
        let y = TOP + row * i as f64;
        out += &text("tick", "start", 0.0, y + row / 2.0 + 4.0, &format!("layer {}", layer.layer));
        let even = 1.0 / layer.shares.len().max(1) as f64;
        for (expert, share) in layer.shares.iter().enumerate() {
            let strength = (share / even / 2.0).clamp(0.0, 1.0);
            let x = LEFT + cell * expert as f64;
            let _ = writeln!(
                out,
                "<rect class=\"cell\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\" fill-opacity=\"{:.3}\"><title>{}</title></rect>",
                x + 1.0,
                y + 1.0,
                (cell - 2.0).max(1.0),
                row - 2.0,
                strength,
                escape(&format!("layer {}, expert {expert}: {:.1} %", layer.layer, share * 100.0))
            );
            if cell >= 30.0 {
                let figure = format!("{:.1}", share * 100.0);
                out += &text("cell-text", "middle", x + cell / 2.0, y + row / 2.0 + 4.0, &figure);
            }
        }
    }
    out
}
