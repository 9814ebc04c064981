//! Samples summed up.

use std::collections::BTreeMap;

use super::{Ended, Sample};

/// Quantiles of some seconds; all zero where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50_s: f64,
    /// The 95th percentile.
    pub p95_s: f64,
    /// The 99th percentile.
    pub p99_s: f64,
}

impl Quantiles {
    /// Of `times`, in any order: the value at or above which no more than the rest lie.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let index = (q * times.len() as f64).ceil() as usize;
            times.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { p50_s: at(0.5), p95_s: at(0.95), p99_s: at(0.99) }
    }
}

/// What a reader calls good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Most seconds to the first token.
    pub first_token_s: f64,
    /// Most seconds between tokens, in the mean of an answer.
    pub between_tokens_s: f64,
}

/// A run, summed up.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Requests made.
    pub requests: usize,
    /// Those with a whole answer.
    pub answered: usize,
    /// Those whose reader went away as planned.
    pub left: usize,
    /// The others, by kind: a status, `refused`, `cut`, `in_stream`, `timeout`, `client_limit`.
    pub errors: BTreeMap<String, usize>,
    /// Seconds from the first request's time to the last one's end.
    pub seconds: f64,
    /// Whole answers a second.
    pub requests_per_s: f64,
    /// Answer tokens a second, of answers that were left too.
    pub tokens_per_s: f64,
    /// From when a request was due to its first token.
    pub first_token: Quantiles,
    /// Between tokens.
    pub between_tokens: Quantiles,
    /// From when a request was due to the end of its answer.
    pub end_to_end: Quantiles,
    /// Of the requests whose reader stayed, the share that met the goal.
    pub goodput: f64,
}

impl Summary {
    /// Sums up samples of one run, or of several runs that `seconds` is the time of.
    pub fn of(samples: &[Sample], seconds: f64, goal: &Goal) -> Self {
        let answered: Vec<&Sample> = samples.iter().filter(|sample| sample.ended == Ended::Answered).collect();
        let left = samples.iter().filter(|sample| sample.ended == Ended::Left).count();
        let mut errors = BTreeMap::new();
        for sample in samples {
            if let Ended::Failed(failure) = sample.ended {
                *errors.entry(failure.name()).or_default() += 1;
            }
        }
        let tokens: usize = samples.iter().map(|sample| sample.tokens).sum();
        let good = |sample: &&&Sample| {
            let first = sample.first_token_s.map_or(0.0, |at| at - sample.due_s);
            let between = sample.gaps_s.iter().sum::<f64>() / sample.gaps_s.len().max(1) as f64;
            first <= goal.first_token_s && between <= goal.between_tokens_s
        };
        let per_s = |count: usize| count as f64 / seconds.max(f64::MIN_POSITIVE);
        Self {
            requests: samples.len(),
            answered: answered.len(),
            left,
            errors,
            seconds,
            requests_per_s: per_s(answered.len()),
            tokens_per_s: per_s(tokens),
            first_token: Quantiles::of(
                samples.iter().filter_map(|sample| Some(sample.first_token_s? - sample.due_s)).collect(),
            ),
            between_tokens: Quantiles::of(samples.iter().flat_map(|sample| sample.gaps_s.iter().copied()).collect()),
            end_to_end: Quantiles::of(answered.iter().map(|sample| sample.end_s - sample.due_s).collect()),
            goodput: answered.iter().filter(good).count() as f64 / (samples.len() - left).max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Quantiles::of(times), Quantiles { p50_s: 50.0, p95_s: 95.0, p99_s: 99.0 });
        assert_eq!(Quantiles::of(vec![3.0]), Quantiles { p50_s: 3.0, p95_s: 3.0, p99_s: 3.0 });
        assert_eq!(Quantiles::of(Vec::new()), Quantiles::default());
    }

    #[test]
    fn each_end_counts_where_it_belongs() {
        let sample = |ended: Ended, first: f64, end_s: f64| Sample {
            due_s: 1.0,
            first_token_s: (first > 0.0).then_some(first),
            gaps_s: vec![0.1, 0.3],
            end_s,
            tokens: 3,
            ended,
        };
        let samples = [
            sample(Ended::Answered, 1.5, 2.0),
            sample(Ended::Answered, 3.0, 4.0),
            sample(Ended::Left, 1.2, 1.3),
            Sample { tokens: 0, ..sample(Ended::Failed(Failure::Status(429)), 0.0, 1.1) },
        ];
        let summary = Summary::of(&samples, 3.0, &Goal { first_token_s: 1.0, between_tokens_s: 0.25 });
        assert_eq!((summary.requests, summary.answered, summary.left), (4, 2, 1));
        assert_eq!(summary.errors, BTreeMap::from([("429".to_owned(), 1)]));
        assert_eq!(summary.tokens_per_s, 3.0);
        assert_eq!(summary.end_to_end.p99_s, 3.0);
        // One of the three that stayed was quick enough.
        assert!((summary.goodput - 1.0 / 3.0).abs() < 1e-12);
    }
}
