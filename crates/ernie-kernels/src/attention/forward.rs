//! Attention forward: one routine for packed training rows and for rows over a cache.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::check;
use super::tile::{self, Tile};
use super::{Heads, KEYS, Span, check_spans, first_visible};
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::floats::{Floats, FloatsMut};
use crate::level::Isa;
use crate::pool;
use crate::simd;

/// Query rows (positions times heads of a group) that share one walk over the keys.
const TILE_ROWS: usize = 96;

/// Causal attention within each span of rows, the spans being independent sequences that start at position 0.
///
/// # Shapes
/// `q, out: [T, H, D]`, `k, v: [T, G, D]`, `lse: [T, H]` (log-sum-exp of the scaled scores, for [`super::backward`])
///
/// Rows of `out` outside all spans are left alone. With a window of `w`, a row sees itself and the `w - 1` rows before.
///
/// # Panics
/// When a length does not fit, spans overlap or are outside, or the window is 0.
#[allow(clippy::too_many_arguments)] // Slices in, slices out.
pub fn forward<'a>(
    q: impl Into<Floats<'a>>,
    k: impl Into<Floats<'a>>,
    v: impl Into<Floats<'a>>,
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
    out: impl Into<FloatsMut<'a>>,
    lse: &mut [f32],
) {
    match (q.into(), k.into(), v.into(), out.into()) {
        (Floats::F32(q), Floats::F32(k), Floats::F32(v), FloatsMut::F32(out)) => {
            forward_floats(q, k, v, heads, spans, window, out, lse);
        }
        (q, k, v, out) => {
            #[cfg(target_arch = "x86_64")]
            if let isa = Isa::current()
                && isa.level() >= Level::Avx512Bf16
            {
                check([q.len(), out.len()], [k.len(), v.len()], lse.len(), heads, spans, window);
                return super::brains::forward(isa, q, k, v, heads, spans, window, out, lse);
            }
            let mut wide = out.to_vec();
            forward_floats(&q.to_vec(), &k.to_vec(), &v.to_vec(), heads, spans, window, &mut wide, lse);
            out.set(&wide);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn forward_floats(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    heads.check();
    let width = heads.kv_width();
    let rows = q.len() / heads.query_width();
    assert!(k.len() == rows * width && v.len() == k.len(), "attention: {} keys for {rows} rows of {width}", k.len());
    let spans: Vec<Span<'_>> = spans
        .iter()
        .map(|rows| {
            let range = rows.start * width..rows.end * width;
            Span { rows: rows.clone(), past: 0, k: &k[range.clone()], v: &v[range] }
        })
        .collect();
    forward_cached(q, heads, &spans, window, out, Some(lse));
}

/// Causal attention of each span's rows over its own cache, which already holds those rows' keys and values.
///
/// # Shapes
/// `q, out: [T, H, D]`, `lse: [T, H]` where asked for; keys and values as [`Span`] says
///
/// # Panics
/// As [`forward`].
pub fn forward_cached(
    q: &[f32],
    heads: &Heads,
    spans: &[Span<'_>],
    window: Option<usize>,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    heads.check();
    let rows = q.len() / heads.query_width();
    assert!(
        q.len() == rows * heads.query_width() && out.len() == q.len(),
        "attention: {} queries, {} outputs",
        q.len(),
        out.len()
    );
    assert!(lse.as_ref().is_none_or(|lse| lse.len() == rows * heads.query_heads), "attention: lse length");
    assert!(window != Some(0), "attention: a window of 0 sees nothing");
    check_spans(spans.iter().map(|s| s.rows.clone()), rows);
    for span in spans {
        let needed = (span.past + span.rows.len()) * heads.kv_width();
        assert!(
            span.k.len() >= needed && span.v.len() >= needed,
            "attention: {} cached keys, {needed} needed",
            span.k.len()
        );
    }
    let tile = TILE_ROWS.div_ceil(heads.group()).max(1);
    let mut work = Vec::new();
    for span in spans {
        // Later tiles see more keys: hand them out first, so that the short ones fill the end.
        for start in (0..span.rows.len()).step_by(tile).rev() {
            for kv_head in 0..heads.kv_heads {
                work.push(Piece { span, kv_head, first: start, count: tile.min(span.rows.len() - start) });
            }
        }
    }
    let isa = Isa::current();
    let out = pool::Shared::new(out);
    let lse = lse.map(pool::Shared::new);
    pool::ranges(work.len(), 1, |range| {
        for piece in &work[range] {
            piece.run(isa, q, heads, window, &out, lse.as_ref());
        }
    });
}

/// Some rows of a span, for the query heads of one key/value head.
struct Piece<'a> {
    span: &'a Span<'a>,
    kv_head: usize,
    /// First row within the span.
    first: usize,
    count: usize,
}

impl Piece<'_> {
    fn run(
        &self,
        isa: Isa,
        q: &[f32],
        heads: &Heads,
        window: Option<usize>,
        out: &pool::Shared<'_, f32>,
        lse: Option<&pool::Shared<'_, f32>>,
    ) {
        let (d, group) = (heads.head_dim, heads.group());
        let m = self.count * group;
        let start = self.span.past + self.first;
        let end = start + self.count;
        let scale = heads.scale();
        // Row `i` of a tile is head `i % group` of position `start + i / group`.
        let head_at = |i: usize| {
            (self.span.rows.start + self.first + i / group) * heads.query_heads + self.kv_head * group + i % group
        };
        pool::scratch(m * (2 * d + KEYS + 2) + d * KEYS, |scratch| {
            let (queries, scratch) = scratch.split_at_mut(m * d);
            let (sums, scratch) = scratch.split_at_mut(m * d);
            let (scores, scratch) = scratch.split_at_mut(m * KEYS);
            let (max, scratch) = scratch.split_at_mut(m);
            let (total, keys) = scratch.split_at_mut(m);
            for (i, query) in queries.chunks_exact_mut(d).enumerate() {
                query.copy_from_slice(&q[head_at(i) * d..][..d]);
            }
            sums.fill(0.0);
            max.fill(f32::NEG_INFINITY);
            total.fill(0.0);
            let first_block = first_visible(start, window) / KEYS * KEYS;
            for block in (first_block..end).step_by(KEYS) {
                let count = KEYS.min(end - block);
                let at = (block * heads.kv_heads + self.kv_head) * d;
                tile::transpose(isa, Tile { data: &self.span.k[at..], stride: heads.kv_width() }, count, d, keys, KEYS);
                tile::multiply(
                    isa,
                    Tile { data: queries, stride: d },
                    Tile { data: keys, stride: KEYS },
                    scores,
                    KEYS,
                    m,
                    d,
                    count,
                    false,
                );
                for i in 0..m {
                    let position = start + i / group;
                    let visible = Visible::new(position, block, window);
                    let row = scores[i * KEYS..].first_chunk_mut::<KEYS>();
                    if let Some(row) = row {
                        online_softmax(
                            isa,
                            row,
                            visible.first,
                            visible.end,
                            scale,
                            &mut max[i],
                            &mut total[i],
                            &mut sums[i * d..][..d],
                        );
                    }
                }
                let values = Tile { data: &self.span.v[at..], stride: heads.kv_width() };
                tile::multiply(isa, Tile { data: scores, stride: KEYS }, values, sums, d, m, count, d, true);
            }
            for (i, sums) in sums.chunks_exact(d).enumerate() {
                let head = head_at(i);
                // SAFETY: spans do not overlap, and a piece has its own rows and heads: no one else writes this head's row.
                let out = unsafe { out.part(head * d..(head + 1) * d) };
                let inverse = 1.0 / total[i];
                for (out, &s) in out.iter_mut().zip(sums) {
                    *out = s * inverse;
                }
                if let Some(lse) = lse {
                    // SAFETY: as above.
                    let lse = unsafe { lse.part(head..head + 1) };
                    lse[0] = max[i] + total[i].ln();
                }
            }
        });
    }
}

/// Which positions of a block a row sees, as indices into the block.
pub(super) struct Visible {
    pub(super) first: usize,
    pub(super) end: usize,
}

impl Visible {
    pub(super) fn new(position: usize, block: usize, window: Option<usize>) -> Self {
        Self::of(position, block, KEYS, window)
    }

    /// As [`Self::new`], of a block of `count` positions.
    pub(super) fn of(position: usize, block: usize, count: usize, window: Option<usize>) -> Self {
        let end = (position + 1).saturating_sub(block).min(count);
        let first = first_visible(position, window).saturating_sub(block).min(end);
        Visible { first, end }
    }
}

kernel! {
    /// Turns a block of raw scores into probabilities relative to the running maximum, and rescales what was summed before.
    ///
    /// Positions outside `first..end` become zero. A row that sees nothing of the block is untouched but for those zeros.
    fn online_softmax(
        row: &mut [f32; KEYS],
        first: usize,
        end: usize,
        scale: f32,
        max: &mut f32,
        total: &mut f32,
        sums: &mut [f32],
    ) {
        if first >= end {
            row.fill(0.0);
            return;
        }
        let whole = first == 0 && end == KEYS;
        if whole {
            for x in row.iter_mut() {
                *x *= scale;
            }
        } else {
            for (j, x) in row.iter_mut().enumerate() {
                *x = if j >= first && j < end { *x * scale } else { f32::NEG_INFINITY };
            }
        }
        let block_max = simd::max(row);
        let new_max = if block_max > *max { block_max } else { *max };
        if new_max > *max {
            let correction = simd::exp::<FMA>(*max - new_max);
            *total *= correction;
            for s in sums {
                *s *= correction;
            }
            *max = new_max;
        }
        for x in row.iter_mut() {
            *x = simd::exp::<FMA>(*x - new_max);
        }
        if !whole {
            // What is masked may have been -inf itself, or NaN: say zero.
            row[..first].fill(0.0);
            row[end..].fill(0.0);
        }
        *total += simd::sum2(row, row, |x, _, sum| sum + x);
    }
}
