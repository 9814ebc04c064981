//! Recipes, objectives, optimisers, checkpoints, observers: from a corpus to a checkpoint.
//!
//! A [`Recipe`] says all there is to say about a run; a [`Trainer`] makes it: data → batch → forward → objective (and the routers' terms) →
//! backward → clip → optimiser → atomic checkpoint. Whoever looks on is an [`Observer`].
//!
//! This crate prints nothing, reads no environment, and knows neither serving nor evaluation tasks.
//!
//! ```
//! use std::path::Path;
//! use ernie_train::Recipe;
//!
//! let text = r#"
//!     [model]
//!     preset = "nano"
//!     [data]
//!     train = ["bundled"]
//! "#;
//! let overrides = ["optimizer.lr=3e-4".to_owned()];
//! let recipe = Recipe::parse(text, "example.toml", Path::new("/recipes"), &overrides, Path::new("/"))?;
//! assert_eq!(recipe.optimizer.lr, 3e-4);
//! assert_eq!(recipe.schedule.steps, 1000); // a default
//! # Ok::<(), ernie_train::Error>(())
//! ```

pub mod average;
pub mod balance;
pub mod checkpoint;
mod error;
mod evaluate;
mod objective;
pub mod observe;
pub mod optimizer;
mod prepare;
pub mod recipe;
mod reference;
mod run;
pub mod schedule;
pub mod standing;
pub mod step;

pub use error::{Error, ErrorKind, Result};
pub use evaluate::evaluate;
pub use observe::{Classified, Evaluation, Finished, Observer, Outcome, Recovered, Saved, Started, StepReport};
pub use recipe::Recipe;
pub use run::{Options, Trainer};

/// Cases of a property test over files: `ERNIE_TEST_CASES`, or 2,000.
#[cfg(test)]
fn test_cases() -> proptest::test_runner::Config {
    let cases = std::env::var("ERNIE_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2000);
    proptest::test_runner::Config::with_cases(cases)
}
