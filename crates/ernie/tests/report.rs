//! Runs as pages: one, two side by side, and what is not a run.

mod common;

use common::{bad, good, tiny_run};
use std::fs;

#[test]
fn a_run_is_drawn_and_two_are_compared() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let base = tiny_run().display().to_string();
    let recipe = r#"
        [model]
        weights = "BASE"
        [data]
        train = ["bundled"]
        tokenizer = "BASE"
        [batch]
        rows = 2
        seq_len = 32
        [schedule]
        steps = 4
        warmup = 1
        [checkpoint]
        every = 2
        [evaluation]
        every = 2
        batches = 2
        [[evaluation.tasks]]
        task = "perplexity"
        data = "text.txt"
    "#;
    fs::write(at.path().join("r.toml"), recipe.replace("BASE", &base)).expect("a recipe");
    fs::write(at.path().join("text.txt"), "The quick brown fox.").expect("data");
    good(at.path(), &["train", "r.toml", "--out", "a", "--quiet"]);
    good(at.path(), &["train", "r.toml", "--out", "b", "--quiet", "--set", "optimizer.lr=0.0005"]);

    // Training leaves the page and the tasks' results, a line a checkpoint.
    let page = fs::read_to_string(at.path().join("a/report.html")).expect("the page");
    assert!(page.contains("Held-out") && page.contains("perplexity, bits_per_byte") && !page.contains("<script"));
    let measured = || -> Vec<u64> {
        let lines = fs::read_to_string(at.path().join("a/evaluations.jsonl")).expect("the results");
        let step = |line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        lines.lines().filter_map(step).collect()
    };
    assert_eq!(measured(), [2, 4]);
    // Steps that are made again after a crash are there once.
    fs::remove_dir_all(at.path().join("a/checkpoint-4")).expect("a checkpoint");
    good(at.path(), &["train", "r.toml", "--out", "a", "--quiet", "--resume"]);
    assert_eq!(measured(), [2, 4]);

    let json = good(at.path(), &["report", "a", "b", "--out", "both.html", "--json"]).json();
    assert_eq!(json["runs"][1]["figures"]["steps"], 4, "{json}");
    let page = fs::read_to_string(at.path().join("both.html")).expect("the page");
    assert!(page.contains("optimizer.lr") && page.contains("0.0005") && !page.contains("schedule.steps"));

    let refused = bad(at.path(), &["report", "."], 2);
    assert!(refused.err.contains("metrics.jsonl"), "{}", refused.err);
    let refused =
        bad(at.path(), &["train", "r.toml", "--out", "c", "--set", "evaluation.tasks=[{task=\"nosuch\"}]"], 2);
    assert!(refused.err.contains("evaluation.tasks") && !at.path().join("c").exists(), "{}", refused.err);
}

#[test]
fn preferences_are_a_task() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let run = tiny_run().display().to_string();
    let line = r#"{"instruction": "Who?", "chosen": "The fox.", "rejected": "QZXJ KWVP"}"#;
    fs::write(at.path().join("p.jsonl"), format!("{line}\n{line}\n")).expect("data");
    let json = good(at.path(), &["eval", &run, "--task", "preference", "--data", "p.jsonl", "--json"]).json();
    assert!(json["n"] == 2 && json["metrics"]["acc"].as_f64().is_some_and(|acc| acc == 0.0 || acc == 1.0), "{json}");
    assert!(json["metrics"]["acc_norm_stderr"].is_number(), "{json}");
    let refused = bad(at.path(), &["eval", &run, "--task", "preference"], 2);
    assert!(refused.err.contains("--data"), "{}", refused.err);
    fs::write(at.path().join("bad.jsonl"), format!("{line}\n{{\"chosen\": 1}}\n")).expect("data");
    let refused = bad(at.path(), &["eval", &run, "--task", "preference", "--data", "bad.jsonl"], 2);
    assert!(refused.err.contains("bad.jsonl:2"), "{}", refused.err);
}
