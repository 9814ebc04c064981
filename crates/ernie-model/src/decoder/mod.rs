//! The one decoder of the family, dense and mixture-of-experts alike.
//!
//! A batch is a flat list of tokens ([`Tokens`]); sequences are spans of it, so sequences of different
//! lengths share a pass without padding. Whether keys and values live in a cache or only in this pass is a
//! matter of who attends: with a [`KvCache`] the pass continues its sequences, without one each span stands
//! alone, with gradients. Number formats are kinds of `Linear`; this file does not know them.
//!
//! Shape letters: `T` tokens, `h` hidden, `N` query heads, `K` key-value heads, `D` head width, `E` experts,
//! `V` vocabulary.

mod adapt;
mod attention;
mod build;
mod cache;
mod layer;
mod mlp;
mod moe;
mod mtp;
mod norm;
mod probe;
mod recompute;
mod score;
mod tokens;

pub use adapt::{Adaptation, TARGETS};
pub use build::{build, build_trainable, load, load_trainable};
pub use cache::{CacheFormat, ContiguousCache, KvCache, PAGE, PagedCache};
pub use ernie_nn::ops::{CrossEntropy, IGNORED, Routing};
pub use moe::MoeLayer;
pub use probe::Probe;
pub use score::{Classifier, likeliest};
pub use tokens::{Span, Tokens};

use std::sync::Arc;

use ernie_nn::ops::{self, Angles, Outputs};
use ernie_nn::{Form, Linear, Parameter, Through, Value, Weight, no_grad};

use crate::{Error, ModelConfig, Result};
use layer::{DecoderLayer, FeedForward, Pass};
use mtp::MtpModule;
use norm::RmsNorm;

/// In what width activations are kept between ops; sums, norms, router and softmax are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activations {
    F32,
    /// Rounded to bf16 after every op, as the reference computes in bf16.
    Bf16,
    /// As training in bf16 keeps them: the residual stream in f32, and in bf16 what norms, products and what follows them give.
    Mixed,
}

impl Activations {
    pub(crate) fn keep(self, value: Value) -> Result<Value> {
        match self {
            Self::F32 | Self::Mixed => Ok(value),
            Self::Bf16 => Ok(ops::round_to_bf16(&value)?),
        }
    }
}

/// The model: embedding, layers, final norm, head.
pub struct Decoder {
    config: ModelConfig,
    embed_tokens: Weight,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    /// The head for labels, where the config names some.
    score: Option<Linear>,
    /// Only where they are trained.
    mtp: Vec<MtpModule>,
    activations: Activations,
    recompute: bool,
    /// How many adapters there are.
    adapters: usize,
    /// The adapter of rows that name none.
    usual: Option<usize>,
}

impl Decoder {
    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Final hidden states of a batch.
    ///
    /// # Shapes
    /// `T` tokens → `[T, h]`, after the final norm.
    ///
    /// # Errors
    /// [`Error::Request`] if an id is not below `V`, the spans do not cover the rows, or there is no adapter that rows name.
    pub fn hidden(&self, tokens: &Tokens, cache: Option<&mut dyn KvCache>, probe: &mut dyn Probe) -> Result<Value> {
        self.normed(&self.residual(tokens, cache, probe)?)
    }

    /// The residual stream after the last layer.
    ///
    /// # Shapes
    /// `T` tokens → `[T, h]`, before the final norm.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn residual(&self, tokens: &Tokens, cache: Option<&mut dyn KvCache>, probe: &mut dyn Probe) -> Result<Value> {
        tokens.check(self.config.vocab_size)?;
        let (through, config) = (tokens.through(self.adapters, self.usual)?, &self.config);
        let mut pass = Pass {
            layer: 0,
            spans: &tokens.spans,
            through,
            angles: Angles::new(&tokens.positions, config.head_dim, config.rope_theta),
            // The casts shorten the borrow of what is behind the reference, which an `Option` alone does not.
            cache: cache.map(|cache| cache as &mut dyn KvCache),
            probe: probe as &mut dyn Probe,
            activations: self.activations,
            outputs: Outputs::Read,
        };
        let mut x = pass.keep(ops::embedding(&tokens.ids, &self.embed_tokens)?)?;
        pass.probe.record("embed_out", &x);
        for (index, layer) in self.layers.iter().enumerate() {
            pass.layer = index;
            x = self.run(layer, &x, &mut pass)?;
        }
        Ok(x)
    }

    /// The final norm of a residual stream, which is what the head takes: `[T, h] → [T, h]`.
    pub fn normed(&self, residual: &Value) -> Result<Value> {
        self.norm.forward(residual)
    }

    /// Logits of hidden states: `[R, h] → [R, V]`, f32.
    pub fn logits(&self, hidden: &Value) -> Result<Value> {
        self.activations.keep(self.lm_head.forward(hidden, &Through::Weights)?)
    }

    /// As [`Self::logits`], as plain numbers and without recording: `[T, V]`, row-major.
    ///
    /// # Errors
    /// As there.
    pub fn logits_of(&self, hidden: &Value) -> Result<Vec<f32>> {
        match self.activations {
            Activations::F32 => Ok(self.lm_head.numbers(hidden)?),
            Activations::Bf16 | Activations::Mixed => no_grad(|| Ok(self.logits(hidden)?.to_vec()?)),
        }
    }

    /// Logits of the chosen rows of a batch, without recording. `[rows.len(), V]`, row-major.
    ///
    /// # Errors
    /// As [`Self::hidden`]; and [`Error::Request`] if a row is beyond the batch.
    pub fn forward_logits(&self, tokens: &Tokens, cache: Option<&mut dyn KvCache>, rows: &[usize]) -> Result<Vec<f32>> {
        no_grad(|| {
            if let Some(row) = rows.iter().find(|&&row| row >= tokens.len()) {
                return Err(Error::Request(format!("row {row} of {}", tokens.len())));
            }
            let hidden = self.hidden(tokens, cache, &mut ())?;
            self.logits_of(&hidden.rows(rows)?)
        })
    }

    /// `factor · Σ` of the cross-entropies of `hidden: [T, h]` against `targets: [T]`
    /// ([`IGNORED`] carries none), in nats. The logits never exist whole.
    pub fn loss(&self, hidden: &Value, targets: &[i64], factor: f64) -> Result<CrossEntropy> {
        Ok(ops::head_cross_entropy(hidden, self.lm_head.weight(), targets, factor)?)
    }

    /// As [`Self::loss`], with a factor of its own for each token: `factors: [T]`.
    pub fn weighted_loss(&self, hidden: &Value, targets: &[i64], factors: &[f32]) -> Result<CrossEntropy> {
        Ok(ops::weighted_head_cross_entropy(hidden, self.lm_head.weight(), targets, factors)?)
    }

    /// Every trainable parameter under its published name, in a fixed order; a tied head once, multi-token prediction last.
    ///
    /// Without matrices in a model that was loaded to run ([`load`]).
    pub fn parameters(&self) -> Vec<Arc<Parameter>> {
        let mut all = Vec::new();
        all.extend(self.embed_tokens.parameter().cloned());
        self.layers.iter().for_each(|layer| layer.collect(&mut all));
        all.push(self.norm.weight().clone());
        if !self.config.tie_word_embeddings {
            all.extend(self.lm_head.weight().parameter().cloned());
        }
        all.extend(self.score.iter().filter_map(|score| score.weight().parameter().cloned()));
        self.mtp.iter().for_each(|module| module.collect(&mut all));
        all
    }

    /// The mixture-of-experts layers with their layer index.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, &MoeLayer)> {
        self.layers.iter().enumerate().filter_map(|(index, layer)| match &layer.mlp {
            FeedForward::Moe(moe) => Some((index, moe)),
            FeedForward::Dense(_) => None,
        })
    }

    /// The correction biases under their published names, `[1, E]` each; those that there are.
    pub fn correction_biases(&self) -> Vec<(String, Vec<f32>)> {
        let all = self.moe_layers().map(|(layer, moe)| (bias_name(layer), moe.correction_bias()));
        all.filter(|(_, bias)| !bias.is_empty()).collect()
    }

    /// The cache that suits the weights: f32 beside weights in f32, else bf16, whose rounding is below that of the weights.
    pub fn cache_format(&self) -> CacheFormat {
        match &self.embed_tokens {
            Weight::Parameter(_) => CacheFormat::F32,
            Weight::Packed(packed) if packed.form() == Form::F32 => CacheFormat::F32,
            Weight::Packed(_) => CacheFormat::Bf16,
        }
    }

    /// Bytes the weights take, each shared tensor once.
    pub fn weight_bytes(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(DecoderLayer::weight_bytes).sum();
        let head = if self.config.tie_word_embeddings { 0 } else { self.lm_head.weight().memory_bytes() };
        let score = self.score.as_ref().map_or(0, |score| score.weight().memory_bytes());
        self.embed_tokens.memory_bytes() + layers + head + score + 4 * self.config.hidden_size as u64
    }
}

/// Published name of a layer's correction bias.
pub fn bias_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.moe_statics.e_score_correction_bias")
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({:?}, {} layers)", self.config.architecture, self.layers.len())
    }
}
