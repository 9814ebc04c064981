//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use ernie_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::http::answer::{self, Answer, Call, Delta, Limits, Said, Tokens, Whole};
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::fields::Fields;
use crate::http::guard::Deadline;
use crate::http::limits::MAX_TOP_LOGPROBS;
use crate::http::logprobs;
use crate::http::manner::{Form, Spoken};
use crate::http::messages::messages;
use crate::http::params::Params;
use crate::http::sse::{self, Events, Speaker};
use crate::http::state::{App, Model};
use crate::session::Delta as CallDelta;

/// The handler.
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Extension(deadline): Extension<Deadline>,
    body: JsonBody,
) -> ApiResult<Response> {
    let model = app.model()?;
    let mut fields = body.fields;
    let mut params = Params::take(&mut fields, &app, &model)?;
    params.logprobs = wanted_logprobs(&mut fields)?;
    params.max_tokens = max_tokens(&mut fields, app.config.limits.output_tokens)?;
    let form = Form::take(&mut fields)?;
    let list = fields.list("messages")?.ok_or_else(|| ApiError::field("messages", "missing", "a list of messages"))?;
    let messages = messages(list, "messages", app.config.limits.messages)?;
    model.tokenizer_for("messages")?;

    let place = app.admit(params.choices)?;
    let (render, choices, call_ids) = (model.clone(), params.choices, app.name("call_"));
    let prompt = answer::aside(move || form.prepare(&render, &messages, choices, call_ids));
    let mut limits = Limits { deadline: deadline.0, phases: app.phases() };
    let (prompt, manner) = limits.within(prompt).await??;
    app.check_prompt(&prompt)?;
    let max_tokens = params.max_tokens.unwrap_or(app.config.limits.output_tokens);
    let answer = Answer::start(&model, vec![prompt], &params, max_tokens, manner, limits, place).await?;
    let shape = Shape { id: app.name("chatcmpl-"), created: app.now(), model: params.asked.name.clone() };
    if params.stream {
        let (choices, include_usage) = (params.choices, params.include_usage);
        let with_logprobs = params.logprobs.is_some();
        return Ok(sse::respond(answer, Stream { shape, loaded: model, choices, include_usage, with_logprobs }));
    }
    let (wholes, tokens) = answer::collect(answer).await?;
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
        json!({
            "index": index,
            "message": message(&whole),
            "logprobs": logprobs_of(&model, params.logprobs.is_some(), &whole.tokens),
            "finish_reason": whole.finish,
        })
    });
    let mut value = shape.value("chat.completion");
    value["choices"] = choices.collect();
    value["usage"] = usage(tokens);
    Ok(super::json(&value))
}

/// `logprobs` and `top_logprobs`, which only make sense together.
fn wanted_logprobs(fields: &mut Fields) -> ApiResult<Option<usize>> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    match fields.count("top_logprobs", 0..=MAX_TOP_LOGPROBS)? {
        Some(top) if wanted => Ok(Some(top)),
        None if wanted => Ok(Some(0)),
        None | Some(0) => Ok(None),
        Some(_) => Err(ApiError::unsupported("top_logprobs", "makes sense only with `logprobs`: true")),
    }
}

/// The newer name of the limit counts where both are given.
fn max_tokens(fields: &mut Fields, limit: usize) -> ApiResult<Option<usize>> {
    let newer = fields.count("max_completion_tokens", 1..=limit as u64)?;
    let older = fields.count("max_tokens", 1..=limit as u64)?;
    Ok(newer.or(older))
}

/// The message of a choice that is over.
fn message(whole: &Whole) -> Value {
    let mut message = json!({"role": "assistant", "content": whole.text, "refusal": null});
    if !whole.reasoning.is_empty() {
        message["reasoning_content"] = whole.reasoning.as_str().into();
    }
    if !whole.calls.is_empty() {
        if whole.text.is_empty() {
            message["content"] = Value::Null;
        }
        let call = |call: &Call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        message["tool_calls"] = whole.calls.iter().map(call).collect();
    }
    message
}

/// A piece of a call, as a stream gives it.
fn call_delta(delta: CallDelta) -> Value {
    match delta {
        CallDelta::CallStart { index, id, name } => {
            let function = json!({"name": name, "arguments": ""});
            json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
        }
        CallDelta::Arguments { index, delta } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": delta}}]})
        }
        CallDelta::Text(text) => json!({"content": text}),
    }
}

fn logprobs_of(model: &Model, wanted: bool, tokens: &[Said]) -> Value {
    let content = |tokenizer: &Tokenizer| json!({"content": logprobs::chat(tokenizer, tokens), "refusal": null});
    model.tokenizer.as_ref().filter(|_| wanted).map_or(Value::Null, content)
}

/// The usage of an answer.
pub(super) fn usage(tokens: Tokens) -> Value {
    json!({
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
    })
}

/// What all objects of an answer say of it.
pub(super) struct Shape {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Shape {
    pub(super) fn value(&self, object: &str) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model})
    }
}

struct Stream {
    shape: Shape,
    loaded: Arc<Model>,
    choices: usize,
    include_usage: bool,
    with_logprobs: bool,
}

impl Stream {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let mut value = self.shape.value("chat.completion.chunk");
        value["choices"] = json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]);
        if self.include_usage {
            value["usage"] = Value::Null;
        }
        value
    }
}

impl Speaker for Stream {
    fn open(&mut self, out: &mut Events) {
        for index in 0..self.choices {
            out.data(&self.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None));
        }
    }

    fn say(&mut self, deltas: Vec<Delta>, out: &mut Events) {
        for delta in deltas {
            let with_logprobs = self.with_logprobs && !delta.tokens.is_empty();
            let mut logprobs = logprobs_of(&self.loaded, with_logprobs, &delta.tokens);
            let Spoken { reasoning, text, calls } = delta.spoken;
            let mut pieces: Vec<Value> = Vec::new();
            if !reasoning.is_empty() {
                pieces.push(json!({"reasoning_content": reasoning}));
            }
            if !text.is_empty() || (pieces.is_empty() && calls.is_empty() && with_logprobs) {
                pieces.push(json!({"content": text}));
            }
            pieces.extend(calls.into_iter().map(call_delta));
            for piece in pieces {
                // The tokens belong to all pieces together, and are told once.
                out.data(&self.chunk(delta.index, piece, logprobs.take(), None));
            }
            if let Some(finish) = delta.finish {
                out.data(&self.chunk(delta.index, json!({}), Value::Null, Some(finish)));
            }
        }
    }

    fn close(&mut self, tokens: Tokens, out: &mut Events) {
        if self.include_usage {
            let mut value = self.shape.value("chat.completion.chunk");
            value["choices"] = json!([]);
            value["usage"] = usage(tokens);
            out.data(&value);
        }
        out.done();
    }
}
