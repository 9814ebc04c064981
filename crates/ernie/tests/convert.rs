//! A model in GGUF and back: the same numbers, the same tokens, and files that other programs would refuse are not written.

mod common;

use common::{bad, good, parity, tiny_run};
use ernie_files::Checkpoint;
use std::{fs, path::Path};

fn logits(at: &Path, model: &str) -> Vec<f32> {
    good(at, &["logits", model, "--ids", "5,6,7,8,9,10,11", "--weights", "f32", "--out", "l.safetensors", "--json"]);
    let bytes = Checkpoint::open(&at.join("l.safetensors")).expect("logits").bytes("logits.0").expect("logits.0");
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

#[test]
fn there_and_back_again() {
    let at = tempfile::tempdir().expect("a temporary folder");
    for name in ["dense", "moe", "moe_untied"] {
        let model = parity(name).display().to_string();
        let plain = logits(at.path(), &model);
        let file = |kind: &str| format!("{name}-{kind}.gguf");
        for (kind, within) in [("f32", 1e-5), ("bf16", 0.05), ("q8_0", 0.05)] {
            good(at.path(), &["convert", &model, "--to", "gguf", "--type", kind, "--out", &file(kind), "--quiet"]);
            let converted = logits(at.path(), &file(kind));
            let apart = plain.iter().zip(&converted).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
            let largest = plain.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            assert!(apart <= within * largest, "{name} {kind}: {apart} of {largest}");
        }
        let back = format!("{name}-back");
        let json = good(at.path(), &["convert", &file("f32"), "--to", "hf", "--out", &back, "--json"]).json();
        assert!(json["params_total"].as_u64().is_some_and(|count| count > 0), "{json}");
        assert_eq!(logits(at.path(), &back), logits(at.path(), &file("f32")));
    }
}

#[test]
fn tokens_and_answers_are_the_same() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let run = tiny_run().display().to_string();
    good(at.path(), &["convert", &run, "--to", "gguf", "--type", "f32", "--out", "m.gguf", "--quiet"]);
    let text = "The year 2026,\n  in 中文 — café! </s> don't";
    let ids =
        |model: &str| good(at.path(), &["tokenize", "encode", model, "--text", text, "--json"]).json()["ids"].clone();
    assert_eq!(ids(&run), ids("m.gguf"));
    let said = |model: &str| {
        good(at.path(), &["generate", model, "--prompt", "Who?", "--max-tokens", "8", "--temperature", "0", "--json"])
            .json()["ids"]
            .clone()
    };
    assert_eq!(said(&run), said("m.gguf"));
}

#[test]
fn mistakes_are_named_and_nothing_is_overwritten() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let dense = parity("dense").display().to_string();
    fs::write(at.path().join("there.gguf"), "precious").expect("a file");
    let refused = bad(at.path(), &["convert", &dense, "--to", "gguf", "--out", "there.gguf"], 2);
    assert!(refused.err.contains("there already"), "{}", refused.err);
    assert_eq!(fs::read(at.path().join("there.gguf")).expect("the file"), b"precious");
    bad(at.path(), &["convert", &dense, "--to", "onnx", "--out", "x"], 2);
    bad(at.path(), &["convert", &dense, "--to", "hf", "--type", "f32", "--out", "x"], 2);
    bad(at.path(), &["convert", "nowhere", "--to", "gguf", "--out", "x"], 2);
    let refused = bad(at.path(), &["convert", &parity("vl").display().to_string(), "--to", "gguf", "--out", "x"], 2);
    assert!(!at.path().join("x").exists(), "{}", refused.err);
}
