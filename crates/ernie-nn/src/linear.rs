//! The one way to multiply by a weight.

use std::sync::Arc;

use crate::{Error, Parameter, Result, Value, Weight, no_grad, ops};

/// `y = x · Wᵀ + b`. Number formats, and later adapters and shards, are kinds of this, never copies of a
/// model.
#[derive(Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Arc<Parameter>>,
}

impl Linear {
    /// A linear over `weight` `[out, in]` and an optional bias `[out]`.
    pub fn new(weight: Weight, bias: Option<Arc<Parameter>>) -> Self {
        Self { weight, bias }
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Arc<Parameter>> {
        self.bias.as_ref()
    }

    /// # Shapes
    /// `x: [T, in]` → `[T, out]`. Sums are f32, in an order that depends on `in` alone.
    pub fn forward(&self, x: &Value) -> Result<Value> {
        self.finish(ops::multiply(x, &self.weight)?)
    }

    /// As [`Self::forward`], as plain numbers without recording, which are not copied where there is no bias: `[T, out]`, row-major.
    pub fn numbers(&self, x: &Value) -> Result<Vec<f32>> {
        match &self.bias {
            Some(_) => no_grad(|| self.forward(x)?.to_vec()),
            None => self.weight.multiply(&x.slice()?),
        }
    }

    /// Several linears of one input. Packed weights share the rounding of the input and one parallel region.
    ///
    /// # Shapes
    /// `x: [T, in]` → `[T, out]` each; the same numbers as [`Self::forward`] of each.
    pub fn forward_all<const N: usize>(linears: [&Self; N], x: &Value) -> Result<[Value; N]> {
        let products = ops::multiply_all(x, linears.map(|linear| &linear.weight))?;
        let mut finished = Vec::with_capacity(N);
        for (linear, y) in linears.into_iter().zip(products) {
            finished.push(linear.finish(y)?);
        }
        finished.try_into().map_err(|_| Error::shape("linear", "a product is missing"))
    }

    fn finish(&self, y: Value) -> Result<Value> {
        match &self.bias {
            Some(bias) => ops::add_row(&y, &bias.value()),
            None => Ok(y),
        }
    }
}
