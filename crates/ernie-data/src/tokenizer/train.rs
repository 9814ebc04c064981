//! Training a byte-level BPE on a corpus.
//!
//! The words are cut as SmolLM2 and GPT-2 do (single digits, then GPT-2's pattern) by the very code that will encode
//! with the result; the counting and merging is the `tokenizers` library's trainer, which breaks ties by id, so the
//! same texts in any order and on any number of threads give the same tokenizer. The result is a `tokenizer.json` with
//! its side files, as the Python packages load them.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{AddedToken as LibraryToken, Trainer as _};

use super::guarded_regex::{GuardedRegex, one_line};
use super::load::assemble;
use super::pretokenize::{self, Behavior, GPT2_PATTERN, Pattern, Step};
use super::side::SideFiles;
use super::{Tokenizer, byte_level, json as json_file};
use crate::{Error, Result};

/// Longer words teach nothing and would cost the trainer quadratic time; they are cut.
const MAX_WORD_BYTES: usize = 256;

/// What to train.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Ids wanted, special tokens and the 256 bytes included. A small corpus may give fewer.
    pub vocab_size: usize,
    /// A pair must occur this often to be merged; at least 1.
    pub min_frequency: u64,
    /// Special tokens with their roles (`bos_token`, …; empty for none). They take ids 0, 1, 2, … in this order.
    pub special_tokens: Vec<(String, String)>,
    /// Roles of tokens that have one already, such as a `pad_token` that is the unknown token.
    pub more_roles: Vec<(String, String)>,
    /// The chat template to save with it.
    pub chat_template: Option<String>,
}

impl TrainOptions {
    /// ERNIE's special tokens: unknown and padding 0, bos 1, eos 2, and the two that frame a chat, with ERNIE's template.
    pub fn ernie(vocab_size: usize) -> Self {
        let token = |content: &str, role: &str| (content.to_owned(), role.to_owned());
        Self {
            vocab_size,
            min_frequency: 2,
            special_tokens: vec![
                token("<unk>", "unk_token"),
                token("<s>", "bos_token"),
                token("</s>", "eos_token"),
                token("<|begin_of_sentence|>", "cls_token"),
                token("<|end_of_sentence|>", "sep_token"),
            ],
            more_roles: vec![token("<unk>", "pad_token")],
            chat_template: Some(crate::chat::ERNIE_TEMPLATE.to_owned()),
        }
    }
}

/// Trains a byte-level BPE on `texts`.
///
/// # Errors
/// [`Error::Tokenizer`] when `vocab_size` has no room for the bytes and the special tokens, or a special token is empty
/// or given twice.
pub fn train_bpe<I, S>(texts: I, options: &TrainOptions) -> Result<Tokenizer>
where
    I: Iterator<Item = S> + Send,
    S: AsRef<str> + Send,
{
    let wrong = |what: String| Error::Tokenizer { at: "training".into(), what };
    let least = 256 + options.special_tokens.len();
    if options.vocab_size < least || options.vocab_size > 1 << 22 {
        return Err(wrong(format!("vocab size {} (expected {least} to {})", options.vocab_size, 1 << 22)));
    }
    for (i, (token, _)) in options.special_tokens.iter().enumerate() {
        if token.is_empty() || options.special_tokens[..i].iter().any(|(other, _)| other == token) {
            return Err(wrong(format!("special token {token:?} is empty or given twice")));
        }
    }
    let regex = || GuardedRegex::new(GPT2_PATTERN).map_err(Error::Internal);
    let split = |pattern| Step::Split { pattern, behavior: Behavior::Isolated, invert: false };
    let steps = [split(Pattern::Chars(char::is_numeric)), split(Pattern::Regex(regex()?))];
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency.max(1))
        .special_tokens(options.special_tokens.iter().map(|(t, _)| LibraryToken::from(t.clone(), true)).collect())
        .initial_alphabet((0..=255).map(byte_level::to_char).collect())
        .build();
    let failed = |e: tokenizers::Error| wrong(one_line(&e.to_string()));
    trainer
        .feed(texts, |text| {
            let words = pretokenize::run(&steps, Cow::Borrowed(text), true)?;
            Ok(words.iter().flat_map(|word| word.as_bytes().chunks(MAX_WORD_BYTES)).map(byte_level::text_of).collect())
        })
        .map_err(failed)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    let model = serde_json::to_value(&model).map_err(|e| Error::Internal(e.to_string()))?;
    write(model, options)
}

fn write(model: Value, options: &TrainOptions) -> Result<Tokenizer> {
    let added: Vec<Value> = options
        .special_tokens
        .iter()
        .enumerate()
        .map(|(id, (content, _))| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let mut listed = Map::new();
    for token in &added {
        let mut flags = token.as_object().cloned().unwrap_or_default();
        if let Some(id) = flags.remove("id") {
            listed.insert(id.to_string(), Value::Object(flags));
        }
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level(true),
        ]},
        "post_processor": null, "decoder": byte_level(true), "model": model,
    });
    let mut roles = Map::new();
    for (content, role) in options.special_tokens.iter().chain(&options.more_roles).filter(|(_, role)| !role.is_empty())
    {
        roles.insert(role.clone(), content.clone().into());
    }
    let mut config = roles.clone();
    config.insert("added_tokens_decoder".into(), Value::Object(listed));
    config.insert("add_bos_token".into(), false.into());
    config.insert("add_eos_token".into(), false.into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config.insert("model_max_length".into(), 131_072.into());
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    if let Some(template) = &options.chat_template {
        config.insert("chat_template".into(), template.clone().into());
    }
    let bytes = |value: &Value| {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?;
        Ok::<_, Error>((text + "\n").into_bytes())
    };
    let side = SideFiles {
        tokenizer_config: Some(bytes(&Value::Object(config))?),
        special_tokens_map: Some(bytes(&Value::Object(roles))?),
        ..SideFiles::default()
    };
    let file = bytes(&document)?;
    assemble(json_file::read(&file), "tokenizer.json", file, &side, &str::to_owned)
}
