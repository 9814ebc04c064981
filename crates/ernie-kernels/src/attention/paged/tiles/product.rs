//! A page's products in tile registers: scores of sixteen query rows, and the values weighted with what the softmax made of them.
//!
//! Queries and weights are bf16 here, and so is the page, whose elements lie in pairs ([`super::pairs`]). A score is
//! summed over dimensions and a value over positions, 32 of them a product, in rising order: no row meets another. What a row
//! does not see has a weight of zero, and zeros leave sums as they are wherever the values are finite. Where they are not, they
//! are taken out of a copy ([`super::pairs::seen`]).

use std::arch::x86_64::*;

use super::super::PAGE;
use super::DEPTH;
use super::pairs::LINE;
use crate::amx::{self, ROWS};

/// Bytes of the weights of a page, of which a row has the first half: they take the place of its scores.
const SCORES: usize = PAGE * size_of::<f32>();

/// Rounds rows of queries times `scale` to bf16, filled up with zeros to `padded`, a multiple of [`DEPTH`].
///
/// # Safety
/// The level has AVX-512 BF16, and `to` may be written for `padded` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn round(query: &[f32], scale: f32, padded: usize, to: *mut u8) {
    let scale = _mm512_set1_ps(scale);
    let load = |at: usize| {
        let mask = ((1_u32 << query.len().saturating_sub(at).min(16)) - 1) as __mmask16;
        // SAFETY: masked lanes are not read; the others are inside the row.
        _mm512_mul_ps(unsafe { _mm512_maskz_loadu_ps(mask, query.as_ptr().wrapping_add(at)) }, scale)
    };
    for at in (0..padded).step_by(DEPTH) {
        // SAFETY: by contract.
        unsafe { narrow(load(at), load(at + 16), to.add(2 * at)) };
    }
}

/// Writes 32 floats as bf16.
///
/// # Safety
/// 64 bytes may be written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn narrow(low: __m512, high: __m512, to: *mut u8) {
    let both = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: by contract; the transmutation only renames 512 bits.
    unsafe { _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(both)) };
}

/// Sixteen rows' scores against the keys of a page: `scores[i, j] = q[i] · k[j]`, for whole panels of sixteen positions.
///
/// # Safety
/// Tiles are shaped for sixteen rows and lines. Rows of `q`, `padded` bf16 each, one after the other, `panels` (1 to 4) panels of keys, and
/// scores `[16, PAGE]` may be followed. As many bytes are asked for at `ahead` as are read of the keys; it may point anywhere.
pub(super) unsafe fn scores(
    q: *const u8,
    padded: usize,
    keys: *const u8,
    panels: usize,
    scores: *mut f32,
    ahead: Option<*const u8>,
) {
    let (panel, stride) = (padded / 2 * LINE, 2 * padded);
    // SAFETY: by contract.
    unsafe {
        amx::zero::<0>();
        amx::zero::<1>();
        amx::zero::<2>();
        amx::zero::<3>();
        for step in 0..padded / DEPTH {
            let at = step * ROWS * LINE;
            let keys = keys.add(at);
            amx::load::<4>(q.add(step * DEPTH * 2), stride);
            amx::load::<6>(keys, LINE);
            amx::dot_bf16::<0, 4, 6>();
            if panels > 1 {
                amx::load::<7>(keys.add(panel), LINE);
                amx::dot_bf16::<1, 4, 7>();
            }
            if panels > 2 {
                amx::load::<6>(keys.add(2 * panel), LINE);
                amx::dot_bf16::<2, 4, 6>();
            }
            if panels > 3 {
                amx::load::<7>(keys.add(3 * panel), LINE);
                amx::dot_bf16::<3, 4, 7>();
            }
            if let Some(ahead) = ahead {
                (0..panels).for_each(|p| ask(ahead.wrapping_add(at + p * panel)));
            }
        }
        let to = scores.cast::<u8>();
        amx::store::<0>(to, SCORES);
        if panels > 1 {
            amx::store::<1>(to.add(LINE), SCORES);
        }
        if panels > 2 {
            amx::store::<2>(to.add(2 * LINE), SCORES);
        }
        if panels > 3 {
            amx::store::<3>(to.add(3 * LINE), SCORES);
        }
    }
}

/// Asks for a tile of lines.
#[inline(always)]
fn ask(at: *const u8) {
    for line in 0..ROWS {
        // SAFETY: a prefetch reads nothing that the program could see and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line * LINE).cast()) };
    }
}

/// Adds the values of a page weighted by sixteen rows' weights: `sums[i] += sum over j of p[i, j] * v[j]`, for the halves of the page in
/// `halves`.
///
/// # Safety
/// Tiles are shaped for sixteen rows and lines. Weights in bf16 at the starts of `[16, PAGE]` floats, the panels of values of a head `padded`
/// wide, and sums `[16, padded]` may be followed. As many bytes are asked for at `ahead` as are read of the values; it may point anywhere.
pub(super) unsafe fn weigh(
    weights: *const f32,
    values: *const u8,
    padded: usize,
    halves: std::ops::Range<usize>,
    sums: *mut f32,
    ahead: Option<*const u8>,
) {
    const PANEL: usize = PAGE / 2 * LINE;
    let (weights, sums, stride) = (weights.cast::<u8>(), sums.cast::<u8>(), padded * size_of::<f32>());
    let panels = padded / 16;
    // SAFETY: by contract; panels come in pairs, as `padded` is a multiple of 32.
    unsafe {
        for first in (0..panels).step_by(4) {
            let four = panels - first > 2;
            let sums = sums.add(first * LINE);
            amx::load::<0>(sums, stride);
            amx::load::<1>(sums.add(LINE), stride);
            if four {
                amx::load::<2>(sums.add(2 * LINE), stride);
                amx::load::<3>(sums.add(3 * LINE), stride);
            }
            for half in halves.clone() {
                let at = first * PANEL + half * ROWS * LINE;
                let values = values.add(at);
                amx::load::<4>(weights.add(half * LINE), SCORES);
                amx::load::<6>(values, LINE);
                amx::dot_bf16::<0, 4, 6>();
                amx::load::<7>(values.add(PANEL), LINE);
                amx::dot_bf16::<1, 4, 7>();
                if four {
                    amx::load::<6>(values.add(2 * PANEL), LINE);
                    amx::dot_bf16::<2, 4, 6>();
                    amx::load::<7>(values.add(3 * PANEL), LINE);
                    amx::dot_bf16::<3, 4, 7>();
                }
                if let Some(ahead) = ahead {
                    (0..if four { 4 } else { 2 }).for_each(|p| ask(ahead.wrapping_add(at + p * PANEL)));
                }
            }
            amx::store::<0>(sums, stride);
            amx::store::<1>(sums.add(LINE), stride);
            if four {
                amx::store::<2>(sums.add(2 * LINE), stride);
                amx::store::<3>(sums.add(3 * LINE), stride);
            }
        }
    }
}
