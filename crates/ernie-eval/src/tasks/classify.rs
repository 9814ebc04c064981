//! Classification: how often the head for labels finds the label of a text.
//!
//! `acc` is the share of texts that are given their own label. `macro_f1` is the mean over labels of the harmonic mean of precision and recall, so that a rare label
//! weighs as much as a frequent one; beside it stands the F1 of each of the first [`MOST_SHOWN`] labels.

use std::path::Path;

use ernie_data::labelled::{self, LabelledText, Tally};
use ernie_data::source::{Source, SourceConfig};
use ernie_model::decoder::likeliest;

use super::{EvalOptions, Task};
use crate::{Error, EvalReport, Examples, Linear, Result, Subject, metrics};

/// Labels whose own F1 is reported.
const MOST_SHOWN: usize = 32;

/// `classify`: see the module.
#[derive(Debug, Clone, Copy)]
pub struct Classify;

impl Task for Classify {
    fn name(&self) -> &'static str {
        "classify"
    }

    fn about(&self) -> &'static str {
        "how often a model with a head for labels gives a text its own: accuracy, and F1 over labels"
    }

    fn data(&self) -> &'static str {
        "JSONL with `text`, `label` (a name, or a number: a label's place in the model's list) and, if need be, `text_pair`, plain, gzip or zstd"
    }

    fn run(
        &self,
        subject: &mut Subject<'_>,
        options: &EvalOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EvalReport> {
        let data = options.data.as_ref().ok_or(Error::NeedsData {
            task: "classify",
            had: "pass texts with labels as --data FILE.jsonl, lines of {\"text\": …, \"label\": …}",
        })?;
        if options.shots > 0 {
            return Err(Error::Setting {
                name: "shots",
                value: options.shots.to_string(),
                expected: "0: each text is classified by itself".into(),
            });
        }
        let labels = subject.classifier()?.labels().to_vec();
        let Texts { lines, ids, truths, cut } = texts(subject, data, &labels)?;
        let (ids, truths) = (options.limit(ids)?, options.limit(truths)?);
        let n = ids.len();
        let logits = subject.classify_ids(ids, &mut |done| progress(done, n))?;
        let guesses: Vec<usize> = logits.iter().map(|logits| likeliest(logits)).collect();
        let mut tally = Tally::default();
        truths.iter().zip(&guesses).for_each(|(&truth, &guess)| tally.add(truth, guess));
        let right: Vec<f64> = truths.iter().zip(&guesses).map(|(truth, guess)| f64::from(truth == guess)).collect();
        let mut examples = Examples::new(&[Linear::mean("acc")]);
        for ((line, &right), (&truth, &guess)) in lines.iter().zip(&right).zip(truths.iter().zip(&guesses)) {
            let names = [("label", labels[truth].clone().into()), ("guess", labels[guess].clone().into())];
            examples.push(line, names.into_iter().chain([("acc", right.into())]));
        }
        let mut report = EvalReport::new(self.name(), n)
            .examples(examples)
            .metric("acc", metrics::mean(&right))
            .metric("macro_f1", metrics::macro_f1(&tally));
        let of_labels = tally.labels();
        for (&id, of) in of_labels.iter().filter(|(_, of)| of.texts > 0).take(MOST_SHOWN) {
            report = report.metric(&format!("f1_{}", labels[id]), metrics::Metric { value: of.f1(), stderr: None });
        }
        let counts = of_labels.iter().map(|(&id, of)| (labels[id].clone(), of.texts.into()));
        Ok(report
            .setting("data", data.display().to_string())
            .setting("texts_of_label", counts.collect::<serde_json::Map<_, _>>())
            .setting("longer_than_the_context", cut))
    }
}

/// What a file holds.
struct Texts {
    lines: Vec<String>,
    ids: Vec<Vec<u32>>,
    truths: Vec<usize>,
    /// Texts that are longer than the model's context and lost their end.
    cut: usize,
}

fn texts(subject: &Subject<'_>, path: &Path, labels: &[String]) -> Result<Texts> {
    let at = path.display().to_string();
    let mut source = Source::open(&labelled::lines(&SourceConfig::new(&[at.as_str()])), Path::new("."))?;
    let (tokenizer, most) = (subject.tokenizer, subject.engine.context_length());
    let mut texts = Texts { lines: Vec::new(), ids: Vec::new(), truths: Vec::new(), cut: 0 };
    while let Some(piece) = source.next()? {
        let fault = |what: String| source.fault(&what);
        let text = LabelledText::parse(&piece.text).map_err(fault)?;
        texts.truths.push(text.find(labels).map_err(fault)?);
        let (ids, cut) = labelled::ids(&text.text, tokenizer, most).map_err(|error| fault(error.to_string()))?;
        texts.ids.push(ids);
        texts.lines.push(piece.text);
        texts.cut += usize::from(cut);
    }
    if texts.ids.is_empty() {
        return Err(Error::Data { at, what: "no text with a label in it".into() });
    }
    Ok(texts)
}
