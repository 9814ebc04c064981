//! Next-token prediction: the cross-entropy of every unmasked position.

use ernie_data::Batch;
use ernie_model::Decoder;
use ernie_nn::Value;

use super::Loss;
use crate::error::Result;

/// `Σ cross-entropy / divisor` of one micro-batch.
pub(super) fn loss(decoder: &Decoder, hidden: &Value, batch: &Batch, divisor: f64) -> Result<Loss> {
    let loss = decoder.loss(hidden, &batch.targets, 1.0 / divisor)?;
    Ok(Loss { value: loss.loss, token_losses: loss.rows })
}
