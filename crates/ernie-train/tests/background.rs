//! Checkpoints that are written while training goes on are those that it would have waited for, and what fails is told.

mod common;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use common::{Room, assert_same, copy, files};
use ernie_train::{Observer, Result, Saved, StepReport};

const ASIDE: &str = "checkpoint.background=true";

#[test]
fn they_are_the_same_and_resume_to_the_same() {
    let room = Room::new(3000);
    room.run("moe", "base", false, &["schedule.steps=2"]).unwrap();
    let adapter = ["adapter.rank=2", "model.weights=base", "data.tokenizer=base"];
    for (name, set) in [
        ("plain", &[][..]),
        ("average", &["optimizer.ema=0.9", "checkpoint.dtype=bf16"]),
        ("muon", &["optimizer.kind=muon"]),
        ("narrow", &["optimizer.moments=bf16"]),
        ("adapter", &adapter),
    ] {
        let with = |more: &[&'static str]| [set, more].concat();
        let (front, aside, parts) = (format!("{name}-front"), format!("{name}-aside"), format!("{name}-parts"));
        room.run("moe", &front, false, set).unwrap();
        room.run("moe", &aside, false, &with(&[ASIDE])).unwrap();
        for step in [3, 6, 8] {
            let all = |run: &str| {
                let mut files = files(&room.path(&format!("{run}/checkpoint-{step}")));
                // The recipe says how it was saved, and the state how long the recipe is.
                files.retain(|(path, _)| !path.ends_with("recipe.toml") && !path.ends_with("state.json"));
                files
            };
            assert!(all(&front) == all(&aside), "{name} {step}");
        }
        copy(&room.path(&format!("{aside}/checkpoint-3")), &room.path(&format!("{parts}/checkpoint-3")));
        room.run("moe", &parts, true, &with(&[ASIDE])).unwrap();
        assert_same(&room.path(&format!("{aside}/checkpoint-8")), &room.path(&format!("{parts}/checkpoint-8")));
    }
}

/// Counts what is told, and lets the disk go away after a step.
struct Watch {
    run: PathBuf,
    breaks_at: u64,
    steps: u64,
    saved: Vec<u64>,
}

impl Observer for Watch {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.steps = report.step;
        if report.step == self.breaks_at {
            std::fs::rename(&self.run, self.run.with_extension("moved")).unwrap();
            std::fs::write(&self.run, "").unwrap();
        }
        Ok(())
    }

    fn saved(&mut self, saved: &Saved) -> Result<()> {
        assert!(saved.path.exists() || self.steps >= self.breaks_at);
        self.saved.push(saved.step);
        Ok(())
    }
}

#[test]
fn each_is_told_once_and_the_last_is_waited_for() {
    let room = Room::new(2000);
    let mut watch = Watch { run: room.path("run"), breaks_at: u64::MAX, steps: 0, saved: Vec::new() };
    let mut trainer = room.trainer("dense", "run", false, &[ASIDE, "checkpoint.every=1", "checkpoint.keep=2"]).unwrap();
    let finished = trainer.run(&mut [&mut watch], &AtomicBool::new(false)).unwrap();
    assert_eq!(watch.saved, (1..=8).collect::<Vec<u64>>());
    assert_eq!(finished.checkpoint, Some(room.path("run/checkpoint-8")));
    let left = ernie_train::checkpoint::list(&room.path("run")).unwrap();
    assert_eq!(left.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [7, 8]);

    // Stopped, it saves where it stands, and waits for that too.
    room.stop_at("dense", "stopped", false, 2).unwrap();
    let mut trainer = room.trainer("dense", "stopped", true, &[ASIDE]).unwrap();
    let stopped = trainer.run(&mut [], &AtomicBool::new(true)).unwrap();
    assert!(stopped.checkpoint.unwrap().join("training_state/state.json").exists());
}

#[test]
fn a_disk_that_fails_ends_the_run_at_the_next_step() {
    let room = Room::new(2000);
    let mut watch = Watch { run: room.path("run"), breaks_at: 3, steps: 0, saved: Vec::new() };
    let set = [ASIDE, "checkpoint.every=1", "schedule.steps=40", "evaluation.every=0"];
    let mut trainer = room.trainer("dense", "run", false, &set).unwrap();
    let error = trainer.run(&mut [&mut watch], &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("run") && watch.steps <= 4, "{error} {}", watch.steps);
    assert!(watch.saved.iter().all(|&step| step < 3), "{:?}", watch.saved);
    let whole = ernie_train::checkpoint::newest(&room.path("run.moved")).unwrap();
    assert!(whole.is_some_and(|(step, _)| step >= 1));
}
