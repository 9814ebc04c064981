//! The gated unit of the feed-forward part.

use ernie_kernels::floats::FloatVec;
use ernie_kernels::swiglu as kernel;

use crate::error::ensure;
use crate::slice::{View, from_floats};
use crate::{Result, Value, Width};

/// `silu(gate) · up`, elementwise (Shazeer, arXiv:2002.05202).
pub fn swiglu(gate: &Value, up: &Value) -> Result<Value> {
    ensure(gate.shape() == up.shape(), "swiglu", || format!("{:?} and {:?}", gate.shape(), up.shape()))?;
    let width = gate.width();
    let y = match (width, up.width()) {
        (Width::F32, Width::F32) => FloatVec::F32(kernel::product(&gate.slice()?, &up.slice()?)),
        _ => {
            let mut y = FloatVec::zeros(width, gate.tensor().elem_count());
            kernel::forward(gate.view()?.floats(), up.view()?.floats(), &mut y);
            y
        }
    };
    let kept = (gate.tensor().clone(), up.tensor().clone());
    Ok(Value::from_op(from_floats(y, gate.shape())?, &[gate, up], move |dy| {
        let (gate, up) = &kept;
        let (mut dgate, mut dup) = (FloatVec::zeros(width, gate.elem_count()), FloatVec::zeros(width, up.elem_count()));
        let views = (View::of(gate)?, View::of(up)?, View::of(dy)?);
        kernel::backward(views.0.floats(), views.1.floats(), views.2.floats(), &mut dgate, &mut dup);
        Ok(vec![Some(from_floats(dgate, gate.dims())?), Some(from_floats(dup, up.dims())?)])
    }))
}
