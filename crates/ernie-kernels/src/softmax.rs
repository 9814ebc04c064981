//! Softmax over rows, and its gradient. Row statistics are f32, in a fixed order.

use crate::level::Isa;
use crate::pool::{self, grain_rows};
use crate::simd;

kernel! {
    fn forward_rows(x: &mut [f32], width: usize) {
        for row in x.chunks_exact_mut(width) {
            let max = simd::max(row);
            for x in row.iter_mut() {
                *x = simd::exp::<FMA>(*x - max);
            }
            let sum = simd::sum2(row, row, |a, _, sum| sum + a);
            let scale = 1.0 / sum;
            for x in row {
                *x *= scale;
            }
        }
    }
}

kernel! {
    fn backward_rows(probs: &[f32], dx: &mut [f32], width: usize) {
        for (p, d) in probs.chunks_exact(width).zip(dx.chunks_exact_mut(width)) {
            let mean = simd::sum2(p, d, simd::fma::<FMA>);
            for (&p, d) in p.iter().zip(d) {
                *d = p * (*d - mean);
            }
        }
    }
}

/// Replaces each row of `width` elements by its softmax.
///
/// A row whose largest element is infinite gives NaN, as the formula does.
///
/// # Panics
/// When `width` is 0 and `x` is not empty, or does not divide its length.
pub fn forward(x: &mut [f32], width: usize) {
    if x.is_empty() {
        return;
    }
    assert!(width > 0 && x.len().is_multiple_of(width), "softmax: {} elements in rows of {width}", x.len());
    let isa = Isa::current();
    pool::pieces(x, width * grain_rows(width), |_, x| forward_rows(isa, x, width));
}

/// Turns the gradient of the softmax `probs` into that of its input, in place: `dx = p (dp - sum(p dp))`.
///
/// # Panics
/// When the lengths differ or `width` does not divide them.
pub fn backward(probs: &[f32], d_probs: &mut [f32], width: usize) {
    assert_eq!(probs.len(), d_probs.len(), "softmax: lengths differ");
    if probs.is_empty() {
        return;
    }
    assert!(width > 0 && probs.len().is_multiple_of(width), "softmax: {} elements in rows of {width}", probs.len());
    let isa = Isa::current();
    pool::pieces(d_probs, width * grain_rows(width), |at, d| backward_rows(isa, &probs[at..at + d.len()], d, width));
}
