//! Causal attention over spans of flat rows, with grouped key-value heads.

use std::ops::Range;

use candle_core::Tensor;
pub use ernie_kernels::attention::paged::Write;
use ernie_kernels::attention::{self as kernel, paged};
pub use ernie_kernels::attention::{CacheFormat, Heads, PAGE};
use ernie_kernels::floats::FloatVec;
use ernie_kernels::fresh;

use crate::error::ensure;
use crate::slice::{View, from_floats};
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
    let width = q.width();
    let mut out = FloatVec::zeros(width, rows * heads.query_heads * heads.head_dim);
    let mut log_sums = vec![0.0; rows * heads.query_heads];
    let views = (q.view()?, k.view()?, v.view()?);
    kernel::forward(
        views.0.floats(),
        views.1.floats(),
        views.2.floats(),
        &heads,
        &spans,
        None,
        &mut out,
        &mut log_sums,
    );
    drop(views);
    let out = from_floats(out, q.shape())?;
    let kept = [q.tensor().clone(), k.tensor().clone(), v.tensor().clone(), out.clone()];
    Ok(Value::from_op(out, &[q, k, v], move |gradient| {
        let [q, k, v, out] = &kept;
        let room = |like: &Tensor| FloatVec::zeros(width, like.elem_count());
        let (mut dq, mut dk, mut dv) = (room(q), room(k), room(v));
        kernel::backward(
            View::of(q)?.floats(),
            View::of(k)?.floats(),
            View::of(v)?.floats(),
            View::of(out)?.floats(),
            &log_sums,
            View::of(gradient)?.floats(),
            &heads,
            &spans,
            None,
            &mut dq,
            &mut dk,
            &mut dv,
        );
        let gradients = [(dq, q), (dk, k), (dv, v)];
        gradients.into_iter().map(|(data, like)| Ok(Some(from_floats(data, like.dims())?))).collect()
    }))
}

/// Bytes of a page: [`PAGE`] positions of one layer, keys and values of all key-value heads.
///
/// # Errors
/// [`crate::Error::Shape`] if the heads do not divide.
pub fn page_bytes(heads: &Heads, format: CacheFormat) -> Result<usize> {
    divides(heads)?;
    Ok(paged::page_bytes(heads, format))
}

/// Puts new keys (after RoPE) and values into the pages of their sequences.
///
/// # Shapes
/// `k, v: [T, K · D]`; each write names a page, the place of its first row there, and its rows of `k` and `v`.
///
/// # Errors
/// [`crate::Error::Shape`] if a row goes nowhere it can go.
pub fn write_pages(k: &Value, v: &Value, writes: &mut [Write<'_>], heads: Heads, format: CacheFormat) -> Result<()> {
    let (rows, width, bytes) = (k.dim(0), heads.kv_heads * heads.head_dim, page_bytes(&heads, format)?);
    ensure(k.shape() == [rows, width] && v.shape() == [rows, width], "write_pages", || {
        format!("k {:?}, v {:?}, {heads:?}", k.shape(), v.shape())
    })?;
    let mut next = 0;
    for Write { page, first, rows: range } in writes.iter() {
        let fits = range.start >= next && range.start <= range.end && range.end <= rows;
        ensure(fits && first + range.len() <= PAGE && page.len() == bytes, "write_pages", || {
            format!("rows {range:?} at {first} of a page of {} bytes, after row {next} of {rows}", page.len())
        })?;
        next = range.end;
    }
    paged::write(&k.slice()?, &v.slice()?, &heads, format, writes);
    Ok(())
}

/// Attention of new rows over everything that their sequences hold in pages, themselves included. Not recorded.
///
/// # Shapes
/// `q: [T, N · D]`; `pages[i]` are those of the sequence of `spans[i]`, in order. A row's bits depend on its own query and
/// the positions it sees, whatever else is in the batch and however the prompt was cut.
///
/// # Errors
/// [`crate::Error::Shape`] if pages are missing or have another size, or spans overlap or lie outside.
pub fn attention_over_pages(
    q: &Value,
    pages: &[Vec<&[u8]>],
    spans: &[Span],
    heads: Heads,
    format: CacheFormat,
) -> Result<Value> {
    let (op, bytes) = ("attention_over_pages", page_bytes(&heads, format)?);
    ensure(pages.len() == spans.len(), op, || format!("{} page lists, {} spans", pages.len(), spans.len()))?;
    ensure(q.shape() == [q.dim(0), heads.query_heads * heads.head_dim], op, || format!("q {:?}", q.shape()))?;
    let mut next = 0;
    for (pages, span) in pages.iter().zip(spans) {
        let fits = span.rows.start >= next && span.rows.start <= span.rows.end && span.rows.end <= q.dim(0);
        let enough = pages.len() >= (span.past + span.rows.len()).div_ceil(PAGE);
        ensure(fits && enough && pages.iter().all(|page| page.len() == bytes), op, || {
            format!("span {span:?} over {} pages, after row {next} of {}", pages.len(), q.dim(0))
        })?;
        next = span.rows.end;
    }
    let mut out = fresh::zeros(q.tensor().elem_count());
    let spans: Vec<paged::Span<'_>> = pages
        .iter()
        .zip(spans)
        .map(|(pages, span)| paged::Span { rows: span.rows.clone(), past: span.past, pages })
        .collect();
    paged::forward(&q.slice()?, &heads, format, &spans, None, &mut out);
    Value::from_vec(out, q.shape())
}

fn divides(heads: &Heads) -> Result<()> {
    let fits = heads.kv_heads > 0 && heads.head_dim > 0 && heads.query_heads.is_multiple_of(heads.kv_heads);
    ensure(fits, "attention", || format!("{heads:?}"))
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
