//! Configs: both layouts, both generations of spellings, presets to the parameter, and what is refused.

use std::path::Path;

use ernie_model::config::{PRESETS, Quantization};
use ernie_model::{Architecture, Error, ModelConfig};
use serde_json::{Value, json};

fn parity(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(file);
    std::fs::read_to_string(path).unwrap()
}

fn parity_json(file: &str) -> Value {
    serde_json::from_str(&parity(file)).unwrap()
}

fn parse(value: &Value) -> Result<ModelConfig, Error> {
    ModelConfig::from_json(&value.to_string())
}

/// `base` with `changes` laid over it; null removes nothing, it is null.
fn with(base: &str, changes: Value) -> Value {
    let mut root = parity_json(base);
    for (key, value) in changes.as_object().unwrap() {
        root[key] = value.clone();
    }
    root
}

#[test]
fn presets_have_exactly_the_parameters_of_the_family() {
    let expect = [
        ("nano", 4_858_136, 3_088_664, 0),
        ("base", 360_748_032, 360_748_032, 0),
        ("ernie-4.5-0.3b", 360_748_032, 360_748_032, 0),
        ("ernie-4.5-21b-a3b", 21_825_437_888, 3_352_150_208, 123_217_920),
        ("pro", 29_399_294_336, 3_352_150_208, 0),
        ("ernie-4.5-vl-28b-a3b", 29_399_294_336, 3_352_150_208, 0),
        ("enterprise", 299_484_163_264, 47_926_586_560, 989_888_512),
        ("ernie-4.5-300b-a47b", 299_484_163_264, 47_926_586_560, 989_888_512),
        ("ernie-4.5-vl-424b-a47b", 423_526_285_184, 47_926_586_560, 0),
        ("bench-dense-28m", 28_320_256, 28_320_256, 0),
        ("bench-moe-22m", 22_179_168, 5_664_096, 0),
    ];
    for (name, total, active, mtp) in expect {
        let count = ModelConfig::preset(name).unwrap().parameters();
        assert_eq!((count.total, count.active, count.mtp), (total, active, mtp), "{name}");
    }
    for (name, kib) in [("base", 18), ("ernie-4.5-21b-a3b", 56), ("pro", 56), ("enterprise", 216)] {
        assert_eq!(ModelConfig::preset(name).unwrap().kv_bytes_per_token(2), kib * 1024, "{name}");
    }
}

#[test]
fn counts_by_formula_are_the_sum_of_the_tensors() {
    let names = PRESETS.iter().map(|preset| preset.name).filter(|name| !matches!(*name, "pro"));
    for name in names {
        let config = ModelConfig::preset(name).unwrap();
        if config.vision.is_some() {
            continue;
        }
        let sum: usize = config.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
        assert_eq!(sum as u64, config.parameters().total, "{name}");
    }
    let mut biased = ModelConfig::preset("nano").unwrap();
    biased.use_bias = true;
    biased.check("test").unwrap();
    let sum: usize = biased.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    assert_eq!(sum as u64, biased.parameters().total);
}

#[test]
fn every_preset_survives_its_own_json() {
    for preset in PRESETS {
        let config = ModelConfig::preset(preset.name).unwrap();
        let (back, notes) = ModelConfig::from_json_with_notes(&config.to_json().to_string(), "x").unwrap();
        assert_eq!(back, config, "{}", preset.name);
        assert!(notes.iter().all(|note| !note.contains("not known")), "{notes:?}");
    }
    let error = ModelConfig::preset("ernie-5").unwrap_err().to_string();
    assert!(error.contains("bench-moe-22m") && error.contains("ernie-4.5-0.3b"), "{error}");
    assert!(matches!(ModelConfig::preset("nano-article"), Err(Error::NotBuilt { .. })));
}

#[test]
fn nano_takes_the_vocabulary_of_its_tokenizer() {
    let nano = ModelConfig::preset("nano").unwrap().with_vocab_size(6000).unwrap();
    assert!(nano.parameters().total < 14_000_000);
    assert!(ModelConfig::preset("nano").unwrap().with_vocab_size(0).is_err());
}

#[test]
fn the_two_forms_of_a_vl_config_are_one_model() {
    let (nested, notes) = ModelConfig::from_json_with_notes(&parity("vl/config.json"), "config.json").unwrap();
    let flat = ModelConfig::from_json(&parity("vl/config.hub.json")).unwrap();
    assert_eq!(nested, flat);
    assert_eq!(nested.architecture, Architecture::VlText);
    assert_eq!((nested.num_attention_heads, nested.head_dim), (2, 32));
    let moe = nested.moe.as_ref().unwrap();
    assert_eq!((moe.num_experts, moe.intermediate_size, moe.k), (6, 24, 2));
    assert_eq!((moe.layer_start_index, moe.layer_end_index, moe.layer_interval), (1, 2, 1));
    assert_eq!(nested.vision.as_ref().unwrap().freq_allocation, 4);
    assert!(notes.iter().any(|note| note.contains("pictures are not built yet")), "{notes:?}");
    assert!(notes.iter().all(|note| !note.contains("not known")), "{notes:?}");
}

#[test]
fn parity_configs_are_read_as_written() {
    let dense = ModelConfig::from_json(&parity("dense/config.json")).unwrap();
    assert_eq!((dense.query_size(), dense.hidden_size, dense.rope_theta), (64, 32, 500_000.0));
    assert!(dense.tie_word_embeddings && dense.moe.is_none());
    assert_eq!(dense.eos_token_ids, [2]);
    let moe = ModelConfig::from_json(&parity("moe_untied/config.json")).unwrap();
    assert!(!moe.tie_word_embeddings);
    assert_eq!(moe.moe.as_ref().unwrap().num_shared_experts, 0);
    assert_eq!([0, 1, 2].map(|layer| moe.is_moe_layer(layer)), [false, true, true]);
    assert_eq!(moe.head_dim, 8);
}

#[test]
fn spellings_of_every_generation_are_read() {
    let moe = parity_json("moe/config.json");
    let plain = parse(&moe).unwrap();
    let mut old = moe.clone();
    let map = old.as_object_mut().unwrap();
    map.remove("rope_parameters");
    map.insert("rope_theta".into(), json!(500000.0));
    map.insert("rope_scaling".into(), Value::Null);
    let dtype = map.remove("dtype").unwrap();
    map.insert("torch_dtype".into(), dtype);
    for (new, other) in [("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")] {
        let value = map.remove(other).unwrap();
        map.insert(new.into(), value);
    }
    map.insert("architectures".into(), json!(["Ernie4_5MoeForCausalLM"]));
    assert_eq!(parse(&old).unwrap(), plain);

    for (key, value) in [
        ("moe_layer_end_index", json!(-1)),
        ("moe_layer_end_index", json!(29)),
        ("eos_token_id", json!([2])),
        ("moe_num_experts", json!([8])),
        ("mlp_layer_types", json!(["dense", "sparse", "sparse"])),
        ("torch_dtype", json!("torch.float32")),
        ("num_experts", json!(8)),
        ("ernie_rs", json!({})),
        ("sliding_window", Value::Null),
        ("compression_ratio", json!(1.0)),
        ("moe_capacity", json!([64, 64, 64])),
    ] {
        assert_eq!(parse(&with("moe/config.json", json!({ key: value.clone() }))).unwrap(), plain, "{key}: {value}");
    }
    let interval = with("moe/config.json", json!({ "moe_layer_interval": 2, "moe_layer_start_index": 0 }));
    let interval = parse(&interval).unwrap();
    assert_eq!([0, 1, 2].map(|layer| interval.is_moe_layer(layer)), [false, true, false]);
    let eos = parse(&with("dense/config.json", json!({ "eos_token_id": [2, 7] }))).unwrap();
    assert_eq!(eos.eos_token_ids, [2, 7]);
    let none = parse(&with("dense/config.json", json!({ "eos_token_id": null }))).unwrap();
    assert!(none.eos_token_ids.is_empty());
}

#[test]
fn a_head_for_labels_is_read_as_transformers_writes_it() {
    let class = json!(["Ernie4_5ForSequenceClassification"]);
    let labels = |more: Value| {
        let mut changes = json!({ "architectures": class });
        changes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&with("dense/config.json", changes)).map(|config| config.labels)
    };
    assert_eq!(labels(json!({})).unwrap(), ["LABEL_0", "LABEL_1"]);
    assert_eq!(labels(json!({ "num_labels": 3 })).unwrap(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let named = json!({ "id2label": { "1": "no", "0": "yes", "2": "so" }, "label2id": { "yes": 0 }, "num_labels": 3 });
    assert_eq!(labels(named).unwrap(), ["yes", "no", "so"]);
    for (more, says) in [
        (json!({ "num_labels": 1 }), "num_labels"),
        (json!({ "num_labels": 2, "id2label": { "0": "a", "1": "b", "2": "c" } }), "num_labels"),
        (json!({ "id2label": { "0": "a", "2": "b" } }), "id2label.1"),
        (json!({ "id2label": { "0": "a", "1": "a" } }), "stands twice"),
        (json!({ "id2label": { "0": "a", "1": "b\n" } }), "control characters"),
        (json!({ "id2label": { "0": "a", "1": 3 } }), "id2label.1"),
        (json!({ "id2label": ["a", "b"] }), "id2label"),
        (json!({ "problem_type": "regression" }), "`regression` is not built"),
    ] {
        let error = labels(more.clone()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(says), "{more}: {error}");
    }
    // A model of words may carry such keys too, where they mean nothing.
    let leftovers = json!({ "id2label": { "0": "LABEL_0" }, "num_labels": 1, "problem_type": null });
    assert!(parse(&with("dense/config.json", leftovers)).unwrap().labels.is_empty());

    for base in ["dense/config.json", "moe/config.json"] {
        let mut config = parse(&parity_json(base)).unwrap();
        config.labels = vec!["a".into(), "b".into(), "c".into()];
        let json = config.to_json();
        assert!(json["architectures"][0].as_str().unwrap().ends_with("ForSequenceClassification"));
        assert_eq!((&json["num_labels"], &json["label2id"]["c"]), (&json!(3), &json!(2)));
        assert_eq!(parse(&json).unwrap(), config);
        let sum: usize = config.tensors().iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
        assert_eq!(config.parameters().total, sum as u64, "{base}");
    }
}

#[test]
fn what_is_ignored_is_said() {
    let text = with("dense/config.json", json!({ "auto_map": { "AutoModel": "x.py" }, "shiny_new": 1 })).to_string();
    let (_, notes) = ModelConfig::from_json_with_notes(&text, "config.json").unwrap();
    assert!(notes.iter().any(|note| note.contains("auto_map")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("shiny_new")), "{notes:?}");
}

#[test]
fn our_own_quantisation_is_read_and_others_are_refused() {
    let mut config = ModelConfig::preset("nano").unwrap();
    config.quantization = Some(Quantization::Int8Channel);
    let json = config.to_json();
    assert_eq!(parse(&json).unwrap(), config);
    let wrong = [
        ("/quant_method", json!("gptq"), "quant_method"),
        ("/format", json!("sparse-24-bitmask"), "format"),
        ("/config_groups/group_0/format", json!("float-quantized"), "format"),
        ("/config_groups/group_0/format", json!("pack-quantized"), "not built"),
        ("/config_groups/group_0/weights/num_bits", json!(4), "not built"),
        ("/config_groups/group_0/weights/symmetric", json!(false), "symmetric"),
        ("/config_groups/group_0/weights/strategy", json!("group"), "not built"),
        ("/config_groups/group_0/input_activations", json!({"num_bits": 8}), "input_activations"),
        ("/config_groups", json!({}), "config_groups"),
        ("/kv_cache_scheme", json!({"num_bits": 8}), "kv_cache_scheme"),
    ];
    refused(&json, &wrong);

    config.quantization = Some(Quantization::Int4Group);
    let json = config.to_json();
    assert_eq!(parse(&json).unwrap(), config);
    let wrong = [
        ("/config_groups/group_0/weights/num_bits", json!(8), "not built"),
        ("/config_groups/group_0/weights/strategy", json!("tensor"), "not built"),
        ("/config_groups/group_0/weights/dynamic", json!(true), "dynamic"),
        (
            "/config_groups/group_0/weights",
            json!({ "num_bits": 4, "type": "int", "strategy": "group", "actorder": "group" }),
            "actorder",
        ),
        ("/config_groups/group_1/weights/symmetric", json!(false), "symmetric"),
    ];
    refused(&json, &wrong);
}

/// With one key of the quantisation changed, a config is refused, and says which.
fn refused(json: &Value, wrong: &[(&str, Value, &str)]) {
    for (pointer, value, needle) in wrong {
        let mut json = json.clone();
        *json.pointer_mut(&format!("/quantization_config{pointer}")).unwrap() = value.clone();
        let error = parse(&json).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(needle), "{pointer}: {error}");
    }
}

#[test]
fn what_would_change_the_numbers_or_cannot_be_is_refused_by_name() {
    let table = [
        // Shapes that cannot be.
        ("dense", json!({ "hidden_size": 0 }), "hidden_size"),
        ("dense", json!({ "hidden_size": -1 }), "hidden_size"),
        ("dense", json!({ "hidden_size": 1_u64 << 40 }), "hidden_size"),
        ("dense", json!({ "hidden_size": "32" }), "hidden_size"),
        ("dense", json!({ "hidden_size": 32.0 }), "hidden_size"),
        ("dense", json!({ "hidden_size": null }), "hidden_size"),
        ("dense", json!({ "hidden_size": [32] }), "hidden_size"),
        ("dense", json!({ "num_hidden_layers": -1 }), "num_hidden_layers"),
        ("dense", json!({ "num_hidden_layers": 0 }), "num_hidden_layers"),
        ("dense", json!({ "num_hidden_layers": 1_000_000_000 }), "num_hidden_layers"),
        ("dense", json!({ "num_attention_heads": 0 }), "num_attention_heads"),
        ("dense", json!({ "num_key_value_heads": 3 }), "num_key_value_heads"),
        ("dense", json!({ "num_key_value_heads": 8 }), "num_key_value_heads"),
        ("dense", json!({ "head_dim": 15 }), "head_dim"),
        ("moe", json!({ "num_attention_heads": 3, "num_key_value_heads": 3 }), "num_attention_heads"),
        ("dense", json!({ "vocab_size": 2 }), "eos_token_id"),
        ("dense", json!({ "bos_token_id": 256 }), "bos_token_id"),
        ("dense", json!({ "eos_token_id": -2 }), "eos_token_id"),
        ("dense", json!({ "eos_token_id": "2" }), "eos_token_id"),
        ("dense", json!({ "rms_norm_eps": 0 }), "rms_norm_eps"),
        ("dense", json!({ "rms_norm_eps": -1e-5 }), "rms_norm_eps"),
        ("dense", json!({ "rms_norm_eps": "1e-5" }), "rms_norm_eps"),
        ("dense", json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings"),
        ("dense", json!({ "dtype": "int7" }), "dtype"),
        ("dense", json!({ "torch_dtype": "bfloat16" }), "torch_dtype"),
        ("moe", json!({ "moe_num_experts": 0 }), "moe_num_experts"),
        ("moe", json!({ "moe_num_experts": 1_000_000 }), "moe_num_experts"),
        ("moe", json!({ "moe_num_experts": [8, 8] }), "moe_num_experts"),
        ("moe", json!({ "num_experts": 4 }), "num_experts"),
        ("moe", json!({ "moe_k": 9 }), "moe_k"),
        ("moe", json!({ "moe_k": 0 }), "moe_k"),
        ("moe", json!({ "num_experts_per_tok": 2 }), "moe_k"),
        ("moe", json!({ "moe_layer_start_index": 3 }), "moe_layer_start_index"),
        ("moe", json!({ "moe_layer_start_index": 2, "moe_layer_end_index": 1 }), "moe_layer_start_index"),
        ("moe", json!({ "moe_layer_end_index": -2 }), "moe_layer_end_index"),
        ("moe", json!({ "moe_layer_interval": 0 }), "moe_layer_interval"),
        ("moe", json!({ "moe_layer_interval": 7 }), "moe_layer_interval"),
        ("moe", json!({ "mlp_layer_types": ["dense"] }), "mlp_layer_types"),
        ("moe", json!({ "mlp_layer_types": ["dense", "dense", "dense"] }), "mlp_layer_types"),
        ("moe", json!({ "mlp_layer_types": ["dense", "sparse", "odd"] }), "mlp_layer_types"),
        ("moe", json!({ "moe_norm_min": 0 }), "moe_norm_min"),
        ("moe", json!({ "moe_num_shared_experts": 100_000 }), "moe_num_shared_experts"),
        ("dense", json!({ "moe_num_experts": 8 }), "moe_num_experts"),
        // Another family.
        ("dense", json!({ "model_type": "llama" }), "model_type"),
        ("dense", json!({ "model_type": "ernie4_5_moe" }), "model_type"),
        ("dense", json!({ "architectures": ["LlamaForCausalLM"] }), "architectures"),
        ("dense", json!({ "architectures": [] }), "architectures"),
        ("dense", json!({ "architectures": "Ernie4_5ForCausalLM" }), "architectures"),
        // What changes the numbers.
        ("dense", json!({ "hidden_act": "gelu" }), "hidden_act"),
        ("dense", json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } }), "rope_scaling.type"),
        ("dense", json!({ "rope_parameters": { "rope_type": "linear", "factor": 2.0 } }), "rope_parameters.rope_type"),
        ("dense", json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e4, "factor": 2.0 } }), "factor"),
        ("dense", json!({ "rope_theta": 10000.0 }), "rope_theta"),
        ("dense", json!({ "rope_parameters": { "rope_theta": 0 } }), "rope_theta"),
        ("dense", json!({ "sliding_window": 4096 }), "sliding_window"),
        ("dense", json!({ "use_sliding_window": true }), "use_sliding_window"),
        ("dense", json!({ "compression_ratio": 2.0 }), "compression_ratio"),
        ("dense", json!({ "use_rmsnorm": false }), "use_rmsnorm"),
        ("dense", json!({ "final_logit_softcapping": 30.0 }), "final_logit_softcapping"),
        ("dense", json!({ "layer_types": ["sliding_attention"] }), "layer_types"),
        ("moe", json!({ "moe_gate_act": "sigmoid" }), "moe_gate_act"),
        ("moe", json!({ "routed_scaling_factor": 2.5 }), "routed_scaling_factor"),
        ("dense", json!({ "ernie_rs": { "attention_gate": true } }), "ernie_rs.attention_gate"),
        ("dense", json!({ "ernie_rs": { "line\nbreak": true } }), "ernie_rs.line"),
        ("dense", json!({ "model_type": "a\nb" }), "model_type"),
    ];
    for (folder, changes, needle) in table {
        let base = format!("{folder}/config.json");
        let error = parse(&with(&base, changes.clone())).expect_err(&changes.to_string());
        let message = error.to_string();
        assert!(error.is_input() && message.contains(needle) && !message.contains('\n'), "{changes}: {message}");
    }
    for key in ["vocab_size", "num_key_value_heads", "intermediate_size"] {
        let mut root = parity_json("dense/config.json");
        root.as_object_mut().unwrap().remove(key);
        let message = parse(&root).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("missing"), "{message}");
    }
}

#[test]
fn text_that_is_no_config_is_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for text in ["", "{", "[]", "3", "null", "\u{feff}{}", "{\"a\":NaN}", "{\"rms_norm_eps\":1e400}", "{,}", &deep] {
        let error = ModelConfig::from_json(text).expect_err(&text[..text.len().min(20)]);
        assert!(error.is_input() && !error.to_string().contains('\n'), "{error}");
    }
}

/// xorshift; good enough to choose mutations, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }
}

fn cases() -> usize {
    std::env::var("ERNIE_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000)
}

#[test]
fn mutated_configs_end_in_a_model_or_in_one_line() {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(3),
        json!(2.5),
        json!(1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!("x"),
        json!(""),
        json!([]),
        json!([1, 2, 3]),
        json!({}),
        json!({ "a": 1 }),
        json!(4096),
        json!(1 << 20),
        json!([6, 6]),
        json!(1e-300),
    ];
    let bases = ["dense/config.json", "moe/config.json", "vl/config.json", "vl/config.hub.json"].map(parity);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut read = 0;
    for case in 0..cases() {
        let base = &bases[case % bases.len()];
        let text = if case % 2 == 0 {
            // Values and keys changed.
            let mut root: Value = serde_json::from_str(base).unwrap();
            for _ in 0..1 + dice.roll(3) {
                let inner = ["text_config", "vision_config", "rope_parameters"][dice.roll(3)];
                let target = match root.get(inner).is_some_and(Value::is_object) && dice.roll(2) == 0 {
                    true => &mut root[inner],
                    false => &mut root,
                };
                let map = target.as_object_mut().unwrap();
                let key = map.keys().nth(dice.roll(map.len())).cloned().unwrap_or_default();
                match dice.roll(8) {
                    0 => drop(map.remove(&key)),
                    _ => drop(map.insert(key, odd[dice.roll(odd.len())].clone())),
                }
            }
            root.to_string()
        } else {
            // Bytes changed, cut, doubled.
            let mut bytes = base.clone().into_bytes();
            for _ in 0..1 + dice.roll(4) {
                let at = dice.roll(bytes.len());
                match dice.roll(4) {
                    0 => bytes.truncate(at),
                    1 => bytes[at..].fill(b'9'),
                    2 => bytes.insert(at, b"0123456789\"{}[],:-e"[dice.roll(19)]),
                    _ => bytes[at] = bytes[at].wrapping_add(1 + dice.roll(9) as u8),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        match ModelConfig::from_json(&text) {
            Ok(config) => {
                read += 1;
                let count = config.parameters();
                assert!(count.total > 0 && count.active <= count.total);
                let mut back = ModelConfig::from_json(&config.to_json().to_string()).unwrap();
                // The JSON reader may miss the last bit of a long decimal.
                for (back, value) in [
                    (&mut back.rms_norm_eps, config.rms_norm_eps),
                    (&mut back.rope_theta, config.rope_theta),
                    (&mut back.initializer_range, config.initializer_range),
                ] {
                    assert!((*back - value).abs() <= value * 1e-14);
                    *back = value;
                }
                if let (Some(back), Some(moe)) = (&mut back.moe, &config.moe) {
                    back.norm_min = moe.norm_min;
                }
                assert_eq!(back, config);
            }
            Err(error) => {
                let message = error.to_string();
                assert!(error.is_input() && !message.contains('\n') && message.len() < 1000, "{message}");
            }
        }
    }
    assert!(read > cases() / 50, "most mutations should not be trivially broken: {read}");
}
