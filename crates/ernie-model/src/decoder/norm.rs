//! RMSNorm with its weight.

use std::sync::Arc;

use ernie_nn::{Parameter, Value, ops};

use super::Activations;
use crate::Result;

/// `w · x / rms(x)`; the statistic is f32 in every mode.
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
        self.activations.keep(ops::rms_norm(x, &self.weight.value(), self.eps)?)
    }
}
