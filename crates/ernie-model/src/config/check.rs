//! The checks every config passes, wherever it came from.
//!
//! The caps are far above any model of the family and far below what could wrap a product or make a loop endless.

use super::{Architecture, ModelConfig, check_labels};
use crate::{Error, Result};

/// Most layers.
pub(super) const MAX_LAYERS: usize = 4096;
/// Widest dimension of a vector: hidden size, MLP width.
pub(super) const MAX_WIDTH: usize = 1 << 20;
/// Most rows of the embedding.
pub(super) const MAX_VOCAB: usize = 1 << 24;
/// Most heads, and most experts per layer.
pub(super) const MAX_PARTS: usize = 4096;
/// Widest head.
pub(super) const MAX_HEAD_DIM: usize = 1 << 13;
/// Longest context.
pub(super) const MAX_CONTEXT: usize = 1 << 30;
/// Most parameters of a whole model.
const MAX_PARAMETERS: u128 = 1 << 50;

impl ModelConfig {
    /// Checks that the numbers make a model. Readers call it; call it again after changing a field.
    ///
    /// `place` says in an error where the numbers came from.
    ///
    /// # Errors
    /// [`Error::Key`] naming the first key at fault.
    pub fn check(&self, place: &str) -> Result<()> {
        let wrong = |key: &str, problem: String| Err(Error::key(place, key, problem));
        let counts = [
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_PARTS),
            ("num_key_value_heads", self.num_key_value_heads, MAX_PARTS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("max_position_embeddings", self.max_position_embeddings, MAX_CONTEXT),
        ];
        for (key, value, cap) in counts {
            if value == 0 || value > cap {
                return wrong(key, format!("expected an integer in 1..={cap}, found {value}"));
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return wrong("num_key_value_heads", format!("{kv_heads} does not divide the {heads} attention heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", format!("expected an even number, found {}", self.head_dim));
        }
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(key, format!("expected a number above 0, found {value}"));
            }
        }
        // The kernels keep epsilon in f32: it must neither vanish nor drown the signal there.
        if self.rms_norm_eps < f64::from(f32::MIN_POSITIVE) || self.rms_norm_eps > 1.0 {
            return wrong("rms_norm_eps", format!("expected a small number up to 1, found {}", self.rms_norm_eps));
        }
        let ids = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let eos = self.eos_token_ids.iter().map(|&id| ("eos_token_id", Some(id)));
        for (key, id) in ids.into_iter().chain(eos) {
            if let Some(id) = id
                && id as usize >= self.vocab_size
            {
                return wrong(key, format!("{id} is not below the vocabulary size {}", self.vocab_size));
            }
        }
        if !self.labels.is_empty() {
            check_labels(&self.labels).or_else(|problem| wrong("id2label", problem))?;
        }
        self.check_moe(place)?;
        let (total, _, mtp) = self.wide_parameters();
        if total + mtp > MAX_PARAMETERS {
            return wrong("hidden_size", format!("the dimensions make {total} parameters, more than 2^50"));
        }
        Ok(())
    }

    fn check_moe(&self, place: &str) -> Result<()> {
        let wrong = |key: &str, problem: String| Err(Error::key(place, key, problem));
        if self.moe.is_some() != (self.architecture != Architecture::Dense) {
            return wrong("architectures", "experts and architecture contradict each other".into());
        }
        if self.vision.is_some() != (self.architecture == Architecture::VlText) {
            return wrong("vision_config", "expected in a VL model, and only there".into());
        }
        let Some(moe) = &self.moe else { return Ok(()) };
        let counts = [
            ("moe_num_experts", moe.num_experts, 1, MAX_PARTS),
            ("moe_k", moe.k, 1, moe.num_experts),
            ("moe_intermediate_size", moe.intermediate_size, 1, MAX_WIDTH),
            ("moe_num_shared_experts", moe.num_shared_experts, 0, MAX_PARTS),
            ("moe_layer_interval", moe.layer_interval, 1, MAX_LAYERS),
            ("moe_layer_end_index", moe.layer_end_index, 0, self.num_hidden_layers - 1),
            ("moe_layer_start_index", moe.layer_start_index, 0, moe.layer_end_index),
        ];
        for (key, value, low, high) in counts {
            if value < low || value > high {
                return wrong(key, format!("expected an integer in {low}..={high}, found {value}"));
            }
        }
        if moe.shared_intermediate_size() > MAX_WIDTH {
            let width = moe.shared_intermediate_size();
            return wrong(
                "moe_num_shared_experts",
                format!("the shared MLP would be {width} wide, more than {MAX_WIDTH}"),
            );
        }
        if !(moe.norm_min.is_finite() && moe.norm_min > 0.0) {
            return wrong("moe_norm_min", format!("expected a number above 0, found {}", moe.norm_min));
        }
        if self.moe_layers() == 0 {
            return wrong("moe_layer_interval", "no layer is a MoE layer".into());
        }
        Ok(())
    }
}
