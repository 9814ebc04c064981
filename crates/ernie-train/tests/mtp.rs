//! Multi-token prediction: gradients, what a checkpoint holds of it, and what becomes of it in the next run.

mod common;

use common::Room;
use ernie_data::Batch;
use ernie_data::packing::Place;
use ernie_files::Checkpoint;
use ernie_model::{Decoder, ModelConfig, ModelSource, Tokens, WeightsAs};
use ernie_train::Trainer;
use ernie_train::observe::read_metrics;
use ernie_train::recipe::Objective;
use ernie_train::step::accumulate;

const OBJECTIVE: fn() -> Objective = || Objective {
    mtp_weight: 0.7,
    router_balance: 0.0,
    router_z: 0.0,
    router_orthogonal: 0.0,
    ..Objective::default()
};

/// Three documents in two rows, the last too short for any module.
fn batch() -> Batch {
    let ids: Vec<u32> = (0..32).map(|at| 3 + (at * 37 + at * at * 11) % 290).collect();
    let lengths = vec![7, 9, 15, 1];
    let mut targets: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).chain([5]).collect();
    for end in [7, 16, 31] {
        targets[end - 1] = -100;
    }
    targets[3] = -100;
    let places = (0..2).map(|row| Place { source: 0, row }).collect();
    Batch { ids, targets, lengths, rows: 2, seq_len: 16, places }
}

/// What is minimised, from the figures that a step reports.
fn minimised(decoder: &Decoder) -> f64 {
    let loss = accumulate(decoder, &[batch()], &OBJECTIVE()).unwrap();
    loss.loss + OBJECTIVE().mtp_weight * loss.mtp_loss.unwrap()
}

#[test]
fn gradients_are_the_slopes_of_what_is_minimised() {
    let room = Room::new(2000);
    let trainer = room.trainer("dense-mtp", "run", false, &[]).unwrap();
    let decoder = trainer.decoder();
    decoder.parameters().iter().for_each(|parameter| parameter.zero_grad());
    accumulate(decoder, &[batch()], &OBJECTIVE()).unwrap();
    let all: Vec<_> = decoder.parameters().iter().map(|p| (p.clone(), p.grad_vec().unwrap())).collect();
    assert_eq!(all.iter().filter(|(parameter, _)| parameter.name().contains("mtp_")).count(), 2 * 12);
    for (parameter, gradient) in &all {
        // Along its own gradient a parameter shows its slope best above the rounding of f32.
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{} has no gradient", parameter.name());
        let (values, step) = (parameter.to_vec().unwrap(), 3e-3);
        let at = |by: f64| {
            let moved: Vec<f32> =
                values.iter().zip(gradient).map(|(&w, &g)| (f64::from(w) + by * f64::from(g) / norm) as f32).collect();
            parameter.set(&moved).unwrap();
            minimised(decoder)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        parameter.set(&values).unwrap();
        assert!((slope - norm).abs() <= 0.02 * norm + 2e-4, "{}: {slope} and {norm}", parameter.name());
    }
}

/// The published formula through another door: with the projection `[I, 0]`, a module is a model of one layer over normed embeddings, asked about the
/// tokens that come.
#[test]
fn a_module_is_a_layer_over_what_comes() {
    let room = Room::new(2000);
    let trainer = room.trainer("dense-mtp", "run", false, &[]).unwrap();
    let decoder = trainer.decoder();
    let h = decoder.config().hidden_size;
    let find = |name: &str| decoder.parameters().into_iter().find(|p| p.name() == name).unwrap();
    let projection: Vec<f32> = (0..h * 2 * h).map(|at| if at / (2 * h) == at % (2 * h) { 1.0 } else { 0.0 }).collect();
    find("model.mtp_linear_proj.0.weight").set(&projection).unwrap();

    let config = std::fs::read_to_string(room.path("dense.json")).unwrap();
    let config = ModelConfig::from_json(&config.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":1")).unwrap();
    let weights = ernie_model::weights::Weights::random(config, 1, WeightsAs::F32).unwrap();
    let twin = ernie_model::build_trainable(weights, ernie_nn::Width::F32).unwrap().decoder;
    for parameter in twin.parameters() {
        let name = parameter.name();
        let values = match name.strip_prefix("model.layers.0.") {
            Some(rest) => find(&format!("model.mtp_block.0.{rest}")).to_vec().unwrap(),
            None => find(name).to_vec().unwrap(),
        };
        let values = match name {
            "model.embed_tokens.weight" => {
                let rms = |row: &[f32]| (row.iter().map(|x| x * x).sum::<f32>() / h as f32 + 1e-5).sqrt();
                values.chunks(h).flat_map(|row| row.iter().map(|x| x / rms(row)).collect::<Vec<_>>()).collect()
            }
            _ => values,
        };
        parameter.set(&values).unwrap();
    }

    let ids = vec![7, 50, 31, 299, 12, 8];
    let tokens = Tokens::packed(ids.clone(), &[4, 2]);
    let residual = decoder.residual(&tokens, None, &mut ()).unwrap();
    let ours = decoder.further(0, &residual, &tokens).unwrap().to_vec().unwrap();
    let coming = Tokens::packed(vec![50, 31, 299, 299, 8, 8], &[4, 2]);
    let theirs = twin.residual(&coming, None, &mut ()).unwrap().to_vec().unwrap();
    for (at, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((a - b).abs() <= 1e-5, "{at}: {a} and {b}");
    }
    assert!(decoder.further(2, &residual, &tokens).is_err());
}

fn folder(trainer: &Trainer, step: u64) -> std::path::PathBuf {
    trainer.out().join(format!("checkpoint-{step}"))
}

#[test]
fn modules_learn_are_published_and_go_on() {
    let room = Room::new(3000);
    let mut trainer = room.trainer("moe-mtp", "first", false, &["schedule.steps=40", "evaluation.every=0"]).unwrap();
    trainer.run(&mut [], &Default::default()).unwrap();
    let losses: Vec<f64> = read_metrics(trainer.out()).unwrap().iter().map(|line| line.mtp_loss.unwrap()).collect();
    assert!(losses[39] < losses[0] - 0.5, "{losses:?}");

    let path = folder(&trainer, 40);
    let file = Checkpoint::open(&path).unwrap();
    let names: Vec<&str> =
        file.tensors().map(|tensor| tensor.name.as_str()).filter(|name| name.contains("mtp_")).collect();
    assert_eq!(names.len(), 2 * 12, "{names:?}");
    for name in ["model.mtp_emb_norm.1.weight", "model.mtp_block.0.mlp.gate_proj.weight"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    assert!(config.contains("\"num_nextn_predict_layers\": 2"), "{config}");
    // Whoever only runs it carries them along.
    let report = ernie_model::load(&ModelSource::Folder(path.clone()), WeightsAs::F32).unwrap().report;
    assert_eq!(report.kept.len(), 24);

    let weights = format!("model.weights={:?}", path.display().to_string());
    let tokenizer = format!("data.tokenizer={:?}", path.display().to_string());
    let next = |out: &str, more: &[&str]| {
        let overrides: Vec<&str> = [weights.as_str(), tokenizer.as_str(), "schedule.steps=2"]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let mut trainer = room.trainer("dense", out, false, &overrides).unwrap();
        trainer.run(&mut [], &Default::default()).unwrap();
        let loss = read_metrics(trainer.out()).unwrap()[0].mtp_loss;
        let file = Checkpoint::open(&folder(&trainer, 2)).unwrap();
        let modules = file.tensors().map(|t| t.name.clone()).filter(|name| name.starts_with("model.mtp_")).count();
        let name = "model.mtp_linear_proj.0.weight";
        let bytes = |file: &Checkpoint| file.info(name).map(|_| file.bytes(name).unwrap().to_vec());
        (loss, modules, bytes(&file) == bytes(&Checkpoint::open(&path).unwrap()))
    };
    let (loss, modules, same) = next("on", &[]);
    assert!(loss.unwrap() < losses[0] - 0.3 && modules == 24 && !same, "it goes on from what was learned: {loss:?}");
    let (loss, modules, same) = next("anew", &["model.mtp_layers=1"]);
    assert!(loss.is_some() && modules == 12 && !same);
    assert_eq!(next("kept", &["objective.mtp_weight=0"]), (None, 24, true));
    assert_eq!(next("dropped", &["model.mtp_layers=0"]), (None, 0, false));
    assert_eq!(next("beside an adapter", &["adapter.rank=2"]), (None, 24, true));
}

/// Models are handed on without their modules by programs that do not know them, with a config that still tells of some: such a one has none.
#[test]
fn what_a_config_tells_of_and_the_file_lacks_is_not_drawn() {
    let room = Room::new(3000);
    room.run("moe", "first", false, &["schedule.steps=1"]).unwrap();
    let config = room.path("first/checkpoint-1/config.json");
    let told = std::fs::read_to_string(&config).unwrap().replacen('{', "{\"num_nextn_predict_layers\": 200,", 1);
    std::fs::write(&config, told).unwrap();
    let from = ["model.weights=first/checkpoint-1", "data.tokenizer=first/checkpoint-1", "schedule.steps=1"];
    let mut trainer = room.trainer("moe", "on", false, &from).unwrap();
    assert_eq!(trainer.decoder().mtp_modules(), 0);
    trainer.run(&mut [], &Default::default()).unwrap();
    let saved = std::fs::read_to_string(folder(&trainer, 1).join("config.json")).unwrap();
    assert!(!saved.contains("num_nextn_predict_layers"), "{saved}");
}

#[test]
fn what_nobody_would_train_is_refused() {
    let room = Room::new(2000);
    for more in ["objective.mtp_weight=0", "model.mtp_layers=9", "objective.mtp_weight=-1"] {
        let error = room.recipe("dense-mtp", &[more]).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("mtp_"), "{error}");
    }
}
