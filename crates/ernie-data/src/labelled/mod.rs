//! Texts with labels: what classification learns from, and what it is measured on.
//!
//! A line of JSON holds `text`, beside it `text_pair` where two texts are judged together, and `label`, a name or a whole number. Labels have ids by their place in a
//! list ([`LabelledText::find`]): the sorted labels of the training data ([`collect`]), or one that was written down.
//!
//! A text becomes the ids that other programs' tokenizers make of it. In a row ([`LabelledText::example`]) its label stands behind it as if it were its next id, so that labels go
//! wherever ids go: through packing, spilling, shuffling and the hash that a run is resumed by. No row of the text sees it.

mod tally;

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::packing::Example;
use crate::source::{Format, Source, SourceConfig};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub use tally::{OfLabel, Tally};

/// Labels that an error lists before it says how many more there are.
const SHOWN: usize = 8;

/// Most different labels that are gathered from data: more are no labels but something else under their name.
const MOST_LABELS: usize = 1 << 16;

/// Whole lines of JSONL files, as these texts are read.
pub fn lines(source: &SourceConfig) -> SourceConfig {
    SourceConfig { format: Format::Jsonl, whole_lines: true, ..source.clone() }
}

/// A text, and its label where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledText {
    /// The text, and the one beside it after a line break.
    pub text: String,
    /// The label as it is written; a whole number in digits.
    pub label: Option<String>,
    /// Whether the label is a number, which may stand for a place in the list of labels.
    number: bool,
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    #[serde(default)]
    text_pair: Option<String>,
    #[serde(default)]
    label: Option<Label>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`label` is neither a string nor a whole number")]
enum Label {
    Number(i64),
    Name(String),
}

impl LabelledText {
    /// Reads a line of JSON with `text`, `text_pair` if need be, and `label` if it is known. Other keys are passed over.
    ///
    /// # Errors
    /// What is wrong with the line, and what was expected.
    pub fn parse(line: &str) -> std::result::Result<Self, String> {
        if !line.trim_start().starts_with('{') {
            return Err("expected one object a line with `text` and `label`".into());
        }
        let line: Line = serde_json::from_str(line).map_err(|error| {
            // serde_json counts lines inside the text it was given, which is always one line here.
            let message = error.to_string();
            format!("not a text with a label: {}", message.split(" at line ").next().unwrap_or(&message))
        })?;
        let text = line.text.ok_or("no `text`, expected a text to classify")?;
        if text.trim().is_empty() {
            return Err("`text` is empty, expected a text to classify".into());
        }
        let text = match line.text_pair {
            Some(pair) => format!("{text}\n{pair}"),
            None => text,
        };
        let (label, number) = match line.label {
            None => (None, false),
            Some(Label::Number(number)) => (Some(number.to_string()), true),
            Some(Label::Name(name)) if name.is_empty() => return Err("`label` is empty, expected a name".into()),
            Some(Label::Name(name)) => (Some(name), false),
        };
        Ok(Self { text, label, number })
    }

    /// The label, which must be there.
    ///
    /// # Errors
    /// That there is none.
    pub fn label(&self) -> std::result::Result<&str, String> {
        self.label.as_deref().ok_or_else(|| "no `label`, expected a string or a whole number".to_owned())
    }

    /// The id of the label among `labels`. A number that is no label's name is a place in the list.
    ///
    /// # Errors
    /// What labels there are.
    pub fn find(&self, labels: &[String]) -> std::result::Result<usize, String> {
        let label = self.label()?;
        let by_place = || label.parse().ok().filter(|&place: &usize| self.number && place < labels.len());
        labels.iter().position(|known| known == label).or_else(by_place).ok_or_else(|| {
            let shown: Vec<String> = labels.iter().take(SHOWN).map(|known| format!("{known:?}")).collect();
            let more = labels.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" or {more} more") } else { String::new() };
            format!("the label {label:?} is not known, expected one of {}{more}", shown.join(", "))
        })
    }

    /// The text as an example of a row, its label's id behind it. `most` is the length of a row; a text that does not fit with its label loses its end, which the second value
    /// says.
    ///
    /// # Errors
    /// As [`ids`].
    pub fn example(&self, label: usize, tokenizer: &Tokenizer, most: usize) -> Result<(Example, bool)> {
        let (mut ids, cut) = ids(&self.text, tokenizer, most.saturating_sub(1))?;
        let label = u32::try_from(label).map_err(|_| Error::Internal(format!("a label has the id {label}")))?;
        ids.push(label);
        let trained = (0..ids.len()).map(|at| at + 1 == ids.len()).collect();
        Ok((Example { ids, trained, text_bytes: self.text.len() as u64 }, cut))
    }
}

/// The ids of a text as it is classified: with what the tokenizer's files put before and after a text, and at most `most`, for which the text loses its end; whether
/// it did comes second.
///
/// # Errors
/// [`Error::Encode`] for a text that is beyond the tokenizer's limits, or of which nothing is left.
pub fn ids(text: &str, tokenizer: &Tokenizer, most: usize) -> Result<(Vec<u32>, bool)> {
    let before = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let after = tokenizer.eos().filter(|_| tokenizer.adds_eos());
    let mut ids = tokenizer.encode(text)?;
    let room = most.saturating_sub(usize::from(before.is_some()) + usize::from(after.is_some()));
    let cut = ids.len() > room;
    ids.truncate(room);
    if ids.is_empty() {
        return Err(Error::Encode(format!("no token of it is left within {most}")));
    }
    Ok((before.into_iter().chain(ids).chain(after).collect(), cut))
}

/// All labels of these sources: whole numbers by size where all are, else by name.
///
/// # Errors
/// [`Error::Data`] names the file and line that is no text with a label, or of one label too many; those of [`Source`].
pub fn collect<'a>(sources: impl IntoIterator<Item = &'a SourceConfig>, base_dir: &Path) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for source in sources {
        let mut source = Source::open(&lines(source), base_dir)?;
        while let Some(piece) = source.next()? {
            let text = LabelledText::parse(&piece.text).map_err(|what| source.fault(&what))?;
            let label = text.label().map_err(|what| source.fault(&what))?;
            if !found.contains(label) {
                found.insert(label.to_owned());
            }
            if found.len() > MOST_LABELS {
                return Err(source.fault(&format!("more than {MOST_LABELS} different labels")));
            }
        }
    }
    let mut labels: Vec<String> = found.into_iter().collect();
    let numbers: Option<Vec<i64>> = labels.iter().map(|label| label.parse().ok()).collect();
    if numbers.is_some() {
        labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{TrainOptions, train_bpe};

    fn parse(line: &str) -> LabelledText {
        LabelledText::parse(line).unwrap()
    }

    #[test]
    fn labels_are_names_or_numbers() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        assert_eq!(parse(r#"{"text": "a", "label": "yes", "idx": 4}"#).find(&labels), Ok(1));
        assert_eq!(parse(r#"{"label": 1, "text": "a"}"#).find(&labels), Ok(1));
        assert_eq!(parse(r#"{"text": "a", "text_pair": "b", "label": "no"}"#).text, "a\nb");
        // A name is no place, and a number that is a name is that name.
        assert!(parse(r#"{"text": "a", "label": "1"}"#).find(&labels).is_err());
        assert_eq!(parse(r#"{"text": "a", "label": 1}"#).find(&["1".to_owned(), "0".to_owned()]), Ok(0));
        assert!(parse(r#"{"text": "a", "label": 2}"#).find(&labels).unwrap_err().contains("\"no\", \"yes\""));
    }

    #[test]
    fn mistakes_say_what_was_expected() {
        for (line, says) in [
            ("[1]", "one object a line"),
            ("{", "not a text with a label"),
            ("{\"label\": 1}", "no `text`"),
            ("{\"text\": \" \\n\", \"label\": 1}", "`text` is empty"),
            ("{\"text\": 3, \"label\": 1}", "expected a string"),
            ("{\"text\": \"a\", \"label\": \"\"}", "`label` is empty"),
            ("{\"text\": \"a\", \"label\": 0.5}", "neither a string nor a whole number"),
            ("{\"text\": \"a\", \"label\": [1]}", "neither a string nor a whole number"),
        ] {
            let what = LabelledText::parse(line).unwrap_err();
            assert!(what.contains(says), "{line}: {what}");
        }
        assert!(parse("{\"text\": \"a\", \"label\": null}").label().unwrap_err().contains("no `label`"));
    }

    #[test]
    fn a_label_stands_behind_its_text_and_the_text_gives_way() {
        let tokenizer = train_bpe(["some text"].iter(), &TrainOptions::ernie(300)).unwrap();
        let text = parse(r#"{"text": "some text", "label": 7}"#);
        let whole = tokenizer.encode("some text").unwrap();
        let (example, cut) = text.example(7, &tokenizer, whole.len() + 1).unwrap();
        assert!(!cut && example.ids[..whole.len()] == whole && example.ids[whole.len()..] == [7]);
        assert!(example.trained.iter().rev().enumerate().all(|(at, &trained)| trained == (at == 0)));
        let (example, cut) = text.example(7, &tokenizer, 3).unwrap();
        assert!(cut && example.ids == [whole[0], whole[1], 7]);
        assert!(text.example(7, &tokenizer, 1).unwrap_err().is_input());
    }

    #[test]
    fn labels_are_gathered_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let gather = |labels: &[&str]| {
            let lines = labels.iter().map(|label| format!("{{\"text\": \"a\", \"label\": {label}}}\n"));
            std::fs::write(folder.path().join("a.jsonl"), lines.collect::<String>()).unwrap();
            collect([&SourceConfig::new(&["a.jsonl"])], folder.path())
        };
        assert_eq!(gather(&["10", "9", "-1", "9"]).unwrap(), ["-1", "9", "10"]);
        assert_eq!(gather(&["\"b\"", "10", "9", "\"a\""]).unwrap(), ["10", "9", "a", "b"]);
        assert!(gather(&["1", "null"]).unwrap_err().to_string().contains("a.jsonl:2: no `label`"));
    }
}
