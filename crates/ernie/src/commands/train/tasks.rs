//! Tasks of `ernie eval` on every checkpoint of a run.

use crate::{
    commands::{eval, report::EVALUATIONS},
    failure::{Failure, Result},
    model::{Model, Place},
    printer::Printer,
};
use ernie_data::tokenizer::Tokenizer;
use ernie_eval::{EvalOptions, tasks::Task};
use ernie_model::{Decoder, WeightsAs, weights::read_adapter};
use ernie_train::{Observer, Recipe, Recovered, Saved, Started, checkpoint::ADAPTER_FOLDER, observe::open_lines};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Runs the recipe's tasks on each checkpoint and writes what they give.
pub(super) struct Tasks {
    printer: Printer,
    run: PathBuf,
    tasks: Vec<(&'static dyn Task, EvalOptions)>,
    /// The model beside which the checkpoints are adapters alone, and how it is held.
    base: Option<(String, WeightsAs)>,
    last: Option<u64>,
}

impl Tasks {
    /// The tasks of `recipe` for the run at `run`.
    ///
    /// # Errors
    /// Input, for a task that does not exist or data that are not there: before a run of hours rather than after it.
    pub(super) fn new(recipe: &Recipe, run: &Path, printer: Printer) -> Result<Self> {
        let tasks = recipe.evaluation.tasks.iter().map(|asked| {
            let task = ernie_eval::tasks::find(&asked.task)
                .map_err(|error| Failure::input(format!("evaluation.tasks: {error}")).hint("ernie eval --list"))?;
            if let Some(data) = asked.data.as_ref().filter(|data| !data.exists()) {
                return Err(Failure::input(format!("evaluation.tasks: {}: no such file or folder", data.display())));
            }
            let defaults = EvalOptions::default();
            Ok((task, EvalOptions { data: asked.data.clone(), shots: asked.shots, limit: asked.limit, ..defaults }))
        });
        let tasks = tasks.collect::<Result<_>>()?;
        let base = recipe.model.weights.clone().zip(recipe.adapter.packed_base());
        Ok(Self { printer, run: run.to_owned(), tasks, base, last: None })
    }

    /// What a checkpoint holds, or what it was trained beside with its adapter.
    fn load(&self, checkpoint: &Path) -> Result<(Decoder, Tokenizer)> {
        let (model, weights) = match &self.base {
            Some((base, weights)) => (Model::find(base)?, *weights),
            None => {
                let name = checkpoint.display().to_string();
                (Model { name, place: Place::Folder(checkpoint.to_owned()) }, WeightsAs::Native)
            }
        };
        let tokenizer = model.tokenizer_for("`eval`")?;
        let mut decoder = ernie_model::load(&model.source(0), weights)?.decoder;
        if self.base.is_some() {
            read_adapter(&checkpoint.join(ADAPTER_FOLDER), &mut decoder)?;
            decoder.pack_adapters()?;
        }
        Ok((decoder, tokenizer))
    }

    fn measure(&self, saved: &Saved) -> Result<()> {
        let path = self.run.join(EVALUATIONS);
        let failed = |error: std::io::Error| Failure::io(format!("writing {}", path.display()), &error);
        for (task, options) in &self.tasks {
            let (decoder, tokenizer) = self.load(&saved.path)?;
            let report = eval::ask(decoder, &tokenizer, *task, options, &self.printer)?;
            let mut line = serde_json::to_value(&report).map_err(|error| Failure::defect(error.to_string()))?;
            line["step"] = saved.step.into();
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
            file.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
            let plain = report.metrics.keys().filter(|name| !name.ends_with("_stderr"));
            let figures = plain.filter_map(|name| Some(format!("{name} {:.4}", report.value(name)?)));
            self.printer.say(format!(
                "step {}: {}: {}",
                saved.step,
                report.task,
                figures.collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(())
    }
}

impl Observer for Tasks {
    fn started(&mut self, run: &Started) -> ernie_train::Result<()> {
        let path = self.run.join(EVALUATIONS);
        // Steps that are made again are measured again.
        if path.exists() { open_lines(&path, run.step).map(drop) } else { Ok(()) }
    }

    fn recovered(&mut self, recovered: &Recovered) -> ernie_train::Result<()> {
        let path = self.run.join(EVALUATIONS);
        self.last = self.last.filter(|&last| last <= recovered.back_to);
        if path.exists() { open_lines(&path, recovered.back_to).map(drop) } else { Ok(()) }
    }

    fn saved(&mut self, saved: &Saved) -> ernie_train::Result<()> {
        // The last step is saved once, however often it is told.
        if self.last.replace(saved.step) == Some(saved.step) {
            return Ok(());
        }
        // A checkpoint is worth more than a figure about it: the run goes on.
        if let Err(failure) = self.measure(saved) {
            self.printer.say(format!("step {}: the tasks could not be run: {}", saved.step, failure.message));
        }
        Ok(())
    }
}
