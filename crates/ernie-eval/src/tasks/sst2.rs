//! SST-2: is a sentence of a film review positive or negative?
//!
//! The prompt is that of lm-evaluation-harness: the sentence, a question, `Answer:`; the two answers are scored after one
//! space and the likelier one counts. With shots, worked examples stand in front, parted by blank lines, drawn anew for
//! each question from the training file. The draw is keyed by seed and question, so it is the same for every model and
//! under every limit; it is not the harness's own draw, whose generator is Python's.

use std::path::{Path, PathBuf};

use ernie_data::source::{Documents, Format, Source, SourceConfig};
use ernie_serve::engine::uniform;

use super::{EvalOptions, Task};
use crate::{Error, EvalReport, Examples, Linear, Result, Subject, metrics};

/// The answers, by label.
const CHOICES: [&str; 2] = ["negative", "positive"];

/// Where the few-shot examples are looked for beside the data.
const TRAIN_FILES: [&str; 2] = ["train.tsv", "train.tsv.gz"];

const DATA: &str = "TSV with a header: `sentence`, a tab, `label` (0 negative, 1 positive), plain or gzip; a folder is \
                    taken to hold dev.tsv, and train.tsv (or train.tsv.gz) for --shots. It is GLUE's SST-2, had from \
                    https://dl.fbaipublicfiles.com/glue/data/SST-2.zip";

/// `sst2`: see the module.
#[derive(Debug, Clone, Copy)]
pub struct Sst2;

impl Task for Sst2 {
    fn name(&self) -> &'static str {
        "sst2"
    }

    fn about(&self) -> &'static str {
        "sentiment of film-review sentences (GLUE SST-2): accuracy with --shots K examples"
    }

    fn data(&self) -> &'static str {
        DATA
    }

    fn run(
        &self,
        subject: &mut Subject<'_>,
        options: &EvalOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EvalReport> {
        let path = options.data.as_ref().ok_or(Error::NeedsData {
            task: "sst2",
            had: "pass GLUE's SST-2 as --data FOLDER or --data dev.tsv \
                  (https://dl.fbaipublicfiles.com/glue/data/SST-2.zip)",
        })?;
        let data = if path.is_dir() { path.join("dev.tsv") } else { path.clone() };
        let examples = options.limit(read_examples(&data)?)?;
        let (train_path, train) = match options.shots {
            0 => (None, Vec::new()),
            _ => {
                let path = train_file(options, &data)?;
                let train = read_examples(&path)?;
                (Some(path), train)
            }
        };
        if train.len() < options.shots {
            return Err(Error::Setting {
                name: "shots",
                value: options.shots.to_string(),
                expected: format!("at most {}, the examples of the training file", train.len()),
            });
        }

        let mut pairs = Vec::with_capacity(2 * examples.len());
        for (index, example) in examples.iter().enumerate() {
            let context = context(example, &train, &draw(train.len(), options.shots, options.seed, index));
            pairs.extend(CHOICES.map(|choice| (context.clone(), format!(" {choice}"))));
        }
        let total = pairs.len();
        let scores = subject.score(&pairs, &mut |done| progress(done, total))?;
        let hits: Vec<f64> = scores
            .chunks_exact(2)
            .zip(&examples)
            .map(|(pair, example)| {
                // The first of equals, as the harness's argmax.
                let said = usize::from(pair[1].logprob > pair[0].logprob);
                f64::from(u8::from(said == example.label))
            })
            .collect();
        let mut lines = Examples::new(&[Linear::mean("acc")]);
        examples.iter().zip(&hits).for_each(|(example, &hit)| lines.push(&example.sentence, [("acc", hit.into())]));
        let positive = examples.iter().map(|example| example.label).sum::<usize>() as f64;
        let majority = positive.max(examples.len() as f64 - positive) / examples.len() as f64;
        let report = EvalReport::new(self.name(), examples.len())
            .metric("acc", metrics::mean(&hits))
            .examples(lines)
            .setting("data", data.display().to_string())
            .setting("shots", options.shots)
            .setting("majority_share", majority);
        Ok(match train_path {
            Some(path) => report.setting("train", path.display().to_string()).setting("seed", options.seed),
            None => report,
        })
    }
}

/// A sentence and what it is: 0 negative, 1 positive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Example {
    sentence: String,
    label: usize,
}

fn train_file(options: &EvalOptions, data: &Path) -> Result<PathBuf> {
    if let Some(path) = &options.train {
        return Ok(path.clone());
    }
    let folder = data.parent().unwrap_or(Path::new("."));
    TRAIN_FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| Error::Data {
        at: folder.display().to_string(),
        what: "no train.tsv or train.tsv.gz beside the data (expected one, to draw few-shot examples from)".into(),
    })
}

fn read_examples(path: &Path) -> Result<Vec<Example>> {
    let at = path.display().to_string();
    let config = SourceConfig {
        format: Format::Text,
        documents: Documents::Line,
        max_record_bytes: 1 << 20,
        ..SourceConfig::new(&[at.as_str()])
    };
    let mut source = Source::open(&config, Path::new("."))?;
    let mut examples = Vec::new();
    let mut line = 0;
    while let Some(piece) = source.next()? {
        line += 1;
        let row = piece.text.trim_end_matches(['\r', '\n']);
        if line == 1 {
            if row != "sentence\tlabel" {
                return Err(Error::Data { at, what: "line 1: expected the header `sentence`, a tab, `label`".into() });
            }
            continue;
        }
        let example = row.rsplit_once('\t').and_then(|(sentence, label)| {
            let label = match label {
                "0" => 0,
                "1" => 1,
                _ => return None,
            };
            (!sentence.trim().is_empty()).then(|| Example { sentence: sentence.to_string(), label })
        });
        examples.push(example.ok_or_else(|| Error::Data {
            at: at.clone(),
            what: format!("line {line}: expected a sentence, a tab and 0 or 1"),
        })?);
    }
    if examples.is_empty() {
        return Err(Error::Data { at, what: "no examples in it (expected at least one after the header)".into() });
    }
    Ok(examples)
}

fn question(example: &Example) -> String {
    format!("{}\nQuestion: Is this sentence positive or negative?\nAnswer:", example.sentence)
}

fn context(example: &Example, train: &[Example], shots: &[usize]) -> String {
    let mut text = String::new();
    for shot in shots.iter().filter_map(|&at| train.get(at)) {
        text += &format!("{} {}\n\n", question(shot), CHOICES[shot.label]);
    }
    text + &question(example)
}

/// `shots` different numbers below `of`, keyed by seed and question.
fn draw(of: usize, shots: usize, seed: u64, question: usize) -> Vec<usize> {
    let mut drawn: Vec<usize> = Vec::with_capacity(shots);
    let mut position = (question as u64) << 32;
    while drawn.len() < shots.min(of) {
        let at = (uniform(seed, position) * of as f64) as usize;
        position += 1;
        if !drawn.contains(&at) {
            drawn.push(at);
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(sentence: &str, label: usize) -> Example {
        Example { sentence: sentence.into(), label }
    }

    #[test]
    fn the_prompt_is_the_harness_one() {
        let train = [example("dull . ", 0), example("a gem .", 1)];
        assert_eq!(
            context(&example("it works . ", 1), &train, &[1, 0]),
            "a gem .\nQuestion: Is this sentence positive or negative?\nAnswer: positive\n\n\
             dull . \nQuestion: Is this sentence positive or negative?\nAnswer: negative\n\n\
             it works . \nQuestion: Is this sentence positive or negative?\nAnswer:"
        );
    }

    #[test]
    fn draws_are_different_and_repeatable() {
        for question in 0..200 {
            let mut drawn = draw(7, 5, 1234, question);
            assert_eq!(drawn, draw(7, 5, 1234, question));
            drawn.sort_unstable();
            drawn.dedup();
            assert!(drawn.len() == 5 && drawn.iter().all(|&at| at < 7));
        }
        assert_ne!(draw(1000, 5, 1234, 0), draw(1000, 5, 1234, 1));
        assert_eq!(draw(3, 3, 1234, 0).len(), 3);
    }

    #[test]
    fn files_are_read_or_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("dev.tsv");
            std::fs::write(&path, text).unwrap();
            read_examples(&path)
        };
        assert_eq!(
            read("sentence\tlabel\none long string of cliches . \t0\r\n\nfine\t1\n").unwrap(),
            [example("one long string of cliches . ", 0), example("fine", 1)]
        );
        for (text, words) in [
            ("", "no examples"),
            ("sentence\tlabel\n", "no examples"),
            ("fine\t1\n", "line 1: expected the header"),
            ("sentence\tlabel\nfine\t2\n", "line 2"),
            ("sentence\tlabel\nfine 1\n", "line 2"),
            ("sentence\tlabel\n\t1\n", "line 2"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(words), "{text:?}: {error}");
        }
        assert!(read_examples(&folder.path().join("none.tsv")).unwrap_err().is_input());
    }
}
