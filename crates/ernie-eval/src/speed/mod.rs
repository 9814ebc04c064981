//! How fast a model reads and writes, measured on the engine.
//!
//! [`measure`] runs a [`Workload`] of seeded random ids: some tokens already in the cache, a prompt read after them, and an
//! answer written after them. Ids are random and forced, so that no answer ends early, none falls into a loop that a
//! speculating engine could guess, and a mixture of experts is routed as by text that is all different. Loading and one
//! warm-up are left out. [`Need`] says what the same work needs at least, given a machine's [`Roof`].

mod need;

use std::time::Instant;

use ernie_serve::engine::{Engine, EngineOptions, Event, FinishReason, Generate, Request, RequestId, Verdict, Watcher};

use crate::{Error, Result};
pub use need::{Need, Roof};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of each prompt that is read, at least 1.
    pub prompt_tokens: usize,
    /// Tokens of each answer that is written, at least 1.
    pub gen_tokens: usize,
    /// Sequences at the same time, at least 1.
    pub batch: usize,
    /// Tokens in the cache of each sequence before both timed parts. Writing starts after at least one.
    pub context: usize,
    /// How often both parts are measured, at least 1.
    pub repeat: usize,
    /// Seeds the ids.
    pub seed: u64,
}

/// The middle of some measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// Half are below.
    pub median: f64,
    /// A tenth are below.
    pub p10: f64,
    /// A tenth are above.
    pub p90: f64,
}

impl Spread {
    /// Of values in any order, interpolated between neighbours; zeros for none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * sorted.len().saturating_sub(1) as f64;
            let (low, high) = (sorted.get(place.floor() as usize), sorted.get(place.ceil() as usize));
            let (low, high) = (low.copied().unwrap_or(0.0), high.copied().unwrap_or(0.0));
            low + (high - low) * place.fract()
        };
        Self { median: at(0.5), p10: at(0.1), p90: at(0.9) }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Prompt tokens read in a second, all sequences together.
    pub prefill_tokens_per_s: Spread,
    /// Answer tokens written in a second, all sequences together.
    pub decode_tokens_per_s: Spread,
}

/// Rows of one forward pass while prompts are read.
pub const STEP_TOKENS: usize = 512;

impl Workload {
    /// Positions that the longest sequence comes to hold.
    pub fn positions(&self) -> usize {
        // Reading ends with the first token of an answer.
        let reading = self.context.saturating_add(self.prompt_tokens).saturating_add(1);
        reading.max(self.started().saturating_add(self.answer_tokens()))
    }

    /// Tokens in a sequence's cache when writing starts.
    fn started(&self) -> usize {
        self.context.max(1)
    }

    /// Tokens that an answer may have: the timed ones, and those that the first sequence writes while the last is still
    /// being started.
    fn answer_tokens(&self) -> usize {
        let steps = self.batch.saturating_mul(self.started().div_ceil(STEP_TOKENS) + 1);
        self.gen_tokens.saturating_add(steps).saturating_add(2)
    }

    /// That there is something to measure, and that it fits a model of `context_length` positions.
    ///
    /// # Errors
    /// [`Error::Setting`], naming the flag of `ernie bench` at fault.
    pub fn check(&self, context_length: usize) -> Result<()> {
        let setting =
            |name, value: usize, expected: String| Error::Setting { name, value: value.to_string(), expected };
        for (name, value) in [
            ("--prompt-tokens", self.prompt_tokens),
            ("--gen-tokens", self.gen_tokens),
            ("--batch", self.batch),
            ("--repeat", self.repeat),
        ] {
            if value == 0 {
                return Err(setting(name, value, "at least 1".to_owned()));
            }
        }
        let positions = self.positions();
        if positions > context_length {
            let expected =
                format!("a sequence of at most {context_length} tokens in all, and this comes to {positions}");
            return Err(setting("--context", self.context, expected));
        }
        Ok(())
    }
}

/// An engine's options for measuring up to `batch` sequences: nothing is guessed and nothing remembered, so that each token
/// is computed.
pub fn options(batch: usize) -> EngineOptions {
    EngineOptions {
        max_running: batch,
        max_waiting: batch,
        step_tokens: STEP_TOKENS.saturating_add(batch),
        prefix_cache_bytes: 0,
        draft_tokens: 0,
        ..EngineOptions::default()
    }
}

/// Measures reading and writing, `repeat` times each, after one warm-up of both.
///
/// `engine` is idle and was made with [`options`] for at least `batch` sequences; `progress` is told how many of
/// the `repeat + 1` rounds are done.
///
/// # Errors
/// [`Error::Setting`] for a workload that is empty or does not fit the model's context; what the engine refuses or fails at.
pub fn measure(engine: &mut Engine, workload: &Workload, progress: &mut dyn FnMut(usize)) -> Result<Speed> {
    workload.check(engine.context_length())?;
    if workload.batch > engine.options().max_running {
        return Err(Error::Internal(format!("{} sequences on an engine for fewer", workload.batch)));
    }
    let mut ids = Ids { state: workload.seed, vocab_size: engine.vocab_size() as u64 };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for round in 0..=workload.repeat {
        let read = (workload.batch * workload.prompt_tokens) as f64 / read_prompts(engine, workload, &mut ids)?;
        let written = (workload.batch * workload.gen_tokens) as f64 / write_answers(engine, workload, &mut ids)?;
        if round > 0 {
            prefill.push(read);
            decode.push(written);
        }
        progress(round + 1);
    }
    Ok(Speed { prefill_tokens_per_s: Spread::of(&prefill), decode_tokens_per_s: Spread::of(&decode) })
}

/// Seconds to read all prompts. With an empty cache they share passes; with a context before each, one after the other
/// reads its context untimed and then its prompt.
fn read_prompts(engine: &mut Engine, workload: &Workload, ids: &mut Ids) -> Result<f64> {
    let (context, batch) = (workload.context, workload.batch);
    let groups = if context == 0 { 1 } else { batch };
    let mut seconds = 0.0;
    for _ in 0..groups {
        for _ in 0..batch / groups {
            let prompt = ids.take(context + workload.prompt_tokens);
            engine.submit(Request::generate(prompt, Generate { ignore_eos: true, ..Generate::default() }))?;
        }
        let mut left = context;
        while left > 0 {
            let rows = left.min(STEP_TOKENS);
            engine.set_step_tokens(rows);
            step(engine)?;
            left -= rows;
        }
        engine.set_step_tokens(STEP_TOKENS);
        let began = Instant::now();
        while !engine.is_idle() {
            step(engine)?;
        }
        seconds += began.elapsed().as_secs_f64();
    }
    Ok(seconds.max(1e-9))
}

/// Seconds of the `gen_tokens` steps that follow when every sequence has begun to write.
fn write_answers(engine: &mut Engine, workload: &Workload, ids: &mut Ids) -> Result<f64> {
    // Answers that run take their rows first; what is left must still be a whole part of a prompt.
    engine.set_step_tokens(STEP_TOKENS.saturating_add(workload.batch));
    let mut running = Vec::new();
    for _ in 0..workload.batch {
        let forced = Box::new(Forced(Ids { state: ids.next(), vocab_size: ids.vocab_size }));
        let generate = Generate {
            max_tokens: workload.answer_tokens(),
            ignore_eos: true,
            watcher: Some(forced),
            ..Generate::default()
        };
        running.push(engine.submit(Request::generate(ids.take(workload.started()), generate))?);
    }
    let mut silent = running.clone();
    while !silent.is_empty() {
        let spoken = step(engine)?;
        silent.retain(|request| !spoken.contains(request));
    }
    let (wanted, mut written) = (workload.batch * workload.gen_tokens, 0);
    let began = Instant::now();
    while written < wanted {
        let spoken = step(engine)?;
        if spoken.is_empty() {
            return Err(Error::Internal(format!("{written} of {wanted} tokens, and the engine says no more")));
        }
        written += spoken.len();
    }
    // A step may end beyond what was wanted where an engine writes more than a token a step.
    let seconds = began.elapsed().as_secs_f64() * wanted as f64 / written as f64;
    for request in running {
        engine.cancel(request);
    }
    while !engine.is_idle() {
        engine.step()?;
    }
    Ok(seconds.max(1e-9))
}

/// One step; the requests that said a token, once for each.
fn step(engine: &mut Engine) -> Result<Vec<RequestId>> {
    let mut spoken = Vec::new();
    for event in engine.step()? {
        match event {
            Event::Token { request, .. } => spoken.push(request),
            Event::Finished { reason: FinishReason::Error(message), .. } => {
                return Err(Error::Data { at: "the model".to_owned(), what: message });
            }
            _ => {}
        }
    }
    Ok(spoken)
}

/// An endless stream of random ids: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Clone, Debug)]
struct Ids {
    state: u64,
    vocab_size: u64,
}

impl Ids {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn id(&mut self) -> u32 {
        (self.next() % self.vocab_size.max(1)) as u32
    }

    fn take(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.id()).collect()
    }
}

/// Makes each token of an answer a random one, at the cost of writing one logit.
struct Forced(Ids);

impl Watcher for Forced {
    fn mask(&mut self, logits: &mut [f32]) {
        let id = self.0.id() as usize;
        if let Some(logit) = logits.get_mut(id) {
            *logit = f32::MAX;
        }
    }

    fn accept(&mut self, _id: u32) -> Verdict {
        Verdict::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_interpolate() {
        let spread = Spread::of(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((spread.median, spread.p10, spread.p90), (3.0, 1.4, 4.6));
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, p10: 7.0, p90: 7.0 });
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn ids_are_seeded_and_inside() {
        let mut ids = Ids { state: 7, vocab_size: 50 };
        let some = ids.clone().take(1000);
        assert_eq!(some, ids.take(1000));
        assert!(some.iter().all(|&id| id < 50) && some.contains(&0) && some.contains(&49));
    }
}
