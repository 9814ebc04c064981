//! A recipe: one TOML file that says all there is to say about a training run.
//!
//! One struct a table ([`tables`]), unknown keys are errors, and everything is checked at once: the error lists all problems, not the first.
//! `key.path=value` overrides go through the same door. The resolved recipe, with every default filled in and every path absolute, is
//! written beside the run, and reading it gives the same run again.
//!
//! Not here: where a MODEL is found (the caller resolves names), and what a table does (the module of that subject).

mod check;
mod read;
pub mod tables;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
pub use tables::{
    Adapter, Base, BatchSize, Checkpoint, Data, Decay, Documents, Evaluation, EvaluationTask, Float, Format, MixedIn,
    Model, Normalise, Objective, ObjectiveKind, OnNan, Optimizer, OptimizerKind, Parallel, Precision, PreferenceLoss,
    Sampler, SamplerKind, Schedule, ScheduleKind, TokenizerSource, TrainTokenizer,
};

/// The name in `data.train` of the corpus inside the program.
pub const BUNDLED: &str = "bundled";

/// A checked recipe with every default filled in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Seed of everything that is drawn: weights, order of the data.
    pub seed: u64,
    /// `[model]`.
    pub model: Model,
    /// `[data]`.
    pub data: Data,
    /// `[batch]`.
    pub batch: BatchSize,
    /// `[sampler]`.
    pub sampler: Sampler,
    /// `[objective]`.
    pub objective: Objective,
    /// `[adapter]`.
    pub adapter: Adapter,
    /// `[optimizer]`.
    pub optimizer: Optimizer,
    /// `[schedule]`.
    pub schedule: Schedule,
    /// `[precision]`.
    pub precision: Precision,
    /// `[parallel]`.
    pub parallel: Parallel,
    /// `[checkpoint]`.
    pub checkpoint: Checkpoint,
    /// `[evaluation]`.
    pub evaluation: Evaluation,
}

impl Recipe {
    /// Reads `path`, lays `overrides` (`key.path=value`, in order) over it, and checks the whole.
    ///
    /// Relative paths in the file are relative to the file, those in overrides to `current_dir`.
    ///
    /// # Errors
    /// [`Error::Syntax`](crate::Error::Syntax) where the file or an override is not TOML, [`Error::Recipe`](crate::Error::Recipe) with
    /// every problem, [`Error::NotBuilt`](crate::Error::NotBuilt) for what this build cannot do, `Io` or `Files` where it cannot be read.
    pub fn load(path: &Path, overrides: &[String], current_dir: &Path) -> Result<Self> {
        let text = ernie_files::read_text(path, read::MAX_RECIPE_BYTES)?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.map_or_else(|| current_dir.to_owned(), |parent| current_dir.join(parent));
        Self::parse(&text, &path.display().to_string(), &folder, overrides, current_dir)
    }

    /// As [`Recipe::load`], from text; `name` is what errors call it and `folder` what its paths are relative to.
    pub fn parse(text: &str, name: &str, folder: &Path, overrides: &[String], current_dir: &Path) -> Result<Self> {
        let recipe = read::read(text, name, folder, overrides, current_dir)?;
        recipe.check(name)?;
        Ok(recipe)
    }

    /// Checks a recipe made in code; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Recipe`](crate::Error::Recipe) with every problem, or [`Error::NotBuilt`](crate::Error::NotBuilt).
    pub fn check(&self, name: &str) -> Result<()> {
        check::check(self, name)
    }

    /// Whether modules of multi-token prediction are trained where the model has them: beside the model, and by text that is to be foretold.
    pub fn trains_mtp(&self) -> bool {
        let foretells = matches!(self.objective.kind, ObjectiveKind::Lm | ObjectiveKind::Sft);
        foretells && self.objective.mtp_weight > 0.0 && self.adapter.rank == 0
    }

    /// The resolved recipe as TOML; [`Recipe::parse`] of it gives the same recipe.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|error| crate::Error::Internal(format!("recipe cannot be written: {error}")))
    }
}

#[cfg(test)]
mod tests;
