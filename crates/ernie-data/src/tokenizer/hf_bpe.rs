//! The model of a `tokenizer.json`: byte-pair encoding by ranked merges, byte-level or with byte fallback.
//!
//! Control tokens cannot come out of it: merges that would make one are dropped when the file is read, and whole-word
//! and single-character look-ups skip them. So a user's text stays text even if a vocabulary holds `<|im_end|>` as an
//! ordinary entry.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{NormalizedString, Normalizer as _};

use super::bpe::{Symbol, merge};
use super::guarded_regex::{GuardedRegex, one_line};
use super::pretokenize::{self, Step};
use super::{Map, byte_level};
use crate::{Error, Result};

/// Words longer than this are not remembered within a call.
const MAX_CACHED_WORD: usize = 64;

/// One normalising step.
pub(super) enum Normalize {
    Prepend(String),
    Replace(String, String),
    ReplaceRegex(GuardedRegex, String),
    /// Unicode forms and the like, by the `tokenizers` library.
    Library(Box<NormalizerWrapper>),
}

/// See the module.
pub(super) struct HfBpe {
    pub(super) normalizers: Vec<Normalize>,
    pub(super) steps: Vec<Step>,
    /// Text without control tokens → id, in the spelling of the vocabulary.
    pub(super) vocabulary: Map<Arc<str>, u32>,
    /// Pair → (rank, merged id).
    pub(super) merges: Map<(u32, u32), (u32, u32)>,
    /// Ids of the 256 characters of the byte-level alphabet ([`Symbol::UNKNOWN`] where missing), for byte-level models.
    pub(super) byte_level: Option<Box<[u32; 256]>>,
    /// Ids of `<0x00>` … `<0xFF>`.
    pub(super) byte_fallback: Option<Box<[u32; 256]>>,
    pub(super) unknown: Option<u32>,
    pub(super) fuse_unknown: bool,
    pub(super) ignore_merges: bool,
}

impl HfBpe {
    /// Removes every way by which ordinary text could become one of `control`.
    pub(super) fn forbid(&mut self, control: &HashSet<u32>) {
        self.vocabulary.retain(|_, id| !control.contains(id));
        self.merges.retain(|_, (_, id)| !control.contains(id));
        for table in [&mut self.byte_level, &mut self.byte_fallback].into_iter().flatten() {
            for id in table.iter_mut().filter(|id| control.contains(*id)) {
                *id = Symbol::UNKNOWN;
            }
        }
    }

    /// Normalises a text between two control tokens.
    pub(super) fn normalize<'a>(&self, text: &'a str) -> Result<Cow<'a, str>> {
        let limit = text.len().saturating_mul(16) + (1 << 20);
        let mut text = Cow::Borrowed(text);
        for step in &self.normalizers {
            let next = match step {
                Normalize::Prepend(_) if text.is_empty() => continue,
                Normalize::Prepend(prefix) => format!("{prefix}{text}"),
                Normalize::Replace(from, to) if !from.is_empty() => {
                    let grown = text.matches(from.as_str()).count().saturating_mul(to.len()).saturating_add(text.len());
                    within(grown, limit)?;
                    text.replace(from.as_str(), to)
                }
                Normalize::Replace(..) => continue,
                Normalize::ReplaceRegex(regex, to) => {
                    let (mut out, mut done) = (String::new(), 0);
                    regex.for_each(&text, |start, end| {
                        if out.len() <= limit {
                            out.push_str(&text[done..start]);
                            out.push_str(to);
                        }
                        done = end;
                    })?;
                    out.push_str(&text[done..]);
                    out
                }
                Normalize::Library(normalizer) => {
                    let mut normalized = NormalizedString::from(text.as_ref());
                    normalizer
                        .normalize(&mut normalized)
                        .map_err(|e| Error::Encode(format!("normalisation: {}", one_line(&e.to_string()))))?;
                    normalized.get().to_owned()
                }
            };
            within(next.len(), limit)?;
            text = Cow::Owned(next);
        }
        Ok(text)
    }

    /// Tokenises normalised text.
    pub(super) fn encode(&self, text: Cow<'_, str>, at_start: bool, out: &mut Vec<u32>) -> Result<()> {
        let words = pretokenize::run(&self.steps, text, at_start)?;
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        for word in &words {
            if word.len() <= MAX_CACHED_WORD
                && let Some(&(start, end)) = seen.get(word.as_ref())
            {
                out.extend_from_within(start..end);
                continue;
            }
            let start = out.len();
            self.encode_word(word, out);
            if word.len() <= MAX_CACHED_WORD {
                seen.insert(word, (start, out.len()));
            }
        }
        Ok(())
    }

    fn encode_word(&self, word: &str, out: &mut Vec<u32>) {
        if self.ignore_merges {
            let whole = match self.byte_level {
                Some(_) => self.vocabulary.get(byte_level::text_of(word.as_bytes()).as_str()),
                None => self.vocabulary.get(word),
            };
            if let Some(id) = whole {
                out.push(*id);
                return;
            }
        }
        let symbols = match &self.byte_level {
            Some(table) => self.byte_symbols(word, table),
            None => self.char_symbols(word),
        };
        let merged = merge(symbols, |a, b| self.merges.get(&(a.id, b.id)).map(|(rank, id)| (-f64::from(*rank), *id)));
        out.extend(merged.iter().map(|s| s.id));
    }

    fn byte_symbols(&self, word: &str, table: &[u32; 256]) -> Vec<Symbol> {
        let mut symbols = Symbols::new(self, word.len());
        for (at, byte) in word.bytes().enumerate() {
            match table[usize::from(byte)] {
                Symbol::UNKNOWN => symbols.unknown(at, 1),
                id => symbols.known(at, 1, id),
            }
        }
        symbols.finish()
    }

    fn char_symbols(&self, word: &str) -> Vec<Symbol> {
        let mut symbols = Symbols::new(self, word.len());
        for (at, c) in word.char_indices() {
            let len = c.len_utf8();
            let text = &word[at..at + len];
            let fallback = || {
                let table = self.byte_fallback.as_ref()?;
                let ids: Vec<u32> = text.bytes().map(|b| table[usize::from(b)]).collect();
                (!ids.contains(&Symbol::UNKNOWN)).then_some(ids)
            };
            if let Some(id) = self.vocabulary.get(text) {
                symbols.known(at, len, *id);
            } else if let Some(ids) = fallback() {
                for (i, id) in ids.into_iter().enumerate() {
                    symbols.known(at + i, 1, id);
                }
            } else {
                symbols.unknown(at, len);
            }
        }
        symbols.finish()
    }
}

/// Replacements of a hostile file may not blow a text up.
fn within(bytes: usize, limit: usize) -> Result<()> {
    if bytes > limit {
        return Err(Error::Encode(format!("normalisation makes {bytes} bytes of it (expected at most {limit})")));
    }
    Ok(())
}

/// Collects the first symbols of a word; runs of unknown characters become one or many unknown tokens, and vanish when
/// the model has none (as in `tokenizers`).
struct Symbols<'a> {
    model: &'a HfBpe,
    out: Vec<Symbol>,
    pending: Option<(usize, usize)>,
}

impl<'a> Symbols<'a> {
    fn new(model: &'a HfBpe, bytes: usize) -> Self {
        Self { model, out: Vec::with_capacity(bytes), pending: None }
    }

    fn flush(&mut self) {
        if let (Some((start, len)), Some(id)) = (self.pending.take(), self.model.unknown) {
            self.out.push(Symbol::new(start, len, id, false));
        }
    }

    fn known(&mut self, start: usize, len: usize, id: u32) {
        self.flush();
        self.out.push(Symbol::new(start, len, id, false));
    }

    fn unknown(&mut self, start: usize, len: usize) {
        match &mut self.pending {
            Some(pending) if self.model.fuse_unknown => pending.1 += len,
            _ => {
                self.flush();
                self.pending = Some((start, len));
            }
        }
    }

    fn finish(mut self) -> Vec<Symbol> {
        self.flush();
        self.out
    }
}
