//! `train`: a recipe in, a run folder out.

mod dashboard;
mod tasks;

use crate::{
    commands::report,
    exit::Exit,
    failure::{Failure, Result},
    interrupt, model,
    printer::{self, Printer},
    progress::{Progress, Unit},
};
use dashboard::Dashboard;
use ernie_model::WeightsAs;
use ernie_train::{
    Evaluation, Finished, Observer, Options, Outcome, Recipe, Recovered, Saved, Started, StepReport, Trainer,
    checkpoint::ADAPTER_FOLDER, recipe::ObjectiveKind,
};
use std::path::{Path, PathBuf};
use tasks::Tasks;

/// Train a model by a recipe
///
/// Writes DIR/recipe.toml (resolved), DIR/metrics.jsonl (a line a step), DIR/events (TensorBoard) and
/// DIR/checkpoint-N/ (published layout and training state); at the end DIR/report.html draws it. Ctrl-C or SIGTERM finishes the step, saves,
/// and exits 130; --resume goes on from there, bit for bit. A second Ctrl-C stops at once, unsaved.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie train recipes/pretrain-nano.toml --out runs/nano --set schedule.steps=400")]
pub(crate) struct Args {
    /// The recipe
    #[arg(value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// The run folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on from the newest complete checkpoint in DIR; starts at step 0 where there is none
    #[arg(long)]
    resume: bool,
    /// Override a key of the recipe; may be given many times
    #[arg(long, value_name = "key.path=value")]
    set: Vec<String>,
    /// Override the recipe's seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Show the run on the whole terminal: losses, speed, experts, and what the model writes
    #[arg(long)]
    tui: bool,
    /// With --tui: what the model goes on from at every checkpoint
    #[arg(long, value_name = "T", default_value = "Once upon a time", requires = "tui")]
    sample: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let current = std::env::current_dir().map_err(|e| Failure::io("finding the current folder", &e))?;
    let mut overrides = args.set.clone();
    overrides.extend(args.seed.map(|seed| format!("seed={seed}")));
    let recipe = Recipe::load(&args.recipe, &overrides, &current)?;
    if args.tui {
        Dashboard::check(printer)?;
    }
    ernie_kernels::memory::keep_what_is_freed();
    let mut tasks = Tasks::new(&recipe, &args.out, if args.tui { Printer::new(true) } else { *printer })?;
    let asking = std::cell::RefCell::new(None::<Progress>);
    let options = Options {
        out: args.out.clone(),
        resume: args.resume,
        commit: super::COMMIT.to_owned(),
        resolve: &model::in_store,
        asked: &|done, of| {
            let mut asking = asking.borrow_mut();
            let progress =
                asking.get_or_insert_with(|| Progress::new(*printer, "asking the reference", Some(of), Unit::Items));
            progress.at(done, "rows");
            if done == of
                && let Some(progress) = asking.take()
            {
                progress.finish("");
            }
        },
    };
    let mut trainer = Trainer::prepare(recipe, &options).map_err(|error| {
        let resumable = matches!(error, ernie_train::Error::NotEmpty { .. });
        let failure = Failure::from(error);
        if resumable {
            failure.hint("--resume goes on from its newest checkpoint, --out takes another folder")
        } else {
            failure
        }
    })?;
    let guard = interrupt::graceful();
    let stop = interrupt::flag();
    let finished = if args.tui {
        // Dropped before a failure is told, so that it is told on the terminal that was there before.
        let mut dashboard = Dashboard::open(&args.out, trainer.steps_made(), &args.sample, stop.clone())?;
        trainer.run(&mut [&mut dashboard, &mut tasks], &stop)?
    } else {
        trainer.run(&mut [&mut Watch::new(*printer), &mut tasks], &stop)?
    };
    drop(guard);
    if args.tui {
        printer.say(finished_line(&finished));
    }
    if finished.step > 0 {
        // The run is saved; a page that cannot be drawn takes nothing from it.
        printer.say(match report::write(&args.out) {
            Ok(page) => format!("drawn in {}", page.display()),
            Err(failure) => format!("the run could not be drawn: {}", failure.message),
        });
    }
    match finished.outcome {
        Outcome::Complete | Outcome::Stale => {
            if let (Outcome::Stale, Some(best)) = (finished.outcome, finished.best) {
                printer
                    .say(format!("the held-out loss has not fallen since step {} ({:.3})", best.step, best.val_loss));
            }
            let model = as_model(trainer.recipe(), &args.out, &finished);
            printer.say(match trainer.recipe().objective.kind {
                ObjectiveKind::Classify => format!("try it: ernie classify {model} --text '…'"),
                _ => format!("talk to it: ernie chat {model}"),
            });
            Ok(Exit::Done)
        }
        Outcome::Interrupted => {
            printer.say(format!(
                "go on with: ernie train {} --out {} --resume",
                args.recipe.display(),
                args.out.display()
            ));
            Ok(Exit::Interrupted)
        }
    }
}

/// How the run in `out` is given to other commands: by its folder, or as the model that its adapter needs and the adapter.
fn as_model(recipe: &Recipe, out: &Path, finished: &Finished) -> String {
    match (recipe.adapter.packed_base(), &recipe.model.weights, &finished.checkpoint) {
        (Some(form), Some(base), Some(checkpoint)) => {
            let form = if form == WeightsAs::Int4 { "int4" } else { "int8" };
            format!("{base} --weights {form} --adapter {}", checkpoint.join(ADAPTER_FOLDER).display())
        }
        _ => out.display().to_string(),
    }
}

/// Shows a run on the terminal.
pub(crate) struct Watch {
    printer: Printer,
    progress: Option<Progress>,
    began: std::time::Instant,
    first_step: u64,
    smooth_tokens_per_s: Option<f64>,
}

impl Watch {
    /// A watcher that has seen nothing yet.
    pub(crate) fn new(printer: Printer) -> Self {
        Watch { printer, progress: None, began: std::time::Instant::now(), first_step: 0, smooth_tokens_per_s: None }
    }
}

impl Observer for Watch {
    fn started(&mut self, run: &Started) -> ernie_train::Result<()> {
        for note in &run.notes {
            self.printer.say(format!("note: {note}"));
        }
        self.printer.say(format!(
            "{} parameters · {} of text, {} documents · {} tokens a step",
            printer::count(run.parameters),
            printer::bytes(run.text_bytes),
            printer::exact(run.documents),
            printer::exact(run.tokens_per_step),
        ));
        if run.step > 0 {
            self.printer.say(format!("resuming after step {}", run.step));
        }
        self.first_step = run.step;
        self.began = std::time::Instant::now();
        self.progress = Some(Progress::new(self.printer, "training", Some(run.steps), Unit::Items));
        Ok(())
    }

    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) -> ernie_train::Result<()> {
        if let Some(progress) = &self.progress {
            progress.say(&evaluation_line(step, evaluation));
        }
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> ernie_train::Result<()> {
        let speed = match self.smooth_tokens_per_s {
            Some(before) => 0.9 * before + 0.1 * report.tokens_per_s,
            None => report.tokens_per_s,
        };
        self.smooth_tokens_per_s = Some(speed);
        let made = report.step.saturating_sub(self.first_step).max(1);
        let left = self.began.elapsed().as_secs_f64() / made as f64 * report.steps.saturating_sub(report.step) as f64;
        let mut note = format!(
            "loss {:.3} · {} tokens/s · {} left",
            report.loss,
            printer::count(speed as u64),
            printer::duration(left)
        );
        if let Some(busiest) = busiest(report) {
            note += &format!(" · busiest expert {busiest:.1}× even");
        }
        if let Some(progress) = &mut self.progress {
            progress.at(report.step, &note);
        }
        Ok(())
    }

    fn recovered(&mut self, recovered: &Recovered) -> ernie_train::Result<()> {
        if let Some(progress) = &self.progress {
            progress.say(&recovered_line(recovered));
        }
        Ok(())
    }

    fn saved(&mut self, saved: &Saved) -> ernie_train::Result<()> {
        if let Some(progress) = &self.progress {
            progress.say(&format!("saved {}", saved.path.display()));
        }
        Ok(())
    }

    fn finished(&mut self, finished: &Finished) -> ernie_train::Result<()> {
        if let Some(progress) = self.progress.take() {
            progress.finish(&finished_line(finished));
        }
        Ok(())
    }
}

/// `trained 400 steps, 410 k tokens, in 1m 40s`.
fn finished_line(finished: &Finished) -> String {
    let how = match finished.outcome {
        Outcome::Complete => "trained",
        Outcome::Interrupted | Outcome::Stale => "stopped after",
    };
    let (tokens, seconds) = (printer::count(finished.tokens), printer::duration(finished.seconds));
    format!("{how} {} steps, {tokens} tokens, in {seconds}", finished.step)
}

/// `step 7: loss is NaN; the batch is passed over`.
fn recovered_line(recovered: &Recovered) -> String {
    let what = match recovered.back_to + 1 == recovered.step {
        true => "the batch is passed over".to_owned(),
        false => format!("back to step {}", recovered.back_to),
    };
    format!("step {}: {} is {}; {what}", recovered.step, recovered.what, recovered.value)
}

/// `step 100: held-out loss 4.123, 2.41 bits per byte`.
fn evaluation_line(step: u64, evaluation: &Evaluation) -> String {
    let mut line = format!("step {step}: held-out loss {:.3}", evaluation.loss);
    if let Some(bits) = evaluation.bits_per_byte {
        line += &format!(", {bits:.3} bits per byte");
    }
    if let Some(preferred) = evaluation.preferred {
        let shares = [preferred.accuracy(), preferred.likelier_share()].map(|share| 100.0 * share);
        line += &format!(", {:.1} % of {} pairs right, {:.1} % likelier", shares[0], preferred.pairs, shares[1]);
    }
    if let Some(classified) = evaluation.classified {
        let (share, texts, f1) = (100.0 * classified.accuracy(), classified.texts, classified.macro_f1);
        line += &format!(", {share:.1} % of {texts} texts given their label, macro-F1 {f1:.3}");
    }
    line
}

/// How many times its even share the busiest expert of any layer got; `None` in a dense model.
fn busiest(report: &StepReport) -> Option<f64> {
    report.router.iter().map(|layer| layer.max_vio + 1.0).reduce(f64::max)
}
