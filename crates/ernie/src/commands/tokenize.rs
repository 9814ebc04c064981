//! `tokenize encode|decode|train`: text to ids, ids to text, and a new byte-level BPE.

use crate::{
    cli::options::{Json, parse_ids},
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use clap::Subcommand;
use ernie_data::{
    source::{Source, SourceConfig},
    tokenizer::{Tokenizer, TrainOptions, text_from_bytes, train_bpe},
};
use serde_json::json;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// The most text read from a pipe or a file to encode, the most ids to decode.
const MAX_INPUT_BYTES: u64 = 256 << 20;

/// Which way.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Text to ids
    ///
    /// Text comes from --text, from --file, or from standard input; broken UTF-8 becomes U+FFFD.
    /// Control tokens written out in the text stay plain text unless --special is given.
    #[command(before_help = "Example:\n  ernie tokenize encode runs/quickstart --text 'The quick brown fox'")]
    Encode(EncodeArgs),
    /// Ids to text
    #[command(before_help = "Example:\n  ernie tokenize decode runs/quickstart --ids 312,87,1402")]
    Decode(DecodeArgs),
    /// Train a byte-level BPE tokenizer on files
    #[command(before_help = "Example:\n  ernie tokenize train 'books/*.txt' --vocab 4096 --out my-tokenizer")]
    Train(TrainArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct EncodeArgs {
    /// Whose tokenizer
    model: String,
    /// The text
    #[arg(long, value_name = "T", conflicts_with = "file", allow_hyphen_values = true)]
    text: Option<String>,
    /// A file with the text
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Recognise control tokens that are written out
    #[arg(long)]
    special: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DecodeArgs {
    /// Whose tokenizer
    model: String,
    /// The ids; without this they come from standard input
    #[arg(long, value_name = "5,6,7", value_parser = parse_ids)]
    ids: Option<std::vec::Vec<u32>>,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Text, JSONL or Parquet files, plain, gzip or zstd; globs work
    #[arg(required = true, value_name = "FILES")]
    files: Vec<String>,
    /// How many tokens it shall have
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(258..=1_000_000))]
    vocab: u32,
    /// The folder for tokenizer.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    json: Json,
}

/// Runs one of the three.
pub(crate) fn run(action: &Action, printer: &Printer) -> Result<Exit> {
    match action {
        Action::Encode(args) => encode(args, printer),
        Action::Decode(args) => decode(args, printer),
        Action::Train(args) => train(args, printer),
    }
}

fn encode(args: &EncodeArgs, printer: &Printer) -> Result<Exit> {
    let tokenizer = tokenizer(&args.model)?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => lossy(&ernie_files::read_bounded(file, MAX_INPUT_BYTES)?),
        (None, None) => lossy(&standard_input()?),
    };
    let ids = if args.special { tokenizer.encode_with_special(&text)? } else { tokenizer.encode(&text)? };
    if args.json.json {
        let tokens: Vec<String> = ids.iter().map(|&id| piece(&tokenizer, id)).collect();
        printer.json(&json!({ "ids": ids, "tokens": tokens, "count": ids.len() }))?;
    } else {
        printer.line(join(&ids))?;
    }
    Ok(Exit::Done)
}

fn decode(args: &DecodeArgs, printer: &Printer) -> Result<Exit> {
    let tokenizer = tokenizer(&args.model)?;
    let ids = match &args.ids {
        Some(ids) => ids.clone(),
        None => parse_ids(&lossy(&standard_input()?)).map_err(|e| Failure::input(format!("standard input: {e}")))?,
    };
    let size = tokenizer.vocab_size();
    if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
        return Err(Failure::input(format!(
            "token id {id} is outside the vocabulary, expected 0 to {}",
            size.saturating_sub(1)
        )));
    }
    let text = tokenizer.decode(&ids);
    if args.json.json {
        printer.json(&json!({ "text": text, "count": ids.len() }))?;
    } else {
        printer.line(text)?;
    }
    Ok(Exit::Done)
}

fn train(args: &TrainArgs, printer: &Printer) -> Result<Exit> {
    if args.out.join("tokenizer.json").exists() {
        return Err(Failure::input(format!("{}: has a tokenizer.json already", args.out.display()))
            .hint("choose another folder with --out DIR"));
    }
    let config = SourceConfig { paths: args.files.clone(), ..SourceConfig::default() };
    let current = std::env::current_dir().map_err(|e| Failure::io("finding the current folder", &e))?;
    let mut source = Source::open(&config, &current)?;
    let mut progress = Progress::new(*printer, "reading", None, Unit::Bytes);
    let (mut bytes, mut trouble) = (0, None);
    let pieces = std::iter::from_fn(|| match source.next() {
        Ok(piece) => {
            let text = piece?.text;
            bytes += text.len() as u64;
            progress.at(bytes, "");
            Some(text)
        }
        Err(error) => {
            trouble = Some(error);
            None
        }
    });
    let tokenizer = train_bpe(pieces, &TrainOptions::ernie(args.vocab as usize));
    if let Some(error) = trouble {
        return Err(error.into());
    }
    let tokenizer = tokenizer?;
    std::fs::create_dir_all(&args.out).map_err(|e| Failure::io(args.out.display(), &e))?;
    tokenizer.save(&args.out)?;
    let size = tokenizer.vocab_size();
    progress.finish(&format!(
        "{}: {} tokens from {} of text",
        args.out.display(),
        printer::exact(size as u64),
        printer::bytes(bytes)
    ));
    for note in source.notes() {
        printer.say(format!("note: {note}"));
    }
    if args.json.json {
        printer.json(&json!({ "out": args.out.display().to_string(), "vocab_size": size, "text_bytes": bytes }))?;
    }
    Ok(Exit::Done)
}

/// The tokenizer of a MODEL; a bare tokenizer folder will do.
fn tokenizer(name: &str) -> Result<Tokenizer> {
    let folder = Path::new(name);
    if folder.is_dir() && !folder.join("config.json").exists() && folder.join("tokenizer.json").exists() {
        return Ok(Tokenizer::from_folder(folder)?);
    }
    Model::find(name)?.tokenizer_for("`tokenize`")
}

/// One token as people see it; part of a character shows as U+FFFD.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id])
}

fn join(ids: &[u32]) -> String {
    let parts: Vec<String> = ids.iter().map(u32::to_string).collect();
    parts.join(",")
}

fn lossy(bytes: &[u8]) -> String {
    text_from_bytes(bytes).into_owned()
}

/// All of standard input, up to a cap.
pub(crate) fn standard_input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_INPUT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::io("reading standard input", &e))?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(Failure::input(format!("standard input is longer than {}", printer::bytes(MAX_INPUT_BYTES))));
    }
    Ok(bytes)
}
