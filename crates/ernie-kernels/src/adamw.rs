//! The AdamW step in one pass over memory (Loshchilov & Hutter, arXiv:1711.05101), with moments in 32 or 16 bits, and the norm of gradients.

use crate::floats::bf16;
use crate::level::Isa;
use crate::pool::{self, GRAIN};
use crate::simd;

/// The numbers of one step, as `torch.optim.AdamW` names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, outside the root.
    pub eps: f64,
    /// Decoupled decay: the weight is first multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

#[derive(Clone, Copy)]
pub(crate) struct Step {
    one_less_beta1: f32,
    beta2: f32,
    one_less_beta2: f32,
    keep: f32,
    step_size: f32,
    inverse_root_correction: f32,
    eps: f32,
    grad_scale: f32,
}

kernel! {
    fn update(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: Step) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * s.grad_scale;
            let m1 = simd::fma::<FMA>(s.one_less_beta1, g - *m, *m);
            let v1 = simd::fma::<FMA>(s.one_less_beta2 * g, g, s.beta2 * *v);
            *m = m1;
            *v = v1;
            let root = v1.sqrt() * s.inverse_root_correction + s.eps;
            *w = simd::fma::<FMA>(-s.step_size, m1 / root, *w * s.keep);
        }
    }
}

/// The constants of step number `step`.
fn constants(adamw: &AdamW, step: u64, grad_scale: f32) -> Step {
    let exponent = step.max(1).min(i32::MAX as u64) as i32;
    let correction1 = 1.0 - adamw.beta1.powi(exponent);
    let correction2 = 1.0 - adamw.beta2.powi(exponent);
    Step {
        one_less_beta1: (1.0 - adamw.beta1) as f32,
        beta2: adamw.beta2 as f32,
        one_less_beta2: (1.0 - adamw.beta2) as f32,
        keep: (1.0 - adamw.lr * adamw.weight_decay) as f32,
        step_size: (adamw.lr / correction1) as f32,
        inverse_root_correction: (1.0 / correction2.sqrt()) as f32,
        eps: adamw.eps as f32,
        grad_scale,
    }
}

/// One step on one parameter: moments and weights updated in place.
///
/// `step` counts from 1 (bias correction). `grad_scale` multiplies the gradient as it is read: clipping and the mean over
/// accumulated batches cost no pass of their own.
///
/// # Panics
/// When the lengths differ.
pub fn step(
    weights: &mut [f32],
    gradient: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    adamw: &AdamW,
    step: u64,
    grad_scale: f32,
) {
    let n = weights.len();
    assert!(gradient.len() == n && m.len() == n && v.len() == n, "adamw: lengths differ");
    let (isa, s) = (Isa::current(), constants(adamw, step, grad_scale));
    pool::rows3((weights, 1), (m, 1), (v, 1), GRAIN, |at, w, m, v| {
        update(isa, w, m, v, &gradient[at..at + w.len()], s);
    });
}

/// Odd numbers that spread a count over 32 bits, and stir what was spread.
const SPREAD: [u32; 3] = [0x9E37_79B9, 0x7FEB_352D, 0x846C_A68B];

/// Two draws of 16 bits each, for element `index` of a piece with `key`: a count put through a mixer, as counter-based generators are made
/// (Salmon et al., SC 2011, doi:10.1145/2063384.2063405). In 32 bits throughout, so that a vector makes as many as it has lanes.
#[inline(always)]
pub(crate) fn draws(key: u64, index: u32) -> [u32; 2] {
    let mut x = index.wrapping_mul(SPREAD[0]).wrapping_add(key as u32);
    x = (x ^ (x >> 16)).wrapping_mul(SPREAD[1]);
    // The key's other half in between: two pieces whose counts overlap still draw apart.
    x = (x ^ (key >> 32) as u32 ^ (x >> 15)).wrapping_mul(SPREAD[2]);
    x ^= x >> 16;
    [x & 0xFFFF, x >> 16]
}

/// The key of the piece that begins at element `at`, by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
pub(crate) fn piece_key(key: u64, at: usize) -> u64 {
    let mut x = key ^ (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// One of the two neighbours of `x` in bf16, the nearer the likelier, so that the mean over draws of 16 bits is `x`.
#[inline(always)]
pub(crate) fn rounded_by(draw: u32, x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(draw) >> 16) as u16;
    // An infinity has no bits to carry into; what is no number must stay so.
    let nan = (bits >> 16) as u16 | 0x40;
    bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded })
}

#[inline(always)]
fn widened(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

kernel! {
    fn update_rounding(w: &mut [f32], m: &mut [bf16], v: &mut [bf16], g: &[f32], s: Step, key: u64) {
        for (index, (((w, m), v), &g)) in w.iter_mut().zip(m).zip(v).zip(g).enumerate() {
            let g = g * s.grad_scale;
            let (m0, v0) = (widened(*m), widened(*v));
            let m1 = simd::fma::<FMA>(s.one_less_beta1, g - m0, m0);
            let v1 = simd::fma::<FMA>(s.one_less_beta2 * g, g, s.beta2 * v0);
            let [first, second] = draws(key, index as u32);
            *m = rounded_by(first, m1);
            *v = rounded_by(second, v1);
            let root = v1.sqrt() * s.inverse_root_correction + s.eps;
            *w = simd::fma::<FMA>(-s.step_size, m1 / root, *w * s.keep);
        }
    }
}

/// As [`step`], with moments kept in bf16: half the memory. The step itself is made with the moments in 32 bits; what is kept of them is rounded up or
/// down by chance, the nearer neighbour being the likelier (Gupta et al., arXiv:1502.02551; for bf16, Zamirai et al., arXiv:2010.06192).
///
/// To the nearest would not do: with `beta2` = 0.999 a step takes a thousandth of the second moment away, of which bf16 tells one part in 128 to 256
/// apart: it would never fall again. Rounded by chance its mean is right, and chance adds little: each rounding is off by less than 2^-7 of
/// the moment, either way, and about `1 / (1 - beta2²)` of them are remembered.
///
/// Draws depend on `key`, which is for the caller to make anew for each parameter and step, and on an element's place alone: not on threads.
///
/// # Panics
/// When the lengths differ.
#[allow(clippy::too_many_arguments)] // Those of `step`, and the key.
pub fn step_rounding(
    weights: &mut [f32],
    gradient: &[f32],
    m: &mut [bf16],
    v: &mut [bf16],
    adamw: &AdamW,
    step: u64,
    grad_scale: f32,
    key: u64,
) {
    let n = weights.len();
    assert!(gradient.len() == n && m.len() == n && v.len() == n, "adamw: lengths differ");
    let (isa, s) = (Isa::current(), constants(adamw, step, grad_scale));
    pool::rows3((weights, 1), (m, 1), (v, 1), GRAIN, |at, w, m, v| {
        update_rounding(isa, w, m, v, &gradient[at..at + w.len()], s, piece_key(key, at));
    });
}

kernel! {
    fn squares(a: &[f32]) -> f64 {
        let mut lanes = [0.0_f64; 8];
        let (blocks, tail) = a.as_chunks::<8>();
        for a in blocks {
            for l in 0..8 {
                lanes[l] += f64::from(a[l]) * f64::from(a[l]);
            }
        }
        for (l, &a) in tail.iter().enumerate() {
            lanes[l] += f64::from(a) * f64::from(a);
        }
        lanes.iter().sum()
    }
}

/// The sum of squares in f64, in an order that does not depend on threads. Non-finite elements make it non-finite.
///
/// The global norm of gradients is the root of the sum of these over all parameters.
pub fn sum_of_squares(a: &[f32]) -> f64 {
    let isa = Isa::current();
    pool::map_ranges(a.len(), GRAIN, |range| squares(isa, &a[range])).iter().sum()
}
