//! Engine plus text: what `chat` and `generate` need, and in parts the server.
//!
//! A [`Session`] owns an engine and runs one answer at a time: it renders the chat template, encodes (text of a caller
//! never becomes a control token), decodes as tokens come (never half a character), ends at stop strings (never showing
//! a part of one) and stops when told to. [`Conversation`] keeps the turns. It prints nothing.
//!
//! What a server needs beside it stands here too, and none of it knows of HTTP: answers of a given form ([`grammar`]),
//! tools and their calls ([`tools`]), and the reasoning of thinking models ([`reasoning`]).

mod gate;
pub mod grammar;
mod history;
pub mod reasoning;
mod stop;
mod text;
pub mod tools;
mod watchers;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ernie_data::chat::{ChatTemplate, Message, Prompt};
use ernie_data::tokenizer::Tokenizer;

pub use gate::Gate;
pub use grammar::{Grammar, GrammarCache, GrammarVocab};
pub use history::{Conversation, Reply};
pub use reasoning::{ReasoningForm, Split, Splitter};
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopFilter};
pub use text::{StopWatcher, TextStream};
pub use tools::{CallForm, Delta, ToolChoice, ToolParser, Tools};
pub use watchers::Watchers;

use crate::engine::{Engine, Event, FinishReason, Generate, Request, Sampling, Usage};
use crate::{Error, Result};

/// Tokens by which models of the field end a turn, whatever their files call the end of a text.
const TURN_ENDS: [&str; 5] = ["<|im_end|>", "<|end_of_sentence|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"];

/// How to answer.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Strings that end the answer; they are not shown.
    pub stop: Vec<String>,
    /// What the answer must be.
    pub grammar: Option<Grammar>,
    /// Goes on when the model says that it is done.
    pub ignore_eos: bool,
    /// Another thread (a signal handler) sets it to end the answer at the next step.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: Sampling::default(),
            stop: Vec::new(),
            grammar: None,
            ignore_eos: false,
            cancel: None,
        }
    }
}

/// An answer and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without stop strings and special tokens; `None` without a tokenizer.
    pub text: Option<String>,
    /// The ids, without the prompt's and without the end-of-sequence id. Those of a stop string are in.
    pub ids: Vec<u32>,
    /// Why it ended; never an error.
    pub finish_reason: FinishReason,
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// Ids of the answer.
    pub completion_tokens: usize,
    /// Seconds until the first token.
    pub prefill_s: f64,
    /// Seconds from the first token to the end.
    pub decode_s: f64,
}

impl Answer {
    /// Tokens per second of decoding. The first token comes out of the prefill and is not counted; `None` where there
    /// is no second one.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let decoded = self.ids.len().checked_sub(1).filter(|&n| n > 0)?;
        (self.decode_s > 0.0).then(|| decoded as f64 / self.decode_s)
    }
}

/// One model to talk to.
pub struct Session {
    engine: Engine,
    tokenizer: Option<Tokenizer>,
    template: ChatTemplate,
    end_ids: Vec<u32>,
}

impl Session {
    /// A session over an engine that has nothing else to do. Without a tokenizer only [`Session::generate_ids`] works.
    pub fn new(engine: Engine, tokenizer: impl Into<Option<Tokenizer>>, template: ChatTemplate) -> Self {
        let tokenizer = tokenizer.into();
        let vocab_size = engine.vocab_size();
        let end_ids = tokenizer.iter().flat_map(end_ids).filter(|&id| (id as usize) < vocab_size);
        Self { end_ids: end_ids.collect(), engine, tokenizer, template }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine, for requests of other kinds between answers.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Ids by which an answer ends: the model's own, and those that the tokenizer knows as the end of a turn.
    pub fn end_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.end_ids.iter().chain(self.engine.eos_ids()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The vocabulary for grammars over this model.
    ///
    /// # Errors
    /// [`Error::Parameter`] without a tokenizer, as [`GrammarVocab::new`].
    pub fn grammar_vocab(&self) -> Result<GrammarVocab> {
        let tokenizer = self.need_tokenizer()?;
        let form = CallForm::detect(tokenizer, self.template.source());
        GrammarVocab::new(tokenizer, self.engine.vocab_size(), &self.end_ids(), &form.tags())
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Takes the session apart.
    pub fn into_engine(self) -> Engine {
        self.engine
    }

    /// The ids of a conversation, up to where the assistant begins to speak.
    ///
    /// # Errors
    /// [`Error::Parameter`] without a tokenizer; [`Error::Data`] when the template refuses the messages.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_prompt(&Prompt::new(messages))
    }

    /// The ids of a conversation with tools.
    ///
    /// # Errors
    /// As [`Session::encode_chat`].
    pub fn encode_prompt(&self, prompt: &Prompt<'_>) -> Result<Vec<u32>> {
        let tokenizer = self.need_tokenizer()?;
        Ok(self.template.render_prompt(prompt, tokenizer)?.encode(tokenizer)?)
    }

    /// The ids of a raw prompt. Control tokens written out are recognised: it is for one's own terminal, never for text
    /// of others. A beginning-of-text id is put in front where the tokenizer's files say so.
    ///
    /// # Errors
    /// [`Error::Parameter`] without a tokenizer; [`Error::Data`] for text that is too long.
    pub fn encode_raw(&self, prompt: &str) -> Result<Vec<u32>> {
        let tokenizer = self.need_tokenizer()?;
        let mut ids = tokenizer.encode_with_special(prompt)?;
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn need_tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || Error::parameter("prompt", "text", "ids, because the model has no tokenizer");
        self.tokenizer.as_ref().ok_or_else(missing)
    }

    /// Answers a conversation. `on_text` gets the text as it comes and may break off.
    ///
    /// # Errors
    /// Input errors for messages and options that cannot be; [`Error::Failed`] when the model fails.
    pub fn chat(
        &mut self,
        messages: &[Message],
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let prompt = self.encode_chat(messages)?;
        self.generate_ids(prompt, options, on_text)
    }

    /// Continues a raw prompt, see [`Session::encode_raw`].
    ///
    /// # Errors
    /// As [`Session::chat`].
    pub fn complete(
        &mut self,
        prompt: &str,
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let prompt = self.encode_raw(prompt)?;
        self.generate_ids(prompt, options, on_text)
    }

    /// Continues ids. Without a tokenizer `on_text` is never called.
    ///
    /// # Errors
    /// As [`Session::chat`].
    pub fn generate_ids(
        &mut self,
        prompt: Vec<u32>,
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        if self.tokenizer.is_none() && !options.stop.is_empty() {
            return Err(Error::parameter("stop", "a string", "none, because the model has no tokenizer"));
        }
        let mut stream = match &self.tokenizer {
            Some(tokenizer) => Some(TextStream::new(tokenizer, &options.stop)?),
            None => None,
        };
        let mut generate = Generate {
            max_tokens: options.max_tokens,
            sampling: options.sampling.clone(),
            ignore_eos: options.ignore_eos,
            stop_ids: self.end_ids.clone(),
            ..Generate::default()
        };
        let mut watchers = Watchers::default();
        if let Some(grammar) = &options.grammar {
            watchers.push(grammar.watcher());
        }
        if let Some(stream) = stream.as_ref().filter(|_| !options.stop.is_empty()) {
            watchers.push(Box::new(StopWatcher(stream.clone())));
        }
        generate.watcher = watchers.into_watcher();
        let request = self.engine.submit(Request::generate(prompt, generate))?;

        let mut ids = Vec::new();
        let mut text = String::new();
        let mut broken_off = false;
        let (finish_reason, usage) = loop {
            let asked = options.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
            if asked || broken_off {
                self.engine.cancel(request);
            }
            let events = match self.engine.step() {
                Ok(events) => events,
                Err(error) => {
                    self.engine.cancel(request);
                    return Err(error);
                }
            };
            let mut over: Option<(FinishReason, Usage)> = None;
            for event in events.into_iter().filter(|event| event.request() == request) {
                match event {
                    // A step may bring several tokens; who has had enough hears no more of them.
                    Event::Token { id, .. } if !broken_off => {
                        ids.push(id);
                        let more = stream.as_mut().map(|stream| stream.push(id)).unwrap_or_default();
                        broken_off |= show(&more, &mut text, on_text);
                    }
                    Event::Finished { reason, usage, .. } => over = Some((reason, usage)),
                    Event::Token { .. } | Event::Scored { .. } | Event::Logits { .. } | Event::Embedded { .. } => {}
                }
            }
            match over {
                Some(over) => break over,
                None if self.engine.is_idle() => {
                    return Err(Error::Internal(format!("request {request} was lost")));
                }
                None => {}
            }
        };
        if let FinishReason::Error(message) = finish_reason {
            return Err(Error::Failed(message));
        }
        let with_text = stream.is_some();
        let tail = stream.map(TextStream::finish).unwrap_or_default();
        show(&tail, &mut text, on_text);
        Ok(Answer {
            text: with_text.then_some(text),
            completion_tokens: ids.len(),
            ids,
            finish_reason,
            prompt_tokens: usage.prompt_tokens,
            prefill_s: usage.prefill_s,
            decode_s: usage.decode_s,
        })
    }
}

/// A text cut into pieces, for tests.
#[cfg(test)]
fn cut<'a>(text: &'a str, cuts: &[proptest::sample::Index]) -> Vec<&'a str> {
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| ends[cut.index(ends.len())]).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// Shows more text; whether the reader has had enough.
fn show(more: &str, text: &mut String, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> bool {
    if more.is_empty() {
        return false;
    }
    text.push_str(more);
    on_text(more).is_break()
}

/// Ids by which an answer ends, as far as the tokenizer knows.
pub(crate) fn end_ids(tokenizer: &Tokenizer) -> Vec<u32> {
    let turn_ends =
        TURN_ENDS.iter().filter_map(|literal| tokenizer.id_of(literal)).filter(|&id| tokenizer.is_control(id));
    let mut ids: Vec<u32> = tokenizer.eos().into_iter().chain(turn_ends).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
