//! The gated unit of the feed-forward part.

use ernie_kernels::{fresh, swiglu as kernel};

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::{Result, Value};

/// `silu(gate) · up`, elementwise (Shazeer, arXiv:2002.05202).
pub fn swiglu(gate: &Value, up: &Value) -> Result<Value> {
    ensure(gate.shape() == up.shape(), "swiglu", || format!("{:?} and {:?}", gate.shape(), up.shape()))?;
    let y = kernel::product(&gate.slice()?, &up.slice()?);
    let kept = (gate.tensor().clone(), up.tensor().clone());
    Ok(Value::from_op(tensor(y, gate.shape())?, &[gate, up], move |dy| {
        let (gate, up) = &kept;
        let (mut dgate, mut dup) = (fresh::zeros(gate.elem_count()), fresh::zeros(up.elem_count()));
        kernel::backward(&Slice::of(gate)?, &Slice::of(up)?, &Slice::of(dy)?, &mut dgate, &mut dup);
        Ok(vec![Some(tensor(dgate, gate.dims())?), Some(tensor(dup, up.dims())?)])
    }))
}
