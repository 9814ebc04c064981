//! The AdamW step in one pass over memory (Loshchilov & Hutter, arXiv:1711.05101), and the norm of gradients.

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
    let exponent = step.max(1).min(i32::MAX as u64) as i32;
    let correction1 = 1.0 - adamw.beta1.powi(exponent);
    let correction2 = 1.0 - adamw.beta2.powi(exponent);
    let s = Step {
        one_less_beta1: (1.0 - adamw.beta1) as f32,
        beta2: adamw.beta2 as f32,
        one_less_beta2: (1.0 - adamw.beta2) as f32,
        keep: (1.0 - adamw.lr * adamw.weight_decay) as f32,
        step_size: (adamw.lr / correction1) as f32,
        inverse_root_correction: (1.0 / correction2.sqrt()) as f32,
        eps: adamw.eps as f32,
        grad_scale,
    };
    let isa = Isa::current();
    pool::rows3((weights, 1), (m, 1), (v, 1), GRAIN, |at, w, m, v| {
        update(isa, w, m, v, &gradient[at..at + w.len()], s);
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
