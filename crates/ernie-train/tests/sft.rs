//! Fine-tuning on conversations: from a run's own checkpoint, stopped and not, and on what people's files hold.

mod common;

use common::{Room, assert_same, copy};
use ernie_train::observe::read_metrics;

const RECIPE: &str = r#"
[model]
weights = "base"
[data]
train = ["chats.jsonl"]
held_out = ["chats.jsonl"]
tokenizer = "base"
[batch]
rows = 2
seq_len = 48
[objective]
kind = "sft"
[optimizer]
lr = 0.02
[schedule]
steps = 40
warmup = 2
[checkpoint]
every = 10
keep = 0
[evaluation]
every = 40
"#;

const CHATS: &str = r#"{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "b?"}, {"role": "assistant", "content": "no"}]}
{"instruction": "c?", "input": "", "output": "yes yes"}

{"conversations": [{"from": "human", "value": "d?"}, {"from": "gpt", "value": "no no"}]}
{"src": ["e?"], "tgt": ["yes no"]}
{"instruction": "a very long question indeed, which does not fit into a row of so few tokens whatever one does about it, so that no answer is left", "output": "lost"}
"#;

/// A room with a base model to go on from, and a recipe over `chats`.
fn room(chats: &str) -> Room {
    let room = Room::new(3000);
    room.run("dense", "base", false, &["schedule.steps=1"]).unwrap();
    std::fs::write(room.path("chats.jsonl"), chats).unwrap();
    std::fs::write(room.path("sft.toml"), RECIPE).unwrap();
    room
}

#[test]
fn answers_are_learned_and_questions_are_not() {
    let room = room(CHATS);
    // A tokenizer may be named by its file.
    let file = format!("data.tokenizer=\"{}\"", room.path("base/checkpoint-1/tokenizer.json").display());
    let mut trainer = room.trainer("sft", "tuned", false, &[&file]).unwrap();
    assert!(trainer.decoder().config().vocab_size > 0);
    let finished = trainer.run(&mut [], &std::sync::atomic::AtomicBool::new(false)).unwrap();
    let metrics = read_metrics(&room.path("tuned")).unwrap();
    assert!(metrics[39].loss < 0.2 * metrics[0].loss, "{} {}", metrics[0].loss, metrics[39].loss);
    // Six answers: three, two, seven, five and six bytes, each with what ends it.
    let held_out = finished.evaluation.unwrap();
    assert!(held_out.text_bytes > 23 && held_out.tokens >= 10 && held_out.tokens < 48, "{held_out:?}");
}

#[test]
fn stopped_is_not_stopped() {
    let room = room(CHATS);
    for kind in ["f32", "bf16"] {
        let compute = format!("precision.compute=\"{kind}\"");
        let (whole, parts) = (format!("whole-{kind}"), format!("parts-{kind}"));
        room.run("sft", &whole, false, &[&compute]).unwrap();
        std::fs::create_dir_all(room.path(&parts)).unwrap();
        for at in [10, 20, 30] {
            // A copy of the run as it was when it stopped.
            let from = room.path(&format!("{whole}/checkpoint-{at}"));
            if !from.exists() {
                continue;
            }
            copy(&from, &room.path(&format!("{parts}/checkpoint-{at}")));
            room.run("sft", &parts, true, &[&compute]).unwrap();
            assert_same(&room.path(&format!("{whole}/checkpoint-40")), &room.path(&format!("{parts}/checkpoint-40")));
        }
    }
}

#[test]
fn mistakes_name_the_line() {
    for (chats, says) in [
        ("{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"a\"}\n", "chats.jsonl:2"),
        ("{\"text\": \"a\"}\n", "`messages`"),
        ("[{\"instruction\": \"a\", \"output\": \"b\"}]\n", "one object a line"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n", "nothing to learn"),
        ("\n\n", "empty"),
        ("\u{feff}{\"messages\": \n", "chats.jsonl:1"),
    ] {
        let message = room(chats).trainer("sft", "out", false, &[]).err().map(|error| error.to_string());
        let message = message.unwrap_or_default();
        assert!(message.contains(says), "{chats:?}: {message}");
    }
    let room = room(CHATS);
    for (set, says) in [
        ("data.tokenizer={ train = 300 }", "marks of turns"),
        ("data.train=[\"bundled\"]", "no conversations"),
        ("data.format=\"parquet\"", "JSONL"),
    ] {
        let message = room.trainer("sft", "out", false, &[set]).err().map(|error| error.to_string());
        assert!(message.as_deref().is_some_and(|message| message.contains(says)), "{set}: {message:?}");
    }
}
