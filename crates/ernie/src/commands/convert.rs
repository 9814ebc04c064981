//! `convert`: a checkpoint in, the same model in another format out.

use super::checkpoint::{as_stored, beside, new_folder, weight_files};
use crate::{
    cli::options::Json,
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use clap::ValueEnum;
use ernie_model::WeightsAs;
use ernie_model::weights::{GgufAs, Weights, write_gguf};
use ernie_nn::Width;
use serde_json::json;
use std::path::PathBuf;

/// Write a model in another format
///
/// `--to gguf` makes one file that llama.cpp and its kin load, tokenizer and chat template included: `--type` says in what its matrices are stored.
/// `--to hf` makes a folder in the published layout, say from a .gguf file: floats, in bf16 where the model is stored in 16 bits, else in f32. What is
/// written appears whole or not at all.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie convert runs/quickstart --to gguf --out nano.gguf --type q8_0")]
pub(crate) struct Args {
    /// The model
    model: String,
    /// The format
    #[arg(long, value_name = "FORMAT")]
    to: To,
    /// The file (gguf) or folder (hf)
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// In what a GGUF file stores matrices [default: bf16]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    /// One file for llama.cpp
    Gguf,
    /// A folder in the published layout
    Hf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// 32-bit floats
    F32,
    /// Brain floats
    Bf16,
    /// 8 bits, a scale every 32
    #[value(name = "q8_0")]
    Q8,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find(&args.model)?;
    let (parameters, bytes) = match args.to {
        To::Gguf => gguf(args, &model, printer)?,
        To::Hf => folder(args, &model, printer)?,
    };
    if args.json.json {
        let out = args.out.display().to_string();
        printer.json(&json!({ "out": out, "params_total": parameters, "bytes": bytes }))?;
    } else {
        let (parameters, bytes) = (printer::count(parameters), printer::bytes(bytes));
        printer.line(format!("{}: {parameters} parameters in {bytes}", args.out.display()))?;
    }
    Ok(Exit::Done)
}

fn gguf(args: &Args, model: &Model, printer: &Printer) -> Result<(u64, u64)> {
    if args.out.exists() {
        return Err(Failure::input(format!("{}: is there already", args.out.display())).hint("--out takes a new file"));
    }
    let to = match args.kind {
        Some(Kind::F32) => GgufAs::F32,
        Some(Kind::Bf16) | None => GgufAs::Bf16,
        Some(Kind::Q8) => GgufAs::Q8,
    };
    let source = model.source(0);
    let rows = Weights::open(&source, WeightsAs::Native)?.config().vocab_size;
    let tokenizer = match model.tokenizer()? {
        Some(tokenizer) => tokenizer.to_gguf(rows)?,
        None => {
            printer.say("note: the model has no tokenizer, and neither has the file: other programs may refuse it");
            Default::default()
        }
    };
    let mut progress = Progress::new(*printer, "writing", None, Unit::Items);
    let (config, report) = write_gguf(&source, &args.out, to, tokenizer, &mut |done, of| {
        progress.at_of(done, of);
    })?;
    progress.finish("");
    for note in report.notes {
        printer.say(format!("note: {note}"));
    }
    if !report.kept.is_empty() {
        printer.say(format!(
            "note: {} tensors of multi-token prediction have no place in GGUF and are left out",
            report.kept.len()
        ));
    }
    let bytes = std::fs::metadata(&args.out).map_err(|error| Failure::io(args.out.display(), &error))?.len();
    Ok((config.parameters().total, bytes))
}

fn folder(args: &Args, model: &Model, printer: &Printer) -> Result<(u64, u64)> {
    if args.kind.is_some() {
        return Err(Failure::input(
            "--type is of --to gguf; a folder is in bf16 where the model is stored in 16 bits, else in f32",
        ));
    }
    let folder = new_folder(&args.out)?;
    let loaded = ernie_model::load_trainable(&model.source(0), Width::F32)?;
    for note in &loaded.report.notes {
        printer.say(format!("note: {note}"));
    }
    let save_as = as_stored(model, loaded.decoder.config());
    loaded.decoder.save_into(folder.path(), &loaded.report.kept, save_as)?;
    beside(model, folder.path())?;
    let bytes = weight_files(folder.path())?;
    folder.commit()?;
    Ok((loaded.decoder.config().parameters().total, bytes))
}
