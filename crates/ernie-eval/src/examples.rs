//! What a report is made of, example by example, and two models compared over the same examples.
//!
//! Some examples are hard for every model, so two models' metrics go up and down together with the draw of examples, and the difference of the two is
//! known better than either. [`Examples::difference`] takes each example with itself: its standard error is that of the differences (as
//! in Miller, "Adding Error Bars to Evals", arXiv:2411.00640, §4.2; for ratios by their linear part).

use std::path::Path;

use ernie_data::source::{Format, Source, SourceConfig};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{Error, Metric, Result, metrics};

/// The key under which a line says which example it is about: the first 16 hexadecimal digits of the SHA-256 of its text.
const MARK: &str = "sha256";

/// A metric that is a sum over examples, divided by another or by their number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// The name of the metric in the report.
    pub metric: &'static str,
    /// What is summed: a key of the examples' lines.
    pub above: &'static str,
    /// What the sum is divided by the sum of; `None` takes the number of examples.
    pub below: Option<&'static str>,
    /// What the quotient is multiplied by.
    pub factor: f64,
}

impl Linear {
    /// The mean of what the examples have under the metric's own name.
    pub const fn mean(metric: &'static str) -> Self {
        Self { metric, above: metric, below: None, factor: 1.0 }
    }

    /// Numerator and denominator of each line, or the key that a line lacks.
    fn parts(&self, lines: &[Map<String, Value>]) -> std::result::Result<Vec<(f64, f64)>, (usize, &'static str)> {
        let number = |at: usize, key: &'static str| lines[at].get(key).and_then(Value::as_f64).ok_or((at, key));
        (0..lines.len())
            .map(|at| Ok((number(at, self.above)?, self.below.map_or(Ok(1.0), |key| number(at, key))?)))
            .collect()
    }
}

/// Bytes of a file of lines at most: they are held at once.
const MOST_BYTES: usize = 64 << 20;

/// The lines that another model's examples left.
#[derive(Debug, Clone)]
pub struct Recorded {
    at: String,
    lines: Vec<Map<String, Value>>,
}

/// A line for each example that was scored, and what the lines add up to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples {
    lines: Vec<Map<String, Value>>,
    linear: Vec<Linear>,
}

impl Examples {
    /// No lines yet, of which these metrics will be made.
    pub fn new(linear: &[Linear]) -> Self {
        Self { lines: Vec::new(), linear: linear.to_vec() }
    }

    /// Adds an example, known again by `text`, with what was found out about it.
    pub fn push<'a>(&mut self, text: impl AsRef<[u8]>, values: impl IntoIterator<Item = (&'a str, Value)>) {
        let digest = Sha256::digest(text.as_ref());
        let mark: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let mut line =
            Map::from_iter([("example".to_owned(), self.lines.len().into()), (MARK.to_owned(), mark.into())]);
        line.extend(values.into_iter().map(|(key, value)| (key.to_owned(), value)));
        self.lines.push(line);
    }

    /// The lines, each an object of JSON.
    pub fn to_jsonl(&self) -> String {
        self.lines.iter().map(|line| Value::from(line.clone()).to_string() + "\n").collect()
    }

    /// Reads what [`Self::to_jsonl`] gave of another model.
    ///
    /// # Errors
    /// Input errors for a file that is not there or not of that form, or larger than 64 MiB.
    pub fn read(path: &Path) -> Result<Recorded> {
        let at = path.display().to_string();
        let config = SourceConfig { format: Format::Jsonl, whole_lines: true, ..SourceConfig::new(&[at.as_str()]) };
        let mut source = Source::open(&config, Path::new("."))?;
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(piece) = source.next()? {
            bytes += piece.text.len();
            if bytes > MOST_BYTES {
                let what =
                    format!("more than {} MiB of lines (expected what `eval --examples` wrote)", MOST_BYTES >> 20);
                return Err(Error::Data { at, what });
            }
            lines.push(serde_json::from_str(&piece.text).map_err(|error| source.fault(&error.to_string()))?);
        }
        Ok(Recorded { at, lines })
    }

    /// How far each metric is above that of another model, with the standard error over examples.
    ///
    /// # Errors
    /// [`Error::Data`] where the lines are about other examples or lack a number.
    pub fn difference(&self, Recorded { at, lines: theirs }: &Recorded) -> Result<Vec<(&'static str, Metric)>> {
        if theirs.len() != self.lines.len() {
            let what = format!(
                "it has {} examples, where {} were scored (expected those of the same task, --data and --limit)",
                theirs.len(),
                self.lines.len()
            );
            return Err(Error::Data { at: at.clone(), what });
        }
        let fault = |line: usize, what: String| Error::Data { at: format!("{at}:{}", line + 1), what };
        if let Some(line) = (0..theirs.len()).find(|&i| theirs[i].get(MARK) != self.lines[i].get(MARK)) {
            let what =
                "another example than the one that was scored (expected those of the same task, --data and --limit)";
            return Err(fault(line, what.into()));
        }
        self.linear
            .iter()
            .map(|linear| {
                let lacks = |(line, key): (usize, &str)| {
                    fault(line, format!("no number `{key}` (expected lines of `eval --examples`)"))
                };
                let theirs = linear.parts(theirs).map_err(lacks)?;
                let ours = linear
                    .parts(&self.lines)
                    .map_err(|(_, key)| Error::Internal(format!("no `{key}` of an example")))?;
                Ok((linear.metric, metrics::difference(&ours, &theirs).times(linear.factor)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(hits: &[f64]) -> Examples {
        let mut examples = Examples::new(&[Linear::mean("acc")]);
        hits.iter().enumerate().for_each(|(i, &hit)| examples.push(format!("text {i}"), [("acc", hit.into())]));
        examples
    }

    #[test]
    fn two_models_are_compared_example_by_example() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theirs.jsonl");
        let ours = examples(&[1.0, 1.0, 0.0, 1.0]);
        std::fs::write(&path, examples(&[1.0, 0.0, 0.0, 0.0]).to_jsonl()).unwrap();
        let [(name, difference)] = ours.difference(&Examples::read(&path).unwrap()).unwrap()[..] else {
            panic!("one metric")
        };
        // The mean of 0, 1, 0, 1, and its error: sqrt(4 · 0.25 / 3 / 4).
        assert_eq!((name, difference.value), ("acc", 0.5));
        assert!((difference.stderr.unwrap() - (1.0f64 / 12.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn other_examples_are_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theirs.jsonl");
        let ours = examples(&[1.0, 0.0]);
        let mut moved = examples(&[1.0]);
        moved.push("another text", [("acc", 1.0.into())]);
        let lacking = ours.to_jsonl().replace("\"acc\":0.0", "\"acc\":null");
        for (text, words) in [
            (examples(&[1.0]).to_jsonl(), "it has 1 examples, where 2 were scored"),
            (moved.to_jsonl(), "jsonl:2: another example"),
            (lacking, "jsonl:2: no number `acc`"),
            ("{\n".into(), "jsonl:1: "),
            (String::new(), "it has 0 examples"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Examples::read(&path).and_then(|theirs| ours.difference(&theirs)).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(words), "{text:?}: {error}");
        }
        assert!(Examples::read(&folder.path().join("none.jsonl")).unwrap_err().is_input());
        std::fs::write(&path, format!("{{\"nats\":1{}}}\n", " ".repeat(1 << 10)).repeat(1 << 16)).unwrap();
        let error = Examples::read(&path).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("more than 64 MiB"), "{error}");
    }
}
