//! Dense products of f32 matrices in any orientation, for gradients and for long training batches.
//!
//! These run on the `gemm` crate. For a given shape and number of threads the result is always the same; unlike
//! [`crate::linear`] the order of a sum may depend on the shape as a whole, so nothing that must agree between one row and
//! many rows may come here.

use crate::pool;

/// Products below this many multiplications are done on the calling thread.
const SERIAL: usize = 64 * 64 * 64;

/// A matrix by its strides: element `(r, c)` is at `r * rows + c * columns`.
#[derive(Clone, Copy)]
struct Strides {
    rows: usize,
    columns: usize,
}

#[allow(clippy::too_many_arguments, clippy::many_single_char_names)] // The names of the matrix product.
fn product(
    a: &[f32],
    sa: Strides,
    b: &[f32],
    sb: Strides,
    c: &mut [f32],
    m: usize,
    k: usize,
    n: usize,
    accumulate: bool,
) {
    let sized = |x: usize, y: usize, len: usize| x.checked_mul(y) == Some(len);
    assert!(
        sized(m, k, a.len()) && sized(k, n, b.len()) && sized(m, n, c.len()),
        "gemm: {m}x{k} by {k}x{n} with {}, {} and {} elements",
        a.len(),
        b.len(),
        c.len()
    );
    if c.is_empty() {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    let small = m.saturating_mul(n).saturating_mul(k) <= SERIAL;
    let threads = if small { 1 } else { pool::threads() };
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    // SAFETY: the assertion above makes every element that the strides reach lie inside its slice (a slice has at most
    // `isize::MAX` bytes, so the casts hold), and `c` is borrowed exclusively. `c` is initialised, read or not.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.as_ptr(),
            sa.columns as isize,
            sa.rows as isize,
            b.as_ptr(),
            sb.columns as isize,
            sb.rows as isize,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `c = a · b`, added to `c` when `accumulate`.
///
/// # Shapes
/// `a: [m, k]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// When a length does not fit.
#[allow(clippy::many_single_char_names)]
pub fn nn(a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize, n: usize, accumulate: bool) {
    product(a, Strides { rows: k, columns: 1 }, b, Strides { rows: n, columns: 1 }, c, m, k, n, accumulate);
}

/// `c = a · bᵀ`, added to `c` when `accumulate`.
///
/// # Shapes
/// `a: [m, k]`, `b: [n, k]` → `c: [m, n]`, row by row
///
/// # Panics
/// When a length does not fit.
#[allow(clippy::many_single_char_names)]
pub fn nt(a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize, n: usize, accumulate: bool) {
    product(a, Strides { rows: k, columns: 1 }, b, Strides { rows: 1, columns: k }, c, m, k, n, accumulate);
}

/// `c = aᵀ · b`, added to `c` when `accumulate`.
///
/// # Shapes
/// `a: [k, m]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// When a length does not fit.
#[allow(clippy::many_single_char_names)]
pub fn tn(a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize, n: usize, accumulate: bool) {
    product(a, Strides { rows: 1, columns: m }, b, Strides { rows: n, columns: 1 }, c, m, k, n, accumulate);
}
