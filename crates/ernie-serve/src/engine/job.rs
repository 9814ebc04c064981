//! One request inside the engine: what it has read, what it has said, and what a row of logits means to it.

use std::time::Instant;

use super::blocks::Block;
use super::draft::{self, Drafter};
use super::plan::Urgency;
use super::request::{Event, FinishReason, Generate, Logprob, Pooling, Request, RequestId, TokenScore, Usage, Work};
use super::sampler::{self, Seen};
use super::watcher::Verdict;

/// A request that waits or runs.
pub(super) struct Job {
    pub(super) id: RequestId,
    pub(super) urgency: Urgency,
    /// The adapter that its rows go through.
    pub(super) adapter: Option<usize>,
    /// The prompt, then the answer or the given continuation.
    pub(super) ids: Vec<u32>,
    /// Rows of `ids` that are in the cache.
    pub(super) fed: usize,
    /// The blocks that hold them.
    pub(super) table: Vec<Block>,
    /// How many of these, from the first on, later requests can find.
    pub(super) shared: usize,
    /// The first position whose logits matter still.
    pub(super) wanted_from: usize,
    /// Positions it may come to need.
    pub(super) reserve: usize,
    /// Guesses of the ids behind `ids`, tried in this step.
    pub(super) draft: Vec<u32>,
    /// Set when it is over.
    pub(super) finished: Option<End>,
    prompt_tokens: usize,
    state: State,
    /// Rows of the step that it must read, and rows known to hold what belongs to it: guesses that were wrong do not.
    must: usize,
    right: usize,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// How a request ended: why, and the id that ended it, with its log-probability where asked for.
pub(super) type End = (FinishReason, Option<(u32, Option<Logprob>)>);

enum State {
    Generate { options: Box<Generate>, end_ids: Vec<u32>, seed: u64, seen: Seen, end: usize, drafter: Drafter },
    Score { top: usize, tokens: Vec<TokenScore> },
    Logits { first: usize, rows: Vec<f32> },
    Embed { pooling: Pooling, sum: Vec<f64> },
}

impl Job {
    /// Takes a request that has been checked. `seed` is used where the request brings none.
    pub(super) fn new(
        id: RequestId,
        request: Request,
        context_length: usize,
        eos_ids: &[u32],
        seed: u64,
        urgency: Urgency,
    ) -> Self {
        let Request { prompt: mut ids, work, priority: _, adapter } = request;
        let prompt_tokens = ids.len();
        let (reserve, wanted_from, state) = match work {
            Work::Generate(options) => {
                let end = prompt_tokens.saturating_add(options.max_tokens).min(context_length);
                let end_ids = match options.ignore_eos {
                    true => Vec::new(),
                    false => eos_ids.iter().chain(&options.stop_ids).copied().collect(),
                };
                let seed = options.sampling.seed.unwrap_or(seed);
                let (seen, drafter) = (Seen::of_prompt(&ids), Drafter::default());
                let state = State::Generate { options: options.into(), end_ids, seed, seen, end, drafter };
                // The last token of an answer is never read again.
                (end - 1, prompt_tokens - 1, state)
            }
            Work::Score { continuation, top } => {
                ids.extend_from_slice(&continuation);
                let tokens = Vec::with_capacity(continuation.len());
                (ids.len() - 1, prompt_tokens - 1, State::Score { top, tokens })
            }
            Work::Logits => (prompt_tokens, 0, State::Logits { first: 0, rows: Vec::new() }),
            Work::Embed { pooling } => {
                let wanted_from = if pooling == Pooling::Last { prompt_tokens - 1 } else { 0 };
                (prompt_tokens, wanted_from, State::Embed { pooling, sum: Vec::new() })
            }
        };
        Self {
            id,
            urgency,
            adapter,
            ids,
            fed: 0,
            table: Vec::new(),
            shared: 0,
            wanted_from,
            reserve,
            draft: Vec::new(),
            finished: None,
            prompt_tokens,
            state,
            must: 0,
            right: 0,
            submitted: Instant::now(),
            started: None,
            first_token: None,
        }
    }

    /// Rows that it must have read before its next token, or its end.
    pub(super) fn rows(&self) -> usize {
        match &self.state {
            State::Generate { .. } => self.ids.len(),
            State::Score { .. } | State::Logits { .. } | State::Embed { .. } => self.reserve,
        }
    }

    /// The ids that it may skip where others have read them: those before the first wanted row.
    pub(super) fn skippable(&self) -> &[u32] {
        &self.ids[..self.wanted_from.min(self.ids.len())]
    }

    /// Blocks that nobody else needs when it gives way: its own, and those that beside it only the prefix cache holds.
    pub(super) fn own_blocks(&self) -> usize {
        let own = |(at, block): &(usize, &Block)| block.holders() <= 1 + usize::from(*at < self.shared);
        self.table.iter().enumerate().filter(own).count()
    }

    /// Notes that it has left the queue, and what it need not read.
    pub(super) fn start(&mut self, table: Vec<Block>, fed: usize) {
        (self.shared, self.table, self.fed) = (table.len(), table, fed);
        self.started.get_or_insert_with(Instant::now);
    }

    /// Gives its blocks back and waits again. What it has said and scored stays.
    pub(super) fn give_way(&mut self) {
        self.wanted_from = match &self.state {
            State::Generate { .. } => self.ids.len() - 1,
            State::Score { .. } | State::Logits { .. } | State::Embed { .. } => self.wanted_from.max(self.fed),
        };
        self.table.clear();
        self.draft.clear();
        (self.fed, self.shared) = (0, 0);
    }

    /// Guesses what comes next, where trying `most` ids or fewer pays; a row costs `cost` tokens' worth of time.
    pub(super) fn guess(&mut self, most: usize, cost: f64) {
        self.draft.clear();
        if let State::Generate { end, drafter, .. } = &self.state
            && self.fed + 1 == self.ids.len()
        {
            // The last token of the answer is picked, never read: a guess of it would be read for nothing.
            let room = (*end - 1).saturating_sub(self.ids.len());
            let depth = drafter.depth(most.min(room), cost);
            if depth > 0 {
                self.draft = draft::guess(&self.ids, depth);
            }
        }
    }

    /// Notes that the step reads `rows` of its rows; more than it must are guesses.
    pub(super) fn begin(&mut self, rows: usize) {
        let left = self.rows() - self.fed;
        self.draft.truncate(rows.saturating_sub(left));
        self.must = rows.min(left);
        self.right = self.must;
    }

    /// Whether its wanted rows are hidden states, not logits.
    pub(super) fn wants_hidden(&self) -> bool {
        matches!(self.state, State::Embed { .. })
    }

    /// Takes the logits after `id` at `position`, or the hidden states; what they lead to goes to `events` or into
    /// [`Job::finished`]. Logits after a guess that was wrong are passed over.
    pub(super) fn take_row(&mut self, position: usize, id: u32, logits: &mut [f32], events: &mut Vec<Event>) {
        if self.finished.is_some() || self.ids.get(position) != Some(&id) {
            return;
        }
        self.right = self.right.max(position + 1 - self.fed);
        let request = self.id;
        match &mut self.state {
            State::Logits { first, rows } => {
                if rows.is_empty() {
                    *first = position;
                }
                rows.extend_from_slice(logits);
            }
            _ if !all_finite(logits) => {
                let message = format!(
                    "the model's logits at position {position} are not finite numbers: its weights are damaged or overflow"
                );
                self.finished = Some((FinishReason::Error(message), None));
            }
            State::Embed { sum, .. } => {
                sum.resize(logits.len(), 0.0);
                sum.iter_mut().zip(logits).for_each(|(sum, hidden)| *sum += f64::from(*hidden));
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
            State::Generate { options, end_ids, seed, seen, end, .. } => {
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
                let logprob =
                    asked.map(|(top, log_sum, raw)| Logprob { logprob: f64::from(raw[id as usize]) - log_sum, top });
                if end_ids.contains(&id) {
                    self.finished = Some((FinishReason::Stop, Some((id, logprob))));
                    return;
                }
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

    /// Notes that the step is done, and hands over what is complete. Returns how many guesses were tried and kept.
    pub(super) fn end(&mut self, events: &mut Vec<Event>) -> (usize, usize) {
        let (tried, kept) = (self.draft.len(), self.right.saturating_sub(self.must));
        self.draft.clear();
        self.fed += self.right;
        if self.finished.is_some() {
            return (tried, kept);
        }
        let request = self.id;
        let complete = self.fed >= self.rows();
        match &mut self.state {
            State::Generate { drafter, .. } => {
                drafter.learn(tried, kept);
                return (tried, kept);
            }
            State::Score { tokens, .. } => {
                if complete {
                    events.push(Event::Scored { request, tokens: std::mem::take(tokens) });
                }
            }
            State::Embed { .. } => {}
            State::Logits { first, rows } => {
                if !rows.is_empty() {
                    events.push(Event::Logits { request, first: *first, rows: std::mem::take(rows) });
                }
            }
        }
        if complete {
            if let State::Embed { pooling, sum } = &mut self.state {
                let count = if *pooling == Pooling::Mean { self.prompt_tokens as f64 } else { 1.0 };
                let embedding = std::mem::take(sum).into_iter().map(|sum| (sum / count) as f32).collect();
                events.push(Event::Embedded { request, embedding });
            }
            self.finished = Some((FinishReason::Stop, None));
        }
        (tried, kept)
    }

    /// The last event of its life.
    pub(super) fn finish(&self, (reason, stop): End) -> Event {
        let (stop_id, stop_logprob) = stop.map_or((None, None), |(id, logprob)| (Some(id), logprob));
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let completion_tokens = match &self.state {
            State::Generate { .. } => self.ids.len() - self.prompt_tokens,
            State::Score { .. } | State::Logits { .. } | State::Embed { .. } => 0,
        };
        Event::Finished {
            request: self.id,
            reason,
            stop_id,
            stop_logprob,
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
