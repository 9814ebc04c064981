//! Adapters: they begin as nothing, change the model alone, come back from a checkpoint, and are what PEFT would read.

mod common;

use std::path::Path;

use common::{Room, assert_same, copy};
use ernie_files::Checkpoint;
use ernie_model::weights::read_adapter;
use ernie_model::{Decoder, ModelSource, Tokens, WeightsAs, load, load_trainable};
use ernie_nn::Width;
use ernie_train::observe::read_metrics;

const RECIPE: &str = r#"
seed = 5
[model]
weights = "base"
[data]
train = ["train.txt"]
tokenizer = "base"
documents = "line"
[batch]
rows = 4
seq_len = 16
[adapter]
rank = 4
alpha = 8
[optimizer]
lr = 0.05
[schedule]
steps = 12
warmup = 1
[checkpoint]
every = 4
keep = 0
"#;

fn room(kind: &str) -> Room {
    let room = Room::new(3000);
    room.run(kind, "base", false, &["schedule.steps=2"]).unwrap();
    std::fs::write(room.path("lora.toml"), RECIPE).unwrap();
    room
}

fn model(folder: &Path) -> Decoder {
    load_trainable(&ModelSource::Folder(folder.to_owned()), Width::F32).unwrap().decoder
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    decoder.forward_logits(&Tokens::sequence(vec![5, 7, 200, 9, 31]), None, &[0, 2, 4]).unwrap()
}

#[track_caller]
fn close(a: &[f32], b: &[f32], within: f32) {
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    assert!(a.len() == b.len() && apart <= within, "{apart}");
}

#[test]
fn an_adapter_begins_as_nothing_and_learns_beside_a_model_that_stays() {
    for kind in ["dense", "moe"] {
        let room = room(kind);
        room.run("lora", "lora", false, &[]).unwrap();
        room.run("lora", "whole", false, &["adapter.rank=0"]).unwrap();
        let losses = |out: &str| read_metrics(&room.path(out)).unwrap().iter().map(|m| m.loss).collect::<Vec<_>>();
        let (lora, whole) = (losses("lora"), losses("whole"));
        assert_eq!(lora[0], whole[0], "{kind}: nothing is changed yet");
        assert!(lora[11] < lora[0] - 0.05 && lora[11] != whole[11], "{kind}: {lora:?}");

        // What is not adapted is as it was; what is adapted is not.
        let (base, tuned) = (room.path("base/checkpoint-2"), room.path("lora/checkpoint-12"));
        let (before, after) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&tuned).unwrap());
        for info in before.tensors() {
            let adapted = info.name.contains("_proj.") && !info.name.contains(".experts.");
            let same = before.bytes(&info.name).unwrap()[..] == after.bytes(&info.name).unwrap()[..];
            assert_eq!(same, !adapted, "{kind}: {}", info.name);
        }

        // The change alone, read back beside the base, is the model with the change in it.
        let mut beside = model(&base);
        let untouched = logits(&beside);
        let adaptation = read_adapter(&tuned.join("adapter"), &mut beside).unwrap();
        assert_eq!((adaptation.rank, adaptation.alpha, adaptation.scale()), (4, 8.0, 2.0));
        let merged = logits(&model(&tuned));
        close(&logits(&beside), &merged, 1e-4);
        assert!(untouched.iter().zip(&merged).any(|(a, b)| (a - b).abs() > 1e-2), "{kind}: the change shows");
        // Moments are those of the adapters alone.
        let moments = Checkpoint::open(&tuned.join("training_state/moments.safetensors")).unwrap();
        assert!(moments.tensors().all(|info| info.name.contains(".lora_")), "{kind}");
    }
}

#[test]
fn routed_experts_have_adapters_where_they_are_asked_for() {
    let room = room("moe");
    room.run("lora", "lora", false, &["adapter.experts=true"]).unwrap();
    room.run("lora", "without", false, &[]).unwrap();
    let losses = |out: &str| read_metrics(&room.path(out)).unwrap().iter().map(|m| m.loss).collect::<Vec<_>>();
    // The experts one by one give what the fused ones give, and then learn.
    let (with, without) = (losses("lora"), losses("without"));
    assert!((with[0] - without[0]).abs() < 1e-6 * without[0] && with[11] != without[11], "{with:?} {without:?}");
    let (base, tuned) = (room.path("base/checkpoint-2"), room.path("lora/checkpoint-12"));
    let (before, after) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&tuned).unwrap());
    let expert = "model.layers.1.mlp.experts.0.down_proj.weight";
    assert!(before.bytes(expert).unwrap()[..] != after.bytes(expert).unwrap()[..]);
    let adapter = Checkpoint::open(&tuned.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter.tensors().filter(|info| info.name.contains(".mlp.experts.")).count(), 2 * 4 * 3 * 2);
    let mut beside = model(&base);
    assert!(read_adapter(&tuned.join("adapter"), &mut beside).unwrap().experts);
    close(&logits(&beside), &logits(&model(&tuned)), 1e-4);
    // Resumed it is the same run; beside the experts of an engine, too.
    copy(&room.path("lora/checkpoint-4"), &room.path("parts/checkpoint-4"));
    room.run("lora", "parts", true, &["adapter.experts=true"]).unwrap();
    assert_same(&tuned, &room.path("parts/checkpoint-12"));
    let mut packed = load(&ModelSource::Folder(base), WeightsAs::F32).unwrap().decoder;
    read_adapter(&tuned.join("adapter"), &mut packed).unwrap();
    close(&logits(&packed), &logits(&model(&tuned)), 1e-4);
}

#[test]
fn beside_integers_an_adapter_learns_what_it_learns_beside_floats() {
    for kind in ["dense", "moe"] {
        let room = room(kind);
        for (base, form, within) in [("int8", WeightsAs::Int8, 0.02), ("int4", WeightsAs::Int4, 0.1)] {
            let set = [format!("adapter.base={base}"), "adapter.experts=true".to_owned()];
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            let floats = format!("floats-{base}");
            room.run("lora", base, false, &set).unwrap();
            room.run("lora", &floats, false, &["adapter.experts=true"]).unwrap();
            let losses = |out: &str| read_metrics(&room.path(out)).unwrap().iter().map(|m| m.loss).collect::<Vec<_>>();
            let (ours, theirs) = (losses(base), losses(&floats));
            assert!(ours[11] < ours[0] - 0.05, "{kind} {base}: {ours:?}");
            let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < within, "{kind} {base}: {apart}");

            // The checkpoint is the adapter alone, and the model that it was trained beside is itself again with it.
            let tuned = room.path(base).join("checkpoint-12");
            assert!(!tuned.join("config.json").exists() && tuned.join("tokenizer.json").exists());
            let mut beside = load(&ModelSource::Folder(room.path("base/checkpoint-2")), form).unwrap().decoder;
            read_adapter(&tuned.join("adapter"), &mut beside).unwrap();
            let mut merged = model(&room.path("base/checkpoint-2"));
            read_adapter(&tuned.join("adapter"), &mut merged).unwrap();
            close(&logits(&beside), &logits(&merged), if base == "int8" { 0.1 } else { 0.5 });

            copy(&room.path(base).join("checkpoint-4"), &room.path("parts").join(base).join("checkpoint-4"));
            room.run("lora", &format!("parts/{base}"), true, &set).unwrap();
            assert_same(&tuned, &room.path("parts").join(base).join("checkpoint-12"));
        }
        let says =
            |set: &[&str]| room.trainer("lora", "refused", false, set).err().map_or(String::new(), |e| e.to_string());
        assert!(says(&["adapter.base=int8", "precision.compute=bf16"]).contains("precision.compute"));
        assert!(says(&["adapter.base=int8", "adapter.rank=0"]).contains("adapter"));
        assert!(says(&["adapter.base=int3"]).contains("adapter.base"));
    }
}

/// The base was trained on, so that its newest checkpoint is another model of the same shape: also where its matrices are integers.
#[test]
fn another_base_of_integers_is_refused() {
    let room = room("dense");
    let base = "adapter.base=int8";
    room.run("lora", "lora", false, &["schedule.steps=4", base]).unwrap();
    room.run("dense", "base", true, &["schedule.steps=4"]).unwrap();
    let message = room.trainer("lora", "lora", true, &[base]).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("not those that the adapter was trained beside"), "{message}");
}

#[test]
fn stopped_and_resumed_is_not_stopped() {
    for kind in ["f32", "bf16"] {
        let room = room("dense");
        let compute = format!("precision.compute=\"{kind}\"");
        room.run("lora", "whole", false, &[&compute]).unwrap();
        for at in [4, 8] {
            let parts = format!("parts-{at}");
            copy(&room.path(&format!("whole/checkpoint-{at}")), &room.path(&format!("{parts}/checkpoint-{at}")));
            room.run("lora", &parts, true, &[&compute]).unwrap();
            assert_same(&room.path("whole/checkpoint-12"), &room.path(&format!("{parts}/checkpoint-12")));
        }
    }
}

#[test]
fn another_base_is_refused() {
    let room = room("dense");
    room.run("lora", "lora", false, &["schedule.steps=4"]).unwrap();
    // The base was trained on, so its newest checkpoint is another model of the same shape.
    room.run("dense", "base", true, &["schedule.steps=4"]).unwrap();
    let message = room.trainer("lora", "lora", true, &[]).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("not those that the adapter was trained beside") && message.contains("base"), "{message}");
}

#[test]
fn scale_and_rates_are_what_they_are_called() {
    let room = room("dense");
    let run = |out: &str, set: &[&str]| {
        room.run("lora", out, false, set).unwrap();
        read_metrics(&room.path(out)).unwrap()[11].loss
    };
    let plain = run("plain", &[]);
    // alpha / sqrt(4) with half of alpha is alpha / 4.
    assert_eq!(run("rs", &["adapter.rslora=true", "adapter.alpha=4"]), plain);
    assert_ne!(run("plus", &["adapter.b_lr_ratio=8"]), plain);
    assert_ne!(run("some", &["adapter.targets=[\"q_proj\", \"v_proj\"]"]), plain);
    // A rate of nothing for B leaves the model where it was.
    let stays = run("stays", &["adapter.b_lr_ratio=0"]);
    let losses: Vec<f64> = read_metrics(&room.path("stays")).unwrap().iter().map(|m| m.loss).collect();
    assert!(losses.iter().all(|loss| loss.is_finite()) && stays > plain);
}

#[test]
fn mistakes_are_named() {
    let room = room("dense");
    for (set, says) in [
        (&["adapter.rank=99"][..], "rank 99"),
        (&["adapter.targets=[\"gate\"]"], "\"gate\" is not one of"),
        (&["adapter.targets=[]"], "at least one"),
        (&["adapter.alpha=-1"], "adapter.alpha"),
    ] {
        let message = room.trainer("lora", "out", false, set).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(says), "{set:?}: {message}");
        let _ = std::fs::remove_dir_all(room.path("out"));
    }
    let message = room.trainer("dense", "out", false, &["adapter.rank=2"]).err().map(|e| e.to_string()).unwrap();
    assert!(message.contains("model.weights"), "{message}");

    // An adapter of another model, and a folder that is none.
    room.run("lora", "lora", false, &["schedule.steps=4"]).unwrap();
    let adapter = room.path("lora/checkpoint-4/adapter");
    let other = self::room("moe");
    let mut moe = model(&other.path("base/checkpoint-2"));
    let message = read_adapter(&adapter, &mut moe).unwrap_err().to_string();
    assert!(message.contains("missing") || message.contains("another model"), "{message}");
    let mut dense = model(&room.path("base/checkpoint-2"));
    assert!(read_adapter(&room.path("base"), &mut dense).unwrap_err().to_string().contains("adapter_config.json"));
    for (from, to, says) in [
        ("\"LORA\"", "\"IA3\"", "peft_type"),
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"r\": 4", "\"r\": 0", "rank 0"),
        ("\"r\": 4", "\"r\": 2", "another model"),
        ("\"r\": 4", "\"r\": -4", "invalid"),
    ] {
        let config = adapter.join("adapter_config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let mut dense = model(&room.path("base/checkpoint-2"));
        let message = read_adapter(&adapter, &mut dense).unwrap_err().to_string();
        assert!(message.contains(says), "{to}: {message}");
        std::fs::write(&config, text).unwrap();
    }
}
