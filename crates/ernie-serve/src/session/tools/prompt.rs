//! Tools and calls in a conversation, for templates that know them and for those that do not.

use ernie_data::chat::{ChatTemplate, Message, Prompt};
use serde_json::Value;

use super::{CallForm, Tools};

/// What a template renders: messages and tools, in the way that the template understands.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolPrompt {
    /// The turns.
    pub messages: Vec<Message>,
    /// The tools; empty where they stand in a message.
    pub tools: Vec<Value>,
}

impl ToolPrompt {
    /// For [`ChatTemplate::render_prompt`].
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt { tools: &self.tools, ..Prompt::new(&self.messages) }
    }
}

impl Tools {
    /// Puts tools and messages together for a template. Where it shows no tools, they are described in the system message,
    /// and calls and their results become text in the same words.
    pub fn prompt(&self, template: &ChatTemplate, form: &CallForm, messages: &[Message]) -> ToolPrompt {
        let tools: Vec<Value> = self.shown().iter().map(super::Tool::value).collect();
        if template.shows_tools() {
            return ToolPrompt { messages: messages.to_vec(), tools };
        }
        let mut turns: Vec<Message> = messages.iter().map(|message| as_text(message, form)).collect();
        if !tools.is_empty() {
            let description = describe(&tools, form);
            match turns.first_mut().filter(|first| first.role == "system") {
                Some(system) => system.content = format!("{}\n\n{description}", system.content),
                None => turns.insert(0, Message::system(description)),
            }
        }
        ToolPrompt { messages: turns, tools: Vec::new() }
    }
}

/// The words by which ChatML models learn of tools.
fn describe(tools: &[Value], form: &CallForm) -> String {
    let list: Vec<String> = tools.iter().map(Value::to_string).collect();
    let (where_, example) = match form {
        CallForm::Tagged { open, close } => (
            format!(" within {open}{close} tags"),
            format!("{open}\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n{close}"),
        ),
        CallForm::Json { key } => {
            (String::new(), format!("{{\"name\": <function-name>, \"{key}\": <args-json-object>}}"))
        }
    };
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json object \
         with function name and arguments{where_}:\n{example}",
        list.join("\n")
    )
}

/// A turn without anything but text.
fn as_text(message: &Message, form: &CallForm) -> Message {
    let calls = message.tool_calls.iter().map(|call| form.write(call));
    let content = std::iter::once(message.content.clone()).filter(|text| !text.is_empty()).chain(calls);
    let content: Vec<String> = content.collect();
    match message.role.as_str() {
        "tool" | "function" => Message::user(format!("<tool_response>\n{}\n</tool_response>", message.content)),
        _ => Message { content: content.join("\n"), tool_calls: Vec::new(), ..message.clone() },
    }
}
