//! How many parameters a model has and how many bytes its cache takes, from the config alone.

use super::ModelConfig;

/// Parameters of a model. Vision is counted in where the model has it; MTP is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterCount {
    /// Everything a checkpoint without MTP holds: text, and in VL models tower, adapter and vision experts.
    /// The correction bias counts, since it is stored and used.
    pub total: u64,
    /// What takes part in one text token: the embedding once, `k` experts, shared experts, the head.
    pub active: u64,
    /// The multi-token-prediction modules.
    pub mtp: u64,
}

impl ModelConfig {
    /// Exact parameter counts by formula; nothing is materialised.
    pub fn parameters(&self) -> ParameterCount {
        let (total, active, mtp) = self.wide_parameters();
        // The checks cap the total far below u64.
        let narrow = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        ParameterCount { total: narrow(total), active: narrow(active), mtp: narrow(mtp) }
    }

    /// Total, active and MTP parameters without any danger of wrapping, for the checks.
    pub(super) fn wide_parameters(&self) -> (u128, u128, u128) {
        let h = self.hidden_size as u128;
        let (q, kv) = (self.query_size() as u128, self.key_value_size() as u128);
        let bias = |n: u128| if self.use_bias { n } else { 0 };
        let attention = 2 * h * q + 2 * h * kv + bias(q + 2 * kv + h);
        let mlp = |width: u128| 3 * h * width;
        let mlp_bias = |width: u128| if width == 0 { 0 } else { bias(2 * width + h) };
        let dense_width = self.intermediate_size as u128;
        let dense_layer = attention + 2 * h + mlp(dense_width) + mlp_bias(dense_width);

        let vocabulary = self.vocab_size as u128 * h;
        let head = if self.tie_word_embeddings { 0 } else { vocabulary };
        let score = self.labels.len() as u128 * h;
        let mut total = vocabulary + head + h + score;
        let mut active = total;
        let moe_layers = self.moe_layers() as u128;
        let dense_layers = self.num_hidden_layers as u128 - moe_layers;
        total += dense_layers * dense_layer;
        active += dense_layers * dense_layer;
        if let Some(moe) = &self.moe {
            let experts = moe.num_experts as u128;
            let expert = mlp(moe.intermediate_size as u128);
            let shared_width = moe.shared_intermediate_size() as u128;
            let shared = mlp(shared_width) + mlp_bias(shared_width);
            let correction = if moe.use_correction_bias { experts } else { 0 };
            let common = attention + 2 * h + shared + experts * h + correction;
            total += moe_layers * (common + experts * expert);
            active += moe_layers * (common + moe.k as u128 * expert);
            if let Some(vision) = &self.vision {
                let experts = vision.num_experts as u128;
                let correction = if moe.use_correction_bias { experts } else { 0 };
                total +=
                    moe_layers * (experts * mlp(vision.expert_intermediate_size as u128) + experts * h + correction);
            }
        }
        if let Some(vision) = &self.vision {
            total += vision.tower_parameters() + vision.adapter_parameters(self.hidden_size);
        }
        let mtp = self.mtp_layers as u128 * (dense_layer + 2 * h + 2 * h * h);
        (total, active, mtp)
    }

    /// How many layers route to experts.
    pub fn moe_layers(&self) -> usize {
        (0..self.num_hidden_layers).filter(|&layer| self.is_moe_layer(layer)).count()
    }

    /// Bytes the key/value cache takes per token: layers × 2 × key/value heads × head_dim × bytes per element.
    pub fn kv_bytes_per_token(&self, bytes_per_element: usize) -> u64 {
        (self.num_hidden_layers as u64) * 2 * (self.key_value_size() as u64) * bytes_per_element as u64
    }
}
