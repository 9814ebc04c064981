//! What an engine has done and holds: the numbers that a server's metrics and a benchmark's report are made of.

/// Counts since the engine was made, and what it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests in the queue now.
    pub waiting: usize,
    /// Requests that run now.
    pub running: usize,
    /// Positions of a block.
    pub block_tokens: usize,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks that the cache may have; `None` where nothing limits it.
    pub blocks: Option<usize>,
    /// Blocks that running requests hold now.
    pub blocks_held: usize,
    /// Blocks that nobody holds and that are kept for prompts to come; they are free when asked for.
    pub blocks_idle: usize,
    /// Steps done.
    pub steps: u64,
    /// Rows of all forward passes.
    pub rows: u64,
    /// Requests finished, for whatever reason.
    pub finished: u64,
    /// Tokens of all answers.
    pub tokens: u64,
    /// Rows of prompts that were let in, those found in the cache included.
    pub prompt_rows: u64,
    /// Rows of these that earlier requests had read.
    pub prefix_hit_rows: u64,
    /// Requests that gave their blocks back and waited again.
    pub preemptions: u64,
    /// Rows that these will read, or find, a second time.
    pub preempted_rows: u64,
    /// Guessed tokens that were tried.
    pub drafted: u64,
    /// Of these, how many were right.
    pub accepted: u64,
}
