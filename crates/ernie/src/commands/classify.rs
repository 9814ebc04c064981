//! `classify`: which label a text has, by a model with a head for labels.

use crate::{
    cli::options::{Json, WeightsOption},
    commands::{
        eval::TOGETHER,
        generate::engine,
        score::{GROUP, text_of},
    },
    exit::Exit,
    failure::{Failure, Result},
    model::Model,
    printer::Printer,
    progress::{Progress, Unit},
};
use ernie_data::labelled::{self, LabelledText};
use ernie_eval::Subject;
use ernie_model::decoder::likeliest;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Say which label a text has, and how probable each is
///
/// The model has a head for labels, as a run with objective.kind = "classify" leaves it, or is given one by --adapter. Lines `{"text": …}`, with `text_pair` if the
/// model was trained with it, become lines `{"label": …, "probabilities": {…}}`.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie classify runs/sentiment --text 'A quiet, moving film.'")]
pub(crate) struct Args {
    /// The model
    model: String,
    /// The text
    #[arg(long, value_name = "T", allow_hyphen_values = true, required_unless_present = "input")]
    text: Option<String>,
    /// A text that is judged beside it
    #[arg(long, value_name = "T", allow_hyphen_values = true, requires = "text")]
    text_pair: Option<String>,
    /// Lines of texts; - is standard input
    #[arg(long, value_name = "F.jsonl", conflicts_with_all = ["text", "json"])]
    input: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsOption,
    #[command(flatten)]
    json: Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let texts = match (&args.input, &args.text) {
        (Some(input), _) => lines(input)?,
        (None, Some(text)) => {
            let line = json!({ "text": text, "text_pair": args.text_pair }).to_string();
            vec![(
                "--text".to_owned(),
                LabelledText::parse(&line).map_err(|what| Failure::input(format!("--text: {what}")))?,
            )]
        }
        (None, None) => return Err(Failure::input("expected --text or --input")),
    };
    let model = Model::find(&args.model)?;
    let tokenizer = model.tokenizer_for("`classify`")?;
    let loaded = model.load(&args.weights, 0, printer)?;
    let Some(classifier) = loaded.decoder.classifier() else {
        return Err(Failure::input(format!("{}: no head for labels, and `classify` needs one", args.model))
            .hint("a run with objective.kind = \"classify\" gives a model one; `--adapter DIR` puts that of an adapter beside it"));
    };
    let labels = classifier.labels().to_vec();
    let mut engine = engine(loaded.decoder, TOGETHER)?;
    let most = engine.context_length();
    let mut ids = Vec::with_capacity(texts.len());
    for (at, text) in &texts {
        let (text, cut) = labelled::ids(&text.text, &tokenizer, most).map_err(|e| Failure::from(e).context(at))?;
        if cut {
            printer.say(format!("note: {at}: longer than the model's context of {most} tokens, so it lost its end"));
        }
        ids.push(text);
    }

    let mut subject = Subject { engine: &mut engine, tokenizer: &tokenizer, classifier: Some(classifier) };
    let mut progress = Progress::new(*printer, "classifying", Some(ids.len() as u64), Unit::Items);
    let mut done = 0;
    for group in ids.chunks(GROUP) {
        let all = subject.classify_ids(group.to_vec(), &mut |n| progress.at((done + n) as u64, ""))?;
        done += group.len();
        for logits in all {
            let answer = Answer { labels: &labels, best: likeliest(&logits), probabilities: softmax(&logits) };
            match (&args.input, args.json.json) {
                (Some(_), _) => printer.line(answer.json().to_string())?,
                (None, true) => printer.json(&answer.json())?,
                (None, false) => answer.show(printer)?,
            }
        }
    }
    progress.finish("");
    Ok(Exit::Done)
}

/// The texts of a file, each with where it stands.
fn lines(input: &Path) -> Result<Vec<(String, LabelledText)>> {
    let text = text_of(input)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let texts = lines.map(|(number, line)| {
        let at = format!("{}: line {}", input.display(), number + 1);
        let text = LabelledText::parse(line).map_err(|what| Failure::input(format!("{at}: {what}")))?;
        Ok((at, text))
    });
    texts.collect()
}

/// What is said of one text.
struct Answer<'a> {
    labels: &'a [String],
    best: usize,
    probabilities: Vec<f64>,
}

impl Answer<'_> {
    fn json(&self) -> Value {
        let all = self.labels.iter().cloned().zip(self.probabilities.iter().map(|&p| json!(p)));
        json!({ "label": self.labels[self.best], "probabilities": all.collect::<Map<_, _>>() })
    }

    /// The label, then each with its probability, the likeliest first.
    fn show(&self, printer: &Printer) -> Result<()> {
        printer.line(printer.bold(&self.labels[self.best]))?;
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by(|&a, &b| self.probabilities[b].total_cmp(&self.probabilities[a]));
        let width = self.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        for id in order {
            printer.line(format!("  {:width$}  {:.4}", self.labels[id], self.probabilities[id]))?;
        }
        Ok(())
    }
}

/// Probabilities of logits, summed in f64.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}
