//! The routed experts as a composition: rows out to each expert, whatever it does with them, and back.
//!
//! The fused op ([`super::experts`]) is faster and knows three weights an expert; this one takes any expert, such as one with adapters or with packed
//! weights that pass a gradient on.

use std::sync::Arc;

use ernie_kernels::experts::{self as kernel, Order};
use ernie_kernels::fresh;

use super::{Routing, widen};
use crate::error::ensure;
use crate::slice::{Slice, tensor, wide};
use crate::{Result, Value};

/// `y_t = Σ_slot w[t, slot] · expert(index, x_t)`: the sums of [`super::experts`], in the same order.
///
/// # Shapes
/// `x: [T, h]`, routing of `T` tokens to `k` of `experts`; `expert` gets an expert's index, its tokens (`R ≥ 1`, in order) and their rows `[R, h]`, and
/// gives `[R, h]`. The result is `[T, h]`, f32.
///
/// # Errors
/// [`crate::Error::Shape`] where something does not fit, and what `expert` fails with.
pub fn dispatch<E: From<crate::Error>>(
    x: &Value,
    routing: &Routing,
    experts: usize,
    mut expert: impl FnMut(usize, &[usize], &Value) -> std::result::Result<Value, E>,
) -> std::result::Result<Value, E> {
    let (tokens, hidden, k) = (x.dim(0), x.dim(1), routing.weights.dim(1));
    ensure(routing.indices.len() == tokens * k && routing.logits.dim(1) == experts, "dispatch", || {
        format!("x {:?}, {} choices of {experts} experts", x.shape(), routing.indices.len())
    })?;
    let order = Arc::new(Order::new(&routing.indices, experts, k));
    // Once for all experts.
    let x = &widen(x)?;
    let mut answers = Vec::with_capacity(experts);
    for index in (0..experts).filter(|&index| !order.rows(index).is_empty()) {
        let tokens: Vec<usize> = order.rows(index).map(|place| token(&order, place)).collect();
        let answer = expert(index, &tokens, &rows_of(x, &order, index)?)?;
        let shape = [tokens.len(), hidden];
        ensure(answer.shape() == shape, "dispatch", || format!("{shape:?} wanted, {:?} given", answer.shape()))?;
        answers.push(answer);
    }
    Ok(combined(&answers, &routing.weights, &order, hidden)?)
}

/// The rows of `x`, which is in 32 bits, that an expert gets.
fn rows_of(x: &Value, order: &Arc<Order>, index: usize) -> Result<Value> {
    let (tokens, hidden) = (x.dim(0), x.dim(1));
    let (all, mut rows) = (x.slice()?, Vec::with_capacity(order.rows(index).len() * hidden));
    order.rows(index).for_each(|place| rows.extend_from_slice(&all[token(order, place) * hidden..][..hidden]));
    drop(all);
    let order = order.clone();
    Ok(Value::from_op(tensor(rows, &[order.rows(index).len(), hidden])?, &[x], move |gradient| {
        let gradient = wide(gradient)?;
        let mut dx = fresh::zeros(tokens * hidden);
        for (place, row) in order.rows(index).zip(Slice::of(&gradient)?.chunks_exact(hidden.max(1))) {
            let at = token(&order, place) * hidden;
            dx[at..at + hidden].iter_mut().zip(row).for_each(|(sum, share)| *sum += share);
        }
        Ok(vec![Some(tensor(dx, &[tokens, hidden])?)])
    }))
}

/// The weighted sum of each token's answers; `answers` are those of the experts that had rows, in order.
fn combined(answers: &[Value], weights: &Value, order: &Arc<Order>, hidden: usize) -> Result<Value> {
    let mut results = Vec::with_capacity(order.pairs.len() * hidden);
    for answer in answers {
        results.extend_from_slice(&Slice::of(&wide(answer.tensor())?)?);
    }
    let tokens = weights.dim(0);
    let mut out = fresh::zeros(tokens * hidden);
    kernel::combine(&results, Some(&weights.slice()?), hidden, order, &mut out);
    let parents: Vec<&Value> = std::iter::once(weights).chain(answers).collect();
    let lengths: Vec<usize> = answers.iter().map(|answer| answer.dim(0)).collect();
    let (order, kept) = (order.clone(), weights.tensor().clone());
    Ok(Value::from_op(tensor(out, &[tokens, hidden])?, &parents, move |gradient| {
        let gradient = wide(gradient)?;
        let (gradient, weight) = (Slice::of(&gradient)?, Slice::of(&kept)?);
        let mut dweights = fresh::zeros(order.pairs.len());
        let mut dresults = fresh::zeros(order.pairs.len() * hidden);
        kernel::combine_backward(&gradient, &results, &weight, hidden, &order, &mut dresults, &mut dweights);
        let mut gradients = vec![Some(tensor(dweights, kept.dims())?)];
        let mut rest = &dresults[..];
        for length in lengths {
            let (mine, others) = rest.split_at(length * hidden);
            rest = others;
            gradients.push(Some(tensor(mine.to_vec(), &[length, hidden])?));
        }
        Ok(gradients)
    }))
}

/// The token whose row lies at a place of the sorted order.
fn token(order: &Order, place: usize) -> usize {
    order.pairs[place] as usize / order.k
}
