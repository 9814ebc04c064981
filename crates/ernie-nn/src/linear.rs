//! The one way to multiply by a weight.

use std::sync::Arc;

use crate::{Parameter, Result, Value, Weight, ops};

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
        let y = ops::multiply(x, &self.weight)?;
        match &self.bias {
            Some(bias) => ops::add_row(&y, &bias.value()),
            None => Ok(y),
        }
    }
}
