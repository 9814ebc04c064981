//! `logits`: raw logits of given token ids, for comparison with other implementations.

use crate::{
    cli::options::{Json, WeightsOption, parse_ids},
    commands::generate::engine,
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::Printer,
};
use ernie_files::{Dtype, TensorInfo, safetensors::Writer};
use ernie_serve::engine::{Engine, Event, FinishReason, Request};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const MAX_IDS_BYTES: u64 = 256 << 20;

/// Write the logits of token ids to a safetensors file
///
/// Tensors `logits.0`, `logits.1`, … are float32 [tokens, vocab], one per sequence. No tokenizer is needed.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie logits runs/quickstart --ids 5,6,7 --out logits.safetensors")]
pub(crate) struct Args {
    /// The model
    model: String,
    /// One sequence of token ids
    #[arg(long, value_name = "5,6,7", value_parser = parse_ids, required_unless_present = "ids_file", conflicts_with = "ids_file")]
    ids: Option<std::vec::Vec<u32>>,
    /// A JSON list of lists of token ids
    #[arg(long, value_name = "F")]
    ids_file: Option<PathBuf>,
    /// The file to write
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
    /// Seeds the random weights of a preset
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let sequences = match (&args.ids, &args.ids_file) {
        (Some(ids), _) => vec![ids.clone()],
        (None, Some(file)) => read_sequences(file)?,
        (None, None) => return Err(Failure::input("expected --ids or --ids-file")),
    };
    let model = Model::find(&args.model)?;
    let loaded = model.load(&args.weights, args.seed, printer)?;
    let mut engine = engine(loaded.decoder, 1)?;
    let vocab = engine.vocab_size();

    let infos: Vec<TensorInfo> = sequences
        .iter()
        .enumerate()
        .map(|(i, ids)| TensorInfo { name: format!("logits.{i}"), dtype: Dtype::F32, shape: vec![ids.len(), vocab] })
        .collect();
    // Everything is checked before the first byte is written.
    check(&engine, &sequences)?;
    let unfinished = args.out.with_extension("safetensors.part");
    let written = write(&mut engine, &sequences, &infos, &unfinished)
        .and_then(|()| std::fs::rename(&unfinished, &args.out).map_err(|e| Failure::io(args.out.display(), &e)));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written?;
    let shapes: BTreeMap<&str, &[usize]> = infos.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    if args.json.json {
        printer.json(&json!({ "out": args.out.display().to_string(), "tensors": shapes }))?;
    } else {
        printer.say(format!("wrote {} of {} sequences", args.out.display(), sequences.len()));
    }
    Ok(Exit::Done)
}

fn check(engine: &Engine, sequences: &[Vec<u32>]) -> Result<()> {
    for (i, ids) in sequences.iter().enumerate() {
        let at = |what: String| Failure::input(format!("sequence {i}: {what}"));
        if ids.is_empty() {
            return Err(at("empty, expected at least one token id".to_owned()));
        }
        if ids.len() > engine.context_length() {
            return Err(at(format!("{} tokens, the context holds {}", ids.len(), engine.context_length())));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= engine.vocab_size()) {
            return Err(at(format!(
                "token id {id} is outside the vocabulary, expected 0 to {}",
                engine.vocab_size() - 1
            )));
        }
    }
    Ok(())
}

fn write(engine: &mut Engine, sequences: &[Vec<u32>], infos: &[TensorInfo], path: &Path) -> Result<()> {
    let mut file = Writer::create(path, infos, &BTreeMap::new())?;
    for ids in sequences {
        engine.submit(Request::logits(ids.clone()))?;
        while !engine.is_idle() {
            for event in engine.step()? {
                match event {
                    Event::Logits { rows, .. } => {
                        let mut bytes = Vec::with_capacity(rows.len() * 4);
                        rows.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
                        file.write(&bytes)?;
                    }
                    Event::Finished { reason: FinishReason::Error(why), .. } => {
                        return Err(Failure::input(why));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(file.finish()?)
}

fn read_sequences(file: &Path) -> Result<Vec<Vec<u32>>> {
    let text = ernie_files::read_text(file, MAX_IDS_BYTES)?;
    let sequences: Vec<Vec<u32>> = serde_json::from_str(&text).map_err(|e| {
        Failure::input(format!(
            "{}: {e}; expected a JSON list of lists of token ids, such as [[5,6,7],[8]]",
            file.display()
        ))
    })?;
    if sequences.is_empty() {
        return Err(Failure::input(format!("{}: no sequence in it", file.display())));
    }
    Ok(sequences)
}
