//! Attention backward: scores are recomputed block by block from the saved log-sum-exp.

use std::ops::Range;

use super::forward::Visible;
use super::tile::{self, Tile};
use super::{Heads, KEYS, check, first_visible};
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::floats::{Floats, FloatsMut};
use crate::level::Isa;
use crate::pool;
use crate::simd;

/// Query rows (positions times heads of a group) of a block.
const TILE_ROWS: usize = 64;

/// The gradients of [`super::forward`]: overwrites rows of `dq`, `dk` and `dv` that lie in spans.
///
/// Work is shared out by sequence and key/value head; a gradient's sum runs over tiles in position order, so the result does
/// not depend on threads.
///
/// # Shapes
/// `q, out, d_out, dq: [T, H, D]`, `k, v, dk, dv: [T, G, D]`, `lse: [T, H]`
///
/// # Panics
/// As [`super::forward`].
#[allow(clippy::too_many_arguments)] // Slices in, slices out.
pub fn backward<'a>(
    q: impl Into<Floats<'a>>,
    k: impl Into<Floats<'a>>,
    v: impl Into<Floats<'a>>,
    out: impl Into<Floats<'a>>,
    lse: &[f32],
    d_out: impl Into<Floats<'a>>,
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
    dq: impl Into<FloatsMut<'a>>,
    dk: impl Into<FloatsMut<'a>>,
    dv: impl Into<FloatsMut<'a>>,
) {
    let inputs = [q.into(), k.into(), v.into(), out.into(), d_out.into()];
    let outputs = [dq.into(), dk.into(), dv.into()];
    match (inputs, outputs) {
        (
            [Floats::F32(q), Floats::F32(k), Floats::F32(v), Floats::F32(out), Floats::F32(d_out)],
            [FloatsMut::F32(dq), FloatsMut::F32(dk), FloatsMut::F32(dv)],
        ) => backward_floats(q, k, v, out, lse, d_out, heads, spans, window, dq, dk, dv),
        (inputs, outputs) => {
            #[cfg(target_arch = "x86_64")]
            if let isa = Isa::current()
                && isa.level() >= Level::Avx512Bf16
            {
                let [q, k, v, out, d_out] = inputs.map(|x| x.len());
                let [dq, dk, dv] = outputs.each_ref().map(FloatsMut::len);
                check([q, out, d_out, dq], [k, v, dk, dv], lse.len(), heads, spans, window);
                return super::brains::backward(isa, inputs, lse, heads, spans, window, outputs);
            }
            let [q, k, v, out, d_out] = inputs.map(|x| x.to_vec());
            let mut wide = outputs.each_ref().map(FloatsMut::to_vec);
            let [dq, dk, dv] = &mut wide;
            backward_floats(&q, &k, &v, &out, lse, &d_out, heads, spans, window, dq, dk, dv);
            outputs.into_iter().zip(&wide).for_each(|(narrow, wide)| narrow.set(wide));
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn backward_floats(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    d_out: &[f32],
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    check(
        [q.len(), out.len(), d_out.len(), dq.len()],
        [k.len(), v.len(), dk.len(), dv.len()],
        lse.len(),
        heads,
        spans,
        window,
    );
    let isa = Isa::current();
    let (dq, dk, dv) = (pool::Shared::new(dq), pool::Shared::new(dk), pool::Shared::new(dv));
    let pieces = spans.len() * heads.kv_heads;
    pool::ranges(pieces, 1, |range| {
        for i in range {
            let piece = Piece {
                isa,
                q,
                k,
                v,
                out,
                lse,
                d_out,
                heads,
                window,
                span: &spans[i / heads.kv_heads],
                kv_head: i % heads.kv_heads,
            };
            piece.run(&dq, &dk, &dv);
        }
    });
}

/// One sequence and one key/value head.
struct Piece<'a> {
    isa: Isa,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    d_out: &'a [f32],
    heads: &'a Heads,
    window: Option<usize>,
    span: &'a Range<usize>,
    kv_head: usize,
}

impl Piece<'_> {
    fn run(&self, dq: &pool::Shared<'_, f32>, dk: &pool::Shared<'_, f32>, dv: &pool::Shared<'_, f32>) {
        let (isa, heads) = (self.isa, self.heads);
        let (d, group, width) = (heads.head_dim, heads.group(), heads.kv_width());
        let length = self.span.len();
        let tile_positions = TILE_ROWS.div_ceil(group).max(1);
        let most = tile_positions * group;
        let scale = heads.scale();
        // Row `i` of the sequence is head `i % group` of position `i / group`; this is where it lies among all heads.
        let head_at = |i: usize| (self.span.start + i / group) * heads.query_heads + self.kv_head * group + i % group;
        let all = length * group;
        // For the sequence two numbers a row; for a tile its queries, output gradients and query gradients; for a block keys
        // and values transposed and their gradients; and for both probabilities and score gradients, both ways round.
        let needed = 2 * all + 3 * most * d + 4 * d * KEYS + 4 * most * KEYS;
        pool::scratch(needed, |scratch| {
            let (log_sums, scratch) = scratch.split_at_mut(all);
            let (means, scratch) = scratch.split_at_mut(all);
            let (queries, scratch) = scratch.split_at_mut(most * d);
            let (d_outs, scratch) = scratch.split_at_mut(most * d);
            let (d_queries, scratch) = scratch.split_at_mut(most * d);
            let (keys_t, scratch) = scratch.split_at_mut(d * KEYS);
            let (values_t, scratch) = scratch.split_at_mut(d * KEYS);
            let (d_keys, scratch) = scratch.split_at_mut(d * KEYS);
            let (d_values, scratch) = scratch.split_at_mut(d * KEYS);
            let (probs, scratch) = scratch.split_at_mut(most * KEYS);
            let (d_scores, scratch) = scratch.split_at_mut(most * KEYS);
            let (probs_t, d_scores_t) = scratch.split_at_mut(most * KEYS);
            for i in 0..all {
                let head = head_at(i);
                let row = head * d..(head + 1) * d;
                means[i] = dot(isa, &self.d_out[row.clone()], &self.out[row.clone()]);
                log_sums[i] = self.lse[head];
                // SAFETY: spans do not overlap and query heads belong to one key/value head, so no one else has this row.
                unsafe { dq.part(row) }.fill(0.0);
            }
            for block in (0..length).step_by(KEYS) {
                let count = KEYS.min(length - block);
                let at = ((self.span.start + block) * heads.kv_heads + self.kv_head) * d;
                let keys = Tile { data: &self.k[at..], stride: width };
                tile::transpose(isa, keys, count, d, keys_t, KEYS);
                tile::transpose(isa, Tile { data: &self.v[at..], stride: width }, count, d, values_t, KEYS);
                d_keys.fill(0.0);
                d_values.fill(0.0);
                // Tiles start at multiples of their size; the first one that sees the block is the one its first key is in.
                let first_tile = block / tile_positions * tile_positions;
                for start in (first_tile..length).step_by(tile_positions) {
                    if first_visible(start, self.window) >= block + count {
                        break;
                    }
                    let rows = tile_positions.min(length - start) * group;
                    let first_row = start * group;
                    for i in 0..rows {
                        let head = head_at(first_row + i);
                        let (row, place) = (head * d..(head + 1) * d, i * d..(i + 1) * d);
                        queries[place.clone()].copy_from_slice(&self.q[row.clone()]);
                        d_outs[place.clone()].copy_from_slice(&self.d_out[row.clone()]);
                        // SAFETY: as above.
                        d_queries[place].copy_from_slice(unsafe { dq.part(row) });
                    }
                    let q = Tile { data: queries, stride: d };
                    let d_out = Tile { data: d_outs, stride: d };
                    let keys_t = Tile { data: keys_t, stride: KEYS };
                    let values_t = Tile { data: values_t, stride: KEYS };
                    tile::multiply(isa, q, keys_t, probs, KEYS, rows, d, count, false);
                    tile::multiply(isa, d_out, values_t, d_scores, KEYS, rows, d, count, false);
                    for i in 0..rows {
                        let visible = Visible::new(start + i / group, block, self.window);
                        score_gradient(
                            isa,
                            &mut probs[i * KEYS..(i + 1) * KEYS],
                            &mut d_scores[i * KEYS..(i + 1) * KEYS],
                            visible.first,
                            visible.end,
                            scale,
                            log_sums[first_row + i],
                            means[first_row + i],
                        );
                    }
                    tile::transpose(isa, Tile { data: probs, stride: KEYS }, rows, count, probs_t, most);
                    tile::transpose(isa, Tile { data: d_scores, stride: KEYS }, rows, count, d_scores_t, most);
                    let probs_t = Tile { data: probs_t, stride: most };
                    let d_scores_t = Tile { data: d_scores_t, stride: most };
                    tile::multiply(isa, probs_t, d_out, d_values, d, count, rows, d, true);
                    tile::multiply(isa, d_scores_t, q, d_keys, d, count, rows, d, true);
                    let d_scores = Tile { data: d_scores, stride: KEYS };
                    tile::multiply(isa, d_scores, keys, d_queries, d, rows, count, d, true);
                    for (i, d_query) in d_queries.chunks_exact(d).take(rows).enumerate() {
                        let head = head_at(first_row + i);
                        // SAFETY: as above.
                        unsafe { dq.part(head * d..(head + 1) * d) }.copy_from_slice(d_query);
                    }
                }
                for j in 0..count {
                    let row = at + j * width..at + j * width + d;
                    // SAFETY: spans do not overlap, and this piece alone has this sequence and key/value head.
                    let (dk, dv) = unsafe { (dk.part(row.clone()), dv.part(row)) };
                    dk.copy_from_slice(&d_keys[j * d..][..d]);
                    dv.copy_from_slice(&d_values[j * d..][..d]);
                }
            }
        });
    }
}

kernel! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::sum2(a, b, simd::fma::<FMA>)
    }
}

kernel! {
    /// Raw scores become probabilities; gradients of probabilities become gradients of raw scores. Zero outside `first..end`.
    fn score_gradient(scores: &mut [f32], d_scores: &mut [f32], first: usize, end: usize, scale: f32, log_sum: f32, mean: f32) {
        for x in [&mut *scores, &mut *d_scores] {
            x[..first].fill(0.0);
            x[end..].fill(0.0);
        }
        for (s, d) in scores[first..end].iter_mut().zip(&mut d_scores[first..end]) {
            let p = simd::exp::<FMA>(*s * scale - log_sum);
            *s = p;
            *d = p * (*d - mean) * scale;
        }
    }
}
