//! Next-token prediction: the cross-entropy of every unmasked position.

use ernie_data::Batch;
use ernie_data::packing::IGNORED;
use ernie_model::Decoder;
use ernie_nn::Value;

use super::Loss;
use crate::error::Result;

/// `Σ cross-entropy / divisor` of one micro-batch.
pub(super) fn loss(decoder: &Decoder, hidden: &Value, batch: &Batch, divisor: f64) -> Result<Loss> {
    let loss = decoder.loss(hidden, &batch.targets, 1.0 / divisor)?;
    let sum = loss.rows.iter().map(|&loss| f64::from(loss)).sum();
    Ok(Loss { value: loss.loss, sum, row_losses: row_means(batch, &loss.rows), preferred: None, tally: None })
}

/// Each row's mean loss over its unmasked tokens.
pub(super) fn row_means(batch: &Batch, losses: &[f32]) -> Vec<f32> {
    let length = batch.seq_len.max(1);
    let rows = losses.chunks(length).zip(batch.targets.chunks(length));
    rows.map(|(losses, targets)| {
        let counted = targets.iter().filter(|&&target| target != IGNORED).count();
        losses.iter().sum::<f32>() / counted.max(1) as f32
    })
    .collect()
}
