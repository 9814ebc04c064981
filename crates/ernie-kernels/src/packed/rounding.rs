//! Rounding a row of floats to bytes, group by group.

use super::activations::{GROUP, Side};
use crate::level::Isa;

/// A group whose largest magnitude is below this counts as zeros: the reciprocal of its scale would leave the range of f32.
pub(super) const TINY: f32 = 7.703_72e-34; // 2^-110

/// Added to a float of magnitude below 2^22 it rounds it to the nearest integer, ties to even, and leaves that in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The scale of a group and its reciprocal, from the bits of its largest magnitude. As integers the bits of magnitudes order as
/// magnitudes do, infinities and NaN above all.
#[inline(always)]
pub(crate) fn scale_of(top: u32) -> (f32, f32) {
    let largest = f32::from_bits(top);
    if top >= f32::INFINITY.to_bits() {
        (f32::NAN, 0.0)
    } else if largest < TINY {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    }
}

/// The side of a run with a sum, in a group with a scale.
#[inline(always)]
fn side(scale: f32, sum: i32) -> Side {
    // What the bytes of a NaN add up to does not matter, but must not overflow.
    Side { scale, sum: sum as f32 * scale, start128: sum.wrapping_mul(-128), start8: sum.wrapping_mul(-8) }
}

/// Rounds `x` to `bytes`, zeros after its end, and writes a side for each run of `run` elements.
///
/// # Panics
/// When `bytes` are no whole groups or too few, or `sides` not one a run.
pub(super) fn row(isa: Isa, x: &[f32], bytes: &mut [i8], sides: &mut [Side], run: usize) {
    assert!(
        bytes.len().is_multiple_of(GROUP) && x.len() <= bytes.len() && sides.len() * run == bytes.len(),
        "activations: {} elements to {} bytes and {} sides",
        x.len(),
        bytes.len(),
        sides.len()
    );
    #[cfg(target_arch = "x86_64")]
    if isa.level() >= crate::Level::Avx512 {
        // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features.
        unsafe { wide(x, bytes, sides, run) };
        return;
    }
    narrow(isa, x, bytes, sides, run);
}

kernel! {
    fn narrow(x: &[f32], bytes: &mut [i8], sides: &mut [Side], run: usize) {
        let sides = sides.chunks_exact_mut(GROUP / run);
        for (g, (bytes, sides)) in bytes.as_chunks_mut::<GROUP>().0.iter_mut().zip(sides).enumerate() {
            let mut group = [0.0_f32; GROUP];
            let rest = x.get(g * GROUP..).unwrap_or(&[]);
            let some = rest.len().min(GROUP);
            group[..some].copy_from_slice(&rest[..some]);
            let (scale, inverse) = scale_of(group.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max));
            for (byte, x) in bytes.iter_mut().zip(&group) {
                *byte = (x * inverse + ROUND).to_bits() as i8;
            }
            for (to, bytes) in sides.iter_mut().zip(bytes.chunks(run)) {
                *to = side(scale, bytes.iter().map(|&b| i32::from(b)).sum());
            }
        }
    }
}

/// As [`narrow`], by hand: compilers turn the sums into shuffles without end.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
fn wide(x: &[f32], bytes: &mut [i8], sides: &mut [Side], run: usize) {
    use std::arch::x86_64::*;
    let sign = _mm512_set1_epi32(0x7FFF_FFFF);
    let sides = sides.chunks_exact_mut(GROUP / run);
    for (g, (bytes, sides)) in bytes.as_chunks_mut::<GROUP>().0.iter_mut().zip(sides).enumerate() {
        let mut group = [_mm512_setzero_ps(); GROUP / 16];
        let mut top = _mm512_setzero_si512();
        for (i, part) in group.iter_mut().enumerate() {
            let at = g * GROUP + i * 16;
            let mask = ((1_u32 << x.len().saturating_sub(at).min(16)) - 1) as __mmask16;
            // SAFETY: masked lanes are not read; the others are inside `x`.
            *part = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(at)) };
            top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_castps_si512(*part), sign));
        }
        let (scale, inverse) = scale_of(_mm512_reduce_max_epu32(top));
        let inverse = _mm512_set1_ps(inverse);
        let rounded = group.map(|part| _mm512_cvtps_epi32(_mm512_mul_ps(part, inverse)));
        for (bytes, &part) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(&rounded) {
            // SAFETY: 16 bytes are written to 16.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(part)) };
        }
        for (to, parts) in sides.iter_mut().zip(rounded.chunks(run / 16)) {
            let sum = parts.iter().fold(_mm512_setzero_si512(), |sum, &part| _mm512_add_epi32(sum, part));
            *to = side(scale, _mm512_reduce_add_epi32(sum));
        }
    }
}
