//! Rounding weights to bytes (symmetric, one scale a row) and to four bits (symmetric, one scale a group).

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

/// What the magnitude of a group's largest weight is divided by to give a scale, in the order in which they are tried: with 8 that weight keeps its place, with less
/// others have finer steps and it saturates, with more the grid reaches beyond it.
const STEPS: [f32; 9] = [8.0, 7.75, 8.25, 7.5, 8.5, 7.25, 8.75, 7.0, 9.0];

/// Rounds each group of `group` weights of a row to the nearest of `-8..=7` times its scale, an f16, which is the one of a few that leaves the least squared
/// error. Its sign is such that the largest weight falls on the side of -8. Integers are stored with 8 added; element `2 i` is the lower half of byte `i`.
///
/// A group of zeros gets scale 0. A NaN becomes zero and an infinity an end of the grid; weights beyond 60,000 saturate.
///
/// # Shapes
/// `weights: [R, in_features]` → `out: [R, in_features / 2]`, `scales: [R, in_features / group]`
///
/// # Panics
/// When a length does not fit, or a row is no whole number of groups, or a group an odd number of weights.
pub fn int4_rows(weights: &[f32], in_features: usize, group: usize, out: &mut [u8], scales: &mut [f32]) {
    assert!(
        group > 0
            && group.is_multiple_of(2)
            && in_features.is_multiple_of(group)
            && out.len() * 2 == weights.len()
            && scales.len() * group == weights.len(),
        "quantize: lengths differ"
    );
    if weights.is_empty() {
        return;
    }
    let (isa, width) = (Isa::current(), in_features / group);
    pool::rows2((out, in_features / 2), (scales, width), pool::grain_rows(in_features), |row, out, scales| {
        let weights = &weights[row * in_features..][..scales.len() * group];
        for ((x, out), scale) in weights.chunks_exact(group).zip(out.chunks_exact_mut(group / 2)).zip(scales) {
            *scale = four_bits(isa, x, out);
        }
    });
}

kernel! {
    /// Rounds a group and gives its scale.
    fn four_bits(x: &[f32], out: &mut [u8]) -> f32 {
        const MOST: f32 = 60_000.0;
        let mut largest = 0.0_f32;
        for &x in x {
            // Comparisons pass over NaN, the bound over the infinities.
            largest = if x.abs() > largest.abs() && x.abs() <= f32::MAX { x } else { largest };
        }
        let largest = largest.clamp(-MOST, MOST);
        let (mut best, mut least) = (0.0, f32::INFINITY);
        for steps in STEPS {
            let scale = half::f16::from_f32(largest / -steps).to_f32();
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let mut errors = [0.0_f32; 16];
            for x in x.chunks(16) {
                for (error, &x) in errors.iter_mut().zip(x) {
                    let off = nearest(x * inverse) * scale - x;
                    *error += off * off;
                }
            }
            let error = errors.iter().sum::<f32>();
            // The first stays where infinities make all of them alike.
            if error < least || best == 0.0 {
                (best, least) = (scale, error);
            }
        }
        let inverse = if best == 0.0 { 0.0 } else { 1.0 / best };
        for (out, pair) in out.iter_mut().zip(x.as_chunks::<2>().0) {
            *out = (nearest(pair[0] * inverse) + 8.0) as u8 | ((nearest(pair[1] * inverse) + 8.0) as u8) << 4;
        }
        best
    }
}

/// The nearest of `-8..=7`; 0 for NaN.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    let x = if x.is_nan() { 0.0 } else { x };
    let x = if x > -8.0 { x } else { -8.0 };
    let x = if x < 7.0 { x } else { 7.0 };
    x.round_ties_even()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_are_near_and_the_largest_weight_keeps_its_place() {
        let x: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0) * 0.013).collect();
        let (mut out, mut scales) = (vec![0; 32], vec![0.0; 2]);
        int4_rows(&x, 64, 32, &mut out, &mut scales);
        for (i, &x) in x.iter().enumerate() {
            let scale = scales[i / 32];
            assert!(scale < 0.0 && half::f16::from_f32(scale).to_f32() == scale, "{scale}");
            let back = (f32::from(out[i / 2] >> (4 * (i % 2)) & 15) - 8.0) * scale;
            // Half a step, or a whole one where the grid ends early.
            assert!((back - x).abs() <= 1.01 * scale.abs(), "{i}: {x} {back} {scale}");
        }
    }

    #[test]
    fn a_grid_of_four_bits_is_found_again() {
        let x: Vec<f32> = (0..32).map(|i| ((i * 7 % 16) as f32 - 8.0) * 0.25).collect();
        let (mut out, mut scales) = (vec![0; 16], vec![0.0]);
        int4_rows(&x, 32, 32, &mut out, &mut scales);
        assert_eq!(scales, [0.25]);
        for (i, &x) in x.iter().enumerate() {
            assert_eq!((f32::from(out[i / 2] >> (4 * (i % 2)) & 15) - 8.0) * 0.25, x);
        }
    }

    #[test]
    fn what_is_no_number_becomes_zero_or_an_end() {
        let mut x = [0.5_f32; 32];
        x[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.25]);
        let (mut out, mut scales) = ([0; 16], [0.0]);
        int4_rows(&x, 32, 32, &mut out, &mut scales);
        // The scale is negative: the largest finite weight is positive.
        assert_eq!((scales[0], [out[0] & 15, out[0] >> 4, out[1] & 15]), (-0.0625, [8, 0, 15]));
        int4_rows(&[0.0; 32], 32, 32, &mut out, &mut scales);
        assert_eq!((scales[0], out[3]), (0.0, 0x88));
    }
}
