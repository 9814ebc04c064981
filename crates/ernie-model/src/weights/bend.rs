//! The one place where names and layouts of other writers are bent to the published ones.
//!
//! The published name of a tensor says what it is; [`places`] lists under which names, and as which part of which
//! stored tensor, each kind of file may hold it:
//!
//! * safetensors: the published name itself; the in-memory spellings of `transformers` 5 (experts fused into one
//!   stack, the correction bias under the gate);
//! * safetensors of VL models: gates stored `[hidden, experts]`, the correction bias with a second row for vision;
//! * GGUF: llama.cpp's names, experts stacked.

use crate::ModelConfig;

/// Which writer's names and layouts a file follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Published,
    PublishedVl,
    Gguf,
}

/// Which part of a stored tensor is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// The `index`-th of `of` equal pieces along the outermost dimensions.
    Piece {
        index: usize,
        of: usize,
    },
    /// The whole, rows and columns exchanged.
    Transposed,
}

/// A place where a tensor may lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stored: String,
    /// The shape the stored tensor then has.
    pub(super) shape: Vec<usize>,
    pub(super) part: Part,
}

/// What a published name speaks of.
enum Spoken<'a> {
    Layer { layer: usize, rest: &'a str },
    Other(&'a str),
}

fn spoken(name: &str) -> Spoken<'_> {
    let layer = name.strip_prefix("model.layers.").and_then(|tail| tail.split_once('.'));
    match layer.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
        Some((layer, rest)) => Spoken::Layer { layer, rest },
        None => Spoken::Other(name),
    }
}

/// `5`, `gate_proj` of `mlp.experts.5.gate_proj.weight`.
fn expert(rest: &str) -> Option<(usize, &str)> {
    let (index, part) = rest.strip_prefix("mlp.experts.")?.split_once('.')?;
    Some((index.parse().ok()?, part.strip_suffix(".weight")?))
}

const CORRECTION: &str = "mlp.moe_statics.e_score_correction_bias";

/// Where the tensor `name` of `shape` may lie, likeliest first.
pub(super) fn places(dialect: Dialect, config: &ModelConfig, name: &str, shape: &[usize]) -> Vec<Place> {
    match dialect {
        Dialect::Gguf => gguf(config, name, shape),
        Dialect::Published | Dialect::PublishedVl => published(dialect, config, name, shape),
    }
}

fn whole(stored: impl Into<String>, shape: &[usize]) -> Place {
    Place { stored: stored.into(), shape: shape.to_vec(), part: Part::Whole }
}

fn published(dialect: Dialect, config: &ModelConfig, name: &str, shape: &[usize]) -> Vec<Place> {
    let Spoken::Layer { layer, rest } = spoken(name) else { return vec![whole(name, shape)] };
    let vl = dialect == Dialect::PublishedVl;
    if rest == CORRECTION {
        let fused = format!("model.layers.{layer}.mlp.gate.moe_statics.e_score_correction_bias");
        return [name.to_owned(), fused]
            .into_iter()
            .map(|stored| match (vl, shape) {
                (true, &[1, experts]) => {
                    Place { stored, shape: vec![2, experts], part: Part::Piece { index: 0, of: 2 } }
                }
                _ => whole(stored, shape),
            })
            .collect();
    }
    if vl && rest == "mlp.gate.weight" {
        let shape = shape.iter().rev().copied().collect();
        return vec![Place { stored: name.to_owned(), shape, part: Part::Transposed }];
    }
    let mut places = vec![whole(name, shape)];
    if let (Some((index, part)), Some(moe), &[rows, columns]) = (expert(rest), &config.moe, shape) {
        let stack = |stored: &str, rows: usize, index: usize, of: usize| Place {
            stored: format!("model.layers.{layer}.mlp.experts.{stored}"),
            shape: vec![moe.num_experts, rows, columns],
            part: Part::Piece { index, of },
        };
        match part {
            "gate_proj" => places.push(stack("gate_up_proj", 2 * rows, 2 * index, 2 * moe.num_experts)),
            "up_proj" => places.push(stack("gate_up_proj", 2 * rows, 2 * index + 1, 2 * moe.num_experts)),
            "down_proj" => places.push(stack("down_proj", rows, index, moe.num_experts)),
            _ => {}
        }
    }
    places
}

fn gguf(config: &ModelConfig, name: &str, shape: &[usize]) -> Vec<Place> {
    let (layer, rest) = match spoken(name) {
        Spoken::Layer { layer, rest } => (layer, rest),
        Spoken::Other(name) => {
            let stored = match name {
                "model.embed_tokens.weight" => "token_embd.weight",
                "model.norm.weight" => "output_norm.weight",
                "lm_head.weight" => "output.weight",
                _ => return Vec::new(),
            };
            return vec![whole(stored, shape)];
        }
    };
    let at = |tail: &str| format!("blk.{layer}.{tail}");
    if let (Some((index, part)), Some(moe), &[rows, columns]) = (expert(rest), &config.moe, shape) {
        let part = part.trim_end_matches("_proj");
        let experts = moe.num_experts;
        let stack = |stored: String, rows: usize, index: usize, of: usize| Place {
            stored,
            shape: vec![experts, rows, columns],
            part: Part::Piece { index, of },
        };
        let mut places = vec![stack(at(&format!("ffn_{part}_exps.weight")), rows, index, experts)];
        let half = match part {
            "gate" => Some(0),
            "up" => Some(1),
            _ => None,
        };
        if let Some(half) = half {
            places.push(stack(at("ffn_gate_up_exps.weight"), 2 * rows, 2 * index + half, 2 * experts));
        }
        return places;
    }
    if rest == CORRECTION {
        let flat = &shape[shape.len().saturating_sub(1)..];
        return vec![whole(at("exp_probs_b.bias"), flat), whole(at("exp_probs_b"), flat)];
    }
    let Some((stem, kind)) = rest.rsplit_once('.') else { return Vec::new() };
    let stored = match stem {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" => "ffn_gate_inp",
        "mlp.shared_experts.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_experts.up_proj" => "ffn_up_shexp",
        "mlp.shared_experts.down_proj" => "ffn_down_shexp",
        _ => return Vec::new(),
    };
    vec![whole(at(&format!("{stored}.{kind}")), shape)]
}

/// Whether a stored tensor that nothing uses may be left out, and why.
///
/// The list is short on purpose: multi-token prediction, which is kept for saving, and the picture side of VL
/// models. A tensor that is not on it may change the numbers.
pub(super) fn may_skip(dialect: Dialect, config: &ModelConfig, stored: &str) -> Option<Skip> {
    if dialect == Dialect::Gguf {
        return None;
    }
    if is_mtp(stored) {
        return Some(Skip::Mtp);
    }
    if dialect != Dialect::PublishedVl {
        return None;
    }
    if stored.starts_with("vision_model.") || stored.starts_with("model.resampler_model.") {
        return Some(Skip::Vision);
    }
    let Spoken::Layer { layer, rest } = spoken(stored) else { return None };
    if !config.is_moe_layer(layer) {
        return None;
    }
    let text_experts = config.moe.as_ref().map_or(0, |moe| moe.num_experts);
    let vision_experts = config.vision.as_ref().map_or(0, |vision| vision.num_experts);
    let is_vision = rest == "mlp.gate.weight_1"
        || expert(rest).is_some_and(|(index, part)| {
            (text_experts..text_experts + vision_experts).contains(&index)
                && matches!(part, "gate_proj" | "up_proj" | "down_proj")
        });
    is_vision.then_some(Skip::Vision)
}

/// Whether a tensor is one of multi-token prediction, by its published name.
pub(super) fn is_mtp(name: &str) -> bool {
    ["model.mtp_block.", "model.mtp_emb_norm.", "model.mtp_hidden_norm.", "model.mtp_linear_proj."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Why a tensor is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    Mtp,
    Vision,
}
