//! One request inside the engine: what it has read, what it has said, and what a row of logits means to it.

use std::time::Instant;

use super::request::{Event, FinishReason, Generate, Logprob, Request, RequestId, TokenScore, Usage, Work};
use super::sampler::{self, Seen};
use super::watcher::Verdict;

/// A request that waits or runs.
pub(super) struct Job {
    pub(super) id: RequestId,
    /// The prompt, then the answer or the given continuation.
    pub(super) ids: Vec<u32>,
    /// Rows of `ids` that are in the cache.
    pub(super) fed: usize,
    /// Rows to read before the answer starts.
    pub(super) prefill: usize,
    /// Positions it may come to need.
    pub(super) reserve: usize,
    /// The first position whose logits matter.
    pub(super) wanted_from: usize,
    /// Its place in the cache while it runs.
    pub(super) slot: Option<usize>,
    /// Set when it is over.
    pub(super) finished: Option<(FinishReason, Option<u32>)>,
    prompt_tokens: usize,
    state: State,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

enum State {
    Generate { options: Box<Generate>, end_ids: Vec<u32>, seed: u64, seen: Seen, end: usize },
    Score { top: usize, tokens: Vec<TokenScore> },
    Logits { first: usize, rows: Vec<f32> },
}

impl Job {
    /// Takes a request that has been checked. `seed` is used where the request brings none.
    pub(super) fn new(id: RequestId, request: Request, context_length: usize, eos_ids: &[u32], seed: u64) -> Self {
        let Request { prompt: mut ids, work } = request;
        let prompt_tokens = ids.len();
        let (prefill, reserve, wanted_from, state) = match work {
            Work::Generate(options) => {
                let end = prompt_tokens.saturating_add(options.max_tokens).min(context_length);
                let end_ids = match options.ignore_eos {
                    true => Vec::new(),
                    false => eos_ids.iter().chain(&options.stop_ids).copied().collect(),
                };
                let seed = options.sampling.seed.unwrap_or(seed);
                let seen = Seen::of_prompt(&ids);
                let state = State::Generate { options: options.into(), end_ids, seed, seen, end };
                // The last token of an answer is never read again.
                (prompt_tokens, end - 1, prompt_tokens - 1, state)
            }
            Work::Score { continuation, top } => {
                ids.extend_from_slice(&continuation);
                let rows = ids.len() - 1;
                let tokens = Vec::with_capacity(continuation.len());
                (rows, rows, prompt_tokens - 1, State::Score { top, tokens })
            }
            Work::Logits => (prompt_tokens, prompt_tokens, 0, State::Logits { first: 0, rows: Vec::new() }),
        };
        Self {
            id,
            ids,
            fed: 0,
            prefill,
            reserve,
            wanted_from,
            slot: None,
            finished: None,
            prompt_tokens,
            state,
            submitted: Instant::now(),
            started: None,
            first_token: None,
        }
    }

    /// Rows of its prompt that are not in the cache yet; 0 when it decodes.
    pub(super) fn prefill_left(&self) -> usize {
        self.prefill.saturating_sub(self.fed)
    }

    /// Notes that it has left the queue.
    pub(super) fn start(&mut self, slot: usize) {
        self.slot = Some(slot);
        self.started = Some(Instant::now());
    }

    /// Takes the logits at `position`; what they lead to goes to `events` or into [`Job::finished`].
    pub(super) fn take_row(&mut self, position: usize, logits: &mut [f32], events: &mut Vec<Event>) {
        if self.finished.is_some() {
            return;
        }
        let request = self.id;
        match &mut self.state {
            State::Logits { rows, .. } => rows.extend_from_slice(logits),
            _ if !all_finite(logits) => {
                let message = format!(
                    "the model's logits at position {position} are not finite numbers: its weights are damaged or overflow"
                );
                self.finished = Some((FinishReason::Error(message), None));
            }
            State::Score { top, tokens } => {
                let Some(&target) = self.ids.get(position + 1) else { return };
                let log_sum = sampler::log_sum_exp(logits);
                tokens.push(TokenScore {
                    id: target,
                    logprob: f64::from(logits[target as usize]) - log_sum,
                    greedy: sampler::argmax(logits).is_some_and(|(best, _)| best == target),
                    top: sampler::top(logits, log_sum, *top),
                });
            }
            State::Generate { options, end_ids, seed, seen, end } => {
                let asked = options.logprobs.map(|n| {
                    let log_sum = sampler::log_sum_exp(logits);
                    (sampler::top(logits, log_sum, n), log_sum, logits.to_vec())
                });
                let watcher = options.watcher.as_deref_mut();
                let picked = sampler::pick(&options.sampling, *seed, position + 1, seen, watcher, logits);
                let id = match picked {
                    Ok(id) => id,
                    Err(message) => {
                        self.finished = Some((FinishReason::Error(message), None));
                        return;
                    }
                };
                self.first_token.get_or_insert_with(Instant::now);
                if end_ids.contains(&id) {
                    self.finished = Some((FinishReason::Stop, Some(id)));
                    return;
                }
                let logprob =
                    asked.map(|(top, log_sum, raw)| Logprob { logprob: f64::from(raw[id as usize]) - log_sum, top });
                seen.add(id);
                self.ids.push(id);
                events.push(Event::Token { request, id, logprob });
                let verdict = options.watcher.as_mut().map(|watcher| watcher.accept(id));
                if verdict == Some(Verdict::Stop) {
                    self.finished = Some((FinishReason::Stop, None));
                } else if self.ids.len() >= *end {
                    self.finished = Some((FinishReason::Length, None));
                }
            }
        }
    }

    /// Notes that a step has put `rows` more into the cache, and hands over what is complete.
    pub(super) fn fed(&mut self, rows: usize, events: &mut Vec<Event>) {
        self.fed += rows;
        if self.finished.is_some() {
            return;
        }
        let request = self.id;
        let complete = self.fed >= self.prefill;
        match &mut self.state {
            State::Generate { .. } => return,
            State::Score { tokens, .. } => {
                if complete {
                    events.push(Event::Scored { request, tokens: std::mem::take(tokens) });
                }
            }
            State::Logits { first, rows } => {
                events.push(Event::Logits { request, first: *first, rows: std::mem::take(rows) });
                *first = self.fed;
            }
        }
        if complete {
            self.finished = Some((FinishReason::Stop, None));
        }
    }

    /// The last event of its life.
    pub(super) fn finish(&self, reason: FinishReason, stop_id: Option<u32>) -> Event {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let completion_tokens = match &self.state {
            State::Generate { .. } => self.ids.len() - self.prompt_tokens,
            State::Score { .. } | State::Logits { .. } => 0,
        };
        Event::Finished {
            request: self.id,
            reason,
            stop_id,
            usage: Usage {
                prompt_tokens: self.prompt_tokens,
                completion_tokens,
                queued_s: (started - self.submitted).as_secs_f64(),
                prefill_s: (first - started).as_secs_f64(),
                decode_s: (now - first).as_secs_f64(),
            },
        }
    }
}

fn all_finite(logits: &[f32]) -> bool {
    ernie_nn::logits::survey(logits).finite
}
