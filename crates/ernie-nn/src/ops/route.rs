//! Which experts a token goes to, and with what weight.

use ernie_kernels::{route as kernel, softmax};

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::{Result, Value};

/// The routing of a batch in one layer.
#[derive(Clone)]
pub struct Routing {
    /// Router logits `[T, E]`, before softmax.
    pub logits: Value,
    /// Their softmax `[T, E]`.
    pub probabilities: Value,
    /// The chosen experts, `k` a token, best first.
    pub indices: Vec<u32>,
    /// Their weights `[T, k]`, summing to one a token.
    pub weights: Value,
}

impl Routing {
    /// How many tokens went to each expert.
    pub fn usage(&self) -> Vec<u32> {
        let mut usage = vec![0; self.logits.dim(1)];
        for &expert in &self.indices {
            usage[expert as usize] += 1;
        }
        usage
    }

    /// Of some of the tokens, in the order asked for, without memory.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if a token is not there.
    pub fn rows(&self, rows: &[usize]) -> Result<Self> {
        let (logits, probabilities) = (self.logits.rows(rows)?, self.probabilities.rows(rows)?);
        let (weights, k) = (self.weights.rows(rows)?, self.weights.dim(1));
        let indices = rows.iter().flat_map(|&row| &self.indices[row * k..(row + 1) * k]).copied().collect();
        Ok(Self { logits, probabilities, indices, weights })
    }
}

/// Chooses the `k` experts with the largest `softmax(logits) + bias`, ties to the lower index, and weights
/// them by `p_e / max(Σ p, norm_min)`, without the bias: it selects only (Wang et al., arXiv:2408.15664).
///
/// # Shapes
/// `logits: [T, E]`, `bias: [E]` or empty. All arithmetic is f32.
pub fn route(logits: &Value, bias: &[f32], k: usize, norm_min: f64) -> Result<Routing> {
    let (rows, experts) = (logits.dim(0), logits.dim(1));
    let fits = logits.shape().len() == 2 && (1..=experts).contains(&k) && [0, experts].contains(&bias.len());
    ensure(fits, "route", || format!("logits {:?}, {} biases, top {k}", logits.shape(), bias.len()))?;
    let mut p = vec![0.0; rows * experts];
    let (mut indices, mut weights) = (vec![0; rows * k], vec![0.0; rows * k]);
    let (norm_min, bias) = (norm_min as f32, (!bias.is_empty()).then_some(bias));
    kernel::top_k(&logits.slice()?, bias, experts, k, norm_min, &mut p, &mut indices, &mut weights);

    let p = tensor(p, &[rows, experts])?;
    let kept = p.clone();
    let probabilities = Value::from_op(p, &[logits], move |gradient| {
        let mut dz = Slice::of(gradient)?.to_vec();
        softmax::backward(&Slice::of(&kept)?, &mut dz, experts);
        Ok(vec![Some(tensor(dz, kept.dims())?)])
    });
    let (kept, chosen) = (probabilities.tensor().clone(), indices.clone());
    let weights = Value::from_op(tensor(weights, &[rows, k])?, &[&probabilities], move |gradient| {
        let mut dp = vec![0.0; rows * experts];
        kernel::weights_backward(&Slice::of(&kept)?, &chosen, &Slice::of(gradient)?, experts, k, norm_min, &mut dp);
        Ok(vec![Some(tensor(dp, &[rows, experts])?)])
    });
    Ok(Routing { logits: logits.clone(), probabilities, indices, weights })
}
