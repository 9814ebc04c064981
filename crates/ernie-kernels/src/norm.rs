//! Root-mean-square normalisation (Zhang & Sennrich, arXiv:1910.07467) with its gradients. The statistic is f32.

use crate::floats::{Floats, FloatsMut, SharedFloats};
use crate::level::Isa;
use crate::pool::{self, grain_rows};
use crate::simd;

/// Rows whose weight gradients are summed before the partial sums are added, in row order: part of the result's definition.
const GRADIENT_ROWS: usize = 64;

kernel! {
    fn forward_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let width = weight.len();
        for ((x, y), rstd) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
            let squares = simd::sum2(x, x, simd::fma::<FMA>);
            let r = 1.0 / (squares / width as f32 + eps).sqrt();
            *rstd = r;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = w * (x * r);
            }
        }
    }
}

kernel! {
    fn add_forward_rows(x: &mut [f32], branch: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let width = weight.len();
        let rows = x.chunks_exact_mut(width).zip(branch.chunks_exact(width)).zip(y.chunks_exact_mut(width));
        for ((x, branch), y) in rows {
            for (x, &b) in x.iter_mut().zip(branch) {
                *x += b;
            }
            let squares = simd::sum2(x, x, simd::fma::<FMA>);
            let r = 1.0 / (squares / width as f32 + eps).sqrt();
            for ((y, &x), &w) in y.iter_mut().zip(x.iter()).zip(weight) {
                *y = w * (x * r);
            }
        }
    }
}

kernel! {
    fn backward_rows(x: &[f32], weight: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32], d_weight: &mut [f32], scratch: &mut [f32]) {
        let width = weight.len();
        for (((x, dy), dx), &r) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(rstd) {
            // With n = x r: y = w n, dn = w dy, dx = r (dn - n mean(n dn)).
            for ((g, &dy), &w) in scratch.iter_mut().zip(dy).zip(weight) {
                *g = dy * w;
            }
            let dot = simd::sum2(x, scratch, simd::fma::<FMA>);
            let c = dot * r * r / width as f32;
            for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(scratch.iter()) {
                *dx = r * (g - x * c);
            }
            for ((dw, &x), &dy) in d_weight.iter_mut().zip(x).zip(dy) {
                *dw = simd::fma::<FMA>(dy, x * r, *dw);
            }
        }
    }
}

/// `y = w * (x / sqrt(mean(x^2) + eps))` for each row; keeps `1 / sqrt(...)` in `rstd` for [`backward`].
///
/// # Shapes
/// `x, y: [T, width]`, `weight: [width]`, `rstd: [T]`
///
/// # Panics
/// When a length does not fit.
pub fn forward<'a>(x: &[f32], weight: &[f32], eps: f32, y: impl Into<FloatsMut<'a>>, rstd: &mut [f32]) {
    let (width, y) = (weight.len(), y.into());
    assert!(
        x.len() == y.len() && x.len() == rstd.len() * width,
        "norm: {} inputs, {} outputs, width {width}",
        x.len(),
        y.len()
    );
    if x.is_empty() {
        return;
    }
    let (isa, y) = (Isa::current(), SharedFloats::new(y));
    pool::pieces(rstd, grain_rows(width), |row, rstd| {
        pool::scratch(width, |buffer| {
            for (row, rstd) in (row..).zip(rstd.iter_mut()) {
                let range = row * width..(row + 1) * width;
                let x = &x[range.clone()];
                let rstd = std::slice::from_mut(rstd);
                // SAFETY: each piece has rows of its own.
                unsafe { y.write(isa, range, buffer, |y| forward_rows(isa, x, weight, eps, y, rstd)) };
            }
        });
    });
}

/// The step between two layers of a decoder in one pass: `x += branch`, then `y = norm(x)`, bit for bit as
/// [`crate::elementwise::sum`] and [`forward`] one after the other.
///
/// # Shapes
/// `x, branch, y: [T, width]`, `weight: [width]`
///
/// # Panics
/// When a length does not fit.
pub fn add_forward(x: &mut [f32], branch: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    assert!(
        x.len() == y.len() && x.len() == branch.len() && (x.is_empty() || width > 0 && x.len().is_multiple_of(width)),
        "norm: {} inputs, {} added, {} outputs, width {width}",
        x.len(),
        branch.len(),
        y.len()
    );
    if x.is_empty() {
        return;
    }
    let isa = Isa::current();
    pool::rows2((x, width), (y, width), grain_rows(width), |row, x, y| {
        add_forward_rows(isa, x, &branch[row * width..][..x.len()], weight, eps, y);
    });
}

/// Overwrites `dx` with the gradient of the input and adds that of the weight to `d_weight`.
///
/// # Shapes
/// `x, dy, dx: [T, width]`, `weight, d_weight: [width]`, `rstd: [T]`
///
/// # Panics
/// When a length does not fit.
pub fn backward<'a>(
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    dy: impl Into<Floats<'a>>,
    dx: &mut [f32],
    d_weight: &mut [f32],
) {
    let (width, dy) = (weight.len(), dy.into());
    assert!(
        x.len() == rstd.len() * width && dy.len() == x.len() && dx.len() == x.len() && d_weight.len() == width,
        "norm: lengths differ"
    );
    if x.is_empty() {
        return;
    }
    let isa = Isa::current();
    let mut partial = vec![0.0_f32; rstd.len().div_ceil(GRADIENT_ROWS) * width];
    let dx = pool::Shared::new(dx);
    pool::pieces(&mut partial, width, |at, partial| {
        let row = at / width * GRADIENT_ROWS;
        let rows = row..(row + GRADIENT_ROWS).min(rstd.len());
        pool::scratch(2 * width, |scratch| {
            let (scratch, buffer) = scratch.split_at_mut(width);
            for row in rows {
                let range = row * width..(row + 1) * width;
                // SAFETY: each piece has rows of its own.
                let dx = unsafe { dx.part(range.clone()) };
                let dy = dy.read(isa, range.clone(), buffer);
                backward_rows(isa, &x[range], weight, &rstd[row..=row], dy, dx, partial, scratch);
            }
        });
    });
    for partial in partial.chunks_exact(width) {
        for (dw, &p) in d_weight.iter_mut().zip(partial) {
            *dw += p;
        }
    }
}
