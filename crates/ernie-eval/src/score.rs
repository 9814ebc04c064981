//! Log-likelihoods of given continuations, by the conventions of lm-evaluation-harness.
//!
//! Whitespace at the end of a context moves to the front of the continuation; both are encoded as one text, and the
//! continuation's ids are those after as many as the context alone has; a context too long loses its front, never the
//! continuation; an empty context is the model's prefix id (beginning of text, else end of text).

use ernie_data::tokenizer::Tokenizer;
use ernie_model::Classifier;
use ernie_serve::engine::{Engine, Event, FinishReason, Pooling, Request, RequestId, TokenScore};

use crate::{Error, Result};

/// The model under evaluation.
pub struct Subject<'a> {
    /// An engine that has nothing else to do.
    pub engine: &'a mut Engine,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's head for labels, where it has one.
    pub classifier: Option<Classifier>,
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
        let requests = pairs
            .into_iter()
            .map(|pair| cut(pair, context_length).map(|pair| Request::score(pair.context, pair.continuation)));
        let scored = |event| match event {
            Event::Scored { tokens, .. } => Some(tokens),
            _ => None,
        };
        self.ask(requests, &scored, progress)
    }

    /// The logit of each label, for each text of at most the context's length in ids; the answers stand in the order of `texts`.
    ///
    /// # Errors
    /// [`Error::Setting`] where the model has no head for labels; [`Error::Serve`] when the engine fails.
    pub fn classify_ids(&mut self, texts: Vec<Vec<u32>>, progress: &mut dyn FnMut(usize)) -> Result<Vec<Vec<f32>>> {
        let classifier = self.classifier()?.clone();
        let requests = texts.into_iter().map(|ids| Ok(Request::embed(ids, Pooling::Last)));
        let embedded = |event| match event {
            Event::Embedded { embedding, .. } => Some(embedding),
            _ => None,
        };
        let states = self.ask(requests, &embedded, progress)?;
        states.iter().map(|state| Ok(classifier.logits(state).map_err(ernie_serve::Error::from)?)).collect()
    }

    /// The head for labels.
    ///
    /// # Errors
    /// [`Error::Setting`] where the model has none.
    pub fn classifier(&self) -> Result<&Classifier> {
        self.classifier.as_ref().ok_or_else(|| Error::Setting {
            name: "the model",
            value: "without a head for labels".into(),
            expected: "one that was trained with objective.kind = \"classify\", or an adapter of such a run".into(),
        })
    }

    /// Asks the engine, as much at once as keeps it busy. `take` takes out of the events what each request is answered by; the answers stand in the order of the requests.
    fn ask<T: Default>(
        &mut self,
        requests: impl ExactSizeIterator<Item = Result<Request>>,
        take: &dyn Fn(Event) -> Option<T>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<T>> {
        let ahead = (self.engine.options().max_running + AHEAD).min(self.engine.options().max_waiting);
        let mut answers: Vec<T> = (0..requests.len()).map(|_| T::default()).collect();
        let mut open: Vec<(RequestId, usize)> = Vec::new();
        let mut requests = requests.enumerate();
        let mut done = 0;
        while done < answers.len() {
            while open.len() < ahead.max(1) {
                let Some((index, request)) = requests.next() else { break };
                match request.and_then(|request| Ok(self.engine.submit(request)?)) {
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
                    other => {
                        if let Some(answer) = take(other) {
                            answers[open[at].1] = answer;
                        }
                    }
                }
            }
        }
        Ok(answers)
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
