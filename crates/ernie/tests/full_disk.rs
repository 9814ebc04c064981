//! A disk that fills up while a checkpoint is written: the run ends with one line, what was saved is whole, and it goes on when there is room.
#![cfg(target_os = "linux")]

mod common;

use common::write_tiny_recipe;
use std::{fs, process::Command};

/// Runs in a mount namespace of its own, over a disk of 4 MB; 99 where the system does not give one.
const SCRIPT: &str = r#"
mkdir disk && mount -t tmpfs -o size=4m tmpfs disk || exit 99
go() { "$ERNIE" train recipe.toml --out disk/run --set checkpoint.every=1 --set schedule.steps=40 --quiet "$@"; }
go --set checkpoint.keep=0 >first.out 2>first.err; echo $? >first.code
ls -A disk/run >left
"$ERNIE" generate disk/run --prompt fox --max-tokens 2 --quiet >answer.out 2>answer.err; echo $? >answer.code
rm -r disk/run/checkpoint-1 disk/run/checkpoint-2
go --set checkpoint.keep=1 --resume >second.out 2>second.err; echo $? >second.code
ls -A disk/run >after
"#;

#[test]
#[allow(clippy::print_stderr)]
fn a_full_disk_loses_nothing_that_was_saved() {
    let at = tempfile::tempdir().expect("a temporary folder");
    write_tiny_recipe(at.path());
    fs::write(at.path().join("script"), SCRIPT).expect("a script");
    let status = Command::new("unshare")
        .args(["-rm", "sh", "script"])
        .current_dir(at.path())
        .env("ERNIE", env!("CARGO_BIN_EXE_ernie"))
        .env("HOME", at.path())
        .status();
    let Ok(status) = status.as_ref().map(|status| status.code()) else {
        return eprintln!("skipped: there is no `unshare` here");
    };
    if status == Some(99) || !at.path().join("first.code").exists() {
        return eprintln!("skipped: the system gives no disk of its own");
    }
    let read = |name: &str| fs::read_to_string(at.path().join(name)).unwrap_or_default();
    let said = read("first.err");
    assert_eq!(read("first.code").trim(), "3", "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
    assert!(said.contains("checkpoint-") && said.contains("No space left"), "{said}");
    // Nothing half-written has a checkpoint's name, and the newest one answers.
    assert!(read("left").lines().filter(|name| name.starts_with("checkpoint-")).count() > 2, "{}", read("left"));
    assert_eq!(read("answer.code").trim(), "0", "{}", read("answer.err"));
    assert_eq!(read("second.code").trim(), "0", "{}", read("second.err"));
    let after = read("after");
    assert!(after.contains("checkpoint-40") && !after.contains("tmp"), "{after}");
}
