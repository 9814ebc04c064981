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
fn passed_on(gradient: &Tensor, leaf: bool) -> Result<Tensor> {
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

/// Rounds to the nearest bf16 and back: what a bf16 activation keeps. For inference; not recorded.
pub fn round_to_bf16(x: &Value) -> Result<Value> {
    Value::from_vec(ernie_kernels::elementwise::rounded_to_bf16(&x.slice()?), x.shape())
}
