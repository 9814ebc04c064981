//! `bench serve --report`: the loads as columns, one server beside the other.

use super::serve::{Bench, Level};
use crate::{
    commands::{COMMIT, VERSION},
    failure::Result,
    machine,
    printer::Printer,
    report::{self, Report, Sweep, SweepPoint, Tile},
};
use ernie_eval::load::served::Summary;
use std::path::Path;

/// Writes the page.
pub(super) fn write(path: &Path, bench: &Bench, work: &str, printer: &Printer) -> Result<()> {
    let page = report::render(&page(bench, work));
    ernie_files::atomic::write(path, page.as_bytes())?;
    printer.say(format!("report {}", path.display()));
    Ok(())
}

fn page(bench: &Bench, work: &str) -> Report {
    let (ours, theirs) = (&bench.targets[0], bench.targets.get(1));
    let sweep = |heading: &str, sentence: &str, unit: &str, value: fn(&Summary) -> f64| Sweep {
        heading: heading.to_owned(),
        sentence: sentence.to_owned(),
        axis: "load".to_owned(),
        unit: unit.to_owned(),
        names: [ours.url().to_owned(), theirs.map_or_else(String::new, |target| target.url().to_owned())],
        compared: "of the other".to_owned(),
        points: bench
            .levels
            .iter()
            .filter_map(|level| {
                let measured = value(level.servers.first()?);
                Some(SweepPoint { at: level.name(), measured, limit: level.servers.get(1).map(value) })
            })
            .collect(),
    };
    let sweeps = vec![
        sweep("Answer tokens a second", "More is better.", "tokens/s", |s| s.tokens_per_s),
        sweep("Time to the first token", "95th percentile, from when a request was due; less is better.", "ms", |s| {
            1e3 * s.first_token.p95_s
        }),
        sweep("Time between tokens", "95th percentile; less is better.", "ms", |s| 1e3 * s.between_tokens.p95_s),
        sweep("Time to the whole answer", "95th percentile; less is better.", "ms", |s| 1e3 * s.end_to_end.p95_s),
        sweep("Good answers", "In per cent of the readers that stayed.", "%", |s| 100.0 * s.goodput),
    ];
    let busiest = bench.levels.iter().max_by(|a, b| tokens(a).total_cmp(&tokens(b)));
    let failed: usize = bench.levels.iter().flat_map(|level| &level.servers).flat_map(|s| s.errors.values()).sum();
    let tile = |value: String, name: String| Tile { value, name };
    let mut tiles: Vec<Tile> = Vec::new();
    if let Some((level, summary)) = busiest.and_then(|level| Some((level, level.servers.first()?))) {
        tiles.push(tile(format!("{:.0}", summary.tokens_per_s), format!("tokens/s at {}", level.name())));
        let first = format!("{:.0} ms", 1e3 * summary.first_token.p95_s);
        tiles.push(tile(first, format!("to the first token, p95, at {}", level.name())));
    }
    tiles.push(tile(failed.to_string(), "requests that failed".into()));
    let verdict = match busiest.map(|level| level.servers.as_slice()) {
        Some([ours, theirs]) => format!(
            "At its busiest it writes {:.2} times as many tokens a second as the other server.",
            ours.tokens_per_s / theirs.tokens_per_s.max(f64::MIN_POSITIVE)
        ),
        Some([ours, ..]) => format!("At its busiest it writes {:.0} tokens a second.", ours.tokens_per_s),
        _ => String::new(),
    };
    let mut machine = machine::describe();
    machine.extend([("ernie".to_owned(), format!("{VERSION} ({COMMIT})")), ("made".to_owned(), machine::now())]);
    Report {
        title: "bench serve".to_owned(),
        subtitle: format!("{}, model {}: {work}.", ours.url(), ours.model()),
        verdict,
        tiles,
        sweeps,
        machine,
        notes: vec![
            "Random tokens; latency counts from the time that a request was due. The machine is the one that asked."
                .into(),
        ],
        ..Report::default()
    }
}

fn tokens(level: &Level) -> f64 {
    level.servers.first().map_or(0.0, |summary| summary.tokens_per_s)
}
