//! Less memory: updates on the way back and layers that run again change no bit; moments in bf16 change little and are resumed exactly.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Room, assert_same, copy, files};
use ernie_files::{Checkpoint, Dtype};
use ernie_nn::Parameter;
use ernie_train::observe::read_metrics;
use ernie_train::{Error, Observer, Recovered, Result, StepReport};

const PLAIN: [&str; 2] = ["optimizer.clip=0", "batch.grad_accum=1"];
const IN_BACKWARD: [&str; 3] = ["optimizer.clip=0", "batch.grad_accum=1", "optimizer.in_backward=true"];

/// Losses and norms of a run, bit for bit.
fn metrics(room: &Room, out: &str) -> Vec<[u64; 3]> {
    let lines = read_metrics(&room.path(out)).unwrap();
    lines.iter().map(|m| [m.loss.to_bits(), m.grad_norm.to_bits(), m.val_loss.unwrap_or(0.0).to_bits()]).collect()
}

/// That two runs left the same but for their recipes, and measured the same on the way.
#[track_caller]
fn assert_alike(room: &Room, a: &str, b: &str) {
    let left = |out: &str| {
        let mut files = files(&room.path(out).join("checkpoint-8"));
        // The recipes differ in the keys, and so their sizes in the list of files.
        files.retain(|(name, _)| !name.ends_with("recipe.toml") && !name.ends_with("state.json"));
        files
    };
    assert_eq!(metrics(room, a), metrics(room, b), "{a} and {b}");
    assert!(left(a) == left(b), "{a} and {b}");
}

#[test]
fn updates_on_the_way_back_and_layers_run_again_change_no_bit() {
    let room = Room::new(3000);
    for kind in ["dense", "moe", "dense-bf16", "moe-bf16", "dense-mtp", "moe-mtp-bf16"] {
        for rule in ["adamw", "muon"] {
            let rule_set = format!("optimizer.kind={rule}");
            let name = |part: &str| format!("{kind}-{rule}-{part}");
            let run = |part: &str, set: &[&str]| {
                room.run(kind, &name(part), false, &[set, &[&rule_set]].concat()).unwrap();
            };
            run("plain", &PLAIN);
            run("back", &IN_BACKWARD);
            run("again", &[&PLAIN[..], &["batch.recompute=true"]].concat());
            run("both", &[&IN_BACKWARD[..], &["batch.recompute=true"]].concat());
            for part in ["back", "again", "both"] {
                assert_alike(&room, &name("plain"), &name(part));
            }
        }
    }
    // Running again goes with micro-batches and clipping too.
    for kind in ["moe", "moe-mtp"] {
        let name = |part: &str| format!("{kind}-{part}");
        room.run(kind, &name("clipped"), false, &[]).unwrap();
        room.run(kind, &name("clipped-again"), false, &["batch.recompute=true"]).unwrap();
        assert_alike(&room, &name("clipped"), &name("clipped-again"));
    }
}

#[test]
fn other_objectives_and_normalisations_too() {
    let room = Room::new(3000);
    for set in ["objective.normalise=constant", "optimizer.ema=0.9", "objective.router_balance=0"] {
        let name = |part: &str| format!("{part}-{set}");
        room.run("moe", &name("plain"), false, &[&PLAIN[..], &[set]].concat()).unwrap();
        let both = [&IN_BACKWARD[..], &[set, "batch.recompute=true"]].concat();
        room.run("moe", &name("both"), false, &both).unwrap();
        assert_alike(&room, &name("plain"), &name("both"));
    }
}

#[test]
fn beside_an_adapter_too() {
    for (kind, base) in [("dense", "f32"), ("moe", "f32"), ("moe", "int8"), ("dense", "int4")] {
        let room = Room::new(3000);
        room.run(kind, "base", false, &["schedule.steps=2"]).unwrap();
        let recipe = std::fs::read_to_string(room.path(&format!("{kind}.toml"))).unwrap();
        let recipe = recipe
            .replace(&format!("config = \"{kind}.json\""), "weights = \"base\"")
            .replace("tokenizer = { train = 300 }", "tokenizer = \"base\"");
        std::fs::write(room.path("lora.toml"), format!("{recipe}[adapter]\nrank = 4\nbase = \"{base}\"\n")).unwrap();
        for experts in ["false", "true"] {
            let experts = format!("adapter.experts={experts}");
            let name = |part: &str| format!("{part}-{experts}");
            room.run("lora", &name("plain"), false, &[&PLAIN[..], &[&experts]].concat()).unwrap();
            let both = [&IN_BACKWARD[..], &[&experts, "batch.recompute=true"]].concat();
            room.run("lora", &name("both"), false, &both).unwrap();
            assert_alike(&room, &name("plain"), &name("both"));
        }
    }
}

#[test]
fn stopped_and_resumed_is_not_stopped() {
    let room = Room::new(3000);
    for (kind, set) in [
        ("moe", &IN_BACKWARD[..]),
        ("dense-bf16", &["optimizer.moments=bf16"][..]),
        (
            "moe",
            &["optimizer.clip=0", "batch.grad_accum=1", "optimizer.in_backward=true", "optimizer.moments=bf16"][..],
        ),
    ] {
        let whole = format!("whole-{kind}-{}", set.len());
        room.run(kind, &whole, false, set).unwrap();
        for step in [3, 6] {
            let parts = format!("{whole}-{step}");
            copy(
                &room.path(&whole).join(format!("checkpoint-{step}")),
                &room.path(&parts).join(format!("checkpoint-{step}")),
            );
            room.run(kind, &parts, true, set).unwrap();
            assert_same(&room.path(&whole).join("checkpoint-8"), &room.path(&parts).join("checkpoint-8"));
        }
    }
    // What changes no bit may change on the way; what does may not.
    copy(&room.path("whole-moe-3/checkpoint-3"), &room.path("changed/checkpoint-3"));
    room.run("moe", "changed", true, &[&PLAIN[..], &["batch.recompute=true"]].concat()).unwrap();
    let masters =
        |out: &str| std::fs::read(room.path(out).join("checkpoint-8/training_state/masters.safetensors")).unwrap();
    assert!(masters("whole-moe-3") == masters("changed"));
    copy(&room.path("whole-moe-3/checkpoint-3"), &room.path("refused/checkpoint-3"));
    let error = room.run("moe", "refused", true, &[&PLAIN[..], &["optimizer.moments=bf16"]].concat()).unwrap_err();
    assert!(matches!(error, Error::Resume { .. }) && error.to_string().contains("optimizer.moments"), "{error}");
}

#[test]
fn moments_in_bf16_take_half_and_follow_those_in_f32() {
    let room = Room::new(20_000);
    for kind in ["dense", "moe"] {
        let losses = |out: &str, set: &[&str]| {
            let long =
                ["schedule.steps=80", "evaluation.every=0", "checkpoint.every=0", "optimizer.betas=[0.9, 0.999]"];
            room.run(kind, out, false, &[&long[..], set].concat()).unwrap();
            read_metrics(&room.path(out)).unwrap().iter().map(|line| line.loss).collect::<Vec<_>>()
        };
        let name = |part: &str| format!("{kind}-{part}");
        let wide = losses(&name("f32"), &[]);
        let narrow = losses(&name("bf16"), &["optimizer.moments=bf16"]);
        assert!(wide[79] < 0.8 * wide[0] && wide != narrow, "{kind}");
        for (at, (wide, narrow)) in wide.chunks(20).zip(narrow.chunks(20)).enumerate() {
            let apart = wide.iter().sum::<f64>() / narrow.iter().sum::<f64>() - 1.0;
            assert!(apart.abs() < 0.01, "{kind}, steps from {}: {apart}", at * 20);
        }
        let file = |out: &str| room.path(out).join("checkpoint-80/training_state/moments.safetensors");
        let (wide, narrow) =
            (Checkpoint::open(&file(&name("f32"))).unwrap(), Checkpoint::open(&file(&name("bf16"))).unwrap());
        let bytes = |file: &Checkpoint| file.tensors().map(|info| info.bytes()).sum::<usize>();
        assert!(narrow.tensors().all(|info| info.dtype == Dtype::Bf16) && bytes(&wide) == 2 * bytes(&narrow));
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let room = Room::new(2000);
    for (set, says) in [
        (&["optimizer.in_backward=true", "batch.grad_accum=1"][..], "optimizer.clip = 0"),
        (&["optimizer.in_backward=true", "optimizer.clip=0"], "batch.grad_accum = 1"),
        (&[IN_BACKWARD[0], IN_BACKWARD[1], IN_BACKWARD[2], "optimizer.on_nan=skip"], "optimizer.on_nan"),
        (&["optimizer.kind=muon", "optimizer.moments=bf16"], "optimizer.moments"),
        (&["optimizer.moments=int8"], "optimizer.moments"),
        (&["batch.recompute=2"], "batch.recompute"),
    ] {
        let error = room.recipe("dense", set).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(says), "{set:?}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
    // Moments of another format than the recipe's are named with their file.
    room.run("dense", "run", false, &["optimizer.moments=bf16"]).unwrap();
    let recipe = room.path("run/checkpoint-8/training_state/recipe.toml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    // The list of sizes knows this file.
    let changed = text.replace("moments = \"bf16\"", "moments = \"f32\" ");
    assert!(changed != text && changed.len() == text.len());
    std::fs::write(&recipe, changed).unwrap();
    let error = room.run("dense", "run", true, &["schedule.steps=9"]).unwrap_err();
    let says = error.to_string();
    assert!(error.is_input() && says.contains("moments.safetensors") && says.contains("expected F32"), "{error}");
}

/// What is done to a weight, by its name.
type Change<'a> = &'a dyn Fn(&str, &mut [f32]);

/// Changes the first MLP after a step, once.
struct Disturb<'a> {
    mlp: Vec<Arc<Parameter>>,
    at: u64,
    by: Change<'a>,
    done: bool,
    told: Vec<Recovered>,
}

impl Observer for Disturb<'_> {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        if report.step == self.at && !std::mem::replace(&mut self.done, true) {
            for parameter in &self.mlp {
                parameter.update(|weights, _| (self.by)(parameter.name(), weights))?;
            }
        }
        Ok(())
    }

    fn recovered(&mut self, recovered: &Recovered) -> Result<()> {
        self.told.push(recovered.clone());
        Ok(())
    }
}

#[test]
fn a_gradient_that_is_no_number_stops_or_goes_back() {
    let room = Room::new(3000);
    // A gate of zeros gives zeros whatever it is multiplied by, so that the loss is as good as any; the gradient of the gate is too large for f32.
    let huge = |name: &str, weights: &mut [f32]| {
        let value = if name.contains("gate_proj") { 0.0 } else { 1e30 };
        weights.fill(value);
    };
    let nan = |_: &str, weights: &mut [f32]| weights.fill(f32::NAN);
    let cases: [(&str, Change<'_>); 2] = [("grad_norm", &huge), ("loss", &nan)];
    for (what, by) in cases {
        let run = |policy: &str| {
            let policy_set = format!("optimizer.on_nan={policy}");
            let out = format!("{what}-{policy}");
            let mut trainer = room.trainer("moe", &out, false, &[&IN_BACKWARD[..], &[&policy_set]].concat()).unwrap();
            let mut mlp = trainer.decoder().parameters();
            mlp.retain(|parameter| parameter.name().starts_with("model.layers.0.mlp."));
            assert_eq!(mlp.len(), 3);
            let mut disturb = Disturb { mlp, at: 5, by, done: false, told: Vec::new() };
            let outcome = trainer.run(&mut [&mut disturb], &AtomicBool::new(false));
            (outcome, disturb.told)
        };
        let error = run("stop").0.unwrap_err().to_string();
        assert!(error.starts_with(&format!("step 6: {what} is")) && error.contains("checkpoint-3"), "{error}");
        let (outcome, told) = run("rollback");
        assert_eq!(outcome.unwrap().step, 8);
        assert_eq!(told.iter().map(|told| (told.step, told.back_to)).collect::<Vec<_>>(), [(6, 3)]);
        assert!(told[0].what == what && !told[0].value.is_finite());
    }
}
