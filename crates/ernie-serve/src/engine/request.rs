//! What goes into the engine and what comes out: requests and events, in ids.

use super::sampler::Sampling;
use super::watcher::Watcher;

/// Names a request for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A prompt and what to do with it.
#[derive(Debug)]
pub struct Request {
    /// The prompt's ids, at least one.
    pub prompt: Vec<u32>,
    /// What is asked.
    pub work: Work,
    /// Higher is let in sooner and gives way later; 0 is usual. Nobody waits for ever: see
    /// [`super::EngineOptions::ageing_steps`].
    pub priority: i32,
    /// Which of the model's adapters it goes through, by its number; `None` as the model itself goes.
    pub adapter: Option<usize>,
}

impl Request {
    /// Asks for some work on `prompt`.
    pub fn new(prompt: Vec<u32>, work: Work) -> Self {
        Self { prompt, work, priority: 0, adapter: None }
    }

    /// Asks for an answer to `prompt`.
    pub fn generate(prompt: Vec<u32>, generate: Generate) -> Self {
        Self::new(prompt, Work::Generate(generate))
    }

    /// Asks for the log-probability of each id of `continuation` after `prompt`.
    pub fn score(prompt: Vec<u32>, continuation: Vec<u32>) -> Self {
        Self::new(prompt, Work::Score { continuation, top: 0 })
    }

    /// Asks for the logits at every position of `prompt`.
    pub fn logits(prompt: Vec<u32>) -> Self {
        Self::new(prompt, Work::Logits)
    }

    /// Asks for one vector that stands for `prompt`.
    pub fn embed(prompt: Vec<u32>, pooling: Pooling) -> Self {
        Self::new(prompt, Work::Embed { pooling })
    }

    /// The same request with another priority.
    #[must_use]
    pub fn with_priority(self, priority: i32) -> Self {
        Self { priority, ..self }
    }

    /// The same request through an adapter, or none.
    #[must_use]
    pub fn with_adapter(self, adapter: Option<usize>) -> Self {
        Self { adapter, ..self }
    }
}

/// What is asked of the engine.
#[derive(Debug)]
pub enum Work {
    /// Generate: [`Event::Token`]s, then [`Event::Finished`].
    Generate(Generate),
    /// Score: one [`Event::Scored`], then [`Event::Finished`].
    Score {
        /// The ids whose log-probabilities are wanted, at least one.
        continuation: Vec<u32>,
        /// How many of the likeliest ids to report at each position beside them.
        top: usize,
    },
    /// All logits: [`Event::Logits`] in the order of positions, then [`Event::Finished`].
    Logits,
    /// One vector: one [`Event::Embedded`], then [`Event::Finished`].
    Embed {
        /// How the positions become one.
        pooling: Pooling,
    },
}

/// How the final hidden states of a prompt become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean, summed in f64 in the order of positions.
    #[default]
    Mean,
    /// That of the last position.
    Last,
}

/// How to generate. The default is one greedy token at most; set `max_tokens`.
pub struct Generate {
    /// Tokens at most, at least 1. The context may end the answer earlier.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Goes on when the model says that it is done.
    pub ignore_eos: bool,
    /// Ids that end the answer beside the model's own; `ignore_eos` ignores these too.
    pub stop_ids: Vec<u32>,
    /// `Some(n)`: each token comes with its log-probability and the `n` likeliest ids. These are the model's own, before
    /// bias, penalties and temperature.
    pub logprobs: Option<usize>,
    /// Looks over the request's shoulder.
    pub watcher: Option<Box<dyn Watcher>>,
}

impl Default for Generate {
    fn default() -> Self {
        Self {
            max_tokens: 1,
            sampling: Sampling::default(),
            ignore_eos: false,
            stop_ids: Vec::new(),
            logprobs: None,
            watcher: None,
        }
    }
}

impl std::fmt::Debug for Generate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generate")
            .field("max_tokens", &self.max_tokens)
            .field("sampling", &self.sampling)
            .field("ignore_eos", &self.ignore_eos)
            .field("stop_ids", &self.stop_ids)
            .field("logprobs", &self.logprobs)
            .field("watcher", &self.watcher.is_some())
            .finish()
    }
}

/// Something that happened to a request in a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One more token of the answer.
    Token {
        /// Whose.
        request: RequestId,
        /// The token.
        id: u32,
        /// Its log-probability, where asked for.
        logprob: Option<Logprob>,
    },
    /// The score of a whole continuation.
    Scored {
        /// Whose.
        request: RequestId,
        /// One entry for each id of the continuation.
        tokens: Vec<TokenScore>,
    },
    /// Some rows of logits.
    Logits {
        /// Whose.
        request: RequestId,
        /// Position of the first row.
        first: usize,
        /// `[rows, vocab]`, row after row.
        rows: Vec<f32>,
    },
    /// The vector that stands for a prompt.
    Embedded {
        /// Whose.
        request: RequestId,
        /// `[hidden_size]`, not normalised.
        embedding: Vec<f32>,
    },
    /// The request is over; nothing follows.
    Finished {
        /// Whose.
        request: RequestId,
        /// Why.
        reason: FinishReason,
        /// The end-of-sequence or stop id, if one ended it. It is no part of the answer and had no [`Event::Token`].
        stop_id: Option<u32>,
        /// That id's log-probability, where asked for.
        stop_logprob: Option<Logprob>,
        /// What it took.
        usage: Usage,
    },
}

impl Event {
    /// Whose event it is.
    pub fn request(&self) -> RequestId {
        match self {
            Self::Token { request, .. }
            | Self::Scored { request, .. }
            | Self::Logits { request, .. }
            | Self::Embedded { request, .. }
            | Self::Finished { request, .. } => *request,
        }
    }
}

/// Log-probabilities (natural logarithm) at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// Of the token itself.
    pub logprob: f64,
    /// The likeliest ids and theirs, likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// The score of one given token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub id: u32,
    /// Its log-probability (natural logarithm).
    pub logprob: f64,
    /// Whether greedy decoding would have chosen it (the lowest id among equals).
    pub greedy: bool,
    /// The likeliest ids at this position, likeliest first, as many as asked for.
    pub top: Vec<(u32, f64)>,
}

/// Why a request is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// It is complete: an end id, a watcher, or the end of a score or logits request.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// It was cancelled.
    Cancelled,
    /// It failed; other requests go on.
    Error(String),
}

impl FinishReason {
    /// The name in reports: `stop`, `length`, `cancelled` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error(_) => "error",
        }
    }
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// Ids of the answer.
    pub completion_tokens: usize,
    /// Seconds in the queue.
    pub queued_s: f64,
    /// Seconds from the first step to the first token (or the end, where there was none).
    pub prefill_s: f64,
    /// Seconds from the first token to the end.
    pub decode_s: f64,
}
