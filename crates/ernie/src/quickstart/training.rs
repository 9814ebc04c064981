//! The quickstart's training: the speed of this machine, then the run itself, tokenizer included.

use crate::{
    commands::train::Watch,
    failure::{Failure, Result},
    interrupt,
    printer::{self, Printer},
};
use ernie_data::{bundled, tokenizer::Tokenizer};
use ernie_train::{Evaluation, Observer, Options, Outcome, Recipe, StepReport, Trainer, recipe as tables};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Tokens of the vocabulary. Small, because the corpus is: each token must be seen often enough.
const VOCAB: usize = 2048;
/// Rows of a step, and tokens of a row: small steps, because there are few minutes and many steps help more, and not so small that
/// Muon, whose work does not depend on them, takes most of each.
const ROWS: usize = 4;
const SEQ_LEN: usize = 256;
/// Peak learning rate.
const LEARNING_RATE: f64 = 3e-3;
/// Steps that are timed to learn the machine's speed; one more, untimed, comes first.
const TIMED_STEPS: u32 = 4;
/// No run is shorter than this, however slow the machine.
const FEWEST_STEPS: u64 = 20;
/// About this many held-out evaluations on the way.
const EVALUATIONS: u64 = 8;
/// Each of them reads this many batches; the evaluation at the end reads all.
const EVALUATION_BATCHES: usize = 16;
/// More passes over the corpus than this teach the model the books by heart, not to write.
const MOST_EPOCHS: f64 = 12.0;

/// The points of the loss curve.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    pub(super) train: Vec<(u64, f64)>,
    pub(super) held_out: Vec<(u64, f64)>,
}

impl Observer for Curve {
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) -> ernie_train::Result<()> {
        self.held_out.push((step, evaluation.loss));
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> ernie_train::Result<()> {
        self.train.push((report.step, report.loss));
        Ok(())
    }
}

/// What training left.
pub(super) struct Trained {
    /// The folder in the published layout.
    pub(super) model: PathBuf,
    pub(super) tokens: u64,
    pub(super) seconds: f64,
    pub(super) params_total: u64,
    pub(super) params_active: u64,
    pub(super) vocab_size: usize,
    pub(super) recipe_toml: String,
    pub(super) curve: Curve,
}

/// Times a few steps and returns how many fit into `seconds`.
pub(super) fn steps_that_fit(folder: &Path, seed: u64, seconds: f64, printer: &Printer) -> Result<u64> {
    let began = Instant::now();
    let mut trainer = prepare(recipe(seed, 1000)?, folder)?;
    let preparing_s = began.elapsed().as_secs_f64();
    trainer.step()?;
    let (mut positions_per_s, mut step_s) = (0.0, 0.0);
    for _ in 0..TIMED_STEPS {
        let report = trainer.step()?;
        positions_per_s += report.tokens_per_s / f64::from(TIMED_STEPS);
        step_s += report.seconds / f64::from(TIMED_STEPS);
    }
    let evaluating = Instant::now();
    trainer.evaluate()?;
    let evaluation_s = evaluating.elapsed().as_secs_f64();

    // A tenth is kept for machines whose speed wavers; preparing is done once more for the run itself.
    let left = seconds - began.elapsed().as_secs_f64() - preparing_s;
    let for_steps = 0.9 * left - EVALUATIONS as f64 * evaluation_s;
    let fit = (for_steps / step_s).floor().max(FEWEST_STEPS as f64) as u64;
    let tokens_per_epoch = trainer.tokenizer().encode(bundled::train_text())?.len();
    let steps = fit.min(most_steps(tokens_per_epoch));
    printer.say(format!(
        "  {} tokens/s on this machine: {steps} steps, about {}",
        printer::exact(positions_per_s as u64),
        printer::duration(steps as f64 * step_s)
    ));
    Ok(steps)
}

/// Trains; `None` when the user stopped it.
pub(super) fn train(folder: &Path, seed: u64, steps: u64, printer: &Printer) -> Result<Option<Trained>> {
    let recipe = recipe(seed, steps)?;
    let recipe_toml = recipe.to_toml()?;
    let mut trainer = prepare(recipe, folder)?;
    let config = trainer.decoder().config().clone();
    let mut curve = Curve::default();
    let mut watch = Watch::new(*printer);
    let guard = interrupt::graceful();
    let finished = trainer.run(&mut [&mut watch, &mut curve], &interrupt::flag())?;
    drop(guard);
    if finished.outcome == Outcome::Interrupted {
        return Ok(None);
    }
    let checkpoint = finished.checkpoint.ok_or_else(|| Failure::defect("a finished run has no checkpoint"))?;
    publish(folder, &checkpoint, trainer.tokenizer())?;
    let count = config.parameters();
    Ok(Some(Trained {
        model: folder.to_owned(),
        tokens: finished.tokens,
        seconds: finished.seconds,
        params_total: count.total,
        params_active: count.active,
        vocab_size: config.vocab_size,
        recipe_toml,
        curve,
    }))
}

/// The recipe of `steps` steps; the schedule follows from their number.
fn recipe(seed: u64, steps: u64) -> Result<Recipe> {
    let recipe = Recipe {
        seed,
        model: tables::Model { preset: Some("nano".to_owned()), ..Default::default() },
        data: tables::Data {
            train: vec![tables::BUNDLED.to_owned()],
            tokenizer: tables::TokenizerSource::Train(tables::TrainTokenizer { train: VOCAB }),
            ..Default::default()
        },
        batch: tables::BatchSize { rows: ROWS, seq_len: SEQ_LEN, grad_accum: 1, ..tables::BatchSize::default() },
        // The published pace is for hundreds of thousands of steps; experts of a short run must find their balance sooner.
        objective: tables::Objective { router_bias_rate: 0.01, router_balance: 0.01, ..Default::default() },
        // In as much time it leaves a clearly better model than AdamW (docs/log.md).
        optimizer: tables::Optimizer { kind: tables::OptimizerKind::Muon, lr: LEARNING_RATE, ..Default::default() },
        schedule: tables::Schedule {
            steps,
            warmup: (steps / 20).min(50),
            kind: tables::ScheduleKind::Wsd,
            decay_share: 0.4,
            final_share: 0.02,
        },
        // In bf16 where the processor multiplies it: more steps in the same minutes.
        precision: tables::Precision {
            compute: if ernie_kernels::level() >= ernie_kernels::Level::Avx512Bf16 {
                tables::Float::Bf16
            } else {
                tables::Float::F32
            },
        },
        checkpoint: tables::Checkpoint { every: 0, ..Default::default() },
        evaluation: tables::Evaluation {
            every: (steps / EVALUATIONS).max(1),
            batches: EVALUATION_BATCHES,
            ..Default::default()
        },
        ..Default::default()
    };
    recipe.check("quickstart")?;
    Ok(recipe)
}

fn prepare(recipe: Recipe, out: &Path) -> Result<Trainer> {
    let options = Options {
        out: out.to_owned(),
        resume: false,
        commit: crate::commands::COMMIT.to_owned(),
        resolve: &|_| None,
        asked: &|_, _| (),
    };
    Ok(Trainer::prepare(recipe, &options)?)
}

/// The number of steps that makes [`MOST_EPOCHS`] passes.
fn most_steps(tokens_per_epoch: usize) -> u64 {
    (MOST_EPOCHS * tokens_per_epoch as f64 / (ROWS * SEQ_LEN) as f64) as u64
}

/// How a conversation with a teller of stories is written: each answer goes on from what the user wrote.
const STORY_TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'user' and not loop.first %}\n{% endif %}\
    {{ message.content }}{% endfor %}";

/// Lays the model out at the top of the run folder, ready to use, with what its use asks for.
///
/// The checkpoint beside it stays as training left it. Here the context is as long as the rows it was trained on, a
/// paragraph's end ends an answer (the books have a paragraph a line), and the chat template goes on with the user's text.
fn publish(folder: &Path, checkpoint: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let weights = "model.safetensors";
    let (from, to) = (checkpoint.join(weights), folder.join(weights));
    std::fs::hard_link(&from, &to)
        .or_else(|_| std::fs::copy(&from, &to).map(drop))
        .map_err(|e| Failure::io(to.display(), &e))?;
    tokenizer.save(folder)?;
    let text = ernie_files::read_text(&checkpoint.join("config.json"), 1 << 20)?;
    let mut config: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Failure::defect(format!("our own config.json: {e}")))?;
    config["max_position_embeddings"] = SEQ_LEN.into();
    let mut ends: Vec<u32> = tokenizer.eos().into_iter().collect();
    if let [line_end] = tokenizer.encode("\n")?[..] {
        ends.push(line_end);
    }
    config["eos_token_id"] = ends.into();
    let text = serde_json::to_string_pretty(&config).map_err(|e| Failure::defect(format!("writing JSON: {e}")))?;
    ernie_files::atomic::write(&folder.join("config.json"), text.as_bytes())?;
    ernie_files::atomic::write(&folder.join("chat_template.jinja"), STORY_TEMPLATE.as_bytes())?;
    Ok(())
}
