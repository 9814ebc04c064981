//! Whole journeys: train, stop, resume, talk.

mod common;

use common::{bad, ernie, good, run_with_input, tiny_run, write_tiny_recipe};
use serde_json::Value;
use std::{fs, path::Path};

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A metrics line without what the clock decides.
fn timeless(line: &Value) -> Value {
    let mut line = line.clone();
    let object = line.as_object_mut().expect("an object");
    object.retain(|key, _| !key.ends_with("_per_s") && !key.ends_with("seconds") && !key.ends_with("_s"));
    line
}

#[test]
fn a_run_leaves_what_the_contract_says() {
    let run = tiny_run();
    for name in ["recipe.toml", "metrics.jsonl", "events", "checkpoint-6"] {
        assert!(run.join(name).exists(), "{name}");
    }
    let checkpoint = run.join("checkpoint-6");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "training_state"] {
        assert!(checkpoint.join(name).exists(), "{name}");
    }
    let lines = metrics(&run);
    assert_eq!(lines.len(), 6);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], i + 1);
        for field in ["tokens", "loss", "lr", "grad_norm", "tokens_per_s"] {
            assert!(line[field].is_number(), "{field}: {line}");
        }
        assert_eq!(line["val_loss"].is_number(), (i + 1) % 3 == 0, "{line}");
    }
    assert!(lines[5]["loss"].as_f64() < lines[0]["loss"].as_f64());
}

#[test]
fn stopped_and_resumed_is_the_same_run() {
    let at = tempfile::tempdir().expect("a temporary folder");
    write_tiny_recipe(at.path());
    good(at.path(), &["train", "recipe.toml", "--out", "run", "--set", "schedule.steps=6", "--quiet"]);
    // As if it had been killed after step 4: the checkpoints of later steps are gone, the log is longer than they are.
    fs::remove_dir_all(at.path().join("run/checkpoint-6")).expect("checkpoint-6");
    let whole = tiny_run();
    bad(at.path(), &["train", "recipe.toml", "--out", "run"], 2);
    good(at.path(), &["train", "recipe.toml", "--out", "run", "--resume", "--quiet"]);
    let weights = |run: &Path| fs::read(run.join("checkpoint-6/model.safetensors")).expect("weights");
    assert!(weights(&at.path().join("run")) == weights(&whole), "weights differ");
    let lines: Vec<_> = metrics(&at.path().join("run")).iter().map(timeless).collect();
    assert_eq!(lines, metrics(&whole).iter().map(timeless).collect::<Vec<_>>());
}

#[cfg(unix)]
#[test]
fn a_signal_finishes_the_step_and_saves() {
    let at = tempfile::tempdir().expect("a temporary folder");
    write_tiny_recipe(at.path());
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ernie"))
        .args([
            "train",
            "recipe.toml",
            "--out",
            "run",
            "--set",
            "schedule.steps=100000",
            "--set",
            "checkpoint.every=100000",
        ])
        .args(["--set", "evaluation.every=0"])
        .current_dir(at.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    let log = at.path().join("run/metrics.jsonl");
    let patience = std::time::Instant::now();
    while fs::metadata(&log).map_or(0, |m| m.len()) < 200 {
        assert!(patience.elapsed().as_secs() < 60, "no step was made");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    let status = child.wait().expect("an end");
    assert_eq!(status.code(), Some(130));
    let lines = metrics(&at.path().join("run"));
    let last = lines.last().expect("a line")["step"].to_string();
    assert!(at.path().join(format!("run/checkpoint-{last}/model.safetensors")).exists(), "step {last} was not saved");
}

#[test]
fn a_conversation_through_a_pipe() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let model = tiny_run().display().to_string();
    let talk = ["chat", &model, "--max-tokens", "6", "--temperature", "0"];
    let once = run_with_input(at.path(), &talk, "The fox\n");
    assert_eq!(once.code, 0, "{}", once.err);
    assert!(!once.out.trim().is_empty() || once.out.contains('\n'));
    let script = "The fox\n/reset\nThe fox\n/help\n";
    let twice = run_with_input(at.path(), &talk, script);
    assert_eq!(twice.code, 0, "{}", twice.err);
    assert_eq!(twice.out, format!("{}{}", once.out, once.out), "after /reset the answer is the first one again");
    assert!(twice.err.contains("/reset"), "/help explains: {}", twice.err);
    let unknown = run_with_input(at.path(), &talk, "/nonsense\n");
    assert_eq!((unknown.code, unknown.out.as_str()), (0, ""));
    assert!(unknown.err.contains("/nonsense"), "{}", unknown.err);
}

#[test]
fn quickstart_leaves_a_report_and_a_model() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let answer = ernie(at.path())
        .args(["quickstart", "--steps", "2", "--out", "runs/quickstart"])
        .timeout(std::time::Duration::from_secs(300))
        .output()
        .expect("the program starts");
    let err = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(answer.status.code(), Some(0), "{err}");
    assert!(err.contains("ernie chat runs/quickstart"), "{err}");
    let run = at.path().join("runs/quickstart");
    let page = fs::read_to_string(run.join("report.html")).expect("report.html");
    for part in ["<svg", "Witten", "LZMA", "Expert balance", "Before and after 8 bits"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<script") && !page.contains("src="));
    assert_eq!(fs::read_dir(at.path().join("runs")).expect("runs").count(), 1, "nothing half-made is left");
    good(at.path(), &["inspect", "runs/quickstart", "--json"]);
}
