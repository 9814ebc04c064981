//! The shapes that lessons come in.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Conversation, Lesson};
use crate::chat::{Message, ROLES, ToolCall};

type Result<T> = std::result::Result<T, String>;

/// Every key that any shape knows; others are passed over.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Line {
    messages: Option<Vec<Turn>>,
    conversations: Option<Vec<Said>>,
    instruction: Option<String>,
    input: Option<String>,
    context: Option<String>,
    output: Option<String>,
    response: Option<String>,
    history: Option<Vec<[String; 2]>>,
    src: Option<OneOrMany>,
    tgt: Option<OneOrMany>,
    label: Option<Vec<u8>>,
    system: Option<String>,
    tools: Option<Value>,
    prompt: Option<String>,
    completion: Option<String>,
}

/// A turn as OpenAI writes it.
#[derive(Deserialize)]
pub(super) struct Turn {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
    /// Whether a turn of the assistant is learned.
    #[serde(default)]
    weight: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    id: String,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: Value,
}

/// A turn as ShareGPT writes it.
#[derive(Deserialize)]
pub(super) struct Said {
    from: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A line of JSON as `T`, which errors call `name`.
pub(super) fn read<T: DeserializeOwned>(line: &str, name: &str) -> Result<T> {
    if line.trim_start().starts_with('[') {
        return Err("a JSON array; expected one object a line (`jq -c '.[]'` makes it so)".into());
    }
    serde_json::from_str(line).map_err(|error| {
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message).to_owned();
        format!("not {name}: {what} at column {}", error.column())
    })
}

/// See [`Lesson::parse`].
pub(super) fn parse(line: &str) -> Result<Lesson> {
    let line: Line = read(line, "a conversation")?;
    let tools = match line.tools {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(tools)) => tools,
        Some(Value::String(text)) if text.trim().is_empty() => Vec::new(),
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|_| "tools: expected a list of tools, or one as JSON text")?
        }
        Some(_) => return Err("tools: expected a list".into()),
    };
    let system = line.system.filter(|text| !text.is_empty());
    let mut conversation = if let Some(turns) = line.messages {
        from_messages(turns)?
    } else if let Some(said) = line.conversations {
        from_sharegpt(said)?
    } else if let Some(instruction) = line.instruction {
        let answer = line.output.or(line.response).ok_or("`instruction` without `output` (or `response`)")?;
        from_alpaca(instruction, line.input.or(line.context), answer, line.history.unwrap_or_default())
    } else if let (Some(src), Some(tgt)) = (line.src, line.tgt) {
        from_ernie(src.all(), tgt.all(), line.label)?
    } else if let (Some(prompt), Some(completion)) = (line.prompt, line.completion) {
        return Ok(Lesson::Completion { prompt, completion });
    } else {
        return Err(
            "nothing to learn from in it; expected `messages`, `conversations`, `instruction` with `output` or \
                    `response`, `src` with `tgt`, or `prompt` with `completion`"
                .into(),
        );
    };
    if let Some(text) = system {
        conversation.messages.insert(0, Message::system(text));
        conversation.trained.insert(0, false);
    }
    conversation.tools = tools;
    if conversation.messages.iter().all(|message| message.role != "assistant") {
        return Err("no turn of the assistant: there is nothing to learn".into());
    }
    Ok(Lesson::Chat(conversation))
}

/// Turns as OpenAI writes them.
pub(super) fn from_messages(turns: Vec<Turn>) -> Result<Conversation> {
    let mut conversation = Conversation::new(Vec::with_capacity(turns.len()));
    for (at, turn) in turns.into_iter().enumerate() {
        if !ROLES.contains(&turn.role.as_str()) {
            let role: String = turn.role.chars().take(60).collect();
            return Err(format!("messages[{at}].role: expected one of {}, got {role:?}", ROLES.join(", ")));
        }
        let content = match turn.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut texts = Vec::with_capacity(parts.len());
                for part in parts {
                    let text = part.text.filter(|_| part.kind == "text");
                    let kind: String = part.kind.chars().take(60).collect();
                    texts.push(text.ok_or(format!(
                        "messages[{at}].content: only parts of type \"text\" are learned, got {kind:?}"
                    ))?);
                }
                texts.concat()
            }
        };
        let call = |call: Call| ToolCall {
            id: call.id,
            name: call.function.name,
            arguments: match call.function.arguments {
                Value::String(text) => text,
                json => json.to_string(),
            },
        };
        let assistant = turn.role == "assistant";
        conversation.trained.push(assistant && turn.weight.is_none_or(|weight| weight > 0.0));
        conversation.messages.push(Message {
            tool_calls: turn.tool_calls.unwrap_or_default().into_iter().map(call).collect(),
            tool_call_id: turn.tool_call_id,
            name: turn.name,
            reasoning: turn.reasoning_content,
            ..Message::new(turn.role, content)
        });
    }
    Ok(conversation)
}

/// Turns as ShareGPT writes them.
pub(super) fn from_sharegpt(said: Vec<Said>) -> Result<Conversation> {
    let mut messages = Vec::with_capacity(said.len());
    for (at, Said { from, value }) in said.into_iter().enumerate() {
        let role = match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "model" | "bot" | "chatgpt" | "bing" | "bard" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function" => "tool",
            other => {
                let other: String = other.chars().take(60).collect();
                return Err(format!(
                    "conversations[{at}].from: expected human, gpt, system, tool or observation, got {other:?}"
                ));
            }
        };
        messages.push(Message::new(role, value));
    }
    Ok(Conversation::new(messages))
}

fn from_alpaca(instruction: String, input: Option<String>, answer: String, history: Vec<[String; 2]>) -> Conversation {
    let mut messages = Vec::new();
    for [asked, answered] in history {
        messages.extend([Message::user(asked), Message::assistant(answered)]);
    }
    messages.extend([Message::user(with_input(instruction, input)), Message::assistant(answer)]);
    Conversation::new(messages)
}

/// What Alpaca's instruction and its input ask together.
pub(super) fn with_input(instruction: String, input: Option<String>) -> String {
    match input.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    }
}

fn from_ernie(src: Vec<String>, tgt: Vec<String>, label: Option<Vec<u8>>) -> Result<Conversation> {
    if src.len() != tgt.len() {
        return Err(format!("{} `src` and {} `tgt`, expected as many", src.len(), tgt.len()));
    }
    if let Some(label) = label.as_ref().filter(|label| label.len() != tgt.len()) {
        return Err(format!("{} `label` for {} `tgt`, expected as many", label.len(), tgt.len()));
    }
    let mut conversation = Conversation::new(Vec::new());
    for (at, (asked, answered)) in src.into_iter().zip(tgt).enumerate() {
        conversation.messages.extend([Message::user(asked), Message::assistant(answered)]);
        conversation.trained.extend([false, label.as_ref().is_none_or(|label| label[at] != 0)]);
    }
    Ok(conversation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(line: &str) -> Conversation {
        match parse(line) {
            Ok(Lesson::Chat(conversation)) => conversation,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_prompt_and_its_completion_are_text() {
        let lesson = Lesson::Completion { prompt: "a".into(), completion: " b".into() };
        assert_eq!(parse(r#"{"prompt": "a", "completion": " b"}"#), Ok(lesson));
    }

    fn turns(line: &str) -> Vec<(String, String, bool)> {
        let Conversation { messages, trained, .. } = chat(line);
        messages.into_iter().zip(trained).map(|(m, t)| (m.role, m.content, t)).collect()
    }

    fn expected(turns: &[(&str, &str, bool)]) -> Vec<(String, String, bool)> {
        turns.iter().map(|&(role, text, trained)| (role.to_owned(), text.to_owned(), trained)).collect()
    }

    #[test]
    fn every_shape_is_the_same_conversation() {
        let whole = expected(&[("system", "S", false), ("user", "Q", false), ("assistant", "A", true)]);
        for line in [
            r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": "A"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S", "id": 3}"#,
            r#"{"instruction": "Q", "input": " ", "output": "A", "system": "S"}"#,
            r#"{"instruction": "Q", "context": "", "response": "A", "category": "qa", "system": "S"}"#,
            r#"{"src": "Q", "tgt": "A", "system": "S"}"#,
            r#"{"src": ["Q"], "tgt": ["A"], "label": [1], "system": "S", "is_system": 1}"#,
        ] {
            assert_eq!(turns(line), whole, "{line}");
        }
        let long = expected(&[
            ("user", "1", false),
            ("assistant", "2", true),
            ("user", "3\n4", false),
            ("assistant", "5", true),
        ]);
        assert_eq!(turns(r#"{"instruction": "3", "input": "4", "output": "5", "history": [["1", "2"]]}"#), long);
        let part = expected(&[
            ("user", "1", false),
            ("assistant", "2", false),
            ("user", "3", false),
            ("assistant", "4", true),
        ]);
        assert_eq!(turns(r#"{"src": ["1", "3"], "tgt": ["2", "4"], "label": [0, 1]}"#), part);
        let weighed = r#"{"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "weight": 0},
            {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}]}"#;
        assert_eq!(turns(weighed), part);
    }

    #[test]
    fn calls_and_tools_are_kept() {
        let line = r#"{"tools": "[{\"type\": \"function\"}]", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": null,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}, {"role": "tool", "tool_call_id": "1", "content": "2"}]}"#;
        let conversation = chat(line);
        assert_eq!(conversation.tools.len(), 1);
        assert_eq!(conversation.messages[1].tool_calls[0].arguments, r#"{"x":1}"#);
        assert_eq!(conversation.messages[2].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn mistakes_say_what_was_expected() {
        for (line, says) in [
            ("[1]", "one object a line"),
            ("{", "not a conversation"),
            ("{}", "`messages`"),
            (r#"{"text": "a"}"#, "`messages`"),
            (r#"{"instruction": "a"}"#, "without `output`"),
            (r#"{"instruction": 5, "output": "a"}"#, "expected a string"),
            (r#"{"src": ["a"], "tgt": []}"#, "1 `src` and 0 `tgt`"),
            (r#"{"src": ["a"], "tgt": ["b"], "label": []}"#, "0 `label`"),
            (r#"{"messages": [{"role": "wizard", "content": "a"}]}"#, "messages[0].role"),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "image_url"),
            (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "nothing to learn"),
            (r#"{"conversations": [{"from": "cat", "value": "a"}]}"#, "conversations[0].from"),
            (r#"{"messages": [], "tools": 3}"#, "tools"),
        ] {
            let what = parse(line).unwrap_err();
            assert!(what.contains(says), "{line}: {what}");
        }
    }
}
