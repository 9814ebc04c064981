//! Log-probabilities in the two shapes of the API: a chat's and a completion's.

use ernie_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::answer::Said;

/// A token's text alone. A part of a character is U+FFFD; its bytes are exact in a chat's shape.
fn text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode_continuation(&[id])
}

/// The entries of `logprobs.content` of a chat.
pub(super) fn chat(tokenizer: &Tokenizer, tokens: &[Said]) -> Vec<Value> {
    let entry = |id: u32, logprob: f64| {
        let bytes: &[u8] = tokenizer.token_bytes(id).unwrap_or_default();
        json!({"token": text(tokenizer, id), "logprob": logprob, "bytes": bytes})
    };
    let with_top = |said: &Said| {
        let logprob = said.logprob.as_ref()?;
        let mut value = entry(said.id, logprob.logprob);
        value["top_logprobs"] = logprob.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
        Some(value)
    };
    tokens.iter().filter_map(with_top).collect()
}

/// One position of a completion: the id, its log-probability and the likeliest others. The first of a text has none.
pub(super) struct Position {
    pub(super) id: u32,
    pub(super) logprob: Option<f64>,
    pub(super) top: Vec<(u32, f64)>,
}

impl Position {
    pub(super) fn of(said: &Said) -> Option<Self> {
        let logprob = said.logprob.clone()?;
        Some(Self { id: said.id, logprob: Some(logprob.logprob), top: logprob.top })
    }
}

/// The object `logprobs` of a completion. `offset` is where its text begins, in characters, and moves on.
pub(super) fn completion(tokenizer: &Tokenizer, positions: &[Position], offset: &mut usize) -> Value {
    let mut texts = Vec::with_capacity(positions.len());
    let mut offsets = Vec::with_capacity(positions.len());
    let mut tops = Vec::with_capacity(positions.len());
    for position in positions {
        let text = text(tokenizer, position.id);
        offsets.push(*offset);
        if !tokenizer.is_special(position.id) {
            *offset += text.chars().count();
        }
        tops.push(match position.logprob {
            None => Value::Null,
            Some(logprob) => top(tokenizer, &text, logprob, &position.top),
        });
        texts.push(text);
    }
    let logprobs: Vec<Option<f64>> = positions.iter().map(|position| position.logprob).collect();
    json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}

/// The likeliest tokens and the one at hand, by their texts; of those that look alike the likelier.
fn top(tokenizer: &Tokenizer, said: &str, logprob: f64, others: &[(u32, f64)]) -> Value {
    let mut map = serde_json::Map::new();
    for &(id, logprob) in others {
        map.entry(text(tokenizer, id)).or_insert(json!(logprob));
    }
    map.entry(said.to_owned()).or_insert(json!(logprob));
    Value::Object(map)
}
