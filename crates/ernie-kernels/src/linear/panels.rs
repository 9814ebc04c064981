//! Products of packed panels, for many rows of input.
//!
//! A panel holds a few rows with their elements interleaved sixteen by sixteen, padded with zeros to whole vectors, so that a
//! register block reads both operands as two straight streams. The sums are those of [`super::dots`], bit for bit.

use std::ops::Range;

use super::dots::BLOCK;
use crate::Level;
use crate::lanes::{Lanes, Plain};
use crate::level::Isa;
use crate::pool::Shared;

/// How rows of a given length are packed at a level.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Elements of a row with its padding.
    pub(super) padded: usize,
    /// Input rows in a panel; the last panel holds what is left.
    pub(super) left_rows: usize,
    /// Weight rows in a panel; what is left over is packed row by row.
    right_rows: usize,
}

impl Shape {
    pub(super) fn new(isa: Isa, k: usize) -> Self {
        fn of<V: Lanes>(k: usize) -> Shape {
            Shape { padded: k.next_multiple_of(16), left_rows: V::DOT_ROWS, right_rows: V::DOT_COLUMNS }
        }
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 => of::<std::arch::x86_64::__m512>(k),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => of::<crate::lanes::x86::Pair>(k),
            _ => of::<Plain>(k),
        }
    }

    pub(super) fn elements(&self, rows: usize) -> usize {
        rows * self.padded
    }

    /// The panel that weight row `row` of `rows` belongs to, its place there, and the panel's number of rows.
    pub(super) fn right_panel<'a>(
        &self,
        packed: &'a mut [f32],
        row: usize,
        rows: usize,
    ) -> (&'a mut [f32], usize, usize) {
        let whole = rows / self.right_rows * self.right_rows;
        let of = if row < whole { self.right_rows } else { 1 };
        let place = if row < whole { row % self.right_rows } else { 0 };
        let start = (row - place) * self.padded;
        (&mut packed[start..start + of * self.padded], place, of)
    }
}

kernel! {
    /// Puts a row at its place among `of` in a panel, and zeros after its end.
    fn pack_row(row: &[f32], panel: &mut [f32], place: usize, of: usize) {
        let (blocks, tail) = row.as_chunks::<16>();
        let mut slots = panel.as_chunks_mut::<16>().0.iter_mut().skip(place).step_by(of);
        // Blocks lead: a zip asks its left side first, and a slot must not be taken in vain.
        for (block, slot) in blocks.iter().zip(slots.by_ref()) {
            *slot = *block;
        }
        if let (false, Some(slot)) = (tail.is_empty(), slots.next()) {
            *slot = [0.0; 16];
            slot[..tail.len()].copy_from_slice(tail);
        }
    }
}

/// Writes columns `outputs` of `y: [rows, out]` from packed input rows and the packed weight rows of those outputs.
///
/// # Safety
/// No other thread touches these columns of `y` meanwhile.
///
/// # Panics
/// When a length does not fit.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run(
    isa: Isa,
    shape: &Shape,
    x: &[f32],
    rows: usize,
    w: &[f32],
    outputs: &Range<usize>,
    y: &Shared<'_, f32>,
    out: usize,
) {
    assert!(
        x.len() == shape.elements(rows)
            && w.len() == shape.elements(outputs.len())
            && outputs.end <= out
            && rows * out <= y.len(),
        "linear: panel lengths"
    );
    // SAFETY: lengths were just checked; exclusiveness of the columns is this function's contract.
    unsafe {
        let y = y.pointer().add(outputs.start);
        blocks(isa, x.as_ptr(), w.as_ptr(), y, rows, outputs.len(), shape.padded / 16, out);
    }
}

with_lanes! {
    /// # Safety
    /// As [`generic`].
    unsafe fn blocks = generic(x: *const f32, w: *const f32, y: *mut f32, rows: usize, n: usize, steps: usize, out: usize)
}

/// # Safety
/// `x` holds the panels of `rows` rows and `w` those of `n`, each of `steps` vectors a row and packed for this level; `y` may
/// be written at `row * out + column` for `column < n`.
#[inline(always)]
unsafe fn generic<V: Lanes>(
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    rows: usize,
    n: usize,
    steps: usize,
    out: usize,
) {
    const STEPS: usize = BLOCK / 16;
    let mut step = 0;
    while step < steps {
        let some = (steps - step).min(STEPS);
        let mut row = 0;
        while row < rows {
            let m = (rows - row).min(V::DOT_ROWS);
            // SAFETY: a panel of `m` rows starts after `row` whole rows; the block starts `step` vectors of each row into it.
            unsafe {
                let x = x.add((row * steps + step * m) * 16);
                let y = y.add(row * out);
                match m {
                    1 => columns::<V, 1>(x, w, y, n, steps, step, some, out),
                    2 => columns::<V, 2>(x, w, y, n, steps, step, some, out),
                    3 => columns::<V, 3>(x, w, y, n, steps, step, some, out),
                    4 => columns::<V, 4>(x, w, y, n, steps, step, some, out),
                    5 => columns::<V, 5>(x, w, y, n, steps, step, some, out),
                    _ => columns::<V, 6>(x, w, y, n, steps, step, some, out),
                }
            }
            row += m;
        }
        step += some;
    }
}

/// # Safety
/// As [`generic`], for one panel of `M` input rows from step `step` on, `some` steps.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn columns<V: Lanes, const M: usize>(
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    n: usize,
    steps: usize,
    step: usize,
    some: usize,
    out: usize,
) {
    let add = step > 0;
    let mut column = 0;
    // SAFETY: a panel of `N` weight rows starts after `column` whole rows, and columns stay below `n`.
    unsafe {
        if V::DOT_COLUMNS == 4 {
            while column + 4 <= n {
                let sums = block::<V, M, 4>(x, w.add((column * steps + step * 4) * 16), some);
                for (m, sums) in sums.iter().enumerate() {
                    let at = y.add(m * out + column).cast::<[f32; 4]>();
                    let mut sums = V::fold4(*sums);
                    if add {
                        let before = at.read_unaligned();
                        sums = std::array::from_fn(|c| before[c] + sums[c]);
                    }
                    at.write_unaligned(sums);
                }
                column += 4;
            }
        } else {
            while column + 2 <= n {
                let sums = block::<V, M, 2>(x, w.add((column * steps + step * 2) * 16), some);
                for (m, sums) in sums.iter().enumerate() {
                    for (c, sum) in sums.iter().enumerate() {
                        put(y.add(m * out + column + c), sum.fold(), add);
                    }
                }
                column += 2;
            }
        }
        while column < n {
            let sums = block::<V, M, 1>(x, w.add((column * steps + step) * 16), some);
            for (m, [sum]) in sums.into_iter().enumerate() {
                put(y.add(m * out + column), sum.fold(), add);
            }
            column += 1;
        }
    }
}

/// # Safety
/// `at` may be written, and read when `add`.
#[inline(always)]
unsafe fn put(at: *mut f32, sum: f32, add: bool) {
    // SAFETY: by contract.
    unsafe { *at = if add { *at + sum } else { sum } }
}

/// Lane sums of a panel of `M` rows by one of `N` over `some` steps.
///
/// # Safety
/// `M * some` and `N * some` vectors are readable.
#[inline(always)]
unsafe fn block<V: Lanes, const M: usize, const N: usize>(x: *const f32, w: *const f32, some: usize) -> [[V; N]; M] {
    // SAFETY: by contract.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        for step in 0..some {
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = V::load(w.add((step * N + n) * 16));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::load(x.add((step * M + m) * 16));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = left.fma(right, *sum);
                }
            }
        }
        sums
    }
}
