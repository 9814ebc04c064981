//! Losses that keep a router balanced, calm and diverse.

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::{Result, Value};

/// `E · Σ_e (sum of probabilities of e / tokens) · dispatched_e`: the load-balance loss of the Switch
/// Transformer (arXiv:2101.03961, eq. 4), for part of a step.
///
/// `probabilities: [T, E]`. `dispatched` is the share of the whole step's assignments that went to each
/// expert and `tokens` the whole step's tokens, so that micro-batches add up to the step's own loss.
pub fn balance_loss(probabilities: &Value, dispatched: &[f32], tokens: usize) -> Result<Value> {
    let experts = probabilities.dim(1);
    ensure(dispatched.len() == experts && tokens > 0, "balance_loss", || {
        format!("{:?}, {} shares, {tokens} tokens", probabilities.shape(), dispatched.len())
    })?;
    let factor = experts as f32 / tokens as f32;
    let slopes: Vec<f32> = dispatched.iter().map(|share| factor * share).collect();
    let mut loss = 0.0f64;
    for row in probabilities.slice()?.chunks_exact(experts) {
        loss += row.iter().zip(&slopes).map(|(p, slope)| f64::from(p * slope)).sum::<f64>();
    }
    let shape = probabilities.shape().to_vec();
    Ok(Value::from_op(tensor(vec![loss as f32], &[1])?, &[probabilities], move |gradient| {
        let seed = Slice::of(gradient)?[0];
        let row = slopes.iter().map(|slope| slope * seed);
        let data: Vec<f32> = row.cycle().take(shape.iter().product()).collect();
        Ok(vec![Some(tensor(data, &shape)?)])
    }))
}

/// `Σ_t logsumexp(z_t)² / tokens` (ST-MoE, arXiv:2202.08906, eq. 5), `tokens` being the whole step's.
///
/// `logits: [T, E]`.
pub fn z_loss(logits: &Value, tokens: usize) -> Result<Value> {
    let experts = logits.dim(1);
    ensure(experts > 0 && tokens > 0, "z_loss", || format!("{:?}, {tokens} tokens", logits.shape()))?;
    let data = logits.slice()?;
    let log_sums: Vec<f32> = data.chunks_exact(experts).map(log_sum_exp).collect();
    drop(data);
    let loss: f64 = log_sums.iter().map(|&z| f64::from(z).powi(2)).sum::<f64>() / tokens as f64;
    let kept = logits.tensor().clone();
    Ok(Value::from_op(tensor(vec![loss as f32], &[1])?, &[logits], move |gradient| {
        let factor = 2.0 * Slice::of(gradient)?[0] / tokens as f32;
        let mut dz = Slice::of(&kept)?.to_vec();
        for (row, log_sum) in dz.chunks_exact_mut(experts).zip(&log_sums) {
            row.iter_mut().for_each(|z| *z = factor * log_sum * (*z - log_sum).exp());
        }
        Ok(vec![Some(tensor(dz, kept.dims())?)])
    }))
}

fn log_sum_exp(row: &[f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + row.iter().map(|z| (z - max).exp()).sum::<f32>().ln()
}

/// `‖Ŵ Ŵᵀ − I‖²_F / E²` with rows of the router `W: [E, h]` scaled to unit length: ERNIE-4.5's
/// orthogonalisation, which pulls experts' directions apart.
pub fn orthogonal_loss(router: &Value) -> Result<Value> {
    let (experts, hidden) = (router.dim(0), router.dim(1));
    ensure(router.shape().len() == 2 && hidden > 0, "orthogonal_loss", || format!("{:?}", router.shape()))?;
    let data = router.slice()?;
    let lengths: Vec<f32> =
        data.chunks_exact(hidden).map(|row| row.iter().map(|w| w * w).sum::<f32>().sqrt().max(1e-12)).collect();
    let unit: Vec<f32> =
        data.chunks_exact(hidden).zip(&lengths).flat_map(|(row, length)| row.iter().map(move |w| w / length)).collect();
    drop(data);
    let mut residue = vec![0.0; experts * experts];
    ernie_kernels::gemm::nt(&unit, &unit, &mut residue, experts, hidden, experts, false);
    (0..experts).for_each(|e| residue[e * experts + e] -= 1.0);
    let norm = (experts * experts) as f32;
    let loss = residue.iter().map(|r| r * r).sum::<f32>() / norm;
    Ok(Value::from_op(tensor(vec![loss], &[1])?, &[router], move |gradient| {
        let factor = 4.0 * Slice::of(gradient)?[0] / norm;
        let mut du = vec![0.0; experts * hidden];
        ernie_kernels::gemm::nn(&residue, &unit, &mut du, experts, experts, hidden, false);
        for ((du, unit), length) in du.chunks_exact_mut(hidden).zip(unit.chunks_exact(hidden)).zip(&lengths) {
            // Through w / |w|: only what is perpendicular to the row moves it.
            let along: f32 = du.iter().zip(unit).map(|(du, u)| du * u).sum();
            du.iter_mut().zip(unit).for_each(|(du, u)| *du = factor * (*du - along * u) / length);
        }
        Ok(vec![Some(tensor(du, &[experts, hidden])?)])
    }))
}
