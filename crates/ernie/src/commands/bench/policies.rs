//! `bench policies`: what continuous batching saves readers, beside the two ways of scheduling that it replaced.

use super::{count, number, spread};
use crate::{
    cli::options::{Json, WeightsOption},
    commands::{COMMIT, VERSION},
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::Printer,
    progress::{Progress, Unit},
};
use ernie_eval::{
    load::{Comparison, Policy, StudyOptions, Timing, Workload, study},
    speed,
};
use ernie_serve::engine::Engine;
use serde_json::{Value, json};

/// No length exceeds so many times the longer median.
const LONGEST: usize = 4;

/// Compare continuous batching with request-level batches and with one request at a time
///
/// Requests of seeded random tokens come at random (Poisson) whether or not earlier ones are done, to the engine alone, at a share of what
/// each of the two baselines can bear; the same requests then come to continuous batching, which must give the same answers. Latency
/// counts from the arrival. Time that nobody works in is skipped, so a study takes its busy time only.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie bench policies runs/quickstart --load 0.7")]
pub(crate) struct Args {
    /// The model; `preset:NAME` needs no files
    model: String,
    /// Arrivals, as a share of what the baseline can bear
    #[arg(long, value_name = "SHARE", default_value_t = 0.7, value_parser = share)]
    load: f64,
    /// Requests of each run
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    requests: u32,
    /// Median tokens of a prompt
    #[arg(long, value_name = "P", default_value_t = 64, value_parser = count())]
    prompt_tokens: u32,
    /// Median tokens of an answer
    #[arg(long, value_name = "G", default_value_t = 32, value_parser = count())]
    gen_tokens: u32,
    /// How much lengths differ: the standard deviation of their logarithm (0: all alike; none exceeds four times the longer median, or half of
    /// the context)
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = spread)]
    spread: f64,
    /// Requests of a batch, at most
    #[arg(long, value_name = "B", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Seeds lengths, tokens and times
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    json: Json,
}

fn share(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0 && x < 1.0, "a share above 0 and below 1")
}

/// Runs the command.
pub(super) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let loaded = Model::find(&args.model)?.load(&args.weights, args.seed, printer)?;
    let (median, half) = (args.prompt_tokens.max(args.gen_tokens), loaded.decoder.config().max_position_embeddings / 2);
    if median as usize > half {
        let context = 2 * half;
        let message = format!(
            "--prompt-tokens and --gen-tokens: expected medians of at most {half}, half of what the model's context holds ({context}), found {median}"
        );
        return Err(Failure::input(message));
    }
    let workload = Workload {
        requests: args.requests as usize,
        prompt_tokens: args.prompt_tokens.into(),
        answer_tokens: args.gen_tokens.into(),
        spread: args.spread,
        most_tokens: half.min(LONGEST * median as usize),
        // Drawn: the likeliest tokens of weights that mean little go round in circles.
        temperature: 1.0,
        seed: args.seed,
    };
    let options = StudyOptions { workload, load: args.load, batch: args.batch as usize, window_s: 0.0 };
    let mut engine = Engine::new(loaded.decoder, speed::options(options.batch))?;
    let mut progress = Progress::new(*printer, "policies", None, Unit::Items);
    let mut steps = 0;
    let comparisons = study(&mut engine, &options, &mut |seconds| {
        steps += 1;
        progress.at(steps, "steps");
        seconds
    })?;
    progress.finish("");
    if args.json.json {
        printer.json(&json_of(args, &comparisons)?)?;
    } else {
        show(args, &comparisons, printer)?;
    }
    Ok(Exit::Done)
}

fn json_of(args: &Args, comparisons: &[Comparison]) -> Result<Value> {
    let mut each = serde_json::to_value(comparisons).map_err(|e| Failure::defect(format!("writing JSON: {e}")))?;
    // The size of a batch is said once.
    each.as_array_mut().into_iter().flatten().for_each(|it| it["baseline"] = it["baseline"]["policy"].take());
    Ok(json!({
        "model": args.model,
        "weights": args.weights.name(),
        "load": args.load,
        "requests": args.requests,
        "batch": args.batch,
        "seed": args.seed,
        "comparisons": each,
        "version": VERSION,
        "commit": COMMIT,
    }))
}

fn show(args: &Args, comparisons: &[Comparison], printer: &Printer) -> Result<()> {
    let (model, weights, load) = (&args.model, args.weights.name(), 100.0 * args.load);
    printer.line(
        printer.bold(&format!("{model} · {weights} · {} requests at {load:.0} % of saturation", args.requests)),
    )?;
    for comparison in comparisons {
        let title = match comparison.baseline {
            Policy::DynamicBatch { most, .. } => format!("batches of up to {most}, closed until all are done"),
            _ => "one request at a time".to_owned(),
        };
        printer.line("")?;
        printer.line(format!("{title}: {:.2} requests/s came", comparison.arrivals_per_s))?;
        printer.line(printer.faint("              mean     p50     p95     p99  first token"))?;
        for (name, times) in [("baseline", &comparison.baseline_times), ("continuous", &comparison.continuous_times)] {
            let Timing { mean_s, p50_s, p95_s, p99_s, first_token_mean_s } = times;
            printer.line(format!(
                "  {name:10}  {mean_s:5.2} s {p50_s:5.2} s {p95_s:5.2} s {p99_s:5.2} s      {first_token_mean_s:5.2} s"
            ))?;
        }
        printer.line(format!("  mean latency {:+.0} %", 100.0 * comparison.latency_change))?;
    }
    Ok(())
}
