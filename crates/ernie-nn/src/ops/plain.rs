//! The same ops composed of plain candle ops, differentiated by candle.
//!
//! Slow and obvious on purpose: tests hold every op of this room to these, gradients included, and they
//! are what runs where the kernels do not.

use candle_core::{D, Result, Tensor};

use super::attention::Span;
use crate::Heads;

/// `x · Wᵀ`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// Root-mean-square normalisation by row.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// Rotation of interleaved pairs: `x: [T, heads · D]`, `cos, sin: [T, D/2]`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let pairs = cos.dim(1)?;
    let x = x.reshape((rows, width / (2 * pairs), pairs, 2))?;
    let (even, odd) = (x.narrow(3, 0, 1)?, x.narrow(3, 1, 1)?);
    let (cos, sin) = (cos.reshape((rows, 1, pairs, 1))?, sin.reshape((rows, 1, pairs, 1))?);
    let first = (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?;
    let second = (odd.broadcast_mul(&cos)? + even.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 3)?.reshape((rows, width))
}

/// Causal attention inside each span, scores in full.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spans: &[Span], heads: Heads) -> Result<Tensor> {
    let group = heads.query_heads / heads.kv_heads;
    let split = |x: &Tensor, span: &Span, n: usize| {
        let x = x.narrow(0, span.rows.start, span.rows.len())?;
        x.reshape((span.rows.len(), n, heads.head_dim))?.transpose(0, 1)
    };
    let repeat = |x: Tensor| {
        let (n, rows, width) = x.dims3()?;
        x.unsqueeze(1)?.expand((n, group, rows, width))?.reshape((n * group, rows, width))
    };
    let mut outputs = Vec::new();
    for span in spans.iter().filter(|span| !span.rows.is_empty()) {
        let rows = span.rows.len();
        let query = split(q, span, heads.query_heads)?.contiguous()?;
        let key = repeat(split(k, span, heads.kv_heads)?.contiguous()?)?;
        let value = repeat(split(v, span, heads.kv_heads)?.contiguous()?)?;
        let scores = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? / (heads.head_dim as f64).sqrt())?;
        let hidden: Vec<f32> =
            (0..rows * rows).map(|i| if i % rows > i / rows { f32::NEG_INFINITY } else { 0.0 }).collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(hidden, (rows, rows), q.device())?)?;
        let out = softmax(&scores)?.matmul(&value)?;
        outputs.push(out.transpose(0, 1)?.reshape((rows, heads.query_heads * heads.head_dim))?);
    }
    Tensor::cat(&outputs, 0)
}

/// `silu(gate) · up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let sigmoid = ((gate.neg()?.exp()? + 1.0)?).recip()?;
    (gate * sigmoid)? * up
}

/// Softmax over the last dim.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    let e = shifted.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// `Σ_t −log softmax(hidden_t · Wᵀ)[target_t]`, every row counted.
pub fn head_cross_entropy(hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Result<Tensor> {
    token_losses(hidden, head, targets)?.sum_all()
}

/// `−log softmax(hidden_t · Wᵀ)[target_t]` of every row. `[T, 1]`.
pub fn token_losses(hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let p = softmax(&linear(hidden, head)?)?;
    p.gather(&targets.unsqueeze(1)?, 1)?.log()?.neg()
}

/// The weights of chosen experts: `p` of the chosen over their sum. `indices: [T, k]`.
pub fn route(logits: &Tensor, indices: &Tensor, norm_min: f64) -> Result<Tensor> {
    let chosen = softmax(logits)?.gather(indices, 1)?;
    chosen.broadcast_div(&chosen.sum_keepdim(1)?.maximum(norm_min)?)
}

/// Each expert on every token, weighted by zero where not chosen. `experts[e] = [gate, up, down]`.
pub fn experts(x: &Tensor, weights: &Tensor, indices: &[u32], experts: &[[Tensor; 3]]) -> Result<Tensor> {
    let (rows, k) = weights.dims2()?;
    let mut total = x.zeros_like()?;
    for (index, [gate, up, down]) in experts.iter().enumerate() {
        let mask = indices.iter().map(|&chosen| f32::from(u8::from(chosen as usize == index))).collect::<Vec<_>>();
        let weight = (weights * Tensor::from_vec(mask, (rows, k), x.device())?)?.sum_keepdim(1)?;
        let y = linear(&swiglu(&linear(x, gate)?, &linear(x, up)?)?, down)?;
        total = (total + y.broadcast_mul(&weight)?)?;
    }
    Ok(total)
}
