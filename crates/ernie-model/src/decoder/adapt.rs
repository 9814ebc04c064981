//! Adapters: which linears have one, how they begin, and what the model's weights are with them.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use ernie_nn::{Adapter, Linear, Parameter, Width};

use super::layer::FeedForward;
use super::mlp::Mlp;
use super::{Activations, Decoder};
use crate::weights::{Kept, SaveAs, SaveTensor, save_into, uniform};
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
    /// Whether the routed experts have adapters too.
    pub experts: bool,
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
    /// `seed`, `B` zero, so that nothing changes yet. The weights may be packed, in 32 bits or as integers. Gives how many there are.
    ///
    /// From now on all rows go through it, and earlier ones are there for rows that name them ([`Self::offer_adapters`]).
    ///
    /// # Errors
    /// [`Error::Request`] for a rank of 0 or beyond a weight's, an unknown target, or a model without any of them.
    pub fn adapt(&mut self, adaptation: &Adaptation, seed: u64) -> Result<usize> {
        let wrong = |what: String| Err(Error::Request(what));
        if let Some(name) = adaptation.targets.iter().find(|name| !TARGETS.contains(&name.as_str())) {
            return wrong(format!("no linear is called {name:?}, expected some of {}", TARGETS.join(", ")));
        }
        let width = if self.activations == Activations::Mixed { Width::Bf16 } else { Width::F32 };
        let parameters = self.parameters();
        // A gradient that is to reach the layers below passes packed experts one by one.
        let packed = self.embed_tokens.parameter().is_none();
        for layer in self.layers.iter_mut().filter(|_| adaptation.experts || packed) {
            if let FeedForward::Moe(moe) = &mut layer.mlp {
                moe.open_experts();
            }
        }
        let (mut count, number) = (0, self.adapters);
        for (name, linear) in self.linears_mut() {
            let wanted = adaptation.targets.iter().any(|target| name.rsplit('.').next() == Some(target));
            if !wanted || (name.contains(".mlp.experts.") && !adaptation.experts) {
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
            linear.adapt(number, Adapter::new(a, b, adaptation.scale()))?;
            count += 1;
        }
        if count == 0 {
            return wrong(format!("the model has no linear called {}", adaptation.targets.join(", ")));
        }
        parameters.iter().for_each(|parameter| parameter.set_trainable(false));
        (self.adapters, self.usual) = (number + 1, Some(number));
        Ok(count)
    }

    /// Lets rows choose: those that name an adapter ([`crate::Tokens::adapters`]) go through it, all others through the model itself.
    pub fn offer_adapters(&mut self) {
        self.usual = None;
    }

    /// Packs all adapters for the kernels, as the weights of a model to run are: the same bits in less time. They are not trained or written any more.
    ///
    /// # Errors
    /// [`Error::Nn`] for an adapter without elements, which [`Self::adapt`] excludes.
    pub fn pack_adapters(&mut self) -> Result<()> {
        Ok(self.linears_mut().into_iter().try_for_each(|(_, linear)| linear.pack_adapters())?)
    }

    /// How many adapters there are for rows to name: the numbers below it.
    pub fn num_adapters(&self) -> usize {
        self.adapters
    }

    /// Of the adapter that rows go through which name none, each adapted weight's published name and its part, in a fixed order.
    pub fn adapters(&self) -> Vec<(String, &Adapter)> {
        let Some(number) = self.usual else { return Vec::new() };
        let mut all = Vec::new();
        for (name, linear) in self.linears() {
            all.extend(linear.adapter(number).map(|adapter| (format!("{name}.weight"), adapter)));
        }
        all
    }

    /// Everything that is trained: the parameters, or the adapters of a model that has some.
    pub fn trained(&self) -> Vec<Arc<Parameter>> {
        let adapters = self.adapters().into_iter().filter_map(|(_, adapter)| adapter.parameters()).flatten().cloned();
        self.parameters().into_iter().filter(|parameter| parameter.is_trainable()).chain(adapters).collect()
    }

    /// Writes config and weights into `folder`, which exists, in the published layout: every parameter with its adapter's change in it, the
    /// correction biases, and what was kept of the source.
    ///
    /// # Errors
    /// As [`save_into`].
    pub fn save_into(&self, folder: &Path, kept: &[Kept], save_as: SaveAs) -> Result<()> {
        save_into(folder, &self.config, &self.save_tensors(), kept, save_as)
    }

    /// What [`Self::save_into`] writes: every parameter with its adapter's change in it, and the correction biases, each read when it is asked for.
    pub fn save_tensors(&self) -> Vec<SaveTensor<'static>> {
        let (parameters, adapters) = (self.parameters(), self.adapters());
        let parameters = parameters.into_iter().map(|parameter| {
            let adapter = adapters.iter().find(|(name, _)| *name == parameter.name());
            let adapter = adapter.map(|(_, adapter)| (*adapter).clone());
            let (name, shape) = (parameter.name().to_owned(), parameter.shape().to_vec());
            let values = move || {
                let mut values = parameter.to_vec()?;
                adapter.as_ref().map_or(Ok(()), |adapter| adapter.add_to(&mut values))?;
                Ok(Cow::Owned(values))
            };
            SaveTensor { name, shape, values: Box::new(values) }
        });
        let biases = self.correction_biases().into_iter().map(|(name, bias)| SaveTensor {
            name,
            shape: vec![1, bias.len()],
            values: Box::new(move || Ok(Cow::Owned(bias.clone()))),
        });
        parameters.chain(biases).collect()
    }

    /// One row of the embedding, widened into `out: [h]`.
    ///
    /// # Errors
    /// Where there is no such row.
    pub fn embedding_row(&self, index: usize, out: &mut [f32]) -> Result<()> {
        Ok(self.embed_tokens.row(index, out)?)
    }

    /// The linears that can be adapted, by their published names; those of routed experts where these are run one by one.
    fn linears(&self) -> Vec<(String, &Linear)> {
        let mut all = Vec::new();
        for (at, layer) in self.layers.iter().enumerate() {
            let mlps = layer.mlp.mlps().into_iter().flat_map(Mlp::linears);
            all.extend(names(at, &layer.mlp).into_iter().zip(layer.self_attn.linears().into_iter().chain(mlps)));
        }
        all
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut all = Vec::new();
        for (at, layer) in self.layers.iter_mut().enumerate() {
            let names = names(at, &layer.mlp);
            let mlps = layer.mlp.mlps_mut().into_iter().flat_map(Mlp::linears_mut);
            all.extend(names.into_iter().zip(layer.self_attn.linears_mut().into_iter().chain(mlps)));
        }
        all
    }
}

/// The names of a layer's linears: attention, then the MLPs of [`FeedForward::mlps`].
fn names(layer: usize, mlp: &FeedForward) -> Vec<String> {
    let (attention, gated) = TARGETS.split_at(4);
    let of = |part: String, targets: &'static [&'static str]| {
        targets.iter().map(move |target| format!("model.layers.{layer}.{part}.{target}"))
    };
    let mut all: Vec<String> = of("self_attn".into(), attention).collect();
    match mlp {
        FeedForward::Dense(_) => all.extend(of("mlp".into(), gated)),
        FeedForward::Moe(moe) => {
            all.extend(moe.shared_experts().into_iter().flat_map(|_| of("mlp.shared_experts".into(), gated)));
            all.extend((0..moe.opened().len()).flat_map(|expert| of(format!("mlp.experts.{expert}"), gated)));
        }
    }
    all
}

impl FeedForward {
    /// The MLP that every token goes through, and the experts that are run one by one.
    fn mlps(&self) -> Vec<&Mlp> {
        match self {
            Self::Dense(mlp) => vec![mlp],
            Self::Moe(moe) => moe.shared_experts().into_iter().chain(moe.opened()).collect(),
        }
    }

    fn mlps_mut(&mut self) -> Vec<&mut Mlp> {
        match self {
            Self::Dense(mlp) => vec![mlp],
            Self::Moe(moe) => moe.mlps_mut(),
        }
    }
}
