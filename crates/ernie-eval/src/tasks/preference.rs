//! Preferences: of two answers to a question, does the model find the one that was judged the better the likelier?
//!
//! Conversations are put through the model's own chat template, as in training. `acc` compares the log-probabilities of whole answers, `acc_norm` those a
//! token, so that a longer answer is not the less likely for its length alone; equals count as a half.

use std::path::Path;

use ernie_data::chat::ChatTemplate;
use ernie_data::conversation::Preference;
use ernie_data::packing::Example;
use ernie_data::source::{Format, Source, SourceConfig};

use super::{EvalOptions, Task};
use crate::score::{Pair, Score};
use crate::{Error, EvalReport, Examples, Linear, Result, Subject, metrics};

/// `preference`: see the module.
#[derive(Debug, Clone, Copy)]
pub struct Preferences;

impl Task for Preferences {
    fn name(&self) -> &'static str {
        "preference"
    }

    fn about(&self) -> &'static str {
        "of two answers, how often the one judged the better is the likelier: of whole answers, and a token"
    }

    fn data(&self) -> &'static str {
        "JSONL with `chosen` and `rejected` beside `prompt`, `messages`, `conversations` or `instruction`, or as whole conversations, \
         plain, gzip or zstd; HH-RLHF (https://github.com/anthropics/hh-rlhf) is such data"
    }

    fn run(
        &self,
        subject: &mut Subject<'_>,
        options: &EvalOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EvalReport> {
        let data = options.data.as_ref().ok_or(Error::NeedsData {
            task: "preference",
            had: "pass pairs of answers as --data FILE.jsonl (https://github.com/anthropics/hh-rlhf has some)",
        })?;
        if options.shots > 0 {
            return Err(Error::Setting {
                name: "shots",
                value: options.shots.to_string(),
                expected: "0: the answers are compared as they stand".into(),
            });
        }
        let Read { lines, pairs, long } = read(subject, data)?;
        let pairs = options.limit(pairs)?;
        let n = pairs.len();
        let scores = subject.score_ids(pairs.into_iter().flatten().collect(), &mut |done| progress(done, 2 * n))?;
        let scores: Vec<Score> = scores.iter().map(|tokens| Score::of(tokens)).collect();
        let hits = |of: &dyn Fn(&Score) -> f64| -> Vec<f64> {
            let hit = |pair: &[Score]| match of(&pair[0]).total_cmp(&of(&pair[1])) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            };
            scores.chunks_exact(2).map(hit).collect()
        };
        let acc = hits(&|score| score.logprob);
        let acc_norm = hits(&|score| score.logprob / score.tokens.max(1) as f64);
        let mut examples = Examples::new(&[Linear::mean("acc"), Linear::mean("acc_norm")]);
        for (at, (line, answers)) in lines.iter().zip(scores.chunks_exact(2)).enumerate() {
            let likely = [("chosen", answers[0].logprob.into()), ("rejected", answers[1].logprob.into())];
            examples.push(line, likely.into_iter().chain([("acc", acc[at].into()), ("acc_norm", acc_norm[at].into())]));
        }
        Ok(EvalReport::new(self.name(), n)
            .metric("acc", metrics::mean(&acc))
            .metric("acc_norm", metrics::mean(&acc_norm))
            .examples(examples)
            .setting("data", data.display().to_string())
            .setting("longer_than_the_context", long))
    }
}

/// What a file holds.
struct Read {
    lines: Vec<String>,
    /// The answers of each line, chosen and rejected.
    pairs: Vec<[Pair; 2]>,
    /// Lines that are longer than the model's context and left out.
    long: usize,
}

fn read(subject: &Subject<'_>, path: &Path) -> Result<Read> {
    let at = path.display().to_string();
    let config = SourceConfig { format: Format::Jsonl, whole_lines: true, ..SourceConfig::new(&[at.as_str()]) };
    let mut source = Source::open(&config, Path::new("."))?;
    let (tokenizer, most) = (subject.tokenizer, subject.engine.context_length());
    let template = ChatTemplate::for_tokenizer(tokenizer)?;
    let mut all = Read { lines: Vec::new(), pairs: Vec::new(), long: 0 };
    while let Some(piece) = source.next()? {
        let read = Preference::parse(&piece.text)
            .and_then(|preference| preference.examples(&template, tokenizer, most).map_err(|error| error.to_string()));
        let group = read.map_err(|what| source.fault(&what))?;
        match <[Example; 2]>::try_from(group) {
            Ok(answers) if answers.iter().all(|answer| answer.ids.len() <= most) => {
                all.pairs.push(answers.map(split));
                all.lines.push(piece.text);
            }
            _ => all.long += 1,
        }
    }
    if all.pairs.is_empty() {
        return Err(Error::Data { at, what: "no pair of answers that fits the model's context".into() });
    }
    Ok(all)
}

/// What was asked, and the answer.
fn split(example: Example) -> Pair {
    let start = example.trained.iter().position(|&trained| trained).unwrap_or(0).max(1);
    let (context, continuation) = example.ids.split_at(start);
    Pair { context: context.to_vec(), continuation: continuation.to_vec() }
}
