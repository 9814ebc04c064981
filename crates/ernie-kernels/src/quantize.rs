//! Rounding weights to bytes: symmetric, one scale a row.

use crate::level::Isa;
use crate::pool;

kernel! {
    fn absmax_finite(row: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; 16];
        let (blocks, tail) = row.as_chunks::<16>();
        for block in blocks {
            for l in 0..16 {
                let a = block[l].abs();
                // Comparing with both ends passes over NaN and the infinities.
                lanes[l] = if a > lanes[l] && a <= f32::MAX { a } else { lanes[l] };
            }
        }
        for (l, a) in tail.iter().map(|a| a.abs()).enumerate() {
            lanes[l] = if a > lanes[l] && a <= f32::MAX { a } else { lanes[l] };
        }
        lanes.into_iter().fold(0.0, f32::max)
    }
}

kernel! {
    fn round_row(row: &[f32], inverse: f32, out: &mut [i8]) {
        for (out, &x) in out.iter_mut().zip(row) {
            // The cast saturates and sends NaN to 0; -128 is kept out so that the grid is symmetric.
            let q = (x * inverse).round_ties_even();
            let q = if q < -127.0 { -127.0 } else { q };
            let q = if q > 127.0 { 127.0 } else { q };
            *out = q as i8;
        }
    }
}

kernel! {
    fn count_non_finite(row: &[f32]) -> usize {
        row.iter().filter(|x| !x.is_finite()).count()
    }
}

/// Rounds each row to the nearest of `-127..=127` times its scale; the scale is `absmax / 127` rounded to f16, so that it may
/// be stored as such. Gives the number of elements that were not finite.
///
/// A zero row gets scale 0. A NaN becomes 0 and an infinity the end of the grid, the scale being that of the finite
/// elements; callers that must not accept them look at the count. Scales beyond f16's range are held at its ends, and
/// the elements beyond then saturate.
///
/// # Shapes
/// `weights: [R, in_features]` → `out: [R, in_features]`, `scales: [R]`
///
/// # Panics
/// When a length does not fit.
pub fn int8_rows(weights: &[f32], in_features: usize, out: &mut [i8], scales: &mut [f32]) -> usize {
    assert!(weights.len() == scales.len() * in_features && out.len() == weights.len(), "quantize: lengths differ");
    if weights.is_empty() {
        scales.fill(0.0);
        return 0;
    }
    let isa = Isa::current();
    let grain = pool::grain_rows(in_features);
    pool::rows2((out, in_features), (scales, 1), grain, |row, out, scales| {
        for (i, (out, scale)) in out.chunks_exact_mut(in_features).zip(scales).enumerate() {
            let x = &weights[(row + i) * in_features..][..in_features];
            let absmax = absmax_finite(isa, x);
            *scale = f16_scale(absmax);
            if *scale == 0.0 {
                out.fill(0);
            } else {
                round_row(isa, x, 1.0 / *scale, out);
            }
        }
    });
    pool::map_ranges(weights.len(), pool::GRAIN, |range| count_non_finite(isa, &weights[range])).into_iter().sum()
}

/// `absmax / 127`, rounded to f16 and held inside its positive range unless it is zero.
pub(crate) fn f16_scale(absmax: f32) -> f32 {
    if absmax == 0.0 {
        return 0.0;
    }
    let rounded = half::f16::from_f32(absmax / 127.0).to_f32();
    rounded.clamp(half::f16::from_bits(1).to_f32(), half::f16::MAX.to_f32())
}
