//! `quantize` from outside: what it writes, what it keeps, what it refuses.

mod common;

use common::{bad, good, parity, tiny_run};
use ernie_files::{Checkpoint, Dtype};
use serde_json::Value;
use std::{fs, path::Path};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn logits(at: &Path, model: &str, extra: &[&str]) -> Vec<f32> {
    let out = at.join("l.safetensors");
    let mut args = vec!["logits", model, "--ids", "5,6,7,8,9", "--out", "l.safetensors", "--json"];
    args.extend(extra);
    good(at, &args);
    let bytes = Checkpoint::open(&out).expect("logits").bytes("logits.0").expect("logits.0").to_vec();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

/// The length of the difference as a share of the length.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}

#[test]
fn a_quarter_of_the_size_and_nearly_the_same_logits() {
    let at = folder();
    let json = good(at.path(), &["quantize", "preset:nano", "--to", "int8", "--out", "q", "--json"]).json();
    let share = json["share_of_f32"].as_f64().expect("a share");
    assert!(share <= 0.255, "{json}");
    assert_eq!(json["bytes"], fs::metadata(at.path().join("q/model.safetensors")).expect("weights").len());
    let inspected = good(at.path(), &["inspect", "q", "--json"]).json();
    assert_eq!(inspected["params_total"], json["params_total"]);

    let checkpoint = Checkpoint::open(&at.path().join("q")).expect("the new checkpoint");
    for tensor in checkpoint.tensors() {
        let name = tensor.name.as_str();
        let expected = match name {
            _ if name.ends_with("weight_scale") => Dtype::F16,
            _ if name.contains("norm") || name.contains("mlp.gate.") || name.contains("bias") => Dtype::F32,
            _ => Dtype::I8,
        };
        assert_eq!(tensor.dtype, expected, "{name}");
        if expected == Dtype::F16 {
            assert_eq!(tensor.shape[1..], [1], "{name}");
        }
    }
    assert!(checkpoint.info("model.embed_tokens.weight_scale").is_some(), "the embedding is quantised too");
    let text = fs::read_to_string(at.path().join("q/config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["quantization_config"]["quant_method"], "compressed-tensors");
    assert_eq!(config["quantization_config"]["format"], "int-quantized");

    let plain = logits(at.path(), "preset:nano", &["--weights", "f32"]);
    let ours = logits(at.path(), "q", &[]);
    // Rounding to 127 steps moves a weight by up to 0.4 % of its row's largest; over four layers a few per cent remain.
    assert!(distance(&plain, &ours) < 0.05, "{}", distance(&plain, &ours));
    assert!(distance(&plain, &ours) > 0.0);
}

#[test]
fn four_bits_in_the_spelling_of_compressed_tensors() {
    let at = folder();
    let json = good(at.path(), &["quantize", "preset:nano", "--to", "int4", "--out", "q", "--json"]).json();
    assert_eq!(json["to"], "int4");
    // Half a byte, and a scale of two every 32, of most weights; embedding and head have a byte.
    let share = json["share_of_f32"].as_f64().expect("a share");
    assert!(share < 0.22, "{json}");
    let inspected = good(at.path(), &["inspect", "q", "--json"]).json();
    assert_eq!(inspected["params_total"], json["params_total"]);
    assert_eq!(inspected["tensors"]["skipped"], serde_json::json!([]));

    let checkpoint = Checkpoint::open(&at.path().join("q")).expect("the new checkpoint");
    let name = "model.layers.0.self_attn.q_proj.weight";
    let info = |part: &str| checkpoint.info(&format!("{name}{part}")).unwrap_or_else(|| panic!("{name}{part}"));
    let bytes = checkpoint.bytes(&format!("{name}_shape")).expect("a shape").to_vec();
    let [rows, columns] = [0, 8].map(|at| usize::from(bytes[at]) + 256 * usize::from(bytes[at + 1]));
    let is = |part: &str, dtype, shape: [usize; 2]| {
        assert_eq!((info(part).dtype, info(part).shape.as_slice()), (dtype, &shape[..]), "{part}");
    };
    is("_packed", Dtype::I32, [rows, columns / 8]);
    is("_scale", Dtype::F16, [rows, columns / 32]);
    assert!(checkpoint.info(name).is_none());
    let embedding = checkpoint.info("model.embed_tokens.weight").expect("an embedding");
    assert_eq!(embedding.dtype, Dtype::I8);
    let text = fs::read_to_string(at.path().join("q/config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let told = &config["quantization_config"];
    assert_eq!((&told["quant_method"], &told["format"]), (&"compressed-tensors".into(), &"mixed-precision".into()));
    assert_eq!(told["config_groups"]["group_0"]["weights"]["num_bits"], 4);

    // As stored, widened, and beside the model that was rounded: a step is a fifteenth of a group's range.
    let plain = logits(at.path(), "preset:nano", &["--weights", "f32"]);
    let wide = logits(at.path(), "q", &["--weights", "f32"]);
    let stored = logits(at.path(), "q", &[]);
    assert!(distance(&wide, &stored) < 0.02, "{}", distance(&wide, &stored));
    assert!(distance(&plain, &wide) < 0.3, "{}", distance(&plain, &wide));
    assert!(distance(&plain, &wide) > 0.0);
    assert!(stored == logits(at.path(), "q", &["--weights", "int4"]), "nothing is rounded twice");
    good(at.path(), &["generate", "q", "--ids", "5,6,7", "--max-tokens", "3"]);
    let answer = bad(at.path(), &["quantize", "q", "--to", "int8", "--out", "again"], 2);
    assert!(answer.err.contains("quantised already"), "{}", answer.err);
}

#[test]
fn damaged_four_bits_are_refused_by_name() {
    let at = folder();
    good(at.path(), &["quantize", "preset:nano", "--to", "int4", "--out", "q", "--quiet"]);
    let weights = at.path().join("q/model.safetensors");
    let whole = fs::read(&weights).expect("weights");
    let config = fs::read_to_string(at.path().join("q/config.json")).expect("config.json");
    let name = "model.layers.0.self_attn.q_proj.weight";
    let refused = |says: &str| {
        let answer = bad(at.path(), &["logits", "q", "--ids", "5", "--out", "l.safetensors"], 2);
        assert!(answer.err.contains(says), "{says}: {}", answer.err);
    };
    // One tensor renamed in the table, in as many letters, is one that is missing.
    let renamed = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).expect("a name");
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&weights, bytes).expect("weights");
    };
    for (part, other) in [("_packed", "_pocked"), ("_scale", "_scule")] {
        renamed(&format!("{name}{part}"), &format!("{name}{other}"));
        refused(if part == "_packed" { name } else { "q_proj.weight_scale" });
    }
    // What nobody takes might have changed the numbers.
    renamed(&format!("{name}_shape"), &format!("{name}_shope"));
    refused("shope");
    fs::write(&weights, &whole).expect("weights");
    for (from, to, says) in [
        ("\"num_bits\": 4", "\"num_bits\": 3", "3-bit"),
        ("\"pack-quantized\"", "\"marlin-24\"", "marlin-24"),
        ("\"mixed-precision\"", "\"sparse\"", "sparse"),
    ] {
        fs::write(at.path().join("q/config.json"), config.replace(from, to)).expect("config.json");
        refused(says);
    }
}

#[test]
fn every_recorded_model_can_be_quantised_and_says_the_same_as_when_rounded_while_loading() {
    let at = folder();
    for name in ["dense", "moe", "moe_untied"] {
        let model = parity(name).display().to_string();
        good(at.path(), &["quantize", &model, "--to", "int8", "--out", name, "--quiet"]);
        let loading = logits(at.path(), &model, &["--weights", "int8"]);
        assert!(loading == logits(at.path(), name, &[]), "{name}");
    }
}

#[test]
fn what_belongs_to_the_model_comes_along() {
    let at = folder();
    let run = tiny_run();
    let line = good(at.path(), &["quantize", &run.display().to_string(), "--to", "int8", "--out", "new/q"]).out;
    assert!(line.starts_with("new/q: ") && line.contains("% of f32"), "{line}");
    let original = fs::read(run.join("checkpoint-6/tokenizer.json")).expect("a tokenizer");
    assert!(original == fs::read(at.path().join("new/q/tokenizer.json")).expect("a tokenizer"));
    assert!(!at.path().join("new/q/training_state").exists());
    good(at.path(), &["generate", "new/q", "--no-chat", "--prompt", "The fox", "--max-tokens", "3"]);
    assert_eq!(fs::read_dir(at.path().join("new")).expect("new").count(), 1, "nothing else is left behind");
}

#[test]
fn mistakes_leave_nothing_behind() {
    let at = folder();
    let dense = parity("dense").display().to_string();
    for (args, says) in [
        (&["quantize", &dense, "--to", "int8"][..], "--out"),
        (&["quantize", &dense, "--out", "q"][..], "--to"),
        (&["quantize", &dense, "--to", "int3", "--out", "q"][..], "int3"),
        (&["quantize", "nowhere", "--to", "int8", "--out", "q"][..], "nowhere"),
        (&["quantize", &parity("vl").display().to_string(), "--to", "int8", "--out", "q"][..], "not built yet"),
    ] {
        let answer = bad(at.path(), args, 2);
        assert!(answer.err.contains(says), "{args:?}: {}", answer.err);
    }
    bad(at.path(), &["quantize", "someone/some-model", "--to", "int8", "--out", "q"], 3);
    assert_eq!(fs::read_dir(at.path()).expect("folder").count(), 0);

    // Damaged weights are found before the first byte is written.
    let model = at.path().join("model");
    fs::create_dir(&model).expect("a folder");
    fs::copy(parity("dense").join("config.json"), model.join("config.json")).expect("a copy");
    let mut bytes = fs::read(parity("dense").join("model.safetensors")).expect("weights");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(model.join("model.safetensors"), &bytes).expect("weights");
    let answer = bad(at.path(), &["quantize", "model", "--to", "int8", "--out", "q"], 2);
    assert!(answer.err.contains("not finite"), "{}", answer.err);
    assert_eq!(fs::read_dir(at.path()).expect("folder").count(), 1);
}

#[test]
fn folders_that_are_taken_and_places_that_are_none() {
    let at = folder();
    let dense = parity("dense").display().to_string();
    fs::create_dir(at.path().join("full")).expect("a folder");
    fs::write(at.path().join("full/thesis.txt"), "x").expect("a file");
    let answer = bad(at.path(), &["quantize", &dense, "--to", "int8", "--out", "full"], 2);
    assert!(answer.err.contains("full") && answer.err.contains("hint:"), "{}", answer.err);
    fs::write(at.path().join("file"), "x").expect("a file");
    bad(at.path(), &["quantize", &dense, "--to", "int8", "--out", "file"], 2);
    bad(at.path(), &["quantize", &dense, "--to", "int8", "--out", "file/q"], 2);
    // A place that no process may write to, not even root.
    let answer = bad(at.path(), &["quantize", &dense, "--to", "int8", "--out", "/proc/q"], 2);
    assert!(answer.err.contains("/proc/q"), "{}", answer.err);
    fs::create_dir(at.path().join("empty")).expect("a folder");
    good(at.path(), &["quantize", &dense, "--to", "int8", "--out", "empty", "--quiet"]);

    let answer = bad(at.path(), &["quantize", "empty", "--to", "int8", "--out", "again"], 2);
    assert!(answer.err.contains("quantised already"), "{}", answer.err);
    assert!(!at.path().join("again").exists());
}
