//! Root-mean-square normalisation.

use candle_core::Tensor;
use ernie_kernels::floats::FloatVec;
use ernie_kernels::{fresh, norm};

use crate::error::ensure;
use crate::ops::add;
use crate::slice::{Slice, View, from_floats, tensor};
use crate::value::needs_grad;
use crate::{Result, Value, Width};

/// `y = w · x / sqrt(mean(x²) + eps)` by row (Zhang and Sennrich, arXiv:1910.07467).
///
/// # Shapes
/// `x: [T, h]`, `weight: [h]` → `[T, h]`. The statistic is f32; its reciprocal root is kept for the
/// gradient, not the normalised rows.
pub fn rms_norm(x: &Value, weight: &Value, eps: f64) -> Result<Value> {
    rms_norm_to(Width::F32, x, weight, eps)
}

/// [`rms_norm`] with its result in `width`.
pub fn rms_norm_to(width: Width, x: &Value, weight: &Value, eps: f64) -> Result<Value> {
    let (rows, hidden) = (x.dim(0), x.dim(1));
    ensure(x.shape().len() == 2 && weight.shape() == [hidden], "rms_norm", || {
        format!("x {:?}, weight {:?}", x.shape(), weight.shape())
    })?;
    let (y, scales) = normed(width, x.tensor(), weight.tensor(), eps)?;
    let (keep_x, keep_w) = (x.tensor().clone(), weight.tensor().clone());
    let (x_again, w_again) = (keep_x.clone(), keep_w.clone());
    let value = Value::from_op(y, &[x, weight], move |dy| {
        let mut dx = fresh::zeros(rows * hidden);
        let mut dw = vec![0.0; hidden];
        let (x, w) = (Slice::of(&keep_x)?, Slice::of(&keep_w)?);
        norm::backward(&x, &w, &scales, View::of(dy)?.floats(), &mut dx, &mut dw);
        Ok(vec![Some(tensor(dx, &[rows, hidden])?), Some(tensor(dw, &[hidden])?)])
    });
    Ok(value.remade_by(move || Ok(normed(width, &x_again, &w_again, eps)?.0)))
}

/// The result, and the reciprocal root of each row.
fn normed(width: Width, x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Vec<f32>)> {
    let mut y = FloatVec::zeros(width, x.elem_count());
    let mut scales = vec![0.0; x.elem_count() / weight.elem_count().max(1)];
    norm::forward(&Slice::of(x)?, &Slice::of(weight)?, eps as f32, &mut y, &mut scales);
    Ok((from_floats(y, x.dims())?, scales))
}

/// `(x + branch, rms_norm(x + branch))`: the step from one part of a layer to the next. One pass over the rows where nothing
/// is recorded, with the bits of [`add`] and [`rms_norm`] one after the other.
///
/// # Shapes
/// `x, branch: [T, h]`, `weight: [h]` → `[T, h]` each.
pub fn add_rms_norm(x: &Value, branch: &Value, weight: &Value, eps: f64) -> Result<(Value, Value)> {
    if needs_grad(&[x, branch, weight]) {
        let sum = add(x, branch)?;
        let normed = rms_norm(&sum, weight, eps)?;
        return Ok((sum, normed));
    }
    let hidden = x.dim(1);
    ensure(x.shape().len() == 2 && branch.shape() == x.shape() && weight.shape() == [hidden], "add_rms_norm", || {
        format!("x {:?}, branch {:?}, weight {:?}", x.shape(), branch.shape(), weight.shape())
    })?;
    let mut sum = fresh::copy(&x.slice()?);
    let mut normed = fresh::zeros(sum.len());
    norm::add_forward(&mut sum, &branch.slice()?, &weight.slice()?, eps as f32, &mut normed);
    Ok((Value::from_vec(sum, x.shape())?, Value::from_vec(normed, x.shape())?))
}
