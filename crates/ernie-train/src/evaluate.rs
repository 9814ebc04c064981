//! The held-out loss: every held-out row once, in order, without recording.

use ernie_data::HeldOut;
use ernie_data::labelled::Tally;
use ernie_model::Decoder;
use ernie_nn::no_grad;

use crate::error::Result;
use crate::objective::{self, Reference};
use crate::observe::{Classified, Evaluation, Preferred};
use crate::recipe::{Objective, ObjectiveKind};
use crate::step::tokens;

/// The next-token loss of `held_out`, from its first row to its last.
pub fn evaluate(decoder: &Decoder, held_out: &mut HeldOut) -> Result<Evaluation> {
    evaluate_beside(decoder, held_out, &Objective::default(), &Reference::new())
}

/// The loss of `settings`, beside what the reference said of the answers.
pub(crate) fn evaluate_beside(
    decoder: &Decoder,
    held_out: &mut HeldOut,
    settings: &Objective,
    reference: &Reference,
) -> Result<Evaluation> {
    held_out.rewind();
    let (mut sum, mut units, mut tokens_read) = (0.0, 0_u64, 0_u64);
    let (mut preferred, mut tally): (Option<Preferred>, Option<Tally>) = (None, None);
    while let Some(batch) = held_out.next()? {
        let loss = no_grad(|| {
            let hidden = decoder.hidden(&tokens(&batch), None, &mut ())?;
            objective::loss(settings, decoder, &hidden, &batch, reference, 1.0)
        })?;
        sum += loss.sum;
        units += objective::units(settings.kind, &batch) as u64;
        tokens_read += batch.unmasked() as u64;
        if let Some(of_batch) = loss.preferred {
            preferred.get_or_insert_default().join(&of_batch);
        }
        if let Some(of_batch) = loss.tally {
            tally.get_or_insert_default().join(&of_batch);
        }
    }
    let of_tokens = matches!(settings.kind, ObjectiveKind::Lm | ObjectiveKind::Sft);
    Ok(Evaluation {
        loss: sum / units.max(1) as f64,
        bits_per_byte: of_tokens.then(|| held_out.bits_per_byte(sum)),
        preferred,
        classified: tally.as_ref().map(Classified::of),
        tokens: tokens_read,
        text_bytes: held_out.text_bytes(),
    })
}
