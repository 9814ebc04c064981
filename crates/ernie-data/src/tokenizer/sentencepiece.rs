//! SentencePiece BPE: reads a `tokenizer.model` and cuts text as the C++ library does, id for id.
//!
//! Three steps: normalise (compiled rules, white space, the `▁` mark), split into characters and user-defined symbols,
//! merge by piece score. Unknown characters become bytes (byte fallback) or one unknown token for a run. Control pieces
//! never come out of text. Kudo and Richardson, arXiv:1808.06226; Sennrich et al., arXiv:1508.07909.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prost::Message;

use super::added::{AddedToken, Trie, Trust};
use super::bpe::{Symbol, merge};
use super::build::{Entry, Model, Parts, looks_like_control};
use super::charsmap::Charsmap;
use super::guarded_regex::{one_line, shorten};
use super::json::byte_piece;
use super::{MAX_TEXT_BYTES, Map, TokenKind};
use crate::{Error, Result};

/// The visible mark that stands for a space.
pub(super) const MARK: &str = "▁";

/// The fields of `sentencepiece_model.proto` that have meaning here.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer: Option<NormalizerProto>,
}

/// One vocabulary entry.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PieceProto {
    #[prost(string, optional, tag = "1")]
    pub(super) piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub(super) score: Option<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

/// How the model was trained; what the encoder needs of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerProto {
    /// 1 unigram (the default), 2 BPE, 3 word, 4 char.
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    pub(super) treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    pub(super) byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    pub(super) unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    pub(super) bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    pub(super) eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pub(super) pad_id: Option<i32>,
    #[prost(string, optional, tag = "44")]
    pub(super) unk_surface: Option<String>,
    #[prost(string, optional, tag = "46")]
    pub(super) bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    pub(super) eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pub(super) pad_piece: Option<String>,
}

/// How text is normalised.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerProto {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    pub(super) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(super) remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub(super) escape_whitespaces: Option<bool>,
}

/// See the module.
pub(super) struct SentencePiece {
    /// Normal, user-defined and unused pieces → (id, score).
    pieces: Map<Arc<str>, (u32, f32)>,
    unused: HashSet<u32>,
    /// User-defined symbols, by id; those that look like control tokens need trust.
    symbols: Trie,
    user_defined: Vec<(Box<str>, u32)>,
    control_symbols: HashSet<u32>,
    charsmap: Charsmap,
    unknown: u32,
    byte_fallback: Option<Box<[u32; 256]>>,
    prefix: bool,
    /// The prefix also follows control tokens (`legacy` of the Python class).
    prefix_everywhere: bool,
    as_suffix: bool,
    remove_extra: bool,
    escape: bool,
}

/// Reads the file's bytes.
pub(super) fn read(bytes: &[u8]) -> std::result::Result<Parts, String> {
    let proto =
        ModelProto::decode(bytes).map_err(|e| format!("not a SentencePiece model: {}", one_line(&e.to_string())))?;
    from_proto(&proto)
}

/// Builds the model and checks it.
pub(super) fn from_proto(proto: &ModelProto) -> std::result::Result<Parts, String> {
    let trainer = proto.trainer.clone().unwrap_or_default();
    let normalizer = proto.normalizer.clone().unwrap_or_default();
    match trainer.model_type.unwrap_or(1) {
        2 => {}
        1 => return Err("SentencePiece model type Unigram is not supported (expected BPE)".into()),
        3 => return Err("SentencePiece model type Word is not supported (expected BPE)".into()),
        4 => return Err("SentencePiece model type Char is not supported (expected BPE)".into()),
        other => return Err(format!("SentencePiece model type {other} is not known (expected BPE)")),
    }
    let count = proto.pieces.len();
    if count == 0 {
        return Err("SentencePiece model without pieces".into());
    }
    let mut parts = Parts::default();
    let mut model = SentencePiece {
        pieces: Map::with_capacity_and_hasher(count, Default::default()),
        unused: HashSet::new(),
        symbols: Trie::default(),
        user_defined: Vec::new(),
        control_symbols: HashSet::new(),
        charsmap: Charsmap::read(normalizer.precompiled_charsmap.as_deref().unwrap_or_default())?,
        unknown: 0,
        byte_fallback: None,
        prefix: normalizer.add_dummy_prefix.unwrap_or(true),
        prefix_everywhere: true,
        as_suffix: trainer.treat_whitespace_as_suffix.unwrap_or(false),
        remove_extra: normalizer.remove_extra_whitespaces.unwrap_or(true),
        escape: normalizer.escape_whitespaces.unwrap_or(true),
    };
    let mut unknown = None;
    let mut byte_ids = vec![Symbol::UNKNOWN; 256];
    let mut seen: Map<&str, ()> = Map::with_capacity_and_hasher(count, Default::default());
    for (id, piece) in proto.pieces.iter().enumerate() {
        let text = piece.piece.as_deref().unwrap_or("");
        let at = || format!("piece {id} ({:?})", shorten(text));
        if text.is_empty() {
            return Err(format!("{}: empty piece", at()));
        }
        if seen.insert(text, ()).is_some() {
            return Err(format!("{}: stands twice", at()));
        }
        let id = u32::try_from(id).map_err(|_| "too many pieces")?;
        let score = piece.score.unwrap_or(0.0);
        if !score.is_finite() {
            return Err(format!("{}: score {score} is not finite", at()));
        }
        let plain = || text.replace(MARK, " ").into_bytes();
        let (bytes, kind) = match piece.kind.unwrap_or(1) {
            1 => (plain(), TokenKind::Normal),
            2 => {
                if unknown.replace(id).is_some() {
                    return Err(format!("{}: a second unknown piece", at()));
                }
                let surface = trainer.unk_surface.clone().unwrap_or_else(|| " \u{2047} ".into());
                (surface.into_bytes(), TokenKind::Unknown)
            }
            3 => (text.as_bytes().to_vec(), TokenKind::Control),
            4 => {
                if text.len() > super::added::MAX_LITERAL_BYTES {
                    return Err(format!("{}: user-defined symbol of {} bytes", at(), text.len()));
                }
                model.user_defined.push((text.into(), id));
                (plain(), if looks_like_control(text) { TokenKind::Control } else { TokenKind::Added })
            }
            5 => {
                model.unused.insert(id);
                (plain(), TokenKind::Unused)
            }
            6 => {
                let byte = byte_piece(text).ok_or_else(|| format!("{}: expected a byte such as <0x41>", at()))?;
                byte_ids[usize::from(byte)] = id;
                (vec![byte], TokenKind::Byte)
            }
            other => return Err(format!("{}: type {other} is not known", at())),
        };
        let shared: Arc<str> = text.into();
        if matches!(piece.kind.unwrap_or(1), 1 | 4 | 5) {
            model.pieces.insert(shared.clone(), (id, score));
        }
        let mut entry = Entry::new(shared, bytes, kind);
        // A user-defined symbol is text to read, even where a caller may not type it.
        entry.special = piece.kind == Some(3);
        parts.put(id, entry, count)?;
        if piece.kind == Some(3) {
            parts.add(AddedToken::plain(id, text, true), count)?;
        }
    }
    model.unknown = unknown.ok_or("SentencePiece model without an unknown piece")?;
    if trainer.byte_fallback.unwrap_or(false) {
        if let Some(missing) = byte_ids.iter().position(|id| *id == Symbol::UNKNOWN) {
            return Err(format!("byte fallback without the piece <0x{missing:02X}>"));
        }
        model.byte_fallback = byte_ids.try_into().ok().map(Box::new);
    }
    let by_name = |piece: &Option<String>, default: &str| {
        let name = piece.as_deref().unwrap_or(default);
        proto.pieces.iter().position(|p| p.kind == Some(3) && p.piece.as_deref() == Some(name))
    };
    let roles = [
        ("bos_token", by_name(&trainer.bos_piece, "<s>")),
        ("eos_token", by_name(&trainer.eos_piece, "</s>")),
        ("pad_token", by_name(&trainer.pad_piece, "<pad>")),
        ("unk_token", Some(model.unknown as usize)),
    ];
    parts.roles = roles.into_iter().filter_map(|(role, id)| Some((role.to_owned(), id? as u32))).collect();
    parts.unknown = Some(model.unknown);
    parts.model = Some(Model::SentencePiece(model));
    Ok(parts)
}

impl SentencePiece {
    /// Removes `control` from everything that text is matched against, except user-defined symbols, which stay
    /// findable where they are trusted; applies what `tokenizer_config.json` says about the prefix.
    pub(super) fn forbid(&mut self, control: &HashSet<u32>, add_prefix: Option<bool>, legacy: Option<bool>) {
        if add_prefix == Some(false) {
            self.prefix = false;
        }
        self.prefix_everywhere = legacy != Some(false);
        self.pieces.retain(|_, (id, _)| !control.contains(id));
        self.symbols = Trie::default();
        for (text, id) in &self.user_defined {
            self.symbols.insert(text.as_bytes(), *id);
            if control.contains(id) {
                self.control_symbols.insert(*id);
            }
        }
    }

    /// True for a user-defined symbol, which [`SentencePiece::encode`] finds by itself.
    pub(super) fn is_symbol(&self, id: u32) -> bool {
        self.user_defined.iter().any(|(_, symbol)| *symbol == id)
    }

    pub(super) fn adds_prefix(&self) -> bool {
        self.prefix
    }

    /// Tokenises a text between two added tokens; `trust` is that of this text.
    ///
    /// # Errors
    /// [`Error::Encode`] when normalisation makes the text too long.
    pub(super) fn encode(&self, text: &str, trust: &Trust, at_start: bool, out: &mut Vec<u32>) -> Result<()> {
        let prefix = self.prefix && (at_start || self.prefix_everywhere);
        let (normalized, control_at) = self.normalize(text, trust, prefix);
        if normalized.len() > 4 * MAX_TEXT_BYTES {
            return Err(Error::Encode(format!("{} bytes after normalisation", normalized.len())));
        }
        let text = normalized.as_str();
        let mut symbols = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            // Control symbols only where the text before normalisation was trusted.
            let found = self.symbols.longest(&text.as_bytes()[at..], |_, id| {
                !self.control_symbols.contains(&id) || control_at.contains(&(at, id))
            });
            let len = found.map_or_else(|| text[at..].chars().next().map_or(1, char::len_utf8), |(len, _)| len);
            symbols.push(Symbol::new(at, len, found.map_or(Symbol::UNKNOWN, |(_, id)| id), found.is_some()));
            at += len;
        }
        // Unused pieces take part in merging and are taken apart again afterwards.
        let mut halves: HashMap<&str, (&str, &str)> = HashMap::new();
        let merged = merge(symbols, |a, b| {
            let (start, middle) = (a.start as usize, b.start as usize);
            let end = middle + b.len as usize;
            let (id, score) = *self.pieces.get(&text[start..end])?;
            if self.unused.contains(&id) {
                halves.insert(&text[start..end], (&text[start..middle], &text[middle..end]));
            }
            Some((f64::from(score), id))
        });
        let mut unknown_before = false;
        let mut todo = Vec::new();
        for symbol in merged {
            if symbol.frozen {
                out.push(symbol.id);
                unknown_before = false;
                continue;
            }
            let start = symbol.start as usize;
            todo.push(&text[start..start + symbol.len as usize]);
            while let Some(piece) = todo.pop() {
                let id = self.pieces.get(piece).map(|(id, _)| *id);
                if let (Some(id), Some((left, right))) = (id, halves.get(piece))
                    && self.unused.contains(&id)
                {
                    todo.extend([right, left]);
                    continue;
                }
                match (id, &self.byte_fallback) {
                    (Some(id), _) => out.push(id),
                    (None, Some(bytes)) => out.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
                    (None, None) if unknown_before => {}
                    (None, None) => out.push(self.unknown),
                }
                unknown_before = id.is_none();
            }
        }
        Ok(())
    }

    /// The next normalised bit of `text[at..]`, how many bytes of it that took, and the control symbol it is.
    fn bit<'a>(&'a self, text: &'a str, at: usize, trust: &Trust) -> (&'a str, usize, Option<u32>) {
        let rest = &text[at..];
        let bytes = rest.as_bytes();
        let symbol =
            self.symbols.longest(bytes, |len, id| !self.control_symbols.contains(&id) || trust.covers(&(at..at + len)));
        if let Some((len, id)) = symbol {
            return (&rest[..len], len, Some(id).filter(|id| self.control_symbols.contains(id)));
        }
        if let Some((len, bit)) = self.charsmap.longest(bytes)
            && rest.is_char_boundary(len)
        {
            return (bit, len, None);
        }
        let len = rest.chars().next().map_or(0, char::len_utf8);
        (&rest[..len], len, None)
    }

    /// The normalised text, and where control symbols stand in it.
    fn normalize(&self, text: &str, trust: &Trust, prefix: bool) -> (String, HashSet<(usize, u32)>) {
        let mut at = 0;
        if self.remove_extra {
            while let (" ", len @ 1.., _) = self.bit(text, at, trust) {
                at += len;
            }
        }
        let mut out = String::with_capacity(text.len() + 16);
        let mut control_at = HashSet::new();
        if at == text.len() {
            return (out, control_at);
        }
        let space = if self.escape { MARK } else { " " };
        if prefix && !self.as_suffix {
            out.push_str(space);
        }
        let mut after_space = self.remove_extra;
        while at < text.len() {
            let (mut bit, len, control) = self.bit(text, at, trust);
            at += len;
            if after_space {
                bit = bit.trim_start_matches(' ');
            }
            if !bit.is_empty() {
                control_at.extend(control.map(|id| (out.len(), id)));
                if self.escape && bit.contains(' ') {
                    out.push_str(&bit.replace(' ', MARK));
                } else {
                    out.push_str(bit);
                }
                after_space = bit.ends_with(' ');
            }
            after_space &= self.remove_extra;
        }
        if self.remove_extra {
            out.truncate(out.trim_end_matches(space).len());
        }
        if prefix && self.as_suffix {
            out.push_str(space);
        }
        (out, control_at)
    }
}
