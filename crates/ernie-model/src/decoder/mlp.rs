//! The gated MLP: `down(silu(gate(x)) · up(x))`.

use std::sync::Arc;

use ernie_nn::ops::{self, Outputs};
use ernie_nn::{Linear, Parameter, Through, Value};

use super::{Activations, layer};
use crate::Result;

#[derive(Clone)]
pub(crate) struct Mlp {
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
}

impl Mlp {
    pub(crate) fn forward(
        &self,
        x: &Value,
        through: &Through,
        activations: Activations,
        outputs: Outputs,
    ) -> Result<Value> {
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x, through)?;
        let (gate, up) = (activations.keep(gate)?, activations.keep(up)?);
        let inner = activations.keep(ops::swiglu(&gate, &up)?)?;
        activations.keep(self.down_proj.last(outputs, &inner, through)?)
    }

    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj]
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate_proj, &mut self.up_proj, &mut self.down_proj]
    }

    pub(crate) fn collect(&self, into: &mut Vec<Arc<Parameter>>) {
        layer::collect(&self.linears(), into);
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        layer::weight_bytes(&self.linears())
    }
}
