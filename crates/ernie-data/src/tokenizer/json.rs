//! Reads a `tokenizer.json` (the format of the `tokenizers` library).
//!
//! The parts with meaning for BPE models are read into our own types, so that every look-up is checked here and every
//! pattern runs under [`super::guarded_regex`]; other models, and steps that would change ids without being
//! understood, are refused by name. Unicode normal forms run in the library itself.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;

use super::added::AddedToken;
use super::bpe::Symbol;
use super::build::{Entry, Model, Parts, looks_like_control};
use super::guarded_regex::{GuardedRegex, one_line, shorten};
use super::hf_bpe::{HfBpe, Normalize};
use super::pretokenize::{Behavior, GPT2_PATTERN, Pattern, Prepend, Step};
use super::{Map, TokenKind, byte_level};

type Outcome<T> = std::result::Result<T, String>;

/// What the file holds.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(default)]
    pub(super) added_tokens: Vec<Added>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: BpeFile,
}

/// A token beside the model.
#[derive(Deserialize, Serialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    pub(super) normalized: Option<bool>,
    #[serde(default)]
    pub(super) special: bool,
}

/// The model.
#[derive(Default, Deserialize)]
pub(super) struct BpeFile {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    vocab: Vocabulary,
    #[serde(default)]
    merges: Vec<Merge>,
}

impl BpeFile {
    /// A model of these tokens and merges, which may look whole words up first.
    pub(super) fn new(tokens: Map<Arc<str>, u32>, merges: Vec<Merge>, ignore_merges: bool) -> Self {
        let vocab = Vocabulary { tokens, is_list: false };
        Self { kind: Some("BPE".to_owned()), vocab, merges, ignore_merges, ..Self::default() }
    }
}

/// `{"token": id}` for BPE; Unigram writes a list here, which is only noticed.
#[derive(Default)]
struct Vocabulary {
    tokens: Map<Arc<str>, u32>,
    is_list: bool,
}

/// A token of the vocabulary, without a string of its own on the way.
struct Token(Arc<str>);

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Token;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Token, E> {
                Ok(Token(text.into()))
            }
        }
        deserializer.deserialize_str(V)
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Vocabulary;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tokens to ids")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut tokens = Map::default();
                while let Some((Token(token), id)) = map.next_entry::<Token, u32>()? {
                    if let Some(before) = tokens.insert(token, id)
                        && before != id
                    {
                        return Err(de::Error::custom(format!("a token stands twice, for {before} and for {id}")));
                    }
                }
                Ok(Vocabulary { tokens, is_list: false })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocabulary, A::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Vocabulary { is_list: true, ..Vocabulary::default() })
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// `"a b"` or `["a", "b"]`: what it makes, and the bytes of it that are the left one's.
pub(super) struct Merge {
    whole: String,
    cut: usize,
}

impl Merge {
    /// Reads `"a b"`.
    pub(super) fn read(text: &str) -> Outcome<Self> {
        match text.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => Ok(Self::of(a, b)),
            _ => Err(format!("merge {:?} is not two tokens", shorten(text))),
        }
    }

    fn of(left: &str, right: &str) -> Self {
        let mut whole = String::with_capacity(left.len() + right.len());
        whole.push_str(left);
        whole.push_str(right);
        Self { whole, cut: left.len() }
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge, E> {
                Merge::read(text).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let (left, right) = (seq.next_element::<String>()?, seq.next_element::<String>()?);
                match (left, right, seq.next_element::<de::IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge::of(&left, &right)),
                    _ => Err(de::Error::custom("a merge is not two tokens")),
                }
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// Only the model's name, for files whose model does not read as BPE.
#[derive(Deserialize)]
struct Kind {
    model: KindModel,
}

#[derive(Deserialize)]
struct KindModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Reads the file's bytes.
pub(super) fn read(bytes: &[u8]) -> Outcome<Parts> {
    if let Ok(Kind { model: KindModel { kind: Some(kind) } }) = serde_json::from_slice::<Kind>(bytes)
        && kind != "BPE"
    {
        return Err(format!("model type {:?} is not supported (expected BPE)", shorten(&kind)));
    }
    build(serde_json::from_slice(bytes).map_err(|e| one_line(&e.to_string()))?)
}

/// Builds the model and checks it.
pub(super) fn build(file: File) -> Outcome<Parts> {
    let model = &file.model;
    if model.vocab.is_list || (model.kind.is_none() && model.merges.is_empty()) {
        return Err("the model is not BPE (Unigram, WordPiece and WordLevel are not supported)".into());
    }
    if model.dropout.is_some_and(|p| p != 0.0) {
        return Err("model.dropout is set (expected none: ids must not depend on chance)".into());
    }
    for (name, value) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if value.as_deref().is_some_and(|v| !v.is_empty()) {
            return Err(format!("model.{name} is not supported"));
        }
    }
    let normalizers = normalizers(&file.normalizer)?;
    let mut steps = Vec::new();
    let is_byte_level = pre_tokenizer(&file.pre_tokenizer, &mut steps, true)?;
    let decoder = Decoder::read(&file.decoder)?;
    parts(file, normalizers, steps, is_byte_level, decoder)
}

fn parts(
    file: File,
    normalizers: Vec<Normalize>,
    steps: Vec<Step>,
    is_byte_level: bool,
    decoder: Decoder,
) -> Outcome<Parts> {
    let model = file.model;
    let mut parts = Parts::default();
    let vocabulary = model.vocab.tokens;
    let count = vocabulary.len() + file.added_tokens.len();
    for (token, id) in &vocabulary {
        let (bytes, kind) = decoder.bytes(token);
        parts.put(*id, Entry::new(token.clone(), bytes, kind), count)?;
    }
    let find = |token: &str, what: &str| {
        vocabulary.get(token).copied().ok_or_else(|| format!("{what} {:?} is not in the vocabulary", shorten(token)))
    };
    let mut merges = Map::with_capacity_and_hasher(model.merges.len(), Default::default());
    for (rank, Merge { whole, cut }) in model.merges.iter().enumerate() {
        let rank = u32::try_from(rank).map_err(|_| "too many merges")?;
        let (left, right) = whole.split_at(*cut);
        let pair = (find(left, "merge of")?, find(right, "merge of")?);
        merges.insert(pair, (rank, find(whole, "result of a merge")?));
    }
    let unknown = match &model.unk_token {
        Some(token) => match vocabulary.get(token.as_str()) {
            Some(id) => Some(*id),
            None => match file.added_tokens.iter().find(|t| &t.content == token) {
                Some(added) => Some(added.id),
                None => return Err(format!("model.unk_token {:?} is not in the vocabulary", shorten(token))),
            },
        },
        None => None,
    };
    let table = |text: &dyn Fn(u8) -> String| {
        let ids: Vec<u32> =
            (0..=255).map(|b| vocabulary.get(text(b).as_str()).copied().unwrap_or(Symbol::UNKNOWN)).collect();
        ids.try_into().ok().map(Box::new)
    };
    let byte_level = is_byte_level.then(|| table(&|b| byte_level::to_char(b).to_string())).flatten();
    let byte_fallback = model.byte_fallback.then(|| table(&|b| format!("<0x{b:02X}>"))).flatten();

    for token in file.added_tokens {
        if token.content.is_empty() {
            continue;
        }
        if vocabulary.get(token.content.as_str()).is_some_and(|id| *id != token.id) {
            return Err(format!(
                "added token {:?} has id {} there and another in the vocabulary",
                shorten(&token.content),
                token.id
            ));
        }
        parts.add(
            AddedToken {
                control: token.special || looks_like_control(&token.content),
                normalized: token.normalized.unwrap_or(!token.special),
                id: token.id,
                content: token.content,
                special: token.special,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                single_word: token.single_word,
            },
            count,
        )?;
    }
    parts.unknown = unknown;
    parts.strip_prefix = decoder.strips_prefix;
    (parts.first_special, parts.last_special) = post_processor(&file.post_processor);
    parts.model = Some(Model::Bpe(HfBpe {
        normalizers,
        steps,
        vocabulary,
        merges,
        byte_level,
        byte_fallback,
        unknown,
        fuse_unknown: model.fuse_unk,
        ignore_merges: model.ignore_merges,
    }));
    Ok(parts)
}

fn kind_of(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

fn flag(value: &Value, key: &str, default: bool) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(default)
}

fn text<'a>(value: &'a Value, key: &str) -> Outcome<&'a str> {
    value.get(key).and_then(Value::as_str).ok_or_else(|| format!("{}: {key} is missing or no text", kind_of(value)))
}

fn members<'a>(value: &'a Value, key: &str) -> Outcome<&'a [Value]> {
    let list = value.get(key).and_then(Value::as_array).ok_or_else(|| format!("Sequence: {key} is missing"))?;
    if list.len() > 64 {
        return Err(format!("Sequence of {} steps (expected at most 64)", list.len()));
    }
    Ok(list)
}

fn normalizers(value: &Value) -> Outcome<Vec<Normalize>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    Ok(match kind_of(value) {
        "Sequence" => {
            let mut out = Vec::new();
            for member in members(value, "normalizers")? {
                out.extend(normalizers(member)?);
            }
            out
        }
        "Prepend" => vec![Normalize::Prepend(text(value, "prepend")?.to_owned())],
        "Replace" => {
            let content = text(value, "content")?.to_owned();
            vec![match pattern(value)? {
                Pattern::Literal(from) => Normalize::Replace(from, content),
                Pattern::Regex(regex) => Normalize::ReplaceRegex(regex, content),
                Pattern::Chars(_) => return Err("Replace: pattern is no text".into()),
            }]
        }
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "Strip" | "StripAccents" | "Nmt" | "BertNormalizer" => {
            let wrapper = NormalizerWrapper::deserialize(value)
                .map_err(|e| format!("normalizer {}: {}", kind_of(value), one_line(&e.to_string())))?;
            vec![Normalize::Library(Box::new(wrapper))]
        }
        other => return Err(format!("normalizer {:?} is not supported", shorten(other))),
    })
}

fn pattern(value: &Value) -> Outcome<Pattern> {
    let pattern = value.get("pattern").unwrap_or(&Value::Null);
    if let Some(literal) = pattern.get("String").and_then(Value::as_str) {
        return Ok(Pattern::Literal(literal.to_owned()));
    }
    match pattern.get("Regex").and_then(Value::as_str) {
        Some(regex) => Ok(Pattern::Regex(GuardedRegex::new(regex)?)),
        None => Err(format!("{}: pattern is missing (expected String or Regex)", kind_of(value))),
    }
}

fn behavior(value: &Value) -> Outcome<Behavior> {
    Ok(match value.get("behavior").and_then(Value::as_str).unwrap_or("Isolated") {
        "Removed" => Behavior::Removed,
        "Isolated" => Behavior::Isolated,
        "Contiguous" => Behavior::Contiguous,
        "MergedWithPrevious" => Behavior::MergedWithPrevious,
        "MergedWithNext" => Behavior::MergedWithNext,
        other => return Err(format!("behavior {:?} is not known", shorten(other))),
    })
}

/// Appends the steps; true when the last one is byte-level.
fn pre_tokenizer(value: &Value, steps: &mut Vec<Step>, last: bool) -> Outcome<bool> {
    if value.is_null() {
        return Ok(false);
    }
    let chars = |is, behavior| Step::Split { pattern: Pattern::Chars(is), behavior, invert: false };
    match kind_of(value) {
        "Sequence" => {
            let list = members(value, "pretokenizers")?;
            let mut byte_level = false;
            for (i, member) in list.iter().enumerate() {
                byte_level |= pre_tokenizer(member, steps, last && i + 1 == list.len())?;
            }
            return Ok(byte_level);
        }
        "ByteLevel" => {
            if !last {
                return Err("pre-tokenizer ByteLevel must be the last step".into());
            }
            if flag(value, "add_prefix_space", true) {
                steps.push(Step::PrefixSpace);
            }
            if flag(value, "use_regex", true) {
                let regex = GuardedRegex::new(GPT2_PATTERN)?;
                steps.push(Step::Split { pattern: Pattern::Regex(regex), behavior: Behavior::Isolated, invert: false });
            }
            return Ok(true);
        }
        "Split" => steps.push(Step::Split {
            pattern: pattern(value)?,
            behavior: behavior(value)?,
            invert: flag(value, "invert", false),
        }),
        "Digits" => steps.push(chars(
            char::is_numeric,
            if flag(value, "individual_digits", false) { Behavior::Isolated } else { Behavior::Contiguous },
        )),
        "WhitespaceSplit" => steps.push(chars(char::is_whitespace, Behavior::Removed)),
        "Whitespace" => steps.push(Step::Split {
            pattern: Pattern::Regex(GuardedRegex::new(r"\w+|[^\w\s]+")?),
            behavior: Behavior::Removed,
            invert: true,
        }),
        "Punctuation" => steps.push(Step::Split {
            pattern: Pattern::Regex(GuardedRegex::new(r"[\p{P}$+<=>^`|~]")?),
            behavior: behavior(value)?,
            invert: false,
        }),
        "Metaspace" => {
            let mark = single_char(value, "replacement")?;
            let prepend = match value.get("prepend_scheme").and_then(Value::as_str) {
                Some("always") => Prepend::Always,
                Some("first") => Prepend::First,
                Some("never") => Prepend::Never,
                Some(other) => return Err(format!("prepend_scheme {:?} is not known", shorten(other))),
                None if flag(value, "add_prefix_space", true) => Prepend::Always,
                None => Prepend::Never,
            };
            steps.push(Step::Metaspace { mark, prepend, split: flag(value, "split", true) });
        }
        other => return Err(format!("pre-tokenizer {:?} is not supported", shorten(other))),
    }
    Ok(false)
}

fn single_char(value: &Value, key: &str) -> Outcome<char> {
    let text = text(value, key)?;
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(format!("{}: {key} is not one character", kind_of(value))),
    }
}

/// What a `TemplateProcessing` puts before and after one text.
fn post_processor(value: &Value) -> (Option<String>, Option<String>) {
    match kind_of(value) {
        "Sequence" => {
            let members = value.get("processors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            members
                .iter()
                .take(16)
                .filter(|m| kind_of(m) == "TemplateProcessing")
                .map(post_processor)
                .next_back()
                .unwrap_or_default()
        }
        "TemplateProcessing" => {
            let single = value.get("single").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let special = |item: Option<&Value>| {
                item.and_then(|i| i.pointer("/SpecialToken/id")).and_then(Value::as_str).map(str::to_owned)
            };
            (special(single.first()), special(single.last()))
        }
        _ => (None, None),
    }
}

/// How a token's spelling becomes bytes.
#[derive(Default)]
struct Decoder {
    byte_level: bool,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    strips_prefix: bool,
}

impl Decoder {
    fn read(value: &Value) -> Outcome<Self> {
        let mut this = Self::default();
        this.add(value)?;
        Ok(this)
    }

    fn add(&mut self, value: &Value) -> Outcome<()> {
        if value.is_null() {
            return Ok(());
        }
        match kind_of(value) {
            "Sequence" => members(value, "decoders")?.iter().try_for_each(|m| self.add(m))?,
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace" => match pattern(value)? {
                Pattern::Literal(from) if !from.is_empty() => {
                    self.replace.push((from, text(value, "content")?.to_owned()));
                }
                _ => return Err("decoder Replace: expected a literal pattern".into()),
            },
            "Strip" => {
                let count = |key| value.get(key).and_then(Value::as_u64).unwrap_or(0);
                if text(value, "content")? != " " || count("start") > 1 || count("stop") > 0 {
                    return Err("decoder Strip: only one leading space is supported".into());
                }
                self.strips_prefix |= count("start") == 1;
            }
            "Metaspace" => {
                self.replace.push((single_char(value, "replacement")?.to_string(), " ".into()));
                let scheme = value.get("prepend_scheme").and_then(Value::as_str);
                self.strips_prefix |= scheme.map_or_else(|| flag(value, "add_prefix_space", true), |s| s != "never");
            }
            other => return Err(format!("decoder {:?} is not supported", shorten(other))),
        }
        Ok(())
    }

    fn bytes(&self, token: &str) -> (Vec<u8>, TokenKind) {
        if self.byte_fallback
            && let Some(byte) = byte_piece(token)
        {
            return (vec![byte], TokenKind::Byte);
        }
        if self.byte_level
            && let Some(bytes) = byte_level::bytes_of(token)
        {
            return (bytes, TokenKind::Normal);
        }
        let mut text = token.to_owned();
        for (from, to) in &self.replace {
            text = text.replace(from.as_str(), to);
        }
        (text.into_bytes(), TokenKind::Normal)
    }
}

/// `<0x41>` → 0x41. Exactly two hexadecimal digits.
pub(super) fn byte_piece(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u8::from_str_radix(digits, 16).ok())?
}
