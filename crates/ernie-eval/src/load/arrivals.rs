//! Who comes when, with what.

use ernie_serve::engine::{Sampling, uniform};

use super::setting;
use crate::Result;

/// A request and when it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Seconds from the start.
    pub at_s: f64,
    /// The prompt's ids.
    pub prompt: Vec<u32>,
    /// Tokens of the answer; end-of-sequence ids are ignored, so it is exactly that long.
    pub max_tokens: usize,
    /// How the answer's tokens are picked.
    pub sampling: Sampling,
}

/// The likeliest ids that an answer is drawn from: few enough that drawing costs no server much.
const TOP_K: usize = 40;

/// Random requests: log-normal lengths, exponential gaps, random ids. Everything is keyed by the seed, and lengths and
/// ids do not depend on the rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Requests, at least 10.
    pub requests: usize,
    /// Median length of a prompt, in tokens.
    pub prompt_tokens: f64,
    /// Median length of an answer, in tokens.
    pub answer_tokens: f64,
    /// Standard deviation of the logarithm of both lengths; 0 makes all alike.
    pub spread: f64,
    /// No prompt and no answer is longer.
    pub most_tokens: usize,
    /// 0 takes the likeliest token. Above it tokens are drawn from the 40 likeliest, keyed by the request's number: the
    /// likeliest tokens of weights that mean little go round in circles, which an engine that guesses ahead writes for
    /// next to nothing.
    pub temperature: f32,
    /// Seed.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            requests: 1000,
            prompt_tokens: 64.0,
            answer_tokens: 32.0,
            spread: 0.8,
            most_tokens: 512,
            temperature: 0.0,
            seed: 0,
        }
    }
}

impl Workload {
    /// The requests in the order of arrival, `rate_per_s` a second in the mean; infinity lets all come at once.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for a field out of its range.
    pub fn arrivals(&self, vocab_size: usize, rate_per_s: f64) -> Result<Vec<Arrival>> {
        if self.requests < 10 {
            return Err(setting("requests", self.requests, "at least 10"));
        }
        if self.most_tokens == 0 {
            return Err(setting("most_tokens", 0, "at least 1"));
        }
        if rate_per_s.is_nan() || rate_per_s <= 0.0 {
            return Err(setting("rate_per_s", rate_per_s, "a number above 0"));
        }
        for (name, value) in
            [("prompt_tokens", self.prompt_tokens), ("answer_tokens", self.answer_tokens), ("spread", self.spread)]
        {
            if !value.is_finite() || value < 0.0 {
                return Err(setting(name, value, "a finite number from 0 up"));
            }
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            return Err(setting("temperature", self.temperature, "a number of 0 to 2"));
        }
        let mut at_s = 0.0;
        let arrival = |n: usize| {
            // Four streams a request; the ids of a prompt come from a stream of its own.
            let draw = |what: u64| uniform(self.seed, 4 * n as u64 + what);
            at_s += -(1.0 - draw(0)).ln() / rate_per_s;
            let normals = box_muller(draw(1), draw(2));
            let length = |median: f64, normal: f64| {
                let tokens = (median * (self.spread * normal).exp()).round();
                tokens.clamp(1.0, self.most_tokens as f64) as usize
            };
            let ids = self.seed ^ (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let id = |i: usize| (uniform(ids, i as u64) * vocab_size as f64) as u32;
            Arrival {
                at_s,
                prompt: (0..length(self.prompt_tokens, normals.0)).map(id).collect(),
                max_tokens: length(self.answer_tokens, normals.1),
                sampling: self.sampling(n),
            }
        };
        Ok((0..self.requests).map(arrival).collect())
    }

    /// How request `n` picks its tokens.
    fn sampling(&self, n: usize) -> Sampling {
        match self.temperature {
            0.0 => Sampling::default(),
            temperature => Sampling { temperature, top_k: TOP_K, seed: Some(n as u64), ..Sampling::default() },
        }
    }
}

/// Two independent standard normal numbers from two uniform ones in [0, 1).
fn box_muller(a: f64, b: f64) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - a).ln()).sqrt();
    let angle = std::f64::consts::TAU * b;
    (radius * angle.cos(), radius * angle.sin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_lengths_are_as_asked() {
        let workload = Workload { requests: 4000, most_tokens: 100_000, ..Workload::default() };
        let arrivals = workload.arrivals(50, 8.0).unwrap();
        assert!((arrivals.last().unwrap().at_s - 500.0).abs() < 30.0);
        let mut lengths: Vec<usize> = arrivals.iter().map(|arrival| arrival.prompt.len()).collect();
        lengths.sort_unstable();
        assert!((60..=68).contains(&lengths[2000]), "median {}", lengths[2000]);
        // One standard deviation up: 64 · e^0.8.
        assert!((130..=155).contains(&lengths[4000 * 8413 / 10_000]));
        assert!(arrivals.iter().flat_map(|arrival| &arrival.prompt).all(|&id| id < 50));
        let at_once = workload.arrivals(50, f64::INFINITY).unwrap();
        assert!(at_once.iter().zip(&arrivals).all(|(a, b)| a.at_s == 0.0 && a.prompt == b.prompt));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (workload, rate, name) in [
            (Workload { requests: 9, ..Workload::default() }, 1.0, "requests"),
            (Workload { most_tokens: 0, ..Workload::default() }, 1.0, "most_tokens"),
            (Workload { spread: f64::NAN, ..Workload::default() }, 1.0, "spread"),
            (Workload { temperature: f32::NAN, ..Workload::default() }, 1.0, "temperature"),
            (Workload { temperature: 2.1, ..Workload::default() }, 1.0, "temperature"),
            (Workload::default(), 0.0, "rate_per_s"),
        ] {
            let error = workload.arrivals(50, rate).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(name), "{error}");
        }
    }
}
