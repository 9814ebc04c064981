//! A model's vocabulary as grammars see it: which bytes each id adds to the text.
//!
//! It is made from our own tokenizer. Control tokens, special tokens, what is never produced, and ids without text are no
//! part of it, so no grammar can allow them; the only exceptions are the end ids, which are allowed where a grammar may
//! end, and the tags of calls, which only the grammar of calls can name.

use std::sync::Arc;

use ernie_data::tokenizer::{TokenKind, Tokenizer};
use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use llguidance::{ParserFactory, toktrie};
use toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::{Error, Result};

/// Work that one grammar may ask for. The units are those of `llguidance`: some milliseconds for each of them.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 10_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// Bytes of the longest token that a grammar can use; longer ones are passed over.
const MAX_TOKEN_BYTES: usize = 500;
/// Ids and bytes of all tokens that the trie can hold.
const MAX_IDS: usize = 1 << 23;
const MAX_BYTES: usize = 4_000_000;

/// A vocabulary, made once for a model; cloning shares it.
#[derive(Clone)]
pub struct GrammarVocab(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    end_ids: Vec<u32>,
    /// Literals of tags that are one token, and their ids.
    tags: Vec<(String, u32)>,
}

impl std::fmt::Debug for GrammarVocab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarVocab({} ids)", self.0.factory.tok_env().tok_trie().vocab_size())
    }
}

impl GrammarVocab {
    /// The vocabulary of a model with `vocab_size` logits, whose answers end at any of `end_ids`. `tags` are control
    /// tokens that the grammar of calls may write ([`crate::session::CallForm::tags`]).
    ///
    /// # Errors
    /// [`Error::Parameter`] for a vocabulary that is larger than any real one.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, end_ids: &[u32], tags: &[&str]) -> Result<Self> {
        let tags: Vec<(String, u32)> = tags
            .iter()
            .filter_map(|tag| Some(((*tag).to_owned(), tokenizer.id_of(tag)?)))
            .filter(|&(_, id)| !is_text(tokenizer, id) && (id as usize) < vocab_size && !end_ids.contains(&id))
            .collect();
        let word = |id: u32| -> Vec<u8> {
            if let Some((tag, _)) = tags.iter().find(|(_, tag)| *tag == id) {
                return [&[TokTrie::SPECIAL_TOKEN_MARKER], tag.as_bytes()].concat();
            }
            // An id that ends an answer is no text of it, even where it is a line break, as with models that know no better end.
            let spoken = is_text(tokenizer, id) && !end_ids.contains(&id);
            let bytes = tokenizer.token_bytes(id).filter(|_| spoken).unwrap_or_default();
            // The marker is no part of any text, and what is longer is deeper than the trie can be.
            let usable = bytes.len() <= MAX_TOKEN_BYTES && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
            if usable { bytes.to_vec() } else { Vec::new() }
        };
        let ids = u32::try_from(vocab_size.min(MAX_IDS + 1)).unwrap_or(u32::MAX);
        let words: Vec<Vec<u8>> = (0..ids).map(word).collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if vocab_size > MAX_IDS || bytes > MAX_BYTES {
            let expected = format!("at most {MAX_IDS} ids of {MAX_BYTES} bytes in all, for grammars");
            return Err(Error::parameter("vocabulary", format!("{vocab_size} ids of {bytes} bytes"), expected));
        }
        let end_ids: Vec<u32> = end_ids.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
        let mut trie = TokTrie::from(&TokRxInfo::new(ids, INVALID_TOKEN), &words);
        if !end_ids.is_empty() {
            trie = trie.with_eos_tokens(&end_ids);
        }
        let env: TokEnv = Arc::new(Env(trie));
        let mut factory =
            ParserFactory::new(&env, toktrie::InferenceCapabilities::default(), &SlicedBiasComputer::json_slices())
                .map_err(|error| Error::Internal(format!("a vocabulary for grammars: {error}")))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self(Arc::new(Inner { factory, end_ids, tags })))
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> &[u32] {
        &self.0.end_ids
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }

    /// The id of a tag that is one token.
    pub(in crate::session) fn tag(&self, tag: &str) -> Option<u32> {
        self.0.tags.iter().find(|(literal, _)| literal == tag).map(|&(_, id)| id)
    }
}

/// Whether the id adds text to an answer that callers see.
fn is_text(tokenizer: &Tokenizer, id: u32) -> bool {
    let plain = matches!(tokenizer.kind(id), Some(TokenKind::Normal | TokenKind::Added | TokenKind::Byte));
    plain && !tokenizer.is_special(id) && !tokenizer.is_control(id)
}

/// The trie alone: grammars see bytes, and the model chooses how to spell them.
struct Env(TokTrie);

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
