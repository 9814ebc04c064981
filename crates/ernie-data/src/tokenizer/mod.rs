//! Tokenizers: text to ids and back.
//!
//! Three kinds of file are read — `tokenizer.json` (BPE), SentencePiece BPE `tokenizer.model`, and the vocabulary inside
//! a GGUF — and one kind is made: byte-level BPE ([`train_bpe`]). All end in one [`Tokenizer`].
//!
//! **Trust.** Control tokens (`<s>`, `<|im_end|>`, …) are recognised only in trusted text. [`Tokenizer::encode`] trusts
//! nothing, [`Tokenizer::encode_with_special`] everything, and [`Tokenizer::encode_marked`] takes one string in pieces
//! that say which parts are trusted; apart from control tokens it is cut as one string, so a piece may span the border
//! ("Assistant: " and what follows). No text of a caller ever becomes a control token, whatever the vocabulary.
//!
//! Nothing is added that was not asked for: a bos token is the caller's decision ([`Tokenizer::adds_bos`]).

mod added;
mod bpe;
mod build;
mod byte_level;
mod charsmap;
mod gguf;
mod guarded_regex;
mod hf_bpe;
mod json;
mod load;
mod pretokenize;
mod sentencepiece;
mod side;
mod stream;
mod to_gguf;
mod train;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub use added::AddedToken;
pub use side::SideFiles;
pub use stream::DecodeStream;
pub use train::{TrainOptions, train_bpe};

use added::{Matcher, Part, Trust};
use build::{Entry, Model};

use crate::{Error, Result};

/// Longest text that is encoded at once, in bytes.
pub const MAX_TEXT_BYTES: usize = 256 << 20;

/// A part of a text, and whether it may hold control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The text.
    pub text: &'a str,
    /// True for text of a template, false for text of a caller.
    pub trusted: bool,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// An ordinary piece of text.
    Normal,
    /// An added token that is ordinary text (ERNIE's digits).
    Added,
    /// A control token.
    Control,
    /// What unknown text becomes.
    Unknown,
    /// One byte.
    Byte,
    /// In the file, but never produced.
    Unused,
}

/// A map for vocabularies, which are built whole before the first answer: its hash is fast, and seeded at random because files are hostile.
type Map<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;

/// A tokenizer. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    entries: Vec<Option<Entry>>,
    by_text: Map<Arc<str>, u32>,
    added: Vec<AddedToken>,
    /// Added tokens looked for before normalisation; the same with the normalised control tokens, for texts that are
    /// trusted in parts; and those looked for after it.
    raw: Matcher,
    raw_mixed: Matcher,
    normalized: Matcher,
    model: Model,
    roles: BTreeMap<String, u32>,
    control: HashSet<u32>,
    unknown: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    strip_prefix: bool,
    chat_template: Option<String>,
    files: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.0.model {
            Model::Bpe(_) => "BPE",
            Model::SentencePiece(_) => "SentencePiece BPE",
        };
        write!(f, "Tokenizer({kind}, {} ids)", self.vocab_size())
    }
}

impl Tokenizer {
    /// Encodes text of a caller: literals of control tokens in it are ordinary text.
    ///
    /// # Errors
    /// [`Error::Encode`] for a text above [`MAX_TEXT_BYTES`], or when a hostile pattern of the tokenizer's file needs
    /// more steps than allowed.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_trusting(text, &Trust::none())
    }

    /// Encodes trusted text: literals of control tokens become those tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_trusting(text, &Trust::all(text.len()))
    }

    /// Encodes the pieces as one string in which only trusted parts may hold control tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_marked(&self, pieces: &[Piece<'_>]) -> Result<Vec<u32>> {
        let mut text = String::new();
        let mut trust = Trust::none();
        for piece in pieces {
            let start = text.len();
            text.push_str(piece.text);
            if piece.trusted {
                trust.push(start..text.len());
            }
        }
        self.encode_trusting(&text, &trust)
    }

    fn encode_trusting(&self, text: &str, trust: &Trust) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::Encode(format!("{} bytes (expected at most {MAX_TEXT_BYTES})", text.len())));
        }
        let inner = &*self.0;
        let mut out = Vec::with_capacity(text.len() / 3 + 1);
        let uniform = trust.uniform(text.len());
        let matcher = if uniform.is_some() { &inner.raw } else { &inner.raw_mixed };
        for part in matcher.split(text, trust) {
            let range = match part {
                Part::Token(id) => {
                    out.push(id);
                    continue;
                }
                Part::Text(range) => range,
            };
            let (at_start, segment) = (range.start == 0, &text[range.clone()]);
            match &inner.model {
                Model::SentencePiece(sp) => sp.encode(segment, &trust.within(&range), at_start, &mut out)?,
                Model::Bpe(bpe) => {
                    let segment = bpe.normalize(segment)?;
                    if inner.normalized.is_empty() {
                        bpe.encode(segment, at_start, &mut out)?;
                        continue;
                    }
                    let trust = if uniform == Some(true) { Trust::all(segment.len()) } else { Trust::none() };
                    for part in inner.normalized.split(&segment, &trust) {
                        match part {
                            Part::Token(id) => out.push(id),
                            Part::Text(r) => {
                                let first = at_start && r.start == 0;
                                bpe.encode(Cow::Borrowed(&segment[r]), first, &mut out)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    /// The text of ids that begin a text. Control tokens are written out; what is no UTF-8 becomes U+FFFD; ids outside
    /// the vocabulary too. The space that SentencePiece puts before a text is taken away again; nothing else is cleaned.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.text(ids, false, true)
    }

    /// As [`Tokenizer::decode`], leaving special tokens out.
    pub fn decode_skipping_special(&self, ids: &[u32]) -> String {
        self.text(ids, true, true)
    }

    /// The text of ids that go on where others ended: a leading space stays.
    pub fn decode_continuation(&self, ids: &[u32]) -> String {
        self.text(ids, false, false)
    }

    fn text(&self, ids: &[u32], skip_special: bool, from_start: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut strip = from_start && self.0.strip_prefix;
        for &id in ids {
            if skip_special && self.is_special(id) {
                continue;
            }
            let mut token = self.token_bytes(id).unwrap_or("\u{FFFD}".as_bytes());
            if strip && self.kind(id) != Some(TokenKind::Control) {
                token = token.strip_prefix(b" ").unwrap_or(token);
                strip = false;
            }
            bytes.extend_from_slice(token);
        }
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// A decoder for ids that arrive one by one; special tokens are left out, and half a character is never given.
    pub fn stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone(), true)
    }

    /// As [`Tokenizer::stream`], with special tokens written out.
    pub fn stream_with_special(&self) -> DecodeStream {
        DecodeStream::new(self.clone(), false)
    }

    /// One more than the largest id. A model's embedding may have more rows; they stand for nothing.
    pub fn vocab_size(&self) -> usize {
        self.0.entries.len()
    }

    /// The token's spelling in its file (`▁the`, `Ġthe`).
    pub fn token(&self, id: u32) -> Option<&str> {
        self.0.entries.get(id as usize)?.as_ref().map(|e| &*e.text)
    }

    /// The bytes that the token adds to a text.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.entries.get(id as usize)?.as_ref().map(|e| &*e.bytes)
    }

    /// What the token is; `None` for an id that stands for nothing.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.0.entries.get(id as usize)?.as_ref().map(|e| e.kind)
    }

    /// The id of a token by its spelling in the file.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.by_text.get(token).copied()
    }

    /// True for tokens that [`Tokenizer::decode_skipping_special`] leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.entries.get(id as usize).and_then(Option::as_ref).is_some_and(|e| e.special)
    }

    /// True for tokens that no caller's text can become.
    pub fn is_control(&self, id: u32) -> bool {
        self.0.control.contains(&id)
    }

    /// The id with a role, by the role's key in `tokenizer_config.json`: `"cls_token"`, `"sep_token"`, ….
    pub fn role(&self, key: &str) -> Option<u32> {
        self.0.roles.get(key).copied()
    }

    /// All roles with their literals, for chat templates.
    pub fn roles(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.roles.iter().filter_map(|(role, id)| Some((role.as_str(), self.token(*id)?)))
    }

    /// Beginning of text.
    pub fn bos(&self) -> Option<u32> {
        self.role("bos_token")
    }

    /// End of text.
    pub fn eos(&self) -> Option<u32> {
        self.role("eos_token")
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.role("pad_token")
    }

    /// What unknown text becomes.
    pub fn unk(&self) -> Option<u32> {
        self.0.unknown
    }

    /// True when the files say that a text begins with bos. The encoders here never add it.
    pub fn adds_bos(&self) -> bool {
        self.0.adds_bos && self.bos().is_some()
    }

    /// True when the files say that a text ends with eos. The encoders here never add it.
    pub fn adds_eos(&self) -> bool {
        self.0.adds_eos && self.eos().is_some()
    }

    /// The added tokens.
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.0.added
    }

    /// The chat template's source that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_template.as_deref()
    }
}

/// Bytes from outside as text: what is no UTF-8 becomes U+FFFD, and a byte-order mark at the front is dropped.
pub fn text_from_bytes(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes))
}
