//! Looking over a row of logits: the best of them, whether all are numbers, and the logarithm of the sum of exponentials.

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
