//! What every reader produces, and the one place where it becomes a [`Tokenizer`].
//!
//! Here the control tokens are decided: special added tokens, the tokens with a role (bos, eos, pad, cls, …; not unk),
//! and literals in angle or square brackets. The models are then told to never produce them from plain text.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::added::{AddedToken, MAX_LITERAL_BYTES, Matcher};
use super::guarded_regex::shorten;
use super::hf_bpe::HfBpe;
use super::sentencepiece::SentencePiece;
use super::side::Side;
use super::{Inner, Map, TokenKind, Tokenizer};

type Outcome<T> = std::result::Result<T, String>;

/// The two ways of cutting text into tokens.
pub(super) enum Model {
    Bpe(HfBpe),
    SentencePiece(SentencePiece),
}

/// One vocabulary entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) text: Arc<str>,
    pub(super) bytes: Box<[u8]>,
    pub(super) kind: TokenKind,
    /// Left out by a decoder that skips special tokens.
    pub(super) special: bool,
}

impl Entry {
    pub(super) fn new(text: impl Into<Arc<str>>, bytes: Vec<u8>, kind: TokenKind) -> Self {
        Self { text: text.into(), bytes: bytes.into_boxed_slice(), kind, special: kind == TokenKind::Control }
    }
}

/// A tokenizer in the making.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) added: Vec<AddedToken>,
    added_index: HashMap<u32, usize>,
    pub(super) model: Option<Model>,
    pub(super) unknown: Option<u32>,
    /// Ids by role (`bos_token`, …) that the model file itself names.
    pub(super) roles: BTreeMap<String, u32>,
    pub(super) strip_prefix: bool,
    /// What the post-processor puts around a text.
    pub(super) first_special: Option<String>,
    pub(super) last_special: Option<String>,
    /// Whether a text begins with bos, ends with eos (GGUF keys).
    pub(super) adds_bos: Option<bool>,
    pub(super) adds_eos: Option<bool>,
    /// A template that the model file itself holds.
    pub(super) chat_template: Option<String>,
    /// Files as they were read, to be written again.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

impl Parts {
    /// Puts an entry at `id`. `count` bounds how far ids may run ahead of the number of tokens, so that a small file
    /// cannot ask for a large table.
    pub(super) fn put(&mut self, id: u32, entry: Entry, count: usize) -> Outcome<()> {
        let limit = count.saturating_mul(4).saturating_add(1 << 16).min(1 << 24);
        let at = id as usize;
        if at >= limit {
            return Err(format!("token {:?} has id {id} (expected below {limit})", shorten(&entry.text)));
        }
        if self.entries.len() <= at {
            self.entries.resize(at + 1, None);
        }
        let slot = &mut self.entries[at];
        if let Some(there) = slot {
            return Err(format!("id {id} stands for both {:?} and {:?}", shorten(&there.text), shorten(&entry.text)));
        }
        *slot = Some(entry);
        Ok(())
    }

    /// Adds an added token, or changes the flags of one already there.
    pub(super) fn add(&mut self, token: AddedToken, count: usize) -> Outcome<()> {
        if token.content.len() > MAX_LITERAL_BYTES {
            return Err(format!(
                "added token {:?} has {} bytes (expected at most {MAX_LITERAL_BYTES})",
                shorten(&token.content),
                token.content.len()
            ));
        }
        match self.entries.get_mut(token.id as usize).and_then(Option::as_mut) {
            Some(entry) if *entry.text == *token.content => {
                entry.special |= token.special;
                if entry.kind != TokenKind::Unknown {
                    entry.kind = if token.control { TokenKind::Control } else { TokenKind::Added };
                    entry.bytes = token.content.as_bytes().into();
                }
            }
            Some(entry) => {
                return Err(format!(
                    "added token {:?} has id {}, which is {:?}",
                    shorten(&token.content),
                    token.id,
                    shorten(&entry.text)
                ));
            }
            None => {
                let kind = if token.control { TokenKind::Control } else { TokenKind::Added };
                let mut entry = Entry::new(token.content.as_str(), token.content.as_bytes().to_vec(), kind);
                entry.special = token.special;
                self.put(token.id, entry, count)?;
            }
        }
        match self.added_index.get(&token.id) {
            Some(&at) => self.added[at] = token,
            None => {
                self.added_index.insert(token.id, self.added.len());
                self.added.push(token);
            }
        }
        Ok(())
    }

    /// The end of every reader.
    pub(super) fn finish(mut self, side: Side) -> Outcome<Tokenizer> {
        let count = self.entries.len() + side.added.len();
        for token in side.added {
            self.add(token, count)?;
        }
        let mut by_text: Map<Arc<str>, u32> = Map::with_capacity_and_hasher(self.entries.len(), Default::default());
        for (id, entry) in self.entries.iter().enumerate() {
            if let Some(entry) = entry {
                by_text.entry(entry.text.clone()).or_insert(id as u32);
            }
        }
        // An added token outranks an ordinary entry of the same spelling.
        for token in &self.added {
            by_text.insert(token.content.as_str().into(), token.id);
        }
        let mut roles = self.roles;
        for (role, content) in &side.roles {
            match by_text.get(content.as_str()) {
                Some(id) => drop(roles.insert(role.clone(), *id)),
                // Published files name tokens that this vocabulary lacks; only the roles that change ids matter.
                None => drop(roles.remove(role)),
            }
        }
        let mut control: HashSet<u32> = self.added.iter().filter(|t| t.control).map(|t| t.id).collect();
        control.extend(roles.iter().filter(|(role, _)| *role != "unk_token").map(|(_, id)| *id));
        control.extend(side.additional_special.iter().filter_map(|t| by_text.get(t.as_str())));
        for (id, entry) in self.entries.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            if entry.kind == TokenKind::Control {
                control.insert(id as u32);
            } else if control.contains(&(id as u32)) {
                entry.special = true;
                if entry.kind != TokenKind::Unknown {
                    entry.kind = TokenKind::Control;
                    entry.bytes = entry.text.as_bytes().into();
                }
            }
        }

        // Every control token is recognised in trusted text, listed as added token or not.
        let listed: HashSet<u32> = self.added.iter().map(|t| t.id).collect();
        let mut unlisted: Vec<u32> = control.iter().copied().filter(|id| !listed.contains(id)).collect();
        unlisted.sort_unstable();
        for id in unlisted {
            let Some(entry) = self.entries.get(id as usize).and_then(Option::as_ref) else { continue };
            let found_by_model = matches!(&self.model, Some(Model::SentencePiece(sp)) if sp.is_symbol(id));
            if found_by_model || entry.text.is_empty() || entry.text.len() > MAX_LITERAL_BYTES {
                continue;
            }
            self.added.push(AddedToken::plain(id, &entry.text, true));
        }
        let mut model = self.model.ok_or("the file holds no model")?;
        let (mut raw, mut raw_mixed, mut normalized) = (Matcher::default(), Matcher::default(), Matcher::default());
        for token in &mut self.added {
            token.control |= control.contains(&token.id);
            let normalizes = matches!(&model, Model::Bpe(bpe) if token.normalized && !bpe.normalizers.is_empty());
            if normalizes {
                let Model::Bpe(bpe) = &model else { continue };
                let literal = bpe.normalize(&token.content).map_err(|e| e.to_string())?.into_owned();
                if token.control {
                    raw_mixed.add(&token.content, token.clone());
                }
                if !literal.is_empty() {
                    normalized.add(&literal, token.clone());
                }
            } else {
                raw.add(&token.content, token.clone());
                raw_mixed.add(&token.content, token.clone());
            }
        }
        match &mut model {
            Model::Bpe(bpe) => bpe.forbid(&control),
            Model::SentencePiece(sp) => sp.forbid(&control, side.add_prefix_space, side.legacy),
        }
        let role = |name: &str| roles.get(name).copied();
        let names = |content: &Option<String>, id: Option<u32>| {
            content.as_deref().is_some_and(|c| id.is_some() && by_text.get(c).copied() == id)
        };
        let adds_bos = side.adds_bos.or(self.adds_bos).unwrap_or_else(|| names(&self.first_special, role("bos_token")));
        let adds_eos = side.adds_eos.or(self.adds_eos).unwrap_or_else(|| names(&self.last_special, role("eos_token")));
        let unknown = role("unk_token").or(self.unknown);
        let mut files = self.files;
        files.extend(side.files);
        Ok(Tokenizer(Arc::new(Inner {
            entries: self.entries,
            by_text,
            added: self.added,
            raw,
            raw_mixed,
            normalized,
            strip_prefix: match &model {
                Model::Bpe(_) => self.strip_prefix,
                Model::SentencePiece(sp) => sp.adds_prefix(),
            },
            model,
            roles,
            control,
            unknown,
            adds_bos,
            adds_eos,
            chat_template: side.chat_template.or(self.chat_template),
            files,
        })))
    }
}

impl AddedToken {
    /// A token without flags.
    pub(super) fn plain(id: u32, content: &str, special: bool) -> Self {
        Self {
            id,
            content: content.to_owned(),
            special,
            control: special || looks_like_control(content),
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
        }
    }
}

/// `<think>`, `<|im_end|>`, `[INST]`: written to be read by a model, not by people. Some files fail to mark such
/// tokens as special; a caller must not be able to type them all the same.
pub(super) fn looks_like_control(content: &str) -> bool {
    let inner = content.strip_prefix('<').and_then(|c| c.strip_suffix('>'));
    let inner = inner.or_else(|| content.strip_prefix('[').and_then(|c| c.strip_suffix(']')));
    inner.is_some_and(|inner| !inner.is_empty())
}
