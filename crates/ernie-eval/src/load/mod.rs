//! How long requests wait and run under load, by the way they are scheduled.
//!
//! An open loop: requests come when they come (Poisson, seeded), whether or not earlier ones are done, and latency
//! counts from the moment of arrival. The three ways of [`Policy`] run on the same engine and the same kernels, on the
//! same list of arrivals, and must give the same answers. Time is virtual: a step takes what it took, or what a cost
//! function says, and waiting for the next arrival takes nothing, so a study needs only its busy time.
//!
//! A [`study`] compares continuous batching with each baseline at a share of what that baseline can bear, so that none
//! is judged beyond its saturation. What is won is the weights, read once for all rows of a step: where a step costs its
//! rows alone, sharing it only delays those who came first, and both baselines have the lower mean. Continuous batching:
//! Yu et al., Orca, OSDI 2022.
//!
//! [`served`] does the same to a server from outside.

mod arrivals;
mod drive;
pub mod served;

use ernie_serve::engine::Engine;

pub use arrivals::{Arrival, Workload};
pub use drive::{Outcome, Policy, Timing, run};

use crate::{Error, Result};

/// What a study compares.
#[derive(Debug, Clone)]
pub struct StudyOptions {
    /// The requests.
    pub workload: Workload,
    /// Arrivals over what the baseline can bear, above 0 and below 1.
    pub load: f64,
    /// Requests of one batch of the dynamic baseline, 1 to the engine's `max_running`.
    pub batch: usize,
    /// Seconds that the dynamic baseline waits for a batch to fill. 0 is the kindest to it at most loads.
    pub window_s: f64,
}

impl Default for StudyOptions {
    fn default() -> Self {
        Self { workload: Workload::default(), load: 0.7, batch: 16, window_s: 0.0 }
    }
}

/// Continuous batching beside one baseline, at the same arrivals.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// The baseline.
    pub baseline: Policy,
    /// Requests a second that the baseline can bear, measured with all requests there from the start.
    pub saturation_per_s: f64,
    /// Requests a second that came.
    pub arrivals_per_s: f64,
    /// The baseline's times.
    pub baseline_times: Timing,
    /// Those of continuous batching.
    pub continuous_times: Timing,
    /// Continuous over baseline, mean end-to-end latency, minus 1: −0.22 is 22% less.
    pub latency_change: f64,
}

/// Compares continuous batching with request-level dynamic batching and with one request at a time.
///
/// `seconds` turns the measured seconds of a step into those that count: the identity on a real model, a cost function
/// on a model of paper. The engine must have nothing else to do; what it remembers of prompts is forgotten before each
/// run.
///
/// # Errors
/// [`Error::Setting`] for options out of range, [`Error::Serve`] when the engine refuses or fails, and
/// [`Error::Internal`] if an answer depends on the policy.
pub fn study(
    engine: &mut Engine,
    options: &StudyOptions,
    seconds: &mut dyn FnMut(f64) -> f64,
) -> Result<Vec<Comparison>> {
    if !(options.load > 0.0 && options.load < 1.0) {
        return Err(setting("load", options.load, "a share above 0 and below 1"));
    }
    let dynamic = Policy::DynamicBatch { most: options.batch, window_s: options.window_s };
    [dynamic, Policy::OneAtATime].into_iter().map(|baseline| compare(engine, options, baseline, seconds)).collect()
}

fn compare(
    engine: &mut Engine,
    options: &StudyOptions,
    baseline: Policy,
    seconds: &mut dyn FnMut(f64) -> f64,
) -> Result<Comparison> {
    let vocab_size = engine.vocab_size();
    let at_once = options.workload.arrivals(vocab_size, f64::INFINITY)?;
    let saturation_per_s = run(engine, baseline, &at_once, seconds)?.requests_per_s();
    let arrivals_per_s = options.load * saturation_per_s;
    let arrivals = options.workload.arrivals(vocab_size, arrivals_per_s)?;
    let theirs = run(engine, baseline, &arrivals, seconds)?;
    let ours = run(engine, Policy::Continuous, &arrivals, seconds)?;
    if let Some(at) = (0..arrivals.len()).find(|&at| ours.answers[at] != theirs.answers[at]) {
        return Err(Error::Internal(format!("request {at} is answered otherwise by another policy")));
    }
    let (baseline_times, continuous_times) = (theirs.timing(), ours.timing());
    let latency_change = continuous_times.mean_s / baseline_times.mean_s - 1.0;
    Ok(Comparison { baseline, saturation_per_s, arrivals_per_s, baseline_times, continuous_times, latency_change })
}

pub(crate) fn setting(name: &'static str, value: impl ToString, expected: &str) -> Error {
    Error::Setting { name, value: value.to_string(), expected: expected.into() }
}
