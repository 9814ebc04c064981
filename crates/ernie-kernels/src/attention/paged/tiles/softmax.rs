//! The online softmax of sixteen rows over a page, in full vectors, and weights as the next product takes them.
//!
//! As [`super::super::softmax::weights`], on which it improves where weights will be rounded to bf16 anyway: maxima of all sixteen rows are
//! found together, and powers are good to 7e-6.

use std::arch::x86_64::*;

use super::super::PAGE;
use super::super::softmax::Page;
use super::super::walk::Part;
use super::product::narrow;
use crate::amx::ROWS;

/// Turns the scores of the first `count` rows into weights relative to each row's running maximum, in bf16 at the start of each row, and
/// rescales what was summed before. What a row does not see weighs nothing.
///
/// # Panics
/// When there are not so many rows in all the slices.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
pub(super) fn weights(page: &Page<'_>, count: usize, scores: &mut [[f32; PAGE]; ROWS], part: &mut Part<'_>) {
    let width = part.width;
    if !page.is_seen_whole(count) {
        for (i, row) in scores[..count].iter_mut().enumerate() {
            let seen = page.visible(i);
            row[..seen.first].fill(f32::NEG_INFINITY);
            row[seen.end..].fill(f32::NEG_INFINITY);
        }
    }
    let (max, _) = part.max.as_chunks_mut::<ROWS>();
    let (totals, _) = part.totals.as_chunks_mut::<16>();
    assert!(
        max.len() == 1 && count <= totals.len() && totals.len() * width <= part.sums.len(),
        "attention: {count} rows"
    );
    let [max] = max else { return };
    let (mut bases, mut corrections) = ([0.0_f32; ROWS], [0.0_f32; ROWS]);
    // SAFETY: every vector is sixteen elements of an array or a slice of so many.
    let grown = unsafe {
        let old = _mm512_loadu_ps(max.as_ptr());
        // A NaN is passed over: the second operand is taken where either is one.
        let new = _mm512_max_ps(maxima(scores), old);
        _mm512_storeu_ps(max.as_mut_ptr(), new);
        // Only -inf seen so far: anything finite will do to be relative to, and gives weights of 0.
        let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(new, _mm512_set1_ps(f32::NEG_INFINITY));
        _mm512_storeu_ps(bases.as_mut_ptr(), _mm512_maskz_mov_ps(seen, new));
        _mm512_storeu_ps(corrections.as_mut_ptr(), exp2(_mm512_sub_ps(old, new)));
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, old)
    };
    for (i, (row, total)) in scores[..count].iter_mut().zip(totals).enumerate() {
        // SAFETY: as above; a row of sums is a multiple of sixteen wide and inside the slice.
        unsafe {
            let mut sum = _mm512_loadu_ps(total.as_ptr());
            if grown >> i & 1 == 1 {
                let correction = _mm512_set1_ps(corrections[i]);
                sum = _mm512_mul_ps(sum, correction);
                for s in part.sums[i * width..][..width].as_chunks_mut::<16>().0 {
                    _mm512_storeu_ps(s.as_mut_ptr(), _mm512_mul_ps(_mm512_loadu_ps(s.as_ptr()), correction));
                }
            }
            let base = _mm512_set1_ps(bases[i]);
            let power = |at: usize| exp2(_mm512_sub_ps(_mm512_loadu_ps(row.as_ptr().add(at)), base));
            let weights = [power(0), power(16), power(32), power(48)];
            let both = [_mm512_add_ps(weights[0], weights[1]), _mm512_add_ps(weights[2], weights[3])];
            sum = _mm512_add_ps(sum, _mm512_add_ps(both[0], both[1]));
            _mm512_storeu_ps(total.as_mut_ptr(), sum);
            let to = row.as_mut_ptr().cast::<u8>();
            narrow(weights[0], weights[1], to);
            narrow(weights[2], weights[3], to.add(64));
        }
    }
}

/// The largest score of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn maxima(scores: &[[f32; PAGE]; ROWS]) -> __m512 {
    let row = |i: usize| {
        // SAFETY: four vectors of the row.
        let [a, b, c, d] = [0, 16, 32, 48].map(|at| unsafe { _mm512_loadu_ps(scores[i].as_ptr().add(at)) });
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        _mm512_max_ps(d, _mm512_max_ps(c, _mm512_max_ps(b, _mm512_max_ps(a, none))))
    };
    // Rows in pairs, fours and eights share a vector; the quarters of the last one are rows 0, 8, 4 and 12 and those after them.
    let pair = |i: usize| {
        let (a, b) = (row(i), row(i + 8));
        _mm512_max_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    };
    let four = |i: usize| {
        let (a, b) = (pair(i), pair(i + 4));
        _mm512_max_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    let mixed = |a: __m512, b: __m512| _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let all = mixed(mixed(four(0), four(2)), mixed(four(1), four(3)));
    _mm512_shuffle_f32x4::<0b11_01_10_00>(all, all)
}

/// `2^x` of what is not above 0, within a relative 7e-6; zero below -126.5, as of -inf. NaN stays NaN.
///
/// The whole part goes to the exponent; of the rest, in -0.5..=0.5, a polynomial of degree 4 that is 1 at 0.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn exp2(x: __m512) -> __m512 {
    /// 1.5 * 2^23 + 127: adding it rounds to the nearest integer, which then stands in the low bits with the exponent's bias.
    const MAGIC: f32 = 12_583_039.0;
    let all = |x: f32| _mm512_set1_ps(x);
    // The second operand is taken where either is NaN.
    let x = _mm512_max_ps(all(-127.0), x);
    let shifted = _mm512_add_ps(x, all(MAGIC));
    let r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, all(MAGIC)));
    let p = _mm512_fmadd_ps(all(9.656_71e-3), r, all(5.583_828_3e-2));
    let p = _mm512_fmadd_ps(p, r, all(0.240_225_3));
    let p = _mm512_fmadd_ps(p, r, all(0.693_136_75));
    let p = _mm512_fmadd_ps(p, r, all(1.0));
    _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted))))
}
