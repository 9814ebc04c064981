//! Conversations as requests bring them.

use ernie_data::chat::{Message, ToolCall};
use serde_json::Value;

use super::error::{ApiError, ApiResult};
use super::fields::{Fields, kind};

/// The messages of a conversation, `limit` at most. `developer` is what `system` was called before.
pub(super) fn messages(list: Vec<Value>, name: &str, limit: usize) -> ApiResult<Vec<Message>> {
    if list.is_empty() {
        return Err(ApiError::field(name, "empty", "at least one message"));
    }
    if list.len() > limit {
        return Err(ApiError::field(name, format!("{} messages", list.len()), format!("at most {limit}")));
    }
    list.into_iter().enumerate().map(|(at, value)| message(value, &format!("{name}[{at}]"))).collect()
}

fn message(value: Value, place: &str) -> ApiResult<Message> {
    let mut fields = Fields::of(value, place)?;
    let role = match fields.text("role")? {
        Some(role) if role == "developer" => "system".to_owned(),
        Some(role) if ernie_data::chat::ROLES.contains(&role.as_str()) => role,
        Some(role) => {
            let role: String = role.chars().take(60).collect();
            let expected = ernie_data::chat::ROLES.join(", ");
            return Err(ApiError::field(&fields.name("role"), format!("{role:?}"), format!("one of {expected}")));
        }
        None => return Err(ApiError::field(&fields.name("role"), "missing", "who speaks, such as \"user\"")),
    };
    let calls = fields.list("tool_calls")?.unwrap_or_default();
    let tool_calls: ApiResult<Vec<ToolCall>> = calls
        .into_iter()
        .enumerate()
        .map(|(at, value)| call(value, &fields.name(&format!("tool_calls[{at}]"))))
        .collect();
    let tool_calls = tool_calls?;
    let content = match fields.take("content") {
        // Who only calls need not speak.
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(ApiError::field(&fields.name("content"), "missing", "text")),
        Some(content) => content_text(content, &fields.name("content"))?,
    };
    Ok(Message {
        tool_calls,
        tool_call_id: fields.text("tool_call_id")?,
        name: fields.text("name")?,
        reasoning: fields.text("reasoning_content")?,
        ..Message::new(role, content)
    })
}

/// A call that the assistant made earlier.
fn call(value: Value, place: &str) -> ApiResult<ToolCall> {
    let mut fields = Fields::of(value, place)?;
    let id = fields.text("id")?.ok_or_else(|| ApiError::field(&fields.name("id"), "missing", "the call's id"))?;
    let place = fields.name("function");
    let mut function = Fields::of(fields.need("function", "an object")?, &place)?;
    let missing = |function: &Fields, name: &str| ApiError::field(&function.name(name), "missing", "a string");
    let name = function.text("name")?.ok_or_else(|| missing(&function, "name"))?;
    let arguments = function.text("arguments")?.ok_or_else(|| missing(&function, "arguments"))?;
    Ok(ToolCall { id, name, arguments })
}

/// The text of a message's content: a string, or parts of text.
pub(super) fn content_text(content: Value, place: &str) -> ApiResult<String> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(ApiError::field(place, kind(&other), "text, or a list of parts")),
    };
    let mut text = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(part, &format!("{place}[{at}]"))?;
        match part.text("type")?.as_deref() {
            Some("text" | "input_text" | "output_text") => {
                let more = part.text("text")?;
                text += &more.ok_or_else(|| ApiError::field(&part.name("text"), "missing", "text"))?;
            }
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                let why = format!("is {other:?}, which is not built: this server reads text");
                return Err(ApiError::unsupported(&part.name("type"), why));
            }
            None => return Err(ApiError::field(&part.name("type"), "missing", "\"text\"")),
        }
    }
    Ok(text)
}
