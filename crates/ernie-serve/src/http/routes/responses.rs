//! `POST /v1/responses`, for plain text. Nothing is stored: a request brings its whole conversation.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use ernie_data::chat::Message;
use serde_json::{Value, json};

use crate::http::answer::{self, Answer, Delta, Limits, Tokens};
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::fields::{Fields, is_nothing, kind};
use crate::http::guard::Deadline;
use crate::http::manner::Form;
use crate::http::messages::messages;
use crate::http::params::Params;
use crate::http::sse::{self, Events, Speaker};
use crate::http::state::App;

/// The handler.
pub(super) async fn responses(
    State(app): State<Arc<App>>,
    Extension(deadline): Extension<Deadline>,
    body: JsonBody,
) -> ApiResult<Response> {
    let model = app.model()?;
    let mut fields = body.fields;
    refuse_unbuilt(&mut fields)?;
    let form = Form::take_text(&mut fields)?;
    let params = Params::take(&mut fields, &app, &model)?;
    if params.choices != 1 {
        return Err(ApiError::field("n", params.choices, "1 at this route"));
    }
    let limit = app.config.limits.output_tokens;
    let max_tokens = fields.count("max_output_tokens", 1..=limit as u64)?;
    let instructions = fields.text("instructions")?;
    let input = fields.need("input", "text or a list of messages")?;
    let mut conversation: Vec<Message> = instructions.iter().map(Message::system).collect();
    match input {
        Value::String(text) => conversation.push(Message::user(text)),
        Value::Array(list) => conversation.extend(messages(list, "input", app.config.limits.messages)?),
        other => return Err(ApiError::field("input", kind(&other), "text or a list of messages")),
    }

    let place = app.admit(1)?;
    let mut limits = Limits { deadline: deadline.0, phases: app.phases() };
    let render = model.clone();
    let prompt = answer::aside(move || form.prepare(&render, &conversation, 1, String::new()));
    let (prompt, manner) = limits.within(prompt).await??;
    app.check_prompt(&prompt)?;
    let answer =
        Answer::start(&model, vec![prompt], &params, max_tokens.unwrap_or(limit), manner, limits, place).await?;
    let object = Object {
        id: app.name("resp_"),
        message: app.name("msg_"),
        created: app.now(),
        model: params.asked.name.clone(),
        instructions,
        max_output_tokens: max_tokens,
        temperature: params.sampling.temperature,
        top_p: params.sampling.top_p,
    };
    if params.stream {
        return Ok(sse::respond(answer, Stream { object, text: String::new(), finish: "stop", number: 0 }));
    }
    let (wholes, tokens) = answer::collect(answer).await?;
    let whole = wholes.into_iter().next().unwrap_or_default();
    Ok(super::json(&object.over(&whole.text, whole.finish, tokens)))
}

/// What the route has and this server has not.
fn refuse_unbuilt(fields: &mut Fields) -> ApiResult<()> {
    let why = "is not honoured: this server stores nothing";
    fields.refuse("previous_response_id", why, is_nothing)?;
    fields.refuse("conversation", why, is_nothing)?;
    fields.refuse("background", why, is_nothing)?;
    fields.refuse("prompt", why, is_nothing)?;
    let why = "is not honoured at this route";
    for name in ["tools", "include", "top_logprobs", "reasoning", "max_tool_calls"] {
        fields.refuse(name, why, |value| is_nothing(value) || holds_nothing(value))?;
    }
    fields.refuse("tool_choice", why, |value| value == "auto" || value == "none")?;
    fields.refuse("truncation", "must be \"disabled\"", |value| value == "disabled")
}

/// An object whose fields are all null.
fn holds_nothing(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.values().all(Value::is_null))
}

/// The response object, at each time of its life.
struct Object {
    id: String,
    message: String,
    created: u64,
    model: String,
    instructions: Option<String>,
    max_output_tokens: Option<usize>,
    temperature: f32,
    top_p: f32,
}

impl Object {
    fn value(&self, status: &str, output: Value, usage: Value) -> Value {
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "background": false, "error": null, "incomplete_details": null, "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens, "model": self.model, "output": output,
            "parallel_tool_calls": false, "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null}, "store": false, "temperature": self.temperature,
            "text": {"format": {"type": "text"}}, "tool_choice": "none", "tools": [], "top_p": self.top_p,
            "truncation": "disabled", "usage": usage, "user": null, "metadata": {},
        })
    }

    fn begun(&self) -> Value {
        self.value("in_progress", json!([]), Value::Null)
    }

    fn over(&self, text: &str, finish: &str, tokens: Tokens) -> Value {
        let usage = json!({
            "input_tokens": tokens.prompt, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens.completion, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.prompt + tokens.completion,
        });
        let status = status(finish);
        let mut value = self.value(status, json!([self.item(status, &[part(text)])]), usage);
        if status == "incomplete" {
            value["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        value
    }

    fn item(&self, status: &str, content: &[Value]) -> Value {
        json!({
            "type": "message", "id": self.message, "status": status, "role": "assistant", "content": content,
        })
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn status(finish: &str) -> &'static str {
    if finish == "length" { "incomplete" } else { "completed" }
}

struct Stream {
    object: Object,
    text: String,
    finish: &'static str,
    number: u64,
}

impl Stream {
    /// One event of the protocol: its name is in its data too, and events are numbered.
    fn event(&mut self, name: &str, mut value: Value, out: &mut Events) {
        value["type"] = name.into();
        value["sequence_number"] = self.number.into();
        self.number += 1;
        out.named(name, &value);
    }

    /// Where in the output an event belongs.
    fn place(&self) -> Value {
        json!({"item_id": self.object.message, "output_index": 0, "content_index": 0})
    }
}

impl Speaker for Stream {
    fn open(&mut self, out: &mut Events) {
        let begun = json!({"response": self.object.begun()});
        self.event("response.created", begun.clone(), out);
        self.event("response.in_progress", begun, out);
        let item = json!({"output_index": 0, "item": self.object.item("in_progress", &[])});
        self.event("response.output_item.added", item, out);
        let mut added = self.place();
        added["part"] = part("");
        self.event("response.content_part.added", added, out);
    }

    fn say(&mut self, deltas: Vec<Delta>, out: &mut Events) {
        for delta in deltas {
            self.finish = delta.finish.unwrap_or(self.finish);
            if delta.spoken.text.is_empty() {
                continue;
            }
            self.text += &delta.spoken.text;
            let mut value = self.place();
            value["delta"] = delta.spoken.text.into();
            value["logprobs"] = json!([]);
            self.event("response.output_text.delta", value, out);
        }
    }

    fn close(&mut self, tokens: Tokens, out: &mut Events) {
        let mut done = self.place();
        done["text"] = self.text.clone().into();
        done["logprobs"] = json!([]);
        self.event("response.output_text.done", done, out);
        let mut done = self.place();
        done["part"] = part(&self.text);
        self.event("response.content_part.done", done, out);
        let status = status(self.finish);
        let item = self.object.item(status, &[part(&self.text)]);
        self.event("response.output_item.done", json!({"output_index": 0, "item": item}), out);
        let over = json!({"response": self.object.over(&self.text, self.finish, tokens)});
        self.event(&format!("response.{status}"), over, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        let mut value = error.json()["error"].take();
        value["code"] = error.reason.name().into();
        self.event("error", value, out);
    }
}
