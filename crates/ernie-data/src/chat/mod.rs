//! Chat templates: messages to the text a model was trained on, with callers' words kept apart from the template's.
//!
//! A checkpoint brings a Jinja template; without one, ERNIE-4.5's own is used ([`ChatTemplate::default_ernie`]). What comes
//! out is a [`Rendered`]: one text, and which parts of it a caller wrote. Encoding it recognises control tokens in the
//! template's parts only (`marks` says how the parts are told apart); the text is otherwise cut as one string.
//!
//! ```
//! use ernie_data::chat::{ChatTemplate, Message};
//! let template = ChatTemplate::default_ernie();
//! let rendered = template.render_with_roles(&[Message::user("Hi</s>")], true, [])?;
//! assert_eq!(rendered.text(), "<|begin_of_sentence|>User: Hi</s>\nAssistant: ");
//! let callers: Vec<_> = rendered.pieces().into_iter().filter(|p| !p.trusted).map(|p| p.text).collect();
//! assert_eq!(callers, ["Hi</s>"]);
//! # Ok::<(), ernie_data::Error>(())
//! ```

mod date;
mod environment;
mod marks;
mod message;

use std::ops::Range;

use minijinja::Value;

pub use message::{Message, ToolCall};

use crate::tokenizer::{Piece, Tokenizer};
use crate::{Error, Result};

/// ERNIE-4.5's template for text.
pub const ERNIE_TEMPLATE: &str = include_str!("ernie.jinja");

/// Who may speak. Roles stand beside control tokens in a template's text (`<|user|>`), so they are a fixed list.
pub const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// What a template renders.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// The turns.
    pub messages: &'a [Message],
    /// Tools that the model may call, each `{"type": "function", "function": {…}}`.
    pub tools: &'a [serde_json::Value],
    /// Ends where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// Asks a thinking model to think, or not to; the template decides where this is `None`.
    pub enable_thinking: Option<bool>,
}

impl<'a> Prompt<'a> {
    /// Messages alone, up to where the assistant begins to speak.
    pub fn new(messages: &'a [Message]) -> Self {
        Self { messages, tools: &[], add_generation_prompt: true, enable_thinking: None }
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    environment: minijinja::Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a Jinja template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line at fault.
    pub fn from_source(source: &str) -> Result<Self> {
        let environment = environment::compile(source)?;
        Ok(Self { source: source.to_owned(), environment })
    }

    /// ERNIE-4.5's template for text: `User: …\n`, `Assistant: …<|end_of_sentence|>`, a system text and a newline.
    pub fn default_ernie() -> Self {
        Self::from_source(ERNIE_TEMPLATE)
            .unwrap_or_else(|_| Self { source: String::new(), environment: minijinja::Environment::empty() })
    }

    /// The template that came with a tokenizer, or ERNIE's.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_source`].
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Result<Self> {
        tokenizer.chat_template().map_or_else(|| Ok(Self::default_ernie()), Self::from_source)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template shows tools to the model. One that does not would pass over them in silence.
    pub fn shows_tools(&self) -> bool {
        self.uses("tools")
    }

    /// Whether the template looks at a variable of this name.
    pub fn uses(&self, variable: &str) -> bool {
        environment::variables(&self.environment).contains(variable)
    }

    /// Renders messages. The template sees the tokenizer's special tokens as `bos_token`, `eos_token`, ….
    ///
    /// # Errors
    /// [`Error::Template`] for an unknown role, a template that raises an exception, or one that needs more steps,
    /// depth or output than allowed.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, tokenizer: &Tokenizer) -> Result<Rendered> {
        self.render_with_roles(messages, add_generation_prompt, tokenizer.roles())
    }

    /// As [`ChatTemplate::render`], with the special tokens given by role and literal.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with_roles<'a>(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        roles: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Rendered> {
        self.render_prompt_with_roles(&Prompt { add_generation_prompt, ..Prompt::new(messages) }, roles)
    }

    /// Renders messages and tools.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_prompt(&self, prompt: &Prompt<'_>, tokenizer: &Tokenizer) -> Result<Rendered> {
        self.render_prompt_with_roles(prompt, tokenizer.roles())
    }

    fn render_prompt_with_roles<'a>(
        &self,
        prompt: &Prompt<'_>,
        roles: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Rendered> {
        let messages = prompt.messages;
        if let Some(message) = messages.iter().find(|m| !ROLES.contains(&m.role.as_str())) {
            let role: String = message.role.chars().take(60).collect();
            return Err(Error::Template(format!("role {role:?} is not known (expected one of {})", ROLES.join(", "))));
        }
        let specials: Vec<(&str, &str)> = roles.into_iter().collect();
        let tools = prompt.tools.iter().map(|tool| tool.to_string().len());
        let bytes: usize = messages.iter().map(Message::bytes).chain(tools).sum();
        let render = |disguise: bool| {
            let mut context: Vec<(&str, Value)> =
                specials.iter().map(|&(role, literal)| (role, Value::from(literal))).collect();
            let turns: Result<Vec<Value>> = messages.iter().map(|message| message.value(disguise)).collect();
            context.push(("messages", Value::from(turns?)));
            context.push(("add_generation_prompt", Value::from(prompt.add_generation_prompt)));
            if !prompt.tools.is_empty() {
                let tools: Result<Vec<Value>> =
                    prompt.tools.iter().map(|tool| message::json_value("tools", tool, disguise, true)).collect();
                context.push(("tools", Value::from(tools?)));
            }
            context.extend(prompt.enable_thinking.map(|on| ("enable_thinking", Value::from(on))));
            let items = messages.len() + prompt.tools.len();
            environment::render(&self.environment, Value::from_pairs(context), items, bytes)
        };
        let (text, untrusted) = marks::resolve(render(false)?, &render(true)?);
        Ok(Rendered { text, untrusted })
    }
}

/// A rendered conversation that knows who wrote what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// Byte ranges of callers' characters, in order.
    untrusted: Vec<Range<usize>>,
}

impl Rendered {
    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text in pieces: the template's are trusted, the callers' not.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::with_capacity(2 * self.untrusted.len() + 1);
        let mut done = 0;
        let mut push = |range: Range<usize>, trusted| {
            if !range.is_empty() {
                pieces.push(Piece { text: &self.text[range], trusted });
            }
        };
        for range in &self.untrusted {
            push(done..range.start, true);
            push(range.clone(), false);
            done = range.end;
        }
        push(done..self.text.len(), true);
        pieces
    }

    /// What follows the first `at` bytes, which end a character.
    ///
    /// # Panics
    /// When they do not.
    #[must_use]
    pub fn after(&self, at: usize) -> Self {
        let shifted = self.untrusted.iter().filter(|range| range.end > at);
        Self {
            text: self.text[at..].to_owned(),
            untrusted: shifted.map(|range| range.start.max(at) - at..range.end - at).collect(),
        }
    }

    /// The ids: control tokens where the template wrote them, text everywhere else.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        tokenizer.encode_marked(&self.pieces())
    }
}
