//! Drives an engine through a list of arrivals.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use ernie_serve::engine::{Engine, Event, FinishReason, Generate, Request, RequestId};

use super::{Arrival, setting};
use crate::{Error, Result};

/// When requests are given to the engine.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(tag = "policy", rename_all = "snake_case")]
pub enum Policy {
    /// As they come.
    Continuous,
    /// As they come, but no more than so many at a time: the next takes the place of one that is done.
    Readers {
        /// Requests at a time.
        most: usize,
    },
    /// In batches that nobody joins or is replaced in until all in it are done. Each request is told its answer when
    /// that is done, not when the batch is, which is kind to this policy.
    DynamicBatch {
        /// Requests of a batch at most.
        most: usize,
        /// Seconds that the first of a batch waits for others.
        window_s: f64,
    },
    /// One, then the next.
    OneAtATime,
}

/// What came of a run, by the order of arrival.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Seconds from arrival to the last token.
    pub latency_s: Vec<f64>,
    /// Seconds from arrival to the first token.
    pub first_token_s: Vec<f64>,
    /// The answers.
    pub answers: Vec<Vec<u32>>,
    /// Seconds from the start to the end of the last.
    pub total_s: f64,
}

/// Times of requests, the first tenth left out: they came to an empty engine.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Timing {
    /// Mean end-to-end latency, in seconds.
    pub mean_s: f64,
    /// Its median.
    pub p50_s: f64,
    /// Its 95th percentile.
    pub p95_s: f64,
    /// Its 99th percentile.
    pub p99_s: f64,
    /// Mean time to the first token, in seconds.
    pub first_token_mean_s: f64,
}

impl Outcome {
    /// Requests a second over the whole run.
    pub fn requests_per_s(&self) -> f64 {
        self.latency_s.len() as f64 / self.total_s.max(f64::MIN_POSITIVE)
    }

    /// Summed up.
    pub fn timing(&self) -> Timing {
        let settled = |times: &[f64]| times[times.len() / 10..].to_vec();
        let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len().max(1) as f64;
        let mut latency = settled(&self.latency_s);
        let mean_s = mean(&latency);
        latency.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let at = (q * latency.len() as f64) as usize;
            latency.get(at.min(latency.len().saturating_sub(1))).copied().unwrap_or(0.0)
        };
        Timing {
            mean_s,
            p50_s: quantile(0.5),
            p95_s: quantile(0.95),
            p99_s: quantile(0.99),
            first_token_mean_s: mean(&settled(&self.first_token_s)),
        }
    }
}

/// Runs `arrivals` (in the order of time) under a policy; see [`super::study`] for `seconds`.
///
/// # Errors
/// [`Error::Setting`] for a batch that the engine cannot run at once; [`Error::Serve`] when it refuses or fails.
pub fn run(
    engine: &mut Engine,
    policy: Policy,
    arrivals: &[Arrival],
    seconds: &mut dyn FnMut(f64) -> f64,
) -> Result<Outcome> {
    let (most, window_s) = match policy {
        Policy::Continuous => (usize::MAX, 0.0),
        Policy::Readers { most } => (most, 0.0),
        Policy::DynamicBatch { most, window_s } => (most, window_s),
        Policy::OneAtATime => (1, 0.0),
    };
    let max_running = engine.options().max_running;
    if most == 0 || (policy != Policy::Continuous && most > max_running) {
        return Err(setting("batch", most, &format!("1 to {max_running}, what the engine runs at once")));
    }
    if !(window_s.is_finite() && window_s >= 0.0) {
        return Err(setting("window_s", window_s, "a finite number of seconds"));
    }
    engine.forget_prefixes();
    let mut open = HashMap::new();
    let outcome = drive(engine, policy, (most, window_s), arrivals, seconds, &mut open);
    // Where it failed the engine is left as it was found.
    for (request, _) in open {
        engine.cancel(request);
    }
    outcome
}

fn drive(
    engine: &mut Engine,
    policy: Policy,
    (most, window_s): (usize, f64),
    arrivals: &[Arrival],
    seconds: &mut dyn FnMut(f64) -> f64,
    open: &mut HashMap<RequestId, usize>,
) -> Result<Outcome> {
    let mut outcome = Outcome {
        latency_s: vec![0.0; arrivals.len()],
        first_token_s: vec![f64::NAN; arrivals.len()],
        answers: vec![Vec::new(); arrivals.len()],
        total_s: 0.0,
    };
    let mut coming: VecDeque<usize> = (0..arrivals.len()).collect();
    let mut now = 0.0;
    loop {
        let here = coming.iter().take_while(|&&at| arrivals[at].at_s <= now).count();
        let let_in = match policy {
            Policy::Continuous => here.min(engine.options().max_waiting.saturating_sub(engine.num_waiting())),
            Policy::Readers { .. } => here.min(most.saturating_sub(open.len())),
            _ if !open.is_empty() || here == 0 => 0,
            _ => {
                let full = here >= most || here == coming.len() || now >= arrivals[coming[0]].at_s + window_s;
                if full { here.min(most) } else { 0 }
            }
        };
        for at in coming.drain(..let_in) {
            let Arrival { prompt, max_tokens, sampling, .. } = &arrivals[at];
            let (max_tokens, sampling) = (*max_tokens, sampling.clone());
            let generate = Generate { max_tokens, sampling, ignore_eos: true, ..Generate::default() };
            open.insert(engine.submit(Request::generate(prompt.clone(), generate))?, at);
        }
        if open.is_empty() {
            // Nothing runs: the next thing that happens is an arrival, or the end of a batch's wait.
            let Some(&first) = coming.front() else { break };
            let next = coming.get(here).map_or(f64::INFINITY, |&at| arrivals[at].at_s);
            now = if here == 0 { next } else { next.min(arrivals[first].at_s + window_s) };
            continue;
        }
        let start = Instant::now();
        let events = engine.step()?;
        now += seconds(start.elapsed().as_secs_f64());
        for event in events {
            let request = event.request();
            let Some(&at) = open.get(&request) else { continue };
            let since = now - arrivals[at].at_s;
            match event {
                Event::Token { id, .. } => {
                    if outcome.answers[at].is_empty() {
                        outcome.first_token_s[at] = since;
                    }
                    outcome.answers[at].push(id);
                }
                Event::Finished { reason: FinishReason::Error(message), .. } => {
                    return Err(Error::Serve(ernie_serve::Error::Failed(message)));
                }
                Event::Finished { .. } => {
                    outcome.latency_s[at] = since;
                    open.remove(&request);
                }
                Event::Scored { .. } | Event::Logits { .. } | Event::Embedded { .. } => {}
            }
        }
    }
    outcome.total_s = now;
    Ok(outcome)
}
