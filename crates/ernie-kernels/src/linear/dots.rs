//! Blocks of dot products: a few input rows by a few weight rows, sixteen lanes each, kept in registers.

use std::ops::Range;

use crate::lanes::Lanes;
use crate::level::Isa;
use crate::pool::Shared;

/// Elements of the inner dimension that are summed in lanes before the sum is added to the output.
///
/// Part of the definition of the result. Six input rows of a block (24 KiB) stay in the first-level cache.
pub(super) const BLOCK: usize = 1024;

/// How the weight elements of a task lie in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
    I8,
}

/// All input rows by some of the weight rows.
pub(super) struct Task<'a> {
    /// `[rows, k]`
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) k: usize,
    /// Width of an output row.
    pub(super) out: usize,
    /// Which outputs, that is, weight rows.
    pub(super) outputs: Range<usize>,
}

/// Writes outputs `task.outputs` of each row; `weights` holds those weight rows and no others.
///
/// # Safety
/// No other thread touches these columns of `y` meanwhile.
///
/// # Panics
/// When a length does not fit.
pub(super) unsafe fn run(isa: Isa, task: &Task<'_>, element: Element, weights: &[u8], y: &Shared<'_, f32>) {
    let size = match element {
        Element::F32 => 4,
        Element::F16 | Element::Bf16 => 2,
        Element::I8 => 1,
    };
    assert!(
        task.x.len() == task.rows * task.k
            && weights.len() == task.outputs.len() * task.k * size
            && task.outputs.end <= task.out,
        "linear: task lengths"
    );
    if task.rows == 0 || task.outputs.is_empty() {
        return;
    }
    assert!((task.rows - 1) * task.out + task.outputs.end <= y.len(), "linear: task outputs");
    // SAFETY: inside the slice: its last element to be written was checked just now.
    let y = unsafe { y.pointer().add(task.outputs.start) };
    let (x, w, n) = (task.x.as_ptr(), weights.as_ptr(), task.outputs.len());
    // SAFETY: lengths were checked above; that no one else writes these columns is this function's contract.
    unsafe {
        match element {
            Element::F32 => run_f32(isa, x, w, y, task.rows, n, task.k, task.out),
            Element::F16 => run_f16(isa, x, w, y, task.rows, n, task.k, task.out),
            Element::Bf16 => run_bf16(isa, x, w, y, task.rows, n, task.k, task.out),
            Element::I8 => run_i8(isa, x, w, y, task.rows, n, task.k, task.out),
        }
    }
}

/// A stored element type: its size and how sixteen of them are read.
trait Stored {
    const SIZE: usize;
    /// # Safety
    /// As [`Lanes::load`], for 16 elements of this type.
    unsafe fn load<V: Lanes>(at: *const u8) -> V;
}

macro_rules! stored {
    ($name:ident, $size:expr, $at:ident => $load:expr) => {
        struct $name;
        impl Stored for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<V: Lanes>($at: *const u8) -> V {
                // SAFETY: the same contract.
                unsafe { $load }
            }
        }
    };
}

stored!(F32, 4, at => V::load(at.cast()));
stored!(F16, 2, at => V::load_f16(at));
stored!(Bf16, 2, at => V::load_bf16(at));
stored!(I8, 1, at => V::load_i8(at));

macro_rules! instance {
    ($name:ident, $generic:ident, $stored:ty) => {
        #[allow(clippy::too_many_arguments)]
        #[inline(always)]
        unsafe fn $generic<V: Lanes>(x: *const f32, w: *const u8, y: *mut f32, rows: usize, n: usize, k: usize, out: usize) {
            // SAFETY: the same contract.
            unsafe { all_blocks::<V, $stored>(x, w, y, rows, n, k, out) }
        }
        with_lanes! {
            /// # Safety
            /// As [`all_blocks`].
            unsafe fn $name = $generic(x: *const f32, w: *const u8, y: *mut f32, rows: usize, n: usize, k: usize, out: usize)
        }
    };
}

instance!(run_f32, generic_f32, F32);
instance!(run_f16, generic_f16, F16);
instance!(run_bf16, generic_bf16, Bf16);
instance!(run_i8, generic_i8, I8);

/// # Safety
/// `x` holds `rows * k` floats, `w` `n * k` elements, and `y` may be written at `row * out + column` for `column < n`.
#[inline(always)]
unsafe fn all_blocks<V: Lanes, S: Stored>(
    x: *const f32,
    w: *const u8,
    y: *mut f32,
    rows: usize,
    n: usize,
    k: usize,
    out: usize,
) {
    // An inner dimension of zero still has one (empty) block, which writes the zeros.
    for block in 0..k.div_ceil(BLOCK).max(1) {
        let start = block * BLOCK;
        let len = (k - start).min(BLOCK);
        let add = block > 0;
        let mut row = 0;
        while row < rows {
            let m = (rows - row).min(V::DOT_ROWS);
            // SAFETY: offsets stay inside what this function's contract covers: rows `row..row + m`, `len` elements from `start`.
            unsafe {
                let (x, w, y) = (x.add(row * k + start), w.add(start * S::SIZE), y.add(row * out));
                match m {
                    1 => columns::<V, S, 1>(x, w, y, n, k, len, out, add),
                    2 => columns::<V, S, 2>(x, w, y, n, k, len, out, add),
                    3 => columns::<V, S, 3>(x, w, y, n, k, len, out, add),
                    4 => columns::<V, S, 4>(x, w, y, n, k, len, out, add),
                    5 => columns::<V, S, 5>(x, w, y, n, k, len, out, add),
                    _ => columns::<V, S, 6>(x, w, y, n, k, len, out, add),
                }
            }
            row += m;
        }
    }
}

/// `M` input rows by all `n` weight rows.
///
/// # Safety
/// As [`all_blocks`], for `M` rows and `len` elements of each row.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn columns<V: Lanes, S: Stored, const M: usize>(
    x: *const f32,
    w: *const u8,
    y: *mut f32,
    n: usize,
    k: usize,
    len: usize,
    out: usize,
    add: bool,
) {
    let mut column = 0;
    // SAFETY: columns stay below `n`; the rest is this function's contract.
    unsafe {
        if V::DOT_COLUMNS == 4 {
            while column + 4 <= n {
                let sums = block::<V, S, M, 4>(x, w.add(column * k * S::SIZE), k, len);
                for (m, sums) in sums.iter().enumerate() {
                    for (c, sum) in V::fold4(*sums).into_iter().enumerate() {
                        put(y.add(m * out + column + c), sum, add);
                    }
                }
                column += 4;
            }
        } else {
            while column + 2 <= n {
                let sums = block::<V, S, M, 2>(x, w.add(column * k * S::SIZE), k, len);
                for (m, sums) in sums.iter().enumerate() {
                    for (c, sum) in sums.iter().enumerate() {
                        put(y.add(m * out + column + c), sum.fold(), add);
                    }
                }
                column += 2;
            }
        }
        while column < n {
            let sums = block::<V, S, M, 1>(x, w.add(column * k * S::SIZE), k, len);
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

/// Lane sums of `M` input rows by `N` weight rows over `len` elements; rows are `k` elements apart.
///
/// # Safety
/// As [`columns`], for `N` weight rows.
#[inline(always)]
unsafe fn block<V: Lanes, S: Stored, const M: usize, const N: usize>(
    x: *const f32,
    w: *const u8,
    k: usize,
    len: usize,
) -> [[V; N]; M] {
    // SAFETY: whole vectors are read while 16 elements remain, then the rest by part; all inside the contract's rows.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        let mut i = 0;
        while i + 16 <= len {
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = S::load::<V>(w.add((n * k + i) * S::SIZE));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::load(x.add(m * k + i));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = left.fma(right, *sum);
                }
            }
            i += 16;
        }
        if i < len {
            let rest = len - i;
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                // Zero bytes are zero in every element type.
                let mut padded = [0_u8; 64];
                std::ptr::copy_nonoverlapping(w.add((n * k + i) * S::SIZE), padded.as_mut_ptr(), rest * S::SIZE);
                *right = S::load::<V>(padded.as_ptr());
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::load_part(x.add(m * k + i), rest);
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = left.fma(right, *sum);
                }
            }
        }
        sums
    }
}
