//! The engine: ids in, ids out.
//!
//! It never sees text or HTTP, and it has no threads of its own: whoever owns it calls [`Engine::step`] and gets
//! [`Event`]s. A step is a [`plan`] (a pure function of the queue and the running requests), one forward pass over all
//! planned rows (parts of prompts and one row for each answer, together), and a token for each request that got to its
//! end. Requests come and go between steps, so short answers never wait for long ones. Each may name an adapter of the
//! model; those of different adapters, and of none, share steps and never a block.
//!
//! Keys and values live in blocks. A request is let in when there are free blocks for its prompt; when answers outgrow
//! what there is, the least urgent request gives its blocks back, waits, and is computed again without losing a token.
//! Full blocks stay after their request, so that a prompt that begins like an earlier one, or the next turn of a
//! conversation, reads only what is new. Guesses of the next tokens are tried where that saves time.
//!
//! A request's tokens are the same alone and in any company, greedy and seeded, however its prompt is cut into chunks,
//! with any of the above: the model's rows do not depend on their neighbours, and draws are keyed by seed and position.

mod blocks;
mod door;
mod draft;
mod job;
mod model;
pub mod plan;
mod prefix;
mod request;
mod sampler;
mod stats;
mod step;
mod watcher;

use std::sync::Arc;

use ernie_model::Decoder;

pub use model::{Batch, Chunk, DecoderModel, Model, Row, TakeRows};
pub use request::{Event, FinishReason, Generate, Logprob, Pooling, Request, RequestId, TokenScore, Usage, Work};
pub use sampler::{Sampling, uniform};
pub use stats::Stats;
pub use watcher::{Verdict, Watcher};

use crate::{Error, Result};
use blocks::BlockPool;
use draft::Pace;
use job::Job;
use plan::{Limits, Urgency};
use prefix::PrefixCache;

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
    /// Positions that the cache may hold for all requests together, and for those that are over, rounded down to whole
    /// blocks; `None` does not limit it.
    pub cache_tokens: Option<usize>,
    /// Bytes of the cache that may keep what requests have read for later ones that begin alike; 0 keeps nothing.
    pub prefix_cache_bytes: u64,
    /// Tokens of an answer that may be guessed and tried in one step, where that saves time; 0 never guesses.
    pub draft_tokens: usize,
    /// Steps of waiting that one unit of priority is worth, at least 1: a request of priority `p` is treated like one of
    /// priority 0 that came `p` times as many steps earlier.
    pub ageing_steps: usize,
    /// A context shorter than the model's; `None` takes the model's.
    pub context_length: Option<usize>,
    /// Keys the draws of requests that bring no seed of their own.
    pub seed: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_running: 16,
            max_waiting: 4096,
            step_tokens: 512,
            cache_tokens: None,
            prefix_cache_bytes: 256 << 20,
            draft_tokens: 8,
            ageing_steps: 64,
            context_length: None,
            seed: 0,
        }
    }
}

/// Runs requests on one model. One thread owns it.
pub struct Engine {
    model: Box<dyn Model>,
    options: EngineOptions,
    limits: Limits,
    vocab_size: usize,
    context_length: usize,
    pool: BlockPool,
    prefixes: PrefixCache,
    pace: Pace,
    stats: Stats,
    queue: Vec<Job>,
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
        Self::with_model(Box::new(DecoderModel::new(decoder.into())?), options)
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
        if options.ageing_steps == 0 {
            return Err(Error::parameter("ageing_steps", 0, "at least 1"));
        }
        let (block_tokens, block_bytes) = (model.block_tokens().max(1), model.block_bytes());
        let capacity = options.cache_tokens.map_or(usize::MAX, |tokens| tokens / block_tokens);
        if capacity == 0 {
            let tokens = options.cache_tokens.unwrap_or(0);
            return Err(Error::parameter("cache_tokens", tokens, format!("at least {block_tokens}, one block")));
        }
        let pool = BlockPool::new(capacity);
        let kept = match (options.prefix_cache_bytes, block_bytes) {
            (0, _) => 0,
            (_, 0) => usize::MAX,
            (bytes, block) => usize::try_from(bytes / block).unwrap_or(usize::MAX),
        };
        let limits = Limits { max_running: options.max_running, step_tokens: options.step_tokens, block_tokens };
        Ok(Self {
            prefixes: PrefixCache::new(block_tokens, kept),
            pace: Pace::default(),
            stats: Stats {
                block_tokens,
                block_bytes,
                blocks: options.cache_tokens.map(|_| pool.capacity()),
                ..Stats::default()
            },
            pool,
            vocab_size: model.vocab_size(),
            context_length,
            limits,
            model,
            options,
            queue: Vec::new(),
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

    /// What it has done and holds so far.
    pub fn stats(&self) -> Stats {
        let blocks_idle = self.prefixes.idle();
        Stats {
            waiting: self.queue.len(),
            running: self.running.len(),
            blocks_idle,
            blocks_held: self.pool.used() - blocks_idle,
            ..self.stats
        }
    }

    /// Forgets what earlier requests have read, so that the next ones are as slow as the first; for measurements.
    pub fn forget_prefixes(&mut self) {
        self.prefixes.clear();
        self.running.iter_mut().for_each(|job| job.shared = 0);
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
        let ahead = i64::from(request.priority).saturating_mul(self.options.ageing_steps as i64);
        let due = (self.stats.steps as i64).saturating_sub(ahead);
        let urgency = Urgency { due, arrival: self.next_id };
        let job = Job::new(id, request, self.context_length, self.model.eos_ids(), seed, urgency);
        let cache_tokens = self.pool.capacity().saturating_mul(self.limits.block_tokens);
        if job.reserve > cache_tokens {
            return Err(Error::TooLarge { needed_tokens: job.reserve, cache_tokens });
        }
        self.next_id += 1;
        self.queue.push(job);
        Ok(id)
    }

    /// Ends a request; its blocks are free at once and the next step tells of it.
    ///
    /// `false` if it is over already or never was.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let job = if let Some(at) = self.queue.iter().position(|job| job.id == id) {
            Some(self.queue.remove(at))
        } else if let Some(at) = self.running.iter().position(|job| job.id == id) {
            Some(self.running.remove(at))
        } else {
            None
        };
        let Some(job) = job else { return false };
        self.retire(job, (FinishReason::Cancelled, None));
        true
    }
}
