//! Causal attention over spans of flat rows, with grouped key-value heads.

use std::ops::Range;

use ernie_kernels::attention as kernel;
pub use ernie_kernels::attention::Heads;

use crate::error::ensure;
use crate::slice::{Slice, tensor};
use crate::{Result, Value};

/// One sequence's run of rows in a batch: rows `rows`, at positions `past..past + rows.len()` of the
/// sequence that lives in `slot` of a cache. Without a cache `past` is 0 and `slot` means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which sequence of the cache.
    pub slot: usize,
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// How many positions came before.
    pub past: usize,
}

/// Keys and values of one sequence, `[past + rows, K · D]` each, after RoPE.
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    /// Keys.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// Attention inside each span, causal; spans do not see one another.
///
/// # Shapes
/// `q: [T, N · D]`, `k, v: [T, K · D]` → `[T, N · D]`. Query head `n` reads head `n / (N / K)`; scores are
/// scaled by `1/sqrt(D)`. Softmax is f32 and online (Milakov and Gimelshein, arXiv:1805.02867); the
/// backward pass recomputes scores from the kept log-sums (Dao et al., arXiv:2205.14135).
pub fn attention(q: &Value, k: &Value, v: &Value, spans: &[Span], heads: Heads) -> Result<Value> {
    let rows = q.dim(0);
    check(q, k, v, spans, &heads)?;
    let spans: Vec<Range<usize>> = spans.iter().map(|span| span.rows.clone()).collect();
    let mut out = vec![0.0; rows * heads.query_heads * heads.head_dim];
    let mut log_sums = vec![0.0; rows * heads.query_heads];
    kernel::forward(&q.slice()?, &k.slice()?, &v.slice()?, &heads, &spans, None, &mut out, &mut log_sums);
    let out = tensor(out, q.shape())?;
    let kept = [q.tensor().clone(), k.tensor().clone(), v.tensor().clone(), out.clone()];
    Ok(Value::from_op(out, &[q, k, v], move |gradient| {
        let [q, k, v, out] = &kept;
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; q.elem_count()], vec![0.0; k.elem_count()], vec![0.0; v.elem_count()]);
        kernel::backward(
            &Slice::of(q)?,
            &Slice::of(k)?,
            &Slice::of(v)?,
            &Slice::of(out)?,
            &log_sums,
            &Slice::of(gradient)?,
            &heads,
            &spans,
            None,
            &mut dq,
            &mut dk,
            &mut dv,
        );
        let gradients = [(dq, q), (dk, k), (dv, v)];
        gradients.into_iter().map(|(data, like)| Ok(Some(tensor(data, like.dims())?))).collect()
    }))
}

/// Attention of new rows over everything their sequences have cached, themselves included. Not recorded.
///
/// # Shapes
/// `q: [T, N · D]`; `caches[i]` is the sequence of `spans[i]`. A row's sum over positions runs in one
/// order, whatever else is in the batch and however the prompt was cut.
pub fn attention_over_cache(q: &Value, caches: &[CacheView<'_>], spans: &[Span], heads: Heads) -> Result<Value> {
    let op = "attention_over_cache";
    ensure(caches.len() == spans.len(), op, || format!("{} caches, {} spans", caches.len(), spans.len()))?;
    let width = heads.kv_heads * heads.head_dim;
    for (cache, span) in caches.iter().zip(spans) {
        let want = (span.past + span.rows.len()) * width;
        ensure(cache.keys.len() == want && cache.values.len() == want && span.rows.end <= q.dim(0), op, || {
            format!("span {span:?} wants {want} cached numbers, got {}", cache.keys.len())
        })?;
    }
    let mut out = vec![0.0; q.tensor().elem_count()];
    let spans: Vec<kernel::Span<'_>> = caches
        .iter()
        .zip(spans)
        .map(|(cache, span)| kernel::Span { rows: span.rows.clone(), past: span.past, k: cache.keys, v: cache.values })
        .collect();
    kernel::forward_cached(&q.slice()?, &heads, &spans, None, &mut out, None);
    Value::from_vec(out, q.shape())
}

fn check(q: &Value, k: &Value, v: &Value, spans: &[Span], heads: &Heads) -> Result<()> {
    let (rows, width) = (q.dim(0), heads.kv_heads * heads.head_dim);
    let fits = q.shape() == [rows, heads.query_heads * heads.head_dim]
        && k.shape() == [rows, width]
        && v.shape() == [rows, width]
        && heads.kv_heads > 0
        && heads.query_heads.is_multiple_of(heads.kv_heads);
    ensure(fits, "attention", || format!("q {:?}, k {:?}, v {:?}, {heads:?}", q.shape(), k.shape(), v.shape()))?;
    // Spans that overlapped or left rows out would attend to nothing, silently.
    let mut next = 0;
    for span in spans {
        ensure(span.rows.start == next && span.past == 0, "attention", || format!("span {span:?} after row {next}"))?;
        next = span.rows.end;
    }
    ensure(next == rows, "attention", || format!("spans end at row {next} of {rows}"))
}
