//! `quantize`: a checkpoint in, the same model with smaller weights out.

use crate::{
    cli::options::Json,
    exit::Exit,
    failure::{Failure, Result},
    model::{Model, Place},
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use ernie_files::atomic::Folder;
use ernie_model::weights::quantize_into;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Write a model with 8-bit weights
///
/// Round to nearest, symmetric, one scale a row, embedding and head included; norms, routers and biases stay f32. DIR is
/// a checkpoint in the published layout with the tokenizer beside it, and appears whole or not at all. One tensor at a
/// time is in memory.
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
    /// Not built yet
    #[value(hide = true)]
    Int4,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    if let Form::Int4 = args.to {
        return Err(Failure::not_built("`--to int4` (a checkpoint with 4-bit weights)").hint("int8 is built"));
    }
    let model = Model::find(&args.model)?;
    let folder = Folder::begin(&args.out).map_err(|error| {
        let failure = Failure::from(error);
        if args.out.exists() { failure.hint("--out takes a folder that does not exist or is empty") } else { failure }
    })?;
    let mut progress = Progress::new(*printer, "quantising", None, Unit::Items);
    let (config, report) = quantize_into(&model.source(args.seed), folder.path(), &mut |done, of| {
        if done == 1 {
            progress.set_total(of as u64);
        }
        progress.at(done as u64, "");
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
            "to": "int8",
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

/// Files that belong to a model and not to its weights, by the beginning of their names.
const BESIDE: &[&str] = &[
    "tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.",
    "merges.txt",
    "chat_template",
    "generation_config.json",
    "preprocessor_config.json",
    "LICENSE",
    "NOTICE",
];

/// Puts the tokenizer and what else belongs to the model into its new folder.
pub(super) fn beside(model: &Model, to: &Path) -> Result<()> {
    let from = match &model.place {
        Place::Folder(folder) => folder,
        Place::Gguf(_) => {
            if let Some(tokenizer) = model.tokenizer()? {
                tokenizer.save(to)?;
            }
            return Ok(());
        }
        Place::Preset(_) => return Ok(()),
    };
    for entry in fs::read_dir(from).map_err(|e| Failure::io(from.display(), &e))? {
        let path = entry.map_err(|e| Failure::io(from.display(), &e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A pulled model is a folder of links, so links are followed.
        if path.is_file() && BESIDE.iter().any(|beginning| name.starts_with(beginning)) {
            fs::copy(&path, to.join(name)).map_err(|e| Failure::io(path.display(), &e))?;
        }
    }
    Ok(())
}

/// Bytes of the weight files in a folder.
pub(super) fn weight_files(folder: &Path) -> Result<u64> {
    let io = |e: std::io::Error| Failure::io(folder.display(), &e);
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            bytes += entry.metadata().map_err(io)?.len();
        }
    }
    Ok(bytes)
}
