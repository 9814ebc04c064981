//! A mixture-of-experts layer: router, routed experts, shared expert.

use std::sync::{Arc, PoisonError, RwLock};

use ernie_nn::ops::{self, Expert, Outputs, Routing};
use ernie_nn::{Linear, Parameter, Through, Value, Weight};

use super::layer::{self, Pass};
use super::mlp::Mlp;
use crate::{Error, Result};

/// The feed-forward of a MoE layer. The router is f32 in every mode. Clones share what is trained and the correction bias.
#[derive(Clone)]
pub struct MoeLayer {
    gate: Linear,
    /// `moe_statics.e_score_correction_bias`: added to the probabilities for selection only. Not trained by
    /// gradients; empty where the model has none.
    correction_bias: Arc<RwLock<Vec<f32>>>,
    experts: Vec<Expert>,
    /// The same experts one by one, where they have adapters or must pass a gradient through packed weights; else empty.
    opened: Vec<Mlp>,
    shared_experts: Option<Mlp>,
    k: usize,
    norm_min: f64,
}

impl MoeLayer {
    pub(crate) fn new(
        gate: Linear,
        correction_bias: Vec<f32>,
        experts: Vec<Expert>,
        shared_experts: Option<Mlp>,
        (k, norm_min): (usize, f64),
    ) -> Self {
        Self {
            gate,
            correction_bias: Arc::new(RwLock::new(correction_bias)),
            experts,
            opened: Vec::new(),
            shared_experts,
            k,
            norm_min,
        }
    }

    pub(crate) fn forward(&self, x: &Value, pass: &mut Pass<'_>) -> Result<Value> {
        let logits = self.gate.forward(x, &Through::Weights)?;
        let bias = self.correction_bias.read().unwrap_or_else(PoisonError::into_inner);
        let routing = ops::route(&logits, &bias, self.k, self.norm_min)?;
        drop(bias);
        pass.probe.routing(pass.layer, &routing);
        let routed = pass.keep(self.routed(x, &routing, pass)?)?;
        match &self.shared_experts {
            // Unlike what routed experts give, by which their weights have a gradient, this is only added.
            Some(shared) => {
                let shared = shared.forward(x, &pass.through, pass.activations, pass.outputs)?;
                pass.keep(ops::add(&routed, &shared)?)
            }
            None => Ok(routed),
        }
    }

    /// The routed experts: one by one for the rows that need it, for all others in the fused op, whose bits these keep in any company.
    fn routed(&self, x: &Value, routing: &Routing, pass: &Pass<'_>) -> Result<Value> {
        let one_by_one = |x: &Value, routing: &Routing, through: &Through| {
            ops::dispatch(x, routing, self.opened.len(), |index, tokens, rows| {
                self.opened[index].forward(rows, &through.rows(tokens), pass.activations, Outputs::Read)
            })
        };
        let opened = self.runs_opened(x, &pass.through);
        match (opened.contains(&true), opened.contains(&false)) {
            (false, _) => Ok(ops::experts(x, routing, &self.experts)?),
            (true, false) => one_by_one(x, routing, &pass.through),
            (true, true) => {
                let (apart, fused): (Vec<usize>, Vec<usize>) = (0..opened.len()).partition(|&row| opened[row]);
                let through = pass.through.rows(&apart);
                let changed = one_by_one(&x.rows(&apart)?, &routing.rows(&apart)?, &through)?;
                let plain = ops::experts(&x.rows(&fused)?, &routing.rows(&fused)?, &self.experts)?;
                Ok(ops::place(&[(&apart[..], changed), (&fused[..], plain)])?)
            }
        }
    }

    /// The router's weight `[E, h]`, where it is a parameter.
    pub fn router(&self) -> Option<&Arc<Parameter>> {
        self.gate.weight().parameter()
    }

    /// Of each row, whether its experts are run one by one: for their adapters, or for a gradient that the fused op does not pass.
    fn runs_opened(&self, x: &Value, through: &Through) -> Vec<bool> {
        let Some(first) = self.opened.first() else { return vec![false; x.dim(0)] };
        if x.is_recorded() {
            return vec![true; x.dim(0)];
        }
        through.each_is(x.dim(0), |adapter| first.linears().iter().any(|linear| linear.adapter(adapter).is_some()))
    }

    /// Makes ready to run each expert by itself, so that its linears can be adapted.
    pub(crate) fn open_experts(&mut self) {
        if !self.opened.is_empty() {
            return;
        }
        let linear = |weight: &Weight| Linear::new(weight.clone(), None);
        let open = |expert: &Expert| Mlp {
            gate_proj: linear(&expert.gate_proj),
            up_proj: linear(&expert.up_proj),
            down_proj: linear(&expert.down_proj),
        };
        self.opened = self.experts.iter().map(open).collect();
    }

    pub(crate) fn opened(&self) -> &[Mlp] {
        &self.opened
    }

    pub(crate) fn shared_experts(&self) -> Option<&Mlp> {
        self.shared_experts.as_ref()
    }

    /// The shared expert, and the routed ones that are run one by one.
    pub(crate) fn mlps_mut(&mut self) -> Vec<&mut Mlp> {
        self.shared_experts.iter_mut().chain(&mut self.opened).collect()
    }

    /// The number of routed experts.
    pub fn num_experts(&self) -> usize {
        self.experts.len()
    }

    /// The correction bias, one number an expert; empty where the model has none.
    pub fn correction_bias(&self) -> Vec<f32> {
        self.correction_bias.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the correction bias.
    ///
    /// # Errors
    /// [`Error::Request`] if the number of entries changes.
    pub fn set_correction_bias(&self, bias: &[f32]) -> Result<()> {
        let mut current = self.correction_bias.write().unwrap_or_else(PoisonError::into_inner);
        if current.len() != bias.len() {
            return Err(Error::Request(format!("a correction bias of {} for {} experts", bias.len(), current.len())));
        }
        current.copy_from_slice(bias);
        Ok(())
    }

    pub(crate) fn collect(&self, into: &mut Vec<Arc<Parameter>>) {
        layer::collect(&[&self.gate], into);
        for expert in &self.experts {
            let weights = [&expert.gate_proj, &expert.up_proj, &expert.down_proj];
            into.extend(weights.into_iter().filter_map(|weight| weight.parameter().cloned()));
        }
        if let Some(shared) = &self.shared_experts {
            shared.collect(into);
        }
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        let expert = |expert: &Expert| {
            [&expert.gate_proj, &expert.up_proj, &expert.down_proj]
                .map(|weight| weight.memory_bytes())
                .iter()
                .sum::<u64>()
        };
        layer::weight_bytes(&[&self.gate])
            + self.experts.iter().map(expert).sum::<u64>()
            + self.shared_experts.as_ref().map_or(0, Mlp::weight_bytes)
            + 4 * self.correction_bias().len() as u64
    }
}
