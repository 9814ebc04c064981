//! Reading and writing: measured, set against the limits, shown.

use super::{Args, limits_json, limits_line, page, roof, rounded, spread_json};
use crate::{
    commands::{COMMIT, VERSION, check_place},
    exit::Exit,
    failure::{Failure, Result},
    machine,
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_eval::speed::{self, Need, Roof, Speed, Spread, Workload};
use ernie_kernels::limits::Limits;
use ernie_model::{ModelConfig, WeightsAs, weights::Weights};
use ernie_serve::engine::Engine;
use serde_json::{Value, json};

/// Bytes of one number in the widest cache that an engine has.
const WIDEST_KV_BYTES: usize = 4;

/// The model that is measured, as far as its needs go, and the limits of the run.
pub(super) struct Bench {
    pub(super) name: String,
    pub(super) weights: &'static str,
    pub(super) threads: usize,
    pub(super) config: ModelConfig,
    pub(super) weight_bytes: u64,
    /// What one position of one sequence takes in the engine's cache.
    pub(super) kv_bytes_per_token: u64,
    pub(super) limits: Limits,
    pub(super) roof: Roof,
    /// The arithmetic that the roof is of.
    pub(super) arithmetic: &'static str,
}

/// A workload with what was measured.
pub(super) struct Measured {
    pub(super) workload: Workload,
    pub(super) speed: Speed,
}

/// What the limits allow a workload, in tokens a second, and which limit that is.
pub(super) struct Allowed {
    pub(super) tokens_per_s: f64,
    pub(super) by_memory: bool,
}

impl Bench {
    pub(super) fn prefill_limit(&self, workload: &Workload) -> Allowed {
        let need = Need::prefill(&self.config, self.weight_bytes, workload);
        self.allowed(&need, workload.batch * workload.prompt_tokens)
    }

    pub(super) fn decode_limit(&self, workload: &Workload) -> Allowed {
        let need = Need::decode(&self.config, self.weight_bytes, self.kv_bytes_per_token, workload);
        self.allowed(&need, workload.batch)
    }

    fn allowed(&self, need: &Need, tokens: usize) -> Allowed {
        Allowed {
            tokens_per_s: tokens as f64 / need.seconds(&self.roof),
            by_memory: need.is_bound_by_memory(&self.roof),
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &Args, name: &str, threads: usize, printer: &Printer) -> Result<Exit> {
    let workload = Workload {
        prompt_tokens: args.prompt_tokens as usize,
        gen_tokens: args.gen_tokens as usize,
        batch: args.batch.unwrap_or(1) as usize,
        context: args.context as usize,
        repeat: args.repeat as usize,
        seed: args.seed,
    };
    if let Some(report) = &args.report {
        check_place(report)?;
    }
    let model = Model::find(name)?;
    // Tables only: what cannot fit is refused before the weights are loaded.
    let config = Weights::open(&model.source(args.seed), WeightsAs::Native)?.config().clone();
    workload.check(config.max_position_embeddings)?;
    has_room(&config, &workload)?;
    let loaded = model.load(&args.weights, args.seed, printer)?;
    let weight_bytes = loaded.decoder.weight_bytes();
    let most = args.report.as_ref().map_or(workload.batch, |_| workload.batch.max(page::MOST_STREAMS));
    let mut engine = Engine::new(loaded.decoder, speed::options(most))?;
    let kv_bytes_per_token = engine.stats().block_bytes.div_ceil(engine.stats().block_tokens.max(1) as u64);

    let speed = measure(&mut engine, &workload, name, printer)?;
    let peak_rss = machine::peak_rss_bytes();
    let limits = Limits::measure(threads);
    let bits = 8.0 * weight_bytes as f64 / config.parameters().total.max(1) as f64;
    let (roof, arithmetic) = roof(&limits, bits);
    let name = name.to_owned();
    let weights = args.weights.name();
    let bench = Bench { name, weights, threads, config, weight_bytes, kv_bytes_per_token, limits, roof, arithmetic };
    let kv_bytes = (workload.batch * workload.positions()) as u64 * kv_bytes_per_token;
    let measured = Measured { workload, speed };

    if let Some(report) = &args.report {
        page::write(report, &bench, &measured, &mut engine, printer)?;
    }
    if args.json.json {
        printer.json(&json_of(&bench, &measured, kv_bytes, peak_rss))?;
    } else {
        show(&bench, &measured, kv_bytes, peak_rss, printer)?;
    }
    Ok(Exit::Done)
}

/// Measures one workload, with progress.
pub(super) fn measure(engine: &mut Engine, workload: &Workload, what: &str, printer: &Printer) -> Result<Speed> {
    let rounds = workload.repeat + 1;
    let mut progress = Progress::new(*printer, what, Some(rounds as u64), Unit::Items);
    let speed = speed::measure(engine, workload, &mut |done| progress.at(done as u64, ""))?;
    progress.finish("");
    Ok(speed)
}

/// Refuses a workload whose cache the machine has no room for.
fn has_room(config: &ModelConfig, workload: &Workload) -> Result<()> {
    let positions = (workload.batch as u64).saturating_mul(workload.positions() as u64);
    let bytes = positions.saturating_mul(config.kv_bytes_per_token(WIDEST_KV_BYTES));
    match machine::available_bytes() {
        Some(free) if bytes > free => Err(Failure::environment(format!(
            "the cache of {} sequences of {} tokens may take {}, and {} are free",
            workload.batch,
            workload.positions(),
            printer::bytes(bytes),
            printer::bytes(free)
        ))
        .hint("fewer sequences (--batch) or a shorter --context")),
        _ => Ok(()),
    }
}

fn json_of(bench: &Bench, measured: &Measured, kv_bytes: u64, peak_rss: Option<u64>) -> Value {
    let Measured { workload, speed } = measured;
    let share = |spread: &Spread, allowed: Allowed| rounded(spread.median / allowed.tokens_per_s);
    json!({
        "model": bench.name,
        "weights": bench.weights,
        "threads": bench.threads,
        "prompt_tokens": workload.prompt_tokens,
        "gen_tokens": workload.gen_tokens,
        "batch": workload.batch,
        "context": workload.context,
        "repeat": workload.repeat,
        "seed": workload.seed,
        "prefill_tokens_per_s": spread_json(&speed.prefill_tokens_per_s),
        "decode_tokens_per_s": spread_json(&speed.decode_tokens_per_s),
        "weight_bytes": bench.weight_bytes,
        "kv_bytes": kv_bytes,
        "peak_rss_bytes": peak_rss,
        "limits": limits_json(&bench.limits),
        "share_of_limit": {
            "prefill": share(&speed.prefill_tokens_per_s, bench.prefill_limit(workload)),
            "decode": share(&speed.decode_tokens_per_s, bench.decode_limit(workload)),
        },
        "version": VERSION,
        "commit": COMMIT,
    })
}

fn show(bench: &Bench, measured: &Measured, kv_bytes: u64, peak: Option<u64>, printer: &Printer) -> Result<()> {
    let Measured { workload, speed } = measured;
    let threads = format!("{} thread{}", bench.threads, if bench.threads == 1 { "" } else { "s" });
    printer.line(printer.bold(&format!("{}, weights {}, {threads}", bench.name, bench.weights)))?;
    let heading = format!("  {:8}{:>12}{:>19}   share of the limit", "", "tokens/s", "p10 – p90");
    printer.line(printer.faint(&heading))?;
    let rows = [
        ("prefill", &speed.prefill_tokens_per_s, bench.prefill_limit(workload)),
        ("decode", &speed.decode_tokens_per_s, bench.decode_limit(workload)),
    ];
    for (name, spread, allowed) in rows {
        let range = format!("{} – {}", rate(spread.p10), rate(spread.p90));
        printer.line(format!(
            "  {name:8}{:>12}{range:>19}   {:.0} % of {} ({})",
            rate(spread.median),
            100.0 * spread.median / allowed.tokens_per_s,
            rate(allowed.tokens_per_s),
            bound_by(bench, &allowed),
        ))?;
    }
    let label = |name: &str| printer.faint(&format!("{name:8}"));
    let sequences = if workload.batch == 1 { "1 sequence".to_owned() } else { format!("{} sequences", workload.batch) };
    printer.line(format!(
        "  {}  {sequences}, prompt {}, answer {}, {} in the cache before",
        label("work"),
        workload.prompt_tokens,
        workload.gen_tokens,
        workload.context
    ))?;
    let peak = peak.map_or_else(String::new, |peak| format!(", {} at the peak", printer::bytes(peak)));
    let (weights, cache) = (printer::bytes(bench.weight_bytes), printer::bytes(kv_bytes));
    printer.line(format!("  {}  weights {weights}, cache {cache}{peak}", label("memory")))?;
    printer.line(format!("  {}  {}", label("limits"), limits_line(&bench.limits)))
}

/// What sets a limit, in words.
pub(super) fn bound_by(bench: &Bench, allowed: &Allowed) -> String {
    if allowed.by_memory { "reading memory".to_owned() } else { format!("{} arithmetic", bench.arithmetic) }
}

/// Tokens a second, as people read them.
pub(super) fn rate(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { printer::exact(value.round() as u64) }
}
