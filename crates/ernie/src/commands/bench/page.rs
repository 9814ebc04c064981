//! `--report`: sweeps over prompt length, batch and context, drawn against the limits.

use super::{
    infer::{Allowed, Bench, Measured, bound_by, measure, rate},
    limits_line,
};
use crate::{
    commands::{COMMIT, VERSION},
    failure::Result,
    machine,
    printer::{self, Printer},
    report::{self, Report, Sweep, SweepPoint, Tile},
};
use ernie_eval::speed::{Spread, Workload};
use ernie_serve::engine::Engine;
use std::path::Path;

/// Sequences of the widest point of the sweep over batches.
pub(super) const MOST_STREAMS: usize = 16;

const PROMPTS: &[usize] = &[16, 64, 256, 512, 1024];
const BATCHES: &[usize] = &[1, 2, 4, 8, MOST_STREAMS];
const CONTEXTS: &[usize] = &[0, 512, 1024, 2048, 4096];
/// Points of a sweep are measured a few times with short answers: a page should take a minute, not ten.
const REPEATS: usize = 2;
const ANSWER: usize = 16;

/// Measures the sweeps and writes the page.
pub(super) fn write(path: &Path, bench: &Bench, main: &Measured, engine: &mut Engine, printer: &Printer) -> Result<()> {
    let base = Workload {
        prompt_tokens: 1,
        gen_tokens: ANSWER,
        batch: 1,
        context: 0,
        repeat: REPEATS,
        seed: main.workload.seed.wrapping_add(1),
    };
    let room = engine.context_length();
    let mut sweep = |name: &str, workloads: Vec<Workload>| -> Result<Vec<Measured>> {
        let fitting = workloads.into_iter().filter(|workload| workload.positions() <= room);
        let what = format!("sweep over {name}");
        fitting.map(|workload| Ok(Measured { workload, speed: measure(engine, &workload, &what, printer)? })).collect()
    };
    let prompts = PROMPTS.iter().map(|&prompt_tokens| Workload { prompt_tokens, gen_tokens: 1, ..base }).collect();
    let prompts = sweep("prompts", prompts)?;
    let batches = sweep("batches", BATCHES.iter().map(|&batch| Workload { batch, ..base }).collect())?;
    let contexts = sweep("contexts", CONTEXTS.iter().map(|&context| Workload { context, ..base }).collect())?;

    let prefill = |measured: &Measured, at: usize| {
        point(at, &measured.speed.prefill_tokens_per_s, &bench.prefill_limit(&measured.workload))
    };
    let decode = |measured: &Measured, at: usize| {
        point(at, &measured.speed.decode_tokens_per_s, &bench.decode_limit(&measured.workload))
    };
    let against = |heading: &str, sentence: &str, axis: &str, points: Vec<SweepPoint>| Sweep {
        heading: heading.to_owned(),
        sentence: sentence.to_owned(),
        axis: axis.to_owned(),
        unit: "tokens/s".to_owned(),
        names: ["measured", "what this machine allows"].map(str::to_owned),
        compared: "of the limit".to_owned(),
        points,
    };
    let sweeps = vec![
        against(
            "Reading a prompt",
            "Prompt tokens a second by the length of the prompt.",
            "prompt tokens",
            prompts.iter().map(|m| prefill(m, m.workload.prompt_tokens)).collect(),
        ),
        against(
            "Writing, many sequences",
            "Answer tokens a second of all sequences together, by their number.",
            "sequences",
            batches.iter().map(|m| decode(m, m.workload.batch)).collect(),
        ),
        against(
            "Writing, long contexts",
            "Answer tokens a second of one sequence, by the tokens in its cache.",
            "tokens in the cache",
            contexts.iter().map(|m| decode(m, m.workload.context)).collect(),
        ),
    ];
    let page = report::render(&page(bench, main, sweeps));
    ernie_files::atomic::write(path, page.as_bytes())?;
    printer.say(format!("report {}", path.display()));
    Ok(())
}

fn point(at: usize, spread: &Spread, allowed: &Allowed) -> SweepPoint {
    SweepPoint { at: at.to_string(), measured: spread.median, limit: Some(allowed.tokens_per_s) }
}

fn page(bench: &Bench, main: &Measured, sweeps: Vec<Sweep>) -> Report {
    let Measured { workload, speed } = main;
    let tile = |value: String, name: &str| Tile { value, name: name.to_owned() };
    let (reading, writing) = (bench.prefill_limit(workload), bench.decode_limit(workload));
    let share = |spread: &Spread, allowed: &Allowed| 100.0 * spread.median / allowed.tokens_per_s;
    let mut machine = machine::describe();
    machine.extend([
        ("threads".to_owned(), bench.threads.to_string()),
        ("limits".to_owned(), limits_line(&bench.limits)),
        ("ernie".to_owned(), format!("{VERSION} ({COMMIT})")),
        ("made".to_owned(), machine::now()),
    ]);
    Report {
        title: "bench".to_owned(),
        subtitle: format!(
            "{}, weights {}: {} of weights, measured beside what this machine allows.",
            bench.name,
            bench.weights,
            printer::bytes(bench.weight_bytes)
        ),
        verdict: format!(
            "Reading reaches {:.0} % of the limit that {} sets, writing {:.0} % of the limit that {} sets.",
            share(&speed.prefill_tokens_per_s, &reading),
            bound_by(bench, &reading),
            share(&speed.decode_tokens_per_s, &writing),
            bound_by(bench, &writing)
        ),
        tiles: vec![
            tile(
                rate(speed.prefill_tokens_per_s.median),
                &format!("tokens/s reading {} × {}", workload.batch, workload.prompt_tokens),
            ),
            tile(
                rate(speed.decode_tokens_per_s.median),
                &format!("tokens/s writing {} × {}", workload.batch, workload.gen_tokens),
            ),
            tile(format!("{:.1} GB/s", bench.limits.read_gb_per_s), "reading memory"),
        ],
        sweeps,
        machine,
        notes: vec![
            "A limit is the time that reading the weights and the cache once, or multiplying by them once, must take at \
             the speeds measured in this run; the slower of the two counts."
                .to_owned(),
            format!("Points of the sweeps are medians of {REPEATS} runs with {ANSWER} tokens written."),
        ],
        ..Report::default()
    }
}
