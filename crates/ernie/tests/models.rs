//! The fields that scripts rely on, on the recorded tiny checkpoints.

mod common;

use common::{bad, good, parity, run, run_with_input, tiny_run};
use serde_json::Value;
use std::fs;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn reference(name: &str) -> Value {
    let text = fs::read_to_string(parity(name).join("reference.json")).expect("reference.json");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn inspect_tells_what_is_inside() {
    let at = folder();
    let moe = parity("moe").display().to_string();
    let json = good(at.path(), &["inspect", &moe, "--json"]).json();
    let config: Value =
        serde_json::from_str(&fs::read_to_string(parity("moe").join("config.json")).expect("config")).expect("JSON");
    assert_eq!(json["layers"], config["num_hidden_layers"]);
    assert_eq!(json["hidden_size"], config["hidden_size"]);
    assert_eq!(json["vocab_size"], config["vocab_size"]);
    assert_eq!(json["context_length"], config["max_position_embeddings"]);
    assert!(json["architecture"].is_string());
    for field in ["params_total", "params_active", "params_mtp", "kv_bytes_per_token", "weight_bytes"] {
        assert!(json[field].is_u64(), "{field}: {json}");
    }
    assert!(json["params_total"].as_u64() > json["params_active"].as_u64());
    assert!(json["tensors"]["used"].as_u64().is_some_and(|n| n > 10));
    assert_eq!(json["tensors"]["skipped"], serde_json::json!([]));
    let people = good(at.path(), &["inspect", &moe]);
    assert!(people.out.contains("parameters") && people.out.contains("experts"), "{}", people.out);
}

#[test]
fn presets_are_inspected_without_weights() {
    let at = folder();
    let base = good(at.path(), &["inspect", "preset:base", "--json"]).json();
    assert_eq!(base["params_total"], 360_748_032);
    assert_eq!(base["kv_bytes_per_token"], 18 * 1024);
    let largest = good(at.path(), &["inspect", "preset:enterprise", "--json"]).json();
    assert!(largest["params_total"].as_u64().is_some_and(|n| n > 299_000_000_000), "{largest}");
    let vl = good(at.path(), &["inspect", "preset:ernie-4.5-vl-424b-a47b", "--json"]).json();
    assert!(vl["inferred"].as_array().is_some_and(|list| !list.is_empty()), "{vl}");
    let nano = good(at.path(), &["inspect", "preset:nano", "--json"]).json();
    assert!(nano["params_total"].as_u64().is_some_and(|n| n <= 14_000_000), "{nano}");
}

#[test]
fn generate_gives_the_recorded_ids() {
    let at = folder();
    for name in ["dense", "moe", "moe_untied"] {
        let model = parity(name).display().to_string();
        let (prompt, answer) = greedy(name);
        let count = answer.len().to_string();
        let json = good(
            at.path(),
            &[
                "generate",
                &model,
                "--ids",
                &prompt,
                "--max-tokens",
                &count,
                "--temperature",
                "0",
                "--ignore-eos",
                "--json",
            ],
        )
        .json();
        assert_eq!(json["ids"], serde_json::json!(answer), "{name}");
        assert_eq!(json["text"], Value::Null, "{name}");
        assert_eq!(json["finish_reason"], "length");
        assert_eq!(json["completion_tokens"], answer.len());
        for field in ["prompt_tokens", "prefill_s", "decode_s", "tokens_per_s"] {
            assert!(json[field].is_number(), "{field}: {json}");
        }
    }
}

/// The recorded prompt and greedy answer of one model.
fn greedy(name: &str) -> (String, Vec<i64>) {
    use ernie_files::Checkpoint;
    let reference = reference(name);
    let file = parity(name).join("reference.safetensors");
    let tensors = Checkpoint::open(&file).expect("reference tensors");
    let info = tensors.info("generate.greedy_ids").expect("greedy ids").clone();
    let width = info.shape[info.shape.len() - 1];
    let ids: Vec<i64> = tensors
        .bytes("generate.greedy_ids")
        .expect("greedy ids")
        .chunks_exact(8)
        .take(width)
        .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")))
        .collect();
    let prompt = tensors.info("input_ids").map_or(20, |i| i.shape[i.shape.len() - 1]);
    let prompt = reference["generate"]["prompt_tokens"].as_u64().map_or(prompt, |n| n as usize);
    let text: Vec<String> = ids[..prompt].iter().map(i64::to_string).collect();
    (text.join(","), ids[prompt..].to_vec())
}

#[test]
fn logits_are_the_recorded_ones() {
    use ernie_files::Checkpoint;
    let at = folder();
    let model = parity("moe").display().to_string();
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
    };
    let reference = Checkpoint::open(&parity("moe").join("reference.safetensors")).expect("reference");
    let ids = reference.bytes("input_ids").expect("ids");
    let ids: Vec<i64> = ids.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight"))).collect();
    let rows: Vec<&[i64]> = ids.chunks(ids.len() / 2).collect();
    fs::write(at.path().join("ids.json"), serde_json::to_string(&rows).expect("JSON")).expect("ids");
    let json =
        good(at.path(), &["logits", &model, "--ids-file", "ids.json", "--out", "logits.safetensors", "--json"]).json();
    assert!(json["tensors"]["logits.0"].is_array(), "{json}");
    let ours = Checkpoint::open(&at.path().join("logits.safetensors")).expect("our logits");
    let expected = floats(&reference.bytes("logits").expect("logits"));
    let mut got = floats(&ours.bytes("logits.0").expect("logits.0"));
    got.extend(floats(&ours.bytes("logits.1").expect("logits.1")));
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
    assert_eq!(fs::read_dir(at.path()).expect("folder").count(), 2, "nothing else is left behind");
}

#[test]
fn a_trained_model_has_text() {
    let at = folder();
    let model = tiny_run().display().to_string();
    let args = ["generate", &model, "--prompt", "The fox", "--max-tokens", "8", "--no-chat", "--seed", "3", "--json"];
    let json = good(at.path(), &args).json();
    assert!(json["text"].is_string(), "{json}");
    let again = good(at.path(), &args).json();
    assert_eq!(json["ids"], again["ids"], "a seed settles the answer");
    let plain = good(at.path(), &args[..args.len() - 1]);
    assert_eq!(plain.out.trim_end_matches('\n'), json["text"].as_str().expect("text").trim_end_matches('\n'));
    for form in ["f32", "bf16", "int8"] {
        good(at.path(), &["generate", &model, "--ids", "5,6", "--max-tokens", "2", "--weights", form, "--json"]);
    }
}

#[test]
fn text_and_ids_come_back() {
    let at = folder();
    let model = tiny_run().display().to_string();
    let text = "The fox ran — 狐狸 🦊";
    let json = good(at.path(), &["tokenize", "encode", &model, "--text", text, "--json"]).json();
    let ids: Vec<String> = json["ids"].as_array().expect("ids").iter().map(Value::to_string).collect();
    assert_eq!(json["count"], ids.len());
    let ids = ids.join(",");
    let plain = run_with_input(at.path(), &["tokenize", "encode", &model], text);
    assert_eq!(plain.out.trim(), ids);
    let back = good(at.path(), &["tokenize", "decode", &model, "--ids", &ids, "--json"]).json();
    assert_eq!(back["text"], text);
    let back = run_with_input(at.path(), &["tokenize", "decode", &model], &ids);
    assert_eq!(back.out.trim_end(), text);
}

#[test]
fn a_tokenizer_is_trained() {
    let at = folder();
    fs::write(at.path().join("a.txt"), common::TEXT.repeat(20)).expect("text");
    good(at.path(), &["tokenize", "train", "a.txt", "--vocab", "300", "--out", "tok", "--quiet"]);
    assert!(at.path().join("tok/tokenizer.json").exists());
    let json = good(at.path(), &["tokenize", "encode", "tok", "--text", "The fox", "--json"]).json();
    assert!(json["count"].as_u64().is_some_and(|n| n < 7), "{json}");
}

#[test]
fn score_answers_line_by_line() {
    let at = folder();
    let model = tiny_run().display().to_string();
    let lines = "{\"context\": \"The fox ran over\", \"continuation\": \" the hill\"}\n\
                 {\"context\": \"\", \"continuation\": \"The dog\"}\n\
                 {\"context\": \"The \", \"continuation\": \"dog\"}\n";
    fs::write(at.path().join("in.jsonl"), lines).expect("lines");
    let answer = good(at.path(), &["score", &model, "--input", "in.jsonl"]);
    let answers: Vec<Value> = answer.out.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(answers.len(), 3);
    for line in answers {
        assert!(line["logprob"].as_f64().is_some_and(|x| x < 0.0), "{line}");
        assert!(line["tokens"].as_u64().is_some_and(|n| n > 0), "{line}");
        assert!(line["greedy"].is_boolean(), "{line}");
    }
}

#[test]
fn eval_has_its_fields() {
    let at = folder();
    let model = tiny_run().display().to_string();
    fs::write(at.path().join("text.txt"), common::TEXT.repeat(2)).expect("text");
    let json = good(at.path(), &["eval", &model, "--task", "perplexity", "--data", "text.txt", "--json"]).json();
    assert_eq!(json["task"], "perplexity");
    assert!(json["n"].is_u64() && json["settings"].is_object(), "{json}");
    assert!(json["metrics"]["bits_per_byte"].as_f64().is_some_and(|x| x > 0.0 && x < 20.0), "{json}");

    let list = good(at.path(), &["eval", "--list"]);
    assert!(list.out.contains("perplexity") && list.out.contains("sst2"), "{}", list.out);

    let rows = "sentence\tlabel\na fine film\t1\na dull film\t0\nwonderful\t1\n";
    fs::write(at.path().join("sst2.tsv"), rows).expect("rows");
    let json =
        good(at.path(), &["eval", &model, "--task", "sst2", "--data", "sst2.tsv", "--limit", "2", "--json"]).json();
    assert_eq!((json["task"].as_str(), json["n"].as_u64()), (Some("sst2"), Some(2)));
    assert!(json["metrics"]["acc"].is_number() && json["metrics"]["acc_stderr"].is_number(), "{json}");
}

#[test]
fn two_models_are_compared_over_the_same_examples() {
    let at = folder();
    let model = tiny_run().display().to_string();
    for (name, text) in [("a.txt", common::TEXT), ("b.txt", "A tall king.\n"), ("c.txt", "It rains, it rains.\n")] {
        fs::write(at.path().join(name), text).expect("text");
    }
    let eval = ["eval", &model, "--task", "perplexity", "--data", "*.txt", "--json"];
    good(at.path(), &[&eval[..], &["--examples", "f32.jsonl"]].concat());
    let lines = fs::read_to_string(at.path().join("f32.jsonl")).expect("lines");
    assert_eq!(lines.lines().count(), 3, "{lines}");

    let against = |model: &str, weights: &str| {
        let args = ["eval", model, "--task", "perplexity", "--data", "*.txt", "--json", "--weights", weights];
        good(at.path(), &[&args[..], &["--against", "f32.jsonl"]].concat()).json()
    };
    let same = against(&model, "native");
    assert_eq!(same["metrics"]["bits_per_byte_difference"], 0.0, "{same}");
    assert_eq!(same["settings"]["against"], "f32.jsonl");
    // Rounded weights move every document a little, and by far less than documents differ.
    let int4 = against(&model, "int4");
    let error = |name: &str| int4["metrics"][name].as_f64().expect("an error");
    assert!(error("bits_per_byte_difference_stderr") < 0.5 * error("bits_per_byte_stderr"), "{int4}");

    // Mistakes that need no model are told before one is loaded.
    for mistake in [["--against", "none.jsonl"], ["--examples", "none/a.jsonl"]] {
        let args = ["eval", "preset:ernie-4.5-21b-a3b", "--task", "perplexity"];
        assert!(bad(at.path(), &[&args[..], &mistake].concat(), 2).err.contains(mistake[1]));
    }

    fs::write(at.path().join("b.txt"), "Another text.\n").expect("text");
    let args = ["eval", &model, "--task", "perplexity", "--data", "*.txt", "--against", "f32.jsonl"];
    let refused = bad(at.path(), &args, 2);
    assert!(refused.err.contains("f32.jsonl:2: another example"), "{}", refused.err);
}

#[test]
fn quiet_is_quiet() {
    let at = folder();
    let model = parity("vl").display().to_string();
    let answer = run(at.path(), &["inspect", &model, "--json", "--quiet"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    let answer = run(at.path(), &["inspect", &model, "--json"]);
    assert!(answer.json()["tensors"]["skipped"].as_array().is_some_and(|l| !l.is_empty()));
}
