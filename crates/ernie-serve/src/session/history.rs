//! A conversation: what was said, turn by turn, kept within the model's context.

use std::ops::ControlFlow;

use ernie_data::chat::Message;

use super::{Answer, Options, Session};
use crate::engine::FinishReason;
use crate::{Error, Result};

/// What was said so far.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<(String, String)>,
}

/// An answer and what became of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The answer.
    pub answer: Answer,
    /// The oldest turns that were forgotten to make room, this time.
    pub forgotten_turns: usize,
}

impl Conversation {
    /// A conversation under an optional system message.
    pub fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// Questions and answers so far, oldest first.
    pub fn turns(&self) -> &[(String, String)] {
        &self.turns
    }

    /// Forgets everything but the system message.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Says `text` and keeps the answer. When the context is full, the oldest turns are forgotten first.
    ///
    /// An answer that was cancelled is kept as far as it came, so that one can go on from there; after an error the
    /// history is as before.
    ///
    /// # Errors
    /// As [`Session::chat`]; an input error when even `text` alone does not fit.
    pub fn say(
        &mut self,
        session: &mut Session,
        text: &str,
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let context_length = session.engine().context_length();
        // Room for an answer that is worth having, without giving up history for a limit that is seldom reached.
        let room = options.max_tokens.clamp(1, (context_length / 4).max(1));
        let mut forgotten = 0;
        let prompt = loop {
            let ids = session.encode_chat(&self.messages(forgotten, text))?;
            if ids.len() + room <= context_length {
                break ids;
            }
            if forgotten == self.turns.len() {
                if ids.len() < context_length {
                    break ids;
                }
                return Err(Error::TooLong { what: "the message", tokens: ids.len(), context_length, room: true });
            }
            forgotten += 1;
        };
        let answer = session.generate_ids(prompt, options, on_text)?;
        self.turns.drain(..forgotten);
        let said = answer.text.clone().unwrap_or_default();
        if answer.finish_reason != FinishReason::Cancelled || !said.is_empty() {
            self.turns.push((text.to_string(), said));
        }
        Ok(Reply { answer, forgotten_turns: forgotten })
    }

    fn messages(&self, skip: usize, text: &str) -> Vec<Message> {
        let system = self.system.iter().map(|content| Message::new("system", content));
        let turns = self.turns[skip..]
            .iter()
            .flat_map(|(user, assistant)| [Message::new("user", user), Message::new("assistant", assistant)]);
        system.chain(turns).chain([Message::new("user", text)]).collect()
    }
}
