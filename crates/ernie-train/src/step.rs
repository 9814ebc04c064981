//! One step's gradient, from micro-batches: forward, objective, backward.
//!
//! Nothing here changes a weight. Sums are divided by the whole step's count from the start, so that 1 × 8 and 8 × 1 micro-batches
//! leave the same gradient; what the routers' balance loss must know of the whole step is gathered first, in a pass of its own, and only
//! when there is more than one micro-batch to gather over.

use ernie_data::Batch;
use ernie_model::{Decoder, Tokens};
use ernie_nn::{no_grad, ops};

use crate::balance::{Dispatch, Routings, router_loss};
use crate::error::{Error, Result};
use crate::objective;
use crate::recipe::Objective;

/// What a step measured; the gradient lies in the parameters.
pub struct StepLoss {
    /// Mean loss of the unmasked tokens, in nats.
    pub loss: f64,
    /// What the router terms added to what is minimised.
    pub router_loss: f64,
    /// Unmasked tokens.
    pub unmasked: usize,
    /// Mean loss of each row of each micro-batch, for a sampler that learns from it; 0 for a row without unmasked tokens.
    pub row_losses: Vec<Vec<f32>>,
    pub(crate) dispatch: Dispatch,
}

impl StepLoss {
    /// The routers' balance over the step, a MoE layer each.
    pub fn router(&self) -> Vec<crate::balance::RouterBalance> {
        self.dispatch.report()
    }
}

/// Adds the gradient of one step over `micro_batches` into the parameters of `decoder`.
///
/// # Errors
/// [`Error::NoData`] if no token of the step is unmasked.
pub fn accumulate(decoder: &Decoder, micro_batches: &[Batch], settings: &Objective) -> Result<StepLoss> {
    let positions: usize = micro_batches.iter().map(|batch| batch.ids.len()).sum();
    let unmasked: usize = micro_batches.iter().map(Batch::unmasked).sum();
    if unmasked == 0 {
        let message = format!("all {positions} labels of the step are masked");
        return Err(Error::NoData { what: "data.train", message });
    }
    let divisor = objective::divisor(settings.normalise, unmasked, positions);

    let mut ahead = None;
    if settings.router_balance > 0.0 && micro_batches.len() > 1 && decoder.moe_layers().next().is_some() {
        let mut dispatch = Dispatch::default();
        for batch in micro_batches {
            let mut routings = Routings::default();
            no_grad(|| decoder.hidden(&tokens(batch), None, &mut routings))?;
            dispatch.add(&routings)?;
        }
        ahead = Some(dispatch);
    }

    let mut dispatch = Dispatch::default();
    let (mut loss, mut router, mut row_losses) = (0.0, 0.0, Vec::new());
    for (index, batch) in micro_batches.iter().enumerate() {
        let mut routings = Routings::default();
        let hidden = decoder.hidden(&tokens(batch), None, &mut routings)?;
        dispatch.add(&routings)?;
        let objective::Loss { mut value, token_losses } =
            objective::loss(settings.kind, decoder, &hidden, batch, divisor)?;
        drop(hidden);
        let whole = ahead.as_ref().unwrap_or(&dispatch);
        if let Some(term) = router_loss(decoder, &routings, whole, settings, positions, index == 0)? {
            router += f64::from(term.scalar()?);
            value = ops::add(&value, &term)?;
        }
        drop(routings);
        value.backward()?;
        loss += token_losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        row_losses.push(row_means(batch, &token_losses));
    }
    Ok(StepLoss { loss: loss / unmasked as f64, router_loss: router, unmasked, row_losses, dispatch })
}

/// A batch as the decoder takes it.
pub(crate) fn tokens(batch: &Batch) -> Tokens {
    Tokens::packed(batch.ids.clone(), &batch.lengths)
}

/// Each row's mean loss over its unmasked tokens.
fn row_means(batch: &Batch, losses: &[f32]) -> Vec<f32> {
    let length = batch.seq_len.max(1);
    let rows = losses.chunks(length).zip(batch.targets.chunks(length));
    rows.map(|(losses, targets)| {
        let counted = targets.iter().filter(|&&target| target != ernie_data::packing::IGNORED).count();
        losses.iter().sum::<f32>() / counted.max(1) as f32
    })
    .collect()
}
