//! Training steps, timed: forward, backward and AdamW on random tokens.

use super::{Args, Compute, Moments, limits_json, limits_line, rounded, spread_json};
use crate::{
    commands::{COMMIT, VERSION},
    exit::Exit,
    failure::{Failure, Result},
    machine,
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_data::{Batch, packing::IGNORED};
use ernie_eval::speed::{Need, Roof, Spread};
use ernie_kernels::limits::Limits;
use ernie_model::Decoder;
use ernie_nn::Width;
use ernie_serve::engine::uniform;
use ernie_train::{optimizer::Optimizer, recipe, step};
use serde_json::json;
use std::time::Instant;

/// What the comparison with other programs asks for, and no more: no router terms, no clipping, PyTorch's AdamW; in less memory where `args` say so.
fn settings(args: &Args) -> (recipe::Objective, recipe::Optimizer) {
    let objective = recipe::Objective {
        router_bias_rate: 0.0,
        router_balance: 0.0,
        router_z: 0.0,
        router_orthogonal: 0.0,
        ..recipe::Objective::default()
    };
    let optimizer = recipe::Optimizer {
        lr: 1e-4,
        betas: [0.9, 0.999],
        weight_decay: 0.01,
        decay: recipe::Decay::All,
        clip: 0.0,
        in_backward: args.in_backward,
        moments: args.moments.unwrap_or_default().into(),
        ..recipe::Optimizer::default()
    };
    (objective, optimizer)
}

impl From<Moments> for recipe::Float {
    fn from(moments: Moments) -> Self {
        match moments {
            Moments::F32 => Self::F32,
            Moments::Bf16 => Self::Bf16,
        }
    }
}

impl Compute {
    fn width(self) -> Width {
        match self {
            Self::F32 => Width::F32,
            Self::Bf16 => Width::Bf16,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &Args, name: &str, threads: usize, printer: &Printer) -> Result<Exit> {
    let compute = args.compute.unwrap_or(Compute::F32);
    let rows = args.batch.unwrap_or(8) as usize;
    let (seq_len, steps) = (args.seq.unwrap_or(512) as usize, args.steps.unwrap_or(5) as usize);
    ernie_kernels::memory::keep_what_is_freed();
    let model = Model::find(name)?;
    let loaded = ernie_model::load_trainable(&model.source(args.seed), compute.width())?;
    let mut decoder = loaded.decoder;
    decoder.set_recompute(args.recompute);
    let room = decoder.config().max_position_embeddings;
    if seq_len > room {
        return Err(Failure::input(format!("--seq {seq_len}: expected at most {room}, the model's context")));
    }
    // What lives until the backward pass is at least each layer's inputs; a step that cannot fit is refused, not killed.
    let width = decoder.config().hidden_size * decoder.config().num_hidden_layers;
    let least = 4 * (rows * seq_len) as u64 * width as u64;
    if let Some(free) = machine::available_bytes().filter(|&free| least > free) {
        let (least, free) = (printer::bytes(least), printer::bytes(free));
        return Err(Failure::environment(format!(
            "a step of {rows} rows of {seq_len} tokens takes more than {least}, and {free} are free"
        ))
        .hint("fewer rows (--batch) or shorter ones (--seq)"));
    }

    let (objective, settings) = settings(args);
    let mut optimizer = Optimizer::new(&decoder.parameters(), &settings).seeded(args.seed);
    let lr = 1e-4;
    let batch = random_batch(&decoder, rows, seq_len, args.seed);
    let mut progress = Progress::new(*printer, name, Some(steps as u64 + 1), Unit::Items);
    let (mut rates, mut losses) = (Vec::new(), Vec::new());
    for number in 0..=steps {
        let began = Instant::now();
        let batches = std::slice::from_ref(&batch);
        let measured = if args.in_backward {
            let measured =
                step::accumulate_telling(&decoder, batches, &objective, |parameter| optimizer.update(parameter, lr))?;
            optimizer.finish(lr)?;
            measured
        } else {
            let measured = step::accumulate(&decoder, batches, &objective)?;
            optimizer.step(lr, 1.0)?;
            optimizer.zero_grad();
            measured
        };
        if number > 0 {
            rates.push((rows * seq_len) as f64 / began.elapsed().as_secs_f64().max(1e-9));
        }
        losses.push(measured.loss);
        progress.at(number as u64 + 1, &format!("loss {:.3}", measured.loss));
    }
    progress.finish("");
    let peak = machine::peak_rss_bytes();
    let limits = Limits::measure(threads);
    let giga = match compute {
        Compute::F32 => limits.f32_gflop_per_s,
        // Without an instruction for it, products of rounded numbers are products of floats.
        Compute::Bf16 => limits.bf16_gflop_per_s.unwrap_or(limits.f32_gflop_per_s),
    };
    let roof = Roof { bytes_per_s: limits.read_gb_per_s * 1e9, operations_per_s: giga * 1e9 };
    let allowed = (rows * seq_len) as f64 / Need::training(decoder.config(), rows, seq_len).seconds(&roof);
    let spread = Spread::of(&rates);
    let share = spread.median / allowed;
    let (first, last) = (losses.first().copied().unwrap_or(0.0), losses.last().copied().unwrap_or(0.0));

    let moments = match settings.moments {
        recipe::Float::F32 => "f32",
        recipe::Float::Bf16 => "bf16",
    };
    if args.json.json {
        printer.json(&json!({
            "model": name,
            "compute": compute.name(),
            "threads": threads,
            "batch": rows,
            "seq": seq_len,
            "steps": steps,
            "in_backward": args.in_backward,
            "moments": moments,
            "recompute": args.recompute,
            "seed": args.seed,
            "params": decoder.config().parameters().total,
            "train_tokens_per_s": spread_json(&spread),
            "peak_rss_bytes": peak,
            "loss_first": first,
            "loss_last": last,
            "limits": limits_json(&limits),
            "share_of_limit": rounded(share),
            "version": VERSION,
            "commit": COMMIT,
        }))?;
        return Ok(Exit::Done);
    }
    let parameters = printer::count(decoder.config().parameters().total);
    printer.line(printer.bold(&format!("{}, {parameters} parameters, training in {}", name, compute.name())))?;
    let label = |name: &str| printer.faint(&format!("{name:8}"));
    let whole = |value: f64| printer::exact(value.round() as u64);
    printer.line(format!(
        "  {}  {} tokens/s ({} – {}), {:.0} % of {} ({} arithmetic)",
        label("steps"),
        whole(spread.median),
        whole(spread.p10),
        whole(spread.p90),
        100.0 * share,
        whole(allowed),
        compute.name()
    ))?;
    let again = if args.recompute { ", layers run again on the way back" } else { "" };
    printer.line(format!("  {}  {steps} steps of {rows} rows of {seq_len} tokens{again}", label("work")))?;
    printer.line(format!("  {}  {first:.4} → {last:.4} on the same tokens", label("loss")))?;
    if let Some(peak) = peak {
        let updates = if args.in_backward { ", updates on the way back" } else { "" };
        let peak = printer::bytes(peak);
        printer.line(format!("  {}  {peak} at the peak, moments in {moments}{updates}", label("memory")))?;
    }
    printer.line(format!("  {}  {}", label("limits"), limits_line(&limits)))?;
    Ok(Exit::Done)
}

/// Rows of random ids; each predicts the next, the last of a row nothing.
fn random_batch(decoder: &Decoder, rows: usize, seq_len: usize, seed: u64) -> Batch {
    let vocab_size = decoder.config().vocab_size as f64;
    let ids: Vec<u32> = (0..rows * seq_len).map(|at| (uniform(seed, at as u64) * vocab_size) as u32).collect();
    let targets =
        (1..=ids.len()).map(|next| if next % seq_len == 0 { IGNORED } else { i64::from(ids[next]) }).collect();
    Batch { ids, targets, lengths: vec![seq_len; rows], rows, seq_len, places: Vec::new() }
}
