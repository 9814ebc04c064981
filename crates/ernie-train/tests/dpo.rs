//! Preferences: the better answer gains on the worse, beside a reference that stays; stopped and not; what people's files hold.

mod common;

use common::{Room, assert_same, copy};
use ernie_train::observe::{MetricsLine, read_metrics};

const RECIPE: &str = r#"
[model]
weights = "base"
[data]
train = ["pairs.jsonl"]
held_out = ["pairs.jsonl"]
tokenizer = "base"
[batch]
rows = 2
seq_len = 64
[objective]
kind = "dpo"
[optimizer]
lr = 0.005
weight_decay = 0.0
[schedule]
steps = 30
warmup = 2
[checkpoint]
every = 10
keep = 0
[evaluation]
every = 30
"#;

const PAIRS: &str = r#"{"prompt": [{"role": "user", "content": "a?"}], "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no no"}]}
{"instruction": "b?", "input": "", "chosen": "yes yes", "rejected": "no"}
{"chosen": "\n\nHuman: c?\n\nAssistant: yes", "rejected": "\n\nHuman: c?\n\nAssistant: no"}

{"conversations": [{"from": "human", "value": "d?"}], "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no no no"}}
{"prompt": "e", "chosen": " a long answer indeed, which does not fit into a row of so few tokens whatever one does about it", "rejected": " no"}
"#;

fn room(pairs: &str) -> Room {
    let room = Room::new(3000);
    room.run("dense", "base", false, &["schedule.steps=2"]).unwrap();
    std::fs::write(room.path("pairs.jsonl"), pairs).unwrap();
    std::fs::write(room.path("dpo.toml"), RECIPE).unwrap();
    room
}

fn run(room: &Room, out: &str, overrides: &[&str]) -> Vec<MetricsLine> {
    room.run("dpo", out, false, overrides).unwrap();
    read_metrics(&room.path(out)).unwrap()
}

#[test]
fn the_better_answer_gains_by_every_loss() {
    let room = room(PAIRS);
    for (kind, beta) in [("sigmoid", "0.1"), ("ipo", "0.5"), ("simpo", "2.0")] {
        let set = [format!("objective.preference={kind}"), format!("objective.beta={beta}")];
        let metrics = run(&room, kind, &[&set[0], &set[1]]);
        let (first, last) = (&metrics[0], &metrics[29]);
        assert!(last.loss < first.loss && last.margin > first.margin, "{kind}: {first:?} {last:?}");
        assert!(last.val_accuracy == Some(1.0) && last.val_likelier.is_some(), "{kind}: {last:?}");
        assert!(last.val_bits_per_byte.is_none());
        if kind == "sigmoid" {
            // Where nothing has been learned yet, the model is its own reference.
            assert!((first.loss - std::f64::consts::LN_2).abs() < 1e-6 && first.margin == Some(0.0), "{first:?}");
        }
        assert_eq!(room.path(kind).join("reference.safetensors").exists(), kind != "simpo");
    }
}

#[test]
fn stopped_is_not_stopped_with_and_without_the_kept_reference() {
    let room = room(PAIRS);
    for (name, set) in [("whole", "adapter.rank=0"), ("adapter", "adapter.rank=2")] {
        run(&room, name, &[set]);
        for kept in [true, false] {
            let parts = format!("{name}-{kept}");
            std::fs::create_dir_all(room.path(&parts)).unwrap();
            copy(&room.path(&format!("{name}/checkpoint-10")), &room.path(&format!("{parts}/checkpoint-10")));
            if kept {
                let file = "reference.safetensors";
                std::fs::copy(room.path(name).join(file), room.path(&parts).join(file)).unwrap();
            }
            room.run("dpo", &parts, true, &[set]).unwrap();
            assert_same(&room.path(&format!("{name}/checkpoint-30")), &room.path(&format!("{parts}/checkpoint-30")));
        }
    }
}

#[test]
fn mistakes_name_the_line_and_what_does_not_fit_is_noted() {
    for (pairs, says) in [
        ("{\"instruction\": \"a\", \"chosen\": \"b\"}\n", "pairs.jsonl:1"),
        ("{\"instruction\": \"a\", \"output\": \"b\"}\n", "`chosen` and `rejected`"),
        ("{\"chosen\": \"a\", \"rejected\": \"b\"}\n", "whole conversation"),
    ] {
        let error = room(pairs).run("dpo", "run", false, &[]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(says), "{error}");
    }
    let room = room(PAIRS);
    let error = room.run("dpo", "run", false, &["objective.beta=0"]).unwrap_err();
    assert!(error.to_string().contains("objective.beta"), "{error}");
    let trainer = room.trainer("dpo", "run", false, &[]).unwrap();
    drop(trainer);
    assert!(room.path("run/reference.safetensors").exists());
}
