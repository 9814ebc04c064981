//! Every tensor of a model by its published name: the one list that loading, drawing, saving and counting share.

use std::ops::ControlFlow;

use super::{Architecture, ModelConfig, MoeConfig};

/// Published name of the head for labels, as `transformers` has it.
pub const SCORE: &str = "score.weight";

/// What a tensor is for; number formats and random drawing follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The embedding, and the head when it is the embedding.
    Embedding,
    /// The head of an untied model.
    Head,
    /// The head for labels; f32 in memory.
    Score,
    /// A projection of attention or of a dense, shared or routed MLP.
    Linear,
    /// The weight of an RMSNorm; always f32.
    Norm,
    /// The router of a MoE layer; always f32.
    Router,
    /// The bias that takes part in choosing experts only; always f32.
    CorrectionBias,
    /// The bias of a projection; always f32.
    Bias,
}

impl Role {
    /// The role of the tensor with this published name.
    pub fn of(name: &str) -> Self {
        if name == "model.embed_tokens.weight" {
            Role::Embedding
        } else if name == "lm_head.weight" {
            Role::Head
        } else if name == SCORE {
            Role::Score
        } else if name.ends_with("e_score_correction_bias") {
            Role::CorrectionBias
        } else if name.ends_with(".bias") {
            Role::Bias
        } else if name.ends_with("norm.weight") || is_mtp_norm(name) {
            Role::Norm
        } else if name.ends_with(".mlp.gate.weight") {
            Role::Router
        } else {
            Role::Linear
        }
    }

    /// Whether the tensor may be stored in 16 or 8 bits; the others stay f32.
    pub fn is_matrix(self) -> bool {
        matches!(self, Role::Embedding | Role::Head | Role::Linear)
    }
}

/// Whether it is one of the two norms before the projection of a module of multi-token prediction.
fn is_mtp_norm(name: &str) -> bool {
    name.starts_with("model.mtp_emb_norm.") || name.starts_with("model.mtp_hidden_norm.")
}

/// One tensor that a config calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Published name, as in the `-PT` checkpoints.
    pub name: String,
    /// Shape, rows (outputs) first.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl ModelConfig {
    /// Every tensor of the text model, in the order of the forward pass. MTP and vision are not in it.
    ///
    /// The list is as long as the model has tensors; use [`Self::for_each_tensor`] on a config that has not been
    /// matched with a file yet.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut all = Vec::new();
        let _ = self.for_each_tensor(&mut |spec| {
            all.push(spec);
            ControlFlow::Continue(())
        });
        all
    }

    /// Every tensor of the modules of multi-token prediction, module by module.
    pub fn mtp_tensors(&self) -> Vec<TensorSpec> {
        let (mut all, h) = (Vec::new(), self.hidden_size);
        for module in 0..self.mtp_layers {
            all.push(spec(format!("model.mtp_emb_norm.{module}.weight"), &[h], Role::Norm));
            all.push(spec(format!("model.mtp_hidden_norm.{module}.weight"), &[h], Role::Norm));
            all.push(spec(format!("model.mtp_linear_proj.{module}.weight"), &[h, 2 * h], Role::Linear));
            let _ = self.for_each_of_layer(&format!("model.mtp_block.{module}"), None, &mut |spec| {
                all.push(spec);
                ControlFlow::Continue(())
            });
        }
        all
    }

    /// Calls `visit` with every tensor of the text model in the order of the forward pass, until it breaks.
    pub fn for_each_tensor(&self, visit: &mut dyn FnMut(TensorSpec) -> ControlFlow<()>) -> ControlFlow<()> {
        let h = self.hidden_size;
        visit(spec("model.embed_tokens.weight".into(), &[self.vocab_size, h], Role::Embedding))?;
        for layer in 0..self.num_hidden_layers {
            let moe = self.moe.as_ref().filter(|_| self.is_moe_layer(layer));
            self.for_each_of_layer(&format!("model.layers.{layer}"), moe, visit)?;
        }
        visit(spec("model.norm.weight".into(), &[h], Role::Norm))?;
        if !self.tie_word_embeddings {
            visit(spec("lm_head.weight".into(), &[self.vocab_size, h], Role::Head))?;
        }
        if !self.labels.is_empty() {
            visit(spec(SCORE.into(), &[self.labels.len(), h], Role::Score))?;
        }
        ControlFlow::Continue(())
    }

    /// The tensors of the layer called `at`, whose feed-forward is that of `moe`, or dense.
    fn for_each_of_layer(
        &self,
        at: &str,
        moe: Option<&MoeConfig>,
        visit: &mut dyn FnMut(TensorSpec) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut emit = |name: String, shape: &[usize], role| visit(spec(name, shape, role));
        let h = self.hidden_size;
        emit(format!("{at}.input_layernorm.weight"), &[h], Role::Norm)?;
        let (q, kv) = (self.query_size(), self.key_value_size());
        for (part, out, input) in [("q_proj", q, h), ("k_proj", kv, h), ("v_proj", kv, h), ("o_proj", h, q)] {
            emit(format!("{at}.self_attn.{part}.weight"), &[out, input], Role::Linear)?;
            if self.use_bias {
                emit(format!("{at}.self_attn.{part}.bias"), &[out], Role::Bias)?;
            }
        }
        emit(format!("{at}.post_attention_layernorm.weight"), &[h], Role::Norm)?;
        let mut mlp = |at: &str, width: usize, bias: bool| {
            for (part, out, input) in [("gate_proj", width, h), ("up_proj", width, h), ("down_proj", h, width)] {
                emit(format!("{at}.{part}.weight"), &[out, input], Role::Linear)?;
                if bias {
                    emit(format!("{at}.{part}.bias"), &[out], Role::Bias)?;
                }
            }
            ControlFlow::Continue(())
        };
        let Some(moe) = moe else { return mlp(&format!("{at}.mlp"), self.intermediate_size, self.use_bias) };
        // Routed experts have no biases in the reference, whatever `use_bias` says.
        for expert in 0..moe.num_experts {
            mlp(&format!("{at}.mlp.experts.{expert}"), moe.intermediate_size, false)?;
        }
        if moe.num_shared_experts > 0 {
            mlp(&format!("{at}.mlp.shared_experts"), moe.shared_intermediate_size(), self.use_bias)?;
        }
        emit(format!("{at}.mlp.gate.weight"), &[moe.num_experts, h], Role::Router)?;
        if moe.use_correction_bias {
            let name = format!("{at}.mlp.moe_statics.e_score_correction_bias");
            emit(name, &[1, moe.num_experts], Role::CorrectionBias)?;
        }
        ControlFlow::Continue(())
    }

    /// Whether gates are stored `[hidden, experts]` and the correction bias has a second row for vision, as the
    /// published VL checkpoints have it.
    pub(crate) fn has_vl_layout(&self) -> bool {
        self.architecture == Architecture::VlText
    }
}

fn spec(name: String, shape: &[usize], role: Role) -> TensorSpec {
    TensorSpec { name, shape: shape.to_vec(), role }
}
