//! The tables of a recipe: one struct a table, one field a key, every default in one place.
//!
//! Field docs here and comments in `recipes/reference.toml` say the same; a test holds the defaults of both equal.

use std::path::PathBuf;

pub use ernie_data::source::{Documents, Format};
use ernie_nn::Width;
use serde::{Deserialize, Serialize};

/// `[model]`: which network is trained, from which numbers.
///
/// Exactly one of `preset`, `config` and `weights` is set. The vocabulary of `preset` and `config` follows the tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A shape by name, such as `"nano"`, with seeded random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// A `config.json` that describes the shape, with seeded random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// A MODEL whose weights are trained further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Modules of multi-token prediction behind it; as many as it has if not set. What it lacks of them is drawn, what is beyond is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtp_layers: Option<usize>,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenizerSource {
    /// A path or a MODEL.
    Model(String),
    /// A byte-level BPE trained on the training text.
    Train(TrainTokenizer),
}

/// `data.tokenizer = { train = VOCAB }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainTokenizer {
    /// Size of the vocabulary, control tokens included.
    pub train: usize,
}

/// `[data]`: text in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Globs of the training files; `"bundled"` is the corpus inside the program.
    #[serde(deserialize_with = "one_or_many")]
    pub train: Vec<String>,
    /// Globs of the held-out files; empty means none, except that `train = ["bundled"]` has its own.
    #[serde(deserialize_with = "one_or_many")]
    pub held_out: Vec<String>,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// What the files are.
    pub format: Format,
    /// What the documents of text files are.
    pub documents: Documents,
    /// The fields (JSONL) or columns (Parquet) that hold the text, joined by a line break.
    #[serde(deserialize_with = "one_or_many")]
    pub text_fields: Vec<String>,
    /// Further sources, each drawn from at its own rate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixedIn>,
}

/// `[[data.mixture]]`: a source beside `data.train`; replayed general text, say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixedIn {
    /// Globs of its files.
    #[serde(deserialize_with = "one_or_many")]
    pub files: Vec<String>,
    /// Rows drawn from it for each row drawn from `data.train`.
    pub weight: f64,
    /// As `data.format`, which it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// As `data.documents`, which it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<Documents>,
    /// As `data.text_fields`, which they are by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_fields: Option<Vec<String>>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            held_out: Vec::new(),
            tokenizer: TokenizerSource::Train(TrainTokenizer { train: 4096 }),
            format: Format::Auto,
            documents: Documents::File,
            text_fields: vec!["text".into()],
            mixture: Vec::new(),
        }
    }
}

/// `[batch]`: how much goes into one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchSize {
    /// Rows in a micro-batch.
    pub rows: usize,
    /// Tokens in a row.
    pub seq_len: usize,
    /// Micro-batches in a step.
    pub grad_accum: usize,
    /// Whether a layer keeps its input alone on the way forward and is run again on the way back.
    pub recompute: bool,
}

impl Default for BatchSize {
    fn default() -> Self {
        Self { rows: 8, seq_len: 256, grad_accum: 1, recompute: false }
    }
}

impl BatchSize {
    /// Rows in one optimiser step.
    pub fn step_rows(&self) -> usize {
        self.rows * self.grad_accum
    }

    /// Tokens in one optimiser step.
    pub fn tokens(&self) -> usize {
        self.step_rows() * self.seq_len
    }
}

/// How rows are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerKind {
    /// Every row once an epoch, in a seeded order.
    #[default]
    Uniform,
    /// Rows of high loss more often. Not built yet.
    Priority,
    /// Easy rows first. Not built yet.
    Curriculum,
}

/// `[sampler]`: which row comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampler {
    /// How rows are drawn.
    pub kind: SamplerKind,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// Next-token prediction.
    #[default]
    Lm,
    /// The same over conversations, of which the assistant's turns alone carry a loss (supervised fine-tuning).
    Sft,
    /// Of two answers to a question, the one that was judged the better (direct preference optimisation).
    Dpo,
    /// Which of a few labels a text has, by a head on the state of its last token.
    Classify,
}

/// What a pair of answers costs; see [`crate`]'s objectives for the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// DPO as published (arXiv:2305.18290).
    #[default]
    Sigmoid,
    /// A square around a fixed margin (arXiv:2310.12036).
    Ipo,
    /// Without a reference (arXiv:2405.14734).
    Simpo,
}

/// What the summed loss of a step is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalise {
    /// The unmasked tokens of the whole step.
    #[default]
    Tokens,
    /// The token positions of the whole step, masked or not (ERNIE's token-balanced loss).
    Constant,
}

/// `[objective]`: what is minimised, and what keeps a router healthy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// What is minimised.
    pub kind: ObjectiveKind,
    /// `classify`: the labels, by their ids; where there are none, those of the training data.
    pub labels: Vec<String>,
    /// What the summed loss is divided by.
    pub normalise: Normalise,
    /// `dpo`: what a pair of answers costs.
    pub preference: PreferenceLoss,
    /// `dpo`: how closely the model is held to the reference, or the scale of the reward without one.
    pub beta: f64,
    /// `dpo` with `simpo`: the margin wanted.
    pub simpo_margin: f64,
    /// `dpo`: weight of the chosen answer's own loss beside the preference, 0 = off.
    pub sft_weight: f64,
    /// `lm` and `sft`: weight of multi-token prediction's loss beside the model's own, where the model has modules of it; 0 leaves them as they are.
    pub mtp_weight: f64,
    /// Step of the correction bias after each optimiser step, 0 = off.
    pub router_bias_rate: f64,
    /// Weight of the auxiliary balance loss, 0 = off.
    pub router_balance: f64,
    /// Weight of the z-loss, 0 = off.
    pub router_z: f64,
    /// Weight of the orthogonality loss of the router's rows, 0 = off.
    pub router_orthogonal: f64,
}

impl Objective {
    /// Whether the loss compares with the model before the first step.
    pub fn asks_reference(&self) -> bool {
        self.kind == ObjectiveKind::Dpo && self.preference != PreferenceLoss::Simpo
    }
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            kind: ObjectiveKind::Lm,
            labels: Vec::new(),
            normalise: Normalise::Tokens,
            preference: PreferenceLoss::Sigmoid,
            beta: 0.1,
            simpo_margin: 0.5,
            sft_weight: 0.0,
            mtp_weight: 0.1,
            router_bias_rate: 0.001,
            router_balance: 1e-5,
            router_z: 0.0,
            router_orthogonal: 1e-3,
        }
    }
}

/// `[adapter]`: a small change that is trained beside a frozen model (LoRA, arXiv:2106.09685).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adapter {
    /// Rank of the change, 0 = none: the whole model is trained.
    pub rank: usize,
    /// The change is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// By `alpha / sqrt(rank)` instead (rsLoRA, arXiv:2312.03732).
    pub rslora: bool,
    /// Learning rate of `B` as a multiple of `optimizer.lr` (LoRA+, arXiv:2402.12354).
    pub b_lr_ratio: f64,
    /// The linears that have one.
    pub targets: Vec<String>,
    /// Whether those of the routed experts have one too.
    pub experts: bool,
    /// How the frozen model's matrices are held.
    pub base: Base,
}

/// How the matrices of the model that an adapter is trained beside are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// 32-bit floats.
    #[default]
    F32,
    /// Bytes with a scale a row (as `--weights int8`).
    Int8,
    /// Four bits in groups of 32 (as `--weights int4`).
    Int4,
}

impl Default for Adapter {
    fn default() -> Self {
        Self {
            rank: 0,
            alpha: 16.0,
            rslora: false,
            b_lr_ratio: 1.0,
            targets: ernie_model::decoder::TARGETS.map(str::to_owned).to_vec(),
            experts: false,
            base: Base::F32,
        }
    }
}

impl Adapter {
    /// How the model is adapted; `None` where all of it is trained.
    pub fn adaptation(&self) -> Option<ernie_model::Adaptation> {
        (self.rank > 0).then(|| ernie_model::Adaptation {
            rank: self.rank,
            alpha: self.alpha,
            rslora: self.rslora,
            targets: self.targets.clone(),
            experts: self.experts,
        })
    }

    /// The format of integers in which the frozen model is held; `None` where it is held in floats.
    pub fn packed_base(&self) -> Option<ernie_model::WeightsAs> {
        match self.base {
            _ if self.rank == 0 => None,
            Base::F32 => None,
            Base::Int8 => Some(ernie_model::WeightsAs::Int8),
            Base::Int4 => Some(ernie_model::WeightsAs::Int4),
        }
    }
}

/// The update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[default]
    Adamw,
    /// Momentum made orthogonal for the matrices between embedding and head, Adam for the rest (kellerjordan.github.io/posts/muon).
    Muon,
}

/// What happens at a step whose loss or gradient is not a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// The run ends; its last checkpoint is untouched.
    #[default]
    Stop,
    /// The batch is passed over.
    Skip,
    /// The run goes back to its last checkpoint, and on with other data.
    Rollback,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Those with two axes or more: not norms, not biases.
    #[default]
    Matrices,
    /// Every trained one.
    All,
}

/// `[optimizer]`: how a gradient becomes an update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// The update rule.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Decay of Muon's momentum.
    pub momentum: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per step and unit of learning rate.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub decay: Decay,
    /// Largest global norm of the gradient, 0 = no clipping.
    pub clip: f64,
    /// Whether a parameter is updated, and its gradient forgotten, as soon as that is whole on the way back.
    pub in_backward: bool,
    /// Format of AdamW's moments.
    pub moments: Float,
    /// Learning rate of the router's weight as a share of `lr`.
    pub gate_lr_ratio: f64,
    /// Decay of a running average of the weights, which is evaluated and published in their place; 0 = none.
    pub ema: f64,
    /// What happens at a step whose loss or gradient is not a number.
    pub on_nan: OnNan,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            lr: 1e-3,
            betas: [0.9, 0.95],
            momentum: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decay: Decay::Matrices,
            clip: 1.0,
            in_backward: false,
            moments: Float::F32,
            gate_lr_ratio: 1.0,
            ema: 0.0,
            on_nan: OnNan::Stop,
        }
    }
}

/// The shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Warm-up, stable, then decay by 1 − sqrt.
    #[default]
    Wsd,
    /// Half a cosine.
    Cosine,
    /// No decay.
    Constant,
}

/// `[schedule]`: how long, and the learning rate along the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// The shape after warm-up.
    pub kind: ScheduleKind,
    /// Share of all steps that decay (`wsd`).
    pub decay_share: f64,
    /// Learning rate of the last step as a share of `optimizer.lr`.
    pub final_share: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { steps: 1000, warmup: 50, kind: ScheduleKind::Wsd, decay_share: 0.2, final_share: 0.1 }
    }
}

/// A float format of the recipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// 32-bit.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl From<Float> for Width {
    fn from(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::Bf16 => Self::Bf16,
        }
    }
}

/// `[precision]`: number formats of the arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Precision {
    /// Format of products and of what is kept for the backward pass; weights, sums and the router are f32 either way.
    pub compute: Float,
}

/// `[parallel]`: how a step is shared among processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Data-parallel processes.
    pub dp: usize,
    /// Tensor-parallel processes.
    pub tp: usize,
    /// Pipeline stages.
    pub pp: usize,
    /// Expert-parallel processes.
    pub ep: usize,
}

impl Default for Parallel {
    fn default() -> Self {
        Self { dp: 1, tp: 1, pp: 1, ep: 1 }
    }
}

/// `[checkpoint]`: what is saved when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between checkpoints, 0 = only the last step.
    pub every: u64,
    /// Newest checkpoints kept, 0 = all.
    pub keep: usize,
    /// Whether the checkpoint of the lowest held-out loss is saved when it is met, and kept.
    pub keep_best: bool,
    /// Whether it is written by a thread of its own, from a copy, while training goes on.
    pub background: bool,
    /// Format of the published weights; masters in `training_state/` are always f32.
    pub dtype: Float,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 200, keep: 2, keep_best: false, background: false, dtype: Float::F32 }
    }
}

/// `[[evaluation.tasks]]`: a task of `ernie eval` to run on every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationTask {
    /// Its name.
    pub task: String,
    /// Its examples, where it brings none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// How many examples at most; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Solved examples in the prompt.
    #[serde(default)]
    pub shots: usize,
}

/// `[evaluation]`: the held-out loss on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Steps between evaluations, 0 = never.
    pub every: u64,
    /// Micro-batches that an evaluation reads, about, 0 = all held-out text.
    pub batches: usize,
    /// Evaluations without a lower loss after which the run ends, 0 = never.
    pub patience: u64,
    /// Tasks to run on every checkpoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<EvaluationTask>,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { every: 100, batches: 0, patience: 0, tasks: Vec::new() }
    }
}

/// Reads a list of strings, or one string as a list of one.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    OneOrMany::deserialize(deserializer)
        .map(|value| match value {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        })
        .map_err(|_| serde::de::Error::custom("expected a string or a list of strings"))
}
