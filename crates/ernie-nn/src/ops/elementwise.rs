//! Sums, scales and roundings.

use candle_core::Tensor;
use ernie_kernels::floats::{FloatVec, Floats};

use crate::error::ensure;
use crate::slice::{self, Slice, View, from_floats, tensor, wide};
use crate::{Result, Value, Width};

/// `a + b`, of one shape; in 32 bits where one of them is.
pub fn add(a: &Value, b: &Value) -> Result<Value> {
    ensure(a.shape() == b.shape(), "add", || format!("{:?} and {:?}", a.shape(), b.shape()))?;
    let leaves = [a.is_leaf(), b.is_leaf()];
    Ok(Value::from_op(slice::sum(a.tensor(), b.tensor())?, &[a, b], move |gradient| {
        leaves.iter().map(|&leaf| Ok(Some(passed_on(gradient, leaf)?))).collect()
    }))
}

/// A gradient as it came. A leaf keeps it and adds to it where it lies, so it gets one of its own.
pub(super) fn passed_on(gradient: &Tensor, leaf: bool) -> Result<Tensor> {
    Ok(if leaf { gradient.copy()? } else { gradient.clone() })
}

/// Adds `row: [n]` to each row of `x: [T, n]`.
pub fn add_row(x: &Value, row: &Value) -> Result<Value> {
    let (n, width) = (x.dim(1), x.width());
    ensure(row.shape() == [n], "add_row", || format!("{:?} and {:?}", x.shape(), row.shape()))?;
    let (mut sum, addend) = (x.to_vec()?, row.slice()?);
    sum.chunks_exact_mut(n.max(1)).for_each(|line| line.iter_mut().zip(&*addend).for_each(|(x, b)| *x += b));
    drop(addend);
    let sum = match width {
        Width::F32 => FloatVec::F32(sum),
        width => Floats::F32(&sum).to_width(width),
    };
    let (sum, leaf) = (from_floats(sum, x.shape())?, x.is_leaf());
    Ok(Value::from_op(sum, &[x, row], move |gradient| {
        let mut total = vec![0.0; n];
        for line in Slice::of(&wide(gradient)?)?.chunks_exact(n.max(1)) {
            total.iter_mut().zip(line).for_each(|(total, share)| *total += share);
        }
        Ok(vec![Some(passed_on(gradient, leaf)?), Some(tensor(total, &[n])?)])
    }))
}

/// `factor · x`, as wide as `x`.
pub fn scale(x: &Value, factor: f64) -> Result<Value> {
    let times = move |x: &Tensor| {
        let view = View::of(x)?;
        let mut data = view.floats().to_width(view.floats().width());
        ernie_kernels::elementwise::scale(&mut data, factor as f32);
        from_floats(data, x.dims())
    };
    Ok(Value::from_op(times(x.tensor())?, &[x], move |gradient| Ok(vec![Some(times(gradient)?)])))
}

/// The sum of all elements, as a value of shape `[1]`. Accumulates in f64.
pub fn sum(x: &Value) -> Result<Value> {
    let total: f64 = x.slice()?.iter().map(|&element| f64::from(element)).sum();
    let shape = x.shape().to_vec();
    Ok(Value::from_op(tensor(vec![total as f32], &[1])?, &[x], move |gradient| {
        let seed = Slice::of(gradient)?[0];
        Ok(vec![Some(tensor(vec![seed; shape.iter().product()], &shape)?)])
    }))
}

/// `Σ weights · x`, as a value of shape `[1]`. Accumulates in f64.
pub fn weighted_sum(x: &Value, weights: &Tensor) -> Result<Value> {
    let shapes = || format!("{:?} and {:?}", x.shape(), weights.dims());
    ensure(x.shape() == weights.dims(), "weighted_sum", shapes)?;
    let pairs = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
    let total = pairs(&x.slice()?, &Slice::of(weights)?);
    let weights = weights.clone();
    Ok(Value::from_op(tensor(vec![total as f32], &[1])?, &[x], move |gradient| {
        let seed = Slice::of(gradient)?[0];
        let shares = Slice::of(&weights)?.iter().map(|weight| weight * seed).collect();
        Ok(vec![Some(tensor(shares, weights.dims())?)])
    }))
}

/// The columns of `a: [T, m]` and then those of `b: [T, n]`: `[T, m + n]`, as wide as both.
///
/// # Errors
/// [`crate::Error::Shape`] for other numbers of rows or two widths.
pub fn concat(a: &Value, b: &Value) -> Result<Value> {
    let ([rows, m], [_, n]) = ([a.dim(0), a.dim(1)], [b.dim(0), b.dim(1)]);
    let fits = a.shape() == [rows, m] && b.shape() == [rows, n] && a.width() == b.width();
    ensure(fits, "concat", || format!("{a:?} and {b:?}"))?;
    let joined = match (a.view()?.floats(), b.view()?.floats()) {
        (Floats::F32(a), Floats::F32(b)) => FloatVec::F32(side_by_side(a, m, b, n)),
        (Floats::Bf16(a), Floats::Bf16(b)) => FloatVec::Bf16(side_by_side(a, m, b, n)),
        _ => FloatVec::F32(Vec::new()),
    };
    Ok(Value::from_op(from_floats(joined, &[rows, m + n])?, &[a, b], move |gradient| {
        let parts = match View::of(gradient)?.floats() {
            Floats::F32(g) => [columns(g, m + n, 0..m), columns(g, m + n, m..m + n)].map(FloatVec::F32),
            Floats::Bf16(g) => [columns(g, m + n, 0..m), columns(g, m + n, m..m + n)].map(FloatVec::Bf16),
        };
        let [left, right] = parts;
        Ok(vec![Some(from_floats(left, &[rows, m])?), Some(from_floats(right, &[rows, n])?)])
    }))
}

fn side_by_side<T: Copy>(a: &[T], m: usize, b: &[T], n: usize) -> Vec<T> {
    let lines = a.chunks_exact(m.max(1)).zip(b.chunks_exact(n.max(1)));
    lines.flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}

fn columns<T: Copy>(x: &[T], width: usize, chosen: std::ops::Range<usize>) -> Vec<T> {
    x.chunks_exact(width.max(1)).flat_map(|line| &line[chosen.clone()]).copied().collect()
}

/// The same numbers in 32 bits; the gradient goes on as it comes.
pub fn widen(x: &Value) -> Result<Value> {
    if x.width() == Width::F32 {
        return Ok(x.clone());
    }
    Ok(Value::from_op(wide(x.tensor())?, &[x], |gradient| Ok(vec![Some(gradient.clone())])))
}

/// Rounds to the nearest bf16 and back: what a bf16 activation keeps. For inference; not recorded.
pub fn round_to_bf16(x: &Value) -> Result<Value> {
    Value::from_vec(ernie_kernels::elementwise::rounded_to_bf16(&x.slice()?), x.shape())
}
