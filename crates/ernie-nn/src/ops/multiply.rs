//! Multiplication by a weight: the op below every [`crate::Linear`].

use std::sync::Arc;

use candle_core::Tensor;
use ernie_kernels::floats::{FloatVec, Floats, FloatsMut};
use ernie_kernels::gemm::{self, brains};
use ernie_kernels::{Rows, fresh, linear};

use super::recompute::Outputs;
use crate::error::ensure;
use crate::slice::{self, Slice, View, from_floats, tensor};
use crate::value::needs_grad;
use crate::{Packed, Parameter, Result, Value, Weight, Width};

/// `x: [T, in] · Wᵀ → [T, out]` for a weight in any format. Packed weights have no gradient and pass the input's on, as if its rounding were not.
///
/// Sums are f32, in an order that depends on `in` alone: a token's result does not depend on its company.
///
/// # Errors
/// [`crate::Error::Shape`] if the inner sizes differ.
pub fn multiply(x: &Value, weight: &Weight) -> Result<Value> {
    multiply_for(Outputs::Read, x, weight)
}

/// [`multiply`], whose result is recorded and zeros where nobody reads it.
pub(crate) fn multiply_for(outputs: Outputs, x: &Value, weight: &Weight) -> Result<Value> {
    match weight {
        Weight::Parameter(parameter) => linear_for(outputs, x, parameter),
        Weight::Packed(packed) => {
            check(x, weight)?;
            let y = match outputs {
                Outputs::Read => weight.multiply(&x.slice()?)?,
                Outputs::Unread => fresh::zeros(x.dim(0) * weight.out_features()),
            };
            passed_through(x, y, packed)
        }
    }
}

/// [`multiply`] by several weights; packed ones share the rounding of the input and one parallel region.
pub(crate) fn multiply_all<const N: usize>(x: &Value, weights: [&Weight; N]) -> Result<Vec<Value>> {
    let packed: Vec<&Arc<Packed>> = weights.iter().filter_map(|weight| weight.packed()).collect();
    if packed.len() < N {
        return weights.into_iter().map(|weight| multiply(x, weight)).collect();
    }
    for weight in weights {
        check(x, weight)?;
    }
    let plain: Vec<&Packed> = packed.iter().map(|weight| weight.as_ref()).collect();
    let results = Packed::products(&x.slice()?, x.dim(1), &plain);
    results.into_iter().zip(packed).map(|(y, w)| passed_through(x, y, w)).collect()
}

/// `y`, the product of `x` and a packed weight, as a value through which the gradient reaches `x`.
fn passed_through(x: &Value, y: Vec<f32>, weight: &Arc<Packed>) -> Result<Value> {
    let (rows, weight) = (x.dim(0), weight.clone());
    Ok(Value::from_op(tensor(y, &[rows, weight.out_features()])?, &[x], move |dy| {
        let dy = slice::wide(dy)?;
        let mut dx = fresh::zeros(rows * weight.in_features());
        weight.add_input_gradient(&Slice::of(&dy)?, &mut dx);
        Ok(vec![Some(tensor(dx, &[rows, weight.in_features()])?)])
    }))
}

/// [`multiply`] by a parameter, with gradients: `dx = dy · W`, `dW = dyᵀ · x`.
///
/// The result is as wide as the parameter's products, which the gradient of the input is too; the gradient of the weight is f32.
pub fn linear(x: &Value, parameter: &Arc<Parameter>) -> Result<Value> {
    linear_for(Outputs::Read, x, parameter)
}

fn linear_for(outputs: Outputs, x: &Value, parameter: &Arc<Parameter>) -> Result<Value> {
    let weight = Weight::Parameter(parameter.clone());
    check(x, &weight)?;
    let (rows, outs, ins) = (x.dim(0), weight.out_features(), weight.in_features());
    let products = Products(parameter.products());
    let w = parameter.value();
    let y = match outputs {
        Outputs::Read => {
            let input = products.input(x.tensor())?;
            products.forward(View::of(&input)?.floats(), &w.slice()?, [rows, ins, outs])
        }
        Outputs::Unread => FloatVec::zeros(products.0, rows * outs),
    };
    let (y, kept) = (from_floats(y, &[rows, outs])?, x.kept());
    let (dx_wanted, dw_wanted) = (x.is_recorded(), needs_grad(&[&w]));
    let keep_w = w.tensor().clone();
    Ok(Value::from_op(y, &[x, &w], move |dy| {
        let dy = products.input(dy)?;
        let (dy, w) = (View::of(&dy)?, Slice::of(&keep_w)?);
        let dx = dx_wanted.then(|| products.input_gradient(dy.floats(), &w, [rows, ins, outs]));
        let mut dw = None;
        if dw_wanted {
            let x = products.input(&kept.tensor()?)?;
            let gradient = products.weight_gradient(dy.floats(), View::of(&x)?.floats(), [rows, ins, outs]);
            dw = Some(tensor(gradient, &[outs, ins])?);
        }
        Ok(vec![dx.map(|dx| from_floats(dx, &[rows, ins])).transpose()?, dw])
    }))
}

/// The three products of a linear in one width. Shapes are `[rows, ins, outs]` throughout.
#[derive(Clone, Copy)]
pub(crate) struct Products(pub(crate) Width);

impl Products {
    /// Numbers as these products take them: not wider. What is narrower is widened where it is read once only, here.
    pub(crate) fn input(self, x: &Tensor) -> Result<Tensor> {
        match (self.0, slice::width(x)) {
            (Width::F32, Width::Bf16) => slice::wide(x),
            (Width::Bf16, Width::F32) => from_floats(View::of(x)?.floats().to_width(Width::Bf16), x.dims()),
            _ => Ok(x.clone()),
        }
    }

    /// `x · Wᵀ`, as wide as the products.
    pub(crate) fn forward(self, x: Floats<'_>, w: &[f32], [rows, ins, outs]: [usize; 3]) -> FloatVec {
        let mut y = FloatVec::zeros(self.0, rows * outs);
        self.forward_into(x, w, (&mut y).into(), [rows, ins, outs]);
        y
    }

    /// As [`Self::forward`], into `y` of either width.
    pub(crate) fn forward_into(self, x: Floats<'_>, w: &[f32], y: FloatsMut<'_>, [rows, ins, outs]: [usize; 3]) {
        match (self.0, x, y) {
            (Width::F32, Floats::F32(x), FloatsMut::F32(y)) => linear::forward(x, &Rows::from_f32(w, outs, ins), y),
            (_, x, y) => brains::nt(x, w.into(), y, rows, ins, outs, false),
        }
    }

    /// `dy · W`, as wide as the products.
    pub(crate) fn input_gradient(self, dy: Floats<'_>, w: &[f32], shape: [usize; 3]) -> FloatVec {
        let mut dx = FloatVec::zeros(self.0, shape[0] * shape[1]);
        self.add_input_gradient(dy, w, (&mut dx).into(), shape, false);
        dx
    }

    /// As [`Self::input_gradient`], into `dx`, added to what is there (in 32 bits) when `add`.
    pub(crate) fn add_input_gradient(
        self,
        dy: Floats<'_>,
        w: &[f32],
        dx: FloatsMut<'_>,
        [rows, ins, outs]: [usize; 3],
        add: bool,
    ) {
        match (self.0, dy, dx) {
            (Width::F32, Floats::F32(dy), FloatsMut::F32(dx)) => gemm::nn(dy, w, dx, rows, outs, ins, add),
            (_, dy, dx) => brains::nn(dy, w.into(), dx, rows, outs, ins, add),
        }
    }

    /// `dyᵀ · x`, in 32 bits.
    pub(crate) fn weight_gradient(self, dy: Floats<'_>, x: Floats<'_>, shape: [usize; 3]) -> Vec<f32> {
        let mut dw = fresh::zeros(shape[1] * shape[2]);
        self.add_weight_gradient(dy, x, &mut dw, shape, false);
        dw
    }

    /// As [`Self::weight_gradient`], into `dw`, added to what is there when `add`.
    pub(crate) fn add_weight_gradient(
        self,
        dy: Floats<'_>,
        x: Floats<'_>,
        dw: &mut [f32],
        [rows, ins, outs]: [usize; 3],
        add: bool,
    ) {
        match (self.0, dy, x) {
            (Width::F32, Floats::F32(dy), Floats::F32(x)) => gemm::tn(dy, x, dw, outs, rows, ins, add),
            (_, dy, x) => brains::tn(dy, x, dw.into(), outs, rows, ins, add),
        }
    }
}

fn check(x: &Value, weight: &Weight) -> Result<()> {
    ensure(x.shape().len() == 2 && x.dim(1) == weight.in_features(), "linear", || {
        format!("x {:?}, W [{}, {}]", x.shape(), weight.out_features(), weight.in_features())
    })
}
