//! What the loop does beside stepping: the best checkpoint, an early end, an average of the weights, and steps that come to nothing.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Room, assert_same, copy};
use ernie_nn::Parameter;
use ernie_train::observe::read_metrics;
use ernie_train::{Observer, Outcome, Recovered, Result, StepReport};

#[test]
fn the_best_is_kept_and_a_stale_run_ends() {
    let room = Room::new(800);
    // So fast a learner soon knows its 800 bytes by heart and the rest ever worse.
    let set = [
        "schedule.steps=60",
        "optimizer.lr=0.05",
        "evaluation.every=2",
        "evaluation.patience=3",
        "checkpoint.keep_best=true",
        "checkpoint.keep=1",
        "checkpoint.every=7",
    ];
    let finished = room.run("dense", "run", false, &set).unwrap();
    let best = finished.best.unwrap();
    assert_eq!((finished.outcome, finished.step), (Outcome::Stale, best.step + 6));
    let measured = read_metrics(&room.path("run")).unwrap();
    let lowest = measured
        .iter()
        .filter_map(|line| Some((line.val_loss?, line.step)))
        .reduce(|a, b| if b.0 < a.0 { b } else { a });
    assert_eq!(lowest, Some((best.val_loss, best.step)));
    let named: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(room.path("run/best.json")).unwrap()).unwrap();
    assert_eq!(named["checkpoint"], format!("checkpoint-{}", best.step));
    let mut kept: Vec<String> = std::fs::read_dir(room.path("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.retain(|name| name.starts_with("checkpoint-"));
    kept.sort();
    let mut expected = [format!("checkpoint-{}", best.step), format!("checkpoint-{}", finished.step)];
    expected.sort();
    assert_eq!(kept, expected);
    // It knows that it had ended.
    let again = room.run("dense", "run", true, &set).unwrap();
    assert_eq!((again.outcome, again.step), (Outcome::Stale, finished.step));
    for key in ["evaluation.patience=1", "checkpoint.keep_best=true"] {
        let error = room.recipe("dense", &["data.held_out=[]", key]).unwrap_err();
        assert!(error.to_string().contains("nothing is evaluated"), "{error}");
    }
}

#[test]
fn an_average_is_published_and_resumed() {
    let room = Room::new(3000);
    for (kind, rule) in [("dense", "adamw"), ("moe", "adamw"), ("moe", "muon"), ("dense-bf16", "muon")] {
        let rule_set = format!("optimizer.kind={rule}");
        let set = ["optimizer.ema=0.9", &rule_set];
        let name = |part: &str| format!("{part}-{kind}-{rule}");
        room.run(kind, &name("plain"), false, &set[1..]).unwrap();
        room.run(kind, &name("whole"), false, &set).unwrap();
        let file =
            |run: &str, file: &str| std::fs::read(room.path(&name(run)).join("checkpoint-8").join(file)).unwrap();
        // The same weights are trained, others are published.
        assert_eq!(
            file("plain", "training_state/masters.safetensors"),
            file("whole", "training_state/masters.safetensors")
        );
        assert_ne!(file("plain", "model.safetensors"), file("whole", "model.safetensors"));
        copy(&room.path(&name("whole")).join("checkpoint-3"), &room.path(&name("parts")).join("checkpoint-3"));
        room.run(kind, &name("parts"), true, &set).unwrap();
        assert_same(&room.path(&name("whole")).join("checkpoint-8"), &room.path(&name("parts")).join("checkpoint-8"));
    }
}

/// Makes a weight of `parameter` something that is no number after step `at`, once, and mends it when told of what came of it.
struct Poison {
    parameter: Arc<Parameter>,
    at: u64,
    before: Option<Vec<f32>>,
    mends: bool,
    told: Vec<Recovered>,
}

impl Poison {
    fn new(parameter: &Arc<Parameter>, at: u64, mends: bool) -> Self {
        Self { parameter: parameter.clone(), at, before: None, mends, told: Vec::new() }
    }
}

impl Observer for Poison {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if report.step == self.at && self.before.is_none() {
            self.before = Some(self.parameter.to_vec()?);
            self.parameter.update(|weights, _| weights[0] = f32::NAN)?;
        }
        Ok(())
    }

    fn recovered(&mut self, recovered: &Recovered) -> Result<()> {
        self.told.push(recovered.clone());
        if let Some(before) = self.before.as_ref().filter(|_| self.mends) {
            self.parameter.set(before)?;
        }
        Ok(())
    }
}

#[test]
fn a_step_that_comes_to_nothing_is_passed_over_or_gone_back_from() {
    let room = Room::new(3000);
    let run = |policy: &str, mends: bool| {
        let set = format!("optimizer.on_nan={policy}");
        let out = format!("{policy}-{mends}");
        let mut trainer = room.trainer("dense", &out, false, &[&set]).unwrap();
        let parameter = trainer.decoder().parameters()[1].clone();
        let mut poison = Poison::new(&parameter, 5, mends);
        let outcome = trainer.run(&mut [&mut poison], &AtomicBool::new(false));
        let steps: Vec<u64> = read_metrics(&room.path(&out)).unwrap().iter().map(|line| line.step).collect();
        (outcome, poison.told.iter().map(|told| (told.step, told.back_to)).collect::<Vec<_>>(), steps)
    };
    let whole: Vec<u64> = (1..=8).collect();
    let (outcome, told, steps) = run("skip", true);
    assert_eq!((outcome.unwrap().step, told, &steps), (8, vec![(6, 5)], &whole));
    let (outcome, told, steps) = run("rollback", false);
    assert_eq!((outcome.unwrap().step, told, &steps), (8, vec![(6, 3)], &whole));
    // A model that is broken for good ends the run, and so does the first such step by default.
    let (outcome, told, _) = run("skip", false);
    assert!(outcome.unwrap_err().to_string().starts_with("step 6: loss is NaN"));
    assert_eq!(told.len(), 9);
    let (outcome, told, _) = run("stop", false);
    assert!(outcome.unwrap_err().to_string().contains("checkpoint-3") && told.is_empty());
}

#[test]
fn without_a_checkpoint_there_is_nothing_to_go_back_to() {
    let room = Room::new(3000);
    let mut trainer =
        room.trainer("dense", "run", false, &["optimizer.on_nan=rollback", "checkpoint.every=0"]).unwrap();
    let parameter = trainer.decoder().parameters()[1].clone();
    let error = trainer.run(&mut [&mut Poison::new(&parameter, 2, false)], &AtomicBool::new(false)).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("there is no checkpoint yet"), "{error}");
}

/// Spoils a weight after step `at`, every time.
struct Spoil(Arc<Parameter>, u64, u32);

impl Observer for Spoil {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if report.step == self.1 {
            self.0.update(|weights, _| weights[0] = f32::NAN)?;
        }
        Ok(())
    }

    fn recovered(&mut self, _: &Recovered) -> Result<()> {
        self.2 += 1;
        Ok(())
    }
}

#[test]
fn going_back_again_and_again_to_the_same_end_comes_to_an_end() {
    let room = Room::new(3000);
    let mut trainer = room.trainer("dense", "run", false, &["optimizer.on_nan=rollback"]).unwrap();
    let mut spoil = Spoil(trainer.decoder().parameters()[1].clone(), 5, 0);
    let error = trainer.run(&mut [&mut spoil], &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().starts_with("step 6: loss is NaN") && spoil.2 == 9, "{error} {}", spoil.2);
}
