//! Causal attention with grouped query heads, forward and backward, over packed sequences and over a cache.
//!
//! Scores exist only as blocks of query rows by 64 positions; the softmax is kept online over the blocks (Milakov &
//! Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). A block is one of absolute positions `0..64, 64..128, ...` of
//! its sequence, and within it every sum runs in position order: a row's result depends on its own query and on the keys
//! before it, never on which rows share the call. Whole prefill, chunked prefill and one token at a time give the same bits,
//! and training's forward is the same routine.
//!
//! Query head `h` reads key/value head `h / (H / G)`. Scores are scaled by `1 / sqrt(D)`. All arithmetic is f32, but for
//! products of bf16 where that is what comes in.

mod backward;
#[cfg(target_arch = "x86_64")]
mod brains;
mod forward;
pub mod paged;
mod tile;

use std::ops::Range;

pub use backward::backward;
pub use forward::{forward, forward_cached};
pub use paged::{CacheFormat, PAGE};

/// Key positions in a block.
pub(crate) const KEYS: usize = 64;

/// The shape of a row: queries `[H, D]`, keys and values `[G, D]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, `H`.
    pub query_heads: usize,
    /// Key/value heads, `G`, a divisor of `H`.
    pub kv_heads: usize,
    /// Width of a head, `D`.
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that read one key/value head.
    pub(crate) fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    fn query_width(&self) -> usize {
        self.query_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }

    fn check(&self) {
        assert!(
            self.kv_heads > 0
                && self.query_heads > 0
                && self.head_dim > 0
                && self.query_heads.is_multiple_of(self.kv_heads),
            "attention: {} query heads over {} key/value heads of {}",
            self.query_heads,
            self.kv_heads,
            self.head_dim
        );
    }
}

/// Rows of one sequence in a call, and where that sequence's keys and values lie.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Its rows in the flat queries.
    pub rows: Range<usize>,
    /// Positions before the first of those rows.
    pub past: usize,
    /// Keys of positions `0..past + rows.len()` at least: `[positions, G, D]`.
    pub k: &'a [f32],
    /// Values, as the keys.
    pub v: &'a [f32],
}

/// The first position that the row at `position` sees.
fn first_visible(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// Checks the lengths of what is by query and of what is by key/value head, and the spans.
fn check<const Q: usize, const K: usize>(
    queries: [usize; Q],
    keys: [usize; K],
    lse: usize,
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
) {
    heads.check();
    let rows = queries[0] / heads.query_width();
    let (nq, nk) = (rows * heads.query_width(), rows * heads.kv_width());
    assert!(
        queries.iter().all(|&n| n == nq) && keys.iter().all(|&n| n == nk) && lse == rows * heads.query_heads,
        "attention: lengths differ"
    );
    assert!(window != Some(0), "attention: a window of 0 sees nothing");
    check_spans(spans.iter().cloned(), rows);
}

/// Checks that spans are in bounds and do not overlap: each output row has one writer.
fn check_spans(spans: impl Iterator<Item = Range<usize>>, rows: usize) {
    let mut sorted: Vec<Range<usize>> = spans.filter(|r| !r.is_empty()).collect();
    sorted.sort_by_key(|r| r.start);
    let mut end = 0;
    for span in sorted {
        assert!(
            span.start >= end && span.end <= rows,
            "attention: span {span:?} of {rows} rows overlaps or is outside"
        );
        end = span.end;
    }
}
