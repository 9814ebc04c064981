//! The gated activation of the decoder's MLP: `silu(gate) * up`, and its gradients.

use crate::floats::{self, Floats, FloatsMut, PIECE, SharedFloats};
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
pub fn forward<'a>(gate: impl Into<Floats<'a>>, up: impl Into<Floats<'a>>, y: impl Into<FloatsMut<'a>>) {
    let (gate, up, y) = (gate.into(), up.into(), y.into());
    assert!(gate.len() == y.len() && up.len() == y.len(), "swiglu: lengths differ");
    let (isa, n, y) = (Isa::current(), y.len(), SharedFloats::new(y));
    pool::ranges(n, GRAIN, |range| {
        pool::scratch(3 * PIECE, |scratch| {
            let [a, b, c] = floats::buffers(scratch);
            for range in floats::cut(range) {
                let (gate, up) = (gate.read(isa, range.clone(), a), up.read(isa, range.clone(), b));
                // SAFETY: the ranges do not overlap.
                unsafe { y.write(isa, range, c, |y| forward_slice(isa, gate, up, y)) };
            }
        });
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
pub fn backward<'a>(
    gate: impl Into<Floats<'a>>,
    up: impl Into<Floats<'a>>,
    dy: impl Into<Floats<'a>>,
    d_gate: impl Into<FloatsMut<'a>>,
    d_up: impl Into<FloatsMut<'a>>,
) {
    let (gate, up, dy, d_gate, d_up) = (gate.into(), up.into(), dy.into(), d_gate.into(), d_up.into());
    let n = dy.len();
    assert!(gate.len() == n && up.len() == n && d_gate.len() == n && d_up.len() == n, "swiglu: lengths differ");
    let (isa, d_gate, d_up) = (Isa::current(), SharedFloats::new(d_gate), SharedFloats::new(d_up));
    pool::ranges(n, GRAIN, |range| {
        pool::scratch(5 * PIECE, |scratch| {
            let [a, b, c, d, e] = floats::buffers(scratch);
            for range in floats::cut(range) {
                let of = |floats: Floats<'a>, buffer| floats.read(isa, range.clone(), buffer);
                let (gate, up, dy) = (of(gate, a), of(up, b), of(dy, c));
                // SAFETY: the ranges do not overlap.
                unsafe {
                    d_gate.write(isa, range.clone(), d, |d_gate| {
                        d_up.write(isa, range.clone(), e, |d_up| backward_slice(isa, gate, up, dy, d_gate, d_up));
                    });
                }
            }
        });
    });
}
