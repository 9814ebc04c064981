//! Multi-token prediction: what the modules behind the model foretell, as a small addition to what is minimised (arXiv:2412.19437, equations 24, 25).

use ernie_data::Batch;
use ernie_data::packing::IGNORED;
use ernie_model::{Decoder, Tokens};
use ernie_nn::{Value, ops};

use crate::error::Result;
use crate::recipe::{Normalise, Objective};

/// What each module's summed loss is divided by, from the whole step's batches.
pub(crate) fn divisors(settings: &Objective, modules: usize, micro_batches: &[Batch]) -> Vec<f64> {
    let count = |module: usize, batch: &Batch| match settings.normalise {
        Normalise::Tokens => targets(batch, module).iter().filter(|&&target| target != IGNORED).count(),
        Normalise::Constant => batch.ids.len(),
    };
    let of = |module| micro_batches.iter().map(|batch| count(module, batch)).sum::<usize>() as f64;
    (0..modules).map(of).collect()
}

/// `Σ` over modules of their cross-entropies divided by `divisors`, and its mean as it is minimised: times the recipe's weight. `None` where the
/// model has no modules, or no row of this batch has a token that far on.
pub(crate) fn loss(
    settings: &Objective,
    decoder: &Decoder,
    residual: &Value,
    tokens: &Tokens,
    batch: &Batch,
    divisors: &[f64],
) -> Result<Option<(Value, f64)>> {
    let (mut stream, mut total, mut sum) = (residual.clone(), None, 0.0);
    for (module, &divisor) in divisors.iter().enumerate() {
        let targets = targets(batch, module);
        // None further on either: what lies beyond a sequence for this module does so for the next.
        if divisor == 0.0 || targets.iter().all(|&target| target == IGNORED) {
            break;
        }
        stream = decoder.further(module, &stream, tokens)?;
        let factor = settings.mtp_weight / (divisors.len() as f64 * divisor);
        let found = decoder.loss(&decoder.normed(&stream)?, &targets, factor)?;
        sum += found.rows.iter().map(|&loss| f64::from(loss)).sum::<f64>() / divisor;
        total = Some(match total {
            Some(total) => ops::add(&total, &found.loss)?,
            None => found.loss,
        });
    }
    Ok(total.map(|value| (value, sum / divisors.len() as f64)))
}

/// What module `module` foretells at each position: the target of the position that many and one further on in the same document.
fn targets(batch: &Batch, module: usize) -> Vec<i64> {
    let (mut all, by) = (vec![IGNORED; batch.targets.len()], module + 1);
    let mut start = 0;
    for &length in &batch.lengths {
        let end = start + length;
        if length > by {
            all[start..end - by].copy_from_slice(&batch.targets[start + by..end]);
        }
        start = end;
    }
    all
}
