//! From requests to deltas: what the engine says, as text, choice by choice.
//!
//! An [`Answer`] holds the receiving end of a submission. Dropping it ends what still runs at the engine's next step;
//! that is how a client that goes away stops costing. It also ends at the request's deadline and at the end of the
//! grace of a server that stops.

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::error::{ApiError, ApiResult};
use super::manner::{Manner, Spoken, Voice};
use super::params::Params;
use super::state::{Model, Phase, past};
use super::thread::{Update, Updates};
use crate::engine::{FinishReason, Generate, Logprob, Request, Sampling};
use crate::session::{Delta as CallDelta, StopWatcher, Watchers};

/// What is new of one choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Delta {
    /// Which choice: those of the first prompt come first.
    pub(super) index: usize,
    /// Text, reasoning and calls that are whole and safe to show; often none.
    pub(super) spoken: Spoken,
    /// The tokens, the one that ended the answer included where log-probabilities are wanted.
    pub(super) tokens: Vec<Said>,
    /// Set when the choice is over: `stop`, `length` or `tool_calls`.
    pub(super) finish: Option<&'static str>,
}

/// A token that was said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    pub(super) id: u32,
    pub(super) logprob: Option<Logprob>,
}

/// Tokens read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) prompt: usize,
    pub(super) completion: usize,
}

/// Answers in the making.
pub(super) struct Answer {
    updates: Updates,
    voices: Vec<Option<Voice>>,
    open: usize,
    tokens: Tokens,
    limits: Limits,
    /// Their place among what runs and waits; given back when the last one is over.
    place: Option<OwnedSemaphorePermit>,
}

/// What ends an answer from outside.
pub(super) struct Limits {
    pub(super) deadline: tokio::time::Instant,
    pub(super) phases: watch::Receiver<Phase>,
}

impl Limits {
    /// Waits for something within the deadline and the server's grace.
    pub(super) async fn within<T>(&mut self, work: impl Future<Output = T>) -> ApiResult<T> {
        tokio::select! {
            biased;
            out = work => Ok(out),
            () = tokio::time::sleep_until(self.deadline) => Err(ApiError::deadline()),
            () = past(&mut self.phases, Phase::Draining) => Err(ApiError::draining()),
        }
    }
}

impl Answer {
    /// Submits `params.choices` answers to each prompt, each of `max_tokens` at most.
    pub(super) async fn start(
        model: &Model,
        prompts: Vec<Vec<u32>>,
        params: &Params,
        max_tokens: usize,
        mut manner: Manner,
        mut limits: Limits,
        place: OwnedSemaphorePermit,
    ) -> ApiResult<Self> {
        let text = manner.text(model, &params.stop)?;
        let tokens = Tokens { prompt: prompts.iter().map(Vec::len).sum(), completion: 0 };
        let choices = prompts.len() * params.choices;
        let mut requests = Vec::with_capacity(choices);
        for prompt in prompts {
            for choice in 0..params.choices {
                // Answers to the same prompt under one seed should differ, and be the same next time.
                let seed = params.sampling.seed.map(|seed| seed.wrapping_add(choice as u64));
                let mut watchers = Watchers::default();
                manner.watcher().into_iter().for_each(|watcher| watchers.push(watcher));
                if let Some(text) = text.as_ref().filter(|_| !params.stop.is_empty()) {
                    watchers.push(Box::new(StopWatcher(text.clone())));
                }
                let generate = Generate {
                    max_tokens,
                    sampling: Sampling { seed, ..params.sampling.clone() },
                    ignore_eos: params.ignore_eos,
                    stop_ids: model.end_ids.iter().chain(&params.stop_ids).copied().collect(),
                    logprobs: params.logprobs,
                    watcher: watchers.into_watcher(),
                };
                requests.push(Request::generate(prompt.clone(), generate).with_adapter(params.asked.adapter));
            }
        }
        // No answer is longer than the context, whatever was asked for.
        let room = choices.saturating_mul(max_tokens.min(model.context_length) + 1);
        let updates = limits.within(model.engine.submit(requests, room)).await??;
        let voices = (0..choices).map(|choice| Some(manner.voice(text.clone(), choice))).collect();
        Ok(Self { updates, voices, open: choices, tokens, limits, place: Some(place) })
    }

    /// What is new; `None` when all choices are over. Cancelling the future loses nothing.
    pub(super) async fn next(&mut self) -> ApiResult<Option<Vec<Delta>>> {
        while self.open > 0 {
            let first = self.limits.within(self.updates.recv()).await?;
            let mut update = Some(first.ok_or_else(|| ApiError::failed("the engine failed"))?);
            let mut deltas: Vec<Delta> = Vec::new();
            while let Some((index, news)) = update {
                self.take(index, news, &mut deltas)?;
                update = self.updates.try_recv().ok();
            }
            if self.open == 0 {
                self.place = None;
            }
            if !deltas.is_empty() {
                return Ok(Some(deltas));
            }
        }
        Ok(None)
    }

    /// Tokens so far.
    pub(super) fn tokens(&self) -> Tokens {
        self.tokens
    }

    fn take(&mut self, index: usize, update: Update, deltas: &mut Vec<Delta>) -> ApiResult<()> {
        let Some(voice) = self.voices.get_mut(index) else { return Ok(()) };
        let delta = match deltas.iter_mut().position(|delta| delta.index == index) {
            Some(at) => &mut deltas[at],
            None => {
                deltas.push(Delta { index, ..Delta::default() });
                let last = deltas.len() - 1;
                &mut deltas[last]
            }
        };
        match update {
            Update::Token { id, logprob } => {
                self.tokens.completion += 1;
                if let Some(voice) = voice {
                    voice.push(id, &mut delta.spoken);
                }
                delta.tokens.push(Said { id, logprob });
            }
            Update::Finished { reason, stop } => {
                self.open -= 1;
                let called = voice.take().is_some_and(|voice| voice.finish(&mut delta.spoken));
                if let Some((id, logprob @ Some(_))) = stop {
                    delta.tokens.push(Said { id, logprob });
                }
                delta.finish = Some(match reason {
                    FinishReason::Stop if called => "tool_calls",
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Cancelled => return Err(ApiError::failed("the answer was cancelled")),
                    FinishReason::Error(message) => return Err(ApiError::failed(message)),
                });
            }
            Update::Scored(_) | Update::Embedded(_) => {}
        }
        Ok(())
    }
}

/// A choice that is over.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<Call>,
    pub(super) tokens: Vec<Said>,
    pub(super) finish: &'static str,
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

impl Whole {
    fn take(&mut self, delta: Delta) {
        self.text += &delta.spoken.text;
        self.reasoning += &delta.spoken.reasoning;
        for call in delta.spoken.calls {
            match call {
                CallDelta::CallStart { id, name, .. } => self.calls.push(Call { id, name, arguments: String::new() }),
                CallDelta::Arguments { index, delta } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.arguments += &delta;
                    }
                }
                CallDelta::Text(_) => {}
            }
        }
        self.tokens.extend(delta.tokens);
        self.finish = delta.finish.unwrap_or(self.finish);
    }
}

/// Waits for all choices.
pub(super) async fn collect(mut answer: Answer) -> ApiResult<(Vec<Whole>, Tokens)> {
    let mut wholes = vec![Whole::default(); answer.voices.len()];
    while let Some(deltas) = answer.next().await? {
        for delta in deltas {
            if let Some(whole) = wholes.get_mut(delta.index) {
                whole.take(delta);
            }
        }
    }
    Ok((wholes, answer.tokens))
}

/// Runs work that takes its time (templates, tokenizers) where it holds nobody up.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}
