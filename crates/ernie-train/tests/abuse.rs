//! Bad data, bad settings, broken checkpoints: each ends in one clear line and loses nothing.

mod common;

use std::sync::atomic::AtomicBool;

use common::Room;
use ernie_train::checkpoint::{STATE_FOLDER, VERSION, list, newest};
use ernie_train::{Error, ErrorKind, Outcome};

/// One line, the user's fault, and it names `what`.
fn input_error(error: &Error, what: &str) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Input, "{text}");
    assert!(!text.contains('\n') && text.contains(what), "{text}: expected it to name {what}");
}

fn with_train(text: impl AsRef<[u8]>) -> Room {
    let room = Room::new(1000);
    // The tokenizer is made from other text, so that these tests are about the data.
    std::fs::rename(room.path("train.txt"), room.path("words.txt")).unwrap();
    std::fs::write(room.path("train.txt"), "").unwrap();
    let tokenizer = room.trainer("dense", "tokenizer", false, &["data.train=words.txt"]).unwrap();
    std::fs::create_dir(room.path("bpe")).unwrap();
    tokenizer.tokenizer().save(&room.path("bpe")).unwrap();
    std::fs::write(room.path("train.txt"), text).unwrap();
    room
}

const BPE: &str = "data.tokenizer=bpe";

#[test]
fn empty_data() {
    for text in ["", "\n\n\n", "\u{feff}"] {
        let room = with_train(text);
        input_error(&room.run("dense", "run", false, &[BPE]).unwrap_err(), "train.txt");
    }
    let room = Room::new(1000);
    input_error(&room.run("dense", "run", false, &["data.train=none-*.txt"]).unwrap_err(), "none-*.txt");
}

#[test]
fn one_example_and_a_batch_larger_than_the_data() {
    let room = with_train("One line.\n");
    let finished = room.run("dense", "run", false, &[BPE, "batch.rows=7", "schedule.steps=3"]).unwrap();
    assert_eq!((finished.outcome, finished.step), (Outcome::Complete, 3));
    let room = with_train("a");
    room.run("moe", "run", false, &[BPE, "schedule.steps=2"]).unwrap();
}

#[test]
fn broken_text_is_read_and_noted_and_broken_jsonl_is_refused() {
    let room = with_train(b"good\nb\xffad\n".as_slice());
    room.run("dense", "run", false, &[BPE, "schedule.steps=1"]).unwrap();
    for line in
        [b"{\"text\":\"b\xffad\"}\n".as_slice(), b"{\"text\":3}\n", b"{\"tex\":\"a\"}\n", b"{\"text\":\"a\"\n", b"[]\n"]
    {
        std::fs::write(room.path("bad.jsonl"), line).unwrap();
        let error = room.run("dense", "bad", true, &[BPE, "data.train=bad.jsonl"]).unwrap_err();
        input_error(&error, "bad.jsonl");
    }
}

#[test]
fn all_labels_masked() {
    let room = Room::new(1000);
    let trainer = room.trainer("dense", "run", false, &[]).unwrap();
    let mut batch = ernie_data::Batch::new(4);
    batch.ids = vec![5; 8];
    batch.targets = vec![-100; 8];
    batch.lengths = vec![4, 4];
    batch.rows = 2;
    let objective = &trainer.recipe().objective;
    let error = ernie_train::step::accumulate(trainer.decoder(), &[batch], objective).map(|_| ()).unwrap_err();
    input_error(&error, "masked");
}

#[test]
fn learning_rate_zero_changes_nothing_and_a_huge_one_is_an_error_that_names_the_step() {
    let room = Room::new(2000);
    let mut trainer = room.trainer("moe", "zero", false, &["optimizer.lr=0"]).unwrap();
    let before: Vec<_> = trainer.decoder().parameters().iter().map(|p| p.to_vec().unwrap()).collect();
    trainer.run(&mut [], &AtomicBool::new(false)).unwrap();
    let after: Vec<_> = trainer.decoder().parameters().iter().map(|p| p.to_vec().unwrap()).collect();
    assert!(before == after);

    for lr in ["1e10", "1e37"] {
        let set = format!("optimizer.lr={lr}");
        let sets = [set.as_str(), "schedule.steps=60", "checkpoint.every=1", "schedule.warmup=0"];
        match room.run("moe", &format!("huge-{lr}"), false, &sets) {
            // Norms can hold it: then it is a useless run, but a finite one.
            Ok(finished) => assert_eq!(finished.step, 60),
            Err(error) => {
                assert!(matches!(error, Error::NotFinite { .. }), "{error}");
                input_error(&error, "step");
                // What was saved before is whole.
                if let Some((step, path)) = newest(&room.path(&format!("huge-{lr}"))).unwrap() {
                    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
                    assert!(step < 60);
                }
            }
        }
    }
}

#[test]
fn weights_that_are_not_numbers_stop_the_run_before_anything_changes() {
    let room = Room::new(2000);
    let mut trainer = room.trainer("dense", "run", false, &["checkpoint.every=1"]).unwrap();
    trainer.step().unwrap();
    trainer.save().unwrap();
    let parameter = trainer.decoder().parameters()[0].clone();
    parameter.set(&vec![f32::NAN; parameter.elements()]).unwrap();
    let error = trainer.step().unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 2, .. }), "{error}");
    input_error(&error, "checkpoint-1");
    assert_eq!(trainer.steps_made(), 1);
    // Nor are they saved over what is good.
    std::fs::remove_dir_all(room.path("run/checkpoint-1")).unwrap();
    assert!(matches!(trainer.save(), Err(Error::NotFinite { .. })));
    assert!(list(&room.path("run")).unwrap().is_empty());
}

#[test]
fn the_run_folder_is_new_or_resumed() {
    let room = Room::new(2000);
    std::fs::create_dir(room.path("empty")).unwrap();
    room.run("dense", "empty", false, &["schedule.steps=1"]).unwrap();
    let error = room.run("dense", "empty", false, &["schedule.steps=1"]).unwrap_err();
    assert!(matches!(error, Error::NotEmpty { .. }));
    input_error(&error, "empty");
    // With nothing to resume a run starts at step 0, in a folder that is not there, empty, or half-made.
    room.run("dense", "fresh", true, &["schedule.steps=1"]).unwrap();
    std::fs::create_dir(room.path("half")).unwrap();
    std::fs::write(room.path("half/metrics.jsonl"), "{\"step\":1,\"tokens\":3").unwrap();
    std::fs::create_dir(room.path("half/.checkpoint-4.ernie-tmp-1-0")).unwrap();
    room.run("dense", "half", true, &["schedule.steps=1"]).unwrap();
    assert!(!room.path("half/.checkpoint-4.ernie-tmp-1-0").exists());
    assert_eq!(ernie_train::observe::read_metrics(&room.path("half")).unwrap().len(), 1);
    // A file in the way.
    input_error(&room.run("dense", "train.txt", true, &[]).unwrap_err(), "train.txt");
}

#[test]
fn half_a_checkpoint_is_never_the_newest() {
    let room = Room::new(2000);
    room.run("moe", "run", false, &[]).unwrap();
    let run = room.path("run");
    assert_eq!(list(&run).unwrap().iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 8]);
    let newest_step = || newest(&run).unwrap().map(|(step, _)| step);
    assert_eq!(newest_step(), Some(8));
    // Every file of it in turn is cut short, then gone.
    for (name, bytes) in common::files(&run.join("checkpoint-8")) {
        let path = run.join("checkpoint-8").join(&name);
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(newest_step(), Some(6), "{} cut short", name.display());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(newest_step(), Some(6), "{} gone", name.display());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(newest_step(), Some(8));
    }
    // Names that are not ours, and a file.
    for name in ["checkpoint-", "checkpoint-x", "checkpoint-09", "checkpoint-99999999999999999999999"] {
        std::fs::create_dir(run.join(name)).unwrap();
    }
    std::fs::create_dir(run.join("checkpoint-50")).unwrap();
    std::fs::write(run.join("checkpoint-51"), "").unwrap();
    assert_eq!(newest_step(), Some(8));
    // The run goes on over the half of step 8.
    std::fs::remove_file(run.join("checkpoint-8/model.safetensors")).unwrap();
    room.run("moe", "run", true, &[]).unwrap();
    assert_eq!(newest_step(), Some(8));
}

#[test]
fn a_newer_checkpoint_format_is_an_error() {
    let room = Room::new(2000);
    room.stop_at("dense", "run", false, 2).unwrap();
    let path = room.path("run/checkpoint-2").join(STATE_FOLDER).join("state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let newer = text.replacen(&format!("\"version\": {VERSION}"), &format!("\"version\": {}", VERSION + 1), 1);
    assert_ne!(text, newer);
    std::fs::write(&path, newer).unwrap();
    input_error(&room.run("dense", "run", true, &[]).unwrap_err(), "newer");
    // Even if nothing else in it can be understood.
    std::fs::write(&path, format!("{{\"version\": {}, \"state\": []}}", VERSION + 1)).unwrap();
    input_error(&room.run("dense", "run", true, &[]).unwrap_err(), "newer");
}

#[test]
fn damaged_state_of_the_right_size_is_an_error_or_a_number() {
    let room = Room::new(2000);
    room.stop_at("moe", "run", false, 2).unwrap();
    let training = room.path("run/checkpoint-2").join(STATE_FOLDER);
    for name in ["masters.safetensors", "moments.safetensors"] {
        let path = training.join(name);
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..400).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x15;
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = room.trainer("moe", "run", true, &[]) {
                assert_eq!(error.kind(), ErrorKind::Input, "{name} byte {at}: {error}");
            }
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    room.run("moe", "run", true, &[]).unwrap();
}

#[test]
fn only_the_newest_are_kept() {
    let room = Room::new(2000);
    room.run("dense", "run", false, &["checkpoint.every=2", "checkpoint.keep=2"]).unwrap();
    let steps: Vec<u64> = list(&room.path("run")).unwrap().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [6, 8]);
    let hidden = std::fs::read_dir(room.path("run")).unwrap();
    assert!(hidden.into_iter().all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.')));
}

#[test]
fn weights_in_bf16_resume_from_f32_masters() {
    let room = Room::new(2000);
    let bf16 = "checkpoint.dtype=bf16";
    room.run("moe", "whole", false, &[]).unwrap();
    room.run("moe", "bf16", false, &[bf16]).unwrap();
    let masters =
        |out: &str| std::fs::read(room.path(out).join("checkpoint-8/training_state/masters.safetensors")).unwrap();
    assert!(masters("whole") == masters("bf16"));
    std::fs::remove_dir_all(room.path("bf16/checkpoint-8")).unwrap();
    room.run("moe", "bf16", true, &[bf16]).unwrap();
    assert!(masters("whole") == masters("bf16"));
}

#[test]
fn a_run_is_a_model_to_train_further() {
    let room = Room::new(2000);
    room.run("dense", "first", false, &["schedule.steps=2"]).unwrap();
    let further = ["model.weights=first", "data.tokenizer=first", "optimizer.lr=0", "schedule.steps=1"];
    room.run("dense", "second", false, &further).unwrap();
    let weights = |out: &str| std::fs::read(room.path(out).join("model.safetensors")).unwrap();
    assert!(weights("first/checkpoint-2") == weights("second/checkpoint-1"));
    // Weights and a tokenizer that do not fit.
    input_error(
        &room.run("dense", "third", false, &["model.weights=first", "data.tokenizer=none"]).unwrap_err(),
        "none",
    );
    input_error(
        &room.run("dense", "fourth", false, &["model.weights=baidu/none", "data.tokenizer=first"]).unwrap_err(),
        "ernie pull",
    );
}

#[test]
fn a_line_of_a_gigabyte_is_refused_in_little_memory() {
    let room = Room::new(3000);
    room.run("dense", "base", false, &["schedule.steps=1"]).unwrap();
    let path = room.path("train.jsonl");
    std::fs::write(&path, "{\"instruction\": \"a\", \"output\": \"b\"}\n").unwrap();
    // Without a line break to its end, and without a byte of it on the disk.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let recipe = std::fs::read_to_string(room.path("dense.toml")).unwrap();
    let recipe = recipe.replace("config = \"dense.json\"", "weights = \"base\"").replace("{ train = 300 }", "\"base\"");
    let recipe = recipe.replace("train.txt", "train.jsonl").replace("held_out = [\"held_out.txt\"]", "");
    for kind in ["sft", "dpo"] {
        let text = recipe.replace("[objective]", &format!("[objective]\nkind = \"{kind}\""));
        std::fs::write(room.path("long.toml"), text).unwrap();
        input_error(&room.run("long", kind, false, &[]).unwrap_err(), "train.jsonl:");
    }
}
