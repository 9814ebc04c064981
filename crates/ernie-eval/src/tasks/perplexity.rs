//! Perplexity over whole texts, by rolling windows.
//!
//! As in lm-evaluation-harness, each token of a text is scored once. The first window begins after the prefix id; each
//! later one takes at least one token of the text before it as context, and the last, shorter one as much as fits. Models
//! with different tokenizers are compared by `bits_per_byte` only.
//!
//! Standard errors are those of a ratio over documents. A single document is cut into its windows for this, whose share
//! of bytes and words is taken to be their share of tokens; neighbouring windows are not quite independent, so that error
//! is a little too small.

use std::path::Path;

use ernie_data::bundled;
use ernie_data::source::{Source, SourceConfig};

use super::{EvalOptions, Task};
use crate::score::Pair;
use crate::{Error, EvalReport, Examples, Linear, Metric, Result, Subject, metrics};

/// Tokens of a window where the caller and the model's context allow it.
const WINDOW_TOKENS: usize = 2048;

/// `perplexity`: see the module.
#[derive(Debug, Clone, Copy)]
pub struct Perplexity;

impl Task for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn about(&self) -> &'static str {
        "how well the model predicts a text: perplexity of tokens, words and bytes, bits per byte"
    }

    fn data(&self) -> &'static str {
        "text (a file is one document), JSONL with a field `text` or Parquet with a column `text`, plain, gzip or zstd; \
         without data: the bundled held-out text"
    }

    fn run(
        &self,
        subject: &mut Subject<'_>,
        options: &EvalOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EvalReport> {
        if options.shots > 0 {
            return Err(Error::Setting {
                name: "shots",
                value: options.shots.to_string(),
                expected: "0: perplexity has no examples to show".into(),
            });
        }
        let context_length = subject.engine.context_length();
        let window = options.max_length.unwrap_or(WINDOW_TOKENS.min(context_length));
        if window == 0 || window > context_length {
            return Err(Error::Setting {
                name: "max_length",
                value: window.to_string(),
                expected: format!("1 to {context_length}, the model's context"),
            });
        }
        let (name, documents) = match &options.data {
            Some(path) => (path.display().to_string(), read_documents(path)?),
            None => ("bundled:held_out".to_string(), vec![bundled::held_out_text().to_string()]),
        };
        let documents = options.limit(documents)?;
        let prefix = subject.prefix_id()?;

        let mut pairs: Vec<Pair> = Vec::new();
        let mut windows: Vec<usize> = Vec::with_capacity(documents.len());
        for document in &documents {
            let ids = subject.tokenizer.encode(document)?;
            let before = pairs.len();
            pairs.extend(rolling_windows(&ids, prefix, window));
            windows.push(pairs.len() - before);
        }
        let total = pairs.len();
        let scores = subject.score_ids(pairs, &mut |done| progress(done, total))?;
        let units: Vec<Unit> = scores
            .iter()
            .map(|tokens| Unit {
                nats: -tokens.iter().map(|token| token.logprob).sum::<f64>(),
                tokens: tokens.len() as f64,
            })
            .collect();

        let sums = Sums::of(&documents, &windows, &units);
        let report = sums.report(EvalReport::new(self.name(), documents.len()));
        Ok(report
            .examples(sums.examples(&documents))
            .setting("data", name)
            .setting("window_tokens", window)
            .setting("prefix_id", prefix)
            .setting("tokens", sums.tokens() as u64)
            .setting("words", sums.words as u64)
            .setting("bytes", sums.bytes as u64))
    }
}

fn read_documents(path: &Path) -> Result<Vec<String>> {
    let at = path.display().to_string();
    let mut source = Source::open(&SourceConfig::new(&[at.as_str()]), Path::new("."))?;
    let mut documents = Vec::new();
    let mut text = String::new();
    while let Some(piece) = source.next()? {
        text.push_str(&piece.text);
        if piece.ends {
            documents.push(std::mem::take(&mut text));
        } else if piece.separator_bytes > 0 {
            text.push('\n');
        }
    }
    if documents.is_empty() {
        return Err(Error::Data { at, what: "there is no text in it (expected at least one document)".into() });
    }
    Ok(documents)
}

/// Cuts a document into windows of at most `window` rows in which each id is a continuation exactly once.
fn rolling_windows(ids: &[u32], prefix: u32, window: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut scored = 0;
    while scored < ids.len() {
        let end = ids.len().min(scored + window);
        let context = match scored {
            0 => vec![prefix],
            // The window reads all ids but the last, `window` of them.
            _ => ids[end - window - 1..scored].to_vec(),
        };
        pairs.push(Pair { context, continuation: ids[scored..end].to_vec() });
        scored = end;
    }
    pairs
}

/// Negative log-likelihood and length of a window.
#[derive(Debug, Clone, Copy)]
struct Unit {
    nats: f64,
    tokens: f64,
}

/// What all metrics come from.
struct Sums {
    /// (nats, tokens) of each independent unit.
    units: Vec<(f64, f64)>,
    /// (nats, words) and (nats, bytes) of each document, when there are several.
    documents: Option<[Vec<(f64, f64)>; 2]>,
    words: f64,
    bytes: f64,
}

impl Sums {
    fn of(documents: &[String], windows: &[usize], units: &[Unit]) -> Self {
        let words = |text: &String| text.split_whitespace().count() as f64;
        let bytes = |text: &String| text.len() as f64;
        let mut rest = units;
        let by_document: Vec<(f64, f64)> = windows
            .iter()
            .map(|&count| {
                let (own, others) = rest.split_at(count);
                rest = others;
                own.iter().fold((0.0, 0.0), |sum, unit| (sum.0 + unit.nats, sum.1 + unit.tokens))
            })
            .collect();
        let per = |measure: &dyn Fn(&String) -> f64| -> Vec<(f64, f64)> {
            by_document.iter().zip(documents).map(|(sum, text)| (sum.0, measure(text))).collect()
        };
        let several = documents.len() > 1;
        Self {
            documents: several.then(|| [per(&words), per(&bytes)]),
            units: match several {
                true => by_document,
                false => units.iter().map(|unit| (unit.nats, unit.tokens)).collect(),
            },
            words: documents.iter().map(words).sum(),
            bytes: documents.iter().map(bytes).sum(),
        }
    }

    fn tokens(&self) -> f64 {
        self.units.iter().map(|unit| unit.1).sum()
    }

    fn report(&self, report: EvalReport) -> EvalReport {
        let by_token = metrics::ratio(&self.units);
        let by_word = self.nats_per(0, self.words, by_token);
        let by_byte = self.nats_per(1, self.bytes, by_token);
        report
            .metric("token_perplexity", by_token.exp())
            .metric("word_perplexity", by_word.exp())
            .metric("byte_perplexity", by_byte.exp())
            .metric("bits_per_byte", by_byte.times(std::f64::consts::LOG2_E))
    }

    /// A line for each document, or for each window of the only one.
    fn examples(&self, documents: &[String]) -> Examples {
        const BITS: Linear =
            Linear { metric: "bits_per_byte", above: "nats", below: Some("bytes"), factor: std::f64::consts::LOG2_E };
        let mut examples = Examples::new(&[BITS]);
        for (at, &(nats, tokens)) in self.units.iter().enumerate() {
            let (text, [words, bytes]) = match &self.documents {
                Some(of_documents) => (&documents[at], of_documents.each_ref().map(|of| of[at].1)),
                None => (&documents[0], [self.words, self.bytes].map(|sum| sum * tokens / self.tokens())),
            };
            let numbers = [("nats", nats), ("tokens", tokens), ("words", words), ("bytes", bytes)];
            examples.push(text, numbers.map(|(name, number)| (name, number.into())));
        }
        examples
    }

    /// Nats for each of `count` words or bytes.
    fn nats_per(&self, which: usize, count: f64, by_token: Metric) -> Metric {
        match &self.documents {
            Some(documents) => metrics::ratio(&documents[which]),
            None => by_token.times(self.tokens() / count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_each_id_once_with_the_harness_contexts() {
        // lm_eval.utils.get_rolling_token_windows([0..10], prefix 99, max_seq_len 4, context_len 1), made disjoint.
        let ids: Vec<u32> = (0..10).collect();
        let pairs = rolling_windows(&ids, 99, 4);
        let expect: [(&[u32], &[u32]); 3] = [(&[99], &[0, 1, 2, 3]), (&[3], &[4, 5, 6, 7]), (&[5, 6, 7], &[8, 9])];
        assert_eq!(pairs.len(), expect.len());
        for (pair, (context, continuation)) in pairs.iter().zip(expect) {
            assert_eq!((&pair.context[..], &pair.continuation[..]), (context, continuation));
        }
        assert_eq!(rolling_windows(&[7], 99, 4), [Pair { context: vec![99], continuation: vec![7] }]);
        assert!(rolling_windows(&[], 99, 4).is_empty());
    }

    fn get(report: &EvalReport, name: &str) -> f64 {
        report.value(name).unwrap()
    }

    #[test]
    fn figures_by_hand() {
        // Two documents: 2 ln 2 nats over 2 tokens, 1 word, 4 bytes; 6 ln 2 over 2 tokens, 3 words, 6 bytes.
        let documents = ["four".to_string(), "a b cd".to_string()];
        let ln2 = std::f64::consts::LN_2;
        let units = [Unit { nats: 2.0 * ln2, tokens: 2.0 }, Unit { nats: 6.0 * ln2, tokens: 2.0 }];
        let report = Sums::of(&documents, &[1, 1], &units).report(EvalReport::new("perplexity", 2));
        let close = |name: &str, want: f64| {
            let got = get(&report, name);
            assert!((got - want).abs() < 1e-9, "{name}: {got} for {want}");
        };
        close("token_perplexity", 4.0);
        close("word_perplexity", 4.0);
        close("byte_perplexity", 2f64.powf(0.8));
        close("bits_per_byte", 0.8);
        let lines = Sums::of(&documents, &[1, 1], &units).examples(&documents).to_jsonl();
        assert!(lines.starts_with(r#"{"example":0,"sha256":""#), "{lines}");
        assert!(lines.lines().nth(1).unwrap().ends_with(r#""tokens":2.0,"words":3.0,"bytes":6.0}"#), "{lines}");
        // Residuals 2 - 0.8 · 4 and 6 - 0.8 · 6, twice their squares' sum, over 10 bytes.
        close("bits_per_byte_stderr", (2.0f64 * (1.2 * 1.2 + 1.2 * 1.2)).sqrt() / 10.0);
    }

    #[test]
    fn one_document_takes_its_error_from_its_windows() {
        let documents = ["four more".to_string()];
        let units = [Unit { nats: 2.0, tokens: 2.0 }, Unit { nats: 4.0, tokens: 2.0 }];
        let report = Sums::of(&documents, &[2], &units).report(EvalReport::new("perplexity", 1));
        let relative = get(&report, "bits_per_byte_stderr") / get(&report, "bits_per_byte");
        // Nats per token 1.5 ± 0.5.
        assert!((relative - 1.0 / 3.0).abs() < 1e-12, "{relative}");
        let one = Sums::of(&documents, &[1], &units[..1]).report(EvalReport::new("perplexity", 1));
        assert!(one.value("bits_per_byte_stderr").is_none());
    }
}
