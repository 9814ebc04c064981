//! The engine: ids in, ids out.
//!
//! It never sees text or HTTP, and it has no threads of its own: whoever owns it calls [`Engine::step`] and gets
//! [`Event`]s. A step is a [`plan`] (a pure function of the queue and the running requests), one forward pass over all
//! planned rows (parts of prompts and one row for each answer, together), and a token for each request that got to its
//! end. Requests come and go between steps, so short answers never wait for long ones.
//!
//! A request's tokens are the same alone and in any company, greedy and seeded, however its prompt is cut into chunks:
//! the model's rows do not depend on their neighbours, and draws are keyed by seed and position.

mod job;
mod model;
pub mod plan;
mod request;
mod sampler;
mod watcher;

use std::collections::VecDeque;
use std::sync::Arc;

use ernie_model::Decoder;

pub use model::{Batch, Chunk, DecoderModel, EachRow, Model};
pub use request::{Event, FinishReason, Generate, Logprob, Request, RequestId, TokenScore, Usage, Work};
pub use sampler::{Sampling, uniform};
pub use watcher::{Verdict, Watcher};

use crate::{Error, Result};
use job::Job;
use plan::{Limits, Running, Waiting};

/// Log-probabilities of other ids that a request may ask for at each position.
pub const MAX_TOP_LOGPROBS: usize = 1000;

/// What an engine may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Requests that run at the same time, at least 1.
    pub max_running: usize,
    /// Requests that may wait; one more is refused with [`Error::QueueFull`].
    pub max_waiting: usize,
    /// Rows of one forward pass, at least `max_running`. Smaller gives running answers a steadier pace, larger reads
    /// prompts faster.
    pub step_tokens: usize,
    /// Positions that the cache may hold for all requests together; `None` does not limit it.
    pub cache_tokens: Option<usize>,
    /// A context shorter than the model's; `None` takes the model's.
    pub context_length: Option<usize>,
    /// Keys the draws of requests that bring no seed of their own.
    pub seed: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_running: 16, max_waiting: 4096, step_tokens: 512, cache_tokens: None, context_length: None, seed: 0 }
    }
}

/// Runs requests on one model. One thread owns it.
pub struct Engine {
    model: Box<dyn Model>,
    options: EngineOptions,
    limits: Limits,
    vocab_size: usize,
    context_length: usize,
    queue: VecDeque<Job>,
    running: Vec<Job>,
    /// Events of things that happened between steps.
    pending: Vec<Event>,
    next_id: u64,
}

impl Engine {
    /// An engine over a decoder with an empty cache.
    ///
    /// # Errors
    /// [`Error::Parameter`] for options out of range.
    pub fn new(decoder: impl Into<Arc<Decoder>>, options: EngineOptions) -> Result<Self> {
        Self::with_model(Box::new(DecoderModel::new(decoder.into())), options)
    }

    /// An engine over anything that behaves like a model.
    ///
    /// # Errors
    /// [`Error::Parameter`] for options out of range.
    pub fn with_model(model: Box<dyn Model>, options: EngineOptions) -> Result<Self> {
        if options.max_running == 0 {
            return Err(Error::parameter("max_running", 0, "at least 1"));
        }
        if options.step_tokens < options.max_running {
            return Err(Error::parameter(
                "step_tokens",
                options.step_tokens,
                format!("at least max_running, {}", options.max_running),
            ));
        }
        let longest = model.context_length();
        let context_length = options.context_length.unwrap_or(longest);
        if context_length == 0 || context_length > longest {
            return Err(Error::parameter("context_length", context_length, format!("1 to {longest}, the model's own")));
        }
        let limits = Limits {
            max_running: options.max_running,
            step_tokens: options.step_tokens,
            cache_tokens: options.cache_tokens.unwrap_or(usize::MAX),
        };
        Ok(Self {
            vocab_size: model.vocab_size(),
            context_length,
            limits,
            model,
            options,
            queue: VecDeque::new(),
            running: Vec::new(),
            pending: Vec::new(),
            next_id: 0,
        })
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Positions of the longest sequence, prompt and answer together.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Ids by which the model says that it is done.
    pub fn eos_ids(&self) -> &[u32] {
        self.model.eos_ids()
    }

    /// The options it was made with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Sets the rows of one forward pass from the next step on, at least 1: whoever measures stops a prompt where it
    /// wants to look at the clock. Answers that run get their row even where this is less than their number.
    pub fn set_step_tokens(&mut self, step_tokens: usize) {
        self.limits.step_tokens = step_tokens.max(1);
    }

    /// Requests in the queue.
    pub fn num_waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is nothing to do and nothing to tell: the next step would be empty.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.pending.is_empty()
    }

    /// Puts a request at the end of the queue.
    ///
    /// An answer is at most `max_tokens` long and ends with the context, whichever comes first.
    ///
    /// # Errors
    /// An input error when the request can never run, [`Error::TooLarge`] when it could with more cache,
    /// [`Error::QueueFull`] when it may run later. The engine is unchanged then.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        self.check(&request)?;
        if self.queue.len() >= self.options.max_waiting {
            return Err(Error::QueueFull { waiting: self.queue.len(), limit: self.options.max_waiting });
        }
        let id = RequestId(self.next_id);
        // An odd multiplier spreads the request numbers over all seeds.
        let seed = self.options.seed ^ self.next_id.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let job = Job::new(id, request, self.context_length, self.model.eos_ids(), seed);
        if job.reserve > self.limits.cache_tokens {
            return Err(Error::TooLarge { needed_tokens: job.reserve, cache_tokens: self.limits.cache_tokens });
        }
        self.next_id += 1;
        self.queue.push_back(job);
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let context_length = self.context_length;
        let too_long = |what, tokens, room| Err(Error::TooLong { what, tokens, context_length, room });
        match &request.work {
            Work::Generate(generate) => {
                if tokens >= context_length {
                    return too_long("the prompt", tokens, true);
                }
                if generate.max_tokens == 0 {
                    return Err(Error::parameter("max_tokens", 0, "at least 1"));
                }
                check_top("logprobs", generate.logprobs.unwrap_or(0))?;
                generate.sampling.check(self.vocab_size)?;
                self.check_ids("stop_ids", &generate.stop_ids)?;
            }
            Work::Score { continuation, top } => {
                if continuation.is_empty() {
                    return Err(Error::EmptyContinuation);
                }
                // The last id of a continuation is only looked up, never read.
                let tokens = tokens.saturating_add(continuation.len()) - 1;
                if tokens > context_length {
                    return too_long("prompt and continuation without its last token", tokens, false);
                }
                check_top("top", *top)?;
                self.check_ids("continuation", continuation)?;
            }
            Work::Logits => {
                if tokens > context_length {
                    return too_long("the prompt", tokens, false);
                }
            }
        }
        self.check_ids("prompt", &request.prompt)
    }

    fn check_ids(&self, what: &'static str, ids: &[u32]) -> Result<()> {
        let vocab_size = self.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            Some(index) => Err(Error::UnknownId { what, id: ids[index], index, vocab_size }),
            None => Ok(()),
        }
    }

    /// Ends a request; its place in the cache is free at once and the next step tells of it.
    ///
    /// `false` if it is over already or never was.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let job = if let Some(at) = self.queue.iter().position(|job| job.id == id) {
            self.queue.remove(at)
        } else if let Some(at) = self.running.iter().position(|job| job.id == id) {
            Some(self.running.remove(at))
        } else {
            None
        };
        let Some(job) = job else { return false };
        self.retire(&job, FinishReason::Cancelled, None);
        true
    }

    /// Does one forward pass and tells what came of it, in the order in which it happened.
    ///
    /// A request that fails (damaged weights, a model that cannot run) finishes with [`FinishReason::Error`]; the
    /// engine lives on.
    ///
    /// # Errors
    /// [`Error::Internal`] only, for a defect of the engine itself.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let rows = self.admit()?;
        if !self.running.is_empty() {
            self.forward(&rows)?;
        }
        let over: Vec<Job> = self.running.extract_if(.., |job| job.finished.is_some()).collect();
        for mut job in over {
            if let Some((reason, stop_id)) = job.finished.take() {
                self.retire(&job, reason, stop_id);
            }
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Lets in whom the plan lets in; the rows that each running request gets.
    fn admit(&mut self) -> Result<Vec<usize>> {
        // The plan never looks further than this many from the head.
        let waiting: Vec<Waiting> = self
            .queue
            .iter()
            .take(self.limits.max_running)
            .map(|job| Waiting { prefill: job.prefill, reserve: job.reserve })
            .collect();
        let running: Vec<Running> =
            self.running.iter().map(|job| Running { prefill_left: job.prefill_left(), reserve: job.reserve }).collect();
        let plan = plan::plan(&self.limits, &waiting, &running);
        let mut rows = plan.rows;
        for _ in 0..plan.admit {
            let Some(mut job) = self.queue.pop_front() else {
                return Err(Error::Internal("the plan admits more than the queue holds".into()));
            };
            match self.model.open_slot() {
                Ok(slot) => {
                    job.start(slot);
                    self.running.push(job);
                }
                Err(error) => {
                    rows.remove(self.running.len());
                    self.retire(&job, FinishReason::Error(error.to_string()), None);
                }
            }
        }
        Ok(rows)
    }

    /// Runs the planned rows of all running requests in one pass.
    fn forward(&mut self, rows: &[usize]) -> Result<()> {
        let (batch, busy) = self.batch(rows)?;
        let (running, events) = (&mut self.running, &mut self.pending);
        let outcome = self.model.forward(&batch, &mut |chunk, row, logits| {
            let part = &batch.chunks[chunk];
            running[busy[chunk]].take_row(part.past + row - part.rows.start, logits, events);
        });
        for (&at, chunk) in busy.iter().zip(&batch.chunks) {
            match &outcome {
                Ok(()) => running[at].fed(chunk.rows.len(), events),
                Err(error) => {
                    let reason = FinishReason::Error(error.to_string());
                    running[at].finished = Some((reason, None));
                }
            }
        }
        Ok(())
    }

    /// Gathers the planned rows, and for each chunk the index of the running request that it belongs to.
    fn batch(&self, rows: &[usize]) -> Result<(Batch, Vec<usize>)> {
        let mut batch = Batch::default();
        let mut busy = Vec::with_capacity(self.running.len());
        for (at, (job, &count)) in self.running.iter().zip(rows).enumerate() {
            if count == 0 {
                continue;
            }
            let from = batch.ids.len();
            let ids = job.ids.get(job.fed..job.fed + count);
            let (Some(ids), Some(slot)) = (ids, job.slot) else {
                return Err(Error::Internal(format!("request {} has no {count} rows to run", job.id)));
            };
            batch.ids.extend_from_slice(ids);
            let rows = from..from + count;
            let skip = job.wanted_from.saturating_sub(job.fed).min(count);
            batch.chunks.push(Chunk { slot, past: job.fed, wanted: from + skip..rows.end, rows });
            busy.push(at);
        }
        Ok((batch, busy))
    }

    fn retire(&mut self, job: &Job, reason: FinishReason, stop_id: Option<u32>) {
        if let Some(slot) = job.slot {
            self.model.close_slot(slot);
        }
        tracing::debug!(request = job.id.0, reason = reason.name(), "finished");
        self.pending.push(job.finish(reason, stop_id));
    }
}

fn check_top(name: &'static str, n: usize) -> Result<()> {
    if n > MAX_TOP_LOGPROBS {
        return Err(Error::parameter(name, n, format!("at most {MAX_TOP_LOGPROBS}")));
    }
    Ok(())
}
