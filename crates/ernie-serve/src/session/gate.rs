//! A grammar that begins in the middle of an answer: behind the reasoning, or inside each call.

use ernie_data::tokenizer::{DecodeStream, Tokenizer};

use super::grammar::{Grammar, GrammarWatcher};
use super::stop::overlap;
use crate::engine::{Verdict, Watcher};

/// Lets an answer be free until a marker has come, and holds what follows to a grammar.
pub struct Gate {
    tokenizer: Tokenizer,
    decode: DecodeStream,
    marker: String,
    grammar: Grammar,
    /// The end of the free text, as far as it may belong to the marker.
    tail: String,
    bound: Option<GrammarWatcher>,
    /// Free again when the grammar is complete.
    again: bool,
    end_ids: Vec<u32>,
}

impl Gate {
    /// The grammar begins behind `marker`, and the answer ends with it: for a model that thinks first. The answer cannot
    /// end before. White space between marker and grammar is let through where it belongs to the marker's token.
    pub fn once(tokenizer: &Tokenizer, marker: &str, grammar: Grammar) -> Self {
        Self::new(tokenizer, marker, grammar, false)
    }

    /// The grammar begins behind each `marker`; when it is complete the answer is free again.
    pub fn each(tokenizer: &Tokenizer, marker: &str, grammar: Grammar) -> Self {
        Self::new(tokenizer, marker, grammar, true)
    }

    fn new(tokenizer: &Tokenizer, marker: &str, grammar: Grammar, again: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            decode: tokenizer.stream_with_special(),
            marker: marker.to_owned(),
            end_ids: grammar.vocab().end_ids().to_vec(),
            grammar,
            tail: String::new(),
            bound: None,
            again,
        }
    }
}

impl Watcher for Gate {
    fn mask(&mut self, logits: &mut [f32]) {
        if let Some(bound) = &mut self.bound {
            return bound.mask(logits);
        }
        if !self.again {
            for &id in &self.end_ids {
                logits[id as usize] = f32::NEG_INFINITY;
            }
        }
        let begun = overlap(&self.tail, &self.marker);
        if begun == 0 {
            return;
        }
        // A token that completes the marker and goes on would take the first step of the grammar unseen.
        let rest = &self.marker.as_bytes()[begun..];
        for (id, logit) in logits.iter_mut().enumerate() {
            let bytes = self.tokenizer.token_bytes(id as u32).unwrap_or_default();
            if bytes.strip_prefix(rest).is_some_and(|more| !more.trim_ascii().is_empty()) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn accept(&mut self, id: u32) -> Verdict {
        if let Some(bound) = &mut self.bound {
            let verdict = bound.accept(id);
            if verdict == Verdict::Continue || !self.again {
                return verdict;
            }
            self.bound = None;
            return Verdict::Continue;
        }
        self.tail += &self.decode.push(id).unwrap_or_default();
        if self.tail.contains(&self.marker) {
            self.tail.clear();
            self.bound = Some(self.grammar.watch());
        } else {
            let keep = overlap(&self.tail, &self.marker);
            self.tail.drain(..self.tail.len() - keep);
        }
        Verdict::Continue
    }

    fn trouble(&self) -> Option<&str> {
        self.bound.as_ref().and_then(|bound| bound.trouble())
    }
}
