//! The walk of a tile of query rows over the pages that it sees, chunk by chunk.

use std::ops::Range;

use super::super::forward::Visible;
use super::super::{Heads, first_visible};
use super::page::Layout;
use super::product::{self, FEW, Operands};
use super::{CHUNK, CacheFormat, PAGE, Span};
use crate::level::Isa;
use crate::{pool, simd};

/// Rows that a product at the edge of what they see takes together.
const EDGE_ROWS: usize = 6;

/// Some rows of a span, for the query heads of one key/value head.
pub(super) struct Tile<'a> {
    pub(super) span: &'a Span<'a>,
    pub(super) kv_head: usize,
    /// First row within the span.
    pub(super) first: usize,
    pub(super) count: usize,
    /// The chunks that its rows see.
    pub(super) chunks: Range<usize>,
}

impl Tile<'_> {
    /// Query rows: positions times heads of a group.
    pub(super) fn rows(&self, heads: &Heads) -> usize {
        self.count * heads.group()
    }

    /// What it takes, roughly: a chunk is read for all rows, and multiplied for each.
    pub(super) fn cost(&self) -> usize {
        self.chunks.len() * (4 + self.count)
    }

    fn start(&self) -> usize {
        self.span.past + self.first
    }
}

/// What the tiles of a call share.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) q: &'a [f32],
    pub(super) heads: &'a Heads,
    pub(super) layout: Layout,
    pub(super) window: Option<usize>,
    pub(super) out: pool::Shared<'a, f32>,
}

/// Sums over some positions for each of a tile's rows: the largest score, the sum of the exponentials relative to it, and the
/// values weighted with them. A row that saw nothing has a total of 0.
struct Part<'a> {
    max: &'a mut [f32],
    total: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<'a> Part<'a> {
    fn new(floats: &'a mut [f32], rows: usize) -> Self {
        let (max, rest) = floats.split_at_mut(rows);
        let (total, sums) = rest.split_at_mut(rows);
        Part { max, total, sums }
    }

    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        self.sums.fill(0.0);
    }
}

impl Call<'_> {
    /// All chunks of a tile, merged as they come.
    pub(super) fn whole(&self, tile: &Tile<'_>) {
        let size = tile.rows(self.heads) * self.layout.partial();
        pool::scratch(2 * size, |scratch| {
            let (merged, partial) = scratch.split_at_mut(size);
            for chunk in tile.chunks.clone() {
                if chunk == tile.chunks.start {
                    self.chunk(tile, chunk, tile.chunks.end, merged);
                } else {
                    self.chunk(tile, chunk, tile.chunks.end, partial);
                    self.add(tile, merged, partial);
                }
            }
            self.finish(tile, merged);
        });
    }

    /// Merges the sums of all chunks of a tile, which lie one after the other.
    pub(super) fn merge(&self, tile: &Tile<'_>, partials: &mut [f32]) {
        let size = tile.rows(self.heads) * self.layout.partial();
        let (merged, rest) = partials.split_at_mut(size);
        for partial in rest.chunks_exact_mut(size) {
            self.add(tile, merged, partial);
        }
        self.finish(tile, merged);
    }

    fn add(&self, tile: &Tile<'_>, merged: &mut [f32], partial: &mut [f32]) {
        let rows = tile.rows(self.heads);
        let (into, from) = (Part::new(merged, rows), Part::new(partial, rows));
        merge_rows(self.isa, into.max, into.total, into.sums, from.max, from.total, from.sums, self.layout.padded);
    }

    /// Where row `i` of a tile lies among the heads of the flat rows: it is head `i % group` of position `i / group`.
    fn head_at(&self, tile: &Tile<'_>, i: usize) -> usize {
        let group = self.heads.group();
        let row = tile.span.rows.start + tile.first + i / group;
        row * self.heads.query_heads + tile.kv_head * group + i % group
    }

    fn finish(&self, tile: &Tile<'_>, merged: &mut [f32]) {
        let (d, part) = (self.layout.width, Part::new(merged, tile.rows(self.heads)));
        for (i, sums) in part.sums.chunks_exact(self.layout.padded).enumerate() {
            let head = self.head_at(tile, i);
            // SAFETY: spans do not overlap, and a tile has its own rows and heads: no one else writes this head's row.
            let out = unsafe { self.out.part(head * d..(head + 1) * d) };
            let inverse = 1.0 / part.total[i];
            for (out, &s) in out.iter_mut().zip(sums) {
                *out = s * inverse;
            }
        }
    }

    /// The sums of a tile's rows over one chunk of positions, which more follow that end before chunk `run_end`.
    pub(super) fn chunk(&self, tile: &Tile<'_>, chunk: usize, run_end: usize, floats: &mut [f32]) {
        let (layout, group, rows) = (&self.layout, self.heads.group(), tile.rows(self.heads));
        let (d, padded) = (layout.width, layout.padded);
        let (start, end) = (tile.start(), tile.start() + tile.count);
        let mut part = Part::new(floats, rows);
        part.clear();
        let first_page = (first_visible(start, self.window).max(chunk * CHUNK)) / PAGE;
        let last_page = end.min((chunk + 1) * CHUNK).div_ceil(PAGE);
        let run_pages = end.min(run_end * CHUNK).div_ceil(PAGE);
        // Many rows share what is widened once; few widen on the way.
        let wide = rows > FEW && layout.format != CacheFormat::F32;
        pool::scratch(rows * (d + PAGE) + if wide { PAGE * padded } else { 0 }, |scratch| {
            let (queries, scratch) = scratch.split_at_mut(rows * d);
            let (scores, widened) = scratch.split_at_mut(rows * PAGE);
            for (i, query) in queries.chunks_exact_mut(d).enumerate() {
                query.copy_from_slice(&self.q[self.head_at(tile, i) * d..][..d]);
            }
            for page in first_page..last_page {
                let position = page * PAGE;
                let head = &tile.span.pages[page][layout.head(tile.kv_head)];
                // The same place of the page that follows here, of which only the address is taken.
                let following = tile.span.pages[..run_pages].get(page + 1);
                let next = following.and_then(|next| next.get(layout.head(tile.kv_head))).unwrap_or(head);
                let columns = (end - position).min(PAGE).next_multiple_of(16);
                let keys = self.side(head, next, (d, PAGE), wide.then_some(&mut *widened));
                keys.multiply(self.isa, queries, d, 0..d, scores, PAGE, columns, false);
                let [mut factors, value_scales] = layout.head_scales(head);
                factors.iter_mut().for_each(|f| *f *= self.heads.scale());
                softmax(
                    self.isa,
                    scores,
                    &factors,
                    (layout.format == CacheFormat::Int8).then_some(&value_scales),
                    start,
                    group,
                    position,
                    self.window,
                    part.max,
                    part.total,
                    part.sums,
                    padded,
                );
                let (head, next) = (&head[layout.values()..], &next[layout.values()..]);
                let values = self.side(head, next, (PAGE, padded), wide.then_some(&mut *widened));
                self.weigh(tile, position, &values, scores, part.sums);
            }
        });
    }

    /// Keys or values as the right side of a product, of so many rows and columns.
    fn side<'s>(
        &self,
        bytes: &'s [u8],
        next: &'s [u8],
        (rows, columns): (usize, usize),
        widened: Option<&'s mut [f32]>,
    ) -> Side<'s> {
        let (layout, n) = (&self.layout, rows * columns);
        let Some(widened) = widened else {
            return Side { format: layout.format, bytes, next: next.as_ptr(), stride: columns * layout.element() };
        };
        assert!(
            n <= widened.len() && n * layout.element() <= bytes.len() && n.is_multiple_of(16),
            "attention: {n} elements of {} bytes",
            bytes.len()
        );
        // SAFETY: both were just found to hold `n` elements, a multiple of 16.
        unsafe { product::widen(self.isa, layout.format, bytes.as_ptr(), n, widened.as_mut_ptr()) };
        let bytes = bytemuck::cast_slice(&widened[..n]);
        Side { format: CacheFormat::F32, bytes, next: bytes.as_ptr(), stride: columns * 4 }
    }

    /// Adds the values weighted with the probabilities, over those positions of the page that each row sees, in their order.
    fn weigh(&self, tile: &Tile<'_>, page: usize, values: &Side<'_>, probs: &[f32], sums: &mut [f32]) {
        let (group, padded) = (self.heads.group(), self.layout.padded);
        let visible = |i: usize| {
            let v = Visible::new(tile.start() + i, page, self.window);
            v.first..v.end
        };
        // Rows of the positions `some`, over the places `range`.
        let mut add = |some: Range<usize>, range: Range<usize>| {
            if !some.is_empty() && !range.is_empty() {
                let sums = &mut sums[some.start * group * padded..some.end * group * padded];
                let probs = &probs[some.start * group * PAGE..some.end * group * PAGE];
                values.multiply(self.isa, probs, PAGE, range, sums, padded, padded, true);
            }
        };
        let (first, last) = (visible(0), visible(tile.count - 1));
        if first == last {
            return add(0..tile.count, first);
        }
        let step = (EDGE_ROWS / group).max(1);
        for from in (0..tile.count).step_by(step) {
            let some = from..(from + step).min(tile.count);
            // What all see: later rows begin and end later. What only some see is added before and after it, so that every
            // row's sum runs in the order of positions.
            let (start, end) = (visible(some.end - 1).start, visible(some.start).end);
            if start < end {
                some.clone().for_each(|i| add(i..i + 1, visible(i).start..start));
                add(some.clone(), start..end);
                some.for_each(|i| add(i..i + 1, end..visible(i).end));
            } else {
                some.for_each(|i| add(i..i + 1, visible(i)));
            }
        }
    }
}

/// The right side of a product: rows of elements in a page, or widened ones.
struct Side<'a> {
    format: CacheFormat,
    bytes: &'a [u8],
    next: *const u8,
    /// Bytes from row to row.
    stride: usize,
}

impl Side<'_> {
    /// `c[i, j] (+)= sum over l in inner of a[i, l] * b[l, j]` for the rows of `c` and `j < columns`.
    #[allow(clippy::too_many_arguments)] // A matrix product.
    fn multiply(
        &self,
        isa: Isa,
        a: &[f32],
        lda: usize,
        inner: Range<usize>,
        c: &mut [f32],
        ldc: usize,
        columns: usize,
        add: bool,
    ) {
        let m = c.len() / ldc;
        let size = match self.format {
            CacheFormat::F32 => 4,
            CacheFormat::Bf16 => 2,
            CacheFormat::Int8 => 1,
        };
        assert!(
            a.len() == m * lda
                && c.len() == m * ldc
                && inner.start <= inner.end
                && inner.end <= lda
                && inner.end * self.stride <= self.bytes.len()
                && columns * size <= self.stride
                && columns <= ldc
                && columns.is_multiple_of(16),
            "attention: a product outside its slices"
        );
        let operands = Operands {
            a: a.as_ptr().wrapping_add(inner.start),
            lda,
            b: self.bytes.as_ptr().wrapping_add(inner.start * self.stride),
            ldb: self.stride,
            c: c.as_mut_ptr(),
            ldc,
            m,
            k: inner.len(),
            n: columns,
            add,
            ahead: self.next.wrapping_add(inner.start * self.stride),
        };
        // SAFETY: the assertion puts every row and column that the product touches inside its slice, `c` is exclusive, and
        // `size` is what an element of the format takes.
        unsafe { product::multiply(isa, self.format, operands) };
    }
}

kernel! {
    /// Turns the raw scores of a page into weights relative to each row's running maximum, and rescales what was summed before.
    ///
    /// Row `i` stands at position `start + i / group`. Scores are multiplied by `factors`, the weights (but not their sum) by
    /// `value_scales`. Places that a row does not see become zero; a row that sees none of the page changes nothing else.
    fn softmax(
        scores: &mut [f32],
        factors: &[f32; PAGE],
        value_scales: Option<&[f32; PAGE]>,
        start: usize,
        group: usize,
        page: usize,
        window: Option<usize>,
        max: &mut [f32],
        total: &mut [f32],
        sums: &mut [f32],
        width: usize,
    ) {
        let rows = scores.as_chunks_mut::<PAGE>().0.iter_mut().zip(max).zip(total).zip(sums.chunks_exact_mut(width));
        for (i, (((row, max), total), sums)) in rows.enumerate() {
            let Visible { first, end } = Visible::new(start + i / group, page, window);
            if first >= end {
                continue;
            }
            let whole = first == 0 && end == PAGE;
            if whole {
                for (x, &factor) in row.iter_mut().zip(factors) {
                    *x *= factor;
                }
            } else {
                for (j, (x, &factor)) in row.iter_mut().zip(factors).enumerate() {
                    *x = if j >= first && j < end { *x * factor } else { f32::NEG_INFINITY };
                }
            }
            let page_max = simd::max(row);
            if page_max > *max {
                let correction = simd::exp::<FMA>(*max - page_max);
                *total *= correction;
                for s in sums {
                    *s *= correction;
                }
                *max = page_max;
            }
            // Only -inf seen so far: anything finite will do to be relative to, and gives weights of 0.
            let base = if *max == f32::NEG_INFINITY { 0.0 } else { *max };
            for x in row.iter_mut() {
                *x = simd::exp::<FMA>(*x - base);
            }
            if !whole {
                row[..first].fill(0.0);
                row[end..].fill(0.0);
            }
            *total += simd::sum2(row, row, |x, _, sum| sum + x);
            if let Some(scales) = value_scales {
                for (x, &scale) in row.iter_mut().zip(scales) {
                    *x *= scale;
                }
            }
        }
    }
}

kernel! {
    /// Adds the sums over later positions to those over earlier ones. What saw nothing is left out.
    fn merge_rows(
        max: &mut [f32],
        total: &mut [f32],
        sums: &mut [f32],
        later_max: &[f32],
        later_total: &[f32],
        later_sums: &[f32],
        width: usize,
    ) {
        let rows = max.iter_mut().zip(total).zip(sums.chunks_exact_mut(width));
        let later = later_max.iter().zip(later_total).zip(later_sums.chunks_exact(width));
        for (((max, total), sums), ((&later_max, &later_total), later_sums)) in rows.zip(later) {
            if later_total == 0.0 {
                continue;
            }
            if *total == 0.0 {
                (*max, *total) = (later_max, later_total);
                sums.copy_from_slice(later_sums);
                continue;
            }
            let new = if later_max > *max { later_max } else { *max };
            let (ours, theirs) = (simd::exp::<FMA>(*max - new), simd::exp::<FMA>(later_max - new));
            *max = new;
            *total = simd::fma::<FMA>(later_total, theirs, *total * ours);
            for (s, &l) in sums.iter_mut().zip(later_sums) {
                *s = simd::fma::<FMA>(l, theirs, *s * ours);
            }
        }
    }
}
