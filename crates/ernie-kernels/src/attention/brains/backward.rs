//! Backward: scores are recomputed block by block from the saved log-sum-exp (Dao et al., arXiv:2205.14135).

use std::ops::Range;

use super::{BLOCK, Head, multiply, panels_size, rows_size, side, stride, take};
use crate::attention::Heads;
use crate::attention::backward::{dot, score_gradient};
use crate::attention::forward::Visible;
use crate::floats::{Floats, FloatsMut, SharedFloats};
use crate::level::Isa;
use crate::pool;

/// See [`crate::attention::backward`]; lengths were checked. `inputs` are queries, keys, values, outputs and the gradient of these.
#[allow(clippy::too_many_arguments)] // As there.
pub(in crate::attention) fn backward(
    isa: Isa,
    inputs: [Floats<'_>; 5],
    lse: &[f32],
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
    gradients: [FloatsMut<'_>; 3],
) {
    let gradients = gradients.map(SharedFloats::new);
    pool::parallel(spans.len() * heads.kv_heads, |i| {
        let (span, kv_head) = (spans[i / heads.kv_heads].clone(), i % heads.kv_heads);
        Head { isa, heads, span, kv_head, window }.backward(inputs, lse, &gradients);
    });
}

impl Head<'_> {
    /// All of a sequence and head: its gradients of keys and values are sums over all rows of queries, in their order.
    fn backward(&self, [q, k, v, out, d_out]: [Floats<'_>; 5], lse: &[f32], [dq, dk, dv]: &[SharedFloats<'_>; 3]) {
        let (isa, d, group, most, length) =
            (self.isa, self.heads.head_dim, self.heads.group(), self.tile_rows(), self.span.len());
        let blocks = length.div_ceil(BLOCK);
        let (by_position, by_width) = (panels_size(BLOCK, d), panels_size(d, BLOCK));
        let needed = blocks * (2 * by_position + by_width)
            + 2 * length * d
            + 4 * most * d
            + 2 * most
            + 2 * most * BLOCK
            + 2 * rows_size(most, d)
            + 2 * panels_size(d, most)
            + rows_size(most, BLOCK)
            + rows_size(BLOCK, most);
        pool::scratch(needed, |mut scratch| {
            let scratch = &mut scratch;
            let keys = take(scratch, blocks * by_position);
            let values = take(scratch, blocks * by_position);
            let keys_by_width = take(scratch, blocks * by_width);
            for i in 0..blocks {
                let of = i * BLOCK..((i + 1) * BLOCK).min(length);
                self.side(k, false).panels(isa, &of, &(0..d), &mut keys[i * by_position..][..by_position]);
                self.side(v, false).panels(isa, &of, &(0..d), &mut values[i * by_position..][..by_position]);
                self.side(k, true).panels(isa, &(0..d), &of, &mut keys_by_width[i * by_width..][..by_width]);
            }
            let (d_keys, d_values) = (take(scratch, length * d), take(scratch, length * d));
            d_keys.fill(0.0);
            d_values.fill(0.0);
            let (queries, d_outs) = (take(scratch, most * d), take(scratch, most * d));
            let (outs, d_queries) = (take(scratch, most * d), take(scratch, most * d));
            let (log_sums, means) = (take(scratch, most), take(scratch, most));
            let (probs, d_scores) = (take(scratch, most * BLOCK), take(scratch, most * BLOCK));
            let (query_rows, d_out_rows) = (take(scratch, rows_size(most, d)), take(scratch, rows_size(most, d)));
            let query_panels = take(scratch, panels_size(d, most));
            let d_out_panels = take(scratch, panels_size(d, most));
            let (along, turned) = (take(scratch, rows_size(most, BLOCK)), take(scratch, rows_size(BLOCK, most)));
            for start in (0..length).step_by(self.tile()) {
                let tile = start..(start + self.tile()).min(length);
                let (row, rows) = (tile.start * group, tile.len() * group);
                for (from, to) in [(q, &mut *queries), (d_out, &mut *d_outs), (out, &mut *outs)] {
                    self.gather(from, row..row + rows, to);
                }
                for r in 0..rows {
                    means[r] = dot(isa, &d_outs[r * d..][..d], &outs[r * d..][..d]);
                    log_sums[r] = lse[self.row(row + r)];
                }
                let (all, width) = (0..rows, 0..d);
                side(&queries[..rows * d], d, false).rows(isa, &all, &width, query_rows, stride(d));
                side(&d_outs[..rows * d], d, false).rows(isa, &all, &width, d_out_rows, stride(d));
                side(&queries[..rows * d], d, true).panels(isa, &width, &all, query_panels);
                side(&d_outs[..rows * d], d, true).panels(isa, &width, &all, d_out_panels);
                d_queries[..rows * d].fill(0.0);
                for (block, count) in self.blocks(tile.clone()) {
                    let i = block / BLOCK;
                    let shape = [rows, d, count];
                    let at = i * by_position..(i + 1) * by_position;
                    multiply(isa, query_rows, (&keys[at.clone()], d), shape, (probs, BLOCK), false);
                    multiply(isa, d_out_rows, (&values[at], d), shape, (d_scores, BLOCK), false);
                    for r in 0..rows {
                        let seen = Visible::of(tile.start + r / group, block, count, self.window);
                        let (p, ds) = (&mut probs[r * BLOCK..][..count], &mut d_scores[r * BLOCK..][..count]);
                        score_gradient(isa, p, ds, seen.first, seen.end, self.heads.scale(), log_sums[r], means[r]);
                    }
                    let (positions, turn) = (0..count, [count, rows, d]);
                    side(probs, BLOCK, true).rows(isa, &positions, &all, turned, stride(rows));
                    multiply(isa, turned, (d_out_panels, rows), turn, (&mut d_values[block * d..], d), true);
                    side(d_scores, BLOCK, true).rows(isa, &positions, &all, turned, stride(rows));
                    multiply(isa, turned, (query_panels, rows), turn, (&mut d_keys[block * d..], d), true);
                    side(d_scores, BLOCK, false).rows(isa, &all, &positions, along, stride(count));
                    let panels = &keys_by_width[i * by_width..][..by_width];
                    let panels = (panels, BLOCK.min(length - block));
                    multiply(isa, along, panels, [rows, count, d], (d_queries, d), true);
                }
                for r in 0..rows {
                    let at = self.row(row + r);
                    // SAFETY: spans do not overlap and query heads belong to one key/value head, so no one else has this row.
                    unsafe { dq.write_all(isa, at * d..(at + 1) * d, &d_queries[r * d..][..d]) };
                }
            }
            for (j, (d_key, d_value)) in d_keys.chunks_exact(d).zip(d_values.chunks_exact(d)).enumerate() {
                let at = ((self.span.start + j) * self.heads.kv_heads + self.kv_head) * d;
                // SAFETY: spans do not overlap, and this task alone has this sequence and key/value head.
                unsafe {
                    dk.write_all(isa, at..at + d, d_key);
                    dv.write_all(isa, at..at + d, d_value);
                }
            }
        });
    }
}
