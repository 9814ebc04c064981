//! Forward: an online softmax over blocks of positions (Milakov and Gimelshein, arXiv:1805.02867).

use std::ops::Range;

use super::{BLOCK, Head, multiply, panels_size, rows_size, side, stride, take};
use crate::attention::Heads;
use crate::attention::forward::Visible;
use crate::elementwise::scale_slice;
use crate::floats::{Floats, FloatsMut, SharedFloats};
use crate::level::Isa;
use crate::pool::{self, Shared};
use crate::simd;

/// Query positions of a task: enough that packing what they see costs little beside it.
const POSITIONS: usize = 512;

/// See [`crate::attention::forward`]; lengths were checked.
#[allow(clippy::too_many_arguments)] // As there.
pub(in crate::attention) fn forward(
    isa: Isa,
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
    heads: &Heads,
    spans: &[Range<usize>],
    window: Option<usize>,
    out: FloatsMut<'_>,
    lse: &mut [f32],
) {
    let mut work = Vec::new();
    for span in spans {
        // Later positions see more: they go first, so that short pieces fill the end.
        for start in (0..span.len()).step_by(POSITIONS).rev() {
            for kv_head in 0..heads.kv_heads {
                let head = Head { isa, heads, span: span.clone(), kv_head, window };
                work.push((head, start..(start + POSITIONS).min(span.len())));
            }
        }
    }
    let (out, lse) = (SharedFloats::new(out), Shared::new(lse));
    pool::parallel(work.len(), |i| {
        let (head, positions) = &work[i];
        head.forward(q, k, v, positions.clone(), &out, &lse);
    });
}

impl Head<'_> {
    fn forward(
        &self,
        q: Floats<'_>,
        k: Floats<'_>,
        v: Floats<'_>,
        positions: Range<usize>,
        out: &SharedFloats<'_>,
        lse: &Shared<'_, f32>,
    ) {
        let (isa, d, group, most) = (self.isa, self.heads.head_dim, self.heads.group(), self.tile_rows());
        let seen = positions.end;
        let blocks = seen.div_ceil(BLOCK);
        let (key_size, value_size) = (panels_size(BLOCK, d), panels_size(d, BLOCK));
        let needed =
            blocks * (key_size + value_size) + most * (d + BLOCK + d + 2) + rows_size(most, d) + rows_size(most, BLOCK);
        pool::scratch(needed, |mut scratch| {
            let scratch = &mut scratch;
            let keys = take(scratch, blocks * key_size);
            let values = take(scratch, blocks * value_size);
            let first = super::first_visible(positions.start, self.window) / BLOCK;
            for i in first..blocks {
                let of = i * BLOCK..((i + 1) * BLOCK).min(seen);
                self.side(k, false).panels(isa, &of, &(0..d), &mut keys[i * key_size..][..key_size]);
                self.side(v, true).panels(isa, &(0..d), &of, &mut values[i * value_size..][..value_size]);
            }
            let wide = take(scratch, most * d);
            let scores = take(scratch, most * BLOCK);
            let sums = take(scratch, most * d);
            let (max, total) = (take(scratch, most), take(scratch, most));
            let (queries, weights) = (take(scratch, rows_size(most, d)), take(scratch, rows_size(most, BLOCK)));
            for start in positions.clone().step_by(self.tile()) {
                let tile = start..(start + self.tile()).min(positions.end);
                let (row, rows) = (tile.start * group, tile.len() * group);
                self.gather(q, row..row + rows, wide);
                side(&wide[..rows * d], d, false).rows(isa, &(0..rows), &(0..d), queries, stride(d));
                max[..rows].fill(f32::NEG_INFINITY);
                total[..rows].fill(0.0);
                sums[..rows * d].fill(0.0);
                for (block, count) in self.blocks(tile.clone()) {
                    let i = block / BLOCK;
                    let panels = &keys[i * key_size..][..key_size];
                    multiply(isa, queries, (panels, d), [rows, d, count], (scores, BLOCK), false);
                    for r in 0..rows {
                        let visible = Visible::of(tile.start + r / group, block, count, self.window);
                        let row = &mut scores[r * BLOCK..][..count];
                        let sums = &mut sums[r * d..][..d];
                        weigh(
                            isa,
                            row,
                            visible.first,
                            visible.end,
                            self.heads.scale(),
                            &mut max[r],
                            &mut total[r],
                            sums,
                        );
                    }
                    side(scores, BLOCK, false).rows(isa, &(0..rows), &(0..count), weights, stride(count));
                    let (panels, depth) = (&values[i * value_size..][..value_size], BLOCK.min(seen - block));
                    multiply(isa, weights, (panels, depth), [rows, count, d], (sums, d), true);
                }
                for r in 0..rows {
                    let at = self.row(row + r);
                    scale_slice(isa, &mut sums[r * d..][..d], 1.0 / total[r]);
                    // SAFETY: spans do not overlap, and a task has its own positions and heads: no one else writes this row.
                    unsafe {
                        out.write_all(isa, at * d..(at + 1) * d, &sums[r * d..][..d]);
                        lse.part(at..at + 1)[0] = max[r] + total[r].ln();
                    }
                }
            }
        });
    }
}

kernel! {
    /// Turns a block of raw scores into probabilities relative to the running maximum, and rescales what was summed before. Positions
    /// outside `first..end` become zero.
    fn weigh(
        row: &mut [f32],
        first: usize,
        end: usize,
        scale: f32,
        max: &mut f32,
        total: &mut f32,
        sums: &mut [f32],
    ) {
        let (before, rest) = row.split_at_mut(first);
        let (seen, after) = rest.split_at_mut(end - first);
        before.fill(0.0);
        after.fill(0.0);
        if seen.is_empty() {
            return;
        }
        let new_max = (simd::max(seen) * scale).max(*max);
        if new_max > *max {
            let correction = simd::exp::<FMA>(*max - new_max);
            *total *= correction;
            for s in sums {
                *s *= correction;
            }
            *max = new_max;
        }
        for x in seen.iter_mut() {
            *x = simd::exp::<FMA>(simd::fma::<FMA>(*x, scale, -new_max));
        }
        *total += simd::sum2(seen, seen, |x, _, sum| sum + x);
    }
}
