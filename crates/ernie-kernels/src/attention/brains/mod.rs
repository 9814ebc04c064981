//! Attention of training in bf16, where the processor multiplies pairs of it.
//!
//! Queries, keys, values and gradients are bf16; scores, softmax and every sum are f32. What a product takes is rounded once more:
//! probabilities, and the gradients of scores. Keys and values of a sequence and head are packed once and serve all rows of queries; a
//! row's result depends on its own sequence alone, and sums run over blocks of absolute positions.

mod backward;
mod forward;

use std::ops::Range;

pub(super) use backward::backward;
pub(super) use forward::forward;

use super::{Heads, first_visible};
use crate::floats::Floats;
use crate::gemm::pairs::{self, Side};
use crate::level::Isa;
use crate::packed::float_amx::Ahead;
use crate::packed::float_tile::WIDTH;

/// Key positions whose scores are held at once.
const BLOCK: usize = 256;

/// Query rows (positions times heads of a group) that go through a block together.
const ROWS: usize = 64;

/// One sequence and one key/value head.
struct Head<'a> {
    isa: Isa,
    heads: &'a Heads,
    span: Range<usize>,
    kv_head: usize,
    window: Option<usize>,
}

impl Head<'_> {
    /// Query positions in a tile.
    fn tile(&self) -> usize {
        ROWS.div_ceil(self.heads.group()).max(1)
    }

    /// Most rows of a tile.
    fn tile_rows(&self) -> usize {
        self.tile() * self.heads.group()
    }

    /// Where row `i` of the sequence (head `i % group` of position `i / group`) lies among all heads of all rows.
    fn row(&self, i: usize) -> usize {
        let group = self.heads.group();
        (self.span.start + i / group) * self.heads.query_heads + self.kv_head * group + i % group
    }

    /// The keys or values, `[positions, d]`, or their transpose.
    fn side<'a>(&self, data: Floats<'a>, down: bool) -> Side<'a> {
        let Heads { kv_heads, head_dim, .. } = *self.heads;
        let first = (self.span.start * kv_heads + self.kv_head) * head_dim;
        Side { data: data.part(first..data.len()), stride: kv_heads * head_dim, down }
    }

    /// Rows `rows` of the sequence in 32 bits, one after the other.
    fn gather(&self, x: Floats<'_>, rows: Range<usize>, to: &mut [f32]) {
        let d = self.heads.head_dim;
        for (i, to) in rows.zip(to.chunks_exact_mut(d)) {
            let at = self.row(i) * d;
            match x {
                Floats::F32(x) => to.copy_from_slice(&x[at..at + d]),
                x => {
                    x.read(self.isa, at..at + d, to);
                }
            }
        }
    }

    /// The blocks of positions that a tile of positions sees, each with the part of it that some row sees.
    fn blocks(&self, positions: Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<> {
        let end = positions.end;
        let first = first_visible(positions.start, self.window) / BLOCK * BLOCK;
        (first..end).step_by(BLOCK).map(move |block| (block, BLOCK.min(end - block)))
    }
}

/// Rows of floats that are `stride` apart, or their transpose.
fn side(data: &[f32], stride: usize, down: bool) -> Side<'_> {
    Side { data: Floats::F32(data), stride, down }
}

/// Floats between rows of packed pairs of `k` elements.
fn stride(k: usize) -> usize {
    k.div_ceil(2) + WIDTH
}

/// Floats that rows of packed pairs take: fifteen more may be read after the last.
fn rows_size(rows: usize, k: usize) -> usize {
    (rows + 15) * stride(k)
}

/// Floats that panels of `outs` columns over `k` take.
fn panels_size(outs: usize, k: usize) -> usize {
    outs.next_multiple_of(WIDTH) * k.div_ceil(2)
}

/// [`pairs::multiply`] into a slice.
///
/// # Panics
/// When something is outside its slice.
fn multiply(
    isa: Isa,
    left: &[f32],
    (panels, depth): (&[f32], usize),
    [rows, k, outs]: [usize; 3],
    (y, ys): (&mut [f32], usize),
    add: bool,
) {
    assert!(
        left.len() >= rows_size(rows, k)
            && k <= depth
            && panels.len() >= panels_size(outs, depth)
            && (rows == 0 || (rows - 1) * ys + outs <= y.len()),
        "attention: {rows} rows over {k} by {outs} outside their slices"
    );
    let (left, panels) = ((left.as_ptr(), stride(k)), (panels.as_ptr(), depth));
    // SAFETY: as was just checked.
    unsafe { pairs::multiply(isa, left, panels, [rows, k, outs], (y.as_mut_ptr(), ys), add, Ahead::NOTHING) };
}

/// Takes the next `n` floats of scratch.
fn take<'a>(scratch: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (first, rest) = std::mem::take(scratch).split_at_mut(n);
    *scratch = rest;
    first
}
