//! The walk of a tile of query rows over the pages that it sees, chunk by chunk.

use std::ops::Range;

pub(super) use super::super::forward::Visible;
use super::super::{Heads, first_visible};
use super::page::Layout;
use super::product::{self, COLUMNS, Operands};
use super::softmax::{self, Page};
use super::{CHUNK, CacheFormat, PAGE, Span};
use crate::level::Isa;
use crate::{pool, simd};

/// Rows that a product at the edge of what they see takes together.
const EDGE_ROWS: usize = 12;

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

    pub(super) fn start(&self) -> usize {
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

/// Sums over some positions for each of a tile's rows: the exponentials relative to the largest score, in sixteen sums, the
/// values weighted with them, and that score. A row that saw nothing has a total of 0.
pub(crate) struct Part<'a> {
    /// `[rows, 16]`.
    pub(super) totals: &'a mut [f32],
    /// `[rows, width]`, and as many more rows as tiles reach over.
    pub(super) sums: &'a mut [f32],
    /// By row, to a multiple of 16 rows.
    pub(super) max: &'a mut [f32],
    /// Floats of a row's sums.
    pub(super) width: usize,
}

impl<'a> Part<'a> {
    /// Floats for so many rows of so wide sums, with memory for more rows of them.
    fn len(rows: usize, summed: usize, width: usize) -> usize {
        rows * 16 + summed * width + rows.next_multiple_of(16)
    }

    fn new(floats: &'a mut [f32], rows: usize, summed: usize, width: usize) -> Self {
        let (totals, rest) = floats.split_at_mut(rows * 16);
        let (sums, max) = rest.split_at_mut(summed * width);
        Part { totals, sums, max, width }
    }

    fn clear(&mut self) {
        self.totals.fill(0.0);
        self.sums.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
    }

    /// A batch of sixteen rows, the `batch`th, or as many as are left.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn batch(&mut self, batch: usize) -> Part<'_> {
        let (rows, width) = (self.totals.len() / 16, self.width);
        let some = batch * 16..(batch * 16 + 16).min(rows);
        Part {
            totals: &mut self.totals[some.start * 16..some.end * 16],
            sums: &mut self.sums[some.start * width..(some.start + 16) * width],
            max: &mut self.max[some.start..some.start + 16],
            width,
        }
    }
}

impl Call<'_> {
    /// Floats that the sums of a tile's rows take.
    pub(super) fn part_len(&self, tile: &Tile<'_>) -> usize {
        Part::len(tile.rows(self.heads), self.summed(tile), self.layout.padded)
    }

    fn part<'p>(&self, tile: &Tile<'_>, floats: &'p mut [f32]) -> Part<'p> {
        Part::new(floats, tile.rows(self.heads), self.summed(tile), self.layout.padded)
    }

    /// Rows that there is memory for sums of: tile registers write sixteen at a time.
    fn summed(&self, tile: &Tile<'_>) -> usize {
        let rows = tile.rows(self.heads);
        if self.layout.paired { rows.next_multiple_of(16) } else { rows }
    }

    /// All chunks of a tile, merged as they come.
    pub(super) fn whole(&self, tile: &Tile<'_>) {
        let len = self.part_len(tile);
        pool::scratch(2 * len, |scratch| {
            let (merged, later) = scratch.split_at_mut(len);
            let (mut merged, mut later) = (self.part(tile, merged), self.part(tile, later));
            self.prepared(tile, |queries, scores| {
                for chunk in tile.chunks.clone() {
                    if chunk == tile.chunks.start {
                        self.chunk(tile, chunk, tile.chunks.end, queries, scores, &mut merged);
                    } else {
                        self.chunk(tile, chunk, tile.chunks.end, queries, scores, &mut later);
                        self.merge(&mut merged, &later);
                    }
                }
            });
            self.finish(tile, &merged);
        });
    }

    /// The sums of a run of a tile's chunks, each to its place.
    pub(super) fn run(&self, tile: &Tile<'_>, run: Range<usize>, places: &mut [f32]) {
        self.prepared(tile, |queries, scores| {
            for (chunk, place) in run.clone().zip(places.chunks_exact_mut(self.part_len(tile))) {
                self.chunk(tile, chunk, run.end, queries, scores, &mut self.part(tile, place));
            }
        });
    }

    /// Merges the sums of all chunks of a tile, which lie one after the other.
    pub(super) fn merge_all(&self, tile: &Tile<'_>, places: &mut [f32]) {
        let len = self.part_len(tile);
        let (merged, rest) = places.split_at_mut(len);
        let mut merged = self.part(tile, merged);
        for later in rest.chunks_exact_mut(len) {
            self.merge(&mut merged, &self.part(tile, later));
        }
        self.finish(tile, &merged);
    }

    /// What queries are multiplied with: the softmax works with powers of 2.
    fn scale(&self) -> f32 {
        (std::f64::consts::LOG2_E / (self.layout.width as f64).sqrt()) as f32
    }

    fn merge(&self, into: &mut Part<'_>, later: &Part<'_>) {
        // SAFETY: an `Isa` is of a level whose features the processor has.
        unsafe { softmax::merge(self.isa, into, later) };
    }

    /// Where row `i` of a tile lies among the heads of the flat rows: it is head `i % group` of position `i / group`.
    pub(super) fn head_at(&self, tile: &Tile<'_>, i: usize) -> usize {
        let group = self.heads.group();
        let row = tile.span.rows.start + tile.first + i / group;
        row * self.heads.query_heads + tile.kv_head * group + i % group
    }

    fn finish(&self, tile: &Tile<'_>, merged: &Part<'_>) {
        let (d, totals) = (self.layout.width, merged.totals.as_chunks::<16>().0);
        for (i, (sums, &total)) in merged.sums.chunks_exact(self.layout.padded).zip(totals).enumerate() {
            let head = self.head_at(tile, i);
            // SAFETY: spans do not overlap, and a tile has its own rows and heads: no one else writes this head's row.
            let out = unsafe { self.out.part(head * d..(head + 1) * d) };
            let inverse = 1.0 / simd::fold(total);
            for (out, &s) in out.iter_mut().zip(sums) {
                *out = s * inverse;
            }
        }
    }

    /// Calls `f` with the tile's queries, scaled and cut into sections of [`PAGE`] dimensions, `[sections, rows, PAGE]`, and
    /// with room for the scores of a page. (For tile registers see [`Self::tiled`].)
    fn prepared(&self, tile: &Tile<'_>, f: impl FnOnce(&[f32], &mut [[f32; PAGE]])) {
        let (d, rows) = (self.layout.width, tile.rows(self.heads));
        let scale = self.scale();
        #[cfg(target_arch = "x86_64")]
        if self.layout.paired {
            return self.tiled(tile, scale, f);
        }
        let sections = d.div_ceil(PAGE);
        pool::scratch(rows * PAGE * (sections + 1), |scratch| {
            let (scores, queries) = scratch.split_at_mut(rows * PAGE);
            for i in 0..rows {
                let query = &self.q[self.head_at(tile, i) * d..][..d];
                for (section, query) in query.chunks(PAGE).enumerate() {
                    let to = &mut queries[(section * rows + i) * PAGE..][..query.len()];
                    for (to, &x) in to.iter_mut().zip(query) {
                        *to = x * scale;
                    }
                }
            }
            f(queries, scores.as_chunks_mut().0);
        });
    }

    /// The sums of a tile's rows over one chunk of positions, which more follow that end before chunk `run_end`.
    fn chunk(
        &self,
        tile: &Tile<'_>,
        chunk: usize,
        run_end: usize,
        queries: &[f32],
        scores: &mut [[f32; PAGE]],
        part: &mut Part<'_>,
    ) {
        let (layout, group) = (&self.layout, self.heads.group());
        let (start, end) = (tile.start(), tile.start() + tile.count);
        part.clear();
        let first_page = (first_visible(start, self.window).max(chunk * CHUNK)) / PAGE;
        let last_page = end.min((chunk + 1) * CHUNK).div_ceil(PAGE);
        let run_pages = end.min(run_end * CHUNK).div_ceil(PAGE);
        for page in first_page..last_page {
            let first = page * PAGE;
            let (keys, values) = tile.span.pages[page][layout.head(tile.kv_head)].split_at(layout.values());
            // The same place of the page that follows here, of which only the address is taken.
            let following = tile.span.pages[..run_pages].get(page + 1);
            let next = following.and_then(|next| next.get(layout.head(tile.kv_head))).unwrap_or(keys);
            #[cfg(target_arch = "x86_64")]
            if layout.paired {
                self.page_in_tiles(tile, first, [keys, values, next], queries, scores, part);
                continue;
            }
            let keys = Side { format: layout.format, bytes: keys, rows: layout.width, ahead: values.as_ptr() };
            let columns = (end - first).min(PAGE).next_multiple_of(COLUMNS);
            for (section, queries) in queries.chunks_exact(scores.len() * PAGE).enumerate() {
                let dimensions = section * PAGE..layout.width.min((section + 1) * PAGE);
                keys.multiply(self.isa, queries, dimensions, scores.as_flattened_mut(), PAGE, columns, section > 0);
            }
            let scales = (layout.format == CacheFormat::Int8).then(|| layout.scales(values));
            let scales = scales.as_ref();
            let page = Page {
                key_scales: scales.map(|[keys, _]| keys),
                value_scales: scales.map(|[_, values]| values),
                start,
                group,
                row: 0,
                first,
                window: self.window,
            };
            // SAFETY: an `Isa` is of a level whose features the processor has.
            unsafe { softmax::weights(self.isa, &page, scores, part) };
            let values = Side { format: layout.format, bytes: values, rows: PAGE, ahead: next.as_ptr() };
            self.weigh(tile, first, &values, scores.as_flattened(), part.sums);
        }
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
                values.multiply(self.isa, probs, range, sums, padded, padded, true);
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

/// The right side of a product: the keys or values of one head in a page, in panels of so many rows.
struct Side<'a> {
    format: CacheFormat,
    bytes: &'a [u8],
    rows: usize,
    /// What is read after this.
    ahead: *const u8,
}

impl Side<'_> {
    /// `c[i, j] (+)= sum over l in inner of a[i, l - l0] * b[l, j]` for the rows of `c` and `j < columns`, where `a` has rows of
    /// [`PAGE`] elements and `l0` is `inner.start` in whole pages.
    #[allow(clippy::too_many_arguments)] // A matrix product.
    fn multiply(&self, isa: Isa, a: &[f32], inner: Range<usize>, c: &mut [f32], ldc: usize, columns: usize, add: bool) {
        let (m, line) = (c.len() / ldc, self.format.bytes(COLUMNS));
        let (panel, first) = (self.rows * line, inner.start % PAGE);
        assert!(
            c.len() == m * ldc
                && a.len() == m * PAGE
                && inner.start <= inner.end
                && inner.end <= self.rows
                && first + inner.len() <= PAGE
                && columns <= ldc
                && columns.is_multiple_of(COLUMNS)
                && columns / COLUMNS * panel <= self.bytes.len(),
            "attention: a product outside its slices"
        );
        let operands = Operands {
            a: a.as_ptr().wrapping_add(first),
            b: self.bytes.as_ptr().wrapping_add(inner.start * line),
            panel,
            c: c.as_mut_ptr(),
            ldc,
            m,
            k: inner.len(),
            n: columns,
            add,
            ahead: self.ahead.wrapping_add(inner.start * line),
        };
        // SAFETY: the assertion puts every row and column that the product touches inside its slice, `c` is exclusive, and
        // a line of the format takes as many bytes as `line` says.
        unsafe { product::multiply(isa, self.format, operands) };
    }
}
