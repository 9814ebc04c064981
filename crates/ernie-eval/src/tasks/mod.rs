//! The tasks: each one file, each one entry of [`TASKS`].
//!
//! A task turns a [`Subject`] and [`EvalOptions`] into an [`EvalReport`]. To add one, write a file like its siblings and
//! name it in the list.

mod classify;
mod perplexity;
mod preference;
mod sst2;

use std::path::PathBuf;

pub use classify::Classify;
pub use perplexity::Perplexity;
pub use preference::Preferences;
pub use sst2::Sst2;

use crate::{Error, EvalReport, Result, Subject};

/// One thing that a model can be measured by.
pub trait Task: Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;
    /// What it measures, in one line.
    fn about(&self) -> &'static str;
    /// The form of its data, and where that is had when it may not be shipped.
    fn data(&self) -> &'static str;
    /// Runs it. `progress` hears how many of how many requests are done.
    ///
    /// # Errors
    /// [`Error::NeedsData`] without data where none is shipped; input errors for data and options that cannot be.
    fn run(
        &self,
        subject: &mut Subject<'_>,
        options: &EvalOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EvalReport>;
}

/// All tasks.
pub const TASKS: &[&dyn Task] = &[&Classify, &Perplexity, &Preferences, &Sst2];

/// The task of this name.
///
/// # Errors
/// [`Error::UnknownTask`] with the names there are.
pub fn find(name: &str) -> Result<&'static dyn Task> {
    TASKS.iter().copied().find(|task| task.name() == name).ok_or_else(|| Error::UnknownTask {
        name: name.to_string(),
        known: TASKS.iter().map(|task| task.name()).collect::<Vec<_>>().join(", "),
    })
}

/// What the caller may set.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// The examples, in the task's form; `None` takes what is bundled.
    pub data: Option<PathBuf>,
    /// Where few-shot examples are drawn from; `None` looks beside `data`.
    pub train: Option<PathBuf>,
    /// Worked examples in front of each question.
    pub shots: usize,
    /// The first so many examples only.
    pub limit: Option<usize>,
    /// Keys the draw of few-shot examples; the harness's default is 1234.
    pub seed: u64,
    /// Tokens of a scoring window, at most the model's context; `None` lets the task choose.
    pub max_length: Option<usize>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { data: None, train: None, shots: 0, limit: None, seed: 1234, max_length: None }
    }
}

impl EvalOptions {
    fn limit<T>(&self, mut examples: Vec<T>) -> Result<Vec<T>> {
        if let Some(limit) = self.limit {
            if limit == 0 {
                return Err(Error::Setting { name: "limit", value: "0".into(), expected: "at least 1".into() });
            }
            examples.truncate(limit);
        }
        Ok(examples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_found_by_name() {
        for task in TASKS {
            assert_eq!(find(task.name()).unwrap().name(), task.name());
            assert!(!task.about().is_empty() && !task.data().is_empty());
        }
        let error = find("mmlu").err().unwrap();
        assert!(error.is_input() && error.to_string().contains("classify, perplexity, preference, sst2"), "{error}");
    }
}
