//! `merge`: a model and an adapter in, one checkpoint out.

use super::checkpoint::{as_stored, beside, new_folder, weight_files};
use crate::{
    cli::options::Json,
    exit::Exit,
    failure::Result,
    model::Model,
    printer::{self, Printer},
};
use ernie_model::weights::read_adapter;
use ernie_nn::Width;
use serde_json::json;
use std::path::PathBuf;

/// Write a model with an adapter's change in its weights
///
/// ADAPTER is a folder of `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes it and as a run with `[adapter]` leaves it in
/// `checkpoint-N/adapter`. DIR is a checkpoint in the published layout that every command and other programs load, in bf16 where the model is stored in 16
/// bits, else in f32; it appears whole or not at all.
#[derive(Debug, clap::Args)]
#[command(
    before_help = "Example:\n  ernie merge HuggingFaceTB/SmolLM2-135M --adapter runs/lora/checkpoint-500/adapter --out merged"
)]
pub(crate) struct Args {
    /// The model that the adapter was trained on
    model: String,
    /// The adapter's folder
    #[arg(long, value_name = "ADAPTER")]
    adapter: PathBuf,
    /// The new checkpoint's folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find(&args.model)?;
    let folder = new_folder(&args.out)?;
    let loaded = ernie_model::load_trainable(&model.source(0), Width::F32)?;
    let mut decoder = loaded.decoder;
    let adaptation = read_adapter(&args.adapter, &mut decoder)?;
    let adapted = decoder.adapters().len();

    let save_as = as_stored(&model, decoder.config());
    decoder.save_into(folder.path(), &loaded.report.kept, save_as)?;
    beside(&model, folder.path())?;
    let bytes = weight_files(folder.path())?;
    folder.commit()?;

    if args.json.json {
        printer.json(&json!({
            "out": args.out.display().to_string(),
            "adapted": adapted,
            "rank": adaptation.rank,
            "scale": adaptation.scale(),
            "bytes": bytes,
        }))?;
    } else {
        printer.line(format!(
            "{}: {adapted} linears changed by rank {} times {}, {}",
            args.out.display(),
            adaptation.rank,
            adaptation.scale(),
            printer::bytes(bytes)
        ))?;
    }
    Ok(Exit::Done)
}
