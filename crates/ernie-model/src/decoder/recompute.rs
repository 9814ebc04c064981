//! Layers that keep their input alone, and run once more on the way back.

use ernie_nn::Value;
use ernie_nn::ops::{self, Routing};

use super::layer::{DecoderLayer, Pass};
use super::{Decoder, Probe};
use crate::{Error, Result};

/// Sees how the one layer that runs routes.
#[derive(Default)]
struct Routed(Option<Routing>);

impl Probe for Routed {
    fn routing(&mut self, _: usize, routing: &Routing) {
        self.0 = Some(routing.clone());
    }
}

impl Decoder {
    /// Whether a layer that records keeps its input alone and is run again when its gradient comes. Numbers and gradients have the same bits either way.
    pub fn set_recompute(&mut self, on: bool) {
        self.recompute = on;
    }

    /// Runs a layer, so that it is remembered as [`Self::set_recompute`] has it.
    pub(super) fn run(&self, layer: &DecoderLayer, x: &Value, pass: &mut Pass<'_>) -> Result<Value> {
        // Who looks inside wants what is there to stay, and a cache is written once.
        if !self.recompute || pass.cache.is_some() || pass.probe.records() {
            return layer.forward(x, pass);
        }
        let (again, index, activations) = (layer.clone(), pass.layer, pass.activations);
        let (spans, through, angles) = (pass.spans.to_vec(), pass.through.clone(), pass.angles.clone());
        let (outputs, routed) = ops::recomputed(x, move |x, outputs| {
            let mut routed = Routed::default();
            let (through, angles, probe) = (through.clone(), angles.clone(), &mut routed);
            let mut pass =
                Pass { layer: index, spans: &spans, through, angles, cache: None, probe, activations, outputs };
            let out = again.forward(x, &mut pass).map_err(beneath)?;
            // Losses on the router go on from what it gave.
            Ok(match routed.0 {
                Some(Routing { logits, probabilities, indices, weights }) => {
                    (vec![out, logits, probabilities], Some((indices, weights.detach())))
                }
                None => (vec![out], None),
            })
        })?;
        let mut outputs = outputs.into_iter();
        let Some(out) = outputs.next() else { return layer.forward(x, pass) };
        if let (Some((indices, weights)), Some(logits), Some(probabilities)) = (routed, outputs.next(), outputs.next())
        {
            pass.probe.routing(index, &Routing { logits, probabilities, indices, weights });
        }
        Ok(out)
    }
}

/// The error of a layer as one of the tape that runs it.
fn beneath(error: Error) -> ernie_nn::Error {
    match error {
        Error::Nn(error) => error,
        other => ernie_nn::Error::shape("recompute", other.to_string()),
    }
}
