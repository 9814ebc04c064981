//! Routers kept healthy: statistics over a whole step, the losses on them, and the correction bias that needs no loss.
//!
//! With gradient accumulation the balance loss depends on the whole step's assignments, which are known only after every micro-batch has
//! run forward; `Dispatch` carries them. Averaging the loss of each micro-batch instead would balance each by itself, which is another,
//! worse objective (it forbids specialisation inside a micro-batch).

use ernie_model::decoder::Routing;
use ernie_model::{Decoder, Probe};
use ernie_nn::{Value, ops};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::recipe::Objective;

/// One MoE layer's balance over a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouterBalance {
    /// Index of the layer.
    pub layer: usize,
    /// Share of all assignments that went to each expert; sums to 1.
    pub load: Vec<f32>,
    /// `max load / mean load − 1`: 0 is even, `E − 1` is all to one.
    pub max_vio: f64,
    /// Mean entropy of the tokens' router probabilities by its largest value `ln E`: 1 is undecided, 0 is certain.
    pub entropy: f64,
    /// Experts that no token reached.
    pub dead: usize,
}

/// Keeps the routings of one forward pass.
#[derive(Default)]
pub(crate) struct Routings(pub(crate) Vec<(usize, Routing)>);

impl Probe for Routings {
    fn routing(&mut self, layer: usize, routing: &Routing) {
        self.0.push((layer, routing.clone()));
    }
}

/// How the tokens of a step were spread over the experts of each MoE layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dispatch {
    layers: Vec<LayerDispatch>,
}

#[derive(Clone, Debug)]
struct LayerDispatch {
    layer: usize,
    usage: Vec<u64>,
    tokens: u64,
    entropy_sum: f64,
}

impl Dispatch {
    /// Adds one micro-batch.
    pub(crate) fn add(&mut self, routings: &Routings) -> Result<()> {
        for (layer, routing) in &routings.0 {
            let experts = routing.logits.dim(1);
            let at = self.layers.iter().position(|known| known.layer == *layer);
            let at = at.unwrap_or_else(|| {
                self.layers.push(LayerDispatch { layer: *layer, usage: vec![0; experts], tokens: 0, entropy_sum: 0.0 });
                self.layers.len() - 1
            });
            let Some(sum) = self.layers.get_mut(at) else { continue };
            sum.usage.iter_mut().zip(routing.usage()).for_each(|(sum, usage)| *sum += u64::from(usage));
            sum.tokens += routing.logits.dim(0) as u64;
            let probabilities = routing.probabilities.to_vec()?;
            sum.entropy_sum -=
                probabilities.iter().filter(|p| **p > 0.0).map(|&p| f64::from(p) * f64::from(p).ln()).sum::<f64>();
        }
        Ok(())
    }

    /// The shares of one layer's assignments, zeros where nothing was assigned.
    fn shares(&self, layer: usize) -> Option<Vec<f32>> {
        self.layers.iter().find(|known| known.layer == layer).map(LayerDispatch::shares)
    }

    /// What the log says of it.
    pub(crate) fn report(&self) -> Vec<RouterBalance> {
        let report = self.layers.iter().map(|sum| {
            let load = sum.shares();
            let experts = load.len();
            let most = load.iter().copied().fold(0.0, f32::max);
            // One expert alone has no choice to be undecided about.
            let largest = if experts > 1 { (experts as f64).ln() } else { 1.0 };
            RouterBalance {
                layer: sum.layer,
                max_vio: f64::from(most) * experts as f64 - 1.0,
                entropy: sum.entropy_sum / sum.tokens.max(1) as f64 / largest,
                dead: sum.usage.iter().filter(|usage| **usage == 0).count(),
                load,
            }
        });
        report.collect()
    }

    /// Moves each correction bias by `rate` towards the mean load: `b_e += rate · sign(mean − usage_e)` (arXiv:2408.15664).
    pub(crate) fn correct_bias(&self, decoder: &Decoder, rate: f64) -> Result<()> {
        if rate == 0.0 {
            return Ok(());
        }
        for (layer, moe) in decoder.moe_layers() {
            let mut bias = moe.correction_bias();
            let Some(sum) = self.layers.iter().find(|known| known.layer == layer) else { continue };
            if bias.is_empty() {
                continue;
            }
            move_bias(&mut bias, &sum.usage, rate);
            moe.set_correction_bias(&bias)?;
        }
        Ok(())
    }
}

impl LayerDispatch {
    fn shares(&self) -> Vec<f32> {
        let total = self.usage.iter().sum::<u64>().max(1) as f64;
        self.usage.iter().map(|&usage| (usage as f64 / total) as f32).collect()
    }
}

/// `b_e += rate · sign(mean(usage) − usage_e)`, in integers so that an even load moves nothing.
fn move_bias(bias: &mut [f32], usage: &[u64], rate: f64) {
    let total: u64 = usage.iter().sum();
    for (bias, &usage_e) in bias.iter_mut().zip(usage) {
        let sign = (i128::from(total) - i128::from(usage_e) * usage.len() as i128).signum();
        *bias += (rate * sign as f64) as f32;
    }
}

/// The part of the routers' losses that one micro-batch contributes; `None` where the recipe asks for none.
///
/// `tokens` is the whole step's; `first` says whether this micro-batch carries the terms that depend on weights alone.
pub(crate) fn router_loss(
    decoder: &Decoder,
    routings: &Routings,
    step: &Dispatch,
    objective: &Objective,
    tokens: usize,
    first: bool,
) -> Result<Option<Value>> {
    let mut terms = Terms(None);
    for (layer, routing) in &routings.0 {
        if objective.router_balance > 0.0 {
            let shares = step.shares(*layer).unwrap_or_default();
            terms.add(ops::balance_loss(&routing.probabilities, &shares, tokens)?, objective.router_balance)?;
        }
        if objective.router_z > 0.0 {
            terms.add(ops::z_loss(&routing.logits, tokens)?, objective.router_z)?;
        }
    }
    if objective.router_orthogonal > 0.0 && first {
        for router in decoder.moe_layers().filter_map(|(_, moe)| moe.router()) {
            terms.add(ops::orthogonal_loss(&router.value())?, objective.router_orthogonal)?;
        }
    }
    Ok(terms.0)
}

/// A weighted sum of scalars.
struct Terms(Option<Value>);

impl Terms {
    fn add(&mut self, term: Value, weight: f64) -> Result<()> {
        let term = ops::scale(&term, weight)?;
        self.0 = Some(match self.0.take() {
            Some(sum) => ops::add(&sum, &term)?,
            None => term,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routings(logits: Vec<f32>, experts: usize, k: usize) -> Routings {
        let rows = logits.len() / experts;
        let logits = Value::from_vec(logits, &[rows, experts]).unwrap();
        Routings(vec![(1, ops::route(&logits, &[], k, 1e-12).unwrap())])
    }

    #[test]
    fn statistics_of_two_micro_batches_are_those_of_the_whole() {
        let logits: Vec<f32> = (0..40).map(|i| ((i * 7919) % 13) as f32 / 3.0).collect();
        let mut whole = Dispatch::default();
        whole.add(&routings(logits.clone(), 4, 2)).unwrap();
        let mut parts = Dispatch::default();
        parts.add(&routings(logits[..12].to_vec(), 4, 2)).unwrap();
        parts.add(&routings(logits[12..].to_vec(), 4, 2)).unwrap();
        let (whole, parts) = (&whole.report()[0], &parts.report()[0]);
        assert_eq!((&whole.load, whole.max_vio, whole.dead), (&parts.load, parts.max_vio, parts.dead));
        assert!((whole.entropy - parts.entropy).abs() < 1e-9);
        assert!((whole.load.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn all_to_one_expert_is_seen() {
        let mut dispatch = Dispatch::default();
        dispatch.add(&routings([50.0, 0.0, 0.0, 0.0].repeat(6), 4, 1)).unwrap();
        let report = &dispatch.report()[0];
        assert_eq!(report.load, [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(report.dead, 3);
        assert!((report.max_vio - 3.0).abs() < 1e-9 && report.entropy < 1e-9);
    }

    #[test]
    fn bias_moves_towards_the_mean_and_rests_when_even() {
        let mut bias = vec![0.0; 3];
        move_bias(&mut bias, &[5, 1, 3], 0.5);
        assert_eq!(bias, [-0.5, 0.5, 0.0]);
        move_bias(&mut bias, &[7, 7, 7], 0.5);
        assert_eq!(bias, [-0.5, 0.5, 0.0]);
        move_bias(&mut bias, &[0, 0, 0], 0.5);
        assert_eq!(bias, [-0.5, 0.5, 0.0]);
    }
}
