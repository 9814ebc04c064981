//! Conversations to learn from: what the files of the field call them, and which of their tokens an assistant is to write.
//!
//! A line of JSON is one of six shapes, told apart by their keys ([`Lesson::parse`]). The chat template makes one text of a conversation, exactly
//! as it would of a prompt, so that what is learned is what will be asked for: a turn of the assistant is what stands between the end of that prompt and the end
//! of the turn, its end mark included. A prompt with its completion is text as it stands, without a template.

mod preferences;
mod shapes;

use crate::chat::{ChatTemplate, Message, Prompt};
use crate::packing::{Example, Group};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A line to learn from.
#[derive(Debug, Clone, PartialEq)]
pub enum Lesson {
    /// Turns, to be put through a chat template.
    Chat(Conversation),
    /// Text that goes on, and what it goes on with.
    Completion {
        /// Read.
        prompt: String,
        /// Learned, with the end of the text after it.
        completion: String,
    },
}

impl Lesson {
    /// Reads a line of JSON: `messages` (OpenAI), `conversations` (ShareGPT), `instruction` with `output` (Alpaca) or `response` (Dolly), `src`
    /// and `tgt` (ERNIE), or `prompt` with `completion` (TRL), which is text without a template.
    ///
    /// # Errors
    /// What is wrong with the line, and what was expected.
    pub fn parse(line: &str) -> std::result::Result<Self, String> {
        shapes::parse(line)
    }

    /// The lesson as tokens; see [`Conversation::examples`], which `most` is for.
    ///
    /// # Errors
    /// As there; [`Error::Tokenizer`] for a completion where no token ends a text.
    pub fn examples(&self, template: &ChatTemplate, tokenizer: &Tokenizer, most: usize) -> Result<Vec<Example>> {
        let (prompt, completion) = match self {
            Self::Chat(conversation) => return conversation.examples(template, tokenizer, most),
            Self::Completion { prompt, completion } => (prompt, completion),
        };
        let eos = tokenizer.eos().ok_or_else(|| Error::Tokenizer {
            at: "the tokenizer".into(),
            what: "no token ends a text, expected one to follow a completion".into(),
        })?;
        // Before the first token of a text stands what ended the one before, as in pre-training.
        let asked = [vec![eos], tokenizer.encode(prompt)?].concat();
        let answered = [tokenizer.encode(completion)?, vec![eos]].concat();
        let trained = (0..asked.len() + answered.len()).map(|i| i >= asked.len()).collect();
        Ok(vec![Example { ids: [asked, answered].concat(), trained, text_bytes: completion.len() as u64 }])
    }
}

/// Two answers to one question, of which one was judged the better.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// The question with the better answer, which alone is learned.
    pub chosen: Lesson,
    /// The question with the worse answer, which alone is learned from.
    pub rejected: Lesson,
}

impl Preference {
    /// Reads a line of JSON with `chosen` and `rejected` beside `prompt` (TRL), `messages`, `conversations` (ShareGPT) or `instruction` (Alpaca), or as
    /// whole conversations (turns, or Anthropic's text of `Human:` and `Assistant:`). Where `prompt` is text there is no template.
    ///
    /// # Errors
    /// What is wrong with the line, and what was expected.
    pub fn parse(line: &str) -> std::result::Result<Self, String> {
        preferences::parse(line)
    }

    /// The two answers as tokens, the chosen one first; see [`Conversation::examples`].
    ///
    /// # Errors
    /// As there.
    pub fn examples(&self, template: &ChatTemplate, tokenizer: &Tokenizer, most: usize) -> Result<Group> {
        let chosen = self.chosen.examples(template, tokenizer, most)?;
        let rejected = self.rejected.examples(template, tokenizer, most)?;
        Ok(chosen.into_iter().chain(rejected).collect())
    }
}

/// A conversation, and which of its turns are learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
    /// Tools that the assistant was given.
    pub tools: Vec<serde_json::Value>,
    /// One for each turn; turns of the assistant alone can be learned.
    pub trained: Vec<bool>,
}

impl Conversation {
    /// Turns, of which all of the assistant's are learned.
    pub fn new(messages: Vec<Message>) -> Self {
        let trained = messages.iter().map(|message| message.role == "assistant").collect();
        Self { messages, tools: Vec::new(), trained }
    }

    /// The conversation as tokens. One example, where the next prompt begins with the tokens of the turns before; one for each turn that is learned, where
    /// it does not: where the template rewrites earlier turns (drops their reasoning, say), or the tokenizer joins what stood apart. Turns after an example
    /// longer than `most` tokens are left out: nobody takes so long a one, and a conversation without end would take time without end.
    ///
    /// # Errors
    /// [`Error::Template`] if the template does not take the conversation, or a turn of the assistant does not go on from its prompt.
    pub fn examples(&self, template: &ChatTemplate, tokenizer: &Tokenizer, most: usize) -> Result<Vec<Example>> {
        let render = |turns: usize, ask: bool| {
            let messages = &self.messages[..turns];
            let prompt = Prompt { tools: &self.tools, add_generation_prompt: ask, ..Prompt::new(messages) };
            template.render_prompt(&prompt, tokenizer)
        };
        let mut examples: Vec<Example> = Vec::new();
        for turn in (0..self.messages.len()).filter(|&turn| self.trained[turn]) {
            if examples.last().is_some_and(|last| last.ids.len() > most) {
                break;
            }
            let (prompt, whole) = (render(turn, true)?, render(turn + 1, false)?);
            if !whole.text().starts_with(prompt.text()) {
                return Err(Error::Template(format!(
                    "turn {} of the assistant does not go on from the template's own prompt, so there is no telling what it is to write",
                    turn + 1
                )));
            }
            // Apart, as they will be: the answer is written after the prompt's tokens, whatever they would have become together.
            let answer = whole.after(prompt.text().len());
            let (asked, answered) = (prompt.encode(tokenizer)?, answer.encode(tokenizer)?);
            let text_bytes = answer.text().len() as u64;
            match examples.last_mut().filter(|last| asked.starts_with(&last.ids)) {
                Some(last) => {
                    last.trained.resize(asked.len(), false);
                    last.trained.resize(asked.len() + answered.len(), true);
                    last.ids = [asked, answered].concat();
                    last.text_bytes += text_bytes;
                }
                None => {
                    let trained = (0..asked.len() + answered.len()).map(|i| i >= asked.len()).collect();
                    examples.push(Example { ids: [asked, answered].concat(), trained, text_bytes });
                }
            }
        }
        Ok(examples)
    }
}
