//! Killed at any moment, and with a disk that takes no more: what was saved stays saved.
//!
//! The test runs itself again as a child (named by an environment variable), which saves checkpoint after checkpoint.
#![cfg(unix)]
#![allow(clippy::print_stdout)] // The child tells its parent what it has saved.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::Random;
use ernie_files::safetensors::Writer;
use ernie_files::{Checkpoint, Dtype, ErrorKind, Result, TensorInfo, atomic};

const SAVING: &str = "ERNIE_FILES_TEST_SAVES_IN";
const FULL: &str = "ERNIE_FILES_TEST_FULL_IN";
const TENSORS: usize = 6;
const TENSOR_BYTES: usize = 40_000;

/// Saves checkpoint `number`, each of its bytes known from the number.
fn save(folder: &Path, number: usize) -> Result<()> {
    let new = atomic::Folder::begin(&folder.join(format!("checkpoint-{number}")))?;
    let tensors: Vec<_> = (0..TENSORS).map(|i| TensorInfo::new(format!("t{i}"), Dtype::U8, [TENSOR_BYTES])).collect();
    let mut writer = Writer::create(&new.path().join("model.safetensors"), &tensors, &BTreeMap::new())?;
    for i in 0..TENSORS {
        writer.write(&vec![(number + i) as u8; TENSOR_BYTES])?;
    }
    writer.finish()?;
    atomic::write(&new.path().join("state.json"), number.to_string().as_bytes())?;
    new.commit()?;
    atomic::write(&folder.join("latest"), number.to_string().as_bytes())
}

/// Checks checkpoint `number` to the last byte.
fn check(folder: &Path, number: usize) {
    let path = folder.join(format!("checkpoint-{number}"));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.tensors().count(), TENSORS);
    for i in 0..TENSORS {
        let bytes = checkpoint.bytes(&format!("t{i}")).unwrap();
        assert!(bytes.len() == TENSOR_BYTES && bytes.iter().all(|&byte| byte == (number + i) as u8));
    }
    assert_eq!(std::fs::read_to_string(path.join("state.json")).unwrap(), number.to_string());
}

/// Numbers of the checkpoints that have a name, and how many hidden things are there.
fn seen(folder: &Path) -> (Vec<usize>, usize) {
    let (mut numbers, mut hidden) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(number) = name.strip_prefix("checkpoint-") {
            numbers.push(number.parse().unwrap());
        } else if name.starts_with('.') {
            hidden += 1;
        }
    }
    numbers.sort_unstable();
    (numbers, hidden)
}

/// The child: saves until it is killed.
#[test]
fn child_that_saves() {
    let Some(folder) = std::env::var_os(SAVING).map(PathBuf::from) else { return };
    let first = seen(&folder).0.last().map_or(0, |number| number + 1);
    for number in first.. {
        save(&folder, number).unwrap();
        println!("\nsaved {number}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn kill_9_loses_nothing_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut random = Random(7);
    let mut leftovers = 0;
    let mut saved = 0;
    for round in 0..15 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_saves", "--exact", "--nocapture"])
            .env(SAVING, folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("saved ") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the child saves nothing");
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        let told = line.lines().chain(rest.lines()).filter_map(|line| line.strip_prefix("saved "));
        // A last line that the kill cut short claims less than it saved, never more.
        saved = saved.max(told.map(|number| number.parse().unwrap()).max().unwrap());
        let (numbers, hidden) = seen(folder);
        assert!(*numbers.last().unwrap() >= saved, "round {round}");
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "round {round}");
        let latest: usize = std::fs::read_to_string(folder.join("latest")).unwrap().parse().unwrap();
        assert!(numbers.contains(&latest) && latest >= saved, "round {round}");
        leftovers += hidden;
        assert_eq!(atomic::clean(folder).unwrap().len(), hidden);
        assert_eq!(seen(folder), (numbers, 0));
    }
    for number in seen(folder).0 {
        check(folder, number);
    }
    // Otherwise this has shown nothing.
    assert!(leftovers > 0, "no kill came in the middle of a save");
}

/// The child: meets the limit on the size of files, which stands for a disk that takes no more.
#[test]
fn child_that_is_full() {
    let Some(folder) = std::env::var_os(FULL).map(PathBuf::from) else { return };
    let error = save(&folder, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(error.to_string().contains("model.safetensors: cannot write: "), "{error}");
    let error = atomic::write(&folder.join("latest"), &vec![0; 200_000]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
}

#[test]
fn a_disk_that_takes_no_more_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 0).unwrap();
    let status = Command::new("sh")
        // 64 blocks of 512 bytes (1024 in some shells); the signal ignored, so that writes fail instead.
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["child_that_is_full", "--exact"])
        .env(FULL, folder.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(seen(folder.path()), (vec![0], 0));
    check(folder.path(), 0);
    assert_eq!(std::fs::read_to_string(folder.path().join("latest")).unwrap(), "0");
}
