//! What the server counts, named once, in Prometheus' words.
//!
//! Counts of the engine's own life are copied out of its statistics after each step; the rest is counted where it
//! happens. `docs/serving.md` explains every name.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::error::Reason;
use crate::engine::Stats;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Answered {
    pub(super) route: String,
    pub(super) status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Refused {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Ended {
    pub(super) reason: &'static str,
}

/// Everything that is counted.
pub(super) struct Metrics {
    registry: Registry,
    pub(super) requests: Family<Answered, Counter>,
    pub(super) refused: Family<Refused, Counter>,
    pub(super) finished: Family<Ended, Counter>,
    pub(super) in_flight: Gauge,
    pub(super) connections: Gauge,
    pub(super) connections_refused: Counter,
    pub(super) ready: Gauge,
    pub(super) engine_restarts: Counter,
    pub(super) request_s: Histogram,
    pub(super) queue_s: Histogram,
    pub(super) first_token_s: Histogram,
    pub(super) inter_token_s: Histogram,
    pub(super) batch: Histogram,
    waiting: Gauge,
    running: Gauge,
    blocks: Gauge,
    blocks_held: Gauge,
    blocks_idle: Gauge,
    block_bytes: Gauge,
    kv_use: Gauge<f64, AtomicU64>,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    prefix_hit_tokens: Counter,
    drafted: Counter,
    accepted: Counter,
    steps: Counter,
    preemptions: Counter,
}

/// Seconds from a hundredth of a millisecond to ten minutes.
const SECONDS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// The same for what happens within one answer.
const STEPS: [f64; 14] = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 5.0];

impl Metrics {
    pub(super) fn new(version: &str, model: &str) -> Self {
        let mut registry = Registry::with_prefix("ernie");
        let info = vec![("version", version.to_owned()), ("model", model.to_owned())];
        registry.register("build", "What runs here", prometheus_client::metrics::info::Info::new(info));
        let seconds = || Histogram::new(SECONDS);
        let metrics = Self {
            requests: Family::default(),
            refused: Family::default(),
            finished: Family::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            ready: Gauge::default(),
            engine_restarts: Counter::default(),
            request_s: seconds(),
            queue_s: seconds(),
            first_token_s: seconds(),
            inter_token_s: Histogram::new(STEPS),
            batch: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            waiting: Gauge::default(),
            running: Gauge::default(),
            blocks: Gauge::default(),
            blocks_held: Gauge::default(),
            blocks_idle: Gauge::default(),
            block_bytes: Gauge::default(),
            kv_use: Gauge::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            prefix_hit_tokens: Counter::default(),
            drafted: Counter::default(),
            accepted: Counter::default(),
            steps: Counter::default(),
            preemptions: Counter::default(),
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        Self { registry, ..metrics }
    }

    fn register(&self, r: &mut Registry) {
        r.register("http_requests", "Requests answered, by route and status", self.requests.clone());
        r.register("http_refused", "Requests refused, by reason", self.refused.clone());
        r.register("http_in_flight", "Requests being answered", self.in_flight.clone());
        r.register("http_connections", "Open connections", self.connections.clone());
        r.register("http_connections_refused", "Connections closed at the limit", self.connections_refused.clone());
        r.register("ready", "1 while the model is loaded and the server is not stopping", self.ready.clone());
        let seconds = || Unit::Seconds;
        let help = "From a request's headers to the end of its answer";
        r.register_with_unit("http_request_duration", help, seconds(), self.request_s.clone());
        r.register("answers_finished", "Answers that are over, by reason", self.finished.clone());
        r.register_with_unit("queue_wait", "In the engine's queue", seconds(), self.queue_s.clone());
        r.register_with_unit(
            "time_to_first_token",
            "From submission to the first token",
            seconds(),
            self.first_token_s.clone(),
        );
        r.register_with_unit("inter_token", "Between tokens of an answer", seconds(), self.inter_token_s.clone());
        r.register("batch_requests", "Requests that share a step", self.batch.clone());
        r.register("engine_restarts", "Times the engine failed and was made anew", self.engine_restarts.clone());
        r.register("engine_waiting", "Requests in the engine's queue", self.waiting.clone());
        r.register("engine_running", "Requests that run", self.running.clone());
        r.register("engine_steps", "Steps done", self.steps.clone());
        r.register("prompt_tokens", "Tokens of prompts that were let in", self.prompt_tokens.clone());
        r.register("generated_tokens", "Tokens of answers", self.generated_tokens.clone());
        r.register("prefix_hit_tokens", "Tokens of prompts found in the cache", self.prefix_hit_tokens.clone());
        r.register("drafted_tokens", "Guessed tokens that were tried", self.drafted.clone());
        r.register("accepted_tokens", "Guessed tokens that were right", self.accepted.clone());
        r.register("preemptions", "Requests that gave their blocks back and waited again", self.preemptions.clone());
        r.register("kv_blocks", "Blocks that the cache may have; -1 without a limit", self.blocks.clone());
        r.register("kv_blocks_held", "Blocks that running requests hold", self.blocks_held.clone());
        r.register("kv_blocks_idle", "Blocks kept for prompts to come", self.blocks_idle.clone());
        r.register_with_unit("kv_block", "Size of a block", Unit::Bytes, self.block_bytes.clone());
        r.register("kv_use_ratio", "Share of the cache's blocks that is held", self.kv_use.clone());
    }

    /// Counts a refusal.
    pub(super) fn refuse(&self, reason: Reason) {
        self.refused.get_or_create(&Refused { reason: reason.name() }).inc();
    }

    /// Copies what an engine has done since `before`.
    pub(super) fn note(&self, before: &Stats, now: &Stats) {
        let gauge = |gauge: &Gauge, n: usize| gauge.set(n as i64);
        gauge(&self.waiting, now.waiting);
        gauge(&self.running, now.running);
        gauge(&self.blocks_held, now.blocks_held);
        gauge(&self.blocks_idle, now.blocks_idle);
        self.blocks.set(now.blocks.map_or(-1, |n| n as i64));
        self.block_bytes.set(now.block_bytes as i64);
        self.kv_use.set(now.blocks.map_or(0.0, |n| now.blocks_held as f64 / n.max(1) as f64));
        let counter = |counter: &Counter, before: u64, now: u64| counter.inc_by(now.saturating_sub(before));
        counter(&self.prompt_tokens, before.prompt_rows, now.prompt_rows);
        counter(&self.generated_tokens, before.tokens, now.tokens);
        counter(&self.prefix_hit_tokens, before.prefix_hit_rows, now.prefix_hit_rows);
        counter(&self.drafted, before.drafted, now.drafted);
        counter(&self.accepted, before.accepted, now.accepted);
        counter(&self.steps, before.steps, now.steps);
        counter(&self.preemptions, before.preemptions, now.preemptions);
    }

    /// The text of `/metrics`.
    pub(super) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
