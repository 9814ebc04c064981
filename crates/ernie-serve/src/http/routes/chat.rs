//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use ernie_data::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::http::answer::{self, Answer, Delta, Limits, Said, Tokens};
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::fields::{Fields, is_nothing};
use crate::http::guard::Deadline;
use crate::http::limits::MAX_TOP_LOGPROBS;
use crate::http::logprobs;
use crate::http::messages::messages;
use crate::http::params::Params;
use crate::http::sse::{self, Events, Speaker};
use crate::http::state::{App, Model};

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
    refuse_unbuilt(&mut fields)?;
    let list = fields.list("messages")?.ok_or_else(|| ApiError::field("messages", "missing", "a list of messages"))?;
    let messages = messages(list, "messages", app.config.limits.messages)?;
    model.tokenizer_for("messages")?;

    let place = app.admit(params.choices)?;
    let render = model.clone();
    let prompt = answer::aside(move || {
        let tokenizer = render.tokenizer_for("messages")?;
        Ok(render.template.render(&messages, true, tokenizer)?.encode(tokenizer)?)
    });
    let mut limits = Limits { deadline: deadline.0, phases: app.phases() };
    let prompt = limits.within(prompt).await??;
    app.check_prompt(&prompt)?;
    let max_tokens = params.max_tokens.unwrap_or(app.config.limits.output_tokens);
    let answer = Answer::start(&model, vec![prompt], &params, max_tokens, limits, place).await?;
    let shape = Shape { id: app.name("chatcmpl-"), created: app.now(), model: app.config.model.clone() };
    if params.stream {
        let (choices, include_usage) = (params.choices, params.include_usage);
        let with_logprobs = params.logprobs.is_some();
        return Ok(sse::respond(answer, Stream { shape, loaded: model, choices, include_usage, with_logprobs }));
    }
    let (wholes, tokens) = answer::collect(answer).await?;
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
        json!({
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": null},
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

/// What the API has and this server does not have yet.
fn refuse_unbuilt(fields: &mut Fields) -> ApiResult<()> {
    let text = |value: &Value| value["type"] == "text";
    fields.refuse("response_format", "other than text is not built yet", text)?;
    fields.refuse("tools", "is not built yet", is_nothing)?;
    let none = |value: &Value| value == "none" || value == "auto";
    fields.refuse("tool_choice", "other than \"none\" is not built yet", none)
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
            let logprobs = logprobs_of(&self.loaded, self.with_logprobs && !delta.tokens.is_empty(), &delta.tokens);
            if !delta.text.is_empty() || !logprobs.is_null() {
                out.data(&self.chunk(delta.index, json!({"content": delta.text}), logprobs, None));
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
