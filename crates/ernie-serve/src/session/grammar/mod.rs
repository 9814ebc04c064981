//! Structured output: answers that a JSON schema, a regular expression or the form of calls allows.
//!
//! A [`Grammar`] is compiled once and watches any number of answers; the engine knows it as a [`Watcher`]. The work is done
//! by `llguidance`; here stands what makes it safe to offer: a schema is checked word by word before it is compiled, and
//! a keyword that cannot be honoured is refused by name ([`schema`]); size, depth and work are bounded; nothing is ever
//! fetched; a [`GrammarCache`] keeps what is used often within bounds. A grammar sees bytes of text, never control tokens
//! ([`GrammarVocab`]).

mod cache;
mod compile;
mod pattern;
pub mod schema;
mod vocab;
mod watch;

use std::sync::{Arc, Mutex};

use llguidance::Matcher;
use serde_json::Value;

pub use cache::GrammarCache;
pub(super) use compile::{CallsGrammar, Place};
pub use vocab::GrammarVocab;
pub use watch::GrammarWatcher;

use crate::Result;
use crate::engine::Watcher;

/// A compiled grammar; cloning shares it.
#[derive(Clone)]
pub struct Grammar(Arc<Inner>);

struct Inner {
    vocab: GrammarVocab,
    /// At the beginning. Each answer works on a copy of its own, so that no answer depends on what others did.
    matcher: Mutex<Matcher>,
    bytes: usize,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammar({} bytes)", self.0.bytes)
    }
}

impl Grammar {
    /// Answers that are JSON and that `schema` allows.
    ///
    /// Properties come in the order of the schema, and a name that the schema does not list comes after them.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] for a schema that is malformed, allows nothing, is too large, or has a keyword that cannot be
    /// honoured; the message names it and where it stands.
    pub fn json_schema(vocab: &GrammarVocab, schema: &Value) -> Result<Self> {
        compile::json_schema(vocab, schema)
    }

    /// Answers that are a JSON object, any object.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] when the vocabulary cannot spell one.
    pub fn json_object(vocab: &GrammarVocab) -> Result<Self> {
        compile::json_object(vocab)
    }

    /// Answers that `pattern` matches from beginning to end. The syntax is that of the crate `regex`; look-around and
    /// references to groups are refused.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] for a pattern that is malformed, matches nothing, or is too large.
    pub fn regex(vocab: &GrammarVocab, pattern: &str) -> Result<Self> {
        compile::regex(vocab, pattern)
    }

    fn new(vocab: &GrammarVocab, matcher: Matcher, bytes: usize) -> Self {
        Self(Arc::new(Inner { vocab: vocab.clone(), matcher: Mutex::new(matcher), bytes }))
    }

    /// A watcher for one answer.
    pub fn watcher(&self) -> Box<dyn Watcher> {
        Box::new(self.watch())
    }

    /// As [`Grammar::watcher`], to look at.
    pub fn watch(&self) -> GrammarWatcher {
        // The matcher is only ever copied, which cannot leave it half done.
        let matcher = self.0.matcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).deep_clone();
        GrammarWatcher::new(matcher, self.0.vocab.end_ids())
    }

    /// The vocabulary that it is made for.
    pub fn vocab(&self) -> &GrammarVocab {
        &self.0.vocab
    }

    /// Bytes that it holds, roughly.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }
}

/// The first lines of a message as one line.
fn one_line(message: &str) -> String {
    let message = message.split("<non-verbose/>").next().unwrap_or_default();
    let message = message.split("\n<").next().unwrap_or_default();
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}
