//! Keys that are not part of the shape: the ones training and serving put there, which are ignored, and the ones
//! that would change the numbers in ways we do not implement, which are refused.

use serde_json::Value;

use super::json::{Keys, describe};
use crate::Result;

/// Keys of the released checkpoints and of `transformers` that have no effect on the forward pass.
const TOLERATED: &[&str] = &[
    // What `transformers` writes into every config.
    "_name_or_path",
    "_attn_implementation",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "is_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "id2label",
    "label2id",
    "problem_type",
    "num_labels",
    "finetuning_task",
    "tokenizer_class",
    "prefix",
    "sep_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "task_specific_params",
    "pruned_heads",
    "tie_encoder_decoder",
    "torchscript",
    "use_bfloat16",
    "unk_token_id",
    "mask_token_id",
    "output_router_logits",
    "router_aux_loss_coef",
    "classifier_dropout",
    "attn_implementation",
    // Training side of the released configs.
    "moe_capacity",
    "moe_gate",
    "moe_aux_loss_lambda",
    "moe_orthogonal_loss_lambda",
    "moe_z_loss_lambda",
    "moe_group_experts",
    "moe_group_orthogonal_loss",
    "moe_group",
    "moe_dropout_prob",
    "moe_all_to_all_dropout",
    "moe_reverse_token_drop",
    "moe_use_token_type_bias",
    "moe_use_hard_gate",
    "moe_dense_experts_token_type_id",
    "moe_multimodal_paired_experts",
    "moe_multimodal_dispatch_use_allgather",
    "moe_fuse_experts",
    "moe_layer_feed_fake_token",
    "moe_dense_experts",
    "moe_with_send_router_loss",
    "moe_gate_lr_ratio",
    "moe_aux_loss",
    "moe_use_size_all2all",
    "multimodel_experts",
    "sinkhorn_2gate",
    "sinkhorn_temp",
    "global_aux_loss",
    "num_acc_steps",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout_warmup_steps",
    "dropout",
    "multi_token_pred_lambda",
    "mtp_loss_scaling_factor",
    "multi_token_pred_depth",
    "use_recompute_mtp",
    "using_dynamic_sequence_length",
    "using_flash_attention",
    "use_flash_attention",
    "use_flash_attn",
    "use_mem_eff_attn",
    "use_flash_attn_with_mask",
    "use_recompute",
    "use_recompute_attn",
    "use_recompute_loss_fn",
    "use_recompute_moe",
    "recompute_granularity",
    "recompute",
    "recompute_use_reentrant",
    "use_sparse_head_and_loss_fn",
    "use_sparse_flash_attn",
    "use_fused_head_and_loss_fn",
    "tensor_parallel_degree",
    "tensor_parallel_output",
    "tensor_parallel_rank",
    "sequence_parallel",
    "sep_parallel_degree",
    "context_parallel_degree",
    "pipeline_parallel_degree",
    "virtual_pp_degree",
    "pp_seg_method",
    "pp_need_data_balance",
    "balanced_image_preprocess",
    "fuse_attn_ffn",
    "fuse_gate_detach_matmul",
    "fuse_linear",
    "fuse_ln",
    "fuse_rms_norm",
    "fuse_rope",
    "fuse_softmax_mask",
    "fuse_swiglu",
    "fuse_attention_qkv",
    "fuse_attention_ffn",
    "max_sequence_length",
    "max_seq_len",
    "max_text_id",
    "micro_batch_size",
    "seqlen",
    "token_loss_equal_weight",
    "token_balance_loss",
    "token_balance_seqlen",
    "cachekv_quant",
    "ignored_index",
    "weight_share_add_bias",
    "enable_delay_scale_loss",
    "enable_mtp_magic_send",
    "dpo_config",
    "fp8_configs",
    "disable_pipeline_warmup",
    "disable_ffn_model_parallel",
    "skip_recompute_ops",
    "scale_qk_coeff",
    "paddleformers_version",
    "paddlenlp_version",
    "dtype_str",
    "bf16",
    "fp16",
    "amp_master_grad",
    // Pictures: counted where they have a shape, otherwise not built.
    "im_patch_id",
    "image_token_id",
    "image_start_token_id",
    "image_end_token_id",
    "video_token_id",
    "video_start_token_id",
    "video_end_token_id",
    "mm_vocab_size",
    "modality_detach",
    "use_temporal_conv",
    "resampler_fuse_rms_norm",
    "vision_model_name_or_path",
    "pixel_hidden_size",
    "spatial_conv_size",
    "temporal_conv_size",
    "rope_3d",
    "freq_allocation",
    "image_token_index",
    "video_token_index",
    "detokenize_image",
    "hidden_size_image",
    "vit_num_recompute_layers",
];

/// What a key that would change the numbers must be for us to go on.
enum Neutral {
    /// Absent, null, false, or an empty container.
    Off,
    /// Absent, null, or true.
    On,
    /// Absent, null, or this number.
    Is(f64),
    /// Absent, null, or one of these strings.
    Text(&'static [&'static str]),
}

/// Keys known from this family or its neighbours that change the forward pass, and the value that changes nothing.
const BREAKING: &[(&str, Neutral)] = &[
    ("hidden_act", Neutral::Text(&["silu", "swish"])),
    ("hidden_activation", Neutral::Text(&["silu", "swish"])),
    ("use_rmsnorm", Neutral::On),
    ("compression_ratio", Neutral::Is(1.0)),
    ("partial_rotary_factor", Neutral::Is(1.0)),
    ("rotary_pct", Neutral::Is(1.0)),
    ("use_sliding_window", Neutral::Off),
    ("attention_chunk_size", Neutral::Off),
    ("attn_logit_softcapping", Neutral::Off),
    ("final_logit_softcapping", Neutral::Off),
    ("logit_scale", Neutral::Is(1.0)),
    ("logits_scaling", Neutral::Is(1.0)),
    ("embedding_multiplier", Neutral::Is(1.0)),
    ("residual_multiplier", Neutral::Is(1.0)),
    ("attention_multiplier", Neutral::Off),
    ("use_qk_norm", Neutral::Off),
    ("qk_norm", Neutral::Off),
    ("qk_layernorm", Neutral::Off),
    ("mlp_bias", Neutral::Off),
    ("attention_bias", Neutral::Off),
    ("rope_reorder", Neutral::Off),
    ("moe_gate_act", Neutral::Text(&["softmax"])),
    ("scoring_func", Neutral::Text(&["softmax"])),
    ("routed_scaling_factor", Neutral::Is(1.0)),
    ("norm_topk_prob", Neutral::On),
    ("norm_gate_logits", Neutral::On),
    ("moe_norm_gate_logits", Neutral::On),
    ("n_group", Neutral::Is(1.0)),
    ("topk_group", Neutral::Is(1.0)),
    ("layer_types", Neutral::Text(&["full_attention"])),
];

/// Refuses keys that change the numbers, and marks the harmless ones as read.
pub(super) fn settle(keys: &mut Keys<'_>) -> Result<()> {
    for (key, neutral) in BREAKING {
        let Some(value) = keys.present(key) else { continue };
        let fine = match (neutral, value) {
            (Neutral::Off, Value::Bool(flag)) => !flag,
            (Neutral::Off, Value::Array(items)) => items.is_empty(),
            (Neutral::Off, Value::Object(map)) => map.is_empty(),
            (Neutral::On, Value::Bool(flag)) => *flag,
            (Neutral::Is(number), value) => value.as_f64() == Some(*number),
            (Neutral::Text(allowed), Value::String(text)) => allowed.contains(&text.as_str()),
            (Neutral::Text(allowed), Value::Array(items)) => {
                items.iter().all(|item| item.as_str().is_some_and(|text| allowed.contains(&text)))
            }
            _ => false,
        };
        if !fine {
            let expected = match neutral {
                Neutral::Off => "nothing or false".to_owned(),
                Neutral::On => "nothing or true".to_owned(),
                Neutral::Is(number) => format!("nothing or {number}"),
                Neutral::Text(allowed) => format!("`{}`", allowed.join("` or `")),
            };
            let found = describe(value);
            return Err(keys.error(key, format!("{found} changes the numbers and is not built; expected {expected}")));
        }
    }
    // A window that is switched off by its own flag is a leftover.
    let off = matches!(keys.take("use_sliding_window"), Some(Value::Bool(false)));
    for key in ["sliding_window", "sliding_window_size", "max_window_layers"] {
        if keys.present(key).is_some() && !off {
            return Err(keys.error(key, "sliding windows change the numbers and are not built; expected null"));
        }
    }
    for key in TOLERATED {
        keys.take(key);
    }
    Ok(())
}
