//! Definitions of tools and the choice among them, checked.

use std::collections::HashSet;

use ernie_data::chat::Message;
use ernie_data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::CallForm;
use crate::engine::Watcher;
use crate::session::Gate;
use crate::session::grammar::schema::kind;
use crate::session::grammar::{CallsGrammar, Grammar, GrammarCache, Place};
use crate::{Error, Result};

/// Tools of one request at most.
pub const MAX_TOOLS: usize = 128;
/// Bytes of all definitions together, written without white space, at most.
pub const MAX_TOOL_BYTES: usize = 512 << 10;
/// Levels of a definition at most.
const MAX_DEPTH: usize = 48;
/// Characters of a name at most.
const MAX_NAME: usize = 64;

/// A tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name: 1 to 64 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
    /// Whether its arguments must be what the schema allows.
    pub strict: bool,
}

/// Whether and what the model must call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// Nothing: the tools are not shown.
    None,
    /// What it likes.
    #[default]
    Auto,
    /// Something.
    Required,
    /// This tool.
    Named(String),
}

/// The tools of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tools {
    tools: Vec<Tool>,
    choice: ToolChoice,
    parallel: bool,
}

impl Tools {
    /// Reads tools, choice and `parallel_tool_calls` in the shapes of the OpenAI API. Without a choice it is `auto`.
    ///
    /// # Errors
    /// [`Error::Refused`], naming the field: `tools[3].function.name: …`.
    pub fn read(tools: &Value, choice: Option<&Value>, parallel: Option<bool>) -> Result<Self> {
        let list = match tools {
            Value::Null => &Vec::new(),
            Value::Array(list) => list,
            other => return refuse("tools", format!("expected a list, found {}", kind(other))),
        };
        if list.len() > MAX_TOOLS {
            return refuse("tools", format!("{} tools (expected at most {MAX_TOOLS})", list.len()));
        }
        let mut bytes = 0;
        let mut names = HashSet::new();
        let mut read = Vec::with_capacity(list.len());
        for (index, tool) in list.iter().enumerate() {
            let at = format!("tools[{index}]");
            if depth(tool) > MAX_DEPTH {
                return refuse(&at, format!("more than {MAX_DEPTH} levels deep"));
            }
            bytes += tool.to_string().len();
            if bytes > MAX_TOOL_BYTES {
                return refuse("tools", format!("more than {MAX_TOOL_BYTES} bytes"));
            }
            let tool = Tool::read(&at, tool)?;
            if !names.insert(tool.name.clone()) {
                return refuse(&format!("{at}.function.name"), format!("{:?} is the name of two tools", tool.name));
            }
            read.push(tool);
        }
        let choice = choice.map_or(Ok(ToolChoice::Auto), |choice| ToolChoice::read(choice, &names))?;
        Ok(Self { tools: read, choice, parallel: parallel.unwrap_or(true) })
    }

    /// The tools that the model is to see: none where it must not call any.
    pub fn shown(&self) -> &[Tool] {
        if self.choice == ToolChoice::None { &[] } else { &self.tools }
    }

    /// The choice.
    pub fn choice(&self) -> &ToolChoice {
        &self.choice
    }

    /// Whether calls are to be looked for in the answer.
    pub fn may_be_called(&self) -> bool {
        !self.shown().is_empty()
    }

    /// Names of the tools.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.tools.iter().map(|tool| tool.name.clone())
    }

    /// What holds an answer to its calls: the whole answer where one is required or named; the inside of each call where
    /// the model may choose and a tool is `strict`; `None` where nothing was promised.
    ///
    /// The arguments of a strict tool are what its schema allows. Those of another tool are too, as long as the schema can
    /// be honoured; otherwise they are an object.
    ///
    /// # Errors
    /// [`Error::Refused`] for the schema of a strict tool that cannot be honoured, as
    /// [`crate::session::Grammar::json_schema`].
    pub fn watcher(
        &self,
        form: &CallForm,
        cache: &GrammarCache,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Box<dyn Watcher>>> {
        // Without tags there is room for one call.
        let several = self.parallel && matches!(form, CallForm::Tagged { .. });
        let all: Vec<&Tool> = self.tools.iter().collect();
        match &self.choice {
            ToolChoice::None => Ok(None),
            ToolChoice::Required if several => Ok(Some(grammar(&all, form, Place::Several, cache)?.watcher())),
            ToolChoice::Required => Ok(Some(grammar(&all, form, Place::One, cache)?.watcher())),
            ToolChoice::Named(name) => {
                let named: Vec<&Tool> = all.into_iter().filter(|tool| tool.name == *name).collect();
                Ok(Some(grammar(&named, form, Place::One, cache)?.watcher()))
            }
            ToolChoice::Auto => match (self.tools.iter().position(|tool| tool.strict), form) {
                (None, _) => Ok(None),
                (Some(_), CallForm::Tagged { open, .. }) => {
                    let grammar = grammar(&all, form, Place::Inside, cache)?;
                    Ok(Some(Box::new(Gate::each(tokenizer, open, grammar))))
                }
                (Some(index), CallForm::Json { .. }) => {
                    let why = "is honoured only where a call is required, in the form in which this model calls";
                    refuse(&format!("tools[{index}].function.strict"), why)
                }
            },
        }
    }
}

/// The grammar of calls of these tools.
fn grammar(tools: &[&Tool], form: &CallForm, place: Place, cache: &GrammarCache) -> Result<Grammar> {
    let (tags, key) = match form {
        CallForm::Tagged { open, close } => (Some([open.clone(), close.clone()]), "arguments".to_owned()),
        CallForm::Json { key } => (None, key.clone()),
    };
    let names: Vec<Value> = tools.iter().map(|t| json!([t.name, t.parameters, t.strict])).collect();
    let source = format!("calls {place:?} {}", json!([tags, key, names]));
    cache.get(source, || {
        let mut calls = CallsGrammar { tags, key, tools: Vec::new(), place };
        calls.tools = tools.iter().map(|tool| (tool.name.clone(), tool.parameters.clone())).collect();
        calls.compile(cache.vocab()).or_else(|error| {
            for (tool, (_, parameters)) in tools.iter().zip(&mut calls.tools) {
                if !tool.strict && Grammar::json_schema(cache.vocab(), parameters).is_err() {
                    *parameters = json!({"type": "object"});
                }
            }
            // Where no tool gave way the first message stands.
            calls.compile(cache.vocab()).map_err(|_| error)
        })
    })
}

impl Tool {
    fn read(at: &str, tool: &Value) -> Result<Self> {
        let map = object(at, tool, &["type", "function"])?;
        match map.get("type") {
            Some(Value::String(kind)) if kind == "function" => {}
            _ => return refuse(&format!("{at}.type"), "expected \"function\""),
        }
        let at = format!("{at}.function");
        let Some(function) = map.get("function") else { return refuse(&at, "is missing") };
        let map = object(&at, function, &["name", "description", "parameters", "strict"])?;
        let name = map.get("name").and_then(Value::as_str).filter(|name| is_name(name));
        let Some(name) = name else {
            return refuse(&format!("{at}.name"), format!("expected 1 to {MAX_NAME} of a-z, A-Z, 0-9, _ and -"));
        };
        let description = match map.get("description") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => {
                return refuse(&format!("{at}.description"), format!("expected a text, found {}", kind(other)));
            }
        };
        let strict = match map.get("strict") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(strict)) => *strict,
            Some(_) => return refuse(&format!("{at}.strict"), "expected true or false"),
        };
        let at = format!("{at}.parameters");
        let parameters = match map.get("parameters") {
            None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
            Some(schema @ Value::Object(map)) => match map.get("type") {
                Some(Value::String(kind)) if kind == "object" => schema.clone(),
                None if map.is_empty() => json!({"type": "object", "properties": {}}),
                None if map.contains_key("$ref") || map.contains_key("properties") => schema.clone(),
                _ => return refuse(&format!("{at}.type"), "expected \"object\": arguments are an object"),
            },
            Some(other) => return refuse(&at, format!("expected a JSON schema, an object, found {}", kind(other))),
        };
        Ok(Self { name: name.to_owned(), description, parameters, strict })
    }

    /// As templates expect it.
    pub(super) fn value(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.as_str().into());
        }
        function.insert("parameters".into(), self.parameters.clone());
        json!({"type": "function", "function": function})
    }
}

impl ToolChoice {
    fn read(choice: &Value, names: &HashSet<String>) -> Result<Self> {
        let at = "tool_choice";
        let expected = r#"expected "none", "auto", "required" or {"type": "function", "function": {"name": …}}"#;
        let choice = match choice {
            Value::Null => Self::Auto,
            Value::String(word) => match word.as_str() {
                "none" => Self::None,
                "auto" => Self::Auto,
                "required" => Self::Required,
                _ => return refuse(at, expected),
            },
            Value::Object(_) => {
                let map = object(at, choice, &["type", "function"])?;
                let function = match (map.get("type").and_then(Value::as_str), map.get("function")) {
                    (Some("function"), Some(function)) => object("tool_choice.function", function, &["name"])?,
                    _ => return refuse(at, expected),
                };
                let at = "tool_choice.function.name";
                match function.get("name").and_then(Value::as_str) {
                    Some(name) if names.contains(name) => Self::Named(name.to_owned()),
                    Some(name) => {
                        let name: String = name.chars().take(MAX_NAME).collect();
                        return refuse(at, format!("{name:?} is none of the tools"));
                    }
                    None => return refuse(at, "expected the name of a tool"),
                }
            }
            _ => return refuse(at, expected),
        };
        if choice == Self::Required && names.is_empty() {
            return refuse(at, "a call is required, and there are no tools");
        }
        Ok(choice)
    }
}

/// Checks that calls and their results belong together.
///
/// # Errors
/// [`Error::Refused`], naming the message.
pub fn check_messages(messages: &[Message]) -> Result<()> {
    let mut called: HashSet<&str> = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages[{index}]");
        if !message.tool_calls.is_empty() && message.role != "assistant" {
            return refuse(&format!("{at}.tool_calls"), "only the assistant makes calls");
        }
        if message.tool_calls.len() > MAX_TOOLS {
            return refuse(&format!("{at}.tool_calls"), format!("more than {MAX_TOOLS} calls"));
        }
        for (call, made) in message.tool_calls.iter().enumerate() {
            if !is_name(&made.name) {
                let expected = format!("expected 1 to {MAX_NAME} of a-z, A-Z, 0-9, _ and -");
                return refuse(&format!("{at}.tool_calls[{call}].function.name"), expected);
            }
            called.insert(&made.id);
        }
        match &message.tool_call_id {
            Some(id) if message.role == "tool" && !called.contains(id.as_str()) => {
                let id: String = id.chars().take(MAX_NAME).collect();
                return refuse(&format!("{at}.tool_call_id"), format!("no call {id:?} stands before it"));
            }
            Some(_) if message.role != "tool" => {
                return refuse(&format!("{at}.tool_call_id"), "belongs to messages of the role tool");
            }
            None if message.role == "tool" => {
                return refuse(&format!("{at}.tool_call_id"), "is missing: it names the call that is answered");
            }
            _ => {}
        }
    }
    Ok(())
}

fn refuse<T>(at: &str, what: impl Into<String>) -> Result<T> {
    Err(Error::refused(at, what))
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(good)
}

fn object<'a>(at: &str, value: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>> {
    let Some(map) = value.as_object() else {
        return refuse(at, format!("expected an object, found {}", kind(value)));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => {
            let key: String = key.chars().filter(|c| !c.is_control()).take(60).collect();
            refuse(&format!("{at}.{key}"), format!("is not known (expected {})", known.join(", ")))
        }
        None => Ok(map),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
