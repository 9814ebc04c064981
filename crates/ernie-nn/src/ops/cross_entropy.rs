//! The head and its loss as one op, so that the logits of a batch never exist whole.

use ernie_kernels::floats::{FloatVec, Floats, FloatsMut};
use ernie_kernels::{cross_entropy as kernel, elementwise, fresh};

use super::multiply::Products;
use crate::error::ensure;
use crate::slice::{Slice, View, from_floats, tensor};
use crate::value::needs_grad;
use crate::{Result, Value, Weight, Width};

/// The target of a row that carries no loss.
pub const IGNORED: i64 = -100;

/// The most bytes of logits that are held at once, unless so few rows fit: the more rows, the less often the head's weights are packed and its
/// gradient is taken up.
const CHUNK: usize = 172 << 20;

/// Fewest and most rows of a chunk.
const ROWS: [usize; 2] = [128, 512];

/// What the head and loss give.
pub struct CrossEntropy {
    /// The sum of the losses of counted rows, in nats, each times its factor.
    pub loss: Value,
    /// Each row's loss in nats, without its factor; 0 where ignored.
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
/// [`crate::Error::Shape`] if a target is neither [`IGNORED`] nor below `V`.
pub fn head_cross_entropy(hidden: &Value, head: &Weight, targets: &[i64], factor: f64) -> Result<CrossEntropy> {
    cross_entropy(hidden, head, targets, factor, None)
}

/// As [`head_cross_entropy`], with a factor of its own for each row: `Σ_t factors[t] · −log softmax(hidden_t · Wᵀ)[target_t]`.
///
/// # Shapes
/// `factors: [T]`; any sign, finite.
///
/// # Errors
/// As there.
pub fn weighted_head_cross_entropy(
    hidden: &Value,
    head: &Weight,
    targets: &[i64],
    factors: &[f32],
) -> Result<CrossEntropy> {
    cross_entropy(hidden, head, targets, 1.0, Some(factors))
}

fn cross_entropy(
    hidden: &Value,
    head: &Weight,
    targets: &[i64],
    factor: f64,
    factors: Option<&[f32]>,
) -> Result<CrossEntropy> {
    let op = "head_cross_entropy";
    let (rows, width, vocab) = (hidden.dim(0), hidden.dim(1), head.out_features());
    ensure(targets.len() == rows && width == head.in_features() && width > 0, op, || {
        format!("hidden {:?}, head [{vocab}, {}], {} targets", hidden.shape(), head.in_features(), targets.len())
    })?;
    ensure(factors.is_none_or(|factors| factors.len() == rows), op, || format!("a factor for each of {rows} rows"))?;
    if let Some(target) = targets.iter().find(|&&t| t != IGNORED && !(0..vocab as i64).contains(&t)) {
        return Err(crate::Error::shape(op, format!("target {target} in a vocabulary of {vocab}")));
    }
    let weight = head.parameter().map(|parameter| parameter.value());
    let parents: Vec<&Value> = std::iter::once(hidden).chain(&weight).collect();
    let recorded = needs_grad(&parents);

    let products = Products(head.parameter().map_or(Width::F32, |parameter| parameter.products()));
    let mut losses = vec![0.0; rows];
    let mut dhidden = FloatVec::zeros(products.0, if recorded { rows * width } else { 0 });
    // A frozen head has no gradient to take.
    let trained = weight.as_ref().is_some_and(|weight| needs_grad(&[weight]));
    let mut dweight = fresh::zeros(if trained { vocab * width } else { 0 });
    let hidden = products.input(hidden.tensor())?;
    let input = View::of(&hidden)?;
    // Chunks of one height, which tiles like to be a multiple of 32.
    let most = (CHUNK / (4 * vocab)).clamp(ROWS[0], ROWS[1]);
    let chunk = rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(32).clamp(1, most);
    let mut logits = fresh::zeros(chunk.min(rows) * vocab);
    for start in (0..rows).step_by(chunk) {
        let end = (start + chunk).min(rows);
        if targets[start..end].iter().all(|&target| target == IGNORED) {
            continue;
        }
        let (x, shape) = (input.floats().part(start * width..end * width), [end - start, width, vocab]);
        let logits = &mut logits[..(end - start) * vocab];
        match (&weight, x) {
            (Some(weight), x) => products.forward_into(x, &weight.slice()?, logits.into(), shape),
            (None, Floats::F32(x)) => logits.copy_from_slice(&head.multiply(x)?),
            (None, x) => logits.copy_from_slice(&head.multiply(&x.to_vec())?),
        }
        kernel::forward_backward(logits, &targets[start..end], vocab, 1.0, &mut losses[start..end]);
        if recorded {
            // The kernel has left the gradient where the logits were.
            let rows = factors.map_or(&[][..], |factors| &factors[start..end]);
            for (row, &factor) in logits.chunks_exact_mut(vocab).zip(rows) {
                elementwise::scale(row, factor);
            }
            let dhidden = dhidden.view_mut().part_mut(start * width..end * width);
            match (&weight, head.packed(), dhidden) {
                (None, Some(packed), FloatsMut::F32(dhidden)) => packed.add_input_gradient(logits, dhidden),
                (Some(weight), _, dhidden) => {
                    products.add_input_gradient(Floats::F32(logits), &weight.slice()?, dhidden, shape, false);
                }
                // The gradient of a packed head is as wide as its products, 32 bits.
                _ => {}
            }
            if trained {
                products.add_weight_gradient(Floats::F32(logits), x, &mut dweight, shape, start > 0);
            }
        }
    }
    drop(input);
    let weighed =
        |(row, &loss): (usize, &f32)| f64::from(loss) * factors.map_or(1.0, |factors| f64::from(factors[row]));
    let total: f64 = losses.iter().enumerate().map(weighed).sum();
    let counted = targets.iter().filter(|&&target| target != IGNORED).count();
    let shape = [rows, width];
    let loss = Value::from_op(tensor(vec![(factor * total) as f32], &[1])?, &parents, move |seed| {
        let seed = Slice::of(seed)?[0] * factor as f32;
        let scaled = |mut data: FloatVec, shape: &[usize]| {
            elementwise::scale(&mut data, seed);
            from_floats(data, shape)
        };
        let dweight = trained.then(|| scaled(FloatVec::F32(dweight), &[vocab, width])).transpose()?;
        Ok(vec![Some(scaled(dhidden, &shape)?), dweight])
    });
    Ok(CrossEntropy { loss, rows: losses, counted })
}
