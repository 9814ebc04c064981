//! The scalar twins: each kernel once more as plain loops in double precision, for tests and for reading.
//!
//! Nothing here is fast, and nothing outside tests should call it. Inputs and outputs are f32; everything between is f64, so a
//! twin is also the better-rounded answer.

use std::ops::Range;

use crate::attention::Heads;
use crate::attention::paged::CacheFormat;
use crate::packed::{GROUP, Matrix, ROUND, scale_of};

/// `y[t, o] = sum_k x[t, k] w[o, k]` for dense weights.
pub fn linear(x: &[f32], w: &[f32], in_features: usize, out_features: usize) -> Vec<f32> {
    let mut y = Vec::new();
    for x in x.chunks_exact(in_features.max(1)) {
        for w in w.chunks_exact(in_features.max(1)).take(out_features) {
            y.push(x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32);
        }
    }
    y
}

/// `c[i, j] = sum_k a[i, k] b[k, j]`, the operands given as functions of their indices.
pub fn product(
    m: usize,
    k: usize,
    n: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            c.push((0..k).map(|l| f64::from(a(i, l)) * f64::from(b(l, j))).sum::<f64>() as f32);
        }
    }
    c
}

/// Root-mean-square norm of each row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / weight.len() as f64;
        y.extend(x.iter().zip(weight).map(|(&x, &w)| (f64::from(w) * f64::from(x) / (mean + eps).sqrt()) as f32));
    }
    y
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter()
        .zip(up)
        .map(|(&g, &u)| {
            let g = f64::from(g);
            (g / (1.0 + (-g).exp()) * f64::from(u)) as f32
        })
        .collect()
}

/// Softmax of each row.
pub fn softmax(x: &[f32], width: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp: Vec<f64> = row.iter().map(|&x| f64::from(x - max).exp()).collect();
        let sum: f64 = exp.iter().sum();
        y.extend(exp.iter().map(|e| (e / sum) as f32));
    }
    y
}

/// Cross-entropy of one row in f64.
pub fn cross_entropy(row: &[f32], target: usize) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln() - f64::from(row[target])
}

/// Keys or values `[T, G, D]` as a cache in pages gives them back.
pub fn cached(x: &[f32], head_dim: usize, format: CacheFormat) -> Vec<f32> {
    let row = |row: &[f32]| -> Vec<f32> {
        let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        match format {
            CacheFormat::F32 => row.to_vec(),
            CacheFormat::Bf16 => row.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
            CacheFormat::Int8 if row.iter().any(|x| !x.is_finite()) => vec![f32::NAN; row.len()],
            CacheFormat::Int8 if largest < 1e-36 => vec![0.0; row.len()],
            // The grid is f32's own business: the same roundings as the kernel's.
            CacheFormat::Int8 => {
                row.iter().map(|x| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0)).collect()
            }
        }
    };
    x.chunks_exact(head_dim).flat_map(row).collect()
}

/// Attention probabilities of one query row and head over key positions `0..=at` (the window applied): (first key, probs).
#[allow(clippy::too_many_arguments)]
fn probabilities(
    q: &[f32],
    k: &[f32],
    heads: &Heads,
    at: usize,
    kv_head: usize,
    window: Option<usize>,
) -> (usize, Vec<f64>, f64) {
    let d = heads.head_dim;
    let first = window.map_or(0, |w| (at + 1).saturating_sub(w));
    let scale = 1.0 / (d as f64).sqrt();
    let scores: Vec<f64> = (first..=at)
        .map(|j| {
            let k = &k[(j * heads.kv_heads + kv_head) * d..][..d];
            q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() * scale
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    (first, scores.iter().map(|s| (s - max).exp() / sum).collect(), max + sum.ln())
}

/// Causal attention within each span of rows: outputs and log-sum-exps.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
) -> (Vec<f32>, Vec<f32>) {
    let (d, h, g) = (heads.head_dim, heads.query_heads, heads.kv_heads);
    let mut out = vec![0.0; q.len()];
    let mut lse = vec![0.0; q.len() / d];
    for span in spans {
        let (k, v) = (&k[span.start * g * d..span.end * g * d], &v[span.start * g * d..span.end * g * d]);
        for row in span.clone() {
            for head in 0..h {
                let at = (row * h + head) * d;
                let kv_head = head / (h / g);
                let (first, probs, sum) = probabilities(&q[at..at + d], k, heads, row - span.start, kv_head, window);
                lse[row * h + head] = sum as f32;
                for i in 0..d {
                    let value = |j: usize| f64::from(v[((first + j) * g + kv_head) * d + i]);
                    out[at + i] = probs.iter().enumerate().map(|(j, p)| p * value(j)).sum::<f64>() as f32;
                }
            }
        }
    }
    (out, lse)
}

/// Gradients of [`attention`]: `(dq, dk, dv)`.
pub fn attention_backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_out: &[f32],
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (d, h, g) = (heads.head_dim, heads.query_heads, heads.kv_heads);
    let scale = 1.0 / (d as f64).sqrt();
    let (mut dq, mut dk, mut dv) = (vec![0.0_f64; q.len()], vec![0.0_f64; k.len()], vec![0.0_f64; v.len()]);
    for span in spans {
        let base = span.start * g * d;
        for row in span.clone() {
            for head in 0..h {
                let at = (row * h + head) * d;
                let kv_head = head / (h / g);
                let (first, probs, _) =
                    probabilities(&q[at..at + d], &k[base..], heads, row - span.start, kv_head, window);
                let key_at = |j: usize| base + ((first + j) * g + kv_head) * d;
                let dp: Vec<f64> = (0..probs.len())
                    .map(|j| (0..d).map(|i| f64::from(d_out[at + i]) * f64::from(v[key_at(j) + i])).sum())
                    .collect();
                let mean: f64 = probs.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for (j, p) in probs.iter().enumerate() {
                    let ds = p * (dp[j] - mean) * scale;
                    for i in 0..d {
                        dv[key_at(j) + i] += p * f64::from(d_out[at + i]);
                        dq[at + i] += ds * f64::from(k[key_at(j) + i]);
                        dk[key_at(j) + i] += ds * f64::from(q[at + i]);
                    }
                }
            }
        }
    }
    let narrow = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect();
    (narrow(dq), narrow(dk), narrow(dv))
}

/// One step of AdamW on moments in bf16, which are rounded by the kernel's own draws: weight, first and second moment of each element.
pub fn adamw_rounding(
    [w, g, m, v]: [&[f32]; 4],
    adamw: &crate::adamw::AdamW,
    step: i32,
    grad_scale: f32,
    key: u64,
) -> Vec<[f32; 3]> {
    let correct = |beta: f64| 1.0 - beta.powi(step);
    let one = |at: usize| {
        let g = f64::from(g[at] * grad_scale);
        let m = adamw.beta1 * f64::from(m[at]) + (1.0 - adamw.beta1) * g;
        let v = adamw.beta2 * f64::from(v[at]) + (1.0 - adamw.beta2) * g * g;
        let root = (v / correct(adamw.beta2)).sqrt() + adamw.eps;
        let w = f64::from(w[at]) * (1.0 - adamw.lr * adamw.weight_decay) - adamw.lr / correct(adamw.beta1) * m / root;
        let (piece, place) = (at / crate::pool::GRAIN * crate::pool::GRAIN, (at % crate::pool::GRAIN) as u32);
        let [first, second] = crate::adamw::draws(crate::adamw::piece_key(key, piece), place);
        let kept = |draw: u32, x: f64| crate::adamw::rounded_by(draw, x as f32).to_f32();
        [w as f32, kept(first, m), kept(second, v)]
    };
    (0..w.len()).map(one).collect()
}

/// Rows of activations rounded to bytes and multiplied by a packed matrix, by the definition in [`mod@crate::packed`]: every
/// level's result, bit for bit, and the one twin here that is not in double precision.
pub fn packed(x: &[f32], w: &Matrix) -> Vec<f32> {
    let (k, out) = (w.in_features(), w.out_features());
    let block = w.kind().block().unwrap_or(k.max(1));
    let run = block.min(GROUP);
    let mut y = Vec::new();
    for x in x.chunks_exact(k.max(1)) {
        let groups = x.chunks(GROUP).map(|group| {
            let (scale, inverse) = scale_of(group.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max));
            (scale, group.iter().map(|x| i32::from((x * inverse + ROUND).to_bits() as i8)).collect::<Vec<_>>())
        });
        let groups: Vec<(f32, Vec<i32>)> = groups.collect();
        for o in 0..out {
            let mut sum = 0.0_f32;
            for first in (0..k).step_by(run) {
                let (input_scale, bytes) = &groups[first / GROUP];
                let bytes = &bytes[first % GROUP..(first % GROUP + run).min(bytes.len())];
                let dot: i32 = bytes.iter().enumerate().map(|(i, a)| w.integer(o, first + i) * a).sum();
                if w.kind().block().is_none() {
                    sum = (dot as f32).mul_add(*input_scale, sum);
                    continue;
                }
                let (scale, minimum) = w.scale(o, first / block);
                sum = (dot as f32 * scale).mul_add(*input_scale, sum);
                if w.kind().has_minimum() {
                    sum = minimum.mul_add(bytes.iter().sum::<i32>() as f32 * input_scale, sum);
                }
            }
            y.push(if w.kind().block().is_none() { sum * w.scale(o, 0).0 } else { sum });
        }
    }
    y
}

/// As [`packed`], by the definition at [`crate::Level::Amx`] of a matrix with one scale a row: input rounded to bf16, sums here in f64.
/// Also a bound of what sums in f32 may differ by.
pub fn packed_bf16(x: &[f32], w: &Matrix) -> (Vec<f32>, Vec<f32>) {
    let (k, out) = (w.in_features(), w.out_features());
    let (mut y, mut bounds) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(k.max(1)) {
        let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let finite = x.iter().all(|x| x.is_finite());
        // Halves, which do not round to infinity.
        let x = x.iter().map(|x| 2.0 * f64::from(half::bf16::from_f32(x / 2.0).to_f32()));
        let x: Vec<f64> = if largest < 7.703_72e-34 { vec![0.0; k] } else { x.collect() };
        for o in 0..out {
            let scale = f64::from(w.scale(o, 0).0);
            let products = || x.iter().enumerate().map(|(i, x)| f64::from(w.integer(o, i)) * scale * x);
            y.push(if finite { products().sum::<f64>() as f32 } else { f32::NAN });
            // Sums are of weights that are stored with an offset of 128, which is taken off at the end.
            let stored = |i: usize| f64::from(w.integer(o, i) + 256);
            let most: f64 = x.iter().enumerate().map(|(i, x)| stored(i) * scale.abs() * x.abs()).sum();
            bounds.push((most * (k + 4) as f64 / f64::from(1 << 24)) as f32);
        }
    }
    (y, bounds)
}
