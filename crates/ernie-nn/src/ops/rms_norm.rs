//! Root-mean-square normalisation.

use ernie_kernels::norm;

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::{Result, Value};

/// `y = w · x / sqrt(mean(x²) + eps)` by row (Zhang and Sennrich, arXiv:1910.07467).
///
/// # Shapes
/// `x: [T, h]`, `weight: [h]` → `[T, h]`. The statistic is f32; its reciprocal root is kept for the
/// gradient, not the normalised rows.
pub fn rms_norm(x: &Value, weight: &Value, eps: f64) -> Result<Value> {
    let (rows, hidden) = (x.dim(0), x.dim(1));
    ensure(x.shape().len() == 2 && weight.shape() == [hidden], "rms_norm", || {
        format!("x {:?}, weight {:?}", x.shape(), weight.shape())
    })?;
    let mut y = vec![0.0; rows * hidden];
    let mut scales = vec![0.0; rows];
    norm::forward(&x.slice()?, &weight.slice()?, eps as f32, &mut y, &mut scales);
    let (keep_x, keep_w) = (x.tensor().clone(), weight.tensor().clone());
    Ok(Value::from_op(tensor(y, &[rows, hidden])?, &[x, weight], move |dy| {
        let mut dx = vec![0.0; rows * hidden];
        let mut dw = vec![0.0; hidden];
        let (x, w) = (Slice::of(&keep_x)?, Slice::of(&keep_w)?);
        norm::backward(&x, &w, &scales, &Slice::of(dy)?, &mut dx, &mut dw);
        Ok(vec![Some(tensor(dx, &[rows, hidden])?), Some(tensor(dw, &[hidden])?)])
    }))
}
