//! Thinking models: what they think, apart from what they say.
//!
//! A thinking model writes its reasoning between two tags and then the answer. Some templates write the opening tag
//! themselves, so that it stands in the prompt and not in the answer; ERNIE's thinking models wrap the answer in tags of
//! its own as well. [`ReasoningForm`] says which tags a model uses; [`Splitter`] divides the text as it comes. What it
//! gives depends on the text alone, never on how it was cut into pieces.

mod split;

use ernie_data::tokenizer::Tokenizer;

pub use split::{Split, Splitter};

/// Tags of reasoning known to us, opening and closing.
const THINK: [&str; 2] = ["<think>", "</think>"];
/// Tags around the answer of ERNIE's thinking models.
const RESPONSE: [&str; 2] = ["<response>", "</response>"];

/// The tags that a model thinks between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningForm {
    /// Begins the reasoning.
    pub open: String,
    /// Ends it.
    pub close: String,
    /// Stand around the answer that follows, where the model writes them.
    pub answer: Option<[String; 2]>,
}

impl ReasoningForm {
    /// `<think>…</think>`, with `<response>…</response>` around the answer where `answer_tags`.
    pub fn think(answer_tags: bool) -> Self {
        let [open, close] = THINK.map(str::to_owned);
        Self { open, close, answer: answer_tags.then(|| RESPONSE.map(str::to_owned)) }
    }

    /// The form of a model, by its tokenizer and the source of its chat template; `None` for one that does not think.
    pub fn detect(tokenizer: &Tokenizer, template: &str) -> Option<Self> {
        let known = |tags: [&str; 2]| {
            tags.iter().all(|tag| tokenizer.id_of(tag).is_some()) || tags.iter().all(|tag| template.contains(tag))
        };
        known(THINK).then(|| Self::think(known(RESPONSE)))
    }

    /// Whether a prompt ends inside reasoning, because its template wrote the opening tag.
    pub fn is_open_in(&self, prompt: &str) -> bool {
        match prompt.rfind(&self.open) {
            Some(at) => prompt[at + self.open.len()..].trim().is_empty(),
            None => false,
        }
    }

    /// The tags, for a [`super::TextStream`] that must show them though they are special tokens.
    pub fn tags(&self) -> Vec<&str> {
        let answer = self.answer.iter().flatten().map(String::as_str);
        [self.open.as_str(), self.close.as_str()].into_iter().chain(answer).collect()
    }
}
