//! `bench`: how fast a model is, beside what the machine allows.

mod infer;
mod page;
mod policies;
mod serve;
mod served_page;
mod train;

use crate::{
    cli::options::{Json, WeightsOption},
    exit::Exit,
    failure::{Failure, Result},
    machine,
    printer::Printer,
};
use ernie_eval::speed::{Roof, Spread};
use ernie_kernels::limits::Limits;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Measure the speed of a model beside the machine's limits
///
/// Reads prompts and writes answers of seeded random tokens on the engine. Tokens per second count the whole batch; each is
/// the median of --repeat measurements. Loading and one warm-up are left out. The limits are measured in the same run:
/// reading memory, and arithmetic in the numbers that the weights allow. With --train it measures training steps. `ernie bench serve
/// URL` puts a server under load, `ernie bench policies MODEL` compares ways of scheduling.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
#[command(before_help = "Example:\n  ernie bench preset:base --weights int8 --prompt-tokens 512 --gen-tokens 128\n  \
                         ernie bench preset:bench-dense-28m --train --batch 8 --seq 512")]
pub(crate) struct Args {
    #[command(subcommand)]
    of: Option<Of>,
    /// The model; `preset:NAME` needs no files (a folder called serve or policies is `./serve`, `./policies`)
    #[arg(required = true)]
    model: Option<String>,
    /// Tokens of each prompt
    #[arg(long, value_name = "P", default_value_t = 512, value_parser = count(), conflicts_with = "train")]
    prompt_tokens: u32,
    /// Tokens of each answer
    #[arg(long, value_name = "G", default_value_t = 128, value_parser = count(), conflicts_with = "train")]
    gen_tokens: u32,
    /// Sequences at the same time [default: 1; with --train 8 rows of a step]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,
    /// Tokens in the cache before both timed parts
    #[arg(long, value_name = "C", default_value_t = 0, conflicts_with = "train")]
    context: u32,
    /// Measurements of which the median is taken
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = count(), conflicts_with = "train")]
    repeat: u32,
    /// Also measure over prompt lengths, batches and contexts, and draw it all as one HTML page
    #[arg(long, value_name = "F.html", conflicts_with = "train")]
    report: Option<PathBuf>,
    /// Measure full training steps: forward, backward, AdamW
    #[arg(long, conflicts_with_all = ["weights", "adapter"])]
    train: bool,
    /// Tokens of a training row [default: 512]
    #[arg(long, value_name = "S", value_parser = count(), requires = "train")]
    seq: Option<u32>,
    /// Numbers that training computes in [default: f32]
    #[arg(long, value_name = "FORM", requires = "train")]
    compute: Option<Compute>,
    /// Update each parameter as soon as its gradient is there (`optimizer.in_backward`)
    #[arg(long, requires = "train")]
    in_backward: bool,
    /// Format of AdamW's moments (`optimizer.moments`) [default: f32]
    #[arg(long, value_name = "FORM", requires = "train")]
    moments: Option<Moments>,
    /// Keep each layer's input alone and run it again on the way back (`batch.recompute`)
    #[arg(long, requires = "train")]
    recompute: bool,
    /// Training steps that are timed, after one that is not [default: 5]
    #[arg(long, value_name = "N", value_parser = count(), requires = "train")]
    steps: Option<u32>,
    /// Seeds the tokens, and the weights of a preset
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    json: Json,
}

/// What else there is to measure.
#[derive(Debug, clap::Subcommand)]
enum Of {
    Serve(Box<serve::Args>),
    Policies(policies::Args),
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Compute {
    /// 32-bit floats
    F32,
    /// Products in bf16; weights, sums and the router in 32 bits
    Bf16,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Moments {
    /// 32-bit floats
    #[default]
    F32,
    /// bf16, rounded up or down by chance
    Bf16,
}

/// A number from 1 up; far beyond any context, so that no product of such numbers wraps.
fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=100_000_000)
}

/// A number that `fits`.
fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|&x| fits(x)).ok_or_else(|| format!("expected {expected}"))
}

/// How much lengths differ.
fn spread(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| (0.0..=3.0).contains(&x), "a number of 0 to 3")
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize, printer: &Printer) -> Result<Exit> {
    let model = match (&args.of, &args.model) {
        (Some(Of::Serve(args)), _) => return serve::run(args, printer),
        (Some(Of::Policies(args)), _) => return policies::run(args, printer),
        (None, Some(model)) => model,
        (None, None) => return Err(Failure::input("expected a MODEL")),
    };
    match args.train {
        true => train::run(args, model, threads, printer),
        false => infer::run(args, model, threads, printer),
    }
}

/// The limits, as the contract names them.
fn limits_json(limits: &Limits) -> Value {
    json!({
        "read_gb_per_s": rounded(limits.read_gb_per_s),
        "f32_gflop_per_s": rounded(limits.f32_gflop_per_s),
        "bf16_gflop_per_s": limits.bf16_gflop_per_s.map(rounded),
        "int8_gop_per_s": limits.int8_gop_per_s.map(rounded),
        "threads": limits.threads,
        "cpu": machine::cpu_name(),
    })
}

fn spread_json(spread: &Spread) -> Value {
    json!({ "median": rounded(spread.median), "p10": rounded(spread.p10), "p90": rounded(spread.p90) })
}

/// Five digits: more would be noise.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let unit = 10f64.powi(4 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}

/// The limits as one line for people.
fn limits_line(limits: &Limits) -> String {
    let arithmetic = |name: &str, value: Option<f64>, unit: &str| match value {
        Some(value) => format!("{name} {value:.0} {unit}"),
        None => format!("{name} no instruction"),
    };
    format!(
        "reading {:.1} GB/s · {} · {} · {}",
        limits.read_gb_per_s,
        arithmetic("f32", Some(limits.f32_gflop_per_s), "GFLOP/s"),
        arithmetic("bf16", limits.bf16_gflop_per_s, "GFLOP/s"),
        arithmetic("int8", limits.int8_gop_per_s, "GOP/s"),
    )
}

/// The roof over a model by what its weights allow, and the name of that arithmetic.
///
/// Weights of up to 11 bits each can be multiplied as int8, of up to 23 as bf16, where there is an instruction for it;
/// scales and the tensors that stay f32 are in the count.
fn roof(limits: &Limits, bits_per_weight: f64) -> (Roof, &'static str) {
    let (name, giga) = match (limits.int8_gop_per_s, limits.bf16_gflop_per_s) {
        (Some(int8), _) if bits_per_weight < 11.0 => ("int8", int8),
        (_, Some(bf16)) if bits_per_weight < 23.0 => ("bf16", bf16),
        _ => ("f32", limits.f32_gflop_per_s),
    };
    (Roof { bytes_per_s: limits.read_gb_per_s * 1e9, operations_per_s: giga * 1e9 }, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        threads: 2,
        read_gb_per_s: 40.0,
        f32_gflop_per_s: 200.0,
        bf16_gflop_per_s: None,
        int8_gop_per_s: Some(800.0),
    };

    #[test]
    fn the_roof_is_that_of_the_numbers_stored() {
        assert_eq!(roof(&LIMITS, 8.2).1, "int8");
        assert_eq!(roof(&LIMITS, 16.0).1, "f32");
        assert_eq!(roof(&Limits { bf16_gflop_per_s: Some(400.0), ..LIMITS }, 16.0).1, "bf16");
        assert_eq!(roof(&Limits { int8_gop_per_s: None, ..LIMITS }, 4.5).1, "f32");
        assert_eq!(roof(&LIMITS, 32.0).0, Roof { bytes_per_s: 40e9, operations_per_s: 200e9 });
    }

    #[test]
    fn figures_have_five_digits() {
        assert_eq!(rounded(1234.5678), 1234.6);
        assert_eq!(rounded(0.012_345_678), 0.012_346);
        assert_eq!(rounded(0.0), 0.0);
    }
}
