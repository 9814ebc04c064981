//! GGUF: the parity checkpoints under llama.cpp's names, and every key that must be refused.

use std::path::{Path, PathBuf};

use ernie_files::Checkpoint;
use ernie_files::gguf::Gguf;
use ernie_model::weights::Weights;
use ernie_model::{Error, ModelConfig, ModelSource, WeightsAs};
use ernie_nn::{Form, Format};

/// A metadata value as the file has it: type number and bytes.
#[derive(Clone)]
enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    I32s(Vec<i32>),
}

/// Type number, dimensions with the outermost first, bytes.
type Tensor = (u32, Vec<usize>, Vec<u8>);

/// A GGUF file in memory, to be bent and written.
#[derive(Clone)]
struct Draft {
    keys: Vec<(String, Meta)>,
    tensors: Vec<(String, Tensor)>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Draft {
    fn set(&mut self, key: &str, value: Meta) {
        self.keys.retain(|(name, _)| name != key);
        self.keys.push((key.into(), value));
    }

    fn put(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.retain(|(other, _)| other != name);
        self.tensors.push((name.into(), (0, shape.to_vec(), bytes)));
    }

    fn drop(&mut self, name: &str) {
        self.tensors.retain(|(other, _)| other != name);
    }

    fn write(&self) -> tempfile::NamedTempFile {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            match value {
                Meta::U32(n) => out.extend([4_u32.to_le_bytes(), n.to_le_bytes()].concat()),
                Meta::F32(x) => out.extend([6_u32.to_le_bytes(), x.to_le_bytes()].concat()),
                Meta::Bool(flag) => {
                    out.extend(7_u32.to_le_bytes());
                    out.push(u8::from(*flag));
                }
                Meta::Text(value) => {
                    out.extend(8_u32.to_le_bytes());
                    text(&mut out, value);
                }
                Meta::I32s(list) => {
                    out.extend([9_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat());
                    out.extend((list.len() as u64).to_le_bytes());
                    list.iter().for_each(|n| out.extend(n.to_le_bytes()));
                }
            }
        }
        let mut offset = 0_u64;
        for (name, (kind, shape, bytes)) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&extent| out.extend((extent as u64).to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        for (_, (_, _, bytes)) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), out).unwrap();
        file
    }
}

fn parity(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(folder)
}

/// A parity checkpoint under the names and keys of `arch`.
fn draft(folder: &str, arch: &'static str) -> (Draft, ModelConfig) {
    let path = parity(folder);
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    let config = ModelConfig::from_json(&config).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    let values = |name: &str| -> Vec<f32> {
        file.bytes(name).unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let mut draft = Draft { keys: Vec::new(), tensors: Vec::new() };
    draft.set("general.architecture", Meta::Text(arch));
    let counts = [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    for (key, value) in counts {
        draft.set(&format!("{arch}.{key}"), Meta::U32(value as u32));
    }
    draft.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), Meta::F32(1e-5));
    draft.set(&format!("{arch}.rope.freq_base"), Meta::F32(500_000.0));
    draft.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    draft.set("tokenizer.ggml.eos_token_id", Meta::U32(2));
    draft.set("tokenizer.ggml.padding_token_id", Meta::U32(0));
    if let Some(moe) = &config.moe {
        let shared = moe.shared_intermediate_size();
        for (key, value) in [
            ("expert_count", moe.num_experts),
            ("expert_used_count", moe.k),
            ("expert_feed_forward_length", moe.intermediate_size),
            ("expert_shared_count", moe.num_shared_experts),
            ("expert_shared_feed_forward_length", shared),
            ("leading_dense_block_count", moe.layer_start_index),
            ("interleave_moe_layer_step", moe.layer_interval),
        ] {
            draft.set(&format!("{arch}.{key}"), Meta::U32(value as u32));
        }
    }
    let plain = [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
        ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ];
    for (from, to) in [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ] {
        if let Some(info) = file.info(from) {
            draft.put(to, &info.shape, &values(from));
        }
    }
    for layer in 0..config.num_hidden_layers {
        for (from, to) in plain {
            let from = format!("model.layers.{layer}.{from}.weight");
            if let Some(info) = file.info(&from) {
                draft.put(&format!("blk.{layer}.{to}.weight"), &info.shape, &values(&from));
            }
        }
        let Some(moe) = config.moe.as_ref().filter(|_| config.is_moe_layer(layer)) else { continue };
        for (part, rows, columns) in [("gate", 16, 32), ("up", 16, 32), ("down", 32, 16)] {
            let name = |expert| format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight");
            let stack: Vec<f32> = (0..moe.num_experts).flat_map(|expert| values(&name(expert))).collect();
            draft.put(&format!("blk.{layer}.ffn_{part}_exps.weight"), &[moe.num_experts, rows, columns], &stack);
        }
        let bias = values(&format!("model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"));
        draft.put(&format!("blk.{layer}.exp_probs_b.bias"), &[moe.num_experts], &bias);
    }
    (draft, config)
}

fn open(draft: &Draft) -> Result<Weights, Error> {
    let file = draft.write();
    Weights::open(&ModelSource::Gguf(file.path().into()), WeightsAs::Native)
}

fn refusal(draft: &Draft) -> String {
    let error = open(draft)
        .and_then(|mut weights| {
            for spec in weights.config().clone().tensors() {
                weights.take_f32(&spec.name, &spec.shape)?;
            }
            weights.finish().map(|_| ())
        })
        .expect_err("must be refused");
    let message = error.to_string();
    assert!(error.is_input() && !message.contains('\n'), "{message}");
    message
}

#[test]
fn checkpoints_are_the_same_under_either_name() {
    for (folder, arch) in
        [("dense", "ernie4_5"), ("dense", "llama"), ("moe", "ernie4_5-moe"), ("moe_untied", "ernie4_5-moe")]
    {
        let (draft, mut config) = draft(folder, arch);
        config.dtype = None;
        let mut weights = open(&draft).unwrap();
        assert_eq!(*weights.config(), config, "{folder} as {arch}");
        let mut plain = Weights::open(&ModelSource::Folder(parity(folder)), WeightsAs::Native).unwrap();
        for spec in config.tensors() {
            let one = weights.take_f32(&spec.name, &spec.shape).unwrap();
            assert!(one == plain.take_f32(&spec.name, &spec.shape).unwrap(), "{}", spec.name);
        }
        let report = weights.finish().unwrap();
        assert_eq!((report.used, report.skipped.len()), (draft.tensors.len(), 0));
    }
}

#[test]
fn blocks_stay_blocks_unless_another_format_is_asked_for() {
    let (mut draft, _) = draft("dense", "llama");
    // Rows of 32: one Q8_0 block each, scale 0.5 and values 0, 1, 2, …
    let block: Vec<u8> = half::f16::from_f32(0.5).to_le_bytes().into_iter().chain((0..32).map(|i| i as u8)).collect();
    let name = "blk.0.ffn_gate.weight";
    draft.drop(name);
    draft.tensors.push((name.into(), (8, vec![80, 32], block.repeat(80))));
    let file = draft.write();
    let source = ModelSource::Gguf(file.path().into());
    let published = "model.layers.0.mlp.gate_proj.weight";
    let mut native = Weights::open(&source, WeightsAs::Native).unwrap();
    let stored = native.take(published, &[80, 32]).unwrap();
    assert_eq!((stored.form(), stored.memory_bytes()), (Form::of(Format::Q8_0), 80 * 34));
    let wide = Weights::open(&source, WeightsAs::F32).unwrap().take(published, &[80, 32]).unwrap();
    assert_eq!(wide.form(), Form::F32);
    let values = wide.into_f32().unwrap();
    assert_eq!((values[0], values[33], values[2559]), (0.0, 0.5, 15.5));

    // A block scale that is no number, and a type nobody computes with here.
    let mut broken = draft.clone();
    broken.tensors.last_mut().unwrap().1.2[34..36].copy_from_slice(&0x7e00_u16.to_le_bytes());
    assert!(refusal(&broken).contains("not finite"));
    let mut other = draft.clone();
    other.drop(name);
    other.tensors.push((name.into(), (26, vec![80, 32], vec![0; 80 * 32 * 4])));
    let message = refusal(&other);
    assert!(message.contains("not built") && message.contains(name), "{message}");
}

#[test]
fn keys_and_tensors_that_change_the_numbers_are_refused_by_name() {
    let table: Vec<(&str, &str, Meta)> = vec![
        ("llama", "rope.scaling.type", Meta::Text("yarn")),
        ("llama", "rope.scaling.type", Meta::Text("linear")),
        ("llama", "rope.scaling.factor", Meta::F32(4.0)),
        ("llama", "rope.scale_linear", Meta::F32(2.0)),
        ("llama", "rope.dimension_count", Meta::U32(8)),
        ("llama", "rope.freq_base", Meta::F32(f32::NAN)),
        ("llama", "rope.freq_base", Meta::U32(10)),
        ("llama", "rope.some_new_thing", Meta::F32(2.0)),
        ("llama", "attention.sliding_window", Meta::U32(4096)),
        ("llama", "attention.causal", Meta::Bool(false)),
        ("llama", "attention.scale", Meta::F32(0.5)),
        ("llama", "attention.value_length", Meta::U32(8)),
        ("llama", "attention.head_count", Meta::U32(0)),
        ("llama", "attention.head_count_kv", Meta::U32(8)),
        ("llama", "attention.head_count_kv", Meta::I32s(vec![2, 4, 2])),
        ("llama", "attention.layer_norm_rms_epsilon", Meta::F32(-1.0)),
        ("llama", "block_count", Meta::U32(1_000_000_000)),
        ("llama", "block_count", Meta::U32(0)),
        ("llama", "embedding_length", Meta::U32(u32::MAX)),
        ("llama", "embedding_length", Meta::Text("32")),
        ("llama", "expert_count", Meta::U32(8)),
        ("llama", "logit_scale", Meta::F32(0.5)),
        ("llama", "vocab_size", Meta::U32(300)),
        ("ernie4_5", "expert_count", Meta::U32(8)),
        ("ernie4_5-moe", "expert_used_count", Meta::U32(9)),
        ("ernie4_5-moe", "expert_used_count", Meta::U32(0)),
        ("ernie4_5-moe", "expert_gating_func", Meta::U32(2)),
        ("ernie4_5-moe", "expert_weights_scale", Meta::F32(2.5)),
        ("ernie4_5-moe", "expert_weights_norm", Meta::Bool(false)),
        ("ernie4_5-moe", "expert_shared_feed_forward_length", Meta::U32(17)),
        ("ernie4_5-moe", "expert_new_thing", Meta::U32(1)),
        ("ernie4_5-moe", "interleave_moe_layer_step", Meta::U32(0)),
        ("ernie4_5-moe", "leading_dense_block_count", Meta::U32(3)),
    ];
    for (arch, key, value) in table {
        let folder = if arch == "ernie4_5-moe" { "moe" } else { "dense" };
        let (mut draft, _) = draft(folder, arch);
        draft.set(&format!("{arch}.{key}"), value);
        let message = refusal(&draft);
        let says = |needle: &str| message.contains(needle);
        // Keys that stand for a field of the config are named by the field once the shape is checked as a whole.
        let fields = ["num_", "rope_theta", "rms_norm_eps", "hidden_size", "moe_"];
        assert!(says(key) || fields.iter().any(|field| says(field)), "{key}: {message}");
    }
    for (name, shape) in [
        ("rope_freqs.weight", vec![8]),
        ("blk.0.attn_q_norm.weight", vec![16]),
        ("blk.0.attn_sinks.weight", vec![4]),
        ("blk.0.attn_q.bias", vec![64]),
        ("blk.0.ffn_gate_exps.weight", vec![8, 16, 32]),
        ("output_extra.weight", vec![4]),
    ] {
        let (mut draft, _) = draft("dense", "llama");
        draft.put(name, &shape, &vec![0.0; shape.iter().product()]);
        let message = refusal(&draft);
        assert!(message.contains(name) || message.contains("bias"), "{name}: {message}");
    }
    for name in ["token_embd.weight", "output_norm.weight", "blk.1.attn_k.weight"] {
        let (mut draft, _) = draft("dense", "llama");
        draft.drop(name);
        assert!(refusal(&draft).contains("missing tensors"));
    }
    let (other, _) = draft("dense", "llama");
    for name in ["gemma3", "ernie4_5-moe"] {
        let mut draft = other.clone();
        draft.set("general.architecture", Meta::Text(name));
        assert!(!refusal(&draft).is_empty());
    }
}

#[test]
fn what_is_harmless_is_read_past() {
    let (mut draft, config) = draft("dense", "llama");
    for (key, value) in [
        ("llama.rope.scaling.type", Meta::Text("none")),
        ("llama.rope.scaling.finetuned", Meta::Bool(false)),
        ("llama.expert_count", Meta::U32(0)),
        ("llama.tensor_data_layout", Meta::Text("Meta AI original pth")),
        ("llama.attention.head_count_kv", Meta::I32s(vec![2, 2, 2])),
        ("llama.shiny", Meta::U32(1)),
        ("general.name", Meta::Text("x")),
        ("tokenizer.ggml.eot_token_id", Meta::U32(7)),
    ] {
        draft.set(key, value);
    }
    draft.keys.retain(|(key, _)| key != "llama.vocab_size");
    let file = draft.write();
    let (read, notes) = ModelConfig::from_gguf_with_notes(&Gguf::open(file.path()).unwrap()).unwrap();
    assert_eq!((read.vocab_size, read.num_key_value_heads), (config.vocab_size, 2));
    assert_eq!(read.eos_token_ids, [2, 7]);
    assert!(notes.iter().any(|note| note.contains("shiny")), "{notes:?}");
}
