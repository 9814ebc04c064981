//! A turn of a conversation, and the calls of tools that belong to it.

use minijinja::Value;

use super::marks;
use crate::{Error, Result};

/// How deep tools and arguments may nest.
const MAX_DEPTH: usize = 64;

/// Words of JSON schema that stand in tools everywhere. Templates compare them (`type == 'string'`), and no control token
/// is made of them, so they need no disguise.
const SCHEMA_WORDS: [&str; 37] = [
    "$defs",
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "array",
    "boolean",
    "const",
    "default",
    "description",
    "enum",
    "format",
    "function",
    "integer",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "name",
    "null",
    "nullable",
    "number",
    "object",
    "oneOf",
    "parameters",
    "pattern",
    "prefixItems",
    "properties",
    "required",
    "return",
    "strict",
    "string",
    "title",
    "type",
];

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// One of [`super::ROLES`].
    pub role: String,
    /// The caller's text.
    pub content: String,
    /// Calls that the assistant made in this turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a turn of role `tool` answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks, or which tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant thought before it spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ToolCall {
    /// Names the call, so that its result can be told apart.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: JSON, if it did well.
    pub arguments: String,
}

impl Message {
    /// A turn of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// Instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What a tool answered to the call `id`.
    pub fn tool(id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(id.into()), ..Self::new("tool", content) }
    }

    /// Bytes that the caller wrote.
    pub(super) fn bytes(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.id.len() + call.name.len() + call.arguments.len());
        let others = [&self.tool_call_id, &self.name, &self.reasoning].into_iter().flatten().map(String::len);
        self.content.len() + calls.chain(others).sum::<usize>()
    }

    /// The turn as a template sees it, in the shape of `transformers`: arguments that are a JSON object are an object.
    pub(super) fn value(&self, disguise: bool) -> Result<Value> {
        let text = |text: &str| Value::from(dress(text, disguise));
        let mut pairs = vec![("role", Value::from(self.role.as_str())), ("content", text(&self.content))];
        if !self.tool_calls.is_empty() {
            let calls: Result<Vec<Value>> = self.tool_calls.iter().map(|call| call.value(disguise)).collect();
            pairs.push(("tool_calls", Value::from(calls?)));
        }
        for (key, value) in
            [("tool_call_id", &self.tool_call_id), ("name", &self.name), ("reasoning_content", &self.reasoning)]
        {
            pairs.extend(value.as_ref().map(|value| (key, text(value))));
        }
        Ok(Value::from_pairs(pairs))
    }
}

impl ToolCall {
    fn value(&self, disguise: bool) -> Result<Value> {
        let arguments = match serde_json::from_str::<serde_json::Value>(&self.arguments) {
            Ok(object @ serde_json::Value::Object(_)) => json_value("arguments", &object, disguise, false)?,
            _ => Value::from(dress(&self.arguments, disguise)),
        };
        let function =
            Value::from_pairs([("name", Value::from(dress(&self.name, disguise))), ("arguments", arguments)]);
        let id = Value::from(dress(&self.id, disguise));
        Ok(Value::from_pairs([("id", id), ("type", Value::from("function")), ("function", function)]))
    }
}

fn dress(text: &str, disguise: bool) -> String {
    if disguise { marks::disguise(text) } else { text.to_owned() }
}

/// JSON of a caller as a template's value, every text in it disguised if asked for. `schema` leaves the words of JSON
/// schema alone.
pub(super) fn json_value(what: &str, json: &serde_json::Value, disguise: bool, schema: bool) -> Result<Value> {
    fn walk(json: &serde_json::Value, dress: &dyn Fn(&str) -> String, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        Some(match json {
            serde_json::Value::String(text) => Value::from(dress(text)),
            serde_json::Value::Array(items) => {
                let items: Option<Vec<Value>> = items.iter().map(|item| walk(item, dress, depth + 1)).collect();
                Value::from(items?)
            }
            serde_json::Value::Object(map) => {
                let pairs: Option<Vec<(String, Value)>> =
                    map.iter().map(|(key, value)| Some((dress(key), walk(value, dress, depth + 1)?))).collect();
                Value::from_pairs(pairs?)
            }
            serde_json::Value::Null => Value::from(()),
            serde_json::Value::Bool(yes) => Value::from(*yes),
            serde_json::Value::Number(number) => number
                .as_i64()
                .map(Value::from)
                .or_else(|| number.as_u64().map(Value::from))
                .unwrap_or_else(|| Value::from(number.as_f64().unwrap_or_default())),
        })
    }
    let dress = |text: &str| match schema && SCHEMA_WORDS.binary_search(&text).is_ok() {
        true => text.to_owned(),
        false => dress(text, disguise),
    };
    walk(json, &dress, 0)
        .ok_or_else(|| Error::Template(format!("{what}: nested too deep (expected at most {MAX_DEPTH} levels)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_sorted() {
        assert!(SCHEMA_WORDS.is_sorted());
    }
}
