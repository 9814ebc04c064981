//! Adapters: which linears have one, how they begin, and what the model's weights are with them.

use std::borrow::Cow;
use std::sync::Arc;

use ernie_nn::{Adapter, Linear, Parameter, Width};

use super::layer::FeedForward;
use super::mlp::Mlp;
use super::{Activations, Decoder};
use crate::weights::uniform;
use crate::{Error, Result};

/// The linears that can be adapted, by the last part of their names.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// How a model is adapted (LoRA, arXiv:2106.09685).
#[derive(Clone, Debug, PartialEq)]
pub struct Adaptation {
    /// Rank of the change, at least 1.
    pub rank: usize,
    /// The change is multiplied by `alpha / rank`, or by `alpha / sqrt(rank)` where [`Self::rslora`].
    pub alpha: f64,
    /// Rank-stabilised scale (Kalajdzievski, arXiv:2312.03732).
    pub rslora: bool,
    /// Which of [`TARGETS`].
    pub targets: Vec<String>,
}

impl Adaptation {
    /// What the change is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Decoder {
    /// Freezes the model and puts an adapter beside every linear that `adaptation` names: `A` uniform within `1 / sqrt(in)` and drawn by its name from
    /// `seed`, `B` zero, so that nothing changes yet. Routed experts get none. Gives how many there are.
    ///
    /// # Errors
    /// [`Error::Request`] for a rank of 0 or beyond a weight's, an unknown target, a model without any of them, or one that was loaded to run.
    pub fn adapt(&mut self, adaptation: &Adaptation, seed: u64) -> Result<usize> {
        let wrong = |what: String| Err(Error::Request(what));
        if let Some(name) = adaptation.targets.iter().find(|name| !TARGETS.contains(&name.as_str())) {
            return wrong(format!("no linear is called {name:?}, expected some of {}", TARGETS.join(", ")));
        }
        let width = if self.activations == Activations::Mixed { Width::Bf16 } else { Width::F32 };
        let parameters = self.parameters();
        let mut count = 0;
        for linear in self.linears_mut() {
            let Some(weight) = linear.weight().parameter() else {
                return wrong("a model that was loaded to run cannot be adapted".into());
            };
            let name = weight.name().trim_end_matches(".weight").to_owned();
            if !adaptation.targets.iter().any(|target| name.rsplit('.').next() == Some(target)) {
                continue;
            }
            let (outs, ins) = (linear.weight().out_features(), linear.weight().in_features());
            let rank = adaptation.rank;
            if rank == 0 || rank > outs.min(ins) {
                return wrong(format!(
                    "an adapter of rank {rank} for {name} [{outs}, {ins}], expected 1 to {}",
                    outs.min(ins)
                ));
            }
            let name_of = |which: &str| format!("{name}.lora_{which}.weight");
            let a = uniform(seed, &name_of("A"), rank * ins, 1.0 / (ins as f64).sqrt());
            let a = Parameter::multiplied_in(width, name_of("A"), a, &[rank, ins])?;
            let b = Parameter::multiplied_in(width, name_of("B"), vec![0.0; outs * rank], &[outs, rank])?;
            linear.adapt(Adapter { a, b, scale: adaptation.scale() })?;
            count += 1;
        }
        if count == 0 {
            return wrong(format!("the model has no linear called {}", adaptation.targets.join(", ")));
        }
        parameters.iter().for_each(|parameter| parameter.set_trainable(false));
        Ok(count)
    }

    /// Each adapted weight's published name with its adapter, in a fixed order.
    pub fn adapters(&self) -> Vec<(&str, &Adapter)> {
        self.linears().into_iter().filter_map(named).collect()
    }

    /// Everything that is trained: the parameters, or the adapters of a model that has some.
    pub fn trained(&self) -> Vec<Arc<Parameter>> {
        let adapters = self.adapters().into_iter().flat_map(|(_, adapter)| [adapter.a.clone(), adapter.b.clone()]);
        self.parameters().into_iter().filter(|parameter| parameter.is_trainable()).chain(adapters).collect()
    }

    /// The values of one of [`Self::parameters`] with its adapter's change in it.
    ///
    /// # Errors
    /// [`Error::Nn`] if an adapter does not fit, which [`Self::adapt`] has seen to.
    pub fn merged(&self, parameter: &Parameter) -> Result<Cow<'static, [f32]>> {
        let mut values = parameter.to_vec()?;
        if let Some((_, adapter)) = self.adapters().into_iter().find(|(name, _)| *name == parameter.name()) {
            adapter.add_to(&mut values)?;
        }
        Ok(Cow::Owned(values))
    }

    fn linears(&self) -> Vec<&Linear> {
        let mut all = Vec::new();
        for layer in &self.layers {
            let attention = &layer.self_attn;
            all.extend([&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj]);
            let mlp = match &layer.mlp {
                FeedForward::Dense(mlp) => Some(mlp),
                FeedForward::Moe(moe) => moe.shared_experts(),
            };
            if let Some(Mlp { gate_proj, up_proj, down_proj }) = mlp {
                all.extend([gate_proj, up_proj, down_proj]);
            }
        }
        all
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = Vec::new();
        for layer in &mut self.layers {
            let attention = &mut layer.self_attn;
            all.extend([&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj, &mut attention.o_proj]);
            let mlp = match &mut layer.mlp {
                FeedForward::Dense(mlp) => Some(mlp),
                FeedForward::Moe(moe) => moe.shared_experts_mut(),
            };
            if let Some(Mlp { gate_proj, up_proj, down_proj }) = mlp {
                all.extend([gate_proj, up_proj, down_proj]);
            }
        }
        all
    }
}

/// A linear's weight by name, with its adapter.
fn named(linear: &Linear) -> Option<(&str, &Adapter)> {
    Some((linear.weight().parameter()?.name(), linear.adapter()?))
}
