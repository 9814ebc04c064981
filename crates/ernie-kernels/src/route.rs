//! The router of a mixture of experts: softmax, choice of `k`, renormalised weights; and the gradient of the weights.
//!
//! The correction bias takes part in the choice only; the weights come from the probabilities without it. Ties go to the lower
//! index. All f32.

use crate::pool;
use crate::softmax;

/// The choice of experts for each row.
///
/// # Shapes
/// `logits: [T, E]`; `bias: [E]`; out: `probs: [T, E]` (softmax of the logits), `indices, weights: [T, k]` in falling order of
/// `probs + bias`; `weights = p / max(sum of the chosen p, norm_min)`.
///
/// A NaN logit makes the row's weights NaN; the indices stay valid and distinct.
///
/// # Panics
/// When a length does not fit or `k` is outside `1..=experts`.
#[allow(clippy::too_many_arguments)] // Slices in, slices out.
pub fn top_k(
    logits: &[f32],
    bias: Option<&[f32]>,
    experts: usize,
    k: usize,
    norm_min: f32,
    probs: &mut [f32],
    indices: &mut [u32],
    weights: &mut [f32],
) {
    assert!(k >= 1 && k <= experts, "route: {k} of {experts} experts");
    assert!(u32::try_from(experts).is_ok(), "route: {experts} experts");
    assert!(
        logits.len().is_multiple_of(experts) && probs.len() == logits.len(),
        "route: {} logits of {experts} experts",
        logits.len()
    );
    let rows = logits.len() / experts;
    assert!(indices.len() == rows * k && weights.len() == rows * k, "route: {} indices for {rows} rows", indices.len());
    assert!(bias.is_none_or(|b| b.len() == experts), "route: bias length");
    probs.copy_from_slice(logits);
    softmax::forward(probs, experts);
    let probs = &*probs;
    pool::rows2((indices, k), (weights, k), pool::grain_rows(experts * k), |row, indices, weights| {
        for (i, (indices, weights)) in indices.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k)).enumerate() {
            let p = &probs[(row + i) * experts..][..experts];
            choose(p, bias, indices);
            let mut sum = 0.0_f32;
            for &e in indices.iter() {
                sum += p[e as usize];
            }
            // Not `f32::max`, which would hide a NaN.
            let sum = if sum < norm_min { norm_min } else { sum };
            for (w, &e) in weights.iter_mut().zip(indices.iter()) {
                *w = p[e as usize] / sum;
            }
        }
    });
}

/// Fills `indices` with the experts of largest `p + bias`, by insertion: `k` is small.
fn choose(p: &[f32], bias: Option<&[f32]>, indices: &mut [u32]) {
    let score = |e: usize| {
        let s = bias.map_or(p[e], |b| p[e] + b[e]);
        if s.is_nan() { f32::NEG_INFINITY } else { s }
    };
    let k = indices.len();
    let mut filled = 0;
    for e in 0..p.len() {
        let s = score(e);
        if filled == k && score(indices[k - 1] as usize) >= s {
            continue;
        }
        // The first place whose score is less: an equal one came earlier and stays ahead.
        let mut at = if filled == k { k - 1 } else { filled };
        while at > 0 && score(indices[at - 1] as usize) < s {
            indices[at] = indices[at - 1];
            at -= 1;
        }
        indices[at] = e as u32;
        filled = (filled + 1).min(k);
    }
}

/// Adds to `d_probs` the gradient that `d_weights` sends through the renormalisation.
///
/// With `S` the sum of a row's chosen probabilities: `dp_e += (dw_e - sum_j dw_j w_j) / S`, or `dw_e / norm_min` where `S` is
/// below `norm_min`. [`softmax::backward`] then leads on to the logits.
///
/// # Shapes
/// `probs, d_probs: [T, E]`, `indices, d_weights: [T, k]`
///
/// # Panics
/// When a length does not fit.
pub fn weights_backward(
    probs: &[f32],
    indices: &[u32],
    d_weights: &[f32],
    experts: usize,
    k: usize,
    norm_min: f32,
    d_probs: &mut [f32],
) {
    assert!(
        experts > 0 && k > 0 && probs.len() == d_probs.len() && indices.len() == d_weights.len(),
        "route: lengths differ"
    );
    assert_eq!(probs.len() / experts * k, indices.len(), "route: {} indices", indices.len());
    for (((p, d_p), chosen), d_w) in probs
        .chunks_exact(experts)
        .zip(d_probs.chunks_exact_mut(experts))
        .zip(indices.chunks_exact(k))
        .zip(d_weights.chunks_exact(k))
    {
        let sum: f32 = chosen.iter().map(|&e| p[e as usize]).sum();
        let floored = sum < norm_min;
        let sum = if floored { norm_min } else { sum };
        let mean: f32 =
            if floored { 0.0 } else { chosen.iter().zip(d_w).map(|(&e, &d)| d * p[e as usize]).sum::<f32>() / sum };
        for (&e, &d) in chosen.iter().zip(d_w) {
            d_p[e as usize] += (d - mean) / sum;
        }
    }
}
