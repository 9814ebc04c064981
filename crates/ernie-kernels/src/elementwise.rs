//! Element-wise helpers: adding, scaling, rounding to bfloat16, and the vector exponential.

use crate::floats::{self, Floats, FloatsMut, PIECE, SharedFloats, bf16};
use crate::fresh;
use crate::level::Isa;
use crate::packed::float_pack::bf16_bits;
use crate::pool::{self, GRAIN};
use crate::simd;

kernel! {
    fn add_slice(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

kernel! {
    fn sum_slice(a: &[f32], b: &[f32], c: &mut [f32]) {
        for ((c, &a), &b) in c.iter_mut().zip(a).zip(b) {
            *c = a + b;
        }
    }
}

kernel! {
    fn add_scaled_slice(y: &mut [f32], x: &[f32], s: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = simd::fma::<FMA>(s, x, *y);
        }
    }
}

kernel! {
    fn scale_slice(y: &mut [f32], s: f32) {
        for y in y {
            *y *= s;
        }
    }
}

kernel! {
    fn round_slice(y: &mut [f32]) {
        for y in y {
            let bits = y.to_bits();
            // Round to nearest, ties to even, by adding just under half of the dropped part plus the kept last bit.
            let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000;
            // A NaN could overflow into the sign: keep its upper half and make it quiet.
            let quiet = bits & 0xFFFF_0000 | 0x0040_0000;
            *y = f32::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { quiet } else { rounded });
        }
    }
}

/// `a + b`.
///
/// # Panics
/// When the lengths differ.
pub fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "sum: lengths differ");
    let isa = Isa::current();
    fresh::mapped(a, |at, y| add_slice(isa, y, &b[at..at + y.len()]))
}

/// `c = a + b`, in any widths.
///
/// # Panics
/// When the lengths differ.
pub fn add<'a>(a: impl Into<Floats<'a>>, b: impl Into<Floats<'a>>, c: impl Into<FloatsMut<'a>>) {
    let (a, b, c) = (a.into(), b.into(), c.into());
    assert!(a.len() == b.len() && a.len() == c.len(), "add: lengths differ");
    let (isa, c) = (Isa::current(), SharedFloats::new(c));
    pool::ranges(a.len(), GRAIN, |range| {
        pool::scratch(3 * PIECE, |scratch| {
            let [first, second, third] = floats::buffers(scratch);
            for range in floats::cut(range) {
                let (a, b) = (a.read(isa, range.clone(), first), b.read(isa, range.clone(), second));
                // SAFETY: the ranges do not overlap.
                unsafe { c.write(isa, range, third, |c| sum_slice(isa, a, b, c)) };
            }
        });
    });
}

/// `y += s * x`.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(y: &mut [f32], x: &[f32], s: f32) {
    assert_eq!(y.len(), x.len(), "add_scaled: lengths differ");
    let isa = Isa::current();
    pool::pieces(y, GRAIN, |at, y| add_scaled_slice(isa, y, &x[at..at + y.len()], s));
}

kernel! {
    fn scale_narrow(y: &mut [bf16], s: f32) {
        for y in y {
            *y = bf16::from_bits(bf16_bits(f32::from_bits(u32::from(y.to_bits()) << 16) * s));
        }
    }
}

/// `y *= s`.
pub fn scale<'a>(y: impl Into<FloatsMut<'a>>, s: f32) {
    let isa = Isa::current();
    match y.into() {
        FloatsMut::F32(y) => pool::pieces(y, GRAIN, |_, y| scale_slice(isa, y, s)),
        FloatsMut::Bf16(y) => pool::pieces(y, GRAIN, |_, y| scale_narrow(isa, y, s)),
    }
}

/// Each element rounded to the nearest bfloat16 (ties to even), in single precision; NaN stays NaN.
///
/// This is how a bfloat16 model is computed here: activations are rounded where the model would store them, sums stay in f32.
pub fn rounded_to_bf16(x: &[f32]) -> Vec<f32> {
    let isa = Isa::current();
    fresh::mapped(x, |_, y| round_slice(isa, y))
}

/// Replaces each element by its exponential, within 2 units in the last place; subnormal results and infinity included.
pub fn exp(y: &mut [f32]) {
    let isa = Isa::current();
    pool::pieces(y, GRAIN, |_, y| simd::exp_slice(isa, y));
}
