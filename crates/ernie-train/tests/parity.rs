//! The reference's gradients, losses and gradient norms: five steps of PyTorch's AdamW on the tiny checkpoints.
//!
//! The reference decays every trained tensor (one parameter group), so this test does too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ernie_data::Batch;
use ernie_files::Checkpoint;
use ernie_model::{Decoder, ModelSource};
use ernie_nn::Width;
use ernie_train::optimizer::Optimizer;
use ernie_train::recipe::{self, Decay, Objective};
use ernie_train::step::accumulate;

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ernie-model/tests/parity").join(case)
}

fn floats(reference: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = reference.bytes(name).unwrap();
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn integers(reference: &Checkpoint, name: &str) -> Vec<i64> {
    let bytes = reference.bytes(name).unwrap();
    bytes.chunks_exact(8).map(|word| i64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// The reference's batch: labels name the token at their own position, targets the one after.
fn batch(reference: &Checkpoint) -> Batch {
    let shape = &reference.info("input_ids").unwrap().shape;
    let (rows, seq_len) = (shape[0], shape[1]);
    let ids = integers(reference, "input_ids").iter().map(|&id| id as u32).collect();
    let labels = integers(reference, "train.labels");
    let shifted = |row: &[i64]| row[1..].iter().copied().chain([-100]).collect::<Vec<_>>();
    let targets = labels.chunks(seq_len).flat_map(shifted).collect();
    Batch { ids, targets, lengths: vec![seq_len; rows], rows, seq_len, places: Vec::new() }
}

/// The reference's gradient of one of our parameters: experts are fused there, one tensor for all.
fn reference_gradient(reference: &Checkpoint, name: &str, seen: &mut BTreeSet<String>) -> Vec<f32> {
    let plain = format!("grad.{name}");
    if reference.info(&plain).is_some() {
        seen.insert(plain.clone());
        return floats(reference, &plain);
    }
    let (layer, rest) = name.split_once(".experts.").unwrap();
    let (expert, projection) = rest.split_once('.').unwrap();
    let expert: usize = expert.parse().unwrap();
    let (fused, half) = match projection {
        "gate_proj.weight" => ("gate_up_proj", Some(0)),
        "up_proj.weight" => ("gate_up_proj", Some(1)),
        "down_proj.weight" => ("down_proj", None),
        other => panic!("{name}: no reference for {other}"),
    };
    let fused = format!("grad.{layer}.experts.{fused}");
    seen.insert(fused.clone());
    let shape = reference.info(&fused).unwrap().shape.clone();
    let all = floats(reference, &fused);
    let each = &all[expert * shape[1] * shape[2]..][..shape[1] * shape[2]];
    match half {
        Some(half) => each[half * each.len() / 2..][..each.len() / 2].to_vec(),
        None => each.to_vec(),
    }
}

fn close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance * theirs.abs().max(1.0), "{what}: {ours}, the reference has {theirs}");
}

fn gradients_match(case: &str, decoder: &Decoder, reference: &Checkpoint) {
    let mut seen = BTreeSet::new();
    for parameter in decoder.parameters() {
        let theirs = reference_gradient(reference, parameter.name(), &mut seen);
        let ours = parameter.grad_vec().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{case} {}", parameter.name());
        let largest = theirs.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
        let apart = ours.iter().zip(&theirs).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        // Sums run in another order than the reference's: a few roundings of the largest terms.
        assert!(apart <= 2e-5 * largest + 1e-8, "{case} {}: apart by {apart} of {largest}", parameter.name());
    }
    for info in reference.tensors().filter(|info| info.name.starts_with("grad.")) {
        assert!(seen.contains(&info.name), "{case}: we have no gradient for {}", info.name);
    }
}

fn five_steps(case: &str) {
    let decoder = ernie_model::load_trainable(&ModelSource::Folder(folder(case)), Width::F32).unwrap().decoder;
    let reference = Checkpoint::open(&folder(case).join("reference.safetensors")).unwrap();
    let batch = batch(&reference);
    let (losses, norms) = (floats(&reference, "train.losses"), floats(&reference, "train.grad_norms"));
    assert_eq!(losses.len(), 5);

    let plain = Objective {
        router_bias_rate: 0.0,
        router_balance: 0.0,
        router_z: 0.0,
        router_orthogonal: 0.0,
        ..Objective::default()
    };
    let settings = recipe::Optimizer {
        lr: 1e-3,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
        decay: Decay::All,
        ..recipe::Optimizer::default()
    };
    let mut optimizer = Optimizer::new(&decoder.parameters(), &settings);
    for step in 0..5 {
        optimizer.zero_grad();
        let measured = accumulate(&decoder, std::slice::from_ref(&batch), &plain).unwrap();
        if step == 0 {
            gradients_match(case, &decoder, &reference);
        }
        let norm = optimizer.grad_norm().unwrap();
        close(&format!("{case} loss {step}"), measured.loss, f64::from(losses[step]), 2e-6);
        close(&format!("{case} norm {step}"), norm, f64::from(norms[step]), 2e-5);
        optimizer.step(settings.lr, optimizer.clip_factor(norm)).unwrap();
    }
}

#[test]
fn dense() {
    five_steps("dense");
}

#[test]
fn moe() {
    five_steps("moe");
}

#[test]
fn moe_untied() {
    five_steps("moe_untied");
}
