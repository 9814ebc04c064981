//! `train --tui`, on a terminal and without one.

mod common;

use common::{bad, write_tiny_recipe};
use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

const TRAIN: [&str; 5] = ["train", "recipe.toml", "--out", "run", "--tui"];

#[test]
fn without_a_terminal_it_is_refused_before_anything_is_done() {
    let at = tempfile::tempdir().expect("a temporary folder");
    write_tiny_recipe(at.path());
    let refused = bad(at.path(), &TRAIN, 2);
    assert!(refused.err.contains("no terminal"), "{}", refused.err);
    assert!(!at.path().join("run").exists());
    bad(at.path(), &["train", "recipe.toml", "--out", "run", "--sample", "x"], 2);
}

/// Runs the program on a terminal of its own, `before` it in the shell's line; what the terminal was sent, and the exit code. `None` where there is no `script`.
#[cfg(target_os = "linux")]
fn on_a_terminal(at: &std::path::Path, before: &str, more: &str, keys: &[u8]) -> Option<(String, i32)> {
    let command = format!("{before}{} {} {more}", env!("CARGO_BIN_EXE_ernie"), TRAIN.join(" "));
    let mut child = Command::new("script")
        .args(["-qec", &command, "typescript"])
        .current_dir(at)
        .env("HOME", at)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().expect("it listens");
    let screen = || String::from_utf8_lossy(&fs::read(at.join("typescript")).unwrap_or_default()).into_owned();
    if !keys.is_empty() {
        // Keys typed before the dashboard listens would go to the shell.
        for _ in 0..600 {
            if screen().contains("\u{1b}[?1049h") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        stdin.write_all(keys).expect("a key");
    }
    let code = child.wait().expect("it ends").code().unwrap_or(-1);
    drop(stdin);
    Some((screen(), code))
}

#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr)]
fn on_a_terminal_it_draws_gives_the_terminal_back_and_leaves_on_q() {
    let at = tempfile::tempdir().expect("a temporary folder");
    write_tiny_recipe(at.path());
    let Some((screen, code)) = on_a_terminal(at.path(), "", "", b"") else {
        return eprintln!("skipped: there is no `script` here");
    };
    assert_eq!(code, 0, "{screen}");
    let after = screen.split("\u{1b}[?1049l").nth(1).unwrap_or_default();
    assert!(screen.contains("\u{1b}[?1049h") && after.contains("trained 6 steps"), "{screen}");
    assert!(at.path().join("run/report.html").exists());

    let long = "--resume --set schedule.steps=100000 --set checkpoint.every=0 --set evaluation.every=0";
    let (screen, code) = on_a_terminal(at.path(), "", long, b"q").expect("a terminal");
    assert_eq!(code, 130, "{screen}");
    assert!(screen.contains("--resume"), "{screen}");
}

/// The first signal waits for the end of the step; a second one leaves at once, and the terminal is usable all the same.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr)]
fn a_second_signal_gives_the_terminal_back() {
    let at = tempfile::tempdir().expect("a temporary folder");
    write_tiny_recipe(at.path());
    // The shell becomes the program, so its number is the program's; one step takes longer than the signals are apart.
    let signals = "(sleep 4; kill -TERM $$; sleep 0.2; kill -TERM $$) & exec ";
    let long = "--set batch.rows=16384 --set evaluation.every=0 --set schedule.steps=1000";
    let Some((screen, code)) = on_a_terminal(at.path(), signals, long, b"") else {
        return eprintln!("skipped: there is no `script` here");
    };
    assert_eq!(code, 130, "{screen}");
    let opened = screen.contains("\u{1b}[?1049h");
    assert!(!opened || screen.contains("\u{1b}[?1049l"), "{screen}");
}
