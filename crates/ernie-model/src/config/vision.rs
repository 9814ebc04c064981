//! The picture side of a VL config: shapes for counting, and nothing that runs.
//!
//! The tower is the "DFNRope" ViT, the adapter the "VariableResolutionResampler" of the fact sheet; each MoE layer
//! of a VL model has a second set of experts for picture tokens.

/// Shapes of the ViT, the adapter and the vision experts of a VL model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct VisionConfig {
    /// Blocks of the tower.
    pub depth: usize,
    /// Width of the tower.
    pub hidden_size: usize,
    /// Width of the tower's MLP.
    pub intermediate_size: usize,
    /// Attention heads of the tower.
    pub num_heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Patches merged along each side.
    pub spatial_merge_size: usize,
    /// Frames merged.
    pub temporal_merge_size: usize,
    /// Vision experts per MoE layer.
    pub num_experts: usize,
    /// Width of a vision expert.
    pub expert_intermediate_size: usize,
    /// Rotation pairs, the slowest ones, that follow time (`freq_allocation`, last entry of `mrope_section`).
    pub freq_allocation: usize,
}

impl VisionConfig {
    /// Parameters of the tower, all biases and norms included.
    pub(super) fn tower_parameters(&self) -> u128 {
        let (h, m) = (self.hidden_size as u128, self.intermediate_size as u128);
        let patch = (self.in_channels * self.patch_size * self.patch_size) as u128;
        let attention = 3 * h * h + 3 * h + h * h + h;
        let mlp = h * m + m + m * h + h;
        patch * h + self.depth as u128 * (attention + mlp + 4 * h) + 2 * h
    }

    /// Parameters of the adapter between the tower and a text side of width `text_hidden`.
    pub(super) fn adapter_parameters(&self, text_hidden: usize) -> u128 {
        let text = text_hidden as u128;
        let spatial = (self.hidden_size * self.spatial_merge_size * self.spatial_merge_size) as u128;
        let temporal = spatial * self.temporal_merge_size as u128;
        let linear = |inputs: u128| inputs * spatial + spatial;
        let spatial_part = 2 * linear(spatial) + 2 * spatial;
        let temporal_part = linear(temporal) + linear(spatial) + 2 * spatial;
        spatial_part + temporal_part + spatial * text + text + text
    }
}
