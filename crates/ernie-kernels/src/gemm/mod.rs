//! Dense products of matrices in any orientation, for training: of f32 here, of bf16 in [`brains`].
//!
//! Each element of a result is one chain of fused multiply-adds in the order of the inner dimension, begun at zero or at what
//! was there. So a row gives the same bits alone and among others, at any number of threads, as in [`crate::linear`].

#[cfg(target_arch = "x86_64")]
mod blocks;
pub mod brains;
#[cfg(target_arch = "x86_64")]
pub(crate) mod pairs;

use std::ops::Range;

pub use crate::floats::{Floats, FloatsMut};
use crate::level::Isa;
use crate::packed::float_blocks::{Left, Shape, product};
use crate::packed::float_pack;

/// `c = a · b`, added to `c` when `accumulate`.
///
/// # Shapes
/// `a: [m, k]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// When a length does not fit.
#[allow(clippy::many_single_char_names)] // The names of the matrix product.
pub fn nn(a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize, n: usize, accumulate: bool) {
    by_columns(Left::Rows(a), b, c, Shape { m, k, n }, accumulate);
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
    check(b, k, n);
    let isa = Isa::current();
    let bytes: &[u8] = bytemuck::cast_slice(b);
    let pack = |ks: Range<usize>, columns: Range<usize>, panel: &mut [f32]| {
        let from = &bytes[(columns.start * k + ks.start) * 4..];
        float_pack::rows(isa, from, k, columns.len(), ks.len(), panel);
    };
    product(isa, Left::Rows(a), Shape { m, k, n }, pack, c, accumulate, |_, _, _| ());
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
    by_columns(Left::Columns(a), b, c, Shape { m, k, n }, accumulate);
}

/// The product with `b: [k, n]`.
fn by_columns(a: Left<'_>, b: &[f32], c: &mut [f32], shape: Shape, accumulate: bool) {
    let Shape { k, n, .. } = shape;
    check(b, k, n);
    let isa = Isa::current();
    let pack = |ks: Range<usize>, columns: Range<usize>, panel: &mut [f32]| {
        float_pack::columns(isa, &b[ks.start * n + columns.start..], n, columns.len(), ks.len(), panel);
    };
    product(isa, a, shape, pack, c, accumulate, |_, _, _| ());
}

fn check(b: &[f32], k: usize, n: usize) {
    assert!(k.checked_mul(n) == Some(b.len()), "gemm: right side {k}x{n} with {} elements", b.len());
}
