//! Preferences: raise the answer that was judged the better, lower the other (DPO and its kin).
//!
//! With `c` and `r` the log-probabilities of the chosen and the rejected answer, `c₀` and `r₀` the same under the reference (the model before the first
//! step), and `|c|`, `|r|` the answers' tokens, the loss of a pair is
//! * `sigmoid`: `−log σ(β ((c − c₀) − (r − r₀)))` (arXiv:2305.18290, equation 7);
//! * `ipo`: `((c − c₀)/|c| − (r − r₀)/|r| − 1/(2β))²` (arXiv:2310.12036, equation 17, over the mean of a token as its authors advise);
//! * `simpo`: `−log σ(β (c/|c| − r/|r|) − γ)`, without a reference (arXiv:2405.14734, equation 6);
//!
//! to which `sft_weight` adds that multiple of `−c/|c|`. A loss of two sums of log-probabilities has, towards each token's, one number for all tokens of
//! an answer: the head runs once for the sums and once more with those numbers as factors, and the model itself once.

use std::collections::HashMap;

use ernie_data::Batch;
use ernie_data::packing::{IGNORED, Place};
use ernie_model::Decoder;
use ernie_nn::{Value, no_grad};

use super::Loss;
use crate::error::{Error, Result};
use crate::observe::Preferred;
use crate::recipe::{Objective, PreferenceLoss};

/// The reference's log-probabilities of the answers of each row: chosen, rejected, chosen, …
pub(crate) type Reference = HashMap<Place, Vec<f32>>;

/// One pair's answers under a model.
#[derive(Clone, Copy)]
struct Pair {
    chosen: Answer,
    rejected: Answer,
}

#[derive(Clone, Copy)]
struct Answer {
    log_probability: f64,
    tokens: f64,
}

/// The loss of a pair, and its slopes towards the two log-probabilities.
struct Judged {
    loss: f64,
    chosen: f64,
    rejected: f64,
    /// How much more the chosen answer gained than the rejected one, times β where the loss has it so.
    margin: f64,
}

/// The loss of one micro-batch's pairs, summed and divided by `divisor`.
pub(super) fn loss(
    decoder: &Decoder,
    hidden: &Value,
    batch: &Batch,
    settings: &Objective,
    reference: &Reference,
    divisor: f64,
) -> Result<Loss> {
    let rows = no_grad(|| decoder.loss(hidden, &batch.targets, 1.0))?.rows;
    let (mut sum, mut factors, mut row_losses) = (0.0, vec![0.0; rows.len()], vec![(0.0, 0_u32); batch.rows]);
    let mut preferred = Preferred::default();
    let mut seen = vec![0; batch.rows];
    for [chosen, rejected] in batch.pairs() {
        let row = chosen.start / batch.seq_len;
        let pair = Pair { chosen: answer(batch, &rows, &chosen), rejected: answer(batch, &rows, &rejected) };
        let known = match settings.preference {
            PreferenceLoss::Simpo => [0.0, 0.0],
            _ => known(reference, &batch.places[row], seen[row])?,
        };
        seen[row] += 1;
        let judged = judge(settings, pair, known);
        sum += judged.loss;
        row_losses[row].0 += judged.loss;
        row_losses[row].1 += 1;
        preferred.add(judged.margin, pair.chosen.log_probability > pair.rejected.log_probability);
        for (range, slope) in [(chosen, judged.chosen), (rejected, judged.rejected)] {
            // The head gives losses, which are log-probabilities with the sign turned.
            factors[range].fill((-slope / divisor) as f32);
        }
    }
    let value = decoder.weighted_loss(hidden, &batch.targets, &factors)?.loss;
    let row_losses = row_losses.iter().map(|&(loss, pairs)| (loss / f64::from(pairs.max(1))) as f32).collect();
    Ok(Loss { value, sum, row_losses, preferred: Some(preferred), tally: None })
}

/// The log-probabilities of all answers of a batch, row by row.
pub(crate) fn log_probabilities(decoder: &Decoder, hidden: &Value, batch: &Batch) -> Result<Reference> {
    let rows = no_grad(|| decoder.loss(hidden, &batch.targets, 1.0))?.rows;
    let mut all: Reference = batch.places.iter().map(|place| (*place, Vec::new())).collect();
    for pair in batch.pairs() {
        for range in pair {
            let place = batch.places[range.start / batch.seq_len];
            let found = answer(batch, &rows, &range).log_probability as f32;
            all.entry(place).or_default().push(found);
        }
    }
    Ok(all)
}

fn answer(batch: &Batch, losses: &[f32], range: &std::ops::Range<usize>) -> Answer {
    let tokens = batch.targets[range.clone()].iter().filter(|&&target| target != IGNORED).count();
    let sum: f64 = losses[range.clone()].iter().map(|&loss| f64::from(loss)).sum();
    // Rounded as the reference is kept, so that a model that has not moved has a margin of nothing.
    Answer { log_probability: f64::from(-sum as f32), tokens: tokens as f64 }
}

fn known(reference: &Reference, place: &Place, pair: usize) -> Result<[f64; 2]> {
    match reference.get(place).and_then(|row| row.get(2 * pair..2 * pair + 2)) {
        Some(&[chosen, rejected]) => Ok([chosen.into(), rejected.into()]),
        _ => Err(Error::Internal(format!("pair {pair} of {place:?} has no reference"))),
    }
}

fn judge(settings: &Objective, Pair { chosen, rejected }: Pair, reference: [f64; 2]) -> Judged {
    let beta = settings.beta;
    let (c, r) = (chosen.log_probability - reference[0], rejected.log_probability - reference[1]);
    let (mut loss, mut slopes, margin) = match settings.preference {
        PreferenceLoss::Sigmoid => {
            let h = beta * (c - r);
            (softplus(-h), [-beta * sigmoid(-h), beta * sigmoid(-h)], h)
        }
        PreferenceLoss::Ipo => {
            let h = c / chosen.tokens - r / rejected.tokens;
            let off = h - 0.5 / beta;
            (off * off, [2.0 * off / chosen.tokens, -2.0 * off / rejected.tokens], h)
        }
        PreferenceLoss::Simpo => {
            let margin = beta * (c / chosen.tokens - r / rejected.tokens);
            let h = margin - settings.simpo_margin;
            let slope = beta * sigmoid(-h);
            (softplus(-h), [-slope / chosen.tokens, slope / rejected.tokens], margin)
        }
    };
    loss -= settings.sft_weight * chosen.log_probability / chosen.tokens;
    slopes[0] -= settings.sft_weight / chosen.tokens;
    Judged { loss, chosen: slopes[0], rejected: slopes[1], margin }
}

/// `log(1 + eˣ)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    (-softplus(-x)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_loss_and_nothing_overflows() {
        for preference in [PreferenceLoss::Sigmoid, PreferenceLoss::Ipo, PreferenceLoss::Simpo] {
            let settings =
                Objective { preference, beta: 0.3, simpo_margin: 0.4, sft_weight: 0.2, ..Objective::default() };
            let at = |c: f64, r: f64| {
                let chosen = Answer { log_probability: c, tokens: 7.0 };
                judge(&settings, Pair { chosen, rejected: Answer { log_probability: r, tokens: 5.0 } }, [-9.0, -8.0])
            };
            for (c, r) in [(-10.0, -9.0), (-3.0, -30.0), (-30.0, -2.0)] {
                let (step, here) = (1e-5, at(c, r));
                let slope = |up: Judged, down: Judged| (up.loss - down.loss) / (2.0 * step);
                assert!((slope(at(c + step, r), at(c - step, r)) - here.chosen).abs() < 1e-6, "{preference:?} {c} {r}");
                assert!(
                    (slope(at(c, r + step), at(c, r - step)) - here.rejected).abs() < 1e-6,
                    "{preference:?} {c} {r}"
                );
            }
            let far = at(-1e6, -1.0);
            assert!(far.loss.is_finite() && far.chosen.is_finite() && far.rejected.is_finite());
        }
    }

    #[test]
    fn at_the_reference_nothing_is_preferred() {
        let answer = |log_probability| Answer { log_probability, tokens: 4.0 };
        let judged = judge(&Objective::default(), Pair { chosen: answer(-5.0), rejected: answer(-6.0) }, [-5.0, -6.0]);
        assert!((judged.loss - std::f64::consts::LN_2).abs() < 1e-12 && judged.margin == 0.0);
        assert_eq!((judged.chosen, judged.rejected), (-0.05, 0.05));
    }
}
