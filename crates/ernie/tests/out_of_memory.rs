//! Where the system gives no memory, the program says so in one line and leaves with the code of its environment.
#![cfg(target_os = "linux")]

mod common;

use common::{Answer, answer, ernie_after, parity, tiny_run};
use std::{fs, fs::File, path::Path, time::Duration};

/// Runs the program with so many kilobytes of addresses.
fn within(kilobytes: usize, folder: &Path, args: &[&str]) -> Answer {
    let mut command = ernie_after(&format!("ulimit -v {kilobytes}"), folder);
    command.args(args);
    answer(assert_cmd::Command::from_std(command).timeout(Duration::from_secs(120)))
}

/// Code 3, one `error:` line, and a `hint:` behind it as the last thing said.
fn assert_short(answer: &Answer, of: &str) {
    assert_eq!(answer.code, 3, "{}", answer.err);
    let lines: Vec<&str> = answer.err.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("error: ")).count(), 1, "{}", answer.err);
    let [.., error, hint] = lines[..] else { panic!("{}", answer.err) };
    assert!(error.starts_with("error: ") && error.contains(of), "{}", answer.err);
    assert!(hint.starts_with("hint: "), "{}", answer.err);
    for inside in ["panicked", "memory allocation of", "internal", "Aborted"] {
        assert!(!answer.err.contains(inside), "{}", answer.err);
    }
}

#[test]
fn a_model_that_is_too_large_for_memory() {
    let at = tempfile::tempdir().expect("a folder");
    let generate = ["generate", "preset:ernie-4.5-0.3b", "--ids", "5", "--max-tokens", "1"];
    // Room for the program and its threads, and for none of the large matrices.
    assert_short(&within(160_000, at.path(), &generate), "out of memory: the system refuses ");
    // With more, what comes first, the weights or a thread for them, is up to the machine.
    for args in [&["bench", "preset:ernie-4.5-0.3b"][..], &["bench", "preset:ernie-4.5-0.3b", "--train"][..]] {
        assert_short(&within(400_000, at.path(), args), "");
    }
}

#[test]
#[allow(clippy::print_stderr)]
fn a_file_that_is_too_large_to_be_mapped() {
    let at = tempfile::tempdir().expect("a folder");
    fs::copy(parity("dense").join("config.json"), at.path().join("config.json")).expect("a copy");
    let weights = File::create(at.path().join("model.safetensors")).expect("a file");
    // It has a length and no content, so it takes no room on the disk.
    if weights.set_len(64 << 30).is_err() {
        return eprintln!("skipped: there is no file of 64 GB here, not even an empty one");
    }
    let answer = within(4 << 20, at.path(), &["generate", ".", "--ids", "5", "--max-tokens", "1"]);
    assert_short(&answer, "model.safetensors: cannot map into memory");
}

#[test]
fn threads_that_are_too_large_for_memory() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let args = ["generate", model.to_str().expect("a path"), "--prompt", "The fox", "--max-tokens", "2"];
    // Threads of 100 GB within 8.
    let mut command = ernie_after("ulimit -v 8388608", at.path());
    command.env("RUST_MIN_STACK", (100_u64 << 30).to_string()).args(args);
    assert_short(&answer(&mut assert_cmd::Command::from_std(command)), "thread");
}

/// Wherever memory ends, between too little to begin and enough: done, or said in the same way.
#[test]
fn any_limit_of_memory() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let model = model.to_str().expect("a path");
    let (mut done, mut short) = (0, 0);
    for kilobytes in (0..70).map(|step| (16_384.0 * 1.04_f64.powi(step)) as usize) {
        let answer = within(kilobytes, at.path(), &["generate", model, "--prompt", "The fox", "--max-tokens", "2"]);
        let began = done + short > 0 || answer.err.contains("error: ");
        match answer.code {
            0 => done += 1,
            // The system has no room for the program itself, and ends it before it begins.
            _ if !began => {}
            127 => assert!(answer.err.contains("error while loading shared libraries"), "{}", answer.err),
            _ => {
                assert_short(&answer, "");
                short += 1;
            }
        }
    }
    assert!(done > 0 && short > 0, "done {done} times, {short} times short of memory");
}
