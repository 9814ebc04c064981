//! Bytes with one scale a row in tile registers: the definition of [`Kind::Int8`](super::Kind::Int8) at
//! [`Level::Amx`](crate::Level::Amx).
//!
//! A panel's line of four `k` becomes two lines of bf16 on its way into a tile: one of the even two `k`, one of the odd two. The
//! integers of weights with their offset, `0..=255`, are exact in bf16, inputs are rounded to it ([`super::brains`]). A step is 64 `k`: a product of tiles for the even
//! ones and then one for the odd ones, added to the same sums, from the first step to the last. So an output's bits
//! depend on its row and its weights alone: not on the rows beside it, the tile it fell into, or where `k` was blocked, because a tile
//! that is put down and taken up again is exact. At the end `y = ((sum - offset of the input's row) * scale of the weights' row) *
//! factor of the input's row`.
//!
//! Up to sixteen rows wait for memory: each panel is widened step by step through a buffer that stays in the first-level cache, a
//! step ahead of the products. More rows share one widening: [`DEPTH`] of two panels stay there for all of them.

use std::arch::x86_64::*;
use std::ops::Range;

use super::brains::{DEPTH, Rows, STEP, STRIDE, Side};
use super::layout::PANEL;
use super::matrix::Matrix;
use crate::Level;
use crate::amx::{self, ROWS, Tiles};
use crate::level::Isa;
use crate::pool::{self, Shared};

/// Rows that share a widening.
const HEIGHT: usize = 512;

/// Most panels that a task should have: their sums stay in the second-level cache beside the input.
const PANELS: usize = 12;

/// Rows up to which panels are streamed.
const STREAMED: usize = ROWS;

/// Panels that are streamed side by side.
const STREAMS: usize = 4;

/// Most panels whose sums wait to be written together: each row of outputs lies in a page of its own, which one visit should do for.
const WAITING: usize = 64;

/// Bytes of a panel's step, and of the same step widened to a tile of the even and one of the odd `k`.
const NARROW: usize = STEP * PANEL;
const WIDE: usize = 2 * NARROW;

/// How far ahead of their use weights are asked into the second-level and into the first-level cache.
const FAR: usize = 4096;
const NEAR: usize = 512;

/// Panels of a task of a product of `rows` rows, where `worth` are worth handing over: enough tasks to go round.
pub(super) fn panels_a_task(panels: usize, rows: usize, worth: usize) -> usize {
    let share = panels.div_ceil(4 * pool::threads());
    if rows <= STREAMED { share.max(worth).next_multiple_of(STREAMS) } else { share.next_multiple_of(2).min(PANELS) }
}

/// One call's operands.
struct Call<'a> {
    w: &'a Matrix,
    x: Rows<'a>,
    rows: usize,
    y: &'a Shared<'a, f32>,
}

/// Computes the outputs of some panels for all rows.
///
/// # Safety
/// No other thread touches these columns of `y`.
///
/// # Panics
/// At another level than [`Level::Amx`](crate::Level::Amx), or when a length does not fit.
pub(super) unsafe fn run(isa: Isa, w: &Matrix, x: Rows<'_>, y: &Shared<'_, f32>, panels: Range<usize>) {
    let rows = x.sides.len();
    assert!(isa.level() == Level::Amx, "no tiles at {}", isa.level());
    assert!(
        panels.end <= w.layout.panels()
            && (w.layout.k == 0
                || x.bytes.len() >= (w.layout.k - 1) / DEPTH * x.deeper + (rows + 2 * ROWS - 1) * STRIDE)
            && w.panels().len() >= panels.end * w.layout.panel_bytes()
            && w.row_scales().len() >= panels.end * PANEL
            && y.len() >= rows * w.layout.out,
        "multiply: panels {panels:?} outside their operands"
    );
    if rows == 0 || panels.is_empty() {
        return;
    }
    if w.layout.padded == 0 {
        let (out, first) = (w.layout.out, panels.start * PANEL);
        for row in 0..rows {
            let columns = row * out + first..row * out + out.min(panels.end * PANEL);
            // SAFETY: these columns are this caller's.
            unsafe { y.part(columns) }.fill(0.0);
        }
        return;
    }
    let call = Call { w, x, rows, y };
    let _tiles = Tiles::shape(isa, rows.min(ROWS), ROWS);
    // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features; tiles are shaped; the
    // operands were just checked, and the columns are this caller's.
    unsafe {
        if rows <= STREAMED {
            call.streams(panels);
        } else {
            call.blocks(panels);
        }
    }
}

/// Widens a step of a panel: `lines` of four `k` each (the rest of sixteen is zeros) to a tile of the even and one of the odd `k`.
///
/// A byte in the upper half of 16 bits is its integer times 256. As a binary16 it has five bits of exponent and, being an integer of
/// eight bits, no fraction beyond the first seven: shifted by three places that is a bf16 of the same number times `2^-112`. So
/// few instructions matter: one row of input waits for them.
///
/// # Safety
/// `lines * 64` bytes can be read and [`WIDE`] written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn widen(from: *const u8, lines: usize, to: *mut u8) {
    let upper = _mm512_set1_epi16(0xFF00_u16 as i16);
    let brain = |integers: __m512i| {
        let halves: __m512i;
        // SAFETY: AVX-512 FP16 is part of the level; the stable language has no function for this instruction. Integers of
        // eight bits times a power of two are exact.
        unsafe {
            std::arch::asm!(
                "vcvtuw2ph {to}, {from}", to = lateout(zmm_reg) halves, from = in(zmm_reg) integers,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        _mm512_srli_epi16::<3>(halves)
    };
    for line in 0..ROWS {
        // SAFETY: by contract; a fetch ahead may point anywhere.
        unsafe {
            let at = from.wrapping_add(line * 64);
            let (even, odd) = (to.add(line * 64).cast(), to.add(NARROW + line * 64).cast());
            if line >= lines {
                _mm512_store_si512(even, _mm512_setzero_si512());
                _mm512_store_si512(odd, _mm512_setzero_si512());
                continue;
            }
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(FAR).cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NEAR).cast());
            let bytes = _mm512_loadu_si512(at.cast());
            _mm512_store_si512(even, brain(_mm512_slli_epi16::<8>(bytes)));
            _mm512_store_si512(odd, brain(_mm512_and_si512(bytes, upper)));
        }
    }
}

/// Adds a widened step of weights, by tiles 4 and 5 of input, to tile `C`.
///
/// # Safety
/// Tiles are shaped, and [`WIDE`] bytes can be read.
#[inline(always)]
unsafe fn add<const C: u8>(wide: *const u8) {
    // SAFETY: by contract.
    unsafe {
        amx::load::<6>(wide, 64);
        amx::dot_bf16::<C, 4, 6>();
        amx::load::<7>(wide.add(NARROW), 64);
        amx::dot_bf16::<C, 5, 7>();
    }
}

impl Call<'_> {
    /// The lines of a step of a panel, which are fewer in the last one where the row is no whole number of steps.
    fn lines(&self, step: usize) -> usize {
        ((self.w.layout.padded - step * STEP) / 4).min(ROWS)
    }

    fn steps(&self) -> usize {
        self.w.layout.padded.div_ceil(STEP)
    }

    /// Up to sixteen rows by some panels, of which [`STREAMS`] are walked through side by side, far from each other: what is asked
    /// for ahead at the end of one panel is the start of the next.
    ///
    /// # Safety
    /// As [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn streams(&self, panels: Range<usize>) {
        let wide = STREAMS * WIDE / size_of::<f32>();
        let most = panels.len().min(WAITING);
        pool::scratch(wide + ROWS * most * PANEL, |scratch| {
            let (wide, sums) = scratch.split_at_mut(wide);
            for first in panels.clone().step_by(WAITING) {
                let some = first..(first + WAITING).min(panels.end);
                let groups = some.len() / STREAMS;
                // A row's sums of all these panels lie together.
                let width = some.len() * PANEL;
                // SAFETY: these panels are the caller's, and the sums have a place for each.
                unsafe {
                    for group in 0..groups {
                        self.stream::<STREAMS>(first + group, groups, wide, &mut sums[group * PANEL..], width);
                    }
                    for at in groups * STREAMS..some.len() {
                        self.stream::<1>(first + at, 1, wide, &mut sums[at * PANEL..], width);
                    }
                    for row in 0..self.rows {
                        for (panel, sums) in some.clone().zip(sums[row * width..][..width].as_chunks::<PANEL>().0) {
                            self.finish(panel, row, sums.as_ptr());
                        }
                    }
                }
            }
        });
    }

    /// The sums of `P` panels, `apart` from each other, into rows of `width`.
    ///
    /// # Safety
    /// As [`run`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn stream<const P: usize>(
        &self,
        panel: usize,
        apart: usize,
        buffer: &mut [f32],
        sums: &mut [f32],
        width: usize,
    ) {
        let apart_sums = apart * PANEL;
        assert!(
            size_of_val(buffer) >= P * WIDE && sums.len() >= (self.rows - 1) * width + (P - 1) * apart_sums + PANEL,
            "multiply: no room to widen {P} panels"
        );
        let (sums, row_bytes) = (sums.as_mut_ptr(), width * size_of::<f32>());
        let buffer = buffer.as_mut_ptr().cast::<u8>();
        let steps = self.steps();
        let weights: [*const u8; P] = std::array::from_fn(|p| self.w.panel(panel + p * apart).as_ptr());
        // SAFETY: steps are those of a panel and of a row of input; the buffer holds a step of each panel.
        unsafe {
            let ready = |step: usize, p: usize| {
                if step < steps {
                    widen(weights[p].add(step * NARROW), self.lines(step), buffer.add(p * WIDE));
                }
            };
            amx::zero::<0>();
            amx::zero::<1>();
            amx::zero::<2>();
            amx::zero::<3>();
            ready(0, 0);
            for step in 0..steps {
                let x =
                    self.x.bytes.as_ptr().add(step / (DEPTH / STEP) * self.x.deeper + step % (DEPTH / STEP) * 2 * STEP);
                amx::load::<4>(x, STRIDE);
                amx::load::<5>(x.add(STEP), STRIDE);
                // A widening goes before the products with what was widened before it, so that these find their operands written.
                if P == 1 {
                    add::<0>(buffer);
                    ready(step + 1, 0);
                    continue;
                }
                ready(step, 1);
                add::<0>(buffer);
                ready(step, 2);
                add::<1>(buffer.add(WIDE));
                ready(step, 3);
                add::<2>(buffer.add(2 * WIDE));
                ready(step + 1, 0);
                add::<3>(buffer.add(3 * WIDE));
            }
            amx::store::<0>(sums.cast(), row_bytes);
            if P > 1 {
                amx::store::<1>(sums.add(apart_sums).cast(), row_bytes);
                amx::store::<2>(sums.add(2 * apart_sums).cast(), row_bytes);
                amx::store::<3>(sums.add(3 * apart_sums).cast(), row_bytes);
            }
        }
    }

    /// Writes a panel's outputs of a row from their sums.
    ///
    /// # Safety
    /// As [`run`], and sixteen sums can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn finish(&self, panel: usize, row: usize, sums: *const f32) {
        let out = self.w.layout.out;
        let first = panel * PANEL;
        let mask = ((1_u32 << (out - first).min(PANEL)) - 1) as __mmask16;
        // SAFETY: a panel has sixteen scales; masked outputs are not written, the others are this panel's in this row.
        unsafe {
            let scales = _mm512_loadu_ps(self.w.row_scales()[first..].as_ptr());
            let Side { offset, factor } = self.x.sides[row];
            let sums = _mm512_sub_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(offset));
            let y = _mm512_mul_ps(_mm512_mul_ps(sums, scales), _mm512_set1_ps(factor));
            _mm512_mask_storeu_ps(self.y.pointer().add(row * out + first), mask, y);
        }
    }

    /// More rows, by pairs of panels.
    ///
    /// # Safety
    /// As [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn blocks(&self, panels: Range<usize>) {
        let padded = self.steps() * STEP;
        let wide = 2 * DEPTH / STEP * WIDE / size_of::<f32>();
        // All pairs' sums wait for each other: a row of outputs is then written as one stretch, not as many visits to its page.
        let height = self.rows.min(HEIGHT).next_multiple_of(2 * ROWS);
        let apart = height * 2 * PANEL;
        let together = panels.len().min(PANELS).div_ceil(2);
        pool::scratch(wide + together * apart, |scratch| {
            let (wide, sums) = scratch.split_at_mut(wide);
            for top in (0..self.rows).step_by(HEIGHT) {
                let rows = top..(top + HEIGHT).min(self.rows);
                for first in panels.clone().step_by(2 * together) {
                    let end = (first + 2 * together).min(panels.end);
                    // Input of one depth stays in the second-level cache for all pairs.
                    for from in (0..padded).step_by(DEPTH) {
                        let ks = from..(from + DEPTH).min(padded);
                        for (pair, sums) in (first..end).step_by(2).zip(sums.chunks_exact_mut(apart)) {
                            // SAFETY: the pair is the caller's, or its second panel is `end` and left out.
                            unsafe { self.pair(pair, pair + 1 < end, rows.clone(), ks.clone(), wide, sums) };
                        }
                    }
                    for row in rows.clone() {
                        for panel in first..end {
                            let (pair, second) = ((panel - first) / 2, (panel - first) % 2);
                            let at = pair * apart + (row - top) * 2 * PANEL + second * PANEL;
                            // SAFETY: the outputs are the caller's, and sums of a panel are sixteen.
                            unsafe { self.finish(panel, row, sums[at..at + PANEL].as_ptr()) };
                        }
                    }
                }
            }
        });
    }

    /// Some of `k` of two panels (or one, and then zeros) for some rows.
    ///
    /// # Safety
    /// As [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
    unsafe fn pair(
        &self,
        panel: usize,
        both: bool,
        rows: Range<usize>,
        ks: Range<usize>,
        wide: &mut [f32],
        sums: &mut [f32],
    ) {
        let steps = ks.len() / STEP;
        let second = DEPTH / STEP * WIDE;
        assert!(
            ks.len() <= DEPTH
                && size_of_val(wide) >= 2 * second
                && sums.len() >= rows.len().next_multiple_of(2 * ROWS) * 2 * PANEL,
            "multiply: no room for {} rows by {} of two panels",
            rows.len(),
            ks.len()
        );
        let wide = wide.as_mut_ptr().cast::<u8>();
        // SAFETY: steps are those of panels and rows; buffers hold what was just checked. A second tile of rows is inside the input
        // and what follows it.
        unsafe {
            for p in 0..2 {
                for step in 0..steps {
                    let whole = ks.start / STEP + step;
                    let to = wide.add(p * second + step * WIDE);
                    let lines = if p == 0 || both { self.lines(whole) } else { 0 };
                    let from = self.w.panel(if lines > 0 { panel + p } else { panel }).as_ptr();
                    widen(from.add(whole * NARROW), lines, to);
                }
            }
            let x = self.x.bytes.as_ptr().add(ks.start / DEPTH * self.x.deeper);
            for row in rows.clone().step_by(2 * ROWS) {
                let count = (rows.end - row).min(2 * ROWS);
                let sums = sums.as_mut_ptr().add((row - rows.start) * 2 * PANEL);
                let x = x.add(row * STRIDE);
                if count > ROWS {
                    block::<2>(x, wide, second, steps, sums, ks.start > 0);
                } else {
                    block::<1>(x, wide, second, steps, sums, ks.start > 0);
                }
            }
        }
    }
}

/// `R` tiles of rows (one or two) by two panels of widened weights, `second` apart, over some steps.
///
/// # Safety
/// Tiles are shaped for sixteen rows; so many rows of input, widened steps and sums (sixteen of each panel, row by row) may be
/// followed.
#[inline(always)]
unsafe fn block<const R: usize>(
    mut x: *const u8,
    mut wide: *const u8,
    second: usize,
    steps: usize,
    sums: *mut f32,
    resumes: bool,
) {
    const ROW: usize = 2 * PANEL * size_of::<f32>();
    let sums = sums.cast::<u8>();
    // SAFETY: by contract.
    unsafe {
        if resumes {
            amx::load_passing::<0>(sums, ROW);
            amx::load_passing::<1>(sums.add(ROW / 2), ROW);
            if R == 2 {
                amx::load_passing::<2>(sums.add(ROWS * ROW), ROW);
                amx::load_passing::<3>(sums.add(ROWS * ROW + ROW / 2), ROW);
            }
        } else {
            amx::zero::<0>();
            amx::zero::<1>();
            amx::zero::<2>();
            amx::zero::<3>();
        }
        // The even and the odd half of each step.
        for _ in 0..2 * steps {
            amx::load::<6>(wide, 64);
            amx::load::<7>(wide.add(second), 64);
            amx::load_passing::<4>(x, STRIDE);
            if R == 2 {
                amx::load_passing::<5>(x.add(ROWS * STRIDE), STRIDE);
            }
            amx::dot_bf16::<0, 4, 6>();
            amx::dot_bf16::<1, 4, 7>();
            if R == 2 {
                amx::dot_bf16::<2, 5, 6>();
                amx::dot_bf16::<3, 5, 7>();
            }
            x = x.add(64);
            wide = wide.add(NARROW);
        }
        amx::store::<0>(sums, ROW);
        amx::store::<1>(sums.add(ROW / 2), ROW);
        if R == 2 {
            amx::store::<2>(sums.add(ROWS * ROW), ROW);
            amx::store::<3>(sums.add(ROWS * ROW + ROW / 2), ROW);
        }
    }
}
