//! The forms in which models write calls.

use ernie_data::chat::ToolCall;
use ernie_data::tokenizer::Tokenizer;
use serde_json::Value;

/// How a model writes the call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: ERNIE-4.5's and that of ChatML models after Hermes.
    Tagged {
        /// Stands in front of each call.
        open: String,
        /// Stands behind it.
        close: String,
    },
    /// The object alone, as the whole answer.
    Json {
        /// The key of the arguments: `arguments` or `parameters`.
        key: String,
    },
}

impl CallForm {
    /// `<tool_call>…</tool_call>`.
    pub fn tagged() -> Self {
        Self::Tagged { open: "<tool_call>".into(), close: "</tool_call>".into() }
    }

    /// The form of a model, by its tokenizer and the source of its chat template. Where neither says anything it is the
    /// tagged one, which is what [`super::Tools::prompt`] then asks for.
    pub fn detect(tokenizer: &Tokenizer, template: &str) -> Self {
        let tagged = template.contains("<tool_call>") || tokenizer.id_of("<tool_call>").is_some();
        let json = ["\"parameters\":", "\"arguments\":"].into_iter().find(|key| template.contains(key));
        match json.filter(|_| !tagged && template.contains("tools")) {
            Some(key) => Self::Json { key: key.trim_matches(['"', ':']).to_owned() },
            None => Self::tagged(),
        }
    }

    /// The tags, for a [`crate::session::TextStream`] that must show them though they are special tokens, and for
    /// [`crate::session::GrammarVocab`].
    pub fn tags(&self) -> Vec<&str> {
        match self {
            Self::Tagged { open, close } => vec![open, close],
            Self::Json { .. } => Vec::new(),
        }
    }

    /// A call in this form.
    pub fn write(&self, call: &ToolCall) -> String {
        let name = Value::from(call.name.as_str());
        // What a model wrote is repeated as it stands where it is JSON, and as a text where it is not.
        let arguments = match serde_json::from_str::<serde::de::IgnoredAny>(&call.arguments) {
            Ok(_) => call.arguments.clone(),
            Err(_) => Value::from(call.arguments.as_str()).to_string(),
        };
        match self {
            Self::Tagged { open, close } => {
                format!("{open}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{close}")
            }
            Self::Json { key } => format!("{{\"name\": {name}, {}: {arguments}}}", Value::from(key.as_str())),
        }
    }
}
