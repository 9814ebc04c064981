//! What is minimised: a batch and its hidden states in, a scalar to differentiate out. One file an objective.

mod classify;
mod lm;
pub(crate) mod mtp;
mod preference;

use ernie_data::Batch;
use ernie_data::labelled::Tally;
use ernie_model::Decoder;
use ernie_nn::Value;

use crate::error::Result;
use crate::observe::Preferred;
use crate::recipe::{Normalise, Objective, ObjectiveKind};
pub(crate) use preference::{Reference, log_probabilities};

/// One micro-batch's share of a step's loss.
pub(crate) struct Loss {
    /// What is differentiated: already divided by the step's divisor.
    pub(crate) value: Value,
    /// The losses of all [units](units), not divided.
    pub(crate) sum: f64,
    /// Each row's mean, for a sampler that learns from it; 0 for a row without any.
    pub(crate) row_losses: Vec<f32>,
    /// How the pairs stood, where there are pairs.
    pub(crate) preferred: Option<Preferred>,
    /// Which labels the texts were given, where they have some.
    pub(crate) tally: Option<Tally>,
}

/// The loss of one micro-batch, divided by `divisor`.
pub(crate) fn loss(
    settings: &Objective,
    decoder: &Decoder,
    hidden: &Value,
    batch: &Batch,
    reference: &Reference,
    divisor: f64,
) -> Result<Loss> {
    match settings.kind {
        // What an assistant is to write is a matter of the targets.
        ObjectiveKind::Lm | ObjectiveKind::Sft => lm::loss(decoder, hidden, batch, divisor),
        ObjectiveKind::Classify => classify::loss(decoder, hidden, batch, divisor),
        ObjectiveKind::Dpo => preference::loss(decoder, hidden, batch, settings, reference, divisor),
    }
}

/// What a batch has losses of: tokens, pairs of answers, or texts with a label.
pub(crate) fn units(kind: ObjectiveKind, batch: &Batch) -> usize {
    match kind {
        // The one target of a text is its label.
        ObjectiveKind::Lm | ObjectiveKind::Sft | ObjectiveKind::Classify => batch.unmasked(),
        ObjectiveKind::Dpo => batch.pairs().len(),
    }
}

/// What a step's summed loss is divided by, from the whole step's counts.
pub(crate) fn divisor(settings: &Objective, units: usize, positions: usize) -> f64 {
    match (settings.kind, settings.normalise) {
        (ObjectiveKind::Dpo | ObjectiveKind::Classify, _) | (_, Normalise::Tokens) => units as f64,
        (_, Normalise::Constant) => positions as f64,
    }
}
