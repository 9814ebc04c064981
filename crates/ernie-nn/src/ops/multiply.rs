//! Multiplication by a weight: the op below every [`crate::Linear`].

use std::sync::Arc;

use ernie_kernels::{fresh, gemm};

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::value::needs_grad;
use crate::{Packed, Parameter, Result, Value, Weight};

/// `x: [T, in] · Wᵀ → [T, out]` for a weight in any format. Packed weights pass no gradient.
///
/// Sums are f32, in an order that depends on `in` alone: a token's result does not depend on its company.
///
/// # Errors
/// [`crate::Error::Shape`] if the inner sizes differ.
pub fn multiply(x: &Value, weight: &Weight) -> Result<Value> {
    match weight {
        Weight::Parameter(parameter) => linear(x, parameter),
        Weight::Packed(_) => {
            check(x, weight)?;
            Value::from_vec(weight.multiply(&x.slice()?)?, &[x.dim(0), weight.out_features()])
        }
    }
}

/// [`multiply`] by several weights; packed ones share the rounding of the input and one parallel region.
pub(crate) fn multiply_all<const N: usize>(x: &Value, weights: [&Weight; N]) -> Result<Vec<Value>> {
    let packed: Vec<&Packed> = weights.iter().filter_map(|weight| weight.packed()).collect();
    if packed.len() < N {
        return weights.into_iter().map(|weight| multiply(x, weight)).collect();
    }
    for weight in weights {
        check(x, weight)?;
    }
    let rows = x.dim(0);
    let results = Packed::products(&x.slice()?, x.dim(1), &packed);
    results.into_iter().zip(packed).map(|(y, w)| Value::from_vec(y, &[rows, w.out_features()])).collect()
}

/// [`multiply`] by a parameter, with gradients: `dx = dy · W`, `dW = dyᵀ · x`.
pub fn linear(x: &Value, parameter: &Arc<Parameter>) -> Result<Value> {
    let weight = Weight::Parameter(parameter.clone());
    check(x, &weight)?;
    let (rows, outs, ins) = (x.dim(0), weight.out_features(), weight.in_features());
    let w = parameter.value();
    let y = tensor(weight.multiply(&x.slice()?)?, &[rows, outs])?;
    let (keep_x, keep_w) = (x.tensor().clone(), w.tensor().clone());
    let (dx_wanted, dw_wanted) = (x.is_recorded(), needs_grad(&[&w]));
    Ok(Value::from_op(y, &[x, &w], move |dy| {
        let dy = Slice::of(dy)?;
        let dx = if dx_wanted { Some(input_gradient(&dy, &keep_w, rows, outs, ins)?) } else { None };
        let dw = if dw_wanted { Some(weight_gradient(&dy, &Slice::of(&keep_x)?, rows, outs, ins)?) } else { None };
        Ok(vec![dx, dw])
    }))
}

fn input_gradient(
    dy: &[f32],
    w: &candle_core::Tensor,
    rows: usize,
    outs: usize,
    ins: usize,
) -> Result<candle_core::Tensor> {
    let mut dx = fresh::zeros(rows * ins);
    gemm::nn(dy, &Slice::of(w)?, &mut dx, rows, outs, ins, false);
    tensor(dx, &[rows, ins])
}

fn weight_gradient(dy: &[f32], x: &[f32], rows: usize, outs: usize, ins: usize) -> Result<candle_core::Tensor> {
    let mut dw = fresh::zeros(outs * ins);
    gemm::tn(dy, x, &mut dw, outs, rows, ins, false);
    tensor(dw, &[outs, ins])
}

fn check(x: &Value, weight: &Weight) -> Result<()> {
    ensure(x.shape().len() == 2 && x.dim(1) == weight.in_features(), "linear", || {
        format!("x {:?}, W [{}, {}]", x.shape(), weight.out_features(), weight.in_features())
    })
}
