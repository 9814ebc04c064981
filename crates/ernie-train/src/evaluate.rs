//! The held-out loss: every held-out row once, in order, without recording.

use ernie_data::HeldOut;
use ernie_data::packing::IGNORED;
use ernie_model::Decoder;
use ernie_nn::no_grad;

use crate::error::Result;
use crate::observe::Evaluation;
use crate::step::tokens;

/// Reads `held_out` from its first row to its last.
pub fn evaluate(decoder: &Decoder, held_out: &mut HeldOut) -> Result<Evaluation> {
    held_out.rewind();
    let (mut nats, mut counted) = (0.0, 0_u64);
    while let Some(batch) = held_out.next()? {
        let loss = no_grad(|| {
            let hidden = decoder.hidden(&tokens(&batch), None, &mut ())?;
            decoder.loss(&hidden, &batch.targets, 1.0)
        })?;
        nats += loss.rows.iter().map(|&row| f64::from(row)).sum::<f64>();
        counted += batch.targets.iter().filter(|&&target| target != IGNORED).count() as u64;
    }
    Ok(Evaluation {
        loss: nats / counted.max(1) as f64,
        bits_per_byte: held_out.bits_per_byte(nats),
        tokens: counted,
        text_bytes: held_out.text_bytes(),
    })
}
