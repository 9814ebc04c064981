//! The small product inside attention: `C (+)= A · B` over row-major tiles with any row stride.
//!
//! Each element of `C` is one chain of (fused) multiply-adds in the order of the inner index, so it does not depend on how
//! many rows or columns share the call.

use crate::lanes::Lanes;
use crate::level::Isa;

/// A row-major matrix inside a slice: rows start `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl Tile<'_> {
    /// Whether the slice holds `rows` of `columns` elements.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || columns <= self.stride && (rows - 1) * self.stride + columns <= self.data.len()
    }
}

/// `c[i, j] = (c[i, j] if add) + sum over l in 0..k of a[i, l] * b[l, j]` for `i < m`, `j < n`.
///
/// # Panics
/// When a matrix is outside its slice.
#[allow(clippy::too_many_arguments, clippy::many_single_char_names)] // The names of the matrix product.
pub(super) fn multiply(
    isa: Isa,
    a: Tile<'_>,
    b: Tile<'_>,
    c: &mut [f32],
    c_stride: usize,
    m: usize,
    k: usize,
    n: usize,
    add: bool,
) {
    assert!(
        a.holds(m, k) && b.holds(k, n) && Tile { data: c, stride: c_stride }.holds(m, n),
        "attention: tile {m}x{k} by {k}x{n} outside its slice"
    );
    // SAFETY: the three matrices were just found to lie in their slices, and `c` is exclusive.
    unsafe {
        run(isa, a.data.as_ptr(), a.stride, b.data.as_ptr(), b.stride, c.as_mut_ptr(), c_stride, m, k, n, add);
    }
}

with_lanes! {
    /// # Safety
    /// As [`generic`].
    unsafe fn run = generic(
        a: *const f32,
        lda: usize,
        b: *const f32,
        ldb: usize,
        c: *mut f32,
        ldc: usize,
        m: usize,
        k: usize,
        n: usize,
        add: bool,
    )
}

/// # Safety
/// The matrices `a: [m, k]`, `b: [k, n]`, `c: [m, n]` with the given row strides may be read, and `c` written.
#[allow(clippy::too_many_arguments, clippy::many_single_char_names)]
#[inline(always)]
unsafe fn generic<V: Lanes>(
    a: *const f32,
    lda: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    m: usize,
    k: usize,
    n: usize,
    add: bool,
) {
    let mut column = 0;
    while column < n {
        let wide = V::OUTER_COLUMNS == 4 && n - column >= 64;
        let width = if wide { 64 } else { (n - column).min(16) };
        let mut row = 0;
        while row < m {
            let rows = (m - row).min(V::OUTER_ROWS);
            // SAFETY: `row + rows <= m` and `column + width <= n`: inside what the contract covers.
            unsafe {
                let (a, b, c) = (a.add(row * lda), b.add(column), c.add(row * ldc + column));
                match (wide, rows) {
                    (true, 1) => block::<V, 1, 4>(a, lda, b, ldb, c, ldc, k, 16, add),
                    (true, 2) => block::<V, 2, 4>(a, lda, b, ldb, c, ldc, k, 16, add),
                    (true, 3) => block::<V, 3, 4>(a, lda, b, ldb, c, ldc, k, 16, add),
                    (true, 4) => block::<V, 4, 4>(a, lda, b, ldb, c, ldc, k, 16, add),
                    (true, 5) => block::<V, 5, 4>(a, lda, b, ldb, c, ldc, k, 16, add),
                    (true, _) => block::<V, 6, 4>(a, lda, b, ldb, c, ldc, k, 16, add),
                    (false, 1) => block::<V, 1, 1>(a, lda, b, ldb, c, ldc, k, width, add),
                    (false, 2) => block::<V, 2, 1>(a, lda, b, ldb, c, ldc, k, width, add),
                    (false, 3) => block::<V, 3, 1>(a, lda, b, ldb, c, ldc, k, width, add),
                    (false, 4) => block::<V, 4, 1>(a, lda, b, ldb, c, ldc, k, width, add),
                    (false, 5) => block::<V, 5, 1>(a, lda, b, ldb, c, ldc, k, width, add),
                    (false, _) => block::<V, 6, 1>(a, lda, b, ldb, c, ldc, k, width, add),
                }
            }
            row += rows;
        }
        column += width;
    }
}

/// `M` rows by `N` vectors; the last vector has `last` valid lanes, and `last < 16` only where `N` is 1.
///
/// # Safety
/// As [`generic`], for these rows and columns.
#[allow(clippy::too_many_arguments, clippy::many_single_char_names)]
#[inline(always)]
unsafe fn block<V: Lanes, const M: usize, const N: usize>(
    a: *const f32,
    lda: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    k: usize,
    last: usize,
    add: bool,
) {
    let whole = last == 16;
    // SAFETY: every address is a row below `M` (or `k`) and a column inside the block, which the contract covers.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        if add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let at = c.add(m * ldc + n * 16);
                    *sum = if whole { V::load(at) } else { V::load_part(at, last) };
                }
            }
        }
        for l in 0..k {
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                let at = b.add(l * ldb + n * 16);
                *right = if whole { V::load(at) } else { V::load_part(at, last) };
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*a.add(m * lda + l));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = left.fma(right, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let at = c.add(m * ldc + n * 16);
                if whole { sum.store(at) } else { sum.store_part(at, last) }
            }
        }
    }
}

/// `out[j, i] = source[i, j]` for `i < rows`, `j < columns`.
///
/// # Panics
/// When a matrix is outside its slice.
pub(super) fn transpose(isa: Isa, source: Tile<'_>, rows: usize, columns: usize, out: &mut [f32], out_stride: usize) {
    assert!(
        source.holds(rows, columns) && Tile { data: out, stride: out_stride }.holds(columns, rows),
        "attention: transpose of {rows}x{columns} outside its slice"
    );
    // SAFETY: both matrices were just found to lie in their slices, and `out` is exclusive.
    unsafe { run_transpose(isa, source.data.as_ptr(), source.stride, rows, columns, out.as_mut_ptr(), out_stride) };
}

with_lanes! {
    /// # Safety
    /// As [`generic_transpose`].
    unsafe fn run_transpose = generic_transpose(
        source: *const f32,
        from: usize,
        rows: usize,
        columns: usize,
        out: *mut f32,
        to: usize,
    )
}

/// # Safety
/// `source: [rows, columns]` may be read and `out: [columns, rows]` written, with these row strides.
#[inline(always)]
unsafe fn generic_transpose<V: Lanes>(
    source: *const f32,
    from: usize,
    rows: usize,
    columns: usize,
    out: *mut f32,
    to: usize,
) {
    let (whole_rows, whole_columns) = (rows / 16 * 16, columns / 16 * 16);
    // SAFETY: squares lie below the whole counts, single elements below the counts: inside what the contract covers.
    unsafe {
        for j in (0..whole_columns).step_by(16) {
            for i in (0..whole_rows).step_by(16) {
                V::transpose(source.add(i * from + j), from, out.add(j * to + i), to);
            }
        }
        let single = |i: usize, j: usize| *out.add(j * to + i) = *source.add(i * from + j);
        for i in whole_rows..rows {
            for j in 0..columns {
                single(i, j);
            }
        }
        for i in 0..whole_rows {
            for j in whole_columns..columns {
                single(i, j);
            }
        }
    }
}
