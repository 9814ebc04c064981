//! What a run tells whoever watches it.
//!
//! The training loop stays short; everything that only looks on is an [`Observer`]: the two here write `metrics.jsonl` and TensorBoard
//! events into the run folder, the program adds its progress bar, its report, its evaluation tasks. Observers get owned, plain data and
//! cannot change the run. An observer's error ends the run: a log that cannot be written is not lost silently.

mod metrics;
mod tensorboard;

use std::path::PathBuf;

use ernie_data::labelled::Tally;
use serde::{Deserialize, Serialize};

use crate::balance::RouterBalance;
use crate::error::Result;
use crate::standing::Best;

pub use metrics::{METRICS_FILE, MetricsLine, MetricsWriter, open_lines, read_metrics};
pub use tensorboard::{EVENTS_FOLDER, EventsWriter};

/// Watches a run. Every method does nothing by default.
pub trait Observer {
    /// The run is ready to make its first step.
    fn started(&mut self, _run: &Started) -> Result<()> {
        Ok(())
    }

    /// The held-out loss was measured; the report of the same step follows and holds it too.
    fn evaluated(&mut self, _step: u64, _evaluation: &Evaluation) -> Result<()> {
        Ok(())
    }

    /// A step is done.
    fn step(&mut self, _report: &StepReport) -> Result<()> {
        Ok(())
    }

    /// A step came to nothing, and the run goes on all the same.
    fn recovered(&mut self, _recovered: &Recovered) -> Result<()> {
        Ok(())
    }

    /// A checkpoint is on disk, whole.
    fn saved(&mut self, _saved: &Saved) -> Result<()> {
        Ok(())
    }

    /// The run is over.
    fn finished(&mut self, _finished: &Finished) -> Result<()> {
        Ok(())
    }
}

/// What is known before the first step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Started {
    /// The run folder.
    pub out: PathBuf,
    /// Steps already made by the run that this one resumes; 0 for a new one.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Tokens already seen.
    pub tokens: u64,
    /// Positions a step.
    pub tokens_per_step: u64,
    /// Trained numbers.
    pub parameters: u64,
    /// Documents, training rows and bytes of text in one pass over the data.
    pub documents: u64,
    /// See `documents`.
    pub rows_per_epoch: u64,
    /// See `documents`.
    pub text_bytes: u64,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Remarks about the data, one line each.
    pub notes: Vec<String>,
}

/// One optimiser step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Which, counted from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Positions seen since the run began, this step's included.
    pub tokens: u64,
    /// Mean loss of the step's unmasked tokens, in nats, or of its pairs of answers or its texts with labels.
    pub loss: f64,
    /// What the router terms added to what was minimised.
    pub router_loss: f64,
    /// Mean loss of the modules of multi-token prediction, without its weight; none where there are none to train.
    pub mtp_loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Positions of this step by the seconds it took, without evaluation and saving.
    pub tokens_per_s: f64,
    /// Seconds the step took.
    pub seconds: f64,
    /// The routers' balance over the whole step, a MoE layer each.
    pub router: Vec<RouterBalance>,
    /// How the step's pairs of answers stood before it, where there are pairs.
    pub preferred: Option<Preferred>,
    /// How many of the step's texts were given their label before it, where they have some.
    pub classified: Option<Classified>,
    /// The held-out loss, on evaluation steps.
    pub evaluation: Option<Evaluation>,
}

/// How pairs of answers stand, of which one was judged the better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Preferred {
    /// Pairs.
    pub pairs: u64,
    /// Those whose chosen answer has gained more than the rejected one (without a reference: has the larger reward).
    pub right: u64,
    /// Those whose chosen answer is the likelier one, whatever the reference says.
    pub likelier: u64,
    /// Sum of the margins.
    pub margin_sum: f64,
}

impl Preferred {
    pub(crate) fn add(&mut self, margin: f64, likelier: bool) {
        self.join(&Self {
            pairs: 1,
            right: u64::from(margin > 0.0),
            likelier: u64::from(likelier),
            margin_sum: margin,
        });
    }

    pub(crate) fn join(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.right += other.right;
        self.likelier += other.likelier;
        self.margin_sum += other.margin_sum;
    }

    /// Share of pairs that stand right.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.pairs.max(1) as f64
    }

    /// Share of pairs whose chosen answer is the likelier one.
    pub fn likelier_share(&self) -> f64 {
        self.likelier as f64 / self.pairs.max(1) as f64
    }

    /// Mean margin.
    pub fn margin(&self) -> f64 {
        self.margin_sum / self.pairs.max(1) as f64
    }
}

/// How texts with labels stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Classified {
    /// Texts.
    pub texts: u64,
    /// Those that are given their own label.
    pub right: u64,
    /// The mean F1 of the labels that were met.
    pub macro_f1: f64,
}

impl Classified {
    pub(crate) fn of(tally: &Tally) -> Self {
        Self { texts: tally.texts(), right: tally.right(), macro_f1: tally.macro_f1() }
    }

    /// Share of texts that are given their own label.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.texts.max(1) as f64
    }
}

/// The held-out loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss of the unmasked tokens, in nats, or of the pairs of answers or the texts with labels.
    pub loss: f64,
    /// The same in bits a byte of text, the ends of documents paid for; none where it is not text that is foretold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// How pairs of answers stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred: Option<Preferred>,
    /// How texts with labels stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classified: Option<Classified>,
    /// Unmasked tokens read.
    pub tokens: u64,
    /// Bytes of text they stand for.
    pub text_bytes: u64,
}

/// A step whose loss or gradient was not a number, and what was done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// The step, counted from 1.
    pub step: u64,
    /// `loss`, `grad_norm`, or the name of a weight.
    pub what: String,
    /// The value met.
    pub value: f64,
    /// The step after which the run goes on: the one before, or that of the checkpoint it went back to.
    pub back_to: u64,
}

/// A checkpoint on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// After which step.
    pub step: u64,
    /// Where.
    pub path: PathBuf,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are made.
    Complete,
    /// It was asked to stop; what it had done is saved.
    Interrupted,
    /// The held-out loss has not fallen for as long as the recipe waits; what it had done is saved.
    Stale,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// Steps made, in all.
    pub step: u64,
    /// Positions seen, in all.
    pub tokens: u64,
    /// Seconds since this process began to train.
    pub seconds: f64,
    /// The newest checkpoint; `None` where the run was stopped before its first step.
    pub checkpoint: Option<PathBuf>,
    /// The last held-out loss measured.
    pub evaluation: Option<Evaluation>,
    /// The lowest held-out loss, and after which step it was.
    pub best: Option<Best>,
}
