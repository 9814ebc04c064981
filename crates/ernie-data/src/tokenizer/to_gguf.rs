//! A tokenizer as the metadata of a GGUF file: what [`super::gguf`] reads, written.

use std::collections::BTreeMap;

use ernie_files::gguf::{Array, Value};
use prost::Message;
use serde_json::Value as Json;

use super::gguf::{PREFIX, name_of};
use super::sentencepiece::ModelProto;
use super::{Tokenizer, pretokenize::GPT2_PATTERN};
use crate::{Error, Result};

/// Normal, control and user-defined tokens, by the format's numbers.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER: i32 = 4;
const UNUSED: i32 = 5;

fn wrong(what: impl Into<String>) -> Error {
    Error::Tokenizer { at: "the tokenizer".into(), what: what.into() }
}

impl Tokenizer {
    /// Everything of this tokenizer that a GGUF file of a model with `vocab_size` rows holds, under `tokenizer.`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the format has no name for what it does: another pre-tokenizer, a normaliser, or another kind of model.
    pub fn to_gguf(&self, vocab_size: usize) -> Result<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        let file = |wanted: &str| self.0.files.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes);
        if let Some(bytes) = file("tokenizer.json") {
            let json: Json = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
            byte_level(&json, vocab_size, &mut metadata)?;
        } else if let Some(bytes) = file("tokenizer.model") {
            let model = ModelProto::decode(&bytes[..]).map_err(|error| wrong(error.to_string()))?;
            sentence_piece(&model, vocab_size, &mut metadata);
        } else {
            return Err(wrong("is neither of tokenizer.json nor of tokenizer.model"));
        }
        let mut set = |name: &str, value: Value| metadata.insert(format!("{PREFIX}{name}"), value);
        for (name, role) in [
            ("bos_token_id", "bos_token"),
            ("eos_token_id", "eos_token"),
            ("unknown_token_id", "unk_token"),
            ("padding_token_id", "pad_token"),
            ("seperator_token_id", "sep_token"),
            ("cls_token_id", "cls_token"),
            ("mask_token_id", "mask_token"),
        ] {
            if let Some(id) = self.role(role) {
                set(name, Value::U32(id));
            }
        }
        set("add_bos_token", Value::Bool(self.adds_bos()));
        set("add_eos_token", Value::Bool(self.adds_eos()));
        if let Some(template) = self.chat_template() {
            metadata.insert("tokenizer.chat_template".into(), Value::String(template.to_owned()));
        }
        Ok(metadata)
    }
}

fn byte_level(json: &Json, vocab_size: usize, into: &mut BTreeMap<String, Value>) -> Result<()> {
    let model = &json["model"];
    if model["type"].as_str().is_some_and(|kind| kind != "BPE") || !json["normalizer"].is_null() {
        return Err(wrong("only byte-level BPE without a normaliser has a form in GGUF"));
    }
    let (vocab, merges) = (&model["vocab"], &model["merges"]);
    let (Some(vocab), Some(merges)) = (vocab.as_object(), merges.as_array()) else {
        return Err(wrong("has no vocab or no merges"));
    };
    let ignore_merges = model["ignore_merges"].as_bool().unwrap_or(false);
    let pre = patterns_of(&json["pre_tokenizer"]).and_then(|patterns| name_of(&patterns, ignore_merges));
    let pre = pre.ok_or_else(|| {
        wrong("its pre-tokenizer has no name in GGUF, so that another program would cut words differently")
    })?;
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; vocab_size];
    let mut place = |token: &str, id: Option<u64>, kind: i32| {
        let at = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocab_size);
        let at = at
            .ok_or_else(|| wrong(format!("the id of {token:?} is not below the model's vocabulary of {vocab_size}")))?;
        (tokens[at], kinds[at]) = (token.to_owned(), kind);
        Ok::<_, Error>(())
    };
    for (token, id) in vocab {
        place(token, id.as_u64(), NORMAL)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"].as_bool().unwrap_or(false) { CONTROL } else { USER };
        place(added["content"].as_str().unwrap_or_default(), added["id"].as_u64(), kind)?;
    }
    let merges = merges.iter().map(|merge| match merge {
        Json::Array(pair) => pair.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap_or_default().to_owned(),
    });
    let mut set = |name: &str, value: Value| into.insert(format!("{PREFIX}{name}"), value);
    set("model", Value::String("gpt2".into()));
    set("pre", Value::String(pre.into()));
    set("merges", Value::Array(Array::String(merges.collect())));
    set("tokens", Value::Array(Array::String(tokens)));
    set("token_type", Value::Array(Array::I32(kinds)));
    Ok(())
}

/// The patterns that a `pre_tokenizer` cuts by, one after another; `None` for one that does something else.
fn patterns_of(json: &Json) -> Option<Vec<String>> {
    let steps = match json["type"].as_str()? {
        "Sequence" => json["pretokenizers"].as_array()?.clone(),
        _ => vec![json.clone()],
    };
    let mut patterns = Vec::new();
    for step in &steps {
        match step["type"].as_str()? {
            "Digits" if step["individual_digits"] == true => patterns.push(r"\p{N}".to_owned()),
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                patterns.push(step["pattern"]["Regex"].as_str()?.to_owned())
            }
            "ByteLevel" if step["add_prefix_space"] == true => return None,
            "ByteLevel" if step["use_regex"] == false => {}
            "ByteLevel" => patterns.push(GPT2_PATTERN.to_owned()),
            _ => return None,
        }
    }
    Some(patterns)
}

fn sentence_piece(model: &ModelProto, vocab_size: usize, into: &mut BTreeMap<String, Value>) {
    let count = vocab_size.max(model.pieces.len());
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let (mut scores, mut kinds) = (vec![-10_000.0; count], vec![UNUSED; count]);
    for (at, piece) in model.pieces.iter().enumerate() {
        tokens[at] = piece.piece.clone().unwrap_or_default();
        (scores[at], kinds[at]) = (piece.score.unwrap_or(0.0), piece.kind.unwrap_or(NORMAL));
    }
    let normalizer = model.normalizer.as_ref();
    let mut set = |name: &str, value: Value| into.insert(format!("{PREFIX}{name}"), value);
    set("model", Value::String("llama".into()));
    set("tokens", Value::Array(Array::String(tokens)));
    set("scores", Value::Array(Array::F32(scores)));
    set("token_type", Value::Array(Array::I32(kinds)));
    set("add_space_prefix", Value::Bool(normalizer.and_then(|n| n.add_dummy_prefix).unwrap_or(true)));
    if let Some(remove) = normalizer.and_then(|n| n.remove_extra_whitespaces) {
        set("remove_extra_whitespaces", Value::Bool(remove));
    }
    if let Some(charsmap) = normalizer.and_then(|n| n.precompiled_charsmap.clone()).filter(|map| !map.is_empty()) {
        set("precompiled_charsmap", Value::Array(Array::U8(charsmap)));
    }
}
