//! `quantize`: a checkpoint in, the same model with smaller weights out.

use super::checkpoint::{beside, new_folder, weight_files};
use crate::{
    cli::options::Json,
    exit::Exit,
    failure::Result,
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_model::weights::{SaveAs, quantize_into};
use serde_json::json;
use std::path::PathBuf;

/// Write a model with 8-bit or 4-bit weights
///
/// Round to nearest. int8: symmetric, one scale a row, embedding and head included. int4: symmetric, a scale every 32 weights, embedding and head in 8 bits; small models may lose much by it. Norms, routers and biases stay f32. DIR is a checkpoint in the published layout with the tokenizer beside it, and appears whole or not at all; its
/// `quantization_config` is spelled as compressed-tensors does. One tensor at a time is in memory.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie quantize runs/quickstart --to int8 --out runs/quickstart-int8")]
pub(crate) struct Args {
    /// The model
    model: String,
    /// The weights' new form
    #[arg(long, value_name = "FORM")]
    to: Form,
    /// The new checkpoint's folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seeds the weights of a preset
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Form {
    /// 8 bits, a scale a row
    Int8,
    /// 4 bits, a scale every 32 weights
    Int4,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Form::Int8 => "int8",
            Form::Int4 => "int4",
        }
    }

    fn save_as(self) -> SaveAs {
        match self {
            Form::Int8 => SaveAs::Int8,
            Form::Int4 => SaveAs::Int4,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find(&args.model)?;
    let folder = new_folder(&args.out)?;
    let mut progress = Progress::new(*printer, "quantising", None, Unit::Items);
    let (config, report) =
        quantize_into(&model.source(args.seed), args.to.save_as(), folder.path(), &mut |done, of| {
            progress.at_of(done, of);
        })?;
    progress.finish("");
    for note in &report.notes {
        printer.say(format!("note: {note}"));
    }
    beside(&model, folder.path())?;
    let bytes = weight_files(folder.path())?;
    folder.commit()?;

    let params = config.parameters().total;
    let share = bytes as f64 / (4 * params) as f64;
    if args.json.json {
        printer.json(&json!({
            "out": args.out.display().to_string(),
            "to": args.to.name(),
            "params_total": params,
            "bytes": bytes,
            "share_of_f32": (share * 1e5).round() / 1e5,
            "tensors": { "used": report.used, "kept": report.kept.len() },
        }))?;
    } else {
        printer.line(format!(
            "{}: {} parameters in {}, {:.1} % of f32",
            args.out.display(),
            printer::count(params),
            printer::bytes(bytes),
            100.0 * share
        ))?;
    }
    Ok(Exit::Done)
}
