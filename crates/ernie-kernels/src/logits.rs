//! Looking over a row of logits: the best of them, whether all are numbers, what they weigh in a draw.
//!
//! A vocabulary has a hundred thousand ids of which a draw needs a few: rows are looked over in whole vectors, and ids are named only
//! where they count.

use crate::level::Isa;
use crate::simd::{self, LANES};

/// What [`survey`] sees in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survey {
    /// The largest logit and its index, the lowest among equals; `None` for an empty row. A NaN is passed over.
    pub best: Option<(u32, f32)>,
    /// Whether every logit is a finite number.
    pub finite: bool,
}

kernel! {
    /// The best of each lane with the number of its block, and whether all are finite.
    fn lanes_of(blocks: &[[f32; LANES]], best: &mut [f32; LANES], at: &mut [u32; LANES]) -> bool {
        let mut bad = [0_u32; LANES];
        for (number, block) in blocks.iter().enumerate() {
            for l in 0..LANES {
                let better = block[l] > best[l];
                best[l] = if better { block[l] } else { best[l] };
                at[l] = if better { number as u32 } else { at[l] };
                bad[l] |= u32::from(block[l].to_bits() & 0x7F80_0000 == 0x7F80_0000);
            }
        }
        bad.iter().all(|&bad| bad == 0)
    }
}

/// Looks over `logits: [V]` once.
///
/// # Panics
/// For more than 2^32 of them.
pub fn survey(logits: &[f32]) -> Survey {
    assert!(u32::try_from(logits.len()).is_ok(), "logits: {} of them", logits.len());
    let (blocks, tail) = logits.as_chunks::<LANES>();
    let (mut best, mut at) = ([f32::NEG_INFINITY; LANES], [u32::MAX; LANES]);
    let mut finite = lanes_of(Isa::current(), blocks, &mut best, &mut at);
    let mut winner: Option<(u32, f32)> = None;
    let mut offer = |index: u32, value: f32| {
        if winner.is_none_or(|(held, most)| value > most || (value == most && index < held)) {
            winner = Some((index, value));
        }
    };
    for l in (0..LANES).filter(|&l| at[l] != u32::MAX) {
        offer(at[l] * LANES as u32 + l as u32, best[l]);
    }
    for (l, &value) in tail.iter().enumerate() {
        finite &= value.is_finite();
        if value > f32::NEG_INFINITY {
            offer((logits.len() - tail.len() + l) as u32, value);
        }
    }
    // Nothing above minus infinity: the first logit that is a number at all stands for the row.
    if winner.is_none() {
        winner = logits.iter().position(|l| !l.is_nan()).map(|first| (first as u32, logits[first]));
    }
    Survey { best: winner, finite }
}

kernel! {
    fn sum_of_exponentials(blocks: &[[f32; LANES]], highest: f32, sums: &mut [f64; LANES]) {
        for block in blocks {
            for l in 0..LANES {
                sums[l] += f64::from(simd::exp::<FMA>(block[l] - highest));
            }
        }
    }
}

/// `ln Σ e^logit`, each term in f32 (within 2 units in the last place), their sum in f64; `-inf` where all are.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = survey(logits).best.map_or(f32::NEG_INFINITY, |(_, highest)| highest);
    if highest == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let (blocks, tail) = logits.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    let isa = Isa::current();
    sum_of_exponentials(isa, blocks, highest, &mut sums);
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..tail.len()].copy_from_slice(tail);
    sum_of_exponentials(isa, &[last], highest, &mut sums);
    f64::from(highest) + sums.iter().sum::<f64>().ln()
}

/// Logits that are looked over together in a search.
const GROUP: usize = 4 * LANES;

kernel! {
    /// The largest of each group; a NaN is passed over.
    fn maxima(groups: &[[f32; GROUP]], most: &mut [f32]) {
        for (group, most) in groups.iter().zip(most) {
            *most = simd::max(group);
        }
    }
}

/// The ids of the logits from `least` on up, in rising order.
pub fn at_least(logits: &[f32], least: f32) -> Vec<u32> {
    let (groups, tail) = logits.as_chunks::<GROUP>();
    let mut most = vec![0.0; groups.len()];
    maxima(Isa::current(), groups, &mut most);
    among(groups, tail, &most, least)
}

/// The ids from `least` on up, looked for in those groups whose largest is.
fn among(groups: &[[f32; GROUP]], tail: &[f32], most: &[f32], least: f32) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut look = |first: usize, logits: &[f32]| {
        ids.extend(logits.iter().enumerate().filter(|(_, l)| **l >= least).map(|(i, _)| (first + i) as u32));
    };
    for (number, (group, _)) in groups.iter().zip(most).enumerate().filter(|(_, (_, most))| **most >= least) {
        look(number * GROUP, group);
    }
    look(groups.len() * GROUP, tail);
    ids
}

/// The ids of the `n` largest logits, the largest first, the lower id among equals. A NaN is left out.
pub fn largest(logits: &[f32], n: usize) -> Vec<u32> {
    let (groups, tail) = logits.as_chunks::<GROUP>();
    if n == 0 || logits.is_empty() {
        return Vec::new();
    }
    let mut most = vec![0.0; groups.len()];
    maxima(Isa::current(), groups, &mut most);
    // Of n groups the n-th largest maximum is no larger than the n-th largest logit.
    let mut least = f32::NEG_INFINITY;
    if n <= most.len() {
        let mut sorted = most.clone();
        least = *sorted.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1;
    }
    let mut ids = among(groups, tail, &most, least);
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n - 1, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Logits whose weights are added up together in [`weights`].
pub const WEIGHED: usize = 64 * LANES;

kernel! {
    /// `e^((logit - highest) / temperature)`.
    fn weigh(logits: &[f32], highest: f32, temperature: f32, weights: &mut [f32]) {
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = simd::exp::<FMA>((logit - highest) / temperature);
        }
    }
}

/// The weights `e^((logit - highest) / temperature)` of up to [`WEIGHED`] logits, each within 2 units in the last place, and their sum.
///
/// # Panics
/// For more logits.
pub fn weights(logits: &[f32], highest: f32, temperature: f32) -> ([f32; WEIGHED], f64) {
    assert!(logits.len() <= WEIGHED, "logits: {} of them", logits.len());
    let mut weights = [0.0; WEIGHED];
    weigh(Isa::current(), logits, highest, temperature, &mut weights);
    let mut sums = [0.0_f64; LANES];
    for lanes in weights.as_chunks::<LANES>().0 {
        sums.iter_mut().zip(lanes).for_each(|(sum, weight)| *sum += f64::from(*weight));
    }
    (weights, sums.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{supported_levels, with_level};
    use proptest::prelude::*;

    fn plain(logits: &[f32]) -> Option<(u32, f32)> {
        let mut best: Option<(usize, f32)> = None;
        for (id, &logit) in logits.iter().enumerate().filter(|(_, l)| !l.is_nan()) {
            if best.is_none_or(|(_, highest)| logit > highest) {
                best = Some((id, logit));
            }
        }
        best.map(|(id, logit)| (id as u32, logit))
    }

    proptest! {
        #[test]
        fn every_level_sees_what_a_plain_loop_sees(
            logits in prop::collection::vec(
                prop_oneof![
                    8 => (-8_i8..8).prop_map(f32::from),
                    1 => Just(f32::NEG_INFINITY),
                    1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::MAX), Just(-0.0)],
                ],
                0..100,
            ),
        ) {
            for level in supported_levels() {
                let seen = with_level(level, || survey(&logits)).unwrap();
                prop_assert_eq!(seen.best, plain(&logits));
                prop_assert_eq!(seen.finite, logits.iter().all(|l| l.is_finite()));
            }
        }

        #[test]
        fn a_search_finds_what_sorting_finds(
            logits in prop::collection::vec(
                prop_oneof![
                    8 => (-8_i8..8).prop_map(f32::from),
                    1 => prop_oneof![Just(f32::NAN), Just(f32::NEG_INFINITY), Just(-0.0), Just(f32::INFINITY)],
                ],
                0..700,
            ),
            n in 0_usize..50,
            least in -9_i8..9,
        ) {
            let mut sorted: Vec<u32> = (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            sorted.truncate(n);
            let least = f32::from(least);
            let above: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] >= least).collect();
            for level in supported_levels() {
                let found = with_level(level, || (largest(&logits, n), at_least(&logits, least))).unwrap();
                prop_assert_eq!(&found.0, &sorted);
                prop_assert_eq!(&found.1, &above);
            }
        }

        #[test]
        fn weights_are_those_of_doubles(logits in prop::collection::vec(-60_f32..0.0, 0..100), temperature in 0.1_f32..3.0) {
            for level in supported_levels() {
                let (weights, sum) = with_level(level, || weights(&logits, 0.0, temperature)).unwrap();
                for (weight, logit) in weights.iter().zip(&logits) {
                    let exact = f64::from(logit / temperature).exp();
                    prop_assert!((f64::from(*weight) - exact).abs() <= 1e-6 * exact + 1e-37, "{} {}", weight, exact);
                }
                let plain: f64 = weights.iter().map(|&w| f64::from(w)).sum();
                prop_assert!((sum - plain).abs() <= 1e-12 * plain);
            }
        }

        #[test]
        fn the_log_of_the_sum_is_that_of_doubles(logits in prop::collection::vec(-60_f32..60.0, 1..100)) {
            let exact = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            for level in supported_levels() {
                let got = with_level(level, || log_sum_exp(&logits)).unwrap();
                prop_assert!((got - exact).abs() < 1e-5, "{} {}", got, exact);
            }
        }
    }

    #[test]
    fn the_ends_are_defined() {
        assert_eq!(survey(&[]), Survey { best: None, finite: true });
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 20]), f64::NEG_INFINITY);
        assert_eq!(survey(&[f32::NEG_INFINITY; 20]).best, Some((0, f32::NEG_INFINITY)));
    }
}
