//! Log-likelihoods of given continuations, by the conventions of lm-evaluation-harness.
//!
//! Whitespace at the end of a context moves to the front of the continuation; both are encoded as one text, and the
//! continuation's ids are those after as many as the context alone has; a context too long loses its front, never the
//! continuation; an empty context is the model's prefix id (beginning of text, else end of text).

use ernie_data::tokenizer::Tokenizer;
use ernie_serve::engine::{Engine, Event, FinishReason, Request, RequestId, TokenScore};

use crate::{Error, Result};

/// The model under evaluation.
pub struct Subject<'a> {
    /// An engine that has nothing else to do.
    pub engine: &'a mut Engine,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
}

/// A context and what may follow it, in ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// At least one id.
    pub context: Vec<u32>,
    /// At least one id.
    pub continuation: Vec<u32>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Score {
    /// Sum of the log-probabilities (natural logarithm) of its ids.
    pub logprob: f64,
    /// Its ids.
    pub tokens: usize,
    /// Whether greedy decoding would have written it.
    pub greedy: bool,
}

/// Requests that are in the engine at once, beyond those that run: enough to keep it busy.
const AHEAD: usize = 8;

impl Subject<'_> {
    /// The id that stands for an empty context.
    ///
    /// # Errors
    /// [`Error::Setting`] when neither tokenizer nor model names one.
    pub fn prefix_id(&self) -> Result<u32> {
        let vocab_size = self.engine.vocab_size();
        let named = self.tokenizer.bos().or_else(|| self.tokenizer.eos());
        let id = named.or_else(|| self.engine.eos_ids().first().copied());
        id.filter(|&id| (id as usize) < vocab_size).ok_or_else(|| Error::Setting {
            name: "the beginning-of-text id",
            value: "missing in tokenizer and model".into(),
            expected: "one, to score the first token of a text".into(),
        })
    }

    /// The ids of a context and its continuation, see the module's rules.
    ///
    /// # Errors
    /// [`Error::Setting`] for an empty continuation, [`Error::Text`] for text that cannot be encoded.
    pub fn encode_pair(&self, context: &str, continuation: &str) -> Result<Pair> {
        if continuation.is_empty() {
            return Err(Error::Setting {
                name: "continuation",
                value: "empty".into(),
                expected: "at least one character".into(),
            });
        }
        let stem = context.trim_end();
        let continuation = format!("{}{continuation}", &context[stem.len()..]);
        let whole = self.tokenizer.encode(&format!("{stem}{continuation}"))?;
        if stem.is_empty() {
            return Ok(Pair { context: vec![self.prefix_id()?], continuation: whole });
        }
        let context = self.tokenizer.encode(stem)?;
        match whole.get(context.len()..) {
            Some(rest) if !rest.is_empty() => Ok(Pair { continuation: rest.to_vec(), context }),
            // The two grew together into fewer ids than the context has alone; then each is encoded by itself.
            _ => Ok(Pair { continuation: self.tokenizer.encode(&continuation)?, context }),
        }
    }

    /// Scores texts. `progress` hears how many are done after each.
    ///
    /// # Errors
    /// As [`Subject::encode_pair`] and [`Subject::score_ids`].
    pub fn score(&mut self, pairs: &[(String, String)], progress: &mut dyn FnMut(usize)) -> Result<Vec<Score>> {
        let pairs: Result<Vec<Pair>> =
            pairs.iter().map(|(context, continuation)| self.encode_pair(context, continuation)).collect();
        let tokens = self.score_ids(pairs?, progress)?;
        Ok(tokens.iter().map(|tokens| Score::of(tokens)).collect())
    }

    /// Scores ids; the answers stand in the order of `pairs`. Contexts are cut on the left to what fits.
    ///
    /// # Errors
    /// [`Error::Setting`] for a continuation longer than the context; [`Error::Serve`] when the engine fails.
    pub fn score_ids(&mut self, pairs: Vec<Pair>, progress: &mut dyn FnMut(usize)) -> Result<Vec<Vec<TokenScore>>> {
        let context_length = self.engine.context_length();
        let ahead = (self.engine.options().max_running + AHEAD).min(self.engine.options().max_waiting);
        let mut scores: Vec<Vec<TokenScore>> = vec![Vec::new(); pairs.len()];
        let mut open: Vec<(RequestId, usize)> = Vec::new();
        let mut pairs = pairs.into_iter().enumerate();
        let mut done = 0;
        while done < scores.len() {
            while open.len() < ahead.max(1) {
                let Some((index, pair)) = pairs.next() else { break };
                let outcome = cut(pair, context_length)
                    .and_then(|pair| Ok(self.engine.submit(Request::score(pair.context, pair.continuation))?));
                match outcome {
                    Ok(id) => open.push((id, index)),
                    Err(error) => {
                        self.abandon(&open);
                        return Err(error);
                    }
                }
            }
            for event in self.engine.step()? {
                let request = event.request();
                let Some(at) = open.iter().position(|&(id, _)| id == request) else { continue };
                match event {
                    Event::Scored { tokens, .. } => scores[open[at].1] = tokens,
                    Event::Finished { reason: FinishReason::Error(message), .. } => {
                        open.swap_remove(at);
                        self.abandon(&open);
                        return Err(ernie_serve::Error::Failed(message).into());
                    }
                    Event::Finished { .. } => {
                        open.swap_remove(at);
                        done += 1;
                        progress(done);
                    }
                    Event::Token { .. } | Event::Logits { .. } | Event::Embedded { .. } => {}
                }
            }
        }
        Ok(scores)
    }

    /// Leaves the engine as it was found.
    fn abandon(&mut self, open: &[(RequestId, usize)]) {
        for &(id, _) in open {
            self.engine.cancel(id);
        }
    }
}

impl Score {
    /// Sums up the scores of a continuation's ids.
    pub fn of(tokens: &[TokenScore]) -> Self {
        Self {
            logprob: tokens.iter().map(|token| token.logprob).sum(),
            tokens: tokens.len(),
            greedy: tokens.iter().all(|token| token.greedy),
        }
    }
}

/// Cuts a context on the left so that it fits with its continuation, whose last id is never read.
fn cut(mut pair: Pair, context_length: usize) -> Result<Pair> {
    let continuation = pair.continuation.len();
    if continuation > context_length {
        return Err(Error::Setting {
            name: "continuation",
            value: format!("{continuation} tokens long"),
            expected: format!("at most {context_length}, the model's context"),
        });
    }
    let room = context_length + 1 - continuation;
    pair.context.drain(..pair.context.len().saturating_sub(room));
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_lose_their_front() {
        let pair = Pair { context: (0..10).collect(), continuation: vec![90, 91, 92] };
        assert_eq!(cut(pair.clone(), 100).unwrap(), pair);
        assert_eq!(cut(pair.clone(), 5).unwrap().context, [7, 8, 9]);
        assert_eq!(cut(pair.clone(), 3).unwrap().context, [9]);
        assert!(cut(pair, 2).unwrap_err().is_input());
    }
}
