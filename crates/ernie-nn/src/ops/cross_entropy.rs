//! The head and its loss as one op, so that the logits of a batch never exist whole.

use ernie_kernels::{cross_entropy as kernel, gemm};

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::value::needs_grad;
use crate::{Result, Value, Weight};

/// The target of a row that carries no loss.
pub const IGNORED: i64 = -100;

/// Rows whose logits are held at once: 128 rows of a 103,424-wide head are 53 MB.
const CHUNK_ROWS: usize = 128;

/// What the head and loss give.
pub struct CrossEntropy {
    /// The sum of the losses of counted rows, in nats, times the factor.
    pub loss: Value,
    /// Each row's loss in nats, without the factor; 0 where ignored.
    pub rows: Vec<f32>,
    /// How many rows counted.
    pub counted: usize,
}

/// `factor · Σ_t −log softmax(hidden_t · Wᵀ)[target_t]` over rows whose target is not [`IGNORED`].
///
/// # Shapes
/// `hidden: [T, h]`, `head: [V, h]`, `targets: [T]`. The loss is linear in `factor`, so the gradients are
/// taken chunk by chunk on the way forward and the logits are forgotten at once. Softmax is f32, the sum f64.
///
/// # Errors
/// [`crate::Error::Shape`] if a target is neither [`IGNORED`] nor below `V`, or if the head is not a
/// parameter while a gradient is wanted through it.
pub fn head_cross_entropy(hidden: &Value, head: &Weight, targets: &[i64], factor: f64) -> Result<CrossEntropy> {
    let op = "head_cross_entropy";
    let (rows, width, vocab) = (hidden.dim(0), hidden.dim(1), head.out_features());
    ensure(targets.len() == rows && width == head.in_features() && width > 0, op, || {
        format!("hidden {:?}, head [{vocab}, {}], {} targets", hidden.shape(), head.in_features(), targets.len())
    })?;
    if let Some(target) = targets.iter().find(|&&t| t != IGNORED && !(0..vocab as i64).contains(&t)) {
        return Err(crate::Error::shape(op, format!("target {target} in a vocabulary of {vocab}")));
    }
    let weight = head.parameter().map(|parameter| parameter.value());
    let parents: Vec<&Value> = std::iter::once(hidden).chain(&weight).collect();
    let recorded = needs_grad(&parents);
    ensure(!recorded || weight.is_some(), op, || "a stored head passes no gradient".into())?;

    let mut losses = vec![0.0; rows];
    let mut dhidden = vec![0.0; if recorded { rows * width } else { 0 }];
    let mut dweight = vec![0.0; if recorded { vocab * width } else { 0 }];
    let input = hidden.slice()?;
    for start in (0..rows).step_by(CHUNK_ROWS) {
        let end = (start + CHUNK_ROWS).min(rows);
        if targets[start..end].iter().all(|&target| target == IGNORED) {
            continue;
        }
        let x = &input[start * width..end * width];
        let mut logits = head.multiply(x)?;
        kernel::forward_backward(&mut logits, &targets[start..end], vocab, 1.0, &mut losses[start..end]);
        if let (true, Some(weight)) = (recorded, &weight) {
            // The kernel has left the gradient where the logits were.
            let w = weight.slice()?;
            gemm::nn(&logits, &w, &mut dhidden[start * width..end * width], end - start, vocab, width, false);
            gemm::tn(&logits, x, &mut dweight, vocab, end - start, width, true);
        }
    }
    drop(input);
    let total: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
    let counted = targets.iter().filter(|&&target| target != IGNORED).count();
    let shape = [rows, width];
    let loss = Value::from_op(tensor(vec![(factor * total) as f32], &[1])?, &parents, move |seed| {
        let seed = Slice::of(seed)?[0] * factor as f32;
        let scaled = |mut data: Vec<f32>, shape: &[usize]| {
            data.iter_mut().for_each(|d| *d *= seed);
            tensor(data, shape)
        };
        Ok(vec![Some(scaled(dhidden, &shape)?), Some(scaled(dweight, &[vocab, width])?)])
    });
    Ok(CrossEntropy { loss, rows: losses, counted })
}
