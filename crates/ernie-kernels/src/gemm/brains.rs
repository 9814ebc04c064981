//! Products of matrices in bf16: sides of either width and either way round, sums in f32.
//!
//! Where the processor multiplies pairs of bf16, both sides are rounded as they are packed (`blocks`). On other levels both are rounded and
//! multiplied as floats.

use super::Floats;
#[cfg(target_arch = "x86_64")]
use super::{blocks::Product, pairs::Side};
use crate::floats::{FloatsMut, Width};
#[cfg(target_arch = "x86_64")]
use crate::{Level, level::Isa};

/// `c = a · b` in bf16 with sums in f32, added to `c` when `accumulate`; sums are rounded where `c` is in bf16.
///
/// # Shapes
/// `a: [m, k]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// When a length does not fit, or a result in bf16 is to be added to.
#[allow(clippy::many_single_char_names)] // The names of the matrix product.
pub fn nn(a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, m: usize, k: usize, n: usize, accumulate: bool) {
    product(Turned { a: false, b: false }, a, b, c, [m, k, n], accumulate);
}

/// `c = a · bᵀ`, as [`nn`].
///
/// # Shapes
/// `a: [m, k]`, `b: [n, k]` → `c: [m, n]`, row by row
///
/// # Panics
/// As [`nn`].
#[allow(clippy::many_single_char_names)]
pub fn nt(a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, m: usize, k: usize, n: usize, accumulate: bool) {
    product(Turned { a: false, b: true }, a, b, c, [m, k, n], accumulate);
}

/// `c = aᵀ · b`, as [`nn`].
///
/// # Shapes
/// `a: [k, m]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// As [`nn`].
#[allow(clippy::many_single_char_names)]
pub fn tn(a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, m: usize, k: usize, n: usize, accumulate: bool) {
    product(Turned { a: true, b: false }, a, b, c, [m, k, n], accumulate);
}

/// Which sides are given as their transpose.
#[derive(Clone, Copy)]
struct Turned {
    a: bool,
    b: bool,
}

#[allow(clippy::many_single_char_names)]
fn product(turned: Turned, a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, [m, k, n]: [usize; 3], add: bool) {
    let sized = |x: usize, y: usize, len: usize| x.checked_mul(y) == Some(len);
    assert!(
        sized(m, k, a.len()) && sized(k, n, b.len()) && sized(m, n, c.len()),
        "gemm: {m}x{k} by {k}x{n} with {}, {} and {} elements",
        a.len(),
        b.len(),
        c.len()
    );
    assert!(!add || matches!(c, FloatsMut::F32(_)), "gemm: sums go on in 32 bits");
    if c.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let isa = Isa::current()
        && isa.level() >= Level::Avx512Bf16
        && k > 0
    {
        let left = Side { data: a, stride: if turned.a { m } else { k }, down: turned.a };
        let right = Side { data: b, stride: if turned.b { k } else { n }, down: !turned.b };
        return Product { isa, left, right, m, k, n, add }.run(c);
    }
    rounded(turned, a, b, c, [m, k, n], add);
}

/// The product of rounded floats.
#[allow(clippy::many_single_char_names)]
fn rounded(turned: Turned, a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, [m, k, n]: [usize; 3], add: bool) {
    let round = |x: Floats<'_>| x.to_width(Width::Bf16).view().to_vec();
    let (a, b) = (round(a), round(b));
    let multiply = |c: &mut [f32], add: bool| match (turned.a, turned.b) {
        (false, false) => super::nn(&a, &b, c, m, k, n, add),
        (false, true) => super::nt(&a, &b, c, m, k, n, add),
        (true, _) => super::tn(&a, &b, c, m, k, n, add),
    };
    match c {
        FloatsMut::F32(c) => multiply(c, add),
        c => {
            let mut wide = crate::fresh::zeros(m * n);
            multiply(&mut wide, false);
            c.set(&wide);
        }
    }
}
