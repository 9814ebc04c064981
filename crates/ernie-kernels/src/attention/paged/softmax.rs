//! The online softmax over pages, in vectors: weights relative to each row's running maximum, and how partial sums are merged.
//!
//! Scores are logarithms to base 2: the queries were multiplied with `log2(e)`. All that is done to a row depends on that row
//! only; sixteen rows share the vectors in which maxima are compared and corrections computed. A row's total is kept as
//! sixteen sums, one a lane, and folded at the end.

use super::PAGE;
use super::walk::{Part, Visible};
use crate::lanes::Lanes;
use crate::simd;

/// Rows that share a vector.
const ROWS: usize = 16;

/// What turns the scores of a page into weights: see [`weights`].
pub(crate) struct Page<'a> {
    /// What each position's scores are multiplied with.
    pub(super) key_scales: Option<&'a [f32; PAGE]>,
    /// What each position's weights, but not their total, are multiplied with.
    pub(super) value_scales: Option<&'a [f32; PAGE]>,
    /// The position of a tile's first row, rows of a position, and how many rows before these the tile has.
    pub(super) start: usize,
    pub(super) group: usize,
    pub(super) row: usize,
    /// The first position of the page.
    pub(super) first: usize,
    pub(super) window: Option<usize>,
}

impl Page<'_> {
    /// The places that row `i` sees.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> Visible {
        Visible::new(self.start + (self.row + i) / self.group, self.first, self.window)
    }

    /// Whether each of so many rows sees the whole page: later rows begin and end later.
    pub(super) fn is_seen_whole(&self, rows: usize) -> bool {
        self.visible(0).end == PAGE && self.visible(rows - 1).first == 0
    }
}

with_lanes! {
    /// Turns the scores `[rows, PAGE]` of a page into weights relative to each row's running maximum, and rescales what was
    /// summed before. A row that sees none of the page is left alone, its scores included; of a row that sees a part, the
    /// other places become zero, or NaN where a scale there is.
    ///
    /// # Safety
    /// The processor has the features of the level.
    unsafe fn weights = weights_in(page: &Page<'_>, scores: &mut [[f32; PAGE]], part: &mut Part<'_>)
}

with_lanes! {
    /// Adds the sums over later positions to those over earlier ones. What saw nothing is left out.
    ///
    /// # Safety
    /// The processor has the features of the level.
    unsafe fn merge = merge_in(into: &mut Part<'_>, later: &Part<'_>)
}

#[inline(always)]
unsafe fn weights_in<V: Lanes>(page: &Page<'_>, scores: &mut [[f32; PAGE]], part: &mut Part<'_>) {
    let width = part.width;
    let whole = page.is_seen_whole(scores.len());
    let visible = |i: usize| if whole { Visible { first: 0, end: PAGE } } else { page.visible(i) };
    let totals = part.totals.as_chunks_mut::<16>().0.chunks_mut(ROWS);
    let maxima = part.max.as_chunks_mut::<ROWS>().0.iter_mut().zip(totals).zip(part.sums.chunks_mut(ROWS * width));
    for (batch, (rows, ((max, totals), sums))) in scores.chunks_mut(ROWS).zip(maxima).enumerate() {
        let mut highest = [f32::NEG_INFINITY; ROWS];
        for (i, row) in rows.iter_mut().enumerate() {
            let Visible { first, end } = visible(batch * ROWS + i);
            if first < end {
                // SAFETY: the features are the caller's contract.
                highest[i] = unsafe { prepare::<V>(row, page.key_scales, first, end) };
            }
        }
        let mut corrections = [0.0; ROWS];
        let before = *max;
        // SAFETY: the features are the caller's contract, and all arrays hold 16 floats.
        unsafe {
            let old = V::load(before.as_ptr());
            let new = V::load(highest.as_ptr()).max(old);
            exp2(old.sub(new)).store(corrections.as_mut_ptr());
            new.store(max.as_mut_ptr());
        }
        for (i, ((row, total), sums)) in rows.iter_mut().zip(totals).zip(sums.chunks_exact_mut(width)).enumerate() {
            let Visible { first, end } = visible(batch * ROWS + i);
            if first >= end {
                continue;
            }
            // Only -inf seen so far: anything finite will do to be relative to, and gives weights of 0.
            let base = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] };
            // SAFETY: the features are the caller's contract; every vector is one of the slices' own 16 elements.
            unsafe {
                let mut sum = V::load(total.as_ptr());
                if max[i] > before[i] {
                    let correction = V::splat(corrections[i]);
                    sum = sum.mul(correction);
                    for s in sums.as_chunks_mut::<16>().0 {
                        V::load(s.as_ptr()).mul(correction).store(s.as_mut_ptr());
                    }
                }
                let base = V::splat(base);
                for v in (0..PAGE).step_by(16) {
                    let mut weights = exp2(V::load(row[v..].as_ptr()).sub(base));
                    sum = sum.add(weights);
                    if let Some(scales) = page.value_scales {
                        weights = weights.mul(V::load(scales[v..].as_ptr()));
                    }
                    weights.store(row[v..].as_mut_ptr());
                }
                sum.store(total.as_mut_ptr());
            }
        }
    }
}

/// Scales a row's scores, puts -inf where it does not see, and gives their largest; a NaN is passed over.
///
/// # Safety
/// The processor has the features of `V`.
#[inline(always)]
unsafe fn prepare<V: Lanes>(row: &mut [f32; PAGE], key_scales: Option<&[f32; PAGE]>, first: usize, end: usize) -> f32 {
    // SAFETY: the features are the caller's contract; every vector is one of the row's, or of its scales', 16 elements.
    unsafe {
        if let Some(scales) = key_scales {
            for v in (0..PAGE).step_by(16) {
                V::load(row[v..].as_ptr()).mul(V::load(scales[v..].as_ptr())).store(row[v..].as_mut_ptr());
            }
        }
        if first > 0 || end < PAGE {
            row[..first].fill(f32::NEG_INFINITY);
            row[end..].fill(f32::NEG_INFINITY);
        }
        let mut largest = V::splat(f32::NEG_INFINITY);
        for v in (0..PAGE).step_by(16) {
            largest = V::load(row[v..].as_ptr()).max(largest);
        }
        largest.largest()
    }
}

#[inline(always)]
unsafe fn merge_in<V: Lanes>(into: &mut Part<'_>, later: &Part<'_>) {
    let width = into.width;
    let rows = into.totals.as_chunks_mut::<16>().0.iter_mut().zip(into.sums.chunks_exact_mut(width));
    let later_rows = later.totals.as_chunks::<16>().0.iter().zip(later.sums.chunks_exact(width));
    let (max, _) = into.max.as_chunks_mut::<ROWS>();
    let (later_max, _) = later.max.as_chunks::<ROWS>();
    let (mut ours, mut theirs) = ([0.0_f32; ROWS], [0.0_f32; ROWS]);
    for (i, ((total, sums), (later_total, later_sums))) in rows.zip(later_rows).enumerate() {
        let (batch, i) = (i / ROWS, i % ROWS);
        if i == 0 {
            // SAFETY: the features are the caller's contract, and all arrays hold 16 floats.
            unsafe {
                let (old, later) = (V::load(max[batch].as_ptr()), V::load(later_max[batch].as_ptr()));
                let new = later.max(old);
                exp2(old.sub(new)).store(ours.as_mut_ptr());
                exp2(later.sub(new)).store(theirs.as_mut_ptr());
                new.store(max[batch].as_mut_ptr());
            }
        }
        if simd::fold(*later_total) == 0.0 {
            continue;
        }
        if simd::fold(*total) == 0.0 {
            *total = *later_total;
            sums.copy_from_slice(later_sums);
            continue;
        }
        // SAFETY: the features are the caller's contract; every vector is one of the slices' own 16 elements.
        unsafe {
            let (ours, theirs) = (V::splat(ours[i]), V::splat(theirs[i]));
            let sums = std::iter::once(total).chain(sums.as_chunks_mut::<16>().0);
            let later_sums = std::iter::once(later_total).chain(later_sums.as_chunks::<16>().0);
            for (s, l) in sums.zip(later_sums) {
                V::load(l.as_ptr()).fma(theirs, V::load(s.as_ptr()).mul(ours)).store(s.as_mut_ptr());
            }
        }
    }
}

/// `2^x` of what is not above 0, within 2 units in the last place; zero below -126.5, as of -inf. NaN stays NaN.
///
/// The whole part goes to the exponent; of the rest, in -0.5..=0.5, a polynomial of degree 6 that interpolates `2^r` at
/// Chebyshev's nodes (error 2.5e-9).
///
/// # Safety
/// The processor has the features of `V`.
#[inline(always)]
unsafe fn exp2<V: Lanes>(x: V) -> V {
    /// 1.5 * 2^23 + 127: adding it rounds to the nearest integer, which then stands in the low bits with the exponent's bias.
    const MAGIC: f32 = 12_583_039.0;
    // SAFETY: the features are the caller's contract.
    unsafe {
        // Here the biased exponent is 0, and the power is then 0.
        let x = V::splat(-127.0).max(x);
        let shifted = x.add(V::splat(MAGIC));
        let r = x.sub(shifted.sub(V::splat(MAGIC)));
        let p = V::splat(1.546_149_1e-4).fma(r, V::splat(1.340_048_2e-3));
        let p = p.fma(r, V::splat(9.618_057e-3));
        let p = p.fma(r, V::splat(5.550_327e-2));
        let p = p.fma(r, V::splat(0.240_226_5));
        let p = p.fma(r, V::splat(std::f32::consts::LN_2));
        p.fma(r, V::splat(1.0)).mul(shifted.shift_to_exponent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Isa;

    with_lanes! {
        /// # Safety
        /// The processor has the features of the level.
        unsafe fn powers = powers_in(x: &mut [f32; 16])
    }

    #[inline(always)]
    unsafe fn powers_in<V: Lanes>(x: &mut [f32; 16]) {
        // SAFETY: the features are the caller's contract, and the array holds 16 elements.
        unsafe { exp2(V::load(x.as_ptr())).store(x.as_mut_ptr()) };
    }

    #[test]
    fn powers_of_two_are_those_of_double_precision() {
        for level in crate::supported_levels() {
            let power = |x: f32| {
                let mut lanes = [x; 16];
                // SAFETY: an `Isa` is of a level whose features the processor has.
                crate::with_level(level, || unsafe { powers(Isa::current(), &mut lanes) }).unwrap();
                lanes[5]
            };
            for i in 0..30_000 {
                let x = i as f32 * -0.0042;
                let expected = f64::from(x).exp2();
                let error = (f64::from(power(x)) / expected - 1.0).abs();
                assert!(error < 2.0 * f64::from(f32::EPSILON), "2^{x} is {} at {level}", power(x));
            }
            assert_eq!(
                [-0.0, -1.0, -126.0, -127.0, -1e9, f32::NEG_INFINITY].map(power),
                [1.0, 0.5, f32::MIN_POSITIVE, 0.0, 0.0, 0.0]
            );
            assert!(power(f32::NAN).is_nan() && power(f32::from_bits(u32::MAX)).is_nan());
        }
    }
}
