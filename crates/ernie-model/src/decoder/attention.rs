//! Self-attention of one layer: grouped heads, interleaved RoPE, causal.

use std::sync::Arc;

use ernie_nn::{Heads, Linear, Parameter, Value, ops};

use super::layer::{self, Pass};
use crate::Result;

#[derive(Clone)]
pub(crate) struct Attention {
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    pub(crate) heads: Heads,
}

impl Attention {
    /// `x: [T, h] → [T, h]`.
    pub(crate) fn forward(&self, x: &Value, pass: &mut Pass<'_>) -> Result<Value> {
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x, &pass.through)?;
        let q = pass.keep(ops::rope(&pass.keep(q)?, &pass.angles)?)?;
        let k = pass.keep(ops::rope(&pass.keep(k)?, &pass.angles)?)?;
        let v = pass.keep(v)?;
        let spans = pass.spans;
        let out = match &mut pass.cache {
            Some(cache) => cache.attend(pass.layer, &q, &k, &v, spans, self.heads)?,
            None => ops::attention(&q, &k, &v, spans, self.heads)?,
        };
        pass.keep(self.o_proj.forward(&pass.keep(out)?, &pass.through)?)
    }

    pub(crate) fn linears(&self) -> [&Linear; 4] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj]
    }

    pub(crate) fn collect(&self, into: &mut Vec<Arc<Parameter>>) {
        layer::collect(&self.linears(), into);
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        layer::weight_bytes(&self.linears())
    }
}
