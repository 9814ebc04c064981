//! From logits to a token id.
//!
//! The order of the steps is the one of `transformers`: bias, watcher's mask, penalties, temperature, top-k, top-p,
//! min-p, draw. A draw for position `i` uses a random number keyed by `(seed, i)` and nothing else (ChaCha as a
//! counter-based generator), so a request's tokens never depend on what else the engine does, and a sampled token can
//! be checked against a drafted one. This file knows no requests and no cache.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use ernie_nn::logits;

use super::watcher::Watcher;
use crate::{Error, Result};

/// How a token is chosen from the logits. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest logit, the lowest id among equals. Finite, not negative.
    pub temperature: f32,
    /// Keeps the `top_k` largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of largest probabilities that sums to at least this; in (0, 1], 1 keeps all.
    pub top_p: f32,
    /// Drops what is less likely than this share of the likeliest; in [0, 1], 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of ids seen in prompt or answer (arXiv:1909.05858, §4.1);
    /// in [0.01, 100], 1 is off.
    pub repetition_penalty: f32,
    /// Is subtracted once for each time an id stands in the answer; in [-100, 100].
    pub frequency_penalty: f32,
    /// Is subtracted once when an id stands in the answer at all; in [-100, 100].
    pub presence_penalty: f32,
    /// Is added to the logits of these ids; finite.
    pub logit_bias: Vec<(u32, f32)>,
    /// Keys the draws; without it the engine keys them by its own seed and the request's number.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Sampling {
    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// [`Error::Parameter`] or [`Error::UnknownId`], naming the first one that is out of range.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let in_range = |name, value: f32, low: f32, high: f32, expected: &str| {
            if value >= low && value <= high { Ok(()) } else { Err(Error::parameter(name, value, expected)) }
        };
        in_range("temperature", self.temperature, 0.0, f32::MAX, "a finite number from 0 up")?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::parameter("top_p", self.top_p, "a number above 0 and up to 1"));
        }
        in_range("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1")?;
        in_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "a number from 0.01 to 100")?;
        in_range("frequency_penalty", self.frequency_penalty, -100.0, 100.0, "a number from -100 to 100")?;
        in_range("presence_penalty", self.presence_penalty, -100.0, 100.0, "a number from -100 to 100")?;
        for (index, &(id, bias)) in self.logit_bias.iter().enumerate() {
            if id as usize >= vocab_size {
                return Err(Error::UnknownId { what: "logit_bias", id, index, vocab_size });
            }
            if !bias.is_finite() {
                return Err(Error::parameter("logit_bias", bias, "finite numbers"));
            }
        }
        Ok(())
    }

    /// Whether the same logits always give the same id, whatever the seed.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// Which ids a request has seen, for the penalties.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Times an id stands in the answer; ids of the prompt alone are there with 0.
    counts: HashMap<u32, u32>,
}

impl Seen {
    pub(crate) fn of_prompt(prompt: &[u32]) -> Self {
        Self { counts: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    pub(crate) fn add(&mut self, id: u32) {
        *self.counts.entry(id).or_insert(0) += 1;
    }
}

/// Picks the id for `position`, the index that it will have in the whole sequence. Changes `logits` on the way.
///
/// # Errors
/// A sentence when no id is allowed any more.
pub(crate) fn pick(
    sampling: &Sampling,
    seed: u64,
    position: usize,
    seen: &Seen,
    watcher: Option<&mut (dyn Watcher + 'static)>,
    logits: &mut [f32],
) -> std::result::Result<u32, String> {
    for &(id, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
    let mut trouble = None;
    if let Some(watcher) = watcher {
        watcher.mask(logits);
        trouble = watcher.trouble().map(str::to_owned);
    }
    penalise(sampling, seen, logits);
    let (best, highest) = argmax(logits).ok_or("the model has an empty vocabulary")?;
    if highest == f32::NEG_INFINITY {
        let forbidden = || "no token is allowed at this position: bias or grammar forbid all of them".into();
        return Err(trouble.unwrap_or_else(forbidden));
    }
    if sampling.is_greedy() {
        return Ok(best);
    }
    let uniform = uniform(seed, position as u64);
    Ok(draw(sampling, logits, highest, uniform).unwrap_or(best))
}

fn penalise(sampling: &Sampling, seen: &Seen, logits: &mut [f32]) {
    let repetition = sampling.repetition_penalty;
    if repetition == 1.0 && sampling.frequency_penalty == 0.0 && sampling.presence_penalty == 0.0 {
        return;
    }
    // Each id is changed once and alone, so the order of the map does not matter.
    for (&id, &count) in &seen.counts {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        if count > 0 {
            *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
        }
    }
}

/// Inverse-transform sampling over what the filters leave. `None` when rounding leaves nothing.
fn draw(sampling: &Sampling, logits: &[f32], highest: f32, uniform: f64) -> Option<u32> {
    let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
    // Shifting before dividing keeps the smallest temperatures finite: the best is 0, the others -inf.
    let weight = |id: u32| f64::from((logits[id as usize] - highest) / temperature).exp();
    let few = top_k > 0 && top_k < logits.len();
    if !few && top_p >= 1.0 && min_p <= 0.0 {
        return draw_among_all(logits, highest, temperature, uniform);
    }
    let roughly = |logits: &[f32]| -> f64 {
        logits.chunks(logits::WEIGHED).map(|part| logits::weights(part, highest, temperature).1).sum()
    };
    let mut rest = 0.0;
    let mut ids = if few {
        logits::largest(logits, top_k)
    } else {
        let all = roughly(logits);
        // All ids below this weight together hold less than what the nucleus leaves out, so none of them is in it.
        let floor = f64::from(min_p).max(all * (1.0 - f64::from(top_p)) / logits.len() as f64);
        // A little lower, for roundings; of a weight of zero nothing is known.
        let least = f64::from(highest) + f64::from(temperature) * (floor.ln() - 1e-3);
        let ids = logits::at_least(logits, if floor > 0.0 { (least as f32).next_down() } else { f32::NEG_INFINITY });
        let chosen: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        rest = (all - roughly(&chosen)).max(0.0);
        ids
    };
    ids.sort_unstable();
    let mut kept: Vec<(u32, f64)> = ids.into_iter().map(|id| (id, weight(id))).collect();
    if top_p < 1.0 {
        let all = rest + kept.iter().map(|&(_, weight)| weight).sum::<f64>();
        keep_nucleus(&mut kept, f64::from(top_p) * all);
    }
    if min_p > 0.0 {
        // The likeliest has weight 1 and always stays.
        kept.retain(|&(_, weight)| weight >= f64::from(min_p));
    }
    let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
    let mut target = uniform * total;
    for &(id, weight) in &kept {
        if target < weight {
            return Some(id);
        }
        target -= weight;
    }
    kept.iter().rev().find(|&&(_, weight)| weight > 0.0).map(|&(id, _)| id)
}

/// A draw from the whole vocabulary: first the part of it that the number falls into, then the id.
fn draw_among_all(logits: &[f32], highest: f32, temperature: f32, uniform: f64) -> Option<u32> {
    let parts = || logits.chunks(logits::WEIGHED).enumerate();
    let sums: Vec<f64> = parts().map(|(_, part)| logits::weights(part, highest, temperature).1).collect();
    let mut target = uniform * sums.iter().sum::<f64>();
    let mut last = None;
    for ((number, part), sum) in parts().zip(sums) {
        if target >= sum && number + 1 < logits.len().div_ceil(logits::WEIGHED) {
            target -= sum;
            continue;
        }
        let (weights, _) = logits::weights(part, highest, temperature);
        for (id, weight) in
            (number * logits::WEIGHED..).zip(weights).take(part.len()).filter(|&(_, weight)| weight > 0.0)
        {
            last = Some(id as u32);
            if target < f64::from(weight) {
                return last;
            }
            target -= f64::from(weight);
        }
        // Roundings alone lead past the end of a part.
        if last.is_some() {
            return last;
        }
    }
    last
}

/// Keeps the fewest likeliest ids whose weights sum to at least `enough`, in the order of their ids.
fn keep_nucleus(kept: &mut Vec<(u32, f64)>, enough: f64) {
    kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut sum = 0.0;
    let last = kept.iter().position(|&(_, weight)| {
        sum += weight;
        sum >= enough
    });
    if let Some(last) = last {
        kept.truncate(last + 1);
    }
    kept.sort_unstable_by_key(|&(id, _)| id);
}

/// The random number in [0, 1) of position `position` under `seed`.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(position);
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// The largest logit and its id, the lowest id among equals; `None` for no logits.
pub(crate) fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    logits::survey(logits).best
}

/// ln Σ exp(logit), summed in f64.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    logits::log_sum_exp(logits)
}

/// The `n` likeliest ids with their log-probabilities, likeliest first, the lower id among equals.
pub(crate) fn top(logits: &[f32], log_sum: f64, n: usize) -> Vec<(u32, f64)> {
    let ids = logits::largest(logits, n);
    ids.into_iter().map(|id| (id, f64::from(logits[id as usize]) - log_sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pick_at(sampling: &Sampling, position: usize, logits: &[f32]) -> u32 {
        let mut logits = logits.to_vec();
        pick(sampling, 7, position, &Seen::default(), None, &mut logits).unwrap()
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    /// Share of each id over 4,000 positions.
    fn shares(sampling: &Sampling, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..4000 {
            counts[pick_at(sampling, position, logits) as usize] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(pick_at(&Sampling::default(), 0, &[0.0, 3.0, 3.0, -1.0]), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0];
        let expect: Vec<f64> = logits.iter().map(|l: &f32| f64::from(l.exp()) / 11.107_337).collect();
        for (got, want) in shares(&warm(), &logits).iter().zip(&expect) {
            assert!((got - want).abs() < 0.03, "{got} for {want}");
        }
    }

    #[test]
    fn filters_keep_what_they_should() {
        // Probabilities 0.5, 0.25, 0.15, 0.1.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln()).collect();
        let support =
            |sampling: Sampling| shares(&sampling, &logits).iter().map(|&share| share > 0.0).collect::<Vec<_>>();
        assert_eq!(support(Sampling { top_k: 2, ..warm() }), [true, true, false, false]);
        assert_eq!(support(Sampling { top_p: 0.7, ..warm() }), [true, true, false, false]);
        assert_eq!(support(Sampling { top_p: 0.8, ..warm() }), [true, true, true, false]);
        assert_eq!(support(Sampling { top_p: 1e-9, ..warm() }), [true, false, false, false]);
        assert_eq!(support(Sampling { min_p: 0.25, ..warm() }), [true, true, true, false]);
        assert_eq!(support(Sampling { top_k: 100, ..warm() }), [true, true, true, true]);
    }

    #[test]
    fn extreme_temperatures_stay_defined() {
        let logits = [1.0, 2.0, 0.5];
        for temperature in [1e-45, 1e-30] {
            assert!((0..50).all(|i| pick_at(&Sampling { temperature, ..warm() }, i, &logits) == 1));
        }
        let flat = shares(&Sampling { temperature: f32::MAX, ..warm() }, &logits);
        assert!(flat.iter().all(|share| (share - 1.0 / 3.0).abs() < 0.04), "{flat:?}");
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let mut seen = Seen::of_prompt(&[0]);
        seen.add(1);
        seen.add(1);
        let pick_with = |sampling: Sampling| pick(&sampling, 0, 0, &seen, None, &mut [4.0, 3.9, 1.0, -1.0]).unwrap();
        assert_eq!(pick_with(Sampling::default()), 0);
        assert_eq!(pick_with(Sampling { repetition_penalty: 5.0, ..Sampling::default() }), 2);
        assert_eq!(pick_with(Sampling { presence_penalty: -1.0, ..Sampling::default() }), 1);
        assert_eq!(pick_with(Sampling { frequency_penalty: -0.1, ..Sampling::default() }), 1);
        assert_eq!(pick_with(Sampling { logit_bias: vec![(3, 100.0)], ..Sampling::default() }), 3);
    }

    #[test]
    fn a_watcher_can_forbid_and_forbidding_all_is_an_error() {
        struct Only(Option<usize>);
        impl Watcher for Only {
            fn mask(&mut self, logits: &mut [f32]) {
                for (id, logit) in logits.iter_mut().enumerate() {
                    if Some(id) != self.0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            fn accept(&mut self, _id: u32) -> super::super::Verdict {
                super::super::Verdict::Continue
            }
        }
        let run = |allowed| pick(&warm(), 1, 2, &Seen::default(), Some(&mut Only(allowed)), &mut [1.0, 5.0, 2.0]);
        assert_eq!(run(Some(2)), Ok(2));
        assert!(run(None).unwrap_err().contains("no token is allowed"));
    }

    #[test]
    fn parameters_out_of_range_are_refused_by_name() {
        let check = |sampling: Sampling, name: &str| {
            let error = sampling.check(10).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(name), "{error}");
        };
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            check(Sampling { temperature: bad, ..warm() }, "temperature");
        }
        for bad in [0.0, 2.0, -1.0, f32::NAN] {
            check(Sampling { top_p: bad, ..warm() }, "top_p");
        }
        check(Sampling { min_p: 2.0, ..warm() }, "min_p");
        check(Sampling { repetition_penalty: 0.0, ..warm() }, "repetition_penalty");
        check(Sampling { frequency_penalty: 1e30, ..warm() }, "frequency_penalty");
        check(Sampling { presence_penalty: f32::NEG_INFINITY, ..warm() }, "presence_penalty");
        check(Sampling { logit_bias: vec![(10, 1.0)], ..warm() }, "logit_bias");
        check(Sampling { logit_bias: vec![(1, f32::NAN)], ..warm() }, "logit_bias");
    }

    #[test]
    fn random_numbers_are_keyed_by_seed_and_position_alone() {
        // ChaCha8 by its definition: key = seed, stream = position, first 64 bits. These must never change, or seeded
        // answers of earlier versions change with them.
        assert_eq!(uniform(42, 0), 0.3482544685480763);
        assert_eq!(uniform(42, 1), 0.7768638380587397);
        assert_eq!(uniform(43, 0), 0.9113284705974842);
        assert_eq!(uniform(u64::MAX, 1 << 40), 0.4749470315551657);
    }

    proptest! {
        #[test]
        fn log_probabilities_sum_to_one(logits in prop::collection::vec(-50f32..50.0, 1..200)) {
            let log_sum = log_sum_exp(&logits);
            let total: f64 = logits.iter().map(|&l| (f64::from(l) - log_sum).exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-5);
            let best = top(&logits, log_sum, 3);
            prop_assert_eq!(best[0].0, argmax(&logits).unwrap().0);
            prop_assert!(best.windows(2).all(|w| w[0].1 >= w[1].1));
        }

        #[test]
        fn a_draw_is_what_sorting_the_whole_vocabulary_gives(
            logits in prop::collection::vec(-12f32..5.0, 1..3000),
            temperature in 0.2f32..3.0,
            top_k in prop_oneof![Just(0_usize), 1_usize..3100],
            top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
            min_p in prop_oneof![Just(0.0f32), 0.001f32..0.5],
            uniform in 0.0f64..1.0,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let highest = argmax(&logits).unwrap().1;
            let mut all: Vec<(u32, f64)> = (0..logits.len() as u32)
                .map(|id| (id, f64::from((logits[id as usize] - highest) / temperature).exp()))
                .collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            if top_k > 0 {
                all.truncate(top_k);
            }
            let total: f64 = all.iter().map(|a| a.1).sum();
            let mut sum = 0.0;
            all.retain(|&(_, weight)| {
                let before = sum;
                sum += weight;
                (before < f64::from(top_p) * total || top_p >= 1.0) && weight >= f64::from(min_p)
            });
            all.sort_by_key(|a| a.0);
            let total: f64 = all.iter().map(|a| a.1).sum();
            let id = draw(&sampling, &logits, highest, uniform).unwrap();
            let place = all.iter().position(|a| a.0 == id);
            prop_assert!(place.is_some(), "{} was filtered out", id);
            let before: f64 = all[..place.unwrap()].iter().map(|a| a.1).sum();
            // Single precision decides who gets the last millionth.
            let slack = 1e-6 * total;
            prop_assert!(before - slack <= uniform * total && uniform * total < before + all[place.unwrap()].1 + slack);
        }

        #[test]
        fn top_p_keeps_the_smallest_sufficient_set(
            logits in prop::collection::vec(-5f32..5.0, 1..60),
            share in 0.01f64..0.99,
        ) {
            let mut kept: Vec<(u32, f64)> =
                logits.iter().enumerate().map(|(id, &l)| (id as u32, f64::from(l).exp())).collect();
            let total: f64 = kept.iter().map(|k| k.1).sum();
            let all = kept.clone();
            keep_nucleus(&mut kept, share * total);
            let sum: f64 = kept.iter().map(|k| k.1).sum();
            let least = kept.iter().map(|k| k.1).fold(f64::INFINITY, f64::min);
            prop_assert!(sum >= share * total * (1.0 - 1e-12));
            prop_assert!(sum - least < share * total * (1.0 + 1e-12), "one less would do");
            prop_assert!(all.iter().filter(|k| !kept.contains(k)).all(|k| k.1 <= least));
        }
    }
}
