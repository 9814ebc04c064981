//! Fine-tuning from outside: conversations, an adapter, and `merge`.

mod common;

use common::{bad, good, parity, tiny_run, write_lora_recipe};
use ernie_files::Checkpoint;
use std::{fs, path::Path};

fn logits(at: &Path, model: &str) -> Vec<f32> {
    good(at, &["logits", model, "--ids", "5,6,7,8,9", "--weights", "f32", "--out", "l.safetensors", "--json"]);
    read(at)
}

fn read(at: &Path) -> Vec<f32> {
    let bytes = Checkpoint::open(&at.join("l.safetensors")).expect("logits").bytes("logits.0").expect("logits.0");
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

#[test]
fn an_adapter_is_trained_used_and_merged() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let base = tiny_run().display().to_string();
    write_lora_recipe(at.path(), &base);
    good(at.path(), &["train", "lora.toml", "--out", "lora", "--quiet"]);

    // The run is a MODEL as any other is.
    good(at.path(), &["generate", "lora", "--prompt", "Who?", "--max-tokens", "3", "--quiet"]);
    let adapter = "lora/checkpoint-6/adapter";
    let json = good(at.path(), &["merge", &base, "--adapter", adapter, "--out", "merged", "--json"]).json();
    assert_eq!((json["rank"].as_u64(), json["scale"].as_f64()), (Some(2), Some(8.0)), "{json}");
    assert!(json["adapted"].as_u64().is_some_and(|n| n > 0), "{json}");
    good(at.path(), &["generate", "merged", "--prompt", "Who?", "--max-tokens", "3", "--quiet"]);
    let (run, merged, plain) = (logits(at.path(), "lora"), logits(at.path(), "merged"), logits(at.path(), &base));
    // Beside the weights, whatever they are stored in, it changes what merging changed.
    let beside = |weights: &str| {
        let args = [
            "logits",
            &base,
            "--ids",
            "5,6,7,8,9",
            "--weights",
            weights,
            "--adapter",
            adapter,
            "--out",
            "l.safetensors",
            "--json",
        ];
        good(at.path(), &args);
        read(at.path())
    };
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    assert!(apart(&run, &merged) < 1e-5 && apart(&run, &plain) > 1e-3, "{}", apart(&run, &plain));
    assert!(apart(&beside("f32"), &merged) < 1e-4, "{}", apart(&beside("f32"), &merged));
    assert!(apart(&beside("int8"), &merged) < 0.5 * apart(&run, &plain), "{}", apart(&beside("int8"), &merged));
    let said = |args: &[&str]| {
        good(
            at.path(),
            &[&["generate", &base, "--prompt", "Who?", "--max-tokens", "8", "--temperature", "0", "--json"], args]
                .concat(),
        )
        .json()["ids"]
            .clone()
    };
    assert_eq!(
        said(&["--adapter", adapter]),
        good(
            at.path(),
            &["generate", "merged", "--prompt", "Who?", "--max-tokens", "8", "--temperature", "0", "--json"]
        )
        .json()["ids"]
    );
    let refused = bad(at.path(), &["generate", &base, "--prompt", "Who?", "--adapter", "nowhere"], 2);
    assert!(refused.err.contains("nowhere"), "{}", refused.err);
    // It goes by its run's name, or by one of its own, and there is one at a time.
    let ask = ["generate", &base, "--prompt", "Who?", "--max-tokens", "1"];
    let named = format!("{adapter}=brief");
    for (typed, name) in [(adapter, "lora"), (&named, "brief")] {
        let said = good(at.path(), &[&ask[..], &["--adapter", typed]].concat()).err;
        assert!(said.contains(&format!("adapter {name}: rank 2 times 8")), "{said}");
    }
    let two = bad(at.path(), &[&ask[..], &["--adapter", adapter, "--adapter", &named]].concat(), 2);
    assert!(two.err.contains("2 were given (lora, brief)") && two.err.contains("ernie serve"), "{}", two.err);

    // Beside integers the run is the adapter alone: it says so, and is used as any adapter is.
    let set = ["--set", "adapter.base=int8", "--set", "precision.compute=f32"];
    fs::write(at.path().join("held.txt"), "The fox is in the wood.\n").expect("text");
    let task = ["--set", "evaluation.tasks=[{task=\"perplexity\",data=\"held.txt\"}]"];
    let said = good(at.path(), &[&["train", "lora.toml", "--out", "packed"][..], &set, &task].concat()).err;
    assert!(said.contains("step 6: perplexity: token_perplexity"), "{said}");
    let how = format!("ernie chat {base} --weights int8 --adapter packed/checkpoint-6/adapter");
    assert!(said.contains(&how), "{said}");
    let alone = bad(at.path(), &["generate", "packed", "--prompt", "Who?"], 2);
    let hint = "--adapter packed/checkpoint-6/adapter";
    assert!(alone.err.contains("no model") && alone.err.contains(hint), "{}", alone.err);
    let with = ["--weights", "int8", "--adapter", "packed/checkpoint-6/adapter", "--max-tokens", "3", "--quiet"];
    good(at.path(), &[&["generate", &base, "--prompt", "Who?"][..], &with].concat());
    good(at.path(), &["merge", &base, "--adapter", "packed/checkpoint-6/adapter", "--out", "from-packed", "--quiet"]);

    let line = good(at.path(), &["merge", &base, "--adapter", adapter, "--out", "again"]).out;
    assert!(line.contains("rank 2 times 8"), "{line}");

    // Nothing half-written, and one line for each mistake.
    let other = parity("moe").display().to_string();
    for (args, says) in [
        (&["merge", &base, "--adapter", adapter][..], "--out"),
        (&["merge", &base, "--out", "x"], "--adapter"),
        (&["merge", &base, "--adapter", "nowhere", "--out", "x"], "nowhere"),
        (&["merge", &base, "--adapter", "lora", "--out", "x"], "adapter_config.json"),
        (&["merge", &other, "--adapter", adapter, "--out", "x"], "adapter_model.safetensors"),
        (&["merge", "nowhere", "--adapter", adapter, "--out", "x"], "nowhere"),
        (&["merge", &base, "--adapter", adapter, "--out", "merged"], "merged"),
    ] {
        let failed = bad(at.path(), args, 2);
        assert!(failed.err.contains(says), "{args:?}: {}", failed.err);
        assert!(!at.path().join("x").exists(), "{args:?} left something");
    }
}
