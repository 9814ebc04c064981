//! `bench` from outside: the fields that scripts rely on, and mistakes. No test asks how fast anything is.

mod common;

use common::{bad, good, parity};
use serde_json::Value;
use std::fs;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn is_spread(value: &Value) -> bool {
    let at = |name: &str| value[name].as_f64().unwrap_or(-1.0);
    at("p10") > 0.0 && at("p10") <= at("median") && at("median") <= at("p90")
}

fn check_limits(json: &Value) {
    let limits = &json["limits"];
    for name in ["read_gb_per_s", "f32_gflop_per_s"] {
        assert!(limits[name].as_f64().is_some_and(|x| x > 0.0), "{name}: {json}");
    }
    for name in ["bf16_gflop_per_s", "int8_gop_per_s", "cpu"] {
        assert!(limits.get(name).is_some(), "{name}: {json}");
    }
    assert!(limits["threads"].as_u64().is_some_and(|n| n > 0), "{json}");
}

#[test]
fn a_model_is_measured_beside_the_limits() {
    let at = folder();
    let moe = parity("moe").display().to_string();
    let args = ["bench", &moe, "--prompt-tokens", "16", "--gen-tokens", "4", "--batch", "3", "--repeat", "2"];
    let json = good(at.path(), &[&args[..], &["--context", "9", "--weights", "int8", "--json"]].concat()).json();
    assert!(is_spread(&json["prefill_tokens_per_s"]) && is_spread(&json["decode_tokens_per_s"]), "{json}");
    for name in ["weight_bytes", "kv_bytes"] {
        assert!(json[name].as_u64().is_some_and(|n| n > 0), "{name}: {json}");
    }
    assert!(json["peak_rss_bytes"].is_u64() || !cfg!(target_os = "linux"), "{json}");
    check_limits(&json);
    for part in ["prefill", "decode"] {
        assert!(json["share_of_limit"][part].as_f64().is_some_and(|x| x > 0.0), "{json}");
    }
    for (name, value) in [("prompt_tokens", 16), ("gen_tokens", 4), ("batch", 3), ("context", 9), ("repeat", 2)] {
        assert_eq!(json[name], value);
    }
    assert_eq!(json["weights"], "int8");

    let people = good(at.path(), &args).out;
    for word in ["prefill", "decode", "tokens/s", "% of", "limits", "GB/s"] {
        assert!(people.contains(word), "{word}: {people}");
    }
    assert_eq!(fs::read_dir(at.path()).expect("folder").count(), 0);
}

#[test]
fn a_page_draws_the_sweeps() {
    let at = folder();
    let dense = parity("dense").display().to_string();
    let args = ["bench", &dense, "--prompt-tokens", "8", "--gen-tokens", "2", "--repeat", "1", "--report", "f.html"];
    good(at.path(), &args);
    let page = fs::read_to_string(at.path().join("f.html")).expect("the page");
    for heading in ["Reading a prompt", "Writing, many sequences", "Writing, long contexts"] {
        assert!(page.contains(heading), "{heading}");
    }
    assert!(!page.contains("NaN") && !page.contains("<script"));
    let answer = bad(at.path(), &["bench", &dense, "--report", "none/f.html"], 2);
    assert!(answer.err.contains("none/f.html"), "{}", answer.err);
}

#[test]
fn training_steps_are_measured() {
    let at = folder();
    let moe = parity("moe").display().to_string();
    let args = ["bench", &moe, "--train", "--batch", "2", "--seq", "16", "--steps", "3"];
    let json = good(at.path(), &[&args[..], &["--compute", "f32", "--json"]].concat()).json();
    assert!(is_spread(&json["train_tokens_per_s"]), "{json}");
    assert!(json["share_of_limit"].as_f64().is_some_and(|x| x > 0.0), "{json}");
    assert!(json["loss_last"].as_f64() < json["loss_first"].as_f64(), "{json}");
    check_limits(&json);
    let people = good(at.path(), &args).out;
    assert!(people.contains("tokens/s") && people.contains("loss"), "{people}");
    let bf16 = good(at.path(), &[&args[..], &["--compute", "bf16", "--json"]].concat()).json();
    assert_eq!(bf16["compute"], "bf16");
    assert!(bf16["loss_last"].as_f64() < bf16["loss_first"].as_f64(), "{bf16}");
    // In less memory: the same bits, but where moments are rounded.
    let less = good(at.path(), &[&args[..], &["--in-backward", "--recompute", "--json"]].concat()).json();
    assert_eq!((&less["loss_last"], &less["in_backward"]), (&json["loss_last"], &true.into()));
    let narrow = good(at.path(), &[&args[..], &["--moments", "bf16", "--json"]].concat()).json();
    assert!(narrow["loss_last"].as_f64() < narrow["loss_first"].as_f64() && narrow["moments"] == "bf16", "{narrow}");
    assert_ne!(narrow["loss_last"], json["loss_last"]);
}

#[test]
fn mistakes_are_named() {
    let at = folder();
    let dense = parity("dense").display().to_string();
    for (args, says) in [
        (&["bench"][..], "MODEL"),
        (&["bench", "nowhere"][..], "nowhere"),
        (&["bench", &dense, "more"][..], "more"),
        (&["bench", &dense, "--batch", "0"][..], "--batch"),
        (&["bench", &dense, "--prompt-tokens", "0"][..], "--prompt-tokens"),
        (&["bench", &dense, "--gen-tokens", "-1"][..], "-1"),
        (&["bench", &dense, "--context", "99999999"][..], "context"),
        (&["bench", &dense, "--weights", "int3"][..], "int3"),
        (&["bench", &dense, "--seq", "8"][..], "--train"),
        (&["bench", &dense, "--in-backward"][..], "--train"),
        (&["bench", &dense, "--train", "--moments", "int8"][..], "int8"),
        (&["bench", &dense, "--train", "--context", "8"][..], "--context"),
        (&["bench", &dense, "--train", "--seq", "99999999"][..], "--seq"),
        (&["bench", "serve"][..], "URL"),
        (&["bench", "serve", "127.0.0.1:1"][..], "http://127.0.0.1:8080"),
        (&["bench", "serve", "http://127.0.0.1:1", "--clients", "0"][..], "--clients"),
        (&["bench", "serve", "http://127.0.0.1:1", "--saturation", "x"][..], "--saturation"),
        (&["bench", "serve", "http://127.0.0.1:1", "--cancel-share", "1.1"][..], "--cancel-share"),
        (&["bench", "serve", "http://127.0.0.1:1", "--api-key-file", "nowhere"][..], "nowhere"),
        (&["bench", "serve", "http://127.0.0.1:1", "--report", "no/such/folder.html"][..], "no/such/folder.html"),
    ] {
        let answer = bad(at.path(), args, 2);
        assert!(answer.err.contains(says), "{args:?}: {}", answer.err);
    }
    let nobody = bad(at.path(), &["bench", "serve", "http://127.0.0.1:1"], 3);
    assert!(nobody.err.contains("http://127.0.0.1:1"), "{}", nobody.err);
    // More than any machine has: refused with the numbers, not killed.
    let large = ["bench", "preset:base", "--batch", "64", "--context", "100000", "--repeat", "1"];
    if cfg!(target_os = "linux") {
        let answer = bad(at.path(), &large, 3);
        assert!(answer.err.contains("64 sequences") && answer.err.contains("free"), "{}", answer.err);
    }
}

#[test]
fn ways_of_scheduling_are_compared() {
    let at = folder();
    let moe = parity("moe").display().to_string();
    let lengths = ["--prompt-tokens", "4", "--gen-tokens", "4", "--requests", "20"];
    let args = [&["bench", "policies", &moe, "--load", "0.5", "--json"][..], &lengths].concat();
    let json = good(at.path(), &args).json();
    let names: Vec<_> = json["comparisons"].as_array().expect("two").iter().map(|c| c["baseline"].clone()).collect();
    assert_eq!(names, ["dynamic_batch", "one_at_a_time"]);
    for comparison in json["comparisons"].as_array().expect("two") {
        assert!(comparison["latency_change"].is_number(), "{json}");
        for times in ["baseline_times", "continuous_times"] {
            assert!(comparison[times]["mean_s"].as_f64().is_some_and(|x| x > 0.0), "{json}");
        }
    }
    assert!(good(at.path(), &[&["bench", "policies", &moe][..], &lengths].concat()).out.contains("mean latency"));

    // Where four times a median is beyond half of the context, lengths end there.
    let context = ["bench", "policies", &moe, "--prompt-tokens", "100", "--gen-tokens", "2", "--requests", "10"];
    good(at.path(), &context);
    assert!(bad(at.path(), &["bench", "policies", &moe, "--load", "1"], 2).err.contains("below 1"));
    let refused = bad(at.path(), &["bench", "policies", &moe, "--prompt-tokens", "90000000"], 2);
    assert!(refused.err.contains("context holds"), "{}", refused.err);
}
