//! A look inside a pass, for parity tests, router statistics and losses on the router.

use ernie_nn::Value;
use ernie_nn::ops::Routing;

/// Called with what happens inside a forward pass. `()` looks away.
///
/// Names: `embed_out`, and for layer N `layer.N.attn_out`, `layer.N.mlp_out` (before the residual sum),
/// `layer.N.out` (after both).
pub trait Probe {
    /// An intermediate result, `[T, h]`.
    fn record(&mut self, name: &str, value: &Value) {
        let _ = (name, value);
    }

    /// Whether [`Self::record`] wants anything: names are only formatted if so.
    fn records(&self) -> bool {
        false
    }

    /// The routing of one mixture-of-experts layer.
    fn routing(&mut self, layer: usize, routing: &Routing) {
        let _ = (layer, routing);
    }
}

impl Probe for () {}
