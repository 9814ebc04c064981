//! What chat and completions have in common: how tokens are chosen, how many, and when to stop.

use serde_json::Value;

use super::error::{ApiError, ApiResult};
use super::fields::{Fields, is_nothing, kind};
use super::limits::{Limits, MAX_LOGIT_BIAS};
use super::state::{App, Asked, Model};
use crate::engine::Sampling;
use crate::session::MAX_STOP_STRINGS;

/// How to answer.
#[derive(Debug, Clone)]
pub(super) struct Params {
    pub(super) asked: Asked,
    pub(super) sampling: Sampling,
    pub(super) max_tokens: Option<usize>,
    /// Answers to each prompt.
    pub(super) choices: usize,
    pub(super) stop: Vec<String>,
    pub(super) stop_ids: Vec<u32>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) return_token_ids: bool,
    /// Likeliest tokens beside each, where log-probabilities are wanted.
    pub(super) logprobs: Option<usize>,
}

const NOT_HONOURED: &str = "is not honoured by this server";

/// Fields of this API and its cousins that would change the answer and are not honoured.
const REFUSED: [(&str, &str); 33] = [
    ("allowed_token_ids", NOT_HONOURED),
    ("audio", "is not built: this server answers with text"),
    ("bad_words", NOT_HONOURED),
    ("chat_template", "is not taken from requests: the template is the checkpoint's own"),
    ("chat_template_kwargs", "is not taken from requests: the template is the checkpoint's own"),
    ("continue_final_message", NOT_HONOURED),
    ("documents", NOT_HONOURED),
    ("dry_multiplier", NOT_HONOURED),
    ("early_stopping", NOT_HONOURED),
    ("function_call", "is the older form of `tool_choice`, which is not honoured here"),
    ("functions", "is the older form of `tools`, which is not honoured here"),
    ("grammar", NOT_HONOURED),
    ("guided_choice", NOT_HONOURED),
    ("guided_grammar", NOT_HONOURED),
    ("guided_json", "is not honoured here: see `response_format`"),
    ("guided_regex", "is not honoured here: see `response_format`"),
    ("include_stop_str_in_output", NOT_HONOURED),
    ("json_schema", "is not honoured here: see `response_format`"),
    ("length_penalty", NOT_HONOURED),
    ("logits_processors", NOT_HONOURED),
    ("min_tokens", NOT_HONOURED),
    ("mirostat", NOT_HONOURED),
    ("prompt_logprobs", "is not honoured here: use `echo` with `logprobs` at /v1/completions"),
    ("reasoning_effort", NOT_HONOURED),
    ("repeat_penalty", "is not honoured here: its name is `repetition_penalty`"),
    ("structured_outputs", "is not honoured here: see `response_format`"),
    ("suffix", "is not honoured: this server completes at the end"),
    ("truncate_prompt_tokens", NOT_HONOURED),
    ("typical_p", NOT_HONOURED),
    ("use_beam_search", NOT_HONOURED),
    ("verbosity", NOT_HONOURED),
    ("web_search_options", NOT_HONOURED),
    ("xtc_probability", NOT_HONOURED),
];

impl Params {
    /// Takes the fields that all ways to generate share, and refuses what none of them honours.
    pub(super) fn take(fields: &mut Fields, app: &App, model: &Model) -> ApiResult<Self> {
        let asked = take_model(fields, app)?;
        for (name, why) in REFUSED {
            fields.refuse(name, why, is_nothing)?;
        }
        fields.refuse("skip_special_tokens", "must be true: special tokens are never text", |v| {
            v == &Value::Bool(true)
        })?;
        let modalities = |value: &Value| value == &serde_json::json!(["text"]);
        fields.refuse("modalities", "must be [\"text\"]", modalities)?;
        let limits = &app.config.limits;
        let choices = fields.count("n", 1..=limits.choices as u64)?.unwrap_or(1);
        let best_of = |value: &Value| value.as_u64() == Some(choices as u64);
        fields.refuse("best_of", "is not honoured beyond `n`", best_of)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        Ok(Self {
            asked,
            sampling: sampling(fields, model)?,
            max_tokens: None,
            choices,
            stop: stop(fields, limits)?,
            stop_ids: match fields.list("stop_token_ids")? {
                None => Vec::new(),
                Some(list) if list.len() <= MAX_STOP_STRINGS => token_ids(&list, "stop_token_ids", model.vocab_size)?,
                Some(list) => {
                    let is = format!("{} entries", list.len());
                    return Err(ApiError::field("stop_token_ids", is, format!("at most {MAX_STOP_STRINGS}")));
                }
            },
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage,
            return_token_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            logprobs: None,
        })
    }
}

/// The `model` of a request, which must be the one that is served or one of its adapters; absent is the model.
pub(super) fn take_model(fields: &mut Fields, app: &App) -> ApiResult<Asked> {
    app.asked(fields.text("model")?.as_deref())
}

/// Whether a stream ends with its usage.
fn stream_options(fields: &mut Fields, stream: bool) -> ApiResult<bool> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::unsupported("stream_options", "makes sense only with `stream`: true"));
    }
    Ok(Fields::of(options, "stream_options")?.bool("include_usage")?.unwrap_or(false))
}

fn sampling(fields: &mut Fields, model: &Model) -> ApiResult<Sampling> {
    let off = Sampling::default();
    // OpenAI's defaults, not the greedy ones of the engine.
    let sampling = Sampling {
        temperature: fields.number("temperature")?.unwrap_or(1.0),
        top_p: fields.number("top_p")?.unwrap_or(1.0),
        // -1 is how others spell "all of them".
        top_k: usize::try_from(fields.integer("top_k", -1..=1 << 31)?.unwrap_or(0)).unwrap_or(0),
        min_p: fields.number("min_p")?.unwrap_or(off.min_p),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(off.repetition_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(off.frequency_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(off.presence_penalty),
        logit_bias: logit_bias(fields, model.vocab_size)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64),
    };
    sampling.check(model.vocab_size)?;
    Ok(sampling)
}

fn logit_bias(fields: &mut Fields, vocab_size: usize) -> ApiResult<Vec<(u32, f32)>> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong("logit_bias", &other, "an object from token ids to numbers")),
    };
    if map.len() > MAX_LOGIT_BIAS {
        let is = format!("{} entries", map.len());
        return Err(ApiError::field("logit_bias", is, format!("at most {MAX_LOGIT_BIAS}")));
    }
    map.iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().ok().filter(|&id| (id as usize) < vocab_size);
            let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            id.zip(bias.map(|bias| bias as f32)).ok_or_else(|| {
                let expected = format!("token ids below {vocab_size} with numbers from -100 to 100");
                ApiError::field("logit_bias", "not such a map", expected)
            })
        })
        .collect()
}

fn stop(fields: &mut Fields, limits: &Limits) -> ApiResult<Vec<String>> {
    let wrong = |value: &Value| ApiError::field("stop", kind(value), "a string or a list of strings");
    let most = limits.stop_strings.min(MAX_STOP_STRINGS);
    match fields.take("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop]),
        Some(Value::Array(list)) if list.len() > most => {
            Err(ApiError::field("stop", format!("{} strings", list.len()), format!("at most {most}")))
        }
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|value| match value {
                Value::String(stop) => Ok(stop),
                other => Err(wrong(&other)),
            })
            .collect(),
        Some(other) => Err(wrong(&other)),
    }
}

/// Token ids of a list, each within the vocabulary.
pub(super) fn token_ids(list: &[Value], name: &str, vocab_size: usize) -> ApiResult<Vec<u32>> {
    list.iter()
        .enumerate()
        .map(|(at, value)| {
            let id = value.as_u64().filter(|&id| id < vocab_size as u64);
            id.map(|id| id as u32).ok_or_else(|| {
                let is = if value.is_number() { value.to_string() } else { kind(value).to_owned() };
                ApiError::field(name, format!("{is} at index {at}"), format!("token ids from 0 to {}", vocab_size - 1))
            })
        })
        .collect()
}
