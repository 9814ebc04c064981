//! `inspect`: what a MODEL is, without running it and without holding its weights.

use crate::{
    cli::options::Json,
    exit::Exit,
    failure::Result,
    model::{Model, Place},
    printer::{self, Printer},
};
use ernie_model::{
    Architecture, LoadReport, ModelConfig, WeightsAs,
    config::{Role, StoredDtype},
    weights::Weights,
};
use serde_json::{Value, json};
use std::ops::ControlFlow;

/// Show what a model is: shape, parameters, memory, tensors
///
/// Tables are read and checked, weights are not kept in memory; a preset is answered from its shape alone.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie inspect preset:ernie-4.5-21b-a3b")]
pub(crate) struct Args {
    /// The model
    model: String,
    #[command(flatten)]
    json: Json,
}

/// What is known of a model.
struct Inspection {
    config: ModelConfig,
    report: LoadReport,
    /// Fields that were worked out, not read: name and reason.
    inferred: Vec<(&'static str, String)>,
}

/// Bytes of one number in the key/value cache that `kv_bytes_per_token` counts: bf16.
const KV_BYTES: usize = 2;

/// Labels shown to people; `--json` has all.
const LABELS_SHOWN: usize = 8;

/// Names of skipped tensors shown to people; `--json` has all.
const SKIPPED_SHOWN: usize = 8;

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find(&args.model)?;
    let inspection = inspect(&model)?;
    if args.json.json {
        printer.json(&fields(&inspection))?;
    } else {
        show(&model, &inspection, printer)?;
    }
    Ok(Exit::Done)
}

fn inspect(model: &Model) -> Result<Inspection> {
    if let Place::Preset(name) = &model.place {
        return Ok(preset(ModelConfig::preset(name)?));
    }
    let mut weights = Weights::open(&model.source(0), WeightsAs::Native)?;
    let config = weights.config().clone();
    let mut outcome = Ok(());
    // Each tensor is taken and dropped: that checks it and counts it, and holds one at a time.
    let _ = config.for_each_tensor(&mut |spec| {
        let taken = match spec.role {
            Role::CorrectionBias => weights.take_optional_f32(&spec.name, &spec.shape).map(drop),
            role if role.is_matrix() => weights.take(&spec.name, &spec.shape).map(drop),
            _ => weights.take_f32(&spec.name, &spec.shape).map(drop),
        };
        match taken {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        }
    });
    outcome?;
    let report = weights.finish()?;
    Ok(Inspection { inferred: inferred(&config), config, report })
}

/// A preset has no file: its bytes follow from its shape and number format.
fn preset(config: ModelConfig) -> Inspection {
    let (mut bytes, mut used) = (0_u64, 0_usize);
    let width = match config.dtype {
        Some(StoredDtype::F16 | StoredDtype::Bf16) => 2,
        Some(StoredDtype::F32) | None => 4,
    };
    let _ = config.for_each_tensor(&mut |spec| {
        let elements: u64 = spec.shape.iter().map(|d| *d as u64).product();
        bytes += elements * if spec.role.is_matrix() { width } else { 4 };
        used += 1;
        ControlFlow::Continue(())
    });
    let mut inferred = inferred(&config);
    inferred.push(("weight_bytes", "predicted from the shape; a preset has no file".to_owned()));
    Inspection { config, report: LoadReport { used, weight_bytes: bytes, ..LoadReport::default() }, inferred }
}

/// What the numbers of a model rest on beside its file.
fn inferred(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let mut list = Vec::new();
    if config.vision.is_some() {
        list.push((
            "params_total",
            "counts tower, adapter and vision experts by the published shapes; the vision expert width of the 424B model is inferred from its advertised total".to_owned(),
        ));
    }
    list
}

fn fields(inspection: &Inspection) -> Value {
    let config = &inspection.config;
    let count = config.parameters();
    let published = config.to_json();
    let inferred: Vec<Value> =
        inspection.inferred.iter().map(|(field, why)| json!({ "field": field, "why": why })).collect();
    json!({
        "architecture": published["architectures"][0],
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "labels": config.labels,
        "params_total": count.total,
        "params_active": count.active,
        "params_mtp": count.mtp,
        "kv_bytes_per_token": config.kv_bytes_per_token(KV_BYTES),
        "weight_bytes": inspection.report.weight_bytes,
        "tensors": { "used": inspection.report.used, "skipped": inspection.report.skipped },
        "inferred": inferred,
        "notes": inspection.report.notes,
        "config": published,
    })
}

fn show(model: &Model, inspection: &Inspection, printer: &Printer) -> Result<()> {
    let (config, report) = (&inspection.config, &inspection.report);
    let count = config.parameters();
    let kind = match config.architecture {
        Architecture::Dense => "dense decoder",
        Architecture::Moe => "mixture of experts",
        Architecture::VlText => "vision and language; the text side runs, pictures are not built yet",
    };
    let mut rows: Vec<(&str, String)> = Vec::new();
    rows.push(("kind", kind.to_owned()));
    rows.push(("parameters", format!("{}  ({})", printer::exact(count.total), printer::count(count.total))));
    if count.active != count.total {
        rows.push(("  per token", format!("{}  ({})", printer::exact(count.active), printer::count(count.active))));
    }
    if count.mtp > 0 {
        rows.push(("  MTP, apart", printer::exact(count.mtp)));
    }
    rows.push((
        "layers",
        match &config.moe {
            Some(_) => format!("{}, {} of them with experts", config.num_hidden_layers, config.moe_layers()),
            None => config.num_hidden_layers.to_string(),
        },
    ));
    if let Some(moe) = &config.moe {
        rows.push((
            "experts",
            format!(
                "{} of {} for each token, width {}; {}",
                moe.k,
                moe.num_experts,
                moe.intermediate_size,
                match moe.num_shared_experts {
                    0 => "none shared".to_owned(),
                    n => format!("{n} shared"),
                }
            ),
        ));
    }
    rows.push((
        "attention",
        format!(
            "{} query heads, {} key/value heads of {}",
            config.num_attention_heads, config.num_key_value_heads, config.head_dim
        ),
    ));
    rows.push(("hidden size", printer::exact(config.hidden_size as u64)));
    rows.push((
        "vocabulary",
        format!(
            "{}{}",
            printer::exact(config.vocab_size as u64),
            if config.tie_word_embeddings { ", head tied" } else { ", own head" }
        ),
    ));
    if !config.labels.is_empty() {
        let shown: Vec<&str> = config.labels.iter().take(LABELS_SHOWN).map(String::as_str).collect();
        let more = config.labels.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        rows.push(("labels", format!("{}: {}{more}", config.labels.len(), shown.join(", "))));
    }
    rows.push(("context", format!("{} tokens", printer::exact(config.max_position_embeddings as u64))));
    let predicted = if matches!(model.place, Place::Preset(_)) { ", predicted" } else { "" };
    rows.push(("weights", format!("{}{predicted}", printer::bytes(report.weight_bytes))));
    rows.push(("cache", format!("{} a token in bf16", printer::bytes(config.kv_bytes_per_token(KV_BYTES)))));
    rows.push(("tensors", format!("{} used, {} skipped", printer::exact(report.used as u64), report.skipped.len())));
    printer.line(printer.bold(&model.name))?;
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        printer.line(format!("  {}  {value}", printer.faint(&format!("{name:width$}"))))?;
    }
    for name in report.skipped.iter().take(SKIPPED_SHOWN) {
        printer.line(format!("  {}  {name}", printer.faint(&format!("{:width$}", "skipped"))))?;
    }
    if report.skipped.len() > SKIPPED_SHOWN {
        let more = report.skipped.len() - SKIPPED_SHOWN;
        printer.line(format!("  {:width$}  … and {more} more; --json names all", ""))?;
    }
    for (field, why) in &inspection.inferred {
        printer.line(format!("  {}  {field}: {why}", printer.faint(&format!("{:width$}", "inferred"))))?;
    }
    for note in &report.notes {
        printer.say(format!("note: {note}"));
    }
    Ok(())
}
