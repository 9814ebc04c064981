//! Labels from outside: a head is trained, shown, measured, asked, quantised and merged; what has none is refused.

mod common;

use common::{Answer, bad, good, parity, run_with_input, tiny_run};
use serde_json::Value;
use std::{fs, path::Path, sync::OnceLock};

const RECIPE: &str = r#"
seed = 1
[model]
weights = "BASE"
[data]
train = ["train.jsonl"]
held_out = ["held_out.jsonl"]
tokenizer = "BASE"
[batch]
rows = 4
seq_len = 48
[objective]
kind = "classify"
[optimizer]
lr = 0.01
[schedule]
steps = 60
warmup = 3
[checkpoint]
every = 0
[evaluation]
every = 30
[[evaluation.tasks]]
task = "classify"
data = "held_out.jsonl"
"#;

fn texts(from: usize, to: usize) -> String {
    let line = |at: usize| {
        let (label, word) = [("animal", "fox"), ("place", "hill")][at % 2];
        format!("{{\"text\": \"The {word} {}{}\", \"label\": \"{label}\"}}\n", at % 7, at)
    };
    (from..to).map(line).collect()
}

/// A folder with data, recipes and two runs: `run`, and `lora` with an adapter.
fn trained() -> &'static Path {
    static ROOM: OnceLock<tempfile::TempDir> = OnceLock::new();
    ROOM.get_or_init(|| {
        let at = tempfile::tempdir().expect("a temporary folder");
        let recipe = RECIPE.replace("BASE", &tiny_run().display().to_string());
        fs::write(at.path().join("classify.toml"), recipe).expect("a recipe");
        fs::write(at.path().join("train.jsonl"), texts(0, 160)).expect("data");
        fs::write(at.path().join("held_out.jsonl"), texts(160, 200)).expect("data");
        good(at.path(), &["train", "classify.toml", "--out", "run", "--quiet"]);
        good(at.path(), &["train", "classify.toml", "--out", "lora", "--set", "adapter.rank=4", "--quiet"]);
        at
    })
    .path()
}

fn label_of(answer: &Answer) -> String {
    let json = answer.json();
    let all = json["probabilities"].as_object().expect("probabilities");
    let sum: f64 = all.values().filter_map(Value::as_f64).sum();
    assert!((sum - 1.0).abs() < 1e-9 && all.len() == 2, "{json}");
    json["label"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_run_leaves_a_model_with_labels() {
    let at = trained();
    let json = good(at, &["inspect", "run", "--json"]).json();
    assert_eq!(json["architecture"], "Ernie4_5_MoeForSequenceClassification");
    assert_eq!(json["labels"], serde_json::json!(["animal", "place"]));
    assert_eq!(json["tensors"]["skipped"], serde_json::json!([]));
    assert!(good(at, &["inspect", "run"]).out.contains("2: animal, place"));
    let base = good(at, &["inspect", &tiny_run().display().to_string(), "--json"]).json();
    let number = |json: &Value, key: &str| json[key].as_u64().unwrap_or_default();
    assert_eq!(number(&json, "params_total"), number(&base, "params_total") + 2 * 32);
    assert_eq!(number(&json["tensors"], "used"), number(&base["tensors"], "used") + 1);

    let lines = fs::read_to_string(at.join("run/metrics.jsonl")).expect("metrics");
    let last: Value = serde_json::from_str(lines.lines().last().unwrap_or_default()).expect("JSON");
    assert!(last["val_accuracy"].as_f64() > Some(0.9) && last["val_macro_f1"].is_number(), "{last}");
    let page = fs::read_to_string(at.join("run/report.html")).expect("a report");
    assert!(page.contains("held-out texts right") && page.contains("macro-F1"));
    let tasks = fs::read_to_string(at.join("run/evaluations.jsonl")).expect("evaluations");
    let task: Value = serde_json::from_str(tasks.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(task["metrics"]["acc"], last["val_accuracy"]);

    // It still has its head for words.
    good(at, &["generate", "run", "--prompt", "The", "--no-chat", "--max-tokens", "3", "--quiet"]);
    let refused = bad(at, &["convert", "run", "--to", "gguf", "--out", "run.gguf"], 2);
    assert!(refused.err.contains("classification head"), "{}", refused.err);
}

#[test]
fn texts_are_given_labels_in_every_weight_format() {
    let at = trained();
    for weights in ["native", "f32", "bf16", "int8", "int4"] {
        let ask = |text: &str| good(at, &["classify", "run", "--text", text, "--weights", weights, "--json"]);
        assert_eq!(label_of(&ask("The fox 3")), "animal", "{weights}");
        assert_eq!(label_of(&ask("The hill 3")), "place", "{weights}");
        let json = good(
            at,
            &["eval", "run", "--task", "classify", "--data", "held_out.jsonl", "--weights", weights, "--json"],
        )
        .json();
        assert!(json["metrics"]["acc"].as_f64() > Some(0.9) && json["n"] == 40, "{weights}: {json}");
        for name in ["acc_stderr", "macro_f1", "macro_f1_stderr", "f1_animal"] {
            assert!(json["metrics"][name].is_number(), "{name}: {json}");
        }
        assert_eq!(json["settings"]["texts_of_label"]["place"], 20);
    }
    let shown = good(at, &["classify", "run", "--text", "The fox", "--text-pair", "4"]);
    assert!(
        shown.out.starts_with("animal\n  animal  0.") || shown.out.starts_with("animal\n  animal  1."),
        "{}",
        shown.out
    );
    let lines = good(at, &["classify", "run", "--input", "held_out.jsonl"]);
    assert_eq!(lines.out.lines().count(), 40);
    let piped = run_with_input(at, &["classify", "run", "--input", "-"], "{\"text\": \"The hill 12\"}\n\n");
    assert_eq!((piped.code, label_of(&piped).as_str()), (0, "place"), "{}", piped.err);
}

#[test]
fn a_head_goes_where_its_adapter_goes_and_through_quantisation() {
    let at = trained();
    let base = tiny_run().display().to_string();
    let adapter = "lora/checkpoint-60/adapter";
    good(at, &["merge", &base, "--adapter", adapter, "--out", "merged"]);
    good(at, &["quantize", "run", "--to", "int8", "--out", "small"]);
    let probability = |args: &[&str]| {
        let all = [&["classify"], args, &["--text", "The fox 5", "--json"]].concat();
        good(at, &all).json()["probabilities"]["animal"].as_f64().unwrap_or_default()
    };
    let (merged, run) = (probability(&["merged"]), probability(&["lora"]));
    let beside = probability(&[&base, "--adapter", adapter]);
    assert!((merged - run).abs() < 1e-4 && (beside - run).abs() < 1e-3, "{merged} {beside} {run}");
    assert!((probability(&["small"]) - probability(&["run", "--weights", "int8"])).abs() < 0.02);
    assert_eq!(good(at, &["inspect", "small", "--json"]).json()["labels"][1], "place");
}

#[test]
fn mistakes_are_named() {
    let at = trained();
    let base = tiny_run().display().to_string();
    fs::write(
        at.join("strange.jsonl"),
        "{\"text\": \"a\", \"label\": \"place\"}\n{\"text\": \"a\", \"label\": \"car\"}\n",
    )
    .expect("data");
    fs::write(at.join("none.jsonl"), "{\"label\": \"place\"}\n").expect("data");
    let eval = |model: &str, data: &str| bad(at, &["eval", model, "--task", "classify", "--data", data], 2).err;
    assert!(eval("run", "strange.jsonl").contains("strange.jsonl:2: the label \"car\" is not known"));
    assert!(eval("run", "none.jsonl").contains("none.jsonl:1: no `text`"));
    assert!(eval(&base, "held_out.jsonl").contains("without a head for labels"));
    assert!(bad(at, &["eval", "run", "--task", "classify"], 2).err.contains("--data"));
    let none = bad(at, &["classify", &base, "--text", "a"], 2).err;
    assert!(none.contains("no head for labels") && none.contains("hint: "), "{none}");
    assert!(bad(at, &["classify", "run", "--text", " "], 2).err.contains("--text: `text` is empty"));
    assert!(bad(at, &["classify", "run", "--input", "none.jsonl"], 2).err.contains("none.jsonl: line 1: no `text`"));
    bad(at, &["classify", "run"], 2);
    let dense = parity("dense").display().to_string();
    assert!(bad(at, &["classify", &dense, "--text", "a"], 2).err.contains("no tokenizer"));
}
