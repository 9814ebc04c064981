//! What a piece of work needs at least, in operations and in bytes, from the shape of the model alone.
//!
//! No way of computing gets around these: every weight that takes part is read once a pass and multiplied once a token, and
//! attention looks at every cached position. Norms, activations and the copying of rows are left out, so a share of the
//! limit is never flattered. Weights are taken to be of one width.

use ernie_model::ModelConfig;

use super::{STEP_TOKENS, Workload};

/// What a machine can do at most, for the numbers that a model computes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Bytes read in a second.
    pub bytes_per_s: f64,
    /// Operations in a second; a multiply-add is two.
    pub operations_per_s: f64,
}

/// Operations and bytes of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Need {
    /// Operations; a multiply-add is two.
    pub operations: f64,
    /// Bytes read.
    pub bytes: f64,
}

/// A model as far as needs go.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Weights that every token meets, the head aside.
    shared: f64,
    /// Weights of all routed experts.
    experts: f64,
    /// The share of the experts that one token meets.
    chosen: f64,
    head: f64,
    /// Operations of attention for one query at one position, over all layers.
    per_position: f64,
    bytes_per_weight: f64,
}

impl Shape {
    fn of(config: &ModelConfig, weight_bytes: u64) -> Self {
        let experts = config
            .moe
            .as_ref()
            .map_or(0, |moe| config.moe_layers() * moe.num_experts * 3 * moe.intermediate_size * config.hidden_size)
            as f64;
        let count = config.parameters();
        // The vision side of a VL model takes no part.
        let vision = config.vision.as_ref().map_or(0.0, |_| {
            let mut text = config.clone();
            text.vision = None;
            (count.total - text.parameters().total) as f64
        });
        let vocabulary = (config.vocab_size * config.hidden_size) as f64;
        let all = count.total as f64 - vision;
        let looked_up = if config.tie_word_embeddings { 0.0 } else { vocabulary };
        Self {
            shared: all - experts - vocabulary - looked_up,
            experts,
            chosen: config.moe.as_ref().map_or(0.0, |moe| moe.k as f64 / moe.num_experts as f64),
            head: vocabulary,
            per_position: (4 * config.query_size() * config.num_hidden_layers) as f64,
            bytes_per_weight: weight_bytes as f64 / all.max(1.0),
        }
    }

    /// Operations of one token through the layers, attention and head aside.
    fn token(&self) -> f64 {
        2.0 * (self.shared + self.experts * self.chosen)
    }

    /// Bytes of the weights that a pass of `rows` tokens meets, where each chooses its experts for itself.
    fn weights(&self, rows: f64) -> f64 {
        let met = 1.0 - (1.0 - self.chosen).powf(rows);
        (self.shared + self.experts * met + self.head) * self.bytes_per_weight
    }
}

impl Need {
    /// Reading all prompts of a workload.
    pub fn prefill(config: &ModelConfig, weight_bytes: u64, workload: &Workload) -> Self {
        let shape = Shape::of(config, weight_bytes);
        let (rows, batch) = (workload.prompt_tokens as f64, workload.batch as f64);
        let looked_at = rows * workload.context as f64 + rows * (rows + 1.0) / 2.0;
        let passes = match workload.context {
            0 => (workload.batch * workload.prompt_tokens).div_ceil(STEP_TOKENS),
            _ => workload.batch * workload.prompt_tokens.div_ceil(STEP_TOKENS),
        };
        let each = rows * shape.token() + looked_at * shape.per_position + 2.0 * shape.head;
        let rows_a_pass = batch * rows / passes.max(1) as f64;
        Self { operations: batch * each, bytes: passes as f64 * shape.weights(rows_a_pass) }
    }

    /// One step of writing: one token of every sequence, half-way through the answers. `kv_bytes_per_token` is what one
    /// position takes in the cache.
    pub fn decode(config: &ModelConfig, weight_bytes: u64, kv_bytes_per_token: u64, workload: &Workload) -> Self {
        let shape = Shape::of(config, weight_bytes);
        let batch = workload.batch as f64;
        let positions = workload.context.max(1) as f64 + workload.gen_tokens as f64 / 2.0;
        Self {
            operations: batch * (shape.token() + 2.0 * shape.head + positions * shape.per_position),
            bytes: shape.weights(batch) + batch * positions * kv_bytes_per_token as f64,
        }
    }

    /// One training step over `rows` sequences of `seq_len` tokens: forward and twice as much backward.
    pub fn training(config: &ModelConfig, rows: usize, seq_len: usize) -> Self {
        let shape = Shape::of(config, 0);
        let (tokens, seq_len) = ((rows * seq_len) as f64, seq_len as f64);
        let looked_at = (seq_len + 1.0) / 2.0;
        let forward = shape.token() + 2.0 * shape.head + looked_at * shape.per_position;
        // Weights, gradients and both moments are touched once; against the arithmetic of a step that is nothing.
        Self { operations: 3.0 * tokens * forward, bytes: 0.0 }
    }

    /// The least seconds that `roof` allows.
    pub fn seconds(&self, roof: &Roof) -> f64 {
        (self.operations / roof.operations_per_s).max(self.bytes / roof.bytes_per_s)
    }

    /// Whether reading memory, not arithmetic, sets the limit.
    pub fn is_bound_by_memory(&self, roof: &Roof) -> bool {
        self.bytes / roof.bytes_per_s > self.operations / roof.operations_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOAD: Workload =
        Workload { prompt_tokens: 512, gen_tokens: 128, batch: 1, context: 0, repeat: 1, seed: 0 };

    #[test]
    fn the_small_model_needs_what_the_notes_say() {
        // 254.8 M weights without head and norms, 0.547 GFLOP a token at a prompt of 512.
        let config = ModelConfig::preset("base").unwrap();
        let need = Need::prefill(&config, 2 * 360_748_032, &WORKLOAD);
        assert!((need.operations / 512.0 / 1e9 - 0.547).abs() < 0.002, "{need:?}");
        let need = Need::decode(&config, 2 * 360_748_032, 18 * 1024, &WORKLOAD);
        assert!((need.bytes / 721.5e6 - 1.0).abs() < 0.01, "{need:?}");
        assert!((need.operations / 0.722e9 - 1.0).abs() < 0.03, "{need:?}");
        let slow_memory = Roof { bytes_per_s: 40e9, operations_per_s: 1e12 };
        assert!(need.is_bound_by_memory(&slow_memory));
        assert!((need.seconds(&slow_memory) - 0.018).abs() < 0.0005);
    }

    #[test]
    fn a_token_meets_its_experts_and_many_tokens_meet_all() {
        let config = ModelConfig::preset("bench-moe-22m").unwrap();
        let count = config.parameters();
        let bytes = |batch| Need::decode(&config, 4 * count.total, 0, &Workload { batch, ..WORKLOAD }).bytes;
        assert!((bytes(1) / (4.0 * count.active as f64) - 1.0).abs() < 1e-6, "{}", bytes(1));
        assert!((bytes(1000) / (4.0 * count.total as f64) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn training_is_three_times_forward() {
        let config = ModelConfig::preset("bench-dense-28m").unwrap();
        // 6 operations a weight (the embedding multiplies once, as head) and attention over half the row.
        let weights = config.parameters().total as f64;
        let attention = 12.0 * 8.0 * 512.0 * 512.0 / 2.0;
        let need = Need::training(&config, 8, 512);
        assert!((need.operations / (4096.0 * (6.0 * weights + attention)) - 1.0).abs() < 1e-3);
    }
}
