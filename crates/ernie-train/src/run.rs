//! A run: from a recipe to checkpoints, step by step, and on from where an earlier run stopped.
//!
//! The loop does what a step needs and nothing else; whoever looks on is an [`Observer`]. Stopped at any step and resumed equals not stopped,
//! bit for bit: what a step depends on is the weights, the moments, the correction biases, the step number and the loader's position, and
//! all five are in a checkpoint. The learning rate is a function of the step number.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ernie_data::tokenizer::Tokenizer;
use ernie_data::{HeldOut, Loader};
use ernie_model::Decoder;
use ernie_model::weights::Kept;

use crate::average::Average;
use crate::checkpoint::{self, Saving, Snapshot, State, Unwritten};
use crate::error::{Error, Result};
use crate::evaluate::evaluate_beside;
use crate::observe::{
    Evaluation, EventsWriter, Finished, MetricsWriter, Observer, Outcome, Recovered, Saved, Started, StepReport,
};
use crate::optimizer::Optimizer;
use crate::prepare;
use crate::recipe::{OnNan, Recipe};
use crate::reference::References;
use crate::standing::Standing;
use crate::{schedule, step};

/// Steps that may come to nothing without the run getting past them before it ends.
const MOST_FAILURES: u32 = 10;

/// What a run needs beside its recipe.
pub struct Options<'a> {
    /// The run folder.
    pub out: PathBuf,
    /// Go on from the newest complete checkpoint in `out`, or begin where there is none.
    pub resume: bool,
    /// The commit of the program, kept with every checkpoint.
    pub commit: String,
    /// Finds the folder or file of a MODEL that is not a path (a hub name in the local store); `None` if it is not there.
    pub resolve: &'a dyn Fn(&str) -> Option<PathBuf>,
    /// Told how many rows the reference of preferences has been asked about, and of how many: it may take minutes.
    pub asked: &'a dyn Fn(u64, u64),
}

/// A run that is ready to step.
pub struct Trainer {
    pub(crate) recipe: Recipe,
    pub(crate) out: PathBuf,
    pub(crate) commit: String,
    pub(crate) decoder: Decoder,
    pub(crate) kept: Vec<Kept>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) loader: Loader,
    pub(crate) held_out: Option<HeldOut>,
    pub(crate) references: References,
    pub(crate) optimizer: Optimizer,
    pub(crate) average: Option<Average>,
    pub(crate) standing: Standing,
    /// Steps that came to nothing since the run last got past one of them, and the last of them.
    pub(crate) failures: u32,
    pub(crate) failed_at: u64,
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) newest: Option<PathBuf>,
    /// The checkpoint that is being written while training goes on.
    pub(crate) saving: Option<Saving>,
    /// What an adapter is trained beside.
    pub(crate) base_crc32c: Option<u32>,
    pub(crate) notes: Vec<String>,
}

impl Trainer {
    /// Makes the run folder, the tokenizer, the data and the model ready, and takes up the newest complete checkpoint if asked to.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] for a folder with something in it and no `resume`; [`Error::Resume`] where the recipe or the data are not those of
    /// the checkpoint (`schedule.steps` may be raised, or lowered while no rate would have been another; `[checkpoint]`, `[evaluation]` and what changes no bit may change); whatever the recipe's files are at fault for.
    pub fn prepare(recipe: Recipe, options: &Options<'_>) -> Result<Self> {
        prepare::prepare(recipe, options)
    }

    /// Trains to the last step, or to the end of the step during which `stop` becomes true.
    ///
    /// The run's own observers (`metrics.jsonl`, TensorBoard events) are told first, then `observers` in order.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the loss or the gradient is not a number and the recipe does not go on all the same: the last checkpoint is untouched. Errors of observers and disk.
    pub fn run(&mut self, observers: &mut [&mut dyn Observer], stop: &AtomicBool) -> Result<Finished> {
        let began = Instant::now();
        let mut metrics = MetricsWriter::open(&self.out, self.step)?;
        let mut events = EventsWriter::open(&self.out)?;
        let mut watchers: Vec<&mut dyn Observer> = vec![&mut metrics, &mut events];
        watchers.extend(observers.iter_mut().map(|observer| &mut **observer as &mut dyn Observer));

        let started = self.started();
        tell(&mut watchers, |watcher| watcher.started(&started))?;
        let mut evaluation = None;
        let mut outcome = Outcome::Complete;
        while self.step < self.recipe.schedule.steps {
            if self.saving.as_ref().is_some_and(Saving::is_done) {
                self.wait_and_tell(&mut watchers)?;
            }
            if stop.load(Ordering::SeqCst) {
                outcome = Outcome::Interrupted;
                break;
            }
            if self.standing.is_over(self.recipe.evaluation.patience) {
                outcome = Outcome::Stale;
                break;
            }
            let mut report = match self.step() {
                Err(error) => {
                    // What it goes back to, and what an error calls the last checkpoint, is the one that was begun last.
                    self.wait_and_tell(&mut watchers)?;
                    let recovered = self.recover(error)?;
                    tell(&mut watchers, |watcher| watcher.recovered(&recovered))?;
                    continue;
                }
                Ok(report) => report,
            };
            let mut best = false;
            if self.is_due(self.recipe.evaluation.every)
                && let Some(measured) = self.evaluate()?
            {
                best = self.standing.judge(self.step, measured.loss);
                tell(&mut watchers, |watcher| watcher.evaluated(report.step, &measured))?;
                report.evaluation = Some(measured);
                evaluation = Some(measured);
            }
            tell(&mut watchers, |watcher| watcher.step(&report))?;
            let last = self.step == self.recipe.schedule.steps;
            let every = self.recipe.checkpoint.every;
            if last || (every > 0 && self.step.is_multiple_of(every)) || (best && self.recipe.checkpoint.keep_best) {
                self.save_and_tell(&mut watchers)?;
            }
        }
        if outcome != Outcome::Complete && self.step > 0 {
            self.save_and_tell(&mut watchers)?;
        }
        self.wait_and_tell(&mut watchers)?;
        let finished = Finished {
            outcome,
            step: self.step,
            tokens: self.tokens,
            seconds: began.elapsed().as_secs_f64(),
            checkpoint: self.newest.clone(),
            evaluation,
            best: self.standing.best,
        };
        tell(&mut watchers, |watcher| watcher.finished(&finished))?;
        Ok(finished)
    }

    /// Makes one optimiser step.
    ///
    /// # Errors
    /// [`Error::NotFinite`] before anything is changed by a loss or gradient that is not a number; with `optimizer.in_backward` by a loss, for what is made
    /// before such a gradient is met has been made by then.
    pub fn step(&mut self) -> Result<StepReport> {
        let began = Instant::now();
        let number = self.step + 1;
        let micro_batches =
            (0..self.recipe.batch.grad_accum).map(|_| self.loader.next()).collect::<ernie_data::Result<Vec<_>>>()?;
        let positions: usize = micro_batches.iter().map(|batch| batch.ids.len()).sum();

        let lr = self.recipe.optimizer.lr * schedule::share(&self.recipe.schedule, self.step);
        let in_backward = self.recipe.optimizer.in_backward;
        self.optimizer.zero_grad();
        let measured = {
            let (objective, reference) = (&self.recipe.objective, &self.references.train);
            let (decoder, optimizer) = (&self.decoder, &mut self.optimizer);
            let mut update = |parameter: &_| optimizer.update(parameter, lr);
            let told = in_backward.then_some(&mut update as step::Told<'_>);
            step::accumulate_beside(decoder, &micro_batches, objective, reference, told)?
        };
        self.must_be_finite(number, "loss", measured.loss + measured.router_loss + measured.mtp_loss.unwrap_or(0.0))?;
        let grad_norm = if in_backward { self.optimizer.finish(lr)? } else { self.optimizer.grad_norm()? };
        self.must_be_finite(number, "grad_norm", grad_norm)?;
        if !in_backward {
            self.optimizer.step(lr, self.optimizer.clip_factor(grad_norm))?;
            self.optimizer.zero_grad();
        }
        // Beside an adapter the model stays as it is, its routers' biases too.
        if self.recipe.adapter.rank == 0 {
            measured.dispatch.correct_bias(&self.decoder, self.recipe.objective.router_bias_rate)?;
        }
        for (batch, losses) in micro_batches.iter().zip(&measured.row_losses) {
            self.loader.record(&batch.places, losses);
        }

        if let Some(average) = &mut self.average {
            average.update(number)?;
        }

        // Steps made once more on the way back to one that failed are no progress.
        if number >= self.failed_at {
            self.failures = 0;
        }
        self.step = number;
        self.tokens += positions as u64;
        let seconds = began.elapsed().as_secs_f64();
        Ok(StepReport {
            step: number,
            steps: self.recipe.schedule.steps,
            tokens: self.tokens,
            loss: measured.loss,
            router_loss: measured.router_loss,
            mtp_loss: measured.mtp_loss,
            lr,
            grad_norm,
            tokens_per_s: positions as f64 / seconds.max(1e-9),
            seconds,
            router: measured.router(),
            preferred: measured.preferred,
            classified: measured.classified,
            evaluation: None,
        })
    }

    /// Goes on after a step that came to nothing, as the recipe has it: past its batch, or back to the last checkpoint and on with other data.
    ///
    /// # Errors
    /// The one it was called with, if the recipe says so, it is of another kind, there is no checkpoint to go back to, or it is the tenth in a row.
    fn recover(&mut self, error: Error) -> Result<Recovered> {
        let (step, what, value) = match error {
            Error::NotFinite { step, what, value, .. } => (step, what, value),
            error => return Err(error),
        };
        let ended = Error::NotFinite { step, what: what.clone(), value, last: self.last() };
        self.failures += 1;
        self.failed_at = self.failed_at.max(step);
        let newest = self.newest.clone();
        match (self.recipe.optimizer.on_nan, newest) {
            _ if self.failures >= MOST_FAILURES => return Err(ended),
            (OnNan::Skip, _) => {}
            (OnNan::Rollback, Some(path)) => {
                // The data go on from where they are: the same ones would end alike.
                let average = self.average.as_mut();
                let state = checkpoint::restore(&path, &self.decoder, &mut self.optimizer, average)?;
                (self.step, self.tokens, self.standing) = (state.step, state.tokens, state.standing);
            }
            (OnNan::Stop | OnNan::Rollback, _) => return Err(ended),
        }
        Ok(Recovered { step, what, value, back_to: self.step })
    }

    /// The held-out loss now; `None` where nothing is held out.
    pub fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        let (objective, reference) = (&self.recipe.objective, &self.references.held_out);
        let Some(held_out) = &mut self.held_out else { return Ok(None) };
        let mut measure = || evaluate_beside(&self.decoder, held_out, objective, reference);
        match &mut self.average {
            Some(average) => average.instead(measure),
            None => measure(),
        }
        .map(Some)
    }

    /// Saves a checkpoint of the state now, and removes the oldest beyond `checkpoint.keep`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a weight is not a number: such a state must not push out a good one. From the disk.
    pub fn save(&mut self) -> Result<PathBuf> {
        self.wait()?;
        let out = self.out.clone();
        let path = self.with_snapshot(|snapshot| checkpoint::save(&out, snapshot))?;
        self.saved(path, self.standing)
    }

    /// Begins to save a checkpoint of the state now, and goes on; the one before is waited for.
    fn begin_to_save(&mut self) -> Result<()> {
        let out = self.out.clone();
        let unwritten = self.with_snapshot(|snapshot| Unwritten::of(&out, snapshot))?;
        if let Some(unwritten) = unwritten {
            self.saving = Some(Saving::begin(self.step, self.standing, unwritten)?);
        }
        Ok(())
    }

    /// Waits for the checkpoint that is being written, where there is one.
    fn wait(&mut self) -> Result<Option<Saved>> {
        let Some(saving) = self.saving.take() else { return Ok(None) };
        let (step, standing) = (saving.step, saving.standing);
        let path = saving.wait()?;
        Ok(Some(Saved { step, path: self.saved(path, standing)? }))
    }

    /// Takes note of a checkpoint that is on disk, of a run that stood at `standing`.
    fn saved(&mut self, path: PathBuf, standing: Standing) -> Result<PathBuf> {
        self.newest = Some(path.clone());
        let best = standing.best.filter(|_| self.recipe.checkpoint.keep_best);
        if best.is_some() {
            standing.write(&self.out)?;
        }
        checkpoint::keep_newest(&self.out, self.recipe.checkpoint.keep, best.map(|best| best.step))?;
        Ok(path)
    }

    /// Gives `f` what goes into a checkpoint of the state now.
    fn with_snapshot<T>(&mut self, f: impl FnOnce(Snapshot<'_>) -> Result<T>) -> Result<T> {
        for parameter in self.decoder.trained() {
            let bad = parameter.read(|weights| weights.iter().copied().find(|weight| !weight.is_finite()))?;
            if let Some(weight) = bad {
                self.must_be_finite(self.step, parameter.name(), f64::from(weight))?;
            }
        }
        let state = State {
            base_crc32c: self.base_crc32c,
            standing: self.standing,
            ..State::new(self.step, self.tokens, &self.optimizer, &self.loader, &self.commit)
        };
        let snapshot = Snapshot {
            recipe: &self.recipe,
            decoder: &self.decoder,
            kept: &self.kept,
            tokenizer: &self.tokenizer,
            optimizer: &self.optimizer,
            average: self.average.as_mut(),
            state: &state,
        };
        f(snapshot)
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The run folder.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Steps made.
    pub fn steps_made(&self) -> u64 {
        self.step
    }

    fn started(&self) -> Started {
        Started {
            out: self.out.clone(),
            step: self.step,
            steps: self.recipe.schedule.steps,
            tokens: self.tokens,
            tokens_per_step: self.recipe.batch.tokens() as u64,
            parameters: self.decoder.trained().iter().map(|parameter| parameter.elements() as u64).sum(),
            documents: self.loader.documents(),
            rows_per_epoch: self.loader.rows_per_epoch(),
            text_bytes: self.loader.text_bytes(),
            vocab_size: self.decoder.config().vocab_size,
            notes: self.notes.clone(),
        }
    }

    /// Whether something that happens `every` steps, and at the last, happens now.
    fn is_due(&self, every: u64) -> bool {
        every > 0 && (self.step.is_multiple_of(every) || self.step == self.recipe.schedule.steps)
    }

    fn save_and_tell(&mut self, watchers: &mut [&mut dyn Observer]) -> Result<()> {
        self.wait_and_tell(watchers)?;
        if self.recipe.checkpoint.background {
            return self.begin_to_save();
        }
        let saved = Saved { step: self.step, path: self.save()? };
        tell(watchers, |watcher| watcher.saved(&saved))
    }

    fn wait_and_tell(&mut self, watchers: &mut [&mut dyn Observer]) -> Result<()> {
        match self.wait()? {
            Some(saved) => tell(watchers, |watcher| watcher.saved(&saved)),
            None => Ok(()),
        }
    }

    fn must_be_finite(&self, step: u64, what: &str, value: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        Err(Error::NotFinite { step, what: what.to_owned(), value, last: self.last() })
    }

    /// Which checkpoint is left to somebody whose run ends here.
    fn last(&self) -> String {
        match &self.newest {
            Some(path) => format!("the last checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".to_owned(),
        }
    }
}

fn tell(watchers: &mut [&mut dyn Observer], mut event: impl FnMut(&mut dyn Observer) -> Result<()>) -> Result<()> {
    watchers.iter_mut().try_for_each(|watcher| event(&mut **watcher))
}
