//! kill −9 at any moment of a save loses nothing that was saved, and what is found afterwards resumes to the same end.
//!
//! The test runs itself again as a child that trains and saves at every step, kills it without warning, and looks at what is left.

#![cfg(unix)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Room, assert_same};
use ernie_train::checkpoint::{list, newest};

const CHILD: &str = "ERNIE_TRAIN_KILL_CHILD";
const BACKGROUND: &str = "ERNIE_TRAIN_KILL_BACKGROUND";

/// What every run here is set to; `background` is whether checkpoints are written while it trains.
fn sets(background: &str) -> [String; 4] {
    let sets = ["checkpoint.every=1", "checkpoint.keep=2", "schedule.steps=40"].map(str::to_owned);
    let [every, keep, steps] = sets;
    [every, keep, steps, format!("checkpoint.background={background}")]
}

/// Not a test of its own: what the child does.
#[test]
fn child() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = std::path::PathBuf::from(folder);
    let overrides = sets(&std::env::var(BACKGROUND).unwrap());
    let recipe = ernie_train::Recipe::load(&folder.join("moe.toml"), &overrides, &folder).unwrap();
    let resolve = |_: &str| None;
    let options = ernie_train::Options {
        out: folder.join("killed"),
        resume: true,
        commit: "0000000".into(),
        resolve: &resolve,
        asked: &|_, _| (),
    };
    let mut trainer = ernie_train::Trainer::prepare(recipe, &options).unwrap();
    trainer.run(&mut [], &std::sync::atomic::AtomicBool::new(false)).unwrap();
}

#[test]
fn killed_at_any_moment() {
    killed("false");
}

#[test]
fn killed_while_checkpoints_are_written_aside() {
    killed("true");
}

fn killed(background: &str) {
    let room = Room::new(2000);
    let sets = sets(background);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    room.run("moe", "whole", false, &sets).unwrap();
    let out = room.path("killed");
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env(CHILD, room.folder.path())
            .env(BACKGROUND, background)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let steps = || newest(&out).unwrap().map_or(0, |(step, _)| step);
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut kills = 0;
    let mut before = 0;
    while before < 40 && Instant::now() < deadline {
        let mut child = spawn();
        // Wait until it has saved something new, then a little longer each time, to meet every phase of the next save.
        let ended = loop {
            if child.try_wait().unwrap().is_some() {
                break true;
            }
            if steps() > before || Instant::now() > deadline {
                break false;
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        if !ended {
            std::thread::sleep(Duration::from_micros(700 * (kills % 16)));
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        let after = steps();
        assert!(after >= before, "a saved checkpoint was lost: {before}, then {after}");
        // Whatever carries a checkpoint's name is whole: half-written ones have no name yet.
        for (step, path) in list(&out).unwrap() {
            let alone = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(&path, alone.path().join(format!("checkpoint-{step}"))).unwrap();
            assert!(newest(alone.path()).unwrap().is_some(), "{} is not whole", path.display());
        }
        before = after;
    }
    assert!(kills >= 3, "{kills} kills");
    room.run("moe", "killed", true, &sets).unwrap();
    assert_same(&room.path("whole/checkpoint-40"), &out.join("checkpoint-40"));
}
