//! Rows of input as bf16 in the order of [`super::bytes_amx`]: what bytes are multiplied by in tile registers.

use std::ops::Range;

use super::buffer::Scratch;
use super::rounding::TINY;
use crate::Level;
use crate::level::Isa;
use crate::pool::{self, Shared};

/// Elements of a row in a step of the kernels: 64 bytes of the even ones, then 64 of the odd ones.
pub(super) const STEP: usize = 64;

/// Elements of all rows that lie together: a walk down the rows touches few pages.
pub(super) const DEPTH: usize = 512;

/// Bytes of so much of a row, and a line more: rows whose distance is a power of two would fight for the same sets of a cache.
pub(super) const STRIDE: usize = 2 * DEPTH + 64;

/// Rows of memory after the last, so that two tiles of sixteen rows that begin in the input may end behind it.
const SPARE: usize = 31;

/// The power of two that the integers of weights come with: what is left of a binary16's exponent in that of a bf16, and the
/// eight bits that a byte is shifted by.
const WEIGHTS: i32 = -104;

/// Rows as bf16, scaled by a power of two each so that the largest element of a row lies in `2^126..2^127` (in `2^17..` if the row is
/// below one everywhere): then no product with weights that come with `2^-104` leaves the range of f32, whatever the row's magnitude.
pub(super) struct Brains {
    memory: Scratch,
    sides: Vec<Side>,
}

/// What makes a row's sums outputs, but for the scale of the weights.
#[derive(Clone, Copy, Default)]
pub(super) struct Side {
    /// What the offset of 128 that weights are stored with adds to a sum: is taken off first.
    pub(super) offset: f32,
    /// What is left is multiplied by: a power of two; zero for a row of zeros, NaN for one that holds a NaN or an infinity.
    pub(super) factor: f32,
}

/// Some of the rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// [`DEPTH`] elements of the first row, [`STRIDE`] bytes after them those of the next, and so on; after [`Self::deeper`] bytes
    /// the next elements. 31 rows of anything follow the last.
    pub(super) bytes: &'a [u8],
    pub(super) deeper: usize,
    /// One a row.
    pub(super) sides: &'a [Side],
}

impl Brains {
    /// Rounds `x: [rows, k]`.
    pub(super) fn new(isa: Isa, x: &[f32], rows: usize, k: usize) -> Self {
        let (depths, deeper) = (k.div_ceil(DEPTH), (rows + SPARE) * STRIDE);
        let mut memory = Scratch::new(depths * deeper);
        let mut sides = vec![Side::default(); rows];
        let bytes = Shared::new(&mut memory.bytes_mut()[..depths * deeper]);
        let grain = pool::grain_rows(k);
        pool::pieces(&mut sides, grain, |first, sides| {
            for (i, side) in sides.iter_mut().enumerate() {
                let (row, at) = (first + i, (first + i) * STRIDE);
                let x = &x[row * k..][..k];
                let scale;
                (scale, side.factor) = scales(isa, x);
                for (depth, x) in x.chunks(DEPTH).enumerate() {
                    // SAFETY: a row's part of each depth belongs to this row alone.
                    let to = unsafe { bytes.part(depth * deeper + at..depth * deeper + at + 2 * DEPTH) };
                    side.offset += round(isa, x, scale, to);
                }
            }
        });
        Brains { memory, sides }
    }

    pub(super) fn rows(&self, rows: Range<usize>) -> Rows<'_> {
        let deeper = (self.sides.len() + SPARE) * STRIDE;
        Rows { bytes: &self.memory.bytes()[rows.start * STRIDE..], deeper, sides: &self.sides[rows] }
    }
}

/// The power of two that a row is multiplied by, and that for its sums.
fn scales(isa: Isa, x: &[f32]) -> (f32, f32) {
    let power = |exponent: i32| 2_f32.powi(exponent);
    let top = top(isa, x);
    if top >= f32::INFINITY.to_bits() {
        (0.0, f32::NAN)
    } else if f32::from_bits(top) < TINY {
        (0.0, 0.0)
    } else {
        // Two to more than 127 is no float: smaller rows stay below `2^126`, by no more than what their sums have to spare.
        let up = (126 - ((top >> 23) as i32 - 127)).min(127);
        (power(up), power(-WEIGHTS - up))
    }
}

kernel! {
    /// The bits of the largest magnitude. As integers they order as magnitudes do, infinities and NaN above all.
    fn top(x: &[f32]) -> u32 {
        x.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max)
    }
}

/// Rounds elements times a power of two (to nearest, ties to even) and gives what weights of 128 everywhere would add up to. Zeros
/// follow the last element in its step.
///
/// # Panics
/// When `to` is too short, or at a level without bf16.
fn round(isa: Isa, x: &[f32], scale: f32, to: &mut [u8]) -> f32 {
    assert!(isa.level() >= Level::Avx512Bf16 && x.len().next_multiple_of(STEP) * 2 <= to.len(), "rows of bf16");
    // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features.
    unsafe { wide(x, scale, to) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
fn wide(x: &[f32], scale: f32, to: &mut [u8]) -> f32 {
    use std::arch::x86_64::*;
    let scale = _mm512_set1_ps(scale);
    let load = |at: usize| {
        let mask = ((1_u32 << x.len().saturating_sub(at).min(16)) - 1) as __mmask16;
        // SAFETY: masked lanes are not read; the others are inside `x`.
        _mm512_mul_ps(unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(at)) }, scale)
    };
    // Pairs of 128 as weights come: two bf16 in 32 bits.
    const OFFSET: u32 = ((127 + 7 + WEIGHTS) << 7) as u32;
    // SAFETY: the transmutation only renames 512 bits.
    let offset = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32((OFFSET << 16 | OFFSET) as i32)) };
    let mut sums = _mm512_setzero_ps();
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    for (at, to) in (0..x.len()).step_by(STEP).zip(to.as_chunks_mut::<{ STEP * 2 }>().0) {
        let [a, b, c, d] = [0, 16, 32, 48].map(|i| load(at + i));
        for (which, to) in [even, odd].into_iter().zip(to.as_chunks_mut::<64>().0) {
            let (low, high) = (_mm512_permutex2var_ps(a, which, b), _mm512_permutex2var_ps(c, which, d));
            let all = _mm512_cvtne2ps_pbh(high, low);
            sums = _mm512_dpbf16_ps(sums, all, offset);
            // SAFETY: 64 bytes are written to 64; the transmutation only renames them.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(all)) };
        }
    }
    _mm512_reduce_add_ps(sums)
}
