//! The gated activation of the decoder's MLP: `silu(gate) * up`, and its gradients.

use crate::fresh;
use crate::level::Isa;
use crate::pool::{self, GRAIN};
use crate::simd;

kernel! {
    fn forward_slice(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * simd::sigmoid::<FMA>(g) * u;
        }
    }
}

kernel! {
    fn backward_slice(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        for ((((dg, du), &g), &u), &dy) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy) {
            let s = simd::sigmoid::<FMA>(g);
            let silu = g * s;
            *du = dy * silu;
            *dg = dy * u * (s + silu * (1.0 - s));
        }
    }
}

/// `y = gate / (1 + e^-gate) * up`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len(), "swiglu: lengths differ");
    let isa = Isa::current();
    pool::pieces(y, GRAIN, |at, y| {
        let range = at..at + y.len();
        forward_slice(isa, &gate[range.clone()], &up[range], y);
    });
}

kernel! {
    fn gate_slice(y: &mut [f32], up: &[f32]) {
        for (y, &u) in y.iter_mut().zip(up) {
            *y = *y * simd::sigmoid::<FMA>(*y) * u;
        }
    }
}

/// As [`forward`], into a new vector.
///
/// # Panics
/// When the lengths differ.
pub fn product(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert!(gate.len() == up.len(), "swiglu: lengths differ");
    let isa = Isa::current();
    fresh::mapped(gate, |at, y| gate_slice(isa, y, &up[at..at + y.len()]))
}

/// Overwrites `d_gate` and `d_up` with the gradients of [`forward`] for the gradient `dy` of its result.
///
/// # Panics
/// When the lengths differ.
pub fn backward(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let n = dy.len();
    assert!(gate.len() == n && up.len() == n && d_gate.len() == n && d_up.len() == n, "swiglu: lengths differ");
    let isa = Isa::current();
    pool::rows2((d_gate, 1), (d_up, 1), GRAIN, |at, d_gate, d_up| {
        let range = at..at + d_gate.len();
        backward_slice(isa, &gate[range.clone()], &up[range.clone()], &dy[range], d_gate, d_up);
    });
}
