//! A block: `h = x + attention(norm(x)); h + feed_forward(norm(h))`.

use std::sync::Arc;

use ernie_nn::ops::{self, Angles, Outputs};
use ernie_nn::{Parameter, Through, Value};

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::{Activations, KvCache, MoeLayer, Probe, Span};
use crate::Result;

/// What travels through a pass beside the residual stream.
pub(crate) struct Pass<'a> {
    /// The layer that runs now.
    pub(crate) layer: usize,
    pub(crate) spans: &'a [Span],
    pub(crate) through: Through,
    pub(crate) angles: Angles,
    pub(crate) cache: Option<&'a mut dyn KvCache>,
    pub(crate) probe: &'a mut dyn Probe,
    pub(crate) activations: Activations,
    /// Whether the numbers of what the layer gives are read.
    pub(crate) outputs: Outputs,
}

impl Pass<'_> {
    pub(crate) fn keep(&self, value: Value) -> Result<Value> {
        self.activations.keep(value)
    }

    fn add(&self, a: &Value, b: &Value) -> Result<Value> {
        self.keep(ops::add(a, b)?)
    }

    fn record(&mut self, what: &str, value: &Value) {
        if self.probe.records() {
            self.probe.record(&format!("layer.{}.{what}", self.layer), value);
        }
    }
}

/// The feed-forward of a layer: one MLP, or experts.
#[derive(Clone)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Moe(MoeLayer),
}

/// A layer. Clones share their weights.
#[derive(Clone)]
pub(crate) struct DecoderLayer {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) self_attn: Attention,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) mlp: FeedForward,
}

impl DecoderLayer {
    pub(crate) fn forward(&self, x: &Value, pass: &mut Pass<'_>) -> Result<Value> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x)?, pass)?;
        pass.record("attn_out", &attended);
        let (h, normed) = self.post_attention_layernorm.forward_sum(x, &attended)?;
        let fed = self.mlp.forward(&normed, pass)?;
        pass.record("mlp_out", &fed);
        let out = pass.add(&h, &fed)?;
        pass.record("out", &out);
        Ok(out)
    }

    pub(crate) fn collect(&self, into: &mut Vec<Arc<Parameter>>) {
        into.push(self.input_layernorm.weight().clone());
        self.self_attn.collect(into);
        into.push(self.post_attention_layernorm.weight().clone());
        match &self.mlp {
            FeedForward::Dense(mlp) => mlp.collect(into),
            FeedForward::Moe(moe) => moe.collect(into),
        }
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        let norms = self.input_layernorm.weight().elements() + self.post_attention_layernorm.weight().elements();
        let mlp = match &self.mlp {
            FeedForward::Dense(mlp) => mlp.weight_bytes(),
            FeedForward::Moe(moe) => moe.weight_bytes(),
        };
        4 * norms as u64 + self.self_attn.weight_bytes() + mlp
    }
}

impl FeedForward {
    fn forward(&self, x: &Value, pass: &mut Pass<'_>) -> Result<Value> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, &pass.through, pass.activations, pass.outputs),
            Self::Moe(moe) => moe.forward(x, pass),
        }
    }
}

/// The parameters and bytes of some linears.
pub(crate) fn collect(linears: &[&ernie_nn::Linear], into: &mut Vec<Arc<Parameter>>) {
    for linear in linears {
        into.extend(linear.weight().parameter().cloned());
        into.extend(linear.bias().cloned());
    }
}

/// See [`collect`].
pub(crate) fn weight_bytes(linears: &[&ernie_nn::Linear]) -> u64 {
    linears.iter().map(|l| l.weight().memory_bytes() + l.bias().map_or(0, |b| 4 * b.elements() as u64)).sum()
}
