//! `chat` and `serve` without a MODEL: the one inside the program.

mod common;

use common::{answer, bad, ernie, good, run_with_input};
use std::fs;

#[test]
fn chat_needs_no_model() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let ask = || {
        run_with_input(at.path(), &["chat", "--temperature", "0", "--max-tokens", "40", "--quiet"], "Who are you?\n")
    };
    let first = ask();
    assert_eq!(first.code, 0, "{}", first.err);
    assert!(first.out.contains("nano"), "{}", first.out);
    // It was unpacked into the cache of whoever runs it, and is mended there.
    let folder =
        fs::read_dir(at.path().join(".cache/ernie")).expect("the cache").next().expect("a folder").expect("it");
    fs::write(folder.path().join("config.json"), "{").expect("damage");
    assert_eq!(ask().out, first.out);
    // It is a MODEL as any other is.
    let folder = folder.path().display().to_string();
    let json = good(at.path(), &["inspect", &folder, "--json"]).json();
    assert!(json["params_total"].as_u64().is_some_and(|n| n <= 14_000_000), "{json}");
    assert!(json["weight_bytes"].as_u64().is_some_and(|n| n <= 16_000_000), "{json}");
}

#[test]
fn where_the_cache_cannot_be_written_the_temporary_folder_serves() {
    let at = tempfile::tempdir().expect("a temporary folder");
    fs::write(at.path().join("file"), "").expect("a file");
    let command = |temporary: &str| {
        let mut command = ernie(at.path());
        command.env("XDG_CACHE_HOME", at.path().join("file")).env("TMPDIR", at.path().join(temporary));
        command.args(["chat", "--max-tokens", "2", "--quiet"]).write_stdin("你好\n");
        answer(&mut command)
    };
    assert_eq!(command(".").code, 0);
    let nowhere = command("file");
    assert_eq!(nowhere.code, 3, "{}", nowhere.err);
    assert!(nowhere.err.contains("XDG_CACHE_HOME"), "{}", nowhere.err);
    bad(at.path(), &["generate", "--prompt", "x"], 2);
}
