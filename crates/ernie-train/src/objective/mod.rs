//! What is minimised: a batch and its hidden states in, a scalar to differentiate out. One file an objective.

mod lm;

use ernie_data::Batch;
use ernie_model::Decoder;
use ernie_nn::Value;

use crate::error::Result;
use crate::recipe::{Normalise, ObjectiveKind};

/// One micro-batch's share of a step's loss.
pub(crate) struct Loss {
    /// What is differentiated: already divided by the step's divisor.
    pub(crate) value: Value,
    /// Each position's loss in nats, not divided; 0 where masked.
    pub(crate) token_losses: Vec<f32>,
}

/// The loss of `kind` on one micro-batch, divided by `divisor`.
pub(crate) fn loss(
    kind: ObjectiveKind,
    decoder: &Decoder,
    hidden: &Value,
    batch: &Batch,
    divisor: f64,
) -> Result<Loss> {
    match kind {
        // What an assistant is to write is a matter of the targets.
        ObjectiveKind::Lm | ObjectiveKind::Sft => lm::loss(decoder, hidden, batch, divisor),
    }
}

/// What a step's summed loss is divided by, from the whole step's counts.
pub(crate) fn divisor(normalise: Normalise, unmasked: usize, positions: usize) -> f64 {
    match normalise {
        Normalise::Tokens => unmasked as f64,
        Normalise::Constant => positions as f64,
    }
}
