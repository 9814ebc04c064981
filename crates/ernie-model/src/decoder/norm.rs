//! RMSNorm with its weight.

use std::sync::Arc;

use ernie_nn::{Parameter, Value, Width, ops};

use super::Activations;
use crate::Result;

/// `w · x / rms(x)`; the statistic is f32 in every mode.
#[derive(Clone)]
pub(crate) struct RmsNorm {
    weight: Arc<Parameter>,
    eps: f64,
    activations: Activations,
}

impl RmsNorm {
    pub(crate) fn new(weight: Arc<Parameter>, eps: f64, activations: Activations) -> Self {
        Self { weight, eps, activations }
    }

    pub(crate) fn weight(&self) -> &Arc<Parameter> {
        &self.weight
    }

    pub(crate) fn forward(&self, x: &Value) -> Result<Value> {
        let width = if self.activations == Activations::Mixed { Width::Bf16 } else { Width::F32 };
        self.activations.keep(ops::rms_norm_to(width, x, &self.weight.value(), self.eps)?)
    }

    /// `x + branch`, and its norm.
    pub(crate) fn forward_sum(&self, x: &Value, branch: &Value) -> Result<(Value, Value)> {
        match self.activations {
            Activations::F32 => Ok(ops::add_rms_norm(x, branch, &self.weight.value(), self.eps)?),
            Activations::Bf16 | Activations::Mixed => {
                // Where the sum is rounded, it is so before it is normalised.
                let sum = self.activations.keep(ops::add(x, branch)?)?;
                let normed = self.forward(&sum)?;
                Ok((sum, normed))
            }
        }
    }
}
