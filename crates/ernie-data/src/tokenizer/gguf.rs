//! The tokenizer inside a GGUF file, brought into one of the two published forms and read as that.
//!
//! `gpt2` (byte-level BPE) becomes a `tokenizer.json`, `llama` (SentencePiece BPE) a `tokenizer.model`; so there is one
//! reader for each kind, and a model loaded from a GGUF can be saved in the published layout. The pre-tokenizer is
//! named in the file; a name that is not known here is an error, since a guess would silently give other ids.

use std::sync::Arc;

use ernie_files::gguf::Gguf;
use prost::Message;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::guarded_regex::shorten;
use super::json::{self as json_file, Added, BpeFile, File, Merge};
use super::load::assemble;
use super::pretokenize::GPT2_PATTERN;
use super::sentencepiece::{ModelProto, NormalizerProto, PieceProto, TrainerProto};
use super::side::SideFiles;
use super::{Map, Tokenizer, sentencepiece};
use crate::{Error, Result};

/// What stands before every key of a tokenizer.
pub(super) const PREFIX: &str = "tokenizer.ggml.";

/// Pattern of Llama 3, and of Qwen 2 with `{1,3}` taken out.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama.cpp's own default, four cuts one after another.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]"];

/// The patterns of a pre-tokenizer by its name in the file, and whether whole words are looked up first.
fn patterns(name: &str) -> Option<(Vec<&'static str>, bool)> {
    Some(match name {
        "default" => (DEFAULT.to_vec(), false),
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "gigachat" | "trillion" | "granite-docling" => {
            (vec![GPT2_PATTERN], false)
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            (vec![r"\p{N}", GPT2_PATTERN], false)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "lfm2" => (vec![LLAMA3], true),
        "dbrx" | "smaug-bpe" => (vec![LLAMA3], false),
        "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" | "hunyuan" => (vec![QWEN2], false),
        _ => return None,
    })
}

/// A name in the file of a pre-tokenizer that cuts by these patterns.
pub(super) fn name_of(cuts: &[String], ignore_merges: bool) -> Option<&'static str> {
    let names = ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "default"];
    names.into_iter().find(|name| {
        patterns(name).is_some_and(|(known, ignores)| ignores == ignore_merges && known.iter().eq(cuts.iter()))
    })
}

fn wrong(key: &str, what: impl Into<String>) -> Error {
    Error::Tokenizer { at: format!("{PREFIX}{key}"), what: what.into() }
}

/// What every kind has.
struct Common<'a> {
    tokens: &'a [String],
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    kinds: Vec<i64>,
    /// Role → id.
    roles: Vec<(&'static str, u32)>,
    config: Value,
}

/// See the module.
pub(super) fn read(file: &Gguf) -> Result<Tokenizer> {
    let model =
        file.get_str(&key("model"))?.ok_or_else(|| wrong("model", "is missing: the file holds no tokenizer"))?;
    match model {
        "gpt2" => byte_level(file, common(file)?),
        "llama" => sentence_piece(file, common(file)?),
        other => Err(wrong("model", format!("{:?} is not supported (expected gpt2 or llama)", shorten(other)))),
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn common(file: &Gguf) -> Result<Common<'_>> {
    let tokens = file.get_strings(&key("tokens"))?.ok_or_else(|| wrong("tokens", "is missing"))?;
    if tokens.is_empty() || tokens.len() > 1 << 22 {
        return Err(wrong("tokens", format!("has {} entries (expected 1 to {})", tokens.len(), 1 << 22)));
    }
    let kinds = match file.get_i64s(&key("token_type"))? {
        Some(kinds) if kinds.len() != tokens.len() => {
            return Err(wrong("token_type", format!("has {} entries for {} tokens", kinds.len(), tokens.len())));
        }
        Some(kinds) => kinds,
        None => vec![1; tokens.len()],
    };
    if let Some(at) = kinds.iter().position(|k| !(0..=6).contains(k)) {
        return Err(wrong("token_type", format!("entry {at} is {} (expected 1 to 6)", kinds[at])));
    }
    let mut roles = Vec::new();
    let mut config = serde_json::Map::new();
    for (name, role) in [
        ("bos_token_id", "bos_token"),
        ("eos_token_id", "eos_token"),
        ("unknown_token_id", "unk_token"),
        ("padding_token_id", "pad_token"),
        ("cls_token_id", "cls_token"),
        ("seperator_token_id", "sep_token"),
        ("mask_token_id", "mask_token"),
    ] {
        let Some(id) = file.get_u32(&key(name))? else { continue };
        let Some(token) = tokens.get(id as usize) else {
            return Err(wrong(name, format!("is {id} (expected below {})", tokens.len())));
        };
        roles.push((role, id));
        config.insert(role.into(), token.clone().into());
    }
    for (name, flag) in [("add_bos_token", "add_bos_token"), ("add_eos_token", "add_eos_token")] {
        if let Some(value) = file.get_bool(&key(name))? {
            config.insert(flag.into(), value.into());
        }
    }
    if let Some(template) = file.get_str("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    Ok(Common { tokens, kinds, roles, config: Value::Object(config) })
}

fn byte_level(file: &Gguf, common: Common<'_>) -> Result<Tokenizer> {
    let name = file.get_str(&key("pre"))?.unwrap_or("default");
    let Some((patterns, ignore_merges)) = patterns(name) else {
        return Err(wrong("pre", format!("pre-tokenizer {:?} is not known", shorten(name))));
    };
    let merges = file.get_strings(&key("merges"))?.ok_or_else(|| wrong("merges", "is missing"))?;
    let mut vocab = Map::with_capacity_and_hasher(common.tokens.len(), Default::default());
    let mut added = Vec::new();
    for (id, (token, kind)) in (0..).zip(common.tokens.iter().zip(&common.kinds)) {
        if vocab.insert(Arc::from(token.as_str()), id).is_some() {
            return Err(wrong("tokens", format!("{:?} stands twice", shorten(token))));
        }
        let role = common.roles.iter().any(|(role, r)| *role != "unk_token" && *r == id);
        if matches!(kind, 3 | 4) || role {
            added.push(Added {
                id,
                content: token.clone(),
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: Some(false),
                special: *kind == 3 || role,
            });
        }
    }
    let splits = patterns
        .iter()
        .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let steps: Vec<Value> = splits.chain([byte_level.clone()]).collect();
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": steps});
    let document = Document {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: &added,
        normalizer: (),
        pre_tokenizer: &pre_tokenizer,
        post_processor: (),
        decoder: &byte_level,
        model: ModelDocument {
            kind: "BPE",
            dropout: (),
            unk_token: (),
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges,
            vocab: VocabularyDocument(common.tokens),
            merges,
        },
    };
    let bytes = serde_json::to_vec(&document).map_err(|e| Error::Internal(e.to_string()))?;
    let merges: std::result::Result<Vec<Merge>, String> = merges.iter().map(|merge| Merge::read(merge)).collect();
    let parts = merges.and_then(|merges| {
        json_file::build(File {
            added_tokens: added,
            normalizer: Value::Null,
            pre_tokenizer,
            post_processor: Value::Null,
            decoder: byte_level,
            model: BpeFile::new(vocab, merges, ignore_merges),
        })
    });
    finish(parts, "tokenizer.json", bytes, common.config)
}

/// The `tokenizer.json` that stands for a byte-level tokenizer.
#[derive(Serialize)]
struct Document<'a> {
    version: &'a str,
    truncation: (),
    padding: (),
    added_tokens: &'a [Added],
    normalizer: (),
    pre_tokenizer: &'a Value,
    post_processor: (),
    decoder: &'a Value,
    model: ModelDocument<'a>,
}

#[derive(Serialize)]
struct ModelDocument<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    dropout: (),
    unk_token: (),
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: VocabularyDocument<'a>,
    merges: &'a [String],
}

/// Tokens by their ids, as a map.
struct VocabularyDocument<'a>(&'a [String]);

impl Serialize for VocabularyDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(0_u32..))
    }
}

fn sentence_piece(file: &Gguf, mut common: Common<'_>) -> Result<Tokenizer> {
    // Unlike for byte-level models, bos is the default here, as in llama.cpp.
    if let Some(config) = common.config.as_object_mut() {
        config.entry("add_bos_token").or_insert(true.into());
    }
    let scores = file.get_f32s(&key("scores"))?.ok_or_else(|| wrong("scores", "is missing"))?;
    if scores.len() != common.tokens.len() {
        return Err(wrong("scores", format!("has {} entries for {} tokens", scores.len(), common.tokens.len())));
    }
    let has_bytes = common.kinds.contains(&6);
    let mut kinds = common.kinds.clone();
    if !kinds.contains(&2) {
        let unknown = common.roles.iter().find(|(role, _)| *role == "unk_token").map_or(0, |(_, id)| *id as usize);
        kinds[unknown] = 2;
    }
    let pieces = common.tokens.iter().zip(&scores).zip(&kinds).map(|((piece, score), kind)| PieceProto {
        piece: Some(piece.clone()),
        score: Some(*score),
        // 0 is "undefined", which llama.cpp treats as ordinary.
        kind: Some(i32::try_from(*kind).unwrap_or(1).max(1)),
    });
    let name = |role| common.roles.iter().find(|(r, _)| *r == role).map(|(_, id)| common.tokens[*id as usize].clone());
    let proto = ModelProto {
        pieces: pieces.collect(),
        trainer: Some(TrainerProto {
            model_type: Some(2),
            byte_fallback: Some(has_bytes),
            bos_piece: name("bos_token"),
            eos_piece: name("eos_token"),
            pad_piece: name("pad_token"),
            ..TrainerProto::default()
        }),
        normalizer: Some(NormalizerProto {
            name: Some("identity".into()),
            precompiled_charsmap: file_charsmap(file)?,
            add_dummy_prefix: Some(file.get_bool(&key("add_space_prefix"))?.unwrap_or(true)),
            remove_extra_whitespaces: Some(file.get_bool(&key("remove_extra_whitespaces"))?.unwrap_or(false)),
            escape_whitespaces: Some(true),
        }),
    };
    let bytes = proto.encode_to_vec();
    finish(sentencepiece::from_proto(&proto), "tokenizer.model", bytes, common.config)
}

/// The compiled normalisation rules, which some converters keep as a list of bytes.
fn file_charsmap(file: &Gguf) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = file.get_i64s(&key("precompiled_charsmap"))? else { return Ok(None) };
    // Stored as unsigned or as signed bytes.
    Ok(Some(bytes.into_iter().map(|b| b.to_le_bytes()[0]).collect()))
}

fn finish(
    parts: std::result::Result<super::build::Parts, String>,
    name: &str,
    bytes: Vec<u8>,
    config: Value,
) -> Result<Tokenizer> {
    let config = serde_json::to_vec_pretty(&config).map_err(|e| Error::Internal(e.to_string()))?;
    let side = SideFiles { tokenizer_config: Some(config), ..SideFiles::default() };
    assemble(parts, name, bytes, &side, &|_| "tokenizer.ggml".to_owned())
}
