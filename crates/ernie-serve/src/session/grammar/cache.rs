//! Compiled grammars that are used again: the least recently used goes first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::{Grammar, GrammarVocab};
use crate::Result;

/// Grammars, by what they were made of, within a number and a size.
///
/// Two callers who need the same new grammar at once both compile it; neither waits for the other.
#[derive(Debug)]
pub struct GrammarCache {
    vocab: GrammarVocab,
    max_grammars: usize,
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    grammars: HashMap<String, (Grammar, u64)>,
    bytes: usize,
    clock: u64,
}

impl GrammarCache {
    /// An empty cache that keeps at most so many grammars, and bytes of them and of what they were made of.
    pub fn new(vocab: GrammarVocab, max_grammars: usize, max_bytes: usize) -> Self {
        Self { vocab, max_grammars, max_bytes, kept: Mutex::default() }
    }

    /// The vocabulary of its grammars.
    pub fn vocab(&self) -> &GrammarVocab {
        &self.vocab
    }

    /// As [`Grammar::json_schema`].
    ///
    /// # Errors
    /// As there.
    pub fn json_schema(&self, schema: &Value) -> Result<Grammar> {
        self.get(format!("schema {schema}"), || Grammar::json_schema(&self.vocab, schema))
    }

    /// As [`Grammar::json_object`].
    ///
    /// # Errors
    /// As there.
    pub fn json_object(&self) -> Result<Grammar> {
        self.get("object".into(), || Grammar::json_object(&self.vocab))
    }

    /// As [`Grammar::regex`].
    ///
    /// # Errors
    /// As there.
    pub fn regex(&self, pattern: &str) -> Result<Grammar> {
        self.get(format!("regex {pattern}"), || Grammar::regex(&self.vocab, pattern))
    }

    /// Grammars that it holds.
    pub fn len(&self) -> usize {
        self.lock().grammars.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it holds, roughly.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// The grammar made of `source`, compiled if it is not kept.
    pub(in crate::session) fn get(&self, source: String, compile: impl FnOnce() -> Result<Grammar>) -> Result<Grammar> {
        if let Some(grammar) = self.lock().find(&source) {
            return Ok(grammar);
        }
        let grammar = compile()?;
        self.lock().keep(source, grammar.clone(), self.max_grammars, self.max_bytes);
        Ok(grammar)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, source: &str) -> Option<Grammar> {
        self.clock += 1;
        let (grammar, used) = self.grammars.get_mut(source)?;
        *used = self.clock;
        Some(grammar.clone())
    }

    fn keep(&mut self, source: String, grammar: Grammar, max_grammars: usize, max_bytes: usize) {
        let bytes = source.len() + grammar.bytes();
        if bytes > max_bytes || max_grammars == 0 {
            return;
        }
        self.forget(&source.clone());
        while self.grammars.len() >= max_grammars || self.bytes + bytes > max_bytes {
            let oldest = self.grammars.iter().min_by_key(|(_, (_, used))| *used).map(|(source, _)| source.clone());
            let Some(oldest) = oldest else { break };
            self.forget(&oldest);
        }
        self.bytes += bytes;
        self.clock += 1;
        self.grammars.insert(source, (grammar, self.clock));
    }

    fn forget(&mut self, source: &str) {
        if let Some((grammar, _)) = self.grammars.remove(source) {
            self.bytes -= source.len() + grammar.bytes();
        }
    }
}
