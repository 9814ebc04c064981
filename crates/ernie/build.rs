//! Tells the program which commit it was built from; every run it trains keeps that.

#![allow(clippy::print_stdout)] // Printing is how a build script speaks to cargo.

use std::{path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Each commit adds a line to this log; a source without git has none and says "unknown".
    let log = Path::new("../../.git/logs/HEAD");
    if log.exists() {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    if let Ok(commit) = commit
        && commit.status.success()
        && let Ok(commit) = String::from_utf8(commit.stdout)
    {
        println!("cargo:rustc-env=ERNIE_COMMIT={}", commit.trim());
    }
}
