//! A dense model as a mixture of experts: the same numbers, then trained as any other.

mod common;

use common::{bad, good, parity};
use ernie_files::Checkpoint;
use std::{fs, path::Path};

fn logits(at: &Path, model: &str) -> Vec<f32> {
    good(at, &["logits", model, "--ids", "5,6,7,8,9,10,11", "--weights", "f32", "--out", "l.safetensors", "--json"]);
    let bytes = Checkpoint::open(&at.join("l.safetensors")).expect("logits").bytes("logits.0").expect("logits.0");
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

#[test]
fn experts_compute_what_the_dense_model_did_until_they_learn() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let dense = parity("dense").display().to_string();
    let plain = logits(at.path(), &dense);
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    for (name, set) in [
        ("two", ["--experts", "4", "--seed", "3"]),
        ("all", ["--experts", "3", "--top-k", "3"]),
        ("from", ["--experts", "2", "--first-layer", "0"]),
    ] {
        let args = [&["upcycle", &dense, "--out", name, "--json"][..], &set[..]].concat();
        let json = good(at.path(), &args).json();
        assert!(json["params_total"].as_u64() >= json["params_active"].as_u64(), "{json}");
        let mixture = logits(at.path(), name);
        assert!(apart(&plain, &mixture) < 1e-5, "{name}: {}", apart(&plain, &mixture));
    }
    good(at.path(), &["upcycle", &dense, "--experts", "4", "--fresh", "0.5", "--out", "fresh", "--quiet"]);
    assert!(apart(&plain, &logits(at.path(), "fresh")) > 1e-3);

    // The same seed gives the same files.
    good(at.path(), &["upcycle", &dense, "--experts", "4", "--seed", "3", "--out", "again", "--quiet"]);
    let file = |name: &str| fs::read(at.path().join(name).join("model.safetensors")).expect("weights");
    assert_eq!(file("two"), file("again"));
}

#[test]
fn mistakes_are_named_and_leave_nothing() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let (dense, moe) = (parity("dense").display().to_string(), parity("moe").display().to_string());
    for (args, says) in [
        (vec!["upcycle", &moe, "--experts", "4", "--out", "x"], "already"),
        (vec!["upcycle", &dense, "--experts", "1", "--out", "x"], "2 to 1024"),
        (vec!["upcycle", &dense, "--experts", "4", "--top-k", "5", "--out", "x"], "5 a token"),
        (vec!["upcycle", &dense, "--experts", "4", "--first-layer", "99", "--out", "x"], "layers from 99"),
        (vec!["upcycle", &dense, "--experts", "4", "--fresh", "1.5", "--out", "x"], "1.5"),
    ] {
        let refused = bad(at.path(), &args, 2);
        assert!(refused.err.contains(says), "{args:?}: {}", refused.err);
        assert!(!at.path().join("x").exists());
    }
}
