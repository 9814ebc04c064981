//! Classification: the head's slopes, that labels are learned, one micro-batch and many, stopped and not, adapters, and what people's files hold.

mod common;

use std::path::Path;

use common::{Room, assert_same, copy};
use ernie_data::Batch;
use ernie_data::labelled::ids;
use ernie_data::tokenizer::Tokenizer;
use ernie_files::Checkpoint;
use ernie_model::decoder::likeliest;
use ernie_model::weights::{Kept, SaveAs, read_adapter};
use ernie_model::{Decoder, ModelSource, Tokens, WeightsAs, load, load_trainable};
use ernie_nn::{Width, no_grad};
use ernie_train::observe::{MetricsLine, read_metrics};
use ernie_train::recipe::{Objective, ObjectiveKind};
use ernie_train::step::accumulate;

const RECIPE: &str = r#"
seed = 5
[model]
weights = "base"
[data]
train = ["train.jsonl"]
held_out = ["held_out.jsonl"]
tokenizer = "base"
[batch]
rows = 4
seq_len = 32
[objective]
kind = "classify"
[optimizer]
lr = 0.01
weight_decay = 0.01
[schedule]
steps = 90
warmup = 5
[checkpoint]
every = 30
keep = 0
[evaluation]
every = 30
"#;

/// Which word a text holds says its label; the rest says nothing. No text stands twice.
fn texts(from: usize, to: usize) -> String {
    let words = [("bad", ["no", "dull"]), ("good", ["yes", "fine"]), ("so", ["well", "hm"])];
    let line = |at: usize| {
        let (label, words) = words[at % 3];
        let filler = |by: usize| char::from(b'a' + (at * by % 26) as u8);
        let word = words[at / 3 % 2];
        format!("{{\"text\": \"{} {word} {}{}\", \"label\": \"{label}\"}}\n", filler(7), filler(3), at % 10)
    };
    (from..to).map(line).collect()
}

fn room(kind: &str) -> Room {
    let room = Room::new(3000);
    room.run(kind, "base", false, &["schedule.steps=2"]).unwrap();
    std::fs::write(room.path("train.jsonl"), texts(0, 240)).unwrap();
    std::fs::write(room.path("held_out.jsonl"), texts(240, 330)).unwrap();
    std::fs::write(room.path("classify.toml"), RECIPE).unwrap();
    room
}

fn metrics(room: &Room, out: &str, set: &[&str]) -> Vec<MetricsLine> {
    room.run("classify", out, false, set).unwrap();
    read_metrics(&room.path(out)).unwrap()
}

fn model(folder: &Path, form: WeightsAs) -> Decoder {
    load(&ModelSource::Folder(folder.to_owned()), form).unwrap().decoder
}

/// Logits of one text.
fn logits(decoder: &Decoder, folder: &Path, text: &str) -> Vec<f32> {
    let (ids, _) = ids(text, &Tokenizer::from_folder(folder).unwrap(), 64).unwrap();
    let last = ids.len() - 1;
    no_grad(|| decoder.label_logits(&decoder.hidden(&Tokens::sequence(ids), None, &mut ()).unwrap(), &[last])).unwrap()
}

#[track_caller]
fn close(a: &[f32], b: &[f32], within: f32) {
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    assert!(a.len() == b.len() && apart <= within, "{apart}");
}

/// Rows of two texts each, of which the target behind the last token is a label of three.
fn rows(count: usize) -> Vec<Batch> {
    let row = |index: usize| {
        let cut = 5 + index % 4;
        let id = |at: usize| ((index * 31 + at * 17) % 290) as u32;
        let mut targets = vec![-100; 16];
        targets[cut - 2] = (index % 3) as i64;
        // Not every row has as many.
        if !index.is_multiple_of(3) {
            targets[13] = ((index + 1) % 3) as i64;
        }
        let places = vec![ernie_data::packing::Place { source: 0, row: index as u32 }];
        Batch { ids: (0..16).map(id).collect(), targets, lengths: vec![cut, 16 - cut], rows: 1, seq_len: 16, places }
    };
    (0..count).map(row).collect()
}

fn join(rows: &[Batch]) -> Batch {
    let mut whole = Batch::new(rows[0].seq_len);
    for row in rows {
        whole.ids.extend(&row.ids);
        whole.targets.extend(&row.targets);
        whole.lengths.extend(&row.lengths);
        whole.rows += 1;
        whole.places.extend(&row.places);
    }
    whole
}

fn objective() -> Objective {
    Objective { kind: ObjectiveKind::Classify, ..Objective::default() }
}

#[test]
fn slopes_are_differences() {
    let room = room("dense");
    let trainer = room.trainer("classify", "run", false, &[]).unwrap();
    let decoder = trainer.decoder();
    let batch = [join(&rows(4))];
    let loss = || {
        decoder.parameters().iter().for_each(|parameter| parameter.zero_grad());
        accumulate(decoder, &batch, &objective()).unwrap()
    };
    let whole = loss();
    assert_eq!((whole.units, whole.classified.unwrap().texts), (6, 6));
    assert!((whole.loss - 3.0_f64.ln()).abs() < 0.5, "{}", whole.loss);
    for name in ["score.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"] {
        let parameter = decoder.parameters().into_iter().find(|parameter| parameter.name() == name).unwrap();
        loss();
        let (weights, slopes) = (parameter.to_vec().unwrap(), parameter.grad_vec().unwrap());
        for at in (0..weights.len()).step_by(weights.len() / 7) {
            let moved = |by: f32| {
                let mut moved = weights.clone();
                moved[at] += by;
                parameter.set(&moved).unwrap();
                loss().loss
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(slopes[at])).abs() < 1e-4 + 0.02 * slope.abs(),
                "{name} {at}: {slope} {}",
                slopes[at]
            );
        }
        parameter.set(&weights).unwrap();
    }
}

#[test]
fn one_micro_batch_of_eight_rows_is_eight_of_one() {
    for kind in ["dense", "moe"] {
        for set in [&[][..], &["precision.compute=bf16"], &["adapter.rank=2"]] {
            let room = room(kind);
            let trainer = room.trainer("classify", "run", false, set).unwrap();
            let decoder = trainer.decoder();
            let rows = rows(8);
            let gradients = |batches: &[Batch]| {
                decoder.trained().iter().for_each(|parameter| parameter.zero_grad());
                let loss = accumulate(decoder, batches, &objective()).unwrap();
                (
                    loss,
                    decoder.trained().iter().map(|p| (p.name().to_owned(), p.grad_vec().unwrap())).collect::<Vec<_>>(),
                )
            };
            let (whole, whole_grads) = gradients(&[join(&rows)]);
            let (sum, sum_grads) = gradients(&rows);
            assert_eq!((whole.units, whole.classified), (sum.units, sum.classified));
            assert!((whole.loss - sum.loss).abs() <= 1e-6 * whole.loss);
            for ((name, a), (_, b)) in whole_grads.iter().zip(&sum_grads) {
                let largest = a.iter().fold(1e-12_f32, |most, g| most.max(g.abs()));
                close(a, b, 1e-5 * largest);
                assert!(name != "score.weight" || largest > 1e-3);
            }
        }
    }
}

#[test]
fn labels_are_learned_and_come_back_from_the_disk() {
    for (kind, set) in [("dense", &[][..]), ("moe", &[]), ("dense", &["precision.compute=bf16"])] {
        let room = room(kind);
        let lines = metrics(&room, "run", set);
        let last = lines.last().unwrap();
        assert!(last.val_accuracy > Some(0.95) && last.val_macro_f1 > Some(0.95), "{kind} {set:?}: {last:?}");
        assert!(last.val_bits_per_byte.is_none() && lines[0].accuracy.is_some() && lines[0].val_accuracy.is_none());
        assert!((lines[0].loss - 3.0_f64.ln()).abs() < 0.3 && last.loss < 0.3, "{kind}: {:?}", lines[0]);

        let folder = room.path("run/checkpoint-90");
        let config: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let class =
            if kind == "moe" { "Ernie4_5_MoeForSequenceClassification" } else { "Ernie4_5ForSequenceClassification" };
        assert_eq!(config["architectures"][0], class);
        assert_eq!(config["id2label"], serde_json::json!({ "0": "bad", "1": "good", "2": "so" }));
        assert_eq!((&config["label2id"]["so"], &config["num_labels"]), (&2.into(), &3.into()));
        assert_eq!(config["problem_type"], "single_label_classification");
        // A head for words of its own is what it was.
        if kind == "moe" {
            let head = |at: &str| Checkpoint::open(&room.path(at)).unwrap().bytes("lm_head.weight").unwrap().to_vec();
            assert!(head("base/checkpoint-2") == head("run/checkpoint-90"));
        }

        // Read, written and read again it says the same; in other formats nearly so.
        let one = model(&folder, WeightsAs::F32);
        let all = |decoder: &Decoder| -> Vec<f32> {
            ["a fine b1", "q no z", "hm"].iter().flat_map(|text| logits(decoder, &folder, text)).collect()
        };
        let trainable = load_trainable(&ModelSource::Folder(folder.clone()), Width::F32).unwrap().decoder;
        std::fs::create_dir(room.path("again")).unwrap();
        trainable.save_into(&room.path("again"), &[] as &[Kept], SaveAs::F32).unwrap();
        assert_eq!(all(&one), all(&model(&room.path("again"), WeightsAs::F32)));
        assert_eq!(all(&one).chunks(3).map(likeliest).collect::<Vec<_>>(), [1, 0, 2]);
        for (form, within) in [(WeightsAs::Native, 1e-4), (WeightsAs::Bf16, 0.5), (WeightsAs::Int8, 0.5)] {
            close(&all(&one), &all(&model(&folder, form)), within);
        }
        assert_eq!(all(&model(&folder, WeightsAs::Int4)).chunks(3).map(likeliest).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!(one.classifier().unwrap().labels(), ["bad", "good", "so"]);
    }
}

#[test]
fn stopped_is_not_stopped_and_a_head_goes_on_where_labels_are_the_same() {
    let room = room("moe");
    for (name, set) in [
        ("whole", &["optimizer.ema=0.9"][..]),
        ("adapter", &["adapter.rank=2"]),
        ("int8", &["adapter.rank=2", "adapter.base=int8"]),
    ] {
        room.run("classify", name, false, set).unwrap();
        let parts = format!("{name}-parts");
        copy(&room.path(&format!("{name}/checkpoint-30")), &room.path(&format!("{parts}/checkpoint-30")));
        room.run("classify", &parts, true, set).unwrap();
        assert_same(&room.path(&format!("{name}/checkpoint-90")), &room.path(&format!("{parts}/checkpoint-90")));
    }
    // A classifier is trained further as it is, and with other labels begins anew.
    let first = |out: &str, set: &[&str]| metrics(&room, out, set)[0].loss;
    assert!(first("on", &["model.weights=whole", "optimizer.lr=0"]) < 0.3);
    let renamed = "objective.labels=[\"good\", \"bad\", \"so\"]";
    assert!(first("anew", &["model.weights=whole", "optimizer.lr=0", renamed]) > 0.6);
    // Labels are part of the run.
    let error = room.trainer("classify", "whole", true, &["optimizer.ema=0.9", renamed]).err().unwrap().to_string();
    assert!(error.contains("objective.labels was"), "{error}");
    // Trained on as a model of words it keeps its head untouched.
    room.run("moe", "words", false, &["model.weights=whole", "data.tokenizer=base", "schedule.steps=2"]).unwrap();
    let head = |at: &str| Checkpoint::open(&room.path(at)).unwrap().bytes("score.weight").unwrap().to_vec();
    assert!(head("whole/checkpoint-90") == head("words/checkpoint-2"));
}

#[test]
fn an_adapter_brings_its_head_along() {
    for kind in ["dense", "moe"] {
        let room = room(kind);
        let set = ["adapter.rank=4", "optimizer.lr=0.02", "schedule.steps=120"];
        let last = metrics(&room, "lora", &set).pop().unwrap();
        assert!(last.val_accuracy > Some(0.9), "{kind}: {last:?}");
        let (base, tuned) = (room.path("base/checkpoint-2"), room.path("lora/checkpoint-120"));
        let config = std::fs::read_to_string(tuned.join("adapter/adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(
            (&config["task_type"], &config["modules_to_save"]),
            (&"SEQ_CLS".into(), &serde_json::json!(["score"]))
        );
        let file = Checkpoint::open(&tuned.join("adapter/adapter_model.safetensors")).unwrap();
        assert_eq!(file.info("base_model.model.score.weight").unwrap().shape, [3, 16]);

        let merged = model(&tuned, WeightsAs::F32);
        let mut beside = model(&base, WeightsAs::F32);
        read_adapter(&tuned.join("adapter"), &mut beside).unwrap();
        assert_eq!(beside.config().labels, ["bad", "good", "so"]);
        for text in ["a fine b1", "q no z", "hm"] {
            close(&logits(&beside, &base, text), &logits(&merged, &base, text), 1e-4);
        }
        // PEFT lists the head under two names, and knows nothing of labels.
        let path = tuned.join("adapter/adapter_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for (names, says) in [("\"classifier\", \"score\"", ""), ("\"lm_head\"", "modules_to_save: \"lm_head\"")] {
            let changed: String =
                text.split_whitespace().collect::<String>().replace("[\"score\"]", &format!("[{names}]"));
            std::fs::write(&path, changed).unwrap();
            let outcome = read_adapter(&tuned.join("adapter"), &mut model(&base, WeightsAs::F32));
            let message = outcome.err().map_or(String::new(), |error| error.to_string());
            assert!(message.contains(says) && message.is_empty() == says.is_empty(), "{message}");
        }
        // An adapter without a head announces none.
        room.run(
            "moe",
            "plain",
            false,
            &["model.weights=base", "data.tokenizer=base", "adapter.rank=2", "schedule.steps=1"],
        )
        .unwrap();
        let config = std::fs::read_to_string(room.path("plain/checkpoint-1/adapter/adapter_config.json")).unwrap();
        assert!(config.contains("CAUSAL_LM"), "{config}");
    }
}

#[test]
fn mistakes_name_the_line_and_what_was_expected() {
    let room = room("dense");
    let says = |train: &str, held_out: &str, set: &[&str]| {
        std::fs::write(room.path("train.jsonl"), train).unwrap();
        std::fs::write(room.path("held_out.jsonl"), held_out).unwrap();
        let _ = std::fs::remove_dir_all(room.path("refused"));
        let error = room.trainer("classify", "refused", false, set).err().expect("it is refused");
        assert!(error.is_input(), "{error}");
        error.to_string()
    };
    let good = "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"b\", \"label\": 1}\n";
    for (train, held_out, set, expected) in [
        ("{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\"}\n", good, &[][..], "train.jsonl:2: no `label`"),
        ("{\"text\": \"\", \"label\": 1}\n", good, &[], "train.jsonl:1: `text` is empty"),
        (
            "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": 1}\n",
            good,
            &[],
            "all texts have the label \"1\"",
        ),
        (
            good,
            "{\"text\": \"a\", \"label\": 0}\n{\"text\": \"b\", \"label\": \"x\"}\n",
            &[],
            "held_out.jsonl:2: the label \"x\" is not known, expected one of \"0\", \"1\"",
        ),
        (good, good, &["objective.labels=[\"a\"]"], "objective.labels: 1 labels"),
        (good, good, &["objective.labels=[\"a\", \"a\"]"], "stands twice"),
        (
            "{\"text\": \"a\", \"label\": \"z\"}\n",
            good,
            &["objective.labels=[\"a\", \"b\"]"],
            "train.jsonl:1: the label \"z\"",
        ),
        (good, good, &["objective.kind=sft", "objective.labels=[\"a\", \"b\"]"], "objective.labels: nothing asks"),
        (good, good, &["data.train=bundled"], "texts with labels"),
    ] {
        let message = says(train, held_out, set);
        assert!(message.contains(expected), "{message}");
    }
    // Numbers are places in a list that is given, and a long text loses its end with a note.
    std::fs::write(room.path("train.jsonl"), format!("{good}{{\"text\": \"{}\", \"label\": 1}}\n", "long ".repeat(40)))
        .unwrap();
    std::fs::write(room.path("held_out.jsonl"), good).unwrap();
    let trainer = room.trainer("classify", "named", false, &["objective.labels=[\"no\", \"yes\"]"]).unwrap();
    assert_eq!(trainer.decoder().config().labels, ["no", "yes"]);
    let mut notes = Notes::default();
    let mut trainer = trainer;
    trainer.run(&mut [&mut notes], &std::sync::atomic::AtomicBool::new(true)).unwrap();
    assert!(notes.0.iter().any(|note| note.starts_with("1 texts do not fit 32 tokens")), "{:?}", notes.0);
}

#[derive(Default)]
struct Notes(Vec<String>);

impl ernie_train::Observer for Notes {
    fn started(&mut self, run: &ernie_train::Started) -> ernie_train::Result<()> {
        self.0.clone_from(&run.notes);
        Ok(())
    }
}
