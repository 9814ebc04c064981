//! The one way to multiply by a weight.

use std::sync::Arc;

use ernie_kernels::{elementwise, gemm};

use crate::error::ensure;
use crate::{Error, Parameter, Result, Value, Weight, no_grad, ops};

/// `y = x · Wᵀ + b`. Number formats and adapters, and later shards, are kinds of this, never copies of a
/// model.
#[derive(Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Arc<Parameter>>,
    adapter: Option<Adapter>,
}

/// A low-rank change of a weight: `W + scale · B · A` (LoRA, Hu et al., arXiv:2106.09685).
#[derive(Clone)]
pub struct Adapter {
    /// `A: [rank, in]`.
    pub a: Arc<Parameter>,
    /// `B: [out, rank]`.
    pub b: Arc<Parameter>,
    /// What the change is multiplied by.
    pub scale: f64,
}

impl Adapter {
    /// Adds the change to a weight `[out, in]`, row by row in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if the weight has another shape.
    pub fn add_to(&self, weight: &mut [f32]) -> Result<()> {
        let (rank, ins) = (self.a.shape()[0], self.a.shape()[1]);
        let outs = self.b.shape()[0];
        ensure(weight.len() == outs * ins && self.b.shape() == [outs, rank], "adapter", || {
            format!("a weight of {} for A {:?} and B {:?}", weight.len(), self.a.shape(), self.b.shape())
        })?;
        let mut b = self.b.to_vec()?;
        elementwise::scale(&mut b, self.scale as f32);
        self.a.read(|a| gemm::nn(&b, a, weight, outs, rank, ins, true))
    }
}

impl Linear {
    /// A linear over `weight` `[out, in]` and an optional bias `[out]`.
    pub fn new(weight: Weight, bias: Option<Arc<Parameter>>) -> Self {
        Self { weight, bias, adapter: None }
    }

    /// Puts an adapter beside the weight.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not one of this weight.
    pub fn adapt(&mut self, adapter: Adapter) -> Result<()> {
        let (outs, ins) = (self.weight.out_features(), self.weight.in_features());
        let fits =
            matches!((adapter.a.shape(), adapter.b.shape()), (&[r, i], &[o, q]) if r == q && i == ins && o == outs);
        ensure(fits, "adapter", || {
            format!("A {:?} and B {:?} for a weight [{outs}, {ins}]", adapter.a.shape(), adapter.b.shape())
        })?;
        self.adapter = Some(adapter);
        Ok(())
    }

    /// The adapter.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
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
        self.finish(x, ops::multiply(x, &self.weight)?)
    }

    /// As [`Self::forward`], as plain numbers without recording, which are not copied where there is no bias: `[T, out]`, row-major.
    pub fn numbers(&self, x: &Value) -> Result<Vec<f32>> {
        match (&self.bias, &self.adapter) {
            (None, None) => self.weight.multiply(&x.slice()?),
            _ => no_grad(|| self.forward(x)?.to_vec()),
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
            finished.push(linear.finish(x, y)?);
        }
        finished.try_into().map_err(|_| Error::shape("linear", "a product is missing"))
    }

    fn finish(&self, x: &Value, y: Value) -> Result<Value> {
        let y = match &self.adapter {
            Some(Adapter { a, b, scale }) => {
                let inner = ops::scale(&ops::linear(x, a)?, *scale)?;
                ops::add(&y, &ops::linear(&inner, b)?)?
            }
            None => y,
        };
        match &self.bias {
            Some(bias) => ops::add_row(&y, &bias.value()),
            None => Ok(y),
        }
    }
}
