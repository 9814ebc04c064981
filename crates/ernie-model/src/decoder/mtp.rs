//! Multi-token prediction: modules behind the model, each of which foretells one token further (DeepSeek-V3, arXiv:2412.19437, section 2.2, as
//! published for ERNIE 4.5).
//!
//! With `t` the tokens, `E` the embedding and `h⁰` the residual stream after the last layer, module `d = 1, 2, …` gives
//!
//! ```text
//! u_i  = W_proj · [RMSNorm_emb(E[t_{i+d}]); RMSNorm_hidden(h^{d-1}_i)]
//! h^d_i = DecoderLayer(u_i)                       with a dense feed-forward
//! logits of t_{i+d+1} = W_head · RMSNorm(h^d_i)   head and final norm are the model's own
//! ```
//!
//! They are trained beside the model and stay in its checkpoint; answers are made without them.

use std::sync::Arc;

use ernie_nn::ops::{self, Angles, Outputs};
use ernie_nn::{Linear, Parameter, Through, Value};

use super::layer::{DecoderLayer, Pass};
use super::norm::RmsNorm;
use super::{Decoder, Tokens};
use crate::Result;

pub(crate) struct MtpModule {
    pub(crate) emb_norm: RmsNorm,
    pub(crate) hidden_norm: RmsNorm,
    pub(crate) linear_proj: Linear,
    pub(crate) block: DecoderLayer,
}

impl MtpModule {
    pub(crate) fn collect(&self, into: &mut Vec<Arc<Parameter>>) {
        into.extend([self.emb_norm.weight().clone(), self.hidden_norm.weight().clone()]);
        into.extend(self.linear_proj.weight().parameter().cloned());
        self.block.collect(into);
    }
}

impl Decoder {
    /// How many modules of multi-token prediction it has to train.
    pub fn mtp_modules(&self) -> usize {
        self.mtp.len()
    }

    /// One step further than `residual`: what module `module` (from 0) makes of the stream behind it ([`Decoder::residual`], or what the module
    /// before gave). Give it to [`Decoder::normed`] and [`Decoder::loss`].
    ///
    /// Rows whose token `module + 1` further on lies beyond their sequence mean nothing, and no other row sees them.
    ///
    /// # Shapes
    /// `T` tokens, `[T, h]` → `[T, h]`.
    ///
    /// # Errors
    /// As [`Decoder::residual`]; [`crate::Error::Request`] where there is no such module.
    pub fn further(&self, module: usize, residual: &Value, tokens: &Tokens) -> Result<Value> {
        let here = self
            .mtp
            .get(module)
            .ok_or_else(|| crate::Error::Request(format!("module {module} of {}", self.mtp.len())))?;
        tokens.check(self.config.vocab_size)?;
        let coming = ops::embedding(&shifted(tokens, module + 1), &self.embed_tokens)?;
        let both = ops::concat(&here.emb_norm.forward(&coming)?, &here.hidden_norm.forward(residual)?)?;
        // The residual stream is f32 in every mode.
        let u = ops::widen(&here.linear_proj.forward(&both, &Through::Weights)?)?;
        let mut pass = Pass {
            layer: self.layers.len() + module,
            spans: &tokens.spans,
            through: Through::Weights,
            angles: Angles::new(&tokens.positions, self.config.head_dim, self.config.rope_theta),
            cache: None,
            probe: &mut (),
            activations: self.activations,
            outputs: Outputs::Read,
        };
        self.run(&here.block, &u, &mut pass)
    }
}

/// The id `by` tokens further on in each row's sequence; beyond its end the row's own.
fn shifted(tokens: &Tokens, by: usize) -> Vec<u32> {
    let mut ids = tokens.ids.clone();
    for span in &tokens.spans {
        let rows = span.rows.clone();
        for row in rows.clone().take(rows.len().saturating_sub(by)) {
            ids[row] = tokens.ids[row + by];
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifting_stays_inside_a_sequence() {
        let tokens = Tokens::packed(vec![1, 2, 3, 4, 5, 6], &[4, 1, 1]);
        assert_eq!(shifted(&tokens, 1), [2, 3, 4, 4, 5, 6]);
        assert_eq!(shifted(&tokens, 2), [3, 4, 3, 4, 5, 6]);
        assert_eq!(shifted(&tokens, 9), tokens.ids);
    }
}
