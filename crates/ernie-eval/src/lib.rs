//! How good and how fast a model is: tasks, metrics, the baselines that it must beat, and speed beside what a machine allows.
//!
//! * [`tasks`] — a small trait and a list; each task turns a model into an [`EvalReport`].
//! * [`Subject`] — log-likelihoods of given continuations and the labels of texts, which all tasks stand on.
//! * [`metrics`] — means and ratios with their standard errors.
//! * [`Examples`] — what a report is made of, and two models compared over the same examples.
//! * [`load`] — latency under load, by scheduling policy.
//! * [`baselines`] — LZMA and a byte n-gram on the same split.
//! * [`speed`] — reading and writing, measured, and what they need at least.
//!
//! Everything runs on the engine of `ernie-serve`, so a score here is the score that a server gives. This crate trains
//! nothing and prints nothing.
//!
//! ```
//! use ernie_eval::baselines;
//!
//! let (train, held_out) = (b"abracadabra ".repeat(100), b"abracadabra".to_vec());
//! assert!(baselines::witten_bell_bits_per_byte(&train, &held_out)? < 0.2);
//! # Ok::<(), ernie_eval::Error>(())
//! ```

pub mod baselines;
mod error;
mod examples;
pub mod load;
pub mod metrics;
mod report;
mod score;
pub mod speed;
pub mod tasks;

pub use error::{Error, ErrorKind, Result};
pub use examples::{Examples, Linear, Recorded};
pub use report::{EvalReport, Metric};
pub use score::{Pair, Score, Subject};
pub use tasks::{EvalOptions, Task};
