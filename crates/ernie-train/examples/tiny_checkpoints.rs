//! Trains tiny models and writes what other programs should find in their checkpoints: dense, MoE, MoE with multi-token prediction, and, beside the
//! first two, adapters and heads for labels, with all weights and with an adapter.
//!
//! Run with `cargo run -p ernie-train --example tiny_checkpoints -- OUT`; `tests/transformers/check.py OUT` compares.
//! Prints nothing; OUT/dense, OUT/moe, … are run folders with `expected.safetensors` and `expected.json` in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ernie_files::safetensors::Writer;
use ernie_files::{Dtype, TensorInfo};
use ernie_model::{Decoder, Tokens, WeightsAs};
use ernie_nn::no_grad;
use ernie_train::{Options, Recipe, Trainer};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const TEXT: &str = "Once upon a time there was a king. 1234 — “Grüße”, 你好 🙂";

fn main() -> Fallible<()> {
    let out = PathBuf::from(std::env::args().nth(1).ok_or("expected the folder to write to")?);
    std::fs::create_dir_all(&out)?;
    let mtp = "mtp_layers = 1\n";
    // Rows of 512 are quantised as those of real models are.
    for (name, kind, more) in
        [("dense", "dense", ""), ("wide", "wide", ""), ("moe", "moe", ""), ("moe-mtp", "moe", mtp)]
    {
        let config = out.join(name).with_extension("json");
        std::fs::write(&config, shape(kind).to_string())?;
        train(&format!("config = {config:?}\n{more}"), "{ train = 512 }", "", &out.join(name))?;
    }
    // PEFT takes the MLPs' names in a mixture for those of its fused experts: of mixtures it reads adapters of attention alone.
    let attention = "targets = [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\"]\n";
    for (kind, targets) in [("dense", ""), ("moe", attention)] {
        let base = out.join(kind);
        let model = format!("weights = {base:?}\n");
        let adapter = format!("[adapter]\nrank = 4\n{targets}");
        train(&model, &format!("{base:?}"), &adapter, &out.join(format!("{kind}-lora")))?;
        classify(&base, "", &out.join(format!("{kind}-labels")))?;
        classify(&base, &adapter, &out.join(format!("{kind}-labels-lora")))?;
    }
    Ok(())
}

fn train(model: &str, tokenizer: &str, more: &str, out: &Path) -> Fallible<()> {
    let text = format!(
        "[model]\n{model}[data]\ntrain = [\"bundled\"]\ntokenizer = {tokenizer}\n{more}\
         [batch]\nrows = 4\nseq_len = 64\n[schedule]\nsteps = 20\nwarmup = 2\n[optimizer]\nlr = 0.01\n[evaluation]\nevery = 0\n"
    );
    let (trainer, model) = run(&text, out)?;
    let vocab = model.config().vocab_size;
    let (rows, length) = (2, 24);
    let ids: Vec<u32> = (0..rows * length).map(|at| (at * at * 31 + at * 7) as u32 % vocab as u32).collect();
    let tokens = Tokens::packed(ids.clone(), &[length; 2]);
    let all: Vec<usize> = (0..ids.len()).collect();
    let logits = model.forward_logits(&tokens, None, &all)?;
    expect(out, &ids, ("logits", &[rows, length, vocab]), &logits)?;
    let ids = trainer.tokenizer().encode(TEXT)?;
    std::fs::write(out.join("expected.json"), serde_json::json!({ "text": TEXT, "ids": ids }).to_string())?;
    Ok(())
}

/// A head for three labels on what `base` holds.
fn classify(base: &Path, adapter: &str, out: &Path) -> Fallible<()> {
    let data = out.with_extension("jsonl");
    let line = |at: usize| format!("{{\"text\": \"text {at}\", \"label\": \"{}\"}}\n", ["low", "high", "none"][at % 3]);
    std::fs::write(&data, (0..60).map(line).collect::<String>())?;
    let text = format!(
        "[model]\nweights = {base:?}\n[data]\ntrain = [{data:?}]\ntokenizer = {base:?}\n{adapter}[objective]\nkind = \"classify\"\n\
         [batch]\nrows = 4\nseq_len = 64\n[schedule]\nsteps = 20\nwarmup = 2\n[optimizer]\nlr = 0.01\n[evaluation]\nevery = 0\n"
    );
    let (_, model) = run(&text, out)?;
    // No id is that of padding, which others look for.
    let (vocab, length) = (model.config().vocab_size as u32, 24);
    let ids: Vec<u32> = (0..2 * length).map(|at| 3 + (at * at * 31 + at * 7) as u32 % (vocab - 3)).collect();
    let hidden = no_grad(|| model.hidden(&Tokens::packed(ids.clone(), &[length; 2]), None, &mut ()))?;
    let scores = model.label_logits(&hidden, &[length - 1, 2 * length - 1])?;
    expect(out, &ids, ("scores", &[2, 3]), &scores)
}

/// Trains by a recipe; the trainer, and what was saved: not what is in memory is what others will load.
fn run(recipe: &str, out: &Path) -> Fallible<(Trainer, Decoder)> {
    let recipe = Recipe::parse(recipe, "tiny_checkpoints", Path::new("/"), &[], &std::env::current_dir()?)?;
    let options = Options {
        out: out.to_owned(),
        resume: false,
        commit: String::new(),
        resolve: &|_: &str| None,
        asked: &|_, _| (),
    };
    let mut trainer = Trainer::prepare(recipe, &options)?;
    let finished = trainer.run(&mut [], &AtomicBool::new(false))?;
    let checkpoint = finished.checkpoint.ok_or("no checkpoint")?;
    let model = ernie_model::load(&ernie_model::ModelSource::Folder(checkpoint), WeightsAs::F32)?.decoder;
    Ok((trainer, model))
}

/// Writes two rows of ids and what the model says to them.
fn expect(out: &Path, ids: &[u32], (name, shape): (&str, &[usize]), numbers: &[f32]) -> Fallible<()> {
    let infos = [
        TensorInfo::new("input_ids", Dtype::I64, [2, ids.len() / 2]),
        TensorInfo::new(name, Dtype::F32, shape.to_vec()),
    ];
    let mut writer = Writer::create(&out.join("expected.safetensors"), &infos, &BTreeMap::new())?;
    ids.iter().try_for_each(|&id| writer.write(&i64::from(id).to_le_bytes()))?;
    numbers.iter().try_for_each(|number| writer.write(&number.to_le_bytes()))?;
    Ok(writer.finish()?)
}

fn shape(kind: &str) -> serde_json::Value {
    let mut shape = serde_json::json!({
        "architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "hidden_act": "silu",
        "hidden_size": if kind == "wide" { 512 } else { 48 }, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "use_bias": false, "initializer_range": 0.05,
        "vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    });
    if kind == "moe" {
        let moe = serde_json::json!({
            "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "tie_word_embeddings": false,
            "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1, "moe_use_aux_free": true,
        });
        if let (Some(shape), serde_json::Value::Object(moe)) = (shape.as_object_mut(), moe) {
            shape.extend(moe);
        }
    }
    shape
}
