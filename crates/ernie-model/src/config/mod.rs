//! What a model is: every number of its shape, checked once, under the published names.
//!
//! A [`ModelConfig`] comes from a `config.json` ([`ModelConfig::from_json`]), from the metadata of a GGUF
//! ([`ModelConfig::from_gguf`]) or from a preset ([`ModelConfig::preset`]). All three end in the same checks, so
//! that the rest of the crate never meets a shape that cannot be: heads divide evenly, top-k is at most the number
//! of experts, nothing is zero that must not be, and no product of dimensions wraps. What would change the numbers
//! and is not implemented (RoPE scaling, sliding windows, another activation) is an error that names the key.
//!
//! It is not a place for run-time settings such as number formats or thread counts.

mod check;
mod count;
mod gguf;
mod json;
mod keys;
mod labels;
mod parse;
mod presets;
mod quantization;
mod tensors;
mod vision;
mod write;

pub use count::ParameterCount;
pub(crate) use labels::default_labels;
pub use labels::{MOST_LABELS, check_labels};
pub(crate) use parse::MAX_CONFIG_BYTES;
pub use presets::{PRESETS, Preset};
pub(crate) use quantization::INT4_GROUP;
pub use tensors::{Role, SCORE, TensorSpec};
pub use vision::VisionConfig;

/// Which of the family's decoders a config describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `Ernie4_5ForCausalLM`: every layer has a dense feed-forward. With [`ModelConfig::labels`], `Ernie4_5ForSequenceClassification`.
    Dense,
    /// `Ernie4_5_MoeForCausalLM`: some layers route to experts. With labels, `Ernie4_5_MoeForSequenceClassification`.
    Moe,
    /// The text side of `Ernie4_5_VLMoeForConditionalGeneration`; pictures are not built yet.
    VlText,
}

/// The number type a checkpoint is stored in, as its config names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit brain floats, what the released checkpoints use.
    Bf16,
}

/// A weight format that a `quantization_config` describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// `NAME.weight` as I8 `[out, in]` with `NAME.weight_scale` `[out, 1]`: symmetric, one scale a row.
    Int8Channel,
    /// Matrices as `NAME.weight_packed`, I32 `[out, in / 8]` with eight weights of four bits each, the first in the lowest bits, and `NAME.weight_scale`
    /// `[out, groups]`; where the zero is not in the middle, `NAME.weight_zero_point`, I32 `[out / 8, groups]`. Embedding and head may be as in
    /// [`Self::Int8Channel`].
    Int4Group,
}

/// The mixture-of-experts half of a config; present in MoE and VL models.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MoeConfig {
    /// Routed experts per MoE layer (`moe_num_experts`).
    pub num_experts: usize,
    /// Experts per token (`moe_k`), at least 1, at most [`Self::num_experts`].
    pub k: usize,
    /// Width of one expert (`moe_intermediate_size`).
    pub intermediate_size: usize,
    /// Shared experts (`moe_num_shared_experts`): one MLP of this many times [`Self::intermediate_size`]; 0 is none.
    pub num_shared_experts: usize,
    /// First layer that may be MoE (`moe_layer_start_index`).
    pub layer_start_index: usize,
    /// Last layer that may be MoE, inclusive, already clamped to the last layer (`moe_layer_end_index`).
    pub layer_end_index: usize,
    /// Layer `i` in that range is MoE when `(i + 1) % layer_interval == 0`.
    pub layer_interval: usize,
    /// Floor of the sum that renormalises the chosen probabilities (`moe_norm_min`).
    pub norm_min: f64,
    /// Whether the selection adds `moe_statics.e_score_correction_bias` (`moe_use_aux_free`).
    pub use_correction_bias: bool,
}

impl MoeConfig {
    /// Width of the one shared MLP; 0 when there is none.
    pub fn shared_intermediate_size(&self) -> usize {
        self.num_shared_experts * self.intermediate_size
    }
}

/// The shape of a model, checked.
///
/// Fields carry the published names. The type cannot be built outside this crate except through the readers, so a
/// value at hand has passed every check; whoever changes a field calls [`Self::check`] again.
///
/// ```
/// let config = ernie_model::ModelConfig::preset("ernie-4.5-0.3b")?;
/// assert_eq!(config.parameters().total, 360_748_032);
/// assert_eq!(config.kv_bytes_per_token(2), 18 * 1024);
/// # Ok::<(), ernie_model::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Dense, MoE, or the text side of a VL model.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense feed-forward.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides [`Self::num_attention_heads`].
    pub num_key_value_heads: usize,
    /// Width of one head, even. Explicit: heads × head_dim need not be the hidden size.
    pub head_dim: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v, o and the MLPs have biases.
    pub use_bias: bool,
    /// Beginning-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// Ids that end a generation; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Padding id.
    pub pad_token_id: Option<u32>,
    /// Standard deviation of freshly drawn matrices: 0.02 where a `config.json` says nothing, as in the reference;
    /// `sqrt(1 / (3 hidden_size))`, the family's own, in the presets.
    pub initializer_range: f64,
    /// The experts; `None` in dense models.
    pub moe: Option<MoeConfig>,
    /// Multi-token-prediction modules in the checkpoint (`num_nextn_predict_layers`); kept and named, not run.
    pub mtp_layers: usize,
    /// The labels that a classification head tells apart, by their ids; empty where the model has no such head.
    pub labels: Vec<String>,
    /// The picture side of a VL model, for counting only.
    pub vision: Option<VisionConfig>,
    /// The number type of the stored weights, where the config says.
    pub dtype: Option<StoredDtype>,
    /// How the stored weights are quantised, where they are.
    pub quantization: Option<Quantization>,
}

impl ModelConfig {
    /// Whether layer `index` routes to experts.
    pub fn is_moe_layer(&self, index: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| {
            (index + 1).is_multiple_of(moe.layer_interval)
                && (moe.layer_start_index..=moe.layer_end_index).contains(&index)
        })
    }

    /// Width of the query projection, heads × head_dim.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the key and of the value projection, key/value heads × head_dim.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The same model over another vocabulary, for training with a tokenizer of one's own.
    ///
    /// # Errors
    /// [`crate::Error::Key`] when the size is 0 or beyond the cap, or a special id falls outside it.
    pub fn with_vocab_size(mut self, vocab_size: usize) -> crate::Result<Self> {
        self.vocab_size = vocab_size;
        self.check("model")?;
        Ok(self)
    }
}
