//! Classification: the cross-entropy of a text's label, from the hidden state of its last token.
//!
//! In a row the label stands behind its text as the id that the last token foretells ([`ernie_data::labelled`]), so that the one target of a text is its label. It
//! is looked up in the head for labels instead of that for words.

use ernie_data::Batch;
use ernie_data::labelled::Tally;
use ernie_data::packing::IGNORED;
use ernie_model::Decoder;
use ernie_model::decoder::likeliest;
use ernie_nn::Value;

use super::Loss;
use super::lm::row_means;
use crate::error::Result;

/// `Σ cross-entropy / divisor` of one micro-batch's texts.
pub(super) fn loss(decoder: &Decoder, hidden: &Value, batch: &Batch, divisor: f64) -> Result<Loss> {
    let loss = decoder.label_loss(hidden, &batch.targets, 1.0 / divisor)?;
    let last: Vec<usize> = (0..batch.targets.len()).filter(|&at| batch.targets[at] != IGNORED).collect();
    let logits = decoder.label_logits(hidden, &last)?;
    let mut tally = Tally::default();
    for (&at, logits) in last.iter().zip(logits.chunks_exact(decoder.config().labels.len())) {
        tally.add(batch.targets[at] as usize, likeliest(logits));
    }
    let sum = loss.rows.iter().map(|&loss| f64::from(loss)).sum();
    let row_losses = row_means(batch, &loss.rows);
    Ok(Loss { value: loss.loss, sum, row_losses, preferred: None, tally: Some(tally) })
}
