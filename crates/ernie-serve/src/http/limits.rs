//! What one caller, one request and the whole server may use. Every limit has a flag and a default.

use std::time::Duration;

/// The limits of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's line and headers together.
    pub header_bytes: usize,
    /// Tokens of a prompt; `None` is what the context holds.
    pub prompt_tokens: Option<usize>,
    /// Tokens of an answer, and what is taken where a chat request names no limit.
    pub output_tokens: usize,
    /// Answers to one prompt, `n`.
    pub choices: usize,
    /// Prompts or texts of one request.
    pub batch: usize,
    /// Stop strings of one request.
    pub stop_strings: usize,
    /// Messages of one conversation.
    pub messages: usize,
    /// Requests that wait beside those that run; one more is answered 429.
    pub queue: usize,
    /// Open connections; one more takes the place of a silent one, or is closed at once.
    pub connections: usize,
    /// Requests a minute and key; 0 does not limit it.
    pub rate_per_minute: u32,
    /// Requests of one key at the same time.
    pub concurrency: usize,
    /// From a request's headers to the end of its answer.
    pub deadline: Duration,
    /// From the signal to stop until answers that still run are cut.
    pub drain_grace: Duration,
    /// For a request's headers, and for a connection without one.
    pub header_timeout: Duration,
    /// For a request's body.
    pub body_timeout: Duration,
    /// For a reader that takes nothing of its answer.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            header_bytes: 32 << 10,
            prompt_tokens: None,
            output_tokens: 4096,
            choices: 16,
            batch: 128,
            stop_strings: 16,
            messages: 4096,
            queue: 256,
            connections: 1024,
            rate_per_minute: 6000,
            concurrency: 256,
            deadline: Duration::from_secs(600),
            drain_grace: Duration::from_secs(30),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// Headers of one request.
pub(super) const MAX_HEADERS: usize = 100;

/// Bytes of bodies that are held and read at the same time, as a multiple of one body's limit.
pub(super) const BODIES_AT_ONCE: usize = 32;

/// Likeliest tokens that may be asked for at a position.
pub(super) const MAX_TOP_LOGPROBS: u64 = 20;

/// Entries of `logit_bias`.
pub(super) const MAX_LOGIT_BIAS: usize = 1024;

/// Seconds after which a caller who met a full queue should ask again.
pub(super) const RETRY_AFTER_S: u32 = 1;
