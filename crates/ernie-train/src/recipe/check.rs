//! What a recipe must hold to be a run: every rule in one list, every broken one reported.

use ernie_model::config::check_labels;

use super::{Base, Float, Format, ObjectiveKind, OnNan, OptimizerKind, Recipe, SamplerKind, TokenizerSource};
use crate::error::{Error, Result};

/// Largest count of anything that a recipe may ask for; keeps products inside 64 bits.
const MANY: usize = 1 << 24;

/// Most modules of multi-token prediction; the published models have one.
const MOST_MTP: usize = 8;

/// Checks `recipe`, called `name` in errors.
pub(super) fn check(recipe: &Recipe, name: &str) -> Result<()> {
    let mut problems = Problems(Vec::new());
    model(recipe, &mut problems);
    data(recipe, &mut problems);
    optimisation(recipe, &mut problems);
    if !problems.0.is_empty() {
        return Err(Error::Recipe { path: name.to_owned(), problems: problems.0 });
    }
    built(recipe)
}

/// Gathers what is wrong.
struct Problems(Vec<String>);

impl Problems {
    /// Adds `key: message` unless `holds`.
    fn expect(&mut self, holds: bool, key: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(format!("{key}: {}", message()));
        }
    }

    /// `value` must be finite and in `low..=high`.
    fn range(&mut self, key: &str, value: f64, low: f64, high: f64) {
        self.expect((low..=high).contains(&value), key, || match high {
            f64::MAX => format!("expected a finite number of at least {low}, got {value}"),
            _ => format!("expected a number from {low} to {high}, got {value}"),
        });
    }

    /// `value` must be in `low..=MANY`.
    fn count(&mut self, key: &str, value: usize, low: usize) {
        self.expect((low..=MANY).contains(&value), key, || {
            format!("expected a whole number from {low} to {MANY}, got {value}")
        });
    }
}

fn model(recipe: &Recipe, problems: &mut Problems) {
    let model = &recipe.model;
    let named =
        [model.preset.is_some(), model.config.is_some(), model.weights.is_some()].iter().filter(|set| **set).count();
    problems.expect(named == 1, "model", || match named {
        0 => "expected one of preset, config or weights".into(),
        _ => "preset, config and weights exclude each other".into(),
    });
    let modules = model.mtp_layers.unwrap_or(0);
    problems.expect(modules <= MOST_MTP, "model.mtp_layers", || {
        format!("expected a whole number from 0 to {MOST_MTP}, got {modules}")
    });
    let trains = recipe.trains_mtp();
    problems.expect(modules == 0 || trains, "model.mtp_layers", || {
        "nothing trains them here; expected objective.mtp_weight above 0, kind lm or sft, and no adapter".into()
    });
}

fn data(recipe: &Recipe, problems: &mut Problems) {
    let data = &recipe.data;
    problems.expect(!data.train.is_empty(), "data.train", || "expected at least one glob, or \"bundled\"".into());
    let mixed = data.mixture.iter().map(|source| ("data.mixture.files", &source.files));
    for (key, globs) in [("data.train", &data.train), ("data.held_out", &data.held_out)].into_iter().chain(mixed) {
        for pattern in globs {
            problems.expect(!pattern.is_empty(), key, || "a glob is empty".into());
            if let Err(error) = glob::Pattern::new(pattern) {
                problems.0.push(format!("{key}: {pattern:?} is not a glob: {error}"));
            }
        }
    }
    let named = !data.text_fields.is_empty() && data.text_fields.iter().all(|field| !field.is_empty());
    problems.expect(named, "data.text_fields", || "expected the names of fields".into());
    for source in &data.mixture {
        problems.expect(!source.files.is_empty(), "data.mixture.files", || "expected at least one glob".into());
        problems.expect(source.weight > 0.0 && source.weight <= 1e6, "data.mixture.weight", || {
            format!("expected a number above 0 and at most 1000000, got {}", source.weight)
        });
        let named = source.text_fields.iter().flatten().all(|field| !field.is_empty());
        problems.expect(named, "data.mixture.text_fields", || "expected the names of fields".into());
    }
    problems.count("data.mixture", data.mixture.len(), 0);
    let records = match recipe.objective.kind {
        ObjectiveKind::Lm => None,
        ObjectiveKind::Sft | ObjectiveKind::Dpo => Some("conversations"),
        ObjectiveKind::Classify => Some("texts with labels"),
    };
    if let Some(records) = records {
        let knows_turns = matches!(data.tokenizer, TokenizerSource::Model(_));
        problems.expect(knows_turns || recipe.objective.kind == ObjectiveKind::Classify, "data.tokenizer", || {
            "conversations need a tokenizer that knows the marks of turns; expected a path or a MODEL".into()
        });
        let bundled = data.train.iter().chain(&data.held_out).any(|glob| glob == "bundled");
        problems.expect(!bundled, "data.train", || {
            format!("the bundled corpus holds no {records}; expected JSONL files of them")
        });
        problems.expect(matches!(data.format, Format::Auto | Format::Jsonl), "data.format", || {
            format!("{records} are read from JSONL")
        });
    }
    match &data.tokenizer {
        TokenizerSource::Model(name) => {
            problems
                .expect(!name.is_empty(), "data.tokenizer", || "expected a path, a MODEL or { train = VOCAB }".into());
        }
        TokenizerSource::Train(train) => {
            problems.expect((300..=1 << 20).contains(&train.train), "data.tokenizer.train", || {
                format!("expected a vocabulary from 300 to {}, got {}", 1 << 20, train.train)
            });
            problems.expect(recipe.model.weights.is_none(), "data.tokenizer", || {
                "a new tokenizer does not fit the weights of model.weights; expected that model's own".into()
            });
        }
    }
    problems.count("batch.rows", recipe.batch.rows, 1);
    problems.count("batch.seq_len", recipe.batch.seq_len, 2);
    problems.count("batch.grad_accum", recipe.batch.grad_accum, 1);
    let tokens = recipe.batch.rows.saturating_mul(recipe.batch.seq_len).saturating_mul(recipe.batch.grad_accum);
    problems
        .expect(tokens <= 1 << 32, "batch", || format!("a step has {tokens} tokens, expected at most {}", 1_u64 << 32));
    let measured = recipe.evaluation.every > 0 && (!data.held_out.is_empty() || data.train == ["bundled"]);
    problems.expect(recipe.evaluation.patience == 0 || measured, "evaluation.patience", || {
        "nothing is evaluated; expected data.held_out and evaluation.every".into()
    });
    problems.expect(!recipe.checkpoint.keep_best || measured, "checkpoint.keep_best", || {
        "nothing is evaluated; expected data.held_out and evaluation.every".into()
    });
    problems.count("evaluation.batches", recipe.evaluation.batches, 0);
}

fn optimisation(recipe: &Recipe, problems: &mut Problems) {
    let optimizer = &recipe.optimizer;
    problems.range("optimizer.lr", optimizer.lr, 0.0, f64::MAX);
    for beta in optimizer.betas {
        problems.expect((0.0..1.0).contains(&beta), "optimizer.betas", || {
            format!("expected numbers of at least 0 and below 1, got {beta}")
        });
    }
    problems.expect((0.0..1.0).contains(&optimizer.momentum), "optimizer.momentum", || {
        format!("expected a number of at least 0 and below 1, got {}", optimizer.momentum)
    });
    problems.expect(optimizer.eps > 0.0 && optimizer.eps.is_finite(), "optimizer.eps", || {
        format!("expected a finite number above 0, got {}", optimizer.eps)
    });
    problems.range("optimizer.weight_decay", optimizer.weight_decay, 0.0, f64::MAX);
    problems.range("optimizer.clip", optimizer.clip, 0.0, f64::MAX);
    problems.range("optimizer.gate_lr_ratio", optimizer.gate_lr_ratio, 0.0, f64::MAX);

    problems.expect((0.0..1.0).contains(&optimizer.ema), "optimizer.ema", || {
        format!("expected a number of at least 0 and below 1, got {}", optimizer.ema)
    });

    if optimizer.in_backward {
        let key = "optimizer.in_backward";
        problems.expect(optimizer.clip == 0.0, key, || {
            format!(
                "the norm that bounds is known when all gradients are there; expected optimizer.clip = 0, got {}",
                optimizer.clip
            )
        });
        let parts = recipe.batch.grad_accum;
        problems.expect(parts == 1, key, || {
            format!(
                "the gradients of several micro-batches wait for the last; expected batch.grad_accum = 1, got {parts}"
            )
        });
        problems.expect(optimizer.on_nan != OnNan::Skip, key, || {
            "a step that is half made cannot be passed over; expected optimizer.on_nan = \"stop\" or \"rollback\""
                .into()
        });
    }
    let narrow = optimizer.moments == Float::Bf16;
    problems.expect(!narrow || optimizer.kind == OptimizerKind::Adamw, "optimizer.moments", || {
        "the momentum of Muon is kept in f32; expected \"f32\", or optimizer.kind = \"adamw\"".into()
    });

    let adapter = &recipe.adapter;
    problems.count("adapter.rank", adapter.rank, 0);
    problems.range("adapter.alpha", adapter.alpha, 0.0, f64::MAX);
    problems.range("adapter.b_lr_ratio", adapter.b_lr_ratio, 0.0, f64::MAX);
    let known = ernie_model::decoder::TARGETS;
    for target in adapter.targets.iter().filter(|target| !known.contains(&target.as_str())) {
        problems.0.push(format!("adapter.targets: {target:?} is not one of {}", known.join(", ")));
    }
    problems.expect(!adapter.targets.is_empty(), "adapter.targets", || "expected at least one linear".into());
    let plain = adapter.base == Base::F32 && !adapter.experts;
    problems.expect(adapter.rank > 0 || plain, "adapter", || {
        "without a rank there is no adapter; expected adapter.rank beside base and experts".into()
    });
    let narrow = recipe.precision.compute == Float::Bf16;
    problems.expect(adapter.packed_base().is_none() || !narrow, "precision.compute", || {
        "an adapter beside integers (adapter.base) is computed in f32".into()
    });
    problems.expect(adapter.rank == 0 || recipe.model.weights.is_some(), "adapter.rank", || {
        "an adapter changes a trained model; expected model.weights".into()
    });

    let objective = &recipe.objective;
    if !objective.labels.is_empty() {
        problems.expect(objective.kind == ObjectiveKind::Classify, "objective.labels", || {
            "nothing asks for labels here; expected objective.kind = \"classify\"".into()
        });
        if let Err(problem) = check_labels(&objective.labels) {
            problems.0.push(format!("objective.labels: {problem}"));
        }
    }
    problems.expect(objective.beta > 0.0 && objective.beta <= 1e6, "objective.beta", || {
        format!("expected a number above 0 and at most 1000000, got {}", objective.beta)
    });
    problems.range("objective.simpo_margin", objective.simpo_margin, 0.0, f64::MAX);
    problems.range("objective.sft_weight", objective.sft_weight, 0.0, f64::MAX);
    problems.range("objective.mtp_weight", objective.mtp_weight, 0.0, f64::MAX);
    problems.range("objective.router_bias_rate", objective.router_bias_rate, 0.0, f64::MAX);
    problems.range("objective.router_balance", objective.router_balance, 0.0, f64::MAX);
    problems.range("objective.router_z", objective.router_z, 0.0, f64::MAX);
    problems.range("objective.router_orthogonal", objective.router_orthogonal, 0.0, f64::MAX);

    let schedule = &recipe.schedule;
    problems.expect((1..=1 << 40).contains(&schedule.steps), "schedule.steps", || {
        format!("expected a whole number from 1 to {}, got {}", 1_u64 << 40, schedule.steps)
    });
    problems.range("schedule.decay_share", schedule.decay_share, 0.0, 1.0);
    problems.range("schedule.final_share", schedule.final_share, 0.0, 1.0);

    let parallel = &recipe.parallel;
    for (key, value) in [("dp", parallel.dp), ("tp", parallel.tp), ("pp", parallel.pp), ("ep", parallel.ep)] {
        problems.count(&format!("parallel.{key}"), value, 1);
    }
}

/// What may be asked for one day, but not of this build.
fn built(recipe: &Recipe) -> Result<()> {
    let sampler = match recipe.sampler.kind {
        SamplerKind::Uniform => None,
        SamplerKind::Priority => Some("priority"),
        SamplerKind::Curriculum => Some("curriculum"),
    };
    if let Some(value) = sampler {
        return Err(Error::NotBuilt { key: "sampler.kind", value: value.into(), built: "uniform" });
    }
    let parallel = &recipe.parallel;
    for (key, value) in [
        ("parallel.dp", parallel.dp),
        ("parallel.tp", parallel.tp),
        ("parallel.pp", parallel.pp),
        ("parallel.ep", parallel.ep),
    ] {
        if value != 1 {
            return Err(Error::NotBuilt { key, value: value.to_string(), built: "1 (one process)" });
        }
    }
    Ok(())
}
