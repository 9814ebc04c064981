//! From named tensors to a decoder. Names are the published ones; shapes follow from the config.

use std::sync::Arc;

use ernie_nn::ops::Expert;
use ernie_nn::{Heads, Linear, Parameter, Weight, Width};

use super::attention::Attention;
use super::layer::{DecoderLayer, FeedForward};
use super::mlp::Mlp;
use super::mtp::MtpModule;
use super::norm::RmsNorm;
use super::{Activations, Decoder, MoeLayer};
use crate::config::{MoeConfig, SCORE};
use crate::weights::Weights;
use crate::{LoadReport, Loaded, ModelConfig, ModelSource, Result, WeightsAs};

/// Loads a model to run: its weights packed for the kernels, in the format asked for. It has no parameters to train.
///
/// Each tensor goes from the map into its final form; every one is used or named in the report.
///
/// # Errors
/// Input errors name the file and the tensor or key; see [`crate::Error`].
pub fn load(source: &ModelSource, weights: WeightsAs) -> Result<Loaded> {
    build(Weights::open(source, weights)?)
}

/// A model from weights that are open already, such as [`Weights::random`] for a config of one's own.
///
/// # Errors
/// As [`load`].
pub fn build(weights: Weights) -> Result<Loaded> {
    finish(weights, None)
}

/// As [`load`], with f32 parameters to train, whose products are computed in `products`.
///
/// In bf16 the router stays in f32, as do norms, sums and the residual stream; what is kept for the backward pass is half as large.
///
/// # Errors
/// As [`load`].
pub fn load_trainable(source: &ModelSource, products: Width) -> Result<Loaded> {
    build_trainable(Weights::open(source, WeightsAs::F32)?, products)
}

/// As [`build`], with parameters to train ([`load_trainable`]); these are f32 whatever the weights were opened as.
///
/// # Errors
/// As [`load`].
pub fn build_trainable(weights: Weights, products: Width) -> Result<Loaded> {
    finish(weights, Some(products))
}

fn finish(mut weights: Weights, trained: Option<Width>) -> Result<Loaded> {
    let config = weights.config().clone();
    let activations = match trained {
        Some(Width::Bf16) => Activations::Mixed,
        _ => activations(weights.weights_as()),
    };
    let decoder = Builder { weights: &mut weights, activations, trained }.decoder(config)?;
    let report: LoadReport = weights.finish()?;
    Ok(Loaded { decoder, report })
}

fn activations(weights: WeightsAs) -> Activations {
    match weights {
        WeightsAs::Bf16 => Activations::Bf16,
        _ => Activations::F32,
    }
}

struct Builder<'a> {
    weights: &'a mut Weights,
    activations: Activations,
    /// The width of products, where parameters are trained.
    trained: Option<Width>,
}

impl Builder<'_> {
    fn decoder(mut self, config: ModelConfig) -> Result<Decoder> {
        let hidden = config.hidden_size;
        let embed_tokens = self.matrix("model.embed_tokens", [config.vocab_size, hidden])?;
        let layer = |index| {
            let moe = config.moe.as_ref().filter(|_| config.is_moe_layer(index));
            self.layer(&config, &format!("model.layers.{index}"), moe)
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let norm = self.norm("model.norm", &config)?;
        let lm_head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => self.matrix("lm_head", [config.vocab_size, hidden])?,
        };
        let score = match config.labels.len() {
            0 => None,
            labels => Some(Linear::new(Weight::Parameter(self.parameter(SCORE, &[labels, hidden])?), None)),
        };
        let mtp = match self.trained {
            Some(_) => (0..self.weights.mtp_to_train()).map(|index| self.mtp(&config, index)).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        let (lm_head, activations) = (Linear::new(lm_head, None), self.activations);
        let decoder = Decoder {
            config,
            embed_tokens,
            layers,
            norm,
            lm_head,
            score,
            mtp,
            activations,
            recompute: false,
            adapters: 0,
            usual: None,
        };
        Ok(decoder)
    }

    fn mtp(&mut self, config: &ModelConfig, index: usize) -> Result<MtpModule> {
        let h = config.hidden_size;
        Ok(MtpModule {
            emb_norm: self.norm(&format!("model.mtp_emb_norm.{index}"), config)?,
            hidden_norm: self.norm(&format!("model.mtp_hidden_norm.{index}"), config)?,
            linear_proj: self.linear(&format!("model.mtp_linear_proj.{index}"), [h, 2 * h], false)?,
            block: self.layer(config, &format!("model.mtp_block.{index}"), None)?,
        })
    }

    /// The layer called `at`, whose feed-forward is that of `moe`, or dense.
    fn layer(&mut self, config: &ModelConfig, at: &str, moe: Option<&MoeConfig>) -> Result<DecoderLayer> {
        let mlp = match moe {
            Some(moe) => FeedForward::Moe(self.moe(&format!("{at}.mlp"), config, moe)?),
            None => FeedForward::Dense(self.mlp(&format!("{at}.mlp"), config, config.intermediate_size)?),
        };
        Ok(DecoderLayer {
            input_layernorm: self.norm(&format!("{at}.input_layernorm"), config)?,
            self_attn: self.attention(&format!("{at}.self_attn"), config)?,
            post_attention_layernorm: self.norm(&format!("{at}.post_attention_layernorm"), config)?,
            mlp,
        })
    }

    fn attention(&mut self, at: &str, config: &ModelConfig) -> Result<Attention> {
        let (hidden, bias) = (config.hidden_size, config.use_bias);
        let (query, key_value) = (config.query_size(), config.key_value_size());
        Ok(Attention {
            q_proj: self.linear(&format!("{at}.q_proj"), [query, hidden], bias)?,
            k_proj: self.linear(&format!("{at}.k_proj"), [key_value, hidden], bias)?,
            v_proj: self.linear(&format!("{at}.v_proj"), [key_value, hidden], bias)?,
            o_proj: self.linear(&format!("{at}.o_proj"), [hidden, query], bias)?,
            heads: Heads {
                query_heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
        })
    }

    fn mlp(&mut self, at: &str, config: &ModelConfig, width: usize) -> Result<Mlp> {
        let (hidden, bias) = (config.hidden_size, config.use_bias);
        Ok(Mlp {
            gate_proj: self.linear(&format!("{at}.gate_proj"), [width, hidden], bias)?,
            up_proj: self.linear(&format!("{at}.up_proj"), [width, hidden], bias)?,
            down_proj: self.linear(&format!("{at}.down_proj"), [hidden, width], bias)?,
        })
    }

    fn moe(&mut self, at: &str, config: &ModelConfig, moe: &MoeConfig) -> Result<MoeLayer> {
        let (hidden, width) = (config.hidden_size, moe.intermediate_size);
        let gate = self.parameter(&format!("{at}.gate.weight"), &[moe.num_experts, hidden])?;
        let bias = match moe.use_correction_bias {
            true => {
                self.weights.take_f32(&format!("{at}.moe_statics.e_score_correction_bias"), &[1, moe.num_experts])?
            }
            false => Vec::new(),
        };
        let expert = |index: usize| {
            let at = format!("{at}.experts.{index}");
            Ok(Expert {
                gate_proj: self.matrix(&format!("{at}.gate_proj"), [width, hidden])?,
                up_proj: self.matrix(&format!("{at}.up_proj"), [width, hidden])?,
                down_proj: self.matrix(&format!("{at}.down_proj"), [hidden, width])?,
            })
        };
        let experts = (0..moe.num_experts).map(expert).collect::<Result<_>>()?;
        let shared = match moe.shared_intermediate_size() {
            0 => None,
            width => Some(self.mlp(&format!("{at}.shared_experts"), config, width)?),
        };
        let gate = Linear::new(Weight::Parameter(gate), None);
        Ok(MoeLayer::new(gate, bias, experts, shared, (moe.k, moe.norm_min)))
    }

    fn norm(&mut self, at: &str, config: &ModelConfig) -> Result<RmsNorm> {
        let weight = self.parameter(&format!("{at}.weight"), &[config.hidden_size])?;
        Ok(RmsNorm::new(weight, config.rms_norm_eps, self.activations))
    }

    fn linear(&mut self, at: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.matrix(at, shape)?;
        let bias = match bias {
            true => Some(self.parameter(&format!("{at}.bias"), &shape[..1])?),
            false => None,
        };
        Ok(Linear::new(weight, bias))
    }

    /// A matrix: a parameter to train, or packed for the kernels.
    fn matrix(&mut self, at: &str, shape: [usize; 2]) -> Result<Weight> {
        let name = format!("{at}.weight");
        if let Some(products) = self.trained {
            let data = self.weights.take_f32(&name, &shape)?;
            return Ok(Weight::Parameter(Parameter::multiplied_in(products, name, data, &shape)?));
        }
        Ok(Weight::Packed(Arc::new(self.weights.take(&name, &shape)?.pack()?)))
    }

    /// A tensor that is f32 in every mode.
    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Parameter>> {
        Ok(Parameter::from_vec(name, self.weights.take_f32(name, shape)?, shape)?)
    }
}
