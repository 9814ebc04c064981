//! Every mistake ends in one `error:` line that names what is at fault, and in the right exit code.

mod common;

use common::{bad, parity, run, write_tiny_recipe};
use std::{fs, path::Path};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(from.join(name), to.join(name)).expect("a copy");
    }
}

#[test]
fn models_that_cannot_be_found() {
    let at = folder();
    let answer = bad(at.path(), &["inspect", "nowhere"], 2);
    assert!(answer.err.contains("nowhere") && answer.err.contains("hint:"), "{}", answer.err);

    let answer = bad(at.path(), &["inspect", "someone/some-model"], 3);
    assert!(answer.err.contains("hint: ernie pull someone/some-model"), "{}", answer.err);

    let answer = bad(at.path(), &["inspect", "preset:none"], 2);
    assert!(answer.err.contains("`none`") && answer.err.contains("nano"), "{}", answer.err);

    let answer = bad(at.path(), &["inspect", "nano"], 2);
    assert!(answer.err.contains("preset:nano"), "{}", answer.err);

    fs::create_dir(at.path().join("empty")).expect("a folder");
    let answer = bad(at.path(), &["inspect", "empty"], 2);
    assert!(answer.err.contains("config.json"), "{}", answer.err);

    fs::write(at.path().join("model.bin"), b"\x80\x02").expect("a file");
    let answer = bad(at.path(), &["inspect", "model.bin"], 2);
    assert!(answer.err.contains("pickled"), "{}", answer.err);
}

#[test]
fn broken_checkpoints_are_named() {
    let at = folder();
    let model = at.path().join("model");
    copy(&parity("moe"), &model);
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).expect("weights");

    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).expect("a truncated file");
        let answer = bad(at.path(), &["generate", "model", "--ids", "5,6", "--max-tokens", "2"], 2);
        assert!(answer.err.contains("model.safetensors"), "{length}: {}", answer.err);
    }
    fs::write(&weights, &bytes).expect("the whole file");
    for config in ["", "{", "[]", "{\"hidden_size\": -1}", "{\"architectures\": [\"LlamaForCausalLM\"]}"] {
        fs::write(model.join("config.json"), config).expect("a broken config");
        let answer = bad(at.path(), &["inspect", "model"], 2);
        assert!(answer.err.contains("config.json"), "{config}: {}", answer.err);
    }
    fs::write(at.path().join("x.gguf"), b"GGUF\x03\0\0\0").expect("a broken gguf");
    let answer = bad(at.path(), &["inspect", "x.gguf"], 2);
    assert!(answer.err.contains("x.gguf"), "{}", answer.err);
}

#[test]
fn bad_usage_is_one_line_and_a_hint() {
    let at = folder();
    for (args, names) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["inspect"][..], "MODEL"),
        (&["inspect", "preset:nano", "--verbose"][..], "--verbose"),
        (&["generate", "preset:nano", "--ids", "5,x"][..], "`x`"),
        (&["generate", "preset:nano", "--ids", "5", "--weights", "int3"][..], "int3"),
        (&["generate", "preset:nano"][..], "--prompt"),
        (&["--threads", "0", "list"][..], "threads"),
    ] {
        let answer = bad(at.path(), args, 2);
        assert!(answer.err.contains(names), "{args:?}: {}", answer.err);
        assert_eq!(answer.err.lines().count(), 2, "{args:?}: {}", answer.err);
        assert!(answer.err.lines().nth(1).is_some_and(|l| l.starts_with("hint: ")), "{}", answer.err);
    }
}

#[test]
fn what_is_not_built_says_so_by_name() {
    let at = folder();
    let names = ["prune", "plan", "claims"];
    for name in names {
        let answer = bad(at.path(), &[name, "preset:nano", "--anything"], 2);
        assert!(answer.err.contains(&format!("`ernie {name}`")), "{}", answer.err);
        assert!(answer.err.contains("not built yet"), "{}", answer.err);
    }
    let int5 = bad(at.path(), &["generate", "preset:nano", "--ids", "5", "--weights", "int5"], 2);
    assert!(int5.err.contains("int5") && int5.err.contains("int4"), "{}", int5.err);
}

#[test]
fn what_a_model_cannot_do_is_said() {
    let at = folder();
    let dense = parity("dense").display().to_string();
    let answer = bad(at.path(), &["generate", &dense, "--prompt", "hello"], 2);
    assert!(answer.err.contains("tokenizer") && answer.err.contains("--ids"), "{}", answer.err);
    let answer = bad(at.path(), &["generate", &dense, "--ids", "5,256"], 2);
    assert!(answer.err.contains("256"), "{}", answer.err);
    let answer = bad(at.path(), &["generate", &dense, "--ids", "5", "--max-tokens", "0"], 2);
    assert!(answer.err.contains("max"), "{}", answer.err);
    for (flag, value) in [
        ("--temperature", "-1"),
        ("--temperature", "NaN"),
        ("--top-p", "2"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
    ] {
        let flag_value = format!("{flag}={value}");
        bad(at.path(), &["generate", &dense, "--ids", "5", &flag_value], 2);
    }
    let answer = bad(at.path(), &["logits", &dense, "--ids", "999", "--out", "l.safetensors"], 2);
    assert!(answer.err.contains("999"), "{}", answer.err);
    assert!(!at.path().join("l.safetensors").exists());
}

#[test]
fn recipes_with_mistakes() {
    let at = folder();
    write_tiny_recipe(at.path());
    let cases = [
        ("optimizer.learning_rate=1", "learning_rate"),
        ("schedule.steps=\"many\"", "steps"),
        ("nonsense", "nonsense"),
        ("objective.kind=\"distil\"", "dpo"),
        ("data.train=[\"missing/*.txt\"]", "missing"),
    ];
    for (set, names) in cases {
        let answer = bad(at.path(), &["train", "recipe.toml", "--out", "run", "--set", set], 2);
        assert!(answer.err.contains(names), "{set}: {}", answer.err);
    }
    let answer = bad(at.path(), &["train", "missing.toml", "--out", "run"], 2);
    assert!(answer.err.contains("missing.toml"), "{}", answer.err);
    fs::write(at.path().join("broken.toml"), "seed = = 1").expect("a broken recipe");
    let answer = bad(at.path(), &["train", "broken.toml", "--out", "run"], 2);
    assert!(answer.err.contains("broken.toml"), "{}", answer.err);

    fs::create_dir_all(at.path().join("full")).expect("a folder");
    fs::write(at.path().join("full/file"), "x").expect("a file");
    let answer = bad(at.path(), &["train", "recipe.toml", "--out", "full"], 2);
    assert!(answer.err.contains("full"), "{}", answer.err);
}

#[test]
fn input_files_with_mistakes() {
    let at = folder();
    let dense = parity("dense").display().to_string();
    for text in ["", "[]", "[5]", "[[5],[-1]]", "{}", "[[5", "[[]]"] {
        fs::write(at.path().join("ids.json"), text).expect("ids");
        let answer = bad(at.path(), &["logits", &dense, "--ids-file", "ids.json", "--out", "o.safetensors"], 2);
        assert!(answer.err.contains("ids.json") || answer.err.contains("sequence"), "{text}: {}", answer.err);
    }
    let tiny = common::tiny_run().display().to_string();
    for text in
        ["{\"context\": 1}\n", "not json\n", "{\"context\": \"a\"}\n", "{\"context\": \"a\", \"continuation\": \"\"}\n"]
    {
        fs::write(at.path().join("in.jsonl"), text).expect("lines");
        let answer = bad(at.path(), &["score", &tiny, "--input", "in.jsonl"], 2);
        assert!(answer.err.contains("in.jsonl") && answer.err.contains("line 1"), "{text}: {}", answer.err);
    }
    let answer = bad(at.path(), &["eval", &tiny, "--task", "nothing"], 2);
    assert!(answer.err.contains("nothing"), "{}", answer.err);
    let answer = bad(at.path(), &["eval", &tiny, "--task", "sst2"], 2);
    assert!(answer.err.contains("sst2") || answer.err.contains("SST-2"), "{}", answer.err);
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let at = folder();
    let binary = env!("CARGO_BIN_EXE_ernie");
    let script = format!(
        "'{binary}' inspect preset:nano --json | true; '{binary}' --help | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    );
    let output =
        std::process::Command::new("bash").args(["-c", &script]).current_dir(at.path()).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn help_and_version_are_data() {
    let at = folder();
    let help = run(at.path(), &["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    assert!(help.out.starts_with("Example:\n  ernie quickstart\n"), "{}", help.out);
    let nothing = run(at.path(), &[]);
    assert_eq!((nothing.code, nothing.out.as_str()), (2, ""));
    let version = run(at.path(), &["--version"]);
    assert!(version.out.starts_with("ernie 0."), "{}", version.out);
    for command in [
        "quickstart",
        "chat",
        "generate",
        "inspect",
        "train",
        "eval",
        "score",
        "classify",
        "logits",
        "bench",
        "quantize",
        "merge",
        "tokenize",
        "pull",
        "list",
        "remove",
    ] {
        let help = run(at.path(), &[command, "--help"]);
        assert_eq!(help.code, 0, "{command}");
        let example = format!("Example:\n  {}", if command == "tokenize" { "echo" } else { "ernie" });
        assert!(help.out.starts_with(&example), "{command}: {}", help.out);
    }
}
