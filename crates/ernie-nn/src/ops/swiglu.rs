//! The gated unit of the feed-forward part.

use candle_core::Tensor;
use ernie_kernels::floats::{FloatVec, Floats};
use ernie_kernels::swiglu as kernel;

use crate::error::ensure;
use crate::slice::{View, from_floats};
use crate::{Result, Value};

/// `silu(gate) · up`, elementwise (Shazeer, arXiv:2002.05202).
pub fn swiglu(gate: &Value, up: &Value) -> Result<Value> {
    ensure(gate.shape() == up.shape(), "swiglu", || format!("{:?} and {:?}", gate.shape(), up.shape()))?;
    let width = gate.width();
    let y = gated(gate.tensor(), up.tensor())?;
    let kept = (gate.tensor().clone(), up.tensor().clone());
    let again = kept.clone();
    let value = Value::from_op(y, &[gate, up], move |dy| {
        let (gate, up) = &kept;
        let (mut dgate, mut dup) = (FloatVec::zeros(width, gate.elem_count()), FloatVec::zeros(width, up.elem_count()));
        let views = (View::of(gate)?, View::of(up)?, View::of(dy)?);
        kernel::backward(views.0.floats(), views.1.floats(), views.2.floats(), &mut dgate, &mut dup);
        Ok(vec![Some(from_floats(dgate, gate.dims())?), Some(from_floats(dup, up.dims())?)])
    });
    Ok(value.remade_by(move || gated(&again.0, &again.1)))
}

fn gated(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let y = match (View::of(gate)?.floats(), View::of(up)?.floats()) {
        (Floats::F32(gate), Floats::F32(up)) => FloatVec::F32(kernel::product(gate, up)),
        (gate, up) => {
            let mut y = FloatVec::zeros(gate.width(), gate.len());
            kernel::forward(gate, up, &mut y);
            y
        }
    };
    from_floats(y, gate.dims())
}
