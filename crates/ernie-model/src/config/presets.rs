//! The series: named shapes, exact to the parameter.

use super::{Architecture, ModelConfig, MoeConfig, StoredDtype, VisionConfig};
use crate::{Error, Result};

/// One entry of the series.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// A second name, where it has one.
    pub alias: Option<&'static str>,
    /// What it is for, in a line.
    pub about: &'static str,
    build: fn() -> ModelConfig,
}

/// Every preset, small to large, benchmark shapes last.
pub const PRESETS: &[Preset] = &[
    Preset { name: "nano", alias: None, about: "small plain MoE, trained in minutes on a CPU", build: nano },
    Preset { name: "base", alias: Some("ernie-4.5-0.3b"), about: "dense text model for the edge", build: base },
    Preset { name: "ernie-4.5-21b-a3b", alias: None, about: "MoE text model", build: moe_21b },
    Preset { name: "pro", alias: Some("ernie-4.5-vl-28b-a3b"), about: "text, image and video", build: vl_28b },
    Preset {
        name: "enterprise",
        alias: Some("ernie-4.5-300b-a47b"),
        about: "private deployment on a cluster",
        build: moe_300b,
    },
    Preset { name: "ernie-4.5-vl-424b-a47b", alias: None, about: "text, image and video on a cluster", build: vl_424b },
    Preset {
        name: "bench-dense-28m",
        alias: None,
        about: "the dense shape of the training benchmark",
        build: bench_dense,
    },
    Preset { name: "bench-moe-22m", alias: None, about: "the MoE shape of the training benchmark", build: bench_moe },
];

impl ModelConfig {
    /// The shape called `name`, by either of its names.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`] listing the names there are.
    pub fn preset(name: &str) -> Result<Self> {
        let preset = PRESETS.iter().find(|preset| preset.name == name || preset.alias == Some(name));
        let Some(preset) = preset else {
            if name == "nano-article" {
                return Err(Error::not_built("the preset `nano-article` (the article's switches)"));
            }
            let names = PRESETS.iter().flat_map(|preset| [Some(preset.name), preset.alias]).flatten();
            let known = names.collect::<Vec<_>>().join(", ");
            return Err(Error::UnknownPreset { name: name.chars().take(60).collect(), known });
        };
        let config = (preset.build)();
        config.check(&format!("preset:{name}"))?;
        Ok(config)
    }
}

/// A dense model of the released family, on which the others are variations.
fn released() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Dense,
        vocab_size: 103_424,
        hidden_size: 1024,
        intermediate_size: 3072,
        num_hidden_layers: 18,
        num_attention_heads: 16,
        num_key_value_heads: 2,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        max_position_embeddings: 131_072,
        tie_word_embeddings: true,
        use_bias: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        initializer_range: 0.02,
        moe: None,
        mtp_layers: 0,
        labels: Vec::new(),
        vision: None,
        dtype: Some(StoredDtype::Bf16),
        quantization: None,
    }
    .with_own_range()
}

impl ModelConfig {
    /// Sets the family's own initial spread, `sqrt(1 / (3 hidden_size))`.
    fn with_own_range(mut self) -> Self {
        self.initializer_range = own_range(self.hidden_size);
        self
    }
}

/// The family's initial standard deviation of matrices, `sqrt(1 / (3 hidden_size))`, to a millionth, so that it
/// stands in a `config.json` as it is.
fn own_range(hidden_size: usize) -> f64 {
    ((1.0 / (3.0 * hidden_size as f64)).sqrt() * 1e6).round() / 1e6
}

fn base() -> ModelConfig {
    released()
}

/// Four layers of width 256, the first dense, then eight experts of which two serve a token, and one shared. What is
/// learned in minutes on two cores is bounded by the multiplications a token costs, so it is small where a token
/// passes and wider where it does not: with a vocabulary of 4,096 it has 4.9 million parameters, 3.1 million of them
/// active.
fn nano() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Moe,
        vocab_size: 4096,
        hidden_size: 256,
        intermediate_size: 640,
        num_hidden_layers: 4,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 32,
        max_position_embeddings: 2048,
        rope_theta: 10_000.0,
        bos_token_id: None,
        eos_token_ids: vec![],
        pad_token_id: None,
        dtype: Some(StoredDtype::F32),
        moe: Some(experts(8, 2, 128, 1, 1, 3)),
        ..released()
    }
    .with_own_range()
}

fn experts(num_experts: usize, k: usize, width: usize, shared: usize, start: usize, end: usize) -> MoeConfig {
    MoeConfig {
        num_experts,
        k,
        intermediate_size: width,
        num_shared_experts: shared,
        layer_start_index: start,
        layer_end_index: end,
        layer_interval: 1,
        norm_min: 1e-12,
        use_correction_bias: true,
    }
}

fn moe_21b() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Moe,
        hidden_size: 2560,
        intermediate_size: 12_288,
        num_hidden_layers: 28,
        num_attention_heads: 20,
        num_key_value_heads: 4,
        moe: Some(experts(64, 6, 1536, 2, 1, 27)),
        mtp_layers: 1,
        ..released()
    }
    .with_own_range()
}

fn moe_300b() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Moe,
        hidden_size: 8192,
        intermediate_size: 28_672,
        num_hidden_layers: 54,
        num_attention_heads: 64,
        num_key_value_heads: 8,
        tie_word_embeddings: false,
        moe: Some(experts(64, 8, 3584, 0, 3, 53)),
        mtp_layers: 1,
        ..released()
    }
    .with_own_range()
}

fn vision(expert_intermediate_size: usize) -> VisionConfig {
    VisionConfig {
        depth: 32,
        hidden_size: 1280,
        intermediate_size: 5120,
        num_heads: 16,
        in_channels: 3,
        patch_size: 14,
        spatial_merge_size: 2,
        temporal_merge_size: 2,
        num_experts: 64,
        expert_intermediate_size,
        freq_allocation: 20,
    }
}

// Whether the VL checkpoints carry MTP tensors is not known; the presets count none.

fn vl_28b() -> ModelConfig {
    ModelConfig { architecture: Architecture::VlText, mtp_layers: 0, vision: Some(vision(512)), ..moe_21b() }
}

/// The width of its vision experts, 1536, is inferred from the advertised total.
fn vl_424b() -> ModelConfig {
    ModelConfig { architecture: Architecture::VlText, mtp_layers: 0, vision: Some(vision(1536)), ..moe_300b() }
}

fn bench_dense() -> ModelConfig {
    ModelConfig {
        vocab_size: 8192,
        hidden_size: 512,
        intermediate_size: 1536,
        num_hidden_layers: 8,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 64,
        dtype: Some(StoredDtype::F32),
        initializer_range: 0.02,
        ..released()
    }
}

fn bench_moe() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Moe,
        hidden_size: 256,
        intermediate_size: 768,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        moe: Some(experts(16, 2, 256, 0, 0, 5)),
        ..bench_dense()
    }
}
