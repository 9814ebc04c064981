//! `score`: log-likelihoods of given continuations, line by line.

use crate::{
    cli::options::WeightsOption,
    commands::{eval::TOGETHER, generate::engine, tokenize::standard_input},
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::Printer,
    progress::{Progress, Unit},
};
use ernie_eval::{Pair, Score, Subject};
use serde::Deserialize;
use std::path::{Path, PathBuf};

const MAX_INPUT_BYTES: u64 = 256 << 20;

/// Answers are given in groups of this many lines, so that long inputs show results early.
pub(super) const GROUP: usize = 64;

/// What stands in a file of lines, or for `-` in the standard input.
pub(super) fn text_of(input: &Path) -> Result<String> {
    let bytes = match input == Path::new("-") {
        true => standard_input()?,
        false => ernie_files::read_bounded(input, MAX_INPUT_BYTES)?,
    };
    String::from_utf8(bytes)
        .map_err(|e| Failure::input(format!("{}: not UTF-8 at byte {}", input.display(), e.utf8_error().valid_up_to())))
}

/// Score continuations: how likely the model finds them
///
/// Lines `{"context": …, "continuation": …}` become lines `{"logprob": …, "tokens": …, "greedy": …}`, by the
/// conventions of lm-evaluation-harness; logprob is a natural logarithm.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie score runs/quickstart --input pairs.jsonl > scores.jsonl")]
pub(crate) struct Args {
    /// The model
    model: String,
    /// The lines; - is standard input
    #[arg(long, value_name = "F.jsonl")]
    input: PathBuf,
    /// Seeds the random weights of a preset
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    weights: WeightsOption,
}

/// One line of the input. Other keys may stand beside these two.
#[derive(Deserialize)]
struct Line {
    context: String,
    continuation: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let at =
        |number: usize, why: String| Failure::input(format!("{}: line {}: {why}", args.input.display(), number + 1));
    let text = text_of(&args.input)?;
    let model = Model::find(&args.model)?;
    let tokenizer = model.tokenizer_for("`score`")?;

    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(line)
            .map_err(|e| at(number, format!("{e}; expected {{\"context\": \"…\", \"continuation\": \"…\"}}")))?;
        if line.continuation.is_empty() {
            return Err(at(number, "the continuation is empty".to_owned()));
        }
        lines.push((number, line));
    }

    let loaded = model.load(&args.weights, args.seed, printer)?;
    let mut engine = engine(loaded.decoder, TOGETHER)?;
    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: None };
    let mut pairs: Vec<Pair> = Vec::with_capacity(lines.len());
    for (number, line) in &lines {
        let pair = subject
            .encode_pair(&line.context, &line.continuation)
            .map_err(|e| Failure::from(e).context(format!("{}: line {}", args.input.display(), number + 1)))?;
        pairs.push(pair);
    }
    let mut progress = Progress::new(*printer, "scoring", Some(pairs.len() as u64), Unit::Items);
    let mut done = 0;
    for group in pairs.chunks(GROUP) {
        let tokens = subject.score_ids(group.to_vec(), &mut |n| progress.at((done + n) as u64, ""))?;
        done += group.len();
        for tokens in tokens {
            let line = serde_json::to_string(&Score::of(&tokens))
                .map_err(|e| Failure::defect(format!("writing JSON: {e}")))?;
            printer.line(line)?;
        }
    }
    progress.finish("");
    Ok(Exit::Done)
}
