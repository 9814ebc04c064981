//! One step's gradient, from micro-batches: forward, objective, backward.
//!
//! Nothing here changes a weight. Sums are divided by the whole step's count from the start, so that 1 × 8 and 8 × 1 micro-batches
//! leave the same gradient; what the routers' balance loss must know of the whole step is gathered first, in a pass of its own, and only
//! when there is more than one micro-batch to gather over.

use std::sync::Arc;

use ernie_data::Batch;
use ernie_data::labelled::Tally;
use ernie_model::{Decoder, Tokens};
use ernie_nn::{Parameter, no_grad, ops};

use crate::balance::{Dispatch, Routings, router_loss};
use crate::error::{Error, Result};
use crate::objective::{self, Reference, mtp};
use crate::observe::{Classified, Preferred};
use crate::recipe::Objective;

/// What a step measured; the gradient lies in the parameters.
pub struct StepLoss {
    /// Mean loss of the unmasked tokens, in nats, or of the pairs of answers or the texts with labels.
    pub loss: f64,
    /// What the router terms added to what is minimised.
    pub router_loss: f64,
    /// Mean loss of the modules of multi-token prediction, in nats and without its weight; none where the model has none to train.
    pub mtp_loss: Option<f64>,
    /// Unmasked tokens, pairs, or texts.
    pub units: usize,
    /// Mean loss of each row of each micro-batch, for a sampler that learns from it; 0 for a row without any.
    pub row_losses: Vec<Vec<f32>>,
    /// How the pairs stood before the step, where there are pairs.
    pub preferred: Option<Preferred>,
    /// How many texts were given their label before the step, where they have some.
    pub classified: Option<Classified>,
    pub(crate) dispatch: Dispatch,
}

impl StepLoss {
    /// The routers' balance over the step, a MoE layer each.
    pub fn router(&self) -> Vec<crate::balance::RouterBalance> {
        self.dispatch.report()
    }
}

/// Is told of a parameter as soon as its gradient of the whole step is there.
pub(crate) type Told<'a> = &'a mut dyn FnMut(&Arc<Parameter>) -> ernie_nn::Result<()>;

/// Adds the gradient of one step over `micro_batches` into the parameters of `decoder`.
///
/// # Errors
/// [`Error::NoData`] if no token of the step is unmasked.
pub fn accumulate(decoder: &Decoder, micro_batches: &[Batch], settings: &Objective) -> Result<StepLoss> {
    accumulate_beside(decoder, micro_batches, settings, &Reference::new(), None)
}

/// As [`accumulate`], and `told` of each parameter as soon as its gradient is whole, which is while the last micro-batch is walked back
/// ([`ernie_nn::Value::backward_telling`]): [`crate::optimizer::Optimizer::update`] may then use it up. Nobody is told of a step whose loss is not a number.
///
/// # Errors
/// As there, and what `told` fails with.
pub fn accumulate_telling(
    decoder: &Decoder,
    micro_batches: &[Batch],
    settings: &Objective,
    mut told: impl FnMut(&Arc<Parameter>) -> ernie_nn::Result<()>,
) -> Result<StepLoss> {
    accumulate_beside(decoder, micro_batches, settings, &Reference::new(), Some(&mut told))
}

/// As both, with what the reference said of the answers, which a loss of preferences may ask for.
pub(crate) fn accumulate_beside(
    decoder: &Decoder,
    micro_batches: &[Batch],
    settings: &Objective,
    reference: &Reference,
    mut told: Option<Told<'_>>,
) -> Result<StepLoss> {
    let positions: usize = micro_batches.iter().map(|batch| batch.ids.len()).sum();
    let units: usize = micro_batches.iter().map(|batch| objective::units(settings.kind, batch)).sum();
    if units == 0 {
        let message = format!("all {positions} labels of the step are masked");
        return Err(Error::NoData { what: "data.train", message });
    }
    let divisor = objective::divisor(settings, units, positions);
    let mtp_divisors = mtp::divisors(settings, decoder.mtp_modules(), micro_batches);

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
    let (mut preferred, mut tally): (Option<Preferred>, Option<Tally>) = (None, None);
    let (mut sum, mut router, mut mtp_sum, mut row_losses) = (0.0, 0.0, 0.0, Vec::new());
    for (index, batch) in micro_batches.iter().enumerate() {
        let mut routings = Routings::default();
        let tokens = tokens(batch);
        let residual = decoder.residual(&tokens, None, &mut routings)?;
        dispatch.add(&routings)?;
        let hidden = decoder.normed(&residual)?;
        let loss = objective::loss(settings, decoder, &hidden, batch, reference, divisor)?;
        drop(hidden);
        let mut value = loss.value;
        if let Some((term, mean)) = mtp::loss(settings, decoder, &residual, &tokens, batch, &mtp_divisors)? {
            mtp_sum += mean;
            value = ops::add(&value, &term)?;
        }
        drop(residual);
        let whole = ahead.as_ref().unwrap_or(&dispatch);
        if let Some(term) = router_loss(decoder, &routings, whole, settings, positions, index == 0)? {
            router += f64::from(term.scalar()?);
            value = ops::add(&value, &term)?;
        }
        drop(routings);
        sum += loss.sum;
        // A loss that is no number has no gradient: whoever asks for it sees that nothing was changed.
        let finite = (sum + router + mtp_sum).is_finite();
        match &mut told {
            Some(told) if finite && index + 1 == micro_batches.len() => value.backward_telling(told)?,
            _ if finite => value.backward()?,
            _ => {}
        }
        row_losses.push(loss.row_losses);
        if let Some(of_batch) = loss.preferred {
            preferred.get_or_insert_default().join(&of_batch);
        }
        if let Some(of_batch) = loss.tally {
            tally.get_or_insert_default().join(&of_batch);
        }
    }
    let mtp_loss = (!mtp_divisors.is_empty()).then_some(mtp_sum);
    let (loss, classified) = (sum / units as f64, tally.as_ref().map(Classified::of));
    Ok(StepLoss { loss, router_loss: router, mtp_loss, units, row_losses, preferred, classified, dispatch })
}

/// A batch as the decoder takes it.
pub(crate) fn tokens(batch: &Batch) -> Tokens {
    Tokens::packed(batch.ids.clone(), &batch.lengths)
}
