//! Stopped anywhere and resumed equals not stopped, bit for bit.

mod common;

use common::{Room, assert_same};
use ernie_train::observe::read_metrics;
use ernie_train::{Error, Outcome};

/// All that a line of metrics says but the time it took.
fn lines(room: &Room, out: &str) -> Vec<(u64, u64, u64, u64, u64, Option<u64>)> {
    let metrics = read_metrics(&room.path(out)).unwrap();
    let line = |m: &ernie_train::observe::MetricsLine| {
        (m.step, m.tokens, m.loss.to_bits(), m.lr.to_bits(), m.grad_norm.to_bits(), m.val_loss.map(f64::to_bits))
    };
    metrics.iter().map(line).collect()
}

fn stopped_at_every_step(kind: &str) {
    let room = Room::new(3000);
    let whole = room.run(kind, "whole", false, &[]).unwrap();
    assert_eq!((whole.outcome, whole.step), (Outcome::Complete, 8));
    for stop in 0..=8 {
        let out = format!("stopped-{stop}");
        let first = room.stop_at(kind, &out, false, stop).unwrap();
        let expected = if stop == 8 { Outcome::Complete } else { Outcome::Interrupted };
        assert_eq!((first.outcome, first.step), (expected, stop));
        // Only the run that was stopped before it began has nothing to go on from.
        assert_eq!(first.checkpoint.is_some(), stop > 0);
        let second = room.run(kind, &out, true, &[]).unwrap();
        assert_eq!((second.outcome, second.step, second.tokens), (Outcome::Complete, 8, whole.tokens));
        assert_same(&room.path("whole/checkpoint-8"), &room.path(&format!("{out}/checkpoint-8")));
        assert_eq!(lines(&room, "whole"), lines(&room, &out));
    }
}

#[test]
fn dense_stopped_at_every_step() {
    stopped_at_every_step("dense");
}

#[test]
fn moe_stopped_at_every_step() {
    stopped_at_every_step("moe");
}

#[test]
fn in_bf16_stopped_at_every_step() {
    stopped_at_every_step("dense-bf16");
    stopped_at_every_step("moe-bf16");
}

#[test]
fn with_multi_token_prediction_stopped_at_every_step() {
    stopped_at_every_step("moe-mtp");
    stopped_at_every_step("dense-mtp-bf16");
}

#[test]
fn stopped_again_and_again() {
    let room = Room::new(3000);
    room.run("moe", "whole", false, &[]).unwrap();
    for stop in 1..8 {
        room.stop_at("moe", "crumbs", true, stop).unwrap();
    }
    room.run("moe", "crumbs", true, &[]).unwrap();
    assert_same(&room.path("whole/checkpoint-8"), &room.path("crumbs/checkpoint-8"));
    assert_eq!(lines(&room, "whole"), lines(&room, "crumbs"));
}

#[test]
fn metrics_are_cut_back_to_the_checkpoint() {
    let room = Room::new(3000);
    room.run("moe", "whole", false, &[]).unwrap();
    room.run("moe", "cut", false, &[]).unwrap();
    // As after a crash at step 8: the newest checkpoint left is that of step 3.
    for step in [6, 8] {
        std::fs::remove_dir_all(room.path(&format!("cut/checkpoint-{step}"))).unwrap();
    }
    room.run("moe", "cut", true, &[]).unwrap();
    assert_eq!(lines(&room, "whole"), lines(&room, "cut"));
    assert_same(&room.path("whole/checkpoint-8"), &room.path("cut/checkpoint-8"));
}

#[test]
fn steps_may_change_where_none_made_would_and_the_finished_run_goes_on() {
    let room = Room::new(3000);
    let constant = "schedule.kind=constant";
    room.run("dense", "long", false, &[constant, "schedule.steps=10"]).unwrap();
    room.run("dense", "raised", false, &[constant, "schedule.steps=6"]).unwrap();
    let done = room
        .run("dense", "raised", true, &[constant, "schedule.steps=10", "checkpoint.every=5", "evaluation.every=3"])
        .unwrap();
    assert_eq!(done.step, 10);
    let weights = |out: &str| std::fs::read(room.path(out).join("checkpoint-10/model.safetensors")).unwrap();
    assert!(weights("long") == weights("raised"));
    // Fewer steps than the run was to have are the same run while the rate has not begun to fall.
    let ten = std::fs::read_to_string(room.path("dense.toml")).unwrap().replace("steps = 8", "steps = 10");
    std::fs::write(room.path("ten.toml"), ten).unwrap();
    room.stop_at("ten", "cut-short", false, 3).unwrap();
    room.run("ten", "short", false, &["schedule.steps=6"]).unwrap();
    room.run("ten", "cut-short", true, &["schedule.steps=6"]).unwrap();
    let weights = |out: &str| std::fs::read(room.path(out).join("checkpoint-6/model.safetensors")).unwrap();
    assert!(weights("short") == weights("cut-short"));
    room.stop_at("ten", "too-late", false, 9).unwrap();
    let error = room.run("ten", "too-late", true, &["schedule.steps=9"]).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("schedule.steps was 10 and is 9"), "{error}");
    // Nothing is left to do: it says so at once and changes nothing.
    let again = room.run("dense", "raised", true, &[constant, "schedule.steps=10"]).unwrap();
    assert_eq!((again.outcome, again.step), (Outcome::Complete, 10));
}

#[test]
fn another_recipe_is_refused_with_what_differs() {
    let room = Room::new(3000);
    room.stop_at("dense", "run", false, 3).unwrap();
    for (set, key) in [
        ("optimizer.lr=0.5", "optimizer.lr"),
        ("seed=4", "seed"),
        ("batch.rows=1", "batch.rows"),
        ("schedule.steps=2", "schedule.steps"),
        ("objective.normalise=constant", "objective.normalise"),
        ("data.tokenizer={ train = 301 }", "data.tokenizer.train"),
        ("model.config=moe.json", "model.config"),
    ] {
        let error = room.run("dense", "run", true, &[set]).unwrap_err();
        assert!(matches!(error, Error::Resume { .. }) && error.is_input(), "{error}");
        assert!(error.to_string().contains(key), "{set}: {error}");
    }
    room.run("dense", "run", true, &[]).unwrap();
}

#[test]
fn changed_data_is_refused() {
    let room = Room::new(3000);
    room.stop_at("dense", "run", false, 3).unwrap();
    let original = std::fs::read_to_string(room.path("train.txt")).unwrap();
    let same_length = original.replacen(' ', "x", 1);
    for changed in [format!("{original} and more"), original[..1000].to_owned(), same_length] {
        std::fs::write(room.path("train.txt"), changed).unwrap();
        let error = room.run("dense", "run", true, &[]).unwrap_err();
        assert!(matches!(error, Error::Resume { .. }) && error.is_input(), "{error}");
    }
    std::fs::write(room.path("train.txt"), original).unwrap();
    room.run("dense", "run", true, &[]).unwrap();
}

#[test]
fn a_mixture_is_drawn_by_its_weights_and_goes_on_where_it_stopped() {
    let room = Room::new(3000);
    let recipe = std::fs::read_to_string(room.path("dense.toml")).unwrap();
    let mixed = "\n[[data.mixture]]\nfiles = [\"held_out.txt\"]\nweight = 0.5\n";
    std::fs::write(room.path("mixed.toml"), recipe + mixed).unwrap();
    room.run("mixed", "whole", false, &[]).unwrap();
    let state = std::fs::read_to_string(room.path("whole/checkpoint-8/training_state/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let drawn: Vec<u64> = serde_json::from_value(state["loader"]["drawn"].clone()).unwrap();
    // Two rows from one for each from the other.
    assert!(drawn.iter().sum::<u64>() == 32 && (20..=23).contains(&drawn[0]), "{drawn:?}");
    room.stop_at("mixed", "parts", false, 5).unwrap();
    room.run("mixed", "parts", true, &[]).unwrap();
    assert_same(&room.path("whole/checkpoint-8"), &room.path("parts/checkpoint-8"));
    for (key, says) in
        [("weight = 0", "data.mixture.weight"), ("files = []", "data.mixture.files"), ("wieght = 1", "wieght")]
    {
        let mixed = format!("\n[[data.mixture]]\nfiles = [\"held_out.txt\"]\nweight = 0.5\n{key}\n");
        let text = std::fs::read_to_string(room.path("dense.toml")).unwrap();
        // The key given last takes the place of one given before.
        let name = key.split(' ').next().unwrap();
        let mixed: String = mixed
            .lines()
            .filter(|line| !line.starts_with(name) || *line == key)
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(room.path("bad.toml"), text + "\n" + &mixed).unwrap();
        let error = room.recipe("bad", &[]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(says), "{key}: {error}");
    }
}
