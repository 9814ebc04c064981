//! Matrices of floats rounded to pairs of bf16, in the two orders that register tiles want: rows of input, and panels of sixteen
//! outputs, both from a source that lies either way round. Only at levels that multiply such pairs.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use crate::Level;
use crate::floats::Floats;
use crate::lanes::Lanes;
use crate::level::Isa;
use crate::packed::float_amx::{Ahead, run_tiles_before};
use crate::packed::float_tile::{Block, STEP, WIDTH, run_pairs};

/// A matrix to be multiplied: `[len, k]` with `k` along its rows, or its transpose.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) data: Floats<'a>,
    /// Elements between rows of `data`.
    pub(crate) stride: usize,
    /// Whether `k` goes down the rows of `data`, and not along them.
    pub(crate) down: bool,
}

impl Side<'_> {
    /// Writes `of` (rows of the product's left matrix) over `ks` as rows of pairs, `stride` 32-bit words apart. An odd last `k` gets a
    /// zero beside it.
    ///
    /// # Panics
    /// When something is outside its slice, or at a level that does not multiply pairs.
    pub(crate) fn rows(&self, isa: Isa, of: &Range<usize>, ks: &Range<usize>, to: &mut [f32], stride: usize) {
        let words = ks.len().div_ceil(2);
        let fits = stride >= words && (of.is_empty() || (of.len() - 1) * stride + words <= to.len());
        assert!(fits, "pairs: {} rows of {words}, {stride} apart, in {}", of.len(), to.len());
        self.check(isa, of, ks);
        // SAFETY: the source holds these elements and the target these rows, as was checked; the level was too.
        unsafe {
            match (self.data, self.down) {
                (Floats::F32(x), false) => along::<f32>(x.as_ptr(), self.stride, of, ks, to.as_mut_ptr(), stride),
                (Floats::Bf16(x), false) => along::<bf16>(x.as_ptr(), self.stride, of, ks, to.as_mut_ptr(), stride),
                (Floats::F32(x), true) => turned::<f32>(x.as_ptr(), self.stride, of, ks, to.as_mut_ptr(), stride),
                (Floats::Bf16(x), true) => turned::<bf16>(x.as_ptr(), self.stride, of, ks, to.as_mut_ptr(), stride),
            }
        }
    }

    /// Writes `of` (columns of the product's right matrix) over `ks` as panels of sixteen, one after the other; columns that are not there
    /// are zeros.
    ///
    /// # Panics
    /// As [`Self::rows`].
    pub(crate) fn panels(&self, isa: Isa, of: &Range<usize>, ks: &Range<usize>, to: &mut [f32]) {
        let words = ks.len().div_ceil(2) * WIDTH;
        assert!(of.len().div_ceil(WIDTH) * words <= to.len(), "pairs: {} columns in {}", of.len(), to.len());
        self.check(isa, of, ks);
        let to = to.as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            match (self.data, self.down) {
                (Floats::F32(x), true) => lines::<f32>(x.as_ptr(), self.stride, of, ks, to, words),
                (Floats::Bf16(x), true) => lines::<bf16>(x.as_ptr(), self.stride, of, ks, to, words),
                (Floats::F32(x), false) => columns::<f32>(x.as_ptr(), self.stride, of, ks, to, words),
                (Floats::Bf16(x), false) => columns::<bf16>(x.as_ptr(), self.stride, of, ks, to, words),
            }
        }
    }

    /// The bytes of rows of pairs that can be multiplied as they lie, each in whole cache lines, and the bytes from one to the next.
    ///
    /// Rows whose distance is a multiple of 4 KiB would fight for the same sets of a second-level cache.
    pub(crate) fn lying(&self) -> Option<(&[u8], usize)> {
        let Floats::Bf16(x) = self.data else { return None };
        let stride = self.stride * size_of::<bf16>();
        let lines = x.as_ptr().align_offset(64) == 0 && stride.is_multiple_of(64) && !stride.is_multiple_of(4096);
        (lines && !self.down).then(|| (bytemuck::cast_slice(x), stride))
    }

    fn check(&self, isa: Isa, of: &Range<usize>, ks: &Range<usize>) {
        assert!(isa.level() >= Level::Avx512Bf16, "pairs of bf16 are not multiplied at {}", isa.level());
        let (across, below) = if self.down { (of, ks) } else { (ks, of) };
        let fits = across.end <= self.stride && below.end * self.stride <= self.data.len() + self.stride - across.end;
        assert!(of.is_empty() || ks.is_empty() || fits, "pairs: {of:?} by {ks:?} of {} elements", self.data.len());
    }
}

/// The product of packed sides, as the level has it: `y[rows, outs] = (y if add) + left · panels`.
///
/// # Safety
/// `left` points to `rows` rows of `k` elements in pairs, `stride` words apart, and, where there are more than sixteen and no multiple of it, to
/// memory for fifteen more; `panels` to the panels of `outs` columns, packed for `depth` elements of which `k` are used; `y` may be read and
/// written for each of `rows` rows, `ys` apart.
#[allow(clippy::too_many_arguments)] // Places and counts.
pub(crate) unsafe fn multiply(
    isa: Isa,
    (left, stride): (*const f32, usize),
    (panels, depth): (*const f32, usize),
    [rows, k, outs]: [usize; 3],
    (y, ys): (*mut f32, usize),
    add: bool,
    next: Ahead,
) {
    let k = k.div_ceil(2);
    let ws = depth.div_ceil(2) * STEP;
    let block = Block { x: left, xs: stride, rows, w: panels.cast(), ws, outs, k, y, ys, add };
    // SAFETY: by contract.
    unsafe {
        match isa.level() {
            Level::Amx => run_tiles_before(isa, &block, &next),
            _ => run_pairs(isa, &block),
        }
    }
}

/// What a source is made of.
trait Source: Copy {
    /// The first `count <= 16` elements, zeros for the rest.
    ///
    /// # Safety
    /// They may be read.
    unsafe fn sixteen(at: *const Self, count: usize) -> __m256i;

    /// The first `count <= 32` elements, zeros for the rest.
    ///
    /// # Safety
    /// They may be read.
    unsafe fn thirty_two(at: *const Self, count: usize) -> __m512i;
}

#[inline(always)]
fn mask(count: usize) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

impl Source for f32 {
    #[inline(always)]
    unsafe fn sixteen(at: *const f32, count: usize) -> __m256i {
        // SAFETY: what is masked is not read; the transmutation only renames bits.
        unsafe {
            let wide = _mm512_maskz_loadu_ps(mask(count) as __mmask16, at);
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(wide))
        }
    }

    #[inline(always)]
    unsafe fn thirty_two(at: *const f32, count: usize) -> __m512i {
        let mask = mask(count);
        // SAFETY: as above.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask as __mmask16, at);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, at.wrapping_add(16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Source for bf16 {
    #[inline(always)]
    unsafe fn sixteen(at: *const bf16, count: usize) -> __m256i {
        // SAFETY: what is masked is not read.
        unsafe { _mm256_maskz_loadu_epi16(mask(count) as __mmask16, at.cast()) }
    }

    #[inline(always)]
    unsafe fn thirty_two(at: *const bf16, count: usize) -> __m512i {
        // SAFETY: what is masked is not read.
        unsafe { _mm512_maskz_loadu_epi16(mask(count), at.cast()) }
    }
}

/// A line of sixteen pairs: of each of two rows sixteen elements.
#[inline(always)]
unsafe fn line(first: __m256i, second: __m256i) -> __m512i {
    // SAFETY: the features are the caller's.
    unsafe {
        let (first, second) = (_mm512_cvtepu16_epi32(first), _mm512_cvtepu16_epi32(second));
        _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
    }
}

/// Defines a way of packing: of a source whose lines are `from` elements apart, its `of` (rows or columns of the product) over `ks`, to rows or
/// panels that are `apart` words from each other.
macro_rules! with_pairs {
    ($(#[$meta:meta])* unsafe fn $name:ident($source:ident, $from:ident, $of:ident, $ks:ident, $to:ident, $apart:ident) $body:block) => {
        $(#[$meta])*
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
        unsafe fn $name<T: Source>(
            $source: *const T,
            $from: usize,
            $of: &Range<usize>,
            $ks: &Range<usize>,
            $to: *mut f32,
            $apart: usize,
        ) $body
    };
}

with_pairs! {
    /// Rows whose source lies the same way.
    ///
    /// # Safety
    /// Rows `of` over `ks` of the source may be read, and as many rows of words written; the processor multiplies pairs.
    unsafe fn along(source, from, of, ks, to, stride) {
        for (i, row) in of.clone().enumerate() {
            // SAFETY: by contract; a line's words are written as far as the row has any.
            unsafe {
                let source = source.add(row * from + ks.start);
                let to = to.add(i * stride).cast::<i32>();
                let mut k = 0;
                while k < ks.len() {
                    let (some, words) = ((ks.len() - k).min(32), (ks.len() - k).div_ceil(2).min(16));
                    _mm512_mask_storeu_epi32(to.add(k / 2), mask(words) as __mmask16, T::thirty_two(source.add(k), some));
                    k += 32;
                }
            }
        }
    }
}

with_pairs! {
    /// Panels of a source whose rows go along their lines.
    ///
    /// # Safety
    /// Columns `of` over `ks` of the source may be read, and their panels written; the processor multiplies pairs.
    unsafe fn lines(source, from, of, ks, panels, apart) {
        for (step, k) in ks.clone().step_by(2).enumerate() {
            for (i, column) in of.clone().step_by(WIDTH).enumerate() {
                let count = (of.end - column).min(WIDTH);
                // SAFETY: by contract.
                unsafe {
                    let at = source.add(k * from + column);
                    let second = if k + 1 < ks.end { T::sixteen(at.add(from), count) } else { _mm256_setzero_si256() };
                    let to = panels.add(i * apart + step * WIDTH);
                    _mm512_storeu_si512(to.cast(), line(T::sixteen(at, count), second));
                }
            }
        }
    }
}

with_pairs! {
    /// Rows of a source that lies the other way: lines of sixteen, turned.
    ///
    /// # Safety
    /// As [`along`], rows and columns of the source changed over.
    unsafe fn turned(source, from, of, ks, to, stride) {
        let (mut square, mut aside) = ([[0.0_f32; 16]; 16], [[0.0_f32; 16]; 16]);
        for some in (ks.start..ks.end).step_by(32) {
            let end = (some + 32).min(ks.end);
            let words = (end - some).div_ceil(2);
            for rows in (of.start..of.end).step_by(16) {
                let count = (of.end - rows).min(16);
                // SAFETY: by contract; squares hold sixteen lines of sixteen.
                unsafe {
                    lines::<T>(source, from, &(rows..rows + count), &(some..end), square.as_mut_ptr().cast(), 0);
                    let to = to.add((rows - of.start) * stride + (some - ks.start) / 2);
                    if count == 16 && words == 16 {
                        __m512::transpose(square.as_ptr().cast(), 16, to, stride);
                    } else {
                        __m512::transpose(square.as_ptr().cast(), 16, aside.as_mut_ptr().cast(), 16);
                        for (i, row) in aside.iter().enumerate().take(count) {
                            // Words are moved as bits.
                            row.as_ptr().cast::<u32>().copy_to_nonoverlapping(to.add(i * stride).cast(), words);
                        }
                    }
                }
            }
        }
    }
}

with_pairs! {
    /// Panels of a source whose columns go along their lines: sixteen rows of sixteen words, turned.
    ///
    /// # Safety
    /// As [`lines`], rows and columns of the source changed over.
    unsafe fn columns(source, from, of, ks, panels, apart) {
        for (i, column) in of.clone().step_by(WIDTH).enumerate() {
            let of = column..(column + WIDTH).min(of.end);
            let (mut square, mut aside) = ([[0.0_f32; 16]; 16], [[0.0_f32; 16]; 16]);
            for some in (ks.start..ks.end).step_by(32) {
                let end = (some + 32).min(ks.end);
                let words = (end - some).div_ceil(2);
                // SAFETY: by contract; squares hold sixteen rows of sixteen words, and those of missing columns stay zero.
                unsafe {
                    along::<T>(source, from, &of, &(some..end), square.as_mut_ptr().cast(), 16);
                    let to = panels.add(i * apart + (some - ks.start) / 2 * WIDTH);
                    if words == 16 {
                        __m512::transpose(square.as_ptr().cast(), 16, to, WIDTH);
                    } else {
                        __m512::transpose(square.as_ptr().cast(), 16, aside.as_mut_ptr().cast(), 16);
                        aside.as_ptr().cast::<u32>().copy_to_nonoverlapping(to.cast(), words * WIDTH);
                    }
                }
            }
        }
    }
}
