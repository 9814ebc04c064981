//! A [`ModelConfig`] as a `config.json` in the published spelling.

use serde_json::{Value, json};

use super::{Architecture, ModelConfig, StoredDtype, labels, quantization};

impl ModelConfig {
    /// The `config.json` of this model, in the spelling of the published `-PT` checkpoints.
    ///
    /// RoPE stands in both generations of spellings, with the same values, so that old and new programs read it.
    /// VL models are written in the flat hub form; token ids of pictures are not known here and are left out.
    pub fn to_json(&self) -> Value {
        let (class, kind) = match self.architecture {
            Architecture::Dense if self.labels.is_empty() => ("Ernie4_5ForCausalLM", "ernie4_5"),
            Architecture::Dense => ("Ernie4_5ForSequenceClassification", "ernie4_5"),
            Architecture::Moe if self.labels.is_empty() => ("Ernie4_5_MoeForCausalLM", "ernie4_5_moe"),
            Architecture::Moe => ("Ernie4_5_MoeForSequenceClassification", "ernie4_5_moe"),
            Architecture::VlText => ("Ernie4_5_VLMoeForConditionalGeneration", "ernie4_5_moe_vl"),
        };
        let dtype = self.dtype.map(|dtype| match dtype {
            StoredDtype::F32 => "float32",
            StoredDtype::F16 => "float16",
            StoredDtype::Bf16 => "bfloat16",
        });
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let mut root = json!({
            "architectures": [class],
            "model_type": kind,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "num_hidden_layers": self.num_hidden_layers,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_bias": self.use_bias,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        let mut put = |key: &str, value: Value| {
            root[key] = value;
        };
        if let Some(dtype) = dtype {
            put("torch_dtype", json!(dtype));
        }
        if let Some(moe) = &self.moe {
            let both = |text: usize, vision: Option<usize>| match vision {
                Some(vision) => json!([text, vision]),
                None => json!(text),
            };
            let vision = self.vision.as_ref();
            put("moe_num_experts", both(moe.num_experts, vision.map(|v| v.num_experts)));
            put("moe_intermediate_size", both(moe.intermediate_size, vision.map(|v| v.expert_intermediate_size)));
            put("moe_k", json!(moe.k));
            put("moe_num_shared_experts", json!(moe.num_shared_experts));
            put("moe_layer_start_index", both(moe.layer_start_index, vision.map(|_| moe.layer_start_index)));
            put("moe_layer_end_index", both(moe.layer_end_index, vision.map(|_| moe.layer_end_index)));
            put("moe_layer_interval", json!(moe.layer_interval));
            put("moe_norm_min", json!(moe.norm_min));
            put("moe_use_aux_free", json!(moe.use_correction_bias));
        }
        if self.mtp_layers > 0 {
            put("num_nextn_predict_layers", json!(self.mtp_layers));
        }
        if let Some(vision) = &self.vision {
            put("rope_3d", json!(true));
            put("freq_allocation", json!(vision.freq_allocation));
            put("pixel_hidden_size", json!(vision.hidden_size));
            put("spatial_conv_size", json!(vision.spatial_merge_size));
            put("temporal_conv_size", json!(vision.temporal_merge_size));
            put("use_temporal_conv", json!(true));
            put(
                "vision_config",
                json!({
                    "model_type": "DFNRope_vision_transformer",
                    "depth": vision.depth,
                    "embed_dim": vision.hidden_size,
                    "hidden_size": vision.hidden_size,
                    "hidden_act": "quick_gelu",
                    "intermediate_size": vision.intermediate_size,
                    "num_heads": vision.num_heads,
                    "in_channels": vision.in_channels,
                    "patch_size": vision.patch_size,
                    "spatial_merge_size": vision.spatial_merge_size,
                }),
            );
        }
        if let Some(kind) = self.quantization {
            put("quantization_config", quantization::write(kind));
        }
        if !self.labels.is_empty() {
            labels::write(&self.labels, &mut root);
        }
        root
    }
}
