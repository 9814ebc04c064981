//! The one way to multiply by a weight.

use std::sync::Arc;

use ernie_kernels::{elementwise, gemm};

use crate::error::ensure;
use crate::ops::Outputs;
use crate::{Error, Packed, Parameter, Result, Through, Value, Weight, no_grad, ops};

/// `y = x · Wᵀ + b`. Number formats and adapters, and later shards, are kinds of this, never copies of a
/// model.
#[derive(Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Arc<Parameter>>,
    /// By their numbers; a model may have adapters that leave this weight alone.
    adapters: Vec<Option<Adapter>>,
}

/// A low-rank change of a weight: `W + scale · B · A` (LoRA, Hu et al., arXiv:2106.09685).
#[derive(Clone)]
pub struct Adapter {
    /// `A: [rank, in]`.
    pub a: Weight,
    /// `B: [out, rank]`.
    pub b: Weight,
    /// What the change is multiplied by.
    pub scale: f64,
}

impl Adapter {
    /// An adapter of two parameters.
    pub fn new(a: Arc<Parameter>, b: Arc<Parameter>, scale: f64) -> Self {
        Self { a: Weight::Parameter(a), b: Weight::Parameter(b), scale }
    }

    /// `A` and `B`, as long as they can be trained and read: until they are packed.
    pub fn parameters(&self) -> Option<[&Arc<Parameter>; 2]> {
        Some([self.a.parameter()?, self.b.parameter()?])
    }

    /// Packs both for the kernels, in 32 bits: the same numbers, whose products have the same bits and are not laid out anew in every pass.
    fn pack(&mut self) -> Result<()> {
        for weight in [&mut self.a, &mut self.b] {
            if let Weight::Parameter(parameter) = weight {
                *weight = Weight::Packed(Arc::new(Packed::of(parameter)?));
            }
        }
        Ok(())
    }

    /// Adds the change to a weight `[out, in]`, row by row in f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if the weight has another shape, or the adapter is packed.
    pub fn add_to(&self, weight: &mut [f32]) -> Result<()> {
        let [a, b] = self.parameters().ok_or_else(|| Error::shape("adapter", "it is packed"))?;
        let (outs, ins) = (self.b.out_features(), self.a.in_features());
        ensure(weight.len() == outs * ins, "adapter", || {
            format!("a weight of {} for A {:?} and B {:?}", weight.len(), a.shape(), b.shape())
        })?;
        let mut b = b.to_vec()?;
        elementwise::scale(&mut b, self.scale as f32);
        a.read(|a| gemm::nn(&b, a, weight, outs, self.a.out_features(), ins, true))
    }

    /// What is added to the product of `x: [T, in]`: `[T, out]`.
    fn change(&self, x: &Value) -> Result<Value> {
        ops::multiply(&ops::scale(&ops::multiply(x, &self.a)?, self.scale)?, &self.b)
    }
}

impl Linear {
    /// A linear over `weight` `[out, in]` and an optional bias `[out]`.
    pub fn new(weight: Weight, bias: Option<Arc<Parameter>>) -> Self {
        Self { weight, bias, adapters: Vec::new() }
    }

    /// Puts an adapter beside the weight, under a number by which rows name it ([`Through`]).
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not one of this weight.
    pub fn adapt(&mut self, number: usize, adapter: Adapter) -> Result<()> {
        let (outs, ins) = (self.weight.out_features(), self.weight.in_features());
        let [a, b] = [&adapter.a, &adapter.b].map(|weight| [weight.out_features(), weight.in_features()]);
        ensure(a[1] == ins && b == [outs, a[0]], "adapter", || {
            format!("A {a:?} and B {b:?} for a weight [{outs}, {ins}]")
        })?;
        if self.adapters.len() <= number {
            self.adapters.resize(number + 1, None);
        }
        self.adapters[number] = Some(adapter);
        Ok(())
    }

    /// Packs its adapters for the kernels ([`Adapter::parameters`]).
    ///
    /// # Errors
    /// [`Error::Shape`] for an adapter without elements.
    pub fn pack_adapters(&mut self) -> Result<()> {
        self.adapters.iter_mut().flatten().try_for_each(Adapter::pack)
    }

    /// The adapter of this number, where it changes this weight.
    pub fn adapter(&self, number: usize) -> Option<&Adapter> {
        self.adapters.get(number)?.as_ref()
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
    /// `x: [T, in]`, of which each row goes `through` an adapter or none → `[T, out]`. Sums are f32, in an order that depends on `in` alone: a row's
    /// numbers are those that it has in a batch of its own, whatever its neighbours go through.
    pub fn forward(&self, x: &Value, through: &Through) -> Result<Value> {
        self.last(Outputs::Read, x, through)
    }

    /// [`Self::forward`], which where nobody reads what it gives records the product and does not make it: the numbers mean nothing then, and
    /// gradients are the same.
    pub fn last(&self, outputs: Outputs, x: &Value, through: &Through) -> Result<Value> {
        self.finish(x, ops::multiply_for(outputs, x, &self.weight)?, through)
    }

    /// The weights alone, as plain numbers without recording, which are not copied where there is no bias: `[T, out]`, row-major.
    pub fn numbers(&self, x: &Value) -> Result<Vec<f32>> {
        match &self.bias {
            None => self.weight.multiply(&x.slice()?),
            Some(_) => no_grad(|| self.forward(x, &Through::Weights)?.to_vec()),
        }
    }

    /// Several linears of one input. Packed weights share the rounding of the input and one parallel region.
    ///
    /// # Shapes
    /// `x: [T, in]` → `[T, out]` each; the same numbers as [`Self::forward`] of each.
    pub fn forward_all<const N: usize>(linears: [&Self; N], x: &Value, through: &Through) -> Result<[Value; N]> {
        let products = ops::multiply_all(x, linears.map(|linear| &linear.weight))?;
        let mut finished = Vec::with_capacity(N);
        for (linear, y) in linears.into_iter().zip(products) {
            finished.push(linear.finish(x, y, through)?);
        }
        finished.try_into().map_err(|_| Error::shape("linear", "a product is missing"))
    }

    fn finish(&self, x: &Value, y: Value, through: &Through) -> Result<Value> {
        let y = match through {
            Through::Weights => y,
            Through::One(number) => match self.adapter(*number) {
                Some(adapter) => ops::add(&y, &adapter.change(x)?)?,
                None => y,
            },
            Through::Each(each) => {
                let mut changes = Vec::new();
                for (number, rows) in each.groups() {
                    if let Some(adapter) = self.adapter(*number) {
                        changes.push((rows.as_slice(), adapter.change(&x.rows(rows)?)?));
                    }
                }
                if changes.is_empty() { y } else { ops::add_at(&y, &changes)? }
            }
        };
        match &self.bias {
            Some(bias) => ops::add_row(&y, &bias.value()),
            None => Ok(y),
        }
    }
}
