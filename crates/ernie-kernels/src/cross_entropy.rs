//! Cross-entropy over rows of logits: loss per row, and the gradient in the place of the logits.
//!
//! A target of [`IGNORE`] takes no part: its loss is 0 and its gradient row is zero. Exponentials are f32; their sum over the
//! vocabulary is f64.

use crate::level::Isa;
use crate::pool::{self, grain_rows};
use crate::simd;

/// The target that marks a row without a label.
pub const IGNORE: i64 = -100;

/// Elements whose exponentials are summed in f32 lanes before the sum goes on in f64.
const BLOCK: usize = 1024;

kernel! {
    fn sum_exp(row: &[f32], max: f32) -> f64 {
        let mut sum = 0.0_f64;
        for block in row.chunks(BLOCK) {
            sum += f64::from(simd::sum2(block, block, |a, _, sum| sum + simd::exp::<FMA>(a - max)));
        }
        sum
    }
}

kernel! {
    fn largest(row: &[f32]) -> f32 {
        simd::max(row)
    }
}

kernel! {
    fn gradient_row(row: &mut [f32], log_sum: f32, scale: f32) {
        for x in row {
            *x = simd::exp::<FMA>(*x - log_sum) * scale;
        }
    }
}

/// Log of the sum of exponentials of one row.
fn log_sum_exp(isa: Isa, row: &[f32]) -> f64 {
    let max = largest(isa, row);
    if max == f32::NEG_INFINITY {
        // All -inf, or all NaN: say which.
        return row.iter().map(|&x| f64::from(x)).sum();
    }
    f64::from(max) + sum_exp(isa, row, max).ln()
}

fn target_index(target: i64, vocab: usize) -> Option<usize> {
    if target == IGNORE {
        return None;
    }
    match usize::try_from(target) {
        Ok(index) if index < vocab => Some(index),
        _ => panic!("cross_entropy: target {target} is outside the vocabulary of {vocab}"),
    }
}

/// Writes the loss of each row, `log(sum(exp(x))) - x[target]`, and its log-sum-exp.
///
/// # Shapes
/// `logits: [R, vocab]`, `targets, loss, log_sums: [R]`
///
/// # Panics
/// When a length does not fit, or a target is neither [`IGNORE`] nor inside the vocabulary.
pub fn forward(logits: &[f32], targets: &[i64], vocab: usize, loss: &mut [f32], log_sums: &mut [f32]) {
    let rows = targets.len();
    assert!(
        logits.len() == rows * vocab && loss.len() == rows && log_sums.len() == rows,
        "cross_entropy: lengths differ"
    );
    let isa = Isa::current();
    pool::rows2((loss, 1), (log_sums, 1), grain_rows(vocab), |row, loss, log_sums| {
        for (i, (loss, log_sum)) in loss.iter_mut().zip(log_sums).enumerate() {
            let x = &logits[(row + i) * vocab..][..vocab];
            let sum = log_sum_exp(isa, x);
            *log_sum = sum as f32;
            *loss = target_index(targets[row + i], vocab).map_or(0.0, |t| (sum - f64::from(x[t])) as f32);
        }
    });
}

/// Writes the loss of each row and replaces its logits by `scale * (softmax(x) - onehot(target))`.
///
/// # Shapes
/// `logits: [R, vocab]`, `targets, loss: [R]`
///
/// # Panics
/// As [`forward`].
pub fn forward_backward(logits: &mut [f32], targets: &[i64], vocab: usize, scale: f32, loss: &mut [f32]) {
    let rows = targets.len();
    assert!(logits.len() == rows * vocab && loss.len() == rows, "cross_entropy: lengths differ");
    if rows == 0 {
        return;
    }
    let isa = Isa::current();
    pool::rows2((logits, vocab), (loss, 1), grain_rows(vocab), |row, logits, loss| {
        for (i, (x, loss)) in logits.chunks_exact_mut(vocab).zip(loss).enumerate() {
            let Some(target) = target_index(targets[row + i], vocab) else {
                x.fill(0.0);
                *loss = 0.0;
                continue;
            };
            let sum = log_sum_exp(isa, x);
            *loss = (sum - f64::from(x[target])) as f32;
            gradient_row(isa, x, sum as f32, scale);
            x[target] -= scale;
        }
    });
}

/// The sum of the losses in f64, in row order.
pub fn total(loss: &[f32]) -> f64 {
    loss.iter().map(|&l| f64::from(l)).sum()
}
