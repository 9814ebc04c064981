//! The manner of an answer: held to a grammar, with calls of tools, with the reasoning told apart.
//!
//! [`Form`] is what a request asks for, checked at the door. [`Form::prepare`] compiles grammars and renders the prompt,
//! aside from the handlers. What comes of it, a [`Manner`], says how the text of each choice is divided ([`Voice`]).

use ernie_data::chat::Message;
use serde_json::Value;

use super::error::{ApiError, ApiResult};
use super::fields::{Fields, is_nothing, kind};
use super::state::Model;
use crate::engine::Watcher;
use crate::session::tools::{ToolPrompt, check_messages};
use crate::session::{CallForm, Delta, Gate, Grammar, GrammarCache, ReasoningForm};
use crate::session::{Splitter, TextStream, ToolChoice, ToolParser, Tools};

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    Text,
    Object,
    Schema(Value),
    Regex(String),
}

/// What a request asks of its answers' form.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Form {
    wanted: Wanted,
    tools: Tools,
}

impl Form {
    /// Takes `response_format`, `tools`, `tool_choice` and `parallel_tool_calls`.
    pub(super) fn take(fields: &mut Fields) -> ApiResult<Self> {
        let wanted = match fields.take("response_format") {
            None => Wanted::Text,
            Some(value) => {
                let mut format = Fields::of(value, "response_format")?;
                let inner = format.take("json_schema");
                wanted(&mut format, inner, "response_format.json_schema")?
            }
        };
        let tools = fields.take("tools").unwrap_or(Value::Null);
        let choice = fields.take("tool_choice");
        let tools = Tools::read(&tools, choice.as_ref(), fields.bool("parallel_tool_calls")?)?;
        if wanted != Wanted::Text && tools.may_be_called() {
            let why = "is honoured without tools only: calls have a form of their own";
            return Err(ApiError::unsupported("response_format", why));
        }
        Ok(Self { wanted, tools })
    }

    /// Takes `text.format`, as the newer API spells it.
    pub(super) fn take_text(fields: &mut Fields) -> ApiResult<Self> {
        let mut form = Self { wanted: Wanted::Text, tools: Tools::default() };
        let Some(text) = fields.take("text") else { return Ok(form) };
        let mut text = Fields::of(text, "text")?;
        text.refuse("verbosity", "is not honoured by this server", |value| value == "medium")?;
        if let Some(format) = text.take("format") {
            let inner = Some(format.clone());
            form.wanted = wanted(&mut Fields::of(format, "text.format")?, inner, "text.format")?;
        }
        Ok(form)
    }

    /// Renders and encodes a conversation, and compiles what holds its `choices` answers. It takes its time.
    pub(super) fn prepare(
        &self,
        model: &Model,
        messages: &[Message],
        choices: usize,
        call_ids: String,
    ) -> ApiResult<(Vec<u32>, Manner)> {
        check_messages(messages)?;
        let tokenizer = model.tokenizer_for("messages")?;
        let prompt: ToolPrompt = self.tools.prompt(&model.template, &model.calls, messages);
        let rendered = model.template.render_prompt(&prompt.prompt(), tokenizer)?;
        let ids = rendered.encode(tokenizer)?;

        let thinks = model.reasoning.as_ref();
        let mut inside = thinks.is_some_and(|form| form.is_open_in(rendered.text()));
        let mut watchers: Vec<Box<dyn Watcher>> = Vec::new();
        if let Some(grammar) = self.grammar(model)? {
            for _ in 0..choices {
                watchers.push(match thinks.filter(|_| inside) {
                    // It thinks first, and freely.
                    Some(form) => Box::new(Gate::once(tokenizer, &form.close, grammar.clone())),
                    None => grammar.watcher(),
                });
            }
        } else if self.tools.may_be_called() {
            let cache = grammars(model)?;
            for _ in 0..choices {
                watchers.extend(self.tools.watcher(&model.calls, cache, tokenizer)?);
            }
            // A call that must be made begins at once: there is no reasoning in front of it.
            inside &= matches!(self.tools.choice(), ToolChoice::None | ToolChoice::Auto);
        }
        let calls = self.tools.may_be_called().then(|| Calls {
            form: model.calls.clone(),
            names: self.tools.names().collect(),
            ids: call_ids,
        });
        Ok((ids, Manner { reasoning: thinks.map(|form| (form.clone(), inside)), calls, watchers }))
    }

    fn grammar(&self, model: &Model) -> ApiResult<Option<Grammar>> {
        Ok(match &self.wanted {
            Wanted::Text => None,
            Wanted::Object => Some(grammars(model)?.json_object()?),
            Wanted::Schema(schema) => Some(grammars(model)?.json_schema(schema)?),
            Wanted::Regex(pattern) => Some(grammars(model)?.regex(pattern)?),
        })
    }
}

fn grammars(model: &Model) -> ApiResult<&GrammarCache> {
    let why = "is not honoured for this model: its vocabulary has no grammar";
    model.grammars.as_ref().ok_or_else(|| ApiError::unsupported("response_format", why))
}

/// Reads a format; `inner` is where the two APIs keep the schema.
fn wanted(format: &mut Fields, inner: Option<Value>, place: &str) -> ApiResult<Wanted> {
    match format.text("type")?.as_deref() {
        Some("text") => Ok(Wanted::Text),
        Some("json_object") => Ok(Wanted::Object),
        Some("regex") => match format.text("regex")? {
            Some(pattern) => Ok(Wanted::Regex(pattern)),
            None => Err(ApiError::field(&format.name("regex"), "missing", "a regular expression")),
        },
        Some("json_schema") => {
            let missing = || ApiError::field(place, "missing", "an object with a `schema`");
            let mut inner = Fields::of(inner.ok_or_else(missing)?, place)?;
            match inner.take("schema") {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Wanted::Schema(schema)),
                Some(other) => Err(ApiError::field(&inner.name("schema"), kind(&other), "a JSON schema, an object")),
                None => Err(ApiError::field(&inner.name("schema"), "missing", "a JSON schema")),
            }
        }
        Some(_) => {
            let expected = r#""text", "json_object", "json_schema" or "regex""#;
            Err(ApiError::field(&format.name("type"), "of another kind", expected))
        }
        None => Err(ApiError::field(&format.name("type"), "missing", "such as \"json_schema\"")),
    }
}

/// Refuses what only conversations may ask for.
pub(super) fn refuse(fields: &mut Fields) -> ApiResult<()> {
    let why = "is not honoured at this route";
    fields.refuse("response_format", why, |value| value["type"] == "text")?;
    fields.refuse("tools", why, is_nothing)
}

#[derive(Debug, Clone)]
struct Calls {
    form: CallForm,
    names: Vec<String>,
    /// What the ids of calls begin with.
    ids: String,
}

/// How answers are held and divided. The default leaves them as they are.
#[derive(Default)]
pub(super) struct Manner {
    /// The form of the reasoning, and whether answers begin inside it.
    reasoning: Option<(ReasoningForm, bool)>,
    calls: Option<Calls>,
    /// None, or one for each choice.
    watchers: Vec<Box<dyn Watcher>>,
}

impl Manner {
    /// Tokens that the text must show though they are special.
    fn tags(&self) -> Vec<&str> {
        let reasoning = self.reasoning.iter().flat_map(|(form, _)| form.tags());
        reasoning.chain(self.calls.iter().flat_map(|calls| calls.form.tags())).collect()
    }

    /// The text of a choice, before it is divided.
    pub(super) fn text(&self, model: &Model, stop: &[String]) -> ApiResult<Option<TextStream>> {
        match &model.tokenizer {
            Some(tokenizer) => Ok(Some(TextStream::new(tokenizer, stop)?.showing(tokenizer, &self.tags()))),
            None if stop.is_empty() => Ok(None),
            None => Err(ApiError::field("stop", "a string", "none, because this model has no tokenizer")),
        }
    }

    /// The watcher of the next choice, if there is one.
    pub(super) fn watcher(&mut self) -> Option<Box<dyn Watcher>> {
        self.watchers.pop()
    }

    /// What divides the text of a choice.
    pub(super) fn voice(&self, text: Option<TextStream>, choice: usize) -> Voice {
        let split = self.reasoning.as_ref().map(|(form, inside)| Splitter::new(form.clone(), *inside));
        let parser = |calls: &Calls| {
            let ids = format!("{}{choice}_", calls.ids);
            ToolParser::new(&calls.form, calls.names.iter().cloned(), ids)
        };
        Voice { text, split, calls: self.calls.as_ref().map(parser) }
    }
}

/// What is new in a choice, divided.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spoken {
    pub(super) reasoning: String,
    pub(super) text: String,
    /// Beginnings of calls and more of their arguments, never text.
    pub(super) calls: Vec<Delta>,
}

/// Divides the ids of one choice into reasoning, text and calls.
pub(super) struct Voice {
    text: Option<TextStream>,
    split: Option<Splitter>,
    calls: Option<ToolParser>,
}

impl Voice {
    /// Takes an id.
    pub(super) fn push(&mut self, id: u32, out: &mut Spoken) {
        if let Some(text) = &mut self.text {
            let more = text.push(id);
            self.divide(&more, out);
        }
    }

    /// The end. Whether it is that of calls that are whole.
    pub(super) fn finish(mut self, out: &mut Spoken) -> bool {
        let tail = self.text.take().map(TextStream::finish).unwrap_or_default();
        self.divide(&tail, out);
        if let Some(split) = self.split.take() {
            let rest = split.finish();
            out.reasoning += &rest.reasoning;
            self.call(&rest.content, out);
        }
        let Some(calls) = &mut self.calls else { return false };
        sort(calls.finish(), out);
        calls.calls() > 0 && !calls.cut_off()
    }

    fn divide(&mut self, text: &str, out: &mut Spoken) {
        if text.is_empty() {
            return;
        }
        match &mut self.split {
            None => self.call(text, out),
            Some(split) => {
                let parts = split.push(text);
                out.reasoning += &parts.reasoning;
                self.call(&parts.content, out);
            }
        }
    }

    fn call(&mut self, text: &str, out: &mut Spoken) {
        match &mut self.calls {
            _ if text.is_empty() => {}
            None => out.text += text,
            Some(calls) => sort(calls.push(text), out),
        }
    }
}

fn sort(deltas: Vec<Delta>, out: &mut Spoken) {
    for delta in deltas {
        match delta {
            Delta::Text(text) => out.text += &text,
            call => out.calls.push(call),
        }
    }
}
